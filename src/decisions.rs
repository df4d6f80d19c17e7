//! Says for users what a source has decided about a migration on its way.

use std::time::Duration;

use migrate::decisions::{Cause, Decided, DecidedAt};
use migrate::source::RECONNECT_WITHIN;

use crate::units::{PAGE_BYTES, format_duration, format_rate, format_vcpus};

/// Formats a decision and when it was made.
pub(crate) fn dated(decided: &DecidedAt) -> String {
    format!("at {}: {}", time(decided.after_seconds), text(&decided.what))
}

/// Formats a decision.
pub(crate) fn text(decided: &Decided) -> String {
    match decided {
        Decided::Stalled {
            dirty_pages_per_second,
            bandwidth_bytes_per_second,
            expected_downtime_seconds,
            downtime_limit_seconds,
            on_stall,
        } => format!(
            "stalled: the guest writes {}, {} are sent; expected downtime {}, limit {}; \
             --on-stall {on_stall}",
            rate(dirty_pages_per_second * PAGE_BYTES as f64),
            rate(*bandwidth_bytes_per_second),
            time(*expected_downtime_seconds),
            time(*downtime_limit_seconds)
        ),
        Decided::Impossible { fixed_seconds, downtime_limit_seconds, on_stall } => format!(
            "the downtime limit of {} is impossible, since pausing the guest takes {} even without \
             dirty memory; --on-stall {on_stall}",
            time(*downtime_limit_seconds),
            time(*fixed_seconds)
        ),
        Decided::LimitRaised {
            expected_downtime_seconds,
            fixed_seconds,
            downtime_limit_seconds,
            downtime_max_seconds,
        } => format!(
            "the downtime limit is raised to {} ({} at most): {} are expected, {} even without dirty \
             memory",
            time(*downtime_limit_seconds),
            time(*downtime_max_seconds),
            time(*expected_downtime_seconds),
            time(*fixed_seconds)
        ),
        Decided::Throttled { percent, vcpus, disk_bytes_per_second } => {
            let disks = disk_bytes_per_second.map_or_else(String::new, |bytes| {
                format!(", disks written at {} at most", format_rate(bytes.get()))
            });
            format!("{} throttled by up to {percent} %{disks}", format_vcpus(*vcpus))
        }
        Decided::Unthrottled { cause } => {
            format!("the guest is no longer throttled, {}", why(*cause))
        }
        Decided::Forced { expected_downtime_seconds, downtime_limit_seconds } => format!(
            "forced: the guest is handed over with an expected downtime of {}, limit {}",
            time(*expected_downtime_seconds),
            time(*downtime_limit_seconds)
        ),
        Decided::Postcopy { cause } => {
            format!("the guest is handed over before its memory, {}", why(*cause))
        }
        Decided::CalledOff { allowed_seconds, waited_for } => format!(
            "the hand-over is called off, since it took longer than {}: {waited_for}",
            time(*allowed_seconds)
        ),
        Decided::Disconnected { detail } => format!(
            "the destination is out of reach ({detail}): trying to reconnect for {}; the guest runs on",
            format_duration(RECONNECT_WITHIN)
        ),
        Decided::Reconnected { disconnected_seconds } => format!(
            "the destination is in reach again after {}: rounds go on",
            time(*disconnected_seconds)
        ),
        Decided::LimitsChanged { .. } => limits(decided),
        Decided::Other => "a decision that this release does not know".to_owned(),
    }
}

/// Names the limits that were set.
fn limits(decided: &Decided) -> String {
    let Decided::LimitsChanged {
        downtime_limit_seconds,
        downtime_max_seconds,
        time_limit_seconds,
        bandwidth_limit_bytes_per_second,
        on_stall,
    } = decided
    else {
        return String::new();
    };
    let limits = [
        downtime_limit_seconds.map(|limit| format!("downtime={}", time(limit))),
        downtime_max_seconds.map(|limit| format!("downtime-max={}", time(limit))),
        time_limit_seconds.map(|limit| format!("timeout={}", time(limit))),
        bandwidth_limit_bytes_per_second.map(|limit| format!("bandwidth={}", bound(limit))),
        on_stall.map(|on_stall| format!("on-stall={on_stall}")),
    ];
    format!("new limits: {}", Vec::from_iter(limits.into_iter().flatten()).join(", "))
}

fn why(cause: Cause) -> &'static str {
    match cause {
        Cause::Stall => "as it stalls",
        Cause::Order => "by order of the operator",
        Cause::Idle => "as nothing has been sent for some time",
    }
}

/// Formats a limit of the bandwidth; 0 stands for none.
fn bound(bytes_per_second: u64) -> String {
    match bytes_per_second {
        0 => "none".to_owned(),
        bytes => format_rate(bytes),
    }
}

fn rate(bytes_per_second: f64) -> String {
    format_rate(bytes_per_second.max(0.0) as u64)
}

/// Formats a time in seconds; an invalid (negative) one is shown as zero.
fn time(seconds: f64) -> String {
    format_duration(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use migrate::OnStall;

    use super::*;

    #[test]
    fn a_throttle_says_what_it_does_to_vcpus_and_to_copied_disks() {
        let throttled = |disk_bytes_per_second| {
            text(&Decided::Throttled { percent: 75, vcpus: 1, disk_bytes_per_second })
        };
        assert_eq!(throttled(None), "1 vCPU throttled by up to 75 %");
        let disks = ", disks written at 4 MiB/s at most";
        assert_eq!(throttled(NonZeroU64::new(4 << 20)), throttled(None) + disks);
    }

    #[test]
    fn a_loss_of_the_connection_says_for_how_long_it_is_tried() {
        let lost = Decided::Disconnected { detail: "timed out".to_owned() };
        let said = "the destination is out of reach (timed out): trying to reconnect for 2m 00s; the guest runs on";
        assert_eq!(text(&lost), said);
        let back = Decided::Reconnected { disconnected_seconds: 12.34 };
        assert_eq!(text(&back), "the destination is in reach again after 12.34 s: rounds go on");
    }

    #[test]
    fn each_decision_says_what_was_done_and_why() {
        let on_stall = OnStall::Wait;
        for (decided, said) in [
            (
                Decided::Stalled {
                    dirty_pages_per_second: 20_000.0,
                    bandwidth_bytes_per_second: 8e6,
                    expected_downtime_seconds: 2.1,
                    downtime_limit_seconds: 0.3,
                    on_stall,
                },
                "stalled: the guest writes 78.1 MiB/s, 7.63 MiB/s are sent; expected downtime 2.10 s, limit \
                 300.0 ms; --on-stall wait",
            ),
            (
                Decided::Impossible {
                    fixed_seconds: 0.085,
                    downtime_limit_seconds: 0.01,
                    on_stall,
                },
                "the downtime limit of 10.0 ms is impossible, since pausing the guest takes 85.0 ms even without dirty \
                 memory; --on-stall wait",
            ),
            (
                Decided::LimitRaised {
                    expected_downtime_seconds: 2.1,
                    fixed_seconds: 0.04,
                    downtime_limit_seconds: 0.6,
                    downtime_max_seconds: 2.0,
                },
                "the downtime limit is raised to 600.0 ms (2.00 s at most): 2.10 s are expected, 40.0 ms even without dirty \
                 memory",
            ),
            (
                Decided::Unthrottled { cause: Cause::Idle },
                "the guest is no longer throttled, as nothing has been sent for some time",
            ),
            (
                Decided::Forced { expected_downtime_seconds: 2.1, downtime_limit_seconds: 0.3 },
                "forced: the guest is handed over with an expected downtime of 2.10 s, limit 300.0 ms",
            ),
            (
                Decided::Postcopy { cause: Cause::Order },
                "the guest is handed over before its memory, by order of the operator",
            ),
            (
                Decided::CalledOff { allowed_seconds: 1.6, waited_for: "a disk".to_owned() },
                "the hand-over is called off, since it took longer than 1.60 s: a disk",
            ),
            (
                Decided::LimitsChanged {
                    downtime_limit_seconds: Some(20.0),
                    downtime_max_seconds: Some(30.0),
                    time_limit_seconds: None,
                    bandwidth_limit_bytes_per_second: Some(0),
                    on_stall: Some(OnStall::Force),
                },
                "new limits: downtime=20.00 s, downtime-max=30.00 s, bandwidth=none, on-stall=force",
            ),
        ] {
            assert_eq!(text(&decided), said);
            let dated = dated(&DecidedAt { after_seconds: 1.5, what: decided });
            assert_eq!(dated, format!("at 1.50 s: {said}"));
        }
    }
}
