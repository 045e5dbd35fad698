//! Values of messages → JSON, as the source's format says. A partition whose next message needs a
//! schema that is not known waits for it, alone.
//!
//! What is stored is JSON: everything after the log must neither need a schema that the log does not
//! have nor ask a registry. A value that cannot be read is stored as it arrived, with the reason.

use std::sync::Arc;

use super::partitions::Phase;
use super::registry::{Lookup, Registry};
use super::{Source, SourceError};
use crate::avro::DatumReader;
use crate::config::MessageFormat;

/// First byte of a value whose schema is in a registry; the schema's id follows in four bytes.
const MAGIC: u8 = 0;
/// Memory that is kept for the next value.
const RETAINED_BYTES: usize = 1 << 20;

/// A value of a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Json(&'a [u8]),
    /// It is not what the format says, for this reason.
    Rejected(String),
    /// It was written with a schema that is not known yet.
    AwaitsSchema(u32),
}

/// Reads values of one format.
pub(super) struct Values<'a> {
    format: Format<'a>,
    json: Vec<u8>,
}

enum Format<'a> {
    Json,
    Avro(Arc<DatumReader>),
    RegisteredAvro(&'a Registry),
}

impl<'a> Values<'a> {
    pub fn new(format: &MessageFormat, registry: Option<&'a Registry>) -> Self {
        Self {
            format: match (format, registry) {
                (_, Some(registry)) => Format::RegisteredAvro(registry),
                (MessageFormat::Avro(reader), None) => Format::Avro(reader.clone()),
                (MessageFormat::Json | MessageFormat::RegisteredAvro(_), None) => Format::Json,
            },
            json: Vec::new(),
        }
    }

    /// A value as JSON of at most `max_bytes`.
    pub fn read<'b>(&'b mut self, value: &'b [u8], max_bytes: usize) -> Value<'b> {
        let (reader, datum) = match &self.format {
            Format::Json => return Value::Json(value),
            Format::Avro(reader) => (reader.clone(), value),
            Format::RegisteredAvro(registry) => {
                let Some((id, datum)) = split_header(value) else {
                    return Value::Rejected(describe_header(value));
                };
                match registry.lookup(id) {
                    Lookup::Known(reader) => (reader, datum),
                    Lookup::Refused(reason) => return Value::Rejected(reason.to_string()),
                    Lookup::Pending => return Value::AwaitsSchema(id),
                }
            }
        };
        self.json.clear();
        self.json.shrink_to(RETAINED_BYTES);
        match reader.to_json(datum, max_bytes, &mut self.json) {
            Ok(()) => Value::Json(&self.json),
            Err(error) => Value::Rejected(format!("Avro: {error}")),
        }
    }

    /// Whether the thread that fetches schemas has ended.
    pub fn has_ended(&self) -> bool {
        self.registry().is_some_and(Registry::has_ended)
    }

    fn registry(&self) -> Option<&'a Registry> {
        match self.format {
            Format::RegisteredAvro(registry) => Some(registry),
            Format::Json | Format::Avro(_) => None,
        }
    }
}

/// The schema's id, and the datum after it.
fn split_header(value: &[u8]) -> Option<(u32, &[u8])> {
    let (&magic, rest) = value.split_first()?;
    let (id, datum) = rest.split_first_chunk::<4>()?;
    (magic == MAGIC).then_some((u32::from_be_bytes(*id), datum))
}

/// Why a value has no header.
fn describe_header(value: &[u8]) -> String {
    let found = match value.first() {
        Some(&first) if first != MAGIC => format!("it begins with the byte {first:#04x}"),
        _ => format!("it has {} bytes", value.len()),
    };
    format!(
        "Avro: the message does not name its schema by a 0 and four bytes: {found}; was it written without a registry?"
    )
}

impl Source<'_> {
    /// Ceases to fetch partitions that wait for a schema, and begins them again once it is known:
    /// what was fetched in the meantime is dropped, and the broker has it.
    pub(super) fn await_schemas(&mut self) -> Result<(), SourceError> {
        let Some(registry) = self.values.registry() else {
            return Ok(());
        };
        let is_waiting = |phase: &Phase| matches!(phase, Phase::AwaitingSchema(_));
        let fetched = self
            .partitions
            .select(|p| p.is_assigned && is_waiting(&p.phase));
        if !fetched.is_empty() {
            self.unassign(&fetched)?;
        }
        for id in fetched {
            self.finish_batch(id);
            // How far the client library has come counts what was dropped.
            self.partitions.get_mut(id).passed = 0;
        }
        for id in self.partitions.select(|p| is_waiting(&p.phase)) {
            let partition = self.partitions.get_mut(id);
            if let Phase::AwaitingSchema(schema) = partition.phase
                && !matches!(registry.lookup(schema), Lookup::Pending)
            {
                partition.phase = Phase::Starting;
            }
        }
        Ok(())
    }

    /// Why the registry does not answer, if a partition waits for it.
    pub(super) fn registry_failure(&self) -> Option<String> {
        let registry = self.values.registry()?;
        let is_waiting = |phase: &Phase| matches!(phase, Phase::AwaitingSchema(_));
        let has_waiting = self.partitions.iter().any(|p| is_waiting(&p.phase));
        let failure = registry.failure().filter(|_| has_waiting)?;
        Some(format!("{}: {failure}; retrying", registry.url()))
    }

    /// The error of a bounded run that waited for the registry in vain.
    pub(super) fn missing_registry(&self) -> Option<SourceError> {
        self.registry_failure()?;
        let registry = self.values.registry()?;
        let failure = registry.failure()?;
        Some(SourceError::Registry {
            url: registry.url().to_owned(),
            reason: format!("{failure}; records that need its schemas were not read"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn avro_becomes_json_within_a_limit() {
        let reader = DatumReader::new("\"int\"", &[]).expect("a schema");
        let mut values = Values::new(&MessageFormat::Avro(Arc::new(reader)), None);
        assert_eq!(values.read(&[20], 2), Value::Json(b"10"));
        let Value::Rejected(reason) = values.read(&[20], 1) else {
            panic!("too long");
        };
        assert!(reason.starts_with("Avro: as JSON it has more than the 1 bytes"));
        let mut values = Values::new(&MessageFormat::Json, None);
        assert_eq!(values.read(b"{}", 0), Value::Json(b"{}"));
    }

    #[test]
    fn a_header_names_a_schema() {
        assert_eq!(split_header(&[0, 0, 0, 1, 2, 7]), Some((258, &[7u8][..])));
        assert_eq!(split_header(&[0, 0, 0, 0, 9]), Some((9, &[][..])));
        let wrong: [&[u8]; 3] = [&[], &[0, 1, 2], b"{\"id\":1}"];
        let shown = wrong.map(|value| {
            assert_eq!(split_header(value), None);
            describe_header(value)
        });
        insta::assert_snapshot!(shown.join("\n"), @r#"
        Avro: the message does not name its schema by a 0 and four bytes: it has 0 bytes; was it written without a registry?
        Avro: the message does not name its schema by a 0 and four bytes: it has 3 bytes; was it written without a registry?
        Avro: the message does not name its schema by a 0 and four bytes: it begins with the byte 0x7b; was it written without a registry?
        "#);
    }
}
