//! The answer to a plain GET: records as they come, without an end. A client that reads slowly
//! delays nobody: it gets what it lacks from the retained records, or from the history.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Progress, Records, Retained, Upstream};

/// Records that are sent together.
const MAX_BATCH: usize = 256;
/// A client of server-sent events gets a comment after this time without a record.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// How records are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Lines,
    Events,
}

/// The answer to a client: lines, or server-sent events if it accepts them.
pub(super) fn answer(
    upstream: Upstream,
    params: &BTreeMap<String, String>,
    headers: &HeaderMap,
) -> Response {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let accepts_events = text("accept").is_some_and(|accept| accept.contains("text/event-stream"));
    if !accepts_events {
        let (begin, follower) = Follower::since(upstream, params);
        return respond(follower, Format::Lines, begin);
    }
    let follower = match text("last-event-id") {
        None => Some(Follower::since(upstream, &BTreeMap::new()).1),
        Some(id) => Follower::after_id(upstream, id),
    };
    match follower {
        Some(follower) => respond(follower, Format::Events, b":ok\n\n".to_vec()),
        None => {
            let reason = "records after this Last-Event-ID are not retained; connect without it\n";
            (StatusCode::GONE, reason).into_response()
        }
    }
}

fn respond(follower: Follower, format: Format, begin: Vec<u8>) -> Response {
    let content_type = match format {
        Format::Lines => "application/json; charset=utf-8",
        Format::Events => "text/event-stream",
    };
    let begin = (!begin.is_empty()).then(|| Bytes::from(begin));
    let body = stream::unfold((begin, follower), move |(begin, mut follower)| async move {
        if let Some(begin) = begin {
            return Some((Ok(begin), (None, follower)));
        }
        let bytes = follower.next(format).await?;
        Some((bytes.map(Bytes::from), (None, follower)))
    });
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, Body::from_stream(body)).into_response()
}

/// The history, and how many records were read of it.
type Past = (Records, u64);

/// A client, and how far it is.
struct Follower {
    upstream: Upstream,
    progress: watch::Receiver<Progress>,
    /// The number of the last record that it got.
    sent: u64,
    past: Option<Past>,
}

/// What a client gets next.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// These records, which follow the last one that it got.
    Records(Vec<Bytes>),
    /// So many records that are no longer retained.
    Past(u64),
    Wait,
}

impl Follower {
    fn new(upstream: Upstream, sent: u64) -> Self {
        Self {
            progress: upstream.shared.progress.subscribe(),
            upstream,
            sent,
            past: None,
        }
    }

    /// From now on, after the lines of the records that the parameters ask for.
    fn since(upstream: Upstream, params: &BTreeMap<String, String>) -> (Vec<u8>, Self) {
        let (lines, last) = {
            let retained = upstream.retained();
            (retained.past(params), retained.last)
        };
        (lines, Self::new(upstream, last))
    }

    /// After the record with this event id; none if what follows it is lost.
    fn after_id(upstream: Upstream, id: &str) -> Option<Self> {
        let number = id.strip_prefix(&upstream.shared.id_prefix)?.parse().ok()?;
        let can_continue =
            upstream.shared.history.is_some() || upstream.retained().can_continue(number);
        can_continue.then(|| Self::new(upstream, number))
    }

    /// The next bytes of the answer; none after the last record, or if records are lost.
    async fn next(&mut self, format: Format) -> Option<io::Result<Vec<u8>>> {
        loop {
            let step = self.upstream.retained().after(self.sent);
            match step {
                Step::Records(records) => return Some(Ok(self.write(&records, format))),
                // The client connects again, and hears that they are lost.
                Step::Past(_) if self.upstream.shared.history.is_none() => return None,
                Step::Past(count) => match self.read_past(count).await {
                    Ok(records) if records.is_empty() => return None,
                    Ok(records) => return Some(Ok(self.write(&records, format))),
                    Err(error) => return Some(Err(error)),
                },
                Step::Wait => {
                    let sent = self.sent;
                    let is_news = |p: &Progress| p.last > sent || p.has_ended;
                    let news = timeout(HEARTBEAT, self.progress.wait_for(is_news)).await;
                    match news.map(|progress| progress.map(|p| p.last > sent)) {
                        Ok(Ok(true)) => {}
                        Ok(Ok(false) | Err(_)) => return None,
                        Err(_) if format == Format::Events => return Some(Ok(b":\n\n".to_vec())),
                        Err(_) => {}
                    }
                }
            }
        }
    }

    /// Reads records of the history, at most `count`.
    async fn read_past(&mut self, count: u64) -> io::Result<Vec<Bytes>> {
        let (past, sent) = (self.past.take(), self.sent);
        let history = self.upstream.shared.history.clone();
        let read = move || -> io::Result<(Vec<Bytes>, Option<Past>)> {
            let (mut records, mut at) = match (past, history) {
                (Some((records, at)), _) if at <= sent => (records, at),
                (_, Some(open)) => (open()?, 0),
                (_, None) => return Ok((Vec::new(), None)),
            };
            while at < sent {
                let Some(skipped) = records.next() else {
                    return Ok((Vec::new(), None));
                };
                skipped?;
                at += 1;
            }
            let mut out = Vec::new();
            for record in records.by_ref().take(count.min(MAX_BATCH as u64) as usize) {
                out.push(Bytes::from(record?));
                at += 1;
            }
            Ok((out, Some((records, at))))
        };
        let read = tokio::task::spawn_blocking(read).await;
        let (records, past) = read.map_err(io::Error::other)??;
        self.past = past;
        Ok(records)
    }

    fn write(&mut self, records: &[Bytes], format: Format) -> Vec<u8> {
        let mut out = Vec::new();
        for record in records {
            self.sent += 1;
            match format {
                Format::Lines => {
                    out.extend_from_slice(record);
                    out.push(b'\n');
                }
                Format::Events => {
                    let id = format!("id: {}{}\n", self.upstream.shared.id_prefix, self.sent);
                    out.extend_from_slice(id.as_bytes());
                    // A carriage return would end the line; in JSON it is as blank as a newline.
                    for line in record.split(|byte| *byte == b'\r') {
                        out.extend_from_slice(b"data: ");
                        out.extend_from_slice(line);
                        out.push(b'\n');
                    }
                    out.push(b'\n');
                }
            }
        }
        out
    }
}

impl Retained {
    /// The number of the record before the oldest one.
    fn before(&self) -> u64 {
        self.last - self.records.len() as u64
    }

    /// Whether all records after this number are retained.
    fn can_continue(&self, number: u64) -> bool {
        (self.before()..=self.last).contains(&number)
    }

    /// What follows the record with this number.
    fn after(&self, number: u64) -> Step {
        if number >= self.last {
            return Step::Wait;
        }
        let Some(skipped) = number.checked_sub(self.before()) else {
            return Step::Past(self.before() - number);
        };
        let records = self.records.iter().skip(skipped as usize).take(MAX_BATCH);
        Step::Records(records.map(|(_, record)| record.clone()).collect())
    }

    /// The lines of the records that `since_mtime` or `since_count` ask for.
    fn past(&self, params: &BTreeMap<String, String>) -> Vec<u8> {
        let number = |name: &str| params.get(name).and_then(|v| v.parse::<i64>().ok());
        let (since, skipped) = match (number("since_mtime"), number("since_count")) {
            (Some(since), _) => (since, 0),
            (None, Some(count)) => {
                let count = usize::try_from(count).unwrap_or(0);
                (i64::MIN, self.records.len().saturating_sub(count))
            }
            (None, None) => return Vec::new(),
        };
        let mut out = Vec::new();
        for (mtime, record) in self.records.iter().skip(skipped) {
            if *mtime > since {
                out.extend_from_slice(record);
                out.push(b'\n');
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn upstream(history: Option<u64>, sent: u64) -> Upstream {
        let upstream = Upstream::new(history.map(|count| {
            let open = move || Ok(Box::new((1..=count).map(|n| Ok(n.to_string()))) as Records);
            Arc::new(open) as super::super::History
        }));
        (1..=sent).for_each(|n| upstream.send(n as i64, &n.to_string()));
        upstream
    }

    /// The first records of a client, at least so many.
    async fn read(follower: &mut Follower, count: usize) -> Vec<u64> {
        let mut out: Vec<u64> = Vec::new();
        while out.len() < count {
            let bytes = follower
                .next(Format::Lines)
                .await
                .expect("more")
                .expect("read");
            let text = String::from_utf8(bytes).expect("text");
            out.extend(
                text.lines()
                    .map(|line| line.parse::<u64>().expect("a number")),
            );
        }
        out
    }

    #[tokio::test]
    async fn a_client_continues_after_any_record_of_a_recording() {
        let upstream = upstream(Some(30_000), 25_000);
        for from in [0, 1, 14_999, 15_000, 15_001, 24_999] {
            let mut follower = Follower::after_id(upstream.clone(), &from.to_string());
            let follower = follower.as_mut().expect("it continues");
            let expected: Vec<u64> = (from + 1..=25_000).collect();
            assert_eq!(read(follower, expected.len()).await, expected, "{from}");
        }
        // One that is ahead waits until the stream has come so far.
        let mut ahead = Follower::after_id(upstream.clone(), "25001").expect("it continues");
        (25_001..=25_003).for_each(|n| upstream.send(0, &n.to_string()));
        assert_eq!(read(&mut ahead, 2).await, [25_002, 25_003]);
    }

    #[tokio::test]
    async fn without_a_history_only_retained_records_follow_an_id() {
        let upstream = upstream(None, 10_005);
        let prefix = upstream.shared.id_prefix.clone();
        let after = |id: String| Follower::after_id(upstream.clone(), &id);
        let mut oldest = after(format!("{prefix}5")).expect("it continues");
        assert_eq!(read(&mut oldest, 10_000).await.first(), Some(&6));
        for id in [
            format!("{prefix}4"),
            format!("{prefix}10006"),
            "5".into(),
            "x".into(),
        ] {
            assert!(after(id.clone()).is_none(), "{id}");
        }
    }

    #[tokio::test]
    async fn events_have_ids_and_answers_end_with_the_stream() {
        let upstream = upstream(Some(3), 1);
        upstream.send(0, "{\r}");
        let mut follower = Follower::after_id(upstream.clone(), "0").expect("it continues");
        let bytes = follower
            .next(Format::Events)
            .await
            .expect("more")
            .expect("read");
        let text = String::from_utf8(bytes).expect("text");
        assert_eq!(text, "id: 1\ndata: 1\n\nid: 2\ndata: {\ndata: }\n\n");
        upstream.finish().await;
        assert!(follower.next(Format::Events).await.is_none());
    }

    #[test]
    fn lines_of_the_past_are_chosen_by_time_or_number() {
        let upstream = upstream(None, 4);
        let past = |name: &str, value: &str| {
            let params = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            String::from_utf8(Follower::since(upstream.clone(), &params).0).expect("text")
        };
        assert_eq!(past("since_mtime", "2"), "3\n4\n");
        assert_eq!(past("since_count", "3"), "2\n3\n4\n");
        assert_eq!(past("since_count", "9"), "1\n2\n3\n4\n");
        assert_eq!(past("other", "1"), "");
    }
}
