//! Processes that read a folder while another one wants to work on it, and how they report records
//! that are not in their answers.

use std::process::{Child, Stdio};

use serde_json::Value;

use crate::support::{FREE_PORT, TestFolder, file_source, ndjson, records, wait_until};

/// The number of rows; none if the query came too early.
fn rows(folder: &TestFolder) -> Option<u64> {
    let output = folder.output(&["sql", "select count(*) as n from rsvps", "--output", "json"]);
    serde_json::from_slice::<Value>(&output.stdout).ok()?["rows"][0]["n"].as_u64()
}

#[test]
fn pending_counts_exactly_the_records_that_an_answer_lacks() {
    // Committed at once, before any snapshot exists: nothing is missing.
    let folder = TestFolder::new(
        r#"
[server]
http = "127.0.0.1:0"
[limits]
lake_recent = "20ms"
lake_old = "1h"
snapshot = "1h"
"#,
    );
    let all = records(200, 31);
    folder.write("in.ndjson", &ndjson(&all));
    let mut child = folder
        .command(&["run", "-q"])
        .spawn()
        .expect("the binary runs");
    wait_until("the file is read", || rows(&folder) == Some(200));
    let committed = |folder: &TestFolder| {
        let data = folder.path("data/lake/rsvps");
        crate::support::files(&data)
            .keys()
            .filter(|p| p.extension().is_some_and(|e| e == "parquet"))
            .count()
    };
    wait_until("rows are committed", || committed(&folder) > 0);
    child.kill().and_then(|()| child.wait()).expect("it ends");
    for query in [
        "select count(*) as n from rsvps",
        "select count(*) as n from rsvps where guests >= 0 or guests is null",
    ] {
        let answer = folder.ask(&["sql", query]);
        let found = folder.ask(&["sql", "select count(*) as n from rsvps"])["rows"][0]["n"]
            .as_u64()
            .expect("a number");
        assert_eq!(
            answer["as_of"]["pending"].as_u64(),
            Some(200 - found),
            "{answer}"
        );
    }
    // A query without a table lacks nothing.
    assert_eq!(
        folder.ask(&["sql", "select 1 as one"])["as_of"]["pending"],
        0
    );
    folder.run_once();
    for query in [
        &["sql", "select count(*) as n from rsvps"][..],
        &["count"],
        &["search", "the"],
    ] {
        let answer = folder.ask(query);
        assert_eq!(answer["as_of"]["pending"], 0, "{query:?}: {answer}");
        assert_eq!(answer["as_of"]["freshness_ms"], 0, "{query:?}: {answer}");
    }
}

#[test]
fn records_of_one_stream_are_not_pending_in_another() {
    let folder = TestFolder::new("");
    let stream = |name: &str| {
        let source = file_source(name);
        format!(
            r#"{source}
[streams.{name}]
schema = "n bigint not null"
select = "select to_timestamp_millis(n) as event_time, n from {name}"
"#
        )
    };
    let limits = r#"
[limits]
lake_recent = "1h"
lake_old = "1h"
snapshot = "1h"
"#;
    folder.configure(&[FREE_PORT, limits, &stream("a"), &stream("b")].concat());
    folder.write("a.ndjson", b"{\"n\":1}\n{\"n\":2}\nno record\n");
    folder.write("b.ndjson", b"{\"n\":1}\n");
    let mut child = folder
        .command(&["run", "-q"])
        .spawn()
        .expect("the binary runs");
    let count = |query: &str| {
        let output = folder.output(&["sql", query, "--output", "json"]);
        serde_json::from_slice::<Value>(&output.stdout)
            .ok()
            .and_then(|v| v["rows"][0]["n"].as_u64())
    };
    wait_until("both are read", || {
        count("select count(*) as n from a") == Some(2)
            && count("select count(*) as n from b") == Some(1)
    });
    child.kill().and_then(|()| child.wait()).expect("it ends");
    let pending = |query: &str| folder.ask(&["sql", query])["as_of"]["pending"].as_u64();
    // Nothing was committed: each stream lacks all of its own records.
    assert_eq!(pending("select count(*) from b"), Some(1));
    assert!(pending("select count(*) from a") >= Some(2));
    let output = folder.output(&["sql", "select count(*) from b"]);
    assert!(
        String::from_utf8_lossy(&output.stderr)
            .contains("1 accepted records are not in this answer")
    );
}

#[test]
fn a_start_waits_for_readers_and_new_readers_wait_for_the_start() {
    let folder = TestFolder::new(FREE_PORT);
    folder.write("in.ndjson", &ndjson(&records(50, 32)));
    folder.run_once();
    // A reader that holds the folder until the test releases it.
    let lock = std::fs::File::options()
        .read(true)
        .write(true)
        .open(folder.path("data/lock"))
        .expect("it exists");
    lock.lock_shared().expect("it is not locked");
    let mut server = folder
        .command(&["run"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let intent = std::fs::File::options()
        .read(true)
        .write(true)
        .open(folder.path("data/lock.intent"))
        .expect("it exists");
    wait_until("the server waits", || {
        let is_wanted = intent.try_lock_shared().is_err();
        let _ = intent.unlock();
        is_wanted
    });
    let readers: Vec<Child> = (0..4)
        .map(|_| {
            let mut reader =
                folder.command(&["sql", "select count(*) as n from rsvps", "--output", "csv"]);
            reader
                .stdout(Stdio::piped())
                .spawn()
                .expect("the binary runs")
        })
        .collect();
    // It outlasts the second for which a start waits for a process that works on the folder.
    let mut stderr = std::io::BufReader::new(server.stderr.take().expect("piped"));
    let mut line = String::new();
    while !line.contains("the folder is being read") {
        line.clear();
        assert!(
            std::io::BufRead::read_line(&mut stderr, &mut line).expect("readable") > 0,
            "the server ended"
        );
    }
    assert!(
        line.contains(&format!("process {}", std::process::id())),
        "{line}"
    );
    lock.unlock().expect("held");
    for reader in readers {
        let output = reader.wait_with_output().expect("it ends");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout).lines().last(),
            Some("50")
        );
    }
    drop(stderr);
    server.kill().and_then(|()| server.wait()).expect("it ends");
}

#[test]
fn the_pid_of_a_process_without_a_port_is_reported_at_once() {
    let folder = TestFolder::new("");
    folder.run_once();
    let lock = std::fs::File::options()
        .read(true)
        .write(true)
        .open(folder.path("data/lock"))
        .expect("it exists");
    lock.lock().expect("it is not locked");
    for verb in [&["sql", "select 1"][..], &["run", "--once"]] {
        let message = folder.fail(verb, 75);
        assert!(
            message.contains("in use by process "),
            "{verb:?}: {message}"
        );
    }
}
