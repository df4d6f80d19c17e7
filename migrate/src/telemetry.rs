//! What a state machine records for progress and the final report.

use std::time::Duration;

use crate::convergence::DirtyRateMeter;
use crate::decisions::{Decided, DecisionKind, Decisions};
use crate::error::MigrationError;
use crate::guest::Throttled;
use crate::phase::{Phase, PhaseTime};
use crate::progress::{Progress, Role, Transfer};
use crate::protocol::MigrationId;
use crate::report::{
    Estimated, MAX_ROUNDS_LISTED, Outcome, Report, ReportedError, Round, Standstill,
};
use crate::stall::Stall;
use crate::waits::PageWaits;

/// Number of first rounds that stay listed when there are too many.
const FIRST_ROUNDS: usize = 8;

/// Record of one migration on one side. Times are those of the machine's caller.
#[derive(Debug)]
pub(crate) struct Telemetry {
    role: Role,
    migration: MigrationId,
    began: Duration,
    entered: Duration,
    phase: Phase,
    phases: Vec<PhaseTime>,
    rounds: Vec<Round>,
    rounds_total: u32,
    paused_since: Option<Duration>,
    downtime: Option<Duration>,
    dry_runs: u32,
    stood_in_dry_runs: Duration,
    returns: u32,
    stood_in_returns: Duration,
    decisions: Decisions,
    pub(crate) guest: String,
    pub(crate) memory_bytes: u64,
    pub(crate) disk_bytes: u64,
    pub(crate) transfer: Transfer,
    pub(crate) expected_downtime: Option<Duration>,
    pub(crate) standstill: Option<Standstill>,
    pub(crate) estimate: Option<Estimated>,
    /// How long the guest waits for pages that follow it.
    pub(crate) page_waits: Option<PageWaits>,
    dirty_rate: DirtyRateMeter,
}

impl Telemetry {
    pub(crate) fn new(role: Role, migration: MigrationId, now: Duration) -> Self {
        Self {
            role,
            migration,
            began: now,
            entered: now,
            phase: Phase::Connect,
            phases: Vec::new(),
            rounds: Vec::new(),
            rounds_total: 0,
            paused_since: None,
            downtime: None,
            dry_runs: 0,
            stood_in_dry_runs: Duration::ZERO,
            returns: 0,
            stood_in_returns: Duration::ZERO,
            decisions: Decisions::default(),
            guest: String::new(),
            memory_bytes: 0,
            disk_bytes: 0,
            transfer: Transfer::default(),
            expected_downtime: None,
            standstill: None,
            estimate: None,
            page_waits: None,
            dirty_rate: DirtyRateMeter::default(),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    pub(crate) fn began(&self) -> Duration {
        self.began
    }

    /// Enters `phase`; ignored if it is the current phase or an earlier one.
    pub(crate) fn enter(&mut self, phase: Phase, now: Duration) {
        if phase <= self.phase {
            return;
        }
        self.close_phase(now);
        self.phase = phase;
    }

    /// Goes back to rounds: a hand-over was called off, and the guest runs on at the source.
    pub(crate) fn goes_back(&mut self, now: Duration) {
        self.close_phase(now);
        self.phase = Phase::Precopy;
        self.returns = self.returns.saturating_add(1);
        if let Some(from) = self.paused_since.take() {
            let stood = now.saturating_sub(from);
            self.stood_in_returns = self.stood_in_returns.saturating_add(stood);
        }
    }

    /// Returns how often a hand-over was called off.
    pub(crate) fn returns(&self) -> u32 {
        self.returns
    }

    fn close_phase(&mut self, now: Duration) {
        self.phases = self.phases(now);
        self.entered = now;
    }

    /// Returns the current phase and its duration so far.
    fn last_phase(&self, now: Duration) -> PhaseTime {
        let seconds = now.saturating_sub(self.entered).as_secs_f64();
        PhaseTime { phase: self.phase, seconds }
    }

    /// Returns the phases so far, including the current one.
    fn phases(&self, now: Duration) -> Vec<PhaseTime> {
        let (mut phases, last) = (self.phases.clone(), self.last_phase(now));
        match phases.iter_mut().find(|time| time.phase == last.phase) {
            // It is entered again after a hand-over that was called off.
            Some(time) => time.seconds += last.seconds,
            None => phases.push(last),
        }
        phases
    }

    /// Records that the guest is paused from now on.
    pub(crate) fn stands(&mut self, now: Duration) {
        self.paused_since.get_or_insert(now);
    }

    /// Records that the guest runs again, on either side.
    pub(crate) fn runs(&mut self, now: Duration) {
        if let Some(from) = self.paused_since.take() {
            self.downtime = Some(now.saturating_sub(from));
        }
    }

    /// Records that the guest was paused for `time` in a dry run.
    pub(crate) fn stood_in_dry_run(&mut self, time: Duration) {
        self.dry_runs = self.dry_runs.saturating_add(1);
        self.stood_in_dry_runs = self.stood_in_dry_runs.saturating_add(time);
    }

    /// Adds a round; if there are too many, the first and the last ones are kept.
    pub(crate) fn add_round(&mut self, round: Round) {
        self.rounds_total = self.rounds_total.max(round.round);
        if self.rounds.len() == MAX_ROUNDS_LISTED {
            self.rounds.remove(FIRST_ROUNDS);
        }
        self.rounds.push(round);
    }

    /// Notes a decision.
    pub(crate) fn decides(&mut self, what: Decided, now: Duration) {
        self.decisions.add(what, now.saturating_sub(self.began), self.rounds_total);
    }

    /// Returns whether there was a decision of this kind since limits last changed.
    pub(crate) fn holds(&self, kind: DecisionKind) -> bool {
        self.decisions.holds(kind)
    }

    /// Returns what was done about a stall; none if the migration has not stalled.
    pub(crate) fn stall(&self) -> Option<Stall> {
        self.decisions.stall()
    }

    /// Notes how much a stalled guest is slowed down now.
    pub(crate) fn throttles(&mut self, throttled: Throttled) {
        self.decisions.note_throttle(throttled);
    }

    /// Adds a sample of the dirty log, which began with this phase; returns pages per second as of
    /// now.
    pub(crate) fn dirtied(&mut self, pages: u64, now: Duration) -> f64 {
        self.dirty_rate.add_sample(pages, self.entered, now);
        self.dirty_rate.pages_per_second()
    }

    /// Returns the last round, for changes.
    pub(crate) fn last_round(&mut self) -> Option<&mut Round> {
        self.rounds.last_mut()
    }

    /// Returns the part of the progress that both sides have.
    pub(crate) fn progress(&self, now: Duration) -> Progress {
        Progress {
            phase: self.phase,
            phases: self.phases(now),
            elapsed_seconds: now.saturating_sub(self.began).as_secs_f64(),
            memory_bytes: self.memory_bytes,
            disk_bytes: self.disk_bytes,
            transfer: self.transfer,
            decisions: self.decisions.listed(),
            decision_counts: self.decisions.counts(),
            page_waits: self.page_waits.clone(),
            ..Progress::new(self.migration, self.role)
        }
    }

    /// Returns the final report as of now.
    pub(crate) fn report(
        &self,
        outcome: Outcome,
        error: Option<&MigrationError>,
        now: Duration,
    ) -> Report {
        Report {
            migration: self.migration,
            guest: self.guest.clone(),
            role: self.role,
            outcome,
            error: error.map(ReportedError::from),
            way_out: None,
            total_seconds: now.saturating_sub(self.began).as_secs_f64(),
            downtime_seconds: self.downtime.map(|time| time.as_secs_f64()),
            expected_downtime_seconds: self.expected_downtime.map(|time| time.as_secs_f64()),
            standstill: self.standstill,
            stall: self.stall(),
            decisions: self.decisions.listed(),
            decision_counts: self.decisions.counts(),
            estimate: self.estimate,
            page_waits: self.page_waits.clone(),
            dry_runs: self.dry_runs,
            dry_run_seconds: self.stood_in_dry_runs.as_secs_f64(),
            returns: self.returns,
            return_seconds: self.stood_in_returns.as_secs_f64(),
            phases: self.phases(now),
            memory_bytes: self.memory_bytes,
            disk_bytes: self.disk_bytes,
            transfer: self.transfer,
            links: Vec::new(),
            rounds_total: self.rounds_total,
            rounds: self.rounds.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_first_and_the_last_of_too_many_rounds() {
        let mut notes = Telemetry::new(Role::Source, MigrationId::random(), Duration::from_secs(5));
        for round in 1..=1000 {
            let blank = Round {
                round,
                pages: 0,
                zero_pages: 0,
                wire_bytes: 0,
                seconds: 0.0,
                dirty_pages: 0,
            };
            notes.add_round(blank);
        }

        let report = notes.report(Outcome::Migrated, None, Duration::from_secs(6));

        assert_eq!(report.rounds_total, 1000);
        assert_eq!(report.rounds.len(), MAX_ROUNDS_LISTED);
        assert_eq!(report.rounds[7].round, 8);
        assert_eq!(report.rounds[8].round, 945);
        assert_eq!(report.rounds[63].round, 1000);
    }

    #[test]
    fn a_hand_over_that_was_called_off_counts_apart_and_its_phases_add_up() {
        let mut notes = Telemetry::new(Role::Source, MigrationId::random(), Duration::ZERO);
        let at = Duration::from_secs;
        notes.enter(Phase::Precopy, at(1));
        notes.enter(Phase::Switchover, at(3));
        notes.stands(at(3));
        notes.goes_back(at(5));
        assert_eq!((notes.phase(), notes.returns()), (Phase::Precopy, 1));
        notes.enter(Phase::Switchover, at(9));
        notes.stands(at(9));
        notes.runs(at(10));

        let report = notes.report(Outcome::Migrated, None, at(10));

        let phases: Vec<_> = report.phases.iter().map(|p| (p.phase, p.seconds)).collect();
        assert_eq!(
            phases,
            [(Phase::Connect, 1.0), (Phase::Precopy, 6.0), (Phase::Switchover, 3.0)]
        );
        assert_eq!((report.downtime_seconds, report.return_seconds), (Some(1.0), 2.0));
    }

    #[test]
    fn adds_phases_up_to_the_total() {
        let mut notes = Telemetry::new(Role::Source, MigrationId::random(), Duration::ZERO);
        notes.enter(Phase::Prepare, Duration::from_secs(1));
        notes.enter(Phase::Precopy, Duration::from_secs(3));
        notes.enter(Phase::Connect, Duration::from_secs(4));

        let report = notes.report(Outcome::StayedAtSource, None, Duration::from_secs(10));

        let phases: Vec<_> = report.phases.iter().map(|p| (p.phase, p.seconds)).collect();
        assert_eq!(phases, [(Phase::Connect, 1.0), (Phase::Prepare, 2.0), (Phase::Precopy, 7.0)]);
    }
}
