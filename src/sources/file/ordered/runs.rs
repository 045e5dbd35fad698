//! A sorted run in a file: what did not fit into memory. Nobody reads it after the process that
//! wrote it.
//!
//! The file is a sequence of blocks: length unpacked, length packed, CRC-32C of the packed bytes
//! (u32 each, little endian), then the packed bytes (zstd). Unpacked, a block is a sequence of
//! records: time (i64), number, start, length (u64 each), bytes kept (u32), then these bytes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::super::super::SortSpace;
use super::super::frame::Record;
use super::sort::{Key, SortError, Sortable};
use crate::wal::frame::compress;

/// Bytes of records that make a block.
pub const BLOCK_BYTES: usize = 64 << 10;
/// Bytes before a record's own.
const LEAD: usize = 36;
const BLOCK_LEAD: usize = 12;
/// So much is written before it is asked again what may be.
const ROOM_STEP: u64 = 32 << 20;

/// A run that was written whole; its file leaves with it.
pub struct Run {
    path: PathBuf,
    /// Bytes of its largest block.
    pub largest: usize,
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

pub struct RunWriter<'a> {
    space: &'a SortSpace,
    run: Run,
    file: File,
    block: Vec<u8>,
    written: u64,
    allowed: u64,
}

impl<'a> RunWriter<'a> {
    pub fn new(space: &'a SortSpace, number: u64) -> Result<Self, SortError> {
        let path = space.folder.join(number.to_string());
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path);
        let file = file.map_err(|error| SortError::io(&path, error))?;
        let run = Run { path, largest: 0 };
        Ok(Self {
            space,
            run,
            file,
            block: Vec::with_capacity(BLOCK_BYTES * 2),
            written: 0,
            allowed: 0,
        })
    }

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
        let wrong = |error| SortError::io(&self.run.path, error);
        let packed = compress(&self.block).map_err(wrong)?;
        let bytes = (BLOCK_LEAD + packed.len()) as u64;
        if self.written + bytes > self.allowed {
            let room = (self.space.room)();
            if room.bytes < bytes {
                return Err(SortError::NoRoom { bound: room.bound });
            }
            self.allowed = self.written + room.bytes.min(ROOM_STEP.max(bytes));
        }
        for number in [
            self.block.len() as u32,
            packed.len() as u32,
            crc32c::crc32c(&packed),
        ] {
            self.file.write_all(&number.to_le_bytes()).map_err(wrong)?;
        }
        self.file.write_all(&packed).map_err(wrong)?;
        self.written += bytes;
        self.run.largest = self.run.largest.max(self.block.len());
        self.block.clear();
        Ok(())
    }

    pub fn finish(mut self) -> Result<Run, SortError> {
        if !self.block.is_empty() {
            self.write_block()?;
        }
        Ok(self.run)
    }
}

/// Reads a run from its start, a block at a time.
pub struct RunReader {
    run: Run,
    file: File,
    packed: Vec<u8>,
    block: Vec<u8>,
    /// Where the present record lies in the block.
    at: usize,
}

impl RunReader {
    /// At the run's first record.
    pub fn open(run: Run) -> Result<Self, SortError> {
        let file = File::open(&run.path).map_err(|error| SortError::io(&run.path, error))?;
        let mut reader = Self {
            run,
            file,
            packed: Vec::new(),
            block: Vec::new(),
            at: 0,
        };
        reader.read_block()?;
        Ok(reader)
    }

    /// None at the run's end.
    pub fn present(&self) -> Option<Sortable<'_>> {
        let rest = self
            .block
            .get(self.at..)
            .filter(|rest| rest.len() >= LEAD)?;
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| rest[at + i]));
        let key = Key {
            time: number(0) as i64,
            number: number(8),
        };
        let bytes = rest.get(LEAD..LEAD + kept(rest))?;
        Some(Sortable {
            key,
            record: Record {
                start: number(16),
                length: number(24),
                bytes,
            },
        })
    }

    pub fn advance(&mut self) -> Result<(), SortError> {
        self.at += self
            .block
            .get(self.at..)
            .filter(|rest| rest.len() >= LEAD)
            .map_or(0, |rest| LEAD + kept(rest));
        if self.at >= self.block.len() {
            self.read_block()
        } else {
            Ok(())
        }
    }

    fn read_block(&mut self) -> Result<(), SortError> {
        (self.at, self.block) = (0, Vec::new());
        self.take_block()
            .map_err(|error| SortError::io(&self.run.path, error))
    }

    fn take_block(&mut self) -> io::Result<()> {
        let mut lead = Vec::with_capacity(BLOCK_LEAD);
        if Read::by_ref(&mut self.file)
            .take(BLOCK_LEAD as u64)
            .read_to_end(&mut lead)?
            == 0
        {
            return Ok(());
        }
        let damaged = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "what was written while sorting cannot be read back",
            )
        };
        if lead.len() < BLOCK_LEAD {
            return Err(damaged());
        }
        let number = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| lead[at + i]));
        self.packed.resize(number(4) as usize, 0);
        self.file.read_exact(&mut self.packed)?;
        if crc32c::crc32c(&self.packed) != number(8) {
            return Err(damaged());
        }
        self.block = zstd::bulk::decompress(&self.packed, number(0) as usize)?;
        Ok(())
    }
}

/// Bytes kept of the record that begins here.
fn kept(record: &[u8]) -> usize {
    u32::from_le_bytes(std::array::from_fn(|i| record[32 + i])) as usize
}
