//! One delivery as one transaction: the cursor first, which fences a second process, then the rows
//! of each table.
//!
//! Rows go in parts of up to [`PART_ROWS`]: encoded, copied into a temporary table, merged from
//! there. Once a part was refused because of a row, the next attempt writes each batch below a
//! savepoint and halves it until it has found the row.

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use bytes::Bytes;
use futures::SinkExt;
use tokio_postgres::CopyInSink;

use super::super::{Batch, Delivery, SinkError, TargetContext, refused};
use super::connect::{commit, within};
use super::copy::{CopyBuffer, keys_only};
use super::failure::{Class, Failure};
use super::schema::Table;
use super::session::{Identity, Session};
use crate::event::RefusedRow;

/// Rows and bytes of a part, at most; one batch more.
const PART_ROWS: usize = 16 << 10;
const PART_BYTES: usize = 8 << 20;
/// Bytes of one message of COPY.
const MESSAGE_BYTES: usize = 256 << 10;
/// Refused rows of one delivery; more of them halt the sink anyway.
const MAX_REFUSED: usize = 1_001;

/// Writes a delivery.
pub struct Transaction<'a> {
    pub context: &'a TargetContext,
    pub identity: &'a Identity,
    pub tables: &'a [Table],
    pub session: &'a mut Session,
    /// Whether a row was refused by the attempt before, and is looked for.
    pub by_row: bool,
    state: State,
}

/// What it has done so far.
#[derive(Default)]
struct State {
    is_begun: bool,
    /// Rows of this table that are not written yet.
    part: CopyBuffer,
    table: usize,
    /// Of the next row within the transaction.
    place: i64,
    /// Whether the temporary table has rows of a part before.
    is_used: Vec<bool>,
    refused: Vec<RefusedRow>,
    /// Refused rows of tables that others refer to.
    parents: Vec<(usize, RecordBatch)>,
}

impl<'a> Transaction<'a> {
    /// Begins nothing yet.
    pub fn new(
        context: &'a TargetContext,
        identity: &'a Identity,
        tables: &'a [Table],
        session: &'a mut Session,
        by_row: bool,
    ) -> Self {
        let state = State {
            is_used: vec![false; tables.len()],
            ..State::default()
        };
        Self {
            context,
            identity,
            tables,
            session,
            by_row,
            state,
        }
    }

    /// Writes all rows and commits them with the cursor.
    pub async fn write(mut self, delivery: &mut Delivery) -> Result<(), Failure> {
        let next = delivery.next_cursor().to_json();
        while let Some(batch) = delivery.next_batch()? {
            if self.context.stop.is_requested() {
                let text = "the process stops; the delivery is repeated at the next start";
                return Err(SinkError::Unavailable(text.into()).into());
            }
            self.begin(&next).await?;
            if self.by_row {
                self.write_searching(&batch).await?;
            } else {
                self.write_batch(&batch).await?;
            }
            if self.state.refused.len() >= MAX_REFUSED {
                break;
            }
        }
        self.flush().await?;
        if !self.state.is_begun {
            return Ok(());
        }
        self.write_parents().await?;
        // They are durable before the cursor passes them.
        let refused = std::mem::take(&mut self.state.refused);
        let is_complete = refused.len() < MAX_REFUSED;
        self.context.dead_letters.add(refused)?;
        if !is_complete {
            return Err(SinkError::Halted(
                "the database refuses too many rows of one delivery".into(),
            )
            .into());
        }
        commit(&self.session.connection.client).await?;
        self.session.cursor = next;
        Ok(())
    }

    /// Begins the transaction by moving the cursor, once there is a row to write.
    async fn begin(&mut self, next: &str) -> Result<(), Failure> {
        if std::mem::replace(&mut self.state.is_begun, true) {
            return Ok(());
        }
        let client = &self.session.connection.client;
        let Some(move_cursor) = &self.session.move_cursor else {
            return Err(Failure::Lost("the session is not prepared".into()));
        };
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 4] = [
            &self.identity.sink,
            &self.identity.log,
            &next,
            &self.session.cursor,
        ];
        // Both are sent at once.
        let begin = within(client.batch_execute("begin"));
        let moved = within(client.execute(move_cursor, &values));
        let ((), moved) = tokio::try_join!(begin, moved)?;
        if moved == 1 {
            return Ok(());
        }
        Err(SinkError::Halted(
            "its cursor in the table `weir_sinks` was changed by something else: another process delivers for this sink, or somebody edited the table; make sure that only one does, then run `weir sinks resume NAME`".into(),
        )
        .into())
    }

    /// Adds a batch to the part of its table.
    async fn write_batch(&mut self, batch: &Batch) -> Result<(), Failure> {
        if batch.table != self.state.table {
            self.flush().await?;
            self.state.table = batch.table;
        }
        let refused = self.encode(&batch.rows)?;
        for refused in refused {
            self.refuse(&batch.rows, refused.row, refused.reason);
        }
        let part = &self.state.part;
        if part.rows >= PART_ROWS || part.len() >= PART_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    fn encode(&mut self, rows: &RecordBatch) -> Result<Vec<super::copy::RefusedAt>, SinkError> {
        let at = self.state.table;
        let source = &self.context.tables[at];
        let is_retracted = |row| source.is_retracted(rows, row);
        let place = self.state.place;
        self.state.place += rows.num_rows() as i64;
        let part = &mut self.state.part;
        part.add(&self.tables[at], rows, place, is_retracted)
    }

    fn refuse(&mut self, rows: &RecordBatch, row: usize, reason: String) {
        let (at, now) = (self.state.table, self.context.clock.now());
        let name = &self.context.tables[at].name;
        let mut keys = self.tables.iter().flat_map(|t| &t.foreign_keys);
        if keys.any(|key| key.parent == at)
            && let Ok(row) = take_record_batch(rows, &UInt32Array::from(vec![row as u32]))
        {
            self.state.parents.push((at, row));
        }
        self.state
            .refused
            .push(refused(name, rows, row, reason, now));
    }

    /// Writes the part.
    async fn flush(&mut self) -> Result<(), Failure> {
        self.copy().await?;
        let part = std::mem::take(&mut self.state.part);
        if part.rows == 0 {
            return Ok(());
        }
        let client = &self.session.connection.client;
        let statements = &self.session.tables[self.state.table];
        if let Some([without_nulls, with_nulls]) = &statements.delete_retracted {
            if part.has_retracted {
                within(client.execute(without_nulls, &[])).await?;
            }
            if part.has_retracted_null {
                within(client.execute(with_nulls, &[])).await?;
            }
        }
        within(client.execute(&statements.merge, &[])).await?;
        Ok(())
    }

    /// Copies the part into the temporary table; what it says of its rows stays.
    async fn copy(&mut self) -> Result<(), Failure> {
        let at = self.state.table;
        let state = &mut self.state;
        if state.part.rows == 0 {
            state.part = CopyBuffer::default();
            return Ok(());
        }
        let client = &self.session.connection.client;
        if std::mem::replace(&mut state.is_used[at], true) {
            within(client.batch_execute(&super::statements::truncate(at))).await?;
        }
        let bytes = state.part.take_bytes();
        within(send(client, &self.session.tables[at].copy, bytes)).await
    }

    /// Writes a batch, and refuses the rows of it that the database does.
    async fn write_searching(&mut self, batch: &Batch) -> Result<(), Failure> {
        self.state.table = batch.table;
        let mut waiting = vec![batch.rows.clone()];
        while let Some(rows) = waiting.pop() {
            if self.context.stop.is_requested() {
                // The rest of the rows is not written: the cursor must not pass them.
                return Err(SinkError::Unavailable("weir is stopping".into()).into());
            }
            if self.state.refused.len() >= MAX_REFUSED {
                return Ok(());
            }
            self.savepoint("savepoint weir").await?;
            let refused = self.encode(&rows)?;
            match self.flush().await {
                Ok(()) => {
                    self.savepoint("release weir").await?;
                    for refused in refused {
                        self.refuse(&rows, refused.row, refused.reason);
                    }
                }
                Err(Failure::Server {
                    class: Class::Row,
                    text,
                    ..
                }) => {
                    self.state.part = CopyBuffer::default();
                    self.savepoint("rollback to weir; release weir").await?;
                    if rows.num_rows() <= 1 {
                        self.refuse(&rows, 0, text);
                    } else {
                        let half = rows.num_rows() / 2;
                        waiting.push(rows.slice(half, rows.num_rows() - half));
                        waiting.push(rows.slice(0, half));
                    }
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    async fn savepoint(&self, statement: &str) -> Result<(), Failure> {
        within(self.session.connection.client.batch_execute(statement)).await
    }

    /// The keys of refused rows that others may refer to, with null in all other columns.
    async fn write_parents(&mut self) -> Result<(), Failure> {
        for (at, row) in std::mem::take(&mut self.state.parents) {
            self.state.table = at;
            let table = &self.tables[at];
            let kept = crate::schema::entity::ENTITY_COLUMNS.len();
            let Some(keys) = keys_only(table, &row, kept) else {
                continue;
            };
            // A key that cannot be stored cannot be referred to either.
            if !self.encode(&keys)?.is_empty() {
                self.state.part = CopyBuffer::default();
                continue;
            }
            self.savepoint("savepoint weir").await?;
            let written = async {
                self.copy().await?;
                let client = &self.session.connection.client;
                let insert = &self.session.tables[at].insert_missing;
                within(client.execute(insert, &[])).await.map(drop)
            };
            let written = written.await;
            self.state.part = CopyBuffer::default();
            match written {
                Ok(()) => self.savepoint("release weir").await?,
                Err(Failure::Server {
                    class: Class::Row, ..
                }) => {
                    self.savepoint("rollback to weir; release weir").await?;
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }
}

async fn send(
    client: &tokio_postgres::Client,
    copy: &tokio_postgres::Statement,
    mut bytes: Bytes,
) -> Result<(), tokio_postgres::Error> {
    let sink: CopyInSink<Bytes> = client.copy_in(copy).await?;
    let mut sink = std::pin::pin!(sink);
    while !bytes.is_empty() {
        let length = bytes.len().min(MESSAGE_BYTES);
        sink.send(bytes.split_to(length)).await?;
    }
    sink.finish().await?;
    Ok(())
}
