//! State of one stream, which its rows change one by one: watermark, retention floor, duplicates,
//! sessions.
//!
//! The stream's watermark is the minimum of its partitions' watermarks, without those that are
//! idle, and never goes back. A partition that is known and has no watermark yet holds it where it
//! is. Where every partition is idle, as one is that has ended, it follows the one that became idle
//! last:
//!
//! ```text
//! partition a   partition b   stream
//! 10:00         -             10:00
//! 10:10         began         10:00   b has no watermark yet
//! 10:10         10:05         10:05
//! 10:10         10:05 ended   10:10
//! 10:20 ended   10:05 ended   10:20
//! 10:21 idle    10:06 idle    10:21   a minute of ticks: a, which became idle last, counts
//! 10:21 idle    10:08         10:21   b is behind: its events may be too late for windows
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};

use super::duplicates::{Deduplicator, DuplicateHashes};
use super::sessions::{self, SessionEvent, Sessions};
use super::values::column_times;
use super::watermark::{RecordTime, Rules, Watermark};
use super::{DeadLetter, Output, Totals};
use crate::decode::Decoded;
use crate::event::{Lsn, MICROS_PER_HOUR, Micros, bucket, rfc3339};
use crate::ids::PartitionId;
use crate::schema::{Catalog, Stream};
use crate::wal::{Header, Kind};

/// Reasons of dead letters counted one by one per stream; the rest is counted as [`OTHER_REASONS`].
const MAX_REASONS: usize = 50;
const OTHER_REASONS: &str = "other";
/// Longest reason that is counted by itself, in characters.
const MAX_REASON_CHARS: usize = 120;
/// Unknown keys remembered per stream.
const MAX_DRIFT_KEYS: usize = 1_000;

/// State of one stream.
#[derive(Debug, Clone, Default)]
pub(super) struct StreamState {
    pub watermarks: BTreeMap<PartitionId, Watermark>,
    /// The watermark of the partition that became idle last, which ticks still move.
    pub last_idle: Option<Micros>,
    /// That partition; none while none was idle.
    pub idle_partition: Option<PartitionId>,
    /// The stream's watermark: no event older than it is expected in any partition.
    pub watermark: Option<Micros>,
    /// None where the stream declares no `duplicates`.
    pub duplicates: Option<Deduplicator>,
    /// None where the stream declares no `session`.
    pub sessions: Option<Sessions>,
    /// Events below it are rejected, and hidden from queries. It never goes back.
    pub retention_floor: Option<Micros>,
    pub totals: Totals,
    /// Keys of the JSON that the schema does not have, with the number of their records.
    pub drift: BTreeMap<String, u64>,
    /// Dead letters by their reason.
    pub reasons: BTreeMap<String, u64>,
}

/// The sessions of a frame's rows.
struct SessionRows<'a> {
    sessions: Option<(&'a mut Sessions, ArrayRef, Option<ArrayRef>, Vec<bool>)>,
    ids: Vec<Option<String>>,
    closed: Vec<sessions::ClosedSession>,
}

impl<'a> SessionRows<'a> {
    fn new(stream: &Stream, rows: &RecordBatch, sessions: Option<&'a mut Sessions>) -> Self {
        let text = |column: usize| {
            arrow::compute::cast(rows.column(column), &arrow::datatypes::DataType::Utf8)
                .expect("a scalar casts to text")
        };
        let sessions = stream.session().zip(sessions).map(|(columns, sessions)| {
            (
                sessions,
                text(columns.key),
                columns.track.map(text),
                columns.opens(rows),
            )
        });
        Self {
            sessions,
            ids: Vec::new(),
            closed: Vec::new(),
        }
    }

    /// The next row does not belong to a session.
    fn skip(&mut self) {
        if self.sessions.is_some() {
            self.ids.push(None);
        }
    }

    fn observe(&mut self, row: usize, time: Micros, lsn: Lsn) {
        let Some((sessions, keys, track, opens)) = &mut self.sessions else {
            return;
        };
        let text = |array: &ArrayRef| {
            let array = array.as_any().downcast_ref::<StringArray>()?;
            array.is_valid(row).then(|| array.value(row).to_owned())
        };
        // An event without a key is not in a session.
        let Some(key) = text(keys) else {
            return self.ids.push(None);
        };
        let track = track.as_ref().and_then(text);
        let event = SessionEvent {
            lsn,
            key: &key,
            time,
            track: track.as_deref(),
            opens: opens[row],
        };
        let first_lsn = sessions.observe(&event, &mut self.closed);
        self.ids.push(Some(sessions.id(&key, first_lsn)));
    }

    fn advance(&mut self, watermark: Micros, lsn: Lsn) {
        if let Some((sessions, ..)) = &mut self.sessions {
            sessions.advance(watermark, lsn, &mut self.closed);
        }
    }

    /// Per row its session's id, where the stream has sessions, and the sessions that are closed.
    fn finish(self) -> (Option<Vec<Option<String>>>, Vec<sessions::ClosedSession>) {
        (self.sessions.is_some().then_some(self.ids), self.closed)
    }
}

/// The watermark of a frame's partition, and the stream's that follows from it.
struct FrameWatermark<'a> {
    partition: &'a mut Watermark,
    /// The minimum of the other active partitions, if any; they do not move during a frame.
    others: Option<Option<Micros>>,
    stream: Option<Micros>,
    received_at: Micros,
    is_retry: bool,
    rules: Rules,
}

impl FrameWatermark<'_> {
    /// Observes a row's time; returns the stream's watermark if the row moved it.
    fn observe(&mut self, time: Micros) -> Option<Micros> {
        if self.is_retry {
            return None;
        }
        let record = RecordTime {
            time,
            received_at: self.received_at,
            stream_watermark: self.stream,
        };
        self.partition.observe(record, self.rules);
        let now = self.partition.at();
        let now = self.others.map_or(now, |others| others.min(now));
        if now <= self.stream {
            return None;
        }
        self.stream = now;
        now
    }
}

/// What a frame's rows changed in their stream's state.
pub(super) struct Observation {
    /// Per row, whether it is a duplicate.
    pub duplicates: Vec<bool>,
    /// Per row, whether it is of the late class; none where no row is.
    pub late_class: Option<Vec<bool>>,
    /// Rows below the retention floor.
    pub below_retention: Vec<usize>,
    /// The stream's watermark changes: (LSN, new watermark), each effective after that record.
    pub watermark_updates: Vec<(Lsn, Micros)>,
    /// Per row the id of its session, where the stream has sessions; none for a row without a key.
    pub session_ids: Option<Vec<Option<String>>>,
    /// Sessions that the rows have closed, in the order of LSNs.
    pub closed: Vec<sessions::ClosedSession>,
}

/// Whether the event (key, content, version) is a duplicate of one seen before; records it.
fn is_duplicate(seen: Option<&mut Deduplicator>, event: Option<(u64, u64, i64)>) -> bool {
    seen.zip(event)
        .is_some_and(|(seen, (key, content, version))| seen.observe(key, content, version))
}

/// The lowest watermark of the partitions other than this one that are not idle: none if there are
/// no others, and a watermark of none if one of them has no watermark yet.
fn lowest_of_others(
    watermarks: &BTreeMap<PartitionId, Watermark>,
    own: &PartitionId,
) -> Option<Option<Micros>> {
    let others = watermarks.iter();
    let others = others.filter(|(id, watermark)| *id != own && !watermark.is_idle());
    others.map(|(_, watermark)| watermark.at()).min()
}

impl StreamState {
    /// Observes a frame's rows one by one: watermark, floor, duplicates, sessions. `arrived`: how
    /// far arrival time has come, as far as it is trusted.
    pub fn observe(
        &mut self,
        stream: &Stream,
        header: &Header,
        decoded: &Decoded,
        arrived: Option<Micros>,
    ) -> Observation {
        let times = times(&decoded.rows);
        let mut hashes = DuplicateHashes::new(stream, &decoded.rows);
        // A retried dead letter says nothing about how far time has advanced.
        let is_retry = header.kind == Kind::Retry;
        let mut fixed = Watermark::fixed_at(self.watermark);
        let key = PartitionId::new(&header.source, &header.partition);
        let mut watermark = FrameWatermark {
            others: lowest_of_others(&self.watermarks, &key),
            partition: if is_retry {
                &mut fixed
            } else {
                self.watermarks.entry(key).or_default()
            },
            stream: self.watermark,
            received_at: header.received_at,
            is_retry,
            rules: rules(stream),
        };
        let rows = times.len();
        let (mut duplicates, mut late_class) = (Vec::with_capacity(rows), None);
        let (mut below_retention, mut watermark_updates) = (Vec::new(), Vec::new());
        let mut sessions = SessionRows::new(stream, &decoded.rows, self.sessions.as_mut());
        for (row, time) in times.iter().copied().enumerate() {
            let lsn = header.first_lsn + u64::from(decoded.index[row]);
            let before = watermark.partition.at();
            if before.is_some_and(|w| is_late_class(time, w)) {
                late_class.get_or_insert_with(|| vec![false; rows])[row] = true;
            }
            let moved_to = watermark.observe(time);
            watermark_updates.extend(moved_to.map(|to| (lsn, to)));
            self.retention_floor = self.retention_floor.max(next_retention_floor(
                stream,
                watermark.partition.at(),
                arrived,
                header.received_at,
            ));
            if self.retention_floor.is_some_and(|floor| time < floor) {
                below_retention.push(row);
                duplicates.push(false);
                sessions.skip();
            } else {
                self.totals.observe_lateness(time, before);
                let event = hashes.as_mut().and_then(|hashes| hashes.at(row));
                let is_duplicate = is_duplicate(self.duplicates.as_mut(), event);
                self.totals.duplicates += u64::from(is_duplicate);
                duplicates.push(is_duplicate);
                sessions.observe(row, time, lsn);
            }
            if let Some(watermark) = moved_to {
                sessions.advance(watermark, lsn);
            }
        }
        let (session_ids, closed) = sessions.finish();
        let abandoned = closed.iter().filter(|session| session.is_abandoned());
        self.totals.abandoned_sessions += abandoned.count() as u64;
        Observation {
            duplicates,
            late_class,
            below_retention,
            watermark_updates,
            session_ids,
            closed,
        }
    }

    /// Counts dead letters by their reasons, and keys that are not in the schema.
    pub fn count_rejected(&mut self, decoded: &Decoded, output: &Output) {
        self.totals.dead_letters += output.dead_letters.len() as u64;
        for letter in &output.dead_letters {
            let reason: String = letter.reason.chars().take(MAX_REASON_CHARS).collect();
            let is_listed = self.reasons.len() < MAX_REASONS || self.reasons.contains_key(&reason);
            *self
                .reasons
                .entry(if is_listed {
                    reason
                } else {
                    OTHER_REASONS.into()
                })
                .or_default() += 1;
        }
        for (key, n) in &decoded.drift {
            if self.drift.len() < MAX_DRIFT_KEYS || self.drift.contains_key(key) {
                *self.drift.entry(key.clone()).or_default() += n;
            }
        }
    }

    /// The greatest event time that the watermarks are derived from.
    pub fn greatest(&self, catalog: &Catalog, stream: &str) -> Option<Micros> {
        let stream = catalog.streams.get(stream)?;
        let ended = self
            .watermarks
            .values()
            .filter_map(|watermark| watermark.if_ended(rules(stream)));
        Some(
            ended
                .max()?
                .saturating_add(stream.def.watermark.disorder.micros()),
        )
    }

    /// Advances the stream's watermark to the minimum of the active partitions; without an active
    /// one, to that of the partition that became idle last.
    pub fn advance(&mut self) {
        let mut active = self.watermarks.values().filter(|w| !w.is_idle()).peekable();
        let now = if active.peek().is_some() {
            active.map(Watermark::at).min().flatten()
        } else {
            self.last_idle
        };
        self.watermark = self.watermark.max(now);
    }
}

/// How the watermarks of a stream's partitions move.
pub(super) fn rules(stream: &Stream) -> Rules {
    let def = &stream.def.watermark;
    Rules::new(def.disorder.micros(), def.max_ahead.micros())
}

/// Whether a row at this time is of the late class: its hour is more than one before that of the
/// watermark.
///
/// Rows of the present and the hour before are in the same few partitions, and are committed often;
/// the rest is scattered over many. With the watermark at 12:10, 11:00 is recent and 10:59 late.
fn is_late_class(time: Micros, watermark: Micros) -> bool {
    bucket(time, MICROS_PER_HOUR) + 1 < bucket(watermark, MICROS_PER_HOUR)
}

/// The retention floor that follows from how far time has come; none without a watermark, because
/// nothing is known then.
///
/// The watermark counts only as far as arrival time, both as far as it is trusted and the frame's
/// own, so that an event time in the future deletes nothing. With `retention = 10d`:
///
/// | watermark | trusted arrivals | this frame's arrival | floor |
/// |---|---|---|---|
/// | day 99 | day 100 | day 100 | day 89 |
/// | day 400 | day 100 | day 100 | day 90 |
/// | day 400 | none yet | day 100 | day 90 |
/// | day 99 | day 100 | day 50, a replay | day 40, which does not lower a floor |
fn next_retention_floor(
    stream: &Stream,
    watermark: Option<Micros>,
    arrived: Option<Micros>,
    received_at: Micros,
) -> Option<Micros> {
    let (retention, watermark) = stream.def.retention.zip(watermark)?;
    let reach = watermark
        .min(arrived.unwrap_or(received_at))
        .min(received_at);
    Some(stream.partition_start(reach.saturating_sub(retention.micros())))
}

/// Moves rows below the retention floor from a batch to the dead letters.
pub(super) fn reject_below_retention(
    below_retention: &[usize],
    retention_floor: Micros,
    decoded: &Decoded,
    (batch, late_class): (RecordBatch, Option<Vec<bool>>),
    output: &mut Output,
) -> (RecordBatch, Option<Vec<bool>>) {
    let times = times(&decoded.rows);
    let first = output.frame.header.first_lsn;
    let mut keep = vec![true; batch.num_rows()];
    for row in below_retention {
        keep[*row] = false;
        let index = decoded.index[*row];
        let reason = format!(
            "event_time {} is before the retention's floor {}",
            rfc3339(times[*row]),
            rfc3339(retention_floor)
        );
        output.dead_letters.push(DeadLetter {
            lsn: first + u64::from(index),
            index,
            reason: reason.into(),
        });
    }
    output.dead_letters.sort_by_key(|d| d.lsn);
    let late_class = late_class.map(|o| {
        o.into_iter()
            .zip(&keep)
            .filter_map(|(o, k)| k.then_some(o))
            .collect()
    });
    let batch = arrow::compute::filter_record_batch(&batch, &BooleanArray::from(keep))
        .expect("the mask has one value per row");
    (batch, late_class)
}

/// Event times of decoded rows.
pub(super) fn times(rows: &RecordBatch) -> &[Micros] {
    column_times(rows, 0)
}

/// Puts the columns that Weir adds before the decoded ones.
pub(super) fn stamp(
    stream: &Stream,
    header: &Header,
    decoded: &Decoded,
    duplicates: Vec<bool>,
    sessions: Option<Vec<Option<String>>>,
) -> RecordBatch {
    let rows = decoded.index.len();
    let lsn: Vec<i64> = decoded
        .index
        .iter()
        .map(|i| (header.first_lsn + u64::from(*i)) as i64)
        .collect();
    let received = vec![header.received_at; rows];
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(lsn)),
        decoded.rows.column(0).clone(),
        Arc::new(TimestampMicrosecondArray::from(received).with_timezone("UTC")),
        Arc::new(StringArray::from_iter_values(std::iter::repeat_n(
            header.source.as_str(),
            rows,
        ))),
    ];
    if stream.duplicates().is_some() {
        columns.push(Arc::new(BooleanArray::from(duplicates)));
    }
    if let Some(sessions) = sessions {
        columns.push(Arc::new(StringArray::from(sessions)));
    }
    columns.extend(decoded.rows.columns()[1..].iter().cloned());
    RecordBatch::try_new(stream.table_schema.clone(), columns)
        .expect("the table's schema is that of these columns")
}
