//! `weir rebuild`: a view made anew from everything that was ever taken in.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use super::client::Server;
use super::{Global, tokio_runtime};
use crate::config::Config;
use crate::event::Lsn;
use crate::runtime::rebuild::{self, ViewBuild};
use crate::runtime::{Options, POLL, Running, RuntimeError, views};

/// Makes windows, tables, search, places or counts anew, as the configuration declares them now
/// (`[lake] partition` too), from the first record on. A stream's table brings its search with it,
/// which shows the table's rows.
///
/// What is there goes on serving meanwhile, also in a running server; what is begun goes on where
/// it was broken off. At the end the new ones take their places together: a server pauses for a
/// moment, and its websockets have a gap. Until then this takes memory of its own, as `--memory`
/// says, and as much disk again as what it makes.
#[derive(Debug, Args)]
pub struct Rebuild {
    /// Windows, tables (`rsvps.members`, `rsvps.sessions`, `rsvps`, `dead_letters`), or search,
    /// places, counts.
    #[arg(required = true)]
    what: Vec<String>,
    /// The stream of search, places or counts [default: the first].
    #[arg(long)]
    stream: Option<String>,
}

/// Records that may be left for the moment in which a server pauses.
const FEW: Lsn = 20_000;
/// After so many rounds the rest is left for it in any case.
const ROUNDS: usize = 6;
/// How long a server may take to bring in the new one.
const PATIENCE: Duration = Duration::from_secs(600);

impl Rebuild {
    pub fn run(&self, global: &Global) -> Result<(), RuntimeError> {
        let config = global.load_file()?;
        let runtime = tokio_runtime()?;
        let catalog = views::compile(&config)?;
        let named = |what: &String| rebuild::view_named(&catalog, what, self.stream.as_deref());
        let mut views = self.what.iter().map(named).collect::<Result<Vec<_>, _>>()?;
        let mut whats = self.what.clone();
        for at in 0..views.len() {
            if let Some(view) = rebuild::dependent_view(&catalog, &views[at]) {
                whats.push(format!("search of {}", whats[at]));
                views.push(view);
            }
        }
        // What is named twice is made once.
        for at in (1..views.len())
            .rev()
            .filter(|at| views[..*at].contains(&views[*at]))
            .collect::<Vec<_>>()
        {
            views.remove(at);
            whats.remove(at);
        }
        rebuild::complete_interrupted_installs(&config, runtime.handle())?;
        let begin = |view: &String| ViewBuild::begin(&config, runtime.handle(), view);
        let mut generations = views.iter().map(begin).collect::<Result<Vec<_>, _>>()?;
        generations
            .iter()
            .filter_map(ViewBuild::coverage_notice)
            .for_each(|told| eprintln!("weir: {told}"));
        let begun = Instant::now();
        let (mut reached, mut rounds) = (None, 0);
        let server = loop {
            let server = runtime.block_on(Server::find(&config));
            let end = match &server {
                Some(server) => runtime.block_on(server.synced_lsn())?,
                None => rebuild::end_of_log(&config)?,
            };
            if rounds == ROUNDS
                || reached.is_some_and(|reached: Lsn| end.saturating_sub(reached) <= FEW)
            {
                break server;
            }
            rounds += 1;
            for (generation, what) in generations.iter_mut().zip(&whats) {
                generation.build(end, &mut |done, all, time| {
                    tell(what, done, all, time);
                })?;
            }
            reached = Some(end);
        };
        for mut generation in generations {
            generation.mark_ready(server.is_none())?;
        }
        match server {
            None => {
                take_place(&config, runtime.handle())?;
                views
                    .iter()
                    .try_for_each(|view| rebuild::is_installed(&config, view).map(drop))?;
            }
            Some(server) => {
                runtime.block_on(
                    server.post("rebuild", &json!({"configuration": catalog.id.to_string()})),
                )?;
                views
                    .iter()
                    .try_for_each(|view| wait_for_place(&config, view))?;
            }
        }
        eprintln!(
            "weir: rebuilt: {}, in {:.1} s",
            whats.join(", "),
            begun.elapsed().as_secs_f64()
        );
        Ok(())
    }
}

fn tell(what: &str, done: Lsn, all: Lsn, time: Duration) {
    let share = 100.0 * done as f64 / all.max(1) as f64;
    eprintln!(
        "weir: {what}: {done} of {all} records ({share:.0} %), {:.0} s",
        time.as_secs_f64()
    );
}

/// A stopped folder: what is ready takes its place as at a start, with which nothing is taken in.
fn take_place(config: &Config, runtime: &tokio::runtime::Handle) -> Result<(), RuntimeError> {
    let mut running = Running::start(config, Options { once: true }, runtime)?;
    running.wait_recovered()?;
    running.stop()
}

fn wait_for_place(config: &Config, view: &str) -> Result<(), RuntimeError> {
    let begun = Instant::now();
    while !rebuild::is_installed(config, view)? {
        if begun.elapsed() > PATIENCE {
            return Err(RuntimeError::Failed(
                "the server has not brought it in yet; it does so with its next start".into(),
            ));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}
