//! A data folder of one test, generated records, and an independent recount of them.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The built binary.
pub fn weir() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.env_remove("WEIR_DATA").stdin(Stdio::null());
    command
}

/// Says on a line of its own why the running test does not try what it is for. The line goes to
/// standard error itself: what macros print in a test that passes, libtest discards.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let line = format!("\nskipped: {test}: {reason}\n");
    std::io::stderr()
        .write_all(line.as_bytes())
        .expect("standard error is open");
}

/// Waits for a condition, for a minute at most.
pub fn wait_until(condition: &str, mut is_met: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_met() {
        assert!(Instant::now() < deadline, "waited in vain: {condition}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A value as text, the same whatever the order of its members.
pub fn canonical(value: &Value) -> String {
    let mut value = value.clone();
    value.sort_all_objects();
    value.to_string()
}

/// A folder with a configuration, removed when the test ends.
pub struct TestFolder {
    root: tempfile::TempDir,
}

/// Commits and snapshots so frequent that a kill meets them; ends with the table `[log]`.
pub const FREQUENT_COMMITS: &str = include_str!("../testdata/frequent_commits.toml");

/// A server on a free port and a stream that records are posted to; ends with the stream's table.
pub const HTTP_ONLY: &str = include_str!("../testdata/rsvps_http.toml");

/// A stream from the file `in.ndjson`; ends with the stream's table.
pub const FILE_ONLY: &str = include_str!("../testdata/rsvps_file.toml");

/// A server on a free port.
pub const FREE_PORT: &str = r#"[server]
http = "127.0.0.1:0"
"#;

/// A source of the stream `stream` that reads the file `STREAM.ndjson`; ends with the source's table.
pub fn file_source(stream: &str) -> String {
    format!(
        r#"[[sources]]
name = "{stream}"
type = "file"
path = "{stream}.ndjson"
stream = "{stream}"
"#
    )
}

impl TestFolder {
    /// A stream `rsvps` from the file `in.ndjson`; `extra` comes first in the configuration.
    pub fn new(extra: &str) -> Self {
        let folder = Self {
            root: tempfile::tempdir().expect("a folder"),
        };
        folder.configure(&format!("{extra}\n{FILE_ONLY}"));
        folder.write("in.ndjson", b"");
        folder
    }

    pub fn configure(&self, text: &str) {
        let text = format!("data = 'data'\n{text}");
        self.write("weir.toml", text.as_bytes());
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).expect("a file");
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = weir();
        command
            .args(arguments)
            .arg("-c")
            .arg(self.path("weir.toml"));
        command
    }

    /// Starts a server and kills it with -9 after this time, at whatever point it has reached.
    pub fn run_and_kill_after(&self, time: Duration) {
        let mut command = self.command(&["run", "-q"]);
        let mut child = command
            .env("WEIR_SERVER_HTTP", "127.0.0.1:0")
            .spawn()
            .expect("the binary runs");
        std::thread::sleep(time);
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
    }

    /// Builds a library from a C source in `tests/`, to be preloaded, with the C compiler that the
    /// crate needs anyway.
    #[cfg(target_os = "linux")]
    pub fn build_library(&self, name: &str) -> PathBuf {
        let library = self.path(name).with_extension("so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests")
            .join(name);
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&library)
            .arg(source)
            .status();
        assert!(built.expect("a C compiler").success());
        library
    }

    /// Runs a verb to its end.
    pub fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the binary runs")
    }

    /// Runs a verb that must succeed; returns its messages.
    pub fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        let messages = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {messages}");
        messages
    }

    /// Runs a verb that must fail with this exit code; returns its messages.
    pub fn fail(&self, arguments: &[&str], code: i32) -> String {
        let output = self.output(arguments);
        let messages = String::from_utf8_lossy(&output.stderr).into_owned();
        let found = output.status.code();
        assert_eq!(found, Some(code), "{arguments:?}: {messages}");
        messages
    }

    /// Checks that `weir check` rejects the configuration with a message that has all these parts.
    pub fn check_config_error(&self, expected: &[&str]) {
        let message = self.fail(&["check"], 2);
        let has_all = expected.iter().all(|part| message.contains(part));
        assert!(has_all, "{expected:?} expected: {message}");
    }

    /// Reads all that sources have, to the end, successfully; returns the messages.
    pub fn run_once(&self) -> String {
        self.succeed(&["run", "--once"])
    }

    /// The JSON answer of a verb.
    pub fn ask(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.extend(["--output", "json"]);
        let output = self.output(&all);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    pub fn rows(&self, query: &str) -> Vec<Value> {
        self.ask(&["sql", query])["rows"]
            .as_array()
            .cloned()
            .expect("rows")
    }

    pub fn number(&self, query: &str) -> u64 {
        self.rows(&format!("select ({query}) as n"))[0]["n"]
            .as_u64()
            .expect("a number")
    }

    /// How many events a search finds. Those that it shows are the table's rows.
    fn search_total(&self, query: &str) -> Value {
        let answer = self.ask(&["search", query, "--limit", "100"]);
        let hits = answer["hits"].as_array().expect("hits");
        let lsns: Vec<String> = hits.iter().map(|hit| hit["lsn"].to_string()).collect();
        let lsns = if lsns.is_empty() {
            "-1".to_owned()
        } else {
            lsns.join(", ")
        };
        let rows = self.rows(&format!(
            "select * from rsvps where lsn in ({lsns}) order by event_time desc, lsn desc"
        ));
        let events: Vec<Value> = hits.iter().map(|hit| hit["event"].clone()).collect();
        assert_eq!(events, rows, "hits of `{query}` and the rows of their LSNs");
        answer["total"].clone()
    }

    /// All answers that do not depend on when and how records arrived.
    pub fn all_answers(&self) -> BTreeMap<String, Value> {
        let mut answers = BTreeMap::new();
        let columns = "event_time, is_duplicate, rsvp_id, mtime, response, guests, member_id, event_id, event_start, venue_id, lat, lon, country, topics";
        answers.insert(
            "rows".to_owned(),
            self.rows(&format!(
                "select {columns} from rsvps order by rsvp_id, mtime, guests, response, is_duplicate, lat"
            ))
            .into(),
        );
        answers.insert(
            "dead".to_owned(),
            self.rows("select reason, stream, bytes from dead_letters order by bytes, reason")
                .into(),
        );
        answers.insert(
            "raw".to_owned(),
            self.rows(
                "select count(*) as n, count(distinct bytes) as d from raw where kind = 'record'",
            )
            .into(),
        );
        answers.insert(
            "counts".to_owned(),
            without_as_of(self.ask(&["count", "--by", "country"])),
        );
        answers.insert(
            "near".to_owned(),
            without_as_of(self.ask(&["nearby", "--lat", "40.7", "--lon=-74", "--limit", "50"])),
        );
        answers.insert("found".to_owned(), self.search_total("open"));
        for (name, query) in [
            (
                "by_country",
                "select country, window_start, n, status from by_country order by window_start, country",
            ),
            (
                "totals",
                "select answer, window_start, n, status from totals order by window_start, answer",
            ),
            (
                "top",
                "select event_id, window_start, yes, status from top_events_versions order by window_start, yes desc, event_id, status",
            ),
            (
                "latest",
                "select rsvp_id, event_id, guests, mtime, response from rsvps.latest order by rsvp_id",
            ),
            (
                "members",
                "select member_id, member_name, photo from rsvps.members order by member_id",
            ),
            (
                "venues",
                "select venue_id, venue_name, lat, lon from rsvps.venues order by venue_id",
            ),
            (
                "topics",
                "select urlkey, topic_name from rsvps.topics order by urlkey",
            ),
        ] {
            answers.insert(name.to_owned(), self.rows(query).into());
        }
        answers
    }
}

pub fn without_as_of(mut answer: Value) -> Value {
    if let Some(members) = answer.as_object_mut() {
        members.remove("as_of");
    }
    answer
}

/// The folder of recordings, if this machine has it.
pub fn recordings() -> Option<PathBuf> {
    let folder = std::env::var_os("WEIR_RECORDINGS")
        .map(PathBuf::from)
        .filter(|f| f.is_dir());
    if folder.is_none() {
        skip("WEIR_RECORDINGS is not a folder of recordings");
    }
    folder
}

/// A linear congruential generator: the same numbers at every run.
pub struct Lcg(pub u64);

impl Lcg {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Generated records: answers with duplicates, updates, lateness, missing venues, zero coordinates
/// and odd text.
pub fn records(count: usize, seed: u64) -> Vec<Value> {
    let mut numbers = Lcg(seed);
    let countries = ["us", "GB", "de", "au"];
    let names = [
        "Open mic night",
        "Café müller — \"quoted\"\t",
        "東京 meetup",
        "Rust & Beer 🍺",
        "Reopening",
    ];
    let mut out: Vec<Value> = Vec::new();
    for n in 0..count as u64 {
        if n > 20 && numbers.below(5) == 0 {
            let back = numbers.below(20) as usize + 1;
            let mut duplicate = out[out.len() - back].clone();
            match numbers.below(3) {
                0 => {}
                1 => {
                    duplicate["mtime"] =
                        json!(duplicate["mtime"].as_i64().expect("a number") / 1000 * 1000);
                }
                _ => duplicate["guests"] = json!(numbers.below(4)),
            }
            out.push(duplicate);
            continue;
        }
        let late = if numbers.below(20) == 0 {
            numbers.below(40) * 3_600_000
        } else {
            numbers.below(8_000)
        };
        let mut record = json!({
            "rsvp_id": 1_500_000_000 + n,
            "mtime": 1_465_520_400_000 + n * 400 - late,
            "response": if numbers.below(4) == 0 { "no" } else { "yes" },
            "guests": numbers.below(3),
            "visibility": "public",
            "event": {"event_id": format!("e{}", numbers.below(300)), "event_name": names[numbers.below(5) as usize], "time": 1_466_000_000_000 + numbers.below(90) * 86_400_000},
            "member": {"member_id": numbers.below(1000), "member_name": " Ann ", "photo": "http:\\/\\/x"},
            "group": {"group_id": 1, "group_name": "G", "group_urlname": "g", "group_country": countries[numbers.below(4) as usize],
                "group_lat": 1.5, "group_lon": 2, "group_topics": [{"urlkey": "fun", "topic_name": "Fun"}]},
        });
        if numbers.below(5) > 0 {
            let venue = numbers.below(200);
            let is_zero = venue.is_multiple_of(20);
            record["venue"] = json!({
                "venue_id": venue, "venue_name": format!("Venue {venue}"),
                "lat": if is_zero { json!(0) } else { json!(40.0 + venue as f64 / 100.0 + (n / 400) as f64 / 1_000.0) },
                "lon": if is_zero { json!(0) } else { json!(-74.0 + (venue * 7 % 200) as f64 / 50.0) },
            });
        }
        out.push(record);
    }
    out
}

pub fn ndjson(records: &[Value]) -> Vec<u8> {
    records
        .iter()
        .flat_map(|r| format!("{r}\n").into_bytes())
        .collect()
}

/// Whether each record is a duplicate: the definition, word for word.
pub fn duplicates(records: &[Value]) -> Vec<bool> {
    type Seen = Vec<(Value, Value, i64)>;
    let mut seen: BTreeMap<i64, Seen> = BTreeMap::new();
    records
        .iter()
        .map(|r| {
            let (answer, guests, mtime) = (
                &r["response"],
                &r["guests"],
                r["mtime"].as_i64().expect("a number"),
            );
            let before = seen
                .entry(r["rsvp_id"].as_i64().expect("a number"))
                .or_default();
            let last = &before[before.len().saturating_sub(4)..];
            let is_duplicate = last
                .iter()
                .any(|(a, g, m)| a == answer && g == guests && (m - mtime).abs() <= 500);
            if !is_duplicate {
                before.push((answer.clone(), guests.clone(), mtime));
            }
            is_duplicate
        })
        .collect()
}

/// Checks that rows, counts and search of a folder are exactly these records.
pub fn assert_holds_exactly(folder: &TestFolder, records: &[Value]) {
    let duplicates = duplicates(records);
    let distinct = duplicates.iter().filter(|r| !**r).count() as u64;
    assert_eq!(
        folder.number("select count(*) from rsvps"),
        records.len() as u64,
        "rows"
    );
    assert_eq!(
        folder.number("select count(distinct lsn) from rsvps"),
        records.len() as u64,
        "distinct rows"
    );
    assert_eq!(
        folder.number("select count(*) from rsvps where not is_duplicate"),
        distinct,
        "not duplicates, in SQL"
    );
    assert_eq!(
        folder.number("select count(*) from raw where kind = 'record'"),
        records.len() as u64,
        "raw"
    );
    assert_eq!(
        folder.ask(&["count"])["count"],
        distinct,
        "not duplicates, in counts"
    );
    assert_eq!(
        folder.ask(&["count", "--duplicates"])["count"],
        records.len() as u64,
        "all in counts"
    );
    let has_open = |r: &&Value| r["event"]["event_name"] == "Open mic night";
    let open = records.iter().filter(has_open).count() as u64;
    assert_eq!(
        folder.ask(&["search", "open", "--limit", "1"])["total"],
        open,
        "search"
    );
    assert_eq!(
        venues(&folder.ask(&["nearby", "--lat", "40.7", "--lon=-74", "--limit", "1000"])),
        places(records),
        "places"
    );
    let sum: i64 = records
        .iter()
        .map(|r| r["mtime"].as_i64().expect("a number") % 100_000)
        .sum();
    let found = folder.rows("select sum(mtime % 100000) as s from rsvps")[0]["s"].as_i64();
    assert_eq!(
        found,
        if records.is_empty() { None } else { Some(sum) },
        "contents"
    );
}

/// A venue's place, and its latest dates.
type Venues = BTreeMap<i64, (String, Vec<String>)>;

/// Latitude and longitude, to a millimetre.
fn place(venue: &Value) -> String {
    format!(
        "{:.8} {:.8}",
        venue["lat"].as_f64().expect("a number"),
        venue["lon"].as_f64().expect("a number")
    )
}

fn venues(answer: &Value) -> Venues {
    let venue = |v: &Value| {
        let dates = v["events"]
            .as_array()
            .expect("events")
            .iter()
            .map(|e| e["date"].as_str().expect("a date").to_owned());
        (
            v["venue_id"].as_i64().expect("an id"),
            (place(v), dates.collect()),
        )
    };
    answer["venues"]
        .as_array()
        .expect("venues")
        .iter()
        .map(venue)
        .collect()
}

/// Of every venue with a place, that of its latest record, and the ten latest dates of its
/// different (event, date).
fn places(records: &[Value]) -> Venues {
    type KnownVenue<'a> = (
        Option<(i64, String)>,
        std::collections::BTreeSet<(i64, &'a str)>,
    );
    let mut known: BTreeMap<i64, KnownVenue<'_>> = BTreeMap::new();
    for record in records {
        let (venue, event) = (&record["venue"], &record["event"]);
        let Some(id) = venue["venue_id"].as_i64() else {
            continue;
        };
        let (at, events) = known.entry(id).or_default();
        events.insert((
            event["time"].as_i64().expect("a time"),
            event["event_id"].as_str().expect("an id"),
        ));
        let is_place = venue["lat"].as_f64() != Some(0.0) || venue["lon"].as_f64() != Some(0.0);
        let version = record["mtime"].as_i64().expect("a number");
        if is_place && at.as_ref().is_none_or(|(before, _)| version >= *before) {
            *at = Some((version, place(venue)));
        }
    }
    let latest = |events: std::collections::BTreeSet<(i64, &str)>| -> Vec<String> {
        let date = |(time, _): (i64, &str)| weir::event::rfc3339(time * 1_000);
        events.into_iter().rev().take(10).map(date).collect()
    };
    known
        .into_iter()
        .filter_map(|(id, (at, events))| Some((id, (at?.1, latest(events)))))
        .collect()
}

/// Every file below a folder with its bytes.
pub fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut out = BTreeMap::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            out.extend(files(&path));
        } else {
            out.insert(path.clone(), std::fs::read(&path).unwrap_or_default());
        }
    }
    out
}

/// Copies a folder with all below it.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("a file");
        }
    }
}
