//! One member, frame or stream → bytes, a step at a time. Unlike the readers of the libraries, a
//! step that fails still returns what was decoded before the damage.

use std::io;

use flate2::{Crc, Decompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, Decoder as ZstdDecoder, InBuffer, Operation, OutBuffer};

use super::Compression;

/// Windows up to 2^27 bytes, as `zstd -d` reads without an option.
const ZSTD_WINDOW_LOG: u32 = 27;

/// What a call of [`Decoder::step`] did.
pub(super) struct DecoderStep {
    /// Bytes of the input that were read.
    pub consumed: usize,
    /// Bytes that were written to the output, valid also after an error.
    pub produced: usize,
    /// Whether the member has ended.
    pub outcome: Result<bool, Damage>,
}

/// Why compressed data cannot be decoded any further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Damage {
    #[error("an unknown compression method")]
    UnknownMethod,
    #[error("reserved flags are set")]
    ReservedFlags,
    #[error("the checksum does not match")]
    Checksum,
    #[error("the length does not match")]
    Length,
    #[error("not enough memory to decode it")]
    OutOfMemory,
    /// The library's message: its errors have no type in common, and cannot all be cloned.
    #[error("{0}")]
    Library(String),
}

impl Damage {
    fn library(error: impl std::fmt::Display) -> Self {
        Self::Library(error.to_string())
    }
}

/// A decoder of one member of gzip (RFC 1952), frame of zstd (RFC 8878) or stream of bzip2.
pub(super) enum Decoder {
    Gzip(Box<Gzip>),
    Zstd {
        decoder: Box<ZstdDecoder<'static>>,
        next_input_bytes: usize,
    },
    Bzip2(bzip2::Decompress),
}

impl Decoder {
    /// A decoder at the start of a member.
    ///
    /// # Errors
    ///
    /// The library's, for lack of memory.
    pub fn new(compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::Gzip => Self::Gzip(Box::new(Gzip::new())),
            Compression::Zstd => {
                let mut decoder = ZstdDecoder::new()?;
                decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG))?;
                Self::Zstd {
                    decoder: Box::new(decoder),
                    next_input_bytes: 1,
                }
            }
            Compression::Bzip2 => Self::Bzip2(bzip2::Decompress::new(false)),
        })
    }

    /// Decodes from the start of `input` to the start of `output`, as much as it likes. A step that
    /// neither reads nor writes needs more input.
    pub fn step(&mut self, input: &[u8], output: &mut [u8]) -> DecoderStep {
        match self {
            Self::Gzip(gzip) => gzip.step(input, output),
            Self::Zstd {
                decoder,
                next_input_bytes,
            } => {
                // A call that fails discards what it decoded: one block at a time is decoded, from
                // no more bytes than the decoder asks for.
                let mut from = InBuffer::around(&input[..input.len().min(*next_input_bytes)]);
                let mut to = OutBuffer::around(output);
                let result = decoder.run(&mut from, &mut to);
                let (consumed, produced) = (from.pos(), to.pos());
                let outcome = match result {
                    Ok(next) => {
                        *next_input_bytes = next.max(1);
                        Ok(next == 0)
                    }
                    Err(error) => Err(Damage::library(error)),
                };
                DecoderStep {
                    consumed,
                    produced,
                    outcome,
                }
            }
            Self::Bzip2(decoder) => {
                let (read, written) = (decoder.total_in(), decoder.total_out());
                let result = decoder.decompress(input, output);
                let consumed = (decoder.total_in() - read) as usize;
                let produced = (decoder.total_out() - written) as usize;
                let outcome = match result {
                    Ok(bzip2::Status::MemNeeded) => Err(Damage::OutOfMemory),
                    Ok(status) => Ok(status == bzip2::Status::StreamEnd),
                    Err(error) => Err(Damage::library(error)),
                };
                DecoderStep {
                    consumed,
                    produced,
                    outcome,
                }
            }
        }
    }
}

/// A gzip member (RFC 1952).
pub(super) struct Gzip {
    part: Part,
    inflate: Decompress,
    crc: Crc,
}

/// The part of a member that the next byte belongs to.
enum Part {
    /// Ten bytes.
    Fixed {
        at: usize,
        flags: u8,
    },
    /// Bytes of the extra field, after its length.
    ExtraLength {
        low: Option<u8>,
        flags: u8,
    },
    Extra {
        left: u16,
        flags: u8,
    },
    /// A name or comment, up to a zero.
    Text {
        flags: u8,
    },
    HeaderCrc {
        left: u8,
    },
    Body,
    Trailer {
        at: usize,
        bytes: [u8; 8],
    },
}

const HEADER_CRC: u8 = 2;
const EXTRA: u8 = 4;
const NAME: u8 = 8;
const COMMENT: u8 = 16;

/// The next part of the header, by the flags of the parts that remain.
fn next_part(flags: u8) -> Part {
    if flags & EXTRA != 0 {
        Part::ExtraLength {
            low: None,
            flags: flags & !EXTRA,
        }
    } else if flags & NAME != 0 {
        Part::Text {
            flags: flags & !NAME,
        }
    } else if flags & COMMENT != 0 {
        Part::Text {
            flags: flags & !COMMENT,
        }
    } else if flags & HEADER_CRC != 0 {
        Part::HeaderCrc { left: 2 }
    } else {
        Part::Body
    }
}

impl Gzip {
    fn new() -> Self {
        Self {
            part: Part::Fixed { at: 0, flags: 0 },
            inflate: Decompress::new(false),
            crc: Crc::new(),
        }
    }

    fn step(&mut self, input: &[u8], output: &mut [u8]) -> DecoderStep {
        let mut consumed = 0;
        let step = |consumed, produced, outcome| DecoderStep {
            consumed,
            produced,
            outcome,
        };
        loop {
            if matches!(self.part, Part::Body) {
                let (more, produced, outcome) = self.inflate(&input[consumed..], output);
                consumed += more;
                let is_at_trailer = matches!(self.part, Part::Trailer { .. });
                if outcome.is_err() || produced > 0 || !is_at_trailer {
                    return step(consumed, produced, outcome.map(|()| false));
                }
            }
            let Some(&byte) = input.get(consumed) else {
                return step(consumed, 0, Ok(false));
            };
            consumed += 1;
            match self.advance(byte) {
                Ok(false) => {}
                outcome => return step(consumed, 0, outcome),
            }
        }
    }

    fn inflate(&mut self, input: &[u8], output: &mut [u8]) -> (usize, usize, Result<(), Damage>) {
        let (read, written) = (self.inflate.total_in(), self.inflate.total_out());
        let result = self
            .inflate
            .decompress(input, output, FlushDecompress::None);
        let consumed = (self.inflate.total_in() - read) as usize;
        let produced = (self.inflate.total_out() - written) as usize;
        self.crc.update(&output[..produced]);
        if let Ok(Status::StreamEnd) = result {
            self.part = Part::Trailer {
                at: 0,
                bytes: [0; 8],
            };
        }
        (
            consumed,
            produced,
            result.map(drop).map_err(Damage::library),
        )
    }

    /// Consumes a byte of the header or the trailer; true when the member has ended.
    fn advance(&mut self, byte: u8) -> Result<bool, Damage> {
        self.part = match &mut self.part {
            Part::Fixed { at, flags } => match at {
                2 if byte != 8 => return Err(Damage::UnknownMethod),
                3 if byte & 0xe0 != 0 => return Err(Damage::ReservedFlags),
                3 => Part::Fixed { at: 4, flags: byte },
                9 => next_part(*flags),
                _ => Part::Fixed {
                    at: *at + 1,
                    flags: *flags,
                },
            },
            Part::ExtraLength { low: None, flags } => Part::ExtraLength {
                low: Some(byte),
                flags: *flags,
            },
            Part::ExtraLength {
                low: Some(low),
                flags,
            } => match u16::from_le_bytes([*low, byte]) {
                0 => next_part(*flags),
                left => Part::Extra {
                    left,
                    flags: *flags,
                },
            },
            Part::Extra { left: 1, flags } => next_part(*flags),
            Part::Extra { left, flags } => Part::Extra {
                left: *left - 1,
                flags: *flags,
            },
            Part::Text { flags } if byte == 0 => next_part(*flags),
            Part::Text { flags } => Part::Text { flags: *flags },
            Part::HeaderCrc { left: 1 } => Part::Body,
            Part::HeaderCrc { left } => Part::HeaderCrc { left: *left - 1 },
            Part::Body => Part::Body,
            Part::Trailer { at, bytes } => {
                bytes[*at] = byte;
                if *at == 7 {
                    return self.check_trailer();
                }
                Part::Trailer {
                    at: *at + 1,
                    bytes: *bytes,
                }
            }
        };
        Ok(false)
    }

    fn check_trailer(&self) -> Result<bool, Damage> {
        let Part::Trailer {
            bytes: [a, b, c, d, e, f, g, h],
            ..
        } = self.part
        else {
            return Ok(false);
        };
        if u32::from_le_bytes([a, b, c, d]) != self.crc.sum() {
            return Err(Damage::Checksum);
        }
        if u32::from_le_bytes([e, f, g, h]) != self.crc.amount() {
            return Err(Damage::Length);
        }
        Ok(true)
    }
}
