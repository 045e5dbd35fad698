//! How results are written to stdout.

use std::io::{self, IsTerminal, Write};

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{ContentArrangement, Table};
use serde_json::Value;

use crate::runtime::RuntimeError;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Table,
    Json,
    Ndjson,
    Csv,
}

impl Format {
    pub fn default_for_stdout() -> Self {
        if io::stdout().is_terminal() {
            Self::Table
        } else {
            Self::Json
        }
    }
}

/// Writes to stdout; on a closed pipe the process exits with 0.
pub fn write(bytes: &[u8]) -> Result<(), RuntimeError> {
    check_written(try_write(bytes))
}

/// Writes to stdout; for what [`check_written`] judges later.
pub fn try_write(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush())
}

/// The result of writing to stdout; on a closed pipe the process exits with 0.
pub fn check_written(result: io::Result<()>) -> Result<(), RuntimeError> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => result.map_err(|e| RuntimeError::Failed(format!("stdout: {e}"))),
    }
}

/// Writes an answer: all of it as JSON, else the rows in its member `rows`.
pub fn answer(answer: &Value, rows: &str, format: Format) -> Result<(), RuntimeError> {
    let list = answer[rows].as_array().map_or(&[][..], Vec::as_slice);
    let text = match format {
        Format::Json => format!("{answer}\n"),
        Format::Ndjson => list.iter().map(|row| format!("{row}\n")).collect(),
        Format::Csv => csv(list),
        Format::Table => format!("{}\n", table(list)),
    };
    write(text.as_bytes())
}

fn columns(rows: &[Value]) -> Vec<String> {
    let mut columns: Vec<String> = Vec::new();
    for row in rows.iter().filter_map(Value::as_object) {
        for key in row.keys() {
            if !columns.contains(key) {
                columns.push(key.clone());
            }
        }
    }
    columns
}

fn csv(rows: &[Value]) -> String {
    let columns = columns(rows);
    let quote = |text: String| {
        if text.contains([',', '"', '\n', '\r']) {
            format!("\"{}\"", text.replace('"', "\"\""))
        } else {
            text
        }
    };
    let line =
        |cells: Vec<String>| cells.into_iter().map(quote).collect::<Vec<_>>().join(",") + "\n";
    let head = line(columns.clone());
    rows.iter().fold(head, |out, row| {
        out + &line(columns.iter().map(|c| cell(&row[c])).collect())
    })
}

/// Rows as a table that fits the terminal.
pub fn table(rows: &[Value]) -> String {
    let columns = columns(rows);
    let mut table = Table::new();
    table
        .load_preset(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(columns.iter().map(|name| printable(name)));
    for row in rows {
        table.add_row(columns.iter().map(|c| printable(&cell(&row[c]))));
    }
    table.to_string()
}

/// Rows one below the other, a line for each value.
pub fn records(rows: &[Value]) -> String {
    let columns = columns(rows);
    let width = columns.iter().map(|c| c.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for (n, row) in rows.iter().enumerate() {
        out += &format!("-[ row {} ]-\n", n + 1);
        for column in &columns {
            let (name, value) = (printable(column), printable(&cell(&row[column])));
            out += &format!("{name:width$} | {value}\n");
        }
    }
    out
}

/// The value of a cell: texts without quotes, nothing for null.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Writes a message to stderr: it may quote an event.
pub fn message(text: &str) {
    eprintln!("{}", printable(text));
}

/// The text without control characters, which the terminal might obey; a tab is a space.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' => c,
            '\t' => ' ',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn control_characters_are_replaced() {
        assert_eq!(printable("a\tb\nc\u{1b}d"), "a b\nc\u{fffd}d");
    }

    #[test]
    fn records_show_a_line_for_each_value() {
        let rows = [
            json!({"n": 1, "name": "a\u{1b}[2Jb"}),
            json!({"n": 2, "name": null}),
        ];
        assert_eq!(
            records(&rows),
            "-[ row 1 ]-\nn    | 1\nname | a\u{fffd}[2Jb\n-[ row 2 ]-\nn    | 2\nname | \n"
        );
        assert_eq!(records(&[]), "");
    }
}
