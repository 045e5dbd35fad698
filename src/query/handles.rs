//! What queries read: the views' read handles.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::{PipelineProgress, QueryError};
use crate::event::{Lsn, Micros};
use crate::ids::{TableId, ViewId};
use crate::operators::RetentionFloors;
use crate::schema::{Catalog, Stream};
use crate::views::counts::Counts;
use crate::views::lake::LakeTable;
use crate::views::places::Places;
use crate::views::search::SearchIndex;

/// Read handles of all views. Cloning is cheap; the views' own writers keep them up to date.
#[derive(Clone)]
pub struct Handles {
    /// The declarations that the views were built from.
    pub catalog: Arc<Catalog>,
    /// The folder of the lake.
    pub lake: PathBuf,
    /// Lake tables, in the order of their names.
    pub tables: BTreeMap<TableId, Arc<LakeTable>>,
    /// Full-text search by stream, where the stream declares `search`.
    pub search: BTreeMap<String, Arc<SearchIndex>>,
    /// Venues by stream, where the stream declares `places`.
    pub places: BTreeMap<String, Arc<Places>>,
    /// Counts by stream, where the stream declares `count`.
    pub counts: BTreeMap<String, Arc<Counts>>,
    /// How far log and operators are, for the freshness of answers.
    pub progress: Arc<PipelineProgress>,
}

impl Handles {
    /// Hides the rows of these tables below a time.
    pub(crate) fn raise_floors(&self, floors: &RetentionFloors) {
        for (id, floor) in floors {
            if let Some(table) = self.tables.get(id) {
                table.raise_floor(*floor);
            }
        }
    }

    /// The table of a stream's events.
    pub fn stream_table(&self, stream: &str) -> Option<&Arc<LakeTable>> {
        self.tables.get(&TableId::stream(stream))
    }

    /// Events of a stream below this time are no longer shown.
    pub(crate) fn floor(&self, stream: &str) -> Option<Micros> {
        self.stream_table(stream).and_then(|table| table.floor())
    }

    /// Every view with the LSN up to which queries see it.
    pub(crate) fn checkpoints(&self) -> Vec<(ViewId, Lsn)> {
        let tables = self.tables.iter();
        let tables = tables.map(|(id, table)| (id.view(), table.applied()));
        let search = self.search.iter();
        let search = search.map(|(name, s)| (ViewId::search(name), s.visible()));
        let places = self.places.iter();
        let places = places.map(|(name, p)| (ViewId::places(name), p.applied()));
        let counts = self.counts.iter();
        let counts = counts.map(|(name, c)| (ViewId::counts(name), c.applied()));
        tables.chain(search).chain(places).chain(counts).collect()
    }

    /// The stream that a query names; the first by default. `NotFound` if it does not exist.
    pub(crate) fn stream(&self, name: Option<&str>) -> Result<&Arc<Stream>, QueryError> {
        let known = || {
            self.catalog
                .streams
                .keys()
                .cloned()
                .collect::<Vec<_>>()
                .join(", ")
        };
        match name {
            Some(name) => self.catalog.streams.get(name).ok_or_else(|| {
                QueryError::NotFound(format!(
                    "the stream `{name}` does not exist; available: {}",
                    known()
                ))
            }),
            None => self.catalog.streams.values().next().ok_or_else(|| {
                QueryError::NotFound(
                    "no stream is declared; add [streams.NAME] to the configuration".into(),
                )
            }),
        }
    }
}
