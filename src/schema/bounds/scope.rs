//! The query that a thread works for. Long computations check here whether the query was cancelled,
//! and functions with large results reserve their memory here. Threads without a query are never
//! cancelled and reserve nothing.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};

use super::Exceeded;
use crate::threads::Pace;

/// Approximate number of function results alive at once: an expression's own, and those of the
/// operators above it.
const LIVE_RESULTS: usize = 4;
/// Smaller results are not counted.
const MIN_COUNTED_BYTES: usize = 64 << 10;

/// A query that takes longer yields the CPU from time to time; a shorter one would only become
/// slower on a busy machine.
const MIN_YIELDING: Duration = Duration::from_millis(25);

thread_local! {
    static CURRENT: RefCell<Option<Arc<Scope>>> = const { RefCell::new(None) };
    static PACE: RefCell<Pace> = const { RefCell::new(Pace::new()) };
}

/// A running query, as its threads see it.
#[derive(Debug)]
pub struct Scope {
    started: Instant,
    /// Whether its threads yield the CPU once it takes longer than [`MIN_YIELDING`].
    yields_when_long: bool,
    has_ended: AtomicBool,
    /// Why it was ended, if for its memory.
    memory: OnceLock<String>,
    /// Results computed during planning stay alive, as literals of the plan.
    is_planning: AtomicBool,
    /// A batch was too large for the width of its rows: a retry with fewer rows may succeed.
    wants_fewer_rows: AtomicBool,
    /// Bytes of the plan's literals, which a batch may repeat for each row.
    literals: AtomicUsize,
    reservation: MemoryReservation,
    /// Bytes of the last results, oldest first.
    results: Mutex<VecDeque<usize>>,
}

impl Scope {
    /// A scope that is planning. The results of functions are reserved in `pool`; with
    /// `yields_when_long` its threads yield the CPU once it takes longer than [`MIN_YIELDING`].
    pub fn new(pool: &Arc<dyn MemoryPool>, yields_when_long: bool) -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            yields_when_long,
            has_ended: AtomicBool::new(false),
            memory: OnceLock::new(),
            is_planning: AtomicBool::new(true),
            wants_fewer_rows: AtomicBool::new(false),
            literals: AtomicUsize::new(0),
            reservation: MemoryConsumer::new("results of functions").register(pool),
            results: Mutex::default(),
        })
    }

    /// Begins planning, the first time or again.
    pub fn begin(&self) {
        self.is_planning.store(true, Ordering::Release);
        self.results
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        self.reservation.resize(0);
    }

    /// Cancels it: every later [`Self::check`] fails.
    pub fn end(&self) {
        self.has_ended.store(true, Ordering::Release);
    }

    /// Cancels it because other queries need its memory.
    pub fn end_for_memory(&self, reason: String) {
        let _ = self.memory.set(reason);
        self.end();
    }

    /// An error if it has ended.
    pub fn check(&self) -> Result<()> {
        if !self.has_ended.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(match self.memory.get() {
            // Spilling or retrying would not help.
            Some(reason) => Exceeded(reason.clone()).into(),
            None => DataFusionError::Execution("the query has ended".into()),
        })
    }

    /// Ends planning; the plan has literals of `literals` bytes.
    pub fn set_planned(&self, literals: usize) {
        self.is_planning.store(false, Ordering::Release);
        self.literals.store(literals, Ordering::Release);
    }

    /// Whether fewer rows were requested since the last call.
    pub fn take_fewer_rows_request(&self) -> bool {
        self.wants_fewer_rows.swap(false, Ordering::AcqRel)
    }

    fn reserve_result(&self, bytes: usize) -> Result<()> {
        if bytes < MIN_COUNTED_BYTES {
            return Ok(());
        }
        if self.is_planning.load(Ordering::Acquire) {
            return self.reservation.try_grow(bytes);
        }
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        self.reservation.try_grow(bytes)?;
        results.push_back(bytes);
        if results.len() > LIVE_RESULTS
            && let Some(oldest) = results.pop_front()
        {
            self.reservation.shrink(oldest);
        }
        Ok(())
    }
}

/// This thread works for a query until [`leave`].
pub fn enter(scope: &Arc<Scope>) {
    CURRENT.with_borrow_mut(|current| *current = Some(scope.clone()));
}

/// Ends [`enter`].
pub fn leave() {
    CURRENT.take();
}

fn with_current<T>(read: impl FnOnce(&Scope) -> T) -> Option<T> {
    CURRENT.with_borrow(|current| current.as_deref().map(read))
}

/// Yields the CPU from time to time, if this thread works for a long query that does so.
pub fn yield_if_long() {
    if with_current(|scope| scope.yields_when_long && scope.started.elapsed() >= MIN_YIELDING)
        .unwrap_or(false)
    {
        PACE.with_borrow_mut(Pace::tick);
    }
}

/// An error if the query that this thread works for has ended. Computations call it regularly.
pub fn check() -> Result<()> {
    yield_if_long();
    with_current(Scope::check).unwrap_or(Ok(()))
}

/// Reserves memory for a function's result. Fails if the query has ended or its memory is
/// exhausted.
pub fn reserve(bytes: usize) -> Result<()> {
    check()?;
    with_current(|scope| scope.reserve_result(bytes)).unwrap_or(Ok(()))
}

/// Whether the results that this thread computes become part of a plan.
pub fn is_planning() -> bool {
    with_current(|scope| scope.is_planning.load(Ordering::Acquire)).unwrap_or(false)
}

/// Requests a retry with fewer rows in a batch.
pub fn request_fewer_rows() {
    with_current(|scope| scope.wants_fewer_rows.store(true, Ordering::Release));
}

/// Bytes of the literals in the plan of the query that this thread works for.
pub fn literal_bytes() -> usize {
    with_current(|scope| scope.literals.load(Ordering::Acquire)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use datafusion::execution::memory_pool::UnboundedMemoryPool;

    use super::*;

    /// Whether a thread of a query that started then yields at its first check.
    fn has_yielded(yields_when_long: bool, started: Instant) -> bool {
        let pool: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
        let mut scope = Scope::new(&pool, yields_when_long);
        Arc::get_mut(&mut scope).expect("one owner").started = started;
        let thread = std::thread::spawn(move || {
            enter(&scope);
            check().expect("it has not ended");
            PACE.with_borrow(Pace::has_ticked)
        });
        thread.join().expect("no panic")
    }

    #[test]
    fn threads_of_long_client_queries_yield() {
        let long_ago = Instant::now()
            .checked_sub(MIN_YIELDING * 2)
            .expect("uptime");
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
