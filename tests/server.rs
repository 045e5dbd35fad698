//! The HTTP server: what is accepted is there, what is refused stores nothing, and the demo's
//! commands work when pasted.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::{
    HTTP_ONLY, TestFolder, assert_holds_exactly, ndjson, records, wait_until, weir, without_as_of,
};

pub struct Server {
    child: Child,
    pub address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts a command and waits until the server in this data folder answers.
    pub fn start(command: &mut Command, data: &Path) -> Self {
        let child = command
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary runs");
        let mut server = Self {
            child,
            address: String::new(),
        };
        let path = data.join("address.json");
        let pid = server.child.id();
        wait_until("the server's address", || {
            let address = std::fs::read(&path)
                .ok()
                .and_then(|b| serde_json::from_slice::<Value>(&b).ok());
            let Some(address) = address.filter(|a| a["pid"] == pid) else {
                return false;
            };
            server.address = address["http"].as_str().expect("an address").to_owned();
            true
        });
        // A server with tokens answers 401 here.
        wait_until("it accepts records", || {
            matches!(server.get("/readyz").0, 200 | 401)
        });
        server
    }

    /// Starts a command that is to answer at this address, which it may not be able to write down.
    pub fn start_at(command: &mut Command, address: &str) -> Self {
        let command = command
            .env("WEIR_SERVER_HTTP", address)
            .stderr(Stdio::null());
        let server = Self {
            child: command.spawn().expect("the binary runs"),
            address: address.to_owned(),
        };
        wait_until("it answers", || server.get("/healthz").0 == 200);
        server
    }

    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> (u16, Value) {
        // A server that has been killed answers nothing.
        let Ok(mut stream) = TcpStream::connect(&self.address) else {
            return (0, Value::Null);
        };
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n",
            body.len()
        );
        if !headers.iter().any(|(name, _)| *name == "Host") {
            head += &format!("Host: {}\r\n", self.address);
        }
        headers
            .iter()
            .for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        // A server that refuses early may close before it has read everything.
        let _ = stream
            .write_all(format!("{head}\r\n").as_bytes())
            .and_then(|()| stream.write_all(body));
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .unwrap_or(0);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        let body = if head.to_lowercase().contains("transfer-encoding: chunked") {
            unchunk(body)
        } else {
            body.to_owned()
        };
        (
            status,
            serde_json::from_str(&body).unwrap_or(Value::String(body)),
        )
    }

    pub fn get(&self, path: &str) -> (u16, Value) {
        self.request("GET", path, &[], b"")
    }

    pub fn post(&self, headers: &[(&str, &str)], body: &[u8]) -> (u16, Value) {
        self.request("POST", "/api/v1/streams/rsvps/events", headers, body)
    }

    /// Ends it as a power cut would.
    pub fn kill(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)
            .expect("it can be killed");
    }

    pub fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .expect("it can be asked to stop");
        assert!(self.child.wait().expect("it ends").success());
    }
}

fn unchunk(body: &str) -> String {
    let (mut rest, mut out) = (body, String::new());
    while let Some((size, tail)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        let Some(chunk) = tail.get(..size).filter(|_| size > 0) else {
            break;
        };
        out.push_str(chunk);
        rest = tail.get(size + 2..).unwrap_or_default();
    }
    out
}

fn http_only() -> TestFolder {
    let folder = TestFolder::new("");
    folder.configure(HTTP_ONLY);
    folder
}

pub fn start(folder: &TestFolder) -> Server {
    Server::start(&mut folder.command(&["run"]), &folder.path("data"))
}

#[test]
fn records_accepted_with_200_survive_a_kill_and_a_repeated_key_adds_nothing() {
    let folder = http_only();
    let all = records(600, 21);
    let mut accepted = Vec::new();
    for round in 0..6 {
        let server = start(&folder);
        // The answer to the last round's last request may have been lost: the same key asks again.
        for part in round.max(1) - 1..=round {
            let rows = &all[part * 100..(part + 1) * 100];
            let key = format!("part-{part}");
            let (status, answer) = server.post(&[("Idempotency-Key", &key)], &ndjson(rows));
            assert_eq!(
                (status, &answer["accepted"]),
                (200, &json!(100)),
                "{answer}"
            );
        }
        accepted = all[..(round + 1) * 100].to_vec();
        // Dropping it kills it.
    }
    folder.run_once();
    assert_holds_exactly(&folder, &accepted);
}

#[test]
fn errors_have_their_codes_and_store_nothing() {
    let folder = http_only();
    let server = start(&folder);
    let one = ndjson(&records(1, 1));
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    };
    let large = vec![b' '; 17 << 20];
    let bomb = gzip(&large);
    type Case<'a> = (u16, &'a [(&'a str, &'a str)], &'a [u8]);
    let cases: [Case<'_>; 8] = [
        (400, &[], b"\x1f\x8b\x08 packed"),
        (400, &[], b"[{\"a\":1},"),
        (400, &[("Content-Encoding", "zstd")], b"no zstd"),
        (413, &[], &large),
        (413, &[("Content-Encoding", "gzip")], &bomb),
        (415, &[("Content-Type", "image/png")], &one),
        (415, &[("Content-Encoding", "br")], &one),
        (421, &[("Host", "evil.example")], &one),
    ];
    for (status, headers, body) in cases {
        let (found, answer) = server.post(headers, body);
        assert_eq!(found, status, "{headers:?} {answer}");
        assert!(answer["error"]["message"].is_string(), "{answer}");
    }
    assert_eq!(
        server.post(&[("Origin", "http://evil.example")], &one).0,
        403
    );
    assert_eq!(
        server
            .request("POST", "/api/v1/streams/nothing/events", &[], &one)
            .0,
        404
    );
    assert_eq!(server.post(&[("Idempotency-Key", "k")], &one).0, 200);
    assert_eq!(
        server.post(&[("Idempotency-Key", "k")], b"{\"other\":1}").0,
        422
    );
    assert_eq!(
        server.post(&[("Content-Encoding", "gzip")], &gzip(&one)).0,
        200
    );
    let (status, answer) = server.post(&[], b"[{\"rsvp_id\":\"x\"},{\"mtime\":1}]");
    assert_eq!(
        (status, &answer["accepted"], &answer["rejected_total"]),
        (200, &json!(0), &json!(2))
    );
    assert_eq!(answer["rejected"][0]["index"], 0);
    server.stop();
    assert_eq!(folder.number("select count(*) from rsvps"), 2);
    assert_eq!(folder.number("select count(*) from dead_letters"), 2);
}

#[test]
fn verbs_and_routes_give_the_same_answers_live_and_after_the_end() {
    let folder = http_only();
    // No window closes during the test.
    folder.configure(&format!("{HTTP_ONLY}watermark = {{ disorder = '1h' }}\n"));
    let server = start(&folder);
    let all = records(1_500, 8);
    for part in all.chunks(500) {
        assert_eq!(server.post(&[], &ndjson(part)).0, 200);
    }
    wait_until("search is up to date", || {
        folder.ask(&["search", "open", "--limit", "1"])["as_of"]["pending"] == 0
    });
    assert_holds_exactly(&folder, &all);
    let (status, near) = server.get("/api/v1/nearby?lat=40.7&lon=-74&limit=50");
    assert_eq!(status, 200);
    assert_eq!(without_as_of(near), folder.all_answers()["near"]);
    let live = folder.all_answers();
    server.stop();
    assert_eq!(folder.all_answers(), live);
    // A merged lake answers the same.
    folder.succeed(&["compact"]);
    assert_eq!(folder.all_answers(), live);
    let crowded = folder.rows(
        "select partition, count(*) as n from weir.files group by 1, \"table\" having count(*) > 1",
    );
    assert_eq!(crowded, Vec::<Value>::new());
}

#[test]
fn sql_only_reads_and_every_route_answers() {
    let folder = http_only();
    folder.configure(&format!("{HTTP_ONLY}watermark = {{ disorder = '1h' }}\n"));
    let server = start(&folder);
    let all = records(1_500, 8);
    assert_eq!(server.post(&[], &ndjson(&all)).0, 200);
    wait_until("the rows are visible", || {
        folder.number("select count(*) from rsvps") == 1_500
    });
    let (status, wrong) = server.get("/api/v1/count?typo=1");
    assert_eq!(status, 400, "{wrong}");
    assert_eq!(server.get("/api/v1/search?q=").0, 400);
    let sql = |query: &str| {
        server.request(
            "POST",
            "/api/v1/sql",
            &[],
            json!({"sql": query}).to_string().as_bytes(),
        )
    };
    assert_eq!(
        sql("select count(*) as n from rsvps").1["rows"][0]["n"],
        1_500
    );
    for forbidden in [
        "create table x as select 1",
        "copy rsvps to '/tmp/x'",
        "insert into rsvps select 1",
        "set a = 1",
        "select * from '/etc/passwd'",
    ] {
        assert_eq!(sql(forbidden).0, 400, "{forbidden}");
    }
    for route in [
        "/healthz",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/",
        "/assets/app.js",
        "/assets/plotly.js",
        "/api/v1/status",
    ] {
        assert_eq!(server.get(route).0, 200, "{route}");
    }
    wait_until("metrics show what is held", || {
        let metrics = server.get("/metrics").1.as_str().expect("text").to_owned();
        [
            "weir_log_synced_lsn",
            "weir_window_groups{window=\"by_country\"}",
            "weir_window_bytes{window=\"top_events\"}",
            "weir_window_late_total{window=\"by_country\"}",
            "weir_memory_bytes{part=\"places\"}",
            "weir_memory_bytes{part=\"counts\"}",
            "weir_memory_bytes{part=\"operators\"}",
        ]
        .iter()
        .all(|name| metrics.contains(name))
    });
    server.stop();
}

#[test]
fn a_search_pages_through_every_hit_once_while_new_ones_arrive() {
    let folder = http_only();
    let server = start(&folder);
    let all = records(2_000, 9);
    assert_eq!(server.post(&[], &ndjson(&all)).0, 200);
    wait_until("search is up to date", || {
        folder.ask(&["search", "fun", "--limit", "1"])["total"] == 2_000
    });
    let (mut after, mut seen) = (String::new(), Vec::new());
    loop {
        let (status, page) = server.get(&format!("/api/v1/search?q=fun&limit=300&after={after}"));
        assert_eq!(status, 200, "{page}");
        let hits = page["hits"].as_array().expect("hits");
        seen.extend(hits.iter().map(|h| {
            (
                h["event_time"].as_str().expect("a time").to_owned(),
                h["lsn"].as_u64().expect("a number"),
            )
        }));
        assert_eq!(page["total"], 2_000);
        assert!(hits.iter().all(|h| h["event"]["lsn"] == h["lsn"]));
        match page["next"].as_str() {
            Some(next) => after = next.to_owned(),
            None => break,
        }
        // What comes in between is newer than the first page.
        assert_eq!(server.post(&[], &ndjson(&records(50, 10))).0, 200);
    }
    assert_eq!(seen.len(), 2_000);
    let mut sorted = seen.clone();
    sorted.sort_by(|a, b| b.cmp(a));
    sorted.dedup();
    assert_eq!(sorted.len(), 2_000, "nothing twice");
    assert!(seen.windows(2).all(|w| w[0].0 >= w[1].0), "newest first");
}

#[test]
fn a_websocket_is_ingested_and_a_lost_connection_is_a_gap() {
    let folder = TestFolder::new("");
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("a port")
        .port();
    folder.configure(&format!(
        r#"{HTTP_ONLY}
[[sources]]
name = "ws"
type = "websocket"
url = "ws://127.0.0.1:{port}/2/rsvps"
stream = "rsvps"
"#
    ));
    let upstream = || {
        let arguments = ["generate", "--rate", "300", "--start", "now", "--serve"];
        weir()
            .args(arguments)
            .arg(format!("127.0.0.1:{port}"))
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary runs")
    };
    let mut first = upstream();
    let server = start(&folder);
    wait_until("records come", || {
        folder.number("select count(*) from rsvps") > 100
    });
    first.kill().and_then(|()| first.wait()).expect("it ends");
    let mut second = upstream();
    wait_until("the gap is reported", || {
        folder.number("select count(*) from weir.gaps where source = 'ws'") > 0
    });
    let before = folder.number("select count(*) from rsvps");
    wait_until("records come again", || {
        folder.number("select count(*) from rsvps") > before
    });
    second.kill().and_then(|()| second.wait()).expect("it ends");
    server.stop();
}

#[test]
fn the_commands_that_the_demo_shows_work_when_pasted() {
    let folder = tempfile::tempdir().expect("a folder");
    for run in 0..2 {
        let mut demo = weir();
        demo.args(["demo", "--port", "0"])
            .current_dir(folder.path());
        let server = Server::start(&mut demo, &folder.path().join("weir-data"));
        let paste = |line: &str| {
            let line = line.replacen("weir", env!("CARGO_BIN_EXE_weir"), 1);
            let output = Command::new("sh")
                .args(["-c", &line])
                .current_dir(folder.path())
                .output()
                .expect("a shell");
            assert!(
                output.status.success(),
                "{line}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
        };
        let [sql, count, search, nearby, dead] = weir::generator::TO_TRY;
        wait_until("records come", || {
            let all =
                paste("weir sql \"select count(*) as n from rsvps\"")["rows"][0]["n"].as_u64();
            all > Some(400 * (run + 1)) && paste(search)["total"].as_u64() > Some(0)
        });
        assert!(!paste(sql)["rows"].as_array().expect("rows").is_empty());
        assert!(paste(count)["count"].as_u64() > Some(100));
        assert_eq!(paste(nearby)["venues"].as_array().expect("venues").len(), 3);
        assert!(paste(dead)["rows"].is_array());
        // The same questions by another way agree: what was counted is in the table.
        let at = "--from 2000-01-01 --to now-2s";
        let counted = paste(&format!("weir count --type yes {at}"))["count"].as_u64();
        let sql = "weir sql \"select count(*) as n from rsvps where response = 'yes' and not is_duplicate and event_time < now() - interval '2 seconds'\"";
        let rows = paste(sql)["rows"][0]["n"].as_u64();
        assert!(
            counted.zip(rows).is_some_and(|(c, r)| r >= c && r - c < 60),
            "{counted:?} counted, {rows:?} rows"
        );
        server.stop();
    }
}

/// The server's certificate and key are `cert.pem` and `key.pem`, its tokens are in `tokens`.
const TLS: &str = include_str!("../testdata/rsvps_tls.toml");

/// Makes a token in the file `tokens`.
pub fn token(folder: &TestFolder, kind: &[&str]) -> String {
    let file = folder.path("tokens");
    let file = ["token", "create", "--file", file.to_str().expect("text")];
    let output = weir()
        .args(file)
        .args(kind)
        .output()
        .expect("the binary runs");
    String::from_utf8(output.stdout)
        .expect("text")
        .trim()
        .to_owned()
}

#[test]
fn a_read_only_token_does_not_end_queries_of_another() {
    let folder = http_only();
    let [write, read, other] =
        [&[][..], &["--read-only"], &["--read-only"]].map(|kind| token(&folder, kind));
    folder.configure(&HTTP_ONLY.replace("[server]\n", "[server]\ntoken_file = 'tokens'\n"));
    let server = start(&folder);
    let endless =
        "select count(*) from generate_series(1, 1000000) a, generate_series(1, 1000000) b";
    let bearer = |token: &str| format!("Bearer {token}");
    let ask = |token: &str, method: &str, path: &str, body: &[u8]| {
        server.request(method, path, &[("Authorization", &bearer(token))], body)
    };
    let query = |id: &str, sql: &str| json!({"id": id, "sql": sql}).to_string().into_bytes();
    let is_taken = |(status, answer): &(u16, Value)| {
        *status == 409 && answer.to_string().contains("is running")
    };
    for (id, owner, stranger, ender) in [
        ("q1", &read, &other, &read),
        ("q2", &write, &read, &write),
        ("q3", &read, &other, &write),
    ] {
        let path = format!("/api/v1/sql/{id}");
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| {
                // The name may be taken by the look below.
                let mut answers = std::iter::repeat_with(|| {
                    ask(owner, "POST", "/api/v1/sql", &query(id, endless))
                });
                answers.find(|answer| !is_taken(answer)).expect("endless")
            });
            wait_until("it runs", || {
                is_taken(&ask(owner, "POST", "/api/v1/sql", &query(id, "select 1")))
            });
            assert_eq!(ask(stranger, "DELETE", &path, b"").0, 404, "{id}");
            assert_eq!(ask(ender, "DELETE", &path, b"").0, 200, "{id}");
            let (status, answer) = asked.join().expect("it ends");
            assert!(
                status == 409 && answer.to_string().contains("ended by its id"),
                "{id}: {answer}"
            );
        });
    }
    server.stop();
}

#[test]
fn secrets_that_others_can_change_are_rejected() {
    use std::os::unix::fs::PermissionsExt;
    let folder = http_only();
    token(&folder, &[]);
    let certificate =
        rcgen::generate_simple_self_signed(["weir.example".to_owned()]).expect("a certificate");
    folder.write("cert.pem", certificate.cert.pem().as_bytes());
    folder.write(
        "key.pem",
        certificate.signing_key.serialize_pem().as_bytes(),
    );
    folder.configure(TLS);
    for file in ["key.pem", "tokens"] {
        let path = folder.path(file);
        let allow = |mode: u32| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
                .expect("permitted");
        };
        for mode in [0o620, 0o602] {
            allow(mode);
            let output = folder
                .command(&["run", "-q"])
                .output()
                .expect("the binary runs");
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(
                !output.status.success() && message.contains("others can write"),
                "{file} {mode:o}: {message}"
            );
            assert!(message.contains("chmod 600"), "{message}");
        }
        allow(0o600);
    }
}

#[test]
fn verbs_query_a_server_with_tls_by_their_token_alone() {
    let folder = http_only();
    let certificate =
        rcgen::generate_simple_self_signed(["weir.example".to_owned()]).expect("a certificate");
    folder.write("cert.pem", certificate.cert.pem().as_bytes());
    folder.write(
        "key.pem",
        certificate.signing_key.serialize_pem().as_bytes(),
    );
    let (write, read) = (token(&folder, &[]), token(&folder, &["--read-only"]));
    folder.configure(TLS);
    let mut child = folder
        .command(&["run", "-q"])
        .spawn()
        .expect("the binary runs");
    let ask = |arguments: &[&str], token: &str| {
        folder
            .command(arguments)
            .env("WEIR_TOKEN", token)
            .output()
            .expect("runs")
    };
    wait_until("the server answers", || {
        ask(&["status"], &read).status.success()
    });
    assert!(ask(&["sql", "select 1 as one"], &read).status.success());
    let refused = |arguments: &[&str], token: &str, part: &str| {
        let output = ask(arguments, token);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && message.contains(part),
            "{arguments:?}: {message}"
        );
    };
    refused(&["count"], "", "token");
    refused(&["count"], "weir_0123", "token");
    let to = folder.path("backup");
    refused(
        &["backup", to.to_str().expect("text")],
        &read,
        "is read-only",
    );
    assert!(
        ask(&["backup", to.to_str().expect("text")], &write)
            .status
            .success()
    );
    // Another certificate than the configured one is not trusted, so the folder is found to be in
    // use.
    let other =
        rcgen::generate_simple_self_signed(["weir.example".to_owned()]).expect("a certificate");
    folder.write("cert.pem", other.cert.pem().as_bytes());
    assert_eq!(ask(&["count"], &write).status.code(), Some(75));
    child.kill().and_then(|()| child.wait()).expect("it ends");
}

#[test]
fn generated_records_are_posted_with_a_token() {
    let folder = http_only();
    let [write, read] = [&[][..], &["--read-only"]].map(|kind| token(&folder, kind));
    folder.configure(&HTTP_ONLY.replace("[server]\n", "[server]\ntoken_file = 'tokens'\n"));
    let server = start(&folder);
    let url = format!("http://{}/api/v1/streams/rsvps/events", server.address);
    let post = |token: Option<&str>| {
        let mut command = weir();
        command
            .args(["generate", "--count", "3", "--post", &url])
            .env_remove("WEIR_TOKEN")
            .envs(token.map(|token| ("WEIR_TOKEN", token)));
        let output = command.output().expect("the binary runs");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), message)
    };
    for (token, status) in [(None, "401"), (Some(&*read), "403")] {
        let (code, message) = post(token);
        assert_eq!(code, Some(1), "{message}");
        for part in [status, "set WEIR_TOKEN to a token that may write"] {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert!(!message.contains("listens there"), "{message}");
    }
    let (code, message) = post(Some(&write));
    assert_eq!(code, Some(0), "{message}");
    drop(server);
    let (code, message) = post(Some(&write));
    assert_eq!(code, Some(1), "{message}");
    assert!(message.contains("listens there"), "{message}");
}
