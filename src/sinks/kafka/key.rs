//! The key of a message: an expression of the configuration, or what identifies the row.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Int64Type, SchemaRef};

use crate::config::SqlBounds;
use crate::query::encode;
use crate::schema::PlanError;
use crate::schema::select::{self, Planned};
use crate::sinks::SinkError;

/// The table's name in the expression, which nothing else refers to.
const ROWS: &str = "rows";

/// Makes the keys of rows.
pub enum MessageKey {
    /// The value of an expression, as text.
    Expression(Box<Planned>),
    /// These columns: the value of one, a JSON object of several.
    Columns(Vec<usize>),
}

impl MessageKey {
    /// Plans an expression over the columns of a table; without one, the columns that are its own
    /// key.
    pub fn plan(
        expression: Option<&str>,
        schema: &SchemaRef,
        own: &[usize],
        bounds: SqlBounds,
    ) -> Result<Self, PlanError> {
        let Some(expression) = expression else {
            return Ok(Self::Columns(own.to_vec()));
        };
        let sql = format!("select cast(({expression}) as varchar) as key from {ROWS}");
        let planned = select::plan(ROWS, schema, schema, &sql, bounds)?;
        Ok(Self::Expression(Box::new(planned)))
    }

    /// The keys of rows; null where a row has none.
    pub fn keys(&self, rows: &RecordBatch) -> Result<Vec<Option<String>>, SinkError> {
        let failed = |error: &dyn std::fmt::Display| SinkError::Halted(format!("key: {error}"));
        match self {
            Self::Expression(planned) => {
                let keys = planned.evaluate(rows).map_err(|e| failed(&e))?.rows;
                Ok(texts(keys.column(0)))
            }
            Self::Columns(columns) => {
                let key = rows.project(columns).map_err(|e| failed(&e))?;
                // What most tables have, without a detour by JSON.
                if let [column] = key.columns() {
                    match column.data_type() {
                        DataType::Utf8 => return Ok(texts(column)),
                        DataType::Int64 => return Ok(numbers(column)),
                        _ => {}
                    }
                }
                let is_one = columns.len() == 1;
                let mut keys = Vec::with_capacity(rows.num_rows());
                encode::each_row(&key.schema(), std::slice::from_ref(&key), |row| {
                    let object = String::from_utf8_lossy(row);
                    keys.push(if is_one {
                        only_value(row)
                    } else {
                        Some(object.into_owned())
                    });
                    Ok(())
                })
                .map_err(|e| failed(&e))?;
                Ok(keys)
            }
        }
    }
}

fn texts(column: &ArrayRef) -> Vec<Option<String>> {
    let texts = column.as_any().downcast_ref::<StringArray>();
    let texts = texts.into_iter().flatten();
    texts.map(|text| text.map(str::to_owned)).collect()
}

fn numbers(column: &ArrayRef) -> Vec<Option<String>> {
    let numbers = column.as_primitive::<Int64Type>();
    numbers
        .iter()
        .map(|number| number.map(|number| number.to_string()))
        .collect()
}

/// The value of an object with one member; none if it is null.
fn only_value(object: &[u8]) -> Option<String> {
    let members: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(object).unwrap_or_default();
    let value = members.into_iter().next().map(|(_, value)| value);
    value
        .filter(|value| !value.is_null())
        .map(|value| match value {
            serde_json::Value::String(text) => text,
            value => value.to_string(),
        })
}
