//! Has guests' pages looked at, so that merging and huge pages are decided by what is there.
//!
//! The guests of a merge domain are looked at with one seed, drawn anew each time, so that what they found can be put together;
//! a guest without a domain is one by itself. The guests' processes do the work ([`own`]), or this one for guests that other programs
//! run ([`foreign`]), a few at a time, which together take the share of a CPU that the policy gives to ksmd. One that is slow,
//! dead or says nonsense goes without a survey, and the others with theirs.

mod foreign;
mod own;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use memopt::plan::Action;
use memopt::policy::{Activity, Actuator, GuestLimits, Policy};
use memopt::situation::{Backing, Chunk, Guest, Situation, Survey, Vmm};
use memopt::survey::{Digests, Seed};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::api::survey::{CAPACITY_MAX, SurveyDomain};
use crate::clock::uptime;
use crate::state_dir::StateDir;

/// Guests that are looked at at a time.
const LOOKERS_MAX: usize = 4;

/// One content in 8 is kept, of large guests fewer: 64 samples of a chunk.
const BITS: u32 = 3;

/// What is known of the guests' pages.
#[derive(Debug, Default)]
pub(super) struct Surveys {
    by_guest: BTreeMap<String, Kept>,
    /// When a step last changed a guest's pages, as the host's uptime.
    changed: BTreeMap<String, Duration>,
}

#[derive(Debug)]
struct Kept {
    /// The process that was asked: a guest that was started again is another one.
    pid: u32,
    /// When, as the host's uptime.
    taken: Duration,
    survey: Survey,
}

/// A guest that was looked at.
#[derive(Debug)]
pub(super) struct Surveyed {
    name: String,
    pid: u32,
    survey: Survey,
}

impl Surveys {
    /// Gives the guests what is known of their pages, and forgets about processes that are gone.
    pub(super) fn fill(&mut self, guests: &mut [Guest]) {
        let now = uptime();
        for guest in guests {
            let Some(kept) = self.by_guest.get(&guest.name) else { continue };
            if kept.pid == guest.pid {
                let age = now.saturating_sub(kept.taken);
                guest.survey = Some(Survey { age, ..kept.survey.clone() });
            } else {
                self.by_guest.remove(&guest.name);
            }
        }
    }

    /// Forgets guests that are no more.
    pub(super) fn retain(&mut self, guests: &[Guest]) {
        let names: BTreeSet<&str> = guests.iter().map(|guest| guest.name.as_str()).collect();
        self.by_guest.retain(|name, _| names.contains(name.as_str()));
        self.changed.retain(|name, _| names.contains(name.as_str()));
    }

    /// Keeps what was found by looks that began at `begun`, but for guests that a step has changed since.
    pub(super) fn keep(&mut self, found: Vec<Surveyed>, begun: Duration) {
        let taken = uptime();
        for Surveyed { name, pid, survey } in found {
            if self.changed.get(&name).is_some_and(|changed| *changed >= begun) {
                continue;
            }
            self.by_guest.insert(name, Kept { pid, taken, survey });
        }
    }

    /// A step has changed what was found.
    pub(super) fn acted(&mut self, action: &Action) {
        match action.guest() {
            Some(guest) if action.changes_pages() => {
                self.changed.insert(guest.to_owned(), uptime());
                let kept = self.by_guest.get_mut(guest).into_iter();
                kept.for_each(|kept| action.note(&mut kept.survey));
            }
            Some(_) => {}
            None => self.by_guest.values_mut().for_each(|kept| action.note(&mut kept.survey)),
        }
    }

    /// A step went wrong half-way: who knows what it has changed.
    pub(super) fn forget(&mut self, guest: &str) {
        self.changed.insert(guest.to_owned(), uptime());
        self.by_guest.remove(guest);
    }
}

/// How the guests of a domain are looked at.
#[derive(Clone, Copy)]
struct Manner {
    /// What the digests depend on: a secret of the domain.
    seed: u64,
    /// Share of one CPU for each.
    cpu_share: f64,
    activity: Activity,
}

/// Guests that are looked at with one seed.
type Domain<'a> = Vec<&'a Guest>;

/// Whose pages are to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Those of domains of which a guest has no survey that a plan would use.
    Due,
    /// Those of all that a plan asks about.
    All,
}

/// The domains that are looked at.
pub(super) fn domains<'a>(
    situation: &'a Situation,
    policy: &Policy,
    wanted: Wanted,
) -> Vec<Domain<'a>> {
    let mut domains: BTreeMap<(Option<String>, Option<&str>), Domain<'a>> = BTreeMap::new();
    for guest in situation.guests.iter().filter(|guest| is_worth_it(guest, policy)) {
        let domain = policy.limits(guest).merge_domain;
        let alone = domain.is_none().then_some(guest.name.as_str());
        domains.entry((domain, alone)).or_default().push(guest);
    }
    let is_new = |guest: &&Guest| {
        guest.survey.as_ref().is_some_and(|survey| survey.age <= policy.merge.survey_age)
    };
    let is_wanted = |guests: &Domain<'_>| wanted == Wanted::All || !guests.iter().all(is_new);
    domains.into_values().filter(is_wanted).collect()
}

/// Whether a plan would ask about the guest's pages.
fn is_worth_it(guest: &Guest, policy: &Policy) -> bool {
    let limits = policy.limits(guest);
    guest.hindrance.is_none()
        && matches!(guest.backing, Backing::Anonymous | Backing::Template)
        && limits.optimize
        && match guest.vmm {
            Vmm::Lighter => {
                use Actuator::{Huge, Merge, Template, Zeros};
                may_be_any(&limits, &[Merge, Huge, Template, Zeros])
            }
            // What its program has not marked, nobody else can.
            Vmm::Qemu | Vmm::CloudHypervisor => {
                guest.is_mergeable
                    && limits.merge_domain.is_some()
                    && may_be_any(&limits, &[Actuator::Merge, Actuator::Huge])
            }
        }
}

fn may_be_any(limits: &GuestLimits, actuators: &[Actuator]) -> bool {
    actuators.iter().any(|actuator| limits.actuators.contains(actuator))
}

/// Has the guests of these domains looked at. Who does not answer is left out, and told of. What is found comes domain by domain.
pub(super) fn survey(
    state: &StateDir,
    domains: &[Domain<'_>],
    policy: &Policy,
) -> JoinSet<Vec<Surveyed>> {
    let lookers = LOOKERS_MAX.min(domains.iter().map(Vec::len).sum());
    let cpu_share = (policy.merge.cpu / lookers.max(1) as f64).clamp(0.01, 1.0);
    let activity = policy.merge.activity;
    let places = Arc::new(Semaphore::new(lookers));
    let ask = |guests: &Domain<'_>| {
        let guests = guests.iter().filter_map(|guest| Subject::new(state, guest)).collect();
        let manner = Manner { seed: random(), cpu_share, activity };
        survey_domain(guests, manner, Arc::clone(&places))
    };
    domains.iter().map(ask).collect()
}

/// 64 bits that nobody can guess, but for six that an UUID has always.
fn random() -> u64 {
    let (high, low) = Uuid::new_v4().as_u64_pair();
    high ^ low.rotate_left(32)
}

/// A guest that is looked at.
#[derive(Debug)]
struct Subject {
    name: String,
    pid: u32,
    way: Way,
}

/// By whom.
#[derive(Debug)]
enum Way {
    /// Its own process, which is one of lighter's.
    Own(own::Asked),
    /// This one.
    Foreign,
}

/// Where its findings are.
#[derive(Debug)]
enum Findings {
    Own(own::Asked),
    Here(Box<crate::survey::Found>),
}

impl Subject {
    fn new(state: &StateDir, guest: &Guest) -> Option<Self> {
        let way = match guest.vmm {
            Vmm::Lighter => Way::Own(own::Asked::new(state, guest)?),
            Vmm::Qemu | Vmm::CloudHypervisor => Way::Foreign,
        };
        Some(Self { name: guest.name.clone(), pid: guest.pid, way })
    }

    /// Looks at its pages.
    async fn look(&self, manner: Manner) -> Result<(Digests, Findings)> {
        match &self.way {
            Way::Own(asked) => Ok((asked.look(manner).await?, Findings::Own(asked.clone()))),
            Way::Foreign => {
                let found = foreign::look(self.pid, manner).await?;
                Ok((found.digests().clone(), Findings::Here(Box::new(found))))
            }
        }
    }
}

impl Findings {
    /// What was found, in the light of what its domain has.
    async fn chunks(&self, domain: &SurveyDomain) -> Result<Vec<Chunk>> {
        match self {
            Self::Own(asked) => asked.chunks(domain).await,
            // Only what is marked was looked at.
            Self::Here(found) => Ok(found.chunks(&domain.domain, |_| true).collect()),
        }
    }
}

fn empty(seed: u64) -> Digests {
    Digests::new(Seed::new(seed), capacity(), BITS)
}

/// Contents that are kept.
fn capacity() -> NonZeroUsize {
    NonZeroUsize::MIN.saturating_add(CAPACITY_MAX as usize - 1)
}

async fn survey_domain(
    guests: Vec<Subject>,
    manner: Manner,
    places: Arc<Semaphore>,
) -> Vec<Surveyed> {
    let mut looks = JoinSet::new();
    for guest in guests {
        let places = Arc::clone(&places);
        looks.spawn(async move {
            let _place = places.acquire().await.ok()?;
            match guest.look(manner).await {
                Ok((digests, findings)) => Some((guest, digests, findings)),
                Err(error) => {
                    tracing::warn!(guest = guest.name, "its pages cannot be looked at: {error:#}");
                    None
                }
            }
        });
    }
    let mut domain = empty(manner.seed);
    let mut found = Vec::new();
    for (guest, digests, findings) in looks.join_all().await.into_iter().flatten() {
        // All of one seed, which was checked.
        if domain.merge(&digests).is_ok() {
            found.push((guest, findings));
        }
    }
    let copies = domain.copies();
    let request = Arc::new(SurveyDomain { domain: domain.into_shared() });
    let mut asked = JoinSet::new();
    for (guest, findings) in found {
        let request = Arc::clone(&request);
        asked.spawn(async move {
            let told = findings.chunks(&request).await.context("what was found cannot be had");
            told.map(|chunks| (guest, chunks))
        });
    }
    let mut surveyed = Vec::new();
    for told in asked.join_all().await {
        match told {
            Ok((Subject { name, pid, .. }, chunks)) => {
                let survey = Survey { age: Duration::ZERO, sampled: 1.0, copies, chunks };
                surveyed.push(Surveyed { name, pid, survey });
            }
            Err(error) => tracing::warn!("{error:#}"),
        }
    }
    surveyed
}

#[cfg(test)]
mod tests {
    use memopt::policy::Preset;
    use memopt::situation::{Cost, Host};

    use memopt::plan::ChunkRange;

    use super::*;

    fn guest(name: &str, domain: Option<&str>) -> Guest {
        Guest {
            name: name.to_owned(),
            vmm: Vmm::Lighter,
            pid: 7,
            memory_bytes: 64 << 20,
            cost: Cost::default(),
            backing: Backing::Anonymous,
            balloon: None,
            merge_domain: domain.map(str::to_owned),
            is_mergeable: domain.is_some(),
            merged_instead: None,
            is_preallocated: false,
            survey: None,
            hindrance: None,
            labels: BTreeMap::new(),
            user: None,
        }
    }

    fn situation(guests: Vec<Guest>) -> Situation {
        let host = Host {
            total_bytes: 1 << 30,
            available_bytes: 1 << 29,
            swap_used_bytes: 0,
            pressure: None,
            ksm: None,
            pools: Vec::new(),
            merged_domain: None,
            strangers: Vec::new(),
        };
        Situation { unix_seconds: 0, uptime: Duration::ZERO, host, guests }
    }

    fn names(domains: &[Domain<'_>]) -> Vec<Vec<String>> {
        let names = |domain: &Domain<'_>| domain.iter().map(|guest| guest.name.clone()).collect();
        domains.iter().map(names).collect()
    }

    fn survey_of(age: Duration, chunks: u32) -> Survey {
        let chunk =
            |index| Chunk { index, present_pages: 512, template_pages: 9, ..Chunk::default() };
        Survey { age, sampled: 1.0, copies: 2.0, chunks: (0..chunks).map(chunk).collect() }
    }

    #[test]
    fn domains_are_looked_at_whole_and_others_by_themselves() {
        let old = Some(survey_of(Duration::from_secs(31 * 60), 1));
        let new = Some(survey_of(Duration::from_secs(29 * 60), 1));
        let situation = situation(vec![
            Guest { survey: new.clone(), ..guest("a", Some("shop")) },
            Guest { survey: old, ..guest("b", Some("shop")) },
            Guest { survey: new, ..guest("c", Some("bank")) },
            guest("d", None),
            guest("e", None),
            Guest { backing: Backing::HugePool, ..guest("f", None) },
            Guest { hindrance: Some(memopt::situation::Hindrance::Paused), ..guest("g", None) },
            Guest { vmm: Vmm::Qemu, ..guest("h", None) },
            Guest { vmm: Vmm::Qemu, is_mergeable: true, ..guest("i", None) },
            Guest { vmm: Vmm::Qemu, is_mergeable: false, ..guest("j", Some("mill")) },
            Guest { vmm: Vmm::Qemu, is_mergeable: true, ..guest("k", Some("mill")) },
        ]);
        let of = |wanted| names(&domains(&situation, &Preset::Balanced.policy(), wanted));
        assert_eq!(of(Wanted::Due), [vec!["d"], vec!["e"], vec!["k"], vec!["a", "b"]]);
        let all = [vec!["d"], vec!["e"], vec!["c"], vec!["k"], vec!["a", "b"]];
        assert_eq!(of(Wanted::All), all);
    }

    #[test]
    fn what_is_known_goes_with_the_process_that_was_asked() {
        let mut surveys = Surveys::default();
        let found = |name: &str| Surveyed {
            name: name.to_owned(),
            pid: 7,
            survey: survey_of(Duration::ZERO, 2),
        };
        surveys.keep(vec![found("a"), found("b"), found("c")], Duration::ZERO);
        let mut guests = [guest("a", None), Guest { pid: 8, ..guest("b", None) }];
        surveys.fill(&mut guests);
        assert_eq!(guests[0].survey.as_ref().unwrap().chunks.len(), 2);
        assert!(guests[1].survey.is_none(), "another process");
        surveys.retain(&guests);
        surveys.forget("nobody");
        assert_eq!(surveys.by_guest.keys().collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn a_look_that_began_before_a_step_tells_nothing_of_its_guest() {
        let mut surveys = Surveys::default();
        let survey = survey_of(Duration::ZERO, 1);
        let found = || vec![Surveyed { name: "a".to_owned(), pid: 7, survey: survey.clone() }];
        let marked = |surveys: &Surveys| surveys.by_guest["a"].survey.chunks[0].is_mergeable;
        surveys.keep(found(), Duration::ZERO);
        let chunks = vec![ChunkRange { first: 0, count: 1 }];
        surveys.acted(&Action::Merge { guest: "a".to_owned(), chunks });
        surveys.keep(found(), Duration::ZERO);
        assert!(marked(&surveys), "what the step has changed");
        surveys.keep(found(), uptime() + Duration::from_secs(1));
        assert!(!marked(&surveys), "what was found since");
        surveys.forget("a");
        surveys.keep(found(), Duration::ZERO);
        assert!(surveys.by_guest.is_empty());
    }
}
