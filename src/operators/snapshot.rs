//! The operators' state in a file: `<folder>/<LSN, 16 hex digits>.snap`.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `WEIRSNP` and a zero byte |
//! | 8 | 4 | format version, 5; those before it are of no release |
//! | 12 | 4 | length of the body when unpacked |
//! | 16 | … | body, zstd: u32 length and JSON of `Head`, then per stream the state of its duplicates and of its sessions, where
//! it has them, then that of each window and each entity table |
//! | end−4 | 4 | CRC-32C of all bytes before it |

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::arrivals::Arrivals;
use super::duplicates::Deduplicator;
use super::entities::EntityState;
use super::watermark::Watermark;
use super::windows::WindowState;
use super::{Floors, OperatorError, Operators, PartitionState, StreamState, Totals};
use crate::event::{Gap, Lsn, Micros};
use crate::idempotency::{Answer, Answered, BodyHash, RequestKey};
use crate::schema::Catalog;

pub const VERSION: u32 = 5;
const MAGIC: [u8; 8] = *b"WEIRSNP\0";
const HEADER_BYTES: usize = 16;

#[derive(Serialize, Deserialize)]
struct Head {
    lsn: Lsn,
    /// The streams in force, as JSON.
    configuration: String,
    given: BTreeMap<String, Lsn>,
    partitions: Vec<(String, String, PartitionState)>,
    /// Oldest first.
    #[serde(default)]
    answered_requests: Vec<SavedAnswer>,
    gaps: Vec<Gap>,
    #[serde(default)]
    retried: Vec<(Lsn, Lsn)>,
    #[serde(default)]
    floors: Floors,
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
    answer: Answer,
}

impl SavedAnswer {
    fn new((key, answered): (&RequestKey, &Answered)) -> Self {
        let (RequestKey { stream, key }, Answered { hash, answer, lsn }) =
            (key.clone(), answered.clone());
        Self {
            stream,
            key,
            hash,
            lsn,
            answer,
        }
    }

    fn restore(self) -> (RequestKey, Answered) {
        let Self {
            stream,
            key,
            hash,
            lsn,
            answer,
        } = self;
        (RequestKey { stream, key }, Answered { hash, answer, lsn })
    }
}

#[derive(Serialize, Deserialize)]
struct StreamHead {
    watermarks: Vec<(String, String, Watermark)>,
    last_idle: Option<Micros>,
    #[serde(default)]
    idle_partition: Option<(String, String)>,
    watermark: Option<Micros>,
    floor: Option<Micros>,
    totals: Totals,
    drift: BTreeMap<String, u64>,
    #[serde(default)]
    reasons: BTreeMap<String, u64>,
}

pub fn path(folder: &Path, lsn: Lsn) -> PathBuf {
    folder.join(format!("{lsn:016x}.snap"))
}

/// The LSN that a snapshot's file name tells.
pub fn lsn_of(name: &str) -> Option<Lsn> {
    u64::from_str_radix(name.strip_suffix(".snap").filter(|s| s.len() == 16)?, 16).ok()
}

/// Some view has not committed a row that the snapshot says it was given: it is not behind once its
/// checkpoint has reached the last row that the snapshot says it was given. A checkpoint that no view
/// has any more is not waited for.
pub fn is_behind(given: &BTreeMap<String, Lsn>, checkpoints: &BTreeMap<String, Lsn>) -> bool {
    given
        .iter()
        .any(|(name, last)| checkpoints.get(name).is_some_and(|at| at < last))
}

pub fn encode(operators: &Operators) -> Vec<u8> {
    let streams = operators.streams.iter().map(|(name, s)| {
        let watermarks = s
            .watermarks
            .iter()
            .map(|((a, b), w)| (a.clone(), b.clone(), w.clone()))
            .collect();
        let head = StreamHead {
            watermarks,
            last_idle: s.last_idle,
            idle_partition: s.idle_partition.clone(),
            watermark: s.watermark,
            floor: s.floor,
            totals: s.totals,
            drift: s.drift.clone(),
            reasons: s.reasons.clone(),
        };
        (name.clone(), head)
    });
    let head = Head {
        lsn: operators.lsn,
        configuration: operators.catalog.to_json(),
        given: operators.given.clone(),
        partitions: operators
            .partitions
            .iter()
            .map(|((a, b), p)| (a.clone(), b.clone(), p.clone()))
            .collect(),
        answered_requests: operators.answered().map(SavedAnswer::new).collect(),
        gaps: operators.gaps.iter().cloned().collect(),
        retried: operators
            .retried
            .iter()
            .map(|(dead, by)| (*dead, *by))
            .collect(),
        floors: operators.floors.clone(),
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

/// What a snapshot says without its operators' state.
pub struct Summary {
    /// The streams in force, as JSON.
    pub configuration: String,
    /// Per checkpoint of a view, the LSN of the last row it was given.
    pub given: BTreeMap<String, Lsn>,
    /// LSN of the snapshot saved before this one; none for a log's first.
    pub before: Option<Lsn>,
}

pub fn summary(path: &Path, bytes: &[u8]) -> Result<Summary, OperatorError> {
    let (head, ..) = open(path, bytes)?;
    Ok(Summary {
        configuration: head.configuration,
        given: head.given,
        before: head.before,
    })
}

/// Which snapshots were saved last of a state: a view that is behind both the newest and the one
/// before it is far behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Saved {
    last: Option<Lsn>,
    before: Option<Lsn>,
}

impl Saved {
    /// The snapshot before one that is saved at this LSN.
    fn before(self, lsn: Lsn) -> Option<Lsn> {
        if self.last == Some(lsn) {
            self.before
        } else {
            self.last
        }
    }

    /// A snapshot was saved at this LSN.
    pub fn note(&mut self, lsn: Lsn) {
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
        return Err(wrong("is no snapshot"));
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

/// Reads a snapshot. The configuration that it names is compiled again; `path` is for messages.
pub fn decode(path: &Path, bytes: &[u8]) -> Result<Operators, OperatorError> {
    let wrong = |reason: &str| OperatorError::Snapshot {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let (head, body, state) = open(path, bytes)?;
    let mut rest = &body[state..];
    let catalog = Catalog::from_json(&head.configuration).map_err(|e| wrong(&e))?;
    let mut operators = Operators::new(Arc::new(catalog), head.lsn);
    operators.given = head.given;
    operators.partitions = head
        .partitions
        .into_iter()
        .map(|(a, b, p)| ((a, b), p))
        .collect();
    if let Some(answered) = &mut operators.answered {
        head.answered_requests
            .into_iter()
            .map(SavedAnswer::restore)
            .for_each(|(key, entry)| answered.insert(key, entry));
    }
    operators.gaps = head.gaps.into();
    operators.retried = head.retried.into_iter().collect();
    operators.floors = head.floors;
    operators.arrivals = head.arrivals;
    operators.saved = Saved {
        last: Some(head.lsn),
        before: head.before,
    };
    for (name, saved) in head.streams {
        let (fresh, sessions) = operators
            .streams
            .remove(&name)
            .map_or((None, None), |s| (s.duplicates, s.sessions));
        let duplicates = match fresh {
            Some(fresh) => Some(
                Deduplicator::load(fresh, &mut rest)
                    .ok_or_else(|| wrong("is damaged (duplicates)"))?,
            ),
            None => None,
        };
        let sessions = match sessions {
            Some(fresh) => Some(
                fresh
                    .load(&mut rest)
                    .ok_or_else(|| wrong("is damaged (sessions)"))?,
            ),
            None => None,
        };
        let state = StreamState {
            watermarks: saved
                .watermarks
                .into_iter()
                .map(|(a, b, w)| ((a, b), w))
                .collect(),
            last_idle: saved.last_idle,
            idle_partition: saved.idle_partition,
            watermark: saved.watermark,
            duplicates,
            sessions,
            floor: saved.floor,
            totals: saved.totals,
            drift: saved.drift,
            reasons: saved.reasons,
        };
        operators.streams.insert(name, state);
    }
    for window in &mut operators.windows {
        let is_read = window.is_read();
        *window = WindowState::load(&window.window, &mut rest).map_err(|e| wrong(&e))?;
        if is_read {
            window.set_read();
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
    fn a_view_is_not_behind_once_it_has_the_last_row_it_was_given() {
        let given = BTreeMap::from([("a".to_owned(), 9), ("b".to_owned(), 5)]);
        let is_behind = |a, b| {
            is_behind(
                &given,
                &BTreeMap::from([("a".to_owned(), a), ("b".to_owned(), b)]),
            )
        };
        assert!(!is_behind(9, 5) && !is_behind(40, 5));
        assert!(is_behind(8, 5) && is_behind(40, 4));
        assert!(
            !super::is_behind(&given, &BTreeMap::from([("a".to_owned(), 9)])),
            "no view has `b` any more"
        );
    }

    #[test]
    fn a_snapshot_saved_again_keeps_the_one_before_it() {
        let mut saved = Saved::default();
        assert_eq!(saved.before(10), None);
        saved.note(10);
        assert_eq!((saved.before(10), saved.before(20)), (None, Some(10)));
        saved.note(20);
        saved.note(20);
        assert_eq!((saved.before(20), saved.before(30)), (Some(10), Some(20)));
    }
}
