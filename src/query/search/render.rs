//! Hits as JSON, with their events and highlights.

use std::collections::BTreeMap;

use arrow::compute::concat_batches;
use arrow::error::ArrowError;
use serde_json::{Map, Value, json};
use tantivy::snippet::SnippetGenerator;
use tantivy::tokenizer::{TextAnalyzer, TokenStream};

use super::execute::Hit;
use super::parse::Clause;
use crate::event::rfc3339;
use crate::operators::lsns;
use crate::query::QueryError;
use crate::query::encode::each_row;
use crate::schema::MAP_SUFFIX;
use crate::views::lake::LakeTable;
use crate::views::lake::files::{in_columns_of, with_partition_columns};
use crate::views::search::SearchIndex;
use crate::views::search::part::PartSearcher;
use crate::views::search::rows::RowReader;
use crate::views::search::text::TOKENIZER_NAME;

const HIGHLIGHT_CHARS: usize = 200;
/// Approximate bytes of the blocks of stored rows that are read before their hits are written.
const READ_BYTES: usize = 4 << 20;

impl Hit {
    pub fn to_json(&self, event: &Value, highlighter: &Highlighter<'_>) -> Value {
        json!({
            "lsn": self.lsn,
            "event_time": rfc3339(self.time),
            "score": self.score,
            "highlights": highlighter.highlights(event),
            "event": event,
        })
    }
}

/// The events of hits, from the rows that the index stores. They are read in batches of about
/// `READ_BYTES`, each written out before the next is read.
pub(super) struct Events<'a> {
    searchers: &'a [PartSearcher],
    table: &'a LakeTable,
    /// Hits that are not read yet.
    hits: &'a [Hit],
    rows: RowReader,
    batch: std::vec::IntoIter<Value>,
    /// The columns of the table that events have; all without it.
    columns: Option<&'a [usize]>,
    /// Uncompressed bytes of the blocks that were read.
    pub bytes_read: usize,
}

impl<'a> Events<'a> {
    pub fn new(searchers: &'a [PartSearcher], table: &'a LakeTable, hits: &'a [Hit]) -> Self {
        Self {
            searchers,
            table,
            hits,
            rows: RowReader::default(),
            batch: Vec::new().into_iter(),
            columns: None,
            bytes_read: 0,
        }
    }

    /// Events with some columns of the table only.
    pub fn with_columns(self, columns: &'a [usize]) -> Self {
        Self {
            columns: Some(columns),
            ..self
        }
    }
}

impl Events<'_> {
    fn read_batch(&mut self) -> Result<(), QueryError> {
        let spec = &self.table.spec;
        let (mut rows, failed) = (Vec::new(), |e: ArrowError| {
            QueryError::Failed(e.to_string())
        });
        while let Some((hit, rest)) = self
            .hits
            .split_first()
            .filter(|_| self.rows.bytes < READ_BYTES)
        {
            let (part, document) = hit.address;
            let index = &self.searchers[part];
            let row = self.rows.read(
                part,
                &index.segments[document.segment_ord as usize].rows,
                document,
            );
            let row = row.map_err(|e| QueryError::Failed(index.damage_message(&e.to_string())))?;
            if lsns(&row).first() != Some(&(hit.lsn as i64)) {
                return Err(QueryError::Failed(
                    index.damage_message("the row of a document belongs to another one"),
                ));
            }
            rows.push(in_columns_of(spec, &row).map_err(failed)?);
            self.hits = rest;
        }
        self.bytes_read += self.rows.bytes;
        self.rows.clear();
        let rows = concat_batches(&spec.schema, &rows).map_err(failed)?;
        let mut rows = with_partition_columns(spec, &rows, &self.table.full_schema)
            .map_err(|e| QueryError::Failed(e.to_string()))?;
        if let Some(columns) = self.columns {
            rows = rows.project(columns).map_err(failed)?;
        }
        let mut events = Vec::with_capacity(rows.num_rows());
        each_row(&rows.schema(), &[rows], |row| {
            events
                .push(serde_json::from_slice(row).map_err(|e| QueryError::Failed(e.to_string()))?);
            Ok(())
        })?;
        self.batch = events.into_iter();
        Ok(())
    }
}

impl Iterator for Events<'_> {
    type Item = Result<Value, QueryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.batch.len() == 0
            && !self.hits.is_empty()
            && let Err(error) = self.read_batch()
        {
            return Some(Err(error));
        }
        self.batch.next().map(Ok)
    }
}

/// Marks the words of a query in the text columns of an event.
pub(super) struct Highlighter<'a> {
    index: &'a SearchIndex,
    terms: BTreeMap<String, f32>,
    /// Beginnings of terms: what they stand for is known once a text is read.
    prefixes: Vec<String>,
}

impl<'a> Highlighter<'a> {
    pub fn new(index: &'a SearchIndex, clauses: &[Clause]) -> Self {
        let (mut terms, mut prefixes) = (BTreeMap::new(), Vec::new());
        for clause in clauses {
            match clause {
                Clause::Phrase(_, words) => {
                    terms.extend(words.iter().map(|(_, w)| (w.clone(), 1.0)));
                }
                Clause::Prefix(_, prefix) => prefixes.push(prefix.clone()),
                Clause::Exact(..) | Clause::Pair(..) => {}
            }
        }
        Self {
            index,
            terms,
            prefixes,
        }
    }

    /// The query's terms, with those of a text that begin with one of its prefixes.
    fn terms_in(&self, text: &str, tokenizer: &mut TextAnalyzer) -> BTreeMap<String, f32> {
        let mut terms = self.terms.clone();
        if self.prefixes.is_empty() {
            return terms;
        }
        let mut tokens = tokenizer.token_stream(text);
        while let Some(token) = tokens.next() {
            let has_prefix = |prefix: &String| token.text.starts_with(prefix);
            if self.prefixes.iter().any(has_prefix) {
                terms.insert(token.text.clone(), 1.0);
            }
        }
        terms
    }

    /// `{COLUMN: HTML, …}` of the columns that have a match.
    pub fn highlights(&self, event: &Value) -> Value {
        let tokenizer = self.index.last().0.tokenizers().get(TOKENIZER_NAME);
        let Some(mut tokenizer) = tokenizer else {
            return Value::Null;
        };
        let mut out = Map::new();
        for (name, field) in self.index.def.text.iter().zip(&self.index.fields.text) {
            let column = name.strip_suffix(MAP_SUFFIX).unwrap_or(name);
            let Some(text) = searched_text(&event[column]) else {
                continue;
            };
            let terms = self.terms_in(&text, &mut tokenizer);
            let snippet = SnippetGenerator::new(terms, tokenizer.clone(), *field, HIGHLIGHT_CHARS)
                .snippet(&text);
            if !snippet.is_empty() {
                out.insert(name.clone(), snippet.to_html().into());
            }
        }
        Value::Object(out)
    }
}

/// The text of a column, whose items are joined if it is a list or a map.
fn searched_text(value: &Value) -> Option<String> {
    let texts: Vec<&str> = match value {
        Value::String(text) => return Some(text.clone()),
        Value::Object(map) => map.values().filter_map(Value::as_str).collect(),
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect(),
        _ => return None,
    };
    Some(texts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_lists_and_maps_are_joined() {
        for (value, expected) in [
            (json!("a"), Some("a")),
            (json!(["a", null, "b"]), Some("a, b")),
            (json!({"k": "a", "l": "b"}), Some("a, b")),
            (json!(7), None),
            (Value::Null, None),
        ] {
            assert_eq!(searched_text(&value).as_deref(), expected, "{value}");
        }
    }
}
