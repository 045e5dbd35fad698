//! The terms of a text as tantivy's tokens.

use tantivy::tokenizer::{Token, TokenStream, Tokenizer};

use super::{TextTerm, index_terms};

/// The tokenizer that tantivy calls for each text. ASCII text is split in place.
#[derive(Clone, Default)]
pub struct TextTokenizer {
    token: Token,
}

/// The terms of one text.
pub struct TermStream<'a> {
    text: &'a str,
    at: usize,
    /// The terms of a text that is not ASCII.
    split: Option<std::vec::IntoIter<TextTerm>>,
    token: &'a mut Token,
}

impl Tokenizer for TextTokenizer {
    type TokenStream<'a> = TermStream<'a>;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> TermStream<'a> {
        self.token.reset();
        let split = (!text.is_ascii()).then(|| index_terms(text).into_iter());
        TermStream {
            text,
            at: 0,
            split,
            token: &mut self.token,
        }
    }
}

impl TokenStream for TermStream<'_> {
    fn advance(&mut self) -> bool {
        self.token.text.clear();
        if let Some(split) = &mut self.split {
            let Some(term) = split.next() else {
                return false;
            };
            self.token.text.push_str(&term.text);
            (self.token.offset_from, self.token.offset_to) = (term.from, term.to);
            self.token.position = term.position;
        } else {
            let rest = &self.text.as_bytes()[self.at..];
            let Some(skipped) = rest.iter().position(u8::is_ascii_alphanumeric) else {
                return false;
            };
            let length = rest[skipped..]
                .iter()
                .position(|b| !b.is_ascii_alphanumeric());
            let from = self.at + skipped;
            let to = length.map_or(self.text.len(), |length| from + length);
            self.token.text.push_str(&self.text[from..to]);
            self.token.text.make_ascii_lowercase();
            (self.token.offset_from, self.token.offset_to) = (from, to);
            self.at = to;
            self.token.position = self.token.position.wrapping_add(1);
        }
        true
    }

    fn token(&self) -> &Token {
        self.token
    }

    fn token_mut(&mut self) -> &mut Token {
        self.token
    }
}
