//! Venues on the map, and which events took place there when: one edge per (venue, event, date), several per pair. Names and
//! edges lie in redb with the position, the venues' points in memory in an R-tree on the unit sphere.

pub mod sphere;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use arrow::array::{Array, ArrayRef, Float64Array, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray};
use redb::{ReadableTable, TableDefinition};
use rstar::RTree;
use rstar::primitives::GeomWithData;

use super::database::{Origin, StateFile, copy_table, position_in};
use super::{View, ViewError};
use crate::event::{Lsn, MICROS_PER_DAY, Micros, bucket};
use crate::operators::{Output, StreamRows, positions};
use crate::schema::Stream;

/// Venue id → lat f64, lon f64, version i64 (little-endian), name.
const VENUES: TableDefinition<&str, &[u8]> = TableDefinition::new("venues");
/// Venue id, zero byte, date i64 (big-endian, sign and order flipped: latest first), event id → nothing.
const EDGES: TableDefinition<&[u8], ()> = TableDefinition::new("edges");
/// Venue id → day since 1970 on which an event last named it; none for a venue of an older file.
const SEEN: TableDefinition<&str, i64> = TableDefinition::new("seen");
const COMMIT_AFTER: Duration = Duration::from_secs(1);
const COMMIT_ROWS: usize = 50_000;
/// Events told of a venue.
const EVENTS_PER_VENUE: usize = 10;

type Point = GeomWithData<[f64; 3], u32>;

#[derive(Debug, Clone)]
struct Venue {
    id: Box<str>,
    name: Box<str>,
    lat: f64,
    lon: f64,
    version: i64,
    /// Day since 1970 on which an event last named it.
    seen: i64,
}

/// Of a venue of which it is not known when it was named: it stays.
const UNKNOWN: i64 = i64::MAX;

#[derive(Default)]
struct State {
    tree: RTree<Point>,
    venues: Vec<Venue>,
    by_id: HashMap<Box<str>, u32>,
    /// Venues and edges that wait for their commit.
    changed: BTreeSet<u32>,
    edges: BTreeSet<Vec<u8>>,
    /// Edges dated before this, and venues not named since, are no longer shown.
    floor: Option<Micros>,
    applied: Lsn,
    committed: Lsn,
}

/// What queries read.
pub struct Places {
    file: StateFile,
    state: RwLock<State>,
}

/// A venue near a place.
#[derive(Debug, Clone, PartialEq)]
pub struct Near {
    pub id: String,
    pub name: String,
    pub lat: f64,
    pub lon: f64,
    pub distance_m: f64,
    /// (event, date), latest date first.
    pub events: Vec<(String, Option<Micros>)>,
}

fn edge_key(venue: &str, date: Option<Micros>, event: &str) -> Vec<u8> {
    let mut key = venue.as_bytes().to_vec();
    key.push(0);
    // An edge without a date comes last.
    let order = !(date.unwrap_or(Micros::MIN) as u64 ^ (1 << 63));
    key.extend_from_slice(&order.to_be_bytes());
    key.extend_from_slice(event.as_bytes());
    key
}

fn split_edge(key: &[u8], prefix: usize) -> Option<(String, Option<Micros>)> {
    let (order, event) = key.get(prefix..)?.split_first_chunk::<8>()?;
    let date = (!u64::from_be_bytes(*order) ^ (1 << 63)) as i64;
    Some((String::from_utf8_lossy(event).into_owned(), (date != Micros::MIN).then_some(date)))
}

/// Whether an edge's date lies before the floor; one without a date does not.
fn is_before(date: Option<Micros>, floor: Option<Micros>) -> bool {
    date.zip(floor).is_some_and(|(date, floor)| date < floor)
}

impl State {
    /// An event named the venue on this day.
    fn see(&mut self, id: &str, day: i64) {
        let Some(&slot) = self.by_id.get(id) else { return };
        let venue = &mut self.venues[slot as usize];
        if venue.seen == UNKNOWN || day > venue.seen {
            venue.seen = day;
            self.changed.insert(slot);
        }
    }

    /// Whether no event has named the venue since the floor.
    fn is_gone(&self, venue: &Venue) -> bool {
        self.floor.is_some_and(|floor| venue.seen < bucket(floor, MICROS_PER_DAY))
    }

    fn set(&mut self, id: &str, name: &str, lat: f64, lon: f64, version: i64) {
        let Some(point) = sphere::unit_vector(lat, lon) else { return };
        if let Some(&slot) = self.by_id.get(id) {
            let venue = &mut self.venues[slot as usize];
            if version < venue.version {
                return;
            }
            if (venue.lat, venue.lon) != (lat, lon) {
                if let Some(before) = sphere::unit_vector(venue.lat, venue.lon) {
                    self.tree.remove(&Point::new(before, slot));
                }
                self.tree.insert(Point::new(point, slot));
            }
            let is_new = (venue.lat, venue.lon, venue.version) != (lat, lon, version) || *venue.name != *name;
            (venue.lat, venue.lon, venue.version) = (lat, lon, version);
            if *venue.name != *name {
                venue.name = name.into();
            }
            if is_new {
                self.changed.insert(slot);
            }
            return;
        }
        let slot = self.venues.len() as u32;
        self.venues.push(Venue { id: id.into(), name: name.into(), lat, lon, version, seen: UNKNOWN });
        self.by_id.insert(id.into(), slot);
        self.tree.insert(Point::new(point, slot));
        self.changed.insert(slot);
    }
}

impl Places {
    /// Opens the places of a stream; none where there are none and `writable` is false.
    pub fn open(path: &Path, cache_bytes: usize, writable: bool) -> Result<Option<Self>, ViewError> {
        let file = if writable {
            Some(StateFile::open(path, cache_bytes)?)
        } else {
            StateFile::open_read_only(path, cache_bytes)?
        };
        let Some(file) = file else { return Ok(None) };
        let places = Self { file, state: RwLock::default() };
        places.load()?;
        Ok(Some(places))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(&self) -> Result<(), ViewError> {
        let failed = |e: redb::Error| ViewError::Failed { view: "places".into(), reason: e.to_string() };
        let mut state = State::default();
        let mut points = Vec::new();
        let transaction = self.file.read()?;
        let seen = match transaction.open_table(SEEN) {
            Ok(table) => Some(table),
            Err(redb::TableError::TableDoesNotExist(_)) => None,
            Err(e) => return Err(failed(e.into())),
        };
        match transaction.open_table(VENUES) {
            Ok(table) => {
                for entry in table.iter().map_err(|e| failed(e.into()))? {
                    let (id, value) = entry.map_err(|e| failed(e.into()))?;
                    let Some(mut venue) = decode_venue(id.value(), value.value()) else { continue };
                    if let Some(seen) = &seen {
                        let day = seen.get(id.value()).map_err(|e| failed(e.into()))?;
                        venue.seen = day.map_or(UNKNOWN, |day| day.value());
                    }
                    let slot = state.venues.len() as u32;
                    points.extend(sphere::unit_vector(venue.lat, venue.lon).map(|p| Point::new(p, slot)));
                    state.by_id.insert(venue.id.clone(), slot);
                    state.venues.push(venue);
                }
            }
            Err(redb::TableError::TableDoesNotExist(_)) => {}
            Err(e) => return Err(failed(e.into())),
        }
        state.tree = RTree::bulk_load(points);
        *self.write() = state;
        Ok(())
    }

    pub fn position(&self, origin: Origin) -> Result<Lsn, ViewError> {
        self.file.position(origin)
    }

    /// Copies what is committed into a new file.
    pub fn copy_to(&self, path: &Path) -> Result<(), ViewError> {
        self.file.copy_to(path, |read, write| {
            copy_table(VENUES, read, write)?;
            copy_table(SEEN, read, write)?;
            copy_table(EDGES, read, write)
        })
    }

    pub fn applied(&self) -> Lsn {
        self.read().applied
    }

    pub fn set_applied(&self, lsn: Lsn) {
        self.write().applied = lsn;
    }

    pub fn venues(&self) -> usize {
        self.read().venues.len()
    }

    /// The nearest venues, at most `limit`, nearest first, ties by id; and the LSN that the answer reaches.
    pub fn nearby(
        &self,
        lat: f64,
        lon: f64,
        limit: usize,
        within_m: Option<f64>,
    ) -> Result<(Vec<Near>, Lsn), ViewError> {
        let failed = |e: redb::Error| ViewError::Failed { view: "places".into(), reason: e.to_string() };
        let Some(point) = sphere::unit_vector(lat, lon) else { return Ok((Vec::new(), self.applied())) };
        let state = self.read();
        let reach = within_m.map_or(f64::INFINITY, |m| sphere::chord_squared(m) * (1.0 + 1e-9));
        let mut found: Vec<(f64, &Venue)> = Vec::new();
        let mut last = f64::NEG_INFINITY;
        for (p, chord) in state.tree.nearest_neighbor_iter_with_distance_2(point) {
            // Ties with the last one are read too, so that their order is that of their ids.
            if chord > reach || (found.len() >= limit && chord > last * (1.0 + 1e-12)) {
                break;
            }
            let venue = &state.venues[p.data as usize];
            if state.is_gone(venue) {
                continue;
            }
            let distance = sphere::distance_m((lat, lon), (venue.lat, venue.lon));
            if within_m.is_none_or(|m| distance <= m) {
                found.push((distance, venue));
                last = chord;
            }
        }
        found.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.id.cmp(&b.1.id)));
        found.truncate(limit);
        let transaction = self.file.read()?;
        let is_committed = position_in(&transaction)?.is_some_and(|p| p > state.committed);
        let table = match transaction.open_table(EDGES) {
            Ok(table) => Some(table),
            Err(redb::TableError::TableDoesNotExist(_)) => None,
            Err(e) => return Err(failed(e.into())),
        };
        let mut out = Vec::with_capacity(found.len());
        for (distance_m, venue) in found {
            let mut low = venue.id.as_bytes().to_vec();
            low.push(0);
            let mut high = venue.id.as_bytes().to_vec();
            high.push(1);
            let mut keys: BTreeSet<Vec<u8>> = BTreeSet::new();
            if let Some(table) = &table {
                for edge in table
                    .range::<&[u8]>(low.as_slice()..high.as_slice())
                    .map_err(|e| failed(e.into()))?
                    .take(EVENTS_PER_VENUE)
                {
                    keys.insert(edge.map_err(|e| failed(e.into()))?.0.value().to_vec());
                }
            }
            if !is_committed {
                keys.extend(state.edges.range(low.clone()..high).take(EVENTS_PER_VENUE).cloned());
            }
            out.push(Near {
                id: venue.id.to_string(),
                name: venue.name.to_string(),
                lat: venue.lat,
                lon: venue.lon,
                distance_m,
                events: keys
                    .iter()
                    .take(EVENTS_PER_VENUE)
                    .filter_map(|k| split_edge(k, low.len()))
                    .filter(|(_, date)| !is_before(*date, state.floor))
                    .collect(),
            });
        }
        Ok((out, state.applied))
    }
}

fn encode_venue(venue: &Venue) -> Vec<u8> {
    let mut out = venue.lat.to_le_bytes().to_vec();
    out.extend_from_slice(&venue.lon.to_le_bytes());
    out.extend_from_slice(&venue.version.to_le_bytes());
    out.extend_from_slice(venue.name.as_bytes());
    out
}

fn decode_venue(id: &str, bytes: &[u8]) -> Option<Venue> {
    let (lat, rest) = bytes.split_first_chunk::<8>()?;
    let (lon, rest) = rest.split_first_chunk::<8>()?;
    let (version, name) = rest.split_first_chunk::<8>()?;
    Some(Venue {
        id: id.into(),
        name: String::from_utf8_lossy(name).into(),
        lat: f64::from_le_bytes(*lat),
        lon: f64::from_le_bytes(*lon),
        version: i64::from_le_bytes(*version),
        seen: UNKNOWN,
    })
}

/// Keeps the places of one stream.
pub struct PlacesView {
    places: Arc<Places>,
    stream: Arc<Stream>,
    origin: Origin,
    name: String,
    applied: Lsn,
    committed: Lsn,
    since: Option<Instant>,
    /// The day before which everything has been deleted.
    swept: Option<i64>,
}

/// A value as the text that identifies it.
fn id_at(column: &ArrayRef, row: usize) -> Option<String> {
    if column.is_null(row) {
        return None;
    }
    let any = column.as_any();
    any.downcast_ref::<Int64Array>()
        .map(|a| a.value(row).to_string())
        .or_else(|| any.downcast_ref::<StringArray>().map(|a| a.value(row).to_owned()))
}

fn number_at(column: &ArrayRef, row: usize) -> i64 {
    let any = column.as_any();
    if column.is_null(row) {
        return i64::MIN;
    }
    any.downcast_ref::<Int64Array>()
        .map(|a| a.value(row))
        .or_else(|| any.downcast_ref::<Int32Array>().map(|a| a.value(row).into()))
        .or_else(|| any.downcast_ref::<TimestampMicrosecondArray>().map(|a| a.value(row)))
        .unwrap_or(0)
}

impl PlacesView {
    pub fn new(places: Arc<Places>, stream: Arc<Stream>, origin: Origin) -> Result<Self, ViewError> {
        let committed = places.position(origin)?;
        places.set_applied(committed);
        places.write().committed = committed;
        let name = positions::places(&stream.name);
        Ok(Self { places, stream, origin, name, applied: committed, committed, since: None, swept: None })
    }

    fn add(&mut self, rows: &StreamRows) {
        let Some(def) = &self.stream.def.places else { return };
        let batch = &rows.batch;
        let version = self.stream.def.version.as_deref().unwrap_or("event_time");
        let columns =
            [&def.venue, &def.name, &def.lat, &def.lon, &def.event, &def.date].map(|c| batch.column_by_name(c));
        let [Some(venue), Some(name), Some(lat), Some(lon), Some(event), Some(date)] = columns else { return };
        let Some(version) = batch.column_by_name(version) else { return };
        let floats = |a: &ArrayRef| a.as_any().downcast_ref::<Float64Array>().cloned();
        let (Some(lat), Some(lon)) = (floats(lat), floats(lon)) else { return };
        let Some(times) = batch.column(1).as_any().downcast_ref::<TimestampMicrosecondArray>() else { return };
        let mut state = self.places.write();
        let floor =
            rows.watermark.map(|w| bucket(w.saturating_sub(def.keep.micros()), MICROS_PER_DAY) * MICROS_PER_DAY);
        state.floor = state.floor.max(floor);
        for (row, lsn) in rows.lsns().iter().enumerate() {
            if *lsn as u64 <= self.applied {
                continue;
            }
            let Some(id) = id_at(venue, row).filter(|id| !id.contains('\0')) else { continue };
            if lat.is_valid(row) && lon.is_valid(row) {
                let name = id_at(name, row).unwrap_or_default();
                state.set(&id, &name, lat.value(row), lon.value(row), number_at(version, row));
            }
            state.see(&id, bucket(times.value(row), MICROS_PER_DAY));
            let date = date.is_valid(row).then(|| number_at(date, row));
            if let Some(event) = id_at(event, row).filter(|_| !is_before(date, state.floor)) {
                state.edges.insert(edge_key(&id, date, &event));
            }
        }
    }
}

impl PlacesView {
    /// Forgets the venues that no event has named since the floor; gives their ids, sorted.
    fn take_gone_venues(&self) -> Vec<Box<str>> {
        let mut state = self.places.write();
        let mut gone: Vec<Box<str>> =
            state.venues.iter().filter(|v| state.is_gone(v)).map(|venue| venue.id.clone()).collect();
        if gone.is_empty() {
            return gone;
        }
        gone.sort_unstable();
        let all = std::mem::take(&mut state.venues);
        let changed = std::mem::take(&mut state.changed);
        state.by_id.clear();
        for (slot, venue) in all.into_iter().enumerate() {
            if gone.binary_search(&venue.id).is_ok() {
                continue;
            }
            let at = state.venues.len() as u32;
            if changed.contains(&(slot as u32)) {
                state.changed.insert(at);
            }
            state.by_id.insert(venue.id.clone(), at);
            state.venues.push(venue);
        }
        let points = state.venues.iter().enumerate();
        let points = points.filter_map(|(at, v)| Some(Point::new(sphere::unit_vector(v.lat, v.lon)?, at as u32)));
        state.tree = RTree::bulk_load(points.collect());
        gone
    }
}

impl View for PlacesView {
    fn name(&self) -> &str {
        &self.name
    }

    fn applied(&self) -> Lsn {
        self.applied
    }

    fn positions(&self) -> Vec<(String, Lsn)> {
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
        if let Some(rows) = output.rows.as_ref().filter(|r| r.stream.name == self.stream.name) {
            self.add(rows);
            self.since.get_or_insert(now);
        }
        self.applied = output.to;
        self.places.set_applied(output.to);
        Ok(())
    }

    fn is_due(&self, now: Instant, _caught_up: bool) -> bool {
        let is_large = || {
            let state = self.places.read();
            state.edges.len() + state.changed.len() >= COMMIT_ROWS
        };
        self.since.is_some_and(|since| now.duration_since(since) >= COMMIT_AFTER) || is_large()
    }

    fn commit(&mut self, _all: bool) -> Result<(), ViewError> {
        if self.since.is_none() {
            return Ok(());
        }
        let (venues, edges, floor) = {
            let state = self.places.read();
            let venues: Vec<Venue> = state.changed.iter().map(|slot| state.venues[*slot as usize].clone()).collect();
            (venues, state.edges.clone(), state.floor)
        };
        let day = floor.map(|floor| bucket(floor, MICROS_PER_DAY));
        let gone = if day > self.swept { self.take_gone_venues() } else { Vec::new() };
        self.places.file.commit(self.origin, self.applied, |transaction| {
            let (mut table, mut seen) = (transaction.open_table(VENUES)?, transaction.open_table(SEEN)?);
            for venue in &venues {
                table.insert(&*venue.id, encode_venue(venue).as_slice())?;
                if venue.seen != UNKNOWN {
                    seen.insert(&*venue.id, venue.seen)?;
                }
            }
            for id in &gone {
                table.remove(&**id)?;
                seen.remove(&**id)?;
            }
            let mut table = transaction.open_table(EDGES)?;
            for edge in &edges {
                table.insert(edge.as_slice(), ())?;
            }
            if day > self.swept {
                table.retain(|key, ()| {
                    let venue = key.iter().position(|b| *b == 0).unwrap_or(0);
                    let is_gone = gone.binary_search_by(|id| id.as_bytes().cmp(&key[..venue])).is_ok();
                    !is_gone && split_edge(key, venue + 1).is_some_and(|(_, date)| !is_before(date, floor))
                })?;
            }
            Ok(())
        })?;
        self.swept = self.swept.max(day);
        let mut state = self.places.write();
        state.changed.clear();
        state.edges.clear();
        state.committed = self.applied;
        drop(state);
        self.committed = self.applied;
        self.since = None;
        Ok(())
    }

    fn reopen(&mut self) -> Result<(), ViewError> {
        self.places.load()?;
        self.committed = self.places.position(self.origin)?;
        self.applied = self.committed;
        self.since = None;
        let mut state = self.places.write();
        (state.applied, state.committed) = (self.applied, self.committed);
        Ok(())
    }
}
