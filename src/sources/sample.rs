//! A bounded look at records of a file, a URL or a websocket, before anything is declared. The same
//! readers as those of the sources; nothing is stored.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::SourceError;
use super::compression::PlainReader;
use super::lines::Reader;
use super::message;
use crate::config::FileDef;

/// How much of an input is looked at.
#[derive(Debug, Clone, Copy)]
pub struct SampleLimits {
    pub records: usize,
    /// Of plain content.
    pub bytes: usize,
    /// Of input that has no end.
    pub time: Duration,
    /// A longer record is cut.
    pub record_bytes: usize,
}

impl SampleLimits {
    /// Whether content that does not end has lines for all records; `new` is the number of lines in
    /// its newest part. Counted only where the newest part has some.
    pub(super) fn has_enough_lines(&self, content: &[u8], new: usize) -> bool {
        let is_lines = content.first() == Some(&b'{');
        is_lines && new > 0 && memchr::memchr_iter(b'\n', content).count() > 4 * self.records
    }
}

/// The beginning of an input.
#[derive(Debug)]
pub struct Sample {
    pub shape: Shape,
    /// The input ends where the sample does.
    pub has_ended: bool,
}

/// How an input is divided.
#[derive(Debug)]
pub enum Shape {
    /// Bytes as a file has them, maybe compressed.
    Content(Vec<u8>),
    /// Messages that a server sent one by one.
    Messages(Vec<Vec<u8>>),
}

/// The plain content of a file's beginning.
#[derive(Debug, Default)]
pub struct Content {
    pub bytes: Vec<u8>,
    /// All of it was read.
    pub is_complete: bool,
    /// It is stored compressed.
    pub is_compressed: bool,
    /// Why it could not be read further.
    pub damage: Option<String>,
}

/// Decompresses the beginning of an input.
///
/// # Errors
///
/// Nothing can be read, or the format is known and not supported.
pub fn content(input: impl Read, limits: &SampleLimits) -> io::Result<Content> {
    let mut reader = PlainReader::new(input)?;
    let mut out = Content {
        is_compressed: reader.compression().is_some(),
        ..Content::default()
    };
    let mut buffer = vec![0; 64 << 10];
    while out.bytes.len() < limits.bytes {
        let room = buffer.len().min(limits.bytes - out.bytes.len());
        match reader.read(&mut buffer[..room]) {
            Ok(0) => {
                out.is_complete = true;
                break;
            }
            Ok(read) => out.bytes.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if out.bytes.is_empty() => return Err(error),
            Err(error) => {
                out.damage = Some(error.to_string());
                break;
            }
        }
    }
    Ok(out)
}

/// The records of plain content. The last one is left out where the content may end inside it.
pub fn records(
    content: &Content,
    unwrap: Option<&str>,
    limits: &SampleLimits,
) -> io::Result<Vec<Vec<u8>>> {
    let input = content.bytes.as_slice();
    let mut reader = Reader::new(input, 0, b"", unwrap, limits.record_bytes);
    let mut records = Vec::new();
    while records.len() < limits.records
        && let Some(item) = reader.next_item()?
    {
        let is_whole = item.is_terminated || content.is_complete;
        if is_whole || message::is_complete_value(&item.bytes) {
            message::each(&item.bytes, &mut |record| records.push(record.to_vec()));
        }
        if !item.is_terminated {
            break;
        }
    }
    records.truncate(limits.records);
    Ok(records)
}

/// The records of messages.
pub fn records_of(
    messages: &[Vec<u8>],
    unwrap: Option<&str>,
    limits: &SampleLimits,
) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    for message in messages {
        message::each_at(message, unwrap, &mut |_, record| {
            records.push(record.to_vec());
        });
    }
    records.truncate(limits.records);
    records
}

/// The files that a source of this folder reads, in the order of their paths; with those of
/// subfolders where it has none of its own. True where subfolders are needed.
pub fn files(folder: &Path) -> Result<(Vec<PathBuf>, bool), SourceError> {
    for recursive in [false, true] {
        let files = super::file::members(&FileDef::folder(folder.to_owned(), recursive))?;
        if !files.is_empty() {
            return Ok((files, recursive));
        }
    }
    Ok((Vec::new(), false))
}

/// Requests a URL once.
pub fn http(url: &str, limits: &SampleLimits) -> Result<Sample, SourceError> {
    super::http::sample::sample(url, limits)
}

/// Listens to a websocket.
pub fn websocket(url: &str, limits: &SampleLimits) -> Result<Sample, SourceError> {
    super::websocket::sample(url, limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: SampleLimits = SampleLimits {
        records: 3,
        bytes: 40,
        time: Duration::from_secs(1),
        record_bytes: 1 << 20,
    };

    fn texts(content: &Content, unwrap: Option<&str>) -> Vec<String> {
        let records = records(content, unwrap, &LIMITS).expect("records");
        let text = |record: Vec<u8>| String::from_utf8(record).expect("text");
        records.into_iter().map(text).collect()
    }

    #[test]
    fn a_record_that_the_sample_cuts_is_left_out() {
        let lines = "{\"a\":1}\n".repeat(2) + &format!("{{\"a\":\"{}\"}}\n", "x".repeat(60));
        let read = content(lines.as_bytes(), &LIMITS).expect("content");
        assert!(!read.is_complete && read.bytes.len() == LIMITS.bytes);
        assert_eq!(texts(&read, None), ["{\"a\":1}", "{\"a\":1}"]);
        // The last line of a file needs no newline.
        let read = content(&b"{\"a\":1}\n{\"a\":2}"[..], &LIMITS).expect("content");
        assert_eq!(texts(&read, None).len(), 2);
    }

    #[test]
    fn layouts_are_those_of_sources() {
        for (text, unwrap) in [
            ("[{\"a\":1},{\"a\":2}]", None),
            ("{\"a\":1}{\"a\":2}", None),
            ("{\"r\":[{\"a\":1},{\"a\":2}]}", Some("r")),
        ] {
            let read = content(text.as_bytes(), &LIMITS).expect("content");
            assert_eq!(texts(&read, unwrap), ["{\"a\":1}", "{\"a\":2}"], "{text}");
        }
    }
}
