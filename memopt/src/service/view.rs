//! The current state of the host and its guests, in the form that plans are made from.

use std::collections::BTreeSet;
use std::fmt::{self, Debug};
use std::sync::Arc;
use std::time::Duration;

use crate::hypervisor::{Failure, Hypervisor, Inspected, Which};
use crate::ksm::{Budget, KsmError, Outcome};
use crate::observe::ObserveError;
use crate::schedule::Moment;
use crate::situation::{self, Guest, Situation};

/// The host itself: its memory, what guests' processes cost it, ksmd, and its hugetlb pools.
pub trait Host: Debug + Send {
    /// Returns the host's memory, and sets the cost of each of `guests`, or a hindrance if its cost
    /// cannot be determined.
    ///
    /// # Errors
    /// If the host's own memory cannot be read.
    fn observe(
        &mut self,
        guests: &mut [Guest],
        costs: &Costs<'_>,
        uptime: Duration,
    ) -> Result<Observed, ObserveError>;

    /// Restores the settings of ksmd that a process left changed when it was killed while driving
    /// it.
    ///
    /// # Errors
    /// If they cannot be restored, or another process drives ksmd.
    fn recover(&mut self) -> Result<(), KsmError>;

    /// Opens a window of ksmd, replacing the open one.
    ///
    /// # Errors
    /// If ksmd cannot be driven.
    fn drive_ksm(&mut self, budget: Budget) -> Result<(), Failure>;

    /// Whether a window is open.
    fn drives_ksm(&self) -> bool;

    /// Returns the outcome of a window that has ended, once.
    fn take_outcome(&mut self) -> Option<Outcome>;

    /// Ends the open window, if there is one, and restores ksmd's settings.
    fn end_window(&mut self);

    /// Sets the number of pages in a hugetlb pool.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn resize_pool(&mut self, page_bytes: u64, pages: u64) -> Result<(), Failure>;
}

/// How the cost of guests is determined.
pub enum Costs<'a> {
    /// Walks the page tables of the guests that the filter selects, and of some others in turn;
    /// estimates the rest from their counters.
    Measured(&'a dyn Fn(&Guest) -> bool),
    /// Estimates all guests from their counters, for frequent inspections.
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

/// What the host reports about itself.
#[derive(Debug)]
pub struct Observed {
    /// Memory of the host.
    pub host: situation::Host,
    /// What the host does not report, and why.
    pub missing: Vec<String>,
}

/// The result of an inspection.
#[derive(Debug)]
pub(super) struct View {
    /// The host and its guests.
    pub(super) situation: Situation,
    /// What this host does not report, or denies to guests' processes.
    pub(super) missing: Vec<String>,
}

/// Selects the guests to measure.
pub(super) type Filter = Box<dyn Fn(&Guest) -> bool + Send>;

/// Selects no guest.
pub(super) fn none() -> Filter {
    Box::new(|_| false)
}

/// Inspects the hypervisors one after the other, for the guests with these names or all guests.
/// Returns the guests sorted by name, and what cannot be determined.
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
    /// Combines `observed` with the guests of the host at the time `now`.
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
