//! Tables and paragraphs of Markdown.

/// Columns of a line of text; tables may be wider.
const WIDTH: usize = 128;

/// A table; cells are text of Markdown, in one line or several.
pub fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut out = line(header.map(str::to_owned).to_vec());
    out += &format!("|{}\n", "---|".repeat(N));
    for row in rows {
        out += &line(row.iter().map(|text| cell(text)).collect());
    }
    out + "\n"
}

/// A text as a cell: one line, its bars escaped.
pub fn cell(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").replace('|', "\\|")
}

/// A text as code; without one, nothing.
pub fn code(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!("`{text}`")
    }
}

/// A paragraph, its lines broken.
pub fn paragraph(text: &str) -> String {
    let mut out = String::new();
    let mut width = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if width > 0 && width + 1 + length > WIDTH {
            out.push('\n');
            width = 0;
        } else if width > 0 {
            out.push(' ');
            width += 1;
        }
        out += word;
        width += length;
    }
    out + "\n\n"
}

/// The anchor that a heading gets: in lower case, blanks as hyphens, without signs.
pub fn anchor(heading: &str) -> String {
    let characters = heading.chars().filter_map(|c| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        c if c.is_alphanumeric() => Some(c.to_ascii_lowercase()),
        _ => None,
    });
    characters.collect()
}

/// The first paragraph of a text.
pub fn first_paragraph(text: &str) -> &str {
    text.trim().split("\n\n").next().unwrap_or_default()
}

#[test]
fn cells_and_paragraphs_are_lines() {
    assert_eq!(cell("a | b\n  c"), "a \\| b c");
    assert_eq!(anchor("[[sources]] security"), "sources-security");
    let wrapped = paragraph(&"word ".repeat(60));
    assert!(wrapped.lines().all(|line| line.len() <= WIDTH));
    assert_eq!(wrapped.split_whitespace().count(), 60);
}
