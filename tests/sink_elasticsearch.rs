//! Elasticsearch, against a server of the test that has `_bulk` with external versions: the
//! documents are the rows of the table, whatever is repeated, refused or broken off.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::server::Server;
use crate::support::{Lcg, TestFolder, canonical, wait_until};
use crate::web_server::{Reply, Request, WebServer};

/// Events of members with a table of the latest of each, and counts that late events change.
const STREAM: &str = r#"[server]
http = "127.0.0.1:0"
[[sources]]
name = "in"
type = "file"
path = "in.ndjson"
stream = "events"
[streams.events]
schema = "id bigint not null, at bigint not null, member varchar not null, value bigint"
select = "select to_timestamp_millis(at) as event_time, id, member, value from events"
watermark = { disorder = "1s", max_ahead = "1000d" }
[tables."events.members"]
stream = "events"
key = ["member", "kind"]
select = "select member, id % 13 as kind, id, value"
[windows.totals]
sql = """select window_start, window_end, member, sum(value) as total
  from tumble(events, event_time, interval '10 seconds') group by 1, 2, 3 having sum(value) > 2"""
late = "update"
allowed_lateness = "1h"
"#;

/// Documents of an index, deleted ones with their version.
type Documents = BTreeMap<String, (u64, Option<Value>)>;

/// What one index has, and how often the server was asked.
#[derive(Clone, Default)]
struct Index {
    documents: Arc<Mutex<Documents>>,
    requests: Arc<AtomicUsize>,
}

/// What the server does with a request beside what it is to do.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Answers with this status and does nothing.
    Status(u16),
    /// Does everything, and closes the connection without an answer.
    LostAnswer,
    /// Refuses every third item for now.
    Busy,
}

impl Index {
    /// Serves the index; `fault` gets the number of the request.
    fn server(
        &self,
        address: &str,
        fault: impl Fn(usize, &Request) -> Fault + Send + Sync + 'static,
    ) -> WebServer {
        let index = self.clone();
        WebServer::start_at(address, move |request| {
            let number = index.requests.fetch_add(1, Ordering::SeqCst);
            let fault = fault(number, request);
            if let Fault::Status(status) = fault {
                return Reply::status(status);
            }
            let (path, query) = request.path.split_once('?').expect("a filter");
            assert!(path.ends_with("/_bulk"), "{path}");
            assert!(
                query.starts_with("filter_path=errors,items.*.status"),
                "{query}"
            );
            assert_eq!(request.headers["content-type"], "application/x-ndjson");
            let answer = index.bulk(&request.body, fault == Fault::Busy);
            if fault == Fault::LostAnswer {
                return Reply::Close;
            }
            Reply::Answer(200, Vec::new(), answer.to_string())
        })
    }

    /// Carries the actions of a request out, in their order.
    fn bulk(&self, body: &[u8], is_busy: bool) -> Value {
        assert_eq!(body.last(), Some(&b'\n'), "the last line ends");
        let mut lines = std::str::from_utf8(body).expect("UTF-8").lines();
        let mut items = Vec::new();
        while let Some(line) = lines.next() {
            let action: Value = serde_json::from_str(line).expect("JSON");
            let (name, action) = action
                .as_object()
                .and_then(|action| action.iter().next())
                .expect("an action");
            let document = (name == "index").then(|| {
                let line = lines.next().expect("a document");
                serde_json::from_str::<Value>(line).expect("JSON")
            });
            let item = if is_busy && items.len() % 3 == 1 {
                failed(429, "es_rejected_execution_exception", "rejected execution")
            } else {
                self.apply(action, document)
            };
            items.push(json!({ name: item }));
        }
        let has_errors = items
            .iter()
            .flat_map(|item| item.as_object().expect("an item").values())
            .any(|item| item.get("error").is_some());
        json!({"errors": has_errors, "items": items})
    }

    fn apply(&self, action: &Value, document: Option<Value>) -> Value {
        assert_eq!(action["version_type"], "external_gte");
        let id = action["_id"].as_str().expect("an id");
        assert!(!id.is_empty() && id.len() <= 512);
        let version = action["version"].as_u64().expect("a version");
        let mut documents = self.documents.lock().expect("unpoisoned");
        if document
            .as_ref()
            .is_some_and(|document| document["value"] == 66)
        {
            let reason = "[1:2] failed to parse field [value] of type [byte]";
            return failed(400, "document_parsing_exception", reason);
        }
        let current = documents.get(id);
        if let Some((current, _)) = current.filter(|(current, _)| version < *current) {
            let reason = format!(
                "[{id}]: version conflict, \
                 current version [{current}] is higher than the one provided [{version}]"
            );
            return failed(409, "version_conflict_engine_exception", &reason);
        }
        let exists = current.is_some_and(|(_, document)| document.is_some());
        let status = match (&document, exists) {
            (None, false) => 404,
            (Some(_), false) => 201,
            _ => 200,
        };
        documents.insert(id.to_owned(), (version, document));
        json!({ "status": status })
    }

    /// The documents that are not deleted, by id.
    fn documents(&self) -> BTreeMap<String, Value> {
        let documents = self.documents.lock().expect("unpoisoned");
        let exists = |(id, (_, document)): (&String, &(u64, Option<Value>))| {
            Some((id.clone(), document.clone()?))
        };
        documents.iter().filter_map(exists).collect()
    }

    fn rows(&self) -> BTreeSet<String> {
        self.documents().values().map(canonical).collect()
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn failed(status: u16, kind: &str, reason: &str) -> Value {
    json!({"status": status, "error": {"type": kind, "reason": reason}})
}

fn folder(server: &WebServer, table: &str, keys: &str) -> TestFolder {
    let folder = TestFolder::new("");
    configure(&folder, server, table, keys);
    folder
}

fn configure(folder: &TestFolder, server: &WebServer, table: &str, keys: &str) {
    folder.configure(&format!(
        "[[sinks]]\nname = \"found\"\ntype = \"elasticsearch\"\nfrom = \"{table}\"\n\
         url = \"http://{}\"\nindex = \"events-1\"\n{keys}\n{STREAM}",
        server.address
    ));
}

/// Appends events with these ids, out of order, some of them an hour late.
fn append(folder: &TestFolder, ids: std::ops::Range<u64>) {
    let mut numbers = Lcg(ids.start + 1);
    let mut text = String::new();
    for id in ids {
        let late = if numbers.below(7) == 0 { 300_000 } else { 0 };
        let (member, value) = (numbers.below(12), numbers.below(9) as i64 - 3);
        let at = 1_465_520_400_000 + id * 1_000 - late - numbers.below(900);
        text +=
            &format!("{{\"id\":{id},\"at\":{at},\"member\":\"m {member}\",\"value\":{value}}}\n");
    }
    let path = folder.path("in.ndjson");
    let file = std::fs::OpenOptions::new().append(true).open(path);
    file.expect("a file")
        .write_all(text.as_bytes())
        .expect("written");
}

/// Rows as texts, without the columns of partitions, which are not sent.
fn as_set(rows: &[Value]) -> BTreeSet<String> {
    let text = |row: &Value| {
        let mut row = row.clone();
        for name in ["year", "month", "day", "hour"] {
            row.as_object_mut().expect("an object").remove(name);
        }
        canonical(&row)
    };
    rows.iter().map(text).collect()
}

/// The latest version of each window and member that is not retracted: a recount of the versions.
fn windows(folder: &TestFolder) -> BTreeSet<String> {
    let mut latest: BTreeMap<(String, String), Value> = BTreeMap::new();
    for row in folder.rows("select * from totals_versions order by lsn") {
        let key = (row["window_start"].to_string(), row["member"].to_string());
        latest.insert(key, row);
    }
    let mut rows: Vec<Value> = latest.into_values().collect();
    rows.retain(|row| row["status"] != "retracted");
    as_set(&rows)
}

fn start(folder: &TestFolder) -> Server {
    Server::start(&mut folder.command(&["run", "-q"]), &folder.path("data"))
}

fn sql(server: &Server, query: &str) -> Value {
    let body = json!({ "sql": query }).to_string();
    let answer = server
        .request("POST", "/api/v1/sql", &[], body.as_bytes())
        .1;
    answer["rows"][0].clone()
}

fn has_all(server: &Server, records: u64) -> bool {
    let stored = sql(server, "select count(*) as n from events");
    stored["n"] == records && sql(server, "select * from weir.sinks")["lag"] == 0
}

/// Delivers the rows of a table to a server with faults, then all of them again.
fn check_documents(table: &str, expected: impl Fn(&TestFolder) -> BTreeSet<String>) -> Documents {
    let index = Index::default();
    let server = index.server("127.0.0.1:0", |number, _| match number {
        1 => Fault::LostAnswer,
        3 => Fault::Status(503),
        5 => Fault::Busy,
        _ => Fault::None,
    });
    let folder = folder(&server, table, "batch_rows = 40");
    append(&folder, 0..400);
    folder.run_once();
    assert_eq!(index.rows(), expected(&folder));
    append(&folder, 400..700);
    folder.run_once();
    assert_eq!(index.rows(), expected(&folder));
    assert!(index.documents().len() > 50);
    // Everything again changes nothing.
    let before = (index.documents(), index.requests());
    folder.succeed(&["sinks", "reset", "found", "--from", "earliest"]);
    folder.run_once();
    assert_eq!(index.documents(), before.0);
    assert!(index.requests() > before.1);
    index.documents.lock().expect("unpoisoned").clone()
}

#[test]
fn documents_are_the_rows_of_a_stream() {
    check_documents("events", |folder| {
        as_set(&folder.rows("select * from events"))
    });
}

#[test]
fn documents_are_the_newest_rows_of_an_entity_table() {
    check_documents("events.members", |folder| {
        as_set(&folder.rows("select * from events.members"))
    });
}

#[test]
fn documents_are_the_latest_versions_of_windows_without_retracted_ones() {
    let documents = check_documents("totals", windows);
    let mut documents = documents.values();
    assert!(
        documents.any(|(_, document)| document.is_none()),
        "late events retract rows"
    );
}

#[test]
fn ids_are_the_keys_of_the_rows() {
    let index = Index::default();
    let server = index.server("127.0.0.1:0", |_, _| Fault::None);
    let folder = folder(&server, "events.members", "");
    append(&folder, 0..100);
    folder.run_once();
    for (id, document) in index.documents() {
        let key = json!([document["member"], document["kind"]]);
        assert_eq!(id, key.to_string());
    }
    let index = Index::default();
    let server = index.server("127.0.0.1:0", |_, _| Fault::None);
    configure(&folder, &server, "events", "");
    // The sink has another table now: it starts again by itself only after a reset.
    folder.succeed(&["sinks", "reset", "found", "--from", "earliest"]);
    folder.run_once();
    assert_eq!(index.documents().len(), 100);
    for (id, document) in index.documents() {
        assert_eq!(id, document["lsn"].to_string());
    }
}

/// Delivers the rows of a table by processes that are killed.
fn check_kills(table: &str, expected: impl Fn(&TestFolder) -> BTreeSet<String>) {
    let index = Index::default();
    let server = index.server("127.0.0.1:0", |_, _| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        Fault::None
    });
    let folder = folder(&server, table, "batch_rows = 5");
    for round in 0..2 {
        let requests = index.requests();
        append(&folder, round * 400..(round + 1) * 400);
        let killed = start(&folder);
        wait_until("a part is delivered", || index.requests() > requests + 3);
        killed.kill();
    }
    let running = start(&folder);
    wait_until("everything is delivered", || has_all(&running, 800));
    running.stop();
    assert_eq!(index.rows(), expected(&folder));
}

#[test]
fn kills_in_the_middle_of_deliveries_lose_no_row_of_an_entity_table() {
    check_kills("events.members", |folder| {
        as_set(&folder.rows("select * from events.members"))
    });
}

#[test]
fn kills_in_the_middle_of_deliveries_lose_no_row_of_a_window() {
    check_kills("totals", windows);
}

#[test]
fn rows_that_are_refused_are_dead_letters() {
    let index = Index::default();
    let server = index.server("127.0.0.1:0", |number, request| match number {
        // A request of more than a few rows is too large for it.
        _ if request.body.len() > 3_000 => Fault::Status(413),
        _ => Fault::None,
    });
    let folder = folder(&server, "events", "");
    append(&folder, 0..100);
    let refused = "{\"id\":100,\"at\":1465520500000,\"member\":\"a\",\"value\":66}\n";
    let long = "x".repeat(4_000);
    let large = format!("{{\"id\":101,\"at\":1465520500001,\"member\":\"{long}\",\"value\":1}}\n");
    let path = folder.path("in.ndjson");
    let file = std::fs::OpenOptions::new().append(true).open(path);
    let text = format!("{refused}{large}");
    file.expect("a file")
        .write_all(text.as_bytes())
        .expect("written");
    append(&folder, 102..200);
    folder.run_once();
    let accepted = folder.rows("select * from events where id not in (100, 101)");
    assert_eq!(accepted.len(), 198);
    assert_eq!(index.rows(), as_set(&accepted));
    let letters = folder.rows("select reason from weir.sink_dead_letters order by lsn");
    let expected = [
        json!({"reason": "document_parsing_exception: [1:2] failed to parse field [value] of \
                          type [byte]"}),
        json!({"reason": "status 413"}),
    ];
    assert_eq!(letters, expected);
}

#[test]
fn wrong_credentials_halt_a_sink_until_they_are_repaired() {
    use std::os::unix::fs::PermissionsExt as _;
    let index = Index::default();
    let server = index.server("127.0.0.1:0", |_, request| {
        match request.headers.get("authorization").map(String::as_str) {
            Some("ApiKey right" | "Basic YW5uOnNlY3JldA==") => Fault::None,
            _ => Fault::Status(401),
        }
    });
    let folder = TestFolder::new("");
    let secret = |name: &str, text: &str| {
        folder.write(name, text.as_bytes());
        let owner_only = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(folder.path(name), owner_only).expect("permitted");
    };
    secret("key", "wrong\n");
    secret("password", "secret\n");
    configure(&folder, &server, "events", "api_key_file = \"key\"");
    append(&folder, 0..50);
    let running = start(&folder);
    let state = || sql(&running, "select * from weir.sinks");
    wait_until("it halts", || state()["state"] == "halted");
    let error = state()["last_error"].to_string();
    assert!(error.contains("api_key_file"), "{error}");
    secret("key", "right\n");
    folder.succeed(&["sinks", "resume", "found"]);
    wait_until("it delivers", || has_all(&running, 50));
    running.stop();
    let keys = "user = \"ann\"\npassword_file = \"password\"";
    configure(&folder, &server, "events", keys);
    append(&folder, 50..80);
    folder.run_once();
    assert_eq!(index.rows(), as_set(&folder.rows("select * from events")));
}

#[test]
fn an_index_of_another_data_folder_is_noticed() {
    let index = Index::default();
    let server = index.server("127.0.0.1:0", |_, _| Fault::None);
    let first = folder(&server, "events.members", "");
    append(&first, 0..500);
    first.run_once();
    let second = folder(&server, "events.members", "");
    append(&second, 0..100);
    let message = second.fail(&["run", "--once", "--sinks-timeout", "1s"], 1);
    assert!(message.contains("of another data folder"), "{message}");
    second.succeed(&["sinks", "reset", "found", "--from", "earliest"]);
    second.run_once();
    let documents = index.rows();
    let rows = as_set(&second.rows("select * from events.members"));
    assert!(rows.iter().all(|row| documents.contains(row)));
}
