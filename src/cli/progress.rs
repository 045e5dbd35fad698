//! Progress of what may take seconds: a bar on stderr, on a terminal only, and neither with
//! `--quiet` nor among logs in JSON. What a verb prints in any case, and its logs, appear above it.

use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{Global, LogFormat};

/// How often a bar moves by itself.
const TICK: Duration = Duration::from_millis(125);

/// What is done before this shows no spinner.
const SPINNER_DELAY: Duration = Duration::from_secs(2);

/// The bars of the process; nothing else writes to stderr while they are drawn.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);
/// Bars that are shown: without one, nothing waits for the lock of [`BARS`].
static SHOWN: AtomicUsize = AtomicUsize::new(0);

/// What a bar counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Records,
    Bytes,
    /// Nothing: only the time is shown.
    None,
}

impl Unit {
    /// The template of a bar, or, without a total, of a spinner.
    fn template(self, has_total: bool) -> &'static str {
        match (self, has_total) {
            (Self::Records, true) => {
                "{msg} [{bar:24}] {percent}% of {human_len} records, {eta} left"
            }
            (Self::Records, false) => "{spinner} {msg}: {human_pos} records, {elapsed}",
            (Self::Bytes, true) => {
                "{msg} [{bar:24}] {percent}% of {binary_total_bytes}, {eta} left"
            }
            (Self::Bytes, false) => "{spinner} {msg}: {binary_bytes}, {elapsed}",
            (Self::None, _) => "{spinner} {msg}, {elapsed}",
        }
    }
}

/// A bar that disappears when this is dropped, or nothing.
pub struct Progress {
    bar: Option<ProgressBar>,
    unit: Unit,
}

impl Progress {
    /// Shows what is being done, where a bar is wanted.
    pub fn new(global: &Global, what: impl Into<String>, unit: Unit) -> Self {
        if is_wanted(global) {
            Self::shown(what.into(), unit, Duration::ZERO)
        } else {
            Self::hidden()
        }
    }

    /// A bar for what has taken some time already.
    fn shown(what: String, unit: Unit, elapsed: Duration) -> Self {
        SHOWN.fetch_add(1, Ordering::AcqRel);
        let bar = BARS.add(ProgressBar::no_length().with_elapsed(elapsed));
        bar.set_style(style(unit, false));
        bar.set_message(what);
        bar.enable_steady_tick(TICK);
        Self {
            bar: Some(bar),
            unit,
        }
    }

    /// Nothing.
    pub fn hidden() -> Self {
        Self {
            bar: None,
            unit: Unit::None,
        }
    }

    /// Whether there is a bar, beside which lines of progress are not needed.
    pub fn is_shown(&self) -> bool {
        self.bar.is_some()
    }

    /// Sets how much is done, and of how much, where that is known.
    pub fn set(&self, done: u64, total: Option<u64>) {
        let Some(bar) = &self.bar else { return };
        if bar.length() != total {
            bar.set_style(style(self.unit, total.is_some()));
            match total {
                Some(total) => bar.set_length(total),
                None => bar.unset_length(),
            }
        }
        bar.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            BARS.remove(bar);
            SHOWN.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Whether bars are wanted, and there is a terminal to show them on.
fn is_wanted(global: &Global) -> bool {
    let is_wanted = !global.quiet && global.log_format == LogFormat::Text;
    is_wanted && io::stderr().is_terminal()
}

/// A spinner with the time, where bars are wanted: it appears once what it stands for takes long,
/// and disappears when this is dropped.
pub struct Spinner {
    /// Dropped at the end, which the thread notices.
    done: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Spinner {
    /// What begins now.
    pub fn new(global: &Global, what: impl Into<String>) -> Self {
        if is_wanted(global) {
            Self::after(SPINNER_DELAY, what.into())
        } else {
            Self {
                done: None,
                thread: None,
            }
        }
    }

    fn after(delay: Duration, what: String) -> Self {
        let (done, is_done) = channel::<()>();
        let thread = std::thread::Builder::new().name("spinner".into());
        let thread = thread.spawn(move || {
            if is_done.recv_timeout(delay) == Err(RecvTimeoutError::Timeout) {
                let _spinner = Progress::shown(what, Unit::None, delay);
                // Nothing is sent: this waits for the end.
                let _ = is_done.recv();
            }
        });
        Self {
            done: Some(done),
            // Without a thread nothing is shown.
            thread: thread.ok(),
        }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        drop(self.done.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn style(unit: Unit, has_total: bool) -> ProgressStyle {
    let style = ProgressStyle::with_template(unit.template(has_total));
    style.map_or_else(
        |_| ProgressStyle::default_spinner(),
        |style| style.progress_chars("=> "),
    )
}

/// Writes a line to stderr, above the bars.
pub fn line(text: &str) {
    let _ = writeln!(Stderr, "{text}");
}

/// Stderr for logs, which appear above the bars.
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let write = || io::stderr().write_all(bytes).map(|()| bytes.len());
        if SHOWN.load(Ordering::Acquire) == 0 {
            write()
        } else {
            BARS.suspend(write)
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_valid() {
        for unit in [Unit::Records, Unit::Bytes, Unit::None] {
            for has_total in [false, true] {
                let template = unit.template(has_total);
                assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
            }
        }
    }

    #[test]
    fn a_spinner_ends_with_what_it_stands_for() {
        // Before it appears: this does not wait for the delay.
        drop(Spinner::after(Duration::from_secs(600), "quick".into()));
        let spinner = Spinner::after(Duration::ZERO, "slow".into());
        while SHOWN.load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        drop(spinner);
        assert_eq!(SHOWN.load(Ordering::Acquire), 0);
    }

    #[test]
    fn without_a_terminal_nothing_is_shown() {
        let progress = Progress::hidden();
        progress.set(1, Some(2));
        assert!(!progress.is_shown());
    }
}
