//! Events of the service, for metrics.

use std::fmt::Debug;
use std::time::Duration;

use crate::history::RunEnd;
use crate::ksm;
use crate::ledger::Ledger;
use crate::policy::Policy;
use crate::schedule::{Missed, Trigger};
use crate::situation::Situation;
use crate::step::Action;
use crate::verify::Outcome;

/// Receives the events of the service as they happen.
pub trait Observer: Debug + Send + Sync {
    /// Handles one event. Must not block, because the service waits for it.
    fn notice(&self, event: &Event<'_>);
}

/// An event of the service.
#[derive(Debug)]
pub enum Event<'a> {
    /// The service started. Its history has a successful run that ended at this time, in Unix
    /// seconds.
    LastSuccess(u64),
    /// The host and all guests were inspected.
    Inspected {
        /// The result of the inspection.
        situation: &'a Situation,
        /// The ledger after it.
        ledger: &'a Ledger,
        /// The policy that was applied.
        policy: &'a Policy,
    },
    /// The host and the guests could not be inspected.
    InspectionFailed,
    /// A plan was made.
    Planned,
    /// A run began.
    RunBegan(&'a Trigger),
    /// A run was requested or due, but could not begin.
    RunNotBegun(&'a Trigger),
    /// A run ended.
    RunEnded {
        /// What started the run.
        trigger: &'a Trigger,
        /// The reason why it ended.
        end: RunEnd,
        /// Duration of the run.
        took: Duration,
    },
    /// A step was executed.
    StepDone(&'a Action),
    /// A step could not be executed.
    StepFailed(&'a Action),
    /// The outcome of a step was determined.
    Verified(&'a Outcome),
    /// The pages of this many guests were surveyed.
    Surveyed(usize),
    /// The pages of this many guests could not be surveyed.
    SurveysFailed(usize),
    /// A guest got memory back outside of any run.
    Relieved,
    /// A guest should have got memory back outside of any run, but the step failed.
    ReliefFailed,
    /// `lighter.toml` has changed, and its schedules were replaced.
    SchedulesReplaced,
    /// A schedule did not run when it was due.
    Missed(&'a Missed),
    /// A window of ksmd ended; the reason is absent when ksmd could no longer be driven.
    WindowEnded(Option<ksm::End>),
    /// The service panicked, and is restarted.
    Restarted,
}
