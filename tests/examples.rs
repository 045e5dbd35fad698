//! What `examples/` shows is run here, against servers that speak the protocols of the real ones.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Message, accept_hdr, handshake::server::Request};

use crate::kafka::Cluster;
use crate::server::{Server, start};
use crate::support::{HTTP_ONLY, TestFolder, ndjson, records, skip, wait_until, weir};
use crate::web_server::{Reply, WebServer};

#[path = "../examples/embed.rs"]
#[expect(dead_code, reason = "its `main` is that of the example")]
mod embed;

pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the repository.
pub fn text(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).expect(path)
}

/// Output of a command that must succeed.
pub fn succeed(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("it runs");
    let stdout = String::from_utf8(stdout).expect("text");
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?}: {stdout}\n{stderr}");
    stdout
}

fn rows(server: &Server, query: &str) -> Vec<Value> {
    let body = json!({ "sql": query }).to_string();
    let (_, answer) = server.request("POST", "/api/v1/sql", &[], body.as_bytes());
    let rows = answer["rows"].as_array().cloned();
    rows.unwrap_or_else(|| panic!("{query}: {answer}"))
}

fn number(server: &Server, query: &str) -> u64 {
    let row = &rows(server, &format!("select ({query}) as n"))[0];
    row["n"].as_u64().expect("a number")
}

#[test]
fn the_program_that_embeds_weir_finds_its_file_and_its_own_record() {
    let folder = tempfile::tempdir().expect("a folder");
    // The second run continues: the file has been read, and the program adds its record again.
    for attics in 1..=2 {
        let lines = embed::warmest(folder.path()).expect("an answer");
        let rows: Vec<Value> = lines
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let expected = json!([
            {"place": "attic", "n": attics, "warmest": 4.25},
            {"place": "cellar", "n": 1, "warmest": 11.0},
            {"place": "roof", "n": 2, "warmest": -2.5},
        ]);
        assert_eq!(Value::Array(rows), expected);
    }
}

/// Whether a program is there; the reason for skipping a test if not.
pub fn has_program(name: &str) -> bool {
    let found = Command::new(name).arg("--version").output().is_ok();
    if !found {
        skip(&format!("{name} is not installed"));
    }
    found
}

#[test]
fn the_tour_with_curl_gets_the_answers_that_it_expects() {
    if !has_program("curl") {
        return;
    }
    let folder = TestFolder::new("");
    folder.configure(HTTP_ONLY);
    let server = start(&folder);
    assert_eq!(server.post(&[], &ndjson(&records(300, 61))).0, 200);
    // Twice: an event of an earlier tour does not disturb.
    for _ in 0..2 {
        let mut tour = Command::new("bash");
        tour.arg(repository().join("examples/tour.sh"))
            .arg(format!("http://{}", server.address))
            .env_remove("WEIR_TOKEN")
            .env_remove("WEIR_CERT");
        let shown = succeed(&mut tour);
        assert!(shown.contains("every answer was as expected"), "{shown}");
    }
    assert_eq!(
        number(
            &server,
            "select count(*) from rsvps where event_name like 'A tour%'"
        ),
        2
    );
    server.stop();
}

/// A websocket server that sends these messages to each client. Returns its address, and the paths
/// that clients ask for.
fn websocket_server(messages: Vec<String>) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let (paths, requested) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            #[expect(clippy::result_large_err, reason = "the library's type")]
            let path = |request: &Request, response| {
                let _ = paths.send(request.uri().to_string());
                Ok(response)
            };
            let Ok(mut socket) = accept_hdr(stream, path) else {
                continue;
            };
            for message in &messages {
                let _ = socket.send(Message::text(message.clone()));
            }
            // Answers pings until the client leaves.
            while socket.read().is_ok() {}
        }
    });
    (address.to_string(), requested)
}

/// The head of a request, in lower case.
fn read_head(stream: &mut TcpStream) -> Option<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    Some(String::from_utf8_lossy(&head).to_lowercase())
}

/// A server of these events, with ids as EventStreams has them. The first connection ends after two
/// events; a later one continues after `Last-Event-ID`. Returns its address, and the heads of
/// requests.
fn event_server(events: Vec<String>) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let (heads, requested) = channel();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().enumerate() {
            let mut stream = stream;
            let Some(head) = read_head(&mut stream) else {
                continue;
            };
            let id = |n: usize| {
                format!(
                    r#"[{{"topic":"eqiad.mediawiki.recentchange","partition":0,"offset":{n}}}]"#
                )
            };
            let last = (1..=events.len()).find(|n| head.contains(&format!("id: {}", id(*n))));
            let _ = heads.send(head);
            let mut body = String::from(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n:ok\n\n",
            );
            let after = last.unwrap_or(0);
            let to = if number == 0 { 2 } else { events.len() };
            for (n, event) in events.iter().enumerate().take(to).skip(after) {
                body += &format!("event: message\nid: {}\ndata: {event}\n\n", id(n + 1));
            }
            let _ = stream.write_all(body.as_bytes());
            if to == events.len() {
                // Stays open until the client closes it.
                let _ = stream.read(&mut [0]);
            }
        }
    });
    (address.to_string(), requested)
}

fn sample(feed: &str) -> Vec<String> {
    let lines = text(&format!("testdata/feeds/{feed}.ndjson"));
    lines.lines().map(str::to_owned).collect()
}

/// Starts a feed's configuration, which is valid as it is, with another server in place of the
/// public one.
fn start_feed(feed: &str, public: &str, local: &str) -> (TestFolder, Server) {
    let folder = TestFolder::new("");
    let config = text(&format!("examples/feeds/{feed}.toml"));
    folder.write("weir.toml", config.as_bytes());
    folder.succeed(&["check"]);
    let changed = config.replacen(public, local, 1);
    assert_ne!(changed, config, "{public} is in the file");
    folder.write("weir.toml", changed.as_bytes());
    let mut command = folder.command(&["run"]);
    command.env("WEIR_SERVER_HTTP", "127.0.0.1:0");
    let server = Server::start(&mut command, &folder.path(&format!("{feed}-data")));
    (folder, server)
}

#[test]
fn posts_of_jetstream_are_stored_and_searched() {
    let (address, requested) = websocket_server(sample("bluesky"));
    let public = "wss://jetstream2.us-east.bsky.network";
    let (_folder, server) = start_feed("bluesky", public, &format!("ws://{address}"));
    wait_until("all records come", || {
        number(&server, "select count(*) from posts") == 6
    });
    let path = requested.recv().expect("a request");
    assert_eq!(path, "/subscribe?wantedCollections=app.bsky.feed.post");
    let kinds =
        "select kind, count(*) as n, count(text) as texts from posts group by kind order by kind";
    let expected = json!([
        {"kind": "account", "n": 1, "texts": 0},
        {"kind": "commit", "n": 4, "texts": 3},
        {"kind": "identity", "n": 1, "texts": 0},
    ]);
    assert_eq!(Value::Array(rows(&server, kinds)), expected);
    wait_until("the search has the post", || {
        server.get("/api/v1/search?q=lang:ja").1["total"] == 1
    });
    let windows = "select lang, posts, replies from per_language order by lang";
    let expected =
        json!([{"lang": "en", "posts": 2, "replies": 1}, {"lang": "ja", "posts": 1, "replies": 0}]);
    assert_eq!(Value::Array(rows(&server, windows)), expected);
    assert_eq!(number(&server, "select count(*) from dead_letters"), 0);
    server.stop();
}

#[test]
fn trades_of_an_exchange_become_candles() {
    let (address, requested) = websocket_server(sample("trades"));
    let public = "wss://data-stream.binance.vision";
    let (_folder, server) = start_feed("trades", public, &format!("ws://{address}"));
    wait_until("all records come", || {
        number(&server, "select count(*) from trades") == 6
    });
    let path = requested.recv().expect("a request");
    assert_eq!(
        path,
        "/stream?streams=btcusdt@trade/ethusdt@trade/solusdt@trade"
    );
    assert_eq!(
        number(&server, "select count(*) from trades where is_duplicate"),
        1
    );
    let candle = &rows(&server, "select * from candles where symbol = 'BTCUSDT'")[0];
    let found = ["opened", "high", "low", "closed", "trades"].map(|name| candle[name].as_f64());
    let expected = [91_000.1, 91_002.0, 90_999.9, 90_999.9, 3.0].map(Some);
    assert_eq!(found, expected, "{candle}");
    assert_eq!(number(&server, "select count(*) from dead_letters"), 0);
    server.stop();
}

#[test]
fn edits_of_event_streams_continue_after_a_lost_connection() {
    let (address, requested) = event_server(sample("wikimedia"));
    let public = "https://stream.wikimedia.org";
    let (_folder, server) = start_feed("wikimedia", public, &format!("http://{address}"));
    wait_until("all records come", || {
        number(&server, "select count(*) from edits") == 4
            && number(&server, "select count(*) from dead_letters") == 1
    });
    let first = requested.recv().expect("a request");
    assert!(
        first.starts_with("get /v2/stream/recentchange http/1.1"),
        "{first}"
    );
    assert!(
        first.contains("user-agent: weir (https://example.org/contact)"),
        "{first}"
    );
    let second = requested.recv().expect("a second request");
    assert!(second.contains(r#""offset":2}]"#), "{second}");
    assert_eq!(number(&server, "select count(*) from weir.gaps"), 0);
    let dead = &rows(&server, "select reason from dead_letters")[0];
    assert!(dead["reason"].to_string().contains("canary"), "{dead}");
    let busiest = "select wiki, edits, by_bots, delta from busiest_wikis order by edits desc";
    let expected = json!([
        {"wiki": "enwiki", "edits": 2, "by_bots": 1, "delta": 40},
        {"wiki": "dewiki", "edits": 1, "by_bots": 0, "delta": 300},
    ]);
    assert_eq!(Value::Array(rows(&server, busiest)), expected);
    server.stop();
}

/// Python with these packages, which `.ci/run` installs; else the reason for skipping.
pub fn python_with(packages: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let python = cache.map(|cache| cache.join("weir-ci/venv/bin/python"));
    let import = format!("import {packages}");
    let usable = python.filter(|python| {
        let imported = Command::new(python).args(["-c", &import]).output();
        imported.is_ok_and(|output| output.status.success())
    });
    if usable.is_none() {
        let reason =
            format!("no Python with {packages} in the cache's weir-ci/venv; .ci/run installs them");
        assert!(
            std::env::var_os("WEIR_REQUIRE_READERS").is_none(),
            "{reason}"
        );
        skip(&reason);
    }
    usable
}

#[test]
fn readers_of_the_lake_find_what_sql_finds() {
    let Some(python) = python_with("polars, deltalake, duckdb") else {
        return;
    };
    let folder = TestFolder::new("");
    let input = folder.path("in.ndjson");
    let count = ["generate", "--count", "5000", "--file"];
    succeed(weir().args(count).arg(&input));
    let config = text("examples/lake/weir.toml").replace("../../in.ndjson", "in.ndjson");
    folder.write("weir.toml", config.as_bytes());
    folder.run_once();
    let query = "select country, count(*) as n from rsvps where not is_duplicate group by country order by n desc, country limit 5";
    assert!(
        text("examples/lake/README.md").contains(query),
        "the page has the query"
    );
    let expected = succeed(&mut folder.command(&["sql", "--output", "csv", query]));
    assert_eq!(expected.lines().count(), 6, "{expected}");
    let script = |name: &str| {
        let mut command = Command::new(&python);
        command
            .arg(repository().join("examples/lake").join(name))
            .arg(folder.path("data"));
        command
    };
    assert_eq!(succeed(&mut script("polars_lake.py")), expected, "Polars");
    let weir = format!(
        "{} -c {}",
        env!("CARGO_BIN_EXE_weir"),
        folder.path("weir.toml").display()
    );
    let found = succeed(script("duckdb_lake.py").arg(weir));
    assert_eq!(found, expected, "DuckDB");
    let members = script("polars_lake.py").output().expect("it runs").stderr;
    let count = folder.number("select count(*) from rsvps.members");
    assert_eq!(
        String::from_utf8_lossy(&members),
        format!("{count} members, {count} different\n")
    );
}

#[test]
fn the_readers_are_installed_in_the_versions_that_the_page_names() {
    let (page, script) = (text("examples/lake/README.md"), text(".ci/run"));
    let install = page.lines().find_map(|l| l.strip_prefix("pip install "));
    for package in install.expect("a line").split(' ') {
        assert!(
            script.contains(package),
            ".ci/run installs another {package}"
        );
    }
}

/// Names of metrics in an expression of Prometheus.
fn metrics_in(expression: &str) -> impl Iterator<Item = &str> {
    expression
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("weir_"))
}

/// Calls `found` with each expression of a dashboard.
fn each_expression(part: &Value, found: &mut impl FnMut(&str)) {
    match part {
        Value::Object(members) => {
            for (name, value) in members {
                match (name.as_str(), value.as_str()) {
                    ("expr" | "query", Some(text)) => found(text),
                    _ => each_expression(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|v| each_expression(v, found)),
        _ => {}
    }
}

#[test]
fn every_metric_of_the_dashboard_is_one_that_a_server_has() {
    let dashboard: Value = serde_json::from_str(&text("examples/grafana/weir.json")).expect("JSON");
    let mut named = std::collections::BTreeSet::new();
    each_expression(&dashboard, &mut |expression| {
        named.extend(metrics_in(expression).map(str::to_owned));
    });
    let alerts = text("examples/grafana/README.md");
    named.extend(metrics_in(&alerts).map(str::to_owned));
    assert!(named.len() > 20, "{named:?}");

    // A source that knows how far behind it is, a sink, a window, a session, and a broken record.
    let receiver = WebServer::start_at("127.0.0.1:0", |_| Reply::status(200));
    let cluster = Cluster::new(&[("orders", 1)]);
    let folder = TestFolder::new("");
    let more = format!(
        r#"[streams.orders]
schema = "id bigint not null, at bigint not null"
select = "select to_timestamp_millis(at) as event_time, id from orders"
session = {{ key = "id", gap = "1h" }}
[windows.n]
sql = """select window_start, window_end, count(*) as n from tumble(orders, event_time, interval '1 hour') group by 1, 2"""
[[sinks]]
name = "hook"
type = "http"
from = "n"
url = "http://{}/"
allow_private = true
"#,
        receiver.address
    );
    cluster.configure_stream(&folder, "topics = { orders = \"orders\" }", &more);
    for record in [&b"{\"id\":1,\"at\":1465520400000}"[..], b"broken"] {
        cluster.send_bytes("orders", 0, Some(record));
    }
    let server = crate::kafka::server(&folder);
    let mut missing: Vec<String> = Vec::new();
    wait_until("every metric is there", || {
        let text = server.get("/metrics").1;
        let shown: Vec<&str> = metrics_in(text.as_str().unwrap_or_default()).collect();
        let is_missing = |name: &&String| !shown.contains(&name.as_str());
        let before = std::mem::take(&mut missing);
        missing = named.iter().filter(is_missing).cloned().collect();
        if missing != before {
            println!("not there yet: {missing:?}");
        }
        missing.is_empty()
    });
    server.stop();
}

#[test]
fn every_file_of_the_examples_is_named_by_a_page() {
    let mut unnamed = Vec::new();
    let pages = ["feeds", "lake", "grafana", "kafka_to_postgres"];
    for folder in pages {
        let page = text(&format!("examples/{folder}/README.md"));
        let folder = repository().join("examples").join(folder);
        for entry in std::fs::read_dir(&folder).expect("a folder").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_file = entry.path().is_file() && name != "README.md";
            if is_file && !page.contains(&name) {
                unnamed.push(Path::new(&folder).join(name));
            }
        }
    }
    assert!(unnamed.is_empty(), "{unnamed:?}");
}
