//! Partitions of a source, and how far each has come. No I/O.
//!
//! ```text
//! Idle ──assigned──► Starting ──start decided──► Reading ──revoked──► Revoking ──drained──► Idle
//!                    ▲   │                        │  ▲
//!                    │   │           schema unknown│  │
//!                    │   │                         ▼  │
//!                    └───┼──schema known── AwaitingSchema ──revoked──► (as Reading)
//!                        └──────no start───────► Halted ───revoked──────────────────────────┘
//! ```
//!
//! One that is read begins again (Starting) after an error of its position, after a time without a
//! connection, and where its last record turns out to be another one.
//!
//! Offsets order what is known of a partition: `stored ≤ sent ≤ taken`, and `committed ≤ reached` or `stored`.

use std::collections::BTreeMap;
use std::time::Instant;

use super::batch::Batch;
use super::last_record::Check;
use super::topics::TopicPartition;
use crate::event::Micros;
use crate::wal::LastRecord;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// It is not ours: never assigned, or taken away.
    Idle,
    /// It is ours; where it begins is not decided yet.
    Starting,
    Reading,
    /// Its next message was written with this schema, which the registry has not sent yet. Nothing
    /// is taken; it begins again at that message.
    AwaitingSchema(u32),
    /// It has no start, for this reason.
    Halted(String),
    /// It is being taken away: nothing is taken any more, what was sent is still stored.
    Revoking,
}

/// A partition of a topic.
pub(super) struct Partition {
    pub name: TopicPartition,
    /// The name in the log.
    pub label: String,
    pub stream: String,
    pub phase: Phase,
    /// The client library fetches it.
    pub is_assigned: bool,
    /// The offset after the last message taken; none if the log has no position of it.
    pub taken: Option<u64>,
    /// The offset after the last frame sent to the writer.
    pub sent: Option<u64>,
    /// The last record before `taken`, and the last one before `sent`, where known.
    pub last_record: Option<LastRecord>,
    pub sent_record: Option<LastRecord>,
    /// The last record is fetched again before anything is taken.
    pub check: Option<Check>,
    /// The broker has another record in the place of the last one.
    pub is_refuted: bool,
    /// When its start is asked for again, if the broker did not answer the last time.
    pub retry_at: Option<Instant>,
    /// The offset after what is durable.
    pub stored: Option<u64>,
    /// Up to here everything is durable: `stored`, and what follows it without a record, such as
    /// markers of transactions.
    pub reached: u64,
    /// The offset committed to the group, as far as this process did it, and when.
    pub committed: Option<u64>,
    pub committed_at: Option<Instant>,
    /// Where it began in this run.
    pub began_at: Option<u64>,
    /// A bounded run reads up to here.
    pub end: Option<u64>,
    /// The offset after the broker's last record, which may be part of an open transaction.
    pub high: Option<u64>,
    /// The end of the partition that the broker gave at its start; statistics may be older.
    pub high_at_start: u64,
    /// The offset after what the client library passed to us, which includes markers of
    /// transactions.
    pub passed: u64,
    /// Messages were passed to us and dropped: they come again. Until the first of them does, how
    /// far the library came says nothing.
    pub has_dropped: bool,
    /// Its leader is connected, by the last statistics.
    pub is_led: bool,
    /// Arrival of the last record in the log.
    pub received_at: Option<Micros>,
    pub batch: Option<Batch>,
}

impl Partition {
    fn new(name: TopicPartition, stream: &str) -> Self {
        Self {
            label: name.to_string(),
            name,
            stream: stream.to_owned(),
            phase: Phase::Idle,
            is_assigned: false,
            taken: None,
            sent: None,
            last_record: None,
            sent_record: None,
            check: None,
            is_refuted: false,
            retry_at: None,
            stored: None,
            reached: 0,
            committed: None,
            committed_at: None,
            began_at: None,
            end: None,
            high: None,
            high_at_start: 0,
            passed: 0,
            has_dropped: false,
            is_led: false,
            received_at: None,
            batch: None,
        }
    }

    /// Sets where the log has it.
    pub fn restore(
        &mut self,
        next_offset: u64,
        received_at: Micros,
        last_record: Option<LastRecord>,
    ) {
        self.set_position(next_offset);
        (self.last_record, self.sent_record) = (last_record, last_record);
        self.stored = Some(next_offset);
        self.received_at = Some(received_at);
    }

    /// Sets where it continues, also before where it was; a frame that stores it is on its way, or was stored before.
    pub fn set_position(&mut self, offset: u64) {
        self.taken = Some(offset);
        self.sent = Some(offset);
        (self.last_record, self.sent_record) = (None, None);
        self.reached = 0;
    }

    /// Where fetching begins: at the last record if that is compared first.
    pub fn fetch_offset(&self) -> Option<u64> {
        let check = self.check.map(|check| check.expected.offset);
        check.or(self.taken)
    }

    /// Whether the comparison with the last record is awaited.
    pub fn is_checking(&self) -> bool {
        self.check.is_some_and(|check| check.is_awaited())
    }

    /// Forgets what was taken and not sent: it is read again.
    pub fn discard_unsent(&mut self) {
        self.batch = None;
        self.has_dropped |= self.taken != self.sent;
        self.taken = self.sent;
        self.is_refuted &= self.last_record == self.sent_record;
        self.last_record = self.sent_record;
    }

    /// Notes that the broker did not say where it begins: it is tried again after others.
    pub fn note_failed_start(&mut self, retry_at: Instant) {
        self.retry_at = Some(retry_at);
    }

    /// Whether its start may be asked for; `may_retry` is false while one that failed is not.
    pub fn is_due(&self, now: Instant, may_retry: bool) -> bool {
        self.retry_at.is_none_or(|at| may_retry && at <= now)
    }

    /// Whether everything that was sent is durable.
    pub fn is_drained(&self) -> bool {
        self.sent == self.stored
    }

    /// How far it was read, including offsets without a record.
    pub fn position(&self) -> Option<u64> {
        let passed = if self.has_dropped { 0 } else { self.passed };
        self.taken.map(|taken| taken.max(passed))
    }

    /// Whether it is known that the log has everything that the broker has, so that nothing but time
    /// passes in it.
    pub fn is_silent(&self) -> bool {
        self.phase == Phase::Reading
            && self.is_led
            && self.lag() == Some(0)
            && self.batch.is_none()
            && self.is_drained()
    }

    /// Records that the broker has after the last one taken.
    pub fn lag(&self) -> Option<u64> {
        Some(self.high?.saturating_sub(self.position()?))
    }

    /// Where a bounded run leaves it: after its last record, or after markers of transactions that
    /// follow it; none if the run has not moved it.
    pub fn bounded_end(&self) -> Option<u64> {
        let end = self.taken.max(self.end);
        end.filter(|_| end != self.began_at)
    }

    /// Whether a bounded run has read it to its end.
    pub fn has_reached_end(&self) -> bool {
        let reached = |end| self.position().is_some_and(|position| position >= end);
        self.end.is_some_and(reached)
    }

    /// Notes how far everything is durable, if nothing of it is on its way. A message after the end of
    /// a bounded run was passed to us and is not taken.
    pub fn update_reached(&mut self, is_outbox_empty: bool) {
        let has_everything = self.phase == Phase::Reading
            && self.batch.is_none()
            && is_outbox_empty
            && self.is_drained();
        if let Some(position) = self.position().filter(|_| has_everything) {
            let end = self.end.unwrap_or(u64::MAX);
            self.reached = self.reached.max(position.min(end));
        }
    }

    /// The offset to commit to the group, if it is not committed yet.
    pub fn uncommitted(&self) -> Option<u64> {
        // A reset that is on its way to the log: what was stored is of the topic before.
        if self.sent < self.stored {
            return None;
        }
        let durable = self.stored.map(|stored| stored.max(self.reached));
        durable.filter(|_| durable != self.committed)
    }
}

/// Every partition that was ever assigned or has a position in the log.
#[derive(Default)]
pub(super) struct PartitionTable {
    entries: Vec<Partition>,
    /// Topic → number → index.
    index: BTreeMap<String, BTreeMap<i32, usize>>,
}

impl PartitionTable {
    pub fn find(&self, topic: &str, number: i32) -> Option<usize> {
        self.index.get(topic)?.get(&number).copied()
    }

    /// The index of a partition, which is added if it is new.
    pub fn add(&mut self, name: TopicPartition, stream: &str) -> usize {
        if let Some(id) = self.find(&name.topic, name.number) {
            return id;
        }
        let id = self.entries.len();
        let numbers = self.index.entry(name.topic.clone()).or_default();
        numbers.insert(name.number, id);
        self.entries.push(Partition::new(name, stream));
        id
    }

    pub fn get(&self, id: usize) -> &Partition {
        &self.entries[id]
    }

    pub fn get_mut(&mut self, id: usize) -> &mut Partition {
        &mut self.entries[id]
    }

    pub fn iter(&self) -> impl Iterator<Item = &Partition> {
        self.entries.iter()
    }

    /// Indexes of the partitions for which `predicate` is true.
    pub fn select(&self, predicate: impl Fn(&Partition) -> bool) -> Vec<usize> {
        let selected = self.entries.iter().enumerate();
        selected
            .filter(|(_, partition)| predicate(partition))
            .map(|(id, _)| id)
            .collect()
    }

    /// Gives up comparisons with the last record: it is in a batch that cannot be read, perhaps.
    pub fn abandon_checks(&mut self) {
        for partition in self.entries.iter_mut().filter(|p| p.check.is_some()) {
            (partition.check, partition.last_record) = (None, None);
        }
    }

    /// Bytes of messages that wait for a frame.
    pub fn batch_bytes(&self) -> usize {
        let batches = self.entries.iter().filter_map(|p| p.batch.as_ref());
        batches.map(Batch::bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_knows_how_far_it_has_come() {
        let mut table = PartitionTable::default();
        let id = table.add(TopicPartition::new("t", 1), "s");
        assert_eq!(table.add(TopicPartition::new("t", 1), "s"), id);
        assert_eq!((table.find("t", 1), table.find("t", 0)), (Some(id), None));
        let partition = table.get_mut(id);
        assert_eq!((partition.position(), partition.lag()), (None, None));
        partition.restore(10, 5, None);
        partition.high = Some(30);
        partition.end = Some(21);
        assert!(partition.is_drained() && !partition.has_reached_end());
        assert_eq!(
            (partition.lag(), partition.uncommitted()),
            (Some(20), Some(10))
        );
        // Read up to 20, sent up to 15; the marker of a transaction follows.
        (partition.taken, partition.sent, partition.passed) = (Some(20), Some(15), 21);
        assert!(!partition.is_drained() && partition.has_reached_end());
        assert_eq!(partition.lag(), Some(9));
        assert_eq!(partition.bounded_end(), Some(21));
        partition.began_at = Some(21);
        assert_eq!(partition.bounded_end(), None);
        partition.discard_unsent();
        assert_eq!(partition.taken, Some(15));
        partition.stored = Some(15);
        partition.committed = Some(15);
        assert!(partition.is_drained());
        assert_eq!(partition.uncommitted(), None);
    }

    #[test]
    fn markers_after_the_last_record_are_committed_once_all_before_them_is_durable() {
        let mut table = PartitionTable::default();
        let id = table.add(TopicPartition::new("t", 1), "s");
        let partition = table.get_mut(id);
        partition.restore(10, 5, None);
        partition.phase = Phase::Reading;
        partition.high = Some(12);
        // Two markers, and a record on its way.
        partition.passed = 12;
        partition.update_reached(false);
        assert_eq!(partition.uncommitted(), Some(10));
        partition.sent = Some(11);
        partition.update_reached(true);
        assert_eq!(partition.uncommitted(), Some(10));
        // The library has passed a message for which the source was not ready.
        partition.sent = Some(10);
        partition.has_dropped = true;
        partition.update_reached(true);
        assert_eq!(
            (partition.uncommitted(), partition.lag()),
            (Some(10), Some(2))
        );
        // A bounded run does not take the message after its end.
        partition.has_dropped = false;
        partition.end = Some(11);
        partition.update_reached(true);
        assert_eq!(partition.uncommitted(), Some(11));
        partition.end = None;
        partition.update_reached(true);
        assert_eq!(partition.uncommitted(), Some(12));
        // Another record comes: what was committed is not taken back.
        partition.committed = Some(12);
        (partition.taken, partition.sent) = (Some(13), Some(13));
        partition.update_reached(true);
        assert_eq!(partition.uncommitted(), None);
        // The topic was created again, and the reset accepted.
        partition.set_position(0);
        partition.stored = Some(0);
        assert_eq!(partition.uncommitted(), Some(0));
    }

    #[test]
    fn a_start_that_failed_waits_for_its_time() {
        let mut table = PartitionTable::default();
        let id = table.add(TopicPartition::new("t", 1), "s");
        let partition = table.get_mut(id);
        let now = Instant::now();
        assert!(partition.is_due(now, false));
        partition.note_failed_start(now);
        assert!(!partition.is_due(now, false) && partition.is_due(now, true));
        partition.note_failed_start(now + std::time::Duration::from_secs(1));
        assert!(!partition.is_due(now, true));
    }

    #[test]
    fn a_partition_is_fetched_from_its_last_record_while_that_is_compared() {
        let record = |offset| LastRecord {
            offset,
            fingerprint: 1,
        };
        let mut table = PartitionTable::default();
        let id = table.add(TopicPartition::new("t", 1), "s");
        let partition = table.get_mut(id);
        assert_eq!(partition.fetch_offset(), None);
        partition.restore(10, 5, Some(record(7)));
        assert_eq!(partition.fetch_offset(), Some(10));
        partition.check = Some(Check::new(record(7)));
        assert_eq!(partition.fetch_offset(), Some(7));
        assert!(partition.is_checking());
        // What was taken and not sent is forgotten with its record.
        (partition.taken, partition.last_record) = (Some(12), Some(record(11)));
        partition.discard_unsent();
        assert_eq!(
            (partition.taken, partition.last_record),
            (Some(10), Some(record(7)))
        );
        // Its batch cannot be read: it continues without the comparison.
        table.abandon_checks();
        let partition = table.get_mut(id);
        assert_eq!(
            (partition.fetch_offset(), partition.last_record),
            (Some(10), None)
        );
        assert!(!partition.is_checking());
        // Another position has another last record.
        partition.restore(10, 5, Some(record(7)));
        partition.set_position(0);
        assert_eq!((partition.last_record, partition.sent_record), (None, None));
    }
}
