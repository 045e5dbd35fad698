//! The file of earlier statements, in the user's state folder, readable by that user only.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustyline::Editor;
use rustyline::history::FileHistory;

use super::helper::SqlHelper;

/// Maximum statements of the file; the oldest leave.
pub const MAX_ENTRIES: usize = 1_000;
/// Longer statements are not remembered.
const MAX_ENTRY_BYTES: usize = 16 << 10;

/// Where statements are remembered.
#[derive(Debug, Default)]
pub struct History {
    /// None if they are remembered in memory only.
    path: Option<PathBuf>,
}

impl History {
    /// Loads the file into the editor. A file that cannot be used is reported, and statements are
    /// then remembered in memory only.
    pub fn load(editor: &mut Editor<SqlHelper, FileHistory>) -> Self {
        let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let Some(path) = path(state, home) else {
            return Self::default();
        };
        match prepare(&path).and_then(|()| read(editor, &path)) {
            Ok(()) => Self { path: Some(path) },
            Err(error) => {
                report(&path, &error);
                Self::default()
            }
        }
    }

    /// Remembers a statement, in the file at once: the process may be killed.
    pub fn add(&mut self, editor: &mut Editor<SqlHelper, FileHistory>, text: &str) {
        let text = text.trim();
        if text.len() > MAX_ENTRY_BYTES || editor.add_history_entry(text).is_err() {
            return;
        }
        let Some(path) = &self.path else { return };
        if let Err(error) = editor.append_history(path) {
            report(path, &io::Error::other(error));
            self.path = None;
        }
    }
}

/// `$XDG_STATE_HOME/weir/sql_history`, else the same below `~/.local/state`.
fn path(state: Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    let state = state.filter(|path| path.is_absolute());
    let below_home = || Some(home.filter(|path| path.is_absolute())?.join(".local/state"));
    Some(state.or_else(below_home)?.join("weir/sql_history"))
}

/// Creates the folder; a file that others may read is made private.
fn prepare(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(folder)?;
    }
    match fs::metadata(path) {
        Ok(metadata) if metadata.permissions().mode() & 0o077 != 0 => {
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        }
        _ => Ok(()),
    }
}

fn read(editor: &mut Editor<SqlHelper, FileHistory>, path: &Path) -> io::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    editor.load_history(path).map_err(io::Error::other)
}

fn report(path: &Path, error: &io::Error) {
    eprintln!(
        "weir: {}: {error}; statements of this session are not remembered, remove the file or set XDG_STATE_HOME",
        path.display()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_in_the_state_folder() {
        let at = |state: Option<&str>, home: Option<&str>| {
            path(state.map(Into::into), home.map(Into::into))
        };
        let expected = |text: &str| Some(PathBuf::from(text));
        assert_eq!(at(Some("/s"), Some("/h")), expected("/s/weir/sql_history"));
        for state in [None, Some(""), Some("relative")] {
            assert_eq!(
                at(state, Some("/h")),
                expected("/h/.local/state/weir/sql_history")
            );
        }
        assert_eq!(at(None, None), None);
    }

    #[test]
    fn a_file_that_others_may_read_becomes_private() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state/weir/sql_history");
        prepare(&path).expect("a folder");
        fs::write(&path, "#V2\n").expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("own file");
        prepare(&path).expect("a folder");
        let mode = fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
