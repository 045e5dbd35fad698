//! Which files a source reads: a path, a folder, or a glob → files with their metadata. Symbolic
//! links are followed; a folder that several links lead to is entered once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher, GlobSet, GlobSetBuilder};

use crate::config::FileDef;

/// Nesting of folders, and number of files, that a source reads.
const MAX_DEPTH: usize = 32;
const MAX_FILES: usize = 100_000;
/// Folders whose modification time is checked between walks.
const MAX_WATCHED_FOLDERS: usize = 1_024;

/// Extensions of compressed files.
const COMPRESSED_EXTENSIONS: [&str; 6] = [".gz", ".zst", ".bz2", ".xz", ".lz4", ".Z"];

/// A file's metadata: as long as none of it changes, nor does the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Device of the file system. It and the inode name an open file uniquely.
    pub device: u64,
    /// Inode number, which may be reused once the file is gone.
    pub inode: u64,
    /// Bytes of the file as stored.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub modified: u64,
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        let modified = metadata
            .mtime()
            .saturating_mul(1_000_000_000)
            .saturating_add(metadata.mtime_nsec());
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: u64::try_from(modified).unwrap_or(0),
        }
    }
}

impl Stamp {
    /// Whether both are of one file, whatever its path and content.
    pub fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// Why a file is considered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The source reads it.
    Member,
    /// It is next to one: read only to continue one that was renamed or copied after it was begun.
    Sibling,
    /// It is next to the source's single file, under a name that rotation gives.
    Rotated,
}

/// The result of a walk.
#[derive(Debug, Default)]
pub(super) struct Discovery {
    /// Files that match, or are next to one that does, by path as configured.
    pub files: BTreeMap<PathBuf, (Stamp, Role)>,
    /// Folders that were listed, with their modification time.
    pub folders: BTreeMap<PathBuf, u64>,
    /// Paths that could not be accessed, with the reason.
    pub failed: BTreeMap<PathBuf, String>,
    /// The source's path itself does not exist.
    pub is_missing: bool,
    /// There are more than [`MAX_FILES`] files.
    pub has_too_many_files: bool,
    /// A subfolder that is skipped because the source is not recursive.
    pub skipped_subfolder: Option<PathBuf>,
}

/// The files that a source reads, as configured.
pub(super) struct Pattern {
    path: PathBuf,
    glob: Option<GlobMatcher>,
    /// Where a walk begins.
    root: PathBuf,
    recursive: bool,
    include: Option<GlobSet>,
    exclude: GlobSet,
}

impl Pattern {
    /// Compiles the patterns of a source.
    ///
    /// # Errors
    ///
    /// The first pattern that is not a valid glob.
    pub fn new(def: &FileDef) -> Result<Self, globset::Error> {
        let is_glob = def.is_glob();
        let glob = is_glob
            .then(|| compile(&def.path.to_string_lossy()))
            .transpose()?;
        Ok(Self {
            root: if is_glob {
                glob_root(&def.path)
            } else {
                def.path.clone()
            },
            recursive: def.recursive
                || is_glob && def.path.components().any(|c| c.as_os_str() == "**"),
            glob: glob.map(|g| g.compile_matcher()),
            include: if def.include.is_empty() {
                None
            } else {
                Some(compile_all(&def.include)?)
            },
            exclude: compile_all(&def.exclude)?,
            path: def.path.clone(),
        })
    }

    /// The path or pattern, as configured.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path, if it is neither a glob nor a folder.
    pub fn single(&self) -> Option<&Path> {
        (self.glob.is_none() && !self.path.is_dir()).then_some(&self.path)
    }

    /// The file or folder without which nothing can be read.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Walks. `is_known`: a file of this inode was read before.
    pub fn discover(&self, is_known: &dyn Fn(u64) -> bool) -> Discovery {
        let mut found = Discovery::default();
        if self.glob.is_some() {
            let depth = self.glob_depth();
            let mut seen = BTreeSet::new();
            self.walk(&self.root, depth, &mut seen, is_known, &mut found);
            found.is_missing = !self.root.exists();
            return found;
        }
        match std::fs::metadata(&self.path) {
            Ok(metadata) if metadata.is_dir() => {
                let depth = if self.recursive { MAX_DEPTH } else { 0 };
                self.walk(
                    &self.path,
                    depth,
                    &mut BTreeSet::new(),
                    is_known,
                    &mut found,
                );
                return found;
            }
            Ok(metadata) if metadata.is_file() => {
                found
                    .files
                    .insert(self.path.clone(), (Stamp::from(&metadata), Role::Member));
            }
            Ok(_) => {
                found.failed.insert(
                    self.path.clone(),
                    "it is neither a file nor a folder".into(),
                );
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => found.is_missing = true,
            Err(error) => {
                found.failed.insert(self.path.clone(), error.to_string());
            }
        }
        self.add_siblings(is_known, &mut found);
        found
    }

    /// The depth below the root that a glob can reach.
    fn glob_depth(&self) -> usize {
        if self.recursive {
            return MAX_DEPTH;
        }
        let below = self.path.components().count() - self.root.components().count();
        below.saturating_sub(1).min(MAX_DEPTH)
    }

    fn walk(
        &self,
        folder: &Path,
        depth: usize,
        seen: &mut BTreeSet<(u64, u64)>,
        is_known: &dyn Fn(u64) -> bool,
        found: &mut Discovery,
    ) {
        let failed = |found: &mut Discovery, path: PathBuf, error: io::Error| {
            // A path may disappear during the walk.
            if error.kind() != io::ErrorKind::NotFound {
                found.failed.insert(path, error.to_string());
            }
        };
        let metadata = match std::fs::metadata(folder) {
            Ok(metadata) => metadata,
            Err(error) => return failed(found, folder.to_owned(), error),
        };
        if !seen.insert((metadata.dev(), metadata.ino())) {
            return;
        }
        if found.folders.len() < MAX_WATCHED_FOLDERS {
            found
                .folders
                .insert(folder.to_owned(), Stamp::from(&metadata).modified);
        }
        let entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => return failed(found, folder.to_owned(), error),
        };
        let mut entries: Vec<_> = entries
            .flatten()
            .map(|entry| (entry.path(), entry.ino()))
            .collect();
        entries.sort();
        let mut folders = Vec::new();
        for (path, _) in entries {
            let metadata = match std::fs::metadata(&path) {
                Ok(metadata) => metadata,
                Err(error) => {
                    if error.kind() == io::ErrorKind::NotFound
                        && path.is_symlink()
                        && self.reads(&path)
                    {
                        found.failed.insert(
                            path,
                            "the target of the symbolic link does not exist".into(),
                        );
                    } else {
                        failed(found, path, error);
                    }
                    continue;
                }
            };
            if metadata.is_dir() {
                if depth > 0 && !is_hidden(&path) {
                    folders.push(path);
                } else if self.glob.is_none() && !self.recursive && !is_hidden(&path) {
                    found.skipped_subfolder.get_or_insert(path);
                }
                continue;
            }
            if metadata.is_file() && !found.has_too_many_files {
                self.add(path, Stamp::from(&metadata), seen, is_known, found);
            }
        }
        for path in folders {
            self.walk(&path, depth - 1, seen, is_known, found);
        }
    }

    /// Adds a file that the source reads, or one next to those that is known.
    fn add(
        &self,
        path: PathBuf,
        stamp: Stamp,
        seen: &mut BTreeSet<(u64, u64)>,
        is_known: &dyn Fn(u64) -> bool,
        found: &mut Discovery,
    ) {
        let role = match (self.reads(&path), is_known(stamp.inode)) {
            (true, _) => Role::Member,
            (false, true) => Role::Sibling,
            (false, false) => return,
        };
        // A file with two names is read once.
        if role == Role::Member && !seen.insert((stamp.device, stamp.inode)) {
            return;
        }
        if found.files.len() >= MAX_FILES {
            found.has_too_many_files = true;
        } else {
            found.files.insert(path, (stamp, role));
        }
    }

    /// Whether the source reads a file at this path.
    fn reads(&self, path: &Path) -> bool {
        if let Some(glob) = &self.glob {
            let wants_hidden = self
                .path
                .file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with('.'));
            return glob.is_match(path)
                && (wants_hidden || !is_hidden(path))
                && !self.matches(&self.exclude, path);
        }
        !is_hidden(path)
            && self
                .include
                .as_ref()
                .is_none_or(|include| self.matches(include, path))
            && !self.matches(&self.exclude, path)
    }

    /// By the path relative to the source's folder, or by the name alone.
    fn matches(&self, globs: &GlobSet, path: &Path) -> bool {
        let below = path.strip_prefix(&self.root).unwrap_or(path);
        globs.is_match(below) || path.file_name().is_some_and(|name| globs.is_match(name))
    }

    /// Adds files next to the source's single file that may be it under another name: by inode, or
    /// because their name extends its name.
    fn add_siblings(&self, is_known: &dyn Fn(u64) -> bool, found: &mut Discovery) {
        let target = std::fs::canonicalize(&self.path).ok();
        for path in [Some(self.path.as_path()), target.as_deref()]
            .into_iter()
            .flatten()
        {
            let Some(folder) = path.parent() else {
                continue;
            };
            let folder = if folder.as_os_str().is_empty() {
                Path::new(".")
            } else {
                folder
            };
            if found.folders.contains_key(folder) {
                continue;
            }
            let Ok(metadata) = std::fs::metadata(folder) else {
                continue;
            };
            found
                .folders
                .insert(folder.to_owned(), Stamp::from(&metadata).modified);
            let Ok(entries) = std::fs::read_dir(folder) else {
                continue;
            };
            for entry in entries.flatten() {
                let is_rotated = is_rotation(&entry.path(), path);
                let may_be_it =
                    entry.path() != path && (is_rotated || extends(&entry.path(), path));
                let path = entry.path();
                if !(may_be_it || is_known(entry.ino())) || found.files.len() >= MAX_FILES {
                    continue;
                }
                let role = if is_rotated {
                    Role::Rotated
                } else {
                    Role::Sibling
                };
                let Ok(metadata) = std::fs::symlink_metadata(&path) else {
                    continue;
                };
                let stamp = Stamp::from(&metadata);
                if metadata.is_file()
                    && !found
                        .files
                        .values()
                        .any(|(other, _)| other.is_same_file(&stamp))
                {
                    found.files.insert(path, (stamp, role));
                }
            }
        }
    }
}

/// Whether a file's name is another one with a suffix, as rotation names files.
pub(super) fn extends(path: &Path, other: &Path) -> bool {
    match (path.file_name(), other.file_name()) {
        (Some(name), Some(other)) => {
            let (name, other) = (name.as_encoded_bytes(), other.as_encoded_bytes());
            name.len() > other.len() && name.starts_with(other)
        }
        _ => false,
    }
}

/// Whether rotation may have derived a file's name from another one: numbers or a date after it or
/// before its extension, and the extension of compressed files. Not `app-2.json` from `app.json`:
/// unrelated files are numbered like this.
fn is_rotation(path: &Path, other: &Path) -> bool {
    let (Some(name), Some(other)) = (path.file_name(), other.file_name()) else {
        return false;
    };
    let (name, other) = (name.to_string_lossy(), other.to_string_lossy());
    let uncompressed = COMPRESSED_EXTENSIONS
        .iter()
        .find_map(|extension| name.strip_suffix(extension));
    let base = uncompressed.unwrap_or(&name);
    let is_number = |between: &str| {
        between.starts_with(['.', '-', '_'])
            && between.contains(|c: char| c.is_ascii_digit())
            && between
                .chars()
                .all(|c| c.is_ascii_digit() || matches!(c, '.' | '-' | '_' | 'T' | 'Z' | ':' | '+'))
    };
    let is_date = |between: &str| between.chars().filter(char::is_ascii_digit).count() >= 6;
    let suffix = base.strip_prefix(&*other);
    let infix = other.rsplit_once('.').and_then(|(stem, extension)| {
        base.strip_prefix(stem)?
            .strip_suffix(extension)?
            .strip_suffix('.')
    });
    suffix.is_some_and(|suffix| is_number(suffix) || suffix.is_empty() && uncompressed.is_some())
        || infix.is_some_and(|infix| is_number(infix) && (infix.starts_with('.') || is_date(infix)))
}

fn is_hidden(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn compile(glob: &str) -> Result<globset::Glob, globset::Error> {
    GlobBuilder::new(glob).literal_separator(true).build()
}

fn compile_all(globs: &[String]) -> Result<GlobSet, globset::Error> {
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        set.add(compile(glob)?);
    }
    set.build()
}

/// The folder above the first component of a glob that is not literal.
fn glob_root(glob: &Path) -> PathBuf {
    let is_literal =
        |part: &std::path::Component<'_>| !FileDef::has_glob(&part.as_os_str().to_string_lossy());
    let root: PathBuf = glob.components().take_while(is_literal).collect();
    if root.as_os_str().is_empty() {
        ".".into()
    } else {
        root
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(def: &FileDef) -> Vec<String> {
        let found = Pattern::new(def).expect("globs").discover(&|_| false);
        let root = glob_root(&def.path);
        let below = |path: &PathBuf| {
            path.strip_prefix(&root)
                .unwrap_or(path)
                .display()
                .to_string()
        };
        found.files.keys().map(below).collect()
    }

    fn def(path: PathBuf) -> FileDef {
        FileDef {
            path,
            exclude: vec!["*.tmp".into()],
            ..FileDef::default()
        }
    }

    #[test]
    fn a_folder_a_glob_and_subfolders_are_walked() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(path("2024/05")).expect("a folder");
        for name in [
            "a.json",
            "b.log",
            ".hidden",
            "2024/c.json",
            "2024/05/d.json",
            "x.json.tmp",
        ] {
            std::fs::write(path(name), "{}").expect("written");
        }
        std::os::unix::fs::symlink(path("2024"), path("link")).expect("linked");
        std::os::unix::fs::symlink(folder.path(), path("2024/loop")).expect("linked");
        std::os::unix::fs::symlink(path("2024/c.json"), path("z.json")).expect("linked");
        let plain = def(folder.path().to_owned());
        assert_eq!(names(&plain), ["a.json", "b.log", "z.json"]);
        let recursive = FileDef {
            recursive: true,
            ..plain
        };
        assert_eq!(
            names(&recursive),
            ["2024/05/d.json", "a.json", "b.log", "z.json"]
        );
        assert_eq!(
            names(&FileDef {
                include: vec!["*.log".into()],
                ..recursive.clone()
            }),
            ["b.log"]
        );
        assert_eq!(
            names(&FileDef {
                exclude: vec!["2024/**".into()],
                ..recursive
            }),
            ["a.json", "b.log", "x.json.tmp", "z.json"]
        );
        assert_eq!(names(&def(path("*.json"))), ["a.json", "z.json"]);
        assert_eq!(names(&def(path("*/*.json"))), ["2024/c.json"]);
        assert_eq!(names(&def(path("**/d.json"))), ["2024/05/d.json"]);
    }

    #[test]
    fn rotated_files_are_recognized_by_their_names() {
        let is = |name: &str| is_rotation(Path::new(name), Path::new("x/app.log"));
        for name in [
            "app.log.1",
            "app.log.12.gz",
            "app.log-20260101.zst",
            "app-2026-01-01T10.log",
            "app.2.log",
            "app.log.gz",
        ] {
            assert!(is(name), "{name}");
        }
        for name in [
            "app.log",
            "app.log~",
            "app.log.bak",
            "app-error.log",
            "app.log.1.tmp",
            "app.log.",
            "app-2.log",
            "app.log1",
        ] {
            assert!(!is(name), "{name}");
        }
    }

    #[test]
    fn a_single_file_has_siblings() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        for name in ["app.log", "app.log.1", "other.log"] {
            std::fs::write(path(name), "{}").expect("written");
        }
        let found = Pattern::new(&def(path("app.log")))
            .expect("globs")
            .discover(&|_| false);
        let roles: Vec<Role> = found.files.values().map(|(_, role)| *role).collect();
        assert_eq!(roles, [Role::Member, Role::Rotated]);
        assert!(
            Pattern::new(&def(path("later")))
                .expect("globs")
                .discover(&|_| false)
                .is_missing
        );
    }
}
