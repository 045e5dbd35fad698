//! The next rows of a sink's tables above its cursor, from files and from memory alike.
//!
//! A sink of one table gets a few thousand rows at a time, in the order of their LSNs; of an entity
//! table, the changed rows leaf by leaf ([`ChangedRows`]). A sink of several tables gets all of them
//! up to one LSN as one delivery, which its target writes as one transaction.
//!
//! Several tables refer to one another: the row of an event has the key of a member. The views of
//! the tables advance on their own, so the tables are read in an order in which a table comes after
//! those that refer to it, each once it is at least as far as the one before. Example: the events
//! are read as of record 100, then the members as of 103. Every member that the events up to 100
//! name is there. The next delivery has the members' rows above 100 again; the target replaces them
//! by themselves.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;

use super::SinkError;
use super::cursor::{Cursor, EntityScan};
use super::table::SinkTable;
use crate::event::{Lsn, Micros};
use crate::sources::Stop;
use crate::views::lake::LakeError;
use crate::views::lake::TableState;
use crate::views::lake::entities::changes::ChangedRows;
use crate::views::lake::scan_by_lsn::{LsnOrderedRows, RangeLimits};

/// Rows of one delivery of one table: LSNs at first and at most, and the bytes to aim at.
const LIMITS: RangeLimits = RangeLimits {
    first: 4 << 10,
    max: 32 << 10,
    bytes: 8 << 20,
};
/// An entity table's leaves are read until there are so many rows, or so many bytes.
const SCAN_ROWS: usize = 16 << 10;
/// How long one table waits for the view of another.
const VIEW_WAIT: Duration = Duration::from_millis(5);
const MAX_VIEW_WAITS: usize = 6_000;

/// Rows of one table of the sink.
pub struct Batch {
    /// The index of the table in the sink.
    pub table: usize,
    /// In the columns of the table.
    pub rows: RecordBatch,
}

/// Rows to write, and the cursor after them.
pub struct Delivery {
    parts: VecDeque<(usize, Part)>,
    /// Of a sink of one table: where the rows after these come from.
    following: Option<(LsnOrderedRows, KnownFloor)>,
    next: Cursor,
    floors: Vec<Option<Micros>>,
    rows_read: u64,
}

enum Part {
    Rows(RecordBatch),
    ByLsn(LsnOrderedRows, KnownFloor),
    Changed(ChangedRows),
}

/// Rows below this time had left the table when the cursor was stored; unknown of a new cursor.
type KnownFloor = Option<Option<Micros>>;

impl Delivery {
    /// The next rows; `None` at the end.
    pub fn next_batch(&mut self) -> Result<Option<Batch>, SinkError> {
        while let Some((table, part)) = self.parts.front_mut() {
            let table = *table;
            let rows = match part {
                Part::Rows(rows) => {
                    let rows = rows.clone();
                    self.parts.pop_front();
                    self.rows_read += rows.num_rows() as u64;
                    return Ok(Some(Batch { table, rows }));
                }
                Part::ByLsn(rows, known) => next_by_lsn(rows, *known)?,
                Part::Changed(rows) => rows.next_rows()?,
            };
            match rows {
                Some(rows) => {
                    self.rows_read += rows.num_rows() as u64;
                    return Ok(Some(Batch { table, rows }));
                }
                None => drop(self.parts.pop_front()),
            }
        }
        Ok(None)
    }

    /// Adds the rows that follow, as of the same moment, if there are any: a target whose commits
    /// are slow then has fewer of them. It moves the cursor. After `until` nothing is added.
    pub fn extend(&mut self, until: Instant) -> Result<bool, SinkError> {
        // What is in memory is released, as soon as nothing more is read of it.
        let Some((mut rows, known)) = self.following.take().filter(|_| Instant::now() < until)
        else {
            return Ok(false);
        };
        let added = next_by_lsn(&mut rows, known)?;
        self.next.lsn = rows.position();
        let is_extended = added.is_some();
        if let Some(added) = added {
            self.parts.push_back((0, Part::Rows(added)));
            self.following = Some((rows, known));
        }
        Ok(is_extended)
    }

    /// The cursor once all rows are written.
    pub fn next_cursor(&self) -> Cursor {
        self.next
    }

    /// Rows that were read of it so far.
    pub fn rows_read(&self) -> u64 {
        self.rows_read
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Below which times rows of the tables had left when it was read.
    pub fn floors(&self) -> &[Option<Micros>] {
        &self.floors
    }
}

fn next_by_lsn(
    rows: &mut LsnOrderedRows,
    known: KnownFloor,
) -> Result<Option<RecordBatch>, SinkError> {
    let next = rows.next_rows()?;
    // What was below the floor when the cursor was stored came too late to be part of the table.
    match (rows.newest_hidden(), known) {
        (Some(hidden), Some(floor)) if Some(hidden) >= floor => Err(SinkError::left_by_retention()),
        _ => Ok(next),
    }
}

/// Reads the tables of a sink.
pub struct Reader {
    tables: Vec<SinkTable>,
    /// In which order they are read if they are several: each after those that refer to it.
    order: Vec<usize>,
    /// Whether what follows a delivery is held for [`Delivery::extend`].
    extends: bool,
    /// The size of the next range, which follows from the one before.
    range: u64,
}

impl Reader {
    /// Of these tables; `order` has the indexes of all of them.
    pub fn new(tables: Vec<SinkTable>, order: Vec<usize>, extends: bool) -> Self {
        Self {
            tables,
            order,
            extends,
            range: LIMITS.first,
        }
    }

    /// What retention has removed of each table, by the last record.
    pub fn dropped(&self) -> BTreeMap<String, Lsn> {
        dropped(&self.tables)
    }

    /// What comes after a cursor; `None` if nothing does yet.
    pub fn next_delivery(
        &mut self,
        cursor: &Cursor,
        known: &KnownLosses<'_>,
        stop: &Stop,
    ) -> Result<Option<Delivery>, SinkError> {
        match self.tables.as_slice() {
            [table] if table.is_entity() => next_changed(table, cursor),
            [table] => {
                let table = table.clone();
                self.next_range(&table, cursor, known)
            }
            _ => self.next_of_all(cursor, known, stop),
        }
    }

    fn next_range(
        &mut self,
        table: &SinkTable,
        cursor: &Cursor,
        known: &KnownLosses<'_>,
    ) -> Result<Option<Delivery>, SinkError> {
        let state = table.table.snapshot();
        if state.applied <= cursor.lsn {
            return Ok(None);
        }
        known.check(table, &state, cursor)?;
        let limits = RangeLimits {
            first: self.range,
            ..LIMITS
        };
        let lsns = (cursor.lsn, state.applied);
        let mut rows = LsnOrderedRows::of_snapshot(&table.table, &state, lsns, limits)?;
        let floor = known.floor(table);
        let first = next_by_lsn(&mut rows, floor)?;
        self.range = rows.range();
        let next = Cursor {
            lsn: rows.position(),
            scan: None,
            ..*cursor
        };
        // Rows that the floor has passed since may follow: they are compared with the known one.
        let floors = match floor {
            Some(known) if next.lsn < state.applied => known,
            _ => state.floor(),
        };
        let following = (self.extends && first.is_some()).then_some((rows, floor));
        Ok(Some(Delivery {
            parts: first
                .map(|rows| (0, Part::Rows(rows)))
                .into_iter()
                .collect(),
            following,
            next,
            floors: vec![floors],
            rows_read: 0,
        }))
    }

    fn next_of_all(
        &self,
        cursor: &Cursor,
        known: &KnownLosses<'_>,
        stop: &Stop,
    ) -> Result<Option<Delivery>, SinkError> {
        let (mut parts, mut floors_now) = (VecDeque::new(), vec![None; self.tables.len()]);
        let (mut to, mut reached) = (None, 0);
        for at in &self.order {
            let table = &self.tables[*at];
            wait_for_view(table, reached, stop)?;
            let state = table.table.snapshot();
            reached = state.applied;
            let to = *to.get_or_insert(reached);
            if to <= cursor.lsn {
                return Ok(None);
            }
            floors_now[*at] = state.floor();
            let part = if table.is_entity() {
                let lsns = (cursor.lsn, Lsn::MAX);
                Part::Changed(ChangedRows::of_snapshot(&table.table, &state, lsns, 0)?)
            } else {
                known.check(table, &state, cursor)?;
                let lsns = (cursor.lsn, to);
                let rows = LsnOrderedRows::of_snapshot(&table.table, &state, lsns, LIMITS)?;
                Part::ByLsn(rows, known.floor(table))
            };
            // What others refer to is written first.
            parts.push_front((*at, part));
        }
        let next = Cursor {
            lsn: to.unwrap_or(cursor.lsn),
            scan: None,
            ..*cursor
        };
        Ok(Some(Delivery {
            parts,
            following: None,
            next,
            floors: floors_now,
            rows_read: 0,
        }))
    }
}

/// What retention has removed of each table, by the last record.
pub fn dropped(tables: &[SinkTable]) -> BTreeMap<String, Lsn> {
    let tables = tables.iter();
    tables
        .map(|table| (table.name.clone(), table.table.dropped_lsn()))
        .collect()
}

/// What had left each table already: the rest of what is gone is lost to the sink.
pub struct KnownLosses<'a> {
    /// The last record of which retention had removed a row, when the sink began or was reset.
    pub dropped: &'a BTreeMap<String, Lsn>,
    /// Rows below these times were hidden when the cursor was stored.
    pub floors: &'a BTreeMap<String, Option<Micros>>,
}

impl KnownLosses<'_> {
    fn floor(&self, table: &SinkTable) -> KnownFloor {
        self.floors.get(&table.name).copied()
    }

    /// Refuses to continue where retention has removed rows above the cursor since.
    fn check(
        &self,
        table: &SinkTable,
        state: &TableState,
        cursor: &Cursor,
    ) -> Result<(), SinkError> {
        let known = self.dropped.get(&table.name).copied().unwrap_or_default();
        if state.dropped_lsn > known.max(cursor.lsn) {
            return Err(SinkError::left_by_retention());
        }
        Ok(())
    }
}

/// Waits until the view of a table has applied a record.
fn wait_for_view(table: &SinkTable, lsn: Lsn, stop: &Stop) -> Result<(), SinkError> {
    for _ in 0..MAX_VIEW_WAITS {
        if table.table.applied() >= lsn {
            return Ok(());
        }
        if stop.wait(VIEW_WAIT) {
            break;
        }
    }
    let name = &table.name;
    Err(SinkError::Unavailable(format!(
        "the view of `{name}` has not reached record {lsn} yet"
    )))
}

/// The changed rows of some leaves of an entity table.
fn next_changed(table: &SinkTable, cursor: &Cursor) -> Result<Option<Delivery>, SinkError> {
    let state = table.table.snapshot();
    if state.applied <= cursor.lsn {
        return Ok(None);
    }
    let scan = cursor.scan.unwrap_or(EntityScan {
        to: state.applied,
        from_place: 0,
    });
    if state.applied < scan.to {
        // After a restart the view may not have what it had when the scan began.
        return Ok(None);
    }
    let lsns = (cursor.lsn, scan.to);
    let mut changed = ChangedRows::of_snapshot(&table.table, &state, lsns, scan.from_place)?;
    let (mut parts, mut rows, mut bytes) = (VecDeque::new(), 0, 0);
    while rows < SCAN_ROWS
        && bytes < LIMITS.bytes
        && let Some(batch) = changed.next_rows()?
    {
        rows += batch.num_rows();
        bytes += batch.get_array_memory_size() as u64;
        parts.push_back((0, Part::Rows(batch)));
    }
    let next = match changed.next_place() {
        Some(from_place) => Cursor {
            scan: Some(EntityScan { from_place, ..scan }),
            ..*cursor
        },
        None => Cursor {
            lsn: scan.to,
            scan: None,
            ..*cursor
        },
    };
    Ok(Some(Delivery {
        parts,
        following: None,
        next,
        floors: vec![state.floor()],
        rows_read: 0,
    }))
}

impl From<LakeError> for SinkError {
    /// A file that a merge has replaced in the meantime is one of the reasons, so it is tried again.
    fn from(error: LakeError) -> Self {
        Self::Unavailable(error.to_string())
    }
}
