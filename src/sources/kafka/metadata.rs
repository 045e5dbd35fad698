//! What a message carries beside its value, as the log stores it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rdkafka::Message as _;
use rdkafka::message::{BorrowedMessage, Headers};

use crate::message::{MessageMetadata, Tombstone};

/// The name of a header whose own name is not UTF-8; its value is not read.
const UNREADABLE_NAME: &str = "\u{fffd}";

/// The metadata of a message; a message without a value becomes what `tombstone` says.
pub(super) fn metadata_of(message: &BorrowedMessage<'_>, tombstone: Tombstone) -> MessageMetadata {
    let headers = message.headers();
    MessageMetadata {
        key: message.key().map(<[u8]>::to_vec),
        headers: headers.map(read_headers).unwrap_or_default(),
        timestamp_ms: message.timestamp().to_millis(),
        tombstone: message.payload().is_none().then_some(tombstone),
        rejected: None,
    }
}

/// The client library panics on a name that is not UTF-8, which must not stop the source.
fn read_headers(headers: &impl Headers) -> Vec<(String, Option<Vec<u8>>)> {
    (0..headers.count())
        .map(|n| {
            let header = catch_unwind(AssertUnwindSafe(|| {
                let header = headers.get(n);
                (header.key.to_owned(), header.value.map(<[u8]>::to_vec))
            }));
            header.unwrap_or_else(|_| (UNREADABLE_NAME.to_owned(), None))
        })
        .collect()
}
