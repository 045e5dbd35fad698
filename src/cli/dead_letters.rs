//! `weir dead-letters`: records that became no event.

use clap::{Args, Subcommand};

use super::ask::Asked;
use super::{Global, output};
use crate::runtime::RuntimeError;

#[derive(Debug, Args)]
pub struct DeadLetters {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The latest, newest first.
    List {
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// Only of this stream.
        #[arg(long)]
        stream: Option<String>,
    },
    /// One whole, with its bytes.
    Show { lsn: u64 },
}

impl DeadLetters {
    pub fn run(&self, global: &Global) -> Result<(), RuntimeError> {
        let query = match &self.what {
            What::List { limit, stream } => {
                let only =
                    stream.as_ref().map_or(String::new(), |s| format!("where stream = '{}'", s.replace('\'', "''")));
                format!(
                    "select lsn, received_at, source, stream, reason from dead_letters {only} order by lsn desc limit {limit}"
                )
            }
            What::Show { lsn } => format!("select * from dead_letters where lsn = {lsn}"),
        };
        let answer = Asked::open(global)?.sql(&query, "json")?;
        let answer: serde_json::Value =
            serde_json::from_slice(&answer).map_err(|e| RuntimeError::Failed(e.to_string()))?;
        if let What::Show { lsn } = &self.what
            && answer["rows"].as_array().is_some_and(Vec::is_empty)
        {
            return Err(RuntimeError::Failed(format!(
                "there is no dead letter {lsn}; `weir dead-letters list` shows them"
            )));
        }
        output::answer(&answer, "rows", global.format())
    }
}
