//! The kernel's counters of an interface, for frames that do not pass through this process.

use super::meter::Flow;

/// What the kernel says of all interfaces in this thread's network namespace.
const STATISTICS: &str = "/proc/thread-self/net/dev";

/// Frames of a guest in both directions, from its point of view.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Flows {
    /// Frames to the guest.
    pub(super) received: Flow,
    /// Frames from the guest.
    pub(super) transmitted: Flow,
}

impl Flows {
    /// Returns the counters of `tap`; `None` if there is no such interface.
    pub(super) fn of(tap: &str) -> Option<Self> {
        parse(&std::fs::read_to_string(STATISTICS).ok()?, tap)
    }

    /// Returns what was counted since the counters were `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        let since = |now: Flow, before: Flow| Flow {
            bytes: now.bytes.saturating_sub(before.bytes),
            frames: now.frames.saturating_sub(before.frames),
            drops: now.drops.saturating_sub(before.drops),
        };
        Self {
            received: since(self.received, before.received),
            transmitted: since(self.transmitted, before.transmitted),
        }
    }

    /// Returns the sum of both.
    pub(super) fn plus(&self, other: &Self) -> Self {
        let sum = |a: Flow, b: Flow| Flow {
            bytes: a.bytes + b.bytes,
            frames: a.frames + b.frames,
            drops: a.drops + b.drops,
        };
        Self {
            received: sum(self.received, other.received),
            transmitted: sum(self.transmitted, other.transmitted),
        }
    }
}

/// Finds `tap` in the table of interfaces (`dev_seq_printf_stats` in net/core/net-procfs.c). What a
/// tap receives, its guest has sent.
fn parse(table: &str, tap: &str) -> Option<Flows> {
    let numbers = table.lines().find_map(|line| {
        let (name, numbers) = line.trim_start().split_once(':')?;
        (name == tap).then_some(numbers)
    })?;
    let mut numbers = numbers.split_ascii_whitespace().map(str::parse::<u64>);
    let mut flow = || {
        let [bytes, frames, _errors, drops, ..] = take(&mut numbers)?;
        Some(Flow { bytes, frames, drops })
    };
    Some(Flows { transmitted: flow()?, received: flow()? })
}

/// Returns the next eight numbers, which are those of one direction.
fn take<E>(numbers: &mut impl Iterator<Item = Result<u64, E>>) -> Option<[u64; 8]> {
    let eight: Result<Vec<u64>, E> = numbers.take(8).collect();
    eight.ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:  100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
lighter12: 7 6 5 4 3 2 1 0 17 16 15 14 13 12 11 10
lighter1: 2000 20 0 2 0 0 0 0 3000 30 0 3 0 0 0 0
short: 1 2
";

    #[test]
    fn a_taps_directions_are_the_other_way_round_for_its_guest() {
        let received = Flow { bytes: 3000, frames: 30, drops: 3 };
        let transmitted = Flow { bytes: 2000, frames: 20, drops: 2 };
        assert_eq!(parse(TABLE, "lighter1"), Some(Flows { received, transmitted }));
        assert_eq!(parse(TABLE, "lighter1").unwrap().received.drops, 3);
        for other in ["lighter", "short", "face |bytes"] {
            assert_eq!(parse(TABLE, other), None, "{other}");
        }
    }

    #[test]
    fn the_kernel_has_the_table() {
        let text = std::fs::read_to_string(STATISTICS).unwrap();
        assert!(parse(&text, "lo").is_some(), "{text}");
    }

    #[test]
    fn counters_that_begin_again_do_not_underflow() {
        let many = parse(TABLE, "lighter1").unwrap();
        let few = parse(TABLE, "lighter12").unwrap();
        assert_eq!(many.since(&few).received, Flow { bytes: 2983, frames: 14, drops: 0 });
        assert_eq!(few.since(&many).received.bytes, 0);
        assert_eq!(few.plus(&many).transmitted, Flow { bytes: 2007, frames: 26, drops: 6 });
    }
}
