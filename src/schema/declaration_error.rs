//! What is wrong with a declaration, and where in the configuration's file.

use std::fmt;

use super::PlanError;
use crate::config::{Config, ConfigError, ValueLocation};

/// [`DeclarationError::key`] of an error in a window.
pub const WINDOW_KEY: &str = "sql";
/// [`DeclarationError::key`] of an error in an entity table's `select`.
pub const TABLE_KEY: &str = "table";

/// An error in a declaration: the key that is wrong, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclarationError {
    /// Name of the stream; for [`WINDOW_KEY`] of the window, for [`TABLE_KEY`] of the table.
    pub name: String,
    /// The key whose value is wrong: one of a stream's, [`WINDOW_KEY`] or [`TABLE_KEY`].
    pub key: &'static str,
    /// Which item of the key's list.
    pub item: Option<usize>,
    /// What is wrong with the value, and where in it.
    pub error: Box<PlanError>,
}

impl DeclarationError {
    /// An error in the whole value of a key.
    pub fn new(name: &str, key: &'static str, error: impl Into<PlanError>) -> Self {
        Self {
            name: name.to_owned(),
            key,
            item: None,
            error: Box::new(error.into()),
        }
    }

    /// The same as an error that points into the configuration's file.
    pub fn in_file(self, config: &Config) -> ConfigError {
        let name = self.name.clone();
        let location = ValueLocation {
            item: self.item,
            text: self.error.at,
        };
        let path = match self.key {
            WINDOW_KEY => ["windows", &name, "sql"],
            TABLE_KEY => ["tables", &name, "select"],
            key => ["streams", &name, key],
        };
        // A preset is not in the file, so its location stays in the message.
        let error = if config.has(path) {
            self.without_location()
        } else {
            self
        };
        config.error_in(path, location, error.to_string())
    }

    fn without_location(self) -> Self {
        Self {
            error: Box::new(self.error.message.into()),
            ..self
        }
    }
}

impl fmt::Display for DeclarationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name, key, error, ..
        } = self;
        match *key {
            WINDOW_KEY => write!(f, "window `{name}`: {key}: {error}"),
            TABLE_KEY => write!(f, "table `{name}`: {error}"),
            _ => write!(f, "stream `{name}`: {key}: {error}"),
        }
    }
}
