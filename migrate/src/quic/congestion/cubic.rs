//! The window of CUBIC (RFC 9438), which most TCP traffic uses.
//!
//! quinn's own CUBIC can neither start at a given window nor run without a connection, as tests do.

use std::time::Instant;

use super::round::Ack;

/// Factor by which a loss shrinks the window (RFC 9438 §4.6).
pub(super) const BETA: f64 = 0.7;
/// Growth, in packets per second cubed (RFC 9438 §5).
const GROWTH: f64 = 0.4;
/// Smallest window, in packets.
const PACKETS_MIN: f64 = 2.0;

/// A congestion window that grows by acknowledgements and shrinks by losses.
///
/// Of `coupled` connections, which carry one migration, each grows so slowly that all of them have
/// what one would have beside others: at the same share of lost packets, CUBIC's window is
/// proportional to the fourth root of its growth (RFC 9438 §5.1), Reno's to the square root.
#[derive(Debug, Clone)]
pub(super) struct Cubic {
    /// Bytes that may be in flight.
    window: f64,
    /// How many connections have one share of their path.
    coupled: f64,
    /// The last loss; none in slow start.
    loss: Option<Loss>,
}

#[derive(Debug, Clone, Copy)]
struct Loss {
    at: Instant,
    /// The window to which the next one returns quickly, in bytes.
    peak: f64,
}

impl Cubic {
    /// Creates the window of one of `coupled` connections, 1 or more.
    pub(super) fn new(window: f64, coupled: u16) -> Self {
        Self { window, coupled: f64::from(coupled), loss: None }
    }

    /// Begins with slow start from `window` bytes.
    pub(super) fn start_over(&mut self, window: f64) {
        *self = Self { window, loss: None, ..*self };
    }

    /// Begins as if a loss had just left a window of `window` bytes.
    pub(super) fn start_after_loss(&mut self, window: f64, now: Instant) {
        let loss = Some(Loss { at: now, peak: window / BETA });
        *self = Self { window, loss, ..*self };
    }

    /// Returns the bytes that may be in flight.
    pub(super) fn window(&self) -> f64 {
        self.window
    }

    /// Grows the window, unless the packet was sent before the last loss.
    pub(super) fn acked(&mut self, ack: &Ack, mtu: f64) {
        let bytes = ack.bytes as f64;
        let Some(loss) = self.loss else {
            self.window += bytes;
            return;
        };
        if ack.sent <= loss.at {
            return;
        }
        let elapsed_s = ack.now.saturating_duration_since(loss.at).as_secs_f64();
        let rtt_s = ack.rtt.as_secs_f64().max(1e-6);
        let peak = loss.peak / mtu;
        // RFC 9438 §4.2 and §4.3, in packets.
        let growth = GROWTH / self.coupled.powi(4);
        let plateau_s = (peak * (1.0 - BETA) / growth).cbrt();
        let cubic = growth * (elapsed_s + rtt_s - plateau_s).powi(3) + peak;
        let slope = 3.0 * (1.0 - BETA) / (1.0 + BETA) / self.coupled.powi(2);
        let reno = peak * BETA + slope * elapsed_s / rtt_s;
        let target = (cubic.max(reno) * mtu).max(self.window).min(1.5 * self.window);
        self.window += (target - self.window) * bytes / self.window;
    }

    /// Shrinks the window, unless it has shrunk since the lost packet was sent.
    pub(super) fn lost(&mut self, now: Instant, sent: Instant, mtu: f64) {
        if self.loss.is_some_and(|loss| sent <= loss.at) {
            return;
        }
        // A window that did not reach its old peak makes room for others (RFC 9438 §4.7).
        let peak = match self.loss {
            Some(last) if self.window < last.peak => self.window * (1.0 + BETA) / 2.0,
            _ => self.window,
        };
        self.loss = Some(Loss { at: now, peak });
        self.window = (self.window * BETA).max(PACKETS_MIN * mtu);
    }
}
