//! `weir count`, `search`, `nearby`, `windows` and `status`: the HTTP queries as verbs, with the same
//! names.

use clap::Args;

use super::client::{self, QueryTarget};
use super::{Global, output};
use crate::runtime::RuntimeError;
use crate::runtime::query_service::Params;

/// Flags that select a stream and a time range.
#[derive(Debug, Args)]
struct Range {
    /// The stream [default: the first].
    #[arg(long)]
    stream: Option<String>,
    /// At or after this time: RFC 3339, a date, epoch milliseconds, now-15m (UTC).
    #[arg(long, allow_hyphen_values = true)]
    from: Option<String>,
    /// Before this time.
    #[arg(long, allow_hyphen_values = true)]
    to: Option<String>,
}

/// Counts events, excluding duplicates.
#[derive(Debug, Args)]
pub struct Count {
    #[command(flatten)]
    range: Range,
    /// Only events of this type.
    #[arg(long = "type")]
    kind: Option<String>,
    /// Count by this column.
    #[arg(long)]
    by: Option<String>,
    /// Count duplicates too.
    #[arg(long)]
    duplicates: bool,
}

/// Full-text search for events.
#[derive(Debug, Args)]
pub struct Search {
    /// Words, "phrases", prefix*, field:value; all must occur.
    text: String,
    #[command(flatten)]
    range: Range,
    /// Newest first, or best first.
    #[arg(long, value_parser = ["time", "rank"], default_value = "time")]
    sort: String,
    /// Hits of a page.
    #[arg(long, default_value_t = 20)]
    limit: usize,
    /// Only near this place: LAT,LON, with --within.
    #[arg(
        long,
        allow_hyphen_values = true,
        value_name = "LAT,LON",
        requires = "within"
    )]
    near: Option<String>,
    /// Only within this distance of it, for example 5km.
    #[arg(long, value_name = "DISTANCE", requires = "near")]
    within: Option<String>,
    /// The `next` cursor of the previous page.
    #[arg(long)]
    after: Option<String>,
}

/// Finds the venues nearest to a place.
#[derive(Debug, Args)]
pub struct Nearby {
    /// Latitude in degrees.
    #[arg(long, allow_hyphen_values = true)]
    lat: f64,
    /// Longitude in degrees.
    #[arg(long, allow_hyphen_values = true)]
    lon: f64,
    /// The stream [default: the first].
    #[arg(long)]
    stream: Option<String>,
    /// At most so many venues.
    #[arg(long, default_value_t = 10)]
    limit: usize,
    /// Only within this distance, for example 5km.
    #[arg(long, value_name = "DISTANCE")]
    within: Option<String>,
}

/// Shows a window's rows, the latest first, including open windows.
#[derive(Debug, Args)]
pub struct Windows {
    /// The window, as the configuration names it; without it, an error lists the windows.
    name: Option<String>,
    /// Windows that start at or after this time: RFC 3339, a date, epoch milliseconds, now-15m (UTC).
    #[arg(long, allow_hyphen_values = true)]
    from: Option<String>,
    /// Windows that start before this time.
    #[arg(long, allow_hyphen_values = true)]
    to: Option<String>,
    /// At most so many rows.
    #[arg(long, default_value_t = 1_000)]
    limit: usize,
}

/// Shows the progress of the log and the views.
#[derive(Debug, Args)]
pub struct Status {
    /// Only whether the server of the data folder answers, for health checks: it prints nothing,
    /// needs no token, and ends with 1 if none does.
    #[arg(long)]
    alive: bool,
}

fn params<const N: usize>(pairs: [(&str, Option<String>); N]) -> Params {
    pairs
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect()
}

impl Count {
    pub fn run(&self, global: &Global) -> Result<(), RuntimeError> {
        let params = params([
            ("stream", self.range.stream.clone()),
            ("from", self.range.from.clone()),
            ("to", self.range.to.clone()),
            ("type", self.kind.clone()),
            ("by", self.by.clone()),
            ("duplicates", self.duplicates.then(|| "true".to_owned())),
        ]);
        let mut answer = QueryTarget::open(global)?.ask("count", &params)?;
        if global.format() != output::Format::Json && self.by.is_none() {
            answer["groups"] = serde_json::json!([{"count": answer["count"]}]);
        }
        output::answer(&answer, "groups", global.format())
    }
}

impl Search {
    pub fn run(&self, global: &Global) -> Result<(), RuntimeError> {
        let params = params([
            ("q", Some(self.text.clone())),
            ("stream", self.range.stream.clone()),
            ("from", self.range.from.clone()),
            ("to", self.range.to.clone()),
            ("sort", Some(self.sort.clone())),
            ("limit", Some(self.limit.to_string())),
            ("near", self.near.clone()),
            ("within", self.within.clone()),
            ("after", self.after.clone()),
        ]);
        let answer = QueryTarget::open(global)?.ask("search", &params)?;
        if global.format() == output::Format::Table {
            eprintln!("{} hits", answer["total"]);
        }
        output::answer(&answer, "hits", global.format())
    }
}

impl Nearby {
    pub fn run(&self, global: &Global) -> Result<(), RuntimeError> {
        let params = params([
            ("lat", Some(self.lat.to_string())),
            ("lon", Some(self.lon.to_string())),
            ("stream", self.stream.clone()),
            ("limit", Some(self.limit.to_string())),
            ("within", self.within.clone()),
        ]);
        let answer = QueryTarget::open(global)?.ask("nearby", &params)?;
        output::answer(&answer, "venues", global.format())
    }
}

/// The names of all windows: a window has a table with all versions of its rows.
const WINDOW_NAMES: &str = "select substr(view, 6, length(view) - 14) as name from weir.views \
    where starts_with(view, 'lake/') and ends_with(view, '_versions') \
    and substr(view, 6) not in (select stream from weir.configuration) order by name";

/// The error of a verb without a name, with the names that there are.
pub fn missing_name(noun: &str, usage: &str, names: &[String]) -> RuntimeError {
    RuntimeError::Config(if names.is_empty() {
        format!("`{usage}` needs a {noun}, and none is declared")
    } else {
        format!("`{usage}` needs a {noun}; available: {}", names.join(", "))
    })
}

impl Windows {
    pub fn run(&self, global: &Global) -> Result<(), RuntimeError> {
        let target = QueryTarget::open(global)?;
        let Some(name) = &self.name else {
            let answer = target.sql(WINDOW_NAMES, "json")?;
            let answer: serde_json::Value =
                serde_json::from_slice(&answer).map_err(|e| RuntimeError::Failed(e.to_string()))?;
            let rows = answer["rows"].as_array().into_iter().flatten();
            let names: Vec<String> = rows.map(|row| output::cell(&row["name"])).collect();
            return Err(missing_name("window", "weir windows NAME", &names));
        };
        let params = params([
            ("name", Some(name.clone())),
            ("from", self.from.clone()),
            ("to", self.to.clone()),
            ("limit", Some(self.limit.to_string())),
        ]);
        let answer = target.ask("windows", &params)?;
        output::answer(&answer, "rows", global.format())
    }
}

impl Status {
    pub fn run(&self, global: &Global) -> Result<(), RuntimeError> {
        if self.alive {
            return client::check_alive(global);
        }
        let answer = QueryTarget::open(global)?.ask("status", &Params::new())?;
        if global.format() == output::Format::Table {
            report_sources(&answer);
            report_sinks(&answer);
            let notes = answer["notes"].as_array().into_iter().flatten();
            notes
                .filter_map(|note| note.as_str())
                .for_each(|note| output::message(&format!("weir: {note}")));
        }
        output::answer(&answer, "views", global.format())
    }
}

/// Reports on stderr which sinks do not deliver.
fn report_sinks(answer: &serde_json::Value) {
    for sink in answer["sinks"].as_array().into_iter().flatten() {
        let text = |name: &str| sink[name].as_str().unwrap_or_default().to_owned();
        if text("state") != "running" {
            let (name, state, lag) = (text("sink"), text("state"), &sink["lag"]);
            let error = text("last_error");
            output::message(&format!(
                "sink `{name}` is {state}, {lag} records behind: {error}"
            ));
        }
    }
}

/// Reports on stderr which sources are not running normally; the table has the views.
fn report_sources(answer: &serde_json::Value) {
    for source in answer["sources"].as_array().into_iter().flatten() {
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let (name, state) = (text(&source["source"]), text(&source["state"]));
        if let Some(reason) = source["reason"].as_str() {
            output::message(&format!("source `{name}` {state}: {reason}"));
        }
        for file in source["files"].as_array().into_iter().flatten() {
            let (path, reason) = (text(&file["path"]), text(&file["reason"]));
            output::message(&format!("source `{name}`: {path} waits: {reason}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_name_lists_those_that_there_are() {
        let message =
            |names: &[String]| missing_name("window", "weir windows NAME", names).to_string();
        assert_eq!(
            message(&["a".into(), "b".into()]),
            "`weir windows NAME` needs a window; available: a, b"
        );
        assert_eq!(
            message(&[]),
            "`weir windows NAME` needs a window, and none is declared"
        );
    }
}
