//! Single rows of a table, by LSN and time: of the files only the pages are read that hold them. A row's place in its file changes
//! with every merge; its time and LSN do not, and rows of a file are sorted by them, so that the page index leads to it.

use std::ops::Range;

use arrow::array::{Int64Array, RecordBatch, TimestampMicrosecondArray, UInt64Array};
use arrow::compute::take_record_batch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection,
};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::statistics::Statistics;

use super::checked::CheckedFile;
use super::files::{FileEntry, in_columns_of, with_partition_columns};
use super::footers::{Footers, LakeFile};
use super::table::TableState;
use super::{LakeTable, TableSpec};
use crate::event::{Lsn, Micros};

/// A row that is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    lsn: Lsn,
    /// Its time lies between these.
    from: Micros,
    to: Micros,
}

impl Wanted {
    fn is_at(&self, time: Micros, lsn: Lsn) -> bool {
        self.lsn == lsn && (self.from..=self.to).contains(&time)
    }
}

/// The rows of a table's snapshot that have these times and LSNs, with the partition columns, in no order. A row that has another
/// time by now, because the table was rebuilt, is found where that lies among the times that are asked for.
pub fn fetch(
    table: &LakeTable,
    state: &TableState,
    footers: &Footers,
    rows: &[(Micros, Lsn)],
) -> std::result::Result<Vec<RecordBatch>, String> {
    let spec = &table.spec;
    let exact = rows.iter().map(|(time, lsn)| Wanted { lsn: *lsn, from: *time, to: *time });
    let mut search = Search { spec, state, footers, found: Vec::new(), left: exact.collect() };
    search.run()?;
    let (Some(from), Some(to)) = (rows.iter().map(|r| r.0).min(), rows.iter().map(|r| r.0).max()) else {
        return Ok(Vec::new());
    };
    // What the table does not have yet is not looked for in its files.
    search.left.retain(|wanted| wanted.lsn <= state.applied);
    search.left.iter_mut().for_each(|wanted| (wanted.from, wanted.to) = (from, to));
    if from < to {
        search.run()?;
    }
    search.found.iter().map(|rows| with_partition_columns(spec, rows, &table.full_schema)).collect()
}

struct Search<'a> {
    spec: &'a TableSpec,
    state: &'a TableState,
    footers: &'a Footers,
    found: Vec<RecordBatch>,
    left: Vec<Wanted>,
}

impl Search<'_> {
    fn run(&mut self) -> std::result::Result<(), String> {
        if let Some(floor) = self.state.floor() {
            self.left.iter_mut().for_each(|wanted| wanted.from = wanted.from.max(floor));
            self.left.retain(|wanted| wanted.from <= wanted.to);
        }
        for part in self.state.recent.iter().chain(&self.state.old) {
            if self.left.is_empty() {
                return Ok(());
            }
            let rows = part.batch(&self.spec.schema)?;
            let lsns = crate::operators::lsns(&rows);
            let is_near =
                |lsn: Lsn| lsns.first().zip(lsns.last()).is_some_and(|(a, b)| (*a..=*b).contains(&(lsn as i64)));
            if self.left.iter().any(|wanted| is_near(wanted.lsn)) {
                let (lsns, times) = places(&rows, self.spec.time_column)?;
                let at = self.matching(lsns, times);
                self.take(&rows, &at)?;
            }
        }
        for file in self.state.files.iter() {
            let is_near = |wanted: &Wanted| {
                wanted.from <= file.max_time
                    && wanted.to >= file.min_time
                    && (file.min_lsn..=file.max_lsn).contains(&wanted.lsn)
            };
            let near: Vec<Wanted> = self.left.iter().copied().filter(is_near).collect();
            if !near.is_empty() {
                self.look_into(file, &near)?;
            }
        }
        Ok(())
    }

    /// Indexes of the rows that are wanted.
    fn matching(&self, lsns: &[i64], times: &[Micros]) -> Vec<usize> {
        let is_wanted = |(lsn, time): (&i64, &Micros)| self.left.iter().any(|w| w.is_at(*time, *lsn as Lsn));
        let all = lsns.iter().zip(times).enumerate();
        all.filter(|(_, row)| is_wanted(*row)).map(|(at, _)| at).collect()
    }

    /// Adds rows to what was found.
    fn take(&mut self, rows: &RecordBatch, at: &[usize]) -> std::result::Result<(), String> {
        if at.is_empty() {
            return Ok(());
        }
        let at: UInt64Array = at.iter().map(|at| *at as u64).collect();
        let rows = take_record_batch(rows, &at).map_err(|e| e.to_string())?;
        let lsns = crate::operators::lsns(&rows);
        self.left.retain(|wanted| !lsns.contains(&(wanted.lsn as i64)));
        self.found.push(rows);
        Ok(())
    }

    fn look_into(&mut self, entry: &FileEntry, near: &[Wanted]) -> std::result::Result<(), String> {
        let path = self.spec.root.join(&entry.path);
        let wrong = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let file = LakeFile::open(&CheckedFile::of(self.spec, entry)).map_err(|e| wrong(&e))?;
        let metadata = self.footers.read(&file).map_err(|e| wrong(&e))?;
        let metadata = ArrowReaderMetadata::try_new(metadata, ArrowReaderOptions::new()).map_err(|e| wrong(&e))?;
        let reading = Reading { spec: self.spec, file, metadata };
        let ranges = reading.near(near).map_err(|e| wrong(&e))?;
        let (mut lsns, mut times) = (Vec::new(), Vec::new());
        for rows in reading.rows(&ranges, &["lsn", self.time_name()]).map_err(|e| wrong(&e))? {
            let (more, at) = places(&rows, 1)?;
            lsns.extend_from_slice(more);
            times.extend_from_slice(at);
        }
        let numbers: Vec<usize> = ranges.into_iter().flatten().collect();
        let at: Vec<Range<usize>> =
            self.matching(&lsns, &times).into_iter().map(|at| numbers[at]..numbers[at] + 1).collect();
        if at.is_empty() {
            return Ok(());
        }
        let columns: Vec<&str> = self.spec.schema.fields().iter().map(|field| field.name().as_str()).collect();
        for rows in reading.rows(&at, &columns).map_err(|e| wrong(&e))? {
            let rows = in_columns_of(self.spec, &rows).map_err(|e| wrong(&e))?;
            self.take(&rows, &(0..rows.num_rows()).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    fn time_name(&self) -> &str {
        self.spec.schema.field(self.spec.time_column).name()
    }
}

/// LSNs, which are the first column, and times of rows.
fn places(rows: &RecordBatch, time_column: usize) -> std::result::Result<(&[i64], &[Micros]), String> {
    let lsns = rows.column(0).as_any().downcast_ref::<Int64Array>();
    let times = rows.column(time_column).as_any().downcast_ref::<TimestampMicrosecondArray>();
    match lsns.zip(times) {
        Some((lsns, times)) => Ok((lsns.values(), times.values())),
        None => Err("LSNs or times have another type".into()),
    }
}

/// One file of which a few rows are read.
struct Reading<'a> {
    spec: &'a TableSpec,
    file: LakeFile,
    metadata: ArrowReaderMetadata,
}

impl Reading<'_> {
    /// The rows of the file, by number, among which those that are wanted are.
    fn near(&self, wanted: &[Wanted]) -> Result<Vec<Range<usize>>> {
        let metadata = self.metadata.metadata();
        let column = |name: &str| {
            let columns = metadata.file_metadata().schema_descr().columns();
            columns
                .iter()
                .position(|c| c.path().parts().len() == 1 && c.name() == name)
                .ok_or_else(|| ParquetError::General(format!("the column `{name}` is missing")))
        };
        let (lsn, time) = (column("lsn")?, column(self.spec.schema.field(self.spec.time_column).name())?);
        let mut ranges: Vec<Range<usize>> = Vec::new();
        let mut first = 0;
        for (at, group) in metadata.row_groups().iter().enumerate() {
            let rows = group.num_rows() as usize;
            let (lsns, times) = (Bounds::of(metadata, at, lsn), Bounds::of(metadata, at, time));
            let mut near: Vec<Range<usize>> = Vec::new();
            for w in wanted {
                // Pages of two columns need not begin at the same rows.
                let in_both = meet(&times.rows(w.from, w.to, rows), &lsns.rows(w.lsn as i64, w.lsn as i64, rows));
                near.extend(in_both);
            }
            ranges.extend(near.into_iter().map(|range| first + range.start..first + range.end));
            first += rows;
        }
        Ok(join(ranges))
    }

    /// Rows by number, ascending, of these columns in the file's order.
    fn rows(&self, ranges: &[Range<usize>], columns: &[&str]) -> Result<Vec<RecordBatch>> {
        let metadata = self.metadata.metadata();
        let (groups, total, ranges) = groups_of(metadata.row_groups(), ranges);
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(self.file.clone(), self.metadata.clone());
        let roots = builder.schema().fields().iter().enumerate();
        let roots: Vec<usize> =
            roots.filter(|(_, field)| columns.contains(&field.name().as_str())).map(|(at, _)| at).collect();
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
        let selection = RowSelection::from_consecutive_ranges(ranges.into_iter(), total);
        let reader = builder.with_projection(mask).with_row_groups(groups).with_row_selection(selection).build()?;
        reader.map(|rows| rows.map_err(ParquetError::from)).collect()
    }
}

/// Of ranges of a file's rows: the row groups that they reach, the rows of those, and the ranges within them.
fn groups_of(groups: &[RowGroupMetaData], ranges: &[Range<usize>]) -> (Vec<usize>, usize, Vec<Range<usize>>) {
    let (mut reached, mut within) = (Vec::new(), Vec::new());
    let (mut first, mut total) = (0, 0);
    for (at, group) in groups.iter().enumerate() {
        let rows = group.num_rows() as usize;
        let here = ranges.iter().map(|range| range.start.max(first)..range.end.min(first + rows));
        let here: Vec<Range<usize>> = here.filter(|range| !range.is_empty()).collect();
        if !here.is_empty() {
            reached.push(at);
            within.extend(here.iter().map(|range| range.start - first + total..range.end - first + total));
            total += rows;
        }
        first += rows;
    }
    (reached, total, within)
}

/// What a row group says of a column of numbers.
struct Bounds<'a> {
    all: Option<&'a Statistics>,
    pages: Option<(&'a ColumnIndexMetaData, Vec<usize>)>,
}

impl<'a> Bounds<'a> {
    fn of(metadata: &'a ParquetMetaData, group: usize, column: usize) -> Self {
        let index = metadata.column_index().and_then(|index| index.get(group)?.get(column));
        let starts = metadata.offset_index().and_then(|index| index.get(group)?.get(column));
        let starts = starts.map(|index| index.page_locations().iter().map(|p| p.first_row_index as usize).collect());
        Self { all: metadata.row_group(group).column(column).statistics(), pages: index.zip(starts) }
    }

    /// The rows of the group among which a value between two may be; all where nothing is known.
    fn rows(&self, from: i64, to: i64, rows: usize) -> Vec<Range<usize>> {
        if let Some(Statistics::Int64(all)) = self.all
            && let Some((min, max)) = all.min_opt().zip(all.max_opt())
            && (*min > to || *max < from)
        {
            return Vec::new();
        }
        let Some((ColumnIndexMetaData::INT64(index), starts)) = &self.pages else {
            return std::iter::once(0..rows).collect();
        };
        let ends = starts.iter().skip(1).copied().chain([rows]);
        let pages = starts.iter().zip(ends).enumerate();
        let may_hold = |page: usize| match (index.min_value(page), index.max_value(page)) {
            (Some(min), Some(max)) => *min <= to && *max >= from,
            _ => !index.is_null_page(page),
        };
        pages.filter(|(page, _)| may_hold(*page)).map(|(_, (start, end))| *start..end).collect()
    }
}

/// What lies in a range of either.
fn meet(a: &[Range<usize>], b: &[Range<usize>]) -> Vec<Range<usize>> {
    let both = a.iter().flat_map(|a| b.iter().map(|b| a.start.max(b.start)..a.end.min(b.end)));
    both.filter(|range| !range.is_empty()).collect()
}

/// Ranges in order, those that touch as one.
fn join(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}
