//! Windows and sessions against brute force over disordered, late and repeated input of several
//! partitions; equal however frames are cut and wherever a snapshot is saved and read back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};
use weir::operators::{Operators, snapshot};
use weir::query::sql::to_ndjson;
use weir::schema::Catalog;
use weir::wal::{Frame, FrameAttributes, Header, Kind, RecordsBuilder};

use crate::support::{Lcg, TestFolder};

const SECOND: i64 = 1_000;
const DISORDER: i64 = 5 * SECOND;

const STREAM: &str = include_str!("../testdata/windows.toml");

/// A record of a partition.
#[derive(Debug, Clone)]
struct TestEvent {
    partition: usize,
    k: &'static str,
    t: i64,
    v: i64,
}

const START: i64 = 1_465_520_400_000;

/// Two partitions that go forward, with disorder, lateness and gaps without a record.
fn generate(count: usize, seed: u64) -> Vec<TestEvent> {
    let mut numbers = Lcg(seed);
    let mut now = START;
    (0..count)
        .map(|_| {
            now += numbers.below(900) as i64;
            if numbers.below(80) == 0 {
                now += 40 * SECOND;
            }
            let late = match numbers.below(20) {
                0 => numbers.below(60_000),
                1 => numbers.below(14_000),
                _ => numbers.below(4_000),
            };
            TestEvent {
                partition: numbers.below(2) as usize,
                k: ["a", "b", "c", "d"][numbers.below(4) as usize],
                t: now - late as i64,
                v: numbers.below(50) as i64 - 10,
            }
        })
        .collect()
}

/// The watermark before each record and after the last, by the definition.
fn watermarks(records: &[TestEvent]) -> Vec<Option<i64>> {
    let mut seen: [Vec<i64>; 2] = [Vec::new(), Vec::new()];
    let mut stream = None;
    let mut out = vec![None];
    for record in records {
        seen[record.partition].push(record.t);
        // A first record only is remembered; the second goes by the lesser of the two.
        let of = |times: &Vec<i64>| match times.as_slice() {
            [] | [_] => None,
            [a, b, rest @ ..] => {
                Some(rest.iter().copied().chain([*a.min(b)]).max().unwrap_or(0) - DISORDER)
            }
        };
        let active: Vec<Option<i64>> = seen.iter().filter(|s| !s.is_empty()).map(of).collect();
        stream = stream.max(active.into_iter().min().flatten());
        out.push(stream);
    }
    out
}

fn catalog(window: &str) -> Arc<Catalog> {
    catalog_of(&format!("{STREAM}{window}"))
}

fn catalog_of(text: &str) -> Arc<Catalog> {
    let config =
        weir::config::parse(None, text.to_owned(), None, &|_| None).expect("a configuration");
    Arc::new(Catalog::from_config(&config).expect("it compiles"))
}

fn frame(kind: Kind, partition: &str, first_lsn: u64, records: &[Value]) -> Arc<Frame> {
    let mut builder = RecordsBuilder::default();
    records
        .iter()
        .for_each(|record| builder.push(record.to_string().as_bytes()));
    let built = builder.finish();
    let header = Header {
        first_lsn,
        received_at: (START + 30 * 86_400 * SECOND) * 1_000,
        source: "s".into(),
        partition: partition.into(),
        ..Header::new(kind, "ev")
    };
    Arc::new(Frame::data(header, &built, FrameAttributes::default()).expect("memory"))
}

/// Rows by table, in their order, as text.
type Tables = BTreeMap<String, Vec<String>>;

fn collect(output: &weir::operators::Output, tables: &mut Tables) {
    for rows in &output.tables {
        let lines =
            to_ndjson(&rows.batch.schema(), std::slice::from_ref(&rows.batch)).expect("rows");
        let lines = String::from_utf8(lines).expect("text");
        tables
            .entry(rows.table.to_string())
            .or_default()
            .extend(lines.lines().map(str::to_owned));
    }
}

/// Runs the records with frames cut at random, saved and read back now and then; the last frame
/// closes everything if asked.
fn run(
    catalog: &Arc<Catalog>,
    records: &[TestEvent],
    seed: u64,
    largest: u64,
    is_final: bool,
) -> Tables {
    let mut numbers = Lcg(seed);
    let mut operators = Operators::new(catalog.clone(), 0);
    let mut tables = Tables::new();
    let mut at = 0;
    while at < records.len() {
        let partition = records[at].partition;
        let most = numbers.below(largest) as usize + 1;
        let own = records[at..]
            .iter()
            .take(most)
            .take_while(|r| r.partition == partition);
        let values: Vec<Value> = own
            .map(|r| json!({"k": r.k, "t": r.t, "v": r.v, "x": r.v as f64 / 4.0}))
            .collect();
        let frame = frame(
            Kind::Record,
            ["p0", "p1"][partition],
            operators.lsn() + 1,
            &values,
        );
        let decoded = operators.decode(&frame).expect("decoded");
        let output = operators.apply(&frame, decoded.as_ref()).expect("applied");
        collect(&output, &mut tables);
        at += values.len();
        if largest > 1 && numbers.below(6) == 0 {
            let bytes = snapshot::encode(&operators);
            operators = snapshot::decode("a snapshot".as_ref(), &bytes).expect("its own bytes");
        }
    }
    if is_final {
        let frame = frame(Kind::CloseAll, "", operators.lsn() + 1, &[json!({})]);
        collect(
            &operators.apply(&frame, None).expect("applied"),
            &mut tables,
        );
    }
    tables
}

/// The latest version of each window and group, without retracted ones: (start, key) → the values
/// asked for.
fn latest(rows: &[String], values: &[&str]) -> BTreeMap<(String, String), Vec<Value>> {
    let mut out: BTreeMap<(String, String), (i64, Vec<Value>, bool)> = BTreeMap::new();
    for row in rows {
        let row: Value = serde_json::from_str(row).expect("JSON");
        let key = (row["window_start"].to_string(), row["k"].to_string());
        let version = row["version"].as_i64().expect("a version");
        let is_gone = row["status"] == "retracted";
        let values = values.iter().map(|v| row[*v].clone()).collect();
        let entry = out.entry(key).or_insert((0, Vec::new(), false));
        assert!(version > entry.0, "versions ascend: {row}");
        *entry = (version, values, is_gone);
    }
    out.into_iter()
        .filter(|(_, (.., is_gone))| !is_gone)
        .map(|(key, (_, values, _))| (key, values))
        .collect()
}

/// What each slide says in the end: counts by key, those of the slide before where nothing of it is
/// stored.
fn slides(rows: &[String], starts: &[i64]) -> Vec<(String, BTreeMap<&'static str, u64>)> {
    // Versions ascend.
    latest(rows, &["n"]);
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| serde_json::from_str(row).expect("JSON"))
        .collect();
    let mut said = BTreeMap::new();
    let slide = |start: &i64| {
        let own: Vec<&Value> = rows
            .iter()
            .filter(|row| row["window_start"].to_string().as_str() == time(*start).as_str())
            .collect();
        if !own.is_empty() {
            said.clear();
        }
        for row in own {
            let key = ["a", "b", "c", "d"]
                .into_iter()
                .find(|key| row["k"] == *key)
                .expect("a key");
            match row["n"].as_u64().filter(|_| row["status"] != "retracted") {
                Some(n) => drop(said.insert(key, n)),
                None => drop(said.remove(key)),
            }
        }
        (time(*start), said.clone())
    };
    starts.iter().map(slide).collect()
}

fn time(ms: i64) -> String {
    json!(weir::event::rfc3339(ms * 1_000)).to_string()
}

/// What each window holds: records that came before its end and lateness had passed.
fn brute_force(
    records: &[TestEvent],
    slide: i64,
    size: i64,
    lateness: i64,
) -> BTreeMap<i64, BTreeMap<&'static str, Vec<i64>>> {
    let mut windows: BTreeMap<i64, BTreeMap<&'static str, Vec<i64>>> = BTreeMap::new();
    for (record, watermark) in records.iter().zip(watermarks(records)) {
        let last = record.t.div_euclid(slide) * slide;
        let mut start = (record.t - size).div_euclid(slide) * slide + slide;
        while start <= last {
            if watermark.is_none_or(|w| start + size + lateness > w) {
                windows
                    .entry(start)
                    .or_default()
                    .entry(record.k)
                    .or_default()
                    .push(record.v);
            }
            start += slide;
        }
    }
    windows
}

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
fn local_brute_force(
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
            let text = format!(
                "[windows.w]\nsql = \"select window_start, window_end, k, count(*) as n from {call}, '{zone}') group by 1, 2, 3\"\nlate = \"{late}\"\nallowed_lateness = \"{lateness}h\"\n"
            );
            let catalog = catalog_of(&format!("{}{text}", STREAM.replace("100d", "1000d")));
            let rows = check_any_split(&catalog, &records, true);
            let counts = local_brute_force(&records, &starts, steps, lateness * 3_600 * SECOND);
            let of = |start: i64| counts.get(&start).cloned().unwrap_or_default();
            if late == "update" && steps > 1 {
                for (found, start) in slides(&rows["w_versions"], &starts).iter().zip(&starts) {
                    assert_eq!(*found, (time(*start), of(*start)), "{zone} {call}");
                }
                continue;
            }
            // A sliding window emits only what differs from the previous slide.
            let mut want = BTreeMap::new();
            for (before, start) in starts.iter().zip(&starts[1..]) {
                if steps == 1 || of(*start) != of(*before) {
                    want.extend(
                        of(*start)
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
    let text = ["'Europe/Berlin'", "'UTC'"].iter().zip(["zoned", "other"]).map(|(zone, name)| {
        let zone = if name == "zoned" { format!(", {zone}") } else { String::new() };
        format!("[windows.{name}]\nsql = \"select window_start, window_end, count(*) as n from tumble(ev, event_time, interval '1 day'{zone}) group by 1, 2\"\n")
    });
    let now = catalog(&text.collect::<String>());
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
            .open_rows("other_versions")
            .expect("rows")
            .is_some()
    );
}

fn check_any_split(catalog: &Arc<Catalog>, records: &[TestEvent], is_final: bool) -> Tables {
    let one_by_one = run(catalog, records, 1, 1, is_final);
    for (seed, largest) in [(2, 7), (3, 90)] {
        assert_eq!(
            run(catalog, records, seed, largest, is_final),
            one_by_one,
            "frames of up to {largest}"
        );
    }
    one_by_one
}

#[test]
fn tumbling_counts_are_those_of_brute_force() {
    for (late, lateness) in [
        ("drop", 0),
        ("drop", 12),
        ("update", 0),
        ("update", 12),
        ("update", 35),
    ] {
        let catalog = catalog(&format!(
            "[windows.w]\nsql = \"select window_start, window_end, k, count(*) as n, count(*) filter (where v > 0) as p from tumble(ev, event_time, interval '10 seconds') where v <> 7 group by 1, 2, 3\"\nlate = \"{late}\"\nallowed_lateness = \"{lateness}s\"\n"
        ));
        for seed in 0..2 {
            let records = generate(600, 100 + seed);
            let rows = check_any_split(&catalog, &records, true);
            let found = latest(&rows["w_versions"], &["n", "p"]);
            let mut want = BTreeMap::new();
            for (start, groups) in
                brute_force(&records, 10 * SECOND, 10 * SECOND, lateness * SECOND)
            {
                for (k, values) in groups {
                    let counted: Vec<&i64> = values.iter().filter(|v| **v != 7).collect();
                    if !counted.is_empty() {
                        let positive = counted.iter().filter(|v| ***v > 0).count();
                        want.insert(
                            (time(start), json!(k).to_string()),
                            vec![json!(counted.len()), json!(positive)],
                        );
                    }
                }
            }
            assert_eq!(found, want, "{late} {lateness} seed {seed}");
            let is_late = |(record, watermark): (&TestEvent, Option<i64>)| {
                let end = record.t.div_euclid(10 * SECOND) * 10 * SECOND + 10 * SECOND;
                record.v != 7 && watermark.is_some_and(|w| end + lateness * SECOND <= w)
            };
            let late = records
                .iter()
                .zip(watermarks(&records))
                .filter(|r| is_late((r.0, r.1)))
                .count();
            assert_eq!(rows.get("ev.late").map_or(0, Vec::len), late, "late rows");
        }
    }
}

#[test]
fn updated_slides_are_those_of_brute_force() {
    let starts: Vec<i64> = (-40..500).map(|n| START + n * 5 * SECOND).collect();
    for (having, least, most) in [
        ("", 0, u64::MAX),
        (" having count(*) < 5", 0, 4),
        (" having count(*) > 2", 3, u64::MAX),
    ] {
        let catalog = catalog(&format!(
            "[windows.w]\nsql = \"select window_start, window_end, k, count(*) as n from hop(ev, event_time, interval '5 seconds', interval '15 seconds') group by 1, 2, 3{having}\"\nlate = \"update\"\nallowed_lateness = \"20s\"\n"
        ));
        for seed in 0..2 {
            let records = generate(250, 900 + seed);
            let rows = check_any_split(&catalog, &records, true);
            let counts = local_brute_force(&records, &starts, 3, 20 * SECOND);
            let wanted: Vec<_> = starts
                .iter()
                .map(|start| {
                    let counts = counts.get(start).into_iter().flatten();
                    (
                        time(*start),
                        counts
                            .filter(|(_, n)| (least..=most).contains(*n))
                            .map(|(k, n)| (*k, *n))
                            .collect(),
                    )
                })
                .collect();
            for (found, wanted) in slides(&rows["w_versions"], &starts).iter().zip(&wanted) {
                assert_eq!(found, wanted, "{having} seed {seed}");
            }
        }
    }
}

#[test]
fn a_sliding_top_is_stored_when_it_changes() {
    let catalog = catalog(
        "[windows.w]\nsql = \"select window_start, window_end, k, count(*) as n from hop(ev, event_time, interval '1 second', interval '20 seconds') where v > 0 group by 1, 2, 3 order by n desc limit 2\"\n",
    );
    for seed in 0..3 {
        let records = generate(600, 200 + seed);
        let rows = check_any_split(&catalog, &records, true);
        let mut found: BTreeMap<String, Vec<(String, Value)>> = BTreeMap::new();
        let mut gone = BTreeSet::new();
        for row in &rows["w_versions"] {
            let row: Value = serde_json::from_str(row).expect("JSON");
            if row["status"] == "retracted" {
                gone.insert(row["window_start"].to_string());
            } else {
                let start = found.entry(row["window_start"].to_string()).or_default();
                start.push((row["k"].to_string(), row["n"].clone()));
            }
        }
        // Every slide with its first two; those that say what the one before says are left out.
        let windows = brute_force(&records, SECOND, 20 * SECOND, 0);
        let (first, last) = (
            *windows.keys().next().expect("one"),
            *windows.keys().last().expect("one"),
        );
        let (mut want, mut want_gone) = (BTreeMap::new(), BTreeSet::new());
        let mut before: Vec<(String, Value)> = Vec::new();
        for start in (first..=last + SECOND).step_by(SECOND as usize) {
            let mut top: Vec<(i64, &str)> = windows
                .get(&start)
                .into_iter()
                .flatten()
                .map(|(k, values)| (-(values.iter().filter(|v| **v > 0).count() as i64), *k))
                .filter(|(n, _)| *n < 0)
                .collect();
            top.sort_unstable();
            let top: Vec<(String, Value)> = top
                .into_iter()
                .take(2)
                .map(|(n, k)| (json!(k).to_string(), json!(-n)))
                .collect();
            if top != before {
                if top.is_empty() {
                    want_gone.insert(time(start));
                } else {
                    want.insert(time(start), top.clone());
                }
            }
            before = top;
        }
        assert_eq!(found, want, "seed {seed}");
        assert_eq!(gone, want_gone, "seed {seed}: empty slides");
    }
}

#[test]
fn every_kind_of_aggregate_is_that_of_brute_force() {
    let catalog = catalog(
        "[windows.w]\nsql = \"\"\"select window_start, window_end, k, count(*) as n, sum(v) as s, avg(x) as a, min(v) as low, max(v) as high,
         count(distinct v) as d, approx_distinct(v) as attributes, array_agg(v order by v, t) as all_v, sum(v) filter (where v > 5) as big,
         approx_percentile_cont(x, 0.5) as middle, first_value(v order by t, v) as first_v, stddev(x) as spread
         from hop(ev, event_time, interval '5 seconds', interval '15 seconds') group by 1, 2, 3 having count(*) > 1\"\"\"\nlate = \"update\"\nallowed_lateness = \"20s\"\n",
    );
    let records = generate(400, 300);
    let rows = check_any_split(&catalog, &records, true);
    // A slide that says what the one before said is not stored.
    let found = latest(
        &rows["w_versions"],
        &["n", "s", "low", "high", "d", "all_v", "big", "a"],
    );
    let mut want = BTreeMap::new();
    for (start, groups) in brute_force(&records, 5 * SECOND, 15 * SECOND, 20 * SECOND) {
        for (k, mut values) in groups.into_iter().filter(|(_, v)| v.len() > 1) {
            values.sort_unstable();
            let different: BTreeSet<&i64> = values.iter().collect();
            let big: Vec<i64> = values.iter().copied().filter(|v| *v > 5).collect();
            let sum: i64 = values.iter().sum();
            let row = vec![
                json!(values.len()),
                json!(sum),
                json!(values[0]),
                json!(values[values.len() - 1]),
                json!(different.len()),
                json!(values),
                if big.is_empty() {
                    Value::Null
                } else {
                    json!(big.iter().sum::<i64>())
                },
                json!(sum as f64 / 4.0 / values.len() as f64),
            ];
            want.insert((time(start), json!(k).to_string()), row);
        }
    }
    assert!(found.len() > 50);
    for (key, row) in &found {
        let wanted = want
            .get(key)
            .unwrap_or_else(|| panic!("{key:?} has no rows"));
        assert_eq!(row[..7], wanted[..7], "{key:?}");
        let (a, b) = (
            row[7].as_f64().expect("a number"),
            wanted[7].as_f64().expect("a number"),
        );
        assert!((a - b).abs() < 1e-9, "{key:?}: {a} and {b}");
    }
    // What is left out says what the slide before it says.
    let slide = |start: &str| -> Vec<(&String, &Vec<Value>)> {
        want.iter()
            .filter(|((s, _), _)| s == start)
            .map(|((_, k), row)| (k, row))
            .collect()
    };
    let starts: BTreeSet<&String> = want.keys().map(|(start, _)| start).collect();
    for start in starts {
        if !found.keys().any(|(s, _)| s == start) {
            let text: String = serde_json::from_str(start).expect("text");
            let at = chrono_ms(&text) - 5 * SECOND;
            assert_eq!(slide(start), slide(&time(at)), "{start}");
        }
    }
}

fn chrono_ms(text: &str) -> i64 {
    weir::config::units::parse_time(text, 0).expect("a time") / 1_000
}

#[test]
fn session_windows_are_those_of_brute_force() {
    let catalog = catalog(
        "[windows.w]\nsql = \"select window_start, window_end, k, count(*) as n, max(v) as high from session(ev, event_time, interval '3 seconds', k) group by 1, 2, 3\"\nallowed_lateness = \"300d\"\n",
    );
    for seed in 0..3 {
        let records = generate(400, 400 + seed);
        let rows = check_any_split(&catalog, &records, true);
        let found = latest(&rows["w_versions"], &["window_end", "n", "high"]);
        let mut want = BTreeMap::new();
        for k in ["a", "b", "c", "d"] {
            let mut own: Vec<(i64, i64)> = records
                .iter()
                .filter(|r| r.k == k)
                .map(|r| (r.t, r.v))
                .collect();
            own.sort_unstable();
            for session in own.chunk_by(|a, b| b.0 - a.0 <= 3 * SECOND) {
                let (start, end) = (session[0].0, session[session.len() - 1].0 + 3 * SECOND);
                let high = session.iter().map(|(_, v)| v).max();
                let end: Value = serde_json::from_str(&time(end)).expect("text");
                want.insert(
                    (time(start), json!(k).to_string()),
                    vec![end, json!(session.len()), json!(high)],
                );
            }
        }
        assert_eq!(found, want, "seed {seed}");
    }
}

#[test]
fn a_window_over_a_window_takes_every_final_row_once() {
    for late in ["drop", "update"] {
        let catalog = catalog(&format!(
            "[windows.small]\nsql = \"select window_start, window_end, k, count(*) as n from tumble(ev, event_time, interval '2 seconds') group by 1, 2, 3\"\nlate = \"{late}\"\nallowed_lateness = \"7s\"\n[windows.large]\nsql = \"select window_start, window_end, k, sum(n) as total, count(*) as parts from tumble(small, window_start, interval '20 seconds') group by 1, 2, 3\"\n"
        ));
        let records = generate(600, 500);
        let rows = check_any_split(&catalog, &records, true);
        let found = latest(&rows["large_versions"], &["total", "parts"]);
        let mut want: BTreeMap<(String, String), (usize, usize)> = BTreeMap::new();
        for (start, groups) in brute_force(&records, 2 * SECOND, 2 * SECOND, 7 * SECOND) {
            for (k, values) in groups {
                let large = start.div_euclid(20 * SECOND) * 20 * SECOND;
                let (total, parts) = want.entry((time(large), json!(k).to_string())).or_default();
                *total += values.len();
                *parts += 1;
            }
        }
        let want: BTreeMap<_, _> = want
            .into_iter()
            .map(|(k, (a, b))| (k, vec![json!(a), json!(b)]))
            .collect();
        assert_eq!(found, want, "{late}");
    }
}

#[test]
fn open_windows_are_rows_and_a_full_state_closes_the_oldest() {
    let open = catalog(
        "[windows.w]\nsql = \"select window_start, window_end, k, count(*) as n from tumble(ev, event_time, interval '10 seconds') group by 1, 2, 3\"\n",
    );
    let records = generate(400, 600);
    let mut operators = Operators::new(open, 0);
    let mut stored = Tables::new();
    for record in &records {
        let value = json!({"k": record.k, "t": record.t, "v": 1, "x": 1.0});
        let frame = frame(
            Kind::Record,
            ["p0", "p1"][record.partition],
            operators.lsn() + 1,
            &[value],
        );
        let decoded = operators.decode(&frame).expect("decoded");
        collect(
            &operators.apply(&frame, decoded.as_ref()).expect("applied"),
            &mut stored,
        );
    }
    let open = operators
        .open_rows("w_versions")
        .expect("rows")
        .expect("some are open");
    let open = String::from_utf8(to_ndjson(&open.schema(), &[open]).expect("rows")).expect("text");
    let sum = |rows: &mut dyn Iterator<Item = &str>| -> u64 {
        rows.map(|r| {
            serde_json::from_str::<Value>(r).expect("JSON")["n"]
                .as_u64()
                .expect("a number")
        })
        .sum()
    };
    let all = sum(&mut stored["w_versions"]
        .iter()
        .map(String::as_str)
        .chain(open.lines()));
    assert_eq!(
        all as usize + stored.get("ev.late").map_or(0, Vec::len),
        records.len()
    );
    assert!(
        open.lines().all(|row| row.contains("\"status\":\"open\"")),
        "{open}"
    );

    let small = catalog(
        "[windows.w]\nsql = \"select window_start, window_end, t, count(*) as n from tumble(ev, event_time, interval '10 seconds') group by 1, 2, 3\"\nmax_groups = 20\n",
    );
    let rows = check_any_split(&small, &records, true);
    let rows = &rows["w_versions"];
    assert!(rows.iter().any(|r| r.contains("abandoned")));
    assert!(sum(&mut rows.iter().map(String::as_str)) <= records.len() as u64);
}

#[test]
fn the_state_of_every_kind_of_window_is_bounded_for_any_values() {
    let tumble = "tumble(ev, event_time, interval '10 seconds')";
    let hop = "hop(ev, event_time, interval '2 seconds', interval '20 seconds')";
    let session = "session(ev, event_time, interval '30 seconds', k)";
    for (select, from, late) in [
        ("count(*) as n", tumble, "update"),
        ("count(*) as n", hop, "update"),
        ("count(*) as n", hop, "drop"),
        ("max(v) as n", tumble, "update"),
        ("max(v) as n", hop, "drop"),
        ("count(*) as n", session, "drop"),
    ] {
        let catalog = catalog(&format!(
            "[windows.w]\nsql = \"select window_start, window_end, k, t, {select} from {from} group by 1, 2, 3, 4\"\nlate = \"{late}\"\nallowed_lateness = \"15s\"\nmax_groups = 25\n"
        ));
        let rows = check_any_split(&catalog, &generate(250, 1_000), true);
        if late == "drop" {
            assert!(
                rows["w_versions"].iter().any(|r| r.contains("abandoned")),
                "{from}"
            );
        }
    }
    // Values that grow count as more groups: all of one group, and yet windows close early.
    let catalog = catalog(
        "[windows.w]\nsql = \"select window_start, window_end, k, array_agg(repeat(k, 200)) as n from tumble(ev, event_time, interval '1 hour') group by 1, 2, 3\"\nmax_groups = 60\n",
    );
    let rows = check_any_split(&catalog, &generate(400, 1_001), true);
    assert!(rows["w_versions"].iter().any(|r| r.contains("abandoned")));
}

const VISITS: &str = "[streams.visits]\npreset = \"sessions\"\n";

fn visit(inst: &str, action: &str, at: i64) -> String {
    format!(
        "{{\"build_id\":\"10.3.5.34\",\"inst_id\":\"{inst}\",\"trialstate\":\"Trial\",\"action\":\"{action}\",\"timestamp\":{at}}}\n"
    )
}

#[test]
fn sessions_open_and_close_in_their_five_cases() {
    let folder = TestFolder::new("");
    folder.configure(&format!(
        "[[sources]]\nname = \"in\"\ntype = \"file\"\npath = \"in.ndjson\"\nstream = \"visits\"\n{VISITS}"
    ));
    let cases = [
        ("A", "prostarted", 1_486_250_584),
        ("A", "proedit", 1_486_250_694),
        ("B", "prostarted", 1_486_250_722),
        ("B", "prostarted", 1_486_250_795),
        ("A", "proedit", 1_486_260_694),
    ];
    let text: String = cases
        .iter()
        .map(|(inst, action, at)| visit(inst, action, *at))
        .collect();
    folder.write("in.ndjson", text.as_bytes());
    folder.once();
    let sessions = |folder: &TestFolder| {
        folder.rows("select key, status, events, duration_s, first, last from visits.sessions order by started")
    };
    let row = |key: &str, status: &str, events: u64, seconds: f64, first: &str, last: &str| json!({"key": key, "status": status, "events": events, "duration_s": seconds, "first": first, "last": last});
    let mut want = vec![
        row("A", "closed_timeout", 2, 110.0, "prostarted", "proedit"),
        row(
            "B",
            "closed_on_open_event",
            1,
            0.0,
            "prostarted",
            "prostarted",
        ),
        row("B", "open", 1, 0.0, "prostarted", "prostarted"),
        row("A", "open", 1, 0.0, "proedit", "proedit"),
    ];
    assert_eq!(sessions(&folder), want);
    // Each event names its session, and no two sessions have one name.
    let events =
        folder.rows("select session_id, count(*) as n from visits group by 1 order by 2 desc");
    assert_eq!(
        events.iter().map(|e| e["n"].as_u64()).collect::<Vec<_>>(),
        [Some(2), Some(1), Some(1), Some(1)]
    );
    // A second run resumes where the first one stopped; its end closes everything.
    let more = format!("{text}{}", visit("A", "proedit", 1_486_262_494));
    folder.write("in.ndjson", more.as_bytes());
    let output = folder.output(&["run", "--once", "--final"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    want[2] = row("B", "closed_timeout", 1, 0.0, "prostarted", "prostarted");
    // Exactly 1,800 seconds later is not later than the gap.
    want[3] = row("A", "closed_timeout", 2, 1_800.0, "proedit", "proedit");
    assert_eq!(sessions(&folder), want);
}

#[test]
fn sessions_are_those_of_their_definition_for_any_split_into_frames() {
    let text = "session = { key = \"k\", gap = \"4s\", opens = \"v > 35\", track = \"k\" }\n";
    let catalog = catalog(text);
    for seed in 0..3 {
        let records = generate(900, 700 + seed);
        let tables = check_any_split(&catalog, &records, true);
        let mut found: Vec<(String, i64, i64, u64, String)> = tables["ev.sessions"]
            .iter()
            .map(|row| {
                let row: Value = serde_json::from_str(row).expect("JSON");
                let at = |name: &str| chrono_ms(row[name].as_str().expect("a time"));
                let text = |name: &str| row[name].as_str().expect("text").to_owned();
                (
                    text("key"),
                    at("started"),
                    at("ended"),
                    row["events"].as_u64().expect("a number"),
                    text("status"),
                )
            })
            .collect();
        found.sort();
        let mut want = definition(&records);
        want.sort();
        assert_eq!(found, want, "seed {seed}");
    }
}

#[test]
fn above_max_open_the_session_idle_for_longest_is_closed() {
    let catalog = catalog("session = { key = \"t\", gap = \"1h\", max_open = 20 }\n");
    let records = generate(400, 900);
    let tables = check_any_split(&catalog, &records, true);
    let rows: Vec<Value> = tables["ev.sessions"]
        .iter()
        .map(|row| serde_json::from_str(row).expect("JSON"))
        .collect();
    let ids: BTreeSet<String> = rows.iter().map(|r| r["session_id"].to_string()).collect();
    assert_eq!(ids.len(), rows.len(), "each is reported once");
    assert_eq!(
        rows.iter()
            .map(|r| r["events"].as_u64().expect("a number"))
            .sum::<u64>(),
        400
    );
    assert!(rows.iter().filter(|r| r["status"] == "abandoned").count() > 300);
    assert_eq!(
        rows.iter()
            .filter(|r| r["status"] == "closed_timeout")
            .count(),
        20
    );
}

#[test]
fn long_keys_of_sessions_are_shortened_and_stay_distinct() {
    let text = "[streams.long]\nschema = \"k varchar, t bigint not null\"\nselect = \"select to_timestamp_millis(t) as event_time, k, t from long\"\nsession = { key = \"k\", gap = \"1h\", track = \"k\" }\n";
    let folder = TestFolder::new("");
    folder.configure(&format!(
        "[[sources]]\nname = \"in\"\ntype = \"file\"\npath = \"in.ndjson\"\nstream = \"long\"\n{text}"
    ));
    let long = "é".repeat(40_000);
    let record =
        |end: &str, n: i64| json!({"k": format!("{long}{end}"), "t": START + n}).to_string();
    let lines: Vec<String> = [("a", 0), ("b", 1), ("a", 2)]
        .iter()
        .map(|(end, n)| record(end, *n))
        .collect();
    folder.write("in.ndjson", (lines.join("\n") + "\n").as_bytes());
    folder.once();
    let rows = folder
        .rows("select events, length(key) as l, session_id from long.sessions order by events");
    assert_eq!(
        rows.iter()
            .map(|r| r["events"].as_u64())
            .collect::<Vec<_>>(),
        [Some(1), Some(2)]
    );
    assert!(
        rows.iter()
            .all(|r| r["l"].as_u64().is_some_and(|l| l < 100)),
        "{rows:?}"
    );
    let joined = "select count(*) from long l join long.sessions s on l.session_id = s.session_id";
    assert_eq!(folder.number(joined), 3);
}

/// Key, start, end, events, status of every session, by their definition, word for word.
fn definition(records: &[TestEvent]) -> Vec<(String, i64, i64, u64, String)> {
    const GAP: i64 = 4 * SECOND;
    type Open = (i64, i64, u64);
    let mut open: BTreeMap<&str, Open> = BTreeMap::new();
    let mut ended: BTreeMap<&str, i64> = BTreeMap::new();
    let mut out = Vec::new();
    let row = |key: &str, (start, end, events): Open, status: &str| {
        (key.to_owned(), start, end, events, status.to_owned())
    };
    let marks = watermarks(records);
    for (n, record) in records.iter().enumerate() {
        let TestEvent { k, t, v, .. } = *record;
        let opens = v > 35;
        match open.get_mut(k) {
            Some((start, _, _)) if t < *start - GAP => out.push(row(k, (t, t, 1), "late")),
            Some(session) if !opens && t <= session.1 + GAP => {
                *session = (session.0.min(t), session.1.max(t), session.2 + 1);
            }
            Some(session) => {
                let status = if t > session.1 + GAP {
                    "closed_timeout"
                } else {
                    "closed_on_open_event"
                };
                out.push(row(k, std::mem::replace(session, (t, t, 1)), status));
            }
            None => {
                let is_over = marks[n].is_some_and(|w| t + GAP < w);
                let is_for_closed = !opens && ended.get(k).is_some_and(|end| t <= end + GAP);
                if is_over || is_for_closed {
                    out.push(row(k, (t, t, 1), "late"));
                } else {
                    open.insert(k, (t, t, 1));
                }
            }
        }
        if let Some(mark) = marks[n + 1] {
            for (k, session) in open.clone() {
                if session.1 + GAP < mark {
                    out.push(row(k, session, "closed_timeout"));
                    ended.insert(k, session.1);
                    open.remove(k);
                }
            }
        }
    }
    out.extend(
        open.into_iter()
            .map(|(k, session)| row(k, session, "closed_timeout")),
    );
    out
}

#[test]
fn a_row_whose_expression_fails_is_left_out_of_its_window() {
    for select in ["count(10 / v) as n", "sum(10 / v) as n"] {
        let catalog = catalog(&format!(
            "[windows.w]\nsql = \"select window_start, window_end, k, {select} from tumble(ev, event_time, interval '10 seconds') group by 1, 2, 3\"\n"
        ));
        let records = generate(300, 800);
        assert!(records.iter().any(|r| r.v == 0), "some row divides by zero");
        let rows = check_any_split(&catalog, &records, true);
        let found = latest(&rows["w_versions"], &["n"]);
        let mut want = BTreeMap::new();
        for (start, groups) in brute_force(&records, 10 * SECOND, 10 * SECOND, 0) {
            for (k, values) in groups {
                let values: Vec<i64> = values.into_iter().filter(|v| *v != 0).collect();
                if !values.is_empty() {
                    let sum: i64 = values.iter().map(|v| 10 / v).sum();
                    let n = if select.starts_with("count") {
                        values.len() as i64
                    } else {
                        sum
                    };
                    want.insert((time(start), json!(k).to_string()), vec![json!(n)]);
                }
            }
        }
        assert_eq!(found, want, "{select}");
    }
}
