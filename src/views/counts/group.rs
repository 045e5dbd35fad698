//! A group's values as one text, which is its key in the file: joined by U+001F, with that
//! character escaped where a value has it. A null value is an empty text. A long value is kept in
//! part, see [`bounds::truncate_with_hash`].

use std::borrow::Cow;

use crate::bounds;

const SEPARATOR: char = '\u{1f}';
const ESCAPE: char = '\u{10}';

/// Appends the next value of a group.
pub fn push(text: &mut String, is_first: bool, value: &str) {
    if !is_first {
        text.push(SEPARATOR);
    }
    let value = bounds::truncate_with_hash(value);
    if !value.contains([SEPARATOR, ESCAPE]) {
        return text.push_str(&value);
    }
    for character in value.chars() {
        match character {
            ESCAPE => text.extend([ESCAPE, '0']),
            SEPARATOR => text.extend([ESCAPE, '1']),
            other => text.push(other),
        }
    }
}

/// The text of a group.
#[cfg(test)]
pub fn text<'a>(values: impl IntoIterator<Item = &'a str>) -> String {
    let mut text = String::new();
    values
        .into_iter()
        .enumerate()
        .for_each(|(n, value)| push(&mut text, n == 0, value));
    text
}

/// The values of a group, long ones truncated.
pub fn values(text: &str) -> impl Iterator<Item = Cow<'_, str>> {
    text.split(SEPARATOR).map(|value| {
        if !value.contains(ESCAPE) {
            return value.into();
        }
        let mut out = String::with_capacity(value.len());
        let mut characters = value.chars();
        while let Some(character) = characters.next() {
            out.push(match character {
                ESCAPE if characters.next() == Some('1') => SEPARATOR,
                other => other,
            });
        }
        out.into()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn different_groups_have_different_texts_and_read_back(
            groups in prop::collection::vec(prop::collection::vec("[a\u{10}\u{1f}01é]{0,4}", 2), 2)
        ) {
            let joined = |group: &Vec<String>| text(group.iter().map(String::as_str));
            for group in &groups {
                prop_assert_eq!(&values(&joined(group)).map(Cow::into_owned).collect::<Vec<_>>(), group);
            }
            prop_assert_eq!(joined(&groups[0]) == joined(&groups[1]), groups[0] == groups[1]);
        }
    }

    #[test]
    fn a_long_value_is_truncated() {
        let long = "x".repeat(100_000);
        assert!(text([long.as_str(), "b"]).len() < 200);
        assert_eq!(values(&text([long.as_str(), "b"])).last(), Some("b".into()));
    }
}
