//! `[lake] partition`: a table stays split as it is until it is rebuilt, and says when hours hold
//! too little.

use std::fmt::Write;
use std::process::Output;

use serde_json::Value;

use crate::support::{Bench, files, wait_until};

/// A stream of readings, one an hour, with a window and an entity table over it.
fn configure(bench: &Bench, partition: &str) {
    bench.configure(&format!(
        "[server]\nhttp = \"127.0.0.1:0\"\n[lake]\npartition = \"{partition}\"\n\
         [[sources]]\nname = \"f\"\ntype = \"file\"\npath = \"in.ndjson\"\nstream = \"s\"\n\
         [streams.s]\nschema = \"n bigint not null\"\nselect = \"select to_timestamp_seconds(n * 3600) as event_time, n from s\"\n\
         [windows.w]\nsql = \"select window_start, window_end, count(*) as c from tumble(s, event_time, interval '6 hours') group by 1, 2\"\n\
         [tables.\"s.t\"]\nstream = \"s\"\nkey = \"n\"\nselect = \"select n\"\n"
    ));
}

fn readings(bench: &Bench, hours: std::ops::Range<u64>) {
    let mut text = std::fs::read_to_string(bench.path("in.ndjson")).unwrap_or_default();
    hours.for_each(|n| writeln!(text, "{{\"n\":{}}}", 400_000 + n).expect("text takes all"));
    bench.write("in.ndjson", text.as_bytes());
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn notes(bench: &Bench) -> String {
    bench.ask(&["status"])["notes"].to_string()
}

/// Columns that folders name, by a table's current metadata.
fn partitioned_by(bench: &Bench, table: &str) -> Vec<String> {
    let log = files(&bench.path(&format!("data/lake/{table}/_delta_log")));
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

fn answers(bench: &Bench) -> Vec<Vec<Value>> {
    [
        "select lsn, event_time, n from s order by n",
        "select window_start, c from w order by 1",
        "select n from s.t order by n",
    ]
    .map(|query| bench.rows(query))
    .into()
}

#[test]
fn a_changed_partition_waits_for_a_rebuild_and_nothing_is_lost() {
    let bench = Bench::new("");
    configure(&bench, "hour");
    readings(&bench, 0..40);
    bench.once();
    configure(&bench, "day");
    readings(&bench, 40..80);
    let output = bench.output(&["run", "--once"]);
    assert!(output.status.success(), "{}", said(&output));
    // It is reported, and the tables stay as they are.
    for text in [
        said(&output),
        said(&bench.output(&["check"])),
        notes(&bench),
    ] {
        assert!(
            text.contains("partitioned by hour, not by day") && text.contains("weir rebuild w"),
            "{text}"
        );
    }
    assert_eq!(
        partitioned_by(&bench, "s"),
        ["year", "month", "day", "hour"]
    );
    assert_eq!(bench.number("select count(*) from s"), 80);
    let before = answers(&bench);
    let output = bench.output(&["rebuild", "s", "w", "dead_letters"]);
    assert!(output.status.success(), "{}", said(&output));
    for table in ["s", "w_versions"] {
        assert_eq!(
            partitioned_by(&bench, table),
            ["year", "month", "day"],
            "{table}"
        );
    }
    assert_eq!(answers(&bench), before);
    assert_eq!(notes(&bench), "[]");
    readings(&bench, 80..100);
    bench.once();
    assert_eq!(bench.number("select count(*) from s"), 100);
    assert_eq!(bench.number("select count(distinct day) from s"), 5);
    // The other partitioning, while a server runs.
    configure(&bench, "hour");
    let mut server = bench
        .command(&["run", "-q"])
        .spawn()
        .expect("the binary runs");
    wait_until("the server answers", || {
        bench.output(&["status"]).status.success() && bench.path("data/address.json").exists()
    });
    let output = bench.output(&["rebuild", "s"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(bench.number("select count(distinct hour) from s"), 24);
    assert_eq!(bench.number("select count(*) from s"), 100);
    server.kill().and_then(|()| server.wait()).expect("it ends");
    assert_eq!(
        partitioned_by(&bench, "s"),
        ["year", "month", "day", "hour"]
    );
    bench.once();
    assert_eq!(bench.number("select count(*) from s where hour = 3"), 4);
}

#[test]
fn hours_that_hold_little_are_told_with_what_to_do() {
    let bench = Bench::new("");
    configure(&bench, "hour");
    readings(&bench, 0..1_010);
    let output = bench.output(&["run", "--once"]);
    assert!(output.status.success(), "{}", said(&output));
    let parts = [
        "the table s has 1010 hours",
        "`[lake] partition = \"day\"`",
        "`weir rebuild s`",
    ];
    for text in [
        said(&output),
        said(&bench.output(&["check"])),
        notes(&bench).replace("\\\"", "\""),
    ] {
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    }
    configure(&bench, "day");
    let output = bench.output(&["rebuild", "s"]);
    assert!(output.status.success(), "{}", said(&output));
    let days = bench.rows("select distinct year, month, day from s");
    assert_eq!(bench.number("select count(*) from s"), 1_010);
    assert!(
        days.len() <= 44 && !notes(&bench).contains("the table s "),
        "{}",
        notes(&bench)
    );
}
