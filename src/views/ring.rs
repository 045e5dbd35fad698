//! The live path from operators to views: outputs in order, of bounded bytes. A view pulls; a slow
//! one lags and finally falls out, it never blocks the others. Only sources that can wait are held
//! back, by [`Ring::wait_for_room`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crate::event::Lsn;
use crate::operators::Output;

pub struct Ring {
    inner: Mutex<Inner>,
    /// A view has taken what it had been given, or has left: for sources that wait for room.
    taken: Condvar,
    capacity: usize,
    /// How often every view has been asked to commit all it has.
    flush_requests: AtomicU64,
}

struct Inner {
    items: VecDeque<(Arc<Output>, usize)>,
    bytes: usize,
    /// Everything up to here has left the ring.
    start: Lsn,
    /// Everything up to here has been pushed.
    end: Lsn,
    closed: bool,
    /// Views that sources wait for.
    readers: BTreeMap<String, Reader>,
    /// Sources that wait for room.
    held_back: usize,
}

struct Reader {
    taken: Lsn,
    /// Its thread, while it sleeps. Each is woken by itself: of all that one condition variable
    /// woke at once most would only find the lock taken and sleep again, many times for each
    /// output.
    sleeps: Option<Thread>,
}

impl Inner {
    /// A view has everything up to `after`.
    fn take(&mut self, reader: &str, after: Lsn) {
        match self.readers.get_mut(reader) {
            Some(reader) => reader.taken = after,
            None => drop(self.readers.insert(
                reader.to_owned(),
                Reader {
                    taken: after,
                    sleeps: None,
                },
            )),
        }
    }

    /// The threads of views that sleep; they are to be woken without the lock.
    fn sleepers(&mut self) -> Vec<Thread> {
        self.readers
            .values_mut()
            .filter_map(|reader| reader.sleeps.take())
            .collect()
    }
}

/// What a view gets.
pub enum Next {
    Output(Arc<Output>),
    /// Nothing above the view's LSN has come in time.
    Idle,
    /// The ring begins above the view's LSN, at this one: read the log up to there.
    Lagged(Lsn),
    /// No more will come, and the view has all.
    Closed,
}

impl Ring {
    /// A ring of at most `capacity` bytes whose first output will follow `start`.
    pub fn new(capacity: usize, start: Lsn) -> Self {
        let inner = Inner {
            items: VecDeque::new(),
            bytes: 0,
            start,
            end: start,
            closed: false,
            readers: BTreeMap::new(),
            held_back: 0,
        };
        Self {
            inner: Mutex::new(inner),
            taken: Condvar::new(),
            capacity,
            flush_requests: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while holding it half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends the next output; the oldest leave when it is over its capacity.
    pub fn push(&self, output: Arc<Output>) {
        let mut inner = self.lock();
        let bytes = output.memory_bytes();
        inner.end = output.to;
        inner.items.push_back((output, bytes));
        inner.bytes += bytes;
        while inner.bytes > self.capacity && inner.items.len() > 1 {
            let Some((gone, bytes)) = inner.items.pop_front() else {
                break;
            };
            inner.bytes -= bytes;
            inner.start = gone.to;
        }
        let sleepers = inner.sleepers();
        drop(inner);
        sleepers.iter().for_each(Thread::unpark);
    }

    /// Tells sources that wait for room to look again.
    fn notify_sources(&self, inner: &Inner) {
        if inner.held_back > 0 {
            self.taken.notify_all();
        }
    }

    /// The output that holds the record after `after`, waiting for it up to `timeout`.
    pub fn next(&self, reader: &str, after: Lsn, timeout: Duration) -> Next {
        let deadline = Instant::now() + timeout;
        let mut inner = self.lock();
        inner.take(reader, after);
        self.notify_sources(&inner);
        loop {
            if after < inner.start {
                inner.readers.remove(reader);
                self.notify_sources(&inner);
                return Next::Lagged(inner.start);
            }
            let at = inner.items.partition_point(|(o, _)| o.to <= after);
            if let Some((output, _)) = inner.items.get(at) {
                return Next::Output(output.clone());
            }
            if inner.closed {
                return Next::Closed;
            }
            let now = Instant::now();
            if now >= deadline {
                return Next::Idle;
            }
            if let Some(reader) = inner.readers.get_mut(reader) {
                reader.sleeps = Some(std::thread::current());
            }
            drop(inner);
            std::thread::park_timeout(deadline - now);
            inner = self.lock();
        }
    }

    /// The output that holds the record after `after`, for a reader that nobody waits for.
    pub fn peek(&self, after: Lsn) -> Next {
        let inner = self.lock();
        if after < inner.start {
            return Next::Lagged(inner.start);
        }
        let at = inner.items.partition_point(|(o, _)| o.to <= after);
        inner
            .items
            .get(at)
            .map_or(Next::Idle, |(output, _)| Next::Output(output.clone()))
    }

    /// Up to where the log is to be read by someone who has everything up to `after`: to the newest
    /// output, so that there is time before the ring has gone on; none where the ring has what
    /// follows.
    pub fn catch_up_target(&self, after: Lsn) -> Option<Lsn> {
        let inner = self.lock();
        (after < inner.start).then_some(inner.end)
    }

    /// Sources wait for this view from now on; it has everything up to `after`.
    pub fn join(&self, reader: &str, after: Lsn) {
        self.lock().take(reader, after);
    }

    /// Whether something above `after` is waiting.
    pub fn has_more(&self, after: Lsn) -> bool {
        self.lock().end > after
    }

    /// Sources no longer wait for this view, until it asks for its next output.
    pub fn leave(&self, reader: &str) {
        let mut inner = self.lock();
        inner.readers.remove(reader);
        self.notify_sources(&inner);
    }

    /// Asks every view to commit all it has, soon.
    pub fn request_flush(&self) {
        self.flush_requests.fetch_add(1, Ordering::AcqRel);
    }

    /// How often that has been asked.
    pub fn flush_requests(&self) -> u64 {
        self.flush_requests.load(Ordering::Acquire)
    }

    /// Waits until every view has taken so much that half the ring is free, for a source that can
    /// wait. False: timed out.
    pub fn wait_for_room(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut inner = self.lock();
        loop {
            let slowest = inner
                .readers
                .values()
                .map(|reader| reader.taken)
                .min()
                .unwrap_or(inner.end);
            let at = inner.items.partition_point(|(o, _)| o.to <= slowest);
            let waiting: usize = inner.items.iter().skip(at).map(|(_, bytes)| bytes).sum();
            if waiting <= self.capacity / 2 {
                return true;
            }
            let now = Instant::now();
            if now >= deadline || inner.closed {
                return inner.closed;
            }
            inner.held_back += 1;
            inner = self
                .taken
                .wait_timeout(inner, deadline - now)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            inner.held_back -= 1;
        }
    }

    /// No more outputs will come.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        let sleepers = inner.sleepers();
        self.notify_sources(&inner);
        drop(inner);
        sleepers.iter().for_each(Thread::unpark);
    }

    /// Bytes held, and the LSN up to which outputs have come.
    pub fn level(&self) -> (usize, Lsn) {
        let inner = self.lock();
        (inner.bytes, inner.end)
    }
}
