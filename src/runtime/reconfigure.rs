//! Switching a folder to another configuration. No frame is applied under two configurations:
//! everything is brought to the log's end under the old one, then a frame that names the new one is
//! appended.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;

use super::context::{FolderContext, compile_stored};
use super::rebuild::{self, ViewBuild};
use super::{RuntimeError, startup, trial, views};
use crate::clock::Clock;
use crate::config::{Config, ConfigError, Declarations};
use crate::ingest;
use crate::operators::checkpoints;
use crate::schema::{Catalog, Stream, names, versions_of};
use crate::wal::{Frame, FrameAttributes, Header, Kind, Records, Wal};

/// What the order of the steps depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    /// The log ends under some configuration: it is not empty.
    has_stored: bool,
    /// It is another one than the one to start under.
    is_changed: bool,
    /// Rebuilt views wait to be installed under the one to start under.
    has_builds: bool,
}

/// One step of a switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Refuse what existing tables and indexes cannot become, unless they are replaced.
    CheckCompatible,
    /// Open every table for reading: refuse what would fail after the frame was appended.
    TryOpening,
    /// Bring every view, and a snapshot, to the log's end under the old configuration.
    Drain,
    /// Bring the rebuilt views to the log's end; from here on they are installed.
    CompleteBuilds,
    AppendConfiguration,
    InstallBuilds,
}

/// The steps from what was found to a folder under this configuration. Pure.
fn plan(found: Found) -> Vec<Step> {
    let Found {
        has_stored,
        is_changed,
        has_builds,
    } = found;
    if !is_changed && !has_builds {
        return Vec::new();
    }
    [
        (Step::CheckCompatible, has_stored),
        (Step::TryOpening, is_changed),
        (Step::Drain, has_stored),
        (Step::CompleteBuilds, has_builds),
        // A build that could not be completed replaces nothing.
        (Step::CheckCompatible, has_stored && has_builds),
        (Step::AppendConfiguration, is_changed),
        (Step::InstallBuilds, has_builds),
    ]
    .into_iter()
    .filter_map(|(step, is_due)| is_due.then_some(step))
    .collect()
}

/// Switches to the configuration if the log ends under another, and installs the views that were
/// rebuilt for it. True: the log ends with the configuration's frame, and nothing has applied it.
pub(super) fn switch(
    context: &FolderContext,
    catalog: &Arc<Catalog>,
    mut wal: Wal,
) -> Result<(Wal, bool), RuntimeError> {
    let stored = context.declarations_at(wal.synced_lsn())?;
    let builds = rebuild::ready_builds(context, catalog, context.log_of(&wal))?;
    let found = Found {
        has_stored: stored.is_some(),
        is_changed: stored.as_ref() != Some(&context.config.declared),
        has_builds: !builds.is_empty(),
    };
    let steps = plan(found);
    if steps.is_empty() {
        return Ok((wal, false));
    }
    let before = stored.as_ref().map(compile_stored).transpose()?;
    let mut switch = Switch {
        context,
        catalog,
        stored,
        before,
        replaced: rebuild::views_of(&builds),
        builds,
    };
    for step in steps {
        wal = switch.run(step, wal)?;
    }
    Ok((wal, found.is_changed && switch.replaced.is_empty()))
}

/// A switch under way.
struct Switch<'a> {
    context: &'a FolderContext,
    catalog: &'a Arc<Catalog>,
    stored: Option<Declarations>,
    /// The stored declarations, compiled.
    before: Option<Arc<Catalog>>,
    builds: Vec<ViewBuild>,
    /// The views that rebuilt ones replace.
    replaced: Vec<String>,
}

impl Switch<'_> {
    fn run(&mut self, step: Step, mut wal: Wal) -> Result<Wal, RuntimeError> {
        let Self {
            context, catalog, ..
        } = *self;
        match step {
            Step::CheckCompatible => {
                if let Some(before) = &self.before {
                    check_compatible(&context.config, before, catalog, &self.replaced)?;
                }
            }
            Step::TryOpening => {
                let log = context.log_of(&wal);
                trial::refuse_what_cannot_open(context, catalog, log, &self.replaced)?;
            }
            Step::Drain => {
                if let Some(before) = &self.before {
                    wal = startup::drain(context, before, wal)?;
                }
            }
            Step::CompleteBuilds => {
                let builds = std::mem::take(&mut self.builds);
                self.replaced = rebuild::complete_builds(builds, wal.synced_lsn())?;
            }
            Step::AppendConfiguration => {
                append_configuration(catalog, &mut wal, &*context.clock)?;
                self.report_change();
            }
            Step::InstallBuilds => {
                if !self.replaced.is_empty() {
                    rebuild::install(context)?;
                    wal = rebuild::complete_install(context, wal)?;
                }
            }
        }
        Ok(wal)
    }

    fn report_change(&self) {
        tracing::info!("the configuration changed; it applies from here on");
        let Some(stored) = &self.stored else { return };
        let (old, new) = (&stored.zone_data, &self.context.config.declared.zone_data);
        if old != new {
            tracing::warn!(
                old,
                new,
                "this version of weir has other time zone data, which counts as a changed configuration: windows with a zone begin again under it"
            );
        }
    }
}

fn append_configuration(
    catalog: &Catalog,
    wal: &mut Wal,
    clock: &dyn Clock,
) -> Result<(), RuntimeError> {
    let header = Header {
        received_at: clock.now(),
        configuration: catalog.id,
        ..Header::new(Kind::Configuration, "")
    };
    let payload = Records::single(catalog.to_json().as_bytes());
    let mut frame = Frame::data(header, &payload, FrameAttributes::default())
        .map_err(|e| RuntimeError::Failed(e.to_string()))?;
    Ok(ingest::append_before_start(wal, &mut frame)?)
}

/// Refuses changes that existing tables and indexes cannot take. Views that are `replaced` by
/// rebuilt ones may change in any way.
fn check_compatible(
    config: &Config,
    before: &Catalog,
    after: &Catalog,
    replaced: &[String],
) -> Result<(), RuntimeError> {
    let is_replaced = |view: &str| replaced.iter().any(|v| v == view);
    for (name, new) in &after.streams {
        if let Some(old) = before.streams.get(name) {
            check_stream(config, old, new, &is_replaced)?;
        }
    }
    for window in &after.windows {
        let name = &window.name;
        let Some(old) = before.window(name) else {
            continue;
        };
        if let Some(changed) = changed_type(&old.schema, &window.schema, name)
            .filter(|_| !is_replaced(&views::of_table(&versions_of(name))))
        {
            return Err(config
                .window_error(name, format!("window `{name}`: {changed}"))
                .into());
        }
    }
    for entity in &after.entities {
        let name = &entity.name;
        let old = before.entities.iter().find(|e| e.name == *name);
        let Some(old) = old.filter(|_| !is_replaced(&views::of_table(name))) else {
            continue;
        };
        let is_same_key = old.def.key == entity.def.key && old.def.version == entity.def.version;
        let message = if is_same_key {
            changed_type(&old.schema, &entity.schema, name)
        } else {
            Some("`key` or `version` has changed; `weir rebuild` recreates the table, or declare the changed one under another name".to_owned())
        };
        if let Some(message) = message {
            return Err(config
                .table_error(name, format!("table `{name}`: {message}"))
                .into());
        }
    }
    Ok(())
}

fn check_stream(
    config: &Config,
    old: &Stream,
    new: &Stream,
    is_replaced: &dyn Fn(&str) -> bool,
) -> Result<(), ConfigError> {
    let name = &new.name;
    if let Some(changed) = changed_type(&old.table_schema, &new.table_schema, name)
        .filter(|_| !is_replaced(&views::of_table(name)))
    {
        return Err(config.stream_error(name, "select", format!("stream `{name}`: {changed}")));
    }
    let (old, new) = (&old.def, &new.def);
    for (key, what, view, is_same) in [
        (
            "search",
            "search",
            checkpoints::search(name),
            old.search.is_none() || old.search == new.search,
        ),
        (
            "places",
            "places",
            checkpoints::places(name),
            old.places.is_none() || old.places == new.places,
        ),
        (
            "count",
            "counts",
            checkpoints::counts(name),
            old.count.is_none() || old.count == new.count,
        ),
    ] {
        if !is_same && !is_replaced(&view) {
            let message = format!(
                "stream `{name}`: `{key}` has changed; `weir rebuild {what} --stream {name}` recreates it, or declare the changed stream under another name"
            );
            return Err(config.stream_error(name, key, message));
        }
    }
    Ok(())
}

/// Why a column cannot stay in its table: another type, or the same name in another case.
fn changed_type(before: &SchemaRef, after: &SchemaRef, table: &str) -> Option<String> {
    after.fields().iter().find_map(|field| {
        let old = before
            .fields()
            .iter()
            .find(|f| names::is_same_ignoring_case(f.name(), field.name()))?;
        if old.name() != field.name() {
            return Some(format!(
                "the column `{}` is `{}` in the table, and readers of Delta tables do not distinguish them; write `as \"{}\"`, `weir rebuild {table}` recreates the table, or give the column another name",
                field.name(),
                old.name(),
                old.name()
            ));
        }
        (old.data_type() != field.data_type()).then(|| {
            format!(
                "the column `{}` is {} in the table and would be {}; `weir rebuild {table}` recreates the table, or give the changed column another name",
                field.name(),
                old.data_type(),
                field.data_type()
            )
        })
    })
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, Schema};

    use super::Step::{
        AppendConfiguration, CheckCompatible, CompleteBuilds, Drain, InstallBuilds, TryOpening,
    };
    use super::*;

    #[test]
    fn the_old_configuration_is_drained_before_the_new_one_is_appended() {
        let found = |has_stored, is_changed, has_builds| Found {
            has_stored,
            is_changed,
            has_builds,
        };
        for (found, steps) in [
            (found(true, false, false), vec![]),
            // An empty log.
            (
                found(false, true, false),
                vec![TryOpening, AppendConfiguration],
            ),
            (
                found(true, true, false),
                vec![CheckCompatible, TryOpening, Drain, AppendConfiguration],
            ),
            // Only rebuilt views: they are installed at the end of a drained log.
            (
                found(true, false, true),
                vec![
                    CheckCompatible,
                    Drain,
                    CompleteBuilds,
                    CheckCompatible,
                    InstallBuilds,
                ],
            ),
            (
                found(true, true, true),
                vec![
                    CheckCompatible,
                    TryOpening,
                    Drain,
                    CompleteBuilds,
                    CheckCompatible,
                    AppendConfiguration,
                    InstallBuilds,
                ],
            ),
        ] {
            assert_eq!(plan(found), steps, "{found:?}");
        }
    }

    #[test]
    fn a_column_keeps_its_type_and_the_case_of_its_name() {
        let schema = |name: &str, ty: DataType| -> SchemaRef {
            Arc::new(Schema::new(vec![Field::new(name, ty, true)]))
        };
        let before = schema("a", DataType::Int64);
        let changed = |after: &SchemaRef| changed_type(&before, after, "t");
        assert_eq!(changed(&schema("a", DataType::Int64)), None);
        assert_eq!(changed(&schema("b", DataType::Utf8)), None);
        for (after, message) in [
            (schema("a", DataType::Utf8), "is Int64 in the table"),
            (schema("A", DataType::Int64), "write `as \"a\"`"),
        ] {
            let found = changed(&after).expect("refused");
            assert!(found.contains(message), "{found}");
        }
    }
}
