//! What queries read: the views' read handles, and how far everything is.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arrow::array::RecordBatch;
use serde::Serialize;

use crate::event::{Gap, Lsn, Micros, SharedHealth, SourceHealth, rfc3339};
use crate::operators::{
    Floors, Operators, PartitionState, StreamProgress, WindowProgress, checkpoints, tables,
};
use crate::schema::Catalog;
use crate::views::counts::Counts;
use crate::views::lake::LakeTable;
use crate::views::places::Places;
use crate::views::search::SearchIndex;

/// Frames whose arrival is remembered, to tell how old the oldest record is that an answer lacks.
const ARRIVALS: usize = 20_000;

/// Read handles of all views.
#[derive(Clone)]
pub struct Handles {
    pub catalog: Arc<Catalog>,
    pub lake: PathBuf,
    /// Lake tables by name.
    pub tables: BTreeMap<String, Arc<LakeTable>>,
    /// By stream, where declared.
    pub search: BTreeMap<String, Arc<SearchIndex>>,
    pub places: BTreeMap<String, Arc<Places>>,
    pub counts: BTreeMap<String, Arc<Counts>>,
    pub progress: Arc<Progress>,
}

/// How true an answer is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct AsOf {
    /// The lowest checkpoint read.
    pub lsn: Lsn,
    /// The lowest watermark of the streams read.
    pub watermark: Option<String>,
    /// Age of the oldest record above `lsn`; 0 where there is none.
    pub freshness_ms: u64,
    /// Events of these streams that came behind the watermark, since the log began.
    pub late: u64,
    pub dead_letters: u64,
    /// Synced records above `lsn`; of a folder that is read offline, accepted records that are not
    /// in the answer.
    pub pending: u64,
}

/// Records of a stream, or of all, that the answers of a view lack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    pub stream: Option<String>,
    pub records: u64,
}

/// How far operators and log are, and what is open in them.
#[derive(Default)]
pub struct Progress {
    inner: Mutex<Inner>,
    operators: OnceLock<Arc<Mutex<Operators>>>,
    sources: Mutex<BTreeMap<String, SharedHealth>>,
    /// By view, what its answers lack: counted once where nothing moves any more.
    missing: OnceLock<BTreeMap<String, Missing>>,
}

#[derive(Default)]
struct Inner {
    streams: BTreeMap<String, StreamProgress>,
    windows: BTreeMap<String, WindowProgress>,
    gaps: Vec<Gap>,
    partitions: BTreeMap<(String, String), PartitionState>,
    retried: Arc<BTreeMap<Lsn, Lsn>>,
    /// How far arrival time has come, as far as it is believed.
    arrived: Option<Micros>,
    /// Bytes of the operators' state, about.
    operators_bytes: usize,
    synced_lsn: Lsn,
    /// (last LSN, arrival) of the latest frames.
    arrivals: VecDeque<(Lsn, Micros)>,
}

impl Progress {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The operators whose open windows and sessions are shown.
    pub fn show(&self, operators: Arc<Mutex<Operators>>) {
        let _ = self.operators.set(operators);
    }

    /// Rows of what is open in a window or in a stream's sessions, and the LSN up to which records
    /// are in them.
    pub fn open_rows(&self, table: &str) -> Result<Option<(Lsn, Option<RecordBatch>)>, String> {
        let Some(operators) = self.operators.get() else {
            return Ok(None);
        };
        let operators = operators.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Some((operators.lsn(), operators.open_rows(table)?)))
    }

    /// Shows what operators know at this moment; false while they have not applied everything up to
    /// a record.
    pub fn refresh(&self, to: Lsn) -> bool {
        let Some(operators) = self.operators.get() else {
            return true;
        };
        let operators = operators.lock().unwrap_or_else(PoisonError::into_inner);
        let is_there = operators.lsn() >= to;
        if is_there {
            self.set_operators(&operators);
        }
        is_there
    }

    /// Partitions whose silence moves time: stream, source, partition, records so far.
    pub fn waiting_partitions(&self) -> Vec<(String, String, String, u64)> {
        let Some(operators) = self.operators.get() else {
            return Vec::new();
        };
        operators
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .waiting_partitions()
    }

    /// The sources at work, each with the health that it sets.
    pub fn set_sources(&self, sources: BTreeMap<String, SharedHealth>) {
        *self.sources.lock().unwrap_or_else(PoisonError::into_inner) = sources;
    }

    /// How every source at work is at this moment.
    pub fn sources(&self) -> BTreeMap<String, SourceHealth> {
        let sources = self
            .sources
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let now = |health: &SharedHealth| {
            health
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()
        };
        sources
            .iter()
            .map(|(name, health)| (name.clone(), now(health)))
            .collect()
    }

    /// A frame is synced.
    pub fn note_synced(&self, last_lsn: Lsn, received_at: Micros) {
        let mut inner = self.lock();
        inner.synced_lsn = inner.synced_lsn.max(last_lsn);
        inner.arrivals.push_back((last_lsn, received_at));
        if inner.arrivals.len() > ARRIVALS {
            inner.arrivals.pop_front();
        }
    }

    /// A frame of records came, as the log says that nothing moves any more; the oldest are enough.
    pub fn note_arrival(&self, last_lsn: Lsn, received_at: Micros) {
        let mut inner = self.lock();
        if inner.arrivals.len() < ARRIVALS {
            inner.arrivals.push_back((last_lsn, received_at));
        }
    }

    /// What the answers of each view lack.
    pub fn set_missing(&self, missing: BTreeMap<String, Missing>) {
        let _ = self.missing.set(missing);
    }

    /// The log's synced end, where no frame said it yet.
    pub fn set_synced(&self, lsn: Lsn) {
        let mut inner = self.lock();
        inner.synced_lsn = inner.synced_lsn.max(lsn);
    }

    pub fn synced_lsn(&self) -> Lsn {
        self.lock().synced_lsn
    }

    /// What the operators say of their streams after a frame.
    pub fn set_streams(&self, streams: BTreeMap<String, StreamProgress>) {
        self.lock().streams = streams;
    }

    /// What the operators say, all of it.
    pub fn set_operators(&self, operators: &Operators) {
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

    /// How far arrival time has come, as far as it is believed.
    pub fn arrived(&self) -> Option<Micros> {
        self.lock().arrived
    }

    /// Bytes of the operators' state, about.
    pub fn operators_bytes(&self) -> usize {
        self.lock().operators_bytes
    }

    /// Dead letters that became events later, with the record that did.
    pub fn retried(&self) -> Arc<BTreeMap<Lsn, Lsn>> {
        self.lock().retried.clone()
    }

    pub fn streams(&self) -> BTreeMap<String, StreamProgress> {
        self.lock().streams.clone()
    }

    pub fn windows(&self) -> BTreeMap<String, WindowProgress> {
        self.lock().windows.clone()
    }

    pub fn gaps(&self) -> Vec<Gap> {
        self.lock().gaps.clone()
    }

    pub fn partitions(&self) -> BTreeMap<(String, String), PartitionState> {
        self.lock().partitions.clone()
    }

    /// States how true an answer is that these views gave, which have everything up to `lsn` of
    /// these streams.
    pub fn as_of(&self, lsn: Lsn, streams: &[String], views: &[String], now: Micros) -> AsOf {
        let inner = self.lock();
        let read: Vec<&StreamProgress> = streams
            .iter()
            .filter_map(|s| inner.streams.get(s))
            .collect();
        let pending = match self.missing.get() {
            Some(missing) => most_missing(missing, views),
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

/// Records that an answer of several views lacks: of each stream as many as the view of it that
/// lacks most.
fn most_missing(missing: &BTreeMap<String, Missing>, views: &[String]) -> u64 {
    let mut most: BTreeMap<Option<&str>, u64> = BTreeMap::new();
    for Missing { stream, records } in views.iter().filter_map(|view| missing.get(view)) {
        let known = most.entry(stream.as_deref()).or_default();
        *known = (*known).max(*records);
    }
    // What is of no stream is of all.
    let of_all = most.remove(&None).unwrap_or(0);
    most.values().sum::<u64>().max(of_all)
}

impl Handles {
    /// Hides the rows of these tables that lie below a time.
    pub fn raise_floors(&self, floors: &Floors) {
        for (name, floor) in floors {
            if let Some(table) = self.tables.get(name) {
                table.raise_floor(*floor);
            }
        }
    }

    /// Events of a stream below this time are no longer shown.
    pub fn floor(&self, stream: &str) -> Option<Micros> {
        self.tables.get(stream).and_then(|table| table.floor())
    }

    /// Every view with the LSN up to which queries see it.
    pub fn checkpoints(&self) -> Vec<(String, Lsn)> {
        let mut checkpoints: Vec<(String, Lsn)> = self
            .tables
            .iter()
            .map(|(name, table)| (format!("lake/{name}"), table.applied()))
            .collect();
        checkpoints.extend(
            self.search
                .iter()
                .map(|(name, s)| (checkpoints::search(name), s.visible())),
        );
        checkpoints.extend(
            self.places
                .iter()
                .map(|(name, p)| (checkpoints::places(name), p.applied())),
        );
        checkpoints.extend(
            self.counts
                .iter()
                .map(|(name, c)| (checkpoints::counts(name), c.applied())),
        );
        checkpoints
    }

    /// The stream that a table's rows come from, if one.
    pub fn stream_of(&self, table: &str) -> Option<String> {
        let streams = &self.catalog.streams;
        let window = |w: &&Arc<crate::schema::Window>| {
            w.name == table || tables::versions_of(&w.name) == table
        };
        let window = self
            .catalog
            .windows
            .iter()
            .find(window)
            .map(|w| w.stream.clone());
        let name = table.split('.').next().unwrap_or(table);
        window.or_else(|| streams.contains_key(name).then(|| name.to_owned()))
    }

    /// The stream that a question without one means: the first.
    pub fn stream(
        &self,
        named: Option<&str>,
    ) -> Result<&Arc<crate::schema::Stream>, super::QueryError> {
        let known = || {
            self.catalog
                .streams
                .keys()
                .cloned()
                .collect::<Vec<_>>()
                .join(", ")
        };
        match named {
            Some(name) => self.catalog.streams.get(name).ok_or_else(|| {
                super::QueryError::NotFound(format!(
                    "there is no stream `{name}`; there are: {}",
                    known()
                ))
            }),
            None => self.catalog.streams.values().next().ok_or_else(|| {
                super::QueryError::NotFound(
                    "no stream is declared; add [streams.NAME] to the configuration".into(),
                )
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_views_of_one_stream_lack_is_counted_once() {
        let missing = |stream: Option<&str>, records| Missing {
            stream: stream.map(str::to_owned),
            records,
        };
        let views = [
            ("lake/a", Some("a"), 3),
            ("search/a", Some("a"), 5),
            ("lake/b", Some("b"), 1),
            ("lake/raw", None, 4),
        ];
        let all = views
            .map(|(view, stream, records)| (view.to_owned(), missing(stream, records)))
            .into();
        let lacks = |views: &[&str]| {
            most_missing(
                &all,
                &views.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>(),
            )
        };
        assert_eq!(lacks(&["lake/a", "search/a"]), 5);
        assert_eq!(lacks(&["lake/a", "lake/b"]), 4);
        assert_eq!(lacks(&["lake/raw", "lake/b"]), 4);
        assert_eq!(lacks(&["lake/elsewhere"]), 0);
    }
}
