//! Where query verbs get their answers: from the running server, or from the folder itself,
//! read-only.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Global, tls, tokio_runtime};
use crate::config::Config;
use crate::event::Lsn;
use crate::query::ClientId;
use crate::query::encode::Format;
use crate::runtime::RuntimeError;
use crate::runtime::data_dir::{Address, DataDir};
use crate::runtime::offline::Offline;
use crate::runtime::query_service::Params;
use crate::server::FOLDER_KEY;

/// How long a server may take to say that it is there.
const HELLO: Duration = Duration::from_secs(10);

/// How long a process may wait for the folder, and how long it may take from there to answer.
const GIVES_WAY: Duration = Duration::from_secs(60);
const STARTS: Duration = Duration::from_secs(10);
const TRY_EVERY: Duration = Duration::from_millis(50);

/// Something that answers.
pub struct QueryTarget {
    runtime: tokio::runtime::Runtime,
    place: Place,
    /// What brings in records that a stopped folder's views lack.
    way_on: &'static str,
}

enum Place {
    Server(Server),
    DataDir(Box<Offline>),
}

impl Place {
    /// A server that answers, or the folder itself. Where a process waits for the folder, it goes
    /// first and is asked when it is there.
    fn find(config: &Config, runtime: &tokio::runtime::Runtime) -> Result<Self, RuntimeError> {
        let begun = Instant::now();
        let mut gave_way: Option<Instant> = None;
        loop {
            if let Some(server) = runtime.block_on(Server::find(config)) {
                return Ok(Self::Server(server));
            }
            match Offline::open(config, runtime.handle()) {
                Ok(offline) => return Ok(Self::DataDir(Box::new(offline))),
                Err(RuntimeError::InUse(reason)) => {
                    if DataDir::existing(&config.data).is_ok_and(|folder| folder.is_wanted()) {
                        gave_way = Some(Instant::now());
                    }
                    if begun.elapsed() >= GIVES_WAY
                        || gave_way.is_none_or(|at| at.elapsed() >= STARTS)
                    {
                        return Err(RuntimeError::InUse(reason));
                    }
                }
                Err(error) => return Err(error),
            }
            std::thread::sleep(TRY_EVERY);
        }
    }
}

/// A server that works on the data folder.
pub struct Server {
    client: reqwest::Client,
    url: String,
    token: Option<String>,
    folder_key: String,
}

impl Server {
    /// The server that works on this data folder, if one answers; a stale address is ignored.
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
        let hello = client
            .get(format!("{url}/healthz"))
            .timeout(HELLO)
            .send()
            .await
            .ok()?;
        let body: Value = hello.json().await.ok()?;
        (body["pid"].as_u64() == Some(address.pid.into())).then(|| Self {
            client,
            url,
            token: std::env::var("WEIR_TOKEN").ok(),
            folder_key: address.key.clone(),
        })
    }

    /// Asks `GET /api/v1/<what>`.
    async fn get(&self, what: &str, params: &Params) -> Result<Value, RuntimeError> {
        let query: Vec<String> = params
            .iter()
            .map(|(k, v)| format!("{k}={}", encode(v)))
            .collect();
        let answer = self
            .send(
                self.client
                    .get(format!("{}/api/v1/{what}?{}", self.url, query.join("&"))),
            )
            .await?;
        self.json(&answer)
    }

    /// Asks `POST /api/v1/<what>`.
    pub async fn post(&self, what: &str, body: &Value) -> Result<Value, RuntimeError> {
        let answer = self.post_for_bytes(what, body).await?;
        self.json(&answer)
    }

    /// The last record that is synced.
    pub async fn synced_lsn(&self) -> Result<Lsn, RuntimeError> {
        let status = self.get("status", &Params::default()).await?;
        let message = || {
            RuntimeError::Failed(format!(
                "{}: its status does not tell how far its log is",
                self.url
            ))
        };
        status["synced_lsn"].as_u64().ok_or_else(message)
    }

    async fn post_for_bytes(&self, what: &str, body: &Value) -> Result<Vec<u8>, RuntimeError> {
        self.send(
            self.client
                .post(format!("{}/api/v1/{what}", self.url))
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
        let place = Place::find(&config, &runtime)?;
        let way_on = if config.path.is_some() {
            "weir run --once"
        } else {
            "weir demo"
        };
        Ok(Self {
            runtime,
            place,
            way_on,
        })
    }

    fn tell_pending(&self, pending: Option<u64>) {
        if let Some(pending @ 1..) = pending {
            eprintln!(
                "weir: {pending} accepted records are not in this answer yet; `{}` brings them in",
                self.way_on
            );
        }
    }

    /// Asks `/api/v1/<what>`; of a window by the parameter `name`.
    pub fn ask(&self, what: &str, params: &Params) -> Result<Value, RuntimeError> {
        match &self.place {
            Place::DataDir(offline) => {
                let answers = &offline.answers;
                let answer = self.runtime.block_on(async {
                    match what {
                        "count" => answers.count(params).await?.into_value(),
                        "search" => answers.search(params).await?.into_value(),
                        "nearby" => answers.nearby(params).await?.into_value(),
                        "windows" => answers.windows(params).await?.into_value(),
                        _ => Ok(answers.status()),
                    }
                });
                let answer = answer?;
                self.tell_pending(answer["as_of"]["pending"].as_u64());
                Ok(answer)
            }
            Place::Server(server) => {
                let mut params = params.clone();
                let what = params
                    .remove("name")
                    .map_or(what.to_owned(), |name| format!("{what}/{}", encode(&name)));
                self.runtime.block_on(server.get(&what, &params))
            }
        }
    }

    /// Runs SQL; the answer in this format's bytes (`json`, `ndjson`, `csv`).
    pub fn sql(&self, query: &str, format: &str) -> Result<Vec<u8>, RuntimeError> {
        match &self.place {
            Place::DataDir(offline) => {
                let answers = &offline.answers;
                let answer = self
                    .runtime
                    .block_on(answers.ask(ClientId::default(), query))?;
                self.tell_pending(Some(answer.as_of.pending));
                let whole = self
                    .runtime
                    .block_on(answers.write(answer, Format::parse(format)?))?;
                whole
                    .into_bytes()
                    .map_err(|e| RuntimeError::Failed(e.to_string()))
            }
            Place::Server(server) => {
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
