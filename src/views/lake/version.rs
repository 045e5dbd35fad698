//! What a version of the Delta table says beside its rows: which records they are of.

use std::sync::Arc;

use deltalake::DeltaTable;

use super::actions::{read_files, read_levels};
use super::entities::levels::Level;
use super::error::InView;
use super::files::FileEntry;
use super::{PerClass, RowClass, TableSpec};
use crate::event::Lsn;
use crate::schema::Layout;
use crate::views::{LogIdentity, ViewError};

/// Delta app ids of a table's checkpoints: `weir/<instance>/<log id>/<name>`. The name is that of a
/// class of rows. The checkpoint of an entity table, which its levels reach, is `levels`; its
/// `recent` is what its files alone reach.
pub(super) struct AppIds {
    pub classes: PerClass<String>,
    /// Of an entity table: that of its files alone, for outside readers.
    pub files: Option<String>,
    /// That of the last record of which retention has removed a row.
    pub dropped: String,
}

impl AppIds {
    pub fn new(log: LogIdentity, layout: Layout) -> Self {
        let app_id = |name: &str| format!("weir/{}/{:x}/{name}", log.instance, log.id);
        let recent = app_id(RowClass::Recent.name());
        let late = app_id(RowClass::Late.name());
        match layout {
            Layout::Buckets => Self {
                classes: PerClass {
                    recent: app_id("levels"),
                    late,
                },
                files: Some(recent),
                dropped: app_id("dropped"),
            },
            _ => Self {
                classes: PerClass { recent, late },
                files: None,
                dropped: app_id("dropped"),
            },
        }
    }
}

/// The loaded version of a table.
pub(super) struct TableVersion {
    pub files: Arc<Vec<FileEntry>>,
    pub levels: Arc<Vec<Level>>,
    pub committed: PerClass<Option<Lsn>>,
    pub files_lsn: Option<Lsn>,
    pub dropped_lsn: Lsn,
}

impl TableVersion {
    pub fn read(
        spec: &TableSpec,
        table: &DeltaTable,
        app_ids: &AppIds,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Self, ViewError> {
        let checkpoint = |app_id: &String| -> Result<Option<Lsn>, ViewError> {
            let found = runtime.block_on(async {
                table
                    .snapshot()?
                    .transaction_version(table.log_store().as_ref(), app_id)
                    .await
            });
            Ok(found.in_folder(&spec.root)?.map(|lsn| lsn as u64))
        };
        Ok(Self {
            committed: PerClass {
                recent: checkpoint(&app_ids.classes.recent)?,
                late: checkpoint(&app_ids.classes.late)?,
            },
            files_lsn: app_ids
                .files
                .as_ref()
                .map(checkpoint)
                .transpose()?
                .flatten(),
            dropped_lsn: checkpoint(&app_ids.dropped)?.unwrap_or_default(),
            files: Arc::new(read_files(spec, table).in_folder(&spec.root)?),
            levels: Arc::new(read_levels(spec, table)?),
        })
    }
}
