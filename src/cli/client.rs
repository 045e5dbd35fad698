//! Where verbs get their answers: from the running server, or read-only from the data folder.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::progress::{self, Spinner};
use super::{Global, tls, tokio_runtime};
use crate::config::Config;
use crate::event::Lsn;
use crate::query::encode::Format;
use crate::query::{ClientId, QueryError};
use crate::runtime::RuntimeError;
use crate::runtime::data_dir::{Address, DataDir};
use crate::runtime::offline::Offline;
use crate::runtime::query_service::Params;
use crate::server::FOLDER_KEY;

/// How long a server may take to answer `/healthz`.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to yield to a process that waits for the folder.
const YIELD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long such a process may then take to answer.
const START_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// The server or the folder that answers queries.
pub struct QueryTarget {
    runtime: Arc<tokio::runtime::Runtime>,
    backend: Backend,
    /// The command that ingests records which a stopped folder's views lack.
    catch_up_command: &'static str,
    /// How a spinner is shown for an answer that takes long.
    global: Global,
}

/// What a spinner says until an answer comes.
const WAITING: &str = "waiting for the answer";

enum Backend {
    Server(Server),
    DataDir(Box<Offline>),
}

impl Backend {
    /// A server that answers, or the folder itself. A process that waits for the folder takes
    /// precedence: it is queried once it serves, unless `is_cancelled` by then.
    fn find(
        config: &Config,
        runtime: &tokio::runtime::Runtime,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Self, RuntimeError> {
        let started = Instant::now();
        let mut last_wanted: Option<Instant> = None;
        loop {
            if let Some(server) = runtime.block_on(Server::find(config)) {
                return Ok(Self::Server(server));
            }
            match Offline::open(config, runtime.handle()) {
                Ok(offline) => return Ok(Self::DataDir(Box::new(offline))),
                Err(RuntimeError::InUse(reason)) => {
                    if DataDir::existing(&config.data).is_ok_and(|folder| folder.is_wanted()) {
                        last_wanted = Some(Instant::now());
                    }
                    if is_cancelled()
                        || started.elapsed() >= YIELD_TIMEOUT
                        || last_wanted.is_none_or(|at| at.elapsed() >= START_TIMEOUT)
                    {
                        return Err(RuntimeError::InUse(reason));
                    }
                }
                Err(error) => return Err(error),
            }
            std::thread::sleep(RETRY_INTERVAL);
        }
    }
}

/// The token that requests to servers carry.
pub fn token() -> Option<String> {
    let token = std::env::var("WEIR_TOKEN").ok();
    token.filter(|token| !token.is_empty())
}

/// A server running on the data folder.
pub struct Server {
    client: reqwest::Client,
    url: String,
    token: Option<String>,
    folder_key: String,
}

impl Server {
    /// The server running on this data folder, if one answers; a stale address is ignored.
    pub async fn find(config: &Config) -> Option<Self> {
        let folder = DataDir::existing(&config.data).ok()?;
        let address: Address = folder.address()?;
        let mut client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none());
        if let Some((certificate, _)) = config.server.tls.as_ref().filter(|_| address.tls) {
            client = client.tls_backend_preconfigured(tls::trusting(certificate).ok()?);
        }
        let client = client.build().ok()?;
        let scheme = if address.tls { "https" } else { "http" };
        let url = format!("{scheme}://{}", address.http);
        let response = client
            .get(format!("{url}/healthz"))
            .timeout(HEALTH_TIMEOUT)
            .send()
            .await
            .ok()?;
        let body: Value = response.json().await.ok()?;
        (body["pid"].as_u64() == Some(address.pid.into())).then(|| Self {
            client,
            url,
            token: token(),
            folder_key: address.key.clone(),
        })
    }

    /// Where it answers, for messages.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What `/metrics` shows.
    pub async fn metrics(&self) -> Result<String, RuntimeError> {
        let answer = self
            .send(self.client.get(format!("{}/metrics", self.url)))
            .await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// What `/readyz` says, whether it is ready or not.
    pub async fn readiness(&self) -> Result<Value, RuntimeError> {
        let request = self.client.get(format!("{}/readyz", self.url));
        let (_, answer) = self.exchange(request).await?;
        self.json(&answer)
    }

    /// Sends `GET /api/v1/<endpoint>`; the parameter `name` is the end of the path.
    pub async fn get(&self, endpoint: &str, params: &Params) -> Result<Value, RuntimeError> {
        let url = self.url_of(endpoint, params);
        let answer = self.send(self.client.get(url)).await?;
        self.json(&answer)
    }

    /// As [`Self::get`], for an answer that does not end by itself.
    pub async fn open(
        &self,
        endpoint: &str,
        params: &Params,
    ) -> Result<reqwest::Response, RuntimeError> {
        let url = self.url_of(endpoint, params);
        let response = self.respond(self.client.get(url)).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let bytes = response.bytes().await.map_err(|e| self.failed(&e))?;
        Err(refusal(status, &bytes))
    }

    fn url_of(&self, endpoint: &str, params: &Params) -> String {
        let mut params = params.clone();
        let path = params.remove("name").map_or(endpoint.to_owned(), |name| {
            format!("{endpoint}/{}", encode(&name))
        });
        let query: Vec<String> = params
            .iter()
            .map(|(k, v)| format!("{k}={}", encode(v)))
            .collect();
        format!("{}/api/v1/{path}?{}", self.url, query.join("&"))
    }

    /// Sends `POST /api/v1/<path>`.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, RuntimeError> {
        let answer = self.post_for_bytes(path, body).await?;
        self.json(&answer)
    }

    /// The LSN of the last synced record.
    pub async fn synced_lsn(&self) -> Result<Lsn, RuntimeError> {
        let status = self.get("status", &Params::default()).await?;
        let message =
            || RuntimeError::Failed(format!("{}: its status has no `synced_lsn`", self.url));
        status["synced_lsn"].as_u64().ok_or_else(message)
    }

    async fn post_for_bytes(&self, path: &str, body: &Value) -> Result<Vec<u8>, RuntimeError> {
        self.send(
            self.client
                .post(format!("{}/api/v1/{path}", self.url))
                .json(body),
        )
        .await
    }

    fn json(&self, answer: &[u8]) -> Result<Value, RuntimeError> {
        serde_json::from_slice(answer)
            .map_err(|e| RuntimeError::Failed(format!("{}: {e}", self.url)))
    }

    /// The status and the body of the response.
    async fn exchange(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<(reqwest::StatusCode, Vec<u8>), RuntimeError> {
        let response = self.respond(request).await?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(|e| self.failed(&e))?;
        Ok((status, bytes.to_vec()))
    }

    /// The response to a request, with what every request carries.
    async fn respond(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<reqwest::Response, RuntimeError> {
        let request = match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let request = request.header(FOLDER_KEY, &self.folder_key);
        request.send().await.map_err(|e| self.failed(&e))
    }

    fn failed(&self, error: &reqwest::Error) -> RuntimeError {
        let url = &self.url;
        RuntimeError::Failed(format!(
            "{url}: {error}; if the server has stopped, start it by `weir run`, or try again"
        ))
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Vec<u8>, RuntimeError> {
        let (status, bytes) = self.exchange(request).await?;
        if status.is_success() {
            Ok(bytes)
        } else {
            Err(refusal(status, &bytes))
        }
    }
}

/// The error of an answer that is none, with the next step.
fn refusal(status: reqwest::StatusCode, body: &[u8]) -> RuntimeError {
    let error: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |member: &str| error["error"][member].as_str();
    let message =
        text("message").map_or_else(|| format!("the server answered {status}"), str::to_owned);
    let message = match next_step(text("code").unwrap_or_default()) {
        Some(step) => format!("{message}; {step}"),
        None => message,
    };
    if status.as_u16() == 400 {
        RuntimeError::Config(message)
    } else {
        RuntimeError::Failed(message)
    }
}

/// Whether the server of the configured data folder answers; an error if none does.
pub fn check_alive(global: &Global) -> Result<(), RuntimeError> {
    let config = global.load()?;
    let found = tokio_runtime()?.block_on(Server::find(&config));
    let failed = || {
        let folder = config.data.display();
        RuntimeError::Failed(format!(
            "no server of {folder} answers; `weir run` starts one"
        ))
    };
    found.map(drop).ok_or_else(failed)
}

/// What a user of the command line does about an error of the server, where its message does not
/// say it.
fn next_step(code: &str) -> Option<&'static str> {
    match code {
        "unauthorized" => Some("set WEIR_TOKEN to one; `weir token create` creates them"),
        "read_only" => Some("set WEIR_TOKEN to one that was created without --read-only"),
        "not_taking" | "too_many_connections" => Some("try again in a moment"),
        "failed" => Some("the server's log has more"),
        _ => None,
    }
}

impl QueryTarget {
    /// The running server, or the folder.
    pub fn open(global: &Global) -> Result<Self, RuntimeError> {
        Self::open_unless(global, &Arc::new(tokio_runtime()?), &|| false)
    }

    /// As [`Self::open`], on a runtime that the caller keeps; once `is_cancelled` it does not wait
    /// for a process that is about to serve.
    pub fn open_unless(
        global: &Global,
        runtime: &Arc<tokio::runtime::Runtime>,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Self, RuntimeError> {
        let config = global.load()?;
        let opening = Spinner::new(global, "opening the data folder");
        let backend = Backend::find(&config, runtime, is_cancelled)?;
        drop(opening);
        let catch_up_command = if config.path.is_some() {
            "weir run --once"
        } else {
            "weir demo"
        };
        Ok(Self {
            runtime: runtime.clone(),
            backend,
            catch_up_command,
            global: global.clone(),
        })
    }

    /// Who answers, for people.
    pub fn description(&self) -> String {
        match &self.backend {
            Backend::Server(server) => server.url().to_owned(),
            Backend::DataDir(_) => "the data folder, read-only".into(),
        }
    }

    fn report_pending(&self, pending: Option<u64>) {
        if let Some(pending @ 1..) = pending {
            progress::line(&format!(
                "weir: {pending} accepted records are not in this answer yet; `{}` adds them",
                self.catch_up_command
            ));
        }
    }

    /// The answer of `/api/v1/<endpoint>`; the parameter `name` is the window's.
    pub fn ask(&self, endpoint: &str, params: &Params) -> Result<Value, RuntimeError> {
        let _waiting = Spinner::new(&self.global, WAITING);
        match &self.backend {
            Backend::DataDir(offline) => {
                let answers = &offline.queries;
                let answer = self.runtime.block_on(async {
                    match endpoint {
                        "count" => answers.count(params).await?.into_value(),
                        "search" => answers.search(params).await?.into_value(),
                        "nearby" => answers.nearby(params).await?.into_value(),
                        "windows" => answers.windows(params).await?.into_value(),
                        "status" => Ok(answers.status()),
                        other => Err(QueryError::Invalid(format!(
                            "a folder without a server does not answer `{other}`"
                        ))),
                    }
                });
                let answer = answer?;
                self.report_pending(answer["as_of"]["pending"].as_u64());
                Ok(answer)
            }
            Backend::Server(server) => self.runtime.block_on(server.get(endpoint, params)),
        }
    }

    /// Runs SQL; the answer in this format's bytes (`json`, `ndjson`, `csv`).
    pub fn sql(&self, query: &str, format: &str) -> Result<Vec<u8>, RuntimeError> {
        let _waiting = Spinner::new(&self.global, WAITING);
        self.runtime.block_on(self.answer_sql(query, format))
    }

    /// As [`Self::sql`], but ends the query and returns `None` when `cancelled` completes.
    pub fn sql_unless(
        &self,
        query: &str,
        format: &str,
        cancelled: impl Future<Output = ()>,
    ) -> Result<Option<Vec<u8>>, RuntimeError> {
        let _waiting = Spinner::new(&self.global, WAITING);
        self.runtime.block_on(async {
            tokio::select! {
                answer = self.answer_sql(query, format) => answer.map(Some),
                // Without its client a query ends, in the server as in this process.
                () = cancelled => Ok(None),
            }
        })
    }

    async fn answer_sql(&self, query: &str, format: &str) -> Result<Vec<u8>, RuntimeError> {
        match &self.backend {
            Backend::DataDir(offline) => {
                let answers = &offline.queries;
                let answer = answers.ask(ClientId::default(), query).await?;
                self.report_pending(Some(answer.as_of.pending));
                let whole = answers.write(answer, Format::parse(format)?).await?;
                whole
                    .into_bytes()
                    .map_err(|e| RuntimeError::Failed(e.to_string()))
            }
            Backend::Server(server) => {
                let body = serde_json::json!({"sql": query, "format": format});
                server.post_for_bytes("sql", &body).await
            }
        }
    }
}

/// Percent-encodes a parameter's value.
fn encode(value: &str) -> String {
    value
        .bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                (b as char).to_string()
            }
            _ => format!("%{b:02X}"),
        })
        .collect()
}
