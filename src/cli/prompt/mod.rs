//! The prompt of `weir sql`: statements up to `;`, each answered as by `weir sql "…"`, and a few
//! commands.

mod command;
mod helper;
mod history;
mod names;
mod statement;

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Config, Editor};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use self::command::Command;
use self::helper::SqlHelper;
use self::history::History;
use self::names::Names;
use super::client::QueryTarget;
use super::{Format, Global, output, sql, tokio_runtime};
use crate::runtime::RuntimeError;

const PROMPT: &str = "weir> ";
/// Bytes that are written to the terminal before Ctrl-C is looked for again.
const WRITE_BYTES: usize = 8 << 10;

/// Reads and answers statements until the end of input. Errors of statements are reported; only
/// what keeps the prompt from working at all is returned.
pub fn run(global: &Global) -> Result<(), RuntimeError> {
    let config = Config::builder()
        .max_history_size(history::MAX_ENTRIES)
        .map_err(|error| failed(&error))?
        .history_ignore_dups(true)
        .map_err(|error| failed(&error))?
        .completion_type(rustyline::CompletionType::List)
        .build();
    let mut editor =
        Editor::<SqlHelper, FileHistory>::with_config(config).map_err(|error| failed(&error))?;
    let mut session = Session::new(global)?;
    // What keeps queries from being answered ends the prompt, as it ends `weir sql "…"`.
    let target = session.open()?;
    let names = session.load_names(&target)?;
    editor.set_helper(Some(SqlHelper { names }));
    eprintln!(
        "weir {}, {}; `\\?` for help, `\\q` to quit",
        env!("CARGO_PKG_VERSION"),
        target.description()
    );
    // Between statements a folder is not held: a server may start.
    drop(target);
    let mut history = History::load(&mut editor);

    loop {
        // Ctrl-C is a key while a statement is typed, and a signal from its end on.
        session.interrupts.clear();
        let text = match editor.readline(PROMPT) {
            Ok(text) => text,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(failed(&error)),
        };
        history.add(&mut editor, &text);
        match session.answer(&text, &mut editor) {
            Ok(Next::Prompt) => {}
            Ok(Next::End) => return Ok(()),
            Err(error) => output::message(&format!("weir: {error}")),
        }
    }
}

fn failed(error: &ReadlineError) -> RuntimeError {
    RuntimeError::Failed(format!(
        "the terminal: {error}; `weir sql \"select …\"` needs none"
    ))
}

/// What follows an input.
enum Next {
    Prompt,
    End,
}

/// Ctrl-C while a query runs.
struct Interrupts {
    count: watch::Receiver<u64>,
}

impl Interrupts {
    /// From now on the signal does not end the process.
    fn watch(runtime: &Runtime) -> Result<Self, RuntimeError> {
        let _inside = runtime.enter();
        let mut signals = signal(SignalKind::interrupt())
            .map_err(|e| RuntimeError::Failed(format!("signals cannot be received: {e}")))?;
        let (sender, count) = watch::channel(0);
        runtime.spawn(async move {
            while signals.recv().await.is_some() {
                sender.send_modify(|n| *n += 1);
            }
        });
        Ok(Self { count })
    }

    /// Forgets those so far.
    fn clear(&mut self) {
        self.count.mark_unchanged();
    }

    fn is_set(&self) -> bool {
        self.count.has_changed().unwrap_or(false)
    }

    /// Completes at the first one since [`Self::clear`].
    fn wait(&self) -> impl Future<Output = ()> + use<> {
        let mut count = self.count.clone();
        async move {
            if count.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// The state of a prompt.
struct Session<'a> {
    global: &'a Global,
    runtime: Arc<Runtime>,
    interrupts: Interrupts,
    format: Format,
    has_timing: bool,
    is_expanded: bool,
}

impl<'a> Session<'a> {
    fn new(global: &'a Global) -> Result<Self, RuntimeError> {
        let runtime = Arc::new(tokio_runtime()?);
        let interrupts = Interrupts::watch(&runtime)?;
        Ok(Self {
            global,
            runtime,
            interrupts,
            format: global.format(),
            has_timing: false,
            is_expanded: false,
        })
    }

    /// The server, or the folder, which is held until this is dropped.
    fn open(&self) -> Result<QueryTarget, RuntimeError> {
        QueryTarget::open_unless(self.global, &self.runtime, &|| self.interrupts.is_set())
    }

    /// Tables, columns and functions as they are now.
    fn load_names(&self, target: &QueryTarget) -> Result<Names, RuntimeError> {
        let ask = |query: &str| -> Result<Value, RuntimeError> {
            let answer = target.sql_unless(query, "json", self.interrupts.wait())?;
            let answer = answer.ok_or_else(|| RuntimeError::Failed("cancelled".into()))?;
            serde_json::from_slice(&answer).map_err(|e| RuntimeError::Failed(e.to_string()))
        };
        let columns = ask(names::COLUMNS_SQL)?;
        // Without their names, Tab completes everything else.
        let functions = ask(names::FUNCTIONS_SQL).unwrap_or_default();
        Ok(Names::new(&columns, &functions))
    }

    fn answer(
        &mut self,
        text: &str,
        editor: &mut Editor<SqlHelper, FileHistory>,
    ) -> Result<Next, RuntimeError> {
        match command::parse(text) {
            Some(command) => {
                let command = command.map_err(|e| RuntimeError::Config(e.to_string()))?;
                return self.obey(&command, editor);
            }
            None => {
                for statement in statement::split(text).0 {
                    self.query(statement)?;
                }
            }
        }
        Ok(Next::Prompt)
    }

    fn obey(
        &mut self,
        command: &Command<'_>,
        editor: &mut Editor<SqlHelper, FileHistory>,
    ) -> Result<Next, RuntimeError> {
        match command {
            Command::Quit => return Ok(Next::End),
            Command::Help => output::write(format!("{}\n", command::HELP).as_bytes())?,
            Command::Timing => {
                self.has_timing = !self.has_timing;
                let state = if self.has_timing { "on" } else { "off" };
                eprintln!("timing is {state}");
            }
            Command::Expanded => {
                self.is_expanded = !self.is_expanded;
                let state = if self.is_expanded { "on" } else { "off" };
                eprintln!("a line for each value is {state}");
            }
            Command::Tables | Command::Columns(_) => {
                let names = self.load_names(&self.open()?)?;
                let rows = match command {
                    Command::Columns(table) => names.columns(table),
                    _ => Ok(names.tables()),
                };
                if let Some(helper) = editor.helper_mut() {
                    helper.names = names;
                }
                let rows = rows.map_err(|e| RuntimeError::Config(e.to_string()))?;
                output::write(format!("{}\n", output::table(&rows)).as_bytes())?;
            }
        }
        Ok(Next::Prompt)
    }

    fn query(&self, statement: &str) -> Result<(), RuntimeError> {
        let started = Instant::now();
        let cancelled = || RuntimeError::Failed("the query was cancelled".into());
        let target = self.open().map_err(|error| {
            if self.interrupts.is_set() {
                cancelled()
            } else {
                error
            }
        })?;
        let encoding = sql::encoding(self.format);
        let answer = target.sql_unless(statement, encoding, self.interrupts.wait())?;
        let answer = answer.ok_or_else(cancelled)?;
        let took = started.elapsed();
        let (mut text, rows) = sql::display(answer, self.format, self.is_expanded)?;
        if !text.ends_with(b"\n") {
            text.push(b'\n');
        }
        for part in text.chunks(WRITE_BYTES) {
            if self.interrupts.is_set() {
                output::write(b"\n")?;
                return Err(RuntimeError::Failed("the output was cut off".into()));
            }
            output::write(part)?;
        }
        if let Some(rows) = rows {
            let plural = if rows == 1 { "" } else { "s" };
            eprintln!("{rows} row{plural}");
        }
        if self.has_timing {
            eprintln!("{:.1} ms", took.as_secs_f64() * 1_000.0);
        }
        Ok(())
    }
}
