//! The thread that owns the log: numbers, writes and syncs frames in groups, acknowledges them, and
//! publishes them to the operators.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::deferred::{Admission, Deferrable, DeferredFrames, FrameInfo};
use super::gate::{Charge, Gate, LogFullReason};
use super::receipt::SyncReport;
use super::{CommittedFrame, IngestError, LogMaintenance};
use crate::decode::Decoded;
use crate::event::Lsn;
use crate::idempotency::{
    AnsweredRequest, AnsweredRequests, BodyHash, IngestResponse, Lookup, RequestKey,
};
use crate::threads::panic_if_asked;
use crate::wal::{Frame, Header, Kind, Wal, WalError};

/// Maximum number of frames that one sync covers.
const MAX_GROUP: usize = 256;
/// How often a full log is retried, and how often an idle writer does its maintenance.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// How long the writer, after the gate has closed, waits for submissions that were admitted before.
const STOP_TIME: Duration = Duration::from_secs(2);
/// How often a full log is reported: on a disk that is nearly full, small frames fit now and then.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// A decoded and compressed submission in the writer's queue.
pub(super) struct PreparedFrame {
    pub frame: Frame,
    pub decoded: Option<Arc<Decoded>>,
    pub charge: Charge,
    /// The response to the request that this one duplicates.
    pub duplicate_of: Option<IngestResponse>,
    pub done: SyncSender<Result<SyncReport, IngestError>>,
}

impl Deferrable for PreparedFrame {
    fn info(&self) -> FrameInfo<'_> {
        let Frame {
            header, attributes, ..
        } = &self.frame;
        FrameInfo {
            source: &header.source,
            partition: &header.partition,
            is_pull: attributes.next_offset.is_some(),
            holds_records: header.kind.holds_records(),
        }
    }
}

/// The key of a request that must be processed only once.
fn request_key(frame: &Frame) -> Option<(RequestKey, BodyHash)> {
    let (hash, key) = frame
        .attributes
        .idempotency
        .as_ref()
        .filter(|_| frame.header.kind == Kind::Record)?;
    Some((
        RequestKey {
            stream: frame.header.stream.clone(),
            key: key.clone(),
        },
        *hash,
    ))
}

pub(super) struct Writer {
    pub(super) wal: Wal,
    pub(super) gate: Arc<Gate>,
    synced: Arc<Mutex<Lsn>>,
    answered: Arc<Mutex<AnsweredRequests>>,
    pub(super) maintenance: LogMaintenance,
    note_synced: Box<dyn FnMut(&Header) + Send>,
    pub(super) deferred: DeferredFrames<PreparedFrame>,
    /// When appending to a full log was last tried.
    pub(super) last_attempt: Instant,
    /// When a full log was last reported.
    last_report: Option<Instant>,
}

impl Writer {
    pub fn new(
        wal: Wal,
        gate: Arc<Gate>,
        synced: Arc<Mutex<Lsn>>,
        answered: Arc<Mutex<AnsweredRequests>>,
        maintenance: LogMaintenance,
        note_synced: Box<dyn FnMut(&Header) + Send>,
    ) -> Self {
        Self {
            wal,
            gate,
            synced,
            answered,
            maintenance,
            note_synced,
            deferred: DeferredFrames::default(),
            last_attempt: Instant::now(),
            last_report: None,
        }
    }

    /// Runs until every sender is dropped, or [`STOP_TIME`] after the gate was closed.
    pub fn run(
        mut self,
        queue: &Receiver<PreparedFrame>,
        mut publish: impl FnMut(CommittedFrame),
    ) -> Result<Wal, WalError> {
        let mut closed: Option<Instant> = None;
        loop {
            let first = match queue.recv_timeout(RETRY_INTERVAL) {
                Ok(first) => first,
                Err(RecvTimeoutError::Timeout) => {
                    self.maintain(&mut publish)?;
                    // A request that is still being decoded has not reached the log, so rejecting
                    // it loses nothing.
                    if self.gate.is_closed()
                        && closed.get_or_insert_with(Instant::now).elapsed() >= STOP_TIME
                    {
                        break;
                    }
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut group = vec![first];
            group.extend(queue.try_iter().take(MAX_GROUP - 1));
            let mut appended = Vec::with_capacity(group.len());
            for prepared in group {
                self.process(prepared, &mut appended)?;
            }
            self.sync_and_publish(&mut appended, &mut publish)?;
            self.maintain(&mut publish)?;
        }
        // No source is left that could wait for space.
        self.gate.close();
        self.maintain(&mut publish)?;
        Ok(self.wal)
    }

    /// Appends, defers or rejects a frame. If the log has no space for another segment, a pull
    /// source's frame waits, unless the process stops: if it were rejected and a later one
    /// accepted, its partition's offset would skip it. Any other frame is rejected.
    fn process(
        &mut self,
        mut prepared: PreparedFrame,
        appended: &mut Vec<PreparedFrame>,
    ) -> Result<(), WalError> {
        match self.deferred.admission(prepared.info()) {
            Admission::Append => {
                if let Err(error) = self.classify(&mut prepared) {
                    let _ = prepared.done.send(Err(error));
                } else if let Some((prepared, error)) = self.append(prepared, appended)? {
                    if self.may_defer(&prepared, &error) {
                        self.deferred.push(prepared);
                    } else {
                        self.reject(&prepared, LogFullReason::from_error(&error));
                    }
                }
            }
            Admission::Defer => self.deferred.push(prepared),
            Admission::Reject => {
                let reason = self.gate.log_full();
                self.reject(&prepared, reason.unwrap_or_else(LogFullReason::stopping));
            }
            Admission::RejectPermanently => self.reject(&prepared, LogFullReason::stopping()),
        }
        Ok(())
    }

    /// Appends a frame; if that is not possible, returns it with the reason. An error is final.
    pub(super) fn append(
        &mut self,
        mut prepared: PreparedFrame,
        appended: &mut Vec<PreparedFrame>,
    ) -> Result<Option<(PreparedFrame, WalError)>, WalError> {
        panic_if_asked("log-writer");
        let error = match self.wal.append(&mut prepared.frame) {
            Ok(()) => {
                self.remember_answer(&prepared);
                appended.push(prepared);
                return Ok(None);
            }
            Err(error @ WalError::Sync { .. }) => return Err(error),
            Err(error) => error,
        };
        if error.is_transient() {
            self.set_log_full(LogFullReason::from_error(&error));
        }
        Ok(Some((prepared, error)))
    }

    fn set_log_full(&mut self, full: LogFullReason) {
        let is_report_due = |at: Instant| at.elapsed() >= REPORT_INTERVAL;
        if self.last_report.is_none_or(is_report_due) {
            self.last_report = Some(Instant::now());
            tracing::error!(
                reason = full.reason,
                "the log accepts no more records until it can grow"
            );
        }
        self.last_attempt = Instant::now();
        self.gate.set_log_full(Some(full));
    }

    fn answered(&self) -> MutexGuard<'_, AnsweredRequests> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides whether a frame with an idempotency key is new or a duplicate. This is where frames
    /// get their order, so nothing can come between a key's first request and the decision, and the
    /// log records the decision for all its readers.
    fn classify(&self, prepared: &mut PreparedFrame) -> Result<(), IngestError> {
        let Some((key, hash)) = request_key(&prepared.frame) else {
            return Ok(());
        };
        match self.answered().lookup(&key, &hash) {
            Lookup::New => {}
            Lookup::Duplicate(request) => {
                prepared.frame.header.kind = Kind::DuplicateRequest;
                prepared.decoded = None;
                prepared.duplicate_of = Some(request.answer.clone());
            }
            Lookup::Reused => return Err(IngestError::KeyReused),
        }
        Ok(())
    }

    /// Remembers what the operators will remember once they apply the frame.
    fn remember_answer(&self, prepared: &PreparedFrame) {
        let Some((key, hash)) = request_key(&prepared.frame) else {
            return;
        };
        let Some(decoded) = &prepared.decoded else {
            return;
        };
        let request = AnsweredRequest {
            hash,
            answer: IngestResponse::new(decoded),
            lsn: prepared.frame.header.last_lsn(),
        };
        self.answered().insert(key, request);
    }

    pub(super) fn may_defer(&self, prepared: &PreparedFrame, error: &WalError) -> bool {
        prepared.info().is_pull && error.is_transient() && !self.gate.is_closed()
    }

    /// Rejects a frame, and with it every later one of its pull source.
    pub(super) fn reject(&mut self, prepared: &PreparedFrame, reason: LogFullReason) {
        if prepared.info().is_pull {
            self.deferred.reject_source(&prepared.frame.header.source);
        }
        let _ = prepared.done.send(Err(reason.into()));
    }

    /// Syncs the appended frames, acknowledges all of them, then publishes them.
    pub(super) fn sync_and_publish(
        &mut self,
        appended: &mut Vec<PreparedFrame>,
        publish: &mut impl FnMut(CommittedFrame),
    ) -> Result<(), WalError> {
        let started = Instant::now();
        let synced = self.wal.sync()?;
        metrics::histogram!("weir_sync_seconds").record(started.elapsed());
        *self.synced.lock().unwrap_or_else(PoisonError::into_inner) = synced;
        appended
            .iter()
            .for_each(|prepared| (self.note_synced)(&prepared.frame.header));
        // Publishing may wait for the operators, even for a whole snapshot. No caller whose records
        // are durable waits with it.
        for prepared in appended.iter_mut() {
            let last_lsn = prepared.frame.header.last_lsn();
            let _ = prepared.done.send(Ok(SyncReport {
                last_lsn,
                duplicate_of: prepared.duplicate_of.take(),
            }));
        }
        for prepared in appended.drain(..) {
            let PreparedFrame {
                frame,
                decoded,
                charge,
                ..
            } = prepared;
            publish(CommittedFrame {
                frame: Arc::new(frame),
                decoded,
                charge: Some(charge),
            });
        }
        Ok(())
    }
}
