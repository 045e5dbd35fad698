//! Sessions of a stream: their five cases, their definition word for word, and their bounds.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::support::{TestFolder, file_source};
use crate::windows::{
    SECOND, START, STREAM, TestEvent, catalog, check_any_split, generate, milliseconds, watermarks,
};

fn visit(inst: &str, action: &str, at: i64) -> String {
    format!(
        "{{\"build_id\":\"10.3.5.34\",\"inst_id\":\"{inst}\",\"trialstate\":\"Trial\",\"action\":\"{action}\",\"timestamp\":{at}}}\n"
    )
}

#[test]
fn sessions_open_and_close_in_their_five_cases() {
    let folder = TestFolder::new("");
    let source = file_source("visits");
    folder.configure(&format!(
        r#"{source}
[streams.visits]
preset = "sessions"
"#
    ));
    let cases = [
        ("A", "prostarted", 1_486_250_584),
        ("A", "proedit", 1_486_250_694),
        ("B", "prostarted", 1_486_250_722),
        ("B", "prostarted", 1_486_250_795),
        ("A", "proedit", 1_486_260_694),
    ];
    let text: String = cases
        .iter()
        .map(|(inst, action, at)| visit(inst, action, *at))
        .collect();
    folder.write("visits.ndjson", text.as_bytes());
    folder.run_once();
    let sessions = |folder: &TestFolder| {
        folder.rows("select key, status, events, duration_s, first, last from visits.sessions order by started")
    };
    let row = |key: &str, status: &str, events: u64, seconds: f64, first: &str, last: &str| json!({"key": key, "status": status, "events": events, "duration_s": seconds, "first": first, "last": last});
    let mut want = vec![
        row("A", "closed_timeout", 2, 110.0, "prostarted", "proedit"),
        row(
            "B",
            "closed_on_open_event",
            1,
            0.0,
            "prostarted",
            "prostarted",
        ),
        row("B", "open", 1, 0.0, "prostarted", "prostarted"),
        row("A", "open", 1, 0.0, "proedit", "proedit"),
    ];
    assert_eq!(sessions(&folder), want);
    // Each event has the id of its session, and ids are unique.
    let events =
        folder.rows("select session_id, count(*) as n from visits group by 1 order by 2 desc");
    assert_eq!(
        events.iter().map(|e| e["n"].as_u64()).collect::<Vec<_>>(),
        [Some(2), Some(1), Some(1), Some(1)]
    );
    // A second run resumes where the first one stopped; its end closes everything.
    let more = format!("{text}{}", visit("A", "proedit", 1_486_262_494));
    folder.write("visits.ndjson", more.as_bytes());
    folder.succeed(&["run", "--once", "--final"]);
    want[2] = row("B", "closed_timeout", 1, 0.0, "prostarted", "prostarted");
    // Exactly 1,800 seconds later is not later than the gap.
    want[3] = row("A", "closed_timeout", 2, 1_800.0, "proedit", "proedit");
    assert_eq!(sessions(&folder), want);
}

#[test]
fn sessions_are_those_of_their_definition_for_any_split_into_frames() {
    let session = r#"session = { key = "k", gap = "4s", opens = "v > 35", track = "k" }"#;
    let catalog = catalog(&format!("{STREAM}{session}\n"));
    for seed in 0..3 {
        let records = generate(900, 700 + seed);
        let tables = check_any_split(&catalog, &records, true);
        let mut found: Vec<(String, i64, i64, u64, String)> = tables["ev.sessions"]
            .iter()
            .map(|row| {
                let row: Value = serde_json::from_str(row).expect("JSON");
                let at = |name: &str| milliseconds(row[name].as_str().expect("a time"));
                let text = |name: &str| row[name].as_str().expect("text").to_owned();
                (
                    text("key"),
                    at("started"),
                    at("ended"),
                    row["events"].as_u64().expect("a number"),
                    text("status"),
                )
            })
            .collect();
        found.sort();
        let mut want = sessions_by_definition(&records);
        want.sort();
        assert_eq!(found, want, "seed {seed}");
    }
}

#[test]
fn above_max_open_the_session_idle_for_longest_is_closed() {
    let session = r#"session = { key = "t", gap = "1h", max_open = 20 }"#;
    let catalog = catalog(&format!("{STREAM}{session}\n"));
    let records = generate(400, 900);
    let tables = check_any_split(&catalog, &records, true);
    let rows: Vec<Value> = tables["ev.sessions"]
        .iter()
        .map(|row| serde_json::from_str(row).expect("JSON"))
        .collect();
    let ids: BTreeSet<String> = rows.iter().map(|r| r["session_id"].to_string()).collect();
    assert_eq!(ids.len(), rows.len(), "each is reported once");
    assert_eq!(
        rows.iter()
            .map(|r| r["events"].as_u64().expect("a number"))
            .sum::<u64>(),
        400
    );
    assert!(rows.iter().filter(|r| r["status"] == "abandoned").count() > 300);
    assert_eq!(
        rows.iter()
            .filter(|r| r["status"] == "closed_timeout")
            .count(),
        20
    );
}

#[test]
fn long_keys_of_sessions_are_shortened_and_stay_distinct() {
    let folder = TestFolder::new("");
    let source = file_source("long");
    folder.configure(&format!(
        r#"{source}
[streams.long]
schema = "k varchar, t bigint not null"
select = "select to_timestamp_millis(t) as event_time, k, t from long"
session = {{ key = "k", gap = "1h", track = "k" }}
"#
    ));
    let long = "é".repeat(40_000);
    let record =
        |end: &str, n: i64| json!({"k": format!("{long}{end}"), "t": START + n}).to_string();
    let lines: Vec<String> = [("a", 0), ("b", 1), ("a", 2)]
        .iter()
        .map(|(end, n)| record(end, *n))
        .collect();
    folder.write("long.ndjson", (lines.join("\n") + "\n").as_bytes());
    folder.run_once();
    let rows = folder
        .rows("select events, length(key) as l, session_id from long.sessions order by events");
    assert_eq!(
        rows.iter()
            .map(|r| r["events"].as_u64())
            .collect::<Vec<_>>(),
        [Some(1), Some(2)]
    );
    assert!(
        rows.iter()
            .all(|r| r["l"].as_u64().is_some_and(|l| l < 100)),
        "{rows:?}"
    );
    let joined = "select count(*) from long l join long.sessions s on l.session_id = s.session_id";
    assert_eq!(folder.number(joined), 3);
}

/// Key, start, end, events, status of every session, by their definition, word for word.
fn sessions_by_definition(records: &[TestEvent]) -> Vec<(String, i64, i64, u64, String)> {
    const GAP: i64 = 4 * SECOND;
    type Open = (i64, i64, u64);
    let mut open: BTreeMap<&str, Open> = BTreeMap::new();
    let mut ended: BTreeMap<&str, i64> = BTreeMap::new();
    let mut out = Vec::new();
    let row = |key: &str, (start, end, events): Open, status: &str| {
        (key.to_owned(), start, end, events, status.to_owned())
    };
    let watermarks = watermarks(records);
    for (n, record) in records.iter().enumerate() {
        let TestEvent { k, t, v, .. } = *record;
        let opens = v > 35;
        match open.get_mut(k) {
            Some((start, _, _)) if t < *start - GAP => out.push(row(k, (t, t, 1), "late")),
            Some(session) if !opens && t <= session.1 + GAP => {
                *session = (session.0.min(t), session.1.max(t), session.2 + 1);
            }
            Some(session) => {
                let status = if t > session.1 + GAP {
                    "closed_timeout"
                } else {
                    "closed_on_open_event"
                };
                out.push(row(k, std::mem::replace(session, (t, t, 1)), status));
            }
            None => {
                let is_over = watermarks[n].is_some_and(|w| t + GAP < w);
                let is_for_closed = !opens && ended.get(k).is_some_and(|end| t <= end + GAP);
                if is_over || is_for_closed {
                    out.push(row(k, (t, t, 1), "late"));
                } else {
                    open.insert(k, (t, t, 1));
                }
            }
        }
        if let Some(watermark) = watermarks[n + 1] {
            for (k, session) in open.clone() {
                if session.1 + GAP < watermark {
                    out.push(row(k, session, "closed_timeout"));
                    ended.insert(k, session.1);
                    open.remove(k);
                }
            }
        }
    }
    out.extend(
        open.into_iter()
            .map(|(k, session)| row(k, session, "closed_timeout")),
    );
    out
}
