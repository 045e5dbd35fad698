//! Reads one record into columns: the parser drives, each column's type determines how its value is
//! read.
//!
//! The parser's own numbers are fast. If they would lose digits that a column needs, the record is
//! parsed a second time with every scalar read from its text, and the column reads from text for
//! the rest of the frame. Both ways give the same values.
//!
//! Example: `{"v": 1.10}` for `v varchar`. The parser offers the double 1.1, which is not the text,
//! so the pass ends with `needs_text`; the second pass gets `1.10`.

use std::collections::HashMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor,
};
use serde_json::value::RawValue;

use super::keys::KeyPositions;
use super::surrogates;
use crate::bounds::MAX_ELEMENTS;
use crate::decode::columns::{ColumnBuilder, Data, KeyTexts, TextInput};
use crate::decode::reason::{Found, RecordError, ValueError};

/// Unknown keys counted per object of the schema and frame.
const MAX_DRIFT_KEYS: usize = 100;

/// The state of one pass over a record.
#[derive(Default)]
struct Pass {
    /// Every scalar is read from its text.
    from_text: bool,
    /// A value must be read from its text, which this pass does not provide.
    needs_text: bool,
    /// Unknown keys in this pass.
    unknown: u64,
    /// Unknown keys that an earlier pass has counted already.
    counted: u64,
    /// Why the record is rejected.
    reason: Option<RecordError>,
}

impl Pass {
    /// The next pass over the same record, after this one failed.
    fn retry(self) -> Self {
        Self {
            from_text: true,
            counted: self.unknown.max(self.counted),
            ..Self::default()
        }
    }

    /// Ends the pass; the parser's error only carries it out.
    fn reject<E: Error>(&mut self, reason: RecordError) -> E {
        self.reason = Some(reason);
        E::custom("rejected")
    }

    fn need_text<E: Error>(&mut self) -> E {
        self.needs_text = true;
        E::custom("read from its text")
    }

    fn put<E: Error>(&mut self, result: Result<(), RecordError>) -> Result<(), E> {
        result.map_err(|reason| self.reject(reason))
    }
}

/// Where a frame's records are written.
pub struct Target<'a> {
    /// The stream's input columns, one value per row so far.
    pub columns: &'a mut [ColumnBuilder],
    /// The column whose key came first in the last record.
    pub first: &'a mut usize,
    /// Unknown keys with their number of occurrences.
    pub drift: &'a mut HashMap<String, u64>,
}

/// Reads a record as row number `rows`. If it is rejected, returns the reason and leaves columns
/// partially written.
pub fn read(text: &str, target: &mut Target<'_>, rows: usize) -> Result<(), RecordError> {
    let (error, pass) = match parse(text, target, Pass::default()) {
        Ok(()) => return Ok(()),
        Err(failed) => failed,
    };
    let repaired = surrogates::replace_lone_surrogates(text);
    if !pass.needs_text && repaired.is_none() && !is_out_of_range(&error) {
        return Err(reason(error, pass));
    }
    target.columns.iter_mut().for_each(|c| c.truncate(rows));
    parse(repaired.as_deref().unwrap_or(text), target, pass.retry())
        .map_err(|(error, pass)| reason(error, pass))
}

fn parse(
    text: &str,
    target: &mut Target<'_>,
    mut pass: Pass,
) -> Result<(), (serde_json::Error, Pass)> {
    let mut parser = serde_json::Deserializer::from_str(text);
    let Target {
        columns,
        first,
        drift,
    } = target;
    let visitor = ObjectVisitor {
        path: "",
        columns,
        first,
        row: None,
        drift,
        pass: &mut pass,
    };
    parser
        .deserialize_any(visitor)
        .and_then(|()| parser.end())
        .map_err(|error| (error, pass))
}

/// The parser itself rejects a number beyond the range of doubles.
fn is_out_of_range(error: &serde_json::Error) -> bool {
    error.is_syntax() && error.to_string().starts_with("number out of range")
}

fn reason(error: serde_json::Error, pass: Pass) -> RecordError {
    use serde_json::error::Category;
    match (pass.reason, error.classify()) {
        (Some(reason), _) => reason,
        (None, Category::Data) => RecordError::NotAnObject(error),
        (None, Category::Syntax | Category::Eof | Category::Io) => RecordError::Json(error),
    }
}

/// Reads an object into columns: the record itself, or a struct inside it.
struct ObjectVisitor<'a> {
    path: &'a str,
    columns: &'a mut [ColumnBuilder],
    /// The column whose key came first in the last record.
    first: &'a mut usize,
    /// The row being written; `None` for the record itself, whose columns determine it.
    row: Option<usize>,
    drift: &'a mut HashMap<String, u64>,
    pass: &'a mut Pass,
}

impl<'de> Visitor<'de> for ObjectVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut count = 0;
        while count <= MAX_ELEMENTS && seq.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        if count > MAX_ELEMENTS && self.row.is_none() {
            return Err(self.pass.reject(RecordError::TooManyRecords));
        }
        Err(A::Error::invalid_type(Unexpected::Seq, &self))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let row = self
            .row
            .unwrap_or_else(|| self.columns.first().map_or(0, ColumnBuilder::len));
        let mut previous = None;
        loop {
            let expected = previous.map_or(*self.first, |p: usize| self.columns[p].next);
            let Some(key) = map.next_key_seed(KeySeed {
                columns: self.columns,
                expected,
            })?
            else {
                break;
            };
            match key {
                Key::Column(at) => {
                    match previous {
                        Some(previous) => self.columns[previous].next = at,
                        None => *self.first = at,
                    }
                    previous = Some(at);
                    let column = &mut self.columns[at];
                    // If an object has a key twice, the last one counts.
                    if column.len() > row {
                        column.truncate(row);
                    }
                    map.next_value_seed(ValueSeed {
                        column,
                        pass: self.pass,
                    })?;
                }
                Key::Unknown(key) => {
                    map.next_value::<IgnoredAny>()?;
                    self.pass.unknown += 1;
                    if self.pass.unknown <= self.pass.counted {
                        continue;
                    }
                    let path = if self.path.is_empty() {
                        key
                    } else {
                        format!("{}.{key}", self.path)
                    };
                    if self.drift.len() < MAX_DRIFT_KEYS || self.drift.contains_key(&path) {
                        *self.drift.entry(path).or_default() += 1;
                    }
                }
            }
        }
        for column in self.columns {
            if column.len() == row {
                if column.not_null {
                    return Err(self.pass.reject(column.error(ValueError::Missing)));
                }
                column.push_null();
            } else if column.not_null && column.valid.last() == Some(&false) {
                return Err(self.pass.reject(column.error(ValueError::Null)));
            }
        }
        Ok(())
    }
}

enum Key {
    Column(usize),
    Unknown(String),
}

/// Finds a key among the columns. The one that followed in the last record is tried first, then the
/// one after it, in case an optional key is missing.
struct KeySeed<'a> {
    columns: &'a [ColumnBuilder],
    expected: usize,
}

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = Key;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed<'_> {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Key, E> {
        let mut at = self.expected;
        for _ in 0..2 {
            let Some(column) = self.columns.get(at) else {
                break;
            };
            if column.name == key {
                return Ok(Key::Column(at));
            }
            at = column.next;
        }
        Ok(self.columns.iter().position(|c| c.name == key).map_or_else(
            || Key::Unknown(key.chars().take(200).collect()),
            Key::Column,
        ))
    }
}

/// Reads one value into a column.
struct ValueSeed<'a> {
    column: &'a mut ColumnBuilder,
    pass: &'a mut Pass,
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let is_nested = matches!(
            self.column.data,
            Data::Struct { .. } | Data::Array { .. } | Data::Map { .. }
        );
        if is_nested || !(self.column.from_text || self.pass.from_text) {
            return deserializer.deserialize_any(self);
        }
        let raw = <&RawValue>::deserialize(deserializer)?;
        self.read_text(raw.get())
    }
}

impl ValueSeed<'_> {
    /// Reads a scalar, or a value that is stored as JSON, from its text.
    fn read_text<E: Error>(self, json: &str) -> Result<(), E> {
        let Self { column, pass } = self;
        let first = json.as_bytes().first().copied().unwrap_or_default();
        let result = match (first, json) {
            (b'n', _) => {
                column.push_null();
                Ok(())
            }
            _ if column.is_json() => column.put_json(json, Found::Value),
            (b'"', _) => column.put_string(&surrogates::unescape(json)),
            (_, "true") => column.put_boolean(true),
            (_, "false") => column.put_boolean(false),
            (b'{', _) => column.put_json(json, Found::Object),
            (b'[', _) => column.put_json(json, Found::Array),
            _ => {
                // If the parser's own numbers would lose digits, the column stays with text.
                let digits = json.trim_start_matches('-');
                let is_plain =
                    digits.len() < 19 && digits.bytes().all(|b| b.is_ascii_digit()) && json != "-0";
                column.from_text |= !is_plain && column.needs_digits();
                column.put_number(json)
            }
        };
        pass.put(result)
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.column.push_null();
        Ok(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        let Self { column, pass } = self;
        pass.put(column.put_boolean(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        let Self { column, pass } = self;
        pass.put(column.put_integer(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        let Self { column, pass } = self;
        pass.put(match i64::try_from(value) {
            Ok(value) => column.put_integer(value),
            Err(_) => column.put_number(&value.to_string()),
        })
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        let Self { column, pass } = self;
        if let Data::Double(values) = &mut column.data {
            values.push(value);
            column.valid.push(true);
            return Ok(());
        }
        if column.needs_digits() {
            column.from_text = true;
            return Err(pass.need_text());
        }
        Err(pass.reject(column.mismatch(Found::Decimal)))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        let Self { column, pass } = self;
        pass.put(column.put_string(value))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        let Self { column, pass } = self;
        let row = column.valid.len();
        match &mut column.data {
            Data::Map { keys, values, ends } => {
                read_map(map, (keys, values, ends), &column.path, pass)?;
            }
            Data::Struct {
                columns,
                first,
                drift,
            } => {
                ObjectVisitor {
                    path: &column.path,
                    columns,
                    first,
                    row: Some(row),
                    drift,
                    pass,
                }
                .visit_map(map)?;
            }
            Data::Text {
                accepts: TextInput::MapValue | TextInput::Json,
                ..
            } => {
                column.from_text = true;
                return Err(pass.need_text());
            }
            _ => return Err(pass.reject(column.mismatch(Found::Object))),
        }
        column.valid.push(true);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Self { column, pass } = self;
        match &mut column.data {
            Data::Array { item, ends } => {
                while seq
                    .next_element_seed(ValueSeed { column: item, pass })?
                    .is_some()
                {}
                ends.push(item.len() as i32);
            }
            // PHP writes the empty map as an empty array.
            Data::Map { ends, .. } if seq.next_element::<IgnoredAny>()?.is_none() => {
                ends.push(ends.last().copied().unwrap_or(0));
            }
            Data::Text {
                accepts: TextInput::MapValue | TextInput::Json,
                ..
            } => {
                column.from_text = true;
                return Err(pass.need_text());
            }
            _ => return Err(pass.reject(column.mismatch(Found::Array))),
        }
        column.valid.push(true);
        Ok(())
    }
}

/// Maximum number of keys of a map in one record.
pub const MAX_MAP_KEYS: usize = 100_000;

/// Reads an object with arbitrary keys; if a key occurs twice, the last one counts.
fn read_map<'de, A: MapAccess<'de>>(
    mut map: A,
    (keys, values, ends): (&mut KeyTexts, &mut ColumnBuilder, &mut Vec<i32>),
    path: &str,
    pass: &mut Pass,
) -> Result<(), A::Error> {
    let first = ends.last().copied().unwrap_or(0) as usize;
    // A rejected record may have left values after the last end.
    keys.truncate(first);
    values.truncate(first);
    let (mut seen, mut overridden) = (KeyPositions::default(), Vec::new());
    while map.next_key_seed(&mut *keys)?.is_some() {
        let position = keys.len() - first - 1;
        if position == MAX_MAP_KEYS {
            return Err(pass.reject(RecordError::Value {
                path: path.to_owned(),
                error: ValueError::TooManyKeys,
            }));
        }
        overridden.extend(seen.add(position, |n| keys.get(first + n)));
        map.next_value_seed(ValueSeed {
            column: values,
            pass,
        })?;
    }
    if !overridden.is_empty() {
        // Rare: rewrite the entries from the first overridden one on.
        overridden.sort_unstable();
        let from = first + overridden[0];
        let is_last = |n: &usize| overridden.binary_search(&(n - first)).is_err();
        let entries: Vec<(Vec<u8>, Option<String>)> = (from..keys.len())
            .filter(is_last)
            .map(|n| (keys.get(n).to_vec(), values.text_at(n)))
            .collect();
        keys.truncate(from);
        values.truncate(from);
        for (key, value) in entries {
            keys.push(&key);
            match value {
                Some(value) => values.push_text(&value),
                None => values.push_null(),
            }
        }
    }
    ends.push(keys.len() as i32);
    Ok(())
}

impl<'de> DeserializeSeed<'de> for &mut KeyTexts {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for &mut KeyTexts {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<(), E> {
        self.push(key.as_bytes());
        Ok(())
    }
}
