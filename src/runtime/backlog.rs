//! Records of a stopped folder's log that its views do not have, counted from the log's frames and
//! the committed rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch, StringArray};
use arrow::datatypes::Schema;

use super::RuntimeError;
use crate::event::{Lsn, Micros};
use crate::views::lake::open_file::OpenFile;
use crate::views::lake::{LakeTable, TableSpec};
use crate::wal::{Kind, LogReader};

/// Records of each stream above a base, and which of them the table of dead letters has.
#[derive(Debug, Default)]
pub struct Backlog {
    base: Lsn,
    /// By stream, the first and the last record of each frame, ascending.
    records: BTreeMap<String, Vec<(Lsn, Lsn)>>,
    dead: BTreeMap<String, Vec<Lsn>>,
}

impl Backlog {
    /// Reads the log above `base`, up to which every view has everything. `arrived` gets the last LSN
    /// and arrival time of each frame of records.
    pub fn read(
        mut reader: LogReader,
        base: Lsn,
        end: Lsn,
        mut arrived: impl FnMut(Lsn, Micros),
    ) -> Result<Self, RuntimeError> {
        let mut records: BTreeMap<String, Vec<(Lsn, Lsn)>> = BTreeMap::new();
        while let Some(frame) = reader.next(end)? {
            let header = frame.header;
            if matches!(header.kind, Kind::Record | Kind::Retry) {
                arrived(header.last_lsn(), header.received_at);
                let range = (header.first_lsn.max(base + 1), header.last_lsn());
                records.entry(header.stream).or_default().push(range);
            }
        }
        Ok(Self {
            base,
            records,
            dead: BTreeMap::new(),
        })
    }

    /// Records which records are dead letters.
    pub fn add_dead_letters(&mut self, table: &LakeTable) -> Result<(), String> {
        for rows in rows_above(table, self.base, &["lsn", "stream"])? {
            let streams = rows
                .column(1)
                .as_any()
                .downcast_ref::<StringArray>()
                .ok_or("a stream's name is not text")?;
            for (lsn, stream) in crate::operators::lsns(&rows).iter().zip(streams) {
                self.dead
                    .entry(stream.unwrap_or_default().to_owned())
                    .or_default()
                    .push(*lsn as Lsn);
            }
        }
        Ok(())
    }

    /// The number of a stream's records above an LSN that are not known dead letters.
    pub fn above(&self, stream: &str, lsn: Lsn) -> u64 {
        let ranges = self.records.get(stream).map_or(&[][..], Vec::as_slice);
        let records: u64 = ranges
            .iter()
            .map(|(first, last)| (last + 1).saturating_sub((*first).max(lsn + 1)))
            .sum();
        let dead = self.dead.get(stream).map_or(&[][..], Vec::as_slice);
        records.saturating_sub(dead.iter().filter(|dead| **dead > lsn).count() as u64)
    }

    /// The number of a stream's records that are neither in its table nor dead letters.
    pub fn missing(&self, stream: &str, table: Option<&Arc<LakeTable>>) -> Result<u64, String> {
        let records = self.above(stream, self.base);
        if records == 0 {
            return Ok(0);
        }
        let Some(table) = table else {
            return Ok(records);
        };
        let rows = rows_above(table, self.base, &["lsn"])?;
        Ok(records.saturating_sub(rows.iter().map(|rows| rows.num_rows() as u64).sum()))
    }

    pub fn streams(&self) -> impl Iterator<Item = &String> {
        self.records.keys()
    }
}

/// The committed rows of a table above an LSN, with these columns only.
fn rows_above(table: &LakeTable, after: Lsn, columns: &[&str]) -> Result<Vec<RecordBatch>, String> {
    let fields = columns
        .iter()
        .map(|name| table.spec.schema.field_with_name(name).cloned());
    let fields = fields
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| e.to_string())?;
    let spec = TableSpec {
        schema: Arc::new(Schema::new(fields)),
        ..table.spec.clone()
    };
    let mut rows = Vec::new();
    for file in table.files().iter().filter(|file| file.max_lsn > after) {
        let open = OpenFile::open(&spec, file).map_err(|e| e.to_string())?;
        let read = open.read(&spec, &(after + 1..=Lsn::MAX));
        let read: Result<Vec<_>, _> = read.and_then(Iterator::collect);
        rows.extend(read.map_err(|e| e.to_string())?);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_above_an_lsn_are_counted_without_dead_letters() {
        let backlog = Backlog {
            base: 10,
            records: [("a".to_owned(), vec![(11, 20), (31, 40)])].into(),
            dead: [("a".to_owned(), vec![12, 40])].into(),
        };
        let above = |lsn| backlog.above("a", lsn);
        assert_eq!(
            [
                above(10),
                above(11),
                above(15),
                above(25),
                above(35),
                above(40)
            ],
            [18, 17, 14, 9, 4, 0]
        );
        assert_eq!(backlog.above("b", 10), 0);
    }
}
