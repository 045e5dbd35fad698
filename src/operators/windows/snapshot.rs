//! A window's state in a snapshot: a head as JSON, then batches as Arrow IPC, each behind its
//! length.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use serde::{Deserialize, Serialize};

use super::session::{OpenSession, SessionWindows};
use super::update::RetainedResult;
use super::{Panes, WindowState};
use crate::event::{Lsn, Micros};
use crate::schema::Window;

#[derive(Serialize, Deserialize)]
struct Head {
    mark: Micros,
    fired_to: Micros,
    closed_to: Micros,
    not_before: Micros,
    next_due: Micros,
    late: u64,
    failed: u64,
    cut: Lsn,
    /// End, version, changed, stored; their rows follow.
    standing: Vec<(Micros, i64, bool, bool)>,
    has_before: bool,
    sessions: Vec<(Vec<u8>, Vec<OpenSession>)>,
    next_session: Micros,
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn take<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], String> {
    let cut = || "is cut short".to_owned();
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(cut)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|e| e.to_string())?;
    let (own, rest) = rest.split_at_checked(length).ok_or_else(cut)?;
    *bytes = rest;
    Ok(own)
}

fn put_batches(out: &mut Vec<u8>, schema: &SchemaRef, batches: &[RecordBatch]) {
    let written = (|| {
        let mut writer = StreamWriter::try_new(Vec::new(), schema)?;
        batches.iter().try_for_each(|batch| writer.write(batch))?;
        writer.into_inner()
    })();
    put(
        out,
        &written.expect("writing a batch of this schema into memory"),
    );
}

fn take_batches(bytes: &mut &[u8]) -> Result<Vec<RecordBatch>, String> {
    let own = take(bytes)?;
    let reader = StreamReader::try_new(own, None).map_err(|e| e.to_string())?;
    reader
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| e.to_string())
}

impl WindowState {
    pub fn save(&self, out: &mut Vec<u8>) {
        let cut = match &self.panes {
            Panes::GenericAggregator(panes) => panes.save().2,
            Panes::CountAggregator(_) => 0,
        };
        let head = Head {
            mark: self.mark,
            fired_to: self.fired_to,
            closed_to: self.closed_to,
            not_before: self.not_before,
            next_due: self.next_due,
            late: self.late,
            failed: self.failed,
            cut,
            standing: self
                .standing
                .iter()
                .map(|(end, s)| (*end, s.version, s.is_changed, s.was_stored))
                .collect(),
            has_before: self.before.is_some(),
            sessions: self
                .sessions
                .by_key
                .iter()
                .map(|(k, s)| (k.clone(), s.clone()))
                .collect(),
            next_session: self.sessions.next,
        };
        put(
            out,
            &serde_json::to_vec(&head).expect("plain data becomes JSON"),
        );
        let schema = &self.window.schema;
        for standing in self.standing.values() {
            put_batches(out, schema, std::slice::from_ref(&standing.rows));
        }
        if let Some(before) = &self.before {
            put_batches(out, schema, std::slice::from_ref(before));
        }
        match &self.panes {
            Panes::CountAggregator(panes) => {
                let saved = panes.save().expect("groups become columns");
                put_batches(out, &saved.schema(), std::slice::from_ref(&saved));
            }
            Panes::GenericAggregator(panes) => {
                let (waiting, states, _) = panes.save();
                let (reduced, state) = panes.schemas();
                put_batches(out, &reduced, &waiting);
                put_batches(out, &state, &states);
            }
        }
    }

    pub fn load(window: &Arc<Window>, bytes: &mut &[u8]) -> Result<Self, String> {
        let mut state = Self::new(window, None)?;
        let head: Head = serde_json::from_slice(take(bytes)?).map_err(|e| e.to_string())?;
        let one = |bytes: &mut &[u8]| -> Result<RecordBatch, String> {
            take_batches(bytes)?
                .pop()
                .ok_or_else(|| "rows are missing".to_owned())
        };
        for (end, version, is_changed, was_stored) in head.standing {
            let rows = one(bytes)?;
            state.stand(
                end,
                RetainedResult {
                    rows,
                    version,
                    is_changed,
                    was_stored,
                },
            );
        }
        if head.has_before {
            state.before = Some(one(bytes)?);
        }
        match &mut state.panes {
            Panes::CountAggregator(panes) => {
                panes.load(&one(bytes)?)?;
                panes.end();
            }
            Panes::GenericAggregator(panes) => {
                let waiting = take_batches(bytes)?;
                panes.load(waiting, take_batches(bytes)?, head.cut)?;
            }
        }
        (state.mark, state.fired_to, state.closed_to) = (head.mark, head.fired_to, head.closed_to);
        (state.not_before, state.next_due) = (head.not_before, head.next_due);
        (state.late, state.failed) = (head.late, head.failed);
        let by_key: BTreeMap<Vec<u8>, Vec<OpenSession>> = head.sessions.into_iter().collect();
        let ends: BTreeSet<_> = by_key
            .iter()
            .flat_map(|(key, open)| open.iter().map(|s| (s.end, key.clone())))
            .collect();
        state.sessions = SessionWindows {
            by_key,
            ends,
            next: head.next_session,
        };
        Ok(state)
    }
}
