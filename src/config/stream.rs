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
    /// Columns that are read from the JSON, with their SQL types; a comma between two.
    pub schema: String,
    /// `select … from STREAM`: the columns of the stream's table, computed from those of `schema`.
    pub select: String,
    /// Conditions on the columns of `select`; a record that fails one becomes a dead letter.
    #[serde(default)]
    pub require: Vec<String>,
    /// The column that identifies what an event is about; `duplicates` needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The column by which events of one key are ordered; by default the event time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Which events are duplicates; without it none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicates: Option<DuplicatesDef>,
    /// What `weir count` counts by; without it the stream has no counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<CountDef>,
    /// What is searched; without it the stream has no index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<SearchDef>,
    /// The venues of events; without it the stream has no map.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub places: Option<PlacesDef>,
    /// How events form sessions; without it the table `STREAM.sessions` does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionDef>,
    /// How the stream's watermark follows its events.
    #[serde(default)]
    pub watermark: WatermarkDef,
    /// Records with event times outside it become dead letters.
    #[serde(default)]
    pub time_range: TimeRange,
    /// The zone of times without an offset; UTC if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<Zone>,
    /// How far behind the watermark rows stay; without it they stay for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Span>,
}

/// An event is a duplicate if an earlier one of its key has the same values in `same` and a version
/// within the tolerance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DuplicatesDef {
    /// Columns whose values are equal in an event and its duplicates.
    pub same: Vec<String>,
    /// How far versions of an event and its duplicates may be apart.
    pub within: Span,
    /// Keys that are remembered; beyond it the oldest are forgotten.
    #[serde(default = "default_max_keys")]
    pub max_keys: usize,
}

/// Memory that a key of `duplicates` takes, in bytes; it is needed twice, by the operators and by the
/// copy that catches up.
pub const DUPLICATE_KEY_BYTES: usize = 52;

/// Memory that an open session takes, in bytes.
pub const SESSION_BYTES: usize = 256;
/// Memory that a group of a window takes in one of its panes, in bytes.
pub const WINDOW_GROUP_BYTES: usize = 256;

fn default_max_keys() -> usize {
    1_000_000
}

/// What the counts view counts events by, per second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CountDef {
    /// The column with the type of an event.
    #[serde(rename = "type")]
    pub kind: String,
    /// Further columns to group by.
    #[serde(default)]
    pub by: Vec<String>,
}

/// The columns that full-text search indexes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchDef {
    /// Columns that are searched by their words.
    pub text: Vec<String>,
    /// Columns that are searched by their whole value, as `field:value`.
    #[serde(default)]
    pub exact: Vec<String>,
    /// Two columns: latitude, longitude.
    #[serde(default)]
    pub geo: Vec<String>,
}

/// The columns from which the map of venues is built.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacesDef {
    /// The column that identifies a venue.
    pub venue: String,
    /// The column with the venue's name.
    pub name: String,
    /// The column with the latitude, in degrees.
    pub lat: String,
    /// The column with the longitude, in degrees.
    pub lon: String,
    /// The column that identifies what takes place at the venue.
    pub event: String,
    /// The column with the time at which that takes place.
    pub date: String,
    /// How long a venue stays on the map after the last event that named it.
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

/// How a stream's watermark follows its events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WatermarkDef {
    /// How far event times may be out of order before an event is late.
    pub disorder: Span,
    /// How long a partition may be silent before it no longer holds the watermark back.
    pub idle: Span,
    /// How far an event time may be ahead of its arrival; further ahead, it becomes a dead letter.
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
    /// The column that identifies whose session it is.
    pub key: String,
    /// The greatest time between two events of a session.
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
    /// An aggregation over `tumble(…)`, `hop(…)` or `session(…)` of a stream.
    pub sql: String,
    /// How far behind the watermark an event is still accepted.
    #[serde(default = "no_lateness")]
    pub allowed_lateness: Span,
    /// What becomes of a late event that is still accepted.
    #[serde(default)]
    pub late: Late,
    /// How far behind the watermark rows stay; without it they stay for good.
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
    /// The declared stream whose events the entities are read from.
    pub stream: String,
    /// The columns of `select` that identify an entity.
    pub key: Keys,
    /// A column of the stream; by default the stream's own version, else the event time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// `select …` without `from`, over the stream's columns.
    pub select: String,
}

/// One column, or several; written and stored as a text, or a list of them.
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
    /// Streams by name.
    pub streams: BTreeMap<String, StreamDef>,
    /// Windows by name.
    #[serde(default)]
    pub windows: BTreeMap<String, WindowDef>,
    /// Entity tables by `STREAM.NAME`.
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
    /// Bytes that its result may have beyond [`Self::times`] those of its arguments.
    pub bytes: u64,
    /// A factor of the bytes of its arguments.
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
    /// Keys; beyond it the oldest are forgotten.
    pub max_keys: usize,
    /// Bytes of the keys and their answers.
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
    /// As the log stores them.
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
