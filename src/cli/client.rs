//! Where verbs get their answers: from the running server, or read-only from the data folder.

use std::time::{Duration, Instant};

use serde_json::Value;

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
    runtime: tokio::runtime::Runtime,
    backend: Backend,
    /// The command that ingests records which a stopped folder's views lack.
    catch_up_command: &'static str,
}

enum Backend {
    Server(Server),
    DataDir(Box<Offline>),
}

impl Backend {
    /// A server that answers, or the folder itself. A process that waits for the folder takes
    /// precedence: it is queried once it serves.
    fn find(config: &Config, runtime: &tokio::runtime::Runtime) -> Result<Self, RuntimeError> {
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
                    if started.elapsed() >= YIELD_TIMEOUT
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
            token: std::env::var("WEIR_TOKEN").ok(),
            folder_key: address.key.clone(),
        })
    }

    /// Sends `GET /api/v1/<path>`.
    async fn get(&self, path: &str, params: &Params) -> Result<Value, RuntimeError> {
        let query: Vec<String> = params
            .iter()
            .map(|(k, v)| format!("{k}={}", encode(v)))
            .collect();
        let answer = self
            .send(
                self.client
                    .get(format!("{}/api/v1/{path}?{}", self.url, query.join("&"))),
            )
            .await?;
        self.json(&answer)
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

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Vec<u8>, RuntimeError> {
        let failed = |e: reqwest::Error| RuntimeError::Failed(e.to_string());
        let request = match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let request = request.header(FOLDER_KEY, &self.folder_key);
        let response = request.send().await.map_err(failed)?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(failed)?;
        if status.is_success() {
            return Ok(bytes.to_vec());
        }
        let error: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let message = error["error"]["message"]
            .as_str()
            .map_or_else(|| format!("the server answered {status}"), str::to_owned);
        Err(if status.as_u16() == 400 {
            RuntimeError::Config(message)
        } else {
            RuntimeError::Failed(message)
        })
    }
}

impl QueryTarget {
    pub fn open(global: &Global) -> Result<Self, RuntimeError> {
        let config = global.load()?;
        let runtime = tokio_runtime()?;
        let backend = Backend::find(&config, &runtime)?;
        let catch_up_command = if config.path.is_some() {
            "weir run --once"
        } else {
            "weir demo"
        };
        Ok(Self {
            runtime,
            backend,
            catch_up_command,
        })
    }

    fn report_pending(&self, pending: Option<u64>) {
        if let Some(pending @ 1..) = pending {
            eprintln!(
                "weir: {pending} accepted records are not in this answer yet; `{}` adds them",
                self.catch_up_command
            );
        }
    }

    /// The answer of `/api/v1/<endpoint>`; the parameter `name` is the window's.
    pub fn ask(&self, endpoint: &str, params: &Params) -> Result<Value, RuntimeError> {
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
            Backend::Server(server) => {
                let mut params = params.clone();
                let path = params.remove("name").map_or(endpoint.to_owned(), |name| {
                    format!("{endpoint}/{}", encode(&name))
                });
                self.runtime.block_on(server.get(&path, &params))
            }
        }
    }

    /// Runs SQL; the answer in this format's bytes (`json`, `ndjson`, `csv`).
    pub fn sql(&self, query: &str, format: &str) -> Result<Vec<u8>, RuntimeError> {
        match &self.backend {
            Backend::DataDir(offline) => {
                let answers = &offline.queries;
                let answer = self
                    .runtime
                    .block_on(answers.ask(ClientId::default(), query))?;
                self.report_pending(Some(answer.as_of.pending));
                let whole = self
                    .runtime
                    .block_on(answers.write(answer, Format::parse(format)?))?;
                whole
                    .into_bytes()
                    .map_err(|e| RuntimeError::Failed(e.to_string()))
            }
            Backend::Server(server) => {
                let body = serde_json::json!({"sql": query, "format": format});
                self.runtime.block_on(server.post_for_bytes("sql", &body))
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
