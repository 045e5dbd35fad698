//! Who comes to the page: with a read-only token, with a keyboard alone, with a telephone, before
//! the first event, with streams of any shape, and with records to retry.

use serde_json::{Value, json};

use super::driver::{self, ENTER, TAB};
use super::{for_each_section, open, served};
use crate::server::{Server, start, token};
use crate::support::{FREE_PORT, HTTP_ONLY, TestFolder, wait_until};

#[test]
fn a_read_only_token_signs_in_and_saves_nothing() {
    let folder = TestFolder::new("");
    let token = token(&folder, &["--read-only"]);
    folder.configure(&HTTP_ONLY.replace("[server]\n", "[server]\ntoken_file = 'tokens'\n"));
    let server = start(&folder);
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    open(&browser, &server, "#/sql?q=select+1+as+one&run=1");
    browser.wait("document.querySelector('[data-test=token]')");
    browser.click("[data-test=token]");
    browser.type_keys(&format!("weir_0123{ENTER}"));
    browser.wait_for_text("#sign-in [role=alert]", "does not accept this token");
    browser.click("[data-test=token]");
    browser.type_keys(&format!("{token}{ENTER}"));
    browser.wait("document.querySelector('#sql [data-test=result]')");
    let save = "document.querySelector('[data-test=save-query]')";
    browser.wait(&format!(
        "{save}.disabled && {save}.title.includes('read-only')"
    ));
    open(&browser, &server, "#/notebook");
    browser.wait("document.querySelector('[data-test=read-only]')");
    let bearer = format!("Bearer {token}");
    let headers = [("Authorization", bearer.as_str())];
    let (status, stored) = server.request("GET", "/api/v1/notebooks", &headers, b"");
    assert_eq!((status, &stored["notebooks"]), (200, &json!([])));
    server.stop();
}

#[test]
fn a_reader_signs_out_and_in_with_a_token_that_may_write() {
    let folder = TestFolder::new("");
    let tokens = [&["--read-only"][..], &[]].map(|kind| token(&folder, kind));
    folder.configure(&HTTP_ONLY.replace("[server]\n", "[server]\ntoken_file = 'tokens'\n"));
    let server = start(&folder);
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    let sign_in = |token: &str| {
        browser.wait("document.querySelector('[data-test=token]')");
        browser.click("[data-test=token]");
        browser.type_keys(&format!("{token}{ENTER}"));
    };
    open(&browser, &server, "#/sql?q=");
    sign_in(&tokens[0]);
    let save = "document.querySelector('[data-test=save-query]')";
    browser.wait(&format!("{save}?.disabled"));
    // The link of the footer sends the token, too. Its text is looked at, and not shown in a tab.
    browser.run(
        "URL.createObjectURL = (blob) => {
            blob.text().then((text) => { window.content = text; });
            return 'blob:';
        };
        const click = HTMLAnchorElement.prototype.click;
        HTMLAnchorElement.prototype.click = function () {
            if (!this.href.startsWith('blob:')) click.call(this);
        };
        document.querySelector('#metrics-link').click();",
    );
    browser.wait("window.content?.includes('weir_log_synced_lsn')");
    browser.run(
        "const fetched = window.fetch;
        window.fetch = (path, options) =>
            path === '/metrics' ? new Response('{}', { status: 500 }) : fetched(path, options);
        document.querySelector('#metrics-link').click();
        localStorage.setItem('weir.history', JSON.stringify([{ statement: 'select 1' }]));",
    );
    browser.wait_for_text("#problem", "The server answered 500.");
    browser.click("#sign-out");
    sign_in(&tokens[1]);
    browser.wait(&format!("{save} && !{save}.disabled"));
    let remembered = browser.value("localStorage.getItem('weir.history')");
    assert_eq!(remembered, "[]", "statements of the other token");
    server.stop();
}

#[test]
fn a_keyboard_reaches_the_main_controls() {
    let (_folder, server) = served();
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    wait_until("the index has the events", || {
        server.get("/api/v1/search?q=m*").1["hits"][0].is_object()
    });
    open(&browser, &server, "#/overview");
    browser.wait("document.querySelector('#latest tbody tr[data-lsn]')");
    // The skip link, the name, five sections, and the range of the overview.
    let mut reached = Vec::new();
    for _ in 0..9 {
        browser.type_keys(TAB);
        let focused = "document.activeElement.dataset.section ?? document.activeElement.id";
        reached.push(browser.value(focused));
    }
    for control in [
        "overview",
        "map",
        "search",
        "sql",
        "pipeline",
        "overview-range",
    ] {
        assert!(reached.contains(&json!(control)), "{control}: {reached:?}");
    }
    browser.run("document.querySelector('nav a[data-section=search]').focus()");
    browser.type_keys(ENTER);
    browser.wait("document.querySelector('#search:not([hidden]) #search-text')");
    browser.run("document.querySelector('#search-text').focus()");
    browser.type_keys(&format!("m*{ENTER}"));
    browser.wait("location.hash.includes('q=m*') && document.querySelector('#hits mark')");
    server.stop();
}

#[test]
fn no_section_scrolls_sideways_on_a_telephone() {
    let (_folder, server) = served();
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    browser.narrow(390);
    for_each_section(&browser, &server, |name| {
        let widths = "[document.documentElement.scrollWidth, innerWidth]";
        assert_eq!(browser.value(widths), json!([390, 390]), "{name}");
    });
    server.stop();
}

#[test]
fn a_stream_without_events_says_so_in_each_section() {
    let folder = TestFolder::new("");
    folder.configure(HTTP_ONLY);
    let server = start(&folder);
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    for (section, selector, text) in [
        ("#/overview", "#overview-panels", "No events yet."),
        ("#/map", "#map-summary", "No events with a place"),
        ("#/search", "#hits", "Stream rsvps has no events yet."),
        ("#/sql?q=select+*+from+rsvps&run=1", "#sql", "No rows."),
        (
            "#/pipeline/dead-letters",
            "#dead-letter-reasons",
            "No dead letters.",
        ),
    ] {
        browser.open("about:blank");
        open(&browser, &server, section);
        browser.wait_for_text(selector, text);
        let errors = browser.console_errors();
        assert!(errors.is_empty(), "{section}: {errors:?}");
    }
    server.stop();
}

/// An invented stream, beside presets.
const STREAMS: &str = r#"
[streams.edits]
preset = "edits"
[streams.events]
preset = "events"
[streams.sessions]
preset = "sessions"
[streams.beans]
schema = "id bigint not null, at timestamp not null, kind varchar, weight double"
select = "select at as event_time, id, kind, weight from beans"
count = { type = "kind" }
"#;

fn post(server: &Server, stream: &str, record: &Value) -> Value {
    let path = format!("/api/v1/streams/{stream}/events");
    let (status, answer) = server.request("POST", &path, &[], record.to_string().as_bytes());
    assert_eq!(status, 200, "{answer}");
    answer
}

#[test]
fn a_stream_of_any_preset_and_an_invented_one_have_an_overview() {
    let folder = TestFolder::new("");
    folder.configure(&format!("{FREE_PORT}{STREAMS}"));
    let server = start(&folder);
    let records = [
        (
            "edits",
            json!({"time": "2024-05-01T10:00:00Z", "channel": "en", "page": "Rust", "user": "ann"}),
        ),
        (
            "events",
            json!({"event_type": "login", "ts": 1_714_557_600, "params": {"city": "Bern"}}),
        ),
        (
            "sessions",
            json!({"build_id": "10.3.5.34", "inst_id": "a7f", "trialstate": "Trial",
                "action": "prostarted", "timestamp": 1_714_557_600}),
        ),
        (
            "beans",
            json!({"id": 1, "at": "2024-05-01T10:00:00Z", "kind": "red", "weight": 1.5}),
        ),
    ];
    for (stream, record) in &records {
        assert_eq!(post(&server, stream, record)["accepted"], 1, "{stream}");
    }
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    for (stream, _) in &records {
        browser.open("about:blank");
        open(&browser, &server, &format!("#/overview?stream={stream}"));
        browser.wait(
            "document.querySelector('#latest tbody tr[data-lsn]') && \
             document.querySelector('.bars .bar-row')",
        );
        browser.wait_for_text("#overview-stream", stream);
        let errors = browser.console_errors();
        assert!(errors.is_empty(), "{stream}: {errors:?}");
    }
    server.stop();
}

#[test]
fn a_dead_letter_is_retried_once_its_rule_is_fixed() {
    let folder = TestFolder::new("");
    let configure = |limit: u32| {
        folder.configure(&format!(
            "{FREE_PORT}{}require = [\"weight < {limit}\"]\n",
            STREAMS
                .split_at(STREAMS.find("[streams.beans]").expect("a stream"))
                .1
        ));
    };
    configure(10);
    let server = start(&folder);
    let record = json!({"id": 1, "at": "2024-05-01T10:00:00Z", "kind": "red", "weight": 20});
    assert_eq!(post(&server, "beans", &record)["rejected_total"], 1);
    server.stop();
    configure(100);
    let server = start(&folder);
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    open(&browser, &server, "#/pipeline/dead-letters");
    browser.wait("document.querySelector('[data-test=retry]')");
    browser.run("document.querySelector('[data-test=retry]').click()");
    browser.wait_for_text("[data-test=reasons]", "1 became events, 0 still rejected");
    wait_until("it is a row", || {
        folder.number("select count(*) from beans") == 1
    });
    let errors = browser.console_errors();
    assert!(errors.is_empty(), "{errors:?}");
    server.stop();
}
