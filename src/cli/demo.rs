//! `weir demo`: the whole pipeline on a generated live stream, and commands to try.

use std::io::{IsTerminal, Write};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;

use super::{Global, serve, tokio_runtime};
use crate::clock::{Clock, SystemClock};
use crate::config;
use crate::generator::PATH;
use crate::generator::{Generator, Settings};
use crate::ids::ViewId;
use crate::runtime::{Options, Running, RuntimeError};
use crate::server::upstream::Upstream;

/// Records per second.
const RATE: f64 = 50.0;

#[derive(Debug, Args)]
pub struct Demo {
    /// Port of the HTTP server on 127.0.0.1.
    #[arg(long, default_value_t = 8080)]
    port: u16,
}

impl Demo {
    pub fn run(&self, global: &Global) -> Result<(), RuntimeError> {
        let runtime = tokio_runtime()?;
        let upstream = Upstream::default();
        let address = runtime
            .block_on(upstream.clone().serve(([127, 0, 0, 1], 0).into(), PATH))
            .map_err(|e| RuntimeError::Failed(format!("no free port: {e}")))?;
        let text =
            crate::generator::demo_configuration(self.port, &format!("ws://{address}{PATH}"));
        let config = config::parse(None, text, global.memory.as_deref(), &|name| {
            std::env::var(name).ok()
        })?;
        let listener = serve::bind(&config)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let generator = std::thread::spawn(move || {
            // After a panic it starts again: its records follow from the time.
            let run =
                || std::panic::catch_unwind(AssertUnwindSafe(|| generate(&upstream, &stopping)));
            while run().is_err() {
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        eprintln!("{}", crate::generator::demo_welcome(self.port));
        let mut line = StatusLine::default();
        let result = serve::serve(
            &config,
            &listener,
            &runtime,
            Options::default(),
            |running, _| line.show(running),
        );
        stop.store(true, Ordering::Release);
        let _ = generator.join();
        line.end();
        result
    }
}

/// Sends records of the current time until stopped. Ids continue those of the last run, because they
/// follow from the time.
fn generate(upstream: &Upstream, stop: &AtomicBool) {
    let start_ms = SystemClock::default().now() / 1_000;
    let first_id = 1_500_000_000 + (start_ms / 10 - 146_552_040_000).max(0) as u64;
    let seed = start_ms as u64;
    let mut generator = Generator::new(Settings {
        seed,
        start_ms,
        rate: RATE,
        // So many that the first is seen within seconds.
        hostile: 1.0,
        first_id,
    });
    let started = Instant::now();
    while !stop.load(Ordering::Acquire) {
        let (line, mtime) = generator.next_record();
        upstream.send(mtime, line);
        let due = Duration::from_millis((generator.now_ms() - start_ms).max(0) as u64);
        if let Some(wait) = due.checked_sub(started.elapsed()) {
            std::thread::sleep(wait);
        }
    }
}

/// Events, events per second, lag per view and watermark, in place on a terminal.
#[derive(Default)]
struct StatusLine {
    last: Option<(Instant, u64)>,
    rate: f64,
    is_open: bool,
}

impl StatusLine {
    fn show(&mut self, running: &Running) {
        let now = Instant::now();
        if self
            .last
            .is_some_and(|(at, _)| now.duration_since(at) < Duration::from_secs(1))
        {
            return;
        }
        let streams = running.handles.progress.streams();
        let events: u64 = streams.values().map(|s| s.totals.events).sum();
        if let Some((at, before)) = self.last {
            self.rate = events.saturating_sub(before) as f64 / now.duration_since(at).as_secs_f64();
        }
        self.last = Some((now, events));
        if !std::io::stderr().is_terminal() {
            return;
        }
        let synced = running.handles.progress.synced_lsn();
        let lags: Vec<String> = running
            .views()
            .iter()
            .map(|(view, lsn, _)| {
                let name = match view {
                    ViewId::Lake(table) => table.to_string(),
                    view => view.to_string(),
                };
                format!("{name} {}", synced.saturating_sub(*lsn))
            })
            .collect();
        let watermark = streams
            .values()
            .filter_map(|s| s.watermark)
            .min()
            .map_or_else(|| "none".into(), crate::event::rfc3339);
        eprint!(
            "\r\x1b[K{events} events · {:.0} ev/s · lag {} · watermark {watermark}",
            self.rate,
            lags.join(", ")
        );
        let _ = std::io::stderr().flush();
        self.is_open = true;
    }

    fn end(&self) {
        if self.is_open {
            eprintln!();
        }
    }
}
