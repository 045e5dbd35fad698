//! A server that is killed and started again as it was or with another configuration: each section
//! shows both, also those that keep no connection of their own.

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
