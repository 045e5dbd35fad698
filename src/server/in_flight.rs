//! Requests with an idempotency key that are being stored: a second one with the same key waits for
//! the first.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::error::ApiError;
use crate::idempotency::{BodyHash, IngestResponse, RequestKey};
use crate::ingest::KeyState;

/// The result of a request.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// Durably stored.
    Stored(IngestResponse),
    /// Nothing of it is stored.
    Rejected(ApiError),
    /// The log's writer ended while it wrote the frame: only the next start finds out.
    Unknown,
}

type OutcomeReceiver = watch::Receiver<Option<Outcome>>;

/// Requests being stored, by key, with the hash of their bodies.
#[derive(Default)]
pub struct InFlight(Mutex<HashMap<RequestKey, (BodyHash, OutcomeReceiver)>>);

/// Whether a request is stored by this task.
enum Turn<'a> {
    Store(Guard<'a>),
    Decided(Outcome),
    /// Another request with this key is being stored; `is_same` if it has the same body.
    Wait {
        first: OutcomeReceiver,
        is_same: bool,
    },
}

impl InFlight {
    fn lock(&self) -> MutexGuard<'_, HashMap<RequestKey, (BodyHash, OutcomeReceiver)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks requests being stored first: only an answer binds its key.
    fn turn(
        &self,
        key: &RequestKey,
        hash: &BodyHash,
        state: impl FnOnce() -> KeyState,
    ) -> Turn<'_> {
        let mut requests = self.lock();
        if let Some((first_hash, first)) = requests.get(key) {
            return Turn::Wait {
                first: first.clone(),
                is_same: first_hash == hash,
            };
        }
        match state() {
            KeyState::Answered(answer) => Turn::Decided(Outcome::Stored(answer)),
            KeyState::Reused => Turn::Decided(Outcome::Rejected(ApiError::key_reused())),
            KeyState::New => {
                let (announce, announced) = watch::channel(None);
                requests.insert(key.clone(), (*hash, announced));
                Turn::Store(Guard {
                    in_flight: self,
                    key: key.clone(),
                    announce,
                })
            }
        }
    }

    /// Stores a request, unless one with its key was stored before or is being stored: then it gets
    /// the first one's outcome. A rejected one does not bind the key to its body. `state` is the
    /// log's state of the key at that moment.
    pub async fn once<F>(
        &self,
        key: &RequestKey,
        hash: &BodyHash,
        state: impl Fn() -> KeyState,
        store: impl FnOnce() -> F,
    ) -> Outcome
    where
        F: Future<Output = Outcome>,
    {
        loop {
            match self.turn(key, hash, &state) {
                Turn::Decided(outcome) => return outcome,
                Turn::Store(guard) => return guard.announce(store().await),
                Turn::Wait { mut first, is_same } => {
                    // Without an outcome the first task was aborted: this one tries itself.
                    let outcome = first
                        .wait_for(Option::is_some)
                        .await
                        .ok()
                        .and_then(|outcome| outcome.clone());
                    if let Some(outcome) = outcome.filter(|_| is_same) {
                        return outcome;
                    }
                }
            }
        }
    }
}

/// Holds a key while its request is being stored, however that ends.
struct Guard<'a> {
    in_flight: &'a InFlight,
    key: RequestKey,
    announce: watch::Sender<Option<Outcome>>,
}

impl Guard<'_> {
    fn announce(self, outcome: Outcome) -> Outcome {
        // A waiting request looks again when it wakes up, and must not find this one.
        self.in_flight.lock().remove(&self.key);
        self.announce.send_replace(Some(outcome.clone()));
        outcome
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let mut requests = self.in_flight.lock();
        if requests
            .get(&self.key)
            .is_some_and(|(_, announced)| announced.same_channel(&self.announce.subscribe()))
        {
            requests.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    fn key() -> RequestKey {
        RequestKey {
            stream: "s".into(),
            key: "k".into(),
        }
    }

    fn stored(outcome: &Outcome) -> Option<u64> {
        if let Outcome::Stored(answer) = outcome {
            Some(answer.accepted)
        } else {
            None
        }
    }

    fn answer(accepted: u64) -> Outcome {
        Outcome::Stored(IngestResponse {
            accepted,
            ..IngestResponse::default()
        })
    }

    const NEW: fn() -> KeyState = || KeyState::New;

    #[tokio::test]
    async fn a_request_that_comes_while_the_first_is_stored_gets_its_answer() {
        let in_flight = Arc::new(InFlight::default());
        let (started, proceed, stores) = (Notify::new(), Notify::new(), AtomicUsize::new(0));
        let (key, hash) = (key(), [1; 32]);
        let first = in_flight.once(&key, &hash, NEW, || async {
            stores.fetch_add(1, Ordering::Relaxed);
            started.notify_one();
            proceed.notified().await;
            answer(7)
        });
        let second = async {
            started.notified().await;
            let waiting = in_flight.once(&key, &hash, NEW, || async {
                stores.fetch_add(1, Ordering::Relaxed);
                answer(8)
            });
            let (outcome, ()) = tokio::join!(waiting, async { proceed.notify_one() });
            outcome
        };
        let (first, second) = tokio::join!(first, second);
        assert_eq!((stored(&first), stored(&second)), (Some(7), Some(7)));
        assert_eq!(stores.load(Ordering::Relaxed), 1);
        assert!(in_flight.lock().is_empty());
    }

    #[tokio::test]
    async fn another_body_waits_for_the_outcome_and_a_rejected_one_binds_nothing() {
        let in_flight = InFlight::default();
        let (started, proceed) = (Notify::new(), Notify::new());
        let key = key();
        let first = in_flight.once(&key, &[1; 32], NEW, || async {
            started.notify_one();
            proceed.notified().await;
            Outcome::Rejected(ApiError::bad_request("broken", ""))
        });
        let other = async {
            started.notified().await;
            let waiting = in_flight.once(&key, &[2; 32], NEW, || async { answer(2) });
            let (outcome, ()) = tokio::join!(waiting, async { proceed.notify_one() });
            outcome
        };
        let (first, other) = tokio::join!(first, other);
        assert!(matches!(first, Outcome::Rejected(_)));
        assert_eq!(stored(&other), Some(2));
    }

    #[tokio::test]
    async fn the_state_of_the_key_in_the_log_decides() {
        let in_flight = InFlight::default();
        let never = || async { unreachable!("it is not stored") };
        let answered = || {
            KeyState::Answered(IngestResponse {
                accepted: 3,
                ..IngestResponse::default()
            })
        };
        assert_eq!(
            stored(&in_flight.once(&key(), &[1; 32], answered, never).await),
            Some(3)
        );
        let reused = in_flight
            .once(&key(), &[1; 32], || KeyState::Reused, never)
            .await;
        assert!(matches!(reused, Outcome::Rejected(error) if error.code == "key_reused"));
    }

    #[tokio::test]
    async fn an_aborted_task_frees_its_key() {
        let in_flight = InFlight::default();
        let key = key();
        let mut aborted = Box::pin(in_flight.once(&key, &[1; 32], NEW, std::future::pending));
        assert!(futures::poll!(&mut aborted).is_pending());
        assert_eq!(in_flight.lock().len(), 1);
        drop(aborted);
        assert_eq!(
            stored(
                &in_flight
                    .once(&key, &[1; 32], NEW, || async { answer(1) })
                    .await
            ),
            Some(1)
        );
    }
}
