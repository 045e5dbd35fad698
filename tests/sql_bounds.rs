//! SQL above its bounds: the server survives, names the exceeded bound, and answers other queries.

use std::io::Write;
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::server::Server;
use crate::support::{HTTP_ONLY, TestFolder, ndjson, records, wait_until};

/// Runs much longer than any test.
const ENDLESS: &str = "select count(*) from rsvps x, rsvps y, rsvps z, rsvps w where x.lsn + y.lsn + z.lsn + w.lsn = -1";

fn with_settings(more: &str) -> TestFolder {
    let folder = TestFolder::new("");
    // For slow, busy machines.
    folder.configure(&format!("{HTTP_ONLY}[limits]\nsql_time = '120s'\n{more}"));
    folder
}

fn server(folder: &TestFolder) -> Server {
    let server = Server::start(
        &mut folder.command(&["run", "--memory", "512MiB"]),
        &folder.path("data"),
    );
    assert_eq!(server.post(&[], &ndjson(&records(2_000, 7))).0, 200);
    wait_until("the rows are visible", || {
        number(&server, "select count(*) as n from rsvps") == Some(2_000)
    });
    server
}

fn sql(server: &Server, headers: &[(&str, &str)], query: &str) -> (u16, Value) {
    server.request(
        "POST",
        "/api/v1/sql",
        headers,
        json!({ "sql": query }).to_string().as_bytes(),
    )
}

fn number(server: &Server, query: &str) -> Option<u64> {
    sql(server, &[], query).1["rows"][0]["n"].as_u64()
}

fn assert_rejected(server: &Server, query: &str, part: &str) {
    let (status, answer) = sql(server, &[], query);
    let shown: String = query.chars().take(120).collect();
    assert_eq!(
        (status, answer["error"]["code"].as_str()),
        (400, Some("limit")),
        "{shown}: {answer}"
    );
    let message = answer["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains(part), "{shown}: {message}");
}

fn chain(first: &str, part: &str, terms: usize) -> String {
    format!("{first}{}", part.repeat(terms))
}

/// A first operand, and what is repeated after it.
const CHAINS: &[(&str, &str)] = &[
    ("1", "+1"),
    ("1", "-1"),
    ("1", "*1"),
    ("1", "/1"),
    ("1", "%1"),
    ("1", "|1"),
    ("1", "&1"),
    ("1", "<<1"),
    ("'a'", "||'a'"),
    ("'a'", "::varchar"),
    ("1", "::int::bigint"),
    ("1", " is null"),
    ("true", " is not true"),
    ("'a'", " like 'a'"),
    ("'a'", " ilike 'a'"),
    ("'a'", " similar to 'a'"),
    ("'a'", " ~ 'a'"),
    ("1", "=1"),
    ("1", "<1"),
    ("true", " is distinct from true"),
    ("1", " between 0 and 1"),
    ("1", " in (1)"),
    ("[1]", "[1]"),
    ("'{}'", "->'a'"),
    ("'{}'", "->>'a'"),
    ("now()", " at time zone 'UTC'"),
    ("now()", " + interval '1 day'"),
    ("true", " and true"),
    ("true", " or true"),
    ("true", " and true or false"),
    ("date '2024-01-01'", " - 1"),
];

fn wide_statements() -> Vec<String> {
    vec![
        format!("select 1 where {}", chain("1=1", " and not 1=2", 2_000)),
        format!(
            "select {}",
            chain("case when true then 1", " when true then 1", 2_000)
        ) + " end",
        format!(
            "select {}",
            chain(
                "case when true then 1 end",
                " + case when true then 1 end",
                2_000
            )
        ),
        format!("select {}", chain("(1)", "+(1)", 2_000)),
        format!("select {}1{}", "(".repeat(2_000), ")".repeat(2_000)),
        format!("select {}true", "not ".repeat(2_000)),
        format!("select {}1", "- ".repeat(2_000)),
        format!("select {}1{}", "abs(".repeat(2_000), ")".repeat(2_000)),
        format!("select {}1{}", "(select ".repeat(2_000), ")".repeat(2_000)),
        chain("select 1", " union all select 1", 2_000),
        format!(
            "select count(*) from rsvps{}",
            " cross join rsvps".repeat(2_000)
        ),
        format!("select count(*) from {}rsvps", "rsvps, ".repeat(2_000)),
        format!("select {}1 in (1)", "1 in (1) = ".repeat(2_000)),
    ]
}

/// Sends a query that is answered or rejected, but must not stop the server.
fn assert_survives(server: &Server, query: &str) {
    let (status, answer) = sql(server, &[], query);
    let shown = &query[..query.len().min(80)];
    assert!(
        status == 200 || status == 400,
        "{shown}…: {status} {answer}"
    );
    if status == 400 {
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(
            message.contains("at most") || !message.contains("stack"),
            "{shown}…: {message}"
        );
    }
}

#[test]
fn chains_of_every_operator_are_answered_or_rejected() {
    let folder = with_settings("");
    let server = server(&folder);
    for (first, part) in CHAINS {
        let query = format!("select {}", chain(first, part, 2_000));
        assert_survives(&server, &query);
    }
    for query in wide_statements() {
        assert_survives(&server, &query);
    }
    let ids: Vec<String> = (0..1_000).map(|n| format!("lsn = {n}")).collect();
    let query = format!("select count(*) as n from rsvps where {}", ids.join(" or "));
    assert!(
        number(&server, &query).is_some(),
        "a thousand terms are answered"
    );
    assert_eq!(
        number(&server, "select count(*) as n from rsvps"),
        Some(2_000)
    );
    server.stop();
}

#[test]
fn plans_that_grow_too_large_are_rejected_by_name() {
    let folder = with_settings("");
    let server = server(&folder);
    let columns: Vec<String> = (2..14).map(|n| format!("lsn % {n}")).collect();
    for sets in [
        format!("cube({})", columns.join(", ")),
        format!(
            "{0}, {0}",
            "rollup(lsn, source, event_time, is_duplicate, lsn + 1, lsn + 2, lsn + 3, lsn + 4)"
        ),
    ] {
        assert_rejected(
            &server,
            &format!("select count(*) from rsvps group by {sets}"),
            "grouping sets",
        );
    }
    let doubled = |n: usize| format!("c{n} as (select a.x from c{} a, c{} b)", n - 1, n - 1);
    let tables: Vec<String> = (1..24).map(doubled).collect();
    let query = format!(
        "with c0 as (select 1 as x), {} select count(*) from c23",
        tables.join(", ")
    );
    assert_rejected(&server, &query, "common table expressions");
    // Each is small; expanded into one another they are not.
    let nested: Vec<String> = (1..30)
        .map(|n| format!("c{n} as (select x + x as x from c{})", n - 1))
        .collect();
    let query = format!(
        "with c0 as (select lsn as x from rsvps), {} select x from c29 where x > 1",
        nested.join(", ")
    );
    assert_rejected(&server, &query, "written out");
    assert_rejected(
        &server,
        &format!("select {}1{}", "(".repeat(100), ")".repeat(100)),
        "nest",
    );
    assert_rejected(
        &server,
        "select arrow_cast([lsn], 'FixedSizeList(1000000000, Int64)') from rsvps",
        "at most",
    );
    let linear: Vec<String> = (1..40)
        .map(|n| format!("c{n} as (select x + 1 as x from c{})", n - 1))
        .collect();
    let query = format!(
        "with c0 as (select 1 as x), {} select x as n from c39",
        linear.join(", ")
    );
    assert_eq!(
        number(&server, &query),
        Some(40),
        "a linear chain is within the bounds"
    );
    server.stop();
}

#[test]
fn wide_rows_are_computed_in_smaller_batches() {
    let folder = with_settings("");
    let server = server(&folder);
    let wide = "select sum(length(repeat('x', cast(20000 + lsn * 0 as int)))) as n from rsvps x, generate_series(1, 2)";
    assert_eq!(number(&server, wide), Some(4_000 * 20_000));
    let literal =
        "select sum(length(concat(repeat('x', 100000), cast(lsn as varchar)))) > 0 as n from rsvps";
    assert_eq!(sql(&server, &[], literal).1["rows"][0]["n"], true);
    let unnested = "select count(*) as n from (select unnest(range(1000)) as i, lsn from rsvps)";
    assert_eq!(number(&server, unnested), Some(2_000_000));
    server.stop();
}

#[test]
fn disconnected_clients_free_their_slots_and_window_functions_can_be_cancelled() {
    let folder = with_settings("sql_concurrent = 2\n");
    let server = server(&folder);
    let long_frames = "select max(m) from (select median(x.lsn + y.lsn) over (order by x.lsn rows between 100000 preceding and current row) as m from rsvps x, rsvps y)";
    for query in [
        ENDLESS,
        long_frames,
        "select sum(levenshtein(repeat('a', 2000), repeat(chr(cast(97 + y.lsn % 2 as int)), 2000))) from rsvps x, rsvps y",
    ] {
        for _ in 0..8 {
            let body = json!({ "sql": query }).to_string();
            let mut client = TcpStream::connect(&server.address).expect("it listens");
            let head = format!(
                "POST /api/v1/sql HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n{body}",
                server.address,
                body.len()
            );
            client.write_all(head.as_bytes()).expect("sent");
            // A request that was read is running or queued.
            assert_eq!(server.get("/readyz").0, 200);
        }
        wait_until("a slot is free", || {
            number(&server, "select 1 as n") == Some(1)
        });
        assert_eq!(
            server.get("/api/v1/count?stream=rsvps").0,
            200,
            "counts do not wait for queries"
        );
    }
    server.stop();
}

#[test]
fn invalid_times_and_unknown_zones_are_bad_requests() {
    let folder = with_settings("");
    let server = server(&folder);
    for query in [
        "select now() at time zone 'Mars/Phobos'",
        "select event_time at time zone 'Mars/Phobos' from rsvps limit 1",
        "select arrow_cast(now(), 'Timestamp(Microsecond, Some(\"Nowhere\"))')",
        "select to_timestamp_micros(9223372036854775807)",
        "select [to_timestamp_seconds(9223372036854775807)]",
        "select timestamp '1500-01-01'",
        "select date '9999-12-31'::timestamp",
        "select count(*) from rsvps where event_time < timestamp '2500-01-01'",
    ] {
        for format in ["json", "ndjson", "csv", "arrow"] {
            let body = json!({ "sql": query, "format": format }).to_string();
            let (status, answer) = server.request("POST", "/api/v1/sql", &[], body.as_bytes());
            assert_eq!(
                (status, answer["error"]["code"].as_str()),
                (400, Some("bad_request")),
                "{query}: {answer}"
            );
        }
    }
    server.stop();
}
