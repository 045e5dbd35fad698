//! Why a declaration's SQL is rejected, and where in its text.

use std::fmt;

use datafusion::common::{Diagnostic, SchemaError};
use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::ast::Spanned;
use datafusion::sql::sqlparser::tokenizer::{
    Location as ParserLocation, Span, Token, TokenWithSpan, Tokenizer,
};

use super::dialect::WeirDialect;
use super::hints;
use super::wording::{self, Mention};
use crate::config::Location;

/// The planner's diagnostic of operands whose types do not fit.
const INCOMPATIBLE_TYPES: &str = "expressions have incompatible types";

/// What is wrong, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanError {
    /// For people, without a location.
    pub message: String,
    /// Where in the SQL's text, if known.
    pub at: Option<Location>,
    /// Candidates for the location: [`Self::locate_in`] takes the first word that occurs in the
    /// text. Plans have lost the locations of what they were made from.
    words: Vec<String>,
    /// What the planner's message is about: after the words, the first that occurs once.
    mentions: Vec<Mention>,
}

impl From<String> for PlanError {
    fn from(message: String) -> Self {
        Self {
            message,
            at: None,
            words: Vec::new(),
            mentions: Vec::new(),
        }
    }
}

impl From<&str> for PlanError {
    fn from(message: &str) -> Self {
        message.to_owned().into()
    }
}

impl From<DataFusionError> for PlanError {
    fn from(error: DataFusionError) -> Self {
        Self::from_planner(&error)
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
    /// At the first of these words that occurs in the SQL.
    pub fn at_words(words: &[&str], message: impl Into<String>) -> Self {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        Self {
            words,
            ..Self::from(message.into())
        }
    }

    /// At a part of the parsed statement.
    pub fn at(part: &impl Spanned, message: impl Into<String>) -> Self {
        Self::from(message.into()).at_span(part.span())
    }

    /// Right after a part of the parsed statement.
    pub fn after(part: &impl Spanned, message: impl Into<String>) -> Self {
        let at = location(part.span().end);
        Self {
            at,
            ..Self::from(message.into())
        }
    }

    /// At a span, if it has a location.
    pub fn at_span(self, span: Span) -> Self {
        Self {
            at: location(span.start).or(self.at),
            ..self
        }
    }

    /// The planner's message without its internals.
    pub fn from_planner(error: &DataFusionError) -> Self {
        let error = error.iter().next().unwrap_or(error);
        let (text, mut at) = match error.diagnostic() {
            Some(diagnostic) => diagnosed(error, diagnostic),
            None => match error.find_root() {
                DataFusionError::SQL(parser, _) => (parser.to_string(), None),
                DataFusionError::External(exceeded) => (exceeded.to_string(), None),
                other => (other.message().into_owned(), None),
            },
        };
        let worded = wording::reword(&text);
        let text = improve_message(error).unwrap_or(worded.message);
        let mut message = text.as_str();
        // The parser ends its message with the location.
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
            mentions: worded.mentions,
        }
    }

    /// Changes the message, and keeps the location.
    pub fn map(self, message: impl FnOnce(String) -> String) -> Self {
        Self {
            message: message(self.message),
            ..self
        }
    }

    /// Finds its words in the SQL, or what the planner's message is about, unless its location is
    /// known already.
    pub fn locate_in(mut self, sql: &str) -> Self {
        if self.at.is_none() {
            self.at = self.words.iter().find_map(|word| find(sql, word));
        }
        if self.at.is_none() && !self.mentions.is_empty() {
            let tokens = tokens(sql);
            let mut mentions = self.mentions.iter();
            self.at = mentions.find_map(|mention| location(mention.locate(sql, &tokens)?));
        }
        self
    }

    /// Maps its location in `generated` SQL to the same word in the `source` that it was generated
    /// from.
    pub fn remap_location(self, generated: &str, source: &str) -> Self {
        let word = self.at.and_then(|at| {
            let is_at = |token: &TokenWithSpan| location(token.span.start) == Some(at);
            tokens(generated)
                .into_iter()
                .find(is_at)
                .map(|token| token.token.to_string())
        });
        Self {
            at: word.and_then(|word| find(source, &word)),
            ..self
        }
        .locate_in(source)
    }

    /// Moves its location left in the first line, by the bytes that were generated before the
    /// user's text.
    pub fn shift_column(mut self, bytes: usize) -> Self {
        if let Some(at) = self.at.as_mut().filter(|at| at.line == 1) {
            at.column = at.column.saturating_sub(bytes).max(1);
        }
        self
    }
}

/// The text and the location of a diagnostic. That of operands does not name their types, which
/// the error that it belongs to does.
fn diagnosed(error: &DataFusionError, diagnostic: &Diagnostic) -> (String, Option<Location>) {
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
    let text = if diagnostic.message == INCOMPATIBLE_TYPES {
        error.find_root().message().into_owned()
    } else {
        format!("{}{help}", diagnostic.message)
    };
    (text, at)
}

/// A better message than the planner's, if there is one: for an unknown name, what to write.
fn improve_message(error: &DataFusionError) -> Option<String> {
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
                    "`{}` is not a column: nothing is read, `from …` is missing",
                    field.name
                ));
            }
            let names: Vec<&str> = valid_fields
                .iter()
                .map(|column| column.name.as_str())
                .collect();
            let meant = hints::nearest(&field.name, &names)
                .map(|meant| format!("did you mean `{meant}`? "));
            Some(format!(
                "`{}` is not a column; {}available: {}",
                field.name,
                meant.unwrap_or_default(),
                names.join(", ")
            ))
        }
        other => hints::for_function(&other.message()),
    }
}

/// Removes the dump of the parsed statement with which some of the planner's messages end.
fn without_syntax_tree(message: &str) -> &str {
    let end = message
        .find("Span(Location(")
        .and_then(|at| message[..at].find(['{', '(', '[']));
    end.map_or(message, |end| {
        message[..end].trim_end_matches(|c: char| !c.is_alphanumeric())
    })
}

/// The parser gives parts without a location line 0.
fn location(at: ParserLocation) -> Option<Location> {
    (at.line > 0).then_some(Location {
        line: at.line as usize,
        column: at.column as usize,
    })
}

fn tokens(sql: &str) -> Vec<TokenWithSpan> {
    Tokenizer::new(&WeirDialect, sql)
        .tokenize_with_location()
        .unwrap_or_default()
}

/// Location of a word in SQL, outside of strings and comments; an exact match wins over one that
/// ignores case. The statement's first word is skipped: `select` then means a subquery's.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn position(error: &PlanError) -> Option<(usize, usize)> {
        error.at.map(|at| (at.line, at.column))
    }

    #[test]
    fn words_are_located_outside_of_strings_and_comments() {
        let sql = "select 'limit' as a, -- limit\n Limit, \"limit\" from s";
        for (words, expected) in [
            (&["limit"][..], Some((2, 9))),
            (&["LIMIT"], Some((2, 2))),
            (&["offset", "from"], Some((2, 17))),
            (&["select"], None),
            (&[], None),
        ] {
            let error = PlanError::at_words(words, "wrong").locate_in(sql);
            assert_eq!(position(&error), expected, "{words:?}");
        }
    }

    #[test]
    fn locations_in_generated_sql_are_mapped_to_its_source() {
        let (generated, source) = (
            "SELECT item_of_l, lenght(a) FROM s",
            "select unnest(l), lenght(a)",
        );
        let at = Some(Location {
            line: 1,
            column: 19,
        });
        let error = PlanError {
            at,
            ..PlanError::from("wrong")
        };
        assert_eq!(
            position(&error.clone().remap_location(generated, source)),
            Some((1, 19))
        );
        assert_eq!(position(&error.clone().shift_column(7)), Some((1, 12)));
        assert_eq!(position(&error.shift_column(70)), Some((1, 1)));
    }
}
