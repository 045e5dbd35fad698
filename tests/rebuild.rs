//! A rebuilt view is what it would have been from the beginning.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use weir::message::{MessageMetadata, Tombstone};
use weir::operators::Output;
use weir::schema::Layout;
use weir::storage::Disk;
use weir::views::lake::Change;
use weir::views::lake::replay::RawFrames;
use weir::views::lake::{CommitPolicy, LakeTable, LakeView, TableSpec, compact};
use weir::views::{LogIdentity, View};
use weir::wal::{Frame, FrameAttributes, Header, Kind, RecordsBuilder, Wal};

use crate::server::start;
use crate::support::{FILE_ONLY, HTTP_ONLY, Lcg, TestFolder, ndjson, records, wait_until};

/// One more window, with an aggregate of partial states, and one more entity table: the stream does
/// not change.
const ADDED_TABLES: &str = include_str!("../testdata/rsvps_added_tables.toml");

/// Keys of the stream: another search, other counts and places, sessions, and a rule that rejects more.
const CHANGED_VIEWS: &str = include_str!("../testdata/rsvps_changed_views.toml");

/// Frequent commits and snapshots, and a log that is trimmed at once.
const SHORT_LOG: &str = include_str!("../testdata/short_log.toml");

/// All answers, with those of what the tests declare in addition to the preset.
fn answers(folder: &TestFolder, has_sessions: bool) -> BTreeMap<String, Value> {
    let mut answers = folder.all_answers();
    let mut add =
        |name: &str, query: &str| drop(answers.insert(name.into(), folder.rows(query).into()));
    add(
        "guests",
        "select window_start, country, guests, latest, status from guests order by window_start, country, status",
    );
    add(
        "answers",
        "select member_id, event_id, response, guests from rsvps.answers order by member_id, event_id",
    );
    add(
        "late",
        "select rsvp_id, mtime, guests from rsvps.late order by rsvp_id, mtime, guests",
    );
    if has_sessions {
        add(
            "sessions",
            "select key, status, started, ended, events from rsvps.sessions order by key, started, status, ended",
        );
    }
    let found = folder.ask(&["search", "event_id:e7"])["total"].clone();
    answers.insert("event".into(), found);
    answers
}

fn assert_same(folder: &TestFolder, reference: &TestFolder, has_sessions: bool) {
    assert_same_except(folder, reference, has_sessions, "");
}

fn assert_same_except(
    folder: &TestFolder,
    reference: &TestFolder,
    has_sessions: bool,
    except: &str,
) {
    let (found, mut want) = (
        answers(folder, has_sessions),
        answers(reference, has_sessions),
    );
    for (name, found) in found.into_iter().filter(|(name, _)| name != except) {
        let want = want.remove(&name).unwrap_or_default();
        let rows = |answer: &Value| {
            answer
                .as_array()
                .cloned()
                .unwrap_or_else(|| vec![answer.clone()])
        };
        let differing = rows(&found)
            .into_iter()
            .zip(rows(&want))
            .find(|(found, want)| found != want);
        assert!(
            found == want,
            "{name}: {} rows, {} wanted; {differing:?}",
            rows(&found).len(),
            rows(&want).len()
        );
    }
}

/// Adds text that hardly compresses, so that the log has several segments.
fn add_noise(records: &mut [Value]) {
    let mut numbers = Lcg(9);
    for record in records {
        record["noise"] = (0..90)
            .map(|_| format!("{:x}", numbers.below(1 << 31)))
            .collect();
    }
}

/// Rebuilds these views; returns the messages.
fn rebuild(folder: &TestFolder, views: &[&str]) -> String {
    folder.succeed(&[&["rebuild"], views].concat())
}

const ALL_VIEWS: [&str; 19] = [
    "search",
    "places",
    "counts",
    "rsvps",
    "rsvps.late",
    "rsvps.sessions",
    "dead_letters",
    "by_country",
    "totals",
    "top_events",
    "guests",
    "rsvps.answers",
    "rsvps.latest",
    "rsvps.members",
    "rsvps.events",
    "rsvps.venues",
    "rsvps.groups",
    "rsvps.topics",
    "rsvps.groups_topics",
];

#[test]
fn views_rebuilt_under_a_changed_configuration_equal_views_built_under_it() {
    let before = format!("{SHORT_LOG}{FILE_ONLY}");
    let after = format!("{before}{CHANGED_VIEWS}{ADDED_TABLES}");
    let mut all = records(9_000, 31);
    add_noise(&mut all);
    let (folder, reference) = (TestFolder::new(""), TestFolder::new(""));
    folder.configure(&before);
    for part in [2_000, 4_000, 7_000] {
        folder.write("in.ndjson", &ndjson(&all[..part]));
        folder.run_once();
    }
    assert!(
        !folder.path("data/log/0000000000000001.seg").exists(),
        "the log was trimmed"
    );
    folder.configure(&after);
    let message = folder.fail(&["run", "--once"], 2);
    assert!(message.contains("weir rebuild"), "{message}");
    rebuild(&folder, &ALL_VIEWS);
    reference.configure(&after);
    reference.write("in.ndjson", &ndjson(&all[..7_000]));
    reference.run_once();
    assert_same(&folder, &reference, true);
    // The operators continue from there.
    for side in [&folder, &reference] {
        side.write("in.ndjson", &ndjson(&all));
        side.run_once();
    }
    assert_same(&folder, &reference, true);
    assert!(!folder.path("data/rebuild/search.rsvps").exists());
}

/// Removes the files of `raw` whose records are all before one, as retention does; returns the first
/// record that is left, in `raw` or in the log, which may reach further back.
fn shorten_raw(folder: &TestFolder, before: u64) -> u64 {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let id = Wal::log_id_of(&Disk, &folder.path("data/log"))
        .expect("the log is read")
        .expect("it exists");
    let spec = TableSpec::raw(&folder.path("data/lake"), Layout::Hours);
    let log = LogIdentity {
        instance: 0,
        id,
        start_lsn: 0,
    };
    let table = LakeTable::open(spec, log, runtime.handle().clone(), true)
        .expect("raw opens")
        .expect("it exists");
    let removed = table
        .files()
        .iter()
        .filter(|file| file.max_lsn < before)
        .cloned()
        .collect::<Vec<_>>();
    assert!(
        !removed.is_empty(),
        "some files of raw come before record {before}"
    );
    let change = Change {
        remove: removed,
        data_change: true,
        ..Change::default()
    };
    table.commit(&change, &[]).expect("the files are removed");
    let in_log = fs::read_dir(folder.path("data/log"))
        .expect("the log is a folder")
        .filter_map(|entry| segment_lsn(entry.ok()?.file_name().to_str()?))
        .min()
        .expect("the log has a segment");
    in_log.min(folder.number("select min(lsn) from raw"))
}

/// The first record of the segment with this file name.
fn segment_lsn(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_suffix(".seg")?, 16).ok()
}

#[test]
fn rows_of_the_stream_replace_the_lost_beginning_of_raw() {
    let before = format!("{SHORT_LOG}{FILE_ONLY}");
    // Rows that were accepted then stay, also where they would be rejected now.
    let changed = CHANGED_VIEWS
        .lines()
        .filter(|line| !line.starts_with("require"))
        .collect::<Vec<_>>()
        .join("\n");
    let after = format!("{before}{changed}{ADDED_TABLES}");
    let mut all = records(5_500, 77);
    add_noise(&mut all);
    all[40] = serde_json::json!({"rsvp_id": "none"});
    let (folder, reference) = (TestFolder::new(""), TestFolder::new(""));
    folder.configure(&before);
    for part in [1_500, 3_000, 4_500] {
        folder.write("in.ndjson", &ndjson(&all[..part]));
        folder.run_once();
    }
    let first = shorten_raw(&folder, 3_000);
    assert!((1_500..4_500).contains(&first), "{first}");
    folder.configure(&after);
    let messages = rebuild(&folder, &ALL_VIEWS);
    let note = |rows: &str| {
        format!("the records before {first} are gone; the rows of {rows} are used instead")
    };
    assert!(
        messages.contains(&note("rsvps")) && messages.contains(&note("dead letters")),
        "{first}: {messages}"
    );
    reference.configure(&after);
    for part in [4_500, 5_500] {
        reference.write("in.ndjson", &ndjson(&all[..part]));
        folder.write("in.ndjson", &ndjson(&all[..part]));
        folder.run_once();
        reference.run_once();
        assert_same_except(&folder, &reference, true, "raw");
    }
    assert_eq!(folder.number("select count(*) from dead_letters"), 1);
}

#[test]
fn rows_derived_from_rows_that_are_gone_stay_as_they_were() {
    let folder = TestFolder::new("");
    folder.configure(&format!(
        r#"{SHORT_LOG}{FILE_ONLY}
retention = "1h"
session = {{ key = "member_id", gap = "30s" }}
[windows.minutes]
sql = """select window_start, window_end, count(*) as n, sum(guests) as more
         from tumble(rsvps, event_time, interval '1 minute') group by 1, 2"""
retention = "400d"
"#
    ));
    let mut all = records(12_000, 5);
    add_noise(&mut all);
    for part in [5_000, 9_000, 12_000] {
        folder.write("in.ndjson", &ndjson(&all[..part]));
        folder.run_once();
    }
    let rows = |what: &str| folder.rows(what);
    let minutes = "select window_start, n, more, status from minutes order by window_start, status";
    let sessions = "select key, started, ended, events, status from rsvps.sessions order by key, started, status";
    let (old_minutes, old_sessions) = (rows(minutes), rows(sessions));
    let first_row = folder.rows("select min(event_time) as t from rsvps")[0]["t"].clone();
    let first_minute = old_minutes[0]["window_start"].clone();
    assert!(
        first_minute.as_str() < first_row.as_str(),
        "{first_minute} {first_row}: the window reaches further back"
    );
    shorten_raw(&folder, 8_000);
    let messages = rebuild(&folder, &["minutes", "rsvps.sessions"]);
    assert!(messages.contains("stay as they were"), "{messages}");
    assert_eq!(rows(minutes), old_minutes);
    assert_eq!(rows(sessions), old_sessions);
}

#[test]
fn a_rebuild_killed_at_any_moment_resumes_and_ends_the_same() {
    let all = records(7_000, 5);
    let (folder, reference) = (TestFolder::new(""), TestFolder::new(""));
    folder.configure(FILE_ONLY);
    folder.write("in.ndjson", &ndjson(&all[..5_000]));
    folder.run_once();
    folder.configure(&format!("{FILE_ONLY}{ADDED_TABLES}"));
    let arguments = [
        "rebuild",
        "guests",
        "rsvps.answers",
        "search",
        "places",
        "counts",
        "top_events",
        "rsvps.members",
    ];
    let mut numbers = Lcg(3);
    for _ in 0..14 {
        let mut child = folder
            .command(&arguments)
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("the binary runs");
        std::thread::sleep(Duration::from_millis(50 + numbers.below(2_500)));
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
        // The old views answer, whatever was interrupted.
        assert_eq!(folder.number("select count(*) from rsvps"), 5_000);
    }
    rebuild(&folder, &arguments[1..]);
    reference.configure(&format!("{FILE_ONLY}{ADDED_TABLES}"));
    for side in [&folder, &reference] {
        side.write("in.ndjson", &ndjson(&all));
        side.run_once();
    }
    assert_same(&folder, &reference, false);
}

#[test]
fn a_server_keeps_serving_while_its_views_are_rebuilt() {
    let (folder, reference) = (TestFolder::new(""), TestFolder::new(""));
    folder.configure(HTTP_ONLY);
    let all = records(9_000, 12);
    let server = start(&folder);
    all[..2_000]
        .chunks(500)
        .for_each(|part| assert_eq!(server.post(&[], &ndjson(part)).0, 200));
    server.stop();
    let after = format!("{HTTP_ONLY}{ADDED_TABLES}");
    folder.configure(&after);
    let server = start(&folder);
    let (is_over, mut posted) = (AtomicBool::new(false), 2_000);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            rebuild(
                &folder,
                &["guests", "rsvps.answers", "search", "counts", "by_country"],
            );
            is_over.store(true, Ordering::Release);
        });
        // Records keep arriving; by its key a request whose answer was lost is not accepted twice.
        while posted < all.len() || !is_over.load(Ordering::Acquire) {
            let part = &all[posted..(posted + 100).min(all.len())];
            let key = format!("from-{posted}");
            let has_room = !part.is_empty();
            wait_until("the part is accepted", || {
                !has_room || server.post(&[("Idempotency-Key", &key)], &ndjson(part)).0 == 200
            });
            posted += part.len();
        }
    });
    wait_until("every view has everything", || {
        folder.ask(&["status"])["views"]
            .as_array()
            .expect("views")
            .iter()
            .all(|v| v["lag"] == 0)
    });
    server.stop();
    reference.configure(&format!("{FILE_ONLY}{ADDED_TABLES}"));
    reference.write("in.ndjson", &ndjson(&all));
    reference.run_once();
    // A server's partition does not end with the run, so open windows differ: all are closed on both
    // sides.
    for side in [&folder, &reference] {
        side.succeed(&["run", "--once", "--final"]);
    }
    assert_same(&folder, &reference, false);
}

/// A record as a replay sees it: everything that operators read.
#[derive(Debug, PartialEq)]
struct ReplayedRecord {
    lsn: u64,
    kind: Kind,
    source: String,
    partition: String,
    stream: String,
    received_at: i64,
    bytes: Vec<u8>,
    offset: Option<u64>,
    message: Option<MessageMetadata>,
    retry_of: Option<u64>,
    cut: Option<u64>,
}

/// The records of a frame above an LSN.
fn records_above(frame: &Frame, above: u64) -> Vec<ReplayedRecord> {
    let (header, attributes) = (&frame.header, &frame.attributes);
    let records = frame.records().expect("readable");
    let record = |i: usize| ReplayedRecord {
        lsn: header.first_lsn + i as u64,
        kind: header.kind,
        source: header.source.clone(),
        partition: header.partition.clone(),
        stream: header.stream.clone(),
        received_at: header.received_at,
        bytes: records.get(i).to_vec(),
        offset: attributes.offsets.get(i).copied(),
        retry_of: attributes.retry_of.get(i).copied(),
        message: attributes.messages.get(i).cloned(),
        cut: attributes
            .truncated_records
            .iter()
            .find(|(index, _)| *index == i as u64)
            .map(|(_, bytes)| *bytes),
    };
    (0..header.count as usize)
        .map(record)
        .filter(|record| record.lsn > above)
        .collect()
}

/// Frames of every kind, of several sources, small and large, under a clock that sometimes goes
/// back.
fn frames(numbers: &mut Lcg) -> Vec<Frame> {
    let (mut lsn, mut time) = (1, 1_465_520_400_000_000);
    let mut out = Vec::new();
    for _ in 0..120 {
        out.push(random_frame(numbers, lsn, &mut time));
        lsn += u64::from(out[out.len() - 1].header.count);
    }
    out
}

/// What a message of Kafka carries beside its value: its key may be any bytes.
fn random_message(numbers: &mut Lcg) -> MessageMetadata {
    let mut bytes = |length: u64| -> Option<Vec<u8>> {
        let is_present = numbers.below(3) > 0;
        is_present.then(|| (0..length).map(|_| numbers.below(256) as u8).collect())
    };
    let (key, value) = (bytes(8), bytes(3));
    MessageMetadata {
        key,
        headers: vec![("trace".into(), value)],
        timestamp_ms: (numbers.below(2) == 0).then(|| numbers.below(1 << 41) as i64),
        tombstone: (numbers.below(9) == 0).then_some(Tombstone::Skip),
        rejected: (numbers.below(9) == 0).then(|| "unreadable".to_owned()),
    }
}

fn random_frame(numbers: &mut Lcg, lsn: u64, time: &mut i64) -> Frame {
    use Kind::{DuplicateRequest, Gap, PartitionEnd, Record, RetentionFloor, Retry, Tick};
    let kinds = [
        Record,
        Record,
        Record,
        Retry,
        Tick,
        PartitionEnd,
        Gap,
        RetentionFloor,
        DuplicateRequest,
    ];
    let kind = kinds[numbers.below(9) as usize];
    let count = if matches!(kind, Record | Retry | DuplicateRequest) {
        1 + numbers.below(40)
    } else {
        1
    };
    let mut records = RecordsBuilder::default();
    for _ in 0..count {
        let length = if numbers.below(30) == 0 {
            9_000
        } else {
            numbers.below(50)
        };
        let bytes = (0..length).map(|_| numbers.below(256) as u8);
        records.push(&bytes.collect::<Vec<_>>());
    }
    let records = records.finish();
    let mut attributes = FrameAttributes::default();
    if kind == Record && numbers.below(2) == 0 {
        attributes.offsets = (0..count).map(|i| lsn * 10 + i).collect();
    }
    if kind == Retry {
        attributes.retry_of = (0..count).map(|i| i * 3 + numbers.below(3)).collect();
    }
    if kind == Record && numbers.below(4) == 0 {
        attributes.truncated_records = vec![(numbers.below(count), 5_000_000 + lsn)];
    }
    if !attributes.offsets.is_empty() && numbers.below(2) == 0 {
        attributes.messages = (0..count).map(|_| random_message(numbers)).collect();
    }
    *time += 1 + numbers.below(900_000_000) as i64;
    if numbers.below(25) == 0 {
        *time -= 5_000_000_000;
    }
    let header = Header {
        first_lsn: lsn,
        first_offset: attributes.offsets.first().copied().unwrap_or(0),
        received_at: *time,
        source: format!("s{}", numbers.below(2)),
        partition: format!("p{}", numbers.below(2)),
        ..Header::new(kind, "t")
    };
    Frame::data(header, &records, attributes).expect("memory")
}

/// Writes frames into a new `raw` in the folder, committed now and then.
fn write_raw(
    folder: &std::path::Path,
    frames: &[Frame],
    numbers: &mut Lcg,
    runtime: &tokio::runtime::Handle,
) -> Arc<LakeTable> {
    let log = LogIdentity {
        instance: 0,
        id: 1,
        start_lsn: 0,
    };
    let spec = TableSpec::raw(folder, Layout::Hours);
    let table = LakeTable::open(spec, log, runtime.clone(), true)
        .expect("opens")
        .expect("writable");
    let table = Arc::new(table);
    let never = Duration::from_secs(1_000);
    let policy = CommitPolicy {
        recent_every: never,
        late_every: never,
        rows: usize::MAX,
        bytes: usize::MAX / 4,
        pool: None,
    };
    let mut view = LakeView::new(table.clone(), policy);
    for frame in frames {
        let output = Output {
            after: frame.header.first_lsn - 1,
            to: frame.header.last_lsn(),
            frame: Arc::new(frame.clone()),
            rows: None,
            tables: Vec::new(),
            dead_letters: Vec::new(),
            retention_floors: Default::default(),
        };
        view.apply(&output, Instant::now()).expect("applied");
        if numbers.below(12) == 0 {
            view.commit(true).expect("committed");
        }
    }
    view.commit(true).expect("committed");
    table
}

#[test]
fn frames_from_raw_equal_those_of_the_log_from_any_record_on() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("threads");
    for seed in 0..6 {
        let folder = tempfile::tempdir().expect("a folder");
        let mut numbers = Lcg(seed + 40);
        let frames = frames(&mut numbers);
        let table = write_raw(folder.path(), &frames, &mut numbers, runtime.handle());
        if seed % 2 == 0 {
            compact::maintain(&table, 64 << 20, compact::MergeMode::Now, &|| false)
                .expect("merges");
        }
        let last = frames.last().map_or(0, |f| f.header.last_lsn());
        for above in [
            0,
            1,
            numbers.below(last),
            numbers.below(last),
            last - 1,
            last,
        ] {
            let want: Vec<_> = frames
                .iter()
                .flat_map(|f| records_above(f, above))
                .collect();
            let mut raw = RawFrames::new(table.spec.clone(), &table.files(), above);
            let mut found = Vec::new();
            while let Some(frame) = raw.next_frame().expect("readable") {
                found.extend(records_above(&frame, above));
            }
            assert!(
                found == want,
                "seed {seed}, above {above}: {} records, {} wanted",
                found.len(),
                want.len()
            );
        }
    }
}

#[test]
fn a_view_that_cannot_be_rebuilt_is_an_error() {
    let folder = TestFolder::new("");
    folder.write("in.ndjson", &ndjson(&records(10, 1)));
    folder.run_once();
    for (what, code, part) in [
        (
            &["rebuild", "nothing"][..],
            2,
            "available: search, places, counts, by_country",
        ),
        (
            &["rebuild", "search", "--stream", "other"][..],
            2,
            "the stream `other` does not exist",
        ),
        (&["rebuild"][..], 2, "`weir rebuild WHAT…` needs a view"),
        (&["rebuild", "raw"][..], 2, "cannot be rebuilt"),
    ] {
        let message = folder.fail(what, code);
        assert!(message.contains(part), "{what:?}: {message}");
    }
}
