//! Columns while they are filled: one value per record. `append` adds values, `arrays` turns
//! columns into Arrow arrays.
//!
//! As in Arrow, values of variable length are stored one after another, with the end of each in
//! `ends`: the texts `ab`, null, `c` are the bytes `abc` with the ends 2, 2, 3.

mod append;
mod arrays;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::schema::types::{Column, Ticks, Type};
use crate::schema::zone::Zone;

/// A capacity hint is the capacity that this many values took.
const HINT_VALUES: usize = 1_024;
/// Frames with fewer values neither set nor use a hint.
const MIN_HINT_VALUES: usize = 64;
/// Maximum capacity reserved in advance; a column that needs more grows.
const MAX_PREALLOC: usize = 1 << 20;

/// A column while it is filled.
pub struct ColumnBuilder {
    /// The key in the object that contains it.
    pub name: String,
    /// Its name, prefixed with those of the enclosing objects: `venue.lat`.
    pub path: String,
    /// A record without a value for it is rejected.
    pub not_null: bool,
    /// Per row whether there is a value; as long as the column.
    pub valid: Vec<bool>,
    /// Values of its type, with a placeholder in rows without one.
    pub data: Data,
    /// The column whose key followed this one's in the last record: producers write keys in a
    /// stable order, which need not be the schema's.
    pub next: usize,
    /// Values are read from their text: always if the text is stored, otherwise after the first
    /// number with more digits than a double holds.
    pub from_text: bool,
}

/// Which values a column of text accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextInput {
    /// Strings, and numbers as written.
    Varchar,
    /// The value of a map: strings and numbers, booleans, all others as JSON.
    MapValue,
    /// Any value as JSON.
    Json,
}

/// Values of a column, in the layout of Arrow's arrays.
pub enum Data {
    /// 64-bit integers.
    BigInt(Vec<i64>),
    /// 32-bit integers.
    Int(Vec<i32>),
    /// Finite doubles.
    Double(Vec<f64>),
    /// One byte each; [`ColumnBuilder::finish`] packs them into bits.
    Boolean(Vec<bool>),
    /// Microseconds since 1970 in UTC. Numbers count `ticks`; texts without an offset are local
    /// times of `zone`.
    Timestamp {
        values: Vec<i64>,
        ticks: Ticks,
        zone: Option<Zone>,
    },
    /// UTF-8, also of JSON values.
    Text {
        bytes: Vec<u8>,
        ends: Vec<i32>,
        accepts: TextInput,
    },
    /// One column per field, each as long as this one. `first` is the field whose key came first in
    /// the last record, `drift` counts unknown keys.
    Struct {
        columns: Vec<ColumnBuilder>,
        first: usize,
        drift: HashMap<String, u64>,
    },
    /// The items of all rows in one column.
    Array {
        item: Box<ColumnBuilder>,
        ends: Vec<i32>,
    },
    /// The entries of all rows, keys and values in the same order.
    Map {
        keys: KeyTexts,
        values: Box<ColumnBuilder>,
        ends: Vec<i32>,
    },
}

impl Data {
    fn new<'a>(
        def: &Column,
        path: &str,
        zone: Option<Zone>,
        values: usize,
        hints: &mut impl Iterator<Item = &'a AtomicUsize>,
    ) -> Self {
        match &def.ty {
            Type::BigInt => Self::BigInt(Vec::with_capacity(values)),
            Type::Int => Self::Int(Vec::with_capacity(values)),
            Type::Double => Self::Double(Vec::with_capacity(values)),
            Type::Boolean => Self::Boolean(Vec::with_capacity(values)),
            Type::Timestamp(ticks) => Self::Timestamp {
                values: Vec::with_capacity(values),
                ticks: *ticks,
                zone,
            },
            Type::Varchar | Type::Json => Self::Text {
                bytes: Vec::with_capacity(capacity(hints, values)),
                ends: Vec::with_capacity(values),
                accepts: if def.ty == Type::Json {
                    TextInput::Json
                } else {
                    TextInput::Varchar
                },
            },
            Type::Struct(fields) => Self::Struct {
                columns: fields
                    .iter()
                    .map(|f| ColumnBuilder::new(f, path, zone, values, hints))
                    .collect(),
                first: 0,
                drift: HashMap::new(),
            },
            Type::Array(item) => {
                let items = capacity(hints, values);
                Self::Array {
                    item: Box::new(ColumnBuilder::new(item, path, zone, items, hints)),
                    ends: Vec::with_capacity(values),
                }
            }
            Type::Map(item) => {
                let mut item = ColumnBuilder::new(item, path, zone, values, hints);
                if let Self::Text { accepts, .. } = &mut item.data {
                    *accepts = TextInput::MapValue;
                }
                Self::Map {
                    keys: KeyTexts::default(),
                    values: Box::new(item),
                    ends: Vec::with_capacity(values),
                }
            }
        }
    }
}

/// The capacity to reserve for `values` values, by the next hint.
fn capacity<'a>(hints: &mut impl Iterator<Item = &'a AtomicUsize>, values: usize) -> usize {
    let hint = hints.next().map_or(0, |h| h.load(Ordering::Relaxed));
    if values < MIN_HINT_VALUES {
        return 0;
    }
    // A sixteenth more, so that small differences need no second allocation.
    (hint * values / HINT_VALUES * 17 / 16).min(MAX_PREALLOC)
}

/// Keys of maps, one after another.
#[derive(Default)]
pub struct KeyTexts {
    bytes: Vec<u8>,
    ends: Vec<i32>,
}

impl KeyTexts {
    /// Number of keys of all rows.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// A key by its number, counted from the first row.
    pub fn get(&self, key: usize) -> &[u8] {
        let start = key
            .checked_sub(1)
            .map_or(0, |previous| self.ends[previous] as usize);
        &self.bytes[start..self.ends[key] as usize]
    }

    /// Appends a key, which is valid UTF-8.
    pub fn push(&mut self, key: &[u8]) {
        self.bytes.extend_from_slice(key);
        self.ends.push(self.bytes.len() as i32);
    }

    /// Removes all keys after the first `keys`.
    pub fn truncate(&mut self, keys: usize) {
        self.ends.truncate(keys);
        self.bytes
            .truncate(self.ends.last().copied().unwrap_or(0) as usize);
    }
}

impl ColumnBuilder {
    /// A column for about `values` values. `hints` yields a capacity hint for each column of
    /// variable length, in the order in which they are created.
    pub fn new<'a>(
        def: &Column,
        parent: &str,
        zone: Option<Zone>,
        values: usize,
        hints: &mut impl Iterator<Item = &'a AtomicUsize>,
    ) -> Self {
        let path = if parent.is_empty() {
            def.name.clone()
        } else {
            format!("{parent}.{}", def.name)
        };
        let data = Data::new(def, &path, zone, values, hints);
        Self {
            name: def.name.clone(),
            path,
            not_null: def.not_null,
            valid: Vec::with_capacity(values),
            data,
            next: usize::MAX,
            from_text: def.ty == Type::Json,
        }
    }

    /// Stores what `values` values took as the hints for the next frame.
    pub fn record_capacity<'a>(
        &self,
        values: usize,
        hints: &mut impl Iterator<Item = &'a AtomicUsize>,
    ) {
        let mut record = |used: usize| {
            if let Some(hint) = hints.next()
                && values >= MIN_HINT_VALUES
            {
                hint.store(used * HINT_VALUES / values, Ordering::Relaxed);
            }
        };
        match &self.data {
            Data::Text { bytes, .. } => record(bytes.len()),
            Data::Struct { columns, .. } => columns
                .iter()
                .for_each(|c| c.record_capacity(values, hints)),
            Data::Array { item, .. } => {
                record(item.len());
                item.record_capacity(item.len(), hints);
            }
            Data::Map { values: items, .. } => items.record_capacity(values, hints),
            _ => {}
        }
    }

    /// Number of rows, those without a value included.
    pub fn len(&self) -> usize {
        self.valid.len()
    }

    /// Appends a row without a value.
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

    /// Removes all values from row `rows` on, including partially written ones.
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

    /// Appends to a column of text, regardless of what it accepts.
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

    /// The value of a text column in this row; `None` if it is null.
    pub fn text_at(&self, row: usize) -> Option<String> {
        let Data::Text { bytes, ends, .. } = &self.data else {
            return None;
        };
        let start = row
            .checked_sub(1)
            .map_or(0, |previous| ends[previous] as usize);
        self.valid[row]
            .then(|| String::from_utf8_lossy(&bytes[start..ends[row] as usize]).into_owned())
    }

    /// Whether any value is stored, as its JSON text.
    pub fn is_json(&self) -> bool {
        matches!(
            self.data,
            Data::Text {
                accepts: TextInput::Json,
                ..
            }
        )
    }

    /// Whether a number's digits matter beyond the precision of a double.
    pub fn needs_digits(&self) -> bool {
        match &self.data {
            Data::BigInt(_) | Data::Int(_) | Data::Text { .. } => true,
            Data::Timestamp { ticks, .. } => ticks.power().is_some(),
            _ => false,
        }
    }

    /// Moves the counts of unknown keys to `all`.
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
}
