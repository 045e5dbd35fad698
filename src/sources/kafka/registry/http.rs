//! Questions to a schema registry by its HTTP interface, and what their answers mean.

use std::collections::BTreeSet;
use std::error::Error;
use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;

use super::super::super::SourceError;
use crate::avro::DatumReader;
use crate::config::{RegistryDef, public_address};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer.
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// Schemas that one may refer to, also indirectly.
const MAX_REFERENCES: usize = 64;
/// The registry's codes for a schema, a subject and a version that do not exist.
const NOT_FOUND_CODES: std::ops::RangeInclusive<u64> = 40_401..=40_403;
/// What is accepted, in the order of preference.
const CONTENT_TYPES: &str = "application/vnd.schemaregistry.v1+json, application/json";

/// What became of a question for an id.
pub(super) enum Fetched {
    Schema {
        reader: DatumReader,
        /// Of its text, with those that it refers to.
        bytes: usize,
    },
    /// The registry knows the id, and its data cannot be read.
    Refused(String),
    /// The registry says that the id, or what it refers to, does not exist: the reason.
    Missing(String),
    /// Nothing is known: ask again.
    Unavailable(String),
}

/// The answer to one request.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Schema(RegisteredSchema),
    Missing,
    Unavailable(String),
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct RegisteredSchema {
    schema: String,
    /// Avro, unless it is named.
    #[serde(default, rename = "schemaType")]
    kind: Option<String>,
    #[serde(default)]
    references: Vec<Reference>,
}

/// A schema whose names another one uses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Reference {
    subject: String,
    version: u32,
}

pub(super) struct Client {
    http: reqwest::Client,
    /// As it may be shown.
    url: String,
    base: Url,
    /// User and password.
    credentials: Option<(String, String)>,
}

impl Client {
    pub fn new(def: &RegistryDef) -> Result<Self, SourceError> {
        let failed = |reason: String| SourceError::Registry {
            url: public_address(&def.url),
            reason,
        };
        let base = Url::parse(&def.url).map_err(|e| failed(e.to_string()))?;
        let credentials = def.credentials.as_ref().map(|credentials| {
            let path = &credentials.password_file;
            let text = std::fs::read_to_string(path).map_err(|source| SourceError::Io {
                path: path.display().to_string(),
                source,
            })?;
            let password = text.trim_end_matches(['\r', '\n']).to_owned();
            Ok::<_, SourceError>((credentials.user.clone(), password))
        });
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .build()
            .map_err(|e| failed(cause(&e)))?;
        Ok(Self {
            http,
            url: public_address(&def.url),
            base,
            credentials: credentials.transpose()?,
        })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Asks for a schema, and for those that it refers to.
    pub async fn fetch(&self, id: u32) -> Fetched {
        let schema = match self.ask(&["schemas", "ids", &id.to_string()]).await {
            Answer::Schema(schema) => schema,
            Answer::Missing => {
                return Fetched::Missing(format!("Avro: the registry has no schema {id}"));
            }
            Answer::Unavailable(reason) => return Fetched::Unavailable(reason),
        };
        if let Some(kind) = schema.kind.as_deref().filter(|kind| *kind != "AVRO") {
            return Fetched::Refused(format!("Avro: the schema {id} is of the type {kind}"));
        }
        let (mut texts, mut seen) = (Vec::new(), BTreeSet::new());
        let mut open = schema.references;
        while let Some(reference) = open.pop() {
            if !seen.insert(reference.clone()) {
                continue;
            }
            let Reference { subject, version } = &reference;
            if seen.len() > MAX_REFERENCES {
                let reason = format!("Avro: the schema {id} refers to more than {MAX_REFERENCES}");
                return Fetched::Refused(reason);
            }
            let number = version.to_string();
            let path = ["subjects", subject.as_str(), "versions", number.as_str()];
            match self.ask(&path).await {
                Answer::Schema(other) => {
                    texts.push(other.schema);
                    open.extend(other.references);
                }
                Answer::Unavailable(reason) => return Fetched::Unavailable(reason),
                Answer::Missing => {
                    return Fetched::Missing(format!(
                        "Avro: the schema {id} refers to version {version} of `{subject}`, which the registry does not have"
                    ));
                }
            }
        }
        match DatumReader::new(&schema.schema, &texts) {
            Ok(reader) => Fetched::Schema {
                reader,
                bytes: schema.schema.len() + texts.iter().map(String::len).sum::<usize>(),
            },
            Err(error) => {
                Fetched::Refused(format!("Avro: the schema {id} cannot be used: {error}"))
            }
        }
    }

    /// Sends `GET /<path>`.
    async fn ask(&self, path: &[&str]) -> Answer {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        let mut request = self.http.get(url).header("accept", CONTENT_TYPES);
        if let Some((user, password)) = &self.credentials {
            request = request.basic_auth(user, Some(password));
        }
        match receive(request).await {
            Ok((status, body)) => read_answer(status, &body),
            Err(error) => Answer::Unavailable(cause(&error)),
        }
    }
}

/// The status and the body of an answer, of which no more than the limit is read.
async fn receive(request: reqwest::RequestBuilder) -> Result<(u16, Vec<u8>), reqwest::Error> {
    let mut response = request.send().await?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ANSWER_BYTES {
            break;
        }
    }
    Ok((response.status().as_u16(), body))
}

/// What an answer means. Only a registry's own code says that something does not exist: a 404 alone
/// may come from a wrong address, and must not make records dead letters.
fn read_answer(status: u16, body: &[u8]) -> Answer {
    #[derive(Deserialize)]
    struct Refusal {
        error_code: u64,
        #[serde(default)]
        message: String,
    }
    if body.len() > MAX_ANSWER_BYTES {
        return Answer::Unavailable(format!("an answer of more than {MAX_ANSWER_BYTES} bytes"));
    }
    if status == 200 {
        return match serde_json::from_slice(body) {
            Ok(schema) => Answer::Schema(schema),
            Err(error) => Answer::Unavailable(format!("the answer is not of a registry: {error}")),
        };
    }
    let refusal: Option<Refusal> = serde_json::from_slice(body).ok();
    match refusal {
        Some(refusal) if status == 404 && NOT_FOUND_CODES.contains(&refusal.error_code) => {
            Answer::Missing
        }
        _ if matches!(status, 401 | 403) => Answer::Unavailable(format!(
            "it answers {status}; check `registry_user` and `registry_password_file`"
        )),
        _ if status == 404 => Answer::Unavailable(
            "it answers 404 as if it were no registry; check the address".into(),
        ),
        Some(refusal) => Answer::Unavailable(format!("it answers {status}: {}", refusal.message)),
        None => Answer::Unavailable(format!("it answers {status}")),
    }
}

/// The innermost cause: the outer ones repeat the address.
fn cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return format!("no answer within {} seconds", ANSWER_TIMEOUT.as_secs());
    }
    let mut innermost: &dyn Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_registry_itself_says_that_a_schema_does_not_exist() {
        let missing = br#"{"error_code":40403,"message":"Schema not found"}"#;
        assert_eq!(read_answer(404, missing), Answer::Missing);
        let schema = RegisteredSchema {
            schema: "\"int\"".into(),
            kind: None,
            references: Vec::new(),
        };
        let body = br#"{"schema":"\"int\"","id":7}"#;
        assert_eq!(read_answer(200, body), Answer::Schema(schema));
        let others: [(u16, &[u8]); 7] = [
            (404, b"<html>not found</html>"),
            (404, br#"{"error_code":404,"message":"HTTP 404 Not Found"}"#),
            (500, missing),
            (503, b""),
            (401, br#"{"error_code":401,"message":"Unauthorized"}"#),
            (200, b"<html>hello</html>"),
            (302, b""),
        ];
        let shown = others.map(|(status, body)| match read_answer(status, body) {
            Answer::Unavailable(reason) => reason,
            other => format!("{other:?}"),
        });
        insta::assert_snapshot!(shown.join("\n"), @r#"
        it answers 404 as if it were no registry; check the address
        it answers 404 as if it were no registry; check the address
        it answers 500: Schema not found
        it answers 503
        it answers 401; check `registry_user` and `registry_password_file`
        the answer is not of a registry: expected value at line 1 column 1
        it answers 302
        "#);
    }

    #[test]
    fn references_are_read() {
        let body = br#"{"schema":"{}","schemaType":"AVRO","references":[{"name":"a.B","subject":"b","version":2}]}"#;
        let Answer::Schema(schema) = read_answer(200, body) else {
            panic!("a schema");
        };
        let reference = Reference {
            subject: "b".into(),
            version: 2,
        };
        assert_eq!(schema.references, [reference]);
    }
}
