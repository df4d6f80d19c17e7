//! What a migration did, once it is over.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::MigrationError;
use crate::guest::GuestError;
use crate::phase::{Phase, PhaseTime};
use crate::progress::{Progress, Role, Transfer};
use crate::protocol::MigrationId;
use crate::reason::Reason;

/// Most rounds that a report lists: the first and the last ones, when there were more.
pub const MAX_ROUNDS_LISTED: usize = 64;

/// Where the guest is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// At the destination: the migration succeeded.
    Migrated,
    /// At the source, as if nothing had happened; or paused there, with a [`Report::way_out`], when
    /// it could not go on.
    StayedAtSource,
    /// Paused at the source, and nobody can tell whether the destination runs it: see
    /// [`Report::way_out`].
    InDoubt,
    /// At neither side, or this copy is of no use: it ended, was discarded by the operator, or
    /// could not be resumed.
    Lost,
}

/// The final report. Base units: seconds, bytes, pages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// The migration.
    pub migration: MigrationId,
    /// The guest's name.
    pub guest: String,
    /// Which side tells.
    pub role: Role,
    /// Where the guest is now.
    pub outcome: Outcome,
    /// What went wrong, if anything.
    pub error: Option<ReportedError>,
    /// What an operator can do when the guest stays paused: in doubt, or because it could not go
    /// on.
    pub way_out: Option<String>,
    /// From beginning to end.
    pub total_seconds: f64,
    /// For how long the guest stood, as this side saw it: the source from asking it to pause to
    /// hearing that it runs (or having resumed it); the destination from the announcement of the
    /// switchover to its running.
    pub downtime_seconds: Option<f64>,
    /// What the source had expected of the downtime when it paused the guest.
    pub expected_downtime_seconds: Option<f64>,
    /// What the guest stood still for at the source, when it was paused to be handed over.
    #[serde(default)]
    pub standstill: Option<Standstill>,
    /// How often the source paused the guest before, to measure what a pause costs.
    #[serde(default)]
    pub dry_runs: u32,
    /// For how long the guest stood in those, all of them together. No part of the downtime.
    #[serde(default)]
    pub dry_run_seconds: f64,
    /// How long each phase lasted, in their order; phases that were not reached are missing.
    pub phases: Vec<PhaseTime>,
    /// Guest memory.
    pub memory_bytes: u64,
    /// Size of the disks that went along.
    #[serde(default)]
    pub disk_bytes: u64,
    /// What was transferred.
    pub transfer: Transfer,
    /// Number of rounds, the last one included.
    pub rounds_total: u32,
    /// The rounds, at most [`MAX_ROUNDS_LISTED`].
    pub rounds: Vec<Round>,
}

impl Report {
    /// The report of a source whose session broke down before its decision: the guest named `guest`
    /// goes on there, or does not, as `resumed` says.
    pub fn of_a_breakdown(
        guest: &str,
        progress: &Progress,
        resumed: Result<(), GuestError>,
    ) -> Self {
        let message = "the migration broke down by a fault in lighter; its log tells more";
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
            dry_runs: 0,
            dry_run_seconds: 0.0,
            phases: Vec::new(),
            memory_bytes: progress.memory_bytes,
            disk_bytes: progress.disk_bytes,
            transfer: progress.transfer,
            rounds_total: progress.round,
            rounds: Vec::new(),
        }
    }
}

/// What an operator can do for the guest `name`, which is still here and could not go on.
pub(crate) fn resume_again(name: &str, error: &GuestError) -> String {
    format!(
        "{name} stays paused here, since it could not go on: {error}; `lighter resume {name}` tries again"
    )
}

/// What a guest stood still for before the decision to hand it over, as the source saw it: how long
/// each step took. Disks are flushed and the state is saved beside the last pages. A step that was
/// under way when the source let the guest go on counts up to then.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Standstill {
    /// Stopping its vCPUs and devices, with the requests that were under way.
    pub pause_seconds: f64,
    /// Flushing its disks.
    pub flush_seconds: f64,
    /// Saving the state of its vCPUs and devices.
    pub save_seconds: f64,
    /// Handing the last pages over to the transport.
    pub send_seconds: f64,
    /// Waiting for the destination to be ready, with what was still on its way there.
    pub ready_seconds: f64,
}

/// One round of pre-copy.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Round {
    /// Its number, from 1.
    pub round: u32,
    /// Pages sent, of memory and of disks.
    pub pages: u64,
    /// Pages among them that were zero.
    pub zero_pages: u64,
    /// Bytes handed to the transport.
    pub wire_bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// Pages that were dirty at its end.
    pub dirty_pages: u64,
}

/// A [`MigrationError`] as data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReportedError {
    /// The phase in which it failed.
    pub phase: Phase,
    /// The reason, from a bounded set.
    pub reason: Reason,
    /// What happened, in words.
    pub message: String,
}

impl From<&MigrationError> for ReportedError {
    fn from(error: &MigrationError) -> Self {
        Self { phase: error.phase, reason: error.reason(), message: error.to_string() }
    }
}
