//! `weir token create`: a random bearer token, of which only the hash is stored.

use std::io::Write;

use clap::{Args, Subcommand};
use sha2::{Digest, Sha256};

use super::{Global, output};
use crate::runtime::RuntimeError;

#[derive(Debug, Args)]
pub struct Token {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Creates a token, prints it once, and appends its hash to a file for `[server] token_file`.
    Create {
        /// The token may query, but not send events.
        #[arg(long)]
        read_only: bool,
        /// The file of hashes.
        #[arg(long, value_name = "FILE", default_value = "weir.tokens")]
        file: std::path::PathBuf,
    },
}

impl Token {
    pub fn run(&self, _global: &Global) -> Result<(), RuntimeError> {
        use std::os::unix::fs::OpenOptionsExt;
        let Action::Create { read_only, file } = &self.action;
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let token = format!("weir_{}", hex(&rand::random::<[u8; 32]>()));
        let line = format!(
            "{} {}\n",
            hex(&Sha256::digest(&token)),
            if *read_only { "read" } else { "write" }
        );
        std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(file)
            .and_then(|mut f| f.write_all(line.as_bytes()).and_then(|()| f.sync_all()))
            .map_err(|e| {
                let file = file.display();
                RuntimeError::Failed(format!("{file}: {e}; name another file with --file"))
            })?;
        eprintln!(
            "weir: its hash is in {}; the token itself is not shown again",
            file.display()
        );
        output::write(format!("{token}\n").as_bytes())
    }
}
