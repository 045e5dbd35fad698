//! Another configuration: which operators continue, and which start over.
//!
//! An operator whose declaration and whose stream's declaration are as before keeps its state. A
//! changed one stores what is open once more, as abandoned, and starts over:
//!
//! ```text
//! changed declaration      windows    sessions   duplicates   entities
//! search, places           continue   continue   continue     continue
//! select, watermark, …     restart    restart    restart      restart
//! a window                 it restarts, and every window that reads it
//! ```
//!
//! Watermarks, retention floors and totals continue in any case. A window that restarts begins with
//! the first one that starts after all event times so far: changed at 12:34, hourly windows are
//! stored once more as they are (`abandoned`), and the new ones begin with 13:00..14:00.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;

use super::duplicates::Deduplicator;
use super::entities::EntityState;
use super::sessions::{SessionStatus, Sessions};
use super::windows::WindowState;
use super::{OperatorError, Operators, TableRows};
use crate::event::Lsn;
use crate::ids::{CheckpointId, TableId};
use crate::schema::{Catalog, StreamDef};

impl Operators {
    /// Switches to another configuration at a record. Returns what was open in changed operators;
    /// a changed window begins with windows that start after the event times seen so far.
    pub(super) fn reconfigure(
        &mut self,
        catalog: Arc<Catalog>,
        lsn: Lsn,
    ) -> Result<Vec<TableRows>, OperatorError> {
        let before = std::mem::replace(&mut self.catalog, catalog);
        let mut rows = self.reconfigure_windows(&before, lsn)?;
        self.reconfigure_entities(&before);
        self.reconfigure_streams(&before, lsn, &mut rows);
        if let Some(answered) = &mut self.answered {
            answered.set_limits(self.catalog.idempotency);
        }
        Ok(rows)
    }

    /// Takes over the state behind a table from operators that have applied the same records: of
    /// its window, sessions, entities or duplicates.
    pub(crate) fn import_state(&mut self, table: &TableId, from: &mut Self) {
        match table {
            TableId::Window(name) => {
                let is_own = |w: &&mut WindowState| *w.window().name == **name;
                let own = self.windows.iter_mut().find(is_own);
                if let Some((own, new)) = own.zip(from.windows.iter_mut().find(is_own)) {
                    std::mem::swap(own, new);
                    if new.has_downstream() {
                        own.set_downstream();
                    }
                }
            }
            TableId::Entity(name) => {
                let is_own = |e: &&mut EntityState| *e.entity.name == **name;
                let own = self.entities.iter_mut().find(is_own);
                if let Some((own, new)) = own.zip(from.entities.iter_mut().find(is_own)) {
                    std::mem::swap(own, new);
                }
            }
            TableId::Sessions(stream) => {
                let own = self.streams.get_mut(&**stream);
                if let Some((own, new)) = own.zip(from.streams.get_mut(&**stream)) {
                    std::mem::swap(&mut own.sessions, &mut new.sessions);
                }
            }
            TableId::Stream(name) => {
                let own = self.streams.get_mut(&**name);
                if let Some((own, new)) = own.zip(from.streams.get_mut(&**name)) {
                    std::mem::swap(&mut own.duplicates, &mut new.duplicates);
                }
            }
            TableId::Late(_) => {}
            TableId::Raw | TableId::DeadLetters => return,
        }
        for checkpoint in [CheckpointId::recent(table), CheckpointId::late(table)] {
            if let Some(lsn) = from.emitted_through.get(&checkpoint) {
                self.emitted_through.insert(checkpoint, *lsn);
            }
        }
    }

    fn reconfigure_windows(
        &mut self,
        before: &Catalog,
        lsn: Lsn,
    ) -> Result<Vec<TableRows>, OperatorError> {
        let catalog = self.catalog.clone();
        let mut rows = Vec::new();
        let mut unchanged = BTreeMap::new();
        for mut state in std::mem::take(&mut self.windows) {
            let window = state.window().clone();
            if is_same_stream(before, &catalog, &window.stream)
                && is_same_chain(before, &catalog, &window.name)
            {
                unchanged.insert(window.name.clone(), state);
                continue;
            }
            let abandoned = state
                .abandon(lsn)
                .map_err(OperatorError::window(lsn, &window))?;
            if let (Some(batch), Some(now)) = (abandoned, catalog.window(&window.name)) {
                let batch = fit(&batch, &now.schema);
                rows.extend(batch.map(|batch| TableRows {
                    table: TableId::window(&window.name),
                    batch,
                    retention_floor: None,
                }));
            }
        }
        for window in &catalog.windows {
            let mut state = match unchanged.remove(&window.name) {
                Some(state) => state,
                None => {
                    let stream = self.streams.get(&window.stream);
                    let greatest = stream.and_then(|s| s.greatest(&catalog, &window.stream));
                    WindowState::new(window, greatest)
                        .map_err(OperatorError::window(lsn, window))?
                }
            };
            if catalog
                .windows
                .iter()
                .any(|outer| outer.input == window.name)
            {
                state.set_downstream();
            }
            self.windows.push(state);
        }
        Ok(rows)
    }

    fn reconfigure_entities(&mut self, before: &Catalog) {
        let catalog = self.catalog.clone();
        let is_same_entity = |state: &EntityState| {
            let now = catalog
                .entities
                .iter()
                .find(|e| e.name == state.entity.name);
            is_same_stream(before, &catalog, &state.entity.stream)
                && now.is_some_and(|e| e.def == state.entity.def)
        };
        let mut unchanged: BTreeMap<String, EntityState> = std::mem::take(&mut self.entities)
            .into_iter()
            .filter(is_same_entity)
            .map(|state| (state.entity.name.clone(), state))
            .collect();
        self.entities = catalog
            .entities
            .iter()
            .map(|e| {
                unchanged
                    .remove(&e.name)
                    .unwrap_or_else(|| EntityState::new(e))
            })
            .collect();
    }

    fn reconfigure_streams(&mut self, before: &Catalog, lsn: Lsn, rows: &mut Vec<TableRows>) {
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
                .map(|d| Deduplicator::new(d.max_keys, d.within));
            state.totals.abandoned_sessions = 0;
            let fresh = stream
                .session()
                .map(|s| Sessions::new(name, s.gap, s.max_open));
            if let Some(mut sessions) =
                std::mem::replace(&mut state.sessions, fresh).filter(|_| stream.session().is_some())
            {
                let mut closed = Vec::new();
                sessions.close_all(lsn, SessionStatus::Abandoned, &mut closed);
                if !closed.is_empty() {
                    let batch = sessions.rows(&closed);
                    rows.push(TableRows {
                        table: TableId::sessions(name),
                        batch,
                        retention_floor: state.retention_floor,
                    });
                }
            }
        }
    }
}

fn is_same_stream(before: &Catalog, after: &Catalog, name: &str) -> bool {
    let (Some(before), Some(after)) = (before.streams.get(name), after.streams.get(name)) else {
        return false;
    };
    operator_part(&before.def) == operator_part(&after.def)
}

/// The parts of a declaration that affect operator state; the rest matters only to views.
fn operator_part(def: &StreamDef) -> StreamDef {
    let mut def = StreamDef {
        search: None,
        places: None,
        ..def.clone()
    };
    // Sessions without a column of their own have the counted type as their first and last.
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
    let has_same_zones = before.zone_data == after.zone_data || !old.depends_on_zones();
    old.def == new.def
        && has_same_zones
        && (old.input == old.stream || is_same_chain(before, after, &old.input))
}

/// Rows in another version of their table's schema; none where a column's type differs.
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
