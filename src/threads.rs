//! What becomes of a thread that panics: whoever waits for it is told, so that nobody waits for ever.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Does something when dropped, also while a panic unwinds: what others wait for is let go of, however its thread ends.
pub struct OnEnd<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for OnEnd<F> {
    fn drop(&mut self) {
        (self.0)();
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
