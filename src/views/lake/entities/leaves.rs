//! The layout of an entity table: each key has a place, its sort key, and a leaf is a sorted file
//! with the keys of a range of places.
//!
//! For example, with 16 buckets a text whose hash ends with the hexadecimal digit 3 has a place
//! that begins with it. A file `bucket=3/recent-3800000000000000-….parquet` is the leaf from that
//! place on, up to the next leaf or to `3fffffffffffffff`, the end of its bucket.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use arrow::array::{Array, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, interleave_record_batch, take_record_batch};

use super::Sizes;
use super::levels::Level;
use crate::schema::BUCKETS;
use crate::schema::entity::newest;
use crate::views::lake::files::{Attempt, FileEntry, FileWriter, NewFile, partition_folder, read};
use crate::views::lake::{LakeError, RowClass, TableSpec};

/// The position of a key: its bucket in the first bits, then its order in the bucket. Different keys
/// may have the same place.
pub type Place = u64;

/// Bits of a place that name the bucket.
const BUCKET_BITS: u32 = BUCKETS.trailing_zeros();
/// Numbers that are equal except for so many of their last bits share a bucket.
const NEIGHBOURS: u32 = 16;
/// Rows passed to the writer at once.
const WRITE_ROWS: usize = 8 << 10;

/// The place of each row's key.
pub fn places(spec: &TableSpec, batch: &RecordBatch) -> Vec<Place> {
    // Numbers keep their order, so that ascending new ones are in the last leaves, and the others do
    // not change.
    if let [key] = spec.keys.as_slice()
        && let Some(numbers) = batch.column(*key).as_any().downcast_ref::<Int64Array>()
    {
        let place = |number: &i64| {
            let bucket = crc32c::crc32c(&(number >> NEIGHBOURS).to_le_bytes());
            placed(bucket, (*number ^ i64::MIN) as u64)
        };
        return numbers.values().iter().map(place).collect();
    }
    let mut bytes = Vec::new();
    let place = |row| {
        bytes.clear();
        spec.keys
            .iter()
            .for_each(|key| crate::operators::canonical(batch.column(*key), row, &mut bytes));
        let hash = crc32c::crc32c(&bytes);
        // Spread over all bits: the lowest ones name the bucket.
        placed(hash, u64::from(hash).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    };
    (0..batch.num_rows()).map(place).collect()
}

fn placed(hash: u32, order: u64) -> Place {
    let bucket = u64::from(hash) % BUCKETS as u64;
    bucket << (u64::BITS - BUCKET_BITS) | order >> BUCKET_BITS
}

/// The bucket of a place: the partition of its file.
pub fn bucket_of(place: Place) -> i64 {
    (place >> (u64::BITS - BUCKET_BITS)) as i64
}

fn first_of(bucket: i64) -> Place {
    (bucket as u64) << (u64::BITS - BUCKET_BITS)
}

/// The rows of a range of places, one of each key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Up to the next leaf.
    pub places: RangeInclusive<Place>,
    /// Empty for a bucket without rows.
    pub files: Vec<FileEntry>,
}

impl Leaf {
    /// Number of rows.
    pub fn rows(&self) -> u64 {
        self.files.iter().map(|file| file.rows).sum()
    }

    /// Its first place.
    pub fn from(&self) -> Place {
        *self.places.start()
    }
}

/// The first place of a file's leaf, which its name has. A file from before there were leaves is
/// one for its whole bucket.
fn from_of(file: &FileEntry) -> Place {
    let name = file.path.rsplit('/').next().unwrap_or_default();
    let named = name.strip_prefix(RowClass::Recent.name()).and_then(|rest| {
        let (from, unique) = rest
            .strip_prefix('-')?
            .strip_suffix(".parquet")?
            .split_once('-')?;
        (from.len() == 16 && unique.len() == 16).then(|| Place::from_str_radix(from, 16).ok())?
    });
    named
        .filter(|from| bucket_of(*from) == file.bucket)
        .unwrap_or_else(|| first_of(file.bucket))
}

/// The leaves of a table's files, in the order of their places, of which each is in one leaf.
pub fn leaves(files: &[FileEntry]) -> Vec<Leaf> {
    let mut by_from: BTreeMap<Place, Vec<FileEntry>> =
        (0..BUCKETS).map(|b| (first_of(b), Vec::new())).collect();
    for file in files {
        by_from.entry(from_of(file)).or_default().push(file.clone());
    }
    let ends: Vec<Place> = by_from
        .keys()
        .skip(1)
        .map(|from| from - 1)
        .chain([Place::MAX])
        .collect();
    by_from
        .into_iter()
        .zip(ends)
        .map(|((from, files), end)| Leaf {
            places: from..=end,
            files,
        })
        .collect()
}

/// The indexes of the leaves that overlap a range.
pub fn reached(leaves: &[Leaf], places: &RangeInclusive<Place>) -> std::ops::Range<usize> {
    let from = leaves.partition_point(|leaf| leaf.places.end() < places.start());
    let to = leaves.partition_point(|leaf| leaf.places.start() <= places.end());
    from..to.max(from)
}

/// Rows in memory by their places; those of one place in the order of arrival.
#[derive(Debug, Default)]
pub struct RowsByPlace {
    batches: Vec<RecordBatch>,
    /// Place, batch, row.
    order: Vec<(Place, u32, u32)>,
}

impl RowsByPlace {
    /// Sorts rows of an entity table.
    pub fn of(spec: &TableSpec, batches: Vec<RecordBatch>) -> Self {
        let mut order = Vec::with_capacity(batches.iter().map(RecordBatch::num_rows).sum());
        for (n, batch) in (0..).zip(&batches) {
            order.extend(
                (0..)
                    .zip(places(spec, batch))
                    .map(|(row, place)| (place, n, row)),
            );
        }
        order.sort_unstable();
        Self { batches, order }
    }

    /// Number of rows.
    pub fn all_rows(&self) -> usize {
        self.order.len()
    }

    fn range(&self, places: &RangeInclusive<Place>) -> &[(Place, u32, u32)] {
        let from = self
            .order
            .partition_point(|(place, ..)| place < places.start());
        let to = self
            .order
            .partition_point(|(place, ..)| place <= places.end());
        &self.order[from..to.max(from)]
    }

    /// How many rows a range has.
    pub fn count(&self, places: &RangeInclusive<Place>) -> usize {
        self.range(places).len()
    }

    /// The rows of a range; `None` where it has none.
    pub fn rows(&self, places: &RangeInclusive<Place>) -> Result<Option<RecordBatch>, LakeError> {
        let order = self.range(places);
        if order.is_empty() {
            return Ok(None);
        }
        let batches: Vec<&RecordBatch> = self.batches.iter().collect();
        let rows: Vec<(usize, usize)> = order
            .iter()
            .map(|(_, batch, row)| (*batch as usize, *row as usize))
            .collect();
        Ok(Some(interleave_record_batch(&batches, &rows)?))
    }
}

/// The newest row of each key in a range of places, from these files, levels and rows in memory.
pub fn newest_of(
    spec: &TableSpec,
    files: &[FileEntry],
    levels: &[Level],
    unflushed: &RowsByPlace,
    places: &RangeInclusive<Place>,
) -> Result<RecordBatch, LakeError> {
    let mut parts = Vec::new();
    for file in files {
        parts.extend(read(spec, file)?);
    }
    for level in levels {
        parts.extend(level.read(spec, places)?);
    }
    // Of equal versions the last one wins, by its LSN.
    parts.extend(unflushed.rows(places)?);
    let all = concat_batches(&spec.schema, &parts)?;
    drop(parts);
    newest(&all, &spec.keys).map_err(LakeError::rows)
}

/// Writes the rows of a leaf, each key once, as one leaf or as several, none of which is too large.
pub fn write(
    spec: &TableSpec,
    sizes: &Sizes,
    attempt: &Attempt,
    from: Place,
    rows: &RecordBatch,
    now_ms: i64,
) -> Result<Vec<FileEntry>, LakeError> {
    if rows.num_rows() == 0 {
        return Ok(Vec::new());
    }
    let row_bytes = (rows.get_array_memory_size() / rows.num_rows()).max(1);
    let most = (sizes.leaf_bytes / row_bytes).clamp(1, sizes.leaf_rows);
    if rows.num_rows() <= most {
        return Ok(vec![write_file(spec, attempt, from, rows, now_ms)?]);
    }
    let places = places(spec, rows);
    let mut files = Vec::new();
    let cuts = cuts(&places, from, most);
    let ends = cuts.iter().skip(1).map(|cut| cut - 1).chain([Place::MAX]);
    for (from, to) in cuts.iter().zip(ends) {
        let own = (0..)
            .zip(&places)
            .filter(|(_, place)| (*from..=to).contains(*place))
            .map(|(row, _)| row);
        let own = take_record_batch(rows, &UInt32Array::from_iter_values(own))?;
        files.push(write_file(spec, attempt, *from, &own, now_ms)?);
    }
    Ok(files)
}

/// The first places of the leaves into which a leaf is split, so that they are alike.
fn cuts(places: &[Place], from: Place, most: usize) -> Vec<Place> {
    let mut sorted = places.to_vec();
    sorted.sort_unstable();
    let pieces = sorted.len().div_ceil(most);
    let mut cuts = vec![from];
    for piece in 1..pieces {
        let cut = sorted[piece * sorted.len() / pieces];
        // A place is not split.
        if cut > sorted[0] && cuts.last().is_none_or(|last| cut > *last) {
            cuts.push(cut);
        }
    }
    cuts
}

fn write_file(
    spec: &TableSpec,
    attempt: &Attempt,
    from: Place,
    rows: &RecordBatch,
    now_ms: i64,
) -> Result<FileEntry, LakeError> {
    let bucket = bucket_of(from);
    let name = format!("{}-{from:016x}", RowClass::Recent.name());
    let folder = partition_folder(bucket, spec.layout);
    let new = NewFile::create_as(
        spec,
        attempt,
        &folder,
        &name,
        (bucket, RowClass::Recent, now_ms),
    )?;
    let mut file = FileWriter::begin(spec, new, Some(rows.num_rows()), None)?;
    for at in (0..rows.num_rows()).step_by(WRITE_ROWS) {
        file.write(spec, &rows.slice(at, WRITE_ROWS.min(rows.num_rows() - at)))?;
    }
    file.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, bucket: i64) -> FileEntry {
        FileEntry {
            path: path.into(),
            bytes: 1,
            bucket,
            ..FileEntry::sample()
        }
    }

    #[test]
    fn every_place_is_in_one_leaf() {
        let files = [
            file("bucket=3/recent-0123456789abcdef.parquet", 3),
            file(
                "bucket=5/recent-5000000000000000-0123456789abcdef.parquet",
                5,
            ),
            file(
                "bucket=5/recent-5800000000000000-0123456789abcdef.parquet",
                5,
            ),
        ];
        let leaves = leaves(&files);
        assert_eq!(leaves.len(), 17);
        assert_eq!(
            (leaves[0].from(), *leaves[16].places.end()),
            (0, Place::MAX)
        );
        assert!(
            leaves
                .windows(2)
                .all(|pair| pair[0].places.end() + 1 == pair[1].from())
        );
        let of = |place: Place| {
            leaves[reached(&leaves, &(place..=place)).start]
                .files
                .first()
                .map(|f| &*f.path)
        };
        assert_eq!(of(0x3fff_ffff_ffff_ffff), Some(&*files[0].path));
        assert_eq!(of(0x57ff_ffff_ffff_ffff), Some(&*files[1].path));
        assert_eq!(of(0x5800_0000_0000_0000), Some(&*files[2].path));
        assert_eq!(of(0x6000_0000_0000_0000), None);
        assert_eq!(
            reached(&leaves, &(0x5000_0000_0000_0000..=0x5800_0000_0000_0000)),
            5..7
        );
    }

    #[test]
    fn a_leaf_is_split_into_some_that_are_alike() {
        let places: Vec<Place> = (0..100).rev().collect();
        assert_eq!(cuts(&places, 0, 40), [0, 33, 66]);
        assert_eq!(cuts(&[5; 100], 0, 40), [0]);
        assert_eq!(cuts(&[[5; 50], [9; 50]].concat(), 2, 40), [2, 9]);
    }
}
