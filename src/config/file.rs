//! What a source of files reads, as configured.

use std::path::{Path, PathBuf};

use globset::GlobBuilder;

use super::raw;

/// Files that are no data or not whole yet: editors' and copying programs' own, and marks beside
/// data.
const EXCLUDED: [&str; 7] = ["*~", "#*#", "*.swp", "*.tmp", "*.part", "*.crc", "_SUCCESS"];

/// In which order the records of a source of files are taken in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ReadOrder {
    /// As they come in the file.
    #[default]
    File,
    /// Sorted, once the file is complete.
    EventTime,
}

/// The files that a source reads.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FileDef {
    /// A file, a folder, a glob, or `-` for standard input.
    pub path: PathBuf,
    /// Subfolders are read too.
    pub recursive: bool,
    /// Of a folder's files only those that match one of these globs; all where there are none.
    pub include: Vec<String>,
    /// Of a folder's files those that match one of these globs are passed over.
    pub exclude: Vec<String>,
    pub order: ReadOrder,
}

impl FileDef {
    pub fn is_stdin(&self) -> bool {
        self.path == Path::new("-")
    }

    pub fn has_glob(text: &str) -> bool {
        text.contains(['*', '?', '[', '{'])
    }

    /// The path is a glob; a file whose name looks like one is read by its name.
    pub fn is_glob(&self) -> bool {
        Self::has_glob(&self.path.to_string_lossy())
            && std::fs::symlink_metadata(&self.path).is_err()
    }
}

pub(super) fn def(source: &raw::Source, path: PathBuf) -> Result<FileDef, String> {
    let mut def = FileDef {
        path,
        recursive: source.recursive.unwrap_or(false),
        include: source.include.clone().unwrap_or_default(),
        exclude: Vec::new(),
        order: ReadOrder::File,
    };
    def.order = order(source, &def)?;
    if def.is_stdin() || def.is_glob() {
        refuse_include(
            source,
            if def.is_stdin() {
                "standard input"
            } else {
                "a glob"
            },
        )?;
    }
    def.exclude = match &source.exclude {
        Some(exclude) => exclude.clone(),
        // A glob says itself what is meant.
        None if def.is_glob() => Vec::new(),
        None => EXCLUDED.map(str::to_owned).to_vec(),
    };
    let path = def.path.to_string_lossy().into_owned();
    let mut globs: Vec<(&str, &String)> = Vec::new();
    if def.is_glob() {
        globs.push(("path", &path));
    }
    globs.extend(def.include.iter().map(|glob| ("include", glob)));
    globs.extend(def.exclude.iter().map(|glob| ("exclude", glob)));
    for (key, glob) in globs {
        GlobBuilder::new(glob)
            .literal_separator(true)
            .build()
            .map_err(|e| format!("`{key}`: {e}"))?;
    }
    Ok(def)
}

/// Only what has an end and does not change can be sorted.
fn order(source: &raw::Source, def: &FileDef) -> Result<ReadOrder, String> {
    match source.order.as_deref() {
        None | Some("file") => return Ok(ReadOrder::File),
        Some("event_time") => {}
        Some(other) => {
            return Err(format!(
                "order = \"{other}\": write \"event_time\", or \"file\" for the order of the file itself"
            ));
        }
    }
    let keys = [
        ("recursive", source.recursive.is_some()),
        ("include", source.include.is_some()),
        ("exclude", source.exclude.is_some()),
    ];
    if let Some((key, _)) = keys.into_iter().find(|(_, is_set)| *is_set) {
        return Err(format!(
            "`{key}` is for a folder, and {ORDER_IS_FOR}; remove one of the two keys"
        ));
    }
    let (what, way_out) = if def.is_stdin() {
        (
            "standard input",
            "write the input into a file and name that",
        )
    } else if def.is_glob() {
        (
            "a glob",
            "name each file in a source of its own, or put them together into one file",
        )
    } else if def.path.is_dir() {
        (
            "a folder",
            "name each file in a source of its own, or put them together into one file",
        )
    } else {
        return Ok(ReadOrder::EventTime);
    };
    Err(format!("{ORDER_IS_FOR}, and `path` is {what}; {way_out}"))
}

const ORDER_IS_FOR: &str = "order = \"event_time\" is for one file that is complete";

fn refuse_include(source: &raw::Source, what: &str) -> Result<(), String> {
    let key = [
        ("recursive", source.recursive.is_some()),
        ("include", source.include.is_some()),
    ];
    match key.into_iter().find(|(_, is_set)| *is_set) {
        Some((key, _)) if what == "a glob" => Err(format!(
            "`{key}` is for a folder, and `path` is a glob; use `**` for subfolders, and one pattern"
        )),
        Some((key, _)) => Err(format!("`{key}` is for a folder, and `path` is {what}")),
        None => Ok(()),
    }
}

/// Keys of a source of files beside another type.
pub(super) fn refuse_keys(source: &raw::Source) -> Result<(), String> {
    if source.order.is_some() {
        return Err(format!(
            "`order` is a key of type = \"file\": {ORDER_IS_FOR}; remove the key"
        ));
    }
    let keys = [
        ("recursive", source.recursive.is_some()),
        ("include", source.include.is_some()),
        ("exclude", source.exclude.is_some()),
    ];
    match keys.into_iter().find(|(_, is_set)| *is_set) {
        Some((key, _)) => Err(format!("`{key}` is a key of type = \"file\"")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> raw::Source {
        toml::from_str(&format!("name = \"a\"\ntype = \"file\"\n{text}")).expect("keys")
    }

    #[test]
    fn a_folder_passes_over_what_is_no_data_unless_told_otherwise() {
        let read =
            |text: &str, path: &str| def(&source(text), path.into()).map(|def| def.exclude.len());
        assert_eq!(read("", "logs"), Ok(EXCLUDED.len()));
        assert_eq!(read("exclude = []", "logs"), Ok(0));
        assert_eq!(read("", "logs/*.json"), Ok(0));
        assert!(
            read("include = [\"[\"]", "logs")
                .expect_err("a glob without an end")
                .contains("`include`")
        );
        assert!(
            read("recursive = true", "logs/*")
                .expect_err("no folder")
                .contains("`**`")
        );
        assert!(
            read("recursive = true", "-")
                .expect_err("no folder")
                .contains("standard input")
        );
        assert!(refuse_keys(&source("exclude = []")).is_err());
    }
}
