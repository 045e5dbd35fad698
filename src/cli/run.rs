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
use crate::runtime::{Ended, Options, POLL, PartError, Running, RuntimeError, disorder, notes};
use crate::sources::kafka::reads_partition;

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
        let is_signalled = || signal.is_finished();
        let reading = Progress::new(global, "reading", Unit::Records);
        while !running.has_failed() && !is_signalled() && !self.is_over(&running, started) {
            if reading.is_shown() {
                reading.set(accepted_since(&running, &before), None);
            }
            std::thread::sleep(POLL);
        }
        drop(reading);
        let handles = running.handles.clone();
        let ending = Progress::new(global, "merging, delivering, committing", Unit::None);
        let (failures, is_interrupted) = self.finish(running, config, &is_signalled);
        drop(ending);
        let summary = Summary::new(&handles, &before, started, is_interrupted, failures);
        summary.report(global, &handles)
    }

    /// Maintains, waits for the sinks and stops. Returns everything that has failed, and whether a
    /// signal came: then nothing is said of sinks, for which it did not wait.
    fn finish(
        &self,
        running: Running,
        config: &Config,
        is_signalled: &dyn Fn() -> bool,
    ) -> (Failures, bool) {
        let mut not_closed = None;
        if !running.has_failed() && !is_signalled() {
            if self.is_final {
                not_closed = running.close_windows().err();
            }
            running.maintain(config);
        }
        let mut undelivered = running.wait_for_sinks(self.sinks_timeout, is_signalled);
        let is_interrupted = is_signalled();
        if is_interrupted {
            undelivered.clear();
        }
        let Ended { failed, mut halted } = running.end(is_interrupted);
        halted.extend(not_closed.map(|error| PartError::new("log", error)));
        let failures = Failures {
            failed,
            halted,
            undelivered,
        };
        (failures, is_interrupted)
    }

    /// A reset is accepted for one partition that a source reads, by its name.
    fn check_resets(&self, config: &Config) -> Result<(), RuntimeError> {
        let kafka = config
            .sources
            .iter()
            .filter_map(|source| match &source.kind {
                SourceKind::Kafka(def) => Some(&def.topics),
                _ => None,
            });
        let kafka: Vec<_> = kafka.collect();
        let is_read = |name: &str| kafka.iter().any(|topics| reads_partition(topics, name));
        let is_name = |name: &str| {
            name.rsplit_once('/').is_some_and(|(topic, number)| {
                // Only as it is shown: `+3` and `03` would name no partition.
                let parsed = number.parse::<i32>().ok().filter(|number| *number >= 0);
                !topic.is_empty() && parsed.is_some_and(|parsed| parsed.to_string() == number)
            })
        };
        match self.accept_reset.iter().find(|name| !is_name(name)) {
            Some(name) => Err(RuntimeError::Config(format!(
                "--accept-reset {name}: write the partition as `weir status` does, for example orders/3"
            ))),
            None if !self.accept_reset.is_empty() && kafka.is_empty() => Err(RuntimeError::Config(
                "--accept-reset is for partitions of Kafka, and no source has type = \"kafka\""
                    .into(),
            )),
            None => match self.accept_reset.iter().find(|name| !is_read(name)) {
                Some(name) => Err(RuntimeError::Config(format!(
                    "--accept-reset {name}: no source reads this topic; `weir status` names the partitions that have halted"
                ))),
                None => Ok(()),
            },
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

/// What went wrong in a bounded run.
struct Failures {
    /// Of log, operators and views: not everything is committed.
    failed: Vec<PartError>,
    /// Of sources that halted, and of threads that panicked.
    halted: Vec<PartError>,
    /// Of sinks that lack something.
    undelivered: Vec<PartError>,
}

impl Failures {
    fn all(&self) -> impl Iterator<Item = &PartError> {
        let parts = self.failed.iter().chain(&self.halted);
        parts.chain(&self.undelivered)
    }

    /// All of them as one error.
    fn into_result(self) -> Result<(), RuntimeError> {
        let undelivered = if self.failed.is_empty() {
            "everything accepted is committed, but not everything was delivered"
        } else {
            "not everything was delivered"
        };
        let sinks = self.undelivered.iter().map(|part| part.error.to_string());
        let sinks: Vec<String> = sinks.collect();
        let mut parts = self.failed;
        parts.extend(self.halted);
        if !sinks.is_empty() {
            let text = format!("{undelivered}: {}", sinks.join("; "));
            parts.push(PartError::new("sinks", RuntimeError::Failed(text)));
        }
        PartError::all(parts)
    }
}

/// What a bounded run has done.
struct Summary {
    /// By stream.
    streams: BTreeMap<String, Totals>,
    sinks: BTreeMap<String, SinkHealth>,
    seconds: f64,
    is_interrupted: bool,
    synced_lsn: Lsn,
    failures: Failures,
}

impl Summary {
    fn new(
        handles: &Handles,
        before: &Streams,
        started: Instant,
        is_interrupted: bool,
        failures: Failures,
    ) -> Self {
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
            failures,
        }
    }

    /// Shows it, whatever has failed; then returns that.
    fn report(self, global: &Global, handles: &Handles) -> Result<(), RuntimeError> {
        let mut written = Ok(());
        if global.format() == Format::Json && global.output.is_some() {
            written = output::try_write(&self.to_json());
        } else {
            self.print(handles);
        }
        notes::all(handles)
            .iter()
            .for_each(|note| eprintln!("{}", note.text));
        // A closed pipe does not hide a failure.
        self.failures.into_result()?;
        output::check_written(written)
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
        let error = |part: &PartError| json!({"part": part.part, "error": part.error.to_string()});
        let errors: Vec<Value> = self.failures.all().map(error).collect();
        let summary = json!({
            "errors": errors,
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
        let reached = if !self.failures.failed.is_empty() {
            "not everything is committed, the next start continues from the log"
        } else if self.is_interrupted {
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
