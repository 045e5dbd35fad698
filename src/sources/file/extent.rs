//! The input of a bounded run: the files that its first scan finds, up to the size that they have
//! then. Files that grow or appear faster than they are read would keep the run from ending.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::discover::{Role, Stamp};
use super::registry::PartitionId;

#[derive(Debug, Default)]
pub(super) struct Extent {
    /// By device and inode, the size in the first scan; none before it.
    sizes: Option<HashMap<(u64, u64), u64>>,
    /// The file at each path of the first scan, unless it was replaced since.
    paths: BTreeMap<PathBuf, (u64, u64)>,
    finished: BTreeSet<PartitionId>,
}

impl Extent {
    /// Removes files that the first scan did not find. Where one of those was replaced before it was
    /// read, and is at no other path, the new file takes its place with its present size, once.
    pub fn limit(
        &mut self,
        files: &mut BTreeMap<PathBuf, (Stamp, Role)>,
        is_read: impl Fn(&Path) -> bool,
    ) {
        let Some(sizes) = &mut self.sizes else {
            self.sizes = Some(
                files
                    .values()
                    .map(|(stamp, _)| (key(stamp), stamp.size))
                    .collect(),
            );
            self.paths = files
                .iter()
                .map(|(path, (stamp, _))| (path.clone(), key(stamp)))
                .collect();
            return;
        };
        let existing: BTreeSet<(u64, u64)> = files.values().map(|(stamp, _)| key(stamp)).collect();
        files.retain(|path, (stamp, _)| {
            let is_included = sizes.contains_key(&key(stamp));
            let is_replacement = !is_included
                && !is_read(path)
                && self
                    .paths
                    .remove(path)
                    .is_some_and(|old| !existing.contains(&old));
            if is_replacement {
                sizes.insert(key(stamp), stamp.size);
            }
            is_included || is_replacement
        });
    }

    /// The offset up to which a file is read.
    pub fn end(&self, stamp: &Stamp) -> Option<u64> {
        self.sizes.as_ref()?.get(&key(stamp)).copied()
    }

    /// Marks the file of a partition as read up to its end in this run.
    pub fn finish(&mut self, id: PartitionId) {
        self.finished.insert(id);
    }

    /// Whether [`Self::finish`] was called for the partition; false for a file without one.
    pub fn is_finished(&self, id: Option<PartitionId>) -> bool {
        id.is_some_and(|id| self.finished.contains(&id))
    }
}

fn key(stamp: &Stamp) -> (u64, u64) {
    (stamp.device, stamp.inode)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, u64, u64)]) -> BTreeMap<PathBuf, (Stamp, Role)> {
        let stamp = |inode, size| Stamp {
            device: 1,
            inode,
            size,
            modified: 0,
        };
        list.iter()
            .map(|(path, inode, size)| (PathBuf::from(path), (stamp(*inode, *size), Role::Member)))
            .collect()
    }

    #[test]
    fn a_bounded_run_excludes_later_files_and_growth() {
        let mut extent = Extent::default();
        let mut limit = |scanned: &[(&str, u64, u64)], read: &[&str]| {
            let mut files = files(scanned);
            extent.limit(&mut files, |path| {
                read.iter().any(|read| Path::new(read) == path)
            });
            let ends: Vec<_> = files
                .values()
                .map(|(stamp, _)| (stamp.inode, extent.end(stamp)))
                .collect();
            ends
        };
        assert_eq!(
            limit(&[("a", 1, 10), ("b", 2, 20)], &[]),
            [(1, Some(10)), (2, Some(20))]
        );
        // `a` grew and was rotated, another file took its name.
        assert_eq!(
            limit(&[("a", 3, 5), ("a.1", 1, 15), ("b", 2, 20)], &["a"]),
            [(1, Some(10)), (2, Some(20))]
        );
        // `b` was replaced before it was read: once.
        assert_eq!(limit(&[("b", 4, 7)], &[]), [(4, Some(7))]);
        assert_eq!(limit(&[("b", 5, 7)], &[]), []);
    }
}
