//! Messages → records. A message may be an object, an array of them, or a JSON string that holds either (encoded twice).

fn split(message: &[u8], give: &mut dyn FnMut(&[u8])) {
    let message = message.trim_ascii();
    match message.first() {
        Some(b'[') => match serde_json::from_slice::<Vec<&serde_json::value::RawValue>>(message) {
            Ok(elements) => elements.into_iter().for_each(|e| give(e.get().as_bytes())),
            Err(_) => give(message),
        },
        Some(_) => give(message),
        None => {}
    }
}

/// Gives each record of a message, which may be a string that holds an array. What is no such shape is one record, for the decoder
/// to refuse with its reason.
pub fn each(message: &[u8], give: &mut dyn FnMut(&[u8])) {
    let trimmed = message.trim_ascii();
    if trimmed.first() == Some(&b'"')
        && let Ok(inner) = serde_json::from_slice::<String>(trimmed)
        && inner.trim_start().starts_with('[')
    {
        return split(inner.as_bytes(), give);
    }
    split(trimmed, give);
}

/// The records of a message.
pub fn records(message: &[u8]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    each(message, &mut |record| out.push(record.to_vec()));
    out
}

/// Whether a last line without its newline is a whole JSON object, array or string.
pub fn is_whole(line: &[u8]) -> bool {
    let line = line.trim_ascii();
    matches!(line.first(), Some(b'{' | b'[' | b'"')) && serde_json::from_slice::<serde::de::IgnoredAny>(line).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_gives_its_records() {
        let texts = |m: &str| {
            records(m.as_bytes()).into_iter().map(|r| String::from_utf8(r).expect("text")).collect::<Vec<_>>()
        };
        assert_eq!(texts(r#" {"a":1} "#), [r#"{"a":1}"#]);
        assert_eq!(texts(r#"[{"a":1}, {"b":[2]}]"#), [r#"{"a":1}"#, r#"{"b":[2]}"#]);
        assert_eq!(texts(r#""{\"a\":1}""#), [r#""{\"a\":1}""#]);
        assert_eq!(texts(r#""[{\"a\":1},{}]""#), [r#"{"a":1}"#, "{}"]);
        assert_eq!(texts("[{\"a\":"), ["[{\"a\":"]);
        assert!(texts("  ").is_empty());
    }

    #[test]
    fn whole_lines_are_told_from_cut_ones() {
        assert!(is_whole(b"{\"a\":1}"));
        assert!(is_whole(b"[]"));
        assert!(!is_whole(b"{\"a\":"));
        assert!(!is_whole(b"12"));
    }
}
