//! Which events say nothing new: an earlier event of the same key has the same content and a version within the tolerance.
//!
//! Per key the last four events that said something are kept. Keys are bounded; the one unseen for longest leaves first.

use std::collections::HashMap;

/// What is remembered of a key's events that said something new, newest last.
const REMEMBERED: usize = 4;
const NONE: u32 = u32::MAX;

/// Bytes that one key takes, about: its slot and its entry in the map.
pub const KEY_BYTES: usize = size_of::<Slot>() + 32;

#[derive(Debug, Clone)]
struct Slot {
    key: u128,
    /// (content, version)
    seen: [(u64, i64); REMEMBERED],
    count: u8,
    /// Neighbours in the order of last sight.
    older: u32,
    newer: u32,
}

/// State of one (stream, scope).
#[derive(Debug, Clone)]
pub struct Repeats {
    slots: Vec<Slot>,
    by_key: HashMap<u128, u32>,
    oldest: u32,
    newest: u32,
    max_keys: usize,
    within: i64,
}

impl Repeats {
    /// `within` is in the version's unit.
    pub fn new(max_keys: usize, within: i64) -> Self {
        let max_keys = max_keys.clamp(1, NONE as usize - 1);
        Self { slots: Vec::new(), by_key: HashMap::new(), oldest: NONE, newest: NONE, max_keys, within }
    }

    /// Takes an event in; true if it says nothing new. Keys and contents are hashes.
    pub fn observe(&mut self, key: u128, content: u64, version: i64) -> bool {
        let at = match self.by_key.get(&key) {
            Some(&at) => {
                self.unlink(at);
                at
            }
            None => self.take_slot(key),
        };
        self.link_newest(at);
        let slot = &mut self.slots[at as usize];
        let count = usize::from(slot.count);
        let known = slot.seen[..count].iter().any(|(c, v)| *c == content && v.abs_diff(version) <= self.within as u64);
        if !known {
            if count == REMEMBERED {
                slot.seen.rotate_left(1);
                slot.seen[REMEMBERED - 1] = (content, version);
            } else {
                slot.seen[count] = (content, version);
                slot.count += 1;
            }
        }
        known
    }

    pub fn keys(&self) -> usize {
        self.by_key.len()
    }

    fn take_slot(&mut self, key: u128) -> u32 {
        let slot = Slot { key, seen: [(0, 0); REMEMBERED], count: 0, older: NONE, newer: NONE };
        let at = if self.slots.len() < self.max_keys {
            self.slots.push(slot);
            self.slots.len() as u32 - 1
        } else {
            let at = self.oldest;
            self.unlink(at);
            self.by_key.remove(&self.slots[at as usize].key);
            self.slots[at as usize] = slot;
            at
        };
        self.by_key.insert(key, at);
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

    /// Appends the state, oldest key first: count u32, then per key 16 bytes, count u8, and per event content and version.
    pub fn save(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.by_key.len() as u32).to_le_bytes());
        let mut at = self.oldest;
        while let Some(slot) = self.slots.get(at as usize) {
            out.extend_from_slice(&slot.key.to_le_bytes());
            out.push(slot.count);
            for (content, version) in &slot.seen[..usize::from(slot.count)] {
                out.extend_from_slice(&content.to_le_bytes());
                out.extend_from_slice(&version.to_le_bytes());
            }
            at = slot.newer;
        }
    }

    /// Reads what [`Repeats::save`] wrote into an empty state; none if the bytes are no such thing.
    pub fn load(mut self, bytes: &mut &[u8]) -> Option<Self> {
        fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
            let (head, rest) = bytes.split_first_chunk::<N>()?;
            *bytes = rest;
            Some(*head)
        }
        for _ in 0..u32::from_le_bytes(take(bytes)?) {
            let key = u128::from_le_bytes(take(bytes)?);
            let [count] = take(bytes)?;
            let at = self.take_slot(key);
            self.link_newest(at);
            let slot = &mut self.slots[at as usize];
            slot.count = count;
            for seen in slot.seen.get_mut(..usize::from(count))? {
                *seen = (u64::from_le_bytes(take(bytes)?), i64::from_le_bytes(take(bytes)?));
            }
        }
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_twin_with_an_older_version_is_a_repeat_and_an_update_is_not() {
        let mut repeats = Repeats::new(10, 500);
        assert!(!repeats.observe(1, 7, 10_300));
        assert!(repeats.observe(1, 7, 10_000));
        assert!(!repeats.observe(1, 8, 10_400));
        assert!(repeats.observe(1, 7, 10_800));
        assert!(!repeats.observe(1, 7, 10_801));
    }

    /// The definition, word for word, over lists.
    #[derive(Default)]
    struct Model {
        keys: Vec<(u128, Vec<(u64, i64)>)>,
    }

    impl Model {
        fn observe(&mut self, max_keys: usize, key: u128, content: u64, version: i64) -> bool {
            let mut seen = match self.keys.iter().position(|(k, _)| *k == key) {
                Some(at) => self.keys.remove(at).1,
                None => Vec::new(),
            };
            if self.keys.len() == max_keys {
                self.keys.remove(0);
            }
            let last = &seen[seen.len().saturating_sub(4)..];
            let known = last.iter().any(|(c, v)| *c == content && (v - version).abs() <= 3);
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
            events in proptest::collection::vec((0u128..8, 0u64..3, 0i64..30), 0..200),
            max_keys in 1usize..8,
            restart in 0usize..200,
        ) {
            let (mut repeats, mut model) = (Repeats::new(max_keys, 3), Model::default());
            for (n, (key, content, version)) in events.into_iter().enumerate() {
                if n == restart {
                    let mut bytes = Vec::new();
                    repeats.save(&mut bytes);
                    repeats = Repeats::new(max_keys, 3).load(&mut bytes.as_slice()).expect("its own bytes");
                }
                prop_assert_eq!(repeats.observe(key, content, version), model.observe(max_keys, key, content, version));
            }
        }

        #[test]
        fn any_bytes_are_a_state_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Repeats::new(4, 1).load(&mut bytes.as_slice());
        }
    }
}
