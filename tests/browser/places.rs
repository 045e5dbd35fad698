//! The map and the search: a place and values filter, pages follow one another, and a record is
//! shown as it was received.

use serde_json::{Value, json};

use super::{driver, open, served};
use crate::server::Server;
use crate::support::wait_until;

/// The number in the only row of a statement.
fn number(server: &Server, query: &str) -> u64 {
    let body = json!({"sql": format!("select ({query}) as n")}).to_string();
    let answer = server
        .request("POST", "/api/v1/sql", &[], body.as_bytes())
        .1;
    answer["rows"][0]["n"].as_u64().expect("a number")
}

const HITS: &str = "document.querySelectorAll('#hits [data-test=hit]').length";

#[test]
fn a_click_on_the_map_filters_and_shows_venues_nearby() {
    let (_folder, server) = served();
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    wait_until("venues are known", || {
        let answer = server.get("/api/v1/nearby?lat=40.7&lon=-74&limit=1").1;
        answer["as_of"]["pending"] == 0 && answer["venues"][0].is_object()
    });
    open(&browser, &server, "#/map");
    browser.wait("document.querySelector('#map-place .venue-name button')?.textContent");
    browser.run(
        "const busiest = document.querySelector('#map-place .venue-name button');
        window.chosen = busiest.textContent; busiest.click();",
    );
    let nearest = "document.querySelector('#nearby [data-test=venue] button')?.textContent";
    let is_found = format!("{nearest} === window.chosen");
    browser.wait(&is_found);
    browser.wait_for_text("#filters", "5 km");
    browser.run("document.querySelector('[data-test=remove-place]').click()");
    browser.wait("document.querySelector('#filters').hidden && !document.querySelector('#nearby')");
    // The map is still around that venue.
    browser.click("#map canvas");
    browser.wait(&is_found);
    browser.wait("!document.querySelector('#filters').hidden");
    let name = browser.value("window.chosen");
    let name = name.as_str().expect("a name");
    let expected = number(
        &server,
        &format!("select count(*) from rsvps where venue_name = '{name}'"),
    );
    browser.run("location.hash = '#/search'");
    browser.wait(&format!("{HITS} === {expected}"));
    browser.run("document.querySelector('[data-test=remove-place]').click()");
    browser.wait(&format!("{HITS} > {expected}"));
    let errors = browser.console_errors();
    assert!(errors.is_empty(), "{errors:?}");
    server.stop();
}

#[test]
fn values_filter_a_search_and_pages_follow_one_another() {
    let (_folder, server) = served();
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    let total = number(&server, "select count(*) from rsvps");
    open(&browser, &server, "#/search");
    browser.wait(&format!("{HITS} === 25"));
    for shown in (50..=total).step_by(25).take(2) {
        browser.wait("document.querySelector('[data-test=more]:not([disabled])')");
        browser.run("document.querySelector('[data-test=more]').click()");
        browser.wait(&format!("{HITS} === {shown}"));
    }
    let lsns =
        "[...document.querySelectorAll('#hits [data-test=hit]')].map((hit) => hit.dataset.lsn)";
    let distinct = browser.value(&format!("new Set({lsns}).size"));
    assert_eq!(distinct, 75, "no event is on two pages");
    let facet = "[...document.querySelectorAll('#facets [data-test=facet]')]\
                 .find((value) => value.textContent === 'no')";
    browser.run(&format!("{facet}.click()"));
    browser.wait_for_text("#search-filters", "response: no");
    let answers = "[...document.querySelectorAll('#hits [data-test=hit] .tag')]\
                   .filter((tag) => tag.textContent.startsWith('response'))";
    browser.wait(&format!(
        "{HITS} > 0 && {answers}.length === {HITS} \
         && {answers}.every((tag) => tag.textContent === 'responseno')"
    ));
    browser.run("document.querySelector('#search-filters .chip-remove').click()");
    browser.wait(&format!(
        "{answers}.some((tag) => tag.textContent === 'responseyes')"
    ));
    server.stop();
}

#[test]
fn a_hit_shows_its_record_as_it_was_received() {
    let (folder, server) = served();
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    open(&browser, &server, "#/search");
    browser.wait(&format!("{HITS} > 0"));
    browser.run(
        "const hit = document.querySelector('#hits [data-test=hit]');
        hit.querySelector('[data-test=details]').click();
        hit.querySelector('[data-test=received]').click();",
    );
    browser.wait("document.querySelector('#hits .received pre')");
    let shown = browser.value("document.querySelector('#hits .received pre').textContent");
    let lsn = browser.value("document.querySelector('#hits [data-test=hit]').dataset.lsn");
    let lsn = lsn.as_str().expect("a number");
    let rows = folder.rows(&format!("select bytes from raw where lsn = {lsn}"));
    let parse = |text: &Value| -> Value {
        serde_json::from_str(text.as_str().expect("text")).expect("JSON")
    };
    assert_eq!(parse(&shown), parse(&rows[0]["bytes"]));
    server.stop();
}
