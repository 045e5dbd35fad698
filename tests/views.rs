//! Views at their seams: a row is never in both hot rows and files, and the nearest venues are the nearest, everywhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weir::operators::Output;
use weir::schema::Layout;
use weir::views::View;
use weir::views::lake::{CommitPolicy, LakeTable, LakeView, LogName, TableSpec, compact};
use weir::wal::record::compress;
use weir::wal::{About, Frame, Header, Kind, RecordsBuilder};

use crate::support::{Bench, Numbers, ndjson, records};

const ROWS: u64 = 7;

/// The n-th frame's output: seven records.
fn output(n: u64) -> Output {
    let mut records = RecordsBuilder::default();
    (0..ROWS).for_each(|i| records.push(format!("{n} {i}").as_bytes()));
    let records = records.finish();
    let header = Header {
        kind: Kind::Record,
        count: ROWS as u32,
        first_lsn: n * ROWS + 1,
        first_position: 0,
        previous_position: 0,
        received_at: 1_465_520_400_000_000 + n as i64,
        configuration: 0,
        synced_lsn: 0,
        source: "s".into(),
        partition: String::new(),
        stream: "t".into(),
    };
    let block = compress(records.page()).expect("memory");
    let frame = Frame { header, block, block_bytes: records.page().len() as u32, about: About::default() };
    Output {
        after: n * ROWS,
        to: (n + 1) * ROWS,
        frame: Arc::new(frame),
        rows: None,
        tables: Vec::new(),
        dead_letters: Vec::new(),
        floors: Default::default(),
    }
}

#[test]
fn three_hundred_thousand_snapshots_during_commits_and_merges_have_every_row_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
    let log = LogName { instance: 0, id: 1, zero: 0 };
    let spec = TableSpec::raw(folder.path(), Layout::Hours);
    let table = LakeTable::open(spec, log, runtime.handle().clone(), true).expect("opens").expect("writable");
    let table = Arc::new(table);
    let policy = CommitPolicy {
        recent_every: Duration::ZERO,
        old_every: Duration::ZERO,
        rows: 1,
        bytes: usize::MAX / 4,
        pool: None,
    };
    let mut view = LakeView::new(table.clone(), policy);
    let is_over = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let table = table.clone();
            std::thread::spawn(move || {
                for n in 0..150_000 {
                    let state = table.snapshot();
                    let files: u64 = state.files.iter().map(|f| f.rows).sum();
                    let hot: usize = state.recent.iter().chain(&state.old).map(|h| h.rows()).sum();
                    assert_eq!(files + hot as u64, state.applied, "snapshot {n}");
                }
            })
        })
        .collect();
    let (merging, stop) = (table.clone(), is_over.clone());
    let compactor = std::thread::spawn(move || {
        let mut merges = 0;
        while !stop.load(Ordering::Acquire) {
            merges += compact::maintain(&merging, 64 << 20, compact::When::Now, &|| false).expect("merges");
        }
        merges
    });
    let mut n = 0;
    while readers.iter().any(|r| !r.is_finished()) || n < 60 {
        view.apply(&output(n), Instant::now()).expect("applied");
        n += 1;
        if n.is_multiple_of(3) {
            view.commit(true).expect("committed");
        }
    }
    readers.into_iter().for_each(|r| r.join().expect("every snapshot is whole"));
    is_over.store(true, Ordering::Release);
    assert!(compactor.join().expect("it ends") > 0, "something was merged meanwhile");
    view.commit(true).expect("committed");
    drop((view, table));
    // What a fresh start reads is the same.
    let spec = TableSpec::raw(folder.path(), Layout::Hours);
    let table = LakeTable::open(spec, log, runtime.handle().clone(), false).expect("opens").expect("there");
    assert_eq!(table.files().iter().map(|f| f.rows).sum::<u64>(), n * ROWS);
    assert_eq!(table.committed()[0], n * ROWS);
}

fn distance_m(a: (f64, f64), b: (f64, f64)) -> f64 {
    let (p, q) = (a.0.to_radians(), b.0.to_radians());
    let h = ((q - p) / 2.0).sin().powi(2) + p.cos() * q.cos() * ((b.1 - a.1).to_radians() / 2.0).sin().powi(2);
    2.0 * 6_371_008.8 * h.sqrt().min(1.0).asin()
}

#[test]
fn the_nearest_venues_are_those_of_brute_force_also_at_the_poles_and_the_date_line() {
    let bench = Bench::new("");
    let mut numbers = Numbers(17);
    let mut degrees = |limit: u64| numbers.below(2_000_001) as f64 / 1_000_000.0 * limit as f64 - limit as f64;
    let mut all = records(600, 14);
    let mut places: Vec<(i64, (f64, f64))> = Vec::new();
    for (n, record) in all.iter_mut().enumerate() {
        let place = match n % 4 {
            0 => (degrees(90), degrees(180)),
            1 => (89.0 + degrees(1), degrees(180)),
            2 => (degrees(90), 180.0 * if n % 8 < 4 { 1.0 } else { -1.0 }),
            _ => (-89.5 + degrees(1) / 2.0, degrees(180)),
        };
        record["venue"] = json!({"venue_id": n, "venue_name": "V", "lat": place.0, "lon": place.1});
        places.push((n as i64, place));
    }
    bench.write("in.ndjson", &ndjson(&all));
    bench.once();
    for at in [(90.0, 0.0), (-90.0, 77.0), (0.0, 180.0), (12.5, -179.99), (89.9, 10.0), (40.7, -74.0), (-33.9, 151.2)] {
        let mut want: Vec<f64> = places.iter().map(|(_, place)| distance_m(at, *place)).collect();
        want.sort_by(f64::total_cmp);
        let answer = bench.ask(&["nearby", &format!("--lat={}", at.0), &format!("--lon={}", at.1), "--limit", "40"]);
        let venues = answer["venues"].as_array().expect("venues");
        let distance = |v: &Value| v["distance_m"].as_f64().expect("a number");
        assert_eq!(venues.len(), 40);
        for (venue, want) in venues.iter().zip(&want) {
            assert!((distance(venue) - want).abs() < 0.01, "{at:?}: {} instead of {want}", distance(venue));
        }
        let within = format!("{}m", want[20] + 0.5);
        let near =
            ["nearby", &format!("--lat={}", at.0), &format!("--lon={}", at.1), "--limit", "1000", "--within", &within];
        let inside = want.iter().filter(|d| **d <= want[20] + 0.5).count();
        assert_eq!(bench.ask(&near)["venues"].as_array().map(Vec::len), Some(inside), "{at:?} within {within}");
    }
}
