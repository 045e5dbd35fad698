//! The command line on a terminal: the prompt of `weir sql`, `weir top` and progress bars in a
//! pseudo-terminal, and what the same verbs do without one.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::server::Server;
use crate::support::{FREE_PORT, TestFolder, ndjson, records, skip};

/// What a command has written, and that it wrote more.
#[derive(Default)]
struct Output {
    bytes: Mutex<Vec<u8>>,
    has_grown: Condvar,
}

/// How long a text is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A command in a pseudo-terminal of 80 columns and 24 lines.
struct Terminal {
    child: Child,
    input: Option<ChildStdin>,
    output: Arc<Output>,
    reader: Option<JoinHandle<()>>,
    /// Output that was waited for already.
    seen: usize,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The command ends with its terminal.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Terminal {
    /// Starts a command; none, with the reason printed, where Python is missing.
    fn start(command: &Command, state: &Path) -> Option<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/terminal.py");
        let child = Command::new("python3")
            .arg(script)
            .arg(command.get_program())
            .args(command.get_args())
            .env_remove("WEIR_DATA")
            .env_remove("NO_COLOR")
            .env("TERM", "xterm-256color")
            .env("XDG_STATE_HOME", state)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            skip("python3, which opens a pseudo-terminal, is not installed");
            return None;
        };
        let mut from = child.stdout.take().expect("piped");
        let output: Arc<Output> = Arc::default();
        let all = output.clone();
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4_096];
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                let bytes = all.bytes.lock();
                let mut bytes = bytes.unwrap_or_else(PoisonError::into_inner);
                bytes.extend_from_slice(&buffer[..length]);
                all.has_grown.notify_all();
            }
        });
        Some(Self {
            input: child.stdin.take(),
            child,
            output,
            reader: Some(reader),
            seen: 0,
        })
    }

    /// Waits until a text was written, after the last one that was waited for.
    fn wait_for(&mut self, text: &str) {
        let place = |bytes: &[u8]| {
            let mut places = bytes[self.seen..].windows(text.len());
            places.position(|place| place == text.as_bytes())
        };
        let bytes = self.output.bytes.lock();
        let bytes = bytes.unwrap_or_else(PoisonError::into_inner);
        let is_missing = |bytes: &mut Vec<u8>| place(bytes).is_none();
        let grown = &self.output.has_grown;
        let waited = grown.wait_timeout_while(bytes, PATIENCE, is_missing);
        let (bytes, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let found = place(&bytes).unwrap_or_else(|| {
            let new = String::from_utf8_lossy(&bytes[self.seen..]).into_owned();
            panic!("`{text}` was not written: {new:?}")
        });
        drop(bytes);
        self.seen += found + text.len();
    }

    fn send(&mut self, text: &str) {
        let input = self.input.as_mut().expect("open");
        input.write_all(text.as_bytes()).expect("it is read");
        input.flush().expect("it is read");
    }

    /// Waits for the end; the exit code, and everything that was written.
    fn end(mut self) -> (Option<i32>, String) {
        let code = self.child.wait().expect("it ends").code();
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader ends");
        }
        let bytes = self.output.bytes.lock();
        let bytes = bytes.unwrap_or_else(PoisonError::into_inner).clone();
        (code, String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// A stopped folder with 40 records.
fn folder() -> TestFolder {
    let folder = TestFolder::new(FREE_PORT);
    folder.write("in.ndjson", &ndjson(&records(40, 1)));
    folder.run_once();
    folder
}

#[test]
fn the_prompt_answers_statements_and_commands() {
    let folder = folder();
    let state = folder.path("state");
    let Some(mut terminal) = Terminal::start(&folder.command(&["sql"]), &state) else {
        return;
    };
    terminal.wait_for("the data folder, read-only");
    terminal.wait_for("weir> ");
    // A statement of several lines, and two in one line.
    terminal.send("select count(*) as n\r");
    terminal.send("from rsvps;\r");
    terminal.wait_for("│ 40");
    terminal.wait_for("1 row\r\n");
    terminal.send("select 11 as a; select 22 as b; -- both\r");
    terminal.wait_for("│ 11");
    terminal.wait_for("│ 22");
    // An error is that of `weir sql "…"`, and the prompt continues.
    let error = folder.fail(&["sql", "select nothing from rsvps"], 2);
    terminal.wait_for("weir> ");
    terminal.send("select nothing from rsvps;\r");
    terminal.wait_for(error.lines().next().expect("a message"));
    // Tab completes the name of a column.
    terminal.wait_for("weir> ");
    terminal.send("select max(rsvp_i\t");
    terminal.wait_for("select max(rsvp_id");
    terminal.send(") as newest from rsvps;\r");
    terminal.wait_for("newest");
    terminal.wait_for("1 row\r\n");
    for (command, expected) in [
        (r"\d", "rsvps.members"),
        (r"\d rsvps", "varchar"),
        (r"\d nothing", "the table `nothing` does not exist"),
        (r"\timing", "timing is on"),
        (r"\x", "a line for each value is on"),
        ("select 33 as c, 44 as d;", "d | 44\r\n"),
        ("select 55 as e;", " ms\r\n"),
        (r"\?", "columns of a table"),
        (r"\nothing", r"`\nothing` is not a command"),
    ] {
        terminal.wait_for("weir> ");
        terminal.send(&format!("{command}\r"));
        terminal.wait_for(expected);
    }
    // A server may start between statements: the folder is not held.
    let mut server = folder.command(&["run"]);
    let server = Server::start(&mut server, &folder.path("data"));
    terminal.send("select 66 as f;\r");
    terminal.wait_for("f | 66\r\n");
    drop(server);
    terminal.send("\\q\r");
    let (code, output) = terminal.end();
    assert_eq!(code, Some(0), "{output}");
}

#[test]
fn ctrl_c_ends_the_query_and_ctrl_d_the_prompt() {
    let folder = folder();
    let state = folder.path("state");
    let mut server = folder.command(&["run"]);
    let server = Server::start(&mut server, &folder.path("data"));
    let Some(mut terminal) = Terminal::start(&folder.command(&["sql"]), &state) else {
        return;
    };
    terminal.wait_for(&server.address);
    terminal.wait_for("weir> ");
    // Dropped before it is complete.
    terminal.send("select 'unfinished\x03");
    terminal.wait_for("weir> ");
    terminal.send("select count(*) from generate_series(1, 900000000000);\r");
    // From the end of the line on, Ctrl-C is a signal.
    terminal.wait_for(");");
    terminal.wait_for("\n");
    terminal.send("\x03");
    terminal.wait_for("the query was cancelled");
    terminal.wait_for("weir> ");
    terminal.send("select 77 as\rg;\r");
    terminal.wait_for("│ 77");
    terminal.wait_for("weir> ");
    terminal.send("\x04");
    let (code, output) = terminal.end();
    assert_eq!(code, Some(0), "{output}");

    let file = state.join("weir/sql_history");
    let metadata = std::fs::metadata(&file).expect("a history");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&file).expect("text");
    assert!(text.contains("select 77 as\\ng;"), "{text}");
    // The next prompt remembers it.
    let again = Terminal::start(&folder.command(&["sql"]), &state);
    let mut terminal = again.expect("a terminal as before");
    terminal.wait_for("weir> ");
    terminal.send("\x1b[A");
    terminal.wait_for("g;");
    terminal.send("\r");
    terminal.wait_for("│ 77");
    terminal.wait_for("weir> ");
    terminal.send("\x04");
    assert_eq!(terminal.end().0, Some(0));
}

#[test]
fn without_a_terminal_sql_reads_standard_input_and_says_if_it_is_empty() {
    let folder = folder();
    let message = folder.fail(&["sql"], 2);
    assert!(message.contains("standard input has no query"), "{message}");
    let mut command = folder.command(&["sql", "--output", "csv"]);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = child.expect("the binary runs");
    let mut input = child.stdin.take().expect("piped");
    input
        .write_all(b"select count(*) as n from rsvps")
        .expect("it is read");
    drop(input);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "n\n40\n");
}

#[test]
fn top_shows_a_server_that_goes_and_comes_back() {
    let folder = folder();
    let state = folder.path("state");
    let message = folder.fail(&["top"], 2);
    assert!(
        message.contains("needs a terminal; `weir status`"),
        "{message}"
    );
    let top = folder.command(&["top"]);
    let Some(none) = Terminal::start(&top, &state) else {
        return;
    };
    let (code, output) = none.end();
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains("start `weir run`"), "{output}");

    let start = || Server::start(&mut folder.command(&["run"]), &folder.path("data"));
    let server = start();
    let mut terminal = Terminal::start(&top, &state).expect("a terminal as before");
    terminal.wait_for("ready");
    terminal.wait_for("rsvps");
    // Dropped, it is killed.
    drop(server);
    terminal.wait_for("answer");
    let _server = start();
    terminal.wait_for("ready");
    terminal.send("\t");
    terminal.send("q");
    let (code, output) = terminal.end();
    assert_eq!(code, Some(0), "{output}");
    assert!(
        output.contains("\x1b[?1049l"),
        "the screen is left as it was: {output}"
    );
    // After the last window come the panels of the overview.
    let last = folder.command(&["top", "--window", "totals"]);
    let mut terminal = Terminal::start(&last, &state).expect("a terminal as before");
    terminal.wait_for("totals");
    std::thread::sleep(Duration::from_secs(2));
    terminal.send("\t");
    terminal.wait_for("by country");
    terminal.send("mq");
    assert_eq!(terminal.end().0, Some(0));
    let unknown = folder.command(&["top", "--stream", "nothing"]);
    let unknown = Terminal::start(&unknown, &state).expect("a terminal as before");
    let (code, output) = unknown.end();
    assert_eq!(code, Some(2), "{output}");
    assert!(output.contains("available: rsvps"), "{output}");
}

#[test]
fn progress_is_shown_on_a_terminal_only() {
    let folder = TestFolder::new("");
    let file = folder.path("out.ndjson");
    let file = file.to_str().expect("text");
    let generate = ["generate", "--count", "20000", "--file", file];
    let with = |more: &[&str]| {
        let mut command = crate::support::weir();
        command.args(generate).args(more);
        command
    };
    let output = with(&[]).output().expect("the binary runs");
    assert!(output.status.success() && output.stderr.is_empty());
    for (more, is_shown) in [
        (&[][..], true),
        (&["--quiet"], false),
        (&["--log-format", "json"], false),
    ] {
        let Some(terminal) = Terminal::start(&with(more), &folder.path("state")) else {
            return;
        };
        let (code, output) = terminal.end();
        assert_eq!(code, Some(0), "{output}");
        assert_eq!(output.contains("generating"), is_shown, "{output}");
    }
    // What a verb prints is below, also after a bar.
    folder.write("in.ndjson", &ndjson(&records(40, 1)));
    let run = folder.command(&["run", "--once"]);
    let terminal = Terminal::start(&run, &folder.path("state")).expect("a terminal as before");
    let (code, output) = terminal.end();
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains("reading"), "{output}");
    assert!(output.contains("40 events"), "{output}");
}

/// What takes more than two seconds says so, wherever the answer comes from.
#[test]
fn slow_answers_have_a_spinner_on_a_terminal_only() {
    let folder = TestFolder::new("[limits]\nsql_time = \"4s\"\n");
    folder.write("in.ndjson", &ndjson(&records(40, 1)));
    folder.run_once();
    let sql = [
        "sql",
        "select count(*) from generate_series(1, 900000000000)",
    ];
    for (more, is_shown) in [(&[][..], true), (&["--quiet"], false)] {
        let mut command = folder.command(&sql);
        command.args(more);
        let Some(terminal) = Terminal::start(&command, &folder.path("state")) else {
            return;
        };
        let (code, output) = terminal.end();
        assert_ne!(code, Some(0), "{output}");
        assert!(output.contains("sql_time"), "{output}");
        let has_spinner = output.contains("waiting for the answer");
        assert_eq!(has_spinner, is_shown, "{output}");
    }
    let message = folder.fail(&sql, 1);
    assert!(!message.contains("waiting for the answer"), "{message}");
}

#[test]
fn a_missing_name_is_answered_with_those_that_there_are() {
    let folder = folder();
    for (arguments, parts) in [
        (
            &["windows"][..],
            &["`weir windows NAME` needs a window", "by_country"][..],
        ),
        (
            &["rebuild"],
            &["`weir rebuild WHAT…` needs a view", "search", "by_country"],
        ),
        (
            &["sinks", "pause"],
            &["`weir sinks pause NAME` needs a sink, and none is declared"],
        ),
        (
            &["sinks", "reset"],
            &["`weir sinks reset NAME` needs a sink"],
        ),
        (&["sinks", "reset", "x"], &["needs --from"]),
        (&["dead-letters", "show"], &["`weir dead-letters list`"]),
    ] {
        let message = folder.fail(arguments, 2);
        for part in parts {
            assert!(message.contains(part), "{arguments:?}: {part}: {message}");
        }
    }
}

#[test]
fn each_verb_has_a_manual_page() {
    let folder = TestFolder::new("");
    let page = folder.output(&["man", "sinks", "reset"]);
    let page = String::from_utf8_lossy(&page.stdout).into_owned();
    assert!(page.contains(".SH EXAMPLES"), "{page}");
    let message = folder.fail(&["man", "nothing"], 2);
    assert!(
        message.contains("available:") && message.contains("rebuild"),
        "{message}"
    );
    let pages = folder.path("pages");
    let name = pages.to_str().expect("text");
    let message = folder.fail(&["man", "--dir", name], 1);
    assert!(message.contains("name a folder that exists"), "{message}");
    std::fs::create_dir(&pages).expect("a folder");
    folder.succeed(&["man", "--dir", name]);
    assert!(pages.join("weir-dead-letters-retry.1").exists());
}

#[test]
fn columns_of_a_table_are_in_the_order_of_the_query() {
    let folder = folder();
    let query = "select rsvp_id as z, lsn, 1 as a from rsvps limit 1";
    let output = folder.output(&["sql", query, "--output", "table"]);
    let table = String::from_utf8(output.stdout).expect("text");
    let header = table.lines().nth(1).expect("a header");
    let names: Vec<&str> = header.split(['│', '┆']).map(str::trim).collect();
    assert_eq!(names, ["", "z", "lsn", "a", ""]);
}

/// A terminal obeys escape sequences: what an event says must not reach it as one.
#[test]
fn control_characters_of_events_do_not_reach_the_terminal() {
    let folder = TestFolder::new("");
    let mut record = records(1, 1);
    record[0]["member"]["member_name"] = "evil \u{1b}]0;title\u{7}\u{1b}[2J".into();
    folder.write("in.ndjson", &ndjson(&record));
    folder.run_once();
    for (query, is_answered) in [
        ("select member_name from rsvps", true),
        ("select 1 as \"a\u{1b}[2J\"", true),
        ("select cast(member_name as bigint) from rsvps", false),
    ] {
        let output = folder.output(&["sql", query, "--output", "table"]);
        assert_eq!(output.status.success(), is_answered, "{query}");
        let written = [output.stdout, output.stderr].concat();
        let is_allowed = |byte: &u8| !byte.is_ascii_control() || *byte == b'\n';
        let text = String::from_utf8_lossy(&written);
        assert!(written.iter().all(is_allowed), "{query}: {text:?}");
        assert!(
            text.contains("evil") || text.contains("[2J"),
            "{query}: {text:?}"
        );
    }
}

#[test]
fn errors_name_the_next_step() {
    let folder = folder();
    let path = |name: &str| folder.path(name).to_str().expect("text").to_owned();
    let (missing, file) = (path("none/here"), path("in.ndjson"));
    for (arguments, code, step) in [
        (&["backup", &missing][..], 2, "create"),
        (&["backup", &file], 2, "name another folder"),
        (&["init"], 1, "name another one with -c"),
        (&["test", &missing], 2, "name a file of JSON records"),
        (&["test", "--suite", &missing], 2, "[[test]]"),
        (&["replay", &missing], 1, "name a file of JSON objects"),
        (
            &["generate", "--count", "1", "--file", &missing],
            1,
            "name another file",
        ),
        (
            &["token", "create", "--file", &missing],
            1,
            "name another file with --file",
        ),
        (
            &["dead-letters", "show", "1"],
            1,
            "`weir dead-letters list`",
        ),
    ] {
        let message = folder.fail(arguments, code);
        assert!(message.contains(step), "{arguments:?}: {message}");
    }
}
