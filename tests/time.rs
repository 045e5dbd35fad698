//! Irregular time: fast clocks, pauses, local days, times in results; and everyday SQL on them.

use serde_json::{Value, json};

use crate::support::TestFolder;

const MINUTE: i64 = 60_000_000;
const DAY: i64 = 1_440 * MINUTE;
/// 2024-05-01T10:00:00Z
const START: i64 = 1_714_557_600_000_000;

const DEVICES: &str = include_str!("../testdata/devices.toml");

/// A folder with a stream `s` from a file of (time, device), and a window `w` by this call.
fn with_window(records: &[(i64, &str)], window: &str) -> TestFolder {
    let folder = TestFolder::new("");
    folder.configure(&format!(
        r#"{DEVICES}[windows.w]
sql = "select window_start, window_end, count(*) as c from {window} group by 1, 2"
"#
    ));
    let lines = records
        .iter()
        .map(|(at, dev)| json!({"at": weir::event::rfc3339(*at), "dev": dev}).to_string() + "\n");
    folder.write("s.ndjson", lines.collect::<String>().as_bytes());
    folder
}

fn run(folder: &TestFolder, arguments: &[&str]) {
    folder.succeed(&[&["run", "--once"], arguments].concat());
}

fn minutes(count: i64) -> Vec<(i64, &'static str)> {
    (0..count).map(|n| (START + n * MINUTE, "honest")).collect()
}

#[test]
fn bursts_of_a_fast_clock_do_not_make_honest_rows_late() {
    for (burst, at) in [(1, 10), (2, 10), (5, 20), (15, 25), (2, 0), (15, 1)] {
        let mut records = minutes(60);
        let fast = (0..burst)
            .map(|n| (START + DAY + n * MINUTE, "fast"))
            .collect::<Vec<_>>();
        records.splice(at..at, fast);
        let folder = with_window(&records, "tumble(s, event_time, interval '1 minute')");
        run(&folder, &["--final"]);
        let counted = "select sum(c) from w where window_start < timestamp '2024-05-02 00:00'";
        assert_eq!(folder.number(counted), 60, "{burst} at {at}");
        assert_eq!(
            folder.number("select count(*) from s.late"),
            0,
            "{burst} at {at}"
        );
        assert_eq!(
            folder.number("select count(*) from s"),
            60 + burst as u64,
            "{burst} at {at}"
        );
    }
}

#[test]
fn a_record_a_day_and_long_pauses_do_not_stop_the_watermark() {
    let days: Vec<_> = (0..20).map(|n| (START + n * DAY, "a")).collect();
    let sparse = with_window(&days, "tumble(s, event_time, interval '1 day')");
    run(&sparse, &[]);
    // The last three records do not advance the watermark yet, and the day before them is open.
    assert_eq!(
        sparse.number("select count(*) from w where status = 'final'"),
        16
    );
    assert_eq!(sparse.number("select sum(c) from w"), 20);
    assert_eq!(sparse.number("select count(*) from s.late"), 0);

    let after_a_pause = (0..40).map(|n| (START + 3 * DAY + n * MINUTE, "a"));
    let records: Vec<_> = minutes(40).into_iter().chain(after_a_pause).collect();
    let paused = with_window(&records, "tumble(s, event_time, interval '1 minute')");
    run(&paused, &[]);
    assert_eq!(
        paused.number("select count(*) from w where window_start < timestamp '2024-05-02 00:00' and status = 'final'"),
        40
    );
    assert!(
        paused.number("select count(*) from w where window_start > timestamp '2024-05-02 00:00' and status = 'final'")
            > 30
    );
    assert_eq!(paused.number("select count(*) from s.late"), 0);
}

#[test]
fn a_small_file_that_has_ended_has_a_watermark() {
    let folder = with_window(&minutes(5), "tumble(s, event_time, interval '1 minute')");
    run(&folder, &[]);
    assert_eq!(
        folder.number("select count(*) from w where status = 'final'"),
        3
    );
}

/// A record every 20 minutes around the two clock changes of Brussels in 2024.
fn over_changes() -> Vec<(i64, &'static str)> {
    let from = [1_711_700_000_000_000, 1_729_800_000_000_000];
    from.into_iter()
        .flat_map(|from| (0..300).map(move |n| (from + n * 20 * MINUTE, "a")))
        .collect()
}

#[test]
fn windows_of_local_days_are_those_of_the_calendar() {
    let folder = with_window(
        &over_changes(),
        "tumble(s, event_time, interval '1 day', 'Europe/Brussels')",
    );
    run(&folder, &["--final"]);
    let windows = folder.rows(
        "select window_start at time zone 'Europe/Brussels' as day, date_part('epoch', window_end) - date_part('epoch', window_start) as seconds, c from w order by window_start",
    );
    let local = "date_trunc('day', event_time at time zone 'Europe/Brussels')";
    let days = folder.rows(&format!(
        "select {local} as day, count(*) as c from s group by 1 order by 1"
    ));
    assert_eq!(windows.len(), days.len());
    for (window, day) in windows.iter().zip(&days) {
        assert_eq!((&window["day"], &window["c"]), (&day["day"], &day["c"]));
        let hours = match day["day"].as_str().expect("a time") {
            "2024-03-31T00:00:00.000" => 23.0,
            "2024-10-27T00:00:00.000" => 25.0,
            _ => 24.0,
        };
        assert_eq!(
            window["seconds"].as_f64(),
            Some(hours * 3_600.0),
            "{window}"
        );
    }
    // A dry run reports the same window.
    folder.write("one.json", b"{\"at\":\"2024-03-31T10:00:00Z\"}");
    let shown = folder.ask(&["test", &folder.path("one.json").display().to_string()]);
    let window = &shown["records"][0]["windows"][0];
    assert_eq!(
        window["window_start"], "2024-03-30T23:00:00.000Z",
        "{shown}"
    );
    assert_eq!(window["window_end"], "2024-03-31T22:00:00.000Z", "{shown}");
}

#[test]
fn an_invalid_zone_is_rejected_with_a_fix() {
    for (window, message) in [
        (
            "tumble(s, event_time, interval '1 day', 'Europe/Nowhere')",
            "the time zone `Europe/Nowhere` does not exist",
        ),
        (
            "session(s, event_time, interval '1 hour', dev, 'Europe/Berlin')",
            "a session has no zone",
        ),
        (
            "session(s, event_time, interval '1 hour', 'Europe/Berlin')",
            "a session has no zone",
        ),
        (
            "tumble(s, event_time, interval '1 month')",
            "name a zone, for example 'UTC'",
        ),
        (
            "tumble(s, event_time, interval '1 month 1 day', 'UTC')",
            "mixes months with shorter units",
        ),
        (
            "tumble(s, event_time, interval '1 day 1 hour', 'UTC')",
            "write one of these kinds",
        ),
        (
            "hop(s, event_time, interval '1 day', interval '36 hours', 'UTC')",
            "write one of these kinds",
        ),
        (
            "hop(s, event_time, interval '2 days', interval '7 days', 'UTC')",
            "a multiple of the slide",
        ),
        (
            "hop(s, event_time, interval '7 days', interval '1 day', 'UTC')",
            "a multiple of the slide",
        ),
    ] {
        with_window(&[], window).check_config_error(&["weir.toml:12:", message]);
    }
    for window in [
        "tumble(s, event_time, interval '1 month', 'UTC')",
        "tumble(s, event_time, interval '1 week', 'Asia/Kolkata')",
        "hop(s, event_time, interval '1 hour', interval '1 day', 'Australia/Lord_Howe')",
        "hop(s, event_time, interval '1 day', interval '1 week', 'America/New_York')",
        "hop(s, event_time, interval '1 month', interval '1 year', 'UTC')",
    ] {
        with_window(&[], window).succeed(&["check"]);
    }
}

#[test]
fn local_times_are_shown_without_an_offset_and_others_in_utc() {
    let folder = with_window(&minutes(1), "tumble(s, event_time, interval '1 minute')");
    run(&folder, &[]);
    let query = "select event_time as t, event_time at time zone 'Asia/Kolkata' as local, timestamp '2024-05-01 12:00' as naive from s";
    let (t, local, naive) = (
        "2024-05-01T10:00:00.000Z",
        "2024-05-01T15:30:00.000",
        "2024-05-01T12:00:00.000",
    );
    assert_eq!(
        folder.rows(query),
        [json!({"t": t, "local": local, "naive": naive})]
    );
    let shown = |format: &str| {
        let output = folder.output(&["sql", query, "--output", format]);
        String::from_utf8(output.stdout).expect("text")
    };
    assert_eq!(
        shown("ndjson"),
        format!("{{\"t\":\"{t}\",\"local\":\"{local}\",\"naive\":\"{naive}\"}}\n")
    );
    assert_eq!(
        shown("csv"),
        format!("t,local,naive\n{t},{local},{naive}\n")
    );
    let table = shown("table");
    assert!(
        [t, &format!("{local} "), &format!("{naive} ")]
            .iter()
            .all(|time| table.contains(time)),
        "{table}"
    );
}

/// Ninety rows, one a minute, with lists of two items, of none, and null.
fn rows_with_tags() -> TestFolder {
    let folder = TestFolder::new("");
    folder.configure(include_str!("../testdata/tagged.toml"));
    let tags = [json!(["a", "b"]), json!([]), Value::Null];
    let record = |n: i64| json!({"n": n, "at": weir::event::rfc3339(START + n * MINUTE), "tags": tags[n as usize % 3]});
    folder.write(
        "s.ndjson",
        (0..90)
            .map(|n| record(n).to_string() + "\n")
            .collect::<String>()
            .as_bytes(),
    );
    run(&folder, &[]);
    folder
}

#[test]
fn everyday_queries_are_answered() {
    let folder = rows_with_tags();
    for (query, expected) in [
        (
            "select count(*) as c from s where event_time < '2024-05-01 11:00'",
            json!([{"c": 60}]),
        ),
        (
            "select count(*) as c from s where event_time < timestamp '2024-05-01 11:00'",
            json!([{"c": 60}]),
        ),
        (
            "select count(*) as c from s where event_time < cast('2024-05-01T13:00+02:00' as timestamptz)",
            json!([{"c": 60}]),
        ),
        (
            "select count(*) as c from s where event_time between '2024-05-01 10:10' and '2024-05-01 10:19'",
            json!([{"c": 10}]),
        ),
        (
            "select count(*) as c from s where event_time < to_timestamp('2024-05-01 11:00')",
            json!([{"c": 60}]),
        ),
        (
            "select time_bucket(interval '1 hour', event_time) as h, count(*) as c from s group by 1 order by 1",
            json!([{"h": "2024-05-01T10:00:00.000Z", "c": 60}, {"h": "2024-05-01T11:00:00.000Z", "c": 30}]),
        ),
        (
            "select n, t from s, unnest(tags) as x(t) where n < 3",
            json!([{"n": 0, "t": "a"}, {"n": 0, "t": "b"}]),
        ),
        (
            "select s.n, t from s cross join unnest(s.tags) as t where n < 3",
            json!([{"n": 0, "t": "a"}, {"n": 0, "t": "b"}]),
        ),
        (
            "select count(*) as c from s, lateral unnest(tags)",
            json!([{"c": 60}]),
        ),
        (
            "select count(*) as c, count(t) as t from s left join unnest(tags) as x(t) on true",
            json!([{"c": 120, "t": 60}]),
        ),
        (
            "select t, count(*) as c from s join unnest(tags) as x(t) on t <> 'a' group by 1",
            json!([{"t": "b", "c": 30}]),
        ),
        (
            "select v from unnest([1, 2]) as x(v)",
            json!([{"v": 1}, {"v": 2}]),
        ),
        (
            "select n, n, n as m from s where n = 1",
            json!([{"n": 1, "n_2": 1, "m": 1}]),
        ),
        (
            "select count(*), count(*) from s",
            json!([{"count(*)": 90, "count(*)_2": 90}]),
        ),
        (
            "select a.n, b.n, 7 as n_2 from s a join s b on a.n = b.n where a.n = 1",
            json!([{"n": 1, "n_3": 1, "n_2": 7}]),
        ),
    ] {
        assert_eq!(json!(folder.rows(query)), expected, "{query}");
    }
}

#[test]
fn unknown_names_in_queries_are_rejected_with_a_suggestion() {
    let folder = rows_with_tags();
    for (query, message) in [
        (
            "select max_by(n, n) from s",
            "line 1, column 8: Invalid function 'max_by'; write `first_value(x order by y desc)`",
        ),
        ("select summ(n) from s", "did you mean 'sum'?"),
        (
            "select frobnicate(n) from s",
            "Invalid function 'frobnicate'; no function has a similar name",
        ),
        (
            "select n",
            "line 1, column 8: `n` is not a column: nothing is read, `from …` is missing",
        ),
    ] {
        let output = folder.output(&["sql", query]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && stderr.contains(message),
            "{query}: {stderr}"
        );
    }
}

#[test]
fn a_select_without_from_is_rejected_with_a_fix() {
    let folder = TestFolder::new("");
    let check = |text: &str, message: &str| {
        folder.configure(text);
        folder.check_config_error(&[message]);
    };
    let stream = "[streams.s]\nschema = 't bigint not null'\n";
    let select = "select to_timestamp_millis(t) as event_time";
    check(
        &format!("{stream}select = '{select}'\n"),
        "weir.toml:4:54: stream `s`: select: `from s` is missing after the columns",
    );
    check(
        &format!("{stream}select = '{select} where t > 0'\n"),
        "weir.toml:4:54: stream `s`: select: `from s` is missing after the columns",
    );
    check(
        &format!(
            "{stream}select = '{select} from s'\n[windows.w]\nsql = 'select window_start, count(*) as n'\n"
        ),
        "window `w`: sql: `from` is missing after the columns",
    );
}
