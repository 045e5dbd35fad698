//! A sink of type `kafka`: rows as messages, exactly once for a reader of committed messages.
//!
//! Each delivery is one transaction, which also commits the cursor: as the offset and metadata of a
//! consumer group that is the sink's own and has no members. The transactional id is the sink's, so
//! that a second process with the same sink fences the first, which halts.
//!
//! After any error the producer is destroyed. The next one begins with `init_transactions`, which
//! ends what the last one left open, and then reads the cursor: whether a commit whose answer was
//! lost has happened is decided by the broker alone.
//!
//! | killed | the next start finds |
//! |---|---|
//! | before the commit | an open transaction, which is aborted; the old cursor |
//! | after the commit, before the data folder has the cursor | the new cursor, in the group |

mod key;
mod producer;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use super::{Batch, Cursor, Delivery, SinkError, SinkTable, Target, TargetContext, refused};
use crate::config::SqlBounds;
use crate::config::sinks::KafkaSink;
use crate::operators::lsns;
use crate::query::encode;
use crate::schema::PlanError;
use key::MessageKey;
use producer::{Message, Transactions};

/// Writes messages to a topic.
pub struct KafkaTarget {
    context: TargetContext,
    def: KafkaSink,
    key: MessageKey,
    transactions: Option<Transactions>,
    /// Rows that the broker refused in an attempt before: (LSN, row of that record).
    refused: Vec<((i64, usize), String)>,
}

impl KafkaTarget {
    /// Of this definition; connects when it is opened.
    pub fn new(def: &KafkaSink, context: TargetContext) -> Result<Self, SinkError> {
        let table = table_of(&context)?;
        let key = plan_key(def, table.schema(), &table.key, context.sql);
        Ok(Self {
            key: key.map_err(|e| SinkError::Halted(e.to_string()))?,
            def: def.clone(),
            context,
            transactions: None,
            refused: Vec::new(),
        })
    }

    /// Produces the rows of a batch; those that were refused before become dead letters.
    fn produce(&mut self, transactions: &mut Transactions, batch: &Batch) -> Result<(), SinkError> {
        let table = table_of(&self.context)?;
        let (keys, values) = (self.key.keys(&batch.rows)?, values(table, &batch.rows)?);
        let messages = keys.into_iter().zip(values).zip(ids(&batch.rows));
        for (row, ((key, value), id)) in messages.enumerate() {
            if let Some((_, reason)) = self.refused.iter().find(|(known, _)| *known == id) {
                self.refuse(batch, row, reason.clone())?;
                continue;
            }
            let message = Message {
                id,
                key: key.as_deref(),
                value: value.as_deref(),
            };
            if let Some(reason) = transactions.send(&message)? {
                self.refuse(batch, row, reason)?;
            }
        }
        Ok(())
    }

    fn refuse(&self, batch: &Batch, row: usize, reason: String) -> Result<(), SinkError> {
        let table = table_of(&self.context)?;
        let now = self.context.clock.now();
        let row = refused(&table.name, &batch.rows, row, reason, now);
        self.context.dead_letters.add(vec![row])
    }
}

/// The key of a sink's messages, or what is wrong with its expression.
pub fn plan_key(
    def: &KafkaSink,
    schema: &SchemaRef,
    own: &[usize],
    bounds: SqlBounds,
) -> Result<MessageKey, InvalidKey> {
    let expression = def.key.as_deref();
    MessageKey::plan(expression, schema, own, bounds).map_err(|error| InvalidKey {
        expression: expression.unwrap_or_default().to_owned(),
        error,
    })
}

/// An expression for keys that cannot be planned.
#[derive(Debug, thiserror::Error)]
#[error("key = \"{expression}\": {error}")]
pub struct InvalidKey {
    expression: String,
    error: PlanError,
}

fn table_of(context: &TargetContext) -> Result<&SinkTable, SinkError> {
    let missing = || SinkError::Halted("the sink has no table".into());
    context.tables.first().ok_or_else(missing)
}

/// LSN of each row, and which one of its record it is.
fn ids(rows: &RecordBatch) -> Vec<(i64, usize)> {
    let mut ids: Vec<(i64, usize)> = Vec::with_capacity(rows.num_rows());
    for lsn in lsns(rows) {
        let ordinal = match ids.last() {
            Some((last, ordinal)) if last == lsn => ordinal + 1,
            _ => 0,
        };
        ids.push((*lsn, ordinal));
    }
    ids
}

/// Each row as JSON; null for one that retracts another, which deletes its key in a compacted topic.
fn values(table: &SinkTable, rows: &RecordBatch) -> Result<Vec<Option<Vec<u8>>>, SinkError> {
    let mut values = Vec::with_capacity(rows.num_rows());
    encode::each_row(&rows.schema(), std::slice::from_ref(rows), |row| {
        let is_retracted = table.is_retracted(rows, values.len());
        values.push((!is_retracted).then(|| row.to_vec()));
        Ok(())
    })
    .map_err(|e| SinkError::Unavailable(e.to_string()))?;
    Ok(values)
}

impl Target for KafkaTarget {
    fn open(&mut self, stored: Cursor) -> Result<Cursor, SinkError> {
        self.transactions = None;
        let name = format!("weir-{:x}-{}", self.context.log, self.context.name);
        let (transactions, found) = Transactions::begin(&self.def, &name)?;
        self.transactions = Some(transactions);
        Ok(stored.or_of_target(found))
    }

    fn deliver(&mut self, delivery: &mut Delivery) -> Result<(), SinkError> {
        let closed = || SinkError::Unavailable("the producer is not open".into());
        let mut transactions = self.transactions.take().ok_or_else(closed)?;
        transactions.start()?;
        while let Some(batch) = delivery.next_batch()? {
            self.produce(&mut transactions, &batch)?;
        }
        match transactions.commit(&delivery.next_cursor()) {
            Ok(()) => {
                self.refused.clear();
                self.transactions = Some(transactions);
                Ok(())
            }
            Err(failed) => {
                // The next attempt leaves these out.
                self.refused.extend(failed.refused);
                Err(failed.error)
            }
        }
    }

    fn order(&self) -> Vec<usize> {
        vec![0]
    }
}
