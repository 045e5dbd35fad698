use super::*;
use crate::schema::bounds::exceeded;
use crate::schema::dialect;
use crate::schema::functions;
use crate::schema::select::session_config;
use arrow::array::{Array, ArrayRef};
use datafusion::error::DataFusionError;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::prelude::SessionContext;
use std::collections::BTreeSet;

fn state(limits: Option<Limits>) -> SessionState {
    let mut state = SessionStateBuilder::new()
        .with_config(session_config(1))
        .with_default_features()
        .build();
    match limits {
        Some(limits) => functions::register(&mut state, limits).expect("registered"),
        None => functions::register_unbounded(&mut state).expect("registered"),
    }
    state
}

fn names<'a>(all: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    all.into_iter().map(str::to_owned).collect()
}

#[test]
fn every_function_of_the_registry_has_a_place_in_the_list() {
    let state = state(Some(Limits::Query));
    let known = names(
        classes::SCALAR
            .iter()
            .flat_map(|(_, names)| names.iter().copied()),
    );
    let found: BTreeSet<String> = state
        .scalar_functions()
        .values()
        .map(|f| f.name().to_owned())
        .collect();
    let missing: Vec<_> = found.difference(&known).collect();
    assert!(
        missing.is_empty(),
        "functions without a class in classes.rs: {missing:?}"
    );
    let stale: Vec<_> = known.difference(&found).collect();
    assert!(
        stale.is_empty(),
        "classes.rs names functions that do not exist: {stale:?}"
    );

    let aggregates = names([classes::FIXED_AGGREGATES, classes::RETAINING_AGGREGATES].concat());
    assert_eq!(
        aggregates,
        names(state.aggregate_functions().values().map(|f| f.name()))
    );
    assert_eq!(
        names(classes::WINDOW.iter().copied()),
        names(state.window_functions().values().map(|f| f.name()))
    );
    assert_eq!(
        names(classes::TABLE.iter().copied()),
        names(state.table_functions().keys().map(String::as_str))
    );
    let lambdas = names(state.higher_order_functions().values().map(|f| f.name()));
    assert_eq!(names(classes::HIGHER_ORDER.iter().copied()), lambdas);
}

#[test]
fn every_function_that_grows_is_bounded_under_each_of_its_names() {
    let state = state(Some(Limits::Query));
    for (name, function) in state.scalar_functions() {
        let grows = !matches!(
            classes::growth(function.name()),
            Some(Growth::Fixed | Growth::Within | Growth::Planned)
        );
        assert_eq!(function.inner().is::<Bounded>(), grows, "{name}");
    }
    for function in state.higher_order_functions().values() {
        assert!(lambdas::is_bounded(function), "{}", function.name());
    }
}

async fn run(state: &SessionState, sql: &str) -> Result<Vec<ArrayRef>, DataFusionError> {
    let context = SessionContext::new_with_state(state.clone());
    let plan = dialect::plan(state, sql).await?;
    let batches = context.execute_logical_plan(plan).await?.collect().await?;
    Ok(batches
        .iter()
        .flat_map(|batch| batch.columns().to_vec())
        .collect())
}

/// Calls with large results for a large N; for a small N the bounds must not change the result.
const CALLS: &[&str] = &[
    "repeat('x', N)",
    "lpad('x', N)",
    "lpad('x', N, 'é')",
    "rpad('x', N, 'yz')",
    "replace(repeat('a', 1000), 'a', repeat('b', N / 10))",
    "replace(repeat('a', 1000), '', repeat('b', N / 10))",
    "regexp_replace(repeat('a', 1000), 'a', repeat('b', N / 10), 'g')",
    "regexp_replace(repeat('a', N / 100), '(.*)', repeat('\\1', 1000))",
    "concat_ws(repeat('x', N / 100), 'a', 'b', 'c')",
    "concat_ws(repeat('x', 10000), repeat('a', N / 10), 'b')",
    "array_repeat(1, N)",
    "array_repeat(repeat('x', 100), N / 10)",
    "array_resize([1], N, 2)",
    "array_resize(['a'], N, 'bc')",
    "range(N)",
    "range(1, N)",
    "range(N, 0, -1)",
    "generate_series(1, N)",
    "generate_series(to_timestamp(0), to_timestamp(N), interval '1 second')",
    "array_to_string(range(N / 10), repeat(',', 100))",
    "array_to_string(array_repeat(true, N), ', ')",
    "array_replace_all(array_repeat('a', N / 10), 'a', repeat('b', 100))",
    "string_to_array(repeat('a,', N / 10), ',')",
    "encode(repeat('x', N), 'hex')",
    "encode(repeat('x', N), 'base64')",
    "upper(repeat('ŉ', N))",
    "translate(repeat('a', N), 'a', '😀')",
    "repeat('a', N / 2) || repeat('b', N / 2)",
    "repeat('a', N / 2) || 1",
    "array_concat(range(N / 2), range(N / 2))",
    "range(N / 2) || range(N / 2)",
    "flatten(array_repeat(range(1000), N / 1000))",
    "array_append(array_repeat(1, N), 1)",
    "make_array(repeat('a', N), repeat('b', N))",
    "arrays_zip(range(N / 2), range(3))",
    "overlay(repeat('a', N) placing repeat('b', N) from 1)",
    "concat(repeat('a', N / 2), repeat('b', N / 2), null)",
    "reverse(repeat('a', N))",
    "to_char(timestamp '2024-01-01', repeat('%B', N / 10))",
    "json_from_scalar(repeat(chr(1), N / 6))",
    "array_positions(array_repeat(1, N), 1)",
    "array_transform(range(N), x -> x + 1)",
    "array_transform([1, 2], x -> repeat('a', N))",
];

#[tokio::test]
async fn bounds_do_not_change_the_results_within_them() {
    let (plain, bounded) = (state(None), state(Some(Limits::Query)));
    for call in CALLS {
        // The second is not constant, so it is not evaluated during planning.
        for n in ["2000", "cast(2000 + random() * 0 as int)"] {
            let sql = format!("select {} as v", call.replace('N', n));
            let (before, after) = (run(&plain, &sql).await, run(&bounded, &sql).await);
            match (before, after) {
                (Ok(before), Ok(after)) => assert_eq!(before, after, "{sql}"),
                (before, after) => panic!("{sql}: {before:?} became {after:?}"),
            }
        }
    }
}

#[tokio::test]
async fn above_the_bound_every_call_is_an_error_that_names_the_function() {
    let bounded = state(Some(Limits::Query));
    for call in CALLS {
        for n in ["1000000000", "cast(1000000000 + random() * 0 as bigint)"] {
            let sql = format!("select {} as v", call.replace('N', n));
            let error = match run(&bounded, &sql).await {
                Ok(values) => panic!("{sql} returned {} bytes", values[0].get_array_memory_size()),
                Err(error) => error,
            };
            let exceeded = exceeded(&error).unwrap_or_else(|| panic!("{sql}: {error}"));
            assert!(exceeded.0.contains("at most"), "{sql}: {exceeded}");
        }
    }
}

/// A call's function and the estimated bytes of its result; none if it is not bounded.
async fn estimate(state: &SessionState, sql: &str) -> Option<(String, u64)> {
    let plan = dialect::plan(state, sql).await.expect("a plan");
    let plan = state
        .analyzer()
        .execute_and_check(plan, state.config_options(), |_, _| {})
        .expect("analyzed");
    let datafusion::logical_expr::LogicalPlan::Projection(projection) = &plan else {
        panic!("{plan}")
    };
    let Expr::ScalarFunction(call) = projection.expr[0].clone().unalias() else {
        return None;
    };
    let function = call.func.inner().downcast_ref::<Bounded>()?;
    let row = arrow::array::RecordBatchOptions::new().with_row_count(Some(1));
    let row = arrow::array::RecordBatch::try_new_with_options(
        Arc::new(arrow::datatypes::Schema::empty()),
        Vec::new(),
        &row,
    )
    .expect("a row");
    let evaluate = |argument: &Expr| {
        let physical = state
            .create_physical_expr(argument.clone(), projection.input.schema())
            .expect("physical");
        physical.evaluate(&row).expect("a value")
    };
    let arguments: Vec<ColumnarValue> = call.args.iter().map(evaluate).collect();
    let sizes = arguments
        .iter()
        .map(Argument::from_value)
        .collect::<Result<Vec<_>>>()
        .expect("sizes");
    let bytes = estimated_bytes(function.growth, &sizes, &arguments, 0).expect("an estimate");
    Some((function.name().to_owned(), bytes))
}

#[tokio::test]
async fn no_result_is_larger_than_its_estimate() {
    let bounded = state(Some(Limits::Query));
    let mut seen = BTreeSet::new();
    for call in CALLS {
        for n in [1, 7, 100, 5_000] {
            let sql = format!("select {} as v", call.replace('N', &n.to_string()));
            let Some((function, estimate)) = estimate(&bounded, &sql).await else {
                continue;
            };
            let value = run(&bounded, &sql).await.expect("a value").remove(0);
            if matches!(value.data_type(), DataType::Union(..)) {
                continue;
            }
            let real: u64 = sizes::bytes(&value).iter().sum();
            // `sizes::bytes` counts sixteen bytes for values of a fixed size.
            assert!(
                real <= 2 * estimate,
                "{sql}: {real} bytes, estimated {estimate}"
            );
            seen.insert(function);
        }
    }
    let growing = classes::SCALAR.iter().filter(|(growth, _)| {
        !matches!(
            growth,
            Growth::Fixed | Growth::Within | Growth::Planned | Growth::Times(1) | Growth::Pairs
        )
    });
    let multiplying: BTreeSet<&str> = growing
        .flat_map(|(_, names)| names.iter().copied())
        .collect();
    let untried: Vec<_> = multiplying
        .iter()
        .filter(|name| !seen.contains(**name))
        .collect();
    let known = [
        "array_replace",
        "array_replace_n",
        "generate_series",
        "initcap",
        "json_from_scalar",
        "json_get_array",
        "json_object_keys",
        "json_union_to_text",
        "lower",
        "regexp_match",
    ];
    assert!(
        untried.iter().all(|name| known.contains(name)),
        "{untried:?}"
    );
}

#[tokio::test]
async fn the_rows_of_a_batch_are_bounded_together() {
    let bounded = state(Some(Limits::Query));
    let sql =
        "select repeat('x', cast(100000 + random() * 0 as int)) as v from generate_series(1, 8000)";
    let error = run(&bounded, sql).await.expect_err("too much at once");
    assert!(
        exceeded(&error).is_some_and(|e| e.0.contains("`repeat`")),
        "{error}"
    );
}

#[tokio::test]
async fn in_declarations_each_row_is_bounded_by_itself() {
    let bounds = SqlBounds::default();
    let declared = state(Some(Limits::Declared(bounds)));
    let max_bytes = bounds.bytes;
    let small = format!(
        "select repeat('x', cast({} + random() * 0 as bigint)) as v from generate_series(1, 8000)",
        max_bytes / 2
    );
    assert_eq!(
        run(&declared, &small)
            .await
            .expect("within the bound of a row")
            .len(),
        1
    );
    let large = format!(
        "select repeat('x', cast({} + random() * 0 as bigint)) as v",
        max_bytes * 2
    );
    assert!(exceeded(&run(&declared, &large).await.expect_err("too much")).is_some());
    let copies = format!(
        "select upper(repeat('x', {0})) || upper(repeat('x', {0})) as v",
        max_bytes / 2
    );
    assert!(
        run(&declared, &copies).await.is_ok(),
        "copies of the arguments are within the bound"
    );
}
