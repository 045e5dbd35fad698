//! What is not wrong with a folder's tables, but is worth a change of the configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::config::units::Size;
use crate::schema::{Catalog, Layout, versions_of};
use crate::views::lake::files::FileEntry;
use crate::views::lake::{LakeTable, RowOrigin};

/// From so many hours on, and up to so many bytes in each on average, an hour's folder costs more
/// than it holds.
const MANY_HOURS: usize = 1_000;
const THIN_BYTES: u64 = 64 << 10;

/// What there is to say of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The same note, as long as this is the same.
    pub about: (String, &'static str),
    pub text: String,
}

/// What there is to say of these tables, by their names.
pub fn of_tables(tables: &BTreeMap<String, Arc<LakeTable>>, catalog: &Catalog) -> Vec<Note> {
    // What `raw` holds is rebuilt from nothing, and leaves with its retention.
    let tables = tables
        .iter()
        .filter(|(_, table)| table.spec.feed != RowOrigin::Raw);
    tables
        .flat_map(|(name, table)| of_table(name, table, catalog))
        .collect()
}

fn of_table(name: &str, table: &LakeTable, catalog: &Catalog) -> Option<Note> {
    let window = catalog
        .windows
        .iter()
        .find(|w| versions_of(&w.name) == name);
    let what = window.map_or(name, |w| w.name.as_str());
    let by = |layout: Layout| {
        if layout == Layout::Hours {
            "hour"
        } else {
            "day"
        }
    };
    let (is, wanted) = (table.spec.layout, table.configured);
    if is != wanted {
        let (is, wanted) = (by(is), by(wanted));
        return Some(Note {
            about: (name.to_owned(), "layout"),
            text: format!(
                "the table {name} is partitioned by {is}, not by {wanted} as `[lake] partition` says; it stays so until `weir rebuild {what}`"
            ),
        });
    }
    let (hours, bytes) = thin_hours(is, &table.files())?;
    Some(Note {
        about: (name.to_owned(), "thin"),
        text: format!(
            "the table {name} has {hours} hours with {} each on average; with `[lake] partition = \"day\"` and `weir rebuild {what}` it takes less room and is read faster",
            Size(bytes)
        ),
    })
}

/// The hours of a table and the bytes that each holds on average, where it has many and they hold
/// little.
fn thin_hours(layout: Layout, files: &[FileEntry]) -> Option<(usize, u64)> {
    if layout != Layout::Hours || files.len() < MANY_HOURS {
        return None;
    }
    let hours = files
        .iter()
        .map(|file| file.bucket)
        .collect::<BTreeSet<_>>()
        .len();
    let bytes = files.iter().map(|file| file.bytes).sum::<u64>() / hours.max(1) as u64;
    (hours >= MANY_HOURS && bytes < THIN_BYTES).then_some((hours, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bucket: i64, bytes: u64) -> FileEntry {
        FileEntry {
            bytes,
            bucket,
            ..FileEntry::sample()
        }
    }

    #[test]
    fn hours_are_thin_where_many_hold_little() {
        let files =
            |hours: i64, bytes: u64| (0..hours).map(|hour| file(hour, bytes)).collect::<Vec<_>>();
        assert_eq!(
            thin_hours(Layout::Hours, &files(1_000, 9_000)),
            Some((1_000, 9_000))
        );
        assert_eq!(thin_hours(Layout::Hours, &files(999, 9_000)), None);
        assert_eq!(thin_hours(Layout::Hours, &files(1_000, 100 << 10)), None);
        assert_eq!(thin_hours(Layout::Days, &files(1_000, 9_000)), None);
        // Many files of few hours are merged by themselves.
        assert_eq!(thin_hours(Layout::Hours, &vec![file(7, 10); 2_000]), None);
    }
}
