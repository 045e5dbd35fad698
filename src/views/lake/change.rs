//! What one commit changes in a table: decided without the table, applied by it.

use deltalake::protocol::{DeltaOperation, SaveMode};

use super::entities::levels::Level;
use super::files::{FileEntry, partition_values};
use super::{RowClass, TableSpec};
use crate::event::Lsn;

/// Files to add and to remove in one Delta commit, with the checkpoints that it brings.
#[derive(Default)]
pub struct Change {
    /// Files that are written and synced.
    pub add: Vec<FileEntry>,
    /// Files of the current version.
    pub remove: Vec<FileEntry>,
    /// Per class of rows the record that it then reaches.
    pub checkpoints: Vec<(RowClass, Lsn)>,
    /// The new levels of an entity table, if they change.
    pub levels: Option<Vec<Level>>,
    /// The record as of which its files are then; without levels it is the checkpoint.
    pub files_lsn: Option<Lsn>,
    /// Where retention removes the files: the last record of which it has removed a row then.
    pub dropped_lsn: Option<Lsn>,
    /// Rows change; false for a merge, which only moves them.
    pub data_change: bool,
    /// The new columns and layout of the table, if they change: those of the files that are added.
    pub new_spec: Option<Box<TableSpec>>,
}

impl Change {
    /// What Delta's history shows of it.
    pub(super) fn operation(&self, spec: &TableSpec) -> DeltaOperation {
        let (adds, removes) = (!self.add.is_empty(), !self.remove.is_empty());
        match (self.data_change, adds, removes) {
            (true, true, true) => DeltaOperation::Update { predicate: None },
            (true, false, true) => DeltaOperation::Delete { predicate: None },
            (true, _, false) => {
                let columns = partition_values(0, spec.layout).into_iter();
                DeltaOperation::Write {
                    mode: SaveMode::Append,
                    partition_by: Some(columns.map(|(name, _)| name.to_owned()).collect()),
                    predicate: None,
                }
            }
            (false, ..) => DeltaOperation::Optimize {
                predicate: None,
                target_size: 256 << 20,
            },
        }
    }

    /// Whether a table with these files and levels shows the change. One of checkpoints alone
    /// leaves no trace and counts as not happened.
    pub(super) fn is_applied(&self, files: &[FileEntry], levels: &[Level]) -> bool {
        let has = |file: &FileEntry| files.iter().any(|f| f.path == file.path);
        let leaves_trace = self.levels.is_some() || !self.add.is_empty() || !self.remove.is_empty();
        leaves_trace
            && self.levels.as_ref().is_none_or(|new| *levels == **new)
            && self.add.iter().all(has)
            && !self.remove.iter().any(has)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::schema::Layout;

    fn file(path: &str) -> FileEntry {
        FileEntry {
            path: path.into(),
            ..FileEntry::sample()
        }
    }

    fn change(add: &[&str], remove: &[&str], data_change: bool) -> Change {
        Change {
            add: add.iter().map(|path| file(path)).collect(),
            remove: remove.iter().map(|path| file(path)).collect(),
            data_change,
            ..Change::default()
        }
    }

    #[test]
    fn a_failed_commit_happened_where_the_table_shows_all_of_it() {
        let files = [file("a"), file("b")];
        for (add, remove, is_applied) in [
            (&["a"][..], &[][..], true),
            (&["a", "c"], &[], false),
            (&["b"], &["c"], true),
            (&["b"], &["a"], false),
            (&[], &["c"], true),
            (&[], &[], false),
        ] {
            let change = change(add, remove, true);
            let found = change.is_applied(&files, &[]);
            assert_eq!(found, is_applied, "{add:?} and {remove:?}");
        }
        let merge = Change {
            levels: Some(Vec::new()),
            ..Change::default()
        };
        assert!(merge.is_applied(&files, &[]));
    }

    #[test]
    fn a_change_has_its_operation_in_the_history() {
        let spec = TableSpec::raw(Path::new("lake"), Layout::Hours);
        for (add, remove, data_change, name) in [
            (&["a"][..], &[][..], true, "WRITE"),
            (&[], &[], true, "WRITE"),
            (&["a"], &["b"], true, "UPDATE"),
            (&[], &["b"], true, "DELETE"),
            (&["a"], &["b"], false, "OPTIMIZE"),
        ] {
            let operation = change(add, remove, data_change).operation(&spec);
            assert_eq!(operation.name(), name, "{add:?} {remove:?} {data_change}");
        }
    }
}
