//! Entity tables against a recount, also by their files alone; dead letters that are resubmitted;
//! sessions that close while no record arrives.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use arrow::array::RecordBatch;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};
use weir::query::sql::to_ndjson;

use crate::server::{Server, start};
use crate::support::{
    FREE_PORT, FREQUENT_COMMITS, HTTP_ONLY, Lcg, TestFolder, ndjson, records, wait_until, weir,
};

/// The rows of a Delta table by its log and files alone.
fn read_delta(folder: &Path) -> Vec<Value> {
    let mut files: BTreeSet<String> = BTreeSet::new();
    let mut versions: Vec<_> = std::fs::read_dir(folder.join("_delta_log"))
        .expect("a log")
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "json"))
        .collect();
    versions.sort();
    for version in versions {
        for line in std::fs::read_to_string(version).expect("readable").lines() {
            let action: Value = serde_json::from_str(line).expect("JSON");
            if let Some(path) = action["add"]["path"].as_str() {
                files.insert(path.replace("%3D", "="));
            }
            if let Some(path) = action["remove"]["path"].as_str() {
                files.remove(&path.replace("%3D", "="));
            }
        }
    }
    let mut rows = Vec::new();
    for file in files {
        let opened = std::fs::File::open(folder.join(file)).expect("a file");
        let reader = ParquetRecordBatchReaderBuilder::try_new(opened)
            .and_then(|b| b.build())
            .expect("Parquet");
        for batch in reader {
            let batch: RecordBatch = batch.expect("rows");
            let lines = to_ndjson(&batch.schema(), &[batch]).expect("JSON");
            rows.extend(
                lines
                    .split(|b| *b == b'\n')
                    .filter(|l| !l.is_empty())
                    .map(|l| serde_json::from_slice::<Value>(l).expect("JSON")),
            );
        }
    }
    rows
}

/// Of each key the record with the greatest mtime, of equal ones the last.
fn latest<'a>(
    records: &'a [Value],
    key: impl Fn(&'a Value) -> Vec<(String, Value)>,
) -> BTreeMap<String, Value> {
    let mut out: BTreeMap<String, (i64, Value)> = BTreeMap::new();
    for record in records {
        let mtime = record["mtime"].as_i64().expect("a number");
        for (key, row) in key(record) {
            let known = out.entry(key).or_insert((i64::MIN, Value::Null));
            if mtime >= known.0 {
                *known = (mtime, row);
            }
        }
    }
    out.into_iter().map(|(key, (_, row))| (key, row)).collect()
}

#[test]
fn entities_are_the_latest_version_of_each_key_also_for_an_outside_reader() {
    // Committed often, so that buckets are rewritten many times.
    let folder = TestFolder::new(
        &FREQUENT_COMMITS.replace("lake_recent = \"40ms\"", "lake_recent = \"300ms\""),
    );
    let generated = weir()
        .args(["generate", "--count", "8000", "--seed", "5"])
        .output()
        .expect("records");
    folder.write("in.ndjson", &generated.stdout);
    folder.run_once();
    let records: Vec<Value> = String::from_utf8(generated.stdout)
        .expect("text")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let one = |record: &Value, object: &str, key: &str, fields: &[&str]| -> Vec<(String, Value)> {
        let part = if object.is_empty() {
            record
        } else {
            &record[object]
        };
        if part[key].is_null() {
            return Vec::new();
        }
        vec![(
            part[key].to_string(),
            fields.iter().map(|f| part[*f].clone()).collect(),
        )]
    };
    /// Tables, the object of a record that holds their fields, and these, the key first.
    const TABLES: [(&str, &str, &[&str]); 4] = [
        ("latest", "", &["rsvp_id", "response", "guests"]),
        ("members", "member", &["member_id", "member_name", "photo"]),
        ("events", "event", &["event_id", "event_name", "event_url"]),
        ("venues", "venue", &["venue_id", "venue_name"]),
    ];
    for (table, object, fields) in TABLES {
        let want = latest(&records, |r| one(r, object, fields[0], fields));
        let shown = |rows: &[Value]| -> BTreeMap<String, Value> {
            rows.iter()
                .map(|r| {
                    (
                        r[fields[0]].to_string(),
                        fields.iter().map(|f| r[*f].clone()).collect(),
                    )
                })
                .collect()
        };
        let found = folder.rows(&format!("select * from rsvps.{table}"));
        assert_eq!(found.len(), want.len(), "{table}: unique keys");
        assert_eq!(shown(&found), want, "{table}");
        let stored = read_delta(&folder.path(&format!("data/lake/rsvps.{table}")));
        assert_eq!(stored.len(), want.len(), "{table}: unique in its files");
        assert_eq!(shown(&stored), want, "{table}: its files");
    }
    assert_lists_are_unnested(&folder, &records);
    assert_keys_resolve(&folder);
}

/// Each topic has the name in the record with the greatest mtime, whichever other topics that record
/// lists.
fn assert_topics_are_latest(folder: &TestFolder, records: &[Value]) {
    let want = latest(records, |r| {
        let topics = r["group"]["group_topics"].as_array().expect("topics");
        topics
            .iter()
            .map(|t| (t["urlkey"].to_string(), t["topic_name"].clone()))
            .collect()
    });
    let shown = |rows: &[Value]| -> BTreeMap<String, Value> {
        rows.iter()
            .map(|r| (r["urlkey"].to_string(), r["topic_name"].clone()))
            .collect()
    };
    let found = folder.rows("select * from rsvps.topics");
    assert_eq!(found.len(), want.len(), "topics: unique keys");
    assert_eq!(shown(&found), want, "topics");
    assert_eq!(
        shown(&read_delta(&folder.path("data/lake/rsvps.topics"))),
        want,
        "topics: its files"
    );
}

/// Records of groups that contradict each other about their topics' names, and change them now and
/// then: `topics` of each group, of `all_topics`.
fn contradicting_topics(count: usize, groups: u64, topics: usize, all_topics: u64) -> Vec<Value> {
    let mut numbers = Lcg(3);
    let mut names: Vec<Vec<(u64, u64)>> = (0..groups)
        .map(|_| {
            (0..topics)
                .map(|_| (numbers.below(all_topics), numbers.below(3)))
                .collect()
        })
        .collect();
    let mut all = records(count, 12);
    for (n, record) in all.iter_mut().enumerate() {
        let group = &mut names[numbers.below(groups) as usize];
        if numbers.below(10) == 0 {
            group[numbers.below(topics as u64) as usize].1 = numbers.below(3);
        }
        // In no order of their versions, of which ten or so are equal.
        record["mtime"] =
            json!(1_465_520_400_000 + (n as u64 * 10 + numbers.below(400)) / 100 * 100);
        let topic = |(key, name): &(u64, u64)| json!({"urlkey": format!("t{key}"), "topic_name": format!("{key}, {name}")});
        record["group"]["group_topics"] = group.iter().map(topic).collect();
    }
    all
}

#[test]
fn of_contradicting_lists_the_greatest_version_is_stored() {
    let folder = TestFolder::new(FREQUENT_COMMITS);
    let all = contradicting_topics(4_000, 60, 10, 200);
    for end in [1_000, 2_500, 4_000] {
        folder.write("in.ndjson", &ndjson(&all[..end]));
        folder.run_once();
        assert_topics_are_latest(&folder, &all[..end]);
    }
}

#[test]
fn of_contradicting_lists_with_more_keys_than_are_remembered_the_greatest_version_is_stored() {
    // 20,000 topics, of which 16,384 are remembered; a fifth of them is sent by several groups.
    let folder = TestFolder::new("");
    let all = contradicting_topics(2_500, 500, 50, 60_000);
    for end in [1_200, 2_500] {
        folder.write("in.ndjson", &ndjson(&all[..end]));
        folder.run_once();
        assert_topics_are_latest(&folder, &all[..end]);
    }
}

fn assert_lists_are_unnested(folder: &TestFolder, records: &[Value]) {
    assert_topics_are_latest(folder, records);
    let pairs: BTreeSet<(i64, &str)> = records
        .iter()
        .flat_map(|r| {
            let group = r["group"]["group_id"].as_i64().expect("an id");
            let topics = r["group"]["group_topics"].as_array().expect("topics");
            topics
                .iter()
                .map(move |t| (group, t["urlkey"].as_str().expect("a key")))
        })
        .collect();
    assert_eq!(
        folder.number("select count(*) from rsvps.groups_topics"),
        pairs.len() as u64
    );
}

/// Every foreign key resolves, and no row has only nulls.
fn assert_keys_resolve(folder: &TestFolder) {
    for (from, column, to) in [
        ("latest", "event_id", "events"),
        ("latest", "member_id", "members"),
        ("latest", "group_id", "groups"),
        ("latest", "venue_id", "venues"),
        ("groups_topics", "group_id", "groups"),
        ("groups_topics", "urlkey", "topics"),
    ] {
        let query = format!(
            "select count(*) from rsvps.{from} a left join rsvps.{to} b on a.{column} = b.{column} where a.{column} is not null and b.{column} is null"
        );
        assert_eq!(folder.number(&query), 0, "{from}.{column}");
        assert_eq!(
            folder.number(&format!(
                "select count(*) from rsvps.{to} where {column} is null"
            )),
            0
        );
    }
}

fn post(server: &Server, path: &str, body: &str) -> Value {
    let (status, answer) = server.request("POST", path, &[], body.as_bytes());
    assert_eq!(status, 200, "{answer}");
    answer
}

const READINGS: &str = include_str!("../testdata/readings.toml");

#[test]
fn dead_letters_are_resubmitted_once_after_their_rule_is_fixed() {
    let folder = TestFolder::new("");
    folder.configure(READINGS);
    let line = |n: i64| {
        format!(
            "{{\"id\":\"r{n}\",\"at\":\"2024-05-01T10:00:{:02}Z\",\"value\":{}}}\n",
            n % 60,
            n % 7 - 3
        )
    };
    let body: String = (0..700).map(line).collect();
    let server = start(&folder);
    let answer = post(&server, "/api/v1/streams/readings/events", &body);
    assert_eq!(answer["rejected_total"], 400, "{answer}");
    wait_until("they are dead letters", || {
        folder.number("select count(*) from dead_letters") == 400
    });
    // Nothing was fixed: no dead letter succeeds.
    let answer = post(&server, "/api/v1/dead-letters/retry", "{}");
    assert_eq!(answer["retried"], 0, "{answer}");
    assert_eq!(answer["still_refused"]["value > 0"], 400);
    drop(server);
    folder.configure(&READINGS.replace("value > 0", "value > -2"));
    let server = start(&folder);
    // Three at once: each dead letter comes back once all the same.
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                post(
                    &server,
                    "/api/v1/dead-letters/retry",
                    "{\"reason\": \"value > 0\"}",
                )
            });
        }
    });
    wait_until("they are rows", || {
        folder.number("select count(*) from readings") >= 500
    });
    server.stop();
    let check = |folder: &TestFolder| {
        assert_eq!(folder.number("select count(*) from readings"), 500);
        assert_eq!(
            folder.number("select count(distinct id) from readings"),
            500
        );
        assert_eq!(
            folder.number("select count(*) from dead_letters where retried_lsn is not null"),
            200
        );
        let joined = "select count(*) from dead_letters d join readings r on r.lsn = d.retried_lsn where d.reason = 'value > 0' and r.value <= 0";
        assert_eq!(folder.number(joined), 200);
    };
    check(&folder);
    // Of a stopped folder too; nothing is left to come back.
    let again = folder.ask(&["dead-letters", "retry"]);
    assert_eq!(again["retried"], 0, "{again}");
    check(&folder);
    // Rebuilt under the fixed rule, each exists once: where it came first, and not where it
    // came back.
    folder.succeed(&["rebuild", "readings", "readings.sessions"]);
    assert_eq!(folder.number("select count(*) from readings"), 500);
    assert_eq!(
        folder.number("select count(distinct id) from readings"),
        500
    );
    assert_eq!(
        folder.number("select count(*) from readings where value <= 0 and lsn <= 701"),
        200
    );
}

#[test]
fn a_retry_that_is_killed_at_any_moment_duplicates_and_loses_nothing() {
    let folder = TestFolder::new("");
    folder.configure(READINGS);
    let line =
        |n: i64| format!("{{\"id\":\"r{n}\",\"at\":\"2024-05-01T10:00:00Z\",\"value\":-1}}\n");
    let body: String = (0..400).map(line).collect();
    let server = start(&folder);
    post(&server, "/api/v1/streams/readings/events", &body);
    server.stop();
    folder.configure(&READINGS.replace("value > 0", "value > -2"));
    let mut numbers = Lcg(8);
    for _ in 0..12 {
        let server = start(&folder);
        std::thread::scope(|scope| {
            let retry = || {
                server.request(
                    "POST",
                    "/api/v1/dead-letters/retry",
                    &[],
                    b"{\"limit\": 10}",
                )
            };
            drop(retry());
            scope.spawn(move || (0..3).for_each(|_| drop(retry())));
            std::thread::sleep(std::time::Duration::from_millis(numbers.below(120)));
            server.kill();
        });
    }
    let rest = folder.ask(&["dead-letters", "retry"])["retried"]
        .as_u64()
        .expect("a number");
    assert!(rest < 400, "some came back before");
    assert_eq!(folder.number("select count(*) from readings"), 400);
    assert_eq!(
        folder.number("select count(distinct id) from readings"),
        400
    );
    assert_eq!(
        folder.number("select count(*) from dead_letters where retried_lsn is not null"),
        400
    );
}

#[test]
fn a_session_closes_while_no_record_arrives() {
    let folder = TestFolder::new("");
    folder.configure(READINGS);
    let server = start(&folder);
    for second in [0, 1] {
        post(
            &server,
            "/api/v1/streams/readings/events",
            &format!("{{\"id\":\"a\",\"at\":\"2024-05-01T10:00:0{second}Z\",\"value\":1}}"),
        );
    }
    let status = |folder: &TestFolder| folder.rows("select status, events from readings.sessions");
    assert_eq!(status(&folder), [json!({"status": "open", "events": 2})]);
    wait_until("time passes without a record", || {
        status(&folder) == [json!({"status": "closed_timeout", "events": 2})]
    });
    assert!(folder.number("select count(*) from raw where kind = 'tick'") > 0);
    // Nothing is open any more: no tick is written.
    let ticks = || folder.number("select count(*) from raw where kind = 'tick'");
    let before = ticks();
    post(
        &server,
        "/api/v1/streams/readings/events",
        "{\"id\":\"b\",\"at\":\"2024-05-01T10:00:01Z\",\"value\":-1}",
    );
    assert!(ticks() <= before + 1);
}

/// Missing, malformed and reversed parameters are refused in that API's own words.
fn check_refused_parameters(server: &Server) {
    let get = |path: &str| server.get(&format!("/getsocial/events/{path}"));
    for wrong in [
        "count/?event_type=login&start_time=x&end_time=2",
        "count/?event_type=%20&start_time=1&end_time=2",
        "count/?start_time=1&end_time=2",
        "getallevents/?start_time=1",
    ] {
        let (status, answer) = get(wrong);
        assert_eq!(status, 400, "{wrong}");
        assert_eq!(
            answer["reason"],
            "Event Type / Start time / End time is missing /invalid. please check input parameters again"
        );
    }
    let (status, answer) = get("getallevents/?start_time=5&end_time=4");
    assert_eq!(
        (status, &answer["reason"]),
        (
            400,
            &json!("Start time must be less than end time. Please check input params")
        )
    );
}

#[test]
fn the_older_api_answers_as_its_clients_expect() {
    let folder = TestFolder::new("");
    folder.configure(&format!("{FREE_PORT}[streams.events]\npreset = 'events'\n"));
    let server = start(&folder);
    let event = |kind: &str, ts: i64, city: &str| {
        format!(
            "{{\"event_type\":\"{kind}\",\"ts\":{ts},\"params\":{{\"city\":\"{city}\",\"n\":{ts}}}}}\n"
        )
    };
    let body = [
        event("login", 100 + 1_465_552_000, "New York"),
        event("login", 100 + 1_465_552_000, "Oslo"),
        event("logout", 101 + 1_465_552_000, "Oslo"),
    ]
    .concat();
    post(&server, "/api/v1/streams/events/events", &body);
    wait_until("they are counted", || {
        folder.ask(&["count", "--duplicates"])["count"] == 3
    });
    wait_until("they are found", || {
        folder.ask(&["search", "event_type:login"])["total"] == 2
    });
    let get = |path: &str| server.get(&format!("/getsocial/events/{path}"));
    let (status, answer) = get("count/?event_type=login&start_time=1465552100&end_time=1465552100");
    assert_eq!(
        (status, &answer["result"], &answer["status"]),
        (200, &json!(2), &json!("SUCCESS"))
    );
    assert!(
        answer["timeStamp"]
            .as_i64()
            .is_some_and(|t| t > 1_600_000_000_000)
    );
    check_refused_parameters(&server);
    let (_, answer) = get("getallevents/?start_time=1465552100&end_time=1465552101");
    let events = answer["result"].as_array().expect("events");
    assert_eq!(events.len(), 3);
    assert_eq!(
        events[0]["params"],
        json!({"city": "New York", "n": "1465552100"})
    );
    assert_eq!(
        (&events[2]["event_type"], &events[2]["ts"]),
        (&json!("logout"), &json!(1_465_552_101))
    );
    for (text, total) in [
        ("oslo", 2),
        ("params.city:Oslo", 2),
        ("params.city:york", 0),
        ("params.city:\"new york\"", 1),
        ("params:york", 1),
    ] {
        assert_eq!(folder.ask(&["search", text])["total"], total, "{text}");
    }
    assert_eq!(
        folder.rows("select params['city'] as city from events order by lsn limit 1"),
        [json!({"city": "New York"})]
    );
    let (status, answer) = server.get("/api/v1/windows/per_type");
    assert_eq!(status, 200);
    assert_eq!(answer["rows"].as_array().map(Vec::len), Some(2), "{answer}");
    assert_eq!(server.get("/api/v1/windows/nothing").0, 404);
}

#[test]
fn sample_records_are_shown_and_compared_without_any_data() {
    let folder = TestFolder::new("");
    folder.configure(HTTP_ONLY);
    let record = json!({"rsvp_id": 1, "mtime": 1_465_520_400_000_i64, "response": "yes", "guests": 0, "event": {"event_id": "e"}});
    folder.write("one.json", record.to_string().as_bytes());
    folder.write(
        "two.json",
        format!("[{record}, {{\"rsvp_id\": 2}}]").as_bytes(),
    );
    let shown = folder.ask(&["test", &folder.path("two.json").display().to_string()]);
    assert_eq!(shown["records"][0]["row"]["event_id"], "e");
    assert_eq!(shown["records"][0]["windows"][0]["window"], "by_country");
    assert_eq!(shown["records"][1]["rejected"], "mtime: missing");
    folder.write(
        "suite.toml",
        br#"
[[test]]
name = "a yes"
file = "one.json"
final = true
expect.windows.totals = [{ answer = "yes", n = 1, status = "final" }]
[[test]]
name = "a no"
file = "one.json"
expect.records = [{ row.response = "no" }]
"#,
    );
    let output = folder.output(&[
        "test",
        "--suite",
        &folder.path("suite.toml").display().to_string(),
    ]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("ok     a yes")
            && text.contains("FAILED a no")
            && text.contains("records[0].row.response: \"yes\" instead of \"no\""),
        "{text}"
    );
    assert!(!folder.path("data").exists());
}
