//! `weir generate` and `weir replay`: records to stdout, a file, Kafka or HTTP, or served by the
//! protocol of the original stream.

use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;

use super::Global;
use super::destination::{Destination, Output};
use super::progress::Unit;
use crate::clock::{Clock, SystemClock};
use crate::config::units::parse_time;
use crate::generator::{Generator, RATE, Settings};
use crate::runtime::RuntimeError;
use crate::server::upstream::{History, Records};

/// Records between two moves of the bar, where they are sent as fast as possible.
const REPORT_RECORDS: u64 = 4_096;

/// Generates answers to invitations, faithful to recordings; the same seed gives the same bytes.
#[derive(Debug, Args)]
pub struct Generate {
    /// Number of records [default: endless].
    #[arg(long)]
    count: Option<u64>,
    /// Records per second of event time; --serve, --post and `--start now` also send at this pace.
    #[arg(long, default_value_t = RATE)]
    rate: f64,
    /// Equal seeds give equal bytes.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Time of the first record [default: 2016-06-10T01:00:00Z].
    #[arg(long)]
    start: Option<String>,
    /// Per cent of records that are malformed in some way.
    #[arg(long, default_value_t = 0.0, value_name = "PERCENT")]
    hostile: f64,
    #[command(flatten)]
    destination: Destination,
}

/// Sends a recording again.
#[derive(Debug, Args)]
pub struct Replay {
    /// NDJSON.
    path: PathBuf,
    /// Times as fast as it was recorded; without it, as fast as possible.
    #[arg(long)]
    speed: Option<f64>,
    /// Shift all times so that the first record is from now.
    #[arg(long)]
    shift_to_now: bool,
    #[command(flatten)]
    destination: Destination,
}

impl Generate {
    pub fn run(&self, global: &Global) -> Result<(), RuntimeError> {
        let now = SystemClock::default().now();
        let start_ms = match &self.start {
            None => Settings::default().start_ms,
            Some(text) => {
                parse_time(text, now).map_err(|e| RuntimeError::Config(format!("--start: {e}")))?
                    / 1_000
            }
        };
        if self.rate <= 0.0 || !self.rate.is_finite() {
            return Err(RuntimeError::Config(format!(
                "--rate {}: it must be more than 0",
                self.rate
            )));
        }
        let mut output = Output::open(&self.destination, None)?;
        let is_paced = output.is_paced()
            || self
                .start
                .as_deref()
                .is_some_and(|s| s.trim_start().starts_with("now"));
        let settings = Settings {
            seed: self.seed,
            start_ms,
            rate: self.rate,
            hostile: self.hostile,
            ..Settings::default()
        };
        let mut generator = Generator::new(settings);
        let progress = self
            .destination
            .progress(global, "generating", Unit::Records);
        let started = Instant::now();
        for sent in 0..self.count.unwrap_or(u64::MAX) {
            if is_paced || sent.is_multiple_of(REPORT_RECORDS) {
                progress.set(sent, self.count);
            }
            let (line, mtime) = generator.next_record();
            output.send(mtime, line)?;
            if is_paced {
                let due = Duration::from_millis((generator.now_ms() - start_ms).max(0) as u64);
                pace(&mut output, started, due)?;
            }
        }
        output.finish()
    }
}

/// Waits until a record is due; pending records are sent first.
fn pace(output: &mut Output, started: Instant, due: Duration) -> Result<(), RuntimeError> {
    match due.checked_sub(started.elapsed()) {
        Some(wait) if wait > Duration::from_millis(1) => output.wait(wait),
        Some(_) | None => Ok(()),
    }
}

/// The records of a recording, in its order.
struct Recording {
    lines: io::Lines<BufReader<std::fs::File>>,
    /// The time of the first record, in ms; none to leave times as they are.
    shift_to: Option<i64>,
    /// The recorded time of the first record.
    first: Option<i64>,
}

/// A record of a recording.
struct Recorded {
    /// Its recorded time, in ms, if it has one.
    recorded_at: Option<i64>,
    /// Its time as it is sent; 0 without one.
    mtime: i64,
    line: String,
}

impl Recording {
    fn open(path: &Path, shift_to: Option<i64>) -> io::Result<Self> {
        let file = BufReader::with_capacity(1 << 20, std::fs::File::open(path)?);
        Ok(Self {
            lines: file.lines(),
            shift_to,
            first: None,
        })
    }

    fn record(&mut self, line: String) -> Recorded {
        let recorded_at = crate::generator::mtime(&line);
        let (Some(recorded_at), shift_to) = (recorded_at, self.shift_to) else {
            return Recorded {
                recorded_at,
                mtime: 0,
                line,
            };
        };
        let first = *self.first.get_or_insert(recorded_at);
        let (line, mtime) = match shift_to {
            Some(shift_to) => crate::generator::shift(&line, shift_to - first),
            None => (line, recorded_at),
        };
        Recorded {
            recorded_at: Some(recorded_at),
            mtime,
            line,
        }
    }
}

impl Iterator for Recording {
    type Item = io::Result<Recorded>;

    fn next(&mut self) -> Option<Self::Item> {
        let line = self.lines.next()?;
        Some(line.map(|line| self.record(line)))
    }
}

impl Replay {
    pub fn run(&self, global: &Global) -> Result<(), RuntimeError> {
        let failed = |e: io::Error| {
            let path = self.path.display();
            RuntimeError::Failed(format!(
                "{path}: {e}; name a file of JSON objects, one a line"
            ))
        };
        let now_ms = SystemClock::default().now() / 1_000;
        let shift_to = self.shift_to_now.then_some(now_ms);
        let recording = Recording::open(&self.path, shift_to).map_err(failed)?;
        let path = self.path.clone();
        // The same records for a client that continues after an earlier one.
        let history: History = Arc::new(move || -> io::Result<Records> {
            let again = Recording::open(&path, shift_to)?;
            Ok(Box::new(
                again.map(|record| record.map(|record| record.line)),
            ))
        });
        let mut output = Output::open(&self.destination, Some(history))?;
        let progress = self.destination.progress(global, "replaying", Unit::Bytes);
        // None of a pipe, whose size is not known.
        let size = std::fs::metadata(&self.path)
            .ok()
            .filter(std::fs::Metadata::is_file);
        let size = size.map(|metadata| metadata.len());
        let (started, mut read) = (Instant::now(), 0);
        let (mut first, mut newest) = (None, i64::MIN);
        for (sent, record) in recording.enumerate() {
            let record = record.map_err(failed)?;
            read += record.line.len() as u64 + 1;
            if self.speed.is_some() || (sent as u64).is_multiple_of(REPORT_RECORDS) {
                progress.set(read, size);
            }
            if let Some(recorded_at) = record.recorded_at {
                let first = *first.get_or_insert(recorded_at);
                newest = newest.max(recorded_at);
                if let Some(speed) = self.speed {
                    let recorded = (newest - first) as f64 / 1_000.0;
                    let due = Duration::from_secs_f64(recorded / speed.max(1e-6));
                    pace(&mut output, started, due)?;
                }
            }
            output.send(record.mtime, &record.line)?;
        }
        output.finish()
    }
}
