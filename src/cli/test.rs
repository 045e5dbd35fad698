//! `weir test`: what sample records become under the configuration, shown or compared with what is
//! expected.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Format, Global, output};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, ReadOrder, Source, SourceKind};
use crate::runtime::{RuntimeError, disorder, dry_run};
use crate::schema::{Catalog, Stream};

/// Shows what sample records become, without touching the data folder.
#[derive(Debug, Args)]
pub struct Test {
    /// The stream that the records are of [default: the first].
    #[arg(long)]
    stream: Option<String>,
    /// Close windows and sessions behind the records.
    #[arg(long = "final")]
    is_final: bool,
    /// Cases with what is expected of them, for a check in your own CI; ends with 1 where something
    /// differs.
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
    /// A file of records beside the suite.
    file: Option<PathBuf>,
    #[serde(default, rename = "final")]
    is_final: bool,
    /// What the answer of `weir test` must hold: of objects these members, of lists these items in
    /// this order.
    expect: toml::Value,
}

/// The records of a file, read as the stream's source would: the one that names this file, or else
/// those of any file.
fn read(config: &Config, stream: &Arc<Stream>, path: &Path) -> Result<Vec<Vec<u8>>, RuntimeError> {
    let wrong = |e: std::io::Error| RuntimeError::Config(format!("{}: {e}", path.display()));
    let of_stream = || {
        config
            .sources
            .iter()
            .filter(|source| source.stream == stream.name)
    };
    let own = of_stream().find(|source| is_of_file(source, path));
    let unwrap = match own {
        Some(own) => own.unwrap.as_deref(),
        None => of_stream().find_map(|source| source.unwrap.as_deref()),
    };
    let file = std::fs::File::open(path).map_err(wrong)?;
    let records = dry_run::read(file, unwrap, config.limits.record, None).map_err(wrong)?;
    let orders: Vec<ReadOrder> = match own {
        Some(own) => order(own).into_iter().collect(),
        None => of_stream().filter_map(order).collect(),
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
        SourceKind::WebSocket { .. } => None,
    }
}

fn is_of_file(source: &Source, path: &Path) -> bool {
    let SourceKind::File(def) = &source.kind else {
        return false;
    };
    path.canonicalize()
        .is_ok_and(|path| def.path.canonicalize().is_ok_and(|own| own == path))
}

/// Where `found` lacks something of `wanted`: the place and what is there.
fn difference(wanted: &Value, found: &Value, place: &str, out: &mut Vec<String>) {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(members)) => {
            for (key, value) in wanted {
                difference(
                    value,
                    members.get(key).unwrap_or(&Value::Null),
                    &format!("{place}.{key}"),
                    out,
                );
            }
        }
        (Value::Array(wanted), Value::Array(items)) if wanted.len() == items.len() => {
            for (n, (wanted, item)) in wanted.iter().zip(items).enumerate() {
                difference(wanted, item, &format!("{place}[{n}]"), out);
            }
        }
        (Value::Array(wanted), Value::Array(items)) => {
            out.push(format!(
                "{place}: {} items instead of {}: {}",
                items.len(),
                wanted.len(),
                found
            ));
        }
        // TOML has no null.
        (Value::String(text), Value::Null) if text == "null" => {}
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => {}
        _ if wanted == found => {}
        _ => out.push(format!("{place}: {found} instead of {wanted}")),
    }
}

impl Test {
    pub fn run(&self, global: &Global) -> Result<(), RuntimeError> {
        let config = global.load_file()?;
        let catalog = crate::runtime::views::compile(&config)?;
        match &self.suite {
            Some(suite) => compare(&config, &catalog, suite),
            None => self.show(global, &config, &catalog),
        }
    }

    fn show(
        &self,
        global: &Global,
        config: &Config,
        catalog: &Arc<Catalog>,
    ) -> Result<(), RuntimeError> {
        let stream = named(catalog, self.stream.as_ref())?;
        let mut records = Vec::new();
        for file in &self.files {
            records.extend(read(config, of_name(catalog, &stream)?, file)?);
        }
        let (answer, counted) = dry_run::run(
            catalog,
            &stream,
            &records,
            SystemClock::default().now(),
            self.is_final,
        )?;
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

fn named(catalog: &Catalog, stream: Option<&String>) -> Result<String, RuntimeError> {
    let first = || catalog.streams.keys().next().cloned();
    stream
        .cloned()
        .or_else(first)
        .ok_or_else(|| RuntimeError::Config("no stream is declared".into()))
}

fn of_name<'a>(catalog: &'a Catalog, name: &str) -> Result<&'a Arc<Stream>, RuntimeError> {
    catalog
        .streams
        .get(name)
        .ok_or_else(|| dry_run::unknown_stream(catalog, name))
}

fn compare(config: &Config, catalog: &Arc<Catalog>, path: &Path) -> Result<(), RuntimeError> {
    let wrong = |what: String| RuntimeError::Config(format!("{}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    let suite: Suite = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    if suite.test.is_empty() {
        return Err(wrong("there is no [[test]]".into()));
    }
    let mut failed = 0;
    for case in &suite.test {
        let stream = named(catalog, case.stream.as_ref())?;
        let mut records: Vec<Vec<u8>> = case
            .records
            .iter()
            .map(|r| r.clone().into_bytes())
            .collect();
        if let Some(file) = &case.file {
            records.extend(read(
                config,
                of_name(catalog, &stream)?,
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
        let mut differences = Vec::new();
        difference(&json!(case.expect), &found, "", &mut differences);
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
