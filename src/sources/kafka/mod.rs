//! Kafka: topics of a cluster, each record exactly once.
//!
//! A partition is named `TOPIC/NUMBER` in the log, and its offsets are Kafka's. Where it continues
//! is stored with its records, in the log: the offsets committed to the consumer group only show
//! others how far this source has come, and are never read. A partition whose position the broker
//! does not have any more halts alone, until `--accept-reset` names it.
//!
//! In the order in which data flows: `client` configures the client library, whose reports
//! `callbacks` collects; `topics` maps topics to streams; `rebalance` takes and returns partitions
//! and `starts` begins them where `assignment` decides, after the record that `last_record`
//! recognizes; `values` makes JSON of messages in Avro, by schemas that `registry` fetches; `batch`
//! puts messages into frames with their `metadata`, which `handoff` passes to the thread that writes
//! them; `commit` commits what is durable; `bounded` is what a run with an end does differently,
//! `health` what status shows. `partitions` is the state that all of them work on.
//!
//! The thread that polls never waits for the log: while the log takes nothing, fetching is paused
//! and polling continues, because a consumer that is not polled leaves its group.

mod assignment;
mod batch;
mod bounded;
mod callbacks;
pub(crate) mod client;
mod commit;
mod handoff;
mod health;
mod last_record;
mod metadata;
mod partitions;
mod rebalance;
mod registry;
mod starts;
mod topics;
mod values;

use std::collections::{BTreeSet, VecDeque};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use rdkafka::Message as _;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;

use self::batch::{BATCH_DELAY, Batch};
use self::callbacks::{is_of_content, is_of_position};
use self::client::{Consumer, broker_error};
use self::handoff::{Handoff, PartitionFrame};
use self::health::Connection;
use self::last_record::last_record_of;
use self::metadata::metadata_of;
use self::partitions::{PartitionTable, Phase};
use self::rebalance::Revocation;
use self::registry::Registry;
pub(crate) use self::topics::reads_partition;
use self::topics::{TopicFilter, TopicPartition};
use self::values::{Value, Values};
use super::{Context, SourceError};
use crate::bounds;
use crate::clock::Clock;
use crate::config::{KafkaDef, MessageFormat, StartFrom};
use crate::threads::OnEnd;

/// How long an idle poll waits.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Messages taken between two looks at everything else.
const MAX_MESSAGES_PER_ROUND: usize = 2_000;
/// Bytes of messages of all partitions that may wait for their frames.
const MAX_BATCH_BYTES: usize = 4 << 20;
/// The longest reason for which a value is rejected.
const MAX_REASON_BYTES: usize = 400;
/// How long a full queue to the writer delays polling before fetching is paused: a pause drops
/// what was fetched, and is worth it only if the writer waits for the log.
const HANDOFF_WAIT: Duration = Duration::from_millis(500);
/// Before partitions begin again after an error of a position, which may come of several of them.
const RESTART_DELAY: Duration = Duration::from_millis(100);
/// How often a batch cannot be read until last records are compared no more: one may be in it.
const MAX_UNREADABLE: usize = 3;
/// Before a batch that could not be read is fetched again.
const REFETCH_DELAY: Duration = Duration::from_secs(1);
/// How often topics of a pattern are looked for.
const TOPICS_INTERVAL: Duration = Duration::from_secs(10);
/// How long a source that stops waits for the writer, for its last commit, and for the broker.
const STOP_WRITE_TIMEOUT: Duration = Duration::from_millis(800);
const STOP_COMMIT_TIMEOUT: Duration = Duration::from_millis(500);
const CLOSE_TIMEOUT: Duration = Duration::from_millis(700);

/// What the source needs in addition to its definition.
pub(crate) struct Settings {
    /// Memory for messages that were fetched and not taken yet.
    pub fetch_bytes: usize,
    /// Partitions, as `TOPIC/NUMBER`, that continue with the first record that the broker has if
    /// their position is gone.
    pub accepted_resets: BTreeSet<String>,
}

/// Reads the topics until asked to stop; a bounded run, up to where they end now.
pub(crate) fn run(
    context: &Context,
    def: &KafkaDef,
    settings: Settings,
    clock: &dyn Clock,
) -> Result<(), SourceError> {
    let limits = context.record_limits;
    let consumer = client::connect(def, limits, settings.fetch_bytes, &context.name)?;
    let handoff = Handoff::default();
    let registry = match &def.format {
        MessageFormat::RegisteredAvro(def) => Some(Registry::new(def)?),
        MessageFormat::Json | MessageFormat::Avro(_) => None,
    };
    let registry = registry.as_ref();
    let close = || {
        handoff.close();
        if let Some(registry) = registry {
            registry.close();
        }
    };
    let result = std::thread::scope(|scope| {
        // However this ends, the threads that it starts end, too.
        let _closed = OnEnd(close);
        let io_error = |source| SourceError::Io {
            path: context.name.clone(),
            source,
        };
        let writer = std::thread::Builder::new()
            .name(format!("source/{}/write", context.name))
            .spawn_scoped(scope, || handoff.write(context))
            .map_err(io_error)?;
        let fetcher = registry.map(|registry| {
            std::thread::Builder::new()
                .name(format!("source/{}/schemas", context.name))
                .spawn_scoped(scope, move || registry.run())
        });
        let fetcher = fetcher.transpose().map_err(io_error)?;
        let source = Source::new(context, def, &consumer, &handoff, registry, settings, clock);
        let read = source.and_then(Source::run);
        close();
        let finish = |thread: ScopedJoinHandle<'_, Result<(), SourceError>>| {
            let ended = thread.join();
            ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        let fetched = fetcher.map_or(Ok(()), finish);
        // An error of these threads is the reason of the reader's end.
        finish(writer).and(fetched).and(read)
    });
    client::close(consumer, CLOSE_TIMEOUT);
    result
}

/// A running source of Kafka.
struct Source<'a> {
    context: &'a Context,
    def: &'a KafkaDef,
    clock: &'a dyn Clock,
    consumer: &'a Consumer,
    handoff: &'a Handoff,
    filter: TopicFilter,
    values: Values<'a>,
    partitions: PartitionTable,
    /// Frames that did not fit into the queue to the writer.
    outbox: VecDeque<PartitionFrame>,
    is_paused: bool,
    accepted_resets: BTreeSet<String>,
    /// With `from = "latest"`, the partitions that existed at the first start of the source, which
    /// begin where they ended then; empty at a later start, none before they are listed.
    first_partitions: Option<BTreeSet<TopicPartition>>,
    /// When partitions are begun again, and when those whose start has failed.
    retry_starts_at: Instant,
    retry_failed_at: Instant,
    /// Errors of content while last records were compared.
    unreadable: usize,
    revocation: Option<Revocation>,
    /// When offsets were committed last, and when positions of the client library were read.
    committed_at: Option<Instant>,
    positions_read_at: Option<Instant>,
    connection: Connection,
    subscribed: BTreeSet<String>,
    topics_checked_at: Option<Instant>,
}

impl<'a> Source<'a> {
    fn new(
        context: &'a Context,
        def: &'a KafkaDef,
        consumer: &'a Consumer,
        handoff: &'a Handoff,
        registry: Option<&'a Registry>,
        settings: Settings,
        clock: &'a dyn Clock,
    ) -> Result<Self, SourceError> {
        let filter =
            TopicFilter::new(&def.topics).map_err(|e| broker_error(def, &e.to_string()))?;
        let mut partitions = PartitionTable::default();
        for (label, state) in &context.partitions {
            let name = TopicPartition::parse(label);
            let stream = name.as_ref().and_then(|name| filter.stream_of(&name.topic));
            if let Some((name, stream)) = name.as_ref().zip(stream) {
                let id = partitions.add(name.clone(), stream);
                let partition = partitions.get_mut(id);
                partition.restore(state.next_offset, state.received_at, state.last_record);
            }
        }
        let is_first_start = partitions.iter().next().is_none();
        let begins_at_end = is_first_start && def.from == StartFrom::Latest;
        Ok(Self {
            context,
            def,
            clock,
            consumer,
            handoff,
            filter,
            values: Values::new(&def.format, registry),
            partitions,
            outbox: VecDeque::new(),
            is_paused: false,
            accepted_resets: settings.accepted_resets,
            first_partitions: (!begins_at_end).then(BTreeSet::new),
            retry_starts_at: Instant::now(),
            retry_failed_at: Instant::now(),
            unreadable: 0,
            revocation: None,
            committed_at: None,
            positions_read_at: None,
            connection: Connection::default(),
            subscribed: BTreeSet::new(),
            topics_checked_at: None,
        })
    }

    fn run(mut self) -> Result<(), SourceError> {
        self.publish_health();
        if self.context.once {
            return self.run_bounded();
        }
        while self.is_to_continue() {
            self.subscribe();
            self.round()?;
        }
        self.stop();
        Ok(())
    }

    /// Neither was the source asked to stop, nor did one of its threads fail.
    fn is_to_continue(&self) -> bool {
        !self.context.stop.is_requested() && !self.handoff.has_ended() && !self.values.has_ended()
    }

    /// One turn of everything: less than a second, so that polling does not cease.
    fn round(&mut self) -> Result<(), SourceError> {
        self.poll()?;
        self.collect_reports();
        self.rebalance()?;
        if self.connection.take_loss() {
            // Topics may be created again while nothing is known of them: nothing is fetched until
            // the broker has said where each partition is.
            self.restart_partitions(RESTART_DELAY)?;
        }
        self.expire_resets();
        self.await_schemas()?;
        self.begin_partitions()?;
        self.flush(false);
        self.hand_over()?;
        self.update_positions();
        self.commit_stored();
        self.publish_health();
        Ok(())
    }

    /// Takes the messages that are there; waits for the first one.
    fn poll(&mut self) -> Result<(), SourceError> {
        let has_batches = self.partitions.iter().any(|p| p.batch.is_some());
        let mut wait = if has_batches {
            BATCH_DELAY
        } else {
            POLL_INTERVAL
        };
        let consumer = self.consumer;
        let mut bytes = self.partitions.batch_bytes();
        for _ in 0..MAX_MESSAGES_PER_ROUND {
            match consumer.poll(wait) {
                Some(Ok(message)) => {
                    bytes += self.take(&message);
                }
                Some(Err(error)) => self.handle_error(&error)?,
                None => break,
            }
            if bytes >= MAX_BATCH_BYTES {
                break;
            }
            wait = Duration::ZERO;
        }
        Ok(())
    }

    /// The partition and offset of a message that is to be taken now, and where the partition is.
    fn admit(&mut self, message: &BorrowedMessage<'_>) -> Option<(usize, u64, u64)> {
        let id = self.partitions.find(message.topic(), message.partition())?;
        let offset = u64::try_from(message.offset()).ok()?;
        if self.partitions.get(id).phase == Phase::Reading {
            self.check_last_record(id, message);
        }
        let partition = self.partitions.get_mut(id);
        let taken = partition.taken?;
        // Never a record twice, whatever is delivered; nor, in a bounded run, one that came later.
        if offset < taken || partition.end.is_some_and(|end| offset >= end) {
            return None;
        }
        if partition.phase != Phase::Reading {
            partition.has_dropped = true;
            return None;
        }
        Some((id, offset, taken))
    }

    /// Adds a message to its partition's batch; returns the bytes that it takes there.
    fn take(&mut self, message: &BorrowedMessage<'_>) -> usize {
        let Some((id, offset, taken)) = self.admit(message) else {
            return 0;
        };
        let context = self.context;
        let partition = self.partitions.get_mut(id);
        let record = last_record_of(message, offset);
        let mut metadata = metadata_of(message, self.def.tombstone);
        let room = context.record_limits.max_bytes;
        let room = room.saturating_sub(metadata.heap_bytes());
        let payload = message.payload().unwrap_or_default();
        let value = match metadata.tombstone {
            // One that is too long is truncated, whatever it holds.
            None if payload.len() <= room => self.values.read(payload, room),
            _ => Value::Json(payload),
        };
        let value = match value {
            Value::Json(json) => json,
            Value::Rejected(reason) => {
                metadata.rejected = Some(bounds::truncate(&reason, MAX_REASON_BYTES).into_owned());
                payload
            }
            Value::AwaitsSchema(id) => {
                partition.phase = Phase::AwaitingSchema(id);
                partition.has_dropped = true;
                return 0;
            }
        };
        let batch = partition
            .batch
            .get_or_insert_with(|| Batch::new(context, taken));
        let before = batch.bytes();
        batch.push(context, record, value, &metadata);
        let bytes = batch.bytes() - before;
        partition.taken = Some(offset + 1);
        partition.last_record = Some(record);
        partition.has_dropped = false;
        if batch.is_full() {
            self.finish_batch(id);
        }
        bytes
    }

    /// Errors that last are in the reports of the client library, too.
    fn handle_error(&mut self, error: &KafkaError) -> Result<(), SourceError> {
        if matches!(error, KafkaError::MessageConsumptionFatal(_)) {
            return Err(broker_error(self.def, &error.to_string()));
        }
        // It does not say of which partition: all begin again, each where it is.
        match error.rdkafka_error_code() {
            Some(code) if is_of_position(code) => self.restart_partitions(RESTART_DELAY),
            // The library would continue after a batch that it cannot read. Fetched again it may be
            // whole; until then nothing after it is taken.
            Some(code) if is_of_content(code) => {
                self.connection.set_problem(&error.to_string());
                let is_comparing = self.partitions.iter().any(|p| p.check.is_some());
                self.unreadable = if is_comparing { self.unreadable + 1 } else { 0 };
                if self.unreadable >= MAX_UNREADABLE {
                    self.unreadable = 0;
                    self.partitions.abandon_checks();
                }
                self.restart_partitions(REFETCH_DELAY)
            }
            _ => Ok(()),
        }
    }

    /// Puts a partition's batch, if it has one, into the outbox.
    fn finish_batch(&mut self, id: usize) {
        let partition = self.partitions.get_mut(id);
        if let Some(batch) = partition.batch.take() {
            let next_offset = batch.next_offset();
            let Some(submission) = batch.finish(self.context, &partition.stream, &partition.label)
            else {
                // Empty arrays: the next frame stores where the partition is, and until then they
                // may be read again.
                return;
            };
            self.outbox.push_back(PartitionFrame {
                partition: id,
                next_offset,
                submission,
            });
        }
    }

    /// Finishes the batches that have waited long enough, or all of them.
    fn flush(&mut self, all: bool) {
        let now = Instant::now();
        let is_over = all || self.partitions.batch_bytes() >= MAX_BATCH_BYTES;
        let due = self.partitions.select(|partition| {
            let batch = partition.batch.as_ref();
            batch.is_some_and(|batch| is_over || batch.is_due(now))
        });
        for id in due {
            self.finish_batch(id);
        }
    }

    /// Passes the outbox to the writer. While that has no room, fetching is paused.
    fn hand_over(&mut self) -> Result<(), SourceError> {
        let mut wait = if self.is_paused {
            Duration::ZERO
        } else {
            HANDOFF_WAIT
        };
        while let Some(frame) = self.outbox.pop_front() {
            let (id, next_offset) = (frame.partition, frame.next_offset);
            let last_record = frame.submission.attributes.last_record;
            let before = Instant::now();
            if let Err(frame) = self.handoff.offer(frame, wait) {
                self.outbox.push_front(*frame);
                break;
            }
            wait = wait.saturating_sub(before.elapsed());
            let partition = self.partitions.get_mut(id);
            (partition.sent, partition.sent_record) = (Some(next_offset), last_record);
        }
        let is_to_pause = !self.outbox.is_empty();
        if is_to_pause != self.is_paused {
            self.set_paused(is_to_pause)?;
        }
        Ok(())
    }

    fn set_paused(&mut self, paused: bool) -> Result<(), SourceError> {
        let assigned = self.partitions.iter().filter(|p| p.is_assigned);
        let list = client::offsets(assigned.map(|p| (&p.name, 0)));
        let done = list.and_then(|list| match paused {
            true => self.consumer.pause(&list),
            false => self.consumer.resume(&list),
        });
        done.map_err(|e| broker_error(self.def, &e.to_string()))?;
        self.is_paused = paused;
        tracing::debug!(
            source = self.context.name,
            paused,
            "the log has room or not"
        );
        Ok(())
    }

    /// Subscribes to the topics; to those of a pattern from time to time, as there may be new ones.
    fn subscribe(&mut self) {
        let is_due = self
            .topics_checked_at
            .is_none_or(|at| at.elapsed() >= TOPICS_INTERVAL);
        if !is_due || self.filter.named().is_some() && !self.subscribed.is_empty() {
            return;
        }
        self.topics_checked_at = Some(Instant::now());
        let topics: BTreeSet<String> = match self.filter.named() {
            Some(names) => names.into_iter().map(str::to_owned).collect(),
            None => match client::list_partitions(self.consumer, &self.filter) {
                Ok(listing) => listing.partitions.into_iter().map(|p| p.topic).collect(),
                Err(error) => {
                    tracing::debug!(source = self.context.name, %error, "topics cannot be listed");
                    return;
                }
            },
        };
        if topics.is_empty() {
            self.connection
                .set_problem("no topic matches the pattern yet");
        }
        // A topic that is deleted stays subscribed: it may be created again.
        if topics.is_subset(&self.subscribed) {
            return;
        }
        self.subscribed.extend(topics);
        let names: Vec<&str> = self.subscribed.iter().map(String::as_str).collect();
        if let Err(error) = self.consumer.subscribe(&names) {
            self.connection.set_problem(&error.to_string());
            self.subscribed.clear();
        }
    }

    /// Stores and commits what was sent to the writer, within two seconds.
    fn stop(&mut self) {
        self.handoff.close();
        if self.handoff.wait_idle(STOP_WRITE_TIMEOUT) && self.connection.is_up() {
            let ids = self.partitions.select(|p| p.is_assigned);
            self.commit_and_wait(&ids, STOP_COMMIT_TIMEOUT);
        }
        self.release();
    }
}
