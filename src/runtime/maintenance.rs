//! Work on committed data beside the pipeline: merging files, checkpoints, removing what is no longer named. One table at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::sources::Stop;
use crate::views::ViewError;
use crate::views::lake::{LakeTable, compact};

/// How often tables are looked at.
const EVERY: Duration = Duration::from_secs(30);

/// Looks after the lake until asked to stop.
pub fn start(tables: BTreeMap<String, Arc<LakeTable>>, memory: usize, stop: Stop) -> JoinHandle<()> {
    std::thread::Builder::new()
        .name("maintenance".into())
        .spawn(move || {
            while !stop.wait(EVERY) {
                if let Err(error) = run(&tables, memory, false, &|| stop.is_asked()) {
                    // Nothing was changed; the next round tries again.
                    tracing::warn!(%error, "maintenance failed");
                }
            }
        })
        .expect("the system can start a thread")
}

/// One round over all tables; gives the number of merges.
pub fn run(
    tables: &BTreeMap<String, Arc<LakeTable>>,
    memory: usize,
    all: bool,
    stop: &dyn Fn() -> bool,
) -> Result<usize, ViewError> {
    let mut merges = 0;
    for (name, table) in tables {
        let done = compact::maintain(table, memory, all, stop)?;
        if done > 0 {
            tracing::info!(table = name, merges = done, files = table.files().len(), "merged");
        }
        merges += done;
    }
    Ok(merges)
}
