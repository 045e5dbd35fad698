//! What polled records are recognized by when they are received again: the newest of each partition,
//! a function of the log like everything that operators remember.

use std::collections::VecDeque;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::wal::{RecordIdentities, RecordIdentity};

const IDENTITY_BYTES: usize = size_of::<RecordIdentity>();

/// Identities of the newest records of a partition, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeenRecords(VecDeque<RecordIdentity>);

impl SeenRecords {
    /// Adds those of a frame, and forgets the oldest ones beyond its limit.
    pub(super) fn observe(&mut self, frame: &RecordIdentities) {
        self.0.extend(&frame.of_records);
        let limit = usize::try_from(frame.remembered).unwrap_or(usize::MAX);
        self.0.drain(..self.0.len().saturating_sub(limit));
    }

    /// Oldest first.
    pub fn iter(&self) -> impl Iterator<Item = RecordIdentity> {
        self.0.iter().copied()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.0.capacity() * IDENTITY_BYTES
    }
}

/// In a snapshot: their bytes, little-endian, in base64.
impl Serialize for SeenRecords {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = self.iter().flat_map(RecordIdentity::to_le_bytes).collect();
        serializer.serialize_str(&STANDARD.encode(bytes))
    }
}

impl<'de> Deserialize<'de> for SeenRecords {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(serde::de::Error::custom)?;
        let (identities, rest) = bytes.as_chunks::<IDENTITY_BYTES>();
        if !rest.is_empty() {
            return Err(serde::de::Error::custom("half an identity"));
        }
        let identities = identities.iter();
        Ok(Self(
            identities
                .map(|bytes| RecordIdentity::from_le_bytes(*bytes))
                .collect(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten_and_a_snapshot_has_the_others() {
        let mut seen = SeenRecords::default();
        let frame = |of_records: Vec<u128>| RecordIdentities {
            remembered: 3,
            of_records,
        };
        seen.observe(&frame(vec![1, 2]));
        seen.observe(&frame(vec![3, u128::MAX]));
        assert_eq!(seen.iter().collect::<Vec<_>>(), [2, 3, u128::MAX]);
        let text = serde_json::to_string(&seen).expect("JSON");
        assert_eq!(text.len(), 66);
        assert_eq!(serde_json::from_str::<SeenRecords>(&text).ok(), Some(seen));
        assert!(serde_json::from_str::<SeenRecords>("\"AAAA\"").is_err());
    }
}
