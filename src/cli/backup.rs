//! `weir backup`: a copy of the data folder that can be opened as it is.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::client::Server;
use super::progress::{Progress, Unit};
use super::{Format, Global, output, tokio_runtime};
use crate::runtime::{RuntimeError, backup};

/// Copies the data folder, also that of a running server. The copy is used as `data` of a
/// configuration.
#[derive(Debug, Args)]
pub struct Backup {
    /// The target: an empty folder, or one that does not exist yet.
    dir: PathBuf,
}

impl Backup {
    pub fn run(&self, global: &Global) -> Result<(), RuntimeError> {
        let config = global.load()?;
        let failed = |e: std::io::Error| {
            let dir = self.dir.display();
            RuntimeError::Config(format!(
                "`{dir}`: {e}; name a folder that is empty or does not exist yet"
            ))
        };
        let to = std::path::absolute(&self.dir).map_err(failed)?;
        let runtime = tokio_runtime()?;
        let answer = match runtime.block_on(Server::find(&config)) {
            Some(server) => {
                let _copying = Progress::new(global, "the server copies its folder", Unit::None);
                runtime.block_on(server.post("backup", &json!({"to": to})))?
            }
            None => {
                let copied = Progress::new(global, "copying", Unit::Bytes);
                let report = &mut |bytes| copied.set(bytes, None);
                json!(backup::offline(&config, &to, runtime.handle(), report)?)
            }
        };
        match global.format() {
            Format::Table => output::write(
                format!(
                    "{}: {} files, {} bytes, up to record {}\n",
                    to.display(),
                    answer["files"],
                    answer["bytes"],
                    answer["lsn"]
                )
                .as_bytes(),
            ),
            _ => output::write(format!("{answer}\n").as_bytes()),
        }
    }
}
