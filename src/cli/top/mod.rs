//! `weir top`: an overview of the running server on a terminal.

mod feed;
mod model;
mod panels;
mod view;

use std::io::IsTerminal;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::feed::{Choice, Feed, Update};
use self::model::{Model, Subject};
use self::panels::{MINUTES, Panels, next_minutes};
use self::view::Theme;
use super::{Global, tokio_runtime};
use crate::runtime::{RuntimeError, stop_signal};

/// How long a key is waited for before updates are looked for.
const POLL: Duration = Duration::from_millis(50);
/// The screen is drawn at most four times a second, and ages at least once.
const MIN_FRAME: Duration = Duration::from_millis(250);
const MAX_FRAME: Duration = Duration::from_secs(1);
/// Updates that wait for the screen.
const QUEUE_LEN: usize = 4;

/// Shows the running server: rates, counts, a window's top rows, the panels of its overview, and
/// what lags or fails.
#[derive(Debug, Args)]
pub struct Top {
    /// The stream whose events are counted by type [default: the first].
    #[arg(long)]
    stream: Option<String>,
    /// The window whose rows are shown [default: the first]; Tab shows the next one, then the
    /// panels of the overview.
    #[arg(long)]
    window: Option<String>,
}

impl Top {
    pub fn run(&self, global: &Global) -> Result<(), RuntimeError> {
        if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
            return Err(RuntimeError::Config(
                "`weir top` needs a terminal; `weir status` shows the state once, and `/metrics` is for monitoring".into(),
            ));
        }
        let config = global.load()?;
        let runtime = tokio_runtime()?;
        let choice = Choice {
            stream: self.stream.clone(),
            window: self.window.clone(),
        };
        let feed = runtime.block_on(async {
            let feed = Feed::connect(&config).await?;
            feed.check(&choice).await.map(|()| feed)
        })?;
        let stop = stop_signal(&runtime);
        let (choose, chosen) = watch::channel(choice);
        let (send, updates) = sync_channel(QUEUE_LEN);
        let (choose_minutes, minutes) = watch::channel(MINUTES[0]);
        let (send_panels, panels) = watch::channel(Panels::default());
        let stream = self.stream.clone();
        runtime.spawn(feed::follow_overview(
            config.clone(),
            stream,
            minutes,
            send_panels,
        ));
        runtime.spawn(feed::follow(config, feed, chosen, send));
        let failed = |e: std::io::Error| {
            RuntimeError::Failed(format!("the terminal: {e}; `weir status` needs none"))
        };
        let mut terminal = ratatui::try_init().map_err(failed)?;
        let mut screen = Screen {
            model: Model::default(),
            theme: Theme::new(std::env::var_os("NO_COLOR").is_none()),
            started: Instant::now(),
            choose,
            choose_minutes,
            updates,
            panels,
        };
        let shown = screen.show(&mut terminal, &stop);
        ratatui::restore();
        // Requests that still run are of no use to anyone.
        runtime.shutdown_background();
        shown.map_err(failed)
    }
}

/// What is on the screen, and what changes it.
struct Screen {
    model: Model,
    theme: Theme,
    started: Instant,
    choose: watch::Sender<Choice>,
    choose_minutes: watch::Sender<u32>,
    updates: Receiver<Update>,
    panels: watch::Receiver<Panels>,
}

impl Screen {
    /// Draws until a key or a signal ends it.
    fn show(
        &mut self,
        terminal: &mut DefaultTerminal,
        stop: &JoinHandle<()>,
    ) -> std::io::Result<()> {
        let (mut drawn, mut is_changed): (Option<Instant>, bool) = (None, true);
        while !stop.is_finished() {
            is_changed |= self.take_updates();
            let age = drawn.map(|at| at.elapsed());
            let is_due = |time: Duration| age.is_none_or(|age| age >= time);
            if is_due(if is_changed { MIN_FRAME } else { MAX_FRAME }) {
                let now = self.started.elapsed();
                terminal.draw(|frame| view::draw(frame, &self.model, now, self.theme))?;
                (drawn, is_changed) = (Some(Instant::now()), false);
            }
            if !event::poll(POLL)? {
                continue;
            }
            match event::read()? {
                Event::Key(key) if key.kind != KeyEventKind::Release => match action(key) {
                    Some(Action::Quit) => return Ok(()),
                    Some(Action::NextSubject) => {
                        self.choose_next_subject();
                        is_changed = true;
                    }
                    Some(Action::NextMinutes) => self
                        .choose_minutes
                        .send_modify(|minutes| *minutes = next_minutes(*minutes)),
                    None => {}
                },
                Event::Resize(..) => is_changed = true,
                _ => {}
            }
        }
        Ok(())
    }

    fn take_updates(&mut self) -> bool {
        let mut is_changed = false;
        while let Ok(update) = self.updates.try_recv() {
            let now = self.started.elapsed();
            match update {
                Ok(snapshot) => self.model.answered(snapshot, now),
                Err(reason) => self.model.missed(reason.to_string(), now),
            }
            is_changed = true;
        }
        if self.panels.has_changed().unwrap_or(false) {
            self.model.panels = self.panels.borrow_and_update().clone();
            is_changed = true;
        }
        is_changed
    }

    fn choose_next_subject(&mut self) {
        match self.model.next_subject() {
            Some(Subject::Window(name)) => {
                self.model.choose(None);
                self.choose.send_modify(|choice| choice.window = Some(name));
            }
            Some(Subject::Panel(id)) => self.model.choose(Some(id)),
            None => {}
        }
    }
}

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    Quit,
    NextSubject,
    NextMinutes,
}

fn action(key: KeyEvent) -> Option<Action> {
    let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('c' | 'd') if is_control => Some(Action::Quit),
        KeyCode::Char('q' | 'Q') | KeyCode::Esc => Some(Action::Quit),
        KeyCode::Tab | KeyCode::Char('w') => Some(Action::NextSubject),
        KeyCode::Char('m') => Some(Action::NextMinutes),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_quit_and_choose() {
        let key = |code, modifiers| action(KeyEvent::new(code, modifiers));
        for code in [KeyCode::Char('q'), KeyCode::Esc] {
            assert_eq!(key(code, KeyModifiers::NONE), Some(Action::Quit));
        }
        assert_eq!(
            key(KeyCode::Char('c'), KeyModifiers::CONTROL),
            Some(Action::Quit)
        );
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::NONE), None);
        assert_eq!(
            key(KeyCode::Tab, KeyModifiers::NONE),
            Some(Action::NextSubject)
        );
        assert_eq!(
            key(KeyCode::Char('m'), KeyModifiers::NONE),
            Some(Action::NextMinutes)
        );
    }
}
