//! Panes: what a window has aggregated, in one of two ways. A window that only counts has a fast
//! one; DataFusion's partial states serve every other.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};

use super::count_aggregator::{CountAggregator, GroupCounts};
use super::generic_aggregator::GenericAggregator;
use super::snapshot::{put_batches, take_batch, take_batches};
use super::{FiredWindow, WindowError};
use crate::event::{Lsn, Micros};
use crate::schema::Window;

/// Panes of one window.
#[derive(Debug, Clone, Copy)]
pub(super) enum PaneSelection<'a> {
    /// Those that start in from..to.
    Range(Micros, Micros),
    /// Those with these numbers.
    Ids(&'a [Micros]),
}

pub(super) enum Panes {
    Counts(Box<CountAggregator>),
    Generic(Box<GenericAggregator>),
}

/// A window's rows as its aggregation gives them, before the rest of its SQL.
pub(super) enum PaneRows {
    Counts(GroupCounts),
    Columns(Vec<ArrayRef>),
}

impl PaneRows {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Counts(counts) => counts.len(),
            Self::Columns(columns) => columns.first().map_or(0, |a| a.len()),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Panes {
    pub(super) fn new(window: &Arc<Window>) -> Result<Self, WindowError> {
        Ok(if window.counts_only {
            Self::Counts(Box::new(CountAggregator::new(window)))
        } else {
            Self::Generic(Box::new(GenericAggregator::new(window)?))
        })
    }

    /// Groups in all panes; one with long values counts as several.
    pub(super) fn groups(&self) -> usize {
        match self {
            Self::Counts(panes) => panes.groups(),
            Self::Generic(panes) => panes.groups(),
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        match self {
            Self::Counts(panes) => panes.memory_bytes(),
            Self::Generic(panes) => panes.memory_bytes(),
        }
    }

    /// Begins a batch, the rows of which [`Self::add`] names. An error means that some row has no
    /// value; nothing is prepared then.
    pub(super) fn prepare(
        &mut self,
        window: &Window,
        projected: &RecordBatch,
    ) -> Result<(), WindowError> {
        match self {
            Self::Counts(panes) => panes.prepare(window, projected),
            Self::Generic(panes) => {
                panes.prepare(projected.clone());
                Ok(())
            }
        }
    }

    /// Adds a row of the prepared batch to a pane.
    pub(super) fn add(&mut self, row: usize, pane: Micros, lsn: Lsn) -> Result<(), WindowError> {
        match self {
            Self::Counts(panes) => {
                panes.add(row, pane);
                Ok(())
            }
            Self::Generic(panes) => panes.add(row, pane, lsn),
        }
    }

    /// Ends the prepared batch. Returns how many rows were left out because an aggregate failed.
    pub(super) fn end_batch(&mut self) -> Result<u64, WindowError> {
        match self {
            Self::Counts(panes) => {
                panes.end_batch();
                Ok(0)
            }
            Self::Generic(panes) => {
                panes.end_batch()?;
                Ok(panes.take_failed())
            }
        }
    }

    /// The first pane that starts at a time or later.
    pub(super) fn first_from(&self, time: Micros) -> Option<Micros> {
        match self {
            Self::Counts(panes) => panes.first_from(time),
            Self::Generic(panes) => panes.first_from(time),
        }
    }

    pub(super) fn last(&self) -> Option<Micros> {
        match self {
            Self::Counts(panes) => panes.last(),
            Self::Generic(panes) => panes.last(),
        }
    }

    /// The rows of a window, in the order of its group columns.
    pub(super) fn rows(
        &mut self,
        selection: PaneSelection<'_>,
        start: Micros,
        end: Micros,
    ) -> Result<PaneRows, WindowError> {
        Ok(match self {
            Self::Counts(panes) => PaneRows::Counts(panes.rows(selection)),
            Self::Generic(panes) => PaneRows::Columns(panes.rows(selection, start, end)?),
        })
    }

    /// The rows of the next slide, and whether they are known to equal those of the slide before.
    pub(super) fn slide(
        &mut self,
        start: Micros,
        end: Micros,
    ) -> Result<(PaneRows, bool), WindowError> {
        Ok(match self {
            Self::Counts(panes) => {
                let (rows, is_same) = panes.slide(start, end);
                (PaneRows::Counts(rows), is_same)
            }
            Self::Generic(panes) => {
                let rows = panes.rows(PaneSelection::Range(start, end), start, end)?;
                (PaneRows::Columns(rows), false)
            }
        })
    }

    /// The next slide has none before it to compare with.
    pub(super) fn forget_previous_slide(&mut self) {
        match self {
            Self::Counts(panes) => panes.forget_previous_slide(),
            Self::Generic(_) => {}
        }
    }

    /// What reads windows without changing anything; costs a copy of the states once.
    pub(super) fn reader(&self) -> Result<PaneReader<'_>, WindowError> {
        Ok(match self {
            Self::Counts(panes) => PaneReader::Counts(panes),
            Self::Generic(panes) => PaneReader::Generic(Box::new(panes.aggregated_copy()?)),
        })
    }

    /// The aggregation's columns of several windows, one after the other.
    pub(super) fn columns(
        &self,
        window: &Window,
        fired: &[&FiredWindow],
    ) -> Result<Vec<ArrayRef>, WindowError> {
        match self {
            Self::Counts(panes) => {
                let results: Vec<(Micros, Micros, &GroupCounts)> = fired
                    .iter()
                    .filter_map(|f| match &f.rows {
                        PaneRows::Counts(counts) => Some((f.start, f.end, counts)),
                        PaneRows::Columns(_) => None,
                    })
                    .collect();
                panes.columns(window, &results)
            }
            Self::Generic(_) => concat_columns(fired),
        }
    }

    /// Drops the panes that start before a time.
    pub(super) fn drop_before(&mut self, time: Micros) {
        match self {
            Self::Counts(panes) => panes.drop_before(time),
            Self::Generic(panes) => panes.drop_before(time),
        }
    }

    pub(super) fn remove(&mut self, pane: Micros) {
        match self {
            Self::Counts(panes) => panes.remove(pane),
            Self::Generic(panes) => panes.remove(pane),
        }
    }

    /// The block of LSNs whose rows are still pending; a snapshot's head has it.
    pub(super) fn pending_block(&self) -> Lsn {
        match self {
            Self::Counts(_) => 0,
            Self::Generic(panes) => panes.pending_block(),
        }
    }

    /// Appends all panes to a snapshot: one batch of counts, or pending rows and states.
    pub(super) fn save(&self, out: &mut Vec<u8>) {
        match self {
            Self::Counts(panes) => {
                let saved = panes.save().expect("groups become columns");
                put_batches(out, &saved.schema(), std::slice::from_ref(&saved));
            }
            Self::Generic(panes) => {
                let (pending, states) = panes.save();
                let (projected, state) = panes.schemas();
                put_batches(out, &projected, &pending);
                put_batches(out, &state, &states);
            }
        }
    }

    /// Reads what [`Self::save`] wrote into empty panes.
    pub(super) fn load(
        &mut self,
        bytes: &mut &[u8],
        pending_block: Lsn,
    ) -> Result<(), WindowError> {
        match self {
            Self::Counts(panes) => {
                panes.load(&take_batch(bytes)?)?;
                panes.end_batch();
                Ok(())
            }
            Self::Generic(panes) => {
                let pending = take_batches(bytes)?;
                panes.load(pending, take_batches(bytes)?, pending_block)
            }
        }
    }
}

/// Reads the rows of windows that are still open.
pub(super) enum PaneReader<'a> {
    Counts(&'a CountAggregator),
    Generic(Box<GenericAggregator>),
}

impl PaneReader<'_> {
    pub(super) fn rows(
        &self,
        selection: PaneSelection<'_>,
        start: Micros,
        end: Micros,
    ) -> Result<PaneRows, WindowError> {
        Ok(match self {
            Self::Counts(panes) => PaneRows::Counts(panes.rows(selection)),
            Self::Generic(panes) => PaneRows::Columns(panes.finalize(selection, start, end)?),
        })
    }
}

fn concat_columns(fired: &[&FiredWindow]) -> Result<Vec<ArrayRef>, WindowError> {
    let parts: Vec<&Vec<ArrayRef>> = fired
        .iter()
        .filter_map(|f| match &f.rows {
            PaneRows::Columns(columns) => Some(columns),
            PaneRows::Counts(_) => None,
        })
        .collect();
    let Some(first) = parts.first() else {
        return Ok(Vec::new());
    };
    (0..first.len())
        .map(|n| {
            let columns: Vec<&dyn Array> = parts.iter().map(|p| p[n].as_ref()).collect();
            Ok(arrow::compute::concat(&columns)?)
        })
        .collect()
}
