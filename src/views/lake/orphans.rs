//! Files in a table's folder that its current version does not name: tombstones, which outside
//! readers may still read for a while, and what a crash left.

use std::collections::HashSet;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::LakeTable;
use super::compact::GRACE;
use super::error::InView;
use crate::views::ViewError;

impl LakeTable {
    /// Removes files that left the table at least `grace` ago, so that no query reads them any more.
    pub fn vacuum(&self, now_ms: i64, grace: Duration) -> Result<(), ViewError> {
        let mut delta = self.lock_delta();
        self.reload_if_needed(&mut delta)?;
        let is_expired = |at: i64| now_ms - at >= grace.as_millis() as i64;
        let expired: Vec<PathBuf> = delta
            .tombstones
            .iter()
            .filter(|(_, (at, _))| is_expired(*at))
            .map(|(p, _)| p.clone())
            .collect();
        for path in expired {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).in_view(&self.spec.name);
                }
                _ => drop(delta.tombstones.remove(&path)),
            }
        }
        Ok(())
    }

    /// Removes Parquet files that the table does not name: left by a crash, or replaced before a
    /// restart. A file younger than [`GRACE`] becomes a tombstone, because an outside reader may
    /// still read it. Must run before anything is written.
    pub(super) fn remove_orphans(&self) -> Result<(), ViewError> {
        let named: HashSet<PathBuf> = self
            .all_files()
            .iter()
            .map(|f| self.spec.root.join(&f.path))
            .collect();
        let now_ms = crate::clock::wall_clock_ms();
        let mut delta = self.lock_delta();
        for (path, metadata) in data_files(&self.spec.root).in_view(&self.spec.name)? {
            if named.contains(&path) {
                continue;
            }
            let age = metadata
                .modified()
                .map_or(Duration::ZERO, crate::clock::age);
            if age >= GRACE {
                std::fs::remove_file(&path).in_view(&self.spec.name)?;
            } else {
                delta
                    .tombstones
                    .insert(path, (now_ms - age.as_millis() as i64, metadata.len()));
            }
        }
        Ok(())
    }

    /// Bytes of files that the current version does not name: tombstones, and files of a commit
    /// under way.
    pub fn orphan_bytes(&self) -> u64 {
        let all: u64 = data_files(&self.spec.root)
            .unwrap_or_default()
            .iter()
            .map(|(_, m)| m.len())
            .sum();
        all.saturating_sub(self.all_files().iter().map(|f| f.bytes).sum())
    }
}

/// The Parquet files below a table's folder, without its log.
fn data_files(root: &Path) -> std::io::Result<Vec<(PathBuf, Metadata)>> {
    let (mut files, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let path = entry.path();
            let metadata = match entry.metadata() {
                // Removed in the meantime.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            if metadata.is_dir() {
                if path.file_name().is_some_and(|n| n != "_delta_log") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "parquet") {
                files.push((path, metadata));
            }
        }
    }
    Ok(files)
}
