//! Column names: what `weir check` accepts can be created, committed and reopened as Delta tables;
//! the rest is rejected at its location in the file, with a fix.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Instant;

use proptest::prelude::*;
use weir::ids::TableId;
use weir::operators::Operators;
use weir::runtime::context::FolderContext;
use weir::runtime::data_dir::DataDir;
use weir::runtime::views;
use weir::views::LogIdentity;
use weir::wal::{Frame, FrameAttributes, Header, Kind, Records};

use crate::support::{TestFolder, file_source};

fn stream(schema: &str, select: &str, more: &str) -> String {
    format!(
        r#"
[streams.s]
schema = '''at timestamp not null, {schema}'''
select = '''select at as event_time, {select} from s'''
{more}"#
    )
}

const WINDOW: &str = r#"
[windows.w]
sql = '''select window_start, window_end, COLUMN, count(*) as n from tumble(s, event_time, interval '1 hour') group by 1, 2, 3'''
"#;

/// An entity table whose key is its first column; `SELECT` is replaced.
const TABLE: &str = r#"
[tables."s.t"]
stream = "s"
key = "id"
select = '''select SELECT'''
"#;

/// A configuration, the text at the reported location (empty: unknown), and a part of the message.
type Case = (String, &'static str, &'static str);

fn names_in_select() -> Vec<Case> {
    let nest = "id varchar, v double, \"userId\" varchar, nest struct<\"Key\" varchar, \"key\" varchar>, many array<struct<\"a b\" int>>";
    let selecting = |select: &str| stream(nest, select, "");
    vec![
        (
            selecting("v as \"Year\""),
            "\"Year\"",
            "`Year` is a reserved column name (`year`)",
        ),
        (
            selecting("id as \"LSN\""),
            "\"LSN\"",
            "`LSN` is a reserved column name",
        ),
        (
            selecting("id as \"Event_Time\""),
            "\"Event_Time\"",
            "`Event_Time` is a reserved column name",
        ),
        (
            selecting("\"userId\", id as userid"),
            "userid",
            "`userId` and `userid` differ only by case",
        ),
        (
            selecting("nest"),
            "nest from",
            "the fields `Key` and `key` of `nest` differ only by case",
        ),
        (
            selecting("many"),
            "many from",
            "the field `a b` of `many` has the character ' '",
        ),
        (
            selecting("v as \"temp (C)\""),
            "\"temp",
            "write for example `as temp_c`",
        ),
        (selecting("v as \"a;b\""), "\"a;b", "has the character ';'"),
        (selecting("v as \"\""), "", "empty name"),
        (
            selecting("v * 2"),
            "v * 2",
            "`v * 2` has no name; write `v * 2 as name`",
        ),
        (selecting("lower(id)"), "lower(", "`lower(id)` has no name"),
        (selecting("nest.key"), "nest.key", "`nest.key` has no name"),
        (selecting("id::bigint"), "id::", "has no name"),
    ]
}

fn names_in_tables_and_windows() -> Vec<Case> {
    let table = |select: &str| TABLE.replace("SELECT", select);
    let window = |column: &str| WINDOW.replace("COLUMN", column);
    let in_stream = |column: &str, more: &str| {
        stream(
            &format!("{column} varchar, l array<varchar>"),
            &format!("{column}, l"),
            more,
        )
    };
    vec![
        (
            in_stream("windows", &window("windows")),
            "windows, l",
            "the table s.late: there are two columns `windows`",
        ),
        (
            in_stream("id", &table("id, id as \"LSN\"")),
            "\"LSN\"",
            "`LSN` is a reserved column name",
        ),
        (
            in_stream("id", &table("id, id as \"Bucket\"")),
            "\"Bucket\"",
            "`Bucket` is a reserved column name",
        ),
        (
            in_stream("id", &table("id, upper(id)")),
            "upper(",
            "`upper(id)` has no name",
        ),
        (
            in_stream("id", &table("id, unnest(l)")),
            "unnest(",
            "`unnest(l)` has no name",
        ),
        (
            in_stream("id", &window("id as \"Hour\"")),
            "\"Hour\"",
            "`Hour` is a reserved column name",
        ),
        (
            in_stream("id", &window("id as \"N\"")),
            "",
            "`N` and `n` differ only by case",
        ),
        (
            in_stream("id", &window("id as \"a b\"")),
            "\"a b",
            "write for example `as a_b`",
        ),
        (
            in_stream("id", &window("id").replace(" as n", "")),
            "count(*)",
            "`count(*)` has no name; write `count(*) as name`",
        ),
    ]
}

#[test]
fn names_that_a_table_cannot_have_are_rejected_at_their_location() {
    let cases = names_in_select().into_iter();
    for (configuration, at, message) in cases.chain(names_in_tables_and_windows()) {
        let folder = TestFolder::new("");
        folder.configure(&configuration);
        let text = std::fs::read_to_string(folder.path("weir.toml")).expect("a file");
        let mut places = text
            .lines()
            .enumerate()
            .filter(|(_, l)| l.starts_with("sql") || l.starts_with("select"));
        let place = places
            .find_map(|(n, line)| Some((n + 1, line.find(at).filter(|_| !at.is_empty())? + 1)));
        let place = place.map_or(":".to_owned(), |(line, column)| {
            format!(":{line}:{column}:")
        });
        folder.check_config_error(&[message, &format!("weir.toml{place}")]);
    }
}

#[test]
fn everyday_names_are_accepted() {
    let folder = TestFolder::new("");
    let schema = "id varchar, \"ID\" varchar, v double, \"userId\" varchar, nest struct<\"Key\" varchar, b int>, windows varchar";
    let select = "id, v as \"température\", v as \"a.b\", v as \"a-b\", v as \"2024\", \"userId\", nest, nest.b as b, windows, (v) as x, s.v";
    folder.configure(&stream(schema, select, ""));
    folder.succeed(&["check"]);
}

#[test]
fn a_name_whose_case_changes_is_rejected_while_its_table_exists() {
    let folder = TestFolder::new("");
    let source = file_source("s");
    let with = |select: &str| {
        format!(
            "{source}{}",
            stream("\"userId\" varchar, v double", select, "")
        )
    };
    folder.configure(&with("\"userId\""));
    folder.write(
        "s.ndjson",
        b"{\"at\":\"2024-05-01T10:00:00Z\",\"userId\":\"a\",\"v\":1}\n",
    );
    folder.run_once();
    // Also if a configuration in between did not have the column.
    for between in [None, Some("v")] {
        if let Some(between) = between {
            folder.configure(&with(between));
            folder.run_once();
        }
        folder.configure(&with("\"userId\" as userid"));
        folder.check_config_error(&["weir.toml:", "as \"userId\"", "weir rebuild s"]);
    }
    folder.configure(&with("\"userId\", v"));
    folder.succeed(&["check"]);
    folder.run_once();
    assert_eq!(
        folder.number("select count(*) from s where \"userId\" = 'a'"),
        1
    );
}

/// A frame of one record of the stream `s`.
fn frame(text: &str) -> Frame {
    let header = Header {
        first_lsn: 1,
        received_at: 1_714_557_700_000_000,
        source: "f".into(),
        ..Header::new(Kind::Record, "s")
    };
    Frame::data(
        header,
        &Records::single(text.as_bytes()),
        FrameAttributes::default(),
    )
    .expect("memory")
}

/// Names that are mostly valid; some collide with each other or with reserved names.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => "[a-zA-Z][a-z0-9_]{0,5}",
        3 => "[a-cA-C]",
        2 => "[a-zÄÖäöçÇ東İıſK.$%-]{1,6}",
        1 => "[a-z ,;{}()=\t]{1,4}",
        2 => prop::sample::select(vec![
            "lsn", "Year", "HOUR", "windows", "Windows", "bucket", "version", "updated", "status", "source", "received_at",
            "window_start", "n", "session_id", "is_duplicate", "select", "from", "group", "key", "item", "element", "key_value", "_metadata", "2024", "",
        ])
        .prop_map(str::to_owned),
    ]
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Creates every table of a configuration, commits a row, and reopens everything.
fn create_commit_and_reopen(
    config: &weir::config::Config,
    root: &std::path::Path,
) -> Result<(), String> {
    let catalog = views::compile(config).map_err(|e| e.to_string())?;
    let runtime = tokio::runtime::Runtime::new().map_err(|e| e.to_string())?;
    let folder = DataDir::create(root).map_err(|e| e.to_string())?;
    let log = LogIdentity {
        instance: 0,
        id: 7,
        start_lsn: 0,
    };
    let context = FolderContext::new(config, folder, runtime.handle());
    let open = || views::open(&context, &catalog, log, true).map_err(|e| e.to_string());
    let mut opened = open()?;
    let mut operators = Operators::new(catalog.clone(), 0);
    let record = Arc::new(frame(
        "{\"at\":\"2024-05-01T10:00:00Z\",\"a\":\"x\",\"s\":{\"p\":\"1\",\"q\":\"2\"}}",
    ));
    let decoded = operators.decode(&record).map_err(|e| e.to_string())?;
    let output = operators
        .apply(&record, decoded.as_ref())
        .map_err(|e| e.to_string())?;
    let closing = Frame {
        header: Header {
            kind: Kind::CloseAll,
            first_lsn: 2,
            stream: String::new(),
            ..record.header.clone()
        },
        ..frame("{}")
    };
    let closing = operators
        .apply(&Arc::new(closing), None)
        .map_err(|e| e.to_string())?;
    for view in &mut opened.views {
        for output in [&output, &closing] {
            view.apply(output, Instant::now())
                .map_err(|e| format!("{}: {e}", view.id()))?;
        }
        view.checkpoint()
            .map_err(|e| format!("{}: {e}", view.id()))?;
    }
    drop(opened);
    let opened = open()?;
    for name in ["s", "w_versions", "s.t"] {
        let table = name.parse().expect("any text");
        let table = opened
            .handles
            .tables
            .get::<TableId>(&table)
            .ok_or_else(|| format!("{name} is missing"))?;
        let rows: u64 = table.files().iter().map(|f| f.rows).sum();
        if rows != 1 {
            return Err(format!("{name} has {rows} rows"));
        }
        for file in table.files().iter() {
            let read =
                weir::views::lake::files::read(&table.spec, file).map_err(|e| e.to_string())?;
            if read.iter().map(|r| r.num_rows()).sum::<usize>() != 1 {
                return Err(format!("{name}: its file has other rows"));
            }
        }
    }
    Ok(())
}

#[test]
fn configurations_that_check_accepts_can_be_created_committed_and_reopened() {
    let (accepted, rejected) = (Cell::new(0), Cell::new(0));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 60,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let names = (
        prop::collection::vec(name(), 1..4),
        prop::collection::vec(name(), 1..3),
        name(),
        name(),
    );
    let result = runner.run(&names, |(columns, fields, of_window, of_entity)| {
        let fields: BTreeSet<String> = fields
            .into_iter()
            .filter(|f| !f.is_empty())
            .chain(["p".into()])
            .collect();
        let fields: Vec<String> = fields
            .iter()
            .map(|f| format!("{} varchar", quoted(f)))
            .collect();
        let select = columns.iter().fold("a, s".to_owned(), |mut select, name| {
            let _ = write!(select, ", a as {}", quoted(name));
            select
        });
        let window = WINDOW.replace("COLUMN", &format!("a as {}", quoted(&of_window)));
        let table = TABLE.replace("key = \"id\"", "key = \"a\"");
        let table = table.replace("SELECT", &format!("a, s, a as {}", quoted(&of_entity)));
        let more = window + table.as_str();
        let text = stream(
            &format!("a varchar, s struct<{}>", fields.join(", ")),
            &select,
            &more,
        );
        let root = tempfile::tempdir().expect("a folder");
        let path = root.path().join("weir.toml");
        let config = weir::config::parse(Some(&path), text.clone(), None, &|_| None)
            .expect("the file itself is valid");
        match views::compile(&config) {
            Err(error) => {
                rejected.set(rejected.get() + 1);
                prop_assert!(error.line.is_some(), "{}", error);
            }
            Ok(_) => {
                accepted.set(accepted.get() + 1);
                let result = create_commit_and_reopen(&config, &root.path().join("data"));
                prop_assert!(result.is_ok(), "{}\n{:?}", text, result);
            }
        }
        Ok(())
    });
    assert!(result.is_ok(), "{}", result.expect_err("failed"));
    let (accepted, rejected) = (accepted.get(), rejected.get());
    assert!(
        accepted >= 10 && rejected >= 10,
        "{accepted} were accepted, {rejected} rejected"
    );
}
