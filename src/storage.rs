//! The seam to the disk for everything Weir writes itself: positioned writes, syncs, atomic replacement.
//!
//! A file or a name is durable only when its folder has been synced too, so each function that makes a name does both.

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
    /// Data and the size needed to read it are on the disk when this returns. After an error nothing is known about them.
    fn sync(&self) -> io::Result<()>;
}

/// A folder tree.
pub trait Storage: Send + Sync + 'static {
    /// Makes a file of `size` allocated zero bytes that begins with `head`; its name appears only when both are on the disk.
    fn create(&self, path: &Path, size: u64, head: &[u8]) -> io::Result<Arc<dyn File>>;
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    fn open_read_only(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// File names in a folder, sorted; a folder that does not exist is empty.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Replaces the file by `bytes`: a reader, or a restart, sees the old or the new content and nothing between.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    fn create_folder(&self, folder: &Path) -> io::Result<()>;
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

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
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
        let temporary = temporary(path);
        let file = options().create(true).truncate(true).open(&temporary)?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size)?;
        file.write_all_at(head, 0)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_folder(parent(path))?;
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
        let temporary = temporary(path);
        let file = options().create(true).truncate(true).open(&temporary)?;
        file.write_all_at(bytes, 0)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_folder(parent(path))
    }

    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        if folder.is_dir() {
            return Ok(());
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        sync_folder(parent(folder))
    }
}
