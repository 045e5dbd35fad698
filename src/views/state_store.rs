//! Small state in a redb file, with the checkpoint in the same transaction: that of counts and
//! places.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use redb::{
    Database, DatabaseError, Key, ReadOnlyDatabase, ReadOnlyTable, ReadTransaction,
    ReadableDatabase, ReadableTable, TableDefinition, TableHandle, Value, WriteTransaction,
};

use super::overlay::Overlay;
use super::{InView, LogIdentity, VERIFIED_BYTES, ViewError, derived_damage};
use crate::event::Lsn;
use crate::storage::sync_folder;

/// The file's format.
const VERSION: u64 = 3;
/// Memory of a file that a copy is written into.
const COPY_CACHE_BYTES: usize = 8 << 20;
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// A file opened for writing, or for reading what is committed.
pub struct StateStore {
    path: PathBuf,
    cache_bytes: usize,
    /// `None` when it could not be reopened after an error.
    database: RwLock<Option<Handle>>,
}

enum Handle {
    Writable(Database),
    ReadOnly(ReadOnlyDatabase),
    /// Repaired in memory; the file is unchanged.
    Repaired(Database),
}

/// The checkpoint that a transaction sees.
pub fn checkpoint_in(transaction: &ReadTransaction) -> Result<Option<Lsn>, ViewError> {
    let Some(table) = open_table(transaction, META)? else {
        return Ok(None);
    };
    let checkpoint = table.get("checkpoint").in_view("state")?;
    Ok(checkpoint.map(|v| v.value()))
}

/// Opens a table; `None` if it does not exist.
pub fn open_table<K: Key + 'static, V: Value + 'static>(
    transaction: &ReadTransaction,
    table: TableDefinition<K, V>,
) -> Result<Option<ReadOnlyTable<K, V>>, ViewError> {
    match transaction.open_table(table) {
        Ok(table) => Ok(Some(table)),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error).in_view(table.name()),
    }
}

/// Copies a table, if it exists.
pub fn copy_table<K: Key + 'static, V: Value + 'static>(
    table: TableDefinition<K, V>,
    read: &ReadTransaction,
    write: &WriteTransaction,
) -> Result<(), redb::Error> {
    let from = match read.open_table(table) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
        opened => opened?,
    };
    let mut to = write.open_table(table)?;
    for entry in from.iter()? {
        let (key, value) = entry?;
        to.insert(key.value(), value.value())?;
    }
    Ok(())
}

/// The error for a damaged file. It is called `STREAM.counts.redb` or `STREAM.places.redb`.
fn damaged(path: &Path, what: &str) -> ViewError {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let (stream, view) = name.rsplit_once('.').unwrap_or((&name, "counts"));
    derived_damage(path, what, view, stream)
}

/// redb panics on some bytes that it did not write.
fn catch_panic<T>(
    path: &Path,
    open: impl FnOnce() -> Result<T, ViewError>,
) -> Result<T, ViewError> {
    let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(open));
    opened.unwrap_or_else(|_| Err(damaged(path, "its bytes are not those that were written")))
}

/// Verifies the whole file against redb's checksums. Where the last commit is damaged and the one
/// before is not, redb falls back to that: its checkpoint is in it, and what follows is read from
/// the log.
fn verify(path: &Path, mut database: Database) -> Result<Database, ViewError> {
    let bytes = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    if bytes <= VERIFIED_BYTES {
        match database.check_integrity() {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!(path = %path.display(), "the file was damaged; it was repaired, or rolled back to the commit before");
            }
            Err(error) => return Err(classify(path)(error.into())),
        }
    }
    Ok(database)
}

/// Maps an error of the file: damage is final, the rest is worth a retry.
fn classify(path: &Path) -> impl Fn(redb::Error) -> ViewError {
    let path = path.to_owned();
    move |error| match error {
        // Not a file of redb.
        redb::Error::Io(ref io) if io.kind() == ErrorKind::InvalidData => {
            damaged(&path, &error.to_string())
        }
        redb::Error::Io(_)
        | redb::Error::PreviousIo
        | redb::Error::DatabaseClosed
        | redb::Error::DatabaseAlreadyOpen => failed(&path)(error),
        error => damaged(&path, &error.to_string()),
    }
}

/// An error that is worth a retry.
fn failed(path: &Path) -> impl Fn(redb::Error) -> ViewError {
    ViewError::failed(path.display().to_string())
}

/// Opens or creates the file. It is created under another name and renamed, because redb cannot
/// open a half-created one.
fn create(path: &Path, cache_bytes: usize) -> Result<Handle, ViewError> {
    let io = |error: std::io::Error| failed(path)(error.into());
    // An error of the disk must not be taken for a missing file.
    if !path.try_exists().map_err(io)? {
        let new = path.with_extension("new");
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        let created = redb::Builder::new()
            .create(&new)
            .map(drop)
            .map_err(|e| classify(&new)(e.into()));
        let created = created.and_then(|()| std::fs::rename(&new, path).map_err(io));
        if created.is_err() {
            let _ = std::fs::remove_file(&new);
        }
        created?;
    }
    // Also where the file exists: the sync of an earlier attempt may have failed.
    sync_folder(path.parent().unwrap_or(Path::new("."))).map_err(io)?;
    let open = || {
        redb::Builder::new()
            .set_cache_size(cache_bytes)
            .create(path)
    };
    catch_panic(path, || {
        verify(path, open().map_err(|e| classify(path)(e.into()))?).map(Handle::Writable)
    })
}

impl StateStore {
    fn new(path: &Path, cache_bytes: usize, database: Handle) -> Self {
        Self {
            path: path.to_owned(),
            cache_bytes,
            database: RwLock::new(Some(database)),
        }
    }

    /// Opens the file for writing, or for reading if it exists.
    pub fn open_as(
        path: &Path,
        cache_bytes: usize,
        writable: bool,
    ) -> Result<Option<Self>, ViewError> {
        if writable {
            Self::open(path, cache_bytes).map(Some)
        } else {
            Self::open_read_only(path, cache_bytes)
        }
    }

    /// Opens or creates the file for writing; repairs it after a crash.
    fn open(path: &Path, cache_bytes: usize) -> Result<Self, ViewError> {
        Ok(Self::new(path, cache_bytes, create(path, cache_bytes)?))
    }

    /// Closes and reopens the file: after an error redb refuses every further write. Reads in between
    /// fail.
    pub fn reopen(&self) -> Result<(), ViewError> {
        let mut database = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *database = None;
        *database = Some(create(&self.path, self.cache_bytes)?);
        Ok(())
    }

    fn database(&self) -> RwLockReadGuard<'_, Option<Handle>> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the file for reading; after a crash it is repaired in memory. `None` if it does not
    /// exist.
    fn open_read_only(path: &Path, cache_bytes: usize) -> Result<Option<Self>, ViewError> {
        if !path.exists() {
            return Ok(None);
        }
        let mut builder = redb::Builder::new();
        builder.set_cache_size(cache_bytes);
        let overlay = || {
            catch_panic(path, || {
                let overlay = Overlay::open(path).map_err(|e| failed(path)(e.into()))?;
                let database = builder
                    .create_with_backend(overlay)
                    .map_err(|e| classify(path)(e.into()))?;
                verify(path, database).map(Handle::Repaired)
            })
        };
        // Only what could be repaired can be verified.
        let is_verified =
            std::fs::metadata(path).is_ok_and(|metadata| metadata.len() <= VERIFIED_BYTES);
        let database = match is_verified.then(overlay) {
            Some(opened) => opened?,
            None => match builder.open_read_only(path) {
                Ok(database) => Handle::ReadOnly(database),
                Err(DatabaseError::RepairAborted) => overlay()?,
                Err(error) => return Err(classify(path)(error.into())),
            },
        };
        Ok(Some(Self::new(path, cache_bytes, database)))
    }

    /// A transaction that sees the last commit.
    pub fn read(&self) -> Result<ReadTransaction, ViewError> {
        let transaction = match &*self.database() {
            Some(Handle::Writable(database) | Handle::Repaired(database)) => database.begin_read(),
            Some(Handle::ReadOnly(database)) => database.begin_read(),
            None => return Err(failed(&self.path)(redb::Error::PreviousIo)),
        };
        transaction.map_err(|e| classify(&self.path)(e.into()))
    }

    /// The committed checkpoint; an error where it belongs to another log or format.
    pub fn checkpoint(&self, log: LogIdentity) -> Result<Lsn, ViewError> {
        let classify = classify(&self.path);
        let table = match self.read()?.open_table(META) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(log.start_lsn),
            Err(e) => return Err(classify(e.into())),
        };
        let get = |key: &str| {
            table
                .get(key)
                .map(|v| v.map(|v| v.value()))
                .map_err(|e| classify(e.into()))
        };
        match get("version")? {
            Some(version) if version > VERSION => {
                return Err(ViewError::Newer {
                    path: self.path.clone(),
                    what: format!("state format {version}"),
                });
            }
            Some(version) if version < VERSION => {
                let reason = format!(
                    "has the format {version} of a version before the first release; use a new data folder"
                );
                return Err(ViewError::Damaged {
                    path: self.path.clone(),
                    reason,
                });
            }
            _ => {}
        }
        match (get("log")?, get("checkpoint")?) {
            (Some(found), Some(checkpoint)) if found == log.id => Ok(checkpoint),
            (None, _) | (_, None) => Ok(log.start_lsn),
            (Some(found), _) => {
                let reason = format!(
                    "belongs to log {found:x}, this one is {:x}; restore log and views from one backup",
                    log.id
                );
                Err(ViewError::Damaged {
                    path: self.path.clone(),
                    reason,
                })
            }
        }
    }

    /// Copies what one read transaction sees into a new file; `tables` copies those of the view.
    pub fn copy_to(
        &self,
        path: &Path,
        tables: impl FnOnce(&ReadTransaction, &WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), ViewError> {
        let failed = failed(path);
        let read = self.read()?;
        let copy = redb::Builder::new()
            .set_cache_size(COPY_CACHE_BYTES)
            .create(path)
            .map_err(|e| failed(e.into()))?;
        let write = copy.begin_write().map_err(|e| failed(e.into()))?;
        copy_table(META, &read, &write)
            .and_then(|()| tables(&read, &write))
            .map_err(&failed)?;
        write.commit().map_err(|e| failed(e.into()))
    }

    /// Writes and commits, durably, with the checkpoint.
    pub fn commit(
        &self,
        log: LogIdentity,
        checkpoint: Lsn,
        write: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), ViewError> {
        let failed = failed(&self.path);
        let opened = self.database();
        let Some(Handle::Writable(database)) = &*opened else {
            return Err("is opened read-only").in_view(self.path.display().to_string());
        };
        let mut transaction = database.begin_write().map_err(|e| failed(e.into()))?;
        // After a crash the file opens at once instead of being read as a whole.
        transaction.set_quick_repair(true);
        write(&transaction).map_err(&failed)?;
        {
            let mut meta = transaction.open_table(META).map_err(|e| failed(e.into()))?;
            for (key, value) in [
                ("version", VERSION),
                ("log", log.id),
                ("checkpoint", checkpoint),
            ] {
                meta.insert(key, value).map_err(|e| failed(e.into()))?;
            }
        }
        transaction.commit().map_err(|e| failed(e.into()))
    }
}
