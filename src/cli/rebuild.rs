//! `weir rebuild`: applies the current declaration of views to everything that was ever accepted.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use super::client::Server;
use super::progress::{Progress, Unit, line};
use super::query::missing_name;
use super::{Global, tokio_runtime};
use crate::config::Config;
use crate::event::Lsn;
use crate::ids::ViewId;
use crate::runtime::rebuild::{self, ViewBuild};
use crate::runtime::{Options, POLL, Running, RuntimeError, views};
use crate::schema::Catalog;

/// Rebuilds windows, tables, search, places or counts from the first record on, as the configuration
/// declares them now (`[lake] partition` too). Rebuilding a stream's table rebuilds its search, too,
/// which shows the table's rows.
///
/// The old versions keep serving, also in a running server; an interrupted rebuild resumes. At the
/// end the new ones are installed together: a server pauses for a moment, and its websockets have a
/// gap. Until then this takes additional memory, as `--memory` says, and disk space for the new
/// versions.
#[derive(Debug, Args)]
pub struct Rebuild {
    /// Windows, tables (`rsvps.members`, `rsvps.sessions`, `rsvps`, `dead_letters`), or search,
    /// places, counts; without any, an error lists them.
    #[arg(value_name = "WHAT")]
    names: Vec<String>,
    /// The stream of search, places or counts [default: the first].
    #[arg(long)]
    stream: Option<String>,
}

/// Records that may be left for the moment in which a server pauses.
const MAX_REMAINING: Lsn = 20_000;
/// After so many rounds the rest is left for it in any case.
const MAX_ROUNDS: usize = 6;
/// How long a server may take to install a view.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(600);

/// A view to rebuild, and its name in messages.
struct Target {
    view: ViewId,
    name: String,
}

impl Rebuild {
    pub fn run(&self, global: &Global) -> Result<(), RuntimeError> {
        let config = global.load_file()?;
        let runtime = tokio_runtime()?;
        let catalog = views::compile(&config)?;
        if self.names.is_empty() {
            let names = rebuild::names(&catalog);
            return Err(missing_name("view", "weir rebuild WHAT…", &names));
        }
        let targets = self.targets(&catalog)?;
        rebuild::complete_interrupted_installs(&config, runtime.handle())?;
        let mut builds = targets
            .iter()
            .map(|target| ViewBuild::begin(&config, runtime.handle(), &target.view))
            .collect::<Result<Vec<_>, _>>()?;
        for notice in builds.iter().filter_map(ViewBuild::coverage_notice) {
            line(&format!("weir: {notice}"));
        }
        let started = Instant::now();
        let server = catch_up(global, &config, &runtime, &mut builds, &targets)?;
        let installing = Progress::new(global, "installing", Unit::None);
        for mut build in builds {
            build.mark_ready(server.is_none())?;
        }
        match server {
            None => {
                install(&config, runtime.handle())?;
                for target in &targets {
                    rebuild::is_installed(&config, &target.view)?;
                }
            }
            Some(server) => {
                let request = json!({"configuration": catalog.id.to_string()});
                runtime.block_on(server.post("rebuild", &request))?;
                for target in &targets {
                    wait_until_installed(&config, &target.view)?;
                }
            }
        }
        drop(installing);
        let names: Vec<&str> = targets.iter().map(|target| &*target.name).collect();
        eprintln!(
            "weir: rebuilt: {}, in {:.1} s",
            names.join(", "),
            started.elapsed().as_secs_f64()
        );
        Ok(())
    }

    /// The views that were named and those that depend on them, each once.
    fn targets(&self, catalog: &Catalog) -> Result<Vec<Target>, RuntimeError> {
        let mut named = Vec::new();
        for name in &self.names {
            let view = rebuild::view_named(catalog, name, self.stream.as_deref())?;
            let name = name.clone();
            named.push(Target { view, name });
        }
        let dependent = named.iter().filter_map(|target| {
            let name = format!("search of {}", target.name);
            rebuild::dependent_view(catalog, &target.view).map(|view| Target { view, name })
        });
        let dependent: Vec<Target> = dependent.collect();
        let mut targets: Vec<Target> = Vec::new();
        for target in named.into_iter().chain(dependent) {
            if targets.iter().all(|t| t.view != target.view) {
                targets.push(target);
            }
        }
        Ok(targets)
    }
}

/// Builds in rounds up to the end of the log, which a running server extends, until few
/// records remain. Returns the server.
fn catch_up(
    global: &Global,
    config: &Config,
    runtime: &tokio::runtime::Runtime,
    builds: &mut [ViewBuild],
    targets: &[Target],
) -> Result<Option<Server>, RuntimeError> {
    let (mut built_to, mut rounds): (Option<Lsn>, _) = (None, 0);
    loop {
        let server = runtime.block_on(Server::find(config));
        let end = match &server {
            Some(server) => runtime.block_on(server.synced_lsn())?,
            None => rebuild::end_of_log(config)?,
        };
        let are_few_left = built_to.is_some_and(|lsn| end.saturating_sub(lsn) <= MAX_REMAINING);
        if rounds == MAX_ROUNDS || are_few_left {
            return Ok(server);
        }
        rounds += 1;
        for (build, target) in builds.iter_mut().zip(targets) {
            let name = &target.name;
            let progress = Progress::new(global, format!("rebuilding {name}"), Unit::Records);
            build.build(end, &mut |done, all, time| {
                if progress.is_shown() {
                    progress.set(done, Some(all));
                } else {
                    report_progress(name, done, all, time);
                }
            })?;
        }
        built_to = Some(end);
    }
}

fn report_progress(name: &str, done: Lsn, all: Lsn, time: Duration) {
    let percent = 100.0 * done as f64 / all.max(1) as f64;
    eprintln!(
        "weir: {name}: {done} of {all} records ({percent:.0} %), {:.0} s",
        time.as_secs_f64()
    );
}

/// Installs what is ready in a stopped folder, by a start that ingests nothing.
fn install(config: &Config, runtime: &tokio::runtime::Handle) -> Result<(), RuntimeError> {
    let mut running = Running::start(
        config,
        Options {
            once: true,
            ..Options::default()
        },
        runtime,
    )?;
    running.wait_recovered()?;
    running.stop()
}

fn wait_until_installed(config: &Config, view: &ViewId) -> Result<(), RuntimeError> {
    let started = Instant::now();
    while !rebuild::is_installed(config, view)? {
        if started.elapsed() > INSTALL_TIMEOUT {
            return Err(RuntimeError::Failed(
                "the server has not installed it yet; it does so at its next start".into(),
            ));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}
