//! What a message carries beside its value, as the log stores it.

use rdkafka::Message as _;
use rdkafka::message::{BorrowedMessage, Headers as _};

use crate::message::{MessageMetadata, Tombstone};

/// The metadata of a message; a message without a value becomes what `tombstone` says.
pub(super) fn metadata_of(message: &BorrowedMessage<'_>, tombstone: Tombstone) -> MessageMetadata {
    let headers = message.headers().into_iter().flat_map(|h| h.iter());
    MessageMetadata {
        key: message.key().map(<[u8]>::to_vec),
        headers: headers
            .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)))
            .collect(),
        timestamp_ms: message.timestamp().to_millis(),
        tombstone: message.payload().is_none().then_some(tombstone),
    }
}
