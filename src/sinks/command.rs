//! What a sink can be asked to do, and what that does to its state.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use super::cursor::{Cursor, SinkState, Start};
use super::{SinkError, lock_of};
use crate::event::Lsn;
use crate::views::LogIdentity;

/// How long a command waits for an attempt to end.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_COMMANDS: usize = 16;

/// What a sink is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// To stop delivering.
    Pause,
    /// To continue, also after it has halted.
    Resume {
        /// Whether its refused rows are removed.
        discard_dead_letters: bool,
    },
    /// To continue after this record.
    Reset(ResetTo),
}

/// Where a sink is reset to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetTo {
    /// Before the first record.
    Earliest,
    /// After the last record.
    Latest,
    /// After this record.
    Lsn(Lsn),
}

/// A text that does not say where a sink is reset to.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}`: write \"earliest\", \"latest\" or the LSN of a record")]
pub struct InvalidReset(String);

impl fmt::Display for ResetTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Earliest => f.write_str("earliest"),
            Self::Latest => f.write_str("latest"),
            Self::Lsn(lsn) => write!(f, "{lsn}"),
        }
    }
}

impl FromStr for ResetTo {
    type Err = InvalidReset;

    fn from_str(text: &str) -> Result<Self, InvalidReset> {
        match text {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            lsn => lsn
                .parse()
                .map(Self::Lsn)
                .map_err(|_| InvalidReset(lsn.to_owned())),
        }
    }
}

/// Why a command was not carried out.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommandError {
    #[error("the sink has too many commands waiting; try again later")]
    TooMany,
    #[error(
        "the sink has not answered yet; it carries the command out once its present delivery has ended"
    )]
    NoAnswer,
    #[error("record {lsn} is not in the log, which ends at {end}")]
    NotInLog { lsn: Lsn, end: Lsn },
    #[error(transparent)]
    Failed(#[from] SinkError),
}

type Waiting = (Command, SyncSender<Result<(), CommandError>>);

/// Takes commands to a sink's thread.
#[derive(Default)]
pub struct Control(Mutex<VecDeque<Waiting>>);

impl Control {
    /// Waits until the sink has carried it out.
    pub fn send(&self, command: Command) -> Result<(), CommandError> {
        self.push(command)?
            .recv_timeout(COMMAND_TIMEOUT)
            .unwrap_or(Err(CommandError::NoAnswer))
    }

    fn push(&self, command: Command) -> Result<Receiver<Result<(), CommandError>>, CommandError> {
        let (answer, answered) = sync_channel(1);
        let mut waiting = lock_of(&self.0);
        if waiting.len() >= MAX_COMMANDS {
            return Err(CommandError::TooMany);
        }
        waiting.push_back((command, answer));
        Ok(answered)
    }

    pub(super) fn take(&self) -> Option<Waiting> {
        lock_of(&self.0).pop_front()
    }
}

/// The state of a sink of these tables after a command, where the log ends at `end`. Pure.
pub fn apply(
    state: &SinkState,
    command: Command,
    tables: &[String],
    log: LogIdentity,
    end: Lsn,
) -> Result<SinkState, CommandError> {
    let paused = |is_paused| SinkState {
        is_paused,
        ..state.clone()
    };
    let lsn = match command {
        Command::Pause => return Ok(paused(true)),
        Command::Resume { .. } => {
            let mut resumed = paused(false);
            // Of a table that was added, what is below the cursor is not missed.
            if let Some(known) = &mut resumed.known_dropped {
                for table in tables {
                    known.entry(table.clone()).or_default();
                }
            }
            return Ok(resumed);
        }
        Command::Reset(ResetTo::Earliest) => log.start_lsn,
        Command::Reset(ResetTo::Latest) => end,
        Command::Reset(ResetTo::Lsn(lsn)) if (log.start_lsn..=end).contains(&lsn) => lsn,
        Command::Reset(ResetTo::Lsn(lsn)) => return Err(CommandError::NotInLog { lsn, end }),
    };
    Ok(SinkState {
        is_paused: state.is_paused,
        start: Start::Reset,
        ..SinkState::new(Cursor::at(log.id, state.cursor.epoch + 1, lsn))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_begins_an_epoch_and_leaves_a_sink_paused() {
        let log = LogIdentity {
            instance: 0,
            id: 7,
            start_lsn: 0,
        };
        let state = SinkState {
            is_paused: true,
            floors: [("a".into(), Some(1))].into(),
            known_dropped: Some([("a".into(), 7)].into()),
            ..SinkState::new(Cursor::at(7, 3, 50))
        };
        for (to, expected) in [
            (ResetTo::Earliest, Some(0)),
            (ResetTo::Latest, Some(90)),
            (ResetTo::Lsn(20), Some(20)),
            (ResetTo::Lsn(91), None),
        ] {
            let after = apply(&state, Command::Reset(to), &[], log, 90).ok();
            let expected = expected.map(|lsn| SinkState {
                is_paused: true,
                start: Start::Reset,
                ..SinkState::new(Cursor::at(7, 4, lsn))
            });
            assert_eq!(after, expected, "{to:?}");
        }
        let resume = Command::Resume {
            discard_dead_letters: false,
        };
        let tables = ["a".to_owned(), "b".to_owned()];
        let resumed = apply(&state, resume, &tables, log, 90).expect("always possible");
        assert!(!resumed.is_paused);
        assert_eq!(resumed.cursor, state.cursor);
        let known = [("a".to_owned(), 7), ("b".to_owned(), 0)];
        assert_eq!(resumed.known_dropped, Some(known.into()));
    }
}
