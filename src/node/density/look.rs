//! The host and its guests as they are now, in the form in which plans are made from it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use memopt::observe::{self, Meter, Metered, ObserveError, Sources};
use memopt::situation::{Backing, Balloon, Guest, Hindrance, Situation, Statistics, Vmm};
use tokio::task::JoinSet;
use vmm_core::memory::check_write_protection;
use vmm_core::virtio::balloon::SetBy;

use super::foreign::ForeignGuests;
use crate::api::memory::{BalloonLevel, GuestMemory};
use crate::api::types::{BackingInfo, BalloonStatistics, GuestState};
use crate::api::{ApiClient, AskError};
use crate::clock::{unix_ms, uptime};
use crate::names::GuestName;
use crate::state_dir::{GuestDir, StateDir};

/// How long a guest's process may take to answer.
const GUEST_PATIENCE: Duration = Duration::from_secs(1);

/// What exact measurements may take in one look. At least one process is measured.
const METER_BUDGET: Duration = Duration::from_millis(10);

/// Looks at the host again and again, and remembers what was dear to find out.
#[derive(Debug)]
pub(super) struct Lookout {
    state: StateDir,
    sources: Sources,
    meter: Meter,
    foreign: Option<Arc<ForeignGuests>>,
    /// What guests' processes cannot have here, as far as this one can tell.
    withheld: Option<String>,
}

/// What a look found.
#[derive(Debug)]
pub(super) struct View {
    /// The host and its guests.
    pub(super) situation: Situation,
    /// What this host does not tell, or does not let guests' processes have.
    pub(super) missing: Vec<String>,
}

/// Which guests are meant.
pub(super) type Which<'a> = dyn Fn(&Guest) -> bool + Sync + 'a;

/// None of them.
pub(super) const NOBODY: fn(&Guest) -> bool = |_| false;

impl Lookout {
    /// Looks at this host, at the guests below `state`, and at those that other programs run.
    pub(super) fn new(state: StateDir, foreign: Option<Arc<ForeignGuests>>) -> Self {
        let (sources, meter) = (Sources::system(), Meter::new(METER_BUDGET));
        let withheld = check_write_protection().err().map(|error| error.to_string());
        Self { state, sources, meter, foreign, withheld }
    }

    /// The host and all guests now. What guests cost is reckoned from their counters, but for those that are meant by `exactly`,
    /// whose page tables are walked.
    ///
    /// # Errors
    /// The folder of guests or the host's memory cannot be read.
    pub(super) async fn look(&mut self, exactly: &Which<'_>) -> Result<View> {
        let own = self.state.live_guests()?;
        let names = names(&own);
        let own = ask_all(own).await?;
        let (foreign, complaints) = match &self.foreign {
            Some(foreign) => foreign.look(&names).await,
            None => (Vec::new(), Vec::new()),
        };
        let guests = by_name(own, foreign);
        let mut view = tokio::task::block_in_place(|| {
            let costs = self.measure(&guests, exactly);
            self.view(guests, costs)
        })?;
        view.missing.extend(complaints);
        Ok(view)
    }

    /// As [`Self::look`], but only the guests of these names, and without a look at anybody's page tables: for looks that are frequent.
    ///
    /// # Errors
    /// As [`Self::look`].
    pub(super) async fn look_at_some(&self, names: &BTreeSet<String>) -> Result<View> {
        let mut own = self.state.live_guests()?;
        let of_ours = self::names(&own);
        own.retain(|guest| names.contains(guest.name().as_str()));
        let own = ask_all(own).await?;
        let mut others = Vec::new();
        if let Some(foreign) = &self.foreign
            && names.iter().any(|name| !of_ours.contains(name))
        {
            others = foreign.look(&of_ours).await.0;
            others.retain(|guest| names.contains(&guest.name));
        }
        let guests = by_name(own, others);
        tokio::task::block_in_place(|| {
            let costs = self.meter.estimates(&self.sources, &pids(&guests), uptime());
            self.view(guests, costs)
        })
    }

    /// What the guests cost, some of them exactly.
    fn measure(&mut self, guests: &[Guest], exactly: &Which<'_>) -> Vec<Costs> {
        let now = uptime();
        for guest in guests.iter().filter(|guest| exactly(guest)) {
            // One that cannot be measured is told of with the others.
            let _measured = self.meter.exact(&self.sources, guest.pid, now);
        }
        self.meter.round(&self.sources, &pids(guests), now)
    }

    fn view(&self, mut guests: Vec<Guest>, costs: Vec<Costs>) -> Result<View> {
        for (guest, cost) in guests.iter_mut().zip(costs) {
            match cost {
                Ok(metered) => guest.cost = metered.cost,
                Err(error) => {
                    tracing::debug!(guest = guest.name, %error, "cannot tell what a guest costs");
                    guest.hindrance = Some(Hindrance::Unreachable);
                }
            }
        }
        let (mut host, missing) = observe::host(&self.sources)?;
        let mut mergeable = guests.iter().filter(|guest| guest.is_mergeable);
        host.merged_domain = mergeable.find_map(|guest| guest.merge_domain.clone());
        let unix_seconds = unix_ms() / 1000;
        let missing =
            missing.iter().map(ToString::to_string).chain(self.withheld.clone()).collect();
        Ok(View { situation: Situation { unix_seconds, uptime: uptime(), host, guests }, missing })
    }
}

/// What a guest costs, or why that cannot be told.
type Costs = Result<Metered, ObserveError>;

fn pids(guests: &[Guest]) -> Vec<u32> {
    guests.iter().map(|guest| guest.pid).collect()
}

/// What guests of ours are called.
fn names(own: &[GuestDir]) -> BTreeSet<String> {
    own.iter().map(|guest| guest.name().to_string()).collect()
}

/// Ours and others', by name.
fn by_name(mut own: Vec<Guest>, others: Vec<Guest>) -> Vec<Guest> {
    own.extend(others);
    own.sort_by(|a, b| a.name.cmp(&b.name));
    own
}

/// Guests of ours, all asked at once.
async fn ask_all(guests: Vec<GuestDir>) -> Result<Vec<Guest>> {
    let mut asked: JoinSet<Option<Guest>> = guests.into_iter().map(ask).collect();
    let mut guests = Vec::with_capacity(asked.len());
    while let Some(answer) = asked.join_next().await {
        guests.extend(answer.context("a look at a guest broke down")?);
    }
    Ok(guests)
}

/// One guest; none when it ended meanwhile.
async fn ask(dir: GuestDir) -> Option<Guest> {
    let client = ApiClient::new(&dir.socket()).with_patience(GUEST_PATIENCE);
    let answer = client.get::<GuestMemory>("/v1/guest/memory").await;
    match answer {
        Ok(memory) => Some(guest(memory)),
        Err(error) if error.is_gone() => None,
        Err(error) => {
            tracing::debug!(guest = %dir.name(), %error, "a guest does not answer");
            // It has no memory of its own yet, or is not heard: either way it is left alone.
            let refused = matches!(error, AskError::Refused(_));
            let hindrance = if refused { Hindrance::Migrating } else { Hindrance::Unreachable };
            let pid = dir.read_identity().ok()?.pid;
            Some(Guest { hindrance: Some(hindrance), ..unknown(dir.name(), pid) })
        }
    }
}

fn unknown(name: &GuestName, pid: u32) -> Guest {
    Guest::unknown(name.to_string(), Vmm::Lighter, pid)
}

fn guest(memory: GuestMemory) -> Guest {
    Guest {
        memory_bytes: memory.memory_bytes,
        backing: backing(&memory.backing),
        balloon: memory.balloon.map(balloon),
        is_mergeable: memory.backing.mergeable,
        is_preallocated: memory.backing.prealloc,
        hindrance: hindrance(&memory),
        merge_domain: memory.backing.merge_domain,
        merged_instead: memory.backing.merged_instead,
        labels: memory.labels,
        ..unknown(&memory.name, memory.pid)
    }
}

fn hindrance(memory: &GuestMemory) -> Option<Hindrance> {
    match memory.state {
        GuestState::Running if memory.is_being_saved => Some(Hindrance::Saving),
        GuestState::Running => None,
        GuestState::Paused => Some(Hindrance::Paused),
        GuestState::Incoming | GuestState::Migrating | GuestState::InDoubt => {
            Some(Hindrance::Migrating)
        }
        GuestState::Ended => Some(Hindrance::Unreachable),
    }
}

fn backing(backing: &BackingInfo) -> Backing {
    match backing.huge_pages().pool_page_bytes() {
        Some(_) => Backing::HugePool,
        None if backing.from_template => Backing::Template,
        None => Backing::Anonymous,
    }
}

fn balloon(level: BalloonLevel) -> Balloon {
    Balloon {
        has_driver: level.has_driver,
        target_bytes: level.target_bytes,
        is_set_by_steps: level.set_by.map(|by| by == SetBy::Optimizer),
        actual_bytes: level.actual_bytes,
        reports_free_pages: level.reporting,
        reported_bytes_total: level.reported_bytes_total,
        statistics: level.statistics.map(statistics),
    }
}

fn statistics(given: BalloonStatistics) -> Statistics {
    let values = given.values;
    Statistics {
        age: Duration::from_millis(given.age_ms),
        total_bytes: values.total_bytes,
        free_bytes: values.free_bytes,
        available_bytes: values.available_bytes,
        caches_bytes: values.cache_bytes,
        swap_in_bytes: values.swap_in_bytes,
        swap_out_bytes: values.swap_out_bytes,
        major_faults: values.major_faults,
        oom_kills: values.oom_kills,
        allocation_stalls: values.allocation_stalls,
        direct_reclaim_bytes: values.direct_reclaim_bytes,
    }
}

#[cfg(test)]
mod tests {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

    use super::*;

    /// Has userfaultfd fail in this thread as where it is not permitted.
    fn forbid_userfaultfd() {
        let rules = [(libc::SYS_userfaultfd, Vec::new())].into();
        let (refuse, arch) = (SeccompAction::Errno(libc::EPERM as u32), std::env::consts::ARCH);
        let arch = arch.try_into().expect("an architecture");
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch);
        let program: BpfProgram = filter.and_then(TryInto::try_into).expect("a filter");
        seccompiler::apply_filter(&program).expect("filters");
    }

    #[test]
    fn what_guests_processes_may_not_have_is_named() {
        let missing = || {
            let (_folder, state) = StateDir::temporary();
            let view = Lookout::new(state, None).view(Vec::new(), Vec::new()).expect("a host");
            view.missing.join("\n")
        };
        let there = missing();
        assert!(!there.contains("userfaultfd"), "this test needs Linux 6.7: {there}");
        let refused = std::thread::spawn(move || {
            forbid_userfaultfd();
            missing()
        });
        let refused = refused.join().expect("an answer");
        let named = "(userfaultfd, Linux 6.7) cannot be had: Operation not permitted";
        assert!(refused.contains(named), "{refused}");
    }
}
