//! What becomes of a thread that panics: whoever waits for it is told, so that nobody waits for ever; and how a thread that computes
//! for long yields the CPU.

use std::any::Any;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Does something when dropped, also while a panic unwinds: what others wait for is let go of, however its thread ends.
pub struct OnEnd<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for OnEnd<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Yields the CPU now and then during long work. By itself the kernel takes a core away only at a tick, every 1 to 10 ms, and what
/// waits for the disk or a socket needs one several times in a row.
#[derive(Debug)]
pub struct Pace {
    bytes: usize,
    items: usize,
    yielded: Instant,
}

impl Default for Pace {
    fn default() -> Self {
        Self { bytes: 0, items: 0, yielded: Instant::now() }
    }
}

impl Pace {
    /// Bytes between two yields: less than a millisecond of JSON.
    pub const PIECE: usize = 256 << 10;
    /// Items between two looks at the clock, and how long it may be between two yields.
    const ITEMS: usize = 16;
    const TIME: Duration = Duration::from_micros(500);

    /// Counts processed bytes, and yields when it is time.
    pub fn did(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= Self::PIECE {
            self.rest();
        }
    }

    /// Counts an item of unknown size, and yields when it is time.
    pub fn did_one(&mut self) {
        self.items += 1;
        if self.items >= Self::ITEMS {
            self.items = 0;
            if self.yielded.elapsed() >= Self::TIME {
                self.rest();
            }
        }
    }

    fn rest(&mut self) {
        std::thread::yield_now();
        (self.bytes, self.yielded) = (0, Instant::now());
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
    let what =
        panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    format!("the thread `{thread}` panicked: {}", what.unwrap_or_default())
}

/// In a debug build, panics where `WEIR_TEST_PANIC` names this thread: tests see so what becomes of each kind of thread.
pub fn panic_if_asked(thread: &str) {
    #[cfg(debug_assertions)]
    {
        static ASKED: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
        if ASKED.get_or_init(|| std::env::var("WEIR_TEST_PANIC").ok()).as_deref() == Some(thread) {
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
        Paced(&bytes[..], Pace::default()).read_to_end(&mut out).expect("memory");
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
        assert_eq!(describe("x", &*panic), "the thread `x` panicked: on purpose");
        assert!(panics.any());
        drop(Panics::default().watch());
        assert!(!Panics::default().any());
    }
}
