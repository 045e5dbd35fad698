//! How far one statement of SQL may go: of its text, of what it is once its common table
//! expressions are written out, of its plan, and of what a function may make of its arguments.
//! Queries and declarations are held to the same bounds of text and plan. What a function may make
//! in a declaration is stored with it, since it decides which rows there are.

pub mod plan;
pub mod scope;
pub mod text;

use std::fmt;

use datafusion::error::DataFusionError;

/// Stack of a thread that parses, plans or runs SQL: it fits the deepest text that is parsed, and
/// the deepest plan that is accepted.
pub const STACK_BYTES: usize = if cfg!(debug_assertions) {
    128 << 20
} else {
    32 << 20
};

/// A statement that goes beyond a bound; the message names it.
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

/// The bound that an error says was exceeded, if it is one.
pub fn exceeded(error: &DataFusionError) -> Option<&Exceeded> {
    match error.find_root() {
        DataFusionError::External(inner) => inner.downcast_ref(),
        _ => None,
    }
}

/// Runs something on a thread whose stack fits what is parsed and planned.
pub fn on_large_stack<T: Send>(what: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    std::thread::scope(|threads| {
        let thread = std::thread::Builder::new()
            .name("plan".into())
            .stack_size(STACK_BYTES);
        let done = thread.spawn_scoped(threads, what)?.join();
        done.or_else(|panic| std::panic::resume_unwind(panic))
    })
}
