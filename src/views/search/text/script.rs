//! Classes of characters: how the text of a script is split, and whether its marks only decorate a
//! letter.

/// How a character takes part in the terms of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CharClass {
    /// Part of a word between separators.
    Word,
    /// Of a script that is written without spaces: indexed alone and in pairs.
    Unspaced,
    /// A mark after its base, whose script decides whether it is dropped.
    Mark,
    Emoji,
    /// Neither letter nor digit.
    Separator,
}

/// Joins emoji, and letters of some scripts.
pub const JOINER: char = '\u{200d}';
const NON_JOINER: char = '\u{200c}';

/// The class of a character that is decomposed and in lower case.
pub fn classify(c: char) -> CharClass {
    if is_unspaced(c) && (c.is_alphabetic() || is_mark(c)) {
        CharClass::Unspaced
    } else if is_mark(c) {
        CharClass::Mark
    } else if c.is_alphanumeric() {
        CharClass::Word
    } else if is_emoji(c) {
        CharClass::Emoji
    } else {
        CharClass::Separator
    }
}

/// Whether it combines with the character before it.
pub fn is_mark(c: char) -> bool {
    unicode_normalization::char::is_combining_mark(c)
}

/// Whether a mark on this letter only decorates it: in Latin, Greek, Cyrillic, Arabic and Hebrew.
/// Elsewhere it is part of the letter, a vowel or a tone.
pub fn drops_marks(base: char) -> bool {
    matches!(base as u32,
        // Latin
        0x41..=0x5a | 0x61..=0x7a | 0xaa | 0xba | 0xc0..=0x2af | 0x1d00..=0x1dbf | 0x1e00..=0x1eff | 0x2c60..=0x2c7f
        | 0xa720..=0xa7ff | 0xab30..=0xab6f
        // Greek
        | 0x370..=0x3ff | 0x1f00..=0x1fff
        // Cyrillic
        | 0x400..=0x52f | 0x1c80..=0x1c8f | 0xa640..=0xa69f
        // Hebrew, Arabic
        | 0x590..=0x6ff | 0x750..=0x77f | 0x870..=0x8ff | 0xfb1d..=0xfdff | 0xfe70..=0xfefe)
}

/// Scripts whose words are not separated, and Hangul, whose words are, but carry their particles
/// with them.
fn is_unspaced(c: char) -> bool {
    matches!(c as u32,
        // Thai, Lao, Myanmar with its extensions, Khmer, Tai Le, New Tai Lue, Tai Tham, Tai Viet
        0xe00..=0xe7f | 0xe80..=0xeff | 0x1000..=0x109f | 0xa9e0..=0xa9ff | 0xaa60..=0xaa7f | 0x1780..=0x17ff
        | 0x1950..=0x19df | 0x1a20..=0x1aaf | 0xaa80..=0xaadf
        // Iteration mark, zero and numerals of Han; Hiragana, Katakana, Bopomofo
        | 0x3005..=0x3007 | 0x3021..=0x3029 | 0x3038..=0x303c | 0x3040..=0x3098 | 0x309b..=0x312f | 0x31a0..=0x31bf
        | 0x31f0..=0x31ff | 0x1aff0..=0x1b16f
        // Han
        | 0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xf900..=0xfaff | 0x20000..=0x3ffff
        // Hangul
        | 0x1100..=0x11ff | 0x3130..=0x318f | 0xa960..=0xa97f | 0xac00..=0xd7ff)
}

fn is_emoji(c: char) -> bool {
    matches!(c as u32,
        0x231a..=0x231b | 0x2328 | 0x23cf | 0x23e9..=0x23fa | 0x25aa..=0x25ab | 0x25b6 | 0x25c0 | 0x25fb..=0x25fe
        | 0x2600..=0x27bf | 0x2934..=0x2935 | 0x2b05..=0x2b07 | 0x2b1b..=0x2b1c | 0x2b50 | 0x2b55 | 0x1f000..=0x1faff)
}

/// Half of a flag.
pub fn is_regional(c: char) -> bool {
    matches!(c as u32, 0x1f1e6..=0x1f1ff)
}

/// A skin tone, or a letter of a region's flag: part of the emoji before it.
pub fn modifies_emoji(c: char) -> bool {
    matches!(c as u32, 0x1f3fb..=0x1f3ff | 0xe0020..=0xe007f)
}

/// Changes only the look of the character before it: its variant, or a key or circle around it.
pub fn is_variation(c: char) -> bool {
    matches!(c as u32, 0x20d0..=0x20ff | 0xfe00..=0xfe0f | 0xe0100..=0xe01ef)
}

/// Controls how letters are joined, and is not a letter.
pub fn is_joiner(c: char) -> bool {
    c == JOINER || c == NON_JOINER
}
