//! How many queries run at once. Those that wait come in turn by who asks, so that nobody who asks
//! much keeps others out; a slot is given back when its query has ended, or soon after, even if its
//! threads have not.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Queries that wait, of all askers together.
const MAX_WAITING: usize = 64;
/// Queries whose threads run although nobody waits for them any more: beyond, none are begun.
const MAX_STUCK: usize = 4;

/// The client that asks: by its token, or without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Asker(Option<u64>);

impl Asker {
    /// One that is known by the hash of its token.
    pub fn of_token(hash: &[u8; 32]) -> Self {
        Self(hash.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)))
    }
}

/// Why no slot is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Too many wait already.
    Busy,
    /// Too many that should have ended still run.
    Stuck,
}

#[derive(Clone)]
pub struct Slots(Arc<Inner>);

struct Inner {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: BTreeMap<Asker, usize>,
    stuck: usize,
    waiting: VecDeque<(Asker, oneshot::Sender<Slot>)>,
    /// Whose turn was when, and the next turn.
    turns: BTreeMap<Asker, u64>,
    turn: u64,
}

impl State {
    fn total(&self) -> usize {
        self.running.values().sum()
    }
}

impl Slots {
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Inner {
            limit,
            state: Mutex::default(),
        }))
    }

    /// Waits for a slot.
    pub async fn acquire(&self, asker: Asker) -> Result<Slot, Refused> {
        let slot = {
            let mut state = self.0.lock();
            if state.stuck >= MAX_STUCK {
                return Err(Refused::Stuck);
            }
            state.waiting.retain(|(_, slot)| !slot.is_closed());
            let of_asker = state
                .waiting
                .iter()
                .filter(|(who, _)| *who == asker)
                .count();
            let is_full = |waiting: usize| waiting >= MAX_WAITING;
            if is_full(state.waiting.len()) || asker.0.is_some() && is_full(2 * of_asker) {
                return Err(Refused::Busy);
            }
            let (give, slot) = oneshot::channel();
            state.waiting.push_back((asker, give));
            slot
        };
        self.0.hand_out();
        slot.await.map_err(|_| Refused::Busy)
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Half of the slots for a token; all where none is needed.
    fn share(&self, asker: Asker) -> usize {
        if asker.0.is_some() {
            self.limit.div_ceil(2)
        } else {
            self.limit
        }
    }

    /// Gives free slots to those who wait: to whom has the fewest, then to whom had none for the
    /// longest time.
    fn hand_out(self: &Arc<Self>) {
        while let Some((give, slot)) = self.next() {
            // A client that has left gives its slot back at once, which takes the lock again.
            let _ = give.send(slot);
        }
    }

    fn next(self: &Arc<Self>) -> Option<(oneshot::Sender<Slot>, Slot)> {
        let mut state = self.lock();
        state.waiting.retain(|(_, slot)| !slot.is_closed());
        if state.total() >= self.limit {
            return None;
        }
        let running = |asker: &Asker| state.running.get(asker).copied().unwrap_or(0);
        let ready = state
            .waiting
            .iter()
            .enumerate()
            .filter(|(_, (who, _))| running(who) < self.share(*who));
        let (at, _) = ready.min_by_key(|(at, (who, _))| {
            (
                running(who),
                state.turns.get(who).copied().unwrap_or(0),
                *at,
            )
        })?;
        let (asker, give) = state.waiting.remove(at)?;
        state.turn += 1;
        let turn = state.turn;
        state.turns.insert(asker, turn);
        *state.running.entry(asker).or_default() += 1;
        Some((
            give,
            Slot {
                of: self.clone(),
                asker,
                is_given_up: AtomicBool::new(false),
            },
        ))
    }
}

/// The right to run one query, until it is dropped.
pub struct Slot {
    of: Arc<Inner>,
    asker: Asker,
    is_given_up: AtomicBool,
}

impl Slot {
    /// Lets another query have it although the threads of this one have not ended.
    pub fn give_up(&self) {
        if !self.is_given_up.swap(true, Ordering::AcqRel) {
            let mut state = self.of.lock();
            state.stuck += 1;
            self.leave(&mut state);
            drop(state);
            self.of.hand_out();
        }
    }

    fn leave(&self, state: &mut State) {
        if let Some(running) = state.running.get_mut(&self.asker) {
            *running -= 1;
            if *running == 0 {
                state.running.remove(&self.asker);
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.of.lock();
        if self.is_given_up.load(Ordering::Acquire) {
            state.stuck -= 1;
        } else {
            self.leave(&mut state);
        }
        drop(state);
        self.of.hand_out();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::poll;
    use std::pin::pin;
    use std::task::Poll;

    const fn token(n: u64) -> Asker {
        Asker(Some(n))
    }

    #[tokio::test]
    async fn a_token_has_half_of_the_slots_and_others_come_in_turn() {
        let slots = Slots::new(4);
        let first = slots
            .acquire(token(1))
            .await
            .unwrap_or_else(|_| panic!("free"));
        let _second = slots.acquire(token(1)).await;
        let mut third = pin!(slots.acquire(token(1)));
        assert!(poll!(&mut third).is_pending(), "half of them");
        let _of_two = slots.acquire(token(2)).await;
        let _also = slots.acquire(token(2)).await;
        let mut of_three = pin!(slots.acquire(token(3)));
        assert!(poll!(&mut of_three).is_pending(), "all are taken");
        drop(first);
        assert!(
            matches!(poll!(&mut of_three), Poll::Ready(Ok(_))),
            "who has none comes first"
        );
        assert!(
            matches!(poll!(&mut third), Poll::Ready(Ok(_))),
            "which was given back at once"
        );
    }

    #[tokio::test]
    async fn whoever_leaves_takes_no_slot_and_what_is_stuck_gives_its_own_back() {
        let slots = Slots::new(1);
        let running = slots
            .acquire(Asker::default())
            .await
            .unwrap_or_else(|_| panic!("free"));
        for _ in 0..MAX_WAITING * 2 {
            let mut left = Box::pin(slots.acquire(Asker::default()));
            assert!(poll!(&mut left).is_pending());
        }
        let mut next = Box::pin(slots.acquire(Asker::default()));
        assert!(poll!(&mut next).is_pending());
        running.give_up();
        let Poll::Ready(Ok(next)) = poll!(&mut next) else {
            panic!("it is free")
        };
        drop(running);
        drop(next);
        let mut stuck = Vec::new();
        for _ in 0..MAX_STUCK {
            let slot = slots
                .acquire(Asker::default())
                .await
                .unwrap_or_else(|_| panic!("free"));
            slot.give_up();
            stuck.push(slot);
        }
        assert!(matches!(
            slots.acquire(Asker::default()).await,
            Err(Refused::Stuck)
        ));
        stuck.pop();
        assert!(slots.acquire(Asker::default()).await.is_ok());
    }

    #[tokio::test]
    async fn many_wait_but_not_without_end() {
        let slots = Slots::new(1);
        let _running = slots.acquire(token(1)).await;
        let mut waiting: Vec<_> = (0..MAX_WAITING / 2)
            .map(|_| Box::pin(slots.acquire(token(1))))
            .collect();
        for one in &mut waiting {
            assert!(poll!(one).is_pending());
        }
        assert!(matches!(slots.acquire(token(1)).await, Err(Refused::Busy)));
        assert!(
            poll!(pin!(slots.acquire(token(2)))).is_pending(),
            "others can still wait"
        );
    }
}
