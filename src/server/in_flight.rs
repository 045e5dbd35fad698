//! Requests with an idempotency key that are being stored: a second one with the same key waits for the first.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::error::ApiError;
use crate::idempotency::{Answer, BodyHash, RequestKey};
use crate::ingest::{Ingest, KeyState};

/// What became of a request.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// Durably stored.
    Stored(Answer),
    /// Nothing of it is stored.
    Refused(ApiError),
    /// The log's writer ended with it in its hands: nobody knows before the next start.
    Unknown,
}

type Announced = watch::Receiver<Option<Outcome>>;

/// Requests being stored, by key, with the hash of their bodies.
#[derive(Default)]
pub struct InFlight(Mutex<HashMap<RequestKey, (BodyHash, Announced)>>);

/// Whose turn it is to store a request.
enum Turn<'a> {
    Own(Guard<'a>),
    Decided(Outcome),
    /// Another request with this key is being stored; `is_same` if it has the same body.
    Wait {
        first: Announced,
        is_same: bool,
    },
}

impl InFlight {
    fn lock(&self) -> MutexGuard<'_, HashMap<RequestKey, (BodyHash, Announced)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests being stored are looked at first: only an answer that was given binds its key.
    fn turn(&self, ingest: &Ingest, key: &RequestKey, hash: &BodyHash) -> Turn<'_> {
        let mut requests = self.lock();
        if let Some((first_hash, first)) = requests.get(key) {
            return Turn::Wait { first: first.clone(), is_same: first_hash == hash };
        }
        match ingest.key_state(key, hash) {
            KeyState::Answered(answer) => Turn::Decided(Outcome::Stored(answer)),
            KeyState::Reused => Turn::Decided(Outcome::Refused(ApiError::key_reused())),
            KeyState::New => {
                let (announce, announced) = watch::channel(None);
                requests.insert(key.clone(), (*hash, announced));
                Turn::Own(Guard { in_flight: self, key: key.clone(), announce })
            }
        }
    }

    /// Stores a request unless its key says that it was stored before, or is being stored: then it gets the first one's outcome.
    /// A first one that is refused does not bind the key to its body.
    pub async fn once<F>(&self, ingest: &Ingest, key: &RequestKey, hash: &BodyHash, store: impl FnOnce() -> F) -> Outcome
    where
        F: Future<Output = Outcome>,
    {
        loop {
            match self.turn(ingest, key, hash) {
                Turn::Decided(outcome) => return outcome,
                Turn::Own(guard) => return guard.announce(store().await),
                Turn::Wait { mut first, is_same } => {
                    // Without an outcome the first one's task was ended: this one tries by itself.
                    let outcome = first.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
                    if let Some(outcome) = outcome.filter(|_| is_same) {
                        return outcome;
                    }
                }
            }
        }
    }
}

/// Holds a key's place while its request is being stored, however that ends.
struct Guard<'a> {
    in_flight: &'a InFlight,
    key: RequestKey,
    announce: watch::Sender<Option<Outcome>>,
}

impl Guard<'_> {
    fn announce(self, outcome: Outcome) -> Outcome {
        // Who wakes up looks again, and must not find this one.
        self.in_flight.lock().remove(&self.key);
        self.announce.send_replace(Some(outcome.clone()));
        outcome
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let mut requests = self.in_flight.lock();
        if requests.get(&self.key).is_some_and(|(_, announced)| announced.same_channel(&self.announce.subscribe())) {
            requests.remove(&self.key);
        }
    }
}
