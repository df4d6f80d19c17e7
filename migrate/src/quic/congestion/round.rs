//! What one round trip shows of a path.

use std::time::{Duration, Instant};

/// An acknowledged packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ack {
    pub(super) now: Instant,
    pub(super) sent: Instant,
    pub(super) bytes: u64,
    /// The window was not used up: there was too little to send.
    pub(super) app_limited: bool,
    /// Smoothed round-trip time.
    pub(super) rtt: Duration,
}

impl Ack {
    /// Returns the seconds from sending the packet to its acknowledgement.
    pub(super) fn took_s(&self) -> f64 {
        self.now.saturating_duration_since(self.sent).as_secs_f64()
    }
}

/// The time from sending a packet to its acknowledgement, and what happened in it.
///
/// The next one begins at once: also what is acknowledged before another packet is sent counts. A
/// pause in which there is nothing to send belongs to no round.
#[derive(Debug, Clone)]
pub(super) struct Round {
    began: Option<Instant>,
    /// When the last packet before it was sent.
    last_before: Option<Instant>,
    sent_at: Option<Instant>,
    /// Bytes acknowledged.
    delivered: u64,
    /// Bytes per second of what was in flight when the round began, once all of it has arrived.
    flight_rate: Option<f64>,
    /// Bytes lost.
    lost: u64,
    is_marked: bool,
    is_app_limited: bool,
    rtt_min_s: f64,
}

impl Round {
    /// Creates a round that begins with the next packet sent.
    pub(super) fn new() -> Self {
        Self {
            began: None,
            last_before: None,
            sent_at: None,
            delivered: 0,
            flight_rate: None,
            lost: 0,
            is_marked: false,
            is_app_limited: false,
            rtt_min_s: f64::INFINITY,
        }
    }

    /// Creates the round after one that ended at `now`.
    pub(super) fn after(&self, now: Instant) -> Self {
        let sent_at = self.sent_at;
        Self { began: Some(now), last_before: sent_at, sent_at, ..Self::new() }
    }

    /// Notes that a packet was sent. If none was for `idle`, the round begins here.
    pub(super) fn sent(&mut self, now: Instant, idle: Duration) {
        let is_idle = self.sent_at.is_none_or(|at| now.saturating_duration_since(at) > idle);
        if is_idle {
            *self = Self { began: Some(now), ..Self::new() };
        }
        self.sent_at = Some(now);
    }

    /// Adds an acknowledged packet; returns whether it ends the round.
    pub(super) fn acked(&mut self, ack: &Ack) -> bool {
        let Some(began) = self.began else { return false };
        self.delivered = self.delivered.saturating_add(ack.bytes);
        self.is_app_limited |= ack.app_limited;
        self.rtt_min_s = self.rtt_min_s.min(ack.took_s());
        // Several packets are sent at once, and the last one may be lost.
        let is_last = self
            .last_before
            .is_some_and(|at| ack.sent == at || (ack.sent > at && self.flight_rate.is_none()));
        if is_last {
            self.flight_rate = self.rate_from(began.min(ack.sent), ack.now);
        }
        ack.sent >= began && ack.now > began
    }

    /// Adds lost bytes; 0 stand for a packet that arrived with a mark of congestion.
    pub(super) fn lost(&mut self, bytes: u64) {
        self.lost = self.lost.saturating_add(bytes);
        self.is_marked |= bytes == 0;
    }

    /// Returns the bytes delivered in each second until `now`, or until all arrived that was in
    /// flight at the beginning, if that is more. Where the window has shrunk, nothing is sent for a
    /// while, and the round takes up to two round trips.
    pub(super) fn rate(&self, now: Instant) -> f64 {
        let whole = self.began.and_then(|began| self.rate_from(began, now));
        whole.unwrap_or(0.0).max(self.flight_rate.unwrap_or(0.0))
    }

    /// Returns the bytes delivered so far for each second of this time; `None` for no time.
    fn rate_from(&self, from: Instant, to: Instant) -> Option<f64> {
        let took = to.saturating_duration_since(from);
        (!took.is_zero()).then(|| self.delivered as f64 / took.as_secs_f64())
    }

    /// Returns the bytes lost.
    pub(super) fn lost_bytes(&self) -> f64 {
        self.lost as f64
    }

    /// Returns the bytes delivered or lost.
    pub(super) fn bytes(&self) -> f64 {
        self.delivered as f64 + self.lost as f64
    }

    /// Whether a packet arrived with a mark of congestion (RFC 3168).
    pub(super) fn is_marked(&self) -> bool {
        self.is_marked
    }

    /// Whether there was too little to send at times, so that the rate is not that of the path.
    pub(super) fn is_app_limited(&self) -> bool {
        self.is_app_limited
    }

    /// Returns the shortest round-trip time in it.
    pub(super) fn rtt_min_s(&self) -> f64 {
        self.rtt_min_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(50);

    /// A round that begins when `packets` of 1 byte are in flight, all sent at once at the time
    /// that is returned.
    fn in_flight(packets: u64) -> (Round, Instant) {
        let sent = Instant::now();
        let mut round = Round::new();
        (0..packets).for_each(|_| round.sent(sent, Duration::MAX));
        (round.after(sent + RTT / 2), sent)
    }

    /// Acknowledges one such packet; returns whether it ends the round.
    fn ack(round: &mut Round, sent: Instant) -> bool {
        let (now, bytes) = (sent + RTT, 1);
        round.acked(&Ack { now, sent, bytes, app_limited: false, rtt: RTT })
    }

    #[test]
    fn all_that_was_in_flight_at_the_beginning_counts() {
        let (mut round, sent) = in_flight(10);
        (0..10).for_each(|_| assert!(!ack(&mut round, sent)));
        // Nothing was sent for a while, so the round takes long.
        let later = sent + RTT;
        round.sent(later, Duration::MAX);
        assert!(ack(&mut round, later));
        assert_eq!(round.rate(later + RTT), 10.0 / RTT.as_secs_f64());
    }

    #[test]
    fn where_the_last_packet_is_lost_a_later_one_shows_the_rate() {
        let (mut round, sent) = in_flight(10);
        let last = sent + RTT / 10;
        round.last_before = Some(last);
        (0..9).for_each(|_| assert!(!ack(&mut round, sent)));
        let next = sent + RTT;
        round.sent(next, Duration::MAX);
        assert!(ack(&mut round, next));
        let seconds = (next + RTT).duration_since(sent + RTT / 2).as_secs_f64();
        assert_eq!(round.rate(next + RTT), 10.0 / seconds);
    }
}
