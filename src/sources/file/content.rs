//! A file's plain bytes, unpacked where it is compressed, from any position on; and a running
//! checksum of what was read of them.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;

use super::super::compression::PlainReader;
use super::super::lines::{HEAD, Reader};

pub const READ_BYTES: usize = 256 << 10;
/// Bytes at the start of a file that tell it from others.
pub const HEAD_BYTES: usize = HEAD;
/// Bytes before a position that are kept, so that a copy which ends among them is recognized.
const TAIL_BYTES: usize = 64 << 10;
/// Bytes read ahead of the position that are kept until it reaches them.
const AHEAD_BYTES: usize = 4 << 20;

/// Reads a file at offsets of its own: clones of a descriptor would share one.
pub struct Positional {
    file: Arc<File>,
    at: u64,
}

impl Positional {
    /// From its first byte on.
    pub fn new(file: Arc<File>) -> Self {
        Self { file, at: 0 }
    }
}

impl Read for Positional {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// An open file, known to be compressed or not.
#[derive(Clone)]
pub struct Content {
    file: Arc<File>,
    is_compressed: bool,
}

impl Content {
    pub fn new(file: Arc<File>) -> io::Result<Self> {
        let is_compressed = PlainReader::new(Positional::new(file.clone()))?
            .compression()
            .is_some();
        Ok(Self {
            file,
            is_compressed,
        })
    }

    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub fn is_compressed(&self) -> bool {
        self.is_compressed
    }

    /// All plain bytes, from the first on.
    pub fn plain(&self) -> io::Result<Box<dyn Read>> {
        let stored = Positional::new(self.file.clone());
        if self.is_compressed {
            Ok(Box::new(PlainReader::new(stored)?))
        } else {
            Ok(Box::new(stored))
        }
    }

    /// The first plain bytes; an incomplete compressed file may give fewer than it will, which is
    /// true then.
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
    ) -> io::Result<Records> {
        let offset = trail.end;
        let mut input: Box<dyn Read> = if self.is_compressed {
            self.plain()?
        } else {
            Box::new(Positional {
                file: self.file.clone(),
                at: offset,
            })
        };
        if self.is_compressed {
            io::copy(&mut (&mut input).take(offset), &mut io::sink())?;
        }
        let size = self.file.metadata()?.len() as usize;
        let trail = Rc::new(RefCell::new(Ahead {
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
        Ok(Records {
            reader: Reader::new(input, offset, head, unwrap, limit),
            trail,
            is_compressed: self.is_compressed,
        })
    }
}

/// The records of a file, with the checksum of the bytes before them.
pub struct Records {
    pub reader: Reader<BufReader<Tee>>,
    trail: Rc<RefCell<Ahead>>,
    is_compressed: bool,
}

impl Records {
    /// The trail up to a position that the reader has passed; none where too much was read ahead of
    /// it.
    pub fn trail_at(&self, offset: u64) -> Option<Trail> {
        self.pass(offset);
        let trail = &self.trail.borrow().trail;
        (trail.end == offset).then(|| trail.clone())
    }

    /// The checksum up to a position that the reader has passed.
    pub fn crc_at(&self, offset: u64) -> Option<u32> {
        self.pass(offset);
        let trail = &self.trail.borrow().trail;
        (trail.end == offset).then_some(trail.crc).flatten()
    }

    fn pass(&self, offset: u64) {
        let Ahead { trail, bytes } = &mut *self.trail.borrow_mut();
        let passed = usize::try_from(offset.saturating_sub(trail.end))
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        trail.advance(&bytes[..passed]);
        bytes.drain(..passed);
    }

    /// Whether a file of this size was read to its end; of a compressed one its end says so.
    pub fn has_read(&self, size: u64) -> bool {
        let ahead = self.trail.borrow();
        self.is_compressed || ahead.trail.end + ahead.bytes.len() as u64 == size
    }
}

struct Ahead {
    trail: Trail,
    /// Read and not yet passed.
    bytes: Vec<u8>,
}

/// Keeps what is read through it.
pub struct Tee {
    input: Box<dyn Read>,
    trail: Rc<RefCell<Ahead>>,
}

impl Read for Tee {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        let mut ahead = self.trail.borrow_mut();
        ahead.bytes.extend_from_slice(&buffer[..read]);
        if ahead.bytes.len() > 2 * AHEAD_BYTES {
            let passed = ahead.bytes.len() - AHEAD_BYTES;
            let passed: Vec<u8> = ahead.bytes.drain(..passed).collect();
            ahead.trail.advance(&passed);
        }
        Ok(read)
    }
}

/// The checksum of a content up to a position, with the last bytes before it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trail {
    pub end: u64,
    /// CRC-32C of everything before `end`; none where it is not known.
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

    /// At a position, without the bytes before it.
    pub fn at(end: u64, crc: Option<u32>) -> Self {
        Self {
            end,
            crc,
            tail: Vec::new(),
            before_tail: crc.unwrap_or(0),
        }
    }

    pub fn advance(&mut self, bytes: &[u8]) {
        self.end += bytes.len() as u64;
        self.crc = self.crc.map(|crc| crc32c::crc32c_append(crc, bytes));
        self.tail.extend_from_slice(bytes);
        if self.tail.len() > 2 * TAIL_BYTES {
            let left = self.tail.len() - TAIL_BYTES;
            self.before_tail = crc32c::crc32c_append(self.before_tail, &self.tail[..left]);
            self.tail.drain(..left);
        }
    }

    /// The bytes before the end that are kept.
    pub fn tail(&self) -> &[u8] {
        &self.tail
    }

    /// The checksum up to an earlier position, where the bytes from there on are kept.
    pub fn crc_at(&self, offset: u64) -> Option<u32> {
        let after = usize::try_from(self.end.checked_sub(offset)?).ok()?;
        let before = self.tail.len().checked_sub(after)?;
        self.crc
            .map(|_| crc32c::crc32c_append(self.before_tail, &self.tail[..before]))
    }
}

/// How far a content reached towards a position.
pub struct Reached {
    pub trail: Trail,
    /// It ended too early: it is compressed and incomplete.
    pub is_cut_off: bool,
}

/// Reads a content up to a position, or to its end.
pub fn read_to(content: &Content, offset: u64) -> io::Result<Reached> {
    let mut input = content.plain()?.take(offset);
    let mut trail = Trail::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => {
                return Ok(Reached {
                    trail,
                    is_cut_off: false,
                });
            }
            Ok(read) => trail.advance(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Ok(Reached {
                    trail,
                    is_cut_off: true,
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
