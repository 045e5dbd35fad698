//! The main job on files: generated records and, where there are any, recordings.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use serde_json::Value;

use crate::support::{
    FILE_ONLY, FREE_PORT, TestFolder, assert_holds_exactly, duplicates, ndjson, recordings,
    records, wait_until, weir,
};

#[test]
fn every_answer_agrees_with_a_recount_and_a_second_run_adds_nothing() {
    let folder = TestFolder::new("");
    let all = records(5_000, 1);
    folder.write("in.ndjson", &ndjson(&all));
    folder.run_once();
    assert_holds_exactly(&folder, &all);
    let before = folder.all_answers();
    folder.run_once();
    assert_eq!(folder.all_answers(), before);
}

#[test]
fn two_halves_with_a_restart_answer_as_one_run() {
    let all = records(3_000, 2);
    let (whole, halves) = (TestFolder::new(""), TestFolder::new(""));
    whole.write("in.ndjson", &ndjson(&all));
    whole.run_once();
    halves.write("in.ndjson", &ndjson(&all[..1_234]));
    halves.run_once();
    halves.write("in.ndjson", &ndjson(&all));
    halves.run_once();
    assert_eq!(whole.all_answers(), halves.all_answers());
}

#[test]
fn gzip_array_folder_and_doubly_encoded_lines_are_the_same_records() {
    let all = records(400, 4);
    let plain = TestFolder::new("");
    plain.write("in.ndjson", &ndjson(&all));
    plain.run_once();
    let want = plain.all_answers();
    let config = |path: &str| FILE_ONLY.replace("in.ndjson", path);
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    };
    let array = serde_json::to_string_pretty(&all).expect("JSON");
    let twice: Vec<u8> = all
        .iter()
        .flat_map(|r| format!("{}\n", Value::String(r.to_string())).into_bytes())
        .collect();
    for (name, bytes) in [
        ("x.ndjson.gz", gzip(&ndjson(&all))),
        ("x.json", array.into_bytes()),
        ("twice.ndjson", twice),
    ] {
        let folder = TestFolder::new("");
        folder.write(name, &bytes);
        folder.configure(&config(name));
        folder.run_once();
        folder.run_once();
        let mut got = folder.all_answers();
        got.insert("raw".into(), want["raw"].clone());
        assert_eq!(got, want, "{name}");
    }
    let folder = TestFolder::new("");
    std::fs::create_dir(folder.path("many")).expect("a folder");
    folder.write("many/a.ndjson", &ndjson(&all[..150]));
    folder.write("many/b.ndjson.gz", &gzip(&ndjson(&all[150..])));
    folder.configure(&config("many"));
    folder.run_once();
    // A renamed file is not read again.
    std::fs::rename(folder.path("many/a.ndjson"), folder.path("many/c.ndjson")).expect("movable");
    folder.run_once();
    assert_eq!(folder.all_answers(), want);
}

#[test]
fn a_partial_line_is_reported_once_and_read_whole_when_it_is_completed() {
    let all = records(100, 5);
    let whole = ndjson(&all);
    let folder = TestFolder::new("");
    let cut = whole.len() - 200;
    folder.write("in.ndjson", &whole[..cut]);
    folder.run_once();
    folder.run_once();
    assert_eq!(folder.number("select count(*) from rsvps"), 99);
    assert_eq!(folder.number("select count(*) from dead_letters"), 1);
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(folder.path("in.ndjson"))
        .expect("a file");
    file.write_all(&whole[cut..]).expect("writable");
    assert_eq!(
        folder.number("select count(*) from dead_letters where retried_lsn is not null"),
        0
    );
    folder.run_once();
    assert_eq!(folder.number("select count(*) from rsvps"), 100);
    assert_eq!(folder.number("select count(*) from dead_letters"), 1);
    let marked = folder
        .rows("select r.lsn, d.reason from dead_letters d join rsvps r on r.lsn = d.retried_lsn");
    assert_eq!(
        marked.len(),
        1,
        "the dead letter names the record that the line became"
    );
    folder.run_once();
    assert_eq!(
        folder.number("select count(retried_lsn) from dead_letters"),
        1
    );
}

#[test]
fn a_file_replaced_under_its_name_while_running_is_read_once() {
    let folder = TestFolder::new(FREE_PORT);
    let all = records(300, 12);
    folder.write("in.ndjson", &ndjson(&all[..100]));
    let mut child = folder
        .command(&["run", "-q"])
        .spawn()
        .expect("the binary runs");
    wait_until("the file is read", || counted(&folder) == 100);
    // As rsync and editors do: a longer copy takes its place.
    folder.write("copy", &ndjson(&all));
    std::fs::rename(folder.path("copy"), folder.path("in.ndjson")).expect("movable");
    wait_until("the rest is read", || counted(&folder) >= 300);
    child.kill().and_then(|()| child.wait()).expect("it ends");
    folder.run_once();
    assert_holds_exactly(&folder, &all);
}

/// Rows by a query that may come too early.
fn counted(folder: &TestFolder) -> u64 {
    let output = folder.output(&["sql", "select count(*) as n from rsvps", "--output", "csv"]);
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .last()
        .and_then(|l| l.parse().ok())
        .unwrap_or(0)
}

#[test]
fn after_a_kill_the_folder_still_answers_and_counts_pending_records() {
    let folder = TestFolder::new(FREE_PORT);
    folder.write("in.ndjson", &ndjson(&records(200, 13)));
    let mut child = folder
        .command(&["run", "-q"])
        .spawn()
        .expect("the binary runs");
    wait_until("the file is read", || counted(&folder) == 200);
    child.kill().and_then(|()| child.wait()).expect("it ends");
    let answer = folder.ask(&["sql", "select count(*) as n from rsvps"]);
    let missing = 200 - answer["rows"][0]["n"].as_u64().expect("a number");
    assert!(
        answer["as_of"]["pending"].as_u64() >= Some(missing),
        "{answer}"
    );
    folder.run_once();
    assert_eq!(folder.number("select count(*) from rsvps"), 200);
}

#[test]
fn recordings_agree_with_a_recount() {
    let Some(recorded) = recordings() else { return };
    let bytes = std::fs::read(recorded.join("rsvps-2015-03-08.ndjson")).expect("the recording");
    let lines = bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty());
    let all: Vec<Value> = lines
        .filter_map(|l| serde_json::from_slice(l).ok())
        .collect();
    let folder = TestFolder::new("");
    folder.write("in.ndjson", &bytes);
    folder.run_once();
    assert_eq!(
        folder.number("select count(*) from rsvps"),
        all.len() as u64
    );
    let distinct = duplicates(&all).iter().filter(|r| !**r).count() as u64;
    assert_eq!(
        folder.number("select count(*) from rsvps where not is_duplicate"),
        distinct
    );
    assert_eq!(folder.ask(&["count"])["count"], distinct);
    // A query about seconds that are not whole reads the edges from the table.
    let from = all[100]["mtime"].as_i64().expect("a number");
    let to = from + 61_234;
    let inside = |r: &&Value| (from..to).contains(&r["mtime"].as_i64().expect("a number"));
    let count = folder.ask(&[
        "count",
        "--duplicates",
        "--from",
        &from.to_string(),
        "--to",
        &to.to_string(),
    ]);
    assert_eq!(count["count"], all.iter().filter(inside).count() as u64);
}

/// What `weir try` writes for real records of two domains accepts all of them, also those that are
/// not in its sample.
#[test]
fn tried_recordings_are_accepted_and_agree_with_a_recount() {
    let Some(recorded) = recordings() else { return };
    let packed = std::fs::File::open(recorded.join("wikipedia-edits-2015-09-12.ndjson.gz"));
    let mut edits = String::new();
    flate2::read::GzDecoder::new(packed.expect("the recording"))
        .read_to_string(&mut edits)
        .expect("gzip");
    let rsvps = std::fs::read_to_string(recorded.join("rsvps-2015-03-08.ndjson"));
    let rsvps = rsvps.expect("the recording");
    for (file, lines, stream, column) in [
        ("rsvps-2015-03-08.ndjson", &rsvps, "rsvps", "response"),
        (
            "wikipedia-edits-2015-09-12.ndjson.gz",
            &edits,
            "wikipedia_edits",
            "channel",
        ),
    ] {
        let all: Vec<Value> = lines
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let folder = TestFolder::new("");
        let output = weir()
            .args(["try", "--force", "--output", "json"])
            .arg(recorded.join(file))
            .current_dir(folder.path(""))
            .output()
            .expect("the binary runs");
        let messages = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{file}: {messages}");
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(report["stream"], stream, "{report}");
        assert_eq!(report["accepted"], report["records"], "{report}");
        assert_eq!(report["answers"]["events"], report["records"], "{report}");
        let sampled = report["records"].as_u64().expect("a number") as usize;
        assert!((1_000..=all.len()).contains(&sampled), "{report}");

        folder.run_once();
        assert_eq!(folder.number("select count(*) from dead_letters"), 0);
        let mut expected: BTreeMap<&str, u64> = BTreeMap::new();
        for record in &all {
            *expected
                .entry(record[column].as_str().expect("text"))
                .or_default() += 1;
        }
        let rows = folder.rows(&format!(
            "select {column} as v, count(distinct lsn) as n from {stream} group by 1"
        ));
        let found = rows.iter().map(|row| {
            let value = row["v"].as_str().expect("text");
            (value, row["n"].as_u64().expect("a number"))
        });
        assert_eq!(found.collect::<BTreeMap<_, _>>(), expected, "{file}");
        let rows = format!("select count(*) from {stream}");
        assert_eq!(folder.number(&rows), all.len() as u64, "{file}");
    }
}
