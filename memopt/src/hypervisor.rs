//! The port to the programs that run guests on this host: lighter's own processes, QEMU, Cloud
//! Hypervisor.
//!
//! A [`Hypervisor`] inspects its guests, executes the steps of a plan on them and surveys their
//! pages. [`Vmm`](crate::situation::Vmm) describes the differences that matter for a plan.
//! Supporting another program takes another adapter, and one line where the service is started.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::num::NonZeroUsize;
use std::pin::Pin;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policy::Activity;
use crate::situation::{Chunk, Guest};
use crate::step::Action;
use crate::survey::{Digests, Seed};

/// Maximum number of contents that a survey of a guest keeps: a table of them is less than 2 MB.
pub const CAPACITY_MAX: u32 = 1 << 16;

/// The reason why a request failed, to be read by people.
pub type Failure = Box<dyn Error + Send + Sync>;

/// A pending answer of a guest, which takes as long as the guest needs.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'a>>;

/// A program that runs guests on this host.
pub trait Hypervisor: fmt::Debug + Send + Sync {
    /// Returns its guests in their present state, except for their cost. Guests that do not answer
    /// in time are included, with a hindrance.
    fn inspect<'a>(&'a self, which: Which<'a>) -> Answer<'a, Inspected>;

    /// Whether this hypervisor runs `guest`.
    fn has(&self, guest: &GuestRef) -> bool;

    /// Executes `action`, which names a guest, on `guest`.
    fn act<'a>(&'a self, guest: &'a GuestRef, action: &'a Action) -> Answer<'a, ()>;

    /// Surveys the pages of `guest`. Dropping the answer cancels the survey.
    fn survey<'a>(&'a self, guest: &'a Guest, request: SurveyRequest) -> Answer<'a, Surveyed>;
}

/// Selects the guests to inspect.
#[derive(Debug, Clone, Copy)]
pub struct Which<'a> {
    /// Inspect only guests with these names; all guests when absent.
    pub names: Option<&'a BTreeSet<String>>,
    /// Names already used by guests of other hypervisors: no other guest may have one of them.
    pub taken: &'a BTreeSet<String>,
}

/// What a hypervisor reports about its guests.
#[derive(Debug, Default)]
pub struct Inspected {
    /// The selected guests.
    pub guests: Vec<Guest>,
    /// The names of all guests of the hypervisor, selected or not.
    pub names: BTreeSet<String>,
    /// What cannot be determined, or cannot be done on this host, and why.
    pub missing: Vec<String>,
}

/// Identifies a guest that was inspected and is acted on. It includes the process, because another
/// guest may have the name by now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestRef {
    /// Name of the guest.
    pub name: String,
    /// The guest's process; absent in plans of versions that did not record it.
    pub pid: Option<u32>,
}

impl From<&Guest> for GuestRef {
    fn from(guest: &Guest) -> Self {
        Self { name: guest.name.clone(), pid: Some(guest.pid) }
    }
}

impl fmt::Display for GuestRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "{} (PID {pid})", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// The parameters of a survey of a guest's pages.
#[derive(Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SurveyRequest {
    /// Random seed of the digests: the same for all guests of a merge domain, and kept secret.
    pub seed: u64,
    /// Maximum number of contents kept, 1 to [`CAPACITY_MAX`].
    pub capacity: u32,
    /// One content in 2^`bits` is kept, fewer if there are more than `capacity`.
    pub bits: u32,
    /// Share of one CPU that the survey may use, 0.01 to 1.
    pub cpu_share: f64,
    /// How written pages are detected.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub activity: Activity,
}

impl SurveyRequest {
    /// Returns an empty table with the requested parameters.
    #[must_use]
    pub fn empty(&self) -> Digests {
        Digests::new(Seed::new(self.seed), self.capacity(), self.bits)
    }

    /// Returns the maximum number of contents kept.
    #[must_use]
    pub fn capacity(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.capacity as usize).unwrap_or(NonZeroUsize::MIN)
    }
}

/// Versions that had no other method reject the field (`deny_unknown_fields`), so the default is
/// omitted.
fn is_usual(activity: &Activity) -> bool {
    *activity == Activity::default()
}

/// Omits the seed, which is secret.
impl fmt::Debug for SurveyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed: _, capacity, bits, cpu_share, activity } = self;
        write!(
            f,
            "SurveyRequest {{ capacity: {capacity}, bits: {bits}, cpu_share: {cpu_share}, activity: {activity} }}"
        )
    }
}

/// The result of a survey.
#[derive(Debug)]
pub struct Surveyed {
    /// A sample of the contents, to be compared with those of the other guests of the merge domain.
    pub digests: Digests,
    /// All other findings.
    pub findings: Box<dyn Findings>,
}

/// The findings of a survey, held until those of the other guests of the merge domain are
/// available.
pub trait Findings: fmt::Debug + Send + Sync {
    /// Returns the guest's chunks in order, with duplicates counted against what all guests of its
    /// `domain` have.
    fn chunks<'a>(&'a self, domain: &'a Digests) -> Answer<'a, Vec<Chunk>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_not_shown() {
        let request = SurveyRequest {
            seed: 12345,
            capacity: 1,
            bits: 3,
            cpu_share: 0.5,
            activity: Activity::DirtyLog,
        };
        assert!(!format!("{request:?}").contains("12345"));
    }
}
