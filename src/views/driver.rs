//! Moves one view along the ring: take the next output, apply it, commit when due, publish the
//! status. A view that lagged catches up from the log. A failed one restarts from its checkpoint,
//! without back-pressure until then.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::ring::{Next, Ring};
use super::{View, ViewError};
use crate::event::Lsn;
use crate::ids::CheckpointId;
use crate::operators::Output;
use crate::threads::panic_if_asked;

/// Longest wait for the next output before checking whether a commit is due.
const POLL: Duration = Duration::from_millis(50);
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// Retries after the ring was closed; then the error is final.
const MAX_FINAL_TRIES: u32 = 6;

/// How far a view is, for other threads.
#[derive(Debug, Default)]
pub struct Status {
    applied: AtomicU64,
    /// It reads the log, because it lagged.
    is_catching_up: AtomicBool,
    checkpoints: Mutex<BTreeMap<CheckpointId, Lsn>>,
    failure: Mutex<Option<String>>,
}

impl Status {
    /// In memory, everything up to this LSN is applied.
    pub fn applied(&self) -> Lsn {
        self.applied.load(Ordering::Acquire)
    }

    /// Committed checkpoints.
    pub fn checkpoints(&self) -> BTreeMap<CheckpointId, Lsn> {
        self.checkpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The error that the view is recovering from.
    pub fn failure(&self) -> Option<String> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether the view reads the log, or waits for its turn to.
    pub fn is_catching_up(&self) -> bool {
        self.is_catching_up.load(Ordering::Acquire)
    }

    /// Set before it waits for its turn to read the log; cleared once the ring has what follows.
    pub fn set_catching_up(&self, is_catching_up: bool) {
        self.is_catching_up.store(is_catching_up, Ordering::Release);
    }

    /// Publishes how far the view is.
    pub fn publish(&self, view: &dyn View) {
        let checkpoints = view.checkpoints().into_iter().collect();
        *self
            .checkpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = checkpoints;
        self.applied.store(view.applied(), Ordering::Release);
    }

    /// What the view does, as the API names it, and why it fails, if it does.
    pub fn state(&self) -> (&'static str, Option<String>) {
        match self.failure() {
            Some(failure) => ("retrying", Some(failure)),
            None if self.is_catching_up() => ("catching_up", None),
            None => ("running", None),
        }
    }

    fn set_failure(&self, failure: Option<String>) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }
}

/// Applies each output that is read from the log.
pub type ApplyOutput<'a> = &'a mut dyn FnMut(&mut dyn View, &Output) -> Result<(), ViewError>;

/// Up to which record a view at an LSN must read; `None` where the ring has what follows. Evaluated
/// again whenever it is reached, because the ring has moved in the meantime.
pub type ReplayTarget<'a> = &'a dyn Fn(Lsn) -> Option<Lsn>;

/// Replays the log for one view.
pub trait CatchUp: Send + Sync {
    /// Passes every output after the view's LSN to `apply`, until the target is reached. Begins at
    /// the newest snapshot at or below the view's checkpoint. False: interrupted by a shutdown.
    fn replay(
        &self,
        view: &mut dyn View,
        to: ReplayTarget<'_>,
        apply: ApplyOutput<'_>,
    ) -> Result<bool, ViewError>;
}

/// Runs a view until the ring closes, and commits everything at the end. A returned error is final.
pub fn run(
    mut view: Box<dyn View>,
    ring: &Ring,
    catch_up: &dyn CatchUp,
    status: &Arc<Status>,
) -> Result<(), ViewError> {
    let name = view.id().to_string();
    status.publish(&*view);
    let mut retries = RetryState {
        tries: 0,
        final_tries: 0,
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
            // Only a commit shows that a failed view has recovered.
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

/// A view's failures since its last commit.
struct RetryState {
    tries: u32,
    /// Those since the ring was closed.
    final_tries: u32,
    checkpoints_at_failure: Vec<(CheckpointId, Lsn)>,
}

impl RetryState {
    /// Restarts a view from its checkpoint, with as many retries as it takes; an error where that
    /// cannot help, or after [`MAX_FINAL_TRIES`] during a shutdown.
    fn recover(
        &mut self,
        view: &mut dyn View,
        ring: &Ring,
        status: &Status,
        mut error: ViewError,
    ) -> Result<(), ViewError> {
        let name = view.id().to_string();
        // It may have committed while it read the log.
        let before = std::mem::replace(&mut self.checkpoints_at_failure, view.checkpoints());
        if before != self.checkpoints_at_failure {
            self.tries = 0;
        }
        loop {
            if error.is_final() {
                return Err(error);
            }
            let wait = backoff(self.tries);
            self.tries = self.tries.saturating_add(1);
            tracing::error!(view = name, %error, retry_ms = wait.as_millis() as u64, "view failed; restarting it from its checkpoint");
            status.set_failure(Some(error.to_string()));
            // No source waits for a view at the end of the log, and closing the ring ends the wait.
            if matches!(ring.next(&name, Lsn::MAX, wait), Next::Closed) {
                self.final_tries += 1;
                if self.final_tries >= MAX_FINAL_TRIES {
                    return Err(error);
                }
                std::thread::sleep(FIRST_RETRY * self.final_tries);
            }
            ring.leave(&name);
            match view.reset_to_committed() {
                Ok(()) => return Ok(()),
                Err(failure) => error = failure,
            }
        }
    }
}

/// The wait before a retry: doubled with each one.
fn backoff(tries: u32) -> Duration {
    FIRST_RETRY
        .saturating_mul(2_u32.saturating_pow(tries))
        .min(LAST_RETRY)
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
                "catching up from the log"
            );
            status.set_catching_up(true);
            let is_caught_up =
                catch_up.replay(view, &|at| ring.catch_up_target(at), &mut |view, output| {
                    let now = Instant::now();
                    view.apply(output, now)?;
                    if view.is_due(now, false) {
                        view.commit(false)?;
                    }
                    status.publish(view);
                    Ok(())
                })?;
            if !is_caught_up {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_wait_longer_up_to_a_limit() {
        let waits = [0, 1, 2, 7, 8, u32::MAX].map(|tries| backoff(tries).as_millis());
        assert_eq!(waits, [200, 400, 800, 25_600, 30_000, 30_000]);
    }

    #[test]
    fn a_view_that_fails_while_it_catches_up_is_retrying() {
        let status = Status::default();
        assert_eq!(status.state(), ("running", None));
        status.set_catching_up(true);
        assert_eq!(status.state(), ("catching_up", None));
        status.set_failure(Some("full".into()));
        assert_eq!(status.state(), ("retrying", Some("full".into())));
    }
}
