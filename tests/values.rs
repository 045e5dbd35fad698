//! Values are stored as they arrive: numbers, JSON, half characters, times, infinities; and SQL on
//! them.

use serde_json::json;

use crate::support::{TestFolder, file_source};

/// A stream `s` of the file `s.ndjson` with the event time `at` and these further fields and columns.
fn with_stream(schema: &str, select: &str, keys: &str, lines: &[&str]) -> TestFolder {
    let folder = TestFolder::new("");
    let source = file_source("s");
    folder.configure(&format!(
        r#"{source}[streams.s]
schema = "n int, at timestamp not null, {schema}"
select = """select at as event_time, n, {select} from s"""
{keys}
"#
    ));
    folder.write("s.ndjson", (lines.join("\n") + "\n").as_bytes());
    folder
}

fn line(n: usize, rest: &str) -> String {
    format!("{{\"n\":{n},\"at\":\"2024-05-01T10:00:00Z\",{rest}}}")
}

fn lines<'a>(values: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    values
        .into_iter()
        .enumerate()
        .map(|(n, rest)| line(n, rest))
        .collect()
}

fn refs(lines: &[String]) -> Vec<&str> {
    lines.iter().map(String::as_str).collect()
}

fn reasons(folder: &TestFolder) -> Vec<String> {
    let rows = folder.rows("select reason from dead_letters order by lsn");
    rows.iter()
        .map(|r| r["reason"].as_str().expect("text").to_owned())
        .collect()
}

#[test]
fn doubles_are_nearest_and_text_retains_all_digits() {
    let numbers = [
        "1.5777777777770001",
        "13.600000000000001",
        "9.9805209660000003",
        "1e23",
        "5e-324",
        "123456789012345680",
    ];
    let pairs = numbers.map(|v| format!("\"x\":{v},\"t\":{v}"));
    let lines = lines(pairs.iter().map(String::as_str));
    let folder = with_stream("x double, t varchar", "x, t", "", &refs(&lines));
    folder.run_once();
    let rows = folder.rows("select x, t from s order by n");
    for (row, number) in rows.iter().zip(numbers) {
        assert_eq!(row["t"], number);
        let wanted: f64 = number.parse().expect("a number");
        assert_eq!(
            row["x"].as_f64().map(f64::to_bits),
            Some(wanted.to_bits()),
            "{number}"
        );
    }
    assert_eq!(rows.len(), numbers.len());
}

#[test]
fn big_integers_are_exact_or_rejected() {
    let lines = lines([
        r#""b":9223372036854775807,"t":123456789012345678901234567890,"m":{"wei":100000000000000000001}"#,
        r#""b":1000.0,"t":1.10,"m":{"version":1.10}"#,
        r#""b":1e3,"t":1e400"#,
        r#""b":-0,"d":123456789012345678901234567890"#,
        r#""b":9223372036854775808"#,
        r#""b":1.5"#,
        r#""d":1e400"#,
    ]);
    let search = r#"search = { text = ["m.*"], exact = ["t"] }"#;
    let folder = with_stream(
        "b bigint, t varchar, d double, m map(varchar, varchar)",
        "b, t, d, m",
        search,
        &refs(&lines),
    );
    folder.run_once();
    let rows =
        folder.rows("select b, t, d, m['wei'] as wei, m['version'] as version from s order by n");
    assert_eq!(
        rows,
        [
            json!({"b": 9_223_372_036_854_775_807_i64, "t": "123456789012345678901234567890", "d": null, "wei": "100000000000000000001", "version": null}),
            json!({"b": 1000, "t": "1.10", "d": null, "wei": null, "version": "1.10"}),
            json!({"b": 1000, "t": "1e400", "d": null, "wei": null, "version": null}),
            json!({"b": 0, "t": null, "d": 123_456_789_012_345_678_901_234_567_890_f64, "wei": null, "version": null}),
        ]
    );
    let reasons = reasons(&folder);
    assert!(
        reasons[0].starts_with("b: a number beyond 64 bits where the schema has bigint; varchar"),
        "{reasons:?}"
    );
    assert!(reasons[1].starts_with("b: a decimal number"), "{reasons:?}");
    assert!(
        reasons[2].starts_with("d: a number out of range where the schema has double"),
        "{reasons:?}"
    );
    assert_eq!(
        folder.ask(&["search", "m.wei:100000000000000000001"])["total"],
        1
    );
    assert_eq!(folder.ask(&["search", "t:1.10"])["total"], 1);
}

const PAYLOADS: [&str; 8] = [
    r#""p":"text""#,
    r#""p":[]"#,
    r#""p":{ "userid": 1234567, "score": 1.10, "to": {"city": "Oslo"} },"props":{"plan":"pro","seats":5,"ratio":0.50}"#,
    r#""p":["a", 1],"props":{"trial":true,"address":{"city": "Oslo"},"tags":["a", "b"],"none":null}"#,
    r#""p":{"a":1,"b":2,"a":3},"props":[]"#,
    r#""p":null"#,
    r#""p":12345678901234567890.10"#,
    r#""p":false"#,
];

#[test]
fn json_accepts_any_value_and_sql_reads_it() {
    let payloads = lines(PAYLOADS);
    let keys = r#"
require = ["p is null or p <> '0'"]
search = { text = ["p"] }
key = "userid"
[windows.w]
sql = """select window_start, window_end, count(*) filter (where p -> 'a' = '3') as threes, max(p ->> 'userid') as userid
         from tumble(s, event_time, interval '1 day') group by 1, 2"""
[tables."s.latest"]
stream = "s"
key = "city"
select = "select p -> 'to' ->> 'city' as city, p -> 'to' as place"
"#;
    let select = "p, props, p ->> 'userid' as userid, (p -> 'score')::double as score";
    let folder = with_stream(
        "p json, props map(varchar, varchar)",
        select,
        keys,
        &refs(&payloads),
    );
    folder.succeed(&["run", "--once", "--final"]);
    assert_eq!(reasons(&folder), [""; 0]);
    let rows = folder.rows("select p from s order by n");
    let texts: Vec<_> = rows.iter().map(|r| r["p"].as_str()).collect();
    let wanted = [
        Some(r#""text""#),
        Some("[]"),
        Some(r#"{"userid":1234567,"score":1.10,"to":{"city":"Oslo"}}"#),
        Some(r#"["a",1]"#),
        Some(r#"{"b":2,"a":3}"#),
        None,
        Some("12345678901234567890.10"),
        Some("false"),
    ];
    assert_eq!(texts, wanted);
    let rows = folder.rows("select userid, score, props['ratio'] as ratio, p->'to'->>'city' as city, p->'to' as place, json_length(p) as l, json_get(p, 'score') as any, json_get_int(p, 'userid') + 1 as next from s where p->>'userid' = '1234567'");
    assert_eq!(
        rows,
        [
            json!({"userid": "1234567", "score": 1.1, "ratio": "0.50", "city": "Oslo", "place": "{\"city\":\"Oslo\"}", "l": 3, "any": "1.1", "next": 1_234_568})
        ]
    );
    let rows = folder.rows("select p->0 as first, p->>0 as text, array_transform([1, 2], x -> x + 1) as l, props['address'] ->> 'city' as city, props['trial'] as trial from s where n = 3");
    assert_eq!(
        rows,
        [json!({"first": "\"a\"", "text": "a", "l": [2, 3], "city": "Oslo", "trial": "true"})]
    );
    assert_eq!(
        folder.rows("select threes, userid from w"),
        [json!({"threes": 1, "userid": "1234567"})]
    );
    assert_eq!(
        folder.rows("select city, place from s.latest"),
        [json!({"city": "Oslo", "place": "{\"city\":\"Oslo\"}"})]
    );
    assert_eq!(folder.ask(&["search", "oslo"])["total"], 1);
}

#[test]
fn json_is_not_a_key() {
    let window = |sql: &str| format!("[windows.w]\nsql = \"{sql}\"");
    let table = r#"[tables."s.t"]
stream = "s"
key = "p"
select = "select p""#;
    let cases = [
        ("key = \"p\"".to_owned(), "10:7"),
        ("version = \"p\"\nkey = \"n\"".to_owned(), "10:11"),
        ("count = { type = \"p\" }".to_owned(), "10:9"),
        ("count = { type = \"t\", by = [\"p\"] }".to_owned(), "10:9"),
        (
            "key = \"n\"\nduplicates = { same = [\"p\"], within = \"1s\" }".to_owned(),
            "11:14",
        ),
        (
            "session = { key = \"inner\", gap = \"1m\" }".to_owned(),
            "10:11",
        ),
        (
            window(
                "select window_start, window_end, p, count(*) as c from tumble(s, event_time, interval '1 day') group by 1, 2, 3",
            ),
            "11:",
        ),
        (
            window(
                "select window_start, window_end, p, count(*) as c from session(s, event_time, interval '1 day', p) group by 1, 2, 3",
            ),
            "11:",
        ),
        (table.to_owned(), "13:"),
    ];
    for (keys, at) in cases {
        let folder = with_stream(
            "p json, t varchar, o struct<q json>",
            "p, t, o, o['q'] as inner",
            &keys,
            &[],
        );
        folder.check_config_error(&[&format!("weir.toml:{at}"), "is json"]);
    }
}

#[test]
fn half_a_character_becomes_a_replacement_character() {
    let lines = [
        r#""msg":"party time \ud83d""#,
        r#""msg":"\udc00 low first""#,
        r#""msg":"whole \ud83c\udf89 pair""#,
        r#""other \ud83d":"ignored \ud83d","msg":"fine","p":["\ud83d"]"#,
        r#""msg":"nul \u0000 inside""#,
    ];
    let lines = lines
        .iter()
        .enumerate()
        .map(|(n, rest)| line(n, rest))
        .collect::<Vec<_>>();
    let folder = with_stream(
        "msg varchar, p json",
        "msg, p",
        "search = { text = [\"msg\"] }",
        &refs(&lines),
    );
    folder.run_once();
    let rows = folder.rows("select msg from s order by n");
    let found: Vec<_> = rows.iter().filter_map(|r| r["msg"].as_str()).collect();
    assert_eq!(
        found,
        [
            "party time \u{FFFD}",
            "\u{FFFD} low first",
            "whole 🎉 pair",
            "fine",
            "nul \0 inside"
        ]
    );
    assert_eq!(
        folder.rows("select p from s where n = 3"),
        [json!({"p": "[\"\u{FFFD}\"]"})]
    );
    assert_eq!(reasons(&folder), [""; 0]);
}

const WILD: [&str; 6] = [
    r#"{"n":1,"at":"0001-01-01T00:00:00Z","v":1}"#,
    r#"{"n":2,"at":"1582-10-15T12:00:00Z","v":1}"#,
    r#"{"n":3,"at":"1970-01-01T00:00:00Z","v":1}"#,
    r#"{"n":4,"at":"2024-05-01T10:00:00Z","v":1}"#,
    r#"{"n":5,"at":"2262-04-12T00:00:00Z","v":1}"#,
    r#"{"n":6,"at":"9999-12-31T23:59:59Z","v":1}"#,
];
const AHEAD: &str = r#"watermark = { max_ahead = "3650000d" }"#;

#[test]
fn implausible_times_are_dead_letters_until_the_range_allows_them() {
    let wild = with_stream("v int", "v", AHEAD, &WILD);
    wild.run_once();
    assert_eq!(wild.number("select count(*) from s"), 2);
    let reasons = reasons(&wild);
    assert_eq!(reasons.len(), 4);
    assert_eq!(
        reasons[0],
        "event_time 0001-01-01T00:00:00.000Z is outside the stream's time_range, 1900-01-01 to 2200-01-01"
    );
    let text = std::fs::read_to_string(wild.path("weir.toml")).expect("a file");
    wild.write(
        "weir.toml",
        text.replace(
            AHEAD,
            &format!("{AHEAD}\ntime_range = ['0001-01-01', '9999-12-31T23:59:59.999Z']"),
        )
        .as_bytes(),
    );
    wild.succeed(&["dead-letters", "retry"]);
    assert_eq!(wild.number("select count(*) from s"), 6);
    wild.succeed(&["check"]);
    wild.write(
        "weir.toml",
        text.replace(AHEAD, "time_range = ['2024-01-01', '2023-01-01']")
            .as_bytes(),
    );
    wild.check_config_error(&["time_range: `2024-01-01` is not before `2023-01-01`"]);
}

#[test]
fn stored_times_beyond_nanoseconds_do_not_make_queries_fail() {
    let keys = format!("{AHEAD}\ntime_range = ['0001-01-01', '9999-12-31T23:59:59.999Z']");
    let folder = with_stream("v int", "v", &keys, &WILD);
    folder.run_once();
    assert_eq!(folder.number("select count(*) from s"), 6);
    let rows = folder.rows("select n, date_trunc('day', event_time) as day, date_bin(interval '1 hour', event_time) as hour, to_char(event_time, '%Y-%m-%d') as text from s where n = 4");
    assert_eq!(
        rows,
        [
            json!({"n": 4, "day": "2024-05-01T00:00:00.000Z", "hour": "2024-05-01T10:00:00.000Z", "text": "2024-05-01"})
        ]
    );
    for expression in [
        "date_trunc('day', event_time)",
        "date_trunc('month', event_time)",
        "date_bin(interval '1 hour', event_time)",
        "to_char(event_time, '%Y-%m-%d')",
        "to_local_time(event_time)",
        "to_timestamp(event_time)",
    ] {
        let rows = folder.rows(&format!(
            "select {expression} as x, count(*) as c from s group by 1 order by 1"
        ));
        let counted: u64 = rows.iter().filter_map(|r| r["c"].as_u64()).sum();
        assert_eq!(counted, 6, "{expression}: {rows:?}");
        assert!(
            rows.iter()
                .any(|r| r["x"].as_str().is_some_and(|x| x.starts_with("2024-05-01"))),
            "{expression}: {rows:?}"
        );
    }
    for expression in [
        "event_time at time zone 'America/New_York'",
        "event_time::timestamp",
        "cast(event_time as timestamp) + interval '1 day'",
    ] {
        let rows = folder.rows(&format!("select n, {expression} as x from s order by n"));
        assert_eq!(rows.len(), 6, "{expression}");
        assert!(
            rows.iter().all(|r| r["x"].is_string()),
            "{expression}: {rows:?}"
        );
    }
    assert_eq!(
        folder
            .number("select count(*) from s where event_time::timestamp < timestamp '2024-05-02'"),
        4
    );
    assert_eq!(
        folder.number(
            "select count(*) from s where date_trunc('day', event_time) = timestamp '2024-05-01'"
        ),
        1
    );
}

#[test]
fn common_texts_of_times_are_read() {
    let times = [
        r#""t":"2024-05-01 12:00:00","s":1714557600,"ms":"1714557600000","us":1714557600000000"#,
        r#""t":"2024-05-01T10:00:00+0200","s":1714557600.5"#,
        r#""t":"2024-05-01 12:00","ms":"2024-05-01T12:00:00Z""#,
        r#""t":"2024-10-27 02:30:00""#,
        r#""t":"2024-05-01""#,
        r#""t":"2024-03-31 02:30:00""#,
        r#""t":1714557600"#,
        r#""t":"01/05/2024""#,
        r#""s":1714557600000000"#,
    ];
    let lines = lines(times);
    let zone = "time_zone = 'Europe/Berlin'";
    let schema = "t timestamp, s timestamp(s), ms timestamp(ms), us timestamp(us)";
    let folder = with_stream(schema, "t, s, ms, us", zone, &refs(&lines));
    folder.run_once();
    let at = |time: &str| format!("2024-05-01T{time}Z");
    assert_eq!(
        folder.rows("select t, s, ms, us from s order by n"),
        [
            json!({"t": at("10:00:00.000"), "s": at("10:00:00.000"), "ms": at("10:00:00.000"), "us": at("10:00:00.000")}),
            json!({"t": at("08:00:00.000"), "s": at("10:00:00.500"), "ms": null, "us": null}),
            json!({"t": at("10:00:00.000"), "s": null, "ms": at("12:00:00.000"), "us": null}),
            json!({"t": "2024-10-27T00:30:00.000Z", "s": null, "ms": null, "us": null}),
            json!({"t": "2024-04-30T22:00:00.000Z", "s": null, "ms": null, "us": null}),
        ]
    );
    let reasons = reasons(&folder);
    for (reason, part) in reasons.iter().zip([
        "t: the local time `2024-03-31 02:30:00` does not exist in Europe/Berlin",
        "declare timestamp(s), timestamp(ms) or timestamp(us)",
        "`01/05/2024` is not a text that the type timestamp reads; write",
        "is outside the years 1 to 9999",
    ]) {
        assert!(reason.contains(part), "{reason}");
    }
    assert_eq!(reasons.len(), 4);
    let text = std::fs::read_to_string(folder.path("weir.toml")).expect("a file");
    folder.write(
        "weir.toml",
        text.replace("Europe/Berlin", "Berlin").as_bytes(),
    );
    folder.check_config_error(&["the time zone `Berlin` does not exist"]);
}

#[test]
fn infinities_and_nan_are_values_and_null_in_json() {
    let lines = lines([
        r#""t":"inf","g":"i""#,
        r#""t":"inf","g":"i""#,
        r#""t":"-inf","g":"n""#,
        r#""t":"nan","g":"m""#,
        r#""t":"1","g":"m""#,
        r#""t":"-inf","g":"m""#,
    ]);
    let window = r#"
[windows.w]
sql = """select window_start, window_end, g, max(t) as hi, min(t) as lo
         from tumble(s, event_time, interval '1 day') group by 1, 2, 3""""#;
    let folder = with_stream(
        "t varchar, g varchar",
        "g, try_cast(t as double) as t",
        window,
        &refs(&lines),
    );
    folder.succeed(&["run", "--once", "--final"]);
    for from in [
        "(select g, max(t) as hi, min(t) as lo from s group by g)",
        "w",
    ] {
        let rows = folder.rows(&format!(
            "select g, hi::varchar as hi, lo::varchar as lo, hi as number from {from} order by g"
        ));
        let text =
            |row: usize, column: &str| rows[row][column].as_str().expect("text").to_lowercase();
        assert_eq!(
            (text(0, "hi"), text(0, "lo")),
            ("inf".to_owned(), "inf".to_owned()),
            "{from}"
        );
        assert_eq!(
            (text(1, "hi"), text(1, "lo")),
            ("nan".to_owned(), "-inf".to_owned()),
            "{from}"
        );
        assert_eq!(
            (text(2, "hi"), text(2, "lo")),
            ("-inf".to_owned(), "-inf".to_owned()),
            "{from}"
        );
        assert!(
            rows.iter().all(|r| r["number"].is_null()),
            "{from}: {rows:?}"
        );
    }
}

/// DataFusion declares UTC for such a column but returns times without a zone.
#[test]
fn times_of_several_formats_are_read_in_one_select() {
    let lines = [
        r#"{"n": 1, "t": "2011/03/15 21:31:05 -0700"}"#,
        r#"{"n": 2, "t": "2015-01-01T15:00:00Z"}"#,
        r#"{"n": 3, "t": "2015-01-01T15:00:00+02:00"}"#,
    ];
    let select =
        "coalesce(to_timestamp(t, '%+', '%Y/%m/%d %H:%M:%S %z'), to_timestamp(t)) as event_time, n";
    let folder = TestFolder::new("");
    let source = file_source("s");
    folder.configure(&format!(
        r#"{source}
[streams.s]
schema = "n bigint not null, t varchar not null"
select = "select {select} from s"
"#
    ));
    folder.write("s.ndjson", (lines.join("\n") + "\n").as_bytes());
    folder.run_once();
    assert_eq!(reasons(&folder), Vec::<String>::new());
    let times: Vec<_> = folder
        .rows("select event_time from s order by n")
        .iter()
        .map(|r| r["event_time"].clone())
        .collect();
    assert_eq!(
        times,
        [
            "2011-03-16T04:31:05.000Z",
            "2015-01-01T15:00:00.000Z",
            "2015-01-01T13:00:00.000Z"
        ]
    );
}
