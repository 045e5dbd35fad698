//! Random histories of an entity table against a list of all rows: what queries see, what an
//! outside reader sees of each version, what a kill leaves, and how much is written for a changed
//! row.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::prelude::SessionContext;
use object_store::local::LocalFileSystem;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::leaves::{leaves, places};
use super::scan::EntitySnapshot;
use super::*;
use crate::ids::TableId;
use crate::schema::{Layout, types};
use crate::views::LogIdentity;
use crate::views::lake::compact::GRACE;
use crate::views::lake::files::read;
use crate::views::lake::memtable::UnflushedRows;
use crate::views::lake::provider::lake_url;
use crate::views::lake::{RowClass, TableSpec};

/// LSN, version, key, value.
type Row = (i64, i64, i64, i64);

/// What the keys are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keys {
    /// Numbers given as they come, each changed again for a while.
    Ascending,
    Numbers,
    Texts,
}

struct World {
    folder: TempDir,
    runtime: Runtime,
    keys: Keys,
    random: StdRng,
    /// All rows that were ever accepted: the log.
    log: Vec<Row>,
    all_keys: i64,
    table: LakeTable,
    merge: Option<Merge>,
    applied: usize,
    /// Rows and bytes in files that were written.
    written: (u64, u64),
}

const SIZES: Sizes = Sizes {
    leaf_rows: 60,
    leaf_bytes: 1 << 20,
    group_rows: 16,
    floor: 30,
};

fn open(folder: &TempDir, runtime: &Runtime, keys: Keys, sizes: Sizes) -> LakeTable {
    let key = if keys == Keys::Texts {
        DataType::Utf8
    } else {
        DataType::Int64
    };
    let fields = vec![
        Field::new("lsn", DataType::Int64, true),
        Field::new("updated", types::timestamp(), true),
        Field::new("version", DataType::Int64, true),
        Field::new("value", DataType::Int64, true),
        Field::new("key", key, true),
    ];
    let spec = TableSpec {
        id: TableId::entity("things"),
        name: "things".into(),
        root: folder.path().join("things"),
        schema: Arc::new(Schema::new(fields)),
        time_column: 1,
        layout: Layout::Buckets,
        keys: vec![4],
    };
    let log = LogIdentity {
        instance: 0,
        id: 7,
        start_lsn: 0,
    };
    let mut table = LakeTable::open(spec, log, runtime.handle().clone(), true)
        .expect("opened")
        .expect("made");
    table.sizes = sizes;
    table
}

impl World {
    fn new(keys: Keys, all_keys: i64, seed: u64, sizes: Sizes) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("built");
        let table = open(&folder, &runtime, keys, sizes);
        let random = StdRng::seed_from_u64(seed);
        let (log, merge) = (Vec::new(), None);
        Self {
            folder,
            runtime,
            keys,
            random,
            log,
            all_keys,
            table,
            merge,
            applied: 0,
            written: (0, 0),
        }
    }

    fn below(&mut self, n: i64) -> i64 {
        self.random.random_range(0..n)
    }

    /// Accepts rows, and has them in memory.
    fn accept(&mut self, count: usize) {
        for _ in 0..count {
            let lsn = self.log.len() as i64 + 1;
            let key = match self.keys {
                Keys::Ascending => lsn * 3 - self.below(40),
                _ => self.below(self.all_keys) * 1_000_003 % 7_777_777_777,
            };
            let row = (lsn, lsn + self.below(20), key, self.below(1_000));
            self.log.push(row);
        }
        let rows = self.batch(&self.log[self.applied..]);
        self.applied = self.log.len();
        self.table.push(
            Some(UnflushedRows::Rows(rows)),
            None,
            self.applied as u64,
            None,
        );
    }

    fn batch(&self, rows: &[Row]) -> RecordBatch {
        let numbers = |of: fn(&Row) -> i64| {
            Arc::new(Int64Array::from_iter_values(rows.iter().map(of))) as ArrayRef
        };
        let times = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|r| r.0 * 1_000))
            .with_timezone("UTC");
        let keys = match self.keys {
            Keys::Texts => Arc::new(StringArray::from_iter_values(
                rows.iter().map(|r| r.2.to_string()),
            )) as ArrayRef,
            _ => numbers(|r| r.2),
        };
        let columns = vec![
            numbers(|r| r.0),
            Arc::new(times) as ArrayRef,
            numbers(|r| r.1),
            numbers(|r| r.3),
            keys,
        ];
        RecordBatch::try_new(self.table.spec.schema.clone(), columns).expect("rows")
    }

    fn rows_of(batches: &[RecordBatch]) -> Vec<Row> {
        let mut rows = Vec::new();
        for batch in batches {
            let column = |name: &str| batch.column_by_name(name).expect("a column");
            let number = |name: &str| {
                column(name)
                    .as_any()
                    .downcast_ref::<Int64Array>()
                    .expect("numbers")
                    .clone()
            };
            let (lsn, version, value) = (number("lsn"), number("version"), number("value"));
            let texts = column("key").as_any().downcast_ref::<StringArray>();
            for row in 0..batch.num_rows() {
                let key = match texts {
                    Some(texts) => texts.value(row).parse().expect("a number"),
                    None => number("key").value(row),
                };
                rows.push((lsn.value(row), version.value(row), key, value.value(row)));
            }
        }
        rows
    }

    /// The recount: of each key the newest row up to a record.
    fn newest(&self, to: u64) -> BTreeMap<i64, Row> {
        let mut newest: BTreeMap<i64, Row> = BTreeMap::new();
        for row in self.log.iter().filter(|row| row.0 as u64 <= to) {
            let known = newest.entry(row.2).or_insert(*row);
            if (row.1, row.0) >= (known.1, known.0) {
                *known = *row;
            }
        }
        newest
    }

    fn write(&mut self, how: MergeScope) -> (WrittenFiles, usize) {
        let parts = self.table.seal(RowClass::Recent);
        let rows = parts
            .iter()
            .map(|part| part.batch(&self.table.spec.schema).expect("rows"))
            .collect();
        let written = write(
            &self.table,
            rows,
            self.merge.take(),
            how,
            self.applied as u64,
        )
        .expect("written");
        (written, parts.len())
    }

    fn commit(&mut self, how: MergeScope) {
        let (mut written, taken) = self.write(how);
        self.merge = written.merge.take();
        let before = self.table.snapshot().levels;
        let new: Vec<Level> = written
            .levels
            .iter()
            .flatten()
            .filter(|level| !before.contains(level))
            .cloned()
            .collect();
        for file in written
            .add
            .iter()
            .chain(new.iter().map(|level| &level.entry))
        {
            self.written = (self.written.0 + file.rows, self.written.1 + file.bytes);
        }
        let checkpoints = vec![(RowClass::Recent, self.applied as u64)];
        let change = Change {
            checkpoints,
            ..change(written)
        };
        self.table
            .commit(&change, &[(RowClass::Recent, taken)])
            .expect("committed");
    }

    /// The process dies, maybe with files written that no version names, and the next one reads the
    /// log from its checkpoint on.
    fn kill(&mut self) {
        if self.random.random_range(0..2) == 0 {
            let (written, _) = self.write(MergeScope::Due);
            std::mem::forget(written);
        }
        std::mem::forget(self.merge.take());
        self.table = open(
            &self.folder,
            &self.runtime,
            self.keys,
            self.table.sizes.clone(),
        );
        self.applied = self.table.committed().recent as usize;
        self.accept(0);
    }

    /// An outside reader sees the files of the version, and nothing else.
    fn check_files(&self) {
        let state = self.table.snapshot();
        let spec = &self.table.spec;
        let files_lsn = self.table.files_lsn();
        let mut outside = Vec::new();
        for leaf in leaves(&state.files) {
            for file in &leaf.files {
                let batches = read(spec, file).expect("readable");
                assert!(
                    batches
                        .iter()
                        .flat_map(|batch| places(spec, batch))
                        .all(|p| leaf.places.contains(&p))
                );
                // Some more, where those of one place stay together.
                assert!(
                    file.rows <= self.table.sizes.leaf_rows as u64 + 16,
                    "{} rows",
                    file.rows
                );
                outside.extend(Self::rows_of(&batches));
            }
        }
        let want = self.newest(files_lsn);
        assert_eq!(
            outside.len(),
            want.len(),
            "each key once, as of {files_lsn}"
        );
        assert_eq!(
            outside
                .into_iter()
                .map(|row| (row.2, row))
                .collect::<BTreeMap<_, _>>(),
            want
        );
    }

    fn check(&self) {
        self.check_files();
        let want = self.newest(self.applied as u64);
        let found = self.sql("select * from things");
        assert_eq!(found.len(), want.len());
        assert_eq!(
            found
                .into_iter()
                .map(|row| (row.2, row))
                .collect::<BTreeMap<_, _>>(),
            want
        );
        if let Some((key, row)) = want.iter().nth(want.len() / 2) {
            let key = if self.keys == Keys::Texts {
                format!("'{key}'")
            } else {
                key.to_string()
            };
            assert_eq!(
                self.sql(&format!("select * from things where key = {key}")),
                [*row]
            );
            let old = self.sql(&format!(
                "select * from things where key = {key} and value <> {}",
                row.3
            ));
            assert_eq!(old, [], "an older row does not come back for a filter");
        }
        let count = self.query("select count(*) as n from things");
        let count = count[0]
            .column(0)
            .as_any()
            .downcast_ref::<Int64Array>()
            .expect("a number")
            .value(0);
        assert_eq!(count, want.len() as i64);
    }

    fn query(&self, sql: &str) -> Vec<RecordBatch> {
        let context = SessionContext::new();
        let store =
            Arc::new(LocalFileSystem::new_with_prefix(self.folder.path()).expect("a folder"));
        context
            .runtime_env()
            .register_object_store(lake_url().as_ref(), store);
        let snapshot = EntitySnapshot::from_state(&self.table, self.table.snapshot());
        context
            .register_table("things", Arc::new(snapshot))
            .expect("registered");
        self.runtime
            .block_on(async { context.sql(sql).await?.collect().await })
            .expect("answered")
    }

    fn sql(&self, sql: &str) -> Vec<Row> {
        Self::rows_of(&self.query(sql))
    }

    /// On the disk there is what the table names, once nobody reads what it named before.
    fn check_disk(&self) {
        let later = crate::clock::wall_clock_ms() + 10 * GRACE.as_millis() as i64;
        self.table.vacuum(later, GRACE).expect("removed");
        assert_eq!(self.table.orphan_bytes(), 0);
    }
}

#[test]
fn random_histories_give_the_newest_row_of_each_key_to_everyone() {
    let (mut merged, mut waited, mut stepped) = (0, 0, 0);
    for (keys, all_keys, seed) in [
        (Keys::Ascending, 0, 1),
        (Keys::Numbers, 400, 2),
        (Keys::Numbers, 5_000, 3),
        (Keys::Texts, 3_000, 4),
    ] {
        let mut world = World::new(keys, all_keys, seed, SIZES);
        for _ in 0..45 {
            let most = [5, 40, 400][world.below(3) as usize];
            let count = world.below(most) as usize + 1;
            world.accept(count);
            match world.below(12) {
                0 => world.kill(),
                1 => world.check(),
                2 if world.below(4) == 0 => {
                    while world.table.has_levels()
                        || !world.table.snapshot().unflushed.recent.is_empty()
                    {
                        world.commit(MergeScope::All);
                    }
                    assert_eq!(world.table.files_lsn(), world.applied as u64);
                }
                _ => world.commit(MergeScope::Due),
            }
            world.check();
            let has_levels = world.table.has_levels();
            (merged, waited) = (
                merged + usize::from(!has_levels),
                waited + usize::from(has_levels),
            );
            stepped += usize::from(world.merge.is_some());
        }
        world.kill();
        world.check();
        world.check_disk();
    }
    assert!(
        merged > 30 && waited > 30 && stepped > 5,
        "{merged} {waited} {stepped}"
    );
}

#[test]
fn what_a_changed_row_costs_grows_with_the_logarithm_of_the_table() {
    let sizes = Sizes {
        leaf_rows: 200,
        leaf_bytes: 1 << 20,
        group_rows: 50,
        floor: 200,
    };
    let mut costs = Vec::new();
    for keys in [Keys::Texts, Keys::Ascending] {
        for all_keys in [500, 2_000, 8_000] {
            let mut world = World::new(keys, all_keys, 5, sizes.clone());
            world.accept(all_keys as usize);
            world.commit(MergeScope::Due);
            world.written = (0, 0);
            let (mut changed, mut levels) = (0, 0);
            while changed < 2 * all_keys as u64 {
                world.accept(200);
                changed += 200;
                world.commit(MergeScope::Due);
                levels = levels.max(world.table.snapshot().levels.len());
            }
            world.check();
            let log = (all_keys as f64).log2();
            costs.push((
                keys,
                all_keys,
                world.written.0 as f64 / changed as f64,
                world.written.1 / changed,
                levels,
            ));
            assert!(world.written.0 as f64 <= changed as f64 * log, "{costs:?}");
            assert!(levels as f64 <= log, "{costs:?}");
        }
    }
    println!(
        "keys, rows of the table, rows and bytes written for a changed one, levels: {costs:?}"
    );
    // New numbers as they come cost the same in any table.
    assert!(costs[5].2 <= 1.2 * costs[3].2, "{costs:?}");
}

#[test]
fn a_table_from_before_there_were_leaves_is_split() {
    let mut world = World::new(
        Keys::Texts,
        4_000,
        6,
        Sizes {
            leaf_rows: 1 << 20,
            floor: 1 << 20,
            ..SIZES
        },
    );
    world.accept(6_000);
    world.commit(MergeScope::Due);
    assert!(world.table.snapshot().files.len() <= 16);
    world.check();
    world.table.sizes = SIZES;
    assert!(is_overdue(&world.table));
    for _ in 0..200 {
        world.commit(MergeScope::Due);
    }
    assert!(!is_overdue(&world.table));
    world.check();
    let names: BTreeSet<String> = world
        .table
        .files()
        .iter()
        .map(|file| file.path.clone())
        .collect();
    assert!(names.len() > 60, "{names:?}");
}
