//! The editor of SQL: completion, errors, history, downloads and cancellation; and notebooks that
//! are saved, also by two readers at once.

use serde_json::{Value, json};

use super::driver::{self, CONTROL, ENTER, TAB};
use super::{open, served};
use crate::support::wait_until;

#[test]
fn the_editor_completes_names_and_marks_an_error_at_its_place() {
    let (_folder, server) = served();
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    open(&browser, &server, "#/sql?q=");
    browser.wait("document.querySelector('#sql textarea')");
    browser.click("#sql textarea");
    browser.type_keys("select * from rsv");
    browser.wait(
        "document.querySelector('#sql .offers:not([hidden]) [aria-selected=true] span')\
         ?.textContent === 'rsvps'",
    );
    browser.type_keys(TAB);
    assert_eq!(
        browser.value("document.querySelector('#sql textarea').value"),
        "select * from rsvps"
    );
    browser.open("about:blank");
    open(&browser, &server, "#/sql?q=select+respons+from+rsvps");
    browser.wait("document.querySelector('#sql textarea')?.value");
    browser.click("#sql textarea");
    browser.type_keys(&format!("{CONTROL}{ENTER}"));
    browser.wait_for_text("#sql [data-test=sql-error]:not([hidden])", "`response`");
    assert_eq!(
        browser.value("document.querySelector('#sql .sql-error')?.textContent"),
        "respons"
    );
    browser.wait_for_text("#history", "failed");
    let remembered = "Object.keys(JSON.parse(localStorage.getItem('weir.history'))[0]).sort()";
    assert_eq!(
        browser.value(remembered),
        json!(["at", "statement"]),
        "a message may quote data"
    );
    server.stop();
}

#[test]
fn a_condition_is_put_into_the_query_at_the_caret() {
    let (_folder, server) = served();
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    open(&browser, &server, "#/sql?q=");
    browser.wait("document.querySelector('#sql textarea')");
    // `|` is the caret.
    for (statement, expected) in [
        ("select * from t|", "select * from t where c"),
        (
            "|select * from t limit 5",
            "select * from t where c limit 5",
        ),
        ("select a from t -- all|", "select a from t where c -- all"),
        ("select a from t where b|", "select a from t where b and c"),
        (
            "select a from t where b and |",
            "select a from t where b and c ",
        ),
        (
            "select a from t where b or d group by a|",
            "select a from t where (b or d) and c group by a",
        ),
        (
            "select * from (select a from t|) u order by a",
            "select * from (select a from t where c) u order by a",
        ),
        (
            "select * from (select a from t) u;|",
            "select * from (select a from t) u where c;",
        ),
        (
            "select a from t| union select a from u",
            "select a from t where c union select a from u",
        ),
        (
            "select 'from' from t where a = 'x or y'|",
            "select 'from' from t where a = 'x or y' and c",
        ),
        ("show tables|", "none"),
        ("select 1|", "none"),
        ("|", "none"),
    ] {
        browser.run(&format!(
            "window.answer = null;
            import('/assets/sqltext.js').then(({{ withCondition }}) => {{
                const [before, after] = {}.split('|');
                const next = withCondition(before + after, before.length, 'c');
                window.answer = next?.text.replace(/\\s+/g, ' ') ?? 'none';
            }});",
            json!(statement)
        ));
        browser.wait("window.answer");
        assert_eq!(browser.value("window.answer"), expected, "{statement}");
    }
    server.stop();
}

#[test]
fn statements_are_remembered_and_downloaded() {
    let (_folder, server) = served();
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    open(&browser, &server, "#/sql?q=select+7+as+seven&run=1");
    browser.wait("document.querySelector('#sql [data-test=result]')");
    // The file is looked at, and not written into a folder.
    browser.run(
        "URL.createObjectURL = (blob) => {
            blob.text().then((text) => { window.content = text; });
            return 'blob:';
        };
        HTMLAnchorElement.prototype.click = function () { window.file = this.download; };
        document.querySelector('#sql [data-test=download-csv]').click();",
    );
    browser.wait("window.content && window.file");
    let content = browser.value("window.content");
    let lines: Vec<&str> = content.as_str().expect("text").lines().collect();
    assert_eq!(lines, ["seven", "7"]);
    let file = browser.value("window.file");
    assert!(file.as_str().is_some_and(|name| name.ends_with(".csv")));
    browser.open("about:blank");
    open(&browser, &server, "#/sql?q=");
    browser.wait_for_text("#history", "select 7 as seven");
    browser.run("document.querySelector('#history .history button').click()");
    assert_eq!(
        browser.value("document.querySelector('#sql textarea').value"),
        "select 7 as seven"
    );
    let errors = browser.console_errors();
    assert!(errors.is_empty(), "{errors:?}");
    server.stop();
}

#[test]
fn leaving_the_section_ends_the_statement_on_the_server() {
    let (_folder, server) = served();
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    open(&browser, &server, "#/sql");
    browser.wait("document.querySelector('#sql textarea')?.value");
    // It would take hours.
    browser.run(
        "const fetched = window.fetch;
        window.fetch = (path, options) => {
            if (path === '/api/v1/sql' && options.body.includes('rsvps d')) {
                window.statement = JSON.parse(options.body).id;
            }
            return fetched(path, options);
        };
        const area = document.querySelector('#sql textarea');
        area.value = 'select count(*) from rsvps a, rsvps b, rsvps c, rsvps d '
            + 'where a.lsn + b.lsn + c.lsn + d.lsn < 0';
        document.querySelector('#sql [data-test=run]').click();",
    );
    browser.wait_for_text("#sql [data-test=sql-status]", "Running for");
    let id = browser.value("window.statement");
    // The server runs one statement under an id.
    let body = json!({"sql": "select 1", "id": id}).to_string();
    let ask = || {
        server
            .request("POST", "/api/v1/sql", &[], body.as_bytes())
            .0
    };
    assert_eq!(ask(), 409);
    browser.run("location.hash = '#/pipeline'");
    wait_until("the statement has ended", || ask() == 200);
    let errors = browser.console_errors();
    assert!(errors.is_empty(), "{errors:?}");
    server.stop();
}

#[test]
fn leaving_the_section_as_a_statement_ends_is_not_an_error() {
    let (_folder, server) = served();
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    open(&browser, &server, "#/sql?q=");
    browser.wait("document.querySelector('#sql textarea')");
    // The server has answered, and the page has not read the answer yet.
    browser.run(
        "const fetched = window.fetch;
        window.fetch = async (path, options) => {
            const answer = await fetched(path, options);
            if (path === '/api/v1/sql' && options.body.includes('as last')) {
                location.hash = '#/pipeline';
                await new Promise((resolve) => setTimeout(resolve, 200));
                window.isAnswered = true;
            }
            return answer;
        };
        document.querySelector('#sql textarea').value = 'select 1 as last';
        document.querySelector('#sql [data-test=run]').click();",
    );
    browser.wait("window.isAnswered && document.querySelector('#flow [data-node=log]')");
    let requests = browser.requests();
    let of_ids: Vec<&String> = requests
        .iter()
        .filter(|url| url.contains("/sql/"))
        .collect();
    assert!(of_ids.is_empty(), "{of_ids:?}");
    let errors = browser.console_errors();
    assert!(errors.is_empty(), "{errors:?}");
    server.stop();
}

#[test]
fn a_statement_is_saved_and_of_two_readers_one_is_asked() {
    let (_folder, server) = served();
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    open(&browser, &server, "#/sql?q=select+1+as+one&run=1");
    browser.wait("document.querySelector('#sql [data-test=result]')");
    browser.run("document.querySelector('[data-test=save-query]').click()");
    browser.wait("document.querySelector('[data-test=save-title]')");
    browser.click("[data-test=save-title]");
    browser.type_keys(&format!("My title{ENTER}"));
    let title = "document.querySelector('[data-test=notebook-title]')";
    browser.wait(&format!(
        "location.hash === '#/notebook/my-title' && {title}?.value === 'My title'"
    ));
    let path = "/api/v1/notebooks/my-title";
    assert_eq!(server.get(path).1["cells"][0]["sql"], "select 1 as one");
    let errors = browser.console_errors();
    assert!(errors.is_empty(), "{errors:?}");

    let change = |to: &str| {
        browser.run(&format!(
            "const title = {title}; title.value = {}; title.dispatchEvent(new Event('input'));
            document.querySelector('[data-test=notebook-save]').click();",
            json!(to)
        ));
    };
    let save_elsewhere = |title: &str| {
        let body = json!({"title": title, "cells": []}).to_string();
        let headers = [("Content-Type", "application/json")];
        let saved = server.request("PUT", path, &headers, body.as_bytes());
        assert_eq!(saved.0, 200, "{}", saved.1);
    };
    let choose = |label: &str| {
        browser.wait_for_text("[data-test=notebook-status]", "was saved elsewhere");
        let buttons = "[...document.querySelectorAll('[data-test=notebook-status] button')]";
        browser.run(&format!(
            "{buttons}.find((b) => b.textContent === '{label}').click()"
        ));
    };
    let stored = || -> Value { server.get(path).1["title"].clone() };
    save_elsewhere("Theirs");
    change("Mine");
    choose("Overwrite it");
    wait_until("it is overwritten", || stored() == "Mine");
    browser.wait(
        "document.querySelector('[data-test=notebook-status]').textContent.startsWith('saved')",
    );
    save_elsewhere("Theirs again");
    change("Mine again");
    choose("Load that version");
    browser.wait(&format!("{title}?.value === 'Theirs again'"));
    assert_eq!(stored(), "Theirs again");
    server.stop();
}
