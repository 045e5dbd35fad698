//! Venues on the map, and which events took place there when: one edge per (venue, event, date),
//! several per pair. Names and edges lie in redb with the checkpoint; in memory are the venues'
//! points, in an R-tree on the unit sphere, and what was lately named. Beyond `max_venues` those
//! that nobody named for longest leave.

pub mod sphere;
mod venue;
mod view;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use rstar::primitives::GeomWithData;
use rstar::{RStarInsertionStrategy, RTree, RTreeParams};

use super::ViewError;
use super::state_store::{LogIdentity, StateStore, checkpoint_in, copy_table};
use crate::event::{Lsn, MICROS_PER_DAY, Micros, bucket};
use venue::{EDGES, NUMBERS, Stored, VENUES, Venue, is_before, split_edge};

pub use view::PlacesView;

/// Events told of a venue.
const EVENTS_PER_VENUE: usize = 10;
/// Venues evicted under one lock, when a day has passed: queries go between.
const EVICTED_AT_ONCE: usize = 256;
/// Bytes in memory of an edge that waits, beside its key.
const EDGE_BYTES: usize = 96;
/// Points have single precision, which halves the tree: of two chords of the unit sphere the
/// difference between what they are and what the tree says is below this. The order is that of the
/// exact places.
const CHORD_ERROR: f64 = 5e-7;

/// A venue's point with its number.
type Point = GeomWithData<[f32; 3], u32>;

fn failed(error: impl Into<redb::Error>) -> ViewError {
    ViewError::Failed {
        view: "places".into(),
        reason: error.into().to_string(),
    }
}

fn point(lat: f64, lon: f64, number: u32) -> Option<Point> {
    Some(Point::new(
        sphere::unit_vector(lat, lon)?.map(|x| x as f32),
        number,
    ))
}

/// Nodes of many children waste less of their room than the usual six, where most points come one
/// by one.
struct Wide;

impl RTreeParams for Wide {
    const MIN_SIZE: usize = 12;
    const MAX_SIZE: usize = 30;
    const REINSERTION_COUNT: usize = 9;
    type DefaultInsertionStrategy = RStarInsertionStrategy;
}

/// Venue numbers, least recently seen first: by the day on which an event last named the venue,
/// then by number.
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
    tree: RTree<Point, Wide>,
    /// What the next new venue gets.
    next: u32,
    /// Every venue once, the least recently seen first.
    order: EvictionOrder,
    /// Venues lately named, as they are now.
    recent: HashMap<Arc<str>, Venue>,
    recent_bytes: usize,
    /// Those of them that wait for their commit, by number.
    changed: BTreeMap<u32, Arc<str>>,
    /// Venues of the file that have left; their rows and edges go with the next commit.
    removed: BTreeMap<Arc<str>, u32>,
    /// Edges that wait for their commit, by venue: what of their keys follows the venue's.
    edges: HashMap<Arc<str>, BTreeSet<Vec<u8>>>,
    edge_bytes: usize,
    /// Edges dated before this, and venues not named since, are no longer shown.
    floor: Option<Micros>,
    applied: Lsn,
    committed: Lsn,
}

/// What queries read.
pub struct Places {
    file: StateStore,
    /// Bytes for what was lately named and what waits.
    room: usize,
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

/// What a record says of its venue's place.
struct VenueObservation<'a> {
    name: &'a str,
    lat: f64,
    lon: f64,
    version: i64,
}

impl State {
    /// Whether no event has named the venue since the floor.
    fn is_gone(&self, venue: &Venue) -> bool {
        self.floor
            .is_some_and(|floor| venue.seen < bucket(floor, MICROS_PER_DAY))
    }

    fn remember(&mut self, id: &Arc<str>, venue: Venue) {
        self.recent_bytes += venue.memory_bytes(id);
        if let Some(before) = self.recent.insert(id.clone(), venue) {
            self.recent_bytes -= before.memory_bytes(id);
        }
    }

    /// The venue as it was left, if there is one, among those lately named.
    fn recall(
        &mut self,
        stored: &Stored,
        id: &str,
    ) -> Result<Option<(Arc<str>, &mut Venue)>, ViewError> {
        let known = self.recent.get_key_value(id).map(|(id, _)| id.clone());
        let known = match known {
            Some(id) => Some(id),
            None if self.removed.contains_key(id) => None,
            None => stored.venue(id)?.map(|venue| {
                let id = Arc::from(id);
                self.remember(&id, venue);
                id
            }),
        };
        Ok(known.and_then(|id| self.recent.get_mut(&id).map(|venue| (id, venue))))
    }

    /// An event named the venue on this day, and perhaps said where it is.
    fn name(
        &mut self,
        stored: &Stored,
        id: &str,
        day: i64,
        said: Option<VenueObservation<'_>>,
    ) -> Result<(), ViewError> {
        let said = said.filter(|s| sphere::unit_vector(s.lat, s.lon).is_some());
        let Some((id, venue)) = self.recall(stored, id)? else {
            // A record without a place makes no venue.
            let Some(VenueObservation {
                name,
                lat,
                lon,
                version,
            }) = said
            else {
                return Ok(());
            };
            let (id, number) = (Arc::from(id), self.next);
            self.next += 1;
            self.tree
                .insert(point(lat, lon, number).expect("a place, as filtered above"));
            self.remember(
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
        let (mut longer, mut after) = (0, before);
        if let Some(said) = said.filter(|s| s.version >= venue.version) {
            after = (said.lat, said.lon);
            is_changed |= after != before || said.version != venue.version;
            (venue.lat, venue.lon, venue.version) = (said.lat, said.lon, said.version);
            if *venue.name != *said.name {
                longer = said.name.len() as isize - venue.name.len() as isize;
                venue.name = said.name.into();
                is_changed = true;
            }
        }
        self.recent_bytes = self.recent_bytes.saturating_add_signed(longer);
        if before != after {
            if let Some(there) = point(before.0, before.1, number) {
                self.tree.remove(&there);
            }
            if let Some(here) = point(after.0, after.1, number) {
                self.tree.insert(here);
            }
        }
        if is_changed {
            self.changed.insert(number, id);
        }
        Ok(())
    }

    /// An event took place there; `edge` is what of its key follows the venue's.
    fn connect(&mut self, id: &str, edge: &[u8]) {
        let of_venue = match self.edges.get_mut(id) {
            Some(edges) => edges,
            None => self.edges.entry(id.into()).or_default(),
        };
        if !of_venue.contains(edge) {
            of_venue.insert(edge.to_vec());
            self.edge_bytes += EDGE_BYTES + edge.len();
        }
    }

    /// The venue of this number, as it is now.
    fn by_number(
        &self,
        stored: &Stored,
        number: u32,
    ) -> Result<Option<(Arc<str>, Venue)>, ViewError> {
        let waiting = self.changed.get(&number).cloned();
        let Some(id) = waiting.map_or_else(|| stored.id(number), |id| Ok(Some(id)))? else {
            return Ok(None);
        };
        let venue = match self.recent.get(&id) {
            Some(venue) => Some(venue.clone()),
            None => stored.venue(&id)?,
        };
        Ok(venue
            .filter(|venue| venue.number == number)
            .map(|venue| (id, venue)))
    }

    /// Evicts the least recently seen venues beyond `most`; of one day, those that were added
    /// first.
    fn evict_beyond(&mut self, stored: &Stored, most: usize) -> Result<(), ViewError> {
        self.evict_while(stored, |state, _, _| state.tree.size() > most)
            .map(drop)
    }

    /// Evicts up to `EVICTED_AT_ONCE` venues that were last seen before the floor; whether there
    /// may be more.
    fn evict_expired(&mut self, stored: &Stored) -> Result<bool, ViewError> {
        let Some(floor) = self.floor else {
            return Ok(false);
        };
        let floor = bucket(floor, MICROS_PER_DAY);
        let visited = self.evict_while(stored, |_, day, visited| {
            day < floor && visited < EVICTED_AT_ONCE
        })?;
        Ok(visited == EVICTED_AT_ONCE)
    }

    /// Evicts venues, the least recently seen first, while `is_leaving` holds for the top entry's
    /// day and the number of entries that were visited; returns the latter.
    fn evict_while(
        &mut self,
        stored: &Stored,
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
        if let Some(venue) = self.recent.remove(&id) {
            self.recent_bytes -= venue.memory_bytes(&id);
        }
        for edge in self.edges.remove(&id).into_iter().flatten() {
            self.edge_bytes -= EDGE_BYTES + edge.len();
        }
        self.removed.entry(id).or_insert(venue.number);
    }

    /// Forgets what the file holds as well, where it takes more room than it may.
    fn trim_recent(&mut self, room: usize) {
        if self.recent_bytes > room {
            let changed = &self.changed;
            self.recent
                .retain(|_, venue| changed.contains_key(&venue.number));
            self.recent_bytes = self
                .recent
                .iter()
                .map(|(id, venue)| venue.memory_bytes(id))
                .sum();
        }
    }

    /// Bytes of what waits for its commit, about; `recent` holds little else once it is trimmed.
    fn waiting_bytes(&self) -> usize {
        self.changed.len() * 128 + self.removed.len() * 64 + self.edge_bytes
    }
}

impl Places {
    /// Opens the places of a stream within `memory` bytes beside their points; none where there are
    /// none and `writable` is false.
    pub fn open(path: &Path, memory: usize, writable: bool) -> Result<Option<Self>, ViewError> {
        let Some(file) = StateStore::open_as(path, memory / 2, writable)? else {
            return Ok(None);
        };
        let places = Self {
            file,
            room: memory / 4,
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

    /// Gives up what is not committed.
    fn reopen(&self) -> Result<(), ViewError> {
        self.file.reopen()?;
        self.load()
    }

    fn load(&self) -> Result<(), ViewError> {
        let (mut points, mut order) = (Vec::new(), Vec::new());
        let mut next = 0;
        Stored::open(&self.file.read()?)?.each(|venue| {
            next = next.max(venue.number.saturating_add(1));
            points.extend(point(venue.lat, venue.lon, venue.number));
            order.push(Reverse((day_key(venue.seen), venue.number)));
        })?;
        order.shrink_to_fit();
        let order = EvictionOrder(order.into());
        *self.write() = State {
            tree: RTree::bulk_load_with_params(points),
            next,
            order,
            ..State::default()
        };
        Ok(())
    }

    pub fn checkpoint(&self, origin: LogIdentity) -> Result<Lsn, ViewError> {
        self.file.checkpoint(origin)
    }

    /// Copies what is committed into a new file.
    pub fn copy_to(&self, path: &Path) -> Result<(), ViewError> {
        self.file.copy_to(path, |read, write| {
            copy_table(VENUES, read, write)?;
            copy_table(NUMBERS, read, write)?;
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
        self.read().tree.size()
    }

    /// Bytes held in memory beside the points, about.
    pub fn memory_bytes(&self) -> usize {
        let state = self.read();
        state.recent_bytes + state.waiting_bytes()
    }

    /// The nearest venues, at most `limit`, nearest first, ties by id; and the LSN that the answer
    /// reaches.
    pub fn nearby(
        &self,
        lat: f64,
        lon: f64,
        limit: usize,
        within_m: Option<f64>,
    ) -> Result<(Vec<Near>, Lsn), ViewError> {
        let Some(from) = point(lat, lon, 0) else {
            return Ok((Vec::new(), self.applied()));
        };
        let state = self.read();
        let transaction = self.file.read()?;
        // A commit may have happened since the state was locked: what waited is then in the file.
        let is_committed = checkpoint_in(&transaction)?.is_some_and(|p| p > state.committed);
        let stored = Stored::open(&transaction)?;
        let mut found: Vec<(f64, Arc<str>, Venue)> = Vec::new();
        for (p, chord) in state
            .tree
            .nearest_neighbor_iter_with_distance_2(*from.geom())
        {
            let full = found
                .get(limit.wrapping_sub(1))
                .map(|(distance, ..)| *distance);
            let reach = full
                .into_iter()
                .chain(within_m)
                .fold(f64::INFINITY, f64::min);
            if f64::from(chord).sqrt() - CHORD_ERROR > sphere::chord_squared(reach).sqrt() {
                break;
            }
            let waiting = state.changed.get(&p.data).cloned();
            let Some(id) = waiting.map_or_else(|| stored.id(p.data), |id| Ok(Some(id)))? else {
                continue;
            };
            let venue = match state.recent.get(&*id) {
                Some(venue) => Some(venue.clone()),
                None => stored.venue(&id)?,
            };
            let Some(venue) = venue.filter(|venue| !state.is_gone(venue)) else {
                continue;
            };
            let distance = sphere::distance_m((lat, lon), (venue.lat, venue.lon));
            if within_m.is_none_or(|m| distance <= m) {
                let at = found.partition_point(|(d, other, _)| {
                    d.total_cmp(&distance)
                        .then_with(|| (**other).cmp(&*id))
                        .is_lt()
                });
                found.insert(at, (distance, id, venue));
                found.truncate(limit);
            }
        }
        let mut out = Vec::with_capacity(found.len());
        for (distance_m, id, venue) in found {
            // Of a venue that left and came back, the file may still have the edges from before.
            let left = state.removed.contains_key(&id) && !is_committed;
            let mut keys: BTreeSet<Vec<u8>> = BTreeSet::new();
            if !left {
                keys.extend(stored.edges(&id, EVENTS_PER_VENUE)?);
            }
            if !is_committed {
                keys.extend(
                    state
                        .edges
                        .get(&id)
                        .into_iter()
                        .flatten()
                        .take(EVENTS_PER_VENUE)
                        .cloned(),
                );
            }
            let events = keys
                .iter()
                .take(EVENTS_PER_VENUE)
                .filter_map(|edge| split_edge(edge));
            out.push(Near {
                events: events
                    .filter(|(_, date)| !is_before(*date, state.floor))
                    .collect(),
                id: id.to_string(),
                name: venue.name.into(),
                lat: venue.lat,
                lon: venue.lon,
                distance_m,
            });
        }
        Ok((out, state.applied))
    }
}
