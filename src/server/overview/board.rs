//! The latest message of each panel, shared by all clients of a stream's overview. A client that is
//! slow skips messages, it never holds more than one of each panel back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::query::overview::PanelData;
use crate::server::error::ApiError;

/// How often a panel whose data does not change is sent all the same, with the time of its latest
/// computation.
const REPEAT_INTERVAL: Duration = Duration::from_secs(2);

/// A panel, and of one that depends on it the minutes that clients chose.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PanelKey {
    pub id: String,
    pub minutes: Option<u32>,
}

/// A panel as it was computed, ready to be sent.
#[derive(Debug)]
pub struct Message {
    version: u64,
    published: Instant,
    /// The data or the error, by which a change is recognized.
    content: String,
    /// The message as JSON, without the time at which it is sent and the closing brace.
    text: String,
}

impl Message {
    /// The message as JSON, sent at this time.
    pub fn sent_at(&self, now: &str) -> String {
        format!("{},\"now\":\"{now}\"}}", self.text)
    }
}

/// What is known of each panel, and who listens.
pub struct Board {
    messages: Mutex<Messages>,
    /// The newest version, for clients that wait.
    newest: watch::Sender<u64>,
    /// Clients by the minutes that they chose.
    listeners: Mutex<BTreeMap<u32, usize>>,
    /// Ends the computation; cancelled once it has ended.
    pub end: CancellationToken,
}

#[derive(Default)]
struct Messages {
    version: u64,
    panels: BTreeMap<PanelKey, Arc<Message>>,
}

impl Board {
    /// Of a computation that this token ends.
    pub fn new(end: CancellationToken) -> Self {
        Self {
            messages: Mutex::default(),
            newest: watch::Sender::new(0),
            listeners: Mutex::default(),
            end,
        }
    }

    fn messages(&self) -> MutexGuard<'_, Messages> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listeners(&self) -> MutexGuard<'_, BTreeMap<u32, usize>> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a client that chose these minutes.
    pub fn join(&self, minutes: u32) {
        *self.listeners().entry(minutes).or_default() += 1;
    }

    /// Removes a client; true if it was the last one.
    pub fn leave(&self, minutes: u32) -> bool {
        let mut listeners = self.listeners();
        if let Some(count) = listeners.get_mut(&minutes) {
            *count -= 1;
            if *count == 0 {
                listeners.remove(&minutes);
            }
        }
        listeners.is_empty()
    }

    /// The minutes that clients chose.
    pub fn minutes(&self) -> Vec<u32> {
        self.listeners().keys().copied().collect()
    }

    /// Sets what a panel shows, computed at the time `at`. Clients get it if it differs from what
    /// they have, or if that is old.
    pub fn publish(&self, key: PanelKey, at: &str, result: Result<PanelData, ApiError>) {
        let now = Instant::now();
        let (content, head) = match result {
            Ok(PanelData { as_of, data }) => {
                let content = data.to_string();
                let as_of = as_of.map(|as_of| format!("\"as_of\":{},", json!(as_of)));
                (content, as_of.unwrap_or_default() + "\"data\":")
            }
            Err(error) => (error.to_json().to_string(), "\"error\":".into()),
        };
        let mut messages = self.messages();
        let is_known = |known: &Arc<Message>| {
            known.content == content && now.duration_since(known.published) < REPEAT_INTERVAL
        };
        if messages.panels.get(&key).is_some_and(is_known) {
            return;
        }
        messages.version += 1;
        let version = messages.version;
        let id = Value::from(key.id.as_str());
        let text = format!("{{\"id\":{id},\"at\":\"{at}\",{head}{content}");
        let message = Message {
            version,
            published: now,
            content,
            text,
        };
        messages.panels.insert(key, Arc::new(message));
        drop(messages);
        self.newest.send_replace(version);
    }

    /// The messages above a version for a client that chose these minutes, in the order in which
    /// they were published; and the newest version.
    fn above(&self, version: u64, minutes: u32) -> (Vec<Arc<Message>>, u64) {
        let messages = self.messages();
        let is_for_client = |key: &PanelKey| key.minutes.is_none_or(|m| m == minutes);
        let panels = messages.panels.iter();
        let mut new: Vec<Arc<Message>> = panels
            .filter(|(key, message)| is_for_client(key) && message.version > version)
            .map(|(_, message)| message.clone())
            .collect();
        new.sort_unstable_by_key(|message| message.version);
        (new, messages.version)
    }

    /// Waits for messages above a version; none when nothing computes any more.
    pub async fn next(&self, version: u64, minutes: u32) -> Option<(Vec<Arc<Message>>, u64)> {
        let mut newest = self.newest.subscribe();
        loop {
            newest.borrow_and_update();
            let (messages, upto) = self.above(version, minutes);
            if !messages.is_empty() {
                return Some((messages, upto));
            }
            tokio::select! {
                changed = newest.changed() => changed.ok()?,
                () = self.end.cancelled() => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str, minutes: Option<u32>) -> PanelKey {
        PanelKey {
            id: id.into(),
            minutes,
        }
    }

    fn data(value: Value) -> Result<PanelData, ApiError> {
        Ok(PanelData {
            as_of: None,
            data: value,
        })
    }

    fn ids(messages: &[Arc<Message>]) -> Vec<Value> {
        let parsed = messages.iter().map(|m| m.sent_at("later"));
        let parsed = parsed.map(|text| serde_json::from_str::<Value>(&text).expect("JSON"));
        parsed.map(|message| message["id"].clone()).collect()
    }

    #[test]
    fn a_client_gets_the_latest_message_of_each_panel_once() {
        let board = Board::new(CancellationToken::new());
        for n in 0..3 {
            board.publish(key("a", None), "now", data(json!(n)));
        }
        board.publish(key("b\"", None), "now", data(json!({"x": 1})));
        board.publish(key("line", Some(5)), "now", data(json!(5)));
        board.publish(key("line", Some(30)), "now", data(json!(30)));
        let (messages, version) = board.above(0, 5);
        assert_eq!(ids(&messages), [json!("a"), json!("b\""), json!("line")]);
        assert_eq!(
            messages[0].sent_at("later"),
            r#"{"id":"a","at":"now","data":2,"now":"later"}"#
        );
        assert!(board.above(version, 5).0.is_empty());
        // The same data is not sent again at once, other data is.
        board.publish(key("a", None), "then", data(json!(2)));
        assert!(board.above(version, 5).0.is_empty());
        let error = ApiError::bad_request("wrong", "hint");
        board.publish(key("a", None), "then", Err(error));
        let (messages, _) = board.above(version, 5);
        assert!(
            messages[0]
                .sent_at("later")
                .contains(r#""error":{"code":"bad_request""#)
        );
    }

    #[tokio::test]
    async fn clients_are_told_that_nothing_computes_any_more() {
        let board = Board::new(CancellationToken::new());
        board.publish(key("a", None), "now", data(json!(1)));
        let (messages, version) = board.next(0, 5).await.expect("a message");
        assert_eq!(ids(&messages), [json!("a")]);
        let (ended, ()) = tokio::join!(board.next(version, 5), async { board.end.cancel() });
        assert!(ended.is_none());
    }

    #[test]
    fn the_last_client_is_recognized() {
        let board = Board::new(CancellationToken::new());
        [5, 5, 30]
            .into_iter()
            .for_each(|minutes| board.join(minutes));
        assert_eq!(board.minutes(), [5, 30]);
        assert!(!board.leave(5) && !board.leave(30));
        assert_eq!(board.minutes(), [5]);
        assert!(board.leave(5));
    }
}
