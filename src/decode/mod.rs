//! Bytes → rows or rejection. Driven by the stream's schema: one parse, no tree, values go straight into columns; a record that
//! does not fit is cut back out of every column and told with its reason.
//!
//! Integers become doubles and numbers become text where the schema asks for it; every other mismatch rejects. Of a key twice
//! in an object the last counts. Unknown keys are counted, never refused.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{
    Array, ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, ListArray, MapArray, RecordBatch,
    RecordBatchOptions, StringArray, StructArray, TimestampMicrosecondArray,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Fields};
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::event::{Micros, rfc3339};
use crate::schema::types::{self, Column as ColumnDef, Type};
use crate::schema::{Selected, Stream};

/// A record that did not become an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Its place in the frame.
    pub index: u32,
    pub reason: String,
}

/// A frame's records as rows of their stream.
#[derive(Debug, Clone)]
pub struct Decoded {
    /// The stream's own columns, `event_time` first.
    pub rows: RecordBatch,
    /// Per row, which record of the frame it comes from; ascending.
    pub index: Vec<u32>,
    /// By index, ascending.
    pub rejected: Vec<Rejected>,
    /// Keys that the schema does not know, with how often they came.
    pub drift: Vec<(String, u64)>,
}

/// Values for which room is noted, and the fewest values from which it is learned.
const ROOM_VALUES: usize = 1_024;
const LEAST_FOR_ROOM: usize = 64;
/// Room that is made beforehand at most; a column that needs more grows.
const MOST_ROOM: usize = 1 << 20;
/// Unknown keys remembered per object of the schema and call.
const MAX_DRIFT_KEYS: usize = 100;
/// Event times that a table can hold: the years 1 to 9999.
const TIMES: std::ops::Range<Micros> = -62_135_596_800_000_000..253_402_300_800_000_000;

/// Decodes the records of one frame. `cut` names records stored shortened (index, original length). Pure: the same bytes give
/// the same rows, live and in replay.
pub fn decode<'a>(
    stream: &Stream,
    records: impl Iterator<Item = &'a [u8]>,
    received_at: Micros,
    cut: &[(u64, u64)],
) -> Decoded {
    let mut rooms = stream.rooms.0.iter();
    let expected = records.size_hint().0;
    let mut columns: Vec<Column> = stream.input.iter().map(|c| Column::new(c, "", expected, &mut rooms)).collect();
    let mut first = 0;
    let mut drift = HashMap::new();
    let (mut index, mut rejected) = (Vec::new(), Vec::new());
    for (i, record) in records.enumerate() {
        let i = i as u32;
        let result = match cut.iter().find(|(at, _)| *at == u64::from(i)) {
            Some((_, bytes)) => Err(format!("the record has {bytes} bytes, more than `[limits] record` allows")),
            None => parse_record(record, &mut columns, &mut first, &mut drift),
        };
        match result {
            Ok(()) => index.push(i),
            Err(reason) => {
                columns.iter_mut().for_each(|c| c.truncate(index.len()));
                rejected.push(Rejected { index: i, reason });
            }
        }
    }
    let rows = index.len();
    let mut rooms = stream.rooms.0.iter();
    for column in &mut columns {
        column.collect_drift(&mut drift);
        column.note_room(rows, &mut rooms);
    }
    let arrays: Vec<ArrayRef> = columns.into_iter().map(Column::finish).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    let input = RecordBatch::try_new_with_options(stream.input_schema.clone(), arrays, &options)
        .expect("the columns were made from this schema and have one value per row");
    let Selected { rows, kept, rejected: refused } = stream.select(&input, received_at, TIMES);
    rejected.extend(refused.into_iter().map(|(row, reason)| Rejected { index: index[row as usize], reason }));
    rejected.sort_by_key(|r| r.index);
    let mut drift: Vec<_> = drift.into_iter().collect();
    drift.sort();
    Decoded { rows, index: kept.iter().map(|row| index[*row as usize]).collect(), rejected, drift }
}

/// Reason for an event whose time lies too far ahead of its arrival.
pub fn too_far_ahead(time: Micros, received_at: Micros) -> String {
    format!("event_time {} is further ahead of its arrival at {} than max_ahead", rfc3339(time), rfc3339(received_at))
}

fn parse_record(
    record: &[u8],
    columns: &mut [Column],
    first: &mut usize,
    drift: &mut HashMap<String, u64>,
) -> Result<(), String> {
    let text = simdutf8::basic::from_utf8(record).map_err(|_| "no UTF-8".to_owned())?;
    let text: Cow<'_, str> = if text.trim_start().starts_with('"') {
        // JSON that was encoded twice: a string that holds the object.
        serde_json::from_str(text).map(Cow::Owned).map_err(|e| format!("no JSON: {e}"))?
    } else {
        Cow::Borrowed(text)
    };
    let mut parser = serde_json::Deserializer::from_str(&text);
    let visitor = ObjectVisitor { path: "", columns, first, row: None, drift };
    parser.deserialize_any(visitor).map_err(|e| reason(&e))?;
    parser.end().map_err(|e| format!("no JSON: {e}"))
}

fn reason(error: &serde_json::Error) -> String {
    use serde_json::error::Category;
    match error.classify() {
        Category::Data => {
            let text = error.to_string();
            // The position says nothing more than the field's name does.
            text.split(" at line ").next().unwrap_or(&text).to_owned()
        }
        Category::Syntax | Category::Eof | Category::Io => format!("no JSON: {error}"),
    }
}

/// One column being filled.
struct Column {
    name: String,
    /// Name with those of the objects around it: `venue.lat`.
    path: String,
    not_null: bool,
    valid: Vec<bool>,
    data: Data,
    /// The column whose key followed this one's the last time: keys come in one order, which need not be the schema's.
    next: usize,
}

enum Data {
    BigInt(Vec<i64>),
    Int(Vec<i32>),
    Double(Vec<f64>),
    Boolean(Vec<bool>),
    Timestamp(Vec<i64>),
    Varchar { bytes: Vec<u8>, ends: Vec<i32> },
    Struct { columns: Vec<Column>, first: usize, drift: HashMap<String, u64> },
    Array { item: Box<Column>, ends: Vec<i32> },
    Map { keys: Vec<String>, values: Box<Column>, ends: Vec<i32> },
}

impl Column {
    /// With room for so many values.
    fn new<'a>(
        def: &ColumnDef,
        around: &str,
        values: usize,
        rooms: &mut impl Iterator<Item = &'a AtomicUsize>,
    ) -> Self {
        let path = if around.is_empty() { def.name.clone() } else { format!("{around}.{}", def.name) };
        let mut room = |values: usize| {
            let last = rooms.next().map_or(0, |r| r.load(Ordering::Relaxed));
            // A sixteenth more, so that small differences need no second allocation.
            if values < LEAST_FOR_ROOM { 0 } else { (last * values / ROOM_VALUES * 17 / 16).min(MOST_ROOM) }
        };
        let data = match &def.ty {
            Type::BigInt => Data::BigInt(Vec::with_capacity(values)),
            Type::Int => Data::Int(Vec::with_capacity(values)),
            Type::Double => Data::Double(Vec::with_capacity(values)),
            Type::Boolean => Data::Boolean(Vec::with_capacity(values)),
            Type::Timestamp => Data::Timestamp(Vec::with_capacity(values)),
            Type::Varchar => {
                Data::Varchar { bytes: Vec::with_capacity(room(values)), ends: Vec::with_capacity(values) }
            }
            Type::Struct(fields) => {
                let columns = fields.iter().map(|f| Self::new(f, &path, values, rooms)).collect();
                Data::Struct { columns, first: 0, drift: HashMap::new() }
            }
            Type::Array(item) => {
                let items = room(values);
                let item = Box::new(Self::new(item, &path, items, rooms));
                Data::Array { item, ends: Vec::with_capacity(values) }
            }
            Type::Map(item) => {
                let item = Box::new(Self::new(item, &path, values, rooms));
                Data::Map { keys: Vec::new(), values: item, ends: Vec::with_capacity(values) }
            }
        };
        let valid = Vec::with_capacity(values);
        Self { name: def.name.clone(), path, not_null: def.not_null, valid, data, next: usize::MAX }
    }

    /// Notes what `values` values took.
    fn note_room<'a>(&self, values: usize, rooms: &mut impl Iterator<Item = &'a AtomicUsize>) {
        let mut note = |taken: usize| {
            if let Some(room) = rooms.next()
                && values >= LEAST_FOR_ROOM
            {
                room.store(taken * ROOM_VALUES / values, Ordering::Relaxed);
            }
        };
        match &self.data {
            Data::Varchar { bytes, .. } => note(bytes.len()),
            Data::Struct { columns, .. } => columns.iter().for_each(|c| c.note_room(values, rooms)),
            Data::Array { item, .. } => {
                note(item.len());
                item.note_room(item.len(), rooms);
            }
            Data::Map { values: items, .. } => items.note_room(values, rooms),
            _ => {}
        }
    }

    fn len(&self) -> usize {
        self.valid.len()
    }

    fn push_null(&mut self) {
        match &mut self.data {
            Data::BigInt(v) | Data::Timestamp(v) => v.push(0),
            Data::Int(v) => v.push(0),
            Data::Double(v) => v.push(0.0),
            Data::Boolean(v) => v.push(false),
            Data::Varchar { ends, .. } | Data::Array { ends, .. } | Data::Map { ends, .. } => {
                ends.push(ends.last().copied().unwrap_or(0));
            }
            Data::Struct { columns, .. } => columns.iter_mut().for_each(Self::push_null),
        }
        self.valid.push(false);
    }

    /// Forgets all values from the `rows`-th on, also half-written ones.
    fn truncate(&mut self, rows: usize) {
        self.valid.truncate(rows);
        match &mut self.data {
            Data::BigInt(v) | Data::Timestamp(v) => v.truncate(rows),
            Data::Int(v) => v.truncate(rows),
            Data::Double(v) => v.truncate(rows),
            Data::Boolean(v) => v.truncate(rows),
            Data::Varchar { bytes, ends } => {
                ends.truncate(rows);
                bytes.truncate(ends.last().copied().unwrap_or(0) as usize);
            }
            Data::Struct { columns, .. } => columns.iter_mut().for_each(|c| c.truncate(rows)),
            Data::Array { item, ends } => {
                ends.truncate(rows);
                item.truncate(ends.last().copied().unwrap_or(0) as usize);
            }
            Data::Map { keys, values, ends } => {
                ends.truncate(rows);
                let entries = ends.last().copied().unwrap_or(0) as usize;
                keys.truncate(entries);
                values.truncate(entries);
            }
        }
    }

    fn push_text(&mut self, text: &str) -> bool {
        let Data::Varchar { bytes, ends } = &mut self.data else { return false };
        bytes.extend_from_slice(text.as_bytes());
        ends.push(bytes.len() as i32);
        self.valid.push(true);
        true
    }

    /// A value of a text column.
    fn text_at(&self, row: usize) -> Option<String> {
        let Data::Varchar { bytes, ends } = &self.data else { return None };
        let start = row.checked_sub(1).map_or(0, |before| ends[before] as usize);
        self.valid[row].then(|| String::from_utf8_lossy(&bytes[start..ends[row] as usize]).into_owned())
    }

    fn mismatch(&self, found: &str) -> String {
        let wanted = match &self.data {
            Data::BigInt(_) => "bigint",
            Data::Int(_) => "int",
            Data::Double(_) => "double",
            Data::Boolean(_) => "boolean",
            Data::Timestamp(_) => "timestamp",
            Data::Varchar { .. } => "varchar",
            Data::Struct { .. } => "struct",
            Data::Array { .. } => "array",
            Data::Map { .. } => "map",
        };
        format!("{}: {found} where the schema has {wanted}", self.path)
    }

    fn collect_drift(&mut self, all: &mut HashMap<String, u64>) {
        match &mut self.data {
            Data::Struct { columns, drift, .. } => {
                for (key, n) in drift.drain() {
                    *all.entry(key).or_default() += n;
                }
                columns.iter_mut().for_each(|c| c.collect_drift(all));
            }
            Data::Array { item, .. } => item.collect_drift(all),
            _ => {}
        }
    }

    fn finish(self) -> ArrayRef {
        let length = self.valid.len();
        let nulls = self.valid.contains(&false).then(|| NullBuffer::from(self.valid));
        match self.data {
            Data::BigInt(v) => Arc::new(Int64Array::new(v.into(), nulls)),
            Data::Int(v) => Arc::new(Int32Array::new(v.into(), nulls)),
            Data::Double(v) => Arc::new(Float64Array::new(v.into(), nulls)),
            Data::Boolean(v) => Arc::new(BooleanArray::new(v.into(), nulls)),
            Data::Timestamp(v) => Arc::new(TimestampMicrosecondArray::new(v.into(), nulls).with_timezone("UTC")),
            Data::Varchar { bytes, ends } => {
                let offsets = offsets(ends);
                Arc::new(StringArray::new(offsets, Buffer::from_vec(bytes), nulls))
            }
            Data::Struct { columns, .. } => {
                let names: Vec<String> = columns.iter().map(|c| c.name.clone()).collect();
                let arrays: Vec<ArrayRef> = columns.into_iter().map(Self::finish).collect();
                let fields: Fields =
                    names.iter().zip(&arrays).map(|(n, a)| Field::new(n, a.data_type().clone(), true)).collect();
                Arc::new(
                    StructArray::try_new_with_length(fields, arrays, nulls, length)
                        .expect("every field has one value per row"),
                )
            }
            Data::Array { item, ends } => {
                let items = item.finish();
                let field = Arc::new(Field::new("item", items.data_type().clone(), true));
                Arc::new(ListArray::new(field, offsets(ends), items, nulls))
            }
            Data::Map { keys, values, ends } => {
                let DataType::Map(entries, ordered) = types::map() else { unreachable!("a map's type") };
                let DataType::Struct(fields) = entries.data_type() else { unreachable!("a map's entries") };
                let arrays: Vec<ArrayRef> = vec![Arc::new(StringArray::from(keys)), values.finish()];
                let items = StructArray::new(fields.clone(), arrays, None);
                Arc::new(MapArray::new(entries, offsets(ends), items, nulls, ordered))
            }
        }
    }
}

/// Reads an object of any keys; of a key twice the last counts.
fn read_map<'de, A: MapAccess<'de>>(
    mut map: A,
    keys: &mut Vec<String>,
    values: &mut Column,
    ends: &mut Vec<i32>,
) -> Result<(), A::Error> {
    let first = ends.last().copied().unwrap_or(0) as usize;
    // A record that was refused half way has left what lies behind.
    keys.truncate(first);
    values.truncate(first);
    while let Some(key) = map.next_key::<String>()? {
        if let Some(at) = keys[first..].iter().position(|k| *k == key) {
            // Rare: everything behind the first one is moved up by one.
            let at = first + at;
            let behind: Vec<(String, Option<String>)> =
                (at + 1..keys.len()).map(|n| (keys[n].clone(), values.text_at(n))).collect();
            keys.truncate(at);
            values.truncate(at);
            for (key, value) in behind {
                keys.push(key);
                match value {
                    Some(value) => drop(values.push_text(&value)),
                    None => values.push_null(),
                }
            }
        }
        keys.push(key);
        map.next_value_seed(ValueSeed(values))?;
    }
    ends.push(keys.len() as i32);
    Ok(())
}

fn offsets(ends: Vec<i32>) -> OffsetBuffer<i32> {
    let mut offsets = Vec::with_capacity(ends.len() + 1);
    offsets.push(0);
    offsets.extend(ends);
    OffsetBuffer::new(ScalarBuffer::from(offsets))
}

/// Reads an object into columns: the record itself, or a struct inside it.
struct ObjectVisitor<'a> {
    path: &'a str,
    columns: &'a mut [Column],
    /// The column whose key came first the last time.
    first: &'a mut usize,
    /// Row being written; none for the record, whose columns tell it.
    row: Option<usize>,
    drift: &'a mut HashMap<String, u64>,
}

impl<'de> Visitor<'de> for ObjectVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let row = self.row.unwrap_or_else(|| self.columns.first().map_or(0, Column::len));
        let mut before = None;
        loop {
            let expected = before.map_or(*self.first, |b: usize| self.columns[b].next);
            let Some(key) = map.next_key_seed(KeySeed { columns: self.columns, expected })? else { break };
            match key {
                Key::Column(at) => {
                    match before {
                        Some(before) => self.columns[before].next = at,
                        None => *self.first = at,
                    }
                    before = Some(at);
                    let column = &mut self.columns[at];
                    // Of a key twice in an object the last counts.
                    if column.len() > row {
                        column.truncate(row);
                    }
                    map.next_value_seed(ValueSeed(column))?;
                }
                Key::Unknown(key) => {
                    map.next_value::<IgnoredAny>()?;
                    let path = if self.path.is_empty() { key } else { format!("{}.{key}", self.path) };
                    if self.drift.len() < MAX_DRIFT_KEYS || self.drift.contains_key(&path) {
                        *self.drift.entry(path).or_default() += 1;
                    }
                }
            }
        }
        for column in self.columns {
            if column.len() == row {
                if column.not_null {
                    return Err(A::Error::custom(format!("{}: missing", column.path)));
                }
                column.push_null();
            } else if column.not_null && column.valid.last() == Some(&false) {
                return Err(A::Error::custom(format!("{}: null", column.path)));
            }
        }
        Ok(())
    }
}

enum Key {
    Column(usize),
    Unknown(String),
}

/// Finds a key among the columns; those that followed the last time are tried first, also where an optional one is missing.
struct KeySeed<'a> {
    columns: &'a [Column],
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
            let Some(column) = self.columns.get(at) else { break };
            if column.name == key {
                return Ok(Key::Column(at));
            }
            at = column.next;
        }
        Ok(self
            .columns
            .iter()
            .position(|c| c.name == key)
            .map_or_else(|| Key::Unknown(key.chars().take(200).collect()), Key::Column))
    }
}

/// Reads one value into a column.
struct ValueSeed<'a>(&'a mut Column);

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.0.push_null();
        Ok(())
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        let Data::Boolean(values) = &mut self.0.data else {
            return Err(E::custom(self.0.mismatch("a boolean")));
        };
        values.push(value);
        self.0.valid.push(true);
        Ok(())
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        match &mut self.0.data {
            Data::BigInt(v) => v.push(value),
            Data::Int(v) => match i32::try_from(value) {
                Ok(value) => v.push(value),
                Err(_) => return Err(E::custom(self.0.mismatch("a number beyond 32 bits"))),
            },
            Data::Double(v) => v.push(value as f64),
            Data::Varchar { .. } => {
                self.0.push_text(&value.to_string());
                return Ok(());
            }
            _ => return Err(E::custom(self.0.mismatch("an integer"))),
        }
        self.0.valid.push(true);
        Ok(())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        match (i64::try_from(value), &mut self.0.data) {
            (Ok(value), _) => self.visit_i64(value),
            (Err(_), Data::Double(_)) => self.visit_f64(value as f64),
            (Err(_), Data::Varchar { .. }) => {
                self.0.push_text(&value.to_string());
                Ok(())
            }
            (Err(_), _) => Err(E::custom(self.0.mismatch("a number beyond 64 bits"))),
        }
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        match &mut self.0.data {
            Data::Double(v) => {
                v.push(value);
                self.0.valid.push(true);
                Ok(())
            }
            Data::Varchar { .. } => {
                self.0.push_text(&value.to_string());
                Ok(())
            }
            _ => Err(E::custom(self.0.mismatch("a decimal number"))),
        }
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        if self.0.push_text(value) {
            return Ok(());
        }
        match &mut self.0.data {
            Data::Timestamp(v) => match chrono::DateTime::parse_from_rfc3339(value) {
                Ok(time) => {
                    v.push(time.timestamp_micros());
                    self.0.valid.push(true);
                    Ok(())
                }
                Err(_) => Err(E::custom(self.0.mismatch("a string that is no RFC 3339 time"))),
            },
            _ => Err(E::custom(self.0.mismatch("a string"))),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        let column = self.0;
        let row = column.valid.len();
        if let Data::Map { keys, values, ends } = &mut column.data {
            read_map(map, keys, values, ends)?;
            column.valid.push(true);
            return Ok(());
        }
        if !matches!(column.data, Data::Struct { .. }) {
            return Err(A::Error::custom(column.mismatch("an object")));
        }
        let Data::Struct { columns, first, drift } = &mut column.data else { unreachable!("checked above") };
        ObjectVisitor { path: &column.path, columns, first, row: Some(row), drift }.visit_map(map)?;
        column.valid.push(true);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        if !matches!(self.0.data, Data::Array { .. }) {
            return Err(A::Error::custom(self.0.mismatch("an array")));
        }
        let Data::Array { item, ends } = &mut self.0.data else { unreachable!("checked above") };
        while seq.next_element_seed(ValueSeed(item))?.is_some() {}
        ends.push(item.len() as i32);
        self.0.valid.push(true);
        Ok(())
    }
}
