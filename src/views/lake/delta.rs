//! The Delta log of a table. Its entries are read at the start, or when another writer has added
//! some, and are not retained: a commit appends one entry to a known version, so its cost depends on
//! the commit and not on the table.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use buoyant_kernel::snapshot::{CheckpointWriteResult, Snapshot};
use deltalake::kernel::transaction::{
    CommitBuilder, CommitData, CommitProperties, PROTOCOL, TableReference, TransactionError,
};
use deltalake::kernel::{Action, Metadata, Transaction, Version};
use deltalake::logstore::CommitOrBytes;
use deltalake::protocol::{DeltaOperation, SaveMode};
use deltalake::{DeltaTable, DeltaTableBuilder, DeltaTableError, TableProperty, ensure_table_uri};
use uuid::Uuid;

use super::TableSpec;
use super::columns::delta_columns;
use super::files::partition_values;
use super::store::{SyncedFiles, add_checkpoint_sum};

/// Retention of entries: Delta's default, unless the table sets this key.
const RETENTION: Duration = Duration::from_secs(30 * 86_400);
const RETENTION_KEY: &str = "delta.logRetentionDuration";

/// A table's log at a version.
pub(super) struct DeltaLog {
    /// Has a loaded state only between [`Self::load`] and [`Self::release`].
    table: DeltaTable,
    version: Version,
    metadata: Metadata,
    /// Another writer gave the table rules that each commit must be validated against.
    needs_validation: bool,
    /// Has the entries.
    folder: PathBuf,
}

impl DeltaLog {
    /// Opens or creates the table, and loads it.
    pub(super) async fn open(spec: &TableSpec) -> Result<Self, DeltaTableError> {
        let table = open_or_create(spec).await?;
        let metadata = table.snapshot()?.metadata().clone();
        let folder = spec.root.join("_delta_log");
        let mut log = Self {
            table,
            version: 0,
            metadata,
            needs_validation: false,
            folder,
        };
        log.refresh()?;
        Ok(log)
    }

    /// Loads the newest version.
    pub(super) async fn load(&mut self) -> Result<&mut DeltaTable, DeltaTableError> {
        self.table.state = None;
        self.table.load().await?;
        self.refresh()?;
        Ok(&mut self.table)
    }

    /// The loaded table, until it is released.
    pub(super) fn table(&self) -> &DeltaTable {
        &self.table
    }

    /// The same, mutable: call [`Self::refresh`] after a change.
    pub(super) fn table_mut(&mut self) -> &mut DeltaTable {
        &mut self.table
    }

    /// Takes version, metadata and rules from the loaded state.
    pub(super) fn refresh(&mut self) -> Result<(), DeltaTableError> {
        let state = self.table.snapshot()?;
        self.version = state.version();
        self.metadata = state.metadata().clone();
        self.needs_validation = PROTOCOL.can_write_to(state).is_err()
            || state
                .metadata()
                .configuration()
                .get("delta.appendOnly")
                .is_some_and(|value| value == "true");
        Ok(())
    }

    /// Frees the loaded state, which has every file.
    pub(super) fn release(&mut self) {
        self.table.state = None;
    }

    pub(super) fn version(&self) -> Version {
        self.version
    }

    pub(super) fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Adds an entry; true where another writer had added some, so that the table was loaded again,
    /// with this one.
    pub(super) async fn commit(
        &mut self,
        actions: Vec<Action>,
        operation: DeltaOperation,
        transactions: Vec<Transaction>,
    ) -> Result<bool, DeltaTableError> {
        if !self.needs_validation {
            let data = CommitData::new(
                actions.clone(),
                operation.clone(),
                HashMap::new(),
                transactions.clone(),
            );
            let entry = CommitOrBytes::LogBytes(data.get_bytes()?);
            let version = self.version + 1;
            match self
                .table
                .log_store()
                .write_commit_entry(version, entry, Uuid::nil())
                .await
            {
                Ok(()) => {
                    self.version = version;
                    if let Some(Action::Metadata(metadata)) = data
                        .actions
                        .into_iter()
                        .find(|action| matches!(action, Action::Metadata(_)))
                    {
                        self.metadata = metadata;
                    }
                    return Ok(false);
                }
                Err(TransactionError::VersionAlreadyExists(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.load().await?;
        let properties = CommitProperties::default()
            .with_create_checkpoint(false)
            .with_cleanup_expired_logs(Some(false))
            .with_application_transactions(transactions);
        let state = self.table.snapshot()?;
        let done = CommitBuilder::from(properties)
            .with_actions(actions)
            .build(
                Some(state as &dyn TableReference),
                self.table.log_store(),
                operation,
            )
            .await?;
        self.table.state = Some(done.snapshot);
        self.refresh()?;
        Ok(true)
    }

    /// Writes a checkpoint, so that opening stays quick, and removes entries that no reader needs.
    pub(super) async fn checkpoint(&mut self) -> Result<(), DeltaTableError> {
        let store = self.table.log_store();
        let (engine, root, version) = (store.engine(None), store.root_url().clone(), self.version);
        // The library's own function would load every file's entry into memory first.
        let written = tokio::task::spawn_blocking(move || {
            Snapshot::builder_for(root)
                .at_version(version)
                .build(engine.as_ref())?
                .checkpoint(engine.as_ref(), None)
        });
        let (result, _) = written
            .await
            .map_err(|e| DeltaTableError::generic(e.to_string()))??;
        let checkpoint = self
            .folder
            .join(format!("{version:020}.checkpoint.parquet"));
        // One that exists already is another writer's.
        if result == CheckpointWriteResult::Written {
            let summed = tokio::task::spawn_blocking(move || add_checkpoint_sum(&checkpoint));
            summed
                .await
                .map_err(|e| DeltaTableError::generic(e.to_string()))??;
        }
        if self.has_old_entries()? {
            self.load().await?;
            deltalake::checkpoints::cleanup_metadata(&self.table, None).await?;
            self.release();
        }
        Ok(())
    }

    /// Whether there may be entries beyond the retention.
    fn has_old_entries(&self) -> std::io::Result<bool> {
        if self.metadata.configuration().contains_key(RETENTION_KEY) {
            return Ok(true);
        }
        let is_old = |entry: std::io::Result<std::fs::DirEntry>| -> std::io::Result<bool> {
            Ok(entry?
                .metadata()?
                .modified()?
                .elapsed()
                .is_ok_and(|age| age > RETENTION))
        };
        for entry in std::fs::read_dir(&self.folder)? {
            if is_old(entry)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

async fn open_or_create(spec: &TableSpec) -> Result<DeltaTable, DeltaTableError> {
    let url = ensure_table_uri(spec.root.to_string_lossy())?;
    let mut table = DeltaTableBuilder::from_url(url.clone())?
        .with_storage_backend(Arc::new(SyncedFiles::default()), url)
        .build()?;
    match table.load().await {
        Ok(()) => return Ok(table),
        Err(DeltaTableError::NotATable(_)) => {}
        Err(error) => return Err(error),
    }
    let columns =
        delta_columns(&spec.full_schema()).map_err(|e| DeltaTableError::generic(e.to_string()))?;
    table
        .create()
        .with_columns(columns.fields().cloned())
        .with_partition_columns(partition_values(0, spec.layout).iter().map(|(n, _)| *n))
        .with_table_name(&spec.name)
        .with_configuration_property(TableProperty::EnableExpiredLogCleanup, Some("false"))
        .with_configuration_property(
            TableProperty::DeletedFileRetentionDuration,
            Some("interval 1 days"),
        )
        .with_save_mode(SaveMode::Ignore)
        .await
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::actions::{add_action, read_files};
    use super::super::files::FileEntry;
    use super::*;
    use crate::schema::Layout;

    async fn add(
        log: &mut DeltaLog,
        spec: &TableSpec,
        path: &str,
    ) -> Result<bool, DeltaTableError> {
        let file = FileEntry {
            path: path.into(),
            ..FileEntry::sample()
        };
        let operation = DeltaOperation::Write {
            mode: SaveMode::Append,
            partition_by: None,
            predicate: None,
        };
        let checkpoint = Transaction::new(path, 1);
        log.commit(
            vec![Action::Add(add_action(spec, &file, true))],
            operation,
            vec![checkpoint],
        )
        .await
    }

    fn spec(lake: &Path) -> TableSpec {
        TableSpec::raw(lake, Layout::Hours)
    }

    async fn paths(spec: &TableSpec) -> Vec<String> {
        let log = DeltaLog::open(spec).await.expect("a table");
        let mut paths: Vec<String> = read_files(spec, log.table())
            .expect("files")
            .into_iter()
            .map(|file| file.path)
            .collect();
        paths.sort();
        paths
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_another_writer_added_in_between_is_retained() {
        let folder = tempfile::tempdir().expect("a folder");
        let spec = spec(folder.path());
        let mut own = DeltaLog::open(&spec).await.expect("a table");
        let mut other = DeltaLog::open(&spec).await.expect("a table");
        assert!(!add(&mut own, &spec, "a").await.expect("added"), "alone");
        assert!(!add(&mut own, &spec, "b").await.expect("added"), "alone");
        assert!(
            add(&mut other, &spec, "c").await.expect("added"),
            "others came before"
        );
        assert!(
            add(&mut own, &spec, "d").await.expect("added"),
            "another came before"
        );
        assert!(
            !add(&mut own, &spec, "e").await.expect("added"),
            "alone again"
        );
        assert_eq!((own.version(), other.version()), (5, 3));
        assert_eq!(paths(&spec).await, ["a", "b", "c", "d", "e"]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_checkpoint_replaces_the_entries_before_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let spec = spec(folder.path());
        let mut log = DeltaLog::open(&spec).await.expect("a table");
        for path in ["a", "b", "c"] {
            add(&mut log, &spec, path).await.expect("added");
        }
        log.checkpoint().await.expect("a checkpoint");
        add(&mut log, &spec, "d").await.expect("added");
        let entries = spec.root.join("_delta_log");
        for version in 0..=3 {
            std::fs::remove_file(entries.join(format!("{version:020}.json"))).expect("an entry");
        }
        assert_eq!(paths(&spec).await, ["a", "b", "c", "d"]);
        let reopened = DeltaLog::open(&spec).await.expect("a table");
        assert_eq!(reopened.version(), 4);
        // Any flipped bit is found, and the error says what to do.
        let checkpoint = entries.join(format!("{:020}.checkpoint.parquet", 3));
        let whole = std::fs::read(&checkpoint).expect("a checkpoint");
        for at in [0, whole.len() / 3, whole.len() - 1] {
            let mut flipped = whole.clone();
            flipped[at] ^= 4;
            std::fs::write(&checkpoint, flipped).expect("written");
            let error = DeltaLog::open(&spec)
                .await
                .err()
                .expect("damaged")
                .to_string();
            assert!(
                error.contains("checkpoint.parquet") && error.contains("from a backup"),
                "{error}"
            );
        }
        std::fs::write(&checkpoint, whole).expect("written");
        DeltaLog::open(&spec).await.expect("whole again");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_table_is_read_without_a_damaged_checkpoint_where_older_entries_exist() {
        let folder = tempfile::tempdir().expect("a folder");
        let spec = spec(folder.path());
        let mut log = DeltaLog::open(&spec).await.expect("a table");
        add(&mut log, &spec, "a").await.expect("added");
        log.checkpoint().await.expect("a checkpoint");
        add(&mut log, &spec, "b").await.expect("added");
        log.checkpoint().await.expect("a checkpoint");
        let entries = spec.root.join("_delta_log");
        let damage = |version: i64| {
            let checkpoint = entries.join(format!("{version:020}.checkpoint.parquet"));
            let mut bytes = std::fs::read(&checkpoint).expect("a checkpoint");
            bytes[100] ^= 1;
            std::fs::write(&checkpoint, bytes).expect("written");
            checkpoint
        };
        let move_away = |checkpoint: &Path| {
            for path in [checkpoint, &entries.join("_last_checkpoint")] {
                std::fs::remove_file(path).unwrap_or_default();
            }
        };
        // Twice the way out that the error names: to the older checkpoint, then to the first
        // commit.
        for checkpoint in [damage(2), damage(1)] {
            let error = DeltaLog::open(&spec)
                .await
                .err()
                .expect("damaged")
                .to_string();
            assert!(
                error.contains("move it and _last_checkpoint away"),
                "{error}"
            );
            move_away(&checkpoint);
        }
        assert_eq!(paths(&spec).await, ["a", "b"]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_checksum_leaves_with_its_checkpoint() {
        let folder = tempfile::tempdir().expect("a folder");
        let spec = spec(folder.path());
        let mut log = DeltaLog::open(&spec).await.expect("a table");
        let entries = spec.root.join("_delta_log");
        let sum = |version: i64| entries.join(format!(".{version:020}.checkpoint.parquet.crc32c"));
        log.checkpoint().await.expect("a checkpoint");
        assert!(sum(0).exists());
        for name in [
            &*format!("{:020}.checkpoint.parquet", 0),
            "_last_checkpoint",
        ] {
            std::fs::remove_file(entries.join(name)).expect("a checkpoint");
        }
        add(&mut log, &spec, "a").await.expect("added");
        log.checkpoint().await.expect("a checkpoint");
        assert!(!sum(0).exists() && sum(1).exists());
        // Without one, as of another writer, there is nothing to compare.
        std::fs::remove_file(sum(1)).expect("a checksum");
        assert_eq!(DeltaLog::open(&spec).await.expect("a table").version(), 1);
    }
}
