//! What is searched for: words that are not submitted yet, addresses that people write, and
//! searches that are superseded, fail, or wait for their index.

use serde_json::{Value, json};

use super::driver;
use super::places::{HITS, choose};
use super::{open, served};
use crate::server::Server;
use crate::support::wait_until;

/// What a search finds, once its index has all events.
fn found(server: &Server, query: &str) -> Value {
    let find = || server.get(&format!("/api/v1/search?{query}")).1;
    wait_until("the index has the events", || {
        find()["as_of"]["pending"] == 0
    });
    find()
}

const BOX: &str = "document.querySelector('#search-text').value";

#[test]
fn words_that_are_not_submitted_are_searched_with_the_next_filter() {
    let (_folder, server) = served();
    found(&server, "q=m*");
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    open(&browser, &server, "#/search?q=m*");
    browser.wait(&format!("{HITS} > 0 && {BOX} === 'm*'"));
    browser.run(&format!("{BOX} = 'open'"));
    choose(&browser, "filter-response", "\"no\"");
    browser.wait_for_text("#search-filters", "response: no");
    assert_eq!(browser.value(BOX), "open");
    let words = "new URLSearchParams(location.hash.split('?')[1]).get('q')";
    assert_eq!(browser.value(words), "open");
    browser.run("history.back()");
    browser.wait(&format!("{words} === 'm*' && {BOX} === 'm*'"));
    browser.run(&format!(
        "{BOX} = 'draft'; location.hash = '#/search?q=open'"
    ));
    browser.wait(&format!("{BOX} === 'open'"));
    server.stop();
}

#[test]
fn an_address_that_people_write_filters_by_what_it_states() {
    let (_folder, server) = served();
    let answer = found(&server, "q=open%20country:us&limit=1");
    let total = &answer["total"];
    assert!(total.as_u64() > Some(0), "{total}");
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    // A quote that is not closed, and filters that are none.
    let country = "%5B%22country%22%2C%22us%22%5D";
    let address = format!("#/search?q=%22open&where=%7B&where=7&where=%5B1%5D&where={country}");
    open(&browser, &server, &address);
    browser.wait_for_text("#search-status", &format!("of {total} hits"));
    let chips = "[...document.querySelectorAll('#search-filters .chip')].map((c) => c.textContent)";
    assert_eq!(browser.value(chips), json!(["country: us×"]));
    let errors = browser.console_errors();
    assert!(errors.is_empty(), "{errors:?}");
    server.stop();
}

/// Searches for `slow` are never answered.
const SLOW: &str = "
    const fetched = window.fetch;
    window.fetch = (path, { signal, ...options } = {}) => {
        if (!String(path).startsWith('/api/v1/search?q=slow')) {
            return fetched(path, { signal, ...options });
        }
        window.isAsked = true;
        return new Promise((_, reject) => signal.addEventListener('abort', () => {
            window.isEnded = true;
            reject(signal.reason);
        }));
    };";

#[test]
fn a_search_ends_with_the_next_one() {
    let (_folder, server) = served();
    found(&server, "q=m*");
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    browser.run_in_new_pages(SLOW);
    open(&browser, &server, "#/search?q=slow");
    browser.wait("window.isAsked && !window.isEnded");
    browser.run("location.hash = '#/search?q=m*'");
    browser.wait(&format!("window.isEnded && {HITS} > 0"));
    let errors = browser.console_errors();
    assert!(errors.is_empty(), "{errors:?}");
    server.stop();
}

/// The index seems to be 7 records behind the log, and to have another hit with each search; counts
/// of values are never answered. While `window.isBroken`, searches fail.
const BEHIND: &str = "
    const fetched = window.fetch;
    Object.assign(window, { asked: 0, counted: 0, counting: 0 });
    window.fetch = async (path, options) => {
        if (String(path).startsWith('/api/v1/search/facets?')) {
            window.counted += 1;
            window.counting += 1;
            return new Promise((_, reject) => options.signal.addEventListener('abort', () => {
                window.counting -= 1;
                reject(options.signal.reason);
            }));
        }
        const answer = await fetched(path, options);
        if (!String(path).startsWith('/api/v1/search?')) return answer;
        if (window.isBroken) return new Response('{}', { status: 500 });
        const found = await answer.json();
        window.asked += 1;
        const hits = found.hits.slice(0, window.asked);
        const as_of = { lsn: 0, pending: 7 };
        return new Response(JSON.stringify({ ...found, hits, next: null, as_of }));
    };";

#[test]
fn a_repeated_search_counts_values_once_at_a_time_and_keeps_its_hits_if_it_fails() {
    let (_folder, server) = served();
    found(&server, "q=m*");
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    browser.run_in_new_pages(BEHIND);
    open(&browser, &server, "#/search?q=m*");
    browser.wait(&format!("window.counted > 2 && {HITS} > 2"));
    assert_eq!(browser.value("window.counting"), 1);
    browser.run("window.isBroken = true");
    browser.wait_for_text("#search-status [role=alert]", "The server answered 500.");
    let shown = browser.value(HITS);
    assert!(shown.as_u64() > Some(2), "{shown}");
    browser.run(
        "window.isBroken = false;
        document.querySelector('#search-status [role=alert] button').click();",
    );
    browser.wait_for_text("#search-status", "waiting for the index");
    browser.wait(&format!("{HITS} > {shown}"));
    let errors = browser.console_errors();
    assert!(errors.is_empty(), "{errors:?}");
    server.stop();
}

/// Waits of a search, which are at most 4 s, are over at once; each search has as its answer
/// `window.answer`, and the index does not advance.
const STUCK: &str = "
    const [fetched, later] = [window.fetch, window.setTimeout];
    window.setTimeout = (work, ms) => later(work, ms <= 4000 ? 0 : ms);
    window.fetch = async (path, options) =>
        String(path).startsWith('/api/v1/search?')
            ? new Response(JSON.stringify({ as_of: { lsn: 0, pending: 7 }, ...window.answer }))
            : fetched(path, options);
    window.answer = { hits: [], total: 0, next: null };";

#[test]
fn a_search_is_not_repeated_forever_nor_while_it_has_hits_to_look_through() {
    let (_folder, server) = served();
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    browser.run_in_new_pages(STUCK);
    open(&browser, &server, "#/search?q=m*");
    browser.wait_for_text("#hits", "It does not advance: see Pipeline.");
    browser.wait_for_text("#search-status", "does not advance: see Pipeline");
    browser.run(
        "const hit = { lsn: 1, event_time: null, highlights: {}, event: { response: 'yes' } };
        window.answer = { hits: new Array(100).fill(hit), total: 9000, next: 'more' };
        location.hash = '#/search?q=m*&where=%5B%22response%22%2C%22no%22%5D';",
    );
    browser.wait_for_text("[data-test=more]", "Look through more hits");
    let status = "document.querySelector('#search-status').textContent";
    assert_eq!(browser.value(status), "");
    let errors = browser.console_errors();
    assert!(errors.is_empty(), "{errors:?}");
    server.stop();
}
