//! Memory that queries share. A single query may use all of it. When another needs memory within
//! its fair share, the query that exceeds its own share most is ended, with an error that says so:
//! no query fails because of another one.
//!
//! Example: 4 queries share 100 bytes, 25 each. A holds 100; B asks for 25, so A is ended. Had B
//! asked for 26, B would have failed.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{
    MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation,
};

use crate::schema::bounds::scope::{self, Scope};

/// How long a query waits for the memory of one that was ended.
const MAX_WAIT: Duration = Duration::from_secs(2);
/// How often it retries without a notification.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// The memory of all queries.
pub struct SharedMemory {
    pool: Arc<dyn MemoryPool>,
    /// Bytes that each query may use regardless of the others.
    share: usize,
    queries: Mutex<Vec<Weak<QueryMemory>>>,
    freed: Condvar,
}

impl SharedMemory {
    /// `pool` has `bytes`, for at most `queries` queries at once.
    pub fn new(pool: Arc<dyn MemoryPool>, bytes: usize, queries: usize) -> Arc<Self> {
        Arc::new(Self {
            pool,
            share: bytes / queries.max(1),
            queries: Mutex::default(),
            freed: Condvar::new(),
        })
    }

    /// Adds a query.
    pub fn query(self: &Arc<Self>) -> Arc<QueryMemory> {
        let query = Arc::new(QueryMemory {
            shared: self.clone(),
            held: AtomicUsize::new(0),
            scope: OnceLock::new(),
        });
        let mut queries = self.queries();
        queries.retain(|query| query.strong_count() > 0);
        queries.push(Arc::downgrade(&query));
        query
    }

    fn queries(&self) -> MutexGuard<'_, Vec<Weak<QueryMemory>>> {
        self.queries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the running query that holds the most beyond its share. False if none does, so that there
    /// is nothing to wait for. A finished query holds its result until the answer is written, which
    /// is soon.
    fn reclaim(&self) -> bool {
        let queries: Vec<Arc<QueryMemory>> =
            self.queries().iter().filter_map(Weak::upgrade).collect();
        let beyond = || queries.iter().filter(|query| query.held() > self.share);
        let running =
            beyond().filter_map(|query| Some((query.held(), query.scope.get()?.upgrade()?)));
        if let Some((held, scope)) = running.max_by_key(|(held, _)| *held) {
            scope.end_for_memory(format!(
                "the query was ended: it held {held} bytes when others needed memory, and its share of `[limits] memory` is {}; narrow it, or try again later",
                self.share
            ));
        }
        beyond().next().is_some()
    }
}

/// The memory of one query.
pub struct QueryMemory {
    shared: Arc<SharedMemory>,
    held: AtomicUsize,
    scope: OnceLock<Weak<Scope>>,
}

impl QueryMemory {
    /// Sets the scope by which the query is ended.
    pub fn set_scope(&self, scope: &Arc<Scope>) {
        let _ = self.scope.set(Arc::downgrade(scope));
    }

    fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// An error if the query was ended.
    fn check_running(&self) -> Result<()> {
        self.scope
            .get()
            .and_then(Weak::upgrade)
            .map_or(Ok(()), |scope| scope.check())
    }
}

impl MemoryPool for QueryMemory {
    fn name(&self) -> &str {
        "query"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.shared.pool.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.shared.pool.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.shared.pool.grow(reservation, additional);
        self.held.fetch_add(additional, Ordering::Relaxed);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.shared.pool.shrink(reservation, shrink);
        self.held.fetch_sub(shrink, Ordering::Relaxed);
        self.shared.freed.notify_all();
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        scope::yield_if_long();
        self.check_running()?;
        let mut grown = self.shared.pool.try_grow(reservation, additional);
        if matches!(grown, Err(DataFusionError::ResourcesExhausted(_)))
            && self.held() + additional <= self.shared.share
        {
            // Blocking is fine: the thread belongs to this query.
            let until = Instant::now() + MAX_WAIT;
            while grown.is_err() && Instant::now() < until && self.shared.reclaim() {
                let queries = self.shared.queries();
                drop(
                    self.shared
                        .freed
                        .wait_timeout(queries, RETRY_INTERVAL)
                        .unwrap_or_else(PoisonError::into_inner),
                );
                self.check_running()?;
                grown = self.shared.pool.try_grow(reservation, additional);
            }
        }
        grown?;
        self.held.fetch_add(additional, Ordering::Relaxed);
        Ok(())
    }

    fn reserved(&self) -> usize {
        self.held()
    }

    fn memory_limit(&self) -> MemoryLimit {
        self.shared.pool.memory_limit()
    }
}

impl fmt::Debug for QueryMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryMemory")
            .field("held", &self.held())
            .field("share", &self.shared.share)
            .finish()
    }
}

impl fmt::Display for QueryMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of a query", self.held())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::execution::memory_pool::GreedyMemoryPool;

    fn query(shared: &Arc<SharedMemory>) -> (Arc<Scope>, MemoryReservation) {
        let memory = shared.query();
        let pool: Arc<dyn MemoryPool> = memory.clone();
        let scope = Scope::new(&pool, false);
        memory.set_scope(&scope);
        (scope, MemoryConsumer::new("test").register(&pool))
    }

    #[test]
    fn a_query_within_its_share_ends_the_one_that_exceeds_it() {
        let shared = SharedMemory::new(Arc::new(GreedyMemoryPool::new(100)), 100, 4);
        let (greedy, all) = query(&shared);
        all.try_grow(100).expect("a single query may use all");
        let (modest, own) = query(&shared);
        // Beyond its share it fails.
        own.try_grow(26).expect_err("nothing is free");
        greedy.check().expect("no query within its share needed it");
        let freed = std::thread::spawn(move || {
            while greedy.check().is_ok() {
                std::thread::yield_now();
            }
            let error = all.try_grow(1).expect_err("it was ended").to_string();
            drop(all);
            error
        });
        own.try_grow(25).expect("freed by the one that was ended");
        modest.check().expect("runs");
        assert!(
            freed
                .join()
                .expect("no panic")
                .contains("it held 100 bytes when others needed memory")
        );
        // A result that is still being written is waited for.
        let (done, result) = query(&shared);
        result.try_grow(75).expect("free");
        drop(done);
        let written = std::thread::spawn(move || drop(result));
        let (after, next) = query(&shared);
        next.try_grow(25).expect("freed by the result");
        written.join().expect("no panic");
        drop((after, next));
        // If all are within their shares, none is ended.
        let (other, rest) = query(&shared);
        rest.try_grow(76).expect_err("not free");
        own.try_grow(75).expect("free");
        drop(own);
        rest.try_grow(20).expect("free");
        other.check().expect("runs");
    }
}
