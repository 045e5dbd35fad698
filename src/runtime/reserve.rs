//! A file that reserves room on the disk. When the disk is full it is removed, so that a snapshot
//! and the views' commits succeed, after which the log can be trimmed.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::storage::{Disk, Storage};

const NAME: &str = "reserve";
const MAX_BYTES: u64 = 8 << 20;
const MIN_BYTES: u64 = 1 << 20;
/// On a small disk the reserve is this part of it, not a fixed size.
const DISK_PART: u64 = 64;
/// The reserve is taken again when this many times its size is free.
const RESTORE_RATIO: u64 = 4;

/// Bytes of the reserve, and of the disk that records leave free: at most a segment of the log, and
/// a small part of a small disk or limit. Pure.
pub fn bytes(segment: u64, disk: Option<u64>) -> u64 {
    MAX_BYTES
        .min(disk.map_or(MAX_BYTES, |disk| disk / DISK_PART))
        .max(MIN_BYTES)
        .min(segment)
}

/// [`bytes()`] for a data folder.
pub fn bytes_of(config: &Config) -> u64 {
    let disk = crate::storage::capacity(&config.data);
    bytes(
        config.log.segment,
        disk.into_iter().chain(config.limits.disk).min(),
    )
}

/// Bytes that the reserve of a data folder takes now.
pub fn held_bytes(folder: &Path) -> u64 {
    std::fs::metadata(folder.join(NAME)).map_or(0, |m| m.len())
}

pub struct Reserve {
    folder: PathBuf,
    bytes: u64,
    is_held: bool,
}

impl Reserve {
    /// The reserve of a data folder, taken if there is room.
    pub fn open(folder: &Path, bytes: u64) -> Self {
        let is_held = held_bytes(folder) >= bytes;
        let mut reserve = Self {
            folder: folder.to_owned(),
            bytes,
            is_held,
        };
        reserve.restore();
        reserve
    }

    /// Whether so little is free that the log should be trimmed as far as possible.
    pub fn is_short(&self) -> bool {
        Disk.free(&self.folder)
            .is_some_and(|free| free < 2 * self.bytes)
    }

    /// Frees its room for snapshots and commits. True: it held some.
    pub fn release(&mut self) -> bool {
        self.is_held && {
            self.is_held = false;
            let released = std::fs::remove_file(self.folder.join(NAME)).is_ok();
            tracing::warn!(
                bytes = self.bytes,
                "the disk is full; the reserve is released for snapshots and commits"
            );
            released
        }
    }

    /// Releases it where hardly anything is free, and takes it again where there is plenty.
    pub fn adapt(&mut self) {
        if Disk
            .free(&self.folder)
            .is_some_and(|free| free < self.bytes / 2)
        {
            self.release();
        } else {
            self.restore();
        }
    }

    fn restore(&mut self) {
        let has_plenty = || {
            Disk.free(&self.folder)
                .is_none_or(|free| free >= RESTORE_RATIO * self.bytes)
        };
        if !self.is_held && has_plenty() {
            // If it fails, the next call tries again.
            self.is_held = Disk
                .create(&self.folder.join(NAME), self.bytes, &[])
                .is_ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_disk_has_a_small_reserve() {
        const MIB: u64 = 1 << 20;
        let reserve = |segment: u64, disk: u64| bytes(segment * MIB, Some(disk * MIB));
        assert_eq!(
            [
                reserve(64, 10_000),
                reserve(4, 10_000),
                reserve(64, 320),
                reserve(64, 10),
                reserve(1, 10_000)
            ],
            [8, 4, 5, 1, 1].map(|m| m * MIB)
        );
        assert_eq!(bytes(64 * MIB, None), 8 * MIB);
    }

    #[test]
    fn the_reserve_is_taken_released_and_taken_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let size = || {
            std::fs::metadata(folder.path().join(NAME))
                .map(|m| m.len())
                .ok()
        };
        let mut reserve = Reserve::open(folder.path(), 4096);
        assert_eq!(size(), Some(4096));
        assert!(reserve.release() && !reserve.release());
        assert_eq!(size(), None);
        reserve.adapt();
        assert_eq!(size(), Some(4096));
        assert!(Reserve::open(folder.path(), 4096).is_held);
    }
}
