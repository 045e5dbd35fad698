//! What a run that ends reads: the files that are there when it first looks, up to the length that
//! they have then. Files that grow or appear faster than they are read would keep it going for
//! ever.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::discover::{Role, Stamp};
use super::known::Id;

#[derive(Debug, Default)]
pub struct Extent {
    /// By device and inode, the size at the first look; none before it.
    sizes: Option<HashMap<(u64, u64), u64>>,
    /// Paths of the first look with the file that was there, where it was not replaced since.
    paths: BTreeMap<PathBuf, (u64, u64)>,
    finished: BTreeSet<Id>,
}

impl Extent {
    /// Leaves of what a walk found the files of the first one. Where one was replaced before it was
    /// read, and is nowhere else, the new file counts as it is now, once.
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
        let there: BTreeSet<(u64, u64)> = files.values().map(|(stamp, _)| key(stamp)).collect();
        files.retain(|path, (stamp, _)| {
            let is_there = sizes.contains_key(&key(stamp));
            let is_new = !is_there
                && !is_read(path)
                && self
                    .paths
                    .remove(path)
                    .is_some_and(|old| !there.contains(&old));
            if is_new {
                sizes.insert(key(stamp), stamp.size);
            }
            is_there || is_new
        });
    }

    /// Up to where a file is read.
    pub fn end(&self, stamp: &Stamp) -> Option<u64> {
        self.sizes.as_ref()?.get(&key(stamp)).copied()
    }

    /// Notes that the file of a partition was read as far as it is to be.
    pub fn finish(&mut self, id: Id) {
        self.finished.insert(id);
    }

    pub fn is_finished(&self, id: Option<Id>) -> bool {
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
    fn later_files_and_growth_are_no_part_of_a_run_that_ends() {
        let mut extent = Extent::default();
        let mut left = |found: &[(&str, u64, u64)], read: &[&str]| {
            let mut files = files(found);
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
            left(&[("a", 1, 10), ("b", 2, 20)], &[]),
            [(1, Some(10)), (2, Some(20))]
        );
        // `a` grew and was rotated, another file took its name.
        assert_eq!(
            left(&[("a", 3, 5), ("a.1", 1, 15), ("b", 2, 20)], &["a"]),
            [(1, Some(10)), (2, Some(20))]
        );
        // `b` was replaced before it was read: once.
        assert_eq!(left(&[("b", 4, 7)], &[]), [(4, Some(7))]);
        assert_eq!(left(&[("b", 5, 7)], &[]), []);
    }
}
