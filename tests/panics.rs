//! A thread that panics ends the process with its name, or recovers; nothing waits for it without a limit.
//! `WEIR_TEST_PANIC` names the thread, in debug builds.

use std::fs::File;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::server::start;
use crate::support::{FREE_PORT, HTTP_ONLY, TestFolder, ndjson, records, skip};

const PANIC: &str = "WEIR_TEST_PANIC";

/// The exit code and standard error of a run in which this thread panics.
fn run(folder: &TestFolder, arguments: &[&str], thread: &str) -> (Option<i32>, String) {
    let errors = folder.path("errors");
    let mut child = folder
        .command(arguments)
        .env(PANIC, thread)
        .stderr(File::create(&errors).expect("a file"))
        .spawn()
        .expect("the binary runs");
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("it can be waited for") {
            break status;
        }
        if begun.elapsed() > Duration::from_secs(120) {
            let _ = child.kill();
            panic!("{arguments:?}, {thread}: it does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    (
        status.code(),
        std::fs::read_to_string(&errors).expect("text"),
    )
}

#[test]
fn a_panic_in_any_thread_ends_the_process_with_its_name_and_loses_nothing() {
    if !cfg!(debug_assertions) {
        skip("a release build is not asked to panic");
        return;
    }
    let all = records(600, 3);
    let views = [
        "lake/rsvps",
        "lake/raw",
        "counts/rsvps",
        "search/rsvps",
        "places/rsvps",
    ];
    let threads = ["source/in", "log-writer", "operators"]
        .into_iter()
        .chain(views);
    let once = ["run", "--once"];
    let runs = threads.map(|thread| (thread, &["run"][..], FREE_PORT));
    let runs = runs.chain(["ticks", "maintenance"].map(|thread| (thread, &["run"][..], FREE_PORT)));
    let runs = runs.chain(
        ["source/in", "log-writer", "operators", "lake/rsvps"]
            .map(|thread| (thread, &once[..], "")),
    );
    for (thread, arguments, server) in runs {
        let folder = TestFolder::new(server);
        folder.write("in.ndjson", &ndjson(&all));
        let (code, errors) = run(&folder, arguments, thread);
        assert_eq!(code, Some(1), "{arguments:?}, {thread}: {errors}");
        let is_reported = errors.lines().any(|line| {
            line.starts_with("weir: ") && line.contains(&format!("the thread `{thread}` panicked"))
        });
        assert!(is_reported, "{arguments:?}, {thread}: {errors}");
        folder.run_once();
        assert_eq!(
            folder.number("select count(*) from raw where kind = 'record'"),
            all.len() as u64,
            "{thread}"
        );
    }
}

#[test]
fn a_panic_in_a_query_is_its_own_error() {
    if !cfg!(debug_assertions) {
        skip("a release build is not asked to panic");
        return;
    }
    let folder = TestFolder::new("");
    folder.configure(HTTP_ONLY);
    let server = crate::server::Server::start(
        folder.command(&["run"]).env(PANIC, "sql"),
        &folder.path("data"),
    );
    let query = json!({"sql": "select 1"}).to_string();
    for _ in 0..10 {
        let (status, answer) = server.request(
            "POST",
            "/api/v1/sql",
            &[("Content-Type", "application/json")],
            query.as_bytes(),
        );
        assert_eq!(
            (status, &answer["error"]["code"]),
            (500, &json!("failed")),
            "{answer}"
        );
    }
    assert_eq!(server.post(&[], &ndjson(&records(3, 1))).0, 200);
    server.stop();
    let server = start(&folder);
    assert_eq!(server.get("/readyz").0, 200);
    server.stop();
}
