//! Computes the panels of a stream's overview, once for all its clients, until the last one leaves.
//! A panel whose computation takes long is computed less often.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::board::{Board, PanelKey};
use crate::event::rfc3339;
use crate::query::overview::latest::{self, Latest};
use crate::query::overview::{Overview, Panel, PanelData};
use crate::query::{Handles, QueryError};
use crate::server::App;
use crate::server::error::ApiError;
use crate::threads::OnEnd;

/// How often panels are computed at most, so that a panel has at most four messages a second.
const INTERVAL: Duration = Duration::from_millis(250);
/// Likewise, panels whose numbers are those of whole seconds.
const SECOND: Duration = Duration::from_secs(1);
/// Likewise, panels by SQL.
const SQL_INTERVAL: Duration = Duration::from_secs(2);
/// A computation waits this many times as long as the last one took.
const IDLE_FACTOR: u32 = 10;

/// When a panel is due.
struct Pace {
    interval: Duration,
    due: Instant,
}

impl Pace {
    /// At most once in an interval; first at once.
    fn new(interval: Duration) -> Self {
        Self {
            interval,
            due: Instant::now(),
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.due <= now
    }

    /// A computation took this long, until `now`.
    fn ran(&mut self, now: Instant, took: Duration) {
        // A little less than the interval, so that a tick that comes early is not missed.
        let interval = self.interval - self.interval / 10;
        self.due = now + interval.max(took * IDLE_FACTOR);
    }
}

/// What computes the panels of a stream.
pub struct Engine {
    pub app: App,
    pub overview: Overview,
    pub board: Arc<Board>,
}

/// Panels that are computed from memory, and their paces.
struct FastPanels {
    rate: Pace,
    totals: Pace,
    lines: Vec<(u32, Pace)>,
    health: Pace,
}

fn ticks() -> Interval {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

impl Engine {
    /// Computes until the end.
    pub async fn run(self) {
        let engine = Arc::new(self);
        // After a panic, too: clients see the end of their streams, and come again.
        let ended = engine.clone();
        let _end = OnEnd(move || {
            let overviews = &ended.app.0.overviews;
            overviews.end(&ended.overview.stream().name, &ended.board);
        });
        let latest = Arc::new(Mutex::new(Latest::default()));
        tokio::join!(
            fast_panels(engine.clone(), latest.clone()),
            sql_panels(engine, latest)
        );
    }

    fn handles(&self) -> &Handles {
        &self.app.0.parts.queries.handles
    }

    fn publish(&self, id: &str, minutes: Option<u32>, result: Result<PanelData, QueryError>) {
        let key = PanelKey {
            id: id.to_owned(),
            minutes,
        };
        let at = rfc3339(self.app.0.parts.queries.clock.now());
        self.board.publish(key, &at, result.map_err(ApiError::from));
    }

    /// Computes the fast panels that are due.
    fn compute(&self, panels: &mut FastPanels, latest: &Mutex<Latest>) {
        let (handles, overview) = (self.handles(), &self.overview);
        let clock = &self.app.0.parts.queries.clock;
        paced(&mut panels.rate, || {
            let data = overview.rate(handles, clock.now());
            self.publish("rate", None, Ok(data));
        });
        paced(&mut panels.totals, || {
            match overview.totals(handles, clock.now()) {
                Ok(totals) => totals
                    .into_iter()
                    .for_each(|(id, data)| self.publish(&id, None, Ok(data))),
                Err(error) => self.publish("types", None, Err(error)),
            }
        });
        let chosen = self.board.minutes();
        panels.lines.retain(|(minutes, _)| chosen.contains(minutes));
        for minutes in chosen {
            if !panels.lines.iter().any(|(known, _)| *known == minutes) {
                panels.lines.push((minutes, Pace::new(INTERVAL)));
            }
        }
        for (minutes, pace) in &mut panels.lines {
            paced(pace, || {
                let line = overview.line(*minutes, handles, clock.now());
                if let Some(line) = line.transpose() {
                    self.publish("line", Some(*minutes), line);
                }
            });
        }
        let shown = {
            let (mut latest, stream) = (locked(latest), overview.stream());
            let read = latest.read(stream, handles, &self.app.0.parts.live);
            read.map(|()| latest.data(stream, handles, clock.now()))
        };
        self.publish("latest", None, shown);
        paced(&mut panels.health, || {
            self.publish("health", None, Ok(self.health()));
        });
    }

    /// The data of the panel `health`.
    fn health(&self) -> PanelData {
        let (handles, parts) = (self.handles(), &self.app.0.parts);
        let synced = handles.progress.synced_lsn();
        let applied = handles.checkpoints().into_iter().map(|(_, lsn)| lsn);
        let lag = applied.map(|lsn| synced.saturating_sub(lsn)).max();
        let streams = handles.progress.streams();
        let name = &self.overview.stream().name;
        let progress = streams.get(name).cloned().unwrap_or_default();
        let (is_ready, reasons) = match (parts.readiness)() {
            Ok(waiting) => (true, waiting),
            Err(reason) => (false, vec![reason]),
        };
        let resources = parts.resources.measure();
        PanelData {
            as_of: None,
            data: json!({
                "watermark": progress.watermark.map(rfc3339),
                "lag_records": lag.unwrap_or(0),
                "late": progress.totals.late,
                "dead_letters": progress.totals.dead_letters,
                "disk_bytes": resources.disk_bytes(),
                "disk_limit_bytes": resources.disk_limit,
                "memory_bytes": resources.memory,
                "memory_limit_bytes": resources.memory_limit,
                "synced_lsn": synced,
                "ready": is_ready,
                "reasons": reasons,
            }),
        }
    }

    /// Computes a panel by SQL.
    async fn query(&self, panel: &Panel) -> Result<PanelData, QueryError> {
        let queries = &self.app.0.parts.queries;
        let (handles, now) = (&queries.handles, queries.clock.now());
        self.overview.query(panel, handles, &queries.sql, now).await
    }
}

fn locked(latest: &Mutex<Latest>) -> MutexGuard<'_, Latest> {
    latest.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Computes if it is due.
fn paced(pace: &mut Pace, compute: impl FnOnce()) {
    let begun = Instant::now();
    if pace.is_due(begun) {
        compute();
        let now = Instant::now();
        pace.ran(now, now.duration_since(begun));
    }
}

async fn fast_panels(engine: Arc<Engine>, latest: Arc<Mutex<Latest>>) {
    let mut panels = FastPanels {
        rate: Pace::new(SECOND),
        totals: Pace::new(INTERVAL),
        lines: Vec::new(),
        health: Pace::new(SECOND),
    };
    let mut ticks = ticks();
    loop {
        tokio::select! {
            () = engine.board.end.cancelled() => return,
            _ = ticks.tick() => {}
        }
        // It reads files. To its end: what is shared must not be read any more once this has ended.
        let (own, latest) = (engine.clone(), latest.clone());
        let computed = tokio::task::spawn_blocking(move || {
            own.compute(&mut panels, &latest);
            panels
        });
        panels = match computed.await {
            Ok(panels) => panels,
            Err(error) => {
                let stream = &engine.overview.stream().name;
                tracing::error!(%error, stream, "an overview ends");
                engine.board.end.cancel();
                return;
            }
        };
    }
}

async fn sql_panels(engine: Arc<Engine>, latest: Arc<Mutex<Latest>>) {
    let panels = engine.overview.panels().iter();
    let by_sql = panels.filter(|panel| panel.is_by_sql());
    let mut panels: Vec<(&Panel, Pace)> = by_sql
        .map(|panel| (panel, Pace::new(SQL_INTERVAL)))
        .collect();
    let mut latest_pace = Pace::new(SQL_INTERVAL);
    let mut ticks = ticks();
    loop {
        tokio::select! {
            () = engine.board.end.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if locked(&latest).is_incomplete() && latest_pace.is_due(Instant::now()) {
            let begun = Instant::now();
            tokio::select! {
                () = engine.board.end.cancelled() => return,
                () = complete_latest(&engine, &latest) => {}
            }
            latest_pace.ran(Instant::now(), begun.elapsed());
        }
        for (panel, pace) in &mut panels {
            let begun = Instant::now();
            if !pace.is_due(begun) {
                continue;
            }
            // Dropping a query ends it.
            let result = tokio::select! {
                () = engine.board.end.cancelled() => return,
                result = engine.query(panel) => result,
            };
            engine.publish(&panel.id, None, result);
            pace.ran(Instant::now(), begun.elapsed());
        }
    }
}

/// Reads latest rows that are no longer in memory.
async fn complete_latest(engine: &Engine, latest: &Mutex<Latest>) {
    let queries = &engine.app.0.parts.queries;
    let (handles, now) = (&queries.handles, queries.clock.now());
    match latest::stored(engine.overview.stream(), handles, &queries.sql, now).await {
        Ok((rows, upto)) => locked(latest).complete(rows, upto),
        // It is tried again.
        Err(error) => tracing::warn!(%error, "the latest rows cannot be read"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_computation_is_repeated_later() {
        let mut pace = Pace::new(SQL_INTERVAL);
        let start = pace.due;
        assert!(pace.is_due(start));
        pace.ran(start, Duration::from_millis(20));
        assert!(!pace.is_due(start + SECOND) && pace.is_due(start + SQL_INTERVAL));
        pace.ran(start, SECOND);
        assert!(!pace.is_due(start + 9 * SECOND) && pace.is_due(start + 10 * SECOND));
    }
}
