//! What the entity tables are known to hold: an event that tells an entity as it is already gives
//! no row. Of the keys that came first, as many as fit, what each was told last is remembered with
//! its greatest version; every other event gives its row, and the table decides. Of a table with
//! lists what whole events tell is remembered too, so that their items need not be looked at again.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Int64Array, ListArray, RecordBatch, StringArray, UInt32Array,
};
use arrow::compute::{filter_record_batch, take};
use arrow::datatypes::DataType;
use arrow::row::{RowConverter, Rows, SortField};

use serde::{Deserialize, Serialize};

use super::canonical;
use super::hashing::{ByNumber, hash};
use crate::schema::Entity;
use crate::schema::entity::ENTITY_COLUMNS;
use crate::schema::types::timestamp;

/// Keys remembered of a table, and the memory that one takes.
pub const KNOWN_KEYS: usize = 16 << 10;
pub const KNOWN_KEY_BYTES: usize = 48;
/// And the memory of an event that was told.
const TOLD_BYTES: usize = 64;
/// Pairs of a remembered event and a key that it tells, and the most keys of one that is
/// remembered.
const LINKS: usize = 8 * KNOWN_KEYS;
const EVENT_KEYS: usize = 64;

pub struct EntityState {
    pub entity: Arc<Entity>,
    /// By the hash of the key.
    known: ByNumber<u64, Known>,
    /// Of a table with lists, by the hash of the key: events of `told` that tell it too.
    by: ByNumber<u64, Vec<u64>>,
    /// Of a table with lists, by the hash of what an event tells.
    told: ByNumber<u64, SeenEvent>,
    /// Pairs of them, as far as they were ever made: none is made above [`LINKS`].
    links: usize,
}

/// What a snapshot has of it.
type Saved<'a> = (Vec<(u64, SavedKey<'a>)>, Vec<(u64, SeenEvent)>, usize);

/// What a key was told, and by which events of `told` too.
#[derive(Serialize, Deserialize)]
struct SavedKey<'a> {
    content: u64,
    version: i64,
    by: Cow<'a, [u64]>,
}

/// What a key was told last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    /// Hash of the row's own columns.
    content: u64,
    /// The greatest version that told it, beside those in `told`.
    version: i64,
}

/// An event that was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct SeenEvent {
    /// The greatest version that told it, and the last record of that version. They count for all
    /// keys of which it tells what they are.
    greatest: (i64, i64),
    /// All its keys are as it tells them, and it is among those in `by`: told again, it tells
    /// nothing new.
    is_known: bool,
}

impl EntityState {
    pub fn new(entity: &Arc<Entity>) -> Self {
        Self {
            entity: entity.clone(),
            known: ByNumber::default(),
            by: ByNumber::default(),
            told: ByNumber::default(),
            links: 0,
        }
    }

    pub fn memory_bytes(&self) -> usize {
        self.known.len() * KNOWN_KEY_BYTES
            + self.told.len() * TOLD_BYTES
            + self.links * size_of::<u64>()
    }

    /// The rows that a stream's rows give and that tell something new.
    pub fn rows(&mut self, batch: &RecordBatch) -> Result<RecordBatch, String> {
        if !self.entity.has_lists()
            || !self
                .entity
                .inputs(batch)
                .all(|input| is_plain(input.data_type()))
        {
            let rows = self.entity.rows(batch)?;
            return self.new_rows(&rows, None);
        }
        // What was told before, list for list, tells nothing new, whatever its version, as long as
        // all its keys are as it tells them.
        let inputs: Vec<&ArrayRef> = self.entity.inputs(batch).collect();
        let mut bytes = Vec::new();
        let versions = self.entity.versions(batch)?;
        let versions = versions
            .as_any()
            .downcast_ref::<Int64Array>()
            .ok_or("a version is no number")?;
        let (mut fresh, mut by) = (Vec::new(), HashMap::new());
        for (row, lsn) in super::lsns(batch).iter().copied().enumerate() {
            bytes.clear();
            inputs
                .iter()
                .for_each(|input| input_bytes(input, row, &mut bytes));
            let input = hash(&bytes);
            let version = if versions.is_valid(row) {
                versions.value(row)
            } else {
                i64::MIN
            };
            let keys = inputs
                .iter()
                .map(|input| items(input, row))
                .max()
                .unwrap_or(0);
            let has_room =
                self.told.len() < KNOWN_KEYS && keys <= EVENT_KEYS && self.links + keys <= LINKS;
            if let Some(told) = self.told.get_mut(&input) {
                told.greatest = told.greatest.max((version, lsn));
                if told.is_known {
                    continue;
                }
                by.insert(lsn, input);
            } else if has_room {
                self.told.insert(
                    input,
                    SeenEvent {
                        greatest: (version, lsn),
                        is_known: false,
                    },
                );
                self.links += keys;
                by.insert(lsn, input);
            }
            fresh.push(row as u32);
        }
        if fresh.is_empty() {
            return Ok(RecordBatch::new_empty(self.entity.schema.clone()));
        }
        let fresh = self.entity.pick(batch, &UInt32Array::from(fresh))?;
        let rows = self.entity.rows(&fresh)?;
        // Until one of its keys shows otherwise.
        for input in by.values() {
            self.know(*input, true);
        }
        self.new_rows(&rows, Some(&by))
    }

    fn know(&mut self, input: u64, is_known: bool) {
        if let Some(told) = self.told.get_mut(&input) {
            told.is_known = is_known;
        }
    }

    /// Of rows those that tell something new; `by`: the remembered events that tell them, by their
    /// LSNs.
    fn new_rows(
        &mut self,
        rows: &RecordBatch,
        by: Option<&HashMap<i64, u64>>,
    ) -> Result<RecordBatch, String> {
        if rows.num_rows() == 0 {
            return Ok(rows.clone());
        }
        let keys: Vec<ArrayRef> = self
            .entity
            .keys
            .iter()
            .map(|c| rows.column(*c).clone())
            .collect();
        let key_bytes = row_bytes(&keys)?;
        let hashes: Vec<u64> = (0..rows.num_rows())
            .map(|row| hash(key_bytes.row(row).data()))
            .collect();
        let mut contents = self.contents(rows, &hashes)?.into_iter();
        let versions = rows
            .column(2)
            .as_any()
            .downcast_ref::<Int64Array>()
            .ok_or("a version is no number")?;
        let lsns = super::lsns(rows);
        let is_all_key = (ENTITY_COLUMNS.len()..rows.num_columns())
            .all(|column| self.entity.keys.contains(&column));
        let (known, told, tellers) = (&mut self.known, &mut self.told, &mut self.by);
        // Whoever tells another thing is listened to again.
        let hear = |told: &mut ByNumber<u64, SeenEvent>, by: u64| {
            if let Some(told) = told.get_mut(&by) {
                told.is_known = false;
            }
        };
        let is_new = |row: usize| {
            if keys.iter().any(|key| key.is_null(row)) {
                contents.next();
                return false;
            }
            let version = if versions.is_valid(row) {
                versions.value(row)
            } else {
                i64::MIN
            };
            let key = hashes[row];
            let by = by.and_then(|by| by.get(&lsns[row])).copied();
            let content = contents.next().flatten();
            let has_room = known.len() < KNOWN_KEYS;
            let (Some(content), Some(before)) = (content, known.get_mut(&key)) else {
                if let Some(content) = content.filter(|_| has_room) {
                    known.insert(key, Known { content, version });
                    tellers.extend(by.map(|by| (key, vec![by])));
                } else if let Some(by) = by.filter(|_| !is_all_key) {
                    // What a key is that is not remembered can change unseen, unless it is nothing
                    // else than its key.
                    hear(told, by);
                }
                return true;
            };
            if before.content == content {
                before.version = version.max(before.version);
                if let Some(by) = by {
                    let of_key = tellers.entry(key).or_default();
                    if !of_key.contains(&by) {
                        of_key.push(by);
                    }
                }
                return false;
            }
            let of_key = tellers.get(&key).map_or(&[][..], Vec::as_slice);
            // Also what a later record of this batch tells, which may have been passed over: of one
            // version the last record counts.
            let greatest = of_key
                .iter()
                .filter_map(|by| told.get(by))
                .map(|told| told.greatest)
                .max();
            let is_newer = version >= before.version
                && greatest.is_none_or(|greatest| (version, lsns[row]) >= greatest);
            if is_newer {
                tellers
                    .remove(&key)
                    .into_iter()
                    .flatten()
                    .for_each(|by| hear(told, by));
                *before = Known { content, version };
                tellers.extend(by.map(|by| (key, vec![by])));
            } else if let Some(by) = by {
                hear(told, by);
            }
            is_newer
        };
        let keep: BooleanArray = (0..rows.num_rows()).map(is_new).map(Some).collect();
        filter_record_batch(rows, &keep).map_err(|e| e.to_string())
    }

    /// Per row the hash of its own columns; none of a row whose key is not remembered, where no
    /// more keys are.
    fn contents(&self, rows: &RecordBatch, keys: &[u64]) -> Result<Vec<Option<u64>>, String> {
        let own = &rows.columns()[ENTITY_COLUMNS.len()..];
        if self.known.len() < KNOWN_KEYS {
            let bytes = row_bytes(own)?;
            return Ok(bytes.iter().map(|row| Some(hash(row.data()))).collect());
        }
        let known: Vec<u32> = (0..)
            .zip(keys)
            .filter(|(_, key)| self.known.contains_key(key))
            .map(|(row, _)| row)
            .collect();
        let mut contents = vec![None; keys.len()];
        if !known.is_empty() {
            let at = UInt32Array::from(known);
            let picked = own
                .iter()
                .map(|column| take(column, &at, None))
                .collect::<Result<Vec<_>, _>>();
            let bytes = row_bytes(&picked.map_err(|e| e.to_string())?)?;
            bytes
                .iter()
                .zip(at.values())
                .for_each(|(row, at)| contents[*at as usize] = Some(hash(row.data())));
        }
        Ok(contents)
    }

    pub fn save(&self, out: &mut Vec<u8>) {
        let saved = |(key, known): (&u64, &Known)| {
            let by = self.by.get(key).map_or(&[][..], Vec::as_slice).into();
            (
                *key,
                SavedKey {
                    content: known.content,
                    version: known.version,
                    by,
                },
            )
        };
        let mut known: Vec<(u64, SavedKey<'_>)> = self.known.iter().map(saved).collect();
        known.sort_unstable_by_key(|(key, _)| *key);
        let mut told: Vec<(u64, SeenEvent)> = self.told.iter().map(|(k, v)| (*k, *v)).collect();
        told.sort_unstable();
        let saved = serde_json::to_vec::<Saved<'_>>(&(known, told, self.links))
            .expect("plain data becomes JSON");
        out.extend_from_slice(&(saved.len() as u64).to_le_bytes());
        out.extend_from_slice(&saved);
    }

    /// Reads what [`Self::save`] wrote.
    pub fn load(entity: &Arc<Entity>, bytes: &mut &[u8]) -> Option<Self> {
        let (length, rest) = bytes.split_first_chunk::<8>()?;
        let (own, rest) =
            rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        *bytes = rest;
        let (known, told, links): Saved<'_> = serde_json::from_slice(own).ok()?;
        let mut state = Self {
            told: told.into_iter().collect(),
            links,
            ..Self::new(entity)
        };
        for (
            key,
            SavedKey {
                content,
                version,
                by,
            },
        ) in known
        {
            state.known.insert(key, Known { content, version });
            state
                .by
                .extend((!by.is_empty()).then(|| (key, by.into_owned())));
        }
        Some(state)
    }
}

/// Items of a list; none of what is no list.
fn items(input: &ArrayRef, row: usize) -> usize {
    let list = input
        .as_any()
        .downcast_ref::<ListArray>()
        .filter(|list| list.is_valid(row));
    list.map_or(0, |list| list.value_length(row) as usize)
}

/// Whether [`input_bytes`] tells values of a type apart.
fn is_plain(ty: &DataType) -> bool {
    match ty {
        DataType::List(item) => !item.data_type().is_nested() && is_plain(item.data_type()),
        DataType::Utf8
        | DataType::Int64
        | DataType::Int32
        | DataType::Float64
        | DataType::Boolean => true,
        ty => *ty == timestamp(),
    }
}

/// Bytes that are equal exactly for equal values; a list's are its items'.
fn input_bytes(input: &ArrayRef, row: usize, out: &mut Vec<u8>) {
    let Some(list) = input
        .as_any()
        .downcast_ref::<ListArray>()
        .filter(|list| list.is_valid(row))
    else {
        return canonical(input, row, out);
    };
    let offsets = list.value_offsets();
    let items = offsets[row] as usize..offsets[row + 1] as usize;
    out.extend_from_slice(&(items.len() as u32).to_le_bytes());
    let texts = list.values().as_any().downcast_ref::<StringArray>();
    if let Some(texts) = texts.filter(|texts| {
        texts
            .nulls()
            .is_none_or(|n| items.clone().all(|i| n.is_valid(i)))
    }) {
        // All of them at once: how long each is, then their bytes.
        let offsets = &texts.value_offsets()[items.start..=items.end];
        out.push(5);
        offsets
            .windows(2)
            .for_each(|ends| out.extend_from_slice(&(ends[1] - ends[0]).to_le_bytes()));
        let (from, to) = (offsets[0] as usize, offsets[items.len()] as usize);
        return out.extend_from_slice(&texts.value_data()[from..to]);
    }
    for item in items {
        canonical(list.values(), item, out);
    }
}

fn row_bytes(columns: &[ArrayRef]) -> Result<Rows, String> {
    let fields = columns
        .iter()
        .map(|c| SortField::new(c.data_type().clone()))
        .collect();
    let converter = RowConverter::new(fields).map_err(|e| e.to_string())?;
    converter
        .convert_columns(columns)
        .map_err(|e| e.to_string())
}
