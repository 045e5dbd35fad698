//! The threads of the configured sinks, and the commands to them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::context::FolderContext;
use super::{PartError, Running, RuntimeError};
use crate::config::{Config, Sink};
use crate::event::{Lsn, SharedSinkHealth, SinkHealth, SinkState};
use crate::query::Handles;
use crate::sinks::{Command, CommandError, Control, DeadLetters, SinkContext, StateFolder};
use crate::threads::panic_if_asked;

/// How often a run that ends looks whether the sinks have everything.
const POLL: Duration = Duration::from_millis(20);

/// Commands to the sinks that run; a clone is cheap.
#[derive(Clone, Default)]
pub struct SinkControls(Arc<BTreeMap<String, Arc<Control>>>);

/// Why a command to a sink fails.
#[derive(Debug, thiserror::Error)]
pub enum SinkCommandError {
    /// No sink has the name.
    #[error("the sink `{name}` does not exist; available: {available}")]
    Unknown { name: String, available: String },
    /// The sink did not carry it out.
    #[error(transparent)]
    Failed(#[from] CommandError),
}

impl SinkControls {
    /// For the sinks of a configuration.
    pub(super) fn new(config: &Config) -> Self {
        let names = config.sinks.iter().map(|sink| sink.name.clone());
        Self(Arc::new(names.map(|name| (name, Arc::default())).collect()))
    }

    /// Waits until the sink has carried the command out.
    pub fn send(&self, name: &str, command: Command) -> Result<(), SinkCommandError> {
        let control = self.0.get(name).ok_or_else(|| SinkCommandError::Unknown {
            name: name.to_owned(),
            available: self.names(),
        })?;
        Ok(control.send(command)?)
    }

    fn names(&self) -> String {
        if self.0.is_empty() {
            return "none, as the configuration declares no sink".into();
        }
        self.0.keys().cloned().collect::<Vec<_>>().join(", ")
    }
}

impl Running {
    /// Starts every sink at its cursor.
    /// `log_end` is where the log ended before sources added to it.
    pub(super) fn start_sinks(&mut self, config: &Config, log_end: Lsn) {
        let mut healths = BTreeMap::new();
        for sink in &config.sinks {
            let health = health_of(sink);
            healths.insert(sink.name.clone(), health.clone());
            let control = self.sink_controls.0.get(&sink.name);
            let context = SinkContext {
                sink: sink.clone(),
                handles: self.handles.clone(),
                log: self.log,
                log_end,
                folder: StateFolder::new(&self.folder.sinks(), &sink.name),
                stop: self.stop.clone(),
                clock: self.clock.clone(),
                health,
                control: control.cloned().unwrap_or_default(),
            };
            let thread = self.start_sink(context);
            self.sinks.push(thread);
        }
        self.handles.progress.set_sinks(healths);
    }

    fn start_sink(&self, context: SinkContext) -> JoinHandle<()> {
        let (watch, name) = (self.panics.watch(), format!("sink/{}", context.sink.name));
        std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                let _watch = watch;
                panic_if_asked(&name);
                crate::sinks::run(context);
            })
            .expect("the system can start a thread")
    }

    /// Commands to the sinks.
    pub fn sink_controls(&self) -> SinkControls {
        self.sink_controls.clone()
    }

    /// Waits until every sink has delivered all records of the log, except those that are paused.
    /// Returns those that are not there after `timeout`, with the reasons.
    pub fn wait_for_sinks(
        &self,
        timeout: Duration,
        is_interrupted: impl Fn() -> bool,
    ) -> Vec<PartError> {
        let (started, end) = (Instant::now(), self.handles.progress.synced_lsn());
        loop {
            let behind = behind(&self.handles, end);
            let may_come = behind.iter().any(|(_, health)| {
                matches!(health.state, SinkState::Running | SinkState::Retrying)
            });
            let is_over = started.elapsed() >= timeout || is_interrupted() || self.has_failed();
            if behind.is_empty() {
                return Vec::new();
            }
            if !may_come || is_over {
                let error = |(name, health): &(String, SinkHealth)| {
                    let text = describe(name, health, end);
                    PartError::new(&format!("sink/{name}"), RuntimeError::Failed(text))
                };
                return behind.iter().map(error).collect();
            }
            std::thread::sleep(POLL);
        }
    }
}

fn health_of(sink: &Sink) -> SharedSinkHealth {
    let health = SinkHealth {
        kind: sink.kind.name(),
        tables: sink.from.clone(),
        ..SinkHealth::default()
    };
    Arc::new(std::sync::Mutex::new(health))
}

/// The sinks that have not delivered everything up to a record and were not paused; one that has
/// halted has not, wherever its cursor is: it may be one of records that this log does not have.
fn behind(handles: &Handles, end: Lsn) -> Vec<(String, SinkHealth)> {
    let sinks = handles.progress.sinks().into_iter();
    let is_behind = |health: &SinkHealth| match health.state {
        SinkState::Paused => false,
        SinkState::Halted => true,
        SinkState::Running | SinkState::Retrying => health.lsn < end,
    };
    sinks.filter(|(_, health)| is_behind(health)).collect()
}

fn describe(name: &str, health: &SinkHealth, end: Lsn) -> String {
    let state = health.state.name();
    let lag = end.saturating_sub(health.lsn);
    match &health.last_error {
        Some(error) => format!("sink `{name}` is {state}, {lag} records behind: {error}"),
        None => format!("sink `{name}` is {state}, {lag} records behind"),
    }
}

/// Carries a command out where no process works on the folder.
pub(crate) fn command_offline(
    config: &Config,
    runtime: &tokio::runtime::Handle,
    name: &str,
    command: Command,
) -> Result<(), RuntimeError> {
    let context = FolderContext::existing(config, runtime)?;
    let _lock = context.folder.lock()?;
    let Some(sink) = config.sinks.iter().find(|sink| sink.name == name) else {
        let unknown = SinkCommandError::Unknown {
            name: name.to_owned(),
            available: SinkControls::new(config).names(),
        };
        return Err(RuntimeError::Config(unknown.to_string()));
    };
    let failed =
        |error: &dyn std::fmt::Display| RuntimeError::Failed(format!("sink `{name}`: {error}"));
    let log = context
        .log()?
        .ok_or_else(|| failed(&"the data folder holds no data yet; start `weir run` first"))?;
    let end = context.peek()?.last_lsn;
    let folder = StateFolder::new(&context.folder.sinks(), name);
    let state = match folder.load().map_err(|e| failed(&e))? {
        Some(state) => state,
        None => crate::sinks::first_state(sink, log, end),
    };
    let state =
        crate::sinks::apply(&state, command, &sink.from, log, end).map_err(|e| failed(&e))?;
    if let Command::Resume {
        discard_dead_letters: true,
    } = command
    {
        DeadLetters::discard_in(&folder, &health_of(sink)).map_err(|e| failed(&e))?;
    }
    folder.store(&state).map_err(|e| failed(&e))
}

/// The sinks as their files say, where no process works on the folder.
pub(super) fn stored(
    config: &Config,
    sinks: &std::path::Path,
) -> BTreeMap<String, SharedSinkHealth> {
    let health = |sink: &Sink| {
        let (health, folder) = (health_of(sink), StateFolder::new(sinks, &sink.name));
        {
            let mut health = health
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            match folder.load() {
                Ok(Some(state)) => {
                    health.lsn = state.cursor.lsn;
                    health.state = if state.is_paused {
                        SinkState::Paused
                    } else {
                        SinkState::Running
                    };
                }
                Ok(None) => {}
                Err(error) => health.last_error = Some(error.to_string()),
            }
            health.refused = crate::sinks::load_dead_letters(&folder).unwrap_or_default();
        }
        (sink.name.clone(), health)
    };
    config.sinks.iter().map(health).collect()
}
