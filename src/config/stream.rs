//! Declarations of streams, windows and entity tables, presets expanded. The log stores them as *the
//! configuration*, which operators and tables are compared by.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::time_range::TimeRange;
use super::units::Span;
use super::zone::Zone;

/// `[streams.NAME]`, complete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamDef {
    pub schema: String,
    pub select: String,
    #[serde(default)]
    pub require: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicates: Option<DuplicatesDef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<CountDef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<SearchDef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub places: Option<PlacesDef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionDef>,
    #[serde(default)]
    pub watermark: WatermarkDef,
    /// Records with event times outside it become dead letters.
    #[serde(default)]
    pub time_range: TimeRange,
    /// The zone of times without an offset; UTC if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<Zone>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Span>,
}

/// An event is a duplicate if an earlier one of its key has the same values in `same` and a version
/// within the tolerance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DuplicatesDef {
    pub same: Vec<String>,
    pub within: Span,
    #[serde(default = "default_max_keys")]
    pub max_keys: usize,
}

/// Memory that a key of `duplicates` takes, in bytes; it is needed twice, by the operators and by the
/// copy that catches up.
pub const DUPLICATE_KEY_BYTES: usize = 52;

/// Memory that an open session takes, in bytes, and a group of a window in one of its panes.
pub const SESSION_BYTES: usize = 256;
pub const WINDOW_GROUP_BYTES: usize = 256;

fn default_max_keys() -> usize {
    1_000_000
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CountDef {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub by: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchDef {
    pub text: Vec<String>,
    #[serde(default)]
    pub exact: Vec<String>,
    /// Two columns: latitude, longitude.
    #[serde(default)]
    pub geo: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacesDef {
    pub venue: String,
    pub name: String,
    pub lat: String,
    pub lon: String,
    pub event: String,
    pub date: String,
    #[serde(default = "default_keep")]
    pub keep: Span,
    /// Venues on the map; beyond it the least recently seen ones are evicted.
    #[serde(default = "default_max_venues")]
    pub max_venues: usize,
}

/// Memory that a venue's point takes, in bytes.
pub const VENUE_BYTES: usize = 96;

fn default_max_venues() -> usize {
    150_000
}

fn default_keep() -> Span {
    Span::seconds(400 * 86_400)
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WatermarkDef {
    pub disorder: Span,
    pub idle: Span,
    pub max_ahead: Span,
}

impl Default for WatermarkDef {
    fn default() -> Self {
        Self {
            disorder: Span::seconds(10),
            idle: Span::seconds(60),
            max_ahead: Span(Duration::from_secs(3_600)),
        }
    }
}

/// Events of one key belong to one session while they are at most `gap` apart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionDef {
    pub key: String,
    pub gap: Span,
    /// A condition on events; one that meets it always begins a new session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opens: Option<String>,
    /// The column whose first and last value a session has; by default the type of `count`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub track: Option<String>,
    /// Open sessions at once; beyond it the one that was idle longest closes as `abandoned`.
    #[serde(default = "default_max_open")]
    pub max_open: usize,
}

fn default_max_open() -> usize {
    100_000
}

/// `[windows.NAME]`, complete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowDef {
    pub sql: String,
    /// How far behind the watermark an event is still accepted.
    #[serde(default = "no_lateness")]
    pub allowed_lateness: Span,
    #[serde(default)]
    pub late: Late,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Span>,
    /// Groups in memory, over all its open windows; beyond it the oldest window closes as
    /// `abandoned`.
    #[serde(default = "default_max_groups")]
    pub max_groups: usize,
}

fn no_lateness() -> Span {
    Span::seconds(0)
}

fn default_max_groups() -> usize {
    100_000
}

/// What happens between a window's end and the end of its allowed lateness.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Late {
    /// It fires once, after both; later events are dropped.
    #[default]
    Drop,
    /// It fires at its end, and again when late events change its result.
    Update,
}

/// `[tables."STREAM.NAME"]`, an entity table: the latest version of each key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableDef {
    pub stream: String,
    pub key: Keys,
    /// A column of the stream; by default the stream's own version, else the event time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// `select …` without `from`, over the stream's columns.
    pub select: String,
}

/// One column, or several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "OneOrMany", into = "OneOrMany")]
pub struct Keys(pub Vec<String>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl From<OneOrMany> for Keys {
    fn from(typed: OneOrMany) -> Self {
        match typed {
            OneOrMany::One(key) => Self(vec![key]),
            OneOrMany::Many(keys) => Self(keys),
        }
    }
}

impl From<Keys> for OneOrMany {
    fn from(mut keys: Keys) -> Self {
        match keys.0.len() {
            1 => Self::One(keys.0.remove(0)),
            _ => Self::Many(keys.0),
        }
    }
}

/// Streams, and the windows and entity tables over them, from which operators and tables are built.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declarations {
    pub streams: BTreeMap<String, StreamDef>,
    #[serde(default)]
    pub windows: BTreeMap<String, WindowDef>,
    #[serde(default)]
    pub tables: BTreeMap<String, TableDef>,
    /// Version of the zone data that local times are computed with; empty if none was stored.
    #[serde(default)]
    pub zone_data: String,
    /// Not set by the file: stored, so that the operators' state follows from the log alone.
    #[serde(default)]
    pub idempotency: IdempotencyLimits,
    /// Not set by the file: stored, because they decide which rows a declaration produces.
    #[serde(default)]
    pub sql: SqlBounds,
}

/// Bounds on one call of a function with one row in `select`, `require`, windows and entity tables.
/// Constants, so that a replay produces the same rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqlBounds {
    /// Bytes of its result, plus so many times the bytes of its arguments.
    pub bytes: u64,
    pub times: u64,
    /// Pairs that it compares.
    pub pairs: u64,
    /// Items that a lambda is called with.
    pub items: u64,
}

impl Default for SqlBounds {
    fn default() -> Self {
        Self {
            bytes: 64 << 10,
            times: 4,
            pairs: 1 << 24,
            items: 64 << 10,
        }
    }
}

/// Bounds on the answers remembered under idempotency keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdempotencyLimits {
    pub max_keys: usize,
    pub max_bytes: usize,
}

impl Default for IdempotencyLimits {
    fn default() -> Self {
        Self {
            max_keys: 100_000,
            max_bytes: 32 << 20,
        }
    }
}

impl Declarations {
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plain data becomes JSON")
    }

    /// Reads what [`Self::to_json`] wrote, also without windows, as in logs older than those.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// A hash of the declarations: equal declarations have equal ids.
    pub fn id(&self) -> u64 {
        use sha2::{Digest, Sha256};
        let hash = Sha256::digest(self.to_json().as_bytes());
        u64::from_le_bytes(*hash.first_chunk().expect("32 bytes")) >> 1
    }
}
