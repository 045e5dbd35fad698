//! The partitions of a source, each the content of one file: found by inode, by path, or by how the
//! content begins.

use std::collections::{BTreeMap, HashMap};

use super::content::Trail;
use super::identity::{partition_name, path_of};
use crate::operators::PartitionState;
use crate::wal::FileIdentity;

/// Partitions whose last bytes are kept, so that a copy which is a little shorter is recognized.
const MAX_TRAILS: usize = 64;

pub type Id = usize;

/// The content of one file, as far as it was read.
pub struct Partition {
    pub name: String,
    pub state: PartitionState,
    /// Where reading is, with the bytes before it; none where they were not read by this process,
    /// or long ago.
    pub trail: Option<Trail>,
    /// The file that holds the content is there: a path leads to it, or a descriptor is kept.
    pub is_live: bool,
    /// Another content was seen in its file since.
    pub is_over: bool,
    /// Records were taken since its end was last noted.
    pub is_moved: bool,
}

impl Partition {
    pub fn file(&self) -> FileIdentity {
        self.state.file.unwrap_or_default()
    }
}

/// All partitions of a source.
#[derive(Default)]
pub struct Known {
    partitions: Vec<Partition>,
    by_name: HashMap<String, Id>,
    by_inode: HashMap<u64, Vec<Id>>,
    by_path: HashMap<String, Vec<Id>>,
    /// By length and checksum of the beginning.
    by_head: HashMap<(u64, u32), Vec<Id>>,
    /// How many beginnings there are of each length.
    lengths: BTreeMap<u64, usize>,
    /// In the order in which their trails were set.
    with_trail: Vec<Id>,
    /// Of a source of one file: stored with each partition.
    pub since: Option<u64>,
}

impl Known {
    pub fn new(partitions: &[(String, PartitionState)]) -> Self {
        let mut known = Self::default();
        for (name, state) in partitions {
            known.add(name.clone(), state.clone());
        }
        known
    }

    pub fn get(&self, id: Id) -> &Partition {
        &self.partitions[id]
    }

    pub fn get_mut(&mut self, id: Id) -> &mut Partition {
        &mut self.partitions[id]
    }

    fn add(&mut self, name: String, state: PartitionState) -> Id {
        let id = self.partitions.len();
        let file = state.file;
        self.by_name.insert(name.clone(), id);
        self.by_path
            .entry(path_of(&name).to_owned())
            .or_default()
            .push(id);
        let (trail, is_live, is_over, is_moved) = (None, false, false, false);
        let state = PartitionState {
            file: None,
            ..state
        };
        self.partitions.push(Partition {
            name,
            state,
            trail,
            is_live,
            is_over,
            is_moved,
        });
        if let Some(file) = file {
            self.set_identity(id, file);
        }
        id
    }

    /// A new partition for a file that was not read before, or up to a position as another one.
    pub fn begin(&mut self, path: &str, file: FileIdentity, next_offset: u64) -> Id {
        let name = partition_name(path, file.inode, |name| self.by_name.contains_key(name));
        let file = FileIdentity {
            since: self.since,
            ..file
        };
        self.add(
            name,
            PartitionState {
                next_offset,
                file: Some(file),
                ..PartitionState::default()
            },
        )
    }

    pub fn set_identity(&mut self, id: Id, file: FileIdentity) {
        let before = self.partitions[id].state.file.replace(file);
        if before.is_none_or(|before| before.inode != file.inode) {
            if let Some(before) = before {
                remove(&mut self.by_inode, &before.inode, id);
            }
            self.by_inode.entry(file.inode).or_default().push(id);
        }
        if before.is_none_or(|before| (before.head, before.crc) != (file.head, file.crc)) {
            if let Some(before) = before.filter(|before| before.head > 0) {
                remove(&mut self.by_head, &(before.head, before.crc), id);
                if let Some(count) = self.lengths.get_mut(&before.head) {
                    *count -= 1;
                    if *count == 0 {
                        self.lengths.remove(&before.head);
                    }
                }
            }
            if file.head > 0 {
                self.by_head
                    .entry((file.head, file.crc))
                    .or_default()
                    .push(id);
                *self.lengths.entry(file.head).or_default() += 1;
            }
        }
    }

    /// Keeps the bytes before a partition's position, of the latest partitions only.
    pub fn set_trail(&mut self, id: Id, trail: Trail) {
        if self.partitions[id].trail.replace(trail).is_none() {
            self.with_trail.push(id);
        }
        if self.with_trail.len() > MAX_TRAILS {
            let oldest = self.with_trail.remove(0);
            self.partitions[oldest].trail = None;
        }
    }

    /// Whether a file of this inode was read.
    pub fn has_inode(&self, inode: u64) -> bool {
        self.by_inode.contains_key(&inode)
    }

    pub fn of_inode(&self, inode: u64) -> &[Id] {
        self.by_inode.get(&inode).map_or(&[], Vec::as_slice)
    }

    pub fn of_path(&self, path: &str) -> &[Id] {
        self.by_path.get(path).map_or(&[], Vec::as_slice)
    }

    /// Partitions whose content begins as this one does.
    pub fn of_head(&self, head: &[u8]) -> Vec<Id> {
        let (mut crc, mut at, mut found) = (0, 0, Vec::new());
        for length in self
            .lengths
            .keys()
            .map(|length| *length as usize)
            .take_while(|length| *length <= head.len())
        {
            crc = crc32c::crc32c_append(crc, &head[at..length]);
            at = length;
            found.extend(
                self.by_head
                    .get(&(length as u64, crc))
                    .into_iter()
                    .flatten(),
            );
        }
        found
    }

    /// Partitions that were read and whose end was not noted since; it is now.
    pub fn moved(&mut self) -> Vec<Id> {
        let moved = |(id, partition): (Id, &mut Partition)| {
            std::mem::take(&mut partition.is_moved).then_some(id)
        };
        self.partitions
            .iter_mut()
            .enumerate()
            .filter_map(moved)
            .collect()
    }
}

fn remove<K: std::hash::Hash + Eq>(index: &mut HashMap<K, Vec<Id>>, key: &K, id: Id) {
    if let Some(ids) = index.get_mut(key) {
        ids.retain(|other| *other != id);
        if ids.is_empty() {
            index.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_found_by_inode_path_and_beginning() {
        let identity = |inode, head: &[u8]| FileIdentity {
            inode,
            head: head.len() as u64,
            crc: crc32c::crc32c(head),
            ..FileIdentity::default()
        };
        let state = |file| PartitionState {
            file: Some(file),
            ..PartitionState::default()
        };
        let mut known = Known::new(&[
            ("a@1".to_owned(), state(identity(1, b"one"))),
            ("b@2".to_owned(), state(identity(2, b"other"))),
        ]);
        assert_eq!(known.of_inode(2), [1]);
        assert_eq!(known.of_path("a"), [0]);
        assert_eq!(known.of_head(b"one and more"), [0]);
        assert!(known.of_head(b"on").is_empty());
        known.set_identity(0, identity(3, b"one and"));
        assert_eq!(known.of_head(b"one and more"), [0]);
        assert!(known.of_head(b"one or").is_empty());
        assert!(!known.has_inode(1) && known.has_inode(3));
        let id = known.begin("a", identity(3, b""), 0);
        assert_eq!(known.get(id).name, "a@3");
        let id = known.begin("a", identity(3, b""), 0);
        assert_eq!(known.get(id).name, "a@3.2");
    }
}
