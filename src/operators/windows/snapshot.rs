//! A window's state in a snapshot: a head as JSON, then batches as Arrow IPC, each after its
//! length as u64. The names of the head's fields are part of the format.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use serde::{Deserialize, Serialize};

use super::progress::NO_WINDOW;
use super::session::OpenSession;
use super::update::RetainedResult;
use super::{WindowError, WindowKind, WindowState};
use crate::event::{Lsn, Micros};
use crate::schema::Window;

#[derive(Serialize, Deserialize)]
struct Head {
    #[serde(rename = "mark")]
    watermark: Micros,
    #[serde(rename = "fired_to")]
    fired_through: Micros,
    #[serde(rename = "closed_to")]
    closed_through: Micros,
    #[serde(rename = "not_before")]
    ignore_starts_before: Micros,
    next_due: Micros,
    #[serde(rename = "late")]
    too_late: u64,
    failed: u64,
    #[serde(default)]
    abandoned: u64,
    #[serde(rename = "cut")]
    pending_block: Lsn,
    /// End, version, `is_changed`, `was_stored` of each; their rows follow as batches.
    #[serde(rename = "standing")]
    retained: Vec<(Micros, i64, bool, bool)>,
    #[serde(rename = "has_before")]
    has_previous: bool,
    sessions: Vec<(Vec<u8>, Vec<OpenSession>)>,
    #[serde(rename = "next_session")]
    last_pane: Micros,
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn take<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], WindowError> {
    let truncated = || WindowError::Snapshot("is cut short");
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(truncated)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| truncated())?;
    let (own, rest) = rest.split_at_checked(length).ok_or_else(truncated)?;
    *bytes = rest;
    Ok(own)
}

pub(super) fn put_batches(out: &mut Vec<u8>, schema: &SchemaRef, batches: &[RecordBatch]) {
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

pub(super) fn take_batches(bytes: &mut &[u8]) -> Result<Vec<RecordBatch>, WindowError> {
    let own = take(bytes)?;
    let reader = StreamReader::try_new(own, None)?;
    Ok(reader.collect::<Result<Vec<_>, _>>()?)
}

pub(super) fn take_batch(bytes: &mut &[u8]) -> Result<RecordBatch, WindowError> {
    take_batches(bytes)?
        .pop()
        .ok_or(WindowError::Snapshot("rows are missing"))
}

impl WindowState {
    /// Appends the state to a snapshot.
    pub(in crate::operators) fn save(&self, out: &mut Vec<u8>) {
        let shared = &self.shared;
        let mut head = Head {
            watermark: shared.watermark,
            fired_through: NO_WINDOW,
            closed_through: NO_WINDOW,
            ignore_starts_before: self.ignore_starts_before,
            next_due: Micros::MAX,
            too_late: self.too_late,
            failed: self.failed(),
            abandoned: self.abandoned(),
            pending_block: shared.panes.pending_block(),
            retained: Vec::new(),
            has_previous: shared.emitter.previous.is_some(),
            sessions: Vec::new(),
            last_pane: 0,
        };
        let mut batches: Vec<&RecordBatch> = Vec::new();
        match &self.kind {
            WindowKind::Fixed(windows) => {
                head.fired_through = windows.progress.fired_through;
                head.closed_through = windows.progress.closed_through;
                head.next_due = windows.progress.next_due;
                for (end, result) in windows.retained.iter() {
                    let RetainedResult {
                        rows,
                        version,
                        is_changed,
                        was_stored,
                    } = result;
                    head.retained
                        .push((*end, *version, *is_changed, *was_stored));
                    batches.push(rows);
                }
            }
            WindowKind::Session(sessions) => (head.sessions, head.last_pane) = sessions.save(),
        }
        put(
            out,
            &serde_json::to_vec(&head).expect("plain data becomes JSON"),
        );
        batches.extend(&shared.emitter.previous);
        for rows in batches {
            put_batches(out, &shared.window.schema, std::slice::from_ref(rows));
        }
        shared.panes.save(out);
    }

    /// Reads what [`Self::save`] wrote. An error says what is wrong with the bytes.
    pub(in crate::operators) fn load(
        window: &Arc<Window>,
        bytes: &mut &[u8],
    ) -> Result<Self, WindowError> {
        let mut state = Self::new(window, None)?;
        let head: Head = serde_json::from_slice(take(bytes)?)?;
        match &mut state.kind {
            WindowKind::Fixed(windows) => {
                windows.progress.fired_through = head.fired_through;
                windows.progress.closed_through = head.closed_through;
                windows.progress.next_due = head.next_due;
                for (end, version, is_changed, was_stored) in head.retained {
                    let result = RetainedResult {
                        rows: take_batch(bytes)?,
                        version,
                        is_changed,
                        was_stored,
                    };
                    windows.retained.insert(end, result);
                }
            }
            WindowKind::Session(sessions) => sessions.load(head.sessions, head.last_pane),
        }
        if head.has_previous {
            state.shared.emitter.previous = Some(take_batch(bytes)?);
        }
        state.shared.panes.load(bytes, head.pending_block)?;
        state.shared.watermark = head.watermark;
        state.ignore_starts_before = head.ignore_starts_before;
        state.too_late = head.too_late;
        state.shared.emitter.failed = head.failed;
        state.shared.emitter.abandoned = head.abandoned;
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The head of a snapshot as it is on disk.
    #[test]
    fn the_names_of_the_head_are_the_formats() {
        let head = Head {
            watermark: 1,
            fired_through: 2,
            closed_through: 3,
            ignore_starts_before: 4,
            next_due: 5,
            too_late: 6,
            failed: 7,
            abandoned: 16,
            pending_block: 8,
            retained: vec![(9, 10, true, false)],
            has_previous: true,
            sessions: vec![(
                vec![11],
                vec![OpenSession {
                    start: 12,
                    end: 13,
                    panes: vec![14],
                }],
            )],
            last_pane: 15,
        };
        assert_eq!(
            serde_json::to_string(&head).expect("JSON"),
            concat!(
                r#"{"mark":1,"fired_to":2,"closed_to":3,"not_before":4,"next_due":5,"late":6,"#,
                r#""failed":7,"abandoned":16,"cut":8,"standing":[[9,10,true,false]],"#,
                r#""has_before":true,"#,
                r#""sessions":[[[11],[{"start":12,"end":13,"panes":[14]}]]],"next_session":15}"#
            )
        );
    }
}
