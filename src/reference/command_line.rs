//! `command-line.md`: verbs and flags.

use clap::{Arg, Command};

use super::markdown::{cell, code, paragraph, table};

const INTRODUCTION: &str = "Results go to stdout, logs and progress to stderr. `weir help VERB` prints what is here; \
`weir man` and `weir completions SHELL` print a manual page and completions.";

const HEADER: [&str; 3] = ["flag", "default", "meaning"];

/// The page.
pub fn page() -> String {
    let mut command = crate::cli::command();
    command.build();
    let mut out = "# Command line\n\n".to_owned() + &paragraph(INTRODUCTION);
    let verbs: Vec<[String; 2]> = command
        .get_subcommands()
        .filter(|verb| is_shown(verb))
        .map(|verb| [code(verb.get_name()), cell(&about(verb))])
        .collect();
    out += &table(["verb", "purpose"], &verbs);
    let global: Vec<[String; 3]> = command
        .get_arguments()
        .filter(|arg| arg.is_global_set() && is_own(arg))
        .map(row)
        .collect();
    out += &format!("## Flags of every verb\n\n{}", table(HEADER, &global));
    for verb in command.get_subcommands_mut() {
        out += &section(verb, "weir", 2);
    }
    out
}

fn is_shown(command: &Command) -> bool {
    command.get_name() != "help" && !command.is_hide_set()
}

fn is_own(arg: &Arg) -> bool {
    !matches!(arg.get_id().as_str(), "help" | "version") && !arg.is_hide_set()
}

fn about(command: &Command) -> String {
    command
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default()
}

/// A verb with its flags, then the verbs below it.
fn section(command: &mut Command, parent: &str, level: usize) -> String {
    if !is_shown(command) {
        return String::new();
    }
    let path = format!("{parent} {}", command.get_name());
    let mut out = format!("{} `{path}`\n\n", "#".repeat(level));
    let text = command
        .get_long_about()
        .or(command.get_about())
        .map(ToString::to_string);
    for part in text.unwrap_or_default().split("\n\n") {
        out += &paragraph(part);
    }
    let usage = command.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").trim();
    out += &format!("```text\n{usage}\n```\n\n");
    let rows: Vec<[String; 3]> = command
        .get_arguments()
        .filter(|arg| !arg.is_global_set() && is_own(arg))
        .map(row)
        .collect();
    if !rows.is_empty() {
        out += &table(HEADER, &rows);
    }
    let after = command.get_after_long_help().or(command.get_after_help());
    if let Some(text) = after.map(ToString::to_string) {
        out += &format!("```text\n{}\n```\n\n", text.trim());
    }
    for below in command.get_subcommands_mut() {
        out += &section(below, &path, level + 1);
    }
    out
}

/// A flag or an argument.
fn row(arg: &Arg) -> [String; 3] {
    let values: Vec<String> = arg
        .get_value_names()
        .unwrap_or_default()
        .iter()
        .map(ToString::to_string)
        .collect();
    let takes_value = arg.get_action().takes_values();
    let short = arg.get_short().map(|short| format!("-{short}"));
    let long = arg.get_long().map(|long| format!("--{long}"));
    let mut flag = [short, long]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(", ");
    if takes_value && !values.is_empty() {
        let is_flag = !flag.is_empty();
        flag = if is_flag {
            format!("{flag} {}", values.join(" "))
        } else {
            values.join(" ")
        };
    }
    let defaults: Vec<String> = arg
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy().into_owned())
        .filter(|_| takes_value)
        .collect();
    let help = arg
        .get_long_help()
        .or(arg.get_help())
        .map(ToString::to_string)
        .unwrap_or_default();
    let possible: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|_| takes_value)
        .map(|value| code(value.get_name()))
        .collect();
    let mut help = cell(&help);
    if !possible.is_empty()
        && !matches!(possible.as_slice(), [a, b] if a == "`true`" && b == "`false`")
    {
        help = format!("{help} One of {}.", possible.join(", "));
    }
    [code(&cell(&flag)), code(&defaults.join(" ")), help]
}
