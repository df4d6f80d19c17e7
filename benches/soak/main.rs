//! Two hosts whose nodes optimize memory every minute while guests start, end, grow, are paused and
//! migrate: nothing may break.
//!
//!     cargo bench --bench soak [-- --minutes 30] [--seed N]
//!
//! A seed determines what happens: every few seconds a clone (the built-in workload) is started or
//! ended, writes to more or less of its memory, is paused, resumed, or migrated; so is one Linux
//! guest, whose balloon is also set by hand; and a node is killed and replaced. After each action
//! the guest concerned must be alive with intact memory, and all guests must be where they should
//! be. At the end, in addition, ksmd's settings must be restored, schedules must have run every
//! minute, nodes must not have grown, and nothing may be left behind. Needs root. Start reading at
//! [`story`].

mod actions;
mod checks;
mod dice;
mod linux;
mod nodes;
mod stage;
mod story;
mod summary;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use support::bench::interruption;

/// A soak of the memory optimizer.
#[derive(Debug, Parser)]
struct Options {
    /// How long it lasts, in minutes.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(2..))]
    minutes: u64,
    /// What happens is drawn by this [default: it is drawn itself].
    #[arg(long)]
    seed: Option<u64>,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let seed = options.seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
    interruption::watch()?;
    println!("soak: {} minutes, --seed {seed}", options.minutes);
    let summary = story::play(Duration::from_secs(60 * options.minutes), seed)?;
    println!("\n{summary}");
    Ok(if summary.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
