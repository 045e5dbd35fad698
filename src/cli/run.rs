//! `weir run`: the pipeline in the foreground.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use super::output::{self, Format};
use super::progress::{Progress, Unit};
use super::{Global, serve, tokio_runtime};
use crate::config::units::parse_duration;
use crate::config::{Config, SourceKind};
use crate::event::{Lsn, SinkHealth};
use crate::operators::{StreamProgress, Totals};
use crate::query::Handles;
use crate::runtime::data_dir::DataDir;
use crate::runtime::{Options, POLL, Running, RuntimeError, disorder, notes};

#[derive(Debug, Args)]
pub struct Run {
    /// Ingest what is there, commit everything, print a summary and exit. Opens no port.
    #[arg(long)]
    once: bool,
    /// With --once: read for this long from sources that have no end.
    #[arg(long = "for", value_name = "DURATION", requires = "once", value_parser = parse_duration)]
    for_time: Option<Duration>,
    /// With --once: close all windows and sessions at the end, as if no more records could come.
    #[arg(long = "final", requires = "once")]
    is_final: bool,
    /// With --once: how long sinks may take, at the end, to deliver everything; exit code 1 if one has
    /// not. Everything accepted is committed in any case.
    #[arg(long, value_name = "DURATION", requires = "once", default_value = "5m", value_parser = parse_duration)]
    sinks_timeout: Duration,
    /// A partition of Kafka that has halted because the broker lacks the records at its position:
    /// it continues with the first record that the broker has, and a gap names the lost offsets.
    #[arg(long, value_name = "TOPIC/NUMBER")]
    accept_reset: Vec<String>,
}

impl Run {
    pub fn run(&self, global: &Global) -> Result<(), RuntimeError> {
        let config = global.load_file()?;
        self.check_resets(&config)?;
        let options = Options {
            once: self.once,
            accepted_resets: self.accept_reset.iter().cloned().collect(),
        };
        let runtime = tokio_runtime()?;
        if self.once {
            self.run_once(global, &config, options, &runtime)
        } else {
            serve_until_stopped(global, &config, options, runtime)
        }
    }

    fn run_once(
        &self,
        global: &Global,
        config: &Config,
        options: Options,
        runtime: &tokio::runtime::Runtime,
    ) -> Result<(), RuntimeError> {
        let signal = crate::runtime::stop_signal(runtime);
        let started = Instant::now();
        let mut recovery = serve::Recovery::new(global);
        let mut running = Running::start(config, options, runtime.handle())?;
        while !running.resume(config)? && !running.has_failed() && !signal.is_finished() {
            recovery.show(&running, false);
            std::thread::sleep(RESUME_POLL);
        }
        recovery.show(&running, true);
        // A new log begins with one record, the configuration.
        if running.recovered() > 1 {
            eprintln!(
                "{} records in the log were missing in some views and have been added",
                running.recovered()
            );
        }
        let before = running.handles.progress.streams();
        let reading = Progress::new(global, "reading", Unit::Records);
        while !running.has_failed() && !signal.is_finished() && !self.is_over(&running, started) {
            if reading.is_shown() {
                reading.set(accepted_since(&running, &before), None);
            }
            std::thread::sleep(POLL);
        }
        drop(reading);
        let ending = Progress::new(global, "merging, delivering, committing", Unit::None);
        if !running.has_failed() && !signal.is_finished() {
            if self.is_final {
                running.close_windows()?;
            }
            running.maintain(config);
        }
        let delivered = running.wait_for_sinks(self.sinks_timeout, || signal.is_finished());
        let (handles, is_interrupted) = (running.handles.clone(), signal.is_finished());
        if is_interrupted {
            running.interrupt()?;
        } else {
            running.stop()?;
        }
        drop(ending);
        let summary = Summary::new(&handles, &before, started, is_interrupted);
        if global.format() == Format::Json && global.output.is_some() {
            output::write(&summary.to_json())?;
        } else {
            summary.print(&handles);
        }
        notes::all(&handles)
            .iter()
            .for_each(|note| eprintln!("{}", note.text));
        if is_interrupted { Ok(()) } else { delivered }
    }

    /// A reset is accepted for one partition that a source reads, by its name.
    fn check_resets(&self, config: &Config) -> Result<(), RuntimeError> {
        let has_kafka = config
            .sources
            .iter()
            .any(|source| matches!(source.kind, SourceKind::Kafka(_)));
        let is_name = |name: &str| {
            name.rsplit_once('/').is_some_and(|(topic, number)| {
                !topic.is_empty() && number.parse::<i32>().is_ok_and(|number| number >= 0)
            })
        };
        match self.accept_reset.iter().find(|name| !is_name(name)) {
            Some(name) => Err(RuntimeError::Config(format!(
                "--accept-reset {name}: write the partition as `weir status` does, for example orders/3"
            ))),
            None if !self.accept_reset.is_empty() && !has_kafka => Err(RuntimeError::Config(
                "--accept-reset is for partitions of Kafka, and no source has type = \"kafka\""
                    .into(),
            )),
            None => Ok(()),
        }
    }

    /// Whether sources with an end have ended, and the time of the others is over.
    fn is_over(&self, running: &Running, started: Instant) -> bool {
        running.sources_have_ended() || self.for_time.is_some_and(|time| started.elapsed() >= time)
    }
}

fn serve_until_stopped(
    global: &Global,
    config: &Config,
    options: Options,
    runtime: tokio::runtime::Runtime,
) -> Result<(), RuntimeError> {
    // A folder in use is reported before a port in use.
    drop(DataDir::create(&config.data)?.lock()?);
    let listener = serve::bind(config)?;
    let mut recovery = serve::Recovery::new(global);
    let served = serve::serve(config, &listener, &runtime, options, |running, resumed| {
        recovery.show(running, resumed);
    });
    // Do not wait for a body that is being decoded, or for a backup.
    runtime.shutdown_timeout(serve::SHUTDOWN_TIMEOUT);
    served
}

/// How often a starting run checks whether the log has been replayed.
const RESUME_POLL: Duration = Duration::from_millis(5);

type Streams = BTreeMap<String, StreamProgress>;

/// A stream's totals since `before`.
fn since(before: &Streams, name: &str, now: &Totals) -> Totals {
    let before = before.get(name).map(|s| s.totals).unwrap_or_default();
    Totals {
        events: now.events.saturating_sub(before.events),
        late: now.late.saturating_sub(before.late),
        duplicates: now.duplicates.saturating_sub(before.duplicates),
        dead_letters: now.dead_letters.saturating_sub(before.dead_letters),
        abandoned_sessions: now
            .abandoned_sessions
            .saturating_sub(before.abandoned_sessions),
        max_lateness: now.max_lateness,
    }
}

/// Records that all streams have accepted or rejected since `before`.
fn accepted_since(running: &Running, before: &Streams) -> u64 {
    let streams = running.handles.progress.streams();
    let totals = streams
        .iter()
        .map(|(name, now)| since(before, name, &now.totals));
    totals
        .map(|totals| totals.events + totals.dead_letters)
        .sum()
}

/// What a bounded run has done.
struct Summary {
    /// By stream.
    streams: BTreeMap<String, Totals>,
    sinks: BTreeMap<String, SinkHealth>,
    seconds: f64,
    is_interrupted: bool,
    synced_lsn: Lsn,
}

impl Summary {
    fn new(handles: &Handles, before: &Streams, started: Instant, is_interrupted: bool) -> Self {
        let streams = handles.progress.streams().into_iter();
        let streams = streams.map(|(name, s)| {
            let totals = since(before, &name, &s.totals);
            (name, totals)
        });
        Self {
            streams: streams.collect(),
            sinks: handles.progress.sinks(),
            seconds: started.elapsed().as_secs_f64(),
            is_interrupted,
            synced_lsn: handles.progress.synced_lsn(),
        }
    }

    /// For scripts, on stdout.
    fn to_json(&self) -> Vec<u8> {
        let stream = |totals: &Totals| {
            json!({
                "events": totals.events,
                "duplicates": totals.duplicates,
                "late": totals.late,
                "dead_letters": totals.dead_letters,
            })
        };
        let sink = |health: &SinkHealth| {
            json!({
                "state": health.state.name(),
                "rows": health.rows,
                "lag": self.synced_lsn.saturating_sub(health.lsn),
                "dead_letters": health.refused.len(),
                "last_error": health.last_error,
            })
        };
        let streams: BTreeMap<&String, Value> =
            self.streams.iter().map(|(n, t)| (n, stream(t))).collect();
        let sinks: BTreeMap<&String, Value> =
            self.sinks.iter().map(|(n, h)| (n, sink(h))).collect();
        let summary = json!({
            "streams": streams,
            "sinks": sinks,
            "seconds": self.seconds,
            "interrupted": self.is_interrupted,
            "synced_lsn": self.synced_lsn,
        });
        format!("{summary}\n").into_bytes()
    }

    /// For people, on stderr.
    fn print(&self, handles: &Handles) {
        let sum = |field: fn(&Totals) -> u64| self.streams.values().map(field).sum::<u64>();
        let reached = if self.is_interrupted {
            "stopped by a signal, what was accepted is safe"
        } else {
            "all views have committed"
        };
        eprintln!(
            "{} events ({} duplicates, {} late), {} dead letters in {:.1} s; {reached}; the log ends at record {}",
            sum(|t| t.events),
            sum(|t| t.duplicates),
            sum(|t| t.late),
            sum(|t| t.dead_letters),
            self.seconds,
            crate::event::lsn_sequence(self.synced_lsn),
        );
        for (name, health) in &self.sinks {
            let lag = self.synced_lsn.saturating_sub(health.lsn);
            let (state, rows) = (health.state.name(), health.rows);
            eprintln!("sink `{name}` ({state}): {rows} rows delivered, {lag} records behind");
        }
        for (name, totals) in &self.streams {
            let stream = handles.catalog.streams.get(name);
            let notice = stream.and_then(|stream| disorder::notice(stream, totals));
            if let Some(text) = notice {
                eprintln!("weir: {text}");
            }
        }
    }
}
