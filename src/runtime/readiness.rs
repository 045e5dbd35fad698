//! Whether the process takes records in and every view advances.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::event::{SinkHealth, SinkState, SourceHealth, SourceState};
use crate::ids::ViewId;
use crate::ingest::Intake;
use crate::query::PipelineProgress;
use crate::views::driver::Status;

/// What a readiness probe reads; it outlives the borrow of [`super::Running`].
pub(super) struct Readiness {
    pub progress: Arc<PipelineProgress>,
    pub views: Vec<(ViewId, Arc<Status>)>,
    pub has_resumed: Arc<AtomicBool>,
    pub intake: Intake,
}

impl Readiness {
    /// What waits without holding back the rest, or why the process is not ready.
    pub fn check(&self) -> Result<Vec<String>, String> {
        if !self.has_resumed.load(Ordering::Acquire) {
            return Err("the log is still being read".into());
        }
        if let Some(reason) = self.intake.full() {
            return Err(reason);
        }
        for (view, status) in &self.views {
            if let Some(failure) = status.failure() {
                return Err(format!("{view}: {failure}"));
            }
        }
        let mut waiting = Vec::new();
        for (name, health) in self.progress.sources() {
            waiting.extend(source_note(&name, &health)?);
        }
        for (name, health) in self.progress.sinks() {
            waiting.extend(sink_note(&name, &health));
        }
        let synced = self.progress.synced_lsn();
        for (view, status) in &self.views {
            if status.is_catching_up() {
                let lag = synced.saturating_sub(status.applied());
                waiting.push(format!(
                    "{view} is {lag} records behind and reads them from the log"
                ));
            }
        }
        Ok(waiting)
    }
}

/// What of a source waits; an error where it has halted. Pure.
fn source_note(name: &str, health: &SourceHealth) -> Result<Option<String>, String> {
    let describe = || {
        format!(
            "source `{name}` {}: {}",
            health.state.name(),
            health.reason.as_deref().unwrap_or_default()
        )
    };
    match health.state {
        SourceState::Halted => Err(describe()),
        SourceState::Waiting => Ok(Some(describe())),
        SourceState::Running | SourceState::Ended if health.halted_total > 0 => Ok(Some(format!(
            "source `{name}`: {} partitions have halted, the others are read: {}",
            health.halted_total,
            health.reason.as_deref().unwrap_or_default()
        ))),
        SourceState::Running | SourceState::Ended => Ok((health.waiting_total > 0)
            .then(|| format!("source `{name}`: {} files wait", health.waiting_total))),
    }
}

/// What of a sink waits. A sink that has halted holds back nothing but itself, so the process is
/// ready. Pure.
fn sink_note(name: &str, health: &SinkHealth) -> Option<String> {
    let error = health.last_error.as_deref().unwrap_or_default();
    match health.state {
        SinkState::Running => None,
        SinkState::Paused => Some(format!(
            "sink `{name}` is paused; continue by `weir sinks resume {name}`"
        )),
        SinkState::Retrying => Some(format!("sink `{name}` cannot deliver: {error}")),
        SinkState::Halted => Some(format!("sink `{name}` has halted: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_halted_source_is_not_ready_and_a_waiting_one_is_noted() {
        let health = |state, waiting_total| SourceHealth {
            state,
            reason: Some("gone".into()),
            waiting_total,
            ..SourceHealth::default()
        };
        let note = |state, waiting| source_note("s", &health(state, waiting));
        assert_eq!(note(SourceState::Running, 0), Ok(None));
        assert_eq!(
            note(SourceState::Ended, 2),
            Ok(Some("source `s`: 2 files wait".into()))
        );
        let halted = SourceHealth {
            halted_total: 1,
            ..health(SourceState::Running, 1)
        };
        assert_eq!(
            source_note("s", &halted),
            Ok(Some(
                "source `s`: 1 partitions have halted, the others are read: gone".into()
            ))
        );
        let described = |state: SourceState| format!("source `s` {}: gone", state.name());
        assert_eq!(
            note(SourceState::Waiting, 0),
            Ok(Some(described(SourceState::Waiting)))
        );
        assert_eq!(
            note(SourceState::Halted, 0),
            Err(described(SourceState::Halted))
        );
    }
}
