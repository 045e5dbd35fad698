//! Admission control: how many queries run at once. Waiting clients are admitted in turn, so that a
//! busy one does not keep others out. A permit is returned when its query has ended, or soon after,
//! even if its threads have not.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Queries that wait, of all clients together.
const MAX_WAITING: usize = 64;
/// Ended queries whose threads still run: with as many, no query is admitted.
const MAX_STUCK: usize = 4;

/// A client: known by its token, or anonymous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ClientId(Option<u64>);

impl ClientId {
    /// The client with the token of this hash.
    pub fn from_token_hash(hash: &[u8; 32]) -> Self {
        Self(hash.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)))
    }

    fn has_token(self) -> bool {
        self.0.is_some()
    }
}

/// Why a query is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdmissionError {
    /// Too many queries wait.
    QueueFull,
    /// Too many ended queries still run.
    TooManyStuck,
}

/// Admits at most `limit` queries at once: a client with a token at most half of them.
///
/// Example: of 4 permits client A holds 2 and waits for a third, B holds 2, C waits. A permit that A
/// returns goes to C, which holds none, although A has waited longer.
#[derive(Clone)]
pub struct AdmissionController(Arc<Inner>);

struct Inner {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: BTreeMap<ClientId, usize>,
    stuck: usize,
    waiting: VecDeque<(ClientId, oneshot::Sender<Permit>)>,
    /// When each client was admitted last, as the number of that admission.
    last_admissions: BTreeMap<ClientId, u64>,
    admissions: u64,
}

impl State {
    fn total_running(&self) -> usize {
        self.running.values().sum()
    }

    fn running_of(&self, client: ClientId) -> usize {
        self.running.get(&client).copied().unwrap_or(0)
    }

    /// The next waiting query: of the client with the fewest running ones, then of the one that was
    /// not admitted for the longest time.
    fn next(&self, limit: usize) -> Option<usize> {
        if self.total_running() >= limit {
            return None;
        }
        let may_run = |client: ClientId| self.running_of(client) < max_running(client, limit);
        let waiting = self.waiting.iter().enumerate();
        waiting
            .filter(|(_, (client, _))| may_run(*client))
            .min_by_key(|(at, (client, _))| {
                let last_admission = self.last_admissions.get(client).copied().unwrap_or(0);
                (self.running_of(*client), last_admission, *at)
            })
            .map(|(at, _)| at)
    }

    fn remove_closed(&mut self) {
        self.waiting.retain(|(_, sender)| !sender.is_closed());
    }

    fn remove_running(&mut self, client: ClientId) {
        if let Some(running) = self.running.get_mut(&client) {
            *running -= 1;
            if *running == 0 {
                self.running.remove(&client);
            }
        }
    }
}

/// Half of the permits for a client with a token; all where tokens are not used.
fn max_running(client: ClientId, limit: usize) -> usize {
    if client.has_token() {
        limit.div_ceil(2)
    } else {
        limit
    }
}

impl AdmissionController {
    /// For `limit` queries at once, at least 1.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Inner {
            limit,
            state: Mutex::default(),
        }))
    }

    /// Waits for a permit; dropping the future gives up its place in the queue.
    pub async fn acquire(&self, client: ClientId) -> Result<Permit, AdmissionError> {
        let permit = {
            let mut state = self.0.lock();
            if state.stuck >= MAX_STUCK {
                return Err(AdmissionError::TooManyStuck);
            }
            state.remove_closed();
            let of_client = state
                .waiting
                .iter()
                .filter(|(waiting, _)| *waiting == client)
                .count();
            let is_full = |waiting: usize| waiting >= MAX_WAITING;
            if is_full(state.waiting.len()) || client.has_token() && is_full(2 * of_client) {
                return Err(AdmissionError::QueueFull);
            }
            let (sender, permit) = oneshot::channel();
            state.waiting.push_back((client, sender));
            permit
        };
        self.0.admit();
        permit.await.map_err(|_| AdmissionError::QueueFull)
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands free permits to waiting clients.
    fn admit(self: &Arc<Self>) {
        while let Some((sender, permit)) = self.next() {
            // A client that has left returns its permit here, which takes the lock again.
            let _ = sender.send(permit);
        }
    }

    fn next(self: &Arc<Self>) -> Option<(oneshot::Sender<Permit>, Permit)> {
        let mut state = self.lock();
        state.remove_closed();
        let at = state.next(self.limit)?;
        let (client, sender) = state.waiting.remove(at)?;
        state.admissions += 1;
        let admission = state.admissions;
        state.last_admissions.insert(client, admission);
        *state.running.entry(client).or_default() += 1;
        let permit = Permit {
            admission: self.clone(),
            client,
            is_released: AtomicBool::new(false),
        };
        Some((sender, permit))
    }
}

/// The right to run one query, until it is dropped.
pub struct Permit {
    admission: Arc<Inner>,
    client: ClientId,
    is_released: AtomicBool,
}

impl Permit {
    /// Lets another query run although the threads of this one have not ended: it is stuck.
    pub fn release_early(&self) {
        if !self.is_released.swap(true, Ordering::AcqRel) {
            let mut state = self.admission.lock();
            state.stuck += 1;
            state.remove_running(self.client);
            drop(state);
            self.admission.admit();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.admission.lock();
        if self.is_released.load(Ordering::Acquire) {
            state.stuck -= 1;
        } else {
            state.remove_running(self.client);
        }
        drop(state);
        self.admission.admit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::poll;
    use std::pin::pin;
    use std::task::Poll;

    const fn client(n: u64) -> ClientId {
        ClientId(Some(n))
    }

    #[tokio::test]
    async fn a_client_has_half_of_the_permits_and_others_come_in_turn() {
        let admission = AdmissionController::new(4);
        let first = admission
            .acquire(client(1))
            .await
            .unwrap_or_else(|_| panic!("free"));
        let _second = admission.acquire(client(1)).await;
        let mut third = pin!(admission.acquire(client(1)));
        assert!(poll!(&mut third).is_pending(), "half of them");
        let _of_two = admission.acquire(client(2)).await;
        let _also = admission.acquire(client(2)).await;
        let mut of_three = pin!(admission.acquire(client(3)));
        assert!(poll!(&mut of_three).is_pending(), "all are taken");
        drop(first);
        assert!(
            matches!(poll!(&mut of_three), Poll::Ready(Ok(_))),
            "the client with the fewest comes first"
        );
        assert!(
            matches!(poll!(&mut third), Poll::Ready(Ok(_))),
            "the permit was dropped at once"
        );
    }

    #[tokio::test]
    async fn a_client_that_left_takes_no_permit_and_a_stuck_query_returns_its_own() {
        let admission = AdmissionController::new(1);
        let running = admission
            .acquire(ClientId::default())
            .await
            .unwrap_or_else(|_| panic!("free"));
        for _ in 0..MAX_WAITING * 2 {
            let mut left = Box::pin(admission.acquire(ClientId::default()));
            assert!(poll!(&mut left).is_pending());
        }
        let mut next = Box::pin(admission.acquire(ClientId::default()));
        assert!(poll!(&mut next).is_pending());
        running.release_early();
        let Poll::Ready(Ok(next)) = poll!(&mut next) else {
            panic!("it is free")
        };
        drop(running);
        drop(next);
        let mut stuck = Vec::new();
        for _ in 0..MAX_STUCK {
            let permit = admission
                .acquire(ClientId::default())
                .await
                .unwrap_or_else(|_| panic!("free"));
            permit.release_early();
            stuck.push(permit);
        }
        assert!(matches!(
            admission.acquire(ClientId::default()).await,
            Err(AdmissionError::TooManyStuck)
        ));
        stuck.pop();
        assert!(admission.acquire(ClientId::default()).await.is_ok());
    }

    #[tokio::test]
    async fn the_queue_is_bounded_and_one_client_has_half_of_it() {
        let admission = AdmissionController::new(1);
        let _running = admission.acquire(client(1)).await;
        let mut waiting: Vec<_> = (0..MAX_WAITING / 2)
            .map(|_| Box::pin(admission.acquire(client(1))))
            .collect();
        for one in &mut waiting {
            assert!(poll!(one).is_pending());
        }
        assert!(matches!(
            admission.acquire(client(1)).await,
            Err(AdmissionError::QueueFull)
        ));
        assert!(
            poll!(pin!(admission.acquire(client(2)))).is_pending(),
            "others can still wait"
        );
    }
}
