//! Why planned expressions have no result for a batch of rows.

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;

use super::select::strip_internals;

/// The expressions were planned for the batch's schema, so its values are the cause: some row's, or
/// all together, if their result would be too large.
#[derive(Debug, thiserror::Error)]
pub enum EvaluationError {
    /// The expression of a selected column failed, or the cast to its stored type.
    #[error("{column}: {}", strip_internals(.source))]
    Column {
        /// The column's name.
        column: String,
        /// DataFusion's error; the message leaves out its internals.
        source: DataFusionError,
    },
    /// The condition failed, or the result cannot be assembled.
    #[error("{}", strip_internals(.0))]
    Batch(#[source] DataFusionError),
    /// Rows cannot be selected, or a column cannot be cast.
    #[error(transparent)]
    Arrow(#[from] ArrowError),
    /// A column that a table unnests is not a list in this batch.
    #[error("an unnested column is not a list")]
    NotAList,
}

/// For callers that report it as the reason of an error of their own.
impl From<EvaluationError> for String {
    fn from(error: EvaluationError) -> Self {
        error.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_column_without_internals() {
        let divided = || DataFusionError::from(ArrowError::DivideByZero);
        let message = strip_internals(&divided());
        let column = EvaluationError::Column {
            column: "a".into(),
            source: divided(),
        };
        assert_eq!(column.to_string(), format!("a: {message}"));
        assert_eq!(EvaluationError::Batch(divided()).to_string(), message);
        assert_eq!(
            String::from(EvaluationError::from(ArrowError::DivideByZero)),
            ArrowError::DivideByZero.to_string()
        );
    }
}
