//! A file of a table that is read one range of LSNs after the other. Its footer, and unless it is
//! large, which row has which LSN, are read once. Rows are sorted by time, so that a range is some
//! runs of rows; pages without one of them are not read.

use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;

use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection,
    RowSelectionPolicy,
};
use parquet::file::metadata::PageIndexPolicy;

use super::checked::CheckedFile;
use super::error::AtPath;
use super::files::{FileEntry, ReadRows, columns_of, in_columns_of};
use super::footers::{LakeFile, rows_at_once, widest_row};
use super::{LakeError, TableSpec};
use crate::event::Lsn;
use crate::operators::lsns;

/// Rows of the LSN column that are read at once.
const LSN_ROWS: usize = 8 << 10;
/// Rows of a file whose LSNs are kept in memory.
const MAX_KEPT_LSNS: usize = 128 << 10;

/// A file that is open for reading.
pub struct OpenFile {
    path: PathBuf,
    file: LakeFile,
    metadata: ArrowReaderMetadata,
    /// The columns that the table has.
    columns: ProjectionMask,
    /// The LSN of each row, in the order of the file; none of a large one.
    lsns: Option<Vec<i64>>,
}

impl OpenFile {
    /// Opens a file after verifying all of it.
    pub fn open(spec: &TableSpec, entry: &FileEntry) -> Result<Self, LakeError> {
        let checked = CheckedFile::new(spec, entry);
        checked.check(0..checked.bytes())?;
        let path = checked.path().to_owned();
        let file = LakeFile::open(&checked)?;
        let options = ArrowReaderOptions::new().with_offset_index_policy(PageIndexPolicy::Optional);
        let metadata = ArrowReaderMetadata::load(&file, options).at(&path)?;
        let mut open = Self {
            columns: columns_of(spec, metadata.schema(), metadata.parquet_schema()),
            path,
            file,
            metadata,
            lsns: None,
        };
        if open.rows() <= MAX_KEPT_LSNS {
            let mut all = Vec::with_capacity(open.rows());
            open.read_lsns(|lsns| all.extend_from_slice(lsns))?;
            open.lsns = Some(all);
        }
        Ok(open)
    }

    fn reader(
        &self,
        columns: ProjectionMask,
        rows: usize,
    ) -> ParquetRecordBatchReaderBuilder<LakeFile> {
        let (file, metadata) = (self.file.clone(), self.metadata.clone());
        ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata)
            .with_projection(columns)
            .with_batch_size(rows)
    }

    fn read_lsns(&self, mut visit: impl FnMut(&[i64])) -> Result<(), LakeError> {
        let column = ProjectionMask::columns(self.metadata.parquet_schema(), ["lsn"]);
        for rows in self.reader(column, LSN_ROWS).build().at(&self.path)? {
            visit(lsns(&rows.at(&self.path)?));
        }
        Ok(())
    }

    /// Which rows have a wanted LSN.
    fn runs(&self, wanted: &RangeInclusive<Lsn>) -> Result<Vec<Range<usize>>, LakeError> {
        let mut runs = Runs::default();
        match &self.lsns {
            Some(lsns) => runs.add(lsns, wanted),
            None => self.read_lsns(|lsns| runs.add(lsns, wanted))?,
        }
        Ok(runs.found)
    }

    /// Its number of rows.
    pub fn rows(&self) -> usize {
        self.metadata.metadata().file_metadata().num_rows().max(0) as usize
    }

    /// Bytes of its rows once they are read, approximately and at most.
    pub fn row_bytes(&self) -> u64 {
        widest_row(self.metadata.metadata()) * self.rows() as u64
    }

    /// The rows with these LSNs in the table's columns, a few megabytes at a time.
    pub fn read<'a>(
        &'a self,
        spec: &'a TableSpec,
        wanted: &RangeInclusive<Lsn>,
    ) -> Result<impl Iterator<Item = ReadRows> + use<'a>, LakeError> {
        let rows = rows_at_once(self.metadata.metadata());
        let runs = self.runs(wanted)?.into_iter();
        let selection = RowSelection::from_consecutive_ranges(runs, self.rows());
        let reader = self
            .reader(self.columns.clone(), rows)
            // The other policy decodes all rows between those of a batch.
            .with_row_selection_policy(RowSelectionPolicy::Selectors)
            .with_row_selection(selection);
        Ok(reader.build().at(&self.path)?.map(|batch| {
            let batch = batch.at(&self.path)?;
            in_columns_of(spec, &batch).at(&self.path)
        }))
    }
}

/// Runs of wanted rows among those that were added so far.
#[derive(Default)]
struct Runs {
    found: Vec<Range<usize>>,
    rows: usize,
}

impl Runs {
    fn add(&mut self, lsns: &[i64], wanted: &RangeInclusive<Lsn>) {
        for (row, lsn) in (self.rows..).zip(lsns) {
            if !wanted.contains(&(*lsn as Lsn)) {
                continue;
            }
            match self.found.last_mut() {
                Some(run) if run.end == row => run.end += 1,
                _ => self.found.push(row..row + 1),
            }
        }
        self.rows += lsns.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_the_wanted_rows_however_they_come() {
        let lsns = [5, 3, 4, 9, 4, 4, 1];
        for (wanted, expected) in [
            (3..=5, &[(0, 3), (4, 6)][..]),
            (0..=9, &[(0, 7)]),
            (1..=1, &[(6, 7)]),
            (6..=8, &[]),
            (9..=20, &[(3, 4)]),
        ] {
            for parts in 1..=lsns.len() {
                let mut runs = Runs::default();
                let parts = lsns.chunks(parts);
                parts.for_each(|part| runs.add(part, &wanted));
                let found = runs.found.iter().map(|run| (run.start, run.end));
                assert_eq!(found.collect::<Vec<_>>(), expected, "{wanted:?}");
            }
        }
    }
}
