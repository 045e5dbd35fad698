//! What Tab completes: keywords, and the tables, columns and functions of the server or folder.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::command;
use super::statement::{State, state_at_end};

/// Rows of every table's columns.
pub const COLUMNS_SQL: &str = "select table_schema, table_name, column_name, data_type, is_nullable \
    from information_schema.columns where table_schema <> 'information_schema' \
    order by table_schema, table_name, ordinal_position";

/// Rows of the functions' names.
pub const FUNCTIONS_SQL: &str =
    "select distinct routine_name from information_schema.routines order by routine_name";

/// Maximum candidates that are listed.
const MAX_CANDIDATES: usize = 200;

/// After these the name of a table follows.
const BEFORE_TABLES: [&str; 2] = ["from", "join"];

const KEYWORDS: [&str; 67] = [
    "all",
    "and",
    "any",
    "as",
    "asc",
    "at time zone",
    "between",
    "bigint",
    "boolean",
    "by",
    "case",
    "cast",
    "count(*)",
    "cross join",
    "current_date",
    "date",
    "desc",
    "distinct",
    "double",
    "else",
    "end",
    "except",
    "exists",
    "explain",
    "extract",
    "false",
    "filter",
    "following",
    "from",
    "full join",
    "group by",
    "having",
    "ilike",
    "in",
    "inner join",
    "intersect",
    "interval",
    "is",
    "join",
    "last",
    "left join",
    "like",
    "limit",
    "not",
    "null",
    "nulls first",
    "nulls last",
    "offset",
    "on",
    "or",
    "order by",
    "over",
    "partition by",
    "preceding",
    "qualify",
    "right join",
    "rows",
    "select",
    "then",
    "timestamp",
    "true",
    "union",
    "using",
    "varchar",
    "when",
    "where",
    "with",
];

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Column {
    name: String,
    kind: String,
    is_nullable: bool,
}

/// A table that does not exist.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the table `{name}` does not exist; available: {known}")]
pub struct UnknownTable {
    name: String,
    /// Those that do, separated by commas.
    known: String,
}

/// Names that can be completed.
#[derive(Debug, Default)]
pub struct Names {
    /// By the name that a query uses.
    tables: BTreeMap<String, Vec<Column>>,
    functions: BTreeSet<String>,
}

impl Names {
    /// From the answers to [`COLUMNS_SQL`] and [`FUNCTIONS_SQL`].
    pub fn new(columns: &Value, functions: &Value) -> Self {
        let mut names = Self::default();
        let rows = |answer: &Value| answer["rows"].as_array().cloned().unwrap_or_default();
        for row in rows(columns) {
            let text = |name: &str| row[name].as_str().unwrap_or_default();
            let table = match text("table_schema") {
                "main" => text("table_name").to_owned(),
                schema => format!("{schema}.{}", text("table_name")),
            };
            names.tables.entry(table).or_default().push(Column {
                name: text("column_name").to_owned(),
                kind: sql_type(text("data_type")).to_owned(),
                is_nullable: text("is_nullable") == "YES",
            });
        }
        let functions = rows(functions);
        let functions = functions
            .iter()
            .filter_map(|row| row["routine_name"].as_str());
        names.functions = functions.map(str::to_owned).collect();
        names
    }

    /// A row for each table.
    pub fn tables(&self) -> Vec<Value> {
        let tables = self.tables.iter();
        tables
            .map(|(table, columns)| json!({"table": table, "columns": columns.len()}))
            .collect()
    }

    /// A row for each column of a table; an error lists the tables.
    pub fn columns(&self, table: &str) -> Result<Vec<Value>, UnknownTable> {
        let name = table.replace('"', "");
        let Some(columns) = self.tables.get(&name) else {
            let known: Vec<&str> = self.tables.keys().map(String::as_str).collect();
            return Err(UnknownTable {
                name: table.to_owned(),
                known: known.join(", "),
            });
        };
        let row = |column: &Column| {
            let nullable = if column.is_nullable { "" } else { "not null" };
            json!({"column": column.name, "type": column.kind, "null": nullable})
        };
        Ok(columns.iter().map(row).collect())
    }

    /// Where the word before `at` begins, and what it may become.
    pub fn complete(&self, text: &str, at: usize) -> (usize, Vec<String>) {
        let before = &text[..at];
        let begin = before
            .char_indices()
            .rev()
            .find(|(_, c)| !is_of_word(*c))
            .map_or(0, |(i, c)| i + c.len_utf8());
        let word = &before[begin..];
        if let Some(line) = before.trim_start().strip_prefix('\\') {
            return match line.strip_prefix("d ") {
                Some(_) => (begin, self.matching_tables(word)),
                None => {
                    let typed = before.trim_start();
                    let names = command::NAMES.iter().filter(|name| name.starts_with(typed));
                    let names = names.map(|name| (*name).to_owned()).collect();
                    (before.len() - typed.len(), names)
                }
            };
        }
        if state_at_end(before) != State::Plain {
            return (at, Vec::new());
        }
        let candidates = if let Some((qualifier, column)) = word.rsplit_once('.') {
            self.qualified(text, word, qualifier, column)
        } else if is_table_expected(&before[..begin]) {
            self.matching_tables(word)
        } else if word.is_empty() {
            Vec::new()
        } else {
            self.unqualified(text, word)
        };
        (begin, candidates)
    }

    fn matching_tables(&self, word: &str) -> Vec<String> {
        let tables = self.tables.keys().filter(|table| begins_with(table, word));
        tables
            .map(|table| quoted(table))
            .take(MAX_CANDIDATES)
            .collect()
    }

    /// Tables of a schema, and columns of a table or of its alias.
    fn qualified(&self, text: &str, word: &str, qualifier: &str, column: &str) -> Vec<String> {
        let mut found: BTreeSet<String> = self.matching_tables(word).into_iter().collect();
        let named = self.named_tables(text).into_iter();
        let tables = named
            .filter(|(table, alias)| *alias == Some(qualifier) || *table == qualifier)
            .filter_map(|(table, _)| self.tables.get(table));
        let columns = tables.flatten().filter(|c| begins_with(&c.name, column));
        found.extend(columns.map(|c| format!("{qualifier}.{}", quoted(&c.name))));
        found.into_iter().take(MAX_CANDIDATES).collect()
    }

    /// Columns of the tables that the text names, else of all; functions, keywords and tables.
    fn unqualified(&self, text: &str, word: &str) -> Vec<String> {
        let named = self.named_tables(text);
        let is_read =
            |table: &str| named.is_empty() || named.iter().any(|(name, _)| *name == table);
        let mut found = BTreeSet::new();
        for (_, columns) in self.tables.iter().filter(|(table, _)| is_read(table)) {
            let columns = columns.iter().filter(|c| begins_with(&c.name, word));
            found.extend(columns.map(|c| quoted(&c.name)));
        }
        let functions = self.functions.iter().filter(|name| begins_with(name, word));
        found.extend(functions.map(|name| format!("{name}(")));
        let is_upper =
            word.chars().any(char::is_uppercase) && !word.chars().any(char::is_lowercase);
        let keywords = KEYWORDS.iter().filter(|keyword| begins_with(keyword, word));
        found.extend(keywords.map(|keyword| {
            if is_upper {
                keyword.to_uppercase()
            } else {
                (*keyword).to_owned()
            }
        }));
        found.extend(self.matching_tables(word));
        found.into_iter().take(MAX_CANDIDATES).collect()
    }

    /// The tables that a text reads, with their aliases.
    fn named_tables<'a>(&self, text: &'a str) -> Vec<(&'a str, Option<&'a str>)> {
        let words = text.split(|c: char| !is_of_word(c) && c != '"');
        let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
        let is = |word: &str, names: &[&str]| names.iter().any(|n| word.eq_ignore_ascii_case(n));
        let mut found = Vec::new();
        for (n, pair) in words.windows(2).enumerate() {
            let table = pair[1].trim_matches('"');
            if !is(pair[0], &BEFORE_TABLES) || !self.tables.contains_key(table) {
                continue;
            }
            let mut following = words[n + 2..].iter().filter(|word| !is(word, &["as"]));
            let alias = following.next().copied();
            let is_keyword =
                |word: &&str| KEYWORDS.iter().any(|k| k.split(' ').next() == Some(*word));
            found.push((table, alias.filter(|word| !is_keyword(word))));
        }
        found
    }
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '.'
}

fn begins_with(name: &str, word: &str) -> bool {
    name.get(..word.len())
        .is_some_and(|begin| begin.eq_ignore_ascii_case(word))
}

fn is_table_expected(before: &str) -> bool {
    let last = before.trim_end().rsplit(|c: char| !is_of_word(c)).next();
    let is_apart = before.ends_with(char::is_whitespace);
    is_apart && last.is_some_and(|word| BEFORE_TABLES.iter().any(|n| word.eq_ignore_ascii_case(n)))
}

/// The name as a query writes it, each part in quotes if it needs them.
fn quoted(name: &str) -> String {
    let is_plain = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
            && part
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let parts = name.split('.').map(|part| {
        if is_plain(part) {
            part.to_owned()
        } else {
            format!("\"{part}\"")
        }
    });
    parts.collect::<Vec<_>>().join(".")
}

/// The SQL name of a type that the information schema lists by Arrow's name.
fn sql_type(arrow: &str) -> &str {
    match arrow {
        "Utf8" | "LargeUtf8" | "Utf8View" => "varchar",
        "Boolean" => "boolean",
        "Int64" => "bigint",
        "Int32" => "int",
        "Float64" => "double",
        "Date32" => "date",
        "Binary" | "LargeBinary" | "BinaryView" => "bytea",
        other if other.starts_with("Timestamp(") => "timestamp",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let column = |schema: &str, table: &str, column: &str, kind: &str| {
            json!({"table_schema": schema, "table_name": table, "column_name": column,
                "data_type": kind, "is_nullable": "NO"})
        };
        let columns = json!({"rows": [
            column("main", "orders", "event_time", "Timestamp(µs, \"UTC\")"),
            column("main", "orders", "customer", "Utf8"),
            column("main", "orders", "Net Sum", "Float64"),
            column("main", "customers", "city", "Utf8"),
            column("weir", "views", "lag", "Int64"),
        ]});
        let functions =
            json!({"rows": [{"routine_name": "date_trunc"}, {"routine_name": "count"}]});
        Names::new(&columns, &functions)
    }

    #[test]
    fn words_become_what_fits_their_place() {
        for (text, begin, expected) in [
            (
                "select * from ",
                14,
                &["customers", "orders", "weir.views"][..],
            ),
            ("select * from weir.", 14, &["weir.views"]),
            ("select * from o", 14, &["orders"]),
            (
                "select c from orders where cu",
                27,
                &["current_date", "customer", "customers"],
            ),
            ("select date_", 7, &["date_trunc("]),
            (
                "select * from orders where n",
                27,
                &["\"Net Sum\"", "not", "null", "nulls first", "nulls last"],
            ),
            (
                "select o.cus from orders as o where o.cus",
                36,
                &["o.customer"],
            ),
            ("select * from orders o where o.ev", 29, &["o.event_time"]),
            ("SEL", 0, &["SELECT"]),
            ("select ", 7, &[]),
            ("select 'fro", 11, &[]),
            ("-- fro", 6, &[]),
            (r"\d o", 3, &["orders"]),
            (r"\t", 0, &[r"\timing"]),
        ] {
            let expected: Vec<String> = expected.iter().map(|e| (*e).to_owned()).collect();
            assert_eq!(
                names().complete(text, text.len()),
                (begin, expected),
                "{text}"
            );
        }
    }

    #[test]
    fn tables_and_columns_are_rows() {
        let names = names();
        assert_eq!(names.tables().len(), 3);
        assert_eq!(
            names.columns("orders").expect("a table")[0],
            json!({"column": "event_time", "type": "timestamp", "null": "not null"})
        );
        let unknown = names.columns("order").expect_err("no such table");
        assert_eq!(
            unknown.to_string(),
            "the table `order` does not exist; available: customers, orders, weir.views"
        );
    }

    #[test]
    fn any_text_can_be_completed_anywhere() {
        for text in [
            "é.ü from 東京 ",
            "\"",
            "'",
            "a.b.c.",
            r"\",
            "from from from ",
            "from\u{a0}",
        ] {
            for (at, _) in text.char_indices() {
                names().complete(text, at);
            }
            names().complete(text, text.len());
        }
    }
}
