//! What is wrong with a configuration: where, what, and what to do.

use std::path::PathBuf;

use super::location::Location;

/// An error in the configuration file, displayed as `PATH:LINE:COLUMN: MESSAGE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file; `weir.toml` where there is none.
    pub path: PathBuf,
    /// From 1; none where the error is not at one place, such as a value of the environment.
    pub line: Option<usize>,
    /// In characters, from 1.
    pub column: Option<usize>,
    /// What is wrong, and what to do.
    pub message: String,
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let part = |number: Option<usize>| number.map_or(String::new(), |n| format!(":{n}"));
        write!(
            f,
            "{}{}{}: {}",
            self.path.display(),
            part(self.line),
            part(self.column),
            self.message
        )
    }
}

impl std::error::Error for ConfigError {}

/// Where in a value something is wrong: which item of a list, and where in its text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ValueLocation {
    /// The item of a list, from 0.
    pub item: Option<usize>,
    /// The location in the text.
    pub text: Option<Location>,
}

/// Keys and values that have another name now.
const RENAMED: [(&str, &str); 3] = [
    ("repeat", "duplicates"),
    ("what", "track"),
    ("amend", "update"),
];

/// Adds the next step to a message of the parser.
pub(super) fn with_next_step(message: &str) -> String {
    let is_unknown = |word: &str| {
        message.starts_with(&format!("unknown field `{word}`"))
            || message.starts_with(&format!("unknown variant `{word}`"))
    };
    if let Some((old, new)) = RENAMED.iter().find(|(old, _)| is_unknown(old)) {
        format!("`{old}` is now called `{new}`; rename it")
    } else if message.starts_with("unknown field") {
        format!("{message}; remove the key or fix the spelling")
    } else {
        message.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_words_get_a_next_step() {
        for (message, expected) in [
            (
                "unknown field `repeat`, expected one of `a`, `b`",
                "`repeat` is now called `duplicates`; rename it",
            ),
            (
                "unknown variant `amend`, expected `drop` or `update`",
                "`amend` is now called `update`; rename it",
            ),
            (
                "unknown field `repeats`, expected `a`",
                "unknown field `repeats`, expected `a`; remove the key or fix the spelling",
            ),
            ("invalid type: integer", "invalid type: integer"),
        ] {
            assert_eq!(with_next_step(message), expected);
        }
    }
}
