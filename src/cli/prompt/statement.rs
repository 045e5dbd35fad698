//! Where statements end in a text that is being typed. Pure.

/// What the end of a text is inside of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Words and signs.
    Plain,
    /// A text or a quoted name, which ends with this quote.
    Quoted(char),
    /// A comment up to the end of its line.
    LineComment,
    /// A comment up to its `*/`, in this many others.
    BlockComment(u32),
}

/// Reads a text character by character.
struct Scanner<'a> {
    rest: std::iter::Peekable<std::str::CharIndices<'a>>,
    state: State,
}

/// A character outside comments that is not blank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    Semicolon,
    Other,
}

impl<'a> Scanner<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            rest: text.char_indices().peekable(),
            state: State::Plain,
        }
    }

    /// Whether the next character is this one, which is then read.
    fn take(&mut self, expected: char) -> bool {
        self.rest.next_if(|(_, c)| *c == expected).is_some()
    }

    fn plain(&mut self, c: char) -> Option<Sign> {
        match c {
            '-' if self.take('-') => self.state = State::LineComment,
            '/' if self.take('*') => self.state = State::BlockComment(0),
            ';' => return Some(Sign::Semicolon),
            '\'' | '"' => {
                self.state = State::Quoted(c);
                return Some(Sign::Other);
            }
            c if c.is_whitespace() => {}
            _ => return Some(Sign::Other),
        }
        None
    }

    fn in_comment(&mut self, c: char, depth: u32) {
        match c {
            '*' if self.take('/') => {
                self.state = depth
                    .checked_sub(1)
                    .map_or(State::Plain, State::BlockComment);
            }
            '/' if self.take('*') => self.state = State::BlockComment(depth.saturating_add(1)),
            _ => {}
        }
    }
}

impl Iterator for Scanner<'_> {
    /// Where a sign is.
    type Item = (usize, Sign);

    fn next(&mut self) -> Option<Self::Item> {
        while let Some((at, c)) = self.rest.next() {
            let sign = match self.state {
                State::Plain => self.plain(c),
                // A doubled quote ends the text and begins it again.
                State::Quoted(quote) => {
                    if c == quote {
                        self.state = State::Plain;
                    }
                    Some(Sign::Other)
                }
                State::LineComment => {
                    if c == '\n' {
                        self.state = State::Plain;
                    }
                    None
                }
                State::BlockComment(depth) => {
                    self.in_comment(c, depth);
                    None
                }
            };
            if let Some(sign) = sign {
                return Some((at, sign));
            }
        }
        None
    }
}

/// What the end of the text is inside of.
pub fn state_at_end(text: &str) -> State {
    let mut scanner = Scanner::new(text);
    scanner.by_ref().for_each(drop);
    scanner.state
}

/// The statements of a text, each without its semicolon, and whether the last one has none. Blank
/// ones and comments between statements are left out.
pub fn split(text: &str) -> (Vec<&str>, bool) {
    let (mut statements, mut begin, mut has_signs) = (Vec::new(), 0, false);
    let mut scanner = Scanner::new(text);
    for (at, sign) in scanner.by_ref() {
        match sign {
            Sign::Semicolon => {
                if std::mem::take(&mut has_signs) {
                    statements.push(text[begin..at].trim());
                }
                begin = at + 1;
            }
            Sign::Other => has_signs = true,
        }
    }
    let is_open = has_signs || matches!(scanner.state, State::BlockComment(_));
    if has_signs {
        statements.push(text[begin..].trim());
    }
    (statements, is_open)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_end_at_semicolons_outside_quotes_and_comments() {
        for (text, statements, is_open) in [
            ("", &[][..], false),
            (" ; ;\n", &[], false),
            ("-- only a comment", &[], false),
            ("/* open", &[], true),
            ("select 1", &["select 1"], true),
            ("select 1;", &["select 1"], false),
            ("select 1; -- one", &["select 1"], false),
            ("select 1; select 2 ;", &["select 1", "select 2"], false),
            ("select 1; select", &["select 1", "select"], true),
            ("select ';'", &["select ';'"], true),
            ("select 'it''s; fine';", &["select 'it''s; fine'"], false),
            ("select \"a;b\";", &["select \"a;b\""], false),
            ("select 'open;", &["select 'open;"], true),
            ("select 1 -- a; b\n;", &["select 1 -- a; b"], false),
            (
                "select /* ; /* ; */ ; */ 1;",
                &["select /* ; /* ; */ ; */ 1"],
                false,
            ),
            ("select 5 - 3 / 2;", &["select 5 - 3 / 2"], false),
            ("select '東京;';", &["select '東京;'"], false),
        ] {
            assert_eq!(split(text), (statements.to_vec(), is_open), "{text}");
        }
    }

    #[test]
    fn the_state_at_the_end_says_what_is_open() {
        for (text, state) in [
            ("select a", State::Plain),
            ("select 'a", State::Quoted('\'')),
            ("select \"a", State::Quoted('"')),
            ("select 'a'", State::Plain),
            ("-- a", State::LineComment),
            ("-- a\n", State::Plain),
            ("/* /* */", State::BlockComment(0)),
        ] {
            assert_eq!(state_at_end(text), state, "{text}");
        }
    }
}
