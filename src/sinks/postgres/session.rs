//! A session of the database in which this sink alone writes: its lock, its cursor, its tables.

use sha2::{Digest, Sha256};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Row, Statement};

use super::super::{Cursor, SinkError, StoredCursor};
use super::connect::{Connection, within};
use super::existing::{self, Existing, ExistingColumn, UniqueIndex};
use super::failure::Failure;
use super::schema::{Table, read_order};
use super::statements;
use crate::config::sinks::PostgresSink;

/// The first version with `unique nulls not distinct`.
const MIN_VERSION_OF_NULL_KEYS: i32 = 150_000;

/// What identifies the sink in the database.
pub struct Identity {
    pub sink: String,
    pub log: String,
}

/// The prepared statements of a table.
pub struct TableStatements {
    pub copy: Statement,
    pub merge: Statement,
    pub insert_missing: Statement,
    /// Of windows: without and with nulls in the key.
    pub delete_retracted: Option<[Statement; 2]>,
}

/// A session that holds the sink's lock.
pub struct Session {
    pub connection: Connection,
    pub tables: Vec<TableStatements>,
    pub move_cursor: Option<Statement>,
    /// The text of the cursor that the database has.
    pub cursor: String,
}

impl Session {
    /// Connects and takes the lock. `backend` is the server's process that had it last of this
    /// one's sessions, and then the one that has it.
    pub async fn begin(
        def: &PostgresSink,
        identity: &Identity,
        backend: &mut Option<i32>,
    ) -> Result<Self, Failure> {
        let connection = Connection::open(def, &identity.sink).await?;
        let session = Self {
            connection,
            tables: Vec::new(),
            move_cursor: None,
            cursor: String::new(),
        };
        match session.lock(def, identity, *backend).await {
            Ok(locked) => {
                *backend = Some(locked);
                Ok(session)
            }
            Err(failure) => {
                session.connection.close().await;
                Err(failure)
            }
        }
    }

    /// Takes the lock; returns the process of the server that has it, which is this session's.
    async fn lock(
        &self,
        def: &PostgresSink,
        identity: &Identity,
        before: Option<i32>,
    ) -> Result<i32, Failure> {
        let client = &self.connection.client;
        let key = lock_key(&[&def.schema, &identity.log, &identity.sink]);
        // The server may need a moment to notice that a process which was killed has gone.
        let lock = format!(
            "set lock_timeout = '5s'; select pg_advisory_lock({key}); set lock_timeout = '20s'"
        );
        match within(client.batch_execute(&lock)).await {
            Ok(()) => {
                let own = within(client.query_one("select pg_backend_pid()", &[])).await?;
                Ok(own.try_get(0)?)
            }
            Err(Failure::Server { text, .. })
                if text.contains(SqlState::LOCK_NOT_AVAILABLE.code()) =>
            {
                let holder = within(client.query_opt(statements::LOCK_HOLDER, &[&key])).await?;
                let holder = holder.map(|row| Holder::of_row(&row)).transpose()?;
                Err(SinkError::Unavailable(describe(holder.as_ref(), before)).into())
            }
            Err(failure) => Err(failure),
        }
    }

    /// Ends what an attempt has left of a transaction.
    pub async fn roll_back(&self) -> Result<(), Failure> {
        within(self.connection.client.batch_execute("rollback")).await
    }

    /// Creates or checks the tables and reads the cursor: `stored` where the database has none.
    pub async fn prepare(
        &mut self,
        def: &PostgresSink,
        identity: &Identity,
        tables: &[Table],
        stored: StoredCursor,
    ) -> Result<Cursor, Failure> {
        self.check_server(def, tables).await?;
        self.create_cursors(def).await?;
        self.check_tables(def, tables).await?;
        let cursor = self.read_cursor(def, identity, stored).await?;
        if self.tables.is_empty() {
            self.prepare_statements(def, tables).await?;
        }
        Ok(cursor)
    }

    async fn check_server(&self, def: &PostgresSink, tables: &[Table]) -> Result<(), Failure> {
        const QUERY: &str = "select current_setting('server_version_num')::int4, exists (select from pg_catalog.pg_namespace where nspname = $1::text)";
        let row = within(self.connection.client.query_one(QUERY, &[&def.schema])).await?;
        let (version, has_schema): (i32, bool) = (row.try_get(0)?, row.try_get(1)?);
        if !has_schema {
            return Err(halted(format!(
                "the schema `{}` does not exist; create it (`create schema {}`), or name another one by `schema`",
                def.schema,
                super::schema::quoted(&def.schema)
            )));
        }
        let needs_null_keys = tables.iter().any(Table::has_nullable_key);
        if needs_null_keys && version < MIN_VERSION_OF_NULL_KEYS {
            return Err(halted(
                "windows with groups need PostgreSQL 15 or newer, whose unique indexes find nulls"
                    .into(),
            ));
        }
        Ok(())
    }

    /// Who may use the table of cursors need not have the right to create one.
    async fn create_cursors(&self, def: &PostgresSink) -> Result<(), Failure> {
        let client = &self.connection.client;
        let name = statements::cursors(&def.schema);
        let exists = "select to_regclass($1::text) is not null";
        if within(client.query_one(exists, &[&name]))
            .await?
            .try_get(0)?
        {
            return Ok(());
        }
        let lock = lock_key(&[&def.schema]);
        within(client.batch_execute(&statements::create_cursors(&def.schema, lock))).await
    }

    /// Creates tables that are missing, once those that exist are right.
    async fn check_tables(&self, def: &PostgresSink, tables: &[Table]) -> Result<(), Failure> {
        let existing = self.existing(def, tables).await?;
        let differences: Vec<String> = tables
            .iter()
            .zip(&existing)
            .filter(|(_, existing)| !existing.columns.is_empty())
            .flat_map(|(table, existing)| existing::differences(&def.schema, table, existing))
            .collect();
        existing::check(&differences)?;
        let mut create = Vec::new();
        // Those that others refer to come first.
        for at in read_order(tables).into_iter().rev() {
            if existing[at].columns.is_empty() {
                create.push(tables[at].create(&def.schema, tables));
                tracing::info!(table = tables[at].name, "the sink creates a table");
            }
        }
        if !create.is_empty() {
            within(self.connection.client.batch_execute(&create.join(";\n"))).await?;
        }
        Ok(())
    }

    async fn existing(
        &self,
        def: &PostgresSink,
        tables: &[Table],
    ) -> Result<Vec<Existing>, Failure> {
        let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
        let client = &self.connection.client;
        let mut found = vec![Existing::default(); tables.len()];
        let at = |name: &str| names.iter().position(|other| *other == name);
        for row in within(client.query(statements::COLUMNS, &[&def.schema, &names])).await? {
            if let Some(at) = at(row.try_get(0)?) {
                found[at].columns.push(ExistingColumn {
                    name: row.try_get(1)?,
                    ty: row.try_get(2)?,
                    not_null: row.try_get(3)?,
                    has_default: row.try_get(4)?,
                });
            }
        }
        for row in within(client.query(statements::UNIQUE_INDEXES, &[&def.schema, &names])).await? {
            if let Some(at) = at(row.try_get(0)?) {
                found[at].unique.push(UniqueIndex {
                    columns: row.try_get(1)?,
                    nulls_not_distinct: row.try_get(2)?,
                });
            }
        }
        Ok(found)
    }

    async fn read_cursor(
        &mut self,
        def: &PostgresSink,
        identity: &Identity,
        stored: StoredCursor,
    ) -> Result<Cursor, Failure> {
        let client = &self.connection.client;
        let table = statements::cursors(&def.schema);
        let read = format!("select log, cursor from {table} where name = $1");
        let rows = within(client.query(read.as_str(), &[&identity.sink])).await?;
        if let Some(row) = rows.first() {
            let (log, cursor): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            let of_database = of_database(identity, &table, &log, &cursor)?;
            self.cursor = cursor;
            return Ok(stored.or_of_target(Some(of_database)));
        }
        let insert = format!("insert into {table} (name, log, cursor) values ($1, $2, $3)");
        let text = stored.cursor.to_json();
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
            [&identity.sink, &identity.log, &text];
        within(client.execute(insert.as_str(), &values)).await?;
        self.cursor = text;
        Ok(stored.cursor)
    }

    async fn prepare_statements(
        &mut self,
        def: &PostgresSink,
        tables: &[Table],
    ) -> Result<(), Failure> {
        let (client, schema) = (&self.connection.client, &def.schema);
        let create = tables.iter().enumerate();
        let create = create.map(|(at, table)| statements::create_temporary(table, at));
        within(client.batch_execute(&create.collect::<Vec<_>>().join(";\n"))).await?;
        let mut prepared = Vec::with_capacity(tables.len());
        for (at, table) in tables.iter().enumerate() {
            let delete = |with_nulls| {
                let text = statements::delete_retracted(schema, table, at, with_nulls);
                async move { within(client.prepare(&text)).await }
            };
            prepared.push(TableStatements {
                copy: within(client.prepare(&statements::copy(table, at))).await?,
                merge: within(client.prepare(&statements::merge(schema, table, at))).await?,
                insert_missing: {
                    let text = statements::insert_missing(schema, table, at);
                    within(client.prepare(&text)).await?
                },
                delete_retracted: match table.kind {
                    super::schema::Kind::Window => {
                        Some([delete(false).await?, delete(true).await?])
                    }
                    _ => None,
                },
            });
        }
        self.move_cursor = Some(within(client.prepare(&statements::move_cursor(schema))).await?);
        self.tables = prepared;
        Ok(())
    }
}

/// Who holds the sink's lock.
struct Holder {
    /// A process of the server.
    backend: i32,
    application: String,
    is_committing: bool,
}

impl Holder {
    fn of_row(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            backend: row.try_get(0)?,
            application: row.try_get(1)?,
            is_committing: row.try_get(2)?,
        })
    }
}

/// Why the lock cannot be had, where `before` had it last of this process's sessions. Pure.
fn describe(holder: Option<&Holder>, before: Option<i32>) -> String {
    let Some(holder) = holder else {
        return "the sink's advisory lock in the database was held until now; trying again".into();
    };
    let (backend, application) = (holder.backend, &holder.application);
    match (before == Some(backend), holder.is_committing) {
        (true, true) => format!(
            "the last transaction is still being committed, by the server's process {backend}; waiting"
        ),
        (true, false) => format!(
            "the server's process {backend} still works on the last request, or has not noticed that its connection is gone; waiting"
        ),
        (false, true) => format!(
            "a transaction of this sink that another process has begun is still being committed, by the server's process {backend} (`{application}`); waiting: if that process runs, stop it, since only one may deliver"
        ),
        (false, false) => format!(
            "another process delivers for this sink: the server's process {backend} (`{application}`) holds the sink's advisory lock in the database; only one may, so stop the other"
        ),
    }
}

/// The cursor that the database has.
fn of_database(
    identity: &Identity,
    table: &str,
    log: &str,
    cursor: &str,
) -> Result<Cursor, Failure> {
    let sink = &identity.sink;
    if log != identity.log {
        // LSNs of different logs cannot be compared.
        return Err(halted(format!(
            "its tables have rows of another log ({log}); empty them and run `delete from {table} where name = '{sink}'`, or use another schema"
        )));
    }
    serde_json::from_str(cursor).map_err(|e| {
        halted(format!(
            "the cursor of `{sink}` in {table} cannot be read: {e}; delete the row to continue from the one in the data folder"
        ))
    })
}

fn halted(text: String) -> Failure {
    Failure::Sink(SinkError::Halted(text))
}

/// The key of an advisory lock, which no one else uses by chance.
fn lock_key(parts: &[&str]) -> i64 {
    let mut hash = Sha256::new();
    for part in ["weir"].iter().chain(parts) {
        hash.update(part.as_bytes());
        hash.update([0_u8]);
    }
    let hash = hash.finalize();
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash[..8]);
    i64::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_own_commit_and_another_process_are_distinguished() {
        let text = |backend, is_committing| {
            let holder = Holder {
                backend,
                application: "weir db".into(),
                is_committing,
            };
            describe(Some(&holder), Some(7))
        };
        insta::assert_snapshot!(text(7, true), @"the last transaction is still being committed, by the server's process 7; waiting");
        insta::assert_snapshot!(text(7, false), @"the server's process 7 still works on the last request, or has not noticed that its connection is gone; waiting");
        insta::assert_snapshot!(text(8, true), @"a transaction of this sink that another process has begun is still being committed, by the server's process 8 (`weir db`); waiting: if that process runs, stop it, since only one may deliver");
        insta::assert_snapshot!(text(8, false), @"another process delivers for this sink: the server's process 8 (`weir db`) holds the sink's advisory lock in the database; only one may, so stop the other");
        insta::assert_snapshot!(describe(None, Some(7)), @"the sink's advisory lock in the database was held until now; trying again");
    }
}
