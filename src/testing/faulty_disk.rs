//! A disk on which the n-th operation and all later ones fail, and which can lose unsynced writes,
//! as in a power failure.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::storage::{Disk, File, FileStat, Storage};

#[derive(Default)]
struct State {
    /// Operations that still succeed.
    remaining: u64,
    /// Ranges written since the last sync: file, offset, and the bytes before.
    unsynced: Vec<(PathBuf, u64, Vec<u8>)>,
}

/// The local disk with faults. Clones share the number of operations that still succeed.
#[derive(Clone)]
pub struct FaultyDisk(Arc<Mutex<State>>);

struct FaultyFile {
    inner: Arc<dyn File>,
    path: PathBuf,
    disk: FaultyDisk,
}

impl FaultyDisk {
    /// Lets `operations` succeed; the next one fails.
    pub fn failing_at(operations: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            remaining: operations,
            unsynced: Vec::new(),
        })))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn operation(&self) -> io::Result<()> {
        let mut state = self.lock();
        if state.remaining == 0 {
            return Err(io::Error::other("simulated disk failure"));
        }
        state.remaining -= 1;
        Ok(())
    }

    /// Undoes every write that was not synced.
    pub fn lose_unsynced_writes(&self) {
        for (path, offset, before) in self.lock().unsynced.drain(..).rev() {
            if let Ok(file) = Disk.open(&path) {
                let _ = file.write_all_at(&before, offset);
            }
        }
    }

    fn wrap(&self, path: &Path, inner: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(FaultyFile {
            inner,
            path: path.to_owned(),
            disk: self.clone(),
        })
    }
}

impl File for FaultyFile {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut before = vec![0; bytes.len()];
        self.inner.read_exact_at(&mut before, offset)?;
        let result = self.disk.operation();
        // A failing write leaves half of its bytes.
        let written = if result.is_ok() {
            bytes
        } else {
            &bytes[..bytes.len() / 2]
        };
        self.disk
            .lock()
            .unsynced
            .push((self.path.clone(), offset, before));
        self.inner.write_all_at(written, offset)?;
        result
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_exact_at(bytes, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.operation()?;
        self.inner.sync()?;
        self.disk
            .lock()
            .unsynced
            .retain(|(path, ..)| *path != self.path);
        Ok(())
    }
}

impl Storage for FaultyDisk {
    fn create(&self, path: &Path, size: u64, head: &[u8]) -> io::Result<Arc<dyn File>> {
        self.operation()?;
        Ok(self.wrap(path, Disk.create(path, size, head)?))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.wrap(path, Disk.open(path)?))
    }

    fn open_read_only(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Disk.open_read_only(path)
    }

    fn stat(&self, path: &Path) -> io::Result<FileStat> {
        Disk.stat(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        Disk.list(folder)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.operation()?;
        Disk.remove(path)
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.operation()?;
        Disk.replace(path, bytes)
    }

    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        Disk.create_folder(folder)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.operation()?;
        Disk.sync_folder(folder)
    }

    fn free(&self, folder: &Path) -> Option<u64> {
        Disk.free(folder)
    }
}
