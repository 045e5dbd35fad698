//! Threads of a query, which end with it. They never hold up anything else: they have a lower
//! priority than all others, and the query's permit is free soon after it has ended, even where
//! some computation cannot be stopped.

use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;

use datafusion::execution::memory_pool::MemoryPool;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::task::AbortOnDropHandle;

use super::admission::Permit;
use super::memory::QueryMemory;
use crate::schema::bounds::STACK_BYTES;
use crate::schema::bounds::scope::{self, Scope};

/// Niceness of the threads of clients' queries. More (or `SCHED_IDLE`) would let them starve on a
/// busy machine: a query that has ended would not notice it in time, and its threads would count as
/// stuck.
const CLIENT_NICENESS: i32 = 5;
/// Threads that compute for a query, and those that read files for it.
pub const THREADS: usize = 2;
const READ_THREADS: usize = 4;
/// How long the threads of an ended query may run until its permit is released.
const GRACE: Duration = Duration::from_millis(1_200);

/// The threads of a query. Dropping them ends it.
pub struct QueryThreads {
    scope: Arc<Scope>,
    runtime: Option<Runtime>,
    permit: Weak<Permit>,
    server: Option<Handle>,
}

impl QueryThreads {
    /// A client's query runs at a lower priority than everything else, and yields the CPU once it
    /// takes long.
    pub fn start(
        permit: Permit,
        memory: &Arc<QueryMemory>,
        is_client: bool,
    ) -> std::io::Result<Self> {
        let pool: Arc<dyn MemoryPool> = memory.clone();
        let scope = Scope::new(&pool, is_client);
        memory.set_scope(&scope);
        let permit = Arc::new(permit);
        let (weak_permit, entered) = (Arc::downgrade(&permit), scope.clone());
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .max_blocking_threads(READ_THREADS)
            .thread_stack_size(STACK_BYTES)
            .thread_name("sql")
            .enable_all()
            .on_thread_start(move || {
                // Moved into this closure, the permit lives until no thread can run.
                let _ = &permit;
                scope::enter(&entered);
                if is_client {
                    lower_priority();
                }
            })
            .on_thread_stop(scope::leave)
            .build()?;
        Ok(Self {
            scope,
            runtime: Some(runtime),
            permit: weak_permit,
            server: Handle::try_current().ok(),
        })
    }

    /// The scope whose end ends the query.
    pub fn scope(&self) -> &Arc<Scope> {
        &self.scope
    }

    /// Runs a future on the threads of the query.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> AbortOnDropHandle<T> {
        let runtime = self.runtime.as_ref().expect("only dropping takes it");
        AbortOnDropHandle::new(runtime.spawn(work))
    }
}

/// Lowers the priority of this thread; Linux has one for each.
fn lower_priority() {
    if let Err(error) = rustix::process::setpriority_process(None, CLIENT_NICENESS) {
        tracing::debug!(%error, "the priority of a query was not lowered");
    }
}

impl Drop for QueryThreads {
    fn drop(&mut self) {
        self.scope.end();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        let permit = self.permit.clone();
        if let Some(server) = self.server.as_ref().filter(|_| permit.strong_count() > 0) {
            server.spawn(async move {
                tokio::time::sleep(GRACE).await;
                if let Some(permit) = permit.upgrade() {
                    tracing::warn!("a query that has ended still runs; another one may start");
                    permit.release_early();
                }
            });
        }
    }
}
