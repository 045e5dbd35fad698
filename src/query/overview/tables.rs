//! Panels by SQL, each over a range that is bounded: the newest rows of a window, and the most
//! frequent values of a column.

use std::ops::Range;

use serde_json::{Map, Value, json};

use super::counts::{MAX_VALUES, newest_second};
use super::{PanelData, TOP_SPAN, shortened};
use crate::event::{MICROS_PER_HOUR, MICROS_PER_SECOND, Micros, rfc3339};
use crate::ids::TableId;
use crate::query::encode::each_row;
use crate::query::sql::{SqlAnswer, SqlEngine};
use crate::query::{Handles, QueryError};
use crate::schema::names::quoted;
use crate::schema::window::WINDOW_COLUMNS;
use crate::schema::{Stream, Window};

/// The time over which the most frequent values are counted: [`TOP_SPAN`].
const TOP_MICROS: Micros = 300 * MICROS_PER_SECOND;
/// Most frequent values that a panel shows.
const MAX_TOP_VALUES: usize = 10;

/// An answer's rows as JSON objects, long values shortened.
pub(super) fn rows(answer: &SqlAnswer) -> Result<Vec<Map<String, Value>>, QueryError> {
    let mut rows = Vec::new();
    each_row(&answer.schema, &answer.batches, |row| {
        let row: Map<String, Value> =
            serde_json::from_slice(row).map_err(|e| QueryError::Failed(e.to_string()))?;
        rows.push(row.into_iter().map(|(k, v)| (k, shortened(v))).collect());
        Ok(())
    })?;
    Ok(rows)
}

/// The data of the panel of a window; empty for one that does not exist.
pub async fn window(
    name: &str,
    handles: &Handles,
    sql: &SqlEngine,
    now: Micros,
) -> Result<PanelData, QueryError> {
    let missing = || QueryError::NotFound(format!("the window `{name}` does not exist"));
    let window = handles.catalog.window(name).ok_or_else(missing)?;
    let table = handles.tables.get(&TableId::window(name));
    // Rows that are not in files are in memory, and few.
    let newest = table.and_then(|table| table.files().iter().map(|file| file.max_time).max());
    let answer = sql.run(&newest_rows(window, newest), handles, now).await?;
    let (mut read, mut as_of) = (rows(&answer)?, answer.as_of);
    if let Some(newest) = newest.filter(|_| read.is_empty()) {
        // The newest file may have retracted rows only.
        let from = newest.saturating_sub(MICROS_PER_HOUR);
        let answer = sql
            .run(&newest_rows(window, Some(from)), handles, now)
            .await?;
        (read, as_of) = (rows(&answer)?, answer.as_of);
    }
    Ok(PanelData {
        as_of: Some(as_of),
        data: window_data(window, &read),
    })
}

/// The query for the newest rows of a window that begin at a time or later. Of windows that
/// overlap, those that have fired: an open one has only a part of its time.
fn newest_rows(window: &Window, from: Option<Micros>) -> String {
    let from = from.map(|time| format!("window_start >= timestamp '{}'", rfc3339(time)));
    let fired = window.is_sliding().then(|| "status <> 'open'".to_owned());
    let conditions: Vec<String> = from.into_iter().chain(fired).collect();
    let conditions = if conditions.is_empty() {
        String::new()
    } else {
        format!("where {}", conditions.join(" and "))
    };
    let ranks = window.ranking().into_iter().map(|(column, descends)| {
        let order = if descends { "desc" } else { "asc" };
        format!("{} {order}", quoted(column))
    });
    let order: Vec<String> = std::iter::once("window_start desc".to_owned())
        .chain(ranks)
        .chain(window.key_names().map(quoted))
        .collect();
    format!(
        "select * from {} {conditions} order by {} limit {MAX_VALUES}",
        quoted(&window.name),
        order.join(", ")
    )
}

/// `{"window_start", "window_end", "status", "columns", "rows"}` of the first row's window; of
/// session windows all rows, each with its own times.
fn window_data(window: &Window, rows: &[Map<String, Value>]) -> Value {
    let is_session = window.is_session();
    let of_first = |column: &str| rows.first().and_then(|row| row.get(column)).cloned();
    let (start, end, status) = (
        of_first("window_start"),
        of_first("window_end"),
        of_first("status"),
    );
    let times = ["window_start", "window_end"];
    let own = window.schema.fields().iter().skip(WINDOW_COLUMNS.len());
    let columns: Vec<&str> = times
        .into_iter()
        .filter(|_| is_session)
        .chain(own.map(|field| field.name().as_str()))
        .collect();
    let cells = |row: &Map<String, Value>| -> Vec<Value> {
        let cell = |column: &&str| row.get(*column).cloned().unwrap_or_default();
        columns.iter().map(cell).collect()
    };
    let rows: Vec<Vec<Value>> = rows
        .iter()
        .filter(|row| is_session || row.get("window_start") == start.as_ref())
        .map(cells)
        .collect();
    json!({"window_start": start, "window_end": end, "status": status, "columns": columns, "rows": rows})
}

/// The data of a panel of most frequent values of a column, up to the newest event time.
pub async fn top(
    stream: &Stream,
    column: &str,
    handles: &Handles,
    sql: &SqlEngine,
    now: Micros,
) -> Result<PanelData, QueryError> {
    let newest = match handles.counts.get(&stream.name) {
        Some(counts) => newest_second(counts, now),
        None => newest_by_watermark(stream, handles, now),
    };
    let Some(newest) = newest else {
        let data = json!({"span": TOP_SPAN, "total": 0, "values": []});
        return Ok(PanelData { as_of: None, data });
    };
    let end = (newest + 1).saturating_mul(MICROS_PER_SECOND);
    let range = end.saturating_sub(TOP_MICROS)..end;
    let statement = most_frequent(stream, column, &range);
    let answer = sql.run(&statement, handles, now).await?;
    let rows = rows(&answer)?;
    let total = rows.first().and_then(|row| row.get("total")).cloned();
    let value = |row: &Map<String, Value>| json!({"value": row.get("value"), "n": row.get("n")});
    let values: Vec<Value> = rows.iter().map(value).collect();
    Ok(PanelData {
        as_of: Some(answer.as_of),
        data: json!({"span": TOP_SPAN, "total": total.unwrap_or_else(|| 0.into()), "values": values}),
    })
}

/// The newest second of event time of a stream without counts, since 1970: its watermark is below it
/// by the disorder that the declaration allows.
fn newest_by_watermark(stream: &Stream, handles: &Handles, now: Micros) -> Option<i64> {
    let watermark = handles.progress.streams().get(&stream.name)?.watermark?;
    let newest = watermark.saturating_add(stream.def.watermark.disorder.micros());
    Some(newest.min(now).div_euclid(MICROS_PER_SECOND))
}

/// The query for the most frequent values of a column, of a list those of its items, in a range of
/// event time.
fn most_frequent(stream: &Stream, column: &str, range: &Range<Micros>) -> String {
    let is_list = stream
        .output
        .field_with_name(column)
        .is_ok_and(|field| field.data_type().is_nested());
    let column = quoted(column);
    let value = if is_list {
        format!("unnest({column})")
    } else {
        column
    };
    let mut conditions = vec![
        format!("event_time >= timestamp '{}'", rfc3339(range.start)),
        format!("event_time < timestamp '{}'", rfc3339(range.end)),
    ];
    if stream.duplicates().is_some() {
        conditions.push("not is_duplicate".into());
    }
    format!(
        "select value, n, sum(n) over () as total from (select value, count(*) as n from (\
         select {value} as value from {} where {}) as items where value is not null group by value\
         ) as frequent order by n desc, value limit {MAX_TOP_VALUES}",
        quoted(&stream.name),
        conditions.join(" and ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Catalog;

    const DECLARED: &str = r#"{"streams": {"s": {
        "schema": "at timestamp not null, name varchar, tags array<varchar>, \"a\"\"b\" varchar",
        "select": "select at as event_time, name, tags, \"a\"\"b\" from s"
    }}, "windows": {
        "t": {"sql": "select window_start, window_end, name, count(*) as n from tumble(s, event_time, interval '1 minute') group by 1, 2, 3"},
        "h": {"sql": "select window_start, window_end, name, count(*) as n from hop(s, event_time, interval '1 second', interval '5 minutes') group by 1, 2, 3 order by n desc limit 5"}
    }}"#;

    fn catalog() -> Catalog {
        Catalog::from_json(DECLARED).expect("valid")
    }

    #[test]
    fn newest_rows_are_read_from_a_bounded_range_and_in_the_order_of_the_window() {
        let catalog = catalog();
        let statement =
            |name: &str, from| newest_rows(catalog.window(name).expect("declared"), from);
        assert_eq!(
            statement("t", Some(1_465_520_400_000_000)),
            "select * from t where window_start >= timestamp '2016-06-10T01:00:00.000Z' \
             order by window_start desc, name limit 12"
        );
        assert_eq!(
            statement("h", None),
            "select * from h where status <> 'open' \
             order by window_start desc, n desc, name limit 12"
        );
    }

    #[test]
    fn only_rows_of_the_newest_window_are_shown() {
        let catalog = catalog();
        let window = catalog.window("t").expect("declared");
        let row = |start: &str, name: &str| {
            let row = json!({"window_start": start, "window_end": "e", "status": "open", "name": name, "n": 1, "lsn": 7});
            row.as_object().cloned().expect("an object")
        };
        let data = window_data(window, &[row("b", "x"), row("b", "y"), row("a", "x")]);
        assert_eq!(
            data,
            json!({"window_start": "b", "window_end": "e", "status": "open", "columns": ["name", "n"], "rows": [["x", 1], ["y", 1]]})
        );
        let empty = window_data(window, &[]);
        assert_eq!(
            (&empty["window_start"], &empty["rows"]),
            (&Value::Null, &json!([]))
        );
    }

    #[test]
    fn values_are_counted_over_a_bounded_range_and_items_of_lists_one_by_one() {
        let catalog = catalog();
        let stream = &catalog.streams["s"];
        let statement = most_frequent(stream, "tags", &(0..300_000_000));
        for part in [
            "unnest(tags)",
            "event_time >= timestamp '1970-01-01T00:00:00.000Z'",
            "event_time < timestamp '1970-01-01T00:05:00.000Z'",
        ] {
            assert!(statement.contains(part), "{statement}");
        }
        let odd = most_frequent(stream, "a\"b", &(0..1));
        assert!(odd.contains("\"a\"\"b\" as value"), "{odd}");
    }
}
