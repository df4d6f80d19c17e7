//! A simulated host: guests with demand curves, page caches and balloons, in rounds of ten seconds
//! of virtual time.

use std::collections::BTreeMap;
use std::time::Duration;

use memopt::ledger::Ledger;
use memopt::plan::{Plan, round};
use memopt::policy::{Goal, Policy};
use memopt::situation::{
    Backing, Balloon, Cost, Guest, Hindrance, Host, Situation, Statistics, Vmm,
};
use memopt::step::Action;
use memopt::units::{GIB, MIB};
use memopt::verify::{Expectation, Outcome};

const ROUND_S: u64 = 10;

/// What is wrong with a guest's balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// It inflates, but the host gets no memory back (pinned pages).
    Pinned,
    /// Its driver does not inflate.
    Stuck,
    /// Its statistics claim that nearly all memory is available.
    Liar,
}

/// A guest: the memory it uses in each second, and how its caches grow.
pub(crate) struct SimGuest {
    pub(crate) name: String,
    pub(crate) memory: u64,
    pub(crate) used: Box<dyn Fn(u64) -> u64 + Send>,
    pub(crate) fault: Fault,
    pub(crate) hindrance: Option<Hindrance>,
    /// The second at which it began to boot; absent for a guest that was booted elsewhere.
    pub(crate) booted: Option<u64>,
    pub(crate) target: u64,
    pub(crate) actual: u64,
    pub(crate) stalls: u64,
    cache: u64,
    resident: u64,
}

impl SimGuest {
    pub(crate) fn new(name: &str, memory: u64, used: impl Fn(u64) -> u64 + Send + 'static) -> Self {
        let name = name.to_owned();
        Self {
            name,
            memory,
            used: Box::new(used),
            fault: Fault::None,
            hindrance: None,
            booted: None,
            target: memory,
            actual: memory,
            stalls: 0,
            cache: memory / 2,
            resident: memory / 2,
        }
    }

    /// Simulates one round: the balloon moves, caches fill the rest, and demand that does not fit
    /// stalls.
    pub(crate) fn live(&mut self, second: u64) {
        if self.hindrance.is_some() {
            return;
        }
        let used = (self.used)(second);
        // Inflating takes free pages and caches at 1 GiB/s; beyond them it takes nothing.
        if self.target < self.actual && self.fault != Fault::Stuck {
            let floor = used.min(self.actual);
            self.actual = self.target.max(self.actual.saturating_sub(10 * GIB)).max(floor);
        } else if self.target > self.actual {
            self.actual = self.target.min(self.actual + 20 * GIB);
        }
        if used + 16 * MIB > self.actual {
            self.stalls += 100;
        }
        let room = self.actual.saturating_sub(used);
        self.cache = (self.cache + 64 * MIB * ROUND_S).min(room);
        // Free page reporting returns memory that is neither used nor cached.
        let lives = used.min(self.actual) + self.cache;
        let is_pinned = self.fault == Fault::Pinned;
        self.resident = if is_pinned { self.resident.max(lives) } else { lives };
    }

    pub(crate) fn sample(&self, second: u64) -> Guest {
        let used = (self.used)(second).min(self.actual);
        let is_liar = self.fault == Fault::Liar;
        let available = if is_liar { self.actual } else { self.actual - used };
        let statistics = Statistics {
            age: Duration::from_secs(2),
            total_bytes: Some(self.actual),
            free_bytes: Some(self.actual - used - self.cache.min(self.actual - used)),
            available_bytes: Some(available),
            caches_bytes: Some(self.cache),
            oom_kills: Some(0),
            allocation_stalls: Some(if is_liar { 0 } else { self.stalls }),
            ..Statistics::default()
        };
        Guest {
            name: self.name.clone(),
            vmm: Vmm::Lighter,
            pid: 1000,
            memory_bytes: self.memory,
            cost: Cost {
                resident_bytes: self.resident,
                proportional_bytes: self.resident,
                ..Cost::default()
            },
            backing: Backing::Anonymous,
            balloon: Some(Balloon {
                has_driver: true,
                target_bytes: self.target,
                actual_bytes: self.actual,
                is_set_by_steps: None,
                reports_free_pages: true,
                reported_bytes_total: 0,
                statistics: Some(statistics),
            }),
            merge_domain: None,
            is_mergeable: false,
            merged_instead: None,
            is_preallocated: false,
            survey: None,
            hindrance: self.hindrance,
            since_boot: self.booted.map(|at| Duration::from_secs(second.saturating_sub(at))),
            labels: BTreeMap::new(),
            user: None,
        }
    }
}

/// A host of `total` bytes, of which it uses 1 GiB itself, without ksmd and pools.
pub(crate) fn host(total: u64, guests: &[SimGuest]) -> Host {
    let taken: u64 = guests.iter().map(|guest| guest.resident).sum();
    Host {
        total_bytes: total,
        available_bytes: (total - GIB).saturating_sub(taken),
        swap_used_bytes: 0,
        pressure: None,
        ksm: None,
        pools: Vec::new(),
        merged_domain: None,
        other_processes: Vec::new(),
    }
}

/// A host with its guests, its optimiser, and a record of what happened.
pub(crate) struct SimHost {
    pub(crate) total: u64,
    pub(crate) guests: Vec<SimGuest>,
    pub(crate) policy: Policy,
    pub(crate) goal: Goal,
    pub(crate) ledger: Ledger,
    pub(crate) second: u64,
    pub(crate) outcomes: Vec<Outcome>,
    pending: Vec<Expectation>,
}

impl SimHost {
    pub(crate) fn new(total: u64, goal: Goal, guests: Vec<SimGuest>) -> Self {
        Self {
            total,
            guests,
            policy: Policy::default(),
            goal,
            ledger: Ledger::default(),
            second: 0,
            outcomes: Vec::new(),
            pending: Vec::new(),
        }
    }

    pub(crate) fn available(&self) -> u64 {
        host(self.total, &self.guests).available_bytes
    }

    pub(crate) fn sample(&self) -> Situation {
        Situation {
            unix_seconds: 1_800_000_000 + self.second,
            uptime: Duration::from_secs(1000 + self.second),
            host: host(self.total, &self.guests),
            guests: self.guests.iter().map(|guest| guest.sample(self.second)).collect(),
        }
    }

    /// Simulates one round: guests run, settled steps are verified, and a plan is made and carried
    /// out.
    pub(crate) fn round(&mut self) -> Plan {
        self.second += ROUND_S;
        for guest in &mut self.guests {
            guest.live(self.second);
        }
        let now = self.sample();
        let (settled, pending): (Vec<_>, Vec<_>) =
            self.pending.drain(..).partition(|expectation| expectation.is_settled(&now));
        self.pending = pending;
        for outcome in settled.iter().map(|expectation| expectation.check(&now)) {
            self.ledger.verified(&outcome);
            self.goal = self.goal.less(outcome.returned_bytes.max(0));
            self.outcomes.push(outcome);
        }
        let plan = round(&now, &self.policy, &mut self.ledger, &self.goal);
        for step in &plan.steps {
            self.ledger.acted(step);
            self.pending.push(Expectation::of(step, &now, &self.policy));
            if let Action::SetBalloon { guest, to_bytes, .. } = &step.action {
                let guest = self.guests.iter_mut().find(|it| it.name == *guest);
                guest.expect("a guest of the host").target = *to_bytes;
            }
        }
        plan
    }

    /// Simulates `minutes` and returns all plans.
    pub(crate) fn run(&mut self, minutes: u64) -> Vec<Plan> {
        (0..minutes * 60 / ROUND_S).map(|_| self.round()).collect()
    }

    pub(crate) fn guest(&self, name: &str) -> &SimGuest {
        self.guests.iter().find(|guest| guest.name == name).expect("a guest of the host")
    }

    pub(crate) fn guest_mut(&mut self, name: &str) -> &mut SimGuest {
        self.guests.iter_mut().find(|guest| guest.name == name).expect("a guest of the host")
    }
}

/// Counts how often the balloon of `name` changed direction in `plans`.
pub(crate) fn turns(plans: &[Plan], name: &str) -> usize {
    let mut directions: Vec<bool> = plans
        .iter()
        .flat_map(|plan| &plan.steps)
        .filter_map(|step| match &step.action {
            Action::SetBalloon { guest, from_bytes, to_bytes } if guest == name => {
                Some(to_bytes > from_bytes)
            }
            _ => None,
        })
        .collect();
    directions.dedup();
    directions.len().saturating_sub(1)
}
