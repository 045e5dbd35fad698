//! Sessions: events of one key with no more than a gap between them, in the order of LSNs. A session is known by the record that
//! began it; it never merges with another one and never changes its id.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

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

#[derive(Debug, Clone, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Known {
    open: Option<Session>,
    /// End of the session before, while an event for it can still come.
    closed: Option<Micros>,
}

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
    pub what: Option<&'a str>,
    /// It begins a new session in any case.
    pub opens: bool,
}

/// The open sessions of one stream.
#[derive(Debug, Clone)]
pub struct Sessions {
    stream: Arc<str>,
    gap: Micros,
    max_open: usize,
    keys: HashMap<Arc<str>, Known>,
    open: usize,
    /// (a time at which a key may have something to end, key): one entry a key, brought up to date when its time comes.
    due: BinaryHeap<Reverse<(Micros, Arc<str>)>>,
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
            keys: HashMap::new(),
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
        self.keys.capacity() * (size_of::<(Arc<str>, Known)>() + 1) + self.keys.len() * 40 + self.due.len() * 24
    }

    /// Of a stream's session that the record `begun` began.
    pub fn id(&self, key: &str, begun: Lsn) -> String {
        let mut hash = Sha256::new();
        hash.update(self.stream.as_bytes());
        hash.update([0]);
        hash.update(key.as_bytes());
        hash.update([0]);
        hash.update(begun.to_le_bytes());
        hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
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
        let what = self.text(seen.what);
        let gap = self.gap;
        let key: Arc<str> = match self.keys.get_key_value(seen.key) {
            Some((key, _)) => key.clone(),
            None => seen.key.into(),
        };
        let fresh = Session { begun: lsn, start: time, end: time, events: 1, first: what.clone(), last: what.clone() };
        let late = |fresh: Session| Closed { lsn, key: key.clone(), session: fresh, status: Status::Late };
        let known = self.keys.get_mut(&key);
        let is_due = known.is_none();
        let before = known.as_ref().and_then(|k| k.closed);
        match known.and_then(|k| k.open.as_mut()) {
            Some(open) => {
                if time < open.start.saturating_sub(gap) {
                    closed.push(late(fresh));
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
                let status = if is_over { Status::ClosedTimeout } else { Status::ClosedOnOpenEvent };
                let session = std::mem::replace(open, fresh);
                closed.push(Closed { lsn, key, session, status });
                lsn
            }
            None => {
                let is_for_closed = before.is_some_and(|end| time <= end.saturating_add(gap)) && !seen.opens;
                if is_for_closed || time.saturating_add(gap) < self.mark {
                    closed.push(late(fresh));
                    return lsn;
                }
                let known = self.keys.entry(key.clone()).or_insert(Known { open: None, closed: None });
                known.open = Some(fresh);
                self.open += 1;
                if is_due {
                    self.due.push(Reverse((time.saturating_add(gap), key)));
                }
                if self.open > self.max_open {
                    self.close_longest_silent(lsn, closed);
                }
                lsn
            }
        }
    }

    /// Closes what the watermark has left behind.
    pub fn advance(&mut self, mark: Micros, lsn: Lsn, closed: &mut Vec<Closed>) {
        if mark <= self.mark {
            return;
        }
        self.mark = mark;
        let first = closed.len();
        while let Some(Reverse((_, key))) = self.due.peek().filter(|Reverse((due, _))| *due < mark).cloned() {
            self.due.pop();
            let Some(known) = self.keys.get_mut(&key) else { continue };
            if let Some(session) = known.open.take_if(|s| s.end.saturating_add(self.gap) < mark) {
                known.closed = Some(session.end);
                self.open -= 1;
                closed.push(Closed { lsn, key: key.clone(), session, status: Status::ClosedTimeout });
            }
            // An event for a closed one is late up to twice the gap behind it.
            known.closed = known.closed.filter(|end| end.saturating_add(2 * self.gap) >= mark);
            let next = known.open.as_ref().map(|s| s.end.saturating_add(self.gap));
            match next.or(known.closed.map(|end| end.saturating_add(2 * self.gap))) {
                Some(next) => self.due.push(Reverse((next, key))),
                None => drop(self.keys.remove(&key)),
            }
        }
        closed[first..].sort_by(|a, b| (a.session.start, &a.key).cmp(&(b.session.start, &b.key)));
    }

    fn close_longest_silent(&mut self, lsn: Lsn, closed: &mut Vec<Closed>) {
        // Entries may lie before what their key's session has become; the least that is true is found by bringing them up to date.
        while let Some(Reverse((due, key))) = self.due.pop() {
            let Some(known) = self.keys.get_mut(&key) else { continue };
            let Some(open) = &known.open else {
                // Nothing open here: it can be forgotten early.
                self.keys.remove(&key);
                continue;
            };
            let now = open.end.saturating_add(self.gap);
            if now > due {
                self.due.push(Reverse((now, key)));
                continue;
            }
            if let Some(session) = known.open.take() {
                self.open -= 1;
                closed.push(Closed { lsn, key: key.clone(), session, status: Status::Abandoned });
            }
            self.keys.remove(&key);
            return;
        }
    }

    /// Closes everything, in the order of starts and keys.
    pub fn close_all(&mut self, lsn: Lsn, status: Status, closed: &mut Vec<Closed>) {
        let first = closed.len();
        for (key, known) in self.keys.drain() {
            closed.extend(known.open.map(|session| Closed { lsn, key, session, status }));
        }
        self.due.clear();
        self.open = 0;
        closed[first..].sort_by(|a, b| (a.session.start, &a.key).cmp(&(b.session.start, &b.key)));
    }

    /// Rows of `<stream>.sessions`.
    pub fn rows(&self, closed: &[Closed]) -> RecordBatch {
        let text = |values: Vec<Option<&str>>| Arc::new(StringArray::from(values)) as ArrayRef;
        let time = |values: Vec<Micros>| Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC"));
        let ids: Vec<String> = closed.iter().map(|c| self.id(&c.key, c.session.begun)).collect();
        let duration = |s: &Session| s.end.saturating_sub(s.start) as f64 / MICROS_PER_SECOND as f64;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(closed.iter().map(|c| c.lsn as i64))),
            time(closed.iter().map(|c| c.session.start).collect()),
            text(ids.iter().map(|id| Some(id.as_str())).collect()),
            text(closed.iter().map(|c| Some(&*c.key)).collect()),
            text(closed.iter().map(|c| Some(c.status.name())).collect()),
            time(closed.iter().map(|c| c.session.end).collect()),
            Arc::new(Float64Array::from_iter_values(closed.iter().map(|c| duration(&c.session)))),
            Arc::new(Int64Array::from_iter_values(closed.iter().map(|c| c.session.events as i64))),
            text(closed.iter().map(|c| c.session.first.as_deref()).collect()),
            text(closed.iter().map(|c| c.session.last.as_deref()).collect()),
        ];
        RecordBatch::try_new(schema(), columns).expect("the columns are the schema's")
    }

    /// The sessions that are open, as rows.
    pub fn open_rows(&self, lsn: Lsn) -> RecordBatch {
        let open: Vec<Closed> = self
            .keys
            .iter()
            .filter_map(|(key, known)| {
                let session = known.open.clone()?;
                Some(Closed { lsn, key: key.clone(), session, status: Status::Open })
            })
            .collect();
        self.rows(&open)
    }

    pub fn save(&self, out: &mut Vec<u8>) {
        let mut keys: Vec<(&Arc<str>, &Known)> = self.keys.iter().collect();
        keys.sort_by_key(|(key, _)| *key);
        let saved = serde_json::to_vec(&(self.mark, keys)).expect("plain data becomes JSON");
        out.extend_from_slice(&(saved.len() as u64).to_le_bytes());
        out.extend_from_slice(&saved);
    }

    /// Reads what [`Self::save`] wrote into a fresh state.
    pub fn load(mut self, bytes: &mut &[u8]) -> Option<Self> {
        let (length, rest) = bytes.split_first_chunk::<8>()?;
        let (own, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        *bytes = rest;
        let (mark, keys): (Micros, Vec<(Arc<str>, Known)>) = serde_json::from_slice(own).ok()?;
        self.mark = mark;
        for (key, mut known) in keys {
            if let Some(open) = &mut known.open {
                open.first = self.text(open.first.as_deref());
                open.last = self.text(open.last.as_deref());
            }
            let due = match (&known.open, known.closed) {
                (Some(open), _) => open.end.saturating_add(self.gap),
                (None, Some(end)) => end.saturating_add(2 * self.gap),
                (None, None) => continue,
            };
            self.open += usize::from(known.open.is_some());
            self.due.push(Reverse((due, key.clone())));
            self.keys.insert(key, known);
        }
        Some(self)
    }
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
