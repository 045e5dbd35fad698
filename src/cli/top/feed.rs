//! Asks the server for what `weir top` shows, once a second, and follows its overview; one that is
//! gone is looked for again.

use std::collections::BTreeMap;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::model::{self, Counts, Snapshot};
use super::panels::{EventReader, Panels};
use crate::cli::client::Server;
use crate::config::Config;
use crate::runtime::RuntimeError;
use crate::runtime::query_service::Params;

/// How often the server is asked.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long it may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long the overview may be silent: the server sends a comment every ten seconds.
const MAX_SILENCE: Duration = Duration::from_secs(30);
/// Rows of a window that are asked for.
const WINDOW_ROWS: usize = 1_000;

/// What the user has chosen to see.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// The first by default.
    pub stream: Option<String>,
    /// The first by default.
    pub window: Option<String>,
}

/// What the server answered, or why it did not.
pub type Update = Result<Snapshot, RuntimeError>;

/// A server that answers.
pub struct Feed {
    server: Server,
    /// The column with the type of each stream's events; none for a stream that counts nothing.
    types: BTreeMap<String, Option<String>>,
}

impl Feed {
    /// The server on the configured folder.
    pub async fn connect(config: &Config) -> Result<Self, RuntimeError> {
        let missing = || {
            RuntimeError::Failed(format!(
                "no server is running on the data folder {}; start `weir run` or `weir demo` in another terminal, or name its configuration with -c",
                config.data.display()
            ))
        };
        let server = Server::find(config).await.ok_or_else(missing)?;
        let request =
            json!({"sql": "select stream, declaration from weir.configuration order by stream"});
        let answer = server.post("sql", &request).await?;
        let mut types = BTreeMap::new();
        for row in answer["rows"].as_array().into_iter().flatten() {
            let declaration = row["declaration"].as_str().unwrap_or_default();
            let declaration: Value = serde_json::from_str(declaration).unwrap_or_default();
            let column = declaration["count"]["type"].as_str().map(str::to_owned);
            types.insert(
                row["stream"].as_str().unwrap_or_default().to_owned(),
                column,
            );
        }
        Ok(Self { server, types })
    }

    /// Checks that the chosen stream and window exist.
    pub async fn check(&self, choice: &Choice) -> Result<(), RuntimeError> {
        if let Some(stream) = &choice.stream
            && !self.types.contains_key(stream)
        {
            let known: Vec<&str> = self.types.keys().map(String::as_str).collect();
            return Err(RuntimeError::Config(format!(
                "the stream `{stream}` does not exist; available: {}",
                known.join(", ")
            )));
        }
        match &choice.window {
            Some(window) => self.window(window).await.map(drop),
            None => Ok(()),
        }
    }

    /// Everything, as it is now.
    pub async fn snapshot(&self, choice: &Choice) -> Result<Snapshot, RuntimeError> {
        let server = &self.server;
        let status = server.get("status", &Params::new()).await?;
        let mut snapshot = Snapshot {
            server: server.url().to_owned(),
            readiness: model::readiness(&server.readiness().await?),
            streams: model::streams(&status),
            parts: model::parts(&status),
            counts: self.counts(choice).await,
            ..Snapshot::default()
        };
        model::set_metrics(&mut snapshot, &server.metrics().await?);
        let window = choice.window.as_ref().or(snapshot.windows.first());
        if let Some(window) = window.cloned() {
            // A window of an earlier configuration may be gone.
            snapshot.window = self.window(&window).await.ok();
        }
        Ok(snapshot)
    }

    async fn window(&self, name: &str) -> Result<model::Window, RuntimeError> {
        let params = Params::from([
            ("name".to_owned(), name.to_owned()),
            ("limit".to_owned(), WINDOW_ROWS.to_string()),
        ]);
        let answer = self.server.get("windows", &params).await?;
        Ok(model::window(name, &answer))
    }

    async fn counts(&self, choice: &Choice) -> Counts {
        let chosen = choice.stream.as_ref().or(self.types.keys().next());
        let missing = |title: &str, reason: String| Counts {
            title: title.to_owned(),
            missing: Some(reason),
            ..Counts::default()
        };
        let Some(stream) = chosen else {
            return missing("counts", "no stream is declared".into());
        };
        let Some(Some(column)) = self.types.get(stream) else {
            return missing(stream, "the stream declares no `count`".into());
        };
        let params = Params::from([
            ("stream".to_owned(), stream.clone()),
            ("by".to_owned(), column.clone()),
        ]);
        match self.server.get("count", &params).await {
            Ok(answer) => model::counts(stream, column, &answer),
            Err(error) => missing(stream, error.to_string()),
        }
    }
}

/// Sends an update each second, and at once when the choice changes, until the receiver is gone.
pub async fn follow(
    config: Config,
    first: Feed,
    mut choice: watch::Receiver<Choice>,
    updates: SyncSender<Update>,
) {
    let mut feed = Some(first);
    loop {
        let chosen = choice.borrow_and_update().clone();
        let update = tokio::time::timeout(TIMEOUT, next(&config, &mut feed, &chosen)).await;
        let update = update.unwrap_or_else(|_| {
            feed = None;
            let seconds = TIMEOUT.as_secs();
            Err(RuntimeError::Failed(format!(
                "no answer within {seconds} s"
            )))
        });
        // A screen that is behind shows the next one.
        if let Err(TrySendError::Disconnected(_)) = updates.try_send(update) {
            return;
        }
        let changed = tokio::time::timeout(INTERVAL, choice.changed()).await;
        if matches!(changed, Ok(Err(_))) {
            return;
        }
    }
}

/// Follows the overview of a stream, again and again, until the receiver is gone.
pub async fn follow_overview(
    config: Config,
    stream: Option<String>,
    mut minutes: watch::Receiver<u32>,
    panels: watch::Sender<Panels>,
) {
    while !panels.is_closed() {
        let chosen = *minutes.borrow_and_update();
        let read = tokio::select! {
            read = read_overview(&config, stream.as_deref(), chosen, &panels) => read,
            changed = minutes.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        if let Err(error) = read {
            panels.send_modify(|panels| panels.missing = Some(error.to_string()));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Takes the overview's events until it ends.
async fn read_overview(
    config: &Config,
    stream: Option<&str>,
    minutes: u32,
    panels: &watch::Sender<Panels>,
) -> Result<(), RuntimeError> {
    let missing = || RuntimeError::Failed("the server does not answer".into());
    let server = Server::find(config).await.ok_or_else(missing)?;
    let mut params = Params::from([("minutes".to_owned(), minutes.to_string())]);
    params.extend(stream.map(|stream| ("stream".to_owned(), stream.to_owned())));
    let mut response = server.open("overview", &params).await?;
    let mut events = EventReader::default();
    while let Ok(Ok(Some(bytes))) = tokio::time::timeout(MAX_SILENCE, response.chunk()).await {
        for event in events.push(&bytes) {
            panels.send_modify(|panels| panels.take(&event));
        }
    }
    Ok(())
}

async fn next(config: &Config, feed: &mut Option<Feed>, choice: &Choice) -> Update {
    let connected = match feed.take() {
        Some(feed) => feed,
        // The address of another process, if it was restarted.
        None => Feed::connect(config).await?,
    };
    let snapshot = connected.snapshot(choice).await?;
    *feed = Some(connected);
    Ok(snapshot)
}
