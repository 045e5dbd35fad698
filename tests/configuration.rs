//! The configuration as a server shows it, what can be completed in SQL, answers as Parquet, and
//! the descriptions of metrics.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;

use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};

use crate::server::{Server, start};
use crate::support::{HTTP_ONLY, TestFolder, ndjson, records, wait_until};

/// Sources and sinks that connect to nothing, with secrets in all the places where one can be.
const WITH_SECRETS: &str = r#"
[log]
keep = "2d"
[limits]
sql_rows = 1234
[[sources]]
name = "feed"
type = "http_poll"
url = "http://127.0.0.1:1/feed?key=SECRET-1"
stream = "rsvps"
headers = { authorization = "Bearer SECRET-2", x-file = { file = "key.txt" } }
[[sources]]
name = "socket"
type = "websocket"
url = "ws://user:SECRET-6@127.0.0.1:1/socket?token=SECRET-7"
stream = "rsvps"
[[sources]]
name = "open"
type = "http_stream"
url = "http://127.0.0.1:1/open?key=SECRET-8"
stream = "rsvps"
[[sinks]]
name = "hook"
type = "http"
from = "rsvps"
url = "http://127.0.0.1:1/services/SECRET-3"
headers = { authorization = "SECRET-4" }
secret_file = "key.txt"
allow_private = true
"#;

#[test]
fn the_configuration_in_force_is_shown_with_origins_and_without_secrets() {
    let folder = TestFolder::new("");
    let (tables, arrays) = WITH_SECRETS.split_once("[[sources]]").expect("sources");
    folder.configure(&format!("{HTTP_ONLY}{tables}[[sources]]{arrays}"));
    folder.write("key.txt", b"SECRET-5-of-at-least-thirty-two-bytes\n");
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(folder.path("key.txt"), private).expect("its owner");
    let mut command = folder.command(&["run"]);
    let server = Server::start(
        command.env("WEIR_LIMITS_SQL_CONCURRENT", "3"),
        &folder.path("data"),
    );
    let (status, shown) = server.get("/api/v1/configuration");
    assert_eq!(status, 200);
    assert!(!shown.to_string().contains("SECRET"), "{shown}");
    let setting = |key: &str| -> [Value; 2] {
        let settings = shown["settings"].as_array().expect("settings");
        let setting = settings.iter().find(|setting| setting["key"] == key);
        let setting = setting.unwrap_or_else(|| panic!("{key} is missing: {shown}"));
        ["value", "origin"].map(|part| setting[part].clone())
    };
    let [value, origin] = setting("limits.sql_rows");
    assert_eq!(value, "1234");
    assert!(
        origin.as_str().is_some_and(|o| o.ends_with("weir.toml")),
        "{origin}"
    );
    let variable = json!("WEIR_LIMITS_SQL_CONCURRENT");
    assert_eq!(setting("limits.sql_concurrent"), [json!("3"), variable]);
    assert_eq!(setting("log.keep")[0], "2d");
    assert_eq!(setting("limits.body")[1], "default");
    // What `weir check --show` lists is the same.
    let listed = folder.output(&["check", "--show"]).stdout;
    let listed = String::from_utf8(listed).expect("text");
    assert!(listed.contains("limits.sql_rows = 1234  # "), "{listed}");
    for line in listed
        .lines()
        .filter(|line| !line.contains("sql_concurrent"))
    {
        let (key, value) = line.split_once(" = ").expect("a setting");
        let (value, origin) = value.split_once("  # ").expect("an origin");
        assert_eq!(setting(key), [json!(value), json!(origin)], "{line}");
    }
    let declared = &shown["streams"]["rsvps"];
    assert_eq!(
        declared["count"],
        json!({"type": "response", "by": ["country"]})
    );
    assert!(shown["windows"]["top_events"]["sql"].is_string(), "{shown}");
    assert!(
        shown["tables"]["rsvps.members"]["select"].is_string(),
        "{shown}"
    );
    let source = &shown["sources"][0];
    assert_eq!(source["url"], "http://127.0.0.1:1/feed?key=hidden");
    let headers = json!({"authorization": "hidden", "x-file": {"file": "key.txt"}});
    assert_eq!(source["headers"], headers);
    assert_eq!(shown["sinks"][0]["url"], "http://127.0.0.1:1/hidden");
    assert_eq!(shown["sinks"][0]["secret_file"], "key.txt");
    assert_no_state_shows_a_secret(&server);
    server.stop();
}

fn assert_no_state_shows_a_secret(server: &Server) {
    wait_until("each source says why it waits", || {
        let sources = server.get("/api/v1/status").1["sources"].clone();
        ["feed", "socket", "open"].iter().all(|name| {
            let found = sources.as_array().into_iter().flatten();
            let mut found = found.filter(|source| source["source"] == *name);
            found.any(|source| source["reason"].to_string().contains("127.0.0.1:1"))
        })
    });
    let sources = json!({"sql": "select * from weir.sources"}).to_string();
    for (status, answer) in [
        server.get("/api/v1/status"),
        server.get("/readyz"),
        server.request("POST", "/api/v1/sql", &[], sources.as_bytes()),
    ] {
        assert_eq!(status, 200, "{answer}");
        assert!(!answer.to_string().contains("SECRET"), "{answer}");
    }
}

/// Every described route answers, and what the page completes comes from SQL.
#[test]
fn sql_lists_tables_and_columns_and_routes_are_described() {
    let folder = TestFolder::new("");
    folder.configure(HTTP_ONLY);
    let server = start(&folder);
    let query = "select table_schema, table_name, column_name, data_type from information_schema.columns \
                 where table_schema <> 'information_schema' order by table_schema, table_name, ordinal_position";
    let body = json!({"sql": query}).to_string();
    let (status, answer) = server.request("POST", "/api/v1/sql", &[], body.as_bytes());
    assert_eq!(status, 200, "{answer}");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let columns: BTreeSet<[String; 3]> = answer["rows"]
        .as_array()
        .expect("rows")
        .iter()
        .map(|row| ["table_schema", "table_name", "column_name"].map(|part| text(&row[part])))
        .collect();
    for column in [
        ["main", "rsvps", "event_time"],
        ["main", "rsvps", "topics"],
        ["main", "top_events", "yes"],
        ["main", "top_events_versions", "version"],
        ["main", "dead_letters", "reason"],
        ["main", "raw", "lsn"],
        ["rsvps", "members", "member_name"],
        ["weir", "files", "path"],
    ] {
        assert!(
            columns.contains(&column.map(str::to_owned)),
            "{column:?}: {columns:?}"
        );
    }
    let document = server.get("/openapi.json").1;
    for (path, method) in [
        ("/api/v1/overview", "get"),
        ("/api/v1/configuration", "get"),
        ("/api/v1/notebooks", "get"),
        ("/api/v1/notebooks/{name}", "get"),
        ("/api/v1/notebooks/{name}", "put"),
        ("/api/v1/notebooks/{name}", "delete"),
    ] {
        assert!(
            document["paths"][path][method].is_object(),
            "{method} {path}"
        );
    }
    server.stop();
}

/// The status and the body of a query's answer.
fn sql_bytes(server: &Server, query: &str, format: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(&server.address).expect("a connection");
    let body = json!({"sql": query, "format": format}).to_string();
    let head = format!(
        "POST /api/v1/sql HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        server.address,
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("writable");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("readable");
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let body = answer.split_off(end.expect("a head") + 4);
    (String::from_utf8(answer).expect("text"), body)
}

#[test]
fn an_answer_as_parquet_has_the_rows_of_the_answer_as_json() {
    let folder = TestFolder::new("");
    folder.configure(HTTP_ONLY);
    let server = start(&folder);
    assert_eq!(server.post(&[], &ndjson(&records(700, 5))).0, 200);
    let query = "select lsn, event_time, rsvp_id, response, topics, lat from rsvps order by lsn";
    wait_until("all rows are visible", || {
        let (_, body) = sql_bytes(&server, "select count(*) as n from rsvps", "json");
        String::from_utf8_lossy(&body).contains("\"n\":700")
    });
    let (head, file) = sql_bytes(&server, query, "parquet");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(
        head.to_lowercase()
            .contains("content-type: application/vnd.apache.parquet"),
        "{head}"
    );
    let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(file)).expect("Parquet");
    let batches = reader
        .build()
        .expect("a reader")
        .map(|batch| batch.expect("rows"));
    let found: Vec<i64> = batches
        .flat_map(|batch| {
            let column = batch.column_by_name("rsvp_id").expect("a column");
            let ids = column.as_any().downcast_ref::<arrow::array::Int64Array>();
            ids.expect("numbers").values().to_vec()
        })
        .collect();
    let (_, rows) = sql_bytes(&server, query, "json");
    let rows: Value = serde_json::from_slice(&rows).expect("JSON");
    let expected = rows["rows"].as_array().expect("rows").iter();
    let expected: Vec<i64> = expected.filter_map(|row| row["rsvp_id"].as_i64()).collect();
    assert_eq!((found.len(), found), (700, expected));
    let (head, body) = sql_bytes(&server, "select interval '1 day' as i", "parquet");
    let message = String::from_utf8_lossy(&body);
    assert!(
        head.starts_with("HTTP/1.1 400") && message.contains("cast it"),
        "{head}{message}"
    );
    let (head, _) = sql_bytes(&server, "select 1", "spreadsheet");
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    server.stop();
}

#[test]
fn metrics_are_described_and_show_what_memory_and_disk_go_to() {
    let folder = TestFolder::new("");
    folder.configure(HTTP_ONLY);
    let server = start(&folder);
    assert_eq!(server.post(&[], &ndjson(&records(50, 5))).0, 200);
    assert_eq!(server.get("/api/v1/count").0, 200);
    let metrics = || server.get("/metrics").1.as_str().expect("text").to_owned();
    let has = |text: &str, name: &str| text.lines().any(|line| line.starts_with(name));
    wait_until("the metrics are set", || {
        let text = metrics();
        [
            "weir_disk_bytes{part=\"lake\"}",
            "weir_disk_bytes{part=\"log\"}",
            "weir_memory_limit_bytes",
            "weir_query_seconds_count{kind=\"count\"}",
            "weir_log_synced_lsn",
        ]
        .iter()
        .all(|name| has(&text, name))
    });
    let text = metrics();
    let names = |kind: &str| -> BTreeSet<String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(kind));
        lines
            .filter_map(|line| line.split(' ').next().map(str::to_owned))
            .collect()
    };
    assert_eq!(names("# TYPE "), names("# HELP "));
    assert!(names("# TYPE ").len() > 8, "{text}");
    server.stop();
}
