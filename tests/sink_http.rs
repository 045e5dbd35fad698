//! Webhooks, against a server of the test: each row at least once and none lost, whatever the
//! server, the network and kill -9 do.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::server::Server;
use crate::support::{TestFolder, wait_until};
use crate::web_server::{Reply, Request, WebServer, hold};

const STREAM: &str = r#"[server]
http = "127.0.0.1:0"
[[sources]]
name = "in"
type = "file"
path = "in.ndjson"
stream = "events"
[streams.events]
schema = "id bigint not null, at bigint not null, name varchar"
select = "select to_timestamp_millis(at) as event_time, id, name from events"
"#;

/// What a receiver got: requests with the status that it answered.
#[derive(Clone, Default)]
struct Received(Arc<Mutex<Vec<(Request, u16)>>>);

impl Received {
    /// Answers each request as `status` says, which gets its number.
    fn server(
        &self,
        address: &str,
        status: impl Fn(usize, &Value) -> u16 + Send + Sync + 'static,
    ) -> WebServer {
        let received = self.0.clone();
        WebServer::start_at(address, move |request| {
            let body: Value = serde_json::from_slice(&request.body).expect("JSON");
            let number = received.lock().expect("unpoisoned").len();
            let status = status(number, &body);
            let mut all = received.lock().expect("unpoisoned");
            all.push((request.clone(), status));
            match status {
                0 => Reply::Close,
                302 => {
                    let location = "http://127.0.0.1:1/inside".to_owned();
                    Reply::Answer(302, vec![("Location", location)], String::new())
                }
                429 | 503 => {
                    Reply::Answer(status, vec![("Retry-After", "1".into())], String::new())
                }
                _ => Reply::Answer(status, Vec::new(), format!("status\n {status}")),
            }
        })
    }

    fn requests(&self) -> Vec<(Request, u16)> {
        self.0.lock().expect("unpoisoned").clone()
    }

    fn accepted(&self) -> Vec<Request> {
        let requests = self.requests().into_iter();
        let accepted = requests.filter(|(_, status)| *status == 200);
        accepted.map(|(request, _)| request).collect()
    }

    /// All accepted rows in the order of their arrival.
    fn rows(&self) -> Vec<Value> {
        self.accepted().iter().flat_map(rows).collect()
    }

    fn distinct(&self) -> BTreeSet<String> {
        self.rows().iter().map(Value::to_string).collect()
    }
}

fn rows(request: &Request) -> Vec<Value> {
    let body: Value = serde_json::from_slice(&request.body).expect("JSON");
    assert_eq!(
        (&body["sink"], &body["table"]),
        (&json!("hook"), &json!("events"))
    );
    body["rows"].as_array().expect("rows").clone()
}

fn id(request: &Request) -> String {
    request.headers["webhook-id"].clone()
}

fn sink(server: &WebServer, keys: &str) -> String {
    format!(
        "[[sinks]]\nname = \"hook\"\ntype = \"http\"\nfrom = \"events\"\n\
         url = \"http://{}/hook\"\n{keys}\n",
        server.address
    )
}

fn folder(server: &WebServer, keys: &str) -> TestFolder {
    let folder = TestFolder::new("");
    configure(&folder, server, keys);
    folder
}

fn configure(folder: &TestFolder, server: &WebServer, keys: &str) {
    let keys = format!("allow_private = true\n{keys}");
    folder.configure(&format!("{}{STREAM}", sink(server, &keys)));
}

/// Appends records with these ids.
fn append(folder: &TestFolder, ids: std::ops::Range<u64>) {
    let line = |id: u64| {
        format!(
            "{{\"id\":{id},\"at\":{},\"name\":\"é {id}\"}}\n",
            1_465_520_400_000 + id
        )
    };
    let path = folder.path("in.ndjson");
    let file = std::fs::OpenOptions::new().append(true).open(path);
    let text: String = ids.map(line).collect();
    file.expect("a file")
        .write_all(text.as_bytes())
        .expect("written");
}

/// The rows of the table as SQL shows them.
fn table(folder: &TestFolder) -> Vec<Value> {
    let columns = "lsn, event_time, received_at, source, id, name";
    folder.rows(&format!("select {columns} from events order by lsn"))
}

fn as_set(rows: &[Value]) -> BTreeSet<String> {
    rows.iter().map(Value::to_string).collect()
}

fn start(folder: &TestFolder) -> Server {
    Server::start(&mut folder.command(&["run", "-q"]), &folder.path("data"))
}

/// The sink as the running server describes it.
fn status(server: &Server) -> Value {
    let body = json!({"sql": "select * from weir.sinks"}).to_string();
    let answer = server
        .request("POST", "/api/v1/sql", &[], body.as_bytes())
        .1;
    answer["rows"][0].clone()
}

fn stored_rows(server: &Server) -> Value {
    let body = json!({"sql": "select count(*) as n from events"}).to_string();
    let answer = server
        .request("POST", "/api/v1/sql", &[], body.as_bytes())
        .1;
    answer["rows"][0]["n"].clone()
}

fn signature(key: &[u8], request: &Request) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key");
    let (id, timestamp) = (id(request), &request.headers["webhook-timestamp"]);
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(&request.body);
    let bytes = mac.finalize().into_bytes();
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn write_secret(folder: &TestFolder, name: &str, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    folder.write(name, text.as_bytes());
    let owner_only = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(folder.path(name), owner_only).expect("permitted");
}

#[test]
fn signed_requests_have_each_row_once_and_a_reset_sends_all_again() {
    let received = Received::default();
    let server = received.server("127.0.0.1:0", |_, _| 200);
    let folder = TestFolder::new("");
    let secret = base64::engine::general_purpose::STANDARD.encode([7; 32]);
    write_secret(&folder, "secret", &format!("whsec_{secret}\nold secret\n"));
    let keys =
        "secret_file = \"secret\"\nbatch_rows = 64\nheaders = { authorization = \"Bearer t\" }";
    configure(&folder, &server, keys);
    append(&folder, 0..1_000);
    let output = folder.output(&["run", "--once", "--output", "json"]);
    assert!(output.status.success());
    let summary: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let expected = json!({
        "state": "running", "rows": 1_000, "lag": 0, "dead_letters": 0, "last_error": null,
    });
    assert_eq!(summary["sinks"]["hook"], expected);
    assert_eq!(received.rows(), table(&folder));
    let requests = received.accepted();
    let ids: BTreeSet<String> = requests.iter().map(id).collect();
    assert_eq!(ids.len(), requests.len());
    for request in &requests {
        assert!((1..=64).contains(&rows(request).len()));
        assert_eq!(request.path, "/hook");
        assert_eq!(request.headers["content-type"], "application/json");
        assert_eq!(request.headers["authorization"], "Bearer t");
        let signed = [&[7; 32][..], b"old secret"].map(|key| signature(key, request));
        let expected = format!("v1,{} v1,{}", signed[0], signed[1]);
        assert_eq!(request.headers["webhook-signature"], expected);
    }
    // Nothing is sent twice; after a reset everything is, under other ids.
    folder.run_once();
    assert_eq!(received.accepted().len(), requests.len());
    folder.succeed(&["sinks", "reset", "hook", "--from", "earliest"]);
    folder.run_once();
    let again = received.accepted().split_off(requests.len());
    let sent: Vec<Value> = again.iter().flat_map(rows).collect();
    assert_eq!(sent, table(&folder));
    assert!(again.iter().all(|request| !ids.contains(&id(request))));
}

#[test]
fn a_kill_in_the_middle_of_a_delivery_repeats_requests_under_their_ids() {
    let received = Received::default();
    // Slow enough that the kill meets a delivery.
    let server = received.server("127.0.0.1:0", |number, _| {
        if number > 4 && number < 30 {
            std::thread::sleep(std::time::Duration::from_millis(30));
        }
        200
    });
    let folder = folder(&server, "batch_rows = 50");
    // Without rows nothing is delivered; paused, they wait.
    folder.run_once();
    folder.succeed(&["sinks", "pause", "hook"]);
    append(&folder, 0..2_000);
    folder.run_once();
    folder.succeed(&["sinks", "resume", "hook"]);
    assert_eq!(received.requests().len(), 0);
    let expected = as_set(&table(&folder));
    assert_eq!(expected.len(), 2_000);
    let killed = start(&folder);
    wait_until("a part is delivered", || received.accepted().len() >= 10);
    killed.kill();
    drop(killed);
    let before = received.accepted();
    assert!(before.len() < 40, "{} requests", before.len());
    folder.run_once();
    assert_eq!(received.distinct(), expected);
    // The same rows have the same id, and an id has always the same rows.
    let mut bodies: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut ids: BTreeMap<Vec<u8>, String> = BTreeMap::new();
    for request in received.accepted() {
        let body = bodies.entry(id(&request)).or_insert(request.body.clone());
        assert_eq!(*body, request.body);
        let known = ids.entry(request.body.clone()).or_insert(id(&request));
        assert_eq!(*known, id(&request));
    }
    let after = received.accepted().split_off(before.len());
    let is_first = |request: &Request| id(request) == id(&before[0]);
    assert!(after.iter().any(is_first), "the delivery is repeated");
}

#[test]
fn a_server_that_fails_and_breaks_off_gets_each_accepted_request_once() {
    let received = Received::default();
    let status = |number: usize, _: &Value| match number {
        3 => 503,
        5 => 0,
        7 => 429,
        _ => 200,
    };
    let server = received.server("127.0.0.1:0", status);
    let folder = folder(&server, "batch_rows = 50");
    append(&folder, 0..1_000);
    folder.run_once();
    // Of what was answered 2xx nothing was sent again, within this process.
    assert_eq!(received.rows(), table(&folder));
    let failed = received.requests();
    let failed = failed.iter().filter(|(_, status)| *status != 200);
    assert_eq!(failed.count(), 3);
}

#[test]
fn a_target_that_is_down_gets_everything_once_it_is_back() {
    let received = Received::default();
    let down = received.server("127.0.0.1:0", |_, _| 200);
    let folder = folder(&down, "");
    let address = down.address;
    drop(down);
    let held = hold(address);
    append(&folder, 0..500);
    let output = folder.output(&[
        "run",
        "--once",
        "--sinks-timeout",
        "300ms",
        "--output",
        "json",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let summary: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(summary["sinks"]["hook"]["state"], "retrying");
    assert_eq!(summary["streams"]["events"]["events"], 500);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        message.contains("everything accepted is committed"),
        "{message}"
    );
    assert_eq!(folder.number("select count(*) from events"), 500);
    let running = start(&folder);
    wait_until("it tries again", || {
        let status = status(&running);
        status["state"] == "retrying" && status["retries"].as_u64() > Some(1)
    });
    drop(held);
    let _up = received.server(&address.to_string(), |_, _| 200);
    wait_until("it delivers", || {
        let status = status(&running);
        assert_ne!(status["state"], "halted", "{status}");
        status["lag"] == 0
    });
    assert_eq!(status(&running)["state"], "running");
    running.stop();
    assert_eq!(received.rows(), table(&folder));
}

#[test]
fn refused_rows_are_dead_letters_and_all_others_arrive() {
    let received = Received::default();
    // One request fails after a refused row was found: it is not stored twice.
    let has_failed = AtomicBool::new(false);
    let server = received.server("127.0.0.1:0", move |_, body| {
        let rows = body["rows"].as_array().expect("rows");
        let has = |id: u64| rows.iter().any(|row| row["id"] == id);
        match (has(77) || has(140), has(141)) {
            (true, _) => 422,
            (_, true) if !has_failed.swap(true, Ordering::SeqCst) => 503,
            _ => 200,
        }
    });
    let folder = folder(&server, "batch_rows = 32");
    append(&folder, 0..300);
    folder.run_once();
    let all = table(&folder);
    let is_refused = |row: &&Value| row["id"] == 77 || row["id"] == 140;
    let others: BTreeSet<String> = all
        .iter()
        .filter(|row| !is_refused(row))
        .map(Value::to_string)
        .collect();
    assert_eq!(received.distinct(), others);
    assert_eq!(received.rows().len(), others.len(), "each once");
    let letters = folder.rows(
        "select sink, \"table\", lsn, reason, \"row\" from weir.sink_dead_letters order by lsn",
    );
    let expected: Vec<Value> = all
        .iter()
        .filter(is_refused)
        .map(|row| {
            json!({
                "sink": "hook", "table": "events", "lsn": row["lsn"],
                "reason": "status 422: status 422", "row": letter_row(&letters, row),
            })
        })
        .collect();
    assert_eq!(letters, expected);
}

/// The stored row with these values, as the text that it is.
fn letter_row(letters: &[Value], row: &Value) -> Value {
    let text = letters.iter().map(|letter| letter["row"].clone());
    let mut own = text.filter(|text| {
        let parsed = serde_json::from_str::<Value>(text.as_str().unwrap_or_default());
        parsed.is_ok_and(|parsed| parsed == *row)
    });
    own.next().unwrap_or_default()
}

#[test]
fn private_addresses_and_redirects_are_refused() {
    let received = Received::default();
    let server = received.server("127.0.0.1:0", |_, _| 302);
    let folder = TestFolder::new("");
    folder.configure(&format!("{}{STREAM}", sink(&server, "")));
    folder.check_config_error(&["sink `hook`", "allow_private = true"]);
    let port = server.address.port();
    let named = sink(&server, "").replace("127.0.0.1", "localhost");
    assert!(named.contains(&format!("localhost:{port}")));
    folder.configure(&format!("{named}{STREAM}"));
    folder.succeed(&["check"]);
    append(&folder, 0..10);
    let message = folder.fail(&["run", "--once"], 1);
    assert!(message.contains("`hook` is halted"), "{message}");
    assert!(message.contains("`allow_private = true`"), "{message}");
    assert_eq!(received.requests().len(), 0);
    configure(&folder, &server, "");
    let message = folder.fail(&["run", "--once"], 1);
    assert!(message.contains("http://127.0.0.1:1/inside"), "{message}");
    assert_eq!(received.requests().len(), 1);
}

#[test]
fn a_halted_sink_resumes_and_is_paused_and_reset_over_http() {
    let received = Received::default();
    let is_repaired = Arc::new(AtomicBool::new(false));
    let repaired = is_repaired.clone();
    let server = received.server("127.0.0.1:0", move |_, _| {
        if repaired.load(Ordering::SeqCst) {
            200
        } else {
            401
        }
    });
    let folder = folder(&server, "");
    append(&folder, 0..100);
    let running = start(&folder);
    wait_until("it halts", || status(&running)["state"] == "halted");
    let error = status(&running)["last_error"].to_string();
    assert!(error.contains("weir sinks resume"), "{error}");
    is_repaired.store(true, Ordering::SeqCst);
    folder.succeed(&["sinks", "resume", "hook"]);
    wait_until("it delivers", || status(&running)["lag"] == 0);
    let first = received.rows();
    assert_eq!(first.len(), 100);
    folder.succeed(&["sinks", "pause", "hook"]);
    append(&folder, 100..150);
    wait_until("the records are stored", || stored_rows(&running) == 150);
    assert_eq!(status(&running)["state"], "paused");
    let lsn = first[39]["lsn"].to_string();
    folder.succeed(&["sinks", "reset", "hook", "--from", &lsn]);
    assert_eq!(received.rows().len(), 100);
    folder.succeed(&["sinks", "resume", "hook"]);
    wait_until("it delivers again", || status(&running)["lag"] == 0);
    running.stop();
    let expected: Vec<Value> = table(&folder).split_off(40);
    assert_eq!(received.rows().split_off(100), expected);
}

#[test]
fn the_examples_of_the_documentation_are_valid() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/sinks.md");
    let page = std::fs::read_to_string(page).expect("readable");
    let blocks = page.split("```toml\n").skip(1);
    let blocks = blocks.filter_map(|block| block.split("```").next());
    let is_web = |block: &&str| block.contains("\"http\"") || block.contains("\"elasticsearch\"");
    let blocks: Vec<&str> = blocks.filter(is_web).collect();
    assert_eq!(blocks.len(), 2);
    let folder = TestFolder::new("");
    write_secret(&folder, "hook.secret", "secret\n");
    write_secret(&folder, "search.password", "secret\n");
    for block in blocks {
        let stream = r#"[streams.orders]
schema = "id bigint not null, at bigint not null"
select = "select to_timestamp_millis(at) as event_time, id from orders"
[tables."orders.latest"]
stream = "orders"
key = "id"
select = "select id"
"#;
        folder.configure(&format!("{block}{stream}"));
        folder.succeed(&["check"]);
    }
}

#[test]
fn a_certificate_is_trusted_if_its_authority_is_configured() {
    let certificate =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let (pem, key) = (
        certificate.cert.pem(),
        certificate.signing_key.serialize_pem(),
    );
    // The receiver is another weir: each request is a record.
    let receiver = TestFolder::new("");
    receiver.write("cert.pem", pem.as_bytes());
    write_secret(&receiver, "key.pem", &key);
    receiver.configure(
        r#"[server]
http = "127.0.0.1:0"
tls_cert = "cert.pem"
tls_key = "key.pem"
[streams.hooks]
schema = "sink varchar not null"
select = "select to_timestamp_millis(length(sink) * 1000) as event_time, sink from hooks"
"#,
    );
    let mut child = receiver
        .command(&["run", "-q"])
        .spawn()
        .expect("the binary runs");
    wait_until("the receiver answers", || {
        receiver.output(&["status"]).status.success()
    });
    let address = std::fs::read(receiver.path("data/address.json")).expect("an address");
    let address: Value = serde_json::from_slice(&address).expect("JSON");
    let port = address["http"]
        .as_str()
        .and_then(|text| text.rsplit(':').next());
    let url = format!(
        "https://localhost:{}/api/v1/streams/hooks/events",
        port.expect("a port")
    );
    let folder = TestFolder::new("");
    let configure = |keys: &str| {
        folder.configure(&format!(
            "[[sinks]]\nname = \"hook\"\ntype = \"http\"\nfrom = \"events\"\nurl = \"{url}\"\n\
             allow_private = true\nbatch_rows = 10\n{keys}\n{STREAM}"
        ));
    };
    configure("");
    append(&folder, 0..30);
    let message = folder.fail(&["run", "--once", "--sinks-timeout", "300ms"], 1);
    assert!(message.contains("certificate"), "{message}");
    folder.write("ca.pem", pem.as_bytes());
    configure("ca_file = \"ca.pem\"");
    folder.run_once();
    wait_until("each request is a record", || {
        receiver.number("select count(*) from hooks where sink = 'hook'") == 3
    });
    child.kill().and_then(|()| child.wait()).expect("it ends");
}
