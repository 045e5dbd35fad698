//! The planner's messages in the words of SQL: without its internals, and with the next step.

use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan};

/// Arrow's types as messages name them, and SQL's names of each; the first one is shown.
const TYPES: [(&str, &[&str]); 15] = [
    ("Utf8", &["varchar", "text", "string"]),
    ("Utf8View", &["varchar", "text", "string"]),
    ("LargeUtf8", &["varchar", "text", "string"]),
    ("String", &["varchar"]),
    ("Int64", &["bigint", "int8", "long"]),
    ("Int32", &["int", "integer", "int4"]),
    ("Int16", &["smallint", "int2"]),
    ("Int8", &["tinyint"]),
    ("Float64", &["double", "float8"]),
    ("Float32", &["real", "float", "float4"]),
    ("Boolean", &["boolean", "bool"]),
    ("Date32", &["date"]),
    ("Decimal", &["decimal"]),
    ("Interval", &["interval"]),
    ("Timestamp", &["timestamp"]),
];
/// Types with parameters, and their names.
const PARAMETRIC_TYPES: [(&str, &str); 5] = [
    ("Timestamp(µs, \"UTC\")", "timestamp"),
    ("Timestamp(µs)", "timestamp"),
    ("Timestamp(ns)", "timestamp"),
    ("Interval(MonthDayNano)", "interval"),
    ("Numeric(1)", "number"),
];
/// What messages begin with, which says nothing to who wrote the SQL.
const PREFIXES: [&str; 11] = [
    "sql parser error: ",
    "Error during planning: ",
    "Execution error: ",
    "Internal error: ",
    "Arrow error: ",
    "Cast error: ",
    "Parser error: ",
    "Schema error: ",
    "Invalid argument error: ",
    "This feature is not implemented: ",
    "[return_type] ",
];
/// What surrounds the request to report an error as DataFusion's.
const BUG_REPORT: (&str, &str) = (
    "This issue was likely caused by a bug in DataFusion",
    "datafusion/issues",
);
const NO_SIGNATURE: &str = "No function matches the given name and argument types '";
/// What follows the arguments in a message about a signature.
const SIGNATURE_END: &str = "'. You might need";
const CANDIDATES: &str = "Candidate functions:";

/// A message, and what in the SQL it is about: the first mention that occurs once locates it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Worded {
    pub message: String,
    pub mentions: Vec<Mention>,
}

/// A part of the SQL that a message is about. Plans have lost the locations of most parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mention {
    /// One of these tokens, in any case.
    Token(Vec<String>),
    /// The call of a function.
    Call(String),
    /// Any call: of a function that the message calls by another name.
    AnyCall,
    /// A cast to the type with these names.
    Cast(&'static [&'static str]),
    /// The end of the text.
    End,
}

impl Mention {
    fn token(text: &str) -> Self {
        Self::Token(vec![text.to_owned()])
    }

    /// Where it is in the SQL with these tokens; none if it occurs several times.
    pub fn locate(&self, sql: &str, tokens: &[TokenWithSpan]) -> Option<Location> {
        if *self == Self::End {
            return Some(end_of(sql));
        }
        let tokens = tokens
            .iter()
            .filter(|token| !matches!(token.token, Token::Whitespace(_)));
        let tokens: Vec<&TokenWithSpan> = tokens.collect();
        let mut found = (0..tokens.len()).filter(|at| self.is_at(&tokens[*at..]));
        match (found.next(), found.next()) {
            (Some(at), None) => Some(tokens[at].span.start),
            _ => None,
        }
    }

    /// Whether it begins with the first of these tokens.
    fn is_at(&self, tokens: &[&TokenWithSpan]) -> bool {
        let nth = |n: usize| tokens.get(n).map(|token| &token.token);
        match self {
            Self::Token(texts) => texts.iter().any(|text| match nth(0) {
                Some(Token::Word(word)) => word.value.eq_ignore_ascii_case(text),
                token => token.is_some_and(|token| token.to_string() == *text),
            }),
            Self::Call(name) => is_word(tokens, 0, &[name]) && nth(1) == Some(&Token::LParen),
            Self::AnyCall => {
                matches!(nth(0), Some(Token::Word(_))) && nth(1) == Some(&Token::LParen)
            }
            Self::Cast(names) => match nth(0) {
                Some(Token::DoubleColon) => is_word(tokens, 1, names),
                _ => {
                    is_word(tokens, 0, &["as"])
                        && is_word(tokens, 1, names)
                        && nth(2) == Some(&Token::RParen)
                }
            },
            Self::End => false,
        }
    }
}

/// Whether the nth token is one of these words.
fn is_word(tokens: &[&TokenWithSpan], n: usize, words: &[&str]) -> bool {
    match tokens.get(n).map(|token| &token.token) {
        Some(Token::Word(found)) => words
            .iter()
            .any(|word| found.value.eq_ignore_ascii_case(word)),
        _ => false,
    }
}

/// Right after the last character.
fn end_of(sql: &str) -> Location {
    let text = sql.trim_end();
    let line = text.matches('\n').count() + 1;
    let last = text.rsplit('\n').next().unwrap_or_default();
    Location {
        line: line as u64,
        column: last.chars().count() as u64 + 1,
    }
}

/// The message of the planner, or of what runs the plan, for who wrote the SQL.
pub(super) fn reword(text: &str) -> Worded {
    let text = clean(text);
    let worded = signature(&text)
        .or_else(|| operands(&text))
        .or_else(|| cast(&text))
        .or_else(|| condition(&text))
        .or_else(|| fixed(&text));
    worded.unwrap_or_else(|| Worded {
        mentions: quoted(&text),
        message: text,
    })
}

/// Without control characters, prefixes, and the request to report a bug.
fn clean(text: &str) -> String {
    let lines = text.split(|c: char| c.is_control()).map(str::trim);
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    let mut text = lines.join(" ");
    let (begin, end) = BUG_REPORT;
    while let Some(from) = text.find(begin) {
        let length = text[from..].find(end).map(|at| at + end.len());
        let to = length.map_or(text.len(), |length| from + length);
        let rest = text.split_off(to);
        text.truncate(from);
        let kept = text.trim_end_matches([' ', '.']).len();
        text.truncate(kept);
        text += &rest;
    }
    without_prefixes(&text).to_owned()
}

fn without_prefixes(mut text: &str) -> &str {
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix)) {
        text = rest;
    }
    text
}

/// A call whose arguments no function of the name takes.
fn signature(text: &str) -> Option<Worded> {
    let (reason, rest) = text.split_once(NO_SIGNATURE)?;
    let (call, rest) = rest.split_once(SIGNATURE_END)?;
    let name = call.split('(').next().unwrap_or(call);
    let mentions = match name {
        // Calls that are written with brackets.
        "make_array" | "array_element" | "array_slice" => {
            vec![Mention::Call(name.to_owned()), Mention::token("[")]
        }
        _ => vec![Mention::Call(name.to_owned()), Mention::AnyCall],
    };
    let candidates = rest.split_once(CANDIDATES).map_or("", |(_, list)| list);
    let candidates = calls(candidates, name);
    let subject = format!("`{}` is not possible", in_sql(call));
    let message = if candidates.is_empty() {
        format!("{subject}: {}", reason_of(reason))
    } else {
        let has_arity = candidates.iter().any(|other| arity(other) == arity(call));
        let step = if has_arity {
            "; `cast(x as …)` converts an argument"
        } else {
            ""
        };
        let available: Vec<String> = candidates.iter().map(|call| in_sql(call)).collect();
        format!("{subject}; available: {}{step}", available.join(", "))
    };
    Some(Worded { message, mentions })
}

/// The calls of a function in a list of candidates, without those that name no types.
fn calls<'a>(list: &'a str, name: &str) -> Vec<&'a str> {
    let begin = format!("{name}(");
    let mut starts: Vec<usize> = list.match_indices(&begin).map(|(at, _)| at).collect();
    starts.push(list.len());
    let calls = starts.windows(2).map(|pair| list[pair[0]..pair[1]].trim());
    calls.filter(|call| !call.contains("UserDefined")).collect()
}

/// Why the arguments do not fit, from the planner's nested reasons.
fn reason_of(text: &str) -> String {
    if ["common type", "coerced type", "unify"]
        .iter()
        .any(|part| text.contains(part))
    {
        return "the arguments have no common type; cast them to one".into();
    }
    let last = text.rsplit("failed with: ").next().unwrap_or(text);
    let last = last.rsplit("errors: ").next().unwrap_or(last);
    // Alternatives are separated by commas, each with its prefix.
    let first = last.split(",Error during planning").next().unwrap_or(last);
    let reason = without_prefixes(first.trim());
    in_sql(reason.trim_end_matches([' ', '.', ',']))
}

/// Number of arguments of a call.
fn arity(call: &str) -> usize {
    let (mut depth, mut commas, mut is_empty) = (0_usize, 0, true);
    for c in call.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 1 => commas += 1,
            _ if depth > 0 => is_empty = false,
            _ => {}
        }
    }
    if is_empty { 0 } else { commas + 1 }
}

/// An operator between types that it does not take.
fn operands(text: &str) -> Option<Worded> {
    let rest = text.strip_prefix("Cannot ")?;
    let is_about_types = ["infer common ", "coerce arithmetic ", "get result type "]
        .iter()
        .any(|begin| rest.starts_with(begin));
    let (_, rest) = rest
        .split_once(" operation ")
        .or_else(|| rest.split_once(" expression "))
        .filter(|_| is_about_types)?;
    let rest = rest.split(": ").next().unwrap_or(rest);
    let types = in_sql(rest.strip_suffix(" to valid types").unwrap_or(rest));
    let parts: Vec<&str> = types.split(' ').collect();
    let mentions = match parts[..] {
        [_, "!=", _] => vec![Mention::Token(vec!["!=".into(), "<>".into()])],
        [_, operator, _] => vec![Mention::token(operator)],
        _ => Vec::new(),
    };
    let message = format!("`{types}` is not possible: the types do not fit; cast one of them");
    Some(Worded { message, mentions })
}

/// A value that a type does not have.
fn cast(text: &str) -> Option<Worded> {
    let begins = [
        "Cannot cast string ",
        "Cannot cast value ",
        "Can't cast value ",
    ];
    let rest = begins.iter().find_map(|begin| text.strip_prefix(begin))?;
    let (value, arrow) = rest
        .rsplit_once(" to value of ")
        .or_else(|| rest.rsplit_once(" to type "))?;
    let arrow = arrow.trim_end_matches(" type");
    let mut mentions = vec![Mention::token(value)];
    mentions.extend(names(arrow).map(Mention::Cast));
    let message = format!(
        "{value} cannot be cast to {}; `try_cast` gives null instead",
        in_sql(arrow)
    );
    Some(Worded { message, mentions })
}

/// A condition that is not a boolean.
fn condition(text: &str) -> Option<Worded> {
    let rest = text.strip_prefix("Cannot create filter with non-boolean predicate '")?;
    let (predicate, arrow) = rest.rsplit_once("' returning ")?;
    let mut mentions = quoted(&format!("'{predicate}'"));
    mentions.extend(["where", "having"].map(Mention::token));
    let message = format!(
        "the condition must be a boolean; `{predicate}` is {}",
        in_sql(arrow)
    );
    Some(Worded { message, mentions })
}

/// Messages that are always the same.
fn fixed(text: &str) -> Option<Worded> {
    let worded = |message: &str, mention: Mention| {
        Some(Worded {
            message: message.to_owned(),
            mentions: vec![mention],
        })
    };
    if let Some(before) = text.strip_suffix("found: EOF") {
        let message = format!("{before}found: the end of the text");
        return worded(&message, Mention::End);
    }
    if text.starts_with("Divide by zero") {
        return worded(
            "division by zero; `a / nullif(b, 0)` gives null instead",
            Mention::Token(vec!["/".into(), "%".into()]),
        );
    }
    if text.contains("logical expression Wildcard") {
        let message = "`*` can be an argument of `count` only";
        return worded(message, Mention::token("*"));
    }
    if text.starts_with("Scalar subquery returned more than one row") {
        return Some(Worded {
            message: format!("{text}; add `limit 1`, or use `in`"),
            mentions: Vec::new(),
        });
    }
    if let Some((function, _)) = text.split_once(" not supported for ") {
        return worded(&in_sql(text), Mention::Call(function.to_owned()));
    }
    let (begin, word) = [
        ("Join condition must be", "on"),
        ("Expected LIMIT to be", "limit"),
        ("Can not find compatible types to compare", "in"),
    ]
    .into_iter()
    .find(|(begin, _)| text.starts_with(*begin))?;
    let text = if begin.starts_with("Can not") {
        text.replacen("Can not find", "there are no", 1) + "; cast the values"
    } else {
        text.to_owned()
    };
    worded(&in_sql(&text), Mention::token(word))
}

/// What a message has in single quotes: texts, names and calls. Suggestions are not in the SQL.
fn quoted(text: &str) -> Vec<Mention> {
    let text = text.split("Did you mean").next().unwrap_or(text);
    let mut mentions = Vec::new();
    for part in text.split('\'').skip(1).step_by(2) {
        mentions.push(Mention::Token(vec![format!("'{part}'")]));
        mentions.push(match part.split_once('(') {
            Some((name, _)) => Mention::Call(name.to_owned()),
            None => Mention::token(part.rsplit('.').next().unwrap_or(part)),
        });
    }
    mentions
}

/// SQL's names of a type of Arrow.
fn names(arrow: &str) -> Option<&'static [&'static str]> {
    let base = arrow.split('(').next().unwrap_or(arrow);
    let known = TYPES.iter().find(|(name, _)| *name == base);
    known.map(|(_, names)| *names)
}

/// A text with the types' names in SQL.
fn in_sql(text: &str) -> String {
    let mut text = text.to_owned();
    for (arrow, name) in PARAMETRIC_TYPES {
        text = text.replace(arrow, name);
    }
    let is_end = |c: char| !c.is_alphanumeric() && c != '_';
    let words = text.split_inclusive(is_end).map(|part| {
        let word = part.trim_end_matches(is_end);
        let name = TYPES.iter().find(|(arrow, _)| *arrow == word);
        let name = name.map_or(word, |(_, names)| names[0]);
        format!("{name}{}", &part[word.len()..])
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::tokenizer::Tokenizer;

    use super::*;
    use crate::schema::dialect::WeirDialect;

    const SUM: &str = "Internal error: Function 'sum' failed to match any signature, errors: Error during planning: Function 'sum' requires Decimal.\nThis issue was likely caused by a bug in DataFusion's code. Please help us to resolve this by filing a bug report in our issue tracker: https://github.com/apache/datafusion/issues. No function matches the given name and argument types 'sum(Utf8)'. You might need to add explicit type casts.\n\tCandidate functions:\n\tsum(Decimal)\n\tsum(Int64)";
    const DATE_TRUNC: &str = "Execution error: Function 'date_trunc' user-defined coercion failed with: Internal error: Function 'date_trunc' failed to match any signature, errors: Error during planning: Function 'date_trunc' expects 2 arguments but received 1,Error during planning: Function 'date_trunc' expects 2 arguments but received 1.\nThis issue was likely caused by a bug in DataFusion's code. Please help us to resolve this by filing a bug report in our issue tracker: https://github.com/apache/datafusion/issues. No function matches the given name and argument types 'date_trunc(Timestamp(µs, \"UTC\"))'. You might need to add explicit type casts.\n\tCandidate functions:\n\tdate_trunc(UserDefined)";
    const GREATEST: &str = "Execution error: Function 'greatest' user-defined coercion failed with: Error during planning: Cannot find a common type for arguments to greatest. No function matches the given name and argument types 'greatest(Int64, Utf8)'. You might need to add explicit type casts.\n\tCandidate functions:\n\tgreatest(UserDefined)";
    const UPPER: &str = "Function 'upper' expects 1 arguments but received 2. No function matches the given name and argument types 'upper(Int64, Int64)'. You might need to add explicit type casts.\n\tCandidate functions:\n\tupper(String)";

    #[test]
    fn messages_are_those_of_a_user_of_sql() {
        for (text, expected) in [
            (
                SUM,
                "`sum(varchar)` is not possible; available: sum(decimal), sum(bigint); `cast(x as …)` converts an argument",
            ),
            (
                DATE_TRUNC,
                "`date_trunc(timestamp)` is not possible: Function 'date_trunc' expects 2 arguments but received 1",
            ),
            (
                GREATEST,
                "`greatest(bigint, varchar)` is not possible: the arguments have no common type; cast them to one",
            ),
            (
                UPPER,
                "`upper(bigint, bigint)` is not possible; available: upper(varchar)",
            ),
            (
                "Cannot coerce arithmetic expression Utf8 + Interval(MonthDayNano) to valid types",
                "`varchar + interval` is not possible: the types do not fit; cast one of them",
            ),
            (
                "Cast error: Cannot cast string 'au' to value of Int64 type",
                "'au' cannot be cast to bigint; `try_cast` gives null instead",
            ),
            (
                "Cast error: Can't cast value 300 to type Int8",
                "300 cannot be cast to tinyint; `try_cast` gives null instead",
            ),
            (
                "Cannot create filter with non-boolean predicate 'rsvps.country' returning Utf8",
                "the condition must be a boolean; `rsvps.country` is varchar",
            ),
            (
                "Divide by zero error",
                "division by zero; `a / nullif(b, 0)` gives null instead",
            ),
            (
                "Expected: an expression, found: EOF",
                "Expected: an expression, found: the end of the text",
            ),
            ("a\n\tb", "a b"),
            (
                "Internal error: broken.\nThis issue was likely caused by a bug in DataFusion's code.",
                "broken",
            ),
        ] {
            assert_eq!(reword(text).message, expected, "{text}");
        }
    }

    #[test]
    fn a_message_is_located_where_its_subject_occurs_once() {
        for (text, sql, expected) in [
            (SUM, "select max(a), sum (b)", Some((1, 16))),
            (SUM, "select sum(a), sum(b)", None),
            (GREATEST, "select 1,\n greatest(1, 'a')", Some((2, 2))),
            // The planner knows it by another name.
            (SUM, "select total(a)", Some((1, 8))),
            ("found: EOF", "select 1 +\n", Some((1, 11))),
            (
                "Cannot coerce arithmetic expression Utf8 + Interval(MonthDayNano) to valid types",
                "select 'a' + interval '1 day'",
                Some((1, 12)),
            ),
            ("Divide by zero error", "select a / b", Some((1, 10))),
            ("Divide by zero error", "select a / b % c", None),
            (
                "Cannot cast string 'au' to value of Int64 type",
                "select cast(a as bigint)",
                Some((1, 15)),
            ),
            (
                "Cannot cast string 'au' to value of Int64 type",
                "select a::int, b::bigint",
                Some((1, 17)),
            ),
            (
                "Cannot cast string 'au' to value of Int64 type",
                "select cast('au' as bigint), a::bigint",
                Some((1, 13)),
            ),
            (
                "Unsupported date_trunc granularity: 'foo'. Supported values are: hour",
                "select date_trunc('foo', t)",
                Some((1, 19)),
            ),
            (
                "Cannot create filter with non-boolean predicate 's.a' returning Utf8",
                "select a from s where a",
                Some((1, 17)),
            ),
        ] {
            let mut tokenizer = Tokenizer::new(&WeirDialect, sql);
            let tokens = tokenizer.tokenize_with_location().expect("tokens");
            let mentions = reword(text).mentions;
            let found = mentions.iter().find_map(|m| m.locate(sql, &tokens));
            let found = found.map(|at| (at.line, at.column));
            assert_eq!(found, expected, "{text}: {sql}");
        }
    }
}
