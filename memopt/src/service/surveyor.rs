//! Surveys guests' pages, so that decisions about merging and huge pages rest on their content.
//!
//! The guests of a merge domain are surveyed with one seed, drawn for each survey, so that their
//! digests can be combined. A guest without a domain is surveyed alone. A few guests are surveyed
//! at a time, which together use the CPU share that the policy grants ksmd. A guest that is slow,
//! dead or answers nonsense gets no survey, and does not affect the others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::core::{Handle, Shared};
use super::error::ServiceError;
use super::events::Event;
use super::surveys::Known;
use super::view::none;
use crate::hypervisor::{CAPACITY_MAX, Failure, Findings, SurveyRequest, Surveyed};
use crate::plan::pages_matter;
use crate::policy::Policy;
use crate::situation::{Guest, Situation, Survey};
use crate::survey::Digests;

/// Number of guests surveyed at a time.
const AT_ONCE_MAX: usize = 4;

/// 2^3: one content in 8 is kept, i.e. 64 samples per chunk; fewer of large guests.
const BITS: u32 = 3;

/// Guests that are surveyed with one seed.
type Domain<'a> = Vec<&'a Guest>;

/// Which guests to survey.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The domains in which a guest has no survey recent enough for a plan.
    Due,
    /// All guests whose pages matter for a plan.
    All,
}

/// Returns the domains to survey.
fn domains<'a>(situation: &'a Situation, policy: &Policy, wanted: Wanted) -> Vec<Domain<'a>> {
    let mut domains: BTreeMap<(Option<String>, Option<&str>), Domain<'a>> = BTreeMap::new();
    for guest in &situation.guests {
        let limits = policy.limits(guest);
        if !pages_matter(guest, &limits) {
            continue;
        }
        let domain = limits.merge_domain;
        let alone = domain.is_none().then_some(guest.name.as_str());
        domains.entry((domain, alone)).or_default().push(guest);
    }
    let is_new = |guest: &&Guest| guest.survey.as_ref().is_some_and(Survey::is_recent);
    let is_wanted = |guests: &Domain<'_>| wanted == Wanted::All || !guests.iter().all(is_new);
    domains.into_values().filter(is_wanted).collect()
}

/// Numbers of guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    /// Guests that were to be surveyed.
    pub(super) guests: usize,
    /// Those of them whose survey failed.
    pub(super) failed: usize,
}

impl Handle {
    /// Surveys guests' pages. If the future is dropped, the surveys finished so far are kept.
    ///
    /// # Errors
    /// [`ServiceError::Inspect`].
    pub(super) async fn survey(
        &self,
        policy: &Policy,
        wanted: Wanted,
    ) -> Result<Asked, ServiceError> {
        let _turn = self.shared.surveying.lock().await;
        let begun = self.uptime();
        let situation = self.inspect(policy, none()).await?.situation;
        let domains = domains(&situation, policy, wanted);
        let guests: usize = domains.iter().map(Vec::len).sum();
        let mut waiting = guests;
        let at_once = AT_ONCE_MAX.min(waiting).max(1);
        let request = || SurveyRequest {
            seed: random(),
            capacity: CAPACITY_MAX,
            bits: BITS,
            cpu_share: (policy.merge.cpu / at_once as f64).clamp(0.01, 1.0),
            activity: policy.merge.activity,
        };
        let places = Arc::new(Semaphore::new(at_once));
        let survey = |guests: &Domain<'_>| {
            let guests = guests.iter().map(|guest| (*guest).clone()).collect();
            survey_domain(guests, request(), Arc::clone(&places), Arc::clone(&self.shared))
        };
        let mut surveyed: JoinSet<Vec<Known>> = domains.iter().map(survey).collect();
        while let Some(found) = surveyed.join_next().await {
            let found = found.map_err(|error| {
                let what = "a survey failed by a bug in lighter; report it";
                ServiceError::Inspect(format!("{what}: {error}"))
            })?;
            self.notice(&Event::Surveyed(found.len()));
            waiting -= found.len();
            let taken = self.uptime();
            self.call(move |core| core.surveys.keep(found, begun, taken)).await;
        }
        self.notice(&Event::SurveysFailed(waiting));
        Ok(Asked { guests, failed: waiting })
    }
}

/// Returns 64 random bits: the XOR combines each of the six fixed bits of the UUID with a random
/// bit.
fn random() -> u64 {
    let (high, low) = Uuid::new_v4().as_u64_pair();
    high ^ low.rotate_left(32)
}

/// Surveys the guests of a domain. Those that do not answer are logged and left out.
async fn survey_domain(
    guests: Vec<Guest>,
    request: SurveyRequest,
    places: Arc<Semaphore>,
    shared: Arc<Shared>,
) -> Vec<Known> {
    let mut asked = JoinSet::new();
    for guest in guests {
        let (places, shared) = (Arc::clone(&places), Arc::clone(&shared));
        asked.spawn(async move {
            let _place = places.acquire().await.ok()?;
            match survey_guest(&guest, request, &shared).await {
                Ok(surveyed) => Some((guest, surveyed)),
                Err(error) => {
                    tracing::warn!(guest = guest.name, "its pages cannot be surveyed: {error:#}");
                    None
                }
            }
        });
    }
    let mut domain = request.empty();
    let mut found = Vec::new();
    for (guest, Surveyed { digests, findings }) in asked.join_all().await.into_iter().flatten() {
        // Always succeeds: all digests were checked to have the same seed.
        if domain.merge(&digests).is_ok() {
            found.push((guest, findings));
        }
    }
    let copies = domain.copies();
    let domain = Arc::new(domain.into_shared());
    let mut answers = JoinSet::new();
    for (guest, findings) in found {
        let domain = Arc::clone(&domain);
        answers.spawn(async move { known(guest, findings.as_ref(), &domain, copies).await });
    }
    let answers = answers.join_all().await.into_iter();
    let complain = |error: &Failure| tracing::warn!("a survey cannot be read: {error:#}");
    answers.filter_map(|known| known.inspect_err(complain).ok()).collect()
}

async fn survey_guest(
    guest: &Guest,
    request: SurveyRequest,
    shared: &Shared,
) -> Result<Surveyed, Failure> {
    shared.hypervisor_of(&guest.into())?.survey(guest, request).await
}

async fn known(
    guest: Guest,
    findings: &dyn Findings,
    domain: &Digests,
    copies: f64,
) -> Result<Known, Failure> {
    let chunks = findings.chunks(domain).await?;
    let survey = Survey { age: Duration::ZERO, sampled: 1.0, copies, chunks };
    Ok(Known { name: guest.name, pid: guest.pid, survey })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture;
    use crate::policy::Preset;
    use crate::situation::{Backing, Vmm};

    fn guest(name: &str, domain: Option<&str>) -> Guest {
        Guest {
            pid: 7,
            merge_domain: domain.map(str::to_owned),
            is_mergeable: domain.is_some(),
            ..fixture::guest(name, 64 << 20)
        }
    }

    fn names(domains: &[Domain<'_>]) -> Vec<Vec<String>> {
        let names = |domain: &Domain<'_>| domain.iter().map(|guest| guest.name.clone()).collect();
        domains.iter().map(names).collect()
    }

    fn survey_of(age: Duration) -> Survey {
        Survey { age, sampled: 1.0, copies: 2.0, chunks: Vec::new() }
    }

    #[test]
    fn domains_are_surveyed_together_and_other_guests_alone() {
        let old = Some(survey_of(Duration::from_secs(31 * 60)));
        let new = Some(survey_of(Duration::from_secs(29 * 60)));
        let situation = fixture::situation(
            50,
            vec![
                Guest { survey: new.clone(), ..guest("a", Some("shop")) },
                Guest { survey: old, ..guest("b", Some("shop")) },
                Guest { survey: new, ..guest("c", Some("bank")) },
                guest("d", None),
                guest("e", None),
                Guest { backing: Backing::HugePool, ..guest("f", None) },
                Guest { hindrance: Some(crate::situation::Hindrance::Paused), ..guest("g", None) },
                Guest { vmm: Vmm::Qemu, ..guest("h", None) },
                Guest { vmm: Vmm::Qemu, is_mergeable: true, ..guest("i", None) },
                Guest { vmm: Vmm::Qemu, is_mergeable: false, ..guest("j", Some("mill")) },
                Guest { vmm: Vmm::Qemu, is_mergeable: true, ..guest("k", Some("mill")) },
            ],
        );
        let of = |wanted| names(&domains(&situation, &Preset::Balanced.policy(), wanted));
        assert_eq!(of(Wanted::Due), [vec!["d"], vec!["e"], vec!["k"], vec!["a", "b"]]);
        let all = [vec!["d"], vec!["e"], vec!["c"], vec!["k"], vec!["a", "b"]];
        assert_eq!(of(Wanted::All), all);
    }
}
