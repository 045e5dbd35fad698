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
