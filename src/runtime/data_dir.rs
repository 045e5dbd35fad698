//! The data folder: its parts, its lock, and the address at which a running server answers.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::RuntimeError;
use crate::storage::{IoKind, create_folders, explain, keep_private, remove_temporaries, tighten};

/// How often taking a folder that is in use is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// How long a process that works on the folder may take to release it.
const WRITER_PATIENCE: Duration = Duration::from_secs(1);
/// How long those that read the folder may take to end: longer than a query may run by default.
const READER_PATIENCE: Duration = Duration::from_secs(45);
/// How often waiting is logged.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Paths inside a data folder.
#[derive(Debug, Clone)]
pub struct DataDir {
    /// Absolute, and without links, once [`DataDir::create`] or [`DataDir::existing`] has returned it.
    pub root: PathBuf,
}

/// Where a running server answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Address {
    /// The server's process.
    pub pid: u32,
    /// Where it listens, for HTTP or, if `tls`, HTTPS.
    pub http: SocketAddr,
    /// Whether it has a certificate.
    pub tls: bool,
    /// Proves to the server that its client can read this folder.
    #[serde(default)]
    pub key: String,
}

/// Holds the folder for this process until it is dropped.
pub struct Lock(#[expect(dead_code, reason = "the lock lives as long as the file is open")] File);

impl DataDir {
    /// The folder, created if it does not exist. From then on all files that the process creates are
    /// accessible to its user only.
    pub fn create(root: &Path) -> Result<Self, RuntimeError> {
        let failed = |e: std::io::Error| {
            RuntimeError::Failed(format!(
                "{}: {}; `data` in the configuration, or WEIR_DATA, names another data folder",
                root.display(),
                explain(&e)
            ))
        };
        // Libraries create files with the permissions of the process.
        keep_private();
        let folder = Self {
            root: root.to_owned(),
        };
        for path in folder.parts() {
            create_folders(&path).map_err(failed)?;
        }
        // Absolute, so that nothing depends on the working directory later.
        Ok(Self {
            root: root.canonicalize().map_err(failed)?,
        })
    }

    fn parts(&self) -> [PathBuf; 5] {
        [
            self.log(),
            self.operators(),
            self.lake(),
            self.search(),
            self.state(),
        ]
    }

    /// Removes what killed processes left: files that were being written, intermediate results of
    /// queries and sources. Needs the write lock. Builds of views have locks of their own.
    pub fn remove_leftovers(&self, _lock: &Lock) {
        tighten(&self.root);
        let parts = self.parts().into_iter().chain([self.notebooks()]);
        let bytes: u64 = parts.map(|part| remove_temporaries(&part)).sum();
        if bytes > 0 {
            tracing::info!(bytes, "removed files that a killed process was writing");
        }
        let _ = fs::remove_file(self.address_path().with_extension("json.tmp"));
        let _ = fs::remove_dir_all(self.spill());
        let _ = fs::remove_dir_all(self.sort());
    }

    /// The folder, which must exist.
    pub fn existing(root: &Path) -> Result<Self, RuntimeError> {
        let root = root.canonicalize().map_err(|_| {
            RuntimeError::Config(format!(
                "the data folder {} does not exist; start `weir run` or `weir demo` first, or name a configuration with -c",
                root.display()
            ))
        })?;
        Ok(Self { root })
    }

    /// Segments of the log.
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// Snapshots of the operators.
    pub fn operators(&self) -> PathBuf {
        self.root.join("operators")
    }

    /// One Delta table per folder.
    pub fn lake(&self) -> PathBuf {
        self.root.join("lake")
    }

    /// One index per stream.
    pub fn search(&self) -> PathBuf {
        self.root.join("search")
    }

    /// Counts and places.
    pub fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    /// Cursors and refused rows of sinks.
    pub fn sinks(&self) -> PathBuf {
        self.root.join("sinks")
    }

    /// Saved notebooks.
    pub fn notebooks(&self) -> PathBuf {
        self.root.join("notebooks")
    }

    /// Views being rebuilt.
    pub fn rebuilds(&self) -> PathBuf {
        self.root.join("rebuild")
    }

    /// Intermediate results of queries; emptied at every start.
    pub fn spill(&self) -> PathBuf {
        self.root.join("spill")
    }

    /// What sources write while they sort; emptied at every start.
    pub fn sort(&self) -> PathBuf {
        self.root.join("sort")
    }

    fn address_path(&self) -> PathBuf {
        self.root.join("address.json")
    }

    fn try_open_lock(&self, name: &str) -> std::io::Result<File> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = fs::OpenOptions::new();
        options
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(self.root.join(name))
    }

    fn open_lock(&self, name: &str) -> Result<File, RuntimeError> {
        let failed = |e: std::io::Error| {
            RuntimeError::Failed(format!(
                "{}: {}",
                self.root.join(name).display(),
                explain(&e)
            ))
        };
        self.try_open_lock(name).map_err(failed)
    }

    fn lock_file(&self) -> Result<File, RuntimeError> {
        self.open_lock("lock")
    }

    /// Held exclusively by a process that waits for the folder: new readers give way to it.
    fn intent_file(&self) -> Result<File, RuntimeError> {
        self.open_lock("lock.intent")
    }

    /// Takes the folder for writing: alone. Waits for its readers, while new ones give way.
    pub fn lock(&self) -> Result<Lock, RuntimeError> {
        let intent = self.intent_file()?;
        let begun = Instant::now();
        // A reader holds it while it takes the folder, for a moment.
        while let Err(error) = intent.try_lock() {
            if begun.elapsed() >= WRITER_PATIENCE || matches!(error, TryLockError::Error(_)) {
                return self.check_locked(Err(error)).map(|()| Lock(intent));
            }
            std::thread::sleep(RETRY_INTERVAL / 10);
        }
        let mut file = self.lock_file()?;
        let mut reported: Option<Instant> = None;
        while let Err(error) = file.try_lock() {
            let waited = begun.elapsed();
            // Only readers share it.
            let has_readers = file.try_lock_shared().is_ok() && file.unlock().is_ok();
            let patience = if has_readers {
                READER_PATIENCE
            } else {
                WRITER_PATIENCE
            };
            if waited >= patience || matches!(error, TryLockError::Error(_)) {
                return if has_readers {
                    Err(self.still_read(&file))
                } else {
                    self.check_locked(Err(error)).map(|()| Lock(file))
                };
            }
            if has_readers
                && waited >= WRITER_PATIENCE
                && reported.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL)
            {
                tracing::info!(by = holders(&file), folder = %self.root.display(), "the folder is being read; waiting for the readers to end");
                reported = Some(Instant::now());
            }
            std::thread::sleep(RETRY_INTERVAL);
        }
        let _ = file
            .set_len(0)
            .and_then(|()| file.write_all(std::process::id().to_string().as_bytes()));
        Ok(Lock(file))
    }

    /// Takes the folder for reading: together with other readers, but not while a process waits to
    /// work on it.
    pub fn lock_shared(&self) -> Result<Lock, RuntimeError> {
        let Some((intent, file)) = self.files_to_read()? else {
            return File::open(&self.root)
                .map(Lock)
                .map_err(|e| RuntimeError::Failed(format!("{}: {e}", self.root.display())));
        };
        match intent.try_lock_shared() {
            Err(TryLockError::WouldBlock) => {
                let by = holders(&intent);
                let root = self.root.display();
                return Err(RuntimeError::InUse(format!(
                    "{root} is about to be used by {by}; try again in a moment"
                )));
            }
            locked => self.check_locked(locked)?,
        }
        self.check_locked(file.try_lock_shared())?;
        Ok(Lock(file))
    }

    /// The files of both locks for a reader. None where they are missing in a read-only folder, on
    /// which no process can work.
    fn files_to_read(&self) -> Result<Option<(File, File)>, RuntimeError> {
        let open = |name: &str| {
            let path = self.root.join(name);
            let failed = |e: std::io::Error| {
                RuntimeError::Failed(format!("{}: {}", path.display(), explain(&e)))
            };
            match self.try_open_lock(name) {
                Err(error) if is_read_only(&error) => match File::open(&path) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    file => file.map(Some).map_err(failed),
                },
                opened => opened.map(Some).map_err(failed),
            }
        };
        Ok(open("lock.intent")?.zip(open("lock")?))
    }

    /// Whether a process waits to work on the folder.
    pub fn is_wanted(&self) -> bool {
        self.intent_file()
            .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    fn still_read(&self, file: &File) -> RuntimeError {
        RuntimeError::InUse(format!(
            "{} is still being read by {} after {} s; end it, or start again later",
            self.root.display(),
            holders(file),
            READER_PATIENCE.as_secs()
        ))
    }

    fn check_locked(&self, result: Result<(), TryLockError>) -> Result<(), RuntimeError> {
        match result {
            Ok(()) => Ok(()),
            Err(TryLockError::Error(e)) => Err(RuntimeError::Failed(format!(
                "{}: {e}",
                self.root.display()
            ))),
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = self.lock_file().map(|mut f| f.read_to_string(&mut pid));
                let pid = if pid.is_empty() {
                    "another process".to_owned()
                } else {
                    format!("process {pid}")
                };
                Err(RuntimeError::InUse(format!(
                    "{} is in use by {pid}; stop it first, or use another data folder",
                    self.root.display()
                )))
            }
        }
    }

    /// Writes where this process answers, atomically.
    pub fn publish_address(&self, address: &Address) -> Result<(), RuntimeError> {
        use crate::storage::{Disk, Storage};
        let text = serde_json::to_vec(address).expect("plain data becomes JSON");
        let path = self.address_path();
        Disk.replace(&path, &text)
            .map_err(|e| RuntimeError::Failed(format!("{}: {e}", path.display())))
    }

    /// Withdraws what [`Self::publish_address`] wrote; a killed process leaves it.
    pub fn remove_address(&self) {
        let _ = fs::remove_file(self.address_path());
    }

    /// Where a server answers, as it published; it may be gone.
    pub fn address(&self) -> Option<Address> {
        serde_json::from_slice(&fs::read(self.address_path()).ok()?).ok()
    }
}

/// Whether a file could not be opened for writing because none there can be: the file system is
/// read-only or full, or the user may not write.
fn is_read_only(error: &std::io::Error) -> bool {
    IoKind::of(error) != IoKind::Broken || error.kind() == std::io::ErrorKind::PermissionDenied
}

/// The processes that have locked a file, as far as the system shows them.
fn holders(file: &File) -> String {
    use std::os::unix::fs::MetadataExt;
    let inode = file.metadata().map_or(0, |m| m.ino());
    let pids = pids_of(
        &fs::read_to_string("/proc/locks").unwrap_or_default(),
        inode,
    );
    match pids.as_slice() {
        [] => "another process".into(),
        [pid] => format!("process {pid}"),
        _ => format!(
            "processes {}",
            pids.iter()
                .map(u32::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        ),
    }
}

/// Processes other than this one that hold a lock on an inode, from the lines of `/proc/locks`. Pure.
fn pids_of(locks: &str, inode: u64) -> Vec<u32> {
    let inode = format!(":{inode}");
    let pid_of = |line: &str| {
        // number: FLOCK ADVISORY READ pid major:minor:inode start end
        let mut words = line.split_whitespace().skip(1);
        let (kind, pid, file) = (words.next()?, words.nth(2)?, words.next()?);
        let pid = pid
            .parse::<u32>()
            .ok()
            .filter(|pid| *pid > 0 && *pid != std::process::id())?;
        (kind == "FLOCK" && file.ends_with(&inode)).then_some(pid)
    };
    let mut pids: Vec<u32> = locks.lines().filter_map(pid_of).collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holders_of_a_lock_are_read_from_proc_locks() {
        let locks = "1: FLOCK  ADVISORY  READ 4000001 08:01:42 0 EOF\n2: POSIX  ADVISORY  WRITE 7 08:01:42 0 EOF\n\
                     3: FLOCK  ADVISORY  READ 4000002 08:01:42 0 EOF\n3: -> FLOCK  ADVISORY  READ 5 08:01:42 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 4000003 08:01:142 0 EOF\n5: FLOCK  ADVISORY  READ 0 08:01:42 0 EOF\n";
        assert_eq!(pids_of(locks, 42), [4_000_001, 4_000_002]);
        assert!(pids_of("nonsense\n", 42).is_empty());
    }

    #[test]
    fn readers_give_way_to_a_process_that_waits() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = DataDir::create(root.path()).expect("created");
        let reader = folder.lock_shared().expect("free");
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| folder.lock());
            while !folder.is_wanted() {
                std::thread::yield_now();
            }
            // The reader that was first continues; another one is refused.
            assert!(matches!(folder.lock_shared(), Err(RuntimeError::InUse(_))));
            drop(reader);
            let held = writer
                .join()
                .expect("no panic")
                .expect("the reader has ended");
            assert!(!folder.is_wanted());
            let refused = folder
                .lock_shared()
                .map(drop)
                .expect_err("it is held")
                .to_string();
            assert!(
                refused.contains(&format!("in use by process {}", std::process::id())),
                "{refused}"
            );
            drop(held);
        });
        folder.lock_shared().expect("free again");
    }
}
