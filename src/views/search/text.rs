//! How text becomes terms: NFKD, lower case, split at what is neither letter, digit nor emoji; no
//! stop words, no stems. Marks are dropped where they only decorate a letter (Latin, Greek,
//! Cyrillic, Arabic, Hebrew) and kept where they make another one.
//!
//! A text is a row of *units*: a word, an emoji, or one character of a script that is written
//! without spaces. The place of a unit is the position of its terms, so that phrases hold across
//! all of them. Indexed are, at the position of
//!
//! - a word: the word
//! - a character of an unspaced script: the character, and the pair that it makes with the next of its run
//! - an emoji: its whole sequence, and each emoji in it
//!
//! A question asks for less: of a run of characters its pairs (of a single one the character), of
//! an emoji its whole sequence.

use tantivy::tokenizer::{Token, TokenStream, Tokenizer};
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::{canonical_combining_class, compose};

use super::script::{
    JOINER, Kind, drops_marks, is_joiner, is_mark, is_regional, is_variation, kind, modifies_emoji,
};

/// The name under which the index knows it; changed rules get another one.
pub const NAME: &str = "weir_2";
/// How the names of all such rules begin.
pub const FAMILY: &str = "weir_";

/// A term with where it lies in the text (bytes) and the position of its unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    pub text: String,
    pub from: usize,
    pub to: usize,
    pub position: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Of {
    Word(String),
    /// A character; whether it follows the unit before in one run.
    Unspaced(char, bool),
    Emoji(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Unit {
    of: Of,
    from: usize,
    to: usize,
}

/// Cuts a text into its units.
#[derive(Default)]
struct Splitter {
    units: Vec<Unit>,
    /// The last unit may still grow.
    is_open: bool,
    /// A joiner came behind an emoji.
    is_joined: bool,
}

impl Splitter {
    fn close(&mut self) {
        (self.is_open, self.is_joined) = (false, false);
    }

    fn begin(&mut self, of: Of, from: usize, to: usize) {
        self.units.push(Unit { of, from, to });
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

    fn take(&mut self, c: char, from: usize, to: usize) {
        match kind(c) {
            Kind::Word => self.take_of_word(c, from, to),
            Kind::Unspaced => self.take_unspaced(c, from, to),
            Kind::Mark => self.take_mark(c, to),
            Kind::Emoji => self.take_emoji(c, from, to),
            Kind::Separator => self.take_separator(c, to),
        }
    }

    fn take_of_word(&mut self, c: char, from: usize, to: usize) {
        if let Some(Unit {
            of: Of::Word(word),
            to: end,
            ..
        }) = self.open()
        {
            word.push(c);
            *end = to;
        } else {
            self.begin(Of::Word(c.to_string()), from, to);
        }
    }

    fn take_unspaced(&mut self, c: char, from: usize, to: usize) {
        let mut follows = false;
        if let Some(Unit {
            of: Of::Unspaced(before, _),
            to: end,
            ..
        }) = self.open()
        {
            follows = true;
            // What decomposition took apart: syllables of Hangul.
            if let Some(whole) = compose(*before, c) {
                *before = whole;
                *end = to;
                return;
            }
        }
        self.begin(Of::Unspaced(c, follows), from, to);
    }

    fn take_mark(&mut self, c: char, to: usize) {
        let Some(unit) = self.open() else { return };
        match &mut unit.of {
            Of::Word(word) => {
                let base = word.chars().rev().find(|c| !is_mark(*c));
                if !is_variation(c) && !base.is_none_or(|base| base.is_ascii() || drops_marks(base))
                {
                    word.push(c);
                }
                unit.to = to;
            }
            Of::Unspaced(before, _) => {
                // The sound mark of a kana makes another one; others decorate.
                *before = compose(*before, c).unwrap_or(*before);
                unit.to = to;
            }
            Of::Emoji(_) => unit.to = to,
        }
    }

    fn take_emoji(&mut self, c: char, from: usize, to: usize) {
        let is_joined = self.is_joined;
        if let Some(Unit {
            of: Of::Emoji(emoji),
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
        self.begin(Of::Emoji(c.to_string()), from, to);
    }

    fn take_separator(&mut self, c: char, to: usize) {
        match self.open() {
            Some(Unit {
                of: Of::Emoji(emoji),
                to: end,
                ..
            }) if modifies_emoji(c) => {
                emoji.push(c);
                *end = to;
            }
            Some(Unit {
                of: Of::Emoji(emoji),
                ..
            }) if c == JOINER => {
                emoji.push(c);
                self.is_joined = true;
            }
            // Between letters that keep their marks it only says how they look.
            Some(Unit {
                of: Of::Word(word), ..
            }) if is_joiner(c)
                && word
                    .chars()
                    .next_back()
                    .is_some_and(|c| !drops_marks(c) && !c.is_ascii()) => {}
            Some(Unit {
                of: Of::Unspaced(..),
                ..
            }) if is_joiner(c) => {}
            _ => self.close(),
        }
    }
}

/// Where the marks behind a character end.
fn end_of_marks(text: &str, from: usize) -> usize {
    let marks = text[from..]
        .chars()
        .take_while(|c| !c.is_ascii() && canonical_combining_class(*c) != 0);
    from + marks.map(char::len_utf8).sum::<usize>()
}

fn units(text: &str) -> Vec<Unit> {
    let mut splitter = Splitter::default();
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        let from = at;
        at += c.len_utf8();
        let is_plain = c.is_ascii();
        if is_plain && text.as_bytes().get(at).is_none_or(u8::is_ascii) {
            splitter.take(c.to_ascii_lowercase(), from, at);
            continue;
        }
        // A character is decomposed with its marks, which puts these in their order.
        at = end_of_marks(text, at);
        for part in text[from..at].nfkd() {
            for lower in part.to_lowercase() {
                // Small sigma at the end of a word is the same letter.
                splitter.take(if lower == 'ς' { 'σ' } else { lower }, from, at);
            }
        }
    }
    for unit in &mut splitter.units {
        if let Of::Emoji(emoji) = &mut unit.of {
            // A joiner that joined nothing.
            let length = emoji.trim_end_matches(JOINER).len();
            emoji.truncate(length);
        }
    }
    splitter.units
}

/// The pair that a character makes with the next of its run.
fn pair_at(units: &[Unit], at: usize) -> Option<Word> {
    match (&units[at], units.get(at + 1)?) {
        (
            Unit {
                of: Of::Unspaced(a, _),
                from,
                ..
            },
            Unit {
                of: Of::Unspaced(b, true),
                to,
                ..
            },
        ) => Some(Word {
            text: [*a, *b].iter().collect(),
            from: *from,
            to: *to,
            position: at,
        }),
        _ => None,
    }
}

/// The terms under which a text is found, by their positions.
pub fn terms(text: &str) -> Vec<Word> {
    let units = units(text);
    let mut terms = Vec::with_capacity(2 * units.len());
    for (position, Unit { of, from, to }) in units.iter().enumerate() {
        let mut push = |text: String| {
            terms.push(Word {
                text,
                from: *from,
                to: *to,
                position,
            });
        };
        match of {
            Of::Word(word) => push(word.clone()),
            Of::Unspaced(c, _) => {
                push(c.to_string());
                terms.extend(pair_at(&units, position));
            }
            Of::Emoji(emoji) => {
                push(emoji.clone());
                let mut parts: Vec<&str> = emoji
                    .split(JOINER)
                    .flat_map(|part| [part, without_modifiers(part)])
                    .collect();
                parts.sort_unstable();
                parts.dedup();
                parts
                    .iter()
                    .filter(|part| !part.is_empty() && **part != emoji.as_str())
                    .for_each(|part| push((*part).to_owned()));
            }
        }
    }
    terms
}

fn without_modifiers(emoji: &str) -> &str {
    emoji.trim_end_matches(modifies_emoji)
}

/// The terms that a question asks for, all of them at their positions, and whether the last unit is
/// a word, which a prefix may be of.
pub fn asked(text: &str) -> (Vec<Word>, bool) {
    let units = units(text);
    let mut terms = Vec::with_capacity(units.len());
    for (position, Unit { of, from, to }) in units.iter().enumerate() {
        let text = match of {
            Of::Word(word) => word.clone(),
            Of::Emoji(emoji) => emoji.clone(),
            Of::Unspaced(c, follows) => {
                match pair_at(&units, position) {
                    Some(pair) => terms.push(pair),
                    // The pair before has it.
                    None if *follows => {}
                    None => terms.push(Word {
                        text: c.to_string(),
                        from: *from,
                        to: *to,
                        position,
                    }),
                }
                continue;
            }
        };
        terms.push(Word {
            text,
            from: *from,
            to: *to,
            position,
        });
    }
    (
        terms,
        units
            .last()
            .is_some_and(|unit| matches!(unit.of, Of::Word(_))),
    )
}

/// The terms of a text as tantivy wants them. ASCII text is split in place.
#[derive(Clone, Default)]
pub struct Words {
    token: Token,
}

pub struct WordStream<'a> {
    text: &'a str,
    at: usize,
    /// The terms of a text that is not ASCII.
    split: Option<std::vec::IntoIter<Word>>,
    token: &'a mut Token,
}

impl Tokenizer for Words {
    type TokenStream<'a> = WordStream<'a>;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> WordStream<'a> {
        self.token.reset();
        let split = (!text.is_ascii()).then(|| terms(text).into_iter());
        WordStream {
            text,
            at: 0,
            split,
            token: &mut self.token,
        }
    }
}

impl TokenStream for WordStream<'_> {
    fn advance(&mut self) -> bool {
        self.token.text.clear();
        if let Some(split) = &mut self.split {
            let Some(word) = split.next() else {
                return false;
            };
            self.token.text.push_str(&word.text);
            (self.token.offset_from, self.token.offset_to) = (word.from, word.to);
            self.token.position = word.position;
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

/// A map's entry as one term: found by its whole value, in any case.
pub fn pair(key: &str, value: &str) -> String {
    format!("{key}\u{1f}{}", value.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(text: &str) -> Vec<String> {
        asked(text).0.into_iter().map(|w| w.text).collect()
    }

    fn indexed(text: &str) -> Vec<(usize, String)> {
        terms(text)
            .into_iter()
            .map(|w| (w.position, w.text))
            .collect()
    }

    /// Whether a text that is indexed has the terms of a question, as a phrase.
    fn finds(text: &str, question: &str) -> bool {
        let (there, asked) = (indexed(text), asked(question).0);
        let Some(first) = asked.first() else {
            return false;
        };
        let holds = |start: usize| {
            asked
                .iter()
                .all(|w| there.contains(&(start + w.position - first.position, w.text.clone())))
        };
        there
            .iter()
            .filter(|(_, text)| *text == first.text)
            .any(|(position, _)| holds(*position))
    }

    #[test]
    fn words_are_folded_as_the_contract_says() {
        assert_eq!(
            split("Café – Zürich's №1™"),
            ["cafe", "zurich", "s", "no1tm"]
        );
        assert_eq!(split("snake_case C++ 3D"), ["snake", "case", "c", "3d"]);
        assert_eq!(
            split("ﬁne Straße İSTANBUL ΟΔΟΣ"),
            ["fine", "straße", "istanbul", "οδοσ"]
        );
        assert_eq!(split("東京タワー x"), ["東京", "京タ", "タワ", "ワー", "x"]);
        assert_eq!(split("京 a京b"), ["京", "a", "京", "b"]);
    }

    #[test]
    fn single_characters_of_unspaced_scripts_are_indexed_beside_their_pairs() {
        let owned = |pairs: &[(usize, &str)]| {
            pairs
                .iter()
                .map(|(p, t)| (*p, (*t).to_owned()))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            indexed("東京 a"),
            owned(&[(0, "東"), (0, "東京"), (1, "京"), (2, "a")])
        );
        assert_eq!(indexed("검색"), owned(&[(0, "검"), (0, "검색"), (1, "색")]));
        for (text, question) in [
            ("一只猫在这里", "猫"),
            ("สวัสดีชาวโลก", "สวัสดี"),
            ("สวัสดีชาวโลก", "ชาวโลก"),
            ("ສະບາຍດີ", "ບາຍ"),
            ("សួស្តីពិភពលោក", "ពិភព"),
            ("မင်္ဂလာပါ", "လာပါ"),
            ("佐々木さん", "佐々木"),
            ("검색엔진", "검색"),
            // The same in another form of normalization, or of another width.
            ("가", "\u{1100}\u{1161}"),
            ("が", "か\u{3099}"),
            ("ガンダム", "ｶﾞﾝﾀﾞﾑ"),
        ] {
            assert!(
                finds(text, question) && finds(&format!("x {text} y"), question),
                "{text} has {question}"
            );
        }
        for (text, question) in [
            ("がき", "か"),
            ("ม้า", "มา"),
            ("東 京", "東京"),
            ("東京と京都", "京京"),
            ("हाथ", "हथ"),
            ("कि", "क"),
        ] {
            assert!(!finds(text, question), "{text} has no {question}");
        }
    }

    #[test]
    fn marks_are_dropped_only_where_they_decorate() {
        assert_eq!(
            split("Zoë naïve Ангстрём Άλφα مُحَمَّد שָׁלוֹם"),
            ["zoe", "naive", "ангстрем", "αλφα", "محمد", "שלום"]
        );
        assert_eq!(split("e\u{301}te\u{301}"), ["ete"]);
        assert_eq!(split("काम कम कल"), ["काम", "कम", "कल"]);
        assert_eq!(split("தமிழ் తెలుగు"), ["தமிழ்", "తెలుగు"]);
        // Marks in another order are the same letter; a joiner only says how letters look.
        assert_eq!(split("क\u{94d}\u{93c}"), split("क\u{93c}\u{94d}"));
        assert_eq!(split("क\u{94d}\u{200d}ष"), split("क\u{94d}ष"));
    }

    #[test]
    fn emoji_are_found_whole_and_by_what_they_are_made_of() {
        assert_eq!(
            split("release🎉 ❤️ 🇩🇪🇫🇷 👍🏽 👩‍💻"),
            ["release", "🎉", "❤", "🇩🇪", "🇫🇷", "👍🏽", "👩‍💻"]
        );
        for (text, question, is_found) in [
            ("👍🏽", "👍", true),
            ("👍", "👍🏽", false),
            ("👩🏽‍💻", "💻", true),
            ("👩🏽‍💻", "👩", true),
            ("👩", "👩‍💻", false),
            ("🇩🇪🇫🇷", "🇫🇷", true),
            ("🇩🇪🇫🇷", "🇪🇫", false),
            ("❤️", "❤", true),
            ("🏴󠁧󠁢󠁷󠁬󠁳󠁿", "🏴", true),
            ("🏴󠁧󠁢󠁷󠁬󠁳󠁿", "🏴󠁧󠁢󠁷󠁬󠁳󠁿", true),
            ("🏴", "🏴󠁧󠁢󠁷󠁬󠁳󠁿", false),
            ("party 🎉🎊 time", "🎉🎊", true),
        ] {
            assert_eq!(finds(text, question), is_found, "{text}: {question}");
        }
    }

    /// Finds without an index: both texts as rows of letters that follow each other, words between
    /// separators.
    fn naive(text: &str, question: &str) -> bool {
        // (what it is, whether it goes on with the one before without a gap)
        fn row(text: &str) -> Vec<(String, bool)> {
            let mut row: Vec<(String, bool)> = Vec::new();
            let (mut word, mut is_run) = (String::new(), false);
            for c in text.chars().chain([' ']) {
                if c.is_ascii_alphanumeric() {
                    word.push(c.to_ascii_lowercase());
                    is_run = false;
                    continue;
                }
                if !word.is_empty() {
                    row.push((std::mem::take(&mut word), false));
                }
                match c {
                    '一'..='鿿' | 'ก'..='๎' => {
                        row.push((c.to_string(), is_run));
                        is_run = true;
                    }
                    '🎉' | '🚀' => {
                        row.push((c.to_string(), false));
                        is_run = false;
                    }
                    _ => is_run = false,
                }
            }
            row
        }
        let (text, question) = (row(text), row(question));
        let fits = |at: &[(String, bool)]| {
            let pairs = at.iter().zip(&question).enumerate();
            pairs
                .into_iter()
                .all(|(n, (a, b))| a.0 == b.0 && (n == 0 || !b.1 || a.1))
        };
        !question.is_empty() && text.windows(question.len()).any(fits)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn what_is_found_is_what_a_naive_reader_finds(
            text in "[ab猫犬กา่🎉🚀 -]{0,12}",
            question in "[ab猫犬กา่🎉 ]{1,4}",
        ) {
            prop_assert_eq!(finds(&text, &question), naive(&text, &question));
        }

        #[test]
        fn every_piece_of_an_unspaced_text_is_found(text in "[猫犬鳥กาิ้โ검색かがガ]{1,20}", from in 0usize..20, length in 1usize..6) {
            let letters: Vec<char> = text.chars().collect();
            let piece: String = letters.iter().skip(from % letters.len()).take(length).collect();
            prop_assert!(finds(&text, &piece), "{} in {}", piece, text);
        }

        #[test]
        fn ascii_is_split_alike_both_ways(text in "[ -~]{0,60}") {
            let mut tokenizer = Words::default();
            let mut stream = tokenizer.token_stream(&text);
            let mut fast = Vec::new();
            while stream.advance() {
                let token = stream.token();
                let (from, to) = (token.offset_from, token.offset_to);
                fast.push(Word { text: token.text.clone(), from, to, position: token.position });
            }
            prop_assert_eq!(&fast, &terms(&text));
            prop_assert_eq!(fast, asked(&text).0);
        }

        #[test]
        fn offsets_lie_in_the_text_and_positions_ascend(text in "\\PC{0,40}") {
            let (mut from, mut position) = (0, 0);
            for word in terms(&text) {
                prop_assert!(text.is_char_boundary(word.from) && text.is_char_boundary(word.to));
                prop_assert!(word.from >= from && word.from <= word.to && word.to <= text.len());
                prop_assert!(word.position >= position && !word.text.is_empty());
                (from, position) = (word.from, word.position);
            }
        }

        #[test]
        fn a_text_is_found_by_itself(text in "\\PC{0,40}") {
            prop_assert!(asked(&text).0.is_empty() || finds(&text, &text));
        }
    }
}
