//! The column `attributes` of `raw`: what a record has beside its offset and bytes, as JSON. Members
//! that belong to the whole frame are the same in each of its rows, with indexes that count from
//! the frame's first record; `kafka` is the row's own.
//!
//! | member | content |
//! |---|---|
//! | `idempotency_key` | the key of the request |
//! | `retry_of` | per record of the frame, the LSN of the dead letter that it resubmits |
//! | `cut` | truncated records of the frame: `[index, original length]` |
//! | `kafka` | key, headers and timestamp of a message, and what its null value becomes |

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::message::MessageMetadata;
use crate::wal::Frame;

/// Writes the attributes of a frame's rows.
pub(super) struct RowAttributes<'a> {
    frame: &'a Frame,
    shared: Map<String, Value>,
    /// `shared` as text; `None` if it is empty.
    text: Option<String>,
}

impl<'a> RowAttributes<'a> {
    pub fn new(frame: &'a Frame) -> Self {
        let attributes = &frame.attributes;
        let mut shared = Map::new();
        if let Some((_, key)) = &attributes.idempotency {
            shared.insert("idempotency_key".into(), key.as_str().into());
        }
        if !attributes.retry_of.is_empty() {
            shared.insert("retry_of".into(), attributes.retry_of.clone().into());
        }
        if !attributes.truncated_records.is_empty() {
            let cut = attributes.truncated_records.iter();
            shared.insert(
                "cut".into(),
                cut.map(|(i, n)| Value::from(vec![*i, *n])).collect(),
            );
        }
        let text = (!shared.is_empty()).then(|| Value::Object(shared.clone()).to_string());
        Self {
            frame,
            shared,
            text,
        }
    }

    /// Those of a record of the frame.
    pub fn row(&self, index: usize) -> Option<Cow<'_, str>> {
        match self.frame.attributes.messages.get(index) {
            None => self.text.as_deref().map(Cow::Borrowed),
            Some(message) => Some(with_message(self.shared.clone(), message).into()),
        }
    }
}

/// The `attributes` of a record that say nothing of its frame: its message alone.
pub(super) fn message_attributes(frame: &Frame, index: usize) -> Option<String> {
    let message = frame.attributes.messages.get(index)?;
    Some(with_message(Map::new(), message))
}

fn with_message(mut members: Map<String, Value>, message: &MessageMetadata) -> String {
    message.add_to_attributes(&mut members);
    Value::Object(members).to_string()
}

/// Attributes read from a row.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ReadAttributes {
    /// The members that all rows of the frame share.
    pub shared: Option<String>,
    pub message: Option<MessageMetadata>,
}

impl ReadAttributes {
    pub fn new(text: Option<&str>) -> Self {
        let Some(text) = text else {
            return Self::default();
        };
        let parsed = MessageMetadata::may_be_in(text)
            .then(|| serde_json::from_str::<Map<String, Value>>(text).ok())
            .flatten();
        let Some(mut members) = parsed else {
            return Self {
                shared: Some(text.to_owned()),
                message: None,
            };
        };
        let message = MessageMetadata::take_from_attributes(&mut members);
        Self {
            shared: (!members.is_empty()).then(|| Value::Object(members).to_string()),
            message,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{FrameAttributes, Header, Kind, Records};

    #[test]
    fn what_is_written_is_read_again() {
        let message = MessageMetadata {
            key: Some(b"k".to_vec()),
            ..MessageMetadata::default()
        };
        for (truncated, messages, expected) in [
            (vec![], vec![], None),
            (vec![(0, 9)], vec![], Some(r#"{"cut":[[0,9]]}"#)),
            (
                vec![],
                vec![message.clone()],
                Some(r#"{"kafka":{"key":"k"}}"#),
            ),
            (
                vec![(0, 9)],
                vec![message],
                Some(r#"{"cut":[[0,9]],"kafka":{"key":"k"}}"#),
            ),
        ] {
            let attributes = FrameAttributes {
                truncated_records: truncated.clone(),
                messages: messages.clone(),
                ..FrameAttributes::default()
            };
            let header = Header::new(Kind::Record, "s");
            let frame = Frame::data(header, &Records::single(b"{}"), attributes).expect("memory");
            let attributes = RowAttributes::new(&frame);
            let text = attributes.row(0);
            assert_eq!(text.as_deref(), expected);
            let read = ReadAttributes::new(text.as_deref());
            assert_eq!(read.message, messages.first().cloned());
            assert_eq!(read.shared.is_some(), !truncated.is_empty());
        }
    }
}
