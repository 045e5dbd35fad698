//! The tables and the environment of a query's session.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use datafusion::catalog::{
    CatalogProvider, CatalogProviderList, MemoryCatalogProvider, MemoryCatalogProviderList,
    MemorySchemaProvider, SchemaProvider, TableProvider,
};
use datafusion::error::DataFusionError;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::object_store::{
    DefaultObjectStoreRegistry, ObjectStoreRegistry, ObjectStoreUrl,
};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::SessionState;
use datafusion::prelude::SessionContext;
use object_store::local::LocalFileSystem;

use crate::event::Lsn;
use crate::ids::TableId;
use crate::query::derived_tables::{self, OpenRows};
use crate::query::{Handles, QueryError, system_tables};
use crate::schema::Layout;
use crate::schema::select::strip_internals;
use crate::storage::create_folders;
use crate::views::lake::LakeTable;
use crate::views::lake::entities::scan::EntitySnapshot;
use crate::views::lake::provider::{LakeSnapshot, lake_url};

/// Maximum bytes that queries may spill to disk.
const MAX_SPILL_BYTES: u64 = 4 << 30;

/// The tables of a session: snapshots taken now.
#[derive(Default)]
struct Tables {
    schemas: BTreeMap<String, MemorySchemaProvider>,
    /// The LSN that each lake table and window reaches.
    checkpoints: Vec<(String, Lsn)>,
}

/// A session, and the LSN that each of its lake tables and windows reaches.
pub(super) fn session(
    base: &SessionState,
    handles: &Handles,
    open: &BTreeMap<TableId, OpenRows>,
) -> Result<(SessionContext, Vec<(String, Lsn)>), QueryError> {
    let failed = |e: DataFusionError| QueryError::Failed(strip_internals(&e));
    let mut tables = Tables::default();
    for (id, table) in &handles.tables {
        tables
            .add_lake_table(table, handles, open.get(id))
            .map_err(failed)?;
    }
    for name in system_tables::TABLES {
        let table = system_tables::table(name, handles)?;
        tables
            .register(&format!("weir.{name}"), table)
            .map_err(failed)?;
    }
    let checkpoints = std::mem::take(&mut tables.checkpoints);
    let mut state = base.clone();
    state.register_catalog_list(tables.into_catalogs().map_err(failed)?);
    Ok((SessionContext::new_with_state(state), checkpoints))
}

impl Tables {
    /// `name` is `table`, or `schema.table`.
    fn register(
        &mut self,
        name: &str,
        provider: Arc<dyn TableProvider>,
    ) -> Result<(), DataFusionError> {
        let (schema, table) = name.split_once('.').unwrap_or(("main", name));
        self.schemas
            .entry(schema.to_owned())
            .or_default()
            .register_table(table.to_owned(), provider)?;
        Ok(())
    }

    fn add_lake_table(
        &mut self,
        table: &Arc<LakeTable>,
        handles: &Handles,
        open: Option<&OpenRows>,
    ) -> Result<(), DataFusionError> {
        let (state, name) = (table.snapshot(), &table.spec.name);
        let applied = state.applied;
        self.checkpoints.push((name.clone(), applied));
        let stored: Arc<dyn TableProvider> = match table.spec.layout {
            Layout::Buckets => Arc::new(EntitySnapshot::from_state(table, state)),
            _ => Arc::new(LakeSnapshot::from_state(table, state)),
        };
        let retried = handles.progress.retried();
        // The table must contain everything that was closed up to the LSN of the open rows.
        let open = open.filter(|open| open.lsn <= applied);
        let provider = match &table.spec.id {
            TableId::Window(window) => {
                if let Some(window) = handles.catalog.window(window) {
                    let latest = derived_tables::window(window, table, stored.clone(), open)?;
                    self.register(&window.name, latest)?;
                    let lsn = open.map_or(applied, |open| open.lsn);
                    self.checkpoints.push((window.name.clone(), lsn));
                }
                stored
            }
            TableId::Sessions(_) => derived_tables::sessions(table, stored, open)?,
            TableId::Entity(_) => derived_tables::entity(table, stored)?,
            TableId::DeadLetters if !retried.is_empty() => {
                system_tables::with_retries(name, stored, &retried)?
            }
            TableId::Raw | TableId::DeadLetters | TableId::Stream(_) | TableId::Late(_) => stored,
        };
        self.register(name, provider)
    }

    fn into_catalogs(mut self) -> Result<Arc<dyn CatalogProviderList>, DataFusionError> {
        self.schemas.entry("main".into()).or_default();
        let catalog = MemoryCatalogProvider::new();
        for (name, schema) in self.schemas {
            catalog.register_schema(&name, Arc::new(schema))?;
        }
        let catalogs = MemoryCatalogProviderList::new();
        catalogs.register_catalog("weir_lake".into(), Arc::new(catalog));
        Ok(Arc::new(catalogs))
    }
}

/// The environment of all queries of a lane: `memory` bytes, a folder to spill to, and access to the
/// lake's files only.
pub(super) fn environment(
    lake: &Path,
    spill: &Path,
    memory: usize,
) -> Result<Arc<RuntimeEnv>, DataFusionError> {
    // A read-only or full data folder can still be queried: only what does not fit in memory fails.
    let disk = match create_folders(spill) {
        Ok(()) => DiskManagerMode::Directories(vec![spill.to_owned()]),
        Err(error) => {
            tracing::debug!(path = %spill.display(), %error, "queries cannot spill to disk");
            DiskManagerMode::Disabled
        }
    };
    // By default the registry serves the whole file system: no query may choose a file.
    let registry = DefaultObjectStoreRegistry::new();
    registry.deregister_store(ObjectStoreUrl::local_filesystem().as_ref())?;
    let consumers = NonZeroUsize::new(5).expect("five");
    let environment = RuntimeEnvBuilder::new()
        .with_object_store_registry(Arc::new(registry))
        .with_memory_pool(Arc::new(TrackConsumersPool::new(
            FairSpillPool::new(memory),
            consumers,
        )))
        .with_disk_manager_builder(
            DiskManagerBuilder::default()
                .with_mode(disk)
                .with_max_temp_directory_size(MAX_SPILL_BYTES),
        )
        .build_arc()?;
    environment.register_object_store(
        lake_url().as_ref(),
        Arc::new(LocalFileSystem::new_with_prefix(lake)?),
    );
    Ok(environment)
}
