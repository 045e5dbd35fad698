//! Levels of an entity table, its sorted runs: changed rows, in the order of their places, in a
//! file that is not part of the table for an outside reader. The table's metadata names it under
//! [`KEY`].
//!
//! For example, with row groups of 4,096 rows, commits of 3,000 rows each give levels of the lowest
//! tier. The fourth finds three of them, and all become one of 12,000 rows, of the next tier.

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch, UInt64Array};
use arrow::compute::{filter_record_batch, sort_to_indices, take_record_batch};
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde::{Deserialize, Serialize};

use super::Sizes;
use super::leaves::{Leaf, Place, RowsByPlace, newest_of, places, reached};
use crate::event::{Lsn, Micros};
use crate::views::lake::checked::{BlockChecksums, CheckedFile};
use crate::views::lake::error::{AtPath, FileError};
use crate::views::lake::files::{Attempt, FileEntry, FileWriter, NewFile, read_in_parts};
use crate::views::lake::{LakeError, RowClass, TableSpec};

/// The property of a table's Delta metadata that names its levels.
pub const KEY: &str = "weir.levels";
/// Their folder in the table's: Delta passes over names that begin so, also where it removes what
/// no version names.
pub const FOLDER: &str = "_levels";
/// The key of their own part in a file's footer.
pub const FOOTER: &str = "weir.level";
/// So many levels of one tier become one.
const ALIKE: usize = 4;

/// Changed rows in one file.
#[derive(Debug, Clone)]
pub struct Level {
    /// Its file, below [`FOLDER`].
    pub entry: FileEntry,
    index: Arc<Index>,
}

impl PartialEq for Level {
    fn eq(&self, other: &Self) -> bool {
        self.entry.path == other.entry.path
    }
}

/// The places of its rows, stored in the footer.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Index {
    /// The first place of each row group.
    groups: Vec<Place>,
    /// First place, last place and rows in each leaf that it reached when it was written.
    spans: Vec<(Place, Place, u64)>,
}

/// A level's entry in the metadata.
#[derive(Serialize, Deserialize)]
struct LevelEntry {
    path: String,
    bytes: u64,
    rows: u64,
    times: (Micros, Micros),
    lsns: (Lsn, Lsn),
    /// When its oldest row was written.
    since_ms: i64,
    /// Its checksums.
    #[serde(default)]
    crc32c: Option<String>,
}

/// The text by which the metadata names levels.
pub fn to_text(levels: &[Level]) -> String {
    let named = levels.iter().map(|Level { entry, .. }| LevelEntry {
        path: entry.path.clone(),
        bytes: entry.bytes,
        rows: entry.rows,
        times: (entry.min_time, entry.max_time),
        lsns: (entry.min_lsn, entry.max_lsn),
        since_ms: entry.written_ms,
        crc32c: entry.checks.to_text(),
    });
    serde_json::to_string(&named.collect::<Vec<_>>()).unwrap_or_default()
}

/// The levels that a text names.
pub fn from_text(spec: &TableSpec, text: &str) -> Result<Vec<Level>, LakeError> {
    let named: Vec<LevelEntry> =
        serde_json::from_str(text).map_err(|source| LakeError::Levels { source })?;
    let level = |named: LevelEntry| {
        let entry = FileEntry {
            path: named.path,
            bytes: named.bytes,
            rows: named.rows,
            bucket: 0,
            class: RowClass::Recent,
            min_time: named.times.0,
            max_time: named.times.1,
            min_lsn: named.lsns.0,
            max_lsn: named.lsns.1,
            written_ms: named.since_ms,
            checks: named
                .crc32c
                .as_deref()
                .map(BlockChecksums::from_text)
                .unwrap_or_default(),
        };
        // A damaged file counts as reaching all places, and a read of its rows reports the error:
        // so the table can be opened, and rebuilt.
        let index = read_index(spec, &entry).unwrap_or_else(|error| {
            tracing::error!(
                table = spec.name,
                reason = error.to_string(),
                "rows that wait to be merged cannot be read"
            );
            Index {
                groups: Vec::new(),
                spans: vec![(Place::MIN, Place::MAX, entry.rows)],
            }
        });
        Level {
            entry,
            index: Arc::new(index),
        }
    };
    Ok(named.into_iter().map(level).collect())
}

fn read_index(spec: &TableSpec, entry: &FileEntry) -> Result<Index, LakeError> {
    let path = spec.root.join(&entry.path);
    let file = CheckedFile::new(spec, entry).open()?;
    let reader = SerializedFileReader::new(file).at(&path)?;
    let footer = reader.metadata().file_metadata().key_value_metadata();
    let own = footer
        .into_iter()
        .flatten()
        .find(|pair| pair.key == FOOTER)
        .and_then(|pair| pair.value.as_deref());
    serde_json::from_str(own.unwrap_or_default())
        .map_err(|source| FileError::LevelIndex { source })
        .at(&path)
}

impl Level {
    /// Number of rows.
    pub fn rows(&self) -> u64 {
        self.entry.rows
    }

    /// Where it has rows: ranges of places, and how many.
    pub fn spans(&self) -> impl Iterator<Item = (RangeInclusive<Place>, u64)> {
        self.index
            .spans
            .iter()
            .map(|(first, last, rows)| (*first..=*last, *rows))
    }

    /// Whether it has rows of a range, as far as its index says.
    pub fn reaches(&self, places: &RangeInclusive<Place>) -> bool {
        let from = self
            .index
            .spans
            .partition_point(|(_, last, _)| last < places.start());
        self.index
            .spans
            .get(from)
            .is_some_and(|(first, ..)| first <= places.end())
    }

    /// Its rows of a range.
    pub fn read(
        &self,
        spec: &TableSpec,
        range: &RangeInclusive<Place>,
    ) -> Result<Vec<RecordBatch>, LakeError> {
        if !self.reaches(range) {
            return Ok(Vec::new());
        }
        let groups = &self.index.groups;
        let is_wanted = |n: &usize| {
            groups[*n] <= *range.end()
                && groups.get(n + 1).is_none_or(|next| *next >= *range.start())
        };
        let wanted: Vec<usize> = (0..groups.len()).filter(is_wanted).collect();
        let wanted = (!groups.is_empty()).then_some(wanted);
        let batches = read_in_parts(spec, &self.entry, wanted)?;
        let within = |batch: Result<RecordBatch, LakeError>| {
            let batch = batch?;
            let mask: BooleanArray = places(spec, &batch)
                .iter()
                .map(|place| Some(range.contains(place)))
                .collect();
            Ok(filter_record_batch(&batch, &mask)?)
        };
        batches.map(within).collect()
    }
}

/// The size class of a level (size-tiered compaction): each is [`ALIKE`] times as large as the one
/// before.
fn tier(rows: u64, sizes: &Sizes) -> u32 {
    (rows / sizes.group_rows as u64)
        .checked_ilog(ALIKE as u64)
        .map_or(0, |t| t + 1)
}

/// The levels that become one with so many new rows, so that there are few of each size.
fn alike(rows: u64, levels: &[u64], sizes: &Sizes) -> Vec<usize> {
    let (mut all, mut taken) = (rows, HashSet::new());
    loop {
        let of_size = |n: &usize| !taken.contains(n) && tier(levels[*n], sizes) <= tier(all, sizes);
        let more: Vec<usize> = (0..levels.len()).filter(of_size).collect();
        if more.len() + 1 < ALIKE {
            let mut taken: Vec<usize> = taken.into_iter().collect();
            taken.sort_unstable();
            return taken;
        }
        all += more.iter().map(|n| levels[*n]).sum::<u64>();
        taken.extend(more);
    }
}

/// Writes rows in memory as a level, together with those levels that are alike; gives it and the
/// paths of those.
pub fn add(
    spec: &TableSpec,
    sizes: &Sizes,
    attempt: &Attempt,
    leaves: &[Leaf],
    (levels, unflushed): (&[Level], &RowsByPlace),
    now_ms: i64,
) -> Result<(Level, HashSet<String>), LakeError> {
    let rows: Vec<u64> = levels.iter().map(Level::rows).collect();
    let own: Vec<Level> = alike(unflushed.all_rows() as u64, &rows, sizes)
        .into_iter()
        .map(|n| levels[n].clone())
        .collect();
    let mut expected = vec![0; leaves.len()];
    for (range, rows) in own.iter().flat_map(Level::spans) {
        reached(leaves, &range).for_each(|leaf| expected[leaf] += rows);
    }
    for (leaf, rows) in leaves.iter().zip(&mut expected) {
        *rows += unflushed.count(&leaf.places) as u64;
    }
    let most: u64 = own.iter().map(Level::rows).sum::<u64>() + unflushed.all_rows() as u64;
    let mut writer = Writer::create(spec, sizes, attempt, most, now_ms)?;
    let mut at = 0;
    while at < leaves.len() {
        // As many leaves at once as have about a leaf's rows.
        let (mut end, mut together) = (at, 0);
        while end < leaves.len()
            && (end == at || together + expected[end] <= sizes.leaf_rows as u64)
        {
            together += expected[end];
            end += 1;
        }
        if together > 0 {
            let range = leaves[at].from()..=*leaves[end - 1].places.end();
            writer.write(
                spec,
                &leaves[at..end],
                &newest_of(spec, &[], &own, unflushed, &range)?,
            )?;
        }
        at = end;
    }
    let since_ms = own
        .iter()
        .map(|level| level.entry.written_ms)
        .chain([now_ms])
        .min()
        .unwrap_or(now_ms);
    let level = writer.finish(since_ms)?;
    Ok((
        level,
        own.into_iter().map(|level| level.entry.path).collect(),
    ))
}

/// Writes a level, in the order of places.
struct Writer {
    file: FileWriter,
    index: Index,
    rows: usize,
    group_rows: usize,
}

impl Writer {
    fn create(
        spec: &TableSpec,
        sizes: &Sizes,
        attempt: &Attempt,
        rows: u64,
        now_ms: i64,
    ) -> Result<Self, LakeError> {
        let new = NewFile::create_as(
            spec,
            attempt,
            FOLDER,
            "level",
            (0, RowClass::Recent, now_ms),
        )?;
        let group_rows = sizes.group_rows;
        let file = FileWriter::begin(spec, new, Some(rows as usize), Some(group_rows))?;
        Ok(Self {
            file,
            index: Index::default(),
            rows: 0,
            group_rows,
        })
    }

    /// Writes the rows of some leaves, after those of earlier ones.
    fn write(
        &mut self,
        spec: &TableSpec,
        leaves: &[Leaf],
        rows: &RecordBatch,
    ) -> Result<(), LakeError> {
        let at = UInt64Array::from(places(spec, rows));
        let order = sort_to_indices(&at, None, None)?;
        let sorted: Vec<Place> = order
            .values()
            .iter()
            .map(|row| at.value(*row as usize))
            .collect();
        for leaf in leaves {
            let from = sorted.partition_point(|place| place < leaf.places.start());
            let to = sorted.partition_point(|place| place <= leaf.places.end());
            if from < to {
                self.index
                    .spans
                    .push((sorted[from], sorted[to - 1], (to - from) as u64));
            }
        }
        let begun = (self.rows..self.rows + sorted.len())
            .zip(&sorted)
            .filter(|(row, _)| row % self.group_rows == 0);
        self.index.groups.extend(begun.map(|(_, place)| *place));
        self.rows += sorted.len();
        self.file.write(spec, &take_record_batch(rows, &order)?)
    }

    fn finish(mut self, since_ms: i64) -> Result<Level, LakeError> {
        let text = serde_json::to_string(&self.index)?;
        self.file.add_footer_key(FOOTER, text);
        let entry = FileEntry {
            written_ms: since_ms,
            ..self.file.finish()?
        };
        Ok(Level {
            entry,
            index: Arc::new(self.index),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_size_there_are_few_levels() {
        let sizes = Sizes {
            group_rows: 1,
            ..Sizes::default()
        };
        let mut levels: Vec<u64> = Vec::new();
        let mut written = 0;
        for n in 1..=10_000_u64 {
            let taken = alike(1, &levels, &sizes);
            let all = 1 + taken.iter().map(|at| levels[*at]).sum::<u64>();
            for at in taken.into_iter().rev() {
                levels.remove(at);
            }
            levels.push(all);
            written += all;
            assert_eq!(levels.iter().sum::<u64>(), n);
            assert!(levels.len() <= 3 * 8, "{levels:?}");
        }
        // Each row was written about as often as there are sizes.
        assert!(written <= 10_000 * 8, "{written}");
    }
}
