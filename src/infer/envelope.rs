//! Finds the array of records inside an object, which a source names by `unwrap`.

use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The member of a single object whose array holds the records, with the number of its elements
/// that are objects; none if the content is anything else. `content` may end early: then the last
/// member that has begun counts.
pub fn array_member(content: &[u8]) -> Option<String> {
    let start = content.iter().position(|b| !b.is_ascii_whitespace())?;
    let content = &content[start..];
    if content.first() != Some(&b'{') {
        return None;
    }
    let mut found = Members::default();
    let mut parser = serde_json::Deserializer::from_slice(content);
    let is_complete = parser.deserialize_map(&mut found).is_ok();
    // Another value after the object: records one after the other, not an envelope.
    if is_complete && parser.end().is_err() {
        return None;
    }
    let best = found.arrays.into_iter().max_by_key(|(_, objects)| *objects);
    best.filter(|(_, objects)| *objects > 1)
        .map(|(name, _)| name)
}

/// The members of an object that are arrays, with their number of objects.
#[derive(Default)]
struct Members {
    arrays: Vec<(String, usize)>,
}

/// Members that are looked at.
const MAX_MEMBERS: usize = 1_000;

impl<'de> Visitor<'de> for &mut Members {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if self.arrays.len() >= MAX_MEMBERS {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            self.arrays.push((name, 0));
            if let Some((_, objects)) = self.arrays.last_mut() {
                map.next_value_seed(Elements(objects))?;
            }
        }
        Ok(())
    }
}

/// Counts the objects of an array, also of one that ends early.
struct Elements<'a>(&'a mut usize);

impl<'de> serde::de::DeserializeSeed<'de> for Elements<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

macro_rules! scalars {
    ($($visit:ident($ty:ty)),*) => {
        $(fn $visit<E>(self, _: $ty) -> Result<(), E> {
            Ok(())
        })*
    };
}

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    scalars!(
        visit_bool(bool),
        visit_i64(i64),
        visit_u64(u64),
        visit_f64(f64),
        visit_str(&str)
    );

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<Object>()?.is_some_and(|item| item.0) {
            *self.0 += 1;
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

    #[test]
    fn the_member_with_most_objects_is_found() {
        for (content, expected) in [
            (
                r#"{"type":"x","bbox":[1,2],"features":[{"a":1},{"a":2}]}"#,
                Some("features"),
            ),
            // It ends early.
            (r#"{"n":1,"rows":[{"a":1},{"a":2},{"a"#, Some("rows")),
            ("{\"a\":[{},{}]}\n{\"a\":[{},{}]}", None),
            (r#"{"topics":[{"a":1}],"at":1}"#, None),
            ("[{},{}]", None),
            ("", None),
            ("no", None),
        ] {
            assert_eq!(
                array_member(content.as_bytes()).as_deref(),
                expected,
                "{content}"
            );
        }
    }
}
