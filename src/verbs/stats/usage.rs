//! The counters of a guest's process, and the rates between two readings of them.

use std::fs;
use std::time::Duration;

use memopt::observe::{CpuTime, cpu_time};
use serde::Serialize;

use crate::api::types::NetInfo;

/// Counters of a guest's process, all since its start. Those that are unknown are absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pid: Option<u32>,
    /// CPU time of its threads, those of vCPUs included.
    cpu: Option<CpuTime>,
    /// Bytes that the guest received and sent by its network devices, if it has any.
    network: Option<Traffic>,
    /// Bytes that the process read from storage and wrote to it.
    disk: Option<Traffic>,
}

/// Bytes in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Traffic {
    inbound_bytes: u64,
    outbound_bytes: u64,
}

/// What a guest uses in each second. Rates that are unknown are absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Rates {
    /// CPU time of the guest's process; 100 is one CPU.
    pub(super) cpu_percent: Option<f64>,
    /// Bytes of frames that the guest received.
    pub(super) network_receive_bytes_per_s: Option<u64>,
    /// Bytes of frames that the guest sent.
    pub(super) network_transmit_bytes_per_s: Option<u64>,
    /// Bytes that the guest's process read from storage, not from the page cache.
    pub(super) disk_read_bytes_per_s: Option<u64>,
    /// Bytes that the guest's process wrote, or will have written, to storage.
    pub(super) disk_write_bytes_per_s: Option<u64>,
}

impl Counters {
    /// Reads the counters of process `pid`, whose guest reports `nets`.
    pub(super) fn read(pid: Option<u32>, nets: &[NetInfo]) -> Self {
        // The process may be gone, or another user's.
        let io = |pid| fs::read_to_string(format!("/proc/{pid}/io")).ok();
        Self {
            pid,
            cpu: pid.and_then(|pid| cpu_time(pid).ok()),
            network: network(nets),
            disk: pid.and_then(io).as_deref().and_then(parse_io),
        }
    }
}

/// Returns the traffic of all network devices; `None` without one.
fn network(nets: &[NetInfo]) -> Option<Traffic> {
    let none = Traffic { inbound_bytes: 0, outbound_bytes: 0 };
    let add = |sum: Traffic, net: &NetInfo| Traffic {
        inbound_bytes: sum.inbound_bytes.saturating_add(net.received.bytes),
        outbound_bytes: sum.outbound_bytes.saturating_add(net.transmitted.bytes),
    };
    (!nets.is_empty()).then(|| nets.iter().fold(none, add))
}

/// Parses the text of `/proc/PID/io` (proc_pid_io(5)).
fn parse_io(text: &str) -> Option<Traffic> {
    let number = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.strip_prefix(':')?.trim().parse::<u64>().ok()
    };
    Some(Traffic { inbound_bytes: number("read_bytes")?, outbound_bytes: number("write_bytes")? })
}

/// Returns the rates between two readings, `elapsed` apart. They are unknown if the readings are of
/// different processes.
pub(super) fn rates(before: &Counters, after: &Counters, elapsed: Duration) -> Rates {
    let started = |counters: &Counters| counters.cpu.map(|cpu| cpu.started);
    let is_same = before.pid == after.pid && started(before) == started(after);
    if !is_same || elapsed.is_zero() {
        return Rates::default();
    }
    let seconds = elapsed.as_secs_f64();
    let per_second = |before: Option<u64>, after: Option<u64>| {
        // A counter may go backwards only if the guest's process lies.
        let grown = after?.checked_sub(before?)?;
        Some(grown as f64 / seconds)
    };
    let bytes = |of: fn(&Counters) -> Option<u64>| {
        per_second(of(before), of(after)).map(|rate| rate.round() as u64)
    };
    let used_ms = |counters: &Counters| {
        let used = counters.cpu?.used;
        u64::try_from(used.as_millis()).ok()
    };
    let busy_ms = per_second(used_ms(before), used_ms(after));
    Rates {
        cpu_percent: busy_ms.map(|busy_ms| busy_ms / 1000.0 * 100.0),
        network_receive_bytes_per_s: bytes(|it| Some(it.network?.inbound_bytes)),
        network_transmit_bytes_per_s: bytes(|it| Some(it.network?.outbound_bytes)),
        disk_read_bytes_per_s: bytes(|it| Some(it.disk?.inbound_bytes)),
        disk_write_bytes_per_s: bytes(|it| Some(it.disk?.outbound_bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::FlowInfo;

    #[test]
    fn the_counters_of_this_process_are_read() {
        let own = Counters::read(Some(std::process::id()), &[]);
        assert!(own.cpu.is_some_and(|cpu| cpu.started > 0), "{own:?}");
        assert!(own.disk.is_some() && own.network.is_none(), "{own:?}");
    }

    #[test]
    fn storage_is_told_from_the_page_cache() {
        let text = "rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\nread_bytes: 4096\nwrite_bytes: 8192\n\
                    cancelled_write_bytes: 5\n";
        let expected = Traffic { inbound_bytes: 4096, outbound_bytes: 8192 };
        assert_eq!(parse_io(text), Some(expected));
        assert_eq!(parse_io("rchar: 1\n"), None);
    }

    /// The CPU time of so many ticks of the kernel.
    fn used(ticks: u64) -> Duration {
        Duration::from_millis(10 * ticks)
    }

    fn counters(used_ticks: u64, inbound_bytes: u64) -> Counters {
        let flow = |bytes| FlowInfo { bytes, packets: 1, drops: 0 };
        let net = |tap: &str| NetInfo {
            mac: String::new(),
            mtu: 1500,
            tap: tap.to_owned(),
            bridge: None,
            standby: false,
            queues: 1,
            vhost: false,
            received: flow(inbound_bytes),
            transmitted: flow(7),
        };
        Counters {
            pid: Some(7),
            cpu: Some(CpuTime { started: 1, used: used(used_ticks) }),
            network: network(&[net("tap0"), net("tap1")]),
            disk: None,
        }
    }

    #[test]
    fn rates_are_what_was_added_in_a_second() {
        let rates = rates(&counters(100, 1000), &counters(400, 2000), Duration::from_secs(2));
        let expected = Rates {
            cpu_percent: Some(150.0),
            network_receive_bytes_per_s: Some(1000),
            network_transmit_bytes_per_s: Some(0),
            disk_read_bytes_per_s: None,
            disk_write_bytes_per_s: None,
        };
        assert_eq!(rates, expected);
    }

    #[test]
    fn rates_of_different_processes_or_of_no_time_are_unknown() {
        let (before, after) = (counters(100, 1000), counters(400, 2000));
        let second = Duration::from_secs(1);
        let other = Counters { pid: Some(8), ..after };
        assert_eq!(rates(&before, &other, second), Rates::default());
        let again = CpuTime { started: 2, used: used(400) };
        let again = Counters { cpu: Some(again), ..after };
        assert_eq!(rates(&before, &again, second), Rates::default());
        assert_eq!(rates(&before, &after, Duration::ZERO), Rates::default());
        assert_eq!(rates(&after, &before, second).cpu_percent, None);
    }
}
