//! The ten nearest of a million venues, in-process: `cargo bench --bench nearest`. Exits non-zero
//! when the p99 is over its target.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use weir::operators::Operators;
use weir::schema::Catalog;
use weir::views::places::{Places, PlacesView};
use weir::views::{LogIdentity, View};
use weir::wal::{Frame, FrameAttributes, Header, Kind, RecordsBuilder};

const VENUES: u64 = 1_000_000;
const FRAME: u64 = 10_000;
const QUERIES: usize = 20_000;
const RUNS: u64 = 5;
const TARGET: Duration = Duration::from_millis(1);

const STREAM: &str = r#"
[limits]
memory = "4GiB"
[streams.shows]
schema = "id bigint, at bigint, lat double, lon double"
select = "select to_timestamp_millis(at) as event_time, id, 'venue' as name, lat, lon, 'show' as show, to_timestamp_millis(at) as date from shows"
places = { venue = "id", name = "name", lat = "lat", lon = "lon", event = "show", date = "date", max_venues = 1_000_000 }
"#;

/// A point on the earth, uniformly distributed.
fn random_point(random: &mut SmallRng) -> (f64, f64) {
    (
        random.random_range(-1.0f64..1.0).asin().to_degrees(),
        random.random_range(-180.0..180.0),
    )
}

fn frame(first: u64, random: &mut SmallRng) -> Frame {
    let mut records = RecordsBuilder::default();
    for id in first..first + FRAME {
        let (lat, lon) = random_point(random);
        let record = format!(r#"{{"id":{id},"at":1465520400000,"lat":{lat},"lon":{lon}}}"#);
        records.push(record.as_bytes());
    }
    let records = records.finish();
    let header = Header {
        first_lsn: first + 1,
        received_at: 1_465_520_400_000_000,
        source: "bench".into(),
        ..Header::new(Kind::Record, "shows")
    };
    Frame::data(header, &records, FrameAttributes::default()).expect("memory")
}

fn fill(folder: &std::path::Path) -> Arc<Places> {
    let config = weir::config::parse(None, STREAM.into(), None, &|_| None).expect("valid");
    let catalog = Arc::new(Catalog::from_config(&config).expect("valid"));
    let stream = catalog.streams["shows"].clone();
    let places = Places::open(&folder.join("places.redb"), 16 << 20, true)
        .expect("opens")
        .expect("writable");
    let places = Arc::new(places);
    let mut view = PlacesView::new(
        places.clone(),
        stream,
        LogIdentity {
            instance: 0,
            id: 1,
            start_lsn: 0,
        },
    )
    .expect("opens");
    let mut operators = Operators::new(catalog, 0);
    let mut random = SmallRng::seed_from_u64(1);
    for first in (0..VENUES).step_by(FRAME as usize) {
        let frame = Arc::new(frame(first, &mut random));
        let decoded = operators.decode(&frame).expect("readable");
        let output = operators.apply(&frame, decoded.as_ref()).expect("applies");
        view.apply(&output, Instant::now()).expect("applies");
        view.commit(false).expect("commits");
    }
    places
}

fn anonymous_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

fn main() -> ExitCode {
    let folder = tempfile::tempdir().expect("a folder");
    let before = anonymous_kib();
    let places = fill(folder.path());
    assert_eq!(places.venues() as u64, VENUES);
    println!(
        "RssAnon of {VENUES} venues beside their file's cache: {} MiB",
        anonymous_kib().saturating_sub(before) / 1024
    );
    let mut p99s: Vec<Duration> = (0..RUNS)
        .map(|run| {
            let mut random = SmallRng::seed_from_u64(100 + run);
            let mut times: Vec<Duration> = (0..QUERIES)
                .map(|_| {
                    let (lat, lon) = random_point(&mut random);
                    let begun = Instant::now();
                    let (near, _) = places.nearby(lat, lon, 10, None).expect("an answer");
                    let time = begun.elapsed();
                    assert_eq!(near.len(), 10);
                    time
                })
                .collect();
            times.sort();
            times[QUERIES * 99 / 100]
        })
        .collect();
    p99s.sort();
    let median = p99s[p99s.len() / 2];
    println!(
        "ten nearest of {VENUES} venues, p99 of {QUERIES}: median {median:?} of {RUNS} runs ({:?} to {:?}), target {TARGET:?}",
        p99s[0],
        p99s[p99s.len() - 1]
    );
    if median <= TARGET {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
