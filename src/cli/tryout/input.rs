//! What `weir try` reads: a bounded sample of a file, folder or URL, and the source that reads the
//! rest later.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::infer::{Profile, SourceKind, SourceText, array_member};
use crate::runtime::RuntimeError;
use crate::sources::sample::{self, Content, SampleLimits, Shape};

/// Files of a folder that are looked at.
const MAX_FILES: usize = 20;
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
        let unwrap = member(unwrap, &content.bytes);
        let records = sample::records(&content, unwrap.as_deref(), limits)
            .map_err(|e| wrong(&shown, &e.to_string()))?;
        let damage = content
            .damage
            .map(|why| format!("Only its beginning can be read: {why}."));
        Ok(Self {
            files: vec![records],
            source: SourceText {
                kind: SourceKind::File {
                    path: seen_from(config, path),
                    is_single: true,
                    recursive: false,
                    include: Vec::new(),
                },
                unwrap,
                notes: damage.into_iter().collect(),
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
        let mut folder = Folder {
            unwrap: unwrap.map(str::to_owned),
            ..Folder::default()
        };
        for path in paths.iter().take(MAX_FILES) {
            folder.add(path, &limits);
        }
        let notes = match paths.len() {
            n if n > MAX_FILES => vec![format!("Of {n} files, {MAX_FILES} were looked at.")],
            _ => Vec::new(),
        };
        Ok(Self {
            source: SourceText {
                kind: SourceKind::File {
                    path: seen_from(config, path),
                    is_single: false,
                    recursive,
                    include: folder.include(),
                },
                unwrap: folder.unwrap,
                notes,
            },
            files: folder.files,
            name: stem(path),
            shown,
        })
    }

    fn http(url: &str, unwrap: Option<&str>, limits: &SampleLimits) -> Result<Self, RuntimeError> {
        let found = sample::http(url, limits).map_err(|e| not_reached(&e))?;
        let shown = without_parameters(url).to_owned();
        let mut notes = Vec::new();
        let (records, unwrap, kind) = match found.shape {
            Shape::Messages(messages) => {
                let unwrap = member_of(unwrap, &messages);
                let records = sample::records_of(&messages, unwrap.as_deref(), limits);
                (records, unwrap, SourceKind::HttpStream(url.to_owned()))
            }
            Shape::Content(bytes) => {
                let content = sample::content(bytes.as_slice(), limits)
                    .map_err(|e| wrong(&shown, &e.to_string()))?;
                let content = Content {
                    is_complete: content.is_complete && found.has_ended,
                    ..content
                };
                let unwrap = member(unwrap, &content.bytes);
                let records = sample::records(&content, unwrap.as_deref(), limits)
                    .map_err(|e| wrong(&shown, &e.to_string()))?;
                let kind = kind_of_document(url, &content, found.has_ended, &unwrap, &mut notes);
                (records, unwrap, kind)
            }
        };
        Ok(Self {
            files: vec![records],
            source: SourceText {
                kind,
                unwrap,
                notes,
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
        let unwrap = member_of(unwrap, &messages);
        Ok(Self {
            files: vec![sample::records_of(&messages, unwrap.as_deref(), limits)],
            source: SourceText {
                kind: SourceKind::WebSocket(url.to_owned()),
                unwrap,
                notes: Vec::new(),
            },
            name: name_of_url(url),
            shown: without_parameters(url).to_owned(),
        })
    }

    /// Refuses a sample without records.
    pub fn check(&self, profile: &Profile) -> Result<(), RuntimeError> {
        if profile.records > 0 {
            return Ok(());
        }
        let Some(first) = self.files.iter().flatten().next() else {
            return Err(wrong(
                &self.shown,
                "there are no records; name something that has some, or wait for longer with --for",
            ));
        };
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
    unwrap: Option<String>,
    /// Extensions of files with records, and of other files.
    used: BTreeSet<String>,
    unused: BTreeSet<String>,
}

impl Folder {
    /// Looks at a file; one without records is not used.
    fn add(&mut self, path: &Path, limits: &SampleLimits) {
        let content = read_content(path, limits).unwrap_or_default();
        let unwrap = member(self.unwrap.as_deref(), &content.bytes);
        let records = sample::records(&content, unwrap.as_deref(), limits).unwrap_or_default();
        let mut profile = Profile::default();
        records.iter().for_each(|record| profile.observe(record));
        let extension = path.extension().map(|e| e.to_string_lossy().into_owned());
        let extension = extension.unwrap_or_default();
        if profile.records == 0 || profile.records < profile.unreadable {
            self.unused.insert(extension);
            return;
        }
        self.used.insert(extension);
        self.unwrap = unwrap;
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
    unwrap: &Option<String>,
    notes: &mut Vec<String>,
) -> SourceKind {
    if content.is_compressed {
        let file = name_with_extension(url);
        notes.push(format!(
            "The document is compressed, which a poll does not read. Download it first: curl -o {file} {}",
            without_parameters(url)
        ));
        return SourceKind::File {
            path: file,
            is_single: true,
            recursive: false,
            include: Vec::new(),
        };
    }
    let is_array = content.bytes.trim_ascii_start().first() == Some(&b'[');
    if has_ended || is_array || unwrap.is_some() {
        SourceKind::HttpPoll(url.to_owned())
    } else {
        SourceKind::HttpStream(url.to_owned())
    }
}

fn read_content(path: &Path, limits: &SampleLimits) -> Result<Content, RuntimeError> {
    let failed = |e: std::io::Error| wrong(&path.display().to_string(), &e.to_string());
    let file = File::open(path).map_err(failed)?;
    sample::content(file, limits).map_err(failed)
}

/// The member that is asked for, or that holds the records.
fn member(wanted: Option<&str>, content: &[u8]) -> Option<String> {
    wanted.map_or_else(|| array_member(content), |w| Some(w.to_owned()))
}

/// Of messages, the member that is asked for, or that holds the records of the first one.
fn member_of(wanted: Option<&str>, messages: &[Vec<u8>]) -> Option<String> {
    member(wanted, messages.first().map_or(&[], Vec::as_slice))
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

fn without_parameters(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or_default()
}

fn name_with_extension(url: &str) -> String {
    let path = without_parameters(url).split("://").nth(1);
    let mut parts = path.unwrap_or_default().split('/');
    // The host.
    parts.next();
    let name = parts.rfind(|part| !part.is_empty());
    name.unwrap_or("download").to_owned()
}

/// The last part of a URL's path, or its host.
fn name_of_url(url: &str) -> String {
    let rest = without_parameters(url)
        .split("://")
        .nth(1)
        .unwrap_or_default();
    let mut parts = rest.split('/').filter(|part| !part.is_empty());
    let host = parts.next().unwrap_or_default();
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
