//! Bodies of POSTs: accepted types and content codings, and the records of a body.
//!
//! A line that is not JSON is a record, which the decoder rejects with its reason: a dead letter, also
//! if it is the only line. Only a body that is neither an object, an array nor lines of text is
//! rejected as a whole.

use std::io::Read;

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, header};
use flate2::{Decompress, FlushDecompress, Status};
use serde::de::IgnoredAny;

use super::error::ApiError;
use crate::sources::RecordLimits;
use crate::sources::batcher::{BatchLimits, RecordBatch, RecordBatcher};
use crate::sources::lines::Reader;
use crate::sources::message::{self, is_json};
use crate::threads::{Pace, Paced};

/// Media types besides those that end in `+json`. A CloudEvent in structured mode is a record with
/// all its attributes, a batch is an array of them; in binary mode the body alone is the record.
const TYPES: [&str; 10] = [
    "application/json",
    "text/json",
    "application/x-ndjson",
    "application/ndjson",
    "application/jsonl",
    "application/x-jsonl",
    "application/jsonlines",
    "application/octet-stream",
    "text/plain",
    // The default of curl.
    "application/x-www-form-urlencoded",
];
/// Windows of zstd frames take memory; this is the largest that RFC 9659 allows for a content coding
/// (8 MiB).
const ZSTD_WINDOW_LOG: u32 = 23;
/// Maximum records of a body: each takes memory in addition to its bytes, most as a dead letter.
const MAX_RECORDS: usize = 1_000_000;
/// Fixed cost of a record, counted as bytes of work.
const RECORD_WORK: usize = 16;
/// Bytes by which the output of decompression grows.
const OUTPUT_BYTES: usize = 64 << 10;

/// A content coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    Identity,
    Gzip,
    /// With or without a zlib header: clients differ.
    Deflate,
    Zstd,
}

impl Coding {
    /// The coding that `Content-Encoding` names; 415 for another one, or for several.
    pub fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
        let Some(first) = codings.next() else {
            return Ok(Self::Identity);
        };
        let name = first
            .to_str()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        match name.as_str() {
            _ if codings.next().is_some() => {}
            "" | "identity" => return Ok(Self::Identity),
            "gzip" | "x-gzip" => return Ok(Self::Gzip),
            "deflate" => return Ok(Self::Deflate),
            "zstd" => return Ok(Self::Zstd),
            _ => {}
        }
        let message = "the body's Content-Encoding is not supported";
        Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "encoding",
            message,
            "use one of gzip, deflate, zstd, or none",
        ))
    }
}

/// Refuses, with 415, a `Content-Type` that says that the body is not JSON.
pub fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let media_type = value
        .to_str()
        .unwrap_or("?")
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    let is_json = media_type
        .strip_prefix("application/")
        .is_some_and(|subtype| subtype.ends_with("+json"));
    if media_type.is_empty() || is_json || TYPES.contains(&media_type.as_str()) {
        return Ok(());
    }
    let (message, hint) = (
        format!("the body is {media_type}"),
        "send application/json or application/x-ndjson",
    );
    Err(ApiError::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "media_type",
        message,
        hint,
    ))
}

/// The answer to a body of more than `limit` bytes: 413.
pub fn too_large(limit: usize) -> ApiError {
    too_much(format!(
        "the body has more than {limit} bytes (`[limits] body`)"
    ))
}

fn too_much(message: String) -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "too_large",
        message,
        "send it in parts",
    )
}

/// Why a body could not be decompressed.
#[derive(Debug)]
enum DecompressError {
    TooLarge,
    Broken(String),
}

impl From<std::io::Error> for DecompressError {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// Removes the content coding; never decompresses more than `limit` bytes.
pub fn decompress(coding: Coding, wire: Bytes, limit: usize) -> Result<Bytes, ApiError> {
    if wire.is_empty() {
        return Ok(wire);
    }
    let (name, decompressed) = match coding {
        Coding::Identity => return Ok(wire),
        Coding::Gzip => (
            "gzip",
            read(flate2::bufread::MultiGzDecoder::new(&wire[..]), limit),
        ),
        Coding::Deflate => ("deflate", read_deflate(&wire, limit)),
        Coding::Zstd => ("zstd", read_zstd(&wire, limit)),
    };
    decompressed.map(Bytes::from).map_err(|error| match error {
        DecompressError::TooLarge => too_large(limit),
        DecompressError::Broken(reason) => ApiError::bad_request(
            format!("the body is not complete {name}: {reason}"),
            "compress it again, or send it uncompressed",
        ),
    })
}

fn read(compressed: impl Read, limit: usize) -> Result<Vec<u8>, DecompressError> {
    let mut out = Vec::new();
    Paced(compressed.take(limit as u64 + 1), Pace::default()).read_to_end(&mut out)?;
    if out.len() > limit {
        Err(DecompressError::TooLarge)
    } else {
        Ok(out)
    }
}

fn read_zstd(wire: &[u8], limit: usize) -> Result<Vec<u8>, DecompressError> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(wire)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG)?;
    read(decoder, limit)
}

fn read_deflate(wire: &[u8], limit: usize) -> Result<Vec<u8>, DecompressError> {
    let has_zlib_header = matches!(wire, [first, second, ..] if first & 15 == 8 && u16::from_be_bytes([*first, *second]) % 31 == 0);
    if has_zlib_header {
        match inflate(wire, true, limit) {
            // The first two bytes of a raw stream may look like a header.
            Err(DecompressError::Broken(reason)) => {
                inflate(wire, false, limit).map_err(|error| match error {
                    DecompressError::Broken(_) => DecompressError::Broken(reason),
                    DecompressError::TooLarge => error,
                })
            }
            decompressed => decompressed,
        }
    } else {
        inflate(wire, false, limit)
    }
}

/// Unlike flate2's reader, this notices a stream without its end.
fn inflate(wire: &[u8], has_zlib_header: bool, limit: usize) -> Result<Vec<u8>, DecompressError> {
    let broken = |reason: &str| DecompressError::Broken(reason.to_owned());
    let mut stream = Decompress::new(has_zlib_header);
    let (mut out, mut pace) = (Vec::new(), Pace::default());
    loop {
        out.reserve(OUTPUT_BYTES);
        let before = (stream.total_in(), out.len());
        let rest = &wire[before.0 as usize..];
        let rest = &rest[..rest.len().min(Pace::PIECE)];
        let status = stream
            .decompress_vec(rest, &mut out, FlushDecompress::None)
            .map_err(|e| broken(&e.to_string()))?;
        pace.did((stream.total_in() - before.0) as usize + out.len() - before.1);
        if out.len() > limit {
            return Err(DecompressError::TooLarge);
        }
        if status == Status::StreamEnd {
            let is_complete = stream.total_in() as usize == wire.len();
            return if is_complete {
                Ok(out)
            } else {
                Err(broken("bytes follow its end"))
            };
        }
        if (stream.total_in(), out.len()) == before {
            return Err(broken("its end is missing"));
        }
    }
}

/// Splits a body into records; with `unwrap`, into the elements of the array that is this member of
/// its objects. Of a record over `record_bytes`, the first `truncated_bytes` are kept.
pub fn split(
    body: &[u8],
    unwrap: Option<&str>,
    record_bytes: usize,
    truncated_bytes: usize,
) -> Result<RecordBatch, ApiError> {
    let mut batcher = RecordBatcher::new(BatchLimits::unbounded(RecordLimits {
        max_bytes: record_bytes,
        truncated_bytes,
    }));
    let (mut count, mut pace) = (0, Pace::default());
    let mut push = |record: &[u8]| {
        count += 1;
        pace.did(record.len() + RECORD_WORK);
        if count <= MAX_RECORDS {
            batcher.push(record);
        }
    };
    let body = body
        .strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(body)
        .trim_ascii();
    match shape(body, unwrap.is_some()) {
        Shape::One => message::each_at(body, unwrap, &mut |_, record| push(record)),
        Shape::Several => {
            let mut reader = Reader::new(body, 0, b"", unwrap, usize::MAX);
            // Reading memory has no errors.
            while let Ok(Some(item)) = reader.next_item() {
                message::each(&item.bytes, &mut push);
            }
        }
        Shape::Open => {
            return Err(ApiError::bad_request(
                "the body is an array or object without its end, or with an element that is not JSON",
                "send all of it, or one object per line",
            ));
        }
        Shape::Binary => {
            let hint = if body.starts_with(b"\x1f\x8b") {
                "it looks like gzip: send the header Content-Encoding: gzip"
            } else {
                "send an object, an array of objects, or one object per line"
            };
            return Err(ApiError::bad_request("the body is binary, not JSON", hint));
        }
    }
    if count > MAX_RECORDS {
        return Err(too_much(format!(
            "the body has {count} records, more than {MAX_RECORDS}"
        )));
    }
    Ok(batcher.finish())
}

#[derive(Debug, PartialEq, Eq)]
enum Shape {
    /// One value, on any number of lines.
    One,
    /// Lines, or concatenated values.
    Several,
    /// An array, or an object that holds one, without its end.
    Open,
    Binary,
}

fn shape(body: &[u8], is_unwrapped: bool) -> Shape {
    if is_json(body) {
        return Shape::One;
    }
    let mut lines = body.split(|b| *b == b'\n').map(<[u8]>::trim_ascii);
    let first = lines.next().unwrap_or_default();
    if first.starts_with(b"[") && !is_json(first) {
        return Shape::Open;
    }
    if is_unwrapped && first.starts_with(b"{") && !is_json(first) && !are_json(body) {
        return Shape::Open;
    }
    // Among JSON lines, a binary one is a dead letter like any other.
    let mut pace = Pace::default();
    let mut is_json_line = |line: &[u8]| {
        pace.did(line.len() + RECORD_WORK);
        is_json(line)
    };
    if looks_binary(body) && !is_json(first) && !lines.any(&mut is_json_line) {
        return Shape::Binary;
    }
    Shape::Several
}

/// Whether a body is concatenated JSON values.
fn are_json(bytes: &[u8]) -> bool {
    let (mut values, mut pace) = (
        serde_json::Deserializer::from_slice(bytes).into_iter::<IgnoredAny>(),
        Pace::default(),
    );
    let mut at = 0;
    while let Some(value) = values.next() {
        if value.is_err() {
            return false;
        }
        pace.did(values.byte_offset() - at + RECORD_WORK);
        at = values.byte_offset();
    }
    true
}

/// Whether a body is not text. What begins like JSON may be damaged in any way but by NULs, which
/// text never has.
fn looks_binary(body: &[u8]) -> bool {
    let begins_as_json = matches!(body.first(), Some(b'{' | b'[' | b'"' | b'-' | b'0'..=b'9'));
    let is_control = |byte: &u8| byte.is_ascii_control() && !byte.is_ascii_whitespace();
    body.contains(&0)
        || !begins_as_json && (body.iter().any(is_control) || std::str::from_utf8(body).is_err())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().expect("a header's value"))])
    }

    #[test]
    fn every_media_type_of_json_is_accepted() {
        let is_accepted = |value: &str| check_type(&headers(header::CONTENT_TYPE, value)).is_ok();
        for value in TYPES {
            assert!(
                is_accepted(value)
                    && is_accepted(&value.to_uppercase())
                    && is_accepted(&format!("{value}; charset=utf-8")),
                "{value}"
            );
        }
        for value in [
            "application/cloudevents+json",
            "application/cloudevents-batch+json",
            "application/stream+json",
            "",
        ] {
            assert!(is_accepted(value), "{value}");
        }
        for value in [
            "multipart/form-data; boundary=x",
            "image/png",
            "application/cloudevents+avro",
            "+json",
        ] {
            assert!(!is_accepted(value), "{value}");
        }
        assert!(check_type(&HeaderMap::new()).is_ok());
    }

    #[test]
    fn codings_are_accepted_in_any_case_and_others_rejected() {
        let coding = |value: &str| Coding::of(&headers(header::CONTENT_ENCODING, value)).ok();
        assert_eq!(coding("GZIP"), Some(Coding::Gzip));
        assert_eq!(coding("x-gzip"), Some(Coding::Gzip));
        assert_eq!(coding("deflate"), Some(Coding::Deflate));
        assert_eq!(coding("zstd"), Some(Coding::Zstd));
        assert_eq!(coding("identity"), Some(Coding::Identity));
        assert_eq!((coding("br"), coding("gzip, gzip")), (None, None));
        let mut twice = headers(header::CONTENT_ENCODING, "gzip");
        twice.append(
            header::CONTENT_ENCODING,
            "gzip".parse().expect("a header's value"),
        );
        assert!(Coding::of(&twice).is_err());
    }

    fn compressed(plain: &[u8]) -> [(Coding, Vec<u8>); 4] {
        use flate2::{Compression, write};
        let mut gzip = write::GzEncoder::new(Vec::new(), Compression::fast());
        let mut zlib = write::ZlibEncoder::new(Vec::new(), Compression::fast());
        let mut raw = write::DeflateEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(plain)
            .and_then(|()| zlib.write_all(plain))
            .and_then(|()| raw.write_all(plain))
            .expect("memory");
        [
            (Coding::Gzip, gzip.finish().expect("memory")),
            (Coding::Deflate, zlib.finish().expect("memory")),
            (Coding::Deflate, raw.finish().expect("memory")),
            (Coding::Zstd, zstd::encode_all(plain, 1).expect("memory")),
        ]
    }

    #[test]
    fn bodies_are_decompressed_up_to_the_limit_and_damaged_ones_rejected() {
        let plain: Vec<u8> = (0..20_000)
            .flat_map(|n| format!("{{\"n\":{n}}}\n").into_bytes())
            .collect();
        for (coding, wire) in compressed(&plain) {
            let decompress =
                |wire: &[u8], limit| decompress(coding, Bytes::copy_from_slice(wire), limit);
            assert_eq!(
                decompress(&wire, plain.len()).expect("complete"),
                plain,
                "{coding:?}"
            );
            let status = |wire: &[u8], limit| decompress(wire, limit).expect_err("refused").status;
            assert_eq!(
                status(&wire, plain.len() - 1),
                StatusCode::PAYLOAD_TOO_LARGE,
                "{coding:?}"
            );
            for end in [1, 2, 10, wire.len() / 2, wire.len() - 1] {
                assert_eq!(
                    status(&wire[..end], plain.len()),
                    StatusCode::BAD_REQUEST,
                    "{coding:?} truncated at {end}"
                );
            }
            assert_eq!(
                status(&[&wire[..], b"rest"].concat(), plain.len()),
                StatusCode::BAD_REQUEST,
                "{coding:?}"
            );
            assert_eq!(decompress(b"", 10).expect("empty"), b""[..]);
        }
    }

    #[test]
    fn a_decompression_bomb_takes_no_more_than_the_limit() {
        for (coding, wire) in compressed(&vec![b' '; 64 << 20]) {
            let refused = decompress(coding, wire.into(), 1 << 20).expect_err("too large");
            assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE, "{coding:?}");
        }
    }

    fn texts(body: &[u8]) -> Result<Vec<String>, StatusCode> {
        unwrapped(body, None)
    }

    fn unwrapped(body: &[u8], unwrap: Option<&str>) -> Result<Vec<String>, StatusCode> {
        let split = split(body, unwrap, 1_000, 10).map_err(|e| e.status)?;
        Ok(split
            .records
            .iter()
            .map(|r| String::from_utf8_lossy(r).into_owned())
            .collect())
    }

    #[test]
    fn a_line_that_is_not_json_is_a_record_alone_and_among_others() {
        let good = r#"{"n":1}"#;
        for broken in [
            "{\"n\":1,",
            "{\"n\":1},",
            "no json",
            "<a>1</a>",
            "{\"n\":\"\u{1}",
        ] {
            assert_eq!(
                texts(broken.as_bytes()),
                Ok(vec![broken.to_owned()]),
                "{broken}"
            );
            let among = format!("{good}\r\n{broken}\n\n{good}\n");
            assert_eq!(
                texts(among.as_bytes()),
                Ok([good, broken, good].map(str::to_owned).to_vec()),
                "{broken}"
            );
        }
        assert_eq!(texts(b"{\"n\":\"\xff\"}").map(|t| t.len()), Ok(1));
    }

    #[test]
    fn only_a_body_without_a_usable_shape_is_rejected() {
        let refused = Err(StatusCode::BAD_REQUEST);
        for body in [
            &b"[{\"n\":1},"[..],
            b"[\n{\"n\":1},\n{\"n\":2}\n",
            b"[{\"n\":1}]]",
            b"\x1f\x8b\x08\x00abc",
            b"\x89PNG\r\n\x1a\n",
            b"\xff\xfe{\x00}\x00",
            b"{\x00}\x00",
        ] {
            assert_eq!(texts(body), refused, "{}", String::from_utf8_lossy(body));
        }
        for (body, records) in [
            (&b""[..], 0),
            (b" \r\n\n", 0),
            (b"[]", 0),
            (b"\xef\xbb\xbf{\"n\":1}", 1),
            (b"{\n \"n\": 1\n}", 1),
            (b"[\n{\"n\":1},\n5]", 2),
            (b"[{\"n\":1},{\"n\":2}]\n[{\"n\":3}]\n", 3),
            (b"{\"n\":1}\n\x00\x01\n", 2),
        ] {
            assert_eq!(
                texts(body).map(|t| t.len()),
                Ok(records),
                "{}",
                String::from_utf8_lossy(body)
            );
        }
    }

    #[test]
    fn a_body_of_too_many_records_is_rejected() {
        let body = |count: usize| "1\n".repeat(count);
        assert_eq!(
            split(body(MAX_RECORDS).as_bytes(), None, 10, 10)
                .expect("the maximum")
                .records
                .len(),
            MAX_RECORDS
        );
        let refused = split(body(MAX_RECORDS + 1).as_bytes(), None, 10, 10).expect_err("one more");
        assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[test]
    fn values_are_separated_as_in_files() {
        let (pretty, good) = ("{\n  \"n\": 1\n}", r#"{"n":1}"#);
        let is = |body: &str, records: &[&str]| {
            assert_eq!(
                texts(body.as_bytes()),
                Ok(records.iter().map(|r| (*r).to_owned()).collect()),
                "{body}"
            );
        };
        is(&format!("{pretty}\n{pretty}\n"), &[pretty, pretty]);
        is(&format!("{good}{good}\0\0\n{good}"), &[good, good, good]);
        is(&format!("{good}\r\n{good}\r\n"), &[good, good]);
    }

    #[test]
    fn a_member_is_unwrapped() {
        for (body, records) in [
            (&br#"{"v":1,"r":[{"n":1},{"n":2}],"w":[3]}"#[..], Ok(2)),
            (b"{\"r\":[{}]}\n{\"r\":[{},{}]}\nbroken\n", Ok(4)),
            (b"{\n  \"r\": [\n    {}\n  ]\n}\n{\n  \"r\": []\n}", Ok(1)),
            (br#"{"n":1}"#, Ok(1)),
            (br#"{"r":[{"n":1},{"n":"#, Err(StatusCode::BAD_REQUEST)),
        ] {
            let got = unwrapped(body, Some("r")).map(|texts| texts.len());
            assert_eq!(got, records, "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn a_record_over_the_limit_is_truncated() {
        let body = format!("{{\"n\":1}}\n{{\"n\":\"{}\"}}", "x".repeat(2_000));
        let split = split(body.as_bytes(), None, 1_000, 10).expect("lines");
        assert_eq!(
            (split.records.get(1).len(), split.truncated),
            (10, vec![(1, 2_008)])
        );
    }
}
