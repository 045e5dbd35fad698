//! `weir init`: a configuration to begin with.

use clap::Args;

use super::Global;
use crate::runtime::RuntimeError;

#[derive(Debug, Args)]
pub struct Init {}

const TEMPLATE: &str = include_str!("init.toml");

impl Init {
    pub fn run(&self, global: &Global) -> Result<(), RuntimeError> {
        let path = global.config.clone().unwrap_or_else(|| "weir.toml".into());
        let result = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path);
        let wrote =
            result.and_then(|mut file| std::io::Write::write_all(&mut file, TEMPLATE.as_bytes()));
        wrote.map_err(|e| {
            RuntimeError::Failed(format!(
                "{}: {e}; an existing file is not touched",
                path.display()
            ))
        })?;
        eprintln!(
            "weir: wrote {}; look at it, then `weir check` and `weir run`",
            path.display()
        );
        Ok(())
    }
}
