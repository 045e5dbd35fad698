//! Rows as messages. One thread reads them and another encodes them, while those before are handed
//! to the client library:
//!
//! ```text
//! files, memory → weir-sink-rows → rows → weir-sink-json → messages → the sink's own thread
//! ```

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Instant;

use arrow::array::RecordBatch;

use super::key::MessageKey;
use crate::operators::lsns;
use crate::query::encode;
use crate::sinks::{Delivery, SinkError, SinkTable};

/// Batches of rows that wait to be encoded, each of about 8 MiB: none, one is being encoded while
/// another is read.
const BATCHES_AHEAD: usize = 0;
/// [`Messages`] that wait to be sent, each of about 1 MiB of rows; one more is being sent, and one
/// being encoded. They keep the batches whose rows they have.
const MESSAGES_AHEAD: usize = 2;
/// Bytes of a buffer that is used again.
const MAX_REUSED_BYTES: usize = 8 << 20;

/// LSN of a row, and a hash of its content: an attempt that is repeated may have other rows of the
/// record before it.
pub type MessageId = (usize, u64);

/// A message to send; without a value it deletes its key.
pub struct Message<'a> {
    pub lsn: usize,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
}

impl Message<'_> {
    /// Which row it is.
    pub fn id(&self) -> MessageId {
        let mut hasher = DefaultHasher::new();
        (self.key, self.value).hash(&mut hasher);
        (self.lsn, hasher.finish())
    }
}

/// The messages of some rows.
pub struct Messages {
    pub rows: RecordBatch,
    keys: Vec<Option<String>>,
    json: Vec<u8>,
    /// Where the value of each row is; none of a row that retracts another.
    values: Vec<Option<Range<usize>>>,
}

impl Messages {
    /// Each row as JSON; null for one that retracts another, which deletes its key in a compacted
    /// topic.
    ///
    /// `json` is a buffer of messages before: a new one of a megabyte would cost as much as copying
    /// it, because each of its pages is cleared first.
    fn encode(
        rows: RecordBatch,
        table: &SinkTable,
        key: &MessageKey,
        mut json: Vec<u8>,
    ) -> Result<Self, SinkError> {
        json.clear();
        let mut values = Vec::with_capacity(rows.num_rows());
        let mut start = 0;
        encode::append_rows(&rows, &mut json, |json| {
            let is_retracted = table.is_retracted(&rows, values.len());
            values.push((!is_retracted).then_some(start..json.len()));
            start = json.len();
        })
        .map_err(|e| SinkError::Unavailable(e.to_string()))?;
        Ok(Self {
            keys: key.keys(&rows)?,
            rows,
            json,
            values,
        })
    }

    /// In the order of the rows.
    pub fn iter(&self) -> impl Iterator<Item = Message<'_>> {
        let keys = self.keys.iter().map(Option::as_deref);
        let values = self.values.iter().cloned();
        let messages = lsns(&self.rows).iter().zip(keys).zip(values);
        messages.map(|((lsn, key), value)| Message {
            lsn: *lsn as usize,
            key: key.map(str::as_bytes),
            value: value.map(|range| &self.json[range]),
        })
    }
}

/// Visits the messages of a delivery in their order, and of what follows it, as far as it is read
/// until then.
pub fn each<E: From<SinkError>>(
    delivery: &mut Delivery,
    table: &SinkTable,
    key: &MessageKey,
    until: Instant,
    mut visit: impl FnMut(&Messages) -> Result<(), E>,
) -> Result<(), E> {
    let (read, rows) = sync_channel(BATCHES_AHEAD);
    let (encoded, messages) = sync_channel(MESSAGES_AHEAD);
    let (give_back, buffers) = channel();
    thread::scope(|scope| {
        spawn(scope, "weir-sink-rows", move || {
            read_all(delivery, until, &read);
        })?;
        spawn(scope, "weir-sink-json", move || {
            encode_all(rows, table, key, &buffers, &encoded);
        })?;
        messages.into_iter().try_for_each(|messages| {
            let messages = messages?;
            visit(&messages)?;
            if messages.json.capacity() <= MAX_REUSED_BYTES {
                // At the end of the rows nobody takes it any more.
                let _ = give_back.send(messages.json);
            }
            Ok(())
        })
    })
}

fn spawn<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() + Send + 'scope,
) -> Result<(), SinkError> {
    let started = thread::Builder::new()
        .name(name.to_owned())
        .spawn_scoped(scope, work);
    started
        .map(drop)
        .map_err(|e| SinkError::Unavailable(format!("cannot start a thread: {e}")))
}

/// Reads until the end, an error, or until nobody takes more.
fn read_all(
    delivery: &mut Delivery,
    until: Instant,
    read: &SyncSender<Result<RecordBatch, SinkError>>,
) {
    loop {
        let next = match delivery.next_batch() {
            Ok(Some(batch)) => Ok(batch.rows),
            Ok(None) => match delivery.extend(until) {
                Ok(true) => continue,
                Ok(false) => return,
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        let is_error = next.is_err();
        if read.send(next).is_err() || is_error {
            return;
        }
    }
}

/// Encodes until the end, an error, or until nobody takes more.
fn encode_all(
    rows: Receiver<Result<RecordBatch, SinkError>>,
    table: &SinkTable,
    key: &MessageKey,
    buffers: &Receiver<Vec<u8>>,
    encoded: &SyncSender<Result<Messages, SinkError>>,
) {
    for batch in rows {
        let slices = match batch {
            Ok(batch) => encode::slices(&batch).map(Ok).collect(),
            Err(error) => vec![Err(error)],
        };
        for rows in slices {
            let buffer = buffers.try_recv().unwrap_or_default();
            let messages = rows.and_then(|rows| Messages::encode(rows, table, key, buffer));
            let is_error = messages.is_err();
            if encoded.send(messages).is_err() || is_error {
                return;
            }
        }
    }
}
