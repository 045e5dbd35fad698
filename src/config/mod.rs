//! Configuration: [`raw::File`] is what the user wrote, [`Config`] what it means, checked once;
//! modules get their own part.
//!
//! The declarations of streams are checked against SQL by `schema`; everything that can be known
//! without it is checked here.

mod file;
mod location;
pub mod raw;
pub mod stream;
pub mod time_range;
pub mod units;
pub mod zone;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::presets;
pub use file::{FileDef, ReadOrder};
pub use location::Location;
use location::SourceText;
pub use stream::{
    DUPLICATE_KEY_BYTES, Declarations, DuplicatesDef, IdempotencyLimits, Late, PlacesDef,
    SESSION_BYTES, SearchDef, SessionDef, SqlBounds, StreamDef, TableDef, VENUE_BYTES,
    WINDOW_GROUP_BYTES, WatermarkDef, WindowDef,
};
use units::{Size, Span};

/// What is wrong with a configuration: where, what, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    pub path: PathBuf,
    pub line: Option<usize>,
    pub column: Option<usize>,
    pub message: String,
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let part = |number: Option<usize>| number.map_or(String::new(), |n| format!(":{n}"));
        write!(
            f,
            "{}{}{}: {}",
            self.path.display(),
            part(self.line),
            part(self.column),
            self.message
        )
    }
}

impl std::error::Error for ConfigError {}

/// Where in a value something is wrong: which item of a list, and where in its text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ValueLocation {
    pub item: Option<usize>,
    pub text: Option<Location>,
}

/// The configuration in force.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it came from; none where the data folder speaks for itself.
    pub path: Option<PathBuf>,
    text: String,
    pub data: PathBuf,
    pub instance: u16,
    pub server: Server,
    pub limits: Limits,
    pub log: Log,
    pub partition: PartitionBy,
    pub sources: Vec<Source>,
    pub declared: Declarations,
    /// Retention of `raw` and `dead_letters`.
    pub raw_retention: Span,
    pub dead_letters_retention: Span,
}

#[derive(Debug, Clone)]
pub struct Server {
    pub http: SocketAddr,
    pub ingest: bool,
    pub tls: Option<(PathBuf, PathBuf)>,
    pub token_file: Option<PathBuf>,
    /// The folder below which a backup over HTTP may be written.
    pub backups: Option<PathBuf>,
}

#[derive(Debug, Clone)]
pub struct Limits {
    pub memory: u64,
    pub disk: Option<u64>,
    pub record: usize,
    pub body: usize,
    pub connections: usize,
    pub sql_time: Duration,
    pub sql_rows: usize,
    pub sql_result: usize,
    pub sql_concurrent: usize,
    pub search_limit: usize,
    pub dead_letter: usize,
    /// Rows, and times, after which a lake table is committed.
    pub lake_rows: usize,
    pub lake_recent: Duration,
    pub lake_old: Duration,
    /// Time between snapshots of the operators.
    pub snapshot: Duration,
}

/// The least memory that every preset works with.
pub const LEAST_MEMORY: u64 = 512 << 20;
/// What the process takes before any share.
const BASE_MEMORY: u64 = 96 << 20;

/// Fixed shares of the memory limit, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    pub queues: usize,
    pub ring: usize,
    pub hot_rows: usize,
    pub operators: usize,
    pub search: usize,
    pub lake: usize,
    pub sql: usize,
    pub counts_and_places: usize,
}

impl Shares {
    /// Of the lake's, what the footers of files have that queries read.
    pub fn footers(&self) -> usize {
        self.lake / 4
    }

    /// What a merge has.
    pub fn merges(&self) -> usize {
        self.lake - self.footers()
    }

    /// Of counts and places, what counts have.
    pub fn counts(&self) -> usize {
        self.counts_and_places / 4
    }

    /// What the points of places have.
    pub fn points(&self) -> usize {
        self.counts_and_places / 16 * 9
    }

    /// What places have beside their points.
    pub fn places(&self) -> usize {
        self.counts_and_places - self.counts() - self.points()
    }
}

impl Limits {
    pub fn shares(&self) -> Shares {
        let sixteenth = (self.memory.saturating_sub(BASE_MEMORY) / 16) as usize;
        Shares {
            queues: sixteenth,
            ring: sixteenth,
            hot_rows: 2 * sixteenth,
            operators: 4 * sixteenth,
            search: 2 * sixteenth,
            lake: 2 * sixteenth,
            sql: 3 * sixteenth,
            counts_and_places: sixteenth,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Log {
    pub segment: u64,
    pub keep: Duration,
    /// Bytes that the log may take.
    pub budget: u64,
}

/// How event time splits a table into folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionBy {
    Hour,
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

#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    pub name: String,
    pub stream: String,
    pub kind: SourceKind,
    /// The member of its objects that holds the records, in an array.
    pub unwrap: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum SourceKind {
    File(FileDef),
    WebSocket { url: String },
}

/// `./weir.toml` unless named; without it the data folder `./weir-data` speaks for itself.
pub fn load(named: Option<&Path>, memory: Option<&str>) -> Result<Config, ConfigError> {
    let default = Path::new("weir.toml");
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
                "cannot be read: {e}; name a configuration with -c, or make one with `weir init`"
            ),
        })?,
        None => String::new(),
    };
    parse(path, text, memory, &|name| std::env::var(name).ok())
}

/// Checks a configuration's text. `env` looks up `WEIR_…`.
pub fn parse(
    path: Option<&Path>,
    text: String,
    memory: Option<&str>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, ConfigError> {
    let at = SourceText {
        path: path.unwrap_or(Path::new("weir.toml")),
        text: &text,
    };
    let mut table: toml::Table =
        toml::from_str(&text).map_err(|e| at.error_at(e.span(), e.message().to_owned()))?;
    // Read once for positions, then again with the environment's values laid over.
    toml::from_str::<raw::File>(&text).map_err(|e| at.error_at(e.span(), explain(e.message())))?;
    overlay_environment(&mut table, env);
    let file = raw::File::deserialize_from(table).map_err(|message| at.error(None, message))?;
    let base = path
        .and_then(Path::parent)
        .unwrap_or(Path::new(""))
        .to_owned();
    let server = server(&file.server, &base, &at)?;
    let limits = limits(&file.limits, memory).map_err(|m| at.error(at.line_of("[limits]"), m))?;
    let declared = declarations(&file, &at)?;
    refuse_too_little_memory(&limits, &declared).map_err(|m| at.error(at.line_of("memory"), m))?;
    let sources = sources(&file, &base, &declared, &at)?;
    let (raw_retention, dead_letters_retention) = tables(&file, &at)?;
    refuse_what_is_not_built(&file, &at)?;
    let partition = match file.lake.partition.as_deref() {
        None | Some("hour") => PartitionBy::Hour,
        Some("day") => PartitionBy::Day,
        Some(other) => {
            let message = format!("partition = \"{other}\": write \"hour\" or \"day\"");
            return Err(at.error(at.line_of("partition"), message));
        }
    };
    let instance = file.instance.unwrap_or(0);
    if instance > 1023 {
        return Err(at.error(
            at.line_of("instance"),
            format!("instance = {instance}: at most 1023"),
        ));
    }
    let data = base.join(file.data.clone().unwrap_or_else(|| "./weir-data".into()));
    Ok(Config {
        path: path.map(Path::to_owned),
        data,
        instance,
        server,
        log: log(&file.log, limits.disk, &at)?,
        limits,
        partition,
        sources,
        declared,
        raw_retention,
        dead_letters_retention,
        text,
    })
}

impl Config {
    /// The file's name for messages.
    pub fn place(&self) -> PathBuf {
        self.path.clone().unwrap_or_else(|| "weir.toml".into())
    }

    /// Every limit in force, with where it comes from.
    pub fn show(&self) -> String {
        let l = &self.limits;
        let rows: [(&str, String); 15] = [
            ("memory", Size(l.memory).to_string()),
            (
                "disk",
                l.disk.map_or("none".into(), |d| Size(d).to_string()),
            ),
            ("record", Size(l.record as u64).to_string()),
            ("body", Size(l.body as u64).to_string()),
            ("connections", l.connections.to_string()),
            ("sql_time", Span(l.sql_time).to_string()),
            ("sql_rows", l.sql_rows.to_string()),
            ("sql_result", Size(l.sql_result as u64).to_string()),
            ("sql_concurrent", l.sql_concurrent.to_string()),
            ("search_limit", l.search_limit.to_string()),
            ("dead_letter", Size(l.dead_letter as u64).to_string()),
            ("lake_rows", l.lake_rows.to_string()),
            ("lake_recent", Span(l.lake_recent).to_string()),
            ("lake_old", Span(l.lake_old).to_string()),
            ("snapshot", Span(l.snapshot).to_string()),
        ];
        let table: toml::Table = toml::from_str(&self.text).unwrap_or_default();
        let origin = |key: &str| {
            let variable = format!("WEIR_LIMITS_{}", key.to_uppercase());
            let is_set = table.get("limits").and_then(|l| l.get(key)).is_some();
            if std::env::var_os(&variable).is_some() {
                variable
            } else if is_set {
                self.place().display().to_string()
            } else {
                "default".into()
            }
        };
        rows.iter()
            .map(|(key, value)| format!("limits.{key} = {value}  # {}\n", origin(key)))
            .collect()
    }

    /// An error that points into the value of a stream's key (at the declaration, where the key
    /// comes from a preset).
    pub fn stream_error(&self, stream: &str, key: &str, message: String) -> ConfigError {
        self.error_in(["streams", stream, key], ValueLocation::default(), message)
    }

    /// An error that points at a window's SQL.
    pub fn window_error(&self, window: &str, message: String) -> ConfigError {
        self.error_in(
            ["windows", window, "sql"],
            ValueLocation::default(),
            message,
        )
    }

    /// An error that points at an entity table's SQL.
    pub fn table_error(&self, table: &str, message: String) -> ConfigError {
        self.error_in(
            ["tables", table, "select"],
            ValueLocation::default(),
            message,
        )
    }

    /// An error that points into the value of a key, or at what it belongs to, where the file does
    /// not have the key.
    pub fn error_in(&self, path: [&str; 3], place: ValueLocation, message: String) -> ConfigError {
        let at = SourceText {
            path: &self.place(),
            text: &self.text,
        };
        if let Some(value) = at.value(&path, place.item) {
            return at.located(at.inside(value, place.text), message);
        }
        let [section, name, _] = path;
        let header = [
            format!("[{section}.{name}]"),
            format!("[{section}.\"{name}\"]"),
        ];
        at.error(header.iter().find_map(|header| at.line_of(header)), message)
    }

    /// Whether the file itself has a key.
    pub fn has(&self, path: [&str; 3]) -> bool {
        SourceText {
            path: &self.place(),
            text: &self.text,
        }
        .value(&path, None)
        .is_some()
    }
}

impl raw::File {
    fn deserialize_from(table: toml::Table) -> Result<Self, String> {
        serde::Deserialize::deserialize(toml::Value::Table(table))
            .map_err(|e: toml::de::Error| explain(e.message()))
    }
}

/// Words of configurations that have another name now.
const RENAMED: [(&str, &str); 3] = [
    ("repeat", "duplicates"),
    ("what", "track"),
    ("amend", "update"),
];

/// Adds the next step to what the parser says.
fn explain(message: &str) -> String {
    let is_unknown = |word: &str| {
        message.starts_with(&format!("unknown field `{word}`"))
            || message.starts_with(&format!("unknown variant `{word}`"))
    };
    if let Some((old, new)) = RENAMED.iter().find(|(old, _)| is_unknown(old)) {
        format!("`{old}` is now called `{new}`; rename it")
    } else if message.starts_with("unknown field") {
        format!("{message}; remove the key or fix the spelling")
    } else {
        message.to_owned()
    }
}

/// `WEIR_DATA`, `WEIR_INSTANCE` and `WEIR_<SECTION>_<KEY>` for server, limits, log and lake.
fn overlay_environment(table: &mut toml::Table, env: &dyn Fn(&str) -> Option<String>) {
    const KEYS: [(&str, &[&str]); 4] = [
        (
            "server",
            &[
                "http",
                "ingest",
                "tls_cert",
                "tls_key",
                "token_file",
                "backups",
            ],
        ),
        (
            "limits",
            &[
                "memory",
                "disk",
                "record",
                "body",
                "connections",
                "sql_time",
                "sql_rows",
                "sql_result",
                "sql_concurrent",
                "search_limit",
                "dead_letter",
                "lake_rows",
                "lake_recent",
                "lake_old",
                "snapshot",
            ],
        ),
        ("log", &["segment", "keep", "budget"]),
        ("lake", &["url", "partition"]),
    ];
    fn value(text: String) -> toml::Value {
        match (text.parse::<i64>(), text.parse::<bool>()) {
            (Ok(n), _) => n.into(),
            (_, Ok(b)) => b.into(),
            _ => text.into(),
        }
    }
    for key in ["data", "instance"] {
        if let Some(text) = env(&format!("WEIR_{}", key.to_uppercase())) {
            table.insert(key.into(), value(text));
        }
    }
    for (section, keys) in KEYS {
        for key in keys {
            if let Some(text) = env(&format!(
                "WEIR_{}_{}",
                section.to_uppercase(),
                key.to_uppercase()
            )) {
                let entry = table
                    .entry(section)
                    .or_insert_with(|| toml::Table::new().into());
                if let Some(section) = entry.as_table_mut() {
                    section.insert((*key).into(), value(text));
                }
            }
        }
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
                format!("http = \"{text}\" is no address: write for example \"127.0.0.1:8080\""),
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

fn limits(typed: &raw::Limits, memory: Option<&str>) -> Result<Limits, String> {
    let memory = match memory {
        Some(text) => {
            text.parse::<Size>()
                .map_err(|e| format!("--memory: {e}"))?
                .0
        }
        None => typed.memory.map_or_else(default_memory, |s| s.0),
    };
    if memory < LEAST_MEMORY {
        return Err(format!(
            "memory = {}: the least that works is {}",
            Size(memory),
            Size(LEAST_MEMORY)
        ));
    }
    let bytes = |size: Option<Size>, default: u64| size.map_or(default, |s| s.0) as usize;
    Ok(Limits {
        memory,
        disk: typed.disk.map(|s| s.0),
        record: bytes(typed.record, 1 << 20).clamp(1 << 10, 16 << 20),
        body: bytes(typed.body, 16 << 20).clamp(1 << 10, 32 << 20),
        connections: typed.connections.unwrap_or(512).max(1),
        sql_time: typed.sql_time.map_or(Duration::from_secs(30), |s| s.0),
        sql_rows: typed.sql_rows.unwrap_or(100_000),
        sql_result: bytes(typed.sql_result, 64 << 20),
        sql_concurrent: typed.sql_concurrent.unwrap_or(8).max(1),
        search_limit: typed.search_limit.unwrap_or(1_000),
        dead_letter: bytes(typed.dead_letter, 64 << 10),
        lake_rows: typed.lake_rows.unwrap_or(256 << 10).max(1),
        lake_recent: typed.lake_recent.map_or(Duration::from_secs(60), |s| s.0),
        lake_old: typed.lake_old.map_or(Duration::from_secs(300), |s| s.0),
        snapshot: typed.snapshot.map_or(Duration::from_secs(300), |s| s.0),
    })
}

/// What operators remember is part of what streams and windows are; its memory must be there.
/// Deduplicator are by far the most of it, and are counted with the copy that catches up.
fn refuse_too_little_memory(limits: &Limits, declared: &Declarations) -> Result<(), String> {
    let keys: usize = declared
        .streams
        .values()
        .filter_map(|s| s.duplicates.as_ref())
        .map(|r| r.max_keys)
        .sum();
    let open: usize = declared
        .streams
        .values()
        .filter_map(|s| s.session.as_ref())
        .map(|s| s.max_open)
        .sum();
    let groups: usize = declared.windows.values().map(|w| w.max_groups).sum();
    let needed = (2 * keys.saturating_mul(DUPLICATE_KEY_BYTES))
        .saturating_add(open.saturating_mul(SESSION_BYTES))
        .saturating_add(groups.saturating_mul(WINDOW_GROUP_BYTES));
    if needed <= limits.shares().operators {
        return refuse_too_many_venues(limits, declared);
    }
    let least = BASE_MEMORY.saturating_add(4 * needed as u64);
    Err(format!(
        "memory = {}: {keys} keys of `duplicates`, {open} open sessions and {groups} groups of windows need {} (`[limits] memory`, or --memory), or a smaller `max_keys`, `max_open` or `max_groups`",
        Size(limits.memory),
        Size(least.next_multiple_of(1 << 20))
    ))
}

/// The points of venues are held in memory: within their part of the share of counts and places.
fn refuse_too_many_venues(limits: &Limits, declared: &Declarations) -> Result<(), String> {
    let venues: usize = declared
        .streams
        .values()
        .filter_map(|s| s.places.as_ref())
        .map(|p| p.max_venues)
        .sum();
    let needed = venues.saturating_mul(VENUE_BYTES);
    if needed <= limits.shares().points() {
        return Ok(());
    }
    // The share is a sixteenth, and points are nine sixteenths of that.
    let least = BASE_MEMORY.saturating_add((needed as u64).saturating_mul(256) / 9 + 256);
    Err(format!(
        "memory = {}: {venues} venues on the map need {} (`[limits] memory`, or --memory), or a smaller `max_venues` of `places`",
        Size(limits.memory),
        Size(least.next_multiple_of(1 << 20))
    ))
}

/// Segments that the log needs: one being written, one for control frames, one that views still
/// read.
const LEAST_SEGMENTS: u64 = 4;

/// Where the disk is limited, the log takes a quarter of it at most, and shorter segments if need
/// be.
fn log(typed: &raw::Log, disk: Option<u64>, at: &SourceText<'_>) -> Result<Log, ConfigError> {
    let share = disk.map_or(u64::MAX, |disk| disk / 4);
    let budget = typed.budget.map_or(10 << 30, |s| s.0).min(share);
    let segment = typed
        .segment
        .map_or((64 << 20).min(budget / LEAST_SEGMENTS), |s| s.0)
        .clamp(1 << 20, 1 << 30);
    if budget < LEAST_SEGMENTS * segment {
        let message = format!(
            "the log may take {} and a segment is {}; it needs {LEAST_SEGMENTS} of them: raise `[log] budget` (or `[limits] disk`, of which the log takes a quarter), or lower `[log] segment`",
            Size(budget),
            Size(segment)
        );
        return Err(at.error(at.line_of("[log]").or_else(|| at.line_of("disk")), message));
    }
    Ok(Log {
        segment,
        keep: typed.keep.map_or(Duration::from_secs(24 * 3_600), |s| s.0),
        budget,
    })
}

/// A quarter of the machine's memory, at least 512 MiB, at most 2 GiB.
fn default_memory() -> u64 {
    let kib = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            text.lines()
                .find_map(|l| l.strip_prefix("MemTotal:"))?
                .split_whitespace()
                .next()?
                .parse::<u64>()
                .ok()
        });
    kib.map_or(LEAST_MEMORY, |kib| kib * 1024 / 4)
        .clamp(LEAST_MEMORY, 2 << 30)
}

/// Streams and windows, presets expanded; what a stream's keys or the file's own windows say goes
/// before a preset's.
fn declarations(file: &raw::File, at: &SourceText<'_>) -> Result<Declarations, ConfigError> {
    let mut declared = Declarations {
        zone_data: zone::data_version().to_owned(),
        ..Declarations::default()
    };
    for (name, typed) in &file.streams {
        let line = at.line_of(&format!("[streams.{name}]"));
        let wrong = |message: String| at.error(line, message);
        if !is_name(name) {
            return Err(wrong(format!(
                "stream `{name}`: a name is lower-case letters, digits and _, and begins with a letter"
            )));
        }
        if RESERVED_NAMES.contains(&name.as_str()) {
            return Err(wrong(format!(
                "stream `{name}`: the table {name} is weir's own; choose another name"
            )));
        }
        let mut typed = typed.clone();
        if let Some(preset) = typed.remove("preset") {
            let preset = preset.as_str().unwrap_or_default().to_owned();
            let text = presets::text(&preset, name).ok_or_else(|| {
                let known = presets::names().collect::<Vec<_>>().join(", ");
                wrong(format!(
                    "stream `{name}`: there is no preset `{preset}`; there are: {known}"
                ))
            })?;
            let mut whole: toml::Table = toml::from_str(&text).expect("presets are tested");
            if let Some(windows) = whole.remove("windows") {
                let windows: BTreeMap<String, WindowDef> =
                    serde::Deserialize::deserialize(windows).expect("presets are tested");
                // A stream named as its preset gives the windows their plain names.
                let named = |window: String| {
                    if *name == preset {
                        window
                    } else {
                        format!("{name}_{window}")
                    }
                };
                declared.windows.extend(
                    windows
                        .into_iter()
                        .map(|(window, def)| (named(window), def)),
                );
            }
            if let Some(tables) = whole.remove("tables") {
                let tables: BTreeMap<String, TableDef> =
                    serde::Deserialize::deserialize(tables).expect("presets are tested");
                declared.tables.extend(
                    tables
                        .into_iter()
                        .map(|(table, def)| (format!("{name}.{table}"), def)),
                );
            }
            whole.extend(typed);
            typed = whole;
        }
        let def: StreamDef = serde::Deserialize::deserialize(toml::Value::Table(typed)).map_err(
            |e: toml::de::Error| wrong(format!("stream `{name}`: {}", explain(e.message()))),
        )?;
        declared.streams.insert(name.clone(), def);
    }
    for (name, typed) in &file.windows {
        let wrong = |message: String| at.error(at.line_of(&format!("[windows.{name}]")), message);
        if !is_name(name) {
            return Err(wrong(format!(
                "window `{name}`: a name is lower-case letters, digits and _, and begins with a letter"
            )));
        }
        let def: WindowDef = serde::Deserialize::deserialize(toml::Value::Table(typed.clone()))
            .map_err(|e: toml::de::Error| {
                wrong(format!("window `{name}`: {}", explain(e.message())))
            })?;
        declared.windows.insert(name.clone(), def);
    }
    for (name, typed) in file
        .tables
        .iter()
        .filter(|(name, _)| !OWN_TABLES.contains(&name.as_str()))
    {
        let wrong = |message: String| {
            at.error(
                at.line_of(&format!("[tables.\"{name}\"]")),
                format!("table `{name}`: {message}"),
            )
        };
        let def: TableDef = serde::Deserialize::deserialize(toml::Value::Table(typed.clone()))
            .map_err(|e: toml::de::Error| wrong(explain(e.message())))?;
        if name
            .split_once('.')
            .is_none_or(|(stream, table)| stream != def.stream || !is_name(table))
        {
            return Err(wrong(format!(
                "an entity table is named [tables.\"{}.NAME\"], after its stream",
                def.stream
            )));
        }
        if !declared.streams.contains_key(&def.stream) {
            return Err(wrong(format!("there is no [streams.{}]", def.stream)));
        }
        declared.tables.insert(name.clone(), def);
    }
    refuse_clashing_names(&declared, at)?;
    Ok(declared)
}

/// Tables of Weir's own whose retention can be set.
const OWN_TABLES: [&str; 2] = ["raw", "dead_letters"];

/// A window is two tables, NAME and NAME_versions; no table has two meanings.
fn refuse_clashing_names(declared: &Declarations, at: &SourceText<'_>) -> Result<(), ConfigError> {
    for name in declared.windows.keys() {
        let is_taken =
            |table: &str| declared.streams.contains_key(table) || RESERVED_NAMES.contains(&table);
        let versions = versions_of(name);
        let other = declared
            .windows
            .contains_key(&versions)
            .then_some(&versions);
        if let Some(taken) = [name, &versions]
            .into_iter()
            .find(|t| is_taken(t))
            .or(other)
        {
            let message = format!(
                "window `{name}`: the table `{taken}` is there already; give one of them another name"
            );
            return Err(at.error(at.line_of(&format!("[windows.{name}]")), message));
        }
    }
    for name in declared.tables.keys() {
        if name.ends_with(".sessions") || name.ends_with(".late") {
            let message = format!("table `{name}`: it is weir's own; give it another name");
            return Err(at.error(at.line_of(&format!("[tables.\"{name}\"]")), message));
        }
    }
    Ok(())
}

/// The table of all rows that a window ever stored.
pub fn versions_of(window: &str) -> String {
    format!("{window}_versions")
}

/// Tables and schemas of Weir's own.
const RESERVED_NAMES: [&str; 4] = ["raw", "dead_letters", "weir", "information_schema"];

fn is_name(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

fn sources(
    file: &raw::File,
    base: &Path,
    declared: &Declarations,
    at: &SourceText<'_>,
) -> Result<Vec<Source>, ConfigError> {
    let mut names = BTreeSet::new();
    let mut sources = Vec::new();
    for source in &file.sources {
        let name = &source.name;
        let line = at.line_of(&format!("name = \"{name}\""));
        let wrong = |message: String| at.error(line, format!("source `{name}`: {message}"));
        if !names.insert(name) || name == "http" {
            return Err(wrong(
                "the name is taken; give each source its own (`http` is the server's)".into(),
            ));
        }
        let needed = |value: &Option<String>, key: &str| {
            value
                .clone()
                .ok_or_else(|| wrong(format!("the key `{key}` is missing")))
        };
        let kind = match source.kind.as_str() {
            "file" => {
                let path = needed(&source.path, "path")?;
                let path = if path == "-" {
                    path.into()
                } else {
                    base.join(path)
                };
                SourceKind::File(file::def(source, path).map_err(&wrong)?)
            }
            "websocket" => {
                let url = needed(&source.url, "url")?;
                if !url.starts_with("ws://") && !url.starts_with("wss://") {
                    return Err(wrong(format!("url = \"{url}\": write ws://… or wss://…")));
                }
                SourceKind::WebSocket { url }
            }
            "kafka" => return Err(wrong("type = \"kafka\" is not built yet".into())),
            other => {
                return Err(wrong(format!(
                    "type = \"{other}\": write \"file\" or \"websocket\""
                )));
            }
        };
        if !matches!(kind, SourceKind::File(_)) {
            file::refuse_keys(source).map_err(&wrong)?;
        }
        let stream = match &source.stream {
            Some(stream) => stream.clone(),
            None if declared.streams.len() == 1 => {
                declared.streams.keys().next().cloned().unwrap_or_default()
            }
            None => return Err(wrong("the key `stream` is missing".into())),
        };
        if !declared.streams.contains_key(&stream) {
            return Err(wrong(format!("there is no [streams.{stream}]")));
        }
        if source.unwrap.as_deref() == Some("") {
            return Err(wrong(
                "unwrap = \"\": name the member that holds the array of records".into(),
            ));
        }
        sources.push(Source {
            name: name.clone(),
            stream,
            kind,
            unwrap: source.unwrap.clone(),
        });
    }
    Ok(sources)
}

fn tables(file: &raw::File, at: &SourceText<'_>) -> Result<(Span, Span), ConfigError> {
    let (mut raw, mut dead) = (Span::seconds(30 * 86_400), Span::seconds(400 * 86_400));
    for (name, target) in OWN_TABLES.into_iter().zip([&mut raw, &mut dead]) {
        let Some(typed) = file.tables.get(name) else {
            continue;
        };
        let own: raw::OwnTable = serde::Deserialize::deserialize(toml::Value::Table(typed.clone()))
            .map_err(|e: toml::de::Error| {
                let message = format!(
                    "table `{name}`: only `retention` can be set here: {}",
                    explain(e.message())
                );
                at.error(at.line_of("[tables."), message)
            })?;
        *target = own.retention.unwrap_or(*target);
    }
    Ok((raw, dead))
}

fn refuse_what_is_not_built(file: &raw::File, at: &SourceText<'_>) -> Result<(), ConfigError> {
    let refuse = |needle: &str, what: &str| {
        Err(at.error(
            at.line_of(needle),
            format!("{what} are not built yet; remove the section"),
        ))
    };
    if !file.sinks.is_empty() {
        return refuse("[[sinks", "sinks");
    }
    if file.lake.url.is_some() {
        return refuse("url", "shared lakes (`[lake] url`)");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        parse(Some(Path::new("weir.toml")), text.to_owned(), None, &|_| {
            None
        })
        .map_err(|e| e.to_string())
    }

    #[test]
    fn an_empty_file_has_the_defaults() {
        let config = read("").expect("valid");
        assert_eq!(config.data, Path::new("./weir-data"));
        assert_eq!(config.server.http.port(), 8080);
        assert!((LEAST_MEMORY..=2 << 30).contains(&config.limits.memory));
        let shares = config.limits.shares();
        let all = shares.queues + shares.ring + shares.hot_rows + shares.operators + shares.search;
        assert!(
            (all + shares.lake + shares.sql + shares.counts_and_places) as u64
                <= config.limits.memory - BASE_MEMORY
        );
    }

    #[test]
    fn every_preset_is_a_stream() {
        for name in presets::names() {
            let config = read(&format!("[streams.things]\npreset = \"{name}\"")).expect("valid");
            assert!(
                config.declared.streams["things"]
                    .select
                    .contains("from things")
            );
        }
    }

    #[test]
    fn keys_beside_a_preset_replace_its_keys() {
        let config = read("[streams.a]\npreset = \"rsvps\"\nretention = \"30d\"\nrequire = []")
            .expect("valid");
        assert!(config.declared.streams["a"].require.is_empty());
        assert_eq!(
            config.declared.streams["a"].retention,
            Some(Span::seconds(30 * 86_400))
        );
    }

    #[test]
    fn the_environment_goes_before_the_file() {
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
        ];
        let messages: Vec<String> = wrong.iter().map(|w| read(w).expect_err("wrong")).collect();
        insta::assert_snapshot!(messages.join("\n"));
    }
}
