//! Which partition a file continues: a pure decision over the comparisons with candidates.
//!
//! For example, logrotate's `copytruncate` copies `app.log`, which was read up to offset 900, to
//! `app.log.1` and truncates it. `app.log` is then a `Prefix` of its partition and, once it is at
//! rest, becomes a new one (`Create`); `app.log.1` is the `Same` as a partition that has lost its
//! file, and continues it at 900. A copy of an `app.log` that remains as it is becomes a `Branch`: a
//! partition of its own, read from 900 on.

/// How a file's content relates to the content that was read of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    /// It begins with all that was read.
    Same,
    /// It ends before the partition's offset, and all of it was read.
    Prefix,
    /// It ends before the partition's offset; whether it is the same up to there is unknown.
    Shorter,
    Differs,
}

/// A partition that a file may continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    /// It has the same inode or the same path; otherwise only its content matches.
    pub is_own: bool,
    /// It belongs to another file that still exists.
    pub is_live: bool,
    /// Everything of that other file has been read.
    pub is_at_end: bool,
    /// How its content compares with what the partition has read.
    pub comparison: Comparison,
}

/// What to do with a file that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// It is the file of this candidate: reading continues at the partition's offset.
    Continue(usize),
    /// It is a copy of this candidate's file: a new partition, read from where they differ.
    Branch(usize),
    /// It is a file that was not read before: a new partition.
    Create,
    /// It may still be written, or the other file still be read: decide later.
    Wait,
}

/// Decides by the candidates, best first. `is_quiet`: the file has not changed for a while.
pub(super) fn decide(candidates: &[Candidate], is_quiet: bool) -> Action {
    for (at, candidate) in candidates.iter().enumerate() {
        match (candidate.comparison, candidate.is_live) {
            (Comparison::Differs, _) => {}
            (Comparison::Same, false) => return Action::Continue(at),
            _ if !is_quiet => return Action::Wait,
            (Comparison::Same, true) if candidate.is_at_end => return Action::Branch(at),
            (Comparison::Same, true) => return Action::Wait,
            (Comparison::Prefix, _) if !candidate.is_own => return Action::Branch(at),
            // The file itself became shorter and remained so: its content is new.
            (Comparison::Prefix | Comparison::Shorter, _) => {}
        }
    }
    Action::Create
}

/// The name of a new partition for a file: `path@inode`, numbered where the inode held another
/// content before.
pub(super) fn partition_name(path: &str, inode: u64, is_taken: impl Fn(&str) -> bool) -> String {
    let first = format!("{path}@{inode}");
    let mut names = std::iter::once(first.clone()).chain((2u64..).map(|n| format!("{first}.{n}")));
    names.find(|name| !is_taken(name)).unwrap_or(first)
}

/// The path in a partition's name.
pub(super) fn path_of(partition: &str) -> &str {
    partition
        .rsplit_once('@')
        .map_or(partition, |(path, _)| path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Comparison::{Differs, Prefix, Same, Shorter};

    fn own(comparison: Comparison) -> Candidate {
        Candidate {
            is_own: true,
            is_live: false,
            is_at_end: false,
            comparison,
        }
    }

    fn copy(comparison: Comparison, is_live: bool, is_at_end: bool) -> Candidate {
        Candidate {
            is_own: false,
            is_live,
            is_at_end,
            comparison,
        }
    }

    #[test]
    fn a_file_continues_where_its_content_was_read() {
        assert_eq!(decide(&[own(Same)], false), Action::Continue(0));
        assert_eq!(
            decide(&[own(Differs), own(Same)], false),
            Action::Continue(1)
        );
        assert_eq!(
            decide(&[copy(Same, false, false)], false),
            Action::Continue(0)
        );
        assert_eq!(decide(&[], false), Action::Create);
        assert_eq!(
            decide(&[own(Differs), copy(Differs, true, true)], false),
            Action::Create
        );
    }

    #[test]
    fn a_file_that_became_shorter_is_new_once_it_is_at_rest() {
        for comparison in [Prefix, Shorter] {
            assert_eq!(decide(&[own(comparison)], false), Action::Wait);
            assert_eq!(decide(&[own(comparison)], true), Action::Create);
        }
    }

    #[test]
    fn a_copy_of_a_live_file_waits_until_both_are_at_rest() {
        assert_eq!(decide(&[copy(Same, true, true)], false), Action::Wait);
        assert_eq!(decide(&[copy(Same, true, false)], true), Action::Wait);
        assert_eq!(decide(&[copy(Same, true, true)], true), Action::Branch(0));
        assert_eq!(decide(&[copy(Prefix, true, false)], false), Action::Wait);
        assert_eq!(
            decide(&[copy(Prefix, true, false)], true),
            Action::Branch(0)
        );
        assert_eq!(
            decide(&[copy(Prefix, false, false)], true),
            Action::Branch(0)
        );
        assert_eq!(decide(&[copy(Shorter, false, false)], false), Action::Wait);
        assert_eq!(decide(&[copy(Shorter, true, false)], true), Action::Create);
    }

    #[test]
    fn each_content_has_a_partition_of_its_own() {
        let taken = ["a@1", "a@1.2"];
        let name = |path, inode| partition_name(path, inode, |n| taken.contains(&n));
        assert_eq!(name("a", 2), "a@2");
        assert_eq!(name("a", 1), "a@1.3");
        assert_eq!(path_of("a@b@1.3"), "a@b");
    }
}
