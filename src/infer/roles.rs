//! What columns are for: the key, texts to search, types to count, coordinates. Each guess has its
//! reason, and names what else was possible.

use super::columns::{Column, Layout, Type};
use super::{identity, naming};

/// The least score of a key.
const MIN_KEY_SCORE: i64 = 50;
const MAX_TEXTS: usize = 5;
const MAX_EXACT: usize = 6;
const MAX_GROUPS: usize = 2;
/// Distinct values of a type, and of a group.
const MAX_TYPES: usize = 40;
const MAX_GROUP_VALUES: usize = 64;
/// Values and columns that a comment names.
const MAX_SHOWN: usize = 5;
/// Columns that are compared record by record as keys.
const MAX_KEYS: usize = 6;
/// A type that fewer of a hundred records have counts too few of them.
const MIN_TYPED_PERCENT: u64 = 99;
/// Objects that are about the record itself.
const META_PARENTS: [&str; 2] = ["meta", "metadata"];

/// Keys that name a version, in every record.
const VERSION_NAMES: [&str; 7] = [
    "version",
    "revision",
    "rev",
    "sequence",
    "seq",
    "updated",
    "updated_at",
];
/// Words of keys that name the time of the last change, or its number.
const CHANGE_WORDS: [&str; 3] = ["updated", "modified", "changed"];
/// Words of keys that count what has changed.
const COUNT_WORDS: [&str; 7] = ["count", "files", "lines", "num", "number", "rows", "total"];

/// Keys that name the type of an event, best first.
const TYPE_NAMES: [&str; 16] = [
    "event_type",
    "type",
    "kind",
    "event",
    "action",
    "response",
    "operation",
    "status",
    "level",
    "severity",
    "method",
    "request_method",
    "state",
    "channel",
    "category",
    "collection",
];
/// Words of keys that name a group.
const GROUP_WORDS: [&str; 16] = [
    "country",
    "region",
    "city",
    "namespace",
    "lang",
    "language",
    "host",
    "server",
    "channel",
    "collection",
    "operation",
    "net",
    "unit",
    "category",
    "status",
    "method",
];
/// Words of keys that name a text for people.
const TEXT_WORDS: [&str; 18] = [
    "text",
    "title",
    "message",
    "msg",
    "comment",
    "description",
    "note",
    "name",
    "body",
    "summary",
    "subject",
    "place",
    "content",
    "headline",
    "page",
    "request",
    "topic",
    "agent",
];

/// A guess with the reason for it.
pub(super) struct Guess<T> {
    pub value: T,
    pub reason: String,
}

/// Positions of columns by what they are for.
pub(super) struct Roles {
    pub key: Option<Guess<usize>>,
    /// What looks like a key, but different records share it and what orders its events.
    pub shared_key: Option<usize>,
    pub version: Option<Guess<usize>>,
    pub texts: Option<Guess<Vec<String>>>,
    pub exact: Option<Guess<Vec<usize>>>,
    pub count: Option<Guess<usize>>,
    pub groups: Option<Guess<Vec<usize>>>,
    pub coordinates: Option<Guess<Coordinates>>,
}

/// A latitude and a longitude: two columns, or the second and the first item of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coordinates {
    Columns {
        lat: usize,
        lon: usize,
    },
    /// As in GeoJSON: longitude, latitude.
    List(usize),
}

/// Assigns columns; `event_time` is the position of the one that is the event time, `sample` has
/// the records, of which `records` are objects.
pub(super) fn assign(
    layout: &Layout<'_>,
    records: u64,
    event_time: Option<usize>,
    sample: &[&[u8]],
) -> Roles {
    let all = Columns {
        columns: &layout.columns,
        records,
        event_time,
        sample,
    };
    let Keys {
        key,
        shared_key,
        version,
    } = all.keys();
    let count = all.count();
    let groups = all.groups(count.as_ref().map(|count| count.value));
    let texts = all.texts();
    let chosen = |guess: &Option<Guess<usize>>| guess.as_ref().map(|g| g.value);
    let first = [chosen(&key), chosen(&count)].into_iter().flatten();
    let grouped = groups
        .iter()
        .flat_map(|groups| groups.value.iter().copied());
    let exact = all.exact(first.chain(grouped).collect());
    Roles {
        shared_key,
        version,
        texts,
        exact,
        coordinates: all.coordinates(),
        key,
        count,
        groups,
    }
}

/// How a pair of coordinates is compared with others, and the positions of its columns.
type Pair = (bool, bool, u64, usize, usize, usize);

struct Columns<'a> {
    columns: &'a [Column<'a>],
    records: u64,
    event_time: Option<usize>,
    sample: &'a [&'a [u8]],
}

/// What identifies an event.
struct Keys {
    key: Option<Guess<usize>>,
    shared_key: Option<usize>,
    version: Option<Guess<usize>>,
}

impl<'a> Columns<'a> {
    /// Columns other than the event time, with their positions.
    fn others(&self) -> impl Iterator<Item = (usize, &'a Column<'a>)> {
        let event_time = self.event_time;
        let all = self.columns.iter().enumerate();
        all.filter(move |(at, _)| Some(*at) != event_time)
    }

    fn names(&self, positions: impl Iterator<Item = usize>) -> Vec<String> {
        positions
            .take(MAX_SHOWN)
            .map(|at| self.columns[at].name.clone())
            .collect()
    }

    /// The best key that distinguishes the records of the sample, with its version.
    fn keys(&self) -> Keys {
        let found = self.possible_keys();
        let mut candidates = found.iter().take(MAX_KEYS).flat_map(|key| {
            let version = self.version(*key);
            // The event time may distinguish what the version does not.
            let without = version.is_some().then_some((*key, None));
            std::iter::once((*key, version)).chain(without)
        });
        let Some((key, version)) =
            candidates.find(|(key, version)| self.is_identity(*key, *version))
        else {
            return Keys {
                key: None,
                shared_key: found.first().copied(),
                version: None,
            };
        };
        let after = found.iter().skip_while(|at| **at != key).skip(1);
        let others = self.names(after.copied());
        let version = version.map(|value| Guess {
            value,
            reason: format!(
                "`{}` orders the events of one key",
                self.columns[value].shown()
            ),
        });
        Keys {
            key: Some(Guess {
                value: key,
                reason: self.reason_of_key(key, &others),
            }),
            shared_key: None,
            version,
        }
    }

    /// Whether all records that share the key and its version, or their time, are the same.
    fn is_identity(&self, key: usize, version: Option<usize>) -> bool {
        let key = &self.columns[key];
        let values = &key.node.values;
        let is_unique = values.repeats == 0 && values.distinct() as u64 == self.records;
        let order = version.or(self.event_time).map(|at| &self.columns[at]);
        is_unique || identity::is_distinct(self.sample, key, order)
    }

    /// Columns that look like keys, best first.
    fn possible_keys(&self) -> Vec<usize> {
        // The more often values repeat, the less the column identifies an event.
        let penalty = |c: &Column<'_>| match c.node.values.repeats {
            0 => 0,
            n => 5 + (n * 60 / self.records.max(1)) as i64,
        };
        let mut found: Vec<(i64, usize)> = self
            .others()
            .filter(|(_, c)| matches!(c.ty, Type::BigInt | Type::Varchar))
            .filter(|(_, c)| c.node.present() == self.records && self.records > 0)
            .filter(|(_, c)| c.node.values.repeats * 2 <= self.records)
            .map(|(at, c)| (key_score(c) - penalty(c), at))
            .filter(|(score, _)| *score >= MIN_KEY_SCORE)
            .collect();
        found.sort_by_key(|(score, at)| (-score, *at));
        found.into_iter().map(|(_, at)| at).collect()
    }

    fn reason_of_key(&self, key: usize, others: &[String]) -> String {
        let column = &self.columns[key];
        let mut reason = format!("`{}` is in every record", column.shown());
        reason += &match column.node.values.repeats {
            0 if self.records > 1 => ", each value once".to_owned(),
            0 => String::new(),
            1 => ", once with a value that was there before".to_owned(),
            n => format!(", {n} times with a value that was there before"),
        };
        if !others.is_empty() {
            reason += &format!("; also possible: {}", others.join(", "));
        }
        reason
    }

    /// The column that orders the events of a key: one that has several values rather than one.
    fn version(&self, key: usize) -> Option<usize> {
        let possible = self.others().filter(|(at, c)| *at != key && c.depth() < 2);
        // The time of a change orders events already, if it is the event time.
        let event_time = self.event_time.map(|at| self.columns[at].leaf());
        let is_ordered = event_time.is_some_and(|leaf| is_of_change(&leaf));
        let ranked = possible.filter_map(|(at, c)| {
            let is_constant = self.records > 1 && c.node.values.distinct() < 2;
            let rank = version_rank(c, self.records)?;
            (rank == 0 || !is_ordered).then_some((is_constant, rank, at))
        });
        ranked.min().map(|(_, _, at)| at)
    }

    fn texts(&self) -> Option<Guess<Vec<String>>> {
        let mut found: Vec<(i64, usize)> = self
            .others()
            .filter_map(|(at, c)| Some((text_score(c)?, at)))
            .collect();
        found.sort_by_key(|(score, at)| (-score, *at));
        let mut positions: Vec<usize> = found.iter().take(MAX_TEXTS).map(|(_, at)| *at).collect();
        positions.sort_unstable();
        let mut reason = "several words in a value, or a name such as title or message".to_owned();
        if positions.is_empty() {
            // A search by words of any text is better than none.
            let any = self
                .others()
                .find(|(_, c)| c.is_text() && c.node.prose.urls == 0)?;
            positions.push(any.0);
            reason = "no column has sentences; the first text".to_owned();
        }
        let others = self.names(found.iter().skip(MAX_TEXTS).map(|(_, at)| *at));
        if !others.is_empty() {
            reason += &format!("; also possible: {}", others.join(", "));
        }
        let name = |at: &usize| match self.columns[*at].ty {
            Type::Map => format!("{}.*", self.columns[*at].name),
            _ => self.columns[*at].name.clone(),
        };
        Some(Guess {
            value: positions.iter().map(name).collect(),
            reason,
        })
    }

    fn exact(&self, first: Vec<usize>) -> Option<Guess<Vec<usize>>> {
        let mut chosen: Vec<usize> = Vec::new();
        let is_whole = |c: &Column<'_>| {
            c.is_text()
                && c.node.prose.with_blanks * 10 <= c.node.texts
                && c.node.prose.chars > 0
                && c.node.prose.urls * 2 <= c.node.texts
        };
        let ids = self
            .others()
            .filter(|(_, c)| is_whole(c) && (naming::is_id(&c.leaf()) || is_code(c)));
        for at in first.into_iter().chain(ids.map(|(at, _)| at)) {
            let is_possible = self.columns[at].is_text() && !chosen.contains(&at);
            if is_possible && chosen.len() < MAX_EXACT {
                chosen.push(at);
            }
        }
        let reason = "key, types, groups and identifiers, searched as `column:value`".to_owned();
        (!chosen.is_empty()).then_some(Guess {
            value: chosen,
            reason,
        })
    }

    /// Columns with few distinct values, most of them repeated.
    fn low_cardinality(&self, most: usize) -> impl Iterator<Item = (usize, &'a Column<'a>)> {
        self.others().filter(move |(_, c)| {
            let values = &c.node.values;
            c.is_text()
                && !values.has_more
                && values.distinct() <= most
                && values.distinct() as u64 * 2 <= c.node.present().max(2)
                && c.node.prose.urls == 0
                && c.node.prose.chars <= 40 * c.node.texts
        })
    }

    fn count(&self) -> Option<Guess<usize>> {
        let rank = |c: &Column<'_>| {
            let leaf = c.leaf();
            TYPE_NAMES
                .iter()
                .position(|n| *n == leaf)
                .unwrap_or(TYPE_NAMES.len())
        };
        let mut found: Vec<(bool, bool, usize, usize, usize)> = self
            .low_cardinality(MAX_TYPES)
            .map(|(at, c)| {
                let is_single = c.node.values.distinct() < 2;
                let is_rare = c.node.present() * 100 < self.records * MIN_TYPED_PERCENT;
                (is_single, is_rare, rank(c), c.depth(), at)
            })
            .collect();
        found.sort_unstable();
        let at = found.first()?.4;
        let mut reason = values_of(&self.columns[at]);
        let others = self.names(found.iter().skip(1).map(|found| found.4));
        if !others.is_empty() {
            reason += &format!("; also possible: {}", others.join(", "));
        }
        Some(Guess { value: at, reason })
    }

    fn groups(&self, count: Option<usize>) -> Option<Guess<Vec<usize>>> {
        let has_word = |c: &Column<'_>| {
            let leaf = c.leaf();
            leaf.split('_').any(|word| GROUP_WORDS.contains(&word))
        };
        let mut found: Vec<(bool, usize)> = self
            .low_cardinality(MAX_GROUP_VALUES)
            .filter(|(at, c)| Some(*at) != count && c.node.values.distinct() > 1)
            .map(|(at, c)| (!has_word(c), at))
            .collect();
        count?;
        found.sort_unstable();
        let mut chosen: Vec<usize> = Vec::new();
        for (_, at) in found {
            // The same values under another name say nothing new.
            let counts = |at: usize| &self.columns[at].node.values.counts;
            let is_copy = chosen.iter().any(|other| counts(*other) == counts(at));
            if chosen.len() < MAX_GROUPS && !is_copy {
                chosen.push(at);
            }
        }
        let shown: Vec<String> = chosen
            .iter()
            .map(|at| values_of(&self.columns[*at]))
            .collect();
        let reason = format!("by {}", shown.join("; by "));
        (!chosen.is_empty()).then_some(Guess {
            value: chosen,
            reason,
        })
    }

    fn coordinates(&self) -> Option<Guess<Coordinates>> {
        let mut pairs: Vec<Pair> = Vec::new();
        for (lat, latitude) in self.others().filter(|(_, c)| is_within(c, 90.0)) {
            let leaf = latitude.leaf();
            if !naming::is_latitude(&leaf) {
                continue;
            }
            let belongs = |c: &Column<'_>| {
                let other = c.leaf();
                naming::is_longitude(&other)
                    && naming::coordinate_prefix(&other) == naming::coordinate_prefix(&leaf)
                    && parent(c) == parent(latitude)
                    && is_within(c, 180.0)
            };
            if let Some((lon, _)) = self.others().find(|(_, c)| belongs(c)) {
                let missing = self.records.saturating_sub(latitude.node.present());
                // Coordinates of the event itself have no prefix.
                let is_rare = missing * 2 > self.records;
                let has_prefix = !naming::coordinate_prefix(&leaf).is_empty();
                pairs.push((is_rare, has_prefix, missing, latitude.depth(), lat, lon));
            }
        }
        pairs.sort_unstable();
        if let Some((_, _, _, _, lat, lon)) = pairs.first().copied() {
            let (latitude, longitude) = (&self.columns[lat], &self.columns[lon]);
            let mut reason = format!(
                "`{}` and `{}` are within ±90 and ±180",
                latitude.shown(),
                longitude.shown()
            );
            let others = self.names(pairs.iter().skip(1).map(|pair| pair.4));
            if !others.is_empty() {
                reason += &format!("; also possible: {}", others.join(", "));
            }
            let value = Coordinates::Columns { lat, lon };
            return Some(Guess { value, reason });
        }
        let is_point = |c: &Column<'_>| {
            let double = Type::Array(Box::new(Type::Double));
            let item = c.node.item.as_ref().and_then(|item| item.range);
            c.leaf() == "coordinates"
                && c.ty == double
                && c.path.len() > 1
                && item.is_some_and(|(least, _)| least >= -180.0)
        };
        let (at, column) = self.others().find(|(_, c)| is_point(c))?;
        let reason = format!(
            "`{}` is a list of longitude and latitude, as in GeoJSON",
            column.shown()
        );
        Some(Guess {
            value: Coordinates::List(at),
            reason,
        })
    }
}

/// The keys around a column.
fn parent<'a>(column: &'a Column<'_>) -> &'a [&'a str] {
    &column.path[..column.path.len() - 1]
}

fn is_within(column: &Column<'_>, degrees: f64) -> bool {
    let range = column.node.range;
    column.ty == Type::Double
        && range.is_some_and(|(least, most)| least >= -degrees && most <= degrees)
}

/// How much a column is like a key; unique ones are compared by it.
fn key_score(column: &Column<'_>) -> i64 {
    let leaf = column.leaf();
    let of_name = match leaf.as_str() {
        "id" => 100,
        "uuid" | "guid" | "ulid" | "event_id" | "request_id" | "message_id" | "trade_id" => 95,
        "cid" | "rkey" | "key" | "hash" | "sha" => 75,
        _ if naming::is_id(&leaf) => 80,
        _ if column.node.prose.identifiers == column.node.present() => 60,
        _ => 0,
    };
    // A number may be counted per wiki, shop or shard; a UUID of the record is unique among all.
    let is_global = matches!(leaf.as_str(), "id" | "uuid" | "event_id" | "message_id")
        && column.node.prose.uuids == column.node.present()
        && parent(column)
            .last()
            .is_some_and(|key| META_PARENTS.contains(key));
    of_name - 15 * column.depth() as i64 + if is_global { 40 } else { 0 }
}

/// Whether a key names a change.
fn is_of_change(leaf: &str) -> bool {
    VERSION_NAMES.contains(&leaf) || leaf.split('_').any(|word| CHANGE_WORDS.contains(&word))
}

/// How much a column is like a version, the least first; none if it is not one. A record that has
/// not changed may have no time of its last change.
fn version_rank(column: &Column<'_>, records: u64) -> Option<u8> {
    let leaf = column.leaf();
    let counts = leaf.split('_').any(|word| COUNT_WORDS.contains(&word));
    // An account that changed it, or whether it was changed, orders nothing.
    let is_time = !counts && !naming::is_id(&leaf) && column.node.times.form().is_some();
    let is_change = is_of_change(&leaf);
    let is_in_every = column.node.present() == records;
    match column.ty {
        Type::BigInt | Type::Timestamp(_)
            if is_in_every && VERSION_NAMES.contains(&leaf.as_str()) =>
        {
            Some(0)
        }
        Type::Timestamp(_) if is_change => Some(if is_in_every { 1 } else { 2 }),
        Type::BigInt if is_change && is_time => Some(if is_in_every { 3 } else { 4 }),
        _ => None,
    }
}

/// How much a column is like a text for people; none if it is not one.
fn text_score(column: &Column<'_>) -> Option<i64> {
    let prose = &column.node.prose;
    let texts = column.node.texts;
    let leaf = column.leaf();
    let is_named = leaf.split('_').any(|word| TEXT_WORDS.contains(&word));
    match &column.ty {
        Type::Varchar if texts > 0 && prose.urls * 2 < texts => {
            let (blanks, words) = (prose.with_blanks * 100 / texts, prose.words * 10 / texts);
            let is_prose = blanks >= 50 || is_named && blanks >= 10 || is_named && words >= 15;
            let is_type = !is_named && column.node.values.distinct() < 6 && texts > 20;
            let of_name = if is_named { 60 } else { 0 };
            let is_sentence = is_prose && !naming::is_time(&leaf) && !naming::is_id(&leaf);
            (is_sentence && !is_type).then(|| of_name + (words as i64).min(100))
        }
        Type::Map => Some(20),
        Type::Array(item) if **item == Type::Varchar => {
            let prose = column
                .node
                .item
                .as_ref()
                .map(|item| (&item.prose, item.texts));
            // Codes of languages and the like are not searched by their words.
            let is_long = prose.is_some_and(|(prose, texts)| prose.chars >= 4 * texts);
            is_long.then_some(10)
        }
        _ => None,
    }
}

/// Whether the values are identifiers.
fn is_code(column: &Column<'_>) -> bool {
    column.node.prose.identifiers * 2 > column.node.texts
}

/// A column with its values, for a comment.
fn values_of(column: &Column<'_>) -> String {
    let counts = &column.node.values.counts;
    let mut values: Vec<(&String, &u64)> = counts.iter().collect();
    values.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let shown: Vec<String> = values
        .iter()
        .take(MAX_SHOWN)
        .map(|(value, count)| match value.as_str() {
            "" => format!("\"\" ({count})"),
            value => format!("{} ({count})", naming::printable(value)),
        })
        .collect();
    let more = counts.len().saturating_sub(MAX_SHOWN);
    let rest = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    format!("`{}` is {}{rest}", column.shown(), shown.join(", "))
}

/// A word that many texts of these columns have; none if no word is in two of them.
pub(super) fn search_word(columns: &[Column<'_>], texts: &[String]) -> Option<String> {
    let searched = columns.iter().filter(|c| texts.contains(&c.name));
    let mut words: Vec<(u64, &String)> = searched
        .flat_map(|c| &c.node.prose.common_words)
        .map(|(word, count)| (*count, word))
        .collect();
    words.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    words.first().map(|(_, word)| (*word).clone())
}
