//! Transport settings, each with what it was chosen for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use super::congestion::FastPathCubic;

/// A peer that is silent for this long is taken for dead.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(8);
/// Silence after which a sign of life is sent, so that only a dead peer is silent for the time-out.
pub const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// Largest UDP payload: ten of them fill the kernel's 64 KiB segmentation-offload buffer, which quinn
/// limits to ten segments. Larger ones make it fall back to sending them singly.
pub const MTU_MAX: u16 = 6550;
/// Largest UDP payload on loopback, whose own limit is 65,507 bytes. A datagram of this size costs one
/// system call without segmentation offload, as ten small ones do with it, and a tenth of the packets:
/// measured, a quarter less CPU time at the source.
pub const MTU_MAX_LOOPBACK: u16 = 65_000;
/// Smallest UDP payload, which QUIC demands of every path (RFC 9000 §14).
const MTU_INITIAL: u16 = 1200;

/// Bytes that may be under way unread on one connection; what the peer can make this host hold.
const RECEIVE_WINDOW: u32 = 16 << 20;
/// Bytes that may be written and not yet acknowledged: small enough to stay in the CPU's cache, large
/// enough for a LAN. [`super::endpoint::fit_to_path`] widens it for long paths.
pub(super) const SEND_WINDOW: u64 = 4 << 20;
/// Bytes wanted for each socket's buffers; the system may give less.
pub(super) const SOCKET_BUFFER: usize = 4 << 20;

/// What lies between two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Path {
    /// Nothing: source and destination are processes of one host.
    Loopback,
    /// Anything else.
    Network,
}

impl Path {
    /// The path to `peer`.
    pub(super) fn to(peer: SocketAddr) -> Self {
        if peer.ip().is_loopback() { Self::Loopback } else { Self::Network }
    }
}

/// Makes the settings for one end of a connection over `path`.
pub(super) fn config(path: Path) -> TransportConfig {
    let mut config = TransportConfig::default();
    let mut mtu = MtuDiscoveryConfig::default();
    match path {
        Path::Network => mtu.upper_bound(MTU_MAX),
        Path::Loopback => mtu.upper_bound(MTU_MAX_LOOPBACK),
    };
    config
        .enable_segmentation_offload(path == Path::Network)
        .max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_mtu(MTU_INITIAL)
        .mtu_discovery_config(Some(mtu))
        .stream_receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .send_window(SEND_WINDOW)
        .max_concurrent_bidi_streams(VarInt::from_u32(4))
        .max_concurrent_uni_streams(VarInt::from_u32(16))
        .datagram_receive_buffer_size(None)
        .congestion_controller_factory(Arc::new(FastPathCubic::default()));
    config
}
