//! `weir sinks`: where rows are sent, and how far.

use clap::{Args, Subcommand};
use serde_json::json;

use super::client::{QueryTarget, Server};
use super::output::Format;
use super::progress::Spinner;
use super::query::missing_name;
use super::{Global, output, tokio_runtime};
use crate::config::Config;
use crate::runtime::query_service::Params;
use crate::runtime::{RuntimeError, sink_threads};
use crate::sinks::{Command, ResetTo};

#[derive(Debug, Args)]
pub struct Sinks {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Lists the sinks with their state, cursor and lag.
    List,
    /// Stops a sink until it is resumed; rows wait in its tables.
    Pause {
        /// The sink; without it, an error lists the sinks.
        name: Option<String>,
    },
    /// Continues a sink that was paused or has halted.
    Resume {
        /// The sink; without it, an error lists the sinks.
        name: Option<String>,
        /// Remove the rows that its target has refused (`weir.sink_dead_letters`).
        #[arg(long)]
        discard_dead_letters: bool,
    },
    /// Sends rows again from an earlier record, or skips to a later one.
    Reset {
        /// The sink; without it, an error lists the sinks.
        name: Option<String>,
        /// After which record it continues: `earliest`, `latest` or an LSN.
        #[arg(long, value_name = "LSN")]
        from: Option<ResetTo>,
    },
}

impl Sinks {
    pub fn run(&self, global: &Global) -> Result<(), RuntimeError> {
        match &self.action {
            Action::List => list(global),
            Action::Pause { name } => {
                let name = name.as_deref();
                send(global, name, "pause", Command::Pause, &json!({}))
            }
            Action::Resume {
                name,
                discard_dead_letters,
            } => {
                let discard_dead_letters = *discard_dead_letters;
                let command = Command::Resume {
                    discard_dead_letters,
                };
                let body = json!({"discard_dead_letters": discard_dead_letters});
                send(global, name.as_deref(), "resume", command, &body)
            }
            Action::Reset { name, from } => {
                let Some(from) = from else {
                    // Without a name, that is what is missing first.
                    sink_named(&global.load_file()?, name.as_deref(), "reset")?;
                    let step = "`weir sinks reset NAME` needs --from: earliest, latest or an LSN";
                    return Err(RuntimeError::Config(step.into()));
                };
                let body = json!({"from": from.to_string()});
                send(
                    global,
                    name.as_deref(),
                    "reset",
                    Command::Reset(*from),
                    &body,
                )
            }
        }
    }
}

/// Writes the sinks of the status alone, with the columns of `weir.sinks`. As a member of JSON the
/// tables are a list, as in the status.
fn list(global: &Global) -> Result<(), RuntimeError> {
    let mut status = QueryTarget::open(global)?.ask("status", &Params::new())?;
    let mut sinks = status["sinks"].take();
    if let Format::Table | Format::Csv = global.format() {
        for sink in sinks.as_array_mut().into_iter().flatten() {
            let tables = sink["tables"].as_array().into_iter().flatten();
            let tables: Vec<String> = tables.map(output::cell).collect();
            sink["tables"] = tables.join(", ").into();
        }
    }
    output::answer(&json!({"sinks": sinks}), "sinks", global.format())
}

/// The name of a sink; an error that lists the sinks if it is missing.
fn sink_named<'a>(
    config: &Config,
    name: Option<&'a str>,
    action: &str,
) -> Result<&'a str, RuntimeError> {
    name.ok_or_else(|| {
        let names: Vec<String> = config.sinks.iter().map(|sink| sink.name.clone()).collect();
        missing_name("sink", &format!("weir sinks {action} NAME"), &names)
    })
}

/// To the running server, or to the files of a folder that no process works on.
fn send(
    global: &Global,
    name: Option<&str>,
    action: &str,
    command: Command,
    body: &serde_json::Value,
) -> Result<(), RuntimeError> {
    let config = global.load_file()?;
    let name = sink_named(&config, name, action)?;
    let sending = Spinner::new(global, format!("sink `{name}`: {action}"));
    let runtime = tokio_runtime()?;
    match runtime.block_on(Server::find(&config)) {
        Some(server) => {
            runtime.block_on(server.post(&format!("sinks/{name}/{action}"), body))?;
        }
        None => sink_threads::command_offline(&config, runtime.handle(), name, command)?,
    }
    drop(sending);
    eprintln!("sink `{name}`: {action} done");
    Ok(())
}
