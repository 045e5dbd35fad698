//! Configuration, in stages: the file as typed (`raw`), the environment's values over it, then each
//! section checked once into [`Config`], of which modules get their own part.
//!
//! `schema` checks declarations against SQL; everything that can be checked without it is checked
//! here.

mod address;
mod avro;
mod declarations;
mod environment;
mod error;
mod file;
mod http;
mod kafka;
mod limits;
mod location;
mod machine;
mod raw;
mod shown;
pub(crate) mod sinks;
mod sources;
pub(crate) mod stream;
pub(crate) mod time_range;
pub mod units;
pub mod zone;

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

pub use address::public_address;
pub(crate) use avro::{MessageFormat, RegistryDef};
use environment::Environment;
use error::with_next_step;
pub use error::{ConfigError, ValueLocation};
pub(crate) use file::{FileDef, ReadOrder};
pub(crate) use http::{HeaderValue, HttpPollDef, HttpRequest, HttpStreamDef, NextPage};
pub(crate) use kafka::{KafkaDef, Security, StartFrom, Topics};
pub(crate) use limits::{Limits, Log};
pub use location::Location;
use location::SourceText;
use raw::ConfigFile;
use serde::Deserialize;
pub(crate) use sinks::{Sink, SinkKind, SinkStart};
pub(crate) use sources::{Source, SourceKind};
pub use stream::{
    DUPLICATE_KEY_BYTES, Declarations, DuplicatesDef, IdempotencyLimits, Late, PlacesDef,
    SESSION_BYTES, SearchDef, SessionDef, SqlBounds, StreamDef, TableDef, VENUE_BYTES,
    WINDOW_GROUP_BYTES, WatermarkDef, WindowDef,
};
use units::Span;

/// The configuration in force: what the file, the environment and `--memory` set, checked except for
/// SQL. Paths are joined with the file's folder.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it came from; none where only the data folder is used.
    pub(crate) path: Option<PathBuf>,
    /// The file's text, in which errors are located.
    text: String,
    /// `--memory` was given, which precedes the environment and the file.
    has_memory_flag: bool,
    /// The data folder.
    pub(crate) data: PathBuf,
    /// From 0 to [`MAX_INSTANCE`]: keeps LSNs of this log apart from those of other instances.
    pub(crate) instance: u16,
    pub(crate) server: Server,
    pub(crate) limits: Limits,
    pub(crate) log: Log,
    pub(crate) partition: PartitionBy,
    pub(crate) sources: Vec<Source>,
    /// Where rows of tables are sent.
    pub(crate) sinks: Vec<Sink>,
    pub(crate) declared: Declarations,
    /// How long rows of `raw` stay.
    pub(crate) raw_retention: Span,
    /// How long rows of `dead_letters` stay.
    pub(crate) dead_letters_retention: Span,
}

/// `[server]` in force.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    /// The listening address: loopback, unless TLS and tokens are set.
    pub http: SocketAddr,
    /// Whether records are accepted over HTTP.
    pub ingest: bool,
    /// Certificate and private key.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Hashes and rights of the accepted tokens, one per line; without it none is needed.
    pub token_file: Option<PathBuf>,
    /// The folder below which a backup over HTTP may be written.
    pub backups: Option<PathBuf>,
}

/// How event time splits a table into folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PartitionBy {
    /// A folder for each hour, the default.
    Hour,
    /// A folder for each day.
    Day,
}

impl PartitionBy {
    /// As `[lake] partition` names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }
}

/// The configuration file where none is named.
const DEFAULT_FILE: &str = "weir.toml";
const MAX_INSTANCE: u16 = 1023;

/// Reads and checks the file `named`, else `./weir.toml`; without it, defaults and the data folder
/// `./weir-data`. `memory` is the command line's, such as `1GiB`. The error says where in the file,
/// and what to do.
pub fn load(named: Option<&Path>, memory: Option<&str>) -> Result<Config, ConfigError> {
    let default = Path::new(DEFAULT_FILE);
    let path = match named {
        Some(path) => Some(path),
        None if default.exists() => Some(default),
        None => None,
    };
    let text = match path {
        Some(path) => std::fs::read_to_string(path).map_err(|e| ConfigError {
            path: path.to_owned(),
            line: None,
            column: None,
            message: format!(
                "cannot be read: {e}; name a configuration with -c, or create one with `weir init`"
            ),
        })?,
        None => String::new(),
    };
    parse(path, text, memory, &process_environment)
}

fn process_environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Checks a configuration's text. `path` is the file that it came from, with whose folder paths are
/// joined; `memory` is the command line's, such as `1GiB`; `env` looks up `WEIR_…` variables.
pub fn parse(
    path: Option<&Path>,
    text: String,
    memory: Option<&str>,
    env: Environment<'_>,
) -> Result<Config, ConfigError> {
    let at = SourceText {
        path: path.unwrap_or(Path::new(DEFAULT_FILE)),
        text: &text,
    };
    let file = read(&at, env)?;
    let base = path
        .and_then(Path::parent)
        .unwrap_or(Path::new(""))
        .to_owned();
    let server = server(&file.server, &base, &at)?;
    let limits = Limits::resolve(&file.limits, memory)
        .map_err(|e| at.error(at.line_of("[limits]"), e.to_string()))?;
    let declared = declarations::declarations(&file, &at)?;
    limits::check_memory(&limits, &declared)
        .map_err(|e| at.error(at.line_of("memory"), e.to_string()))?;
    let sources = sources::sources(&file.sources, &base, &declared, &at)?;
    let sinks = sinks::sinks(&file.sinks, &base, &declared, &at)?;
    let (raw_retention, dead_letters_retention) = declarations::system_retention(&file, &at)?;
    check_is_built(&file, &at)?;
    let partition = partition(file.lake.partition.as_deref(), &at)?;
    let instance = file.instance.unwrap_or(0);
    if instance > MAX_INSTANCE {
        return Err(at.error(
            at.line_of("instance"),
            format!("instance = {instance}: at most {MAX_INSTANCE}"),
        ));
    }
    let data = base.join(file.data.clone().unwrap_or_else(|| "./weir-data".into()));
    Ok(Config {
        path: path.map(Path::to_owned),
        data,
        instance,
        server,
        log: limits::log(&file.log, limits.disk, &at)?,
        limits,
        partition,
        sources,
        sinks,
        declared,
        raw_retention,
        dead_letters_retention,
        has_memory_flag: memory.is_some(),
        text,
    })
}

/// The file as typed, with the environment's values in place of its own. It is deserialized twice:
/// first as it is, for errors with their location, which values of the environment do not have.
fn read(at: &SourceText<'_>, env: Environment<'_>) -> Result<ConfigFile, ConfigError> {
    let mut table: toml::Table =
        toml::from_str(at.text).map_err(|e| at.error_at(e.span(), e.message().to_owned()))?;
    toml::from_str::<ConfigFile>(at.text)
        .map_err(|e| at.error_at(e.span(), with_next_step(e.message())))?;
    environment::overlay(&mut table, env);
    ConfigFile::deserialize(toml::Value::Table(table))
        .map_err(|e: toml::de::Error| at.error(None, with_next_step(e.message())))
}

impl Config {
    /// The file's name in messages.
    pub(crate) fn file_name(&self) -> PathBuf {
        self.path.clone().unwrap_or_else(|| DEFAULT_FILE.into())
    }

    /// An error that points into the value of a stream's key (at the declaration, where the key
    /// comes from a preset).
    pub(crate) fn stream_error(&self, stream: &str, key: &str, message: String) -> ConfigError {
        self.error_in(["streams", stream, key], ValueLocation::default(), message)
    }

    /// An error that points at a window's SQL.
    pub(crate) fn window_error(&self, window: &str, message: String) -> ConfigError {
        self.error_in(
            ["windows", window, "sql"],
            ValueLocation::default(),
            message,
        )
    }

    /// An error that points at an entity table's SQL.
    pub(crate) fn table_error(&self, table: &str, message: String) -> ConfigError {
        self.error_in(
            ["tables", table, "select"],
            ValueLocation::default(),
            message,
        )
    }

    /// An error in a sink, by its name.
    pub(crate) fn sink_error(&self, sink: &str, reason: &str) -> ConfigError {
        let at = SourceText {
            path: &self.file_name(),
            text: &self.text,
        };
        let line = at.line_of(&format!("name = \"{sink}\""));
        at.error(line, format!("sink `{sink}`: {reason}"))
    }

    /// An error that points into the value of a key, or at its section's header where the file
    /// does not have the key.
    pub(crate) fn error_in(
        &self,
        path: [&str; 3],
        location: ValueLocation,
        message: String,
    ) -> ConfigError {
        let at = SourceText {
            path: &self.file_name(),
            text: &self.text,
        };
        if let Some(value) = at.value(&path, location.item) {
            return at.located(at.inside(value, location.text), message);
        }
        let [section, name, _] = path;
        let header = [
            format!("[{section}.{name}]"),
            format!("[{section}.\"{name}\"]"),
        ];
        at.error(header.iter().find_map(|header| at.line_of(header)), message)
    }

    /// Whether the file itself, not a preset, has a key.
    pub(crate) fn has(&self, path: [&str; 3]) -> bool {
        SourceText {
            path: &self.file_name(),
            text: &self.text,
        }
        .value(&path, None)
        .is_some()
    }
}

fn server(typed: &raw::Server, base: &Path, at: &SourceText<'_>) -> Result<Server, ConfigError> {
    let text = typed.http.as_deref().unwrap_or("127.0.0.1:8080");
    let http = text
        .to_socket_addrs()
        .ok()
        .and_then(|mut a| a.next())
        .ok_or_else(|| {
            at.error(
                at.line_of("http"),
                format!(
                    "http = \"{text}\" is not an address: write for example \"127.0.0.1:8080\""
                ),
            )
        })?;
    let join = |p: &Option<PathBuf>| p.as_ref().map(|p| base.join(p));
    let tls = join(&typed.tls_cert).zip(join(&typed.tls_key));
    let token_file = join(&typed.token_file);
    if !http.ip().is_loopback() && (tls.is_none() || token_file.is_none()) {
        let message = format!(
            "http = \"{text}\" can be reached from other machines: it needs tls_cert, tls_key and token_file (`weir token create` fills the last), or an address on 127.0.0.1"
        );
        return Err(at.error(at.line_of("http"), message));
    }
    for path in tls.iter().flat_map(|(c, k)| [c, k]).chain(&token_file) {
        if !path.exists() {
            return Err(at.error(
                at.line_of("[server]"),
                format!("the file {} does not exist", path.display()),
            ));
        }
    }
    let backups = join(&typed.backups);
    Ok(Server {
        http,
        ingest: typed.ingest.unwrap_or(true),
        tls,
        token_file,
        backups,
    })
}

fn partition(typed: Option<&str>, at: &SourceText<'_>) -> Result<PartitionBy, ConfigError> {
    match typed {
        None | Some("hour") => Ok(PartitionBy::Hour),
        Some("day") => Ok(PartitionBy::Day),
        Some(other) => Err(at.error(
            at.line_of("partition"),
            format!("partition = \"{other}\": write \"hour\" or \"day\""),
        )),
    }
}

/// Refuses sections that are planned and not built.
fn check_is_built(file: &ConfigFile, at: &SourceText<'_>) -> Result<(), ConfigError> {
    let refuse = |header: &str, feature: &str| {
        Err(at.error(
            at.line_of(header),
            format!("{feature} are not built yet; remove the section"),
        ))
    };
    if file.lake.url.is_some() {
        return refuse("url", "shared lakes (`[lake] url`)");
    }
    Ok(())
}

/// What the reference in `docs` shows beyond what the program uses.
#[cfg(test)]
pub(crate) mod reference {
    pub(crate) use super::environment::variables;
    pub(crate) use super::limits::reference as limits;
    pub(crate) use super::stream::CountDef;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets;

    fn parsed(text: &str) -> Result<Config, String> {
        parse(Some(Path::new("weir.toml")), text.to_owned(), None, &|_| {
            None
        })
        .map_err(|e| e.to_string())
    }

    #[test]
    fn an_empty_file_has_the_defaults() {
        let config = parsed("").expect("valid");
        assert_eq!(config.data, Path::new("./weir-data"));
        assert_eq!(config.server.http.port(), 8080);
    }

    #[test]
    fn every_preset_is_a_stream() {
        for name in presets::names() {
            let config = parsed(&format!("[streams.things]\npreset = \"{name}\"")).expect("valid");
            assert!(
                config.declared.streams["things"]
                    .select
                    .contains("from things")
            );
        }
    }

    #[test]
    fn keys_next_to_a_preset_replace_its_keys() {
        let config = parsed("[streams.a]\npreset = \"rsvps\"\nretention = \"30d\"\nrequire = []")
            .expect("valid");
        assert!(config.declared.streams["a"].require.is_empty());
        assert_eq!(
            config.declared.streams["a"].retention,
            Some(Span::seconds(30 * 86_400))
        );
    }

    #[test]
    fn the_environment_takes_precedence_over_the_file() {
        let env = |name: &str| (name == "WEIR_LOG_SEGMENT").then(|| "8MiB".to_owned());
        let config = parse(
            None,
            "[log]\nsegment = \"64MiB\"".into(),
            Some("1GiB"),
            &env,
        )
        .expect("valid");
        assert_eq!(config.log.segment, 8 << 20);
        assert_eq!(config.limits.memory, 1 << 30);
    }

    #[test]
    fn streams_whose_checkpoints_would_have_one_name_are_refused() {
        let stream = |name: &str| format!("[streams.{name}]\npreset = \"rsvps\"\n");
        for (a, b, clashes) in [
            ("search", "recent", true),
            ("places", "old", true),
            ("counts", "recent", true),
            ("recent", "old", false),
            ("search", "places", false),
            ("lake", "recent", false),
        ] {
            let error = parsed(&(stream(a) + &stream(b))).err().unwrap_or_default();
            let is_refused = error.contains("a checkpoint of one");
            assert_eq!(is_refused, clashes, "{a} {b}: {error}");
        }
        // Without indexes there are no two checkpoints of one name.
        let plain = |name: &str| {
            format!(
                "[streams.{name}]\nschema = \"at timestamp\"\nselect = \"select at as event_time from {name}\"\n"
            )
        };
        assert!(parsed(&(plain("search") + &plain("recent"))).is_ok());
        assert!(parsed(&(stream("search") + &plain("recent"))).is_ok());
    }

    #[test]
    fn messages_say_where_and_what_to_do() {
        let wrong = [
            "[log]\nsgment = \"64MiB\"",
            "[server]\nhttp = \"0.0.0.0:8080\"",
            "\n[[sources]]\nname = \"a\"\ntype = \"file\"\npath = \"logs\"\ninclude = [\"*.json\", \"[a\"]\n[streams.a]\npreset = \"rsvps\"",
            "[[sources]]\nname = \"a\"\ntype = \"file\"\npath = \"-\"\norder = \"event_time\"\n[streams.a]\npreset = \"rsvps\"",
            "[[sources]]\nname = \"a\"\ntype = \"file\"\npath = \"logs/*.json\"\norder = \"event_time\"\n[streams.a]\npreset = \"rsvps\"",
            "[[sources]]\nname = \"a\"\ntype = \"file\"\npath = \"/\"\norder = \"event_time\"\n[streams.a]\npreset = \"rsvps\"",
            "[[sources]]\nname = \"a\"\ntype = \"file\"\npath = \"logs\"\nrecursive = true\norder = \"event_time\"\n[streams.a]\npreset = \"rsvps\"",
            "[[sources]]\nname = \"a\"\ntype = \"file\"\npath = \"in.json\"\norder = \"time\"\n[streams.a]\npreset = \"rsvps\"",
            "[[sources]]\nname = \"a\"\ntype = \"websocket\"\nurl = \"ws://localhost:1\"\norder = \"event_time\"\n[streams.a]\npreset = \"rsvps\"",
            "[streams.raw]\npreset = \"rsvps\"",
            "[streams.a]\npreset = \"nothing\"",
            "[streams.a]\npreset = \"rsvps\"\nretensjon = \"1d\"",
            "[limits]\nmemory = \"100MiB\"",
            "[log]\nkeep = \"1 fortnight\"",
            "[streams.a]\npreset = \"rsvps\"\n[windows.a]\nsql = \"select 1\"",
            "[limits]\nmemory = \"600MiB\"\n[streams.a]\npreset = \"rsvps\"\n[streams.b]\npreset = \"rsvps\"",
            "[log]\nbudget = \"100MiB\"\nsegment = \"64MiB\"",
            "\n[streams.a]\npreset = \"rsvps\"\nrepeat = { same = [\"guests\"], within = \"1s\" }",
            "\n[streams.a]\npreset = \"edits\"\nsession = { key = \"user_name\", gap = \"30m\", what = \"page\" }",
            "[streams.a]\npreset = \"rsvps\"\n[windows.w]\nsql = \"select 1\"\nlate = \"amend\"",
            "[lake]\npartition = \"month\"",
        ];
        let messages: Vec<String> = wrong
            .iter()
            .map(|w| parsed(w).expect_err("wrong"))
            .collect();
        insta::assert_snapshot!(messages.join("\n"));
    }
}
