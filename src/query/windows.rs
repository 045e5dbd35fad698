//! Rows of one window, newest first.

use super::encode::{write_object, write_rows};
use super::spool::{SpooledAnswer, Spools};
use super::sql::SqlEngine;
use super::{Handles, QueryError};
use crate::event::{Micros, rfc3339};

/// A query for the rows of a window.
#[derive(Debug, Clone, Default)]
pub struct WindowsQuery {
    /// The window, by the name that it is declared with.
    pub name: String,
    /// Only windows that start at this time or after it.
    pub from: Option<Micros>,
    /// Only windows that start before this time.
    pub to: Option<Micros>,
    /// Maximum rows; an open window's are among them.
    pub limit: usize,
}

/// `{"window": name, "rows": […], "as_of": …}`.
pub async fn windows(
    query: &WindowsQuery,
    handles: &Handles,
    sql: &SqlEngine,
    spools: &Spools,
    now: Micros,
) -> Result<SpooledAnswer, QueryError> {
    let WindowsQuery {
        name,
        from,
        to,
        limit,
    } = query;
    if handles.catalog.window(name).is_none() {
        let known = handles
            .catalog
            .windows
            .iter()
            .map(|w| w.name.as_str())
            .collect::<Vec<_>>()
            .join(", ");
        let known = if known.is_empty() {
            "no window is declared".to_owned()
        } else {
            format!("available: {known}")
        };
        return Err(QueryError::NotFound(format!(
            "the window `{name}` does not exist; {known}"
        )));
    }
    let from = from.map(|t| format!("window_start >= timestamp '{}'", rfc3339(t)));
    let to = to.map(|t| format!("window_start < timestamp '{}'", rfc3339(t)));
    let range: Vec<String> = from.into_iter().chain(to).collect();
    let range = if range.is_empty() {
        String::new()
    } else {
        format!("where {}", range.join(" and "))
    };
    let statement = format!(
        "select * from \"{name}\" {range} order by window_start desc, lsn desc limit {limit}"
    );
    let answer = sql.run(&statement, handles, now).await?;
    let mut out = spools.begin();
    let head = [("window", name.as_str().into())];
    tokio::task::block_in_place(|| {
        let rows = |out: &mut _| write_rows(&answer.schema, &answer.batches, out, ",");
        write_object(&mut out, &head, "rows", rows, &answer.as_of)
    })?;
    out.finish()
}
