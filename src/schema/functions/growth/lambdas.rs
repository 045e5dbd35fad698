//! Functions that take lambdas: a lambda is evaluated at once for the items of all lists of a batch,
//! with the captured columns repeated for each item, so the number of items is bounded.

use std::any::Any;
use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::Result;
use datafusion::execution::FunctionRegistry;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{
    ColumnarValue, Documentation, Expr, HigherOrderFunctionArgs, HigherOrderReturnFieldArgs,
    HigherOrderSignature, HigherOrderUDF, HigherOrderUDFImpl, LambdaParametersProgress,
    ValueOrLambda,
};

use super::Limits;
use super::sizes::Argument;
use crate::schema::bounds::{Exceeded, scope};

/// Items of all lists of a batch in a query.
const QUERY_ITEMS: u64 = 1 << 18;
/// Bytes of a query's literals, repeated for each item.
const QUERY_LITERAL_BYTES: u64 = 64 << 20;

/// Bounds every registered function that takes a lambda.
pub fn register(state: &mut SessionState, limits: Limits) -> Result<()> {
    let functions: Vec<Arc<HigherOrderUDF>> =
        state.higher_order_functions().values().cloned().collect();
    for inner in functions {
        if !is_bounded(&inner) {
            state.register_higher_order_function(Arc::new(HigherOrderUDF::new_from_impl(
                Bounded { inner, limits },
            )))?;
        }
    }
    Ok(())
}

/// Whether [`register`] has replaced it.
pub fn is_bounded(function: &HigherOrderUDF) -> bool {
    (function.inner().as_ref() as &dyn Any).is::<Bounded>()
}

/// A function that first counts the items that its lambda would be evaluated for.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Bounded {
    inner: Arc<HigherOrderUDF>,
    limits: Limits,
}

impl HigherOrderUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        self.inner.inner().schema_name(args)
    }

    fn signature(&self) -> &HigherOrderSignature {
        self.inner.signature()
    }

    fn lambda_parameters(
        &self,
        step: usize,
        fields: &[ValueOrLambda<FieldRef, Option<FieldRef>>],
    ) -> Result<LambdaParametersProgress> {
        self.inner.inner().lambda_parameters(step, fields)
    }

    fn coerce_values_for_lambdas(
        &self,
        fields: &[ValueOrLambda<DataType, DataType>],
    ) -> Result<Option<Vec<DataType>>> {
        self.inner.inner().coerce_values_for_lambdas(fields)
    }

    fn return_field_from_args(&self, args: HigherOrderReturnFieldArgs<'_>) -> Result<FieldRef> {
        self.inner.inner().return_field_from_args(args)
    }

    fn clear_null_values(&self) -> bool {
        self.inner.inner().clear_null_values()
    }

    fn short_circuits(&self) -> bool {
        self.inner.inner().short_circuits()
    }

    fn coerce_value_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.inner().coerce_value_types(types)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.inner().documentation()
    }

    fn invoke_with_args(&self, args: HigherOrderFunctionArgs) -> Result<ColumnarValue> {
        scope::check()?;
        let rows = args.number_rows;
        let mut items = vec![0_u64; rows];
        for value in &args.args {
            let ValueOrLambda::Value(value) = value else {
                continue;
            };
            let lists = Argument::from_value(value)?.count;
            items
                .iter_mut()
                .enumerate()
                .for_each(|(row, items)| *items = items.saturating_add(lists.at(row)));
        }
        let name = self.name();
        match self.limits {
            Limits::Declared(bounds) => {
                if let Some(longest) = items.iter().max().filter(|items| **items > bounds.items) {
                    return Err(Exceeded(format!(
                        "`{name}` is called with a list of {longest} items; at most {} are allowed in a row",
                        bounds.items
                    ))
                    .into());
                }
            }
            Limits::Query => {
                let all = items.iter().copied().fold(0, u64::saturating_add);
                let literals = all.saturating_mul(scope::literal_bytes() as u64);
                if all > QUERY_ITEMS || literals > QUERY_LITERAL_BYTES.max(16 * QUERY_ITEMS) {
                    if rows > 1 {
                        scope::request_fewer_rows();
                    }
                    return Err(Exceeded(format!(
                        "`{name}` is called with {all} items at once; at most {QUERY_ITEMS} are allowed"
                    ))
                    .into());
                }
            }
        }
        self.inner.inner().invoke_with_args(args)
    }
}
