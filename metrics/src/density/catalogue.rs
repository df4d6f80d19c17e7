//! The metrics of memory optimization. The rules of the main catalogue apply here too, and its
//! tests check them.

use memopt::ledger::Level;
use memopt::policy::Actuator;
use memopt::situation::{Hindrance, Vmm};
use memopt::verify::Verdict;

use super::labels::{
    Finding, MissedReason, PageSize, RunOutcome, RunTrigger, ScheduleName, Stall, WindowEnd,
};
use crate::definition::{CatalogueError, Definition, Unit};
use crate::entries::{catalogue, definition};
use crate::family::{Counter, DurationBuckets, Family, Gauge, Histogram};
use crate::labels::GuestName;
use prometheus::Registry;

catalogue! {
    /// What memory optimization counts as long as the node runs.
    struct DensityCounted {
        inspections: Counter<()> = "lighter_density_inspections_total", Count,
            "Inspections of the host and all of its guests.";
        inspections_failed: Counter<()> = "lighter_density_inspections_failed_total", Count,
            "Inspections that failed: the host's memory or the folder of guests could not be read.";
        plans: Counter<()> = "lighter_density_plans_total", Count,
            "Plans that were made, for runs and for people who asked for one.";
        runs_started: Counter<(RunTrigger,)> = "lighter_density_runs_started_total", Count,
            "Runs that began.";
        runs_not_begun: Counter<(RunTrigger,)> = "lighter_density_runs_not_begun_total", Count,
            "Runs that were due or wanted and could not begin, since the host could not be inspected.";
        runs_ended: Counter<(RunTrigger, RunOutcome)> = "lighter_density_runs_ended_total", Count,
            "Runs that ended, by how they did.";
        run_duration: Histogram<(RunTrigger,), DurationBuckets> =
            "lighter_density_run_duration_seconds", Seconds,
            "How long runs took, from their first plan to their last verification.";
        steps: Counter<(Actuator,)> = "lighter_density_steps_total", Count,
            "Steps of plans that were done.";
        steps_failed: Counter<(Actuator,)> = "lighter_density_steps_failed_total", Count,
            "Steps of plans that could not be done.";
        verifications: Counter<(Actuator, Verdict)> = "lighter_density_verifications_total", Count,
            "Steps that were checked, by what came of them.";
        expected: Counter<(Actuator,)> = "lighter_density_expected_bytes_total", Bytes,
            "Bytes that steps which take memory were expected to bring, counted when they are checked.";
        verified: Counter<(Actuator,)> = "lighter_density_verified_bytes_total", Bytes,
            "Bytes that steps were seen to bring back to the host.";
        given: Counter<(Actuator,)> = "lighter_density_given_bytes_total", Bytes,
            "Bytes that steps were seen to cost the host: memory that guests got back, or losses.";
        surveys: Counter<()> = "lighter_density_surveys_total", Count,
            "Surveys of the pages of a guest.";
        surveys_failed: Counter<()> = "lighter_density_surveys_failed_total", Count,
            "Surveys of the pages of a guest that failed: it did not answer, or left.";
        windows: Counter<(WindowEnd,)> = "lighter_ksm_windows_total", Count,
            "Windows in which this node drove ksmd, by why they ended.";
        reliefs: Counter<()> = "lighter_density_reliefs_total", Count,
            "Times that a guest got memory back outside of runs, since it needs more than it was left.";
        reliefs_failed: Counter<()> = "lighter_density_reliefs_failed_total", Count,
            "Times that a guest should have got memory back outside of runs, and it could not be given.";
        restarts: Counter<()> = "lighter_density_restarts_total", Count,
            "Times that memory optimization panicked and was restarted.";
    }

    /// The state that memory optimization saw at its last inspection, and its next runs.
    struct DensityScraped {
        inspection: Gauge<()> = "lighter_density_inspection_timestamp_seconds", Timestamp,
            "When the host and its guests were last inspected.";
        running: Gauge<()> = "lighter_density_run_under_way", State,
            "1 while a run is under way.";
        last_success: Gauge<()> = "lighter_density_last_success_timestamp_seconds", Timestamp,
            "When the last run ended that was neither cancelled nor failed; absent when there was none.";
        settings_invalid: Gauge<()> = "lighter_density_settings_invalid", State,
            "1 while lighter.toml is wrong, so that what it said before holds.";

        next_run: Gauge<(ScheduleName,)> = "lighter_density_next_run_timestamp_seconds", Timestamp,
            "When a schedule is due next.";
        schedule_lag: Gauge<(ScheduleName,)> = "lighter_density_schedule_lag_seconds", Seconds,
            "How long after it was due the last run of a schedule began.";
        schedule_runs: Counter<(ScheduleName,)> = "lighter_density_schedule_runs_total", Count,
            "Runs of a schedule that were begun since the node read lighter.toml.";
        schedule_missed: Counter<(ScheduleName, MissedReason)> =
            "lighter_density_schedule_missed_total", Count,
            "Times at which a schedule was due and did not run, since the node read lighter.toml.";

        level: Gauge<(Level,)> = "lighter_host_memory_level", State,
            "1 for how short of memory the host is, 0 for the other levels.";
        total: Gauge<()> = "lighter_host_memory_total_bytes", Bytes,
            "Memory of the host (MemTotal).";
        swapped: Gauge<()> = "lighter_host_memory_swapped_bytes", Bytes,
            "Swap of the host that is in use.";
        pressure: Gauge<(Stall,)> = "lighter_host_memory_pressure_ratio", Ratio,
            "Share of the last 10 seconds in which something, or everything, waited for memory (PSI).";
        pool: Gauge<(PageSize,)> = "lighter_host_hugetlb_bytes", Bytes,
            "Memory in a hugetlb pool of the host.";
        pool_free: Gauge<(PageSize,)> = "lighter_host_hugetlb_free_bytes", Bytes,
            "Memory in a hugetlb pool of the host that is free.";
        pool_reserved: Gauge<(PageSize,)> = "lighter_host_hugetlb_reserved_bytes", Bytes,
            "Memory in a hugetlb pool of the host that is free but reserved.";
        host_benched: Gauge<(Actuator,)> = "lighter_density_host_benched", State,
            "1 while an actuator of the host itself is not used, since it did not deliver.";

        ksm_running: Gauge<()> = "lighter_ksm_running", State,
            "1 while ksmd scans for equal pages.";
        ksm_shared: Gauge<()> = "lighter_ksm_shared_pages", Pages,
            "Merged pages that are kept (pages_shared).";
        ksm_sharing: Gauge<()> = "lighter_ksm_sharing_pages", Pages,
            "Pages that are saved since they share a kept one (pages_sharing).";
        ksm_unshared: Gauge<()> = "lighter_ksm_unshared_pages", Pages,
            "Pages that ksmd scanned and that have no equal.";
        ksm_volatile: Gauge<()> = "lighter_ksm_volatile_pages", Pages,
            "Pages that change too fast for ksmd, with those that smart_scan leaves out.";
        ksm_zero: Gauge<()> = "lighter_ksm_zero_pages", Pages,
            "Pages that ksmd has replaced by the kernel's page of zeros.";
        ksm_scanned: Counter<()> = "lighter_ksm_scanned_pages_total", Pages,
            "Pages that ksmd has scanned since the host booted.";
        ksm_full_scans: Counter<()> = "lighter_ksm_full_scans_total", Count,
            "Times that ksmd has scanned all mergeable memory since the host booted.";
        ksm_profit: Gauge<()> = "lighter_ksm_profit_bytes", Bytes,
            "What merging saves less what its own records take; negative when it costs more than it saves.";
        ksm_cpu: Counter<()> = "lighter_ksm_cpu_seconds_total", Seconds,
            "CPU time of ksmd since the host booted.";

        guest_vmm: Gauge<(GuestName, Vmm)> = "lighter_density_guest_vmm_info", Info,
            "Who runs a guest; those of other programs are seen by memory optimization alone.";
        guest_memory: Gauge<(GuestName,)> = "lighter_density_guest_memory_bytes", Bytes,
            "RAM of a guest as it was started with, of whichever program.";
        guest_cost: Gauge<(GuestName,)> = "lighter_density_guest_cost_bytes", Bytes,
            "What a guest costs the host: PSS and pages of the hugetlb pool.";
        guest_resident: Gauge<(GuestName,)> = "lighter_density_guest_resident_bytes", Bytes,
            "RSS of the process of a guest, of whichever program.";
        guest_huge: Gauge<(GuestName,)> = "lighter_density_guest_huge_bytes", Bytes,
            "The part of a guest's memory that transparent huge pages hold.";
        guest_merged: Gauge<(GuestName,)> = "lighter_density_guest_merged_bytes", Bytes,
            "The part of a guest's memory that the kernel has merged.";
        guest_profit: Gauge<(GuestName,)> = "lighter_density_guest_merge_profit_bytes", Bytes,
            "What merging a guest saves less what the records of it take; signed, and counted too high between guests.";
        guest_swapped: Gauge<(GuestName,)> = "lighter_density_guest_swapped_bytes", Bytes,
            "The part of a guest's memory that the host has swapped out.";
        guest_survey_age: Gauge<(GuestName,)> = "lighter_density_guest_survey_age_seconds", Seconds,
            "How long ago a guest's pages were surveyed; absent when they were not.";
        guest_surveyed: Gauge<(GuestName, Finding)> = "lighter_density_guest_surveyed_bytes", Bytes,
            "Memory of a guest by what the last survey of its pages found, with what was done since.";
        guest_demand: Gauge<(GuestName,)> = "lighter_density_guest_demand_bytes", Bytes,
            "What a guest is taken to need: it rises at once and falls slowly.";
        guest_spared: Gauge<(GuestName,)> = "lighter_density_guest_spared", State,
            "1 while a guest keeps everything, since it was under memory pressure.";
        guest_hindered: Gauge<(GuestName, Hindrance)> = "lighter_density_guest_hindered", State,
            "1 for the reason why nothing may be done to a guest now, 0 for the others.";
        guest_benched: Gauge<(GuestName, Actuator)> = "lighter_density_guest_benched", State,
            "1 while an actuator is not used for a guest, since it did not deliver.";

        balloon_driver: Gauge<(GuestName,)> = "lighter_balloon_driver", State,
            "1 when a driver in the guest serves its balloon.";
        balloon_target: Gauge<(GuestName,)> = "lighter_balloon_target_bytes", Bytes,
            "What a guest is asked to keep.";
        balloon_actual: Gauge<(GuestName,)> = "lighter_balloon_actual_bytes", Bytes,
            "What a guest keeps: its RAM less what is in its balloon.";
        balloon_stuck: Gauge<(GuestName,)> = "lighter_balloon_stuck", State,
            "1 while a balloon that is asked to inflate does not move.";
        balloon_reported: Counter<(GuestName,)> = "lighter_balloon_reported_bytes_total", Bytes,
            "Free memory that a guest has reported (free page reporting) and the host has taken.";

        stats_age: Gauge<(GuestName,)> = "lighter_guest_stats_age_seconds", Seconds,
            "How old the statistics of a guest's balloon driver were at the last inspection.";
        stats_total: Gauge<(GuestName,)> = "lighter_guest_stats_total_bytes", Bytes,
            "Memory that a guest sees in all (virtio MEMTOT; libvirt calls it available).";
        stats_free: Gauge<(GuestName,)> = "lighter_guest_stats_free_bytes", Bytes,
            "Memory that is unused in a guest (virtio MEMFREE; libvirt calls it unused).";
        stats_available: Gauge<(GuestName,)> = "lighter_guest_stats_available_bytes", Bytes,
            "What new work in a guest could have without swapping (virtio AVAIL; libvirt calls it usable).";
        stats_caches: Gauge<(GuestName,)> = "lighter_guest_stats_cache_bytes", Bytes,
            "Page cache of a guest.";
        stats_swap_in: Counter<(GuestName,)> = "lighter_guest_stats_swap_in_bytes_total", Bytes,
            "Memory that a guest has swapped in.";
        stats_swap_out: Counter<(GuestName,)> = "lighter_guest_stats_swap_out_bytes_total", Bytes,
            "Memory that a guest has swapped out.";
        stats_major_faults: Counter<(GuestName,)> = "lighter_guest_stats_major_faults_total", Count,
            "Page faults of a guest that waited for a disk.";
        stats_oom_kills: Counter<(GuestName,)> = "lighter_guest_stats_oom_kills_total", Count,
            "Processes that a guest has killed for want of memory (Linux 6.12).";
        stats_stalls: Counter<(GuestName,)> = "lighter_guest_stats_allocation_stalls_total", Count,
            "Allocations in a guest that waited for memory (Linux 6.12).";
        stats_direct_reclaim: Counter<(GuestName,)> =
            "lighter_guest_stats_direct_reclaim_bytes_total", Bytes,
            "Memory that a guest has reclaimed while a program waited for it (Linux 6.12).";
    }
}
