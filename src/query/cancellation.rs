//! Plans that can be cancelled within long loops: join conditions and aggregates of windows check
//! whether the query has ended.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::Result;
use datafusion::common::tree_node::Transformed;
use datafusion::logical_expr::expr::{WindowFunction, WindowFunctionDefinition};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, ColumnarValue, Expr, LogicalPlan, ReversedUDAF,
    ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, SetMonotonicity, Signature, Volatility,
};
use datafusion::scalar::ScalarValue;

use crate::schema::bounds::scope;

/// Wraps every join condition and every window aggregate of an optimized plan in a check.
pub fn cancellable(plan: LogicalPlan) -> Result<LogicalPlan> {
    let wrapped = plan.transform_up_with_subqueries(|node| match node {
        LogicalPlan::Join(mut join) => {
            let Some(filter) = join.filter.take() else {
                return Ok(Transformed::no(LogicalPlan::Join(join)));
            };
            join.filter = Some(ScalarUDF::from(CheckedCondition::new()).call(vec![filter]));
            Ok(Transformed::yes(LogicalPlan::Join(join)))
        }
        LogicalPlan::Window(mut window) => {
            for expression in &mut window.window_expr {
                wrap_aggregate(expression);
            }
            Ok(Transformed::yes(LogicalPlan::Window(window)))
        }
        other => Ok(Transformed::no(other)),
    })?;
    Ok(wrapped.data)
}

fn wrap_aggregate(expression: &mut Expr) {
    match expression {
        Expr::Alias(alias) => wrap_aggregate(&mut alias.expr),
        Expr::WindowFunction(call) => {
            let WindowFunction { fun, .. } = call.as_mut();
            if let WindowFunctionDefinition::AggregateUDF(inner) = fun {
                *fun = WindowFunctionDefinition::AggregateUDF(Arc::new(AggregateUDF::from(
                    CheckedAggregate {
                        inner: inner.clone(),
                    },
                )));
            }
        }
        _ => {}
    }
}

/// Returns its argument, a condition, or an error if the query has ended.
#[derive(Debug, PartialEq, Eq, Hash)]
struct CheckedCondition {
    signature: Signature,
}

impl CheckedCondition {
    fn new() -> Self {
        Self {
            signature: Signature::any(1, Volatility::Immutable),
        }
    }
}

impl ScalarUDFImpl for CheckedCondition {
    fn name(&self) -> &str {
        "while_running"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        scope::check()?;
        Ok(args
            .args
            .pop()
            .unwrap_or(ColumnarValue::Scalar(ScalarValue::Boolean(None))))
    }
}

/// An aggregate over the frame of a window, which may have many rows for each row.
#[derive(Debug, PartialEq, Eq, Hash)]
struct CheckedAggregate {
    inner: Arc<AggregateUDF>,
}

impl AggregateUDFImpl for CheckedAggregate {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn return_field(&self, fields: &[FieldRef]) -> Result<FieldRef> {
        self.inner.return_field(fields)
    }

    fn is_nullable(&self) -> bool {
        self.inner.is_nullable()
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(CheckedAccumulator {
            inner: self.inner.accumulator(args)?,
        }))
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        self.inner.state_fields(args)
    }

    fn create_sliding_accumulator(
        &self,
        args: AccumulatorArgs<'_>,
    ) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(CheckedAccumulator {
            inner: self.inner.create_sliding_accumulator(args)?,
        }))
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(types)
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        self.inner.order_sensitivity()
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        match self.inner.reverse_udf() {
            ReversedUDAF::Reversed(inner) => {
                ReversedUDAF::Reversed(Arc::new(AggregateUDF::from(Self { inner })))
            }
            other => other,
        }
    }

    fn is_descending(&self) -> Option<bool> {
        self.inner.is_descending()
    }

    fn default_value(&self, ty: &DataType) -> Result<ScalarValue> {
        self.inner.default_value(ty)
    }

    fn set_monotonicity(&self, ty: &DataType) -> SetMonotonicity {
        self.inner.inner().set_monotonicity(ty)
    }
}

#[derive(Debug)]
struct CheckedAccumulator {
    inner: Box<dyn Accumulator>,
}

impl Accumulator for CheckedAccumulator {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        scope::check()?;
        self.inner.update_batch(values)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        scope::check()?;
        self.inner.evaluate()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.inner.state()
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        scope::check()?;
        self.inner.merge_batch(states)
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        scope::check()?;
        self.inner.retract_batch(values)
    }

    fn supports_retract_batch(&self) -> bool {
        self.inner.supports_retract_batch()
    }
}

#[cfg(test)]
mod tests {
    use datafusion::logical_expr::{LogicalPlanBuilder, lit};

    use super::*;

    #[test]
    fn a_join_condition_is_wrapped_once() {
        let one_row = || LogicalPlanBuilder::empty(true);
        let plan = one_row()
            .join_on(
                one_row().build().expect("a plan"),
                datafusion::logical_expr::JoinType::Inner,
                [lit(true)],
            )
            .and_then(LogicalPlanBuilder::build)
            .expect("a join");
        let shown = cancellable(plan)
            .expect("wrapped")
            .display_indent()
            .to_string();
        assert_eq!(shown.matches("while_running(").count(), 1, "{shown}");
    }
}
