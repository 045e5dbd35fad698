//! `weir test`: what sample records become under the configuration, shown or compared with
//! expectations.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::progress::Spinner;
use super::{Format, Global, output};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, ReadOrder, Source, SourceKind};
use crate::runtime::{RuntimeError, disorder, dry_run};
use crate::schema::{Catalog, Stream};

/// Shows what sample records become, without touching the data folder.
#[derive(Debug, Args)]
pub struct Test {
    /// The stream of the records [default: the first].
    #[arg(long)]
    stream: Option<String>,
    /// Close windows and sessions after the records.
    #[arg(long = "final")]
    is_final: bool,
    /// Test cases with expected results, for your own CI; the exit code is 1 if one differs.
    #[arg(long, value_name = "FILE", conflicts_with = "files")]
    suite: Option<PathBuf>,
    /// Files of records: JSON objects, one a line or pretty-printed, or an array; also compressed.
    #[arg(required_unless_present = "suite")]
    files: Vec<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Suite {
    #[serde(default)]
    test: Vec<Case>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    stream: Option<String>,
    /// Records as JSON texts.
    #[serde(default)]
    records: Vec<String>,
    /// A file of records, relative to the suite.
    file: Option<PathBuf>,
    #[serde(default, rename = "final")]
    is_final: bool,
    /// What the answer of `weir test` must contain: objects these members, lists exactly these
    /// items in this order.
    expect: toml::Value,
}

/// The records of a file, read as by the stream's source for this file, else as by its sources of
/// files.
fn read(config: &Config, stream: &Arc<Stream>, path: &Path) -> Result<Vec<Vec<u8>>, RuntimeError> {
    let wrong = |e: std::io::Error| {
        let path = path.display();
        RuntimeError::Config(format!(
            "{path}: {e}; name a file of JSON records, also compressed"
        ))
    };
    let sources = || {
        config
            .sources
            .iter()
            .filter(|source| source.feeds(&stream.name))
    };
    let own_source = sources().find(|source| reads_file(source, path));
    let unwrap = match own_source {
        Some(own) => own.unwrap.as_deref(),
        None => sources().find_map(|source| source.unwrap.as_deref()),
    };
    let file = std::fs::File::open(path).map_err(wrong)?;
    let records = dry_run::read(file, unwrap, config.limits.record, None).map_err(wrong)?;
    let orders: Vec<ReadOrder> = match own_source {
        Some(own) => order(own).into_iter().collect(),
        None => sources().filter_map(order).collect(),
    };
    let is_sorted = !orders.is_empty() && orders.iter().all(|order| *order == ReadOrder::EventTime);
    Ok(if is_sorted {
        dry_run::in_order(stream, records)
    } else {
        records
    })
}

fn order(source: &Source) -> Option<ReadOrder> {
    match &source.kind {
        SourceKind::File(def) => Some(def.order),
        SourceKind::WebSocket { .. }
        | SourceKind::HttpStream(_)
        | SourceKind::HttpPoll(_)
        | SourceKind::Kafka(_) => None,
    }
}

fn reads_file(source: &Source, path: &Path) -> bool {
    let SourceKind::File(def) = &source.kind else {
        return false;
    };
    path.canonicalize()
        .is_ok_and(|path| def.path.canonicalize().is_ok_and(|own| own == path))
}

/// Collects where `found` lacks something of `expected`, as `PATH: FOUND instead of EXPECTED`.
fn compare(expected: &Value, found: &Value, path: &str, out: &mut Vec<String>) {
    match (expected, found) {
        (Value::Object(expected), Value::Object(members)) => {
            for (key, value) in expected {
                compare(
                    value,
                    members.get(key).unwrap_or(&Value::Null),
                    &format!("{path}.{key}"),
                    out,
                );
            }
        }
        (Value::Array(expected), Value::Array(items)) if expected.len() == items.len() => {
            for (n, (expected, item)) in expected.iter().zip(items).enumerate() {
                compare(expected, item, &format!("{path}[{n}]"), out);
            }
        }
        (Value::Array(expected), Value::Array(items)) => {
            out.push(format!(
                "{path}: {} items instead of {}: {}",
                items.len(),
                expected.len(),
                found
            ));
        }
        // TOML has no null.
        (Value::String(text), Value::Null) if text == "null" => {}
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => {}
        _ if expected == found => {}
        _ => out.push(format!("{path}: {found} instead of {expected}")),
    }
}

impl Test {
    pub fn run(&self, global: &Global) -> Result<(), RuntimeError> {
        let config = global.load_file()?;
        let catalog = crate::runtime::views::compile(&config)?;
        match &self.suite {
            Some(suite) => run_suite(global, &config, &catalog, suite),
            None => self.show(global, &config, &catalog),
        }
    }

    fn show(
        &self,
        global: &Global,
        config: &Config,
        catalog: &Arc<Catalog>,
    ) -> Result<(), RuntimeError> {
        let stream = name_or_first(catalog, self.stream.as_ref())?;
        let trying = Spinner::new(global, "trying the records");
        let mut records = Vec::new();
        for file in &self.files {
            records.extend(read(config, stream_of(catalog, &stream)?, file)?);
        }
        let (answer, counted) = dry_run::run(
            catalog,
            &stream,
            &records,
            SystemClock::default().now(),
            self.is_final,
        )?;
        drop(trying);
        if let Some(text) = disorder::notice(&catalog.streams[&stream], &counted) {
            eprintln!("weir: {text}");
        }
        if global.output.is_some_and(|format| format != Format::Json) {
            return output::answer(&answer, "records", global.format());
        }
        let text = serde_json::to_string_pretty(&answer)
            .map_err(|e| RuntimeError::Failed(e.to_string()))?;
        output::write(format!("{text}\n").as_bytes())
    }
}

fn name_or_first(catalog: &Catalog, stream: Option<&String>) -> Result<String, RuntimeError> {
    let first = || catalog.streams.keys().next().cloned();
    stream.cloned().or_else(first).ok_or_else(|| {
        RuntimeError::Config("no stream is declared; add a table [streams.NAME]".into())
    })
}

fn stream_of<'a>(catalog: &'a Catalog, name: &str) -> Result<&'a Arc<Stream>, RuntimeError> {
    catalog
        .streams
        .get(name)
        .ok_or_else(|| dry_run::unknown_stream(catalog, name))
}

/// Runs the cases of a suite, and prints a line for each.
fn run_suite(
    global: &Global,
    config: &Config,
    catalog: &Arc<Catalog>,
    path: &Path,
) -> Result<(), RuntimeError> {
    let wrong = |e: String| RuntimeError::Config(format!("{}: {e}", path.display()));
    let text = std::fs::read_to_string(path)
        .map_err(|e| wrong(format!("{e}; name a file with [[test]] tables")))?;
    let suite: Suite = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    if suite.test.is_empty() {
        return Err(wrong(
            "no [[test]] is declared; add one with `name`, `records` or `file`, and `expect`"
                .into(),
        ));
    }
    let mut failed = 0;
    for case in &suite.test {
        let trying = Spinner::new(global, format!("trying {}", case.name));
        let stream = name_or_first(catalog, case.stream.as_ref())?;
        let mut records: Vec<Vec<u8>> = case
            .records
            .iter()
            .map(|r| r.clone().into_bytes())
            .collect();
        if let Some(file) = &case.file {
            records.extend(read(
                config,
                stream_of(catalog, &stream)?,
                &path.parent().unwrap_or(Path::new("")).join(file),
            )?);
        }
        let (found, _) = dry_run::run(
            catalog,
            &stream,
            &records,
            SystemClock::default().now(),
            case.is_final,
        )?;
        drop(trying);
        let mut differences = Vec::new();
        compare(&json!(case.expect), &found, "", &mut differences);
        println!(
            "{} {}",
            if differences.is_empty() {
                "ok    "
            } else {
                "FAILED"
            },
            case.name
        );
        for difference in &differences {
            println!("       {}", difference.trim_start_matches('.'));
        }
        failed += usize::from(!differences.is_empty());
    }
    if failed > 0 {
        return Err(RuntimeError::Failed(format!(
            "{failed} of {} cases differ",
            suite.test.len()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expectations_are_compared_member_by_member() {
        for (expected, found, differences) in [
            (json!({"a": 1}), json!({"a": 1.0, "b": 2}), vec![]),
            (json!({"a": "null"}), json!({"b": 2}), vec![]),
            (json!({"a": 1}), json!({}), vec![".a: null instead of 1"]),
            (
                json!({"a": [1, {"b": 2}]}),
                json!({"a": [1, {"b": 3}]}),
                vec![".a[1].b: 3 instead of 2"],
            ),
            (
                json!({"a": [1]}),
                json!({"a": [1, 2]}),
                vec![".a: 2 items instead of 1: [1,2]"],
            ),
        ] {
            let mut out = Vec::new();
            compare(&expected, &found, "", &mut out);
            assert_eq!(out, differences);
        }
    }
}
