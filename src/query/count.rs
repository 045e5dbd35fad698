//! Counts of events: sums over the counts view, with the fractions of seconds at the ends of the
//! range read from the stream table.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::encode::{each_row, write_object};
use super::spool::{SpooledAnswer, Spools};
use super::sql::SqlEngine;
use super::{AsOf, Handles, QueryError};
use crate::bounds::truncate_with_hash;
use crate::event::{Lsn, MICROS_PER_SECOND, Micros};
use crate::ids::{TableId, ViewId};
use crate::views::counts::{Count, group};

/// A count query.
#[derive(Debug, Clone, Default)]
pub struct CountQuery {
    /// The first stream by default.
    pub stream: Option<String>,
    /// Only events of this type.
    pub kind: Option<String>,
    /// A column to group by.
    pub by: Option<String>,
    /// Only event times from this one on.
    pub from: Option<Micros>,
    /// Only event times before this one.
    pub to: Option<Micros>,
    /// Count duplicates too.
    pub duplicates: bool,
}

/// `{"count": n, "groups": [{column, "count"}], "as_of": …}`.
pub async fn count(
    query: &CountQuery,
    handles: &Handles,
    sql: &SqlEngine,
    spools: &Spools,
    now: Micros,
) -> Result<SpooledAnswer, QueryError> {
    let stream = handles.stream(query.stream.as_deref())?;
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
    let max_groups = sql.max_rows();
    let mut sums = Sums {
        kind: query.kind.as_deref().map(truncate_with_hash),
        group_column: group_column(name, query.by.as_deref(), &columns)?,
        max_groups,
        ..Sums::default()
    };
    // Events below the retention floor are not counted.
    let range = split_range(query.from.max(handles.floor(name)), query.to);
    let counted = tokio::task::block_in_place(|| {
        counts.count(range.first, range.last, &mut |text, count| {
            sums.add(group::values(text), count);
        })
    });
    let mut lsn = counted.map_err(|e| QueryError::Failed(e.to_string()))?;
    let mut views = vec![ViewId::counts(name)];
    if !range.edges.is_empty() {
        views.push(TableId::stream(name).view());
        let edges = EdgeQuery {
            stream: name,
            columns: &columns,
            has_duplicates: stream.duplicates().is_some(),
            edges: &range.edges,
        };
        lsn = lsn.min(edges.add_to(&mut sums, handles, sql, now).await?);
    }
    if sums.groups.len() > max_groups {
        return Err(QueryError::Limit(format!(
            "there are more than {max_groups} groups (`[limits] sql_rows`); query a shorter time, or one type"
        )));
    }
    let as_of = handles
        .progress
        .as_of(lsn, std::slice::from_ref(name), &views, now);
    write(query, &sums, &as_of, spools)
}

/// The index of the column to group by among those that a stream counts by.
fn group_column(
    stream: &str,
    by: Option<&str>,
    columns: &[&str],
) -> Result<Option<usize>, QueryError> {
    let Some(by) = by else { return Ok(None) };
    let at = columns.iter().position(|column| *column == by);
    at.map(Some).ok_or_else(|| {
        QueryError::Invalid(format!(
            "by = `{by}`: stream `{stream}` counts by {}",
            columns.join(", ")
        ))
    })
}

fn write(
    query: &CountQuery,
    sums: &Sums<'_>,
    as_of: &AsOf,
    spools: &Spools,
) -> Result<SpooledAnswer, QueryError> {
    let pick = |count: &Count| {
        if query.duplicates {
            count.total
        } else {
            count.distinct
        }
    };
    let total = pick(&sums.total);
    let mut out = spools.begin();
    let Some(column) = &query.by else {
        out.json(&json!({"count": total, "as_of": as_of}))?;
        return out.finish();
    };
    let mut rows: Vec<(&String, u64)> = sums
        .groups
        .iter()
        .map(|(group, count)| (group, pick(count)))
        .filter(|(_, n)| *n > 0)
        .collect();
    rows.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
    let value = |group: &str| {
        if group.is_empty() {
            Value::Null
        } else {
            group.into()
        }
    };
    let head = [("count", total.into())];
    tokio::task::block_in_place(|| {
        let groups = rows
            .iter()
            .map(|(group, n)| Ok(json!({column: value(group), "count": n})));
        write_object(&mut out, &head, "groups", |out| out.list(groups), as_of)
    })?;
    out.finish()
}

/// A time range, split into whole seconds, which the counts view answers, and the rest.
#[derive(Debug, PartialEq, Eq)]
struct SplitRange {
    /// Whole seconds: from this one on, and before that one. None if `first >= last`.
    first: Micros,
    last: Micros,
    /// Ranges of less than a second at the ends.
    edges: Vec<(Micros, Micros)>,
}

/// Example, in seconds: 1.5 to 4.2 is split into 2 to 4, 1.5 to 2, and 4 to 4.2.
fn split_range(from: Option<Micros>, to: Option<Micros>) -> SplitRange {
    let from = from.unwrap_or(Micros::MIN / 2);
    let to = to.unwrap_or(Micros::MAX / 2);
    let first = -(-from).div_euclid(MICROS_PER_SECOND) * MICROS_PER_SECOND;
    let last = to.div_euclid(MICROS_PER_SECOND) * MICROS_PER_SECOND;
    let edges = if first > last {
        vec![(from, to)]
    } else {
        vec![(from, first), (last, to)]
    };
    SplitRange {
        first,
        last,
        edges: edges.into_iter().filter(|(a, b)| a < b).collect(),
    }
}

/// Sums of the events that a query selects, by group.
#[derive(Default)]
struct Sums<'a> {
    /// Only events of this type, truncated as in the counts view.
    kind: Option<Cow<'a, str>>,
    /// The index of the column to group by.
    group_column: Option<usize>,
    total: Count,
    groups: BTreeMap<String, Count>,
    /// One more group is stored, to detect that there are too many.
    max_groups: usize,
}

impl Sums<'_> {
    fn add<'v>(&mut self, values: impl Iterator<Item = Cow<'v, str>>, count: Count) {
        let (mut group, mut is_selected) = (None, self.kind.is_none());
        for (n, value) in values.enumerate() {
            is_selected |= n == 0 && self.kind.as_ref() == Some(&value);
            if self.group_column == Some(n) {
                group = Some(value);
            }
        }
        if !is_selected {
            return;
        }
        self.total.add(count);
        if self.group_column.is_some() {
            let group = group.unwrap_or_default();
            if let Some(sum) = self.groups.get_mut(group.as_ref()) {
                sum.add(count);
            } else if self.groups.len() <= self.max_groups {
                self.groups.insert(group.into_owned(), count);
            }
        }
    }
}

/// Counts the events at the edges of the range from the stream's table.
struct EdgeQuery<'a> {
    stream: &'a str,
    columns: &'a [&'a str],
    has_duplicates: bool,
    edges: &'a [(Micros, Micros)],
}

impl EdgeQuery<'_> {
    /// Adds the counts, grouped only by the columns that the answer needs. Returns the LSN that they
    /// reach.
    async fn add_to(
        &self,
        sums: &mut Sums<'_>,
        handles: &Handles,
        sql: &SqlEngine,
        now: Micros,
    ) -> Result<Lsn, QueryError> {
        let is_needed = |at: usize| Some(at) == sums.group_column || at == 0 && sums.kind.is_some();
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
        let distinct = if self.has_duplicates {
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
            "select [{list}] as g, {distinct} as acts, count(*) as n from \"{}\" where {} {by}",
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
                .map(|value| truncate_with_hash(value.as_str().unwrap_or_default()));
            let number = |name: &str| row[name].as_u64().unwrap_or(0);
            sums.add(
                values,
                Count {
                    distinct: number("acts"),
                    total: number("n"),
                },
            );
            Ok(())
        })?;
        Ok(answer.as_of.lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_split_into_seconds_and_edges() {
        let split = |from: Micros, to: Micros| split_range(Some(from), Some(to));
        let range = |first, last, edges: &[(Micros, Micros)]| SplitRange {
            first,
            last,
            edges: edges.to_vec(),
        };
        let (s, half) = (MICROS_PER_SECOND, MICROS_PER_SECOND / 2);
        assert_eq!(split(s, 3 * s), range(s, 3 * s, &[]));
        assert_eq!(
            split(s + half, 4 * s + 2),
            range(2 * s, 4 * s, &[(s + half, 2 * s), (4 * s, 4 * s + 2)])
        );
        assert_eq!(
            split(s + 1, s + half),
            range(2 * s, s, &[(s + 1, s + half)])
        );
        assert_eq!(split(-half, half), range(0, 0, &[(-half, 0), (0, half)]));
        assert_eq!(split(3 * s, s), range(3 * s, s, &[]));
        assert!(split_range(None, Some(s)).edges.len() <= 1);
    }

    #[test]
    fn sums_are_of_the_selected_type_and_by_group() {
        let mut sums = Sums {
            kind: Some("open".into()),
            group_column: Some(1),
            max_groups: 1,
            ..Sums::default()
        };
        for (kind, group, all) in [
            ("open", "a", 2),
            ("close", "a", 4),
            ("open", "b", 8),
            ("open", "c", 16),
            ("open", "a", 32),
        ] {
            let count = Count {
                distinct: 1,
                total: all,
            };
            sums.add([kind, group].into_iter().map(Cow::from), count);
        }
        assert_eq!(sums.total.total, 58);
        let groups: Vec<(&str, u64)> = sums
            .groups
            .iter()
            .map(|(group, count)| (group.as_str(), count.total))
            .collect();
        assert_eq!(
            groups,
            [("a", 34), ("b", 8)],
            "one more than the limit shows"
        );
    }
}
