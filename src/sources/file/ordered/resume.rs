//! Where reading in order of event time resumes: a pure decision over the source's partitions in the
//! log.
//!
//! For example, if a file of 10 records was read up to ordinal 4, then the same file (size and
//! CRC-32C) resumes at 4, and another file at its path is an error. Once all 10 were read, the same
//! file is `Complete`, and another file elsewhere is read from its start.

use std::path::Path;

use super::super::decision::path_of;
use super::super::discover::Stamp;
use super::super::frame::Record;
use crate::operators::PartitionState;
use crate::wal::Sorted;

/// How to read a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ResumePoint {
    /// All of it is in the log, as this partition.
    Complete(usize),
    /// This partition continues at its offset.
    Partition(usize),
    Start,
}

/// Why a file cannot be read in order of event time, and what to do.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ResumeError {
    #[error(
        "this source has read {path} in file order, and does not read a record twice; remove `order`, or, to read its records again in order of event time, give the source another name or use a new data folder"
    )]
    ReadInFileOrder { path: String },
    #[error(
        "it is not the file of which {} of {} records were read in order of event time: it has {size} bytes and CRC-32C {crc:08x}, while that file ({path}) had {} bytes and CRC-32C {:08x}; restore that file, or give the source another name, under which this file is read from its start",
        .next_offset, .sorted.records, .sorted.size, .sorted.crc
    )]
    OtherContent {
        /// Size in bytes and CRC-32C of the file that is to be read.
        size: u64,
        crc: u32,
        /// The path and content of the file that was read, and the ordinal at which it continues.
        path: String,
        sorted: Sorted,
        next_offset: u64,
    },
    /// The records before the offset are not those that were read.
    #[error(
        "its records are in another order than when the first {read} were read, because something that decides it has changed: `schema`, `select`, `require`, `time_range` or `time_zone` of the stream, `unwrap` of the source, `[limits] record`, or the version of weir; undo the change until the file is read, or give the source another name, under which the file is read from its start"
    )]
    OtherOrder { read: u64 },
}

/// The file that is to be read.
pub(super) struct Identity<'a> {
    /// Where it is now.
    pub path: &'a Path,
    /// Its inode, which stays when it is renamed.
    pub inode: u64,
    /// Bytes of the file as stored, and their CRC-32C.
    pub size: u64,
    pub crc: u32,
}

/// The name of a partition, by the path at which it was read first.
pub(super) fn partition_name(path: &Path) -> String {
    format!("{}@event_time", path.display())
}

/// The partitions that were read in order of event time.
pub(super) fn sorted(
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

/// Whether all of a file is in the log, and it has not changed since by its metadata.
pub(super) fn is_complete(partitions: &[(String, PartitionState)], stamp: &Stamp) -> bool {
    sorted(partitions).any(|(_, _, state, sorted)| {
        state.next_offset == sorted.records
            && state.file.is_some_and(|file| {
                file.inode == stamp.inode && file.complete == Some((stamp.size, stamp.modified))
            })
    })
}

/// Decides by the file's size and checksum.
pub(super) fn decide(
    partitions: &[(String, PartitionState)],
    file: &Identity<'_>,
) -> Result<ResumePoint, ResumeError> {
    let is_in_file_order = |(_, state): &&(String, PartitionState)| {
        state.next_offset > 0 && state.file.is_some_and(|file| file.sorted.is_none())
    };
    if let Some((name, _)) = partitions.iter().find(is_in_file_order) {
        return Err(ResumeError::ReadInFileOrder {
            path: path_of(name).to_owned(),
        });
    }
    let is_same = |sorted: &Sorted| (sorted.size, sorted.crc) == (file.size, file.crc);
    if let Some((at, _, state, sorted)) = sorted(partitions).find(|(.., sorted)| is_same(sorted)) {
        return Ok(if state.next_offset == sorted.records {
            ResumePoint::Complete(at)
        } else {
            ResumePoint::Partition(at)
        });
    }
    for (_, name, state, sorted) in sorted(partitions) {
        let is_unfinished = state.next_offset < sorted.records;
        let has_inode = state.file.is_some_and(|read| read.inode == file.inode);
        if is_unfinished || has_inode || *name == partition_name(file.path) {
            return Err(ResumeError::OtherContent {
                size: file.size,
                crc: file.crc,
                path: path_of(name).to_owned(),
                sorted,
                next_offset: state.next_offset,
            });
        }
    }
    Ok(ResumePoint::Start)
}

/// Extends the checksum of an order by a record.
pub(super) fn append_order(order: u32, record: &Record<'_>) -> u32 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&record.start.to_le_bytes());
    bytes[8..].copy_from_slice(&record.length.to_le_bytes());
    crc32c::crc32c_append(order, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::FileIdentity;

    fn partition(name: &str, next_offset: u64, sorted: Option<Sorted>) -> (String, PartitionState) {
        let file = FileIdentity {
            inode: 1,
            sorted,
            ..FileIdentity::default()
        };
        let state = PartitionState {
            next_offset,
            file: Some(file),
            ..PartitionState::default()
        };
        (name.to_owned(), state)
    }

    #[test]
    fn a_file_resumes_only_with_the_same_content() {
        let sorted = Some(Sorted {
            size: 100,
            crc: 7,
            records: 10,
            order: 0,
        });
        let unfinished = [partition("/a@event_time", 4, sorted)];
        let finished = [partition("/a@event_time", 10, sorted)];
        let in_file_order = [partition("/a@1", 3, None)];
        let cases: [(&[_], _, _, _, Option<ResumePoint>); 7] = [
            (&[], "/a", 1, 100, Some(ResumePoint::Start)),
            (&unfinished, "/b", 2, 100, Some(ResumePoint::Partition(0))),
            (&unfinished, "/b", 2, 101, None),
            (&finished, "/b", 2, 100, Some(ResumePoint::Complete(0))),
            (&finished, "/b", 2, 101, Some(ResumePoint::Start)),
            (&finished, "/b", 1, 101, None),
            (&in_file_order, "/a", 1, 100, None),
        ];
        for (partitions, path, inode, size, expected) in cases {
            let file = Identity {
                path: Path::new(path),
                inode,
                size,
                crc: 7,
            };
            let label = format!("{partitions:?} {path} {inode} {size}");
            assert_eq!(decide(partitions, &file).ok(), expected, "{label}");
        }
    }
}
