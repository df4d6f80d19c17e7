//! The counters of a guest's process, and the rates between two readings of them.

use std::fs;
use std::time::Duration;

use serde::Serialize;

use crate::api::types::NetInfo;

/// `USER_HZ`: the ticks per second in `/proc/PID/stat`, fixed in the kernel's ABI on x86-64.
const TICKS_PER_SECOND: f64 = 100.0;

/// Counters of a guest's process, all since its start. Those that are unknown are absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pid: Option<u32>,
    cpu: Option<CpuTime>,
    /// Bytes that the guest received and sent by its network devices, if it has any.
    network: Option<Traffic>,
    /// Bytes that the process read from storage and wrote to it.
    disk: Option<Traffic>,
}

/// The CPU time of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CpuTime {
    /// When the process started, in ticks since boot: a PID may be used again.
    started_ticks: u64,
    /// Time that its threads have run, those of vCPUs included, in ticks.
    used_ticks: u64,
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
        let file = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", pid?)).ok();
        Self {
            pid,
            cpu: file("stat").as_deref().and_then(parse_stat),
            network: network(nets),
            disk: file("io").as_deref().and_then(parse_io),
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

/// Parses the text of `/proc/PID/stat` (proc_pid_stat(5): fields 14, 15 and 22; the name in field 2
/// may contain spaces and brackets).
fn parse_stat(text: &str) -> Option<CpuTime> {
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // The first of these fields is field 3.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let used_ticks = number(14)?.checked_add(number(15)?)?;
    Some(CpuTime { started_ticks: number(22)?, used_ticks })
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
    let started = |counters: &Counters| counters.cpu.map(|cpu| cpu.started_ticks);
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
    let used = |counters: &Counters| counters.cpu.map(|cpu| cpu.used_ticks);
    let ticks = per_second(used(before), used(after));
    Rates {
        cpu_percent: ticks.map(|ticks| ticks / TICKS_PER_SECOND * 100.0),
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

    /// From Linux 6.18, with a name that a process may give itself.
    const STAT: &str = "4711 (a) R (b) S 1 4711 4711 0 -1 1077936384 9 0 0 0 250 50 7 7 20 0 5 0 \
                        123456 600000 140000 18446744073709551615";

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let expected = CpuTime { started_ticks: 123_456, used_ticks: 300 };
        assert_eq!(parse_stat(STAT), Some(expected));
        assert_eq!(parse_stat("4711 (a) S 1 2"), None);
        assert_eq!(parse_stat(""), None);
        let own = Counters::read(Some(std::process::id()), &[]);
        assert!(own.cpu.is_some_and(|cpu| cpu.started_ticks > 0), "{own:?}");
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

    fn counters(used_ticks: u64, inbound_bytes: u64) -> Counters {
        let flow = |bytes| FlowInfo { bytes, packets: 1, drops: 0 };
        let net = |tap: &str| NetInfo {
            mac: String::new(),
            mtu: 1500,
            tap: tap.to_owned(),
            bridge: None,
            received: flow(inbound_bytes),
            transmitted: flow(7),
        };
        Counters {
            pid: Some(7),
            cpu: Some(CpuTime { started_ticks: 1, used_ticks }),
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
        let again = CpuTime { started_ticks: 2, used_ticks: 400 };
        let again = Counters { cpu: Some(again), ..after };
        assert_eq!(rates(&before, &again, second), Rates::default());
        assert_eq!(rates(&before, &after, Duration::ZERO), Rates::default());
        assert_eq!(rates(&after, &before, second).cpu_percent, None);
    }
}
