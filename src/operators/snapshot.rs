//! The operators' state in a file: `<folder>/<LSN, 16 hex digits>.snap`.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `WEIRSNP` and a zero byte |
//! | 8 | 4 | format version, 5; earlier ones were never released |
//! | 12 | 4 | length of the body when unpacked |
//! | 16 | … | body, zstd: u32 length and JSON of `Head`, then per stream the state of its duplicates and sessions, if any, then that of each window and each entity table |
//! | end−4 | 4 | CRC-32C of all bytes before it |
//!
//! Integers are little-endian. A snapshot that was saved while the views lag is *ahead* of them: it
//! has state from rows that they have not committed, so that recovery cannot start from it. With
//! `s/recent: 120` in `emitted_through` of the snapshot at 200, a view of `s` that has committed
//! 120 lacks nothing, and one at 119 needs an older snapshot.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::arrivals::Arrivals;
use super::entities::EntityState;
use super::retry_ledger::RetryLedger;
use super::watermark::Watermark;
use super::windows::WindowState;
use super::{
    OperatorError, Operators, PartitionState, RetentionFloors, SeenRecords, StreamState, Totals,
};
use crate::event::{Gap, Lsn, Micros};
use crate::idempotency::{AnsweredRequest, BodyHash, IngestResponse, RequestKey};
use crate::ids::{CheckpointId, Name, PartitionId};
use crate::schema::Catalog;

const VERSION: u32 = 5;
const MAGIC: [u8; 8] = *b"WEIRSNP\0";
const HEADER_BYTES: usize = 16;

#[derive(Serialize, Deserialize)]
struct Head {
    lsn: Lsn,
    /// The streams in force, as JSON.
    configuration: String,
    #[serde(rename = "given")]
    emitted_through: BTreeMap<CheckpointId, Lsn>,
    partitions: Vec<(Name, Name, PartitionState)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    seen: Vec<(Name, Name, SeenRecords)>,
    /// Oldest first.
    #[serde(default)]
    answered_requests: Vec<SavedAnswer>,
    gaps: Vec<Gap>,
    #[serde(default)]
    retried: Vec<(Lsn, Lsn)>,
    #[serde(default, rename = "floors")]
    retention_floors: RetentionFloors,
    #[serde(default)]
    arrivals: Arrivals,
    /// LSN of the snapshot saved before this one; none for a log's first.
    #[serde(default)]
    before: Option<Lsn>,
    streams: BTreeMap<String, StreamHead>,
}

#[derive(Serialize, Deserialize)]
struct SavedAnswer {
    stream: String,
    key: String,
    hash: BodyHash,
    lsn: Lsn,
    answer: IngestResponse,
}

impl SavedAnswer {
    fn new((key, answered): (&RequestKey, &AnsweredRequest)) -> Self {
        let (RequestKey { stream, key }, AnsweredRequest { hash, answer, lsn }) =
            (key.clone(), answered.clone());
        Self {
            stream,
            key,
            hash,
            lsn,
            answer,
        }
    }

    fn restore(self) -> (RequestKey, AnsweredRequest) {
        let Self {
            stream,
            key,
            hash,
            lsn,
            answer,
        } = self;
        (
            RequestKey { stream, key },
            AnsweredRequest { hash, answer, lsn },
        )
    }
}

#[derive(Serialize, Deserialize)]
struct StreamHead {
    watermarks: Vec<(Name, Name, Watermark)>,
    last_idle: Option<Micros>,
    #[serde(default)]
    idle_partition: Option<(Name, Name)>,
    watermark: Option<Micros>,
    #[serde(rename = "floor")]
    retention_floor: Option<Micros>,
    totals: Totals,
    drift: BTreeMap<String, u64>,
    #[serde(default)]
    reasons: BTreeMap<String, u64>,
}

impl StreamHead {
    fn new(state: &StreamState) -> Self {
        let watermarks = state.watermarks.iter();
        Self {
            watermarks: watermarks
                .map(|(id, w)| (id.source.clone(), id.partition.clone(), w.clone()))
                .collect(),
            last_idle: state.last_idle,
            idle_partition: state
                .idle_partition
                .as_ref()
                .map(|id| (id.source.clone(), id.partition.clone())),
            watermark: state.watermark,
            retention_floor: state.retention_floor,
            totals: state.totals,
            drift: state.drift.clone(),
            reasons: state.reasons.clone(),
        }
    }

    /// The state of a stream; an error names the damaged part. `fresh` has the duplicates and
    /// sessions that the stream declares, the state of which comes from `bytes`.
    fn restore(self, fresh: StreamState, bytes: &mut &[u8]) -> Result<StreamState, &'static str> {
        let duplicates = fresh
            .duplicates
            .map(|fresh| fresh.load(bytes).ok_or("duplicates"))
            .transpose()?;
        let sessions = fresh
            .sessions
            .map(|fresh| fresh.load(bytes).ok_or("sessions"))
            .transpose()?;
        let watermarks = self.watermarks.into_iter();
        Ok(StreamState {
            watermarks: watermarks
                .map(|(source, partition, w)| (PartitionId { source, partition }, w))
                .collect(),
            last_idle: self.last_idle,
            idle_partition: self
                .idle_partition
                .map(|(source, partition)| PartitionId { source, partition }),
            watermark: self.watermark,
            duplicates,
            sessions,
            retention_floor: self.retention_floor,
            totals: self.totals,
            drift: self.drift,
            reasons: self.reasons,
        })
    }
}

/// The file of the snapshot at an LSN.
pub(crate) fn path(folder: &Path, lsn: Lsn) -> PathBuf {
    folder.join(format!("{lsn:016x}.snap"))
}

/// The LSN in a snapshot's file name; none for any other file's.
pub(crate) fn lsn_of(name: &str) -> Option<Lsn> {
    u64::from_str_radix(name.strip_suffix(".snap").filter(|s| s.len() == 16)?, 16).ok()
}

/// Whether some view has not committed a row that was emitted before the snapshot: its checkpoint
/// is below the last row emitted to it. Checkpoints that no view has any more do not count.
///
/// A snapshot with `a: 9, b: 5` is ahead of views at `a: 40, b: 4`; it is not ahead of views at
/// `a: 9, b: 5`, or of one at `a: 9` where no view has `b`.
pub(crate) fn is_ahead_of_views(
    emitted_through: &BTreeMap<CheckpointId, Lsn>,
    checkpoints: &BTreeMap<CheckpointId, Lsn>,
) -> bool {
    emitted_through
        .iter()
        .any(|(name, last)| checkpoints.get(name).is_some_and(|at| at < last))
}

/// The bytes of a snapshot file, in the module's format.
pub fn encode(operators: &Operators) -> Vec<u8> {
    let streams = operators.streams.iter();
    let streams = streams.map(|(name, state)| (name.clone(), StreamHead::new(state)));
    let head = Head {
        lsn: operators.lsn,
        configuration: operators.catalog.to_json(),
        emitted_through: operators.emitted_through.clone(),
        partitions: operators
            .partitions
            .iter()
            .map(|(id, state)| (id.source.clone(), id.partition.clone(), state.clone()))
            .collect(),
        seen: operators
            .seen
            .iter()
            .map(|(id, seen)| (id.source.clone(), id.partition.clone(), seen.clone()))
            .collect(),
        answered_requests: operators.answered().map(SavedAnswer::new).collect(),
        gaps: operators.gaps.iter().cloned().collect(),
        retried: operators
            .retried
            .records()
            .iter()
            .map(|(dead, record)| (*dead, *record))
            .collect(),
        retention_floors: operators.retention_floors.clone(),
        arrivals: operators.arrivals.clone(),
        before: operators.saved.before(operators.lsn),
        streams: streams.collect(),
    };
    let head = serde_json::to_vec(&head).expect("plain data becomes JSON");
    let mut body = (head.len() as u32).to_le_bytes().to_vec();
    body.extend_from_slice(&head);
    for state in operators.streams.values() {
        if let Some(duplicates) = &state.duplicates {
            duplicates.save(&mut body);
        }
        if let Some(sessions) = &state.sessions {
            sessions.save(&mut body);
        }
    }
    operators
        .windows
        .iter()
        .for_each(|window| window.save(&mut body));
    operators
        .entities
        .iter()
        .for_each(|entity| entity.save(&mut body));
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&zstd::bulk::compress(&body, 1).expect("compressing in memory"));
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// A snapshot's head, without the operators' state.
pub(crate) struct Summary {
    /// The streams in force, as JSON.
    pub configuration: String,
    /// Per checkpoint of a view, the LSN of the last row emitted to it.
    pub emitted_through: BTreeMap<CheckpointId, Lsn>,
    /// LSN of the snapshot saved before this one; none for a log's first.
    pub before: Option<Lsn>,
}

/// Reads a snapshot's head; `path` is for messages. Errors as [`decode`] does.
pub(crate) fn summary(path: &Path, bytes: &[u8]) -> Result<Summary, OperatorError> {
    let (head, ..) = open(path, bytes)?;
    Ok(Summary {
        configuration: head.configuration,
        emitted_through: head.emitted_through,
        before: head.before,
    })
}

/// The last two snapshots of a state: a view that is behind both is far behind, and catches up by
/// itself. Each snapshot names the one before it, so that recovery knows both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct SavedSnapshots {
    last: Option<Lsn>,
    before: Option<Lsn>,
}

impl SavedSnapshots {
    /// The snapshot before one that is saved at this LSN.
    fn before(self, lsn: Lsn) -> Option<Lsn> {
        if self.last == Some(lsn) {
            self.before
        } else {
            self.last
        }
    }

    /// A snapshot was saved at this LSN.
    pub(super) fn record(&mut self, lsn: Lsn) {
        *self = Self {
            last: Some(lsn),
            before: self.before(lsn),
        };
    }
}

/// The head of a snapshot, its body, and where the state begins in it.
fn open(path: &Path, bytes: &[u8]) -> Result<(Head, Vec<u8>, usize), OperatorError> {
    let wrong = |reason: &str| OperatorError::Snapshot {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let u32_at = |at: usize| {
        bytes
            .get(at..)
            .and_then(|b| b.first_chunk())
            .map(|b| u32::from_le_bytes(*b))
    };
    if bytes.get(..8) != Some(&MAGIC) {
        return Err(wrong("is not a snapshot"));
    }
    match u32_at(8) {
        Some(version) if version > VERSION => {
            return Err(OperatorError::Newer {
                path: path.to_owned(),
                version,
            });
        }
        Some(version) if version < VERSION => {
            return Err(wrong(&format!(
                "has the format {version} of a version before the first release"
            )));
        }
        _ => {}
    }
    let end = bytes
        .len()
        .checked_sub(4)
        .filter(|end| *end >= HEADER_BYTES)
        .ok_or_else(|| wrong("is cut short"))?;
    if Some(crc32c::crc32c(&bytes[..end])) != u32_at(end) {
        return Err(wrong("is damaged (checksum)"));
    }
    let length = u32_at(12).unwrap_or(0) as usize;
    let body = zstd::bulk::decompress(&bytes[HEADER_BYTES..end], length)
        .map_err(|_| wrong("is damaged (zstd)"))?;
    let (head, rest) = body
        .split_first_chunk::<4>()
        .and_then(|(n, rest)| rest.split_at_checked(u32::from_le_bytes(*n) as usize))
        .ok_or_else(|| wrong("is damaged (head)"))?;
    let head: Head = serde_json::from_slice(head).map_err(|e| wrong(&e.to_string()))?;
    let state = body.len() - rest.len();
    Ok((head, body, state))
}

/// Reads a snapshot and compiles its configuration; `path` is for messages.
///
/// # Errors
///
/// [`OperatorError::Snapshot`] if the bytes are damaged or of an unreleased format,
/// [`OperatorError::Newer`] if a newer version of Weir wrote them.
pub fn decode(path: &Path, bytes: &[u8]) -> Result<Operators, OperatorError> {
    let wrong = |reason: &str| OperatorError::Snapshot {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let (head, body, state) = open(path, bytes)?;
    let mut rest = &body[state..];
    let catalog = Catalog::from_json(&head.configuration).map_err(|e| wrong(&e))?;
    let mut operators = Operators::new(Arc::new(catalog), head.lsn);
    operators.emitted_through = head.emitted_through;
    operators.partitions = head
        .partitions
        .into_iter()
        .map(|(source, partition, state)| (PartitionId { source, partition }, state))
        .collect();
    operators.seen = head
        .seen
        .into_iter()
        .map(|(source, partition, seen)| (PartitionId { source, partition }, seen))
        .collect();
    if let Some(answered) = &mut operators.answered {
        head.answered_requests
            .into_iter()
            .map(SavedAnswer::restore)
            .for_each(|(key, entry)| answered.insert(key, entry));
    }
    operators.gaps = head.gaps.into();
    operators.retried = RetryLedger::new(head.retried);
    operators.retention_floors = head.retention_floors;
    operators.arrivals = head.arrivals;
    operators.saved = SavedSnapshots {
        last: Some(head.lsn),
        before: head.before,
    };
    for (name, saved) in head.streams {
        let fresh = operators.streams.remove(&name).unwrap_or_default();
        let state = saved
            .restore(fresh, &mut rest)
            .map_err(|part| wrong(&format!("is damaged ({part})")))?;
        operators.streams.insert(name, state);
    }
    for window in &mut operators.windows {
        let has_downstream = window.has_downstream();
        *window =
            WindowState::load(window.window(), &mut rest).map_err(|e| wrong(&e.to_string()))?;
        if has_downstream {
            window.set_downstream();
        }
    }
    for state in &mut operators.entities {
        *state = EntityState::load(&state.entity, &mut rest)
            .ok_or_else(|| wrong("is damaged (entities)"))?;
    }
    Ok(operators)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_not_ahead_once_views_have_the_last_rows_emitted() {
        let checkpoints = |entries: &[(&str, Lsn)]| -> BTreeMap<CheckpointId, Lsn> {
            entries
                .iter()
                .map(|(name, lsn)| ((*name).into(), *lsn))
                .collect()
        };
        let emitted_through = checkpoints(&[("a", 9), ("b", 5)]);
        for (views, is_ahead) in [
            (vec![("a", 9), ("b", 5)], false),
            (vec![("a", 40), ("b", 5)], false),
            (vec![("a", 8), ("b", 5)], true),
            (vec![("a", 40), ("b", 4)], true),
            // No view has `b` any more.
            (vec![("a", 9)], false),
        ] {
            assert_eq!(
                is_ahead_of_views(&emitted_through, &checkpoints(&views)),
                is_ahead,
                "{views:?}"
            );
        }
    }

    #[test]
    fn a_snapshot_saved_again_keeps_the_one_before_it() {
        let mut saved = SavedSnapshots::default();
        assert_eq!(saved.before(10), None);
        saved.record(10);
        assert_eq!((saved.before(10), saved.before(20)), (None, Some(10)));
        saved.record(20);
        saved.record(20);
        assert_eq!((saved.before(20), saved.before(30)), (Some(10), Some(20)));
    }
}
