//! Finds the array of records inside objects, which a source names by `unwrap`: the members beside
//! it are not read, so they must say nothing of their own.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::naming;

/// Members that are looked at.
const MAX_MEMBERS: usize = 1_000;
/// Documents in which a member must have one value to be a constant, at least.
const MIN_CONSTANT: usize = 3;

/// Words of members that describe an answer, not what it holds.
const ENVELOPE_WORDS: &[&str] = &[
    "api",
    "bbox",
    "code",
    "context",
    "continue",
    "copyright",
    "count",
    "crs",
    "cursor",
    "error",
    "errors",
    "generator",
    "info",
    "kind",
    "license",
    "limit",
    "links",
    "meta",
    "metadata",
    "more",
    "next",
    "object",
    "offset",
    "ok",
    "page",
    "pageable",
    "pages",
    "pagination",
    "paging",
    "params",
    "prev",
    "previous",
    "request",
    "schema",
    "size",
    "status",
    "success",
    "took",
    "total",
    "type",
    "version",
    "warnings",
];
/// Words that they have beside one of these.
const OTHER_WORDS: &[&str] = &[
    "elements", "entries", "first", "has", "hits", "is", "item", "items", "last", "link",
    "matched", "number", "odata", "of", "per", "records", "results", "returned", "rows", "self",
    "token", "uri", "url",
];
/// Words of members that are whole numbers in an envelope: a price, or another kind of code, is
/// part of a record.
const NUMBER_WORDS: &[&str] = &["code", "count", "size", "total"];
/// Members that are the URL of the next page.
const NEXT_NAMES: [&str; 5] = [
    "next",
    "next_link",
    "next_page",
    "next_page_url",
    "next_url",
];

/// An object around records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The member whose array holds the records.
    pub member: String,
    /// The other members.
    pub others: Vec<String>,
    /// The other members are those of a record: to read only the array would lose it.
    pub is_record: bool,
    /// The member that is the URL of the next page.
    pub next: Option<String>,
}

/// The object around the records of one document, or of each of several: messages, or files. None
/// if one of them is not a single object, or if no member of all of them is an array of objects.
/// `wanted` is the member that is asked for. A document may end early: then the last member that
/// has begun counts.
pub fn envelope(documents: &[&[u8]], wanted: Option<&str>) -> Option<Envelope> {
    let all: Option<Vec<Members>> = documents.iter().map(|content| members(content)).collect();
    let all = all?;
    let member = match wanted {
        Some(wanted) => wanted.to_owned(),
        None => array_of_objects(&all)?,
    };
    let is_geojson = member == "features" && all.iter().all(is_collection);
    let constants = constants(&all);
    let (mut names, mut others) = (BTreeSet::new(), Vec::new());
    let (mut is_record, mut next) = (false, None);
    for (name, value) in all.iter().flatten().filter(|(name, _)| *name != member) {
        if names.insert(name.as_str()) {
            others.push(name.clone());
        }
        is_record |=
            !is_geojson && !is_of_envelope(name, value) && !constants.contains(&name.as_str());
        if next.is_none() && is_next(name, value) {
            next = Some(name.clone());
        }
    }
    Some(Envelope {
        member,
        others,
        is_record,
        next,
    })
}

/// The member that is an array in all documents, and has most objects.
fn array_of_objects(all: &[Members]) -> Option<String> {
    let counted = all.first()?.iter().filter_map(|(name, _)| {
        let (mut sum, mut most) = (0_usize, 0_usize);
        for members in all {
            match members.iter().find(|(other, _)| other == name)?.1 {
                Value::Array(objects) => {
                    sum += objects;
                    most = most.max(objects);
                }
                _ => return None,
            }
        }
        (most > 1).then_some((name, sum))
    });
    // Links and errors are arrays of objects, too.
    let best = counted.max_by_key(|(name, sum)| (!has_envelope_name(name), *sum))?;
    Some(best.0.clone())
}

/// Whether a document is a collection of GeoJSON, whose members are known.
fn is_collection(members: &Members) -> bool {
    members.iter().any(|(name, value)| {
        name == "type" && matches!(value, Value::Text(text) if text == "FeatureCollection")
    })
}

/// The members that have one value in all documents, where there are enough to tell.
fn constants(all: &[Members]) -> Vec<&str> {
    let Some(first) = all.first().filter(|_| all.len() >= MIN_CONSTANT) else {
        return Vec::new();
    };
    let is_constant = |(name, value): &&(String, Value)| {
        let snake_case = naming::snake_case(name);
        let is_scalar = !matches!(value, Value::Object | Value::Array(_));
        let has_it = |members: &Members| members.iter().any(|(n, v)| n == name && v == value);
        is_scalar
            && !naming::is_id(&snake_case)
            && !naming::is_time(&snake_case)
            && all.iter().all(has_it)
    };
    let found = first.iter().filter(is_constant);
    found.map(|(name, _)| name.as_str()).collect()
}

fn has_envelope_name(name: &str) -> bool {
    let name = naming::snake_case(name);
    let is_known = |word: &str| ENVELOPE_WORDS.contains(&word);
    name.split('_')
        .all(|word| is_known(word) || OTHER_WORDS.contains(&word))
        && name.split('_').any(is_known)
}

fn is_of_envelope(name: &str, value: &Value) -> bool {
    let words = naming::snake_case(name);
    let is_number = words.split('_').any(|word| NUMBER_WORDS.contains(&word));
    let is_fitting = match value {
        Value::Number(number) => !is_number || number.fract() == 0.0,
        Value::Text(text) => !is_number || text.parse::<u64>().is_ok(),
        Value::Null | Value::Flag(_) | Value::Object | Value::Array(_) => true,
    };
    is_fitting && has_envelope_name(name)
}

/// Whether a member names the next page, and can be the source's key `next`.
fn is_next(name: &str, value: &Value) -> bool {
    let is_url = match value {
        Value::Null => true,
        Value::Text(text) => text.contains("://") || text.starts_with('/'),
        _ => false,
    };
    // A dot leads to a member of a member.
    is_url && !name.contains('.') && NEXT_NAMES.contains(&naming::snake_case(name).as_str())
}

/// The members of an object.
type Members = Vec<(String, Value)>;

/// What a member is.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Null,
    Flag(bool),
    Number(f64),
    Text(String),
    Object,
    /// With the number of objects at its beginning.
    Array(usize),
}

/// The members of a single object; none if the content is anything else.
fn members(content: &[u8]) -> Option<Members> {
    let start = content.iter().position(|b| !b.is_ascii_whitespace())?;
    let content = &content[start..];
    if content.first() != Some(&b'{') {
        return None;
    }
    let mut found = Vec::new();
    let mut parser = serde_json::Deserializer::from_slice(content);
    let is_complete = parser.deserialize_map(MembersVisitor(&mut found)).is_ok();
    // Another value after the object: records one after the other, not an envelope.
    if is_complete && parser.end().is_err() {
        return None;
    }
    Some(found)
}

struct MembersVisitor<'a>(&'a mut Members);

impl<'de> Visitor<'de> for MembersVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if self.0.len() >= MAX_MEMBERS {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            self.0.push((name, Value::Null));
            if let Some((_, value)) = self.0.last_mut() {
                map.next_value_seed(ValueSeed(value))?;
            }
        }
        Ok(())
    }
}

/// Reads what a value is, also of one that ends early.
struct ValueSeed<'a>(&'a mut Value);

impl<'de> serde::de::DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        *self.0 = Value::Null;
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        *self.0 = Value::Flag(value);
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        *self.0 = Value::Number(value as f64);
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        *self.0 = Value::Number(value as f64);
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        *self.0 = Value::Number(value);
        Ok(())
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        *self.0 = Value::Text(value.to_owned());
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        *self.0 = Value::Object;
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut objects = 0;
        *self.0 = Value::Array(objects);
        while seq.next_element::<Object>()?.is_some_and(|item| item.0) {
            objects += 1;
            *self.0 = Value::Array(objects);
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// Whether a value is an object.
struct Object(bool);

impl<'de> serde::Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&serde_json::value::RawValue>::deserialize(deserializer)?;
        Ok(Self(raw.get().starts_with('{')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The member, and whether it would be all that is read.
    fn found(documents: &[&str]) -> Option<(String, bool)> {
        let documents: Vec<&[u8]> = documents.iter().map(|text| text.as_bytes()).collect();
        envelope(&documents, None).map(|found| (found.member, !found.is_record))
    }

    #[test]
    fn the_member_with_most_objects_is_found() {
        for (content, expected) in [
            (
                r#"{"type":"x","bbox":[1,2],"features":[{"a":1},{"a":2}]}"#,
                Some("features"),
            ),
            (
                r#"{"links":[{},{},{}],"total_count":7,"nextPageToken":"x","data":[{},{}]}"#,
                Some("data"),
            ),
            // It ends early.
            (r#"{"count":1,"rows":[{"a":1},{"a":2},{"a"#, Some("rows")),
            ("{\"a\":[{},{}]}\n{\"a\":[{},{}]}", None),
            (r#"{"topics":[{"a":1}],"at":1}"#, None),
            ("[{},{}]", None),
            ("", None),
            ("no", None),
        ] {
            let expected = expected.map(|member| (member.to_owned(), true));
            assert_eq!(found(&[content]), expected, "{content}");
        }
    }

    #[test]
    fn a_record_with_an_array_of_objects_is_read_whole() {
        for other in [
            r#""order_id":7"#,
            r#""at":"2024-05-01T10:00:00Z""#,
            r#""customer":"Ada""#,
            r#""total":9.5"#,
            r#""address":{"city":"Oslo"}"#,
        ] {
            let record = format!("{{{other},\"items\":[{{\"a\":1}},{{\"a\":2}}]}}");
            assert_eq!(found(&[&record]), Some(("items".into(), false)), "{other}");
        }
        let collection = r#"{"type":"FeatureCollection","name":"a","features":[{},{}]}"#;
        assert_eq!(found(&[collection]), Some(("features".into(), true)));
    }

    #[test]
    fn all_messages_decide() {
        let quotes = |symbol: &str| format!("{{\"symbol\":\"{symbol}\",\"data\":[{{}},{{}}]}}");
        let (a, b) = (quotes("a"), quotes("b"));
        assert_eq!(found(&[&a, &a, &a]), Some(("data".into(), true)));
        assert_eq!(found(&[&a, &a, &b]), Some(("data".into(), false)));
        assert_eq!(found(&[&a, r#"{"symbol":"a"}"#]), None);
        let one = r#"{"type":"new","data":[{}]}"#;
        assert_eq!(found(&[one, one]), None);
        let two = r#"{"type":"new","data":[{},{}]}"#;
        assert_eq!(found(&[one, two]), Some(("data".into(), true)));
    }

    #[test]
    fn other_members_are_named_and_one_is_the_next_page() {
        let text = br#"{"count":9,"next":"https://example.com/?page=2","results":[{},{}]}"#;
        let found = envelope(&[text.as_slice()], Some("results")).expect("an envelope");
        assert_eq!(found.others, ["count", "next"]);
        assert_eq!(found.next.as_deref(), Some("next"));
        let cursor = br#"{"next":"abc","results":[{},{}]}"#;
        let found = envelope(&[cursor.as_slice()], None).expect("an envelope");
        assert_eq!((found.next, found.is_record), (None, false));
    }
}
