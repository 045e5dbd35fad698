//! `weir sql`: a query, from the argument or standard input, or the prompt.

use std::io::{IsTerminal, Read};

use clap::Args;

use super::client::QueryTarget;
use super::{Format, Global, output, prompt};
use crate::runtime::RuntimeError;

/// Runs a SQL query; without one, on a terminal, prompts for them.
///
/// The running server answers; without one the data folder is read. The prompt takes statements up
/// to `;` and a few commands, which `\?` lists.
#[derive(Debug, Args)]
pub struct Sql {
    /// The query; `-` reads it from standard input, as does a missing one outside a terminal.
    query: Option<String>,
}

impl Sql {
    pub fn run(&self, global: &Global) -> Result<(), RuntimeError> {
        let is_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let query = match self.query.as_deref() {
            None if is_terminal => return prompt::run(global),
            Some("-") | None => read_stdin()?,
            Some(query) => query.to_owned(),
        };
        let format = global.format();
        let answer = QueryTarget::open(global)?.sql(&query, encoding(format))?;
        let (mut text, _) = display(answer, format, false)?;
        if format == Format::Json {
            text.push(b'\n');
        }
        output::write(&text)
    }
}

fn read_stdin() -> Result<String, RuntimeError> {
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .map_err(|e| RuntimeError::Failed(format!("stdin: {e}; the query must be UTF-8")))?;
    if text.trim().is_empty() {
        return Err(RuntimeError::Config(
            "standard input has no query; write `weir sql \"select …\"`, or run `weir sql` on a terminal for a prompt".into(),
        ));
    }
    Ok(text)
}

/// The name under which the server and the folder encode an answer to be shown so.
pub fn encoding(format: Format) -> &'static str {
    match format {
        Format::Table | Format::Json => "json",
        Format::Ndjson => "ndjson",
        Format::Csv => "csv",
    }
}

/// The text to show of an answer, and its number of rows, where it is known. `is_expanded` shows
/// a table's rows one below the other.
pub fn display(
    answer: Vec<u8>,
    format: Format,
    is_expanded: bool,
) -> Result<(Vec<u8>, Option<usize>), RuntimeError> {
    if format != Format::Table {
        return Ok((answer, None));
    }
    let answer: serde_json::Value =
        serde_json::from_slice(&answer).map_err(|e| RuntimeError::Failed(e.to_string()))?;
    let rows = answer["rows"].as_array().map_or(&[][..], Vec::as_slice);
    let text = if is_expanded {
        output::records(rows)
    } else {
        format!("{}\n", output::table(rows))
    };
    Ok((text.into_bytes(), Some(rows.len())))
}
