//! Guesses as the text of a configuration, with comments.

use super::columns::{self, Column, Field, Layout, Type};
use super::event_time::{self, EventTime, Order};
use super::naming;
use super::profile::Profile;
use super::roles::{self, Coordinates, Roles};
use crate::event::{MICROS_PER_SECOND, Micros};
use crate::schema::names;

/// Characters of a line of `select`.
const LINE_CHARS: usize = 110;
/// Keys that are not read and that a comment names.
const MAX_UNREAD: usize = 12;
/// Windows of the sample that the proposed size aims at, at most.
const MAX_WINDOWS: i64 = 60;
/// Sizes of windows in seconds, with their names.
const SIZES: [(i64, &str, &str); 8] = [
    (10, "10 seconds", "10s"),
    (60, "1 minute", "minute"),
    (300, "5 minutes", "5m"),
    (900, "15 minutes", "15m"),
    (3_600, "1 hour", "hour"),
    (21_600, "6 hours", "6h"),
    (86_400, "1 day", "day"),
    (604_800, "7 days", "week"),
];

/// What the source reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceKind {
    /// A file, or a folder.
    File {
        path: String,
        /// One file that is complete, which can be sorted.
        is_single: bool,
        recursive: bool,
        /// Globs of the files of a folder; all if there is none.
        include: Vec<String>,
    },
    HttpPoll(String),
    HttpStream(String),
    WebSocket(String),
}

/// The source of a proposal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceText {
    pub kind: SourceKind,
    /// The member that holds the records, if they are inside an object.
    pub unwrap: Option<String>,
    /// The members beside it, which are not read.
    pub dropped: Vec<String>,
    /// Further comments, one line each.
    pub notes: Vec<String>,
}

/// A declaration inferred from a profile.
pub struct Proposal<'a> {
    profile: &'a Profile,
    stream: String,
    layout: Layout<'a>,
    time: EventTime,
    roles: Roles,
    /// The columns that hold latitude and longitude.
    geo: Option<(String, String)>,
    size: Option<(i64, &'static str, &'static str)>,
}

impl<'a> Proposal<'a> {
    /// Infers the declaration of a stream of this name from the profile of these records; `now` is
    /// the time at which the sample was taken.
    pub fn new(profile: &'a Profile, records: &[&[u8]], stream: &str, now: Micros) -> Self {
        let layout = columns::layout(profile);
        let time = event_time::choose(&layout, profile.records, now);
        let roles = roles::assign(&layout, profile.records, time.column, records);
        let name = |at: usize| layout.columns[at].name.clone();
        let taken: Vec<String> = layout.columns.iter().map(|c| c.name.clone()).collect();
        let free = |wanted: &str| naming::free_name(wanted, &taken);
        let geo = roles.coordinates.as_ref().map(|guess| match guess.value {
            Coordinates::Columns { lat, lon } => (name(lat), name(lon)),
            Coordinates::List(_) => (free("lat"), free("lon")),
        });
        let size = time.range.map(|_| {
            let span = time.span / MICROS_PER_SECOND;
            let fits = SIZES
                .iter()
                .find(|(seconds, ..)| span / seconds < MAX_WINDOWS);
            fits.copied().unwrap_or(SIZES[SIZES.len() - 1])
        });
        Self {
            profile,
            stream: stream.to_owned(),
            layout,
            time,
            roles,
            geo,
            size,
        }
    }

    /// The stream's name.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// Whether a time was found in the records.
    pub fn has_event_time(&self) -> bool {
        self.time.column.is_some()
    }

    /// The column of types that is counted.
    pub fn count_type(&self) -> Option<&str> {
        let count = self.roles.count.as_ref()?;
        Some(&self.layout.columns[count.value].name)
    }

    /// A word that texts of the sample have.
    pub fn search_word(&self) -> Option<String> {
        let texts = self.roles.texts.as_ref()?;
        roles::search_word(&self.layout.columns, &texts.value)
    }

    /// The columns of latitude and longitude, where venues are declared.
    pub fn venues(&self) -> Option<(&str, &str)> {
        self.places()?;
        self.geo
            .as_ref()
            .map(|(lat, lon)| (lat.as_str(), lon.as_str()))
    }

    /// The name of the window; none without times.
    pub fn window(&self) -> Option<String> {
        let (_, _, suffix) = self.size?;
        Some(format!("{}_per_{suffix}", self.stream))
    }

    /// The whole configuration. `origin` is what the records were read from, for a comment; `data` is
    /// the data folder.
    pub fn to_toml(&self, origin: &str, data: &str, source: &SourceText) -> String {
        let mut out = format!(
            "# Proposed by `weir try` from {} records of {}.\n# Each comment says why, and what else was possible. `weir check` checks changes, `weir run` starts.\ndata = {}\n\n",
            self.profile.records,
            naming::printable(origin),
            text(data)
        );
        out += &self.source(source);
        out += &format!("\n[streams.{}]\n", self.stream);
        out += &self.schema();
        out += &self.select();
        out += &self.keys(source);
        out += &self.count();
        out += &self.search();
        out += &self.watermark(source);
        out += &self.window_text();
        out
    }

    fn source(&self, source: &SourceText) -> String {
        let mut out: String = source
            .notes
            .iter()
            .map(|note| format!("# {}\n", naming::printable_line(note)))
            .collect();
        let (kind, key, value) = match &source.kind {
            SourceKind::File { path, .. } => ("file", "path", path),
            SourceKind::HttpPoll(url) => ("http_poll", "url", url),
            SourceKind::HttpStream(url) => ("http_stream", "url", url),
            SourceKind::WebSocket(url) => ("websocket", "url", url),
        };
        out += &format!(
            "[[sources]]\nname = \"{}\"\ntype = \"{kind}\"\n{key} = {}\nstream = \"{}\"\n",
            self.source_name(),
            text(value),
            self.stream
        );
        if let SourceKind::File {
            recursive, include, ..
        } = &source.kind
        {
            if *recursive {
                out += "# Its subfolders have records.\nrecursive = true\n";
            }
            if !include.is_empty() {
                out += &format!(
                    "# Other files of the folder are not records.\ninclude = {}\n",
                    list(include)
                );
            }
        }
        if let Some(member) = &source.unwrap {
            let dropped = shortened(source.dropped.iter().map(|name| naming::printable(name)));
            let dropped = dropped.map(|names| format!("; not read beside it: {names}"));
            out += &format!(
                "# Each element of this array is a record{}.\nunwrap = {}\n",
                dropped.unwrap_or_default(),
                text(member)
            );
        }
        if self.is_sorted(source) {
            out += "# The file is not in the order of its times. Without this key it is followed as it grows.\norder = \"event_time\"\n";
        }
        out
    }

    /// `http` is the server's own source.
    fn source_name(&self) -> String {
        match self.stream.as_str() {
            "http" => "http_in".to_owned(),
            stream => stream.to_owned(),
        }
    }

    fn is_sorted(&self, source: &SourceText) -> bool {
        let is_single = matches!(
            source.kind,
            SourceKind::File {
                is_single: true,
                ..
            }
        );
        is_single && matches!(self.time.order, Order::Unsorted(_))
    }

    fn schema(&self) -> String {
        let mut out = String::new();
        let unread = self.layout.unread.iter();
        if let Some(unread) = shortened(unread.map(|(key, why)| format!("{key} ({why})"))) {
            out += &format!("# Not read: {unread}.\n");
        }
        out +=
            "# What is read of the JSON; other keys are counted in weir.drift.\nschema = \"\"\"\n";
        let fields = &self.layout.fields;
        if fields.is_empty() {
            out += "value json -- no record has a value\n";
        }
        for (at, field) in fields.iter().enumerate() {
            let comma = if at + 1 < fields.len() { "," } else { "" };
            let not_null = if self.is_required(field) {
                " not null"
            } else {
                ""
            };
            let line = format!(
                "{} {}{not_null}{comma}",
                names::quoted(field.key),
                field.ty.sql()
            );
            out += &format!(
                "{} -- {}\n",
                multi_line(&line),
                remark(field, self.profile.records)
            );
        }
        out + "\"\"\"\n"
    }

    /// Whether a record without the key is rejected: it has the event time.
    fn is_required(&self, field: &Field<'_>) -> bool {
        let column = self.time.column.map(|at| &self.layout.columns[at]);
        column
            .is_some_and(|c| c.path == [field.key] && field.node.present() == self.profile.records)
    }

    fn select(&self) -> String {
        let mut items = vec![format!("{} as event_time", self.time.expression)];
        for (at, column) in self.layout.columns.iter().enumerate() {
            if Some(at) == self.time.column {
                continue;
            }
            let (expression, name) = (column.stored(), names::quoted(&column.name));
            items.push(if expression == name {
                name
            } else {
                format!("{expression} as {name}")
            });
        }
        if let Some(Coordinates::List(at)) = self.roles.coordinates.as_ref().map(|g| g.value)
            && let Some((lat, lon)) = &self.geo
        {
            let list = self.layout.columns[at].expression();
            items.push(format!("{list}[2] as {}", names::quoted(lat)));
            items.push(format!("{list}[1] as {}", names::quoted(lon)));
        }
        let mut lines = vec!["select ".to_owned()];
        for (at, item) in items.iter().enumerate() {
            let comma = if at + 1 < items.len() { ", " } else { "" };
            match lines.last_mut() {
                Some(line) if line.chars().count() + item.chars().count() < LINE_CHARS => {
                    line.push_str(item);
                    line.push_str(comma);
                }
                _ => lines.push(format!("  {item}{comma}")),
            }
        }
        let lines: Vec<String> = lines
            .iter()
            .map(|line| multi_line(line.trim_end()))
            .collect();
        let has_numbers = self.layout.columns.iter().any(|c| c.number().is_some());
        let numbers = if has_numbers {
            "# try_cast: texts that are numbers, under a name such as bytes or seconds; others become null.\n"
        } else {
            ""
        };
        format!(
            "{numbers}# event_time: {}.\nselect = \"\"\"\n{}\nfrom {}\n\"\"\"\n",
            self.time.reason,
            lines.join("\n"),
            self.stream
        )
    }

    fn keys(&self, source: &SourceText) -> String {
        let columns = &self.layout.columns;
        let is_polled = matches!(source.kind, SourceKind::HttpPoll(_));
        let key = match (&self.roles.key, self.roles.shared_key) {
            (Some(key), _) => key,
            (None, Some(at)) => {
                let shown = columns[at].shown();
                return format!(
                    "# key: `{shown}` does not identify records: different ones share it and their time.\n"
                );
            }
            (None, None) => {
                return "# key: no identifier is in every record with a value of its own.\n"
                    .to_owned();
            }
        };
        let shown = columns[key.value].shown();
        if let Some(why) = self.lack_of_order(key.value).filter(|_| is_polled) {
            return format!(
                "# key: `{shown}` would lose records, since {why}; a poll recognizes them by their bytes.\n"
            );
        }
        let mut out = format!("# {}", key.reason);
        if is_polled && self.roles.version.is_none() {
            out += "; a poll ignores a changed record that keeps it and the event time";
        }
        out += &format!(".\nkey = {}\n", text(&columns[key.value].name));
        if let Some(version) = &self.roles.version {
            let name = text(&columns[version.value].name);
            out += &format!("# {}.\nversion = {name}\n", version.reason);
        }
        out
    }

    /// Why a poll cannot tell a changed record from the one before by this key.
    fn lack_of_order(&self, key: usize) -> Option<&'static str> {
        let repeats = self.layout.columns[key].node.values.repeats > 0;
        if self.time.column.is_none() {
            Some("a changed record has no time that says so")
        } else if repeats && self.roles.version.is_none() {
            Some("it repeats, and nothing says which record is newer")
        } else {
            None
        }
    }

    fn count(&self) -> String {
        let mut out = String::new();
        match &self.roles.count {
            Some(count) => {
                let (mut by, mut why) = (String::new(), String::new());
                if let Some(groups) = &self.roles.groups {
                    by = format!(", by = {}", list(&self.names(&groups.value)));
                    why = format!("; {}", groups.reason);
                }
                out += &format!(
                    "# {}{why}.\ncount = {{ type = {}{by} }}\n",
                    count.reason,
                    text(&self.layout.columns[count.value].name)
                );
            }
            None => out += "# count: no text has few values that repeat.\n",
        }
        out
    }

    fn names(&self, positions: &[usize]) -> Vec<String> {
        let columns = &self.layout.columns;
        positions
            .iter()
            .map(|at| columns[*at].name.clone())
            .collect()
    }

    fn search(&self) -> String {
        let Some(texts) = &self.roles.texts else {
            return "# search: no column has text.\n".to_owned();
        };
        let mut out = format!("# text: {}.\n", texts.reason);
        let mut parts = vec![format!("text = {}", list(&texts.value))];
        if let Some(exact) = &self.roles.exact {
            out += &format!("# exact: {}.\n", exact.reason);
            parts.push(format!("exact = {}", list(&self.names(&exact.value))));
        }
        if let (Some((lat, lon)), Some(guess)) = (&self.geo, &self.roles.coordinates) {
            out += &format!("# geo: {}.\n", guess.reason);
            parts.push(format!("geo = [{}, {}]", text(lat), text(lon)));
        }
        out += &format!("search = {{ {} }}\n", parts.join(", "));
        if let Some(places) = self.places() {
            out += &places;
        }
        out
    }

    /// The map of venues: what the coordinates belong to, by its identifier and name.
    fn places(&self) -> Option<String> {
        let (lat, lon) = self.geo.as_ref()?;
        let coordinates = match self.roles.coordinates.as_ref()?.value {
            Coordinates::Columns { lat, .. } => lat,
            Coordinates::List(at) => at,
        };
        let path = &self.layout.columns[coordinates].path;
        let beside = |c: &&Column<'_>| {
            path.len() > 1 && c.path[..c.path.len() - 1] == path[..path.len() - 1]
        };
        let is_id = |ty: &Type| matches!(ty, Type::BigInt | Type::Varchar);
        let columns = &self.layout.columns;
        let key = self.roles.key.as_ref().map(|key| &columns[key.value]);
        let mut own = columns.iter().filter(beside);
        let venue = own
            .find(|c| is_id(&c.ty) && naming::is_id(&c.leaf()))
            .or(key)?;
        let named = columns
            .iter()
            .filter(beside)
            .find(|c| c.is_text() && c.leaf().ends_with("name"));
        let texts = self.roles.texts.as_ref().map(|texts| &texts.value);
        let first_text =
            |c: &&Column<'_>| texts.is_some_and(|texts| texts.contains(&c.name)) && c.is_text();
        let name = named.or_else(|| columns.iter().find(first_text))?;
        let event = columns
            .iter()
            .find(|c| is_id(&c.ty) && c.leaf() == "event_id")
            .or(key)
            .unwrap_or(venue);
        // When it takes place, where the event has a time beside its identifier.
        let start = columns.iter().enumerate().find(|(at, c)| {
            Some(*at) != self.time.column
                && event.path.len() > 1
                && matches!(c.ty, Type::Timestamp(_))
                && c.path[..c.path.len() - 1] == event.path[..event.path.len() - 1]
        });
        let date = start.map_or("event_time", |(_, c)| c.name.as_str());
        Some(format!(
            "# The map: a venue is one value of `{}`, named by `{}`.\nplaces = {{ venue = {}, name = {}, lat = {}, lon = {}, event = {}, date = {} }}\n",
            venue.shown(),
            name.shown(),
            text(&venue.name),
            text(&name.name),
            text(lat),
            text(lon),
            text(&event.name),
            text(date)
        ))
    }

    fn watermark(&self, source: &SourceText) -> String {
        let mut keys = Vec::new();
        let mut why = Vec::new();
        if let Order::Unsorted(disorder) | Order::Disorder(disorder) = self.time.order
            && !self.is_sorted(source)
        {
            why.push("19 of 20 times are behind by no more");
            keys.push(format!("disorder = \"{disorder}\""));
        }
        if let Some(ahead) = self.time.max_ahead {
            why.push("times are in the future");
            keys.push(format!("max_ahead = \"{ahead}\""));
        }
        if keys.is_empty() {
            return String::new();
        }
        format!(
            "# In the sample {}.\nwatermark = {{ {} }}\n",
            why.join(", and "),
            keys.join(", ")
        )
    }

    fn window_text(&self) -> String {
        let (Some((_, interval, _)), Some(name)) = (self.size, self.window()) else {
            return String::new();
        };
        let kind = self.count_type();
        let number = if kind == Some("n") { "number" } else { "n" };
        let column = |kind: String| format!(", {kind}");
        let grouped = kind.map(names::quoted).map(column).unwrap_or_default();
        let selected = kind.map(in_window).map(column).unwrap_or_default();
        format!(
            "\n# How many events, in windows of a size of which most of the sample has at most {MAX_WINDOWS}.\n[windows.{name}]\nsql = \"\"\"\nselect window_start, window_end{}, count(*) as {number}\nfrom tumble({}, event_time, interval '{interval}')\ngroup by window_start, window_end{}\n\"\"\"\nallowed_lateness = \"60s\"\n",
            multi_line(&selected),
            self.stream,
            multi_line(&grouped)
        )
    }
}

/// A column in the `select` of a window, under a name that a window does not use itself.
fn in_window(column: &str) -> String {
    let (quoted, own) = (names::quoted(column), naming::name_in_window(column));
    if own == column {
        quoted
    } else {
        format!("{quoted} as {}", names::quoted(&own))
    }
}

/// Names for a comment, not too many; none if there are none.
fn shortened(mut names: impl Iterator<Item = String>) -> Option<String> {
    let shown: Vec<String> = names.by_ref().take(MAX_UNREAD).collect();
    let rest = match names.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!shown.is_empty()).then(|| format!("{}{rest}", shown.join(", ")))
}

/// What was seen of a field, as the reason of its type.
fn remark(field: &Field<'_>, records: u64) -> String {
    let node = field.node;
    let kind = match &field.ty {
        Type::BigInt | Type::Double => match (node.integer_range, node.range) {
            (Some((least, most)), _) if node.decimals == 0 => {
                format!("whole numbers from {least} to {most}")
            }
            (_, Some((least, most))) => format!("numbers from {least:?} to {most:?}"),
            (_, None) => "numbers".to_owned(),
        },
        Type::Boolean => "true or false".to_owned(),
        Type::Varchar if node.texts == 0 => "numbers with more digits than others hold".to_owned(),
        Type::Varchar if node.numbers() > 0 => "text and numbers".to_owned(),
        Type::Varchar if node.values.distinct() == 1 => "text, always the same".to_owned(),
        Type::Varchar if node.prose.is_numeric(node.texts) => {
            format!(
                "numbers as text, {} distinct values",
                node.values.distinct()
            )
        }
        Type::Varchar => format!("text, {} distinct values", node.values.distinct()),
        Type::Timestamp(form) => form.described().to_owned(),
        Type::Json if node.objects + node.arrays == node.present() => {
            "objects or lists without a common shape".to_owned()
        }
        Type::Json => "values of several types".to_owned(),
        Type::Map => format!("objects with {} names in all", node.fields.len()),
        Type::Struct(fields) => format!("objects of {} fields", fields.len()),
        Type::Array(_) => "lists".to_owned(),
    };
    let present = node.present();
    if present < records {
        format!("{kind}; in {present} of {records} records")
    } else {
        kind
    }
}

/// A text as TOML.
fn text(value: &str) -> String {
    let quoted = serde_json::Value::from(value).to_string();
    quoted.replace('\u{7f}', "\\u007f")
}

/// Texts as a list of TOML.
fn list(values: &[String]) -> String {
    let values: Vec<String> = values.iter().map(|value| text(value)).collect();
    format!("[{}]", values.join(", "))
}

/// A line inside a multi-line text of TOML.
fn multi_line(line: &str) -> String {
    line.replace('\\', "\\\\").replace("\"\"\"", "\"\"\\\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proposed(records: &[&str]) -> String {
        let mut profile = Profile::default();
        let records: Vec<&[u8]> = records.iter().map(|text| text.as_bytes()).collect();
        records.iter().for_each(|record| profile.observe(record));
        let source = SourceText {
            kind: SourceKind::HttpPoll("http://localhost/x".into()),
            unwrap: Some("rows".into()),
            dropped: vec!["type".into()],
            notes: Vec::new(),
        };
        let now = 1_800_000_000 * MICROS_PER_SECOND;
        let proposal = Proposal::new(&profile, &records, "things", now);
        proposal.to_toml("x", "data", &source)
    }

    #[test]
    fn a_poll_gets_no_key_that_loses_records() {
        let key = |records: &[&str]| {
            let toml = proposed(records);
            let lines = toml.lines().filter(|line| {
                ["key =", "version =", "# key"]
                    .iter()
                    .any(|start| line.starts_with(start))
            });
            lines.map(str::to_owned).collect::<Vec<_>>().join("; ")
        };
        let none = key(&[r#"{"id":1,"n":1}"#, r#"{"id":2,"n":2}"#]);
        assert!(none.starts_with("# key: `id` would lose records"), "{none}");
        let at = r#""at":"2024-05-01T10:00:00Z""#;
        let shared = key(&[
            &format!("{{\"user_id\":1,{at},\"n\":1}}"),
            &format!("{{\"user_id\":2,{at},\"n\":2}}"),
            &format!("{{\"user_id\":1,{at},\"n\":3}}"),
        ]);
        assert!(
            shared.starts_with("# key: `user_id` does not identify"),
            "{shared}"
        );
        let repeated = key(&[
            r#"{"id":1,"at":"2024-05-01T10:00:00Z"}"#,
            r#"{"id":2,"at":"2024-05-01T10:00:00Z"}"#,
            r#"{"id":1,"at":"2024-05-01T10:00:01Z"}"#,
        ]);
        assert!(repeated.contains("since it repeats"), "{repeated}");
        for (changed, expected) in [
            (r#""last_modified":"2024-05-02T10:00:00Z""#, "last_modified"),
            (r#""changed_files":3"#, ""),
            (r#""updated_by_id":700"#, ""),
            (r#""modified":100"#, ""),
            (
                r#""changed_files":3,"modifiedAt":1714557600"#,
                "modified_at",
            ),
            (r#""version":3,"changed":1714557600"#, "changed"),
        ] {
            let found = key(&[
                &format!("{{\"id\":1,{at},{changed}}}"),
                &format!("{{\"id\":2,{at},{}}}", changed.replace("00", "01")),
            ]);
            let version = match expected {
                "" => String::new(),
                name => format!("; version = \"{name}\""),
            };
            assert_eq!(found, format!("key = \"id\"{version}"), "{changed}");
        }
    }

    #[test]
    fn the_text_is_a_declaration_with_its_reasons() {
        let toml = proposed(&[
            r#"{"id":1,"time":1714557600000,"place":"north of the hill","geometry":{"type":"Point","coordinates":[10.5,59.9]}}"#,
            r#"{"id":2,"time":1714557500000,"place":"south of the lake","geometry":{"type":"Point","coordinates":[11,60]}}"#,
        ]);
        for part in [
            "is a record; not read beside it: type.\nunwrap = \"rows\"",
            "\"time\" timestamp(ms) not null",
            "geometry['coordinates'][2] as lat",
            "key = \"id\"",
            "geo = [\"lat\", \"lon\"]",
            "places = { venue = \"id\"",
            "disorder = \"5m\"",
            "newest first",
            "[windows.things_per_10s]",
        ] {
            assert!(toml.contains(part), "{part}\n{toml}");
        }
        assert!(toml.parse::<toml::Table>().is_ok(), "{toml}");
    }

    #[test]
    fn a_uuid_of_the_record_is_its_key_and_a_type_is_in_every_record() {
        let uuid = |n: u32| format!("0b35b1de-1c2d-4e5f-8a9b-{n:012}");
        for (parent, expected) in [("meta", "key = \"meta_id\""), ("user", "key = \"id\"")] {
            let record = |n: u32| {
                // Few of the records have no inner type.
                let inner = match n {
                    0 | 1 => String::new(),
                    _ => format!(",\"record\":{{\"type\":\"t{}\"}}", n % 3),
                };
                format!(
                    "{{\"id\":{n},\"{parent}\":{{\"id\":\"{}\"}},\"at\":\"2024-05-01T10:00:{n:02}Z\",\"kind\":\"k{}\"{inner}}}",
                    uuid(n),
                    n % 2
                )
            };
            let records: Vec<String> = (0..50).map(record).collect();
            let records: Vec<&str> = records.iter().map(String::as_str).collect();
            let toml = proposed(&records);
            for part in [expected, "count = { type = \"kind\""] {
                assert!(toml.contains(part), "{part}\n{toml}");
            }
        }
    }

    #[test]
    fn texts_that_measure_become_numbers() {
        let toml = proposed(&[
            r#"{"request_time":"0.125","bytes_sent":"-","status":"200","zip":"01234","up":{"size":"7"}}"#,
            r#"{"request_time":"","bytes_sent":"12","status":"404","zip":"01235","up":{"size":"8"}}"#,
        ]);
        for part in [
            "request_time varchar, -- numbers as text, 2 distinct values",
            "try_cast(request_time as double) as request_time",
            "try_cast(bytes_sent as bigint) as bytes_sent",
            "try_cast(up['size'] as bigint) as up_size",
            "# try_cast:",
            " status, zip,",
        ] {
            assert!(toml.contains(part), "{part}\n{toml}");
        }
        let without = proposed(&[r#"{"zip":"01234"}"#]);
        assert!(!without.contains("try_cast"), "{without}");
    }

    #[test]
    fn hostile_names_stay_inside_the_text() {
        let toml = proposed(&[
            r#"{"a\"\"\"\nx = 1":1,"\\":2,"'":{"'":"b"},"--":3,"\"\"\"":4,"select":"y\u001b"}"#,
        ]);
        assert!(toml.parse::<toml::Table>().is_ok(), "{toml}");
        assert!(!toml.contains('\u{1b}'));
    }
}
