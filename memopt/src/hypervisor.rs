//! The port to what runs guests on this host: lighter's own processes, QEMU, Cloud Hypervisor.
//!
//! A [`Hypervisor`] inspects its guests, does the steps of a plan to them and has their pages
//! surveyed. In what the programs differ for a plan is told by [`Vmm`](crate::situation::Vmm).
//! Another program is another adapter, and one line where the service is started.

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

/// Most contents that a survey of a guest keeps: a table of them is less than 2 MB.
pub const CAPACITY_MAX: u32 = 1 << 16;

/// Why something could not be done, for people.
pub type Failure = Box<dyn Error + Send + Sync>;

/// What comes of asking a guest, in its own time.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'a>>;

/// What runs guests on this host.
pub trait Hypervisor: fmt::Debug + Send + Sync {
    /// Its guests as they are now, but for what they cost. Guests that do not answer in time are
    /// among them, with a hindrance.
    fn inspect<'a>(&'a self, which: Which<'a>) -> Answer<'a, Inspected>;

    /// Whether it runs this guest.
    fn has(&self, guest: &GuestRef) -> bool;

    /// Does `action`, which names a guest, to that one.
    fn act<'a>(&'a self, guest: &'a GuestRef, action: &'a Action) -> Answer<'a, ()>;

    /// Has the pages of a guest surveyed. Dropping the answer gives that up.
    fn survey<'a>(&'a self, guest: &'a Guest, request: SurveyRequest) -> Answer<'a, Surveyed>;
}

/// Which guests are inspected.
#[derive(Debug, Clone, Copy)]
pub struct Which<'a> {
    /// Those with these names; all when absent.
    pub names: Option<&'a BTreeSet<String>>,
    /// Names that guests of other hypervisors have: no other guest may be called so.
    pub taken: &'a BTreeSet<String>,
}

/// What a hypervisor tells of its guests.
#[derive(Debug, Default)]
pub struct Inspected {
    /// Those that were asked for.
    pub guests: Vec<Guest>,
    /// The names of all of them.
    pub names: BTreeSet<String>,
    /// What cannot be told, or cannot be done on this host, and why.
    pub missing: Vec<String>,
}

/// A guest that was inspected, and that something is done to: its process is named, too, since
/// another guest may have its name by now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestRef {
    /// Its name.
    pub name: String,
    /// Its process; absent in plans of versions that did not tell it.
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

/// How the pages of a guest are surveyed.
#[derive(Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SurveyRequest {
    /// What the digests depend on, random: the same for all guests of a merge domain, and a secret
    /// of theirs.
    pub seed: u64,
    /// Most contents that are kept, 1 to [`CAPACITY_MAX`].
    pub capacity: u32,
    /// One content in 2^this many is kept, fewer when they are more than `capacity`.
    pub bits: u32,
    /// Share of one CPU, 0.01 to 1.
    pub cpu_share: f64,
    /// How it is told which pages are written.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub activity: Activity,
}

impl SurveyRequest {
    /// A table with nothing in it, of which those are made that are asked for.
    #[must_use]
    pub fn empty(&self) -> Digests {
        Digests::new(Seed::new(self.seed), self.capacity(), self.bits)
    }

    /// Most contents that are kept.
    #[must_use]
    pub fn capacity(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.capacity as usize).unwrap_or(NonZeroUsize::MIN)
    }
}

/// Processes of versions that knew no other take no field for it.
fn is_usual(activity: &Activity) -> bool {
    *activity == Activity::default()
}

/// Without the seed.
impl fmt::Debug for SurveyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed: _, capacity, bits, cpu_share, activity } = self;
        write!(
            f,
            "SurveyRequest {{ capacity: {capacity}, bits: {bits}, cpu_share: {cpu_share}, activity: {activity} }}"
        )
    }
}

/// What a survey found.
#[derive(Debug)]
pub struct Surveyed {
    /// A sample of the contents, for the others of the merge domain.
    pub digests: Digests,
    /// The rest.
    pub findings: Box<dyn Findings>,
}

/// What a survey found, until it is known what the others of the merge domain have.
pub trait Findings: fmt::Debug + Send + Sync {
    /// The guest's chunks in the light of what all guests of its `domain` have, in order.
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
