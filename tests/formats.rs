//! Bytes as people have them → records: pretty-printed files, arrays of any size, envelopes, what
//! is next to records, standard input.

use std::io::Write;
use std::process::{Child, Stdio};

use serde_json::json;

use crate::support::{TestFolder, wait_until};

const NUMBERS: &str = include_str!("../testdata/numbers.toml");

/// A stream of numbers from `path`, with `more` keys of its source.
fn numbers(path: &str, more: &str) -> TestFolder {
    let folder = TestFolder::new("");
    let path = format!("path = \"{path}\"");
    folder.configure(&(NUMBERS.replace("path = \"in\"", &path) + more));
    folder
}

fn record(n: usize) -> String {
    format!("{{\"n\":{n},\"at\":\"2024-05-01T10:00:00Z\"}}")
}

/// The numbers stored, in their order, with the offsets of their records.
fn stored(folder: &TestFolder) -> Vec<(u64, u64)> {
    let rows = folder
        .rows("select a.n, raw.source_offset from a join raw on a.lsn = raw.lsn where raw.kind = 'record' order by a.n");
    let number = |value: &serde_json::Value| value.as_u64().expect("a number");
    rows.iter()
        .map(|row| (number(&row["n"]), number(&row["source_offset"])))
        .collect()
}

fn dead_letters(folder: &TestFolder) -> u64 {
    folder.number("select count(*) from dead_letters")
}

#[test]
fn files_of_any_layout_are_read() {
    let folder = numbers("in", "");
    std::fs::create_dir(folder.path("in")).expect("a folder");
    let pretty = |n: usize| {
        record(n)
            .replace(',', ",\n  ")
            .replace('{', "{\n  ")
            .replace('}', "\n}")
    };
    let files = [
        (
            "bom.json",
            format!("\u{feff}{}\n{}\n", record(1), record(2)),
            vec![3, 3 + 41],
        ),
        (
            "crlf.json",
            format!("{}\r\n{}\r\n", record(3), record(4)),
            vec![0, 42],
        ),
        (
            "array.json",
            format!("\u{feff}[\n  {},\n  {}\n]\n", record(5), record(6)),
            vec![7, 7 + 40 + 4],
        ),
        (
            "pretty.json",
            format!("{}\n{}\n", pretty(7), pretty(8)),
            vec![0, 41 + 7],
        ),
        (
            "joined.json",
            format!("{}{} {}\n", record(10), record(11), record(12)),
            vec![0, 41, 83],
        ),
        (
            "zeros.json",
            format!("{}\0\0\n\0\0{}", record(13), record(14)),
            vec![0, 46],
        ),
        (
            "cr.json",
            format!("{}\r{}\r", record(15), record(16)),
            vec![0, 42],
        ),
    ];
    let mut wanted = Vec::new();
    for (name, text, _) in &files {
        folder.write(&format!("in/{name}"), text.as_bytes());
        for n in 1..=16 {
            let compact: String = text.chars().filter(|c| !matches!(c, '\n' | ' ')).collect();
            if compact.contains(&record(n)) {
                let at = text.find(&format!("\"n\":{n},")).expect("it is there");
                let start = text[..at].rfind('{').expect("an object begins");
                wanted.push((n as u64, start as u64));
            }
        }
    }
    wanted.sort_unstable();
    folder.run_once();
    assert_eq!(stored(&folder), wanted);
    assert_eq!(dead_letters(&folder), 0);
}

#[test]
fn a_damaged_record_is_one_dead_letter() {
    let folder = numbers("in", "");
    std::fs::create_dir(folder.path("in")).expect("a folder");
    let cut = &record(99)[..20];
    folder.write(
        "in/lines.json",
        format!("{}\n{cut}{}\n{}\n", record(1), record(98), record(2)).as_bytes(),
    );
    folder.write(
        "in/array.json",
        format!(
            "[\n{},\n{cut}{},\n{}\n]\n",
            record(3),
            record(98),
            record(4)
        )
        .as_bytes(),
    );
    let long = format!("{{\"n\":97,\"s\":\"{}\"}}", "x".repeat(10_000));
    folder.write(
        "in/long.json",
        format!("[{},{long},{}]", record(5), record(6)).as_bytes(),
    );
    folder.run_once();
    let found: Vec<u64> = stored(&folder).into_iter().map(|(n, _)| n).collect();
    assert_eq!(found, [1, 2, 3, 4, 5, 6]);
    let dead = folder
        .rows("select length(bytes) as stored, reason from dead_letters order by length(bytes)");
    assert_eq!(dead.len(), 3, "{dead:?}");
    assert_eq!(dead[2]["stored"], 1024);
    assert!(
        dead[2]["reason"].as_str().expect("text").contains("10015"),
        "{}",
        dead[2]["reason"]
    );
}

#[test]
fn elements_of_a_member_are_records_and_reading_resumes_among_them() {
    let folder = numbers("in.json", "unwrap = 'Records'");
    let elements = |range: std::ops::Range<usize>| range.map(record).collect::<Vec<_>>().join(", ");
    let text = format!(
        "{{\"source\":{{\"x\":[1]}},\"Records\":[{}],\"count\":3000}}\n",
        elements(0..3_000)
    );
    let more = format!("{{\"Records\":[{}]}}\n", elements(3_000..3_010));
    // Incomplete in an element, as by a kill of the writer; then complete; then with another object
    // after it.
    folder.write("in.json", &text.as_bytes()[..text.len() / 2]);
    folder.run_once();
    let before = folder.number("select count(*) from a");
    assert!((1_000..2_000).contains(&before), "{before}");
    for complete in [text.clone(), text.clone() + more.as_str()] {
        folder.write("in.json", complete.as_bytes());
        folder.run_once();
    }
    let found = stored(&folder);
    assert_eq!(
        found.iter().map(|(n, _)| *n).collect::<Vec<_>>(),
        (0..3_010).collect::<Vec<u64>>()
    );
    let complete = text + more.as_str();
    for (n, offset) in found {
        assert!(
            complete[offset as usize..].starts_with(&record(n as usize)),
            "{n} at {offset}"
        );
    }
    assert_eq!(
        folder.number("select count(*) from dead_letters where retried_lsn is null"),
        0
    );
}

fn run(folder: &TestFolder, arguments: &[&str]) -> Child {
    folder
        .command(arguments)
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs")
}

fn gaps(folder: &TestFolder) -> u64 {
    folder.number("select count(*) from weir.gaps")
}

#[test]
fn a_line_without_an_end_on_standard_input_is_one_dead_letter() {
    let folder = numbers("-", "");
    let mut child = run(&folder, &["run", "--once", "--memory", "512MiB"]);
    let mut input = child.stdin.take().expect("piped");
    let block = vec![b'a'; 1 << 20];
    for _ in 0..400 {
        input.write_all(&block).expect("it is read");
    }
    writeln!(input, "\n{}", record(1)).expect("it is read");
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let peak = status.lines().find_map(|line| {
        line.strip_prefix("VmHWM:")?
            .trim()
            .strip_suffix(" kB")?
            .parse::<u64>()
            .ok()
    });
    drop(input);
    assert!(child.wait().expect("it ends").success());
    assert!(peak.is_none_or(|kib| kib < 400 << 10), "{peak:?} KiB");
    assert_eq!(stored(&folder), [(1, (400 << 20) + 1)]);
    let dead = folder.rows("select length(bytes) as stored, reason from dead_letters");
    assert_eq!((dead.len(), &dead[0]["stored"]), (1, &json!(1024)));
    assert!(
        dead[0]["reason"]
            .as_str()
            .expect("text")
            .contains("419430400"),
        "{}",
        dead[0]["reason"]
    );
}

#[test]
fn standard_input_that_was_not_read_to_its_end_leaves_a_gap() {
    let folder = numbers("-", "");
    let feed = |text: &str| {
        let mut child = run(&folder, &["run", "--once"]);
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(text.as_bytes())
            .expect("it is read");
        assert!(child.wait().expect("it ends").success());
    };
    // Cut in its last line: nothing of the next run's input belongs to it.
    feed(&format!("{}\n{}", record(1), &record(2)[..10]));
    feed(&format!("{}\n", record(3)));
    assert_eq!((gaps(&folder), dead_letters(&folder)), (0, 1));
    assert_eq!(
        folder.number("select count(*) from dead_letters where retried_lsn is not null"),
        0
    );
    assert_eq!(stored(&folder), [(1, 0), (3, 0)]);

    // What comes is stored while more is waited for; then a kill.
    let mut child = run(&folder, &["run"]);
    let mut input = child.stdin.take().expect("piped");
    writeln!(input, "{}", record(4)).expect("it is read");
    wait_until("the record is stored", || {
        let output = folder.output(&["sql", "select n from a where n = 4", "--output", "csv"]);
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains('4')
    });
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    feed(&format!("{}\n", record(5)));
    assert_eq!(gaps(&folder), 1);
    let gap = folder.rows("select source, reason from weir.gaps");
    assert_eq!(gap[0]["source"], "in");
    feed("");
    feed(&format!("{}\n", record(6)));
    assert_eq!((gaps(&folder), stored(&folder).len()), (1, 5));
}

#[test]
fn a_sample_is_read_as_the_source_would() {
    let folder = numbers("in.json", "unwrap = 'rows'");
    folder.write("in.json", b"");
    folder.write(
        "sample.json",
        format!(
            "{{\n  \"v\": 1,\n  \"rows\": [\n    {},\n    {}\n  ]\n}}\n",
            record(1),
            record(2)
        )
        .as_bytes(),
    );
    let output = folder
        .command(&["test"])
        .arg(folder.path("sample.json"))
        .output()
        .expect("the binary runs");
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        answer["records"].as_array().map(Vec::len),
        Some(2),
        "{answer}"
    );
}
