//! `[lake] partition`: a table keeps its partitions until it is rebuilt, and a note reports hours with
//! too little.

use std::fmt::Write;
use std::process::Output;

use serde_json::Value;

use crate::support::{TestFolder, files, wait_until};

/// Partitioned by the hour.
const HOURLY: &str = include_str!("../testdata/hourly.toml");

/// A stream of readings, one an hour, with a window and an entity table over it.
fn configure(folder: &TestFolder, partition: &str) {
    let partition = format!("partition = \"{partition}\"");
    folder.configure(&HOURLY.replace("partition = \"hour\"", &partition));
}

fn readings(folder: &TestFolder, hours: std::ops::Range<u64>) {
    let mut text = std::fs::read_to_string(folder.path("in.ndjson")).unwrap_or_default();
    hours.for_each(|n| writeln!(text, "{{\"n\":{}}}", 400_000 + n).expect("text takes all"));
    folder.write("in.ndjson", text.as_bytes());
}

fn printed(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn notes(folder: &TestFolder) -> String {
    folder.ask(&["status"])["notes"].to_string()
}

/// Columns that folders name, by a table's current metadata.
fn partitioned_by(folder: &TestFolder, table: &str) -> Vec<String> {
    let log = files(&folder.path(&format!("data/lake/{table}/_delta_log")));
    let commits = log
        .iter()
        .filter(|(path, _)| path.extension().is_some_and(|e| e == "json"));
    let lines = commits.flat_map(|(_, bytes)| {
        String::from_utf8_lossy(bytes)
            .lines()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    });
    let metadata = lines
        .filter_map(|line| {
            serde_json::from_str::<Value>(&line)
                .ok()?
                .get("metaData")
                .cloned()
        })
        .next_back();
    let columns = metadata.expect("a table has metadata")["partitionColumns"].clone();
    serde_json::from_value(columns).expect("a list")
}

fn answers(folder: &TestFolder) -> Vec<Vec<Value>> {
    [
        "select lsn, event_time, n from s order by n",
        "select window_start, c from w order by 1",
        "select n from s.t order by n",
    ]
    .map(|query| folder.rows(query))
    .into()
}

#[test]
fn a_changed_partition_waits_for_a_rebuild_and_nothing_is_lost() {
    let folder = TestFolder::new("");
    configure(&folder, "hour");
    readings(&folder, 0..40);
    folder.run_once();
    configure(&folder, "day");
    readings(&folder, 40..80);
    let output = folder.output(&["run", "--once"]);
    assert!(output.status.success(), "{}", printed(&output));
    // It is reported, and the tables stay as they are.
    for text in [
        printed(&output),
        printed(&folder.output(&["check"])),
        notes(&folder),
    ] {
        assert!(
            text.contains("partitioned by hour, not by day") && text.contains("weir rebuild w"),
            "{text}"
        );
    }
    assert_eq!(
        partitioned_by(&folder, "s"),
        ["year", "month", "day", "hour"]
    );
    assert_eq!(folder.number("select count(*) from s"), 80);
    let before = answers(&folder);
    let output = folder.output(&["rebuild", "s", "w", "dead_letters"]);
    assert!(output.status.success(), "{}", printed(&output));
    for table in ["s", "w_versions"] {
        assert_eq!(
            partitioned_by(&folder, table),
            ["year", "month", "day"],
            "{table}"
        );
    }
    assert_eq!(answers(&folder), before);
    assert_eq!(notes(&folder), "[]");
    readings(&folder, 80..100);
    folder.run_once();
    assert_eq!(folder.number("select count(*) from s"), 100);
    assert_eq!(folder.number("select count(distinct day) from s"), 5);
    // The other partitioning, while a server runs.
    configure(&folder, "hour");
    let mut server = folder
        .command(&["run", "-q"])
        .spawn()
        .expect("the binary runs");
    wait_until("the server answers", || {
        folder.output(&["status"]).status.success() && folder.path("data/address.json").exists()
    });
    let output = folder.output(&["rebuild", "s"]);
    assert!(output.status.success(), "{}", printed(&output));
    assert_eq!(folder.number("select count(distinct hour) from s"), 24);
    assert_eq!(folder.number("select count(*) from s"), 100);
    server.kill().and_then(|()| server.wait()).expect("it ends");
    assert_eq!(
        partitioned_by(&folder, "s"),
        ["year", "month", "day", "hour"]
    );
    folder.run_once();
    assert_eq!(folder.number("select count(*) from s where hour = 3"), 4);
}

#[test]
fn hours_with_few_rows_are_reported_with_a_remedy() {
    let folder = TestFolder::new("");
    configure(&folder, "hour");
    readings(&folder, 0..1_010);
    let output = folder.output(&["run", "--once"]);
    assert!(output.status.success(), "{}", printed(&output));
    let parts = [
        "the table s has 1010 hours",
        r#"`[lake] partition = "day"`"#,
        "`weir rebuild s`",
    ];
    for text in [
        printed(&output),
        printed(&folder.output(&["check"])),
        notes(&folder).replace("\\\"", "\""),
    ] {
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    }
    configure(&folder, "day");
    let output = folder.output(&["rebuild", "s"]);
    assert!(output.status.success(), "{}", printed(&output));
    let days = folder.rows("select distinct year, month, day from s");
    assert_eq!(folder.number("select count(*) from s"), 1_010);
    assert!(
        days.len() <= 44 && !notes(&folder).contains("the table s "),
        "{}",
        notes(&folder)
    );
}
