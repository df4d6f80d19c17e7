//! Congestion control, without pacing where pacing only costs.
//!
//! [`Model`] decides how many bytes may be in flight. On a LAN without loss its window soon exceeds
//! what the send window allows. Only quinn's pacer is then left of it, which wakes the connection
//! for each burst and halves throughput on loopback. In that case the window is reported as
//! unlimited, which tells quinn not to pace (`quinn-proto`, `connection/pacing.rs`); the send
//! window still bounds the bytes in flight. The first loss shrinks the window and restores pacing.

mod cubic;
mod model;
mod round;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn::Connection;
use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

use model::Model;
use round::Ack;

/// The smallest window at which quinn does not pace.
const UNPACED: u64 = u32::MAX as u64 + 1;
/// Most connections that have one share: of more, each would take minutes to grow after a loss. A
/// migration has more only if its operator says so.
const COUPLED_MAX: u16 = 4;
/// Bytes in flight before anything is acknowledged (RFC 9002 §7.2).
const INITIAL_WINDOW: u64 = 12_000;

/// Builds the congestion control of connections.
#[derive(Debug)]
pub(super) struct Congestion {
    initial_window: u64,
    free: u64,
    coupled: u16,
}

impl Congestion {
    /// Creates a factory for connections that never have more than `send_window` bytes in flight.
    pub(super) fn new(send_window: u64) -> Self {
        // From here on the window does not limit: slow start would next double it past the send
        // window.
        Self { initial_window: INITIAL_WINDOW, free: send_window / 2, coupled: 1 }
    }

    /// Sets how many connections have one share of their path: those of one migration, at most
    /// [`COUPLED_MAX`] of them.
    pub(super) fn coupled(self, connections: u16) -> Self {
        Self { coupled: connections.clamp(1, COUPLED_MAX), ..self }
    }

    /// Sets the bytes that may be in flight before anything is acknowledged.
    pub(super) fn starting_at(self, initial_window: u64) -> Self {
        Self { initial_window, ..self }
    }
}

impl ControllerFactory for Congestion {
    fn build(self: Arc<Self>, _now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let model = Model::new(self.initial_window, current_mtu, self.coupled);
        let (initial_window, free) = (self.initial_window, self.free);
        Box::new(FastPath { model, initial_window, free, last_acknowledged: None })
    }
}

#[derive(Debug, Clone)]
struct FastPath {
    model: Model,
    initial_window: u64,
    /// The window of the model from which it no longer limits.
    free: u64,
    last_acknowledged: Option<Instant>,
}

/// Returns when the peer last acknowledged a packet that it had not acknowledged before; none if it
/// has not since the connection has its present path. (A peer that receives nothing any more may
/// repeat its last acknowledgement in each packet: the number of ACK frames proves nothing.)
pub(crate) fn last_acknowledged(connection: &Connection) -> Option<Instant> {
    connection.congestion_state().into_any().downcast::<FastPath>().ok()?.last_acknowledged
}

impl Controller for FastPath {
    fn on_sent(&mut self, now: Instant, _bytes: u64, _last_packet_number: u64) {
        self.model.sent(now);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.last_acknowledged = Some(now);
        self.model.acked(&Ack { now, sent, bytes, app_limited, rtt: rtt.get() });
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        match is_persistent_congestion {
            true => self.model.restart(),
            false => self.model.lost(now, sent, lost_bytes),
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.model.set_mtu(new_mtu);
    }

    fn window(&self) -> u64 {
        let window = self.model.window();
        if self.model.is_short() && window >= self.free { UNPACED } else { window }
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.initial_window
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
