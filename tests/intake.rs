//! Records posted over HTTP are stored once, even if the connection is lost, and every usual form
//! of a body is accepted.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;

use serde_json::{Value, json};
use weir::ingest::Submission;
use weir::runtime::{Options, Running};
use weir::wal::{FrameAttributes, Kind, RecordsBuilder};

use crate::server::{Server, start};
use crate::support::{HTTP_ONLY, TestFolder, ndjson, records, wait_until};

const TWO_STREAMS: &str = include_str!("../testdata/two_streams.toml");

fn two_streams() -> TestFolder {
    let folder = TestFolder::new("");
    folder.configure(TWO_STREAMS);
    folder
}

fn post(server: &Server, stream: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, Value) {
    server.request(
        "POST",
        &format!("/api/v1/streams/{stream}/events"),
        headers,
        body,
    )
}

/// Sends a request and does not wait for the response.
fn send(server: &Server, stream: &str, key: &str, body: &[u8]) -> TcpStream {
    let mut connection = TcpStream::connect(&server.address).expect("a connection");
    let head = format!(
        "POST /api/v1/streams/{stream}/events HTTP/1.1\r\nHost: {}\r\nIdempotency-Key: {key}\r\nContent-Length: {}\r\n\r\n",
        server.address,
        body.len()
    );
    connection
        .write_all(head.as_bytes())
        .and_then(|()| connection.write_all(body))
        .expect("writable");
    connection
}

fn numbers(range: std::ops::Range<u32>) -> Vec<u8> {
    range
        .flat_map(|n| format!("{{\"n\":{n}}}\n").into_bytes())
        .collect()
}

#[test]
fn a_request_repeated_after_a_timeout_is_stored_once() {
    let folder = two_streams();
    let server = start(&folder);
    let body = numbers(0..20_000);
    for round in 0..8 {
        let key = format!("k{round}");
        drop(send(&server, "a", &key, &body));
        let (status, answer) = post(&server, "a", &[("Idempotency-Key", &key)], &body);
        assert_eq!(
            (status, &answer["accepted"]),
            (200, &json!(20_000)),
            "{answer}"
        );
    }
    server.stop();
    assert_eq!(folder.number("select count(*) from a"), 8 * 20_000);
    assert_eq!(
        folder.number("select count(*) from raw where kind = 'record'"),
        8 * 20_000
    );
}

#[test]
fn requests_with_one_key_at_once_are_stored_once_and_all_get_the_answer() {
    let folder = two_streams();
    let server = start(&folder);
    let body = [numbers(0..20_000), b"not json\n".to_vec()].concat();
    let answers: Vec<(u16, Value)> = std::thread::scope(|scope| {
        let requests: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| post(&server, "a", &[("Idempotency-Key", "k")], &body)))
            .collect();
        requests
            .into_iter()
            .map(|request| request.join().expect("an answer"))
            .collect()
    });
    for (status, answer) in &answers {
        assert_eq!((*status, answer), (200, &answers[0].1));
    }
    assert_eq!(
        (&answers[0].1["accepted"], &answers[0].1["rejected_total"]),
        (&json!(20_000), &json!(1))
    );
    server.stop();
    assert_eq!(folder.number("select count(*) from a"), 20_000);
    assert_eq!(folder.number("select count(*) from dead_letters"), 1);
}

#[test]
fn a_key_belongs_to_its_stream_and_a_rejected_request_does_not_use_it() {
    let folder = two_streams();
    let server = start(&folder);
    let key = [("Idempotency-Key", "k")];
    assert_eq!(post(&server, "a", &key, b"[{\"n\":1},").0, 400);
    let gzip = [("Idempotency-Key", "k"), ("Content-Encoding", "gzip")];
    assert_eq!(post(&server, "a", &gzip, b"no gzip").0, 400);
    for stream in ["a", "b"] {
        assert_eq!(post(&server, stream, &key, b"{\"n\":1}").0, 200);
        assert_eq!(post(&server, stream, &key, b"{\"n\":1}").1["accepted"], 1);
        assert_eq!(post(&server, stream, &key, b"{\"n\":2}").0, 422);
    }
    server.stop();
    let server = start(&folder);
    for stream in ["a", "b"] {
        assert_eq!(post(&server, stream, &key, b"{\"n\":1}").1["accepted"], 1);
        assert_eq!(post(&server, stream, &key, b"{\"n\":2}").0, 422);
    }
    server.stop();
    assert_eq!(
        (
            folder.number("select count(*) from a"),
            folder.number("select count(*) from b")
        ),
        (1, 1)
    );
}

#[test]
fn a_request_repeated_after_a_kill_is_stored_once() {
    let folder = two_streams();
    let rounds = 6u32;
    for round in 0..rounds {
        let (key, body) = (
            format!("k{round}"),
            numbers(round * 2_000..(round + 1) * 2_000),
        );
        let server = start(&folder);
        let log_bytes = || -> u64 {
            let files = std::fs::read_dir(folder.path("data/log"))
                .expect("a log")
                .flatten();
            files
                .filter_map(|file| std::fs::read(file.path()).ok())
                .map(|bytes| used(&bytes))
                .sum()
        };
        let before = log_bytes();
        let connection = send(&server, "a", &key, &body);
        // In every other round the server is killed as soon as the frame is in the log, with or
        // without a response.
        if round % 2 == 1 {
            wait_until("the frame is in the log", || log_bytes() > before);
        }
        server.kill();
        drop((connection, server));
        let server = start(&folder);
        let (status, answer) = post(&server, "a", &[("Idempotency-Key", &key)], &body);
        assert_eq!(
            (status, &answer["accepted"]),
            (200, &json!(2_000)),
            "{answer}"
        );
        server.stop();
    }
    assert_eq!(
        folder.number("select count(*) from a"),
        u64::from(rounds) * 2_000
    );
    assert_eq!(
        folder.number("select count(distinct n) from a"),
        u64::from(rounds) * 2_000
    );
}

/// Length up to the last nonzero byte: segments are allocated before they are filled.
fn used(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rposition(|b| *b != 0)
        .map_or(0, |at| at as u64 + 1)
}

/// A request as the server submits it, with a constant as the body's hash.
fn submission(body: &[Value], key: &str) -> Submission {
    let mut records = RecordsBuilder::default();
    body.iter()
        .for_each(|record| records.push(record.to_string().as_bytes()));
    let attributes = FrameAttributes {
        idempotency: Some(([7; 32], key.to_owned())),
        ..FrameAttributes::default()
    };
    Submission {
        records: records.finish(),
        attributes,
        source: "http".into(),
        ..Submission::control(Kind::Record, "rsvps", b"")
    }
}

/// Submits requests to the log of a folder, each `times` times, and stops with everything
/// committed.
fn submit(folder: &TestFolder, requests: &[(&str, Vec<Value>)], times: usize) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let config =
        weir::config::load(Some(&folder.path("weir.toml")), None).expect("a configuration");
    let options = Options {
        once: true,
        ..Options::default()
    };
    let mut running = Running::start(&config, options, runtime.handle()).expect("starts");
    running.wait_recovered().expect("the log is read");
    let ingest = running.ingest().expect("it takes records in");
    for (key, body) in requests {
        let answers: Vec<_> = (0..times)
            .map(|_| {
                ingest
                    .submit(submission(body, key), true)
                    .and_then(|receipt| receipt.wait())
                    .expect("stored")
            })
            .map(|accepted| accepted.answer())
            .collect();
        assert!(
            answers.iter().all(|answer| *answer == answers[0]),
            "{answers:?}"
        );
        assert_eq!(
            (answers[0].accepted, answers[0].rejected_total),
            (body.len() as u64 - 1, 1)
        );
    }
    drop(ingest);
    running.stop().expect("ends");
}

#[test]
fn duplicate_requests_have_rows_only_in_raw_even_after_a_restart_and_a_rebuild() {
    let (folder, reference) = (TestFolder::new(""), TestFolder::new(""));
    for side in [&folder, &reference] {
        side.configure(HTTP_ONLY);
    }
    let all = records(600, 14);
    let keys = ["k0", "k1", "k2"];
    // Each body has a record that is rejected.
    let body = |n: usize| [&all[n * 200..(n + 1) * 200], &[json!({"rsvp_id": "x"})]].concat();
    let requests: Vec<_> = keys
        .iter()
        .enumerate()
        .map(|(n, key)| (*key, body(n)))
        .collect();
    submit(&folder, &requests[..2], 3);
    // The first two are repeated after a restart.
    submit(&folder, &requests, 2);
    submit(&reference, &requests, 1);
    let kinds = |folder: &TestFolder| -> BTreeMap<String, u64> {
        let rows = folder.rows("select kind, count(*) as n from raw group by kind");
        rows.iter()
            .map(|r| {
                (
                    r["kind"].as_str().expect("a kind").to_owned(),
                    r["n"].as_u64().expect("n"),
                )
            })
            .collect()
    };
    assert_eq!(
        (
            kinds(&folder)["record"],
            kinds(&folder)["duplicate_request"]
        ),
        (603, (4 + 4 + 1) * 201)
    );
    let wanted = reference.all_answers();
    assert_eq!(folder.all_answers(), wanted);
    let (before, dead) = (
        kinds(&folder),
        folder.number("select count(*) from dead_letters"),
    );
    assert_eq!(dead, 3);
    for view in [
        "rsvps",
        "dead_letters",
        "by_country",
        "rsvps.latest",
        "counts",
        "search",
        "places",
    ] {
        folder.succeed(&["rebuild", view]);
    }
    assert_eq!(folder.all_answers(), wanted);
    assert_eq!(kinds(&folder), before);
    // Without a snapshot everything is read from the log again.
    for entry in std::fs::read_dir(folder.path("data/operators"))
        .expect("a folder")
        .flatten()
    {
        std::fs::remove_file(entry.path()).expect("removable");
    }
    submit(&folder, &requests, 1);
    assert_eq!(folder.all_answers(), wanted);
}

#[test]
fn every_usual_type_and_coding_of_a_body_is_accepted() {
    use flate2::{Compression, write};
    let folder = two_streams();
    let server = start(&folder);
    let body = numbers(0..3);
    for name in [
        "application/json",
        "text/json; charset=utf-8",
        "application/x-ndjson",
        "application/jsonl",
        "application/octet-stream",
        "application/vnd.api+json",
        "application/cloudevents+json",
    ] {
        assert_eq!(
            post(&server, "a", &[("Content-Type", name)], &body).1["accepted"],
            3,
            "{name}"
        );
    }
    let mut gzip = write::GzEncoder::new(Vec::new(), Compression::fast());
    let mut zlib = write::ZlibEncoder::new(Vec::new(), Compression::fast());
    let mut raw = write::DeflateEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&body)
        .and_then(|()| zlib.write_all(&body))
        .and_then(|()| raw.write_all(&body))
        .expect("memory");
    let (gzip, zlib, raw) = (gzip.finish(), zlib.finish(), raw.finish());
    let (gzip, zlib, raw) = (
        gzip.expect("memory"),
        zlib.expect("memory"),
        raw.expect("memory"),
    );
    let zstd = zstd::encode_all(&body[..], 1).expect("memory");
    let packed = [
        ("gzip", &gzip),
        ("X-GZIP", &gzip),
        ("deflate", &zlib),
        ("deflate", &raw),
        ("zstd", &zstd),
    ];
    for (coding, wire) in packed {
        let headers = [("Content-Encoding", coding)];
        assert_eq!(
            post(&server, "a", &headers, wire).1["accepted"],
            3,
            "{coding}"
        );
        assert_eq!(
            post(&server, "a", &headers, &wire[..wire.len() - 1]).0,
            400,
            "{coding}"
        );
    }
    let rejected: [&[(&str, &str)]; 3] = [
        &[("Content-Encoding", "br")],
        &[("Content-Encoding", "gzip, gzip")],
        &[("Content-Type", "image/png")],
    ];
    for headers in rejected {
        assert_eq!(post(&server, "a", headers, &body).0, 415, "{headers:?}");
    }
    server.stop();
    assert_eq!(folder.number("select count(*) from a"), 12 * 3);
}

#[test]
fn a_malformed_line_is_a_dead_letter_alone_and_among_others() {
    let folder = two_streams();
    let server = start(&folder);
    let cases: [(&[u8], u64, u64); 8] = [
        (b"", 0, 0),
        (b"\n\n", 0, 0),
        (b"[]", 0, 0),
        (b"{\"n\":1,", 0, 1),
        (b"no json", 0, 1),
        (b"{\"n\":1}\n{\"n\":\n{\"n\":2}", 2, 1),
        (b"[{\"n\":3},{\"n\":\"x\"},5,null]", 1, 3),
        (b"{\n  \"n\": 4\n}", 1, 0),
    ];
    for (body, accepted, rejected) in cases {
        let (status, answer) = post(&server, "a", &[], body);
        let shown = String::from_utf8_lossy(body);
        assert_eq!(status, 200, "{shown}: {answer}");
        assert_eq!(
            (&answer["accepted"], &answer["rejected_total"]),
            (&json!(accepted), &json!(rejected)),
            "{shown}"
        );
    }
    for body in [
        &b"[{\"n\":1},"[..],
        b"[\n{\"n\":1},\n{\"n\":2}\n",
        b"\x1f\x8b\x08\x00\x00",
        b"\x89PNG\r\n\x1a\n",
    ] {
        let (status, answer) = post(&server, "a", &[], body);
        assert_eq!(
            (status, &answer["error"]["code"]),
            (400, &json!("bad_request")),
            "{answer}"
        );
    }
    server.stop();
    assert_eq!(folder.number("select count(*) from a"), 4);
    assert_eq!(folder.number("select count(*) from dead_letters"), 6);
}

#[test]
fn cloud_events_are_accepted_singly_in_batches_and_in_binary_mode() {
    let folder = TestFolder::new("");
    folder.configure(
        r#"
[server]
http = "127.0.0.1:0"
[streams.e]
schema = "id varchar not null, time varchar, data struct<n bigint>"
select = "select cast(time as timestamp) as event_time, id, data['n'] as n from e"
[streams.d]
schema = "n bigint not null"
select = "select timestamp '2024-05-01T10:00:00' as event_time, n from d"
"#,
    );
    let server = start(&folder);
    let event = |n: u32| json!({"specversion": "1.0", "id": n.to_string(), "source": "/s", "type": "t", "time": "2024-05-01T10:00:00Z", "data": {"n": n}});
    let (one, batch) = (
        event(1).to_string(),
        json!([event(2), event(3)]).to_string(),
    );
    let single = [(
        "Content-Type",
        "application/cloudevents+json; charset=utf-8",
    )];
    assert_eq!(post(&server, "e", &single, one.as_bytes()).1["accepted"], 1);
    let batched = [("Content-Type", "application/cloudevents-batch+json")];
    assert_eq!(
        post(&server, "e", &batched, batch.as_bytes()).1["accepted"],
        2
    );
    let binary = [
        ("Content-Type", "application/json"),
        ("ce-specversion", "1.0"),
        ("ce-id", "4"),
        ("ce-type", "t"),
    ];
    assert_eq!(post(&server, "d", &binary, b"{\"n\":4}").1["accepted"], 1);
    server.stop();
    assert_eq!(
        folder.rows("select id, n from e order by n"),
        [
            json!({"id": "1", "n": 1}),
            json!({"id": "2", "n": 2}),
            json!({"id": "3", "n": 3})
        ]
    );
    assert_eq!(folder.number("select n from d"), 4);
}

#[test]
fn concurrent_retries_each_count_what_they_resubmitted() {
    let folder = TestFolder::new("");
    folder.configure(&format!("{HTTP_ONLY}require = ['guests < 0']\n"));
    let server = start(&folder);
    let rows = records(50, 3);
    assert_eq!(server.post(&[], &ndjson(&rows)).1["rejected_total"], 50);
    server.stop();
    folder.configure(HTTP_ONLY);
    let server = start(&folder);
    let answers: Vec<(u16, Value)> = std::thread::scope(|scope| {
        let retry = || server.request("POST", "/api/v1/dead-letters/retry", &[], b"{}");
        let retries: Vec<_> = (0..3).map(|_| scope.spawn(retry)).collect();
        retries
            .into_iter()
            .map(|retry| retry.join().expect("an answer"))
            .collect()
    });
    assert!(
        answers.iter().all(|(status, _)| *status == 200),
        "{answers:?}"
    );
    let retried: u64 = answers
        .iter()
        .map(|(_, answer)| answer["retried"].as_u64().expect("a number"))
        .sum();
    assert_eq!(retried, 50, "{answers:?}");
    server.stop();
    assert_eq!(folder.number("select count(*) from rsvps"), 50);
}

#[test]
fn elements_of_a_member_are_records_of_a_post() {
    let folder = two_streams();
    let server = start(&folder);
    let body = br#"{"source":"x","Records":[{"n":1},{"n":"no"},{"n":3}]}"#;
    let send = |query: &str| {
        server.request(
            "POST",
            &format!("/api/v1/streams/a/events{query}"),
            &[("Idempotency-Key", "k")],
            body,
        )
    };
    let (status, answer) = send("?unwrap=Records");
    assert_eq!(
        (status, &answer["accepted"], &answer["rejected"][0]["index"]),
        (200, &json!(2), &json!(1)),
        "{answer}"
    );
    // The key covers how the body is read, too.
    assert_eq!(send("").0, 422);
    assert_eq!(send("?unwrap=Records").1, answer);
    assert_eq!(
        server
            .request(
                "POST",
                "/api/v1/streams/a/events?unwrap=Records",
                &[],
                &body[..40]
            )
            .0,
        400
    );
}
