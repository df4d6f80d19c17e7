//! Arguments of `lighter density`: what memory optimization sees, plans, does and did.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use memopt::policy::Goal;

use super::JsonFlag;

/// `lighter density`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter density status
  lighter density plan --goal 'free 8GiB'
  lighter density apply
  lighter density history
  lighter density next
  lighter density cancel

Asks the node of this host, which also runs what lighter.toml schedules.")]
pub(crate) struct DensityArgs {
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: DensityVerb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum DensityVerb {
    /// Show the memory that each guest uses, and what the host has left.
    Status(StatusArgs),
    /// Show what would be done, what it would bring and why; changes nothing.
    Plan(PlanArgs),
    /// Carry out a plan, and show how much memory really came back.
    Apply(ApplyArgs),
    /// Show what was done: all runs, or one.
    History(HistoryArgs),
    /// Show what lighter.toml schedules next.
    Next(NextArgs),
    /// Cancel the current run after its current step.
    Cancel(CancelRunArgs),
}

impl DensityVerb {
    /// Whether it can be done over the sockets that change nothing. A plan cannot: it takes time
    /// from guests.
    pub(crate) fn is_readonly(&self) -> bool {
        matches!(self, Self::Status(_) | Self::History(_) | Self::Next(_))
    }
}

/// `lighter density status`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter density status
  lighter density status --json")]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) json: JsonFlag,
}

/// What a plan is made for.
#[derive(Debug, Args)]
pub(crate) struct PlanOptions {
    /// How much is to be taken: `free 8GiB`, `keep 15% headroom` or `max density` [default: the
    /// policy's].
    #[arg(long, value_name = "GOAL")]
    pub(crate) goal: Option<Goal>,
}

/// `lighter density plan`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter density plan
  lighter density plan --goal 'keep 15% headroom'
  lighter density plan --survey             surveys the guests' pages first
  lighter density plan --policy dense.toml  by another policy than the node's
  lighter density plan --json > plan.json   for `density apply --plan plan.json`")]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) options: PlanOptions,

    /// Plan by this policy instead of the node's.
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: Option<PathBuf>,

    /// Survey the guests' pages first, all of them; a run does so where there is no recent survey.
    /// Without a recent one, nothing is planned for a guest's pages.
    #[arg(long)]
    pub(crate) survey: bool,

    #[command(flatten)]
    pub(crate) json: JsonFlag,
}

/// `lighter density apply`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter density apply
  lighter density apply --goal 'free 2GiB'
  lighter density apply --plan plan.json    its steps that still make sense
  lighter density apply --watch             again and again, until Ctrl-C

Ctrl-C ends the run after the step under way; what was done stays, and is in
`lighter density history`.")]
pub(crate) struct ApplyArgs {
    #[command(flatten)]
    pub(crate) options: PlanOptions,

    /// Do nothing that is not in this file, which `lighter density plan --json` wrote.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["goal", "watch"])]
    pub(crate) plan: Option<PathBuf>,

    /// Repeat until stopped.
    #[arg(long)]
    pub(crate) watch: bool,

    #[command(flatten)]
    pub(crate) json: JsonFlag,
}

/// `lighter density history`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter density history
  lighter density history -n 100
  lighter density history 17")]
pub(crate) struct HistoryArgs {
    /// Show all about the run of this number.
    pub(crate) run: Option<u64>,

    /// How many runs, the newest first.
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) count: u16,

    #[command(flatten)]
    pub(crate) json: JsonFlag,
}

/// `lighter density next`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter density next
  lighter density next -n 50 --json")]
pub(crate) struct NextArgs {
    /// How many runs.
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) count: u16,

    #[command(flatten)]
    pub(crate) json: JsonFlag,
}

/// `lighter density cancel`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter density cancel
  lighter density cancel 17      if that is the one under way

What was done stays; `lighter density history` has it.")]
pub(crate) struct CancelRunArgs {
    /// The run's number [default: whichever is under way].
    pub(crate) run: Option<u64>,
}
