//! Keys of sources of type `http_stream` and `http_poll`: what they request, how often, and where
//! the next page is.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;

use super::address::public_address;
use super::raw;

/// How long a stream may be silent by default.
const DEFAULT_IDLE: Duration = Duration::from_secs(5 * 60);
const DEFAULT_EVERY: Duration = Duration::from_secs(5 * 60);
const MIN_TIME: Duration = Duration::from_secs(1);
const DEFAULT_PAGES: usize = 100;
const MAX_PAGES: usize = 10_000;
const DEFAULT_REMEMBER: usize = 100_000;
const MAX_REMEMBER: usize = 1_000_000;

/// Headers that the sources set themselves, or that the connection decides.
const OWN_HEADERS: [&str; 11] = [
    "accept-encoding",
    "connection",
    "content-length",
    "expect",
    "host",
    "if-modified-since",
    "if-none-match",
    "last-event-id",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// A request as it is repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpRequest {
    /// `http://…` or `https://…`.
    pub url: String,
    /// By their names in lower case.
    pub headers: BTreeMap<String, HeaderValue>,
}

/// The value of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderValue {
    Text(String),
    /// The file's content without the newline at its end, after a prefix.
    File {
        prefix: &'static str,
        path: PathBuf,
    },
}

/// What a source of type `http_stream` reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpStreamDef {
    pub request: HttpRequest,
    /// A connection on which nothing comes for this long is closed.
    pub idle: Duration,
}

/// What a source of type `http_poll` reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpPollDef {
    pub request: HttpRequest,
    /// From the end of one poll to the beginning of the next.
    pub every: Duration,
    pub next: NextPage,
    /// The most pages of a poll.
    pub pages: usize,
    /// How many of the newest records are recognized when the server sends them again.
    pub remember: usize,
}

/// How a page names the one after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextPage {
    /// By a header `Link` with `rel="next"`.
    Link,
    /// By a member of the answer that is its URL; the names on the way to it.
    Url(Vec<String>),
    /// By a member of the answer that is the value of a parameter.
    Cursor {
        path: Vec<String>,
        parameter: String,
    },
}

/// What is wrong with the keys of such a source, and what to do.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum HttpKeyError {
    #[error("`{key}` is a key of type = {types}; remove the key")]
    OtherType {
        key: &'static str,
        types: &'static str,
    },
    #[error("`path` is not a key of type = \"{0}\"; name what it reads by `url`")]
    Path(String),
    #[error("url = \"{0}\": write http://… or https://…")]
    Url(String),
    #[error("url: keep the password out of it; write token_file = \"…\" or `headers`")]
    Password,
    #[error("headers: `{0}` is not the name of a header")]
    HeaderName(String),
    #[error("headers: `{0}` is set by the source itself; remove it")]
    OwnHeader(String),
    #[error("headers: `{0}` occurs twice; names differ in more than their case")]
    HeaderTwice(String),
    #[error("headers: `authorization` is what `token_file` sets; remove one of the two")]
    TokenTwice,
    #[error("headers: the value of `{0}` has a character that a header cannot have")]
    HeaderText(String),
    #[error("{key}: the file {path} does not exist")]
    NoFile { key: String, path: String },
    #[error("{key}: others can read the secret in {path}; run `chmod 600 {path}`")]
    Readable { key: String, path: String },
    #[error("{0}: the minimum is 1s")]
    TooShort(&'static str),
    #[error("{key} = {value}: write a number from 1 to {max}")]
    Number {
        key: &'static str,
        value: usize,
        max: usize,
    },
    #[error(
        "{key} = \"{path}\": write the names of members with a dot between two, for example \"meta.next\""
    )]
    MemberPath { key: &'static str, path: String },
    #[error("cursor: `parameter` is empty; name the parameter of the URL that takes the cursor")]
    Parameter,
    #[error("`next` and `cursor` both name the next page; remove one of the two keys")]
    NextTwice,
}

const STREAM: &str = "http_stream";
const POLL: &str = "http_poll";

/// Refuses keys that the source's type does not have.
pub(super) fn check_keys(typed: &raw::Source) -> Result<(), HttpKeyError> {
    let (is_stream, is_poll) = (typed.kind == STREAM, typed.kind == POLL);
    let of_both = "\"http_stream\" or \"http_poll\"";
    let (of_stream, of_poll) = ("\"http_stream\"", "\"http_poll\"");
    let is_http = is_stream || is_poll;
    let keys = [
        ("headers", typed.headers.is_some(), is_http, of_both),
        ("token_file", typed.token_file.is_some(), is_http, of_both),
        ("idle", typed.idle.is_some(), is_stream, of_stream),
        ("every", typed.every.is_some(), is_poll, of_poll),
        ("next", typed.next.is_some(), is_poll, of_poll),
        ("cursor", typed.cursor.is_some(), is_poll, of_poll),
        ("pages", typed.pages.is_some(), is_poll, of_poll),
        ("remember", typed.remember.is_some(), is_poll, of_poll),
    ];
    for (key, is_set, is_allowed, types) in keys {
        if is_set && !is_allowed {
            return Err(HttpKeyError::OtherType { key, types });
        }
    }
    if is_http && typed.path.is_some() {
        return Err(HttpKeyError::Path(typed.kind.clone()));
    }
    Ok(())
}

/// The keys of a source of type `http_stream`; `base` is the folder of the file.
pub(super) fn stream_def(
    typed: &raw::Source,
    url: &str,
    base: &Path,
) -> Result<HttpStreamDef, HttpKeyError> {
    let idle = typed.idle.map_or(DEFAULT_IDLE, |idle| idle.0);
    if idle < MIN_TIME {
        return Err(HttpKeyError::TooShort("idle"));
    }
    Ok(HttpStreamDef {
        request: request(typed, url, base)?,
        idle,
    })
}

/// The keys of a source of type `http_poll`; `base` is the folder of the file.
pub(super) fn poll_def(
    typed: &raw::Source,
    url: &str,
    base: &Path,
) -> Result<HttpPollDef, HttpKeyError> {
    let every = typed.every.map_or(DEFAULT_EVERY, |every| every.0);
    if every < MIN_TIME {
        return Err(HttpKeyError::TooShort("every"));
    }
    let number = |key, value: Option<usize>, default, max| match value.unwrap_or(default) {
        value if (1..=max).contains(&value) => Ok(value),
        value => Err(HttpKeyError::Number { key, value, max }),
    };
    Ok(HttpPollDef {
        request: request(typed, url, base)?,
        every,
        next: next_page(typed)?,
        pages: number("pages", typed.pages, DEFAULT_PAGES, MAX_PAGES)?,
        remember: number("remember", typed.remember, DEFAULT_REMEMBER, MAX_REMEMBER)?,
    })
}

fn next_page(typed: &raw::Source) -> Result<NextPage, HttpKeyError> {
    match (&typed.next, &typed.cursor) {
        (None, None) => Ok(NextPage::Link),
        (Some(_), Some(_)) => Err(HttpKeyError::NextTwice),
        (Some(path), None) => Ok(NextPage::Url(members("next", path)?)),
        (None, Some(cursor)) if cursor.parameter.is_empty() => Err(HttpKeyError::Parameter),
        (None, Some(cursor)) => Ok(NextPage::Cursor {
            path: members("cursor.path", &cursor.path)?,
            parameter: cursor.parameter.clone(),
        }),
    }
}

/// The names of members in `meta.next`.
fn members(key: &'static str, path: &str) -> Result<Vec<String>, HttpKeyError> {
    let names: Vec<String> = path.split('.').map(str::to_owned).collect();
    if names.iter().any(String::is_empty) {
        let path = path.to_owned();
        return Err(HttpKeyError::MemberPath { key, path });
    }
    Ok(names)
}

fn request(typed: &raw::Source, url: &str, base: &Path) -> Result<HttpRequest, HttpKeyError> {
    let parsed = Url::parse(url).map_err(|_| HttpKeyError::Url(public_address(url)))?;
    if !matches!(parsed.scheme(), "http" | "https") || !parsed.has_host() {
        return Err(HttpKeyError::Url(public_address(url)));
    }
    if parsed.password().is_some() || !parsed.username().is_empty() {
        return Err(HttpKeyError::Password);
    }
    let mut headers = BTreeMap::new();
    for (name, value) in typed.headers.iter().flatten() {
        let (name, value) = header(name, value, base)?;
        if headers.insert(name.clone(), value).is_some() {
            return Err(HttpKeyError::HeaderTwice(name));
        }
    }
    if let Some(path) = &typed.token_file {
        let path = secret_file("token_file", &base.join(path))?;
        let prefix = "Bearer ";
        let token = HeaderValue::File { prefix, path };
        if headers.insert("authorization".into(), token).is_some() {
            return Err(HttpKeyError::TokenTwice);
        }
    }
    Ok(HttpRequest {
        url: url.to_owned(),
        headers,
    })
}

fn header(
    typed: &str,
    value: &raw::Header,
    base: &Path,
) -> Result<(String, HeaderValue), HttpKeyError> {
    let name = typed.to_ascii_lowercase();
    if reqwest::header::HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err(HttpKeyError::HeaderName(typed.to_owned()));
    }
    if OWN_HEADERS.contains(&name.as_str()) {
        return Err(HttpKeyError::OwnHeader(typed.to_owned()));
    }
    let value = match value {
        raw::Header::Text(text) => {
            if reqwest::header::HeaderValue::from_str(text).is_err() {
                return Err(HttpKeyError::HeaderText(typed.to_owned()));
            }
            HeaderValue::Text(text.clone())
        }
        raw::Header::File(file) => HeaderValue::File {
            prefix: "",
            path: secret_file(&format!("headers.{typed}"), &base.join(&file.file))?,
        },
    };
    Ok((name, value))
}

/// Refuses a file that others can read.
fn secret_file(key: &str, path: &Path) -> Result<PathBuf, HttpKeyError> {
    let (key, shown) = (key.to_owned(), path.display().to_string());
    let Ok(metadata) = std::fs::metadata(path) else {
        return Err(HttpKeyError::NoFile { key, path: shown });
    };
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(HttpKeyError::Readable { key, path: shown });
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(kind: &str, keys: &str) -> raw::Source {
        let text = format!("name = \"h\"\ntype = \"{kind}\"\n{keys}");
        toml::from_str(&text).expect("the keys are known")
    }

    /// A source of this type with these keys beside its URL.
    fn checked(kind: &str, url: &str, keys: &str) -> Result<HttpPollDef, String> {
        let typed = typed(kind, keys);
        check_keys(&typed)
            .and_then(|()| match kind {
                STREAM => stream_def(&typed, url, Path::new("")).map(|def| HttpPollDef {
                    request: def.request,
                    every: def.idle,
                    next: NextPage::Link,
                    pages: 1,
                    remember: 1,
                }),
                _ => poll_def(&typed, url, Path::new("")),
            })
            .map_err(|e| e.to_string())
    }

    #[test]
    fn keys_have_defaults_and_paths_their_names() {
        let plain = checked(POLL, "https://a.example/x?y=1", "").expect("valid");
        assert_eq!((plain.every, plain.pages), (DEFAULT_EVERY, DEFAULT_PAGES));
        assert_eq!(
            (plain.next, plain.remember),
            (NextPage::Link, DEFAULT_REMEMBER)
        );
        let next = checked(POLL, "http://a/", "next = \"meta.next\"\nevery = \"10s\"");
        let next = next.expect("valid");
        let path = vec!["meta".to_owned(), "next".to_owned()];
        assert_eq!(next.next, NextPage::Url(path.clone()));
        assert_eq!(next.every, Duration::from_secs(10));
        let cursor = "cursor = { path = \"meta.next\", parameter = \"after\" }";
        let cursor = checked(POLL, "http://a/", cursor).expect("valid");
        let parameter = "after".to_owned();
        assert_eq!(cursor.next, NextPage::Cursor { path, parameter });
        let headers = checked(STREAM, "http://a/", "headers = { \"X-Key\" = \"k\" }");
        let text = HeaderValue::Text("k".into());
        assert_eq!(
            headers.expect("valid").request.headers,
            BTreeMap::from([("x-key".to_owned(), text)])
        );
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        std::fs::write(&path, "secret\n").expect("a file");
        let shown = path.display().to_string();
        let keys = format!("token_file = \"{shown}\"");
        let set_mode = |mode| {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&path, permissions).expect("the file is ours");
        };
        set_mode(0o640);
        assert_eq!(
            checked(STREAM, "http://a/", &keys),
            Err(format!(
                "token_file: others can read the secret in {shown}; run `chmod 600 {shown}`"
            ))
        );
        set_mode(0o600);
        let checked = checked(STREAM, "http://a/", &keys).expect("valid");
        let prefix = "Bearer ";
        let token = HeaderValue::File { prefix, path };
        assert_eq!(checked.request.headers.get("authorization"), Some(&token));
    }

    #[test]
    fn messages_name_the_key_and_the_fix() {
        let wrong = [
            (STREAM, "ws://a/", ""),
            (STREAM, "http://", ""),
            (STREAM, "http://user:secret@a/", ""),
            (STREAM, "http://a/", "path = \"x\""),
            (STREAM, "http://a/", "every = \"5m\""),
            (STREAM, "http://a/", "idle = \"0s\""),
            (STREAM, "http://a/", "headers = { \"a b\" = \"c\" }"),
            (
                STREAM,
                "http://a/",
                "headers = { \"Last-Event-ID\" = \"c\" }",
            ),
            (STREAM, "http://a/", "headers = { X = \"c\", x = \"d\" }"),
            (STREAM, "http://a/", "headers = { x = \"c\\nd\" }"),
            (STREAM, "http://a/", "headers = { x = { file = \"none\" } }"),
            (STREAM, "http://a/", "token_file = \"none\""),
            (POLL, "http://a/", "idle = \"5m\""),
            (POLL, "http://a/", "every = \"10ms\""),
            (POLL, "http://a/", "pages = 0"),
            (POLL, "http://a/", "remember = 2000000"),
            (POLL, "http://a/", "next = \"meta..next\""),
            (
                POLL,
                "http://a/",
                "cursor = { path = \"c\", parameter = \"\" }",
            ),
            (
                POLL,
                "http://a/",
                "next = \"n\"\ncursor = { path = \"c\", parameter = \"p\" }",
            ),
            ("websocket", "http://a/", "headers = { x = \"c\" }"),
        ];
        let messages: Vec<String> = wrong
            .iter()
            .map(|(kind, url, keys)| checked(kind, url, keys).expect_err(keys))
            .collect();
        insta::assert_snapshot!(messages.join("\n"), @r#"
        url = "ws://a/": write http://… or https://…
        url = "http://": write http://… or https://…
        url: keep the password out of it; write token_file = "…" or `headers`
        `path` is not a key of type = "http_stream"; name what it reads by `url`
        `every` is a key of type = "http_poll"; remove the key
        idle: the minimum is 1s
        headers: `a b` is not the name of a header
        headers: `Last-Event-ID` is set by the source itself; remove it
        headers: `x` occurs twice; names differ in more than their case
        headers: the value of `x` has a character that a header cannot have
        headers.x: the file none does not exist
        token_file: the file none does not exist
        `idle` is a key of type = "http_stream"; remove the key
        every: the minimum is 1s
        pages = 0: write a number from 1 to 10000
        remember = 2000000: write a number from 1 to 1000000
        next = "meta..next": write the names of members with a dot between two, for example "meta.next"
        cursor: `parameter` is empty; name the parameter of the URL that takes the cursor
        `next` and `cursor` both name the next page; remove one of the two keys
        `headers` is a key of type = "http_stream" or "http_poll"; remove the key
        "#);
    }
}
