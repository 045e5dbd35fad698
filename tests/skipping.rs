//! A test that cannot try what it is for says so, where it is seen without any flag.

use std::path::Path;
use std::process::Command;

/// What says why a test is skipped: the function, and those that call it before they return nothing.
const REPORTERS: [&str; 7] = [
    "skip(",
    "driver::start(",
    "Database::start(",
    "Terminal::start(",
    "has_program(",
    "python_with(",
    "recordings()",
];

#[test]
fn the_reason_for_skipping_a_test_is_shown_though_it_passes() {
    let name = "recording::recordings_agree_with_a_recount";
    let output = Command::new(std::env::current_exe().expect("the tests' program"))
        .args(["--exact", name])
        .env_remove("WEIR_RECORDINGS")
        .env_remove("RUST_TEST_NOCAPTURE")
        .output()
        .expect("it runs");
    let result = String::from_utf8_lossy(&output.stdout);
    assert!(result.contains("1 passed"), "{result}");
    let messages = String::from_utf8_lossy(&output.stderr);
    let reason = "WEIR_RECORDINGS is not a folder of recordings";
    let expected = format!("skipped: {name}: {reason}");
    assert!(messages.lines().any(|line| line == expected), "{messages}");
}

#[test]
fn no_test_is_skipped_without_saying_so() {
    let mut wrong = Vec::new();
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for folder in [tests.clone(), tests.join("browser")] {
        for entry in std::fs::read_dir(folder).expect("the tests").flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("skipping.rs") {
                let text = std::fs::read_to_string(&path).expect("readable");
                let faults = silent_lines(&text).into_iter();
                wrong.extend(faults.map(|line| format!("{}:{line}", path.display())));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "`support::skip` says why a test returns early:\n{}",
        wrong.join("\n")
    );
}

/// Lines by which a test is skipped unseen: what libtest captures, and a return without a reason.
fn silent_lines(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut wrong = Vec::new();
    let mut is_test = false;
    for (at, line) in lines.iter().enumerate() {
        is_test = *line == "#[test]" || is_test && *line != "}";
        let is_return = line.trim() == "return;" || line.ends_with("else { return };");
        let before = lines[at.saturating_sub(4)..=at].join("\n");
        let is_reported = REPORTERS.iter().any(|reporter| before.contains(reporter));
        let is_silent = is_test && is_return && !is_reported;
        if is_silent || line.contains("eprint") || line.contains("\"skipped:") {
            wrong.push(format!("{}: {}", at + 1, line.trim()));
        }
    }
    wrong
}

#[test]
fn a_return_without_a_reason_is_found() {
    let test = |body: &str| silent_lines(&format!("#[test]\nfn a() {{\n{body}\n}}\n")).len();
    assert_eq!(
        test("    let Some(x) = x() else {\n        return;\n    };"),
        1
    );
    assert_eq!(test("    let Some(x) = recordings() else { return };"), 0);
    assert_eq!(test("    skip(\"no x\");\n    return;"), 0);
    assert_eq!(test("    eprintln!(\"no x\");"), 1);
}
