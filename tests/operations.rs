//! Work next to the pipeline: backups, retention, the limits of disk and log.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::server::{Server, start};
use crate::support::{
    FILE_ONLY, FREE_PORT, FREQUENT_COMMITS, HTTP_ONLY, Lcg, TestFolder, assert_holds_exactly, copy,
    ndjson, records, without_as_of,
};

/// A test folder with a copy of a backup as its data.
fn restored(backup: &Path) -> TestFolder {
    let folder = TestFolder::new("");
    copy(backup, &folder.path("data"));
    folder.configure("[streams.rsvps]\npreset = 'rsvps'\n");
    folder
}

#[test]
fn backups_taken_during_ingest_hold_exactly_the_records_accepted_until_then() {
    let folder = TestFolder::new("");
    folder.configure(&format!("{FREQUENT_COMMITS}{HTTP_ONLY}"));
    let server = start(&folder);
    let all = records(6_000, 31);
    let mut backups = Vec::new();
    std::thread::scope(|scope| {
        let posting = scope.spawn(|| {
            for part in all.chunks(100) {
                assert_eq!(server.post(&[], &ndjson(part)).0, 200);
            }
        });
        while backups.len() < 3 || !posting.is_finished() {
            let to = folder.path(&format!("backup-{}", backups.len()));
            let summary = folder.ask(&["backup", to.to_str().expect("text")]);
            backups.push((to, summary["lsn"].as_u64().expect("a number")));
        }
    });
    server.stop();
    let picked = [0, backups.len() / 2, backups.len() - 1];
    for (to, lsn) in picked.map(|at| &backups[at]) {
        // Other frames are the configuration and, on a slow machine, ticks.
        let count = folder.number(&format!(
            "select count(*) from raw where kind = 'record' and lsn <= {lsn}"
        ));
        let copy = restored(to);
        copy.run_once();
        assert_holds_exactly(&copy, &all[..count as usize]);
    }
    // The same verb copies a stopped folder; a target that is not empty is refused.
    let to = folder.path("stopped");
    folder.ask(&["backup", to.to_str().expect("text")]);
    let copy = restored(&to);
    copy.run_once();
    assert_holds_exactly(&copy, &all);
    assert_eq!(
        folder
            .output(&["backup", to.to_str().expect("text")])
            .status
            .code(),
        Some(2)
    );
}

/// One answer a minute from 2016-06-10T00:00:00Z on.
fn minutes(count: usize) -> Vec<Value> {
    let mut all = records(count, 40);
    for (n, record) in all.iter_mut().enumerate() {
        record["rsvp_id"] = json!(n);
        record["mtime"] = json!(1_465_516_800_000_i64 + n as i64 * 60_000);
    }
    all
}

fn hours(folder: &TestFolder, table: &str) -> Vec<String> {
    let query = format!(
        "select distinct \"partition\" from weir.files where \"table\" = '{table}' order by 1"
    );
    folder
        .rows(&query)
        .iter()
        .map(|r| r["partition"].as_str().expect("text").to_owned())
        .collect()
}

#[test]
fn rows_below_the_retention_floor_are_hidden_at_once_and_their_partitions_dropped() {
    let folder = TestFolder::new("");
    folder.configure(&format!("{FILE_ONLY}retention = '3h'\n"));
    let all = minutes(10 * 60);
    folder.write("in.ndjson", &ndjson(&all));
    folder.run_once();
    // The last answer comes at 09:59, less ten seconds and three hours: everything before 06:00 is
    // gone.
    let shown = |hour: u64| {
        let count = 600 - hour * 60;
        assert_eq!(folder.number("select count(*) from rsvps"), count);
        assert_eq!(folder.ask(&["count", "--duplicates"])["count"], count);
        assert_eq!(
            folder.ask(&["search", "fun", "--limit", "1"])["total"],
            count
        );
    };
    shown(6);
    assert_eq!(
        folder.number("select count(*) from raw where kind = 'record'"),
        600,
        "raw has its own retention"
    );
    folder.run_once();
    shown(6);
    let want: Vec<String> = (6..10)
        .map(|hour| format!("year=2016/month=6/day=10/hour={hour}"))
        .collect();
    assert_eq!(hours(&folder, "rsvps"), want);
    // A record below the floor is refused with its reason, and stays in raw.
    folder.write("in.ndjson", &ndjson(&[all.as_slice(), &all[..1]].concat()));
    folder.run_once();
    shown(6);
    let dead = folder.rows("select reason from dead_letters");
    assert!(
        dead[0]["reason"]
            .as_str()
            .expect("text")
            .contains("retention"),
        "{dead:?}"
    );
}

#[test]
fn above_the_disk_limit_the_oldest_hours_are_dropped_and_all_answers_agree() {
    let folder = TestFolder::new("[limits]\ndisk = '28MiB'\n");
    // Text that does not compress, so that few records take much room; all of one group, which is
    // stored once.
    let mut numbers = Lcg(3);
    let mut all = minutes(3_600);
    for record in &mut all {
        let noise: String = (0..4_000)
            .map(|_| char::from(b'!' + numbers.below(90) as u8))
            .collect();
        record["group"]["group_city"] = json!(noise);
    }
    for part in 1..=4 {
        folder.write("in.ndjson", &ndjson(&all[..part * all.len() / 4]));
        folder.run_once();
    }
    folder.run_once();
    let files = folder.number("select sum(bytes) from weir.files");
    assert!(files < 28 << 20, "{files} bytes in files");
    let left = folder.number("select count(*) from rsvps");
    assert!(left > 60 && left < 3_600, "{left} rows are left");
    assert_eq!(folder.ask(&["count", "--duplicates"])["count"], left);
    assert_eq!(
        folder.ask(&["search", "fun", "--limit", "1"])["total"],
        left
    );
    let newest = folder.rows("select max(mtime) as m, min(mtime) as o from rsvps");
    assert_eq!(newest[0]["m"], all[3_599]["mtime"], "the newest stay");
    assert_eq!(
        newest[0]["o"].as_i64().expect("a number") % 3_600_000,
        0,
        "whole hours are dropped"
    );
}

#[test]
fn a_log_with_a_small_budget_is_trimmed_and_loses_nothing() {
    let folder = TestFolder::new("");
    folder.configure(&format!("{FREQUENT_COMMITS}budget = '4MiB'\n{HTTP_ONLY}"));
    let server = start(&folder);
    let mut numbers = Lcg(5);
    let mut all = records(9_000, 33);
    for record in &mut all {
        let noise: String = (0..900)
            .map(|_| char::from(b'!' + numbers.below(90) as u8))
            .collect();
        record["group"]["group_city"] = json!(noise);
    }
    for part in all.chunks(300) {
        let body = ndjson(part);
        crate::support::wait_until("the part is accepted", || match server.post(&[], &body).0 {
            200 => true,
            // The budget is spent until views have committed and the log was trimmed.
            503 | 429 => false,
            other => panic!("status {other}"),
        });
    }
    server.stop();
    let log: u64 = crate::support::files(&folder.path("data/log"))
        .values()
        .map(|b| b.len() as u64)
        .sum();
    assert!(log <= 4 << 20, "{log} bytes of log");
    assert_holds_exactly(&folder, &all);
}

#[test]
fn a_view_that_lags_the_snapshots_replays_to_the_same_rows() {
    let folder = TestFolder::new("");
    let all = records(1_200, 35);
    folder.write("in.ndjson", &ndjson(&all[..500]));
    folder.run_once();
    copy(&folder.path("data"), &folder.path("half"));
    folder.write("in.ndjson", &ndjson(&all));
    folder.run_once();
    let want = folder.all_answers();
    copy(&folder.path("data"), &folder.path("whole"));
    // Each view in turn is reset to its state after half the records; the snapshots are ahead of it.
    for view in [
        "search/rsvps",
        "state/rsvps.counts.redb",
        "state/rsvps.places.redb",
        "lake/rsvps",
        "lake/raw",
    ] {
        std::fs::remove_dir_all(folder.path("data")).expect("removable");
        copy(&folder.path("whole"), &folder.path("data"));
        let (half, data) = (
            folder.path("half").join(view),
            folder.path("data").join(view),
        );
        if half.is_dir() {
            std::fs::remove_dir_all(&data).expect("removable");
            copy(&half, &data);
        } else {
            std::fs::copy(&half, &data).expect("a file");
        }
        folder.run_once();
        assert_eq!(folder.all_answers(), want, "{view}");
        assert_holds_exactly(&folder, &all);
    }
}

#[test]
fn a_running_query_is_ended_by_its_id() {
    let folder = TestFolder::new("");
    folder.configure(HTTP_ONLY);
    let server = start(&folder);
    assert_eq!(server.post(&[], &ndjson(&records(400, 3))).0, 200);
    crate::support::wait_until("the rows are there", || {
        folder.number("select count(*) from rsvps") == 400
    });
    let endless = json!({"id": "q1", "sql": "select count(*) from rsvps a, rsvps b, rsvps c, rsvps d where a.lsn + b.lsn + c.lsn > d.lsn"});
    std::thread::scope(|scope| {
        let asked = scope
            .spawn(|| server.request("POST", "/api/v1/sql", &[], endless.to_string().as_bytes()));
        crate::support::wait_until("the query runs", || {
            server.request("DELETE", "/api/v1/sql/q1", &[], b"").0 == 200
        });
        let (status, answer) = asked.join().expect("it ends");
        assert_eq!(status, 409, "{answer}");
    });
    assert_eq!(server.request("DELETE", "/api/v1/sql/q1", &[], b"").0, 404);
    let long = json!({"id": "q".repeat(129), "sql": "select 1"});
    assert_eq!(
        server
            .request("POST", "/api/v1/sql", &[], long.to_string().as_bytes())
            .0,
        400
    );
    let count = without_as_of(folder.ask(&["count", "--duplicates"]));
    assert_eq!(count["count"], 400);
    drop::<Server>(server);
}

#[test]
fn a_server_stopped_during_recovery_resumes_at_the_next_start() {
    let folder = TestFolder::new("");
    folder.run_once();
    copy(&folder.path("data"), &folder.path("empty"));
    let all = records(6_000, 37);
    folder.write("in.ndjson", &ndjson(&all));
    folder.run_once();
    // The log holds everything, and no view has any of it.
    std::fs::rename(folder.path("data"), folder.path("whole")).expect("movable");
    std::fs::rename(folder.path("empty"), folder.path("data")).expect("movable");
    std::fs::remove_dir_all(folder.path("data/log")).expect("removable");
    copy(&folder.path("whole/log"), &folder.path("data/log"));
    folder.configure(HTTP_ONLY);
    for _ in 0..4 {
        let mut child = folder
            .command(&["run", "-q"])
            .spawn()
            .expect("the binary runs");
        let address = folder.path("data/address.json");
        crate::support::wait_until("it answers", || address.exists());
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .expect("it can be asked to stop");
        assert!(child.wait().expect("it ends").success());
    }
    folder.run_once();
    assert_holds_exactly(&folder, &all);
}

#[test]
fn venues_that_are_not_mentioned_for_the_keep_time_are_dropped_with_their_edges() {
    let folder = TestFolder::new("");
    folder.configure(&format!(
        r#"{FILE_ONLY}
places = {{ venue = "venue_id", name = "venue_name", lat = "lat", lon = "lon", event = "event_id", date = "event_start", keep = "2d" }}
"#
    ));
    let mut all = minutes(40);
    for (n, record) in all.iter_mut().enumerate() {
        // Half of them ten days later, at another venue, for an event of the day after.
        let day = 86_400_000 * if n < 20 { 0 } else { 10 };
        let mtime = record["mtime"].as_i64().expect("a number") + day;
        record["mtime"] = json!(mtime);
        record["event"]["time"] = json!(mtime + 86_400_000);
        record["venue"] = json!({"venue_id": if n < 20 { 1 } else { 2 }, "venue_name": "V", "lat": 40.5, "lon": -74.5});
    }
    let near = || {
        let answer = folder.ask(&["nearby", "--lat", "40.7", "--lon=-74"]);
        let venues = answer["venues"].as_array().expect("venues").clone();
        let events = venues
            .iter()
            .map(|v| v["events"].as_array().expect("events").len())
            .sum::<usize>();
        (
            venues
                .iter()
                .map(|v| v["venue_id"].as_u64().expect("an id"))
                .collect::<Vec<_>>(),
            events,
        )
    };
    folder.write("in.ndjson", &ndjson(&all[..20]));
    folder.run_once();
    let (venues, events) = near();
    assert!(venues == [1] && events > 0, "{venues:?} {events}");
    folder.write("in.ndjson", &ndjson(&all));
    folder.run_once();
    let (venues, events) = near();
    assert!(venues == [2] && events > 0, "{venues:?} {events}");
    assert_eq!(
        folder.number("select count(distinct venue_id) from rsvps"),
        2,
        "the table has its own retention"
    );
}

/// The command of `docs/operations/weir.crontab`, in a test folder and with the binary under test.
fn crontab_line(folder: &TestFolder) -> Command {
    let crontab = include_str!("../docs/operations/weir.crontab");
    let line = crontab.lines().find(|line| line.starts_with("*/15"));
    // Five fields of time, then what cron gives to the shell.
    let command = line
        .expect("a line")
        .splitn(6, ' ')
        .nth(5)
        .expect("a command");
    let command = command.replace("/var/lib/weir", folder.path("").to_str().expect("text"));
    let binary = Path::new(env!("CARGO_BIN_EXE_weir"));
    let path = std::env::var("PATH").expect("a path");
    let path = format!("{}:{path}", binary.parent().expect("a folder").display());
    let mut sh = Command::new("/bin/sh");
    sh.args(["-c", &command])
        .env("PATH", path)
        .stdin(Stdio::null());
    sh
}

#[test]
fn the_line_of_the_crontab_runs_and_lets_another_run_work() {
    let folder = TestFolder::new("");
    let all = records(300, 9);
    for part in [200, 300] {
        folder.write("in.ndjson", &ndjson(&all[..part]));
        let status = crontab_line(&folder).status().expect("a shell");
        assert!(status.success(), "{status}");
    }
    assert_holds_exactly(&folder, &all);
    let summaries = || std::fs::read_to_string(folder.path("runs.ndjson")).expect("summaries");
    let events: Vec<Value> = summaries()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
        .map(|summary| summary["streams"]["rsvps"]["events"].clone())
        .collect();
    assert_eq!(events, [200, 100]);
    // While another process works on the folder, the run reports that in its log and succeeds.
    folder.configure(&format!("{FREE_PORT}{FILE_ONLY}"));
    let server = start(&folder);
    let status = crontab_line(&folder).status().expect("a shell");
    assert!(status.success(), "{status}");
    server.stop();
    assert_eq!(summaries().lines().count(), 2);
    let log = std::fs::read_to_string(folder.path("weir.log")).expect("a log");
    assert!(log.contains("in use"), "{log}");
    // Any other error is a failure, which cron mails.
    folder.configure("no TOML");
    let status = crontab_line(&folder).status().expect("a shell");
    assert_eq!(status.code(), Some(1));
}
