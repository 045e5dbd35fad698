//! Standard input: read once, to its end; plain or compressed. What was read but not stored when a
//! run was interrupted cannot be read again: the next run records a gap.
//!
//! Offsets count from the beginning of each run's input, and are unrelated to those of another run.
//! At the end of its input a run sets the partition back to offset 0, so that any other offset
//! shows a run that was interrupted.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use super::compression::PlainReader;
use super::file::frame::{FrameBuilder, FramePosition, InFlight, partition_end};
use super::lines::{Item, Reader};
use super::{Context, SourceError};
use crate::clock::Clock;
use crate::event::Gap;

const PARTITION: &str = "stdin";
/// Bytes of records that the reader hands over at once, and batches that wait to be taken.
const BATCH_BYTES: usize = 256 << 10;
const MAX_BATCHES: usize = 2;
/// How long the first record of a frame waits for others.
const BATCH_DELAY: Duration = Duration::from_millis(10);
/// How often an idle source checks whether it is to stop.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Reads standard input to its end, or until asked to stop.
pub(crate) fn run(context: &Context, clock: &dyn Clock) -> Result<(), SourceError> {
    let (sender, batches) = sync_channel(MAX_BATCHES);
    let unwrap = context.unwrap.clone();
    let max_bytes = context.record_limits.max_bytes + 1;
    // Reading may block without end: a source that is asked to stop abandons its reader.
    std::thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            if let Err(error) = read(io::stdin(), unwrap.as_deref(), max_bytes, &sender) {
                let _ = sender.send(Err(error));
            }
        })
        .map_err(io_error)?;
    Consumer {
        context,
        frame: FrameBuilder::new(context, 0),
        next_offset: 0,
        batch_started: None,
        in_flight: InFlight::default(),
    }
    .consume(&batches, clock)
}

fn io_error(source: io::Error) -> SourceError {
    SourceError::Io {
        path: "standard input".into(),
        source,
    }
}

type Batch = io::Result<Vec<Item>>;

/// Reads records, and hands over together those that arrived together.
fn read(
    input: impl io::Read,
    unwrap: Option<&str>,
    max_bytes: usize,
    batches: &SyncSender<Batch>,
) -> io::Result<()> {
    let mut reader = Reader::new(PlainReader::new(input)?, 0, b"", unwrap, max_bytes);
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
    if !reader.dropped_members().is_empty() {
        tracing::info!(
            members = reader.dropped_members().join(", "),
            "standard input: members other than the unwrapped one are dropped"
        );
    }
    if !batch.is_empty() {
        let _ = batches.send(Ok(batch));
    }
    Ok(())
}

struct Consumer<'a> {
    context: &'a Context,
    frame: FrameBuilder,
    /// The offset after the last record consumed.
    next_offset: u64,
    /// When the first record of the frame arrived.
    batch_started: Option<Instant>,
    in_flight: InFlight,
}

impl Consumer<'_> {
    fn consume(mut self, batches: &Receiver<Batch>, clock: &dyn Clock) -> Result<(), SourceError> {
        let had_gap = self.record_gap(clock)?;
        let mut is_at_end = false;
        while !is_at_end && !self.context.stop.is_requested() {
            let timeout = match self.batch_started {
                Some(_) => BATCH_DELAY,
                None => POLL_INTERVAL,
            };
            match batches.recv_timeout(timeout) {
                Ok(batch) => {
                    for item in batch.map_err(io_error)? {
                        self.push(&item)?;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => is_at_end = true,
            }
            if self
                .batch_started
                .is_some_and(|started| started.elapsed() >= BATCH_DELAY)
            {
                self.flush()?;
            }
        }
        self.flush()?;
        if is_at_end && (self.next_offset > 0 || had_gap) {
            let end = partition_end(self.context, self.next_offset, position(0));
            self.in_flight.submit(self.context, end)?;
        }
        self.in_flight.wait_all()
    }

    /// Records that input of an earlier run may be missing; false where that run reached the end of
    /// its input.
    fn record_gap(&mut self, clock: &dyn Clock) -> Result<bool, SourceError> {
        let interrupted = self
            .context
            .partitions
            .iter()
            .find(|(partition, state)| partition == PARTITION && state.next_offset > 0);
        let Some((_, state)) = interrupted else {
            return Ok(false);
        };
        let reason = "a run ended before the end of its standard input".to_owned();
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
        self.in_flight.wait_all()?;
        Ok(true)
    }

    /// A last line without its newline is a record too: the rest of it will never come.
    fn push(&mut self, item: &Item) -> Result<(), SourceError> {
        self.frame.push(item);
        self.next_offset = item.end;
        self.batch_started.get_or_insert_with(Instant::now);
        if self.frame.is_full() {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> Result<(), SourceError> {
        self.batch_started = None;
        let next = FrameBuilder::new(self.context, self.next_offset);
        let frame = std::mem::replace(&mut self.frame, next);
        if frame.is_empty() {
            return Ok(());
        }
        let frame = frame.finish(self.context, position(self.next_offset));
        self.in_flight.submit(self.context, frame)
    }
}

fn position(next_offset: u64) -> FramePosition<'static> {
    FramePosition {
        partition: PARTITION,
        next_offset,
        file: None,
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
        assert!(
            texts(b"PK\x03\x04")
                .expect_err("unsupported")
                .contains("ZIP")
        );
    }

    #[test]
    fn only_a_prefix_of_an_endless_line_is_held() {
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
