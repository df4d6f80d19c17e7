//! The host and its guests as they are now, in the form in which plans are made from it.

use std::collections::BTreeSet;
use std::fmt::{self, Debug};
use std::sync::Arc;
use std::time::Duration;

use crate::hypervisor::{Failure, Hypervisor, Inspected, Which};
use crate::ksm::{Budget, KsmError, Outcome};
use crate::observe::ObserveError;
use crate::schedule::Moment;
use crate::situation::{self, Guest, Situation};

/// The host itself: what it has and what guests' processes cost it, ksmd, and its pools.
pub trait Host: Debug + Send {
    /// The host's memory, and into each of `guests` what it costs, or that this cannot be told.
    ///
    /// # Errors
    /// The host does not tell of its own memory.
    fn observe(
        &mut self,
        guests: &mut [Guest],
        costs: &Costs<'_>,
        uptime: Duration,
    ) -> Result<Observed, ObserveError>;

    /// Puts ksmd back to how it was set before a process was killed that drove it.
    ///
    /// # Errors
    /// It cannot be put back, or another process drives it.
    fn recover(&mut self) -> Result<(), KsmError>;

    /// Opens a window of ksmd, in the place of the one that is open.
    ///
    /// # Errors
    /// ksmd cannot be driven.
    fn drive_ksm(&mut self, budget: Budget) -> Result<(), Failure>;

    /// Whether a window is open.
    fn drives_ksm(&self) -> bool;

    /// What the window did that was open and has ended; told once.
    fn take_outcome(&mut self) -> Option<Outcome>;

    /// Ends the window that is open, if one is; ksmd is as it was before then.
    fn end_window(&mut self);

    /// Gives a hugetlb pool so many pages.
    ///
    /// # Errors
    /// The kernel refuses.
    fn resize_pool(&mut self, page_bytes: u64, pages: u64) -> Result<(), Failure>;
}

/// How it is told what guests cost.
pub enum Costs<'a> {
    /// The page tables of those that are meant are walked, and of some others in turn; for the rest
    /// their counters tell.
    Measured(&'a dyn Fn(&Guest) -> bool),
    /// Their counters tell: for inspections that are frequent.
    Estimated,
}

impl Debug for Costs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Measured(_) => "Measured",
            Self::Estimated => "Estimated",
        })
    }
}

/// What the host tells of itself.
#[derive(Debug)]
pub struct Observed {
    /// Its memory.
    pub host: situation::Host,
    /// What it does not tell, and why.
    pub missing: Vec<String>,
}

/// What an inspection found.
#[derive(Debug)]
pub(super) struct View {
    /// The host and its guests.
    pub(super) situation: Situation,
    /// What this host does not tell, or does not let guests' processes have.
    pub(super) missing: Vec<String>,
}

/// Which guests are measured.
pub(super) type Filter = Box<dyn Fn(&Guest) -> bool + Send>;

/// None of them.
pub(super) fn none() -> Filter {
    Box::new(|_| false)
}

/// Asks hypervisors one after the other, for the guests of these names or all of them; returns them
/// by name, and what cannot be told.
pub(super) async fn guests(
    hypervisors: &[Arc<dyn Hypervisor>],
    names: Option<&BTreeSet<String>>,
) -> Result<(Vec<Guest>, Vec<String>), Failure> {
    let (mut all, mut taken, mut complaints) = (Vec::new(), BTreeSet::new(), Vec::new());
    for hypervisor in hypervisors {
        if names.is_some_and(|names| names.is_subset(&taken)) {
            break;
        }
        let Inspected { guests, names, missing } =
            hypervisor.inspect(Which { names, taken: &taken }).await?;
        all.extend(guests);
        taken.extend(names);
        complaints.extend(missing);
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((all, complaints))
}

impl View {
    /// What `observed` tells of the host, together with its guests at this time.
    pub(super) fn new(
        observed: Observed,
        guests: Vec<Guest>,
        complaints: Vec<String>,
        now: Moment,
    ) -> Self {
        let Observed { mut host, mut missing } = observed;
        let mut mergeable = guests.iter().filter(|guest| guest.is_mergeable);
        host.merged_domain = mergeable.find_map(|guest| guest.merge_domain.clone());
        missing.extend(complaints);
        let (unix_seconds, uptime) = (now.wall.as_secs(), now.uptime);
        Self { situation: Situation { unix_seconds, uptime, host, guests }, missing }
    }
}
