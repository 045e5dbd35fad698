//! Scans the structure of one JSON value, byte by byte, in constant memory: where it ends, and the
//! first byte that cannot be part of it. The contents of strings, numbers and literals are left to
//! the decoder.

/// Depth to which the kind of each container is known; deeper ones close by either bracket. The
/// decoder rejects such depths anyway.
const MAX_KNOWN_DEPTH: u32 = 128;
/// Names that are remembered of an object's other members, and the bytes of each.
const MAX_NAMES: usize = 16;
const MAX_NAME_BYTES: usize = 64;

/// How far a call of [`Scanner::feed`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScanProgress {
    /// The value continues after these bytes.
    More,
    /// The value ended with the last consumed byte.
    End,
    /// The last consumed byte opens the array that is to be unwrapped.
    Unwrapped,
    /// The byte after the consumed ones cannot be part of the value.
    Invalid,
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

/// The member of an object that is to be unwrapped.
#[derive(Debug, Clone)]
struct TargetMember {
    name: String,
    /// The current key of the outermost object, up to the length that the name can have.
    key: Vec<u8>,
    /// Names of other members.
    others: Vec<String>,
}

#[derive(Debug, Clone)]
pub(super) struct Scanner {
    expect: Expect,
    depth: u32,
    /// Whether the container at each depth is an object; the innermost in the lowest bit.
    objects: u128,
    target: Option<TargetMember>,
}

impl Scanner {
    /// Expects a value.
    pub fn new() -> Self {
        Self {
            expect: Expect::Value,
            depth: 0,
            objects: 0,
            target: None,
        }
    }

    /// Expects a value; if that is an object, stops at the array that is its member `name`.
    pub fn unwrapping(name: &str) -> Self {
        let target = TargetMember {
            name: name.to_owned(),
            key: Vec::new(),
            others: Vec::new(),
        };
        Self {
            target: Some(target),
            ..Self::new()
        }
    }

    /// Continues after a member of an object, and stops at another array of that name.
    pub fn inside_object(name: &str) -> Self {
        Self {
            expect: Expect::CommaOrEnd,
            depth: 1,
            objects: 1,
            ..Self::unwrapping(name)
        }
    }

    /// Names of the outermost object's other members.
    pub fn other_members(&self) -> &[String] {
        self.target.as_ref().map_or(&[], |target| &target.others)
    }

    /// Consumes the bytes that belong to the value; how many those are.
    pub fn feed(&mut self, bytes: &[u8]) -> (usize, ScanProgress) {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            if let Expect::String { is_key, is_escaped } = self.expect {
                let (length, is_valid) = self.string(&bytes[at..], is_key, is_escaped);
                at += length;
                if !is_valid {
                    return (at, ScanProgress::Invalid);
                }
            } else if self.expect == Expect::Scalar {
                at += bytes[at..].iter().take_while(|b| is_scalar(**b)).count();
                if at < bytes.len() {
                    self.expect = Expect::CommaOrEnd;
                }
            } else if byte.is_ascii_whitespace() {
                at += 1;
                continue;
            } else {
                match self.token(byte) {
                    ScanProgress::Invalid => return (at, ScanProgress::Invalid),
                    ScanProgress::Unwrapped => return (at + 1, ScanProgress::Unwrapped),
                    _ => at += 1,
                }
            }
            if self.expect == Expect::CommaOrEnd && self.depth == 0 {
                return (at, ScanProgress::End);
            }
        }
        (at, ScanProgress::More)
    }

    /// Inside a string: the bytes consumed, and whether the next one may be part of it.
    fn string(&mut self, bytes: &[u8], is_key: bool, is_escaped: bool) -> (usize, bool) {
        let mut at = usize::from(is_escaped);
        if is_escaped {
            self.extend_key(&bytes[..1], is_key);
        }
        self.expect = Expect::String {
            is_key,
            is_escaped: false,
        };
        let Some(special) = memchr::memchr3(b'"', b'\\', b'\n', &bytes[at..]) else {
            self.extend_key(&bytes[at..], is_key);
            return (bytes.len(), true);
        };
        self.extend_key(&bytes[at..at + special], is_key);
        at += special;
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
                self.extend_key(b"\\", is_key);
                self.expect = Expect::String {
                    is_key,
                    is_escaped: true,
                };
            }
            _ => return (at, false),
        }
        (at + 1, true)
    }

    fn token(&mut self, byte: u8) -> ScanProgress {
        use Expect::{Colon, CommaOrEnd, Key, KeyOrEnd, Scalar, Value, ValueOrEnd};
        let is_object = self.objects & 1 == 1;
        let is_known = self.depth <= MAX_KNOWN_DEPTH;
        self.expect = match (self.expect, byte) {
            (Value | ValueOrEnd, b'{') => {
                self.open(true);
                KeyOrEnd
            }
            (Value | ValueOrEnd, b'[') => {
                let is_unwrapped = self.is_at_target();
                self.open(false);
                if is_unwrapped {
                    return ScanProgress::Unwrapped;
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
            _ => return ScanProgress::Invalid,
        };
        ScanProgress::More
    }

    fn open(&mut self, is_object: bool) {
        self.depth = self.depth.saturating_add(1);
        if self.depth <= MAX_KNOWN_DEPTH {
            self.objects = self.objects << 1 | u128::from(is_object);
        }
    }

    fn close(&mut self) -> Expect {
        if self.depth <= MAX_KNOWN_DEPTH {
            self.objects >>= 1;
        }
        self.depth = self.depth.saturating_sub(1);
        Expect::CommaOrEnd
    }

    fn begin_key(&mut self) {
        if let (1, Some(target)) = (self.depth, &mut self.target) {
            target.key.clear();
        }
    }

    /// Remembers a key of the outermost object, up to the length that the name has if every
    /// character of it is escaped.
    fn extend_key(&mut self, bytes: &[u8], is_key: bool) {
        if let (1, true, Some(target)) = (self.depth, is_key, &mut self.target) {
            let room = (target.name.len() * 6 + MAX_NAME_BYTES).saturating_sub(target.key.len());
            target
                .key
                .extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    }

    fn end_key(&mut self) {
        if let (1, Some(target)) = (self.depth, &mut self.target)
            && !target.has_matching_key()
            && target.others.len() < MAX_NAMES
        {
            let key = &target.key[..target.key.len().min(MAX_NAME_BYTES)];
            let name = String::from_utf8_lossy(key).into_owned();
            if !target.others.contains(&name) {
                target.others.push(name);
            }
        }
    }

    fn is_at_target(&self) -> bool {
        let target = self.target.as_ref();
        self.depth == 1
            && self.objects & 1 == 1
            && target.is_some_and(TargetMember::has_matching_key)
    }
}

impl TargetMember {
    /// Whether the key read last is the name.
    fn has_matching_key(&self) -> bool {
        let quoted = [b"\"", &self.key[..], b"\""].concat();
        self.key == self.name.as_bytes()
            || serde_json::from_slice::<String>(&quoted).is_ok_and(|key| key == self.name)
    }
}

/// Whether a byte can be part of a number or literal, valid or not.
fn is_scalar(byte: u8) -> bool {
    byte > b' ' && !matches!(byte, b',' | b':' | b'"' | b'[' | b']' | b'{' | b'}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(text: &str) -> (usize, ScanProgress) {
        Scanner::new().feed(text.as_bytes())
    }

    #[test]
    fn a_value_ends_where_its_structure_does() {
        assert_eq!(scan(r#"{"a":{"b":[1,{}]}}{"c"#), (18, ScanProgress::End));
        assert_eq!(scan(r#""a\"}" :"#), (6, ScanProgress::End));
        assert_eq!(scan("[] "), (2, ScanProgress::End));
        assert_eq!(scan("12 "), (2, ScanProgress::End));
        assert_eq!(scan("12"), (2, ScanProgress::More));
        assert_eq!(scan(r#"{"a":1,"#), (7, ScanProgress::More));
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
            assert_eq!(scan(text), (at, ScanProgress::Invalid), "{text}");
        }
    }

    #[test]
    fn values_deeper_than_the_known_depth_still_end() {
        let text = format!(
            "{}{}",
            "[{\"a\":1,\"b\":".repeat(200) + "1",
            "},2]".repeat(200)
        );
        assert_eq!(scan(&text), (text.len(), ScanProgress::End));
    }

    #[test]
    fn a_member_of_the_outermost_object_is_unwrapped() {
        let text = r#"{"x":{"Records":[1]},"Rec\u006frds" : [{}]}"#;
        let mut scanner = Scanner::unwrapping("Records");
        assert_eq!(scanner.feed(text.as_bytes()), (39, ScanProgress::Unwrapped));
        assert_eq!(scanner.other_members(), ["x"]);
        assert_eq!(
            Scanner::unwrapping("a").feed(br#"{"a":{},"b":[]}"#),
            (15, ScanProgress::End)
        );
        assert_eq!(
            Scanner::unwrapping("a").feed(br#"[{"a":[]}]"#),
            (10, ScanProgress::End)
        );
        assert_eq!(
            Scanner::inside_object("a").feed(br#","b":[1]} "#),
            (9, ScanProgress::End)
        );
    }
}
