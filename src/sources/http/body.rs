//! The body of an answer that does not end: server-sent events or JSON, as its type and its first
//! bytes say.

use std::borrow::Cow;

use super::events::EventParser;
use crate::sources::lines::chunks::ChunkSplitter;
use crate::sources::lines::padding;

/// Fields of server-sent events.
const FIELDS: [&[u8]; 4] = [b"data", b"event", b"id", b"retry"];

const BOM: &[u8] = &[0xef, 0xbb, 0xbf];

/// How a body is divided into messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Server-sent events.
    Events,
    /// JSON: NDJSON, values one after the other, an array.
    Values,
}

/// What was received of a body.
pub(super) enum Body {
    /// Too little to know its layout; without the padding before the first byte.
    Undecided {
        is_event_stream: bool,
        head: Vec<u8>,
    },
    Events(EventParser),
    Values(ChunkSplitter),
}

impl Body {
    /// `content_type` is the answer's.
    pub fn new(content_type: Option<&str>) -> Self {
        Self::Undecided {
            is_event_stream: content_type.map(media_type).as_deref() == Some("text/event-stream"),
            head: Vec::new(),
        }
    }

    /// Takes a chunk into account as long as the layout is not known. Returns what the body in its
    /// layout is to be fed: the chunk, or all that was held.
    pub fn decide<'a>(&mut self, chunk: &'a [u8], max_bytes: usize) -> Option<Cow<'a, [u8]>> {
        let Self::Undecided {
            is_event_stream,
            head,
        } = self
        else {
            return Some(chunk.into());
        };
        head.extend_from_slice(chunk);
        head.drain(..padding(head));
        let layout = layout(*is_event_stream, head)?;
        let head = std::mem::take(head);
        *self = match layout {
            Layout::Events => Self::Events(EventParser::new(max_bytes)),
            Layout::Values => Self::Values(ChunkSplitter::new(max_bytes)),
        };
        Some(head.into())
    }
}

/// A content type without its parameters, in lower case.
pub(super) fn media_type(content_type: &str) -> String {
    let media_type = content_type.split(';').next().unwrap_or_default();
    media_type.trim().to_ascii_lowercase()
}

/// The layout of a body that begins with `head`, which has no padding before it; none if that is
/// too little to decide it. JSON is recognized whatever the type says, and events also where the
/// type says nothing of them.
fn layout(is_event_stream: bool, head: &[u8]) -> Option<Layout> {
    match head.first()? {
        _ if BOM.starts_with(head) => return None,
        b'{' | b'[' | b'"' => return Some(Layout::Values),
        b':' => return Some(Layout::Events),
        _ if is_event_stream => return Some(Layout::Events),
        _ => {}
    }
    let ends_after = |field: &[u8]| match head.strip_prefix(field) {
        Some(rest) => rest
            .first()
            .map(|byte| matches!(byte, b':' | b'\n' | b'\r')),
        None if field.starts_with(head) => None,
        None => Some(false),
    };
    let ends: Vec<Option<bool>> = FIELDS.into_iter().map(ends_after).collect();
    if ends.contains(&Some(true)) {
        Some(Layout::Events)
    } else if ends.contains(&None) {
        None
    } else {
        Some(Layout::Values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_and_first_bytes_decide() {
        for (is_event_stream, head, expected) in [
            (false, "", None),
            (true, "", None),
            (false, "{\"a\":1}", Some(Layout::Values)),
            (true, "{\"a\":1}", Some(Layout::Values)),
            (true, "x: 1", Some(Layout::Events)),
            (false, ":ok\n", Some(Layout::Events)),
            (false, "da", None),
            (false, "data", None),
            (false, "data:", Some(Layout::Events)),
            (false, "id\n", Some(Layout::Events)),
            (false, "identity", Some(Layout::Values)),
            (false, "hello", Some(Layout::Values)),
        ] {
            assert_eq!(layout(is_event_stream, head.as_bytes()), expected, "{head}");
        }
    }

    #[test]
    fn what_was_held_is_fed_once_the_layout_is_known() {
        let mut body = Body::new(Some("text/plain; charset=utf-8"));
        assert_eq!(body.decide(b"\n\xef\xbb", 100), None);
        assert_eq!(body.decide(b"\xbf\n da", 100), None);
        assert_eq!(body.decide(b"ta: 1\n", 100), Some(b"data: 1\n".into()));
        assert!(matches!(body, Body::Events(_)));
        assert_eq!(body.decide(b"\n", 100), Some(b"\n".into()));
        let mut events = Body::new(Some("Text/Event-Stream;charset=utf-8"));
        assert!(events.decide(b"x", 100).is_some());
        assert!(matches!(events, Body::Events(_)));
    }
}
