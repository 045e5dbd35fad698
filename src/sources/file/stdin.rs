//! Standard input: read once, to its end.

use std::io::{self, BufRead, BufReader, Read};

use super::super::lines::{Layout, Reader};
use super::super::{Context, SourceError, message};
use super::content::{READ_BYTES, layout_of};
use super::frame::{FrameBuilder, InFlight};
use crate::wal::Kind;

const PARTITION: &str = "stdin";

/// Takes standard input to its end, or until asked to stop.
pub fn run(context: &Context) -> Result<(), SourceError> {
    let wrong = |source| SourceError::Io { path: "standard input".into(), source };
    let boxed: Box<dyn Read + Send> = Box::new(io::stdin());
    let mut input = BufReader::with_capacity(READ_BYTES, boxed);
    let layout = input.fill_buf().map_or(Layout::Lines, layout_of);
    let mut reader = Reader::new(input, layout, 0, usize::MAX);
    let mut in_flight = InFlight::default();
    let mut frame = FrameBuilder::new(0);
    let mut next = 0;
    while !context.stop.is_asked() {
        let Some(item) = reader.next_item().map_err(wrong)? else { break };
        if !item.is_terminated && !message::is_whole(&item.bytes) {
            if context.once {
                let mut cut = FrameBuilder::new(item.start);
                cut.push(&item, context);
                send(context, &mut in_flight, std::mem::replace(&mut frame, FrameBuilder::new(next)), next)?;
                send(context, &mut in_flight, cut, item.start)?;
            }
            break;
        }
        frame.push(&item, context);
        next = item.end;
        if frame.is_full() {
            send(context, &mut in_flight, std::mem::replace(&mut frame, FrameBuilder::with_room(next)), next)?;
        }
    }
    send(context, &mut in_flight, frame, next)?;
    if context.once && next > 0 {
        let mut end = FrameBuilder::new(next);
        end.add_payload();
        in_flight.submit(context, end.submission(context, Kind::End, PARTITION, next, None))?;
    }
    in_flight.settle()
}

fn send(context: &Context, in_flight: &mut InFlight, frame: FrameBuilder, next: u64) -> Result<(), SourceError> {
    if frame.is_empty() {
        return Ok(());
    }
    in_flight.submit(context, frame.submission(context, Kind::Record, PARTITION, next, None))
}
