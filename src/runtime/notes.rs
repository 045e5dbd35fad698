//! Notes on what a folder holds: nothing is wrong, but a change of the configuration would help.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::config::units::Size;
use crate::ids::TableId;
use crate::query::Handles;
use crate::schema::Layout;
use crate::views::lake::LakeTable;
use crate::views::lake::files::FileEntry;

/// Where a table has at least so many hours with less than so many bytes on average, partitions by
/// hour cost more than they hold.
const MIN_THIN_HOURS: usize = 1_000;
const MAX_THIN_BYTES: u64 = 64 << 10;

/// A note on a table, a window or a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// What it is on and the kind of note: a note with the same key is the same.
    pub key: (String, &'static str),
    pub text: String,
}

/// Notes on tables, and on windows and sessions that a limit closed early.
pub fn all(handles: &Handles) -> Vec<Note> {
    let windows = handles.progress.windows().into_iter();
    let windows = windows.filter_map(|(name, progress)| {
        let max_groups = handles.catalog.window(&name)?.def.max_groups;
        of_window(&name, progress.abandoned, max_groups)
    });
    let streams = handles.progress.streams().into_iter();
    let streams = streams.filter_map(|(name, progress)| {
        let max_open = handles.catalog.streams.get(&name)?.session()?.max_open;
        of_sessions(&name, progress.totals.abandoned_sessions, max_open)
    });
    let limited = windows.chain(streams);
    let mut notes = of_tables(&handles.tables);
    notes.extend(limited);
    notes
}

fn of_window(name: &str, abandoned: u64, max_groups: usize) -> Option<Note> {
    (abandoned > 0).then(|| Note {
        key: (name.to_owned(), "groups"),
        text: format!(
            "windows of `{name}` were closed early {abandoned} times, with the status `abandoned`: more groups were open than `max_groups` ({max_groups}) under [windows.{name}] allows; raise it, or group by fewer values"
        ),
    })
}

fn of_sessions(stream: &str, abandoned: u64, max_open: usize) -> Option<Note> {
    (abandoned > 0).then(|| Note {
        key: (stream.to_owned(), "sessions"),
        text: format!(
            "sessions of `{stream}` were closed early {abandoned} times, with the status `abandoned`: more were open than `max_open` ({max_open}) of its `session` allows; raise it, or shorten its `gap`"
        ),
    })
}

/// Notes on these tables.
pub fn of_tables(tables: &BTreeMap<TableId, Arc<LakeTable>>) -> Vec<Note> {
    // `raw` cannot be rebuilt, and its rows leave with its retention.
    let tables = tables.iter().filter(|(id, _)| **id != TableId::Raw);
    tables.flat_map(|(id, table)| of_table(id, table)).collect()
}

fn of_table(id: &TableId, table: &LakeTable) -> Option<Note> {
    let (name, what) = (&table.spec.name, id.rebuild_name());
    let unit = |layout: Layout| {
        if layout == Layout::Hours {
            "hour"
        } else {
            "day"
        }
    };
    let (layout, configured) = (table.spec.layout, table.configured);
    if layout != configured {
        let (current, wanted) = (unit(layout), unit(configured));
        return Some(Note {
            key: (name.clone(), "layout"),
            text: format!(
                "the table {name} is partitioned by {current}, not by {wanted} as `[lake] partition` says; it stays so until `weir rebuild {what}`"
            ),
        });
    }
    let (hours, bytes) = thin_hours(layout, &table.files())?;
    Some(Note {
        key: (name.clone(), "thin"),
        text: format!(
            "the table {name} has {hours} hours with {} each on average; with `[lake] partition = \"day\"` and `weir rebuild {what}` it takes less room and is read faster",
            Size(bytes)
        ),
    })
}

/// The number of hours of a table and their bytes on average, where it has many hours and they hold
/// little. Pure.
fn thin_hours(layout: Layout, files: &[FileEntry]) -> Option<(usize, u64)> {
    if layout != Layout::Hours || files.len() < MIN_THIN_HOURS {
        return None;
    }
    let hours = files
        .iter()
        .map(|file| file.bucket)
        .collect::<BTreeSet<_>>()
        .len();
    let bytes = files.iter().map(|file| file.bytes).sum::<u64>() / hours.max(1) as u64;
    (hours >= MIN_THIN_HOURS && bytes < MAX_THIN_BYTES).then_some((hours, bytes))
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
    fn what_a_limit_closed_early_is_noted() {
        assert_eq!(of_window("w", 0, 5), None);
        assert_eq!(of_sessions("s", 0, 5), None);
        let notes = [of_window("top", 3, 5), of_sessions("rsvps", 2, 7)];
        let texts: Vec<String> = notes.into_iter().flatten().map(|note| note.text).collect();
        insta::assert_snapshot!(texts.join("\n"), @r"
        windows of `top` were closed early 3 times, with the status `abandoned`: more groups were open than `max_groups` (5) under [windows.top] allows; raise it, or group by fewer values
        sessions of `rsvps` were closed early 2 times, with the status `abandoned`: more were open than `max_open` (7) of its `session` allows; raise it, or shorten its `gap`
        ");
    }

    #[test]
    fn many_hours_with_few_bytes_are_thin() {
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
