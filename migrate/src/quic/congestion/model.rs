//! How many bytes may be in flight: a model of the path, beside others CUBIC.
//!
//! The model is that of BBR (draft-ietf-ccwg-bbr), steered by the window alone: quinn paces by the
//! window and the smoothed round-trip time. Each round, the time from sending a packet to its
//! acknowledgement, yields a delivery rate. The best of the last rounds times the round-trip time
//! is what the path holds without a queue. A lost packet alone changes nothing.
//!
//! If a queue stays while this connection drains its own, other traffic keeps it full. A model
//! gives way to that traffic, so CUBIC takes over until the queue is gone: CUBIC shares a queue
//! fairly. It also serves short paths, whose round trips are too short for timers.
//!
//! Holds no clock: every call brings the time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::cubic::{BETA, Cubic};
use super::round::{Ack, Round};

/// Paths with a shorter round trip are left to CUBIC, without pacing.
const SHORT_S: f64 = 0.002;
/// Rounds of which the best delivery rate counts.
const RATES: usize = 10;
/// Rounds, before the present one, that confirm its shortest round-trip time.
const RTTS: usize = 2;
/// Rounds without a higher rate after which a path counts as full.
const FLAT_ROUNDS: u32 = 3;
/// Growth of the rate, as a factor, that is expected of a round while a path is not full.
const GROWING: f64 = 1.25;
/// The same of a round in which the window grew less: one that met a queue, or a probe.
const GROWING_SLOWLY: f64 = 1.1;
/// By how much slower slow start grows while there is a queue, its own or that of others
/// (`CSS_GROWTH_DIVISOR` of RFC 9406 §4.3).
const SLOWED: u64 = 4;
/// A round in which every packet took longer than the shortest round-trip time by this factor and
/// [`JITTER_S`] met a queue.
const QUEUED: f64 = 1.125;
/// Allowance for delays in the hosts: timers of a millisecond, and busy threads.
const JITTER_S: f64 = 0.001;
/// Round-trip times this close to the shortest, as a factor, confirm it: there is no queue.
const CONFIRMS: f64 = 1.0625;
/// Loss in a round, as a share, up to which it may be random.
const RANDOM_LOSS: f64 = 0.02;
/// Packets whose loss may always be random.
const RANDOM_PACKETS: f64 = 3.0;
/// Time without a confirmed shortest round-trip time after which the queue is drained for one.
const CONFIRM_EVERY: Duration = Duration::from_secs(5);
/// Age of an unconfirmed shortest round-trip time at which a longer one replaces it.
const RTT_AGE_MAX: Duration = Duration::from_secs(10);
/// Round trips without a packet after which there was nothing to send: nothing is under way.
const IDLE_ROUND_TRIPS: u32 = 2;
/// Rounds without a queue after which nobody else keeps one.
const CALM_ROUNDS: u32 = 8;
/// Rounds that a queue may take to empty.
const DRAIN_ROUNDS: u32 = 3;
/// Factor of the window while the queue is drained.
const DRAIN: f64 = 0.5;
/// Rounds from one probe for a higher rate to the next.
const CYCLE: u32 = 8;
/// First round of the cycle that neither probes nor drains what the probe has queued.
const CRUISE: u32 = 2;
/// How far above the measured rate a probe goes, at least and at most.
const PROBE: (f64, f64) = (0.02, 0.25);
/// Packets added to each probe: a quarter of a small window may be less than one.
const PACKETS_PROBED: f64 = 2.0;
/// Smallest window of the model, in packets: enough for acknowledgements to keep coming.
const PACKETS_MIN: f64 = 4.0;

/// What bounds the bytes in flight.
#[derive(Debug, Clone, Copy)]
enum Mode {
    /// CUBIC's slow start, until the path is full: its best rate, and the rounds without a better.
    Startup { best: f64, flat_rounds: u32 },
    /// Half of what the path holds. If the queue stays nevertheless, CUBIC goes on with `window`.
    Drain { rounds: u32, window: f64 },
    /// What the path holds, slightly more or less by the step of a cycle.
    Steady { step: u32 },
    /// CUBIC, beside traffic that keeps a queue.
    Shared { since: Instant },
}

/// The congestion control of one connection.
#[derive(Debug, Clone)]
pub(super) struct Model {
    mode: Mode,
    cubic: Cubic,
    initial_window: f64,
    mtu: f64,
    round: Round,
    /// Delivery rates of the last rounds, in bytes per second.
    rates: VecDeque<f64>,
    /// Smoothed round-trip time.
    rtt_s: f64,
    /// Shortest round-trip time, of three rounds in succession; infinite before the first.
    rtt_min_s: f64,
    /// The shortest of the last two rounds; empty before the first one has ended.
    last_rtts_s: VecDeque<f64>,
    rtt_confirmed_at: Option<Instant>,
    /// Rounds since the last that met a queue.
    calm_rounds: u32,
    /// How far above the measured rate the next probe goes, as a share.
    probe: f64,
    /// When this last reacted to a loss; earlier packets that are lost tell nothing new.
    reacted_at: Option<Instant>,
}

impl Model {
    /// Begins one of `coupled` connections, with `initial_window` bytes in flight, in packets of
    /// `mtu` bytes.
    pub(super) fn new(initial_window: u64, mtu: u16, coupled: u16) -> Self {
        let initial_window = initial_window as f64;
        Self {
            mode: Mode::Startup { best: 0.0, flat_rounds: 0 },
            cubic: Cubic::new(initial_window, coupled),
            initial_window,
            mtu: f64::from(mtu),
            round: Round::new(),
            rates: VecDeque::with_capacity(RATES + 1),
            rtt_s: 0.0,
            rtt_min_s: f64::INFINITY,
            last_rtts_s: VecDeque::with_capacity(RTTS + 1),
            rtt_confirmed_at: None,
            calm_rounds: 1,
            probe: PROBE.1,
            reacted_at: None,
        }
    }

    /// Sets the size of packets.
    pub(super) fn set_mtu(&mut self, mtu: u16) {
        self.mtu = f64::from(mtu);
    }

    /// Whether the round trip is too short for pacing.
    pub(super) fn is_short(&self) -> bool {
        self.rtt_min_s < SHORT_S
    }

    /// Returns the bytes that may be in flight: at least a few packets, and at most 4 GiB, beyond
    /// which quinn does not pace.
    pub(super) fn window(&self) -> u64 {
        let held = self.held().max(self.least());
        let window = match self.mode {
            Mode::Startup { .. } | Mode::Shared { .. } => self.cubic.window(),
            Mode::Drain { .. } => DRAIN * held,
            Mode::Steady { step: 0 } => (1.0 + self.probe) * held + PACKETS_PROBED * self.mtu,
            Mode::Steady { step: 1 } => (1.0 - self.probe) * held,
            Mode::Steady { .. } => held,
        };
        (window.max(self.least()) as u64).min(u32::MAX.into())
    }

    /// Returns the smallest window, in bytes.
    fn least(&self) -> f64 {
        PACKETS_MIN * self.mtu
    }

    /// Notes that a packet was sent.
    pub(super) fn sent(&mut self, now: Instant) {
        let round_trip = Duration::try_from_secs_f64(self.rtt_s).unwrap_or_default();
        self.round.sent(now, IDLE_ROUND_TRIPS * round_trip);
    }

    /// Notes that a packet has arrived.
    pub(super) fn acked(&mut self, ack: &Ack) {
        self.rtt_s = ack.rtt.as_secs_f64();
        if self.last_rtts_s.is_empty() {
            self.rtt_min_s = self.rtt_min_s.min(ack.took_s());
        }
        if ack.took_s() <= CONFIRMS * self.rtt_min_s {
            self.rtt_confirmed_at = Some(ack.now);
        }
        // Slow start would double the window once more before the round shows the queue.
        let is_slowed = matches!(self.mode, Mode::Startup { .. })
            && !self.is_short()
            && self.rtt_s > self.queued_s();
        if !ack.app_limited {
            let share = if is_slowed { SLOWED } else { 1 };
            self.cubic.acked(&Ack { bytes: ack.bytes / share, ..*ack }, self.mtu);
        }
        if self.round.acked(ack) {
            self.end_round(ack.now);
        }
    }

    /// Notes that packets were lost, the last of which was sent at `sent`; 0 bytes for a packet
    /// that arrived with a mark of congestion.
    pub(super) fn lost(&mut self, now: Instant, sent: Instant, bytes: u64) {
        if self.reacted_at.is_none_or(|at| sent > at) {
            self.round.lost(bytes);
        }
        if self.is_short() || matches!(self.mode, Mode::Shared { .. }) {
            self.cubic.lost(now, sent, self.mtu);
        }
    }

    /// Begins anew after nothing has arrived for several round trips: what was known of the path no
    /// longer holds.
    pub(super) fn restart(&mut self) {
        self.mode = Mode::Startup { best: 0.0, flat_rounds: 0 };
        self.cubic.start_over(self.initial_window);
        self.rates.clear();
        self.round = Round::new();
    }

    /// Returns the bytes that the path holds, with the queue that is there now. A queue as long as
    /// the path is the most that is assumed.
    fn held(&self) -> f64 {
        let rtt_s = self.rtt_s.max(self.rtt_min_s + JITTER_S).min(2.0 * self.rtt_min_s + JITTER_S);
        self.rate() * rtt_s
    }

    /// Returns the delivery rate of the path in bytes per second, 0 before it is known.
    fn rate(&self) -> f64 {
        self.rates.iter().copied().fold(0.0, f64::max)
    }

    /// Returns the round-trip time above which there is a queue.
    fn queued_s(&self) -> f64 {
        QUEUED * self.rtt_min_s + JITTER_S
    }

    /// Whether the shortest round-trip time was last confirmed longer ago than `age`.
    fn rtt_is_older_than(&self, age: Duration, now: Instant) -> bool {
        self.rtt_confirmed_at.is_some_and(|at| now.saturating_duration_since(at) > age)
    }

    fn end_round(&mut self, now: Instant) {
        let next = self.round.after(now);
        let round = std::mem::replace(&mut self.round, next);
        self.note_rtt(round.rtt_min_s());
        if self.is_short() {
            if !matches!(self.mode, Mode::Startup { .. } | Mode::Shared { .. }) {
                self.mode = self.share(now, self.held());
            }
            return;
        }
        let is_queued = round.rtt_min_s() > self.queued_s();
        // A single round may have waited for a processor of this host.
        let was_queued = self.calm_rounds == 0;
        self.calm_rounds = if is_queued { 0 } else { self.calm_rounds.saturating_add(1) };
        let random_max = RANDOM_LOSS * round.bytes() + RANDOM_PACKETS * self.mtu;
        let is_congested = round.is_marked()
            || round.lost_bytes() > random_max
            || (round.lost_bytes() > 0.0 && is_queued && was_queued);
        let has_grown = round.rate(now) > GROWING_SLOWLY * self.rate();
        let seen = Seen { now, is_queued, is_congested, has_grown };
        let before = self.window() as f64;
        if is_congested {
            self.reacted_at = Some(now);
        }
        self.note_rate(&round, &seen);
        self.mode = match self.mode {
            Mode::Startup { best, flat_rounds } => self.start_up(&round, &seen, best, flat_rounds),
            Mode::Drain { .. } if !is_queued => Mode::Steady { step: CRUISE },
            Mode::Drain { rounds, window } if rounds < DRAIN_ROUNDS => {
                Mode::Drain { rounds: rounds + 1, window }
            }
            Mode::Drain { window, .. } => {
                if self.rtt_is_older_than(RTT_AGE_MAX, now) {
                    self.rtt_min_s = round.rtt_min_s();
                    self.rtt_confirmed_at = Some(now);
                }
                self.share(now, window)
            }
            Mode::Steady { step } => self.step(&seen, step, before),
            // Others that back off leave a short queue for a moment; they are still there.
            Mode::Shared { .. }
                if self.calm_rounds >= CALM_ROUNDS
                    || round.rtt_min_s() <= CONFIRMS * self.rtt_min_s =>
            {
                Mode::Steady { step: CRUISE }
            }
            Mode::Shared { since } => {
                let is_due = now.saturating_duration_since(since) > CONFIRM_EVERY;
                match is_due && self.rtt_is_older_than(CONFIRM_EVERY, now) {
                    true => Mode::Drain { rounds: 1, window: self.cubic.window() },
                    false => self.mode,
                }
            }
        };
    }

    /// Notes the shortest round-trip time of a round. Where a thread waits for a processor between
    /// reading the clock and sending or receiving, a packet seems to take less time than the path
    /// does, in the round that this ends and in the next. So two rounds say nothing.
    fn note_rtt(&mut self, shortest_s: f64) {
        self.last_rtts_s.push_back(shortest_s);
        let all_s = self.last_rtts_s.iter().copied().fold(0.0, f64::max);
        self.rtt_min_s = self.rtt_min_s.min(all_s);
        if self.last_rtts_s.len() > RTTS {
            self.last_rtts_s.pop_front();
        }
    }

    /// Notes the delivery rate of a round. In one with too little to send it says nothing, unless
    /// it is the best. After congestion, earlier ones no longer hold.
    fn note_rate(&mut self, round: &Round, seen: &Seen) {
        let rate = round.rate(seen.now);
        if seen.is_congested && !round.is_app_limited() {
            self.rates.clear();
        }
        if !round.is_app_limited() || rate > self.rate() {
            self.rates.push_back(rate);
        }
        if self.rates.len() > RATES {
            self.rates.pop_front();
        }
    }

    fn start_up(&self, round: &Round, seen: &Seen, best: f64, flat_rounds: u32) -> Mode {
        let rate = round.rate(seen.now);
        let growing = if seen.is_queued { GROWING_SLOWLY } else { GROWING };
        let (best, flat_rounds) = match rate > growing * best {
            true => (rate, 0),
            false => (best, flat_rounds + u32::from(!round.is_app_limited())),
        };
        // A queue is that of others while the rate still grows.
        let is_own_queue = seen.is_queued && flat_rounds > 0;
        match flat_rounds >= FLAT_ROUNDS || is_own_queue || seen.is_congested {
            true => Mode::Drain { rounds: 1, window: self.held() },
            false => Mode::Startup { best, flat_rounds },
        }
    }

    /// Ends a round of the cycle, whose window was `window`.
    fn step(&mut self, seen: &Seen, step: u32, window: f64) -> Mode {
        let (least, most) = PROBE;
        if seen.is_congested {
            self.probe = (self.probe / 2.0).max(least);
        } else if step == 0 {
            self.probe = (self.probe * GROWING).min(most);
        }
        if seen.is_congested && seen.is_queued {
            self.share(seen.now, BETA * window)
        } else if seen.is_queued && step == 1 {
            self.share(seen.now, self.held())
        } else if self.rtt_is_older_than(CONFIRM_EVERY, seen.now) {
            Mode::Drain { rounds: 1, window: self.held() }
        } else if step == 1 && seen.has_grown && !seen.is_congested {
            // The probe has found more: the next one is due at once.
            Mode::Steady { step: 0 }
        } else {
            Mode::Steady { step: (step + 1) % CYCLE }
        }
    }

    /// Goes on with CUBIC from `window` bytes.
    fn share(&mut self, now: Instant, window: f64) -> Mode {
        self.cubic.start_after_loss(window.max(self.least()), now);
        Mode::Shared { since: now }
    }
}

/// What a round has shown.
struct Seen {
    now: Instant,
    /// No packet found the path without a queue.
    is_queued: bool,
    /// More was lost than is random, or something was lost while a queue stayed.
    is_congested: bool,
    /// The rate was higher than the best of the last rounds, by a tenth and more.
    has_grown: bool,
}
