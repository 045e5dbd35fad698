//! What a record is recognized by when a source receives it again: its key and version, as its
//! stream declares them. Pure.

use arrow::array::{Array, RecordBatch};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use sha2::{Digest, Sha256};

use crate::decode::Decoded;
use crate::schema::Stream;
use crate::wal::{RecordIdentity, Records};

/// Where the declaration names no version.
const EVENT_TIME: &str = "event_time";

/// One identity per record: of its key and version; of its bytes where the stream has no key, and
/// for a record that is not an event of it. `truncated` has the original lengths of truncated
/// records.
///
/// The texts of the values are hashed, not the bytes of a column, which another version of a
/// library may lay out otherwise. The hash is cryptographic: a collision would lose a record.
pub(super) fn of_records(
    records: &Records,
    truncated: &[(u64, u64)],
    decoded: Option<(&Stream, &Decoded)>,
) -> Vec<RecordIdentity> {
    let length = |index: usize, bytes: &[u8]| {
        let original = truncated.iter().find(|(at, _)| *at == index as u64);
        original.map_or(bytes.len() as u64, |(_, length)| *length)
    };
    let of_bytes = |(index, bytes): (usize, &[u8])| {
        hash(&[b"bytes", &length(index, bytes).to_le_bytes(), bytes])
    };
    let mut identities: Vec<_> = records.iter().enumerate().map(of_bytes).collect();
    let Some((stream, decoded)) = decoded else {
        return identities;
    };
    let version = stream.def.version.as_deref().unwrap_or(EVENT_TIME);
    let columns = stream
        .def
        .key
        .as_deref()
        .and_then(|key| Columns::new(&decoded.rows, key, version));
    if let Some(columns) = columns {
        for (row, index) in decoded.index.iter().enumerate() {
            let at = identities.get_mut(*index as usize);
            if let Some((at, identity)) = at.zip(columns.identity(row)) {
                *at = identity;
            }
        }
    }
    identities
}

/// The columns of key and version.
struct Columns<'a> {
    key: ArrayFormatter<'a>,
    keys: &'a dyn Array,
    version: ArrayFormatter<'a>,
    versions: &'a dyn Array,
}

impl<'a> Columns<'a> {
    fn new(rows: &'a RecordBatch, key: &str, version: &str) -> Option<Self> {
        const OPTIONS: FormatOptions<'static> = FormatOptions::new();
        let (keys, versions) = (rows.column_by_name(key)?, rows.column_by_name(version)?);
        Some(Self {
            key: ArrayFormatter::try_new(keys, &OPTIONS).ok()?,
            keys,
            version: ArrayFormatter::try_new(versions, &OPTIONS).ok()?,
            versions,
        })
    }

    /// None without a key, or where a value has no text.
    fn identity(&self, row: usize) -> Option<RecordIdentity> {
        if self.keys.is_null(row) {
            return None;
        }
        let key = self.key.value(row).try_to_string().ok()?;
        let length = (key.len() as u64).to_le_bytes();
        let has_version = [u8::from(self.versions.is_valid(row))];
        let version = self.version.value(row).try_to_string().ok()?;
        Some(hash(&[
            b"key",
            &length,
            key.as_bytes(),
            &has_version,
            version.as_bytes(),
        ]))
    }
}

fn hash(parts: &[&[u8]]) -> RecordIdentity {
    let mut hasher = Sha256::new();
    parts.iter().for_each(|part| hasher.update(part));
    let digest = hasher.finalize();
    RecordIdentity::from_le_bytes(*digest.first_chunk().expect("32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StreamDef;
    use crate::decode::{Received, decode};
    use crate::wal::RecordsBuilder;

    /// The identities of records of a stream with columns `id`, `v` and `at`.
    fn identities(declared: &str, texts: &[&str]) -> Vec<RecordIdentity> {
        let def: StreamDef = toml::from_str(&format!(
            "schema = \"id varchar, v bigint, at timestamp(ms) not null\"\nselect = \"select at as event_time, id, v from s\"\n{declared}"
        ))
        .expect("a declaration");
        let stream = Stream::compile("s", &def).expect("it compiles");
        let mut records = RecordsBuilder::default();
        texts.iter().for_each(|text| records.push(text.as_bytes()));
        let records = records.finish();
        let received = Received {
            at: 1_000_000,
            ..Received::default()
        };
        let decoded = decode(&stream, records.iter(), received);
        of_records(&records, &[], Some((&stream, &decoded)))
    }

    #[test]
    fn key_and_version_identify_an_event_and_bytes_anything_else() {
        let texts = [
            r#"{"id":"a","v":1,"at":5}"#,
            r#"{"at":5, "v":1, "id":"a", "x":0}"#,
            r#"{"id":"a","v":2,"at":5}"#,
            r#"{"id":"a","v":1,"at":6}"#,
            r#"{"v":1,"at":5}"#,
            r#"{"v":1, "at":5}"#,
            "not JSON",
        ];
        let same = |declared: &str| {
            let all = identities(declared, &texts);
            let first = |id| all.iter().position(|other| *other == id);
            all.iter()
                .map(|id| first(*id))
                .map(Option::unwrap_or_default)
                .collect::<Vec<_>>()
        };
        assert_eq!(same("key = \"id\"\nversion = \"v\""), [0, 0, 2, 0, 4, 5, 6]);
        assert_eq!(same("key = \"id\""), [0, 0, 0, 3, 4, 5, 6]);
        assert_eq!(same(""), [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn truncated_records_differ_by_their_lengths() {
        let mut records = RecordsBuilder::default();
        (0..3).for_each(|_| records.push(b"{\"a\":"));
        let records = records.finish();
        let all = of_records(&records, &[(0, 900), (1, 901), (2, 900)], None);
        assert_ne!(all[0], all[1]);
        assert_eq!(all[0], all[2]);
    }

    #[test]
    fn stored_identities_stay_what_they_are() {
        assert_eq!(
            hash(&[b"bytes", b"weir"]),
            142_174_741_785_405_516_735_163_196_211_149_486_505
        );
    }
}
