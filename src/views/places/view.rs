//! Keeps the places of one stream.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::venue::{
    EDGES, NUMBERS, Stored, VENUES, Venue, edges_end, edges_of, is_before, split_edge, write_edge,
};
use super::{Places, State, VenueObservation};
use crate::event::{Lsn, MICROS_PER_DAY, Micros, bucket};
use crate::operators::{Output, StreamRows, checkpoints};
use crate::schema::Stream;
use crate::views::state_store::LogIdentity;
use crate::views::{View, ViewError};
use arrow::array::{
    Array, ArrayRef, Float64Array, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray,
};

const COMMIT_AFTER: Duration = Duration::from_secs(1);

pub struct PlacesView {
    places: Arc<Places>,
    stream: Arc<Stream>,
    origin: LogIdentity,
    name: String,
    applied: Lsn,
    committed: Lsn,
    since: Option<Instant>,
    /// The day before which everything has been deleted.
    swept: Option<i64>,
}

/// The value as the text that identifies it, written over `out`; false where there is none.
fn write_id(column: &ArrayRef, row: usize, out: &mut String) -> bool {
    out.clear();
    if column.is_null(row) {
        return false;
    }
    let any = column.as_any();
    if let Some(texts) = any.downcast_ref::<StringArray>() {
        out.push_str(texts.value(row));
    } else if let Some(numbers) = any.downcast_ref::<Int64Array>() {
        write!(out, "{}", numbers.value(row)).expect("text takes all that is written");
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

/// What waits for a commit.
struct Waiting {
    removed: Vec<(Arc<str>, u32)>,
    changed: Vec<(Arc<str>, Venue)>,
    edges: Vec<(Arc<str>, Vec<Vec<u8>>)>,
}

impl Waiting {
    fn of(state: &State) -> Self {
        // In the order of the file, so that neighbours are written together.
        let mut edges: Vec<_> = state.edges.iter().collect();
        edges.sort_unstable_by_key(|(id, _)| *id);
        let changed = state
            .changed
            .values()
            .filter_map(|id| Some((id.clone(), state.recent.get(id)?.clone())));
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

    /// What left goes first: a venue may have left and come back.
    fn write(&self, transaction: &redb::WriteTransaction) -> Result<(), redb::Error> {
        let mut venues = transaction.open_table(VENUES)?;
        let mut numbers = transaction.open_table(NUMBERS)?;
        let mut edges = transaction.open_table(EDGES)?;
        for (id, number) in &self.removed {
            venues.remove(&**id)?;
            numbers.remove(number)?;
            edges.retain_in::<&[u8], _>(
                edges_of(id).as_slice()..edges_end(id).as_slice(),
                |_, ()| false,
            )?;
        }
        for (id, venue) in &self.changed {
            venues.insert(&**id, venue.encode().as_slice())?;
            numbers.insert(venue.number, &**id)?;
        }
        for (id, of_venue) in &self.edges {
            let mut key = edges_of(id);
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
    pub fn new(
        places: Arc<Places>,
        stream: Arc<Stream>,
        origin: LogIdentity,
    ) -> Result<Self, ViewError> {
        let committed = places.checkpoint(origin)?;
        places.set_applied(committed);
        places.write().committed = committed;
        let name = checkpoints::places(&stream.name);
        Ok(Self {
            places,
            stream,
            origin,
            name,
            applied: committed,
            committed,
            since: None,
            swept: None,
        })
    }

    fn add(&mut self, rows: &StreamRows) -> Result<(), ViewError> {
        let Some(def) = &self.stream.def.places else {
            return Ok(());
        };
        let batch = &rows.batch;
        let version = self.stream.def.version.as_deref().unwrap_or("event_time");
        let columns = [
            &def.venue, &def.name, &def.lat, &def.lon, &def.event, &def.date,
        ]
        .map(|c| batch.column_by_name(c));
        let [
            Some(venue),
            Some(name),
            Some(lat),
            Some(lon),
            Some(event),
            Some(date),
        ] = columns
        else {
            return Ok(());
        };
        let Some(version) = batch.column_by_name(version) else {
            return Ok(());
        };
        let floats = |a: &ArrayRef| a.as_any().downcast_ref::<Float64Array>().cloned();
        let (Some(lat), Some(lon)) = (floats(lat), floats(lon)) else {
            return Ok(());
        };
        let Some(times) = batch
            .column(1)
            .as_any()
            .downcast_ref::<TimestampMicrosecondArray>()
        else {
            return Ok(());
        };
        // Only this thread commits, so the file stays as it is.
        let stored = Stored::open(&self.places.file.read()?)?;
        let mut state = self.places.write();
        let floor = rows
            .watermark
            .map(|w| bucket(w.saturating_sub(def.keep.micros()), MICROS_PER_DAY) * MICROS_PER_DAY);
        state.floor = state.floor.max(floor);
        let (mut id, mut text, mut edge) = (String::new(), String::new(), Vec::new());
        for (row, lsn) in rows.lsns().iter().enumerate() {
            if *lsn as u64 <= self.applied {
                continue;
            }
            if !write_id(venue, row, &mut id) || id.contains('\0') {
                continue;
            }
            let said = (lat.is_valid(row) && lon.is_valid(row)).then(|| {
                write_id(name, row, &mut text);
                VenueObservation {
                    name: &text,
                    lat: lat.value(row),
                    lon: lon.value(row),
                    version: number_at(version, row),
                }
            });
            state.name(&stored, &id, bucket(times.value(row), MICROS_PER_DAY), said)?;
            let date = date.is_valid(row).then(|| number_at(date, row));
            if write_id(event, row, &mut text) && !is_before(date, state.floor) {
                write_edge(date, &text, &mut edge);
                state.connect(&id, &edge);
            }
            // After its edge was added: the venue that is evicted may be this one.
            state.evict_beyond(&stored, def.max_venues)?;
        }
        state.trim_recent(self.places.room);
        Ok(())
    }
}

/// Deletes the edges dated before the floor.
fn sweep(transaction: &redb::WriteTransaction, floor: Option<Micros>) -> Result<(), redb::Error> {
    transaction.open_table(EDGES)?.retain(|key, ()| {
        let venue = key.iter().position(|b| *b == 0).unwrap_or(0);
        key.get(venue + 1..)
            .and_then(split_edge)
            .is_some_and(|(_, date)| !is_before(date, floor))
    })?;
    Ok(())
}

impl View for PlacesView {
    fn name(&self) -> &str {
        &self.name
    }

    fn applied(&self) -> Lsn {
        self.applied
    }

    fn checkpoints(&self) -> Vec<(String, Lsn)> {
        vec![(self.name.clone(), self.committed)]
    }

    fn skip_to(&mut self, lsn: Lsn) {
        self.applied = self.applied.max(lsn);
        self.places.set_applied(self.applied);
    }

    fn apply(&mut self, output: &Output, now: Instant) -> Result<(), ViewError> {
        if output.to <= self.applied {
            return Ok(());
        }
        if let Some(rows) = output
            .rows
            .as_ref()
            .filter(|r| r.stream.name == self.stream.name)
        {
            self.add(rows)?;
            self.since.get_or_insert(now);
        }
        self.applied = output.to;
        self.places.set_applied(output.to);
        Ok(())
    }

    fn is_due(&self, now: Instant, _caught_up: bool) -> bool {
        self.since
            .is_some_and(|since| now.duration_since(since) >= COMMIT_AFTER)
            || self.places.read().waiting_bytes() >= self.places.room
    }

    fn commit(&mut self, _all: bool) -> Result<(), ViewError> {
        if self.since.is_none() {
            return Ok(());
        }
        let floor = self.places.read().floor;
        let day = floor.map(|floor| bucket(floor, MICROS_PER_DAY));
        if day > self.swept {
            let stored = Stored::open(&self.places.file.read()?)?;
            while self.places.write().evict_expired(&stored)? {}
        }
        // Only this thread changes what waits, so the lock need not be held while it is written.
        let waiting = Waiting::of(&self.places.read());
        self.places
            .file
            .commit(self.origin, self.applied, |transaction| {
                waiting.write(transaction)?;
                if day > self.swept {
                    sweep(transaction, floor)
                } else {
                    Ok(())
                }
            })?;
        self.swept = self.swept.max(day);
        let mut state = self.places.write();
        state.changed.clear();
        state.removed.clear();
        state.edges.clear();
        state.edge_bytes = 0;
        state.committed = self.applied;
        drop(state);
        self.committed = self.applied;
        self.since = None;
        Ok(())
    }

    fn settle(&mut self) -> Result<(), ViewError> {
        self.since.get_or_insert_with(Instant::now);
        self.commit(true)
    }

    fn reopen(&mut self) -> Result<(), ViewError> {
        self.places.reopen()?;
        self.committed = self.places.checkpoint(self.origin)?;
        self.applied = self.committed;
        self.since = None;
        let mut state = self.places.write();
        (state.applied, state.committed) = (self.applied, self.committed);
        Ok(())
    }
}
