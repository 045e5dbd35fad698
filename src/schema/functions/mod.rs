//! Functions that Weir's SQL adds to DataFusion's, or replaces, wherever SQL is planned. All of them
//! are deterministic.

mod extremes;
pub(crate) mod growth;
mod json;
mod times;

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::execution::FunctionRegistry;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{LogicalPlan, ScalarUDF};

use super::rules;
pub use growth::Limits;

/// Registers the functions in a session, with bounds on what a call may produce.
///
/// # Errors
///
/// DataFusion's, if one of its functions that is replaced does not exist.
pub fn register(state: &mut SessionState, limits: Limits) -> Result<()> {
    register_unbounded(state)?;
    growth::register(state, limits)
}

/// As [`register`], without bounds.
fn register_unbounded(state: &mut SessionState) -> Result<()> {
    json::register(state)?;
    times::register(state)?;
    extremes::register(state)?;
    rules::register(state)
}

/// Converts columns that no output format supports, such as the unions of `json_get`, to text.
pub(crate) fn as_displayable(plan: LogicalPlan) -> Result<LogicalPlan> {
    json::unions_as_text(plan)
}

/// The registered function of a name.
fn registered(state: &SessionState, name: &str) -> Result<Arc<ScalarUDF>> {
    FunctionRegistry::udf(state, name)
}

/// Functions on JSON text, whose library does not describe them: name, call, meaning. A path is any
/// number of names of members and indexes of items.
#[cfg(test)]
pub(crate) const JSON_FUNCTIONS: &[(&str, &str, &str)] = &[
    (
        "json_get",
        "json_get(json, path…)",
        "The value at the path, as text in results; cast it, or use a function of its type.",
    ),
    (
        "json_get_str",
        "json_get_str(json, path…)",
        "The string at the path; null for any other value.",
    ),
    (
        "json_get_int",
        "json_get_int(json, path…)",
        "The whole number at the path; null for any other value.",
    ),
    (
        "json_get_float",
        "json_get_float(json, path…)",
        "The number at the path; null for any other value.",
    ),
    (
        "json_get_bool",
        "json_get_bool(json, path…)",
        "The boolean at the path; null for any other value.",
    ),
    (
        "json_get_json",
        "json_get_json(json, path…)",
        "The value at the path as JSON text; `json -> path` is the same.",
    ),
    (
        "json_get_array",
        "json_get_array(json, path…)",
        "The items of the array at the path, each as JSON text.",
    ),
    (
        "json_as_text",
        "json_as_text(json, path…)",
        "The value at the path as text, a string without quotes; `json ->> path` is the same.",
    ),
    (
        "json_contains",
        "json_contains(json, path…)",
        "Whether there is a value at the path; `json ? path` is the same.",
    ),
    (
        "json_length",
        "json_length(json, path…)",
        "How many members or items the object or array at the path has.",
    ),
    (
        "json_object_keys",
        "json_object_keys(json, path…)",
        "The names of the members of the object at the path.",
    ),
    (
        "json_from_scalar",
        "json_from_scalar(value)",
        "A number, boolean or text as a JSON value.",
    ),
    (
        "json_union_to_text",
        "json_union_to_text(value)",
        "A value of `json_get` as JSON text.",
    ),
];
