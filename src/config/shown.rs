//! The configuration in force, as it is shown: settings with their origins, declarations, and
//! sources and sinks without their secrets.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::address::{HIDDEN, with_parameters};
use super::units::{Size, Span};
use super::{Config, environment, process_environment};

/// Keys of sources and sinks whose values may hold secrets: only their structure is shown.
const SECRET_KEYS: [&str; 1] = ["headers"];
/// Keys whose values are addresses, which may hold secrets in some of their parts.
const ADDRESS_KEYS: [&str; 2] = ["registry", "url"];
/// Keys whose values hold no secret.
const PLAIN_KEYS: [&str; 42] = [
    "allow_private",
    "api_key_file",
    "batch_rows",
    "brokers",
    "ca_file",
    "compression",
    "cursor",
    "every",
    "exclude",
    "file",
    "foreign_keys",
    "format",
    "from",
    "group",
    "idle",
    "include",
    "index",
    "key",
    "mechanism",
    "name",
    "next",
    "order",
    "pages",
    "parameter",
    "password_file",
    "path",
    "pattern",
    "protocol",
    "recursive",
    "registry_password_file",
    "remember",
    "schema",
    "schema_file",
    "secret_file",
    "security",
    "start",
    "stream",
    "token_file",
    "tombstone",
    "topic",
    "type",
    "unwrap",
];
/// Tables whose keys are names that the user chose, and whose values hold no secret.
const NAMED_TABLES: [&str; 1] = ["topics"];
/// Names of users: not passwords, and needed to see who connects.
const USER_KEYS: [&str; 2] = ["registry_user", "user"];

/// A setting in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Setting {
    /// With its section, such as `limits.memory`.
    pub key: String,
    pub value: String,
    /// The file, the environment variable or the flag that set it, or `default`.
    pub origin: String,
}

impl Config {
    /// Every limit in force, with where it comes from, a line each.
    pub(crate) fn show(&self) -> String {
        let line = |s: Setting| format!("{} = {}  # {}\n", s.key, s.value, s.origin);
        self.limit_settings().into_iter().map(line).collect()
    }

    /// What is in force, without secrets, as JSON:
    /// `{"settings", "streams", "windows", "tables", "sources", "sinks"}`.
    pub(crate) fn shown(&self) -> Value {
        let mut settings = self.other_settings();
        settings.extend(self.limit_settings());
        let typed: toml::Table = toml::from_str(&self.text).unwrap_or_default();
        let items = |key: &str| {
            let items = typed.get(key).and_then(toml::Value::as_array);
            items.into_iter().flatten()
        };
        let sources: Vec<Value> = items("sources").map(shown_item).collect();
        let sinks: Vec<Value> = items("sinks").map(shown_sink).collect();
        json!({
            "settings": settings,
            "streams": self.declared.streams,
            "windows": self.declared.windows,
            "tables": self.declared.tables,
            "sources": sources,
            "sinks": sinks,
        })
    }

    fn limit_settings(&self) -> Vec<Setting> {
        let limits = self.limits.in_force();
        limits
            .map(|(key, value)| self.setting("limits", key, value))
            .collect()
    }

    /// The settings of all sections but `[limits]`.
    fn other_settings(&self) -> Vec<Setting> {
        let path = |path: &std::path::Path| path.display().to_string();
        let optional = |p: Option<&std::path::PathBuf>| p.map_or("none".to_owned(), |p| path(p));
        let (server, log) = (&self.server, &self.log);
        let tls = server.tls.as_ref();
        let raw = ("tables", "raw.retention", self.raw_retention.to_string());
        let dead_letters = self.dead_letters_retention.to_string();
        [
            ("", "data", path(&self.data)),
            ("", "instance", self.instance.to_string()),
            ("server", "http", server.http.to_string()),
            ("server", "ingest", server.ingest.to_string()),
            ("server", "tls_cert", optional(tls.map(|(cert, _)| cert))),
            ("server", "tls_key", optional(tls.map(|(_, key)| key))),
            ("server", "token_file", optional(server.token_file.as_ref())),
            ("server", "backups", optional(server.backups.as_ref())),
            ("log", "segment", Size(log.segment).to_string()),
            ("log", "keep", Span(log.keep).to_string()),
            ("log", "budget", Size(log.budget).to_string()),
            ("lake", "partition", self.partition.name().to_owned()),
            raw,
            ("tables", "dead_letters.retention", dead_letters),
        ]
        .into_iter()
        .map(|(section, key, value)| self.setting(section, key, value))
        .collect()
    }

    fn setting(&self, section: &str, key: &str, value: String) -> Setting {
        let name = if section.is_empty() {
            key.to_owned()
        } else {
            format!("{section}.{key}")
        };
        Setting {
            origin: self.origin(section, key, &name),
            key: name,
            value,
        }
    }

    fn origin(&self, section: &str, key: &str, name: &str) -> String {
        if name == "limits.memory" && self.has_memory_flag {
            return "--memory".into();
        }
        let variable = if section.is_empty() {
            format!("WEIR_{}", key.to_uppercase())
        } else {
            environment::variable(section, key)
        };
        if process_environment(&variable).is_some() {
            return variable;
        }
        let table: toml::Table = toml::from_str(&self.text).unwrap_or_default();
        let (file, mut parts) = (toml::Value::Table(table), name.split('.'));
        let found = parts.try_fold(&file, |found, part| found.get(part));
        match found {
            Some(_) => self.file_name().display().to_string(),
            None => "default".into(),
        }
    }
}

/// A source or a sink as typed, without its secrets.
fn shown_item(item: &toml::Value) -> Value {
    let keys = item.as_table().into_iter().flatten();
    let shown = keys.map(|(key, value)| (key.clone(), shown_value(key, value)));
    Value::Object(shown.collect::<Map<String, Value>>())
}

/// Likewise; the whole address of a webhook may be a secret.
fn shown_sink(sink: &toml::Value) -> Value {
    let mut shown = shown_item(sink);
    if shown["type"] == "http"
        && let Some(url) = shown["url"].as_str()
    {
        let host = url.splitn(4, '/').take(3).collect::<Vec<&str>>().join("/");
        shown["url"] = format!("{host}/{HIDDEN}").into();
    }
    shown
}

/// A value by its key; what is not known to be without secrets is hidden.
fn shown_value(key: &str, value: &toml::Value) -> Value {
    let is = |keys: &[&str]| keys.contains(&key);
    match value {
        toml::Value::String(address) if is(&ADDRESS_KEYS) => with_parameters(address).into(),
        toml::Value::Table(headers) if is(&SECRET_KEYS) => {
            let shown = |(name, value): (&String, &toml::Value)| {
                let file = value.get("file").and_then(toml::Value::as_str);
                let value = file.map_or_else(|| json!(HIDDEN), |file| json!({"file": file}));
                (name.clone(), value)
            };
            Value::Object(headers.iter().map(shown).collect())
        }
        toml::Value::Table(_) if is(&PLAIN_KEYS) => shown_item(value),
        value if is(&PLAIN_KEYS) || is(&USER_KEYS) || is(&NAMED_TABLES) => {
            serde_json::to_value(value).unwrap_or_default()
        }
        _ => HIDDEN.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_sources_and_sinks_are_hidden() {
        let source = r#"
            name = "a"
            url = "https://host/?key=SECRET"
            headers = { authorization = "Bearer SECRET", x = { file = "key.txt" } }
            security = { protocol = "sasl_ssl", user = "ann", password = "SECRET", password_file = "p.txt" }
            topics = { "t" = "stream" }
            password = "SECRET"
            unknown = ["SECRET"]
        "#;
        let item = toml::from_str(source).expect("TOML");
        let shown = shown_item(&toml::Value::Table(item));
        assert!(!shown.to_string().contains("SECRET"), "{shown}");
        assert_eq!(
            shown["headers"],
            json!({"authorization": "hidden", "x": {"file": "key.txt"}})
        );
        assert_eq!(shown["security"]["password_file"], "p.txt");
        assert_eq!(shown["topics"], json!({"t": "stream"}));
        assert_eq!(shown["name"], "a");
        let webhook = "type = \"http\"\nurl = \"https://example.com/services/SECRET\"";
        let webhook = shown_sink(&toml::Value::Table(toml::from_str(webhook).expect("TOML")));
        assert_eq!(webhook["url"], "https://example.com/hidden");
    }

    #[test]
    fn every_setting_has_its_origin() {
        let text = "data = 'd'\n[limits]\nsql_rows = 7\n[tables.raw]\nretention = '2d'\n";
        let config = super::super::parse(None, text.into(), Some("1GiB"), &|_| None);
        let shown = config.expect("valid").shown();
        let origin = |key: &str| {
            let settings = shown["settings"].as_array().expect("settings");
            let setting = settings.iter().find(|s| s["key"] == key);
            let setting = setting.unwrap_or_else(|| panic!("{key} is missing"));
            (setting["value"].clone(), setting["origin"].clone())
        };
        assert_eq!(origin("limits.memory"), (json!("1GiB"), json!("--memory")));
        assert_eq!(origin("limits.sql_rows"), (json!("7"), json!("weir.toml")));
        assert_eq!(origin("tables.raw.retention").1, "weir.toml");
        assert_eq!(origin("data").1, "weir.toml");
        assert_eq!(origin("log.keep").1, "default");
        assert_eq!(origin("instance"), (json!("0"), json!("default")));
    }
}
