//! How far log, operators and views are, from which answers state their freshness.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arrow::array::RecordBatch;
use serde::Serialize;

use super::QueryError;
use super::overview::rate::ArrivalRate;
use crate::event::{
    Gap, Lsn, Micros, SharedHealth, SharedSinkHealth, SinkHealth, SourceHealth, rfc3339,
};
use crate::ids::{PartitionId, TableId, ViewId};
use crate::operators::{
    Operators, PartitionState, StreamProgress, WaitingPartition, WindowProgress,
};
use crate::views::driver::Status;

/// Frames whose arrival times are remembered, for the age of the oldest record that an answer lacks.
const MAX_ARRIVALS: usize = 20_000;

/// The freshness of an answer, its `as_of`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct AsOf {
    /// The lowest checkpoint read.
    pub lsn: Lsn,
    /// The lowest watermark of the streams read.
    pub watermark: Option<String>,
    /// Age of the oldest record above `lsn`; 0 where there is none.
    pub freshness_ms: u64,
    /// Late events of these streams, since the log began.
    pub late: u64,
    /// Rejected records of these streams, since the log began.
    pub dead_letters: u64,
    /// Synced records above `lsn`; offline, the accepted records that are not in the answer.
    pub pending: u64,
}

/// Records of a stream, or of all streams, that are missing in the answers of a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingRecords {
    /// The stream; none for all of them.
    pub stream: Option<String>,
    /// How many.
    pub records: u64,
}

/// Progress of the log, operators and sources, and the open rows of the operators: the pipeline
/// publishes it, queries, status and metrics read it.
#[derive(Default)]
pub struct PipelineProgress {
    inner: Mutex<Inner>,
    operators: OnceLock<Arc<Mutex<Operators>>>,
    views: OnceLock<BTreeMap<ViewId, Arc<Status>>>,
    sources: Mutex<BTreeMap<String, SharedHealth>>,
    sinks: Mutex<BTreeMap<String, SharedSinkHealth>>,
    /// Missing records by view, counted once when the data folder is read offline.
    missing: OnceLock<BTreeMap<ViewId, MissingRecords>>,
}

#[derive(Default)]
struct Inner {
    streams: BTreeMap<String, StreamProgress>,
    windows: BTreeMap<String, WindowProgress>,
    gaps: Vec<Gap>,
    partitions: BTreeMap<PartitionId, PartitionState>,
    retried: Arc<BTreeMap<Lsn, Lsn>>,
    /// The trusted arrival time.
    arrived: Option<Micros>,
    /// Approximate bytes of the operators' state.
    operators_bytes: usize,
    synced_lsn: Lsn,
    /// (last LSN, arrival time) of the latest frames.
    arrivals: VecDeque<(Lsn, Micros)>,
    /// Records that arrived lately, by stream.
    rates: BTreeMap<String, ArrivalRate>,
}

impl PipelineProgress {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the operators whose open windows and sessions are shown.
    pub(crate) fn attach_operators(&self, operators: Arc<Mutex<Operators>>) {
        let _ = self.operators.set(operators);
    }

    /// Sets the running views.
    pub(crate) fn attach_views(&self, views: BTreeMap<ViewId, Arc<Status>>) {
        let _ = self.views.set(views);
    }

    /// What a view does and why it fails; none without a process that runs it.
    pub(crate) fn view_state(&self, view: &ViewId) -> Option<(&'static str, Option<String>)> {
        self.views.get()?.get(view).map(|status| status.state())
    }

    /// The rows of a table's open windows or sessions, and the LSN that they reach; `None` without
    /// operators.
    pub(crate) fn open_rows(
        &self,
        table: &TableId,
    ) -> Result<Option<(Lsn, Option<RecordBatch>)>, QueryError> {
        let Some(operators) = self.operators.get() else {
            return Ok(None);
        };
        let operators = operators.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = operators.open_rows(table).map_err(QueryError::Failed)?;
        Ok(Some((operators.lsn(), rows)))
    }

    /// Publishes the operators' state; false while they have not applied the record `to`.
    pub(crate) fn refresh(&self, to: Lsn) -> bool {
        let Some(operators) = self.operators.get() else {
            return true;
        };
        let operators = operators.lock().unwrap_or_else(PoisonError::into_inner);
        let is_applied = operators.lsn() >= to;
        if is_applied {
            self.set_operators(&operators);
        }
        is_applied
    }

    /// Partitions whose idleness advances time.
    pub(crate) fn waiting_partitions(&self) -> Vec<WaitingPartition> {
        let Some(operators) = self.operators.get() else {
            return Vec::new();
        };
        operators
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .waiting_partitions()
    }

    /// Sets the running sources with the health that each updates.
    pub(crate) fn set_sources(&self, sources: BTreeMap<String, SharedHealth>) {
        *self.sources.lock().unwrap_or_else(PoisonError::into_inner) = sources;
    }

    /// The current health of every running source.
    pub(crate) fn sources(&self) -> BTreeMap<String, SourceHealth> {
        let sources = self
            .sources
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let current = |health: &SharedHealth| {
            health
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()
        };
        sources
            .iter()
            .map(|(name, health)| (name.clone(), current(health)))
            .collect()
    }

    /// Sets the running sinks with the health that each updates.
    pub(crate) fn set_sinks(&self, sinks: BTreeMap<String, SharedSinkHealth>) {
        *self.sinks.lock().unwrap_or_else(PoisonError::into_inner) = sinks;
    }

    /// The current health of every sink.
    pub(crate) fn sinks(&self) -> BTreeMap<String, SinkHealth> {
        let sinks = self.sinks.lock().unwrap_or_else(PoisonError::into_inner);
        let current = |health: &SharedSinkHealth| {
            let health = health.lock().unwrap_or_else(PoisonError::into_inner);
            health.clone()
        };
        sinks
            .iter()
            .map(|(name, health)| (name.clone(), current(health)))
            .collect()
    }

    /// Records that a frame is synced.
    pub(crate) fn note_synced(&self, last_lsn: Lsn, received_at: Micros) {
        let mut inner = self.lock();
        inner.synced_lsn = inner.synced_lsn.max(last_lsn);
        inner.arrivals.push_back((last_lsn, received_at));
        if inner.arrivals.len() > MAX_ARRIVALS {
            inner.arrivals.pop_front();
        }
    }

    /// Records that so many records of a declared stream are in the log.
    pub(crate) fn note_records(&self, stream: &str, records: u64, received_at: Micros) {
        let mut inner = self.lock();
        if let Some(rate) = inner.rates.get_mut(stream) {
            rate.add(received_at, records);
        } else {
            let mut rate = ArrivalRate::default();
            rate.add(received_at, records);
            inner.rates.insert(stream.to_owned(), rate);
        }
    }

    /// Records of a stream that arrived in each of the 60 whole seconds before `now`: seconds since
    /// 1970, and their numbers.
    pub(crate) fn arrival_history(&self, stream: &str, now: Micros) -> Vec<(i64, u64)> {
        let inner = self.lock();
        let none = ArrivalRate::default();
        inner.rates.get(stream).unwrap_or(&none).history(now)
    }

    /// Records the arrival of a frame of a log that is read offline; the oldest suffice.
    pub(crate) fn note_arrival(&self, last_lsn: Lsn, received_at: Micros) {
        let mut inner = self.lock();
        if inner.arrivals.len() < MAX_ARRIVALS {
            inner.arrivals.push_back((last_lsn, received_at));
        }
    }

    /// Sets the records that are missing in the answers of each view.
    pub(crate) fn set_missing(&self, missing: BTreeMap<ViewId, MissingRecords>) {
        let _ = self.missing.set(missing);
    }

    /// Sets the log's synced end before any frame is synced.
    pub(crate) fn set_synced(&self, lsn: Lsn) {
        let mut inner = self.lock();
        inner.synced_lsn = inner.synced_lsn.max(lsn);
    }

    /// The last LSN that is synced, which may be above every view's.
    pub(crate) fn synced_lsn(&self) -> Lsn {
        self.lock().synced_lsn
    }

    /// Publishes the progress of the streams after a frame.
    pub(crate) fn set_streams(&self, streams: BTreeMap<String, StreamProgress>) {
        self.lock().streams = streams;
    }

    /// Publishes the whole state of the operators.
    pub(crate) fn set_operators(&self, operators: &Operators) {
        let (gaps, partitions) = (
            operators.gaps().cloned().collect(),
            operators.partitions().clone(),
        );
        let mut inner = self.lock();
        inner.streams = operators.progress();
        inner.windows = operators.window_progress();
        inner.operators_bytes = operators.memory_bytes();
        inner.arrived = operators.arrived();
        inner.gaps = gaps;
        inner.partitions = partitions;
        if *inner.retried != *operators.retried() {
            inner.retried = Arc::new(operators.retried().clone());
        }
    }

    /// The trusted arrival time.
    pub(crate) fn arrived(&self) -> Option<Micros> {
        self.lock().arrived
    }

    /// Approximate bytes of the operators' state.
    pub(crate) fn operators_bytes(&self) -> usize {
        self.lock().operators_bytes
    }

    /// Dead letters that were retried successfully, with the record of the event.
    pub(crate) fn retried(&self) -> Arc<BTreeMap<Lsn, Lsn>> {
        self.lock().retried.clone()
    }

    /// The progress of each stream, by name.
    pub(crate) fn streams(&self) -> BTreeMap<String, StreamProgress> {
        self.lock().streams.clone()
    }

    /// The progress of each window, by name.
    pub(crate) fn windows(&self) -> BTreeMap<String, WindowProgress> {
        self.lock().windows.clone()
    }

    /// Times in which a source may have lost records, as `weir.gaps` lists them.
    pub(crate) fn gaps(&self) -> Vec<Gap> {
        self.lock().gaps.clone()
    }

    /// The state of each partition.
    pub(crate) fn partitions(&self) -> BTreeMap<PartitionId, PartitionState> {
        self.lock().partitions.clone()
    }

    /// The freshness of an answer from these views, which have everything up to `lsn` of these
    /// streams.
    pub(crate) fn as_of(
        &self,
        lsn: Lsn,
        streams: &[String],
        views: &[ViewId],
        now: Micros,
    ) -> AsOf {
        let inner = self.lock();
        let read: Vec<&StreamProgress> = streams
            .iter()
            .filter_map(|s| inner.streams.get(s))
            .collect();
        let pending = match self.missing.get() {
            Some(missing) => missing_records(missing, views),
            None => inner.synced_lsn.saturating_sub(lsn),
        };
        let oldest = inner
            .arrivals
            .get(inner.arrivals.partition_point(|(last, _)| *last <= lsn));
        let age = oldest.map_or(0, |(_, at)| now.saturating_sub(*at).max(0) as u64 / 1_000);
        AsOf {
            lsn,
            watermark: read
                .iter()
                .map(|s| s.watermark)
                .min()
                .flatten()
                .map(rfc3339),
            freshness_ms: if pending == 0 { 0 } else { age },
            late: read.iter().map(|s| s.totals.late).sum(),
            dead_letters: read.iter().map(|s| s.totals.dead_letters).sum(),
            pending,
        }
    }
}

/// Records that are missing in an answer of several views: for each stream those of the view that
/// misses most.
fn missing_records(missing: &BTreeMap<ViewId, MissingRecords>, views: &[ViewId]) -> u64 {
    let mut by_stream: BTreeMap<Option<&str>, u64> = BTreeMap::new();
    for MissingRecords { stream, records } in views.iter().filter_map(|view| missing.get(view)) {
        let max = by_stream.entry(stream.as_deref()).or_default();
        *max = (*max).max(*records);
    }
    // Views without a stream are about all streams.
    let of_all = by_stream.remove(&None).unwrap_or(0);
    by_stream.values().sum::<u64>().max(of_all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_missing_in_several_views_of_a_stream_are_counted_once() {
        let missing = |stream: Option<&str>, records| MissingRecords {
            stream: stream.map(str::to_owned),
            records,
        };
        let table = |name: &str| TableId::stream(name).view();
        let views = [
            (table("a"), Some("a"), 3),
            (ViewId::search("a"), Some("a"), 5),
            (table("b"), Some("b"), 1),
            (TableId::Raw.view(), None, 4),
        ];
        let all = views
            .map(|(view, stream, records)| (view, missing(stream, records)))
            .into();
        let count = |views: &[ViewId]| missing_records(&all, views);
        assert_eq!(count(&[table("a"), ViewId::search("a")]), 5);
        assert_eq!(count(&[table("a"), table("b")]), 4);
        assert_eq!(count(&[TableId::Raw.view(), table("b")]), 4);
        assert_eq!(count(&[table("elsewhere")]), 0);
    }
}
