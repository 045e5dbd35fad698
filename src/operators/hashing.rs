//! Hashes of keys and contents that operators remember.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A 64-bit hash, the same in every process: it is saved in snapshots. The standard library
/// promises this for one version only, so a test pins its value. Where the bytes themselves are not
/// retained, a collision would lose a row, so it is SipHash (Aumasson, Bernstein: SipHash: a fast
/// short-input PRF, 2012). Its key is fixed, so that collisions can be searched for, but not
/// constructed.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// A map whose keys are numbers that cannot be chosen from outside: hashes as above, or indexes.
pub(super) type ByNumber<K, V> = HashMap<K, V, BuildHasherDefault<SpreadHasher>>;

/// Spreads a number over all bits by one multiplication (Knuth's, with the golden ratio).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SpreadHasher(u64);

impl Hasher for SpreadHasher {
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
        // A table uses the lowest bits and the highest; the lowest of a product depend only on
        // those of the number.
        self.0 = product ^ product >> 32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_hashes_stay_what_they_are() {
        assert_eq!(hash(b""), 15_130_871_412_783_076_140);
        assert_eq!(hash(b"weir"), 12_670_949_181_429_689_416);
    }
}
