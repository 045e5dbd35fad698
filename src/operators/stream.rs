//! What is known of one stream, and how its rows change that: watermark, floor, duplicates, sessions,
//! row by row.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};

use super::duplicates::{Deduplicator, DuplicateHashes};
use super::sessions::{self, Seen, Sessions};
use super::values::column_times;
use super::watermark::{Observed, Rules, Watermark};
use super::{DeadLetter, Output, Totals};
use crate::decode::Decoded;
use crate::event::{Lsn, MICROS_PER_HOUR, Micros, bucket, rfc3339};
use crate::schema::{Catalog, Stream};
use crate::wal::Kind;

/// Reasons of dead letters counted one by one per stream; the others are counted together, as
/// [`OTHER_REASONS`].
const REASONS: usize = 50;
const OTHER_REASONS: &str = "other";
/// Longest reason that is counted by itself, in characters.
const REASON_CHARS: usize = 120;
/// Unknown keys remembered per stream.
const DRIFT_KEYS: usize = 1_000;

/// State of one stream.
#[derive(Debug, Clone, Default)]
pub struct StreamState {
    pub watermarks: BTreeMap<(String, String), Watermark>,
    /// The partition that went idle last, and its watermark.
    pub last_idle: Option<Micros>,
    pub idle_partition: Option<(String, String)>,
    pub watermark: Option<Micros>,
    pub duplicates: Option<Deduplicator>,
    pub sessions: Option<Sessions>,
    pub floor: Option<Micros>,
    pub totals: Totals,
    pub drift: BTreeMap<String, u64>,
    /// Dead letters by their reason.
    pub reasons: BTreeMap<String, u64>,
}

/// The sessions of a frame's rows.
struct SessionRows<'a> {
    sessions: Option<(&'a mut Sessions, ArrayRef, Option<ArrayRef>, Vec<bool>)>,
    ids: Vec<Option<String>>,
    closed: Vec<sessions::Closed>,
}

impl<'a> SessionRows<'a> {
    fn new(stream: &Stream, rows: &RecordBatch, sessions: Option<&'a mut Sessions>) -> Self {
        let text = |column: usize| {
            arrow::compute::cast(rows.column(column), &arrow::datatypes::DataType::Utf8)
                .expect("what is not nested becomes text")
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

    /// The next row belongs to no session.
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
        // An event without a key is in no session.
        let Some(key) = text(keys) else {
            return self.ids.push(None);
        };
        let track = track.as_ref().and_then(text);
        let seen = Seen {
            lsn,
            key: &key,
            time,
            track: track.as_deref(),
            opens: opens[row],
        };
        let begun = sessions.observe(&seen, &mut self.closed);
        self.ids.push(Some(sessions.id(&key, begun)));
    }

    fn advance(&mut self, mark: Micros, lsn: Lsn) {
        if let Some((sessions, ..)) = &mut self.sessions {
            sessions.advance(mark, lsn, &mut self.closed);
        }
    }

    /// Per row its session's id, where there are sessions, and the sessions that are over.
    fn finish(self) -> (Option<Vec<Option<String>>>, Vec<sessions::Closed>) {
        (self.sessions.is_some().then_some(self.ids), self.closed)
    }
}

/// What a frame's rows did to their stream's state.
pub struct Advanced {
    /// Per row, whether it says nothing new.
    pub duplicates: Vec<bool>,
    /// Per row, whether its hour is more than one before its partition's watermark; none where no
    /// row is.
    pub old: Option<Vec<bool>>,
    /// Rows below the retention's floor.
    pub below: Vec<usize>,
    /// Records behind which the stream's watermark is another one.
    pub marks: Vec<(Lsn, Micros)>,
    pub session_ids: Option<Vec<Option<String>>>,
    pub closed: Vec<sessions::Closed>,
}

impl StreamState {
    /// Takes rows in, one by one: watermark, floor, duplicates, sessions. `arrived` is how far arrival
    /// time is believed to have come.
    pub fn observe(
        &mut self,
        stream: &Stream,
        header: &crate::wal::Header,
        decoded: &Decoded,
        arrived: Option<Micros>,
    ) -> Advanced {
        let rules = rules(stream);
        let times = times(&decoded.rows);
        let mut hashes = DuplicateHashes::new(stream, &decoded.rows);
        let key = (header.source.clone(), header.partition.clone());
        // The other partitions stand still during a frame.
        let others = self
            .watermarks
            .iter()
            .filter(|(k, w)| **k != key && !w.is_idle());
        let others = others.map(|(_, w)| w.at()).min();
        // What comes back says nothing of how far time has come.
        let is_retry = header.kind == Kind::Retry;
        let mut aside = Watermark::standing(self.watermark);
        let watermark = if is_retry {
            &mut aside
        } else {
            self.watermarks.entry(key).or_default()
        };
        let rows = times.len();
        let (mut duplicates, mut old, mut below) = (Vec::with_capacity(rows), None, Vec::new());
        let (mut marks, mut mark) = (Vec::new(), self.watermark);
        let mut sessions = SessionRows::new(stream, &decoded.rows, self.sessions.as_mut());
        for (row, time) in times.iter().copied().enumerate() {
            let lsn = header.first_lsn + u64::from(decoded.index[row]);
            let before = watermark.at();
            let is_late = before.is_some_and(|w| time < w);
            if before
                .is_some_and(|w| bucket(time, MICROS_PER_HOUR) + 1 < bucket(w, MICROS_PER_HOUR))
            {
                old.get_or_insert_with(|| vec![false; rows])[row] = true;
            }
            if !is_retry {
                watermark.observe(
                    Observed {
                        time,
                        received_at: header.received_at,
                        stream: mark,
                    },
                    rules,
                );
            }
            let now = others.map_or(watermark.at(), |others| others.min(watermark.at()));
            let has_moved = now > mark && !is_retry;
            if has_moved {
                mark = now;
                marks.extend(now.map(|now| (lsn, now)));
            }
            // Without a watermark nothing is known of how far time has come, so the floor stays.
            if let (Some(retention), Some(reached)) = (stream.def.retention, watermark.at()) {
                let reach = reached
                    .min(arrived.unwrap_or(header.received_at))
                    .min(header.received_at);
                let floor = stream.partition_start(reach.saturating_sub(retention.micros()));
                self.floor = Some(self.floor.map_or(floor, |before| before.max(floor)));
            }
            if self.floor.is_some_and(|floor| time < floor) {
                below.push(row);
                duplicates.push(false);
                sessions.skip();
            } else {
                self.totals.late += u64::from(is_late);
                let late_by = before.map_or(0, |watermark| watermark.saturating_sub(time));
                self.totals.most_late = self.totals.most_late.max(late_by);
                let repeat = match (&mut hashes, &mut self.duplicates) {
                    (Some(hashes), Some(duplicates)) => {
                        hashes.at(row).is_some_and(|(key, content, version)| {
                            duplicates.observe(key, content, version)
                        })
                    }
                    _ => false,
                };
                self.totals.duplicates += u64::from(repeat);
                duplicates.push(repeat);
                sessions.observe(row, time, lsn);
            }
            if let Some(mark) = mark.filter(|_| has_moved) {
                sessions.advance(mark, lsn);
            }
        }
        let (session_ids, closed) = sessions.finish();
        Advanced {
            duplicates,
            old,
            below,
            marks,
            session_ids,
            closed,
        }
    }

    /// Counts dead letters by their reasons, and keys that the schema does not know.
    pub fn count_refused(&mut self, decoded: &Decoded, output: &Output) {
        self.totals.dead_letters += output.dead_letters.len() as u64;
        for letter in &output.dead_letters {
            let reason: String = letter.reason.chars().take(REASON_CHARS).collect();
            let is_told = self.reasons.len() < REASONS || self.reasons.contains_key(&reason);
            *self
                .reasons
                .entry(if is_told {
                    reason
                } else {
                    OTHER_REASONS.into()
                })
                .or_default() += 1;
        }
        for (key, n) in &decoded.drift {
            if self.drift.len() < DRIFT_KEYS || self.drift.contains_key(key) {
                *self.drift.entry(key.clone()).or_default() += n;
            }
        }
    }

    /// The greatest event time that the watermarks rest on.
    pub fn greatest(&self, catalog: &Catalog, stream: &str) -> Option<Micros> {
        let stream = catalog.streams.get(stream)?;
        let settled = self
            .watermarks
            .values()
            .filter_map(|watermark| watermark.settled(rules(stream)));
        Some(
            settled
                .max()?
                .saturating_add(stream.def.watermark.disorder.micros()),
        )
    }

    /// The stream's watermark: the least of the active partitions; where none is, that of the one
    /// that went idle last.
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
pub fn rules(stream: &Stream) -> Rules {
    let def = &stream.def.watermark;
    Rules::new(def.disorder.micros(), def.max_ahead.micros())
}

/// Takes rows below the retention's floor out of a batch: they become dead letters.
pub fn refuse_below(
    below: &[usize],
    floor: Micros,
    times: &[Micros],
    decoded: &Decoded,
    (batch, old): (RecordBatch, Option<Vec<bool>>),
    output: &mut Output,
) -> (RecordBatch, Option<Vec<bool>>) {
    let first = output.frame.header.first_lsn;
    let mut keep = vec![true; batch.num_rows()];
    for row in below {
        keep[*row] = false;
        let index = decoded.index[*row];
        let reason = format!(
            "event_time {} is before the retention's floor {}",
            rfc3339(times[*row]),
            rfc3339(floor)
        );
        output.dead_letters.push(DeadLetter {
            lsn: first + u64::from(index),
            index,
            reason: reason.into(),
        });
    }
    output.dead_letters.sort_by_key(|d| d.lsn);
    let old = old.map(|o| {
        o.into_iter()
            .zip(&keep)
            .filter_map(|(o, k)| k.then_some(o))
            .collect()
    });
    let batch = arrow::compute::filter_record_batch(&batch, &BooleanArray::from(keep))
        .expect("the mask has one value per row");
    (batch, old)
}

/// Event times of decoded rows.
pub fn times(rows: &RecordBatch) -> &[Micros] {
    column_times(rows, 0)
}

/// Puts a stream table's stamp before the decoded columns.
pub fn stamp(
    stream: &Stream,
    header: &crate::wal::Header,
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
        .expect("the table's schema is the stamp and these columns")
}
