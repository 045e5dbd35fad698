//! Rows as they become visible, read from the ring of outputs, so that followers take nothing from
//! queries. Readers of the same rows share the encoded pages.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;

use super::QueryError;
use super::encode::each_row;
use crate::event::Lsn;
use crate::operators::{Output, lsns};
use crate::views::lake::LakeTable;
use crate::views::ring::{Next, Ring};

/// Maximum rows of a page, and approximate maximum bytes.
const PAGE_ROWS: usize = 500;
const PAGE_BYTES: usize = 256 << 10;
/// Outputs in which the newest rows of a table are looked for.
const MAX_OUTPUTS: usize = 2_000;
/// Bytes of the pages that are cached for other readers.
const CACHE_BYTES: usize = 4 << 20;

/// A row: the LSN of its record, and its number among the rows of that record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowId {
    pub lsn: Lsn,
    pub ordinal: usize,
}

/// The position of a reader.
///
/// Example: a reader reconnects with the row (7, 1), the second of record 7. It reads from the
/// output after LSN 6, skips rows up to (7, 1), and is complete up to 6, or up to 7 if the record has
/// no third row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// The reader has all outputs up to this LSN.
    after: Lsn,
    /// Rows that it has of the next output.
    row: usize,
    /// The last row that it had when it reconnected.
    last_seen: Option<RowId>,
    /// It has all rows of the records up to this LSN.
    complete_to: Lsn,
}

impl Cursor {
    /// Of a reader that has all rows of the records up to `lsn`.
    pub fn after(lsn: Lsn) -> Self {
        Self {
            after: lsn,
            row: 0,
            last_seen: None,
            complete_to: lsn,
        }
    }

    /// After the last row that a reader has seen; `is_last` if it is the last of its record.
    pub fn resume_after(row: RowId, is_last: bool) -> Self {
        let after = row.lsn.saturating_sub(1);
        Self {
            after,
            row: 0,
            last_seen: Some(row),
            complete_to: if is_last { row.lsn } else { after },
        }
    }

    /// The LSN up to which the reader has all outputs.
    pub fn lsn(&self) -> Lsn {
        self.after
    }

    /// Whether a row of the next page is new to the reader.
    pub fn is_new(&self, row: RowId) -> bool {
        self.last_seen.is_none_or(|seen| row > seen)
    }
}

/// Rows of an output, encoded once for all its readers.
pub struct Page {
    /// Each row as a JSON object, in the order of the table.
    pub rows: Vec<(RowId, String)>,
    next: Cursor,
    bytes: usize,
}

/// What a reader gets when it asks for the rows after its cursor.
pub enum NextPage {
    /// Rows, and the cursor after them.
    Rows(Arc<Page>, Cursor),
    /// The rows of the records in `(after, upto]` have left the ring; the reader continues after
    /// them.
    Missed { after: Lsn, upto: Lsn, next: Cursor },
    /// The reader has all visible rows.
    CaughtUp(Cursor),
}

/// The newest rows of a table.
pub struct NewestRows {
    /// Oldest first, without partition columns.
    pub batches: Vec<RecordBatch>,
    /// The record up to which they are.
    pub visible: Lsn,
    /// Older ones that were asked for may be missing: they are no longer in memory.
    pub may_lack_rows: bool,
}

/// Table, LSN of the output, and number of the first row.
type PageKey = (String, Lsn, usize);

/// The pages that were encoded last.
#[derive(Default)]
struct PageCache {
    pages: VecDeque<(PageKey, Arc<Page>)>,
    bytes: usize,
}

impl PageCache {
    fn get(&self, key: &PageKey) -> Option<Arc<Page>> {
        let mut pages = self.pages.iter();
        pages
            .find(|(cached, _)| cached == key)
            .map(|(_, page)| page.clone())
    }

    fn insert(&mut self, key: PageKey, page: Arc<Page>) {
        self.bytes += page.bytes;
        self.pages.push_back((key, page));
        while self.bytes > CACHE_BYTES {
            let Some((_, evicted)) = self.pages.pop_front() else {
                return;
            };
            self.bytes -= evicted.bytes;
        }
    }
}

/// Serves rows to readers that follow a table.
pub struct Live {
    ring: Arc<Ring>,
    cache: Mutex<PageCache>,
}

impl Live {
    pub fn new(ring: Arc<Ring>) -> Self {
        Self {
            ring,
            cache: Mutex::default(),
        }
    }

    /// The next visible rows of a table; never waits for more.
    pub fn next(&self, table: &LakeTable, mut cursor: Cursor) -> Result<NextPage, QueryError> {
        let visible = table.applied();
        while cursor.after < visible {
            match self.ring.peek(cursor.after) {
                Next::Output(output) if output.to <= visible => {
                    let rows = table.rows_of(&output).map_or(0, |rows| rows.num_rows());
                    if cursor.row < rows {
                        return self.page(table, &output, cursor);
                    }
                    cursor = Cursor {
                        last_seen: cursor.last_seen,
                        ..Cursor::after(output.to)
                    };
                }
                Next::Lagged(start) => {
                    let (after, upto) = (cursor.complete_to.max(cursor.after), start);
                    cursor = Cursor::after(start);
                    if after < upto && table.may_have(after, upto) {
                        return Ok(NextPage::Missed {
                            after,
                            upto,
                            next: cursor,
                        });
                    }
                }
                Next::Output(_) | Next::Idle | Next::Closed => break,
            }
        }
        Ok(NextPage::CaughtUp(cursor))
    }

    /// The newest visible rows of a table that follow the record `after`, at most `max` of them,
    /// as they are in memory.
    pub fn newest(&self, table: &LakeTable, after: Lsn, max: usize) -> NewestRows {
        let visible = table.applied();
        let (outputs, has_lagged) = self.ring.newest(after, visible, MAX_OUTPUTS);
        let may_have_more = has_lagged || outputs.len() == MAX_OUTPUTS;
        let (mut batches, mut missing) = (Vec::new(), max);
        for output in outputs {
            let Some(rows) = table.rows_of(&output).filter(|rows| rows.num_rows() > 0) else {
                continue;
            };
            let length = rows.num_rows().min(missing);
            batches.push(rows.slice(rows.num_rows() - length, length));
            missing -= length;
            if missing == 0 {
                break;
            }
        }
        batches.reverse();
        NewestRows {
            batches,
            visible,
            may_lack_rows: missing > 0 && may_have_more,
        }
    }

    fn page(
        &self,
        table: &LakeTable,
        output: &Output,
        cursor: Cursor,
    ) -> Result<NextPage, QueryError> {
        let key = (table.spec.name.clone(), output.to, cursor.row);
        let cache = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let cached = cache().get(&key);
        let page = match cached {
            Some(page) => page,
            None => {
                let page = Arc::new(encode(table, output, cursor.row)?);
                cache().insert(key, page.clone());
                page
            }
        };
        let next = Cursor {
            last_seen: cursor.last_seen,
            ..page.next
        };
        Ok(NextPage::Rows(page, next))
    }
}

/// Encodes rows of an output from one on.
fn encode(table: &LakeTable, output: &Output, from: usize) -> Result<Page, QueryError> {
    let failed = |e: String| QueryError::Failed(e);
    let batch = table
        .rows_of(output)
        .ok_or_else(|| failed("the rows have been removed".into()))?;
    let lsns = lsns(batch);
    let id = |row: usize| {
        let first = lsns[..row].partition_point(|lsn| *lsn < lsns[row]);
        RowId {
            lsn: lsns[row] as Lsn,
            ordinal: row - first,
        }
    };
    let (mut rows, mut bytes, mut at) = (Vec::new(), 0, from);
    while at < batch.num_rows() && rows.len() < PAGE_ROWS && bytes < PAGE_BYTES {
        // Few at a time: a row may be as long as a record.
        let step = (PAGE_ROWS / 10).min(batch.num_rows() - at);
        let whole = table.full_rows(batch.slice(at, step));
        let whole = whole.map_err(|e| failed(e.to_string()))?;
        each_row(&whole.schema(), std::slice::from_ref(&whole), |row| {
            if bytes < PAGE_BYTES {
                bytes += row.len();
                rows.push((id(at), String::from_utf8_lossy(row).into_owned()));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn row(lsn: Lsn, ordinal: usize) -> RowId {
        RowId { lsn, ordinal }
    }

    #[test]
    fn a_reader_resumes_after_the_row_that_it_saw_last() {
        let (within, at_end) = (
            Cursor::resume_after(row(7, 1), false),
            Cursor::resume_after(row(7, 1), true),
        );
        assert_eq!((within.lsn(), within.complete_to), (6, 6));
        assert_eq!((at_end.lsn(), at_end.complete_to), (6, 7));
        for (row, is_new) in [
            (row(6, 9), false),
            (row(7, 1), false),
            (row(7, 2), true),
            (row(8, 0), true),
        ] {
            assert_eq!(within.is_new(row), is_new, "{row:?}");
            assert!(Cursor::after(6).is_new(row));
        }
    }

    #[test]
    fn the_cache_evicts_the_oldest_pages() {
        let mut cache = PageCache::default();
        let page = |bytes| {
            Arc::new(Page {
                rows: Vec::new(),
                next: Cursor::after(0),
                bytes,
            })
        };
        let key = |lsn| ("t".to_owned(), lsn, 0);
        for lsn in 0..3 {
            cache.insert(key(lsn), page(CACHE_BYTES / 2));
        }
        assert!(cache.get(&key(0)).is_none());
        assert!(cache.get(&key(1)).is_some() && cache.get(&key(2)).is_some());
    }
}
