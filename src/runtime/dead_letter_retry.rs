//! Resubmitting dead letters: after a schema or a rule was fixed, their bytes go through the log
//! again, each with the LSN of its dead letter. What is still refused stays a dead letter.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use serde::{Deserialize, Serialize};

use super::query_service::QueryService;
use super::{POLL, RuntimeError};
use crate::clock::Clock;
use crate::decode::{Received, decode};
use crate::event::{Lsn, Micros};
use crate::ids::TableId;
use crate::ingest::{Ingest, Receipt, Submission};
use crate::message::{MessageMetadata, Messages};
use crate::operators::MAX_RETRIED;
use crate::query::QueryError;
use crate::schema::Stream;
use crate::wal::{FrameAttributes, Kind, RecordsBuilder};

/// The most dead letters that are read at once, and that share a frame.
const PAGE_ROWS: usize = 1_000;
const FRAME_RECORDS: usize = 100;
const FRAME_BYTES: usize = 4 << 20;

/// Selects dead letters.
#[derive(Debug, Clone, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetryRequest {
    /// Only those of this stream.
    pub stream: Option<String>,
    /// Only those with exactly this reason.
    pub reason: Option<String>,
    /// Only those that arrived at this time or after it: RFC 3339, a date, epoch milliseconds,
    /// now-15m.
    pub since: Option<String>,
    /// At most so many, the oldest first.
    pub limit: Option<usize>,
}

/// What became of the selected dead letters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RetrySummary {
    /// Became events.
    pub retried: u64,
    /// Are still refused, by their current reason.
    pub still_refused: BTreeMap<String, u64>,
}

/// How long earlier records may take to be applied.
const PATIENCE: Duration = Duration::from_secs(60);

/// The most reasons that are listed; the others are counted together.
const MAX_LISTED_REASONS: usize = 20;
/// Accepted when it was sent and refused when it was applied: the table lost its hour in between, or
/// a rule depends on the clock.
const REFUSED_WHEN_APPLIED: &str = "refused when it was applied; its new dead letter says why";

pub struct Retry {
    pub queries: QueryService,
    pub clock: Arc<dyn Clock>,
    pub ingest: Ingest,
    /// One retry at a time: each finds what the one before resubmitted marked, and counts only its
    /// own.
    pub turn: Arc<tokio::sync::Mutex<()>>,
}

struct DeadLetterRow {
    lsn: Lsn,
    source: String,
    stream: String,
    bytes: Vec<u8>,
    message: Option<OriginalMessage>,
}

/// Where a message came from, and what it carried beside its value.
struct OriginalMessage {
    partition: String,
    offset: u64,
    metadata: MessageMetadata,
}

impl DeadLetterRow {
    /// Why it would be rejected now, if it would.
    fn rejection(&self, stream: &Stream, now: Micros) -> Option<String> {
        let message = self.message.as_ref();
        let offsets = [message.map_or(0, |message| message.offset)];
        let messages = message.map_or_else(Messages::default, |message| Messages {
            metadata: std::slice::from_ref(&message.metadata),
            partition: &message.partition,
            offsets: &offsets,
        });
        let received = Received {
            at: now,
            truncated: &[],
            messages,
        };
        let decoded = decode(stream, std::iter::once(self.bytes.as_slice()), received);
        let rejected = decoded.rejected.into_iter().next();
        rejected.map(|rejected| rejected.reason.to_string())
    }

    fn batch_key(&self) -> RetryBatchKey {
        let partition = self.message.as_ref().map(|message| &message.partition);
        RetryBatchKey {
            source: self.source.clone(),
            partition: partition.cloned().unwrap_or_default(),
            stream: self.stream.clone(),
        }
    }
}

impl OriginalMessage {
    /// From the columns of `dead_letters`.
    fn new(partition: &str, offset: i64, attributes: &str) -> Option<Self> {
        let mut attributes = serde_json::from_str(attributes).ok()?;
        Some(Self {
            partition: partition.to_owned(),
            offset: u64::try_from(offset).ok()?,
            metadata: MessageMetadata::take_from_attributes(&mut attributes)?,
        })
    }
}

/// Rows of these columns: lsn, source, stream, bytes, partition, source_offset, attributes.
fn dead_letter_rows(columns: &[ArrayRef]) -> Vec<DeadLetterRow> {
    let [lsn, offset] = [0, 5].map(|n| columns[n].as_primitive::<Int64Type>());
    let [source, stream, partition, attributes] =
        [1, 2, 4, 6].map(|n| columns[n].as_string::<i32>());
    let bytes = columns[3].as_binary::<i32>();
    let is_message = |row: usize| attributes.is_valid(row) && offset.is_valid(row);
    (0..lsn.len())
        .map(|row| DeadLetterRow {
            lsn: lsn.value(row) as Lsn,
            source: source.value(row).to_owned(),
            stream: stream.value(row).to_owned(),
            bytes: bytes.value(row).to_vec(),
            message: is_message(row)
                .then(|| {
                    let (partition, offset) = (partition.value(row), offset.value(row));
                    OriginalMessage::new(partition, offset, attributes.value(row))
                })
                .flatten(),
        })
        .collect()
}

/// Why a page was not read.
enum PageError {
    /// It exceeds a limit of queries.
    TooLarge(String),
    Other(RuntimeError),
}

impl From<PageError> for RuntimeError {
    fn from(error: PageError) -> Self {
        match error {
            PageError::TooLarge(message) => Self::Failed(message),
            PageError::Other(error) => error,
        }
    }
}

/// What the records of a frame have in common. The partition is that of messages, whose offsets and
/// metadata are resubmitted too; empty for other records.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct RetryBatchKey {
    source: String,
    partition: String,
    stream: String,
}

/// Records that are gathered for a frame.
#[derive(Default)]
struct RetryBatch {
    records: RecordsBuilder,
    dead_letters: Vec<Lsn>,
    offsets: Vec<u64>,
    messages: Vec<MessageMetadata>,
    metadata_bytes: usize,
}

impl RetryBatch {
    fn push(&mut self, letter: DeadLetterRow) {
        self.records.push(&letter.bytes);
        self.dead_letters.push(letter.lsn);
        if let Some(message) = letter.message {
            self.offsets.push(message.offset);
            self.metadata_bytes += message.metadata.heap_bytes();
            self.messages.push(message.metadata);
        }
    }

    /// Whether it cannot take this one: it is full, or the offsets, which ascend in a frame, would
    /// not, as after a topic was deleted and created again.
    fn is_complete_before(&self, letter: &DeadLetterRow) -> bool {
        let last = self.offsets.last();
        self.dead_letters.len() >= FRAME_RECORDS
            || self.records.bytes() + self.metadata_bytes >= FRAME_BYTES
            || letter
                .message
                .as_ref()
                .is_some_and(|message| last.is_some_and(|last| message.offset < *last))
    }
}

/// A frame in the log, with the dead letter of each of its records.
struct SentFrame {
    last_lsn: Lsn,
    dead_letters: Vec<Lsn>,
}

impl RetrySummary {
    fn count_refused(&mut self, reason: String) {
        let is_listed = self.still_refused.len() < MAX_LISTED_REASONS
            || self.still_refused.contains_key(&reason);
        let reason = if is_listed {
            reason
        } else {
            "other reasons".to_owned()
        };
        *self.still_refused.entry(reason).or_default() += 1;
    }

    /// Counts sent records by what became of them: `became` has, per dead letter, the record that it
    /// became, 0 where it was refused. Pure.
    fn count_sent(&mut self, sent: &[SentFrame], became: &BTreeMap<Lsn, Lsn>) {
        for frame in sent {
            let first_lsn = frame.last_lsn + 1 - frame.dead_letters.len() as Lsn;
            for (dead, lsn) in frame.dead_letters.iter().zip(first_lsn..) {
                match became.get(dead) {
                    Some(became) if *became == lsn => self.retried += 1,
                    None | Some(0) => self.count_refused(REFUSED_WHEN_APPLIED.to_owned()),
                    // Another retry had resubmitted it before.
                    Some(_) => {}
                }
            }
        }
    }
}

impl Retry {
    /// Resubmits the selected dead letters, page by page; returns when they are applied.
    pub async fn run(&self, request: &RetryRequest) -> Result<RetrySummary, RuntimeError> {
        let _turn = self.turn.lock().await;
        self.wait_until_marked().await?;
        let mut done = RetrySummary::default();
        let mut sent = Vec::new();
        let result = self.send_all(request, &mut sent, &mut done).await;
        let Some(last) = sent.last().map(|frame: &SentFrame| frame.last_lsn) else {
            return result.map(|()| done);
        };
        self.wait_until_applied(last).await?;
        done.count_sent(&sent, &self.queries.handles.progress.retried());
        result.map(|()| done)
    }

    async fn send_all(
        &self,
        request: &RetryRequest,
        sent: &mut Vec<SentFrame>,
        done: &mut RetrySummary,
    ) -> Result<(), RuntimeError> {
        let limit = request.limit.unwrap_or(usize::MAX);
        let marked_before = self.queries.handles.progress.retried().len();
        let mut read_rows = 0;
        let mut after = 0;
        let mut page_rows = PAGE_ROWS;
        while read_rows < limit {
            let page = match self
                .page(request, after, page_rows.min(limit - read_rows))
                .await
            {
                // They are large: fewer of them fit into an answer.
                Err(PageError::TooLarge(_)) if page_rows > 1 => {
                    page_rows /= 2;
                    continue;
                }
                page => page.map_err(RuntimeError::from)?,
            };
            let Some(last) = page.last() else { break };
            after = last.lsn;
            read_rows += page.len();
            let sent_so_far: usize = sent.iter().map(|frame| frame.dead_letters.len()).sum();
            if page.len() > MAX_RETRIED.saturating_sub(marked_before + sent_so_far) {
                return Err(RuntimeError::Failed(format!(
                    "{sent_so_far} dead letters were sent back; marks of {MAX_RETRIED} are remembered, so more could come back twice"
                )));
            }
            self.resubmit(page, sent, done)?;
        }
        Ok(())
    }

    async fn wait_until_applied(&self, lsn: Lsn) -> Result<(), RuntimeError> {
        let begun = Instant::now();
        while !self.queries.handles.progress.refresh(lsn) {
            if begun.elapsed() > PATIENCE {
                let message = "dead letters were sent back and are still being applied; `retried_lsn` in `dead_letters` says which became events";
                return Err(RuntimeError::Failed(message.into()));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Waits until everything that was resubmitted before is marked, so that it is not sent again.
    async fn wait_until_marked(&self) -> Result<(), RuntimeError> {
        let (handles, synced) = (&self.queries.handles, self.ingest.synced_lsn());
        let letters = handles.tables.get(&TableId::DeadLetters);
        let begun = Instant::now();
        while !handles.progress.refresh(synced)
            || letters.is_some_and(|table| table.applied() < synced)
        {
            if begun.elapsed() > PATIENCE {
                return Err(RuntimeError::Failed(
                    "records that came before are still being applied; try again".into(),
                ));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    async fn page(
        &self,
        request: &RetryRequest,
        after: Lsn,
        limit: usize,
    ) -> Result<Vec<DeadLetterRow>, PageError> {
        let quoted = |text: &str| text.replace('\'', "''");
        let mut wanted = vec![format!("retried_lsn is null and lsn > {after}")];
        wanted.extend(
            request
                .stream
                .as_ref()
                .map(|s| format!("stream = '{}'", quoted(s))),
        );
        wanted.extend(
            request
                .reason
                .as_ref()
                .map(|r| format!("reason = '{}'", quoted(r))),
        );
        if let Some(since) = &request.since {
            let since = crate::config::units::parse_time(since, self.clock.now())
                .map_err(|e| PageError::Other(RuntimeError::Config(format!("since: {e}"))))?;
            wanted.push(format!(
                "received_at >= timestamp '{}'",
                crate::event::rfc3339(since)
            ));
        }
        let query = format!(
            "select lsn, source, stream, bytes, partition, source_offset, attributes from dead_letters where {} order by lsn limit {limit}",
            wanted.join(" and ")
        );
        let answer = self.queries.sql(&query).await.map_err(|e| match e {
            QueryError::Limit(_) => PageError::TooLarge(e.to_string()),
            e => PageError::Other(e.into()),
        })?;
        let failed =
            |e: arrow::error::ArrowError| PageError::Other(RuntimeError::Failed(e.to_string()));
        let mut letters = Vec::new();
        for batch in &answer.batches {
            let columns = [
                DataType::Int64,
                DataType::Utf8,
                DataType::Utf8,
                DataType::Binary,
                DataType::Utf8,
                DataType::Int64,
                DataType::Utf8,
            ];
            let columns = columns
                .iter()
                .enumerate()
                .map(|(n, ty)| cast(batch.column(n), ty).map_err(failed));
            let columns = columns.collect::<Result<Vec<_>, _>>()?;
            letters.extend(dead_letter_rows(&columns));
        }
        Ok(letters)
    }

    /// Sends those that would be accepted now.
    fn resubmit(
        &self,
        letters: Vec<DeadLetterRow>,
        sent: &mut Vec<SentFrame>,
        done: &mut RetrySummary,
    ) -> Result<(), RuntimeError> {
        let mut batches: BTreeMap<RetryBatchKey, RetryBatch> = BTreeMap::new();
        let mut receipts: Vec<(Receipt, Vec<Lsn>)> = Vec::new();
        for letter in letters {
            let reason = match self.ingest.catalog().streams.get(&letter.stream) {
                None => Some(format!("the stream `{}` no longer exists", letter.stream)),
                Some(stream) => letter.rejection(stream, self.clock.now()),
            };
            if let Some(reason) = reason {
                done.count_refused(reason);
                continue;
            }
            let key = letter.batch_key();
            let batch = batches.entry(key.clone()).or_default();
            if batch.is_complete_before(&letter) {
                receipts.extend(self.send(key, std::mem::take(batch))?);
            }
            batch.push(letter);
        }
        for (key, batch) in batches {
            receipts.extend(self.send(key, batch)?);
        }
        receipts
            .into_iter()
            .try_for_each(|(receipt, dead_letters)| {
                sent.push(SentFrame {
                    last_lsn: receipt.wait().map_err(RuntimeError::NotTaken)?.last_lsn,
                    dead_letters,
                });
                Ok(())
            })
    }

    fn send(
        &self,
        key: RetryBatchKey,
        batch: RetryBatch,
    ) -> Result<Option<(Receipt, Vec<Lsn>)>, RuntimeError> {
        if batch.dead_letters.is_empty() {
            return Ok(None);
        }
        let dead_letters = batch.dead_letters.clone();
        let submission = Submission {
            kind: Kind::Retry,
            source: key.source,
            partition: key.partition,
            stream: key.stream,
            records: batch.records.finish(),
            first_offset: batch.offsets.first().copied().unwrap_or_default(),
            previous_offset: 0,
            attributes: FrameAttributes {
                retry_of: batch.dead_letters,
                offsets: batch.offsets,
                messages: batch.messages,
                ..FrameAttributes::default()
            },
        };
        // A refusal leaves nothing half done: what was sent is marked, the rest is found again.
        let receipt = self.ingest.submit(submission, true);
        receipt
            .map(|receipt| Some((receipt, dead_letters)))
            .map_err(RuntimeError::NotTaken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_counts_only_what_it_resubmitted_itself() {
        // Records 11 to 14 of one frame, of the dead letters 1 to 4; 5 in a frame of its own.
        let sent = [
            SentFrame {
                last_lsn: 14,
                dead_letters: vec![1, 2, 3, 4],
            },
            SentFrame {
                last_lsn: 20,
                dead_letters: vec![5],
            },
        ];
        // 2 was resubmitted by another retry, 3 is still refused, 4 is unknown.
        let became = BTreeMap::from([(1, 11), (2, 7), (3, 0), (5, 20)]);
        let mut done = RetrySummary::default();
        done.count_sent(&sent, &became);
        assert_eq!(
            (done.retried, done.still_refused),
            (2, BTreeMap::from([(REFUSED_WHEN_APPLIED.to_owned(), 2)]))
        );
    }
}
