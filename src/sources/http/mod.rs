//! Sources that send a request: one whose answer does not end (`stream`), or one that is repeated
//! (`poll`).

mod body;
mod client;
mod events;
mod pages;
pub(crate) mod poll;
pub(super) mod sample;
mod seen;
pub(crate) mod stream;

use super::batcher::RecordLimits;
use super::{SourceError, message};
use crate::bounds::MAX_ELEMENTS;

/// A runtime for one source, whose thread drives it.
fn runtime(url: &str) -> Result<tokio::runtime::Runtime, SourceError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| SourceError::Io {
            path: url.to_owned(),
            source,
        })
}

/// Calls `visit` with each record of a message of `length` bytes, and its length. One that is too
/// long, of which only a prefix is held, or that has too many records, is one record, which the
/// decoder rejects.
fn each_record(
    message: &[u8],
    length: u64,
    unwrap: Option<&str>,
    limits: RecordLimits,
    visit: &mut dyn FnMut(&[u8], u64),
) {
    if limits.is_exceeded_by(length) || has_too_many(message, unwrap) {
        return visit(message, length);
    }
    message::each_at(message, unwrap, &mut |_, record| {
        visit(record, record.len() as u64);
    });
}

fn has_too_many(message: &[u8], unwrap: Option<&str>) -> bool {
    // A record has two bytes at least.
    if message.len() < 2 * MAX_ELEMENTS {
        return false;
    }
    let mut count = 0;
    message::each_at(message, unwrap, &mut |_, _| count += 1);
    count > MAX_ELEMENTS
}
