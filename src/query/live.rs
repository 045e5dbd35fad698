//! Rows as they become visible, from the ring through which they come: nobody who follows takes
//! anything from who asks. Readers of the same rows share what is written of them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::QueryError;
use super::encode::each_row;
use crate::event::Lsn;
use crate::operators::{Output, lsns};
use crate::views::lake::LakeTable;
use crate::views::ring::{Next, Ring};

/// Rows that are written at once, and about how many bytes of them.
const PAGE_ROWS: usize = 500;
const PAGE_BYTES: usize = 256 << 10;
/// Bytes of pages that are kept for other readers.
const KEPT_BYTES: usize = 4 << 20;

/// A row by its record and its place among the rows of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowId {
    pub lsn: Lsn,
    pub ordinal: usize,
}

/// Where a reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// It has everything up to here.
    after: Lsn,
    /// Rows of the output behind that which it has, too.
    row: usize,
    /// It had this row when it came back, and those before it.
    had: Option<RowId>,
    /// It has all rows of the records up to here.
    whole: Lsn,
}

impl Cursor {
    pub fn after(lsn: Lsn) -> Self {
        Self {
            after: lsn,
            row: 0,
            had: None,
            whole: lsn,
        }
    }

    /// Behind a row that a reader says it had; `is_last` if its record has no more.
    pub fn behind(row: RowId, is_last: bool) -> Self {
        let after = row.lsn.saturating_sub(1);
        Self {
            after,
            row: 0,
            had: Some(row),
            whole: if is_last { row.lsn } else { after },
        }
    }

    pub fn lsn(&self) -> Lsn {
        self.after
    }
}

/// Some rows of an output as JSON.
pub struct Page {
    pub rows: Vec<(RowId, String)>,
    next: Cursor,
    bytes: usize,
}

/// What comes next.
pub enum Step {
    Rows(Arc<Page>, Cursor),
    /// The rows of the records in `(after, upto]` have left the ring; the reader continues behind
    /// them.
    Missed {
        after: Lsn,
        upto: Lsn,
        next: Cursor,
    },
    /// Nothing that the reader lacks is visible.
    Nothing(Cursor),
}

type Key = (String, Lsn, usize);

/// Pages that were written last.
#[derive(Default)]
struct Pages {
    kept: VecDeque<(Key, Arc<Page>)>,
    bytes: usize,
}

impl Pages {
    fn keep(&mut self, key: Key, page: Arc<Page>) {
        self.bytes += page.bytes;
        self.kept.push_back((key, page));
        while self.bytes > KEPT_BYTES {
            let Some((_, gone)) = self.kept.pop_front() else {
                return;
            };
            self.bytes -= gone.bytes;
        }
    }
}

/// Hands rows to those who follow.
pub struct Live {
    ring: Arc<Ring>,
    pages: Mutex<Pages>,
}

impl Live {
    pub fn new(ring: Arc<Ring>) -> Self {
        Self {
            ring,
            pages: Mutex::default(),
        }
    }

    /// The next rows of a table that are visible in it.
    pub fn next(&self, table: &LakeTable, mut cursor: Cursor) -> Result<Step, QueryError> {
        let visible = table.applied();
        while cursor.after < visible {
            match self.ring.peek(cursor.after) {
                Next::Output(output) if output.to <= visible => {
                    let rows = table.rows_of(&output).map_or(0, |rows| rows.num_rows());
                    if cursor.row < rows {
                        return self.page(table, &output, cursor);
                    }
                    cursor = Cursor {
                        had: cursor.had,
                        ..Cursor::after(output.to)
                    };
                }
                Next::Behind(start) => {
                    let (after, upto) = (cursor.whole.max(cursor.after), start);
                    cursor = Cursor::after(start);
                    if after < upto && table.may_have(after, upto) {
                        return Ok(Step::Missed {
                            after,
                            upto,
                            next: cursor,
                        });
                    }
                }
                Next::Output(_) | Next::Idle | Next::Closed => break,
            }
        }
        Ok(Step::Nothing(cursor))
    }

    fn page(&self, table: &LakeTable, output: &Output, cursor: Cursor) -> Result<Step, QueryError> {
        let key = (table.spec.name.clone(), output.to, cursor.row);
        let lock = || self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock()
            .kept
            .iter()
            .find(|(known, _)| *known == key)
            .map(|(_, page)| page.clone());
        let page = match known {
            Some(page) => page,
            None => {
                let page = Arc::new(write(table, output, cursor.row)?);
                lock().keep(key, page.clone());
                page
            }
        };
        let next = Cursor {
            had: cursor.had,
            ..page.next
        };
        Ok(Step::Rows(page, next))
    }
}

impl Cursor {
    /// Whether a reader lacks a row that follows its place.
    pub fn lacks(&self, row: RowId) -> bool {
        self.had.is_none_or(|had| row > had)
    }
}

/// Writes rows of an output from one on.
fn write(table: &LakeTable, output: &Output, from: usize) -> Result<Page, QueryError> {
    let failed = |e: String| QueryError::Failed(e);
    let batch = table
        .rows_of(output)
        .ok_or_else(|| failed("the rows are gone".into()))?;
    let all = lsns(batch);
    let ids = |row: usize| {
        let first = all[..row].partition_point(|lsn| *lsn < all[row]);
        RowId {
            lsn: all[row] as Lsn,
            ordinal: row - first,
        }
    };
    let (mut rows, mut bytes, mut at) = (Vec::new(), 0, from);
    while at < batch.num_rows() && rows.len() < PAGE_ROWS && bytes < PAGE_BYTES {
        // A few at a time: a row may be as long as a record.
        let step = (PAGE_ROWS / 10).min(batch.num_rows() - at);
        let whole = table.whole_rows(batch.slice(at, step)).map_err(failed)?;
        each_row(&whole.schema(), std::slice::from_ref(&whole), |row| {
            if bytes < PAGE_BYTES {
                bytes += row.len();
                rows.push((ids(at), String::from_utf8_lossy(row).into_owned()));
                at += 1;
            }
            Ok(())
        })?;
    }
    let next = if at < batch.num_rows() {
        Cursor {
            row: at,
            ..Cursor::after(output.after)
        }
    } else {
        Cursor::after(output.to)
    };
    Ok(Page { rows, next, bytes })
}
