//! The values of each preset. `sections.rs` documents their meaning and sources.

use std::time::Duration;

use super::activity::Activity;
use super::actuator::{Actuator, Actuators};
use super::goal::Goal;
use super::preset::Preset;
use super::sections::{
    BalloonPolicy, HostPolicy, HugePolicy, MergePolicy, Policy, PoolPolicy, PressurePolicy,
};
use crate::labels::Selector;
use crate::units::MIB;

impl Preset {
    /// Picks the preset's value from those for safe, balanced and dense.
    fn of<T>(self, values: [T; 3]) -> T {
        let [safe, balanced, dense] = values;
        match self {
            Self::Safe => safe,
            Self::Balanced => balanced,
            Self::Dense => dense,
        }
    }

    /// Returns the preset's policy, without any changes.
    #[must_use]
    pub fn policy(self) -> Policy {
        Policy {
            preset: self,
            goal: self.of([Goal::Keep(0.20), Goal::Keep(0.20), Goal::MaxDensity]),
            actuators: self.actuators(),
            host: self.host(),
            balloon: self.balloon(),
            pressure: self.pressure(),
            merge: self.merge(),
            huge: HugePolicy {
                present: self.of([0.95, 0.90, 0.95]),
                chunks_max: self.of([128, 256, 256]),
            },
            pools: PoolPolicy { free_min_bytes: 0, free_max_bytes: 0 },
            scope: Selector::default(),
            guests: Vec::new(),
        }
    }

    fn actuators(self) -> Actuators {
        use Actuator::{Balloon, Huge, Merge, Pool, Template, Zeros};
        match self {
            Self::Safe => [Balloon, Huge].into(),
            Self::Balanced => [Balloon, Merge, Huge, Template, Zeros].into(),
            Self::Dense => [Balloon, Merge, Huge, Template, Zeros, Pool].into(),
        }
    }

    fn host(self) -> HostPolicy {
        HostPolicy {
            amber_below: self.of([0.20, 0.20, 0.10]),
            red_below: self.of([0.05, 0.05, 0.03]),
            red_stall: self.of([0.05, 0.10, 0.20]),
            hysteresis: self.of([0.03, 0.02, 0.02]),
            cow_reserve: self.of([0.50, 0.25, 0.10]),
        }
    }

    fn balloon(self) -> BalloonPolicy {
        BalloonPolicy {
            reserve: self.of([0.30, 0.20, 0.10]),
            reserve_min_bytes: self.of([512, 256, 128]) * MIB,
            floor: self.of([0.50, 0.25, 0.15]),
            step: self.of([0.025, 0.05, 0.05]),
            step_max_bytes: self.of([128, 256, 512]) * MIB,
            red_factor: self.of([2, 4, 4]),
            dead_band_min_bytes: self.of([64, 64, 32]) * MIB,
            slow: minutes(self.of([30, 10, 5])),
            cooldown: minutes(self.of([15, 5, 5])),
            timeout: Duration::from_secs(30),
        }
    }

    fn pressure(self) -> PressurePolicy {
        PressurePolicy {
            allocation_stalls_per_s: self.of([0.0, 0.0, 10.0]),
            direct_reclaim_bytes_per_s: self.of([0, 0, MIB]),
            major_faults_per_s: self.of([50.0, 100.0, 200.0]),
            swapping_bytes_per_s: self.of([0, MIB, 4 * MIB]),
        }
    }

    fn merge(self) -> MergePolicy {
        MergePolicy {
            split_share: self.of([0.50, 0.25, 0.125]),
            join_share: self.of([0.10, 0.05, 0.04]),
            leave_share: self.of([0.05, 0.025, 0.02]),
            cold_written: self.of([0.0, 0.01, 0.02]),
            activity: Activity::PageSampling,
            cpu: self.of([0.10, 0.20, 0.50]),
            cpu_time: Duration::from_secs(self.of([90, 360, 1800])),
            pages_per_s: self.of([20_000, 50_000, 125_000]),
            window: minutes(self.of([15, 30, 60])),
            pause: minutes(self.of([240, 60, 15])),
            gain_min_bytes: self.of([64, 16, 4]) * MIB,
        }
    }
}

const fn minutes(count: u64) -> Duration {
    Duration::from_secs(count * 60)
}

impl Default for Policy {
    /// Returns the policy of the preset `balanced`.
    fn default() -> Self {
        Preset::default().policy()
    }
}
