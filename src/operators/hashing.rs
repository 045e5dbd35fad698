//! Hashes of what operators remember.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// 64 bits of some bytes, the same in every process. Where the bytes themselves are not kept, the
/// second of two with one hash would be lost, so it is a hash of which nobody finds two by hand
/// (SipHash).
pub fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// A map whose keys are numbers that nobody outside chooses: hashes as above, or places in a list.
pub type ByNumber<K, V> = HashMap<K, V, BuildHasherDefault<Spread>>;

/// Spreads a number over all bits by one multiplication (Knuth's, with the golden ratio).
#[derive(Debug, Clone, Copy, Default)]
pub struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.write_u64(hash(bytes));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        let product = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        // A table takes the lowest bits and the highest ones; the lowest of a product know only
        // those of the number.
        self.0 = product ^ product >> 32;
    }
}
