//! How many: sums over the counts view, with the parts of seconds at the edges read from the stream table.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::sql::{SqlEngine, to_ndjson};
use super::{Handles, QueryError};
use crate::event::{MICROS_PER_SECOND, Micros};
use crate::operators::positions;
use crate::views::counts::{SEPARATOR, Tally};

/// What is asked.
#[derive(Debug, Clone, Default)]
pub struct CountQuestion {
    pub stream: Option<String>,
    /// Only events of this type.
    pub kind: Option<String>,
    /// A column to count by.
    pub by: Option<String>,
    pub from: Option<Micros>,
    pub to: Option<Micros>,
    /// Count repeats too.
    pub repeats: bool,
}

/// `{"count": n, "groups": [{column, "count"}], "as_of": …}`.
pub async fn count(
    question: &CountQuestion,
    handles: &Handles,
    sql: &SqlEngine,
    now: Micros,
) -> Result<Value, QueryError> {
    let stream = handles.stream(question.stream.as_deref())?;
    let name = &stream.name;
    let (Some(def), Some(counts)) = (&stream.def.count, handles.counts.get(name)) else {
        return Err(QueryError::NotFound(format!("stream `{name}` declares no `count`")));
    };
    let group = match &question.by {
        None => None,
        Some(column) if *column == def.kind => Some(0),
        Some(column) => {
            let at = def.by.iter().position(|c| c == column).ok_or_else(|| {
                let known: Vec<&str> = std::iter::once(&def.kind).chain(&def.by).map(String::as_str).collect();
                QueryError::Invalid(format!("by = `{column}`: stream `{name}` counts by {}", known.join(", ")))
            })?;
            Some(at + 1)
        }
    };
    // What lies below the retention's floor is no longer counted.
    let from = question.from.max(handles.floor(name)).unwrap_or(Micros::MIN / 2);
    let to = question.to.unwrap_or(Micros::MAX / 2);
    let first = -(-from).div_euclid(MICROS_PER_SECOND) * MICROS_PER_SECOND;
    let last = to.div_euclid(MICROS_PER_SECOND) * MICROS_PER_SECOND;
    let (sums, mut lsn) = counts.count(first, last).map_err(|e| QueryError::Failed(e.to_string()))?;
    let mut groups: BTreeMap<String, Tally> = BTreeMap::new();
    let mut total = Tally::default();
    let mut add = |values: &[&str], tally: Tally| {
        if question.kind.as_ref().is_some_and(|kind| values.first() != Some(&kind.as_str())) {
            return;
        }
        total.add(tally);
        if let Some(at) = group {
            groups.entry(values.get(at).copied().unwrap_or_default().to_owned()).or_default().add(tally);
        }
    };
    for (text, tally) in &sums {
        add(&text.split(SEPARATOR).collect::<Vec<_>>(), *tally);
    }
    let edges = edges(from, first, last, to);
    let mut views = vec![positions::counts(name)];
    if !edges.is_empty() {
        views.push(positions::table(name));
        let columns: Vec<&str> = std::iter::once(&def.kind).chain(&def.by).map(String::as_str).collect();
        let (rows, at) = edge_rows(name, &columns, stream.repeats().is_some(), &edges, handles, sql, now).await?;
        lsn = lsn.min(at);
        for (values, tally) in &rows {
            add(&values.iter().map(String::as_str).collect::<Vec<_>>(), *tally);
        }
    }
    let pick = |tally: &Tally| if question.repeats { tally.all } else { tally.acts };
    let as_of = handles.progress.as_of(lsn, std::slice::from_ref(name), &views, now);
    let mut answer = Map::new();
    answer.insert("count".into(), pick(&total).into());
    if let Some(column) = &question.by {
        let mut rows: Vec<(&String, u64)> = groups.iter().map(|(g, t)| (g, pick(t))).filter(|(_, n)| *n > 0).collect();
        rows.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
        let value = |g: &str| if g.is_empty() { Value::Null } else { g.into() };
        answer.insert("groups".into(), rows.iter().map(|(g, n)| json!({column: value(g), "count": n})).collect());
    }
    answer.insert("as_of".into(), json!(as_of));
    Ok(Value::Object(answer))
}

/// The parts of the range that are no whole seconds.
fn edges(from: Micros, first: Micros, last: Micros, to: Micros) -> Vec<(Micros, Micros)> {
    if first > last {
        return if from < to { vec![(from, to)] } else { Vec::new() };
    }
    [(from, first), (last, to)].into_iter().filter(|(a, b)| a < b).collect()
}

async fn edge_rows(
    stream: &str,
    columns: &[&str],
    has_repeats: bool,
    edges: &[(Micros, Micros)],
    handles: &Handles,
    sql: &SqlEngine,
    now: Micros,
) -> Result<(Vec<(Vec<String>, Tally)>, u64), QueryError> {
    let list: Vec<String> = columns.iter().map(|c| format!("coalesce(\"{c}\", '')")).collect();
    let list = list.join(", ");
    let acts = if has_repeats { "count(*) filter (where not repeat)" } else { "count(*)" };
    let micros = |t: Micros| format!("to_timestamp_micros({t})");
    let ranges: Vec<String> =
        edges.iter().map(|(a, b)| format!("event_time >= {} and event_time < {}", micros(*a), micros(*b))).collect();
    let query = format!(
        "select [{list}] as g, {acts} as acts, count(*) as n from \"{stream}\" where {} group by {list}",
        ranges.join(" or ")
    );
    let answer = sql.run(&query, handles, now).await?;
    let lines = to_ndjson(&answer.schema, &answer.batches)?;
    let rows = lines.split(|b| *b == b'\n').filter(|l| !l.is_empty()).filter_map(|line| {
        let row: Value = serde_json::from_slice(line).ok()?;
        let values = row["g"].as_array()?.iter().map(|v| v.as_str().unwrap_or_default().to_owned()).collect();
        Some((values, Tally { acts: row["acts"].as_u64()?, all: row["n"].as_u64()? }))
    });
    Ok((rows.collect(), answer.as_of.lsn))
}
