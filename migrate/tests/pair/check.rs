//! Carries out the faults, and checks the invariants.

use std::time::Duration;

use migrate::destination;
use migrate::error::{CancelRefused, OperatorChoice};
use migrate::protocol::codec::CodecError;
use migrate::record::{DestinationState, SourceState};
use migrate::report::Outcome;
use migrate::source;
use migrate::{Limits, OnStall, Phase, Reason, Throttle};

use crate::faults::{Side, What};
use crate::world::{Happening, World, limits};

/// Time that simulated steps add to the longest allowed pause of a guest.
const STEPS: Duration = Duration::from_millis(5);

impl World {
    pub(crate) fn inflict(&mut self, what: What) {
        self.note(|| format!("FAULT {what:?}"));
        match what {
            What::Cut { source_ms, destination_ms } => self.cut(
                Duration::from_millis(source_ms.into()),
                Duration::from_millis(destination_ms.into()),
            ),
            What::LoseMessage => self.lose_message = true,
            What::HoldMessage { ms } => self.hold_message = Duration::from_millis(ms.into()),
            What::LoseFrame => self.lose_frame = true,
            What::Outage { ms } => {
                let time = Duration::from_millis(ms.into());
                self.outage_until = self.outage_until.max(self.now + time);
                // Dead peers are detected within a few seconds.
                self.cut(Duration::from_secs(5), Duration::from_secs(7));
            }
            What::Kill(side) => self.kill(side),
            What::FailRecord(side, loss) => {
                self.fail_record.insert(side, loss);
            }
            What::FailGuest(side) => {
                self.fail_guest.insert(side, true);
            }
            What::Cancel(side) => self.cancel(side),
            What::OperatorDiscards(side) => self.operator_discards(side),
            What::OperatorRunsAfterDeathOfSource => self.operator_runs(),
            What::LoseDestinationHost => {
                self.kill(Side::Destination);
                self.destination_disk = None;
                self.facts.destination_disk_lost = true;
                // Memory for it is kept until the operator learns that it is gone for good.
                let discard = What::OperatorDiscards(Side::Source);
                self.after(Duration::from_secs(3600), Happening::Fault(discard));
            }
            What::Garble(Side::Source) => {
                let nonsense = source::Event::Malformed(CodecError::UnknownKind(99));
                if self.source.as_ref().is_some_and(|source| source.conn.is_some()) {
                    self.after(Duration::ZERO, Happening::ToSource(nonsense));
                }
            }
            What::Garble(Side::Destination) => {
                let nonsense = destination::Event::Malformed(CodecError::UnknownKind(99));
                if self.destination.as_ref().is_some_and(|side| side.conn.is_some()) {
                    self.after(Duration::ZERO, Happening::ToDestination(nonsense));
                }
            }
        }
    }

    fn kill(&mut self, side: Side) {
        let notice = Duration::from_secs(3);
        match side {
            Side::Source => {
                let Some(source) = self.source.take() else { return };
                self.facts.source_killed = true;
                let has_left = match self.source_disk {
                    Some(SourceState::Committed) => self.is_complete_there(),
                    Some(SourceState::Serving) => self.has_all_there(),
                    _ => false,
                };
                let owner = source.guest.is_some()
                    && (!has_left || source.guest.is_some_and(|guest| guest.running));
                self.facts.source_died_as_owner |= owner;
                if let Some(conn) = source.conn {
                    self.after(notice, Happening::Lost(conn, Side::Destination));
                }
                self.after(Duration::from_secs(1), Happening::Resolver);
            }
            Side::Destination => {
                let Some(side) = self.destination.take() else { return };
                self.facts.destination_killed = true;
                let ran = [Some(DestinationState::Running), Some(DestinationState::Fetching)];
                let owner = ran.contains(&self.destination_disk);
                self.facts.destination_died_as_owner |= owner;
                self.facts.died_taking_over |=
                    self.destination_disk == Some(DestinationState::Taking);
                if let Some(conn) = side.conn {
                    self.after(notice, Happening::Lost(conn, Side::Source));
                }
                if self.resolver_conn.is_some() {
                    let conn = self.resolver_conn.unwrap_or_default();
                    self.after(notice, Happening::Lost(conn, Side::Source));
                }
            }
        }
    }

    fn cancel(&mut self, side: Side) {
        let by = "the test".into();
        match side {
            Side::Source => {
                let Some(source) = self.source.as_ref().filter(|source| !source.settled) else {
                    return;
                };
                if source.machine.can_cancel().is_ok() {
                    self.facts.cancelled_in_time = true;
                }
                self.feed_source(source::Event::Cancel { by });
            }
            Side::Destination => self.feed_destination(destination::Event::Cancel { by }),
        }
    }

    fn operator_discards(&mut self, side: Side) {
        let choice = OperatorChoice::Discard;
        match side {
            Side::Source => {
                // Without post-copy, the destination is not told: if it does not run the guest,
                // that is lost, so the invariants do not include it.
                let serves = self.source_disk == Some(SourceState::Serving);
                let Some(source) = self.source.as_ref().filter(|source| !source.settled) else {
                    return;
                };
                let may = source.machine.can_resolve(choice).is_ok();
                if serves && may && self.facts.source_reports.is_empty() {
                    self.facts.operator_discarded = true;
                    self.feed_source(source::Event::Resolve(choice));
                    self.kill(Side::Source);
                }
            }
            Side::Destination => {
                let Some(destination) = &self.destination else { return };
                if !destination.settled && destination.machine.can_resolve(choice).is_ok() {
                    self.facts.operator_discarded = true;
                    self.feed_destination(destination::Event::Resolve(choice));
                }
            }
        }
    }

    fn operator_runs(&mut self) {
        let choice = OperatorChoice::Run;
        let Some(destination) = &self.destination else { return };
        if self.source.is_none()
            && !destination.settled
            && destination.machine.can_resolve(choice).is_ok()
        {
            self.facts.forced = true;
            self.feed_destination(destination::Event::Resolve(choice));
        }
    }

    /// Whether the destination has received all that it needs to be ready.
    fn is_complete_there(&self) -> bool {
        self.destination.as_ref().is_some_and(|side| side.machine.phase() >= Phase::Ready)
    }

    /// Whether the destination needs nothing more of the source's memory.
    fn has_all_there(&self) -> bool {
        let guest = self.destination.as_ref().and_then(|side| side.guest.as_ref());
        // Until the last list of missing pages has come, it does not know what it lacks.
        self.is_complete_there() && guest.is_some_and(|guest| guest.missing.is_empty())
    }

    fn source_runs(&self) -> bool {
        let guest = self.source.as_ref().and_then(|source| source.guest.as_ref());
        guest.is_some_and(|guest| guest.running)
    }

    fn destination_runs(&self) -> bool {
        let guest = self.destination.as_ref().and_then(|side| side.guest.as_ref());
        guest.is_some_and(|guest| guest.running)
    }

    /// Checks what must hold at all times.
    pub(crate) fn check_always(&mut self) {
        if self.source_runs() && self.destination_runs() {
            self.violation("two copies run");
        }
        let Some((source, since)) = self.source.as_ref().zip(self.stands_since) else { return };
        // A forced hand-over is planned to take longer.
        let allowed = match self.scenario.on_stall {
            OnStall::Force => limits().switchover,
            _ => {
                let raised = source.machine.progress(self.now).downtime_limit_seconds;
                let downtime = Duration::from_secs_f64(raised);
                Limits { downtime, ..limits() }.standstill()
            }
        };
        if since + allowed + STEPS < self.now {
            self.stands_since = None;
            self.violation("the guest stands for too long and is not handed over");
        }
    }

    /// Checks what must hold when the source resumes the guest.
    pub(crate) fn check_given_back(&mut self) {
        if self.facts.destination_ran {
            self.violation("the source runs a guest that has run at the destination");
        }
        let committed =
            [Some(SourceState::Committed), Some(SourceState::Serving)].contains(&self.source_disk);
        if !committed || !self.is_all_sent {
            return;
        }
        let own = [
            Some(DestinationState::Taking),
            Some(DestinationState::Fetching),
            Some(DestinationState::Running),
        ];
        let running = own.contains(&self.destination_disk);
        // A copy whose state is still being loaded may be destroyed only afterwards.
        let is_kept = self.destination.as_ref().is_some_and(|side| {
            side.guest.is_some() && side.machine.can_cancel() != Err(CancelRefused::Over)
        });
        if running || is_kept {
            self.violation("the source takes back a guest that it has committed");
        }
    }

    /// Checks what must hold when the destination takes the guest over.
    pub(crate) fn check_takeover(&mut self) {
        self.facts.destination_ran = true;
        let committed =
            [Some(SourceState::Committed), Some(SourceState::Serving)].contains(&self.source_disk);
        if !committed && !self.facts.forced {
            self.violation("the destination takes over without a commit record");
        }
        if self.flushed_at.is_none_or(|at| at > self.now) {
            self.violation("the destination takes over disks that the source has not flushed");
        }
        let own = [Some(DestinationState::Taking), Some(DestinationState::Running)];
        if !own.contains(&self.destination_disk) {
            self.violation("the destination takes over without a record of its own");
        }
        let guest = self.destination.as_ref().and_then(|side| side.guest.as_ref());
        let Some((guest, truth)) = guest.zip(self.truth.as_ref()) else {
            return self.violation("the destination takes over what was never sent");
        };
        if !guest.has(truth) {
            self.violation("the destination's memory or state is not the source's");
        }
    }

    /// Checks what must hold when no event is left.
    pub(crate) fn check_end(&mut self) {
        self.check_who_runs();
        self.check_outcomes();
        self.check_nothing_is_left();
        let left = self.source.as_ref().and_then(|source| source.guest.as_ref());
        if left.is_some_and(|guest| guest.throttle != Throttle::default()) {
            self.violation("the guest is left throttled");
        }
    }

    fn holds(&self, side: Side) -> bool {
        match side {
            Side::Source => self.source.as_ref().is_some_and(|side| side.guest.is_some()),
            Side::Destination => self.destination.as_ref().is_some_and(|side| side.guest.is_some()),
        }
    }

    fn in_doubt(&self) -> bool {
        let last = self.facts.source_reports.last();
        last.is_some_and(|report| report.outcome == Outcome::InDoubt) || self.facts.node_in_doubt
    }

    /// Whether the destination has given the guest up for more than the loss of a connection.
    fn has_given_up_there(&self) -> bool {
        let errors = self.facts.destination_reports.iter().filter_map(|it| it.error.as_ref());
        errors.into_iter().any(|error| error.reason != Reason::ConnectionLost)
    }

    fn check_who_runs(&mut self) {
        let facts = &self.facts;
        let may_be_gone = facts.source_died_as_owner
            || facts.destination_died_as_owner
            || facts.died_taking_over
            || facts.takeover_failed
            || (facts.source_killed && self.has_given_up_there())
            || (facts.source_killed && (facts.destination_killed || facts.operator_discarded));
        let may_stand = self.scenario.paused_by_user || facts.resume_failed;
        let holders = [Side::Source, Side::Destination].map(|side| self.holds(side));
        let runners = [self.source_runs(), self.destination_runs()];
        let doubt_has_cause =
            facts.destination_disk_lost || facts.takeover_failed || facts.died_taking_over;
        if self.in_doubt() {
            if runners.contains(&true) && !doubt_has_cause {
                self.violation("in doubt, and a copy runs");
            }
            if !doubt_has_cause {
                self.violation("in doubt without a cause");
            }
            return;
        }
        match holders {
            [true, true] => self.violation("two copies are held"),
            [false, false] if !may_be_gone => self.violation("no copy is left"),
            _ => {}
        }
        let held = holders.contains(&true);
        if held && !may_stand && !runners.contains(&true) && !may_be_gone {
            self.violation("the only copy does not run");
        }
        if self.scenario.paused_by_user && runners.contains(&true) {
            self.violation("a guest that its user had paused was let run");
        }
    }

    fn check_outcomes(&mut self) {
        let reports = &self.facts.source_reports;
        let mut wrong = Vec::new();
        let outcome = reports.last().map(|report| report.outcome);
        match outcome {
            None if self.source.is_some() => wrong.push("the source has not reported"),
            Some(Outcome::Migrated) if !self.facts.destination_ran => {
                wrong.push("reported as migrated, and the destination never took over");
            }
            Some(Outcome::StayedAtSource) if self.source.is_some() && !self.holds(Side::Source) => {
                wrong.push("reported as stayed, and it is not there");
            }
            Some(Outcome::Migrated) if self.facts.cancelled_in_time => {
                wrong.push("migrated although it was cancelled in time");
            }
            Some(Outcome::InDoubt) if reports.last().is_some_and(|r| r.way_out.is_none()) => {
                wrong.push("in doubt without a way out");
            }
            _ => {}
        }
        if reports.len() > 1 {
            wrong.push("the source has reported more than once");
        }
        if self.facts.destination_reports.len() > 1 {
            wrong.push("the destination has reported more than once");
        }
        for text in wrong {
            self.violation(text);
        }
    }

    fn check_nothing_is_left(&mut self) {
        let mut wrong = Vec::new();
        if let Some(source) = &self.source {
            if !source.settled && !self.in_doubt() {
                wrong.push("the source has not settled");
            }
            let logging = source.guest.as_ref().is_some_and(|guest| guest.logging);
            if logging && !self.in_doubt() {
                wrong.push("the dirty log still runs");
            }
        }
        if self.destination.as_ref().is_some_and(|side| !side.settled) {
            wrong.push("the destination has not settled");
        }
        if self.destination_runs() && self.destination_disk != Some(DestinationState::Running) {
            wrong.push("the guest runs at the destination, and no record says so");
        }
        let open = self.source_disk.and_then(|state| state.decision()).is_some();
        if open && !self.in_doubt() && !self.facts.source_record_failed {
            wrong.push("the source's record is still open");
        }
        for text in wrong {
            self.violation(text);
        }
    }
}
