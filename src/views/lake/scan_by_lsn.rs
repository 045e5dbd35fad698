//! Rows of a table in the order of their LSNs: for sinks, and for a replay where `raw` no longer
//! has the records.

use arrow::array::{Array, AsArray, BooleanArray, Int64Array, RecordBatch, UInt32Array};
use arrow::buffer::OffsetBuffer;
use arrow::compute::{filter_record_batch, interleave_record_batch, take_record_batch};
use arrow::datatypes::DataType;

use super::files::{FileEntry, times};
use super::open_file::OpenFile;
use super::table::TableState;
use super::{LakeError, LakeTable, TableSpec};
use crate::event::{Lsn, Micros};
use crate::operators::lsns;

/// LSNs whose rows are in memory at once, at first and at most.
const FIRST_RANGE: u64 = 64;
const MAX_RANGE: u64 = 4 << 10;
/// Target for the bytes of their rows. The size of a range follows from the one before, at most
/// doubled.
const RANGE_BYTES: u64 = 16 << 20;
/// How many times the target the rows may have; a single record's may have more.
const MAX_OVER_TARGET: u64 = 2;
/// Rows of a file that is read whole: opening it again for the next ranges would take longer than
/// reading it. Late rows are in many such files.
const SMALL_FILE_ROWS: usize = 1 << 10;
/// Bytes of rows of small files that wait for their range.
const MAX_WAITING_BYTES: u64 = 4 << 20;
/// Files that stay open from one range to the next; others are opened again.
const MAX_OPEN_FILES: usize = 8;

/// How many rows are read at once.
#[derive(Debug, Clone, Copy)]
pub struct RangeLimits {
    /// LSNs at first.
    pub first: u64,
    /// LSNs at most.
    pub max: u64,
    /// Target for the bytes of their rows.
    pub bytes: u64,
}

/// Reads the rows of a range of LSNs.
pub struct LsnOrderedRows {
    spec: TableSpec,
    files: Vec<File>,
    /// Rows in memory, in the order of their LSNs within a batch.
    in_memory: Vec<RecordBatch>,
    /// Likewise, of small files, with the bytes of each batch.
    waiting: Vec<(RecordBatch, u64)>,
    /// Rows below this time are not part of the table.
    floor: Option<Micros>,
    /// The newest time of a row below the floor.
    newest_hidden: Option<Micros>,
    after: Lsn,
    to: Lsn,
    range: u64,
    limits: RangeLimits,
}

/// A file of which rows may be wanted.
struct File {
    entry: FileEntry,
    open: Option<OpenFile>,
}

fn closed(entries: &[FileEntry]) -> Vec<File> {
    let closed = |entry: &FileEntry| File {
        entry: entry.clone(),
        open: None,
    };
    entries.iter().map(closed).collect()
}

impl LsnOrderedRows {
    /// The committed rows of a table above `after`, up to `to`.
    pub fn new(table: &LakeTable, after: Lsn, to: Lsn) -> Self {
        Self {
            spec: table.spec.clone(),
            files: closed(&table.all_files()),
            in_memory: Vec::new(),
            waiting: Vec::new(),
            floor: None,
            newest_hidden: None,
            after,
            to,
            range: FIRST_RANGE,
            limits: RangeLimits {
                first: FIRST_RANGE,
                max: MAX_RANGE,
                bytes: RANGE_BYTES,
            },
        }
    }

    /// All rows of a table above `after`, up to `to`, at one moment. Not for entity tables, in
    /// which a later row replaces an earlier one.
    pub fn of_snapshot(
        table: &LakeTable,
        state: &TableState,
        (after, to): (Lsn, Lsn),
        limits: RangeLimits,
    ) -> Result<Self, LakeError> {
        let parts = state.unflushed.iter().flatten();
        let parts = parts.filter(|part| part.last_lsn() > after);
        let unflushed = parts.map(|part| part.batch(&table.spec.schema));
        Ok(Self {
            in_memory: unflushed.collect::<Result<_, _>>()?,
            files: closed(&state.files),
            floor: state.floor(),
            range: limits.first,
            limits,
            ..Self::new(table, after, to)
        })
    }

    /// Skips files whose rows all have this time or a later one.
    pub fn only_before(&mut self, time: Micros) {
        self.files.retain(|file| file.entry.min_time < time);
    }

    /// The LSN up to which all rows have been read.
    pub fn position(&self) -> Lsn {
        self.after
    }

    /// LSNs of the next range.
    pub fn range(&self) -> u64 {
        self.range
    }

    /// The next rows, in order; `None` at the end.
    pub fn next_rows(&mut self) -> Result<Option<RecordBatch>, LakeError> {
        loop {
            let Some(first) = self.next_lsn().filter(|first| *first <= self.to) else {
                self.after = self.to;
                return Ok(None);
            };
            let end = first.saturating_add(self.range - 1).min(self.to);
            let mut range = RangeRows::new(first, end);
            self.read_range(&mut range)?;
            let last = range.last;
            let rows = merged_by_lsn(&self.spec, &range.parts)?;
            drop(range);
            self.after = last;
            let bytes = bytes_of(&rows).max(1);
            self.range = ((last - first + 1).saturating_mul(self.limits.bytes) / bytes)
                .clamp(1, (2 * self.range).min(self.limits.max));
            let rows = self.above_floor(rows)?;
            if rows.num_rows() > 0 {
                return Ok(Some(rows));
            }
        }
    }

    /// Collects the rows of a range, which may become shorter.
    fn read_range(&mut self, range: &mut RangeRows) -> Result<(), LakeError> {
        let (spec, max_bytes) = (&self.spec, MAX_OVER_TARGET * self.limits.bytes);
        let mut waiting_bytes = self.waiting.iter().map(|(_, bytes)| bytes).sum::<u64>();
        let mut open_files = 0;
        let mut at = 0;
        while let Some(file) = self.files.get_mut(at) {
            if file.entry.min_lsn > range.last {
                // The range may have been longer when it was opened.
                file.open = None;
                at += 1;
                continue;
            }
            let open = match file.open.take() {
                Some(open) => open,
                None => OpenFile::open(spec, &file.entry)?,
            };
            let waits = waiting_bytes.saturating_add(open.row_bytes()) <= MAX_WAITING_BYTES;
            if open.rows() <= SMALL_FILE_ROWS && waits {
                let rows = open.read(spec, &(range.first..=self.to))?;
                let rows = merged_by_lsn(spec, &rows.collect::<Result<Vec<_>, _>>()?)?;
                let bytes = bytes_of(&rows);
                waiting_bytes += bytes;
                self.waiting.push((rows, bytes));
                self.files.remove(at);
                continue;
            }
            for rows in open.read(spec, &(range.first..=range.last))? {
                range.add(rows?, max_bytes)?;
            }
            open_files += 1;
            file.open = (open_files <= MAX_OPEN_FILES).then_some(open);
            at += 1;
        }
        let waiting = self.waiting.iter().map(|(rows, _)| rows);
        for rows in self.in_memory.iter().chain(waiting) {
            if let Some(found) = range.of_memory(rows) {
                range.add(found, max_bytes)?;
            }
        }
        Ok(())
    }

    /// The LSN of the next row, or one below it.
    fn next_lsn(&mut self) -> Option<Lsn> {
        let after = self.after;
        // Within a file rows are sorted by time, and the LSNs of files overlap.
        self.files.retain(|file| file.entry.max_lsn > after);
        let first_above = |rows: &RecordBatch| {
            let lsns = lsns(rows);
            let at = lsns.partition_point(|lsn| *lsn as Lsn <= after);
            lsns.get(at).map(|lsn| *lsn as Lsn)
        };
        self.in_memory.retain(|rows| first_above(rows).is_some());
        self.waiting.retain(|(rows, _)| first_above(rows).is_some());
        let in_files = self.files.iter();
        let in_files = in_files.map(|file| file.entry.min_lsn.max(after + 1));
        let waiting = self.waiting.iter().map(|(rows, _)| rows);
        let in_memory = self.in_memory.iter().chain(waiting);
        let in_memory = in_memory.filter_map(first_above);
        in_files.chain(in_memory).min()
    }

    /// The newest time of a row in the range that was skipped because it is below the floor.
    pub fn newest_hidden(&self) -> Option<Micros> {
        self.newest_hidden
    }

    fn above_floor(&mut self, rows: RecordBatch) -> Result<RecordBatch, LakeError> {
        let Some(floor) = self.floor else {
            return Ok(rows);
        };
        let times = times(&self.spec, &rows);
        let hidden = times.iter().filter(|time| **time < floor).max().copied();
        if hidden.is_none() {
            return Ok(rows);
        }
        self.newest_hidden = self.newest_hidden.max(hidden);
        let above: BooleanArray = times.iter().map(|time| Some(*time >= floor)).collect();
        Ok(filter_record_batch(&rows, &above)?)
    }
}

/// The rows of a range of LSNs, which becomes shorter where they are too many bytes.
struct RangeRows {
    first: Lsn,
    last: Lsn,
    parts: Vec<RecordBatch>,
    bytes: u64,
}

impl RangeRows {
    fn new(first: Lsn, last: Lsn) -> Self {
        Self {
            first,
            last,
            parts: Vec::new(),
            bytes: 0,
        }
    }

    /// The rows in memory that are in the range, if there are any.
    fn of_memory(&self, rows: &RecordBatch) -> Option<RecordBatch> {
        let lsns = lsns(rows);
        let from = lsns.partition_point(|lsn| (*lsn as Lsn) < self.first);
        let found = lsns[from..].partition_point(|lsn| (*lsn as Lsn) <= self.last);
        (found > 0).then(|| rows.slice(from, found))
    }

    /// Adds rows. Halves the range until the rows of it have at most `max_bytes` or are of one
    /// record: a range begins with a guess, and the rows of the next may be a thousand times wider.
    fn add(&mut self, rows: RecordBatch, max_bytes: u64) -> Result<(), LakeError> {
        // A file was opened with the end that the range had then.
        let rows = up_to(rows, self.last)?;
        self.bytes += bytes_of(&rows);
        self.parts.push(rows);
        while self.bytes > max_bytes && self.last > self.first {
            self.last = self.first + (self.last - self.first) / 2;
            for part in &mut self.parts {
                *part = up_to(part.clone(), self.last)?;
            }
            self.parts.retain(|part| part.num_rows() > 0);
            self.bytes = self.parts.iter().map(bytes_of).sum();
        }
        Ok(())
    }
}

/// The rows of records up to `last`.
fn up_to(rows: RecordBatch, last: Lsn) -> Result<RecordBatch, LakeError> {
    let is_in = |lsn: &i64| *lsn as Lsn <= last;
    if lsns(&rows).iter().all(is_in) {
        return Ok(rows);
    }
    let mask: BooleanArray = lsns(&rows).iter().map(|lsn| Some(is_in(lsn))).collect();
    Ok(filter_record_batch(&rows, &mask)?)
}

/// Bytes of the rows' values: they may be a slice of a larger batch.
fn bytes_of(rows: &RecordBatch) -> u64 {
    rows.columns()
        .iter()
        .map(|column| bytes_of_values(column))
        .sum()
}

fn bytes_of_values(array: &dyn Array) -> u64 {
    let nested = |offsets: &OffsetBuffer<i32>, values: &dyn Array| {
        let (first, last) = (offsets[0] as usize, offsets[array.len()] as usize);
        bytes_of_values(&values.slice(first, last - first)) + 4 * array.len() as u64
    };
    match array.data_type() {
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            nested(list.offsets(), list.values())
        }
        DataType::Map(..) => nested(array.as_map().offsets(), array.as_map().entries()),
        DataType::Struct(_) => {
            let columns = array.as_struct().columns().iter();
            columns.map(|column| bytes_of_values(column)).sum()
        }
        _ => {
            let slice = array.to_data().get_slice_memory_size();
            slice.unwrap_or_else(|_| array.get_array_memory_size()) as u64
        }
    }
}

/// Rows of several batches in the order of [`by_lsn`].
fn merged_by_lsn(spec: &TableSpec, parts: &[RecordBatch]) -> Result<RecordBatch, LakeError> {
    match parts {
        [] => return Ok(RecordBatch::new_empty(spec.schema.clone())),
        [rows] => return by_lsn(spec, rows),
        _ => {}
    }
    let keys = parts.iter().enumerate().flat_map(|(part, rows)| {
        let keys = lsns(rows).iter().zip(times(spec, rows)).enumerate();
        keys.map(move |(row, (lsn, time))| (*lsn, *time, part, row))
    });
    let mut order: Vec<_> = keys.collect();
    order.sort_unstable();
    let order = order.iter().map(|(_, _, part, row)| (*part, *row));
    let parts: Vec<&RecordBatch> = parts.iter().collect();
    Ok(interleave_record_batch(&parts, &order.collect::<Vec<_>>())?)
}

/// Rows in the order of their LSNs; those of one record in the order of their times, as files have
/// them, so that rows in memory and in files come in one order.
pub fn by_lsn(spec: &TableSpec, rows: &RecordBatch) -> Result<RecordBatch, LakeError> {
    let lsns = rows
        .column(0)
        .as_any()
        .downcast_ref::<Int64Array>()
        .ok_or_else(|| LakeError::rows("the first column is not an LSN"))?
        .values();
    let times = times(spec, rows);
    let key = |row: &u32| (lsns[*row as usize], times[*row as usize]);
    let rows_in_order = 0..rows.num_rows() as u32;
    if rows_in_order.clone().is_sorted_by_key(|row| key(&row)) {
        return Ok(rows.clone());
    }
    let mut order: Vec<u32> = rows_in_order.collect();
    order.sort_by_key(key);
    Ok(take_record_batch(rows, &UInt32Array::from(order))?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ListArray, StringArray, TimestampMicrosecondArray};
    use arrow::datatypes::{Field, Int64Type, Schema};
    use proptest::prelude::*;

    use super::*;
    use crate::event::MICROS_PER_SECOND;
    use crate::ids::TableId;
    use crate::schema::{Layout, types};
    use crate::views::lake::RowClass;
    use crate::views::lake::files::{Attempt, write_partitions};

    /// Rows of these LSNs, each with a text of so many bytes.
    fn rows(lsns: impl Iterator<Item = i64>, width: usize) -> RecordBatch {
        let lsns: Vec<i64> = lsns.collect();
        let texts = StringArray::from_iter_values(lsns.iter().map(|_| "x".repeat(width)));
        let schema = Schema::new(vec![
            Field::new("lsn", DataType::Int64, false),
            Field::new("text", DataType::Utf8, false),
        ]);
        let columns: Vec<Arc<dyn Array>> = vec![Arc::new(Int64Array::from(lsns)), Arc::new(texts)];
        RecordBatch::try_new(Arc::new(schema), columns).expect("the columns fit")
    }

    fn lsns_of(range: &RangeRows) -> Vec<i64> {
        let parts = range.parts.iter();
        let mut found: Vec<i64> = parts.flat_map(|part| lsns(part).to_vec()).collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn a_range_of_unexpectedly_wide_rows_becomes_shorter_and_loses_none() {
        let mut range = RangeRows::new(1, 4_096);
        // As files have them: each in the order of time, their LSNs overlap.
        for first in [2, 1] {
            range
                .add(rows((first..=4_096).step_by(2), 1_000), 100_000)
                .expect("the rows fit");
            assert!(range.bytes <= 100_000, "{}", range.bytes);
        }
        assert!((32..=128).contains(&range.last), "{}", range.last);
        assert_eq!(lsns_of(&range), (1..=range.last as i64).collect::<Vec<_>>());
    }

    #[test]
    fn rows_that_come_after_the_range_became_shorter_are_left_for_the_next() {
        let mut range = RangeRows::new(1, 1_000);
        range
            .add(rows(1..=100, 1_000), 20_000)
            .expect("the rows fit");
        let last = range.last;
        assert!(last < 20, "{last}");
        for more in [101..=110, 1_000..=1_000] {
            range.add(rows(more, 1), 20_000).expect("the rows fit");
        }
        assert_eq!(range.last, last);
        assert_eq!(lsns_of(&range), (1..=last as i64).collect::<Vec<_>>());
    }

    #[test]
    fn the_rows_of_one_record_are_read_whole() {
        let mut range = RangeRows::new(7, 9);
        range.add(rows(7..=9, 5_000), 1_000).expect("the rows fit");
        assert_eq!((range.last, lsns_of(&range)), (7, vec![7]));
        range
            .add(rows([7, 7].into_iter(), 5_000), 1_000)
            .expect("the rows fit");
        assert_eq!(lsns_of(&range), [7, 7, 7]);
    }

    #[test]
    fn rows_in_memory_count_by_what_is_taken_of_them() {
        let mut range = RangeRows::new(10, 19);
        assert!(range.of_memory(&rows(20..=30, 1)).is_none());
        let found = range.of_memory(&rows(1..=1_000, 1_000)).expect("rows");
        assert_eq!(found.num_rows(), 10);
        range.add(found, 20_000).expect("the rows fit");
        assert_eq!((range.last, range.parts.len()), (19, 1));
    }

    #[test]
    fn a_slice_counts_what_is_in_it() {
        let lists = (0..1_000).map(|n| Some(vec![Some(n); 100]));
        let list = ListArray::from_iter_primitive::<Int64Type, _, _>(lists);
        let columns: [(_, Arc<dyn Array>); 1] = [("list", Arc::new(list))];
        let rows = RecordBatch::try_from_iter(columns).expect("the columns fit");
        let (whole, tenth) = (bytes_of(&rows), bytes_of(&rows.slice(500, 100)));
        assert!((800_000..900_000).contains(&whole), "{whole}");
        assert!((80_000..90_000).contains(&tenth), "{tenth}");
    }

    #[test]
    fn a_large_batch_in_memory_is_read_in_ranges_that_do_not_shrink() {
        let lake = tempfile::tempdir().expect("a folder");
        let spec = events(lake.path());
        let batch: Vec<(i64, i64)> = (1..=20_000).map(|lsn| (lsn, lsn)).collect();
        let limits = RangeLimits {
            first: 64,
            max: 4_096,
            bytes: 100_000,
        };
        let mut rows = of_parts(&spec, &[], vec![numbered(&spec, &batch, 0)], 0, limits);
        let mut ranges = 0;
        while rows.next_rows().expect("readable").is_some() {
            ranges += 1;
        }
        assert!(ranges < 20, "{ranges} ranges");
    }

    fn of_parts(
        spec: &TableSpec,
        files: &[FileEntry],
        in_memory: Vec<RecordBatch>,
        after: Lsn,
        limits: RangeLimits,
    ) -> LsnOrderedRows {
        LsnOrderedRows {
            spec: spec.clone(),
            files: closed(files),
            in_memory,
            waiting: Vec::new(),
            floor: None,
            newest_hidden: None,
            after,
            to: Lsn::MAX,
            range: limits.first,
            limits,
        }
    }

    fn events(lake: &std::path::Path) -> TableSpec {
        let fields = vec![
            Field::new("lsn", DataType::Int64, true),
            Field::new("event_time", types::timestamp(), true),
            Field::new("number", DataType::Int64, true),
        ];
        let schema = Arc::new(Schema::new(fields));
        TableSpec::new(lake, TableId::stream("events"), schema, Layout::Hours)
    }

    /// Rows of these LSNs and times, numbered from `first` on.
    fn numbered(spec: &TableSpec, rows: &[(i64, i64)], first: i64) -> RecordBatch {
        let lsns = Int64Array::from_iter_values(rows.iter().map(|row| row.0));
        let times = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.1));
        let numbers = Int64Array::from_iter_values(first..first + rows.len() as i64);
        let columns: Vec<Arc<dyn Array>> = vec![
            Arc::new(lsns),
            Arc::new(times.with_timezone("UTC")),
            Arc::new(numbers),
        ];
        RecordBatch::try_new(spec.schema.clone(), columns).expect("the columns fit")
    }

    /// LSN, time and number of each row, in the order in which they come.
    fn read_all(rows: &mut LsnOrderedRows) -> Vec<(i64, i64, i64)> {
        let mut all = Vec::new();
        while let Some(batch) = rows.next_rows().expect("readable") {
            let numbers = batch.column(2).as_primitive::<Int64Type>().values();
            let times = times(&rows.spec, &batch);
            let of_batch = lsns(&batch).iter().zip(times).zip(numbers);
            all.extend(of_batch.map(|((lsn, time), number)| (*lsn, *time, *number)));
            assert!(rows.position() >= all.last().expect("a row").0 as Lsn);
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Commits of small and of larger files, each in the hours of its rows, and rows in memory.
        #[test]
        fn every_row_above_the_cursor_comes_once_in_the_order_of_lsns(
            commits in prop::collection::vec(prop_oneof![1usize..20, 1_000usize..4_000], 1..7),
            disorder in prop_oneof![Just(1i64), Just(7_200)],
            seed in any::<u64>(),
            after in 0u64..6_000,
            bytes in prop_oneof![Just(2_000u64), Just(200_000), Just(8 << 20)],
        ) {
            use rand::{Rng, SeedableRng};
            let folder = tempfile::tempdir().expect("a folder");
            let spec = events(folder.path());
            let mut random = rand::rngs::StdRng::seed_from_u64(seed);
            let (mut lsn, mut all, mut files) = (0, Vec::new(), Vec::new());
            let mut in_memory = Vec::new();
            for (at, count) in commits.iter().enumerate() {
                let rows: Vec<(i64, i64)> = (0..*count).map(|_| {
                    // A record may have several rows.
                    lsn += random.random_range(0..2);
                    let second = lsn + random.random_range(0..disorder);
                    (lsn + 1, second * MICROS_PER_SECOND)
                }).collect();
                let batch = numbered(&spec, &rows, all.len() as i64);
                let numbers = all.len() as i64..;
                all.extend(rows.iter().zip(numbers).map(|((l, t), n)| (*l, *t, n)));
                lsn += 1;
                if at + 1 < commits.len() {
                    let attempt = Attempt::new(&spec);
                    let written = write_partitions(&spec, &attempt, &[batch], RowClass::Recent, 0)
                        .expect("written");
                    files.extend(written);
                    attempt.persist();
                } else {
                    in_memory.push(batch);
                }
            }
            let limits = RangeLimits { first: 64, max: 4_096, bytes };
            let mut rows = of_parts(&spec, &files, in_memory, after, limits);
            let found = read_all(&mut rows);
            let in_order = found.iter().map(|row| (row.0, row.1));
            prop_assert!(in_order.is_sorted());
            let mut found = found;
            found.sort_unstable();
            all.retain(|row| row.0 as Lsn > after);
            all.sort_unstable();
            prop_assert_eq!(found, all);
        }
    }
}
