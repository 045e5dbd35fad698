//! What a query leaves out unread, by bounds of files, row groups and pages, is never part of its
//! answer: random filters over every type are compared with the same filters over the same rows in
//! memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Float32Array, Float64Array, Int32Array, Int64Array,
    ListBuilder, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use parquet::arrow::ArrowWriter;
use tokio::runtime::Runtime;
use weir::event::{MICROS_PER_HOUR, bucket};
use weir::ids::TableId;
use weir::query::Handles;
use weir::query::PipelineProgress;
use weir::query::sql::{SqlAnswer, SqlEngine, SqlLimits};
use weir::schema::{Catalog, Layout, functions, session_config};
use weir::views::LogIdentity;
use weir::views::lake::files::{
    FileEntry, partition_folder, properties_of, with_partition_columns,
};
use weir::views::lake::memtable::UnflushedRows;
use weir::views::lake::{Change, LakeTable, RowClass, TableSpec};

use crate::support::Lcg;

const START: i64 = 1_465_520_400_000_000;
/// Rows of a file, of its row groups and of their pages.
const FILE_ROWS: usize = 1_000;
const GROUP_ROWS: usize = 300;
const PAGE_ROWS: usize = 40;
/// Rows in memory, in the order of their LSNs.
const UNFLUSHED_ROWS: usize = 280;

fn schema() -> SchemaRef {
    let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let columns = [
        ("lsn", DataType::Int64),
        ("event_time", utc),
        ("number", DataType::Int64),
        ("small", DataType::Int32),
        ("text", DataType::Utf8),
        ("double", DataType::Float64),
        ("single", DataType::Float32),
        ("flag", DataType::Boolean),
        ("born", DataType::Date32),
        ("local", DataType::Timestamp(TimeUnit::Microsecond, None)),
        (
            "words",
            DataType::List(Arc::new(Field::new("item", DataType::Utf8, true))),
        ),
    ];
    Arc::new(Schema::new(
        columns
            .map(|(name, ty)| Field::new(name, ty, true))
            .to_vec(),
    ))
}

/// A value that ascends with the row, more or less, and now and then is null; some runs of rows
/// have one value, or none.
fn ascending(numbers: &mut Lcg, row: usize) -> Option<i64> {
    let run = row / 60 % 5;
    let value = match run {
        0 => 0,
        1 => row as i64 / 60,
        _ => row as i64 / 3 + numbers.below(7) as i64 - 3,
    };
    (run != 4 || (row / 60).is_multiple_of(2))
        .then_some(value)
        .filter(|_| run == 0 || numbers.below(9) > 0)
}

const FLOATS: [f64; 8] = [
    f64::NAN,
    -0.0,
    0.0,
    f64::INFINITY,
    f64::NEG_INFINITY,
    1.5,
    -7.25,
    f64::MIN_POSITIVE,
];

/// One of the values that are hard to order, or a plain one; in some runs of rows only plain ones
/// and NaN.
fn float(numbers: &mut Lcg, row: usize) -> Option<f64> {
    let plain = (row / 40) as f64 / 4.0;
    match (row / 40 % 3, numbers.below(10)) {
        (0, n) => FLOATS.get(n as usize).copied(),
        (1, 0) => Some(f64::NAN),
        (_, 1) if (row / 40).is_multiple_of(2) => None,
        _ => Some(plain),
    }
}

/// Text of which the first hundred bytes are alike, or of the greatest characters, so that bounds
/// are cut.
fn text(numbers: &mut Lcg, row: usize) -> Option<String> {
    let n = row / 20;
    match numbers.below(12) {
        0 => None,
        1 => Some(String::new()),
        2 => Some("\u{10ffff}".repeat(40)),
        3 => Some(format!("{}{}", "é".repeat(50), n % 7)),
        4 => Some(format!("{}{}", "x".repeat(100), n % 7)),
        _ => Some(format!("w{:03}", n % 300)),
    }
}

/// Rows from one of these on, in the order of their times.
fn rows(schema: &SchemaRef, first: usize, count: usize, numbers: &mut Lcg) -> RecordBatch {
    let all = first..first + count;
    let mut words = ListBuilder::new(StringBuilder::new());
    for row in all.clone() {
        let items = numbers.below(4);
        (0..items).for_each(|i| {
            words
                .values()
                .append_option((i < 2).then(|| format!("w{}", row / 50 + i as usize)));
        });
        words.append(numbers.below(5) > 0);
    }
    let mut values = |of: fn(&mut Lcg, usize) -> Option<i64>| -> Vec<Option<i64>> {
        all.clone().map(|row| of(numbers, row)).collect()
    };
    let [number, small, day, local] = [(); 4].map(|()| values(ascending));
    let times = all
        .clone()
        .map(|row| START + row as i64 * 1_700_000 / 2 / 1_000 * 1_000);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(
            all.clone()
                .map(|row| Some(row as i64 * 7 % 5_000 + 1))
                .collect::<Int64Array>(),
        ),
        Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")),
        Arc::new(Int64Array::from(number)),
        Arc::new(
            small
                .into_iter()
                .map(|v| v.map(|v| v as i32))
                .collect::<Int32Array>(),
        ),
        Arc::new(
            all.clone()
                .map(|row| text(numbers, row))
                .collect::<StringArray>(),
        ),
        Arc::new(
            all.clone()
                .map(|row| float(numbers, row))
                .collect::<Float64Array>(),
        ),
        Arc::new(
            all.clone()
                .map(|row| float(numbers, row).map(|f| f as f32))
                .collect::<Float32Array>(),
        ),
        Arc::new(
            all.clone()
                .map(|row| Some((row / 90).is_multiple_of(2)).filter(|_| row % 11 > 0))
                .collect::<BooleanArray>(),
        ),
        Arc::new(
            day.into_iter()
                .map(|v| v.map(|v| v as i32))
                .collect::<Date32Array>(),
        ),
        Arc::new(
            local
                .into_iter()
                .map(|v| v.map(|v| START + v * 1_000_000))
                .collect::<TimestampMicrosecondArray>(),
        ),
        Arc::new(words.finish()),
    ];
    RecordBatch::try_new(schema.clone(), columns).expect("the schema's columns")
}

/// Writes rows of one hour as a file of small row groups and pages.
fn write(spec: &TableSpec, name: &str, class: RowClass, rows: &RecordBatch) -> FileEntry {
    let times = rows
        .column(1)
        .as_any()
        .downcast_ref::<TimestampMicrosecondArray>()
        .expect("times")
        .values();
    let lsns = rows
        .column(0)
        .as_any()
        .downcast_ref::<Int64Array>()
        .expect("LSNs")
        .values();
    let at = bucket(times[0], MICROS_PER_HOUR);
    let folder = partition_folder(at, Layout::Hours);
    std::fs::create_dir_all(spec.root.join(&folder)).expect("a folder");
    let path = format!("{folder}/{name}.parquet");
    let file = File::create(spec.root.join(&path)).expect("a file");
    let properties = properties_of(spec, None)
        .into_builder()
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_write_batch_size(PAGE_ROWS)
        .build();
    let mut writer =
        ArrowWriter::try_new(file, spec.schema.clone(), Some(properties)).expect("begun");
    writer.write(rows).expect("written");
    writer.close().expect("ended");
    FileEntry {
        bytes: std::fs::metadata(spec.root.join(&path))
            .expect("there")
            .len(),
        path,
        rows: rows.num_rows() as u64,
        bucket: at,
        class,
        min_time: times[0],
        max_time: times[times.len() - 1],
        min_lsn: *lsns.iter().min().expect("rows") as u64,
        max_lsn: *lsns.iter().max().expect("rows") as u64,
        written_ms: 0,
        checks: Default::default(),
    }
}

/// A table in the lake, and the same rows in memory.
struct Tables {
    runtime: Runtime,
    engine: SqlEngine,
    handles: Handles,
    plain: SessionContext,
    _folder: tempfile::TempDir,
}

impl Tables {
    fn new(numbers: &mut Lcg) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        let runtime = runtime.expect("threads");
        let lake = folder.path().join("lake");
        let spec = TableSpec {
            id: TableId::stream("t"),
            name: "t".into(),
            root: lake.join("t"),
            schema: schema(),
            time_column: 1,
            layout: Layout::Hours,
            keys: Vec::new(),
        };
        let log = LogIdentity {
            instance: 0,
            id: 1,
            start_lsn: 0,
        };
        let table = LakeTable::open(spec.clone(), log, runtime.handle().clone(), true);
        let table = Arc::new(table.expect("opens").expect("writable"));
        let batches = Self::fill(&table, &spec, numbers);
        let handles = Handles {
            catalog: Arc::new(Catalog::default()),
            lake: lake.clone(),
            tables: BTreeMap::from([(TableId::stream("t"), table.clone())]),
            search: BTreeMap::new(),
            places: BTreeMap::new(),
            counts: BTreeMap::new(),
            progress: Arc::new(PipelineProgress::default()),
        };
        let limits = SqlLimits {
            time: std::time::Duration::from_secs(60),
            rows: 100_000,
            bytes: 64 << 20,
            concurrent: 4,
            memory: 64 << 20,
            footers: 1 << 20,
        };
        let engine =
            SqlEngine::new(&lake, &folder.path().join("spill"), limits).expect("an engine");
        Self {
            runtime,
            engine,
            handles,
            plain: Self::in_memory(&table, &spec, &batches),
            _folder: folder,
        }
    }

    /// Four files in the table and rows that no file has; returns all of them.
    fn fill(table: &LakeTable, spec: &TableSpec, numbers: &mut Lcg) -> Vec<RecordBatch> {
        let mut batches: Vec<RecordBatch> = (0..4)
            .map(|n| rows(&spec.schema, n * FILE_ROWS, FILE_ROWS, numbers))
            .collect();
        let classes = [
            RowClass::Recent,
            RowClass::Recent,
            RowClass::Late,
            RowClass::Recent,
        ];
        let files = batches.iter().zip(classes).enumerate();
        let add = files
            .map(|(n, (rows, class))| write(spec, &format!("{}-{n}", class.name()), class, rows));
        let change = Change {
            add: add.collect(),
            data_change: true,
            ..Change::default()
        };
        table.commit(&change, &[]).expect("committed");
        batches.push(rows(&spec.schema, 4 * FILE_ROWS, UNFLUSHED_ROWS, numbers));
        table.push(
            Some(UnflushedRows::Rows(batches[4].clone())),
            None,
            5_000,
            None,
        );
        batches
    }

    /// The same rows in a table of DataFusion's own.
    fn in_memory(table: &LakeTable, spec: &TableSpec, batches: &[RecordBatch]) -> SessionContext {
        let whole = batches
            .iter()
            .map(|rows| with_partition_columns(spec, rows, &table.full_schema));
        let whole = whole
            .collect::<Result<Vec<_>, _>>()
            .expect("partition columns");
        let mut state = SessionContext::new_with_config(session_config(1)).state();
        functions::register(&mut state, functions::Limits::Query).expect("functions");
        let plain = SessionContext::new_with_state(state);
        let memory = MemTable::try_new(table.full_schema.clone(), vec![whole]).expect("a table");
        plain
            .register_table("t", Arc::new(memory))
            .expect("registered");
        plain
    }

    fn ask(&self, sql: &str) -> SqlAnswer {
        let answer = self
            .runtime
            .block_on(self.engine.run(sql, &self.handles, 0));
        answer.unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    /// Whether both give the same rows, in the order that the query asks for.
    fn compare(&self, sql: &str) -> usize {
        let lake = self.ask(sql);
        let memory = self
            .runtime
            .block_on(async { self.plain.sql(sql).await?.collect().await });
        let memory = memory.unwrap_or_else(|e| panic!("{sql}: {e}"));
        let show = |batches: &[RecordBatch]| -> Vec<String> {
            let text = arrow::util::pretty::pretty_format_batches(batches)
                .expect("shown")
                .to_string();
            let cells = |line: &str| line.split('|').map(str::trim).collect::<Vec<_>>().join("|");
            text.lines()
                .filter(|line| line.starts_with('|'))
                .skip(1)
                .map(cells)
                .collect()
        };
        let (lake, memory) = (show(&lake.batches), show(&memory));
        assert_eq!(lake, memory, "{sql}");
        memory.len()
    }
}

/// A condition on one column.
fn leaf(numbers: &mut Lcg) -> String {
    let mut one = |of: &[&str]| of[numbers.below(of.len() as u64) as usize].to_owned();
    let compare = one(&[
        "=",
        "<>",
        "<",
        "<=",
        ">",
        ">=",
        "is distinct from",
        "is not distinct from",
    ]);
    let kind = one(&[
        "number", "number", "small", "text", "float", "float", "time", "other", "list",
    ]);
    let doubles = [
        "'NaN'::double",
        "0.0",
        "-0.0",
        "'Infinity'::double",
        "'-Infinity'::double",
        "1.5",
        "7.0",
        "-7.25",
    ];
    let (float, text) = (
        one(&doubles),
        one(&[
            "''",
            "'w050'",
            "'w2%'",
            "'é'",
            "'xx'",
            "'\u{10ffff}'",
            "'w1'",
        ]),
    );
    let column = one(&["double", "single"]);
    let words = [kind.as_str(), &compare, &float, &text, &column];
    condition(words, numbers)
}

/// The condition of this kind, from its parts: kind, comparison, a floating-point number, a text, and
/// a floating-point column.
fn condition([kind, compare, float, text, column]: [&str; 5], numbers: &mut Lcg) -> String {
    let n = numbers.below(1_500) as i64;
    let micros = START + numbers.below(3_900) as i64 * 1_000_000;
    let pick = numbers.below(8);
    match (kind, pick) {
        ("number", 0) => format!("number in ({n}, {}, 0, null)", n + 5),
        ("number", 1) => format!("number between {n} and {}", n + 40),
        ("number", 2) => format!("number + 1 {compare} {n}"),
        ("number", 3) => format!("cast(number as varchar) {compare} '{n}'"),
        ("number", 4) => "number is null".into(),
        ("number", _) => format!("number {compare} {n}"),
        ("small", 0) => "small is not null".into(),
        ("small", 1) => format!("small {compare} {n}.5"),
        ("small", 2) => format!("small {compare} lsn - {n}"),
        ("small", _) => format!("small {compare} {n}"),
        ("text", 0) => format!("text like {text}"),
        ("text", 1) => format!("text not like {text}"),
        ("text", 2) => format!("starts_with(text, {text})"),
        ("text", 3) => format!("length(text) {compare} {}", n % 120),
        ("text", 4) => format!("text {compare} repeat('x', 100) || '{}'", n % 7),
        ("text", 5) => format!("text in ({text}, 'w0{}')", n % 90 + 10),
        ("text", _) => format!("text {compare} {text}"),
        ("float", 0) => format!("{column} in ({float}, 1.5)"),
        ("float", 1) => format!("{column} between {float} and 100.0"),
        ("float", 2) => format!("isnan({column})"),
        ("float", 3) => format!("{column} is null"),
        ("float", 4) => format!("abs({column}) {compare} {}", n as f64 / 4.0),
        ("float", _) => format!("{column} {compare} {float}"),
        ("time", 0) => {
            format!("date_trunc('minute', event_time) {compare} to_timestamp_micros({micros})")
        }
        ("time", 1) => format!("local {compare} to_timestamp_micros({micros})::timestamp"),
        ("time", 2) => format!("born {compare} date '1970-{:02}-11'", n % 12 + 1),
        ("time", 3) => format!("hour {compare} {}", n % 3),
        ("time", _) => format!("event_time {compare} to_timestamp_micros({micros})"),
        ("other", 0) => "flag".into(),
        ("other", 1) => "flag is null".into(),
        ("other", 2) => format!("flag {compare} true"),
        ("other", 3) => format!("coalesce(number, 7) {compare} {n}"),
        ("other", 4) => format!("case when flag then number else small end {compare} {n}"),
        ("other", _) => format!("lsn {compare} {}", n * 3),
        (_, 0) => "words is null".into(),
        (_, 1) => format!("array_length(words) {compare} {}", n % 3),
        _ => format!("array_has(words, 'w{}')", n % 90),
    }
}

fn filter(numbers: &mut Lcg, depth: u64) -> String {
    match numbers.below(if depth == 0 { 4 } else { 9 }) {
        // `is distinct from` would take in what follows.
        0..=3 => format!("({})", leaf(numbers)),
        4 => format!("not ({})", filter(numbers, depth - 1)),
        5 | 6 => format!(
            "({} or {})",
            filter(numbers, depth - 1),
            filter(numbers, depth - 1)
        ),
        _ => format!(
            "({} and {})",
            filter(numbers, depth - 1),
            filter(numbers, depth - 1)
        ),
    }
}

#[test]
fn filters_that_choose_pages_give_the_rows_that_they_give_in_memory() {
    let numbers = &mut Lcg(20_161_128);
    let tables = Tables::new(numbers);
    let mut found = [0; 3];
    for n in 0..60 {
        let filter = filter(numbers, 3);
        let rows = tables.compare(&format!(
            "select lsn, event_time, text, double from t where {filter} order by lsn"
        ));
        found[usize::from(rows > 0) + usize::from(rows == 4 * FILE_ROWS + UNFLUSHED_ROWS)] += 1;
        match n % 4 {
            0 => tables.compare(&format!("select * from t where {filter} order by event_time desc, lsn limit 5")),
            1 => tables.compare(&format!("select count(*), min(number), max(text), count(words) from t where {filter}")),
            2 => tables.compare(&format!(
                "select a.lsn, b.number from t a join t b on a.lsn = b.number where a.{} > 40 and b.lsn < 900 order by 1, 2",
                ["small", "number"][n % 8 / 4]
            )),
            _ => tables.compare(&format!("select flag, count(*) from t where {filter} group by flag order by 1")),
        };
    }
    assert!(
        found.iter().all(|count| *count > 0),
        "filters that give nothing, something and everything: {found:?}"
    );
}

#[test]
fn a_floor_hides_rows_also_where_pages_are_chosen() {
    let numbers = &mut Lcg(7);
    let tables = Tables::new(numbers);
    let floor = START + 1_234_000_000;
    tables.handles.tables[&TableId::stream("t")].raise_floor(floor);
    for _ in 0..15 {
        let filter = filter(numbers, 2);
        let rows =
            |context: &str| format!("select lsn from t where {context} ({filter}) order by lsn");
        let lake = tables.ask(&rows(""));
        let below = tables.ask(&rows(&format!(
            "event_time >= to_timestamp_micros({floor}) and"
        )));
        let memory = rows(&format!("event_time >= to_timestamp_micros({floor}) and"));
        let memory = tables
            .runtime
            .block_on(async { tables.plain.sql(&memory).await?.collect().await });
        let count =
            |batches: &[RecordBatch]| batches.iter().map(RecordBatch::num_rows).sum::<usize>();
        let memory = count(&memory.expect("answered"));
        assert_eq!(
            (count(&lake.batches), count(&below.batches)),
            (memory, memory),
            "{filter}"
        );
    }
}

#[test]
fn a_query_of_one_moment_reads_few_pages_and_decodes_wide_columns_for_its_rows_only() {
    let tables = Tables::new(&mut Lcg(3));
    let plan = tables.ask(&format!(
        "explain analyze select * from t where event_time = to_timestamp_micros({})",
        START + 1_700_000_000 / 2
    ));
    let plan = arrow::util::pretty::pretty_format_batches(&plan.batches)
        .expect("shown")
        .to_string();
    let metric = |name: &str| {
        let value = plan
            .split(&format!("{name}="))
            .nth(1)
            .unwrap_or_else(|| panic!("{name} in {plan}"));
        value
            .split([',', ']'])
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    // One file of four is read; of its row groups, one; of that, a page.
    assert_eq!(
        metric("page_index_rows_pruned"),
        "300 total → 40 matched",
        "{plan}"
    );
    assert_eq!(metric("pushdown_rows_matched"), "1", "{plan}");
}
