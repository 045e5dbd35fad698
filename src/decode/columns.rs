//! Columns being filled, one value a record.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{
    Array, ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, ListArray, MapArray,
    StringArray, StructArray, TimestampMicrosecondArray,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Fields};

use super::numbers::{self, Whole};
use super::time::{self, TimeError};
use crate::schema::types::{self, Column as ColumnDef, Ticks, Type};
use crate::schema::zone::Zone;

/// Values for which room is noted, and the fewest values from which it is learned.
const ROOM_VALUES: usize = 1_024;
const LEAST_FOR_ROOM: usize = 64;
/// Room that is made beforehand at most; a column that needs more grows.
const MOST_ROOM: usize = 1 << 20;
/// Characters of a value that a reason duplicates.
const QUOTED_CHARS: usize = 60;

/// One column being filled.
pub struct Column {
    pub name: String,
    /// Name with those of the objects around it: `venue.lat`.
    pub path: String,
    pub not_null: bool,
    pub valid: Vec<bool>,
    pub data: Data,
    /// The column whose key followed this one's the last time: keys come in one order, which need
    /// not be the schema's.
    pub next: usize,
    /// Values are read from their text: always where it is stored, else once a number came whose
    /// digits a double would lose.
    pub from_text: bool,
}

/// What a column of text takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Texts {
    /// Strings, and numbers as they are written.
    Varchar,
    /// The value of a map: also booleans, and the rest as JSON.
    MapValue,
    /// Any value as JSON.
    Json,
}

pub enum Data {
    BigInt(Vec<i64>),
    Int(Vec<i32>),
    Double(Vec<f64>),
    Boolean(Vec<bool>),
    Timestamp {
        values: Vec<i64>,
        ticks: Ticks,
        zone: Option<Zone>,
    },
    Text {
        bytes: Vec<u8>,
        ends: Vec<i32>,
        takes: Texts,
    },
    Struct {
        columns: Vec<Column>,
        first: usize,
        drift: HashMap<String, u64>,
    },
    Array {
        item: Box<Column>,
        ends: Vec<i32>,
    },
    Map {
        keys: KeyTexts,
        values: Box<Column>,
        ends: Vec<i32>,
    },
}

/// Keys of maps, one behind another.
#[derive(Default)]
pub struct KeyTexts {
    bytes: Vec<u8>,
    ends: Vec<i32>,
}

impl KeyTexts {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn get(&self, key: usize) -> &[u8] {
        let start = key
            .checked_sub(1)
            .map_or(0, |before| self.ends[before] as usize);
        &self.bytes[start..self.ends[key] as usize]
    }

    /// Adds a key, which is text.
    pub fn push(&mut self, key: &[u8]) {
        self.bytes.extend_from_slice(key);
        self.ends.push(self.bytes.len() as i32);
    }

    pub fn truncate(&mut self, keys: usize) {
        self.ends.truncate(keys);
        self.bytes
            .truncate(self.ends.last().copied().unwrap_or(0) as usize);
    }
}

impl Column {
    /// With room for so many values.
    pub fn new<'a>(
        def: &ColumnDef,
        around: &str,
        zone: Option<Zone>,
        values: usize,
        rooms: &mut impl Iterator<Item = &'a AtomicUsize>,
    ) -> Self {
        let path = if around.is_empty() {
            def.name.clone()
        } else {
            format!("{around}.{}", def.name)
        };
        let mut room = |values: usize| {
            let last = rooms.next().map_or(0, |r| r.load(Ordering::Relaxed));
            // A sixteenth more, so that small differences need no second allocation.
            if values < LEAST_FOR_ROOM {
                0
            } else {
                (last * values / ROOM_VALUES * 17 / 16).min(MOST_ROOM)
            }
        };
        let data = match &def.ty {
            Type::BigInt => Data::BigInt(Vec::with_capacity(values)),
            Type::Int => Data::Int(Vec::with_capacity(values)),
            Type::Double => Data::Double(Vec::with_capacity(values)),
            Type::Boolean => Data::Boolean(Vec::with_capacity(values)),
            Type::Timestamp(ticks) => Data::Timestamp {
                values: Vec::with_capacity(values),
                ticks: *ticks,
                zone,
            },
            Type::Varchar | Type::Json => Data::Text {
                bytes: Vec::with_capacity(room(values)),
                ends: Vec::with_capacity(values),
                takes: if def.ty == Type::Json {
                    Texts::Json
                } else {
                    Texts::Varchar
                },
            },
            Type::Struct(fields) => {
                let columns = fields
                    .iter()
                    .map(|f| Self::new(f, &path, zone, values, rooms))
                    .collect();
                Data::Struct {
                    columns,
                    first: 0,
                    drift: HashMap::new(),
                }
            }
            Type::Array(item) => {
                let items = room(values);
                let item = Box::new(Self::new(item, &path, zone, items, rooms));
                Data::Array {
                    item,
                    ends: Vec::with_capacity(values),
                }
            }
            Type::Map(item) => {
                let mut item = Self::new(item, &path, zone, values, rooms);
                if let Data::Text { takes, .. } = &mut item.data {
                    *takes = Texts::MapValue;
                }
                Data::Map {
                    keys: KeyTexts::default(),
                    values: Box::new(item),
                    ends: Vec::with_capacity(values),
                }
            }
        };
        let valid = Vec::with_capacity(values);
        let from_text = def.ty == Type::Json;
        Self {
            name: def.name.clone(),
            path,
            not_null: def.not_null,
            valid,
            data,
            next: usize::MAX,
            from_text,
        }
    }

    /// Notes what `values` values took.
    pub fn note_room<'a>(&self, values: usize, rooms: &mut impl Iterator<Item = &'a AtomicUsize>) {
        let mut note = |taken: usize| {
            if let Some(room) = rooms.next()
                && values >= LEAST_FOR_ROOM
            {
                room.store(taken * ROOM_VALUES / values, Ordering::Relaxed);
            }
        };
        match &self.data {
            Data::Text { bytes, .. } => note(bytes.len()),
            Data::Struct { columns, .. } => columns.iter().for_each(|c| c.note_room(values, rooms)),
            Data::Array { item, .. } => {
                note(item.len());
                item.note_room(item.len(), rooms);
            }
            Data::Map { values: items, .. } => items.note_room(values, rooms),
            _ => {}
        }
    }

    pub fn len(&self) -> usize {
        self.valid.len()
    }

    pub fn push_null(&mut self) {
        match &mut self.data {
            Data::BigInt(v) | Data::Timestamp { values: v, .. } => v.push(0),
            Data::Int(v) => v.push(0),
            Data::Double(v) => v.push(0.0),
            Data::Boolean(v) => v.push(false),
            Data::Text { ends, .. } | Data::Array { ends, .. } | Data::Map { ends, .. } => {
                ends.push(ends.last().copied().unwrap_or(0));
            }
            Data::Struct { columns, .. } => columns.iter_mut().for_each(Self::push_null),
        }
        self.valid.push(false);
    }

    /// Forgets all values from the `rows`-th on, also half-written ones.
    pub fn truncate(&mut self, rows: usize) {
        self.valid.truncate(rows);
        match &mut self.data {
            Data::BigInt(v) | Data::Timestamp { values: v, .. } => v.truncate(rows),
            Data::Int(v) => v.truncate(rows),
            Data::Double(v) => v.truncate(rows),
            Data::Boolean(v) => v.truncate(rows),
            Data::Text { bytes, ends, .. } => {
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

    /// Adds a value to a column of text, whatever it takes.
    pub fn push_text(&mut self, text: &str) {
        self.push_bytes(|bytes| bytes.extend_from_slice(text.as_bytes()));
    }

    fn push_bytes(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if let Data::Text { bytes, ends, .. } = &mut self.data {
            write(bytes);
            ends.push(bytes.len() as i32);
            self.valid.push(true);
        }
    }

    /// A value of a text column.
    pub fn text_at(&self, row: usize) -> Option<String> {
        let Data::Text { bytes, ends, .. } = &self.data else {
            return None;
        };
        let start = row.checked_sub(1).map_or(0, |before| ends[before] as usize);
        self.valid[row]
            .then(|| String::from_utf8_lossy(&bytes[start..ends[row] as usize]).into_owned())
    }

    pub fn put_boolean(&mut self, value: bool) -> Result<(), String> {
        match &mut self.data {
            Data::Boolean(values) => {
                values.push(value);
                self.valid.push(true);
            }
            Data::Text {
                takes: Texts::MapValue,
                ..
            } => self.push_text(if value { "true" } else { "false" }),
            _ => return Err(self.mismatch("a boolean")),
        }
        Ok(())
    }

    pub fn put_integer(&mut self, value: i64) -> Result<(), String> {
        match &mut self.data {
            Data::BigInt(v) => v.push(value),
            Data::Int(v) => match i32::try_from(value) {
                Ok(value) => v.push(value),
                Err(_) => return Err(self.mismatch("a number beyond 32 bits")),
            },
            Data::Double(v) => v.push(value as f64),
            Data::Text { .. } => {
                self.push_text(&value.to_string());
                return Ok(());
            }
            Data::Timestamp { ticks, .. } => {
                let Some(power) = ticks.power() else {
                    return Err(self.mismatch("an integer"));
                };
                let text = || value.to_string();
                let micros = value
                    .checked_mul(10_i64.pow(power as u32))
                    .ok_or_else(|| self.outside_years(&text()))?;
                return self.put_time(micros, text);
            }
            _ => return Err(self.mismatch("an integer")),
        }
        self.valid.push(true);
        Ok(())
    }

    /// Adds a number by its text, exactly or not at all; doubles get the nearest value.
    pub fn put_number(&mut self, text: &str) -> Result<(), String> {
        let (power, bits) = match &self.data {
            Data::Text { .. } => {
                self.push_text(text);
                return Ok(());
            }
            Data::Double(_) => {
                let Some(value) = numbers::double(text) else {
                    return Err(self.mismatch("a number out of range"));
                };
                if let Data::Double(values) = &mut self.data {
                    values.push(value);
                }
                self.valid.push(true);
                return Ok(());
            }
            Data::BigInt(_) => (0, 64),
            Data::Int(_) => (0, 32),
            Data::Timestamp { ticks, .. } => match ticks.power() {
                Some(power) => return self.put_ticks(text, power),
                None => (0, 64),
            },
            _ => (0, 64),
        };
        match numbers::whole(text, power) {
            Whole::Exact(value) => self.put_integer(value),
            Whole::Fraction(_) => Err(self.mismatch("a decimal number")),
            Whole::OutOfRange => Err(self.mismatch(&format!("a number beyond {bits} bits"))),
        }
    }

    /// Adds a time that is a number of ticks; what is beyond microseconds is cut off.
    fn put_ticks(&mut self, text: &str, power: i64) -> Result<(), String> {
        match numbers::whole(text, power) {
            Whole::Exact(micros) | Whole::Fraction(micros) => {
                self.put_time(micros, || text.to_owned())
            }
            Whole::OutOfRange => Err(self.outside_years(text)),
        }
    }

    fn put_time(&mut self, micros: i64, text: impl FnOnce() -> String) -> Result<(), String> {
        if !time::YEARS.contains(&micros) {
            return Err(self.outside_years(&text()));
        }
        if let Data::Timestamp { values, .. } = &mut self.data {
            values.push(micros);
            self.valid.push(true);
        }
        Ok(())
    }

    fn outside_years(&self, text: &str) -> String {
        format!(
            "{}: {} lies outside the years 1 to 9999",
            self.path,
            quoted(text)
        )
    }

    pub fn put_string(&mut self, text: &str) -> Result<(), String> {
        match &self.data {
            Data::Text { .. } => {
                self.push_text(text);
                Ok(())
            }
            Data::Timestamp { ticks, zone, .. } => {
                match (time::parse(text, *zone), ticks.power()) {
                    (Ok(micros), _) => self.put_time(micros, || text.to_owned()),
                    (Err(_), Some(power)) if numbers::is_number(text) => {
                        self.put_ticks(text, power)
                    }
                    (Err(error), _) => Err(self.no_time(text, &error)),
                }
            }
            _ => Err(self.mismatch("a string")),
        }
    }

    fn no_time(&self, text: &str, error: &TimeError) -> String {
        let (path, text) = (&self.path, quoted(text));
        match (error, &self.data) {
            (
                TimeError::Skipped,
                Data::Timestamp {
                    zone: Some(zone), ..
                },
            ) => {
                format!(
                    "{path}: the local time {text} does not exist in {zone}, clocks were put forward over it; write it with its offset, such as +01:00"
                )
            }
            _ => format!(
                "{path}: {text} is not a text that the type timestamp reads; write a time such as 2024-05-01T12:00:00Z or 2024-05-01 12:00:00+02:00, declare timestamp(s), timestamp(ms) or timestamp(us) for a number, or varchar to convert it in `select`"
            ),
        }
    }

    /// Adds any value as JSON text, where the column takes it.
    pub fn put_json(&mut self, json: &str, kind: &str) -> Result<(), String> {
        let Data::Text {
            takes: Texts::MapValue | Texts::Json,
            ..
        } = &self.data
        else {
            return Err(self.mismatch(kind));
        };
        let mut result = Ok(());
        self.push_bytes(|bytes| result = super::json::compact(json, bytes));
        result.map_err(|super::json::TooDeep| {
            format!(
                "{}: objects and arrays are nested deeper than {} levels",
                self.path,
                super::json::MAX_DEPTH
            )
        })
    }

    pub fn is_json(&self) -> bool {
        matches!(
            self.data,
            Data::Text {
                takes: Texts::Json,
                ..
            }
        )
    }

    /// Whether a number's digits count beyond what a double holds.
    pub fn needs_digits(&self) -> bool {
        match &self.data {
            Data::BigInt(_) | Data::Int(_) | Data::Text { .. } => true,
            Data::Timestamp { ticks, .. } => ticks.power().is_some(),
            _ => false,
        }
    }

    pub fn mismatch(&self, found: &str) -> String {
        let wanted = match &self.data {
            Data::BigInt(_) => "bigint",
            Data::Int(_) => "int",
            Data::Double(_) => "double",
            Data::Boolean(_) => "boolean",
            Data::Timestamp { ticks, .. } => ticks.type_name(),
            Data::Text {
                takes: Texts::Varchar | Texts::MapValue,
                ..
            } => "varchar",
            Data::Text {
                takes: Texts::Json, ..
            } => "json",
            Data::Struct { .. } => "struct",
            Data::Array { .. } => "array",
            Data::Map { .. } => "map",
        };
        let hint = match (&self.data, found) {
            (Data::Text { .. }, _) => "; the type json takes any value",
            (Data::Timestamp { .. }, "an integer" | "a decimal number") => {
                "; declare timestamp(s), timestamp(ms) or timestamp(us)"
            }
            (Data::BigInt(_), "a number beyond 64 bits") => {
                "; varchar keeps its digits, double the nearest value"
            }
            (Data::Double(_), "a number out of range") => "; varchar keeps its digits",
            _ => "",
        };
        format!("{}: {found} where the schema has {wanted}{hint}", self.path)
    }

    pub fn collect_drift(&mut self, all: &mut HashMap<String, u64>) {
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

    pub fn finish(self) -> ArrayRef {
        let length = self.valid.len();
        let nulls = self
            .valid
            .contains(&false)
            .then(|| NullBuffer::from(self.valid));
        match self.data {
            Data::BigInt(v) => Arc::new(Int64Array::new(v.into(), nulls)),
            Data::Int(v) => Arc::new(Int32Array::new(v.into(), nulls)),
            Data::Double(v) => Arc::new(Float64Array::new(v.into(), nulls)),
            Data::Boolean(v) => Arc::new(BooleanArray::new(v.into(), nulls)),
            Data::Timestamp { values, .. } => {
                Arc::new(TimestampMicrosecondArray::new(values.into(), nulls).with_timezone("UTC"))
            }
            Data::Text { bytes, ends, .. } => {
                let offsets = offsets(ends);
                Arc::new(StringArray::new(offsets, Buffer::from_vec(bytes), nulls))
            }
            Data::Struct { columns, .. } => {
                let names: Vec<String> = columns.iter().map(|c| c.name.clone()).collect();
                let arrays: Vec<ArrayRef> = columns.into_iter().map(Self::finish).collect();
                let fields: Fields = names
                    .iter()
                    .zip(&arrays)
                    .map(|(n, a)| Field::new(n, a.data_type().clone(), true))
                    .collect();
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
                let DataType::Map(entries, ordered) = types::map() else {
                    unreachable!("a map's type")
                };
                let DataType::Struct(fields) = entries.data_type() else {
                    unreachable!("a map's entries")
                };
                let keys = StringArray::new(offsets(keys.ends), Buffer::from_vec(keys.bytes), None);
                let arrays: Vec<ArrayRef> = vec![Arc::new(keys), values.finish()];
                let items = StructArray::new(fields.clone(), arrays, None);
                Arc::new(MapArray::new(entries, offsets(ends), items, nulls, ordered))
            }
        }
    }
}

fn offsets(ends: Vec<i32>) -> OffsetBuffer<i32> {
    let mut offsets = Vec::with_capacity(ends.len() + 1);
    offsets.push(0);
    offsets.extend(ends);
    OffsetBuffer::new(ScalarBuffer::from(offsets))
}

/// The beginning of a value, for a reason.
fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED_CHARS) {
        Some((end, _)) => format!("`{}…`", &text[..end]),
        None => format!("`{text}`"),
    }
}
