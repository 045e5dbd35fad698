//! Format of an index: its version, the payload of its commits, and the schema of its fields.

use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tantivy::schema::{
    FAST, Field, IndexRecordOption, NumericOptions, Schema, TextFieldIndexing, TextOptions,
};

use super::errors::{damaged_index, index_error};
use super::rows::RowStore;
use super::text;
use crate::event::Lsn;
use crate::schema::{MAP_SUFFIX, SearchDef};
use crate::views::ViewError;

/// Version of the payload and of the fields' layout.
pub const VERSION: u32 = 4;
/// The file that lists an index's segments.
pub const META: &str = "meta.json";

/// Payload of a commit: the checkpoint that its documents reach.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Payload {
    /// The format's version.
    pub version: u32,
    /// The log that the checkpoint belongs to.
    pub log: u64,
    /// Everything up to here is in the index.
    pub checkpoint: Lsn,
    /// CRC-32C of the other fields: tantivy's checksums do not cover `meta.json`. Commits of early
    /// versions have none.
    #[serde(default, rename = "sum")]
    checksum: Option<u32>,
}

impl Payload {
    /// One of the current version.
    pub fn new(log: u64, checkpoint: Lsn) -> Self {
        let payload = Self {
            version: VERSION,
            log,
            checkpoint,
            checksum: None,
        };
        Self {
            checksum: Some(payload.compute_checksum()),
            ..payload
        }
    }

    /// Whether the fields are those that were written.
    pub fn is_intact(&self) -> bool {
        self.checksum
            .is_none_or(|checksum| checksum == self.compute_checksum())
    }

    fn compute_checksum(&self) -> u32 {
        crc32c::crc32c(format!("{} {} {}", self.version, self.log, self.checkpoint).as_bytes())
    }
}

/// Fields of an index, in the order of the declaration.
#[derive(Debug, Clone)]
pub struct Fields {
    pub lsn: Field,
    pub event_time: Field,
    pub text: Vec<Field>,
    pub exact: Vec<Field>,
    /// For each map in `text`, its column and the field of its entries.
    pub pairs: Vec<(String, Field)>,
    /// Latitude, longitude; or empty.
    pub geo: Vec<Field>,
}

/// The index schema of a declaration.
pub fn schema(def: &SearchDef) -> (Schema, Fields) {
    let mut builder = Schema::builder();
    let words = TextFieldIndexing::default()
        .set_tokenizer(text::TOKENIZER_NAME)
        .set_index_option(IndexRecordOption::WithFreqsAndPositions)
        .set_fieldnorms(true);
    let whole = TextFieldIndexing::default()
        .set_tokenizer("raw")
        .set_index_option(IndexRecordOption::Basic)
        .set_fieldnorms(false);
    let options = |indexing: &TextFieldIndexing| {
        TextOptions::default().set_indexing_options(indexing.clone())
    };
    let fields = Fields {
        lsn: builder.add_i64_field("lsn", FAST),
        event_time: builder.add_i64_field("event_time", FAST),
        text: def
            .text
            .iter()
            .map(|n| builder.add_text_field(&format!("text/{n}"), options(&words)))
            .collect(),
        exact: def
            .exact
            .iter()
            .map(|n| builder.add_text_field(&format!("exact/{n}"), options(&whole)))
            .collect(),
        geo: def
            .geo
            .iter()
            .map(|n| {
                builder.add_f64_field(&format!("geo/{n}"), NumericOptions::default().set_fast())
            })
            .collect(),
        pairs: def
            .text
            .iter()
            .filter_map(|n| n.strip_suffix(MAP_SUFFIX))
            .map(|n| {
                (
                    n.to_owned(),
                    builder.add_text_field(&format!("pairs/{n}"), options(&whole)),
                )
            })
            .collect(),
    };
    (builder.build(), fields)
}

/// The format of an index that can be opened.
#[derive(Debug, PartialEq, Eq)]
pub enum FormatCheck {
    Current,
    /// An older format without a commit: the index can be recreated, but not written to.
    OlderWithoutCommit,
}

/// Rejects an index of an older format, and one whose words were split by other rules: queries would
/// miss matches in it.
pub fn check_format(folder: &Path) -> Result<FormatCheck, ViewError> {
    let text = match std::fs::read_to_string(folder.join(META)) {
        Ok(text) => text,
        // No commit yet.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(FormatCheck::Current),
        Err(error) => return Err(index_error(folder)(error.into())),
    };
    let meta: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    if let Some(found) = parse_payload(&meta).filter(|payload| payload.version < VERSION) {
        let what = format!(
            "it has the older search format {}; this version of weir writes {VERSION}",
            found.version
        );
        return Err(damaged_index(folder, folder, &what));
    }
    let fields = meta["schema"].as_array().into_iter().flatten();
    let mut rules = fields.filter_map(|field| field["options"]["indexing"]["tokenizer"].as_str());
    match rules
        .find(|rules| *rules != text::TOKENIZER_NAME && rules.starts_with(text::TOKENIZER_PREFIX))
    {
        None if parse_payload(&meta).is_none()
            && has_no_segments(&meta)
            && !RowStore::is_used_in(&meta) =>
        {
            Ok(FormatCheck::OlderWithoutCommit)
        }
        None => Ok(FormatCheck::Current),
        Some(found) => {
            let what = format!(
                "its words were split by the rules {found}; this version of weir splits by {}",
                text::TOKENIZER_NAME
            );
            Err(damaged_index(folder, folder, &what))
        }
    }
}

fn parse_payload(meta: &serde_json::Value) -> Option<Payload> {
    meta["payload"]
        .as_str()
        .and_then(|payload| serde_json::from_str(payload).ok())
}

fn has_no_segments(meta: &serde_json::Value) -> bool {
    meta["segments"].as_array().is_some_and(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_intact_unless_a_field_changed() {
        let payload = Payload::new(7, 9);
        let text = serde_json::to_string(&payload).expect("JSON");
        let checksum = payload.compute_checksum();
        assert_eq!(
            text,
            format!(r#"{{"version":4,"log":7,"checkpoint":9,"sum":{checksum}}}"#)
        );
        let read = |text: &str| serde_json::from_str::<Payload>(text).expect("a payload");
        assert!(read(&text).is_intact());
        assert!(!read(&text.replace("\"checkpoint\":9", "\"checkpoint\":8")).is_intact());
        assert!(read(r#"{"version":4,"log":7,"checkpoint":9}"#).is_intact());
    }

    #[test]
    fn an_index_of_another_format_is_rejected() {
        let folder = tempfile::tempdir().expect("a folder");
        let check = |meta: serde_json::Value| {
            std::fs::write(folder.path().join(META), meta.to_string()).expect("written");
            check_format(folder.path()).map_err(|e| e.to_string())
        };
        let field =
            |rules: &str| serde_json::json!([{"options": {"indexing": {"tokenizer": rules}}}]);
        let payload = |version: u32| format!(r#"{{"version":{version},"log":1,"checkpoint":2}}"#);
        assert_eq!(
            check_format(&folder.path().join("none")).ok(),
            Some(FormatCheck::Current)
        );
        for (payload, rules, expected) in [
            (
                Some(payload(VERSION)),
                text::TOKENIZER_NAME,
                Ok(FormatCheck::Current),
            ),
            (Some(payload(VERSION)), "raw", Ok(FormatCheck::Current)),
            (
                Some(payload(VERSION - 1)),
                text::TOKENIZER_NAME,
                Err("older search format 3"),
            ),
            (Some(payload(VERSION)), "weir_1", Err("by the rules weir_1")),
            (
                None,
                text::TOKENIZER_NAME,
                Ok(FormatCheck::OlderWithoutCommit),
            ),
        ] {
            let meta = serde_json::json!({
                "schema": field(rules), "segments": [], "payload": payload,
            });
            match (check(meta), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
                (found, expected) => panic!("{found:?} instead of {expected:?}"),
            }
        }
    }
}
