//! The bytes of a datum → JSON.

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::decimal;
use super::schema::{DatumReader, Type};

/// How deep values may be nested; JSON is read no deeper.
const MAX_DEPTH: usize = 100;

/// Why a datum is not a value of its schema, and where.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{problem}", place(.path))]
pub struct DatumError {
    /// Names of fields, the innermost first.
    path: Vec<String>,
    problem: Problem,
}

fn place(path: &[String]) -> String {
    let names: Vec<&str> = path.iter().rev().map(String::as_str).collect();
    match names.is_empty() {
        true => String::new(),
        false => format!("{}: ", names.join(".")),
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Problem {
    #[error("the message ends inside the value")]
    EndsEarly,
    #[error("{0} bytes follow after the value; was it written with another schema?")]
    BytesFollow(usize),
    #[error("a number of more than 64 bits")]
    LongNumber,
    #[error("{0} is beyond the 32 bits of an int")]
    Int(i64),
    #[error("{0} is not a boolean")]
    Boolean(u8),
    #[error("a length of {0}")]
    Length(i64),
    #[error("text that is not UTF-8")]
    Utf8,
    #[error("symbol {index} of an enum of {count}")]
    Symbol { index: i64, count: usize },
    #[error("type {index} of a union of {count}")]
    Variant { index: i64, count: usize },
    #[error("a uuid of {0} bytes")]
    Uuid(usize),
    #[error(
        "a decimal of more than {} bytes, or {} digits after its point",
        decimal::MAX_BYTES,
        decimal::MAX_SCALE
    )]
    Decimal,
    #[error("values are nested deeper than {} levels", MAX_DEPTH)]
    TooDeep,
    #[error(
        "as JSON it has more than the {0} bytes that `[limits] record` leaves beside key and headers"
    )]
    TooLong(usize),
}

impl From<Problem> for DatumError {
    fn from(problem: Problem) -> Self {
        Self {
            path: Vec::new(),
            problem,
        }
    }
}

impl DatumReader {
    /// Appends a datum to `out` as JSON of at most `max_bytes`. After an error, `out` has a part of
    /// it.
    ///
    /// # Errors
    ///
    /// It is not a value of the schema, or its JSON is too long.
    pub fn to_json(
        &self,
        datum: &[u8],
        max_bytes: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), DatumError> {
        let mut transcoder = Transcoder {
            reader: self,
            rest: datum,
            end: out.len() + max_bytes,
            max_bytes,
            out,
        };
        transcoder.value(&self.root, 0)?;
        match transcoder.rest.len() {
            0 => Ok(()),
            count => Err(Problem::BytesFollow(count).into()),
        }
    }
}

/// A datum that is being copied.
struct Transcoder<'a> {
    reader: &'a DatumReader,
    rest: &'a [u8],
    out: &'a mut Vec<u8>,
    /// The length that `out` may reach.
    end: usize,
    max_bytes: usize,
}

impl Transcoder<'_> {
    /// Writes one value. Each writes at least one byte, so that values without bytes of their own
    /// cannot be repeated without an end.
    fn value(&mut self, kind: &Type, depth: usize) -> Result<(), DatumError> {
        if depth > MAX_DEPTH {
            return Err(Problem::TooDeep.into());
        }
        let reader = self.reader;
        match reader.resolve(kind) {
            Type::Array(items) => self.array(items, depth + 1)?,
            Type::Map(values) => self.map(values, depth + 1)?,
            Type::Record(fields) => {
                self.out.push(b'{');
                for (n, field) in fields.iter().enumerate() {
                    if n > 0 {
                        self.out.push(b',');
                    }
                    self.out.extend_from_slice(field.key.as_bytes());
                    let written = self.value(&field.kind, depth + 1);
                    written.map_err(|mut error| {
                        error.path.push(field.name.clone());
                        error
                    })?;
                }
                self.out.push(b'}');
            }
            Type::Union(variants) => {
                let index = self.long()?;
                let variant = usize::try_from(index).ok().and_then(|n| variants.get(n));
                let count = variants.len();
                // A union may not contain another one directly, but a name may stand for one.
                self.value(variant.ok_or(Problem::Variant { index, count })?, depth + 1)?;
            }
            scalar => self.scalar(scalar)?,
        }
        self.check_length()
    }

    fn check_length(&self) -> Result<(), DatumError> {
        if self.out.len() > self.end {
            return Err(Problem::TooLong(self.max_bytes).into());
        }
        Ok(())
    }

    fn scalar(&mut self, kind: &Type) -> Result<(), Problem> {
        match kind {
            Type::Boolean => match self.take(1)?[0] {
                0 => self.write("false"),
                1 => self.write("true"),
                other => return Err(Problem::Boolean(other)),
            },
            Type::Int => {
                let number = self.long()?;
                i32::try_from(number).map_err(|_| Problem::Int(number))?;
                self.write(number);
            }
            Type::Long => {
                let number = self.long()?;
                self.write(number);
            }
            Type::Float => {
                let number = f32::from_le_bytes(self.array_of()?);
                self.double(f64::from(number));
            }
            Type::Double => {
                let number = f64::from_le_bytes(self.array_of()?);
                self.double(number);
            }
            Type::String => {
                let text = self.text()?;
                self.json(text);
            }
            Type::Bytes => {
                let bytes = self.bytes()?;
                self.base64(bytes);
            }
            Type::Fixed(size) => {
                let bytes = self.take(*size)?;
                self.base64(bytes);
            }
            Type::Enum(symbols) => {
                let index = self.long()?;
                let symbol = usize::try_from(index).ok().and_then(|n| symbols.get(n));
                let count = symbols.len();
                let symbol = symbol.ok_or(Problem::Symbol { index, count })?;
                self.write(symbol);
            }
            Type::Decimal { .. } | Type::BigDecimal | Type::Uuid { .. } | Type::Duration => {
                self.logical(kind)?;
            }
            // Those with values inside are read by `value`, which resolves names.
            Type::Null
            | Type::Array(_)
            | Type::Map(_)
            | Type::Union(_)
            | Type::Record(_)
            | Type::Named(_) => self.write("null"),
        }
        Ok(())
    }

    /// Bytes with a meaning.
    fn logical(&mut self, kind: &Type) -> Result<(), Problem> {
        match kind {
            Type::Decimal { size, scale } => {
                let bytes = match size {
                    Some(size) => self.take(*size)?,
                    None => self.bytes()?,
                };
                self.decimal(bytes, i64::try_from(*scale).unwrap_or(i64::MAX))?;
            }
            Type::BigDecimal => {
                // The whole is bytes that hold the number's bytes and its scale.
                let whole = self.bytes()?;
                let outer = std::mem::replace(&mut self.rest, whole);
                let (bytes, scale) = (self.bytes()?, self.long()?);
                let inner = std::mem::replace(&mut self.rest, outer);
                if !inner.is_empty() {
                    return Err(Problem::BytesFollow(inner.len()));
                }
                self.decimal(bytes, scale)?;
            }
            Type::Uuid { is_fixed } => {
                let bytes = if *is_fixed {
                    self.take(16)?
                } else {
                    self.bytes()?
                };
                let id = uuid::Uuid::from_slice(bytes).map_err(|_| Problem::Uuid(bytes.len()))?;
                self.write(format_args!("\"{id}\""));
            }
            Type::Duration => {
                let [months, days, millis] =
                    [self.array_of()?, self.array_of()?, self.array_of()?].map(u32::from_le_bytes);
                self.write(format_args!(
                    "{{\"months\":{months},\"days\":{days},\"millis\":{millis}}}"
                ));
            }
            _ => {}
        }
        Ok(())
    }

    fn array(&mut self, items: &Type, depth: usize) -> Result<(), DatumError> {
        self.out.push(b'[');
        let mut is_first = true;
        loop {
            let count = self.block()?;
            for _ in 0..count {
                if !std::mem::take(&mut is_first) {
                    self.out.push(b',');
                }
                self.value(items, depth)?;
            }
            if count == 0 {
                break;
            }
        }
        self.out.push(b']');
        Ok(())
    }

    fn map(&mut self, values: &Type, depth: usize) -> Result<(), DatumError> {
        self.out.push(b'{');
        let mut is_first = true;
        loop {
            let count = self.block()?;
            for _ in 0..count {
                if !std::mem::take(&mut is_first) {
                    self.out.push(b',');
                }
                let key = self.text()?;
                self.json(key);
                self.out.push(b':');
                let written = self.value(values, depth);
                written.map_err(|mut error| {
                    error.path.push(key.chars().take(64).collect());
                    error
                })?;
            }
            if count == 0 {
                break;
            }
        }
        self.out.push(b'}');
        Ok(())
    }

    /// The number of items in the next block of an array or map; the last has none.
    fn block(&mut self) -> Result<u64, Problem> {
        let count = self.long()?;
        if count < 0 {
            // The size of the block in bytes follows, for those who skip it.
            let size = self.long()?;
            if size < 0 {
                return Err(Problem::Length(size));
            }
        }
        Ok(count.unsigned_abs())
    }

    fn decimal(&mut self, bytes: &[u8], scale: i64) -> Result<(), Problem> {
        let text = decimal::text(bytes, scale).ok_or(Problem::Decimal)?;
        self.write(format_args!("\"{text}\""));
        Ok(())
    }

    fn double(&mut self, number: f64) {
        // NaN and infinities become null.
        self.json(number);
    }

    fn base64(&mut self, bytes: &[u8]) {
        self.write(format_args!("\"{}\"", STANDARD.encode(bytes)));
    }

    fn json(&mut self, value: impl serde::Serialize) {
        serde_json::to_writer(&mut *self.out, &value).expect("text and numbers are JSON");
    }

    fn write(&mut self, text: impl std::fmt::Display) {
        write!(self.out, "{text}").expect("writing to memory does not fail");
    }
}

impl<'a> Transcoder<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Problem> {
        let (taken, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or(Problem::EndsEarly)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array_of<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(Problem::EndsEarly)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// Bytes that are preceded by their number.
    fn bytes(&mut self) -> Result<&'a [u8], Problem> {
        let length = self.long()?;
        let count = usize::try_from(length).map_err(|_| Problem::Length(length))?;
        self.take(count)
    }

    fn text(&mut self) -> Result<&'a str, Problem> {
        simdutf8::basic::from_utf8(self.bytes()?).map_err(|_| Problem::Utf8)
    }

    /// A number of a variable length: seven bits a byte, the least significant first, zigzag.
    fn long(&mut self) -> Result<i64, Problem> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            // Of the tenth byte, one bit is left.
            if shift == 63 && byte > 1 {
                return Err(Problem::LongNumber);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        Err(Problem::LongNumber)
    }
}
