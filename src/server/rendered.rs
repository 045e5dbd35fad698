//! Responses that do not depend on the client. They are rendered at most once in an interval, so
//! that pipelined requests do not keep the server's worker threads busy.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;

/// A text that may be a little old.
pub struct Rendered {
    max_age: Duration,
    last: Mutex<Option<(Instant, Bytes)>>,
}

impl Rendered {
    pub fn new(max_age: Duration) -> Self {
        Self {
            max_age,
            last: Mutex::default(),
        }
    }

    /// The last text, or a new one where that is too old at `now`. Concurrent callers wait for one
    /// rendering and share it.
    pub fn get(&self, now: Instant, render: impl FnOnce() -> String) -> Bytes {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((at, text)) if now.saturating_duration_since(*at) < self.max_age => text.clone(),
            _ => {
                let text = Bytes::from(render());
                *last = Some((now, text.clone()));
                text
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_rendered_again_only_when_it_is_too_old() {
        let rendered = Rendered::new(Duration::from_millis(100));
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let text = |now, text: &str| rendered.get(now, || text.into());
        assert_eq!(text(at(0), "first"), "first");
        assert_eq!(text(at(99), "second"), "first");
        assert_eq!(text(at(100), "third"), "third");
        // A clock that another thread read earlier.
        assert_eq!(text(at(50), "fourth"), "third");
    }
}
