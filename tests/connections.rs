//! Clients that send nothing, read nothing or announce more than they send: others are answered all
//! the same.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::server::{Server, start};
use crate::support::{TestFolder, ndjson, records, wait_until};

const FEW_CONNECTIONS: &str = include_str!("../testdata/few_connections.toml");

fn few_connections() -> TestFolder {
    let folder = TestFolder::new("");
    folder.configure(FEW_CONNECTIONS);
    folder
}

/// Opens a connection and writes to it, as far as it is read.
fn write(server: &Server, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(&server.address).expect("a connection");
    stream
        .set_write_timeout(Some(std::time::Duration::from_millis(500)))
        .expect("a time");
    let _ = stream.write_all(text.replace("HOST", &server.address).as_bytes());
    stream
}

fn sql(server: &Server, query: &str) -> (u16, Value) {
    server.request(
        "POST",
        "/api/v1/sql",
        &[],
        json!({"sql": query}).to_string().as_bytes(),
    )
}

#[test]
fn silent_clients_do_not_keep_others_out() {
    let folder = few_connections();
    let server = start(&folder);
    let post = |path: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: HOST\r\nContent-Length: 1000\r\n\r\n{{")
    };
    let pipelined = "GET /openapi.json HTTP/1.1\r\nHost: HOST\r\n\r\n".repeat(400);
    let mut silent: Vec<String> = [
        "sql",
        "backup",
        "dead-letters/retry",
        "rebuild",
        "streams/rsvps/events",
        "nothing",
    ]
    .map(|path| post(&format!("/api/v1/{path}")))
    .into();
    silent.extend(["", "GET /", "GET /healthz HTTP/1.1\r\nHost: HOST\r\n\r\n"].map(str::to_owned));
    silent.extend([
        pipelined,
        "GET /x HTTP/1.1\r\nHost: elsewhere\r\n\r\n".repeat(3_000),
    ]);
    for text in silent {
        let held: Vec<TcpStream> = (0..12).map(|_| write(&server, &text)).collect();
        wait_until("SQL is answered", || sql(&server, "select 1").0 == 200);
        wait_until("records are accepted", || {
            server.post(&[], &ndjson(&records(1, 1))).0 == 200
        });
        wait_until("the process is watched", || server.get("/healthz").0 == 200);
        drop(held);
    }
    server.stop();
}

#[test]
fn live_streams_leave_connections_for_others() {
    let folder = few_connections();
    let server = start(&folder);
    let live = "GET /api/v1/live HTTP/1.1\r\nHost: HOST\r\n\r\n";
    let held: Vec<TcpStream> = (0..20).map(|_| write(&server, live)).collect();
    let statuses: Vec<String> = held
        .iter()
        .map(|mut stream| {
            let mut start = [0; 12];
            let read = stream.read_exact(&mut start);
            read.map_or_else(
                |_| "none".into(),
                |()| String::from_utf8_lossy(&start[9..]).into_owned(),
            )
        })
        .collect();
    assert_eq!(
        statuses.iter().filter(|status| *status == "200").count(),
        4,
        "{statuses:?}"
    );
    assert!(
        statuses.iter().any(|status| status == "429"),
        "{statuses:?}"
    );
    wait_until("SQL is answered", || sql(&server, "select 1").0 == 200);
    assert_eq!(server.post(&[], &ndjson(&records(1, 1))).0, 200);
    server.stop();
}

#[test]
fn a_body_holds_memory_only_for_what_has_arrived() {
    let folder = few_connections();
    let server = start(&folder);
    let head = |bytes: usize| {
        format!(
            "POST /api/v1/streams/rsvps/events HTTP/1.1\r\nHost: HOST\r\nContent-Length: {bytes}\r\n\r\n"
        )
    };
    // More than the limit is refused before any of it comes.
    let mut large = write(&server, &head(1 << 30));
    let mut answer = String::new();
    let _ = large.read_to_string(&mut answer);
    assert!(
        answer.starts_with("HTTP/1.1 413") && answer.contains("[limits] body"),
        "{answer}"
    );
    // Of the queue's share (26 MiB) two that are announced hold nothing.
    let announced = [
        write(&server, &head(14 << 20)),
        write(&server, &head(14 << 20)),
    ];
    let many = [ndjson(&records(100, 3)), vec![b' '; 9 << 20]].concat();
    assert_eq!(server.post(&[], &many).0, 200);
    assert_eq!(server.post(&[("Content-Encoding", "gzip")], b"x").0, 400);
    drop(announced);
    // Two that stop on their way give their room to one that comes.
    let part = format!("{}{}", head(14 << 20), " ".repeat(12 << 20));
    let stopped = [write(&server, &part), write(&server, &part)];
    wait_until("there is room for another one", || {
        server.post(&[], &many).0 == 200
    });
    drop(stopped);
    server.stop();
}

#[test]
fn errors_of_paths_and_parameters_have_the_usual_form() {
    let folder = few_connections();
    let server = start(&folder);
    for path in [
        "/api/v1/windows/%ff",
        "/api/v1/streams/rsvps/events?unwrap=a&unwrap=b",
        "/api/v1/sql/%ff%fe",
    ] {
        let method = ["GET", "POST", "DELETE"]
            [usize::from(path.contains("streams")) + 2 * usize::from(path.contains("sql"))];
        let (status, answer) = server.request(method, path, &[], b"{}");
        assert_eq!(
            (status, &answer["error"]["code"]),
            (400, &json!("bad_request")),
            "{path}: {answer}"
        );
        assert!(answer["error"]["message"].is_string(), "{answer}");
    }
    server.stop();
}

#[test]
fn a_backup_over_http_is_written_below_the_configured_folder() {
    let folder = few_connections();
    let to = |server: &Server, path: &std::path::Path| {
        server.request(
            "POST",
            "/api/v1/backup",
            &[],
            json!({"to": path}).to_string().as_bytes(),
        )
    };
    let server = start(&folder);
    let (status, answer) = to(&server, &folder.path("elsewhere"));
    assert_eq!(
        (status, &answer["error"]["code"]),
        (403, &json!("no_backups")),
        "{answer}"
    );
    server.stop();
    folder.configure(&FEW_CONNECTIONS.replace("[server]", "[server]\nbackups = 'backups'"));
    std::fs::create_dir(folder.path("backups")).expect("a folder");
    std::os::unix::fs::symlink(folder.path(""), folder.path("backups/out")).expect("a link");
    let server = start(&folder);
    for wrong in [
        "elsewhere",
        "backups",
        "backups/../elsewhere",
        "backups/out/elsewhere",
    ] {
        let (status, answer) = to(&server, &folder.path(wrong));
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(
            status == 400 && message.contains("[server] backups"),
            "{wrong}: {answer}"
        );
    }
    assert!(!folder.path("elsewhere").exists() && !folder.path("elsewhere.partial").exists());
    assert_eq!(to(&server, &folder.path("backups/first")).0, 200);
    // Who may read the data folder may have one anywhere.
    assert!(
        folder
            .output(&["backup", folder.path("elsewhere").to_str().expect("text")])
            .status
            .success()
    );
    server.stop();
}
