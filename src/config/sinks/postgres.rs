//! Keys of a sink of type `postgres`.

use std::path::{Path, PathBuf};

use tokio_postgres::config::SslMode;

use super::{InvalidSink, check_keys, existing, required, secret};
use crate::config::raw;

/// The longest name that PostgreSQL does not truncate.
const MAX_NAME_BYTES: usize = 63;

/// Where such a sink sends rows.
#[derive(Debug, Clone, PartialEq)]
pub struct PostgresSink {
    /// `postgres://USER@HOST:PORT/DATABASE`, without a password.
    pub url: String,
    pub password_file: Option<PathBuf>,
    /// Certificates that may sign the server's; the system's without it.
    pub ca_file: Option<PathBuf>,
    /// The schema of its tables.
    pub schema: String,
    /// Whether tables that the sink creates refer to one another.
    pub foreign_keys: bool,
}

/// The keys of such a sink; `base` is the folder of the file.
pub(super) fn def(typed: &raw::Sink, base: &Path) -> Result<PostgresSink, InvalidSink> {
    check_keys(
        typed,
        "postgres",
        &["url", "password_file", "ca_file", "schema", "foreign_keys"],
    )?;
    let url = required(typed.url.as_ref(), "url")?;
    check_url(&url, typed.ca_file.is_some())?;
    let schema = typed.schema.clone().unwrap_or_else(|| "public".into());
    if schema.is_empty() || schema.len() > MAX_NAME_BYTES {
        return Err(InvalidSink::Value {
            key: "schema",
            value: schema,
            expected: format!("write a name of 1 to {MAX_NAME_BYTES} bytes"),
        });
    }
    Ok(PostgresSink {
        url,
        password_file: secret(typed.password_file.as_ref(), base)?,
        ca_file: existing(typed.ca_file.as_ref(), base)?,
        schema,
        foreign_keys: typed.foreign_keys.unwrap_or(true),
    })
}

/// Refuses what the URL must not have, and never shows it: it may have a password.
fn check_url(url: &str, has_ca_file: bool) -> Result<(), InvalidSink> {
    const FORM: &str = "write postgres://USER@HOST:PORT/DATABASE";
    let wrong = |expected: String| {
        Err(InvalidSink::Value {
            key: "url",
            value: "postgres://…".into(),
            expected,
        })
    };
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return wrong(FORM.into());
    }
    let config: tokio_postgres::Config = match url.parse() {
        Ok(config) => config,
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            return wrong(format!(
                "{FORM}, with `?sslmode=` disable, prefer or require (which checks the certificate): {}",
                cause.unwrap_or_else(|| error.to_string())
            ));
        }
    };
    if config.get_password().is_some() {
        return wrong(
            "a password does not belong in the configuration; write it to a file and name that by password_file".into(),
        );
    }
    if config.get_user().is_none() || config.get_dbname().is_none() {
        return wrong(format!("name the user and the database: {FORM}"));
    }
    if config.get_hosts().len() != 1 {
        return wrong(format!("name one host: {FORM}"));
    }
    if has_ca_file && config.get_ssl_mode() != SslMode::Require {
        return wrong(
            "ca_file needs `?sslmode=require`: other modes do not check the certificate".into(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_without_a_password_names_user_host_and_database() {
        for (url, has_ca_file, expected) in [
            ("postgres://weir@db:5432/events", false, None),
            ("postgresql://weir@db/events?sslmode=require", true, None),
            (
                "postgres://weir@/events?host=/var/run/postgresql",
                false,
                None,
            ),
            ("host=db user=weir", false, Some("write postgres://USER")),
            (
                "postgres://weir:secret@db/events",
                false,
                Some("password_file"),
            ),
            (
                "postgres://weir@db/events?password=secret",
                false,
                Some("password_file"),
            ),
            ("postgres://db/events", false, Some("name the user")),
            ("postgres://weir@db", false, Some("the database")),
            ("postgres://weir@a,b/events", false, Some("one host")),
            (
                "postgres://weir@db/events?sslmode=verify-full",
                false,
                Some("disable, prefer or require"),
            ),
            ("postgres://weir@db/events", true, Some("ca_file needs")),
        ] {
            let found = check_url(url, has_ca_file).map_err(|e| e.to_string());
            match (found, expected) {
                (Ok(()), None) => {}
                (Err(message), Some(part)) => {
                    assert!(message.contains(part), "{url}: {message}");
                    assert!(!message.contains("secret"), "{message}");
                }
                (found, expected) => panic!("{url}: {found:?}, not {expected:?}"),
            }
        }
    }
}
