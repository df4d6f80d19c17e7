//! Guests' memory statistics, as QEMU and Cloud Hypervisor report them.

use std::time::Duration;

use serde::Deserialize;

use crate::situation::Statistics;

/// QEMU's `guest-stats` (docs/interop/virtio-balloon-stats.rst). Values that a guest does not
/// report are 2^64 - 1; older versions lack the later names.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct QemuStatistics {
    pub(super) stats: QemuValues,
    /// The time of the last update on the host's clock, in seconds since the epoch; 0 before the
    /// first.
    #[serde(rename = "last-update")]
    pub(super) last_update: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct QemuValues {
    stat_total_memory: Option<u64>,
    stat_free_memory: Option<u64>,
    stat_available_memory: Option<u64>,
    stat_disk_caches: Option<u64>,
    stat_swap_in: Option<u64>,
    stat_swap_out: Option<u64>,
    stat_major_faults: Option<u64>,
    stat_oom_kills: Option<u64>,
    stat_alloc_stalls: Option<u64>,
    stat_direct_reclaims: Option<u64>,
}

impl QemuStatistics {
    /// Converts the statistics at `unix_seconds` after the epoch; `None` before the guest has sent
    /// any.
    pub(super) fn at(&self, unix_seconds: u64) -> Option<Statistics> {
        let reported = |value: Option<u64>| value.filter(|value| *value != u64::MAX);
        let values = &self.stats;
        (self.last_update != 0).then(|| Statistics {
            age: Duration::from_secs(unix_seconds.saturating_sub(self.last_update)),
            total_bytes: reported(values.stat_total_memory),
            free_bytes: reported(values.stat_free_memory),
            available_bytes: reported(values.stat_available_memory),
            caches_bytes: reported(values.stat_disk_caches),
            swap_in_bytes: reported(values.stat_swap_in),
            swap_out_bytes: reported(values.stat_swap_out),
            major_faults: reported(values.stat_major_faults),
            oom_kills: reported(values.stat_oom_kills),
            allocation_stalls: reported(values.stat_alloc_stalls),
            direct_reclaim_bytes: reported(values.stat_direct_reclaims),
        })
    }
}

/// Cloud Hypervisor's answer to `vm.balloon-stats` (later than 53.0), for which it queries the
/// guest each time.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct HypervisorStatistics {
    stats: HypervisorValues,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct HypervisorValues {
    total_memory: Option<u64>,
    free_memory: Option<u64>,
    available_memory: Option<u64>,
    disk_caches: Option<u64>,
    swap_in: Option<u64>,
    swap_out: Option<u64>,
    major_faults: Option<u64>,
    oom_kills: Option<u64>,
    alloc_stalls: Option<u64>,
    direct_reclaims: Option<u64>,
}

impl From<HypervisorStatistics> for Statistics {
    fn from(reported: HypervisorStatistics) -> Self {
        let values = reported.stats;
        Self {
            age: Duration::ZERO,
            total_bytes: values.total_memory,
            free_bytes: values.free_memory,
            available_bytes: values.available_memory,
            caches_bytes: values.disk_caches,
            swap_in_bytes: values.swap_in,
            swap_out_bytes: values.swap_out,
            major_faults: values.major_faults,
            oom_kills: values.oom_kills,
            allocation_stalls: values.alloc_stalls,
            direct_reclaim_bytes: values.direct_reclaims,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_that_a_guest_does_not_report_are_missing() {
        let text = r#"{"stats": {"stat-htlb-pgalloc": 18446744073709551615, "stat-free-memory": 4096,
            "stat-major-faults": 18446744073709551615, "stat-oom-kills": 2}, "last-update": 1000}"#;
        let statistics: QemuStatistics = serde_json::from_str(text).unwrap();
        let reported = statistics.at(1030).unwrap();
        assert_eq!(
            (reported.free_bytes, reported.major_faults, reported.oom_kills),
            (Some(4096), None, Some(2))
        );
        assert_eq!(reported.age, Duration::from_secs(30));
        assert_eq!(statistics.at(900).unwrap().age, Duration::ZERO, "the clock was set back");

        let none: QemuStatistics = serde_json::from_str(r#"{"stats":{},"last-update":0}"#).unwrap();
        assert_eq!(none.at(1000), None);
    }

    #[test]
    fn cloud_hypervisors_guests_have_just_been_asked() {
        let text = r#"{"balloon_actual":1,"stats":{"available_memory":7,"minor_faults":1}}"#;
        let reported: HypervisorStatistics = serde_json::from_str(text).unwrap();
        let expected = Statistics { available_bytes: Some(7), ..Statistics::default() };
        assert_eq!(Statistics::from(reported), expected);
    }
}
