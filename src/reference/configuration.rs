//! `configuration.md`: the keys of `weir.toml`, from the structs that they are read into. A key of a
//! table within a section is written with a dot.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::markdown::{code, paragraph, table};
use super::source::{self, Item};
use crate::config::reference::{limits, variables};
use crate::config::{
    self, Config, SinkKind, SourceKind, StreamDef, TableDef, WatermarkDef, WindowDef,
};
use crate::config::{DuplicatesDef, PlacesDef, SearchDef, SessionDef};

/// Files in which the structs are.
const FILES: [&str; 2] = ["src/config/raw.rs", "src/config/stream.rs"];

const HEADER: [&str; 4] = ["key", "type", "default", "meaning"];

const INTRODUCTION: &str = "Weir reads `./weir.toml`, or the file that `-c` names; paths are relative to its folder. An unknown \
key is an error with its line and column. `weir check` checks the file, `weir check --show` prints every limit in force with \
its origin.";

const UNITS: &str = "A *duration* is a number and a unit: `500ms`, `10s`, `5m`, `2h`, `60d`. A *size* likewise: `512B`, `64KiB`, \
`64MiB`, `1GiB`. A key without a default is optional where it is not marked *required*; its text says what is done \
without it.";

/// An example with every type of source and sink, from which their defaults are read.
const EXAMPLE: &str = r#"
[streams.a]
schema = "at timestamp"
select = "select at as event_time from a"
[[sources]]
name = "file"
type = "file"
path = "a.ndjson"
[[sources]]
name = "open"
type = "http_stream"
url = "https://example.org/a"
[[sources]]
name = "poll"
type = "http_poll"
url = "https://example.org/a"
[[sources]]
name = "broker"
type = "kafka"
brokers = ["127.0.0.1:9092"]
topics = { a = "a" }
[[sinks]]
name = "hook"
type = "http"
from = "a"
url = "https://example.org/a"
[[sinks]]
name = "database"
type = "postgres"
from = "a"
url = "postgres://weir@127.0.0.1/a"
"#;

/// The page.
pub fn page() -> String {
    let texts: Vec<String> = FILES
        .iter()
        .map(|file| source::read(Path::new(file)))
        .collect();
    let sections = Sections {
        texts,
        defaults: defaults(),
    };
    let mut out = "# Configuration\n\n".to_owned() + &paragraph(INTRODUCTION) + &paragraph(UNITS);
    out += "```toml\n";
    out += "data = \"./weir-data\"\n\n[[sources]]\nname = \"clicks\"\ntype = \"file\"\npath = \"clicks.ndjson\"\n\n";
    out += "[streams.clicks]\nschema = \"at timestamp not null, page varchar\"\n";
    out += "select = \"select at as event_time, page from clicks\"\n```\n\n";
    out += "## Top level\n\n";
    out += &variables_of("");
    let top = sections.fields("ConfigFile");
    out += &table(
        HEADER,
        &sections.rows("ConfigFile", "", &|key| heading_of(&top, key)),
    );
    for field in &top {
        out += &sections.section(field);
    }
    out
}

/// The text of a key of the top level whose value is a section of its own.
fn heading_of(top: &[Item], key: &str) -> Option<String> {
    let field = top.iter().find(|field| field.name == key)?;
    let name = &field.name;
    match field.ty.as_str() {
        ty if ty.starts_with("Vec<") => Some(format!("sections `[[{name}]]`")),
        ty if ty.starts_with("BTreeMap<") => Some(format!("sections `[{name}.NAME]`")),
        ty if ty.starts_with("Option<") => None,
        _ => Some(format!("section `[{name}]`")),
    }
}

struct Sections {
    texts: Vec<String>,
    /// By struct and key.
    defaults: BTreeMap<(&'static str, String), String>,
}

impl Sections {
    fn find(&self, structure: &str) -> Option<Vec<Item>> {
        self.texts
            .iter()
            .find_map(|text| source::fields(text, structure))
    }

    fn fields(&self, structure: &str) -> Vec<Item> {
        self.find(structure)
            .unwrap_or_else(|| panic!("no struct `{structure}` in {FILES:?}"))
    }

    /// The sections of a key of the top level.
    fn section(&self, field: &Item) -> String {
        let name = &field.name;
        let keys = |heading: &str, structure: &str| {
            let rows = self.rows(structure, "", &|_| None);
            format!("## {heading}\n\n{}", table(HEADER, &rows))
        };
        match (name.as_str(), field.ty.as_str()) {
            ("limits", _) => limits_section(),
            ("streams", _) => keys("`[streams.NAME]`", "StreamDef") + &presets(),
            ("windows", _) => keys("`[windows.NAME]`", "WindowDef"),
            ("tables", _) => {
                keys("`[tables.\"STREAM.NAME\"]`", "TableDef")
                    + &keys("`[tables.raw]` and `[tables.dead_letters]`", "SystemTable")
            }
            (_, ty) if ty.starts_with("Option<") => String::new(),
            (_, ty) if ty.starts_with("BTreeMap<") => {
                panic!("say in src/reference/configuration.rs what a section [{name}.NAME] is")
            }
            (_, ty) => match ty.strip_prefix("Vec<").and_then(|ty| ty.strip_suffix('>')) {
                Some(item) => keys(&format!("`[[{name}]]`"), item),
                None => {
                    let rows = self.rows(ty, "", &|_| None);
                    let variables = variables_of(name);
                    format!("## `[{name}]`\n\n{variables}{}", table(HEADER, &rows))
                }
            },
        }
    }

    /// The rows of a struct's keys, those of tables in it below.
    fn rows(
        &self,
        structure: &str,
        prefix: &str,
        type_of: &dyn Fn(&str) -> Option<String>,
    ) -> Vec<[String; 4]> {
        let mut out = Vec::new();
        for field in self.fields(structure) {
            let key = format!("{prefix}{}", field.name);
            let plain = plain_type(&field.ty);
            let nested = self.find(plain).filter(|_| type_of(&field.name).is_none());
            let ty = type_of(&field.name).unwrap_or_else(|| self.type_name(plain));
            let default = self.defaults.iter().find_map(|((of, name), value)| {
                (*of == structure && *name == field.name).then(|| code(value))
            });
            let default = match default {
                Some(default) if field.is_optional => default,
                _ if field.is_optional || type_of(&field.name).is_some() => String::new(),
                _ => "*required*".to_owned(),
            };
            out.push([code(&key), ty, default, field.doc.clone()]);
            if nested.is_some() {
                out.extend(self.rows(plain, &format!("{key}."), &|_| None));
            }
        }
        out
    }

    /// How users call the type of a field.
    fn type_name(&self, ty: &str) -> String {
        let name = match ty {
            "String" => "text",
            "PathBuf" => "path",
            "bool" => "`true` or `false`",
            "u16" | "u64" | "usize" => "number",
            "Size" => "size",
            "Span" => "duration",
            "TimeRange" => "two times",
            "Zone" => "time zone",
            "Keys" | "OneOrMany" => "text, or a list of texts",
            "Vec<String>" => "list of texts",
            "BTreeMap<String, String>" => "table of texts",
            "BTreeMap<String, Header>" => "table of texts, or of `{ file = \"PATH\" }`",
            other => return self.declared_type(other),
        };
        name.to_owned()
    }

    /// A struct is a table, an enum its words.
    fn declared_type(&self, ty: &str) -> String {
        if self.find(ty).is_some() {
            return "table".to_owned();
        }
        let variants = self
            .texts
            .iter()
            .find_map(|text| source::variants(text, ty));
        let variants = variants.unwrap_or_else(|| {
            panic!("say in src/reference/configuration.rs how users call `{ty}`")
        });
        let words: Vec<String> = variants.iter().map(|variant| code(&variant.name)).collect();
        words.join(" or ")
    }
}

/// A type without `Option`.
fn plain_type(ty: &str) -> &str {
    ty.strip_prefix("Option<")
        .and_then(|ty| ty.strip_suffix('>'))
        .unwrap_or(ty)
}

/// The variables that set keys of a section.
fn variables_of(section: &str) -> String {
    let names: Vec<String> = variables()
        .into_iter()
        .filter(|(of, _)| *of == section)
        .map(|(_, variable)| code(&variable))
        .collect();
    if names.is_empty() {
        return String::new();
    }
    paragraph(&format!(
        "Variables that precede the file: {}.",
        names.join(", ")
    ))
}

fn limits_section() -> String {
    let rows: Vec<[String; 5]> = limits();
    let header = ["key", "default", "minimum", "maximum", "meaning"];
    let introduction = "Each key is also a variable, such as `WEIR_LIMITS_MEMORY`; `--memory` precedes both. An error that a limit \
    causes names its key.";
    format!(
        "## `[limits]`\n\n{}{}",
        paragraph(introduction),
        table(header, &rows)
    )
}

fn presets() -> String {
    let names: Vec<String> = crate::presets::names().map(code).collect();
    paragraph(&format!(
        "`preset = \"NAME\"` takes every key from a ready-made declaration; keys beside it replace its keys. Presets: {}; \
         [their tables](tables.md).",
        names.join(", ")
    ))
}

/// Defaults by struct and key, from values that were deserialized without the keys.
fn defaults() -> BTreeMap<(&'static str, String), String> {
    let mut out = BTreeMap::new();
    let mut add = |structure: &'static str, values: toml::Table| {
        let values = values.into_iter().filter(|(_, value)| !value.is_table());
        out.extend(values.map(|(key, value)| ((structure, key), value.to_string())));
    };
    add(
        "StreamDef",
        with_defaults::<StreamDef>("schema = ''\nselect = ''"),
    );
    add(
        "DuplicatesDef",
        with_defaults::<DuplicatesDef>("same = []\nwithin = '1s'"),
    );
    add("SearchDef", with_defaults::<SearchDef>("text = []"));
    add(
        "CountDef",
        with_defaults::<config::reference::CountDef>("type = ''"),
    );
    let places = "venue = ''\nname = ''\nlat = ''\nlon = ''\nevent = ''\ndate = ''";
    add("PlacesDef", with_defaults::<PlacesDef>(places));
    add("WatermarkDef", with_defaults::<WatermarkDef>(""));
    add(
        "SessionDef",
        with_defaults::<SessionDef>("key = ''\ngap = '1s'"),
    );
    add("WindowDef", with_defaults::<WindowDef>("sql = ''"));
    add(
        "TableDef",
        with_defaults::<TableDef>("stream = ''\nkey = ''\nselect = ''"),
    );
    let config = config::parse(None, EXAMPLE.to_owned(), None, &|_| None).expect("the example");
    let (data, instance) = (
        config.data.display().to_string(),
        i64::from(config.instance),
    );
    add(
        "ConfigFile",
        keys([("data", data.into()), ("instance", instance.into())]),
    );
    for (structure, values) in in_force(&config) {
        add(structure, values);
    }
    out
}

/// A value as it is without its optional keys.
fn with_defaults<T: DeserializeOwned + Serialize>(required: &str) -> toml::Table {
    let value: T = toml::from_str(required).expect("the required keys");
    toml::Table::try_from(value).expect("plain data")
}

/// A table of these keys.
fn keys<const N: usize>(pairs: [(&str, toml::Value); N]) -> toml::Table {
    pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

fn span(time: std::time::Duration) -> toml::Value {
    config::units::Span(time).to_string().into()
}

fn size(bytes: u64) -> toml::Value {
    config::units::Size(bytes).to_string().into()
}

/// A variant as the configuration writes it.
fn word(value: &dyn std::fmt::Debug) -> toml::Value {
    format!("{value:?}").to_lowercase().into()
}

fn number(value: usize) -> toml::Value {
    toml::Value::Integer(value as i64)
}

/// Defaults of sections that are checked into something else, in a checked configuration.
fn in_force(config: &Config) -> Vec<(&'static str, toml::Table)> {
    let http = config.server.http.to_string();
    let retention = format!(
        "{} of raw, {} of dead_letters",
        config.raw_retention, config.dead_letters_retention
    );
    let log = &config.log;
    let mut out = vec![
        (
            "Server",
            keys([
                ("http", http.into()),
                ("ingest", config.server.ingest.into()),
            ]),
        ),
        (
            "Log",
            keys([
                ("segment", size(log.segment)),
                ("keep", span(log.keep)),
                ("budget", size(log.budget)),
            ]),
        ),
        (
            "Lake",
            keys([("partition", config.partition.name().into())]),
        ),
        ("SystemTable", keys([("retention", retention.into())])),
    ];
    out.extend(
        config
            .sources
            .iter()
            .map(|source| ("Source", of_source(&source.kind))),
    );
    out.extend(config.sinks.iter().map(|sink| {
        let mut values = of_sink(&sink.kind);
        values.insert("start".to_owned(), word(&sink.start));
        ("Sink", values)
    }));
    out
}

fn of_source(kind: &SourceKind) -> toml::Table {
    match kind {
        SourceKind::File(file) => keys([
            ("recursive", file.recursive.into()),
            ("order", word(&file.order)),
        ]),
        SourceKind::HttpStream(stream) => keys([("idle", span(stream.idle))]),
        SourceKind::HttpPoll(poll) => keys([
            ("every", span(poll.every)),
            ("pages", number(poll.pages)),
            ("remember", number(poll.remember)),
        ]),
        SourceKind::Kafka(kafka) => keys([
            ("group", kafka.group.as_str().into()),
            ("from", word(&kafka.from)),
            ("tombstone", kafka.tombstone.name().into()),
            ("format", word(&kafka.format)),
        ]),
        SourceKind::WebSocket { .. } => toml::Table::new(),
    }
}

fn of_sink(kind: &SinkKind) -> toml::Table {
    match kind {
        SinkKind::Http(http) => keys([
            ("batch_rows", number(http.batch_rows)),
            ("allow_private", http.allow_private.into()),
        ]),
        SinkKind::Postgres(postgres) => keys([
            ("schema", postgres.schema.as_str().into()),
            ("foreign_keys", postgres.foreign_keys.into()),
        ]),
        SinkKind::Kafka(kafka) => keys([("compression", kafka.compression.name().into())]),
        SinkKind::Elasticsearch(_) => toml::Table::new(),
    }
}
