//! Requests and answers of `_bulk`.
//!
//! Each row is a document under the id of its key, with an external version: the sink's epoch and
//! the row's LSN. The server then never replaces a document by an older row, and a repeated row
//! replaces a document by itself (`external_gte`). After a reset all versions are greater than
//! before, so that rows which a rebuild has changed replace their documents.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::event::Lsn;
use crate::query::encode;
use crate::sinks::SinkError;
use crate::sinks::web::EncodedRow;

/// Bytes of an id that the server permits.
const MAX_ID_BYTES: usize = 512;
/// LSNs have 53 bits; versions 63.
const LSN_BITS: u32 = 53;
const MAX_EPOCH: u64 = (1 << (63 - LSN_BITS)) - 1;
/// What is read of an answer.
pub const FILTER: &str = "errors,items.*.status,items.*.error.type,items.*.error.reason,\
                          items.*.error.caused_by.reason";

/// The document of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    pub id: String,
    /// Whether the row retracts it.
    pub is_deleted: bool,
}

/// What the server said of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// The index has the row, or a newer one.
    Done,
    /// It never will, because of the row.
    Refused(String),
    /// It does not now.
    Unavailable(String),
    /// It takes no row before somebody acts.
    Halted(String),
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    items: Vec<BTreeMap<String, ItemAnswer>>,
}

#[derive(Deserialize)]
struct ItemAnswer {
    status: u16,
    error: Option<ItemError>,
}

#[derive(Deserialize, Default)]
struct ItemError {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    reason: String,
    caused_by: Option<Cause>,
}

#[derive(Deserialize)]
struct Cause {
    #[serde(default)]
    reason: String,
}

/// The version of a row.
pub fn version(epoch: u64, lsn: Lsn) -> u64 {
    (epoch.min(MAX_EPOCH) << LSN_BITS) | lsn
}

/// Ids of rows from the values of these columns.
pub fn ids(rows: &RecordBatch, key: &[usize]) -> Result<Vec<String>, SinkError> {
    let halted = |e: &dyn std::fmt::Display| SinkError::Halted(format!("ids: {e}"));
    let keys = rows.project(key).map_err(|e| halted(&e))?;
    let schema = keys.schema();
    let mut ids = Vec::with_capacity(rows.num_rows());
    encode::each_row(&schema, std::slice::from_ref(&keys), |row| {
        let mut values: Map<String, Value> = serde_json::from_slice(row).unwrap_or_default();
        let values = schema
            .fields()
            .iter()
            .map(|field| values.remove(field.name()));
        ids.push(id(values.map(Option::unwrap_or_default).collect()));
        Ok(())
    })
    .map_err(|e| halted(&e))?;
    Ok(ids)
}

/// One value as text, several as JSON; the hash of what is too long.
fn id(mut values: Vec<Value>) -> String {
    let text = match values.as_mut_slice() {
        [Value::String(text)] if !text.is_empty() => std::mem::take(text),
        [value @ (Value::Number(_) | Value::Bool(_))] => value.to_string(),
        _ => Value::Array(values).to_string(),
    };
    if text.len() <= MAX_ID_BYTES {
        return text;
    }
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The body of a request: an action a line, with the document after it unless it is deleted.
pub fn body(rows: &[EncodedRow<Document>], epoch: u64) -> Vec<u8> {
    let bytes: usize = rows.iter().map(|row| row.json.len() + 160).sum();
    let mut body = Vec::with_capacity(bytes);
    for row in rows {
        let name = if row.extra.is_deleted {
            "delete"
        } else {
            "index"
        };
        let action = json!({name: {
            "_id": row.extra.id,
            "version": version(epoch, row.lsn),
            "version_type": "external_gte",
        }});
        body.extend_from_slice(action.to_string().as_bytes());
        body.push(b'\n');
        if !row.extra.is_deleted {
            body.extend_from_slice(&row.json);
            body.push(b'\n');
        }
    }
    body
}

/// What an answer says of each row; `None` if it is not one of `_bulk`. The sink has written no
/// version above `newest`.
pub fn items(answer: &[u8], newest: u64) -> Option<Vec<Item>> {
    let answer: Answer = serde_json::from_slice(answer).ok()?;
    let mut items = Vec::with_capacity(answer.items.len());
    for item in answer.items {
        let (_, item) = item.into_iter().next()?;
        items.push(item.meaning(newest));
    }
    Some(items)
}

impl ItemAnswer {
    fn meaning(self, newest: u64) -> Item {
        let Some(error) = self.error else {
            return match self.status {
                // A deleted document that did not exist.
                200..=299 | 404 => Item::Done,
                status => of_status(status, &ItemError::default(), format!("status {status}")),
            };
        };
        let text = error.text();
        match self.status {
            409 => conflict(&error.reason, newest),
            status => of_status(status, &error, text),
        }
    }
}

impl ItemError {
    fn text(&self) -> String {
        let mut text = format!("{}: {}", self.kind, self.reason);
        if let Some(cause) = self.caused_by.as_ref().filter(|c| !c.reason.is_empty()) {
            text = format!("{text}: {}", cause.reason);
        }
        text
    }

    /// Whether all rows get it.
    fn is_of_index(&self) -> bool {
        let kinds = [
            "invalid_index_name_exception",
            "index_closed_exception",
            "validation_exception",
        ];
        let reasons = [
            "write index",
            "data stream",
            "number of documents in the index",
        ];
        kinds.contains(&self.kind.as_str())
            || reasons.iter().any(|reason| self.reason.contains(reason))
    }
}

fn of_status(status: u16, error: &ItemError, text: String) -> Item {
    let halted =
        |remedy: &str| Item::Halted(format!("{text}; {remedy}, then `weir sinks resume NAME`"));
    match status {
        408 | 429 | 500.. => Item::Unavailable(text),
        // Above a mark of disk usage, say, for as long as it lasts.
        _ if error.kind == "cluster_block_exception" => Item::Unavailable(text),
        401 | 403 => halted("give the user the right to index and delete documents"),
        404 => halted("create the index, or permit that it is created by the first write"),
        _ if error.is_of_index() => halted("repair the index"),
        400..=499 => Item::Refused(text),
        _ => Item::Unavailable(text),
    }
}

/// The index has a newer version. It is another one of this sink, unless it is above all of them.
fn conflict(reason: &str, newest: u64) -> Item {
    let current = reason
        .split_once("current version [")
        .and_then(|(_, rest)| rest.split_once(']'))
        .and_then(|(version, _)| version.parse::<u64>().ok());
    if current.is_none_or(|current| current <= newest) {
        return Item::Done;
    }
    Item::Unavailable(format!(
        "the index has newer versions than this data folder has records ({reason}): probably they \
         are of another data folder; write another `index`, or replace them by \
         `weir sinks reset NAME --from earliest`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_value_of_the_key_or_all_of_them_as_json() {
        let long = "é".repeat(257);
        for (values, expected) in [
            (json!([17]), "17"),
            (json!(["a b"]), "a b"),
            (json!([true]), "true"),
            (json!([""]), "[\"\"]"),
            (json!([null]), "[null]"),
            (json!(["a", "b,c"]), "[\"a\",\"b,c\"]"),
            (json!(["a,b", "c"]), "[\"a,b\",\"c\"]"),
            (json!(["us", 7, null]), "[\"us\",7,null]"),
            (
                json!([long]),
                "db33c4ce9e8a72562c8f24aa67b7abbabdb848426e8ddfff4ee08f6ae04d1b17",
            ),
        ] {
            let values: Vec<Value> = values.as_array().expect("a list").clone();
            assert_eq!(id(values.clone()), expected, "{values:?}");
        }
        assert_eq!(id(vec!["x".repeat(512).into()]).len(), 512);
        assert_eq!(id(vec!["x".repeat(513).into()]).len(), 64);
    }

    #[test]
    fn versions_grow_with_records_and_with_resets() {
        let largest_lsn = (1 << 53) - 1;
        assert_eq!(version(0, 17), 17);
        assert!(version(1, 0) > version(0, largest_lsn));
        assert!(version(1_023, largest_lsn) <= i64::MAX as u64);
        assert_eq!(version(5_000, 1), version(1_023, 1));
    }

    #[test]
    fn a_body_has_an_action_and_a_document_a_row() {
        let row = |lsn, id: &str, is_deleted| EncodedRow {
            lsn,
            ordinal: 0,
            json: format!("{{\"lsn\":{lsn}}}").into_bytes(),
            extra: Document {
                id: id.to_owned(),
                is_deleted,
            },
        };
        let body = body(&[row(7, "a", false), row(8, "[\"x\",1]", true)], 0);
        insta::assert_snapshot!(String::from_utf8_lossy(&body), @r#"
        {"index":{"_id":"a","version":7,"version_type":"external_gte"}}
        {"lsn":7}
        {"delete":{"_id":"[\"x\",1]","version":8,"version_type":"external_gte"}}
        "#);
    }

    #[test]
    fn each_item_is_done_refused_tried_again_or_halts_the_sink() {
        let item = |status: u16, kind: &str, reason: &str| {
            let mut item = json!({"status": status});
            if !kind.is_empty() {
                item["error"] = json!({"type": kind, "reason": reason});
            }
            json!({ "index": item })
        };
        let answer = json!({"errors": true, "items": [
            item(201, "", ""),
            item(404, "", ""),
            item(409, "version_conflict_engine_exception",
                "[1]: version conflict, current version [90] is higher than the one provided [5]"),
            item(409, "version_conflict_engine_exception",
                "[1]: version conflict, current version [101] is higher than the one provided [5]"),
            item(400, "document_parsing_exception", "failed to parse field [n] of type [long]"),
            item(400, "illegal_argument_exception", "no write index is defined for alias [a]"),
            item(404, "index_not_found_exception", "no such index [a]"),
            item(403, "security_exception", "action is unauthorized"),
            item(403, "cluster_block_exception", "index read-only"),
            item(429, "es_rejected_execution_exception", "rejected"),
            item(503, "unavailable_shards_exception", "primary shard is not active"),
        ]});
        let items = items(answer.to_string().as_bytes(), 100).expect("an answer");
        let items: Vec<String> = items.iter().map(|item| format!("{item:?}")).collect();
        insta::assert_snapshot!(items.join("\n"), @r#"
        Done
        Done
        Done
        Unavailable("the index has newer versions than this data folder has records ([1]: version conflict, current version [101] is higher than the one provided [5]): probably they are of another data folder; write another `index`, or replace them by `weir sinks reset NAME --from earliest`")
        Refused("document_parsing_exception: failed to parse field [n] of type [long]")
        Halted("illegal_argument_exception: no write index is defined for alias [a]; repair the index, then `weir sinks resume NAME`")
        Halted("index_not_found_exception: no such index [a]; create the index, or permit that it is created by the first write, then `weir sinks resume NAME`")
        Halted("security_exception: action is unauthorized; give the user the right to index and delete documents, then `weir sinks resume NAME`")
        Unavailable("cluster_block_exception: index read-only")
        Unavailable("es_rejected_execution_exception: rejected")
        Unavailable("unavailable_shards_exception: primary shard is not active")
        "#);
        assert_eq!(super::items(b"<html>", 0), None);
        assert_eq!(super::items(b"{\"items\":[{}]}", 0), None);
    }
}
