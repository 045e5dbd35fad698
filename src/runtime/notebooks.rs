//! Notebooks: queries that people saved, with text between them. Each is a file of the data folder,
//! `notebooks/NAME.json`, replaced atomically.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::event::{Micros, rfc3339};
use crate::storage::{Disk, IoKind, Storage, damage, explain, is_temporary};

/// Notebooks of a folder.
pub const MAX_NOTEBOOKS: usize = 1_000;
/// Bytes of a notebook's file.
const MAX_BYTES: usize = 1 << 20;
const MAX_CELLS: usize = 200;
const MAX_NAME_BYTES: usize = 64;
const MAX_TITLE_CHARACTERS: usize = 200;
/// Columns that a chart shows.
const MAX_CHART_COLUMNS: usize = 32;
const MICROS_PER_MILLI: Micros = 1_000;
const EXTENSION: &str = ".json";

/// A notebook as a client sends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Draft {
    /// For people; may be empty.
    pub title: String,
    /// In the order in which they are shown.
    pub cells: Vec<Cell>,
}

/// A part of a notebook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Cell {
    /// Text between queries.
    Text { text: String },
    /// A query, which is run when the notebook is opened.
    Sql {
        sql: String,
        /// How its answer is shown; a table without it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        chart: Option<Chart>,
    },
}

/// How the answer of a query is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Chart {
    pub kind: ChartKind,
    /// The column along the axis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<String>,
    /// The columns that are drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub y: Option<Vec<String>>,
    /// The column whose values are drawn as series of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub series: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChartKind {
    Table,
    Line,
    Bar,
    Pie,
    Map,
}

/// A notebook as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Notebook {
    pub name: String,
    pub title: String,
    /// Rises with each change, also where the notebook was deleted and made again: the milliseconds
    /// since 1970, or one more than the version before if that is higher.
    pub version: u64,
    /// When it was changed last, as RFC 3339.
    pub changed: String,
    pub cells: Vec<Cell>,
}

/// A notebook in the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Entry {
    pub name: String,
    pub title: String,
    /// When it was changed last, as RFC 3339.
    pub changed: String,
}

/// Why a notebook is not read or not changed.
#[derive(Debug, thiserror::Error)]
pub enum NotebookError {
    #[error("the notebook `{0}` does not exist")]
    NotFound(String),
    /// The name or the content is not that of a notebook.
    #[error("{0}")]
    Invalid(String),
    #[error("there are {MAX_NOTEBOOKS} notebooks already")]
    TooMany,
    /// It was changed since the client read it.
    #[error("the notebook is at version {current}, not {expected}")]
    Changed { current: u64, expected: u64 },
    /// Its file is not what Weir wrote.
    #[error("{0}")]
    Damaged(String),
    #[error("{path}: {}", explain(.error))]
    Io { path: String, error: io::Error },
}

impl NotebookError {
    /// Of an error of the disk, what it means.
    pub fn io_kind(&self) -> Option<IoKind> {
        match self {
            Self::Io { error, .. } => Some(IoKind::of(error)),
            _ => None,
        }
    }
}

/// The notebooks of a data folder. One process at a time changes them.
pub struct Notebooks {
    folder: PathBuf,
    /// Read once; none before.
    entries: Mutex<Option<BTreeMap<String, Entry>>>,
}

/// Names that a file and a URL can have.
fn check_name(name: &str) -> Result<(), NotebookError> {
    let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
    if (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(is_allowed) {
        return Ok(());
    }
    Err(NotebookError::Invalid(format!(
        "a notebook's name has 1 to {MAX_NAME_BYTES} characters: a-z, 0-9, - and _"
    )))
}

fn failed(path: &Path) -> impl Fn(io::Error) -> NotebookError {
    let path = path.display().to_string();
    move |error| NotebookError::Io {
        path: path.clone(),
        error,
    }
}

impl Draft {
    /// Refuses what exceeds the limits.
    fn check(&self) -> Result<(), NotebookError> {
        let invalid = |message: String| Err(NotebookError::Invalid(message));
        if self.title.chars().count() > MAX_TITLE_CHARACTERS {
            return invalid(format!(
                "a title has at most {MAX_TITLE_CHARACTERS} characters"
            ));
        }
        if self.cells.len() > MAX_CELLS {
            return invalid(format!("a notebook has at most {MAX_CELLS} cells"));
        }
        let columns = |cell: &Cell| match cell {
            Cell::Sql {
                chart: Some(Chart { y: Some(y), .. }),
                ..
            } => y.len(),
            _ => 0,
        };
        if self.cells.iter().map(columns).max() > Some(MAX_CHART_COLUMNS) {
            return invalid(format!("a chart shows at most {MAX_CHART_COLUMNS} columns"));
        }
        Ok(())
    }
}

impl Notebook {
    fn entry(&self) -> Entry {
        Entry {
            name: self.name.clone(),
            title: self.title.clone(),
            changed: self.changed.clone(),
        }
    }
}

impl Notebooks {
    /// Those in this folder, which need not exist.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            entries: Mutex::default(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}{EXTENSION}"))
    }

    fn entries(&self) -> MutexGuard<'_, Option<BTreeMap<String, Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All notebooks, by name.
    pub fn list(&self) -> Result<Vec<Entry>, NotebookError> {
        let mut entries = self.entries();
        Ok(self.loaded(&mut entries)?.values().cloned().collect())
    }

    /// The entries, read from the files at first. A damaged file has an entry without a title, so
    /// that it can be seen and removed.
    fn loaded<'a>(
        &self,
        entries: &'a mut Option<BTreeMap<String, Entry>>,
    ) -> Result<&'a mut BTreeMap<String, Entry>, NotebookError> {
        if entries.is_none() {
            let files = Disk.list(&self.folder).map_err(failed(&self.folder))?;
            let names = files.iter().filter(|file| !is_temporary(file));
            let names = names.filter_map(|file| file.strip_suffix(EXTENSION));
            let mut read = BTreeMap::new();
            for name in names.filter(|name| check_name(name).is_ok()) {
                let entry = match self.read(name) {
                    Ok(notebook) => notebook.entry(),
                    Err(error) => {
                        tracing::warn!(%error, name, "a notebook cannot be read");
                        Entry {
                            name: name.to_owned(),
                            title: String::new(),
                            changed: String::new(),
                        }
                    }
                };
                read.insert(name.to_owned(), entry);
            }
            *entries = Some(read);
        }
        Ok(entries.get_or_insert_default())
    }

    /// A notebook.
    pub fn get(&self, name: &str) -> Result<Notebook, NotebookError> {
        check_name(name)?;
        self.read(name)
    }

    fn read(&self, name: &str) -> Result<Notebook, NotebookError> {
        let path = self.path(name);
        let bytes = match Disk.read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(NotebookError::NotFound(name.to_owned()));
            }
            bytes => bytes.map_err(failed(&self.path(name)))?,
        };
        let notebook: Notebook = serde_json::from_slice(&bytes).map_err(|error| {
            let remedy = "restore it from a backup, or delete the notebook";
            NotebookError::Damaged(damage(&path, &error.to_string(), remedy))
        })?;
        Ok(Notebook {
            name: name.to_owned(),
            ..notebook
        })
    }

    /// Stores a notebook durably and returns it. `expected` is the version that the client has, if
    /// it says so; 0 is that of a notebook that does not exist.
    pub fn save(
        &self,
        name: &str,
        draft: Draft,
        expected: Option<u64>,
        now: Micros,
    ) -> Result<Notebook, NotebookError> {
        check_name(name)?;
        draft.check()?;
        let mut entries = self.entries();
        let current = self.current(name)?;
        check_version(current, expected)?;
        if current == 0 && self.loaded(&mut entries)?.len() >= MAX_NOTEBOOKS {
            return Err(NotebookError::TooMany);
        }
        let millis = u64::try_from(now / MICROS_PER_MILLI).unwrap_or_default();
        let notebook = Notebook {
            name: name.to_owned(),
            title: draft.title,
            version: millis.max(current + 1),
            changed: rfc3339(now),
            cells: draft.cells,
        };
        let bytes = serde_json::to_vec(&notebook).expect("plain data becomes JSON");
        if bytes.len() > MAX_BYTES {
            let message = format!("a notebook has at most {MAX_BYTES} bytes");
            return Err(NotebookError::Invalid(message));
        }
        let stored = Disk
            .create_folder(&self.folder)
            .and_then(|()| Disk.replace(&self.path(name), &bytes));
        self.update(&mut entries, name, stored, |entries| {
            entries.insert(name.to_owned(), notebook.entry());
        })?;
        Ok(notebook)
    }

    /// Deletes a notebook, durably. `expected` is as in [`Self::save`].
    pub fn delete(&self, name: &str, expected: Option<u64>) -> Result<(), NotebookError> {
        check_name(name)?;
        let mut entries = self.entries();
        if expected.is_some() && self.path(name).exists() {
            check_version(self.read(name)?.version, expected)?;
        }
        let removed = match Disk.remove(&self.path(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Somebody has removed the file by hand.
                entries.as_mut().map(|entries| entries.remove(name));
                return Err(NotebookError::NotFound(name.to_owned()));
            }
            removed => removed.and_then(|()| Disk.sync_folder(&self.folder)),
        };
        self.update(&mut entries, name, removed, |entries| {
            entries.remove(name);
        })
    }

    /// The version that is stored; 0 if there is none.
    fn current(&self, name: &str) -> Result<u64, NotebookError> {
        match self.read(name) {
            Ok(notebook) => Ok(notebook.version),
            Err(NotebookError::NotFound(_)) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Updates the entries after a change of the files. After an error they are read again: a file
    /// may be in place although its folder could not be synced.
    fn update(
        &self,
        entries: &mut Option<BTreeMap<String, Entry>>,
        name: &str,
        changed: io::Result<()>,
        update: impl FnOnce(&mut BTreeMap<String, Entry>),
    ) -> Result<(), NotebookError> {
        match changed {
            Ok(()) => entries.as_mut().map(update),
            Err(_) => entries.take().map(drop),
        };
        changed.map_err(failed(&self.path(name)))
    }
}

fn check_version(current: u64, expected: Option<u64>) -> Result<(), NotebookError> {
    match expected {
        Some(expected) if expected != current => Err(NotebookError::Changed { current, expected }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(title: &str) -> Draft {
        Draft {
            title: title.into(),
            cells: vec![Cell::Text { text: "t".into() }],
        }
    }

    fn notebooks() -> (tempfile::TempDir, Notebooks) {
        let folder = tempfile::tempdir().expect("a folder");
        let notebooks = Notebooks::new(folder.path().join("notebooks"));
        (folder, notebooks)
    }

    #[test]
    fn versions_rise_and_a_change_in_between_is_noticed() {
        let (_folder, notebooks) = notebooks();
        assert_eq!(notebooks.list().expect("none"), []);
        let save = |expected| notebooks.save("a", draft("A"), expected, 0);
        assert!(matches!(
            save(Some(1)),
            Err(NotebookError::Changed {
                current: 0,
                expected: 1
            })
        ));
        assert_eq!(save(Some(0)).expect("stored").version, 1);
        assert_eq!(save(None).expect("stored").version, 2);
        assert!(matches!(
            save(Some(1)),
            Err(NotebookError::Changed { current: 2, .. })
        ));
        assert_eq!(notebooks.get("a").expect("stored").version, 2);
        assert!(matches!(
            notebooks.delete("a", Some(1)),
            Err(NotebookError::Changed { current: 2, .. })
        ));
        notebooks.delete("a", Some(2)).expect("deleted");
        for result in [
            notebooks.delete("a", None),
            notebooks.delete("a", Some(2)),
            notebooks.get("a").map(drop),
        ] {
            assert!(matches!(result, Err(NotebookError::NotFound(_))));
        }
    }

    #[test]
    fn a_notebook_that_is_made_again_has_a_higher_version() {
        let (_folder, notebooks) = notebooks();
        let save = |expected, now| notebooks.save("a", draft("A"), expected, now);
        let first = save(None, 5_000_000).expect("stored").version;
        // The clock was set back.
        let second = save(Some(first), 1_000).expect("stored").version;
        assert_eq!((first, second), (5_000, 5_001));
        notebooks.delete("a", None).expect("deleted");
        let third = save(Some(0), 6_000_000).expect("stored").version;
        assert!(third > second);
        assert!(matches!(
            save(Some(second), 7_000_000),
            Err(NotebookError::Changed { .. })
        ));
    }

    #[test]
    fn names_and_contents_beyond_the_limits_are_refused() {
        let (_folder, notebooks) = notebooks();
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        for name in ["", "..", "a/b", "A", "a.json", "é", "a\0", &long] {
            let saved = notebooks.save(name, draft(""), None, 0);
            assert!(matches!(saved, Err(NotebookError::Invalid(_))), "{name:?}");
            assert!(matches!(
                notebooks.get(name),
                Err(NotebookError::Invalid(_))
            ));
            assert!(matches!(
                notebooks.delete(name, None),
                Err(NotebookError::Invalid(_))
            ));
        }
        let cells = |count: usize, bytes: usize| Draft {
            title: String::new(),
            cells: vec![
                Cell::Text {
                    text: "x".repeat(bytes)
                };
                count
            ],
        };
        let title = Draft {
            title: "x".repeat(MAX_TITLE_CHARACTERS + 1),
            ..cells(0, 0)
        };
        for wrong in [cells(MAX_CELLS + 1, 1), cells(1, MAX_BYTES), title] {
            let saved = notebooks.save("a", wrong, None, 0);
            assert!(matches!(saved, Err(NotebookError::Invalid(_))));
        }
        notebooks
            .save(&long[1..], cells(MAX_CELLS, 100), None, 0)
            .expect("within the limits");
    }

    #[test]
    fn there_are_not_more_than_the_limit_and_a_damaged_one_can_be_removed() {
        let (folder, notebooks) = notebooks();
        let path = folder.path().join("notebooks");
        std::fs::create_dir(&path).expect("a folder");
        for n in 0..MAX_NOTEBOOKS {
            std::fs::write(path.join(format!("n{n}.json")), b"{}").expect("a file");
        }
        std::fs::write(path.join("x.json.tmp"), b"{").expect("a file");
        assert_eq!(notebooks.list().expect("listed").len(), MAX_NOTEBOOKS);
        assert!(matches!(
            notebooks.get("n1"),
            Err(NotebookError::Damaged(_))
        ));
        let save = || notebooks.save("new", draft(""), None, 0);
        assert!(matches!(save(), Err(NotebookError::TooMany)));
        notebooks.delete("n1", None).expect("removed");
        assert_eq!(save().expect("stored").version, 1);
    }
}
