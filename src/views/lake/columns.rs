//! A table's columns and partitions as Delta has them: conversion, comparison, changes.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use deltalake::kernel::engine::arrow_conversion::{TryIntoArrow, TryIntoKernel};
use deltalake::kernel::transaction::{CommitBuilder, CommitProperties, TableReference};
use deltalake::kernel::{Action, Metadata, MetadataExt, StructType};
use deltalake::protocol::DeltaOperation;
use deltalake::{DeltaTable, DeltaTableError};

use super::entities::levels::{self, Level};
use super::error::InView;
use super::{LakeError, TableSpec};
use crate::schema::{Layout, PlanError, names};
use crate::views::ViewError;

/// A table's columns as Delta has them; an error where some reader could not read them.
pub(super) fn delta_columns(schema: &SchemaRef) -> Result<StructType, PlanError> {
    names::check_readable(schema)?;
    parquet::arrow::ArrowSchemaConverter::new()
        .convert(schema)
        .map_err(|e| e.to_string())?;
    schema
        .as_ref()
        .try_into_kernel()
        .map_err(|e: arrow::error::ArrowError| e.to_string().into())
}

impl TableSpec {
    /// `schema` followed by the partition columns.
    pub fn full_schema(&self) -> SchemaRef {
        let fields = self.schema.fields().iter().map(|f| f.as_ref().clone());
        Arc::new(Schema::new(
            fields.chain(self.layout.fields()).collect::<Vec<_>>(),
        ))
    }

    /// An error for columns with which the table could not be created or read.
    pub fn check(&self) -> Result<(), PlanError> {
        delta_columns(&self.full_schema()).map(drop)
    }
}

/// A table's layout, by its partition columns; `None` where they are not Weir's.
pub(super) fn layout_of(table: &DeltaTable) -> Result<Option<Layout>, DeltaTableError> {
    let found = table.snapshot()?.metadata().partition_columns();
    let matches = |layout: &Layout| layout.fields().iter().map(|f| f.name()).eq(found.iter());
    Ok([Layout::Hours, Layout::Days, Layout::Buckets]
        .into_iter()
        .find(matches))
}

/// A table's metadata with the columns and layout of a new specification, and with new levels, if
/// given.
pub(super) fn metadata_of(
    before: &Metadata,
    new_spec: Option<&TableSpec>,
    levels: Option<&[Level]>,
) -> Result<Metadata, DeltaTableError> {
    let mut metadata = before.clone();
    if let Some(spec) = new_spec {
        let columns = delta_columns(&spec.full_schema())
            .map_err(|e| DeltaTableError::generic(e.to_string()))?;
        let mut value = serde_json::to_value(metadata.with_schema(&columns)?)?;
        value["partitionColumns"] = spec
            .layout
            .fields()
            .iter()
            .map(|f| f.name().as_str())
            .collect();
        metadata = serde_json::from_value(value)?;
    }
    match levels {
        Some(levels) => {
            Ok(metadata.add_config_key(levels::KEY.to_owned(), levels::to_text(levels))?)
        }
        None => Ok(metadata),
    }
}

/// Why columns cannot be added to a table: one exists with another type, or with a name that
/// differs only by case.
pub(super) fn column_conflict(existing: &Schema, wanted: &Schema) -> Option<String> {
    wanted.fields().iter().find_map(|field| {
        let found = existing.fields().iter().find(|f| names::is_same_ignoring_case(f.name(), field.name()))?;
        if found.name() != field.name() {
            return Some(format!(
                "the table already has a column `{}`, and readers of Delta tables do not distinguish `{}` from it; write `as \"{}\"`, or rename the column",
                found.name(),
                field.name(),
                found.name()
            ));
        }
        (!found.data_type().equals_datatype(field.data_type())).then(|| {
            format!(
                "the column `{}` is {} in the table and {} in the configuration; give the changed column another name",
                field.name(),
                found.data_type(),
                field.data_type()
            )
        })
    })
}

/// The columns of a table.
pub(super) fn columns_of(table: &DeltaTable) -> Result<Schema, DeltaTableError> {
    Ok(table.snapshot()?.schema().as_ref().try_into_arrow()?)
}

/// Adds the columns that the table lacks; an error where the type of one changed.
pub(super) async fn add_columns(
    table: &mut DeltaTable,
    spec: &TableSpec,
    wanted: &SchemaRef,
) -> Result<(), ViewError> {
    let view = &spec.name;
    let state = table.snapshot().in_view(view)?;
    let found = columns_of(table).in_view(view)?;
    if let Some(reason) = column_conflict(&found, wanted) {
        return Err(ViewError::Damaged {
            path: spec.root.clone(),
            reason,
        });
    }
    let is_new = |f: &&Arc<Field>| found.field_with_name(f.name()).is_err();
    let new: Vec<_> = wanted
        .fields()
        .iter()
        .filter(is_new)
        .map(|f| f.as_ref().clone())
        .collect();
    if new.is_empty() {
        return Ok(());
    }
    let columns: StructType = (&Schema::new(new)).try_into_kernel().in_view(view)?;
    let fields: Vec<_> = columns.fields().cloned().collect();
    let schema = state
        .schema()
        .add(fields.clone())
        .map_err(LakeError::other)
        .in_view(view)?;
    let metadata = state
        .metadata()
        .clone()
        .with_schema(&schema)
        .map_err(LakeError::other)
        .in_view(view)?;
    let properties = CommitProperties::default()
        .with_create_checkpoint(false)
        .with_cleanup_expired_logs(Some(false));
    let done = CommitBuilder::from(properties)
        .with_actions(vec![Action::Metadata(metadata)])
        .build(
            Some(state as &dyn TableReference),
            table.log_store(),
            DeltaOperation::AddColumn { fields },
        )
        .await
        .in_view(view)?;
    table.state = Some(done.snapshot);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::DataType;

    #[test]
    fn columns_that_conflict_with_the_table_are_reported() {
        let schema = |fields: &[(&str, DataType)]| {
            Schema::new(
                fields
                    .iter()
                    .map(|(n, ty)| Field::new(*n, ty.clone(), true))
                    .collect::<Vec<_>>(),
            )
        };
        let existing = schema(&[("userId", DataType::Utf8), ("v", DataType::Int32)]);
        let conflict = |fields: &[(&str, DataType)]| {
            column_conflict(&existing, &schema(fields)).unwrap_or_default()
        };
        assert_eq!(
            conflict(&[("v", DataType::Int32), ("w", DataType::Int32)]),
            ""
        );
        assert!(conflict(&[("userid", DataType::Utf8)]).contains("`as \"userId\"`"));
        assert!(conflict(&[("v", DataType::Int64)]).contains("Int32 in the table and Int64"));
    }
}
