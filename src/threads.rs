//! Panics of threads, reported to the threads that wait for them, and [`Pace`], by which long work
//! yields the CPU.

use std::any::Any;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Runs a function when dropped, also while a panic unwinds: releases what other threads wait for,
/// however this one ends.
pub struct OnEnd<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for OnEnd<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Yields the CPU regularly during long work. The kernel preempts a thread only at a tick, every 1
/// to 10 ms, even one of low priority, and a request needs several threads in sequence. If others
/// want the core, a yield costs the rest of the thread's time slice, some 3 ms: yielding much more
/// often would slow down the work on a busy machine.
#[derive(Debug, Default)]
pub struct Pace {
    bytes: usize,
    yielded: Option<Instant>,
}

impl Pace {
    /// A pace that has done nothing; `const`, so that it can initialize a thread-local.
    pub const fn new() -> Self {
        Self {
            bytes: 0,
            yielded: None,
        }
    }

    /// Bytes between two yields: less than a millisecond of JSON.
    pub const PIECE: usize = 256 << 10;
    /// Time between two yields.
    const TIME: Duration = Duration::from_micros(500);

    /// Counts processed bytes, and yields after each piece.
    pub fn did(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= Self::PIECE {
            self.bytes = 0;
            std::thread::yield_now();
        }
    }

    /// Yields if the last yield was long enough ago. For work of unknown size.
    pub fn tick(&mut self) {
        if self.yielded.is_none_or(|at| at.elapsed() >= Self::TIME) {
            std::thread::yield_now();
            self.yielded = Some(Instant::now());
        }
    }

    #[cfg(test)]
    pub fn has_ticked(&self) -> bool {
        self.yielded.is_some()
    }
}

/// Reads at a [`Pace`].
pub struct Paced<R>(pub R, pub Pace);

impl<R: Read> Read for Paced<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let piece = out.len().min(Pace::PIECE);
        let read = self.0.read(&mut out[..piece])?;
        self.1.did(read);
        Ok(read)
    }
}

/// Records panics of threads that no one joins.
#[derive(Debug, Clone, Default)]
pub struct Panics(Arc<AtomicBool>);

impl Panics {
    /// A guard for a thread to hold: if a panic drops it, the panic is recorded.
    pub fn watch(&self) -> impl Drop + use<> {
        let has_panicked = self.0.clone();
        OnEnd(move || {
            if std::thread::panicking() {
                has_panicked.store(true, Ordering::Release);
            }
        })
    }

    /// Whether a watched thread has panicked, ever.
    pub fn any(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The message of a panic, with the thread's name.
pub fn describe(thread: &str, panic: &(dyn Any + Send)) -> String {
    let message = panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    format!(
        "the thread `{thread}` panicked: {}",
        message.unwrap_or_default()
    )
}

/// In a debug build, panics if `WEIR_TEST_PANIC` names this thread: lets tests check how each kind
/// of thread fails.
pub fn panic_if_asked(thread: &str) {
    #[cfg(debug_assertions)]
    {
        static REQUESTED: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
        if REQUESTED
            .get_or_init(|| std::env::var("WEIR_TEST_PANIC").ok())
            .as_deref()
            == Some(thread)
        {
            std::panic::panic_any("requested by WEIR_TEST_PANIC");
        }
    }
    #[cfg(not(debug_assertions))]
    let _ = thread;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_at_a_pace_reads_everything() {
        let bytes: Vec<u8> = (0..5 * Pace::PIECE / 2).map(|n| n as u8).collect();
        let mut out = Vec::new();
        Paced(&bytes[..], Pace::default())
            .read_to_end(&mut out)
            .expect("memory");
        assert_eq!(out, bytes);
        let mut pace = Pace::default();
        pace.did(Pace::PIECE - 1);
        pace.did(1);
        assert_eq!(pace.bytes, 0);
    }

    #[test]
    fn a_panic_is_recorded_and_described_and_releases_waiting_threads() {
        let panics = Panics::default();
        let (watch, (sender, receiver)) = (panics.watch(), std::sync::mpsc::channel());
        let thread = std::thread::spawn(move || {
            let _watch = watch;
            let _end = OnEnd(|| sender.send(()).unwrap_or_default());
            std::panic::panic_any("on purpose");
        });
        assert_eq!(receiver.recv(), Ok(()));
        let panic = thread.join().expect_err("it panicked");
        assert_eq!(
            describe("x", &*panic),
            "the thread `x` panicked: on purpose"
        );
        assert!(panics.any());
        drop(Panics::default().watch());
        assert!(!Panics::default().any());
    }
}
