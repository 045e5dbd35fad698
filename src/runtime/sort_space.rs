//! Where sources that read in order of event time sort, and how much memory and disk they may use.

use std::sync::Arc;

use super::data_dir::DataDir;
use super::maintenance::folder_bytes;
use super::reserve;
use crate::config::units::Size;
use crate::config::{Config, ReadOrder, SourceKind};
use crate::sources::{DiskAllowance, SortSpace};
use crate::storage;

/// All sorting sources together use this part of the queues' share of the memory.
const QUEUES_PART: usize = 4;
const MIN_MEMORY: usize = 1 << 20;
/// On a disk that fills up, this many times the reserve is left to the log and the views.
const RESERVES_LEFT: u64 = 8;

/// The space of the source at a position of the configuration.
pub(super) fn of_source(config: &Config, folder: &DataDir, source: usize) -> SortSpace {
    let is_sorting = |kind: &SourceKind| matches!(kind, SourceKind::File(def) if def.order == ReadOrder::EventTime);
    let sorting = config
        .sources
        .iter()
        .filter(|source| is_sorting(&source.kind))
        .count();
    let memory = (config.limits.shares().queues / QUEUES_PART / sorting.max(1)).max(MIN_MEMORY);
    let (root, disk) = (folder.root.clone(), config.limits.disk);
    let left = RESERVES_LEFT * reserve::bytes_of(config);
    let disk_allowance = move || {
        let free = storage::free(&root)
            .unwrap_or(u64::MAX)
            .saturating_sub(left);
        let on_disk = DiskAllowance {
            bytes: free,
            limit: "the free room on the disk".into(),
        };
        let Some(limit) = disk else { return on_disk };
        let allowed = limit.saturating_sub(folder_bytes(&root));
        if allowed < free {
            DiskAllowance {
                bytes: allowed,
                limit: format!("`[limits] disk` ({})", Size(limit)),
            }
        } else {
            on_disk
        }
    };
    SortSpace {
        folder: folder.sort().join(source.to_string()),
        memory_bytes: memory,
        disk: Arc::new(disk_allowance),
    }
}
