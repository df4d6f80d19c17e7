//! What happens in the service, to be counted.

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

/// Told what happens, as it happens.
pub trait Observer: Debug + Send + Sync {
    /// This has happened. Nothing waits for long here.
    fn notice(&self, event: &Event<'_>);
}

/// One thing that has happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// The service begins; its history tells of a run that did its work, at this time in Unix
    /// seconds.
    LastSuccess(u64),
    /// The host and all guests were inspected.
    Inspected {
        /// What was found.
        situation: &'a Situation,
        /// What the ledger has of it.
        ledger: &'a Ledger,
        /// By which it was.
        policy: &'a Policy,
    },
    /// They could not be.
    InspectionFailed,
    /// A plan was made.
    Planned,
    /// A run began.
    RunBegan(&'a Trigger),
    /// A run was wanted or due, and could not begin.
    RunNotBegun(&'a Trigger),
    /// A run ended.
    RunEnded {
        /// What it was begun by.
        trigger: &'a Trigger,
        /// How it ended.
        end: RunEnd,
        /// How long it took.
        took: Duration,
    },
    /// A step was done.
    StepDone(&'a Action),
    /// A step could not be done.
    StepFailed(&'a Action),
    /// A step was checked.
    Verified(&'a Outcome),
    /// The pages of so many guests were surveyed.
    Surveyed(usize),
    /// Those of so many were to be, and were not.
    SurveysFailed(usize),
    /// A guest got memory back, outside of any run.
    Relieved,
    /// It should have, and could not.
    ReliefFailed,
    /// `lighter.toml` has other schedules.
    SchedulesReplaced,
    /// A schedule did not run when it was due.
    Missed(&'a Missed),
    /// A window of ksmd ended; absent when ksmd could not be driven any more.
    WindowEnded(Option<ksm::End>),
    /// The service panicked, and is restarted.
    Restarted,
}
