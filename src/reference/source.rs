//! What the source text says of structs and enums: the documentation of fields and variants, which
//! the compiler does not keep.

use std::path::{Path, PathBuf};

/// A public field of a struct, or a variant of an enum.
#[derive(Debug, PartialEq)]
pub struct Item {
    /// As the configuration names it: after `serde(rename)`, for a variant in lower case.
    pub name: String,
    /// Its type; of a variant, nothing.
    pub ty: String,
    /// Its documentation, in one line.
    pub doc: String,
    /// Whether a value is not needed: an option, or one with a default.
    pub is_optional: bool,
}

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The text of a file of the repository.
pub fn read(path: &Path) -> String {
    std::fs::read_to_string(root().join(path))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The Rust files below a folder, sorted.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            out.extend(files_below(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
    out.sort();
    out
}

/// The fields of a public struct of a formatted file; none if it does not have the struct.
pub fn fields(text: &str, name: &str) -> Option<Vec<Item>> {
    let body = body(text, &format!("pub struct {name} {{"))?;
    let is_default = text
        .split(&format!("pub struct {name} {{"))
        .next()?
        .rsplit("\n\n")
        .next()?
        .lines()
        .any(|line| line.starts_with("#[serde(") && has_word(line, "default"));
    Some(items(
        &body,
        |line| {
            let (name, ty) = line.strip_prefix("pub ")?.split_once(": ")?;
            Some((name.to_owned(), ty.trim_end_matches(',').to_owned()))
        },
        is_default,
    ))
}

/// The variants of a public enum without fields, of a formatted file; none if it does not have it.
pub fn variants(text: &str, name: &str) -> Option<Vec<Item>> {
    let body = body(text, &format!("pub enum {name} {{"))?;
    Some(items(
        &body,
        |line| {
            let name = line.strip_suffix(',')?;
            let is_plain = name.chars().all(char::is_alphanumeric);
            is_plain.then(|| (name.to_lowercase(), String::new()))
        },
        false,
    ))
}

/// The lines between the braces of a declaration.
fn body(text: &str, declaration: &str) -> Option<Vec<String>> {
    let (_, after) = text.split_once(declaration)?;
    let lines = after.lines().skip(1);
    Some(
        lines
            .take_while(|line| *line != "}")
            .map(|line| line.trim().to_owned())
            .collect(),
    )
}

fn items(
    body: &[String],
    parse: impl Fn(&str) -> Option<(String, String)>,
    is_default: bool,
) -> Vec<Item> {
    let (mut out, mut doc, mut attributes) = (Vec::new(), String::new(), String::new());
    for line in body {
        if let Some(text) = line.strip_prefix("///") {
            doc += text;
        } else if line.starts_with("#[") {
            attributes += line;
        } else if let Some((name, ty)) = parse(line) {
            let renamed = attributes.split_once("rename = \"");
            let renamed = renamed.and_then(|(_, rest)| rest.split('"').next());
            out.push(Item {
                name: renamed.map_or(name, str::to_owned),
                is_optional: is_default
                    || ty.starts_with("Option<")
                    || has_word(&attributes, "default"),
                ty,
                doc: doc.trim().to_owned(),
            });
            doc.clear();
            attributes.clear();
        }
    }
    out
}

fn has_word(text: &str, word: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
        .any(|found| found == word)
}

#[test]
fn fields_are_read_with_their_documentation() {
    let text = "/// A.\n#[serde(deny_unknown_fields)]\npub struct A {\n    /// What it\n    /// is.\n    #[serde(rename = \"type\")]\n    pub kind: String,\n    pub size: Option<usize>,\n}\n";
    let found = fields(text, "A").expect("the struct");
    let item = |name: &str, ty: &str, doc: &str, is_optional| Item {
        name: name.into(),
        ty: ty.into(),
        doc: doc.into(),
        is_optional,
    };
    assert_eq!(
        found,
        [
            item("type", "String", "What it is.", false),
            item("size", "Option<usize>", "", true)
        ]
    );
    assert_eq!(fields(text, "B"), None);
}
