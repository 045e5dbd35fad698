//! Recordings: the time of a record, and shifting it.

/// The record's `mtime` in milliseconds since 1970; `None` where it has none.
pub fn mtime(line: &str) -> Option<i64> {
    let rest = line.split_once("\"mtime\":")?.1.trim_start();
    rest[..rest
        .find(|c: char| !c.is_ascii_digit() && c != '-')
        .unwrap_or(rest.len())]
        .parse()
        .ok()
}

/// The record with `mtime` and the event's start shifted by `by_ms`, and its new `mtime`. What is
/// not JSON stays as it is, with `mtime` 0.
pub fn shift(line: &str, by_ms: i64) -> (String, i64) {
    let Ok(mut record) = serde_json::from_str::<serde_json::Value>(line) else {
        return (line.to_owned(), 0);
    };
    let shifted = record["mtime"].as_i64().unwrap_or(0) + by_ms;
    if let Some(object) = record.as_object_mut() {
        object.insert("mtime".into(), shifted.into());
        if let Some(start) = object
            .get_mut("event")
            .and_then(|e| e.get_mut("time"))
            .filter(|t| t.is_i64())
        {
            *start = (start.as_i64().unwrap_or(0) + by_ms).into();
        }
    }
    (record.to_string(), shifted)
}
