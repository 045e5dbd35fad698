//! What was seen in the records of a sample, by path. Memory is bounded: paths, depth, distinct
//! values and words have limits, and what is beyond them is counted but not stored.

use std::borrow::Cow;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::hash::{Hash, Hasher};

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::times::{self, Times};

/// Objects within objects that are looked into; deeper ones are JSON.
const MAX_DEPTH: usize = 6;
/// Paths of all records together, beside the names of the records themselves.
const MAX_PATHS: usize = 600;
/// Names of one object; an object with more is a map.
const MAX_FIELDS: usize = 200;
/// Distinct values that are compared, by their hashes.
const MAX_HASHES: usize = 2_048;
/// Distinct values that are stored, and their length.
const MAX_VALUES: usize = 64;
const MAX_VALUE_BYTES: usize = 64;
/// Characters of a text that is a number.
const MAX_NUMBER_BYTES: usize = 15;
/// Words that are stored of the texts of a path.
const MAX_WORDS: usize = 200;
/// Characters of a word that is worth searching for.
const WORD_CHARS: std::ops::RangeInclusive<usize> = 4..=20;

/// What was seen in a sample.
#[derive(Debug, Default)]
pub struct Profile {
    pub(super) root: Node,
    /// Records that are JSON objects.
    pub records: u64,
    /// Records that are not.
    pub unreadable: u64,
    paths: usize,
}

/// What was seen at one path: how often each kind of value, and facts about them.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub nulls: u64,
    pub booleans: u64,
    /// Whole numbers of 64 bits.
    pub integers: u64,
    /// Other numbers within the range of doubles.
    pub decimals: u64,
    /// Numbers that neither a bigint nor a double holds as written.
    pub beyond: u64,
    pub texts: u64,
    pub objects: u64,
    pub arrays: u64,
    /// Of scalars.
    pub values: Values,
    /// Of numbers.
    pub range: Option<(f64, f64)>,
    /// Of whole numbers of 64 bits, exactly.
    pub integer_range: Option<(i64, i64)>,
    /// Of texts.
    pub prose: Prose,
    /// Of numbers and texts that are times.
    pub times: Times,
    /// In the order in which they appeared first.
    pub fields: Vec<(String, Node)>,
    positions: HashMap<String, usize>,
    /// Of the elements of arrays.
    pub item: Option<Box<Node>>,
    /// Some of its content was not looked into.
    pub is_cut: bool,
}

/// The distinct values of a path.
#[derive(Debug, Default)]
pub(super) struct Values {
    hashes: HashSet<u64>,
    /// Values that were seen before.
    pub repeats: u64,
    /// Short values with their number, while they are few.
    pub counts: BTreeMap<String, u64>,
    /// There are more than `counts` has.
    pub has_more: bool,
}

/// What texts look like.
#[derive(Debug, Default)]
pub(super) struct Prose {
    pub words: u64,
    pub chars: u64,
    /// Texts with a blank inside.
    pub with_blanks: u64,
    /// URLs, UUIDs, hashes and the like.
    pub identifiers: u64,
    pub urls: u64,
    pub uuids: u64,
    /// Numbers, and the whole ones among them.
    pub numbers: u64,
    pub wholes: u64,
    /// Empty texts, and `-` for a missing value.
    pub blanks: u64,
    pub common_words: BTreeMap<String, u64>,
}

impl Profile {
    /// Takes a record into account.
    pub fn observe(&mut self, record: &[u8]) {
        let text = readable(record);
        let Some(members) = text.as_deref().and_then(|t| serde_json::from_str(t).ok()) else {
            self.unreadable += 1;
            return;
        };
        self.records += 1;
        self.root.objects += 1;
        self.root.observe_members(members, 0, &mut self.paths);
    }

    /// The records that follow are in an order of their own, as those of another file.
    pub fn begin_file(&mut self) {
        self.root.begin_file();
    }
}

/// A record as text that the parser reads, without half surrogates, as the decoder does.
pub(super) fn readable(record: &[u8]) -> Option<Cow<'_, str>> {
    let text = std::str::from_utf8(record).ok()?;
    let repaired = text
        .contains("\\u")
        .then(|| crate::decode::without_lone_surrogates(text))
        .flatten();
    Some(repaired.map_or(Cow::Borrowed(text), Cow::Owned))
}

/// The members of an object, the last one of each name.
pub(super) struct Members<'a>(pub Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
        let (mut members, mut positions) = (Vec::new(), HashMap::new());
        while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
            match positions.get(&name) {
                Some(at) => {
                    let member: &mut (String, &'de RawValue) = &mut members[*at];
                    member.1 = value;
                }
                None => {
                    positions.insert(name.clone(), members.len());
                    members.push((name, value));
                }
            }
        }
        Ok(Members(members))
    }
}

impl Node {
    /// Values that are not null.
    pub fn present(&self) -> u64 {
        self.scalars() + self.objects + self.arrays
    }

    /// Numbers of every kind.
    pub fn numbers(&self) -> u64 {
        self.integers + self.decimals + self.beyond
    }

    fn scalars(&self) -> u64 {
        self.booleans + self.numbers() + self.texts
    }

    fn begin_file(&mut self) {
        self.times.begin_file();
        self.fields
            .iter_mut()
            .for_each(|(_, field)| field.begin_file());
        if let Some(item) = &mut self.item {
            item.begin_file();
        }
    }

    fn observe(&mut self, value: &RawValue, depth: usize, paths: &mut usize) {
        let json = value.get();
        match json.as_bytes().first() {
            Some(b'n') => self.nulls += 1,
            Some(b't' | b'f') => {
                self.booleans += 1;
                self.values.observe(json);
            }
            Some(b'"') => match serde_json::from_str::<String>(json) {
                Ok(text) => self.observe_text(&text),
                Err(_) => self.observe_text(json),
            },
            Some(b'{') => {
                self.objects += 1;
                match serde_json::from_str(json) {
                    Ok(members) if depth < MAX_DEPTH => {
                        self.observe_members(members, depth, paths);
                    }
                    _ => self.is_cut = true,
                }
            }
            Some(b'[') => self.observe_items(json, depth, paths),
            _ => self.observe_number(json),
        }
    }

    fn observe_members(&mut self, Members(members): Members<'_>, depth: usize, paths: &mut usize) {
        // All names before their content, and short content first: a wide object leaves room for
        // the members after it.
        let mut found: Vec<(usize, &RawValue)> = Vec::new();
        for (name, value) in members {
            let at = match self.positions.get(&name) {
                Some(at) => *at,
                None if self.fields.len() < MAX_FIELDS && (depth == 0 || *paths < MAX_PATHS) => {
                    *paths += usize::from(depth > 0);
                    self.positions.insert(name.clone(), self.fields.len());
                    self.fields.push((name, Self::default()));
                    self.fields.len() - 1
                }
                None => {
                    self.is_cut = true;
                    continue;
                }
            };
            found.push((at, value));
        }
        found.sort_by_key(|(_, value)| value.get().len());
        for (at, value) in found {
            self.fields[at].1.observe(value, depth + 1, paths);
        }
    }

    fn observe_items(&mut self, json: &str, depth: usize, paths: &mut usize) {
        self.arrays += 1;
        let items = serde_json::from_str::<Vec<&RawValue>>(json).ok();
        let Some(items) = items.filter(|_| depth < MAX_DEPTH) else {
            self.is_cut = true;
            return;
        };
        if items.is_empty() {
            return;
        }
        let item = match &mut self.item {
            Some(item) => item,
            None if *paths < MAX_PATHS => {
                *paths += 1;
                self.item.insert(Box::default())
            }
            None => {
                self.is_cut = true;
                return;
            }
        };
        for value in items {
            item.observe(value, depth + 1, paths);
        }
    }

    fn observe_number(&mut self, json: &str) {
        self.values.observe(json);
        let double = json.parse::<f64>().unwrap_or(f64::INFINITY);
        match json.parse::<i64>() {
            Ok(integer) => {
                self.integers += 1;
                let (least, greatest) = self.integer_range.unwrap_or((integer, integer));
                self.integer_range = Some((least.min(integer), greatest.max(integer)));
                self.times.observe(times::of_integer(integer));
            }
            // More digits than a double has, and no fraction.
            Err(_) if !double.is_finite() || is_whole(json) => self.beyond += 1,
            Err(_) => {
                self.decimals += 1;
                self.times.observe(times::of_decimal(double));
            }
        }
        if double.is_finite() {
            let (least, greatest) = self.range.unwrap_or((double, double));
            self.range = Some((least.min(double), greatest.max(double)));
        }
    }

    fn observe_text(&mut self, text: &str) {
        self.texts += 1;
        self.values.observe(text);
        self.prose.observe(text);
        self.times.observe(times::of_text(text));
    }
}

fn is_whole(json: &str) -> bool {
    !json.contains(['.', 'e', 'E'])
}

impl Values {
    fn observe(&mut self, value: &str) {
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        let hash = hasher.finish();
        if self.hashes.contains(&hash) {
            self.repeats += 1;
        } else if self.hashes.len() < MAX_HASHES {
            self.hashes.insert(hash);
        }
        if let Some(count) = self.counts.get_mut(value) {
            *count += 1;
        } else if self.counts.len() < MAX_VALUES && value.len() <= MAX_VALUE_BYTES {
            self.counts.insert(value.to_owned(), 1);
        } else {
            self.has_more = true;
        }
    }

    /// How many distinct values there are, at least.
    pub fn distinct(&self) -> usize {
        self.hashes.len()
    }
}

impl Prose {
    /// Whether all of so many texts are numbers, or say that there is none.
    pub fn is_numeric(&self, texts: u64) -> bool {
        self.numbers > 0 && self.numbers + self.blanks == texts
    }

    fn observe(&mut self, text: &str) {
        let words = text.split_whitespace().count() as u64;
        self.words += words;
        self.chars += text.chars().count() as u64;
        self.with_blanks += u64::from(words > 1);
        let is_url = text.contains("://") && words == 1;
        self.urls += u64::from(is_url);
        self.identifiers += u64::from(is_url || is_identifier(text));
        self.uuids += u64::from(is_uuid(text));
        self.blanks += u64::from(matches!(text, "" | "-"));
        if let Some(is_whole) = number(text) {
            self.numbers += 1;
            self.wholes += u64::from(is_whole);
        }
        for word in text.split(|c: char| !c.is_alphabetic()) {
            if !WORD_CHARS.contains(&word.chars().count()) {
                continue;
            }
            let word = word.to_lowercase();
            if self.common_words.len() < MAX_WORDS || self.common_words.contains_key(&word) {
                *self.common_words.entry(word).or_default() += 1;
            }
        }
    }
}

/// Whether a text that is a number is a whole one; none if it is not a number, or one with more
/// digits than both types of numbers hold exactly.
fn number(text: &str) -> Option<bool> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let is_number = digits.len() <= MAX_NUMBER_BYTES && is_digits(whole) && is_digits(fraction);
    is_number.then_some(!digits.contains('.'))
}

/// Whether a text is a UUID, with its hyphens.
fn is_uuid(text: &str) -> bool {
    let is_fitting = |(at, b): (usize, u8)| match at {
        8 | 13 | 18 | 23 => b == b'-',
        _ => b.is_ascii_hexdigit(),
    };
    text.len() == 36 && text.bytes().enumerate().all(is_fitting)
}

/// Whether a text looks like a UUID, a hash or another generated identifier: long, without blanks,
/// with digits among its letters.
fn is_identifier(text: &str) -> bool {
    text.len() >= 12
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b':' | b'.'))
        && text.bytes().any(|b| b.is_ascii_digit())
        && text.bytes().any(|b| b.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(records: &[&str]) -> Profile {
        let mut profile = Profile::default();
        records.iter().for_each(|r| profile.observe(r.as_bytes()));
        profile
    }

    #[test]
    fn kinds_are_counted_by_path_and_the_last_of_two_members_counts() {
        let profile = profile(&[
            r#"{"a":1,"a":"x","b":{"c":null},"d":[1,2.5]}"#,
            r#"{"a":18446744073709551616,"b":{"c":1e999}}"#,
            "[1]",
            "no",
        ]);
        assert_eq!((profile.records, profile.unreadable), (2, 2));
        let names: Vec<&str> = profile
            .root
            .fields
            .iter()
            .map(|(n, _)| n.as_str())
            .collect();
        assert_eq!(names, ["a", "b", "d"]);
        let a = &profile.root.fields[0].1;
        assert_eq!((a.texts, a.integers, a.beyond), (1, 0, 1));
        let c = &profile.root.fields[1].1.fields[0].1;
        assert_eq!((c.nulls, c.beyond), (1, 1));
        let items = profile.root.fields[2].1.item.as_ref().expect("items");
        assert_eq!((items.integers, items.decimals), (1, 1));
    }

    #[test]
    fn texts_that_are_numbers_or_uuids_are_counted() {
        for (text, expected) in [
            ("12", Some(true)),
            ("-0.125", Some(false)),
            ("007", Some(true)),
            ("1e3", None),
            ("1.", None),
            ("", None),
            ("-", None),
            ("0.1, 0.2", None),
            ("1234567890123456", None),
        ] {
            assert_eq!(number(text), expected, "{text}");
        }
        assert!(is_uuid("0b35b1de-1c2d-4e5f-8a9b-d5d5d329d65c"));
        assert!(!is_uuid("0b35b1de1c2d-4e5f-8a9b-d5d5d329d65c-"));
        let profile = profile(&[r#"{"a":"1"}"#, r#"{"a":"-"}"#, r#"{"a":"0.5"}"#]);
        let node = &profile.root.fields[0].1;
        assert!(node.prose.is_numeric(node.texts));
        assert_eq!((node.prose.numbers, node.prose.wholes), (2, 1));
    }

    #[test]
    fn memory_is_bounded_by_paths_depth_and_values() {
        let mut profile = Profile::default();
        for n in 0..3_000 {
            profile.observe(format!("{{\"k{n}\":{{\"v\":{n}}},\"id\":\"{n}\"}}").as_bytes());
        }
        profile.observe(format!("{}1{}", "{\"a\":".repeat(100), "}".repeat(100)).as_bytes());
        assert!(profile.root.fields.len() <= MAX_FIELDS && profile.root.is_cut);
        let (_, id) = profile
            .root
            .fields
            .iter()
            .find(|(n, _)| n == "id")
            .expect("a field");
        assert!(id.values.counts.len() <= MAX_VALUES && id.values.has_more);
        assert!(id.values.distinct() <= MAX_HASHES && id.values.repeats == 0);
    }

    #[test]
    fn a_wide_object_leaves_room_for_the_members_after_it() {
        let wide: Vec<String> = (0..150)
            .map(|n| format!("\"k{n}\":{{\"a\":1,\"b\":2,\"c\":3,\"d\":4}}"))
            .collect();
        let wide = wide.join(",");
        let profile = profile(&[
            &format!("{{\"wide\":{{{wide}}},\"place\":{{\"lat\":1}},\"id\":1}}"),
            r#"{"later":"x"}"#,
        ]);
        let fields = &profile.root.fields;
        let names: Vec<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["wide", "place", "id", "later"]);
        assert_eq!(fields[1].1.fields.len(), 1);
        assert!(fields.iter().all(|(_, field)| field.present() == 1));
        assert!(profile.paths <= MAX_PATHS);
    }
}
