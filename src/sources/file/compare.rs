//! A file beside the partitions it may continue: what is compared before [`super::identity`]
//! decides.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::content::{Content, Trail, read_to};
use super::discover::{Stamp, extends};
use super::identity::{Candidate, Comparison, path_of};
use super::known::{Id, Known, Partition};

/// Partitions of other files that a file is compared with at most.
const MAX_COPIES: usize = 16;
/// Bytes before the position that are compared at every opening.
const TAIL_CHECK: usize = 1 << 10;
/// Content up to this size is compared whole where nothing shorter tells.
const WHOLE_CHECK: u64 = 64 << 20;
/// Content that two files do not share by chance.
const DISTINCTIVE: u64 = 1 << 10;

/// A file that is looked at.
pub struct Sample<'a> {
    pub path: &'a Path,
    pub stamp: Stamp,
    pub content: &'a Content,
    pub head: &'a [u8],
    /// The partition that the path's file was until now.
    pub bound: Option<Id>,
}

/// What was compared.
pub struct Compared {
    pub id: Id,
    pub candidate: Candidate,
    /// Up to where the contents are the same.
    pub trail: Trail,
}

/// Compares a file with the partitions that it may continue, best first, up to the first that is
/// the same. `begins` gives the beginning of a partition's file where it is remembered; `is_at_end`
/// whether all of it was read, `has_path` whether a path is known to lead to the content of a live
/// one.
pub fn compare<'a>(
    sample: &Sample<'_>,
    known: &Known,
    begins: impl Fn(Id) -> Option<&'a [u8]>,
    is_at_end: impl Fn(Id) -> bool,
    has_path: impl Fn(Id) -> bool,
) -> io::Result<Vec<Compared>> {
    let mut compared = Vec::new();
    for (id, is_own) in candidates(sample, known, begins, has_path) {
        let partition = known.get(id);
        let file = partition.file();
        let (comparison, trail) = compare_with(sample, partition, is_own)?;
        let is_live = partition.is_live && file.inode != sample.stamp.inode;
        let candidate = Candidate {
            is_own,
            is_live,
            is_at_end: is_live && is_at_end(id),
            comparison,
        };
        compared.push(Compared {
            id,
            candidate,
            trail,
        });
        if comparison == Comparison::Same {
            break;
        }
    }
    Ok(compared)
}

/// Whether a file that no path leads to still begins with what was read of it.
pub fn is_still(content: &Content, stamp: Stamp, known: &Known, id: Id) -> io::Result<bool> {
    let (head, _) = content.head()?;
    let sample = Sample {
        path: Path::new(""),
        stamp,
        content,
        head: &head,
        bound: Some(id),
    };
    let partition = known.get(id);
    let file = partition.file();
    let begins_alike = head
        .get(..file.head as usize)
        .is_some_and(|start| crc32c::crc32c(start) == file.crc);
    Ok(begins_alike && compare_with(&sample, partition, true)?.0 == Comparison::Same)
}

/// The partition that the file was until now, then those of the same inode, the same path or the
/// same content, longest first.
fn candidates<'a>(
    sample: &Sample<'_>,
    known: &Known,
    begins: impl Fn(Id) -> Option<&'a [u8]>,
    has_path: impl Fn(Id) -> bool,
) -> Vec<(Id, bool)> {
    let may_be = |id: &Id| {
        let partition = known.get(*id);
        let file = partition.file();
        match sample.head.get(..file.head as usize) {
            Some(start) => crc32c::crc32c(start) == file.crc,
            None => begins(*id).is_none_or(|begins| begins.starts_with(sample.head)),
        }
    };
    let label = sample.path.display().to_string();
    let own = known
        .of_inode(sample.stamp.inode)
        .iter()
        .chain(known.of_path(&label))
        .copied();
    let own: BTreeSet<Id> = own.collect();
    let is_copy = |id: &Id| {
        !own.contains(id) && may_be(id) && is_copyable(sample, known.get(*id), || has_path(*id))
    };
    let copies = known
        .of_head(sample.head)
        .into_iter()
        .filter(is_copy)
        .take(MAX_COPIES)
        .map(|id| (id, false));
    // What the file itself does not hold any more may be in a copy of it, and in nothing else.
    let is_current = |id: &&Id| may_be(id) && !known.get(**id).is_over;
    let mut found: Vec<(Id, bool)> = own
        .iter()
        .filter(is_current)
        .map(|id| (*id, true))
        .chain(copies)
        .collect();
    // The inode of a removed file is used again: of contents that begin alike, the one that reaches
    // furthest is meant.
    found.sort_by_key(|(id, is_own)| {
        let next = known.get(*id).state.next_offset;
        (
            sample.bound != Some(*id) || next == 0,
            Reverse(next),
            !is_own,
            Reverse(*id),
        )
    });
    found
}

/// Whether content alone makes a file that of a partition: it is long enough that no two files
/// share it, or the file's name says that it was rotated from it, or it is a compressed one whose
/// original is gone.
fn is_copyable(
    sample: &Sample<'_>,
    partition: &Partition,
    has_path: impl FnOnce() -> bool,
) -> bool {
    partition.state.next_offset >= DISTINCTIVE
        || extends(sample.path, Path::new(path_of(&partition.name)))
        || sample.content.is_compressed() && !(partition.is_live && has_path())
}

pub fn cut_off() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the compressed data ends too early: it is incomplete or still being written",
    )
}

fn compare_with(
    sample: &Sample<'_>,
    partition: &Partition,
    is_own: bool,
) -> io::Result<(Comparison, Trail)> {
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
        let reached = read_to(sample.content, sample.stamp.size)?.trail;
        let is_same = reached.crc == Some(expected);
        return Ok((
            if is_same {
                Comparison::Prefix
            } else {
                Comparison::Differs
            },
            reached,
        ));
    }
    if is_plain && is_own {
        if let Some(trail) = trail.filter(|trail| !trail.tail().is_empty()) {
            let tail = &trail.tail()[trail.tail().len().saturating_sub(TAIL_CHECK)..];
            let is_same = sample.content.before(next, tail.len())? == tail;
            return Ok((
                if is_same {
                    Comparison::Same
                } else {
                    Comparison::Differs
                },
                trail.clone(),
            ));
        }
        if next > WHOLE_CHECK || content.is_none() {
            return Ok((Comparison::Same, Trail::at(next, content)));
        }
    }
    let reached = read_to(sample.content, next)?;
    if reached.trail.end < next {
        if reached.is_cut_off {
            return Err(cut_off());
        }
        return Ok(
            match trail.and_then(|trail| trail.crc_at(reached.trail.end)) {
                Some(expected) if reached.trail.crc == Some(expected) => {
                    (Comparison::Prefix, reached.trail)
                }
                Some(_) => (Comparison::Differs, reached.trail),
                None => (Comparison::Shorter, reached.trail),
            },
        );
    }
    let is_same = content.map_or(is_own, |content| reached.trail.crc == Some(content));
    Ok((
        if is_same {
            Comparison::Same
        } else {
            Comparison::Differs
        },
        reached.trail,
    ))
}
