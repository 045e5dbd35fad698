//! Whether a key distinguishes the records of a sample. A source that polls stores a record once, by
//! its key and what orders the events of the key: of two different records that share both, the
//! second one would be lost.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use serde_json::value::RawValue;

use super::columns::Column;
use super::profile::{Members, readable};
use super::times;
use crate::event::Micros;

/// Whether no two different records share the key and the value of `order`, a version or a time;
/// without one, the key alone.
pub(super) fn is_distinct(records: &[&[u8]], key: &Column<'_>, order: Option<&Column<'_>>) -> bool {
    let mut seen: HashMap<u64, u64> = HashMap::new();
    records.iter().all(|record| {
        let Some(text) = readable(record) else {
            return true;
        };
        let key = value_at(&text, &key.path).map(plain);
        let order = order.and_then(|order| value_at(&text, &order.path));
        // A time is compared as it is stored, in microseconds.
        let order = order.map(|value| time(value).ok_or_else(|| plain(value)));
        let content = hash(record);
        *seen.entry(hash(&(key, order))).or_insert(content) == content
    })
}

/// The value at these keys, unless it is missing.
fn value_at<'a>(object: &'a str, path: &[&str]) -> Option<&'a RawValue> {
    let (first, rest) = path.split_first()?;
    let Members(members) = serde_json::from_str(object).ok()?;
    let (_, value) = members.into_iter().find(|(name, _)| name == first)?;
    if rest.is_empty() {
        Some(value)
    } else {
        value_at(value.get(), rest)
    }
}

/// A value as a column of text has it.
fn plain(value: &RawValue) -> String {
    let json = value.get();
    serde_json::from_str(json).unwrap_or_else(|_| json.to_owned())
}

fn time(value: &RawValue) -> Option<Micros> {
    let json = value.get();
    let found = if json.starts_with('"') {
        times::of_text(&plain(value))
    } else if let Ok(integer) = json.parse::<i64>() {
        times::of_integer(integer)
    } else {
        times::of_decimal(json.parse::<f64>().ok()?)
    };
    found.map(|(_, time)| time)
}

fn hash(value: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::columns::layout;
    use crate::infer::profile::Profile;

    /// Whether the first column is a key, ordered by the second one, or by none.
    fn is_key(records: &[&str]) -> (bool, bool) {
        let mut profile = Profile::default();
        let records: Vec<&[u8]> = records.iter().map(|text| text.as_bytes()).collect();
        records.iter().for_each(|record| profile.observe(record));
        let columns = layout(&profile).columns;
        let (key, order) = (&columns[0], &columns[1]);
        (
            is_distinct(&records, key, Some(order)),
            is_distinct(&records, key, None),
        )
    }

    #[test]
    fn different_records_of_one_key_need_different_times() {
        for (first, second, expected) in [
            (r#"{"id":1,"at":5}"#, r#"{"id":2,"at":5}"#, (true, true)),
            (r#"{"id":1,"at":5}"#, r#"{"id":1,"at":5}"#, (true, true)),
            (r#"{"id":1,"at":5}"#, r#"{"id":1,"at":6}"#, (true, false)),
            (
                r#"{"id":1,"at":5,"n":1}"#,
                r#"{"id":1,"at":5,"n":2}"#,
                (false, false),
            ),
            // One time, written in two ways.
            (
                r#"{"a":{"id":"x"},"at":"2024-05-01T10:00:00Z"}"#,
                r#"{"a":{"id":"x"},"at":"2024-05-01T12:00:00+02:00"}"#,
                (false, false),
            ),
            (r#"{"id":1,"at":null}"#, r#"{"id":1,"at":5}"#, (true, false)),
        ] {
            assert_eq!(is_key(&[first, second]), expected, "{first} {second}");
        }
    }
}
