//! The command line: one file per verb. Results go to stdout, logs and progress to stderr.

mod backup;
mod check;
mod client;
mod compact;
mod dead_letters;
mod demo;
mod destination;
mod examples;
mod generate;
mod init;
mod man;
mod output;
mod progress;
mod prompt;
mod query;
mod rebuild;
mod run;
mod serve;
mod sinks;
mod sql;
mod test;
mod tls;
mod token;
mod top;
mod tryout;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{self, Config};
use crate::runtime::RuntimeError;
use output::Format;

/// Takes live JSON events and keeps a lake, search, counts and a venue map of them up to date,
/// without losing one.
#[derive(Debug, Parser)]
#[command(name = "weir", version, propagate_version = true, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// Flags of every verb.
#[derive(Debug, Clone, Args)]
struct Global {
    /// The configuration [default: ./weir.toml, else the data in ./weir-data].
    #[arg(short, long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How results are written [default: table on a terminal, else json].
    #[arg(long, global = true, value_enum)]
    output: Option<Format>,
    /// Maximum memory of the process, for example 1GiB.
    #[arg(long, global = true, value_name = "SIZE")]
    memory: Option<String>,
    /// More logs; given twice, all.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Only errors.
    #[arg(short, long, global = true)]
    quiet: bool,
    /// How logs are written.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Shows everything on a generated live stream: one command, data in ./weir-data.
    Demo(demo::Demo),
    /// Ingests events and keeps everything up to date, until stopped.
    Run(run::Run),
    /// Checks the configuration without starting.
    Check(check::Check),
    Test(test::Test),
    Sql(sql::Sql),
    Count(query::Count),
    Search(query::Search),
    Nearby(query::Nearby),
    Windows(query::Windows),
    Status(query::Status),
    Top(top::Top),
    Backup(backup::Backup),
    Rebuild(rebuild::Rebuild),
    /// Merges the files of a stopped lake now.
    Compact(compact::Compact),
    /// Lists, shows and retries rejected records.
    DeadLetters(dead_letters::DeadLetters),
    /// Lists, pauses, resumes and resets sinks.
    Sinks(sinks::Sinks),
    Generate(generate::Generate),
    Replay(generate::Replay),
    /// Writes a configuration to start from.
    Init(init::Init),
    Try(tryout::Try),
    /// Creates tokens for a server that other machines can reach.
    Token(token::Token),
    /// Prints completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    Man(man::Man),
}

impl Global {
    /// The configuration; the defaults if no file exists.
    pub fn load(&self) -> Result<Config, RuntimeError> {
        Ok(config::load(
            self.config.as_deref(),
            self.memory.as_deref(),
        )?)
    }

    /// The configuration, for verbs that need its file.
    pub fn load_file(&self) -> Result<Config, RuntimeError> {
        let config = self.load()?;
        if config.path.is_none() {
            let hint = "./weir.toml does not exist; `weir init` writes one, -c names one, `weir demo` needs none";
            return Err(RuntimeError::Config(hint.into()));
        }
        Ok(config)
    }

    /// The format of results: as asked for, else a table on a terminal, else JSON.
    pub fn format(&self) -> Format {
        self.output.unwrap_or_else(Format::default_for_stdout)
    }
}

/// Parses the command line, runs its verb, and maps errors to exit codes (README: 0, 1, 2, 65, 75).
pub fn main() -> ExitCode {
    let matches = examples::add(Cli::command()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    start_logs(&cli.global);
    // Two providers are compiled in; the first use of TLS panics unless one is chosen.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let result = dispatch(&cli.global, cli.verb);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::message(&format!("weir: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}

fn dispatch(global: &Global, verb: Verb) -> Result<(), RuntimeError> {
    match verb {
        Verb::Demo(demo) => demo.run(global),
        Verb::Generate(generate) => generate.run(global),
        Verb::Replay(replay) => replay.run(global),
        Verb::Run(run) => run.run(global),
        Verb::Check(check) => check.run(global),
        Verb::Test(test) => test.run(global),
        Verb::Sql(sql) => sql.run(global),
        Verb::Count(count) => count.run(global),
        Verb::Search(search) => search.run(global),
        Verb::Nearby(nearby) => nearby.run(global),
        Verb::Windows(windows) => windows.run(global),
        Verb::Status(status) => status.run(global),
        Verb::Top(top) => top.run(global),
        Verb::Backup(backup) => backup.run(global),
        Verb::Rebuild(rebuild) => rebuild.run(global),
        Verb::Compact(compact) => compact.run(global),
        Verb::DeadLetters(dead_letters) => dead_letters.run(global),
        Verb::Sinks(sinks) => sinks.run(global),
        Verb::Init(init) => init.run(global),
        Verb::Try(tryout) => tryout.run(global),
        Verb::Token(token) => token.run(global),
        Verb::Completions { shell } => {
            let mut out = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "weir", &mut out);
            output::write(&out)
        }
        Verb::Man(man) => man.run(),
    }
}

fn start_logs(global: &Global) {
    use std::io::IsTerminal;
    use tracing_subscriber::EnvFilter;
    let level = match (global.quiet, global.verbose) {
        (true, _) => "off,weir=error",
        // The Delta library logs an error for every table that does not exist yet.
        (_, 0) => "warn,weir=info,buoyant_kernel=off,deltalake_core=off",
        (_, 1) => "warn,weir=debug,buoyant_kernel=off",
        (_, _) => "info,weir=trace",
    };
    let filter = EnvFilter::try_from_env("WEIR_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| progress::Stderr)
        .with_ansi(color);
    let _ = match global.log_format {
        LogFormat::Text => logs.try_init(),
        LogFormat::Json => logs.json().try_init(),
    };
}

/// The runtime of everything asynchronous: the server, and the lake's I/O.
fn tokio_runtime() -> Result<tokio::runtime::Runtime, RuntimeError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .thread_name("weir")
        .build()
        .map_err(|e| RuntimeError::Failed(format!("threads cannot be started: {e}")))
}

/// The verbs and flags, for the reference in `docs`.
#[cfg(test)]
pub(crate) fn command() -> clap::Command {
    examples::add(Cli::command())
}
