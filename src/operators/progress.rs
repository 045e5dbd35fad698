//! What queries, metrics and the idle ticker read of the operators.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Operators;
use super::duplicates::Deduplicator;
use super::sessions::Sessions;
use super::stream::StreamState;
use super::windows::WindowState;
use crate::event::Micros;
use crate::ids::{Name, PartitionId};

/// Sums over a stream since the log began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Rows of the stream's table.
    pub events: u64,
    /// Events below their partition's watermark, among `events`. Whether a window still accepts
    /// them depends on its lateness: [`WindowProgress::too_late`].
    pub late: u64,
    /// Events marked as duplicates, among `events`.
    pub duplicates: u64,
    /// Records that did not become events.
    pub dead_letters: u64,
    /// Sessions that were closed early since they were declared, because `max_open` were open.
    #[serde(default)]
    pub abandoned_sessions: u64,
    /// The farthest that a late event was below its partition's watermark, in µs.
    #[serde(default, rename = "most_late")]
    pub max_lateness: Micros,
}

impl Totals {
    /// Counts an event by its time and its partition's watermark before it.
    pub(super) fn observe_lateness(&mut self, time: Micros, watermark: Option<Micros>) {
        let lateness = watermark.map_or(0, |watermark| watermark.saturating_sub(time));
        self.late += u64::from(lateness > 0);
        self.max_lateness = self.max_lateness.max(lateness);
    }
}

/// What queries and metrics show of a stream's operators.
#[derive(Debug, Clone, Default)]
pub struct StreamProgress {
    /// The stream's watermark in µs; none before the first one.
    pub watermark: Option<Micros>,
    /// Sums since the log began.
    pub totals: Totals,
    /// Keys of the JSON that the schema does not have, each with the number of its records.
    pub drift: Vec<(String, u64)>,
    /// Reasons of dead letters, each with their number; from the 51st on together as `other`.
    pub reasons: Vec<(String, u64)>,
    /// Keys that are remembered to recognize duplicates.
    pub duplicate_keys: usize,
    /// Sessions that the watermark has not closed.
    pub open_sessions: usize,
    /// A session or a window is open, and waits for the watermark.
    pub is_open: bool,
}

/// What metrics show of a window.
#[derive(Debug, Clone, Default)]
pub struct WindowProgress {
    /// Groups in memory, of which `max_groups` is the limit; one with long values counts as
    /// several.
    pub groups: usize,
    /// Rows that came when every window they belong to was closed.
    pub too_late: u64,
    /// Rows and windows left out because an expression had no value.
    pub failed: u64,
    /// Windows that were closed early, because there were more groups than `max_groups`.
    pub abandoned: u64,
    /// Bytes of its panes and retained results, approximately.
    pub memory_bytes: usize,
}

/// A partition of a stream, whose silence can move the stream's watermark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingPartition {
    /// The stream that its records belong to.
    pub stream: Name,
    /// Its source, and its name there.
    pub id: PartitionId,
    /// Number of its records so far.
    pub seen: u64,
}

impl Operators {
    /// Per window, by its name, what metrics show of it.
    pub fn window_progress(&self) -> BTreeMap<String, WindowProgress> {
        let show = |w: &WindowState| WindowProgress {
            groups: w.groups(),
            too_late: w.too_late(),
            failed: w.failed(),
            abandoned: w.abandoned(),
            memory_bytes: w.memory_bytes(),
        };
        self.windows
            .iter()
            .map(|w| (w.window().name.clone(), show(w)))
            .collect()
    }

    /// Per stream, by its name, what queries and metrics show of it.
    pub fn progress(&self) -> BTreeMap<String, StreamProgress> {
        let show = |state: &StreamState| StreamProgress {
            watermark: state.watermark,
            totals: state.totals,
            drift: state.drift.iter().map(|(k, n)| (k.clone(), *n)).collect(),
            reasons: state.reasons.iter().map(|(k, n)| (k.clone(), *n)).collect(),
            duplicate_keys: state.duplicates.as_ref().map_or(0, Deduplicator::keys),
            open_sessions: state.sessions.as_ref().map_or(0, Sessions::open_count),
            is_open: state.sessions.as_ref().is_some_and(|s| s.open_count() > 0),
        };
        let mut progress: BTreeMap<String, StreamProgress> = self
            .streams
            .iter()
            .map(|(name, state)| (name.clone(), show(state)))
            .collect();
        for window in self.windows.iter().filter(|w| w.is_open()) {
            if let Some(stream) = progress.get_mut(&window.window().stream) {
                stream.is_open = true;
            }
        }
        progress
    }

    /// Partitions that silence can move, of streams in which something is open.
    pub fn waiting_partitions(&self) -> Vec<WaitingPartition> {
        let progress = self.progress();
        let is_open = |name: &str| progress.get(name).is_some_and(|p| p.is_open);
        let open = self.streams.iter().filter(|(name, _)| is_open(name));
        open.flat_map(|(name, state)| {
            let stream: Name = name.as_str().into();
            let known = state.watermarks.iter().filter(|(_, w)| w.is_waiting());
            known.map(move |(id, w)| WaitingPartition {
                stream: stream.clone(),
                id: id.clone(),
                seen: w.seen(),
            })
        })
        .collect()
    }
}
