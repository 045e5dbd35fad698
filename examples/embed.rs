//! Weir inside another Rust program: a declared stream reads a file to its end, gets one more
//! record from the program itself, and SQL answers over both.
//!
//! ```sh
//! cargo run --example embed
//! ```
//!
//! Everything here is the public API: `weir::config` checks a configuration, `Running` of
//! `weir::runtime` is a data folder at work, `weir::ingest` takes records in. `cargo doc --open`
//! describes them. A program that reads sources over TLS also installs a provider for `rustls`, as
//! `weir::cli::main` does. Opening a data folder sets the umask of the process to 077: the libraries
//! that write the lake have no setting for the permissions of their files.

use std::error::Error;
use std::path::Path;

use weir::config::{self, Config};
use weir::ingest::Submission;
use weir::query::sql::to_ndjson;
use weir::runtime::{Options, POLL, Running};
use weir::wal::{FrameAttributes, Kind, Records};

const CONFIGURATION: &str = r#"
data = "data"

[[sources]]
name = "thermometers"
type = "file"
path = "readings.ndjson"
stream = "readings"

[streams.readings]
schema = "at timestamp not null, place varchar not null, celsius double not null"
select = "select at as event_time, place, celsius from readings"
require = ["celsius > -90"]
count = { type = "place" }
"#;

const READINGS: &str = r#"{"at": "2026-01-05T08:00:00Z", "place": "roof", "celsius": -3.5}
{"at": "2026-01-05T08:00:02Z", "place": "cellar", "celsius": 11}
{"at": "2026-01-05T08:01:00Z", "place": "roof", "celsius": -273}
{"at": "2026-01-05T08:02:00Z", "place": "roof", "celsius": -2.5}
"#;

const QUERY: &str = "select place, count(*) as n, max(celsius) as warmest from readings group by place order by place";

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    print!("{}", warmest(folder.path())?);
    Ok(())
}

/// Runs Weir in this folder and returns what it found, a line of JSON for each place.
pub fn warmest(folder: &Path) -> Result<String, Box<dyn Error>> {
    std::fs::write(folder.join("readings.ndjson"), READINGS)?;
    // The file's name serves messages, and its folder is where relative paths begin.
    let file = folder.join("weir.toml");
    let config = config::parse(Some(&file), CONFIGURATION.to_owned(), None, &|_| None)?;
    let runtime = tokio::runtime::Runtime::new()?;
    // With `once` sources end where their files end; without it they follow them.
    let options = Options {
        once: true,
        ..Options::default()
    };
    let mut running = Running::start(&config, options, runtime.handle())?;
    let answer = ingest_and_ask(&mut running, &config, &runtime);
    // Commits every view, after an error too: the next start continues here.
    running.stop()?;
    answer
}

fn ingest_and_ask(
    running: &mut Running,
    config: &Config,
    runtime: &tokio::runtime::Runtime,
) -> Result<String, Box<dyn Error>> {
    // The log's past is applied first; then the sources start.
    while !running.resume(config)? {
        std::thread::sleep(POLL);
    }
    while !running.sources_have_ended() && !running.has_failed() {
        std::thread::sleep(POLL);
    }
    let record = br#"{"at": "2026-01-05T08:03:00Z", "place": "attic", "celsius": 4.25}"#;
    let submission = Submission {
        kind: Kind::Record,
        source: "embed".to_owned(),
        partition: String::new(),
        stream: "readings".to_owned(),
        records: Records::single(record),
        first_offset: 0,
        previous_offset: 0,
        attributes: FrameAttributes::default(),
    };
    // Returns once the record is on the disk.
    running.ingest()?.submit(submission, true)?.wait()?;
    // An answer says how many records on the disk it does not contain yet.
    loop {
        let answer = runtime.block_on(running.queries.sql(QUERY))?;
        if answer.as_of.pending == 0 {
            let rows = to_ndjson(&answer.schema, &answer.batches)?;
            return Ok(String::from_utf8(rows)?);
        }
        std::thread::sleep(POLL);
    }
}
