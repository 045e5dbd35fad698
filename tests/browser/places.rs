//! The map and the search: a place and values filter, an address states them, values are counted,
//! pages follow one another, a search waits for its index, and a record is shown as it was received.

use std::time::Duration;

use serde_json::{Value, json};

use super::driver::{self, Browser, ENTER};
use super::{fill, open, recent, served};
use crate::server::{Server, start};
use crate::support::{HTTP_ONLY, TestFolder, ndjson, wait_until};

/// The number in the only row of a statement.
fn number(server: &Server, query: &str) -> u64 {
    let body = json!({"sql": format!("select ({query}) as n")}).to_string();
    let answer = server
        .request("POST", "/api/v1/sql", &[], body.as_bytes())
        .1;
    answer["rows"][0]["n"].as_u64().expect("a number")
}

pub const HITS: &str = "document.querySelectorAll('#hits [data-test=hit]').length";

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
    browser.wait(facet);
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

#[test]
fn values_are_counted_over_all_hits() {
    let (_folder, server) = served();
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    let find = |words: &str| server.get(&format!("/api/v1/search?limit=1&q={words}")).1;
    wait_until("the index has the events", || {
        find("m*")["as_of"]["pending"] == 0
    });
    let words = ["m*", "m*%20country:us"];
    let words = words.map(|words| find(words)["total"].as_u64().expect("a number"));
    let rows = ["true", "country = 'us'"];
    let rows = rows.map(|c| number(&server, &format!("select count(*) from rsvps where {c}")));
    for (section, [all, of_country]) in [("#/search?q=m*", words), ("#/search", rows)] {
        assert!(all > 25, "{section} has more than a page");
        browser.open("about:blank");
        open(&browser, &server, section);
        browser.wait_for_text("#facets", &format!("Values in all {all} hits"));
        let shown = "[...document.querySelectorAll('#facets [data-column=country] li')]\
                     .find((item) => item.querySelector('button').textContent === 'us')\
                     .querySelector('.bar-n').textContent";
        assert_eq!(browser.value(shown), of_country.to_string(), "{section}");
    }
    let errors = browser.console_errors();
    assert!(errors.is_empty(), "{errors:?}");
    server.stop();
}

/// A server with events in three places: in the middle, within 5 km of it, and in a corner of the
/// square around that circle.
fn in_three_places() -> (TestFolder, Server) {
    let folder = TestFolder::new("");
    folder.configure(HTTP_ONLY);
    let server = start(&folder);
    let places = [(50.0, 10.0), (50.04, 10.0), (50.035, 10.055)];
    let mut events = recent(places.len());
    for (event, (lat, lon)) in events.iter_mut().zip(places) {
        event["venue"] = json!({"venue_id": 1, "venue_name": "V", "lat": lat, "lon": lon});
        event["event"]["event_name"] = json!("zebra");
    }
    assert_eq!(server.post(&[], &ndjson(&events)).0, 200);
    (folder, server)
}

#[test]
fn a_place_filters_by_distance() {
    let (_folder, server) = in_three_places();
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    open(&browser, &server, "#/overview");
    browser.wait_for_text("[data-panel=types]", "3 in total");
    browser.run(
        "import('/assets/state.js').then(async (state) => {
            state.setPlace({ lat: 50, lon: 10, km: 5 });
            window.condition = await state.placeCondition();
        });",
    );
    browser.wait("window.condition");
    let condition = browser.value("window.condition");
    let condition = condition.as_str().expect("text");
    let statement = format!("select count(*) from rsvps where {condition}");
    assert_eq!(number(&server, &statement), 2);
    browser.wait_for_text("[data-panel=types]", "2 in this place");
    for (section, status) in [
        ("#/search", "2 events"),
        ("#/search?q=zebra", "2 of 2 hits"),
    ] {
        browser.run(&format!("location.hash = '{section}'"));
        browser.wait_for_text("#search-status", status);
        browser.wait_for_text("#facets", "Values in all 2 hits");
        assert_eq!(browser.value(HITS), 2, "{section}");
    }
    let errors = browser.console_errors();
    assert!(errors.is_empty(), "{errors:?}");
    server.stop();
}

#[test]
fn the_address_of_a_search_states_its_place() {
    let (_folder, server) = in_three_places();
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    open(&browser, &server, "#/search?q=zebra");
    browser.wait_for_text("#search-status", "3 of 3 hits");
    browser.wait("document.querySelector('[data-test=search-near]')");
    browser.click("[data-test=search-near]");
    browser.type_keys(&format!("50, 10{ENTER}"));
    browser.wait_for_text("#search-status", "2 of 2 hits");
    choose(&browser, "search-within", "10");
    browser.wait_for_text("#search-status", "3 of 3 hits");
    browser.run("history.back()");
    browser.wait_for_text("#search-status", "2 of 2 hits");
    let address = browser.value("location.hash");
    let address = address.as_str().expect("text");
    let parameters = "Object.fromEntries(new URLSearchParams(location.hash.split('?')[1]))";
    assert_eq!(
        browser.value(parameters),
        json!({"q": "zebra", "stream": "rsvps", "near": "50,10", "within": "5km"})
    );
    // Another page, which has chosen nothing.
    browser.open("about:blank");
    open(&browser, &server, address);
    browser.wait_for_text("#search-status", "2 of 2 hits");
    browser.wait_for_text("#filters", "Filtered to 5 km around 50.000, 10.000.");
    browser.wait_for_text("#search-filters", "within 5 km around 50.000, 10.000");
    browser.run("document.querySelector('[data-test=remove-place]').click()");
    browser.wait_for_text("#search-status", "3 of 3 hits");
    assert_eq!(
        browser.value(parameters),
        json!({"q": "zebra", "stream": "rsvps"})
    );
    let errors = browser.console_errors();
    assert!(errors.is_empty(), "{errors:?}");
    server.stop();
}

/// Chooses an option of a select by its value, as a reader does.
pub fn choose(browser: &Browser, select: &str, value: &str) {
    let element = format!("document.querySelector('[data-test={select}]')");
    let value = json!(value);
    browser.wait(&format!(
        "[...{element}.options].some((option) => option.value === {value})"
    ));
    browser.run(&format!(
        "const select = {element};
        select.value = {value};
        select.dispatchEvent(new Event('change'));"
    ));
}

#[test]
fn the_form_of_the_search_offers_what_the_stream_declares() {
    const BEANS: &str = r#"
[streams.beans]
schema = "id bigint not null, at timestamp not null, kind varchar"
select = "select at as event_time, id, kind from beans"
count = { type = "kind" }
"#;
    let folder = TestFolder::new("");
    folder.configure(&format!("{HTTP_ONLY}{BEANS}"));
    let server = start(&folder);
    fill(&server);
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    open(&browser, &server, "#/search?stream=rsvps");
    browser.wait("document.querySelector('[data-test=filter-response]')");
    for answer in ["no", "yes"] {
        choose(&browser, "filter-response", &json!(answer).to_string());
        browser.wait_for_text("#search-filters", &format!("response: {answer}"));
        let chips = "document.querySelectorAll('#search-filters .chip').length";
        assert_eq!(browser.value(chips), 1, "one value replaces another");
    }
    let facet = "document.querySelector('#facets [data-column=country] [data-test=facet]')";
    browser.wait(facet);
    browser.run(&format!(
        "const facet = {facet}; window.country = facet.textContent; facet.click();"
    ));
    browser.wait("JSON.stringify(window.country) === document.querySelector('[data-test=filter-country]').value");
    let yes = "document.querySelector('[data-test=filter-response]').value";
    assert_eq!(browser.value(yes), "\"yes\"");
    // What the other stream does not declare is not offered, and cannot be asked for.
    open(
        &browser,
        &server,
        "#/search?stream=beans&near=50,10&within=5km",
    );
    browser.wait_for_text("#hits", "Stream beans has no coordinates");
    browser.wait("document.querySelector('[data-test=filter-kind]')");
    for absent in ["filter-response", "filter-country", "search-near"] {
        let element = format!("document.querySelector('[data-test={absent}]')");
        assert_eq!(browser.value(&element), Value::Null, "{absent}");
    }
    browser.wait("document.querySelector('#filters').hidden");
    browser.run("document.querySelector('#search-filters .chip-remove').click()");
    browser.wait_for_text("#hits", "Nothing found");
    let errors = browser.console_errors();
    assert!(errors.is_empty(), "{errors:?}");
    server.stop();
}

#[test]
fn a_search_says_that_it_looked_through_the_first_hits_only() {
    let folder = TestFolder::new("");
    folder.configure(HTTP_ONLY);
    let server = start(&folder);
    // The oldest one alone is a "no", and `response` is not in the index.
    let count = 2_051;
    let event = recent(1).remove(0);
    let time = event["mtime"].as_i64().expect("a number");
    let events: Vec<Value> = (0..count)
        .map(|n| {
            let mut event = event.clone();
            event["rsvp_id"] = json!(78_000_000 + n);
            event["mtime"] = json!(time - count + n);
            event["response"] = json!(if n == 0 { "no" } else { "yes" });
            event["event"]["event_name"] = json!("zebra");
            event
        })
        .collect();
    assert_eq!(server.post(&[], &ndjson(&events)).0, 200);
    wait_until("the index has the events", || {
        server.get("/api/v1/search?limit=1&q=zebra").1["total"] == count
    });
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    let no = "%5B%22response%22%2C%22no%22%5D";
    open(&browser, &server, &format!("#/search?q=zebra&where={no}"));
    browser.wait(
        "document.querySelector('#hits')?.textContent.includes(
            `Nothing found among the first ${(2000).toLocaleString()} of ${(2051).toLocaleString()} hits.`)",
    );
    browser.wait_for_text("#hits", "declare in `search.exact`: response.");
    browser.wait_for_text("[data-test=more]", "Look through more hits");
    browser.run("document.querySelector('[data-test=more]').click()");
    browser.wait_for_text("#search-status", "1 among");
    assert_eq!(
        browser.value("document.querySelectorAll('#hits > li').length"),
        1
    );
    assert_eq!(browser.value(HITS), 1);
    let errors = browser.console_errors();
    assert!(errors.is_empty(), "{errors:?}");
    server.stop();
}

#[test]
fn each_section_says_what_a_place_filters_there() {
    let (_folder, server) = in_three_places();
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    open(
        &browser,
        &server,
        "#/search?stream=rsvps&near=50,10&within=5km",
    );
    browser.wait_for_text("#search-status", "2 events");
    for (section, note) in [
        ("overview", "health are of the whole stream"),
        ("map", "The map shows all places"),
        ("sql", "Not filtered"),
        ("notebook", "Not filtered"),
        ("pipeline", "Not filtered"),
        ("search", "Filtered to 5 km"),
    ] {
        browser.run(&format!("location.hash = '#/{section}'"));
        browser.wait_for_text("#filters", note);
    }
    let statement = "select concat('found ', cast(count(*) as varchar)) as n from rsvps where true or false limit 5";
    let statement = json!(statement);
    browser.run(&format!(
        "location.hash = '#/sql?' + new URLSearchParams({{ q: {statement} }})"
    ));
    browser.wait(&format!(
        "document.querySelector('#sql textarea')?.value === {statement}"
    ));
    browser.click("[data-test=insert-place]");
    browser.wait(
        "/where \\(true or false\\)\\s+and [^]+ limit 5$/.test(document.querySelector('#sql textarea').value)",
    );
    browser.click("#sql [data-test=run]");
    browser.wait_for_text("#sql [data-test=result]", "found 2");
    browser.run("location.hash = '#/sql?q=show+tables'");
    browser.wait("document.querySelector('#sql textarea').value === 'show tables'");
    browser.click("[data-test=insert-place]");
    browser.wait_for_text("#sql [data-test=sql-status]", "no `from`");
    let errors = browser.console_errors();
    assert!(errors.is_empty(), "{errors:?}");
    server.stop();
}

/// While `window.isReady` is not set, the index seems to be empty and 7 records behind the log.
const BEHIND: &str = "
    const fetched = window.fetch;
    window.asked = 0;
    window.fetch = async (path, options) => {
        if (!String(path).startsWith('/api/v1/search?')) return fetched(path, options);
        window.asked += 1;
        if (window.isReady) return fetched(path, options);
        const answer = { hits: [], total: 0, next: null, as_of: { lsn: 0, pending: 7 } };
        return new Response(JSON.stringify(answer));
    };";

#[test]
fn a_search_is_repeated_until_its_index_has_the_records() {
    let (_folder, server) = served();
    let mut event = recent(1).remove(0);
    event["rsvp_id"] = json!(77_000_004);
    event["event"]["event_name"] = json!("zebra");
    assert_eq!(server.post(&[], &ndjson(&[event])).0, 200);
    wait_until("the index has the event", || {
        server.get("/api/v1/search?q=zebra").1["total"] == 1
    });
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    browser.run_in_new_pages(BEHIND);
    open(&browser, &server, "#/search?q=zebra");
    browser.wait_for_text(
        "#search-status",
        "waiting for the index, which is 7 records",
    );
    browser.wait_for_text("#hits", "Nothing found yet.");
    browser.wait("window.asked > 2");
    browser.run("window.isReady = true");
    browser.wait(&format!("{HITS} === 1"));
    browser.wait("document.querySelector('#search-status').textContent === '1 of 1 hits'");
    let asked = || browser.value("window.asked").as_u64().expect("a number");
    let is_still = |reason: &str| {
        let before = asked();
        std::thread::sleep(Duration::from_millis(1_500));
        assert_eq!(asked(), before, "{reason}");
    };
    is_still("the index has what was asked for");
    let before = asked();
    browser.run("window.isReady = false; location.hash = '#/search?q=other'");
    browser.wait(&format!("window.asked > {before}"));
    browser.run("location.hash = '#/pipeline'");
    browser.wait("document.querySelector('#search').hidden");
    is_still("the section was left");
    let errors = browser.console_errors();
    assert!(errors.is_empty(), "{errors:?}");
    server.stop();
}
