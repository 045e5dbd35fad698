//! The pages for users: their commands run, their outputs are real, their links lead to tests and
//! pages that exist.
//!
//! Words after the language of a code block say what it is:
//!
//! | words | |
//! |---|---|
//! | `sh run` | commands that succeed, one after the other |
//! | `sh server` | a server that runs until the page ends, or the next server of its folder starts |
//! | `toml file=NAME` | a file, of any language |
//! | `text output` | what the last command before it prints |
//! | `text output like` | a table with these columns, which the command before it prints; wide lines end with `…` |
//!
//! `in=FOLDER` names the folder that a block is for; there may be several. With `WEIR_UPDATE_DOCS=1`
//! outputs are written into the pages instead of compared.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::server::Server;
use crate::support::wait_until;

/// Commands that build or test the program itself, which a test cannot do again.
const BUILDS: [&str; 3] = [
    "cargo test",
    "cargo build --release",
    "cargo install --path .",
];

/// How pages start the program from a clone.
const CARGO_RUN: &str = "cargo run --release --";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(page: &str) -> String {
    std::fs::read_to_string(root().join(page)).unwrap_or_else(|error| panic!("{page}: {error}"))
}

/// Markdown files of the repository's pages, relative to the root.
fn pages() -> Vec<String> {
    let mut out = vec!["README.md".to_owned()];
    let mut open = vec![PathBuf::from("docs")];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(root().join(&folder))
            .expect("a folder")
            .flatten()
        {
            let path = folder.join(entry.file_name());
            if entry.path().is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                out.push(path.display().to_string());
            }
        }
    }
    out.sort();
    out
}

/// A code block of a page.
struct Block {
    language: String,
    words: Vec<String>,
    text: String,
}

impl Block {
    fn is(&self, word: &str) -> bool {
        self.words.iter().any(|found| found == word)
    }

    fn value(&self, name: &str) -> Option<&str> {
        let mut words = self.words.iter();
        words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }

    fn folder(&self) -> &str {
        self.value("in").unwrap_or_default()
    }

    /// Its commands, without comments; one that ends with a backslash continues on the next line.
    fn commands(&self) -> Vec<String> {
        let joined = self.text.replace("\\\n", " ");
        let lines = joined
            .lines()
            .map(|line| line.split("  #").next().unwrap_or_default().trim());
        let commands = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        commands.map(str::to_owned).collect()
    }
}

/// The code blocks of a page that begin at the beginning of a line.
fn blocks(page: &str) -> Vec<Block> {
    let mut out = Vec::new();
    let mut rest = page;
    while let Some((_, block)) = rest.split_once("\n```") {
        let (info, block) = block.split_once('\n').expect("a line");
        let (text, after) = block.split_once("\n```").expect("an end");
        let mut words = info.split_whitespace().map(str::to_owned);
        out.push(Block {
            language: words.next().unwrap_or_default(),
            words: words.collect(),
            text: text.to_owned(),
        });
        rest = after;
    }
    out
}

/// The folders and servers of a page.
struct Session {
    root: tempfile::TempDir,
    servers: BTreeMap<String, Server>,
}

impl Session {
    fn new() -> Self {
        Self {
            root: tempfile::tempdir().expect("a folder"),
            servers: BTreeMap::new(),
        }
    }

    fn folder(&self, name: &str) -> PathBuf {
        let folder = self.root.path().join(format!("in-{name}"));
        std::fs::create_dir_all(&folder).expect("a folder");
        folder
    }

    /// A command as a shell runs it in the folder, with the program in its path; a server is on a free
    /// port.
    fn shell(&self, folder: &str, line: &str) -> Command {
        let program = Path::new(env!("CARGO_BIN_EXE_weir"))
            .parent()
            .expect("a folder")
            .display();
        let path = std::env::var("PATH").unwrap_or_default();
        let address = self
            .servers
            .get(folder)
            .map(|server| server.address.as_str());
        let line = line
            .replace(CARGO_RUN, "weir")
            .replace("127.0.0.1:8080", address.unwrap_or("127.0.0.1:8080"));
        let mut command = Command::new("sh");
        command
            .args(["-c", &line])
            .current_dir(self.folder(folder))
            .env("PATH", format!("{program}:{path}"))
            .env("WEIR_SERVER_HTTP", "127.0.0.1:0")
            .env_remove("WEIR_DATA");
        command
    }

    fn serve(&mut self, folder: &str, line: &str) {
        self.servers.remove(folder);
        let mut command = self.shell(folder, &format!("exec {}", line.replace(CARGO_RUN, "weir")));
        let server = Server::start(&mut command, &self.folder(folder).join("weir-data"));
        self.servers.insert(folder.to_owned(), server);
    }

    /// Runs a command that must succeed; returns what it prints.
    fn run(&self, folder: &str, line: &str) -> String {
        let output = self.shell(folder, line).output().expect("a shell");
        let messages = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {messages}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a command until it prints a table with rows and, if given, these columns.
    fn table(&self, folder: &str, line: &str, expected: Option<&Columns>) -> String {
        let mut found = String::new();
        wait_until(&format!("{line} prints the columns {expected:?}"), || {
            found = self.run(folder, &format!("{line} --output table"));
            Columns::of(&found)
                .is_some_and(|columns| expected.is_none_or(|e| e.are_those_of(&columns)))
        });
        found
    }
}

/// The names in the head of a printed table.
#[derive(Debug)]
struct Columns {
    names: Vec<String>,
    /// The line was cut: more follow, and the last may be a part.
    is_cut: bool,
}

impl Columns {
    /// None where there is no row.
    fn of(output: &str) -> Option<Self> {
        let mut lines = output.lines().filter(|line| line.starts_with('│'));
        let head = lines.next()?;
        lines.next()?;
        let trim = |name: &str| name.trim_matches(['│', ' ', '…']).to_owned();
        let names = head.split('┆').map(trim).collect();
        Some(Self {
            names,
            is_cut: head.ends_with('…'),
        })
    }

    fn are_those_of(&self, other: &Self) -> bool {
        if !self.is_cut {
            return self.names == other.names;
        }
        let whole = &self.names[..self.names.len() - 1];
        other.names.starts_with(whole)
    }
}

/// Characters of a line of a table that a page shows.
const SHOWN_WIDTH: usize = 118;

/// A table as a page shows it.
fn shown(table: &str) -> String {
    let line = |line: &str| {
        if line.chars().count() <= SHOWN_WIDTH {
            return line.to_owned();
        }
        line.chars().take(SHOWN_WIDTH).chain(['…']).collect()
    };
    table
        .trim_end()
        .lines()
        .map(line)
        .collect::<Vec<String>>()
        .join("\n")
}

/// Runs the blocks of a page in order; the outputs that it shows are compared, or written.
fn run_page(page: &str) {
    let is_update = std::env::var_os("WEIR_UPDATE_DOCS").is_some();
    let mut session = Session::new();
    let text = read(page);
    let blocks = blocks(&text);
    // What is before a block and between two, and the blocks, as the page has them.
    let mut parts: Vec<String> = text.split("\n```").map(str::to_owned).collect();
    let mut printed = String::new();
    for (n, block) in blocks.iter().enumerate() {
        let folder = block.folder();
        if let Some(name) = block.value("file") {
            let path = session.folder(folder).join(name);
            std::fs::write(path, format!("{}\n", block.text)).expect("a file");
        } else if block.language == "sh" {
            let table = blocks.get(n + 1).filter(|next| next.is("like"));
            for line in block.commands() {
                if BUILDS.contains(&line.as_str()) {
                    continue;
                }
                if block.is("server") {
                    session.serve(folder, &line);
                } else if let Some(table) = table {
                    let expected = Columns::of(&table.text).filter(|_| !is_update);
                    assert!(
                        is_update || expected.is_some(),
                        "{page} has no table after {line}: run `WEIR_UPDATE_DOCS=1 cargo test --test main documentation`"
                    );
                    printed = shown(&session.table(folder, &line, expected.as_ref()));
                } else {
                    printed = session.run(folder, &line);
                }
            }
        } else if block.is("output") && is_update {
            let info = parts[2 * n + 1].lines().next().unwrap_or_default();
            parts[2 * n + 1] = format!("{info}\n{}", printed.trim_end());
        } else if block.is("output") && !block.is("like") {
            assert_eq!(
                printed.trim_end(),
                block.text,
                "{page} shows another output"
            );
        }
    }
    if is_update {
        std::fs::write(root().join(page), parts.join("\n```")).expect("a page");
    }
}

#[test]
fn the_commands_of_the_readme_give_what_it_shows() {
    run_page("README.md");
}

#[test]
fn the_commands_of_the_tutorial_page_give_what_it_shows() {
    run_page("docs/tutorial.md");
}

/// On these pages no command is without a test.
#[test]
fn every_command_of_readme_and_tutorial_is_marked_to_be_run() {
    for page in ["README.md", "docs/tutorial.md"] {
        for block in blocks(&read(page))
            .iter()
            .filter(|block| block.language == "sh")
        {
            let is_build = block
                .commands()
                .iter()
                .all(|line| BUILDS.contains(&line.as_str()));
            assert!(
                block.is("run") || block.is("server") || is_build,
                "{page}:\n{}",
                block.text
            );
        }
    }
}

/// The demo prints what the README shows.
#[test]
fn the_readme_shows_what_the_demo_suggests() {
    let readme = read("README.md");
    for line in weir::generator::TO_TRY {
        assert!(
            readme.contains(&format!("\n{line}\n")),
            "README.md lacks {line}"
        );
    }
}

/// A figure of the README's beginning is one of BENCHMARKS.md.
#[test]
fn the_figures_of_the_readme_are_those_of_the_benchmarks() {
    let (readme, benchmarks) = (read("README.md"), read("BENCHMARKS.md"));
    let bullets = readme.split("\n## ").next().unwrap_or_default();
    let mut figures = 0;
    for bullet in bullets.lines().filter(|line| line.starts_with("- **")) {
        let bold = bullet.split("**").nth(1).unwrap_or_default();
        for number in bold.split(|c: char| !c.is_ascii_digit() && !",.".contains(c)) {
            if number.chars().any(|c| c.is_ascii_digit()) {
                figures += 1;
                assert!(
                    benchmarks.contains(number),
                    "BENCHMARKS.md has no figure {number}"
                );
            }
        }
    }
    assert!(figures >= 4, "the README begins with {figures} figures");
}

/// Links of the form [text](target), with their text.
fn links(page: &str) -> Vec<(String, String)> {
    let mut out = Vec::new();
    for (at, _) in page.match_indices("](") {
        let Some(target) = page[at + 2..].split(')').next() else {
            continue;
        };
        let text = page[..at].rsplit('[').next().unwrap_or_default();
        out.push((text.to_owned(), target.to_owned()));
    }
    out
}

/// A page without its code blocks.
fn prose(page: &str) -> String {
    page.split("\n```")
        .step_by(2)
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn links_lead_to_files_and_headings_that_exist() {
    let mut wrong = Vec::new();
    for page in pages() {
        let folder = root().join(&page).parent().expect("a folder").to_owned();
        for (_, target) in links(&prose(&read(&page))) {
            let (path, heading) = target.split_once('#').unwrap_or((&target, ""));
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let path = if path.is_empty() {
                root().join(&page)
            } else {
                folder.join(path)
            };
            // The picture of the page is drawn from the running page.
            let is_picture = path.extension().is_some_and(|extension| extension == "png");
            let is_missing = !path.exists() && !is_picture;
            let has_heading = || {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                text.lines()
                    .any(|line| line.starts_with('#') && anchor(line) == heading)
            };
            if is_missing || (!heading.is_empty() && !has_heading()) {
                wrong.push(format!("{page}: {target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The anchor of a heading.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim();
    let characters = text.chars().filter_map(|c| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        c if c.is_alphanumeric() => Some(c.to_ascii_lowercase()),
        _ => None,
    });
    characters.collect()
}

/// A link whose text is a name in code and whose target is a file of tests names one of its tests.
#[test]
fn every_named_test_exists() {
    let (mut named, mut wrong) = (0, Vec::new());
    for page in pages() {
        for (text, target) in links(&read(&page)) {
            let is_test = target.contains("tests/") && target.ends_with(".rs");
            let Some(name) = text
                .strip_prefix('`')
                .and_then(|text| text.strip_suffix('`'))
            else {
                continue;
            };
            if !is_test || name.contains('/') {
                continue;
            }
            named += 1;
            let file = root().join(&page).parent().expect("a folder").join(&target);
            let tests = std::fs::read_to_string(file).unwrap_or_default();
            if !tests.contains(&format!("fn {name}(")) {
                wrong.push(format!("{page}: {target} has no test `{name}`"));
            }
        }
    }
    assert!(named >= 30, "the pages name {named} tests");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
