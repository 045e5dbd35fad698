//! Torn, flipped and missing bytes of the log: what was never acknowledged is truncated, what was
//! acknowledged is never lost silently. A write or sync that fails loses nothing before it.

use std::path::PathBuf;
use std::sync::Arc;

use weir::storage::{Disk, Storage};
use weir::testing::FaultyDisk;
use weir::wal::{Frame, FrameAttributes, Header, Kind, LogReader, RecordsBuilder, Wal, WalOptions};

use crate::support::{Lcg, TestFolder, assert_holds_exactly, copy, files, ndjson, records};

fn frame(content: &str) -> Frame {
    let mut records = RecordsBuilder::default();
    records.push(content.as_bytes());
    records.push(b"second");
    let records = records.finish();
    let header = Header {
        source: "s".into(),
        partition: "p".into(),
        ..Header::new(Kind::Record, "t")
    };
    Frame::data(header, &records, FrameAttributes::default()).expect("memory")
}

fn options(folder: PathBuf) -> WalOptions {
    WalOptions {
        folder,
        instance: 0,
        start_lsn: 0,
        segment_bytes: 4096,
        budget: None,
        reserved_disk_bytes: 0,
    }
}

fn read_all(storage: Arc<dyn Storage>, folder: PathBuf, to: u64) -> Vec<String> {
    let mut reader = LogReader::new(storage, folder, 0);
    let mut out = Vec::new();
    while let Some(frame) = reader.next(to).expect("readable") {
        out.push(
            String::from_utf8(frame.records().expect("readable").get(0).to_vec()).expect("text"),
        );
    }
    out
}

#[test]
fn acknowledged_records_survive_a_failure_of_any_operation() {
    for fails_at in 0..120 {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        let disk = Arc::new(FaultyDisk::failing_at(fails_at));
        let mut acknowledged = Vec::new();
        if let Ok((mut wal, _)) = Wal::open(disk.clone(), options(log.clone()), 1, 0) {
            for n in 0..40 {
                let content = format!("record {n} {}", "x".repeat(n * 7));
                let mut frame = frame(&content);
                if wal.append(&mut frame).and_then(|()| wal.sync()).is_err() {
                    break;
                }
                acknowledged.push(content);
            }
        }
        // A power failure loses what was not synced.
        disk.lose_unsynced_writes();
        let storage: Arc<dyn Storage> = Arc::new(Disk);
        let (wal, recovered) =
            Wal::open(storage.clone(), options(log.clone()), 1, 0).expect("opens again");
        let read = read_all(storage, log, wal.synced_lsn());
        assert!(
            read.len() >= acknowledged.len(),
            "operation {fails_at}: {} of {}",
            read.len(),
            acknowledged.len()
        );
        assert_eq!(
            read[..acknowledged.len()],
            acknowledged,
            "operation {fails_at}"
        );
        assert_eq!(recovered.last_lsn, wal.synced_lsn());
    }
}

#[test]
fn a_torn_tail_is_truncated_and_damage_below_a_synced_record_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let storage: Arc<dyn Storage> = Arc::new(Disk);
    let mut ends = Vec::new();
    {
        let mut options = options(log.clone());
        options.segment_bytes = 1 << 20;
        let (mut wal, _) = Wal::open(storage.clone(), options, 1, 0).expect("opens");
        for n in 0..20 {
            wal.append(&mut frame(&format!("record {n}")))
                .expect("space");
            ends.push(wal.sync().expect("synced"));
        }
    }
    let segment = files(&log).into_keys().next().expect("a segment");
    let good = std::fs::read(&segment).expect("readable");
    let used = good.iter().rposition(|b| *b != 0).expect("frames") + 1;
    let mut numbers = Lcg(5);
    let (mut truncated, mut rejected) = (0, 0);
    for _ in 0..300 {
        let mut bad = good.clone();
        let at = 64 + numbers.below(used as u64 - 64) as usize;
        match numbers.below(3) {
            0 => bad[at] ^= 1 << numbers.below(8),
            1 => bad.truncate(at),
            _ => bad[at..(at + 40).min(used)].fill(numbers.below(256) as u8),
        }
        if bad == good {
            continue;
        }
        std::fs::write(&segment, &bad).expect("writable");
        let mut options = options(log.clone());
        options.segment_bytes = 1 << 20;
        match Wal::open(storage.clone(), options, 1, 0) {
            Ok((wal, recovered)) => {
                // No later frame names the last one as synced, and damage to the last two leaves no
                // evidence.
                assert!(
                    recovered.last_lsn >= 36 || bad.len() < good.len(),
                    "{}",
                    recovered.last_lsn
                );
                let read = read_all(storage.clone(), log.clone(), wal.synced_lsn());
                assert!(
                    read.iter()
                        .enumerate()
                        .all(|(n, r)| *r == format!("record {n}"))
                );
                truncated += 1;
            }
            Err(error) => {
                assert!(error.to_string().contains("damaged"), "{error}");
                assert_eq!(
                    std::fs::read(&segment).expect("readable"),
                    bad,
                    "the file is unchanged"
                );
                rejected += 1;
            }
        }
        std::fs::write(&segment, &good).expect("writable");
    }
    assert!(
        truncated > 0 && rejected > 0,
        "{truncated} truncated, {rejected} rejected"
    );
}

#[test]
fn a_log_truncated_below_the_views_exits_with_65_and_changes_nothing() {
    let folder = TestFolder::new("");
    let all = records(2_000, 3);
    folder.write("in.ndjson", &ndjson(&all));
    folder.run_once();
    copy(&folder.path("data"), &folder.path("good"));
    let segment = files(&folder.path("data/log"))
        .into_keys()
        .next()
        .expect("a segment");
    let mut bytes = std::fs::read(&segment).expect("readable");
    bytes[2_000..].fill(0);
    std::fs::write(&segment, bytes).expect("writable");
    let before = files(&folder.path("data/log"));
    folder.fail(&["run", "--once"], 65);
    assert_eq!(files(&folder.path("data/log")), before);
    // The earlier copy of the folder opens.
    std::fs::remove_dir_all(folder.path("data")).expect("removable");
    std::fs::rename(folder.path("good"), folder.path("data")).expect("movable");
    folder.run_once();
    assert_holds_exactly(&folder, &all);
}

#[test]
fn newer_formats_exit_with_65() {
    let folder = TestFolder::new("");
    folder.write("in.ndjson", &ndjson(&records(50, 1)));
    folder.run_once();
    for (subfolder, what) in [
        ("data/log", "log format"),
        ("data/operators", "snapshot format"),
    ] {
        let path = files(&folder.path(subfolder))
            .into_keys()
            .next_back()
            .expect("a file");
        let good = std::fs::read(&path).expect("readable");
        let mut newer = good.clone();
        newer[8] = 99;
        std::fs::write(&path, &newer).expect("writable");
        let message = folder.fail(&["run", "--once"], 65);
        assert!(message.contains(what), "{message}");
        assert_eq!(std::fs::read(&path).expect("readable"), newer);
        std::fs::write(&path, good).expect("writable");
    }
    folder.run_once();
}
