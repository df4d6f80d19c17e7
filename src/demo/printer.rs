//! What the user of the demo sees: a few steps, each with what happened and how long it took.

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

use super::Leg;
use super::stage::Host;
use crate::api::types::WorkloadInfo;
use crate::cli::Output;
use crate::cli::host::DemoArgs;
use crate::output;
use crate::units::{
    PAGE_BYTES, format_count, format_duration, format_rate, format_size, format_vcpus,
};
use crate::verbs::summary;

/// Prints the steps on stdout; prints nothing for `--json`.
#[derive(Debug)]
pub(super) struct Printer {
    output: Output,
}

impl Printer {
    /// Prints for this kind of output.
    pub(super) fn new(output: Output) -> Self {
        Self { output }
    }

    fn say(&self, text: &str) -> Result<()> {
        match self.output {
            Output::Text => output::print_line(text),
            Output::Json => Ok(()),
        }
    }

    pub(super) fn opening(&self) -> Result<()> {
        self.say("A running guest moves from host a to host b and back, while it keeps writing to its memory.\n")
    }

    pub(super) fn hosts(&self, a: &Host, b: &Host) -> Result<()> {
        self.say(&format!(
            "Two hosts     a at {}, b at {}: each a node with its own certificate, on this machine",
            a.address(),
            b.address()
        ))
    }

    pub(super) fn guest(&self, args: &DemoArgs) -> Result<()> {
        let pattern = args
            .pattern
            .to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default();
        self.say(&format!(
            "A guest on a  {}, {}, rewrites {} of {}, {pattern} content",
            format_size(args.memory),
            format_vcpus(args.cpus.into()),
            format_rate(u64::from(args.dirty_rate).saturating_mul(PAGE_BYTES)),
            format_size(args.working_set.min(args.memory)),
        ))
    }

    pub(super) fn filled(
        &self,
        workload: &WorkloadInfo,
        memory_bytes: u64,
        took: Duration,
    ) -> Result<()> {
        self.say(&format!(
            "Memory        {} filled with stamped pages and checked once by the guest ({} checks) in {}",
            format_size(memory_bytes),
            format_count(workload.pages_checked),
            format_duration(took)
        ))
    }

    pub(super) fn leg(&self, from: &Host, to: &Host) -> Result<()> {
        self.say(&format!("\nHost {} to host {}, live over QUIC", from.name(), to.name()))
    }

    pub(super) fn moved(&self, leg: &Leg) -> Result<()> {
        let room = output::columns().map(|columns| columns.saturating_sub(2));
        let stall = Some(leg.guest.downtime_seconds);
        for line in summary::figures(&leg.report, stall, room).lines() {
            self.say(&format!("  {line}"))?;
        }
        let verdict = if leg.guest.is_good() {
            format!(
                "The guest's verdict on its memory: intact ({} pages checked on host {}, none lost, stale or torn)",
                format_count(leg.guest.pages_checked),
                leg.to
            )
        } else {
            leg.guest.complaint(leg.to)
        };
        self.say(&format!("  {verdict}"))
    }

    pub(super) fn end(&self, good: bool) -> Result<()> {
        if !good {
            return Ok(());
        }
        self.say("\nThe guest is back where it started, and lost nothing. Everything is being cleaned up.")
    }
}
