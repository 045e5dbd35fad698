//! Maintains the places of one stream.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::venue::{
    EDGES, NUMBERS, StoredVenues, VENUES, Venue, edges_end, edges_prefix, is_before, split_edge,
    write_edge,
};
use super::{Places, State, VenueObservation};
use crate::event::{Lsn, MICROS_PER_DAY, Micros, bucket};
use crate::ids::ViewId;
use crate::operators::StreamRows;
use crate::schema::Stream;
use crate::views::{Cursor, LogIdentity, StreamView, ViewError};
use arrow::array::{
    Array, ArrayRef, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};

const COMMIT_AFTER: Duration = Duration::from_secs(1);

/// Feeds the places of one stream.
pub struct PlacesView {
    places: Arc<Places>,
    stream: Arc<Stream>,
    log: LogIdentity,
    cursor: Cursor,
    /// Edges dated before this day have been deleted from the file.
    deleted_before: Option<i64>,
}

/// Writes an id as text over `out`; false where it is null.
fn write_id(column: &ArrayRef, row: usize, out: &mut String) -> bool {
    out.clear();
    if column.is_null(row) {
        return false;
    }
    let any = column.as_any();
    if let Some(texts) = any.downcast_ref::<StringArray>() {
        out.push_str(texts.value(row));
    } else if let Some(numbers) = any.downcast_ref::<Int64Array>() {
        write!(out, "{}", numbers.value(row)).expect("a String never fails");
    } else {
        return false;
    }
    true
}

fn number_at(column: &ArrayRef, row: usize) -> i64 {
    let any = column.as_any();
    if column.is_null(row) {
        return i64::MIN;
    }
    any.downcast_ref::<Int64Array>()
        .map(|a| a.value(row))
        .or_else(|| {
            any.downcast_ref::<Int32Array>()
                .map(|a| a.value(row).into())
        })
        .or_else(|| {
            any.downcast_ref::<TimestampMicrosecondArray>()
                .map(|a| a.value(row))
        })
        .unwrap_or(0)
}

/// The uncommitted changes.
struct Changes {
    removed: Vec<(Arc<str>, u32)>,
    changed: Vec<(Arc<str>, Venue)>,
    edges: Vec<(Arc<str>, Vec<Vec<u8>>)>,
}

impl Changes {
    fn from_state(state: &State) -> Self {
        // In the order of the file, so that adjacent keys are written together.
        let mut edges: Vec<_> = state.edges.iter().collect();
        edges.sort_unstable_by_key(|(id, _)| *id);
        let changed = state
            .changed
            .values()
            .filter_map(|id| Some((id.clone(), state.cache.get(id)?.clone())));
        Self {
            removed: state
                .removed
                .iter()
                .map(|(id, number)| (id.clone(), *number))
                .collect(),
            changed: changed.collect(),
            edges: edges
                .into_iter()
                .map(|(id, edges)| (id.clone(), edges.iter().cloned().collect()))
                .collect(),
        }
    }

    /// Removes first: a venue may have been evicted and come back.
    fn write(&self, transaction: &redb::WriteTransaction) -> Result<(), redb::Error> {
        let mut venues = transaction.open_table(VENUES)?;
        let mut numbers = transaction.open_table(NUMBERS)?;
        let mut edges = transaction.open_table(EDGES)?;
        for (id, number) in &self.removed {
            venues.remove(&**id)?;
            numbers.remove(number)?;
            edges.retain_in::<&[u8], _>(
                edges_prefix(id).as_slice()..edges_end(id).as_slice(),
                |_, ()| false,
            )?;
        }
        for (id, venue) in &self.changed {
            venues.insert(&**id, venue.encode().as_slice())?;
            numbers.insert(venue.number, &**id)?;
        }
        for (id, of_venue) in &self.edges {
            let mut key = edges_prefix(id);
            let prefix = key.len();
            for edge in of_venue {
                key.truncate(prefix);
                key.extend_from_slice(edge);
                edges.insert(key.as_slice(), ())?;
            }
        }
        Ok(())
    }
}

impl PlacesView {
    /// A view that continues at the committed checkpoint; an error where it belongs to another log.
    pub fn new(
        places: Arc<Places>,
        stream: Arc<Stream>,
        log: LogIdentity,
    ) -> Result<Self, ViewError> {
        let committed = places.checkpoint(log)?;
        places.set_applied(committed);
        places.write().committed = committed;
        let cursor = Cursor::new(ViewId::places(&stream.name), committed);
        Ok(Self {
            places,
            stream,
            log,
            cursor,
            deleted_before: None,
        })
    }
}

/// The columns of a batch that describe venues and their events.
struct VenueColumns<'a> {
    time: &'a TimestampMicrosecondArray,
    venue: &'a ArrayRef,
    name: &'a ArrayRef,
    lat: &'a Float64Array,
    lon: &'a Float64Array,
    event: &'a ArrayRef,
    date: &'a ArrayRef,
    version: &'a ArrayRef,
}

impl<'a> VenueColumns<'a> {
    fn from_batch(stream: &Stream, batch: &'a RecordBatch) -> Option<Self> {
        let def = stream.def.places.as_ref()?;
        let version = stream.def.version.as_deref().unwrap_or("event_time");
        let float = |name: &str| batch.column_by_name(name)?.as_any().downcast_ref();
        Some(Self {
            time: batch.column(1).as_any().downcast_ref()?,
            venue: batch.column_by_name(&def.venue)?,
            name: batch.column_by_name(&def.name)?,
            lat: float(&def.lat)?,
            lon: float(&def.lon)?,
            event: batch.column_by_name(&def.event)?,
            date: batch.column_by_name(&def.date)?,
            version: batch.column_by_name(version)?,
        })
    }

    /// The venue's name and position, where the row has a position; its name goes into `name`.
    fn observation<'n>(&self, row: usize, name: &'n mut String) -> Option<VenueObservation<'n>> {
        if self.lat.is_null(row) || self.lon.is_null(row) {
            return None;
        }
        write_id(self.name, row, name);
        Some(VenueObservation {
            name,
            lat: self.lat.value(row),
            lon: self.lon.value(row),
            version: number_at(self.version, row),
        })
    }
}

/// Deletes the edges dated before the floor.
fn delete_edges_before(
    transaction: &redb::WriteTransaction,
    floor: Option<Micros>,
) -> Result<(), redb::Error> {
    transaction.open_table(EDGES)?.retain(|key, ()| {
        let venue = key.iter().position(|b| *b == 0).unwrap_or(0);
        key.get(venue + 1..)
            .and_then(split_edge)
            .is_some_and(|(_, date)| !is_before(date, floor))
    })?;
    Ok(())
}

impl StreamView for PlacesView {
    fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    fn cursor_mut(&mut self) -> &mut Cursor {
        &mut self.cursor
    }

    fn stream(&self) -> &str {
        &self.stream.name
    }

    fn publish_applied(&self) {
        self.places.set_applied(self.cursor.applied());
    }

    fn add(&mut self, rows: &StreamRows, _now: Instant) -> Result<(), ViewError> {
        let Some(def) = &self.stream.def.places else {
            return Ok(());
        };
        let Some(columns) = VenueColumns::from_batch(&self.stream, &rows.batch) else {
            return Ok(());
        };
        // Only this thread commits, so the file does not change.
        let stored = StoredVenues::open(&self.places.file.read()?)?;
        let mut state = self.places.write();
        let floor = rows
            .watermark
            .map(|w| bucket(w.saturating_sub(def.keep.micros()), MICROS_PER_DAY) * MICROS_PER_DAY);
        state.floor = state.floor.max(floor);
        let (mut id, mut text, mut edge) = (String::new(), String::new(), Vec::new());
        for (row, lsn) in rows.lsns().iter().enumerate() {
            if *lsn as u64 <= self.cursor.applied() {
                continue;
            }
            if !write_id(columns.venue, row, &mut id) || id.contains('\0') {
                continue;
            }
            let day = bucket(columns.time.value(row), MICROS_PER_DAY);
            let observation = columns.observation(row, &mut text);
            state.observe_venue(&stored, &id, day, observation)?;
            let date = columns.date.is_valid(row);
            let date = date.then(|| number_at(columns.date, row));
            if write_id(columns.event, row, &mut text) && !is_before(date, state.floor) {
                write_edge(date, &text, &mut edge);
                state.link_event(&id, &edge);
            }
            // After its edge was added: the venue that is evicted may be this one.
            state.evict_beyond(&stored, def.max_venues)?;
        }
        state.trim_cache(self.places.max_bytes);
        Ok(())
    }

    fn is_commit_due(&self, age: Duration, _caught_up: bool) -> bool {
        age >= COMMIT_AFTER || self.places.read().uncommitted_bytes() >= self.places.max_bytes
    }

    fn write(&mut self) -> Result<(), ViewError> {
        let floor = self.places.read().floor;
        let day = floor.map(|floor| bucket(floor, MICROS_PER_DAY));
        let is_new_day = day > self.deleted_before;
        if is_new_day {
            let stored = StoredVenues::open(&self.places.file.read()?)?;
            while self.places.write().evict_expired(&stored)? {}
        }
        // Only this thread changes them, so they are written without the lock.
        let changes = Changes::from_state(&self.places.read());
        let applied = self.cursor.applied();
        self.places.file.commit(self.log, applied, |transaction| {
            changes.write(transaction)?;
            if is_new_day {
                delete_edges_before(transaction, floor)
            } else {
                Ok(())
            }
        })?;
        self.deleted_before = self.deleted_before.max(day);
        let mut state = self.places.write();
        state.changed.clear();
        state.removed.clear();
        state.edges.clear();
        state.edge_bytes = 0;
        state.committed = applied;
        Ok(())
    }

    fn reload(&mut self) -> Result<Lsn, ViewError> {
        self.places.reopen()?;
        let committed = self.places.checkpoint(self.log)?;
        let mut state = self.places.write();
        (state.applied, state.committed) = (committed, committed);
        Ok(committed)
    }
}
