//! Weir recovers from a full disk automatically, and failed or killed writes leave no files.
//! `WEIR_SMALL_DISK` names a mounted file system of at least 64 MiB that may be filled.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::server::{Server, start};
use crate::support::{FREE_PORT, HTTP_ONLY, Lcg, TestFolder, ndjson, records, skip, wait_until};

const ROWS: u64 = 200;

/// Rows of a stream `a` that do not compress.
fn body(numbers: &mut Lcg, first: u64) -> Vec<u8> {
    let mut out = String::new();
    for id in first..first + ROWS {
        let text: String = (0..300)
            .map(|_| char::from(b'!' + numbers.below(90) as u8))
            .collect();
        let text = text.replace(['"', '\\'], "_");
        let _ = writeln!(
            out,
            "{{\"id\": {id}, \"t\": {}, \"s\": \"{text}\"}}",
            1_700_000_000_000_u64 + id
        );
    }
    out.into_bytes()
}

fn post(server: &Server, body: &[u8]) -> (u16, Value) {
    server.request(
        "POST",
        "/api/v1/streams/a/events",
        &[("Content-Type", "application/x-ndjson")],
        body,
    )
}

fn temporary_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(temporary_files(&path));
        } else if path.extension().is_some_and(|e| e == "tmp") {
            found.push(path);
        }
    }
    found
}

/// Posts rows until the log has been full for five seconds: views and snapshots wait less, so
/// nothing more is freed. Returns the number of accepted rows.
fn fill(server: &Server, numbers: &mut Lcg) -> u64 {
    let mut accepted = 0;
    let mut rejected_since: Option<std::time::Instant> = None;
    while rejected_since.is_none_or(|since| since.elapsed().as_secs() < 5) {
        let (status, answer) = post(server, &body(numbers, accepted));
        match status {
            200 => (accepted, rejected_since) = (accepted + ROWS, None),
            503 => {
                assert_eq!(answer["error"]["code"], "log_full", "{answer}");
                rejected_since.get_or_insert_with(std::time::Instant::now);
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            other => panic!("{other}: {answer}"),
        }
    }
    accepted
}

/// If mounting is permitted: data is readable on a read-only file system.
fn check_read_only(folder: &TestFolder, disk: &Path, rows: u64) {
    let remount = |how: &str| {
        let mounted = std::process::Command::new("mount")
            .args(["-o", &format!("remount,{how}")])
            .arg(disk)
            .status();
        mounted.is_ok_and(|status| status.success())
    };
    if !remount("ro") {
        skip("it may not mount the file system read-only");
        return;
    }
    let count = folder.output(&["sql", "select count(*) as n from a", "--output", "json"]);
    let started = folder.output(&["run", "--once"]);
    assert!(remount("rw"));
    assert!(
        count.status.success(),
        "{}",
        String::from_utf8_lossy(&count.stderr)
    );
    assert!(String::from_utf8_lossy(&count.stdout).contains(&rows.to_string()));
    let reason = String::from_utf8_lossy(&started.stderr);
    assert!(
        !started.status.success() && reason.contains("read-only"),
        "{reason}"
    );
}

#[test]
fn records_are_accepted_again_once_a_full_disk_has_space() {
    let Some(disk) = std::env::var_os("WEIR_SMALL_DISK").map(PathBuf::from) else {
        skip("WEIR_SMALL_DISK names no mounted file system");
        return;
    };
    let (data, ballast) = (disk.join("data"), disk.join("ballast"));
    let folder = TestFolder::new("");
    let text = format!(
        r#"data = "{}"
{FREE_PORT}
[limits]
lake_recent = "1s"
lake_old = "1s"
snapshot = "2s"
[log]
segment = "8MiB"
[streams.a]
schema = "id bigint not null, t bigint not null, s varchar"
select = "select to_timestamp_millis(t) as event_time, id, s from a"
"#,
        data.display()
    );
    folder.write("weir.toml", text.as_bytes());
    let _ = std::fs::remove_dir_all(&data);
    std::fs::write(&ballast, vec![1; 24 << 20]).expect("space");
    let server = Server::start(&mut folder.command(&["run"]), &data);
    let mut numbers = Lcg(9);
    let mut accepted = fill(&server, &mut numbers);
    assert_eq!(server.get("/readyz").0, 503);
    assert_eq!(temporary_files(&data), Vec::<PathBuf>::new());
    // After a kill it starts without a byte of free space.
    server.kill();
    drop(server);
    let rest = disk.join("rest");
    let mut filled = std::fs::File::create(&rest).expect("a name");
    while filled.write_all(&[1; 4 << 10]).is_ok() {}
    drop(filled);
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|free| free.local_addr())
        .expect("a port");
    let server = Server::start_at(&mut folder.command(&["run"]), &free.to_string());
    let count = json!({"sql": "select count(*) as n from a"}).to_string();
    wait_until("all rows are visible", || {
        let (status, answer) = server.request("POST", "/api/v1/sql", &[], count.as_bytes());
        status == 200 && answer["rows"][0]["n"] == accepted
    });
    std::fs::remove_file(&rest).expect("removed");
    std::fs::remove_file(&ballast).expect("removed");
    wait_until("commands find the server", || {
        folder.output(&["status"]).status.success() && data.join("address.json").exists()
    });
    wait_until("records are accepted again", || {
        post(&server, &body(&mut numbers, accepted)).0 == 200
    });
    accepted += ROWS;
    wait_until("it is ready", || server.get("/readyz").0 == 200);
    server.stop();
    check_read_only(&folder, &disk, accepted);
    assert_eq!(folder.number("select count(*) from a"), accepted);
    assert_eq!(
        folder.number("select count(*) from raw where kind = 'record'"),
        accepted
    );
    let _ = std::fs::remove_dir_all(&data);
}

#[test]
fn after_a_kill_neither_readers_nor_the_start_need_space_outside_the_data_folder() {
    let folder = TestFolder::new("");
    folder.configure(HTTP_ONLY);
    let server = start(&folder);
    let all = records(300, 8);
    assert_eq!(server.post(&[], &ndjson(&all)).0, 200);
    let file = folder.path("data/state/rsvps.counts.redb");
    // The key under which a commit stores its checkpoint.
    let is_committed = || {
        std::fs::read(&file).is_ok_and(|bytes| bytes.windows(10).any(|part| part == b"checkpoint"))
    };
    wait_until("counts are committed", is_committed);
    server.kill();
    drop(server);
    let count = || {
        let mut command = folder.command(&["count", "--output", "json"]);
        let output = command
            .env("TMPDIR", "/proc/nonexistent")
            .output()
            .expect("the binary runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    count();
    // A reader changes nothing: another one sees the same.
    count();
    let server = Server::start(
        folder.command(&["run"]).env("TMPDIR", "/proc/nonexistent"),
        &folder.path("data"),
    );
    assert_eq!(server.get("/readyz").0, 200);
    server.stop();
}

#[test]
fn a_start_removes_temporary_files_of_a_killed_process() {
    let folder = TestFolder::new("");
    folder.write("in.ndjson", &ndjson(&records(200, 2)));
    folder.run_once();
    let before = folder.number("select count(*) from raw");
    let data = folder.path("data");
    let leftovers = [
        "log/00000000000000ff.seg.tmp",
        "operators/00000000000000ff.snap.tmp",
        "lake/raw/_delta_log/.00000000000000ff.tmp",
        "lake/raw/_delta_log/00000000000000000001.checkpoint.parquet#1",
        "search/rsvps/000000/.tmpX3f",
        "spill/reader-1/rows",
        // Of a commit that failed long ago.
        "lake/raw/recent-00000000000000ff.parquet",
    ]
    .map(|name| data.join(name));
    for path in &leftovers {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("created");
        std::fs::write(path, b"half").expect("written");
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(600);
        std::fs::File::options()
            .write(true)
            .open(path)
            .and_then(|f| f.set_modified(long_ago))
            .expect("set");
    }
    folder.run_once();
    let remaining: Vec<&PathBuf> = leftovers.iter().filter(|path| path.exists()).collect();
    assert_eq!(remaining, Vec::<&PathBuf>::new());
    assert_eq!(folder.number("select count(*) from raw"), before);
}
