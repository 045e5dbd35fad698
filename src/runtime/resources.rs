//! What the data folder takes of the disk, by part, and the process of the memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::maintenance::folder_bytes;
use crate::config::Config;

/// How old a measurement of the disk may be; longer where it takes long.
const MAX_AGE: Duration = Duration::from_secs(10);
/// A measurement is used for this many times as long as it took.
const AGE_FACTOR: u32 = 100;
/// The parts of a data folder that are shown by their names; the rest is `other`.
const PARTS: [&str; 8] = [
    "lake",
    "log",
    "notebooks",
    "operators",
    RESERVE,
    "search",
    "sinks",
    "state",
];
/// Held for a full disk, and not counted in its limit.
const RESERVE: &str = "reserve";

/// Measures a data folder and the process.
pub struct Resources {
    folder: PathBuf,
    disk_limit: Option<u64>,
    memory_limit: u64,
    disk: Mutex<Option<Measurement>>,
}

/// Bytes of the parts of the folder, when they were read, and how long that took.
struct Measurement {
    at: Instant,
    took: Duration,
    parts: BTreeMap<&'static str, u64>,
}

/// What is taken, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the disk, by part of the data folder; a few seconds old.
    pub disk: BTreeMap<&'static str, u64>,
    /// `[limits] disk`.
    pub disk_limit: Option<u64>,
    /// Of the memory, by the whole process; 0 where the system does not report it.
    pub memory: u64,
    /// `[limits] memory`.
    pub memory_limit: u64,
}

impl Usage {
    /// Of the disk, as `[limits] disk` counts it.
    pub fn disk_bytes(&self) -> u64 {
        let counted = self.disk.iter().filter(|(part, _)| **part != RESERVE);
        counted.map(|(_, bytes)| bytes).sum()
    }
}

impl Resources {
    /// Of the data folder `folder` and this process.
    pub fn new(config: &Config, folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            disk_limit: config.limits.disk,
            memory_limit: config.limits.memory,
            disk: Mutex::default(),
        }
    }

    /// What is taken now. Reads the folder, if that was not done lately.
    pub fn measure(&self) -> Usage {
        Usage {
            disk: self.disk(Instant::now()),
            disk_limit: self.disk_limit,
            memory: resident_bytes(),
            memory_limit: self.memory_limit,
        }
    }

    fn disk(&self, now: Instant) -> BTreeMap<&'static str, u64> {
        let mut last = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Measurement { at, took, parts }) = &*last
            && now.saturating_duration_since(*at) < MAX_AGE.max(*took * AGE_FACTOR)
        {
            return parts.clone();
        }
        let begun = Instant::now();
        let parts = disk_parts(&self.folder);
        *last = Some(Measurement {
            at: now,
            took: begun.elapsed(),
            parts: parts.clone(),
        });
        parts
    }
}

/// Bytes of each part of a data folder.
fn disk_parts(folder: &Path) -> BTreeMap<&'static str, u64> {
    let mut parts: BTreeMap<&'static str, u64> = PARTS.map(|part| (part, 0)).into();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let bytes = match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
            Ok(metadata) => metadata.len(),
            // Removed since it was listed.
            Err(_) => continue,
        };
        let name = entry.file_name();
        let part = PARTS.into_iter().find(|part| name == *part);
        *parts.entry(part.unwrap_or("other")).or_default() += bytes;
    }
    parts
}

/// Bytes of the process's memory that are resident.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_folder_is_counted_in_one_part() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |path: &str, bytes: usize| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(path, vec![b'x'; bytes]).expect("a file");
        };
        write("lake/rows/a.parquet", 7);
        write("lake/b", 1);
        write("log/000", 20);
        write("reserve", 100);
        write("spill/x", 3);
        write("address.json", 4);
        let parts = disk_parts(folder.path());
        for (part, bytes) in [
            ("lake", 8),
            ("log", 20),
            ("reserve", 100),
            ("other", 7),
            ("search", 0),
        ] {
            assert_eq!(parts[part], bytes, "{part}");
        }
        let usage = Usage {
            disk: parts,
            ..Usage::default()
        };
        assert_eq!(usage.disk_bytes(), 35);
    }

    #[test]
    fn the_disk_is_measured_again_when_the_measurement_is_old() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = crate::config::parse(None, String::new(), None, &|_| None).expect("defaults");
        let resources = Resources::new(&config, folder.path());
        let start = Instant::now();
        assert_eq!(resources.disk(start)["log"], 0);
        std::fs::create_dir(folder.path().join("log")).expect("a folder");
        std::fs::write(folder.path().join("log/0"), b"xyz").expect("a file");
        assert_eq!(resources.disk(start + MAX_AGE / 2)["log"], 0);
        assert_eq!(resources.disk(start + 1_000 * MAX_AGE)["log"], 3);
    }
}
