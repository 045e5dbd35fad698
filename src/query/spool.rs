//! Answers, spooled before they are sent: in memory while small, then in an unnamed temporary file.
//! So nothing of an answer is sent before all of it is known to be within the limit, and a slow
//! client holds no memory.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::QueryError;
use crate::storage::create_folders;

/// Bytes of an answer that are buffered in memory.
const MEMORY_BYTES: usize = 64 << 10;
/// All spooled answers together may take this many times the limit of one.
const MAX_ANSWERS_ON_DISK: u64 = 16;

/// Limits and folder of spooled answers.
#[derive(Clone)]
pub struct Spools {
    /// `None`: everything stays in memory.
    folder: Option<PathBuf>,
    /// Limit of one answer.
    max_bytes: u64,
    /// Bytes of all answers on the disk.
    disk_bytes: Arc<AtomicU64>,
}

impl Spools {
    /// For answers of at most `max_bytes`, spooled to files in a folder.
    pub fn new(folder: Option<PathBuf>, max_bytes: usize) -> Self {
        Self {
            folder,
            max_bytes: max_bytes as u64,
            disk_bytes: Arc::default(),
        }
    }

    /// An empty answer, in memory until it is too large for that.
    pub fn begin(&self) -> Spool {
        let disk_usage = DiskUsage {
            total: self.disk_bytes.clone(),
            bytes: 0,
        };
        Spool {
            spools: self.clone(),
            buffer: Vec::new(),
            file: None,
            written: 0,
            disk_usage,
            error: None,
        }
    }
}

/// An answer's bytes on the disk, counted in those of all.
struct DiskUsage {
    total: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for DiskUsage {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// An answer that is being written.
pub struct Spool {
    spools: Spools,
    buffer: Vec<u8>,
    file: Option<File>,
    written: u64,
    disk_usage: DiskUsage,
    /// The cause of an error that a writer returned.
    error: Option<QueryError>,
}

impl Spool {
    /// Fails early if `bytes` more would exceed the limit, before they take memory.
    pub fn check_room(&mut self, bytes: u64) -> Result<(), QueryError> {
        if self.written.saturating_add(bytes) > self.spools.max_bytes {
            return Err(QueryError::Limit(format!(
                "the result has more than {} bytes as it is written out (`[limits] sql_result`); select fewer columns or rows",
                self.spools.max_bytes
            )));
        }
        Ok(())
    }

    /// The cause of an error that a writer returned.
    pub fn take_error(&mut self, error: impl std::fmt::Display) -> QueryError {
        self.error
            .take()
            .unwrap_or_else(|| QueryError::Failed(error.to_string()))
    }

    /// Whether anything was written so far.
    pub fn has_begun(&self) -> bool {
        self.written > 0
    }

    /// Writes a value as JSON.
    pub fn json(&mut self, value: &impl serde::Serialize) -> Result<(), QueryError> {
        serde_json::to_writer(&mut *self, value).map_err(|e| self.take_error(e))
    }

    /// Writes values as JSON, with commas between them.
    pub fn list(
        &mut self,
        values: impl Iterator<Item = Result<serde_json::Value, QueryError>>,
    ) -> Result<(), QueryError> {
        for (n, value) in values.enumerate() {
            if n > 0 {
                self.text(",")?;
            }
            self.json(&value?)?;
        }
        Ok(())
    }

    /// Writes text unchanged.
    pub fn text(&mut self, text: &str) -> Result<(), QueryError> {
        self.write_all(text.as_bytes())
            .map_err(|e| self.take_error(e))
    }

    fn spill(&mut self) -> Result<(), QueryError> {
        let Some(folder) = &self.spools.folder else {
            return Ok(());
        };
        let bytes = self.buffer.len() as u64;
        let max_bytes = self.spools.max_bytes.saturating_mul(MAX_ANSWERS_ON_DISK);
        self.disk_usage.bytes += bytes;
        if self.disk_usage.total.fetch_add(bytes, Ordering::AcqRel) + bytes > max_bytes {
            return Err(QueryError::Overloaded(format!(
                "answers that are being sent take more than {max_bytes} bytes ({MAX_ANSWERS_ON_DISK} times `[limits] sql_result`); try again in a moment"
            )));
        }
        let failed = |e: io::Error| {
            QueryError::Failed(format!(
                "{}: an answer cannot be written: {e}",
                folder.display()
            ))
        };
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                create_folders(folder).map_err(failed)?;
                self.file
                    .insert(tempfile::tempfile_in(folder).map_err(failed)?)
            }
        };
        file.write_all(&self.buffer).map_err(failed)?;
        self.buffer.clear();
        Ok(())
    }

    /// The complete answer, ready to be read.
    pub fn finish(mut self) -> Result<SpooledAnswer, QueryError> {
        if self.file.is_some() {
            self.spill()?;
        }
        if let Some(file) = &mut self.file {
            file.rewind()
                .map_err(|e| QueryError::Failed(format!("an answer cannot be read: {e}")))?;
        }
        Ok(SpooledAnswer {
            bytes: self.buffer,
            file: self.file,
            len: self.written,
            _disk_usage: self.disk_usage,
        })
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.check_room(bytes.len() as u64).and_then(|()| {
            self.buffer.extend_from_slice(bytes);
            self.written += bytes.len() as u64;
            if self.buffer.len() >= MEMORY_BYTES {
                self.spill()
            } else {
                Ok(())
            }
        });
        written.map(|()| bytes.len()).map_err(|error| {
            let shown = io::Error::other(error.to_string());
            self.error = Some(error);
            shown
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A complete answer.
pub struct SpooledAnswer {
    bytes: Vec<u8>,
    file: Option<File>,
    len: u64,
    _disk_usage: DiskUsage,
}

impl SpooledAnswer {
    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The file to read from its start, if the answer has one. It is counted until `self` is dropped.
    pub fn take_file(&mut self) -> Option<File> {
        self.file.take()
    }

    /// The bytes in memory, read from the file if there is one.
    pub fn into_bytes(mut self) -> io::Result<Vec<u8>> {
        if let Some(file) = &mut self.file {
            file.read_to_end(&mut self.bytes)?;
        }
        Ok(self.bytes)
    }

    /// The answer as JSON.
    pub fn into_value(self) -> Result<serde_json::Value, QueryError> {
        let failed = |e: &dyn std::fmt::Display| {
            QueryError::Failed(format!("an answer cannot be read: {e}"))
        };
        let bytes = self.into_bytes().map_err(|e| failed(&e))?;
        serde_json::from_slice(&bytes).map_err(|e| failed(&e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spools(folder: &tempfile::TempDir, bytes: usize) -> Spools {
        Spools::new(Some(folder.path().join("spill")), bytes)
    }

    #[test]
    fn answers_are_read_back_from_memory_and_from_a_file() {
        let folder = tempfile::tempdir().expect("a folder");
        for size in [0, 10, MEMORY_BYTES - 1, MEMORY_BYTES, 3 * MEMORY_BYTES + 7] {
            let mut spool = spools(&folder, 1 << 20).begin();
            let bytes: Vec<u8> = (0..size).map(|n| n as u8).collect();
            bytes
                .chunks(1_000)
                .for_each(|part| spool.write_all(part).expect("within the limit"));
            let answer = spool.finish().expect("complete");
            assert_eq!((answer.len(), answer.is_empty()), (size as u64, size == 0));
            assert_eq!(answer.into_bytes().expect("readable"), bytes);
        }
        // The file has no name.
        assert_eq!(
            std::fs::read_dir(folder.path().join("spill"))
                .expect("a folder")
                .count(),
            0
        );
    }

    #[test]
    fn the_limits_of_one_and_of_all_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let spools = spools(&folder, MEMORY_BYTES);
        let mut spool = spools.begin();
        spool
            .text(&"x".repeat(MEMORY_BYTES))
            .expect("as much as the limit");
        let error = spool.text("x").expect_err("one more");
        assert!(
            matches!(&error, QueryError::Limit(text) if text.contains("[limits] sql_result")),
            "{error}"
        );
        let mut answers: Vec<SpooledAnswer> = vec![spool.finish().expect("within the limit")];
        let full = loop {
            let mut spool = spools.begin();
            match spool.text(&"x".repeat(MEMORY_BYTES)) {
                Ok(()) => answers.push(spool.finish().expect("complete")),
                Err(error) => break error,
            }
        };
        assert!(
            matches!(&full, QueryError::Overloaded(text) if text.contains("[limits] sql_result")),
            "{full}"
        );
        assert_eq!(answers.len() as u64, MAX_ANSWERS_ON_DISK);
        drop(answers);
        assert_eq!(spools.disk_bytes.load(Ordering::Acquire), 0);
        spools
            .begin()
            .text(&"x".repeat(MEMORY_BYTES))
            .expect("room again");
    }
}
