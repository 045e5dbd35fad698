//! Live streams: each row once, also for a client that reconnects; rows that have left memory are
//! named once; live streams take no slots of queries.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::server::{Server, start};
use crate::support::{HTTP_ONLY, TestFolder, ndjson, records, wait_until};

struct Follower(BufReader<TcpStream>);

#[derive(Debug, PartialEq)]
struct Event {
    kind: String,
    id: String,
    data: Value,
}

impl Follower {
    fn new(server: &Server, query: &str, last: Option<&str>) -> Self {
        let mut stream = TcpStream::connect(&server.address).expect("a connection");
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("a time");
        let last = last.map_or(String::new(), |id| format!("Last-Event-ID: {id}\r\n"));
        let head = format!(
            "GET /api/v1/live{query} HTTP/1.1\r\nHost: {}\r\n{last}\r\n",
            server.address
        );
        stream.write_all(head.as_bytes()).expect("writable");
        let mut follower = Self(BufReader::new(stream));
        assert!(follower.line().starts_with("HTTP/1.1 200"));
        while !follower.line().is_empty() {}
        follower
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    /// The next event; sizes of chunks and comments between its lines are passed over.
    fn next(&mut self) -> Event {
        let mut event = Event {
            kind: String::new(),
            id: String::new(),
            data: Value::Null,
        };
        loop {
            let line = self.line();
            match line.split_once(": ") {
                Some(("event", kind)) => event.kind = kind.to_owned(),
                Some(("id", id)) => event.id = id.to_owned(),
                Some(("data", data)) => event.data = serde_json::from_str(data).expect("JSON"),
                _ => {}
            }
            if !event.data.is_null() && !event.id.is_empty() {
                return event;
            }
        }
    }
}

fn with_limits(limits: &str) -> TestFolder {
    let folder = TestFolder::new("");
    folder.configure(&format!(
        r#"{HTTP_ONLY}
[windows.n]
sql = """select window_start, window_end, response, count(*) as n
         from tumble(rsvps, event_time, interval '1 second') group by 1, 2, 3"""
[limits]
{limits}
"#
    ));
    folder
}

fn rows(server: &Server, query: &str) -> Vec<Value> {
    let answer = server
        .request(
            "POST",
            "/api/v1/sql",
            &[],
            json!({"sql": query}).to_string().as_bytes(),
        )
        .1;
    answer["rows"]
        .as_array()
        .unwrap_or_else(|| panic!("{answer}"))
        .clone()
}

#[test]
fn each_row_is_sent_once_and_as_in_sql_even_after_a_reconnect() {
    let folder = with_limits("");
    let server = start(&folder);
    let mut whole = Follower::new(&server, "", None);
    let mut windows = Follower::new(&server, "?window=n", None);
    let all = records(1_200, 4);
    for part in all.chunks(400) {
        assert_eq!(server.post(&[], &ndjson(part)).0, 200);
    }
    wait_until("rows are there", || {
        rows(&server, "select count(*) as n from rsvps")[0]["n"] == 1_200
    });
    let expected = rows(&server, "select * from rsvps order by lsn");
    let seen: Vec<Event> = (0..1_200).map(|_| whole.next()).collect();
    assert!(
        seen.iter()
            .zip(&expected)
            .all(|(event, row)| event.data == *row && event.kind.is_empty())
    );
    for at in [0, 1, 399, 400, 1_198] {
        let mut returned = Follower::new(&server, "", Some(&seen[at].id));
        assert!(
            (at + 1..1_200).all(|n| returned.next() == seen[n]),
            "after {at}"
        );
    }
    let closed = rows(&server, "select count(*) as n from n_versions")[0]["n"]
        .as_u64()
        .expect("a number") as usize;
    assert!(closed > 2, "{closed} rows of windows");
    let seen: Vec<Event> = (0..closed).map(|_| windows.next()).collect();
    let mut returned = Follower::new(&server, "?window=n", Some(&seen[1].id));
    assert!((2..closed).all(|n| returned.next() == seen[n]));
    let mut found: Vec<String> = seen.iter().map(|event| event.data.to_string()).collect();
    let mut stored: Vec<String> = rows(&server, "select * from n_versions")
        .iter()
        .map(Value::to_string)
        .collect();
    found.sort();
    stored.sort();
    assert_eq!(found, stored);
    server.stop();
}

#[test]
fn rows_that_have_left_memory_are_named_once() {
    let folder = with_limits("");
    let server = start(&folder);
    let mut follower = Follower::new(&server, "", None);
    assert_eq!(server.post(&[], &ndjson(&records(20, 5))).0, 200);
    let seen: Vec<Event> = (0..20).map(|_| follower.next()).collect();
    server.stop();
    let server = start(&folder);
    // No row is missed after the last one.
    let mut at_end = Follower::new(&server, "", Some(&seen[19].id));
    let mut late = Follower::new(&server, "", Some(&seen[3].id));
    let mut foreign = Follower::new(&server, "", Some("9007199254740000.0"));
    let missed = late.next();
    assert_eq!(
        (missed.kind.as_str(), &missed.data["after"]),
        ("missed", &seen[3].data["lsn"]),
        "{missed:?}"
    );
    assert!(
        missed.data["message"]
            .as_str()
            .is_some_and(|text| text.contains("in SQL"))
    );
    assert_eq!(foreign.next().kind, "missed");
    let between = format!(
        "select lsn from rsvps where lsn > {} and lsn <= {}",
        missed.data["after"], missed.data["upto"]
    );
    assert_eq!(rows(&server, &between).len(), 16);
    let again = Follower::new(&server, "", Some(&missed.id));
    assert_eq!(server.post(&[], &ndjson(&records(3, 6))).0, 200);
    let next = at_end.next();
    assert_eq!(next.kind, "");
    for mut other in [late, foreign, again] {
        assert_eq!(other.next(), next);
    }
    server.stop();
}

#[test]
fn many_live_streams_take_no_slots_of_queries() {
    let folder = with_limits("sql_concurrent = 1");
    let server = start(&folder);
    let mut followers: Vec<Follower> = (0..40).map(|_| Follower::new(&server, "", None)).collect();
    for seed in 0..10 {
        assert_eq!(server.post(&[], &ndjson(&records(100, seed))).0, 200);
        assert_eq!(rows(&server, "select 1 as n").len(), 1);
    }
    for follower in &mut followers {
        assert!((0..1_000).all(|_| follower.next().kind.is_empty()));
    }
    server.stop();
}
