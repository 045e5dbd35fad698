//! Names: of columns and streams, which must be valid, and what the words of a key say about it.

use super::columns::Column;
use crate::event::STAMP_COLUMNS;
use crate::schema::names;
use crate::schema::window::WINDOW_COLUMNS;

/// Names that windows and sessions add to a table.
const ADDED_COLUMNS: [&str; 3] = ["session_id", "window_start", "window_end"];
/// Tables that exist in every folder.
const RESERVED_TABLES: [&str; 4] = ["raw", "dead_letters", "weir", "information_schema"];
/// Words of SQL that every place of a statement reads as the name of a table.
const PLAIN_STREAMS: [&str; 3] = ["access", "log", "logs"];
const MAX_STREAM_BYTES: usize = 40;
const MAX_COLUMN_CHARS: usize = 80;
/// Characters of a text of the records that a comment repeats.
const MAX_SHOWN_CHARS: usize = 60;

/// Objects whose name says nothing about what is in them.
const GENERIC_PARENTS: [&str; 4] = ["attributes", "data", "fields", "properties"];

/// Words of a key that names a time.
const TIME_WORDS: [&str; 24] = [
    "at",
    "atime",
    "created",
    "ctime",
    "date",
    "datetime",
    "dt",
    "end",
    "epoch",
    "expires",
    "modified",
    "msec",
    "mtime",
    "occurred",
    "published",
    "received",
    "since",
    "start",
    "time",
    "timestamp",
    "ts",
    "until",
    "updated",
    "when",
];

/// Words of a key that names a measure: its values are added and compared.
const MEASURE_WORDS: [&str; 11] = [
    "bytes", "count", "duration", "latency", "length", "millis", "ms", "ratio", "secs", "seconds",
    "size",
];

/// A key's words in lower case with `_` between two: `createdAt` is `created_at`.
pub(super) fn snake_case(key: &str) -> String {
    let mut out = String::new();
    let mut was_lower = false;
    for c in key.chars() {
        if c.is_uppercase() && was_lower {
            out.push('_');
        }
        was_lower = c.is_lowercase() || c.is_numeric();
        if c.is_alphanumeric() {
            out.extend(c.to_lowercase());
        } else if !out.ends_with('_') && !out.is_empty() {
            out.push('_');
        }
    }
    out.trim_end_matches('_').to_owned()
}

/// Whether a key, in snake case, names a time.
pub(super) fn is_time(key: &str) -> bool {
    let has_word = key.split('_').any(|word| TIME_WORDS.contains(&word));
    (has_word || key.ends_with("time") || key.ends_with("timestamp")) && !is_id(key)
}

/// Whether a key, in snake case, names a measure. A time is one if it has a fraction: `0930` may be
/// a time of day.
pub(super) fn is_measure(key: &str, has_fraction: bool) -> bool {
    let is_word = |word: &str| MEASURE_WORDS.contains(&word) || has_fraction && word == "time";
    key.split('_').any(is_word) && !is_id(key)
}

/// Whether a key, in snake case, names an identifier.
pub(super) fn is_id(key: &str) -> bool {
    let words = ["id", "uuid", "guid", "ulid", "key", "uid"];
    key.rsplit('_')
        .next()
        .is_some_and(|last| words.contains(&last))
}

/// Whether a key, in snake case, names a latitude or a longitude, or holds both.
pub(super) fn is_coordinate(key: &str) -> bool {
    is_latitude(key) || is_longitude(key) || key == "coordinates"
}

/// Whether a key, in snake case, names a latitude.
pub(super) fn is_latitude(key: &str) -> bool {
    matches!(key.rsplit('_').next(), Some("lat" | "latitude"))
}

/// Whether a key, in snake case, names a longitude.
pub(super) fn is_longitude(key: &str) -> bool {
    matches!(
        key.rsplit('_').next(),
        Some("lon" | "lng" | "long" | "longitude")
    )
}

/// The name of the latitude that belongs to a longitude, without its last word.
pub(super) fn coordinate_prefix(key: &str) -> &str {
    key.rsplit_once('_').map_or("", |(prefix, _)| prefix)
}

/// Gives each column a name that is valid and its own: the last key, after the one around it.
pub(super) fn name_columns(columns: &mut [Column<'_>]) {
    let mut taken: Vec<String> = Vec::new();
    for column in columns {
        let plain = plain_name(&column.path);
        let is_taken = taken
            .iter()
            .any(|t| names::is_same_ignoring_case(t, &plain));
        let own = match column.path.as_slice() {
            // The object around it says more than a number does.
            [.., parent, leaf] if is_taken => {
                let both = format!("{}_{}", snake_case(parent), snake_case(leaf));
                free_name(&names::to_plain(&both), &taken)
            }
            _ => free_name(&plain, &taken),
        };
        taken.push(own.clone());
        column.name = own;
    }
}

/// A name of a column for the value at this path.
fn plain_name(path: &[&str]) -> String {
    let mut words: Vec<String> = Vec::new();
    for key in path {
        let key = snake_case(key);
        // `venue.venue_id` is `venue_id`.
        match words.last() {
            Some(parent)
                if key == *parent
                    || key.starts_with(&format!("{parent}_"))
                    || GENERIC_PARENTS.contains(&parent.as_str()) =>
            {
                words.pop();
            }
            _ => {}
        }
        words.push(key);
    }
    // Of the objects around a value, the nearest one is enough.
    let from = words.len().saturating_sub(2);
    let joined: String = words[from..]
        .join("_")
        .chars()
        .take(MAX_COLUMN_CHARS)
        .collect();
    match joined.trim_matches('_') {
        "" => "column".to_owned(),
        joined => names::to_plain(joined),
    }
}

/// The name that a column of a stream has in a window, which has columns of its own.
pub(super) fn name_in_window(name: &str) -> String {
    unreserved(name, WINDOW_COLUMNS.iter())
}

/// The name, with a suffix if it is one of these.
fn unreserved<'a>(name: &str, mut reserved: impl Iterator<Item = &'a &'a str>) -> String {
    if reserved.any(|reserved| names::is_same_ignoring_case(reserved, name)) {
        format!("{name}_value")
    } else {
        name.to_owned()
    }
}

/// The name, with a suffix if it is reserved or taken.
pub(super) fn free_name(name: &str, taken: &[String]) -> String {
    let name = unreserved(name, STAMP_COLUMNS.iter().chain(&ADDED_COLUMNS));
    let is_free = |name: &String| !taken.iter().any(|t| names::is_same_ignoring_case(t, name));
    let numbered = (2..).map(|n| format!("{name}_{n}"));
    std::iter::once(name.clone())
        .chain(numbered)
        .find(is_free)
        .unwrap_or(name)
}

/// The name of a stream for what is read from a file, folder or URL of this name.
pub fn stream_name(of: &str) -> String {
    let words = snake_case(of);
    let words = words.split('_').filter(|word| !word.is_empty());
    // The date or the number in a file's name is not what its records are about.
    let words = words.take_while(|word| !word.starts_with(|c: char| c.is_ascii_digit()));
    let ascii = |word: &str| word.chars().filter(char::is_ascii_alphanumeric).collect();
    let words: Vec<String> = words
        .map(ascii)
        .filter(|w: &String| !w.is_empty())
        .collect();
    let mut name: String = words.join("_").chars().take(MAX_STREAM_BYTES).collect();
    if name.is_empty() || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        name = "events".to_owned();
    }
    let is_read_otherwise = names::is_keyword(&name) && !PLAIN_STREAMS.contains(&name.as_str());
    if is_read_otherwise || RESERVED_TABLES.contains(&name.as_str()) {
        name.push_str("_events");
    }
    name
}

/// A text of the records as a comment can repeat it: one line, without characters that a terminal
/// or an editor obeys, shortened.
pub(super) fn printable(text: &str) -> String {
    let mut shown: String = printable_line(text).chars().take(MAX_SHOWN_CHARS).collect();
    if text.chars().nth(MAX_SHOWN_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

/// A text as one line of a comment.
pub(super) fn printable_line(text: &str) -> String {
    let is_hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    text.chars()
        .map(|c| if is_hidden(c) { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_words() {
        for (key, expected) in [
            ("createdAt", "created_at"),
            ("time_us", "time_us"),
            ("isRobot", "is_robot"),
            ("@timestamp", "timestamp"),
            ("HTTP-Status", "http_status"),
            ("  ", ""),
            ("Größe (m)", "größe_m"),
        ] {
            assert_eq!(snake_case(key), expected);
        }
        assert!(is_time("time_us") && is_time("created_at") && is_time("mtime"));
        assert!(!is_time("time_id") && !is_time("state") && !is_time("rsvp"));
        assert!(is_measure("body_bytes_sent", false) && is_measure("request_time", true));
        assert!(!is_measure("opening_time", false) && !is_measure("size_id", true));
    }

    #[test]
    fn streams_get_valid_names() {
        for (of, expected) in [
            ("quakes", "quakes"),
            ("rsvps-2015-03-08", "rsvps"),
            ("access.log", "access_log"),
            ("order", "order_events"),
            ("logs", "logs"),
            ("raw", "raw_events"),
            ("2024-05-01", "events"),
            ("données", "donnes"),
            ("Ω", "events"),
        ] {
            assert_eq!(stream_name(of), expected);
        }
    }

    #[test]
    fn comments_repeat_no_control_characters() {
        assert_eq!(
            printable("a\nb\u{202e}c\u{1b}"),
            "a\u{fffd}b\u{fffd}c\u{fffd}"
        );
        assert_eq!(
            printable(&"x".repeat(100)).chars().count(),
            MAX_SHOWN_CHARS + 1
        );
    }
}
