//! What the line editor asks while a statement is typed.

use rustyline::completion::Completer;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Context, Helper};

use super::names::Names;
use super::{command, statement};

/// Completes names, and ends the input where a statement ends.
#[derive(Default)]
pub struct SqlHelper {
    /// What Tab completes.
    pub names: Names,
}

impl Helper for SqlHelper {}

impl Completer for SqlHelper {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        pos: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(self.names.complete(line, pos))
    }
}

impl Hinter for SqlHelper {
    type Hint = String;
}

impl Highlighter for SqlHelper {}

impl Validator for SqlHelper {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let text = context.input();
        let is_open = command::parse(text).is_none() && statement::split(text).1;
        Ok(if is_open {
            ValidationResult::Incomplete
        } else {
            ValidationResult::Valid(None)
        })
    }
}
