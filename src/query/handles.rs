//! What queries read: the views' read handles.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::{PipelineProgress, QueryError};
use crate::event::{Lsn, Micros};
use crate::operators::{RetentionFloors, checkpoints, tables};
use crate::schema::{Catalog, Stream, Window};
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
    /// Lake tables by name.
    pub tables: BTreeMap<String, Arc<LakeTable>>,
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
        for (name, floor) in floors {
            if let Some(table) = self.tables.get(name) {
                table.raise_floor(*floor);
            }
        }
    }

    /// Events of a stream below this time are no longer shown.
    pub(crate) fn floor(&self, stream: &str) -> Option<Micros> {
        self.tables.get(stream).and_then(|table| table.floor())
    }

    /// Every view, by the name of its checkpoint, with the LSN up to which queries see it.
    pub(crate) fn checkpoints(&self) -> Vec<(String, Lsn)> {
        let mut checkpoints: Vec<(String, Lsn)> = self
            .tables
            .iter()
            .map(|(name, table)| (format!("lake/{name}"), table.applied()))
            .collect();
        checkpoints.extend(
            self.search
                .iter()
                .map(|(name, s)| (checkpoints::search(name), s.visible())),
        );
        checkpoints.extend(
            self.places
                .iter()
                .map(|(name, p)| (checkpoints::places(name), p.applied())),
        );
        checkpoints.extend(
            self.counts
                .iter()
                .map(|(name, c)| (checkpoints::counts(name), c.applied())),
        );
        checkpoints
    }

    /// The stream that a table's rows come from, if it is a single one.
    pub(crate) fn stream_of(&self, table: &str) -> Option<String> {
        let streams = &self.catalog.streams;
        let window = |w: &&Arc<Window>| w.name == table || tables::versions_of(&w.name) == table;
        let window = self
            .catalog
            .windows
            .iter()
            .find(window)
            .map(|w| w.stream.clone());
        let name = table.split('.').next().unwrap_or(table);
        window.or_else(|| streams.contains_key(name).then(|| name.to_owned()))
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
