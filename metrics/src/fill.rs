//! Copies a [`Snapshot`] into the [`Scraped`] families.

use std::time::{Duration, SystemTime};

use migrate::Phase;
use migrate::decisions::DecisionKind;
use migrate::progress::Role;

use crate::catalogue::Scraped;
use crate::labels::{
    BuildRevision, BuildVersion, Encoding, FixedLabel, GuestName, GuestState, GuestUuid, NetDevice,
};
use crate::number::{number, unix_seconds};
use crate::snapshot::{GuestSample, MigrationSample, NetworkSample, Snapshot};

/// Fills the node's own series.
pub(crate) fn node(
    families: &Scraped,
    build: &(BuildVersion, BuildRevision),
    started: SystemTime,
    snapshot: &Snapshot,
) {
    families.build_info.set(build, 1.0);
    families.node_start.set(&(), unix_seconds(started));
    families.scrape_duration.set(&(), snapshot.scrape_duration.as_secs_f64());
    families.guests_unreachable.set(&(), number(snapshot.guests_unreachable));
    families.records_in_doubt.set(&(), number(snapshot.migrations_in_doubt));
    if let Some(expiry) = snapshot.certificate_expiry {
        families.certificate_expiry.set(&(), unix_seconds(expiry));
    }
    for state in GuestState::EVERY {
        let count = snapshot.guests.iter().filter(|guest| guest.state == *state).count();
        families.guests.set(&(*state,), number(count as u64));
    }
    if let Some(host) = snapshot.host {
        families.host_available.set(&(), number(host.available_bytes));
        families.host_reserved.set(&(), number(host.reserved_bytes));
        families.host_promised.set(&(), number(host.promised_bytes));
    }
}

/// Fills the series of one guest and of its migration.
pub(crate) fn guest(families: &Scraped, sample: &GuestSample) {
    let name = || GuestName(sample.name.clone());
    families.guest_info.set(&(name(), GuestUuid(sample.uuid.clone())), 1.0);
    for state in GuestState::EVERY {
        let holds = f64::from(u8::from(*state == sample.state));
        families.guest_state.set(&(name(), *state), holds);
    }
    families.guest_start.set(&(name(),), unix_seconds(sample.started));
    families.guest_memory.set(&(name(),), number(sample.memory_bytes));
    families.guest_vcpus.set(&(name(),), number(sample.vcpus));
    if let Some(bytes) = sample.resident_bytes {
        families.guest_resident.set(&(name(),), number(bytes));
    }
    if let Some(bytes) = sample.proportional_bytes {
        families.guest_proportional.set(&(name(),), number(bytes));
    }
    if let Some(stall) = sample.longest_stall {
        families.guest_longest_stall.set(&(name(),), stall.as_secs_f64());
    }
    sample.networks.iter().for_each(|sample| network(families, &name(), sample));
    if let Some(sample) = &sample.migration {
        migration(families, &name(), sample);
    }
}

/// Fills the series of one network device.
fn network(families: &Scraped, name: &GuestName, sample: &NetworkSample) {
    let labels = (name.clone(), NetDevice(sample.device.clone()));
    let (received, transmitted) = (&sample.received, &sample.transmitted);
    families.network_receive_bytes.add(&labels, number(received.bytes));
    families.network_receive_packets.add(&labels, number(received.packets));
    families.network_receive_drops.add(&labels, number(received.drops));
    families.network_transmit_bytes.add(&labels, number(transmitted.bytes));
    families.network_transmit_packets.add(&labels, number(transmitted.packets));
    families.network_transmit_drops.add(&labels, number(transmitted.drops));
}

/// Fills the series of one migration.
pub(crate) fn migration(families: &Scraped, name: &GuestName, sample: &MigrationSample) {
    progress(families, name, sample);
    traffic(families, name, sample);
    forecast(families, name, sample);
    page_waits(families, name, sample);
    decisions(families, name, sample);
}

/// Fills the phase of a migration and its durations.
fn progress(families: &Scraped, name: &GuestName, sample: &MigrationSample) {
    let direction = sample.direction;
    for phase in Phase::EVERY {
        let holds = f64::from(u8::from(sample.phase == Some(*phase)));
        families.migration_phase.set(&(name.clone(), direction, *phase), holds);
    }
    for (phase, spent) in &sample.phase_durations {
        let labels = (name.clone(), direction, *phase);
        families.migration_phase_duration.set(&labels, spent.as_secs_f64());
    }
    let labels = (name.clone(), direction);
    families.migration_duration.set(&labels, sample.duration.as_secs_f64());
    if let Some(rounds) = sample.rounds {
        families.migration_rounds.set(&labels, number(rounds));
    }
}

/// Fills what a migration has transferred.
fn traffic(families: &Scraped, name: &GuestName, sample: &MigrationSample) {
    let labels = |encoding: Encoding| -> (GuestName, Role, Encoding) {
        (name.clone(), sample.direction, encoding)
    };
    families.migration_transferred.add(&labels(Encoding::Raw), number(sample.raw.bytes));
    families.migration_transferred.add(&labels(Encoding::Lz4), number(sample.lz4.bytes));
    families.migration_pages.add(&labels(Encoding::Raw), number(sample.raw.pages));
    families.migration_pages.add(&labels(Encoding::Lz4), number(sample.lz4.pages));
    families.migration_pages.add(&labels(Encoding::Zero), number(sample.zero_pages));
    let labels = (name.clone(), sample.direction);
    if let Some(pages) = sample.hinted_pages {
        families.migration_hinted.add(&labels, number(pages));
    }
    families.migration_disk_transferred.add(&labels, number(sample.disk_transferred_bytes));
}

/// Fills the measured rates of a migration, what it has left to send, and its downtimes.
fn forecast(families: &Scraped, name: &GuestName, sample: &MigrationSample) {
    let labels = (name.clone(), sample.direction);
    let seconds = |value: Option<Duration>| value.map(|duration| duration.as_secs_f64());
    let gauges = [
        (&families.migration_links, sample.links.map(|(used, _)| number(used))),
        (&families.migration_links_lost, sample.links.map(|(_, lost)| number(lost))),
        (&families.migration_remaining, sample.remaining_bytes.map(number)),
        (&families.migration_disk_remaining, sample.disk_remaining_bytes.map(number)),
        (&families.migration_transfer_rate, sample.transfer_rate),
        (&families.migration_dirty_rate, sample.dirty_rate),
        (&families.migration_expected_downtime, seconds(sample.expected_downtime)),
        (&families.migration_throttle, sample.throttle),
        (&families.migration_downtime, seconds(sample.downtime)),
        (&families.migration_guest_downtime, seconds(sample.guest_downtime)),
    ];
    for (gauge, value) in gauges {
        if let Some(value) = value {
            gauge.set(&labels, value);
        }
    }
}

/// Fills what the source has decided, from the start of the migration on.
fn decisions(families: &Scraped, name: &GuestName, sample: &MigrationSample) {
    let Some(decisions) = &sample.decisions else { return };
    for kind in DecisionKind::EVERY {
        let labels = (name.clone(), sample.direction, *kind);
        let count = decisions.get(kind).copied().unwrap_or_default();
        families.migration_decisions.add(&labels, number(count));
    }
}

/// Fills how long a guest waits for pages that follow it: those that it waits for now, while they
/// do.
fn page_waits(families: &Scraped, name: &GuestName, sample: &MigrationSample) {
    let Some(waits) = &sample.page_waits else { return };
    let labels = (name.clone(), sample.direction);
    families.migration_page_wait.set(&labels, &waits.counts, waits.total_seconds);
    if sample.phase.is_some() {
        families.migration_oldest_page_wait.set(&labels, waits.oldest_seconds);
    }
}
