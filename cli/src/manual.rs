//! Manual pages and completions, made from the declaration of the command line.

use std::{fs, io::Write, path::Path};

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

use crate::{args::Args, exit::Exit};

/// Writes a page for the tool and one for each of its commands into `folder`, which is made where it is missing.
pub fn man(folder: &Path) -> Result<Exit> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let mut command = Args::command().disable_help_subcommand(true);
    command.build();
    clap_mangen::generate_to(command, folder)
        .with_context(|| format!("write manual pages to {}", folder.display()))?;
    Ok(Exit::Clean)
}

/// Writes the completion for `shell`.
pub fn completion(shell: Shell, out: &mut dyn Write) -> Result<Exit> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "mooring", &mut text);
    out.write_all(&text)?;
    Ok(Exit::Clean)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What is shown in `--help`.
    fn commands() -> BTreeSet<String> {
        let command = Args::command();
        let shown = command.get_subcommands().filter(|one| !one.is_hide_set());
        shown.map(|one| one.get_name().to_owned()).collect()
    }

    #[test]
    fn the_declaration_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn each_command_has_a_page_with_examples() {
        let folder = tempfile::tempdir().unwrap();
        let pages = folder.path().join("man1");
        man(&pages).unwrap();
        for name in commands() {
            let page = fs::read_to_string(pages.join(format!("mooring-{name}.1"))).unwrap();
            assert!(page.contains(".SH NAME"), "{name}: {page}");
            assert!(name == "version" || page.contains("Examples:"), "{name} has no example");
        }
        assert!(pages.join("mooring.1").exists());
        assert!(!pages.join("mooring-man.1").exists(), "a hidden command has a page");
    }

    #[test]
    fn every_shell_completes_every_command() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            completion(shell, &mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            for name in commands() {
                assert!(text.contains(&name), "{shell} does not complete {name}");
            }
        }
    }
}
