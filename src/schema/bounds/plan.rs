//! Bounds on a plan before it is optimized: its nodes, its columns, what a condition becomes once
//! it is moved down to the tables, and the types it casts to.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::DFSchema;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, JoinType, LogicalPlan};

use super::Exceeded;

/// Operators of a plan.
const MAX_NODES: usize = 4_000;
/// Columns of all operators of a plan together.
const MAX_COLUMNS: usize = 100_000;
/// Parts of a condition once every column in it is written out: the optimizer moves conditions
/// below the expressions that they read.
const MAX_PARTS: u64 = 50_000;
/// Items of a list, or bytes of a value, whose type says how many there are.
const MAX_FIXED: i32 = 4_096;
/// Of a plan, by column.
type Parts = Vec<u64>;

/// Refuses a plan that is too much to be optimized.
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
        // Of the outermost plan and of each subquery every operator is looked at from there on.
        let is_condition = matches!(node, LogicalPlan::Filter(_) | LogicalPlan::Join(_));
        if is_condition {
            parts(node)?;
        }
        Ok(if is_condition {
            TreeNodeRecursion::Jump
        } else {
            TreeNodeRecursion::Continue
        })
    })?;
    Ok(())
}

/// Refuses casts to types of which every value would be too much.
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
        match too_fixed(ty) {
            Some(size) => Err(Exceeded(format!(
                "a type with {size} items or bytes in every value; at most {MAX_FIXED} are allowed: use a list, or text"
            ))
            .into()),
            None => Ok(TreeNodeRecursion::Continue),
        }
    })?;
    Ok(())
}

/// How many items or bytes every value of a type has, where those are too many.
fn too_fixed(ty: &DataType) -> Option<i64> {
    fixed_size(ty).filter(|size| *size > i64::from(MAX_FIXED))
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

/// Of how many parts each column of a plan is, with those of the columns that it is made from.
fn parts(plan: &LogicalPlan) -> Result<Parts> {
    let inputs: Vec<(Parts, &DFSchema)> = plan
        .inputs()
        .iter()
        .map(|input| Ok((parts(input)?, input.schema().as_ref())))
        .collect::<Result<_>>()?;
    let of = |expression: &Expr| written_out(expression, &inputs);
    let most = inputs
        .iter()
        .flat_map(|(parts, _)| parts)
        .copied()
        .max()
        .unwrap_or(1);
    let mut columns: Parts = match plan {
        LogicalPlan::Projection(projection) => projection.expr.iter().map(of).collect(),
        LogicalPlan::Aggregate(aggregate) => aggregate.group_expr.iter().map(of).collect(),
        LogicalPlan::Join(join)
            if matches!(join.join_type, JoinType::RightSemi | JoinType::RightAnti) =>
        {
            vec![most]
        }
        LogicalPlan::Join(_) => inputs.iter().flat_map(|(parts, _)| parts.clone()).collect(),
        LogicalPlan::Union(_) => {
            let columns = plan.schema().fields().len();
            (0..columns)
                .map(|at| {
                    inputs
                        .iter()
                        .filter_map(|(p, _)| p.get(at))
                        .copied()
                        .max()
                        .unwrap_or(1)
                })
                .collect()
        }
        _ => inputs
            .first()
            .map(|(parts, _)| parts.clone())
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
    if conditions.into_iter().map(of).fold(0, u64::saturating_add) > MAX_PARTS {
        return Err(Exceeded(format!(
            "a condition has more than {MAX_PARTS} parts once the expressions that it reads are written out; nest fewer of them"
        ))
        .into());
    }
    let padding = if matches!(plan, LogicalPlan::Unnest(_) | LogicalPlan::Join(_)) {
        most
    } else {
        1
    };
    columns.resize(plan.schema().fields().len(), padding);
    Ok(columns)
}

fn written_out(expression: &Expr, inputs: &[(Parts, &DFSchema)]) -> u64 {
    let mut count = 0_u64;
    let _ = expression.apply(|e| {
        let own = match e {
            Expr::Column(column) => inputs
                .iter()
                .find_map(|(parts, schema)| {
                    parts.get(schema.maybe_index_of_column(column)?).copied()
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
