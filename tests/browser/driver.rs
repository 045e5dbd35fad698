//! A Chromium that Debian's chromedriver starts, with what a test asks of a page: what it shows,
//! what it logged, and what it requested.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use thirtyfour::prelude::*;
use thirtyfour::{LoggingPrefsLogLevel, WebDriver};
use tokio::runtime::Runtime;

use crate::support::wait_until;

/// One browser at a time: two at once starve each other and the tests beside them.
static TURN: Mutex<()> = Mutex::new(());

/// A browser with one tab, closed when it is dropped.
pub struct Browser {
    runtime: Runtime,
    tab: Option<WebDriver>,
    driver: Child,
    _turn: MutexGuard<'static, ()>,
}

/// Starts a browser. Without one the test is skipped, unless `WEIR_REQUIRE_BROWSER` is set.
pub fn start(width: u32, height: u32) -> Option<Browser> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let Some((driver, url)) = start_driver() else {
        let is_required = std::env::var_os("WEIR_REQUIRE_BROWSER").is_some();
        assert!(!is_required, "chromedriver does not start");
        eprintln!("skipped: apt install chromium chromium-driver");
        return None;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let tab = runtime.block_on(WebDriver::new(&url, capabilities(width, height)));
    Some(Browser {
        runtime,
        tab: Some(tab.expect("a tab")),
        driver,
        _turn: turn,
    })
}

/// Starts chromedriver on a free port, which it prints.
fn start_driver() -> Option<(Child, String)> {
    let mut driver = Command::new("chromedriver")
        .args(["--port=0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let lines = BufReader::new(driver.stdout.take()?).lines();
    for line in lines.map_while(Result::ok) {
        if let Some(port) = line.split("successfully on port ").nth(1) {
            let port = port.trim_end_matches('.');
            return Some((driver, format!("http://127.0.0.1:{port}")));
        }
    }
    let _ = driver.wait();
    None
}

fn capabilities(width: u32, height: u32) -> Capabilities {
    let mut wanted = DesiredCapabilities::chrome();
    let size = format!("--window-size={width},{height}");
    // The sandbox does not work for root, and /dev/shm is small in containers.
    let arguments = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage"];
    for argument in arguments.into_iter().chain([size.as_str()]) {
        wanted.add_arg(argument).expect("an argument");
    }
    for log in ["browser", "performance"] {
        wanted
            .set_logging_prefs(log, LoggingPrefsLogLevel::All)
            .expect("a log");
    }
    wanted.into()
}

impl Drop for Browser {
    fn drop(&mut self) {
        if let Some(tab) = self.tab.take() {
            let _ = self.runtime.block_on(tab.quit());
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

impl Browser {
    fn tab(&self) -> &WebDriver {
        self.tab.as_ref().expect("it is open")
    }

    pub fn open(&self, url: &str) {
        self.runtime
            .block_on(self.tab().goto(url))
            .expect("the page loads");
    }

    /// What an expression has as its value in the page.
    pub fn value(&self, expression: &str) -> Value {
        let script = format!("return {expression};");
        let value = self
            .runtime
            .block_on(self.tab().execute(script, Vec::new()));
        value
            .unwrap_or_else(|error| panic!("{expression}: {error}"))
            .json()
            .clone()
    }

    /// Runs statements in the page.
    pub fn run(&self, script: &str) {
        let done = self
            .runtime
            .block_on(self.tab().execute(script, Vec::new()));
        done.unwrap_or_else(|error| panic!("{script}: {error}"));
    }

    /// Waits until an expression is true in the page.
    pub fn wait(&self, expression: &str) {
        wait_until(expression, || {
            self.value(&format!("!!({expression})")) == true
        });
    }

    /// Waits until an element's text contains this one.
    pub fn wait_for_text(&self, selector: &str, text: &str) {
        self.wait(&format!(
            "(document.querySelector({})?.textContent ?? '').includes({})",
            json!(selector),
            json!(text)
        ));
    }

    /// Errors in the console since the last call.
    pub fn console_errors(&self) -> Vec<String> {
        let entries = self.runtime.block_on(self.tab().get_log("browser"));
        let entries = entries.expect("the browser's log").into_iter();
        let errors = entries.filter(|entry| entry.level == "SEVERE");
        errors.map(|entry| entry.message).collect()
    }

    /// Addresses that the page requested since the last call.
    pub fn requests(&self) -> Vec<String> {
        let entries = self.runtime.block_on(self.tab().get_log("performance"));
        let mut urls = Vec::new();
        for entry in entries.expect("the performance log") {
            let entry: Value = serde_json::from_str(&entry.message).expect("JSON");
            let message = &entry["message"];
            if message["method"] == "Network.requestWillBeSent" {
                let url = message["params"]["request"]["url"].as_str();
                urls.push(url.expect("an address").to_owned());
            }
        }
        urls
    }

    /// Bytes of the script's heap after a collection.
    pub fn heap_bytes(&self) -> f64 {
        let devtools = self.tab().cdp();
        let collected = devtools.send_raw("HeapProfiler.collectGarbage", json!({}));
        self.runtime.block_on(collected).expect("a collection");
        let usage = devtools.send_raw("Runtime.getHeapUsage", json!({}));
        let usage = self.runtime.block_on(usage).expect("the heap's use");
        usage["usedSize"].as_f64().expect("a number")
    }

    /// Light or dark, as a reader prefers it.
    pub fn prefer(&self, scheme: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        let set = self.tab().cdp();
        let set = set.send_raw("Emulation.setEmulatedMedia", features);
        self.runtime.block_on(set).expect("a preference");
    }

    /// Serious faults that axe-core finds in the page, one line each.
    pub fn accessibility_faults(&self, axe: &str) -> Vec<String> {
        self.run(axe);
        let script = "const done = arguments[arguments.length - 1];
            axe.run(document, { resultTypes: ['violations'] })
                .then((found) => done(found.violations), (error) => done(String(error)));";
        let found = self.tab().execute_async(script, Vec::new());
        let found = self.runtime.block_on(found).expect("axe runs");
        let found = found.json().clone();
        let faults = found.as_array().unwrap_or_else(|| panic!("{found}"));
        let serious =
            |fault: &&Value| fault["impact"] == "serious" || fault["impact"] == "critical";
        let line = |fault: &Value| format!("{}: {}", fault["id"], fault["nodes"][0]["html"]);
        faults.iter().filter(serious).map(line).collect()
    }

    /// Writes a picture of what is shown.
    pub fn screenshot(&self, path: &std::path::Path) {
        let written = self.runtime.block_on(self.tab().screenshot(path));
        written.expect("a picture");
    }
}
