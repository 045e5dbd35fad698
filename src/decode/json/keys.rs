//! Finds duplicate keys of one object.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// Up to this many keys are compared one by one.
const MAX_COMPARED: usize = 16;

/// Positions of an object's keys. Few are compared one by one; many are hashed, so that an object
/// of any size takes linear time. The random hash affects only the time, not the result.
#[derive(Default)]
pub struct KeyPositions {
    positions: HashTable<usize>,
    hasher: RandomState,
}

impl KeyPositions {
    /// Adds the key at `position`, which must be the next one. Returns the last position before it
    /// with an equal key.
    pub fn add<'a>(
        &mut self,
        position: usize,
        key_at: impl Fn(usize) -> &'a [u8],
    ) -> Option<usize> {
        if position < MAX_COMPARED {
            let key = key_at(position);
            return (0..position).rev().find(|n| key_at(*n) == key);
        }
        if position == MAX_COMPARED {
            for n in 0..MAX_COMPARED {
                self.insert(n, &key_at);
            }
        }
        self.insert(position, &key_at)
    }

    fn insert<'a>(
        &mut self,
        position: usize,
        key_at: &impl Fn(usize) -> &'a [u8],
    ) -> Option<usize> {
        let Self { positions, hasher } = self;
        let hash = |n: usize| hasher.hash_one(key_at(n));
        match positions.entry(
            hash(position),
            |n| key_at(*n) == key_at(position),
            |n| hash(*n),
        ) {
            Entry::Occupied(mut known) => Some(std::mem::replace(known.get_mut(), position)),
            Entry::Vacant(free) => {
                free.insert(position);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_equal_key_is_found_among_few_and_many() {
        let keys: Vec<String> = (0..100).map(|n| format!("k{}", n % 40)).collect();
        let mut seen = KeyPositions::default();
        for position in 0..keys.len() {
            let expected = (0..position).rev().find(|n| keys[*n] == keys[position]);
            assert_eq!(
                seen.add(position, |n| keys[n].as_bytes()),
                expected,
                "{position}"
            );
        }
    }
}
