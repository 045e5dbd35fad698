//! The only writer of the log. A submission is decoded and compressed on its caller's thread, then
//! numbered, written and synced by one thread for many at once; only then is it acknowledged and
//! handed on.
//!
//! Where the log has no room, frames of pull sources wait in `aside`; everything else is stored or
//! refused at once.

mod aside;
mod event_times;

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aside::{Aside, Claim, Claims, Turn};
pub use event_times::SortTimes;

use crate::clock::Clock;
use crate::decode::{Decoded, TooManyRejected, decode, decode_within};
use crate::event::Lsn;
use crate::idempotency::{Answer, Answered, AnsweredRequests, BodyHash, Lookup, RequestKey};
use crate::schema::Catalog;
use crate::storage::IoKind;
use crate::threads::{OnEnd, panic_if_asked};
use crate::wal::frame::compress;
use crate::wal::{Frame, FrameAttributes, Header, Kind, Records, RecordsBuilder, Wal, WalError};

/// Submissions that may wait for the writer, whatever their size.
const QUEUE: usize = 256;
/// Frames that one sync covers at most.
const GROUP: usize = 256;
/// How often a full log is tried again, and an idle writer looks after its segments.
const RETRY: Duration = Duration::from_millis(500);
/// How long the writer, once nobody may wait any more, lets those come who have begun.
const STOP_TIME: Duration = Duration::from_secs(2);
/// How often it is reported that the log takes no more records: on a disk that is nearly full,
/// small ones have room now and then.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// Memory that a record may take beside its bytes, until it is known what it becomes: a row, or a
/// dead letter with its reason.
const RECORD_BYTES: usize = 256;
/// Memory of dead letters that one frame may become, as a part of the queue's; frames of sources
/// that cannot be refused have few records.
const MOST_REJECTED: usize = 4;
/// Bytes of control frames that are admitted beside the queue's limit: records that wait for room
/// in the log must not keep gaps, floors and ticks from using the part of it that is theirs.
const CONTROL_BYTES: usize = 1 << 20;

/// What a source gives: records of one partition, in order.
pub struct Submission {
    pub kind: Kind,
    pub source: String,
    pub partition: String,
    pub stream: String,
    pub records: Records,
    pub first_offset: u64,
    pub previous_offset: u64,
    pub attributes: FrameAttributes,
}

impl Submission {
    /// A control frame of one payload.
    pub fn control(kind: Kind, stream: &str, payload: &[u8]) -> Self {
        let mut records = RecordsBuilder::default();
        records.push(payload);
        Self {
            kind,
            source: String::new(),
            partition: String::new(),
            stream: stream.to_owned(),
            records: records.finish(),
            first_offset: 0,
            previous_offset: 0,
            attributes: FrameAttributes::default(),
        }
    }
}

/// Why a submission was not taken; nothing of it is stored.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IngestError {
    #[error("the queue of {limit} bytes is full; try again in a second")]
    Full { limit: usize },
    #[error("the log cannot grow: {reason}")]
    NoSpace { kind: IoKind, reason: String },
    #[error("weir is stopping")]
    Stopping,
    /// The log's writer ended with the records in its hands: whether they are stored is known after
    /// the next start.
    #[error("the log failed; whether the records are stored is known after a restart")]
    Unknown,
    #[error("{0}")]
    Refused(String),
    /// They are refused together; one by one they would be dead letters.
    #[error(
        "too many records are not events: as dead letters they would take more than {limit} bytes, a share of `[limits] memory`"
    )]
    TooManyRejected { limit: usize },
    #[error("this Idempotency-Key was used with another body")]
    KeyReused,
}

/// A frame that is durable, with its rows.
pub struct Committed {
    pub frame: Arc<Frame>,
    pub decoded: Option<Arc<Decoded>>,
    /// Its part of what may be on its way; none where it is read again from the log.
    pub charge: Option<Charge>,
}

/// Bytes on their way, until it is dropped: when what they became has been taken by the operators,
/// or was refused.
pub struct Charge {
    gate: Arc<Gate>,
    bytes: usize,
    holds_records: bool,
}

impl Charge {
    /// So much it has become.
    fn set(&mut self, bytes: usize) {
        let before = std::mem::replace(&mut self.bytes, bytes);
        let mut state = self.gate.lock();
        let used = state.used(self.holds_records);
        *used = *used + bytes - before;
        drop(state);
        self.gate.freed.notify_all();
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        *self.gate.lock().used(self.holds_records) -= self.bytes;
        self.gate.freed.notify_all();
    }
}

struct Prepared {
    frame: Frame,
    decoded: Option<Arc<Decoded>>,
    charge: Charge,
    /// What the request that this one duplicates was answered.
    duplicate_of: Option<Answer>,
    done: SyncSender<Result<Synced, IngestError>>,
}

/// What the writer says of a frame that is on the disk.
struct Synced {
    last_lsn: Lsn,
    duplicate_of: Option<Answer>,
}

impl Claims for Prepared {
    fn claim(&self) -> Claim<'_> {
        let Frame {
            header, attributes, ..
        } = &self.frame;
        Claim {
            source: &header.source,
            partition: &header.partition,
            is_pull: attributes.next_offset.is_some(),
            holds_records: header.kind.holds_records(),
        }
    }
}

/// What was durably accepted.
pub struct Accepted {
    pub last_lsn: Lsn,
    pub decoded: Option<Arc<Decoded>>,
    /// The submission duplicates an earlier one under its idempotency key, which was answered this:
    /// its records are not processed.
    pub duplicate_of: Option<Answer>,
}

impl Accepted {
    /// What its sender is told.
    pub fn answer(self) -> Answer {
        self.duplicate_of
            .or_else(|| self.decoded.as_deref().map(Answer::new))
            .unwrap_or_default()
    }
}

/// A submission on its way to the disk.
pub struct Receipt {
    done: Receiver<Result<Synced, IngestError>>,
    decoded: Option<Arc<Decoded>>,
}

impl Receipt {
    /// Waits until the records are on the disk, or refused.
    pub fn wait(self) -> Result<Accepted, IngestError> {
        let Synced {
            last_lsn,
            duplicate_of,
        } = self.done.recv().map_err(|_| IngestError::Unknown)??;
        Ok(Accepted {
            last_lsn,
            decoded: self.decoded,
            duplicate_of,
        })
    }
}

/// Bytes on their way from sources to the operators, bounded; and whether the log takes any.
struct Gate {
    state: Mutex<GateState>,
    freed: Condvar,
    limit: usize,
}

/// Why the log takes no records at present.
#[derive(Debug, Clone)]
struct Halt {
    kind: IoKind,
    reason: String,
}

impl Halt {
    fn of(error: &WalError) -> Self {
        Self {
            kind: error.kind(),
            reason: error.to_string(),
        }
    }

    fn stopping() -> Self {
        Self {
            kind: IoKind::Full,
            reason: "weir is stopping".into(),
        }
    }
}

#[derive(Default)]
struct GateState {
    /// Of frames of records, and of control frames.
    records: usize,
    control: usize,
    /// Why the log has no room at present.
    full: Option<Halt>,
    is_closed: bool,
}

impl GateState {
    fn used(&mut self, holds_records: bool) -> &mut usize {
        if holds_records {
            &mut self.records
        } else {
            &mut self.control
        }
    }
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A control frame has room in a log that takes no more records. Dead letters that come back do
    /// not wait for such a log: they are kept where they are.
    fn admit(&self, bytes: usize, wait: bool, kind: Kind) -> Result<(), IngestError> {
        let mut state = self.lock();
        let limit = if kind.holds_records() {
            self.limit
        } else {
            CONTROL_BYTES
        };
        loop {
            if state.is_closed {
                return Err(IngestError::Stopping);
            }
            let full = state.full.as_ref().filter(|_| kind.holds_records());
            if let Some(halt) = full
                && (!wait || kind == Kind::Retry)
            {
                return Err(IngestError::NoSpace {
                    kind: halt.kind,
                    reason: halt.reason.clone(),
                });
            }
            // One submission always fits into an empty queue.
            let used = *state.used(kind.holds_records());
            let is_over = used > 0 && used + bytes > limit;
            let is_full = state.full.is_some() && kind.holds_records();
            if !is_full && !is_over {
                *state.used(kind.holds_records()) += bytes;
                return Ok(());
            }
            if !wait {
                return Err(IngestError::Full { limit: self.limit });
            }
            state = self
                .freed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn set_full(&self, halt: Option<Halt>) {
        self.lock().full = halt;
        self.freed.notify_all();
    }

    /// Nobody may wait any more: the writer has ended, or everything stops.
    fn close(&self) {
        self.lock().is_closed = true;
        self.freed.notify_all();
    }
}

/// Tells whether the log takes records at present, and ends all waiting for it; does not keep the
/// writer from ending.
#[derive(Clone)]
pub struct Intake(Arc<Gate>);

impl Intake {
    /// Why the log has no room, if so.
    pub fn full(&self) -> Option<String> {
        self.0.lock().full.as_ref().map(|halt| halt.reason.clone())
    }

    /// Bytes on their way to the log.
    pub fn used(&self) -> usize {
        let state = self.0.lock();
        state.records + state.control
    }

    /// Nothing more is taken in; who waits for room is told that weir is stopping.
    pub fn close(&self) {
        self.0.close();
    }
}

/// The handle that sources hold.
#[derive(Clone)]
pub struct Ingest {
    catalog: Arc<Catalog>,
    clock: Arc<dyn Clock>,
    queue: SyncSender<Prepared>,
    gate: Arc<Gate>,
    synced: Arc<Mutex<Lsn>>,
    answered: Arc<Mutex<AnsweredRequests>>,
}

/// What a key says of a request before its body is taken in.
pub enum KeyState {
    New,
    Answered(Answer),
    /// The key was used with another body.
    Reused,
}

/// What trimming the log needs of its writer.
pub enum LogMaintenance {
    Remove(Lsn),
    /// Recovery begins at this LSN at the earliest.
    Committed(Lsn),
}

impl Ingest {
    /// Starts the writer. It ends, and returns the log, when every handle is gone. Of the frames
    /// that a sync covers, `note_synced` gets each header before any is acknowledged and must not
    /// block; `hand_on` gets each frame after all are acknowledged.
    pub fn start(
        wal: Wal,
        catalog: Arc<Catalog>,
        clock: Arc<dyn Clock>,
        queue_bytes: usize,
        upkeep: Receiver<LogMaintenance>,
        note_synced: impl FnMut(&Header) + Send + 'static,
        hand_on: impl FnMut(Committed) + Send + 'static,
    ) -> (Self, JoinHandle<Result<Wal, WalError>>) {
        let (queue, prepared) = sync_channel(QUEUE);
        let gate = Arc::new(Gate {
            state: Mutex::default(),
            freed: Condvar::new(),
            limit: queue_bytes,
        });
        let synced = Arc::new(Mutex::new(wal.synced_lsn()));
        let answered = Arc::new(Mutex::new(AnsweredRequests::new(catalog.idempotency)));
        let writer = Writer {
            wal,
            gate: gate.clone(),
            synced: synced.clone(),
            answered: answered.clone(),
            upkeep,
            note_synced: Box::new(note_synced),
            aside: Aside::default(),
            tried: Instant::now(),
            reported: None,
        };
        let thread = std::thread::Builder::new()
            .name("log-writer".into())
            .spawn(move || {
                let gate = writer.gate.clone();
                // However it ends, nobody waits for it.
                let _closing = OnEnd(|| gate.close());
                writer.run(&prepared, hand_on)
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

    pub fn intake(&self) -> Intake {
        Intake(self.gate.clone())
    }

    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Everything up to here is on the disk.
    pub fn synced_lsn(&self) -> Lsn {
        *self.synced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests that were answered before this start; to be called before any is submitted.
    pub fn remember(&self, answered: Vec<(RequestKey, Answered)>) {
        let mut table = self.answered();
        answered
            .into_iter()
            .for_each(|(key, entry)| table.insert(key, entry));
    }

    fn answered(&self) -> MutexGuard<'_, AnsweredRequests> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a request's key says of it. One whose frame is not synced yet is new: submitted, it
    /// waits for the same sync.
    pub fn key_state(&self, key: &RequestKey, hash: &BodyHash) -> KeyState {
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
    pub fn answered_bytes(&self) -> usize {
        self.answered().bytes()
    }

    /// Takes records in; `wait` for room in the queue, or refuse. The records are durable when the
    /// receipt says so.
    pub fn submit(&self, submission: Submission, wait: bool) -> Result<Receipt, IngestError> {
        let page = submission.records.page().clone();
        // Bytes, their compressed block and the decoded rows.
        let bytes = page.len() * 3 + submission.records.len() * RECORD_BYTES + 1024;
        self.gate.admit(bytes, wait, submission.kind)?;
        let holds_records = submission.kind.holds_records();
        let mut charge = Charge {
            gate: self.gate.clone(),
            bytes,
            holds_records,
        };
        let (frame, decoded) = self.prepare(submission, &page, wait)?;
        // What waits is charged with what it became.
        charge.set(
            decoded.as_ref().map_or(0, |decoded| decoded.memory_bytes())
                + frame.memory_bytes()
                + 1024,
        );
        self.enqueue(frame, decoded, charge, wait)
    }

    fn prepare(
        &self,
        submission: Submission,
        page: &bytes::Bytes,
        wait: bool,
    ) -> Result<(Frame, Option<Arc<Decoded>>), IngestError> {
        let received_at = self.clock.now();
        let (records, cut) = (submission.records.iter(), &submission.attributes.cut);
        let decoded = match (
            submission.kind,
            self.catalog.streams.get(&submission.stream),
        ) {
            // Who does not wait can be refused.
            (Kind::Record, Some(stream)) if !wait => {
                let limit = self.gate.limit * MOST_REJECTED;
                let decoded = decode_within(stream, records, received_at, cut, limit);
                Some(decoded.map_err(|TooManyRejected| IngestError::TooManyRejected { limit })?)
            }
            (Kind::Record | Kind::Retry, Some(stream)) => {
                Some(decode(stream, records, received_at, cut))
            }
            _ => None,
        };
        let decoded = decoded.map(Arc::new);
        let frame = Frame {
            header: Header {
                kind: submission.kind,
                count: submission.records.len() as u32,
                first_lsn: 0,
                first_offset: submission.first_offset,
                previous_offset: submission.previous_offset,
                received_at,
                configuration: self.catalog.id,
                synced_lsn: 0,
                source: submission.source,
                partition: submission.partition,
                stream: submission.stream,
            },
            block_bytes: page.len() as u32,
            block: compress(page).map_err(|e| IngestError::Refused(e.to_string()))?,
            attributes: submission.attributes,
        };
        Ok((frame, decoded))
    }

    fn enqueue(
        &self,
        frame: Frame,
        decoded: Option<Arc<Decoded>>,
        charge: Charge,
        wait: bool,
    ) -> Result<Receipt, IngestError> {
        let (done, receipt) = sync_channel(1);
        let prepared = Prepared {
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
                TrySendError::Full(_) => IngestError::Full { limit: QUEUE },
                TrySendError::Disconnected(_) => IngestError::Stopping,
            })?;
        }
        Ok(Receipt {
            done: receipt,
            decoded,
        })
    }
}

/// The key of a request that is to be processed once.
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

struct Writer {
    wal: Wal,
    gate: Arc<Gate>,
    synced: Arc<Mutex<Lsn>>,
    answered: Arc<Mutex<AnsweredRequests>>,
    upkeep: Receiver<LogMaintenance>,
    note_synced: Box<dyn FnMut(&Header) + Send>,
    /// Frames of pull sources that wait for room.
    aside: Aside<Prepared>,
    /// When the first of them was tried last.
    tried: Instant,
    /// When it was reported last that the log takes no more records.
    reported: Option<Instant>,
}

impl Writer {
    fn run(
        mut self,
        queue: &Receiver<Prepared>,
        mut hand_on: impl FnMut(Committed),
    ) -> Result<Wal, WalError> {
        let mut closed: Option<Instant> = None;
        loop {
            let first = match queue.recv_timeout(RETRY) {
                Ok(first) => first,
                Err(RecvTimeoutError::Timeout) => {
                    self.keep_up(&mut hand_on)?;
                    // A request that is still being decoded has not reached the log, so refusing it
                    // loses nothing.
                    if self.gate.lock().is_closed
                        && closed.get_or_insert_with(Instant::now).elapsed() >= STOP_TIME
                    {
                        break;
                    }
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut group = vec![first];
            while group.len() < GROUP {
                match queue.try_recv() {
                    Ok(next) => group.push(next),
                    Err(_) => break,
                }
            }
            let mut written = Vec::with_capacity(group.len());
            for prepared in group {
                self.take_in(prepared, &mut written)?;
            }
            self.finish(&mut written, &mut hand_on)?;
            self.keep_up(&mut hand_on)?;
        }
        // No source is left that could wait for room.
        self.gate.close();
        self.keep_up(&mut hand_on)?;
        Ok(self.wal)
    }

    /// Appends, refuses, or puts aside. Where the log has no room for another segment, a pull
    /// source's frame waits, unless everything stops: a refused frame among accepted ones would be
    /// passed over by its partition's position. Any other frame is refused.
    fn take_in(
        &mut self,
        mut prepared: Prepared,
        written: &mut Vec<Prepared>,
    ) -> Result<(), WalError> {
        match self.aside.turn(prepared.claim()) {
            Turn::Try => {
                if let Err(error) = self.classify(&mut prepared) {
                    let _ = prepared.done.send(Err(error));
                } else if let Some((prepared, error)) = self.append(prepared, written)? {
                    if self.may_wait(&prepared, &error) {
                        self.aside.put(prepared);
                    } else {
                        self.refuse(&prepared, Halt::of(&error));
                    }
                }
            }
            Turn::Wait => self.aside.put(prepared),
            Turn::Refuse => {
                let halt = self.gate.lock().full.clone();
                self.refuse(&prepared, halt.unwrap_or_else(Halt::stopping));
            }
            Turn::RefuseForGood => self.refuse(&prepared, Halt::stopping()),
        }
        Ok(())
    }

    /// Appends a frame, or gives it back with the reason. An error is the log's end.
    fn append(
        &mut self,
        mut prepared: Prepared,
        written: &mut Vec<Prepared>,
    ) -> Result<Option<(Prepared, WalError)>, WalError> {
        panic_if_asked("log-writer");
        let error = match self.wal.append(&mut prepared.frame) {
            Ok(()) => {
                self.remember_answer(&prepared);
                written.push(prepared);
                return Ok(None);
            }
            Err(error @ WalError::Sync { .. }) => return Err(error),
            Err(error) => error,
        };
        if error.may_pass() {
            let halt = Halt::of(&error);
            if self.reported.is_none_or(|at| at.elapsed() >= REPORT_EVERY) {
                self.reported = Some(Instant::now());
                tracing::error!(
                    reason = halt.reason,
                    "the log takes no more records until it can grow"
                );
            }
            self.tried = Instant::now();
            self.gate.set_full(Some(halt));
        }
        Ok(Some((prepared, error)))
    }

    /// Decides what a frame with an idempotency key is. Here frames get their order, so nothing
    /// comes between a key's first request and the decision, and the log says what was decided to
    /// everything that reads it.
    fn classify(&self, prepared: &mut Prepared) -> Result<(), IngestError> {
        let Some((key, hash)) = request_key(&prepared.frame) else {
            return Ok(());
        };
        match self
            .answered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .lookup(&key, &hash)
        {
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

    /// Remembers what the operators will, once they have the frame.
    fn remember_answer(&self, prepared: &Prepared) {
        let Some((key, hash)) = request_key(&prepared.frame) else {
            return;
        };
        let Some(decoded) = &prepared.decoded else {
            return;
        };
        let answered = Answered {
            hash,
            answer: Answer::new(decoded),
            lsn: prepared.frame.header.last_lsn(),
        };
        self.answered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key, answered);
    }

    fn may_wait(&self, prepared: &Prepared, error: &WalError) -> bool {
        prepared.claim().is_pull && error.may_pass() && !self.gate.lock().is_closed
    }

    /// Nothing of it is stored; of a pull source nothing later is, either.
    fn refuse(&mut self, prepared: &Prepared, Halt { kind, reason }: Halt) {
        if prepared.claim().is_pull {
            self.aside.refuse_source(&prepared.frame.header.source);
        }
        let _ = prepared
            .done
            .send(Err(IngestError::NoSpace { kind, reason }));
    }

    /// Lets frames that wait go on, in their order, as far as there is room.
    fn go_on(&mut self, hand_on: &mut impl FnMut(Committed)) -> Result<(), WalError> {
        self.tried = Instant::now();
        let mut written = Vec::new();
        while let Some(prepared) = self.aside.take() {
            if self.aside.turn(prepared.claim()) == Turn::RefuseForGood {
                self.refuse(&prepared, Halt::stopping());
                continue;
            }
            let Some((prepared, error)) = self.append(prepared, &mut written)? else {
                continue;
            };
            if self.may_wait(&prepared, &error) {
                self.aside.put_back(prepared);
                break;
            }
            self.refuse(&prepared, Halt::of(&error));
        }
        self.finish(&mut written, hand_on)
    }

    /// Syncs what was written, acknowledges it and hands it on.
    fn finish(
        &mut self,
        written: &mut Vec<Prepared>,
        hand_on: &mut impl FnMut(Committed),
    ) -> Result<(), WalError> {
        let started = Instant::now();
        let synced = self.wal.sync()?;
        metrics::histogram!("weir_sync_seconds").record(started.elapsed());
        *self.synced.lock().unwrap_or_else(PoisonError::into_inner) = synced;
        written
            .iter()
            .for_each(|prepared| (self.note_synced)(&prepared.frame.header));
        // Handing on may wait for the operators, behind a whole snapshot; nobody whose records are
        // safe waits with it.
        for prepared in written.iter_mut() {
            let last_lsn = prepared.frame.header.last_lsn();
            let _ = prepared.done.send(Ok(Synced {
                last_lsn,
                duplicate_of: prepared.duplicate_of.take(),
            }));
        }
        for prepared in written.drain(..) {
            let Prepared {
                frame,
                decoded,
                charge,
                ..
            } = prepared;
            hand_on(Committed {
                frame: Arc::new(frame),
                decoded,
                charge: Some(charge),
            });
        }
        Ok(())
    }

    /// Removes what is no longer needed; what was full is tried again when there may be room.
    fn keep_up(&mut self, hand_on: &mut impl FnMut(Committed)) -> Result<(), WalError> {
        let has_removed = self.follow_upkeep();
        if self.gate.lock().full.is_none() {
            return Ok(());
        }
        if !self.aside.is_empty()
            && (has_removed || self.tried.elapsed() >= RETRY || self.gate.lock().is_closed)
        {
            self.go_on(hand_on)?;
        }
        match self.wal.leave_committed_segment() {
            Err(error @ WalError::Sync { .. }) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "the log's last segment cannot be left yet; it is tried again");
            }
            Ok(_) => {}
        }
        if self.aside.is_empty() && self.wal.has_room() {
            self.gate.set_full(None);
        }
        Ok(())
    }

    /// Whether a segment was removed.
    fn follow_upkeep(&mut self) -> bool {
        let mut has_removed = false;
        while let Ok(upkeep) = self.upkeep.try_recv() {
            match upkeep {
                LogMaintenance::Committed(lsn) => self.wal.set_committed(lsn),
                LogMaintenance::Remove(first_lsn) => match self.wal.remove_segment(first_lsn) {
                    Ok(()) => has_removed = true,
                    Err(error) => {
                        tracing::warn!(%error, "a segment of the log could not be removed; it is tried again");
                    }
                },
            }
        }
        has_removed
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::clock::SystemClock;
    use crate::config::Declarations;
    use crate::storage::Disk;
    use crate::wal::WalOptions;

    const STREAM: &str = r#"{"streams":{"s":{"schema":"n bigint not null","select":"select timestamp '2024-05-01T10:00:00' as event_time, n from s"}}}"#;

    fn wal(folder: &std::path::Path) -> Wal {
        let options = WalOptions {
            folder: folder.to_owned(),
            instance: 0,
            zero: 0,
            segment_bytes: 1 << 20,
            budget: None,
            floor: 0,
        };
        Wal::open(Arc::new(Disk), options, 1, 0).expect("a log").0
    }

    fn submission(record: &[u8], idempotency: Option<(BodyHash, String)>) -> Submission {
        let attributes = FrameAttributes {
            idempotency,
            ..FrameAttributes::default()
        };
        Submission {
            attributes,
            ..Submission::control(Kind::Record, "s", record)
        }
    }

    struct Started {
        ingest: Ingest,
        handed_on: Receiver<Committed>,
        _upkeep: std::sync::mpsc::Sender<LogMaintenance>,
        _folder: tempfile::TempDir,
    }

    /// A writer whose `hand_on` waits for each frame to be taken.
    fn start() -> Started {
        let folder = tempfile::tempdir().expect("a folder");
        let declared = Declarations::from_json(STREAM).expect("declarations");
        let catalog = Arc::new(Catalog::compile(&declared).expect("a catalog"));
        let (upkeep, upkeep_receiver) = channel();
        let (hand_on, handed_on) = sync_channel(0);
        let hand_on = move |frame| drop(hand_on.send(frame));
        let clock = Arc::new(SystemClock::default());
        let (ingest, _) = Ingest::start(
            wal(folder.path()),
            catalog,
            clock,
            1 << 20,
            upkeep_receiver,
            |_| {},
            hand_on,
        );
        Started {
            ingest,
            handed_on,
            _upkeep: upkeep,
            _folder: folder,
        }
    }

    #[test]
    fn all_frames_of_a_sync_are_acknowledged_before_one_is_handed_on() {
        let started = start();
        let submit = |n: u32| {
            started
                .ingest
                .submit(submission(format!("{{\"n\":{n}}}").as_bytes(), None), false)
                .expect("room")
        };
        submit(0).wait().expect("stored");
        // Its hand-on waits; these make a group behind it, whose hand-on begins when the first is
        // taken.
        let receipts: Vec<Receipt> = (1..5).map(submit).collect();
        started.handed_on.recv().expect("the first frame");
        let lsns: Vec<Lsn> = receipts
            .into_iter()
            .map(|r| r.wait().expect("stored").last_lsn)
            .collect();
        assert_eq!(lsns, [2, 3, 4, 5]);
    }

    #[test]
    fn a_stop_does_not_wait_for_who_is_still_decoding() {
        let folder = tempfile::tempdir().expect("a folder");
        let catalog = Arc::new(
            Catalog::compile(&Declarations::from_json(STREAM).expect("declarations")).expect("it"),
        );
        let (_upkeep, receiver) = channel();
        let clock = Arc::new(SystemClock::default());
        let (ingest, writer) = Ingest::start(
            wal(folder.path()),
            catalog,
            clock,
            1 << 20,
            receiver,
            |_| {},
            drop,
        );
        let still_decoding = ingest.clone();
        ingest.gate.close();
        drop(ingest);
        assert!(writer.join().expect("no panic").is_ok());
        let late = still_decoding.submit(submission(b"{}", None), false);
        assert!(matches!(late, Err(IngestError::Stopping)));
    }

    #[test]
    fn a_repeated_key_is_a_duplicate_request_and_a_reused_one_is_refused() {
        let started = start();
        let submit = |body: &[u8], hash: u8| {
            started
                .ingest
                .submit(submission(body, Some(([hash; 32], "k".into()))), false)
                .expect("room")
        };
        let receipts = [
            submit(b"{\"n\":1}", 1),
            submit(b"{\"n\":1}", 1),
            submit(b"{}", 2),
        ];
        let kinds: Vec<(Kind, bool)> = (0..2)
            .map(|_| started.handed_on.recv().expect("a frame"))
            .map(|committed| (committed.frame.header.kind, committed.decoded.is_some()))
            .collect();
        assert_eq!(
            kinds,
            [(Kind::Record, true), (Kind::DuplicateRequest, false)]
        );
        let [first, second, reused] = receipts.map(Receipt::wait);
        let (first, second) = (
            first.expect("stored").answer(),
            second.expect("stored").answer(),
        );
        assert_eq!((first.accepted, &first), (1, &second));
        assert!(matches!(reused, Err(IngestError::KeyReused)));
        let key = RequestKey {
            stream: "s".into(),
            key: "k".into(),
        };
        assert!(
            matches!(started.ingest.key_state(&key, &[1; 32]), KeyState::Answered(answer) if answer == first)
        );
    }
}
