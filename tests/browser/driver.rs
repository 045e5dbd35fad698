//! A Chromium that Debian's chromedriver starts, with what a test asks of a page: what it shows,
//! what it logged, and what it requested.
//!
//! Speaks W3C WebDriver (<https://www.w3.org/TR/webdriver2/>) directly. A client library would
//! turn on features of libraries that Weir uses, too, so that the tests would run another program
//! than the one that is shipped.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::support::{skip, wait_until};

/// Keys as WebDriver names them. `CONTROL` holds for the rest of a text.
pub const CONTROL: &str = "\u{e009}";
pub const ENTER: &str = "\u{e007}";
pub const TAB: &str = "\u{e004}";

/// One browser at a time: two at once starve each other and the tests beside them.
static TURN: Mutex<()> = Mutex::new(());

/// A browser with one tab, closed when it is dropped.
pub struct Browser {
    runtime: Runtime,
    client: Client,
    /// The address of the session's commands.
    session: String,
    driver: Child,
    _turn: MutexGuard<'static, ()>,
}

/// Starts a browser. Without one the test is skipped, unless `WEIR_REQUIRE_BROWSER` is set.
pub fn start(width: u32, height: u32) -> Option<Browser> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let Some((driver, url)) = start_driver() else {
        let is_required = std::env::var_os("WEIR_REQUIRE_BROWSER").is_some();
        assert!(!is_required, "chromedriver does not start");
        skip("apt install chromium chromium-driver");
        return None;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let client = Client::builder().no_proxy().build().expect("a client");
    let mut browser = Browser {
        runtime,
        client,
        session: format!("{url}/session"),
        driver,
        _turn: turn,
    };
    let wanted = json!({"capabilities": {"alwaysMatch": capabilities(width, height)}});
    let opened = browser.send("", wanted).expect("a session");
    let id = opened["sessionId"].as_str().expect("an id");
    browser.session = format!("{}/{id}", browser.session);
    Some(browser)
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

fn capabilities(width: u32, height: u32) -> Value {
    json!({
        "browserName": "chrome",
        "goog:chromeOptions": {"args": [
            "--headless=new",
            // The sandbox does not work for root, and /dev/shm is small in containers.
            "--no-sandbox",
            "--disable-dev-shm-usage",
            format!("--window-size={width},{height}"),
        ]},
        "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
    })
}

/// The id of the element that an answer names.
fn element_id(answer: Result<Value, String>) -> String {
    let answer = answer.expect("an element");
    let id = answer.as_object().and_then(|names| names.values().next());
    id.and_then(Value::as_str).expect("an id").to_owned()
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.command(Method::DELETE, "", None);
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

impl Browser {
    /// Sends a command of the session, and returns its value or its error.
    fn command(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, String> {
        let mut request = self
            .client
            .request(method, format!("{}{path}", self.session));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = self.runtime.block_on(async {
            let answer = request.send().await?;
            answer.json::<Value>().await
        });
        let mut answer = answer.map_err(|error| format!("chromedriver: {error}"))?;
        let value = answer["value"].take();
        match value.get("error") {
            Some(Value::String(error)) => Err(format!("{error}: {}", value["message"])),
            _ => Ok(value),
        }
    }

    fn send(&self, path: &str, body: Value) -> Result<Value, String> {
        self.command(Method::POST, path, Some(body))
    }

    /// Runs a script in the page; `kind` is `sync` or `async`.
    fn execute(&self, kind: &str, script: &str) -> Value {
        self.send(
            &format!("/execute/{kind}"),
            json!({"script": script, "args": []}),
        )
        .unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    /// The entries of a log since the last call.
    fn log(&self, kind: &str) -> Vec<Value> {
        match self.send("/se/log", json!({ "type": kind })) {
            Ok(Value::Array(entries)) => entries,
            other => panic!("the log {kind}: {other:?}"),
        }
    }

    /// A command of Chromium's own protocol.
    fn devtools(&self, command: &str, parameters: &Value) -> Value {
        let body = json!({"cmd": command, "params": parameters});
        self.send("/goog/cdp/execute", body)
            .unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    pub fn open(&self, url: &str) {
        self.send("/url", json!({ "url": url }))
            .expect("the page loads");
    }

    /// What an expression has as its value in the page.
    pub fn value(&self, expression: &str) -> Value {
        self.execute("sync", &format!("return {expression};"))
    }

    /// Runs statements in the page.
    pub fn run(&self, script: &str) {
        self.execute("sync", script);
    }

    /// Clicks the middle of an element, as a mouse does.
    pub fn click(&self, selector: &str) {
        let wanted = json!({"using": "css selector", "value": selector});
        let element = element_id(self.send("/element", wanted));
        self.send(&format!("/element/{element}/click"), json!({}))
            .unwrap_or_else(|error| panic!("{selector}: {error}"));
    }

    /// Types into the element that has the focus.
    pub fn type_keys(&self, keys: &str) {
        let element = element_id(self.command(Method::GET, "/element/active", None));
        self.send(
            &format!("/element/{element}/value"),
            json!({ "text": keys }),
        )
        .unwrap_or_else(|error| panic!("{keys}: {error}"));
    }

    /// Shows pages as a telephone of this width does.
    pub fn narrow(&self, width: u32) {
        let screen = json!({"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": true});
        self.devtools("Emulation.setDeviceMetricsOverride", &screen);
    }

    /// Runs a script in each page that is opened from now on, before its own; returns its id.
    pub fn run_in_new_pages(&self, script: &str) -> String {
        let source = json!({"source": format!("{{{script}}}")});
        let added = self.devtools("Page.addScriptToEvaluateOnNewDocument", &source);
        added["identifier"].as_str().expect("an id").to_owned()
    }

    /// Ends `run_in_new_pages`.
    pub fn forget_in_new_pages(&self, id: &str) {
        let id = json!({ "identifier": id });
        self.devtools("Page.removeScriptToEvaluateOnNewDocument", &id);
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
        let errors = self.log("browser").into_iter();
        let errors = errors.filter(|entry| entry["level"] == "SEVERE");
        errors.map(|entry| entry["message"].to_string()).collect()
    }

    /// Addresses that the page requested since the last call.
    pub fn requests(&self) -> Vec<String> {
        let mut urls = Vec::new();
        for entry in self.log("performance") {
            let entry = entry["message"].as_str().expect("a message");
            let entry: Value = serde_json::from_str(entry).expect("JSON");
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
        self.devtools("HeapProfiler.collectGarbage", &json!({}));
        let usage = self.devtools("Runtime.getHeapUsage", &json!({}));
        usage["usedSize"].as_f64().expect("a number")
    }

    /// Light or dark, as a reader prefers it.
    pub fn prefer(&self, scheme: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", &features);
    }

    /// Serious faults that axe-core finds in the page, one line each.
    pub fn accessibility_faults(&self, axe: &str) -> Vec<String> {
        self.run(axe);
        let script = "const done = arguments[arguments.length - 1];
            axe.run(document, { resultTypes: ['violations'] })
                .then((found) => done(found.violations), (error) => done(String(error)));";
        let found = self.execute("async", script);
        let faults = found.as_array().unwrap_or_else(|| panic!("{found}"));
        let serious =
            |fault: &&Value| fault["impact"] == "serious" || fault["impact"] == "critical";
        let line = |fault: &Value| format!("{}: {}", fault["id"], fault["nodes"][0]["html"]);
        faults.iter().filter(serious).map(line).collect()
    }

    /// Writes a picture of what is shown.
    pub fn screenshot(&self, path: &std::path::Path) {
        let picture = self.command(Method::GET, "/screenshot", None);
        let picture = picture.expect("a picture");
        let picture = BASE64_STANDARD.decode(picture.as_str().expect("base64"));
        std::fs::write(path, picture.expect("base64")).expect("the picture is written");
    }
}
