//! `weir init`: writes a configuration to start from.

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
        let written =
            result.and_then(|mut file| std::io::Write::write_all(&mut file, TEMPLATE.as_bytes()));
        written.map_err(|e| {
            RuntimeError::Failed(format!(
                "{}: {e}; an existing file is not overwritten, name another one with -c",
                path.display()
            ))
        })?;
        eprintln!(
            "weir: wrote {}; edit it, then run `weir check` and `weir run`",
            path.display()
        );
        Ok(())
    }
}
