//! The first answers: the sample runs through the proposed declaration in a temporary folder, and
//! the same queries as those of the verbs are asked of it.

use std::time::Duration;

use serde_json::{Value, json};

use super::input::Input;
use crate::cli::{output, tokio_runtime};
use crate::config;
use crate::event::is_place;
use crate::infer::{Proposal, SourceKind, SourceText};
use crate::query::encode::Format;
use crate::query::{ClientId, QueryError};
use crate::runtime::offline::Offline;
use crate::runtime::query_service::{Params, QueryService};
use crate::runtime::{Options, POLL, Running, RuntimeError};

/// Types and venues that are shown.
const MAX_SHOWN: usize = 5;
/// How often a starting run checks whether the log has been replayed.
const RESUME_POLL: Duration = Duration::from_millis(5);
const SAMPLE: &str = "sample.ndjson";

/// Runs the sample, and asks what the declaration answers.
pub fn of(proposal: &Proposal<'_>, input: &Input) -> Result<Value, RuntimeError> {
    let failed = |e: std::io::Error| RuntimeError::Failed(format!("a temporary folder: {e}"));
    let folder = tempfile::tempdir().map_err(failed)?;
    std::fs::write(folder.path().join(SAMPLE), as_lines(input)).map_err(failed)?;
    let source = SourceText {
        kind: SourceKind::File {
            path: SAMPLE.to_owned(),
            is_single: true,
            recursive: false,
            include: Vec::new(),
        },
        unwrap: None,
        dropped: Vec::new(),
        notes: Vec::new(),
    };
    let text = proposal.to_toml(&input.shown, "data", &source);
    // Without the environment: its variables must not lead to another data folder.
    let config = config::parse(Some(&folder.path().join("weir.toml")), text, None, &|_| {
        None
    })?;
    let runtime = tokio_runtime()?;
    let options = Options {
        once: true,
        ..Options::default()
    };
    let mut running = Running::start(&config, options, runtime.handle())?;
    while !running.resume(&config)? && !running.has_failed() {
        std::thread::sleep(RESUME_POLL);
    }
    while !running.has_failed() && !running.sources_have_ended() {
        std::thread::sleep(POLL);
    }
    if !running.has_failed() {
        running.close_windows()?;
    }
    running.stop()?;
    let offline = Offline::open(&config, runtime.handle())?;
    runtime.block_on(ask(proposal, &offline.queries))
}

/// Each record on a line: outside of strings, a line end is a blank.
fn as_lines(input: &Input) -> Vec<u8> {
    let mut out = Vec::new();
    for record in input.files.iter().flatten() {
        let blank = |b: &u8| if matches!(b, b'\n' | b'\r') { b' ' } else { *b };
        out.extend(record.iter().map(blank));
        out.push(b'\n');
    }
    out
}

async fn ask(proposal: &Proposal<'_>, queries: &QueryService) -> Result<Value, RuntimeError> {
    let stream = proposal.stream();
    let totals = format!(
        "select count(*) as events, min(event_time) as first, max(event_time) as last from {stream}"
    );
    let mut answers = sql(queries, &totals).await?;
    if let Some(kind) = proposal.count_type() {
        let counted = queries
            .count(&params(&[("by", kind)]))
            .await?
            .into_value()?;
        let mut groups = counted["groups"].as_array().cloned().unwrap_or_default();
        groups.sort_by_key(|group| std::cmp::Reverse(group["count"].as_u64()));
        groups.truncate(MAX_SHOWN);
        answers["types"] = json!({"column": kind, "groups": groups});
    }
    if let Some(word) = proposal.search_word() {
        let found = queries
            .search(&params(&[("q", &word), ("limit", "3")]))
            .await?;
        let found = found.into_value()?;
        answers["search"] = json!({"word": word, "total": found["total"]});
    }
    if let Some((lat, lon)) = proposal.venues() {
        let (lat, lon) = (quoted(lat), quoted(lon));
        let first = format!(
            "select {lat} as lat, {lon} as lon from {stream} where {lat} is not null and ({lat} <> 0 or {lon} <> 0) limit 1"
        );
        let place = sql(queries, &first).await?;
        if let (Some(lat), Some(lon)) = (place["lat"].as_f64(), place["lon"].as_f64())
            && is_place((lat, lon))
        {
            let (lat, lon) = (lat.to_string(), lon.to_string());
            let near = params(&[("lat", &lat), ("lon", &lon), ("limit", "3")]);
            let near = queries.nearby(&near).await?.into_value()?;
            answers["nearby"] = json!({"lat": lat, "lon": lon, "venues": near["venues"]});
        }
    }
    Ok(answers)
}

fn quoted(name: &str) -> String {
    crate::schema::names::quoted(name)
}

fn params(pairs: &[(&str, &str)]) -> Params {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

/// The first row of a query.
async fn sql(queries: &QueryService, query: &str) -> Result<Value, RuntimeError> {
    let answer = queries.ask(ClientId::default(), query).await?;
    let whole = queries.write(answer, Format::parse("json")?).await?;
    let bytes = whole
        .into_bytes()
        .map_err(|e| QueryError::Failed(e.to_string()))?;
    let answer: Value =
        serde_json::from_slice(&bytes).map_err(|e| RuntimeError::Failed(e.to_string()))?;
    Ok(answer["rows"][0].clone())
}

/// The answers for people.
pub fn as_text(answers: &Value) -> String {
    let shown = |value: &Value| match value {
        Value::String(text) => output::printable(text),
        other => other.to_string(),
    };
    let mut out = format!(
        "\nThe sample answers already:\n  {} events, from {} to {}\n",
        answers["events"],
        shown(&answers["first"]),
        shown(&answers["last"])
    );
    if let Some(groups) = answers["types"]["groups"].as_array() {
        let column = answers["types"]["column"].as_str().unwrap_or_default();
        let groups: Vec<String> = groups
            .iter()
            .map(|group| format!("{} {}", shown(&group[column]), group["count"]))
            .collect();
        out += &format!("  by {column}: {}\n", groups.join(", "));
    }
    if let Some(word) = answers["search"]["word"].as_str() {
        out += &format!(
            "  {} found by the word `{word}`\n",
            answers["search"]["total"]
        );
    }
    if let Some(venues) = answers["nearby"]["venues"].as_array() {
        let venues: Vec<String> = venues.iter().map(|v| shown(&v["venue_name"])).collect();
        out += &format!(
            "  near {}, {}: {}\n",
            shown(&answers["nearby"]["lat"]),
            shown(&answers["nearby"]["lon"]),
            venues.join("; ")
        );
    }
    out
}
