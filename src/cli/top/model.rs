//! What `weir top` shows: the server's answers as numbers and texts, and the rate over time. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::Value;

use super::panels::{Panel, Panels};

/// Rates that are remembered: one for each second.
pub const MAX_RATES: usize = 240;
/// Maximum values of a count, and rows of a window.
const MAX_VALUES: usize = 20;
/// Columns of a window that every window has.
const WINDOW_COLUMNS: [&str; 6] = [
    "window_start",
    "window_end",
    "status",
    "version",
    "lsn",
    "is_duplicate",
];

/// What the server answered at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// Where it answers.
    pub server: String,
    /// Why it does not take records, if so; else what waits without holding back the rest.
    pub readiness: Readiness,
    /// By name.
    pub streams: BTreeMap<String, Stream>,
    /// Sources, views and sinks, in this order.
    pub parts: Vec<Part>,
    pub counts: Counts,
    pub window: Option<Window>,
    /// Names of all windows.
    pub windows: Vec<String>,
    pub memory: Option<u64>,
    pub memory_limit: Option<u64>,
    pub disk: Option<u64>,
    pub log: Option<u64>,
}

/// Whether the server takes records.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Readiness {
    #[default]
    Ready,
    /// It does; these wait.
    Waiting(Vec<String>),
    No(String),
}

/// Totals of a stream since its beginning.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stream {
    pub watermark: Option<String>,
    pub events: u64,
    pub duplicates: u64,
    pub late: u64,
    pub dead_letters: u64,
}

/// A source, a view or a sink.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Part {
    pub kind: &'static str,
    pub name: String,
    pub state: String,
    /// Records that it lacks, where that is known.
    pub lag: Option<u64>,
    pub error: Option<String>,
}

impl Part {
    /// Whether it works as it should.
    pub fn is_well(&self) -> bool {
        self.error.is_none() && matches!(self.state.as_str(), "running" | "ended" | "")
    }
}

/// Events by type.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counts {
    /// The stream and the column.
    pub title: String,
    /// The most frequent first.
    pub values: Vec<(String, u64)>,
    /// Of all values, also of those that are not listed.
    pub total: u64,
    /// Why there are none.
    pub missing: Option<String>,
}

/// Rows of the newest window that has some.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Window {
    pub name: String,
    pub start: String,
    pub end: String,
    /// `open`, or how its rows were stored.
    pub status: String,
    pub columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// A value as it is shown; nothing for null.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The items of a list; none of anything else.
pub fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The streams of `/api/v1/status`.
pub fn streams(status: &Value) -> BTreeMap<String, Stream> {
    let number = |stream: &Value, name: &str| stream[name].as_u64().unwrap_or(0);
    let streams = status["streams"].as_object().into_iter().flatten();
    streams
        .map(|(name, stream)| {
            let totals = Stream {
                watermark: stream["watermark"].as_str().map(str::to_owned),
                events: number(stream, "events"),
                duplicates: number(stream, "duplicates"),
                late: number(stream, "late"),
                dead_letters: number(stream, "dead_letters"),
            };
            (name.clone(), totals)
        })
        .collect()
}

/// Sources, views and sinks of `/api/v1/status`; of each kind those that need attention first.
pub fn parts(status: &Value) -> Vec<Part> {
    let error = |value: &Value| value.as_str().map(str::to_owned);
    let sources = list(&status["sources"]).map(|source| Part {
        kind: "source",
        name: text(&source["source"]),
        state: text(&source["state"]),
        lag: source["lag"].as_u64(),
        error: error(&source["reason"]),
    });
    let views = list(&status["views"]).map(|view| Part {
        kind: "view",
        name: text(&view["view"]),
        state: String::new(),
        lag: view["lag"].as_u64(),
        error: None,
    });
    let sinks = list(&status["sinks"]).map(|sink| Part {
        kind: "sink",
        name: text(&sink["sink"]),
        state: text(&sink["state"]),
        lag: sink["lag"].as_u64(),
        error: error(&sink["last_error"]),
    });
    let mut parts: Vec<Part> = sources.chain(sinks).chain(views).collect();
    let rank = |part: &Part| match part.kind {
        "source" => 0,
        "sink" => 1,
        _ => 2,
    };
    parts.sort_by_key(|part| {
        let lag = std::cmp::Reverse(part.lag.unwrap_or(0));
        (part.is_well(), rank(part), lag, part.name.clone())
    });
    parts
}

/// `/readyz`.
pub fn readiness(answer: &Value) -> Readiness {
    if let Some(reason) = answer["error"]["message"].as_str() {
        return Readiness::No(reason.to_owned());
    }
    let waiting: Vec<String> = list(&answer["waiting"]).map(text).collect();
    if waiting.is_empty() {
        Readiness::Ready
    } else {
        Readiness::Waiting(waiting)
    }
}

/// `/api/v1/count?by=COLUMN`.
pub fn counts(stream: &str, column: &str, answer: &Value) -> Counts {
    let groups = list(&answer["groups"]);
    let mut values: Vec<(String, u64)> = groups
        .map(|group| (text(&group[column]), group["count"].as_u64().unwrap_or(0)))
        .collect();
    values.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    values.truncate(MAX_VALUES);
    Counts {
        title: format!("{stream} by {column}"),
        values,
        total: answer["count"].as_u64().unwrap_or(0),
        missing: None,
    }
}

/// The newest rows of `/api/v1/windows/NAME`, the greatest of the last column of numbers first.
pub fn window(name: &str, answer: &Value) -> Window {
    let rows: Vec<&Value> = list(&answer["rows"]).collect();
    let mut window = Window {
        name: name.to_owned(),
        ..Window::default()
    };
    let Some(newest) = rows.first() else {
        return window;
    };
    let start = &newest["window_start"];
    window.start = text(start);
    window.end = text(&newest["window_end"]);
    window.status = text(&newest["status"]);
    let mut rows: Vec<&Value> = rows
        .iter()
        .filter(|row| row["window_start"] == *start)
        .copied()
        .collect();
    let own = |column: &&String| !WINDOW_COLUMNS.contains(&column.as_str());
    let columns = newest.as_object().into_iter().flat_map(|row| row.keys());
    window.columns = columns.filter(own).cloned().collect();
    let is_number = |column: &&String| rows.iter().any(|row| row[column.as_str()].is_number());
    if let Some(column) = window.columns.iter().rev().find(is_number) {
        let number = |row: &Value| row[column.as_str()].as_f64().unwrap_or(f64::MIN);
        rows.sort_by(|a, b| number(b).total_cmp(&number(a)));
    }
    rows.truncate(MAX_VALUES);
    let cells = |row: &Value| window.columns.iter().map(|c| text(&row[c])).collect();
    window.rows = rows.into_iter().map(cells).collect();
    window
}

/// The lines of Prometheus' text format: names with labels, and values.
pub fn metrics(text: &str) -> impl Iterator<Item = (&str, f64)> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name, value.parse().ok()?))
    })
}

/// Sets what `/metrics` has: windows, memory and disk.
pub fn set_metrics(snapshot: &mut Snapshot, text: &str) {
    let add = |sum: &mut Option<u64>, value: f64| {
        *sum = Some(sum.unwrap_or(0).saturating_add(value.max(0.0) as u64));
    };
    for (name, value) in metrics(text) {
        match name.split('{').next().unwrap_or_default() {
            "weir_memory_bytes" => add(&mut snapshot.memory, value),
            "weir_memory_limit_bytes" => add(&mut snapshot.memory_limit, value),
            "weir_disk_bytes" => add(&mut snapshot.disk, value),
            "weir_log_bytes" => add(&mut snapshot.log, value),
            "weir_window_groups" => {
                let label = name.split_once("window=\"");
                if let Some((window, _)) = label.and_then(|(_, rest)| rest.split_once('"')) {
                    snapshot.windows.push(window.to_owned());
                }
            }
            _ => {}
        }
    }
    snapshot.windows.sort();
}

/// The state of the screen.
#[derive(Debug, Default)]
pub struct Model {
    /// The last answers, and when they came.
    latest: Option<(Snapshot, Duration)>,
    /// Events per second, the newest last; none for a second without an answer.
    rates: VecDeque<Option<u64>>,
    /// Why the server does not answer, and since when.
    gone: Option<(String, Duration)>,
    /// The overview's panels.
    pub panels: Panels,
    /// The panel that was chosen; none for a window.
    chosen: Option<String>,
}

/// What can be shown in the middle of the screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    Window(String),
    Panel(String),
}

impl Model {
    /// Takes what the server answered at `at`, on a clock that never goes back.
    pub fn answered(&mut self, snapshot: Snapshot, at: Duration) {
        let accepted = |snapshot: &Snapshot| -> u64 {
            let streams = snapshot.streams.values();
            streams.map(|s| s.events + s.dead_letters).sum()
        };
        // What came while it did not answer is of an unknown time.
        let was_gone = self.gone.take().is_some();
        let before = self.latest.as_ref().filter(|_| !was_gone);
        let rate = before.and_then(|(before, then)| {
            let seconds = at.saturating_sub(*then).as_secs_f64();
            let new = accepted(&snapshot).saturating_sub(accepted(before));
            (seconds > 0.0).then(|| (new as f64 / seconds).round() as u64)
        });
        if rate.is_some() {
            self.push_rate(rate);
        }
        self.latest = Some((snapshot, at));
    }

    /// Takes that the server did not answer at `at`.
    pub fn missed(&mut self, reason: String, at: Duration) {
        self.push_rate(None);
        let since = self.gone.take().map_or(at, |(_, since)| since);
        self.gone = Some((reason, since));
    }

    fn push_rate(&mut self, rate: Option<u64>) {
        if self.rates.len() == MAX_RATES {
            self.rates.pop_front();
        }
        self.rates.push_back(rate);
    }

    /// The panel in the middle of the screen: the chosen one, or the first without a window.
    pub fn panel(&self) -> Option<&Panel> {
        let chosen = self.chosen.as_ref().and_then(|id| self.panels.get(id));
        let has_window = self
            .snapshot()
            .is_some_and(|snapshot| snapshot.window.is_some());
        chosen.or_else(|| self.panels.list.first().filter(|_| !has_window))
    }

    /// Chooses a panel, or none for a window.
    pub fn choose(&mut self, panel: Option<String>) {
        self.chosen = panel;
    }

    /// What follows what is in the middle of the screen: first all windows, then all panels.
    pub fn next_subject(&self) -> Option<Subject> {
        let snapshot = self.snapshot()?;
        let windows = snapshot.windows.iter().cloned().map(Subject::Window);
        let panels = self.panels.list.iter();
        let panels = panels.map(|panel| Subject::Panel(panel.id.clone()));
        let all: Vec<Subject> = windows.chain(panels).collect();
        let shown = match self.panel() {
            Some(panel) => Some(Subject::Panel(panel.id.clone())),
            None => snapshot
                .window
                .as_ref()
                .map(|window| Subject::Window(window.name.clone())),
        };
        let at = all
            .iter()
            .position(|subject| Some(subject) == shown.as_ref());
        all.get(at.map_or(0, |at| (at + 1) % all.len())).cloned()
    }

    /// The last answers.
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.latest.as_ref().map(|(snapshot, _)| snapshot)
    }

    /// How old they are at `now`.
    pub fn age(&self, now: Duration) -> Duration {
        let at = self.latest.as_ref().map_or(now, |(_, at)| *at);
        now.saturating_sub(at)
    }

    /// Why the server does not answer, and for how long at `now`.
    pub fn gone(&self, now: Duration) -> Option<(&str, Duration)> {
        let (reason, since) = self.gone.as_ref()?;
        Some((reason, now.saturating_sub(*since)))
    }

    /// Events per second, the newest last.
    pub fn rates(&self) -> impl DoubleEndedIterator<Item = Option<u64>> + ExactSizeIterator {
        self.rates.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn snapshot(events: u64) -> Snapshot {
        let status =
            json!({"streams": {"s": {"events": events, "dead_letters": 1, "watermark": null}}});
        Snapshot {
            streams: streams(&status),
            ..Snapshot::default()
        }
    }

    #[test]
    fn rates_are_those_between_answers_and_missing_without_them() {
        let mut model = Model::default();
        let second = Duration::from_secs;
        model.answered(snapshot(100), second(1));
        model.answered(snapshot(150), second(2));
        model.answered(snapshot(350), second(4));
        model.missed("refused".into(), second(5));
        model.missed("refused".into(), second(6));
        assert_eq!(model.gone(second(8)), Some(("refused", second(3))));
        // The time in between is unknown.
        model.answered(snapshot(9_000), second(7));
        model.answered(snapshot(9_010), second(8));
        let rates: Vec<Option<u64>> = model.rates().collect();
        assert_eq!(rates, [Some(50), Some(100), None, None, Some(10)]);
        assert_eq!(model.gone(second(8)), None);
        assert_eq!(model.age(second(10)), second(2));
    }

    #[test]
    fn rates_are_bounded() {
        let mut model = Model::default();
        for n in 0..2 * MAX_RATES as u64 {
            model.answered(snapshot(n), Duration::from_secs(n));
        }
        assert_eq!(model.rates().len(), MAX_RATES);
    }

    #[test]
    fn parts_that_need_attention_come_first() {
        let status = json!({
            "sources": [{"source": "a", "state": "running", "reason": null, "lag": null},
                {"source": "b", "state": "waiting", "reason": "no such file", "lag": null}],
            "views": [{"view": "lake/s", "lsn": 9, "lag": 1}, {"view": "counts/s", "lsn": 3, "lag": 7}],
            "sinks": [{"sink": "k", "state": "retrying", "lag": 5, "last_error": "refused"}],
        });
        let names: Vec<String> = parts(&status).into_iter().map(|p| p.name).collect();
        assert_eq!(names, ["b", "k", "a", "counts/s", "lake/s"]);
    }

    #[test]
    fn the_newest_window_shows_its_greatest_rows() {
        let row = |start: &str, key: &str, n: u64| json!({"window_start": start, "window_end": "e", "status": "open", "lsn": 1, "key": key, "n": n});
        let answer = json!({"rows": [row("2", "a", 1), row("2", "b", 3), row("1", "c", 9)]});
        let window = window("w", &answer);
        assert_eq!(window.columns, ["key", "n"]);
        assert_eq!(window.rows, [["b", "3"], ["a", "1"]]);
        assert_eq!(super::window("w", &json!({"rows": []})).rows.len(), 0);
    }

    #[test]
    fn windows_and_panels_follow_each_other() {
        let mut model = Model::default();
        assert_eq!(model.next_subject(), None);
        let panel = |id: &str| Panel {
            id: id.to_owned(),
            title: id.to_owned(),
            content: super::super::panels::Content::Waiting,
        };
        model.panels.list = vec![panel("by:city"), panel("latest")];
        let with_window = |name: &str| Snapshot {
            windows: vec!["a".into(), "b".into()],
            window: Some(window(name, &json!({"rows": []}))),
            ..Snapshot::default()
        };
        model.answered(with_window("a"), Duration::ZERO);
        let subject = |model: &Model| model.next_subject().expect("a subject");
        assert_eq!(subject(&model), Subject::Window("b".into()));
        model.answered(with_window("b"), Duration::ZERO);
        assert_eq!(subject(&model), Subject::Panel("by:city".into()));
        model.choose(Some("latest".into()));
        assert_eq!(model.panel(), Some(&panel("latest")));
        assert_eq!(subject(&model), Subject::Window("a".into()));
        // Without a window there is a panel in its place.
        model.choose(None);
        assert_eq!(model.panel(), None);
        model.answered(Snapshot::default(), Duration::ZERO);
        assert_eq!(model.panel(), Some(&panel("by:city")));
        assert_eq!(subject(&model), Subject::Panel("latest".into()));
    }

    #[test]
    fn metrics_are_summed_by_name() {
        let text = "# TYPE weir_memory_bytes gauge\nweir_memory_bytes{part=\"ring\"} 10\n\
            weir_memory_bytes{part=\"sql\"} 5\nweir_window_groups{window=\"w\"} 1\n\
            weir_window_groups{window=\"a\"} 1\nweir_log_bytes 7\nbroken\n";
        let mut snapshot = Snapshot::default();
        set_metrics(&mut snapshot, text);
        assert_eq!(snapshot.memory, Some(15));
        assert_eq!(snapshot.log, Some(7));
        assert_eq!(snapshot.disk, None);
        assert_eq!(snapshot.windows, ["a", "w"]);
    }
}
