//! The model on simulated links, and with acknowledgements that no link would produce.

use std::time::{Duration, Instant};

use super::model::Model;
use super::round::Ack;
use super::simulation::{Flow, Link, PACKET, Simulation};
use super::{FastPath, UNPACED};

const GIGABIT: f64 = 125e6;
const MS: Duration = Duration::from_millis(1);

/// Returns a link of 10 ms whose queue is as long as the path.
fn link(bytes_per_second: f64, loss: f64) -> Link {
    let rtt_s = 0.01;
    Link { bytes_per_second, rtt_s, queue: bytes_per_second * rtt_s, loss }
}

#[test]
fn random_loss_does_not_slow_a_long_link_down() {
    let mut alone = Simulation::new(link(GIGABIT, 0.001), vec![Flow::model(0.0)]);
    let delivered = alone.run(3.0)[0];
    assert!(delivered >= 0.9 * 3.0 * GIGABIT, "{delivered}");
}

#[test]
fn loss_of_several_packets_at_once_does_not_slow_it_down_for_long() {
    for seed in 1..50 {
        let link = link(GIGABIT, 0.001);
        let mut alone = Simulation::new(link, vec![Flow::model(0.0).in_bursts(6)]).seeded(seed);
        alone.run(2.0);
        let delivered = alone.run(2.0)[0];
        assert!(delivered >= 0.8 * 2.0 * GIGABIT, "{delivered}, seed {seed}");
    }
}

#[test]
fn a_window_of_a_few_packets_grows_again() {
    let rate = GIGABIT / 10.0;
    for (rtt_s, within_s) in [(0.01, 3.0), (0.05, 6.0), (0.1, 10.0)] {
        for burst in [1, 4, 10] {
            let free = Link { bytes_per_second: rate, rtt_s, queue: 0.05 * rate, loss: 0.0 };
            let slow = Link { bytes_per_second: 1e5, ..free };
            let mut alone = Simulation::new(slow, vec![Flow::model(0.0).in_bursts(burst)]);
            alone.run(6.0);
            alone.link = free;
            alone.run(within_s);
            let delivered = alone.run(1.0)[0];
            assert!(delivered > 0.9 * rate, "{delivered} at {rtt_s} s in bursts of {burst}");
        }
    }
}

#[test]
fn cubic_alone_does_not_fill_such_a_link() {
    let mut alone = Simulation::new(link(GIGABIT, 0.001), vec![Flow::cubic(0.0)]);
    let delivered = alone.run(3.0)[0];
    assert!(delivered < 0.5 * 3.0 * GIGABIT, "the simulation loses nothing: {delivered}");
}

#[test]
fn beside_cubic_each_keeps_a_third_on_average() {
    let rate = GIGABIT / 8.0;
    let starts = [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.02, 0.0)];
    let shares = starts.map(|(model, cubic)| {
        let mut both =
            Simulation::new(link(rate, 0.0), vec![Flow::model(model), Flow::cubic(cubic)]);
        both.run(4.0);
        both.run(20.0)[0] / (20.0 * rate)
    });
    // One start alone may leave either less: it depends on whose packets the full queue drops.
    let mean = shares.iter().sum::<f64>() / starts.len() as f64;
    assert!((1.0 / 3.0..2.0 / 3.0).contains(&mean), "{shares:?}");
    assert!(shares.iter().all(|share| (0.15..0.85).contains(share)), "{shares:?}");
}

#[test]
fn one_that_joins_cubic_is_not_deterred_by_its_queue() {
    let rate = GIGABIT / 10.0;
    let link = Link { bytes_per_second: rate, rtt_s: 0.05, queue: 0.05 * rate, loss: 0.0 };
    let shares: Vec<f64> = (1..=15)
        .map(|n| {
            let begins_s = 0.17 * f64::from(n);
            let flows = vec![Flow::model(begins_s), Flow::cubic(0.0)];
            let mut both = Simulation::new(link, flows);
            both.run(begins_s);
            both.run(15.0)[0] / (15.0 * rate)
        })
        .collect();
    // A flow of CUBIC in its place has 0.12: the queue is full, and drops some of its first
    // packets.
    let mean = shares.iter().sum::<f64>() / shares.len() as f64;
    assert!((1.0 / 3.0..2.0 / 3.0).contains(&mean), "{shares:?}");
}

#[test]
fn connections_of_one_migration_have_one_share() {
    let rate = GIGABIT / 8.0;
    for coupled in [2, 4] {
        let shares: Vec<f64> = (0..8)
            .map(|n| {
                let ours = (0..coupled).map(|_| Flow::one_of(coupled, 0.25 * f64::from(n)));
                let flows = ours.chain([Flow::cubic(0.0)]).collect();
                let mut all = Simulation::new(link(rate, 0.0), flows);
                all.run(6.0);
                all.run(20.0)[..usize::from(coupled)].iter().sum::<f64>() / (20.0 * rate)
            })
            .collect();
        let mean = shares.iter().sum::<f64>() / shares.len() as f64;
        assert!((1.0 / 3.0..2.0 / 3.0).contains(&mean), "{coupled}: {shares:?}");
    }
}

#[test]
fn a_connection_empties_its_own_queue() {
    let long_queue = Link { queue: GIGABIT / 8.0 * 0.04, ..link(GIGABIT / 8.0, 0.001) };
    let mut alone = Simulation::new(long_queue, vec![Flow::model(0.0)]);
    alone.run(1.0);
    for _ in 0..20 {
        alone.run(0.1);
        let rtt_s = alone.flows[0].rtt_s.unwrap();
        assert!(rtt_s < 1.5 * long_queue.rtt_s, "{rtt_s}");
    }
}

#[test]
fn follows_a_rate_that_changes() {
    let rate = GIGABIT / 8.0;
    let mut alone = Simulation::new(link(rate, 0.001), vec![Flow::model(0.0)]);
    alone.run(4.0);
    for changed in [rate / 4.0, 2.0 * rate] {
        alone.link.bytes_per_second = changed;
        alone.run(2.0);
        let lost_before = alone.flows[0].lost;
        let delivered = alone.run(2.0)[0];
        assert!(delivered > 0.9 * 2.0 * changed, "{delivered} at {changed}");
        let lost = alone.flows[0].lost - lost_before;
        assert!(lost < 0.02 * delivered, "{lost} at {changed}");
    }
}

#[test]
fn a_flow_that_had_little_to_send_fills_the_link_once_it_has_more() {
    let rate = GIGABIT / 8.0;
    let mut alone = Simulation::new(link(rate, 0.001), vec![Flow::model(0.0)]);
    alone.flows[0].limit(Some(rate / 10.0));
    alone.run(2.0);
    let little = alone.run(2.0)[0];
    assert!((0.09..0.11).contains(&(little / 2.0 / rate)), "{little}");
    alone.flows[0].limit(None);
    alone.run(2.0);
    let much = alone.run(2.0)[0];
    assert!(much > 0.9 * 2.0 * rate, "{much}");
}

/// Lets `model` send a packet and receive its acknowledgement after `rtt`; returns that time.
fn one_packet(model: &mut Model, sent: Instant, rtt: Duration, bytes: u64) -> Instant {
    model.sent(sent);
    let now = sent + rtt;
    model.acked(&Ack { now, sent, bytes, app_limited: false, rtt });
    now
}

fn model() -> Model {
    Model::new(10 * PACKET, PACKET as u16, 1)
}

fn is_sane(model: &Model) -> bool {
    (4 * PACKET..=u32::MAX.into()).contains(&model.window())
}

#[test]
fn the_window_is_neither_empty_nor_endless_whatever_is_acknowledged() {
    let hostile = [
        (Duration::ZERO, 0),
        (Duration::ZERO, u64::MAX),
        (Duration::from_nanos(1), u64::MAX),
        (10 * MS, 0),
        (10 * MS, u64::MAX),
        (Duration::from_secs(1 << 30), PACKET),
        (Duration::from_secs(1 << 30), u64::MAX),
    ];
    for first in hostile {
        for second in hostile {
            let mut model = model();
            let mut now = Instant::now();
            for (rtt, bytes) in [first, second].into_iter().cycle().take(60) {
                now = one_packet(&mut model, now, rtt, bytes);
                assert!(is_sane(&model), "{first:?} {second:?}: {model:?}");
                model.lost(now, now, bytes);
                assert!(is_sane(&model), "{first:?} {second:?}: {model:?}");
            }
        }
    }
}

#[test]
fn acknowledgements_from_before_their_packets_do_no_harm() {
    let (mut model, now) = (model(), Instant::now() + Duration::from_secs(1));
    for _ in 0..20 {
        model.sent(now);
        let ack = Ack { now: now - MS, sent: now, bytes: PACKET, app_limited: false, rtt: MS };
        model.acked(&ack);
        model.lost(now - MS, now, PACKET);
        assert!(is_sane(&model), "{model:?}");
    }
}

#[test]
fn one_packet_that_seems_early_does_not_make_the_rest_look_queued() {
    let mut model = model();
    let mut now = Instant::now();
    for _ in 0..30 {
        now = one_packet(&mut model, now, 10 * MS, 400 * PACKET);
    }
    for _ in 0..2 {
        now = one_packet(&mut model, now, 6 * MS, 400 * PACKET);
    }
    for _ in 0..30 {
        model.lost(now, now, PACKET);
        now = one_packet(&mut model, now, 10 * MS, 400 * PACKET);
        assert!(model.window() > 300 * PACKET, "{model:?}");
    }
}

#[test]
fn a_round_that_waited_for_a_processor_is_no_queue() {
    let mut model = model();
    let mut now = Instant::now();
    for round in 0..60 {
        model.lost(now, now, PACKET);
        let rtt = if round > 30 && round % 5 == 0 { 14 * MS } else { 10 * MS };
        now = one_packet(&mut model, now, rtt, 400 * PACKET);
        assert!(round < 20 || model.window() > 320 * PACKET, "round {round}: {model:?}");
    }
}

#[test]
fn after_an_outage_the_path_is_measured_again() {
    let mut model = model();
    let mut now = Instant::now();
    for _ in 0..30 {
        now = one_packet(&mut model, now, 10 * MS, 40 * PACKET);
    }
    assert!(model.window() > 30 * PACKET, "{model:?}");
    model.restart();
    assert_eq!(model.window(), 10 * PACKET);
}

#[test]
fn a_short_path_without_loss_is_not_paced() {
    let free = 1 << 20;
    let (model, initial_window) = (model(), 10 * PACKET);
    let mut path = FastPath { model, initial_window, free, last_acknowledged: None };
    let mut now = Instant::now();
    let window = |path: &FastPath| quinn::congestion::Controller::window(path);
    while window(&path) < free {
        now = one_packet(&mut path.model, now, MS, 64 * PACKET);
    }
    assert_eq!(window(&path), UNPACED);
    for _ in 0..3 {
        now += MS;
        path.model.lost(now, now, PACKET);
        now += MS;
    }
    assert!(window(&path) < free, "a loss restores pacing");
}
