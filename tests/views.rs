//! Views at their seams: a row is never both in memory and in files, and the nearest venues are the
//! nearest, everywhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weir::operators::{Operators, Output};
use weir::schema::{Catalog, Layout, Stream};
use weir::views::counts::{Count, Counts, CountsView};
use weir::views::lake::{CommitPolicy, LakeTable, LakeView, TableSpec, compact};
use weir::views::places::{NearbyVenue, Places, PlacesView};
use weir::views::{LogIdentity, View};
use weir::wal::{Frame, FrameAttributes, Header, Kind, RecordsBuilder};

use crate::support::{Lcg, TestFolder, ndjson, records};

const ROWS: u64 = 7;

/// A frame of the stream with these records, the first with this LSN.
fn frame(stream: &str, first_lsn: u64, texts: &[String]) -> Frame {
    let mut records = RecordsBuilder::default();
    texts.iter().for_each(|text| records.push(text.as_bytes()));
    let records = records.finish();
    let header = Header {
        first_lsn,
        received_at: 1_465_520_400_000_000 + first_lsn as i64,
        source: "s".into(),
        ..Header::new(Kind::Record, stream)
    };
    Frame::data(header, &records, FrameAttributes::default()).expect("memory")
}

/// The operators' output of records in frames of 50, under a configuration.
fn outputs(configuration: &str, stream: &str, texts: &[String]) -> (Arc<Stream>, Vec<Output>) {
    let config = weir::config::parse(None, configuration.into(), None, &|_| None).expect("valid");
    let catalog = Arc::new(Catalog::from_config(&config).expect("valid"));
    let mut operators = Operators::new(catalog.clone(), 0);
    let frames = texts
        .chunks(50)
        .enumerate()
        .map(|(n, part)| Arc::new(frame(stream, n as u64 * 50 + 1, part)));
    let outputs = frames.map(|frame| {
        let decoded = operators.decode(&frame).expect("readable");
        operators.apply(&frame, decoded.as_ref()).expect("applies")
    });
    let outputs = outputs.collect();
    (catalog.streams[stream].clone(), outputs)
}

/// The n-th frame's output: seven records.
fn output(n: u64) -> Output {
    let texts: Vec<String> = (0..ROWS).map(|i| format!("{n} {i}")).collect();
    let frame = frame("t", n * ROWS + 1, &texts);
    Output {
        after: n * ROWS,
        to: (n + 1) * ROWS,
        frame: Arc::new(frame),
        rows: None,
        tables: Vec::new(),
        dead_letters: Vec::new(),
        retention_floors: Default::default(),
    }
}

/// Each of so many snapshots has every applied row in a file or in memory, once.
fn check_snapshots(table: &LakeTable, count: usize) {
    for n in 0..count {
        let state = table.snapshot();
        let files: u64 = state.files.iter().map(|f| f.rows).sum();
        let unflushed = state.unflushed.iter().flatten();
        let unflushed: usize = unflushed.map(|h| h.rows()).sum();
        assert_eq!(files + unflushed as u64, state.applied, "snapshot {n}");
    }
}

#[test]
fn three_hundred_thousand_snapshots_during_commits_and_merges_have_every_row_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("threads");
    let log = LogIdentity {
        instance: 0,
        id: 1,
        start_lsn: 0,
    };
    let spec = TableSpec::raw(folder.path(), Layout::Hours);
    let table = LakeTable::open(spec, log, runtime.handle().clone(), true)
        .expect("opens")
        .expect("writable");
    let table = Arc::new(table);
    let policy = CommitPolicy {
        recent_every: Duration::ZERO,
        late_every: Duration::ZERO,
        rows: 1,
        bytes: usize::MAX / 4,
        pool: None,
    };
    let mut view = LakeView::new(table.clone(), policy);
    let is_over = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let table = table.clone();
            std::thread::spawn(move || check_snapshots(&table, 150_000))
        })
        .collect();
    let (merging, stop) = (table.clone(), is_over.clone());
    let compactor = std::thread::spawn(move || {
        let mut merges = 0;
        while !stop.load(Ordering::Acquire) {
            merges += compact::maintain(&merging, 64 << 20, compact::MergeMode::Now, &|| false)
                .expect("merges");
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
    readers
        .into_iter()
        .for_each(|r| r.join().expect("every snapshot is whole"));
    is_over.store(true, Ordering::Release);
    assert!(
        compactor.join().expect("it ends") > 0,
        "something was merged"
    );
    view.commit(true).expect("committed");
    drop((view, table));
    // What a fresh start reads is the same.
    let spec = TableSpec::raw(folder.path(), Layout::Hours);
    let table = LakeTable::open(spec, log, runtime.handle().clone(), false)
        .expect("opens")
        .expect("there");
    assert_eq!(table.files().iter().map(|f| f.rows).sum::<u64>(), n * ROWS);
    assert_eq!(table.committed().recent, n * ROWS);
}

fn distance_m(a: (f64, f64), b: (f64, f64)) -> f64 {
    let (p, q) = (a.0.to_radians(), b.0.to_radians());
    let h = ((q - p) / 2.0).sin().powi(2)
        + p.cos() * q.cos() * ((b.1 - a.1).to_radians() / 2.0).sin().powi(2);
    2.0 * 6_371_008.8 * h.sqrt().min(1.0).asin()
}

#[test]
fn the_nearest_venues_are_those_of_brute_force_also_at_the_poles_and_the_date_line() {
    let folder = TestFolder::new("");
    let mut numbers = Lcg(17);
    let mut degrees =
        |limit: u64| numbers.below(2_000_001) as f64 / 1_000_000.0 * limit as f64 - limit as f64;
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
    folder.write("in.ndjson", &ndjson(&all));
    folder.run_once();
    for at in [
        (90.0, 0.0),
        (-90.0, 77.0),
        (0.0, 180.0),
        (12.5, -179.99),
        (89.9, 10.0),
        (40.7, -74.0),
        (-33.9, 151.2),
    ] {
        let mut want: Vec<f64> = places
            .iter()
            .map(|(_, place)| distance_m(at, *place))
            .collect();
        want.sort_by(f64::total_cmp);
        let answer = folder.ask(&[
            "nearby",
            &format!("--lat={}", at.0),
            &format!("--lon={}", at.1),
            "--limit",
            "40",
        ]);
        let venues = answer["venues"].as_array().expect("venues");
        let distance = |v: &Value| v["distance_m"].as_f64().expect("a number");
        assert_eq!(venues.len(), 40);
        for (venue, want) in venues.iter().zip(&want) {
            assert!(
                (distance(venue) - want).abs() < 0.01,
                "{at:?}: {} instead of {want}",
                distance(venue)
            );
        }
        let within = format!("{}m", want[20] + 0.5);
        let near = [
            "nearby",
            &format!("--lat={}", at.0),
            &format!("--lon={}", at.1),
            "--limit",
            "1000",
            "--within",
            &within,
        ];
        let inside = want.iter().filter(|d| **d <= want[20] + 0.5).count();
        assert_eq!(
            folder.ask(&near)["venues"].as_array().map(Vec::len),
            Some(inside),
            "{at:?} within {within}"
        );
    }
}

const MINUTE: i64 = 60_000_000;
const ORIGIN: LogIdentity = LogIdentity {
    instance: 0,
    id: 1,
    start_lsn: 0,
};

const CALLS: &str = include_str!("../testdata/calls.toml");

const CALLS_START: i64 = 1_465_520_400_000_000;

/// Times and groups over forty days: a record about every quarter of an hour, some days late.
fn calls(numbers: &mut Lcg) -> Vec<(i64, String)> {
    (0..4_000)
        .map(|n| {
            let is_late = numbers.below(9) == 0;
            let late = if is_late {
                numbers.below(3 * 1_440) as i64
            } else {
                0
            };
            let time = CALLS_START + (n * 15 + numbers.below(20) as i64 - late) * MINUTE;
            let group = format!("k{}\u{1f}r{}", numbers.below(3), numbers.below(7));
            (time, group)
        })
        .collect()
}

/// Counts of the events within a range, by group.
type GroupCounts = std::collections::HashMap<Arc<str>, Count>;

fn recount(accepted: &[&(i64, String)], range: std::ops::Range<i64>) -> GroupCounts {
    let mut counts = GroupCounts::default();
    for (_, group) in accepted.iter().filter(|(time, _)| range.contains(time)) {
        let count = counts.entry(group.as_str().into()).or_default();
        count.add(Count {
            distinct: 1,
            total: 1,
        });
    }
    counts
}

#[test]
fn counts_within_little_memory_are_those_of_a_recount_over_any_range() {
    let mut numbers = Lcg(5);
    let events = calls(&mut numbers);
    let texts: Vec<String> = events
        .iter()
        .map(|(time, group)| {
            let (kind, region) = group.split_once('\u{1f}').expect("two");
            json!({"at": time / 1000, "kind": kind, "region": region}).to_string()
        })
        .collect();
    let (stream, outputs) = outputs(CALLS, "calls", &texts);
    let folder = tempfile::tempdir().expect("a folder");
    // Room for about 40 totals, and for 10 blocks that wait; of 21 groups.
    let open = || {
        Arc::new(
            Counts::open(&folder.path().join("counts"), 16 << 10, true)
                .expect("opens")
                .expect("writable"),
        )
    };
    let mut counts = open();
    let mut view = CountsView::new(counts.clone(), stream.clone(), ORIGIN).expect("opens");
    let mut accepted: Vec<&(i64, String)> = Vec::new();
    for (n, output) in outputs.iter().enumerate() {
        let rows = output.rows.as_ref().expect("rows");
        accepted.extend(rows.lsns().iter().map(|lsn| &events[*lsn as usize - 1]));
        view.apply(output, Instant::now()).expect("applies");
        if n % 3 == 0 {
            view.commit(false).expect("commits");
            assert!(
                counts.memory_bytes() <= 12 << 10,
                "{}",
                counts.memory_bytes()
            );
        }
        if n == 40 {
            // What was not committed comes again.
            view.commit(true).expect("commits");
            drop((view, counts));
            counts = open();
            view = CountsView::new(counts.clone(), stream.clone(), ORIGIN).expect("opens");
        }
        let floor = rows.retention_floor.unwrap_or(i64::MIN / 2);
        for _ in 0..3 {
            let at = |numbers: &mut Lcg| {
                CALLS_START + (numbers.below(46 * 86_400) as i64 - 3 * 86_400) * 1_000_000
            };
            let (a, b) = (at(&mut numbers), at(&mut numbers));
            let (from, to) = if numbers.below(5) == 0 {
                (i64::MIN / 2, b)
            } else {
                (a.min(b), a.max(b))
            };
            let from = from.max(floor);
            let mut found = GroupCounts::default();
            let lsn = counts.count(from, to, &mut |group, tally| {
                found.entry(group.into()).or_default().add(tally);
            });
            assert_eq!(lsn.expect("an answer"), output.to);
            let want = recount(&accepted, from..to);
            assert_eq!(found, want, "frame {n}, {from}..{to}");
        }
    }
}

const SHOWS: &str = include_str!("../testdata/shows.toml");

/// A venue as a plain recount knows it.
#[derive(Debug, Clone)]
struct KnownVenue {
    number: usize,
    seen: i64,
    rev: i64,
    place: (f64, f64),
}

/// Venues, and the shows of each also where it is not known yet where it is, at the end of a frame.
type VenueMap = (
    std::collections::BTreeMap<String, KnownVenue>,
    std::collections::BTreeMap<String, std::collections::BTreeSet<(i64, String)>>,
);

/// Records, and a recount after every fiftieth.
fn shows(numbers: &mut Lcg) -> (Vec<String>, Vec<VenueMap>) {
    let start = 1_465_520_400_000;
    let (mut known, mut shows): VenueMap = Default::default();
    let mut came = 0;
    let mut states = Vec::new();
    let texts: Vec<String> = (0..3_000i64)
        .map(|n| {
            // Old names come back now and then.
            let id = format!("v{}", if numbers.below(4) == 0 { numbers.below(300) as i64 } else { n / 10 });
            // Some are late: older than every retained venue.
            let late = if numbers.below(12) == 0 { 30 * 86_400_000 } else { 0 };
            let (at, rev) = (start + n * 600_000 - late, numbers.below(1_000) as i64);
            let has_place = numbers.below(5) > 0;
            let place =
                (numbers.below(180 << 10) as f64 / 1024.0 - 90.0, numbers.below(360 << 10) as f64 / 1024.0 - 180.0);
            let show = format!("s{}", numbers.below(50));
            let day = at.div_euclid(86_400_000);
            if let Some(venue) = known.get_mut(&id) {
                venue.seen = venue.seen.max(day);
                if has_place && rev >= venue.rev {
                    (venue.place, venue.rev) = (place, rev);
                }
            } else if has_place {
                known.insert(id.clone(), KnownVenue { number: came, seen: day, rev, place });
                came += 1;
            }
            shows.entry(id.clone()).or_default().insert((-at * 1000, show.clone()));
            if known.len() > 40 {
                let mut order: Vec<(i64, usize, String)> =
                    known.iter().map(|(id, v)| (v.seen, v.number, id.clone())).collect();
                order.sort();
                for (.., id) in order.iter().take(known.len() - 40) {
                    known.remove(id);
                    shows.remove(id);
                }
            }
            if n % 50 == 49 {
                states.push((known.clone(), shows.clone()));
            }
            let (lat, lon) = if has_place { (json!(place.0), json!(place.1)) } else { (Value::Null, Value::Null) };
            json!({"id": id, "at": at, "rev": rev, "name": "N", "lat": lat, "lon": lon, "show": show}).to_string()
        })
        .collect();
    (texts, states)
}

#[test]
fn above_max_venues_those_seen_longest_ago_are_evicted() {
    let mut numbers = Lcg(11);
    let (texts, states) = shows(&mut numbers);
    let (stream, outputs) = outputs(SHOWS, "shows", &texts);
    let folder = tempfile::tempdir().expect("a folder");
    let open = || {
        Arc::new(
            Places::open(&folder.path().join("places"), 64 << 10, true)
                .expect("opens")
                .expect("writable"),
        )
    };
    let mut places = open();
    let mut view = PlacesView::new(places.clone(), stream.clone(), ORIGIN).expect("opens");
    let mut committed = 0;
    for (n, (output, (known, shows))) in outputs.iter().zip(&states).enumerate() {
        view.apply(output, Instant::now()).expect("applies");
        if numbers.below(4) == 0 {
            view.commit(true).expect("commits");
            committed = n + 1;
        }
        if numbers.below(10) == 0 {
            // What was not committed is lost, and comes again.
            drop((view, places));
            places = open();
            view = PlacesView::new(places.clone(), stream.clone(), ORIGIN).expect("opens");
            outputs[committed..=n]
                .iter()
                .for_each(|o| view.apply(o, Instant::now()).expect("applies"));
        }
        assert_eq!(places.venues(), known.len());
        let from = (
            numbers.below(181) as f64 - 90.0,
            numbers.below(361) as f64 - 180.0,
        );
        let (found, lsn) = places.nearby(from.0, from.1, 15, None).expect("an answer");
        assert_eq!(lsn, output.to);
        let mut want: Vec<(f64, &String, &KnownVenue)> = known
            .iter()
            .map(|(id, v)| (distance_m(from, v.place), id, v))
            .collect();
        want.sort_by(|a, b| a.0.total_cmp(&b.0));
        want.truncate(15);
        let shows = |id: &String| -> Vec<(String, Option<i64>)> {
            shows[id]
                .iter()
                .take(10)
                .map(|(at, show)| (show.clone(), Some(-at)))
                .collect()
        };
        let shown =
            |near: &NearbyVenue| (near.id.clone(), (near.lat, near.lon), near.events.clone());
        let want: Vec<_> = want
            .into_iter()
            .map(|(_, id, v)| (id.clone(), v.place, shows(id)))
            .collect();
        assert_eq!(
            found.iter().map(shown).collect::<Vec<_>>(),
            want,
            "frame {n}"
        );
    }
}
