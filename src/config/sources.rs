//! `[[sources]]`: where each source reads, and into which stream.

use std::collections::BTreeSet;
use std::path::Path;

use super::error::ConfigError;
use super::file::{self, FileDef};
use super::location::SourceText;
use super::raw;
use super::stream::Declarations;

/// A source of records.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    pub name: String,
    pub stream: String,
    pub kind: SourceKind,
    /// The member of its objects that holds the records, in an array.
    pub unwrap: Option<String>,
}

/// What a source reads.
#[derive(Debug, Clone, PartialEq)]
pub enum SourceKind {
    File(FileDef),
    WebSocket { url: String },
}

/// The sources of a file whose folder is `base`, to which their paths are relative.
pub(super) fn sources(
    typed: &[raw::Source],
    base: &Path,
    declared: &Declarations,
    at: &SourceText<'_>,
) -> Result<Vec<Source>, ConfigError> {
    let mut names = BTreeSet::new();
    let mut sources = Vec::new();
    for typed in typed {
        let name = &typed.name;
        let checked = if !names.insert(name) || name == "http" {
            Err("the name is taken; give each source its own (`http` is the server's)".into())
        } else {
            source(typed, base, declared)
        };
        let line = at.line_of(&format!("name = \"{name}\""));
        sources.push(checked.map_err(|e| at.error(line, format!("source `{name}`: {e}")))?);
    }
    Ok(sources)
}

fn source(typed: &raw::Source, base: &Path, declared: &Declarations) -> Result<Source, String> {
    let kind = kind(typed, base)?;
    if !matches!(kind, SourceKind::File(_)) {
        file::check_no_keys(typed)?;
    }
    let stream = stream(typed, declared)?;
    if typed.unwrap.as_deref() == Some("") {
        return Err("unwrap = \"\": name the member that holds the array of records".into());
    }
    Ok(Source {
        name: typed.name.clone(),
        stream,
        kind,
        unwrap: typed.unwrap.clone(),
    })
}

fn required(value: Option<&String>, key: &str) -> Result<String, String> {
    value
        .cloned()
        .ok_or_else(|| format!("the key `{key}` is missing"))
}

fn kind(typed: &raw::Source, base: &Path) -> Result<SourceKind, String> {
    match typed.kind.as_str() {
        "file" => {
            let path = required(typed.path.as_ref(), "path")?;
            let path = if path == "-" {
                path.into()
            } else {
                base.join(path)
            };
            Ok(SourceKind::File(file::def(typed, path)?))
        }
        "websocket" => {
            let url = required(typed.url.as_ref(), "url")?;
            if !url.starts_with("ws://") && !url.starts_with("wss://") {
                return Err(format!("url = \"{url}\": write ws://… or wss://…"));
            }
            Ok(SourceKind::WebSocket { url })
        }
        "kafka" => Err("type = \"kafka\" is not built yet".into()),
        other => Err(format!(
            "type = \"{other}\": write \"file\" or \"websocket\""
        )),
    }
}

/// The stream that a source names; the only one where it names none.
fn stream(typed: &raw::Source, declared: &Declarations) -> Result<String, String> {
    let stream = match &typed.stream {
        Some(stream) => stream.clone(),
        None if declared.streams.len() == 1 => {
            declared.streams.keys().next().cloned().unwrap_or_default()
        }
        None => return Err("the key `stream` is missing".into()),
    };
    if declared.streams.contains_key(&stream) {
        Ok(stream)
    } else {
        Err(format!("[streams.{stream}] is not declared"))
    }
}
