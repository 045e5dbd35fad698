//! `weir sql`: a query, from the argument or standard input.

use std::io::Read;

use clap::Args;
use serde_json::json;

use super::ask::Folder;
use super::{Format, Global, output};
use crate::query::sql;
use crate::runtime::RuntimeError;

#[derive(Debug, Args)]
pub struct Sql {
    /// The query; `-` or nothing reads it from standard input.
    query: Option<String>,
}

impl Sql {
    pub fn run(&self, global: &Global) -> Result<(), RuntimeError> {
        let query = match self.query.as_deref() {
            Some("-") | None => {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).map_err(|e| RuntimeError::Failed(format!("stdin: {e}")))?;
                text
            }
            Some(query) => query.to_owned(),
        };
        let format = global.format();
        let folder = Folder::open(global)?;
        let answer = folder.sql(&query)?;
        let lines = sql::to_ndjson(&answer.schema, &answer.batches)?;
        match format {
            Format::Ndjson => return output::write(&lines),
            Format::Csv => return output::write(&sql::to_csv(&answer.schema, &answer.batches)?),
            Format::Json | Format::Table => {}
        }
        let rows = lines
            .split(|b| *b == b'\n')
            .filter(|line| !line.is_empty())
            .map(serde_json::from_slice::<serde_json::Value>)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| RuntimeError::Failed(e.to_string()))?;
        output::answer(&json!({"rows": rows, "as_of": answer.as_of}), "rows", format)
    }
}
