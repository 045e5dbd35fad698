//! Stopping a pipeline, as states in one place. Data flows out in its own direction: each stage ends
//! because the one before it has, and commits what it was given.
//!
//! | state | it ends once | sources | log's writer | operators | views |
//! |---|---|---|---|---|---|
//! | `Running` | a stop is requested | read | appends, syncs, acknowledges | apply frames | apply, commit when due |
//! | `SourcesEnding` | every source has returned | submit what they have read, then return | as before | as before | as before |
//! | `ServicesEnding` | maintenance and ticker have returned | gone; the intake rejects late requests with `Stopping` | appends or rejects the frames that waited for space | as before | as before |
//! | `LogEnding` | the writer has returned the log | gone | ends once no handle is left, or 2 s after the intake was closed: syncs what it has | apply what is committed | as before |
//! | `OperatorsEnding` | the operators have ended | gone | gone | apply the rest, save a snapshot, close the ring | as before |
//! | `ViewsEnding` | every view has ended | gone | gone | gone | apply the rest of the ring, commit everything, end |
//! | `BackupEnding` | no backup copies | gone | gone | gone | gone |
//! | `Stopped` | | | | | |
//!
//! **Catching up.** Views, or operators, that still read the log's past would hold a stop back for
//! as long as that takes. Only a bounded run that ends by itself ([`Ending::Complete`]) waits for it.
//! Otherwise [`Action::SkipCatchUp`] leaves the rest to the next start: operators save what they
//! have, a view commits what it has.
//!
//! **A full log.** A pull source waits for space, which might never come, and would not return. So
//! while sources end, a full log closes the intake ([`Event::LogFull`]): frames that wait are tried
//! once more, then rejected, and with each every later one of its source, so that no offset skips a
//! record.
//!
//! **A stage that fails** ends early, and releases what others wait for, whatever its state: the
//! writer closes the intake, and its channel of committed frames ends the operators; the operators
//! close the ring; a view leaves the ring. The supervisor sees a thread that ended, and stops: the
//! states are then the same, each with less to wait for. No backup is waited for after a failure.
//!
//! **A second signal** changes nothing: the first one has requested the stop, and the process
//! handles the others without ending. Only a restart is given up for it, once everything is stopped.
//!
//! **A crash**, or SIGKILL, in any state loses no record that was acknowledged: the log has it
//! synced since before it was. What views had not committed is replayed by the next start; after
//! `ViewsEnding` there is nothing to replay.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::{POLL, PartError, RuntimeError};
use crate::ingest::{Ingest, Intake};
use crate::sources::{SourceError, Stop};
use crate::threads;
use crate::views::ViewError;
use crate::wal::{Wal, WalError};

/// How a pipeline is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// A bounded run is over: views that read the log's past do so to its end.
    Complete,
    /// A bounded run is interrupted by a signal.
    Interrupted,
    /// A server stops.
    Serving,
    /// A server stops to start again: a source that had halted starts again too, so its error does
    /// not end the process.
    Restarting,
}

/// How far a shutdown is; see the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Running,
    SourcesEnding,
    ServicesEnding,
    LogEnding,
    OperatorsEnding,
    ViewsEnding,
    BackupEnding,
    Stopped,
}

/// What a state waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    StopRequested,
    /// A source still runs while the log accepts nothing.
    LogFull,
    SourcesEnded,
    ServicesEnded,
    WriterEnded,
    OperatorsEnded,
    ViewsEnded,
    /// As [`Event::ViewsEnded`], and writer, operators or a view failed.
    Failed,
    BackupEnded,
}

/// What a transition does to the parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// Ask sources, services and backups to return.
    RequestStop,
    /// Accept nothing more; callers that wait are rejected.
    CloseIntake,
    /// Leave what is unread of the log's past to the next start.
    SkipCatchUp,
    /// Drop the pipeline's handle of the log's writer, the last one.
    ReleaseWriter,
}

/// The state after an event, and what is due on the way; none where the event is impossible. Pure.
fn next(state: State, event: Event, ending: Ending) -> Option<(State, &'static [Action])> {
    use Action::{CloseIntake, ReleaseWriter, RequestStop, SkipCatchUp};
    let transition: (State, &'static [Action]) = match (state, event) {
        (State::Running, Event::StopRequested) => match ending {
            Ending::Interrupted => (State::SourcesEnding, &[SkipCatchUp, RequestStop]),
            _ => (State::SourcesEnding, &[RequestStop]),
        },
        (State::SourcesEnding, Event::LogFull) => (State::SourcesEnding, &[CloseIntake]),
        // Frames of a source that has ended may still wait for room in a full log.
        (State::SourcesEnding, Event::SourcesEnded) => (State::ServicesEnding, &[CloseIntake]),
        (State::ServicesEnding, Event::ServicesEnded) => match ending {
            Ending::Serving | Ending::Restarting => {
                (State::LogEnding, &[SkipCatchUp, ReleaseWriter])
            }
            Ending::Complete | Ending::Interrupted => (State::LogEnding, &[ReleaseWriter]),
        },
        (State::LogEnding, Event::WriterEnded) => (State::OperatorsEnding, &[]),
        (State::OperatorsEnding, Event::OperatorsEnded) => (State::ViewsEnding, &[]),
        (State::ViewsEnding, Event::ViewsEnded) => (State::BackupEnding, &[]),
        (State::ViewsEnding, Event::Failed) | (State::BackupEnding, Event::BackupEnded) => {
            (State::Stopped, &[])
        }
        _ => return None,
    };
    Some(transition)
}

/// The threads of a pipeline, and the flags by which they are stopped.
pub(super) struct Stages {
    /// The pipeline's own handle of the writer.
    pub ingest: Option<Ingest>,
    pub intake: Intake,
    pub skip_catch_up: Arc<AtomicBool>,
    pub retention_lock: Arc<Mutex<()>>,
    /// None once it has been waited for, as [`Self::operators`].
    pub writer: Option<JoinHandle<Result<Wal, WalError>>>,
    pub operators: Option<JoinHandle<Result<(), RuntimeError>>>,
    pub views: Vec<JoinHandle<Result<(), ViewError>>>,
}

/// A named thread of a source.
pub(super) type SourceThread = (String, JoinHandle<Result<(), SourceError>>);

/// What is stopped before the pipeline; empty where only the log is applied.
#[derive(Default)]
pub(super) struct Callers {
    /// Shared with sources, services and backups.
    pub stop: Stop,
    pub sources: Vec<SourceThread>,
    /// Maintenance and the ticker of idle sources.
    pub services: Vec<JoinHandle<()>>,
}

/// How everything ended.
pub(super) struct Stopped {
    /// The log; without it, the errors of writer, operators and views, at least one.
    pub wal: Result<Wal, Vec<PartError>>,
    /// Errors of halted sources, and of sources and services that panicked.
    pub halted: Vec<PartError>,
}

/// Stops everything and waits for it.
pub(super) fn run(callers: Callers, stages: Stages, ending: Ending) -> Stopped {
    let mut shutdown = Shutdown {
        callers,
        stages,
        wal: None,
        failures: Vec::new(),
        halted: Vec::new(),
    };
    let (mut state, mut happened) = (State::Running, Some(Event::StopRequested));
    while let Some((after, actions)) = happened.and_then(|event| next(state, event, ending)) {
        tracing::debug!(?state, ?happened, ?after, "stopping");
        actions.iter().for_each(|action| shutdown.act(*action));
        state = after;
        happened = shutdown.wait(state);
    }
    let mut failures = shutdown.failures;
    let wal = match shutdown.wal {
        Some(wal) if failures.is_empty() => Ok(wal),
        _ => {
            if failures.is_empty() {
                let text = format!("the stop ended as {state:?}");
                failures.push(PartError::new("log", RuntimeError::Failed(text)));
            }
            Err(failures)
        }
    };
    Stopped {
        wal,
        halted: shutdown.halted,
    }
}

/// A shutdown under way.
struct Shutdown {
    callers: Callers,
    stages: Stages,
    wal: Option<Wal>,
    /// Errors of writer, operators and views.
    failures: Vec<PartError>,
    halted: Vec<PartError>,
}

impl Shutdown {
    fn act(&mut self, action: Action) {
        match action {
            Action::RequestStop => self.callers.stop.request(),
            Action::CloseIntake => self.stages.intake.close(),
            Action::SkipCatchUp => self.stages.skip_catch_up.store(true, Ordering::Release),
            Action::ReleaseWriter => drop(self.stages.ingest.take()),
        }
    }

    /// Waits for what ends the state; none in the last one.
    fn wait(&mut self, state: State) -> Option<Event> {
        match state {
            State::Running => Some(Event::StopRequested),
            State::SourcesEnding => Some(self.wait_for_sources()),
            State::ServicesEnding => Some(self.wait_for_services()),
            State::LogEnding => {
                if let Some(writer) = self.stages.writer.take() {
                    self.wal = self.join("log", writer);
                }
                Some(Event::WriterEnded)
            }
            State::OperatorsEnding => {
                if let Some(operators) = self.stages.operators.take() {
                    self.join("operators", operators);
                }
                Some(Event::OperatorsEnded)
            }
            State::ViewsEnding => Some(self.wait_for_views()),
            State::BackupEnding => {
                // A backup stops at its next file; until then the folder stays locked.
                drop(self.stages.retention_lock.lock());
                Some(Event::BackupEnded)
            }
            State::Stopped => None,
        }
    }

    fn wait_for_sources(&mut self) -> Event {
        let (sources, intake) = (&mut self.callers.sources, &self.stages.intake);
        while sources.iter().any(|(_, thread)| !thread.is_finished()) {
            if intake.full().is_some() && !intake.is_closed() {
                return Event::LogFull;
            }
            std::thread::sleep(POLL);
        }
        for (name, thread) in std::mem::take(sources) {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.halt(
                    &format!("source/{name}"),
                    format!("source `{name}`: {error}"),
                ),
                Err(panic) => {
                    let name = format!("source/{name}");
                    self.halt(&name, threads::describe(&name, &*panic));
                }
            }
        }
        Event::SourcesEnded
    }

    fn wait_for_services(&mut self) -> Event {
        for thread in std::mem::take(&mut self.callers.services) {
            let name = name_of(&thread);
            if let Err(panic) = thread.join() {
                self.halt(&name, threads::describe(&name, &*panic));
            }
        }
        Event::ServicesEnded
    }

    fn wait_for_views(&mut self) -> Event {
        for view in std::mem::take(&mut self.stages.views) {
            let part = format!("view/{}", name_of(&view));
            self.join(&part, view);
        }
        if self.failures.is_empty() {
            Event::ViewsEnded
        } else {
            Event::Failed
        }
    }

    fn halt(&mut self, part: &str, text: String) {
        self.halted
            .push(PartError::new(part, RuntimeError::Failed(text)));
    }

    /// What a thread of the pipeline returns; none if it failed.
    fn join<T, E>(&mut self, part: &str, thread: JoinHandle<Result<T, E>>) -> Option<T>
    where
        RuntimeError: From<E>,
    {
        let name = name_of(&thread);
        let error = match thread.join() {
            Ok(Ok(value)) => return Some(value),
            Ok(Err(error)) => error.into(),
            Err(panic) => RuntimeError::Failed(threads::describe(&name, &*panic)),
        };
        self.failures.push(PartError::new(part, error));
        None
    }
}

fn name_of<T>(thread: &JoinHandle<T>) -> String {
    thread.thread().name().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::Action::{CloseIntake, ReleaseWriter, RequestStop, SkipCatchUp};
    use super::*;

    const ENDINGS: [Ending; 4] = [
        Ending::Complete,
        Ending::Interrupted,
        Ending::Serving,
        Ending::Restarting,
    ];
    const STATES: [State; 8] = [
        State::Running,
        State::SourcesEnding,
        State::ServicesEnding,
        State::LogEnding,
        State::OperatorsEnding,
        State::ViewsEnding,
        State::BackupEnding,
        State::Stopped,
    ];
    const EVENTS: [Event; 9] = [
        Event::StopRequested,
        Event::LogFull,
        Event::SourcesEnded,
        Event::ServicesEnded,
        Event::WriterEnded,
        Event::OperatorsEnded,
        Event::ViewsEnded,
        Event::Failed,
        Event::BackupEnded,
    ];
    /// What happens in a shutdown without a failure, in a log with space.
    const REGULAR: [Event; 7] = [
        Event::StopRequested,
        Event::SourcesEnded,
        Event::ServicesEnded,
        Event::WriterEnded,
        Event::OperatorsEnded,
        Event::ViewsEnded,
        Event::BackupEnded,
    ];

    /// The states and actions of events, from the beginning.
    fn follow(events: &[Event], ending: Ending) -> (Vec<State>, Vec<Action>) {
        let (mut states, mut done) = (vec![State::Running], Vec::new());
        for event in events {
            let state = *states.last().expect("it begins");
            let (after, actions) = next(state, *event, ending).expect("possible");
            states.push(after);
            done.extend_from_slice(actions);
        }
        (states, done)
    }

    #[test]
    fn the_stages_end_in_the_order_in_which_data_flows() {
        for (ending, actions) in [
            (
                Ending::Complete,
                vec![RequestStop, CloseIntake, ReleaseWriter],
            ),
            (
                Ending::Interrupted,
                vec![SkipCatchUp, RequestStop, CloseIntake, ReleaseWriter],
            ),
            (
                Ending::Serving,
                vec![RequestStop, CloseIntake, SkipCatchUp, ReleaseWriter],
            ),
            (
                Ending::Restarting,
                vec![RequestStop, CloseIntake, SkipCatchUp, ReleaseWriter],
            ),
        ] {
            assert_eq!(follow(&REGULAR, ending), (STATES.to_vec(), actions));
        }
    }

    #[test]
    fn a_full_log_closes_the_intake_while_sources_end_and_a_failure_skips_the_backup() {
        let events = [Event::StopRequested, Event::LogFull, Event::SourcesEnded];
        let (states, actions) = follow(&events, Ending::Complete);
        assert_eq!(states[2..], [State::SourcesEnding, State::ServicesEnding]);
        assert_eq!(actions, [RequestStop, CloseIntake, CloseIntake]);
        let mut events = REGULAR[..5].to_vec();
        events.push(Event::Failed);
        let (states, _) = follow(&events, Ending::Serving);
        assert_eq!(states.last(), Some(&State::Stopped));
    }

    #[test]
    fn no_transition_leads_back_and_others_than_these_are_impossible() {
        for ending in ENDINGS {
            let mut possible = 0;
            for state in STATES {
                for event in EVENTS {
                    if let Some((after, _)) = next(state, event, ending) {
                        assert!(
                            after > state || event == Event::LogFull,
                            "{state:?} {event:?}"
                        );
                        possible += 1;
                    }
                }
            }
            assert_eq!(possible, REGULAR.len() + 2, "{ending:?}");
        }
    }
}
