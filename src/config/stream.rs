//! The declaration of a stream, presets expanded. It is what the log stores as *the configuration*: what operators and tables
//! are compared by.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::units::Span;

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
    pub repeat: Option<RepeatDef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<CountDef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<SearchDef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub places: Option<PlacesDef>,
    #[serde(default)]
    pub watermark: WatermarkDef,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Span>,
}

/// An event says nothing new if an earlier one of its key has the same columns and a version within the tolerance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepeatDef {
    pub same: Vec<String>,
    pub within: Span,
    #[serde(default = "default_max_keys")]
    pub max_keys: usize,
}

/// Memory that a key of `repeat` takes, in bytes; the operators' state and the copy that catches up have it twice.
pub const REPEAT_KEY_BYTES: usize = 52;

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
        Self { disorder: Span::seconds(10), idle: Span::seconds(60), max_ahead: Span(Duration::from_secs(3_600)) }
    }
}

/// The streams in force, and the number by which frames name them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Streams(pub BTreeMap<String, StreamDef>);

impl Streams {
    pub fn to_json(&self) -> String {
        serde_json::to_string(&self.0).expect("plain data becomes JSON")
    }

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
