//! What entity tables contain, as far as it is remembered: an event that does not change an entity
//! emits no row.
//!
//! For the first keys, up to [`MAX_KEYS`], the content and the greatest version of the last row are
//! remembered; every other event emits its row, and the table decides:
//!
//! ```text
//! event                     venue 7        emitted
//! {7: "Bar", version 1}     Bar, 1         a row
//! {7: "Bar", version 2}     Bar, 2         nothing: the same content
//! {7: "Pub", version 3}     Pub, 3         a row
//! {7: "Bar", version 1}     Pub, 3         nothing: an older version
//! ```
//!
//! For a table with lists (`unnest`: a row per item) whole events are remembered too, without their
//! versions, so that the items of an equal one need not be evaluated. An event is *current* while
//! every one of its keys has the content that the event gives it:
//!
//! ```text
//! event                       version  topics             evaluated
//! A = [1: "art", 2: "film"]   1        1: art, 2: film    yes: two rows; A is current
//! A                           2        1: art, 2: film    no; the greatest version of A is 2
//! B = [2: "cinema"]           1        1: art, 2: film    yes: no row, since A has 2 at version 2
//! B                           3        1: art, 2: cinema  yes: a row; B is current, A no longer
//! A                           4        1: art, 2: film    yes: a row; A is current, B no longer
//! ```
//!
//! So a repeated event costs one hash. What is remembered decides only whether a row is emitted
//! that changes nothing: the table keeps the newest version of each key in any case.

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

/// Keys remembered per table; later ones are left to the table.
pub(crate) const MAX_KEYS: usize = 16 << 10;
/// Memory of a remembered key, in bytes, approximately.
pub(crate) const KEY_BYTES: usize = 48;
/// Memory of a remembered event, in bytes, approximately.
const EVENT_BYTES: usize = 64;
/// Pairs of a remembered event and one of its keys.
const MAX_LINKS: usize = 8 * MAX_KEYS;
/// Keys of an event that is remembered.
const MAX_EVENT_KEYS: usize = 64;

/// What is remembered of one entity table.
pub(super) struct EntityState {
    pub(super) entity: Arc<Entity>,
    /// By the hash of the key.
    keys: ByNumber<u64, KeyState>,
    /// In a table with lists, by the hash of the key: events of `events` with the key's content.
    events_of_key: ByNumber<u64, Vec<u64>>,
    /// In a table with lists, by the hash of an event's inputs.
    events: ByNumber<u64, EventState>,
    /// Pairs of an event and a key that were ever created, at most [`MAX_LINKS`].
    links: usize,
}

/// The state in a snapshot: keys, events, links.
type SavedState<'a> = (Vec<(u64, SavedKey<'a>)>, Vec<(u64, EventState)>, usize);

#[derive(Serialize, Deserialize)]
struct SavedKey<'a> {
    content: u64,
    version: i64,
    #[serde(rename = "by")]
    events: Cow<'a, [u64]>,
}

/// The last row of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct KeyState {
    /// Hash of the row's own columns.
    content: u64,
    /// The greatest version with this content, apart from those of events in `events`, which
    /// [`EventState::greatest`] has.
    version: i64,
}

/// An event that was evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct EventState {
    /// The greatest version with which it came, and the last record of that version. They count
    /// for all its keys.
    greatest: (i64, i64),
    /// All its keys have its content, and list it in `events_of_key`: an equal event changes
    /// nothing.
    #[serde(rename = "is_known")]
    is_current: bool,
}

/// By LSN the hash of the event that the record has brought, for events that are remembered.
type EventsByLsn = HashMap<i64, u64>;

impl EntityState {
    pub(super) fn new(entity: &Arc<Entity>) -> Self {
        Self {
            entity: entity.clone(),
            keys: ByNumber::default(),
            events_of_key: ByNumber::default(),
            events: ByNumber::default(),
            links: 0,
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.keys.len() * KEY_BYTES
            + self.events.len() * EVENT_BYTES
            + self.links * size_of::<u64>()
    }

    /// The entity rows of a stream's rows that change something.
    pub(super) fn rows(&mut self, batch: &RecordBatch) -> Result<RecordBatch, String> {
        let has_plain_lists = self.entity.has_lists()
            && self
                .entity
                .inputs(batch)
                .all(|input| is_plain(input.data_type()));
        if !has_plain_lists {
            let rows = self.entity.rows(batch)?;
            return self.changed_rows(&rows, None);
        }
        let (fresh, events) = self.observe_events(batch)?;
        if fresh.is_empty() {
            return Ok(RecordBatch::new_empty(self.entity.schema.clone()));
        }
        let fresh = self.entity.pick(batch, &UInt32Array::from(fresh))?;
        let rows = self.entity.rows(&fresh)?;
        // Until one of its keys shows otherwise.
        for event in events.values() {
            if let Some(state) = self.events.get_mut(event) {
                state.is_current = true;
            }
        }
        self.changed_rows(&rows, Some(&events))
    }

    /// The rows that must be evaluated, and the remembered events among them. An event that came
    /// before, list for list, changes nothing in any version while all its keys have its content.
    fn observe_events(&mut self, batch: &RecordBatch) -> Result<(Vec<u32>, EventsByLsn), String> {
        let inputs: Vec<&ArrayRef> = self.entity.inputs(batch).collect();
        let mut bytes = Vec::new();
        let versions = self.entity.versions(batch)?;
        let versions = as_versions(&versions)?;
        let (mut fresh, mut events) = (Vec::new(), EventsByLsn::new());
        for (row, lsn) in super::lsns(batch).iter().copied().enumerate() {
            bytes.clear();
            inputs
                .iter()
                .for_each(|input| input_bytes(input, row, &mut bytes));
            let event = hash(&bytes);
            let version = version_at(versions, row);
            let keys = inputs
                .iter()
                .map(|input| items(input, row))
                .max()
                .unwrap_or(0);
            let has_capacity = self.events.len() < MAX_KEYS
                && keys <= MAX_EVENT_KEYS
                && self.links + keys <= MAX_LINKS;
            if let Some(state) = self.events.get_mut(&event) {
                state.greatest = state.greatest.max((version, lsn));
                if state.is_current {
                    continue;
                }
                events.insert(lsn, event);
            } else if has_capacity {
                let state = EventState {
                    greatest: (version, lsn),
                    is_current: false,
                };
                self.events.insert(event, state);
                self.links += keys;
                events.insert(lsn, event);
            }
            fresh.push(row as u32);
        }
        Ok((fresh, events))
    }

    /// The rows that change their entity. `events`: the remembered events that they are of.
    fn changed_rows(
        &mut self,
        rows: &RecordBatch,
        events: Option<&EventsByLsn>,
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
        let contents = self.contents(rows, &hashes)?;
        let versions = as_versions(rows.column(2))?;
        let lsns = super::lsns(rows);
        let is_all_key = (ENTITY_COLUMNS.len()..rows.num_columns())
            .all(|column| self.entity.keys.contains(&column));
        let changed = |row: usize| {
            if keys.iter().any(|key| key.is_null(row)) {
                return false;
            }
            self.observe_row(&EntityRow {
                key: hashes[row],
                content: contents[row],
                version: version_at(versions, row),
                lsn: lsns[row],
                event: events.and_then(|events| events.get(&lsns[row])).copied(),
                is_all_key,
            })
        };
        let keep: BooleanArray = (0..rows.num_rows()).map(changed).map(Some).collect();
        filter_record_batch(rows, &keep).map_err(|e| e.to_string())
    }

    /// Observes a row; true if it changes its entity.
    fn observe_row(&mut self, row: &EntityRow) -> bool {
        let EntityRow { key, version, .. } = *row;
        let has_capacity = self.keys.len() < MAX_KEYS;
        let (Some(content), Some(before)) = (row.content, self.keys.get_mut(&key)) else {
            if let Some(content) = row.content.filter(|_| has_capacity) {
                self.keys.insert(key, KeyState { content, version });
                self.events_of_key
                    .extend(row.event.map(|event| (key, vec![event])));
            } else if let Some(event) = row.event.filter(|_| !row.is_all_key) {
                // A key that is not remembered can change unseen, unless its row has no other
                // column.
                self.reevaluate(event);
            }
            return true;
        };
        if before.content == content {
            before.version = version.max(before.version);
            if let Some(event) = row.event {
                let events = self.events_of_key.entry(key).or_default();
                if !events.contains(&event) {
                    events.push(event);
                }
            }
            return false;
        }
        let events = self.events_of_key.get(&key).map_or(&[][..], Vec::as_slice);
        // Includes later records of this batch that were not evaluated: of one version the last
        // record counts.
        let greatest = events
            .iter()
            .filter_map(|event| self.events.get(event))
            .map(|state| state.greatest)
            .max();
        let is_newer = version >= before.version
            && greatest.is_none_or(|greatest| (version, row.lsn) >= greatest);
        if is_newer {
            *before = KeyState { content, version };
            for event in self.events_of_key.remove(&key).into_iter().flatten() {
                self.reevaluate(event);
            }
            self.events_of_key
                .extend(row.event.map(|event| (key, vec![event])));
        } else if let Some(event) = row.event {
            self.reevaluate(event);
        }
        is_newer
    }

    /// An event's content is not that of all its keys: when it comes again it must be evaluated.
    fn reevaluate(&mut self, event: u64) {
        if let Some(state) = self.events.get_mut(&event) {
            state.is_current = false;
        }
    }

    /// Per row the hash of its own columns; none for a row whose key is not remembered, once no
    /// more keys are.
    fn contents(&self, rows: &RecordBatch, keys: &[u64]) -> Result<Vec<Option<u64>>, String> {
        let own = &rows.columns()[ENTITY_COLUMNS.len()..];
        if self.keys.len() < MAX_KEYS {
            let bytes = row_bytes(own)?;
            return Ok(bytes.iter().map(|row| Some(hash(row.data()))).collect());
        }
        let remembered: Vec<u32> = (0..)
            .zip(keys)
            .filter(|(_, key)| self.keys.contains_key(key))
            .map(|(row, _)| row)
            .collect();
        let mut contents = vec![None; keys.len()];
        if !remembered.is_empty() {
            let at = UInt32Array::from(remembered);
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

    /// Appends the state: length as u64, then JSON.
    pub(super) fn save(&self, out: &mut Vec<u8>) {
        let mut keys: Vec<(u64, SavedKey<'_>)> = self
            .keys
            .iter()
            .map(|(key, state)| {
                let events = self.events_of_key.get(key);
                let saved = SavedKey {
                    content: state.content,
                    version: state.version,
                    events: events.map_or(&[][..], Vec::as_slice).into(),
                };
                (*key, saved)
            })
            .collect();
        keys.sort_unstable_by_key(|(key, _)| *key);
        let mut events: Vec<(u64, EventState)> =
            self.events.iter().map(|(k, v)| (*k, *v)).collect();
        events.sort_unstable();
        let saved = serde_json::to_vec::<SavedState<'_>>(&(keys, events, self.links))
            .expect("plain data becomes JSON");
        out.extend_from_slice(&(saved.len() as u64).to_le_bytes());
        out.extend_from_slice(&saved);
    }

    /// Reads what [`Self::save`] wrote; none if the bytes are not that.
    pub(super) fn load(entity: &Arc<Entity>, bytes: &mut &[u8]) -> Option<Self> {
        let (length, rest) = bytes.split_first_chunk::<8>()?;
        let (own, rest) =
            rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        *bytes = rest;
        let (keys, events, links): SavedState<'_> = serde_json::from_slice(own).ok()?;
        let mut state = Self {
            events: events.into_iter().collect(),
            links,
            ..Self::new(entity)
        };
        for (key, saved) in keys {
            let (content, version) = (saved.content, saved.version);
            state.keys.insert(key, KeyState { content, version });
            if !saved.events.is_empty() {
                state.events_of_key.insert(key, saved.events.into_owned());
            }
        }
        Some(state)
    }
}

/// A row of an entity table, as far as it decides whether it changes the entity.
struct EntityRow {
    /// Hash of the key.
    key: u64,
    /// Hash of its own columns; none where the key is not remembered.
    content: Option<u64>,
    version: i64,
    lsn: i64,
    /// The remembered event that it is of.
    event: Option<u64>,
    /// The table has no columns but its key.
    is_all_key: bool,
}

fn as_versions(array: &ArrayRef) -> Result<&Int64Array, String> {
    array
        .as_any()
        .downcast_ref()
        .ok_or_else(|| "a version is not a number".to_owned())
}

/// A row's version; a row without one has the smallest.
fn version_at(versions: &Int64Array, row: usize) -> i64 {
    if versions.is_valid(row) {
        versions.value(row)
    } else {
        i64::MIN
    }
}

/// Number of items of a list; 0 for any other value.
fn items(input: &ArrayRef, row: usize) -> usize {
    let list = input
        .as_any()
        .downcast_ref::<ListArray>()
        .filter(|list| list.is_valid(row));
    list.map_or(0, |list| list.value_length(row) as usize)
}

/// Whether [`input_bytes`] distinguishes the values of a type.
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

/// Bytes that are equal exactly for equal values; those of a list are its items'.
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
        // All items at once: the length of each, then their bytes.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_in_a_snapshot_are_the_formats() {
        let key = SavedKey {
            content: 2,
            version: 3,
            events: vec![4].into(),
        };
        let event = EventState {
            greatest: (5, 6),
            is_current: true,
        };
        let saved: SavedState<'_> = (vec![(1, key)], vec![(4, event)], 7);
        assert_eq!(
            serde_json::to_string(&saved).expect("JSON"),
            r#"[[[1,{"content":2,"version":3,"by":[4]}]],[[4,{"greatest":[5,6],"is_known":true}]],7]"#
        );
    }
}
