//! Converts what guests report to samples for Prometheus.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use metrics::{DepartedSample, GuestSample, MigrationSample, NetworkFlow, NetworkSample, Traffic};
use migrate::progress::{LinkProgress, Role};
use migrate::record::Record;
use migrate::report::Outcome;
use migrate::waits::PageWaits;
use migrate::{Phase, Progress, Report};

use super::inventory::{GuestAnswer, GuestView};
use crate::api::types::{FlowInfo, GuestState, NetInfo};
use crate::units::PAGE_BYTES;

/// How long the migration by which a guest left is shown: longer than any scrape interval.
const DEPARTED_FOR: Duration = Duration::from_secs(600);

/// Most guests that are shown after they have left.
const DEPARTED_MAX: usize = 256;

/// Returns a sample for each guest that answered, and how many did not.
pub(crate) fn samples(sightings: &[GuestAnswer]) -> (Vec<GuestSample>, u64) {
    let answered: Vec<GuestSample> =
        sightings.iter().filter_map(|sighting| sighting.answer.as_ref().ok()).map(sample).collect();
    let silent = (sightings.len() - answered.len()) as u64;
    (answered, silent)
}

fn sample(view: &GuestView) -> GuestSample {
    let info = &view.info;
    GuestSample {
        name: info.name.to_string(),
        uuid: info.uuid.to_string(),
        state: state(info.state),
        started: UNIX_EPOCH + Duration::from_millis(info.started_unix_ms),
        memory_bytes: info.memory_bytes,
        vcpus: u64::from(info.vcpus),
        resident_bytes: view.cost.map(|cost| cost.resident_bytes),
        proportional_bytes: view.cost.map(|cost| cost.proportional_bytes),
        longest_stall: longest_stall(view),
        networks: info.nets.iter().map(network).collect(),
        migration: migration(view),
    }
}

fn network(net: &NetInfo) -> NetworkSample {
    let flow = |flow: &FlowInfo| NetworkFlow {
        bytes: flow.bytes,
        packets: flow.packets,
        drops: flow.drops,
    };
    NetworkSample {
        device: net.tap.clone(),
        received: flow(&net.received),
        transmitted: flow(&net.transmitted),
    }
}

fn state(state: GuestState) -> metrics::GuestState {
    match state {
        GuestState::Incoming => metrics::GuestState::Incoming,
        GuestState::Running => metrics::GuestState::Running,
        GuestState::Paused => metrics::GuestState::Paused,
        GuestState::Migrating => metrics::GuestState::Migrating,
        GuestState::InDoubt => metrics::GuestState::InDoubt,
        GuestState::Ended => metrics::GuestState::Ended,
    }
}

fn longest_stall(view: &GuestView) -> Option<Duration> {
    view.workload.as_ref().map(|workload| Duration::from_micros(workload.longest_stall_us))
}

/// Returns the migration of a guest: from its report if it is over, from its progress while it
/// runs.
fn migration(view: &GuestView) -> Option<MigrationSample> {
    let migration_view = view.migration.as_ref()?;
    if let Some(report) = &migration_view.report {
        let has_arrived = report.role == Role::Destination && report.outcome == Outcome::Migrated;
        let guest_downtime = longest_stall(view).filter(|_| has_arrived);
        return Some(MigrationSample { guest_downtime, ..finished(report) });
    }
    migration_view.progress.as_ref().map(running)
}

fn running(progress: &Progress) -> MigrationSample {
    let transfer = &progress.transfer;
    let is_source = progress.role == Role::Source;
    MigrationSample {
        direction: progress.role,
        phase: Some(progress.phase),
        phase_durations: Vec::new(),
        duration: seconds(progress.elapsed_seconds),
        rounds: is_source.then(|| u64::from(progress.round)),
        raw: Traffic {
            pages: transfer.raw_pages,
            bytes: transfer.raw_pages.saturating_mul(PAGE_BYTES),
        },
        lz4: Traffic { pages: transfer.lz4_pages, bytes: transfer.lz4_bytes },
        zero_pages: transfer.zero_pages,
        hinted_pages: is_source.then_some(transfer.hinted_pages),
        links: links(&progress.links),
        remaining_bytes: (is_source || progress.phase == Phase::Postcopy)
            .then_some(progress.remaining_bytes),
        disk_remaining_bytes: (is_source && progress.disk_bytes > 0)
            .then_some(progress.disk_remaining_bytes),
        disk_transferred_bytes: transfer.disk_wire_bytes,
        transfer_rate: is_source.then_some(progress.bandwidth_bytes_per_second),
        dirty_rate: is_source.then_some(progress.dirty_pages_per_second * PAGE_BYTES as f64),
        expected_downtime: progress.expected_downtime_seconds.map(seconds),
        throttle: is_source.then_some(f64::from(progress.throttle_percent) / 100.0),
        decisions: is_source.then(|| progress.decision_counts.clone()),
        downtime: None,
        guest_downtime: None,
        page_waits: progress.page_waits.as_ref().and_then(page_waits),
    }
}

/// Counts the links in use and those that are lost, if there are several.
fn links(links: &[LinkProgress]) -> Option<(u64, u64)> {
    let lost = links.iter().filter(|link| link.lost.is_some()).count();
    (!links.is_empty()).then(|| ((links.len() - lost) as u64, lost as u64))
}

/// Returns the waits for pages, if they were counted here; an invalid time counts as zero.
fn page_waits(waits: &PageWaits) -> Option<PageWaits> {
    let valid = |value| seconds(value).as_secs_f64();
    (!waits.counts.is_empty()).then(|| PageWaits {
        counts: waits.counts.clone(),
        total_seconds: valid(waits.total_seconds),
        longest_seconds: valid(waits.longest_seconds),
        oldest_seconds: valid(waits.oldest_seconds),
    })
}

/// Returns the last migrations of guests that have moved away in the last [`DEPARTED_FOR`].
pub(crate) fn departed(records: &[Record], now_unix_ms: u64) -> Vec<DepartedSample> {
    let mut newest: BTreeMap<&str, &Record> = BTreeMap::new();
    for record in records.iter().filter(|record| record.role() == Role::Source) {
        let known = newest.entry(&record.guest).or_insert(record);
        if known.started_unix_ms < record.started_unix_ms {
            *known = record;
        }
    }
    let age = |record: &Record| now_unix_ms.saturating_sub(record.updated_unix_ms);
    let recent =
        newest.into_values().filter(|record| age(record) < DEPARTED_FOR.as_millis() as u64);
    let has_moved = |report: &&Report| report.outcome == Outcome::Migrated;
    recent
        .filter_map(|record| record.report.as_ref().filter(has_moved))
        .take(DEPARTED_MAX)
        .map(|report| DepartedSample { guest: report.guest.clone(), migration: finished(report) })
        .collect()
}

fn finished(report: &Report) -> MigrationSample {
    let transfer = &report.transfer;
    MigrationSample {
        direction: report.role,
        phase: None,
        phase_durations: report
            .phases
            .iter()
            .map(|time| (time.phase, seconds(time.seconds)))
            .collect(),
        duration: seconds(report.total_seconds),
        rounds: (report.role == Role::Source).then(|| u64::from(report.rounds_total)),
        raw: Traffic {
            pages: transfer.raw_pages,
            bytes: transfer.raw_pages.saturating_mul(PAGE_BYTES),
        },
        lz4: Traffic { pages: transfer.lz4_pages, bytes: transfer.lz4_bytes },
        zero_pages: transfer.zero_pages,
        hinted_pages: (report.role == Role::Source).then_some(transfer.hinted_pages),
        links: links(&report.links),
        remaining_bytes: None,
        disk_remaining_bytes: None,
        disk_transferred_bytes: transfer.disk_wire_bytes,
        transfer_rate: None,
        dirty_rate: None,
        expected_downtime: report.expected_downtime_seconds.map(seconds),
        throttle: None,
        decisions: (report.role == Role::Source).then(|| report.decision_counts.clone()),
        downtime: report.downtime_seconds.map(seconds),
        guest_downtime: None,
        page_waits: report.page_waits.as_ref().and_then(page_waits),
    }
}

/// Converts seconds that another process reported; an invalid duration counts as zero.
fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use metrics::{Exporter, Snapshot};
    use migrate::MigrationId;
    use migrate::decisions::DecisionKind;

    use migrate::record::SourceState;

    use super::super::liveness::tests::source_record;
    use super::super::outcomes::tests::report;
    use super::*;
    use crate::api::migration::MigrationStatus;
    use crate::api::types::GuestInfo;

    fn view(state: GuestState, migration: Option<MigrationStatus>) -> GuestView {
        let info = GuestInfo { state, ..GuestInfo::example("web") };
        GuestView { info, migration, workload: None, cost: None }
    }

    fn under_way(role: Role) -> Option<MigrationStatus> {
        let mut progress = Progress::new(MigrationId::random(), role);
        progress.phase = migrate::Phase::Precopy;
        progress.dirty_pages_per_second = 2000.0;
        progress.transfer.raw_pages = 3;
        Some(MigrationStatus { progress: Some(progress), report: None })
    }

    #[test]
    fn a_leaving_guest_shows_its_progress() {
        let sample = sample(&view(GuestState::Migrating, under_way(Role::Source)));
        let migration = sample.migration.unwrap();
        assert_eq!(migration.direction, Role::Source);
        assert_eq!(migration.phase, Some(Phase::Precopy));
        assert_eq!(migration.dirty_rate, Some(2000.0 * 4096.0));
        assert_eq!(migration.raw, Traffic { pages: 3, bytes: 3 * 4096 });
    }

    #[test]
    fn decisions_are_on_the_page_of_the_source_from_zero_on() {
        let mut status = under_way(Role::Source);
        let progress = status.as_mut().unwrap().progress.as_mut().unwrap();
        progress.decision_counts.insert(DecisionKind::Throttled, 3);
        let page = |status| {
            let guests = vec![sample(&view(GuestState::Migrating, status))];
            let exporter = Exporter::new("1.0.0", "abc", UNIX_EPOCH).unwrap();
            exporter.render(&Snapshot { guests, ..Snapshot::default() }).unwrap()
        };
        let shown = page(status);
        for (decision, count) in [("throttled", 3), ("forced", 0)] {
            let labels = format!("decision=\"{decision}\",direction=\"outgoing\",guest=\"web\"");
            let line = format!("lighter_migration_decisions_total{{{labels}}} {count}");
            assert!(shown.lines().any(|one| one == line), "{line} in\n{shown}");
        }
        assert!(!page(under_way(Role::Destination)).contains("lighter_migration_decisions_total{"));
    }

    #[test]
    fn an_arriving_guest_is_incoming_and_knows_no_dirty_rate() {
        let mut doubtful = under_way(Role::Destination);
        doubtful.as_mut().unwrap().progress.as_mut().unwrap().in_doubt = Some("--resolve".into());
        for (state, status) in
            [(GuestState::Incoming, under_way(Role::Destination)), (GuestState::InDoubt, doubtful)]
        {
            let migration = sample(&view(state, status)).migration.unwrap();
            assert_eq!(migration.direction, Role::Destination);
            assert_eq!((migration.dirty_rate, migration.rounds), (None, None));
        }
    }

    #[test]
    fn a_guest_that_left_is_shown_for_a_while() {
        let mut record = source_record(SourceState::Done, 1);
        record.updated_unix_ms = 5000;
        assert!(departed(std::slice::from_ref(&record), 6000).is_empty(), "it has no report");

        record.report = Some(report(Outcome::Migrated, None));
        let earlier = {
            let mut earlier = record.clone();
            earlier.started_unix_ms -= 1;
            earlier
        };
        let shown = departed(&[earlier, record.clone()], 6000);
        assert_eq!(shown.len(), 1);
        assert_eq!(shown[0].migration.direction, Role::Source);
        assert!(departed(&[record], 6000 + 600_000).is_empty());
    }

    #[test]
    fn frames_that_were_lost_are_on_the_page() {
        let flow = |drops| FlowInfo { bytes: 1000, packets: 10, drops };
        let net = NetInfo {
            mac: "52:54:00:00:00:01".to_owned(),
            mtu: 1500,
            tap: "tap7".to_owned(),
            bridge: None,
            standby: false,
            queues: 1,
            vhost: false,
            received: flow(3),
            transmitted: flow(4),
        };
        let mut view = view(GuestState::Running, None);
        view.info.nets = vec![net];
        let snapshot = Snapshot { guests: vec![sample(&view)], ..Snapshot::default() };
        let exporter = Exporter::new("1.0.0", "abc", UNIX_EPOCH).unwrap();
        let page = exporter.render(&snapshot).unwrap();
        let labels = "{device=\"tap7\",guest=\"web\"}";
        for (name, drops) in [
            ("lighter_guest_network_receive_drops_total", 3),
            ("lighter_guest_network_transmit_drops_total", 4),
        ] {
            let line = format!("{name}{labels} {drops}");
            assert!(page.lines().any(|one| one == line), "{line} in\n{page}");
        }
    }

    #[test]
    fn waits_for_pages_are_on_the_page() {
        let mut status = under_way(Role::Destination);
        status.as_mut().unwrap().progress.as_mut().unwrap().page_waits = Some(PageWaits {
            counts: vec![5, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            total_seconds: 31.5,
            longest_seconds: 31.0,
            oldest_seconds: 0.25,
        });
        let guests = vec![sample(&view(GuestState::Running, status))];
        let snapshot = Snapshot { guests, ..Snapshot::default() };
        let exporter = Exporter::new("1.0.0", "abc", UNIX_EPOCH).unwrap();
        let page = exporter.render(&snapshot).unwrap();
        let histogram = "lighter_migration_page_wait_seconds";
        let oldest = "lighter_migration_oldest_page_wait_seconds";
        let labels = "direction=\"incoming\",guest=\"web\"";
        for line in [
            format!("# TYPE {histogram} histogram"),
            format!("{histogram}_bucket{{{labels},le=\"0.0001\"}} 5"),
            format!("{histogram}_bucket{{{labels},le=\"0.001\"}} 7"),
            format!("{histogram}_bucket{{{labels},le=\"30\"}} 7"),
            format!("{histogram}_bucket{{{labels},le=\"+Inf\"}} 8"),
            format!("{histogram}_sum{{{labels}}} 31.5"),
            format!("{histogram}_count{{{labels}}} 8"),
            format!("{oldest}{{{labels}}} 0.25"),
        ] {
            assert!(page.lines().any(|one| one == line), "{line} in\n{page}");
        }
    }

    #[test]
    fn silent_guests_are_counted_and_give_no_sample() {
        let sightings = [
            GuestAnswer {
                name: "web".parse().unwrap(),
                answer: Ok(view(GuestState::Running, None)),
            },
            GuestAnswer { name: "db".parse().unwrap(), answer: Err("no answer".to_owned()) },
        ];
        let (guests, silent) = samples(&sightings);
        assert_eq!((guests.len(), silent), (1, 1));
    }

    #[test]
    fn an_invalid_time_counts_as_zero() {
        assert_eq!(seconds(f64::NAN), Duration::ZERO);
        assert_eq!(seconds(-1.0), Duration::ZERO);
        assert_eq!(seconds(f64::INFINITY), Duration::ZERO);
        assert_eq!(seconds(0.25), Duration::from_millis(250));
    }
}
