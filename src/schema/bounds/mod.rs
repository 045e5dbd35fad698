//! Bounds on one SQL statement: on its text, with common table expressions expanded, on its plan, and
//! on the results of functions. Text and plan have the same bounds in queries and declarations. The
//! bounds on functions in a declaration are stored with it, because they affect its rows.

pub mod plan;
pub mod scope;
pub mod text;

use std::fmt;

use datafusion::error::DataFusionError;

/// Stack of a thread that parses, plans or runs SQL: enough for the deepest text that is parsed and
/// the deepest plan that is accepted.
pub const STACK_BYTES: usize = if cfg!(debug_assertions) {
    128 << 20
} else {
    32 << 20
};

/// An exceeded bound; the message names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exceeded(pub String);

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Exceeded {}

impl From<Exceeded> for DataFusionError {
    fn from(exceeded: Exceeded) -> Self {
        Self::External(Box::new(exceeded))
    }
}

/// The exceeded bound in an error, if that is its cause.
pub fn exceeded(error: &DataFusionError) -> Option<&Exceeded> {
    match error.find_root() {
        DataFusionError::External(inner) => inner.downcast_ref(),
        _ => None,
    }
}

/// Runs a closure on a thread with [`STACK_BYTES`]; an error if the thread cannot be started.
pub fn on_large_stack<T: Send>(run: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    std::thread::scope(|threads| {
        let thread = std::thread::Builder::new()
            .name("plan".into())
            .stack_size(STACK_BYTES);
        let done = thread.spawn_scoped(threads, run)?.join();
        done.or_else(|panic| std::panic::resume_unwind(panic))
    })
}
