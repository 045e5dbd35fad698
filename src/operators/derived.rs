//! Tables that operators make: windows, sessions, late rows and entities are fed here, closed, and
//! brought over to another configuration.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;

use super::duplicates::Deduplicator;
use super::entities::EntityState;
use super::sessions::{self, Sessions, Status};
use super::values::{column_times, lsns};
use super::windows::{WindowInput, WindowState};
use super::{OperatorError, Operators, Output, TableRows, checkpoints, tables};
use crate::event::{Lsn, Micros};
use crate::schema::{Catalog, Stream, StreamDef};

impl Operators {
    /// Goes over to another configuration at a record. An operator whose declaration and whose
    /// stream's are as before keeps its state; a changed one stores what is open once more, and a
    /// window answers for what starts behind the times seen so far.
    pub(super) fn switch(
        &mut self,
        catalog: Arc<Catalog>,
        lsn: Lsn,
    ) -> Result<Vec<TableRows>, OperatorError> {
        let before = std::mem::replace(&mut self.catalog, catalog);
        let mut rows = self.switch_windows(&before, lsn)?;
        self.switch_entities(&before);
        self.switch_streams(&before, lsn, &mut rows);
        if let Some(answered) = &mut self.answered {
            answered.set_limits(self.catalog.idempotency);
        }
        Ok(rows)
    }

    /// Takes over from operators that stand at the same record what a table is made by: its
    /// window's, sessions', entities' or duplicates' state.
    pub fn adopt(&mut self, table: &str, from: &mut Self) {
        let is_it = |w: &WindowState| tables::versions_of(&w.window.name) == table;
        if let (Some(mine), Some(new)) = (
            self.windows.iter_mut().find(|w| is_it(w)),
            from.windows.iter_mut().find(|w| is_it(w)),
        ) {
            std::mem::swap(mine, new);
            if new.is_read() {
                mine.set_read();
            }
        }
        if let (Some(mine), Some(new)) = (
            self.entities.iter_mut().find(|e| e.entity.name == table),
            from.entities.iter_mut().find(|e| e.entity.name == table),
        ) {
            std::mem::swap(mine, new);
        }
        for (name, mine) in &mut self.streams {
            let Some(new) = from.streams.get_mut(name) else {
                continue;
            };
            if tables::sessions(name) == table {
                std::mem::swap(&mut mine.sessions, &mut new.sessions);
            } else if name == table {
                std::mem::swap(&mut mine.duplicates, &mut new.duplicates);
            }
        }
        for checkpoint in [checkpoints::recent(table), checkpoints::old(table)] {
            if let Some(lsn) = from.given.get(&checkpoint) {
                self.given.insert(checkpoint, *lsn);
            }
        }
    }

    fn switch_windows(
        &mut self,
        before: &Catalog,
        lsn: Lsn,
    ) -> Result<Vec<TableRows>, OperatorError> {
        let catalog = self.catalog.clone();
        let mut rows = Vec::new();
        let (mut kept, mut windows) = (BTreeMap::new(), Vec::new());
        for mut window in std::mem::take(&mut self.windows) {
            let name = window.window.name.clone();
            if is_same_stream(before, &catalog, &window.window.stream)
                && is_same_chain(before, &catalog, &name)
            {
                kept.insert(name, window);
                continue;
            }
            let failed = |reason: String| OperatorError::Window {
                lsn,
                window: name.clone(),
                reason,
            };
            let abandoned = window.abandon(lsn).map_err(failed)?;
            if let (Some(batch), Some(now)) = (abandoned, catalog.window(&name)) {
                let batch = fit(&batch, &now.schema);
                rows.extend(batch.map(|batch| TableRows {
                    table: tables::versions_of(&name).into(),
                    batch,
                    floor: None,
                }));
            }
        }
        for window in &catalog.windows {
            windows.push(match kept.remove(&window.name) {
                Some(state) => state,
                None => {
                    let greatest = self
                        .streams
                        .get(&window.stream)
                        .and_then(|s| s.greatest(&catalog, &window.stream));
                    let failed = |reason| OperatorError::Window {
                        lsn,
                        window: window.name.clone(),
                        reason,
                    };
                    WindowState::new(window, greatest).map_err(failed)?
                }
            });
        }
        for window in &mut windows {
            if catalog
                .windows
                .iter()
                .any(|outer| outer.over == window.window.name)
            {
                window.set_read();
            }
        }
        self.windows = windows;
        Ok(rows)
    }

    fn switch_entities(&mut self, before: &Catalog) {
        let catalog = self.catalog.clone();
        let is_same_entity = |state: &EntityState| {
            let now = catalog
                .entities
                .iter()
                .find(|e| e.name == state.entity.name);
            is_same_stream(before, &catalog, &state.entity.stream)
                && now.is_some_and(|e| e.def == state.entity.def)
        };
        let mut known: BTreeMap<String, EntityState> = std::mem::take(&mut self.entities)
            .into_iter()
            .filter(is_same_entity)
            .map(|state| (state.entity.name.clone(), state))
            .collect();
        self.entities = catalog
            .entities
            .iter()
            .map(|e| known.remove(&e.name).unwrap_or_else(|| EntityState::new(e)))
            .collect();
    }

    fn switch_streams(&mut self, before: &Catalog, lsn: Lsn, rows: &mut Vec<TableRows>) {
        let catalog = self.catalog.clone();
        self.streams
            .retain(|name, _| catalog.streams.contains_key(name));
        for (name, stream) in &catalog.streams {
            let state = self.streams.entry(name.clone()).or_default();
            if is_same_stream(before, &catalog, name) {
                continue;
            }
            state.duplicates = stream
                .duplicates()
                .map(|r| Deduplicator::new(r.max_keys, r.within));
            let fresh = stream
                .session()
                .map(|s| Sessions::new(name, s.gap, s.max_open));
            if let Some(mut sessions) =
                std::mem::replace(&mut state.sessions, fresh).filter(|_| stream.session().is_some())
            {
                let mut closed = Vec::new();
                sessions.close_all(lsn, Status::Abandoned, &mut closed);
                if !closed.is_empty() {
                    let batch = sessions.rows(&closed);
                    rows.push(TableRows {
                        table: tables::sessions(name).into(),
                        batch,
                        floor: state.floor,
                    });
                }
            }
        }
    }

    /// A stream's watermark may have moved without a row.
    pub(super) fn time_moved(
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
        let Some(mark) = state.watermark else {
            return Ok(());
        };
        let floor = state.floor;
        if let Some(sessions) = &mut state.sessions {
            let mut closed = Vec::new();
            sessions.advance(mark, lsn, &mut closed);
            push_sessions(output, &stream, sessions, &closed, floor);
        }
        let nothing = RecordBatch::new_empty(stream.table_schema.clone());
        self.feed_windows(&stream, &nothing, &[(lsn, mark)], output)
    }

    /// Closes every session and window, as at the end of all input.
    pub(super) fn close_all(&mut self, lsn: Lsn, output: &mut Output) -> Result<(), OperatorError> {
        for (name, state) in &mut self.streams {
            let (Some(sessions), Some(stream)) =
                (&mut state.sessions, self.catalog.streams.get(name))
            else {
                continue;
            };
            let mut closed = Vec::new();
            sessions.close_all(lsn, Status::ClosedTimeout, &mut closed);
            push_sessions(output, stream, sessions, &closed, state.floor);
        }
        let mut finals: BTreeMap<String, RecordBatch> = BTreeMap::new();
        for at in 0..self.windows.len() {
            let window = self.windows[at].window.clone();
            let failed = |reason| OperatorError::Window {
                lsn,
                window: window.name.clone(),
                reason,
            };
            let mut parts = Vec::new();
            if let Some(inner) = finals.get(&window.over) {
                let feed = WindowInput {
                    batch: inner,
                    times: column_times(inner, window.time),
                    lsns: lsns(inner),
                    marks: &[],
                };
                parts.push(self.windows[at].feed(&feed).map_err(failed)?.1);
            }
            parts.push(self.windows[at].close_all(lsn).map_err(failed)?);
            let (stored, last): (Vec<_>, Vec<_>) =
                parts.into_iter().map(|o| (o.stored, o.finals)).unzip();
            let join = |parts: Vec<Option<RecordBatch>>| {
                let parts: Vec<RecordBatch> = parts.into_iter().flatten().collect();
                (!parts.is_empty()).then(|| {
                    arrow::compute::concat_batches(&window.schema, &parts)
                        .expect("both are of the window's schema")
                })
            };
            if let Some(batch) = join(stored) {
                let floor = self.window_floor(&window);
                output.tables.push(TableRows {
                    table: tables::versions_of(&window.name).into(),
                    batch,
                    floor,
                });
            }
            if let Some(batch) = join(last) {
                finals.insert(window.name.clone(), batch);
            }
        }
        Ok(())
    }

    /// Feeds a stream's rows, and the watermarks behind them, to its windows, and theirs to the
    /// windows over them.
    pub(super) fn feed_windows(
        &mut self,
        stream: &Arc<Stream>,
        batch: &RecordBatch,
        marks: &[(Lsn, Micros)],
        output: &mut Output,
    ) -> Result<(), OperatorError> {
        let mut finals: BTreeMap<String, (RecordBatch, Micros)> = BTreeMap::new();
        let mut accepted = vec![false; batch.num_rows()];
        let mut late: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for at in 0..self.windows.len() {
            let window = self.windows[at].window.clone();
            if window.stream != stream.name {
                continue;
            }
            let lsn = output.to;
            let failed = |reason| OperatorError::Window {
                lsn,
                window: window.name.clone(),
                reason,
            };
            let is_first = window.over == stream.name;
            let (verdict, given) = if is_first {
                let feed = WindowInput {
                    batch,
                    times: column_times(batch, window.time),
                    lsns: lsns(batch),
                    marks,
                };
                self.windows[at].feed(&feed).map_err(failed)?
            } else {
                // The inner window's rows are final behind its lateness.
                let Some((inner, lateness)) = finals.get(&window.over) else {
                    continue;
                };
                let marks: Vec<(Lsn, Micros)> = marks
                    .iter()
                    .map(|(l, m)| (*l, m.saturating_sub(*lateness)))
                    .collect();
                let times = column_times(inner, window.time);
                self.windows[at]
                    .feed(&WindowInput {
                        batch: inner,
                        times,
                        lsns: lsns(inner),
                        marks: &marks,
                    })
                    .map_err(failed)?
            };
            if is_first {
                verdict
                    .accepted
                    .iter()
                    .for_each(|row| accepted[*row as usize] = true);
                for row in verdict.late {
                    late.entry(row).or_default().push(window.name.clone());
                }
            }
            let outer = finals
                .get(&window.over)
                .map_or(0, |(_, lateness)| *lateness);
            let last = given
                .finals
                .unwrap_or_else(|| RecordBatch::new_empty(window.schema.clone()));
            finals.insert(
                window.name.clone(),
                (last, outer + window.def.allowed_lateness.micros()),
            );
            if let Some(batch) = given.stored {
                let floor = self.window_floor(&window);
                output.tables.push(TableRows {
                    table: tables::versions_of(&window.name).into(),
                    batch,
                    floor,
                });
            }
        }
        late.retain(|row, _| !accepted[*row as usize]);
        if !late.is_empty() {
            let floor = self.streams.get(&stream.name).and_then(|s| s.floor);
            let batch = late_rows(stream, batch, &late);
            output.tables.push(TableRows {
                table: tables::late(&stream.name).into(),
                batch,
                floor,
            });
        }
        Ok(())
    }

    pub(super) fn feed_entities(
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
            let table = name.as_str().into();
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
                    floor: None,
                });
            }
        }
        Ok(())
    }
}

fn is_same_stream(before: &Catalog, after: &Catalog, name: &str) -> bool {
    let (Some(before), Some(after)) = (before.streams.get(name), after.streams.get(name)) else {
        return false;
    };
    followed(&before.def) == followed(&after.def)
}

/// Of a stream's declaration what operators follow from: views alone read the rest.
fn followed(def: &StreamDef) -> StreamDef {
    let mut def = StreamDef {
        search: None,
        places: None,
        ..def.clone()
    };
    // Sessions tell the type that is counted, where they name no column.
    if def
        .session
        .as_ref()
        .is_none_or(|session| session.track.is_some())
    {
        def.count = None;
    }
    def
}

/// Whether a window and every one that it reads are declared as before.
fn is_same_chain(before: &Catalog, after: &Catalog, name: &str) -> bool {
    let (Some(old), Some(new)) = (before.window(name), after.window(name)) else {
        return false;
    };
    let is_cut_alike = before.zone_data == after.zone_data || !old.depends_on_zones();
    old.def == new.def
        && is_cut_alike
        && (old.over == old.stream || is_same_chain(before, after, &old.over))
}

/// Rows in another version of their table's schema; none where a column has another type.
fn fit(batch: &RecordBatch, schema: &arrow::datatypes::SchemaRef) -> Option<RecordBatch> {
    let column = |field: &Arc<arrow::datatypes::Field>| match batch.column_by_name(field.name()) {
        Some(column) if column.data_type() == field.data_type() => Some(column.clone()),
        Some(_) => None,
        None => Some(arrow::array::new_null_array(
            field.data_type(),
            batch.num_rows(),
        )),
    };
    let columns = schema
        .fields()
        .iter()
        .map(column)
        .collect::<Option<Vec<_>>>()?;
    RecordBatch::try_new(schema.clone(), columns).ok()
}

pub fn push_sessions(
    output: &mut Output,
    stream: &Stream,
    sessions: &Sessions,
    closed: &[sessions::Closed],
    floor: Option<Micros>,
) {
    if !closed.is_empty() {
        let table = tables::sessions(&stream.name).into();
        output.tables.push(TableRows {
            table,
            batch: sessions.rows(closed),
            floor,
        });
    }
}

/// Rows that no window took, with the names of those that would have.
fn late_rows(
    stream: &Stream,
    batch: &RecordBatch,
    late: &BTreeMap<u32, Vec<String>>,
) -> RecordBatch {
    use arrow::array::{ListBuilder, StringBuilder, UInt32Array};
    let rows = UInt32Array::from_iter_values(late.keys().copied());
    let rows = arrow::compute::take_record_batch(batch, &rows).expect("the rows are there");
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
