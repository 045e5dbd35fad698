//! Session windows: per key the sessions that are not over; an event between two makes one of them.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::ArrayRef;

use super::{FiredWindow, PaneSelection, Panes, Rows, WindowState};
use crate::bounds::kept_bytes;
use crate::event::{Lsn, Micros};
use crate::operators::canonical;
use crate::schema::window::Shape;

/// A session of one key that is not over.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(super) struct OpenSession {
    pub(super) start: Micros,
    pub(super) end: Micros,
    pub(super) panes: Vec<Micros>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct SessionWindows {
    pub(super) by_key: BTreeMap<Vec<u8>, Vec<OpenSession>>,
    /// (end, key) of every open one.
    pub(super) ends: BTreeSet<(Micros, Vec<u8>)>,
    pub(super) next: Micros,
}

impl WindowState {
    pub(super) fn is_session_over(&self, end: Micros, mark: Micros) -> bool {
        let Shape::Session { gap, .. } = self.window.shape else {
            return false;
        };
        // The gap itself still belongs to it.
        mark > end.saturating_add(gap).saturating_add(self.lateness())
    }

    pub(super) fn take_into_session(
        &mut self,
        (row, prepared): (usize, usize),
        time: Micros,
        lsn: Lsn,
        gap: Micros,
        key: &ArrayRef,
    ) -> Result<bool, String> {
        let mut bytes = Vec::new();
        canonical(key, row, &mut bytes);
        let bytes = kept_bytes(bytes);
        let open = self
            .sessions
            .by_key
            .get(&bytes)
            .map_or(&[][..], Vec::as_slice);
        let is_near = |s: &OpenSession| {
            time >= s.start.saturating_sub(gap) && time <= s.end.saturating_add(gap)
        };
        let is_joining = open.iter().any(is_near);
        if !is_joining && self.is_session_over(time, self.mark) {
            return Ok(false);
        }
        let (near, mut rest): (Vec<_>, Vec<_>) = open.iter().cloned().partition(is_near);
        for session in &near {
            self.sessions.ends.remove(&(session.end, bytes.clone()));
        }
        let mut joined = near.into_iter().reduce(|mut a, b| {
            (a.start, a.end) = (a.start.min(b.start), a.end.max(b.end));
            a.panes.extend(b.panes);
            a
        });
        let session = joined.get_or_insert_with(|| {
            self.sessions.next += 1;
            OpenSession {
                start: time,
                end: time,
                panes: vec![self.sessions.next],
            }
        });
        (session.start, session.end) = (session.start.min(time), session.end.max(time));
        let pane = session.panes[0];
        self.sessions.ends.insert((session.end, bytes.clone()));
        rest.extend(joined);
        rest.sort_by_key(|s| s.start);
        self.sessions.by_key.insert(bytes, rest);
        self.add(prepared, pane, lsn)?;
        Ok(true)
    }

    /// Sessions that are over at `mark`, in the order of their starts and keys.
    pub(super) fn close_sessions(
        &mut self,
        mark: Micros,
        lsn: Lsn,
        status: &'static str,
    ) -> Result<(), String> {
        let Shape::Session { gap, .. } = self.window.shape else {
            return Ok(());
        };
        let mut over: Vec<(Micros, Vec<u8>, OpenSession)> = Vec::new();
        while let Some((end, key)) = self
            .sessions
            .ends
            .first()
            .filter(|(end, _)| self.is_session_over(*end, mark))
            .cloned()
        {
            self.sessions.ends.pop_first();
            let Some(open) = self.sessions.by_key.get_mut(&key) else {
                continue;
            };
            let at = open.iter().position(|s| s.end == end);
            let session = at.map(|at| open.remove(at));
            if open.is_empty() {
                self.sessions.by_key.remove(&key);
            }
            over.extend(session.map(|session| (session.start, key, session)));
        }
        over.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        for (start, _, session) in over {
            let end = session.end + gap;
            let which = PaneSelection::Panes(&session.panes);
            let rows = match &mut self.panes {
                Panes::CountAggregator(panes) => Rows::GroupCounts(panes.rows(&which, false)),
                Panes::GenericAggregator(panes) => Rows::Columns(panes.rows(&which, start, end)?),
            };
            self.fired.push(FiredWindow {
                start,
                end,
                lsn,
                status,
                rows,
                is_same: false,
            });
            for pane in session.panes {
                match &mut self.panes {
                    Panes::CountAggregator(panes) => panes.remove(pane),
                    Panes::GenericAggregator(panes) => panes.remove(pane),
                }
            }
        }
        Ok(())
    }
}
