//! Declared streams, windows and entity tables: presets expanded, names checked.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;

use super::error::{ConfigError, with_next_step};
use super::location::SourceText;
use super::raw::{ConfigFile, SystemTable};
use super::stream::{Declarations, StreamDef, TableDef, WindowDef};
use super::units::Span;
use super::zone;
use crate::ids::{CheckpointId, TableId, ViewId};
use crate::presets;

/// System tables whose retention can be set.
const SYSTEM_TABLES: [&str; 2] = ["raw", "dead_letters"];

/// Names of system tables and schemas.
const RESERVED_NAMES: [&str; 4] = ["raw", "dead_letters", "weir", "information_schema"];

/// Why a stream, a window or a table is refused.
#[derive(Debug, thiserror::Error)]
enum InvalidDeclaration {
    #[error("a name is lower-case letters, digits and _, and begins with a letter")]
    Name,
    #[error("`{0}` is a reserved table name; choose another one")]
    ReservedName(String),
    #[error("the preset `{preset}` does not exist; available: {available}")]
    UnknownPreset { preset: String, available: String },
    #[error("an entity table is named [tables.\"{stream}.NAME\"], after its stream")]
    EntityTableName { stream: String },
    #[error("[streams.{0}] is not declared")]
    UndeclaredStream(String),
    /// A key or a value, as the parser says.
    #[error("{0}")]
    Toml(String),
}

/// Everything that the file declares. The keys of a stream, and windows of the file, take
/// precedence over those of a preset.
pub(super) fn declarations(
    file: &ConfigFile,
    at: &SourceText<'_>,
) -> Result<Declarations, ConfigError> {
    let mut declared = Declarations {
        zone_data: zone::data_version().to_owned(),
        ..Declarations::default()
    };
    for (name, typed) in &file.streams {
        let line = at.line_of(&format!("[streams.{name}]"));
        let def = stream(name, typed.clone(), &mut declared)
            .map_err(|message| at.error(line, format!("stream `{name}`: {message}")))?;
        declared.streams.insert(name.clone(), def);
    }
    for (name, typed) in &file.windows {
        let def = window(name, typed).map_err(|message| {
            let line = at.line_of(&format!("[windows.{name}]"));
            at.error(line, format!("window `{name}`: {message}"))
        })?;
        declared.windows.insert(name.clone(), def);
    }
    let is_entity_table = |name: &&String| !SYSTEM_TABLES.contains(&name.as_str());
    for name in file.tables.keys().filter(is_entity_table) {
        let def = entity_table(name, &file.tables[name], &declared).map_err(|message| {
            let line = at.line_of(&format!("[tables.\"{name}\"]"));
            at.error(line, format!("table `{name}`: {message}"))
        })?;
        declared.tables.insert(name.clone(), def);
    }
    check_clashes(&declared, at)?;
    Ok(declared)
}

/// A stream's declaration; the windows and tables of its preset are added to `declared`.
fn stream(
    name: &str,
    mut typed: toml::Table,
    declared: &mut Declarations,
) -> Result<StreamDef, InvalidDeclaration> {
    if !is_name(name) {
        return Err(InvalidDeclaration::Name);
    }
    if RESERVED_NAMES.contains(&name) {
        return Err(InvalidDeclaration::ReservedName(name.to_owned()));
    }
    if let Some(preset) = typed.remove("preset") {
        let mut expanded = expand_preset(name, preset.as_str().unwrap_or_default(), declared)?;
        expanded.extend(typed);
        typed = expanded;
    }
    deserialize(typed)
}

/// The stream's keys in a preset, without its windows and tables, which are added to `declared`.
fn expand_preset(
    stream: &str,
    preset: &str,
    declared: &mut Declarations,
) -> Result<toml::Table, InvalidDeclaration> {
    const TESTED: &str = "presets are tested";
    let text = presets::text(preset, stream).ok_or_else(|| InvalidDeclaration::UnknownPreset {
        preset: preset.to_owned(),
        available: presets::names().collect::<Vec<_>>().join(", "),
    })?;
    let mut expanded: toml::Table = toml::from_str(&text).expect(TESTED);
    if let Some(windows) = expanded.remove("windows") {
        let windows: BTreeMap<String, WindowDef> =
            serde::Deserialize::deserialize(windows).expect(TESTED);
        // A stream named as its preset gives the windows their plain names.
        let window_name = |window: String| {
            if stream == preset {
                window
            } else {
                format!("{stream}_{window}")
            }
        };
        let named = windows.into_iter().map(|(w, def)| (window_name(w), def));
        declared.windows.extend(named);
    }
    if let Some(tables) = expanded.remove("tables") {
        let tables: BTreeMap<String, TableDef> =
            serde::Deserialize::deserialize(tables).expect(TESTED);
        let named = tables
            .into_iter()
            .map(|(table, def)| (format!("{stream}.{table}"), def));
        declared.tables.extend(named);
    }
    Ok(expanded)
}

fn window(name: &str, typed: &toml::Table) -> Result<WindowDef, InvalidDeclaration> {
    if !is_name(name) {
        return Err(InvalidDeclaration::Name);
    }
    deserialize(typed.clone())
}

fn entity_table(
    name: &str,
    typed: &toml::Table,
    declared: &Declarations,
) -> Result<TableDef, InvalidDeclaration> {
    let def: TableDef = deserialize(typed.clone())?;
    let stream = &def.stream;
    let is_named_after_stream = name
        .split_once('.')
        .is_some_and(|(prefix, table)| prefix == stream && is_name(table));
    if !is_named_after_stream {
        return Err(InvalidDeclaration::EntityTableName {
            stream: stream.clone(),
        });
    }
    if !declared.streams.contains_key(stream) {
        return Err(InvalidDeclaration::UndeclaredStream(stream.clone()));
    }
    Ok(def)
}

fn deserialize<T: DeserializeOwned>(table: toml::Table) -> Result<T, InvalidDeclaration> {
    T::deserialize(toml::Value::Table(table))
        .map_err(|e: toml::de::Error| InvalidDeclaration::Toml(with_next_step(e.message())))
}

/// A window is two tables, NAME and NAME_versions; no table has two meanings.
fn check_clashes(declared: &Declarations, at: &SourceText<'_>) -> Result<(), ConfigError> {
    for name in declared.windows.keys() {
        if let Some(taken) = clash_of_window(name, declared) {
            let message =
                format!("window `{name}`: the table `{taken}` exists already; rename one of them");
            return Err(at.error(at.line_of(&format!("[windows.{name}]")), message));
        }
    }
    for name in declared.tables.keys() {
        if let Ok(TableId::Sessions(_) | TableId::Late(_)) = name.parse() {
            let message = format!("table `{name}`: the name is reserved; choose another one");
            return Err(at.error(at.line_of(&format!("[tables.\"{name}\"]")), message));
        }
    }
    if let Some((other, name)) = clash_of_checkpoints(declared) {
        let message = format!(
            "streams `{other}` and `{name}`: a checkpoint of one would have the name of one of the other; rename one of them"
        );
        return Err(at.error(at.line_of(&format!("[streams.{name}]")), message));
    }
    Ok(())
}

/// Two streams of which views store checkpoints under one text: `search/recent` is that of the
/// recent rows of a stream `search`, and that of the index of a stream `recent`.
fn clash_of_checkpoints(declared: &Declarations) -> Option<(&str, &str)> {
    let mut taken = BTreeMap::new();
    for (stream, def) in &declared.streams {
        let table = TableId::stream(stream);
        let indexes = [
            def.search.as_ref().map(|_| ViewId::search(stream)),
            def.places.as_ref().map(|_| ViewId::places(stream)),
            def.count.as_ref().map(|_| ViewId::counts(stream)),
        ];
        let indexes = indexes.iter().flatten().map(CheckpointId::from);
        let tables = [CheckpointId::recent(&table), CheckpointId::late(&table)];
        for id in indexes.chain(tables) {
            if let Some(other) = taken.insert(id, stream.as_str()) {
                return Some((other, stream));
            }
        }
    }
    None
}

/// The table of a window that something else is called.
fn clash_of_window(name: &str, declared: &Declarations) -> Option<String> {
    let versions = TableId::window(name).to_string();
    let is_taken =
        |table: &str| declared.streams.contains_key(table) || RESERVED_NAMES.contains(&table);
    if is_taken(name) {
        return Some(name.to_owned());
    }
    (is_taken(&versions) || declared.windows.contains_key(&versions)).then_some(versions)
}

pub(super) fn is_name(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// Retention of `raw` and of `dead_letters`.
pub(super) fn system_retention(
    file: &ConfigFile,
    at: &SourceText<'_>,
) -> Result<(Span, Span), ConfigError> {
    let (mut raw, mut dead_letters) = (Span::seconds(30 * 86_400), Span::seconds(400 * 86_400));
    for (name, target) in SYSTEM_TABLES.into_iter().zip([&mut raw, &mut dead_letters]) {
        let Some(typed) = file.tables.get(name) else {
            continue;
        };
        let table: SystemTable = deserialize(typed.clone()).map_err(|e| {
            let message = format!("table `{name}`: only `retention` can be set here: {e}");
            at.error(at.line_of("[tables."), message)
        })?;
        *target = table.retention.unwrap_or(*target);
    }
    Ok((raw, dead_letters))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_tables() {
        for (name, expected) in [
            ("a", true),
            ("a_1", true),
            ("1a", false),
            ("A", false),
            ("a.b", false),
            ("", false),
            (&*"a".repeat(64), false),
        ] {
            assert_eq!(is_name(name), expected, "{name}");
        }
    }

    #[test]
    fn windows_do_not_take_names_of_other_tables() {
        let preset = toml::from_str("preset = \"events\"").expect("valid");
        let mut declared = Declarations::default();
        let def = stream("a", preset, &mut declared).expect("a preset");
        declared.streams.insert("a".into(), def);
        let def = declared.windows["a_per_type"].clone();
        declared.windows.insert("w_versions".into(), def);
        for (window, expected) in [
            ("a", Some("a")),
            ("raw", Some("raw")),
            ("w", Some("w_versions")),
            ("v", None),
        ] {
            assert_eq!(clash_of_window(window, &declared).as_deref(), expected);
        }
    }
}
