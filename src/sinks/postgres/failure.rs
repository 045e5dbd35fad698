//! What an error of the database means for the sink. Pure.

use tokio_postgres::error::{DbError, SqlState};

use super::super::SinkError;

/// Why something was not done.
#[derive(Debug, Clone)]
pub enum Failure {
    /// The server said so, and the connection is as good as before.
    Server {
        class: Class,
        text: String,
        /// The constraint that is violated.
        constraint: Option<String>,
    },
    /// The connection is gone, or its state unknown.
    Lost(String),
    /// Not of the database.
    Sink(SinkError),
}

/// What an error of the server means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// It passes.
    Passing,
    /// A row cannot be stored.
    Row,
    /// A row refers to one that is missing.
    ForeignKey,
    /// Somebody must act: what to do.
    Halting(&'static str),
}

impl From<SinkError> for Failure {
    fn from(error: SinkError) -> Self {
        Self::Sink(error)
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(error) = error.as_db_error() {
            return Self::Server {
                class: class(error.code()),
                text: text_of(error),
                constraint: error.constraint().map(str::to_owned),
            };
        }
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        if text.contains("password missing") {
            return Self::Sink(SinkError::Halted(
                "the server asks for a password: name a file with it by password_file, then restart weir".into(),
            ));
        }
        Self::Lost(text)
    }
}

impl Failure {
    /// Whether the session is as good as before, once its transaction is rolled back.
    pub fn leaves_session(&self) -> bool {
        match self {
            Self::Server { class, .. } => *class != Class::Passing,
            Self::Sink(_) => true,
            Self::Lost(_) => false,
        }
    }

    /// What the sink does about it, except for rows and foreign keys.
    pub fn into_sink_error(self) -> SinkError {
        match self {
            Self::Sink(error) => error,
            Self::Lost(text) => SinkError::Unavailable(format!("PostgreSQL: {text}")),
            Self::Server {
                class: Class::Halting(remedy),
                text,
                ..
            } => SinkError::Halted(format!(
                "PostgreSQL: {text}; {remedy}, then run `weir sinks resume NAME`"
            )),
            Self::Server { text, .. } => SinkError::Unavailable(format!("PostgreSQL: {text}")),
        }
    }
}

fn text_of(error: &DbError) -> String {
    // Of these the detail is the row, which does not belong in a log.
    let has_row = matches!(error.code().code(), "23502" | "23514");
    let detail = error.detail().filter(|_| !has_row);
    let detail = detail.map(|detail| format!(" ({detail})"));
    format!(
        "{}{} [SQLSTATE {}]",
        error.message(),
        detail.unwrap_or_default(),
        error.code().code()
    )
}

/// What a SQLSTATE means.
fn class(code: &SqlState) -> Class {
    const PERMISSION: &str = "grant the user what it needs: usage and create on the schema, select, insert, update and delete on its tables";
    match code.code() {
        "23503" => Class::ForeignKey,
        // An index cannot have so long a value, or a page so long a row.
        "54000" => Class::Row,
        "28P01" | "28000" => {
            Class::Halting("check the user in url, the password in password_file and pg_hba.conf")
        }
        "3D000" => Class::Halting("create the database, or name another one in url"),
        "3F000" => Class::Halting("create the schema, or name another one by schema"),
        "42501" => Class::Halting(PERMISSION),
        // A standby, which may become the primary.
        "25006" => Class::Passing,
        code => match code.get(..2) {
            Some("22" | "23") => Class::Row,
            Some("42" | "0A") => Class::Halting("repair the database"),
            _ => Class::Passing,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_of_a_row_of_the_moment_or_of_the_configuration() {
        for code in [
            "22021", "22P05", "22001", "23502", "23505", "23514", "54000",
        ] {
            assert_eq!(class(&SqlState::from_code(code)), Class::Row, "{code}");
        }
        for code in [
            "08006", "40001", "40P01", "53300", "53100", "55P03", "57014", "57P01", "57P03",
            "XX000", "25006",
        ] {
            assert_eq!(class(&SqlState::from_code(code)), Class::Passing, "{code}");
        }
        for code in [
            "28P01", "28000", "3D000", "3F000", "42501", "42P01", "42703",
        ] {
            let class = class(&SqlState::from_code(code));
            assert!(matches!(class, Class::Halting(_)), "{code}");
        }
        assert_eq!(class(&SqlState::from_code("23503")), Class::ForeignKey);
    }

    #[test]
    fn a_halting_error_says_what_to_do() {
        let failure = Failure::Server {
            class: class(&SqlState::INVALID_PASSWORD),
            text: "password authentication failed for user \"weir\" [SQLSTATE 28P01]".into(),
            constraint: None,
        };
        insta::assert_snapshot!(failure.into_sink_error(), @r#"PostgreSQL: password authentication failed for user "weir" [SQLSTATE 28P01]; check the user in url, the password in password_file and pg_hba.conf, then run `weir sinks resume NAME`"#);
    }
}
