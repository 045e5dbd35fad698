//! Windows of local time against brute force over the calendars of zones.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use weir::ids::TableId;
use weir::operators::Operators;
use weir::schema::Catalog;
use weir::wal::Kind;

use crate::support::Lcg;
use crate::windows::{
    SECOND, START, STREAM, Tables, TestEvent, catalog, check_any_split, collect, frame, latest,
    slides, time, watermarks, window,
};

/// Starts of the steps of a zone's calendar, by a look at every minute.
fn local_starts(zone: &str, from: i64, days: i64, hours: u32) -> Vec<i64> {
    use chrono::{Datelike, TimeZone, Timelike};
    let zone: chrono_tz::Tz = zone.parse().expect("a zone");
    let label = |t: i64| {
        let local = zone.from_utc_datetime(
            &chrono::DateTime::from_timestamp_millis(t)
                .expect("a time")
                .naive_utc(),
        );
        (local.num_days_from_ce(), local.hour() / hours)
    };
    let minutes = (from..from + days * 86_400 * SECOND).step_by(60 * SECOND as usize);
    minutes
        .filter(|t| label(*t) != label(t - 60 * SECOND))
        .collect()
}

/// Counts by window and key, each window some of the steps; by its start.
pub fn local_brute_force(
    records: &[TestEvent],
    starts: &[i64],
    steps: usize,
    lateness: i64,
) -> BTreeMap<i64, BTreeMap<&'static str, u64>> {
    let mut windows: BTreeMap<i64, BTreeMap<&'static str, u64>> = BTreeMap::new();
    for (record, watermark) in records.iter().zip(watermarks(records)) {
        let own = starts.partition_point(|start| *start <= record.t) - 1;
        for first in own + 1 - steps..=own {
            if watermark.is_none_or(|w| starts[first + steps] + lateness > w) {
                *windows
                    .entry(starts[first])
                    .or_default()
                    .entry(record.k)
                    .or_default() += 1;
            }
        }
    }
    windows
}

/// A record every hour over ten days, now and then days late; not among the first, which
/// initialise a partition's watermark.
fn generate_over_days(from: i64, seed: u64) -> Vec<TestEvent> {
    let mut numbers = Lcg(seed);
    let mut now = from + 4 * 86_400 * SECOND;
    (0..200)
        .map(|n| {
            now += numbers.below(150 * 60_000) as i64;
            let late = if numbers.below(12) == 0 && n > 20 {
                numbers.below(2 * 86_400_000)
            } else {
                numbers.below(4_000)
            };
            let (partition, k) = (
                numbers.below(2) as usize,
                ["a", "b"][numbers.below(2) as usize],
            );
            TestEvent {
                partition,
                k,
                t: now - late as i64,
                v: 1,
            }
        })
        .collect()
}

/// Calls without their time zone, hours from one start to the next, windows per event, `late`, and
/// hours of lateness.
const LOCAL_WINDOWS: [(&str, u32, usize, &str, i64); 6] = [
    ("tumble(ev, event_time, interval '1 day'", 24, 1, "drop", 0),
    (
        "tumble(ev, event_time, interval '1 day'",
        24,
        1,
        "update",
        30,
    ),
    ("tumble(ev, event_time, interval '6 hours'", 6, 1, "drop", 3),
    (
        "hop(ev, event_time, interval '1 day', interval '3 days'",
        24,
        3,
        "drop",
        0,
    ),
    (
        "hop(ev, event_time, interval '6 hours', interval '12 hours'",
        6,
        2,
        "update",
        30,
    ),
    (
        "hop(ev, event_time, interval '1 day', interval '3 days'",
        24,
        3,
        "update",
        100,
    ),
];

#[test]
fn windows_of_local_time_are_those_of_brute_force() {
    for (zone, day) in [
        ("Europe/Berlin", 1_459_036_800_000),
        ("America/New_York", 1_478_390_400_000),
        ("Asia/Kolkata", 1_459_036_800_000),
        ("Australia/Lord_Howe", 1_475_280_000_000),
    ] {
        let from = day - 8 * 86_400 * SECOND;
        let records = generate_over_days(from, 50);
        for (call, hours, steps, late, lateness) in LOCAL_WINDOWS {
            let starts = local_starts(zone, from - 3 * 86_400 * SECOND, 40, hours);
            let sql = format!(
                "select window_start, window_end, k, count(*) as n from {call}, '{zone}') group by 1, 2, 3"
            );
            let keys = format!("late = '{late}'\nallowed_lateness = '{lateness}h'");
            let catalog = catalog(&window(&sql, &keys).replace("100d", "1000d"));
            let rows = check_any_split(&catalog, &records, true);
            let counts = local_brute_force(&records, &starts, steps, lateness * 3_600 * SECOND);
            let counts_from = |start: i64| counts.get(&start).cloned().unwrap_or_default();
            if late == "update" && steps > 1 {
                for (found, start) in slides(&rows["w_versions"], &starts).iter().zip(&starts) {
                    assert_eq!(*found, (time(*start), counts_from(*start)), "{zone} {call}");
                }
                continue;
            }
            // A sliding window emits only what differs from the previous slide.
            let mut want = BTreeMap::new();
            for (before, start) in starts.iter().zip(&starts[1..]) {
                if steps == 1 || counts_from(*start) != counts_from(*before) {
                    want.extend(
                        counts_from(*start)
                            .into_iter()
                            .map(|(k, n)| ((time(*start), json!(k).to_string()), vec![json!(n)])),
                    );
                }
            }
            assert!(want.len() > 20);
            assert_eq!(
                latest(&rows["w_versions"], &["n"]),
                want,
                "{zone} {call} {late}"
            );
        }
    }
}

#[test]
fn changed_time_zone_data_restarts_the_windows_of_zones() {
    let window = |name: &str, zone: &str| {
        format!(
            r#"
[windows.{name}]
sql = """select window_start, window_end, count(*) as n
         from tumble(ev, event_time, interval '1 day'{zone}) group by 1, 2"""
"#
        )
    };
    let windows = window("zoned", ", 'Europe/Berlin'") + window("other", "").as_str();
    let now = catalog(&format!("{STREAM}{windows}"));
    let mut declared = now.declarations();
    declared.zone_data = "2001a".into();
    let before = Arc::new(Catalog::compile(&declared).expect("it compiles"));
    assert_ne!(
        before.id, now.id,
        "other zone data is another configuration"
    );
    let mut operators = Operators::new(before, 0);
    let values: Vec<Value> = (0..5)
        .map(|n| json!({"k": "a", "t": START + n * SECOND, "v": 1}))
        .collect();
    let records = frame(Kind::Record, "p0", 1, &values);
    let decoded = operators.decode(&records).expect("decoded");
    operators
        .apply(&records, decoded.as_ref())
        .expect("applied");
    let stored: Value = serde_json::from_str(&now.to_json()).expect("JSON");
    let mut tables = Tables::new();
    let switched = frame(Kind::Configuration, "", operators.lsn() + 1, &[stored]);
    collect(
        &operators.apply(&switched, None).expect("applied"),
        &mut tables,
    );
    assert!(
        tables["zoned_versions"][0].contains("abandoned"),
        "{tables:?}"
    );
    assert!(!tables.contains_key("other_versions"), "{tables:?}");
    assert!(
        operators
            .open_rows(&TableId::window("other"))
            .expect("rows")
            .is_some()
    );
}
