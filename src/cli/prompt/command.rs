//! Commands of the prompt, which begin with a backslash. Pure.

/// What `\?` shows.
pub const HELP: &str = r"\d              tables
\d TABLE        columns of a table, with their types
\timing         switches the times of queries on or off
\x              switches between a table and a line for each value
\q              ends the prompt, as does Ctrl-D
\?              this list

A statement ends with `;` and may have several lines. Ctrl-C ends the running query, or drops what
was typed. Tab completes keywords, tables, columns and functions; the arrows show earlier statements.";

/// Texts that Tab completes.
pub const NAMES: [&str; 6] = [r"\?", r"\d", r"\q", r"\timing", r"\x", r"\d "];

/// A command.
#[derive(Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Lists the tables.
    Tables,
    /// Lists a table's columns.
    Columns(&'a str),
    /// Switches the times of queries on or off.
    Timing,
    /// Switches between a table and a line for each value.
    Expanded,
    Help,
    Quit,
}

/// Why a line that begins with a backslash is not a command.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCommand {
    #[error(r"`\{0}` takes no argument")]
    Argument(String),
    #[error(r"`\{0}` is not a command; `\?` lists them")]
    Unknown(String),
}

/// The command of a line, or why it is none; `None` for SQL.
pub fn parse(line: &str) -> Option<Result<Command<'_>, InvalidCommand>> {
    let line = line.trim();
    let words = line.trim_end_matches(';').trim_end();
    match words {
        "quit" | "exit" => return Some(Ok(Command::Quit)),
        "help" => return Some(Ok(Command::Help)),
        _ => {}
    }
    let rest = words.strip_prefix('\\')?;
    let (name, argument) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    Some(match (name, argument.trim()) {
        ("d", "") => Ok(Command::Tables),
        ("d", table) => Ok(Command::Columns(table)),
        ("timing", "") => Ok(Command::Timing),
        ("x", "") => Ok(Command::Expanded),
        ("?" | "h" | "help", "") => Ok(Command::Help),
        ("q" | "quit", "") => Ok(Command::Quit),
        ("timing" | "x" | "?" | "h" | "help" | "q" | "quit", _) => {
            Err(InvalidCommand::Argument(name.to_owned()))
        }
        _ => Err(InvalidCommand::Unknown(name.to_owned())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_as_in_psql() {
        for (line, expected) in [
            (r"\d", Some(Ok(Command::Tables))),
            (r"  \d ; ", Some(Ok(Command::Tables))),
            (r"\d s.late", Some(Ok(Command::Columns("s.late")))),
            (r"\timing", Some(Ok(Command::Timing))),
            (r"\x", Some(Ok(Command::Expanded))),
            (r"\?", Some(Ok(Command::Help))),
            (r"\q", Some(Ok(Command::Quit))),
            ("exit;", Some(Ok(Command::Quit))),
            (r"\q now", Some(Err(InvalidCommand::Argument("q".into())))),
            (r"\dt", Some(Err(InvalidCommand::Unknown("dt".into())))),
            ("select 1;", None),
            ("", None),
        ] {
            assert_eq!(parse(line), expected, "{line}");
        }
    }
}
