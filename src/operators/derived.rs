//! Derived tables: the rows of a stream go through its windows, sessions and entity tables, which
//! fill tables of their own. Closing and the passing of time do so without rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ListBuilder, RecordBatch, StringBuilder, UInt32Array};

use super::sessions::{self, SessionStatus, Sessions};
use super::values::{column_times, lsns};
use super::windows::{RowAdmission, WindowInput};
use super::{OperatorError, Operators, Output, TableRows};
use crate::event::{Lsn, Micros};
use crate::ids::TableId;
use crate::schema::{Stream, Window};

/// What a window emits to the windows that read it.
struct FinalRows {
    rows: RecordBatch,
    /// How long after the stream's watermark they are final, in µs: the lateness of the window and
    /// of those that it reads.
    lateness: Micros,
}

impl FinalRows {
    /// The watermarks for the windows that read this one: the stream's, less the lateness after
    /// which rows are final.
    ///
    /// Windows of 10 with a lateness of 5: at the stream's watermark 24, the window 10..20 may
    /// still change (20 + 5 > 24), and the windows that read it have the watermark 19. At 25 it is
    /// final, and its row, with window_end 20, comes together with the watermark 20: in time.
    fn delayed(&self, watermark_updates: &[(Lsn, Micros)]) -> Vec<(Lsn, Micros)> {
        watermark_updates
            .iter()
            .map(|(lsn, watermark)| (*lsn, watermark.saturating_sub(self.lateness)))
            .collect()
    }
}

/// Rows of a frame that were too late for some windows. Those that no window accepted go to
/// `<stream>.late`: with windows of a minute and of an hour, a row that only the latter still
/// accepts is not lost.
struct LateRows {
    /// Per row, whether some window accepted it.
    accepted: Vec<bool>,
    /// By row, the windows that would have accepted it.
    windows: BTreeMap<u32, Vec<String>>,
}

impl LateRows {
    fn new(rows: usize) -> Self {
        Self {
            accepted: vec![false; rows],
            windows: BTreeMap::new(),
        }
    }

    fn record(&mut self, window: &str, admission: RowAdmission) {
        for row in admission.accepted {
            self.accepted[row as usize] = true;
        }
        for row in admission.too_late {
            let windows = self.windows.entry(row).or_default();
            windows.push(window.to_owned());
        }
    }

    /// Rows that no window accepted, with the windows that would have.
    fn finish(mut self) -> BTreeMap<u32, Vec<String>> {
        self.windows.retain(|row, _| !self.accepted[*row as usize]);
        self.windows
    }
}

impl Operators {
    /// A stream's watermark may have moved without a row.
    pub(super) fn apply_watermark(
        &mut self,
        name: &str,
        lsn: Lsn,
        output: &mut Output,
    ) -> Result<(), OperatorError> {
        let Some((state, stream)) = self
            .streams
            .get_mut(name)
            .zip(self.catalog.streams.get(name).cloned())
        else {
            return Ok(());
        };
        let Some(watermark) = state.watermark else {
            return Ok(());
        };
        let retention_floor = state.retention_floor;
        if let Some(sessions) = &mut state.sessions {
            let mut closed = Vec::new();
            sessions.advance(watermark, lsn, &mut closed);
            push_sessions(output, &stream, sessions, &closed, retention_floor);
        }
        let nothing = RecordBatch::new_empty(stream.table_schema.clone());
        self.process_windows(&stream, &nothing, &[(lsn, watermark)], output)
    }

    /// Closes every session and window, as at the end of all input (`--final`). A window comes
    /// after the one that it reads, so that it takes in the rows with which that one closes.
    pub(super) fn close_all(&mut self, lsn: Lsn, output: &mut Output) -> Result<(), OperatorError> {
        for (name, state) in &mut self.streams {
            let (Some(sessions), Some(stream)) =
                (&mut state.sessions, self.catalog.streams.get(name))
            else {
                continue;
            };
            let mut closed = Vec::new();
            sessions.close_all(lsn, SessionStatus::ClosedTimeout, &mut closed);
            push_sessions(output, stream, sessions, &closed, state.retention_floor);
        }
        let mut finals: BTreeMap<String, RecordBatch> = BTreeMap::new();
        for at in 0..self.windows.len() {
            let window = self.windows[at].window().clone();
            let failed = OperatorError::window(lsn, &window);
            let mut emitted = Vec::new();
            if let Some(inner) = finals.get(&window.input) {
                let input = window_input(&window, inner, &[]);
                emitted.push(self.windows[at].process(&input).map_err(&failed)?.1);
            }
            emitted.push(self.windows[at].close_all(lsn).map_err(&failed)?);
            let (stored, last): (Vec<_>, Vec<_>) =
                emitted.into_iter().map(|o| (o.stored, o.finals)).unzip();
            self.push_window(&window, join(&window, stored), output);
            finals.extend(join(&window, last).map(|rows| (window.name.clone(), rows)));
        }
        Ok(())
    }

    /// Processes a stream's rows, and the watermark changes among and after them, in its windows,
    /// and their final rows in the windows that read them.
    pub(super) fn process_windows(
        &mut self,
        stream: &Arc<Stream>,
        batch: &RecordBatch,
        watermark_updates: &[(Lsn, Micros)],
        output: &mut Output,
    ) -> Result<(), OperatorError> {
        let mut finals: BTreeMap<String, FinalRows> = BTreeMap::new();
        let mut late = LateRows::new(batch.num_rows());
        for at in 0..self.windows.len() {
            let window = self.windows[at].window().clone();
            if window.stream != stream.name {
                continue;
            }
            let failed = OperatorError::window(output.to, &window);
            let (emitted, inner_lateness) = if window.input == stream.name {
                let input = window_input(&window, batch, watermark_updates);
                let (admission, emitted) = self.windows[at].process(&input).map_err(failed)?;
                late.record(&window.name, admission);
                (emitted, 0)
            } else {
                let Some(inner) = finals.get(&window.input) else {
                    continue;
                };
                let updates = inner.delayed(watermark_updates);
                let input = window_input(&window, &inner.rows, &updates);
                let (_, emitted) = self.windows[at].process(&input).map_err(failed)?;
                (emitted, inner.lateness)
            };
            let rows = emitted
                .finals
                .unwrap_or_else(|| RecordBatch::new_empty(window.schema.clone()));
            let lateness = inner_lateness + window.def.allowed_lateness.micros();
            finals.insert(window.name.clone(), FinalRows { rows, lateness });
            self.push_window(&window, emitted.stored, output);
        }
        let late = late.finish();
        if !late.is_empty() {
            let retention_floor = self
                .streams
                .get(&stream.name)
                .and_then(|s| s.retention_floor);
            let batch = late_rows(stream, batch, &late);
            output.tables.push(TableRows {
                table: TableId::late(&stream.name),
                batch,
                retention_floor,
            });
        }
        Ok(())
    }

    fn push_window(&self, window: &Window, rows: Option<RecordBatch>, output: &mut Output) {
        let retention_floor = self.window_retention_floor(window);
        output.tables.extend(rows.map(|batch| TableRows {
            table: TableId::window(&window.name),
            batch,
            retention_floor,
        }));
    }

    /// Processes a stream's rows in its entity tables.
    pub(super) fn process_entities(
        &mut self,
        stream: &Stream,
        batch: &RecordBatch,
        output: &mut Output,
    ) -> Result<(), OperatorError> {
        for state in self
            .entities
            .iter_mut()
            .filter(|e| e.entity.stream == stream.name)
        {
            let (name, lsn) = (state.entity.name.clone(), output.to);
            let table = TableId::entity(&name);
            let failed = |reason| OperatorError::Entity {
                lsn,
                table: name,
                reason,
            };
            let rows = state.rows(batch).map_err(failed)?;
            if rows.num_rows() > 0 {
                output.tables.push(TableRows {
                    table,
                    batch: rows,
                    retention_floor: None,
                });
            }
        }
        Ok(())
    }
}

fn window_input<'a>(
    window: &Window,
    batch: &'a RecordBatch,
    watermark_updates: &'a [(Lsn, Micros)],
) -> WindowInput<'a> {
    WindowInput {
        batch,
        times: column_times(batch, window.time),
        lsns: lsns(batch),
        watermark_updates,
    }
}

/// The parts as one batch; none if all are none.
fn join(window: &Window, parts: Vec<Option<RecordBatch>>) -> Option<RecordBatch> {
    let parts: Vec<RecordBatch> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| {
        arrow::compute::concat_batches(&window.schema, &parts)
            .expect("both have the window's schema")
    })
}

/// Adds closed sessions to an output as rows of `<stream>.sessions`, if there are any.
pub(super) fn push_sessions(
    output: &mut Output,
    stream: &Stream,
    sessions: &Sessions,
    closed: &[sessions::ClosedSession],
    retention_floor: Option<Micros>,
) {
    if !closed.is_empty() {
        output.tables.push(TableRows {
            table: TableId::sessions(&stream.name),
            batch: sessions.rows(closed),
            retention_floor,
        });
    }
}

/// Rows of `<stream>.late`, each with the names of the windows that would have accepted it.
fn late_rows(
    stream: &Stream,
    batch: &RecordBatch,
    late: &BTreeMap<u32, Vec<String>>,
) -> RecordBatch {
    let rows = UInt32Array::from_iter_values(late.keys().copied());
    let rows = arrow::compute::take_record_batch(batch, &rows).expect("the rows exist");
    let mut names = ListBuilder::new(StringBuilder::new());
    for windows in late.values() {
        windows
            .iter()
            .for_each(|name| names.values().append_value(name));
        names.append(true);
    }
    let mut columns = rows.columns().to_vec();
    columns.push(Arc::new(names.finish()));
    RecordBatch::try_new(stream.late_schema(), columns).expect("the columns are the schema's")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_late_only_if_no_window_accepted_it() {
        let mut late = LateRows::new(3);
        for (window, accepted, too_late) in [("a", vec![0], vec![1, 2]), ("b", vec![1], vec![2])] {
            let admission = RowAdmission { accepted, too_late };
            late.record(window, admission);
        }
        let want = BTreeMap::from([(2, vec!["a".to_owned(), "b".to_owned()])]);
        assert_eq!(late.finish(), want);
    }
}
