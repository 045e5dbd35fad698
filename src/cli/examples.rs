//! The examples that `--help` and the manual pages show of each verb.

use std::fmt::Write;

use clap::Command;
use clap::builder::Styles;

/// A command, and what it does.
type Example = (&'static str, &'static str);

/// Those of a verb together, in the order in which `--help` lists verbs.
const EXAMPLES: [Example; 60] = [
    (
        "weir demo",
        "a generated stream, its page at http://127.0.0.1:8080/",
    ),
    (
        "weir demo --port 8081",
        "the same where another program has that port",
    ),
    ("weir run", "until stopped, as ./weir.toml declares"),
    (
        "weir run --once",
        "takes in what is there, commits, prints a summary",
    ),
    (
        "weir run --once --for 10m --sinks-timeout 1m --output json",
        "ten minutes of sources without an end; the summary as JSON",
    ),
    (
        "weir run --accept-reset orders/3",
        "continues a partition whose records the broker has removed",
    ),
    ("weir check", "errors with line, column and a remedy"),
    (
        "weir check --show",
        "every limit in force, and where it comes from",
    ),
    (
        "weir test sample.ndjson --final",
        "what these records become, windows closed",
    ),
    (
        "weir test --stream orders sample.ndjson",
        "the same with the declaration of one stream",
    ),
    (
        "weir test --suite expected.toml",
        "compares with expectations, for your own CI",
    ),
    ("weir sql", "a prompt, on a terminal"),
    (
        "weir sql \"select reason, count(*) as n from dead_letters group by 1\"",
        "one query",
    ),
    (
        "weir sql --output csv - < query.sql",
        "a query from standard input, as CSV",
    ),
    ("weir count", "all events but duplicates"),
    (
        "weir count --type sale --from now-15m",
        "of one type, in the last quarter of an hour",
    ),
    (
        "weir count --by country --output csv",
        "by a column that the stream counts by",
    ),
    (
        "weir search '\"open air\" jazz*' --limit 5",
        "a phrase, and a prefix; the newest first",
    ),
    (
        "weir search level:error --from now-1h --sort rank",
        "a value of a column; the best first",
    ),
    (
        "weir search coffee --near 52.52,13.40 --within 5km",
        "near a place",
    ),
    (
        "weir nearby --lat 40.7128 --lon=-74.0060 --within 2km",
        "venues around a place, with what happens there",
    ),
    (
        "weir windows by_country",
        "the latest rows, open windows included",
    ),
    (
        "weir windows by_country --from now-1h --limit 20",
        "of the last hour",
    ),
    (
        "weir status",
        "views with their lag; what waits or fails, and why",
    ),
    ("weir status --output json", "everything, for a script"),
    ("weir top", "rates, counts, a window and what lags, live"),
    (
        "weir top --window by_country",
        "with the rows of this window",
    ),
    (
        "weir backup /backups/2026-11-30",
        "a copy that opens as it is, also of a running server",
    ),
    (
        "weir rebuild by_country",
        "applies the present declaration to all records",
    ),
    (
        "weir rebuild search --stream orders",
        "the index of one stream",
    ),
    ("weir compact", "merges files now, of a stopped folder"),
    (
        "weir dead-letters list --limit 5",
        "the latest, with their reasons",
    ),
    (
        "weir dead-letters list --stream orders --output csv",
        "of one stream, as CSV",
    ),
    ("weir dead-letters show 1234", "one with its bytes"),
    (
        "weir dead-letters retry --since now-1d",
        "those of a day, after a correction",
    ),
    ("weir sinks list", "state, cursor and lag"),
    ("weir sinks pause warehouse", "rows wait in their tables"),
    (
        "weir sinks resume warehouse",
        "continues after a pause or a halt",
    ),
    (
        "weir sinks resume warehouse --discard-dead-letters",
        "and removes the rows that the target has refused",
    ),
    (
        "weir sinks reset warehouse --from earliest",
        "sends everything again",
    ),
    (
        "weir generate --count 1000000 --file events.ndjson",
        "a million records; the same seed gives the same bytes",
    ),
    (
        "weir generate --rate 500 --serve 127.0.0.1:9000",
        "a live stream by websocket, NDJSON and server-sent events",
    ),
    (
        "weir generate --count 10000 --to kafka://127.0.0.1:9092/orders",
        "to a topic of Kafka; ends when all are confirmed",
    ),
    (
        "weir replay recording.ndjson",
        "to stdout, as fast as possible",
    ),
    (
        "weir replay recording.ndjson --speed 10 --serve 127.0.0.1:9000",
        "served ten times as fast as it was recorded",
    ),
    ("weir init", "writes ./weir.toml"),
    ("weir init -c other/weir.toml", "elsewhere"),
    (
        "weir try events.ndjson",
        "also .gz, .zst, .bz2, arrays, pretty-printed",
    ),
    ("weir try exports/", "the files of a folder"),
    (
        "weir try quakes.geojson --unwrap features",
        "records inside an object; mostly found without it",
    ),
    (
        "weir try https://example.com/feed.json",
        "a document is polled, an open stream followed",
    ),
    (
        "weir try wss://example.com/subscribe --for 5s",
        "messages of five seconds",
    ),
    (
        "weir try events.ndjson --print > weir.toml",
        "only the configuration",
    ),
    (
        "weir token create",
        "a token that may write; its hash goes to weir.tokens",
    ),
    (
        "weir token create --read-only",
        "a token that may only query",
    ),
    (
        "weir completions bash > /etc/bash_completion.d/weir",
        "for all users of this machine",
    ),
    (
        "weir completions zsh > ~/.zfunc/_weir",
        "for yourself; also fish, elvish, powershell",
    ),
    (
        "weir man",
        "the manual page; `weir man | man -l -` shows it",
    ),
    ("weir man sinks reset", "the page of one verb"),
    (
        "weir man --dir /usr/local/share/man/man1",
        "all pages, as files",
    ),
];

/// The examples whose command begins with these words.
pub fn of(path: &str) -> Vec<Example> {
    let words: Vec<&str> = path.split(' ').collect();
    let is_of = |command: &str| {
        let mut begin = command.split(' ');
        words.iter().all(|word| begin.next() == Some(word))
    };
    let found = EXAMPLES.into_iter().filter(|(command, _)| is_of(command));
    found.collect()
}

/// The command with the examples of each verb, and of each verb's actions, at the end of its help.
pub fn add(command: Command) -> Command {
    add_below(command, "weir").after_help(
        "`weir VERB --help` ends with examples, `weir man VERB` prints the verb's manual page.",
    )
}

fn add_below(mut command: Command, path: &str) -> Command {
    let names: Vec<String> = command
        .get_subcommands()
        .map(|verb| verb.get_name().to_owned())
        .collect();
    for name in names {
        let below = format!("{path} {name}");
        command = command.mut_subcommand(name, |verb| add_below(verb, &below));
    }
    let examples = of(path);
    if examples.is_empty() {
        return command;
    }
    command.after_help(help(&examples))
}

fn help(examples: &[Example]) -> String {
    let styles = Styles::styled();
    let head = styles.get_header();
    let mut text = format!("{head}Examples:{head:#}");
    for (command, purpose) in examples {
        let _ = write!(text, "\n  {command}\n      {purpose}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    /// The words of a command as a shell splits them, up to a redirection.
    fn words(command: &str) -> Vec<String> {
        let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
        for c in command.chars() {
            match (c, quote) {
                (c, Some(open)) if c == open => quote = None,
                (c, Some(_)) => word.get_or_insert_default().push(c),
                ('\'' | '"', None) => {
                    quote = Some(c);
                    word.get_or_insert_default();
                }
                (' ', None) => words.extend(word.take()),
                ('<' | '>' | '|', None) => return words,
                (c, None) => word.get_or_insert_default().push(c),
            }
        }
        words.extend(word);
        words
    }

    /// The paths of all verbs and their actions, below `weir`.
    fn paths(command: &Command, path: &str, out: &mut Vec<String>) {
        for verb in command.get_subcommands() {
            let path = format!("{path} {}", verb.get_name());
            paths(verb, &path, out);
            out.push(path);
        }
    }

    #[test]
    fn each_verb_has_examples_in_its_help() {
        let mut all = Vec::new();
        paths(&Cli::command(), "weir", &mut all);
        assert!(all.len() > 20, "{all:?}");
        for path in all {
            assert!(!of(&path).is_empty(), "`{path}` has no example");
            let mut verb = &mut add(Cli::command());
            for word in path.split(' ').skip(1) {
                verb = verb.find_subcommand_mut(word).expect("a verb");
            }
            let help = verb.render_long_help().to_string();
            let examples = help.split("Examples:").nth(1);
            let first = of(&path)[0].0;
            assert!(examples.is_some_and(|text| text.contains(first)), "{help}");
        }
    }

    #[test]
    fn each_example_is_understood() {
        for (command, _) in EXAMPLES {
            let parsed = Cli::command().try_get_matches_from(words(command));
            assert!(parsed.is_ok(), "`{command}`: {}", parsed.unwrap_err());
        }
    }

    #[test]
    fn examples_of_a_verb_are_adjacent_and_short() {
        let mut seen = BTreeSet::new();
        let mut last = "";
        for (command, purpose) in EXAMPLES {
            let verb = command.split(' ').nth(1).expect("a verb");
            assert!(verb == last || seen.insert(verb), "{command}");
            last = verb;
            assert!(command.len() <= 76 && purpose.len() <= 72, "{command}");
        }
    }
}
