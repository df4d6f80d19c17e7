//! The final report of a migration.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::decisions::{DecidedAt, DecisionKind};
use crate::error::MigrationError;
use crate::guest::GuestError;
use crate::phase::{Phase, PhaseTime};
use crate::progress::{LinkProgress, Progress, Role, Transfer};
use crate::protocol::MigrationId;
use crate::reason::Reason;
use crate::stall::Stall;
use crate::waits::PageWaits;

/// Most rounds that a report lists: if there were more, the first and the last ones.
pub const MAX_ROUNDS_LISTED: usize = 64;

/// Where the guest is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// At the destination: the migration succeeded.
    Migrated,
    /// At the source, unaffected by the migration; or paused there, with a [`Report::way_out`], if
    /// it could not be resumed.
    StayedAtSource,
    /// Paused at the source, and it is unknown whether the destination runs it: see
    /// [`Report::way_out`].
    InDoubt,
    /// On neither side, or this copy is useless: it ended, was discarded by the operator, or could
    /// not be resumed.
    Lost,
}

/// The final report. Base units: seconds, bytes, pages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// The migration.
    pub migration: MigrationId,
    /// The guest's name.
    pub guest: String,
    /// The side that reports.
    pub role: Role,
    /// Where the guest is now.
    pub outcome: Outcome,
    /// What went wrong, if anything.
    pub error: Option<ReportedError>,
    /// What an operator can do if the guest stays paused: the outcome is in doubt, or it could not
    /// be resumed.
    pub way_out: Option<String>,
    /// Duration of the whole migration.
    pub total_seconds: f64,
    /// How long the guest was paused, as this side measured it. Source: from asking it to pause
    /// until hearing that it runs (or having resumed it). Destination: from the announcement of the
    /// switchover until it runs.
    pub downtime_seconds: Option<f64>,
    /// The downtime that the source expected when it paused the guest.
    pub expected_downtime_seconds: Option<f64>,
    /// How long each step of the hand-over took, if the source paused the guest for it.
    #[serde(default)]
    pub standstill: Option<Standstill>,
    /// What the source did about a guest whose downtime did not fall below its limit, even if it
    /// only waited.
    #[serde(default)]
    pub stall: Option<Stall>,
    /// What the source decided on the way, in that order; at most
    /// [`crate::decisions::MAX_DECISIONS_LISTED`]. Only the source reports it.
    #[serde(default)]
    pub decisions: Vec<DecidedAt>,
    /// How many decisions of each kind there were.
    #[serde(default)]
    pub decision_counts: BTreeMap<DecisionKind, u64>,
    /// What an estimate shortly before the migration said of it, if there was one.
    #[serde(default)]
    pub estimate: Option<Estimated>,
    /// How long the guest waited for pages that followed it, if it did.
    #[serde(default)]
    pub page_waits: Option<PageWaits>,
    /// How often the source paused the guest earlier, to measure what a pause costs.
    #[serde(default)]
    pub dry_runs: u32,
    /// Total time that the guest was paused in those dry runs. Not part of the downtime.
    #[serde(default)]
    pub dry_run_seconds: f64,
    /// How often a hand-over took too long, or lost its connection, and was called off: the guest
    /// ran on at the source.
    #[serde(default)]
    pub returns: u32,
    /// Total time that the guest was paused in those hand-overs. Not part of the downtime.
    #[serde(default)]
    pub return_seconds: f64,
    /// How long each phase lasted, in their order; phases that were not reached are missing.
    pub phases: Vec<PhaseTime>,
    /// Size of guest memory.
    pub memory_bytes: u64,
    /// Size of the disks that were copied.
    #[serde(default)]
    pub disk_bytes: u64,
    /// Data transferred.
    pub transfer: Transfer,
    /// The links, if there were several. Only the source reports them.
    #[serde(default)]
    pub links: Vec<LinkProgress>,
    /// Number of rounds, including the last one.
    pub rounds_total: u32,
    /// The rounds; at most [`MAX_ROUNDS_LISTED`].
    pub rounds: Vec<Round>,
}

impl Report {
    /// Returns the report of a source whose session failed before the commit: the guest named
    /// `guest` was resumed there, or was not, as `resumed` says.
    pub fn of_a_breakdown(
        guest: &str,
        progress: &Progress,
        resumed: Result<(), GuestError>,
    ) -> Self {
        let message = "the migration failed by a bug in lighter: report it with the log of the guest's process";
        Self {
            migration: progress.migration,
            guest: guest.to_owned(),
            role: Role::Source,
            outcome: Outcome::StayedAtSource,
            error: Some(ReportedError {
                phase: progress.phase,
                reason: Reason::Other,
                message: message.to_owned(),
            }),
            way_out: resumed.err().map(|error| resume_again(guest, &error)),
            total_seconds: progress.elapsed_seconds,
            downtime_seconds: None,
            expected_downtime_seconds: None,
            standstill: None,
            stall: None,
            decisions: progress.decisions.clone(),
            decision_counts: progress.decision_counts.clone(),
            estimate: None,
            page_waits: None,
            dry_runs: 0,
            dry_run_seconds: 0.0,
            returns: 0,
            return_seconds: 0.0,
            phases: Vec::new(),
            memory_bytes: progress.memory_bytes,
            disk_bytes: progress.disk_bytes,
            transfer: progress.transfer,
            links: progress.links.clone(),
            rounds_total: progress.round,
            rounds: Vec::new(),
        }
    }
}

/// Returns what an operator can do for the guest `name`, which is still here but could not be
/// resumed.
pub(crate) fn resume_again(name: &str, error: &GuestError) -> String {
    format!(
        "{name} stays paused here, since it could not go on: {error}; `lighter resume {name}` tries again"
    )
}

/// The figures of an estimate, to be compared with those of the migration that followed it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Estimated {
    /// Duration of the whole migration.
    pub total_seconds: f64,
    /// Downtime of the guest.
    pub downtime_seconds: f64,
    /// Bytes sent over the data streams.
    pub wire_bytes: u64,
}

/// How long each step took between the pause of a guest and the message that hands it over, as the
/// source measured it. Disks are flushed and the state is saved while the last pages are sent. A
/// step that was under way when the source resumed the guest counts up to then.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Standstill {
    /// Stopping its vCPUs and devices, including requests that were under way.
    pub pause_seconds: f64,
    /// Flushing its disks.
    pub flush_seconds: f64,
    /// Saving the state of its vCPUs and devices.
    pub save_seconds: f64,
    /// Handing the last pages to the transport.
    pub send_seconds: f64,
    /// Waiting for the destination to be ready, including data still in transit; 0 if the decision
    /// did not wait for it.
    pub ready_seconds: f64,
    /// Waiting for the record of the decision, once all was sent; 0 if the decision waited for the
    /// destination.
    pub record_seconds: f64,
}

/// One round of pre-copy.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Round {
    /// Number of the round, from 1.
    pub round: u32,
    /// Pages sent, of memory and of disks.
    pub pages: u64,
    /// Zero pages among them.
    pub zero_pages: u64,
    /// Bytes handed to the transport.
    pub wire_bytes: u64,
    /// Duration of the round, without the time spent waiting for an acknowledgement at its end.
    pub seconds: f64,
    /// Pages that were dirty at its end.
    pub dirty_pages: u64,
}

/// A [`MigrationError`] in serialized form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReportedError {
    /// The phase in which it failed.
    pub phase: Phase,
    /// The reason, from a bounded set.
    pub reason: Reason,
    /// What happened, as a message.
    pub message: String,
}

impl From<&MigrationError> for ReportedError {
    fn from(error: &MigrationError) -> Self {
        Self { phase: error.phase, reason: error.reason(), message: error.to_string() }
    }
}
