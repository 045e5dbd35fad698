//! `weir run`: the pipeline in the foreground.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Args;

use super::{Global, serve, tokio_runtime};
use crate::config::units::parse_duration;
use crate::config::{Config, SourceKind};
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
        if !self.once {
            // A folder in use is reported before a port in use.
            drop(DataDir::create(&config.data)?.lock()?);
            let listener = serve::bind(&config)?;
            let served = serve::serve(&config, &listener, &runtime, options, |_| {});
            // Do not wait for a body that is being decoded, or for a backup.
            runtime.shutdown_timeout(serve::SHUTDOWN_TIMEOUT);
            return served;
        }
        let signal = crate::runtime::stop_signal(&runtime);
        let started = Instant::now();
        let mut running = Running::start(&config, options, runtime.handle())?;
        while !running.resume(&config)? && !running.has_failed() && !signal.is_finished() {
            std::thread::sleep(RESUME_POLL);
        }
        // A new log begins with one record, the configuration.
        if running.recovered() > 1 {
            eprintln!(
                "{} records in the log were missing in some views and have been added",
                running.recovered()
            );
        }
        let before = running.handles.progress.streams();
        while !running.has_failed() && !signal.is_finished() && !self.is_over(&running, started) {
            std::thread::sleep(POLL);
        }
        if !running.has_failed() && !signal.is_finished() {
            if self.is_final {
                running.close_windows()?;
            }
            running.maintain(&config);
        }
        let (handles, is_interrupted) = (running.handles.clone(), signal.is_finished());
        if is_interrupted {
            running.interrupt()?;
        } else {
            running.stop()?;
        }
        summary(&handles, &before, started, is_interrupted);
        notes::of_tables(&handles.tables)
            .iter()
            .for_each(|note| eprintln!("{}", note.text));
        Ok(())
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
        max_lateness: now.max_lateness,
    }
}

fn summary(handles: &Handles, before: &Streams, started: Instant, is_interrupted: bool) {
    let streams = handles.progress.streams();
    let totals: Vec<(&String, Totals)> = streams
        .iter()
        .map(|(name, s)| (name, since(before, name, &s.totals)))
        .collect();
    let sum =
        |field: fn(&Totals) -> u64| totals.iter().map(|(_, totals)| field(totals)).sum::<u64>();
    let seconds = started.elapsed().as_secs_f64();
    let reached = if is_interrupted {
        "stopped by a signal, what was accepted is safe"
    } else {
        "all views have committed"
    };
    eprintln!(
        "{} events ({} duplicates, {} late), {} dead letters in {seconds:.1} s; {reached}; the log ends at record {}",
        sum(|t| t.events),
        sum(|t| t.duplicates),
        sum(|t| t.late),
        sum(|t| t.dead_letters),
        crate::event::lsn_sequence(handles.progress.synced_lsn()),
    );
    for (name, totals) in &totals {
        let notice = handles
            .catalog
            .streams
            .get(*name)
            .and_then(|stream| disorder::notice(stream, totals));
        if let Some(text) = notice {
            eprintln!("weir: {text}");
        }
    }
}
