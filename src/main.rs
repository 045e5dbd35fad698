//! The binary; everything else is in the library.

/// As fast as any for the pipeline's threads, and a background thread returns pages to the system
/// ten seconds after they were freed, also in an idle process. Allocators that return pages only
/// while allocating keep a burst's memory until the next one.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    weir::cli::main()
}
