//! A file or stream as stored → its plain content, in bounded memory. The first bytes decide, never
//! the name: gzip (several members), zstd (several frames), bzip2 (several streams), anything else
//! is plain; formats that are known and not read are refused by name.
//!
//! Everything before a bad place is delivered first. Where data ends too early, it may still be
//! written: the error says [`ContentError::Truncated`], and reading again goes on with what has
//! been added. Zeros and garbage after a complete member are passed over, as `gzip -d` does.

mod decoders;

use std::io::{self, BufRead, Read};

use decoders::{Decoder, Step};

/// Read at once, and given at once.
const BUFFER: usize = 64 << 10;
/// The longest magic number.
const MAGIC: usize = 10;

/// A compression that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    Gzip,
    Zstd,
    Bzip2,
}

impl std::fmt::Display for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
        })
    }
}

/// What a file is, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    Plain,
    Compressed(Compression),
    Refused(Refused),
    /// Too few bytes to rule this compression out.
    Undecided(Compression),
}

/// A format that is known and not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    name: &'static str,
    advice: &'static str,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "this is {}, which is not supported; {}",
            self.name, self.advice
        )
    }
}

/// Why there is no more content; found inside an [`io::Error`] by [`ContentError::of`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// It may still be written; reading again goes on once there is more.
    #[error(
        "the {compression} data ends too early, after {at} bytes: it is incomplete or still being written"
    )]
    Truncated { compression: Compression, at: u64 },
    #[error("the {compression} data is damaged at byte {at}: {reason}")]
    Damaged {
        compression: Compression,
        at: u64,
        reason: String,
    },
    #[error("{0}")]
    Refused(Refused),
}

impl ContentError {
    /// What is wrong with the content, unless reading itself failed.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl From<ContentError> for io::Error {
    fn from(error: ContentError) -> Self {
        let kind = match &error {
            ContentError::Truncated { .. } => io::ErrorKind::UnexpectedEof,
            ContentError::Damaged { .. } => io::ErrorKind::InvalidData,
            ContentError::Refused(_) => io::ErrorKind::Unsupported,
        };
        Self::new(kind, error)
    }
}

/// Tells what a file is by its first bytes; up to 262 of them are looked at.
pub fn recognise(head: &[u8]) -> Content {
    if let Some(refused) = refused(head) {
        return Content::Refused(refused);
    }
    for compression in [Compression::Gzip, Compression::Zstd, Compression::Bzip2] {
        match begins(compression, head) {
            Begins::Yes => return Content::Compressed(compression),
            Begins::Perhaps if !head.is_empty() => return Content::Undecided(compression),
            _ => {}
        }
    }
    Content::Plain
}

#[derive(PartialEq, Eq)]
enum Begins {
    Yes,
    No,
    /// Too short to tell.
    Perhaps,
}

/// Whether a member, frame or stream of this compression begins here.
fn begins(compression: Compression, head: &[u8]) -> Begins {
    const BZIP2_BLOCK: [u8; 6] = [0x31, 0x41, 0x59, 0x26, 0x53, 0x59];
    const BZIP2_END: [u8; 6] = [0x17, 0x72, 0x45, 0x38, 0x50, 0x90];
    let compare = |from: usize, magic: &[u8]| {
        let there = head.get(from..).unwrap_or_default();
        let length = there.len().min(magic.len());
        match there[..length] == magic[..length] {
            false => Begins::No,
            true if length < magic.len() => Begins::Perhaps,
            true => Begins::Yes,
        }
    };
    match compression {
        Compression::Gzip => compare(0, &[0x1f, 0x8b, 8]),
        Compression::Zstd => match compare(0, &[0x28, 0xb5, 0x2f, 0xfd]) {
            // A skippable frame has one of sixteen magic numbers.
            Begins::No if head.first().is_some_and(|b| b & 0xf0 == 0x50) => {
                compare(1, &[0x2a, 0x4d, 0x18])
            }
            begins => begins,
        },
        Compression::Bzip2 => match compare(0, b"BZh") {
            Begins::Yes
                if head
                    .get(3)
                    .is_some_and(|level| !(b'1'..=b'9').contains(level)) =>
            {
                Begins::No
            }
            Begins::Yes => match compare(4, &BZIP2_BLOCK) {
                Begins::No => compare(4, &BZIP2_END),
                begins => begins,
            },
            begins => begins,
        },
    }
}

fn refused(head: &[u8]) -> Option<Refused> {
    const UNPACK: &str = "unpack it, or compress its content with gzip, zstd or bzip2";
    const CONVERT: &str = "convert it to one JSON object per line";
    const UTF8: &str = "convert it to UTF-8, for example with `iconv -f UTF-16 -t UTF-8`";
    const FORMATS: [(&[u8], &str, &str); 22] = [
        (b"PK\x03\x04", "a ZIP archive", UNPACK),
        (b"PK\x05\x06", "a ZIP archive", UNPACK),
        (b"PK\x07\x08", "a ZIP archive", UNPACK),
        (b"\xfd7zXZ\x00", "xz data", UNPACK),
        (b"\x5d\x00\x00", "LZMA data", UNPACK),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
        (b"Rar!\x1a\x07", "a RAR archive", UNPACK),
        (b"\x04\x22\x4d\x18", "lz4 data", UNPACK),
        (b"\x02\x21\x4c\x18", "lz4 data", UNPACK),
        (b"LZIP", "lzip data", UNPACK),
        (b"\x89LZO", "lzop data", UNPACK),
        (b"\x1f\x9d", "data of `compress`", UNPACK),
        (b"\xff\x06\x00\x00sNaPpY", "framed snappy data", UNPACK),
        (b"PAR1", "a Parquet file", CONVERT),
        (b"Obj\x01", "an Avro file", CONVERT),
        (b"ORC", "an ORC file", CONVERT),
        (b"ARROW1", "an Arrow file", CONVERT),
        (b"SQLite format 3\x00", "an SQLite database", CONVERT),
        (
            b"\xff\xfe\x00\x00",
            "UTF-32 text",
            "convert it to UTF-8, for example with `iconv -f UTF-32 -t UTF-8`",
        ),
        (
            b"\x00\x00\xfe\xff",
            "UTF-32 text",
            "convert it to UTF-8, for example with `iconv -f UTF-32 -t UTF-8`",
        ),
        (b"\xff\xfe", "UTF-16 text", UTF8),
        (b"\xfe\xff", "UTF-16 text", UTF8),
    ];
    if let Some((_, name, advice)) = FORMATS.iter().find(|(magic, ..)| head.starts_with(magic)) {
        return Some(Refused { name, advice });
    }
    if head.get(257..).is_some_and(|at| at.starts_with(b"ustar")) {
        return Some(Refused {
            name: "a tar archive",
            advice: "unpack it",
        });
    }
    // JSON without a byte order mark begins with two ASCII characters: in UTF-16, every other byte
    // is zero.
    match *head {
        [a, 0, b, 0, ..] if a.is_ascii() && b.is_ascii() && a != 0 && b != 0 => Some(Refused {
            name: "UTF-16LE text",
            advice: "convert it to UTF-8, for example with `iconv -f UTF-16LE -t UTF-8`",
        }),
        [0, a, 0, b, ..] if a.is_ascii() && b.is_ascii() && a != 0 && b != 0 => Some(Refused {
            name: "UTF-16BE text",
            advice: "convert it to UTF-8, for example with `iconv -f UTF-16BE -t UTF-8`",
        }),
        _ => None,
    }
}

/// Where decoding is.
enum State {
    /// Its bytes are the content.
    Plain,
    /// Before the first member, or between two.
    Between,
    Member(Decoder),
    /// What follows is not looked at.
    Ended,
    Failed(ContentError),
}

/// Reads the plain content of `input` from its beginning.
pub struct PlainReader<R> {
    input: R,
    state: State,
    /// None for plain content.
    compression: Option<Compression>,
    /// As stored: what was read and not decoded yet, and the offset in the input behind it.
    stored: Vec<u8>,
    used: usize,
    stored_end: u64,
    /// Decoded: what was not given yet.
    plain: Vec<u8>,
    given: usize,
    /// The first content was checked for a format that is refused.
    is_checked: bool,
    members: u64,
    garbage: Option<u64>,
}

impl<R: Read> PlainReader<R> {
    /// Reads the first bytes of `input`; an error is a [`ContentError`] where they are refused or
    /// too few.
    pub fn new(input: R) -> io::Result<Self> {
        let mut reader = Self {
            input,
            state: State::Plain,
            compression: None,
            stored: Vec::with_capacity(BUFFER),
            used: 0,
            stored_end: 0,
            plain: Vec::new(),
            given: 0,
            is_checked: false,
            members: 0,
            garbage: None,
        };
        while (reader.stored.len() < MAGIC
            || matches!(recognise(&reader.stored), Content::Undecided(_)))
            && reader.refill()? > 0
        {}
        match recognise(&reader.stored) {
            Content::Plain => reader.is_checked = true,
            Content::Compressed(compression) => {
                reader.compression = Some(compression);
                reader.state = State::Between;
            }
            Content::Refused(refused) => return Err(ContentError::Refused(refused).into()),
            Content::Undecided(compression) => {
                return Err(ContentError::Truncated {
                    compression,
                    at: reader.stored_end,
                }
                .into());
            }
        }
        Ok(reader)
    }

    /// None where the content is stored plain.
    pub fn compression(&self) -> Option<Compression> {
        self.compression
    }

    /// The offset in the input of bytes after the last member that belong to none and were passed
    /// over.
    pub fn garbage(&self) -> Option<u64> {
        self.garbage
    }

    /// Content that can be given without reading.
    pub fn at_hand(&self) -> &[u8] {
        if matches!(self.state, State::Plain) {
            self.waiting()
        } else {
            &self.plain[self.given..]
        }
    }

    /// Passes over content; the number of bytes is smaller where it ends before.
    pub fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        io::copy(&mut self.by_ref().take(bytes), &mut io::sink())
    }

    /// Reads more stored bytes behind those that wait; 0 at the end of the input.
    fn refill(&mut self) -> io::Result<usize> {
        self.stored.drain(..self.used);
        self.used = 0;
        let before = self.stored.len();
        self.stored.resize(BUFFER, 0);
        let read = loop {
            match self.input.read(&mut self.stored[before..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.stored.truncate(before + *read.as_ref().unwrap_or(&0));
        self.stored_end += *read.as_ref().unwrap_or(&0) as u64;
        read
    }

    fn waiting(&self) -> &[u8] {
        &self.stored[self.used..]
    }

    /// The offset in the input of the next byte to decode.
    fn at(&self) -> u64 {
        self.stored_end - self.waiting().len() as u64
    }

    /// Finds the next member; false at the end of the input.
    fn begin_member(&mut self, compression: Compression) -> io::Result<bool> {
        loop {
            if self.members > 0 {
                let zeros = self.waiting().iter().take_while(|b| **b == 0).count();
                self.used += zeros;
            }
            match begins(compression, self.waiting()) {
                Begins::Yes => {
                    self.state = State::Member(Decoder::new(compression)?);
                    self.members += 1;
                    return Ok(true);
                }
                Begins::No => {
                    self.garbage = Some(self.at());
                    self.state = State::Ended;
                    return Ok(false);
                }
                Begins::Perhaps => {
                    debug_assert!(self.waiting().len() < MAGIC);
                    if self.refill()? > 0 {
                        continue;
                    }
                    if self.waiting().is_empty() {
                        return Ok(false);
                    }
                    return Err(ContentError::Truncated {
                        compression,
                        at: self.stored_end,
                    }
                    .into());
                }
            }
        }
    }

    /// Decodes until there is something to give; nothing at the end.
    fn decode(&mut self) -> io::Result<()> {
        let Some(compression) = self.compression else {
            return Ok(());
        };
        (self.given, self.plain) = (0, std::mem::take(&mut self.plain));
        self.plain.clear();
        while self.plain.is_empty() {
            match &mut self.state {
                State::Plain | State::Ended => return Ok(()),
                State::Failed(error) => return Err(error.clone().into()),
                State::Between => {
                    if !self.begin_member(compression)? {
                        return Ok(());
                    }
                }
                State::Member(decoder) => {
                    self.plain.resize(BUFFER, 0);
                    let Step {
                        consumed,
                        produced,
                        outcome,
                    } = decoder.step(&self.stored[self.used..], &mut self.plain);
                    self.plain.truncate(produced);
                    self.used += consumed;
                    match outcome {
                        Err(reason) => {
                            self.state = State::Failed(ContentError::Damaged {
                                compression,
                                at: self.at(),
                                reason,
                            });
                        }
                        Ok(true) => self.state = State::Between,
                        Ok(false) if consumed == 0 && produced == 0 && self.refill()? == 0 => {
                            return Err(ContentError::Truncated {
                                compression,
                                at: self.stored_end,
                            }
                            .into());
                        }
                        Ok(false) => {}
                    }
                }
            }
        }
        self.check_content()
    }

    /// What is packed may itself be a format that is refused.
    fn check_content(&mut self) -> io::Result<()> {
        if !std::mem::replace(&mut self.is_checked, true)
            && let Some(refused) = refused(&self.plain)
        {
            let error = ContentError::Refused(refused);
            self.plain.clear();
            self.state = State::Failed(error.clone());
            return Err(error.into());
        }
        Ok(())
    }
}

impl<R: Read> BufRead for PlainReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if matches!(self.state, State::Plain) {
            if self.waiting().is_empty() {
                self.refill()?;
            }
            return Ok(&self.stored[self.used..]);
        }
        if self.given == self.plain.len() {
            self.decode()?;
        }
        Ok(&self.plain[self.given..])
    }

    fn consume(&mut self, bytes: usize) {
        if matches!(self.state, State::Plain) {
            self.used = (self.used + bytes).min(self.stored.len());
        } else {
            self.given = (self.given + bytes).min(self.plain.len());
        }
    }
}

impl<R: Read> Read for PlainReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let read = available.len().min(out.len());
        out[..read].copy_from_slice(&available[..read]);
        self.consume(read);
        Ok(read)
    }
}

#[cfg(test)]
mod tests;
