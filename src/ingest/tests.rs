//! Tests of the writer with a real log.

use std::sync::mpsc::Receiver;

use super::receipt::Receipt;
use super::*;
use crate::clock::SystemClock;
use crate::config::Declarations;
use crate::storage::Disk;
use crate::wal::WalOptions;

const STREAM: &str = r#"{"streams":{"s":{"schema":"n bigint not null","select":"select timestamp '2024-05-01T10:00:00' as event_time, n from s"}}}"#;

fn wal(folder: &std::path::Path) -> Wal {
    let options = WalOptions {
        folder: folder.to_owned(),
        instance: 0,
        start_lsn: 0,
        segment_bytes: 1 << 20,
        budget: None,
        reserved_disk_bytes: 0,
    };
    Wal::open(Arc::new(Disk), options, 1, 0).expect("a log").0
}

fn submission(record: &[u8], idempotency: Option<(BodyHash, String)>) -> Submission {
    let attributes = FrameAttributes {
        idempotency,
        ..FrameAttributes::default()
    };
    Submission {
        attributes,
        ..Submission::control(Kind::Record, "s", record)
    }
}

struct Started {
    ingest: Ingest,
    published: Receiver<CommittedFrame>,
    _folder: tempfile::TempDir,
}

/// A writer whose `publish` blocks until the frame is received.
fn start() -> Started {
    let folder = tempfile::tempdir().expect("a folder");
    let declared = Declarations::from_json(STREAM).expect("declarations");
    let catalog = Arc::new(Catalog::compile(&declared).expect("a catalog"));
    let (publish, published) = sync_channel(0);
    let publish = move |frame| drop(publish.send(frame));
    let clock = Arc::new(SystemClock::default());
    let (ingest, _) = Ingest::start(
        wal(folder.path()),
        catalog,
        clock,
        1 << 20,
        LogMaintenance::default(),
        |_| {},
        publish,
    );
    Started {
        ingest,
        published,
        _folder: folder,
    }
}

#[test]
fn all_frames_of_a_sync_are_acknowledged_before_one_is_published() {
    let started = start();
    let submit = |n: u32| {
        started
            .ingest
            .submit(submission(format!("{{\"n\":{n}}}").as_bytes(), None), false)
            .expect("space")
    };
    submit(0).wait().expect("stored");
    // Publishing it blocks. The next ones form a group, published once the first is received.
    let receipts: Vec<Receipt> = (1..5).map(submit).collect();
    started.published.recv().expect("the first frame");
    let lsns: Vec<Lsn> = receipts
        .into_iter()
        .map(|r| r.wait().expect("stored").last_lsn)
        .collect();
    assert_eq!(lsns, [2, 3, 4, 5]);
}

#[test]
fn a_stop_does_not_wait_for_callers_that_still_decode() {
    let folder = tempfile::tempdir().expect("a folder");
    let catalog = Arc::new(
        Catalog::compile(&Declarations::from_json(STREAM).expect("declarations")).expect("it"),
    );
    let clock = Arc::new(SystemClock::default());
    let (ingest, writer) = Ingest::start(
        wal(folder.path()),
        catalog,
        clock,
        1 << 20,
        LogMaintenance::default(),
        |_| {},
        drop,
    );
    let still_decoding = ingest.clone();
    ingest.gate.close();
    drop(ingest);
    assert!(writer.join().expect("no panic").is_ok());
    let late = still_decoding.submit(submission(b"{}", None), false);
    assert!(matches!(late, Err(IngestError::Stopping)));
}

#[test]
fn a_repeated_key_is_a_duplicate_request_and_a_reused_one_is_rejected() {
    let started = start();
    let submit = |body: &[u8], hash: u8| {
        started
            .ingest
            .submit(submission(body, Some(([hash; 32], "k".into()))), false)
            .expect("space")
    };
    let receipts = [
        submit(b"{\"n\":1}", 1),
        submit(b"{\"n\":1}", 1),
        submit(b"{}", 2),
    ];
    let kinds: Vec<(Kind, bool)> = (0..2)
        .map(|_| started.published.recv().expect("a frame"))
        .map(|committed| (committed.frame.header.kind, committed.decoded.is_some()))
        .collect();
    assert_eq!(
        kinds,
        [(Kind::Record, true), (Kind::DuplicateRequest, false)]
    );
    let [first, second, reused] = receipts.map(Receipt::wait);
    let (first, second) = (
        first.expect("stored").answer(),
        second.expect("stored").answer(),
    );
    assert_eq!((first.accepted, &first), (1, &second));
    assert!(matches!(reused, Err(IngestError::KeyReused)));
    let key = RequestKey {
        stream: "s".into(),
        key: "k".into(),
    };
    assert!(
        matches!(started.ingest.key_state(&key, &[1; 32]), KeyState::Answered(answer) if answer == first)
    );
}
