//! How a table is partitioned into folders.

use arrow::datatypes::{DataType, Field};

use crate::event::{MICROS_PER_DAY, MICROS_PER_HOUR, Micros};

/// A table's partitioning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `year=…/month=…/day=…/hour=…`, by event time in UTC.
    Hours,
    /// `year=…/month=…/day=…`, by event time in UTC.
    Days,
    /// By a hash of the columns that identify a row.
    Buckets,
}

/// Folders of a table that is partitioned by hash.
pub const BUCKETS: i64 = 16;

impl Layout {
    /// The partition columns, which follow the table's own.
    pub fn fields(self) -> Vec<Field> {
        let names: &[&str] = match self {
            Self::Hours => &["year", "month", "day", "hour"],
            Self::Days => &["year", "month", "day"],
            Self::Buckets => &["bucket"],
        };
        names
            .iter()
            .map(|n| Field::new(*n, DataType::Int32, true))
            .collect()
    }

    /// Time covered by a folder; none if rows are not partitioned by time.
    pub fn width(self) -> Option<Micros> {
        match self {
            Self::Hours => Some(MICROS_PER_HOUR),
            Self::Days => Some(MICROS_PER_DAY),
            Self::Buckets => None,
        }
    }
}
