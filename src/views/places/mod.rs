//! Venues on the map, and which events took place there when: one edge per (venue, event, date),
//! several per pair. Names and edges are in redb with the checkpoint; in memory are the venues'
//! points, in an R-tree on the unit sphere, and a cache of venues. Beyond `max_venues` the least
//! recently seen are evicted.

pub(crate) mod sphere;
mod venue;
mod view;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use rstar::primitives::GeomWithData;
use rstar::{RStarInsertionStrategy, RTree, RTreeParams};

use super::state_store::{StateStore, checkpoint_in, copy_table};
use super::{LogIdentity, ViewError};
use crate::event::{Lsn, MICROS_PER_DAY, Micros, bucket};
use venue::{EDGES, NUMBERS, StoredVenues, VENUES, Venue, is_before, split_edge};

pub use view::PlacesView;

/// Events listed for a venue.
const EVENTS_PER_VENUE: usize = 10;
/// Venues evicted under one lock, when a day has passed: queries run in between.
const EVICTION_BATCH: usize = 256;
/// Memory of an uncommitted edge in addition to its key.
const EDGE_BYTES: usize = 96;
/// Points have single precision, which halves the tree: the length of a chord of the unit sphere
/// by the tree differs by less than this from the exact one. Venues are ordered by exact distance.
const CHORD_ERROR: f64 = 5e-7;

/// A venue's point with its number.
type Point = GeomWithData<[f32; 3], u32>;

fn failed(error: impl Into<redb::Error>) -> ViewError {
    let error: redb::Error = error.into();
    ViewError::failed("places")(error)
}

fn point(lat: f64, lon: f64, number: u32) -> Option<Point> {
    Some(Point::new(
        sphere::unit_vector(lat, lon)?.map(|x| x as f32),
        number,
    ))
}

/// Nodes with many children waste less memory than the usual six, where most points are inserted
/// one by one.
struct WideNodes;

impl RTreeParams for WideNodes {
    const MIN_SIZE: usize = 12;
    const MAX_SIZE: usize = 30;
    const REINSERTION_COUNT: usize = 9;
    type DefaultInsertionStrategy = RStarInsertionStrategy;
}

/// Venue numbers, least recently seen first: by the day of the last event at the venue, then by
/// number.
///
/// An entry's day is not updated when its venue is seen again: it is a lower bound, corrected when
/// the entry reaches the top. So an update costs nothing, and an entry is corrected at most once
/// for each day of its venue. For example, venue 7 is seen on day 3 and again on day 5: (3, 7)
/// reaches the top, is found to be outdated, and is pushed again as (5, 7).
#[derive(Default)]
struct EvictionOrder(BinaryHeap<Reverse<(i32, u32)>>);

impl EvictionOrder {
    fn push(&mut self, day: i64, number: u32) {
        if self.0.len() == self.0.capacity() {
            // Grows by an eighth: doubling would hold twice the memory that it needs.
            self.0.reserve_exact(self.0.len() / 8 + 64);
        }
        self.0.push(Reverse((day_key(day), number)));
    }
}

/// An `i32` holds the day of any time that an event may have.
fn day_key(day: i64) -> i32 {
    day.clamp(i32::MIN.into(), i32::MAX.into()) as i32
}

#[derive(Default)]
struct State {
    tree: RTree<Point, WideNodes>,
    /// The number of the next new venue.
    next_number: u32,
    /// Every venue once, the least recently seen first.
    order: EvictionOrder,
    /// Cached venues in their current state; all changed ones are among them.
    cache: HashMap<Arc<str>, Venue>,
    cache_bytes: usize,
    /// Uncommitted changes of cached venues, by number.
    changed: BTreeMap<u32, Arc<str>>,
    /// Evicted venues of the file; the next commit deletes their rows and edges.
    removed: BTreeMap<Arc<str>, u32>,
    /// Uncommitted edges by venue: their keys without the venue's prefix.
    edges: HashMap<Arc<str>, BTreeSet<Vec<u8>>>,
    edge_bytes: usize,
    /// Edges dated before this, and venues not seen since, are hidden.
    floor: Option<Micros>,
    applied: Lsn,
    committed: Lsn,
}

/// The places of one stream, for queries.
pub struct Places {
    file: StateStore,
    /// Limit of the cache, and of uncommitted changes.
    max_bytes: usize,
    state: RwLock<State>,
}

/// A venue found near a point.
#[derive(Debug, Clone, PartialEq)]
pub struct NearbyVenue {
    /// Its id as text.
    pub id: String,
    /// Its newest name.
    pub name: String,
    /// In degrees.
    pub lat: f64,
    /// In degrees.
    pub lon: f64,
    /// Metres along a great circle.
    pub distance_m: f64,
    /// (event, date), latest date first.
    pub events: Vec<(String, Option<Micros>)>,
}

/// A record's name and position of its venue.
struct VenueObservation<'a> {
    name: &'a str,
    lat: f64,
    lon: f64,
    version: i64,
}

impl State {
    /// Whether no event has taken place at the venue since the floor.
    fn is_expired(&self, venue: &Venue) -> bool {
        self.floor
            .is_some_and(|floor| venue.seen < bucket(floor, MICROS_PER_DAY))
    }

    fn insert_cached(&mut self, id: &Arc<str>, venue: Venue) {
        self.cache_bytes += venue.memory_bytes(id);
        if let Some(before) = self.cache.insert(id.clone(), venue) {
            self.cache_bytes -= before.memory_bytes(id);
        }
    }

    /// The venue from the cache, or else from the file into the cache.
    fn load_cached(
        &mut self,
        stored: &StoredVenues,
        id: &str,
    ) -> Result<Option<(Arc<str>, &mut Venue)>, ViewError> {
        let known = self.cache.get_key_value(id).map(|(id, _)| id.clone());
        let known = match known {
            Some(id) => Some(id),
            None if self.removed.contains_key(id) => None,
            None => stored.venue(id)?.map(|venue| {
                let id = Arc::from(id);
                self.insert_cached(&id, venue);
                id
            }),
        };
        Ok(known.and_then(|id| self.cache.get_mut(&id).map(|venue| (id, venue))))
    }

    /// An event took place at the venue on this day. Its observation replaces what is known of the
    /// venue, unless its version is lower.
    fn observe_venue(
        &mut self,
        stored: &StoredVenues,
        id: &str,
        day: i64,
        observation: Option<VenueObservation<'_>>,
    ) -> Result<(), ViewError> {
        let observation = observation.filter(|o| sphere::unit_vector(o.lat, o.lon).is_some());
        let Some((id, venue)) = self.load_cached(stored, id)? else {
            // A record without a position does not create a venue.
            let Some(VenueObservation {
                name,
                lat,
                lon,
                version,
            }) = observation
            else {
                return Ok(());
            };
            let (id, number) = (Arc::from(id), self.next_number);
            self.next_number += 1;
            self.tree
                .insert(point(lat, lon, number).expect("a valid position, as filtered above"));
            self.insert_cached(
                &id,
                Venue {
                    number,
                    seen: day,
                    lat,
                    lon,
                    version,
                    name: name.into(),
                },
            );
            self.order.push(day, number);
            self.changed.insert(number, id);
            return Ok(());
        };
        let (number, before) = (venue.number, (venue.lat, venue.lon));
        let mut is_changed = day > venue.seen;
        venue.seen = venue.seen.max(day);
        let (mut growth_bytes, mut after) = (0, before);
        if let Some(new) = observation.filter(|o| o.version >= venue.version) {
            after = (new.lat, new.lon);
            is_changed |= after != before || new.version != venue.version;
            (venue.lat, venue.lon, venue.version) = (new.lat, new.lon, new.version);
            if *venue.name != *new.name {
                growth_bytes = new.name.len() as isize - venue.name.len() as isize;
                venue.name = new.name.into();
                is_changed = true;
            }
        }
        self.cache_bytes = self.cache_bytes.saturating_add_signed(growth_bytes);
        if before != after {
            if let Some(old) = point(before.0, before.1, number) {
                self.tree.remove(&old);
            }
            if let Some(new) = point(after.0, after.1, number) {
                self.tree.insert(new);
            }
        }
        if is_changed {
            self.changed.insert(number, id);
        }
        Ok(())
    }

    /// Adds an edge from the venue to an event; `edge` is its key without the venue's prefix.
    fn link_event(&mut self, id: &str, edge: &[u8]) {
        let of_venue = match self.edges.get_mut(id) {
            Some(edges) => edges,
            None => self.edges.entry(id.into()).or_default(),
        };
        if !of_venue.contains(edge) {
            of_venue.insert(edge.to_vec());
            self.edge_bytes += EDGE_BYTES + edge.len();
        }
    }

    /// The venue of this number in its current state.
    fn by_number(
        &self,
        stored: &StoredVenues,
        number: u32,
    ) -> Result<Option<(Arc<str>, Venue)>, ViewError> {
        let changed = self.changed.get(&number).cloned();
        let Some(id) = changed.map_or_else(|| stored.id(number), |id| Ok(Some(id)))? else {
            return Ok(None);
        };
        let venue = match self.cache.get(&id) {
            Some(venue) => Some(venue.clone()),
            None => stored.venue(&id)?,
        };
        Ok(venue
            .filter(|venue| venue.number == number)
            .map(|venue| (id, venue)))
    }

    /// Evicts the least recently seen venues beyond `max_venues`; of one day, those that were added
    /// first.
    fn evict_beyond(&mut self, stored: &StoredVenues, max_venues: usize) -> Result<(), ViewError> {
        self.evict_while(stored, |state, _, _| state.tree.size() > max_venues)
            .map(drop)
    }

    /// Evicts up to `EVICTION_BATCH` venues that were last seen before the floor; whether there
    /// may be more.
    fn evict_expired(&mut self, stored: &StoredVenues) -> Result<bool, ViewError> {
        let Some(floor) = self.floor else {
            return Ok(false);
        };
        let floor = bucket(floor, MICROS_PER_DAY);
        let visited = self.evict_while(stored, |_, day, visited| {
            day < floor && visited < EVICTION_BATCH
        })?;
        Ok(visited == EVICTION_BATCH)
    }

    /// Evicts venues, the least recently seen first, while `is_leaving` holds for the top entry's
    /// day and the number of entries that were visited; returns the latter.
    fn evict_while(
        &mut self,
        stored: &StoredVenues,
        is_leaving: impl Fn(&Self, i64, usize) -> bool,
    ) -> Result<usize, ViewError> {
        let mut visited = 0;
        while let Some(&Reverse((day, number))) = self
            .order
            .0
            .peek()
            .filter(|e| is_leaving(self, e.0.0.into(), visited))
        {
            visited += 1;
            let venue = self.by_number(stored, number)?;
            self.order.0.pop();
            match venue {
                Some((_, venue)) if day_key(venue.seen) > day => {
                    self.order.push(venue.seen, number);
                }
                Some((id, venue)) => self.remove(id, &venue),
                None => {}
            }
        }
        Ok(visited)
    }

    fn remove(&mut self, id: Arc<str>, venue: &Venue) {
        if let Some(point) = point(venue.lat, venue.lon, venue.number) {
            self.tree.remove(&point);
        }
        self.changed.remove(&venue.number);
        if let Some(venue) = self.cache.remove(&id) {
            self.cache_bytes -= venue.memory_bytes(&id);
        }
        for edge in self.edges.remove(&id).into_iter().flatten() {
            self.edge_bytes -= EDGE_BYTES + edge.len();
        }
        self.removed.entry(id).or_insert(venue.number);
    }

    /// Evicts unchanged venues from the cache when it exceeds `max_bytes`.
    fn trim_cache(&mut self, max_bytes: usize) {
        if self.cache_bytes > max_bytes {
            let changed = &self.changed;
            self.cache
                .retain(|_, venue| changed.contains_key(&venue.number));
            self.cache_bytes = self
                .cache
                .iter()
                .map(|(id, venue)| venue.memory_bytes(id))
                .sum();
        }
    }

    /// Bytes of uncommitted changes, approximately; the trimmed cache holds little else.
    fn uncommitted_bytes(&self) -> usize {
        self.changed.len() * 128 + self.removed.len() * 64 + self.edge_bytes
    }
}

impl Places {
    /// Opens the places of a stream within `memory` bytes, not counting their points; `None` where
    /// the file does not exist and `writable` is false.
    pub fn open(path: &Path, memory: usize, writable: bool) -> Result<Option<Self>, ViewError> {
        let Some(file) = StateStore::open_as(path, memory / 2, writable)? else {
            return Ok(None);
        };
        let places = Self {
            file,
            max_bytes: memory / 4,
            state: RwLock::default(),
        };
        places.load()?;
        Ok(Some(places))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Discards what is not committed.
    fn reopen(&self) -> Result<(), ViewError> {
        self.file.reopen()?;
        self.load()
    }

    fn load(&self) -> Result<(), ViewError> {
        let (mut points, mut order) = (Vec::new(), Vec::new());
        let mut next_number = 0;
        StoredVenues::open(&self.file.read()?)?.for_each(|venue| {
            next_number = next_number.max(venue.number.saturating_add(1));
            points.extend(point(venue.lat, venue.lon, venue.number));
            order.push(Reverse((day_key(venue.seen), venue.number)));
        })?;
        order.shrink_to_fit();
        let order = EvictionOrder(order.into());
        *self.write() = State {
            tree: RTree::bulk_load_with_params(points),
            next_number,
            order,
            ..State::default()
        };
        Ok(())
    }

    /// The committed checkpoint; an error where it belongs to another log.
    pub fn checkpoint(&self, log: LogIdentity) -> Result<Lsn, ViewError> {
        self.file.checkpoint(log)
    }

    /// Copies what is committed into a new file.
    pub fn copy_to(&self, path: &Path) -> Result<(), ViewError> {
        self.file.copy_to(path, |read, write| {
            copy_table(VENUES, read, write)?;
            copy_table(NUMBERS, read, write)?;
            copy_table(EDGES, read, write)
        })
    }

    /// In memory, everything up to this LSN is applied.
    pub fn applied(&self) -> Lsn {
        self.read().applied
    }

    /// Publishes how far the view is.
    pub fn set_applied(&self, lsn: Lsn) {
        self.write().applied = lsn;
    }

    /// The number of venues.
    pub fn venues(&self) -> usize {
        self.read().tree.size()
    }

    /// Bytes in memory without the points, approximately.
    pub fn memory_bytes(&self) -> usize {
        let state = self.read();
        state.cache_bytes + state.uncommitted_bytes()
    }

    /// The nearest venues, at most `limit`, nearest first, ties by id; and the LSN that the answer
    /// reflects. Degrees and metres.
    pub fn nearby(
        &self,
        lat: f64,
        lon: f64,
        limit: usize,
        within_m: Option<f64>,
    ) -> Result<(Vec<NearbyVenue>, Lsn), ViewError> {
        let state = self.read();
        let transaction = self.file.read()?;
        // A commit may have happened since the state was locked: what was uncommitted is then in
        // the file.
        let is_committed = checkpoint_in(&transaction)?.is_some_and(|p| p > state.committed);
        let stored = StoredVenues::open(&transaction)?;
        let nearest = nearest(&state, &stored, (lat, lon), limit, within_m)?;
        let venues = nearest.into_iter().map(|(distance_m, id, venue)| {
            let events = latest_events(&state, &stored, &id, is_committed)?;
            Ok(NearbyVenue {
                events,
                id: id.to_string(),
                name: venue.name.into(),
                lat: venue.lat,
                lon: venue.lon,
                distance_m,
            })
        });
        let venues = venues.collect::<Result<_, ViewError>>()?;
        Ok((venues, state.applied))
    }
}

type VenueDistance = (f64, Arc<str>, Venue);

/// The nearest venues with their distances, nearest first, ties by id.
///
/// The tree yields points by their approximate distance. The search ends at the first point that
/// even with the tree's error is farther than the limit or the last venue of a full answer.
fn nearest(
    state: &State,
    stored: &StoredVenues,
    (lat, lon): (f64, f64),
    limit: usize,
    within_m: Option<f64>,
) -> Result<Vec<VenueDistance>, ViewError> {
    let mut found: Vec<VenueDistance> = Vec::new();
    let Some(from) = point(lat, lon, 0) else {
        return Ok(found);
    };
    for (p, chord_squared) in state
        .tree
        .nearest_neighbor_iter_with_distance_2(*from.geom())
    {
        let last = found.get(limit.wrapping_sub(1)).map(|(d, ..)| *d);
        let reach = last
            .into_iter()
            .chain(within_m)
            .fold(f64::INFINITY, f64::min);
        if f64::from(chord_squared).sqrt() - CHORD_ERROR > sphere::chord_squared(reach).sqrt() {
            break;
        }
        let Some((id, venue)) = state.by_number(stored, p.data)? else {
            continue;
        };
        let distance = sphere::distance_m((lat, lon), (venue.lat, venue.lon));
        if state.is_expired(&venue) || within_m.is_some_and(|m| distance > m) {
            continue;
        }
        let at = found.partition_point(|(d, other, _)| {
            d.total_cmp(&distance)
                .then_with(|| (**other).cmp(&*id))
                .is_lt()
        });
        found.insert(at, (distance, id, venue));
        found.truncate(limit);
    }
    Ok(found)
}

/// Events of a venue with their dates, latest date first.
fn latest_events(
    state: &State,
    stored: &StoredVenues,
    id: &Arc<str>,
    is_committed: bool,
) -> Result<Vec<(String, Option<Micros>)>, ViewError> {
    let mut edges: BTreeSet<Vec<u8>> = BTreeSet::new();
    // The file may still have the edges of a venue that was evicted and came back.
    if is_committed || !state.removed.contains_key(id) {
        edges.extend(stored.edges(id, EVENTS_PER_VENUE)?);
    }
    if !is_committed {
        let uncommitted = state.edges.get(id).into_iter().flatten();
        edges.extend(uncommitted.take(EVENTS_PER_VENUE).cloned());
    }
    let events = edges
        .iter()
        .take(EVENTS_PER_VENUE)
        .filter_map(|edge| split_edge(edge));
    Ok(events
        .filter(|(_, date)| !is_before(*date, state.floor))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observation(name: &str, lat: f64, version: i64) -> Option<VenueObservation<'_>> {
        Some(VenueObservation {
            name,
            lat,
            lon: 8.0,
            version,
        })
    }

    #[test]
    fn a_venue_follows_the_observation_of_the_highest_version() {
        let (stored, mut state) = (StoredVenues::default(), State::default());
        for (day, observed, expected) in [
            (1, None, None),
            (2, observation("far off", 91.0, 1), None),
            (3, observation("a", 47.0, 5), Some(("a", 47.0, 3))),
            (4, observation("old", 48.0, 4), Some(("a", 47.0, 4))),
            (2, None, Some(("a", 47.0, 4))),
            (4, observation("b", 48.0, 5), Some(("b", 48.0, 4))),
        ] {
            let observed = state.observe_venue(&stored, "v", day, observed);
            observed.expect("no file is read");
            let venue = state.cache.get("v");
            let found = venue.map(|v| (&*v.name, v.lat, v.seen));
            assert_eq!(found, expected, "day {day}");
        }
        assert_eq!((state.tree.size(), state.next_number), (1, 1));
        let bytes = state.cache["v"].memory_bytes("v");
        assert_eq!(state.cache_bytes, bytes);
    }

    #[test]
    fn the_venue_that_was_seen_least_recently_is_evicted() {
        let (stored, mut state) = (StoredVenues::default(), State::default());
        for (id, day) in [("a", 1), ("b", 2), ("a", 3), ("c", 4)] {
            state
                .observe_venue(&stored, id, day, observation(id, 47.0, day))
                .expect("no file is read");
            state.link_event(id, b"12345678e");
        }
        state.evict_beyond(&stored, 2).expect("no file is read");
        let mut left: Vec<_> = state.cache.keys().map(|id| &**id).collect();
        left.sort_unstable();
        assert_eq!((left, state.tree.size()), (vec!["a", "c"], 2));
        assert_eq!(state.edge_bytes, 2 * (EDGE_BYTES + 9));
        assert!(state.removed.contains_key("b"));
    }
}
