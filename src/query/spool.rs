//! Answers being written: each within its limit, in memory while it is small, beyond that in a file
//! without a name, so that nothing of an answer is sent before all of it is known to be within the
//! limit, and none takes memory while it is read.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::QueryError;
use crate::storage::create_folders;

/// What of an answer stays in memory.
const MEMORY_BYTES: usize = 64 << 10;
/// All answers that are written or being sent take so many times the limit of one.
const TOGETHER: u64 = 16;

/// Limits of answers, and where they are written.
#[derive(Clone)]
pub struct Spools {
    /// None: everything stays in memory.
    folder: Option<PathBuf>,
    bytes: u64,
    used: Arc<AtomicU64>,
}

impl Spools {
    /// Answers of at most so many bytes, written to files in a folder.
    pub fn new(folder: Option<PathBuf>, bytes: usize) -> Self {
        Self {
            folder,
            bytes: bytes as u64,
            used: Arc::default(),
        }
    }

    pub fn begin(&self) -> Spool {
        let held = Held {
            used: self.used.clone(),
            bytes: 0,
        };
        Spool {
            spools: self.clone(),
            buffer: Vec::new(),
            file: None,
            written: 0,
            held,
            refused: None,
        }
    }
}

/// Bytes of an answer on the disk, among those of all.
struct Held {
    used: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// An answer being written.
pub struct Spool {
    spools: Spools,
    buffer: Vec<u8>,
    file: Option<File>,
    written: u64,
    held: Held,
    /// Why no more is taken.
    refused: Option<QueryError>,
}

impl Spool {
    /// Refuses now what would not fit, before it takes memory.
    pub fn expect(&mut self, bytes: u64) -> Result<(), QueryError> {
        if self.written.saturating_add(bytes) > self.spools.bytes {
            return Err(QueryError::Limit(format!(
                "the result has more than {} bytes as it is written out (`[limits] sql_result`); select fewer columns or rows",
                self.spools.bytes
            )));
        }
        Ok(())
    }

    /// The error behind one that a writer gave.
    pub fn explain(&mut self, error: impl std::fmt::Display) -> QueryError {
        self.refused
            .take()
            .unwrap_or_else(|| QueryError::Failed(error.to_string()))
    }

    pub fn has_begun(&self) -> bool {
        self.written > 0
    }

    /// Writes a value as JSON.
    pub fn json(&mut self, value: &impl serde::Serialize) -> Result<(), QueryError> {
        serde_json::to_writer(&mut *self, value).map_err(|e| self.explain(e))
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

    /// Writes text as it is.
    pub fn text(&mut self, text: &str) -> Result<(), QueryError> {
        self.write_all(text.as_bytes()).map_err(|e| self.explain(e))
    }

    fn spill(&mut self) -> Result<(), QueryError> {
        let Some(folder) = &self.spools.folder else {
            return Ok(());
        };
        let bytes = self.buffer.len() as u64;
        let most = self.spools.bytes.saturating_mul(TOGETHER);
        self.held.bytes += bytes;
        if self.held.used.fetch_add(bytes, Ordering::AcqRel) + bytes > most {
            return Err(QueryError::Crowded(format!(
                "answers that are being sent take more than {most} bytes ({TOGETHER} times `[limits] sql_result`); try again in a moment"
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

    /// The whole answer.
    pub fn finish(mut self) -> Result<Whole, QueryError> {
        if self.file.is_some() {
            self.spill()?;
        }
        if let Some(file) = &mut self.file {
            file.rewind()
                .map_err(|e| QueryError::Failed(format!("an answer cannot be read: {e}")))?;
        }
        Ok(Whole {
            bytes: self.buffer,
            file: self.file,
            len: self.written,
            _held: self.held,
        })
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.expect(bytes.len() as u64).and_then(|()| {
            self.buffer.extend_from_slice(bytes);
            self.written += bytes.len() as u64;
            if self.buffer.len() >= MEMORY_BYTES {
                self.spill()
            } else {
                Ok(())
            }
        });
        taken.map(|()| bytes.len()).map_err(|error| {
            let shown = io::Error::other(error.to_string());
            self.refused = Some(error);
            shown
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An answer that is known whole.
pub struct Whole {
    bytes: Vec<u8>,
    file: Option<File>,
    len: u64,
    _held: Held,
}

impl Whole {
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its file, which is to be read from its start while this lives; none where it is small.
    pub fn take_file(&mut self) -> Option<File> {
        self.file.take()
    }

    pub fn into_bytes(mut self) -> io::Result<Vec<u8>> {
        if let Some(file) = &mut self.file {
            file.read_to_end(&mut self.bytes)?;
        }
        Ok(self.bytes)
    }

    /// What a question was answered.
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
    fn what_was_written_is_read_in_memory_and_from_a_file() {
        let folder = tempfile::tempdir().expect("a folder");
        for size in [0, 10, MEMORY_BYTES - 1, MEMORY_BYTES, 3 * MEMORY_BYTES + 7] {
            let mut spool = spools(&folder, 1 << 20).begin();
            let bytes: Vec<u8> = (0..size).map(|n| n as u8).collect();
            bytes
                .chunks(1_000)
                .for_each(|part| spool.write_all(part).expect("within the limit"));
            let whole = spool.finish().expect("whole");
            assert_eq!((whole.len(), whole.is_empty()), (size as u64, size == 0));
            assert_eq!(whole.into_bytes().expect("readable"), bytes);
        }
        // Its file has no name.
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
            .expect("as much as may be");
        let error = spool.text("x").expect_err("one more");
        assert!(
            matches!(&error, QueryError::Limit(text) if text.contains("[limits] sql_result")),
            "{error}"
        );
        let mut held: Vec<Whole> = vec![spool.finish().expect("what was within")];
        let full = loop {
            let mut spool = spools.begin();
            match spool.text(&"x".repeat(MEMORY_BYTES)) {
                Ok(()) => held.push(spool.finish().expect("whole")),
                Err(error) => break error,
            }
        };
        assert!(
            matches!(&full, QueryError::Crowded(text) if text.contains("[limits] sql_result")),
            "{full}"
        );
        assert_eq!(held.len() as u64, TOGETHER);
        drop(held);
        assert_eq!(spools.used.load(Ordering::Acquire), 0);
        spools
            .begin()
            .text(&"x".repeat(MEMORY_BYTES))
            .expect("there is room again");
    }
}
