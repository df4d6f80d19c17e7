//! Transport settings, each with the reason for its value.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use super::congestion::Congestion;
use crate::convergence::MEASURABLE_BYTES;

/// A peer that is silent for this long counts as dead. A keep-alive sent into the silence restarts
/// the time (RFC 9000 §10.1), so it takes up to 9 s.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(7);
/// Silence after which a keep-alive is sent, so that only a dead peer is silent for the time-out.
pub const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// As [`KEEP_ALIVE`], sent by the source on each of several links: a dead one is found beside the
/// others long before the time-out.
pub const LINK_KEEP_ALIVE: Duration = Duration::from_millis(500);
/// Time within which a dead peer is detected (docs/protocol.md): by QUIC's idle time-out, or by
/// `silence`.
pub const NOTICED_WITHIN: Duration = Duration::from_secs(10);
const _: () = assert!(
    IDLE_TIMEOUT.as_millis() + KEEP_ALIVE.as_millis() < NOTICED_WITHIN.as_millis(),
    "QUIC notices a dead peer later than is promised"
);

/// Largest UDP payload: ten of them fill the kernel's 64 KiB segmentation-offload buffer, which
/// quinn limits to ten segments. With larger ones, quinn sends them one at a time.
pub const MTU_MAX: u16 = 6550;
/// Largest UDP payload on loopback, whose own limit is 65,507 bytes. A datagram of this size costs
/// one system call without segmentation offload, as ten small ones do with it, and a tenth of the
/// packets: a quarter less CPU time at the source, measured.
pub const MTU_LOOPBACK: u16 = 65_000;
/// UDP payload that loopback is assumed to carry without probing: the most that fits the length
/// field of quinn's handshake packets, 2^14 bytes.
const MTU_LOOPBACK_SURE: u16 = 16_000;
/// Default link MTU of Linux' loopback device.
const LOOPBACK_LINK_MTU: u32 = 65_536;
/// Bytes that may be in flight at the start on loopback: several of its datagrams.
const LOOPBACK_INITIAL_WINDOW: u64 = 1 << 20;
/// Time after which larger packets are tried again if they seem to be dropped; a burst may have
/// caused the loss.
const BLACK_HOLE_TIME: Duration = Duration::from_secs(1);
/// Smallest UDP payload, which QUIC requires of every path (RFC 9000 §14).
const MTU_INITIAL: u16 = 1200;

/// Packets that the peer may receive without acknowledging them. QUIC's default is 1: each
/// acknowledgement wakes both sides.
const UNACKNOWLEDGED_MAX: u32 = 9;
/// Longest time for which the peer may delay an acknowledgement.
const ACK_DELAY_MAX: Duration = Duration::from_millis(2);

/// Most connections of a migration, one for each data stream. After a loss, one carries all.
pub const CONNECTIONS_MAX: u8 = 16;
/// Bytes that may be received and unread on one connection: the most that a peer can make this host
/// buffer.
const RECEIVE_WINDOW: u32 = 16 << 20;
/// Bytes that may be written and not yet acknowledged until the path is measured: small enough to
/// stay in the CPU's cache, large enough for a LAN.
const SEND_WINDOW: u64 = 4 << 20;
/// Smallest send window: two batches of one full chunk each.
const SEND_WINDOW_MIN: u64 = 512 << 10;
/// Largest send window, for paths with a large bandwidth-delay product.
const SEND_WINDOW_MAX: u64 = 64 << 20;
/// Round-trip time up to which [`SEND_WINDOW`] is enough: 16 Gbit/s at 2 ms.
const RTT_SHORT: Duration = Duration::from_millis(2);
/// Limit on the send buffer's queue, as time. The guest's last pages wait behind it while the guest
/// is paused, so it adds to the downtime.
const QUEUE: Duration = Duration::from_millis(30);
/// A round leaves at most one byte in this many in that queue.
const QUEUED_PART: u64 = 8;
/// Least that a round may queue, in bytes, half a batch; and as time.
const QUEUE_MIN_BYTES: u64 = 64 << 10;
const QUEUE_MIN: Duration = Duration::from_millis(1);
/// Requested size of each socket's buffers, in bytes; the system may grant less.
pub(super) const SOCKET_BUFFER: usize = 4 << 20;

/// The path between two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Path {
    /// Source and destination are processes of one host.
    Loopback,
    /// Any other path.
    Network,
}

impl Path {
    /// Returns the path to `peer`. Loopback counts as such only if it carries large datagrams.
    pub(super) fn to(peer: SocketAddr) -> Self {
        if peer.ip().is_loopback() && loopback_is_large() { Self::Loopback } else { Self::Network }
    }
}

fn loopback_is_large() -> bool {
    let mtu = std::fs::read_to_string("/sys/class/net/lo/mtu").unwrap_or_default();
    mtu.trim().parse().is_ok_and(|mtu: u32| mtu >= LOOPBACK_LINK_MTU)
}

/// Returns the settings for one end of a connection over `path`.
pub(super) fn config(path: Path) -> TransportConfig {
    config_for_memory(path, 1)
}

/// Returns the settings for one of `coupled` connections that carry a guest's memory.
pub(super) fn config_for_memory(path: Path, coupled: u16) -> TransportConfig {
    let mut config = TransportConfig::default();
    let congestion = Congestion::new(SEND_WINDOW).coupled(coupled);
    let congestion = match path {
        Path::Network => {
            over_network(&mut config);
            congestion
        }
        Path::Loopback => {
            over_loopback(&mut config);
            congestion.starting_at(LOOPBACK_INITIAL_WINDOW)
        }
    };
    config
        .max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        .keep_alive_interval(Some(KEEP_ALIVE))
        .stream_receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .congestion_controller_factory(Arc::new(congestion))
        .send_window(SEND_WINDOW)
        .max_concurrent_bidi_streams(VarInt::from_u32(4))
        .max_concurrent_uni_streams(CONNECTIONS_MAX.into())
        .datagram_receive_buffer_size(None);
    config
}

fn over_network(config: &mut TransportConfig) {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_MAX).black_hole_cooldown(BLACK_HOLE_TIME);
    config
        .initial_mtu(MTU_INITIAL)
        .ack_frequency_config(Some(ack_frequency()))
        .mtu_discovery_config(Some(mtu));
}

/// Sets the MTU for loopback, which drops no large packets. A burst that overruns the receiver may
/// look like that, and small packets without offload are ten times slower; so even the MTU that is
/// used without probing is not small.
fn over_loopback(config: &mut TransportConfig) {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_LOOPBACK).black_hole_cooldown(BLACK_HOLE_TIME);
    config
        .enable_segmentation_offload(false)
        .initial_mtu(MTU_LOOPBACK_SURE)
        .min_mtu(MTU_LOOPBACK_SURE)
        .mtu_discovery_config(Some(mtu));
}

fn ack_frequency() -> AckFrequencyConfig {
    let mut config = AckFrequencyConfig::default();
    config
        .ack_eliciting_threshold(VarInt::from_u32(UNACKNOWLEDGED_MAX))
        .max_ack_delay(Some(ACK_DELAY_MAX));
    config
}

/// Returns the send window for a path with `bytes_per_second` and `round_trip`, in a round of
/// `round_bytes` of memory: the bytes in flight, twice so that the rate can grow, plus a queue of
/// up to [`QUEUE`]. The queue is at most an eighth of the round (more, if its pages compress well),
/// so that it shrinks as rounds do, and little is left when the guest is paused: a round begins
/// behind what the one before it has left. It is not less than [`QUEUE_MIN`] and
/// [`QUEUE_MIN_BYTES`]. In a round too short to measure the link, the rate need not grow.
pub(crate) fn send_window(bytes_per_second: f64, round_trip: Duration, round_bytes: u64) -> u64 {
    let within = |time: Duration| (bytes_per_second * time.as_secs_f64()) as u64;
    let least = within(QUEUE_MIN).max(QUEUE_MIN_BYTES);
    let queue = within(QUEUE).min(round_bytes / QUEUED_PART).max(least);
    let limit = if round_trip < RTT_SHORT { SEND_WINDOW } else { SEND_WINDOW_MAX };
    let growing = within(2 * round_trip).saturating_add(queue).clamp(SEND_WINDOW_MIN, limit);
    match round_bytes {
        bytes if bytes < MEASURABLE_BYTES => within(round_trip).saturating_add(queue).min(growing),
        _ => growing,
    }
}

/// As [`send_window`], for memory that follows its guest: on a short path less, since a page for
/// which the guest waits comes behind what is under way. None, to keep the present one, on a long
/// path whose rate is not known.
pub(crate) fn send_window_behind_guest(
    bytes_per_second: Option<f64>,
    round_trip: Duration,
) -> Option<u64> {
    match bytes_per_second {
        _ if round_trip < RTT_SHORT => Some(SEND_WINDOW_MIN),
        rate => rate.map(|rate| send_window(rate, round_trip, u64::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_slow_link_gets_a_short_queue() {
        // 100 Mbit/s: the queued bytes take 42 ms.
        assert_eq!(send_window(12.5e6, MS, u64::MAX), SEND_WINDOW_MIN);
    }

    #[test]
    fn the_queue_shrinks_with_rounds() {
        let gigabit = 125e6;
        let windows: Vec<u64> = [1 << 30, 32 << 20, 8 << 20, 4 << 20, 1 << 20, 88_000, 0]
            .map(|bytes| send_window(gigabit, MS / 5, bytes))
            .into();
        assert!(windows.is_sorted_by(|a, b| a >= b), "{windows:?}");
        assert_eq!(windows[..2], [50_000 + 3_750_000; 2], "30 ms");
        assert_eq!(windows[2], 50_000 + (1 << 20));
        // Queued when the guest is paused: one millisecond.
        assert_eq!(windows[4..], [25_000 + 131_072, 25_000 + 125_000, 25_000 + 125_000]);
        // Never more than 30 ms.
        assert_eq!(send_window(12.5e6, MS / 5, (4 << 20) - 1), 2500 + 375_000);
        // On a long path about five milliseconds wait behind what is in flight.
        let in_flight = 12.5e6 * 0.05;
        assert_eq!(send_window(12.5e6, 50 * MS, 0), in_flight as u64 + 65_536);
    }

    #[test]
    fn a_fast_short_path_stays_in_the_cache() {
        assert_eq!(send_window(2e9, MS / 5, u64::MAX), SEND_WINDOW);
    }

    #[test]
    fn a_page_that_is_waited_for_comes_behind_less_on_a_short_path() {
        assert_eq!(send_window_behind_guest(None, MS / 5), Some(SEND_WINDOW_MIN));
        assert_eq!(send_window_behind_guest(Some(2e9), MS / 5), Some(SEND_WINDOW_MIN));
        let long = send_window_behind_guest(Some(1.25e9), 20 * MS);
        assert_eq!(long, Some(send_window(1.25e9, 20 * MS, u64::MAX)));
        assert_eq!(send_window_behind_guest(None, 20 * MS), None);
    }

    #[test]
    fn a_long_path_can_be_filled() {
        let under_way = 1.25e9 * 0.02;
        let window = send_window(1.25e9, 20 * MS, u64::MAX);
        assert!(window as f64 >= 2.0 * under_way && window <= SEND_WINDOW_MAX, "{window}");
    }
}
