//! Splits a text into units: words, emoji, and single characters of unspaced scripts.

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::{canonical_combining_class, compose};

use super::script::{
    CharClass, JOINER, classify, drops_marks, is_joiner, is_mark, is_regional, is_variation,
    modifies_emoji,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum UnitKind {
    Word(String),
    /// A character, and whether the unit before is of the same run.
    Unspaced(char, bool),
    Emoji(String),
}

/// A unit of a text, with its byte range in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unit {
    pub kind: UnitKind,
    pub from: usize,
    pub to: usize,
}

/// Splits a text into its units, one character at a time.
#[derive(Default)]
struct Splitter {
    units: Vec<Unit>,
    /// The last unit may still grow.
    is_open: bool,
    /// The last character was a joiner after an emoji.
    is_joined: bool,
}

impl Splitter {
    fn close(&mut self) {
        (self.is_open, self.is_joined) = (false, false);
    }

    fn begin(&mut self, kind: UnitKind, from: usize, to: usize) {
        self.units.push(Unit { kind, from, to });
        (self.is_open, self.is_joined) = (true, false);
    }

    /// The unit that may grow.
    fn open(&mut self) -> Option<&mut Unit> {
        if self.is_open {
            self.units.last_mut()
        } else {
            None
        }
    }

    fn push(&mut self, c: char, from: usize, to: usize) {
        match classify(c) {
            CharClass::Word => self.push_word(c, from, to),
            CharClass::Unspaced => self.push_unspaced(c, from, to),
            CharClass::Mark => self.push_mark(c, to),
            CharClass::Emoji => self.push_emoji(c, from, to),
            CharClass::Separator => self.push_separator(c, to),
        }
    }

    fn push_word(&mut self, c: char, from: usize, to: usize) {
        if let Some(Unit {
            kind: UnitKind::Word(word),
            to: end,
            ..
        }) = self.open()
        {
            word.push(c);
            *end = to;
        } else {
            self.begin(UnitKind::Word(c.to_string()), from, to);
        }
    }

    fn push_unspaced(&mut self, c: char, from: usize, to: usize) {
        let mut follows = false;
        if let Some(Unit {
            kind: UnitKind::Unspaced(before, _),
            to: end,
            ..
        }) = self.open()
        {
            follows = true;
            // Syllables of Hangul, which decomposition has split.
            if let Some(whole) = compose(*before, c) {
                *before = whole;
                *end = to;
                return;
            }
        }
        self.begin(UnitKind::Unspaced(c, follows), from, to);
    }

    fn push_mark(&mut self, c: char, to: usize) {
        let Some(unit) = self.open() else { return };
        match &mut unit.kind {
            UnitKind::Word(word) => {
                let base = word.chars().rev().find(|c| !is_mark(*c));
                if !is_variation(c) && !base.is_none_or(|base| base.is_ascii() || drops_marks(base))
                {
                    word.push(c);
                }
                unit.to = to;
            }
            UnitKind::Unspaced(before, _) => {
                // A kana and its sound mark are another kana; other marks decorate.
                *before = compose(*before, c).unwrap_or(*before);
                unit.to = to;
            }
            UnitKind::Emoji(_) => unit.to = to,
        }
    }

    fn push_emoji(&mut self, c: char, from: usize, to: usize) {
        let is_joined = self.is_joined;
        if let Some(Unit {
            kind: UnitKind::Emoji(emoji),
            to: end,
            ..
        }) = self.open()
        {
            let is_flag =
                is_regional(c) && emoji.chars().count() == 1 && emoji.chars().all(is_regional);
            if is_joined || is_flag || modifies_emoji(c) {
                emoji.push(c);
                *end = to;
                self.is_joined = false;
                return;
            }
        }
        self.begin(UnitKind::Emoji(c.to_string()), from, to);
    }

    fn push_separator(&mut self, c: char, to: usize) {
        match self.open() {
            Some(Unit {
                kind: UnitKind::Emoji(emoji),
                to: end,
                ..
            }) if modifies_emoji(c) => {
                emoji.push(c);
                *end = to;
            }
            Some(Unit {
                kind: UnitKind::Emoji(emoji),
                ..
            }) if c == JOINER => {
                emoji.push(c);
                self.is_joined = true;
            }
            // Between letters that keep their marks a joiner only changes their shape.
            Some(Unit {
                kind: UnitKind::Word(word),
                ..
            }) if is_joiner(c)
                && word
                    .chars()
                    .next_back()
                    .is_some_and(|c| !drops_marks(c) && !c.is_ascii()) => {}
            Some(Unit {
                kind: UnitKind::Unspaced(..),
                ..
            }) if is_joiner(c) => {}
            _ => self.close(),
        }
    }
}

/// Where the combining marks that start at `from` end.
fn end_of_marks(text: &str, from: usize) -> usize {
    let marks = text[from..]
        .chars()
        .take_while(|c| !c.is_ascii() && canonical_combining_class(*c) != 0);
    from + marks.map(char::len_utf8).sum::<usize>()
}

pub(super) fn units(text: &str) -> Vec<Unit> {
    let mut splitter = Splitter::default();
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        let from = at;
        at += c.len_utf8();
        let is_plain = c.is_ascii();
        if is_plain && text.as_bytes().get(at).is_none_or(u8::is_ascii) {
            splitter.push(c.to_ascii_lowercase(), from, at);
            continue;
        }
        // Decomposing a character together with its marks puts these into canonical order.
        at = end_of_marks(text, at);
        for part in text[from..at].nfkd() {
            for lower in part.to_lowercase() {
                // Final sigma is the same letter.
                splitter.push(if lower == 'ς' { 'σ' } else { lower }, from, at);
            }
        }
    }
    for unit in &mut splitter.units {
        if let UnitKind::Emoji(emoji) = &mut unit.kind {
            // A joiner that joined nothing is dropped.
            let length = emoji.trim_end_matches(JOINER).len();
            emoji.truncate(length);
        }
    }
    splitter.units
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_have_kinds_and_byte_ranges() {
        let word = |text: &str| UnitKind::Word(text.to_owned());
        let emoji = |text: &str| UnitKind::Emoji(text.to_owned());
        /// Kind, first byte and end.
        type Range = (UnitKind, usize, usize);
        let cases: [(&str, Vec<Range>); 5] = [
            ("", vec![]),
            (
                "Ab é-2",
                vec![(word("ab"), 0, 2), (word("e"), 3, 5), (word("2"), 6, 7)],
            ),
            (
                "京都x",
                vec![
                    (UnitKind::Unspaced('京', false), 0, 3),
                    (UnitKind::Unspaced('都', true), 3, 6),
                    (word("x"), 6, 7),
                ],
            ),
            ("🎉\u{200d}", vec![(emoji("🎉"), 0, 4)]),
            ("🇩🇪🇫🇷", vec![(emoji("🇩🇪"), 0, 8), (emoji("🇫🇷"), 8, 16)]),
        ];
        for (text, expected) in cases {
            let split: Vec<_> = units(text)
                .into_iter()
                .map(|u| (u.kind, u.from, u.to))
                .collect();
            assert_eq!(split, expected, "{text}");
        }
    }
}
