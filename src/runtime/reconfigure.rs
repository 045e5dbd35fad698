//! What switching a folder to another configuration takes: which changes existing tables and
//! indexes allow, and the frame that names the new one. `startup` has the order of the steps.

use arrow::datatypes::SchemaRef;

use super::RuntimeError;
use crate::clock::Clock;
use crate::config::{Config, ConfigError, Declarations};
use crate::ids::{TableId, ViewId};
use crate::ingest;
use crate::schema::{Catalog, Stream, names};
use crate::wal::{Frame, FrameAttributes, Header, Kind, Records, Wal};

/// Reports that another configuration applies from the log's end on, instead of `stored`; a new
/// folder has none.
pub(super) fn report_change(stored: Option<&Declarations>, declared: &Declarations) {
    let Some(stored) = stored else { return };
    tracing::info!("the configuration changed; it applies from here on");
    let (old, new) = (&stored.zone_data, &declared.zone_data);
    if old != new {
        tracing::warn!(
            old,
            new,
            "this version of weir has other time zone data, which counts as a changed configuration: windows with a zone begin again under it"
        );
    }
}

/// Appends and syncs the frame from which on the catalog's configuration applies.
pub(super) fn append_configuration(
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
pub(super) fn check_compatible(
    config: &Config,
    before: &Catalog,
    after: &Catalog,
    replaced: &[ViewId],
) -> Result<(), RuntimeError> {
    let is_replaced = |view: &ViewId| replaced.contains(view);
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
            .filter(|_| !is_replaced(&TableId::window(name).view()))
        {
            return Err(config
                .window_error(name, format!("window `{name}`: {changed}"))
                .into());
        }
    }
    for entity in &after.entities {
        let name = &entity.name;
        let old = before.entities.iter().find(|e| e.name == *name);
        let Some(old) = old.filter(|_| !is_replaced(&TableId::entity(name).view())) else {
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
    is_replaced: &dyn Fn(&ViewId) -> bool,
) -> Result<(), ConfigError> {
    let name = &new.name;
    if let Some(changed) = changed_type(&old.table_schema, &new.table_schema, name)
        .filter(|_| !is_replaced(&TableId::stream(name).view()))
    {
        return Err(config.stream_error(name, "select", format!("stream `{name}`: {changed}")));
    }
    let (old, new) = (&old.def, &new.def);
    for (key, what, view, is_same) in [
        (
            "search",
            "search",
            ViewId::search(name),
            old.search.is_none() || old.search == new.search,
        ),
        (
            "places",
            "places",
            ViewId::places(name),
            old.places.is_none() || old.places == new.places,
        ),
        (
            "count",
            "counts",
            ViewId::counts(name),
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
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

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
