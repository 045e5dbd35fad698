//! Functions whose result can be much larger than their arguments. The size of the result is
//! estimated from the sizes of the arguments before the call; above the bound, the call fails with
//! an error that names the function, and nothing is allocated: `repeat('x', 1000000000)`.
//!
//! In declarations the bound applies per row and is stored with them, so that a row gives the same
//! result in every batch.

mod classes;
mod concatenation;
mod lambdas;
pub mod sizes;

use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result};
use datafusion::config::ConfigOptions;
use datafusion::error::DataFusionError;
use datafusion::execution::FunctionRegistry;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::FunctionRewrite;
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Documentation, Expr, Operator, ReturnFieldArgs, ScalarFunctionArgs,
    ScalarUDF, ScalarUDFImpl, Signature,
};

use crate::schema::bounds::{Exceeded, scope};
use classes::Growth;
use sizes::Argument;

pub use crate::config::SqlBounds;

/// Bytes that one call may produce in a query: for a row, and for a batch.
const QUERY_ROW_BYTES: u64 = 16 << 20;
const QUERY_CALL_BYTES: u64 = 16 << 20;
/// Bytes that a call may produce while its query is planned: the result becomes a literal, of which
/// the plan holds many copies.
const QUERY_LITERAL_BYTES: u64 = 256 << 10;
/// Comparisons of one call: about a second.
const QUERY_PAIRS: u64 = 1 << 30;
/// Overhead of a value.
const OVERHEAD_BYTES: u64 = 64;

/// Which bounds a call is held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limits {
    /// Those of queries, the same for all.
    Query,
    /// Those stored with a configuration, so that a replay gives the same rows.
    Declared(SqlBounds),
}

/// Bounds every function of the registry that needs it, and those that the planner takes from
/// elsewhere.
pub fn register(state: &mut SessionState, limits: Limits) -> Result<()> {
    let functions: Vec<Arc<ScalarUDF>> = state.scalar_functions().values().cloned().collect();
    for function in functions {
        if let Some(bounded) = bounded(&function, limits) {
            state.register_udf(Arc::new(bounded))?;
        }
    }
    lambdas::register(state, limits)?;
    state.register_function_rewrite(Arc::new(BoundedCalls { limits }))
}

fn bounded(function: &Arc<ScalarUDF>, limits: Limits) -> Option<ScalarUDF> {
    if function.inner().is::<Bounded>() {
        return None;
    }
    match classes::growth(function.name()) {
        Some(Growth::Fixed | Growth::Within | Growth::Planned) => None,
        // A test ensures that the list is complete; an unlisted function counts as a large copy.
        growth => Some(ScalarUDF::from(Bounded {
            inner: function.clone(),
            growth: growth.unwrap_or(Growth::Times(24)),
            limits,
        })),
    }
}

/// Bounds `||`, and the calls that the planner generates from operators and brackets.
#[derive(Debug)]
struct BoundedCalls {
    limits: Limits,
}

impl FunctionRewrite for BoundedCalls {
    fn name(&self) -> &str {
        "bounded_functions"
    }

    fn rewrite(&self, expr: Expr, _: &DFSchema, _: &ConfigOptions) -> Result<Transformed<Expr>> {
        match expr {
            Expr::ScalarFunction(call) => match bounded(&call.func, self.limits) {
                Some(function) => {
                    let call = ScalarFunction {
                        func: Arc::new(function),
                        ..call
                    };
                    Ok(Transformed::yes(Expr::ScalarFunction(call)))
                }
                None => Ok(Transformed::no(Expr::ScalarFunction(call))),
            },
            Expr::BinaryExpr(BinaryExpr {
                left,
                op: Operator::StringConcat,
                right,
            }) => {
                let function = Arc::new(ScalarUDF::from(concatenation::Concatenation::new()));
                let function = bounded(&function, self.limits).map_or(function, Arc::new);
                Ok(Transformed::yes(function.call(vec![*left, *right])))
            }
            other => Ok(Transformed::no(other)),
        }
    }
}

/// A function that is called only if the estimated size of its result is within the bounds.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Bounded {
    inner: Arc<ScalarUDF>,
    growth: Growth,
    limits: Limits,
}

impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        self.inner.schema_name(args)
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn with_updated_config(&self, config: &ConfigOptions) -> Option<ScalarUDF> {
        let inner = self.inner.inner().with_updated_config(config)?;
        Some(ScalarUDF::from(Self {
            inner: Arc::new(inner),
            growth: self.growth,
            limits: self.limits,
        }))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(types)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let is_one = args
            .args
            .iter()
            .all(|value| matches!(value, ColumnarValue::Scalar(_)));
        // Scalars are computed once.
        let rows = if is_one { 1 } else { args.number_rows };
        let result_bytes = match self.limits {
            Limits::Query => self.check_query(&args.args, rows, args.number_rows)?,
            Limits::Declared(bounds) => self.check_declared(&args.args, rows, bounds)?,
        };
        scope::reserve(usize::try_from(result_bytes).unwrap_or(usize::MAX)).inspect_err(|_| {
            if args.number_rows > 1 {
                scope::request_fewer_rows();
            }
        })?;
        self.inner.inner().invoke_with_args(args)
    }
}

impl Bounded {
    /// Bytes of the result for `rows`, copied to `used` rows (more than `rows` for a scalar); an
    /// error above the bounds.
    fn check_query(&self, values: &[ColumnarValue], rows: usize, used: usize) -> Result<u64> {
        let arguments = values
            .iter()
            .map(Argument::from_value)
            .collect::<Result<Vec<_>>>()?;
        let (mut all, mut pairs) = (0_u64, 0_u64);
        for row in 0..rows {
            let bytes = estimated_bytes(self.growth, &arguments, values, row)?;
            if bytes > QUERY_ROW_BYTES {
                return Err(self.too_large(bytes, QUERY_ROW_BYTES, ""));
            }
            all = all.saturating_add(bytes);
            if self.growth == Growth::Pairs {
                pairs = pairs.saturating_add(compared(&arguments, row));
            }
        }
        if scope::is_planning() && all > QUERY_LITERAL_BYTES {
            return Err(self.too_large(all, QUERY_LITERAL_BYTES, ""));
        }
        let all = if rows < used {
            all.saturating_mul(used as u64)
        } else {
            all
        };
        if all > QUERY_CALL_BYTES || pairs > QUERY_PAIRS {
            if used > 1 {
                scope::request_fewer_rows();
            }
            return Err(if pairs > QUERY_PAIRS {
                let name = self.name();
                Exceeded(format!(
                    "`{name}` would compare {pairs} pairs; at most {QUERY_PAIRS} are compared"
                ))
                .into()
            } else {
                self.too_large(all, QUERY_CALL_BYTES, "")
            });
        }
        Ok(all)
    }

    /// Checks each row by itself.
    fn check_declared(
        &self,
        values: &[ColumnarValue],
        rows: usize,
        bounds: SqlBounds,
    ) -> Result<u64> {
        // Concatenation and the like never reach the bound.
        if matches!(self.growth, Growth::Times(times) if u64::from(times) <= bounds.times) {
            return Ok(0);
        }
        let arguments = values
            .iter()
            .map(Argument::from_value)
            .collect::<Result<Vec<_>>>()?;
        for row in 0..rows {
            let argument_bytes = arguments
                .iter()
                .map(|a| a.bytes.at(row))
                .fold(0, u64::saturating_add);
            let max_bytes = bounds
                .bytes
                .saturating_add(bounds.times.saturating_mul(argument_bytes));
            let bytes = estimated_bytes(self.growth, &arguments, values, row)?;
            if bytes > max_bytes {
                return Err(self.too_large(bytes, max_bytes, " for a row in a declaration"));
            }
            let compared = if self.growth == Growth::Pairs {
                compared(&arguments, row)
            } else {
                0
            };
            if compared > bounds.pairs {
                let (name, max_pairs) = (self.name(), bounds.pairs);
                let message = format!(
                    "`{name}` would compare {compared} pairs; at most {max_pairs} are compared for a row"
                );
                return Err(Exceeded(message).into());
            }
        }
        Ok(0)
    }

    fn too_large(&self, bytes: u64, max_bytes: u64, scope: &str) -> DataFusionError {
        let name = self.name();
        Exceeded(format!(
            "`{name}` could produce {bytes} bytes; one call may produce at most {max_bytes}{scope}"
        ))
        .into()
    }
}

/// Pairs that a function compares.
fn compared(arguments: &[Argument], row: usize) -> u64 {
    arguments
        .iter()
        .take(2)
        .map(|a| a.count.at(row))
        .fold(1, u64::saturating_mul)
}

/// An upper bound on the bytes that a function produces for a row.
fn estimated_bytes(
    growth: Growth,
    arguments: &[Argument],
    values: &[ColumnarValue],
    row: usize,
) -> Result<u64> {
    let bytes = |n: usize| arguments.get(n).map_or(0, |a| a.bytes.at(row));
    let count = |n: usize| arguments.get(n).map_or(0, |a| a.count.at(row));
    let all = || (0..arguments.len()).map(bytes).fold(0, u64::saturating_add);
    let items = || (0..arguments.len()).map(count).max().unwrap_or(0);
    let bytes_of_result = match growth {
        Growth::Fixed => 0,
        Growth::Within | Growth::Planned | Growth::Pairs => all(),
        Growth::Times(times) => all().saturating_mul(u64::from(times)),
        Growth::Repeat => bytes(0).saturating_mul(count(1)),
        // Characters of the fill text have up to four bytes each.
        Growth::Pad => bytes(0).saturating_add(count(1).saturating_mul(bytes(2).clamp(1, 4))),
        Growth::Replace if bytes(1) == 0 => (bytes(0) + 1)
            .saturating_mul(bytes(2).saturating_add(1))
            .saturating_add(bytes(2)),
        Growth::Replace => (bytes(0) / bytes(1))
            .saturating_mul(bytes(2))
            .saturating_add(bytes(0)),
        Growth::RegexpReplace => regexp_replace_bytes(values, row, bytes(0), bytes(2))?,
        Growth::ConcatWith => {
            let is_list = |n: usize| {
                values
                    .get(n)
                    .is_some_and(|value| value.data_type().is_nested())
            };
            let texts = (1..arguments.len()).map(|n| if is_list(n) { count(n) } else { 1 });
            all().saturating_add(texts.fold(0, u64::saturating_add).saturating_mul(bytes(0)))
        }
        Growth::ArrayRepeat => count(1).saturating_mul(bytes(0).saturating_add(OVERHEAD_BYTES / 4)),
        Growth::ArrayResize => count(1)
            .saturating_mul(bytes(2).saturating_add(OVERHEAD_BYTES / 2))
            .saturating_add(bytes(0)),
        Growth::Range => range_items(values, row)?.saturating_mul(8),
        Growth::ArrayReplace => {
            bytes(0).saturating_add(count(0).saturating_mul(bytes(2).saturating_add(8)))
        }
        Growth::ArrayToString => {
            let separator = bytes(1)
                .saturating_add(bytes(2))
                .saturating_add(OVERHEAD_BYTES / 2);
            bytes(0)
                .saturating_mul(8)
                .saturating_add((count(0) + bytes(0) / 16).saturating_mul(separator))
        }
        Growth::ArraysZip => all().saturating_add(
            items()
                .saturating_mul(arguments.len() as u64)
                .saturating_mul(OVERHEAD_BYTES / 2),
        ),
        // A letter of the format expands to at most a whole time.
        Growth::Format => bytes(1).saturating_mul(32),
    };
    Ok(bytes_of_result.saturating_add(OVERHEAD_BYTES))
}

/// A replacement may reference groups, each at most the whole text; without `g` only one match is
/// replaced.
fn regexp_replace_bytes(
    values: &[ColumnarValue],
    row: usize,
    text: u64,
    replacement: u64,
) -> Result<u64> {
    let is_global = match values.get(3) {
        None => false,
        Some(ColumnarValue::Scalar(flags)) => flags
            .try_as_str()
            .flatten()
            .is_some_and(|flags| flags.contains('g')),
        Some(ColumnarValue::Array(flags)) => {
            let flags = datafusion::scalar::ScalarValue::try_from_array(flags, row)?;
            flags
                .try_as_str()
                .flatten()
                .is_some_and(|flags| flags.contains('g'))
        }
    };
    let matches = if is_global { text + 1 } else { 1 };
    let groups = (replacement / 2).saturating_mul(text);
    Ok(text
        .saturating_add(matches.saturating_mul(replacement))
        .saturating_add(groups))
}

/// Items of `range(start, stop, step)`.
fn range_items(values: &[ColumnarValue], row: usize) -> Result<u64> {
    let at = |n: usize| {
        values
            .get(n)
            .map_or(Ok(None), |value| sizes::signed(value, row))
    };
    let (start, stop) = match values.len() {
        1 => (Some(0), at(0)?),
        _ => (at(0)?, at(1)?),
    };
    let step = if values.len() > 2 { at(2)? } else { Some(1) };
    let (Some(start), Some(stop), Some(step)) = (start, stop, step) else {
        return Ok(0);
    };
    if step == 0 {
        return Ok(0);
    }
    Ok(u64::try_from((stop - start).unsigned_abs() / step.unsigned_abs() + 1).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
