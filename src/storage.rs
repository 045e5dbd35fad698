//! The seam to the disk for the log and the operators' snapshots: positioned writes, syncs, atomic
//! replacement. Views write through their libraries, with the helpers below.
//!
//! A new name is durable only once its folder is synced too, so each function that creates one does
//! both.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// An open file, read and written at positions.
pub trait File: Send + Sync {
    /// Writes all bytes at this offset; durable only after [`Self::sync`].
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Fills `bytes` from this offset.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the file ends before.
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
    /// Bytes in the file.
    fn size(&self) -> io::Result<u64>;
    /// Makes the data, and the size needed to read it, durable. After an error their state is
    /// unknown.
    fn sync(&self) -> io::Result<()>;
}

/// How large a file is, and when it was written last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStat {
    /// Its size, including bytes that were allocated and not written.
    pub bytes: u64,
    /// By the system's clock.
    pub modified: SystemTime,
}

/// A folder tree.
pub trait Storage: Send + Sync + 'static {
    /// Creates a file of `size` allocated bytes: `head`, then zeros. Its name appears only once
    /// both are durable.
    fn create(&self, path: &Path, size: u64, head: &[u8]) -> io::Result<Arc<dyn File>>;
    /// Opens an existing file to read and write.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Opens an existing file to read: works on a read-only file system as well.
    fn open_read_only(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// The whole content of a file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.open_read_only(path)?;
        let mut bytes = vec![0; usize::try_from(file.size()?).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }
    /// The size of a file, and when it was written last.
    fn stat(&self, path: &Path) -> io::Result<FileStat>;
    /// File names in a folder, sorted; a folder that does not exist is empty.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;
    /// Removes a file. Not synced: after a crash it may exist again.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Replaces the file's content atomically: a reader, or a restart, sees the old or the new one.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Creates the folder and missing parents, with durable names.
    fn create_folder(&self, folder: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
    /// Bytes free on the file system of this folder; `None` if it does not report them.
    fn free(&self, _folder: &Path) -> Option<u64> {
        None
    }
}

/// What a disk error means for callers that wait for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoKind {
    /// No space, or a quota exceeded: passes once something is removed.
    Full,
    /// A read-only file system: passes once it is mounted writable.
    ReadOnly,
    /// Anything else, above all a device that fails.
    Broken,
}

impl IoKind {
    /// Classifies by the kind that `std` derives from `errno`.
    pub fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly,
            _ => Self::Broken,
        }
    }
}

/// The error with a remedy.
pub fn explain(error: &io::Error) -> String {
    match IoKind::of(error) {
        IoKind::Full => {
            format!(
                "the disk is full ({error}); free some space, weir then continues automatically"
            )
        }
        IoKind::ReadOnly => {
            format!(
                "the file system is read-only ({error}); mount it writable, weir then continues automatically"
            )
        }
        IoKind::Broken if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
            format!("the disk failed ({error}); check the device")
        }
        IoKind::Broken => error.to_string(),
    }
}

/// How a message about a damaged file begins. Libraries turn errors into text; by this prefix the
/// message is found again.
const DAMAGED: &str = "damaged file: ";

/// A message about a damaged file: what is wrong, and the remedy.
pub fn damage(path: &Path, problem: &str, remedy: &str) -> String {
    format!("{DAMAGED}{}: {problem}; {remedy}", path.display())
}

/// The message about a damaged file in an error's text, if it has one.
pub fn damage_in(error: &str) -> Option<&str> {
    error.find(DAMAGED).map(|at| error[at..].trim_end())
}

/// How often a file that has the name of a temporary one is removed. More than one at a time means
/// that another process creates them.
const MAX_REMOVED: usize = 3;

/// The local file system. New folders have mode 0700, new files 0600.
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

/// Creates a folder and its missing parents, each with a durable name. After an error the new ones
/// are removed, so that the next attempt creates and syncs all of them.
pub fn create_folders(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let is_missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.is_dir();
    let missing: Vec<&Path> = folder.ancestors().take_while(is_missing).collect();
    let created = missing.iter().rev().try_for_each(|folder| {
        match fs::DirBuilder::new().mode(0o700).create(folder) {
            // Another thread created it first; its name is synced here too.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
            created => created?,
        }
        sync_folder(parent(folder))
    });
    if created.is_err() {
        for folder in missing {
            // A folder that another thread already uses is not empty, and stays.
            let _ = fs::remove_dir(folder);
        }
    }
    created
}

/// Bytes that an unprivileged process may still write to the file system of this folder; `None` if
/// it does not report them.
pub fn free(folder: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Total size in bytes of the file system of this folder; `None` if it does not report it.
pub fn capacity(folder: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    Some(stat.f_blocks.saturating_mul(stat.f_frsize))
}

/// Whether this is the name of a temporary file, of Weir, tantivy or `object_store`. Such files
/// remain if the process is killed while writing.
pub fn is_temporary(name: &str) -> bool {
    let is_staged = |(_, number): (&str, &str)| {
        !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    };
    name.ends_with(".tmp")
        || name.starts_with(".tmp")
        || name.rsplit_once('#').is_some_and(is_staged)
}

/// Removes temporary files below a folder and returns their bytes. No other process may be writing
/// there.
pub fn remove_temporaries(folder: &Path) -> u64 {
    let mut bytes = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            // Does not follow links.
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

/// Makes files and folders that this process creates from now on accessible to its user only,
/// including those created by libraries.
pub fn keep_private() {
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
}

/// Removes the permissions of other users below a folder: an earlier version granted some.
pub fn tighten(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            // Does not follow links.
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
                // Fails on files of another user.
                let _ = fs::set_permissions(entry.path(), fs::Permissions::from_mode(mode & 0o700));
            }
        }
    }
}

/// Allocates the file's bytes. If the file system does not support that, writes zeros.
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

/// Writes a file under a temporary name, syncs it, renames it, and makes the name durable: after a
/// crash there is the old file or the new one. It has mode 0600 before its first byte is written. A
/// failed attempt leaves no temporary file.
pub(crate) fn write_and_rename(
    path: &Path,
    write: impl FnOnce(&fs::File) -> io::Result<()>,
) -> io::Result<fs::File> {
    let temporary = temporary(path);
    let file = create_temporary(&temporary)?;
    let written = write(&file)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // The error that is reported is the first one.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    sync_folder(parent(path))?;
    Ok(file)
}

/// Creates a temporary file. What has its name already, such as what a kill left, is removed and
/// never opened: it may be a link to another file, or one that others have open.
fn create_temporary(path: &Path) -> io::Result<fs::File> {
    let mut removed = 0;
    loop {
        match options().create_new(true).open(path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && removed < MAX_REMOVED => {}
            created => return created,
        }
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => removed += 1,
        }
    }
}

/// The folder of a file.
pub(crate) fn parent(path: &Path) -> &Path {
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

    fn stat(&self, path: &Path) -> io::Result<FileStat> {
        let metadata = fs::metadata(path)?;
        Ok(FileStat {
            bytes: metadata.len(),
            modified: metadata.modified()?,
        })
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

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        sync_folder(folder)
    }

    fn free(&self, folder: &Path) -> Option<u64> {
        free(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_classified() {
        let kind_of = |errno: i32| IoKind::of(&io::Error::from_raw_os_error(errno));
        // ENOSPC, EDQUOT, EROFS, EIO, EACCES.
        let kinds = [28, 122, 30, 5, 13].map(kind_of);
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
    fn temporary_files_are_recognized_by_name() {
        let temporary = [
            "0000000000000001.seg.tmp",
            ".0a.tmp",
            ".tmpX3f",
            "00000000000000000064.checkpoint.parquet#1",
        ];
        assert!(temporary.iter().all(|name| is_temporary(name)));
        let permanent = [
            "0000000000000001.seg",
            "recent-00.parquet",
            "meta.json",
            "a#b",
            "tmp",
        ];
        assert!(!permanent.iter().any(|name| is_temporary(name)));
    }

    #[test]
    fn a_failed_attempt_leaves_no_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.seg");
        // Larger than any file system.
        assert!(Disk.create(&path, 1 << 62, b"head").is_err());
        assert_eq!(
            Disk.list(folder.path()).expect("readable"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn what_has_the_temporary_name_is_neither_followed_nor_truncated() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let (path, other, missing) = (at("x"), at("other"), at("missing"));
        fs::write(&other, "other").expect("a file");
        fs::set_permissions(&other, fs::Permissions::from_mode(0o644)).expect("own file");
        symlink(&other, at("x.tmp")).expect("a link");
        Disk.replace(&path, b"1").expect("replaced");
        symlink(&missing, at("x.tmp")).expect("a link");
        Disk.replace(&path, b"2").expect("replaced");
        fs::hard_link(&other, at("x.tmp")).expect("a link");
        Disk.replace(&path, b"3").expect("replaced");
        assert_eq!(fs::read(&other).expect("readable"), b"other");
        let metadata = fs::symlink_metadata(&path).expect("it exists");
        assert!(metadata.is_file());
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read(&path).expect("readable"), b"3");
        assert_eq!(Disk.list(folder.path()).expect("readable"), ["other", "x"]);
        // A folder is not removed.
        fs::create_dir(at("x.tmp")).expect("a folder");
        assert!(Disk.replace(&path, b"4").is_err());
        assert!(at("x.tmp").is_dir());
        assert_eq!(fs::read(&path).expect("readable"), b"3");
    }

    #[test]
    fn without_allocation_a_file_is_filled_with_zeros() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = options()
            .create(true)
            .truncate(true)
            .open(folder.path().join("x"))
            .expect("a file");
        write_zeros(&file, (2 << 20) + 5).expect("space");
        let bytes = fs::read(folder.path().join("x")).expect("readable");
        assert_eq!(
            (bytes.len(), bytes.iter().all(|b| *b == 0)),
            ((2 << 20) + 5, true)
        );
    }

    #[test]
    fn a_file_is_read_whole_with_its_size() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x");
        for content in [&b""[..], b"content"] {
            Disk.replace(&path, content).expect("written");
            assert_eq!(Disk.read(&path).expect("readable"), content);
            assert_eq!(
                Disk.stat(&path).expect("it exists").bytes,
                content.len() as u64
            );
        }
        let missing = Disk.read(&folder.path().join("y")).expect_err("missing");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn folders_are_created_with_their_parents() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a/b/c");
        create_folders(&path).expect("created");
        create_folders(&path).expect("exists");
        assert!(path.is_dir());
    }
}
