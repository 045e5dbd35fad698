//! A server that is killed and started again as it was or with another configuration: each section
//! shows both, also those that keep no connection of their own. And one whose configuration cannot
//! be read.

use serde_json::json;

use super::driver::{self, Browser};
use super::{open, served};
use crate::server::{Server, start};
use crate::support::{FREE_PORT, TestFolder, wait_until};

fn wait_for_state(browser: &Browser, state: &str) {
    browser.wait(&format!(
        "document.querySelector('#connection').dataset.state === '{state}'"
    ));
}

/// Kills a server, does something, and starts it again at its address.
fn restart(folder: &TestFolder, server: Server, between: impl FnOnce()) -> Server {
    server.kill();
    let address = server.address.clone();
    drop(server);
    between();
    let again = Server::start_at(&mut folder.command(&["run"]), &address);
    wait_until("it accepts records", || again.get("/readyz").0 == 200);
    again
}

#[test]
fn each_section_shows_that_the_server_is_lost_and_is_back() {
    let (folder, mut server) = served();
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    for section in ["#/search", "#/sql?q=", "#/notebook/answers"] {
        browser.open("about:blank");
        open(&browser, &server, section);
        wait_for_state(&browser, "live");
        server = restart(&folder, server, || wait_for_state(&browser, "lost"));
        wait_for_state(&browser, "live");
    }
    server.stop();
}

const BEANS: &str = r#"
[streams.beans]
schema = "id bigint not null, at timestamp not null"
select = "select at as event_time, id from beans"
"#;
const MORE: &str = r#"
[streams.beans]
schema = "id bigint not null, at timestamp not null, colour varchar"
select = "select at as event_time, id, colour from beans"
[streams.later]
schema = "id bigint not null, at timestamp not null"
select = "select at as event_time, id from later"
"#;

#[test]
fn a_server_with_another_configuration_shows_its_streams_and_columns() {
    let folder = TestFolder::new("");
    folder.configure(&format!("{FREE_PORT}{BEANS}"));
    let server = start(&folder);
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    open(&browser, &server, "#/sql?q=select+1");
    browser.wait_for_text("#tables", "beans");
    browser.run("document.querySelector('#sql textarea').value = 'select 2'");
    let server = restart(&folder, server, || {
        folder.configure(&format!("{FREE_PORT}{MORE}"));
    });
    browser.wait_for_text("#stream", "later");
    browser.wait_for_text("#tables", "later");
    browser.run("document.querySelector('[data-table=beans] summary').click()");
    browser.wait_for_text("[data-table=beans]", "colour");
    assert_eq!(
        browser.value("document.querySelector('#sql textarea').value"),
        json!("select 2"),
        "what the reader writes stays"
    );
    browser.run("location.hash = '#/overview?stream=later'");
    browser.wait_for_text("#overview-stream", "later");
    browser.run("location.hash = '#/overview?stream=none'");
    browser.wait_for_text("[data-test=missing-stream]", "There is no stream none.");
    server.stop();
}

/// While `window.isBroken`, the server seems to be another one, whose configuration cannot be read.
const BROKEN: &str = "
    const fetched = window.fetch;
    window.asked = 0;
    window.fetch = async (path, options) => {
        if (!window.isBroken) return fetched(path, options);
        if (path === '/api/v1/configuration') {
            window.asked += 1;
            const error = { code: 'failed', message: 'It is broken.' };
            return new Response(JSON.stringify({ error }), { status: 500 });
        }
        const answer = await fetched(path, options);
        if (path !== '/api/v1/status') return answer;
        return new Response(JSON.stringify({ ...(await answer.json()), started_at: 'later' }));
    };";

/// The page asks its server at once, as when a tab is shown again.
const BREAK: &str =
    "window.isBroken = true; document.dispatchEvent(new Event('visibilitychange'));";

#[test]
fn what_is_not_saved_stays_while_the_configuration_cannot_be_read() {
    let (_folder, server) = served();
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    browser.run_in_new_pages(BROKEN);
    open(&browser, &server, "#/notebook/answers");
    let title = "document.querySelector('[data-test=notebook-title]')";
    browser.wait(title);
    browser.run(&format!(
        "const title = {title}; title.value = 'Mine'; title.dispatchEvent(new Event('input'));
        title.id = 'mine'; {BREAK}"
    ));
    browser.wait_for_text("#problem", "It is broken.");
    let before = browser.value("window.asked");
    browser.run("location.hash = '#/notebook/answers?again'");
    browser.wait(&format!(
        "window.asked > {before} && document.querySelector('#problem [role=alert]')"
    ));
    let is_kept = "document.querySelector('#notebook #mine')?.value === 'Mine'";
    assert_eq!(browser.value(is_kept), true);
    browser.run(
        "window.isBroken = false;
        document.querySelector('#problem button').click();",
    );
    browser.wait("!document.querySelector('#problem').firstChild");
    assert_eq!(browser.value(is_kept), true);
    // Nothing asks whether to discard it.
    browser.run("document.querySelector('[data-test=notebook-save]').click()");
    wait_until("it is saved", || {
        server.get("/api/v1/notebooks/answers").1["title"] == "Mine"
    });
    let errors = browser.console_errors();
    assert!(errors.is_empty(), "{errors:?}");
    server.stop();
}

#[test]
fn a_stream_is_announced_and_a_place_refused_while_the_configuration_cannot_be_read() {
    let (_folder, server) = served();
    let Some(browser) = driver::start(1_400, 900) else {
        return;
    };
    browser.run_in_new_pages(BROKEN);
    open(&browser, &server, "#/sql?q=select+1");
    browser.wait("document.querySelector('#sql textarea')?.value");
    browser.run(&format!(
        "import('/assets/state.js').then((state) => {{
            window.state = state;
            state.changed.addEventListener('stream', () => {{ window.announced = state.stream; }});
            state.setPlace({{ lat: 1, lon: 1, km: 5 }});
            {BREAK}
        }});"
    ));
    browser.wait_for_text("#problem", "It is broken.");
    browser.click("[data-test=insert-place]");
    browser.wait_for_text("#sql [data-test=sql-status]", "It is broken.");
    browser.run(
        "window.state.setStream('other').catch((error) => { window.failure = error.message; })",
    );
    browser.wait("window.announced === 'other' && window.failure === 'It is broken.'");
    server.stop();
}
