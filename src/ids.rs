//! Identities of tables, views, checkpoints and partitions.
//!
//! Their texts are in snapshots, manifests, floor frames, metrics, `weir.views` and the names of
//! folders. They are written and read here only; everything else matches on the types.
//!
//! | identity | texts |
//! |---|---|
//! | [`TableId`] | `raw`, `dead_letters`, `clicks`, `clicks.sessions`, `clicks.late`, `minutes_versions`, `clicks.users` |
//! | [`ViewId`] | `lake/TABLE`, `search/STREAM`, `places/STREAM`, `counts/STREAM` |
//! | [`CheckpointId`] | `raw`, `dead_letters`, `TABLE/recent`, `TABLE/old`, `search/STREAM`, `places/STREAM`, `counts/STREAM` |

use std::cmp::Ordering;
use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A name of the configuration; a clone is cheap.
pub type Name = Arc<str>;

const RAW: &str = "raw";
const DEAD_LETTERS: &str = "dead_letters";
const SESSIONS: &str = ".sessions";
const LATE: &str = ".late";
const VERSIONS: &str = "_versions";

/// A table of the lake. Its text is its name in SQL and that of its folder.
///
/// Two are equal if their texts are, since a configuration has at most one table of a name. The
/// text alone does not always say the kind: `x_versions` is the table of a window `x`, or of a
/// stream with that name. An id that was parsed therefore finds its table in a map, but is not
/// matched on: `Catalog::table_id` has the kind.
#[derive(Debug, Clone)]
pub enum TableId {
    /// Every record as it arrived.
    Raw,
    /// Rejected records with their reasons.
    DeadLetters,
    /// By the name of the stream.
    Stream(Name),
    /// Sessions of a stream.
    Sessions(Name),
    /// Rows of a stream that its windows no longer accepted.
    Late(Name),
    /// All rows that a window ever stored, by the name of the window.
    Window(Name),
    /// An entity table, by its whole name: `STREAM.TABLE`.
    Entity(Name),
}

impl TableId {
    /// The table of a stream.
    pub fn stream(name: &str) -> Self {
        Self::Stream(name.into())
    }

    /// The sessions of a stream.
    pub fn sessions(stream: &str) -> Self {
        Self::Sessions(stream.into())
    }

    /// The late rows of a stream.
    pub fn late(stream: &str) -> Self {
        Self::Late(stream.into())
    }

    /// All rows of a window.
    pub fn window(name: &str) -> Self {
        Self::Window(name.into())
    }

    /// An entity table, by its whole name.
    pub fn entity(name: &str) -> Self {
        Self::Entity(name.into())
    }

    /// The view that writes it.
    pub fn view(&self) -> ViewId {
        ViewId::Lake(self.clone())
    }

    /// Whether operators derive its rows from those of a stream.
    pub fn is_derived(&self) -> bool {
        match self {
            Self::Raw | Self::DeadLetters | Self::Stream(_) => false,
            Self::Sessions(_) | Self::Late(_) | Self::Window(_) | Self::Entity(_) => true,
        }
    }

    /// The name that `weir rebuild` takes: of a window's table, that of the window.
    pub fn rebuild_name(&self) -> String {
        match self {
            Self::Window(name) => name.to_string(),
            table => table.to_string(),
        }
    }

    /// The two parts of the text.
    fn parts(&self) -> (&str, &'static str) {
        match self {
            Self::Raw => (RAW, ""),
            Self::DeadLetters => (DEAD_LETTERS, ""),
            Self::Stream(name) | Self::Entity(name) => (name, ""),
            Self::Sessions(stream) => (stream, SESSIONS),
            Self::Late(stream) => (stream, LATE),
            Self::Window(name) => (name, VERSIONS),
        }
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, suffix) = self.parts();
        write!(f, "{name}{suffix}")
    }
}

/// The kind is a guess where the text does not say it: see [`TableId`].
impl FromStr for TableId {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let of_stream = |suffix| text.strip_suffix(suffix);
        Ok(match (text, of_stream(SESSIONS), of_stream(LATE)) {
            (RAW, ..) => Self::Raw,
            (DEAD_LETTERS, ..) => Self::DeadLetters,
            (_, Some(stream), _) => Self::sessions(stream),
            (_, _, Some(stream)) => Self::late(stream),
            _ if text.contains('.') => Self::entity(text),
            _ => Self::stream(text),
        })
    }
}

impl Ord for TableId {
    fn cmp(&self, other: &Self) -> Ordering {
        let ((name, suffix), (other_name, other_suffix)) = (self.parts(), other.parts());
        let other = other_name.bytes().chain(other_suffix.bytes());
        name.bytes().chain(suffix.bytes()).cmp(other)
    }
}

impl PartialOrd for TableId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for TableId {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for TableId {}

/// What follows the log and has checkpoints of its own. The variants are in the order of the texts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ViewId {
    /// By the name of the stream.
    Counts(Name),
    /// The view that writes a table.
    Lake(TableId),
    /// By the name of the stream.
    Places(Name),
    /// By the name of the stream.
    Search(Name),
}

impl ViewId {
    /// The counts of a stream.
    pub fn counts(stream: &str) -> Self {
        Self::Counts(stream.into())
    }

    /// The places of a stream.
    pub fn places(stream: &str) -> Self {
        Self::Places(stream.into())
    }

    /// The search index of a stream.
    pub fn search(stream: &str) -> Self {
        Self::Search(stream.into())
    }

    /// The table that it writes; none of an index.
    pub fn table(&self) -> Option<&TableId> {
        match self {
            Self::Lake(table) => Some(table),
            Self::Counts(_) | Self::Places(_) | Self::Search(_) => None,
        }
    }
}

impl fmt::Display for ViewId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Counts(stream) => write!(f, "counts/{stream}"),
            Self::Lake(table) => write!(f, "lake/{table}"),
            Self::Places(stream) => write!(f, "places/{stream}"),
            Self::Search(stream) => write!(f, "search/{stream}"),
        }
    }
}

/// A text that does not name a view.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a view")]
pub struct UnknownView(String);

impl FromStr for ViewId {
    type Err = UnknownView;

    fn from_str(text: &str) -> Result<Self, UnknownView> {
        match text.split_once('/') {
            Some(("counts", stream)) => Ok(Self::counts(stream)),
            Some(("lake", table)) => {
                let Ok(table) = table.parse();
                Ok(Self::Lake(table))
            }
            Some(("places", stream)) => Ok(Self::places(stream)),
            Some(("search", stream)) => Ok(Self::search(stream)),
            _ => Err(UnknownView(text.to_owned())),
        }
    }
}

/// A checkpoint that a view commits, as snapshots list it: up to there it has every row.
///
/// Nothing asks what it is a checkpoint of, and the text alone does not say it: `search/recent` is
/// that of the recent rows of a table `search`, or of the index of a stream `recent`. A
/// configuration has one of the two at most, which is checked: in one map they would be one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CheckpointId(Name);

impl CheckpointId {
    /// Of a table's rows, or of the recent ones of a stream.
    pub fn recent(table: &TableId) -> Self {
        match table {
            TableId::Raw | TableId::DeadLetters => Self(table.to_string().into()),
            table => Self(format!("{table}/recent").into()),
        }
    }

    /// Of a stream's late rows.
    pub fn late(table: &TableId) -> Self {
        Self(format!("{table}/old").into())
    }
}

/// The checkpoint of a view that has one. A stream's table has another one, for its late rows.
impl From<&ViewId> for CheckpointId {
    fn from(view: &ViewId) -> Self {
        match view {
            ViewId::Lake(table) => Self::recent(table),
            view => Self(view.to_string().into()),
        }
    }
}

impl From<&str> for CheckpointId {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a source reads in order: a file, a socket. The pair is its identity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartitionId {
    /// The name of the source in the configuration; `http` for POSTs.
    pub source: Name,
    /// Unique within the source.
    pub partition: Name,
}

impl PartitionId {
    /// The partition of a source with this name.
    pub fn new(source: &str, partition: &str) -> Self {
        Self {
            source: source.into(),
            partition: partition.into(),
        }
    }
}

macro_rules! serialize_as_text {
    ($($id:ty),*) => {$(
        impl Serialize for $id {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = String::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

serialize_as_text!(TableId, ViewId);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn table(text: &str) -> TableId {
        let Ok(table) = text.parse();
        table
    }

    fn tables(name: &str) -> [TableId; 7] {
        [
            TableId::Raw,
            TableId::DeadLetters,
            TableId::stream(name),
            TableId::sessions(name),
            TableId::late(name),
            TableId::window(name),
            TableId::entity(&format!("{name}.users")),
        ]
    }

    #[test]
    fn texts_are_those_of_files_and_folders() {
        let texts = tables("a").map(|id| id.to_string());
        let expected = [
            "raw",
            "dead_letters",
            "a",
            "a.sessions",
            "a.late",
            "a_versions",
            "a.users",
        ];
        assert_eq!(texts, expected);
        let views = [
            ViewId::counts("a"),
            ViewId::Lake(TableId::window("a")),
            ViewId::places("a"),
            ViewId::search("a"),
        ];
        let expected = ["counts/a", "lake/a_versions", "places/a", "search/a"];
        assert_eq!(views.map(|id| id.to_string()), expected);
        let checkpoints = [
            CheckpointId::recent(&TableId::Raw),
            CheckpointId::recent(&TableId::DeadLetters),
            CheckpointId::recent(&TableId::stream("a")),
            CheckpointId::late(&TableId::stream("a")),
            CheckpointId::from(&ViewId::search("a")),
            CheckpointId::from(&ViewId::Lake(TableId::late("a"))),
        ];
        let expected = [
            "raw",
            "dead_letters",
            "a/recent",
            "a/old",
            "search/a",
            "a.late/recent",
        ];
        assert_eq!(checkpoints.map(|id| id.to_string()), expected);
    }

    #[test]
    fn a_text_says_the_kind_except_that_of_windows() {
        for id in tables("a") {
            let parsed = table(&id.to_string());
            let is_same_kind = std::mem::discriminant(&parsed) == std::mem::discriminant(&id);
            assert_eq!(is_same_kind, !matches!(id, TableId::Window(_)), "{id}");
            assert_eq!(parsed, id);
        }
        for text in ["", "lake", "elsewhere/a"] {
            assert_eq!(text.parse::<ViewId>(), Err(UnknownView(text.to_owned())));
        }
    }

    #[test]
    fn ids_are_texts_in_json_also_as_keys() {
        let floors = BTreeMap::from([(TableId::sessions("a"), 7), (TableId::Raw, 5)]);
        let text = serde_json::to_string(&floors).expect("plain");
        assert_eq!(text, r#"{"a.sessions":7,"raw":5}"#);
        let read: BTreeMap<TableId, i32> = serde_json::from_str(&text).expect("reads");
        assert_eq!(read, floors);
        let checkpoint = CheckpointId::late(&TableId::stream("a"));
        let text = serde_json::to_string(&BTreeMap::from([(checkpoint.clone(), 7)]));
        assert_eq!(text.expect("plain"), r#"{"a/old":7}"#);
        let read: BTreeMap<CheckpointId, i32> =
            serde_json::from_str(r#"{"a/old":7}"#).expect("reads");
        assert_eq!(read[&checkpoint], 7);
    }

    proptest! {
        #[test]
        fn ids_are_read_as_they_were_written(
            name in "[a-z][a-z0-9_]{0,12}(_versions|_sessions|raw)?",
            other in "[a-z][a-z0-9_]{0,12}(_versions|_sessions|raw)?",
        ) {
            for id in tables(&name) {
                prop_assert_eq!(&table(&id.to_string()), &id);
                let view = ViewId::Lake(id.clone());
                prop_assert_eq!(view.to_string().parse::<ViewId>(), Ok(view));
                for other in tables(&other) {
                    prop_assert_eq!(id.cmp(&other), id.to_string().cmp(&other.to_string()));
                }
            }
            for id in [ViewId::counts(&name), ViewId::places(&name), ViewId::search(&name)] {
                let read: Result<ViewId, _> = id.to_string().parse();
                prop_assert_eq!(read, Ok(id));
            }
        }
    }
}
