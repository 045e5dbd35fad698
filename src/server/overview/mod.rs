//! `GET /api/v1/overview`: the numbers of a stream as they change, as server-sent events. Panels
//! are computed once for all clients of a stream (`engine`), only while there is one, and sent from
//! a board that has the latest of each (`board`).

mod board;
mod engine;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Query, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::{Stream, StreamExt, stream};
use serde_json::json;
use tokio_util::task::TaskTracker;

use super::App;
use super::error::ApiError;
use super::live::live_slot;
use crate::event::rfc3339;
use crate::query::overview::Overview;
use board::{Board, Message};
use engine::Engine;

/// Minutes that the line may cover; the first is the default.
const MINUTES: [u32; 3] = [5, 30, 180];
/// A connection on which nothing else is sent gets a comment this often.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The overviews that have clients, by stream.
#[derive(Default)]
pub struct Overviews {
    running: Mutex<BTreeMap<String, Arc<Board>>>,
    engines: TaskTracker,
}

impl Overviews {
    fn running(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Board>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the computation of a board.
    fn end(&self, stream: &str, board: &Arc<Board>) {
        end(&mut self.running(), stream, board);
    }

    /// Waits until nothing is computed any more, after the server was asked to stop.
    pub async fn ended(&self) {
        self.engines.close();
        self.engines.wait().await;
    }
}

/// Ends the computation of a board; the next client of the stream begins another.
fn end(running: &mut BTreeMap<String, Arc<Board>>, stream: &str, board: &Arc<Board>) {
    let is_same = |own: &Arc<Board>| Arc::ptr_eq(own, board);
    if running.get(stream).is_some_and(is_same) {
        running.remove(stream);
    }
    board.end.cancel();
}

/// A client of an overview, until it is dropped.
struct Listener {
    app: App,
    overview: Overview,
    minutes: u32,
    board: Arc<Board>,
}

impl Listener {
    /// Joins the clients of a stream's overview; the first one starts its computation.
    fn join(app: &App, overview: Overview, minutes: u32) -> Self {
        let overviews = &app.0.overviews;
        let mut running = overviews.running();
        let name = overview.stream().name.clone();
        let board = running.entry(name).or_insert_with(|| {
            let board = Arc::new(Board::new(app.0.stop.child_token()));
            let engine = Engine {
                app: app.clone(),
                overview: overview.clone(),
                board: board.clone(),
            };
            overviews.engines.spawn(engine.run());
            board
        });
        let board = board.clone();
        board.join(minutes);
        drop(running);
        Self {
            app: app.clone(),
            overview,
            minutes,
            board,
        }
    }

    /// The first event: which panels there are.
    fn layout(&self) -> Event {
        let catalog = &self.app.0.parts.queries.handles.catalog;
        let streams: Vec<&String> = catalog.streams.keys().collect();
        let layout = json!({
            "stream": self.overview.stream().name,
            "streams": streams,
            "minutes": self.minutes,
            "panels": self.overview.panels(),
        });
        Event::default().event("layout").data(layout.to_string())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut running = self.app.0.overviews.running();
        if self.board.leave(self.minutes) {
            end(&mut running, &self.overview.stream().name, &self.board);
        }
    }
}

/// A request's parameters.
type Params = BTreeMap<String, String>;

/// The overview and the minutes that a client asks for.
fn requested(app: &App, params: &Params) -> Result<(Overview, u32), ApiError> {
    let hint = "see /docs for the parameters";
    let is_known = |name: &&String| ["stream", "minutes"].contains(&name.as_str());
    if let Some(unknown) = params.keys().find(|name| !is_known(name)) {
        let message = format!("unknown parameter `{unknown}`; available: stream, minutes");
        return Err(ApiError::bad_request(message, hint));
    }
    let minutes = match params.get("minutes") {
        None => MINUTES[0],
        Some(text) => {
            let minutes = text.parse().ok().filter(|n| MINUTES.contains(n));
            let message = || format!("minutes = `{text}`: write 5, 30 or 180");
            minutes.ok_or_else(|| ApiError::bad_request(message(), hint))?
        }
    };
    let stream = params.get("stream").map(String::as_str);
    let overview = Overview::new(&app.0.parts.queries.handles, stream)?;
    Ok((overview, minutes))
}

/// Numbers of a stream as they change: rates, counts, windows, most frequent values, latest rows
/// and health. The first event, `layout`, lists the panels; each event `panel` has one of them as it
/// is now. An overview takes one of the connections for live streams.
#[utoipa::path(get, path = "/api/v1/overview", params(("stream" = Option<String>, Query),
    ("minutes" = Option<u32>, Query, description = "what the line covers: 5, 30 or 180")),
    responses((status = 200, content_type = "text/event-stream", body = String), (status = 400), (status = 404),
        (status = 429, description = "half of the connections are live streams already")))]
pub async fn overview(
    State(app): State<App>,
    Query(params): Query<Params>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let (overview, minutes) = requested(&app, &params)?;
    let slot = live_slot(&app)?;
    let stop = app.0.stop.clone().cancelled_owned();
    let listener = Listener::join(&app, overview, minutes);
    let layout = stream::iter([listener.layout()]);
    let panels = stream::unfold((listener, 0), |(listener, version)| async move {
        let (messages, upto) = listener.board.next(version, listener.minutes).await?;
        let now = rfc3339(listener.app.0.parts.queries.clock.now());
        let event =
            |message: &Arc<Message>| Event::default().event("panel").data(message.sent_at(&now));
        let events: Vec<Event> = messages.iter().map(event).collect();
        Some((stream::iter(events), (listener, upto)))
    });
    let events = layout.chain(panels.flatten()).map(move |event| {
        let _slot = &slot;
        Ok(event)
    });
    Ok(Sse::new(events.take_until(stop)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}
