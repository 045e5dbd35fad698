//! Standard input: read once, to its end; plain or compressed. What was read and not stored when a
//! run ended early cannot be read again: the next run records a gap.
//!
//! Positions count from the beginning of each run's input, and nothing connects them with those of
//! another run. At its end the partition goes on at 0, so that anything else shows a run that did
//! not come to its end.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use super::compression::PlainReader;
use super::file::frame::{FrameBuilder, InFlight};
use super::lines::{Item, Reader};
use super::{Context, SourceError};
use crate::clock::Clock;
use crate::event::Gap;
use crate::wal::Kind;

const PARTITION: &str = "stdin";
/// Bytes of records that are handed over at once, and how often that waits to be taken.
const BATCH_BYTES: usize = 256 << 10;
const BATCHES: usize = 2;
/// How long the first record of a frame waits for others, and how often an idle source looks
/// whether it is to end.
const GATHER: Duration = Duration::from_millis(10);
const IDLE: Duration = Duration::from_millis(200);

/// Takes standard input to its end, or until asked to stop.
pub fn run(context: &Context, clock: &dyn Clock) -> Result<(), SourceError> {
    let (sender, batches) = sync_channel(BATCHES);
    let (unwrap, limit) = (context.unwrap.clone(), context.record_bytes + 1);
    // Reading may block for ever: a source that is asked to stop leaves the reader behind.
    std::thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            if let Err(error) = read(io::stdin(), unwrap.as_deref(), limit, &sender) {
                let _ = sender.send(Err(error));
            }
        })
        .map_err(wrong)?;
    Taker {
        context,
        frame: FrameBuilder::new(0),
        next: 0,
        since: None,
        in_flight: InFlight::default(),
    }
    .take(&batches, clock)
}

fn wrong(source: io::Error) -> SourceError {
    SourceError::Io {
        path: "standard input".into(),
        source,
    }
}

type Batch = io::Result<Vec<Item>>;

/// Reads records, and hands over those that came together.
fn read(
    input: impl io::Read,
    unwrap: Option<&str>,
    limit: usize,
    batches: &SyncSender<Batch>,
) -> io::Result<()> {
    let mut reader = Reader::new(PlainReader::new(input)?, 0, b"", unwrap, limit);
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while let Some(item) = reader.next_item()? {
        bytes += size_of::<Item>() + item.bytes.len();
        batch.push(item);
        if bytes >= BATCH_BYTES || !reader.has_line() {
            bytes = 0;
            if batches.send(Ok(std::mem::take(&mut batch))).is_err() {
                return Ok(());
            }
        }
    }
    if !reader.dropped().is_empty() {
        tracing::info!(
            members = reader.dropped().join(", "),
            "standard input: members beside the one unwrapped are dropped"
        );
    }
    if !batch.is_empty() {
        let _ = batches.send(Ok(batch));
    }
    Ok(())
}

struct Taker<'a> {
    context: &'a Context,
    frame: FrameBuilder,
    /// The position behind the last record taken.
    next: u64,
    /// When the first record of the frame came.
    since: Option<Instant>,
    in_flight: InFlight,
}

impl Taker<'_> {
    fn take(mut self, batches: &Receiver<Batch>, clock: &dyn Clock) -> Result<(), SourceError> {
        let had_gap = self.record_gap(clock)?;
        let mut is_ended = false;
        while !is_ended && !self.context.stop.is_asked() {
            match batches.recv_timeout(if self.since.is_some() { GATHER } else { IDLE }) {
                Ok(batch) => {
                    for item in batch.map_err(wrong)? {
                        self.push(&item)?;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => is_ended = true,
            }
            if self.since.is_some_and(|since| since.elapsed() >= GATHER) {
                self.send()?;
            }
        }
        self.send()?;
        if is_ended && (self.next > 0 || had_gap) {
            let mut end = FrameBuilder::new(self.next);
            end.add_payload();
            self.in_flight.submit(
                self.context,
                end.submission(self.context, Kind::PartitionEnd, PARTITION, 0, None),
            )?;
        }
        self.in_flight.settle()
    }

    /// Records that input of an earlier run may be missing; false where that run came to its end.
    fn record_gap(&mut self, clock: &dyn Clock) -> Result<bool, SourceError> {
        let before = self
            .context
            .partitions
            .iter()
            .find(|(partition, state)| partition == PARTITION && state.next_offset > 0);
        let Some((_, state)) = before else {
            return Ok(false);
        };
        let reason = "a run ended before its standard input did".to_owned();
        let gap = Gap {
            source: self.context.name.clone(),
            from: state.received_at,
            to: clock.now(),
            reason,
        };
        self.in_flight.submit(
            self.context,
            gap.submission(PARTITION, &self.context.stream),
        )?;
        self.in_flight.settle()?;
        Ok(true)
    }

    /// A last line without its end is a record too: no more of it will come.
    fn push(&mut self, item: &Item) -> Result<(), SourceError> {
        self.frame.push(item, self.context);
        self.next = item.end;
        self.since.get_or_insert_with(Instant::now);
        if self.frame.is_full() {
            self.send()
        } else {
            Ok(())
        }
    }

    fn send(&mut self) -> Result<(), SourceError> {
        self.since = None;
        let frame = std::mem::replace(&mut self.frame, FrameBuilder::new(self.next));
        if frame.is_empty() {
            return Ok(());
        }
        self.in_flight.submit(
            self.context,
            frame.submission(self.context, Kind::Record, PARTITION, self.next, None),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(input: &[u8]) -> Result<Vec<String>, String> {
        let (sender, batches) = sync_channel(100);
        read(input, None, 100, &sender).map_err(|e| e.to_string())?;
        drop(sender);
        let items = batches.iter().flat_map(|batch| batch.expect("memory"));
        Ok(items
            .map(|item| String::from_utf8_lossy(&item.bytes).into_owned())
            .collect())
    }

    #[test]
    fn input_is_read_plain_or_compressed() {
        assert_eq!(
            texts(b"{\"a\":1}\n{\"b"),
            Ok(vec!["{\"a\":1}".into(), "{\"b".into()])
        );
        let packed = zstd::encode_all(&b"[{}, 2]"[..], 1).expect("memory");
        assert_eq!(texts(&packed), Ok(vec!["{}".into(), "2".into()]));
        assert!(texts(b"PK\x03\x04").expect_err("refused").contains("ZIP"));
    }

    #[test]
    fn a_line_without_an_end_is_kept_in_part() {
        let (sender, batches) = sync_channel(100);
        read(
            io::Read::take(io::repeat(b'a'), 50 << 20),
            None,
            100,
            &sender,
        )
        .expect("memory");
        let items = batches.recv().expect("a batch").expect("memory");
        assert_eq!(
            (items.len(), items[0].bytes.len(), items[0].length),
            (1, 100, 50 << 20)
        );
    }
}
