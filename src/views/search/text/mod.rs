//! How text becomes terms: NFKD, lower case, split at what is neither letter, digit nor emoji; no
//! stop words, no stems. Marks are dropped where they only decorate a letter (Latin, Greek,
//! Cyrillic, Arabic, Hebrew) and preserved where they form another one.
//!
//! A text is a sequence of *units*: a word, an emoji, or one character of a script that is written
//! without spaces. The index of a unit is the position of its terms, so that phrases match across
//! all of them. At the position of each unit these terms are indexed:
//!
//! - a word: the word
//! - a character of an unspaced script: the character, and its pair with the next of its run
//! - an emoji: its whole sequence, and each emoji in it
//!
//! A query needs fewer: of a run of characters its pairs (of a single one the character), of an
//! emoji its whole sequence. Example: `東京都 a` is indexed as 東, 東京 (0), 京, 京都 (1), 都 (2),
//! a (3); the query `京都` is the term 京都 alone.

mod script;
mod tokenizer;
mod units;

use script::{JOINER, modifies_emoji};
use units::{Unit, UnitKind, units};

pub use tokenizer::TextTokenizer;

/// Name of the tokenizer in an index; changed rules need another one.
pub const TOKENIZER_NAME: &str = "weir_2";
/// What the names of all versions of the rules begin with.
pub const TOKENIZER_PREFIX: &str = "weir_";

/// A term with its byte range in the text and the position of its unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextTerm {
    pub text: String,
    pub from: usize,
    pub to: usize,
    pub position: usize,
}

/// The pair of a character and the next of its run.
fn pair_at(units: &[Unit], at: usize) -> Option<TextTerm> {
    match (&units[at], units.get(at + 1)?) {
        (
            Unit {
                kind: UnitKind::Unspaced(a, _),
                from,
                ..
            },
            Unit {
                kind: UnitKind::Unspaced(b, true),
                to,
                ..
            },
        ) => Some(TextTerm {
            text: [*a, *b].iter().collect(),
            from: *from,
            to: *to,
            position: at,
        }),
        _ => None,
    }
}

/// The terms under which a text is indexed, in the order of their positions.
pub fn index_terms(text: &str) -> Vec<TextTerm> {
    let units = units(text);
    let mut terms = Vec::with_capacity(2 * units.len());
    for (position, Unit { kind, from, to }) in units.iter().enumerate() {
        let mut push = |text: String| {
            terms.push(TextTerm {
                text,
                from: *from,
                to: *to,
                position,
            });
        };
        match kind {
            UnitKind::Word(word) => push(word.clone()),
            UnitKind::Unspaced(c, _) => {
                push(c.to_string());
                terms.extend(pair_at(&units, position));
            }
            UnitKind::Emoji(emoji) => {
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

/// The terms that a text must contain to match a query, with their relative positions, and whether
/// the last unit is a word, so that it can be a prefix.
pub fn query_terms(text: &str) -> (Vec<TextTerm>, bool) {
    let units = units(text);
    let mut terms = Vec::with_capacity(units.len());
    for (position, Unit { kind, from, to }) in units.iter().enumerate() {
        let text = match kind {
            UnitKind::Word(word) => word.clone(),
            UnitKind::Emoji(emoji) => emoji.clone(),
            UnitKind::Unspaced(c, follows) => {
                match pair_at(&units, position) {
                    Some(pair) => terms.push(pair),
                    // The pair before contains it.
                    None if *follows => {}
                    None => terms.push(TextTerm {
                        text: c.to_string(),
                        from: *from,
                        to: *to,
                        position,
                    }),
                }
                continue;
            }
        };
        terms.push(TextTerm {
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
            .is_some_and(|unit| matches!(unit.kind, UnitKind::Word(_))),
    )
}

/// A map's entry as one term: it matches a whole value, in any case.
pub fn pair_term(key: &str, value: &str) -> String {
    format!("{key}\u{1f}{}", value.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tantivy::tokenizer::{TokenStream, Tokenizer};

    fn split(text: &str) -> Vec<String> {
        query_terms(text).0.into_iter().map(|w| w.text).collect()
    }

    fn indexed(text: &str) -> Vec<(usize, String)> {
        index_terms(text)
            .into_iter()
            .map(|w| (w.position, w.text))
            .collect()
    }

    /// Whether an indexed text has the terms of a query, as a phrase.
    fn matches(text: &str, query: &str) -> bool {
        let (indexed, wanted) = (indexed(text), query_terms(query).0);
        let Some(first) = wanted.first() else {
            return false;
        };
        let holds = |start: usize| {
            wanted
                .iter()
                .all(|w| indexed.contains(&(start + w.position - first.position, w.text.clone())))
        };
        indexed
            .iter()
            .filter(|(_, text)| *text == first.text)
            .any(|(position, _)| holds(*position))
    }

    #[test]
    fn words_are_folded_and_split() {
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
    fn single_characters_of_unspaced_scripts_are_indexed_with_their_pairs() {
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
        for (text, query) in [
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
                matches(text, query) && matches(&format!("x {text} y"), query),
                "{text} has {query}"
            );
        }
        for (text, query) in [
            ("がき", "か"),
            ("ม้า", "มา"),
            ("東 京", "東京"),
            ("東京と京都", "京京"),
            ("हाथ", "हथ"),
            ("कि", "क"),
        ] {
            assert!(!matches(text, query), "{text} does not have {query}");
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
        // Marks in another order are the same letter; a joiner only changes their shape.
        assert_eq!(split("क\u{94d}\u{93c}"), split("क\u{93c}\u{94d}"));
        assert_eq!(split("क\u{94d}\u{200d}ष"), split("क\u{94d}ष"));
    }

    #[test]
    fn emoji_match_as_a_whole_and_by_their_parts() {
        assert_eq!(
            split("release🎉 ❤️ 🇩🇪🇫🇷 👍🏽 👩‍💻"),
            ["release", "🎉", "❤", "🇩🇪", "🇫🇷", "👍🏽", "👩‍💻"]
        );
        for (text, query, is_found) in [
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
            assert_eq!(matches(text, query), is_found, "{text}: {query}");
        }
    }

    /// Matches without an index: both texts as sequences of words and letters.
    fn naive(text: &str, query: &str) -> bool {
        // (word or letter, whether it follows the one before without a gap)
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
        let (text, query) = (row(text), row(query));
        let fits = |at: &[(String, bool)]| {
            let pairs = at.iter().zip(&query).enumerate();
            pairs
                .into_iter()
                .all(|(n, (a, b))| a.0 == b.0 && (n == 0 || !b.1 || a.1))
        };
        !query.is_empty() && text.windows(query.len()).any(fits)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn matches_are_those_of_a_naive_reader(
            text in "[ab猫犬กา่🎉🚀 -]{0,12}",
            query in "[ab猫犬กา่🎉 ]{1,4}",
        ) {
            prop_assert_eq!(matches(&text, &query), naive(&text, &query));
        }

        #[test]
        fn every_piece_of_an_unspaced_text_is_found(text in "[猫犬鳥กาิ้โ검색かがガ]{1,20}", from in 0usize..20, length in 1usize..6) {
            let letters: Vec<char> = text.chars().collect();
            let piece: String = letters.iter().skip(from % letters.len()).take(length).collect();
            prop_assert!(matches(&text, &piece), "{} in {}", piece, text);
        }

        #[test]
        fn ascii_is_split_alike_both_ways(text in "[ -~]{0,60}") {
            let mut tokenizer = TextTokenizer::default();
            let mut stream = tokenizer.token_stream(&text);
            let mut fast = Vec::new();
            while stream.advance() {
                let token = stream.token();
                let (from, to) = (token.offset_from, token.offset_to);
                fast.push(TextTerm { text: token.text.clone(), from, to, position: token.position });
            }
            prop_assert_eq!(&fast, &index_terms(&text));
            prop_assert_eq!(fast, query_terms(&text).0);
        }

        #[test]
        fn offsets_are_in_the_text_and_positions_ascend(text in "\\PC{0,40}") {
            let (mut from, mut position) = (0, 0);
            for word in index_terms(&text) {
                prop_assert!(text.is_char_boundary(word.from) && text.is_char_boundary(word.to));
                prop_assert!(word.from >= from && word.from <= word.to && word.to <= text.len());
                prop_assert!(word.position >= position && !word.text.is_empty());
                (from, position) = (word.from, word.position);
            }
        }

        #[test]
        fn a_text_is_found_by_itself(text in "\\PC{0,40}") {
            prop_assert!(query_terms(&text).0.is_empty() || matches(&text, &text));
        }
    }
}
