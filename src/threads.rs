//! Panics of threads, reported to the threads that wait for them, and [`Pace`], with which long
//! work yields the CPU.

use std::any::Any;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Does something when dropped, also while a panic unwinds: what others wait for is let go of,
/// however its thread ends.
pub struct OnEnd<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for OnEnd<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Yields the CPU now and then during long work. By itself the kernel takes a core away only at a
/// tick, every 1 to 10 ms, also from a thread of a low priority, and a request needs several
/// threads one after the other. A yield costs the rest of a thread's slice, some 3 ms, where others
/// want the core: many more of them would make the work slow on a busy machine.
#[derive(Debug, Default)]
pub struct Pace {
    bytes: usize,
    yielded: Option<Instant>,
}

impl Pace {
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

    /// Yields if the last time was long enough ago: for work whose size is not known.
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

/// Remembers that a thread panicked whose end nobody waits for.
#[derive(Debug, Clone, Default)]
pub struct Panics(Arc<AtomicBool>);

impl Panics {
    /// Held by a thread; dropped by a panic, it notes that.
    pub fn watch(&self) -> impl Drop + use<> {
        let has_panicked = self.0.clone();
        OnEnd(move || {
            if std::thread::panicking() {
                has_panicked.store(true, Ordering::Release);
            }
        })
    }

    pub fn any(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What a panic of a thread says, with the thread's name.
pub fn describe(thread: &str, panic: &(dyn Any + Send)) -> String {
    let what = panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    format!(
        "the thread `{thread}` panicked: {}",
        what.unwrap_or_default()
    )
}

/// In a debug build, panics where `WEIR_TEST_PANIC` names this thread: tests see so what becomes of
/// each kind of thread.
pub fn panic_if_asked(thread: &str) {
    #[cfg(debug_assertions)]
    {
        static ASKED: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
        if ASKED
            .get_or_init(|| std::env::var("WEIR_TEST_PANIC").ok())
            .as_deref()
            == Some(thread)
        {
            std::panic::panic_any("asked to by WEIR_TEST_PANIC");
        }
    }
    #[cfg(not(debug_assertions))]
    let _ = thread;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_at_a_pace_is_what_there_is() {
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
    fn a_panic_is_noted_and_described_and_what_others_wait_for_is_let_go() {
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
