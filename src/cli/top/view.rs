//! The screen of `weir top`. Pure: a frame is drawn from the model and the time.

use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Row, Sparkline, Table};

use super::model::{Counts, Model, Part, Readiness, Snapshot, Window};
use super::panels::{Content, Panel};
use crate::cli::output::printable;

/// Below this size nothing but a note is shown.
const MIN_WIDTH: u16 = 40;
const MIN_HEIGHT: u16 = 12;
/// Seconds that the mean is taken over.
const MEAN_SECONDS: usize = 60;
/// Minimum width of a column of the latest events: those that do not fit are left out.
const MIN_COLUMN_WIDTH: u16 = 12;
/// The bottom line.
const KEYS: &str = "q quits   Tab shows the next window or panel   m: 5, 30 or 180 minutes";

/// Styles; all plain where colours are unwanted.
#[derive(Debug, Clone, Copy)]
pub struct Theme {
    has_color: bool,
}

impl Theme {
    /// `NO_COLOR` asks for none.
    pub fn new(has_color: bool) -> Self {
        Self { has_color }
    }

    fn color(self, color: Color) -> Style {
        if self.has_color {
            Style::new().fg(color)
        } else {
            Style::new()
        }
    }

    fn good(self) -> Style {
        self.color(Color::Green)
    }

    fn bad(self) -> Style {
        self.color(Color::Red).add_modifier(Modifier::BOLD)
    }

    fn warning(self) -> Style {
        self.color(Color::Yellow)
    }

    fn head(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }
}

/// Draws everything; `now` is on the model's clock.
pub fn draw(frame: &mut Frame<'_>, model: &Model, now: Duration, theme: Theme) {
    let area = frame.area();
    if area.width < MIN_WIDTH || area.height < MIN_HEIGHT {
        let note = format!("at least {MIN_WIDTH}x{MIN_HEIGHT}; q quits");
        frame.render_widget(Paragraph::new(note), area);
        return;
    }
    let [title, note, totals, rates, window, parts, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(2),
        Constraint::Length(6),
        Constraint::Fill(2),
        Constraint::Fill(3),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(KEYS), keys);
    let Some(snapshot) = model.snapshot() else {
        frame.render_widget(Paragraph::new("weir top"), title);
        draw_note(frame, note, None, model, now, theme);
        return;
    };
    draw_title(frame, title, snapshot, model, now);
    draw_note(frame, note, Some(snapshot), model, now, theme);
    frame.render_widget(Paragraph::new(totals_text(snapshot)), totals);
    let [left, right] =
        Layout::horizontal([Constraint::Percentage(60), Constraint::Percentage(40)]).areas(rates);
    draw_rates(frame, left, model, theme);
    draw_counts(frame, right, &snapshot.counts);
    match model.panel() {
        Some(panel) => draw_panel(frame, window, panel, model.panels.missing.as_deref(), theme),
        None => draw_window(frame, window, snapshot.window.as_ref(), theme),
    }
    draw_parts(frame, parts, &snapshot.parts, theme);
}

fn draw_title(
    frame: &mut Frame<'_>,
    area: Rect,
    snapshot: &Snapshot,
    model: &Model,
    now: Duration,
) {
    let age = format!("{} s ago", model.age(now).as_secs());
    let [left, right] =
        Layout::horizontal([Constraint::Fill(1), Constraint::Length(age.len() as u16)]).areas(area);
    let title = format!("weir top  {}", snapshot.server);
    frame.render_widget(Paragraph::new(title), left);
    frame.render_widget(Paragraph::new(age), right);
}

/// Whether the server answers and takes records; before the first answer neither is known.
fn draw_note(
    frame: &mut Frame<'_>,
    area: Rect,
    snapshot: Option<&Snapshot>,
    model: &Model,
    now: Duration,
    theme: Theme,
) {
    let readiness = snapshot.map(|snapshot| &snapshot.readiness);
    let (text, style) = match (model.gone(now), readiness) {
        (Some((reason, time)), _) => {
            let text = format!("no answer for {} s: {reason}", time.as_secs());
            (text, theme.bad())
        }
        (None, None) => ("connecting…".into(), Style::new()),
        (None, Some(Readiness::No(reason))) => (format!("not ready: {reason}"), theme.bad()),
        (None, Some(Readiness::Waiting(parts))) => (parts.join("; "), theme.warning()),
        (None, Some(Readiness::Ready)) => ("ready".into(), theme.good()),
    };
    frame.render_widget(Paragraph::new(printable(&text)).style(style), area);
}

fn totals_text(snapshot: &Snapshot) -> Vec<Line<'static>> {
    let streams = || snapshot.streams.values();
    let watermark = streams().filter_map(|s| s.watermark.as_deref()).min();
    let first = format!(
        "events {}  duplicates {}  late {}  dead letters {}",
        grouped(streams().map(|s| s.events).sum()),
        grouped(streams().map(|s| s.duplicates).sum()),
        grouped(streams().map(|s| s.late).sum()),
        grouped(streams().map(|s| s.dead_letters).sum()),
    );
    let limit = snapshot
        .memory_limit
        .map_or(String::new(), |limit| format!(" of {}", bytes(limit)));
    let size = |size: Option<u64>| size.map_or("-".into(), bytes);
    let disk = match snapshot.disk {
        Some(disk) => format!("disk {}", bytes(disk)),
        None => format!("log {}", size(snapshot.log)),
    };
    let second = format!(
        "watermark {}  memory {}{limit}  {disk}",
        watermark.unwrap_or("-"),
        size(snapshot.memory)
    );
    vec![Line::from(first), Line::from(second)]
}

fn draw_rates(frame: &mut Frame<'_>, area: Rect, model: &Model, theme: Theme) {
    let block = Block::bordered().title("events per second");
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let [text, bars] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(inner);
    let last = model.rates().next_back().flatten();
    let recent: Vec<u64> = model.rates().rev().take(MEAN_SECONDS).flatten().collect();
    let mean = recent.iter().sum::<u64>() / (recent.len() as u64).max(1);
    let max = model.rates().flatten().max().unwrap_or(0);
    let line = Line::from(vec![
        Span::styled(last.map_or("-".into(), grouped), theme.head()),
        Span::from(format!(
            " now  {} mean of 1 min  {} max",
            grouped(mean),
            grouped(max)
        )),
    ]);
    frame.render_widget(Paragraph::new(line), text);
    let skipped = model.rates().len().saturating_sub(usize::from(bars.width));
    let data: Vec<Option<u64>> = model.rates().skip(skipped).collect();
    let sparkline = Sparkline::default().data(data).style(theme.good());
    frame.render_widget(sparkline, bars);
}

fn draw_counts(frame: &mut Frame<'_>, area: Rect, counts: &Counts) {
    let block = Block::bordered().title(printable(&counts.title));
    let inner = block.inner(area);
    frame.render_widget(block, area);
    if let Some(reason) = &counts.missing {
        frame.render_widget(Paragraph::new(printable(reason)), inner);
        return;
    }
    let shown = counts.values.iter().take(usize::from(inner.height));
    let rows = shown.map(|(value, count)| {
        let percent = 100.0 * *count as f64 / counts.total.max(1) as f64;
        let name = if value.is_empty() {
            "(none)"
        } else {
            value.as_str()
        };
        Row::new([printable(name), grouped(*count), format!("{percent:.0} %")])
    });
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(13),
        Constraint::Length(5),
    ];
    frame.render_widget(Table::new(rows, widths), inner);
}

fn draw_window(frame: &mut Frame<'_>, area: Rect, window: Option<&Window>, theme: Theme) {
    let Some(window) = window else {
        let text = Paragraph::new("no window to show");
        frame.render_widget(text.block(Block::bordered().title("window")), area);
        return;
    };
    let title = format!(
        "{}  {} to {}  {}",
        window.name, window.start, window.end, window.status
    );
    let block = Block::bordered().title(printable(title.trim_end()));
    if window.rows.is_empty() {
        let text =
            Paragraph::new("no rows yet").block(Block::bordered().title(window.name.clone()));
        frame.render_widget(text, area);
        return;
    }
    let cells =
        |row: &Vec<String>| Row::new(row.iter().map(|cell| printable(cell)).collect::<Vec<_>>());
    let head = cells(&window.columns).style(theme.head());
    let widths = vec![Constraint::Fill(1); window.columns.len()];
    let table = Table::new(window.rows.iter().map(cells), widths).header(head);
    frame.render_widget(table.block(block), area);
}

/// A panel of the overview; `missing` is why it may be old.
fn draw_panel(
    frame: &mut Frame<'_>,
    area: Rect,
    panel: &Panel,
    missing: Option<&str>,
    theme: Theme,
) {
    let title = match missing {
        Some(reason) => format!("{}: {reason}", panel.title),
        None => panel.title.clone(),
    };
    let block = Block::bordered().title(printable(&title));
    let note = |text: &str| Paragraph::new(printable(text)).block(block.clone());
    match &panel.content {
        Content::Waiting => frame.render_widget(note("nothing yet"), area),
        Content::Missing(reason) => frame.render_widget(note(reason), area),
        Content::Counts(counts) => {
            let counts = Counts {
                title,
                ..counts.clone()
            };
            draw_counts(frame, area, &counts);
        }
        Content::Lines(lines) => {
            let inner = block.inner(area);
            frame.render_widget(block, area);
            draw_lines(frame, inner, lines, theme);
        }
        Content::Rows { columns, rows } => {
            let fitting = usize::from(area.width / MIN_COLUMN_WIDTH).max(1);
            let cells = |row: &[String]| {
                let cells = row.iter().take(fitting).map(|cell| printable(cell));
                Row::new(cells.collect::<Vec<_>>())
            };
            let head = cells(columns).style(theme.head());
            let widths = vec![Constraint::Fill(1); columns.len().min(fitting)];
            let table = Table::new(rows.iter().map(|row| cells(row)), widths).header(head);
            frame.render_widget(table.block(block), area);
        }
    }
}

/// A line for each value: its name, its counts over time, the newest at the right, and their sum.
fn draw_lines(frame: &mut Frame<'_>, area: Rect, lines: &[(String, Vec<u64>)], theme: Theme) {
    for (line, (value, counts)) in area.rows().zip(lines) {
        let [name, bars, sum] = Layout::horizontal([
            Constraint::Length(16),
            Constraint::Fill(1),
            Constraint::Length(14),
        ])
        .areas(line);
        let text = if value.is_empty() {
            "(none)"
        } else {
            value.as_str()
        };
        frame.render_widget(Paragraph::new(printable(text)), name);
        let skipped = counts.len().saturating_sub(usize::from(bars.width));
        let data: Vec<Option<u64>> = counts.iter().skip(skipped).copied().map(Some).collect();
        frame.render_widget(Sparkline::default().data(data).style(theme.good()), bars);
        let total = grouped(counts.iter().sum());
        frame.render_widget(Paragraph::new(total).right_aligned(), sum);
    }
}

fn draw_parts(frame: &mut Frame<'_>, area: Rect, parts: &[Part], theme: Theme) {
    let room = usize::from(area.height.saturating_sub(3));
    let hidden = parts.len().saturating_sub(room);
    let title = if hidden == 0 {
        "sources, sinks, views".to_owned()
    } else {
        format!("sources, sinks, views: {hidden} more")
    };
    let rows = parts.iter().take(room).map(|part| {
        let style = match (part.is_well(), part.state.as_str()) {
            (true, _) => Style::new(),
            (false, "halted") => theme.bad(),
            (false, _) => theme.warning(),
        };
        let lag = part.lag.map_or(String::new(), grouped);
        let error = part.error.as_deref().unwrap_or_default();
        let cells = [
            part.kind.to_owned(),
            printable(&part.name),
            part.state.clone(),
            lag,
            printable(error),
        ];
        Row::new(cells).style(style)
    });
    let widths = [
        Constraint::Length(6),
        Constraint::Fill(2),
        Constraint::Length(8),
        Constraint::Length(11),
        Constraint::Fill(3),
    ];
    let head = Row::new(["", "name", "state", "lag", "error"]).style(theme.head());
    let table = Table::new(rows, widths).header(head);
    frame.render_widget(table.block(Block::bordered().title(title)), area);
}

/// With a comma between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// In the unit that leaves one to three digits before the point.
fn bytes(number: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (number as f64, 0);
    while value >= 1_000.0 && unit + 1 < units.len() {
        value /= 1_024.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && value < 100.0);
    format!("{value:.digits$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::model::Stream;
    use super::*;

    fn screen(model: &Model, now: u64, (width, height): (u16, u16)) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a screen");
        let drawn =
            terminal.draw(|frame| draw(frame, model, Duration::from_secs(now), Theme::new(true)));
        drawn.expect("drawn");
        terminal.backend().to_string()
    }

    fn part(kind: &'static str, name: &str, state: &str, lag: u64, error: Option<&str>) -> Part {
        Part {
            kind,
            name: name.into(),
            state: state.into(),
            lag: Some(lag),
            error: error.map(str::to_owned),
        }
    }

    fn snapshot(events: u64) -> Snapshot {
        let stream = Stream {
            watermark: Some("2026-11-30T16:00:00Z".into()),
            events,
            duplicates: 12,
            late: 3,
            dead_letters: 4_567,
        };
        Snapshot {
            server: "http://127.0.0.1:8080".into(),
            streams: BTreeMap::from([("orders".into(), stream)]),
            parts: vec![
                part(
                    "sink",
                    "search",
                    "retrying",
                    1_204,
                    Some("connection refused"),
                ),
                part("source", "in", "running", 0, None),
                part("view", "lake/orders", "", 12, None),
                part("view", "counts/orders", "", 0, None),
                part("view", "search/orders", "", 0, None),
                part("view", "lake/raw", "", 0, None),
            ],
            counts: Counts {
                title: "orders by kind".into(),
                values: vec![
                    ("sale".into(), 900_000),
                    ("re\u{1b}turn".into(), 1_234),
                    (String::new(), 1),
                ],
                total: 901_235,
                missing: None,
            },
            window: Some(Window {
                name: "by_city".into(),
                start: "2026-11-30T15:59:00Z".into(),
                end: "2026-11-30T16:00:00Z".into(),
                status: "open".into(),
                columns: vec!["city".into(), "n".into()],
                rows: vec![
                    vec!["東京".into(), "31".into()],
                    vec!["Zürich".into(), "7".into()],
                ],
            }),
            memory: Some(123 << 20),
            memory_limit: Some(1 << 30),
            log: Some(1_700_000),
            ..Snapshot::default()
        }
    }

    fn running() -> Model {
        let mut model = Model::default();
        for n in 0..60_u64 {
            let events = 901_000 + n * n;
            model.answered(snapshot(events), Duration::from_secs(n));
        }
        model
    }

    #[test]
    fn everything_fits_a_small_terminal() {
        insta::assert_snapshot!(screen(&running(), 60, (80, 24)));
    }

    #[test]
    fn a_wide_terminal_shows_more() {
        insta::assert_snapshot!(screen(&running(), 60, (120, 32)));
    }

    #[test]
    fn a_server_that_is_gone_is_shown_beside_its_last_answers() {
        let mut model = running();
        model.missed("connection refused".into(), Duration::from_secs(61));
        model.missed("connection refused".into(), Duration::from_secs(62));
        insta::assert_snapshot!(screen(&model, 64, (80, 24)));
    }

    #[test]
    fn an_empty_server_is_shown_as_such() {
        let mut model = Model::default();
        let counts = Counts {
            title: "orders".into(),
            missing: Some("the stream declares no `count`".into()),
            ..Counts::default()
        };
        let snapshot = Snapshot {
            counts,
            readiness: Readiness::No("views are behind".into()),
            ..Snapshot::default()
        };
        model.answered(snapshot, Duration::ZERO);
        insta::assert_snapshot!(screen(&model, 0, (80, 24)));
    }

    /// The lines of a screen, without the spaces at their ends.
    fn lines(screen: &str) -> Vec<&str> {
        let lines = screen.lines().filter_map(|line| line.split('"').nth(1));
        lines.map(str::trim_end).collect()
    }

    #[test]
    fn before_the_first_answer_nothing_is_claimed() {
        let mut model = Model::default();
        let screen_of = |model: &Model| screen(model, 3, (80, 24));
        let shown = screen_of(&model);
        let shown: Vec<&str> = lines(&shown)
            .into_iter()
            .filter(|l| !l.is_empty())
            .collect();
        assert_eq!(shown, ["weir top", "connecting…", KEYS]);
        model.missed("refused".into(), Duration::from_secs(1));
        let shown = screen_of(&model);
        assert_eq!(lines(&shown)[1], "no answer for 2 s: refused");
    }

    #[test]
    fn a_chosen_panel_is_in_the_middle() {
        let mut model = running();
        let counts = Counts {
            values: vec![("Bern".into(), 3)],
            total: 4,
            ..Counts::default()
        };
        let latest = Content::Rows {
            columns: vec!["at".into(), "city".into()],
            rows: vec![vec!["12:00".into(), "B\u{1b}rn".into()]],
        };
        for (content, expected) in [
            (Content::Waiting, &["nothing yet"][..]),
            (Content::Missing("too much".into()), &["too much"]),
            (Content::Counts(counts), &["Bern", "75 %"]),
            (
                Content::Lines(vec![(String::new(), vec![0, 1, 4_000])]),
                &["(none)", "█", "4,001"],
            ),
            (latest, &["city", "B\u{fffd}rn"]),
        ] {
            model.panels.list = vec![Panel {
                id: "p".into(),
                title: "Panel of a test".into(),
                content,
            }];
            model.choose(Some("p".into()));
            for size in [(80, 24), (41, 13)] {
                screen(&model, 60, size);
            }
            let shown = screen(&model, 60, (80, 24));
            let middle = lines(&shown)[10..15].join("\n");
            assert!(middle.contains("Panel of a test"), "{middle}");
            for text in expected {
                assert!(middle.contains(text), "{text}: {middle}");
            }
        }
    }

    #[test]
    fn no_size_is_too_small() {
        let model = running();
        for (width, height) in [(1, 1), (10, 3), (40, 12), (41, 13), (300, 5)] {
            screen(&model, 60, (width, height));
        }
    }

    #[test]
    fn numbers_are_written_for_people() {
        for (number, expected) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), expected);
        }
        for (number, expected) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_536, "1.5 KiB"),
            (5 << 30, "5.0 GiB"),
        ] {
            assert_eq!(bytes(number), expected);
        }
    }
}
