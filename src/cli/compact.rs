//! `weir compact`: merges the lake's files now instead of at the usual times.

use clap::Args;

use super::progress::{Progress, Unit};
use super::{Global, tokio_runtime};
use crate::runtime::{RuntimeError, compact};

#[derive(Debug, Args)]
pub struct Compact {}

impl Compact {
    pub fn run(&self, global: &Global) -> Result<(), RuntimeError> {
        let config = global.load()?;
        let runtime = tokio_runtime()?;
        let progress = Progress::new(global, "merging files", Unit::None);
        let (merges, files) = compact(&config, runtime.handle())?;
        drop(progress);
        eprintln!("weir: {merges} merges; the lake has {files} files");
        Ok(())
    }
}
