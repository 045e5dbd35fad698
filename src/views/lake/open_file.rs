//! A file of a table that is read one range of LSNs after the other. Its footer, and which row has
//! which LSN, are read once. Rows are sorted by time, so that a range is some runs of rows; pages
//! without one of them are not read.

use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;

use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection,
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

/// A file that is open for reading.
pub struct OpenFile {
    path: PathBuf,
    file: LakeFile,
    metadata: ArrowReaderMetadata,
    /// The columns that the table has.
    columns: ProjectionMask,
    /// The LSN of each row, in the order of the file.
    lsns: Vec<i64>,
}

impl OpenFile {
    /// Opens a file after verifying all of it.
    pub fn open(spec: &TableSpec, entry: &FileEntry) -> Result<Self, LakeError> {
        let checked = CheckedFile::new(spec, entry);
        checked.check(0..checked.bytes())?;
        let path = checked.path().to_owned();
        let file = LakeFile::open(&checked).at(&path)?;
        let options = ArrowReaderOptions::new().with_offset_index_policy(PageIndexPolicy::Optional);
        let metadata = ArrowReaderMetadata::load(&file, options).at(&path)?;
        let mut open = Self {
            columns: columns_of(spec, metadata.schema(), metadata.parquet_schema()),
            path,
            file,
            metadata,
            lsns: Vec::new(),
        };
        open.lsns = open.read_lsns()?;
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

    fn read_lsns(&self) -> Result<Vec<i64>, LakeError> {
        let column = ProjectionMask::columns(self.metadata.parquet_schema(), ["lsn"]);
        let reader = self.reader(column, LSN_ROWS).build().at(&self.path)?;
        let mut all = Vec::new();
        for rows in reader {
            all.extend_from_slice(lsns(&rows.at(&self.path)?));
        }
        Ok(all)
    }

    /// Its number of rows.
    pub fn rows(&self) -> usize {
        self.lsns.len()
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
        let runs = runs_of(&self.lsns, wanted);
        let selection = RowSelection::from_consecutive_ranges(runs.into_iter(), self.rows());
        let reader = self.reader(self.columns.clone(), rows);
        let reader = reader.with_row_selection(selection);
        Ok(reader.build().at(&self.path)?.map(|batch| {
            let batch = batch.at(&self.path)?;
            in_columns_of(spec, &batch).at(&self.path)
        }))
    }
}

/// Which rows have a wanted LSN.
fn runs_of(lsns: &[i64], wanted: &RangeInclusive<Lsn>) -> Vec<Range<usize>> {
    let (mut runs, mut at) = (Vec::new(), 0);
    let is_wanted = |lsn: &i64| wanted.contains(&(*lsn as Lsn));
    while let Some(skipped) = lsns[at..].iter().position(is_wanted) {
        let start = at + skipped;
        let rest = lsns[start..].iter();
        at = start + rest.take_while(|lsn| is_wanted(lsn)).count();
        runs.push(start..at);
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_the_wanted_rows() {
        let lsns = [5, 3, 4, 9, 4, 4, 1];
        for (wanted, expected) in [
            (3..=5, vec![0..3, 4..6]),
            (0..=9, vec![0..7]),
            (1..=1, vec![6..7]),
            (6..=8, vec![]),
            (9..=20, vec![3..4]),
        ] {
            assert_eq!(runs_of(&lsns, &wanted), expected, "{wanted:?}");
        }
        assert!(runs_of(&[], &(0..=9)).is_empty());
    }
}
