//! Rows of one window, newest first.

use serde_json::{Map, Value, json};

use super::sql::{SqlEngine, to_ndjson};
use super::{Handles, QueryError};
use crate::event::{Micros, rfc3339};

/// What is asked.
#[derive(Debug, Clone, Default)]
pub struct WindowsQuestion {
    pub name: String,
    /// Windows that start from this time on, and before that one.
    pub from: Option<Micros>,
    pub to: Option<Micros>,
    pub limit: usize,
}

/// `{"window": name, "rows": […], "as_of": …}`.
pub async fn windows(
    question: &WindowsQuestion,
    handles: &Handles,
    sql: &SqlEngine,
    now: Micros,
) -> Result<Value, QueryError> {
    let WindowsQuestion { name, from, to, limit } = question;
    if handles.catalog.window(name).is_none() {
        let known = handles.catalog.windows.iter().map(|w| w.name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(QueryError::NotFound(format!("there is no window `{name}`; there are: {known}")));
    }
    let from = from.map(|t| format!("window_start >= timestamp '{}'", rfc3339(t)));
    let to = to.map(|t| format!("window_start < timestamp '{}'", rfc3339(t)));
    let range: Vec<String> = from.into_iter().chain(to).collect();
    let range = if range.is_empty() { String::new() } else { format!("where {}", range.join(" and ")) };
    let query = format!("select * from \"{name}\" {range} order by window_start desc, lsn desc limit {limit}");
    let answer = sql.run(&query, handles, now).await?;
    let lines = to_ndjson(&answer.schema, &answer.batches)?;
    let rows = lines
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(serde_json::from_slice::<Map<String, Value>>)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| QueryError::Failed(e.to_string()))?;
    Ok(json!({"window": name, "rows": rows, "as_of": answer.as_of}))
}
