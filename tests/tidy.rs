//! The tree keeps its own rules: who may import whom, which crate is used where, no words of a
//! domain in the program, and an architecture page whose paths exist.

use std::collections::BTreeMap;
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
        ("views", Some(view @ ("lake" | "search" | "places" | "counts"))) => {
            format!("views/{view}")
        }
        _ => first.to_owned(),
    }
}

/// Which module may import which.
fn imports() -> BTreeMap<&'static str, Vec<&'static str>> {
    BTreeMap::from([
        ("event", vec![]),
        ("bounds", vec![]),
        ("clock", vec![]),
        ("storage", vec![]),
        ("threads", vec![]),
        ("presets", vec![]),
        ("config", vec!["event", "presets"]),
        ("schema", vec!["event", "config", "decode", "threads"]),
        ("decode", vec!["bounds", "event", "schema"]),
        ("idempotency", vec!["event", "config", "decode"]),
        ("wal", vec!["storage", "clock"]),
        ("generator", vec!["event"]),
        (
            "sources",
            vec![
                "bounds",
                "event",
                "clock",
                "config",
                "ingest",
                "operators",
                "storage",
                "threads",
                "wal",
            ],
        ),
        (
            "ingest",
            vec![
                "event",
                "sources",
                "decode",
                "schema",
                "storage",
                "threads",
                "wal",
                "clock",
                "idempotency",
            ],
        ),
        (
            "operators",
            vec!["bounds", "event", "schema", "decode", "wal", "idempotency"],
        ),
        (
            "query",
            vec![
                "bounds",
                "event",
                "schema",
                "storage",
                "threads",
                "views",
                "operators",
            ],
        ),
        (
            "views",
            vec![
                "event",
                "schema",
                "storage",
                "threads",
                "wal",
                "operators",
                "views",
            ],
        ),
        (
            "server",
            vec![
                "query",
                "ingest",
                "runtime",
                "config",
                "event",
                "schema",
                "sources",
                "wal",
                "operators",
                "idempotency",
                "server",
                "storage",
                "threads",
                "generator",
            ],
        ),
        (
            "cli",
            vec![
                "query",
                "ingest",
                "runtime",
                "config",
                "server",
                "event",
                "schema",
                "clock",
                "operators",
                "generator",
                "presets",
            ],
        ),
    ])
}

#[test]
fn modules_import_only_what_the_architecture_allows() {
    let event_log = [
        "bounds",
        "event",
        "schema",
        "storage",
        "threads",
        "wal",
        "operators",
        "views",
    ];
    let mut allowed = imports();
    for view in ["views/lake", "views/search", "views/places", "views/counts"] {
        allowed.insert(view, event_log.to_vec());
    }
    let mut wrong = Vec::new();
    for (file, text) in code() {
        let from = module(&file);
        let Some(allowed) = allowed.get(from.as_str()) else {
            continue;
        };
        for part in text.split("crate::").skip(1) {
            let path: String = part
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':')
                .collect();
            let to = path.split("::").next().unwrap_or_default();
            let own = from.split('/').next().unwrap_or_default();
            if to != own
                && !allowed.contains(&to)
                && to.chars().next().is_some_and(char::is_lowercase)
            {
                wrong.push(format!("{file} imports {to}"));
            }
            // A view never reads another one.
            if let Some(view) = from.strip_prefix("views/") {
                let other = path
                    .strip_prefix("views::")
                    .and_then(|p| p.split("::").next());
                if other.is_some_and(|o| {
                    o != view && ["lake", "search", "places", "counts"].contains(&o)
                }) {
                    wrong.push(format!("{file} imports another view: {path}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn vendors_stay_behind_their_fences() {
    let fences: [(&str, &[&str]); 6] = [
        ("deltalake", &["views/lake/", "views/entities/"]),
        ("tantivy", &["views/search/", "query/search.rs"]),
        ("axum", &["server/"]),
        ("redb", &["views/"]),
        ("rstar", &["views/places/"]),
        (
            "datafusion",
            &["schema/", "operators/windows/", "views/", "query/"],
        ),
    ];
    let mut wrong = Vec::new();
    for (file, text) in code() {
        for (vendor, rooms) in fences {
            let is_used =
                text.contains(&format!("{vendor}::")) || text.contains(&format!("use {vendor};"));
            if is_used && !rooms.iter().any(|room| file.starts_with(room)) {
                wrong.push(format!("{file} uses {vendor}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_word_of_a_domain_stands_in_the_program() {
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
                "src/lib.rs names {part}, which is not there"
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
