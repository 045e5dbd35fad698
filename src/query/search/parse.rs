//! The query language: words, `"phrases"`, `prefix*`, `field:value`.

use crate::query::QueryError;
use crate::schema::{MAP_SUFFIX, SearchDef};
use crate::views::search::text::{pair_term, query_terms};

/// Maximum bytes of a query.
const MAX_TEXT_BYTES: usize = 4 << 10;
/// Maximum clauses of a query.
const MAX_CLAUSES: usize = 64;

/// A clause of a query: all must match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Clause {
    /// Terms by position, in the named text field or in any.
    Phrase(Option<String>, Vec<(usize, String)>),
    /// The beginning of a term, in the named text field or in any.
    Prefix(Option<String>, String),
    /// An exact field, and its value.
    Exact(String, String),
    /// A map's column, and the term of an entry.
    Pair(String, String),
}

/// Splits a leading `field:` from a query. A name with nothing after its colon is text.
///
/// ```text
/// title:rust 2024   ->  (title, "rust 2024")
/// re:invent         ->  (none, "re:invent") unless there is a field `re`
/// ```
fn split_field<'a>(rest: &'a str, def: &SearchDef) -> (Option<String>, &'a str) {
    let stop = rest
        .find(|c: char| c.is_whitespace() || c == '"')
        .unwrap_or(rest.len());
    let Some((name, _)) = rest[..stop].split_once(':') else {
        return (None, rest);
    };
    let value = &rest[name.len() + 1..];
    if value.is_empty() || value.starts_with(char::is_whitespace) {
        return (None, rest);
    }
    let is_map_entry = name
        .split_once('.')
        .is_some_and(|(map, _)| def.text.contains(&format!("{map}{MAP_SUFFIX}")));
    let map = format!("{name}{MAP_SUFFIX}");
    if def.text.contains(&map) {
        (Some(map), value)
    } else if is_map_entry || def.text.iter().chain(&def.exact).any(|f| f == name) {
        (Some(name.to_owned()), value)
    } else {
        (None, rest)
    }
}

/// Parses a query. Any text is a query: what is not syntax is searched for.
pub(super) fn parse(text: &str, def: &SearchDef) -> Result<Vec<Clause>, QueryError> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(QueryError::Limit(format!(
            "the query has more than {MAX_TEXT_BYTES} bytes"
        )));
    }
    let mut clauses = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (field, input) = split_field(rest, def);
        // An unclosed quote is an ordinary character.
        let quoted = input
            .strip_prefix('"')
            .and_then(|inner| inner.split_once('"'));
        let (value, input) = quoted.unwrap_or_else(|| {
            let value = input.trim_start_matches('"');
            value.split_at(value.find(char::is_whitespace).unwrap_or(value.len()))
        });
        rest = input.trim_start();
        push_clause(&mut clauses, field, value, quoted.is_some(), def);
    }
    match clauses.len() {
        0 => Err(QueryError::Invalid(
            "the query is empty; write for example `jazz`, `\"open mic\"`, `jaz*` or `country:us`"
                .into(),
        )),
        n if n > MAX_CLAUSES => Err(QueryError::Limit(format!(
            "the query has more than {MAX_CLAUSES} words"
        ))),
        _ => Ok(clauses),
    }
}

fn push_clause(
    clauses: &mut Vec<Clause>,
    field: Option<String>,
    value: &str,
    is_quoted: bool,
    def: &SearchDef,
) {
    if let Some(name) = field.as_ref().filter(|f| def.exact.contains(f)) {
        clauses.push(Clause::Exact(name.clone(), value.to_owned()));
        return;
    }
    if let Some((map, key)) = field
        .as_ref()
        .filter(|f| !def.text.contains(f))
        .and_then(|f| f.split_once('.'))
    {
        clauses.push(Clause::Pair(map.to_owned(), pair_term(key, value)));
        return;
    }
    let (terms, ends_in_word) = query_terms(value);
    let mut terms: Vec<(usize, String)> = terms.into_iter().map(|w| (w.position, w.text)).collect();
    // Any part of an unspaced script matches without a `*`.
    let is_prefix = !is_quoted && ends_in_word && value.ends_with('*');
    let prefix = if is_prefix { terms.pop() } else { None };
    // `well-known` is two words, a run of CJK several: they must occur next to each other.
    if !terms.is_empty() {
        clauses.push(Clause::Phrase(field.clone(), terms));
    }
    clauses.extend(prefix.map(|(_, p)| Clause::Prefix(field, p)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<Clause> {
        let def = SearchDef {
            text: vec!["title".into()],
            exact: vec!["country".into()],
            geo: Vec::new(),
        };
        parse(text, &def).unwrap_or_default()
    }

    #[test]
    fn queries_are_parsed() {
        let phrase_in = |field: Option<&str>, words: &[&str]| {
            let words = words
                .iter()
                .enumerate()
                .map(|(at, w)| (at, (*w).to_owned()))
                .collect();
            Clause::Phrase(field.map(str::to_owned), words)
        };
        let phrase = |words: &[&str]| phrase_in(None, words);
        let exact = |value: &str| Clause::Exact("country".into(), value.into());
        assert_eq!(parsed("Jazz café"), [phrase(&["jazz"]), phrase(&["cafe"])]);
        assert_eq!(
            parsed("\"open mic\" nigh*"),
            [
                phrase(&["open", "mic"]),
                Clause::Prefix(None, "nigh".into())
            ]
        );
        assert_eq!(
            parsed("country:us title:rust"),
            [exact("us"), phrase_in(Some("title"), &["rust"])]
        );
        assert_eq!(parsed("re:invent"), [phrase(&["re", "invent"])]);
        assert_eq!(
            parsed("title:\"a b\""),
            [phrase_in(Some("title"), &["a", "b"])]
        );
        assert_eq!(parsed("country:\"\""), [exact("")]);
        assert_eq!(parsed(" - "), []);
        assert_eq!(parsed("東京*"), [phrase(&["東京"])]);
        assert_eq!(
            parsed("a 東京 🎉"),
            [phrase(&["a"]), phrase(&["東京"]), phrase(&["🎉"])]
        );
    }

    #[test]
    fn what_is_not_syntax_is_text() {
        let words = |text: &str| {
            let word = |clause: Clause| match clause {
                Clause::Phrase(None, terms) => terms
                    .into_iter()
                    .map(|(_, t)| t)
                    .collect::<Vec<_>>()
                    .join(" "),
                other => format!("{other:?}"),
            };
            parsed(text).into_iter().map(word).collect::<Vec<_>>()
        };
        assert_eq!(
            words("He said \"hello there"),
            ["he", "said", "hello", "there"]
        );
        assert_eq!(
            words("title:\"a b"),
            [
                format!(
                    "{:?}",
                    Clause::Phrase(Some("title".into()), vec![(0, "a".into())])
                ),
                "b".into()
            ]
        );
        assert_eq!(words("5\" disk\""), ["5", "disk"]);
        assert_eq!(words("country: us, title:"), ["country", "us", "title"]);
        assert_eq!(
            words("(foo AND] {\"a\": \"b\\\"}"),
            ["foo", "and", "a", "b"]
        );
    }
}
