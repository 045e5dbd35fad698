//! Locations in the text of a configuration file, for messages that point there.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::DeTable;

use super::ConfigError;

/// Line and column, in characters, of a text, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// The line, as editors count them.
    pub line: usize,
    /// The character in the line.
    pub column: usize,
}

/// A text with its name.
pub(super) struct SourceText<'a> {
    pub path: &'a Path,
    pub text: &'a str,
}

impl SourceText<'_> {
    /// An error at a line, or in the whole file.
    pub fn error(&self, line: Option<usize>, message: String) -> ConfigError {
        ConfigError {
            path: self.path.to_owned(),
            line,
            column: None,
            message,
        }
    }

    /// An error at the start of a range of bytes.
    pub fn error_at(&self, span: Option<Range<usize>>, message: String) -> ConfigError {
        match span {
            Some(span) => self.located(self.location(span.start), message),
            None => self.error(None, message),
        }
    }

    /// An error at a line and column.
    pub fn located(&self, at: Location, message: String) -> ConfigError {
        ConfigError {
            path: self.path.to_owned(),
            line: Some(at.line),
            column: Some(at.column),
            message,
        }
    }

    /// The first line that starts with `prefix`, from 1.
    pub fn line_of(&self, prefix: &str) -> Option<usize> {
        self.text
            .lines()
            .position(|l| l.trim_start().starts_with(prefix))
            .map(|n| n + 1)
    }

    /// Line and column of a byte offset.
    fn location(&self, at: usize) -> Location {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Location {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    /// Bytes of a key's value, or of its `item` if it is a list.
    pub fn value(&self, path: &[&str], item: Option<usize>) -> Option<Range<usize>> {
        let root = DeTable::parse(self.text).ok()?;
        let (first, rest) = path.split_first()?;
        let mut value = root.get_ref().get(*first)?;
        for key in rest {
            value = value.get_ref().as_table()?.get(*key)?;
        }
        let listed = item.and_then(|item| value.get_ref().as_array()?.get(item));
        Some(listed.map_or_else(|| value.span(), Spanned::span))
    }

    /// The location in the file of a location in a value that is a text.
    ///
    /// Line 1, column 8 of `"""select 1"""` at 5:7 is 5:17; if the text began with a newline, which
    /// TOML drops, it would be 6:8.
    pub fn inside(&self, value: Range<usize>, at: Option<Location>) -> Location {
        let start = self.location(value.start);
        let Some(at) = at else { return start };
        let literal = self.text.get(value).unwrap_or_default();
        let quotes = if literal.starts_with("\"\"\"") || literal.starts_with("'''") {
            3
        } else {
            1
        };
        let rest = literal.get(quotes..).unwrap_or_default();
        // A newline right after three quotes is not part of the text.
        if quotes == 3 && rest.trim_start_matches('\r').starts_with('\n') {
            return Location {
                line: start.line + at.line,
                column: at.column,
            };
        }
        let column = if at.line == 1 {
            start.column + quotes + at.column - 1
        } else {
            at.column
        };
        Location {
            line: start.line + at.line - 1,
            column,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_in_texts_are_located_in_the_file() {
        for (text, expected) in [
            ("a = \"select x\"", (1, 13)),
            ("\na = \"\"\"select x\"\"\"", (2, 15)),
            ("a = \"\"\"\nselect x\"\"\"", (2, 8)),
        ] {
            let path = Path::new("weir.toml");
            let source = SourceText { path, text };
            let value = source.value(&["a"], None).expect("the key");
            let at = source.inside(value, Some(Location { line: 1, column: 8 }));
            assert_eq!((at.line, at.column), expected, "{text}");
        }
    }
}
