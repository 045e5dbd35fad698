//! `weir check`: everything that can be wrong with a configuration, without starting.

use clap::Args;

use super::{Global, output};
use crate::runtime::RuntimeError;
use crate::schema::Catalog;

#[derive(Debug, Args)]
pub struct Check {
    /// Show every limit in force and where it comes from.
    #[arg(long)]
    show: bool,
}

impl Check {
    pub fn run(&self, global: &Global) -> Result<(), RuntimeError> {
        let config = global.load_file()?;
        let catalog = Catalog::of(&config)?;
        if self.show {
            return output::write(config.show().as_bytes());
        }
        let streams = catalog.streams.len();
        output::write(
            format!("{}: in order ({streams} streams, {} sources)\n", config.place().display(), config.sources.len())
                .as_bytes(),
        )
    }
}
