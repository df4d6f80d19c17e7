//! A simulated link, for tests: one bottleneck with a queue of limited length, and random loss.
//!
//! Deterministic: events come in the order of virtual time, and losses from a fixed seed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::cubic::Cubic;
use super::model::Model;
use super::round::Ack;

/// Bytes of each packet.
pub(super) const PACKET: u64 = 1452;
/// Time for which a flow may make up what it did not send.
const BURST_S: f64 = 0.002;
/// The same for a flow that is limited by what there is to send.
const LIMITED_BURST_S: f64 = 0.02;
/// Time without an arrival after which all in flight counts as lost.
const SILENCE_S: f64 = 1.0;

/// The path of all flows.
#[derive(Clone, Copy)]
pub(super) struct Link {
    pub(super) bytes_per_second: f64,
    /// Round-trip time without a queue.
    pub(super) rtt_s: f64,
    /// Most bytes in the queue.
    pub(super) queue: f64,
    /// Share of packets that are lost at random.
    pub(super) loss: f64,
}

enum Control {
    Model(Box<Model>),
    /// As most TCP: not paced.
    Cubic(Cubic),
}

/// A connection that always has something to send, unless limited.
pub(super) struct Flow {
    control: Control,
    /// Packets that are sent, and lost, at once, as the kernel sends a large one.
    burst: usize,
    /// Most bytes that there are to send each second.
    limit: Option<f64>,
    /// Earliest time of the next packet.
    next_s: f64,
    /// Number and time of packets in flight.
    in_flight: VecDeque<(u64, f64)>,
    sent: u64,
    /// Smoothed round-trip time.
    pub(super) rtt_s: Option<f64>,
    /// Bytes that have arrived.
    pub(super) delivered: f64,
    pub(super) lost: f64,
}

impl Flow {
    /// Creates a flow controlled by the model that starts at `start_s`.
    pub(super) fn model(start_s: f64) -> Self {
        Self::one_of(1, start_s)
    }

    /// As [`Flow::model`], for one of so many coupled ones.
    pub(super) fn one_of(coupled: u16, start_s: f64) -> Self {
        let model = Model::new(10 * PACKET, PACKET as u16, coupled);
        Self::new(Control::Model(Box::new(model)), start_s)
    }

    /// Creates a flow as of TCP that starts at `start_s`.
    pub(super) fn cubic(start_s: f64) -> Self {
        Self::new(Control::Cubic(Cubic::new(10.0 * PACKET as f64, 1)), start_s)
    }

    fn new(control: Control, next_s: f64) -> Self {
        let in_flight = VecDeque::new();
        Self {
            control,
            burst: 1,
            limit: None,
            next_s,
            in_flight,
            sent: 0,
            rtt_s: None,
            delivered: 0.0,
            lost: 0.0,
        }
    }

    /// Sends so many packets at once.
    pub(super) fn in_bursts(self, burst: usize) -> Self {
        Self { burst, ..self }
    }

    /// Limits what there is to send each second; none for no limit.
    pub(super) fn limit(&mut self, bytes_per_second: Option<f64>) {
        self.limit = bytes_per_second;
    }

    fn window(&self) -> u64 {
        match &self.control {
            Control::Model(model) => model.window(),
            Control::Cubic(cubic) => cubic.window() as u64,
        }
    }

    fn has_room(&self) -> bool {
        (self.in_flight.len() as u64 + 1) * PACKET < self.window()
    }

    fn send(&mut self, now_s: f64, now: Instant) -> u64 {
        self.in_flight.push_back((self.sent, now_s));
        self.sent += 1;
        if let Control::Model(model) = &mut self.control {
            model.sent(now);
        }
        let paced = matches!(self.control, Control::Model(_)).then_some(self.rtt_s).flatten();
        if let Some(limit) = self.limit {
            self.next_s = self.next_s.max(now_s - LIMITED_BURST_S) + PACKET as f64 / limit;
        } else if let Some(rtt_s) = paced {
            // quinn paces at 5/4 of the window in each round trip.
            let interval_s = PACKET as f64 * rtt_s / (1.25 * self.window() as f64);
            self.next_s = self.next_s.max(now_s - BURST_S) + interval_s;
        }
        self.sent - 1
    }

    /// Takes the acknowledgement of packet `number`. Packets do not overtake each other, so earlier
    /// ones are lost.
    fn acked(&mut self, number: u64, now_s: f64, at: impl Fn(f64) -> Instant) {
        let app_limited = self.limit.is_some() && self.has_room();
        let mut last_lost_s = None;
        let mut lost = 0;
        let sent_s = loop {
            match self.in_flight.pop_front() {
                Some((first, sent_s)) if first == number => break sent_s,
                Some((_, sent_s)) => {
                    last_lost_s = Some(sent_s);
                    lost += PACKET;
                }
                None => unreachable!("packet {number} was not sent"),
            }
        };
        let sample_s = now_s - sent_s;
        let rtt_s = self.rtt_s.map_or(sample_s, |rtt_s| 0.875 * rtt_s + 0.125 * sample_s);
        self.rtt_s = Some(rtt_s);
        self.delivered += PACKET as f64;
        self.lost += lost as f64;
        let now = at(now_s);
        let ack = Ack {
            now,
            sent: at(sent_s),
            bytes: PACKET,
            app_limited,
            rtt: Duration::from_secs_f64(rtt_s),
        };
        match &mut self.control {
            Control::Model(model) => model.acked(&ack),
            Control::Cubic(cubic) => cubic.acked(&ack, PACKET as f64),
        }
        let Some(lost_at) = last_lost_s.map(at) else { return };
        match &mut self.control {
            Control::Model(model) => model.lost(now, lost_at, lost),
            Control::Cubic(cubic) => cubic.lost(now, lost_at, PACKET as f64),
        }
    }
}

/// Flows on a link.
pub(super) struct Simulation {
    pub(super) link: Link,
    pub(super) flows: Vec<Flow>,
    origin: Instant,
    now_s: f64,
    /// Time at which the queue will be empty.
    idle_at_s: f64,
    /// Arrivals of acknowledgements: time, flow and packet.
    acks: VecDeque<(f64, usize, u64)>,
    random: u64,
}

impl Simulation {
    pub(super) fn new(link: Link, flows: Vec<Flow>) -> Self {
        let (origin, acks) = (Instant::now(), VecDeque::new());
        Self { link, flows, origin, now_s: 0.0, idle_at_s: 0.0, acks, random: 7 }
    }

    /// Draws other losses.
    pub(super) fn seeded(self, seed: u64) -> Self {
        Self { random: seed, ..self }
    }

    /// Runs for `seconds`; returns the bytes of each flow that arrived.
    pub(super) fn run(&mut self, seconds: f64) -> Vec<f64> {
        let before: Vec<f64> = self.flows.iter().map(|flow| flow.delivered).collect();
        let end_s = self.now_s + seconds;
        while self.step(end_s) {}
        self.now_s = end_s;
        self.flows.iter().zip(before).map(|(flow, before)| flow.delivered - before).collect()
    }

    /// Handles the next event; returns false if there is none before `end_s`.
    fn step(&mut self, end_s: f64) -> bool {
        let ack_s = self.acks.front().map_or(f64::INFINITY, |ack| ack.0);
        let senders = self.flows.iter().enumerate().filter(|(_, flow)| flow.has_room());
        let first = senders.min_by(|one, other| one.1.next_s.total_cmp(&other.1.next_s));
        let sender = first.map(|(index, flow)| (index, flow.next_s));
        let sender = sender.filter(|&(_, next_s)| next_s < ack_s);
        let next_s = sender.map_or(ack_s, |(_, next_s)| next_s).max(self.now_s);
        if next_s > end_s {
            return next_s.is_infinite() && self.give_up(end_s);
        }
        self.now_s = next_s;
        match sender {
            Some((flow, _)) => self.send(flow),
            None => {
                let origin = self.origin;
                let at = |seconds: f64| origin + Duration::from_secs_f64(seconds);
                if let Some((_, flow, number)) = self.acks.pop_front() {
                    self.flows[flow].acked(number, next_s, at);
                }
            }
        }
        true
    }

    /// After a second without any arrival, takes all in flight for lost, and lets the model begin
    /// again, as after an outage; returns false if that would be after `end_s`.
    fn give_up(&mut self, end_s: f64) -> bool {
        if self.now_s + SILENCE_S > end_s {
            return false;
        }
        self.now_s += SILENCE_S;
        for flow in &mut self.flows {
            flow.lost += (flow.in_flight.len() as u64 * PACKET) as f64;
            flow.in_flight.clear();
            if let Control::Model(model) = &mut flow.control {
                model.restart();
            }
        }
        true
    }

    fn send(&mut self, flow: usize) {
        let now = self.origin + Duration::from_secs_f64(self.now_s);
        let (packet, rate) = (PACKET as f64, self.link.bytes_per_second);
        let is_lost = self.random() < self.link.loss;
        for _ in 0..self.flows[flow].burst {
            if !self.flows[flow].has_room() {
                break;
            }
            let number = self.flows[flow].send(self.now_s, now);
            let queued = (self.idle_at_s - self.now_s).max(0.0) * rate;
            if queued + packet > self.link.queue {
                continue;
            }
            self.idle_at_s = self.idle_at_s.max(self.now_s) + packet / rate;
            if !is_lost {
                self.acks.push_back((self.idle_at_s + self.link.rtt_s, flow, number));
            }
        }
    }

    /// Returns a number from 0 to 1 (xorshift64*).
    fn random(&mut self) -> f64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1_u64 << 53) as f64
    }
}
