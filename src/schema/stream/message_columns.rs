//! The columns of Kafka messages that a `select` may use beside those of its `schema`.

use arrow::datatypes::{DataType, Field};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use crate::schema::types;

/// A column of a message's metadata; null for a record that is not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageColumn {
    /// Text; bytes that are not UTF-8 become U+FFFD.
    Key,
    /// Text to text, likewise; the last value of a name counts.
    Headers,
    Topic,
    Partition,
    Offset,
    Timestamp,
}

impl MessageColumn {
    pub const ALL: [Self; 6] = [
        Self::Key,
        Self::Headers,
        Self::Topic,
        Self::Partition,
        Self::Offset,
        Self::Timestamp,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Key => "kafka_key",
            Self::Headers => "kafka_headers",
            Self::Topic => "kafka_topic",
            Self::Partition => "kafka_partition",
            Self::Offset => "kafka_offset",
            Self::Timestamp => "kafka_timestamp",
        }
    }

    fn data_type(self) -> DataType {
        match self {
            Self::Key | Self::Topic => DataType::Utf8,
            Self::Headers => types::map(),
            Self::Partition => DataType::Int32,
            Self::Offset => DataType::Int64,
            Self::Timestamp => types::timestamp(),
        }
    }

    pub(super) fn field(self) -> Field {
        Field::new(self.name(), self.data_type(), true)
    }

    /// Those that a `select` names and its schema does not declare. Only these are read, and only
    /// they are among the columns of `*`.
    pub(super) fn named_in(select: &str, schema: &[types::Column]) -> Vec<Self> {
        // A text that is not SQL is an error of the planner, which says where.
        let tokens = Tokenizer::new(&GenericDialect {}, select)
            .tokenize()
            .unwrap_or_default();
        let is_named = |column: &Self| {
            tokens.iter().any(|token| {
                matches!(token, Token::Word(word) if word.value.eq_ignore_ascii_case(column.name()))
            })
        };
        let is_declared = |column: &Self| schema.iter().any(|c| c.name == column.name());
        Self::ALL
            .into_iter()
            .filter(|column| is_named(column) && !is_declared(column))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_that_a_select_names_are_read() {
        use MessageColumn::{Key, Offset};
        let declared = types::parse("kafka_topic varchar, v int").expect("a schema");
        for (select, expected) in [
            ("select v from s", vec![]),
            (
                "select kafka_offset as o, KAFKA_KEY from s",
                vec![Key, Offset],
            ),
            ("select \"kafka_key\" from s", vec![Key]),
            // Declared: a field of the JSON.
            ("select kafka_topic from s", vec![]),
            ("select 'kafka_key' as text from s -- kafka_offset", vec![]),
            ("select '", vec![]),
        ] {
            assert_eq!(
                MessageColumn::named_in(select, &declared),
                expected,
                "{select}"
            );
        }
    }
}
