//! The data folder: what lies where, its lock, and the address at which a running server answers.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::RuntimeError;
use crate::storage::{create_folders, explain, remove_temporaries};

/// How often, and after what time, a folder that is in use is asked for again.
const READER_TRIES: usize = 20;
const READER_WAIT: Duration = Duration::from_millis(50);

/// Paths inside a data folder.
#[derive(Debug, Clone)]
pub struct Folder {
    pub root: PathBuf,
}

/// Where a running server answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Address {
    pub pid: u32,
    pub http: SocketAddr,
    pub tls: bool,
}

/// Holds the folder for this process while it lives.
pub struct Lock(#[expect(dead_code, reason = "the lock lives as long as the file is open")] File);

impl Folder {
    /// The folder, made if it is not there.
    pub fn create(root: &Path) -> Result<Self, RuntimeError> {
        let failed = |e: std::io::Error| RuntimeError::Failed(format!("{}: {}", root.display(), explain(&e)));
        let folder = Self { root: root.to_owned() };
        for path in folder.parts() {
            create_folders(&path).map_err(failed)?;
        }
        // Absolute, so that nothing depends on the working directory later.
        Ok(Self { root: root.canonicalize().map_err(failed)? })
    }

    fn parts(&self) -> [PathBuf; 5] {
        [self.log(), self.operators(), self.lake(), self.search(), self.state()]
    }

    /// Removes what killed processes left: files that were being written, intermediate results of queries. The folder must be held
    /// for writing; views being rebuilt have locks of their own.
    pub fn remove_leftovers(&self, _lock: &Lock) {
        let bytes: u64 = self.parts().iter().map(|part| remove_temporaries(part)).sum();
        if bytes > 0 {
            tracing::info!(bytes, "files that a killed process was writing are removed");
        }
        let _ = fs::remove_file(self.address_path().with_extension("json.tmp"));
        let _ = fs::remove_dir_all(self.spill());
    }

    /// The folder, which must be there.
    pub fn existing(root: &Path) -> Result<Self, RuntimeError> {
        let root = root.canonicalize().map_err(|_| {
            RuntimeError::Config(format!(
                "there is no data folder {}; start `weir run` or `weir demo` first, or name a configuration with -c",
                root.display()
            ))
        })?;
        Ok(Self { root })
    }

    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// Snapshots of the operators.
    pub fn operators(&self) -> PathBuf {
        self.root.join("operators")
    }

    pub fn lake(&self) -> PathBuf {
        self.root.join("lake")
    }

    pub fn search(&self) -> PathBuf {
        self.root.join("search")
    }

    /// Counts and places.
    pub fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    /// Views being rebuilt.
    pub fn rebuilds(&self) -> PathBuf {
        self.root.join("rebuild")
    }

    /// Intermediate results of queries; emptied at every start.
    pub fn spill(&self) -> PathBuf {
        self.root.join("spill")
    }

    fn address_path(&self) -> PathBuf {
        self.root.join("address.json")
    }

    fn lock_file(&self) -> Result<File, RuntimeError> {
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.root.join("lock");
        fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| RuntimeError::Failed(format!("{}: {e}", path.display())))
    }

    /// Takes the folder for writing: alone.
    pub fn lock(&self) -> Result<Lock, RuntimeError> {
        let mut file = self.lock_file()?;
        let mut locked = file.try_lock();
        for _ in 0..READER_TRIES {
            if !matches!(locked, Err(TryLockError::WouldBlock)) {
                break;
            }
            // A verb that reads the folder holds it for a moment only.
            std::thread::sleep(READER_WAIT);
            locked = file.try_lock();
        }
        self.taken(locked)?;
        let _ = file.set_len(0).and_then(|()| file.write_all(std::process::id().to_string().as_bytes()));
        Ok(Lock(file))
    }

    /// Takes the folder for reading: together with other readers.
    pub fn lock_shared(&self) -> Result<Lock, RuntimeError> {
        let file = self.lock_file()?;
        self.taken(file.try_lock_shared())?;
        Ok(Lock(file))
    }

    fn taken(&self, result: Result<(), TryLockError>) -> Result<(), RuntimeError> {
        match result {
            Ok(()) => Ok(()),
            Err(TryLockError::Error(e)) => Err(RuntimeError::Failed(format!("{}: {e}", self.root.display()))),
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = self.lock_file().map(|mut f| f.read_to_string(&mut pid));
                let pid = if pid.is_empty() { "another process".to_owned() } else { format!("process {pid}") };
                Err(RuntimeError::InUse(format!(
                    "{} is in use by {pid}; stop it first, or use another data folder",
                    self.root.display()
                )))
            }
        }
    }

    pub fn publish_address(&self, address: &Address) -> Result<(), RuntimeError> {
        use crate::storage::{Disk, Storage};
        let text = serde_json::to_vec(address).expect("plain data becomes JSON");
        let path = self.address_path();
        Disk.replace(&path, &text).map_err(|e| RuntimeError::Failed(format!("{}: {e}", path.display())))
    }

    pub fn remove_address(&self) {
        let _ = fs::remove_file(self.address_path());
    }

    /// Where a server says it answers; it may be gone.
    pub fn address(&self) -> Option<Address> {
        serde_json::from_slice(&fs::read(self.address_path()).ok()?).ok()
    }
}
