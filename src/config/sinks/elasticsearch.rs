//! Keys of a sink of type `elasticsearch`, also for OpenSearch.

use std::path::{Path, PathBuf};

use super::http::{batch_rows, http_url};
use super::{InvalidSink, check_keys, existing, required, secret};
use crate::config::raw;

/// Bytes of the name of an index.
const MAX_INDEX_BYTES: usize = 255;
const INDEX_NAME: &str = "an index is named in lower case, without spaces and without any of \
                          \\ / * ? \" < > | , # :, does not begin with - _ + or a dot, and has at \
                          most 255 bytes";

/// Where such a sink sends rows.
#[derive(Debug, Clone, PartialEq)]
pub struct ElasticsearchSink {
    /// `http://…` or `https://…`, of the server or of a proxy before it.
    pub url: String,
    pub index: String,
    pub user: Option<String>,
    pub password_file: Option<PathBuf>,
    pub api_key_file: Option<PathBuf>,
    /// Certificates that may sign the server's; the system's without it.
    pub ca_file: Option<PathBuf>,
    /// Rows of a request, at most.
    pub batch_rows: usize,
}

/// The keys of such a sink; `base` is the folder of the file.
pub(super) fn def(typed: &raw::Sink, base: &Path) -> Result<ElasticsearchSink, InvalidSink> {
    check_keys(
        typed,
        "elasticsearch",
        &[
            "url",
            "index",
            "user",
            "password_file",
            "api_key_file",
            "ca_file",
            "batch_rows",
        ],
    )?;
    let index = required(typed.index.as_ref(), "index")?;
    if !is_index_name(&index) {
        return Err(InvalidSink::Value {
            key: "index",
            value: index,
            expected: INDEX_NAME.into(),
        });
    }
    check_credentials(typed)?;
    Ok(ElasticsearchSink {
        url: server_url(&required(typed.url.as_ref(), "url")?)?,
        index,
        user: typed.user.clone(),
        password_file: secret(typed.password_file.as_ref(), base)?,
        api_key_file: secret(typed.api_key_file.as_ref(), base)?,
        ca_file: existing(typed.ca_file.as_ref(), base)?,
        batch_rows: batch_rows(typed)?,
    })
}

fn server_url(typed: &str) -> Result<String, InvalidSink> {
    let url = http_url(typed, "write user = \"…\" and password_file = \"…\"")?;
    if url.query().is_none() && url.fragment().is_none() {
        return Ok(url.into());
    }
    Err(InvalidSink::Value {
        key: "url",
        value: typed.to_owned(),
        expected: "write the address of the server alone, such as https://HOST:9200".into(),
    })
}

/// A user has a password; an API key replaces both.
fn check_credentials(typed: &raw::Sink) -> Result<(), InvalidSink> {
    match (&typed.user, &typed.password_file, &typed.api_key_file) {
        (None, None, _) | (Some(_), Some(_), None) => Ok(()),
        (Some(_), None, _) => Err(InvalidSink::MissingKey("password_file")),
        (None, Some(_), _) => Err(InvalidSink::MissingKey("user")),
        (Some(user), Some(_), Some(_)) => Err(InvalidSink::Value {
            key: "user",
            value: user.clone(),
            expected: "write either a user with a password or api_key_file".into(),
        }),
    }
}

/// Whether the server permits an index of this name.
fn is_index_name(name: &str) -> bool {
    let is_forbidden = |c: char| {
        c.is_whitespace() || c.is_control() || c.is_uppercase() || "\\/*?\"<>|,#:".contains(c)
    };
    !name.is_empty()
        && name.len() <= MAX_INDEX_BYTES
        && !name.starts_with(['-', '_', '+', '.'])
        && !name.contains(is_forbidden)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(keys: &str) -> String {
        let text = format!("name = \"found\"\ntype = \"elasticsearch\"\nfrom = \"a\"\n{keys}");
        let typed: raw::Sink = toml::from_str(&text).expect("TOML");
        match def(&typed, Path::new("/nowhere")) {
            Ok(sink) => format!("{} {}", sink.url, sink.index),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn names_of_indexes_follow_the_rules_of_the_server() {
        let long = "a".repeat(256);
        for (name, expected) in [
            ("events", true),
            ("events-2016.06", true),
            ("événements", true),
            ("", false),
            ("Events", false),
            ("a b", false),
            ("a/b", false),
            ("a*", false),
            ("a,b", false),
            ("a#b", false),
            ("a:b", false),
            ("<events-{now}>", false),
            ("_all", false),
            ("-a", false),
            ("+a", false),
            (".", false),
            ("..", false),
            (".hidden", false),
            (long.as_str(), false),
        ] {
            assert_eq!(is_index_name(name), expected, "{name}");
        }
    }

    #[test]
    fn keys_of_elasticsearch_are_checked() {
        let index = "index = \"events\"";
        let url = "url = \"http://127.0.0.1:9200\"";
        insta::assert_snapshot!([
            message(&format!("{url}\n{index}")),
            message(url),
            message(index),
            message(&format!("{url}\nindex = \"Events\"")),
            message(&format!("{index}\nurl = \"http://ann:secret@host\"")),
            message(&format!("{index}\nurl = \"http://host?pretty\"")),
            message(&format!("{url}\n{index}\nuser = \"ann\"")),
            message(&format!("{url}\n{index}\npassword_file = \"p\"")),
            message(&format!(
                "{url}\n{index}\nuser = \"ann\"\npassword_file = \"p\"\napi_key_file = \"k\""
            )),
            message(&format!("{url}\n{index}\nallow_private = true")),
        ]
        .join("\n"), @r#"
        http://127.0.0.1:9200/ events
        the key `index` is missing
        the key `url` is missing
        index = "Events": an index is named in lower case, without spaces and without any of \ / * ? " < > | , # :, does not begin with - _ + or a dot, and has at most 255 bytes
        url = "http://…@host": user and password do not belong here; write user = "…" and password_file = "…"
        url = "http://host?pretty": write the address of the server alone, such as https://HOST:9200
        the key `password_file` is missing
        the key `user` is missing
        user = "ann": write either a user with a password or api_key_file
        `allow_private` is not a key of type = "elasticsearch"; remove the key
        "#);
    }
}
