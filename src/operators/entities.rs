//! What the entity tables are known to hold: an event that tells an entity as it is already gives no row. Of the keys that came first,
//! as many as fit, what each was told last is remembered with its greatest version; every other event gives its row, and the table
//! decides. Where rows are all key, what is remembered is the input that gave them.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{filter_record_batch, take_record_batch};
use arrow::row::{RowConverter, Rows, SortField};

use crate::schema::Entity;
use crate::schema::entity::{ENTITY_COLUMNS, newest};

/// Keys remembered of a table, and the memory that one takes.
pub const KNOWN_KEYS: usize = 16 << 10;
pub const KNOWN_KEY_BYTES: usize = 48;

pub struct EntityState {
    pub entity: Arc<Entity>,
    /// Hash of the key → hash of the row's own columns, greatest version.
    known: HashMap<u64, (u64, i64), BuildHasherDefault<Same>>,
}

impl EntityState {
    pub fn new(entity: &Arc<Entity>) -> Self {
        Self { entity: entity.clone(), known: HashMap::default() }
    }

    pub fn memory_bytes(&self) -> usize {
        self.known.len() * KNOWN_KEY_BYTES
    }

    /// The rows that a stream's rows give and that tell something new.
    pub fn rows(&mut self, batch: &RecordBatch) -> Result<RecordBatch, String> {
        if self.entity.is_all_key() {
            // What came in like this before has given its rows.
            let columns: Vec<ArrayRef> = self.entity.inputs(batch).cloned().collect();
            let inputs = row_bytes(&columns)?;
            let fresh: Vec<u32> = (0..batch.num_rows() as u32)
                .filter(|row| {
                    let input = hash(inputs.row(*row as usize).data());
                    let has_room = self.known.len() < KNOWN_KEYS;
                    !self.known.contains_key(&input) && {
                        if has_room {
                            self.known.insert(input, (0, 0));
                        }
                        true
                    }
                })
                .collect();
            if fresh.is_empty() {
                return Ok(RecordBatch::new_empty(self.entity.schema.clone()));
            }
            let fresh = take_record_batch(batch, &UInt32Array::from(fresh)).map_err(|e| e.to_string())?;
            return newest(&self.entity.rows(&fresh)?, &self.entity.keys);
        }
        let rows = self.entity.rows(batch)?;
        if rows.num_rows() == 0 {
            return Ok(rows);
        }
        let keys: Vec<ArrayRef> = self.entity.keys.iter().map(|c| rows.column(*c).clone()).collect();
        let key_bytes = row_bytes(&keys)?;
        let contents = row_bytes(&rows.columns()[ENTITY_COLUMNS.len()..])?;
        let versions = rows.column(2).as_any().downcast_ref::<Int64Array>().ok_or("a version is no number")?;
        let is_new = |row: usize| {
            if keys.iter().any(|key| key.is_null(row)) {
                return false;
            }
            let version = if versions.is_valid(row) { versions.value(row) } else { i64::MIN };
            let content = hash(contents.row(row).data());
            let key = hash(key_bytes.row(row).data());
            let has_room = self.known.len() < KNOWN_KEYS;
            match self.known.get_mut(&key) {
                Some((known, greatest)) if *known == content => {
                    *greatest = version.max(*greatest);
                    false
                }
                Some((known, greatest)) if version >= *greatest => {
                    (*known, *greatest) = (content, version);
                    true
                }
                Some(_) => false,
                None => {
                    if has_room {
                        self.known.insert(key, (content, version));
                    }
                    true
                }
            }
        };
        let keep: BooleanArray = (0..rows.num_rows()).map(is_new).map(Some).collect();
        filter_record_batch(&rows, &keep).map_err(|e| e.to_string())
    }

    pub fn save(&self, out: &mut Vec<u8>) {
        let mut known: Vec<(u64, u64, i64)> = self.known.iter().map(|(k, (c, v))| (*k, *c, *v)).collect();
        known.sort_unstable();
        out.extend_from_slice(&(known.len() as u64).to_le_bytes());
        for (key, content, version) in known {
            for number in [key, content, version as u64] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
    }

    /// Reads what [`Self::save`] wrote.
    pub fn load(entity: &Arc<Entity>, bytes: &mut &[u8]) -> Option<Self> {
        let mut next = || -> Option<u64> {
            let (number, rest) = bytes.split_first_chunk::<8>()?;
            *bytes = rest;
            Some(u64::from_le_bytes(*number))
        };
        let mut state = Self::new(entity);
        for _ in 0..next()? {
            state.known.insert(next()?, (next()?, next()? as i64));
        }
        Some(state)
    }
}

fn row_bytes(columns: &[ArrayRef]) -> Result<Rows, String> {
    let fields = columns.iter().map(|c| SortField::new(c.data_type().clone())).collect();
    let converter = RowConverter::new(fields).map_err(|e| e.to_string())?;
    converter.convert_columns(columns).map_err(|e| e.to_string())
}

/// 64 bits of a row's bytes, eight at a time (multiply and fold, after wyhash): the same in every process.
fn hash(bytes: &[u8]) -> u64 {
    const KEYS: [u64; 2] = [0xA076_1D64_78BD_642F, 0xE703_7ED1_A0B4_28DB];
    let fold = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        product as u64 ^ (product >> 64) as u64
    };
    let mut chunks = bytes.chunks_exact(8);
    let mut hash = KEYS[0] ^ bytes.len() as u64;
    for chunk in &mut chunks {
        let number = u64::from_le_bytes(chunk.try_into().expect("eight bytes"));
        hash = fold(hash ^ number, KEYS[1]);
    }
    let mut last = [0; 8];
    last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    fold(fold(hash ^ u64::from_le_bytes(last), KEYS[1]), KEYS[0])
}

/// What is a hash already is not hashed again.
#[derive(Debug, Clone, Copy, Default)]
struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = hash(bytes);
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}
