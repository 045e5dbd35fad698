//! The threads of the configured sources, and the ticker of their idleness.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;

use super::idle_ticker::{Connected, Ticker};
use super::pipeline::Resume;
use super::{Running, RuntimeError, sort_space};
use crate::clock::Clock;
use crate::config::{Config, Source, SourceKind};
use crate::event::{SharedHealth, SourceState};
use crate::ingest::IngestError;
use crate::sources::{self, SourceError};
use crate::threads::panic_if_asked;

/// All sources of Kafka together use this part of the queues' share of the memory.
const QUEUES_PART: usize = 4;

/// The name of the source of POSTs.
const HTTP: &str = "http";

impl Running {
    /// Starts every source where its partitions were acknowledged, then the ticker.
    pub(super) fn start_sources(
        &mut self,
        config: &Config,
        resume: &Resume,
    ) -> Result<(), RuntimeError> {
        let is_serving = !self.options.once;
        let mut connected =
            Connected::from([(HTTP.to_owned(), Arc::new(AtomicBool::new(is_serving)))]);
        let mut healths = BTreeMap::new();
        let fetch_bytes = fetch_bytes(config);
        for (position, source) in config.sources.iter().enumerate() {
            let context = self.source_context(config, position, resume)?;
            connected.insert(source.name.clone(), context.is_connected.clone());
            healths.insert(source.name.clone(), context.health.clone());
            let thread = self.start_source(source, context, fetch_bytes);
            self.sources.push((source.name.clone(), thread));
        }
        self.handles.progress.set_sources(healths);
        let ticker = Ticker {
            ingest: self.ingest()?,
            progress: self.handles.progress.clone(),
            connected,
            stop: self.stop.clone(),
        };
        self.ticks = Some(ticker.start(self.panics.watch()));
        Ok(())
    }

    /// What the source at a position of the configuration works with.
    fn source_context(
        &self,
        config: &Config,
        position: usize,
        resume: &Resume,
    ) -> Result<sources::Context, RuntimeError> {
        let source = &config.sources[position];
        let ring = self.pipeline.ring.clone();
        Ok(sources::Context {
            name: source.name.clone(),
            stream: source.stream.clone(),
            ingest: self.ingest()?,
            stop: self.stop.clone(),
            once: self.options.once,
            record_limits: sources::RecordLimits {
                max_bytes: config.limits.record,
                truncated_bytes: config.limits.dead_letter,
            },
            body_bytes: config.limits.body,
            wait_for_room: Arc::new(move |time| ring.wait_for_room(time)),
            is_connected: Arc::new(AtomicBool::new(false)),
            unwrap: source.unwrap.clone(),
            health: SharedHealth::default(),
            sort_space: sort_space::of_source(config, &self.folder, position),
            partitions: resume
                .partitions
                .iter()
                .filter(|(id, _)| *id.source == *source.name)
                .map(|(id, state)| (id.partition.to_string(), state.clone()))
                .collect(),
            seen: resume
                .seen
                .iter()
                .filter(|(id, _)| *id.source == *source.name)
                .flat_map(|(_, seen)| seen.iter())
                .collect(),
        })
    }

    fn start_source(
        &self,
        source: &Source,
        context: sources::Context,
        fetch_bytes: usize,
    ) -> JoinHandle<Result<(), SourceError>> {
        let (kind, clock, watch) = (source.kind.clone(), self.clock.clone(), self.panics.watch());
        let kafka = sources::kafka::Settings {
            fetch_bytes,
            accepted_resets: self.options.accepted_resets.clone(),
        };
        std::thread::Builder::new()
            .name(format!("source/{}", source.name))
            .spawn(move || {
                let _watch = watch;
                panic_if_asked(&format!("source/{}", context.name));
                report_halt(&context, run(&kind, &context, kafka, &*clock))
            })
            .expect("the system can start a thread")
    }
}

fn run(
    kind: &SourceKind,
    context: &sources::Context,
    kafka: sources::kafka::Settings,
    clock: &dyn Clock,
) -> Result<(), SourceError> {
    match kind {
        SourceKind::File(def) if def.is_stdin() => sources::stdin::run(context, clock),
        SourceKind::File(def) => sources::file::run(context, def, clock),
        SourceKind::WebSocket { url } => sources::websocket::run(context, url, clock),
        SourceKind::HttpStream(def) => sources::http::stream::run(context, def, clock),
        SourceKind::HttpPoll(def) => sources::http::poll::run(context, def, clock),
        SourceKind::Kafka(def) => sources::kafka::run(context, def, kafka, clock),
    }
}

/// Memory in which one source of Kafka fetches ahead: all of them together have a part of the
/// queues' share.
fn fetch_bytes(config: &Config) -> usize {
    let is_kafka = |source: &&Source| matches!(source.kind, SourceKind::Kafka(_));
    let sources = config.sources.iter().filter(is_kafka).count();
    config.limits.shares().queues / QUEUES_PART / sources.max(1)
}

/// Publishes why a source ended early, if it did.
fn report_halt(
    context: &sources::Context,
    result: Result<(), SourceError>,
) -> Result<(), SourceError> {
    match result {
        // It was waiting for room in the log when everything stopped; it resumes from what was
        // acknowledged.
        Err(SourceError::Ingest(IngestError::Stopping | IngestError::NoSpace { .. }))
            if context.stop.is_requested() =>
        {
            Ok(())
        }
        Err(error) => {
            let remedy = "repair the cause and restart weir";
            tracing::error!(source = context.name, %error, "the source has halted; {remedy}");
            context.set_state(SourceState::Halted, Some(format!("{error}; {remedy}")));
            Err(error)
        }
        Ok(()) => Ok(()),
    }
}
