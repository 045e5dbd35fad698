//! The pages of `docs/reference`, rendered from the code: what the configuration, the SQL session,
//! the OpenAPI document, the metrics and the command line say of themselves. Only tests build it.
//!
//! `WEIR_UPDATE_DOCS=1 cargo test --lib reference` writes the pages; without the variable the test
//! compares them.

mod command_line;
mod configuration;
mod endpoints;
mod functions;
mod markdown;
mod metrics;
mod source;
mod tables;

use std::path::PathBuf;

/// If set, pages are written instead of compared.
const UPDATE: &str = "WEIR_UPDATE_DOCS";

/// A page's file, and what renders it.
type Page = (&'static str, fn() -> String);

/// The pages of `docs/reference`.
const PAGES: [Page; 6] = [
    ("configuration.md", configuration::page),
    ("tables.md", tables::page),
    ("functions.md", functions::page),
    ("endpoints.md", endpoints::page),
    ("metrics.md", metrics::page),
    ("command-line.md", command_line::page),
];

/// The comment with which each page begins.
const GENERATED: &str =
    "<!-- Generated from the code by `WEIR_UPDATE_DOCS=1 cargo test --lib reference`. -->\n\n";

/// A page as it is stored.
fn rendered(render: fn() -> String) -> String {
    format!("{GENERATED}{}\n", render().trim_end())
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/reference")
}

#[test]
fn the_reference_is_that_of_the_code() {
    let is_update = std::env::var_os(UPDATE).is_some();
    let mut stale = Vec::new();
    for (name, render) in PAGES {
        let (path, page) = (folder().join(name), rendered(render));
        if is_update {
            std::fs::create_dir_all(folder()).expect("the folder of the reference");
            std::fs::write(&path, page).expect("a page of the reference");
        } else if std::fs::read_to_string(&path).unwrap_or_default() != page {
            stale.push(name);
        }
    }
    assert!(
        stale.is_empty(),
        "docs/reference is stale ({}): run `{UPDATE}=1 cargo test --lib reference`, and commit what it writes",
        stale.join(", ")
    );
}

#[test]
fn every_page_of_the_folder_is_generated() {
    // Without the folder, the test above says how it is made.
    let entries = std::fs::read_dir(folder()).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_generated = PAGES.iter().any(|(page, _)| *page == name);
        assert!(is_generated, "docs/reference/{name} has no generator");
    }
}

/// Every entry says what it is: a key, a column, a metric or an endpoint without a description is
/// described where the code declares it.
#[test]
fn every_entry_of_the_reference_has_a_description() {
    let mut missing = Vec::new();
    for (name, render) in PAGES {
        let page = render();
        let rows = page.lines().filter(|line| line.starts_with("| "));
        let is_bare = |line: &&str| line.ends_with("|  |") || line.ends_with("| |");
        missing.extend(rows.filter(is_bare).map(|row| format!("{name}: {row}")));
    }
    assert!(
        missing.is_empty(),
        "no description, add it to the code:\n{}",
        missing.join("\n")
    );
}
