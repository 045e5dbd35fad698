//! Sessions: events of one key with no more than a gap between them, in the order of LSNs. A
//! session is known by the record that began it; it never merges with another one and never changes
//! its id.

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

use crate::bounds::kept;
use crate::event::{Lsn, MICROS_PER_SECOND, Micros};
use crate::schema::types::timestamp;

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Open,
    /// Nothing came for longer than the gap.
    ClosedTimeout,
    /// An event came that begins a new one.
    ClosedOnOpenEvent,
    /// Its one event came for a session that was over.
    Late,
    /// Its stream's declaration changed, or there were too many.
    Abandoned,
}

impl Status {
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
    /// The record that began it.
    begun: Lsn,
    start: Micros,
    end: Micros,
    events: u64,
    first: Option<Arc<str>>,
    last: Option<Arc<str>>,
}

/// What is known of a key.
#[derive(Debug, Clone)]
struct Known {
    key: Arc<str>,
    open: Option<Session>,
    /// End of the session before, while an event for it can still come; [`NEVER`] where none is.
    closed: Micros,
    /// The time of its entry in the queue; other entries of it are void.
    queued: Micros,
}

const NEVER: Micros = Micros::MIN;

/// A session that is over, at a record.
#[derive(Debug, Clone)]
pub struct Closed {
    lsn: Lsn,
    key: Arc<str>,
    session: Session,
    status: Status,
}

/// An event as this operator sees it.
pub struct Seen<'a> {
    pub lsn: Lsn,
    pub key: &'a str,
    pub time: Micros,
    pub track: Option<&'a str>,
    /// It begins a new session in any case.
    pub opens: bool,
}

/// The open sessions of one stream.
#[derive(Debug, Clone)]
pub struct Sessions {
    stream: Arc<str>,
    gap: Micros,
    max_open: usize,
    slots: Vec<Option<Known>>,
    free: Vec<u32>,
    by_key: HashTable<u32>,
    open: usize,
    /// (a time at which a key may have something to end, its slot): brought up to date when its
    /// time comes.
    due: BinaryHeap<Reverse<(Micros, u32)>>,
    /// Texts that sessions tell, each once.
    texts: HashMap<Box<str>, Arc<str>>,
    mark: Micros,
}

/// Different texts kept once; beyond it each session has its own.
const MAX_TEXTS: usize = 4_096;

impl Sessions {
    pub fn new(stream: &str, gap: Micros, max_open: usize) -> Self {
        Self {
            stream: stream.into(),
            gap,
            max_open,
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashTable::new(),
            open: 0,
            due: BinaryHeap::new(),
            texts: HashMap::new(),
            mark: Micros::MIN,
        }
    }

    /// Open sessions.
    pub fn open(&self) -> usize {
        self.open
    }

    pub fn memory_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Option<Known>>()
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
        self.slots[slot as usize]
            .as_ref()
            .map_or("", |known| &known.key)
    }

    fn insert(&mut self, known: Known) -> u32 {
        let hashed = hash(&known.key);
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(known);
                slot
            }
            None => {
                self.slots.push(Some(known));
                self.slots.len() as u32 - 1
            }
        };
        let slots = &self.slots;
        self.by_key.insert_unique(hashed, slot, |s| {
            slots[*s as usize]
                .as_ref()
                .map_or(0, |known| hash(&known.key))
        });
        slot
    }

    /// Looks at a key again behind this time.
    fn queue(&mut self, slot: u32, due: Micros) {
        if let Some(known) = &mut self.slots[slot as usize] {
            known.queued = due;
            self.due.push(Reverse((due, slot)));
        }
    }

    fn remove(&mut self, slot: u32) {
        let Some(known) = self.slots[slot as usize].take() else {
            return;
        };
        if let Ok(found) = self.by_key.find_entry(hash(&known.key), |s| *s == slot) {
            found.remove();
        }
        self.free.push(slot);
    }

    /// Of a stream's session that the record `begun` began.
    pub fn id(&self, key: &str, begun: Lsn) -> String {
        let mut hash = Sha256::new();
        hash.update(self.stream.as_bytes());
        hash.update([0]);
        hash.update(kept(key).as_bytes());
        hash.update([0]);
        hash.update(begun.to_le_bytes());
        hash.finalize()
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    fn text(&mut self, text: Option<&str>) -> Option<Arc<str>> {
        let text = text?;
        if let Some(known) = self.texts.get(text) {
            return Some(known.clone());
        }
        let new: Arc<str> = text.into();
        if self.texts.len() < MAX_TEXTS {
            self.texts.insert(text.into(), new.clone());
        }
        Some(new)
    }

    /// Takes an event in; gives its session's first record.
    pub fn observe(&mut self, seen: &Seen<'_>, closed: &mut Vec<Closed>) -> Lsn {
        let Seen { lsn, time, .. } = *seen;
        let what = self.text(seen.track.map(kept).as_deref());
        let own_key = kept(seen.key);
        let gap = self.gap;
        let slot = self.find(&own_key);
        let known = slot.and_then(|slot| self.slots[slot as usize].as_mut());
        let key: Arc<str> = known
            .as_ref()
            .map_or_else(|| own_key.as_ref().into(), |known| known.key.clone());
        let fresh = Session {
            begun: lsn,
            start: time,
            end: time,
            events: 1,
            first: what.clone(),
            last: what.clone(),
        };
        let before = known.as_ref().map_or(NEVER, |known| known.closed);
        if let Some(open) = known.and_then(|known| known.open.as_mut()) {
            if time < open.start.saturating_sub(gap) {
                closed.push(Closed {
                    lsn,
                    key,
                    session: fresh,
                    status: Status::Late,
                });
                return lsn;
            }
            let is_over = time > open.end.saturating_add(gap);
            if !seen.opens && !is_over {
                if time < open.start {
                    (open.start, open.first) = (time, what.clone());
                }
                if time >= open.end {
                    (open.end, open.last) = (time, what);
                }
                open.events += 1;
                return open.begun;
            }
            let status = if is_over {
                Status::ClosedTimeout
            } else {
                Status::ClosedOnOpenEvent
            };
            let session = std::mem::replace(open, fresh);
            closed.push(Closed {
                lsn,
                key,
                session,
                status,
            });
            return lsn;
        }
        let is_for_closed = before != NEVER && time <= before.saturating_add(gap) && !seen.opens;
        if is_for_closed || time.saturating_add(gap) < self.mark {
            closed.push(Closed {
                lsn,
                key,
                session: fresh,
                status: Status::Late,
            });
            return lsn;
        }
        let due = time.saturating_add(gap);
        match slot.and_then(|slot| Some((slot, self.slots[slot as usize].as_mut()?))) {
            Some((slot, known)) => {
                known.open = Some(fresh);
                if known.queued > due {
                    self.queue(slot, due);
                }
            }
            None => {
                let slot = self.insert(Known {
                    key,
                    open: Some(fresh),
                    closed: NEVER,
                    queued: NEVER,
                });
                self.queue(slot, due);
            }
        }
        self.open += 1;
        if self.open > self.max_open {
            self.close_longest_silent(lsn, closed);
        }
        lsn
    }

    /// Closes what the watermark has left behind.
    pub fn advance(&mut self, mark: Micros, lsn: Lsn, closed: &mut Vec<Closed>) {
        if mark <= self.mark {
            return;
        }
        self.mark = mark;
        let first = closed.len();
        while let Some(Reverse((due, slot))) = self
            .due
            .peek()
            .copied()
            .filter(|Reverse((due, _))| *due < mark)
        {
            self.due.pop();
            let Some(known) = self.slots[slot as usize]
                .as_mut()
                .filter(|known| known.queued == due)
            else {
                continue;
            };
            if let Some(session) = known
                .open
                .take_if(|s| s.end.saturating_add(self.gap) < mark)
            {
                known.closed = session.end;
                self.open -= 1;
                closed.push(Closed {
                    lsn,
                    key: known.key.clone(),
                    session,
                    status: Status::ClosedTimeout,
                });
            }
            // An event for a closed one is late up to twice the gap behind it.
            let forgotten = known.closed.saturating_add(2 * self.gap);
            if known.closed != NEVER && forgotten < mark {
                known.closed = NEVER;
            }
            match (&known.open, known.closed) {
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

    /// Of the sessions that were silent for longest the one of the least key.
    fn close_longest_silent(&mut self, lsn: Lsn, closed: &mut Vec<Closed>) {
        let mut longest: Vec<u32> = Vec::new();
        let mut least = None;
        while let Some(Reverse((due, slot))) = self
            .due
            .peek()
            .copied()
            .filter(|Reverse((due, _))| least.is_none_or(|l| *due == l))
        {
            self.due.pop();
            let Some(known) = self.slots[slot as usize]
                .as_ref()
                .filter(|known| known.queued == due)
            else {
                continue;
            };
            let Some(open) = &known.open else {
                // Nothing open here: it can be forgotten early.
                self.remove(slot);
                continue;
            };
            // An entry may lie before what its session has become.
            let now = open.end.saturating_add(self.gap);
            if now > due {
                self.queue(slot, now);
                continue;
            }
            least = Some(due);
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
            self.queue(slot, least.unwrap_or_default());
        }
        let taken = self.slots[chosen as usize]
            .as_mut()
            .and_then(|known| Some((known.key.clone(), known.open.take()?)));
        if let Some((key, session)) = taken {
            self.open -= 1;
            closed.push(Closed {
                lsn,
                key,
                session,
                status: Status::Abandoned,
            });
        }
        self.remove(chosen);
    }

    /// Closes everything, in the order of starts and keys.
    pub fn close_all(&mut self, lsn: Lsn, status: Status, closed: &mut Vec<Closed>) {
        let first = closed.len();
        for known in std::mem::take(&mut self.slots).into_iter().flatten() {
            let Known { key, open, .. } = known;
            closed.extend(open.map(|session| Closed {
                lsn,
                key,
                session,
                status,
            }));
        }
        self.free.clear();
        self.by_key.clear();
        self.due.clear();
        self.open = 0;
        closed[first..].sort_by(|a, b| (a.session.start, &a.key).cmp(&(b.session.start, &b.key)));
    }

    /// Rows of `<stream>.sessions`.
    pub fn rows(&self, closed: &[Closed]) -> RecordBatch {
        let text = |values: Vec<Option<&str>>| Arc::new(StringArray::from(values)) as ArrayRef;
        let time = |values: Vec<Micros>| {
            Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC"))
        };
        let ids: Vec<String> = closed
            .iter()
            .map(|c| self.id(&c.key, c.session.begun))
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

    /// The sessions that are open, as rows.
    pub fn open_rows(&self, lsn: Lsn) -> RecordBatch {
        let open: Vec<Closed> = self
            .slots
            .iter()
            .flatten()
            .filter_map(|known| {
                let session = known.open.clone()?;
                Some(Closed {
                    lsn,
                    key: known.key.clone(),
                    session,
                    status: Status::Open,
                })
            })
            .collect();
        self.rows(&open)
    }

    /// Watermark, number of keys, and per key, in their order: its text, the end of the session
    /// before, whether one is open, and of that its numbers and texts. Numbers have eight bytes, a
    /// text its length before it, none the greatest length.
    pub fn save(&self, out: &mut Vec<u8>) {
        let mut known: Vec<&Known> = self.slots.iter().flatten().collect();
        known.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        put(out, self.mark as u64);
        put(out, known.len() as u64);
        for Known {
            key, open, closed, ..
        } in known
        {
            put_text(out, Some(key));
            put(out, *closed as u64);
            put(out, u64::from(open.is_some()));
            if let Some(open) = open {
                [open.begun, open.start as u64, open.end as u64, open.events]
                    .into_iter()
                    .for_each(|n| put(out, n));
                put_text(out, open.first.as_deref());
                put_text(out, open.last.as_deref());
            }
        }
    }

    /// Reads what [`Self::save`] wrote into a fresh state.
    pub fn load(mut self, bytes: &mut &[u8]) -> Option<Self> {
        self.mark = take(bytes)? as Micros;
        for _ in 0..take(bytes)? {
            let key: Arc<str> = take_text(bytes)??.into();
            let closed = take(bytes)? as Micros;
            let open = match take(bytes)? {
                0 => None,
                _ => {
                    let (begun, start, end) =
                        (take(bytes)?, take(bytes)? as Micros, take(bytes)? as Micros);
                    let events = take(bytes)?;
                    let first = take_text(bytes)?;
                    let last = take_text(bytes)?;
                    let (first, last) = (self.text(first), self.text(last));
                    Some(Session {
                        begun,
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
            self.open += usize::from(open.is_some());
            let slot = self.insert(Known {
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
    // With keys that are the same in every process.
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

/// The outer none: it is cut short.
fn take_text<'a>(bytes: &mut &'a [u8]) -> Option<Option<&'a str>> {
    let length = take(bytes)?;
    if length == u64::MAX {
        return Some(None);
    }
    let (own, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
    *bytes = rest;
    Some(Some(std::str::from_utf8(own).ok()?))
}

/// Columns of `<stream>.sessions`, without partition columns.
pub fn schema() -> SchemaRef {
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
