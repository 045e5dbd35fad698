//! What `weir try` reads: a bounded sample of a file, folder or URL, and the source that reads the
//! rest later.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::config::public_address;
use crate::infer::{Profile, SourceKind, SourceText, envelope};
use crate::runtime::RuntimeError;
use crate::sources::sample::{self, Content, SampleLimits, Shape};

/// Files of a folder that are looked at.
const MAX_FILES: usize = 20;
/// Members of an object that a comment names.
const MAX_SHOWN_MEMBERS: usize = 8;
/// Characters of a record that an error repeats.
const MAX_SHOWN_CHARS: usize = 60;

/// A sample.
pub struct Input {
    /// The records, by file.
    pub files: Vec<Vec<Vec<u8>>>,
    pub source: SourceText,
    /// From which the stream's name follows.
    pub name: String,
    /// For people, without what may be a secret.
    pub shown: String,
    /// The sample ends inside its first record.
    is_cut: bool,
}

impl Input {
    /// Reads `from`; the path of a file becomes one relative to the folder of `config`.
    pub fn read(
        from: &str,
        unwrap: Option<&str>,
        config: &Path,
        limits: &SampleLimits,
    ) -> Result<Self, RuntimeError> {
        if from.starts_with("ws://") || from.starts_with("wss://") {
            return Self::websocket(from, unwrap, limits);
        }
        if from.starts_with("http://") || from.starts_with("https://") {
            return Self::http(from, unwrap, limits);
        }
        if from.contains("://") {
            return Err(wrong(
                from,
                "write http://…, https://…, ws://… or wss://…, or the path of a file or folder",
            ));
        }
        let path = Path::new(from);
        let metadata = std::fs::metadata(path).map_err(|e| {
            wrong(
                from,
                &format!("{e}; name an existing file or folder, or a URL"),
            )
        })?;
        if metadata.is_dir() {
            Self::folder(path, unwrap, config, limits)
        } else {
            Self::file(path, unwrap, config, limits)
        }
    }

    fn file(
        path: &Path,
        unwrap: Option<&str>,
        config: &Path,
        limits: &SampleLimits,
    ) -> Result<Self, RuntimeError> {
        let shown = path.display().to_string();
        let content = read_content(path, limits)?;
        let mut unwrap = Unwrap::of(unwrap, &[content.bytes.as_slice()]);
        let records = sample::records(&content, unwrap.member(), limits)
            .map_err(|e| wrong(&shown, &e.to_string()))?;
        let is_cut = is_cut(&content, &records);
        let damage = content
            .damage
            .map(|why| format!("Only its beginning can be read: {why}."));
        unwrap.notes.extend(damage);
        Ok(Self {
            files: vec![records],
            is_cut,
            source: SourceText {
                kind: SourceKind::File {
                    path: seen_from(config, path),
                    is_single: true,
                    recursive: false,
                    include: Vec::new(),
                },
                unwrap: unwrap.member,
                dropped: unwrap.dropped,
                notes: unwrap.notes,
            },
            name: stem(path),
            shown,
        })
    }

    fn folder(
        path: &Path,
        unwrap: Option<&str>,
        config: &Path,
        limits: &SampleLimits,
    ) -> Result<Self, RuntimeError> {
        let shown = path.display().to_string();
        let (paths, recursive) =
            sample::files(path).map_err(|e| RuntimeError::Config(e.to_string()))?;
        let considered = paths.len().clamp(1, MAX_FILES);
        let limits = SampleLimits {
            records: limits.records.div_ceil(considered),
            bytes: limits.bytes.div_ceil(considered),
            ..*limits
        };
        let read = |path: &PathBuf| read_content(path, &limits).unwrap_or_default();
        let contents: Vec<Content> = paths.iter().take(MAX_FILES).map(read).collect();
        let objects: Vec<&[u8]> = contents
            .iter()
            .map(|content| content.bytes.as_slice())
            .filter(|content| content.trim_ascii_start().first() == Some(&b'{'))
            .collect();
        let mut unwrap = Unwrap::of(unwrap, &objects);
        let mut folder = Folder::default();
        for (path, content) in paths.iter().zip(&contents) {
            folder.add(path, content, unwrap.member(), &limits);
        }
        if paths.len() > MAX_FILES {
            let all = paths.len();
            let note = format!("Of {all} files, {MAX_FILES} were looked at.");
            unwrap.notes.push(note);
        }
        Ok(Self {
            source: SourceText {
                kind: SourceKind::File {
                    path: seen_from(config, path),
                    is_single: false,
                    recursive,
                    include: folder.include(),
                },
                unwrap: unwrap.member,
                dropped: unwrap.dropped,
                notes: unwrap.notes,
            },
            is_cut: folder.is_cut,
            files: folder.files,
            name: stem(path),
            shown,
        })
    }

    fn http(url: &str, unwrap: Option<&str>, limits: &SampleLimits) -> Result<Self, RuntimeError> {
        let found = sample::http(url, limits).map_err(|e| not_reached(&e))?;
        let shown = public_address(url);
        let (records, unwrap, kind, is_cut) = match found.shape {
            Shape::Messages(messages) => {
                let unwrap = Unwrap::of_messages(unwrap, &messages);
                let records = sample::records_of(&messages, unwrap.member(), limits);
                let kind = SourceKind::HttpStream(url.to_owned());
                (records, unwrap, kind, false)
            }
            Shape::Content(bytes) => {
                let content = sample::content(bytes.as_slice(), limits)
                    .map_err(|e| wrong(&shown, &e.to_string()))?;
                let content = Content {
                    is_complete: content.is_complete && found.has_ended,
                    ..content
                };
                let mut unwrap = Unwrap::of(unwrap, &[content.bytes.as_slice()]);
                let records = sample::records(&content, unwrap.member(), limits)
                    .map_err(|e| wrong(&shown, &e.to_string()))?;
                let kind = kind_of_document(url, &content, found.has_ended, &mut unwrap);
                let is_cut = is_cut(&content, &records);
                (records, unwrap, kind, is_cut)
            }
        };
        Ok(Self {
            files: vec![records],
            is_cut,
            source: SourceText {
                kind,
                unwrap: unwrap.member,
                dropped: unwrap.dropped,
                notes: unwrap.notes,
            },
            name: name_of_url(url),
            shown,
        })
    }

    fn websocket(
        url: &str,
        unwrap: Option<&str>,
        limits: &SampleLimits,
    ) -> Result<Self, RuntimeError> {
        let found = sample::websocket(url, limits).map_err(|e| not_reached(&e))?;
        let messages = match found.shape {
            Shape::Messages(messages) => messages,
            Shape::Content(content) => vec![content],
        };
        let unwrap = Unwrap::of_messages(unwrap, &messages);
        Ok(Self {
            files: vec![sample::records_of(&messages, unwrap.member(), limits)],
            is_cut: false,
            source: SourceText {
                kind: SourceKind::WebSocket(url.to_owned()),
                unwrap: unwrap.member,
                dropped: unwrap.dropped,
                notes: unwrap.notes,
            },
            name: name_of_url(url),
            shown: public_address(url),
        })
    }

    /// Refuses a sample without records.
    pub fn check(&self, profile: &Profile, limits: &SampleLimits) -> Result<(), RuntimeError> {
        if profile.records > 0 {
            return Ok(());
        }
        let Some(first) = self.files.iter().flatten().next() else {
            let reason = if self.is_cut {
                "the sample ends inside its first record; read more of it with --bytes, or for longer with --for (a record may be as long as `[limits] record`, 1MiB by default)"
            } else {
                "there are no records; name something that has some, or wait for longer with --for"
            };
            return Err(wrong(&self.shown, reason));
        };
        if first.len() >= limits.record_bytes {
            return Err(wrong(
                &self.shown,
                &format!(
                    "the first record is longer than {} bytes, which is `[limits] record` by default; name an array inside it with --unwrap, or split it",
                    limits.record_bytes
                ),
            ));
        }
        let text: String = String::from_utf8_lossy(first)
            .chars()
            .take(MAX_SHOWN_CHARS)
            .collect();
        Err(wrong(
            &self.shown,
            &format!(
                "none of {} records is a JSON object, the first one begins with `{}`; write one JSON object on each line (docs/formats.md lists other layouts)",
                profile.unreadable,
                super::output::printable(text.trim())
            ),
        ))
    }
}

/// What is found in a folder.
#[derive(Default)]
struct Folder {
    files: Vec<Vec<Vec<u8>>>,
    /// A file is longer than its part of the sample, which ends inside its first record.
    is_cut: bool,
    /// Extensions of files with records, and of other files.
    used: BTreeSet<String>,
    unused: BTreeSet<String>,
}

impl Folder {
    /// Looks at a file; one without records is not used.
    fn add(&mut self, path: &Path, content: &Content, unwrap: Option<&str>, limits: &SampleLimits) {
        let records = sample::records(content, unwrap, limits).unwrap_or_default();
        self.is_cut |= is_cut(content, &records);
        let mut profile = Profile::default();
        records.iter().for_each(|record| profile.observe(record));
        let extension = path.extension().map(|e| e.to_string_lossy().into_owned());
        let extension = extension.unwrap_or_default();
        if profile.records == 0 || profile.records < profile.unreadable {
            self.unused.insert(extension);
            return;
        }
        self.used.insert(extension);
        self.files.push(records);
    }

    /// Globs of the files with records, where their extensions differ from those of others.
    fn include(&self) -> Vec<String> {
        let is_distinct = self.used.is_disjoint(&self.unused) && !self.used.contains("");
        if self.unused.is_empty() || !is_distinct {
            return Vec::new();
        }
        self.used
            .iter()
            .map(|e| format!("*.{}", escaped(e)))
            .collect()
    }
}

/// An extension as part of a glob.
fn escaped(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '*' | '?' | '[' | ']' | '{' | '}' | '\\' => '?',
            c => c,
        })
        .collect()
}

/// The source of a document that was requested.
fn kind_of_document(
    url: &str,
    content: &Content,
    has_ended: bool,
    unwrap: &mut Unwrap,
) -> SourceKind {
    if content.is_compressed {
        let file = name_with_extension(url);
        unwrap.notes.push(format!(
            "The document is compressed, which a poll does not read. Download it first: curl -o {file} {}",
            public_address(url)
        ));
        return SourceKind::File {
            path: file,
            is_single: true,
            recursive: false,
            include: Vec::new(),
        };
    }
    let is_array = content.bytes.trim_ascii_start().first() == Some(&b'[');
    let why = if has_ended {
        "it ends, or its headers are those of a document: a length, a version, or a time"
    } else if is_array || unwrap.member.is_some() {
        "it is one array, or one object"
    } else {
        unwrap.notes.push(
            "The answer had not ended when the sample was complete, so it is followed as a stream. If it is a long document, download it and read the file: as a stream it is stored again with each request."
                .to_owned(),
        );
        return SourceKind::HttpStream(url.to_owned());
    };
    unwrap.notes.push(format!(
        "The answer is a document, which is requested again and again: {why}. One longer than [limits] body is refused; download it instead, and read the file."
    ));
    if let Some(next) = &unwrap.next {
        unwrap.notes.push(format!(
            "Its member `{next}` is the URL of the next page: with next = \"{next}\" a poll reads all pages."
        ));
    }
    SourceKind::HttpPoll(url.to_owned())
}

/// Which member of objects holds the records, with comments.
#[derive(Debug, Default)]
struct Unwrap {
    member: Option<String>,
    /// Members beside it.
    dropped: Vec<String>,
    /// One of them that is the URL of the next page.
    next: Option<String>,
    notes: Vec<String>,
}

impl Unwrap {
    /// The member that is asked for, or that holds the records of all these documents. An empty one
    /// asks for whole objects.
    fn of(wanted: Option<&str>, documents: &[&[u8]]) -> Self {
        if wanted == Some("") {
            return Self::default();
        }
        let Some(found) = envelope(documents, wanted) else {
            return Self {
                member: wanted.map(str::to_owned),
                ..Self::default()
            };
        };
        if wanted.is_none() && found.is_record {
            let others = found.others.iter().take(MAX_SHOWN_MEMBERS);
            let others: Vec<&str> = others.map(String::as_str).collect();
            let note = format!(
                "Each object is a record. With --unwrap {} each element of that array is one, and other members ({}) are not read.",
                found.member,
                others.join(", ")
            );
            return Self {
                notes: vec![note],
                ..Self::default()
            };
        }
        Self {
            member: Some(found.member),
            dropped: found.others,
            next: found.next,
            notes: Vec::new(),
        }
    }

    fn of_messages(wanted: Option<&str>, messages: &[Vec<u8>]) -> Self {
        let messages: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
        Self::of(wanted, &messages)
    }

    fn member(&self) -> Option<&str> {
        self.member.as_deref()
    }
}

/// Whether a content that was not read to its end has no whole record.
fn is_cut(content: &Content, records: &[Vec<u8>]) -> bool {
    records.is_empty() && !content.is_complete && !content.bytes.trim_ascii().is_empty()
}

fn read_content(path: &Path, limits: &SampleLimits) -> Result<Content, RuntimeError> {
    let failed = |e: std::io::Error| wrong(&path.display().to_string(), &e.to_string());
    let file = File::open(path).map_err(failed)?;
    sample::content(file, limits).map_err(failed)
}

/// A path as the configuration's folder sees it.
fn seen_from(config: &Path, path: &Path) -> String {
    let folder = config.parent().unwrap_or(Path::new(""));
    if path.is_absolute() || folder.as_os_str().is_empty() {
        return path.to_string_lossy().into_owned();
    }
    let absolute: PathBuf = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    absolute.to_string_lossy().into_owned()
}

/// The name of a file or folder up to its first dot.
fn stem(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_default();
    name.split('.')
        .find(|part| !part.is_empty())
        .unwrap_or_default()
        .to_owned()
}

fn name_with_extension(url: &str) -> String {
    let address = public_address(url);
    let path = address.split("://").nth(1);
    let mut parts = path.unwrap_or_default().split('/');
    // The host.
    parts.next();
    let name = parts.rfind(|part| !part.is_empty());
    name.unwrap_or("download").to_owned()
}

/// The last part of a URL's path, or its host.
fn name_of_url(url: &str) -> String {
    let address = public_address(url);
    let rest = address.split("://").nth(1).unwrap_or_default();
    let mut parts = rest.split('/').filter(|part| !part.is_empty());
    let host = parts.next().unwrap_or_default();
    let host = host.rsplit('@').next().unwrap_or_default();
    let name = parts.next_back().unwrap_or(host);
    name.split('.').next().unwrap_or_default().to_owned()
}

fn wrong(shown: &str, reason: &str) -> RuntimeError {
    RuntimeError::Config(format!("{shown}: {reason}"))
}

fn not_reached(error: &crate::sources::SourceError) -> RuntimeError {
    RuntimeError::Failed(format!("{error}; check the URL, or try it with curl"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads files of a folder, or one file.
    fn read(files: &[(&str, &str)], from: &str, unwrap: Option<&str>) -> Input {
        let limits = SampleLimits {
            records: 100,
            bytes: 4_000,
            time: std::time::Duration::from_secs(1),
            record_bytes: 200,
        };
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).expect("a file");
        }
        let from = folder.path().join(from);
        let from = from.to_str().expect("text");
        Input::read(from, unwrap, Path::new("weir.toml"), &limits).expect("a sample")
    }

    #[test]
    fn orders_are_read_whole_and_an_envelope_is_not() {
        let order = |n: u32| format!("{{\"order_id\":{n},\"items\":[{{\"a\":1}},{{\"a\":2}}]}}");
        let (first, second) = (order(1), order(2));
        let orders = [("a.json", first.as_str()), ("b.json", second.as_str())];
        for from in ["", "a.json"] {
            let input = read(&orders, from, None);
            assert_eq!(input.source.unwrap, None);
            assert!(input.source.notes[0].contains("--unwrap items"));
            let records = input.files.concat();
            assert!(
                records
                    .iter()
                    .all(|record| record.starts_with(b"{\"order_id\""))
            );
        }
        let items = read(&orders, "", Some("items"));
        assert_eq!(items.files.concat().len(), 4);
        assert_eq!(items.source.dropped, ["order_id"]);
        let page = [("a.json", r#"{"count":2,"rows":[{"a":1},{"a":2}]}"#)];
        let rows = read(&page, "a.json", None);
        assert_eq!(rows.source.unwrap.as_deref(), Some("rows"));
        assert_eq!(rows.files[0].len(), 2);
        let whole = read(&page, "a.json", Some(""));
        assert_eq!((whole.source.unwrap, whole.files[0].len()), (None, 1));
    }

    #[test]
    fn a_long_record_is_refused_as_long() {
        let limits = SampleLimits {
            records: 100,
            bytes: 4_000,
            time: std::time::Duration::from_secs(1),
            record_bytes: 200,
        };
        for (length, expected) in [(1_000, "longer than 200 bytes"), (9_000, "with --bytes")] {
            let text = format!("{{\"a\":\"{}\"}}", "x".repeat(length));
            let input = read(&[("a.json", text.as_str())], "a.json", None);
            let mut profile = Profile::default();
            let records = input.files.iter().flatten();
            records.for_each(|record| profile.observe(record));
            let refusal = input.check(&profile, &limits).expect_err("it is long");
            assert!(refusal.to_string().contains(expected), "{refusal}");
        }
    }

    #[test]
    fn names_follow_from_urls_and_paths() {
        for (url, name) in [
            ("https://example.com/feeds/all_day.geojson?x=1", "all_day"),
            ("wss://example.com/", "example"),
            ("http://127.0.0.1:80/stream/", "stream"),
        ] {
            assert_eq!(name_of_url(url), name);
        }
        assert_eq!(stem(Path::new("a/b.ndjson.gz")), "b");
        assert_eq!(seen_from(Path::new("weir.toml"), Path::new("a/b")), "a/b");
        assert_eq!(
            seen_from(Path::new("x/weir.toml"), Path::new("/a/b")),
            "/a/b"
        );
    }
}
