//! Session windows: per key the sessions that are open. An event within the gap of two sessions
//! merges them:
//!
//! ```text
//! gap 5, one key     open sessions
//! event at 10        10..10
//! event at 18        10..10  18..18
//! event at 14        10..18            within 5 of both
//! ```
//!
//! A session expires when the watermark has passed its last event by more than the gap and the
//! lateness. With a lateness of 2, one that ends at 10 is open at watermark 17, and fires at 18. An
//! event at 4 is too late at watermark 12 (4 + 5 + 2 < 12), unless it is within the gap of a
//! session that is still open: an event at 5 joins 10..10.
//!
//! Sessions have no panes by time. Each gets a number, under which its rows are aggregated; when
//! sessions merge, the result has the numbers of all, and the aggregates are merged when it fires.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::emit::{FiredWindow, ResultStatus};
use super::panes::PaneSelection;
use super::{Shared, WindowError};
use crate::event::{Lsn, Micros};

/// The bytes of a session's key.
type Key = Vec<u8>;

/// A session of one key that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OpenSession {
    pub(super) start: Micros,
    /// Time of its last event.
    pub(super) end: Micros,
    /// Numbers of the panes that hold its rows: one, and those of the sessions merged into it.
    pub(super) panes: Vec<Micros>,
}

/// The open sessions of a window, by their keys.
#[derive(Debug, Clone)]
pub(super) struct SessionWindows {
    /// Longest time between two events of a session.
    gap: Micros,
    /// The key's column in the input.
    pub(super) key: usize,
    allowed_lateness: Micros,
    by_key: BTreeMap<Key, Vec<OpenSession>>,
    /// (end, key) of every open session: the first one expires first.
    ends: BTreeSet<(Micros, Key)>,
    /// Number of the pane that was used last.
    last_pane: Micros,
}

impl SessionWindows {
    pub(super) fn new(gap: Micros, key: usize, allowed_lateness: Micros) -> Self {
        Self {
            gap,
            key,
            allowed_lateness,
            by_key: BTreeMap::new(),
            ends: BTreeSet::new(),
            last_pane: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.ends.len() * 160
    }

    /// Whether the watermark has passed a session's end (or an event's time), the gap and the
    /// lateness.
    fn is_expired(&self, end: Micros, watermark: Micros) -> bool {
        // The gap itself still belongs to it.
        watermark
            > end
                .saturating_add(self.gap)
                .saturating_add(self.allowed_lateness)
    }

    /// Puts an event into its session and returns the pane for its row; none where every session
    /// that it could belong to has expired.
    fn assign(&mut self, key: Key, time: Micros, watermark: Micros) -> Option<Micros> {
        let gap = self.gap;
        let open = self.by_key.get(&key).map_or(&[][..], Vec::as_slice);
        let is_near = |s: &OpenSession| {
            time >= s.start.saturating_sub(gap) && time <= s.end.saturating_add(gap)
        };
        if !open.iter().any(is_near) && self.is_expired(time, watermark) {
            return None;
        }
        let (near, mut rest): (Vec<_>, Vec<_>) = open.iter().cloned().partition(is_near);
        for session in &near {
            self.ends.remove(&(session.end, key.clone()));
        }
        let merged = near.into_iter().reduce(|mut a, b| {
            (a.start, a.end) = (a.start.min(b.start), a.end.max(b.end));
            a.panes.extend(b.panes);
            a
        });
        let mut session = merged.unwrap_or_else(|| {
            self.last_pane += 1;
            OpenSession {
                start: time,
                end: time,
                panes: vec![self.last_pane],
            }
        });
        (session.start, session.end) = (session.start.min(time), session.end.max(time));
        let pane = session.panes[0];
        self.ends.insert((session.end, key.clone()));
        rest.push(session);
        rest.sort_by_key(|s| s.start);
        self.by_key.insert(key, rest);
        Some(pane)
    }

    /// Removes the sessions that have expired, in the order of their starts and keys.
    fn take_expired(&mut self, watermark: Micros) -> Vec<OpenSession> {
        let mut expired: Vec<(Key, OpenSession)> = Vec::new();
        while let Some((end, key)) = self
            .ends
            .first()
            .filter(|(end, _)| self.is_expired(*end, watermark))
            .cloned()
        {
            self.ends.pop_first();
            let Some(open) = self.by_key.get_mut(&key) else {
                continue;
            };
            let at = open.iter().position(|s| s.end == end);
            let session = at.map(|at| open.remove(at));
            if open.is_empty() {
                self.by_key.remove(&key);
            }
            expired.extend(session.map(|session| (key, session)));
        }
        expired.sort_by(|(a_key, a), (b_key, b)| (a.start, a_key).cmp(&(b.start, b_key)));
        expired.into_iter().map(|(_, session)| session).collect()
    }

    /// Accepts a row, by its position in the prepared batch; false where every session that it
    /// could belong to has expired.
    pub(super) fn accept_row(
        &mut self,
        shared: &mut Shared,
        position: usize,
        key: Key,
        time: Micros,
        lsn: Lsn,
    ) -> Result<bool, WindowError> {
        let Some(pane) = self.assign(key, time, shared.watermark) else {
            return Ok(false);
        };
        shared.panes.add(position, pane, lsn)?;
        Ok(true)
    }

    /// Fires the sessions that have expired at a watermark. As in Flink, a session's window_end is
    /// its last event's time plus the gap.
    pub(super) fn close(
        &mut self,
        shared: &mut Shared,
        watermark: Micros,
        lsn: Lsn,
        status: ResultStatus,
    ) -> Result<(), WindowError> {
        for session in self.take_expired(watermark) {
            let (start, end) = (session.start, session.end + self.gap);
            let rows = shared
                .panes
                .rows(PaneSelection::Ids(&session.panes), start, end)?;
            shared.emitter.push(FiredWindow {
                start,
                end,
                lsn,
                status,
                rows,
                is_same: false,
            });
            for pane in session.panes {
                shared.panes.remove(pane);
            }
        }
        Ok(())
    }

    /// Closes the session that ends first at once, because there are too many groups; false where
    /// none is open.
    pub(super) fn evict_oldest(
        &mut self,
        shared: &mut Shared,
        lsn: Lsn,
    ) -> Result<bool, WindowError> {
        let Some((end, _)) = self.ends.first() else {
            return Ok(false);
        };
        let watermark = end
            .saturating_add(self.gap)
            .saturating_add(self.allowed_lateness)
            .saturating_add(1);
        self.close(shared, watermark, lsn, ResultStatus::Abandoned)?;
        Ok(true)
    }

    /// The open sessions that a query sees, without changing anything.
    pub(super) fn open(&self, shared: &Shared, lsn: Lsn) -> Result<Vec<FiredWindow>, WindowError> {
        let reader = shared.panes.reader()?;
        self.by_key
            .values()
            .flatten()
            .map(|session| {
                let (start, end) = (session.start, session.end + self.gap);
                Ok(FiredWindow {
                    start,
                    end,
                    lsn,
                    status: ResultStatus::Open,
                    rows: reader.rows(PaneSelection::Ids(&session.panes), start, end)?,
                    is_same: false,
                })
            })
            .collect()
    }

    /// The open sessions by their keys, and the number of the last pane, for a snapshot.
    pub(super) fn save(&self) -> (Vec<(Key, Vec<OpenSession>)>, Micros) {
        let by_key = self.by_key.iter();
        let sessions = by_key.map(|(key, open)| (key.clone(), open.clone()));
        (sessions.collect(), self.last_pane)
    }

    /// Restores what [`Self::save`] gave.
    pub(super) fn load(&mut self, sessions: Vec<(Key, Vec<OpenSession>)>, last_pane: Micros) {
        self.by_key = sessions.into_iter().collect();
        self.ends = self
            .by_key
            .iter()
            .flat_map(|(key, open)| open.iter().map(|s| (s.end, key.clone())))
            .collect();
        self.last_pane = last_pane;
    }
}

#[cfg(test)]
mod tests {
    use super::super::progress::NO_WATERMARK;
    use super::*;

    fn assigned(events: &[(&str, Micros)]) -> SessionWindows {
        let mut sessions = SessionWindows::new(5, 0, 2);
        for (key, time) in events {
            let pane = sessions.assign(key.as_bytes().to_vec(), *time, NO_WATERMARK);
            assert!(pane.is_some(), "{key} {time}");
        }
        sessions
    }

    fn ranges(sessions: &SessionWindows, key: &str) -> Vec<(Micros, Micros, usize)> {
        let open = sessions.by_key.get(key.as_bytes());
        let open = open.map_or(&[][..], Vec::as_slice);
        open.iter()
            .map(|s| (s.start, s.end, s.panes.len()))
            .collect()
    }

    #[test]
    fn events_within_the_gap_join_and_merge_sessions() {
        /// Start, end and number of panes.
        type Range = (Micros, Micros, usize);
        let want: [(&[Micros], &[Range]); 4] = [
            (&[10, 15], &[(10, 15, 1)]),
            (&[10, 16], &[(10, 10, 1), (16, 16, 1)]),
            (&[10, 18, 14], &[(10, 18, 2)]),
            (&[10, 5, 1], &[(1, 10, 1)]),
        ];
        for (times, want) in want {
            let events: Vec<(&str, Micros)> = times.iter().map(|t| ("a", *t)).collect();
            let sessions = assigned(&events);
            assert_eq!(ranges(&sessions, "a"), want, "{times:?}");
            assert_eq!(sessions.ends.len(), want.len());
        }
        let two_keys = assigned(&[("a", 10), ("b", 12)]);
        assert_eq!(ranges(&two_keys, "a"), [(10, 10, 1)]);
        assert_eq!(ranges(&two_keys, "b"), [(12, 12, 1)]);
    }

    #[test]
    fn a_session_is_expired_after_its_gap_and_the_lateness() {
        let mut sessions = assigned(&[("b", 10), ("a", 10), ("a", 30), ("c", 8)]);
        assert!(sessions.take_expired(15).is_empty());
        let starts =
            |expired: Vec<OpenSession>| expired.iter().map(|s| s.start).collect::<Vec<_>>();
        assert_eq!(starts(sessions.take_expired(16)), [8]);
        assert_eq!(starts(sessions.take_expired(17)), [0; 0]);
        assert_eq!(starts(sessions.take_expired(18)), [10, 10]);
        assert_eq!(ranges(&sessions, "a"), [(30, 30, 1)]);
        assert!(ranges(&sessions, "b").is_empty());
    }

    #[test]
    fn a_late_event_is_accepted_only_into_an_open_session() {
        let mut sessions = assigned(&[("a", 10)]);
        // Alone it would have expired: 4 + 5 + 2 < 12.
        assert_eq!(sessions.assign(b"b".to_vec(), 4, 12), None);
        assert_eq!(sessions.assign(b"a".to_vec(), 4, 12), None);
        assert_eq!(sessions.assign(b"a".to_vec(), 5, 14), Some(1));
        assert_eq!(ranges(&sessions, "a"), [(5, 10, 1)]);
    }

    #[test]
    fn sessions_are_restored_from_a_snapshot() {
        let sessions = assigned(&[("a", 10), ("b", 3), ("a", 40)]);
        let (saved, last_pane) = sessions.save();
        let mut restored = SessionWindows::new(5, 0, 2);
        restored.load(saved, last_pane);
        assert_eq!(restored.by_key, sessions.by_key);
        assert_eq!(restored.ends, sessions.ends);
        assert_eq!(restored.last_pane, sessions.last_pane);
    }
}
