//! The partitions of a source, each the content of one file: indexed by inode, by path, and by
//! their first bytes.

use std::collections::{BTreeMap, HashMap};

use super::content::Trail;
use super::decision::{partition_name, path_of};
use crate::operators::PartitionState;
use crate::wal::FileIdentity;

/// Partitions whose last bytes are held, so that a copy which is a little shorter is recognized.
const MAX_TRAILS: usize = 64;

/// Index of a partition in its registry, which never removes one.
pub(super) type PartitionId = usize;

/// The content of one file, up to the offset at which reading continues.
pub(super) struct Partition {
    /// `<path>@<inode>`, by the path at which the content was first found.
    pub name: String,
    /// What the log has of it: offset, and identity of the file.
    pub state: PartitionState,
    /// The last bytes read; none where they were not read by this process, or long ago.
    pub trail: Option<Trail>,
    /// The file that holds the content exists: at a path, or behind an open descriptor.
    pub is_live: bool,
    /// Its file has another content by now.
    pub is_replaced: bool,
    /// Records were read since its end was last recorded.
    pub has_unrecorded_end: bool,
}

impl Partition {
    /// Identity of the file; zeros for a partition without one.
    pub fn file(&self) -> FileIdentity {
        self.state.file.unwrap_or_default()
    }
}

/// All partitions of a source.
#[derive(Default)]
pub(super) struct PartitionRegistry {
    partitions: Vec<Partition>,
    by_name: HashMap<String, PartitionId>,
    by_inode: HashMap<u64, Vec<PartitionId>>,
    by_path: HashMap<String, Vec<PartitionId>>,
    /// By length and checksum of the first bytes.
    by_head: HashMap<(u64, u32), Vec<PartitionId>>,
    /// The number of entries of each length in `by_head`.
    head_lengths: BTreeMap<u64, usize>,
    /// In the order in which their trails were set.
    with_trail: Vec<PartitionId>,
    /// Start of a source of one file, in ns since 1970, which is stored with each partition.
    pub since: Option<u64>,
}

impl PartitionRegistry {
    /// The partitions that the operators remember, by name.
    pub fn new(partitions: &[(String, PartitionState)]) -> Self {
        let mut registry = Self::default();
        for (name, state) in partitions {
            registry.add(name.clone(), state.clone());
        }
        registry
    }

    /// The partition of an id of this registry.
    pub fn get(&self, id: PartitionId) -> &Partition {
        &self.partitions[id]
    }

    /// As [`Self::get`]. Its file is changed by [`Self::set_identity`] only, which keeps the
    /// indices.
    pub fn get_mut(&mut self, id: PartitionId) -> &mut Partition {
        &mut self.partitions[id]
    }

    fn add(&mut self, name: String, state: PartitionState) -> PartitionId {
        let id = self.partitions.len();
        let file = state.file;
        self.by_name.insert(name.clone(), id);
        self.by_path
            .entry(path_of(&name).to_owned())
            .or_default()
            .push(id);
        let state = PartitionState {
            file: None,
            ..state
        };
        self.partitions.push(Partition {
            name,
            state,
            trail: None,
            is_live: false,
            is_replaced: false,
            has_unrecorded_end: false,
        });
        if let Some(file) = file {
            self.set_identity(id, file);
        }
        id
    }

    /// Adds a partition for a new content, or for one that was read up to `next_offset` as part of
    /// another partition.
    pub fn create(&mut self, path: &str, file: FileIdentity, next_offset: u64) -> PartitionId {
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

    /// Changes the identity of a partition's file, and the indices by it.
    pub fn set_identity(&mut self, id: PartitionId, file: FileIdentity) {
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
                if let Some(count) = self.head_lengths.get_mut(&before.head) {
                    *count -= 1;
                    if *count == 0 {
                        self.head_lengths.remove(&before.head);
                    }
                }
            }
            if file.head > 0 {
                self.by_head
                    .entry((file.head, file.crc))
                    .or_default()
                    .push(id);
                *self.head_lengths.entry(file.head).or_default() += 1;
            }
        }
    }

    /// Sets a partition's last bytes, which only the latest partitions hold.
    pub fn set_trail(&mut self, id: PartitionId, trail: Trail) {
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

    /// Partitions whose file has, or had, this inode.
    pub fn by_inode(&self, inode: u64) -> &[PartitionId] {
        self.by_inode.get(&inode).map_or(&[], Vec::as_slice)
    }

    /// Partitions whose content was first found at this path.
    pub fn by_path(&self, path: &str) -> &[PartitionId] {
        self.by_path.get(path).map_or(&[], Vec::as_slice)
    }

    /// Partitions whose content begins as this one does.
    pub fn by_head(&self, head: &[u8]) -> Vec<PartitionId> {
        let (mut crc, mut at, mut ids) = (0, 0, Vec::new());
        for length in self
            .head_lengths
            .keys()
            .map(|length| *length as usize)
            .take_while(|length| *length <= head.len())
        {
            crc = crc32c::crc32c_append(crc, &head[at..length]);
            at = length;
            ids.extend(
                self.by_head
                    .get(&(length as u64, crc))
                    .into_iter()
                    .flatten(),
            );
        }
        ids
    }

    /// Takes the partitions that were read since their end was last recorded.
    pub fn take_unrecorded_ends(&mut self) -> Vec<PartitionId> {
        let take = |(id, partition): (PartitionId, &mut Partition)| {
            std::mem::take(&mut partition.has_unrecorded_end).then_some(id)
        };
        self.partitions
            .iter_mut()
            .enumerate()
            .filter_map(take)
            .collect()
    }
}

fn remove<K: std::hash::Hash + Eq>(
    index: &mut HashMap<K, Vec<PartitionId>>,
    key: &K,
    id: PartitionId,
) {
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
    fn a_partition_is_found_by_inode_path_and_first_bytes() {
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
        let mut registry = PartitionRegistry::new(&[
            ("a@1".to_owned(), state(identity(1, b"one"))),
            ("b@2".to_owned(), state(identity(2, b"other"))),
        ]);
        assert_eq!(registry.by_inode(2), [1]);
        assert_eq!(registry.by_path("a"), [0]);
        assert_eq!(registry.by_head(b"one and more"), [0]);
        assert!(registry.by_head(b"on").is_empty());
        registry.set_identity(0, identity(3, b"one and"));
        assert_eq!(registry.by_head(b"one and more"), [0]);
        assert!(registry.by_head(b"one or").is_empty());
        assert!(!registry.has_inode(1) && registry.has_inode(3));
        let id = registry.create("a", identity(3, b""), 0);
        assert_eq!(registry.get(id).name, "a@3");
        let id = registry.create("a", identity(3, b""), 0);
        assert_eq!(registry.get(id).name, "a@3.2");
    }
}
