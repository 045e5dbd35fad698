//! Rows that the target of a sink refuses for good: a file of JSON lines beside its cursor, shown as
//! `weir.sink_dead_letters`. They are durable before the cursor passes them.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::SinkError;
use super::cursor::StateFolder;
use crate::event::{RefusedRow, SharedSinkHealth};
use crate::query::encode;
use crate::storage::{create_folders, sync_folder};

const FILE: &str = "dead_letters.ndjson";
/// A sink that has so many halts: its target is probably not what it should be.
pub const MAX_ROWS: usize = 1_000;
/// Bytes of a row, and of its reason, that are stored.
const MAX_ROW_BYTES: usize = 16 << 10;
const MAX_REASON_BYTES: usize = 1 << 10;

/// Stores refused rows.
pub struct DeadLetters {
    folder: StateFolder,
    health: SharedSinkHealth,
}

impl DeadLetters {
    /// Those of a sink, with what its file has.
    pub fn open(folder: StateFolder, health: SharedSinkHealth) -> Result<Self, SinkError> {
        let rows = load(&folder).map_err(|e| SinkError::Halted(e.to_string()))?;
        super::lock(&health).refused = rows;
        Ok(Self { folder, health })
    }

    /// Stores these rows durably, unless they are stored already: an attempt may be repeated.
    pub fn add(&self, rows: Vec<RefusedRow>) -> Result<(), SinkError> {
        if rows.is_empty() {
            return Ok(());
        }
        let known = super::lock(&self.health).refused.clone();
        let is_same =
            |a: &RefusedRow, b: &RefusedRow| (&a.table, a.lsn, &a.row) == (&b.table, b.lsn, &b.row);
        let new: Vec<RefusedRow> = rows
            .into_iter()
            .map(shortened)
            .filter(|row| !known.iter().any(|known| is_same(known, row)))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        if known.len() + new.len() > MAX_ROWS {
            return Err(SinkError::Halted(format!(
                "the target refused more than {MAX_ROWS} rows, the last one because: {}; repair the target, then run `weir sinks resume NAME --discard-dead-letters`",
                new.last().map_or("", |row| row.reason.as_str())
            )));
        }
        let failed = |e: io::Error| SinkError::Unavailable(e.to_string());
        append(&self.folder, &new).map_err(failed)?;
        super::lock(&self.health).refused.extend(new);
        Ok(())
    }

    /// Removes all those of a sink.
    pub fn discard_in(folder: &StateFolder, health: &SharedSinkHealth) -> Result<(), SinkError> {
        match std::fs::remove_file(path(folder)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(SinkError::Unavailable(error.to_string()))
            }
            _ => {
                super::lock(health).refused.clear();
                Ok(())
            }
        }
    }
}

fn path(folder: &StateFolder) -> PathBuf {
    folder.path().join(FILE)
}

/// The rows of a file. A last line that is not complete was being written when the process was
/// killed: its row is refused again.
pub fn load(folder: &StateFolder) -> io::Result<Vec<RefusedRow>> {
    let text = match std::fs::read_to_string(path(folder)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    let complete = text
        .lines()
        .map_while(|line| serde_json::from_str(line).ok());
    Ok(complete.take(MAX_ROWS).collect())
}

fn append(folder: &StateFolder, rows: &[RefusedRow]) -> io::Result<()> {
    create_folders(folder.path())?;
    // What a kill left of a line is overwritten.
    let mut text = Vec::new();
    for row in load(folder)?.iter().chain(rows) {
        serde_json::to_writer(&mut text, row)?;
        text.push(b'\n');
    }
    let temporary = path(folder).with_extension("tmp");
    let mut options = OpenOptions::new();
    options.create(true).truncate(true).write(true).mode(0o600);
    let mut file = options.open(&temporary)?;
    file.write_all(&text)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path(folder))?;
    sync_folder(folder.path())
}

fn shortened(row: RefusedRow) -> RefusedRow {
    let cut = |text: String, bytes: usize| crate::bounds::truncate(&text, bytes).into_owned();
    RefusedRow {
        reason: cut(row.reason, MAX_REASON_BYTES),
        row: cut(row.row, MAX_ROW_BYTES),
        ..row
    }
}

/// A row of a batch as it is stored.
pub fn refused(
    table: &str,
    rows: &arrow::array::RecordBatch,
    at: usize,
    reason: String,
    refused_at: crate::event::Micros,
) -> RefusedRow {
    let row = encode::to_ndjson(&rows.schema(), &[rows.slice(at, 1)]).unwrap_or_default();
    RefusedRow {
        table: table.to_owned(),
        lsn: crate::operators::lsns(rows)[at] as u64,
        reason,
        row: String::from_utf8_lossy(&row).trim_end().to_owned(),
        refused_at,
    }
}
