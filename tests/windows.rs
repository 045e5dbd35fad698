//! Windows against brute force over disordered, late and repeated input of several partitions; equal
//! for any split into frames and wherever a snapshot is saved and read back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};
use weir::ids::TableId;
use weir::operators::{Operators, snapshot};
use weir::query::sql::to_ndjson;
use weir::schema::Catalog;
use weir::wal::{Frame, FrameAttributes, Header, Kind, RecordsBuilder};

use crate::local_windows::local_brute_force;
use crate::support::Lcg;

pub const SECOND: i64 = 1_000;
const DISORDER: i64 = 5 * SECOND;

pub const STREAM: &str = include_str!("../testdata/windows.toml");

/// A record of a partition.
#[derive(Debug, Clone)]
pub struct TestEvent {
    pub partition: usize,
    pub k: &'static str,
    pub t: i64,
    pub v: i64,
}

pub const START: i64 = 1_465_520_400_000;

/// Two partitions that go forward, with disorder, lateness and gaps without a record.
pub fn generate(count: usize, seed: u64) -> Vec<TestEvent> {
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
pub fn watermarks(records: &[TestEvent]) -> Vec<Option<i64>> {
    let mut seen: [Vec<i64>; 2] = [Vec::new(), Vec::new()];
    let mut stream = None;
    let mut out = vec![None];
    for record in records {
        seen[record.partition].push(record.t);
        // The first record alone does not count; the second is taken as the lesser of the two.
        let watermark = |times: &Vec<i64>| match times.as_slice() {
            [] | [_] => None,
            [a, b, rest @ ..] => {
                Some(rest.iter().copied().chain([*a.min(b)]).max().unwrap_or(0) - DISORDER)
            }
        };
        let active: Vec<Option<i64>> = seen
            .iter()
            .filter(|s| !s.is_empty())
            .map(watermark)
            .collect();
        stream = stream.max(active.into_iter().min().flatten());
        out.push(stream);
    }
    out
}

/// A configuration with a window `w` over the stream `ev`, with more keys of the window.
pub fn window(sql: &str, keys: &str) -> String {
    format!(
        r#"{STREAM}
[windows.w]
sql = """{sql}"""
{keys}
"#
    )
}

/// Keys of a window: what late events do, and the lateness in seconds.
fn lateness(late: &str, seconds: i64) -> String {
    format!("late = '{late}'\nallowed_lateness = '{seconds}s'")
}

pub fn catalog(toml: &str) -> Arc<Catalog> {
    let config =
        weir::config::parse(None, toml.to_owned(), None, &|_| None).expect("a configuration");
    Arc::new(Catalog::from_config(&config).expect("it compiles"))
}

pub fn frame(kind: Kind, partition: &str, first_lsn: u64, records: &[Value]) -> Arc<Frame> {
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

/// The latest version of each window and group: (start, key) → values.
type LatestRows = BTreeMap<(String, String), Vec<Value>>;

/// Rows by table, in their order, as text.
pub type Tables = BTreeMap<String, Vec<String>>;

pub fn collect(output: &weir::operators::Output, tables: &mut Tables) {
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

/// Runs the records in frames of random lengths, with snapshots saved and read back now and then;
/// the last frame closes everything if asked.
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
pub fn latest(rows: &[String], values: &[&str]) -> LatestRows {
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

/// The final counts by key of each slide: those of the slide before where nothing of it is stored.
pub fn slides(rows: &[String], starts: &[i64]) -> Vec<(String, BTreeMap<&'static str, u64>)> {
    // Versions ascend.
    latest(rows, &["n"]);
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| serde_json::from_str(row).expect("JSON"))
        .collect();
    let mut counts = BTreeMap::new();
    let slide = |start: &i64| {
        let own: Vec<&Value> = rows
            .iter()
            .filter(|row| row["window_start"].to_string().as_str() == time(*start).as_str())
            .collect();
        if !own.is_empty() {
            counts.clear();
        }
        for row in own {
            let key = ["a", "b", "c", "d"]
                .into_iter()
                .find(|key| row["k"] == *key)
                .expect("a key");
            match row["n"].as_u64().filter(|_| row["status"] != "retracted") {
                Some(n) => drop(counts.insert(key, n)),
                None => drop(counts.remove(key)),
            }
        }
        (time(*start), counts.clone())
    };
    starts.iter().map(slide).collect()
}

pub fn time(ms: i64) -> String {
    json!(weir::event::rfc3339(ms * 1_000)).to_string()
}

/// The values in each window by key: of records that came before its end and lateness had passed.
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

/// Checks that frames of any lengths give the rows of frames of one record; returns them.
pub fn check_any_split(catalog: &Arc<Catalog>, records: &[TestEvent], is_final: bool) -> Tables {
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

/// Checks the latest version of each window and group of the window `w`, in these columns, for any
/// split into frames; returns the rows of all tables.
fn check_window(
    toml: &str,
    events: &[TestEvent],
    columns: &[&str],
    expected: &LatestRows,
) -> Tables {
    let rows = check_any_split(&catalog(toml), events, true);
    let found = latest(&rows["w_versions"], columns);
    assert_eq!(found, *expected, "{toml}");
    rows
}

#[test]
fn tumbling_counts_are_those_of_brute_force() {
    for (late, seconds) in [
        ("drop", 0),
        ("drop", 12),
        ("update", 0),
        ("update", 12),
        ("update", 35),
    ] {
        let sql =
            "select window_start, window_end, k, count(*) as n, count(*) filter (where v > 0) as p
            from tumble(ev, event_time, interval '10 seconds') where v <> 7 group by 1, 2, 3";
        let toml = window(sql, &lateness(late, seconds));
        for seed in 0..2 {
            let records = generate(600, 100 + seed);
            let mut want = BTreeMap::new();
            for (start, groups) in brute_force(&records, 10 * SECOND, 10 * SECOND, seconds * SECOND)
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
            let rows = check_window(&toml, &records, &["n", "p"], &want);
            let is_late = |(record, watermark): (&TestEvent, Option<i64>)| {
                let end = record.t.div_euclid(10 * SECOND) * 10 * SECOND + 10 * SECOND;
                record.v != 7 && watermark.is_some_and(|w| end + seconds * SECOND <= w)
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
        let sql = format!(
            "select window_start, window_end, k, count(*) as n
             from hop(ev, event_time, interval '5 seconds', interval '15 seconds') group by 1, 2, 3{having}"
        );
        let catalog = catalog(&window(&sql, &lateness("update", 20)));
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
    let sql = "select window_start, window_end, k, count(*) as n
        from hop(ev, event_time, interval '1 second', interval '20 seconds')
        where v > 0 group by 1, 2, 3 order by n desc limit 2";
    let catalog = catalog(&window(sql, ""));
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
        // Every slide with its first two; those that are equal to the one before are left out.
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
    let sql = "select window_start, window_end, k, count(*) as n, sum(v) as s, avg(x) as a, min(v) as low, max(v) as high,
        count(distinct v) as d, approx_distinct(v) as attributes, array_agg(v order by v, t) as all_v,
        sum(v) filter (where v > 5) as big, approx_percentile_cont(x, 0.5) as middle,
        first_value(v order by t, v) as first_v, stddev(x) as spread
        from hop(ev, event_time, interval '5 seconds', interval '15 seconds') group by 1, 2, 3 having count(*) > 1";
    let catalog = catalog(&window(sql, &lateness("update", 20)));
    let records = generate(400, 300);
    let rows = check_any_split(&catalog, &records, true);
    // A slide that is equal to the one before is not stored.
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
    // A slide that is left out is equal to the slide before.
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
            let at = milliseconds(&text) - 5 * SECOND;
            assert_eq!(slide(start), slide(&time(at)), "{start}");
        }
    }
}

/// Milliseconds of a time in text.
pub fn milliseconds(text: &str) -> i64 {
    weir::config::units::parse_time(text, 0).expect("a time") / 1_000
}

#[test]
fn session_windows_are_those_of_brute_force() {
    let sql = "select window_start, window_end, k, count(*) as n, max(v) as high
        from session(ev, event_time, interval '3 seconds', k) group by 1, 2, 3";
    let toml = window(sql, "allowed_lateness = '300d'");
    for seed in 0..3 {
        let records = generate(400, 400 + seed);
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
        check_window(&toml, &records, &["window_end", "n", "high"], &want);
    }
}

#[test]
fn a_window_over_a_window_takes_every_final_row_once() {
    for late in ["drop", "update"] {
        let sql = "select window_start, window_end, k, sum(n) as total, count(*) as parts
            from tumble(small, window_start, interval '20 seconds') group by 1, 2, 3";
        let small = format!(
            r#"
[windows.small]
sql = """select window_start, window_end, k, count(*) as n
         from tumble(ev, event_time, interval '2 seconds') group by 1, 2, 3"""
{}
"#,
            lateness(late, 7)
        );
        let toml = window(sql, &small);
        let records = generate(600, 500);
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
        check_window(&toml, &records, &["total", "parts"], &want);
    }
}

#[test]
fn open_windows_are_rows_and_a_full_state_closes_the_oldest() {
    let sql = "select window_start, window_end, k, count(*) as n
        from tumble(ev, event_time, interval '10 seconds') group by 1, 2, 3";
    let open = catalog(&window(sql, ""));
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
        .open_rows(&TableId::window("w"))
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

    let small = catalog(&window(&sql.replace("k,", "t,"), "max_groups = 20"));
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
        let sql = format!(
            "select window_start, window_end, k, t, {select} from {from} group by 1, 2, 3, 4"
        );
        let keys = lateness(late, 15) + "\nmax_groups = 25";
        let catalog = catalog(&window(&sql, &keys));
        let rows = check_any_split(&catalog, &generate(250, 1_000), true);
        if late == "drop" {
            assert!(
                rows["w_versions"].iter().any(|r| r.contains("abandoned")),
                "{from}"
            );
        }
    }
    // Values that grow count as more groups: all of one group, and yet windows close early.
    let sql = "select window_start, window_end, k, array_agg(repeat(k, 200)) as n
        from tumble(ev, event_time, interval '1 hour') group by 1, 2, 3";
    let catalog = catalog(&window(sql, "max_groups = 60"));
    let rows = check_any_split(&catalog, &generate(400, 1_001), true);
    assert!(rows["w_versions"].iter().any(|r| r.contains("abandoned")));
}

#[test]
fn a_row_whose_expression_fails_is_left_out_of_its_window() {
    for select in ["count(10 / v) as n", "sum(10 / v) as n"] {
        let sql = format!(
            "select window_start, window_end, k, {select}
             from tumble(ev, event_time, interval '10 seconds') group by 1, 2, 3"
        );
        let records = generate(300, 800);
        assert!(records.iter().any(|r| r.v == 0), "some row divides by zero");
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
        check_window(&window(&sql, ""), &records, &["n"], &want);
    }
}
