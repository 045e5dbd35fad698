//! How many: sums over the counts view, with the parts of seconds at the edges read from the stream table.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::sql::{SqlEngine, to_ndjson};
use super::{Handles, QueryError};
use crate::bounds::kept;
use crate::event::{MICROS_PER_SECOND, Micros};
use crate::operators::positions;
use crate::views::counts::{Tally, group};

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
    let most = sql.most_rows();
    let mut sums = Sums { kind: question.kind.as_deref().map(kept), at: group, most, ..Sums::default() };
    let counted = counts.count(first, last, &mut |text, tally| sums.add(group::values(text), tally));
    let mut lsn = counted.map_err(|e| QueryError::Failed(e.to_string()))?;
    let edges = edges(from, first, last, to);
    let mut views = vec![positions::counts(name)];
    if !edges.is_empty() {
        views.push(positions::table(name));
        let columns: Vec<&str> = std::iter::once(&def.kind).chain(&def.by).map(String::as_str).collect();
        let (rows, at) = edge_rows(name, &columns, stream.repeats().is_some(), &edges, handles, sql, now).await?;
        lsn = lsn.min(at);
        for (values, tally) in &rows {
            sums.add(values.iter().map(|value| kept(value)), *tally);
        }
    }
    if sums.groups.len() > most {
        return Err(QueryError::Invalid(format!(
            "there are more than {most} groups (`[limits] sql_rows`); ask for a shorter time, or for one type"
        )));
    }
    let Sums { groups, total, .. } = sums;
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

/// What is counted of the groups asked for.
#[derive(Default)]
struct Sums<'a> {
    /// Only events of this type, as far as it is kept.
    kind: Option<Cow<'a, str>>,
    /// The value of a group that is counted by.
    at: Option<usize>,
    total: Tally,
    groups: BTreeMap<String, Tally>,
    /// One more is remembered, so that it shows.
    most: usize,
}

impl Sums<'_> {
    fn add<'v>(&mut self, values: impl Iterator<Item = Cow<'v, str>>, tally: Tally) {
        let (mut value, mut is_wanted) = (None, self.kind.is_none());
        for (n, own) in values.enumerate() {
            is_wanted |= n == 0 && self.kind.as_ref() == Some(&own);
            if self.at == Some(n) {
                value = Some(own);
            }
        }
        if !is_wanted {
            return;
        }
        self.total.add(tally);
        if self.at.is_some() {
            let value = value.unwrap_or_default();
            if let Some(sum) = self.groups.get_mut(value.as_ref()) {
                sum.add(tally);
            } else if self.groups.len() <= self.most {
                self.groups.insert(value.into_owned(), tally);
            }
        }
    }
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
