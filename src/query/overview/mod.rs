//! What the overview of a stream shows. Which panels there are follows from the stream's
//! declaration; each is computed from the source that answers it cheaply:
//!
//! | panel | from |
//! |---|---|
//! | rate | arrivals that the log's writer noted ([`rate`]) |
//! | types, by column, line | the counts view ([`counts`]) |
//! | windows, most frequent values | SQL over bounded ranges ([`tables`]) |
//! | latest | the ring ([`latest`]) |
//!
//! For example, `count = { type = "kind", by = ["site"] }` gives the panels `types`, `by:site` and
//! `line`.

mod columns;
mod counts;
pub(crate) mod latest;
pub(super) mod rate;
mod tables;

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};

use super::sql::SqlEngine;
use super::{AsOf, Handles, QueryError};
use crate::event::{Lsn, Micros};
use crate::ids::ViewId;
use crate::schema::{Catalog, Stream, Window};
use crate::views::ViewError;

/// The time over which the most frequent values are counted, as its panels name it.
const TOP_SPAN: &str = "5m";
/// Panels of most frequent values.
const MAX_TOPS: usize = 4;
/// Characters of a text in a row, and bytes of a nested value as JSON.
const MAX_TEXT_CHARACTERS: usize = 200;
const MAX_NESTED_BYTES: usize = 1_000;

/// The shape of a panel's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PanelKind {
    Rate,
    Counts,
    Line,
    Rows,
    Latest,
    Health,
}

/// A part of the overview.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Panel {
    /// Unique within a stream's overview, such as `by:country`.
    pub id: String,
    kind: PanelKind,
    /// For people.
    title: String,
    /// The column that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<String>,
    /// The window that it shows.
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<String>,
    /// The time that it covers, such as `5m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    span: Option<String>,
}

impl Panel {
    fn new(id: impl Into<String>, kind: PanelKind, title: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            kind,
            title: title.into(),
            column: None,
            window: None,
            span: None,
        }
    }

    fn of_column(self, column: &str) -> Self {
        Self {
            column: Some(column.to_owned()),
            ..self
        }
    }

    /// Whether it is computed by SQL.
    pub fn is_by_sql(&self) -> bool {
        self.kind == PanelKind::Rows || self.span.is_some()
    }
}

/// What a panel shows, and the freshness of that.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PanelData {
    /// None for what is not read from views.
    pub as_of: Option<AsOf>,
    pub data: Value,
}

/// The panels of a stream, in the order in which they are shown. Pure.
fn panels(stream: &Stream, catalog: &Catalog) -> Vec<Panel> {
    let mut panels = vec![Panel::new("rate", PanelKind::Rate, "Records per second")];
    if let Some(count) = &stream.def.count {
        let kind = &count.kind;
        let types = Panel::new("types", PanelKind::Counts, format!("Events by {kind}"));
        panels.push(types.of_column(kind));
        let by = count.by.iter().map(|column| {
            let (id, title) = (format!("by:{column}"), format!("Events by {column}"));
            Panel::new(id, PanelKind::Counts, title).of_column(column)
        });
        panels.extend(by);
        let title = format!("Events over time by {kind}");
        panels.push(Panel::new("line", PanelKind::Line, title).of_column(kind));
    }
    let of_stream = |window: &&Arc<Window>| window.stream == stream.name;
    for window in catalog.windows.iter().filter(of_stream) {
        let name = &window.name;
        let mut panel = Panel::new(format!("window:{name}"), PanelKind::Rows, name.clone());
        panel.window = Some(name.clone());
        panels.push(panel);
    }
    for column in columns::most_frequent(stream, catalog) {
        let (id, title) = (format!("top:{column}"), format!("Most frequent {column}"));
        let mut panel = Panel::new(id, PanelKind::Counts, title).of_column(column);
        panel.span = Some(TOP_SPAN.to_owned());
        panels.push(panel);
    }
    panels.push(Panel::new("latest", PanelKind::Latest, "Latest events"));
    panels.push(Panel::new("health", PanelKind::Health, "Health"));
    panels
}

/// The overview of a stream. A clone is cheap.
#[derive(Clone)]
pub(crate) struct Overview {
    stream: Arc<Stream>,
    panels: Arc<Vec<Panel>>,
}

impl Overview {
    /// Of a stream, the first by default. `NotFound` if it does not exist.
    pub fn new(handles: &Handles, stream: Option<&str>) -> Result<Self, QueryError> {
        let stream = handles.stream(stream)?.clone();
        let panels = Arc::new(panels(&stream, &handles.catalog));
        Ok(Self { stream, panels })
    }

    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// In the order in which they are shown.
    pub fn panels(&self) -> &[Panel] {
        &self.panels
    }

    /// The data of the panel `rate`.
    pub fn rate(&self, handles: &Handles, now: Micros) -> PanelData {
        let history = handles.progress.arrival_history(&self.stream.name, now);
        let per_second = rate::per_second(&history);
        PanelData {
            as_of: None,
            data: json!({"per_second": per_second, "history": history}),
        }
    }

    /// The data of the panels `types` and `by:COLUMN`, with their ids; none for a stream without
    /// counts.
    pub fn totals(
        &self,
        handles: &Handles,
        now: Micros,
    ) -> Result<Vec<(String, PanelData)>, QueryError> {
        let name = &self.stream.name;
        let (Some(def), Some(counts)) = (&self.stream.def.count, handles.counts.get(name)) else {
            return Ok(Vec::new());
        };
        let (lsn, data) = counts::totals(counts, 1 + def.by.len(), handles.floor(name))
            .map_err(|e| failed(&e))?;
        let ids = std::iter::once("types".to_owned());
        let ids = ids.chain(def.by.iter().map(|column| format!("by:{column}")));
        let data = data
            .into_iter()
            .map(|data| self.counted(lsn, data, handles, now));
        Ok(ids.zip(data).collect())
    }

    /// The data of the panel `line` for so many minutes; none for a stream without counts.
    pub fn line(
        &self,
        minutes: u32,
        handles: &Handles,
        now: Micros,
    ) -> Result<Option<PanelData>, QueryError> {
        let name = &self.stream.name;
        let Some(counts) = handles.counts.get(name) else {
            return Ok(None);
        };
        let (lsn, data) =
            counts::line(counts, minutes, handles.floor(name), now).map_err(|e| failed(&e))?;
        Ok(Some(self.counted(lsn, data, handles, now)))
    }

    fn counted(&self, lsn: Lsn, data: Value, handles: &Handles, now: Micros) -> PanelData {
        let name = &self.stream.name;
        let views = [ViewId::counts(name)];
        let as_of = (handles.progress).as_of(lsn, std::slice::from_ref(name), &views, now);
        PanelData {
            as_of: Some(as_of),
            data,
        }
    }

    /// The data of a panel for which [`Panel::is_by_sql`] holds.
    pub async fn query(
        &self,
        panel: &Panel,
        handles: &Handles,
        sql: &SqlEngine,
        now: Micros,
    ) -> Result<PanelData, QueryError> {
        match (&panel.window, &panel.column) {
            (Some(window), _) => tables::window(window, handles, sql, now).await,
            (None, column) => {
                let column = column.as_deref().unwrap_or_default();
                tables::top(&self.stream, column, handles, sql, now).await
            }
        }
    }
}

fn failed(error: &ViewError) -> QueryError {
    QueryError::Failed(error.to_string())
}

/// A value of a row, shortened where it is long.
fn shortened(value: Value) -> Value {
    match value {
        Value::String(text) => short_text(text).into(),
        Value::Array(_) | Value::Object(_) => {
            let text = value.to_string();
            if text.len() <= MAX_NESTED_BYTES {
                value
            } else {
                short_text(text).into()
            }
        }
        other => other,
    }
}

fn short_text(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_TEXT_CHARACTERS) {
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_shortened_and_others_stay() {
        let long = "é".repeat(MAX_TEXT_CHARACTERS + 1);
        let short = shortened(long.into());
        assert_eq!(short, format!("{}…", "é".repeat(MAX_TEXT_CHARACTERS)));
        for same in [
            json!("é".repeat(MAX_TEXT_CHARACTERS)),
            json!(1.5),
            json!(null),
            json!(["a"]),
        ] {
            assert_eq!(shortened(same.clone()), same);
        }
        let nested = shortened(json!(["x".repeat(2 * MAX_NESTED_BYTES)]));
        assert!(
            nested.as_str().is_some_and(|text| text.ends_with('…')),
            "{nested}"
        );
    }
}
