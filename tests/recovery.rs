//! A full log, a trimmed log, a view that lags far behind, a wrong clock, and a start that fails:
//! nothing else waits, nothing is lost, and existing data stays.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;
use weir::clock::SystemClock;
use weir::event::Lsn;
use weir::ids::{CheckpointId, TableId, ViewId};
use weir::ingest::{Ingest, IngestError, LogMaintenance, Receipt, Submission};
use weir::operators::{Operators, Output};
use weir::runtime::snapshots::{LogCatchUp, Snapshots};
use weir::schema::Catalog;
use weir::storage::{Disk, Storage};
use weir::views::driver::CatchUp;
use weir::views::{View, ViewError};
use weir::wal::{
    Frame, FrameAttributes, Header, Kind, LogReader, Records, RecordsBuilder, Wal, WalError,
    WalOptions, segment,
};

use crate::server::Server;
use crate::support::{
    FREQUENT_COMMITS, HTTP_ONLY, Lcg, TestFolder, assert_holds_exactly, copy, files, ndjson,
    records, wait_until,
};

const SEGMENT: u64 = 4096;

/// A stream of times alone.
const SECOND_STREAM: &str = r#"
[streams.more]
schema = "at bigint not null"
select = "select to_timestamp_millis(at) as event_time from more"
"#;

fn options(folder: PathBuf, budget: Option<u64>) -> WalOptions {
    WalOptions {
        folder,
        instance: 0,
        start_lsn: 0,
        segment_bytes: SEGMENT,
        budget,
        reserved_disk_bytes: 0,
    }
}

fn catalog() -> Arc<Catalog> {
    let text = SECOND_STREAM.replace("more", "s");
    let config = weir::config::parse(None, text, None, &|_| None).expect("valid");
    Arc::new(Catalog::from_config(&config).expect("valid"))
}

/// A record of about 900 bytes that does not compress.
fn noise(numbers: &mut Lcg) -> Vec<u8> {
    (0..900).map(|_| b'a' + numbers.below(26) as u8).collect()
}

struct Intake {
    ingest: Option<Ingest>,
    maintenance: LogMaintenance,
    thread: std::thread::JoinHandle<Result<Wal, WalError>>,
    numbers: Lcg,
    folder: PathBuf,
    next: BTreeMap<String, u64>,
}

impl Intake {
    /// A log of four segments, the last of which is for control frames.
    fn start(folder: PathBuf) -> Self {
        let (wal, _) = Wal::open(
            Arc::new(Disk),
            options(folder.clone(), Some(4 * SEGMENT)),
            1,
            0,
        )
        .expect("opens");
        let maintenance = LogMaintenance::default();
        let (ingest, thread) = Ingest::start(
            wal,
            catalog(),
            Arc::new(SystemClock::default()),
            1 << 20,
            maintenance.clone(),
            |_| {},
            |_| {},
        );
        let next = BTreeMap::new();
        Self {
            ingest: Some(ingest),
            maintenance,
            thread,
            numbers: Lcg(3),
            folder,
            next,
        }
    }

    fn submit(
        &mut self,
        kind: Kind,
        source: &str,
        offset: Option<u64>,
        wait: bool,
    ) -> Result<Receipt, IngestError> {
        let mut records = RecordsBuilder::default();
        match kind {
            Kind::Record | Kind::Retry => records.push(&noise(&mut self.numbers)),
            _ => records.push(b"{}"),
        }
        let submission = Submission {
            kind,
            source: source.into(),
            partition: String::new(),
            stream: "s".into(),
            records: records.finish(),
            first_offset: offset.unwrap_or(0),
            previous_offset: 0,
            attributes: FrameAttributes {
                next_offset: offset.map(|o| o + 1),
                ..FrameAttributes::default()
            },
        };
        self.ingest
            .as_ref()
            .expect("it runs")
            .submit(submission, wait)
    }

    /// The next frame of a pull source.
    fn pull(&mut self, source: &str) -> Receipt {
        let next = self.next.entry(source.into()).or_default();
        let offset = *next;
        *next += 1;
        self.submit(Kind::Record, source, Some(offset), false)
            .expect("it is queued")
    }

    fn stop(mut self) -> Wal {
        drop(self.ingest.take());
        self.thread.join().expect("it ends").expect("no error")
    }

    /// Offsets in the log, by source.
    fn stored(folder: &Path, after: Lsn, to: Lsn) -> BTreeMap<String, Vec<u64>> {
        let mut reader = LogReader::new(Arc::new(Disk), folder.to_owned(), after);
        let mut stored: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        while let Some(frame) = reader.next(to).expect("readable") {
            if frame.header.kind == Kind::Record {
                stored
                    .entry(frame.header.source)
                    .or_default()
                    .push(frame.header.first_offset);
            }
        }
        stored
    }
}

/// Submits frames of `a` and `b` until the log is full and one waits; returns their receipts.
fn fill(intake: &mut Intake) -> Vec<Receipt> {
    let probe = intake.ingest.as_ref().expect("it runs").intake();
    let mut waiting = Vec::new();
    for n in 0.. {
        waiting.push(intake.pull(if n % 2 == 0 { "a" } else { "b" }));
        // Either it is stored and acknowledged, or it waits because the log is full.
        let synced = |intake: &Intake| intake.ingest.as_ref().expect("it runs").synced_lsn();
        wait_until("it is stored or waits", || {
            synced(intake) == n + 1 || probe.full().is_some()
        });
        if probe.full().is_some() {
            break;
        }
    }
    waiting
}

/// Submits control frames until the space reserved for them is full too.
fn fill_with_control_frames(intake: &mut Intake) {
    let mut control = 0;
    for kind in [Kind::Gap, Kind::RetentionFloor, Kind::Tick, Kind::CloseAll]
        .into_iter()
        .cycle()
    {
        match intake
            .submit(kind, "", None, false)
            .expect("it is queued")
            .wait()
        {
            Ok(_) => control += 1,
            Err(error) => {
                assert!(error.to_string().contains("`[log] budget`"), "{error}");
                break;
            }
        }
        assert!(control < 1_000, "the log grows without end");
    }
    assert!(control > 4, "{control} control frames");
}

#[test]
fn frames_that_wait_for_space_in_the_log_delay_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut intake = Intake::start(folder.path().join("log"));
    let receipts = fill(&mut intake);
    let stored_before = receipts.len() as u64 - 1;
    // Records that cannot wait are rejected at once, as are retried dead letters, even if the
    // caller would wait for the queue.
    for (kind, wait) in [
        (Kind::Record, false),
        (Kind::Retry, false),
        (Kind::Retry, true),
    ] {
        let answer = intake
            .submit(kind, "http", None, wait)
            .and_then(|receipt| receipt.wait());
        let error = answer.err().expect("it is rejected").to_string();
        assert!(error.contains("`[log] budget`"), "{error}");
    }
    fill_with_control_frames(&mut intake);
    let bytes: u64 = files(&intake.folder)
        .values()
        .map(|bytes| bytes.len() as u64)
        .sum();
    assert!(bytes <= 4 * SEGMENT, "{bytes} bytes are over the budget");
    // The rest of the segment that control frames started is not for records.
    let answer = intake.submit(Kind::Record, "http", None, false);
    assert!(matches!(answer, Err(IngestError::NoSpace { .. })));
    // Once there is space, the deferred frames are appended in order.
    let second = segment_lsns(&intake.folder)[1];
    for first in segment_lsns(&intake.folder).into_iter().take(3) {
        intake.maintenance.request_removal(first);
    }
    let count = receipts.len();
    receipts
        .into_iter()
        .for_each(|receipt| drop(receipt.wait().expect("it is stored")));
    let probe = intake.ingest.as_ref().expect("it runs").intake();
    wait_until("the log has space", || probe.full().is_none());
    intake
        .submit(Kind::Record, "http", None, false)
        .expect("it is queued")
        .wait()
        .expect("it is stored");
    intake.pull("a").wait().expect("it is stored");
    let folder = intake.folder.clone();
    let wal = intake.stop();
    let rest = segment_lsns(&folder)[0];
    assert!(rest > second && stored_before < wal.synced_lsn());
    let stored = Intake::stored(&folder, rest - 1, wal.synced_lsn());
    let last_offsets = [("a", count.div_ceil(2) as u64), ("b", count as u64 / 2 - 1)];
    for (source, last) in last_offsets {
        let offsets = &stored[source];
        assert!(
            offsets.windows(2).all(|pair| pair[1] == pair[0] + 1),
            "{source}: {offsets:?}"
        );
        assert_eq!(offsets.last(), Some(&last), "{source}");
    }
}

fn segment_lsns(folder: &Path) -> Vec<Lsn> {
    Disk.list(folder)
        .expect("a folder")
        .iter()
        .filter_map(|name| segment::first_lsn(name))
        .collect()
}

#[test]
fn a_stop_rejects_deferred_frames_and_all_that_follow_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut intake = Intake::start(folder.path().join("log"));
    let receipts = fill(&mut intake);
    let more: Vec<Receipt> = (0..4)
        .filter_map(|_| intake.submit(Kind::PartitionEnd, "a", Some(99), false).ok())
        .collect();
    intake.ingest.as_ref().expect("it runs").intake().close();
    let answers: Vec<bool> = receipts
        .into_iter()
        .map(|receipt| receipt.wait().is_ok())
        .collect();
    let accepted = answers.iter().filter(|ok| **ok).count();
    assert!(
        answers[..accepted].iter().all(|ok| *ok) && accepted + 1 == answers.len(),
        "{answers:?}"
    );
    // The end of a source whose record waited is not stored without that record.
    let belongs_to_a = (answers.len() - 1).is_multiple_of(2);
    for receipt in more {
        assert_eq!(receipt.wait().is_ok(), !belongs_to_a);
    }
    let folder = intake.folder.clone();
    let wal = intake.stop();
    let stored = Intake::stored(&folder, 0, wal.synced_lsn());
    assert_eq!(stored.values().map(Vec::len).sum::<usize>(), accepted);
    assert!(
        stored
            .values()
            .all(|own| own.iter().copied().eq(0..own.len() as u64)),
        "{stored:?}"
    );
}

fn frame(kind: Kind, content: &str) -> Frame {
    let header = Header {
        received_at: 1_465_520_400_000_000,
        source: "s".into(),
        ..Header::new(kind, "s")
    };
    Frame::data(
        header,
        &Records::single(content.as_bytes()),
        FrameAttributes::default(),
    )
    .expect("memory")
}

/// A log of `count` records in several segments.
fn log_of(folder: &Path, count: u64) -> Wal {
    let (mut wal, _) =
        Wal::open(Arc::new(Disk), options(folder.join("log"), None), 1, 0).expect("opens");
    let mut numbers = Lcg(9);
    for _ in 0..count {
        let content = String::from_utf8(noise(&mut numbers)).expect("text");
        wal.append(&mut frame(Kind::Record, &content))
            .and_then(|()| wal.sync())
            .expect("space");
    }
    wal
}

#[test]
fn a_reader_whose_next_segment_was_removed_reports_missing_records() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut wal = log_of(folder.path(), 20);
    let log = folder.path().join("log");
    let firsts = segment_lsns(&log);
    assert!(firsts.len() > 3);
    let mut reader = LogReader::new(Arc::new(Disk), log.clone(), 0);
    reader.next(20).expect("readable").expect("a frame");
    for first in &firsts[..2] {
        wal.remove_segment(*first).expect("removable");
    }
    // The open segment is read to its end.
    let error = loop {
        match reader.next(20) {
            Ok(frame) => assert!(frame.is_some(), "it ends early"),
            Err(error) => break error,
        }
    };
    assert_eq!(reader.after() + 1, firsts[1]);
    let WalError::Missing { from, to, path } = error else {
        panic!("{error}")
    };
    assert_eq!(
        (from, to, path),
        (firsts[1], firsts[2] - 1, segment::path(&log, firsts[2]))
    );
    // Damage inside an existing segment is reported as damage.
    let path = segment::path(&log, firsts[2]);
    let mut bytes = std::fs::read(&path).expect("readable");
    bytes[200..].fill(0);
    std::fs::write(&path, bytes).expect("writable");
    let error = LogReader::new(Arc::new(Disk), log, firsts[2] - 1)
        .next(20)
        .map(drop)
        .expect_err("it is damaged");
    assert!(matches!(error, WalError::Damaged { .. }), "{error}");
}

/// A view without rows: the log is trimmed regardless of it.
struct Sparse {
    id: ViewId,
    applied: Lsn,
    committed: Vec<(CheckpointId, Lsn)>,
}

impl View for Sparse {
    fn id(&self) -> &ViewId {
        &self.id
    }
    fn applied(&self) -> Lsn {
        self.applied
    }
    fn checkpoints(&self) -> Vec<(CheckpointId, Lsn)> {
        self.committed.clone()
    }
    fn advance_to(&mut self, lsn: Lsn) {
        self.applied = self.applied.max(lsn);
    }
    fn apply(&mut self, output: &Output, _: Instant) -> Result<(), ViewError> {
        self.applied = self.applied.max(output.to);
        Ok(())
    }
    fn is_due(&self, _: Instant, _: bool) -> bool {
        false
    }
    fn commit(&mut self, _: bool) -> Result<(), ViewError> {
        Ok(())
    }
    fn checkpoint(&mut self) -> Result<(), ViewError> {
        Ok(())
    }
    fn reset_to_committed(&mut self) -> Result<(), ViewError> {
        Ok(())
    }
}

#[test]
fn a_view_below_a_trimmed_log_continues_from_a_newer_snapshot_or_reports_missing_records() {
    for (id, can_continue) in [(ViewId::search("s"), true), (TableId::Raw.view(), false)] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut wal = log_of(folder.path(), 20);
        let log = folder.path().join("log");
        let firsts = segment_lsns(&log);
        let snapshots = Snapshots {
            storage: Arc::new(Disk),
            folder: folder.path().join("operators"),
            log: log.clone(),
            start_lsn: 0,
            unsynced: Arc::default(),
        };
        Disk.create_folder(&snapshots.folder).expect("a folder");
        let mut operators = Operators::new(catalog(), 0);
        let mut reader = LogReader::new(Arc::new(Disk), log, 0);
        while operators.lsn() < firsts[2] {
            let frame = reader.next(20).expect("readable").expect("a frame");
            let decoded = operators.decode(&frame).expect("readable");
            operators
                .apply(&Arc::new(frame), decoded.as_ref())
                .expect("applies");
        }
        let catch_up = LogCatchUp::new(snapshots, Arc::default());
        let mut view = Sparse {
            applied: 0,
            committed: vec![((&id).into(), 0)],
            id,
        };
        let target = |at: Lsn| (at < 20).then_some(20);
        let mut trimmed = false;
        let result = catch_up.replay(&mut view, &target, &mut |view, output| {
            // With its first record, the newer snapshot is saved and the log below it removed.
            if !std::mem::replace(&mut trimmed, true) {
                catch_up.snapshots.save(&operators).expect("writable");
                firsts[..2]
                    .iter()
                    .for_each(|first| wal.remove_segment(*first).expect("removable"));
            }
            view.apply(output, Instant::now())
        });
        if can_continue {
            assert!(result.expect("it continues"));
            assert_eq!(view.applied(), 20);
        } else {
            // It has rows below that snapshot, so the log must not have been trimmed.
            let error = result.expect_err("records are missing");
            assert!(
                error.is_final() && error.to_string().contains("are missing"),
                "{error}"
            );
        }
    }
}

#[test]
fn a_snapshot_above_the_log_is_an_error_and_nothing_changes() {
    let folder = TestFolder::new("");
    folder.write("in.ndjson", &ndjson(&records(300, 1)));
    folder.run_once();
    let newest = files(&folder.path("data/operators"))
        .into_keys()
        .next_back()
        .expect("a snapshot");
    let ahead = newest.with_file_name("00000000000f0000.snap");
    std::fs::copy(&newest, &ahead).expect("writable");
    let before = files(&folder.path("data"));
    for verb in [&["run", "--once"][..], &["sql", "select 1"], &["compact"]] {
        let message = folder.fail(verb, 65);
        assert!(
            message.contains("983040") && message.contains("the log ends with record"),
            "{verb:?}: {message}"
        );
    }
    let mut after = files(&folder.path("data"));
    // The lock names the process that held the folder last.
    after.insert(
        folder.path("data/lock"),
        before[&folder.path("data/lock")].clone(),
    );
    assert!(
        after == before,
        "{:?}",
        after
            .keys()
            .filter(|path| before.get(*path) != after.get(*path))
            .collect::<Vec<_>>()
    );
    std::fs::remove_file(ahead).expect("removable");
    folder.run_once();
    assert_holds_exactly(&folder, &records(300, 1));
}

/// The number of records that the live operators read again, from the log messages.
fn records_read_again(messages: &str) -> u64 {
    let line = messages
        .lines()
        .find(|line| line.contains("were missing in some views"));
    line.map_or(0, |line| {
        line.split(' ')
            .next()
            .and_then(|n| n.parse().ok())
            .expect("a number")
    })
}

/// The log is trimmed as soon as possible, so only the view's checkpoint retains what it needs.
#[cfg(target_os = "linux")]
#[test]
fn a_view_that_could_not_commit_catches_up_while_everything_else_has_started() {
    let folder = TestFolder::new("");
    folder.configure(&format!("{FREQUENT_COMMITS}keep = '0s'\n{HTTP_ONLY}"));
    let library = folder.build_library("disk.c");
    let (all, mut written) = (records(40_000, 41), 500);
    {
        let server = crate::server::start(&folder);
        assert_eq!(server.post(&[], &ndjson(&all[..500])).0, 200);
    }
    folder.run_once();
    let failing = folder.path("data/search").canonicalize().expect("a folder");
    {
        let mut command = folder.command(&["run"]);
        command
            .env("LD_PRELOAD", &library)
            .env("FAIL_UNDER", failing)
            .env("FAIL_AFTER", "60");
        command
            .env("FAIL_FOR", (u64::MAX / 2).to_string())
            .env("FAIL_WITH", "28");
        let server = Server::start(&mut command, &folder.path("data"));
        let snapshots = || files(&folder.path("data/operators")).into_keys();
        let last = snapshots().last();
        // A snapshot is written when enough has been logged since the last one.
        while snapshots()
            .filter(|path| Some(path) > last.as_ref())
            .count()
            < 2
        {
            let part = &all[written..written + 500];
            assert_eq!(server.post(&[], &ndjson(part)).0, 200);
            written += 500;
        }
        let count = json!({"sql": "select count(*) as n from rsvps"}).to_string();
        wait_until("all other views have it", || {
            server
                .request("POST", "/api/v1/sql", &[], count.as_bytes())
                .1["rows"][0]["n"]
                == written
        });
        server.kill();
    }
    copy(&folder.path("data"), &folder.path("far"));
    // Killed at once, and killed again while it catches up.
    for _ in 0..3 {
        let server = crate::server::start(&folder);
        server.kill();
    }
    folder.run_once();
    assert_holds_exactly(&folder, &all[..written]);
    std::fs::remove_dir_all(folder.path("data")).expect("removable");
    std::fs::rename(folder.path("far"), folder.path("data")).expect("movable");
    let messages = folder.run_once();
    assert!(
        messages.contains("search/rsvps")
            && messages.contains("lags by more than a snapshot interval"),
        "{messages}"
    );
    assert!(
        records_read_again(&messages) < written as u64 - 500,
        "the live operators began at the index's checkpoint: {messages}"
    );
    assert_holds_exactly(&folder, &all[..written]);
    assert!(
        !folder.run_once().contains("snapshot interval"),
        "it has caught up"
    );
}

#[test]
fn views_restored_to_older_copies_and_killed_during_catch_up_lose_and_duplicate_nothing() {
    let folder = TestFolder::new(FREQUENT_COMMITS);
    let all = records(9_000, 43);
    folder.write("in.ndjson", &ndjson(&all[..400]));
    folder.run_once();
    copy(&folder.path("data"), &folder.path("old"));
    let mut numbers = Lcg(19);
    let mut written = 400;
    let views = [
        "search",
        "state",
        "lake/rsvps",
        "lake/by_country_versions",
        "lake/rsvps.members",
        "lake/raw",
    ];
    for (round, view) in views.iter().cycle().take(18).enumerate() {
        written = (written + 450).min(all.len());
        folder.write("in.ndjson", &ndjson(&all[..written]));
        folder.run_and_kill_after(std::time::Duration::from_millis(100 + numbers.below(900)));
        // Every other round the catch-up is not disturbed.
        if round % 2 == 0 && folder.path("old").join(view).exists() {
            std::fs::remove_dir_all(folder.path("data").join(view)).expect("removable");
            copy(
                &folder.path("old").join(view),
                &folder.path("data").join(view),
            );
        }
        if round % 6 == 5 {
            folder.run_once();
            assert_holds_exactly(&folder, &all[..written]);
        }
    }
    folder.run_once();
    assert_holds_exactly(&folder, &all[..written]);
    let undisturbed = TestFolder::new("");
    undisturbed.write("in.ndjson", &ndjson(&all[..written]));
    undisturbed.run_once();
    assert_eq!(folder.all_answers(), undisturbed.all_answers());
}

#[test]
fn a_view_older_than_the_log_is_named_with_a_remedy() {
    let folder = TestFolder::new("");
    folder.configure(&format!("{FREQUENT_COMMITS}keep = '0s'\n{HTTP_ONLY}"));
    {
        let server = crate::server::start(&folder);
        assert_eq!(server.post(&[], &ndjson(&records(100, 1))).0, 200);
    }
    folder.run_once();
    copy(&folder.path("data/search"), &folder.path("old"));
    let first = || segment_lsns(&folder.path("data/log"))[0];
    let server = crate::server::start(&folder);
    let mut seed = 2;
    wait_until("the log has been trimmed", || {
        assert_eq!(server.post(&[], &ndjson(&records(2_000, seed))).0, 200);
        seed += 1;
        first() > 200
    });
    drop(server);
    std::fs::remove_dir_all(folder.path("data/search")).expect("removable");
    std::fs::rename(folder.path("old"), folder.path("data/search")).expect("movable");
    let message = folder.fail(&["run", "--once"], 65);
    assert!(
        message.contains("search/rsvps") && message.contains("the log begins with record"),
        "{message}"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_clock_that_jumps_400_days_and_back_removes_nothing_from_raw() {
    const DAY: i64 = 86_400;
    let folder = TestFolder::new("");
    let library = folder.build_library("clock.c");
    let all = records(1_300, 47);
    let mut written = 0;
    let mut run_at = |offset: i64, count: usize| {
        written += count;
        folder.write("in.ndjson", &ndjson(&all[..written]));
        let mut command = folder.command(&["run", "--once"]);
        command
            .env("LD_PRELOAD", &library)
            .env("CLOCK_OFFSET", offset.to_string())
            .stderr(Stdio::null());
        assert!(command.status().expect("the binary runs").success());
    };
    let days = "select count(distinct date_trunc('day', received_at)) from raw";
    let raw = "select count(*) from raw where kind = 'record'";
    run_at(0, 300);
    run_at(400 * DAY, 200);
    run_at(400 * DAY + 7_200, 100);
    run_at(0, 200);
    assert!(folder.number(days) >= 2, "the clock was moved");
    assert_eq!(
        folder.number(raw),
        800,
        "nothing was received longer ago than 30 days"
    );
    // Days that pass on a clock that advances steadily are evidence.
    let text = std::fs::read_to_string(folder.path("weir.toml")).expect("readable");
    folder.write(
        "weir.toml",
        format!("{text}\n[tables.raw]\nretention = '1d'\n").as_bytes(),
    );
    for day in 1..=5 {
        run_at(day * DAY, 50);
    }
    // Checks once more, now that the last run's arrivals are known.
    run_at(5 * DAY, 0);
    let recent = "select count(*) from raw where kind = 'record' and received_at < now() + interval '300 days'";
    // Three days remain: the day before the last trusted one, that one, and the one not trusted
    // yet.
    assert_eq!(folder.number(recent), 3 * 50);
}

fn configurations(folder: &TestFolder) -> u64 {
    folder.number("select count(*) from raw where kind = 'configuration'")
}

#[test]
fn a_start_that_fails_leaves_the_log_as_it_was() {
    let folder = TestFolder::new("");
    let first = std::fs::read_to_string(folder.path("weir.toml")).expect("readable");
    let second = format!("{first}{SECOND_STREAM}");
    let all = records(400, 51);
    folder.write("in.ndjson", &ndjson(&all[..200]));
    // Including the very first start.
    let in_the_way = |name: &str| {
        std::fs::create_dir_all(folder.path("data/lake")).expect("a folder");
        folder.write(&format!("data/lake/{name}"), b"in the way");
    };
    in_the_way("rsvps");
    assert!(!folder.output(&["run", "--once"]).status.success());
    std::fs::remove_file(folder.path("data/lake/rsvps")).expect("removable");
    folder.run_once();
    assert_eq!(configurations(&folder), 1);
    let before = files(&folder.path("data/log"));
    in_the_way("more");
    folder.write("weir.toml", second.as_bytes());
    for _ in 0..2 {
        assert!(!folder.output(&["run", "--once"]).status.success());
        assert!(
            files(&folder.path("data/log")) == before,
            "the log has changed"
        );
    }
    folder.write("weir.toml", first.as_bytes());
    folder.write("in.ndjson", &ndjson(&all));
    folder.run_once();
    assert_holds_exactly(&folder, &all);
    assert_eq!(configurations(&folder), 1);
    std::fs::remove_file(folder.path("data/lake/more")).expect("removable");
    for (text, count) in [(&second, 2), (&first, 3)] {
        // Neither frame is followed by another, but both have been applied, so they stay.
        folder.write("weir.toml", text.as_bytes());
        folder.run_once();
        assert_eq!(configurations(&folder), count);
    }
    assert_holds_exactly(&folder, &all);
}

#[test]
fn a_configuration_that_could_not_be_applied_is_removed_by_a_start_with_another() {
    let folder = TestFolder::new("");
    let all = records(200, 53);
    folder.write("in.ndjson", &ndjson(&all[..100]));
    folder.run_once();
    // As after a start that was killed right after it wrote the frame.
    let text = format!("{HTTP_ONLY}{SECOND_STREAM}");
    let config = weir::config::parse(None, text, None, &|_| None).expect("valid");
    let content = Catalog::from_config(&config).expect("valid").to_json();
    {
        let options = WalOptions {
            segment_bytes: 64 << 20,
            ..options(folder.path("data/log"), None)
        };
        let (mut wal, _) = Wal::open(Arc::new(Disk), options, 1, 0).expect("opens");
        wal.append(&mut frame(Kind::Configuration, &content))
            .and_then(|()| wal.sync())
            .expect("space");
    }
    // Its table cannot be created.
    folder.write("data/lake/more", b"in the way");
    folder.write("in.ndjson", &ndjson(&all));
    let messages = folder.run_once();
    assert!(messages.contains("taken back"), "{messages}");
    assert_eq!(configurations(&folder), 1);
    assert_holds_exactly(&folder, &all);
    assert!(!folder.run_once().contains("taken back"));
}
