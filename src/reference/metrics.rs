//! `metrics.md`: the metrics that the source text records, with the descriptions that `/metrics` has.

use std::collections::{BTreeMap, BTreeSet};

use super::markdown::{code, paragraph, table};
use super::source;
use crate::runtime::metrics::METRICS;

const INTRODUCTION: &str = "`/metrics` is in the text format of Prometheus. Gauges and counters are set once a second; a gauge \
that nothing sets any more, such as the lag of a partition that was revoked, disappears after ten seconds.";

/// A metric: its kind and its labels.
type Metrics = BTreeMap<String, (&'static str, BTreeSet<String>)>;

/// The page.
pub fn page() -> String {
    let row = |(name, (kind, labels)): (&String, &(&'static str, BTreeSet<String>))| {
        let labels: Vec<String> = labels.iter().map(|label| code(label)).collect();
        let description = METRICS.iter().find(|(of, ..)| of == name);
        let description = description.map_or("", |(.., text)| *text);
        [
            code(name),
            (*kind).to_owned(),
            labels.join(", "),
            description.to_owned(),
        ]
    };
    let rows: Vec<[String; 4]> = recorded().iter().map(row).collect();
    "# Metrics\n\n".to_owned()
        + &paragraph(INTRODUCTION)
        + &table(["metric", "type", "labels", "meaning"], &rows)
}

/// Every metric that the program's text records by name.
fn recorded() -> Metrics {
    let mut out = Metrics::new();
    for path in source::files_below(&source::root().join("src")) {
        let text = std::fs::read_to_string(&path).expect("readable");
        let text = text
            .split("\n#[cfg(test)]\nmod tests")
            .next()
            .unwrap_or_default();
        for (call, kind) in [
            ("metrics::gauge!(", "gauge"),
            ("metrics::counter!(", "counter"),
            ("metrics::histogram!(", "histogram"),
        ] {
            for (at, _) in text.match_indices(call) {
                if let Some((name, labels)) = parse(&text[at + call.len()..]) {
                    out.entry(name)
                        .or_insert_with(|| (kind, BTreeSet::new()))
                        .1
                        .extend(labels);
                }
            }
        }
    }
    out
}

/// Name and labels of a call, from its first argument on; none if the name is not a literal.
fn parse(call: &str) -> Option<(String, Vec<String>)> {
    let mut depth = 1;
    let end = call.find(|c: char| {
        depth += match c {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        depth == 0
    });
    let mut literals = call[..end?].split('"').skip(1);
    let name = literals.next()?.to_owned();
    let mut labels = Vec::new();
    let mut previous = "";
    for (n, part) in literals.enumerate() {
        // Every other part is outside of quotes.
        if n % 2 == 0 {
            if part.trim_start().starts_with("=>") {
                labels.push(previous.to_owned());
            }
        } else {
            previous = part;
        }
    }
    let is_literal = call.trim_start().starts_with('"') && name.starts_with("weir_");
    is_literal.then_some((name, labels))
}

#[test]
fn names_and_labels_of_calls_are_read() {
    let call = "\"weir_a\", \"of\" => name.clone(), \"state\" => state.name())\n .set(1.0)";
    let labels = vec!["of".to_owned(), "state".to_owned()];
    assert_eq!(parse(call), Some(("weir_a".to_owned(), labels)));
    assert_eq!(parse("name).set(2.0)"), None);
}
