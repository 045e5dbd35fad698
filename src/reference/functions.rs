//! `functions.md`: the functions of a SQL session, by the kinds of the library's documentation.

use std::collections::BTreeMap;

use super::markdown::{cell, code, first_paragraph, paragraph, table};
use crate::config::SqlBounds;
use crate::schema::functions::JSON_FUNCTIONS;
use crate::schema::select::planning;
use crate::schema::window::FORM;

const INTRODUCTION: &str = "Queries and declarations have the same functions: those of DataFusion, those on JSON text, and Weir's \
own. A function marked *queries only* depends on more than its arguments, so that `select`, `require`, windows and entity tables \
refuse it. [The SQL limits](../sql-limits.md) say what one call may produce.";

const WINDOWS: &str = "`tumble`, `hop` and `session` divide event time. They stand in `from` of a window's SQL, and add \
`window_start` and `window_end`:";

/// A function as its library describes it.
struct Function {
    names: Vec<String>,
    section: &'static str,
    call: String,
    description: String,
    is_immutable: bool,
}

/// The registered functions of a kind; the kinds have no trait in common.
macro_rules! functions {
    ($map:expr, $section:literal, |$function:ident| $is_immutable:expr) => {
        $map.values().map(|$function| {
            let documentation = $function.documentation();
            let mut names = vec![$function.name().to_owned()];
            names.extend($function.aliases().iter().cloned());
            Function {
                names,
                section: documentation.map_or($section, |text| text.doc_section.label),
                call: documentation.map_or(String::new(), |text| text.syntax_example.clone()),
                description: documentation.map_or(String::new(), |text| text.description.clone()),
                is_immutable: $is_immutable,
            }
        })
    };
}

/// The page.
pub fn page() -> String {
    let state = planning(SqlBounds::default()).expect("a session").state();
    let mut all: Vec<Function> = Vec::new();
    all.extend(functions!(
        state.scalar_functions(),
        "Other Functions",
        |function| { format!("{:?}", function.signature().volatility) == "Immutable" }
    ));
    all.extend(functions!(
        state.aggregate_functions(),
        "Aggregate Functions",
        |function| true
    ));
    all.extend(functions!(
        state.window_functions(),
        "Window Functions",
        |function| true
    ));
    all.extend(functions!(
        state.higher_order_functions(),
        "Functions With Lambdas",
        |function| true
    ));
    let mut sections: BTreeMap<&str, BTreeMap<String, [String; 3]>> = BTreeMap::new();
    for function in all {
        let row = function.row();
        sections
            .entry(function.section())
            .or_default()
            .insert(function.names[0].clone(), row);
    }
    let mut out = "# Functions of SQL\n\n".to_owned() + &paragraph(INTRODUCTION);
    for (section, functions) in sections {
        let rows: Vec<[String; 3]> = functions.into_values().collect();
        out += &format!(
            "## {section}\n\n{}",
            table(["function", "call", "meaning"], &rows)
        );
    }
    out + "## Windows of declarations\n\n" + &paragraph(WINDOWS) + &paragraph(FORM)
}

impl Function {
    /// What Weir says of a function that its library does not describe.
    fn own_words(&self) -> Option<(&'static str, &'static str)> {
        let found = JSON_FUNCTIONS
            .iter()
            .find(|(name, ..)| *name == self.names[0]);
        found.map(|(_, call, meaning)| (*call, *meaning))
    }

    fn section(&self) -> &'static str {
        self.own_words().map_or(self.section, |_| "JSON Functions")
    }

    fn row(&self) -> [String; 3] {
        let library = (self.call.as_str(), self.description.as_str());
        let (call, meaning) = self.own_words().unwrap_or(library);
        let names: Vec<String> = self.names.iter().map(|name| code(name)).collect();
        let mut meaning = without_inner_links(&cell(first_paragraph(meaning)));
        if !self.is_immutable {
            meaning += " *Queries only.*";
        }
        [
            names.join(", "),
            code(&cell(call).replace('`', "")),
            meaning,
        ]
    }
}

/// The text without links into the library's own pages: `[name](#name)` is `name`.
fn without_inner_links(text: &str) -> String {
    let mut parts = text.split("](");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        if part.starts_with("http") {
            out = out + "](" + part;
            continue;
        }
        if let Some(at) = out.rfind('[') {
            out.remove(at);
        }
        out += part.split_once(')').map_or("", |(_, after)| after);
    }
    out
}

#[test]
fn links_into_the_library_are_text() {
    let text = "see [coalesce](#coalesce), [casts](casts.md#all) and [this](https://example.org)";
    assert_eq!(
        without_inner_links(text),
        "see coalesce, casts and [this](https://example.org)"
    );
}
