//! What a source decides about a migration on its way: what it does about a guest that stalls, and
//! what its operator changes.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::guest::Throttled;
use crate::limits::LimitsChange;
use crate::stall::{OnStall, Stall};

/// Most decisions that are listed: if there were more, the first and the last ones.
pub const MAX_DECISIONS_LISTED: usize = 64;

/// Number of first decisions that stay listed when there are too many.
const FIRST_DECISIONS: usize = 8;

/// A decision of a source. Base units: seconds, bytes, pages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "decision", rename_all = "snake_case")]
pub enum Decided {
    /// The migration stalls: rounds no longer lower the expected downtime, and it is above its
    /// limit. Decided once, and again after limits have changed.
    Stalled {
        /// Pages that the guest dirties per second.
        dirty_pages_per_second: f64,
        /// Memory and disk content sent per second; 0 if none has been sent.
        bandwidth_bytes_per_second: f64,
        /// Expected downtime if the guest were paused now.
        expected_downtime_seconds: f64,
        /// The downtime limit.
        downtime_limit_seconds: f64,
        /// What is to be done about it.
        on_stall: OnStall,
    },
    /// The downtime limit cannot be met: pausing the guest takes longer even without dirty memory.
    /// Decided once, and again after limits have changed.
    Impossible {
        /// The part of the downtime that does not depend on memory.
        fixed_seconds: f64,
        /// The downtime limit.
        downtime_limit_seconds: f64,
        /// What is to be done about it.
        on_stall: OnStall,
    },
    /// The downtime limit is raised, since the migration stalls, or since pausing the guest takes
    /// longer even without dirty memory.
    LimitRaised {
        /// Expected downtime if the guest were paused now.
        expected_downtime_seconds: f64,
        /// The part of it that does not depend on memory.
        fixed_seconds: f64,
        /// The downtime limit from now on.
        downtime_limit_seconds: f64,
        /// Most to which it is raised.
        downtime_max_seconds: f64,
    },
    /// The guest is slowed down, or more than before.
    Throttled {
        /// The largest share of the time that one of its vCPUs rests. In a list: the last that is
        /// known of this step.
        percent: u8,
        /// How many of its vCPUs rest for a share of the time: all, until it is known which of them
        /// write. In a list: the last that is known of this step.
        vcpus: u16,
        /// The most that it may write to the disks that are copied with it, per second, at the rate
        /// of this step; absent if none is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        disk_bytes_per_second: Option<NonZeroU64>,
    },
    /// The guest runs at full speed again before it is handed over.
    Unthrottled {
        /// Why: by order, or idle.
        cause: Cause,
    },
    /// The guest is handed over although the expected downtime is above its limit.
    Forced {
        /// Expected downtime.
        expected_downtime_seconds: f64,
        /// The downtime limit.
        downtime_limit_seconds: f64,
    },
    /// The guest is handed over before its memory.
    Postcopy {
        /// Why: by order, or by a stall.
        cause: Cause,
    },
    /// A hand-over takes too long and is called off: the guest runs on, at full speed if it was
    /// throttled, and rounds go on.
    CalledOff {
        /// How long the guest may have been paused for it.
        allowed_seconds: f64,
        /// What was waited for.
        waited_for: String,
    },
    /// The connection is lost while rounds are sent: the guest runs on, and the destination, which
    /// keeps what it has, is looked for.
    Disconnected {
        /// The transport's error, for users.
        detail: String,
    },
    /// The destination is reached again: rounds go on, with what was lost on the way.
    Reconnected {
        /// How long it was out of reach, from when the loss was noticed.
        disconnected_seconds: f64,
    },
    /// The operator has changed limits; what is absent stays as it was.
    LimitsChanged {
        /// The downtime limit.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        downtime_limit_seconds: Option<f64>,
        /// Most to which the downtime limit is raised.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        downtime_max_seconds: Option<f64>,
        /// The time limit, counted from the start of the migration.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        time_limit_seconds: Option<f64>,
        /// Most bytes per second; 0 for no limit.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bandwidth_limit_bytes_per_second: Option<u64>,
        /// What to do about a stall.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        on_stall: Option<OnStall>,
    },
    /// A decision that only later releases know.
    #[serde(other)]
    Other,
}

/// Why something was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The migration stalls.
    Stall,
    /// The operator has ordered it.
    Order,
    /// Nothing has been sent for some seconds.
    Idle,
}

/// The kind of a decision, for counting.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum DecisionKind {
    /// [`Decided::Stalled`].
    Stalled,
    /// [`Decided::Impossible`].
    Impossible,
    /// [`Decided::LimitRaised`].
    LimitRaised,
    /// [`Decided::Throttled`].
    Throttled,
    /// [`Decided::Unthrottled`].
    Unthrottled,
    /// [`Decided::Forced`].
    Forced,
    /// [`Decided::Postcopy`].
    Postcopy,
    /// [`Decided::CalledOff`].
    CalledOff,
    /// [`Decided::Disconnected`].
    Disconnected,
    /// [`Decided::Reconnected`].
    Reconnected,
    /// [`Decided::LimitsChanged`].
    LimitsChanged,
    /// [`Decided::Other`].
    #[serde(other)]
    Other,
}

impl DecisionKind {
    /// All kinds of this release, in the order in which they are shown.
    pub const ALL: [Self; 11] = [
        Self::Stalled,
        Self::Impossible,
        Self::LimitRaised,
        Self::Throttled,
        Self::Unthrottled,
        Self::Forced,
        Self::Postcopy,
        Self::CalledOff,
        Self::Disconnected,
        Self::Reconnected,
        Self::LimitsChanged,
    ];

    /// Returns the name in JSON, which is also the metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stalled => "stalled",
            Self::Impossible => "impossible",
            Self::LimitRaised => "limit_raised",
            Self::Throttled => "throttled",
            Self::Unthrottled => "unthrottled",
            Self::Forced => "forced",
            Self::Postcopy => "postcopy",
            Self::CalledOff => "called_off",
            Self::Disconnected => "disconnected",
            Self::Reconnected => "reconnected",
            Self::LimitsChanged => "limits_changed",
            Self::Other => "other",
        }
    }
}

impl Decided {
    /// Returns the kind of this decision.
    pub const fn kind(&self) -> DecisionKind {
        match self {
            Self::Stalled { .. } => DecisionKind::Stalled,
            Self::Impossible { .. } => DecisionKind::Impossible,
            Self::LimitRaised { .. } => DecisionKind::LimitRaised,
            Self::Throttled { .. } => DecisionKind::Throttled,
            Self::Unthrottled { .. } => DecisionKind::Unthrottled,
            Self::Forced { .. } => DecisionKind::Forced,
            Self::Postcopy { .. } => DecisionKind::Postcopy,
            Self::CalledOff { .. } => DecisionKind::CalledOff,
            Self::Disconnected { .. } => DecisionKind::Disconnected,
            Self::Reconnected { .. } => DecisionKind::Reconnected,
            Self::LimitsChanged { .. } => DecisionKind::LimitsChanged,
            Self::Other => DecisionKind::Other,
        }
    }
}

impl From<&LimitsChange> for Decided {
    fn from(change: &LimitsChange) -> Self {
        let seconds = |limit: Option<Duration>| limit.map(|limit| limit.as_secs_f64());
        Self::LimitsChanged {
            downtime_limit_seconds: seconds(change.downtime),
            downtime_max_seconds: seconds(change.downtime_max),
            time_limit_seconds: seconds(change.total),
            bandwidth_limit_bytes_per_second: change.bandwidth,
            on_stall: change.on_stall,
        }
    }
}

/// A decision and when it was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DecidedAt {
    /// Time since the migration began.
    pub after_seconds: f64,
    /// What was decided.
    #[serde(flatten)]
    pub what: Decided,
}

/// The decisions of one migration so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Decisions {
    listed: Vec<DecidedAt>,
    counts: BTreeMap<DecisionKind, u64>,
    /// Kinds of the decisions since limits last changed.
    present: BTreeSet<DecisionKind>,
    /// What was done about a stall, if the migration has stalled.
    stall: Option<Stall>,
}

impl Decisions {
    /// Adds a decision that was made after this round; if there are too many, the first and the
    /// last ones are kept.
    pub(crate) fn add(&mut self, what: Decided, after: Duration, round: u32) {
        let kind = what.kind();
        self.follow_stall(&what, after, round);
        *self.counts.entry(kind).or_default() += 1;
        if kind == DecisionKind::LimitsChanged {
            self.present.clear();
        }
        self.present.insert(kind);
        if self.listed.len() == MAX_DECISIONS_LISTED {
            self.listed.remove(FIRST_DECISIONS);
        }
        self.listed.push(DecidedAt { after_seconds: after.as_secs_f64(), what });
    }

    fn follow_stall(&mut self, what: &Decided, after: Duration, round: u32) {
        if let Decided::Stalled { on_stall, .. } | Decided::Impossible { on_stall, .. } = *what {
            let noticed_seconds = after.as_secs_f64();
            self.stall.get_or_insert(Stall::noticed(on_stall, noticed_seconds, round));
        }
        let Some(stall) = &mut self.stall else { return };
        match *what {
            Decided::Throttled { percent, vcpus, .. } => stall.throttle(percent, vcpus),
            Decided::Forced { .. } => stall.forced = true,
            Decided::Postcopy { cause: Cause::Stall } => stall.postcopy = true,
            Decided::LimitsChanged { on_stall, .. } => {
                stall.on_stall = on_stall.unwrap_or(stall.on_stall);
            }
            _ => {}
        }
    }

    /// Returns whether there was one of this kind since limits last changed.
    pub(crate) fn holds(&self, kind: DecisionKind) -> bool {
        self.present.contains(&kind)
    }

    /// Notes what is known by now about the last step of the throttle.
    pub(crate) fn note_throttle(&mut self, throttled: Throttled) {
        let last = self.listed.iter_mut().rev().find_map(|decided| match &mut decided.what {
            Decided::Throttled { percent, vcpus, .. } => Some((percent, vcpus)),
            _ => None,
        });
        if let Some((percent, vcpus)) = last {
            (*percent, *vcpus) = (throttled.percent, throttled.vcpus);
        }
        if let Some(stall) = &mut self.stall {
            stall.throttle(throttled.percent, throttled.vcpus);
        }
    }

    /// Returns what was done about a stall; none if the migration has not stalled.
    pub(crate) fn stall(&self) -> Option<Stall> {
        self.stall
    }

    /// Returns the decisions in their order, at most [`MAX_DECISIONS_LISTED`].
    pub(crate) fn listed(&self) -> Vec<DecidedAt> {
        self.listed.clone()
    }

    /// Returns how many there were of each kind.
    pub(crate) fn counts(&self) -> BTreeMap<DecisionKind, u64> {
        self.counts.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn throttled(percent: u8) -> Decided {
        Decided::Throttled { percent, vcpus: 2, disk_bytes_per_second: None }
    }

    #[test]
    fn too_many_decisions_are_counted_and_the_first_and_last_are_listed() {
        let mut decisions = Decisions::default();
        for at in 0..100 {
            decisions.add(throttled(at), Duration::from_secs(at.into()), 1);
        }
        decisions.add(Decided::Postcopy { cause: Cause::Order }, Duration::from_secs(100), 1);
        let listed: Vec<_> = decisions.listed().iter().map(|one| one.after_seconds).collect();
        assert_eq!(listed.len(), MAX_DECISIONS_LISTED);
        assert_eq!((listed[7], listed[8], listed[63]), (7.0, 45.0, 100.0));
        let counts = [(DecisionKind::Throttled, 100), (DecisionKind::Postcopy, 1)];
        assert_eq!(decisions.counts(), BTreeMap::from(counts));
    }

    #[test]
    fn a_change_of_limits_lets_a_stall_be_decided_again() {
        let mut decisions = Decisions::default();
        assert!(!decisions.holds(DecisionKind::Throttled));
        decisions.add(throttled(20), Duration::ZERO, 1);
        assert!(decisions.holds(DecisionKind::Throttled));
        decisions.add(Decided::from(&LimitsChange::default()), Duration::ZERO, 1);
        assert!(!decisions.holds(DecisionKind::Throttled));
    }

    #[test]
    fn what_is_done_about_a_stall_follows_from_the_decisions() {
        let mut decisions = Decisions::default();
        let mut add = |what, round| {
            decisions.add(what, Duration::from_secs(round), round as u32);
            decisions.stall()
        };
        assert_eq!(add(Decided::Postcopy { cause: Cause::Order }, 1), None, "it has not stalled");
        let on_stall = OnStall::Wait;
        let (fixed_seconds, downtime_limit_seconds) = (0.1, 0.3);
        let stalled = Decided::Impossible { fixed_seconds, downtime_limit_seconds, on_stall };
        assert_eq!(add(stalled.clone(), 2), Some(Stall::noticed(on_stall, 2.0, 2)));
        let force = LimitsChange { on_stall: Some(OnStall::Force), ..LimitsChange::default() };
        add(Decided::from(&force), 3);
        add(throttled(75), 3);
        assert_eq!(add(stalled, 4).unwrap().noticed_seconds, 2.0, "when it was noticed first");
        let forced = Decided::Forced { expected_downtime_seconds: 1.0, downtime_limit_seconds };
        let stall = add(forced, 5).unwrap();
        assert_eq!((stall.on_stall, stall.throttle_percent_max), (OnStall::Force, 75));
        assert!(stall.forced && !stall.postcopy, "{stall:?}");
    }

    #[test]
    fn what_is_learnt_of_a_throttle_concerns_its_last_step() {
        let mut decisions = Decisions::default();
        decisions.add(throttled(20), Duration::ZERO, 1);
        decisions.add(throttled(75), Duration::ZERO, 1);
        decisions.note_throttle(Throttled { vcpus: 1, percent: 94 });
        let listed: Vec<_> = decisions.listed().into_iter().map(|one| one.what).collect();
        let last = Decided::Throttled { percent: 94, vcpus: 1, disk_bytes_per_second: None };
        assert_eq!(listed, [throttled(20), last]);
    }

    #[test]
    fn json_names_each_decision_as_its_metric_label_and_is_flat() {
        let (stalled, on_stall) = (1.5, OnStall::Wait);
        let all = [
            Decided::Stalled {
                dirty_pages_per_second: stalled,
                bandwidth_bytes_per_second: stalled,
                expected_downtime_seconds: stalled,
                downtime_limit_seconds: stalled,
                on_stall,
            },
            Decided::Impossible { fixed_seconds: 1.0, downtime_limit_seconds: 0.5, on_stall },
            Decided::LimitRaised {
                expected_downtime_seconds: 0.9,
                fixed_seconds: 0.1,
                downtime_limit_seconds: 0.6,
                downtime_max_seconds: 2.0,
            },
            throttled(20),
            Decided::Unthrottled { cause: Cause::Idle },
            Decided::Forced { expected_downtime_seconds: 1.0, downtime_limit_seconds: 0.5 },
            Decided::Postcopy { cause: Cause::Stall },
            Decided::CalledOff { allowed_seconds: 1.6, waited_for: "its disks".to_owned() },
            Decided::Disconnected { detail: "timed out".to_owned() },
            Decided::Reconnected { disconnected_seconds: 4.0 },
            Decided::from(&LimitsChange { bandwidth: Some(0), ..LimitsChange::default() }),
        ];
        for (what, kind) in all.into_iter().zip(DecisionKind::ALL) {
            assert_eq!(what.kind(), kind);
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
            let decided = DecidedAt { after_seconds: 2.0, what };
            let json = serde_json::to_value(&decided).unwrap();
            assert_eq!(
                (&json["decision"], &json["after_seconds"]),
                (&kind.name().into(), &2.0.into())
            );
            assert_eq!(serde_json::from_value::<DecidedAt>(json).unwrap(), decided);
        }
    }

    #[test]
    fn a_decision_of_a_later_release_is_read_as_another_one() {
        let json = r#"{"after_seconds": 2.0, "decision": "teleported", "distance": 3}"#;
        assert_eq!(serde_json::from_str::<DecidedAt>(json).unwrap().what, Decided::Other);
        let counts: BTreeMap<DecisionKind, u64> =
            serde_json::from_str(r#"{"stalled": 1, "teleported": 2}"#).unwrap();
        assert_eq!(counts[&DecisionKind::Other], 2);
    }
}
