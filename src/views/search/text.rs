//! How text becomes words: NFKD, marks dropped, lower case, split at what is neither letter nor digit; CJK by bigrams. No stop
//! words, no stems. The same for what is searched and for what is asked.

use tantivy::tokenizer::{Token, TokenStream, Tokenizer};
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// The name under which the index knows it; changed rules get another one.
pub const NAME: &str = "weir_1";

/// A word with where it lies in the text (bytes) and its place among the words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    pub text: String,
    pub from: usize,
    pub to: usize,
}

fn is_cjk(c: char) -> bool {
    matches!(c as u32,
        0x3040..=0x30ff | 0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xac00..=0xd7af | 0x1100..=0x11ff | 0xf900..=0xfaff | 0x20000..=0x3134f)
}

#[derive(Default)]
struct Splitter {
    words: Vec<Word>,
    current: Option<Word>,
    /// The last character of a run of CJK, and whether a pair was made of it.
    cjk: Option<(String, usize, usize, bool)>,
}

impl Splitter {
    fn end_cjk(&mut self) {
        if let Some((text, from, to, false)) = self.cjk.take() {
            self.words.push(Word { text, from, to });
        }
    }

    fn end_word(&mut self) {
        self.words.extend(self.current.take());
        self.end_cjk();
    }

    fn take(&mut self, c: char, from: usize, to: usize) {
        if !c.is_alphanumeric() {
            self.end_word();
            return;
        }
        if is_cjk(c) {
            self.words.extend(self.current.take());
            if let Some((before, start, ..)) = &self.cjk {
                self.words.push(Word { text: format!("{before}{c}"), from: *start, to });
                self.cjk = Some((c.to_string(), from, to, true));
            } else {
                self.cjk = Some((c.to_string(), from, to, false));
            }
            return;
        }
        self.end_cjk();
        let word = self.current.get_or_insert_with(|| Word { text: String::new(), from, to });
        word.text.push(c);
        word.to = to;
    }
}

/// Splits a text into its words.
pub fn words(text: &str) -> Vec<Word> {
    let mut splitter = Splitter::default();
    for (from, c) in text.char_indices() {
        let to = from + c.len_utf8();
        if c.is_ascii() {
            splitter.take(c.to_ascii_lowercase(), from, to);
            continue;
        }
        for part in std::iter::once(c).nfkd().filter(|p| !is_combining_mark(*p)) {
            for lower in part.to_lowercase().filter(|l| !is_combining_mark(*l)) {
                splitter.take(lower, from, to);
            }
        }
    }
    splitter.end_word();
    splitter.words
}

/// The splitter as tantivy wants it. ASCII text is split in place.
#[derive(Clone, Default)]
pub struct Words {
    token: Token,
}

pub struct WordStream<'a> {
    text: &'a str,
    at: usize,
    /// The words of a text that is not ASCII.
    split: Option<std::vec::IntoIter<Word>>,
    token: &'a mut Token,
}

impl Tokenizer for Words {
    type TokenStream<'a> = WordStream<'a>;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> WordStream<'a> {
        self.token.reset();
        let split = (!text.is_ascii()).then(|| words(text).into_iter());
        WordStream { text, at: 0, split, token: &mut self.token }
    }
}

impl TokenStream for WordStream<'_> {
    fn advance(&mut self) -> bool {
        self.token.text.clear();
        if let Some(split) = &mut self.split {
            let Some(word) = split.next() else { return false };
            self.token.text.push_str(&word.text);
            (self.token.offset_from, self.token.offset_to) = (word.from, word.to);
        } else {
            let rest = &self.text.as_bytes()[self.at..];
            let Some(skipped) = rest.iter().position(u8::is_ascii_alphanumeric) else { return false };
            let length = rest[skipped..].iter().position(|b| !b.is_ascii_alphanumeric());
            let from = self.at + skipped;
            let to = length.map_or(self.text.len(), |length| from + length);
            self.token.text.push_str(&self.text[from..to]);
            self.token.text.make_ascii_lowercase();
            (self.token.offset_from, self.token.offset_to) = (from, to);
            self.at = to;
        }
        self.token.position = self.token.position.wrapping_add(1);
        true
    }

    fn token(&self) -> &Token {
        self.token
    }

    fn token_mut(&mut self) -> &mut Token {
        self.token
    }
}

/// A map's entry as one term: found by its whole value, in any case.
pub fn pair(key: &str, value: &str) -> String {
    format!("{key}\u{1f}{}", value.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(text: &str) -> Vec<String> {
        words(text).into_iter().map(|w| w.text).collect()
    }

    #[test]
    fn words_are_folded_as_the_contract_says() {
        assert_eq!(split("Café – Zürich's №1™"), ["cafe", "zurich", "s", "no1tm"]);
        assert_eq!(split("snake_case C++ 3D"), ["snake", "case", "c", "3d"]);
        assert_eq!(split("ﬁne Straße"), ["fine", "straße"]);
        assert_eq!(split("東京タワー x"), ["東京", "京タ", "タワ", "ワー", "x"]);
        assert_eq!(split("京 a京b"), ["京", "a", "京", "b"]);
    }

    proptest! {
        #[test]
        fn ascii_is_split_alike_both_ways(text in "[ -~]{0,60}") {
            let mut tokenizer = Words::default();
            let mut stream = tokenizer.token_stream(&text);
            let mut fast = Vec::new();
            while stream.advance() {
                let token = stream.token();
                fast.push(Word { text: token.text.clone(), from: token.offset_from, to: token.offset_to });
            }
            prop_assert_eq!(fast, words(&text));
        }

        #[test]
        fn offsets_lie_in_the_text_and_ascend(text in "\\PC{0,40}") {
            let mut before = 0;
            for word in words(&text) {
                prop_assert!(text.is_char_boundary(word.from) && text.is_char_boundary(word.to));
                prop_assert!(word.from >= before && word.from <= word.to);
                before = word.from;
            }
        }
    }
}
