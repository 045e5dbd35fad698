//! Compares a file with the partitions that it may continue, for [`super::decision`] to decide.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::content::{Content, Trail, read_prefix};
use super::decision::{Candidate, Comparison, path_of};
use super::discover::{Stamp, extends};
use super::registry::{Partition, PartitionId, PartitionRegistry};

/// Partitions of other files that a file is compared with at most.
const MAX_COPIES: usize = 16;
/// Bytes before the offset that are compared whenever a file is opened.
const TAIL_CHECK_BYTES: usize = 1 << 10;
/// Content up to this size is compared completely where its last bytes are not held.
const MAX_FULL_CHECK_BYTES: u64 = 64 << 20;
/// Content of this length is not shared by two files by chance.
const MIN_DISTINCTIVE_BYTES: u64 = 1 << 10;

/// A file that is being identified.
pub(super) struct Sample<'a> {
    /// Where it was found.
    pub path: &'a Path,
    /// Its metadata when it was opened.
    pub stamp: Stamp,
    /// Its bytes.
    pub content: &'a Content,
    /// Its first bytes, up to the length that identifies a file.
    pub head: &'a [u8],
    /// The partition of the path's file until now.
    pub bound: Option<PartitionId>,
}

/// The result of a comparison with one partition.
pub(super) struct Match {
    /// The partition.
    pub id: PartitionId,
    /// What decides whether the file continues it.
    pub candidate: Candidate,
    /// The content that both have in common.
    pub trail: Trail,
}

/// Compares a file with the partitions that it may continue, best first, up to the first that is
/// the same. `head` returns the first bytes of a partition's file where they are held; `is_at_end`
/// whether all of it was read; `has_path` whether the content of a live one is known to be at a
/// path.
pub(super) fn match_partitions<'a>(
    sample: &Sample<'_>,
    registry: &PartitionRegistry,
    head: impl Fn(PartitionId) -> Option<&'a [u8]>,
    is_at_end: impl Fn(PartitionId) -> bool,
    has_path: impl Fn(PartitionId) -> bool,
) -> io::Result<Vec<Match>> {
    let mut matches = Vec::new();
    for (id, is_own) in candidates(sample, registry, head, has_path) {
        let partition = registry.get(id);
        let file = partition.file();
        let (comparison, trail) = compare(sample, partition, is_own)?;
        let is_live = partition.is_live && file.inode != sample.stamp.inode;
        let candidate = Candidate {
            is_own,
            is_live,
            is_at_end: is_live && is_at_end(id),
            comparison,
        };
        matches.push(Match {
            id,
            candidate,
            trail,
        });
        if comparison == Comparison::Same {
            break;
        }
    }
    Ok(matches)
}

/// Whether a file that is at no path still begins with what was read of it.
pub(super) fn is_unchanged(
    content: &Content,
    stamp: Stamp,
    partition: &Partition,
    id: PartitionId,
) -> io::Result<bool> {
    let (head, _) = content.head()?;
    let sample = Sample {
        path: Path::new(""),
        stamp,
        content,
        head: &head,
        bound: Some(id),
    };
    let file = partition.file();
    let has_same_head = head
        .get(..file.head as usize)
        .is_some_and(|start| crc32c::crc32c(start) == file.crc);
    Ok(has_same_head && compare(&sample, partition, true)?.0 == Comparison::Same)
}

/// The partition of the file until now, then those of the same inode, the same path or the same
/// content, longest first; with whether the inode or path is the same.
fn candidates<'a>(
    sample: &Sample<'_>,
    registry: &PartitionRegistry,
    head: impl Fn(PartitionId) -> Option<&'a [u8]>,
    has_path: impl Fn(PartitionId) -> bool,
) -> Vec<(PartitionId, bool)> {
    let may_be = |id: &PartitionId| {
        let partition = registry.get(*id);
        let file = partition.file();
        match sample.head.get(..file.head as usize) {
            Some(start) => crc32c::crc32c(start) == file.crc,
            None => head(*id).is_none_or(|head| head.starts_with(sample.head)),
        }
    };
    let label = sample.path.display().to_string();
    let own: BTreeSet<PartitionId> = registry
        .by_inode(sample.stamp.inode)
        .iter()
        .chain(registry.by_path(&label))
        .copied()
        .collect();
    let is_copy = |id: &PartitionId| {
        !own.contains(id) && may_be(id) && is_copyable(sample, registry.get(*id), || has_path(*id))
    };
    let copies = registry
        .by_head(sample.head)
        .into_iter()
        .filter(is_copy)
        .take(MAX_COPIES)
        .map(|id| (id, false));
    // A content that was replaced in its own file can only be in a copy of it.
    let is_current = |id: &&PartitionId| may_be(id) && !registry.get(**id).is_replaced;
    let mut candidates: Vec<(PartitionId, bool)> = own
        .iter()
        .filter(is_current)
        .map(|id| (*id, true))
        .chain(copies)
        .collect();
    // The inode of a removed file is reused: of contents that begin alike, the longest is meant.
    candidates.sort_by_key(|(id, is_own)| {
        let next = registry.get(*id).state.next_offset;
        (
            sample.bound != Some(*id) || next == 0,
            Reverse(next),
            !is_own,
            Reverse(*id),
        )
    });
    candidates
}

/// Whether the content alone identifies a file as that of a partition: it is long enough that no
/// two files share it, or the file's name says that it was rotated from the partition's file, or it
/// is compressed and its original is gone.
fn is_copyable(
    sample: &Sample<'_>,
    partition: &Partition,
    has_path: impl FnOnce() -> bool,
) -> bool {
    partition.state.next_offset >= MIN_DISTINCTIVE_BYTES
        || extends(sample.path, Path::new(path_of(&partition.name)))
        || sample.content.is_compressed() && !(partition.is_live && has_path())
}

/// The error where a compressed file is too short to be identified.
pub(super) fn truncated_error() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the compressed data ends too early: it is incomplete or still being written",
    )
}

fn compare(
    sample: &Sample<'_>,
    partition: &Partition,
    is_own: bool,
) -> io::Result<(Comparison, Trail)> {
    let same_if = |is_same| match is_same {
        true => Comparison::Same,
        false => Comparison::Differs,
    };
    let next = partition.state.next_offset;
    if next == 0 {
        return Ok((Comparison::Same, Trail::new()));
    }
    let content = partition.file().content;
    let trail = partition.trail.as_ref().filter(|trail| trail.end == next);
    let is_plain = !sample.content.is_compressed();
    if is_plain && sample.stamp.size < next {
        let Some(expected) = trail.and_then(|trail| trail.crc_at(sample.stamp.size)) else {
            return Ok((Comparison::Shorter, Trail::new()));
        };
        let prefix = read_prefix(sample.content, sample.stamp.size)?.trail;
        return Ok((compare_prefix(&prefix, Some(expected)), prefix));
    }
    if is_plain && is_own {
        if let Some(trail) = trail.filter(|trail| !trail.tail().is_empty()) {
            let tail = &trail.tail()[trail.tail().len().saturating_sub(TAIL_CHECK_BYTES)..];
            let is_same = sample.content.before(next, tail.len())? == tail;
            return Ok((same_if(is_same), trail.clone()));
        }
        if next > MAX_FULL_CHECK_BYTES || content.is_none() {
            return Ok((Comparison::Same, Trail::at(next, content)));
        }
    }
    let prefix = read_prefix(sample.content, next)?;
    if prefix.trail.end < next {
        if prefix.is_truncated {
            return Err(truncated_error());
        }
        let expected = trail.and_then(|trail| trail.crc_at(prefix.trail.end));
        return Ok((compare_prefix(&prefix.trail, expected), prefix.trail));
    }
    let is_same = content.map_or(is_own, |content| prefix.trail.crc == Some(content));
    Ok((same_if(is_same), prefix.trail))
}

/// Compares a content that ends before a partition's offset, by the checksum that the partition had
/// there, if that is known.
fn compare_prefix(prefix: &Trail, expected: Option<u32>) -> Comparison {
    match expected {
        Some(_) if prefix.crc == expected => Comparison::Prefix,
        Some(_) => Comparison::Differs,
        None => Comparison::Shorter,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_content_is_compared_by_the_checksum_at_its_end() {
        let mut prefix = Trail::new();
        prefix.advance(b"abc");
        for (expected, comparison) in [
            (None, Comparison::Shorter),
            (Some(crc32c::crc32c(b"abc")), Comparison::Prefix),
            (Some(crc32c::crc32c(b"abd")), Comparison::Differs),
        ] {
            assert_eq!(compare_prefix(&prefix, expected), comparison);
        }
    }
}
