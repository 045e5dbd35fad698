//! Where query verbs get their answers: from the running server, or from the folder itself, read-only.

use super::{Global, tokio_runtime};
use crate::clock::{Clock, SystemClock};
use crate::query::sql::SqlAnswer;
use crate::runtime::RuntimeError;
use crate::runtime::offline::Offline;

/// A data folder that nobody works on.
pub struct Folder {
    offline: Offline,
    runtime: tokio::runtime::Runtime,
}

impl Folder {
    pub fn open(global: &Global) -> Result<Self, RuntimeError> {
        let config = global.load()?;
        let runtime = tokio_runtime()?;
        let offline = Offline::open(&config, runtime.handle())?;
        if offline.pending > 0 {
            eprintln!(
                "weir: {} accepted records are not in this answer yet; `weir run --once` brings them in",
                offline.pending
            );
        }
        Ok(Self { offline, runtime })
    }

    pub fn sql(&self, query: &str) -> Result<SqlAnswer, RuntimeError> {
        let now = SystemClock::default().now();
        Ok(self.runtime.block_on(self.offline.sql.run(query, &self.offline.handles, now))?)
    }
}
