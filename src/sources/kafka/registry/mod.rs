//! Schemas of a registry, by their ids: asked for by the thread that polls, fetched by another.
//!
//! While the registry does not answer, ids stay wanted, and their partitions wait. Only what the
//! registry itself says of an id decides about records: that it does not exist, or that it is not
//! Avro.

mod http;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use self::http::{Client, Fetched};
use super::super::SourceError;
use crate::avro::DatumReader;
use crate::bounds;
use crate::config::RegistryDef;
use crate::threads::OnEnd;

/// Bytes of a reason that are kept.
const MAX_REASON_BYTES: usize = 512;
/// Schemas that are remembered, and the bytes of their texts; the oldest make room for new ones.
const MAX_SCHEMAS: usize = 1_000;
const MAX_SCHEMA_BYTES: usize = 32 << 20;
/// Ids that are asked for at the same time; a partition beyond them asks again.
const MAX_WANTED: usize = 1_000;
/// An id that does not exist is asked for so often, since a schema that was just registered may not
/// have reached every server of a registry.
const MISSING_TRIES: u32 = 3;
const MISSING_DELAY: Duration = Duration::from_secs(1);
/// How long an id that does not exist is remembered.
const MISSING_TIME: Duration = Duration::from_secs(600);
/// Delays of further tries while the registry does not answer.
const MIN_RETRY_DELAY: Duration = Duration::from_millis(250);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(10);

/// What is known of an id.
pub(super) enum Lookup {
    Known(Arc<DatumReader>),
    /// Its data cannot be read, for this reason.
    Refused(Arc<str>),
    /// The registry was asked.
    Pending,
}

/// A registry with the schemas that were fetched.
pub(super) struct Registry {
    client: Client,
    state: Mutex<State>,
    /// An id is wanted, or nothing is any more.
    changed: Notify,
}

#[derive(Default)]
struct State {
    schemas: HashMap<u32, Entry>,
    /// In the order in which they were fetched.
    order: VecDeque<u32>,
    bytes: usize,
    wanted: VecDeque<u32>,
    /// Why the last question was not answered.
    failure: Option<String>,
    is_closed: bool,
    has_ended: bool,
}

struct Entry {
    schema: Result<Arc<DatumReader>, Arc<str>>,
    bytes: usize,
    /// When it is asked for again.
    expires_at: Option<Instant>,
}

impl State {
    fn lookup(&mut self, id: u32, now: Instant) -> Lookup {
        let entry = self.schemas.get(&id);
        let current = entry.filter(|entry| entry.expires_at.is_none_or(|at| at > now));
        match current.map(|entry| &entry.schema) {
            Some(Ok(reader)) => Lookup::Known(reader.clone()),
            Some(Err(reason)) => Lookup::Refused(reason.clone()),
            None => {
                if !self.wanted.contains(&id) && self.wanted.len() < MAX_WANTED {
                    self.wanted.push_back(id);
                }
                Lookup::Pending
            }
        }
    }

    fn insert(&mut self, id: u32, entry: Entry) {
        self.wanted.retain(|wanted| *wanted != id);
        self.remove(id);
        self.bytes += entry.bytes;
        self.schemas.insert(id, entry);
        self.order.push_back(id);
        while self.order.len() > MAX_SCHEMAS
            || self.bytes > MAX_SCHEMA_BYTES && self.order.len() > 1
        {
            if let Some(oldest) = self.order.front().copied() {
                self.remove(oldest);
            }
        }
    }

    fn remove(&mut self, id: u32) {
        if let Some(entry) = self.schemas.remove(&id) {
            self.bytes -= entry.bytes;
            self.order.retain(|other| *other != id);
        }
    }
}

impl Registry {
    /// # Errors
    ///
    /// The password's file cannot be read, or the client cannot be created.
    pub fn new(def: &RegistryDef) -> Result<Self, SourceError> {
        Ok(Self {
            client: Client::new(def)?,
            state: Mutex::default(),
            changed: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn url(&self) -> &str {
        self.client.url()
    }

    /// What is known of an id; the registry is asked for one that is not.
    pub fn lookup(&self, id: u32) -> Lookup {
        let found = self.lock().lookup(id, Instant::now());
        if matches!(found, Lookup::Pending) {
            self.changed.notify_one();
        }
        found
    }

    /// Why the last question was not answered.
    pub fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    /// Ends the thread that fetches.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_one();
    }

    /// Whether the thread that fetches has ended.
    pub fn has_ended(&self) -> bool {
        self.lock().has_ended
    }

    /// Fetches what is wanted, until closed: the body of a thread.
    ///
    /// # Errors
    ///
    /// Requests cannot be made at all.
    pub fn run(&self) -> Result<(), SourceError> {
        let _ended = OnEnd(|| self.lock().has_ended = true);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.map_err(|source| SourceError::Io {
            path: self.url().to_owned(),
            source,
        })?;
        runtime.block_on(async {
            let mut delay = MIN_RETRY_DELAY;
            let mut missing = HashMap::new();
            while let Some(id) = self.next().await {
                // A close ends it at once; what was fetched is then of no use.
                let fetched = tokio::select! {
                    fetched = self.client.fetch(id) => fetched,
                    () = self.closed() => return,
                };
                let pause = self.apply(id, fetched, &mut missing, &mut delay);
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = self.closed() => return,
                }
            }
        });
        Ok(())
    }

    /// The id to ask for next; none once closed.
    async fn next(&self) -> Option<u32> {
        loop {
            {
                let mut state = self.lock();
                if state.is_closed {
                    return None;
                }
                // One that fails again and again does not keep others from being asked for.
                if let Some(id) = state.wanted.pop_front() {
                    state.wanted.push_back(id);
                    return Some(id);
                }
            }
            self.changed.notified().await;
        }
    }

    async fn closed(&self) {
        while !self.lock().is_closed {
            self.changed.notified().await;
        }
    }

    /// Takes an answer; returns how long the next question waits.
    fn apply(
        &self,
        id: u32,
        fetched: Fetched,
        missing: &mut HashMap<u32, u32>,
        delay: &mut Duration,
    ) -> Duration {
        let url = self.url();
        let mut state = self.lock();
        if let Fetched::Unavailable(reason) = fetched {
            if state.failure.is_none() {
                tracing::warn!(
                    url,
                    id,
                    reason,
                    "the schema registry does not answer; retrying"
                );
            }
            state.failure = Some(reason);
            // Up to half as long again, so that many clients do not ask together.
            let pause = delay.mul_f64(1.0 + rand::random::<f64>() / 2.0);
            *delay = (*delay * 2).min(MAX_RETRY_DELAY);
            return pause;
        }
        if state.failure.take().is_some() {
            tracing::info!(url, "the schema registry answers again");
        }
        *delay = MIN_RETRY_DELAY;
        match fetched {
            Fetched::Schema { reader, bytes } => {
                tracing::debug!(url, id, "schema");
                state.insert(id, Entry::new(Ok(Arc::new(reader)), bytes));
            }
            Fetched::Refused(reason) => {
                // It may repeat what the schema says.
                let reason = bounds::truncate(&reason, MAX_REASON_BYTES).into_owned();
                tracing::warn!(
                    url,
                    id,
                    reason,
                    "messages of the schema become dead letters"
                );
                state.insert(id, Entry::new(Err(reason.into()), 0));
            }
            Fetched::Missing(reason) => {
                let tries = missing.entry(id).or_default();
                *tries += 1;
                if *tries < MISSING_TRIES {
                    return MISSING_DELAY;
                }
                missing.remove(&id);
                let reason = bounds::truncate(&reason, MAX_REASON_BYTES).into_owned();
                tracing::warn!(
                    url,
                    id,
                    reason,
                    "messages of the schema become dead letters"
                );
                let mut entry = Entry::new(Err(reason.into()), 0);
                entry.expires_at = Some(Instant::now() + MISSING_TIME);
                state.insert(id, entry);
            }
            Fetched::Unavailable(_) => {}
        }
        Duration::ZERO
    }
}

impl Entry {
    fn new(schema: Result<Arc<DatumReader>, Arc<str>>, bytes: usize) -> Self {
        Self {
            schema,
            bytes,
            expires_at: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(bytes: usize) -> Entry {
        let reader = DatumReader::new("\"int\"", &[]).expect("a schema");
        Entry::new(Ok(Arc::new(reader)), bytes)
    }

    #[test]
    fn an_id_is_wanted_until_it_is_known() {
        let (mut state, now) = (State::default(), Instant::now());
        for id in [7, 8, 7] {
            assert!(matches!(state.lookup(id, now), Lookup::Pending));
        }
        assert_eq!(state.wanted, [7, 8]);
        state.insert(7, known(10));
        assert_eq!(state.wanted, [8]);
        assert!(matches!(state.lookup(7, now), Lookup::Known(_)));
        let mut refused = Entry::new(Err("gone".into()), 0);
        refused.expires_at = Some(now + MISSING_TIME);
        state.insert(8, refused);
        assert!(matches!(state.lookup(8, now), Lookup::Refused(_)));
        // It is asked for again after a time.
        assert!(matches!(
            state.lookup(8, now + MISSING_TIME),
            Lookup::Pending
        ));
        assert_eq!(state.wanted, [8]);
    }

    #[test]
    fn schemas_and_wanted_ids_are_limited() {
        let (mut state, now) = (State::default(), Instant::now());
        for id in 0..MAX_SCHEMAS as u32 + 2 {
            state.insert(id, known(1));
        }
        assert_eq!(
            (state.schemas.len(), state.bytes),
            (MAX_SCHEMAS, MAX_SCHEMAS)
        );
        assert!(matches!(state.lookup(1, now), Lookup::Pending));
        assert!(matches!(state.lookup(2, now), Lookup::Known(_)));
        // A large one takes the room of all others, and stays itself.
        state.insert(5_000, known(MAX_SCHEMA_BYTES + 1));
        assert_eq!(state.schemas.len(), 1);
        for id in 0..MAX_WANTED as u32 + 10 {
            state.lookup(id, now);
        }
        assert_eq!(state.wanted.len(), MAX_WANTED);
    }
}
