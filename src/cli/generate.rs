//! `weir generate` and `weir replay`: records to stdout, a file or HTTP, or served by the protocol of
//! the original stream.

use std::io::{BufRead, BufReader, BufWriter, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;

use super::{Global, output, tokio_runtime};
use crate::clock::{Clock, SystemClock};
use crate::config::units::parse_time;
use crate::generator::{Generator, RATE, Settings};
use crate::runtime::RuntimeError;
use crate::server::upstream::Upstream;

/// The original stream's path on its server.
pub const PATH: &str = crate::generator::PATH;
/// Records of one POST.
const POST_RECORDS: usize = 1_000;

/// Where records go.
#[derive(Debug, Args)]
struct Target {
    /// Write to a file instead of stdout.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["post", "serve"])]
    file: Option<PathBuf>,
    /// Send to this address by HTTP POST, 1,000 records at a time.
    #[arg(long, value_name = "URL", conflicts_with = "serve")]
    post: Option<String>,
    /// Serve a websocket and chunked HTTP at /2/… of this address.
    #[arg(long, value_name = "ADDRESS")]
    serve: Option<SocketAddr>,
}

/// Generates answers to invitations, faithful to recordings; the same seed gives the same bytes.
#[derive(Debug, Args)]
pub struct Generate {
    /// Number of records [default: endless].
    #[arg(long)]
    count: Option<u64>,
    /// Records per second of event time; --serve, --post and `--start now` also send at this pace.
    #[arg(long, default_value_t = RATE)]
    rate: f64,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Time of the first record [default: 2016-06-10T01:00:00Z].
    #[arg(long)]
    start: Option<String>,
    /// Per cent of records that are malformed in some way.
    #[arg(long, default_value_t = 0.0, value_name = "PERCENT")]
    hostile: f64,
    #[command(flatten)]
    target: Target,
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
    target: Target,
}

/// Where records are written.
enum Sink {
    Writer(BufWriter<Box<dyn Write>>),
    Post {
        client: reqwest::Client,
        url: String,
        pending: Vec<u8>,
        count: usize,
        runtime: tokio::runtime::Runtime,
    },
    Serve {
        upstream: Upstream,
        _runtime: tokio::runtime::Runtime,
    },
}

impl Sink {
    fn open(target: &Target) -> Result<Self, RuntimeError> {
        let failed = |e: String| RuntimeError::Failed(e);
        if let Some(address) = target.serve {
            let (runtime, upstream) = (tokio_runtime()?, Upstream::default());
            let bound = runtime
                .block_on(upstream.clone().serve(address, PATH))
                .map_err(|e| failed(format!("{address}: {e}")))?;
            eprintln!("weir: serving ws://{bound}{PATH} and http://{bound}{PATH}");
            return Ok(Self::Serve {
                upstream,
                _runtime: runtime,
            });
        }
        if let Some(url) = &target.post {
            let client = reqwest::Client::builder()
                .no_proxy()
                .build()
                .map_err(|e| failed(e.to_string()))?;
            return Ok(Self::Post {
                client,
                url: url.clone(),
                pending: Vec::new(),
                count: 0,
                runtime: tokio_runtime()?,
            });
        }
        let writer: Box<dyn Write> = match &target.file {
            Some(path) => Box::new(
                std::fs::File::create(path)
                    .map_err(|e| failed(format!("{}: {e}", path.display())))?,
            ),
            None => Box::new(std::io::stdout()),
        };
        Ok(Self::Writer(BufWriter::with_capacity(1 << 20, writer)))
    }

    fn is_paced(&self) -> bool {
        !matches!(self, Self::Writer(_))
    }

    fn send(&mut self, mtime: i64, record: &str) -> Result<(), RuntimeError> {
        match self {
            Self::Writer(writer) => {
                let written = writer
                    .write_all(record.as_bytes())
                    .and_then(|()| writer.write_all(b"\n"));
                output::check_written(written)
            }
            Self::Serve { upstream, .. } => {
                upstream.send(mtime, record);
                Ok(())
            }
            Self::Post { pending, count, .. } => {
                pending.extend_from_slice(record.as_bytes());
                pending.push(b'\n');
                *count += 1;
                if *count >= POST_RECORDS {
                    self.flush()
                } else {
                    Ok(())
                }
            }
        }
    }

    fn flush(&mut self) -> Result<(), RuntimeError> {
        match self {
            Self::Writer(writer) => output::check_written(writer.flush()),
            Self::Serve { .. } => Ok(()),
            Self::Post {
                client,
                url,
                pending,
                count,
                runtime,
            } => {
                *count = 0;
                let body = std::mem::take(pending);
                if body.is_empty() {
                    return Ok(());
                }
                let sent = runtime.block_on(async {
                    let request = client
                        .post(url.as_str())
                        .header("content-type", "application/x-ndjson")
                        .body(body);
                    request.send().await?.error_for_status()
                });
                sent.map(drop)
                    .map_err(|e| RuntimeError::Failed(e.to_string()))
            }
        }
    }
}

impl Generate {
    pub fn run(&self, _global: &Global) -> Result<(), RuntimeError> {
        let now = SystemClock::default().now();
        let start_ms = match &self.start {
            None => Settings::default().start_ms,
            Some(text) => {
                parse_time(text, now).map_err(|e| RuntimeError::Config(e.to_string()))? / 1_000
            }
        };
        if self.rate <= 0.0 || !self.rate.is_finite() {
            return Err(RuntimeError::Config(format!(
                "--rate {}: it must be more than 0",
                self.rate
            )));
        }
        let mut sink = Sink::open(&self.target)?;
        let is_paced = sink.is_paced()
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
        let started = Instant::now();
        for _ in 0..self.count.unwrap_or(u64::MAX) {
            let (line, mtime) = generator.next_record();
            sink.send(mtime, line)?;
            if is_paced {
                let due = Duration::from_millis((generator.now_ms() - start_ms).max(0) as u64);
                pace(&mut sink, started, due)?;
            }
        }
        sink.flush()
    }
}

/// Waits until a record is due; pending records are sent first.
fn pace(sink: &mut Sink, started: Instant, due: Duration) -> Result<(), RuntimeError> {
    if let Some(wait) = due
        .checked_sub(started.elapsed())
        .filter(|w| *w > Duration::from_millis(1))
    {
        sink.flush()?;
        std::thread::sleep(wait);
    }
    Ok(())
}

impl Replay {
    pub fn run(&self, _global: &Global) -> Result<(), RuntimeError> {
        let failed =
            |e: std::io::Error| RuntimeError::Failed(format!("{}: {e}", self.path.display()));
        let file =
            BufReader::with_capacity(1 << 20, std::fs::File::open(&self.path).map_err(failed)?);
        let mut sink = Sink::open(&self.target)?;
        let now_ms = SystemClock::default().now() / 1_000;
        let started = Instant::now();
        let (mut first, mut newest) = (None, i64::MIN);
        for line in file.lines() {
            let line = line.map_err(failed)?;
            let Some(mtime) = crate::generator::mtime(&line) else {
                sink.send(0, &line)?;
                continue;
            };
            let first = *first.get_or_insert(mtime);
            newest = newest.max(mtime);
            if let Some(speed) = self.speed {
                let due =
                    Duration::from_secs_f64((newest - first) as f64 / 1_000.0 / speed.max(1e-6));
                pace(&mut sink, started, due)?;
            }
            if self.shift_to_now {
                let (line, mtime) = crate::generator::shift(&line, now_ms - first);
                sink.send(mtime, &line)?;
            } else {
                sink.send(mtime, &line)?;
            }
        }
        sink.flush()
    }
}
