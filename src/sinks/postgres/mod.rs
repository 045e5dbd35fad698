//! A sink of type `postgres`: rows of several tables up to one LSN as one transaction, together
//! with the cursor, so that each row is written exactly once.
//!
//! | module | what |
//! |---|---|
//! | `schema` | names, types, keys and foreign keys of the tables |
//! | `existing` | whether tables that exist are right |
//! | `statements` | SQL |
//! | `copy` | rows in the binary format of COPY |
//! | `connect` | TLS, password, time-outs |
//! | `session` | the sink's lock, its cursor, its tables |
//! | `transaction` | one delivery |
//! | `failure` | what an error means |
//!
//! A session-level advisory lock lets one process alone deliver for a sink, and each transaction
//! begins by moving the cursor from where this process left it: if it is elsewhere, the sink halts.
//! Example: the commit's answer is lost. The next attempt reads the cursor from the database, which
//! is the new one if the commit was done. While the server still commits, it holds the lock of the
//! lost connection: the attempt says so and waits.

mod connect;
mod copy;
mod existing;
mod failure;
mod schema;
mod session;
mod statements;
mod transaction;

use std::future::Future;
use std::time::Duration;

use tokio::runtime::Runtime;

use super::{Cursor, Delivery, SinkError, SinkTable, StoredCursor, Target, TargetContext};
use crate::config::sinks::PostgresSink;
use crate::ids::TableId;
use crate::sources::Stop;
use failure::{Class, Failure};
use schema::{Kind, Source, Table};
use session::{Identity, Session};
use transaction::Transaction;

/// A foreign key that is violated so many times in a row is not a matter of time.
const MAX_VIOLATIONS: u32 = 6;
/// How often a request looks whether weir is to stop, and how long it may take then.
const STOP_POLL: Duration = Duration::from_millis(50);
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Writes to tables of a database.
pub struct PostgresTarget {
    context: TargetContext,
    def: PostgresSink,
    identity: Identity,
    tables: Vec<Table>,
    session: Option<Session>,
    /// The server's process of the last session that had the sink's lock.
    backend: Option<i32>,
    runtime: Runtime,
    /// Whether a row was refused, which the next attempt finds.
    by_row: bool,
    violations: u32,
}

impl PostgresTarget {
    /// Of this definition; connects when it is opened.
    pub fn new(def: &PostgresSink, context: TargetContext) -> Result<Self, SinkError> {
        let sources: Vec<Source<'_>> = context.tables.iter().map(source).collect();
        let tables = schema::plan(&sources, def.foreign_keys)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| SinkError::Unavailable(e.to_string()))?;
        Ok(Self {
            identity: Identity {
                sink: context.name.clone(),
                log: format!("{:016x}", context.log),
            },
            tables,
            context,
            def: def.clone(),
            session: None,
            backend: None,
            runtime,
            by_row: false,
            violations: 0,
        })
    }

    /// Keeps the session if it can be used again.
    fn settle(&mut self, session: Session, failure: Failure) -> SinkError {
        // The server rolls back what a closed connection leaves open.
        let is_good = failure.leaves_session()
            && !self.context.stop.is_requested()
            && self.runtime.block_on(session.roll_back()).is_ok();
        if is_good {
            self.session = Some(session);
        } else {
            self.runtime.block_on(session.connection.close());
        }
        self.judge(failure)
    }

    fn judge(&mut self, failure: Failure) -> SinkError {
        match failure {
            Failure::Server {
                class: Class::Row,
                text,
                ..
            } if self.by_row => SinkError::Halted(format!(
                "PostgreSQL: {text}, at the commit, so that the row is not known: constraints must not be deferred; then run `weir sinks resume NAME`"
            )),
            Failure::Server {
                class: Class::Row,
                text,
                ..
            } => {
                self.by_row = true;
                SinkError::Unavailable(format!("PostgreSQL: {text}; the row is looked for"))
            }
            Failure::Server {
                class: Class::ForeignKey,
                text,
                constraint,
            } => {
                self.violations += 1;
                if self.violations < MAX_VIOLATIONS {
                    return SinkError::Unavailable(format!("PostgreSQL: {text}"));
                }
                self.violations = 0;
                let constraint = constraint.unwrap_or_default();
                SinkError::Halted(format!(
                    "PostgreSQL: {text}: rows refer to some that are missing; drop the foreign key `{constraint}` and set foreign_keys = false, then run `weir sinks resume NAME`"
                ))
            }
            other => other.into_sink_error(),
        }
    }
}

impl Target for PostgresTarget {
    fn open(&mut self, stored: StoredCursor) -> Result<Cursor, SinkError> {
        let old = self.session.take();
        let (def, identity, tables) = (&self.def, &self.identity, &self.tables);
        let backend = &mut self.backend;
        let opened = until_stop(&self.runtime, &self.context.stop, async {
            let mut session = match old {
                Some(session) => match session.roll_back().await {
                    Ok(()) => session,
                    Err(_) => {
                        session.connection.close().await;
                        Session::begin(def, identity, backend).await?
                    }
                },
                None => Session::begin(def, identity, backend).await?,
            };
            match session.prepare(def, identity, tables, stored).await {
                Ok(cursor) => Ok((session, cursor)),
                Err(failure) => {
                    session.connection.close().await;
                    Err(failure)
                }
            }
        });
        match opened {
            Ok((session, cursor)) => {
                self.session = Some(session);
                Ok(cursor)
            }
            Err(failure) => Err(failure.into_sink_error()),
        }
    }

    fn deliver(&mut self, delivery: &mut Delivery) -> Result<(), SinkError> {
        let Some(mut session) = self.session.take() else {
            return Err(SinkError::Unavailable("not connected to PostgreSQL".into()));
        };
        let (context, identity) = (&self.context, &self.identity);
        let transaction =
            Transaction::new(context, identity, &self.tables, &mut session, self.by_row);
        let written = until_stop(&self.runtime, &context.stop, transaction.write(delivery));
        if let Err(failure) = written {
            return Err(self.settle(session, failure));
        }
        self.session = Some(session);
        self.by_row = false;
        self.violations = 0;
        Ok(())
    }

    fn order(&self) -> Vec<usize> {
        schema::read_order(&self.tables)
    }
}

impl Drop for PostgresTarget {
    /// Frees the lock for the next process.
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            self.runtime.block_on(session.connection.close());
        }
    }
}

/// Runs requests to the server, each of which may take long; gives up soon after weir is asked to
/// stop. A commit may have been done then: the next start reads the cursor.
fn until_stop<T>(
    runtime: &Runtime,
    stop: &Stop,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let stopped = async {
        while !stop.is_requested() {
            tokio::time::sleep(STOP_POLL).await;
        }
        tokio::time::sleep(STOP_GRACE).await;
    };
    runtime.block_on(async {
        tokio::select! {
            done = work => done,
            () = stopped => Err(Failure::Lost("weir is stopping".into())),
        }
    })
}

fn source(table: &SinkTable) -> Source<'_> {
    let kind = match &table.table.spec.id {
        TableId::Entity(name) => Kind::Entity(stream_of(name)),
        TableId::Stream(name) => Kind::Stream(name.to_string()),
        TableId::Window(_) => Kind::Window,
        _ => Kind::Other,
    };
    Source {
        name: &table.name,
        kind,
        schema: table.schema(),
        key: &table.key,
    }
}

/// The stream of an entity table, which is called `STREAM.TABLE`.
fn stream_of(entity: &str) -> String {
    let stream = entity.split_once('.').map(|(stream, _)| stream);
    stream.unwrap_or(entity).to_owned()
}
