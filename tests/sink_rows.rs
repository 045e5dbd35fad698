//! Which rows a sink sends: those above its cursor, each once, also after a rebuild has written
//! those below it again; of a new sink with `start = "latest"` those that are stored from then on.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::support::{TestFolder, file_source};
use crate::web_server::{Reply, WebServer, hold};

/// What a receiver has accepted: rows by their table, in the order of their arrival.
#[derive(Clone, Default)]
struct Received(Arc<Mutex<BTreeMap<String, Vec<Value>>>>);

impl Received {
    fn server(&self, address: &str) -> WebServer {
        let received = self.0.clone();
        WebServer::start_at(address, move |request| {
            let mut body: Value = serde_json::from_slice(&request.body).expect("JSON");
            let table = body["table"].as_str().expect("a table").to_owned();
            let Value::Array(rows) = body["rows"].take() else {
                panic!("the request has no rows");
            };
            let mut received = received.lock().expect("unpoisoned");
            received.entry(table).or_default().extend(rows);
            Reply::status(200)
        })
    }

    /// The rows since the last call.
    fn take(&self) -> BTreeMap<String, Vec<Value>> {
        std::mem::take(&mut *self.0.lock().expect("unpoisoned"))
    }
}

/// A sink of each of these tables, with more keys, and a stream of them: `name` is this expression.
fn configure(folder: &TestFolder, server: &WebServer, tables: &[&str], keys: &str, name: &str) {
    let sink = |(number, table): (usize, &&str)| {
        format!(
            "[[sinks]]\nname = \"hook_{number}\"\ntype = \"http\"\nfrom = \"{table}\"\n\
             url = \"http://{}/\"\nallow_private = true\n{keys}\n",
            server.address
        )
    };
    let sinks: String = tables.iter().enumerate().map(sink).collect();
    folder.configure(&format!(
        r#"{sinks}{}
[streams.events]
schema = "id bigint not null, at bigint not null, name varchar"
select = "select to_timestamp_millis(at) as event_time, id, {name} as name from events"
[tables."events.latest"]
stream = "events"
key = "id"
select = "select id, name"
[windows.minutes]
sql = """select window_start, window_end, name, count(*) as n
         from tumble(events, event_time, interval '1 minute') group by 1, 2, 3"""
"#,
        file_source("events")
    ));
}

/// Appends an event a second, of fifty ids and three names.
fn append(folder: &TestFolder, seconds: std::ops::Range<u64>) {
    let line = |n: u64| {
        let (id, at, name) = (n % 50, 1_465_520_400_000 + n * 1_000, n % 3);
        format!("{{\"id\":{id},\"at\":{at},\"name\":\"n{name}\"}}\n")
    };
    let text: String = seconds.map(line).collect();
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.path("events.ndjson"));
    file.expect("a file")
        .write_all(text.as_bytes())
        .expect("written");
}

/// The LSNs of rows, in order.
fn lsns(rows: &[Value]) -> Vec<u64> {
    let lsn = |row: &Value| row["lsn"].as_u64().expect("an LSN");
    let mut lsns: Vec<u64> = rows.iter().map(lsn).collect();
    lsns.sort_unstable();
    lsns
}

/// The tables of the sinks, and where SQL has all rows that they send.
const TABLES: [(&str, &str); 3] = [
    ("events", "events"),
    ("minutes", "minutes_versions where status <> 'open'"),
    ("events.latest", "events.latest"),
];

#[test]
fn a_rebuild_sends_no_row_again_that_is_below_the_cursor() {
    let received = Received::default();
    let server = received.server("127.0.0.1:0");
    let folder = TestFolder::new("");
    let tables = TABLES.map(|(table, _)| table);
    configure(&folder, &server, &tables, "", "name");
    append(&folder, 0..400);
    folder.run_once();
    let sent = received.take();
    for (table, of_sql) in TABLES {
        let rows = folder.rows(&format!("select lsn from {of_sql}"));
        assert!(rows.len() > 10, "{table}: {} rows", rows.len());
        assert_eq!(lsns(&sent[table]), lsns(&rows), "{table}");
    }
    // Every row that was sent is another one now, under the LSN of before.
    configure(&folder, &server, &tables, "", "upper(name)");
    folder.succeed(&["rebuild", "events", "minutes", "events.latest"]);
    let old = folder.number("select count(*) from events where name <> upper(name)");
    assert_eq!(old, 0, "the rows are rebuilt");
    received.take();
    let cursor = folder.number("select min(lsn) from weir.sinks");
    assert!(cursor > 400, "{cursor}");
    folder.run_once();
    assert_eq!(received.take(), BTreeMap::new());
    append(&folder, 400..600);
    folder.run_once();
    let sent = received.take();
    for (table, of_sql) in TABLES {
        let rows = folder.rows(&format!(
            "select * from (select lsn from {of_sql}) where lsn > {cursor}"
        ));
        assert!(!rows.is_empty(), "{table} has new rows");
        assert_eq!(lsns(&sent[table]), lsns(&rows), "{table}");
    }
    // A reset sends what the rebuild has written.
    folder.succeed(&["sinks", "reset", "hook_0", "--from", "earliest"]);
    folder.run_once();
    let rows = received.take().remove("events").unwrap_or_default();
    assert_eq!(rows.len(), 600);
    let is_rebuilt = |row: &Value| row["name"].as_str().is_some_and(|n| n.starts_with('N'));
    assert!(rows.iter().all(is_rebuilt));
}

#[test]
fn a_new_sink_that_starts_at_the_latest_record_sends_what_comes_from_then_on() {
    let received = Received::default();
    let server = received.server("127.0.0.1:0");
    let folder = TestFolder::new("");
    configure(&folder, &server, &[], "", "name");
    append(&folder, 0..100);
    folder.run_once();
    let tables = ["events", "events.latest"];
    configure(&folder, &server, &tables, "start = \"latest\"", "name");
    // It starts for the first time while its target is down: what comes now is sent later.
    let address = server.address;
    drop(server);
    let held = hold(address);
    append(&folder, 100..120);
    let message = folder.fail(&["run", "--once", "--sinks-timeout", "300ms"], 1);
    assert!(
        message.contains("not everything was delivered"),
        "{message}"
    );
    assert_eq!(received.take(), BTreeMap::new());
    drop(held);
    let _server = received.server(&address.to_string());
    append(&folder, 120..130);
    folder.run_once();
    let sent = received.take();
    for table in tables {
        let newest = format!("select lsn from {table} order by lsn desc limit 30");
        assert_eq!(sent[table].len(), 30, "{table}");
        assert_eq!(lsns(&sent[table]), lsns(&folder.rows(&newest)), "{table}");
    }
    // Nothing is sent twice, and a reset sends what was before.
    folder.run_once();
    assert_eq!(received.take(), BTreeMap::new());
    folder.succeed(&["sinks", "reset", "hook_0", "--from", "earliest"]);
    folder.run_once();
    assert_eq!(received.take()["events"].len(), 130);
}
