//! Parses, runs, exit code.

/// As fast as any for the pipeline's threads, and a thread of its own gives pages back to the
/// system ten seconds after they were freed, also in a process that has nothing to do. Allocators
/// that give back as they go keep what a burst took until the next.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    weir::cli::main()
}
