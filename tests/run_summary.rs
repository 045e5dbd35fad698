//! The summary of `weir run --once`: printed whatever has failed, with all errors. And the list of
//! sinks.

use std::net::TcpListener;
use std::process::Output;

use rdkafka::producer::Producer;
use serde_json::{Value, json};

use crate::kafka::{Cluster, TIMEOUT};
use crate::support::{TestFolder, file_source, skip};
use crate::web_server::hold;

const STREAM: &str = r#"[streams.events]
schema = "id bigint not null, at bigint not null"
select = "select to_timestamp_millis(at) as event_time, id from events"
"#;

const JSON: [&str; 4] = ["run", "--once", "--output", "json"];

fn event(id: u64) -> String {
    format!("{{\"id\":{id},\"at\":{}}}", 1_465_520_400_000 + id)
}

/// A folder with a file of 500 events, before `more`.
fn folder(more: &str) -> TestFolder {
    let folder = TestFolder::new("");
    folder.configure(&format!("{}{more}\n{STREAM}", file_source("events")));
    let lines: String = (0..500).map(|id| event(id) + "\n").collect();
    folder.write("events.ndjson", lines.as_bytes());
    folder
}

/// The summary of a run that has failed, and its messages.
fn failed(output: &Output) -> (Value, String) {
    let messages = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{messages}");
    let summary = serde_json::from_slice(&output.stdout);
    (summary.expect("a summary in JSON"), messages)
}

/// The parts that have failed. The messages have the text of each.
fn parts(summary: &Value, messages: &str) -> Vec<String> {
    let errors = summary["errors"].as_array().expect("a list");
    let part = |error: &Value| {
        let text = error["error"].as_str().expect("a text");
        assert!(messages.contains(text), "{text}: {messages}");
        error["part"].as_str().expect("a name").to_owned()
    };
    errors.iter().map(part).collect()
}

#[test]
fn a_run_prints_its_summary_and_every_error_when_a_source_and_a_sink_have_failed() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let _held = hold(address);
    let folder = folder(&format!(
        "[[sources]]\nname = \"broker\"\ntype = \"kafka\"\nbrokers = [\"{address}\"]\n\
         topics = {{ orders = \"events\" }}\ngroup = \"weir-test\"\n\
         [[sinks]]\nname = \"hook\"\ntype = \"http\"\nfrom = \"events\"\n\
         url = \"http://{address}/\"\nallow_private = true\n"
    ));
    let mut arguments = JSON.to_vec();
    arguments.extend(["--sinks-timeout", "300ms"]);
    let (summary, messages) = failed(&folder.output(&arguments));
    assert_eq!(
        parts(&summary, &messages),
        ["source/broker", "sink/hook"],
        "{summary}"
    );
    assert_eq!(summary["streams"]["events"]["events"], 500);
    assert_eq!(summary["sinks"]["hook"]["state"], "retrying");
    assert_eq!(summary["interrupted"], false);
    assert!(
        messages.contains("everything accepted is committed, but not everything was delivered"),
        "{messages}"
    );
    assert_eq!(folder.number("select count(*) from events"), 500);
}

#[test]
fn a_run_prints_what_it_has_read_beside_a_partition_that_has_halted() {
    let send = |cluster: &Cluster, partition, ids: std::ops::Range<u64>| {
        ids.for_each(|id| cluster.send_bytes("orders", partition, Some(event(id).as_bytes())));
        cluster.producer.flush(TIMEOUT).expect("sent");
    };
    let old = Cluster::new(&[("orders", 2)]);
    send(&old, 0, 0..10);
    send(&old, 1, 0..10);
    let folder = TestFolder::new("");
    old.configure_stream(&folder, "topics = { orders = \"events\" }", STREAM);
    let output = folder.output(&JSON);
    assert!(output.status.success());
    let summary: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(summary["errors"], json!([]));
    // The first partition has lost what was read, the second one continues.
    let new = Cluster::new(&[("orders", 2)]);
    send(&new, 0, 0..3);
    send(&new, 1, 0..12);
    new.configure_stream(&folder, "topics = { orders = \"events\" }", STREAM);
    let (summary, messages) = failed(&folder.output(&JSON));
    assert_eq!(parts(&summary, &messages), ["source/broker"], "{summary}");
    assert_eq!(summary["streams"]["events"]["events"], 2);
    assert_eq!(folder.number("select count(*) from events"), 22);
    // As text, too.
    let messages = folder.fail(&["run", "--once"], 1);
    assert!(messages.contains("0 events ("), "{messages}");
    assert!(messages.contains("weir: source `broker`: "), "{messages}");
}

#[test]
fn a_run_prints_its_summary_when_a_view_has_failed() {
    if !cfg!(debug_assertions) {
        skip("a release build is not asked to panic");
        return;
    }
    let folder = folder("");
    let mut command = folder.command(&JSON);
    command.env("WEIR_TEST_PANIC", "lake/events");
    let (summary, messages) = failed(&command.output().expect("the binary runs"));
    assert_eq!(
        parts(&summary, &messages),
        ["view/lake/events"],
        "{summary}"
    );
    folder.run_once();
    assert_eq!(folder.number("select count(*) from events"), 500);
}

#[test]
fn the_list_of_sinks_has_the_columns_of_their_table_and_nothing_else() {
    let sink = "[[sinks]]\nname = \"hook\"\ntype = \"http\"\nfrom = \"events\"\n\
                url = \"https://example.org/\"\n";
    let folder = folder("");
    folder.run_once();
    folder.configure(&format!("{}{sink}{STREAM}", file_source("events")));
    let list = folder.ask(&["sinks", "list"]);
    let mut expected = folder.rows("select * from weir.sinks");
    expected[0]["tables"] = json!(["events"]);
    assert_eq!(list, json!({ "sinks": expected }));
    let table = |arguments: &[&str]| {
        let output = folder.output(arguments);
        assert!(output.status.success());
        String::from_utf8(output.stdout).expect("text")
    };
    let csv = table(&["sinks", "list", "--output", "csv"]);
    let of_sql = table(&["sql", "select * from weir.sinks", "--output", "csv"]);
    assert_eq!(csv, of_sql);
}
