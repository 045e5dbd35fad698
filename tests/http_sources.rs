//! Sources that send requests, against servers written by hand and against `weir replay --serve`:
//! events with ids are there once whatever is killed, what a server without ids did not send again
//! is a gap, and a polled record is stored once.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::server::Server;
use crate::support::{TestFolder, wait_until, weir};

const STREAM: &str = "[streams.events]\nschema = \"id bigint not null, at bigint not null, v bigint\"\nselect = \"select to_timestamp_millis(at) as event_time, id, v from events\"\nkey = \"id\"\nversion = \"v\"\n";

/// A request as a source sent it.
#[derive(Clone)]
struct Request {
    path: String,
    headers: Vec<(String, String)>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    fn read(stream: &mut TcpStream) -> Option<Self> {
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read(&mut byte).ok()? == 0 {
                return None;
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).ok()?;
        let mut lines = head.lines();
        let path = lines.next()?.split(' ').nth(1)?.to_owned();
        let headers = lines.filter_map(|line| line.split_once(": "));
        Some(Self {
            path,
            headers: headers
                .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
                .collect(),
        })
    }
}

/// A server that answers as a test says, one request per connection.
struct HandWritten {
    port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl HandWritten {
    /// `answer` gets the number of requests before, and writes everything.
    fn start(
        answer: impl Fn(usize, &Request, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let (seen, answer) = (requests.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(mut stream), seen, answer) = (stream, seen.clone(), answer.clone()) else {
                    continue;
                };
                std::thread::spawn(move || {
                    let Some(request) = Request::read(&mut stream) else {
                        return;
                    };
                    let number = {
                        let mut seen = seen.lock().expect("no panic");
                        seen.push(request.clone());
                        seen.len() - 1
                    };
                    // The source may have been killed.
                    let _ = answer(number, &request, &mut stream);
                });
            }
        });
        Self { port, requests }
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no panic").clone()
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

fn begin(stream: &mut TcpStream, status: &str, headers: &[(&str, &str)]) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    headers
        .iter()
        .for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    stream.write_all(format!("{head}\r\n").as_bytes())
}

/// Keeps the connection open until the client closes it.
fn hold(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.read(&mut [0]).map(drop)
}

/// A complete answer.
fn answer(stream: &mut TcpStream, headers: &[(&str, &str)], body: &str) -> std::io::Result<()> {
    let length = body.len().to_string();
    let all: Vec<(&str, &str)> = [("Content-Type", "application/json")]
        .into_iter()
        .chain([("Content-Length", length.as_str())])
        .chain(headers.iter().copied())
        .collect();
    begin(stream, "200 OK", &all)?;
    stream.write_all(body.as_bytes())
}

fn record(id: u64, version: u64) -> String {
    json!({"id": id, "at": 1_465_520_400_000 + id, "v": version}).to_string()
}

fn records(ids: std::ops::Range<u64>) -> Vec<String> {
    ids.map(|id| record(id, 1)).collect()
}

/// A folder with a source of this type and these keys, after `extra`.
fn folder(extra: &str, kind: &str, url: &str, keys: &str) -> TestFolder {
    let folder = TestFolder::new("");
    folder.configure(&format!(
        "{extra}\n[[sources]]\nname = \"up\"\ntype = \"{kind}\"\nurl = \"{url}\"\nstream = \"events\"\n{keys}\n{STREAM}"
    ));
    folder
}

fn server(folder: &TestFolder) -> Server {
    let mut command = folder.command(&["run"]);
    command.env("WEIR_SERVER_HTTP", "127.0.0.1:0");
    Server::start(&mut command, &folder.path("data"))
}

fn rows(server: &Server, query: &str) -> Vec<Value> {
    let body = json!({ "sql": query }).to_string();
    let (_, answer) = server.request("POST", "/api/v1/sql", &[], body.as_bytes());
    answer["rows"].as_array().cloned().unwrap_or_default()
}

fn number(server: &Server, query: &str) -> u64 {
    let rows = rows(server, &format!("select ({query}) as n"));
    rows.first().and_then(|row| row["n"].as_u64()).unwrap_or(0)
}

const COUNT: &str = "select count(*) from events";
const GAPS: &str = "select count(*) from weir.gaps";

/// Ids in the lake, each of which must be there once.
fn ids(folder: &TestFolder) -> Vec<u64> {
    let rows = folder.rows("select id from events order by id");
    rows.iter()
        .map(|row| row["id"].as_u64().expect("an id"))
        .collect()
}

/// Events with ids, which are sent from the one after `Last-Event-ID` on. Connections end at odd
/// places, until all were sent.
fn events_with_ids(all: u64) -> HandWritten {
    HandWritten::start(move |n, request, stream| {
        let last = request.header("last-event-id");
        let after: u64 = last.map_or(0, |id| id[1..].parse().expect("an id of ours"));
        let to = (after + 2 + (n as u64 * 37) % 150).min(all);
        let mut body = String::from(":ok\r\n\r\n");
        for id in after + 1..=to {
            let at = 1_465_520_400_000 + id;
            body += &format!("id: e{id}\r\ndata: {{\"id\":{id},\r\ndata: \"at\":{at}}}\r\n\r\n");
        }
        begin(stream, "200 OK", &[("Content-Type", "text/event-stream")])?;
        if to == all {
            stream.write_all(body.as_bytes())?;
            return hold(stream);
        }
        let end = body.len() - n % 7;
        body.as_bytes()[..end]
            .chunks(1 + n * 13 % 500)
            .try_for_each(|chunk| stream.write_all(chunk))
    })
}

#[test]
fn events_with_ids_are_there_once_whatever_is_killed() {
    const ALL: u64 = 1_500;
    let upstream = events_with_ids(ALL);
    let folder = folder("", "http_stream", &upstream.url("/events"), "");
    for kill_at in [200, 700] {
        let killed = server(&folder);
        wait_until("events come", || number(&killed, COUNT) > kill_at);
        // Dropping it kills it.
        drop(killed);
    }
    let last = server(&folder);
    wait_until("all events are there", || number(&last, COUNT) >= ALL);
    let place = "select source_offset from weir.sources where source = 'up'";
    wait_until("the place is shown", || number(&last, place) == ALL);
    assert_eq!(number(&last, GAPS), 0);
    last.stop();
    assert_eq!(ids(&folder), (1..=ALL).collect::<Vec<_>>());
    let raw = "select count(*) from raw where kind = 'record'";
    assert_eq!(folder.number(raw), ALL);
    let continued = upstream
        .requests()
        .iter()
        .filter(|r| r.header("last-event-id").is_some())
        .count();
    assert!(continued > 5, "{continued}");
}

/// `weir replay --serve` of a recording, started again whenever it has ended.
struct Replay {
    arguments: Vec<String>,
    child: Child,
}

impl Replay {
    fn start(path: &str, port: u16) -> Self {
        let address = format!("127.0.0.1:{port}");
        let arguments = ["replay", path, "--speed", "3", "--serve", &address];
        let arguments: Vec<String> = arguments.map(str::to_owned).into();
        let child = Self::spawn(&arguments);
        Self { arguments, child }
    }

    fn spawn(arguments: &[String]) -> Child {
        let mut command = weir();
        let command = command.args(arguments).stderr(Stdio::null());
        command.spawn().expect("the binary runs")
    }

    fn restart(&mut self) {
        self.kill();
        self.child = Self::spawn(&self.arguments);
    }

    fn restart_if_ended(&mut self) {
        if self.child.try_wait().expect("a process").is_some() {
            self.restart();
        }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        self.child.wait().expect("it ends");
    }
}

#[test]
fn a_recording_that_is_served_is_there_once_whatever_is_killed() {
    let folder = TestFolder::new("");
    let recording = folder.path("recording.ndjson");
    let path = recording.to_str().expect("text");
    let generate = [
        "generate", "--rate", "100", "--count", "3000", "--file", path,
    ];
    assert!(
        weir()
            .args(generate)
            .status()
            .expect("the binary runs")
            .success()
    );
    let text = std::fs::read_to_string(&recording).expect("the recording");
    let sent: Vec<&str> = text.lines().collect();
    let port = free_port();
    folder.configure(&rsvps_from(port));
    let count = "select count(*) from raw where kind = 'record'";
    let mut upstream = Replay::start(path, port);
    let killed = server(&folder);
    wait_until("records come", || {
        upstream.restart_if_ended();
        number(&killed, count) > 0
    });
    // A client without an id gets what comes, not the past.
    let stored = rows(&killed, "select bytes from raw where source_offset = 0");
    let first = sent.iter().position(|line| stored[0]["bytes"] == *line);
    let expected = &sent[first.expect("a record of the recording")..];
    drop(killed);
    let second = server(&folder);
    // The recording begins again, and the source continues where it was.
    upstream.restart();
    wait_until("all records are there", || {
        upstream.restart_if_ended();
        number(&second, count) >= expected.len() as u64
    });
    upstream.kill();
    assert_eq!(number(&second, GAPS), 0);
    second.stop();
    let query = "select bytes from raw where kind = 'record' order by source_offset";
    let stored = folder.rows(query);
    assert_eq!(stored.len(), expected.len());
    assert!(
        stored
            .iter()
            .zip(expected)
            .all(|(row, line)| row["bytes"] == **line)
    );
}

/// A stream from what `weir generate` or `weir replay` serves at a port.
fn rsvps_from(port: u16) -> String {
    format!(
        "[[sources]]\nname = \"up\"\ntype = \"http_stream\"\nurl = \"http://127.0.0.1:{port}/2/rsvps\"\nstream = \"rsvps\"\n[streams.rsvps]\npreset = \"rsvps\"\n"
    )
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

#[test]
fn without_ids_what_was_missed_is_a_gap() {
    // Objects one after the other, without newlines.
    let upstream = HandWritten::start(|n, _, stream| {
        let first = n as u64 * 10;
        begin(stream, "200 OK", &[("Content-Type", "application/json")])?;
        stream.write_all(records(first..first + 10).concat().as_bytes())?;
        if n == 0 { Ok(()) } else { hold(stream) }
    });
    let folder = folder("", "http_stream", &upstream.url("/"), "");
    let killed = server(&folder);
    wait_until("it reconnects", || number(&killed, COUNT) == 20);
    wait_until("the gap is shown", || number(&killed, GAPS) == 1);
    drop(killed);
    let second = server(&folder);
    wait_until("it continues", || number(&second, COUNT) == 30);
    wait_until("the gap is shown", || number(&second, GAPS) == 2);
    let gaps = rows(&second, "select source, reason from weir.gaps");
    assert!(
        gaps.iter().all(|gap| gap["reason"] == "not connected"),
        "{gaps:?}"
    );
    second.stop();
    assert_eq!(ids(&folder), (0..30).collect::<Vec<_>>());
    assert!(
        upstream
            .requests()
            .iter()
            .all(|r| r.header("last-event-id").is_none())
    );
}

#[test]
fn a_server_that_cannot_continue_leaves_a_gap_with_the_id() {
    let upstream = HandWritten::start(|_, request, stream| {
        let (from, to) = match (request.header("last-event-id"), request.path.as_str()) {
            (Some(_), _) => return begin(stream, "410 Gone", &[("Content-Length", "0")]),
            (None, "/events") => (100, 105),
            _ => (0, 0),
        };
        begin(stream, "200 OK", &[("Content-Type", "text/event-stream")])?;
        for id in from..to {
            write!(stream, "id: e{id}\ndata: {}\n\n", record(id, 1))?;
        }
        Ok(())
    });
    let folder = folder("", "http_stream", &upstream.url("/events"), "");
    let server = server(&folder);
    wait_until("the gap is recorded", || number(&server, GAPS) > 0);
    let gap = &rows(&server, "select reason from weir.gaps limit 1")[0];
    assert_eq!(
        gap["reason"],
        "the server does not continue after the event e104"
    );
    server.stop();
}

#[test]
fn a_record_over_the_limit_is_a_dead_letter_and_its_neighbours_are_events() {
    let upstream = HandWritten::start(|_, _, stream| {
        begin(stream, "200 OK", &[("Content-Type", "application/json")])?;
        let long = format!("{{\"id\":2,\"x\":\"{}\"}}", "y".repeat(5_000));
        let body = [&record(1, 1), &long, &record(3, 1)]
            .map(String::as_str)
            .concat();
        for chunk in body.as_bytes().chunks(700) {
            stream.write_all(chunk)?;
        }
        hold(stream)
    });
    let limits = "[limits]\nrecord = \"1KiB\"\n";
    let folder = folder(limits, "http_stream", &upstream.url("/"), "");
    let server = server(&folder);
    wait_until("records come", || number(&server, COUNT) == 2);
    let dead = rows(
        &server,
        "select reason, length(bytes) as n from dead_letters",
    );
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!(dead[0]["n"], 1_024);
    server.stop();
    assert_eq!(ids(&folder), [1, 3]);
}

#[test]
fn a_server_that_has_no_more_events_ends_the_source() {
    let upstream = HandWritten::start(|n, _, stream| {
        if n > 0 {
            return begin(stream, "204 No Content", &[]);
        }
        begin(stream, "200 OK", &[("Content-Type", "text/event-stream")])?;
        write!(
            stream,
            "retry: 10\ndata: {}\n\ndata: {}\n\n",
            record(1, 1),
            record(2, 1)
        )
    });
    let folder = folder("", "http_stream", &upstream.url("/"), "");
    let messages = folder.run_once();
    assert!(messages.contains("204 No Content"), "{messages}");
    assert_eq!(ids(&folder), [1, 2]);
}

#[test]
fn a_generated_stream_is_read_and_another_run_of_it_is_a_gap() {
    let (folder, port) = (TestFolder::new(""), free_port());
    folder.configure(&rsvps_from(port));
    let generate = || {
        weir()
            .args(["generate", "--rate", "300", "--start", "now", "--serve"])
            .arg(format!("127.0.0.1:{port}"))
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary runs")
    };
    let mut first = generate();
    let server = server(&folder);
    let count = "select count(*) from rsvps";
    wait_until("records come", || number(&server, count) > 100);
    first.kill().and_then(|()| first.wait()).expect("it ends");
    let mut second = generate();
    wait_until("the gap is recorded", || number(&server, GAPS) > 0);
    let before = number(&server, count);
    wait_until("records come again", || number(&server, count) > before);
    second.kill().and_then(|()| second.wait()).expect("it ends");
    server.stop();
}

/// Three pages of records, each of which names the next by a header. The version of record 3 grows.
fn linked_pages(version: Arc<AtomicU64>) -> HandWritten {
    HandWritten::start(move |_, request, stream| {
        let page = request
            .path
            .split_once("page=")
            .map_or("1", |(_, page)| page);
        let page: u64 = page.parse().expect("a page");
        let first = (page - 1) * 2;
        let record = |id| {
            record(
                id,
                if id == 3 {
                    version.load(Ordering::SeqCst)
                } else {
                    1
                },
            )
        };
        let body = format!("[{},\n{}]", record(first), record(first + 1));
        let next = format!("</x?page={}>; rel=\"next\"", page + 1);
        let links = [("Link", next.as_str())];
        answer(stream, if page < 3 { &links } else { &[] }, &body)
    })
}

#[test]
fn all_pages_are_polled_and_a_record_is_stored_once_per_version() {
    let version = Arc::new(AtomicU64::new(1));
    let upstream = linked_pages(version.clone());
    let folder = folder("", "http_poll", &upstream.url("/x"), "every = \"1h\"");
    folder.run_once();
    assert_eq!(ids(&folder), [0, 1, 2, 3, 4, 5]);
    // Also after a start, which has forgotten nothing.
    folder.run_once();
    assert_eq!(ids(&folder), [0, 1, 2, 3, 4, 5]);
    version.store(2, Ordering::SeqCst);
    folder.run_once();
    assert_eq!(ids(&folder), [0, 1, 2, 3, 3, 4, 5]);
    let raw = "select count(*) from raw where kind = 'record'";
    assert_eq!(folder.number(raw), 7);
    assert_eq!(upstream.requests().len(), 9);
}

#[test]
fn a_limit_of_pages_is_reported_when_it_is_reached() {
    let upstream = linked_pages(Arc::new(AtomicU64::new(1)));
    let folder = folder("", "http_poll", &upstream.url("/x"), "pages = 2");
    let messages = folder.run_once();
    assert!(
        messages.contains("the poll ended at its limit of 2 pages (`pages`)"),
        "{messages}"
    );
    assert_eq!(ids(&folder), [0, 1, 2, 3]);
    let server = server(&folder);
    wait_until("the limit is reported", || {
        server
            .get("/readyz")
            .1
            .to_string()
            .contains("its limit of 2 pages")
    });
    server.stop();
}

#[test]
fn cursors_are_followed_with_the_token_of_a_file() {
    use std::os::unix::fs::PermissionsExt;
    let upstream = HandWritten::start(|_, request, stream| {
        if request.header("authorization") != Some("Bearer secret") {
            return begin(stream, "401 Unauthorized", &[("Content-Length", "0")]);
        }
        let after = request
            .path
            .split_once("after=")
            .map_or("0", |(_, after)| after);
        let first: u64 = after.parse().expect("a cursor");
        let next = if first < 4 {
            (first + 2).to_string()
        } else {
            "null".into()
        };
        let rows = records(first..first + 2).join(",");
        answer(
            stream,
            &[],
            &format!("{{\"rows\":[{rows}],\"meta\":{{\"next\":{next}}}}}"),
        )
    });
    let keys = "unwrap = \"rows\"\ncursor = { path = \"meta.next\", parameter = \"after\" }\ntoken_file = \"token\"";
    let folder = folder("", "http_poll", &upstream.url("/x?n=2"), keys);
    folder.write("token", b"secret\n");
    let allow = |mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(folder.path("token"), mode).expect("the file is ours");
    };
    allow(0o644);
    folder.check_config_error(&["token_file: others can read the secret", "chmod 600"]);
    allow(0o600);
    folder.run_once();
    assert_eq!(ids(&folder), [0, 1, 2, 3, 4, 5]);
    let paths: Vec<String> = upstream.requests().into_iter().map(|r| r.path).collect();
    assert_eq!(paths, ["/x?n=2", "/x?n=2&after=2", "/x?n=2&after=4"]);
}

#[test]
fn a_server_that_repeats_its_last_cursor_ends_the_poll_and_one_that_goes_in_circles_fails_it() {
    let is_circle = Arc::new(AtomicBool::new(false));
    let goes_back = is_circle.clone();
    // The cursor is the last record of the page; the last page has none, or names the first one.
    let upstream = HandWritten::start(move |_, request, stream| {
        let after = request.path.split_once("after=");
        let first: u64 = after.map_or(0, |(_, after)| after.parse().expect("a cursor"));
        let last = (first + 2).min(4);
        let next = if first == 4 && goes_back.load(Ordering::SeqCst) {
            2
        } else {
            last
        };
        let rows = records(first..last).join(",");
        let body = format!("{{\"rows\":[{rows}],\"next\":{next}}}");
        answer(stream, &[], &body)
    });
    let keys = "unwrap = \"rows\"\ncursor = { path = \"next\", parameter = \"after\" }";
    let folder = folder("", "http_poll", &upstream.url("/x"), keys);
    folder.run_once();
    assert_eq!(ids(&folder), [0, 1, 2, 3]);
    let paths: Vec<String> = upstream.requests().into_iter().map(|r| r.path).collect();
    assert_eq!(paths, ["/x", "/x?after=2", "/x?after=4"]);
    folder.run_once();
    assert_eq!(ids(&folder), [0, 1, 2, 3]);
    is_circle.store(true, Ordering::SeqCst);
    let server = server(&folder);
    wait_until("the poll fails", || {
        let ready = server.get("/readyz").1.to_string();
        ready.contains("page 3 is followed by one that was read before it")
    });
    server.stop();
}

#[test]
fn a_server_that_ignores_its_cursor_fails_the_poll() {
    let upstream = HandWritten::start(|_, request, stream| {
        if request.header("if-none-match") == Some("\"a\"") {
            return begin(stream, "304 Not Modified", &[]);
        }
        let rows = records(0..2).join(",");
        let body = format!("{{\"rows\":[{rows}],\"next\":2}}");
        answer(stream, &[("ETag", "\"a\"")], &body)
    });
    let keys = "unwrap = \"rows\"\ncursor = { path = \"next\", parameter = \"after\" }";
    let folder = folder("", "http_poll", &upstream.url("/x"), keys);
    let server = server(&folder);
    let has_failed = || {
        let ready = server.get("/readyz").1.to_string();
        ready.contains("page 2 is the same as the page before it")
    };
    wait_until("the poll fails", has_failed);
    // Also where both pages are unchanged since the poll before.
    wait_until("it is repeated", || upstream.requests().len() >= 6);
    assert!(has_failed());
    server.stop();
    assert_eq!(ids(&folder), [0, 1]);
    let unchanged = |request: &Request| request.header("if-none-match").is_some();
    assert!(upstream.requests()[2..].iter().all(unchanged));
}

#[test]
fn an_unchanged_answer_is_not_sent_again() {
    let upstream = HandWritten::start(|_, request, stream| {
        if request.header("if-none-match") == Some("\"a\"") {
            return begin(stream, "304 Not Modified", &[]);
        }
        let body = records(0..3).join("\n");
        answer(
            stream,
            &[
                ("ETag", "\"a\""),
                ("Last-Modified", "Fri, 10 Jun 2016 01:00:00 GMT"),
                ("Date", "Fri, 10 Jun 2016 01:00:01 GMT"),
            ],
            &body,
        )
    });
    let folder = folder("", "http_poll", &upstream.url("/"), "every = \"1s\"");
    let server = server(&folder);
    wait_until("it has polled often", || {
        upstream.requests().len() > 2 && number(&server, COUNT) >= 3
    });
    assert_eq!(number(&server, COUNT), 3);
    let requests = upstream.requests();
    assert!(requests[0].header("if-none-match").is_none());
    let time = "Fri, 10 Jun 2016 01:00:00 GMT";
    for later in &requests[1..] {
        assert_eq!(later.header("if-none-match"), Some("\"a\""));
        assert_eq!(later.header("if-modified-since"), Some(time));
    }
    let status = server.get("/api/v1/status").1;
    assert_eq!(status["sources"][0]["state"], "running");
    server.stop();
}

#[test]
fn an_unchanged_page_may_be_followed_by_a_new_one() {
    let upstream = HandWritten::start(|_, request, stream| {
        if request.path == "/x?page=2" {
            return answer(stream, &[], &record(9, 1));
        }
        if request.header("if-none-match") == Some("\"a\"") {
            let next = [("Link", "</x?page=2>; rel=\"next\"")];
            return begin(stream, "304 Not Modified", &next);
        }
        answer(stream, &[("ETag", "\"a\"")], &records(0..3).join("\n"))
    });
    let folder = folder("", "http_poll", &upstream.url("/x"), "every = \"1s\"");
    let server = server(&folder);
    wait_until("the new page is read", || number(&server, COUNT) == 4);
    server.stop();
    assert_eq!(ids(&folder), [0, 1, 2, 9]);
}

#[test]
fn a_kill_during_a_poll_neither_loses_nor_repeats_a_record() {
    const ALL: u64 = 5_000;
    let upstream = HandWritten::start(|_, _, stream| {
        answer(stream, &[], &format!("[{}]", records(0..ALL).join(",")))
    });
    let folder = folder("", "http_poll", &upstream.url("/"), "every = \"1s\"");
    for _ in 0..3 {
        let killed = server(&folder);
        wait_until("records come", || number(&killed, COUNT) > 0);
        drop(killed);
    }
    folder.run_once();
    folder.run_once();
    assert_eq!(ids(&folder), (0..ALL).collect::<Vec<_>>());
    assert_eq!(folder.number("select count(*) from dead_letters"), 0);
}

#[test]
fn a_poll_that_fails_says_why_and_is_repeated() {
    let upstream = HandWritten::start(|n, _, stream| match n {
        0 => begin(
            stream,
            "503 Service Unavailable",
            &[("Retry-After", "3600"), ("Content-Length", "0")],
        ),
        1 => begin(
            stream,
            "429 Too Many Requests",
            &[("Retry-After", "1"), ("Content-Length", "0")],
        ),
        _ => answer(stream, &[], &record(1, 1)),
    });
    let folder = folder("", "http_poll", &upstream.url("/x?key=secret"), "");
    let messages = folder.fail(&["run", "--once"], 1);
    assert!(
        messages.contains("/x: the server answered 503 Service Unavailable"),
        "{messages}"
    );
    assert!(!messages.contains("secret"), "{messages}");
    folder.run_once();
    assert_eq!(ids(&folder), [1]);
}
