//! Responses to requests with an idempotency key, remembered so that a repeated request gets the
//! same response.
//!
//! A key's scope is the stream. Both the number of keys and their bytes are bounded by [`Limits`],
//! which are stored with the configuration and do not depend on memory; the oldest key is evicted
//! first. Two tables are filled in the order of the log and are therefore equal at the same LSN:
//! the log writer's, which decides whether a frame with a key is a duplicate, and the operators',
//! from whose snapshot the first is restored after a restart.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use crate::config::IdempotencyLimits as Limits;
use crate::decode::Decoded;
use crate::event::Lsn;

/// Maximum number of rejections listed in a response.
pub(crate) const MAX_LISTED_REJECTIONS: usize = 100;
/// Memory of a key in addition to its text and the reasons, and of a listed rejection in addition
/// to its reason.
const ENTRY_BYTES: usize = 160;
const REJECTION_BYTES: usize = 32;

/// SHA-256 of a request's body after its content coding is removed.
pub type BodyHash = [u8; 32];

/// The response to a request with records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngestResponse {
    /// Records that became rows.
    pub accepted: u64,
    /// Records that became dead letters, listed or not.
    pub rejected_total: u64,
    /// The first hundred: (index, reason).
    pub rejected: Vec<(u32, Arc<str>)>,
}

impl IngestResponse {
    /// The response to a request of which these are the decoded records.
    pub fn new(decoded: &Decoded) -> Self {
        let listed = decoded.rejected.iter().take(MAX_LISTED_REJECTIONS);
        Self {
            accepted: decoded.index.len() as u64,
            rejected_total: decoded.rejected.len() as u64,
            // Equal reasons share their memory.
            rejected: listed.map(|r| (r.index, r.reason.clone())).collect(),
        }
    }

    fn bytes(&self) -> usize {
        self.rejected
            .iter()
            .map(|(_, reason)| reason.len() + REJECTION_BYTES)
            .sum()
    }
}

/// An idempotency key in its scope.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestKey {
    /// The stream that the request writes to.
    pub stream: String,
    /// The header `Idempotency-Key`, as received.
    pub key: String,
}

/// An answered request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnsweredRequest {
    /// Distinguishes a repeated request from another one under the same key.
    pub hash: BodyHash,
    /// The response that a repeated request gets again.
    pub answer: IngestResponse,
    /// The last record of its frame.
    pub lsn: Lsn,
}

/// What is known of a key.
#[derive(Debug, PartialEq, Eq)]
pub enum Lookup<'a> {
    /// The key is not in the table: never used, or evicted.
    New,
    /// The request repeats this one.
    Duplicate(&'a AnsweredRequest),
    /// The key was used with another body.
    Reused,
}

/// A bounded table of answered requests.
#[derive(Debug, Default)]
pub struct AnsweredRequests {
    limits: Limits,
    by_key: HashMap<Arc<RequestKey>, (u64, AnsweredRequest)>,
    /// Keys in the order of their insertion.
    order: BTreeMap<u64, Arc<RequestKey>>,
    next: u64,
    bytes: usize,
}

impl AnsweredRequests {
    /// An empty table.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// Decides about a request by its key and the hash of its body.
    pub fn lookup(&self, key: &RequestKey, hash: &BodyHash) -> Lookup<'_> {
        match self.by_key.get(key) {
            None => Lookup::New,
            Some((_, answered)) if answered.hash == *hash => Lookup::Duplicate(answered),
            Some(_) => Lookup::Reused,
        }
    }

    /// Adds the newest request; replaces an older one under the same key.
    pub fn insert(&mut self, key: RequestKey, answered: AnsweredRequest) {
        self.remove(&key);
        let key = Arc::new(key);
        self.bytes += entry_bytes(&key, &answered);
        self.order.insert(self.next, key.clone());
        self.by_key.insert(key, (self.next, answered));
        self.next += 1;
        self.evict();
    }

    /// Applies a changed configuration; evicts what is over its limits.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        self.evict();
    }

    /// Answered requests, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (&RequestKey, &AnsweredRequest)> {
        self.order
            .values()
            .filter_map(|key| Some((key.as_ref(), &self.by_key.get(key)?.1)))
    }

    /// Number of keys.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Memory that it takes, approximately.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn evict(&mut self) {
        while self.by_key.len() > self.limits.max_keys || self.bytes > self.limits.max_bytes {
            let Some((_, oldest)) = self.order.first_key_value() else {
                break;
            };
            let oldest = oldest.clone();
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, key: &RequestKey) {
        if let Some((number, answered)) = self.by_key.remove(key) {
            self.order.remove(&number);
            self.bytes -= entry_bytes(key, &answered);
        }
    }
}

fn entry_bytes(key: &RequestKey, answered: &AnsweredRequest) -> usize {
    ENTRY_BYTES + key.stream.len() + key.key.len() + answered.answer.bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{REASON_BYTES, Rejected};
    use proptest::prelude::*;

    fn key(stream: &str, key: &str) -> RequestKey {
        RequestKey {
            stream: stream.into(),
            key: key.into(),
        }
    }

    fn answered(hash: u8, accepted: u64) -> AnsweredRequest {
        AnsweredRequest {
            hash: [hash; 32],
            answer: IngestResponse {
                accepted,
                ..IngestResponse::default()
            },
            lsn: accepted,
        }
    }

    #[test]
    fn a_key_belongs_to_its_stream_and_its_body() {
        let mut table = AnsweredRequests::default();
        table.insert(key("a", "k"), answered(1, 5));
        assert_eq!(
            table.lookup(&key("a", "k"), &[1; 32]),
            Lookup::Duplicate(&answered(1, 5))
        );
        assert_eq!(table.lookup(&key("a", "k"), &[2; 32]), Lookup::Reused);
        assert_eq!(table.lookup(&key("b", "k"), &[1; 32]), Lookup::New);
    }

    #[test]
    fn an_answer_lists_a_hundred_rejections_of_bounded_size() {
        let rejected = (0..300)
            .map(|index| Rejected {
                index,
                reason: "x".repeat(REASON_BYTES).into(),
            })
            .collect();
        let rows =
            arrow::array::RecordBatch::new_empty(Arc::new(arrow::datatypes::Schema::empty()));
        let decoded = Decoded {
            rows,
            index: Vec::new(),
            rejected,
            drift: Vec::new(),
        };
        let answer = IngestResponse::new(&decoded);
        assert_eq!(
            (answer.rejected_total, answer.rejected.len()),
            (300, MAX_LISTED_REJECTIONS)
        );
        assert!(answer.bytes() <= MAX_LISTED_REJECTIONS * (REASON_BYTES + REJECTION_BYTES));
    }

    /// The definition, applied to a list.
    struct Model {
        limits: Limits,
        entries: Vec<(RequestKey, AnsweredRequest)>,
    }

    impl Model {
        fn insert(&mut self, key: RequestKey, answered: AnsweredRequest) {
            self.entries.retain(|(k, _)| *k != key);
            self.entries.push((key, answered));
            let bytes = |entries: &[(RequestKey, AnsweredRequest)]| {
                entries
                    .iter()
                    .map(|(k, a)| entry_bytes(k, a))
                    .sum::<usize>()
            };
            while self.entries.len() > self.limits.max_keys
                || bytes(&self.entries) > self.limits.max_bytes
            {
                self.entries.remove(0);
            }
        }
    }

    proptest! {
        #[test]
        fn the_oldest_key_is_evicted_first_even_after_a_restart(
            requests in proptest::collection::vec((0u8..3, 0u8..12, 0u8..2, 0usize..4), 0..200),
            max_keys in 1usize..10,
            max_bytes in 300usize..3_000,
            restart in 0usize..200,
        ) {
            let limits = Limits { max_keys, max_bytes };
            let (mut table, mut model) = (AnsweredRequests::new(limits), Model { limits, entries: Vec::new() });
            for (n, (stream, name, hash, rejected)) in requests.into_iter().enumerate() {
                if n == restart {
                    let saved: Vec<_> = table.iter().map(|(k, a)| (k.clone(), a.clone())).collect();
                    table = AnsweredRequests::new(limits);
                    saved.into_iter().for_each(|(k, a)| table.insert(k, a));
                }
                let key = key(&format!("s{stream}"), &format!("k{name}"));
                let mut new = answered(hash, n as u64);
                new.answer.rejected = vec![(0, "r".repeat(100).into()); rejected];
                table.insert(key.clone(), new.clone());
                model.insert(key, new);
                prop_assert!(table.len() <= max_keys && table.bytes() <= max_bytes);
                let found: Vec<_> = table.iter().map(|(k, a)| (k.clone(), a.clone())).collect();
                prop_assert_eq!(&found, &model.entries);
                prop_assert_eq!(table.bytes(), found.iter().map(|(k, a)| entry_bytes(k, a)).sum::<usize>());
            }
        }
    }
}
