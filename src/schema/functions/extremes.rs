//! `min` and `max` of doubles in groups. DataFusion's start from the largest finite number, which
//! is wrong if all values are infinite, and their result with NaN depends on the order of rows.
//! Here NaN is greater than every number, as in `order by`.

use std::mem;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, FieldRef, Float64Type};
use datafusion::common::Result;
use datafusion::execution::FunctionRegistry;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, EmitTo, GroupsAccumulator,
    ReversedUDAF, SetMonotonicity, Signature, StatisticsArgs,
};
use datafusion::scalar::ScalarValue;

/// Replaces `min` and `max`.
pub fn register(state: &mut SessionState) -> Result<()> {
    for (name, is_max) in [("min", false), ("max", true)] {
        let inner = FunctionRegistry::udaf(state, name)?;
        state.register_udaf(Arc::new(AggregateUDF::from(Extreme { inner, is_max })))?;
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Extreme {
    inner: Arc<AggregateUDF>,
    is_max: bool,
}

impl AggregateUDFImpl for Extreme {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        self.inner.accumulator(args)
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        self.inner.state_fields(args)
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        match args.return_field.data_type() {
            DataType::Float64 => true,
            // Falls back to an accumulator per group, which is correct.
            DataType::Float16 | DataType::Float32 => false,
            _ => self.inner.groups_accumulator_supported(args),
        }
    }

    fn create_groups_accumulator(
        &self,
        args: AccumulatorArgs<'_>,
    ) -> Result<Box<dyn GroupsAccumulator>> {
        match args.return_field.data_type() {
            DataType::Float64 => Ok(Box::new(ExtremePerGroup {
                is_max: self.is_max,
                values: Vec::new(),
                has_value: Vec::new(),
            })),
            _ => self.inner.create_groups_accumulator(args),
        }
    }

    fn create_sliding_accumulator(
        &self,
        args: AccumulatorArgs<'_>,
    ) -> Result<Box<dyn Accumulator>> {
        self.inner.create_sliding_accumulator(args)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(types)
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }

    fn is_descending(&self) -> Option<bool> {
        self.inner.is_descending()
    }

    fn value_from_stats(&self, statistics: &StatisticsArgs<'_>) -> Option<ScalarValue> {
        self.inner.value_from_stats(statistics)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }

    fn set_monotonicity(&self, ty: &DataType) -> SetMonotonicity {
        self.inner.inner().set_monotonicity(ty)
    }
}

/// The extreme of each group so far.
struct ExtremePerGroup {
    is_max: bool,
    values: Vec<f64>,
    has_value: Vec<bool>,
}

impl ExtremePerGroup {
    fn replaces(is_max: bool, old: f64, new: f64) -> bool {
        if is_max {
            new.is_nan() || new > old
        } else {
            old.is_nan() || new < old
        }
    }

    fn take(&mut self, emit: EmitTo) -> Float64Array {
        let (values, has_value) = match emit {
            EmitTo::All => (mem::take(&mut self.values), mem::take(&mut self.has_value)),
            EmitTo::First(n) => {
                let rest = (self.values.split_off(n), self.has_value.split_off(n));
                (
                    mem::replace(&mut self.values, rest.0),
                    mem::replace(&mut self.has_value, rest.1),
                )
            }
        };
        Float64Array::new(values.into(), Some(NullBuffer::from(has_value)))
    }
}

impl GroupsAccumulator for ExtremePerGroup {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total: usize,
    ) -> Result<()> {
        self.values.resize(total, 0.0);
        self.has_value.resize(total, false);
        let values = values[0].as_primitive::<Float64Type>();
        for (row, group) in groups.iter().enumerate() {
            let is_included = filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
            if values.is_null(row) || !is_included {
                continue;
            }
            let new = values.value(row);
            if !self.has_value[*group] || Self::replaces(self.is_max, self.values[*group], new) {
                self.values[*group] = new;
                self.has_value[*group] = true;
            }
        }
        Ok(())
    }

    fn merge_batch(&mut self, values: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.update_batch(values, groups, None, total)
    }

    fn evaluate(&mut self, emit: EmitTo) -> Result<ArrayRef> {
        Ok(Arc::new(self.take(emit)))
    }

    fn state(&mut self, emit: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(vec![Arc::new(self.take(emit))])
    }

    fn convert_to_state(
        &self,
        values: &[ArrayRef],
        filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>> {
        let Some(filter) = filter else {
            return Ok(vec![values[0].clone()]);
        };
        let values = values[0].as_primitive::<Float64Type>();
        let is_included: NullBuffer = filter.iter().map(|value| value == Some(true)).collect();
        let nulls = NullBuffer::union(values.nulls(), Some(&is_included));
        Ok(vec![Arc::new(Float64Array::new(
            values.values().clone(),
            nulls,
        ))])
    }

    fn size(&self) -> usize {
        self.values.capacity() * size_of::<f64>() + self.has_value.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extreme(is_max: bool, values: &[f64]) -> Option<f64> {
        let mut groups = ExtremePerGroup {
            is_max,
            values: Vec::new(),
            has_value: Vec::new(),
        };
        // Row by row, so that states are merged too; group 1 gets only nulls.
        for value in values {
            let row: ArrayRef = Arc::new(Float64Array::from(vec![Some(*value), None]));
            groups.merge_batch(&[row], &[0, 1], 2).expect("merged");
        }
        let found = groups.evaluate(EmitTo::All).expect("values");
        let found = found.as_primitive::<Float64Type>();
        assert!(values.is_empty() || found.is_null(1));
        (!values.is_empty()).then(|| found.value(0))
    }

    #[test]
    fn infinities_are_values_and_nan_is_the_greatest() {
        let (inf, nan) = (f64::INFINITY, f64::NAN);
        for values in [
            vec![inf, inf],
            vec![-inf, -inf],
            vec![1.0, -inf, inf],
            vec![nan, 1.0, -inf],
            vec![1.0, nan, 5.0],
            vec![nan],
        ] {
            let mut sorted = values.clone();
            sorted.sort_by(f64::total_cmp);
            let bits = |value: Option<f64>| value.map(f64::to_bits);
            assert_eq!(
                bits(extreme(false, &values)),
                bits(sorted.first().copied()),
                "{values:?}"
            );
            assert_eq!(
                bits(extreme(true, &values)),
                bits(sorted.last().copied()),
                "{values:?}"
            );
        }
    }

    #[test]
    fn filtered_rows_do_not_count() {
        let mut groups = ExtremePerGroup {
            is_max: true,
            values: Vec::new(),
            has_value: Vec::new(),
        };
        let values: ArrayRef = Arc::new(Float64Array::from(vec![1.0, 9.0, 7.0]));
        let filter = BooleanArray::from(vec![Some(true), Some(false), None]);
        groups
            .update_batch(std::slice::from_ref(&values), &[0, 0, 0], Some(&filter), 1)
            .expect("added");
        assert_eq!(groups.take(EmitTo::First(1)).value(0), 1.0);
        let state = groups
            .convert_to_state(&[values], Some(&filter))
            .expect("a state");
        assert_eq!(
            state[0]
                .as_primitive::<Float64Type>()
                .iter()
                .collect::<Vec<_>>(),
            [Some(1.0), None, None]
        );
    }
}
