//! Columns of what Kafka messages carry beside their values.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int32Array, Int64Array, MapBuilder, MapFieldNames, StringArray, StringBuilder,
    TimestampMicrosecondArray,
};

use crate::message::{MessageMetadata, Messages, topic_and_number};
use crate::schema::MessageColumn;

/// A column with one value for each of these records; null where they are not messages.
pub(super) fn array(column: MessageColumn, messages: Messages<'_>, records: &[u32]) -> ArrayRef {
    let metadata = || records.iter().map(|i| messages.metadata.get(*i as usize));
    let place = topic_and_number(messages.partition);
    match column {
        MessageColumn::Key => Arc::new(
            metadata()
                .map(|message| Some(String::from_utf8_lossy(message?.key.as_deref()?)))
                .collect::<StringArray>(),
        ),
        MessageColumn::Headers => headers(metadata()),
        MessageColumn::Topic => Arc::new(
            metadata()
                .map(|message| message.and(place).map(|(topic, _)| topic))
                .collect::<StringArray>(),
        ),
        MessageColumn::Partition => Arc::new(
            metadata()
                .map(|message| message.and(place).map(|(_, number)| number))
                .collect::<Int32Array>(),
        ),
        MessageColumn::Offset => Arc::new(
            metadata()
                .zip(records)
                .map(|(message, i)| {
                    let offset = message.and(messages.offsets.get(*i as usize))?;
                    i64::try_from(*offset).ok()
                })
                .collect::<Int64Array>(),
        ),
        MessageColumn::Timestamp => Arc::new(
            metadata()
                .map(|message| message?.timestamp_ms?.checked_mul(1_000))
                .collect::<TimestampMicrosecondArray>()
                .with_timezone("UTC"),
        ),
    }
}

/// Headers as maps of text. A name that occurs more than once has its last value.
fn headers<'a>(metadata: impl Iterator<Item = Option<&'a MessageMetadata>>) -> ArrayRef {
    let names = MapFieldNames {
        entry: "key_value".into(),
        key: "key".into(),
        value: "value".into(),
    };
    let mut maps = MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new());
    for message in metadata {
        if let Some(message) = message {
            for (n, (name, value)) in message.headers.iter().enumerate() {
                if message.headers[n + 1..]
                    .iter()
                    .any(|(later, _)| later == name)
                {
                    continue;
                }
                maps.keys().append_value(name);
                maps.values()
                    .append_option(value.as_deref().map(String::from_utf8_lossy));
            }
        }
        maps.append(message.is_some())
            .expect("as many values as keys");
    }
    Arc::new(maps.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Array, AsArray};
    use arrow::util::display::{ArrayFormatter, FormatOptions};

    fn texts(column: MessageColumn, messages: Messages<'_>, records: &[u32]) -> Vec<String> {
        let array = array(column, messages, records);
        let options = FormatOptions::default().with_null("null");
        let formatter = ArrayFormatter::try_new(&array, &options).expect("a formatter");
        (0..array.len())
            .map(|row| formatter.value(row).to_string())
            .collect()
    }

    #[test]
    fn each_column_has_the_values_of_its_records() {
        let first = MessageMetadata {
            key: Some(b"a\xff".to_vec()),
            headers: vec![
                ("x".into(), Some(b"1".to_vec())),
                ("y".into(), None),
                ("x".into(), Some(b"2".to_vec())),
            ],
            timestamp_ms: Some(1_000),
            ..MessageMetadata::default()
        };
        let metadata = [
            first,
            MessageMetadata::default(),
            MessageMetadata::default(),
        ];
        let messages = Messages {
            metadata: &metadata,
            partition: "t/3",
            offsets: &[7, 8, 9],
        };
        for (column, expected) in [
            (MessageColumn::Key, ["a\u{fffd}", "null"]),
            (MessageColumn::Headers, ["{y: null, x: 2}", "{}"]),
            (MessageColumn::Topic, ["t", "t"]),
            (MessageColumn::Partition, ["3", "3"]),
            (MessageColumn::Offset, ["7", "9"]),
            (MessageColumn::Timestamp, ["1970-01-01T00:00:01Z", "null"]),
        ] {
            assert_eq!(texts(column, messages, &[0, 2]), expected, "{column:?}");
        }
    }

    #[test]
    fn records_of_other_sources_have_nulls() {
        for column in MessageColumn::ALL {
            let array = array(column, Messages::default(), &[0, 1]);
            assert_eq!(array.null_count(), 2, "{column:?}");
        }
        let headers = array(MessageColumn::Headers, Messages::default(), &[0]);
        assert_eq!(headers.data_type(), &crate::schema::types::map());
        assert_eq!(headers.as_map().len(), 1);
    }
}
