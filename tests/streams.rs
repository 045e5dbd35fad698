//! Streams defined only by their declaration, and records that do not match it.

use std::io::Write;
use std::process::Stdio;

use crate::support::{TestFolder, file_source};

const SENSORS: &str = include_str!("../testdata/sensors.toml");

#[test]
fn a_declared_stream_works_end_to_end() {
    let folder = TestFolder::new("");
    folder.configure(SENSORS);
    let lines = [
        r#"{"id":"a","at":"2024-05-01T10:00:00Z","kind":"air","note":"warm room","reading":{"value":21,"unit":"C"},"tags":["hall","north"]}"#,
        r#"{"id":"a","at":"2024-05-01T10:00:00.400Z","kind":"air","note":"warm room","reading":{"value":21.0,"unit":"C"},"tags":null}"#,
        r#"{"id":7,"at":"2024-05-01T12:00:00+01:00","kind":"soil","note":"wet","reading":{"value":8,"unit":"F"},"extra":1}"#,
        r#"{"id":"b","at":"2024-05-01T11:00:01Z","kind":"soil","note":"hot","reading":{"value":2000,"unit":"F"}}"#,
        r#"{"id":"b","at":"2024-05-01T11:00:01Z","kind":"soil","note":"odd","reading":{"value":5,"unit":null}}"#,
        r#"{"id":"c","at":"2024-05-01T11:00:01Z","note":"","reading":{"value":5,"unit":"C"}}"#,
        r#"{"id":null,"at":"2024-05-01T11:00:01Z"}"#,
        r#"{"id":"d","at":"yesterday"}"#,
        r#"{"id":"e","at":"2024-05-01T11:00:01Z","reading":{"value":"five"}}"#,
        r#"{"id":"f","#,
        r"[]",
        r#""text""#,
        "42",
    ];
    folder.write("in.ndjson", (lines.join("\n") + "\n").as_bytes());
    folder.run_once();
    let rows = folder.rows(
        "select id, kind, value, is_duplicate, event_time, density from sensors order by lsn",
    );
    assert_eq!(rows.len(), 3, "{rows:?}");
    assert_eq!(rows[0]["kind"], "AIR");
    assert_eq!(
        (
            rows[0]["is_duplicate"].as_bool(),
            rows[1]["is_duplicate"].as_bool()
        ),
        (Some(false), Some(true))
    );
    assert_eq!(rows[2]["id"], "7");
    assert_eq!(rows[2]["event_time"], "2024-05-01T11:00:00.000Z");
    let reasons = folder.rows("select reason from dead_letters order by lsn");
    let reasons: Vec<&str> = reasons
        .iter()
        .filter_map(|r| r["reason"].as_str())
        .collect();
    insta::assert_snapshot!(reasons.join("\n"));
    assert_eq!(
        folder.ask(&["count", "--by", "unit"])["groups"][0]["unit"],
        "C"
    );
    assert_eq!(folder.ask(&["count", "--type", "AIR"])["count"], 1);
    assert_eq!(folder.ask(&["search", "north warm"])["total"], 1);
    assert_eq!(
        folder.ask(&["search", "id:7"])["hits"][0]["event"]["note"],
        "wet"
    );
    let drift = folder.rows("select field, records from weir.drift");
    assert_eq!(drift[0]["field"], "extra");
}

#[test]
fn standard_input_is_a_source() {
    let folder = TestFolder::new("");
    folder.configure(&SENSORS.replace("in.ndjson", "-"));
    let mut child = folder
        .command(&["run", "--once"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let line = r#"{"id":"a","at":"2024-05-01T10:00:00Z","kind":"air","note":"x","reading":{"value":1,"unit":"C"}}"#;
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(line.as_bytes())
        .expect("writable");
    assert!(child.wait().expect("it ends").success());
    assert_eq!(folder.number("select count(*) from sensors"), 1);
}

#[test]
fn a_changed_configuration_applies_from_its_record_on() {
    let folder = TestFolder::new("");
    folder.configure(SENSORS);
    let line = |n: u32| {
        format!(
            "{{\"id\":\"a{n}\",\"at\":\"2024-05-01T10:00:{n:02}Z\",\"kind\":\"air\",\"note\":\"x\",\"reading\":{{\"value\":{n},\"unit\":\"C\"}}}}\n"
        )
    };
    folder.write("in.ndjson", line(1).as_bytes());
    folder.run_once();
    let changed = SENSORS
        .replace("tags, 10", "tags, value_squared, 10")
        .replace(
            "value_squared",
            "reading['value'] * reading['value'] as squared",
        );
    folder.configure(&changed);
    folder.write("in.ndjson", (line(1) + line(2).as_str()).as_bytes());
    folder.run_once();
    let rows = folder.rows("select squared from sensors order by lsn");
    assert_eq!(
        (rows[0]["squared"].is_null(), rows[1]["squared"].as_f64()),
        (true, Some(4.0))
    );
    // A change that the table does not support is rejected, with a fix.
    folder.configure(
        &changed
            .replace("upper(kind) as kind", "upper(kind) as kind, 1 as value2")
            .replace("reading['unit'] as unit", "3 as unit")
            .replace("\"unit in ('C', 'F')\"", ""),
    );
    folder.fail(&["run", "--once"], 2);
}

fn window(sql: &str) -> String {
    format!(
        r#"{SENSORS}[windows.w]
sql = "{sql}"
"#
    )
}

fn table(select: &str) -> String {
    format!(
        r#"{SENSORS}
[tables."sensors.kinds"]
stream = "sensors"
key = "kind"
select = "{select}"
"#
    )
}

#[test]
fn an_entity_table_has_the_rows_that_its_where_lets_through() {
    let folder = TestFolder::new("");
    let line = |n: u32, kind: &str| {
        format!(
            "{{\"id\":\"a{n}\",\"at\":\"2024-05-01T10:00:{n:02}Z\",\"kind\":\"{kind}\",\"note\":\"x\",\"reading\":{{\"value\":{n},\"unit\":\"C\"}},\"tags\":[\"t{n}\",\"all\"]}}\n"
        )
    };
    let lines = [
        line(1, "air"),
        line(12, "air"),
        line(20, "soil"),
        line(3, "soil"),
        line(5, "water"),
    ];
    folder.write("in.ndjson", lines.concat().as_bytes());
    let tags = r#"
[tables."sensors.tags"]
stream = "sensors"
key = "tag"
select = "select unnest(tags) as tag, id where unnest(tags) <> 'all' and value > 2"
"#;
    folder.configure(&(table("select kind, value where value > 10") + tags));
    folder.run_once();
    let kinds = folder.rows("select kind, value from sensors.kinds order by kind");
    let kinds: Vec<_> = kinds
        .iter()
        .map(|row| (row["kind"].as_str(), row["value"].as_f64()))
        .collect();
    assert_eq!(
        kinds,
        [(Some("AIR"), Some(12.0)), (Some("SOIL"), Some(20.0))]
    );
    let tags = folder.rows("select tag from sensors.tags order by tag");
    let tags: Vec<_> = tags.iter().filter_map(|row| row["tag"].as_str()).collect();
    assert_eq!(tags, ["t12", "t20", "t3", "t5"]);
}

fn invalid_declarations() -> Vec<String> {
    vec![
        SENSORS.replace("upper(kind)", "uper(kind)"),
        SENSORS.replace("upper(kind)", "count(kind)"),
        SENSORS.replace("upper(kind)", "random()"),
        SENSORS.replace("from sensors\"", "from sensors limit 3\""),
        SENSORS.replace("at as event_time, ", ""),
        SENSORS.replace("value < 1000", "valu < 1000"),
        SENSORS.replace("value < 1000", "value"),
        SENSORS.replace("text = [\"note\"", "text = [\"nite\""),
        SENSORS.replace("id varchar", "id varchr"),
        SENSORS.replace("key = \"id\"", ""),
        SENSORS.replace("note, reading", "note as lsn, reading"),
        SENSORS.replace(
            "key = \"id\"",
            "key = \"id\"\nsession = { key = \"nobody\", gap = \"5m\" }",
        ),
        SENSORS.replace(
            "key = \"id\"",
            "key = \"id\"\nsession = { key = \"id\", gap = \"0s\" }",
        ),
        window("select count(*) as n from sensors"),
        window(
            "select window_start, window_end, count(*) as n from tumble(sensor, event_time, interval '1 minute') group by 1, 2",
        ),
        window(
            "select window_start, window_end, count(*) as n from tumble(sensors, at, interval '1 minute') group by 1, 2",
        ),
        window(
            "select window_start, window_end, count(*) as n from tumble(sensors, event_time, interval '1 month') group by 1, 2",
        ),
        window(
            "select window_start, count(*) as n from tumble(sensors, event_time, interval '1 minute') group by 1",
        ),
        window(
            "select window_start, window_end, kidn, count(*) as n from tumble(sensors, event_time, interval '1 minute') group by 1, 2, 3",
        ),
        window(
            "select window_start, window_end, count(*) as n from session(sensors, event_time, interval '1 minute') group by 1, 2",
        ),
        window(
            "select window_start, window_end, count(*) as n from tumble(w, window_start, interval '1 minute') group by 1, 2",
        ),
        window(
            "select window_start, window_end, count(*) as n from tumble(sensors, event_time, interval '1 minute') group by 1, 2, kind",
        ),
        window(
            "select window_start, window_end, now() as n from tumble(sensors, event_time, interval '1 minute') group by 1, 2",
        ),
    ]
}

fn more_invalid_declarations() -> Vec<String> {
    vec![
        SENSORS.replace("upper(kind)", "(select max(kind) from sensors)"),
        SENSORS.replace("from sensors\"", "from sensors order by id\""),
        SENSORS.replace("[\"value < 1000", "[\"value > 0\", \"vallue < 1000"),
        format!(
            r#"{SENSORS}
[windows.w]
sql = """
select window_start, window_end,
  count(*) as n, kidn
from tumble(sensors, event_time, interval '1 minute')
group by 1, 2, kidn
"""
"#
        ),
        format!(
            r#"{SENSORS}
[windows.w]
sql = '''select window_start,
 window_end from hop(sensors, event_time)'''
"#
        ),
        format!(
            r#"{SENSORS}
[windows.a]
sql = "select window_start, window_end, count(*) as n from tumble(b, window_start, interval '1 minute') group by 1, 2"
[windows.b]
sql = "select window_start, window_end, count(*) as n from tumble(a, window_start, interval '1 minute') group by 1, 2"
"#
        ),
        window(
            "select window_start, window_end from tumble(sensors, event_time, interval '1 minute') group bye 1, 2",
        ),
        table("select kind, unit, lenght(note) as n"),
        table("select kind, unnest(tagz) as tag"),
        table("select kind, count(*) as n"),
        table("select kind from sensors"),
    ]
}

#[test]
fn check_reports_the_location_and_the_fix() {
    let folder = TestFolder::new("");
    let mut messages = Vec::new();
    for text in invalid_declarations()
        .into_iter()
        .chain(more_invalid_declarations())
    {
        folder.configure(&text);
        let message = folder.fail(&["check"], 2);
        messages.push(message.replace(&folder.path("").display().to_string(), ""));
    }
    folder.configure(SENSORS);
    folder.succeed(&["check"]);
    insta::assert_snapshot!(messages.concat());
}

#[test]
fn retention_follows_event_time_and_a_backfill_is_accepted() {
    let folder = TestFolder::new("");
    folder.configure(&SENSORS.replace("key = \"id\"", "retention = \"2h\"\nkey = \"id\""));
    let line = |id: &str, at: &str| {
        format!(
            "{{\"id\":\"{id}\",\"at\":\"2016-05-01T{at}:00Z\",\"kind\":\"air\",\"note\":\"x\",\"reading\":{{\"value\":1,\"unit\":\"C\"}}}}\n"
        )
    };
    let times = [
        "10:00", "10:01", "10:02", "11:30", "12:00", "12:30", "13:00", "13:20", "10:30", "13:21",
    ];
    let text: String = times
        .iter()
        .enumerate()
        .map(|(n, at)| line(&format!("s{n}"), at))
        .collect();
    folder.write("in.ndjson", text.as_bytes());
    folder.run_once();
    let dead = folder.rows("select reason from dead_letters");
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert!(
        dead[0]["reason"]
            .as_str()
            .is_some_and(|r| r.contains("floor")),
        "{dead:?}"
    );
}

/// The code blocks of a page: (info string, text).
fn blocks(page: &str) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let mut rest = page;
    while let Some((_, block)) = rest.split_once("\n```") {
        let (info, block) = block.split_once('\n').expect("a line");
        let (text, after) = block.split_once("\n```").expect("an end");
        out.push((info.to_owned(), text.to_owned()));
        rest = after;
    }
    out
}

#[test]
fn the_commands_of_the_tutorial_give_what_it_shows() {
    let page = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/docs/your-own-stream.md"
    ))
    .expect("the page");
    let folder = TestFolder::new("");
    let mut answers = Vec::new();
    for (info, text) in blocks(&page) {
        if let Some((_, name)) = info.split_once("file=") {
            folder.write(name, format!("{text}\n").as_bytes());
        } else if info.starts_with("sh run") {
            if let Some((_, change)) = info.split_once("after=\"s/") {
                let (from, to) = change
                    .trim_end_matches("/\"")
                    .split_once('/')
                    .expect("a change");
                let before = std::fs::read_to_string(folder.path("weir.toml")).expect("readable");
                folder.write("weir.toml", before.replace(from, to).as_bytes());
            }
            for line in text.lines() {
                let path = std::env::var("PATH").unwrap_or_default();
                let bin = std::path::Path::new(env!("CARGO_BIN_EXE_weir"))
                    .parent()
                    .expect("a folder")
                    .display();
                let output = std::process::Command::new("sh")
                    .args(["-c", line])
                    .current_dir(folder.path(""))
                    .env("PATH", format!("{bin}:{path}"))
                    .env_remove("WEIR_DATA")
                    .output()
                    .expect("it runs");
                assert!(
                    output.status.success(),
                    "{line}: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
                answers.push(String::from_utf8_lossy(&output.stdout).into_owned());
            }
        }
    }
    assert_eq!(answers.len(), 14);
    let has = |n: usize, part: &str| assert!(answers[n].contains(part), "{}", answers[n]);
    has(0, "[streams.parcels]");
    has(3, "OSLO");
    has(4, "\"count\":4");
    has(5, "<b>glass</b>");
    has(6, "kg > 0");
    has(7, "closed_timeout");
    has(8, "delivered");
    has(9, "\"status\":\"open\"");
    has(10, "\"retried\":1");
    has(11, "p3");
    has(13, "\"parcel\":\"p3\"");
}

/// Newest first, as many feeds are: nothing is lost, and a note names the setting that fills the
/// empty windows.
#[test]
fn more_disorder_than_declared_is_reported_before_and_after_a_run() {
    let folder = TestFolder::new("");
    let configure = |watermark: &str| {
        let source = file_source("quakes");
        folder.configure(&format!(
            r#"{source}
[streams.quakes]
schema = "id bigint not null, at timestamp not null"
select = "select at as event_time, id from quakes"
{watermark}
[windows.hourly]
sql = "select window_start, window_end, count(*) as n from tumble(quakes, event_time, interval '1 hour') group by 1, 2"
"#
        ));
    };
    let lines: String = (0..300)
        .map(|n| {
            format!(
                "{{\"id\": {n}, \"at\": \"2024-05-{:02}T{:02}:00:00Z\"}}\n",
                28 - n / 24,
                23 - n % 24
            )
        })
        .collect();
    folder.write("quakes.ndjson", lines.as_bytes());
    let sample = folder.path("quakes.ndjson").display().to_string();

    configure("");
    for arguments in [
        vec!["check"],
        vec!["test", sample.as_str()],
        vec!["run", "--once", "--final"],
    ] {
        let notes = folder.succeed(&arguments);
        assert!(
            notes.contains("of 300 events of `quakes` came later")
                && notes.contains("disorder = \"12d\""),
            "{arguments:?}: {notes}"
        );
    }
    assert_eq!(folder.number("select count(*) from quakes"), 300);

    configure("watermark = { disorder = '12d' }");
    std::fs::remove_dir_all(folder.path("data")).expect("the folder of the first run");
    for arguments in [
        vec!["check"],
        vec!["test", sample.as_str()],
        vec!["run", "--once", "--final"],
    ] {
        let notes = folder.succeed(&arguments);
        assert!(!notes.contains("disorder"), "{arguments:?}: {notes}");
    }
    assert_eq!(folder.number("select sum(n) from hourly"), 300);
}
