//! Keys of a sink of type `http`: a webhook.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use reqwest::Url;
use reqwest::header::{HeaderName, HeaderValue};

use super::address::is_public;
use super::{InvalidSink, check_keys, existing, required, secret};
use crate::config::raw;

/// Rows of a request where the sink does not say it.
const DEFAULT_BATCH_ROWS: usize = 500;
const MAX_BATCH_ROWS: usize = 10_000;
/// Headers that the configuration may add, and bytes of all their values.
const MAX_HEADERS: usize = 32;
const MAX_HEADER_BYTES: usize = 8 << 10;
/// Headers that the sink sets itself, or that belong to the connection.
const OWN_HEADERS: [&str; 10] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Names and values.
type Headers = BTreeMap<String, String>;

/// Where such a sink sends rows.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpSink {
    /// `http://…` or `https://…`.
    pub url: String,
    /// The keys of the signature, one a line; requests are not signed without it.
    pub secret_file: Option<PathBuf>,
    /// Certificates that may sign the server's; the system's without it.
    pub ca_file: Option<PathBuf>,
    pub headers: Headers,
    /// Rows of a request, at most.
    pub batch_rows: usize,
    /// Whether the address may be one that is not on the public internet.
    pub allow_private: bool,
}

/// The keys of such a sink; `base` is the folder of the file.
pub(super) fn def(typed: &raw::Sink, base: &Path) -> Result<HttpSink, InvalidSink> {
    check_keys(
        typed,
        "http",
        &[
            "url",
            "secret_file",
            "ca_file",
            "headers",
            "batch_rows",
            "allow_private",
        ],
    )?;
    let url = http_url(
        &required(typed.url.as_ref(), "url")?,
        "put them into a header: headers = { authorization = \"…\" }",
    )?;
    let allow_private = typed.allow_private.unwrap_or(false);
    if !allow_private && ip_address(&url).is_some_and(|address| !is_public(address)) {
        return Err(InvalidSink::Value {
            key: "url",
            value: url.into(),
            expected: "the address is not on the public internet; if it is the right one, add \
                       allow_private = true"
                .into(),
        });
    }
    let headers = typed.headers.clone().unwrap_or_default();
    check_headers(&headers)?;
    Ok(HttpSink {
        url: url.into(),
        secret_file: secret(typed.secret_file.as_ref(), base)?,
        ca_file: existing(typed.ca_file.as_ref(), base)?,
        headers,
        batch_rows: batch_rows(typed)?,
        allow_private,
    })
}

/// An address of HTTP; `remedy` says where user and password belong.
pub(super) fn http_url(typed: &str, remedy: &str) -> Result<Url, InvalidSink> {
    let invalid = |expected: String| InvalidSink::Value {
        key: "url",
        value: typed.to_owned(),
        expected,
    };
    let url = Url::parse(typed).map_err(|e| invalid(format!("{e}; write https://HOST/PATH")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(invalid("write http://… or https://…".into()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        // The password must not be shown.
        return Err(InvalidSink::Value {
            key: "url",
            value: format!(
                "{}://…@{}",
                url.scheme(),
                url.host_str().unwrap_or_default()
            ),
            expected: format!("user and password do not belong here; {remedy}"),
        });
    }
    Ok(url)
}

/// The address in a URL whose host is not a name.
fn ip_address(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    let host = host.strip_prefix('[').unwrap_or(host);
    host.strip_suffix(']').unwrap_or(host).parse().ok()
}

fn check_headers(headers: &Headers) -> Result<(), InvalidSink> {
    let bytes: usize = headers.values().map(String::len).sum();
    if headers.len() > MAX_HEADERS || bytes > MAX_HEADER_BYTES {
        return Err(InvalidSink::Value {
            key: "headers",
            value: format!("{} headers of {bytes} bytes", headers.len()),
            expected: format!("write at most {MAX_HEADERS}, of {MAX_HEADER_BYTES} bytes in all"),
        });
    }
    let mut names = Vec::new();
    for (name, value) in headers {
        // Values are often secrets, so they are not shown.
        let invalid = |expected: &str| InvalidSink::Value {
            key: "headers",
            value: name.clone(),
            expected: expected.to_owned(),
        };
        let parsed = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| invalid("this is not a name of a header"))?;
        HeaderValue::from_str(value)
            .map_err(|_| invalid("its value may have printable ASCII characters alone"))?;
        if OWN_HEADERS.contains(&parsed.as_str()) || parsed.as_str().starts_with("webhook-") {
            return Err(invalid("the sink sets this header itself; remove it"));
        }
        if names.contains(&parsed) {
            return Err(invalid("the header is there twice; remove one"));
        }
        names.push(parsed);
    }
    Ok(())
}

/// Rows of a request.
pub(super) fn batch_rows(typed: &raw::Sink) -> Result<usize, InvalidSink> {
    let rows = typed.batch_rows.unwrap_or(DEFAULT_BATCH_ROWS);
    if (1..=MAX_BATCH_ROWS).contains(&rows) {
        return Ok(rows);
    }
    Err(InvalidSink::Value {
        key: "batch_rows",
        value: rows.to_string(),
        expected: format!("write 1 to {MAX_BATCH_ROWS}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(keys: &str) -> String {
        let text = format!("name = \"hook\"\ntype = \"http\"\nfrom = \"events\"\n{keys}");
        let typed: raw::Sink = toml::from_str(&text).expect("TOML");
        match def(&typed, Path::new("/nowhere")) {
            Ok(sink) => sink.url,
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn keys_of_a_webhook_are_checked() {
        let url = "url = \"https://example.org/hook\"";
        let headers = |headers: &str| message(&format!("{url}\nheaders = {{ {headers} }}"));
        insta::assert_snapshot!([
            message(url),
            message(""),
            message("url = \"ftp://example.org\""),
            message("url = \"example.org\""),
            message("url = \"https://ann:secret@example.org\""),
            message("url = \"http://127.1/hook\""),
            message("url = \"http://[::ffff:10.0.0.1]/hook\""),
            message("url = \"http://127.0.0.1/hook\"\nallow_private = true"),
            message(&format!("{url}\nbatch_rows = 0")),
            message(&format!("{url}\nindex = \"a\"")),
            headers("authorization = \"Bearer a\", x-team = \"a\""),
            headers("\"x y\" = \"a\""),
            headers("x = \"a\\nb\""),
            headers("Content-Type = \"text/plain\""),
            headers("Webhook-Id = \"a\""),
            headers("x = \"a\", X = \"b\""),
        ]
        .join("\n"), @r#"
        https://example.org/hook
        the key `url` is missing
        url = "ftp://example.org": write http://… or https://…
        url = "example.org": relative URL without a base; write https://HOST/PATH
        url = "https://…@example.org": user and password do not belong here; put them into a header: headers = { authorization = "…" }
        url = "http://127.0.0.1/hook": the address is not on the public internet; if it is the right one, add allow_private = true
        url = "http://[::ffff:a00:1]/hook": the address is not on the public internet; if it is the right one, add allow_private = true
        http://127.0.0.1/hook
        batch_rows = "0": write 1 to 10000
        `index` is not a key of type = "http"; remove the key
        https://example.org/hook
        headers = "x y": this is not a name of a header
        headers = "x": its value may have printable ASCII characters alone
        headers = "Content-Type": the sink sets this header itself; remove it
        headers = "Webhook-Id": the sink sets this header itself; remove it
        headers = "x": the header is there twice; remove one
        "#);
    }
}
