//! Answers are complete or rejected, for each verb and format, however large they are when they are
//! serialized.

use serde_json::{Value, json};

use crate::server::{Server, start};
use crate::support::{HTTP_ONLY, TestFolder, ndjson, records, wait_until};

fn with_limits(limits: &str) -> TestFolder {
    let folder = TestFolder::new("");
    folder.configure(&format!(
        r#"{HTTP_ONLY}
[streams.events]
preset = "events"
[limits]
{limits}
"#
    ));
    folder
}

fn sql(server: &Server, query: &str, format: &str) -> (u16, Value) {
    let body = json!({"sql": query, "format": format}).to_string();
    server.request("POST", "/api/v1/sql", &[], body.as_bytes())
}

fn events(kinds: usize) -> Vec<u8> {
    let event = |n: usize| json!({"event_type": format!("kind-{n}"), "ts": 1_714_557_600, "params": {"p": "x".repeat(100)}});
    (0..kinds)
        .flat_map(|n| format!("{}\n", event(n)).into_bytes())
        .collect()
}

fn fill(server: &Server) {
    let (status, answer) = server.post(&[], &ndjson(&records(2_000, 9)));
    assert_eq!(status, 200, "{answer}");
    let (status, answer) =
        server.request("POST", "/api/v1/streams/events/events", &[], &events(300));
    assert_eq!(status, 200, "{answer}");
    wait_until("every view is up to date", || {
        let status = server.get("/api/v1/status").1;
        status["views"]
            .as_array()
            .is_some_and(|views| views.iter().all(|view| view["lag"] == 0))
    });
}

/// Whether an answer names the limit that it is over.
fn names(answer: &(u16, Value), limit: &str) -> bool {
    let text = answer.1["error"]["message"]
        .as_str()
        .or(answer.1["reason"].as_str())
        .unwrap_or_default();
    answer.0 == 400 && text.contains(limit)
}

/// Limits that answers of these tests exceed.
const LIMITS: &str = r#"
sql_result = "80KiB"
sql_rows = 250
"#;

/// A query whose column names make its JSON larger than its values do.
fn long_names() -> String {
    let name = "n".repeat(2_000);
    format!("select value as {name} from generate_series(1, 200)")
}

#[test]
fn a_result_over_its_limit_names_it_in_every_format() {
    let folder = with_limits(LIMITS);
    let server = start(&folder);
    let long_names = long_names();
    let escapes = "select repeat(chr(1), 1000) as x from generate_series(1, 40)";
    let name = "n".repeat(2_000);
    let nested = format!("select array_repeat(named_struct('{name}', 1), 150) as x");
    let long = "select repeat('x', 1000) as x from generate_series(1, 200)";
    for (format, queries) in [
        ("json", vec![&*long_names, escapes, &*nested, long]),
        ("ndjson", vec![&*long_names, escapes, &*nested, long]),
        ("csv", vec![&*nested, long]),
        ("arrow", vec![long]),
        ("parquet", vec![long]),
    ] {
        for query in queries {
            let answer = sql(&server, query, format);
            assert!(
                names(&answer, "[limits] sql_result"),
                "{format}: {answer:?}"
            );
        }
    }
    server.stop();
}

#[test]
fn an_answer_over_its_limit_names_it_for_every_verb() {
    let folder = with_limits(LIMITS);
    let server = start(&folder);
    fill(&server);
    let range = "start_time=1714557000&end_time=1714558000";
    for (path, limit) in [
        (
            "/api/v1/count?stream=events&by=event_type".to_owned(),
            "[limits] sql_rows",
        ),
        (
            "/api/v1/count?stream=events&by=event_type&to=2030-01-01T00:00:00.5Z".to_owned(),
            "[limits] sql_rows",
        ),
        (
            "/api/v1/search?stream=rsvps&q=fun&limit=200".to_owned(),
            "[limits] sql_result",
        ),
        (
            "/api/v1/nearby?stream=rsvps&lat=40.7&lon=-74&limit=1000".to_owned(),
            "[limits] sql_result",
        ),
        (
            format!("/getsocial/events/getallevents/?{range}"),
            "[limits] sql_",
        ),
    ] {
        let answer = server.get(&path);
        assert!(
            names(&answer, limit),
            "{path}: {} {}",
            answer.0,
            answer.1.to_string().len()
        );
    }
    // Answers within the limits, also if there are many groups that are not asked for.
    for path in [
        "count?stream=events",
        "count?stream=events&to=2030-01-01T00:00:00.5Z",
        "search?stream=rsvps&q=fun&limit=2",
    ] {
        assert_eq!(server.get(&format!("/api/v1/{path}")).0, 200, "{path}");
    }
    assert_eq!(
        server
            .get("/api/v1/count?stream=events&type=kind-7&by=event_type")
            .1["groups"][0]["count"],
        1
    );
    assert_eq!(
        sql(&server, "select 1 as n", "json").1["rows"],
        json!([{"n": 1}])
    );
    // The same limits hold for a folder that is read without a server.
    server.stop();
    let output = folder.output(&["sql", &long_names()]);
    assert!(
        !output.status.success()
            && String::from_utf8_lossy(&output.stderr).contains("[limits] sql_result")
    );
    let output = folder.output(&["count", "--stream", "events", "--by", "event_type"]);
    assert!(
        !output.status.success()
            && String::from_utf8_lossy(&output.stderr).contains("[limits] sql_rows")
    );
}

#[test]
fn a_long_result_is_complete_in_every_format() {
    let folder = with_limits(r#"sql_result = "16MiB""#);
    let server = start(&folder);
    fill(&server);
    let query = "select lsn, rsvp_id, topics, response from rsvps order by lsn";
    let rows = sql(&server, query, "json").1["rows"]
        .as_array()
        .expect("rows")
        .clone();
    assert_eq!(rows.len(), 2_000);
    let lines = sql(&server, query, "ndjson").1;
    let lines: Vec<Value> = lines
        .as_str()
        .expect("text")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines, rows);
    let csv = sql(&server, query, "csv")
        .1
        .as_str()
        .expect("text")
        .to_owned();
    let (head, body) = csv.split_once('\n').expect("a header");
    assert_eq!(
        (head, body.lines().count()),
        ("lsn,rsvp_id,topics,response", 2_000)
    );
    let listed = rows.iter().zip(body.lines()).all(|(row, line)| {
        let topics = row["topics"].to_string();
        let quoted = if topics == "null" {
            String::new()
        } else {
            format!("\"{}\"", topics.replace('"', "\"\""))
        };
        line == format!(
            "{},{},{quoted},{}",
            row["lsn"],
            row["rsvp_id"],
            row["response"].as_str().unwrap_or_default()
        ) || line
            == format!(
                "{},{},{topics},{}",
                row["lsn"],
                row["rsvp_id"],
                row["response"].as_str().unwrap_or_default()
            )
    });
    assert!(listed, "{}", body.lines().next().unwrap_or_default());
    let nested =
        "select [1, null] as l, named_struct('a', 'x,y') as r, named_struct('l', [true]) as d";
    let csv = sql(&server, nested, "csv").1;
    assert_eq!(
        csv,
        json!("l,r,d\n\"[1,null]\",\"{\"\"a\"\":\"\"x,y\"\"}\",\"{\"\"l\"\":[true]}\"\n")
    );
    assert_eq!(sql(&server, "select 1 as n", "xml").0, 400);
    assert_nothing_spilled(&folder);
    server.stop();
}

#[test]
fn a_long_answer_is_complete_on_every_route() {
    let folder = with_limits(r#"sql_result = "16MiB""#);
    let server = start(&folder);
    fill(&server);
    let windows = server.get("/api/v1/windows/by_country?limit=100000").1;
    assert_eq!(windows["window"], "by_country");
    assert!(
        windows["rows"]
            .as_array()
            .is_some_and(|rows| !rows.is_empty())
            && windows["as_of"].is_object()
    );
    let page = server
        .get("/getsocial/events/getallevents/?start_time=1714557000&end_time=1714558000")
        .1;
    assert_eq!(page["result"].as_array().map(Vec::len), Some(300));
    let by = server.get("/api/v1/count?stream=events&by=event_type").1;
    assert_eq!(
        (&by["count"], by["groups"].as_array().map(Vec::len)),
        (&json!(300), Some(300))
    );
    assert_nothing_spilled(&folder);
    server.stop();
}

/// Checks that no file of an answer is left.
fn assert_nothing_spilled(folder: &TestFolder) {
    let left: Vec<_> = std::fs::read_dir(folder.path("data/spill"))
        .into_iter()
        .flatten()
        .flatten()
        .collect();
    assert!(left.iter().all(|entry| entry.path().is_dir()), "{left:?}");
}

/// Statements with a mistake, and parts of their messages.
const MISTAKES: [(&str, &[&str]); 13] = [
    (
        "select sum(country) from rsvps",
        &[
            "line 1, column 8: `sum(varchar)` is not possible; available: ",
            "`cast(x as …)`",
        ],
    ),
    (
        "select 1 +",
        &["line 1, column 11: ", "the end of the text"],
    ),
    (
        "select 'a' + interval '1 day'",
        &["line 1, column 12: ", "is not possible"],
    ),
    (
        "select country + 1 from rsvps",
        &["line 1, column 8: `varchar + bigint` is not possible"],
    ),
    ("select 1 /\n 0", &["line 1, column 10: division by zero"]),
    (
        "select guests / 0 from rsvps",
        &["line 1, column 15: division by zero", "nullif"],
    ),
    (
        "select cast(country as bigint) from rsvps",
        &["line 1, column 21: ", "`try_cast` gives null"],
    ),
    (
        "select country::bigint from rsvps",
        &["line 1, column 15: ", "cannot be cast to bigint"],
    ),
    (
        "select cast('abc' as bigint)",
        &["line 1, column 13: 'abc' cannot be cast to bigint"],
    ),
    (
        "select upper(1, 2)",
        &["line 1, column 8: `upper(bigint, bigint)` is not possible"],
    ),
    (
        "select date_trunc(event_time) from rsvps",
        &["line 1, column 8: ", "expects 2 arguments"],
    ),
    (
        "select foo() over () from rsvps",
        &["line 1, column 8: Invalid function 'foo'"],
    ),
    (
        "select * from rsvps where country",
        &["line 1, column 27: the condition must be a boolean"],
    ),
];

/// Mistakes in SQL have a place, where it can be found, and a next step; nothing asks to report a
/// bug of the planner.
#[test]
fn errors_in_sql_say_where_and_what_to_do() {
    let folder = TestFolder::new("");
    folder.configure(HTTP_ONLY);
    let server = start(&folder);
    assert_eq!(server.post(&[], &ndjson(&records(40, 1))).0, 200);
    wait_until("the rows are visible", || {
        sql(&server, "select count(*) as n from rsvps", "json").1["rows"][0]["n"] == 40
    });
    for (query, parts) in MISTAKES {
        let (status, answer) = sql(&server, query, "json");
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert_eq!(status, 400, "{query}: {answer}");
        for part in parts {
            assert!(message.contains(part), "{query}: {part}: {message}");
        }
        for part in ["DataFusion", "bug", "Internal", "\t", "\n"] {
            assert!(!message.contains(part), "{query}: {message}");
        }
    }
    let message = folder.fail(&["sql", "select sum(country) from rsvps"], 2);
    assert!(
        message.starts_with("weir: line 1, column 8: `sum(varchar)`"),
        "{message}"
    );
}
