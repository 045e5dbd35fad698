//! Moves one view along the ring: take the next output, apply, commit when due, then say how far it
//! is. A view that fell out of the ring is led through the log. A failed one starts again from what
//! it has committed, and nobody waits for it meanwhile.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::ring::{Next, Ring};
use super::{View, ViewError};
use crate::event::Lsn;
use crate::operators::Output;
use crate::threads::panic_if_asked;

/// Longest wait for the next output before looking whether a commit is due.
const POLL: Duration = Duration::from_millis(50);
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// Tries without success after which a run that is to end gives up.
const MAX_FINAL_TRIES: u32 = 6;

/// How far a view is, for everyone else.
#[derive(Debug, Default)]
pub struct Status {
    applied: AtomicU64,
    /// It reads the log, because the ring begins above it.
    is_catching_up: AtomicBool,
    checkpoints: Mutex<BTreeMap<String, Lsn>>,
    failure: Mutex<Option<String>>,
}

impl Status {
    /// In memory, everything up to this LSN is applied.
    pub fn applied(&self) -> Lsn {
        self.applied.load(Ordering::Acquire)
    }

    /// Committed checkpoints.
    pub fn checkpoints(&self) -> BTreeMap<String, Lsn> {
        self.checkpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Why the view does not go on at present.
    pub fn failure(&self) -> Option<String> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether the view reads the log, or waits for its turn to, because the ring begins above it.
    pub fn is_catching_up(&self) -> bool {
        self.is_catching_up.load(Ordering::Acquire)
    }

    pub fn set_catching_up(&self, is_catching_up: bool) {
        self.is_catching_up.store(is_catching_up, Ordering::Release);
    }

    /// Says how far a view is.
    pub fn publish(&self, view: &dyn View) {
        let checkpoints = view.checkpoints().into_iter().collect();
        *self
            .checkpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = checkpoints;
        self.applied.store(view.applied(), Ordering::Release);
    }

    fn set_failure(&self, failure: Option<String>) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }
}

/// What is done with each output that is read again.
pub type ApplyOutput<'a> = &'a mut dyn FnMut(&mut dyn View, &Output) -> Result<(), ViewError>;

/// Up to which record to read on for who has everything up to an LSN; none where there is no more
/// to read. Asked again whenever that is reached, because the ring goes on meanwhile.
pub type ReplayTarget<'a> = &'a dyn Fn(Lsn) -> Option<Lsn>;

/// Reads the log again for a view: gives it every output from its LSN on, until the target is
/// reached, beginning with the newest snapshot that the view is not behind. False: it was broken
/// off, because everything stops.
pub trait CatchUp: Send + Sync {
    fn replay(
        &self,
        view: &mut dyn View,
        to: ReplayTarget<'_>,
        apply: ApplyOutput<'_>,
    ) -> Result<bool, ViewError>;
}

/// Runs a view until the ring closes; everything is committed then. An error is final.
pub fn run(
    mut view: Box<dyn View>,
    ring: &Ring,
    catch_up: &dyn CatchUp,
    status: &Arc<Status>,
) -> Result<(), ViewError> {
    let name = view.name().to_owned();
    status.publish(&*view);
    let mut retries = RetryState {
        tries: 0,
        tries_at_the_end: 0,
        checkpoints_at_failure: view.checkpoints(),
    };
    let mut flush_requests = ring.flush_requests();
    loop {
        match advance(
            &mut *view,
            &name,
            ring,
            catch_up,
            status,
            &mut flush_requests,
        ) {
            // Only a commit shows that a view that failed goes on again.
            Ok(true)
                if retries.tries > 0 && view.checkpoints() != retries.checkpoints_at_failure =>
            {
                retries.tries = 0;
                status.set_failure(None);
            }
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => retries.recover(&mut *view, ring, status, error)?,
        }
    }
}

/// What a view has failed since its last commit.
struct RetryState {
    tries: u32,
    /// Those since everything ends.
    tries_at_the_end: u32,
    /// Where it checkpoints_at_failure then.
    checkpoints_at_failure: Vec<(String, Lsn)>,
}

impl RetryState {
    /// Starts a view again from its checkpoint, as often as it takes; an error where that cannot
    /// help, or everything ends.
    fn recover(
        &mut self,
        view: &mut dyn View,
        ring: &Ring,
        status: &Status,
        mut error: ViewError,
    ) -> Result<(), ViewError> {
        let name = view.name().to_owned();
        // It may have committed while it read the log again.
        let checkpoints_at_failure =
            std::mem::replace(&mut self.checkpoints_at_failure, view.checkpoints());
        if checkpoints_at_failure != self.checkpoints_at_failure {
            self.tries = 0;
        }
        loop {
            if error.is_final() {
                return Err(error);
            }
            let wait = (FIRST_RETRY * 2_u32.saturating_pow(self.tries)).min(LAST_RETRY);
            self.tries = self.tries.saturating_add(1);
            tracing::error!(view = name, %error, retry_ms = wait.as_millis() as u64, "view failed; it starts again from its checkpoint");
            status.set_failure(Some(error.to_string()));
            // Nobody waits for it meanwhile, and the end of everything wakes it.
            if matches!(ring.next(&name, Lsn::MAX, wait), Next::Closed) {
                self.tries_at_the_end += 1;
                if self.tries_at_the_end >= MAX_FINAL_TRIES {
                    return Err(error);
                }
                std::thread::sleep(FIRST_RETRY * self.tries_at_the_end);
            }
            ring.leave(&name);
            match view.reset_to_committed() {
                Ok(()) => return Ok(()),
                Err(again) => error = again,
            }
        }
    }
}

/// One step; false when the ring is closed and everything is committed.
fn advance(
    view: &mut dyn View,
    name: &str,
    ring: &Ring,
    catch_up: &dyn CatchUp,
    status: &Status,
    flush_requests: &mut u64,
) -> Result<bool, ViewError> {
    match ring.next(name, view.applied(), POLL) {
        Next::Output(output) => {
            panic_if_asked(name);
            view.apply(&output, Instant::now())?;
        }
        Next::Idle => {}
        Next::Lagged(to) => {
            tracing::info!(
                view = name,
                from = view.applied(),
                to,
                "reading the log again"
            );
            status.set_catching_up(true);
            let is_there =
                catch_up.replay(view, &|at| ring.catch_up_target(at), &mut |view, output| {
                    let now = Instant::now();
                    view.apply(output, now)?;
                    if view.is_due(now, false) {
                        view.commit(false)?;
                    }
                    status.publish(view);
                    Ok(())
                })?;
            if !is_there {
                view.commit(true)?;
                status.publish(view);
                return Ok(false);
            }
            status.set_catching_up(false);
        }
        Next::Closed => {
            view.commit(true)?;
            status.publish(view);
            return Ok(false);
        }
    }
    let is_flush_requested =
        std::mem::replace(flush_requests, ring.flush_requests()) != *flush_requests;
    if is_flush_requested || view.is_due(Instant::now(), !ring.has_more(view.applied())) {
        view.commit(is_flush_requested)?;
        status.publish(view);
    } else {
        status.applied.store(view.applied(), Ordering::Release);
    }
    Ok(true)
}
