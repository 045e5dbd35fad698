//! Where `weir generate` and `weir replay` send records: stdout, a file, a topic of Kafka, HTTP, or
//! the clients of a server of their own.

mod kafka;

use std::io::{BufWriter, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use reqwest::StatusCode;

use self::kafka::{TopicAddress, TopicProducer};
use super::client;
use super::progress::{Progress, Unit, line};
use super::{Global, output, tokio_runtime};
use crate::generator::PATH;
use crate::runtime::RuntimeError;
use crate::server::upstream::{History, Upstream};

/// Records of one POST.
const POST_RECORDS: usize = 1_000;

/// Where records go.
#[derive(Debug, Args)]
pub struct Destination {
    /// Write to a file instead of stdout.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["post", "serve", "to"])]
    file: Option<PathBuf>,
    /// Send to a topic of Kafka: kafka://HOST:PORT/TOPIC, several brokers separated by commas. Ends
    /// when the broker has confirmed every record.
    #[arg(long, value_name = "URL", conflicts_with_all = ["post", "serve"])]
    to: Option<TopicAddress>,
    /// Key of the messages sent to Kafka: a member of the record, or a path such as
    /// venue.venue_id. A record without it has no key.
    #[arg(long, value_name = "FIELD", requires = "to")]
    key: Option<String>,
    /// Send to this address by HTTP POST, 1,000 records at a time, with the token in WEIR_TOKEN.
    #[arg(long, value_name = "URL", conflicts_with = "serve")]
    post: Option<String>,
    /// Serve a websocket, NDJSON and server-sent events at /2/… of this address.
    #[arg(long, value_name = "ADDRESS")]
    serve: Option<SocketAddr>,
}

impl Destination {
    /// A bar, unless the records themselves go to the terminal.
    pub fn progress(&self, global: &Global, what: &str, unit: Unit) -> Progress {
        let is_stdout =
            self.file.is_none() && self.to.is_none() && self.post.is_none() && self.serve.is_none();
        if is_stdout && std::io::stdout().is_terminal() {
            return Progress::hidden();
        }
        Progress::new(global, what, unit)
    }
}

/// Where records are written.
pub enum Output {
    Writer(BufWriter<Box<dyn Write>>),
    Kafka(Box<TopicProducer>),
    Post {
        client: reqwest::Client,
        url: String,
        pending: Vec<u8>,
        count: usize,
        runtime: tokio::runtime::Runtime,
    },
    Serve {
        upstream: Upstream,
        runtime: tokio::runtime::Runtime,
    },
}

impl Output {
    /// `history` has the records from the first one on, where they can be read again.
    pub fn open(to: &Destination, history: Option<History>) -> Result<Self, RuntimeError> {
        let failed = |e: String| RuntimeError::Failed(e);
        if let Some(address) = to.serve {
            let (runtime, upstream) = (tokio_runtime()?, Upstream::new(history));
            let bound = runtime
                .block_on(upstream.clone().serve(address, PATH))
                .map_err(|e| failed(format!("{address}: {e}; choose another port")))?;
            eprintln!("weir: serving ws://{bound}{PATH} and http://{bound}{PATH}");
            return Ok(Self::Serve { upstream, runtime });
        }
        if let Some(address) = &to.to {
            let topic = TopicProducer::open(address, to.key.as_deref());
            let topic = topic.map_err(|e| failed(e.to_string()))?;
            return Ok(Self::Kafka(Box::new(topic)));
        }
        if let Some(url) = &to.post {
            let client = reqwest::Client::builder()
                .no_proxy()
                .build()
                .map_err(|e| failed(e.to_string()))?;
            return Ok(Self::Post {
                client,
                url: url.clone(),
                pending: Vec::new(),
                count: 0,
                runtime: tokio_runtime()?,
            });
        }
        let writer: Box<dyn Write> = match &to.file {
            Some(path) => Box::new(
                std::fs::File::create(path)
                    .map_err(|e| failed(format!("{}: {e}; name another file", path.display())))?,
            ),
            None => Box::new(std::io::stdout()),
        };
        Ok(Self::Writer(BufWriter::with_capacity(1 << 20, writer)))
    }

    /// Whether records are sent when they are due by default: what stores them takes them as fast
    /// as possible.
    pub fn is_paced(&self) -> bool {
        matches!(self, Self::Post { .. } | Self::Serve { .. })
    }

    /// Writes one record; `mtime` is when it was changed last, in ms since 1970.
    pub fn send(&mut self, mtime: i64, record: &str) -> Result<(), RuntimeError> {
        match self {
            Self::Writer(writer) => {
                let written = writer
                    .write_all(record.as_bytes())
                    .and_then(|()| writer.write_all(b"\n"));
                output::check_written(written)
            }
            Self::Kafka(sink) => {
                let sent = sink.send(record);
                sent.map_err(|e| RuntimeError::Failed(e.to_string()))
            }
            Self::Serve { upstream, .. } => {
                upstream.send(mtime, record);
                Ok(())
            }
            Self::Post { pending, count, .. } => {
                pending.extend_from_slice(record.as_bytes());
                pending.push(b'\n');
                *count += 1;
                if *count >= POST_RECORDS {
                    self.flush()
                } else {
                    Ok(())
                }
            }
        }
    }

    /// Lets this much time pass until the next record; pending records are sent first.
    pub fn wait(&mut self, time: Duration) -> Result<(), RuntimeError> {
        if let Self::Kafka(sink) = self {
            // It sends by itself, and takes reports of what was delivered.
            sink.wait(time);
            return Ok(());
        }
        self.flush()?;
        std::thread::sleep(time);
        Ok(())
    }

    /// The last record was sent: sends what is pending. What is sent to Kafka is confirmed by the
    /// end of this, and clients of the server have read it.
    pub fn finish(&mut self) -> Result<(), RuntimeError> {
        if let Self::Kafka(sink) = self {
            let report = sink.finish();
            let report = report.map_err(|e| RuntimeError::Failed(e.to_string()))?;
            line(&format!("weir: {report}"));
            return Ok(());
        }
        self.flush()?;
        if let Self::Serve { upstream, runtime } = self {
            runtime.block_on(upstream.finish());
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), RuntimeError> {
        match self {
            Self::Writer(writer) => output::check_written(writer.flush()),
            Self::Serve { .. } | Self::Kafka(_) => Ok(()),
            Self::Post {
                client,
                url,
                pending,
                count,
                runtime,
            } => {
                *count = 0;
                let body = std::mem::take(pending);
                if body.is_empty() {
                    return Ok(());
                }
                runtime.block_on(post(client, url, body))
            }
        }
    }
}

/// Sends records, with the token of the environment.
async fn post(client: &reqwest::Client, url: &str, body: Vec<u8>) -> Result<(), RuntimeError> {
    let failed = |e: reqwest::Error| {
        RuntimeError::Failed(format!(
            "{e}; check that a server listens there, for example by `weir status`"
        ))
    };
    let request = client
        .post(url)
        .header("content-type", "application/x-ndjson")
        .body(body);
    let request = match client::token() {
        Some(token) => request.bearer_auth(token),
        None => request,
    };
    let response = request.send().await.map_err(failed)?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    // Without a body the status has to do.
    let body = response.bytes().await.unwrap_or_default();
    Err(RuntimeError::Failed(refused(url, status, &body)))
}

/// Why a server did not take records, from its answer, and what to do.
fn refused(url: &str, status: StatusCode, body: &[u8]) -> String {
    let answer: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let reason = answer["error"]["message"].as_str().unwrap_or_default();
    let reason = if reason.is_empty() {
        String::new()
    } else {
        format!(": {reason}")
    };
    let step = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            "; set WEIR_TOKEN to a token that may write, which `weir token create` creates"
        }
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
            "; the path to post to is /api/v1/streams/STREAM/events"
        }
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            "; try again in a moment"
        }
        status if status.is_redirection() => "; post to the address that it names",
        status if status.is_server_error() => "; the server's log has more",
        _ => "",
    };
    format!("{url}: the server answered {status}{reason}{step}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_its_reason_and_the_next_step() {
        let body = br#"{"error": {"code": "unauthorized", "message": "a token is missing"}}"#;
        for (status, body, expected) in [
            (
                StatusCode::UNAUTHORIZED,
                &body[..],
                "http://a: the server answered 401 Unauthorized: a token is missing; set WEIR_TOKEN to a token that may write, which `weir token create` creates",
            ),
            (
                StatusCode::FORBIDDEN,
                b"",
                "http://a: the server answered 403 Forbidden; set WEIR_TOKEN to a token that may write, which `weir token create` creates",
            ),
            (
                StatusCode::BAD_REQUEST,
                b"not JSON",
                "http://a: the server answered 400 Bad Request",
            ),
        ] {
            assert_eq!(refused("http://a", status, body), expected);
        }
    }
}
