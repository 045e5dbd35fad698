//! A sorted run in a file: records that did not fit into memory. Only the process that wrote it
//! reads it.
//!
//! The file is a sequence of blocks: decompressed length, compressed length, CRC-32C of the
//! compressed bytes (u32 each, little endian), then the compressed bytes (zstd). Decompressed, a
//! block is a sequence of records: time (i64), number, start, length (u64 each), stored length
//! (u32), then the stored bytes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::super::super::SortSpace;
use super::super::frame::Record;
use super::sort::{Key, SortError, Sortable};
use crate::wal::frame::compress;

/// Bytes of records that fill a block.
pub(super) const BLOCK_BYTES: usize = 64 << 10;
const RECORD_HEADER_BYTES: usize = 36;
const BLOCK_HEADER_BYTES: usize = 12;
/// Bytes that are written before the disk allowance is checked again.
const ALLOWANCE_STEP_BYTES: u64 = 32 << 20;

/// A complete run; its file is removed when it is dropped.
pub(super) struct Run {
    path: PathBuf,
    /// Size of its largest block.
    pub max_block_bytes: usize,
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Writes a run: sorted records in compressed blocks, within the disk's allowance.
pub(super) struct RunWriter<'a> {
    space: &'a SortSpace,
    run: Run,
    file: File,
    block: Vec<u8>,
    written_bytes: u64,
    allowed_bytes: u64,
}

impl<'a> RunWriter<'a> {
    /// Creates the run's file, named by its number.
    pub fn new(space: &'a SortSpace, number: u64) -> Result<Self, SortError> {
        let path = space.folder.join(number.to_string());
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path);
        let file = file.map_err(|error| SortError::io(&path, error))?;
        let run = Run {
            path,
            max_block_bytes: 0,
        };
        Ok(Self {
            space,
            run,
            file,
            block: Vec::with_capacity(BLOCK_BYTES * 2),
            written_bytes: 0,
            allowed_bytes: 0,
        })
    }

    /// Appends a record, which must not be before the last one.
    pub fn push(&mut self, Sortable { key, record }: &Sortable<'_>) -> Result<(), SortError> {
        self.block.extend_from_slice(&key.time.to_le_bytes());
        for number in [key.number, record.start, record.length] {
            self.block.extend_from_slice(&number.to_le_bytes());
        }
        let length = u32::try_from(record.bytes.len())
            .expect("a record is bounded by its limit, far below 4 GiB");
        self.block.extend_from_slice(&length.to_le_bytes());
        self.block.extend_from_slice(record.bytes);
        if self.block.len() >= BLOCK_BYTES {
            self.write_block()
        } else {
            Ok(())
        }
    }

    fn write_block(&mut self) -> Result<(), SortError> {
        let io_error = |error| SortError::io(&self.run.path, error);
        let compressed = compress(&self.block).map_err(io_error)?;
        let bytes = (BLOCK_HEADER_BYTES + compressed.len()) as u64;
        if self.written_bytes + bytes > self.allowed_bytes {
            let allowance = (self.space.disk)();
            if allowance.bytes < bytes {
                return Err(SortError::NoSpace {
                    limit: allowance.limit,
                });
            }
            self.allowed_bytes =
                self.written_bytes + allowance.bytes.min(ALLOWANCE_STEP_BYTES.max(bytes));
        }
        for number in [
            self.block.len() as u32,
            compressed.len() as u32,
            crc32c::crc32c(&compressed),
        ] {
            self.file
                .write_all(&number.to_le_bytes())
                .map_err(io_error)?;
        }
        self.file.write_all(&compressed).map_err(io_error)?;
        self.written_bytes += bytes;
        self.run.max_block_bytes = self.run.max_block_bytes.max(self.block.len());
        self.block.clear();
        Ok(())
    }

    /// Writes the last block. The file is removed when the run is dropped.
    pub fn finish(mut self) -> Result<Run, SortError> {
        if !self.block.is_empty() {
            self.write_block()?;
        }
        Ok(self.run)
    }
}

/// Reads a run from its start, a block at a time.
pub(super) struct RunReader {
    run: Run,
    file: File,
    compressed: Vec<u8>,
    block: Vec<u8>,
    /// Where the current record begins in the block.
    at: usize,
}

impl RunReader {
    /// At the run's first record.
    pub fn open(run: Run) -> Result<Self, SortError> {
        let file = File::open(&run.path).map_err(|error| SortError::io(&run.path, error))?;
        let mut reader = Self {
            run,
            file,
            compressed: Vec::new(),
            block: Vec::new(),
            at: 0,
        };
        reader.read_block()?;
        Ok(reader)
    }

    /// The current record; none at the run's end.
    pub fn current(&self) -> Option<Sortable<'_>> {
        let rest = self
            .block
            .get(self.at..)
            .filter(|rest| rest.len() >= RECORD_HEADER_BYTES)?;
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| rest[at + i]));
        let key = Key {
            time: number(0) as i64,
            number: number(8),
        };
        let bytes = rest.get(RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + stored_bytes(rest))?;
        Some(Sortable {
            key,
            record: Record {
                start: number(16),
                length: number(24),
                bytes,
            },
        })
    }

    /// Moves to the next record, and reads the next block after a block's last one.
    pub fn advance(&mut self) -> Result<(), SortError> {
        self.at += self
            .block
            .get(self.at..)
            .filter(|rest| rest.len() >= RECORD_HEADER_BYTES)
            .map_or(0, |rest| RECORD_HEADER_BYTES + stored_bytes(rest));
        if self.at >= self.block.len() {
            self.read_block()
        } else {
            Ok(())
        }
    }

    fn read_block(&mut self) -> Result<(), SortError> {
        (self.at, self.block) = (0, Vec::new());
        self.load_block()
            .map_err(|error| SortError::io(&self.run.path, error))
    }

    fn load_block(&mut self) -> io::Result<()> {
        let mut header = Vec::with_capacity(BLOCK_HEADER_BYTES);
        if Read::by_ref(&mut self.file)
            .take(BLOCK_HEADER_BYTES as u64)
            .read_to_end(&mut header)?
            == 0
        {
            return Ok(());
        }
        let damaged = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "a file written while sorting is damaged",
            )
        };
        if header.len() < BLOCK_HEADER_BYTES {
            return Err(damaged());
        }
        let number = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        self.compressed.resize(number(4) as usize, 0);
        self.file.read_exact(&mut self.compressed)?;
        if crc32c::crc32c(&self.compressed) != number(8) {
            return Err(damaged());
        }
        self.block = zstd::bulk::decompress(&self.compressed, number(0) as usize)?;
        Ok(())
    }
}

/// Stored bytes of the record that begins here.
fn stored_bytes(record: &[u8]) -> usize {
    u32::from_le_bytes(std::array::from_fn(|i| record[32 + i])) as usize
}
