//! Rows as tantivy documents whose values point into the Arrow columns, without a copy.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{
    Array, Float64Array, Int64Array, ListArray, MapArray, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::buffer::OffsetBuffer;
use tantivy::schema::document::{ReferenceValue, ReferenceValueLeaf};
use tantivy::schema::{Document, Field, Value};

use super::format::Fields;
use super::rows::StoredBatch;
use crate::event::is_place;
use crate::schema::{MAP_SUFFIX, SearchDef};

enum SearchedColumn {
    Text(StringArray),
    /// Lists of texts: their offsets, and the items of all of them.
    Texts(OffsetBuffer<i32>, StringArray),
    Number(Int64Array),
    Time(TimestampMicrosecondArray),
    /// The latitudes or the longitudes of places.
    Degrees {
        lat: Float64Array,
        lon: Float64Array,
        is_lat: bool,
    },
}

/// Bytes of the batches that wait in the indexer's queue, which tantivy bounds only by a number of
/// entries.
#[derive(Debug, Clone, Default)]
pub struct Backlog(Arc<AtomicUsize>);

impl Backlog {
    /// Bytes of the batches that are not indexed yet.
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// A batch's share of a backlog, from its creation until its last row is indexed.
struct BacklogShare {
    backlog: Backlog,
    bytes: usize,
}

impl BacklogShare {
    fn new(backlog: &Backlog, bytes: usize) -> Self {
        backlog.0.fetch_add(bytes, Ordering::Relaxed);
        Self {
            backlog: backlog.clone(),
            bytes,
        }
    }
}

impl Drop for BacklogShare {
    fn drop(&mut self) {
        self.backlog.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A batch's searched columns, and its rows as they are stored.
pub struct Columns {
    searched: Vec<(Field, SearchedColumn)>,
    rows: Arc<StoredBatch>,
    _share: BacklogShare,
}

impl Columns {
    /// The columns of a batch that a declaration searches; counts in `backlog` until it is dropped.
    pub fn new(batch: &RecordBatch, fields: &Fields, def: &SearchDef, backlog: &Backlog) -> Self {
        let mut columns = Vec::new();
        let any = |name: &str| batch.column_by_name(name).map(|c| c.as_any());
        if let Some(lsn) = any("lsn").and_then(|a| a.downcast_ref::<Int64Array>()) {
            columns.push((fields.lsn, SearchedColumn::Number(lsn.clone())));
        }
        if let Some(time) =
            any("event_time").and_then(|a| a.downcast_ref::<TimestampMicrosecondArray>())
        {
            columns.push((fields.event_time, SearchedColumn::Time(time.clone())));
        }
        for (name, field) in &fields.pairs {
            let map = any(name).and_then(|a| a.downcast_ref::<MapArray>());
            columns.extend(map.and_then(pairs).map(|pairs| (*field, pairs)));
        }
        for (name, field) in def
            .text
            .iter()
            .chain(&def.exact)
            .zip(fields.text.iter().chain(&fields.exact))
        {
            let Some(column) = any(name.strip_suffix(MAP_SUFFIX).unwrap_or(name)) else {
                continue;
            };
            if let Some(text) = column.downcast_ref::<StringArray>() {
                columns.push((*field, SearchedColumn::Text(text.clone())));
            } else if let Some(list) = column.downcast_ref::<ListArray>()
                && let Some(items) = list.values().as_any().downcast_ref::<StringArray>()
            {
                columns.push((
                    *field,
                    SearchedColumn::Texts(list.offsets().clone(), items.clone()),
                ));
            } else if let Some(map) = column.downcast_ref::<MapArray>()
                && let Some(values) = map.values().as_any().downcast_ref::<StringArray>()
            {
                columns.push((
                    *field,
                    SearchedColumn::Texts(map.offsets().clone(), values.clone()),
                ));
            }
        }
        let degrees: Vec<&Float64Array> = def
            .geo
            .iter()
            .filter_map(|name| any(name)?.downcast_ref::<Float64Array>())
            .collect();
        if let ([lat, lon], [lat_field, lon_field]) = (degrees.as_slice(), fields.geo.as_slice()) {
            for (field, is_lat) in [(lat_field, true), (lon_field, false)] {
                columns.push((
                    *field,
                    SearchedColumn::Degrees {
                        lat: (*lat).clone(),
                        lon: (*lon).clone(),
                        is_lat,
                    },
                ));
            }
        }
        let rows = StoredBatch::new(batch.clone());
        let share = BacklogShare::new(backlog, rows.row_bytes() * batch.num_rows());
        Self {
            searched: columns,
            rows: Arc::new(rows),
            _share: share,
        }
    }

    /// The rows as they are stored.
    pub fn rows(&self) -> &Arc<StoredBatch> {
        &self.rows
    }
}

/// A map's entries as whole terms, as [`super::text::pair_term`] writes them.
fn pairs(map: &MapArray) -> Option<SearchedColumn> {
    let keys = map.keys().as_any().downcast_ref::<StringArray>()?;
    let values = map.values().as_any().downcast_ref::<StringArray>()?;
    let pairs: StringArray = keys
        .iter()
        .zip(values)
        .map(|(key, value)| Some(super::text::pair_term(key?, value?)))
        .collect();
    Some(SearchedColumn::Texts(map.offsets().clone(), pairs))
}

/// A row as a document.
pub struct Row {
    pub columns: Arc<Columns>,
    pub row: usize,
}

/// A value of a document.
#[derive(Debug, Clone, Copy)]
pub enum RowValue<'a> {
    Text(&'a str),
    Number(i64),
    Double(f64),
}

impl<'a> Value<'a> for RowValue<'a> {
    type ArrayIter = std::iter::Empty<Self>;
    type ObjectIter = std::iter::Empty<(&'a str, Self)>;

    fn as_value(&self) -> ReferenceValue<'a, Self> {
        ReferenceValue::Leaf(match *self {
            RowValue::Text(text) => ReferenceValueLeaf::Str(text),
            RowValue::Number(number) => ReferenceValueLeaf::I64(number),
            RowValue::Double(number) => ReferenceValueLeaf::F64(number),
        })
    }
}

/// The values of a document, list items one by one.
pub struct RowValues<'a> {
    columns: std::slice::Iter<'a, (Field, SearchedColumn)>,
    row: usize,
    /// Remaining items of a list.
    items: Option<(Field, &'a StringArray, std::ops::Range<usize>)>,
}

impl<'a> Iterator for RowValues<'a> {
    type Item = (Field, RowValue<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((field, items, range)) = &mut self.items {
                if let Some(i) = range.by_ref().find(|i| items.is_valid(*i)) {
                    return Some((*field, RowValue::Text(items.value(i))));
                }
                self.items = None;
            }
            let (field, column) = self.columns.next()?;
            let row = self.row;
            let value = match column {
                SearchedColumn::Text(a) if a.is_valid(row) => RowValue::Text(a.value(row)),
                SearchedColumn::Number(a) if a.is_valid(row) => RowValue::Number(a.value(row)),
                SearchedColumn::Time(a) if a.is_valid(row) => RowValue::Number(a.value(row)),
                SearchedColumn::Degrees { lat, lon, is_lat }
                    if lat.is_valid(row) && lon.is_valid(row) =>
                {
                    let place = (lat.value(row), lon.value(row));
                    if !is_place(place) {
                        continue;
                    }
                    // Adding 0.0 turns -0.0 into 0.0.
                    RowValue::Double(if *is_lat { place.0 } else { place.1 } + 0.0)
                }
                // A null list has no items.
                SearchedColumn::Texts(offsets, items) => {
                    self.items = Some((
                        *field,
                        items,
                        offsets[row] as usize..offsets[row + 1] as usize,
                    ));
                    continue;
                }
                _ => continue,
            };
            return Some((*field, value));
        }
    }
}

impl Document for Row {
    type Value<'a> = RowValue<'a>;
    type FieldsValuesIter<'a> = RowValues<'a>;

    fn iter_fields_and_values(&self) -> RowValues<'_> {
        RowValues {
            columns: self.columns.searched.iter(),
            row: self.row,
            items: None,
        }
    }
}
