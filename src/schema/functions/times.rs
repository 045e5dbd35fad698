//! Times outside the range of nanoseconds (before 1677, after 2262), which tables can store: where a
//! function or a cast computes in nanoseconds, such a row gives null or stays in microseconds,
//! instead of failing the whole batch.

use std::sync::Arc;

use arrow::array::{Array, AsArray, TimestampMicrosecondArray};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use arrow::datatypes::{DataType, Field, FieldRef, TimeUnit, TimestampMicrosecondType};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result};
use datafusion::config::ConfigOptions;
use datafusion::execution::FunctionRegistry;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::expr_rewriter::FunctionRewrite;
use datafusion::logical_expr::type_coercion::functions::fields_with_udf;
use datafusion::logical_expr::{
    Cast, ColumnarValue, Documentation, Expr, ExprSchemable, ReturnFieldArgs, ScalarFunctionArgs,
    ScalarUDF, ScalarUDFImpl, Signature, TryCast,
};
use datafusion::scalar::ScalarValue;

use super::registered;

/// Functions that compute in nanoseconds.
const IN_NANOSECONDS: [&str; 5] = [
    "date_trunc",
    "date_bin",
    "to_char",
    "to_local_time",
    "to_timestamp",
];
/// Functions that declare UTC, but return the times of a text column without a zone.
const WITHOUT_ZONE: [&str; 4] = [
    "to_timestamp_micros",
    "to_timestamp_millis",
    "to_timestamp_nanos",
    "to_timestamp_seconds",
];
/// Times in the range of nanoseconds, in microseconds.
const NANOS_RANGE: std::ops::RangeInclusive<i64> = i64::MIN / 1_000..=i64::MAX / 1_000;

/// Replaces the functions that would fail outside the years 1677 to 2262, or whose result is not of
/// the type that they declare.
pub fn register(state: &mut SessionState) -> Result<()> {
    let limited = IN_NANOSECONDS.map(|name| (name, true));
    let others = WITHOUT_ZONE.map(|name| (name, false));
    for (name, makes_nulls) in limited.into_iter().chain(others) {
        let inner = registered(state, name)?;
        let signature = Signature::user_defined(inner.signature().volatility);
        state.register_udf(Arc::new(ScalarUDF::from(CheckedTimes {
            inner,
            makes_nulls,
            signature,
        })))?;
    }
    state.register_function_rewrite(Arc::new(CastsInMicros))
}

/// A function whose result has the declared type; if it computes in nanoseconds, a time outside
/// their range gives null.
#[derive(Debug, PartialEq, Eq, Hash)]
struct CheckedTimes {
    inner: Arc<ScalarUDF>,
    makes_nulls: bool,
    signature: Signature,
}

impl CheckedTimes {
    /// The argument types of the wrapped function.
    fn coerced(&self, fields: &[FieldRef]) -> Result<Vec<FieldRef>> {
        fields_with_udf(fields, self.inner.as_ref())
    }
}

impl ScalarUDFImpl for CheckedTimes {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }

    fn with_updated_config(&self, config: &ConfigOptions) -> Option<ScalarUDF> {
        let inner = self.inner.inner().with_updated_config(config)?;
        Some(ScalarUDF::from(Self {
            inner: Arc::new(inner),
            makes_nulls: self.makes_nulls,
            signature: self.signature.clone(),
        }))
    }

    /// As the function's own, but microseconds stay: they are converted to nanoseconds here.
    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let fields: Vec<FieldRef> = types
            .iter()
            .map(|ty| Arc::new(Field::new("", ty.clone(), true)))
            .collect();
        let stays = |from: &DataType, to: &DataType| {
            matches!(from, DataType::Timestamp(TimeUnit::Microsecond, _))
                && matches!(to, DataType::Timestamp(TimeUnit::Nanosecond, _))
        };
        let coerced = self.coerced(&fields)?;
        let types = types.iter().zip(&coerced);
        Ok(types
            .map(|(from, to)| {
                if stays(from, to.data_type()) {
                    from
                } else {
                    to.data_type()
                }
                .clone()
            })
            .collect())
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        let fields: Vec<FieldRef> = types
            .iter()
            .map(|ty| Arc::new(Field::new("", ty.clone(), true)))
            .collect();
        let types: Vec<DataType> = self
            .coerced(&fields)?
            .iter()
            .map(|f| f.data_type().clone())
            .collect();
        self.inner.return_type(&types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let fields = self.coerced(args.arg_fields)?;
        let args = ReturnFieldArgs {
            arg_fields: &fields,
            scalar_arguments: args.scalar_arguments,
        };
        let field = self.inner.return_field_from_args(args)?;
        let is_nullable = self.makes_nulls || field.is_nullable();
        Ok(Arc::new(field.as_ref().clone().with_nullable(is_nullable)))
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let fields = self.coerced(&args.arg_fields)?;
        for (value, field) in args.args.iter_mut().zip(&fields) {
            if value.data_type() != *field.data_type() {
                *value = within_nanos(value).cast_to(field.data_type(), None)?;
            }
        }
        args.arg_fields = fields;
        let (declared, function) = (args.return_field.data_type().clone(), self.inner.inner());
        let value = function.invoke_with_args(args.clone()).or_else(|_| {
            args.args
                .iter_mut()
                .for_each(|value| *value = within_nanos(value));
            function.invoke_with_args(args)
        })?;
        // `to_timestamp` and its siblings declare UTC, but return times without a zone for columns.
        if value.data_type() == declared {
            Ok(value)
        } else {
            value.cast_to(&declared, None)
        }
    }
}

/// Replaces every time outside the range of nanoseconds by null.
fn within_nanos(value: &ColumnarValue) -> ColumnarValue {
    match value {
        ColumnarValue::Scalar(ScalarValue::TimestampMicrosecond(Some(time), zone))
            if !NANOS_RANGE.contains(time) =>
        {
            ColumnarValue::Scalar(ScalarValue::TimestampMicrosecond(None, zone.clone()))
        }
        ColumnarValue::Array(array)
            if matches!(
                array.data_type(),
                DataType::Timestamp(TimeUnit::Microsecond, _)
            ) =>
        {
            let times = array.as_primitive::<TimestampMicrosecondType>();
            let in_range = NullBuffer::new(BooleanBuffer::from_iter(
                times.values().iter().map(|t| NANOS_RANGE.contains(t)),
            ));
            let nulls = NullBuffer::union(times.nulls(), Some(&in_range));
            let times = TimestampMicrosecondArray::new(times.values().clone(), nulls);
            ColumnarValue::Array(Arc::new(times.with_data_type(array.data_type().clone())))
        }
        other => other.clone(),
    }
}

/// SQL's timestamps are nanoseconds, to which `at time zone` and casts convert any time. Here
/// microseconds stay microseconds.
#[derive(Debug)]
struct CastsInMicros;

impl FunctionRewrite for CastsInMicros {
    fn name(&self) -> &str {
        "casts_in_micros"
    }

    fn rewrite(
        &self,
        expr: Expr,
        schema: &DFSchema,
        _: &ConfigOptions,
    ) -> Result<Transformed<Expr>> {
        let (Expr::Cast(Cast { expr: inner, field })
        | Expr::TryCast(TryCast { expr: inner, field })) = &expr
        else {
            return Ok(Transformed::no(expr));
        };
        let DataType::Timestamp(TimeUnit::Nanosecond, zone) = field.data_type() else {
            return Ok(Transformed::no(expr));
        };
        if !matches!(
            inner.get_type(schema),
            Ok(DataType::Timestamp(TimeUnit::Microsecond, _))
        ) {
            return Ok(Transformed::no(expr));
        }
        let field = field
            .as_ref()
            .clone()
            .with_data_type(DataType::Timestamp(TimeUnit::Microsecond, zone.clone()));
        let (inner, field) = (inner.clone(), Arc::new(field));
        Ok(Transformed::yes(match &expr {
            Expr::Cast(_) => Expr::Cast(Cast { expr: inner, field }),
            _ => Expr::TryCast(TryCast { expr: inner, field }),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_times_beyond_nanoseconds_become_null() {
        let times = TimestampMicrosecondArray::from(vec![
            Some(*NANOS_RANGE.start() - 1),
            Some(*NANOS_RANGE.start()),
            None,
            Some(*NANOS_RANGE.end()),
            Some(*NANOS_RANGE.end() + 1),
        ]);
        let value = ColumnarValue::Array(Arc::new(times.with_timezone("UTC")));
        let ColumnarValue::Array(found) = within_nanos(&value) else {
            panic!("an array")
        };
        assert_eq!(*found.data_type(), value.data_type());
        let found: Vec<_> = found
            .as_primitive::<TimestampMicrosecondType>()
            .iter()
            .collect();
        assert_eq!(
            found,
            [
                None,
                Some(*NANOS_RANGE.start()),
                None,
                Some(*NANOS_RANGE.end()),
                None
            ]
        );
        let scalar = within_nanos(&ColumnarValue::Scalar(ScalarValue::TimestampMicrosecond(
            Some(i64::MAX),
            None,
        )));
        assert!(matches!(
            scalar,
            ColumnarValue::Scalar(ScalarValue::TimestampMicrosecond(None, None))
        ));
        let text = ColumnarValue::Scalar(ScalarValue::from("x"));
        assert!(matches!(
            within_nanos(&text),
            ColumnarValue::Scalar(ScalarValue::Utf8(Some(_)))
        ));
    }
}
