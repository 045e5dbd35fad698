//! A query at work: on threads of its own, which end with it. Whatever it computes, nobody else
//! waits for it: its threads come after all others, and its slot is free soon after it has ended,
//! even where something in it cannot be stopped.

use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;

use datafusion::execution::memory_pool::MemoryPool;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::task::AbortOnDropHandle;

use super::memory::QueryMemory;
use super::slots::Slot;
use crate::schema::bounds::STACK_BYTES;
use crate::schema::bounds::scope::{self, Scope};

/// Niceness of the threads of clients' queries. More (or `SCHED_IDLE`) would let them starve on a
/// busy machine: a query that has ended would not notice it in time, and its threads would count as
/// stuck.
const CLIENT_NICENESS: i32 = 5;
/// Threads that compute for a query, and those that read files for it.
pub const THREADS: usize = 2;
const READERS: usize = 4;
/// How long the threads of a query that has ended may run until its slot is given to another.
const GRACE: Duration = Duration::from_millis(1_200);

/// The threads of a query; dropped, it ends.
pub struct Running {
    scope: Arc<Scope>,
    runtime: Option<Runtime>,
    slot: Weak<Slot>,
    outside: Option<Handle>,
}

impl Running {
    /// A client's query runs at a lower priority than everything else, and yields the CPU once it
    /// takes long.
    pub fn start(slot: Slot, memory: &Arc<QueryMemory>, is_client: bool) -> std::io::Result<Self> {
        let pool: Arc<dyn MemoryPool> = memory.clone();
        let scope = Scope::new(&pool, is_client);
        memory.set_scope(&scope);
        let slot = Arc::new(slot);
        let (held, entered) = (Arc::downgrade(&slot), scope.clone());
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .max_blocking_threads(READERS)
            .thread_stack_size(STACK_BYTES)
            .thread_name("sql")
            .enable_all()
            .on_thread_start(move || {
                // The slot is held for as long as a thread can run.
                let _ = &slot;
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
            slot: held,
            outside: Handle::try_current().ok(),
        })
    }

    pub fn scope(&self) -> &Arc<Scope> {
        &self.scope
    }

    /// Does something on the threads of the query.
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
        tracing::debug!(%error, "a query keeps its priority");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.scope.end();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        let slot = self.slot.clone();
        if let Some(outside) = self.outside.as_ref().filter(|_| slot.strong_count() > 0) {
            outside.spawn(async move {
                tokio::time::sleep(GRACE).await;
                if let Some(slot) = slot.upgrade() {
                    tracing::warn!(
                        "a query that has ended still computes; its slot is given to others"
                    );
                    slot.give_up();
                }
            });
        }
    }
}
