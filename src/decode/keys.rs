//! Keys of one object, to find those that come twice.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// Keys that are compared one by one.
const FEW: usize = 16;

/// Places of an object's keys: few are compared one by one, many are hashed, so that an object of
/// any size takes linear time. How keys are hashed decides nothing but the time it takes.
#[derive(Default)]
pub struct Keys {
    places: HashTable<usize>,
    hasher: RandomState,
}

impl Keys {
    /// Adds the key at `place`, the next one; gives the last place before it that has an equal key.
    pub fn add<'a>(&mut self, place: usize, key_at: impl Fn(usize) -> &'a [u8]) -> Option<usize> {
        if place < FEW {
            let key = key_at(place);
            return (0..place).rev().find(|n| key_at(*n) == key);
        }
        if place == FEW {
            for n in 0..FEW {
                self.put(n, &key_at);
            }
        }
        self.put(place, &key_at)
    }

    fn put<'a>(&mut self, place: usize, key_at: &impl Fn(usize) -> &'a [u8]) -> Option<usize> {
        let Self { places, hasher } = self;
        let hash = |n: usize| hasher.hash_one(key_at(n));
        match places.entry(hash(place), |n| key_at(*n) == key_at(place), |n| hash(*n)) {
            Entry::Occupied(mut known) => Some(std::mem::replace(known.get_mut(), place)),
            Entry::Vacant(free) => {
                free.insert(place);
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
        let mut seen = Keys::default();
        for place in 0..keys.len() {
            let wanted = (0..place).rev().find(|n| keys[*n] == keys[place]);
            assert_eq!(seen.add(place, |n| keys[n].as_bytes()), wanted, "{place}");
        }
    }
}
