//! Where a file goes on that was read in order of event time before: a pure decision over what the
//! log knows of the source.

use std::path::Path;

use super::super::discover::Stamp;
use super::super::frame::Record;
use super::super::identity::path_of;
use super::Whole;
use crate::operators::PartitionState;
use crate::wal::Sorted;

/// What is to be done with a file.
#[derive(Debug, PartialEq, Eq)]
pub enum Begin {
    /// All of it is in the log, as this partition.
    Complete(usize),
    /// This partition goes on at its position.
    At(usize),
    Fresh,
}

/// Partitions are named by the path that they were read from first.
pub fn partition_name(path: &Path) -> String {
    format!("{}@event_time", path.display())
}

/// The partitions that are contents in order of event time.
pub fn sorted(
    partitions: &[(String, PartitionState)],
) -> impl Iterator<Item = (usize, &String, &PartitionState, Sorted)> {
    partitions
        .iter()
        .enumerate()
        .filter_map(|(at, (name, state))| {
            let sorted = state.file.and_then(|file| file.sorted)?;
            Some((at, name, state, sorted))
        })
}

/// Whether the system says that nothing has changed since all of it was taken in.
pub fn is_complete(partitions: &[(String, PartitionState)], stamp: &Stamp) -> bool {
    sorted(partitions).any(|(_, _, state, sorted)| {
        state.next_offset == sorted.records
            && state.file.is_some_and(|file| {
                file.inode == stamp.inode && file.complete == Some((stamp.size, stamp.modified))
            })
    })
}

/// Decides by the file's size and checksum; an error says why nothing can be decided, and what to
/// do.
pub fn decide(
    partitions: &[(String, PartitionState)],
    content: (u64, u32),
    whole: &Whole,
) -> Result<Begin, String> {
    let in_its_own_order = |(_, state): &&(String, PartitionState)| {
        state.next_offset > 0 && state.file.is_some_and(|file| file.sorted.is_none())
    };
    if let Some((name, _)) = partitions.iter().find(in_its_own_order) {
        return Err(format!(
            "this source has read {} in its own order, and reads no record twice; remove `order`, or, to have its records once more in order of event time, give the source another name or use a new data folder",
            path_of(name)
        ));
    }
    let is_same = |sorted: &Sorted| (sorted.size, sorted.crc) == content;
    if let Some((at, _, state, sorted)) = sorted(partitions).find(|(.., sorted)| is_same(sorted)) {
        return Ok(if state.next_offset == sorted.records {
            Begin::Complete(at)
        } else {
            Begin::At(at)
        });
    }
    for (_, name, state, sorted) in sorted(partitions) {
        let is_begun = state.next_offset < sorted.records;
        let is_own = *name == partition_name(&whole.path)
            || state
                .file
                .is_some_and(|file| file.inode == whole.stamp.inode);
        if is_begun || is_own {
            let (size, crc) = content;
            return Err(format!(
                "it is not the file of which {} of {} records were taken in, in order of event time: it has {size} bytes and the CRC-32C {crc:08x}, and that one ({}) had {} bytes and {:08x}; restore that one, or give the source another name, under which this file is read from its start",
                state.next_offset,
                sorted.records,
                path_of(name),
                sorted.size,
                sorted.crc
            ));
        }
    }
    Ok(Begin::Fresh)
}

/// Why the rest of a file cannot be taken in.
pub fn other_order(taken: u64) -> String {
    format!(
        "its records come in another order than the one in which the first {taken} were taken in, since what decides it has changed: `schema`, `select`, `require`, `time_range` or `time_zone` of the stream, `unwrap` of the source, `[limits] record`, or the version of weir; set it back until the file is read, or give the source another name, under which the file is read from its start"
    )
}

/// The checksum of an order with one record more.
pub fn append_order(order: u32, record: &Record<'_>) -> u32 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&record.start.to_le_bytes());
    bytes[8..].copy_from_slice(&record.length.to_le_bytes());
    crc32c::crc32c_append(order, &bytes)
}
