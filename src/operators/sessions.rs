//! Sessions: events of one key with at most a gap between them, in the order of LSNs. A session is
//! identified by its first record; it never merges with another one and never changes its id.
//!
//! ```text
//! gap 5, one key    sessions
//! event at 10       10..10 opens
//! event at 14       10..14
//! event at 7        7..14          within the gap before its start
//! event at 1        one of its own, late
//! event at 30       7..14 closed, 30..30 opens
//! ```
//!
//! The watermark closes a session when it has passed its end by more than the gap. The key is
//! remembered until it has passed it by twice the gap, because until then an event can come that
//! belonged to the session. After it, every such event is late by its own time:
//!
//! ```text
//! 7..14, watermark 20    closed: 14 + 5 < 20
//! event at 19            a session of its own, late: within the gap of 7..14
//! event at 20            20..20 opens
//! watermark 25           without that event the key would be forgotten: 14 + 5 + 5 < 25
//! event at 19            late: its session would have ended with 19 + 5 < 25
//! ```
//!
//! This differs from the session windows of [`super::windows`], which merge sessions and have a
//! lateness: an id that has been written into a row cannot change.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hasher;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use hashbrown::HashTable;
use sha2::{Digest, Sha256};

use crate::bounds::truncate_with_hash;
use crate::event::{Lsn, MICROS_PER_SECOND, Micros};
use crate::schema::types::timestamp;

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SessionStatus {
    Open,
    /// No event came for longer than the gap.
    ClosedTimeout,
    /// An event came that opens a new one.
    ClosedOnOpenEvent,
    /// Its only event came too late: for a session that was closed, or too far before the open one.
    Late,
    /// Its stream's declaration changed, or there were too many.
    Abandoned,
}

impl SessionStatus {
    fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::ClosedTimeout => "closed_timeout",
            Self::ClosedOnOpenEvent => "closed_on_open_event",
            Self::Late => "late",
            Self::Abandoned => "abandoned",
        }
    }
}

#[derive(Debug, Clone)]
struct Session {
    /// Its first record, in the order of LSNs.
    first_lsn: Lsn,
    start: Micros,
    end: Micros,
    events: u64,
    first: Option<Arc<str>>,
    last: Option<Arc<str>>,
}

impl Session {
    /// Another event of the session, which may be earlier than its start.
    fn extend(&mut self, time: Micros, track: Option<Arc<str>>) {
        if time < self.start {
            (self.start, self.first) = (time, track.clone());
        }
        if time >= self.end {
            (self.end, self.last) = (time, track);
        }
        self.events += 1;
    }
}

/// State of a key.
#[derive(Debug, Clone)]
struct KeyState {
    key: Arc<str>,
    open: Option<Session>,
    /// End of the session before, while an event for it can still come; [`NEVER`] otherwise.
    closed: Micros,
    /// Time of its valid entry in the queue; its other entries are stale.
    queued: Micros,
}

const NEVER: Micros = Micros::MIN;

/// A session that was closed at a record.
#[derive(Debug, Clone)]
pub(super) struct ClosedSession {
    lsn: Lsn,
    key: Arc<str>,
    session: Session,
    status: SessionStatus,
}

impl ClosedSession {
    /// Whether it was closed early.
    pub(super) fn is_abandoned(&self) -> bool {
        self.status == SessionStatus::Abandoned
    }
}

/// The parts of an event that sessions depend on.
pub(super) struct SessionEvent<'a> {
    pub lsn: Lsn,
    pub key: &'a str,
    pub time: Micros,
    /// Value of the column that `track` declares, for the session's `first` and `last`.
    pub track: Option<&'a str>,
    /// It opens a new session in any case: `opens` is true for it.
    pub opens: bool,
}

/// The open sessions of one stream.
#[derive(Debug, Clone)]
pub(super) struct Sessions {
    stream: Arc<str>,
    gap: Micros,
    max_open: usize,
    keys: Vec<Option<KeyState>>,
    free: Vec<u32>,
    by_key: HashTable<u32>,
    open_count: usize,
    /// (a time after which a key may have something to close, its slot). An event that extends a
    /// session leaves its entry as it is; the entry is refreshed when its time comes: with a gap of
    /// 5, events at 10, 12 and 14 queue 15, and at watermark 16 the entry becomes 19.
    due: BinaryHeap<Reverse<(Micros, u32)>>,
    /// First and last texts of sessions, shared.
    texts: HashMap<Box<str>, Arc<str>>,
    watermark: Micros,
}

/// Texts that are shared; beyond it each session has its own.
const MAX_TEXTS: usize = 4_096;

impl Sessions {
    /// Without a session; `gap` is in µs.
    pub fn new(stream: &str, gap: Micros, max_open: usize) -> Self {
        Self {
            stream: stream.into(),
            gap,
            max_open,
            keys: Vec::new(),
            free: Vec::new(),
            by_key: HashTable::new(),
            open_count: 0,
            due: BinaryHeap::new(),
            texts: HashMap::new(),
            watermark: Micros::MIN,
        }
    }

    /// Number of open sessions.
    pub fn open_count(&self) -> usize {
        self.open_count
    }

    /// Bytes in memory, approximately.
    pub fn memory_bytes(&self) -> usize {
        self.keys.capacity() * size_of::<Option<KeyState>>()
            + self.by_key.capacity() * 6
            + self.by_key.len() * 40
            + self.due.capacity() * 16
    }

    fn find(&self, key: &str) -> Option<u32> {
        self.by_key
            .find(hash(key), |slot| self.key(*slot) == key)
            .copied()
    }

    fn key(&self, slot: u32) -> &str {
        self.keys[slot as usize]
            .as_ref()
            .map_or("", |state| &state.key)
    }

    fn insert(&mut self, state: KeyState) -> u32 {
        let hashed = hash(&state.key);
        let slot = match self.free.pop() {
            Some(slot) => {
                self.keys[slot as usize] = Some(state);
                slot
            }
            None => {
                self.keys.push(Some(state));
                self.keys.len() as u32 - 1
            }
        };
        let keys = &self.keys;
        self.by_key.insert_unique(hashed, slot, |s| {
            keys[*s as usize]
                .as_ref()
                .map_or(0, |state| hash(&state.key))
        });
        slot
    }

    /// Looks at a key again after this time.
    fn queue(&mut self, slot: u32, due: Micros) {
        if let Some(state) = &mut self.keys[slot as usize] {
            state.queued = due;
            self.due.push(Reverse((due, slot)));
        }
    }

    fn remove(&mut self, slot: u32) {
        let Some(state) = self.keys[slot as usize].take() else {
            return;
        };
        if let Ok(entry) = self.by_key.find_entry(hash(&state.key), |s| *s == slot) {
            entry.remove();
        }
        self.free.push(slot);
    }

    /// The id of the session that begins with the record `first_lsn`.
    pub fn id(&self, key: &str, first_lsn: Lsn) -> String {
        let mut hash = Sha256::new();
        hash.update(self.stream.as_bytes());
        hash.update([0]);
        hash.update(truncate_with_hash(key).as_bytes());
        hash.update([0]);
        hash.update(first_lsn.to_le_bytes());
        hash.finalize()
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    fn text(&mut self, text: Option<&str>) -> Option<Arc<str>> {
        let text = text?;
        if let Some(shared) = self.texts.get(text) {
            return Some(shared.clone());
        }
        let new: Arc<str> = text.into();
        if self.texts.len() < MAX_TEXTS {
            self.texts.insert(text.into(), new.clone());
        }
        Some(new)
    }

    /// Observes an event; returns its session's first record.
    pub fn observe(&mut self, event: &SessionEvent<'_>, closed: &mut Vec<ClosedSession>) -> Lsn {
        let SessionEvent { lsn, time, .. } = *event;
        let track = self.text(event.track.map(truncate_with_hash).as_deref());
        let own_key = truncate_with_hash(event.key);
        let gap = self.gap;
        let slot = self.find(&own_key);
        let state = slot.and_then(|slot| self.keys[slot as usize].as_mut());
        let key: Arc<str> = state
            .as_ref()
            .map_or_else(|| own_key.as_ref().into(), |state| state.key.clone());
        let fresh = Session {
            first_lsn: lsn,
            start: time,
            end: time,
            events: 1,
            first: track.clone(),
            last: track.clone(),
        };
        let late = |key, session| ClosedSession {
            lsn,
            key,
            session,
            status: SessionStatus::Late,
        };
        let closed_end = state.as_ref().map_or(NEVER, |state| state.closed);
        if let Some(open) = state.and_then(|state| state.open.as_mut()) {
            if time < open.start.saturating_sub(gap) {
                closed.push(late(key, fresh));
                return lsn;
            }
            let is_past_gap = time > open.end.saturating_add(gap);
            if !event.opens && !is_past_gap {
                open.extend(time, track);
                return open.first_lsn;
            }
            let status = if is_past_gap {
                SessionStatus::ClosedTimeout
            } else {
                SessionStatus::ClosedOnOpenEvent
            };
            let session = std::mem::replace(open, fresh);
            closed.push(ClosedSession {
                lsn,
                key,
                session,
                status,
            });
            return lsn;
        }
        let is_for_closed =
            closed_end != NEVER && time <= closed_end.saturating_add(gap) && !event.opens;
        if is_for_closed || time.saturating_add(gap) < self.watermark {
            closed.push(late(key, fresh));
            return lsn;
        }
        self.open(slot, key, fresh);
        if self.open_count > self.max_open {
            self.close_longest_silent(lsn, closed);
        }
        lsn
    }

    /// Opens a session of a key that has none open.
    fn open(&mut self, slot: Option<u32>, key: Arc<str>, session: Session) {
        let due = session.end.saturating_add(self.gap);
        match slot.and_then(|slot| Some((slot, self.keys[slot as usize].as_mut()?))) {
            Some((slot, state)) => {
                state.open = Some(session);
                if state.queued > due {
                    self.queue(slot, due);
                }
            }
            None => {
                let slot = self.insert(KeyState {
                    key,
                    open: Some(session),
                    closed: NEVER,
                    queued: NEVER,
                });
                self.queue(slot, due);
            }
        }
        self.open_count += 1;
    }

    /// Closes the sessions that the watermark has passed.
    pub fn advance(&mut self, watermark: Micros, lsn: Lsn, closed: &mut Vec<ClosedSession>) {
        if watermark <= self.watermark {
            return;
        }
        self.watermark = watermark;
        let first = closed.len();
        while let Some(Reverse((due, slot))) = self
            .due
            .peek()
            .copied()
            .filter(|Reverse((due, _))| *due < watermark)
        {
            self.due.pop();
            let Some(state) = self.keys[slot as usize]
                .as_mut()
                .filter(|state| state.queued == due)
            else {
                continue;
            };
            if let Some(session) = state
                .open
                .take_if(|s| s.end.saturating_add(self.gap) < watermark)
            {
                state.closed = session.end;
                self.open_count -= 1;
                closed.push(ClosedSession {
                    lsn,
                    key: state.key.clone(),
                    session,
                    status: SessionStatus::ClosedTimeout,
                });
            }
            // An event for a closed session is late up to twice the gap after its end.
            let forgotten = state.closed.saturating_add(2 * self.gap);
            if state.closed != NEVER && forgotten < watermark {
                state.closed = NEVER;
            }
            match (&state.open, state.closed) {
                (Some(open), _) => {
                    let next = open.end.saturating_add(self.gap);
                    self.queue(slot, next);
                }
                (None, NEVER) => self.remove(slot),
                (None, _) => self.queue(slot, forgotten),
            }
        }
        closed[first..].sort_by(|a, b| (a.session.start, &a.key).cmp(&(b.session.start, &b.key)));
    }

    /// Closes one of the sessions that were silent for longest: that with the smallest key, so that
    /// the choice does not depend on the order of the heap or of slots.
    fn close_longest_silent(&mut self, lsn: Lsn, closed: &mut Vec<ClosedSession>) {
        let mut longest: Vec<u32> = Vec::new();
        let mut earliest = None;
        while let Some(Reverse((due, slot))) = self
            .due
            .peek()
            .copied()
            .filter(|Reverse((due, _))| earliest.is_none_or(|e| *due == e))
        {
            self.due.pop();
            let Some(state) = self.keys[slot as usize]
                .as_ref()
                .filter(|state| state.queued == due)
            else {
                continue;
            };
            let Some(open) = &state.open else {
                // Without an open session a key can be forgotten early.
                self.remove(slot);
                continue;
            };
            // The session may have been extended since the entry was queued.
            let now = open.end.saturating_add(self.gap);
            if now > due {
                self.queue(slot, now);
                continue;
            }
            earliest = Some(due);
            longest.push(slot);
        }
        longest.sort_unstable();
        longest.dedup();
        let Some(chosen) = longest
            .iter()
            .copied()
            .min_by(|a, b| self.key(*a).cmp(self.key(*b)))
        else {
            return;
        };
        for slot in longest.into_iter().filter(|slot| *slot != chosen) {
            self.queue(slot, earliest.unwrap_or_default());
        }
        let taken = self.keys[chosen as usize]
            .as_mut()
            .and_then(|state| Some((state.key.clone(), state.open.take()?)));
        if let Some((key, session)) = taken {
            self.open_count -= 1;
            closed.push(ClosedSession {
                lsn,
                key,
                session,
                status: SessionStatus::Abandoned,
            });
        }
        self.remove(chosen);
    }

    /// Closes everything, in the order of starts and keys.
    pub fn close_all(&mut self, lsn: Lsn, status: SessionStatus, closed: &mut Vec<ClosedSession>) {
        let first = closed.len();
        for state in std::mem::take(&mut self.keys).into_iter().flatten() {
            let KeyState { key, open, .. } = state;
            closed.extend(open.map(|session| ClosedSession {
                lsn,
                key,
                session,
                status,
            }));
        }
        self.free.clear();
        self.by_key.clear();
        self.due.clear();
        self.open_count = 0;
        closed[first..].sort_by(|a, b| (a.session.start, &a.key).cmp(&(b.session.start, &b.key)));
    }

    /// Rows of `<stream>.sessions`.
    pub fn rows(&self, closed: &[ClosedSession]) -> RecordBatch {
        let text = |values: Vec<Option<&str>>| Arc::new(StringArray::from(values)) as ArrayRef;
        let time = |values: Vec<Micros>| {
            Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC"))
        };
        let ids: Vec<String> = closed
            .iter()
            .map(|c| self.id(&c.key, c.session.first_lsn))
            .collect();
        let duration =
            |s: &Session| s.end.saturating_sub(s.start) as f64 / MICROS_PER_SECOND as f64;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(
                closed.iter().map(|c| c.lsn as i64),
            )),
            time(closed.iter().map(|c| c.session.start).collect()),
            text(ids.iter().map(|id| Some(id.as_str())).collect()),
            text(closed.iter().map(|c| Some(&*c.key)).collect()),
            text(closed.iter().map(|c| Some(c.status.name())).collect()),
            time(closed.iter().map(|c| c.session.end).collect()),
            Arc::new(Float64Array::from_iter_values(
                closed.iter().map(|c| duration(&c.session)),
            )),
            Arc::new(Int64Array::from_iter_values(
                closed.iter().map(|c| c.session.events as i64),
            )),
            text(closed.iter().map(|c| c.session.first.as_deref()).collect()),
            text(closed.iter().map(|c| c.session.last.as_deref()).collect()),
        ];
        RecordBatch::try_new(schema(), columns).expect("the columns are the schema's")
    }

    /// Rows of the open sessions.
    pub fn open_rows(&self, lsn: Lsn) -> RecordBatch {
        let open: Vec<ClosedSession> = self
            .keys
            .iter()
            .flatten()
            .filter_map(|state| {
                let session = state.open.clone()?;
                Some(ClosedSession {
                    lsn,
                    key: state.key.clone(),
                    session,
                    status: SessionStatus::Open,
                })
            })
            .collect();
        self.rows(&open)
    }

    /// Appends the state: watermark, number of keys, and per key, in their order: its text, the end
    /// of the session before, whether one is open, and the open one's numbers and texts. Numbers
    /// have eight bytes; a text has its length before it, `u64::MAX` if it is none.
    pub fn save(&self, out: &mut Vec<u8>) {
        let mut states: Vec<&KeyState> = self.keys.iter().flatten().collect();
        states.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        put(out, self.watermark as u64);
        put(out, states.len() as u64);
        for KeyState {
            key, open, closed, ..
        } in states
        {
            put_text(out, Some(key));
            put(out, *closed as u64);
            put(out, u64::from(open.is_some()));
            if let Some(open) = open {
                [
                    open.first_lsn,
                    open.start as u64,
                    open.end as u64,
                    open.events,
                ]
                .into_iter()
                .for_each(|n| put(out, n));
                put_text(out, open.first.as_deref());
                put_text(out, open.last.as_deref());
            }
        }
    }

    /// Reads what [`Self::save`] wrote into a fresh state; none if the bytes are not that.
    pub fn load(mut self, bytes: &mut &[u8]) -> Option<Self> {
        self.watermark = take(bytes)? as Micros;
        for _ in 0..take(bytes)? {
            let key: Arc<str> = take_text(bytes)??.into();
            let closed = take(bytes)? as Micros;
            let open = match take(bytes)? {
                0 => None,
                _ => {
                    let (first_lsn, start, end) =
                        (take(bytes)?, take(bytes)? as Micros, take(bytes)? as Micros);
                    let events = take(bytes)?;
                    let first = take_text(bytes)?;
                    let last = take_text(bytes)?;
                    let (first, last) = (self.text(first), self.text(last));
                    Some(Session {
                        first_lsn,
                        start,
                        end,
                        events,
                        first,
                        last,
                    })
                }
            };
            let due = match &open {
                Some(open) => open.end.saturating_add(self.gap),
                None => closed.saturating_add(2 * self.gap),
            };
            self.open_count += usize::from(open.is_some());
            let slot = self.insert(KeyState {
                key,
                open,
                closed,
                queued: NEVER,
            });
            self.queue(slot, due);
        }
        Some(self)
    }
}

fn hash(key: &str) -> u64 {
    // With a seed that is the same in every process.
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(key.as_bytes());
    hasher.finish()
}

fn put(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: Option<&str>) {
    put(out, text.map_or(u64::MAX, |text| text.len() as u64));
    out.extend_from_slice(text.unwrap_or_default().as_bytes());
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let (number, rest) = bytes.split_first_chunk::<8>()?;
    *bytes = rest;
    Some(u64::from_le_bytes(*number))
}

/// The outer none means that the bytes are truncated.
fn take_text<'a>(bytes: &mut &'a [u8]) -> Option<Option<&'a str>> {
    let length = take(bytes)?;
    if length == u64::MAX {
        return Some(None);
    }
    let (own, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
    *bytes = rest;
    Some(Some(std::str::from_utf8(own).ok()?))
}

/// Columns of `<stream>.sessions`, without partition columns. Times are in µs, `duration_s` in
/// seconds.
pub(crate) fn schema() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    Arc::new(Schema::new(vec![
        Field::new("lsn", DataType::Int64, true),
        Field::new("started", timestamp(), true),
        text("session_id"),
        text("key"),
        text("status"),
        Field::new("ended", timestamp(), true),
        Field::new("duration_s", DataType::Float64, true),
        Field::new("events", DataType::Int64, true),
        text("first"),
        text("last"),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sessions with a gap of 5, with their LSNs counted.
    struct World {
        sessions: Sessions,
        lsn: Lsn,
    }

    impl World {
        fn new(max_open: usize) -> Self {
            Self {
                sessions: Sessions::new("s", 5, max_open),
                lsn: 0,
            }
        }

        fn summary(closed: &[ClosedSession]) -> Vec<(Micros, Micros, SessionStatus)> {
            closed
                .iter()
                .map(|c| (c.session.start, c.session.end, c.status))
                .collect()
        }

        fn event(&mut self, key: &str, time: Micros) -> Vec<(Micros, Micros, SessionStatus)> {
            self.lsn += 1;
            let event = SessionEvent {
                lsn: self.lsn,
                key,
                time,
                track: None,
                opens: false,
            };
            let mut closed = Vec::new();
            self.sessions.observe(&event, &mut closed);
            Self::summary(&closed)
        }

        fn watermark(&mut self, watermark: Micros) -> Vec<(Micros, Micros, SessionStatus)> {
            let mut closed = Vec::new();
            self.sessions.advance(watermark, self.lsn, &mut closed);
            Self::summary(&closed)
        }

        fn open(&self) -> Vec<(Micros, Micros)> {
            let open = self.sessions.keys.iter().flatten();
            open.filter_map(|key| key.open.as_ref().map(|s| (s.start, s.end)))
                .collect()
        }
    }

    /// The first example of the module's documentation.
    #[test]
    fn events_within_the_gap_extend_the_open_session() {
        let mut world = World::new(10);
        for (time, open, closed) in [
            (10, (10, 10), vec![]),
            (14, (10, 14), vec![]),
            (7, (7, 14), vec![]),
            (1, (7, 14), vec![(1, 1, SessionStatus::Late)]),
            (30, (30, 30), vec![(7, 14, SessionStatus::ClosedTimeout)]),
        ] {
            assert_eq!(world.event("k", time), closed, "event at {time}");
            assert_eq!(world.open(), [open], "event at {time}");
        }
    }

    /// The second one.
    #[test]
    fn a_closed_session_is_remembered_for_twice_the_gap() {
        let closed = || {
            let mut world = World::new(10);
            for time in [10, 14, 7] {
                assert_eq!(world.event("k", time), []);
            }
            assert_eq!(world.watermark(19), []);
            assert_eq!(world.watermark(20), [(7, 14, SessionStatus::ClosedTimeout)]);
            world
        };
        let late = [(19, 19, SessionStatus::Late)];
        let mut world = closed();
        assert_eq!(world.event("k", 19), late);
        assert_eq!(world.event("k", 20), []);
        assert_eq!(world.open(), [(20, 20)]);
        let mut world = closed();
        world.watermark(24);
        assert_eq!(world.sessions.by_key.len(), 1);
        world.watermark(25);
        assert_eq!(world.sessions.by_key.len(), 0);
        assert_eq!(world.event("k", 19), late);
    }

    #[test]
    fn an_entry_of_the_queue_is_refreshed_when_its_time_comes() {
        let mut world = World::new(10);
        for time in [10, 12, 14] {
            world.event("k", time);
        }
        let due = |world: &World| world.sessions.due.peek().map(|Reverse((due, _))| *due);
        assert_eq!(due(&world), Some(15));
        assert_eq!(world.watermark(16), []);
        assert_eq!(due(&world), Some(19));
    }

    #[test]
    fn of_too_many_sessions_the_longest_silent_with_the_smallest_key_is_abandoned() {
        let mut world = World::new(2);
        assert_eq!(world.event("b", 10), []);
        assert_eq!(world.event("a", 10), []);
        assert_eq!(world.event("c", 12), [(10, 10, SessionStatus::Abandoned)]);
        assert!(world.sessions.find("a").is_none() && world.sessions.find("b").is_some());
    }
}
