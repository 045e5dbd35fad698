//! Keys of the format of messages: JSON, or Avro by a schema from a file or from a registry.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::raw;
use crate::avro::{DatumReader, SchemaError};

/// The largest file of a schema, a little above what is accepted.
const MAX_FILE_BYTES: u64 = 2 << 20;

/// How the values of messages are written.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum MessageFormat {
    #[default]
    Json,
    /// Data of one schema, without a header.
    Avro(Arc<DatumReader>),
    /// Data behind a header that names their schema.
    RegisteredAvro(RegistryDef),
}

/// A schema registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryDef {
    /// `http://…` or `https://…`, without a slash at its end.
    pub url: String,
    pub credentials: Option<RegistryCredentials>,
}

/// How the source authenticates itself to a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryCredentials {
    pub user: String,
    /// Its content without the newline at its end is the password.
    pub password_file: PathBuf,
}

/// What is wrong with the keys of a format, and what to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum FormatError {
    #[error("format = \"{0}\": write \"json\" or \"avro\"")]
    Format(String),
    #[error("`{0}` is for format = \"avro\"; write that, or remove the key")]
    OnlyAvro(&'static str),
    #[error(
        "format = \"avro\" needs either `schema_file`, for messages without a header, or `registry`, for those that name their schema"
    )]
    Schema,
    #[error("schema_file: {path}: {source}")]
    File {
        path: String,
        source: std::io::Error,
    },
    #[error("schema_file: {path} is not a schema of Avro: {source}")]
    NotASchema { path: String, source: SchemaError },
    #[error("registry = \"{0}\": write http://HOST:PORT or https://HOST:PORT")]
    Url(String),
    #[error("registry: write user and password as `registry_user` and `registry_password_file`")]
    UserInUrl,
    #[error("`registry_user` and `registry_password_file` need each other, and `registry`")]
    Credentials,
    #[error("registry_password_file: the file {0} does not exist")]
    NoPassword(String),
    #[error("registry_password_file: others can read the password in {0}; run `chmod 600 {0}`")]
    ReadablePassword(String),
}

/// Keys that are for Avro only, with whether each is set.
pub(super) fn avro_keys(typed: &raw::Source) -> [(&'static str, bool); 4] {
    [
        ("schema_file", typed.schema_file.is_some()),
        ("registry", typed.registry.is_some()),
        ("registry_user", typed.registry_user.is_some()),
        (
            "registry_password_file",
            typed.registry_password_file.is_some(),
        ),
    ]
}

/// The format of a source's messages; `base` is the folder of the configuration.
pub(super) fn format(typed: &raw::Source, base: &Path) -> Result<MessageFormat, FormatError> {
    match typed.format.as_deref().unwrap_or("json") {
        "json" => match avro_keys(typed).into_iter().find(|(_, is_set)| *is_set) {
            Some((key, _)) => Err(FormatError::OnlyAvro(key)),
            None => Ok(MessageFormat::Json),
        },
        "avro" => avro(typed, base),
        other => Err(FormatError::Format(other.to_owned())),
    }
}

fn avro(typed: &raw::Source, base: &Path) -> Result<MessageFormat, FormatError> {
    let credentials = credentials(typed, base)?;
    match (&typed.schema_file, &typed.registry) {
        (Some(_), None) if credentials.is_some() => Err(FormatError::Credentials),
        (Some(path), None) => read_schema(&base.join(path)),
        (None, Some(url)) => {
            let rest = url
                .strip_prefix("http://")
                .or_else(|| url.strip_prefix("https://"));
            match rest {
                Some(rest) if rest.contains('@') => Err(FormatError::UserInUrl),
                Some(rest) if !rest.is_empty() && !rest.contains(['?', '#', ' ']) => {
                    Ok(MessageFormat::RegisteredAvro(RegistryDef {
                        url: url.trim_end_matches('/').to_owned(),
                        credentials,
                    }))
                }
                _ => Err(FormatError::Url(url.clone())),
            }
        }
        _ => Err(FormatError::Schema),
    }
}

fn read_schema(path: &Path) -> Result<MessageFormat, FormatError> {
    let shown = path.display().to_string();
    let mut text = String::new();
    let read = std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES).read_to_string(&mut text));
    read.map_err(|source| FormatError::File {
        path: shown.clone(),
        source,
    })?;
    let reader = DatumReader::new(&text, &[]);
    let reader = reader.map_err(|source| FormatError::NotASchema {
        path: shown,
        source,
    })?;
    Ok(MessageFormat::Avro(Arc::new(reader)))
}

fn credentials(
    typed: &raw::Source,
    base: &Path,
) -> Result<Option<RegistryCredentials>, FormatError> {
    let (user, file) = match (&typed.registry_user, &typed.registry_password_file) {
        (None, None) => return Ok(None),
        (Some(user), Some(file)) => (user, base.join(file)),
        _ => return Err(FormatError::Credentials),
    };
    let shown = file.display().to_string();
    let metadata = std::fs::metadata(&file).map_err(|_| FormatError::NoPassword(shown.clone()))?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(FormatError::ReadablePassword(shown));
    }
    Ok(Some(RegistryCredentials {
        user: user.clone(),
        password_file: file,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(keys: &str, base: &Path) -> Result<MessageFormat, String> {
        let text = format!("name = \"b\"\ntype = \"kafka\"\n{keys}");
        let typed: raw::Source = toml::from_str(&text).expect("the keys are known");
        format(&typed, base).map_err(|e| e.to_string())
    }

    #[test]
    fn avro_has_a_schema_from_a_file_or_a_registry() {
        let folder = tempfile::tempdir().expect("a folder");
        let base = folder.path();
        std::fs::write(base.join("a.avsc"), "\"int\"").expect("a file");
        let password = base.join("p");
        std::fs::write(&password, "secret\n").expect("a file");
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&password, mode).expect("the file is ours");
        assert_eq!(checked("", base), Ok(MessageFormat::Json));
        let file = checked("format = \"avro\"\nschema_file = \"a.avsc\"", base);
        let reader = DatumReader::new("\"int\"", &[]).expect("a schema");
        assert_eq!(file, Ok(MessageFormat::Avro(Arc::new(reader))));
        let keys = "format = \"avro\"\nregistry = \"http://r:81/ccompat/\"\nregistry_user = \"u\"\nregistry_password_file = \"p\"";
        let registry = RegistryDef {
            url: "http://r:81/ccompat".into(),
            credentials: Some(RegistryCredentials {
                user: "u".into(),
                password_file: password,
            }),
        };
        let expected = MessageFormat::RegisteredAvro(registry);
        assert_eq!(checked(keys, base), Ok(expected));
    }

    #[test]
    fn messages_name_the_key_and_the_fix() {
        let folder = tempfile::tempdir().expect("a folder");
        let base = folder.path();
        std::fs::write(base.join("a.avsc"), "\"integer\"").expect("a file");
        std::fs::write(base.join("p"), "secret\n").expect("a file");
        let mode = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(base.join("p"), mode).expect("the file is ours");
        let avro = "format = \"avro\"\n";
        let registry = "registry = \"http://r\"\n";
        let wrong = [
            "format = \"protobuf\"".into(),
            "schema_file = \"a.avsc\"".into(),
            avro.into(),
            format!("{avro}{registry}schema_file = \"a.avsc\""),
            format!("{avro}schema_file = \"a.avsc\""),
            format!("{avro}schema_file = \"b.avsc\""),
            format!("{avro}registry = \"r:8081\""),
            format!("{avro}registry = \"http://u:p@r\""),
            format!("{avro}{registry}registry_user = \"u\""),
            format!("{avro}{registry}registry_user = \"u\"\nregistry_password_file = \"p\""),
            format!("{avro}{registry}registry_user = \"u\"\nregistry_password_file = \"q\""),
        ];
        let messages = wrong.map(|keys: String| checked(&keys, base).expect_err("wrong"));
        let messages = messages.join("\n");
        let messages = messages.replace(&base.display().to_string(), "BASE");
        insta::assert_snapshot!(messages, @r#"
        format = "protobuf": write "json" or "avro"
        `schema_file` is for format = "avro"; write that, or remove the key
        format = "avro" needs either `schema_file`, for messages without a header, or `registry`, for those that name their schema
        format = "avro" needs either `schema_file`, for messages without a header, or `registry`, for those that name their schema
        schema_file: BASE/a.avsc is not a schema of Avro: Unknown primitive type: integer
        schema_file: BASE/b.avsc: No such file or directory (os error 2)
        registry = "r:8081": write http://HOST:PORT or https://HOST:PORT
        registry: write user and password as `registry_user` and `registry_password_file`
        `registry_user` and `registry_password_file` need each other, and `registry`
        registry_password_file: others can read the password in BASE/p; run `chmod 600 BASE/p`
        registry_password_file: the file BASE/q does not exist
        "#);
    }
}
