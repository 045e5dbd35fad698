//! Which events are duplicates: an earlier event of the same key has the same content and a version
//! within the tolerance.
//!
//! Per key the last four events that were not duplicates are remembered. Keys are bounded; the least
//! recently seen is evicted first.
//!
//! ```text
//! tolerance 500; key, content, version
//! 1  x  10,300    new
//! 1  x  10,000    duplicate
//! 1  y  10,400    new
//! 1  x  10,801    new: 501 from 10,300, which is still remembered
//! ```
//!
//! A duplicate refreshes its key, but not what is remembered: x at 10,000 is not. Versions that
//! creep (10,300; 10,700; 11,100) are compared with the first: the third is new. With two keys at
//! most, after events of the keys 1, 2, 1 and 3, key 2 is forgotten, and its next event is new.
//!
//! Keys and contents are 64-bit hashes (a bigint key is itself). Two events are taken for duplicates
//! by mistake only where the hashes of their keys or of their contents collide.

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch};
use hashbrown::HashTable;
use sha2::{Digest, Sha256};

use super::values::{canonical, number};
use crate::schema::Stream;

/// Events remembered per key.
const MAX_REMEMBERED: usize = 4;
const NONE: u32 = u32::MAX;
/// Bytes of a saved key with one event.
const MIN_SAVED_BYTES: usize = 16 + 1 + 16;

/// Content and version of an event.
type EventVersion = (u64, i64);

/// A key with its latest events that were not duplicates. Most keys have one.
#[derive(Debug, Clone)]
struct Slot {
    key: u64,
    /// The oldest that is remembered.
    first: EventVersion,
    /// Those after it.
    later: Option<Box<LaterEvents>>,
    /// Neighbours in the order in which keys were last seen.
    older: u32,
    newer: u32,
}

/// Further remembered events of a key, newest last.
#[derive(Debug, Clone, Default)]
struct LaterEvents {
    events: [EventVersion; MAX_REMEMBERED - 1],
    count: usize,
}

impl Slot {
    fn new(key: u64, first: EventVersion) -> Self {
        Self {
            key,
            first,
            later: None,
            older: NONE,
            newer: NONE,
        }
    }

    fn events(&self) -> impl Iterator<Item = EventVersion> {
        std::iter::once(self.first).chain(
            self.later
                .iter()
                .flat_map(|later| later.events[..later.count].iter().copied()),
        )
    }

    fn remember(&mut self, event: EventVersion) {
        let later = self.later.get_or_insert_default();
        if later.count < later.events.len() {
            later.events[later.count] = event;
            later.count += 1;
        } else {
            self.first = later.events[0];
            later.events.rotate_left(1);
            later.events[MAX_REMEMBERED - 2] = event;
        }
    }
}

/// The remembered keys of one stream.
#[derive(Debug, Clone)]
pub(super) struct Deduplicator {
    slots: Vec<Slot>,
    /// Where the slot of a key is.
    by_key: HashTable<u32>,
    oldest: u32,
    newest: u32,
    max_keys: usize,
    /// Tolerance between versions, in their unit.
    within: i64,
}

/// Spreads keys over the table; keys that are numbers are often consecutive.
fn spread(key: u64) -> u64 {
    // The finalizer of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
    // generators, 2014).
    let key = (key ^ (key >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let key = (key ^ (key >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    key ^ (key >> 31)
}

impl Deduplicator {
    /// `within` is in the version's unit.
    pub fn new(max_keys: usize, within: i64) -> Self {
        let max_keys = max_keys.clamp(1, NONE as usize - 1);
        Self {
            slots: Vec::new(),
            by_key: HashTable::new(),
            oldest: NONE,
            newest: NONE,
            max_keys,
            within,
        }
    }

    /// Observes an event; true if it is a duplicate. A key is a number or a hash, a content a hash.
    pub fn observe(&mut self, key: u64, content: u64, version: i64) -> bool {
        let found = self
            .by_key
            .find(spread(key), |at| self.slots[*at as usize].key == key)
            .copied();
        let Some(at) = found else {
            let at = self.take_slot(Slot::new(key, (content, version)));
            self.link_newest(at);
            return false;
        };
        self.unlink(at);
        self.link_newest(at);
        let slot = &mut self.slots[at as usize];
        let is_duplicate = slot
            .events()
            .any(|(c, v)| c == content && v.abs_diff(version) <= self.within as u64);
        if !is_duplicate {
            slot.remember((content, version));
        }
        is_duplicate
    }

    /// Keys remembered.
    pub fn keys(&self) -> usize {
        self.by_key.len()
    }

    fn take_slot(&mut self, slot: Slot) -> u32 {
        let key = slot.key;
        let at = if self.slots.len() < self.max_keys {
            if self.slots.len() == self.slots.capacity() {
                // By a quarter, not to twice: memory is charged by keys.
                self.slots.reserve_exact(
                    (self.slots.len() / 4)
                        .max(64)
                        .min(self.max_keys - self.slots.len()),
                );
            }
            self.slots.push(slot);
            self.slots.len() as u32 - 1
        } else {
            let at = self.oldest;
            self.unlink(at);
            let evicted = self.slots[at as usize].key;
            if let Ok(entry) = self
                .by_key
                .find_entry(spread(evicted), |other| *other == at)
            {
                entry.remove();
            }
            self.slots[at as usize] = slot;
            at
        };
        let slots = &self.slots;
        self.by_key
            .insert_unique(spread(key), at, |other| spread(slots[*other as usize].key));
        at
    }

    fn unlink(&mut self, at: u32) {
        let Slot { older, newer, .. } = self.slots[at as usize];
        match self.slots.get_mut(older as usize) {
            Some(slot) => slot.newer = newer,
            None => self.oldest = newer,
        }
        match self.slots.get_mut(newer as usize) {
            Some(slot) => slot.older = older,
            None => self.newest = older,
        }
    }

    fn link_newest(&mut self, at: u32) {
        let before = std::mem::replace(&mut self.newest, at);
        let slot = &mut self.slots[at as usize];
        (slot.older, slot.newer) = (before, NONE);
        match self.slots.get_mut(before as usize) {
            Some(slot) => slot.newer = at,
            None => self.oldest = at,
        }
    }

    /// Appends the state, oldest key first: count u32, then per key the key as u128, count u8, and
    /// per event content u64 and version i64; little-endian. 1,000 keys of one event: 33,004 bytes.
    pub fn save(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.by_key.len() as u32).to_le_bytes());
        let mut at = self.oldest;
        while let Some(slot) = self.slots.get(at as usize) {
            out.extend_from_slice(&u128::from(slot.key).to_le_bytes());
            out.push(slot.events().count() as u8);
            for (content, version) in slot.events() {
                out.extend_from_slice(&content.to_le_bytes());
                out.extend_from_slice(&version.to_le_bytes());
            }
            at = slot.newer;
        }
    }

    /// Reads what [`Deduplicator::save`] wrote into an empty state; none if the bytes are not that.
    pub fn load(mut self, bytes: &mut &[u8]) -> Option<Self> {
        fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
            let (head, rest) = bytes.split_first_chunk::<N>()?;
            *bytes = rest;
            Some(*head)
        }
        fn take_event(bytes: &mut &[u8]) -> Option<EventVersion> {
            Some((
                u64::from_le_bytes(take(bytes)?),
                i64::from_le_bytes(take(bytes)?),
            ))
        }
        let keys = u32::from_le_bytes(take(bytes)?);
        // Reserves as many as the bytes can hold: growing would take as much memory again.
        let capacity = (keys as usize)
            .min(self.max_keys)
            .min(bytes.len() / MIN_SAVED_BYTES);
        self.slots.reserve_exact(capacity);
        self.by_key.reserve(capacity, |_| 0);
        for _ in 0..keys {
            let key = u128::from_le_bytes(take(bytes)?) as u64;
            let [count] = take(bytes)?;
            if !(1..=MAX_REMEMBERED).contains(&usize::from(count)) {
                return None;
            }
            let mut slot = Slot::new(key, take_event(bytes)?);
            for _ in 1..count {
                slot.remember(take_event(bytes)?);
            }
            let at = self.take_slot(slot);
            self.link_newest(at);
        }
        Some(self)
    }
}

/// Key, content and version of rows, as they are compared.
pub(super) struct DuplicateHashes<'a> {
    key: &'a ArrayRef,
    content: Vec<&'a ArrayRef>,
    version: Option<&'a ArrayRef>,
    scratch: Vec<u8>,
}

impl<'a> DuplicateHashes<'a> {
    /// Of a stream's decoded rows; none where it declares no `duplicates`.
    pub fn new(stream: &Stream, rows: &'a RecordBatch) -> Option<Self> {
        let columns = stream.duplicates()?;
        Some(Self {
            key: rows.column(columns.key),
            content: columns.same.iter().map(|c| rows.column(*c)).collect(),
            version: columns.version.map(|c| rows.column(c)),
            scratch: Vec::new(),
        })
    }

    /// None for an event without a key, which is never a duplicate.
    pub fn at(&mut self, row: usize) -> Option<(u64, u64, i64)> {
        if self.key.is_null(row) {
            return None;
        }
        let key = match self.key.as_any().downcast_ref::<Int64Array>() {
            Some(numbers) => numbers.value(row) as u64,
            None => {
                self.scratch.clear();
                canonical(self.key, row, &mut self.scratch);
                hash(&self.scratch)
            }
        };
        self.scratch.clear();
        for column in &self.content {
            canonical(column, row, &mut self.scratch);
        }
        let version = self.version.map_or(0, |column| number(column, row));
        Some((key, hash(&self.scratch), version))
    }
}

fn hash(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(*Sha256::digest(bytes).first_chunk().expect("32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::DUPLICATE_KEY_BYTES;
    use proptest::prelude::*;

    #[test]
    fn equal_content_within_the_tolerance_is_a_duplicate() {
        let mut duplicates = Deduplicator::new(10, 500);
        assert!(!duplicates.observe(1, 7, 10_300));
        assert!(duplicates.observe(1, 7, 10_000));
        assert!(!duplicates.observe(1, 8, 10_400));
        assert!(duplicates.observe(1, 7, 10_800));
        assert!(!duplicates.observe(1, 7, 10_801));
    }

    #[test]
    fn a_key_takes_no_more_memory_than_it_is_charged() {
        // The table is at most half empty, each entry with its control byte.
        let in_table = 2 * (size_of::<u32>() + 1);
        assert!(
            size_of::<Slot>() + in_table <= DUPLICATE_KEY_BYTES,
            "{}",
            size_of::<Slot>()
        );
    }

    /// The definition, word for word, over lists.
    #[derive(Default)]
    struct Model {
        keys: Vec<(u64, Vec<(u64, i64)>)>,
    }

    impl Model {
        fn observe(&mut self, max_keys: usize, key: u64, content: u64, version: i64) -> bool {
            let mut seen = match self.keys.iter().position(|(k, _)| *k == key) {
                Some(at) => self.keys.remove(at).1,
                None => Vec::new(),
            };
            if self.keys.len() == max_keys {
                self.keys.remove(0);
            }
            let last = &seen[seen.len().saturating_sub(4)..];
            let known = last
                .iter()
                .any(|(c, v)| *c == content && (v - version).abs() <= 3);
            if !known {
                seen.push((content, version));
            }
            self.keys.push((key, seen));
            known
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_its_definition_also_over_a_restart(
            events in proptest::collection::vec((0u64..8, 0u64..3, 0i64..30), 0..200),
            max_keys in 1usize..8,
            restart in 0usize..200,
        ) {
            let (mut duplicates, mut model) = (Deduplicator::new(max_keys, 3), Model::default());
            for (n, (key, content, version)) in events.into_iter().enumerate() {
                if n == restart {
                    let mut bytes = Vec::new();
                    duplicates.save(&mut bytes);
                    duplicates = Deduplicator::new(max_keys, 3).load(&mut bytes.as_slice()).expect("its own bytes");
                }
                prop_assert_eq!(duplicates.observe(key, content, version), model.observe(max_keys, key, content, version));
            }
        }

        #[test]
        fn any_bytes_are_a_state_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Deduplicator::new(4, 1).load(&mut bytes.as_slice());
        }
    }
}
