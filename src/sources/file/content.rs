//! A file's plain bytes, decompressed where necessary, from any offset; and a running checksum of
//! the bytes read.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;

use super::super::compression::PlainReader;
pub(super) use super::super::lines::HEAD_BYTES;
use super::super::lines::Reader;

pub(super) const READ_BYTES: usize = 256 << 10;
/// Bytes before an offset that are held, so that a copy which ends among them is recognized.
const TAIL_BYTES: usize = 64 << 10;
/// Bytes read ahead of the offset that are held until it reaches them.
const READ_AHEAD_BYTES: usize = 4 << 20;

/// Reads a file at an offset of its own: clones of a descriptor would share one.
pub(super) struct PositionalReader {
    file: Arc<File>,
    offset: u64,
}

impl PositionalReader {
    /// Reads from the first byte.
    pub fn new(file: Arc<File>) -> Self {
        Self { file, offset: 0 }
    }
}

impl Read for PositionalReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

/// An open file, of which is known whether it is compressed.
#[derive(Clone)]
pub(super) struct Content {
    file: Arc<File>,
    is_compressed: bool,
}

impl Content {
    /// Looks at the first bytes to find out whether it is compressed.
    pub fn new(file: Arc<File>) -> io::Result<Self> {
        let is_compressed = PlainReader::new(PositionalReader::new(file.clone()))?
            .compression()
            .is_some();
        Ok(Self {
            file,
            is_compressed,
        })
    }

    /// The descriptor, which stays open while the file is renamed or removed.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Whether its offsets count plain bytes that differ from the stored ones.
    pub fn is_compressed(&self) -> bool {
        self.is_compressed
    }

    /// All plain bytes.
    pub fn plain(&self) -> io::Result<Box<dyn Read>> {
        let stored = PositionalReader::new(self.file.clone());
        if self.is_compressed {
            Ok(Box::new(PlainReader::new(stored)?))
        } else {
            Ok(Box::new(stored))
        }
    }

    /// The first plain bytes, at most [`HEAD_BYTES`]; true if there may be fewer than there will be,
    /// because the file is compressed and incomplete.
    pub fn head(&self) -> io::Result<(Vec<u8>, bool)> {
        let mut head = Vec::new();
        match self.plain()?.take(HEAD_BYTES as u64).read_to_end(&mut head) {
            Err(error) if head.is_empty() => Err(error),
            result => Ok((head, result.is_err())),
        }
    }

    /// The plain bytes before an offset of a file that is not compressed.
    pub fn before(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.file
            .read_exact_at(&mut bytes, offset - length as u64)?;
        Ok(bytes)
    }

    /// Reads records from where the trail ends.
    pub fn reader(
        &self,
        trail: Trail,
        head: &[u8],
        unwrap: Option<&str>,
        limit: usize,
    ) -> io::Result<RecordReader> {
        let offset = trail.end;
        let mut input: Box<dyn Read> = if self.is_compressed {
            self.plain()?
        } else {
            let file = self.file.clone();
            Box::new(PositionalReader { file, offset })
        };
        if self.is_compressed {
            io::copy(&mut (&mut input).take(offset), &mut io::sink())?;
        }
        let size = self.file.metadata()?.len() as usize;
        let trail = Rc::new(RefCell::new(ReadAhead {
            trail,
            bytes: Vec::new(),
        }));
        let input = BufReader::with_capacity(
            READ_BYTES.min(size.max(4 << 10)),
            Tee {
                input,
                trail: trail.clone(),
            },
        );
        Ok(RecordReader {
            reader: Reader::new(input, offset, head, unwrap, limit),
            trail,
            is_compressed: self.is_compressed,
        })
    }
}

/// The records of a file, with the checksum of the bytes before them.
pub(super) struct RecordReader {
    /// Splits the plain bytes into records.
    pub reader: Reader<BufReader<Tee>>,
    trail: Rc<RefCell<ReadAhead>>,
    is_compressed: bool,
}

impl RecordReader {
    /// The trail up to an offset that the reader has passed; none where too much was read ahead of
    /// it.
    pub fn trail_at(&self, offset: u64) -> Option<Trail> {
        self.advance_trail(offset);
        let trail = &self.trail.borrow().trail;
        (trail.end == offset).then(|| trail.clone())
    }

    /// The checksum up to an offset that the reader has passed.
    pub fn crc_at(&self, offset: u64) -> Option<u32> {
        self.advance_trail(offset);
        let trail = &self.trail.borrow().trail;
        (trail.end == offset).then_some(trail.crc).flatten()
    }

    fn advance_trail(&self, offset: u64) {
        let ReadAhead { trail, bytes } = &mut *self.trail.borrow_mut();
        let passed = usize::try_from(offset.saturating_sub(trail.end))
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        trail.advance(&bytes[..passed]);
        bytes.drain(..passed);
    }

    /// Whether a file of this size was read to its end. A compressed one marks its own end.
    pub fn has_read_all(&self, size: u64) -> bool {
        let ahead = self.trail.borrow();
        self.is_compressed || ahead.trail.end + ahead.bytes.len() as u64 == size
    }
}

struct ReadAhead {
    trail: Trail,
    /// Bytes after the trail that were read already.
    bytes: Vec<u8>,
}

/// Copies what is read through it into the bytes read ahead.
pub(super) struct Tee {
    input: Box<dyn Read>,
    trail: Rc<RefCell<ReadAhead>>,
}

impl Read for Tee {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        let mut ahead = self.trail.borrow_mut();
        ahead.bytes.extend_from_slice(&buffer[..read]);
        if ahead.bytes.len() > 2 * READ_AHEAD_BYTES {
            let passed = ahead.bytes.len() - READ_AHEAD_BYTES;
            let passed: Vec<u8> = ahead.bytes.drain(..passed).collect();
            ahead.trail.advance(&passed);
        }
        Ok(read)
    }
}

/// The checksum of a content up to an offset, with the last bytes before it. The bytes allow to
/// step back: a copy that ends a little before the offset is recognized by the checksum there.
///
/// ```text
/// 0                 before_tail            crc
/// |-- everything ------|-------- tail ------|  end
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Trail {
    /// Plain bytes that the checksum covers.
    pub end: u64,
    /// CRC-32C of everything before `end`; none where it is unknown.
    pub crc: Option<u32>,
    tail: Vec<u8>,
    /// CRC-32C of everything before the tail.
    before_tail: u32,
}

impl Trail {
    /// At the start of a file.
    pub fn new() -> Self {
        Self::at(0, Some(0))
    }

    /// At an offset, without the bytes before it.
    pub fn at(end: u64, crc: Option<u32>) -> Self {
        Self {
            end,
            crc,
            tail: Vec::new(),
            before_tail: crc.unwrap_or(0),
        }
    }

    /// Continues the checksum by the bytes that follow.
    pub fn advance(&mut self, bytes: &[u8]) {
        self.end += bytes.len() as u64;
        self.crc = self.crc.map(|crc| crc32c::crc32c_append(crc, bytes));
        self.tail.extend_from_slice(bytes);
        if self.tail.len() > 2 * TAIL_BYTES {
            let excess = self.tail.len() - TAIL_BYTES;
            self.before_tail = crc32c::crc32c_append(self.before_tail, &self.tail[..excess]);
            self.tail.drain(..excess);
        }
    }

    /// The bytes before the end that are held.
    pub fn tail(&self) -> &[u8] {
        &self.tail
    }

    /// The checksum up to an earlier offset; none where the bytes from there on are not held.
    pub fn crc_at(&self, offset: u64) -> Option<u32> {
        let after = usize::try_from(self.end.checked_sub(offset)?).ok()?;
        let before = self.tail.len().checked_sub(after)?;
        self.crc
            .map(|_| crc32c::crc32c_append(self.before_tail, &self.tail[..before]))
    }
}

/// The beginning of a content.
pub(super) struct Prefix {
    /// What was read: up to the offset, or to the end of a shorter content.
    pub trail: Trail,
    /// It is shorter than asked for, because the file is compressed and incomplete.
    pub is_truncated: bool,
}

/// Reads a content up to an offset, or to its end.
pub(super) fn read_prefix(content: &Content, offset: u64) -> io::Result<Prefix> {
    let mut input = content.plain()?.take(offset);
    let mut trail = Trail::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => {
                return Ok(Prefix {
                    trail,
                    is_truncated: false,
                });
            }
            Ok(read) => trail.advance(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Ok(Prefix {
                    trail,
                    is_truncated: true,
                });
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_trail_knows_its_checksums(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..90_000), 0..5), back in 0usize..200_000) {
            let (mut trail, mut all) = (Trail::new(), Vec::new());
            for part in &parts {
                trail.advance(part);
                all.extend_from_slice(part);
            }
            prop_assert_eq!(trail.crc, Some(crc32c::crc32c(&all)));
            prop_assert!(all.ends_with(trail.tail()));
            let at = all.len().saturating_sub(back);
            match trail.crc_at(at as u64) {
                Some(crc) => prop_assert_eq!(crc, crc32c::crc32c(&all[..at])),
                None => prop_assert!(all.len() - at > TAIL_BYTES),
            }
        }
    }
}
