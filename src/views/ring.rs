//! The live path from operators to views: outputs in order, within a limit of bytes. A view pulls; a
//! slow one lags and finally falls out, it never blocks the others. Only sources that can wait are
//! held back, by [`Ring::wait_for_room`].
//!
//! For example, the ring has the outputs (100, 110], (110, 120] and (120, 130], so its start is 100
//! and its end 130. A view at 110 gets the second. When the first two are evicted, the start is 120,
//! and a view that is still at 110 has lagged: it reads the log until it is at 120 or later.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crate::event::Lsn;
use crate::operators::Output;

/// See the [module](self).
pub struct Ring {
    inner: Mutex<Inner>,
    /// Notified when a view has moved or left, for sources that wait for room.
    room_freed: Condvar,
    capacity_bytes: usize,
    /// How often every view has been asked to commit everything.
    flush_requests: AtomicU64,
}

struct Inner {
    items: VecDeque<(Arc<Output>, usize)>,
    bytes: usize,
    /// Everything up to here has been evicted.
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
    /// The view has everything up to here.
    position: Lsn,
    /// Its thread, while it sleeps. Threads are unparked one by one: of those that a condition
    /// variable wakes at once, most would find the lock taken and sleep again, many times for each
    /// output.
    sleeping: Option<Thread>,
}

impl Inner {
    /// A view has everything up to `after`.
    fn set_position(&mut self, reader: &str, after: Lsn) {
        match self.readers.get_mut(reader) {
            Some(reader) => reader.position = after,
            None => drop(self.readers.insert(
                reader.to_owned(),
                Reader {
                    position: after,
                    sleeping: None,
                },
            )),
        }
    }

    /// The threads of sleeping views, to be unparked without the lock.
    fn sleepers(&mut self) -> Vec<Thread> {
        self.readers
            .values_mut()
            .filter_map(|reader| reader.sleeping.take())
            .collect()
    }
}

/// The ring's answer to a view.
pub enum Next {
    /// The next one above the view's LSN.
    Output(Arc<Output>),
    /// Nothing above the view's LSN came before the timeout.
    Idle,
    /// Outputs that the view needs were evicted, up to this LSN: read the log up to there.
    Lagged(Lsn),
    /// The ring is closed, and the view has everything.
    Closed,
}

impl Ring {
    /// A ring of at most `capacity_bytes` whose first output will follow `start`.
    pub fn new(capacity_bytes: usize, start: Lsn) -> Self {
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
            room_freed: Condvar::new(),
            capacity_bytes,
            flush_requests: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while holding it half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends the next output; evicts the oldest beyond the capacity, but never the newest.
    pub fn push(&self, output: Arc<Output>) {
        let mut inner = self.lock();
        let bytes = output.memory_bytes();
        inner.end = output.to;
        inner.items.push_back((output, bytes));
        inner.bytes += bytes;
        while inner.bytes > self.capacity_bytes && inner.items.len() > 1 {
            let Some((evicted, bytes)) = inner.items.pop_front() else {
                break;
            };
            inner.bytes -= bytes;
            inner.start = evicted.to;
        }
        let sleepers = inner.sleepers();
        drop(inner);
        sleepers.iter().for_each(Thread::unpark);
    }

    /// Wakes sources that wait for room.
    fn notify_sources(&self, inner: &Inner) {
        if inner.held_back > 0 {
            self.room_freed.notify_all();
        }
    }

    /// The output that holds the record after `after`, waiting for it up to `timeout`.
    pub fn next(&self, reader: &str, after: Lsn, timeout: Duration) -> Next {
        let deadline = Instant::now() + timeout;
        let mut inner = self.lock();
        inner.set_position(reader, after);
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
                reader.sleeping = Some(std::thread::current());
            }
            drop(inner);
            std::thread::park_timeout(deadline - now);
            inner = self.lock();
        }
    }

    /// The output that holds the record after `after`, for a reader without back-pressure.
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

    /// The outputs in `(after, upto]`, the newest first, at most `max` of them; and whether the ring no
    /// longer has all that follow `after`.
    pub fn newest(&self, after: Lsn, upto: Lsn, max: usize) -> (Vec<Arc<Output>>, bool) {
        let inner = self.lock();
        let outputs = inner.items.iter().rev().map(|(output, _)| output);
        let outputs = outputs
            .skip_while(|output| output.to > upto)
            .take_while(|output| output.to > after);
        (outputs.take(max).cloned().collect(), after < inner.start)
    }

    /// Up to where a view at `after` must read the log; `None` where the ring has what follows. It is
    /// the newest output, not the oldest, so that the view does not lag again at once.
    pub fn catch_up_target(&self, after: Lsn) -> Option<Lsn> {
        let inner = self.lock();
        (after < inner.start).then_some(inner.end)
    }

    /// Includes the view in back-pressure; it has everything up to `after`.
    pub fn join(&self, reader: &str, after: Lsn) {
        self.lock().set_position(reader, after);
    }

    /// Whether the ring has output above `after`.
    pub fn has_more(&self, after: Lsn) -> bool {
        self.lock().end > after
    }

    /// Removes the view from back-pressure until its next call to [`Self::next`].
    pub fn leave(&self, reader: &str) {
        let mut inner = self.lock();
        inner.readers.remove(reader);
        self.notify_sources(&inner);
    }

    /// Asks every view to commit everything, soon.
    pub fn request_flush(&self) {
        self.flush_requests.fetch_add(1, Ordering::AcqRel);
    }

    /// The number of such requests so far.
    pub fn flush_requests(&self) -> u64 {
        self.flush_requests.load(Ordering::Acquire)
    }

    /// Waits until what the slowest view has not taken is at most half the capacity; for sources that
    /// can wait. False after the timeout, true when the ring is closed.
    pub fn wait_for_room(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut inner = self.lock();
        loop {
            let slowest = inner
                .readers
                .values()
                .map(|reader| reader.position)
                .min()
                .unwrap_or(inner.end);
            let at = inner.items.partition_point(|(o, _)| o.to <= slowest);
            let waiting: usize = inner.items.iter().skip(at).map(|(_, bytes)| bytes).sum();
            if waiting <= self.capacity_bytes / 2 {
                return true;
            }
            let now = Instant::now();
            if now >= deadline || inner.closed {
                return inner.closed;
            }
            inner.held_back += 1;
            inner = self
                .room_freed
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

#[cfg(test)]
mod tests {
    use super::*;

    fn inner(outputs: &[(Lsn, usize)]) -> Inner {
        Inner {
            items: VecDeque::new(),
            bytes: outputs.iter().map(|(_, bytes)| bytes).sum(),
            start: 100,
            end: outputs.last().map_or(100, |(to, _)| *to),
            closed: false,
            readers: BTreeMap::new(),
            held_back: 0,
        }
    }

    #[test]
    fn a_view_that_lags_reads_the_log_up_to_the_newest_output() {
        let ring = Ring::new(1_000, 0);
        *ring.lock() = inner(&[(130, 10)]);
        for (at, target, has_more) in [(99, Some(130), true), (100, None, true), (130, None, false)]
        {
            assert_eq!(ring.catch_up_target(at), target, "at {at}");
            assert_eq!(ring.has_more(at), has_more, "at {at}");
        }
        assert!(matches!(
            ring.next("a", 99, Duration::ZERO),
            Next::Lagged(100)
        ));
        assert!(ring.lock().readers.is_empty(), "sources do not wait for it");
        assert!(matches!(ring.next("a", 130, Duration::ZERO), Next::Idle));
        ring.close();
        assert!(matches!(ring.next("a", 130, Duration::ZERO), Next::Closed));
    }
}
