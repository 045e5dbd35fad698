//! A sink of type `kafka`: rows as messages, exactly once for a reader of committed messages.
//!
//! Each delivery is one transaction, which also commits the cursor: as the offset and metadata of a
//! consumer group that is the sink's own and has no members. The transactional id is the sink's, so
//! that a second process with the same sink fences the first.
//!
//! A fence is not always by another process: the broker fences a producer whose transaction took too
//! long, also while the machine slept, and a late `init_transactions` of an earlier producer fences
//! the current one. So a sink halts once another process has committed a cursor, whether it was
//! fenced or the broker could not be reached. Of two processes that fence one another, one commits
//! first:
//!
//! ```text
//! first: works at 100 │ fenced, looks: 100, begins again   │ commits 110 │ works
//! second:  begins     │ fenced in its transaction          │ looks: 110, halts
//! ```
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
mod messages;
mod producer;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;

use super::{Cursor, Delivery, SinkError, SinkTable, StoredCursor, Target, TargetContext, refused};
use crate::config::SqlBounds;
use crate::config::sinks::KafkaSink;
use crate::event::{Lsn, RefusedRow};
use crate::schema::PlanError;
use key::MessageKey;
use messages::{Message, MessageId, Messages};
use producer::{Batches, Failed, TransactionError, Transactions};

/// How long rows are added to a transaction while more are there. Before a commit the messages that
/// are on their way are waited for, and nothing is sent until it is done.
const TRANSACTION: Duration = Duration::from_secs(5);
/// How many times smaller batches are after one was refused.
const SMALLER_BATCHES: usize = 8;
/// Refused rows that are in memory until they are stored.
const MAX_DEAD_LETTERS: usize = 64;

/// Writes messages to a topic.
pub struct KafkaTarget {
    context: TargetContext,
    def: KafkaSink,
    key: MessageKey,
    transactions: Option<Transactions>,
    /// Since it was opened.
    has_committed: bool,
    /// Rows that the broker refused in an attempt before, with its reasons.
    refused: HashMap<MessageId, String>,
    /// What the topic takes in a batch, as far as it is known.
    batches: Batches,
    /// The row after which batches have many messages again: up to it, each message is sent alone.
    alone_to: Option<usize>,
    /// The topic is known to take no message without a key. Asking the broker about each would fail
    /// one transaction after another.
    needs_keys: bool,
    known: Known,
}

/// What this process knows of the cursor that is committed.
#[derive(Debug, Default)]
struct Known {
    /// The one that it found or committed last, if there was one; none before it has looked.
    committed: Option<Option<Cursor>>,
    /// The one of a commit whose answer was lost.
    attempted: Option<Cursor>,
}

impl Known {
    fn at(committed: Option<Cursor>) -> Self {
        Self {
            committed: Some(committed),
            attempted: None,
        }
    }

    /// Whether another process has committed the cursor that was found: it is above the last known.
    /// One below that is an older one of our own: commits become visible late, and a broker may
    /// lose some.
    fn is_by_another(&self, found: Option<Cursor>) -> bool {
        let order = |cursor: Cursor| {
            let place = cursor.scan.map(|scan| (scan.to, scan.from_place));
            (cursor.epoch, cursor.lsn, place)
        };
        let Some(committed) = self.committed else {
            return false;
        };
        found.map(order) > committed.map(order) && found != self.attempted
    }
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
            has_committed: false,
            refused: HashMap::new(),
            batches: producer::BATCHES,
            alone_to: None,
            needs_keys: false,
            known: Known::default(),
        })
    }

    /// Sends messages; those that were refused before become dead letters.
    fn send(
        &self,
        transactions: &mut Transactions,
        messages: &Messages,
        dead_letters: &mut Vec<RefusedRow>,
    ) -> Result<(), TransactionError> {
        let table = table_of(&self.context)?;
        let now = self.context.clock.now();
        for (row, message) in messages.iter().enumerate() {
            let reason = match self.known_refusal(&message) {
                Some(reason) => Some(reason),
                None => transactions.send(&message)?,
            };
            if let Some(reason) = reason {
                dead_letters.push(refused(&table.name, &messages.rows, row, reason, now));
                if dead_letters.len() >= MAX_DEAD_LETTERS {
                    self.context
                        .dead_letters
                        .add(std::mem::take(dead_letters))?;
                }
            }
        }
        Ok(())
    }

    fn known_refusal(&self, message: &Message<'_>) -> Option<String> {
        if self.needs_keys && message.key.is_none() {
            return Some("the topic is compacted and takes no message without a key".into());
        }
        if self.refused.is_empty() {
            return None;
        }
        self.refused.get(&message.id()).cloned()
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

impl KafkaTarget {
    /// What an error means for the sink.
    fn explain(&mut self, error: TransactionError) -> SinkError {
        match error {
            TransactionError::Fenced => SinkError::Unavailable(
                "the broker ended the sink's transaction: it took too long, or another process has taken the sink"
                    .into(),
            ),
            TransactionError::Sink(error) => {
                if let SinkError::Halted(_) = error {
                    // Once it is repaired, the rows are sent again.
                    self.refused.clear();
                    self.needs_keys = false;
                    self.alone_to = None;
                }
                error
            }
        }
    }

    /// Halts if another process has taken the sink; else the cursor to continue from.
    fn checked(
        &mut self,
        stored: StoredCursor,
        found: Option<Cursor>,
    ) -> Result<Cursor, SinkError> {
        if self.known.is_by_another(found) {
            // Once it is resumed, the sink is this process's.
            self.known = Known::default();
            let lsn = found.map_or(0, |cursor| cursor.lsn);
            return Err(SinkError::Halted(format!(
                "another process writes with this sink: only one may run; stop it, then `weir sinks resume NAME` continues after {lsn}, which that one has sent, and `weir sinks reset NAME --from earliest` sends all rows again"
            )));
        }
        Ok(stored.or_of_target(found))
    }

    /// Of its transactions and of its group.
    fn name(&self) -> String {
        format!("weir-{:x}-{}", self.context.log, self.context.name)
    }

    fn transact(&mut self, delivery: &mut Delivery) -> Result<(), TransactionError> {
        let mut transactions = match self.transactions.take() {
            Some(transactions) => transactions,
            None => self.reopen()?,
        };
        if let Err(error) = self.write(&mut transactions, delivery) {
            return Err(self.learn(transactions.fail(error)));
        }
        let cursor = delivery.next_cursor();
        // A transaction after this one may come to a row that was refused in a longer one.
        self.refused.retain(|(lsn, _), _| *lsn as Lsn > cursor.lsn);
        self.known = Known::at(Some(cursor));
        self.has_committed = true;
        match self.alone_to {
            // The next delivery begins a producer of larger batches.
            Some(last) if cursor.scan.is_some() || cursor.lsn >= last as Lsn => {
                self.alone_to = None;
            }
            _ => self.transactions = Some(transactions),
        }
        Ok(())
    }

    /// What the next attempt does otherwise.
    fn learn(&mut self, failed: Failed) -> TransactionError {
        self.refused.extend(failed.refused);
        if failed.is_batch_refused {
            self.batches.bytes = (self.batches.bytes / SMALLER_BATCHES).max(1);
        }
        if failed.needs_keys && !self.needs_keys {
            // Most likely these are the invalid ones.
            self.needs_keys = true;
        } else {
            self.alone_to = self.alone_to.max(failed.last_suspect);
        }
        failed.error
    }

    fn begin(&self) -> Result<(Transactions, Option<Cursor>), TransactionError> {
        let batches = Batches {
            messages: self.alone_to.map_or(self.batches.messages, |_| 1),
            ..self.batches
        };
        Transactions::begin(&self.def, &self.name(), batches)
    }

    /// Another producer, for what follows the last commit.
    fn reopen(&mut self) -> Result<Transactions, TransactionError> {
        let (transactions, found) = self.begin()?;
        if Some(found) != self.known.committed {
            let reason = "the cursor that is committed is not the last one; it is looked at again";
            return Err(SinkError::Unavailable(reason.into()).into());
        }
        Ok(transactions)
    }

    /// Writes a delivery, and as much of what follows it as is read within [`TRANSACTION`], and
    /// commits the cursor with it.
    fn write(
        &mut self,
        transactions: &mut Transactions,
        delivery: &mut Delivery,
    ) -> Result<(), TransactionError> {
        transactions.start()?;
        let (table, key) = (table_of(&self.context)?, &self.key);
        // A first one is small: the one before it may have failed because it took too long.
        let extended = if self.has_committed {
            TRANSACTION
        } else {
            Duration::ZERO
        };
        let until = Instant::now() + extended;
        let mut dead_letters = Vec::new();
        messages::each(delivery, table, key, until, |messages| {
            if self.context.stop.is_requested() {
                // Nothing is lost: the transaction is aborted, and repeated at the next start.
                return Err(SinkError::Unavailable("weir is stopping".into()).into());
            }
            self.send(transactions, messages, &mut dead_letters)
        })?;
        // They are durable before the cursor passes them.
        self.context.dead_letters.add(dead_letters)?;
        transactions.flush()?;
        let cursor = delivery.next_cursor();
        self.known.attempted = Some(cursor);
        transactions.commit(&cursor)
    }
}

impl Target for KafkaTarget {
    fn look(&mut self, stored: StoredCursor) -> Result<Cursor, SinkError> {
        match producer::look(&self.def, &self.name()) {
            Ok(found) => self.checked(stored, found),
            Err(error) => Err(self.explain(error)),
        }
    }

    fn open(&mut self, stored: StoredCursor) -> Result<Cursor, SinkError> {
        (self.transactions, self.has_committed) = (None, false);
        match self.begin() {
            Ok((transactions, found)) => {
                let cursor = self.checked(stored, found)?;
                self.transactions = Some(transactions);
                self.known = Known::at(found);
                Ok(cursor)
            }
            Err(error) => Err(self.explain(error)),
        }
    }

    fn deliver(&mut self, delivery: &mut Delivery) -> Result<(), SinkError> {
        self.transact(delivery).map_err(|error| self.explain(error))
    }

    fn order(&self) -> Vec<usize> {
        vec![0]
    }

    fn extends(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sink_halts_once_somebody_else_has_committed() {
        let at = |lsn| Some(Cursor::at(1, 0, lsn));
        let known = Known {
            committed: Some(at(100)),
            attempted: at(110),
        };
        for (found, expected) in [
            (at(100), false),
            // A commit that was not answered was done.
            (at(110), false),
            (at(105), true),
            (at(120), true),
            (Some(Cursor::at(1, 1, 50)), true),
            // The broker shows it later, has lost it, or has forgotten it.
            (at(90), false),
            (None, false),
        ] {
            assert_eq!(known.is_by_another(found), expected, "{found:?}");
        }
        // The first look of a process, and one that had found nothing.
        assert!(!Known::default().is_by_another(at(5)));
        assert!(Known::at(None).is_by_another(at(5)));
        assert!(!Known::at(None).is_by_another(None));
    }
}
