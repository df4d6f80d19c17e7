//! Writes the man pages and the shell completions of `lighter`, from its command line as clap
//! knows it. `scripts/package` runs it: `cargo run --example manual -- FOLDER`.
//!
//! The program has no library, so this includes the modules that define the command line.

#[path = "../src/address.rs"]
#[expect(dead_code, reason = "only the command line is needed")]
mod address;
#[path = "../src/cli/mod.rs"]
#[expect(dead_code, reason = "only the command line is needed")]
mod cli;
#[path = "../src/names.rs"]
#[expect(dead_code, reason = "only the command line is needed")]
mod names;
#[path = "../src/units.rs"]
#[expect(dead_code, reason = "only the command line is needed")]
mod units;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

fn main() -> Result<()> {
    let folder = std::env::args_os().nth(1).context("which folder? usage: manual FOLDER")?;
    let folder = PathBuf::from(folder);
    let [man, completions] = ["man", "completions"].map(|name| folder.join(name));
    for made in [&man, &completions] {
        std::fs::create_dir_all(made)
            .with_context(|| format!("cannot create {}", made.display()))?;
    }
    let mut command = cli::Cli::command();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, "lighter", &completions)
            .with_context(|| format!("cannot write the completions for {shell}"))?;
    }
    clap_mangen::generate_to(cli::Cli::command(), &man).context("cannot write the man pages")
}
