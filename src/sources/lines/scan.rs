//! Follows the structure of one JSON value, byte by byte, in constant memory: where it ends, and
//! the first byte that cannot be part of it. What strings, numbers and literals hold is left to the
//! decoder.

/// Containers whose kind is known; deeper ones close by either bracket. The decoder refuses such
/// depths anyway.
const KNOWN_DEPTH: u32 = 128;
/// Names that are noted of an object's members, and the bytes of each.
const NAMES: usize = 16;
const NAME_BYTES: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// The value goes on behind these bytes.
    More,
    /// The value has ended with the last byte taken.
    End,
    /// The array that is the member wanted has begun with the last byte taken.
    Unwrapped,
    /// The byte after those taken cannot be part of the value.
    Wrong,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    Colon,
    CommaOrEnd,
    String { is_key: bool, is_escaped: bool },
    Scalar,
}

/// The member of an object whose elements are wanted.
#[derive(Debug, Clone)]
struct Wanted {
    name: String,
    /// The key being read, or read last, of a member of the outermost object; as long as it can be
    /// the name.
    key: Vec<u8>,
    /// Names of members beside it.
    others: Vec<String>,
}

#[derive(Debug, Clone)]
pub(super) struct Scanner {
    expect: Expect,
    depth: u32,
    /// Whether the container at each depth is an object; the innermost in the lowest bit.
    objects: u128,
    wanted: Option<Wanted>,
}

impl Scanner {
    /// Before a value.
    pub fn new() -> Self {
        Self {
            expect: Expect::Value,
            depth: 0,
            objects: 0,
            wanted: None,
        }
    }

    /// Before a value; if that is an object, the array that is its member `name` is looked for.
    pub fn unwrapping(name: &str) -> Self {
        let wanted = Wanted {
            name: name.to_owned(),
            key: Vec::new(),
            others: Vec::new(),
        };
        Self {
            wanted: Some(wanted),
            ..Self::new()
        }
    }

    /// Behind a member of an object, looking for another of that name.
    pub fn inside_object(name: &str) -> Self {
        Self {
            expect: Expect::CommaOrEnd,
            depth: 1,
            objects: 1,
            ..Self::unwrapping(name)
        }
    }

    /// Names of the outermost object's members beside the one wanted.
    pub fn others(&self) -> &[String] {
        self.wanted.as_ref().map_or(&[], |wanted| &wanted.others)
    }

    /// Follows `bytes`; how many of them belong to the value so far.
    pub fn feed(&mut self, bytes: &[u8]) -> (usize, Progress) {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            if let Expect::String { is_key, is_escaped } = self.expect {
                let (taken, is_right) = self.string(&bytes[at..], is_key, is_escaped);
                at += taken;
                if !is_right {
                    return (at, Progress::Wrong);
                }
            } else if self.expect == Expect::Scalar {
                let taken = bytes[at..].iter().take_while(|b| is_scalar(**b)).count();
                at += taken;
                if at < bytes.len() {
                    self.expect = Expect::CommaOrEnd;
                }
            } else if byte.is_ascii_whitespace() {
                at += 1;
                continue;
            } else {
                match self.token(byte) {
                    Progress::Wrong => return (at, Progress::Wrong),
                    Progress::Unwrapped => return (at + 1, Progress::Unwrapped),
                    _ => at += 1,
                }
            }
            if self.expect == Expect::CommaOrEnd && self.depth == 0 {
                return (at, Progress::End);
            }
        }
        (at, Progress::More)
    }

    /// Inside a string: the bytes taken, and whether it can go on.
    fn string(&mut self, bytes: &[u8], is_key: bool, is_escaped: bool) -> (usize, bool) {
        let mut at = usize::from(is_escaped);
        if is_escaped {
            self.note_key(&bytes[..1], is_key);
        }
        self.expect = Expect::String {
            is_key,
            is_escaped: false,
        };
        let Some(found) = memchr::memchr3(b'"', b'\\', b'\n', &bytes[at..]) else {
            self.note_key(&bytes[at..], is_key);
            return (bytes.len(), true);
        };
        self.note_key(&bytes[at..at + found], is_key);
        at += found;
        match bytes[at] {
            b'"' => {
                if is_key {
                    self.end_key();
                }
                self.expect = if is_key {
                    Expect::Colon
                } else {
                    Expect::CommaOrEnd
                };
            }
            b'\\' => {
                self.note_key(b"\\", is_key);
                self.expect = Expect::String {
                    is_key,
                    is_escaped: true,
                };
            }
            _ => return (at, false),
        }
        (at + 1, true)
    }

    fn token(&mut self, byte: u8) -> Progress {
        use Expect::{Colon, CommaOrEnd, Key, KeyOrEnd, Scalar, Value, ValueOrEnd};
        let is_object = self.objects & 1 == 1;
        let is_known = self.depth <= KNOWN_DEPTH;
        self.expect = match (self.expect, byte) {
            (Value | ValueOrEnd, b'{') => {
                self.open(true);
                KeyOrEnd
            }
            (Value | ValueOrEnd, b'[') => {
                let is_unwrapped = self.is_wanted();
                self.open(false);
                if is_unwrapped {
                    return Progress::Unwrapped;
                }
                ValueOrEnd
            }
            (Value | ValueOrEnd, b'"') => Expect::String {
                is_key: false,
                is_escaped: false,
            },
            (Value | ValueOrEnd, byte) if is_scalar(byte) => Scalar,
            (Key | KeyOrEnd, b'"') => {
                self.begin_key();
                Expect::String {
                    is_key: true,
                    is_escaped: false,
                }
            }
            (Colon, b':') => Value,
            (CommaOrEnd, b',') if is_object && is_known => Key,
            (CommaOrEnd, b',') => Value,
            (CommaOrEnd, b':') if !is_known => Value,
            (CommaOrEnd | KeyOrEnd, b'}') if is_object || !is_known => self.close(),
            (CommaOrEnd | ValueOrEnd, b']') if !is_object || !is_known => self.close(),
            _ => return Progress::Wrong,
        };
        Progress::More
    }

    fn open(&mut self, is_object: bool) {
        self.depth = self.depth.saturating_add(1);
        if self.depth <= KNOWN_DEPTH {
            self.objects = self.objects << 1 | u128::from(is_object);
        }
    }

    fn close(&mut self) -> Expect {
        if self.depth <= KNOWN_DEPTH {
            self.objects >>= 1;
        }
        self.depth = self.depth.saturating_sub(1);
        Expect::CommaOrEnd
    }

    fn begin_key(&mut self) {
        if let (1, Some(wanted)) = (self.depth, &mut self.wanted) {
            wanted.key.clear();
        }
    }

    /// Keeps a key of the outermost object, as far as it can be the name: every character of it may
    /// be escaped.
    fn note_key(&mut self, bytes: &[u8], is_key: bool) {
        if let (1, true, Some(wanted)) = (self.depth, is_key, &mut self.wanted) {
            let room = (wanted.name.len() * 6 + NAME_BYTES).saturating_sub(wanted.key.len());
            wanted
                .key
                .extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    }

    fn end_key(&mut self) {
        if let (1, Some(wanted)) = (self.depth, &mut self.wanted)
            && !wanted.is_read()
            && wanted.others.len() < NAMES
        {
            let name = String::from_utf8_lossy(&wanted.key[..wanted.key.len().min(NAME_BYTES)])
                .into_owned();
            if !wanted.others.contains(&name) {
                wanted.others.push(name);
            }
        }
    }

    fn is_wanted(&self) -> bool {
        self.depth == 1
            && self.objects & 1 == 1
            && self.wanted.as_ref().is_some_and(Wanted::is_read)
    }
}

impl Wanted {
    /// Whether the key read last is the name.
    fn is_read(&self) -> bool {
        let quoted = [b"\"", &self.key[..], b"\""].concat();
        self.key == self.name.as_bytes()
            || serde_json::from_slice::<String>(&quoted).is_ok_and(|key| key == self.name)
    }
}

/// Whether a byte can be part of a number or literal, right or misspelt.
fn is_scalar(byte: u8) -> bool {
    byte > b' ' && !matches!(byte, b',' | b':' | b'"' | b'[' | b']' | b'{' | b'}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(text: &str) -> (usize, Progress) {
        Scanner::new().feed(text.as_bytes())
    }

    #[test]
    fn a_value_ends_where_its_structure_does() {
        assert_eq!(scan(r#"{"a":{"b":[1,{}]}}{"c"#), (18, Progress::End));
        assert_eq!(scan(r#""a\"}" :"#), (6, Progress::End));
        assert_eq!(scan("[] "), (2, Progress::End));
        assert_eq!(scan("12 "), (2, Progress::End));
        assert_eq!(scan("12"), (2, Progress::More));
        assert_eq!(scan(r#"{"a":1,"#), (7, Progress::More));
    }

    #[test]
    fn the_first_byte_that_cannot_be_part_of_it_is_found() {
        for (text, at) in [
            (r#"{"a":1{"b":2}"#, 6),
            (r#"{"a":1,{"#, 7),
            (r#"{"a"1"#, 4),
            (r#"{"a":]"#, 5),
            (r#"[1}"#, 2),
            (r#"{1:2}"#, 1),
            ("{\"a\":\"x\n\"}", 7),
            ("{\"a\":1\0}", 6),
            ("]", 0),
        ] {
            assert_eq!(scan(text), (at, Progress::Wrong), "{text}");
        }
    }

    #[test]
    fn depths_beyond_those_known_still_end() {
        let text = format!(
            "{}{}",
            "[{\"a\":1,\"b\":".repeat(200) + "1",
            "},2]".repeat(200)
        );
        assert_eq!(scan(&text), (text.len(), Progress::End));
    }

    #[test]
    fn a_member_of_the_outermost_object_is_unwrapped() {
        let text = r#"{"x":{"Records":[1]},"Rec\u006frds" : [{}]}"#;
        let mut scanner = Scanner::unwrapping("Records");
        assert_eq!(scanner.feed(text.as_bytes()), (39, Progress::Unwrapped));
        assert_eq!(scanner.others(), ["x"]);
        assert_eq!(
            Scanner::unwrapping("a").feed(br#"{"a":{},"b":[]}"#),
            (15, Progress::End)
        );
        assert_eq!(
            Scanner::unwrapping("a").feed(br#"[{"a":[]}]"#),
            (10, Progress::End)
        );
        assert_eq!(
            Scanner::inside_object("a").feed(br#","b":[1]} "#),
            (9, Progress::End)
        );
    }
}
