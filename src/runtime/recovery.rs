//! Where recovery starts. The live operators start from the newest snapshot, or from the one before
//! it if a view needs that. A view that lags both, by more than a snapshot interval, catches up from
//! the log by itself, so that the others need not wait for it.
//!
//! With snapshots at 200 and 100: if all views have committed what was emitted up to 200, recovery
//! starts at 200. If one has only what was emitted up to 150, at 100. If one has only what was
//! emitted up to 50, at 200, and that one catches up.

use std::collections::BTreeMap;

use crate::event::Lsn;
use crate::ids::{CheckpointId, ViewId};
use crate::operators::snapshot::is_ahead_of_views;

/// Checkpoints that a view has committed, or the last rows that operators have emitted.
pub type Checkpoints = BTreeMap<CheckpointId, Lsn>;

/// A state that the live operators may start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// None: the state before the first record.
    pub snapshot: Option<Lsn>,
    pub emitted_through: Checkpoints,
}

impl Candidate {
    /// The state before the first record, which suits every view.
    pub fn empty() -> Self {
        Self {
            snapshot: None,
            emitted_through: Checkpoints::new(),
        }
    }
}

/// Where the live operators start, and which views do not start there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Start {
    /// None: before the first record.
    pub snapshot: Option<Lsn>,
    /// Views that catch up from the log by themselves.
    pub catching_up: Vec<ViewId>,
}

/// Chooses among candidates, the newest first, for views with their checkpoints. Pure.
pub fn plan(candidates: &[Candidate], views: &[(ViewId, Checkpoints)]) -> Start {
    let Some(oldest) = candidates.last() else {
        return Start::default();
    };
    let suits = |candidate: &Candidate, at: &Checkpoints| {
        !is_ahead_of_views(&candidate.emitted_through, at)
    };
    let (near, far): (Vec<_>, Vec<_>) = views.iter().partition(|(_, at)| suits(oldest, at));
    let suits_all = |candidate: &&Candidate| near.iter().all(|(_, at)| suits(candidate, at));
    let start = candidates.iter().find(suits_all).unwrap_or(oldest);
    Start {
        snapshot: start.snapshot,
        catching_up: far.into_iter().map(|(view, _)| view.clone()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TableId;

    fn checkpoints(lsns: &[(&str, Lsn)]) -> Checkpoints {
        lsns.iter()
            .map(|(name, at)| ((*name).into(), *at))
            .collect()
    }

    fn candidate(lsn: Lsn, emitted_through: &[(&str, Lsn)]) -> Candidate {
        Candidate {
            snapshot: Some(lsn),
            emitted_through: checkpoints(emitted_through),
        }
    }

    fn table_view() -> ViewId {
        TableId::stream("t").view()
    }

    /// A table with two checkpoints, and an index.
    fn views(recent: Lsn, old: Lsn, search: Lsn) -> Vec<(ViewId, Checkpoints)> {
        let table = checkpoints(&[("t/recent", recent), ("t/old", old)]);
        vec![
            (table_view(), table),
            (ViewId::search("t"), checkpoints(&[("search/t", search)])),
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

    fn start(snapshot: Option<Lsn>, catching_up: &[ViewId]) -> Start {
        Start {
            snapshot,
            catching_up: catching_up.to_vec(),
        }
    }

    #[test]
    fn the_newest_snapshot_that_suits_every_near_view_is_taken() {
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
    fn a_view_that_lags_both_snapshots_catches_up_by_itself() {
        assert_eq!(
            plan(&snapshots(), &views(250, 250, 98)),
            start(Some(200), &[ViewId::search("t")])
        );
        assert_eq!(
            plan(&snapshots(), &views(198, 120, 0)),
            start(Some(100), &[ViewId::search("t")])
        );
        // One of its checkpoints is enough.
        assert_eq!(
            plan(&snapshots(), &views(250, 39, 199)),
            start(Some(200), &[table_view()])
        );
        assert_eq!(
            plan(&snapshots(), &views(0, 0, 0)),
            start(Some(200), &[table_view(), ViewId::search("t")])
        );
    }

    #[test]
    fn a_view_that_lags_the_first_snapshot_makes_all_start_with_the_log() {
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
