//! The thread of one sink: reads a delivery, writes it, stores the cursor; tries again with a
//! growing delay while the target cannot be reached.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::command::{self, Command, CommandError, Control};
use super::cursor::{Cursor, SinkState, Start, StateFolder, StoredCursor};
use super::dead_letters::DeadLetters;
use super::reader::{Delivery, KnownLosses, Reader, dropped};
use super::table::SinkTable;
use super::{SinkError, Target, TargetContext, lock};
use crate::clock::Clock;
use crate::config::{Sink, SinkStart};
use crate::event::{Lsn, SharedSinkHealth, SinkState as Doing};
use crate::query::Handles;
use crate::sources::Stop;
use crate::views::LogIdentity;

/// How often a sink that has everything looks for more.
const POLL: Duration = Duration::from_millis(20);
/// How often one that is paused or halted looks for a command.
const IDLE_POLL: Duration = Duration::from_millis(100);
const MIN_RETRY_DELAY: Duration = Duration::from_millis(200);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(30);
/// A cursor that moved without rows is stored this often.
const STORE_INTERVAL: Duration = Duration::from_secs(10);

/// What a sink works with.
pub struct SinkContext {
    /// As configured.
    pub sink: Sink,
    /// Its tables, and how far the log is.
    pub handles: Handles,
    /// The log of the data folder.
    pub log: LogIdentity,
    /// Where it ended before sources added to it.
    pub log_end: Lsn,
    /// The folder of its state.
    pub folder: StateFolder,
    /// The request to end.
    pub stop: Stop,
    /// For delays.
    pub clock: Arc<dyn Clock>,
    /// For status and metrics.
    pub health: SharedSinkHealth,
    /// Commands to it.
    pub control: Arc<Control>,
}

/// Delivers until it is asked to stop. What goes wrong is in the sink's health.
pub fn run(context: SinkContext) {
    let (stop, health) = (context.stop.clone(), context.health.clone());
    let name = context.sink.name.clone();
    match Worker::open(context) {
        Ok(mut worker) => {
            while !stop.is_requested() {
                worker.turn();
            }
            worker.store_cursor();
        }
        Err(error) => {
            let error = format!("{error}; repair the cause and restart weir");
            tracing::error!(sink = name, error, "the sink has halted");
            let mut health = lock(&health);
            health.state = Doing::Halted;
            health.last_error = Some(error);
        }
    }
}

/// Of a sink that never ran, where the log ends at `end`.
pub fn first_state(sink: &Sink, log: LogIdentity, end: Lsn) -> SinkState {
    let lsn = match sink.start {
        SinkStart::Earliest => log.start_lsn,
        SinkStart::Latest => end,
    };
    SinkState {
        start: Start::New,
        ..SinkState::new(Cursor::at(log.id, 0, lsn))
    }
}

/// What a worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// Until this time of the clock.
    Retrying(Duration),
    Paused,
    Halted,
}

impl Phase {
    fn state(self) -> Doing {
        match self {
            Self::Running => Doing::Running,
            Self::Retrying(_) => Doing::Retrying,
            Self::Paused => Doing::Paused,
            Self::Halted => Doing::Halted,
        }
    }
}

/// Delays that double.
struct Backoff(Duration);

impl Backoff {
    fn next(&mut self) -> Duration {
        let delay = self.0;
        self.0 = (delay * 2).min(MAX_RETRY_DELAY);
        // Up to half as long again, so that sinks of one target do not come together.
        delay + delay.mul_f64(rand::random::<f64>() / 2.0)
    }

    fn reset(&mut self) {
        self.0 = MIN_RETRY_DELAY;
    }
}

struct Worker {
    context: SinkContext,
    target: Box<dyn Target>,
    reader: Reader,
    state: SinkState,
    stored: SinkState,
    stored_at: Duration,
    is_open: bool,
    /// Where the log ended when the process started; none once the sink was opened.
    first_end: Option<Lsn>,
    phase: Phase,
    backoff: Backoff,
}

impl Worker {
    fn open(context: SinkContext) -> Result<Self, SinkError> {
        let (sink, handles, log) = (&context.sink, &context.handles, context.log);
        let missing =
            |name: &String| SinkError::Halted(format!("the table `{name}` does not exist"));
        let find = |name: &String| SinkTable::find(handles, name).ok_or_else(|| missing(name));
        let tables: Vec<SinkTable> = sink.from.iter().map(find).collect::<Result<_, _>>()?;
        let stored = context.folder.load()?;
        let mut state = stored.unwrap_or_else(|| first_state(sink, log, context.log_end));
        // Stored before the target answers: what retention removes from now on is missed.
        state.known_dropped.get_or_insert_with(|| dropped(&tables));
        context.folder.store(&state)?;
        let dead_letters = DeadLetters::open(context.folder.clone(), context.health.clone())?;
        let target = super::target(
            &sink.kind,
            TargetContext {
                name: sink.name.clone(),
                log: log.id,
                tables: tables.clone(),
                dead_letters,
                sql: handles.catalog.sql,
                stop: context.stop.clone(),
                clock: context.clock.clone(),
            },
        )?;
        let is_paused = state.is_paused;
        let first_end = Some(context.log_end);
        let mut worker = Self {
            reader: Reader::new(tables, target.order(), target.extends()),
            target,
            stored: state.clone(),
            stored_at: context.clock.monotonic(),
            state,
            context,
            is_open: false,
            first_end,
            phase: Phase::Running,
            backoff: Backoff(MIN_RETRY_DELAY),
        };
        worker.enter(if is_paused {
            Phase::Paused
        } else {
            Phase::Running
        });
        Ok(worker)
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        let mut health = lock(&self.context.health);
        health.state = phase.state();
        health.lsn = self.state.cursor.lsn;
    }

    /// One step: a command, a delivery, or waiting.
    fn turn(&mut self) {
        if let Some((command, answer)) = self.context.control.take() {
            // Who asked may have gone.
            let _ = answer.send(self.carry_out(command));
            return;
        }
        let stop = &self.context.stop;
        match self.phase {
            Phase::Paused | Phase::Halted => drop(stop.wait(IDLE_POLL)),
            Phase::Retrying(until) if self.context.clock.monotonic() < until => {
                stop.wait(IDLE_POLL);
            }
            Phase::Retrying(_) | Phase::Running => match self.deliver() {
                Ok(true) => self.succeeded(),
                Ok(false) => {
                    self.succeeded();
                    self.context.stop.wait(POLL);
                }
                // A target that was interrupted has not failed.
                Err(_) if self.context.stop.is_requested() => {}
                Err(error) => self.failed(&error),
            },
        }
    }

    fn succeeded(&mut self) {
        if self.phase != Phase::Running {
            tracing::info!(sink = self.context.sink.name, "the sink delivers again");
            self.backoff.reset();
        }
        // It is over, and the log of the process has it.
        lock(&self.context.health).last_error = None;
        self.enter(Phase::Running);
    }

    fn failed(&mut self, error: &SinkError) {
        // Whatever the target has of a transaction is undone by opening it again.
        self.is_open = false;
        let name = &self.context.sink.name;
        {
            let mut health = lock(&self.context.health);
            health.retries += 1;
            health.last_error = Some(error.to_string());
        }
        match error {
            SinkError::Halted(_) => {
                tracing::error!(sink = name, %error, "the sink has halted");
                self.enter(Phase::Halted);
            }
            SinkError::Unavailable(_) => {
                // Only the first failure is worth a warning.
                if self.phase == Phase::Running {
                    tracing::warn!(sink = name, %error, "the sink cannot deliver; it tries again");
                } else {
                    tracing::debug!(sink = name, %error, "the sink cannot deliver");
                }
                let until = self.context.clock.monotonic() + self.backoff.next();
                self.enter(Phase::Retrying(until));
            }
        }
    }

    /// Whether there was something to deliver.
    fn deliver(&mut self) -> Result<bool, SinkError> {
        if !self.is_open {
            self.open_target()?;
        }
        let nothing = BTreeMap::new();
        let known = KnownLosses {
            dropped: self.state.known_dropped.as_ref().unwrap_or(&nothing),
            floors: &self.state.floors,
        };
        let (cursor, stop) = (&self.state.cursor, &self.context.stop);
        let Some(mut delivery) = self.reader.next_delivery(cursor, &known, stop)? else {
            return Ok(false);
        };
        if !delivery.is_empty() {
            self.target.deliver(&mut delivery)?;
        }
        self.delivered(&delivery)?;
        Ok(true)
    }

    /// Connects to the target, and takes the cursor from where it counts.
    fn open_target(&mut self) -> Result<(), SinkError> {
        self.check_tables()?;
        let mut state = self.state.clone();
        let (cursor, start) = (state.cursor, state.start);
        self.check_log(cursor)?;
        let stored = StoredCursor { cursor, start };
        let known = self.target.look(stored)?;
        self.check_log(known)?;
        state.cursor = self.target.open(stored)?;
        if start == Start::New && state.cursor != cursor {
            // The state was removed: what retention has taken since the target's cursor is unknown.
            let known = state.known_dropped.iter_mut().flatten();
            known.for_each(|(_, dropped)| *dropped = 0);
        }
        state.start = Start::Continued;
        self.state.cursor = state.cursor;
        self.check_log(state.cursor)?;
        if start != Start::Continued {
            // Stored before the target gets a cursor of the new epoch, which then counts.
            self.context.folder.store(&state)?;
            self.state = state.clone();
            self.stored = state;
        }
        self.is_open = true;
        self.first_end = None;
        Ok(())
    }

    /// Refuses to skip what a table had before it was added to a sink.
    fn check_tables(&self) -> Result<(), SinkError> {
        let known = self.state.known_dropped.iter().flatten();
        let known: BTreeSet<&String> = known.map(|(name, _)| name).collect();
        let Some(added) = self.context.sink.from.iter().find(|t| !known.contains(t)) else {
            return Ok(());
        };
        Err(SinkError::Halted(format!(
            "the table `{added}` was added after the sink had delivered up to {}, so its older rows were not sent: `weir sinks reset NAME --from earliest` sends all rows (again), `weir sinks resume NAME` continues without them",
            self.state.cursor.lsn
        )))
    }

    fn delivered(&mut self, delivery: &Delivery) -> Result<(), SinkError> {
        self.state.cursor = delivery.next_cursor();
        let floors = delivery.floors().iter().copied();
        self.state.floors = self.context.sink.from.iter().cloned().zip(floors).collect();
        lock(&self.context.health).rows += delivery.rows_read();
        let is_due = self.context.clock.monotonic() >= self.stored_at + STORE_INTERVAL;
        if delivery.rows_read() > 0 || is_due {
            self.store()?;
        }
        Ok(())
    }

    /// Refuses to continue where the cursor is not one of this log. When the sink is opened first,
    /// the log must have its records already: what sources add later are other ones.
    fn check_log(&mut self, cursor: Cursor) -> Result<(), SinkError> {
        const RESET: &str =
            "continue by `weir sinks reset NAME --from earliest`, or `--from latest`";
        if cursor.log != self.context.log.id {
            return Err(SinkError::Halted(format!(
                "its cursor belongs to another log than that of this data folder; {RESET}"
            )));
        }
        let end = self.first_end.unwrap_or_else(|| self.log_end());
        let reached = cursor.scan.map_or(cursor.lsn, |scan| scan.to);
        if reached > end && !self.state.must_reset {
            (self.state.cursor, self.state.must_reset) = (cursor, true);
            self.store()?;
        }
        if self.state.must_reset {
            return Err(SinkError::Halted(format!(
                "it has delivered records up to {reached} that the log did not have: the data folder is probably an older backup; {RESET}"
            )));
        }
        Ok(())
    }

    fn log_end(&self) -> Lsn {
        self.context.handles.progress.synced_lsn()
    }

    fn carry_out(&mut self, command: Command) -> Result<(), CommandError> {
        let end = self.context.handles.progress.synced_lsn();
        let (tables, log) = (&self.context.sink.from, self.context.log);
        let mut state = command::apply(&self.state, command, tables, log, end)?;
        state
            .known_dropped
            .get_or_insert_with(|| self.reader.dropped());
        if let Command::Resume {
            discard_dead_letters: true,
        } = command
        {
            DeadLetters::discard_in(&self.context.folder, &self.context.health)?;
        }
        if let Command::Reset(_) = command {
            self.first_end = None;
        }
        // A cursor of an older epoch in the target no longer counts.
        self.is_open &= state.cursor == self.state.cursor;
        self.state = state;
        self.store()?;
        self.backoff.reset();
        self.enter(if self.state.is_paused {
            Phase::Paused
        } else {
            Phase::Running
        });
        Ok(())
    }

    fn store(&mut self) -> Result<(), SinkError> {
        self.context.folder.store(&self.state)?;
        self.stored = self.state.clone();
        self.stored_at = self.context.clock.monotonic();
        Ok(())
    }

    /// Before the thread ends: a cursor that is not stored only makes the next start read more.
    fn store_cursor(&mut self) {
        if self.stored != self.state
            && let Err(error) = self.store()
        {
            tracing::warn!(sink = self.context.sink.name, %error, "the cursor was not stored");
        }
    }
}
