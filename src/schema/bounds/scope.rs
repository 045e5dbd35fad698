//! The query that a thread works for. What computes for long asks here whether anybody still waits
//! for it, and what makes much of little counts here what it makes. Threads that work for no query
//! are never stopped and count nothing.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};

use super::Exceeded;
use crate::threads::Pace;

/// Results of functions that are alive at once, about: an expression's own, and those of the
/// operators above it.
const ALIVE: usize = 4;
/// Results below this are not counted: a batch is made of many.
const COUNTED_BYTES: usize = 64 << 10;

/// A query that takes longer yields the CPU now and then; a shorter one would only become slower on
/// a busy machine.
const SHORT: Duration = Duration::from_millis(25);

thread_local! {
    static CURRENT: RefCell<Option<Arc<Scope>>> = const { RefCell::new(None) };
    static PACE: RefCell<Pace> = const { RefCell::new(Pace::new()) };
}

/// A running query, as its threads see it.
#[derive(Debug)]
pub struct Scope {
    begun: Instant,
    /// Whether its threads yield the CPU once it takes long.
    yields_when_long: bool,
    has_ended: AtomicBool,
    /// Why, where it was ended for its memory.
    memory: OnceLock<String>,
    /// While it is planned, whatever is computed stays: in the plan.
    is_planning: AtomicBool,
    /// Rows that it computes with at once were too many for their width: it is worth a try with
    /// fewer.
    was_wide: AtomicBool,
    /// Bytes of the plan's literals, which every batch may hold once a row.
    literals: AtomicUsize,
    made: MemoryReservation,
    results: Mutex<VecDeque<usize>>,
}

impl Scope {
    pub fn new(pool: &Arc<dyn MemoryPool>, yields_when_long: bool) -> Arc<Self> {
        Arc::new(Self {
            begun: Instant::now(),
            yields_when_long,
            has_ended: AtomicBool::new(false),
            memory: OnceLock::new(),
            is_planning: AtomicBool::new(true),
            was_wide: AtomicBool::new(false),
            literals: AtomicUsize::new(0),
            made: MemoryConsumer::new("results of functions").register(pool),
            results: Mutex::default(),
        })
    }

    /// It is planned from now on, perhaps not for the first time.
    pub fn begin(&self) {
        self.is_planning.store(true, Ordering::Release);
        self.results
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        self.made.resize(0);
    }

    /// Nobody waits for it any more: whatever asks, ends.
    pub fn end(&self) {
        self.has_ended.store(true, Ordering::Release);
    }

    /// Others need its memory.
    pub fn end_for_memory(&self, reason: String) {
        let _ = self.memory.set(reason);
        self.end();
    }

    /// An error where it has ended.
    pub fn check(&self) -> Result<()> {
        if !self.has_ended.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(match self.memory.get() {
            // Nothing that is spilled or tried again would help.
            Some(reason) => Exceeded(reason.clone()).into(),
            None => DataFusionError::Execution("the query has ended".into()),
        })
    }

    pub fn set_planned(&self, literals: usize) {
        self.is_planning.store(false, Ordering::Release);
        self.literals.store(literals, Ordering::Release);
    }

    /// Whether it asked for fewer rows at once, since it was asked last.
    pub fn take_wide(&self) -> bool {
        self.was_wide.swap(false, Ordering::AcqRel)
    }

    fn note_result(&self, bytes: usize) -> Result<()> {
        if bytes < COUNTED_BYTES {
            return Ok(());
        }
        if self.is_planning.load(Ordering::Acquire) {
            return self.made.try_grow(bytes);
        }
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        self.made.try_grow(bytes)?;
        results.push_back(bytes);
        if results.len() > ALIVE
            && let Some(oldest) = results.pop_front()
        {
            self.made.shrink(oldest);
        }
        Ok(())
    }
}

/// From now on this thread works for a query.
pub fn enter(scope: &Arc<Scope>) {
    CURRENT.with_borrow_mut(|current| *current = Some(scope.clone()));
}

/// It does not any more.
pub fn leave() {
    CURRENT.take();
}

fn with<T>(what: impl FnOnce(&Scope) -> T) -> Option<T> {
    CURRENT.with_borrow(|current| current.as_deref().map(what))
}

/// Yields the CPU now and then, if this thread works for a query that does so and takes long.
pub fn yield_if_long() {
    if with(|scope| scope.yields_when_long && scope.begun.elapsed() >= SHORT).unwrap_or(false) {
        PACE.with_borrow_mut(Pace::tick);
    }
}

/// An error where the query that this thread works for has ended. Asked again and again by what
/// computes.
pub fn check() -> Result<()> {
    yield_if_long();
    with(Scope::check).unwrap_or(Ok(()))
}

/// Reserves memory for a function's result. Fails if the query has ended or its memory is
/// exhausted.
pub fn make(bytes: usize) -> Result<()> {
    check()?;
    with(|scope| scope.note_result(bytes)).unwrap_or(Ok(()))
}

/// Whether what this thread computes becomes part of a plan.
pub fn is_planning() -> bool {
    with(|scope| scope.is_planning.load(Ordering::Acquire)).unwrap_or(false)
}

/// Notes that fewer rows at once would do.
pub fn note_wide() {
    with(|scope| scope.was_wide.store(true, Ordering::Release));
}

/// Bytes of the literals in the plan of the query that this thread works for.
pub fn literal_bytes() -> usize {
    with(|scope| scope.literals.load(Ordering::Acquire)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use datafusion::execution::memory_pool::UnboundedMemoryPool;

    use super::*;

    /// Whether a thread of such a query that began then has yielded after it asked once.
    fn has_yielded(yields_when_long: bool, begun: Instant) -> bool {
        let pool: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
        let mut scope = Scope::new(&pool, yields_when_long);
        Arc::get_mut(&mut scope).expect("one owner").begun = begun;
        let thread = std::thread::spawn(move || {
            enter(&scope);
            check().expect("it has not ended");
            PACE.with_borrow(Pace::has_ticked)
        });
        thread.join().expect("no panic")
    }

    #[test]
    fn the_threads_of_long_queries_of_clients_yield() {
        let long_ago = Instant::now().checked_sub(SHORT * 2).expect("uptime");
        let far_ahead = Instant::now() + Duration::from_secs(3_600);
        assert!(has_yielded(true, long_ago));
        assert!(!has_yielded(true, far_ahead));
        assert!(!has_yielded(false, long_ago));
    }

    #[test]
    fn a_thread_without_a_query_never_yields() {
        yield_if_long();
        assert!(!PACE.with_borrow(Pace::has_ticked));
    }
}
