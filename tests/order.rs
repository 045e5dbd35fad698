//! `order = "event_time"`: a file in any order gives what the same file sorted by hand gives,
//! whatever happens in between.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    FILE_ONLY, FREQUENT_COMMITS, Lcg, TestFolder, assert_holds_exactly, ndjson, records, wait_until,
};

const SOURCE: &str = r#"
[server]
http = "127.0.0.1:0"
[[sources]]
name = "in"
type = "file"
stream = "quakes"
"#;
const QUAKES: &str = include_str!("../testdata/quakes.toml");

/// A month of quakes in one GeoJSON document, the newest first.
fn quakes() -> Vec<Value> {
    let mut numbers = Lcg(5);
    let mut time = 1_717_200_000_000i64;
    let mut quakes: Vec<Value> = (0..1_707)
        .map(|n| {
            time += numbers.below(3_000_000) as i64;
            let mag = numbers.below(70) as f64 / 10.0;
            json!({"type": "Feature", "properties": {"mag": mag, "place": format!("place {n}"), "time": time}})
        })
        .collect();
    quakes.reverse();
    quakes
}

fn collection(quakes: &[Value]) -> Vec<u8> {
    json!({"type": "FeatureCollection", "metadata": {"count": quakes.len()}, "features": quakes})
        .to_string()
        .into_bytes()
}

fn windows(folder: &TestFolder) -> Vec<Value> {
    folder.rows("select window_start, n, greatest, status from daily order by window_start")
}

/// All of `raw`'s records, oldest first.
fn stored(folder: &TestFolder) -> Vec<Value> {
    folder.rows(
        "select source_offset, bytes from raw where kind = 'record' order by lsn limit 100000",
    )
}

#[test]
fn a_file_that_is_newest_first_fills_the_windows_of_the_same_file_sorted_by_hand() {
    let mut quakes = quakes();
    let newest_first = collection(&quakes);
    quakes.sort_by_key(|quake| quake["properties"]["time"].as_i64());
    let by_hand = collection(&quakes);
    let run = |order: &str, text: &[u8]| {
        let folder = TestFolder::new("");
        folder.configure(&format!(
            "{SOURCE}unwrap = 'features'\npath = 'quakes.geojson'\n{order}{QUAKES}"
        ));
        folder.write("quakes.geojson", text);
        let check = folder.output(&["check"]);
        let path = folder.path("quakes.geojson");
        let test = folder.output(&["test", path.to_str().expect("text"), "--final"]);
        let messages = folder.succeed(&["run", "--once", "--final"]);
        let warnings = [&check.stderr, &test.stderr, messages.as_bytes()]
            .map(|text| String::from_utf8_lossy(text).contains("disorder"));
        let sample: Value = serde_json::from_slice(&test.stdout).expect("JSON");
        (
            windows(&folder),
            sample["windows"]["daily"]
                .as_array()
                .expect("windows")
                .len(),
            warnings,
            stored(&folder),
        )
    };
    let sorted = run("order = 'event_time'\n", &newest_first);
    let reference = run("", &by_hand);
    let counted: u64 = sorted
        .0
        .iter()
        .map(|row| row["n"].as_u64().expect("a number"))
        .sum();
    assert_eq!(counted, 1_707);
    assert_eq!((&sorted.0, sorted.1), (&reference.0, reference.1));
    assert_eq!((sorted.2, reference.2), ([false; 3], [false; 3]));
    let bytes = |rows: &[Value]| {
        rows.iter()
            .map(|row| row["bytes"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(bytes(&sorted.3), bytes(&reference.3));
    assert!(
        (0..)
            .zip(&sorted.3)
            .all(|(ordinal, row)| row["source_offset"] == json!(ordinal))
    );
    // Without it, each names the setting that would help.
    let unsorted = run("", &newest_first);
    assert_eq!(unsorted.2, [true; 3]);
    assert!(
        unsorted
            .0
            .iter()
            .map(|row| row["n"].as_u64().expect("a number"))
            .sum::<u64>()
            < 100
    );
}

#[test]
fn kills_while_a_file_is_sorted_and_ingested_lose_and_duplicate_nothing() {
    let mut all = records(8_000, 7);
    all.reverse();
    // Beyond the memory for sorting, so that parts of it are written.
    let pad = "x".repeat(700);
    all.iter_mut()
        .for_each(|record| record["member"]["other"] = json!(pad));
    let folder = TestFolder::new(FREQUENT_COMMITS);
    let limits = FREQUENT_COMMITS.replace("[limits]\n", "[limits]\nmemory = '512MiB'\n");
    let source = FILE_ONLY.replace(
        "type = \"file\"\n",
        "type = \"file\"\norder = 'event_time'\n",
    );
    folder.configure(&(limits + source.as_str()));
    folder.write("in.ndjson", &ndjson(&all));
    let spilled = folder.path("data/sort");
    let (mut numbers, mut met) = (Lcg(11), 0);
    for kill in 0..8 {
        let mut child = folder
            .command(&["run", "--once", "-q"])
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary runs");
        wait_until("it sorts in files", || {
            spilled.join("0").exists() || child.try_wait().expect("a child").is_some()
        });
        // While it sorts, or anywhere after.
        std::thread::sleep(Duration::from_millis(if kill < 3 {
            0
        } else {
            numbers.below(2_500)
        }));
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
        met += u32::from(spilled.join("0").exists());
    }
    assert!(met > 0, "no kill met the files of sorting");
    folder.run_once();
    folder.run_once();
    assert!(!spilled.exists());
    all.sort_by_key(|record| record["mtime"].as_i64());
    assert_holds_exactly(&folder, &all);
    let undisturbed = TestFolder::new("");
    undisturbed.write("in.ndjson", &ndjson(&all));
    undisturbed.run_once();
    assert_eq!(folder.all_answers(), undisturbed.all_answers());
    assert_eq!(folder.number("select count(*) from rsvps.late"), 0);
}

#[test]
fn a_server_reads_the_file_once_and_halts_when_it_changes() {
    let folder = TestFolder::new("");
    folder.configure(&format!(
        "{SOURCE}path = 'quakes.ndjson'\norder = 'event_time'\n{QUAKES}"
    ));
    let mut server = folder
        .command(&["run", "-q"])
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let source = || -> Option<Value> {
        let output = folder.output(&[
            "sql",
            "select state, reason, source_offset from weir.sources where source = 'in'",
            "--output",
            "json",
        ]);
        let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
        answer["rows"].get(0).cloned()
    };
    let has_state = |state: &str| source().is_some_and(|row| row["state"] == state);
    wait_until("it waits for its file", || has_state("waiting"));
    let text = ndjson(&quakes()[..50]);
    folder.write("quakes.ndjson", &text);
    wait_until("it has read the file", || has_state("ended"));
    wait_until("it is counted", || {
        folder.number("select count(*) from quakes") == 50
    });
    // Touched, it is the same file.
    folder.write("quakes.ndjson", &text);
    folder.write(
        "quakes.ndjson",
        &[&text[..], &ndjson(&quakes()[50..51])].concat(),
    );
    wait_until("it halts", || has_state("halted"));
    let reason = source().expect("a source")["reason"].to_string();
    assert!(
        reason.contains("50 of 50 records") && reason.contains("another name"),
        "{reason}"
    );
    assert_eq!(folder.number("select count(*) from quakes"), 50);
    server.kill().expect("it can be killed");
    server.wait().expect("it ends");
    let error = folder.fail(&["run", "--once"], 1);
    assert!(error.contains("restore that file"), "{error}");
    folder.write("quakes.ndjson", &text);
    folder.run_once();
    assert_eq!(folder.number("select count(*) from quakes"), 50);
}
