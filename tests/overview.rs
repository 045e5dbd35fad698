//! The overview: what it shows equals a recount, for every declaration and any text; it resumes
//! after a restart, and its clients are bounded.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::server::{Server, start};
use crate::support::{FREE_PORT, HTTP_ONLY, TestFolder, duplicates, ndjson, records, wait_until};

const FEW_CONNECTIONS: &str = include_str!("../testdata/few_connections.toml");

/// A client of an overview.
struct Viewer {
    stream: BufReader<TcpStream>,
    layout: Value,
    /// The latest message of each panel.
    panels: BTreeMap<String, Value>,
}

impl Viewer {
    /// Connects; the status where it is not 200.
    fn try_new(server: &Server, query: &str) -> Result<Self, u16> {
        let mut stream = TcpStream::connect(&server.address).expect("a connection");
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("a time");
        let head = format!(
            "GET /api/v1/overview{query} HTTP/1.1\r\nHost: {}\r\n\r\n",
            server.address
        );
        stream.write_all(head.as_bytes()).expect("writable");
        let mut viewer = Self {
            stream: BufReader::new(stream),
            layout: Value::Null,
            panels: BTreeMap::new(),
        };
        let status = viewer.line();
        let status = status.split(' ').nth(1).and_then(|s| s.parse().ok());
        if status != Some(200) {
            return Err(status.unwrap_or(0));
        }
        while !viewer.line().is_empty() {}
        let (kind, layout) = viewer.event();
        assert_eq!(kind, "layout");
        viewer.layout = layout;
        Ok(viewer)
    }

    fn new(server: &Server, query: &str) -> Self {
        Self::try_new(server, query).expect("an overview")
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let bytes = self.stream.read_line(&mut line).expect("a line");
        assert!(bytes > 0, "the connection was closed");
        line.trim_end().to_owned()
    }

    /// The next event; sizes of chunks and comments between its lines are passed over.
    fn event(&mut self) -> (String, Value) {
        let mut kind = String::new();
        loop {
            let line = self.line();
            match line.split_once(": ") {
                Some(("event", text)) => kind = text.to_owned(),
                Some(("data", data)) => {
                    return (kind, serde_json::from_str(data).expect("JSON on one line"));
                }
                _ => {}
            }
        }
    }

    /// Reads until the panels are as wanted.
    fn wait(&mut self, wanted: &str, is_met: impl Fn(&BTreeMap<String, Value>) -> bool) {
        // Panels come several times a second.
        for _ in 0..2_000 {
            if is_met(&self.panels) {
                return;
            }
            let (kind, panel) = self.event();
            assert_eq!(kind, "panel");
            let id = panel["id"].as_str().expect("an id").to_owned();
            self.panels.insert(id, panel);
        }
        panic!("waited in vain: {wanted}: {:#?}", self.panels);
    }

    /// The panels' ids, as the layout lists them.
    fn ids(&self) -> Vec<String> {
        let panels = self.layout["panels"].as_array().expect("panels");
        panels
            .iter()
            .map(|panel| panel["id"].as_str().expect("an id").to_owned())
            .collect()
    }
}

fn rows(server: &Server, query: &str) -> Vec<Value> {
    let body = json!({"sql": query}).to_string();
    let answer = server
        .request("POST", "/api/v1/sql", &[], body.as_bytes())
        .1;
    answer["rows"]
        .as_array()
        .unwrap_or_else(|| panic!("{answer}"))
        .clone()
}

fn seconds(record: &Value) -> i64 {
    record["mtime"].as_i64().expect("a time").div_euclid(1_000)
}

/// How often each value occurs, most frequent first.
fn frequencies<'a>(values: impl Iterator<Item = &'a str>) -> Vec<Value> {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    values.for_each(|value| *counts.entry(value).or_default() += 1);
    let mut counts: Vec<(&str, u64)> = counts.into_iter().collect();
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
    counts
        .into_iter()
        .map(|(value, n)| json!({"value": value, "n": n}))
        .collect()
}

/// The points of one type's line over five minutes, and their start, by the definition.
fn line_of(distinct: &[&Value], response: &str) -> (i64, Vec<u64>) {
    let newest = distinct.iter().map(|r| seconds(r)).max().expect("records");
    let start = (newest.div_euclid(5) + 1) * 5 - 300;
    let mut points = vec![0; 60];
    for record in distinct.iter().filter(|r| r["response"] == response) {
        let at = (seconds(record) - start).div_euclid(5);
        if let Some(point) = usize::try_from(at).ok().and_then(|at| points.get_mut(at)) {
            *point += 1;
        }
    }
    (start, points)
}

#[test]
fn every_panel_shows_what_a_recount_finds() {
    let folder = TestFolder::new("");
    folder.configure(&format!("{HTTP_ONLY}watermark = {{ disorder = '1h' }}\n"));
    let server = start(&folder);
    let mut viewer = Viewer::new(&server, "");
    assert_eq!(viewer.layout["stream"], "rsvps");
    assert_eq!(viewer.layout["minutes"], 5);
    let all = records(1_500, 8);
    assert_eq!(server.post(&[], &ndjson(&all)).0, 200);
    let is_duplicate = duplicates(&all);
    let distinct = all.iter().zip(&is_duplicate).filter(|(_, d)| !**d);
    let distinct: Vec<&Value> = distinct.map(|(record, _)| record).collect();
    viewer.wait("all records are counted", |panels| {
        let total = |id: &str| panels.get(id).map(|panel| &panel["data"]["total"]);
        let count = json!(distinct.len());
        total("types") == Some(&count) && total("by:country") == Some(&count)
    });
    let types = frequencies(distinct.iter().filter_map(|r| r["response"].as_str()));
    assert_eq!(viewer.panels["types"]["data"]["values"], json!(types));
    assert_eq!(viewer.panels["types"]["data"]["complete"], true);
    assert_eq!(viewer.panels["types"]["as_of"]["pending"], 0);
    let country = |r: &&Value| Some(r["group"]["group_country"].as_str()?.to_lowercase());
    let countries: Vec<String> = distinct.iter().filter_map(country).collect();
    let countries = frequencies(countries.iter().map(String::as_str));
    assert_eq!(
        viewer.panels["by:country"]["data"]["values"],
        json!(countries)
    );
    let expected = [line_of(&distinct, "yes"), line_of(&distinct, "no")];
    viewer.wait("the line has all records", |panels| {
        let sum: u64 = expected.iter().flat_map(|(_, points)| points).sum();
        let series = panels
            .get("line")
            .and_then(|line| line["data"]["series"].as_array());
        let points = series
            .into_iter()
            .flatten()
            .filter_map(|s| s["n"].as_array());
        points.flatten().filter_map(Value::as_u64).sum::<u64>() == sum
    });
    let line = &viewer.panels["line"]["data"];
    assert_eq!(line["bucket_s"], 5);
    assert_eq!(
        line["start"],
        weir::event::rfc3339(expected[0].0 * 1_000_000)
    );
    for (series, (value, (_, points))) in ["yes", "no"].iter().zip(&expected).enumerate() {
        assert_eq!(line["series"][series], json!({"value": value, "n": points}));
    }
    check_tables(&server, &mut viewer, &distinct);
    viewer.wait("every record has arrived in the last minute", |panels| {
        let history = panels
            .get("rate")
            .and_then(|rate| rate["data"]["history"].as_array());
        let counts = history
            .into_iter()
            .flatten()
            .filter_map(|second| second[1].as_u64());
        counts.sum::<u64>() == all.len() as u64
    });
    let rate = &viewer.panels["rate"];
    assert_eq!(rate["data"]["history"].as_array().map(Vec::len), Some(60));
    assert!(rate["at"].as_str() <= rate["now"].as_str());
    server.stop();
}

/// Compares the panels by SQL, the latest rows and the health.
fn check_tables(server: &Server, viewer: &mut Viewer, distinct: &[&Value]) {
    let end = distinct.iter().map(|r| seconds(r)).max().expect("records") + 1;
    let venues = distinct
        .iter()
        .filter(|r| (end - 300..end).contains(&seconds(r)))
        .filter_map(|r| r["venue"]["venue_name"].as_str());
    let mut venues = frequencies(venues);
    let total: u64 = venues.iter().filter_map(|v| v["n"].as_u64()).sum();
    venues.truncate(10);
    viewer.wait("venues are counted", |panels| {
        let top = panels.get("top:venue_name").map(|panel| &panel["data"]);
        top.is_some_and(|top| top["total"] == total && top["values"] == json!(venues))
    });
    let windows = rows(
        server,
        "select country, n from by_country where window_start = (select max(window_start) from by_country) order by country",
    );
    let expected: Vec<Value> = windows
        .iter()
        .map(|row| json!([row["country"], row["n"]]))
        .collect();
    assert!(!expected.is_empty());
    viewer.wait("the newest window is shown", |panels| {
        let window = panels.get("window:by_country").map(|panel| &panel["data"]);
        window.is_some_and(|window| window["rows"] == json!(expected))
    });
    let window = &viewer.panels["window:by_country"]["data"];
    assert_eq!(window["columns"], json!(["country", "n"]));
    assert_eq!(window["status"], "open");
    let latest = rows(
        server,
        "select lsn, event_time, rsvp_id, mtime, response, guests, visibility, member_id, member_name from rsvps order by lsn desc limit 12",
    );
    viewer.wait("the latest rows are shown", |panels| {
        let shown = panels.get("latest").map(|panel| &panel["data"]["rows"]);
        shown == Some(&json!(latest))
    });
    let status = server.get("/api/v1/status").1;
    viewer.wait("the health is that of the status", |panels| {
        let health = panels.get("health").map(|panel| &panel["data"]);
        health.is_some_and(|health| {
            let is_synced = health["synced_lsn"].as_u64() >= status["synced_lsn"].as_u64();
            is_synced && health["lag_records"] == 0
        })
    });
    let health = &viewer.panels["health"]["data"];
    assert_eq!(health["ready"], true, "{health}");
    assert_eq!(health["late"], status["streams"]["rsvps"]["late"]);
    assert_eq!(health["disk_limit_bytes"], Value::Null);
    for part in ["disk_bytes", "memory_bytes", "memory_limit_bytes"] {
        assert!(health[part].as_u64() > Some(0), "{part}: {health}");
    }
}

#[test]
fn windows_that_rank_are_shown_in_their_order_and_a_restart_changes_nothing() {
    let folder = TestFolder::new("");
    folder.configure(&format!("{HTTP_ONLY}watermark = {{ idle = '1h' }}\n"));
    let mut all = records(1_200, 4);
    // In order, so that windows close and the top is known.
    for (n, record) in all.iter_mut().enumerate() {
        record["rsvp_id"] = json!(n);
        record["mtime"] = json!(1_465_520_400_000_i64 + n as i64 * 500);
    }
    let query = "select event_id, event_name, yes from top_events where status <> 'open' order by window_start desc, yes desc, event_id, event_name limit 5";
    let mut shown = Vec::new();
    for round in 0..2 {
        let server = start(&folder);
        if round == 0 {
            assert_eq!(server.post(&[], &ndjson(&all)).0, 200);
        }
        let mut viewer = Viewer::new(&server, "?stream=rsvps&minutes=30");
        wait_until("all rows are visible", || {
            rows(&server, "select count(*) as n from rsvps")[0]["n"] == 1_200
        });
        let expected: Vec<Value> = rows(&server, query)
            .iter()
            .map(|row| json!([row["event_id"], row["event_name"], row["yes"]]))
            .collect();
        assert_eq!(expected.len(), 5);
        viewer.wait("the top is shown", |panels| {
            let window = panels.get("window:top_events").map(|panel| &panel["data"]);
            window.is_some_and(|window| window["rows"] == json!(expected))
        });
        viewer.wait("the latest rows are complete", |panels| {
            let latest = panels.get("latest").map(|panel| &panel["data"]["rows"]);
            let last = latest.and_then(|rows| rows[0]["rsvp_id"].as_u64());
            last == Some(1_199) && latest.is_some_and(|rows| !rows[11].is_null())
        });
        viewer.wait("counts are there", |panels| {
            let counts = panels.get("types").map(|panel| &panel["data"]["total"]);
            counts == Some(&json!(1_200)) && panels.contains_key("line")
        });
        assert_eq!(viewer.panels["line"]["data"]["bucket_s"], 30);
        let data = |id: &str| viewer.panels[id]["data"].clone();
        shown.push([data("latest"), data("types"), data("window:top_events")]);
        // It ends although the overview is open.
        server.stop();
    }
    assert_eq!(shown[0], shown[1]);
}

/// Enough for all presets together.
const MEMORY: &str = "[limits]\nmemory = \"2GiB\"\n";

/// A stream with names and types that no preset has.
const ODD: &str = r#"
[streams.odd]
schema = '''at timestamp not null, "<i>" varchar, name varchar, tags array<varchar>'''
select = '''select at as event_time, "<i>", name, tags from odd'''
count = { type = "<i>" }
search = { text = ["name", "tags"] }
session = { key = "name", gap = "1m" }
[windows.gaps]
sql = '''select window_start, window_end, name, count(*) as n from session(odd, event_time, interval '10 seconds', name) group by 1, 2, 3'''
"#;

#[test]
fn panels_follow_from_the_declaration() {
    let folder = TestFolder::new("");
    let presets = ["edits", "events", "rsvps", "sessions"]
        .map(|preset| format!("[streams.{preset}]\npreset = '{preset}'\n"));
    folder.configure(&format!("{FREE_PORT}{MEMORY}{}{ODD}", presets.concat()));
    let server = start(&folder);
    for (stream, expected) in [
        (
            "rsvps",
            "rate types by:country line window:by_country window:top_events window:totals top:topic_names top:group_name top:venue_name top:member_name latest health",
        ),
        (
            "edits",
            "rate types by:namespace line window:per_channel top:page top:user_name latest health",
        ),
        ("events", "rate types line window:per_type latest health"),
        ("sessions", "rate types by:product line latest health"),
        (
            "odd",
            "rate types line window:gaps top:tags top:name latest health",
        ),
    ] {
        let mut viewer = Viewer::new(&server, &format!("?stream={stream}"));
        assert_eq!(viewer.ids().join(" "), expected, "{stream}");
        let streams = json!(["edits", "events", "odd", "rsvps", "sessions"]);
        assert_eq!(viewer.layout["streams"], streams);
        // Each has data, also where there are no records yet.
        let ids = viewer.ids();
        viewer.wait("every panel has come", |panels| {
            ids.iter().all(|id| panels.contains_key(id))
        });
        for (id, panel) in &viewer.panels {
            assert!(
                panel["error"].is_null() && !panel["data"].is_null(),
                "{id}: {panel}"
            );
        }
    }
    server.stop();
}

#[test]
fn hostile_texts_stay_within_their_message() {
    let folder = TestFolder::new("");
    folder.configure(&format!("{FREE_PORT}{ODD}"));
    let server = start(&folder);
    let texts = [
        "</script><script>alert(1)</script>",
        "\r\n\r\nevent: panel\r\ndata: {\"id\":\"x\"}\r\n\r\n",
        "a\u{1f}b\u{10}",
        "\u{202e}\u{0}\u{2028}",
        "'; drop table odd; --",
    ];
    let long = "é".repeat(50_000);
    let at = "2024-05-01T10:00:00Z";
    let mut sent: Vec<Value> = texts
        .iter()
        .map(|text| json!({"at": at, "<i>": text, "name": text, "tags": [text, text]}))
        .collect();
    sent.push(json!({"at": at, "<i>": null, "name": null, "tags": null}));
    sent.push(json!({"at": at, "<i>": "long", "name": long, "tags": vec![long.as_str(); 5]}));
    let path = "/api/v1/streams/odd/events";
    let (status, answer) = server.request("POST", path, &[], &ndjson(&sent));
    assert_eq!((status, &answer["accepted"]), (200, &json!(7)), "{answer}");
    let mut viewer = Viewer::new(&server, "?stream=odd");
    let total = |panels: &BTreeMap<String, Value>, id: &str| {
        panels
            .get(id)
            .and_then(|panel| panel["data"]["total"].as_u64())
    };
    viewer.wait("all values are counted", |panels| {
        total(panels, "types") == Some(7)
            && total(panels, "top:name") == Some(6)
            && total(panels, "top:tags") == Some(15)
            && panels
                .get("latest")
                .is_some_and(|panel| !panel["data"]["rows"][6].is_null())
    });
    let values = |id: &str| -> Vec<Value> {
        let values = viewer.panels[id]["data"]["values"].as_array();
        values
            .into_iter()
            .flatten()
            .map(|v| v["value"].clone())
            .collect()
    };
    for text in texts {
        for id in ["types", "top:name", "top:tags"] {
            assert!(values(id).contains(&json!(text)), "{id}: {text:?}");
        }
    }
    assert!(values("types").contains(&Value::Null));
    let latest = &viewer.panels["latest"]["data"];
    assert_eq!(
        latest["columns"],
        json!(["event_time", "<i>", "name", "tags"])
    );
    assert!(
        latest.to_string().len() < 20_000,
        "long texts are shortened"
    );
    assert_eq!(latest["rows"][6]["<i>"], texts[0]);
    server.stop();
}

#[test]
fn wrong_parameters_are_refused() {
    let folder = TestFolder::new("");
    folder.configure(&format!("{FREE_PORT}{ODD}"));
    let server = start(&folder);
    for (query, status) in [
        ("?stream=nothing", 404),
        ("?minutes=6", 400),
        ("?minutes=5%00", 400),
        ("?stream=odd%27%20or%201", 404),
        ("?other=1", 400),
    ] {
        assert_eq!(
            Viewer::try_new(&server, query).err(),
            Some(status),
            "{query}"
        );
    }
    server.stop();
}

#[test]
fn clients_are_bounded_and_leave_their_places_to_others() {
    let folder = TestFolder::new("");
    folder.configure(FEW_CONNECTIONS);
    let server = start(&folder);
    let minutes = ["", "?minutes=30", "?minutes=180", ""];
    let mut viewers: Vec<Viewer> = minutes.map(|query| Viewer::new(&server, query)).into();
    assert_eq!(Viewer::try_new(&server, "").err(), Some(429));
    assert_eq!(server.post(&[], &ndjson(&records(100, 1))).0, 200);
    for (viewer, bucket) in viewers.iter_mut().zip([5, 30, 180, 5]) {
        viewer.wait("its line is the one that it asked for", |panels| {
            panels
                .get("line")
                .is_some_and(|line| line["data"]["bucket_s"] == bucket)
        });
    }
    drop(viewers);
    let mut again = None;
    wait_until("there is room again", || {
        again = Viewer::try_new(&server, "").ok();
        again.is_some()
    });
    let mut viewer = again.expect("an overview");
    viewer.wait("it is computed again", |panels| {
        panels.contains_key("latest")
    });
    server.stop();
}
