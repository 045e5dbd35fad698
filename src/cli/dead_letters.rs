//! `weir dead-letters`: rejected records, with their reasons.

use clap::{Args, Subcommand};

use super::client::{QueryTarget, Server};
use super::progress::Spinner;
use super::{Global, output, tokio_runtime};
use crate::runtime::dead_letter_retry::RetryRequest;
use crate::runtime::{Options, Running, RuntimeError};

#[derive(Debug, Args)]
pub struct DeadLetters {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Lists the latest, newest first.
    List {
        /// At most so many.
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// Only of this stream.
        #[arg(long)]
        stream: Option<String>,
    },
    /// Shows one completely, with its bytes.
    Show {
        /// Its record, as `list` names it.
        lsn: Option<u64>,
    },
    /// Ingests those that are valid now, after a schema or a rule was corrected.
    Retry {
        /// Only of this stream.
        #[arg(long)]
        stream: Option<String>,
        /// Only those with exactly this reason.
        #[arg(long)]
        reason: Option<String>,
        /// Only those that arrived at or after this time: RFC 3339, a date, epoch milliseconds,
        /// now-15m.
        #[arg(long, allow_hyphen_values = true)]
        since: Option<String>,
        /// At most this many, the oldest first.
        #[arg(long)]
        limit: Option<usize>,
    },
}

fn retry(global: &Global, question: &RetryRequest) -> Result<(), RuntimeError> {
    let config = global.load_file()?;
    let runtime = tokio_runtime()?;
    let retrying = Spinner::new(global, "retrying dead letters");
    let mut stopped = Ok(());
    let answer = match runtime.block_on(Server::find(&config)) {
        Some(server) => {
            runtime.block_on(server.post("dead-letters/retry", &serde_json::json!(question)))?
        }
        None => {
            let mut running = Running::start(
                &config,
                Options {
                    once: true,
                    ..Options::default()
                },
                runtime.handle(),
            )?;
            let result = running
                .wait_recovered()
                .and_then(|()| runtime.block_on(running.retry()?.run(question)));
            stopped = running.stop();
            match result {
                Ok(answer) => serde_json::json!(answer),
                // Why the pipeline ended says more than that it does not answer.
                Err(_) if stopped.is_err() => return stopped,
                Err(error) => return Err(error),
            }
        }
    };
    drop(retrying);
    // What was retried is shown also where the stop has failed afterwards.
    if global.format() == output::Format::Json {
        output::answer(&answer, "rows", global.format())?;
    } else {
        let rows = serde_json::json!({"rows": [answer]});
        output::answer(&rows, "rows", global.format())?;
    }
    stopped
}

impl DeadLetters {
    pub fn run(&self, global: &Global) -> Result<(), RuntimeError> {
        let query = match &self.action {
            Action::Retry {
                stream,
                reason,
                since,
                limit,
            } => {
                let question = RetryRequest {
                    stream: stream.clone(),
                    reason: reason.clone(),
                    since: since.clone(),
                    limit: *limit,
                };
                return retry(global, &question);
            }
            Action::List { limit, stream } => {
                let filter = stream.as_ref().map_or(String::new(), |s| {
                    format!("where stream = '{}'", s.replace('\'', "''"))
                });
                format!(
                    "select lsn, received_at, source, stream, reason from dead_letters {filter} order by lsn desc limit {limit}"
                )
            }
            Action::Show { lsn: Some(lsn) } => {
                format!("select * from dead_letters where lsn = {lsn}")
            }
            Action::Show { lsn: None } => {
                let step = "`weir dead-letters show LSN` needs the LSN of one; `weir dead-letters list` shows them";
                return Err(RuntimeError::Config(step.into()));
            }
        };
        let answer = QueryTarget::open(global)?.sql(&query, "json")?;
        let answer: serde_json::Value =
            serde_json::from_slice(&answer).map_err(|e| RuntimeError::Failed(e.to_string()))?;
        if let Action::Show { lsn: Some(lsn) } = &self.action
            && answer["rows"].as_array().is_some_and(Vec::is_empty)
        {
            return Err(RuntimeError::Failed(format!(
                "dead letter {lsn} does not exist; `weir dead-letters list` shows them"
            )));
        }
        output::answer(&answer, "rows", global.format())
    }
}
