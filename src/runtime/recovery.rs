//! Where everything starts. The live operators start from the newest snapshot, or from the one
//! before it if a view needs that. A view that is behind both is more than a snapshot interval
//! behind: it starts in the reader, so that it keeps nobody waiting.

use std::collections::BTreeMap;

use crate::event::Lsn;
use crate::operators::snapshot::is_ahead_of_views;

/// Committed checkpoints of a view, or the last rows that views were given, by the names that
/// snapshots use.
pub type Checkpoints = BTreeMap<String, Lsn>;

/// A state that the live operators may start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// None: the state before the first record.
    pub snapshot: Option<Lsn>,
    pub given: Checkpoints,
}

impl Candidate {
    /// The state before the first record, which no view is behind.
    pub fn empty() -> Self {
        Self {
            snapshot: None,
            given: Checkpoints::new(),
        }
    }
}

/// Where the live operators start, and which views do not start there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Start {
    /// None: before the first record.
    pub snapshot: Option<Lsn>,
    /// Names of views that start in the reader.
    pub in_reader: Vec<String>,
}

/// Chooses among candidates, the newest first, for views with their checkpoints. Pure.
pub fn plan(candidates: &[Candidate], views: &[(String, Checkpoints)]) -> Start {
    let Some(oldest) = candidates.last() else {
        return Start::default();
    };
    let (far, near): (Vec<_>, Vec<_>) = views
        .iter()
        .partition(|(_, at)| is_ahead_of_views(&oldest.given, at));
    let suits_all = |candidate: &&Candidate| {
        near.iter()
            .all(|(_, at)| !is_ahead_of_views(&candidate.given, at))
    };
    let start = candidates.iter().find(suits_all).unwrap_or(oldest);
    Start {
        snapshot: start.snapshot,
        in_reader: far.into_iter().map(|(name, _)| name.clone()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoints(of: &[(&str, Lsn)]) -> Checkpoints {
        of.iter()
            .map(|(name, at)| ((*name).to_owned(), *at))
            .collect()
    }

    fn candidate(lsn: Lsn, given: &[(&str, Lsn)]) -> Candidate {
        Candidate {
            snapshot: Some(lsn),
            given: checkpoints(given),
        }
    }

    /// A table with two checkpoints, and an index.
    fn views(recent: Lsn, old: Lsn, search: Lsn) -> Vec<(String, Checkpoints)> {
        let table = checkpoints(&[("t/recent", recent), ("t/old", old)]);
        vec![
            ("table".to_owned(), table),
            ("index".to_owned(), checkpoints(&[("search/t", search)])),
        ]
    }

    fn snapshots() -> [Candidate; 2] {
        [
            candidate(
                200,
                &[
                    ("t/recent", 199),
                    ("t/old", 120),
                    ("search/t", 199),
                    ("gone", 150),
                ],
            ),
            candidate(
                100,
                &[
                    ("t/recent", 99),
                    ("t/old", 40),
                    ("search/t", 99),
                    ("gone", 50),
                ],
            ),
        ]
    }

    fn start(snapshot: Option<Lsn>, in_reader: &[&str]) -> Start {
        Start {
            snapshot,
            in_reader: in_reader.iter().map(|n| (*n).to_owned()).collect(),
        }
    }

    #[test]
    fn the_newest_snapshot_is_taken_that_no_near_view_is_behind() {
        assert_eq!(
            plan(&snapshots(), &views(199, 120, 250)),
            start(Some(200), &[])
        );
        assert_eq!(
            plan(&snapshots(), &views(199, 119, 250)),
            start(Some(100), &[])
        );
        assert_eq!(
            plan(&snapshots(), &views(99, 40, 199)),
            start(Some(100), &[])
        );
    }

    #[test]
    fn a_view_behind_both_starts_in_the_reader_and_holds_nobody_back() {
        assert_eq!(
            plan(&snapshots(), &views(250, 250, 98)),
            start(Some(200), &["index"])
        );
        assert_eq!(
            plan(&snapshots(), &views(198, 120, 0)),
            start(Some(100), &["index"])
        );
        // One of its checkpoints suffices.
        assert_eq!(
            plan(&snapshots(), &views(250, 39, 199)),
            start(Some(200), &["table"])
        );
        assert_eq!(
            plan(&snapshots(), &views(0, 0, 0)),
            start(Some(200), &["table", "index"])
        );
    }

    #[test]
    fn behind_a_first_snapshot_everything_starts_with_the_log() {
        let first = [candidate(100, &[("search/t", 99)]), Candidate::empty()];
        assert_eq!(plan(&first, &views(0, 0, 99)), start(Some(100), &[]));
        assert_eq!(plan(&first, &views(0, 0, 98)), start(None, &[]));
        assert_eq!(
            plan(&[Candidate::empty()], &views(0, 0, 0)),
            start(None, &[])
        );
        assert_eq!(plan(&[], &views(0, 0, 0)), start(None, &[]));
    }
}
