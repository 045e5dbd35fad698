//! A copy of the data folder that opens as it is, taken while the process works. Nothing is trimmed
//! during the copy. Views are copied first, then the operators' snapshots, then the log, so that the
//! log reaches as far as every view.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::context::FolderContext;
use super::data_dir::DataDir;
use super::{RuntimeError, views};
use crate::config::Config;
use crate::event::Lsn;
use crate::query::Handles;
use crate::runtime::snapshots::Snapshots;
use crate::sources::Stop;
use crate::storage::{Disk, explain, sync_folder};
use crate::wal::backup;

/// What was copied.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    pub to: PathBuf,
    pub files: u64,
    pub bytes: u64,
    /// The last record of the copy.
    pub lsn: Lsn,
}

/// What a backup reads.
#[derive(Clone)]
pub struct Backup {
    pub handles: Handles,
    pub folder: DataDir,
    pub snapshots: Snapshots,
    /// Held while it copies: nothing is trimmed or removed.
    pub retention_lock: Arc<Mutex<()>>,
    pub stop: Stop,
}

impl Backup {
    /// Copies into a folder below another one, for clients that may write nowhere else.
    pub fn run_below(&self, folder: &Path, to: &Path) -> Result<Summary, RuntimeError> {
        let failed = |e: io::Error| {
            RuntimeError::Config(format!("{} (`[server] backups`): {e}", folder.display()))
        };
        let (folder, to) = (folder.canonicalize().map_err(failed)?, resolve(to)?);
        // Its parent is resolved: no link leads out.
        if to == folder || !to.starts_with(&folder) {
            let message = "backups over HTTP go below";
            return Err(RuntimeError::Config(format!(
                "{}: {message} {} (`[server] backups`)",
                to.display(),
                folder.display()
            )));
        }
        self.run(&to)
    }

    /// Copies into a folder that is empty or does not exist; the copy gets its name when it is
    /// complete.
    pub fn run(&self, to: &Path) -> Result<Summary, RuntimeError> {
        self.run_reporting(to, &mut |_| {})
    }

    /// As [`Self::run`]; `report` takes the bytes that are copied so far, after each file.
    fn run_reporting(
        &self,
        to: &Path,
        report: &mut dyn FnMut(u64),
    ) -> Result<Summary, RuntimeError> {
        let _held = self
            .retention_lock
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let to = &resolve(to)?;
        let partial = self.begin(to)?;
        let copied = self.copy(&partial, to, report);
        if copied.is_err() {
            // Half a copy is useless.
            let _ = fs::remove_dir_all(&partial);
        }
        copied
    }

    fn copy(
        &self,
        partial: &Path,
        to: &Path,
        report: &mut dyn FnMut(u64),
    ) -> Result<Summary, RuntimeError> {
        let mut copy = Copy {
            report,
            to: partial.to_owned(),
            files: 0,
            bytes: 0,
            stop: self.stop.clone(),
        };
        // First: a sink of the copy sends rows again rather than skipping some.
        copy.sinks(&self.folder.sinks())?;
        copy.files_of(&self.folder.notebooks(), Path::new("notebooks"))?;
        self.copy_views(&mut copy, partial)?;
        for lsn in self.snapshots.list()? {
            let path = crate::operators::snapshot::path(&self.snapshots.folder, lsn);
            copy.file(
                &path,
                &Path::new("operators").join(path.file_name().unwrap_or_default()),
            )?;
        }
        let lsn = self.handles.progress.synced_lsn();
        copy.bytes += backup::copy(&Disk, &self.folder.log(), &partial.join("log"), lsn)?;
        copy.end(to)?;
        Ok(Summary {
            to: to.to_owned(),
            files: copy.files,
            bytes: copy.bytes,
            lsn,
        })
    }

    /// The files of all views, each of one version.
    fn copy_views(&self, copy: &mut Copy<'_>, partial: &Path) -> Result<(), RuntimeError> {
        // Every field is named, so that the compiler asks what to copy of a new view.
        let Handles {
            catalog: _,
            lake: _,
            tables,
            search,
            places,
            counts,
            progress: _,
        } = &self.handles;
        for table in tables.values() {
            let root = &table.spec.root;
            let own = Path::new("lake").join(root.file_name().unwrap_or_default());
            // The files of one version exist, and stay while nothing is trimmed.
            let (log, files) = table.committed_files()?;
            for name in log
                .iter()
                .map(PathBuf::as_path)
                .chain(files.iter().map(|f| Path::new(&f.path)))
            {
                copy.file(&root.join(name), &own.join(name))?;
            }
        }
        for (stream, index) in search {
            for (name, file) in index.committed_files()? {
                copy.open_file(&file, &Path::new("search").join(stream).join(name))?;
            }
        }
        copy.folder("state")?;
        for (stream, counts) in counts {
            counts.copy_to(
                &partial
                    .join("state")
                    .join(format!("{stream}.{}", views::COUNTS)),
            )?;
            copy.files += 1;
        }
        for (stream, places) in places {
            places.copy_to(
                &partial
                    .join("state")
                    .join(format!("{stream}.{}", views::PLACES)),
            )?;
            copy.files += 1;
        }
        Ok(())
    }

    fn begin(&self, to: &Path) -> Result<PathBuf, RuntimeError> {
        let refuse = |why: &str| {
            Err(RuntimeError::Config(format!(
                "{}: {why}; name another folder",
                to.display()
            )))
        };
        if to.starts_with(&self.folder.root) {
            return refuse("a backup must be outside the data folder");
        }
        if fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_some()) || to.is_file() {
            return refuse("is not empty");
        }
        let mut partial = to.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        if partial.exists() {
            return refuse(&format!(
                "{} exists, from a backup that did not end; remove it",
                partial.display()
            ));
        }
        create_folder(&partial).map_err(in_path(&partial))?;
        Ok(partial)
    }
}

/// Copies a folder that no process is working on; `report` takes the bytes that are copied so far.
pub fn offline(
    config: &Config,
    to: &Path,
    runtime: &tokio::runtime::Handle,
    report: &mut dyn FnMut(u64),
) -> Result<Summary, RuntimeError> {
    let context = FolderContext::existing(config, runtime)?;
    let _lock = context.folder.lock()?;
    let log = context.existing_log()?;
    let end = context.peek()?.last_lsn;
    let catalog = context.stored_catalog(end)?;
    let opened = views::open(&context, &catalog, log, false)?;
    opened.handles.progress.set_synced(end);
    Backup {
        handles: opened.handles,
        snapshots: context.snapshots(),
        folder: context.folder,
        retention_lock: Arc::default(),
        stop: Stop::default(),
    }
    .run_reporting(to, report)
}

/// The path without links, dots and a slash at its end; its parent must exist.
fn resolve(to: &Path) -> Result<PathBuf, RuntimeError> {
    let to: PathBuf = to.components().collect();
    let wrong =
        |why: &str| RuntimeError::Config(format!("{}: {why}; name another folder", to.display()));
    let name = to
        .file_name()
        .filter(|_| to.is_absolute())
        .ok_or_else(|| wrong("is not an absolute path to a folder"))?;
    let parent = to.parent().unwrap_or(&to);
    let resolved = parent.canonicalize().map_err(|error| {
        RuntimeError::Config(format!(
            "{}: its folder cannot be used ({error}); create {}, or name another folder",
            to.display(),
            parent.display()
        ))
    })?;
    Ok(resolved.join(name))
}

fn in_path(path: &Path) -> impl Fn(io::Error) -> RuntimeError {
    let path = path.to_owned();
    move |e| {
        RuntimeError::Failed(format!(
            "{}: {}; nothing was copied, try again or name another folder",
            path.display(),
            explain(&e)
        ))
    }
}

fn create_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// A copy in progress.
struct Copy<'a> {
    report: &'a mut dyn FnMut(u64),
    to: PathBuf,
    files: u64,
    bytes: u64,
    stop: Stop,
}

impl Copy<'_> {
    fn folder(&self, name: &str) -> Result<(), RuntimeError> {
        let path = self.to.join(name);
        create_folder(&path).map_err(in_path(&path))
    }

    /// Cursors and refused rows, each file as of one moment.
    fn sinks(&mut self, from: &Path) -> Result<(), RuntimeError> {
        for sink in entries(from)? {
            let name = Path::new("sinks").join(sink.file_name().unwrap_or_default());
            self.files_of(&sink, &name)?;
        }
        Ok(())
    }

    /// The files of a folder, each as of one moment; those that are removed before they are copied
    /// are left out.
    fn files_of(&mut self, from: &Path, to: &Path) -> Result<(), RuntimeError> {
        for path in entries(from)? {
            if path.extension().is_some_and(|e| e == "tmp") {
                continue;
            }
            let file = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file.map_err(in_path(&path))?,
            };
            self.open_file(&file, &to.join(path.file_name().unwrap_or_default()))?;
        }
        Ok(())
    }

    fn file(&mut self, from: &Path, name: &Path) -> Result<(), RuntimeError> {
        let file = File::open(from).map_err(in_path(from))?;
        self.open_file(&file, name)
    }

    fn open_file(&mut self, mut from: &File, name: &Path) -> Result<(), RuntimeError> {
        use std::os::unix::fs::OpenOptionsExt;
        if self.stop.is_requested() {
            return Err(RuntimeError::Failed(
                "weir is stopping; the backup is incomplete".into(),
            ));
        }
        let target = self.to.join(name);
        let wrong = in_path(&target);
        create_folder(target.parent().unwrap_or(&self.to)).map_err(&wrong)?;
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&target)
            .map_err(&wrong)?;
        self.bytes += io::copy(&mut from, &mut file).map_err(&wrong)?;
        self.files += 1;
        (self.report)(self.bytes);
        file.sync_all().map_err(&wrong)
    }

    /// Makes all names durable, the copy's own last.
    fn end(&self, to: &Path) -> Result<(), RuntimeError> {
        sync_folders(&self.to).map_err(in_path(&self.to))?;
        fs::rename(&self.to, to).map_err(in_path(to))?;
        sync_folder(to.parent().unwrap_or(to)).map_err(in_path(to))
    }
}

/// What a folder has; nothing where it does not exist.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, RuntimeError> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(folder).map_err(in_path(folder))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    paths.collect::<io::Result<_>>().map_err(in_path(folder))
}

fn sync_folders(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_folders(&path)?;
        }
    }
    sync_folder(folder)
}
