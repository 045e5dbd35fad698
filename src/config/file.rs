//! Which files a source of files reads.

use std::path::{Path, PathBuf};

use globset::GlobBuilder;

use super::raw;
use super::sources::InvalidSource;

/// Files that are not data, or not complete yet: those of editors and copying programs, and markers
/// next to data.
const EXCLUDED: [&str; 7] = ["*~", "#*#", "*.swp", "*.tmp", "*.part", "*.crc", "_SUCCESS"];

/// The order in which the records of a file are ingested.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ReadOrder {
    /// That of the file.
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
    /// Read subfolders too.
    pub recursive: bool,
    /// In a folder, only files that match one of these globs; all if there are none.
    pub include: Vec<String>,
    /// In a folder, not the files that match one of these globs.
    pub exclude: Vec<String>,
    /// The order of the records in the log.
    pub order: ReadOrder,
}

impl FileDef {
    /// The files of a folder without further keys.
    pub fn folder(path: PathBuf, recursive: bool) -> Self {
        Self {
            path,
            recursive,
            exclude: EXCLUDED.map(str::to_owned).to_vec(),
            ..Self::default()
        }
    }

    /// Whether the path is `-`.
    pub fn is_stdin(&self) -> bool {
        self.path == Path::new("-")
    }

    /// Whether a text has a wildcard of globs.
    pub fn has_glob(text: &str) -> bool {
        text.contains(['*', '?', '[', '{'])
    }

    /// Whether the path is a glob. An existing file whose name looks like one is read by its name.
    pub fn is_glob(&self) -> bool {
        Self::has_glob(&self.path.to_string_lossy())
            && std::fs::symlink_metadata(&self.path).is_err()
    }
}

/// The files of a source as typed; `path` is joined with the configuration's folder.
pub(super) fn def(source: &raw::Source, path: PathBuf) -> Result<FileDef, InvalidSource> {
    let mut def = FileDef {
        path,
        recursive: source.recursive.unwrap_or(false),
        include: source.include.clone().unwrap_or_default(),
        exclude: Vec::new(),
        order: ReadOrder::File,
    };
    def.order = order(source, &def)?;
    if def.is_stdin() || def.is_glob() {
        check_no_folder_keys(source, def.is_stdin())?;
    }
    def.exclude = match &source.exclude {
        Some(exclude) => exclude.clone(),
        // A glob selects by itself.
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
            .map_err(|error| InvalidSource::Glob { key, error })?;
    }
    Ok(def)
}

/// The order; only input that has an end and does not change can be sorted.
fn order(source: &raw::Source, def: &FileDef) -> Result<ReadOrder, InvalidSource> {
    match source.order.as_deref() {
        None | Some("file") => return Ok(ReadOrder::File),
        Some("event_time") => {}
        Some(other) => return Err(InvalidSource::UnknownOrder(other.to_owned())),
    }
    if let Some(key) = folder_key(source) {
        return Err(InvalidSource::OrderOfFolder(key));
    }
    let (input, remedy) = if def.is_stdin() {
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
    Err(InvalidSource::OrderOfMany { input, remedy })
}

/// The first key of a folder that is set.
fn folder_key(source: &raw::Source) -> Option<&'static str> {
    let keys = [
        ("recursive", source.recursive.is_some()),
        ("include", source.include.is_some()),
        ("exclude", source.exclude.is_some()),
    ];
    keys.into_iter()
        .find_map(|(key, is_set)| is_set.then_some(key))
}

/// Refuses keys that select files in a folder for standard input and globs, where only `exclude`
/// has a meaning.
fn check_no_folder_keys(source: &raw::Source, is_stdin: bool) -> Result<(), InvalidSource> {
    match folder_key(source).filter(|key| *key != "exclude") {
        None => Ok(()),
        Some(key) if is_stdin => Err(InvalidSource::FolderKeyOfStdin(key)),
        Some(key) => Err(InvalidSource::FolderKeyOfGlob(key)),
    }
}

/// Refuses keys of `type = "file"` in a source of another type.
pub(super) fn check_no_keys(source: &raw::Source) -> Result<(), InvalidSource> {
    if source.order.is_some() {
        return Err(InvalidSource::OrderOfOtherType);
    }
    match folder_key(source) {
        Some(key) => Err(InvalidSource::KeyOfFile(key)),
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
    fn a_folder_excludes_temporary_files_by_default() {
        let read = |text: &str, path: &str| {
            def(&source(text), path.into())
                .map(|def| def.exclude.len())
                .map_err(|e| e.to_string())
        };
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
                .expect_err("not a folder")
                .contains("`**`")
        );
        assert!(
            read("recursive = true", "-")
                .expect_err("not a folder")
                .contains("standard input")
        );
        assert!(check_no_keys(&source("exclude = []")).is_err());
    }
}
