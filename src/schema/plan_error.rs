//! Why a declaration's SQL is refused, and where in its text.

use std::fmt;

use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::ast::Spanned;
use datafusion::sql::sqlparser::tokenizer::{
    Location as Start, Span, Token, TokenWithSpan, Tokenizer,
};

use super::dialect::WeirDialect;
use super::hints;
use crate::config::Location;

/// What is wrong, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanError {
    pub message: String,
    /// Where in the SQL's text, as far as that is known.
    pub at: Option<Location>,
    /// Words of which the first that occurs in the text is where to look.
    words: Vec<String>,
}

impl From<String> for PlanError {
    fn from(message: String) -> Self {
        Self {
            message,
            at: None,
            words: Vec::new(),
        }
    }
}

impl From<&str> for PlanError {
    fn from(message: &str) -> Self {
        message.to_owned().into()
    }
}

/// The planner's message without its internals.
impl From<DataFusionError> for PlanError {
    fn from(error: DataFusionError) -> Self {
        Self::of(&error)
    }
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Some(Location { line, column }) => {
                write!(f, "line {line}, column {column}: {}", self.message)
            }
            None => f.write_str(&self.message),
        }
    }
}

impl PlanError {
    /// Where the first of these words stands.
    pub fn about(words: &[&str], message: impl Into<String>) -> Self {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        Self {
            message: message.into(),
            at: None,
            words,
        }
    }

    /// Where a part of the parsed statement stands.
    pub fn at(part: &impl Spanned, message: impl Into<String>) -> Self {
        Self::from(message.into()).placed(part.span())
    }

    /// Behind a part of the parsed statement.
    pub fn after(part: &impl Spanned, message: impl Into<String>) -> Self {
        let at = location(part.span().end);
        Self {
            at,
            ..Self::from(message.into())
        }
    }

    /// Where this part stands, if it knows.
    pub fn placed(self, span: Span) -> Self {
        Self {
            at: location(span.start).or(self.at),
            ..self
        }
    }

    /// The planner's message without its internals.
    pub fn of(error: &DataFusionError) -> Self {
        let error = error.iter().next().unwrap_or(error);
        let (text, mut at) = match error.diagnostic() {
            Some(diagnostic) => {
                let help = diagnostic
                    .helps
                    .first()
                    .map_or(String::new(), |h| format!("; {}", h.message));
                let at = diagnostic
                    .span
                    .map(|span| span.start)
                    .filter(|start| start.line > 0);
                let at = at.map(|at| Location {
                    line: at.line as usize,
                    column: at.column as usize,
                });
                (format!("{}{help}", diagnostic.message), at)
            }
            None => match error.find_root() {
                DataFusionError::SQL(parser, _) => (parser.to_string(), None),
                DataFusionError::External(exceeded) => (exceeded.to_string(), None),
                other => (other.message().into_owned(), None),
            },
        };
        let text = told_better(error).unwrap_or(text);
        let mut message = text.strip_prefix("sql parser error: ").unwrap_or(&text);
        // The parser tells its place at the end of its message.
        if let Some((before, place)) = message.rsplit_once(" at Line: ")
            && let Some((line, column)) = place.split_once(", Column: ")
            && let (Ok(line), Ok(column)) = (line.parse(), column.parse())
        {
            (message, at) = (before, Some(Location { line, column }));
        }
        Self {
            message: without_syntax_tree(message).to_owned(),
            at,
            words: Vec::new(),
        }
    }

    pub fn map(self, message: impl FnOnce(String) -> String) -> Self {
        Self {
            message: message(self.message),
            ..self
        }
    }

    /// Finds its words in the SQL, if its place is not known otherwise.
    pub fn within(mut self, sql: &str) -> Self {
        if self.at.is_none() {
            self.at = self.words.iter().find_map(|word| find(sql, word));
        }
        self
    }

    /// Of a refusal of SQL that was made from other SQL: the same word there.
    pub fn moved(self, made: &str, from: &str) -> Self {
        let word = self.at.and_then(|at| {
            let is_there = |token: &TokenWithSpan| location(token.span.start) == Some(at);
            tokens(made)
                .into_iter()
                .find(is_there)
                .map(|token| token.token.to_string())
        });
        Self {
            at: word.and_then(|word| find(from, &word)),
            ..self
        }
        .within(from)
    }

    /// Of a refusal of SQL that has so many bytes before the text that was written, in its first
    /// line.
    pub fn behind(mut self, bytes: usize) -> Self {
        if let Some(at) = self.at.as_mut().filter(|at| at.line == 1) {
            at.column = at.column.saturating_sub(bytes).max(1);
        }
        self
    }
}

/// Of a name that does not exist, which ones there are.
fn told_better(error: &DataFusionError) -> Option<String> {
    match error.find_root() {
        DataFusionError::SchemaError(inner, _) => {
            let SchemaError::FieldNotFound {
                field,
                valid_fields,
            } = inner.as_ref()
            else {
                return None;
            };
            if valid_fields.is_empty() {
                return Some(format!(
                    "`{}` is no column, as nothing is read: `from …` is missing",
                    field.name
                ));
            }
            let names: Vec<&str> = valid_fields
                .iter()
                .map(|column| column.name.as_str())
                .collect();
            let meant = hints::nearest(&field.name, &names)
                .map(|meant| format!("did you mean `{meant}`? "));
            let known = names.join(", ");
            Some(format!(
                "`{}` is no column; {}there are {known}",
                field.name,
                meant.unwrap_or_default()
            ))
        }
        other => hints::of_function(&other.message()),
    }
}

/// Some of the planner's messages end with a dump of the parsed statement, for which nobody asked.
fn without_syntax_tree(message: &str) -> &str {
    let end = message
        .find("Span(Location(")
        .and_then(|at| message[..at].find(['{', '(', '[']));
    end.map_or(message, |end| {
        message[..end].trim_end_matches(|c: char| !c.is_alphanumeric())
    })
}

/// Parts without a place lie at line 0.
fn location(place: Start) -> Option<Location> {
    (place.line > 0).then_some(Location {
        line: place.line as usize,
        column: place.column as usize,
    })
}

fn tokens(sql: &str) -> Vec<TokenWithSpan> {
    Tokenizer::new(&WeirDialect, sql)
        .tokenize_with_location()
        .unwrap_or_default()
}

/// Where a word stands in SQL, neither in a text nor in a comment. The first word of all only says
/// that this is a `select`.
fn find(sql: &str, word: &str) -> Option<Location> {
    let is_word = |token: &&TokenWithSpan, is_exact: bool| match &token.token {
        Token::Word(found) if is_exact => found.value == word,
        Token::Word(found) => found.value.eq_ignore_ascii_case(word),
        other => other.to_string() == word,
    };
    let tokens = tokens(sql);
    let first = tokens
        .iter()
        .position(|token| matches!(token.token, Token::Word(_)))
        .unwrap_or(0);
    let found = [true, false]
        .into_iter()
        .find_map(|exact| tokens.iter().skip(first + 1).find(|t| is_word(t, exact)));
    found.and_then(|token| location(token.span.start))
}
