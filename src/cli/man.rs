//! `weir man`: manual pages, of the program and of each verb.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory};
use clap_mangen::Man as Page;
use clap_mangen::roff::{Roff, roman};

use super::{Cli, examples, output};
use crate::runtime::RuntimeError;

/// Prints the manual page, of the program or of a verb.
#[derive(Debug, Args)]
pub struct Man {
    /// The verb, and its action where it has some [default: the program].
    #[arg(value_name = "VERB")]
    path: Vec<String>,
    /// Write all pages into this folder instead.
    #[arg(long, conflicts_with = "path", value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

impl Man {
    pub fn run(&self) -> Result<(), RuntimeError> {
        let mut program = Cli::command().disable_help_subcommand(true);
        program.build();
        if let Some(folder) = &self.dir {
            return write_all(&program, "weir", folder).map_err(|error| {
                let folder = folder.display();
                RuntimeError::Failed(format!("{folder}: {error}; name a folder that exists"))
            });
        }
        let (mut command, mut name) = (&program, "weir".to_owned());
        for word in &self.path {
            command = command.find_subcommand(word).ok_or_else(|| {
                let known: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
                RuntimeError::Config(format!(
                    "`{name}` has no verb `{word}`; available: {}",
                    known.join(", ")
                ))
            })?;
            name = format!("{name} {word}");
        }
        let text = page(command, &name).map_err(|e| RuntimeError::Failed(e.to_string()))?;
        output::write(&text)
    }
}

/// A page in roff; `name` is the command as it is typed.
fn page(command: &Command, name: &str) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    let page = Page::new(command.clone());
    page.render_title(&mut out)?;
    page.render_name_section(&mut out)?;
    page.render_synopsis_section(&mut out)?;
    page.render_description_section(&mut out)?;
    if command
        .get_arguments()
        .any(|argument| !argument.is_hide_set())
    {
        page.render_options_section(&mut out)?;
    }
    if command.has_subcommands() {
        page.render_subcommands_section(&mut out)?;
    }
    let own = if name == "weir" {
        Vec::new()
    } else {
        examples::of(name)
    };
    let mut roff = Roff::default();
    if !own.is_empty() {
        roff.control("SH", ["EXAMPLES"]);
    }
    for (command, purpose) in own {
        roff.control("TP", []);
        roff.text([roman(command)]);
        roff.text([roman(purpose)]);
    }
    roff.to_writer(&mut out)?;
    page.render_version_section(&mut out)?;
    Ok(out)
}

fn write_all(command: &Command, name: &str, folder: &Path) -> io::Result<()> {
    let file = folder.join(format!("{}.1", name.replace(' ', "-")));
    std::fs::write(file, page(command, name)?)?;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        write_all(verb, &format!("{name} {}", verb.get_name()), folder)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_a_page_with_its_examples() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut program = Cli::command().disable_help_subcommand(true);
        program.build();
        write_all(&program, "weir", folder.path()).expect("pages");
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("a page");
        assert!(
            read("weir.1").contains("weir\\-sinks(1)"),
            "{}",
            read("weir.1")
        );
        let page = read("weir-sinks-reset.1");
        assert!(page.contains(".SH EXAMPLES"), "{page}");
        assert!(page.contains("\\-\\-from earliest"), "{page}");
        let pages = std::fs::read_dir(folder.path()).expect("a folder").count();
        assert!(pages > 20, "{pages} pages");
    }
}
