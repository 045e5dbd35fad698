//! Facets: the most frequent values of some columns among the hits of a search.
//!
//! The rows of the hits are read from the index, the newest first, until all are counted or a limit
//! is reached. The answer says how many were.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use serde_json::{Value, json};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::execute::{HitPage, Search};
use super::render::Events;
use super::{SearchQuery, Sort, as_of, plan};
use crate::event::Micros;
use crate::query::encode::write_object;
use crate::query::spool::{SpooledAnswer, Spools};
use crate::query::{Handles, QueryError};
use crate::views::lake::LakeTable;

/// Maximum hits whose rows are read.
const MAX_HITS: usize = 50_000;
/// No more rows are read after this many uncompressed bytes: records may be large, and hits that
/// are far apart cost a block each.
const MAX_READ_BYTES: usize = 1 << 30;
/// Hits that are read together, in the order of their documents, so that neighbours share a block.
const CHUNK_HITS: usize = 2_000;
/// Maximum columns, filters, and values of a column in an answer.
const MAX_COLUMNS: usize = 16;
const MAX_FILTERS: usize = 64;
const MAX_VALUES: usize = 100;
/// Maximum bytes of the different values of a column; each counts as this many more than its text.
const MAX_DISTINCT_BYTES: usize = 1 << 20;
const VALUE_BYTES: usize = 16;

/// Facets that are computed at once; other queries wait.
static SLOTS: Semaphore = Semaphore::const_new(2);

/// A request for facets.
#[derive(Debug, Clone, Default)]
pub struct FacetQuery {
    /// The search. Its order, limit and cursor have no effect.
    pub search: SearchQuery,
    /// The columns whose values are counted.
    pub columns: Vec<String>,
    /// Values that a hit must have in other columns; of a list, one item must be the value.
    pub filters: Vec<(String, Value)>,
    /// Maximum values of a column in the answer, the most frequent first.
    pub values: usize,
}

impl FacetQuery {
    fn check(&self) -> Result<(), QueryError> {
        if self.columns.is_empty() {
            let message = "columns is empty: name those whose values are counted".to_owned();
            return Err(QueryError::Invalid(message));
        }
        let limits = [
            ("columns", self.columns.len(), MAX_COLUMNS),
            ("conditions in where", self.filters.len(), MAX_FILTERS),
            ("values of a column", self.values, MAX_VALUES),
        ];
        match limits.iter().find(|(_, number, max)| number > max) {
            Some((what, number, max)) => {
                Err(QueryError::Limit(format!("{number} {what}: at most {max}")))
            }
            None => Ok(()),
        }
    }

    /// The indexes in `table` of all columns that are read.
    fn column_indexes(&self, table: &LakeTable) -> Result<Vec<usize>, QueryError> {
        let filtered = self.filters.iter().map(|(column, _)| column);
        let index = |name: &String| {
            let found = table.full_schema.column_with_name(name);
            found
                .map(|(index, _)| index)
                .ok_or_else(|| QueryError::Invalid(format!("`{name}` is not a column")))
        };
        let indexes: Result<BTreeSet<usize>, QueryError> =
            self.columns.iter().chain(filtered).map(index).collect();
        Ok(indexes?.into_iter().collect())
    }

    fn accepts(&self, event: &Value) -> bool {
        let has = |(column, wanted): &(String, Value)| has_value(&event[column.as_str()], wanted);
        self.filters.iter().all(has)
    }
}

/// Whether a value, or an item of a list, is the one that is asked for.
fn has_value(own: &Value, wanted: &Value) -> bool {
    match own {
        Value::Array(items) => items.iter().any(|item| is_equal(item, wanted)),
        own => is_equal(own, wanted),
    }
}

/// Clients that have doubles alone send large whole numbers as texts, and 1.0 as 1.
fn is_equal(own: &Value, wanted: &Value) -> bool {
    match (own, wanted) {
        (Value::Number(a), Value::Number(b)) if a.is_f64() || b.is_f64() => {
            a.as_f64() == b.as_f64()
        }
        (Value::Number(a), Value::String(b)) => a.to_string() == *b,
        _ => own == wanted,
    }
}

/// `{"total", "counted", "matching", "facets": [{"column", "distinct", "complete", "values":
/// [{"value", "n"}]}], "as_of"}`. Of `total` hits the newest `counted` were read, and `matching` of
/// them pass the filters; where [`MAX_READ_BYTES`] ends it, the last chunk's are not its newest.
/// `complete` is false where a column had too many different values.
pub async fn facets(
    query: &FacetQuery,
    handles: &Handles,
    spools: &Spools,
    now: Micros,
) -> Result<SpooledAnswer, QueryError> {
    query.check()?;
    let newest = SearchQuery {
        sort: Sort::Time,
        limit: MAX_HITS,
        after: None,
        ..query.search.clone()
    };
    let slot = SLOTS.acquire().await;
    let slot = slot.map_err(|e| QueryError::Failed(e.to_string()))?;
    // Planned after the wait, so that waiting requests hold no index open.
    let plan = plan(&newest, handles, None, now)?;
    let counting = Counting {
        columns: query.column_indexes(&plan.table)?,
        search: plan.search,
        table: plan.table,
        query: query.clone(),
    };
    let counted = run_in_slot(slot, move |client| counting.run(client)).await??;
    let as_of = as_of(handles, &plan.stream, plan.visible, now);
    let head = [
        ("total", counted.total.into()),
        ("counted", counted.counted.into()),
        ("matching", counted.matching.into()),
    ];
    let facets = query.columns.iter().zip(counted.columns);
    let facets = facets.map(|(column, values)| Ok(values.into_json(column, query.values)));
    let mut out = spools.begin();
    tokio::task::block_in_place(|| {
        write_object(&mut out, &head, "facets", |out| out.list(facets), &as_of)
    })?;
    out.finish()
}

/// Runs work on a thread that may wait for the disk. The slot is taken until the work is done, also
/// where the client has left before; the work learns of that from [`Client`].
async fn run_in_slot<T: Send + 'static>(
    slot: SemaphorePermit<'static>,
    work: impl FnOnce(&Client) -> T + Send + 'static,
) -> Result<T, QueryError> {
    // Dropped with this future.
    let waiting = Arc::new(());
    let client = Client(Arc::downgrade(&waiting));
    let done = tokio::task::spawn_blocking(move || {
        let _slot = slot;
        work(&client)
    });
    done.await.map_err(|e| QueryError::Failed(e.to_string()))
}

/// The client of a request, as a thread sees it.
struct Client(Weak<()>);

impl Client {
    fn has_left(&self) -> bool {
        self.0.strong_count() == 0
    }
}

/// Whether no more hits are read: nobody waits for the answer, or too many bytes were read.
fn has_ended(client: &Client, bytes_read: usize) -> bool {
    client.has_left() || bytes_read >= MAX_READ_BYTES
}

/// Counts the values of a search's hits.
struct Counting {
    query: FacetQuery,
    search: Search,
    table: Arc<LakeTable>,
    /// The indexes of the columns that are read.
    columns: Vec<usize>,
}

impl Counting {
    fn run(self, client: &Client) -> Result<Counted, QueryError> {
        let searchers = self.search.searchers.clone();
        let HitPage {
            mut hits, total, ..
        } = self.search.run()?;
        let mut counted = Counted::new(total, self.query.columns.len());
        let mut bytes_read = 0;
        for chunk in hits.chunks_mut(CHUNK_HITS) {
            chunk.sort_unstable_by_key(|hit| hit.address);
            let events = Events::new(&searchers, &self.table, chunk);
            let mut events = events.with_columns(&self.columns);
            // Also within a chunk: large records are read in many batches.
            while !has_ended(client, bytes_read + events.bytes_read)
                && let Some(event) = events.next()
            {
                counted.add(&event?, &self.query);
            }
            bytes_read += events.bytes_read;
        }
        Ok(counted)
    }
}

/// Values of hits.
struct Counted {
    /// Hits of the search.
    total: usize,
    /// Hits that were read, and those of them that pass the filters.
    counted: usize,
    matching: usize,
    /// In the order of the query's columns.
    columns: Vec<ValueCounts>,
}

impl Counted {
    fn new(total: usize, columns: usize) -> Self {
        Self {
            total,
            counted: 0,
            matching: 0,
            columns: (0..columns).map(|_| ValueCounts::default()).collect(),
        }
    }

    fn add(&mut self, event: &Value, query: &FacetQuery) {
        self.counted += 1;
        if !query.accepts(event) {
            return;
        }
        self.matching += 1;
        for (column, counts) in query.columns.iter().zip(&mut self.columns) {
            counts.add(&event[column.as_str()]);
        }
    }
}

/// How many events have a value, and the number of the last of them: an item that is in a list
/// twice is one event's.
struct Number {
    n: u64,
    last_event: u64,
}

/// Numbers of events by the value of a column, or by the items of a list.
#[derive(Default)]
struct ValueCounts {
    /// By the value as JSON.
    numbers: HashMap<String, Number>,
    /// Events so far.
    events: u64,
    bytes: usize,
    /// Whether there were too many different values to count all of them.
    is_capped: bool,
}

impl ValueCounts {
    fn add(&mut self, value: &Value) {
        self.events += 1;
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.add_one(item)),
            value => self.add_one(value),
        }
    }

    fn add_one(&mut self, value: &Value) {
        if value.is_null() || *value == "" {
            return;
        }
        let text = value.to_string();
        let last_event = self.events;
        if let Some(number) = self.numbers.get_mut(&text) {
            number.n += u64::from(number.last_event != last_event);
            number.last_event = last_event;
            return;
        }
        let bytes = self.bytes + text.len() + VALUE_BYTES;
        if bytes > MAX_DISTINCT_BYTES {
            self.is_capped = true;
        } else {
            self.bytes = bytes;
            self.numbers.insert(text, Number { n: 1, last_event });
        }
    }

    fn into_json(self, column: &str, limit: usize) -> Value {
        let distinct = self.numbers.len();
        let numbers = self.numbers.into_iter();
        let mut all: Vec<(String, u64)> = numbers.map(|(text, number)| (text, number.n)).collect();
        all.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let value = |(text, n): (String, u64)| {
            let value: Value = serde_json::from_str(&text).unwrap_or_default();
            json!({"value": value, "n": n})
        };
        let values: Vec<Value> = all.into_iter().take(limit).map(value).collect();
        json!({
            "column": column,
            "distinct": distinct,
            "complete": !self.is_capped,
            "values": values,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::mpsc::channel;

    use futures::poll;

    use super::*;

    #[tokio::test]
    async fn a_slot_is_free_once_the_work_of_a_client_that_left_has_ended() {
        static SLOT: Semaphore = Semaphore::const_new(1);
        let (end, may_end) = channel::<()>();
        let (left, has_left) = channel();
        let slot = SLOT.acquire().await.expect("a slot");
        {
            let work = pin!(run_in_slot(slot, move |client| {
                may_end.recv().expect("the test ends it");
                left.send(client.has_left()).expect("the test waits");
            }));
            assert!(poll!(work).is_pending());
        }
        assert!(SLOT.try_acquire().is_err(), "the thread still works");
        end.send(()).expect("the thread waits");
        let _free = SLOT.acquire().await.expect("a slot");
        assert_eq!(has_left.recv(), Ok(true));
    }

    #[test]
    fn reading_ends_with_its_client_and_after_too_many_bytes() {
        let waiting = Arc::new(());
        let client = Client(Arc::downgrade(&waiting));
        assert!(!has_ended(&client, MAX_READ_BYTES - 1));
        assert!(has_ended(&client, MAX_READ_BYTES));
        drop(waiting);
        assert!(has_ended(&client, 0));
    }

    #[test]
    fn a_long_list_costs_no_comparison_of_its_items_with_each_other() {
        let mut counts = ValueCounts::default();
        let items: Vec<u32> = (0..400_000).map(|n| n % 40_000).collect();
        counts.add(&json!(items));
        counts.add(&json!(7));
        assert!(!counts.is_capped);
        assert_eq!(counts.numbers.len(), 40_000);
        let answer = counts.into_json("x", 1);
        assert_eq!(answer["values"], json!([{"value": 7, "n": 2}]));
    }

    #[test]
    fn values_and_items_of_lists_are_counted_once_per_event() {
        let mut counts = ValueCounts::default();
        for value in [
            json!("b"),
            json!(["b", "a", "b"]),
            json!(["c", null, ""]),
            json!(null),
            json!(""),
            json!([]),
            json!("c"),
        ] {
            counts.add(&value);
        }
        let expected = json!({"column": "x", "distinct": 3, "complete": true, "values": [
            {"value": "b", "n": 2}, {"value": "c", "n": 2}]});
        assert_eq!(counts.into_json("x", 2), expected);
    }

    #[test]
    fn too_many_different_values_are_reported() {
        let mut counts = ValueCounts::default();
        let large = "x".repeat(MAX_DISTINCT_BYTES / 2);
        for value in ["1", "2", "3", "1"] {
            counts.add(&json!(format!("{value}{large}")));
        }
        assert_eq!(counts.numbers.len(), 1);
        let answer = counts.into_json("x", 10);
        let facts = (&answer["complete"], &answer["values"][0]["n"]);
        assert_eq!(facts, (&json!(false), &json!(2)));
    }

    #[test]
    fn filters_compare_as_clients_write_values() {
        for (own, wanted, expected) in [
            (json!("a"), json!("a"), true),
            (json!("a"), json!("b"), false),
            (json!(["a", "b"]), json!("b"), true),
            (json!([]), json!(null), false),
            (json!(null), json!(null), true),
            (json!(1.0), json!(1), true),
            (json!(7), json!("7"), true),
            (json!("7"), json!(7), false),
            (
                json!(9_007_199_254_740_993_i64),
                json!(9_007_199_254_740_992_i64),
                false,
            ),
            (
                json!(9_007_199_254_740_993_i64),
                json!("9007199254740993"),
                true,
            ),
            (json!(true), json!(true), true),
        ] {
            assert_eq!(has_value(&own, &wanted), expected, "{own} {wanted}");
        }
    }

    #[test]
    fn requests_are_bounded() {
        let query = |columns: usize, filters: usize, values: usize| FacetQuery {
            columns: vec!["x".to_owned(); columns],
            filters: vec![("x".to_owned(), json!(1)); filters],
            values,
            ..FacetQuery::default()
        };
        assert!(query(MAX_COLUMNS, MAX_FILTERS, MAX_VALUES).check().is_ok());
        for query in [
            query(0, 0, 1),
            query(MAX_COLUMNS + 1, 0, 1),
            query(1, MAX_FILTERS + 1, 1),
            query(1, 0, MAX_VALUES + 1),
        ] {
            assert!(query.check().is_err(), "{query:?}");
        }
    }
}
