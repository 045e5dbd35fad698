//! Which of the files that were read before a file is: a pure decision over what was compared.

/// What a file's content is beside what was read in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// It begins with all that was read.
    Same,
    /// All of it was read; it ends before the position.
    Prefix,
    /// It ends before the position; whether it is the same up to there is not known.
    Shorter,
    Differs,
}

/// A partition that a file may continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The same inode or the same path; else the content alone speaks for it.
    pub is_own: bool,
    /// It is another file that is still there.
    pub is_live: bool,
    /// Everything of that other file has been read.
    pub is_at_end: bool,
    pub comparison: Comparison,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is the file of this candidate: reading continues at its position.
    Continue(usize),
    /// It is a copy of this candidate's file: what is behind the common content is read.
    Branch(usize),
    /// It is a file that was not read before.
    Fresh,
    /// It may still be written, or the other file still be read: decided later.
    Wait,
}

/// Decides by the candidates, best first. `is_quiet`: the file has not changed for a while.
pub fn decide(candidates: &[Candidate], is_quiet: bool) -> Action {
    for (at, candidate) in candidates.iter().enumerate() {
        match (candidate.comparison, candidate.is_live) {
            (Comparison::Differs, _) => {}
            (Comparison::Same, false) => return Action::Continue(at),
            _ if !is_quiet => return Action::Wait,
            (Comparison::Same, true) if candidate.is_at_end => return Action::Branch(at),
            (Comparison::Same, true) => return Action::Wait,
            (Comparison::Prefix, _) if !candidate.is_own => return Action::Branch(at),
            // The file itself became shorter, and stayed so: its content is new.
            (Comparison::Prefix | Comparison::Shorter, _) => {}
        }
    }
    Action::Fresh
}

/// The name of a new partition for a file: `path@inode`, numbered where the inode held another
/// content before.
pub fn partition_name(path: &str, inode: u64, is_taken: impl Fn(&str) -> bool) -> String {
    let first = format!("{path}@{inode}");
    let mut names = std::iter::once(first.clone()).chain((2u64..).map(|n| format!("{first}.{n}")));
    names.find(|name| !is_taken(name)).unwrap_or(first)
}

/// The path that a partition was named by.
pub fn path_of(partition: &str) -> &str {
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
        assert_eq!(decide(&[], false), Action::Fresh);
        assert_eq!(
            decide(&[own(Differs), copy(Differs, true, true)], false),
            Action::Fresh
        );
    }

    #[test]
    fn a_file_that_became_shorter_is_new_once_it_stays_so() {
        for comparison in [Prefix, Shorter] {
            assert_eq!(decide(&[own(comparison)], false), Action::Wait);
            assert_eq!(decide(&[own(comparison)], true), Action::Fresh);
        }
    }

    #[test]
    fn a_copy_of_a_file_that_is_still_there_waits_until_both_are_at_rest() {
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
        assert_eq!(decide(&[copy(Shorter, true, false)], true), Action::Fresh);
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
