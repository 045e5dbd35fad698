//! The tree keeps its own rules: who may import whom, which crate is used where, no words of a
//! domain in the program, and an architecture page whose paths exist.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            out.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
    out.sort();
    out
}

/// Files with their path below `src` and their code without comments and unit tests.
fn code() -> Vec<(String, String)> {
    let src = root().join("src");
    sources(&src)
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("readable");
            let text = text.split("#[cfg(test)]").next().unwrap_or_default();
            let lines: Vec<&str> = text
                .lines()
                .filter(|l| !l.trim_start().starts_with("//"))
                .collect();
            let name = path
                .strip_prefix(&src)
                .expect("below src")
                .display()
                .to_string();
            (name, lines.join("\n"))
        })
        .collect()
}

/// The module that a file belongs to: the first name of its path, or of a view.
fn module(file: &str) -> String {
    let path = file.trim_end_matches(".rs");
    let mut parts = path.split('/');
    let first = parts.next().unwrap_or_default();
    match (first, parts.next()) {
        ("views", Some(view)) if views().contains(&view.to_owned()) => format!("views/{view}"),
        _ => first.to_owned(),
    }
}

/// The folders in `src/views`, each of which is a view.
fn views() -> Vec<String> {
    let entries = std::fs::read_dir(root().join("src/views")).expect("the views");
    let entries = entries.map(|entry| entry.expect("an entry"));
    let folders = entries.filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = folders
        .map(|folder| folder.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Which module may import which; `views` is what its four views share.
const IMPORTS: [(&str, &str); 33] = [
    ("avro", ""),
    ("bounds", ""),
    ("clock", ""),
    ("event", ""),
    ("ids", ""),
    ("message", ""),
    ("presets", ""),
    ("storage", ""),
    ("threads", ""),
    ("lib", ""),
    ("main", ""),
    ("testing", "storage"),
    ("config", "avro event ids message presets"),
    ("wal", "message storage"),
    ("decode", "bounds event message schema"),
    ("schema", "config event ids threads"),
    ("generator", "event"),
    ("infer", "config decode event schema"),
    ("idempotency", "config decode event"),
    (
        "ingest",
        "clock config decode event idempotency schema storage threads wal",
    ),
    (
        "sources",
        "avro bounds clock config event ingest message operators storage threads wal",
    ),
    (
        "operators",
        "bounds decode event idempotency ids schema wal",
    ),
    (
        "sinks",
        "bounds clock config event ids operators query schema sources storage views",
    ),
    ("views", "event ids operators storage threads"),
    ("views/counts", "bounds event ids operators schema"),
    (
        "views/lake",
        "clock event ids message operators schema storage wal",
    ),
    ("views/places", "event ids operators schema"),
    ("views/search", "event ids operators schema storage"),
    (
        "query",
        "bounds event ids operators schema storage threads views",
    ),
    (
        "server",
        "clock event idempotency ids ingest query runtime sinks sources storage threads",
    ),
    // The composition root.
    (
        "runtime",
        "clock config decode event idempotency ids ingest message operators query schema sinks sources storage threads views wal",
    ),
    // Renders the reference; only tests build it.
    (
        "reference",
        "cli config event presets query runtime schema server views",
    ),
    (
        "cli",
        "clock config event generator ids infer operators query runtime schema server sinks sources storage",
    ),
];

/// The paths after each `crate::` of a text.
fn imported(text: &str) -> impl Iterator<Item = String> {
    text.split("crate::").skip(1).map(|part| {
        part.chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':')
            .collect()
    })
}

/// Per module the modules that it imports.
fn import_graph() -> BTreeMap<String, BTreeSet<String>> {
    let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (file, text) in code() {
        let from = module(&file);
        let own = from.split('/').next().unwrap_or_default().to_owned();
        let targets = imported(&text)
            .map(|path| path.split("::").next().unwrap_or_default().to_owned())
            .filter(|to| *to != own && to.chars().next().is_some_and(char::is_lowercase));
        graph.entry(from).or_default().extend(targets);
    }
    graph
}

#[test]
fn modules_import_exactly_what_the_architecture_allows() {
    let allowed = BTreeMap::from(IMPORTS);
    let mut wrong = Vec::new();
    for (from, found) in import_graph() {
        let Some(allowed) = allowed.get(from.as_str()) else {
            wrong.push(format!("{from} is not in the list"));
            continue;
        };
        let allowed: BTreeSet<String> = allowed.split_whitespace().map(str::to_owned).collect();
        wrong.extend(
            found
                .difference(&allowed)
                .map(|to| format!("{from} imports {to}")),
        );
        wrong.extend(
            allowed
                .difference(&found)
                .map(|to| format!("{from} may import {to} and does not: remove it")),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn modules_do_not_import_each_other_in_a_circle() {
    let graph = import_graph();
    for start in graph.keys() {
        let (mut reached, mut open) = (BTreeSet::new(), vec![start.clone()]);
        while let Some(from) = open.pop() {
            for to in graph.get(&from).into_iter().flatten() {
                assert!(to != start, "{start} imports itself by way of {from}");
                if reached.insert(to.clone()) {
                    open.push(to.clone());
                }
            }
        }
    }
}

/// Functions that return an error as text: causes are lost. Fewer are better.
const MAX_TEXT_ERRORS: usize = 38;

#[test]
fn errors_as_text_become_fewer() {
    let is_text_error = |line: &&str| line.contains("Result<") && line.contains(", String>");
    let found: usize = code()
        .iter()
        .map(|(_, text)| text.lines().filter(is_text_error).count())
        .sum();
    assert!(
        (MAX_TEXT_ERRORS - 20..=MAX_TEXT_ERRORS).contains(&found),
        "{found} functions return `Result<_, String>`; adapt MAX_TEXT_ERRORS if there are fewer"
    );
}

#[test]
fn no_view_imports_another_view() {
    let views = views();
    for (file, text) in code() {
        let from = module(&file);
        let Some(view) = from.strip_prefix("views/") else {
            continue;
        };
        for path in imported(&text) {
            let other = path
                .strip_prefix("views::")
                .and_then(|p| p.split("::").next());
            assert!(
                other.is_none_or(|o| o == view || !views.iter().any(|v| v == o)),
                "{file} imports {path}"
            );
        }
    }
}

/// Text that only certain files may contain, and the beginning of their paths.
const RESERVED: [(&str, &[&str]); 3] = [
    ("Utc::now", &["clock.rs"]),
    ("SystemTime::now", &["clock.rs"]),
    ("wal.append(", &["ingest"]),
];

/// Texts of identities, which only `ids.rs` formats and parses.
const IDENTITIES: [&str; 8] = [
    "\"lake/",
    "\"search/",
    "\"places/",
    "\"counts/",
    ".sessions\"",
    ".late\"",
    "/recent\"",
    "_versions\"",
];

#[test]
fn identities_are_texts_in_one_file() {
    for (file, code) in code() {
        for text in IDENTITIES {
            assert!(
                file == "ids.rs" || !code.contains(text),
                "{file} says {text}"
            );
        }
    }
}

#[test]
fn one_module_reads_the_clock_and_one_appends_to_the_log() {
    for (text, files) in RESERVED {
        for (file, code) in code() {
            let is_allowed = files.iter().any(|start| file.starts_with(start));
            assert!(is_allowed || !code.contains(text), "{file} says {text}");
        }
    }
}

/// Files that reach the disk only through `storage`, which tests replace by a disk that fails.
const BEHIND_STORAGE: [&str; 4] = [
    "wal/",
    "ingest",
    "runtime/snapshots.rs",
    "runtime/pipeline.rs",
];

#[test]
fn log_and_snapshots_reach_the_disk_through_the_storage_interface() {
    for (file, code) in code() {
        if BEHIND_STORAGE.iter().any(|begin| file.starts_with(begin)) {
            assert!(!code.contains("std::fs"), "{file} says std::fs");
        }
    }
}

/// Words of a dialect that this project once had, each with the word to use.
const BANNED: [(&str, &str); 13] = [
    ("told", "reported, listed, seen"),
    ("tells", "reports, says"),
    ("anew", "again, re-"),
    ("mend", "fix"),
    ("mended", "fixed"),
    (
        "meanwhile",
        "in the meantime; better: say what happens when",
    ),
    ("whoever", "the client, the caller"),
    ("everybody", "all clients"),
    ("for ever", "without a limit"),
    ("goes on", "continues, resumes"),
    ("go on", "continue, resume"),
    ("lies in", "is in"),
    ("stands in", "is in"),
];

/// Whether `phrase` occurs in `text` as whole words.
fn has_words(text: &str, phrase: &str) -> bool {
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(phrase).any(|(at, _)| {
        !is_word(text[..at].chars().next_back())
            && !is_word(text[at + phrase.len()..].chars().next())
    })
}

#[test]
fn texts_use_the_terms_of_the_field() {
    let mut files = sources(&root().join("src"));
    files.extend(sources(&root().join("tests")));
    files.retain(|file| !file.ends_with("tidy.rs"));
    let markdown = |folder: &str| {
        let files = std::fs::read_dir(root().join(folder)).expect("a folder");
        files
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.extension().is_some_and(|e| e == "md"))
            .collect::<Vec<_>>()
    };
    files.extend(markdown("."));
    files.extend(markdown("docs"));
    let mut wrong = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("readable");
        for (number, line) in text.lines().enumerate() {
            let line = line.to_lowercase();
            for (word, better) in BANNED {
                if has_words(&line, word) {
                    let file = file.strip_prefix(root()).expect("below the root").display();
                    wrong.push(format!("{file}:{}: `{word}`: {better}", number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn libraries_are_used_in_their_modules_only() {
    let modules: [(&str, &[&str]); 11] = [
        ("apache_avro", &["avro/"]),
        ("deltalake", &["views/lake/"]),
        ("tantivy", &["views/search/", "query/search/"]),
        ("axum", &["server/"]),
        (
            "rdkafka",
            &["sources/kafka/", "sinks/kafka/", "cli/destination/kafka.rs"],
        ),
        ("indicatif", &["cli/progress.rs"]),
        ("ratatui", &["cli/top/"]),
        ("redb", &["views/"]),
        ("rstar", &["views/places/"]),
        ("rustyline", &["cli/prompt/"]),
        (
            "datafusion",
            &["schema/", "operators/windows/", "views/", "query/"],
        ),
    ];
    let mut wrong = Vec::new();
    for (file, text) in code() {
        for (vendor, folders) in modules {
            let is_used =
                text.contains(&format!("{vendor}::")) || text.contains(&format!("use {vendor};"));
            if is_used && !folders.iter().any(|folder| file.starts_with(folder)) {
                wrong.push(format!("{file} uses {vendor}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_program_uses_no_words_of_a_domain() {
    let words = ["rsvp", "meetup", "member_id", "wikipedia", "group_urlname"];
    let mut wrong = Vec::new();
    for (file, text) in code() {
        if file.starts_with("presets/") || file.starts_with("generator/") {
            continue;
        }
        let text = text.to_lowercase();
        wrong.extend(
            words
                .iter()
                .filter(|w| text.contains(*w))
                .map(|w| format!("{file}: {w}")),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_architecture_page_names_paths_that_exist() {
    let page = std::fs::read_to_string(root().join("src/lib.rs")).expect("readable");
    let mut named = 0;
    for part in page.split('`').skip(1).step_by(2) {
        let is_path =
            part.starts_with("src/") || part.starts_with("tests/") || part.starts_with("docs/");
        if is_path {
            named += 1;
            assert!(
                root().join(part).exists(),
                "src/lib.rs names {part}, which does not exist"
            );
        }
    }
    assert!(named >= 15, "the page names {named} paths");
}

#[test]
fn no_stub_is_left() {
    for (file, text) in code() {
        for word in ["todo!", "unimplemented!", "dbg!", "FIXME", ".unwrap()"] {
            assert!(!text.contains(word), "{file}: {word}");
        }
    }
}
