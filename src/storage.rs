//! The seam to the disk for everything Weir writes itself: positioned writes, syncs, atomic
//! replacement.
//!
//! A file or a name is durable only when its folder has been synced too, so each function that
//! makes a name does both.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

/// An open file, read and written at positions.
pub trait File: Send + Sync {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
    /// Bytes in the file.
    fn size(&self) -> io::Result<u64>;
    /// Data and the size needed to read it are on the disk when this returns. After an error
    /// nothing is known about them.
    fn sync(&self) -> io::Result<()>;
}

/// A folder tree.
pub trait Storage: Send + Sync + 'static {
    /// Makes a file of `size` allocated zero bytes that begins with `head`; its name appears only
    /// when both are on the disk.
    fn create(&self, path: &Path, size: u64, head: &[u8]) -> io::Result<Arc<dyn File>>;
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    fn open_read_only(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// File names in a folder, sorted; a folder that does not exist is empty.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Replaces the file by `bytes`: a reader, or a restart, sees the old or the new content and
    /// nothing between.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Makes the folder and those above it that are missing, with durable names.
    fn create_folder(&self, folder: &Path) -> io::Result<()>;
    /// Bytes that may still be written to the file system of this folder; none where it does not
    /// say.
    fn free(&self, _folder: &Path) -> Option<u64> {
        None
    }
}

/// What an error of the disk means for those who wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoKind {
    /// No room, or none within a quota: it passes when something is removed.
    Full,
    /// The file system takes no writes: it passes when it is mounted writable.
    ReadOnly,
    /// Anything else, above all a device that fails.
    Broken,
}

impl IoKind {
    pub fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly,
            _ => Self::Broken,
        }
    }
}

/// The error with what can be done about it.
pub fn explain(error: &io::Error) -> String {
    match IoKind::of(error) {
        IoKind::Full => {
            format!("no room is left on the disk ({error}); make room, weir continues by itself")
        }
        IoKind::ReadOnly => {
            format!(
                "the file system is read-only ({error}); mount it writable, weir continues by itself"
            )
        }
        IoKind::Broken if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
            format!("the disk failed ({error}); check the device")
        }
        IoKind::Broken => error.to_string(),
    }
}

/// With what the message about a damaged file begins. Libraries turn errors into text on their way;
/// by this it is recognised again.
const DAMAGED: &str = "damaged file: ";

/// The message about a damaged file: what is wrong with it, and the way out.
pub fn damage(path: &Path, what: &str, way_out: &str) -> String {
    format!("{DAMAGED}{}: {what}; {way_out}", path.display())
}

/// The message about a damaged file, where an error's text has one.
pub fn damage_in(error: &str) -> Option<&str> {
    error.find(DAMAGED).map(|at| error[at..].trim_end())
}

/// The local file system. Folders are made 0700, files 0600.
#[derive(Debug, Default, Clone, Copy)]
pub struct Disk;

struct DiskFile(fs::File);

impl File for DiskFile {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(bytes, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.0.metadata().map(|m| m.len())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// Makes the names in a folder durable.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

/// Makes a folder and those above it that are missing, each with a name that is durable in its
/// parent. After an error the new ones are removed again, so that the next attempt makes and syncs
/// them once more.
pub fn create_folders(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let is_missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.is_dir();
    let missing: Vec<&Path> = folder.ancestors().take_while(is_missing).collect();
    let made = missing.iter().rev().try_for_each(|folder| {
        match fs::DirBuilder::new().mode(0o700).create(folder) {
            // Another thread was quicker; its name is synced here too.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
            made => made?,
        }
        sync_folder(parent(folder))
    });
    if made.is_err() {
        for folder in missing {
            // One that another thread uses already is not empty, and stays.
            let _ = fs::remove_dir(folder);
        }
    }
    made
}

/// Bytes that an unprivileged process may still write to the file system of this folder; none where
/// it does not say.
pub fn free(folder: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Bytes of the file system of this folder, those in use included; none where it does not say.
pub fn capacity(folder: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    Some(stat.f_blocks.saturating_mul(stat.f_frsize))
}

/// Whether a file of this name was being written when its process was killed: Weir's own, or one of
/// tantivy's or `object_store`'s.
pub fn is_temporary(name: &str) -> bool {
    let is_staged = |(_, number): (&str, &str)| {
        !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    };
    name.ends_with(".tmp")
        || name.starts_with(".tmp")
        || name.rsplit_once('#').is_some_and(is_staged)
}

/// Removes what killed processes were writing below a folder; gives the bytes. Nobody may be
/// writing there.
pub fn remove_temporaries(folder: &Path) -> u64 {
    let mut bytes = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            // Not through links.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.is_dir() {
                folders.push(entry.path());
            } else if is_temporary(&entry.file_name().to_string_lossy())
                && fs::remove_file(entry.path()).is_ok()
            {
                bytes += metadata.len();
            }
        }
    }
    bytes
}

/// Files and folders that this process makes from here on are for its user only, also those that
/// libraries make.
pub fn keep_private() {
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
}

/// Takes from others what rights they have to what is below a folder: an earlier version left them
/// some.
pub fn tighten(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            // Not through links.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let mode = metadata.permissions().mode();
            if metadata.is_dir() {
                folders.push(entry.path());
            } else if !metadata.is_file() {
                continue;
            }
            if mode & 0o077 != 0 {
                // Where it cannot be, it is another user's.
                let _ = fs::set_permissions(entry.path(), fs::Permissions::from_mode(mode & 0o700));
            }
        }
    }
}

/// Allocates the file's bytes. Where the file system cannot, zeros are written: the room is there
/// all the same.
fn allocate(file: &fs::File, size: u64) -> io::Result<()> {
    use rustix::io::Errno;
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, size) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => write_zeros(file, size),
        allocated => Ok(allocated?),
    }
}

fn write_zeros(file: &fs::File, size: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let mut at = 0;
    while at < size {
        let part = &zeros[..zeros
            .len()
            .min(usize::try_from(size - at).unwrap_or(usize::MAX))];
        file.write_all_at(part, at)?;
        at += part.len() as u64;
    }
    Ok(())
}

/// Writes a file under another name and renames it; an attempt that fails leaves nothing.
fn write_and_rename(
    path: &Path,
    write: impl FnOnce(&fs::File) -> io::Result<()>,
) -> io::Result<fs::File> {
    let temporary = temporary(path);
    let written = (|| -> io::Result<fs::File> {
        let file = options().create(true).truncate(true).open(&temporary)?;
        write(&file)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        Ok(file)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    let file = written?;
    sync_folder(parent(path))?;
    Ok(file)
}

fn parent(path: &Path) -> &Path {
    path.parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

fn temporary(path: &Path) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

fn options() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

impl Storage for Disk {
    fn create(&self, path: &Path, size: u64, head: &[u8]) -> io::Result<Arc<dyn File>> {
        let file = write_and_rename(path, |file| {
            allocate(file, size)?;
            file.write_all_at(head, 0)
        })?;
        Ok(Arc::new(DiskFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(DiskFile(options().open(path)?)))
    }

    fn open_read_only(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(DiskFile(fs::File::open(path)?)))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = entries
            .map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        write_and_rename(path, |file| file.write_all_at(bytes, 0)).map(drop)
    }

    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        create_folders(folder)
    }

    fn free(&self, folder: &Path) -> Option<u64> {
        free(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_apart() {
        let of = |errno: i32| IoKind::of(&io::Error::from_raw_os_error(errno));
        // ENOSPC, EDQUOT, EROFS, EIO, EACCES.
        let kinds = [28, 122, 30, 5, 13].map(of);
        assert_eq!(
            kinds,
            [
                IoKind::Full,
                IoKind::Full,
                IoKind::ReadOnly,
                IoKind::Broken,
                IoKind::Broken
            ]
        );
        assert!(explain(&io::Error::from_raw_os_error(30)).contains("read-only"));
    }

    #[test]
    fn what_a_kill_left_is_known_by_its_name() {
        let left = [
            "0000000000000001.seg.tmp",
            ".0a.tmp",
            ".tmpX3f",
            "00000000000000000064.checkpoint.parquet#1",
        ];
        assert!(left.iter().all(|name| is_temporary(name)));
        let whole = [
            "0000000000000001.seg",
            "recent-00.parquet",
            "meta.json",
            "a#b",
            "tmp",
        ];
        assert!(!whole.iter().any(|name| is_temporary(name)));
    }

    #[test]
    fn a_failed_attempt_leaves_no_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.seg");
        // More than any file system has.
        assert!(Disk.create(&path, 1 << 62, b"head").is_err());
        assert_eq!(
            Disk.list(folder.path()).expect("readable"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn without_allocation_a_file_is_filled_with_zeros() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = options()
            .create(true)
            .truncate(true)
            .open(folder.path().join("x"))
            .expect("a file");
        write_zeros(&file, (2 << 20) + 5).expect("room");
        let bytes = fs::read(folder.path().join("x")).expect("readable");
        assert_eq!(
            (bytes.len(), bytes.iter().all(|b| *b == 0)),
            ((2 << 20) + 5, true)
        );
    }

    #[test]
    fn folders_are_made_with_those_above_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a/b/c");
        create_folders(&path).expect("made");
        create_folders(&path).expect("there");
        assert!(path.is_dir());
    }
}
