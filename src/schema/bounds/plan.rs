//! Bounds on a plan before it is optimized: its nodes, its columns, the size of conditions once they
//! are pushed down to the tables, and the types it casts to.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::DFSchema;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, JoinType, LogicalPlan};

use super::Exceeded;

/// Operators of a plan.
const MAX_NODES: usize = 4_000;
/// Columns of all operators of a plan.
const MAX_COLUMNS: usize = 100_000;
/// Nodes of a condition with every column in it expanded: the optimizer pushes conditions below the
/// projections that they read.
const MAX_CONDITION_NODES: u64 = 50_000;
/// Items or bytes of a value of a fixed-size type.
const MAX_FIXED_SIZE: i32 = 4_096;
/// Expanded size of each column of a plan, in expression nodes.
type ColumnSizes = Vec<u64>;

/// Rejects a plan that is too large to be optimized.
pub fn check(plan: &LogicalPlan) -> Result<()> {
    let (mut nodes, mut columns) = (0, 0);
    plan.apply_with_subqueries(|node| {
        nodes += 1;
        columns += node.schema().fields().len();
        if nodes > MAX_NODES {
            return Err(
                Exceeded(format!("the plan has more than {MAX_NODES} operators; send several statements")).into()
            );
        }
        if columns > MAX_COLUMNS {
            return Err(Exceeded(format!(
                "the operators of the plan have more than {MAX_COLUMNS} columns together; select fewer"
            ))
            .into());
        }
        node.apply_expressions(|expression| {
            check_types(expression)?;
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    plan.apply_with_subqueries(|node| {
        // `column_sizes` checks all conditions below the outermost one of a (sub)query.
        let is_condition = matches!(node, LogicalPlan::Filter(_) | LogicalPlan::Join(_));
        if is_condition {
            column_sizes(node)?;
        }
        Ok(if is_condition {
            TreeNodeRecursion::Jump
        } else {
            TreeNodeRecursion::Continue
        })
    })?;
    Ok(())
}

/// Rejects casts to fixed-size types whose values are too large.
pub fn check_casts(plan: &LogicalPlan) -> Result<()> {
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expression| {
            check_types(expression)?;
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok(())
}

fn check_types(expression: &Expr) -> Result<()> {
    expression.apply(|e| {
        let ty = match e {
            Expr::Cast(cast) => cast.field.data_type(),
            Expr::TryCast(cast) => cast.field.data_type(),
            Expr::Literal(value, _) => &value.data_type(),
            _ => return Ok(TreeNodeRecursion::Continue),
        };
        match excessive_fixed_size(ty) {
            Some(size) => Err(Exceeded(format!(
                "a type with {size} items or bytes in every value; at most {MAX_FIXED_SIZE} are allowed: use a list, or text"
            ))
            .into()),
            None => Ok(TreeNodeRecursion::Continue),
        }
    })?;
    Ok(())
}

/// Items or bytes of every value of a type, if they are too many.
fn excessive_fixed_size(ty: &DataType) -> Option<i64> {
    fixed_size(ty).filter(|size| *size > i64::from(MAX_FIXED_SIZE))
}

fn fixed_size(ty: &DataType) -> Option<i64> {
    match ty {
        DataType::FixedSizeBinary(size) => Some(i64::from(*size)),
        DataType::FixedSizeList(item, size) => {
            Some(i64::from(*size).saturating_mul(fixed_size(item.data_type()).unwrap_or(1)))
        }
        DataType::List(item) | DataType::LargeList(item) | DataType::Map(item, _) => {
            fixed_size(item.data_type())
        }
        DataType::Struct(fields) => fields
            .iter()
            .filter_map(|f| fixed_size(f.data_type()))
            .max(),
        DataType::Dictionary(_, value) => fixed_size(value),
        _ => None,
    }
}

/// Sizes of a plan's columns, with the columns that they are computed from expanded; an error if a
/// condition is too large.
///
/// `select x + x as y from (…)` counts the size of x twice, so each such level doubles the size.
fn column_sizes(plan: &LogicalPlan) -> Result<ColumnSizes> {
    let inputs: Vec<(ColumnSizes, &DFSchema)> = plan
        .inputs()
        .iter()
        .map(|input| Ok((column_sizes(input)?, input.schema().as_ref())))
        .collect::<Result<_>>()?;
    let size = |expression: &Expr| expanded_size(expression, &inputs);
    let largest = inputs
        .iter()
        .flat_map(|(sizes, _)| sizes)
        .copied()
        .max()
        .unwrap_or(1);
    let mut columns: ColumnSizes = match plan {
        LogicalPlan::Projection(projection) => projection.expr.iter().map(size).collect(),
        LogicalPlan::Aggregate(aggregate) => aggregate.group_expr.iter().map(size).collect(),
        LogicalPlan::Join(join)
            if matches!(join.join_type, JoinType::RightSemi | JoinType::RightAnti) =>
        {
            vec![largest]
        }
        LogicalPlan::Join(_) => inputs.iter().flat_map(|(sizes, _)| sizes.clone()).collect(),
        LogicalPlan::Union(_) => {
            let columns = plan.schema().fields().len();
            (0..columns)
                .map(|at| {
                    inputs
                        .iter()
                        .filter_map(|(sizes, _)| sizes.get(at))
                        .copied()
                        .max()
                        .unwrap_or(1)
                })
                .collect()
        }
        _ => inputs
            .first()
            .map(|(sizes, _)| sizes.clone())
            .unwrap_or_default(),
    };
    let conditions: Vec<&Expr> = match plan {
        LogicalPlan::Filter(filter) => vec![&filter.predicate],
        LogicalPlan::Join(join) => join
            .filter
            .iter()
            .chain(join.on.iter().flat_map(|(left, right)| [left, right]))
            .collect(),
        _ => Vec::new(),
    };
    if conditions
        .into_iter()
        .map(size)
        .fold(0, u64::saturating_add)
        > MAX_CONDITION_NODES
    {
        return Err(Exceeded(format!(
            "a condition has more than {MAX_CONDITION_NODES} parts with the expressions that it reads written out; nest fewer of them"
        ))
        .into());
    }
    let padding = if matches!(plan, LogicalPlan::Unnest(_) | LogicalPlan::Join(_)) {
        largest
    } else {
        1
    };
    columns.resize(plan.schema().fields().len(), padding);
    Ok(columns)
}

fn expanded_size(expression: &Expr, inputs: &[(ColumnSizes, &DFSchema)]) -> u64 {
    let mut count = 0_u64;
    let _ = expression.apply(|e| {
        let own = match e {
            Expr::Column(column) => inputs
                .iter()
                .find_map(|(sizes, schema)| {
                    sizes.get(schema.maybe_index_of_column(column)?).copied()
                })
                .unwrap_or(1),
            _ => 1,
        };
        count = count.saturating_add(own);
        Ok(TreeNodeRecursion::Continue)
    });
    count
}

/// Bytes of the literals in a plan.
pub fn literal_bytes(plan: &LogicalPlan) -> usize {
    let mut bytes = 0_usize;
    let _ = plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expression| {
            expression.apply(|e| {
                if let Expr::Literal(value, _) = e {
                    bytes = bytes.saturating_add(value.size());
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    bytes
}
