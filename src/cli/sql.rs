//! `weir sql`: a query, from the argument or standard input.

use std::io::Read;

use clap::Args;

use super::client::QueryTarget;
use super::{Format, Global, output};
use crate::runtime::RuntimeError;

#[derive(Debug, Args)]
pub struct Sql {
    /// The query; read from standard input if it is `-` or missing.
    query: Option<String>,
}

impl Sql {
    pub fn run(&self, global: &Global) -> Result<(), RuntimeError> {
        let query = match self.query.as_deref() {
            Some("-") | None => {
                let mut text = String::new();
                std::io::stdin()
                    .read_to_string(&mut text)
                    .map_err(|e| RuntimeError::Failed(format!("stdin: {e}")))?;
                text
            }
            Some(query) => query.to_owned(),
        };
        let format = global.format();
        let target = QueryTarget::open(global)?;
        let name = match format {
            Format::Table | Format::Json => "json",
            Format::Ndjson => "ndjson",
            Format::Csv => "csv",
        };
        let answer = target.sql(&query, name)?;
        if format != Format::Table {
            return output::write(&answer).and_then(|()| {
                if format == Format::Json {
                    output::write(b"\n")
                } else {
                    Ok(())
                }
            });
        }
        let answer =
            serde_json::from_slice(&answer).map_err(|e| RuntimeError::Failed(e.to_string()))?;
        output::answer(&answer, "rows", format)
    }
}
