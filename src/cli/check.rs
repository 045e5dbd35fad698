//! `weir check`: validates a configuration, also against its data folder, without starting.

use clap::Args;

use super::progress::Spinner;
use super::{Global, output, tokio_runtime};
use crate::clock::SystemClock;
use crate::runtime::{RuntimeError, disorder, inspect, views};

#[derive(Debug, Args)]
pub struct Check {
    /// Show every limit in force and where it comes from.
    #[arg(long)]
    show: bool,
}

impl Check {
    pub fn run(&self, global: &Global) -> Result<(), RuntimeError> {
        let config = global.load_file()?;
        let catalog = views::compile(&config)?;
        if self.show {
            return output::write(config.show().as_bytes());
        }
        let checking = Spinner::new(global, "checking the data folder");
        let notes = inspect::tables(&config, &catalog, tokio_runtime()?.handle())?;
        drop(checking);
        for note in notes {
            eprintln!("weir: {}", note.text);
        }
        let checking = Spinner::new(global, "checking the files of sources");
        let notices = disorder::of_files(&config, &catalog, &SystemClock::default())?;
        drop(checking);
        for text in notices {
            eprintln!("weir: {text}");
        }
        let parts = [
            counted(catalog.streams.len(), "stream"),
            counted(config.sources.len(), "source"),
            counted(config.sinks.len(), "sink"),
        ];
        let (file, parts) = (config.file_name(), parts.join(", "));
        output::write(format!("{}: valid ({parts})\n", file.display()).as_bytes())
    }
}

fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}
