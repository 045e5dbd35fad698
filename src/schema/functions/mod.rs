//! Functions that Weir's SQL has beside DataFusion's own, or instead of them, wherever SQL is
//! planned. All of them are the same at every call.

mod extremes;
pub mod growth;
mod json;
mod times;

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::execution::FunctionRegistry;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{LogicalPlan, ScalarUDF};

use super::rules;
pub use growth::Limits;

/// Adds them to a state that queries are planned under.
pub fn register(state: &mut SessionState, limits: Limits) -> Result<()> {
    register_unbounded(state)?;
    growth::register(state, limits)
}

/// As [`register`], without a bound on what a call makes.
fn register_unbounded(state: &mut SessionState) -> Result<()> {
    json::register(state)?;
    times::register(state)?;
    extremes::register(state)?;
    rules::register(state)
}

/// A plan whose columns can be shown: what JSON functions give in many types becomes text.
pub fn showable(plan: LogicalPlan) -> Result<LogicalPlan> {
    json::unions_as_text(plan)
}

/// As [`FunctionRegistry::udf`], by what it is known as here.
fn known(state: &SessionState, name: &str) -> Result<Arc<ScalarUDF>> {
    FunctionRegistry::udf(state, name)
}
