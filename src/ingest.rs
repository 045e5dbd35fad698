//! The only writer of the log during operation. A submission is decoded and compressed on its
//! caller's thread, then numbered, written and synced by one thread for many at once; only then is
//! it acknowledged, and published to the operators.
//!
//! `gate` bounds what is in flight and blocks or rejects callers while the log is full,
//! `writer` owns the log, `receipt` is how a caller learns the outcome, `maintenance` trims
//! the log and retries once it has space. If the log has no space, frames of pull sources wait in
//! `deferred`; everything else is stored or rejected at once.

mod deferred;
mod event_times;
mod gate;
mod identity;
mod maintenance;
mod receipt;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

pub use event_times::SortTimes;
pub use gate::{Charge, Intake};
pub use maintenance::LogMaintenance;
pub use receipt::{Acceptance, Receipt};

use crate::clock::Clock;
use crate::decode::{Decoded, Received, TooManyRejected, decode, decode_within};
use crate::event::Lsn;
use crate::idempotency::{
    AnsweredRequest, AnsweredRequests, BodyHash, IngestResponse, Lookup, RequestKey,
};
use crate::schema::Catalog;
use crate::storage::IoKind;
use crate::threads::OnEnd;
use crate::wal::{Frame, FrameAttributes, Header, Kind, RecordIdentity, Records, Wal, WalError};
use gate::Gate;
use writer::{PreparedFrame, Writer};

/// Submissions that may wait for the writer, regardless of their size.
const QUEUE_LENGTH: usize = 256;
/// Memory that a record may take in addition to its bytes before it is decoded: a row, or a dead
/// letter with its reason.
const RECORD_OVERHEAD_BYTES: usize = 256;
/// Memory charged per frame in addition to its records.
const FRAME_OVERHEAD_BYTES: usize = 1024;
/// Memory for dead letters of one frame, as a multiple of the queue's limit. Frames of sources that
/// cannot be rejected have few records.
const MAX_REJECTED_FACTOR: usize = 4;

/// Appends a frame to a log that no writer owns yet, and syncs it.
///
/// # Errors
///
/// The log's: no space, or a failed write or sync.
pub(crate) fn append_before_start(wal: &mut Wal, frame: &mut Frame) -> Result<(), WalError> {
    wal.append(frame)?;
    wal.sync()?;
    Ok(())
}

/// Records of one partition, in order, from a source.
pub struct Submission {
    /// Records, or the kind of a control frame.
    pub kind: Kind,
    /// Name of the source; empty for control frames of the process itself.
    pub source: String,
    /// What the source reads in order; empty where it has only one.
    pub partition: String,
    /// The stream whose declaration decodes the records; empty for what concerns all streams.
    pub stream: String,
    /// The records' bytes, or a control frame's payload as its only record.
    pub records: Records,
    /// The offset in the partition at which the first record begins.
    pub first_offset: u64,
    /// The offset after the partition's submission before this one.
    pub previous_offset: u64,
    /// What only some submissions have: where a pull source resumes, shortened records, keys.
    pub attributes: FrameAttributes,
}

impl Submission {
    /// A control frame of one payload.
    pub fn control(kind: Kind, stream: &str, payload: &[u8]) -> Self {
        Self {
            kind,
            source: String::new(),
            partition: String::new(),
            stream: stream.to_owned(),
            records: Records::single(payload),
            first_offset: 0,
            previous_offset: 0,
            attributes: FrameAttributes::default(),
        }
    }
}

/// Why a submission was rejected. Nothing of it is stored, except perhaps after `Unknown`.
#[derive(Debug, Clone, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum IngestError {
    /// Too much is in flight to the log; returned only to a caller that does not wait.
    #[error("the queue of {limit} {unit} is full; try again in a second")]
    Full { limit: usize, unit: &'static str },
    /// The log or its disk has no space for records.
    #[error("the log cannot grow: {reason}")]
    NoSpace { kind: IoKind, reason: String },
    /// The intake is closed, or the log's writer has ended.
    #[error("weir is stopping")]
    Stopping,
    /// The log's writer ended while it held the records: whether they are stored is known after the
    /// next start.
    #[error("the log failed; whether the records are stored is known after a restart")]
    Unknown,
    /// The records do not fit into a frame.
    #[error("{0}")]
    Refused(String),
    /// Rejected as a whole; one by one, the records would be dead letters.
    #[error(
        "too many records are not events: as dead letters they would take more than {limit} bytes, a share of `[limits] memory`"
    )]
    TooManyRejected { limit: usize },
    /// A key names one request: its records and its answer.
    #[error("this Idempotency-Key was used with another body")]
    KeyReused,
}

/// A durable frame with its rows.
pub struct CommittedFrame {
    /// As it is in the log, with its LSNs.
    pub frame: Arc<Frame>,
    /// The rows and dead letters of its records; none for a control frame.
    pub decoded: Option<Arc<Decoded>>,
    /// Its share of the memory in flight; `None` if it was read back from the log.
    pub charge: Option<Charge>,
}

/// What is known of a request's idempotency key before its body is read.
pub enum KeyState {
    /// It was not seen, or its first request is not synced yet.
    New,
    /// The response to the first request.
    Answered(IngestResponse),
    /// The key was used with another body.
    Reused,
}

/// The handle that sources hold.
#[derive(Clone)]
pub struct Ingest {
    catalog: Arc<Catalog>,
    clock: Arc<dyn Clock>,
    queue: SyncSender<PreparedFrame>,
    gate: Arc<Gate>,
    synced: Arc<Mutex<Lsn>>,
    answered: Arc<Mutex<AnsweredRequests>>,
}

impl Ingest {
    /// Starts the writer's thread. It ends, and returns the log, once every handle is dropped.
    /// `queue_bytes` bounds the memory in flight. For each sync, `note_synced` gets the header of
    /// every frame before any is acknowledged, and must not block; `publish` gets every frame after
    /// all are acknowledged, and may block.
    pub fn start(
        wal: Wal,
        catalog: Arc<Catalog>,
        clock: Arc<dyn Clock>,
        queue_bytes: usize,
        maintenance: LogMaintenance,
        note_synced: impl FnMut(&Header) + Send + 'static,
        publish: impl FnMut(CommittedFrame) + Send + 'static,
    ) -> (Self, JoinHandle<Result<Wal, WalError>>) {
        let (queue, prepared) = sync_channel(QUEUE_LENGTH);
        let gate = Arc::new(Gate::new(queue_bytes));
        let synced = Arc::new(Mutex::new(wal.synced_lsn()));
        let answered = Arc::new(Mutex::new(AnsweredRequests::new(catalog.idempotency)));
        let writer = Writer::new(
            wal,
            gate.clone(),
            synced.clone(),
            answered.clone(),
            maintenance,
            Box::new(note_synced),
        );
        let closing_gate = gate.clone();
        let thread = std::thread::Builder::new()
            .name("log-writer".into())
            .spawn(move || {
                // However the thread ends, no caller may wait for it.
                let _closing = OnEnd(|| closing_gate.close());
                writer.run(&prepared, publish)
            })
            .expect("the system can start a thread");
        (
            Self {
                catalog,
                clock,
                queue,
                gate,
                synced,
                answered,
            },
            thread,
        )
    }

    /// The state of the intake, without keeping the writer running.
    pub fn intake(&self) -> Intake {
        Intake::new(self.gate.clone())
    }

    pub(crate) fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Everything up to here is durable.
    pub fn synced_lsn(&self) -> Lsn {
        *self.synced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Restores requests that were answered before this start. Call it before any is submitted.
    pub(crate) fn remember(&self, answered: Vec<(RequestKey, AnsweredRequest)>) {
        let mut table = self.answered();
        answered
            .into_iter()
            .for_each(|(key, request)| table.insert(key, request));
    }

    fn answered(&self) -> MutexGuard<'_, AnsweredRequests> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks up a request's key. One whose frame is not synced yet counts as new: submitted again,
    /// it waits for the same sync.
    pub(crate) fn key_state(&self, key: &RequestKey, hash: &BodyHash) -> KeyState {
        let synced = self.synced_lsn();
        match self.answered().lookup(key, hash) {
            Lookup::Duplicate(request) if request.lsn <= synced => {
                KeyState::Answered(request.answer.clone())
            }
            Lookup::New | Lookup::Duplicate(_) => KeyState::New,
            Lookup::Reused => KeyState::Reused,
        }
    }

    /// Memory that remembered answers take.
    pub(crate) fn answered_bytes(&self) -> usize {
        self.answered().bytes()
    }

    /// Submits records. If `wait`, blocks until the queue has space; otherwise returns an error.
    /// The records are durable once the receipt says so.
    ///
    /// # Errors
    ///
    /// The rejection; nothing of the submission is stored then.
    pub fn submit(&self, submission: Submission, wait: bool) -> Result<Receipt, IngestError> {
        let records = &submission.records;
        // Bytes, their compressed block and the decoded rows; attributes as received and as stored.
        let bytes = records.page().len() * 3
            + submission.attributes.heap_bytes() * 2
            + records.len() * RECORD_OVERHEAD_BYTES
            + FRAME_OVERHEAD_BYTES;
        let mut charge = self.gate.admit(bytes, wait, submission.kind)?;
        let (frame, decoded) = self.prepare(submission, wait)?;
        // Now the memory is known.
        charge.set(
            decoded.as_ref().map_or(0, |decoded| decoded.memory_bytes())
                + frame.memory_bytes()
                + FRAME_OVERHEAD_BYTES,
        );
        self.enqueue(frame, decoded, charge, wait)
    }

    /// What the records of a stream are recognized by when they are received again: its key and
    /// version. `truncated` has the original lengths of truncated records.
    pub fn identities(
        &self,
        stream: &str,
        records: &Records,
        truncated: &[(u64, u64)],
    ) -> Vec<RecordIdentity> {
        let decoded = self.catalog.streams.get(stream).map(|stream| {
            let received = Received {
                at: self.clock.now(),
                truncated,
                ..Received::default()
            };
            (&**stream, decode(stream, records.iter(), received))
        });
        let decoded = decoded.as_ref().map(|(stream, rows)| (*stream, rows));
        identity::of_records(records, truncated, decoded)
    }

    fn prepare(
        &self,
        submission: Submission,
        wait: bool,
    ) -> Result<(Frame, Option<Arc<Decoded>>), IngestError> {
        let received_at = self.clock.now();
        let records = submission.records.iter();
        let received = Received {
            at: received_at,
            truncated: &submission.attributes.truncated_records,
            messages: submission.attributes.messages_of(&submission.partition),
        };
        let decoded = match (
            submission.kind,
            self.catalog.streams.get(&submission.stream),
        ) {
            // A caller that does not wait can handle a rejection.
            (Kind::Record, Some(stream)) if !wait => {
                let limit = self.gate.limit() * MAX_REJECTED_FACTOR;
                let decoded = decode_within(stream, records, received, limit);
                Some(decoded.map_err(|TooManyRejected| IngestError::TooManyRejected { limit })?)
            }
            (Kind::Record | Kind::Retry, Some(stream)) => Some(decode(stream, records, received)),
            _ => None,
        };
        let header = Header {
            first_offset: submission.first_offset,
            previous_offset: submission.previous_offset,
            received_at,
            configuration: self.catalog.id,
            source: submission.source,
            partition: submission.partition,
            ..Header::new(submission.kind, submission.stream)
        };
        let frame = Frame::data(header, &submission.records, submission.attributes)
            .map_err(|e| IngestError::Refused(e.to_string()))?;
        Ok((frame, decoded.map(Arc::new)))
    }

    fn enqueue(
        &self,
        frame: Frame,
        decoded: Option<Arc<Decoded>>,
        charge: Charge,
        wait: bool,
    ) -> Result<Receipt, IngestError> {
        let (done, outcome) = sync_channel(1);
        let prepared = PreparedFrame {
            frame,
            decoded: decoded.clone(),
            charge,
            duplicate_of: None,
            done,
        };
        if wait {
            self.queue
                .send(prepared)
                .map_err(|_| IngestError::Stopping)?;
        } else {
            self.queue.try_send(prepared).map_err(|e| match e {
                TrySendError::Full(_) => IngestError::Full {
                    limit: QUEUE_LENGTH,
                    unit: "frames",
                },
                TrySendError::Disconnected(_) => IngestError::Stopping,
            })?;
        }
        Ok(Receipt::new(outcome, decoded))
    }
}
