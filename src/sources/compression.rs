//! A file or stream as stored → its plain content, in bounded memory. The first bytes decide, never
//! the name: gzip (several members), zstd (several frames), bzip2 (several streams), anything else
//! is plain; known formats that are not supported are rejected by name.
//!
//! Everything before damage is delivered first. Data that ends too early may still be being
//! written: the error is [`ContentError::Truncated`], and reading again continues with what has
//! been added. Zeros and garbage after a complete member are skipped, as `gzip -d` does.

mod decoders;

use std::io::{self, BufRead, Read};

use decoders::{Damage, Decoder, DecoderStep};

/// Bytes read at once, and decoded at once.
const BUFFER_BYTES: usize = 64 << 10;
/// Length of the longest magic number.
const MAX_MAGIC_BYTES: usize = 10;

/// A supported compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
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

/// The format of a file, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Plain,
    Compressed(Compression),
    Unsupported(UnsupportedFormat),
    /// Too few bytes to rule this compression out.
    Undecided(Compression),
}

/// A known format that is not supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UnsupportedFormat {
    name: &'static str,
    advice: &'static str,
}

impl std::fmt::Display for UnsupportedFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "this is {}, which is not supported; {}",
            self.name, self.advice
        )
    }
}

/// Why the content ends early; it comes inside an [`io::Error`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ContentError {
    /// It may still be being written; reading again continues once there is more.
    #[error(
        "the {compression} data ends too early, after {at} bytes: it is incomplete or still being written"
    )]
    Truncated { compression: Compression, at: u64 },
    #[error("the {compression} data is damaged at byte {at}: {reason}")]
    Damaged {
        compression: Compression,
        at: u64,
        reason: Damage,
    },
    #[error("{0}")]
    Unsupported(UnsupportedFormat),
}

impl ContentError {
    /// The error of the content; none where reading itself failed.
    #[cfg(test)]
    fn from_io(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl From<ContentError> for io::Error {
    fn from(error: ContentError) -> Self {
        let kind = match &error {
            ContentError::Truncated { .. } => io::ErrorKind::UnexpectedEof,
            ContentError::Damaged { .. } => io::ErrorKind::InvalidData,
            ContentError::Unsupported(_) => io::ErrorKind::Unsupported,
        };
        Self::new(kind, error)
    }
}

/// Detects a file's format by its first bytes, of which the first 262 count.
fn detect_format(head: &[u8]) -> Format {
    if let Some(format) = unsupported_format(head) {
        return Format::Unsupported(format);
    }
    for compression in [Compression::Gzip, Compression::Zstd, Compression::Bzip2] {
        match match_magic(compression, head) {
            MagicMatch::Full => return Format::Compressed(compression),
            MagicMatch::Prefix if !head.is_empty() => return Format::Undecided(compression),
            _ => {}
        }
    }
    Format::Plain
}

#[derive(PartialEq, Eq)]
enum MagicMatch {
    Full,
    None,
    /// All bytes match, but more are needed.
    Prefix,
}

/// Whether a member, frame or stream of this compression begins here.
fn match_magic(compression: Compression, head: &[u8]) -> MagicMatch {
    const BZIP2_BLOCK: [u8; 6] = [0x31, 0x41, 0x59, 0x26, 0x53, 0x59];
    const BZIP2_END: [u8; 6] = [0x17, 0x72, 0x45, 0x38, 0x50, 0x90];
    let compare = |from: usize, magic: &[u8]| {
        let bytes = head.get(from..).unwrap_or_default();
        let length = bytes.len().min(magic.len());
        match bytes[..length] == magic[..length] {
            false => MagicMatch::None,
            true if length < magic.len() => MagicMatch::Prefix,
            true => MagicMatch::Full,
        }
    };
    match compression {
        Compression::Gzip => compare(0, &[0x1f, 0x8b, 8]),
        Compression::Zstd => match compare(0, &[0x28, 0xb5, 0x2f, 0xfd]) {
            // A skippable frame has one of sixteen magic numbers.
            MagicMatch::None if head.first().is_some_and(|b| b & 0xf0 == 0x50) => {
                compare(1, &[0x2a, 0x4d, 0x18])
            }
            matched => matched,
        },
        Compression::Bzip2 => match compare(0, b"BZh") {
            MagicMatch::Full
                if head
                    .get(3)
                    .is_some_and(|level| !(b'1'..=b'9').contains(level)) =>
            {
                MagicMatch::None
            }
            MagicMatch::Full => match compare(4, &BZIP2_BLOCK) {
                MagicMatch::None => compare(4, &BZIP2_END),
                matched => matched,
            },
            matched => matched,
        },
    }
}

fn unsupported_format(head: &[u8]) -> Option<UnsupportedFormat> {
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
        return Some(UnsupportedFormat { name, advice });
    }
    if head.get(257..).is_some_and(|at| at.starts_with(b"ustar")) {
        return Some(UnsupportedFormat {
            name: "a tar archive",
            advice: "unpack it",
        });
    }
    // JSON without a byte order mark begins with two ASCII characters: in UTF-16, every other byte
    // is zero.
    match *head {
        [a, 0, b, 0, ..] if a.is_ascii() && b.is_ascii() && a != 0 && b != 0 => {
            Some(UnsupportedFormat {
                name: "UTF-16LE text",
                advice: "convert it to UTF-8, for example with `iconv -f UTF-16LE -t UTF-8`",
            })
        }
        [0, a, 0, b, ..] if a.is_ascii() && b.is_ascii() && a != 0 && b != 0 => {
            Some(UnsupportedFormat {
                name: "UTF-16BE text",
                advice: "convert it to UTF-8, for example with `iconv -f UTF-16BE -t UTF-8`",
            })
        }
        _ => None,
    }
}

/// State of the decoding.
enum State {
    /// The stored bytes are the content.
    Plain,
    /// Before the first member, or between two.
    BetweenMembers,
    Member(Decoder),
    /// The rest of the input is ignored.
    End,
    Failed(ContentError),
}

/// Reads the plain content of `input` from its beginning.
pub(crate) struct PlainReader<R> {
    input: R,
    state: State,
    /// None for plain content.
    compression: Option<Compression>,
    /// Stored bytes, those decoded already, and the offset in the input after all of them.
    stored: Vec<u8>,
    stored_consumed: usize,
    stored_end: u64,
    /// Decoded bytes, and those consumed already.
    plain: Vec<u8>,
    plain_consumed: usize,
    /// The first decoded bytes were checked for a format that is not supported.
    is_checked: bool,
    members: u64,
}

impl<R: Read> PlainReader<R> {
    /// Reads the first bytes of `input`. The error holds a [`ContentError`] if their format is not
    /// supported or they are too few.
    pub fn new(input: R) -> io::Result<Self> {
        let mut reader = Self {
            input,
            state: State::Plain,
            compression: None,
            stored: Vec::with_capacity(BUFFER_BYTES),
            stored_consumed: 0,
            stored_end: 0,
            plain: Vec::new(),
            plain_consumed: 0,
            is_checked: false,
            members: 0,
        };
        while (reader.stored.len() < MAX_MAGIC_BYTES
            || matches!(detect_format(&reader.stored), Format::Undecided(_)))
            && reader.refill()? > 0
        {}
        match detect_format(&reader.stored) {
            Format::Plain => reader.is_checked = true,
            Format::Compressed(compression) => {
                reader.compression = Some(compression);
                reader.state = State::BetweenMembers;
            }
            Format::Unsupported(format) => return Err(ContentError::Unsupported(format).into()),
            Format::Undecided(compression) => {
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

    /// Content that can be consumed without reading.
    pub fn buffered(&self) -> &[u8] {
        if matches!(self.state, State::Plain) {
            self.undecoded()
        } else {
            &self.plain[self.plain_consumed..]
        }
    }

    /// Reads more stored bytes; 0 at the end of the input.
    fn refill(&mut self) -> io::Result<usize> {
        self.stored.drain(..self.stored_consumed);
        self.stored_consumed = 0;
        let before = self.stored.len();
        self.stored.resize(BUFFER_BYTES, 0);
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

    fn undecoded(&self) -> &[u8] {
        &self.stored[self.stored_consumed..]
    }

    /// The offset in the input of the next byte to decode.
    fn stored_offset(&self) -> u64 {
        self.stored_end - self.undecoded().len() as u64
    }

    /// Finds the next member; false at the end of the input.
    fn begin_member(&mut self, compression: Compression) -> io::Result<bool> {
        loop {
            if self.members > 0 {
                let zeros = self.undecoded().iter().take_while(|b| **b == 0).count();
                self.stored_consumed += zeros;
            }
            match match_magic(compression, self.undecoded()) {
                MagicMatch::Full => {
                    self.state = State::Member(Decoder::new(compression)?);
                    self.members += 1;
                    return Ok(true);
                }
                MagicMatch::None => {
                    self.state = State::End;
                    return Ok(false);
                }
                MagicMatch::Prefix => {
                    debug_assert!(self.undecoded().len() < MAX_MAGIC_BYTES);
                    if self.refill()? > 0 {
                        continue;
                    }
                    if self.undecoded().is_empty() {
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

    /// Decodes until there is some content; there is none at the end.
    fn decode(&mut self) -> io::Result<()> {
        let Some(compression) = self.compression else {
            return Ok(());
        };
        self.plain_consumed = 0;
        self.plain.clear();
        while self.plain.is_empty() {
            match &mut self.state {
                State::Plain | State::End => return Ok(()),
                State::Failed(error) => return Err(error.clone().into()),
                State::BetweenMembers => {
                    if !self.begin_member(compression)? {
                        return Ok(());
                    }
                }
                State::Member(decoder) => {
                    self.plain.resize(BUFFER_BYTES, 0);
                    let DecoderStep {
                        consumed,
                        produced,
                        outcome,
                    } = decoder.step(&self.stored[self.stored_consumed..], &mut self.plain);
                    self.plain.truncate(produced);
                    self.stored_consumed += consumed;
                    match outcome {
                        Err(reason) => {
                            self.state = State::Failed(ContentError::Damaged {
                                compression,
                                at: self.stored_offset(),
                                reason,
                            });
                        }
                        Ok(true) => self.state = State::BetweenMembers,
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

    /// Compressed content may itself have a format that is not supported.
    fn check_content(&mut self) -> io::Result<()> {
        if !std::mem::replace(&mut self.is_checked, true)
            && let Some(format) = unsupported_format(&self.plain)
        {
            let error = ContentError::Unsupported(format);
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
            if self.undecoded().is_empty() {
                self.refill()?;
            }
            return Ok(&self.stored[self.stored_consumed..]);
        }
        if self.plain_consumed == self.plain.len() {
            self.decode()?;
        }
        Ok(&self.plain[self.plain_consumed..])
    }

    fn consume(&mut self, bytes: usize) {
        if matches!(self.state, State::Plain) {
            self.stored_consumed = (self.stored_consumed + bytes).min(self.stored.len());
        } else {
            self.plain_consumed = (self.plain_consumed + bytes).min(self.plain.len());
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
