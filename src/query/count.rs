//! How many: sums over the counts view, with the parts of seconds at the edges read from the stream
//! table.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::encode::{each_row, write_object};
use super::spool::{Spools, Whole};
use super::sql::SqlEngine;
use super::{Handles, QueryError};
use crate::bounds::kept;
use crate::event::{MICROS_PER_SECOND, Micros};
use crate::operators::checkpoints;
use crate::views::counts::{Count, group};

/// What is asked.
#[derive(Debug, Clone, Default)]
pub struct CountQuery {
    pub stream: Option<String>,
    /// Only events of this type.
    pub kind: Option<String>,
    /// A column to count by.
    pub by: Option<String>,
    pub from: Option<Micros>,
    pub to: Option<Micros>,
    /// Count duplicates too.
    pub duplicates: bool,
}

/// `{"count": n, "groups": [{column, "count"}], "as_of": …}`.
pub async fn count(
    question: &CountQuery,
    handles: &Handles,
    sql: &SqlEngine,
    spools: &Spools,
    now: Micros,
) -> Result<Whole, QueryError> {
    let stream = handles.stream(question.stream.as_deref())?;
    let name = &stream.name;
    let (Some(def), Some(counts)) = (&stream.def.count, handles.counts.get(name)) else {
        return Err(QueryError::NotFound(format!(
            "stream `{name}` declares no `count`"
        )));
    };
    let columns: Vec<&str> = std::iter::once(&def.kind)
        .chain(&def.by)
        .map(String::as_str)
        .collect();
    let group = match &question.by {
        None => None,
        Some(column) => Some(columns.iter().position(|c| c == column).ok_or_else(|| {
            QueryError::Invalid(format!(
                "by = `{column}`: stream `{name}` counts by {}",
                columns.join(", ")
            ))
        })?),
    };
    // What lies below the retention's floor is no longer counted.
    let from = question
        .from
        .max(handles.floor(name))
        .unwrap_or(Micros::MIN / 2);
    let to = question.to.unwrap_or(Micros::MAX / 2);
    let first = -(-from).div_euclid(MICROS_PER_SECOND) * MICROS_PER_SECOND;
    let last = to.div_euclid(MICROS_PER_SECOND) * MICROS_PER_SECOND;
    let most = sql.most_rows();
    let mut sums = Sums {
        kind: question.kind.as_deref().map(kept),
        at: group,
        most,
        ..Sums::default()
    };
    let counted = tokio::task::block_in_place(|| {
        counts.count(first, last, &mut |text, tally| {
            sums.add(group::values(text), tally);
        })
    });
    let mut lsn = counted.map_err(|e| QueryError::Failed(e.to_string()))?;
    let edges = edges(from, first, last, to);
    let mut views = vec![checkpoints::counts(name)];
    if !edges.is_empty() {
        views.push(checkpoints::table(name));
        let edge = Edge {
            stream: name,
            columns: &columns,
            has_duplicates: stream.duplicates().is_some(),
            edges: &edges,
        };
        lsn = lsn.min(edge.add(&mut sums, handles, sql, now).await?);
    }
    if sums.groups.len() > most {
        return Err(QueryError::Limit(format!(
            "there are more than {most} groups (`[limits] sql_rows`); ask for a shorter time, or for one type"
        )));
    }
    let Sums { groups, total, .. } = sums;
    let pick = |tally: &Count| {
        if question.duplicates {
            tally.all
        } else {
            tally.acts
        }
    };
    let as_of = handles
        .progress
        .as_of(lsn, std::slice::from_ref(name), &views, now);
    let mut out = spools.begin();
    let Some(column) = &question.by else {
        out.json(&json!({"count": pick(&total), "as_of": as_of}))?;
        return out.finish();
    };
    let mut rows: Vec<(&String, u64)> = groups
        .iter()
        .map(|(g, t)| (g, pick(t)))
        .filter(|(_, n)| *n > 0)
        .collect();
    rows.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
    let value = |g: &str| if g.is_empty() { Value::Null } else { g.into() };
    let head = [("count", pick(&total).into())];
    tokio::task::block_in_place(|| {
        let groups = rows
            .iter()
            .map(|(g, n)| Ok(json!({column: value(g), "count": n})));
        write_object(&mut out, &head, "groups", |out| out.list(groups), &as_of)
    })?;
    out.finish()
}

/// What is counted of the groups asked for.
#[derive(Default)]
struct Sums<'a> {
    /// Only events of this type, as far as it is kept.
    kind: Option<Cow<'a, str>>,
    /// The value of a group that is counted by.
    at: Option<usize>,
    total: Count,
    groups: BTreeMap<String, Count>,
    /// One more is remembered, so that it shows.
    most: usize,
}

impl Sums<'_> {
    fn add<'v>(&mut self, values: impl Iterator<Item = Cow<'v, str>>, tally: Count) {
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
        return if from < to {
            vec![(from, to)]
        } else {
            Vec::new()
        };
    }
    [(from, first), (last, to)]
        .into_iter()
        .filter(|(a, b)| a < b)
        .collect()
}

/// What is asked of a stream's table: the parts of seconds at the edges of the range.
struct Edge<'a> {
    stream: &'a str,
    columns: &'a [&'a str],
    has_duplicates: bool,
    edges: &'a [(Micros, Micros)],
}

impl Edge<'_> {
    /// Adds them up; gives the LSN they reach. Only the columns that the answer needs tell groups
    /// apart.
    async fn add(
        &self,
        sums: &mut Sums<'_>,
        handles: &Handles,
        sql: &SqlEngine,
        now: Micros,
    ) -> Result<u64, QueryError> {
        let is_needed = |at: usize| Some(at) == sums.at || at == 0 && sums.kind.is_some();
        let value = |c: &str| format!("coalesce(\"{c}\", '')");
        let columns = || self.columns.iter().enumerate();
        let list: Vec<String> = columns()
            .map(|(at, c)| {
                if is_needed(at) {
                    value(c)
                } else {
                    "''".to_owned()
                }
            })
            .collect();
        let needed: Vec<String> = columns()
            .filter(|(at, _)| is_needed(*at))
            .map(|(_, c)| value(c))
            .collect();
        let by = if needed.is_empty() {
            String::new()
        } else {
            format!("group by {}", needed.join(", "))
        };
        let list = list.join(", ");
        let acts = if self.has_duplicates {
            "count(*) filter (where not is_duplicate)"
        } else {
            "count(*)"
        };
        let micros = |t: Micros| format!("to_timestamp_micros({t})");
        let ranges: Vec<String> = (self.edges.iter())
            .map(|(a, b)| {
                format!(
                    "event_time >= {} and event_time < {}",
                    micros(*a),
                    micros(*b)
                )
            })
            .collect();
        let query = format!(
            "select [{list}] as g, {acts} as acts, count(*) as n from \"{}\" where {} {by}",
            self.stream,
            ranges.join(" or ")
        );
        let answer = sql.run(&query, handles, now).await?;
        each_row(&answer.schema, &answer.batches, |line| {
            let row: Value =
                serde_json::from_slice(line).map_err(|e| QueryError::Failed(e.to_string()))?;
            let values = row["g"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|value| kept(value.as_str().unwrap_or_default()));
            let number = |name: &str| row[name].as_u64().unwrap_or(0);
            sums.add(
                values,
                Count {
                    acts: number("acts"),
                    all: number("n"),
                },
            );
            Ok(())
        })?;
        Ok(answer.as_of.lsn)
    }
}
