//! A file that takes room on the disk for nothing, until there is none: released, it lets a
//! snapshot and the views' commits through, after which the log can be trimmed.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::storage::{Disk, Storage};

const NAME: &str = "reserve";
const MAX_BYTES: u64 = 8 << 20;
const MIN_BYTES: u64 = 1 << 20;
/// A small disk leaves this part of itself alone, not a fixed size that it would miss.
const SHARE: u64 = 64;
/// The reserve is taken again when this many times as much is free.
const PLENTY: u64 = 4;

/// Bytes of the reserve, and of the disk that records leave alone: no more than a segment of the
/// log, and little of a disk, or of its limit, that is small. Pure.
pub fn bytes(segment: u64, disk: Option<u64>) -> u64 {
    MAX_BYTES
        .min(disk.map_or(MAX_BYTES, |disk| disk / SHARE))
        .max(MIN_BYTES)
        .min(segment)
}

/// [`bytes`] for a data folder.
pub fn bytes_of(config: &Config) -> u64 {
    let disk = crate::storage::capacity(&config.data);
    bytes(
        config.log.segment,
        disk.into_iter().chain(config.limits.disk).min(),
    )
}

/// Bytes that the reserve of a data folder takes at present.
pub fn held(folder: &Path) -> u64 {
    std::fs::metadata(folder.join(NAME)).map_or(0, |m| m.len())
}

pub struct Reserve {
    folder: PathBuf,
    bytes: u64,
    is_held: bool,
}

impl Reserve {
    /// The reserve of a data folder, as it was left.
    pub fn open(folder: &Path, bytes: u64) -> Self {
        let is_held = held(folder) >= bytes;
        let mut reserve = Self {
            folder: folder.to_owned(),
            bytes,
            is_held,
        };
        reserve.restore();
        reserve
    }

    /// Whether so little is left that the log should give back what it can.
    pub fn is_short(&self) -> bool {
        Disk.free(&self.folder)
            .is_some_and(|free| free < 2 * self.bytes)
    }

    /// Gives the room to whoever needs it now. True: there was some.
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

    /// Releases it where hardly anything is left, and takes it again where there is plenty.
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
                .is_none_or(|free| free >= PLENTY * self.bytes)
        };
        if !self.is_held && has_plenty() {
            // Where it fails there is none; the next time tries again.
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
    fn a_small_disk_leaves_less_alone() {
        const MIB: u64 = 1 << 20;
        let of = |segment: u64, disk: u64| bytes(segment * MIB, Some(disk * MIB));
        assert_eq!(
            [
                of(64, 10_000),
                of(4, 10_000),
                of(64, 320),
                of(64, 10),
                of(1, 10_000)
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
