//! The panels of a stream's overview, as the server sends them: the most frequent values, counts
//! over time and the latest events. Pure. What `weir top` shows elsewhere is left out.

use serde_json::Value;

use super::model::{Counts, list, text};

/// Minutes that counts over time may cover; the first is the default.
pub const MINUTES: [u32; 3] = [5, 30, 180];
/// Maximum bytes of an event that is not complete yet.
const MAX_EVENT_BYTES: usize = 8 << 20;

/// The minutes that are shown after these.
pub fn next_minutes(minutes: u32) -> u32 {
    let at = MINUTES.iter().position(|known| *known == minutes);
    MINUTES[at.map_or(0, |at| (at + 1) % MINUTES.len())]
}

/// All panels, in the server's order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Panels {
    pub list: Vec<Panel>,
    /// Why there are none, or none newer.
    pub missing: Option<String>,
}

/// A part of the overview.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// Unique, such as `by:country`.
    pub id: String,
    pub title: String,
    pub content: Content,
}

/// What a panel shows.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Nothing was sent yet.
    Waiting,
    Counts(Counts),
    /// A line for each value, with counts in equal parts of the time.
    Lines(Vec<(String, Vec<u64>)>),
    Rows {
        columns: Vec<String>,
        rows: Vec<Vec<String>>,
    },
    /// Why there is nothing.
    Missing(String),
}

impl Panels {
    /// Takes an event of the overview: the layout, or one panel as it is now.
    pub fn take(&mut self, event: &Event) {
        let data: Value = serde_json::from_str(&event.data).unwrap_or_default();
        match event.name.as_str() {
            "layout" => *self = Self::laid_out(&data),
            "panel" => {
                let mut panels = self.list.iter_mut();
                if let Some(panel) = panels.find(|panel| data["id"] == *panel.id) {
                    panel.content = content(&panel.title, &data);
                }
            }
            _ => {}
        }
    }

    /// The panels of a layout, without data.
    fn laid_out(layout: &Value) -> Self {
        let minutes = text(&layout["minutes"]);
        let panels = list(&layout["panels"]).filter_map(|panel| {
            let (id, kind) = (text(&panel["id"]), text(&panel["kind"]));
            let is_shown = match kind.as_str() {
                "counts" => id != "types",
                kind => matches!(kind, "line" | "latest"),
            };
            let title = text(&panel["title"]);
            let title = match (panel["span"].as_str(), kind.as_str()) {
                (Some(span), _) => format!("{title}, {span}"),
                (None, "line") => format!("{title}, {minutes}m"),
                (None, _) => title,
            };
            let content = Content::Waiting;
            is_shown.then_some(Panel { id, title, content })
        });
        Self {
            list: panels.collect(),
            missing: None,
        }
    }

    pub fn get(&self, id: &str) -> Option<&Panel> {
        self.list.iter().find(|panel| panel.id == id)
    }
}

/// What an event says of a panel.
fn content(title: &str, event: &Value) -> Content {
    if let Some(reason) = event["error"]["message"].as_str() {
        return Content::Missing(reason.to_owned());
    }
    let data = &event["data"];
    if data["series"].is_array() {
        let numbers = |values: &Value| -> Vec<u64> {
            list(values).map(|n| n.as_u64().unwrap_or(0)).collect()
        };
        let series = list(&data["series"]);
        let series = series.map(|series| (text(&series["value"]), numbers(&series["n"])));
        Content::Lines(series.collect())
    } else if data["values"].is_array() {
        let values = list(&data["values"]);
        let values = values.map(|v| (text(&v["value"]), v["n"].as_u64().unwrap_or(0)));
        Content::Counts(Counts {
            title: title.to_owned(),
            values: values.collect(),
            total: data["total"].as_u64().unwrap_or(0),
            missing: None,
        })
    } else {
        let columns: Vec<String> = list(&data["columns"]).map(text).collect();
        let cells = |row: &Value| columns.iter().map(|column| text(&row[column])).collect();
        let rows = list(&data["rows"]).map(cells).collect();
        Content::Rows { columns, rows }
    }
}

/// A server-sent event.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Event {
    pub name: String,
    pub data: String,
}

/// Splits what a server sends into its events.
#[derive(Debug, Default)]
pub struct EventReader {
    /// The beginning of the next event.
    pending: Vec<u8>,
}

impl EventReader {
    /// The events that these bytes complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Event> {
        self.pending.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.pending.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = self.pending.drain(..end + 2).collect();
            events.extend(event_of(&String::from_utf8_lossy(&event)));
        }
        if self.pending.len() > MAX_EVENT_BYTES {
            self.pending.clear();
        }
        events
    }
}

/// The event of these lines; none of a comment.
fn event_of(lines: &str) -> Option<Event> {
    let mut event = Event::default();
    for line in lines.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => event.name = value.to_owned(),
            "data" => event.data += value,
            _ => {}
        }
    }
    (!event.data.is_empty()).then_some(event)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(name: &str, data: &Value) -> Event {
        Event {
            name: name.to_owned(),
            data: data.to_string(),
        }
    }

    fn laid_out() -> Panels {
        let mut panels = Panels::default();
        let layout = json!({"minutes": 30, "panels": [
            {"id": "rate", "kind": "rate", "title": "Records per second"},
            {"id": "types", "kind": "counts", "title": "Events by kind"},
            {"id": "by:city", "kind": "counts", "title": "Events by city"},
            {"id": "line", "kind": "line", "title": "Events over time by kind"},
            {"id": "window:w", "kind": "rows", "title": "w"},
            {"id": "top:name", "kind": "counts", "title": "Most frequent name", "span": "5m"},
            {"id": "latest", "kind": "latest", "title": "Latest events"},
            {"id": "health", "kind": "health", "title": "Health"},
        ]});
        panels.take(&event("layout", &layout));
        panels
    }

    #[test]
    fn a_layout_names_the_panels_that_are_not_shown_elsewhere() {
        let panels = laid_out();
        let titles: Vec<&str> = panels.list.iter().map(|panel| &*panel.title).collect();
        assert_eq!(
            titles,
            [
                "Events by city",
                "Events over time by kind, 30m",
                "Most frequent name, 5m",
                "Latest events"
            ]
        );
        assert_eq!(panels.list[0].content, Content::Waiting);
    }

    #[test]
    fn an_event_changes_one_panel() {
        let mut panels = laid_out();
        for (data, expected) in [
            (
                json!({"id": "by:city", "data": {"total": 3, "values": [{"value": "Bern", "n": 2}, {"value": null, "n": 1}]}}),
                Content::Counts(Counts {
                    title: "Events by city".into(),
                    values: vec![("Bern".into(), 2), (String::new(), 1)],
                    total: 3,
                    missing: None,
                }),
            ),
            (
                json!({"id": "line", "data": {"bucket_s": 30, "series": [{"value": "sale", "n": [0, 7]}]}}),
                Content::Lines(vec![("sale".into(), vec![0, 7])]),
            ),
            (
                json!({"id": "latest", "data": {"columns": ["a", "b"], "rows": [{"lsn": 9, "b": 1, "a": "x"}]}}),
                Content::Rows {
                    columns: vec!["a".into(), "b".into()],
                    rows: vec![vec!["x".into(), "1".into()]],
                },
            ),
            (
                json!({"id": "top:name", "error": {"code": "limit", "message": "too much"}}),
                Content::Missing("too much".into()),
            ),
        ] {
            panels.take(&event("panel", &data));
            let id = data["id"].as_str().expect("an id");
            assert_eq!(panels.get(id).expect("a panel").content, expected);
        }
        let before = panels.clone();
        panels.take(&event("panel", &json!({"id": "rate", "data": {}})));
        panels.take(&event("other", &json!({"id": "line", "data": {}})));
        assert_eq!(panels, before);
    }

    #[test]
    fn events_are_read_from_any_pieces() {
        let sent = b"event: layout\ndata: {\"a\":1}\n\n: a comment\n\nevent: panel\ndata: 2\n\nev";
        let expected = [event("layout", &json!({"a": 1})), event("panel", &json!(2))];
        for size in [1, 7, sent.len()] {
            let mut reader = EventReader::default();
            let events = sent.chunks(size).flat_map(|bytes| reader.push(bytes));
            assert_eq!(events.collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn minutes_go_round() {
        assert_eq!([5, 30, 180].map(next_minutes), [30, 180, 5]);
    }
}
