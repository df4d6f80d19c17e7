//! The faults, and the points at which they occur.

use std::time::Duration;

use migrate::OnStall;
use proptest::prelude::*;

/// Milliseconds per hour.
pub(crate) const HOUR_MS: u32 = 3_600_000;

/// A side of the migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// The point at which a fault occurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// Just before the n-th control message is sent (both directions together, from 0).
    Message(u32),
    /// Just before a side carries out its n-th action (from 0).
    Before(Side, u32),
    /// Just after a side has carried out its n-th action (from 0).
    After(Side, u32),
    /// At a point in virtual time, in milliseconds.
    At(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// The connection breaks; each side is notified after so many milliseconds.
    Cut { source_ms: u32, destination_ms: u32 },
    /// The message at this point is lost, and neither side is notified.
    LoseMessage,
    /// The message at this point arrives so many milliseconds later, and no later one of that side
    /// before it; pages overtake them.
    HoldMessage { ms: u32 },
    /// A chunk of memory is lost in transit.
    LoseFrame,
    /// Nothing gets through for so many milliseconds, and no connection can be made.
    Outage { ms: u32 },
    /// A process is killed.
    Kill(Side),
    /// The next record of a side reports a write error; it may be on disk nevertheless.
    FailRecord(Side, RecordLoss),
    /// A user cancels the migration.
    Cancel(Side),
    /// The operator discards the copy of a side that waits for the decision, or, at the source, the
    /// memory that the destination lacks.
    OperatorDiscards(Side),
    /// The operator runs the destination's copy, knowing that the source is dead.
    OperatorRunsAfterDeathOfSource,
    /// The destination is killed, and its disk is lost.
    LoseDestinationHost,
    /// The guest fails to do the next thing that it is asked for (pause, save, load).
    FailGuest(Side),
    /// The peer sends an invalid message to this side.
    Garble(Side),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecordLoss {
    Gone,
    OnDisk,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) when: When,
    pub(crate) what: What,
}

/// Every kind of fault but an operator's decision.
pub(crate) fn kinds() -> Vec<What> {
    let cut = |source_ms, destination_ms| What::Cut { source_ms, destination_ms };
    let mut kinds = vec![
        cut(0, 0),
        cut(5, 9000),
        cut(9000, 5),
        What::LoseMessage,
        What::HoldMessage { ms: 30 },
        What::HoldMessage { ms: 1_000 },
        What::LoseFrame,
        What::Outage { ms: 20_000 },
        What::Outage { ms: 60 * HOUR_MS },
        What::LoseDestinationHost,
    ];
    for side in [Side::Source, Side::Destination] {
        kinds.extend([
            What::Kill(side),
            What::Cancel(side),
            What::FailGuest(side),
            What::Garble(side),
            What::FailRecord(side, RecordLoss::Gone),
            What::FailRecord(side, RecordLoss::OnDisk),
        ]);
    }
    kinds
}

/// How far a run has come: its next message, the next action of either side, and the time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Reached {
    pub(crate) message: u32,
    pub(crate) source_action: u32,
    pub(crate) destination_action: u32,
    pub(crate) at: Duration,
}

impl Reached {
    /// Returns the number of a side's next action.
    pub(crate) fn action(&self, side: Side) -> u32 {
        match side {
            Side::Source => self.source_action,
            Side::Destination => self.destination_action,
        }
    }
}

/// Every boundary of a run from one point to the other: each message, before and after each action
/// of either side, and `times` points in time.
pub(crate) fn boundaries_between(from: &Reached, to: &Reached, times: u32) -> Vec<When> {
    let mut points: Vec<_> = (from.message..to.message).map(When::Message).collect();
    for side in [Side::Source, Side::Destination] {
        let actions = from.action(side)..to.action(side);
        points.extend(actions.flat_map(|n| [When::Before(side, n), When::After(side, n)]));
    }
    let step = to.at.saturating_sub(from.at) / times.max(1);
    let at = |n| (from.at + step * n).as_millis() as u32;
    points.extend((0..times).map(|n| When::At(at(n))));
    points
}

/// The conditions of one run.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) latency: Duration,
    pub(crate) writes_per_second: u32,
    pub(crate) working_set: u64,
    pub(crate) pages_per_second: u32,
    pub(crate) streams: u16,
    pub(crate) on_stall: OnStall,
    /// Most to which the downtime limit is raised; none: it is not.
    pub(crate) downtime_max: Option<Duration>,
    pub(crate) paused_by_user: bool,
    /// The state is saved while the last round is in progress, not before it.
    pub(crate) saves_late: bool,
    /// The factor by which the cost of a page on the link grows from the pause on.
    pub(crate) slower_after_pause: u32,
    /// Duration of a dry run of the pause.
    pub(crate) probe: Duration,
    /// Duration of the flush of the disks after the pause.
    pub(crate) flush: Duration,
    /// How many hand-overs find the link and the disks slow; for later ones, neither is.
    pub(crate) slow_hand_overs: u32,
    /// The source commits before it knows that the destination is ready.
    pub(crate) is_early: bool,
    /// Duration of the load of the state.
    pub(crate) load: Duration,
    /// When the operator wants the guest handed over before its memory, in milliseconds.
    pub(crate) postcopy_at_ms: Option<u32>,
    /// Pages are placed before the last ones are dropped: a fault that the checks must find.
    pub(crate) places_early: bool,
    /// What was handed to a connection that is lost counts as received: another such fault.
    pub(crate) trusts_streams: bool,
    /// Frames are counted before all that came over lost connections is applied: another.
    pub(crate) counts_early: bool,
    /// How long after it has arrived a frame of the first connection is applied; later ones are at
    /// once.
    pub(crate) apply: Duration,
    pub(crate) faults: Vec<Fault>,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            latency: Duration::from_millis(2),
            writes_per_second: 5_000,
            working_set: 100,
            pages_per_second: 50_000,
            streams: 2,
            on_stall: OnStall::default(),
            downtime_max: None,
            paused_by_user: false,
            saves_late: false,
            slower_after_pause: 1,
            probe: Duration::from_millis(1),
            flush: Duration::from_millis(1),
            slow_hand_overs: u32::MAX,
            is_early: true,
            load: Duration::from_millis(2),
            postcopy_at_ms: None,
            places_early: false,
            trusts_streams: false,
            counts_early: false,
            apply: Duration::ZERO,
            faults: Vec::new(),
        }
    }
}

impl Scenario {
    /// As this scenario, with an early commit, with a commit that waits for the destination, and
    /// with an early commit to a destination that loads the state for long.
    pub(crate) fn of_each_commit(self) -> [Self; 3] {
        let load = Duration::from_millis(30);
        [
            Self { is_early: true, ..self.clone() },
            Self { is_early: false, ..self.clone() },
            Self { is_early: true, load, ..self },
        ]
    }
}

fn side() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::Source), Just(Side::Destination)]
}

fn when() -> impl Strategy<Value = When> {
    prop_oneof![
        4 => (0..14_u32).prop_map(When::Message),
        3 => (side(), 0..36_u32).prop_map(|(side, n)| When::Before(side, n)),
        3 => (side(), 0..36_u32).prop_map(|(side, n)| When::After(side, n)),
        2 => (0..120_u32).prop_map(When::At),
        1 => (0..40_000_u32).prop_map(When::At),
    ]
}

fn what() -> impl Strategy<Value = What> {
    let loss = prop_oneof![Just(RecordLoss::Gone), Just(RecordLoss::OnDisk)];
    prop_oneof![
        6 => (0..9000_u32, 0..9000_u32)
            .prop_map(|(source_ms, destination_ms)| What::Cut { source_ms, destination_ms }),
        3 => Just(What::LoseMessage),
        3 => (1..3_000_u32).prop_map(|ms| What::HoldMessage { ms }),
        1 => Just(What::LoseFrame),
        3 => (1..30_000_u32).prop_map(|ms| What::Outage { ms }),
        1 => (1..96_u32).prop_map(|hours| What::Outage { ms: hours * HOUR_MS }),
        5 => side().prop_map(What::Kill),
        3 => (side(), loss).prop_map(|(side, loss)| What::FailRecord(side, loss)),
        4 => side().prop_map(What::Cancel),
        2 => side().prop_map(What::OperatorDiscards),
        1 => Just(What::OperatorRunsAfterDeathOfSource),
        1 => Just(What::LoseDestinationHost),
        1 => side().prop_map(What::FailGuest),
        1 => side().prop_map(What::Garble),
    ]
}

pub(crate) fn fault() -> impl Strategy<Value = Fault> {
    (when(), what()).prop_map(|(when, what)| Fault { when, what })
}

pub(crate) fn scenario() -> impl Strategy<Value = Scenario> {
    let guest = (0..20_000_u32, 1..384_u64, any::<bool>(), any::<bool>());
    let link = (1..20_u64, 2_000..100_000_u32, 1..4_u16);
    let slow = || prop_oneof![3 => 1..5_u64, 1 => 5..9000_u64];
    let slow_hand_overs = prop_oneof![2 => Just(u32::MAX), 1 => 1..3_u32];
    let apply = prop_oneof![2 => Just(0), 1 => 1..500_u64];
    let probe = prop_oneof![2 => Just(1), 1 => 1..500_u64];
    let slower = prop_oneof![3 => Just(1), 1 => 1..50_u32];
    let turns = (slower, slow(), slow(), slow_hand_overs, apply, probe);
    let is_early = prop_oneof![3 => Just(true), 1 => Just(false)];
    let faults = proptest::collection::vec(fault(), 0..4);
    let postcopy = prop_oneof![1 => Just(None), 1 => (0..300_u32).prop_map(Some)];
    let on_stall = proptest::sample::select(&OnStall::ALL[..]);
    let downtime_max = prop_oneof![2 => Just(None), 1 => (100..3000_u64).prop_map(Some)];
    let remedies = (on_stall, downtime_max);
    let all = (guest, link, turns, remedies, is_early, postcopy, faults);
    all.prop_map(|(guest, link, turns, remedies, is_early, postcopy_at_ms, faults)| {
        let (writes_per_second, working_set, paused, saves_late) = guest;
        let (latency_ms, pages_per_second, streams) = link;
        Scenario {
            latency: Duration::from_millis(latency_ms),
            writes_per_second,
            working_set,
            pages_per_second,
            streams,
            on_stall: remedies.0,
            downtime_max: remedies.1.map(Duration::from_millis),
            paused_by_user: paused && saves_late,
            saves_late,
            slower_after_pause: turns.0,
            probe: Duration::from_millis(turns.5),
            flush: Duration::from_millis(turns.1),
            slow_hand_overs: turns.3,
            is_early,
            load: Duration::from_millis(turns.2),
            postcopy_at_ms,
            places_early: false,
            trusts_streams: false,
            counts_early: false,
            apply: Duration::from_millis(turns.4),
            faults,
        }
    })
}
