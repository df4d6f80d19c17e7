//! Events of the guest, for all clients that follow it.
//!
//! The guest never waits for a client. No state is kept per client: each passes the number of the
//! event that it wants next. Old events are dropped, read or not.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use migrate::progress::Role;
use migrate::report::Outcome;
use migrate::{MigrationId, Progress, Report};
use tokio::sync::watch;
use vmm_core::Restarts;

use crate::api::events::{Event, What};
use crate::api::migration::MigrationStatus;
use crate::clock::unix_ms;
use crate::ended::How;
use crate::state_dir::GuestIdentity;

/// Events that are kept for clients that connect later, or are slow.
const KEPT_MAX: usize = 256;

/// The last events of a guest's process.
#[derive(Debug)]
pub(crate) struct Events {
    of: GuestIdentity,
    reported: Mutex<Reported>,
    /// Number of the next event; `None` when there will be no more.
    next: watch::Sender<Option<u64>>,
}

/// What has been reported so far.
#[derive(Debug, Default)]
struct Reported {
    kept: VecDeque<Event>,
    /// Whether the guest runs, once it has started.
    is_running: Option<bool>,
    /// Number of resets.
    restarts: u64,
    migration: Option<ReportedMigration>,
}

/// What has been reported about the last migration.
#[derive(Debug)]
struct ReportedMigration {
    id: MigrationId,
    phases: usize,
    decisions: u64,
    is_in_doubt: bool,
    is_page_withheld: bool,
    links_lost: Vec<IpAddr>,
    end: Option<What>,
}

impl Events {
    /// The events of the process with this identity, empty at first.
    pub(super) fn new(of: GuestIdentity) -> Arc<Self> {
        Arc::new(Self { of, reported: Mutex::default(), next: watch::Sender::new(Some(0)) })
    }

    /// Reports that the guest runs here; only the first call counts.
    pub(super) fn started(&self) {
        self.report_all(|reported| reported.start().into_iter().collect());
    }

    /// Reports that the guest was paused or resumed, if that is new.
    pub(super) fn is_running(&self, is_running: bool) {
        self.report_all(|reported| match reported.is_running {
            Some(was_running) if was_running != is_running => {
                reported.is_running = Some(is_running);
                vec![if is_running { What::Resumed } else { What::Paused }]
            }
            Some(_) | None => Vec::new(),
        });
    }

    /// Reports each reset of the guest that is new.
    pub(super) fn restarts(&self, restarts: &Restarts) {
        let Some(reason) = restarts.last_reason() else { return };
        self.report_all(|reported| {
            // Two threads may report at once, the later count first.
            let known = reported.restarts;
            reported.restarts = known.max(restarts.count);
            // Of several resets at once, only the reason of the last one is known.
            (known..restarts.count).map(|_| What::Reset { reason: reason.clone() }).collect()
        });
    }

    /// Reports what happens once, such as that a device has come or gone.
    pub(super) fn once(&self, what: What) {
        self.report_all(|_| vec![what]);
    }

    /// Reports that a migration starts.
    pub(super) fn migration_started(&self, migration_id: MigrationId, role: Role) {
        self.report_all(|reported| {
            let new = ReportedMigration {
                id: migration_id,
                phases: 0,
                decisions: 0,
                is_in_doubt: false,
                is_page_withheld: false,
                links_lost: Vec::new(),
                end: None,
            };
            reported.migration = Some(new);
            vec![What::MigrationStarted { migration_id, role }]
        });
    }

    /// Reports what is new about a migration, if it is the last one that started.
    pub(super) fn migration(&self, status: &MigrationStatus) {
        let Some(progress) = &status.progress else { return };
        self.report_all(|reported| reported.migration(progress, status.report.as_ref()));
    }

    /// Reports that the guest is no longer here; no event follows.
    pub(super) fn stopped(&self, how: How, reason: String) {
        let mut reported = self.reported();
        self.report(&mut reported, vec![What::Stopped { reason, failed: how.is_failure() }]);
        self.next.send_replace(None);
    }

    /// Returns the number of the first event for a reader that asks for `from`; a number that is
    /// not reached yet means the next event.
    pub(super) fn first(&self, from: u64) -> u64 {
        let next = *self.next.borrow();
        next.map_or(from, |next| from.min(next))
    }

    /// Waits for the event with this number, or the oldest later one that is still kept; `None`
    /// when there will be no more.
    pub(super) async fn wait_for(&self, number: u64) -> Option<Event> {
        let mut next = self.next.subscribe();
        // Cannot fail: the sender lives as long as `self`.
        let _ = next.wait_for(|next| next.is_none_or(|next| next > number)).await;
        self.reported().kept.iter().find(|event| event.number >= number).cloned()
    }

    /// Adds the events that `news` derives from what has been reported.
    fn report_all(&self, news: impl FnOnce(&mut Reported) -> Vec<What>) {
        // The lock makes concurrent reports wait, so that numbers rise.
        let mut reported = self.reported();
        let news = news(&mut reported);
        self.report(&mut reported, news);
    }

    fn report(&self, reported: &mut Reported, news: Vec<What>) {
        let Some(mut number) = *self.next.borrow() else { return };
        for what in news {
            let GuestIdentity { name, uuid, pid, .. } = &self.of;
            let (guest, uuid, pid) = (name.clone(), *uuid, *pid);
            reported.kept.push_back(Event {
                time_unix_ms: unix_ms(),
                guest,
                uuid,
                pid,
                number,
                what,
            });
            number += 1;
        }
        let surplus = reported.kept.len().saturating_sub(KEPT_MAX);
        reported.kept.drain(..surplus);
        self.next.send_if_modified(|next| next.replace(number) != Some(number));
    }

    fn reported(&self) -> MutexGuard<'_, Reported> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reported {
    fn start(&mut self) -> Option<What> {
        let is_new = self.is_running.is_none();
        self.is_running.get_or_insert(true);
        is_new.then_some(What::Started)
    }

    /// Returns what is new about a migration, given its progress and report.
    fn migration(&mut self, progress: &Progress, report: Option<&Report>) -> Vec<What> {
        let migration_id = progress.migration;
        let Some(known) = self.migration.as_mut().filter(|known| known.id == migration_id) else {
            return Vec::new();
        };
        let phases = progress.phases.iter().skip(known.phases);
        let phase = |phase| What::MigrationPhase { migration_id, phase };
        let phases: Vec<_> = phases.map(|it| phase(it.phase)).collect();
        known.phases += phases.len();
        let decisions = progress.decisions_after(known.decisions).iter().cloned();
        let decision = |decided| What::MigrationDecided { migration_id, decided };
        // A decision leads to a phase, except that a hand-over is called off in one: what is new in
        // the same moment is not sorted.
        let mut news: Vec<_> = decisions.map(decision).chain(phases).collect();
        known.decisions = known.decisions.max(progress.decision_counts.values().sum());
        let was_in_doubt = std::mem::replace(&mut known.is_in_doubt, progress.doubt().is_some());
        let doubt = progress.doubt().filter(|_| !was_in_doubt);
        news.extend(doubt.map(|detail| What::InDoubt { detail: detail.to_owned() }));
        let withheld = progress.page_waits.as_ref().filter(|waits| waits.is_withheld());
        let was_withheld = std::mem::replace(&mut known.is_page_withheld, withheld.is_some());
        let withheld = withheld.filter(|_| !was_withheld).map(|waits| waits.oldest_seconds);
        news.extend(withheld.map(|seconds| What::WaitsForMemory { migration_id, seconds }));
        for link in &progress.links {
            let Some(detail) = link.lost.clone() else { continue };
            if !known.links_lost.contains(&link.address) {
                known.links_lost.push(link.address);
                news.push(What::LinkLost { migration_id, address: link.address, detail });
            }
        }
        known.links_lost.retain(|lost| {
            progress.links.iter().any(|link| link.address == *lost && link.lost.is_some())
        });
        // A report in doubt is followed by another one.
        let end = report.map(What::ended).filter(|end| known.end.as_ref() != Some(end));
        if let Some(end) = end {
            known.end = Some(end.clone());
            news.push(end);
        }
        let has_arrived = report.is_some_and(|report| {
            report.role == Role::Destination && report.outcome == Outcome::Migrated
        });
        if has_arrived {
            news.extend(self.start());
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use migrate::Phase;
    use migrate::decisions::{Decided, DecidedAt, DecisionKind};
    use migrate::phase::PhaseTime;
    use migrate::progress::LinkProgress;
    use migrate::waits::PageWaits;
    use vmm_core::StopReason;

    use super::*;

    fn events() -> Arc<Events> {
        let name = "web".parse().unwrap();
        Events::new(GuestIdentity { name, uuid: uuid::Uuid::nil(), pid: 7, started_unix_ms: 0 })
    }

    /// All events that are still kept.
    fn reported(events: &Events) -> Vec<What> {
        events.reported().kept.iter().map(|event| event.what.clone()).collect()
    }

    fn status(id: MigrationId, phases: &[Phase], end: Option<Outcome>) -> MigrationStatus {
        let mut progress = Progress::new(id, Role::Source);
        progress.phases = phases.iter().map(|&phase| PhaseTime { phase, seconds: 0.5 }).collect();
        let report =
            |outcome| Report { outcome, ..Report::of_a_breakdown("web", &progress, Ok(())) };
        let report = end.map(report);
        MigrationStatus { progress: Some(progress), report }
    }

    #[test]
    fn each_guest_event_is_reported_once() {
        let events = events();
        events.is_running(false);
        events.started();
        events.started();
        for is_running in [true, false, false, true] {
            events.is_running(is_running);
        }
        let restarts = Restarts { count: 1, last: Some(StopReason::ResetAsked) };
        events.restarts(&restarts);
        events.restarts(&restarts);
        events.stopped(How::PoweredOff, "powered off".to_owned());
        events.is_running(false);
        let reset = What::Reset { reason: "reset on request".to_owned() };
        let stopped = What::Stopped { reason: "powered off".to_owned(), failed: false };
        assert_eq!(reported(&events), [What::Started, What::Paused, What::Resumed, reset, stopped]);
        let numbers = events.reported().kept.iter().map(|event| event.number).collect::<Vec<_>>();
        assert_eq!(numbers, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn each_phase_of_a_migration_is_reported_exactly_once() {
        let (events, id) = (events(), MigrationId::random());
        let phase = |phase| What::MigrationPhase { migration_id: id, phase };
        events.migration(&status(id, &[Phase::Connect], None));
        events.migration_started(id, Role::Source);
        let [connect, prepare, precopy, switchover] =
            [Phase::Connect, Phase::Prepare, Phase::Precopy, Phase::Switchover];
        events.migration(&status(id, &[connect], None));
        let later = status(id, &[connect, prepare, precopy, switchover], None);
        events.migration(&later);
        events.migration(&later);
        let begun = What::MigrationStarted { migration_id: id, role: Role::Source };
        let phases = [connect, prepare, precopy, switchover].map(phase);
        assert_eq!(reported(&events), [[begun].as_slice(), &phases].concat());
    }

    #[test]
    fn a_migration_in_doubt_ends_twice_and_an_earlier_one_is_not_reported_again() {
        let (events, id) = (events(), MigrationId::random());
        events.migration_started(id, Role::Source);
        let mut doubt = status(id, &[], Some(Outcome::InDoubt));
        doubt.progress.as_mut().unwrap().in_doubt = Some("wait".to_owned());
        events.migration(&doubt);
        events.migration(&doubt);
        let stayed = status(id, &[], Some(Outcome::StayedAtSource));
        events.migration(&stayed);
        events.migration(&stayed);
        let next = MigrationId::random();
        events.migration_started(next, Role::Source);
        events.migration(&stayed);
        let end = |status: &MigrationStatus| What::ended(status.report.as_ref().unwrap());
        let start = |migration_id| What::MigrationStarted { migration_id, role: Role::Source };
        let detail = "wait".to_owned();
        let expected =
            [start(id), What::InDoubt { detail }, end(&doubt), end(&stayed), start(next)];
        assert_eq!(reported(&events), expected);
        let text = end(&doubt).to_string();
        assert!(text.starts_with("migration ended: in doubt: "), "{text}");
    }

    #[test]
    fn each_long_wait_for_a_page_is_reported_once() {
        let (events, id) = (events(), MigrationId::random());
        events.migration_started(id, Role::Destination);
        for oldest_seconds in [0.1, 6.0, 7.0, 0.0, 8.0] {
            let mut status = status(id, &[], None);
            let waits = PageWaits { oldest_seconds, ..PageWaits::default() };
            status.progress.as_mut().unwrap().page_waits = Some(waits);
            events.migration(&status);
        }
        let waits = |seconds| What::WaitsForMemory { migration_id: id, seconds };
        assert_eq!(reported(&events)[1..], [waits(6.0), waits(8.0)]);
    }

    #[test]
    fn each_decision_is_reported_once_also_if_it_is_no_longer_listed() {
        let (events, id) = (events(), MigrationId::random());
        events.migration_started(id, Role::Source);
        let decided = |after: u32| DecidedAt {
            after_seconds: after.into(),
            what: Decided::Throttled { percent: 20, vcpus: 1, disk_bytes_per_second: None },
        };
        for (listed, count) in [(0..2, 2), (0..2, 2), (7..9, 9), (8..10, 10)] {
            let mut status = status(id, &[], None);
            let progress = status.progress.as_mut().unwrap();
            progress.decisions = listed.map(decided).collect();
            progress.decision_counts.insert(DecisionKind::Throttled, count);
            events.migration(&status);
        }
        let expected = [0, 1, 7, 8, 9]
            .map(|after| What::MigrationDecided { migration_id: id, decided: decided(after) });
        assert_eq!(reported(&events)[1..], expected);
        let json = serde_json::to_value(&expected[0]).unwrap();
        assert_eq!(
            (&json["event"], &json["decision"]),
            (&"migration-decided".into(), &"throttled".into())
        );
        assert_eq!(serde_json::from_value::<What>(json).unwrap(), expected[0]);
        assert_eq!(expected[0].to_string(), "migration: 1 vCPU throttled by up to 20 %");
    }

    #[test]
    fn each_loss_of_a_link_is_reported_once() {
        let (events, id) = (events(), MigrationId::random());
        let address = IpAddr::from([192, 0, 2, 2]);
        events.migration_started(id, Role::Source);
        for lost in [None, Some("silent"), Some("silent"), None, Some("cut")] {
            let mut status = status(id, &[], None);
            let lost = lost.map(str::to_owned);
            status.progress.as_mut().unwrap().links =
                vec![LinkProgress { address, wire_bytes: 7, lost }];
            events.migration(&status);
        }
        let lost = |detail: &str| {
            let detail = detail.to_owned();
            What::LinkLost { migration_id: id, address, detail }
        };
        assert_eq!(reported(&events)[1..], [lost("silent"), lost("cut")]);
    }

    #[test]
    fn a_guest_that_arrives_starts_here() {
        let (events, id) = (events(), MigrationId::random());
        events.migration_started(id, Role::Destination);
        let mut arrived = status(id, &[], Some(Outcome::Migrated));
        arrived.report.as_mut().unwrap().role = Role::Destination;
        events.migration(&arrived);
        let reported = reported(&events);
        assert!(
            matches!(reported[..], [_, What::MigrationEnded { .. }, What::Started]),
            "{reported:?}"
        );
    }

    #[tokio::test]
    async fn a_reader_continues_where_it_stopped_and_sees_what_it_missed() {
        let events = events();
        events.started();
        assert_eq!((events.first(0), events.first(u64::MAX)), (0, 1));
        assert_eq!(events.wait_for(0).await.unwrap().what, What::Started);
        let theirs = Arc::clone(&events);
        let waiting = tokio::spawn(async move { theirs.wait_for(1).await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        events.is_running(false);
        assert_eq!(waiting.await.unwrap().unwrap().what, What::Paused);
        for turn in 0..2 * KEPT_MAX {
            events.is_running(turn % 2 == 0);
        }
        assert_eq!(events.wait_for(2).await.unwrap().number, 2 + KEPT_MAX as u64);
        events.stopped(How::PoweredOff, "powered off".to_owned());
        let last = 2 + 2 * KEPT_MAX as u64;
        assert!(matches!(events.wait_for(last).await.unwrap().what, What::Stopped { .. }));
        assert_eq!(events.wait_for(last + 1).await, None);
    }
}
