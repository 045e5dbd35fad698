//! Work next to the pipeline: backups, retention, the limits of disk and log.

use std::path::Path;

use serde_json::{Value, json};

use crate::server::{Server, start};
use crate::support::{
    Bench, HTTP_ONLY, Numbers, OFTEN, copy, holds_exactly, ndjson, records, without_as_of,
};

/// A test folder with a copy of a backup as its data.
fn restored(backup: &Path) -> Bench {
    let bench = Bench::new("");
    copy(backup, &bench.path("data"));
    bench.configure("[streams.rsvps]\npreset = \"rsvps\"\n");
    bench
}

#[test]
fn backups_taken_during_ingest_hold_exactly_the_records_accepted_until_then() {
    let bench = Bench::new("");
    bench.configure(&format!("{OFTEN}{HTTP_ONLY}"));
    let server = start(&bench);
    let all = records(6_000, 31);
    let mut backups = Vec::new();
    std::thread::scope(|scope| {
        let posting = scope.spawn(|| {
            for part in all.chunks(100) {
                assert_eq!(server.post(&[], &ndjson(part)).0, 200);
            }
        });
        while backups.len() < 3 || !posting.is_finished() {
            let to = bench.path(&format!("backup-{}", backups.len()));
            let summary = bench.ask(&["backup", to.to_str().expect("text")]);
            backups.push((to, summary["lsn"].as_u64().expect("a number")));
        }
    });
    server.stop();
    let picked = [0, backups.len() / 2, backups.len() - 1];
    for (to, lsn) in picked.map(|at| &backups[at]) {
        // Other frames are the configuration and, on a slow machine, ticks.
        let count = bench.number(&format!(
            "select count(*) from raw where kind = 'record' and lsn <= {lsn}"
        ));
        let copy = restored(to);
        copy.once();
        holds_exactly(&copy, &all[..count as usize]);
    }
    // The same verb copies a stopped folder; a target that is not empty is refused.
    let to = bench.path("stopped");
    bench.ask(&["backup", to.to_str().expect("text")]);
    let copy = restored(&to);
    copy.once();
    holds_exactly(&copy, &all);
    assert_eq!(
        bench
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

fn hours(bench: &Bench, table: &str) -> Vec<String> {
    let query = format!(
        "select distinct \"partition\" from weir.files where \"table\" = '{table}' order by 1"
    );
    bench
        .rows(&query)
        .iter()
        .map(|r| r["partition"].as_str().expect("text").to_owned())
        .collect()
}

#[test]
fn rows_below_the_retention_floor_are_hidden_at_once_and_their_partitions_dropped() {
    let bench = Bench::new("");
    let config = |retention: &str| {
        bench.configure(&format!(
            "[[sources]]\nname = \"in\"\ntype = \"file\"\npath = \"in.ndjson\"\nstream = \"rsvps\"\n[streams.rsvps]\npreset = \"rsvps\"\n{retention}"
        ));
    };
    config("retention = \"3h\"\n");
    let all = minutes(10 * 60);
    bench.write("in.ndjson", &ndjson(&all));
    bench.once();
    // The last answer comes at 09:59, less ten seconds and three hours: everything before 06:00 is
    // gone.
    let shown = |hour: u64| {
        let count = 600 - hour * 60;
        assert_eq!(bench.number("select count(*) from rsvps"), count);
        assert_eq!(bench.ask(&["count", "--duplicates"])["count"], count);
        assert_eq!(
            bench.ask(&["search", "fun", "--limit", "1"])["total"],
            count
        );
    };
    shown(6);
    assert_eq!(
        bench.number("select count(*) from raw where kind = 'record'"),
        600,
        "raw has its own retention"
    );
    bench.once();
    shown(6);
    let want: Vec<String> = (6..10)
        .map(|hour| format!("year=2016/month=6/day=10/hour={hour}"))
        .collect();
    assert_eq!(hours(&bench, "rsvps"), want);
    // A record below the floor is refused with its reason, and stays in raw.
    bench.write("in.ndjson", &ndjson(&[all.as_slice(), &all[..1]].concat()));
    bench.once();
    shown(6);
    let dead = bench.rows("select reason from dead_letters");
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
    let bench = Bench::new("");
    bench.configure(
        "[limits]\ndisk = \"28MiB\"\n[[sources]]\nname = \"in\"\ntype = \"file\"\npath = \"in.ndjson\"\nstream = \"rsvps\"\n[streams.rsvps]\npreset = \"rsvps\"\n",
    );
    // Text that does not compress, so that few records take much room; all of one group, which is
    // stored once.
    let mut numbers = Numbers(3);
    let mut all = minutes(3_600);
    for record in &mut all {
        let noise: String = (0..4_000)
            .map(|_| char::from(b'!' + numbers.below(90) as u8))
            .collect();
        record["group"]["group_city"] = json!(noise);
    }
    for part in 1..=4 {
        bench.write("in.ndjson", &ndjson(&all[..part * all.len() / 4]));
        bench.once();
    }
    bench.once();
    let files = bench.number("select sum(bytes) from weir.files");
    assert!(files < 28 << 20, "{files} bytes in files");
    let left = bench.number("select count(*) from rsvps");
    assert!(left > 60 && left < 3_600, "{left} rows are left");
    assert_eq!(bench.ask(&["count", "--duplicates"])["count"], left);
    assert_eq!(bench.ask(&["search", "fun", "--limit", "1"])["total"], left);
    let newest = bench.rows("select max(mtime) as m, min(mtime) as o from rsvps");
    assert_eq!(newest[0]["m"], all[3_599]["mtime"], "the newest stay");
    assert_eq!(
        newest[0]["o"].as_i64().expect("a number") % 3_600_000,
        0,
        "whole hours are dropped"
    );
}

#[test]
fn a_log_with_a_small_budget_is_trimmed_and_loses_nothing() {
    let bench = Bench::new("");
    bench.configure(&format!("{OFTEN}budget = \"4MiB\"\n{HTTP_ONLY}"));
    let server = start(&bench);
    let mut numbers = Numbers(5);
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
    let log: u64 = crate::support::files(&bench.path("data/log"))
        .values()
        .map(|b| b.len() as u64)
        .sum();
    assert!(log <= 4 << 20, "{log} bytes of log");
    holds_exactly(&bench, &all);
}

#[test]
fn a_view_that_lags_the_snapshots_replays_to_the_same_rows() {
    let bench = Bench::new("");
    let all = records(1_200, 35);
    bench.write("in.ndjson", &ndjson(&all[..500]));
    bench.once();
    copy(&bench.path("data"), &bench.path("half"));
    bench.write("in.ndjson", &ndjson(&all));
    bench.once();
    let want = bench.all_answers();
    copy(&bench.path("data"), &bench.path("whole"));
    // Each view in turn is reset to its state after half the records; the snapshots are ahead of it.
    for view in [
        "search/rsvps",
        "state/rsvps.counts.redb",
        "state/rsvps.places.redb",
        "lake/rsvps",
        "lake/raw",
    ] {
        std::fs::remove_dir_all(bench.path("data")).expect("removable");
        copy(&bench.path("whole"), &bench.path("data"));
        let (half, data) = (bench.path("half").join(view), bench.path("data").join(view));
        if half.is_dir() {
            std::fs::remove_dir_all(&data).expect("removable");
            copy(&half, &data);
        } else {
            std::fs::copy(&half, &data).expect("a file");
        }
        bench.once();
        assert_eq!(bench.all_answers(), want, "{view}");
        holds_exactly(&bench, &all);
    }
}

#[test]
fn a_running_query_is_ended_by_its_id() {
    let bench = Bench::new("");
    bench.configure(HTTP_ONLY);
    let server = start(&bench);
    assert_eq!(server.post(&[], &ndjson(&records(400, 3))).0, 200);
    crate::support::wait_until("the rows are there", || {
        bench.number("select count(*) from rsvps") == 400
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
    let count = without_as_of(bench.ask(&["count", "--duplicates"]));
    assert_eq!(count["count"], 400);
    drop::<Server>(server);
}

#[test]
fn a_server_stopped_during_recovery_resumes_at_the_next_start() {
    let bench = Bench::new("");
    bench.once();
    copy(&bench.path("data"), &bench.path("empty"));
    let all = records(6_000, 37);
    bench.write("in.ndjson", &ndjson(&all));
    bench.once();
    // The log holds everything, and no view has any of it.
    std::fs::rename(bench.path("data"), bench.path("whole")).expect("movable");
    std::fs::rename(bench.path("empty"), bench.path("data")).expect("movable");
    std::fs::remove_dir_all(bench.path("data/log")).expect("removable");
    copy(&bench.path("whole/log"), &bench.path("data/log"));
    bench.configure(HTTP_ONLY);
    for _ in 0..4 {
        let mut child = bench
            .command(&["run", "-q"])
            .spawn()
            .expect("the binary runs");
        let address = bench.path("data/address.json");
        crate::support::wait_until("it answers", || address.exists());
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .expect("it can be asked to stop");
        assert!(child.wait().expect("it ends").success());
    }
    let output = bench.output(&["run", "--once"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    holds_exactly(&bench, &all);
}

#[test]
fn venues_that_are_not_mentioned_for_the_keep_time_are_dropped_with_their_edges() {
    let bench = Bench::new("");
    let places = "places = { venue = \"venue_id\", name = \"venue_name\", lat = \"lat\", lon = \"lon\", event = \"event_id\", date = \"event_start\", keep = \"2d\" }";
    bench.configure(&format!(
        "[[sources]]\nname = \"in\"\ntype = \"file\"\npath = \"in.ndjson\"\nstream = \"rsvps\"\n[streams.rsvps]\npreset = \"rsvps\"\n{places}\n"
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
        let answer = bench.ask(&["nearby", "--lat", "40.7", "--lon=-74"]);
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
    bench.write("in.ndjson", &ndjson(&all[..20]));
    bench.once();
    let (venues, events) = near();
    assert!(venues == [1] && events > 0, "{venues:?} {events}");
    bench.write("in.ndjson", &ndjson(&all));
    bench.once();
    let (venues, events) = near();
    assert!(venues == [2] && events > 0, "{venues:?} {events}");
    assert_eq!(
        bench.number("select count(distinct venue_id) from rsvps"),
        2,
        "the table has its own retention"
    );
}
