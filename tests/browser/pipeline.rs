//! The picture of the pipeline: what each part has done and how fast, why one does not run, and
//! what to do then.

use std::io::Write;

use super::{driver, open};
use crate::server::start;
use crate::support::{FREE_PORT, TestFolder, wait_until};

/// Two sources, and a sink whose target does not answer.
const PARTS: &str = r#"
[[sources]]
name = "orders"
type = "file"
path = "orders.ndjson"
stream = "events"
[[sources]]
name = "notes"
type = "file"
path = "notes"
stream = "events"
[[sinks]]
name = "hook"
type = "http"
url = "http://127.0.0.1:1/"
allow_private = true
from = "events"
[streams.events]
schema = "id bigint not null, at timestamp not null"
select = "select at as event_time, id from events"
"#;

fn orders(count: u64) -> String {
    let order = |id| format!("{{\"id\": {id}, \"at\": \"2024-05-01T10:00:00Z\"}}\n");
    (0..count).map(order).collect()
}

/// Whether the fact of a node is a text that an expression of `text` accepts.
fn fact(node: &str, name: &str, accepts: &str) -> String {
    format!(
        "((text) => {accepts})(document.querySelector(\
         '[data-node=\"{node}\"] [data-fact=\"{name}\"] dd')?.textContent ?? '')"
    )
}

fn state(node: &str, state: &str) -> String {
    format!("document.querySelector('[data-node=\"{node}\"]')?.dataset.state === '{state}'")
}

#[test]
fn parts_show_what_they_did_why_they_halt_and_how_to_continue() {
    let folder = TestFolder::new("");
    folder.configure(&format!("{FREE_PORT}{PARTS}"));
    std::fs::create_dir(folder.path("notes")).expect("a folder");
    folder.write(
        "orders.ndjson",
        format!("{}{{\"id\": \"none\"}}\n", orders(20)).as_bytes(),
    );
    let server = start(&folder);
    wait_until("the views run and have everything", || {
        let status = server.get("/api/v1/status").1;
        let views = status["views"].as_array().expect("views");
        let is_well = |view: &serde_json::Value| view["state"] == "running" && view["lag"] == 0;
        status["streams"]["events"]["events"] == 20 && views.iter().all(is_well)
    });
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    open(&browser, &server, "#/pipeline");
    browser.wait(&fact("source/orders", "records", "text === '21'"));
    browser.wait(&fact("source/orders", "rejected", "text === '1'"));
    browser.wait(&fact("source/http", "records", "text === '0'"));
    browser.wait(&fact("stream/events", "dead letters", "text === '1'"));
    // Rates are of the readings since the page was opened.
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(folder.path("orders.ndjson"))
        .expect("the file");
    file.write_all(orders(500).as_bytes()).expect("it grows");
    for node in ["source/orders", "stream/events", "view/lake/events"] {
        browser.wait(&fact(node, "rate", "parseFloat(text) > 0"));
    }
    browser.wait(&fact("source/orders", "records", "text === '521'"));

    std::fs::remove_dir(folder.path("notes")).expect("it is empty");
    std::os::unix::fs::symlink("notes", folder.path("notes")).expect("a link to itself");
    browser.wait(&state("source/notes", "halted"));
    let reason = "[data-node='source/notes'] .node-reason";
    browser.wait_for_text(reason, "symbolic links");
    let advice = "[data-node='source/notes'] .node-advice";
    browser.wait_for_text(advice, "continues by itself");
    browser.wait_for_text("#readiness", "Not ready");

    browser.wait(&state("sink/hook", "retrying"));
    browser.run("document.querySelector('[data-test=sink-pause]').click()");
    browser.wait(&state("sink/hook", "paused"));
    let advice = "[data-node='sink/hook'] .node-advice";
    browser.wait_for_text(advice, "Resume it");
    browser.wait("document.querySelector('[data-test=sink-resume]')");

    std::fs::remove_file(folder.path("notes")).expect("the link");
    std::fs::create_dir(folder.path("notes")).expect("a folder");
    browser.wait(&state("source/notes", "running"));
    server.stop();
}
