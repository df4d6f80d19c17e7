//! The catalogue: every metric of lighter, exactly once; `density/catalogue.rs` has those of memory
//! optimization.
//!
//! Rules, each checked by a test below: prefix `lighter_`; base units, last in the name; `_total`
//! on counters and nowhere else; labels bounded by a fixed list or by the guests on the host; no
//! label named `type`; help is a sentence.

use migrate::Phase;
use migrate::decisions::DecisionKind;
use migrate::progress::Role;
use prometheus::Registry;

use crate::definition::{CatalogueError, Definition, Unit};
use crate::density::{DensityCounted, DensityScraped};
use crate::entries::{catalogue, definition};
use crate::family::{
    Counter, Distribution, DowntimeBuckets, DurationBuckets, ErrorBuckets, Family, Gauge,
    Histogram, PageWaitBuckets,
};
use crate::labels::{
    BuildRevision, BuildVersion, Encoding, EstimateFigure, FailureReason, GuestName, GuestState,
    GuestUuid, NetDevice, RefusalReason,
};

catalogue! {
    /// What a node counts as long as it runs.
    struct Counted {
        migrations_started: Counter<(Role,)> = "lighter_migrations_started_total", Count,
            "Migrations that began on this host.";
        migrations_completed: Counter<(Role,)> = "lighter_migrations_completed_total", Count,
            "Migrations that ended with the guest on its destination.";
        migrations_cancelled: Counter<(Phase,)> = "lighter_migrations_cancelled_total", Count,
            "Migrations that were cancelled, by the phase they were in.";
        migrations_failed: Counter<(Phase, FailureReason)> =
            "lighter_migrations_failed_total", Count,
            "Migrations that failed, by the phase they were in and the reason.";
        admissions: Counter<()> = "lighter_admissions_accepted_total", Count,
            "Incoming guests that this node admitted.";
        admissions_refused: Counter<(RefusalReason,)> = "lighter_admissions_refused_total", Count,
            "Incoming guests that this node refused, by reason.";
        guests_failed: Counter<()> = "lighter_guests_failed_total", Count,
            "Guests of this host that crashed, or whose process died.";
        completed_downtime: Histogram<(Role,), DowntimeBuckets> =
            "lighter_migrations_completed_downtime_seconds", Seconds,
            "Downtime of completed migrations as this host saw it; the source's view is `outgoing`.";
        completed_duration: Histogram<(Role,), DurationBuckets> =
            "lighter_migrations_completed_duration_seconds", Seconds,
            "Total duration of completed migrations, from connecting to running.";
        estimate_error: Histogram<(EstimateFigure,), ErrorBuckets> =
            "lighter_migrations_estimate_error_ratio", Ratio,
            "How far estimates were from the completed migrations after them: 0 is exact, 0.5 is off by a factor of two.";
    }

    /// Values that are read again at every scrape.
    struct Scraped {
        build_info: Gauge<(BuildVersion, BuildRevision)> = "lighter_build_info", Info,
            "The program that serves this page.";
        node_start: Gauge<()> = "lighter_node_start_timestamp_seconds", Timestamp,
            "When the node service started; its counters began at zero then.";
        certificate_expiry: Gauge<()> = "lighter_certificate_expiry_timestamp_seconds", Timestamp,
            "When the certificate with which the node authenticates to other hosts expires, or its authority, if that is earlier.";
        scrape_duration: Gauge<()> = "lighter_scrape_duration_seconds", Seconds,
            "How long the node took to ask all its guests for this page.";
        guests: Gauge<(GuestState,)> = "lighter_guests", Count,
            "Guests on this host by state; guests that did not answer are not among them.";
        guests_unreachable: Gauge<()> = "lighter_guests_unreachable", Count,
            "Guests whose process lives but did not answer this scrape in time.";
        records_in_doubt: Gauge<()> = "lighter_migrations_in_doubt", Count,
            "Migrations left open by a process that died, to be settled with the other host.";
        host_available: Gauge<()> = "lighter_host_memory_available_bytes", Bytes,
            "Memory that the host can give without swapping (MemAvailable).";
        host_reserved: Gauge<()> = "lighter_host_memory_reserved_bytes", Bytes,
            "Memory that admission leaves to the host.";
        host_promised: Gauge<()> = "lighter_host_memory_promised_bytes", Bytes,
            "Memory promised to admitted guests that they do not occupy yet.";

        guest_info: Gauge<(GuestName, GuestUuid)> = "lighter_guest_info", Info,
            "The identity that a guest keeps wherever it runs.";
        guest_state: Gauge<(GuestName, GuestState)> = "lighter_guest_state", State,
            "1 for the state that a guest is in, 0 for the others.";
        guest_start: Gauge<(GuestName,)> = "lighter_guest_start_timestamp_seconds", Timestamp,
            "When the process of a guest started on this host.";
        guest_memory: Gauge<(GuestName,)> = "lighter_guest_memory_bytes", Bytes,
            "Memory that a guest was given.";
        guest_vcpus: Gauge<(GuestName,)> = "lighter_guest_vcpus", Count,
            "Virtual CPUs that a guest was given.";
        guest_resident: Gauge<(GuestName,)> = "lighter_guest_memory_resident_bytes", Bytes,
            "Host memory mapped by the process of a guest, shared pages in full (RSS).";
        guest_proportional: Gauge<(GuestName,)> =
            "lighter_guest_memory_proportional_bytes", Bytes,
            "Host memory of the process of a guest, shared pages divided by their sharers (PSS).";
        guest_longest_stall: Gauge<(GuestName,)> = "lighter_guest_longest_stall_seconds", Seconds,
            "The longest stall that a guest has measured since it, or its last migration, began; \
             only guests that report it.";

        network_receive_bytes: Counter<(GuestName, NetDevice)> =
            "lighter_guest_network_receive_bytes_total", Bytes,
            "Bytes of frames that a guest received by a network device.";
        network_receive_packets: Counter<(GuestName, NetDevice)> =
            "lighter_guest_network_receive_packets_total", Count,
            "Frames that a guest received by a network device; one to be cut into pieces elsewhere counts as one.";
        network_receive_drops: Counter<(GuestName, NetDevice)> =
            "lighter_guest_network_receive_drops_total", Count,
            "Frames of a network device that the guest should have received and did not.";
        network_transmit_bytes: Counter<(GuestName, NetDevice)> =
            "lighter_guest_network_transmit_bytes_total", Bytes,
            "Bytes of frames that a guest sent by a network device.";
        network_transmit_packets: Counter<(GuestName, NetDevice)> =
            "lighter_guest_network_transmit_packets_total", Count,
            "Frames that a guest sent by a network device; one to be cut into pieces elsewhere counts as one.";
        network_transmit_drops: Counter<(GuestName, NetDevice)> =
            "lighter_guest_network_transmit_drops_total", Count,
            "Frames that a guest wanted to send by a network device and that were lost here.";

        migration_phase: Gauge<(GuestName, Role, Phase)> = "lighter_migration_phase", State,
            "1 for the phase that the migration of a guest is in, 0 for the others.";
        migration_phase_duration: Gauge<(GuestName, Role, Phase)> =
            "lighter_migration_phase_duration_seconds", Seconds,
            "How long the migration of a guest has spent in a phase.";
        migration_duration: Gauge<(GuestName, Role)> =
            "lighter_migration_duration_seconds", Seconds,
            "How long the migration of a guest has taken so far, or took in all.";
        migration_rounds: Gauge<(GuestName, Role)> = "lighter_migration_rounds", Count,
            "Rounds over the memory of a guest, and its disks if they go along, the one under way included.";
        migration_transferred: Counter<(GuestName, Role, Encoding)> =
            "lighter_migration_transferred_bytes_total", Bytes,
            "Page data on the wire in the migration of a guest, by encoding; \
             zero pages have no data.";
        migration_pages: Counter<(GuestName, Role, Encoding)> =
            "lighter_migration_transferred_pages_total", Pages,
            "Pages carried in the migration of a guest, by encoding.";
        migration_hinted: Counter<(GuestName, Role)> =
            "lighter_migration_hinted_pages_total", Pages,
            "Pages left out of the migration of a guest because it said that they are free.";
        migration_links: Gauge<(GuestName, Role)> = "lighter_migration_links", Count,
            "Links that the migration of a guest uses at once; only one that uses several has it.";
        migration_links_lost: Gauge<(GuestName, Role)> = "lighter_migration_links_lost", Count,
            "Of the links that the migration of a guest was to use at once, those that are lost.";
        migration_remaining: Gauge<(GuestName, Role)> =
            "lighter_migration_remaining_bytes", Bytes,
            "Guest memory that must still be sent in this round, or that follows the guest.";
        migration_disk_remaining: Gauge<(GuestName, Role)> =
            "lighter_migration_disk_remaining_bytes", Bytes,
            "Content of disks that go along with a guest which must still be sent in this round.";
        migration_disk_transferred: Counter<(GuestName, Role)> =
            "lighter_migration_disk_transferred_bytes_total", Bytes,
            "Bytes on the wire for disks that go along with a guest.";
        migration_transfer_rate: Gauge<(GuestName, Role)> =
            "lighter_migration_transfer_bytes_per_second", BytesPerSecond,
            "Memory and disks that the migration of a guest sends per second, before compression; \
             zero pages do not count.";
        migration_dirty_rate: Gauge<(GuestName, Role)> =
            "lighter_migration_dirty_bytes_per_second", BytesPerSecond,
            "Measured rate at which a migrating guest writes its memory, and its disks if they go along.";
        migration_expected_downtime: Gauge<(GuestName, Role)> =
            "lighter_migration_expected_downtime_seconds", Seconds,
            "How long a guest would pause if it were switched over now.";
        migration_throttle: Gauge<(GuestName, Role)> =
            "lighter_migration_throttle_ratio", Ratio,
            "Largest share of the time that a vCPU of a migrating guest is made to rest, so that the guest writes less.";
        migration_decisions: Counter<(GuestName, Role, DecisionKind)> =
            "lighter_migration_decisions_total", Count,
            "Decisions of the source about a migration that stalls, and changes of its limits, since the migration began.";
        migration_downtime: Gauge<(GuestName, Role)> =
            "lighter_migration_downtime_seconds", Seconds,
            "Downtime of the migration of a guest as this host saw it, without dry runs; \
             the source's view is `outgoing`.";
        migration_guest_downtime: Gauge<(GuestName, Role)> =
            "lighter_migration_guest_downtime_seconds", Seconds,
            "The longest stall that a guest has measured since its migration began; \
             only guests that report it.";
        migration_page_wait: Distribution<(GuestName, Role), PageWaitBuckets> =
            "lighter_migration_page_wait_seconds", Seconds,
            "How long a guest that was handed over before its memory waited for pages of it.";
        migration_oldest_page_wait: Gauge<(GuestName, Role)> =
            "lighter_migration_oldest_page_wait_seconds", Seconds,
            "How long the page for which a guest has waited longest by now has not come; 0 if it waits for none.";
    }
}

/// Returns every metric: those of guests and migrations, then those of memory optimization.
pub fn definitions() -> impl Iterator<Item = &'static Definition> {
    Counted::DEFINITIONS.iter().chain(Scraped::DEFINITIONS).chain(density_definitions())
}

/// Returns every metric of memory optimization.
pub fn density_definitions() -> impl Iterator<Item = &'static Definition> {
    DensityCounted::DEFINITIONS.iter().chain(DensityScraped::DEFINITIONS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::definition::{Kind, LabelValues};

    #[test]
    fn names_are_prefixed_unique_and_plain() {
        let mut seen = BTreeSet::new();
        for Definition { name, .. } in definitions() {
            assert!(name.starts_with("lighter_"), "{name}: prefix");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}: letters");
            assert!(!name.contains("__") && !name.ends_with('_'), "{name}: underscores");
            assert!(seen.insert(*name), "{name}: twice");
        }
    }

    #[test]
    fn total_ends_counters_and_only_counters() {
        for Definition { name, kind, .. } in definitions() {
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            for reserved in ["_count", "_sum", "_bucket"] {
                assert!(!name.ends_with(reserved), "{name}: suffix of histogram series");
            }
        }
    }

    #[test]
    fn names_end_with_their_base_unit() {
        for Definition { name, unit, .. } in definitions() {
            let stem = name.strip_suffix("_total").unwrap_or(name);
            assert!(stem.ends_with(unit.suffix()), "{name}: {unit:?}");
            for scaled in ["_ms", "milliseconds", "_kib", "_mib", "megabytes", "percent", "_us"] {
                assert!(!stem.contains(scaled), "{name}: not a base unit");
            }
        }
    }

    #[test]
    fn labels_are_few_bounded_and_never_called_type() {
        for Definition { name, labels, .. } in definitions() {
            assert!(labels.len() <= 3, "{name}: {} labels", labels.len());
            for label in *labels {
                assert!(!["type", "le", "quantile", "job", "instance"].contains(&label.name));
                match label.values {
                    LabelValues::Fixed(values) => {
                        assert!(!values.is_empty() && values.len() <= 16, "{name}");
                        let distinct: BTreeSet<_> = values.iter().collect();
                        assert_eq!(distinct.len(), values.len(), "{name}: {}", label.name);
                    }
                    LabelValues::PerGuest | LabelValues::PerSchedule | LabelValues::PerBuild => {}
                }
            }
        }
    }

    #[test]
    fn help_is_one_line_of_sentences() {
        for Definition { name, help, .. } in definitions() {
            assert!(help.ends_with('.'), "{name}: no full stop");
            assert!(!help.contains('\n') && !help.contains("  "), "{name}: white space");
            assert!(help.len() <= 140, "{name}: {} bytes", help.len());
            assert!(help.starts_with(|c: char| c.is_ascii_uppercase() || c == '1'), "{name}");
        }
    }

    #[test]
    fn every_family_registers() {
        let registry = Registry::new();
        Counted::register(&registry).expect("counted families");
        Scraped::register(&registry).expect("scraped families");
        DensityCounted::register(&registry).expect("counted families of memory optimization");
        DensityScraped::register(&registry).expect("scraped families of memory optimization");
    }
}
