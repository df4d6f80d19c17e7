//! Surveys of this guest's pages: one at a time, and the findings of the last one.

mod memory;

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memopt::hypervisor::{CAPACITY_MAX, SurveyRequest};
use memopt::survey::{BITS_MAX, Digests, Scan, Seed, Watch};
use vmm_core::memory::{GuestRam, PageMap};

use memory::OwnMemory;

use super::machine::SharedMachine;
use super::process::GuestProcess;
use crate::api::survey::{ChunkRow, SurveyState, SurveyStatus, SurveyedMemory};
use crate::api::{ApiError, Reason};
use crate::survey::{Ended, Progress, ScanResult, Scanner};

/// The surveys of a guest: one at a time, and the findings of the last one.
#[derive(Debug, Default)]
pub(super) struct Surveys {
    state: Mutex<State>,
    /// Whether something else has started with the guest since the last survey began.
    is_called_off: AtomicBool,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    None,
    Running(Arc<Progress>),
    Done(Arc<Progress>, Arc<ScanResult>),
    Failed(Arc<Progress>, String),
}

impl Surveys {
    /// Starts a survey.
    ///
    /// # Errors
    /// If the request is invalid, a survey is running already, or no thread can be started.
    pub(super) fn begin(
        &self,
        process: &Arc<GuestProcess>,
        request: &SurveyRequest,
    ) -> Result<(), ApiError> {
        let bad = |text: String| Err(ApiError::new(Reason::BadRequest, text));
        let capacity = usize::try_from(request.capacity).ok().and_then(NonZeroUsize::new);
        let Some(capacity) = capacity.filter(|_| request.capacity <= CAPACITY_MAX) else {
            return bad(format!("a table keeps 1 to {CAPACITY_MAX} contents"));
        };
        if request.bits > BITS_MAX {
            return bad(format!("one content in 2^0 to 2^{BITS_MAX} is kept"));
        }
        if !(0.01..=1.0).contains(&request.cpu_share) {
            return bad("a survey takes a share of 0.01 to 1 of a CPU".to_owned());
        }
        let mut state = self.state();
        if matches!(*state, State::Running(_)) {
            let text = "a survey of the guest's pages is under way: wait for its end";
            return Err(ApiError::new(Reason::WrongState, text));
        }
        let map = PageMap::open().map_err(ApiError::failed)?;
        self.is_called_off.store(false, Ordering::Release);
        let progress = Arc::new(Progress::default());
        let memory = OwnMemory::new(process, map);
        let scanner = Scanner::new(memory, Arc::clone(&progress), request.cpu_share);
        let seed = Seed::new(request.seed);
        let scan = Scan::new(seed, capacity, request.bits);
        let (process, shared) = (Arc::downgrade(process), Arc::clone(&progress));
        let activity = request.activity;
        let work = move || {
            let state = State::after(shared, scanner.run(scan, Watch::new(seed), activity));
            if let Some(process) = process.upgrade() {
                *process.surveys().state() = state;
            }
        };
        std::thread::Builder::new()
            .name("survey".to_owned())
            .spawn(work)
            .map_err(|error| ApiError::failed(anyhow::Error::from(error).context("no thread")))?;
        *state = State::Running(progress);
        Ok(())
    }

    /// Cancels a survey that may be running, because something else starts with `machine`, whose
    /// process is occupied with that by now. Stops the dirty log.
    pub(super) fn call_off(&self, machine: &SharedMachine) {
        self.is_called_off.store(true, Ordering::Release);
        if let Err(error) = machine.vm().stop_dirty_log() {
            tracing::warn!(%error, "the dirty log of a survey cannot be stopped, which makes the guest slower");
        }
    }

    /// Whether the last survey was cancelled in that way.
    fn is_called_off(&self) -> bool {
        self.is_called_off.load(Ordering::Acquire)
    }

    /// State of the survey, with its findings.
    pub(super) fn status(&self) -> SurveyStatus {
        let (state, progress, error, digests) = match &*self.state() {
            State::None => (SurveyState::None, None, None, None),
            State::Running(progress) => {
                (SurveyState::Running, Some(Arc::clone(progress)), None, None)
            }
            State::Done(progress, found) => {
                let digests = found.digests().clone();
                (SurveyState::Done, Some(Arc::clone(progress)), None, Some(digests))
            }
            State::Failed(progress, error) => {
                (SurveyState::Failed, Some(Arc::clone(progress)), Some(error.clone()), None)
            }
        };
        let progress = progress.unwrap_or_default();
        SurveyStatus { state, pages: progress.pages(), cpu_ms: progress.cpu_ms(), error, digests }
    }

    /// Returns the findings for each chunk, given the contents of all guests of the `domain`.
    ///
    /// # Errors
    /// If there are no findings yet, or the table is of another domain.
    pub(super) fn chunks(
        &self,
        ram: &GuestRam,
        domain: &Digests,
    ) -> Result<SurveyedMemory, ApiError> {
        let found = match &*self.state() {
            State::Done(_, found) => Arc::clone(found),
            State::None | State::Running(_) | State::Failed(..) => {
                let text =
                    "there are no findings: POST /v1/guest/survey, and wait until it is done";
                return Err(ApiError::new(Reason::WrongState, text));
            }
        };
        if !found.digests().is_comparable(domain) {
            let text = "the table is of another merge domain, or of an earlier survey";
            return Err(ApiError::new(Reason::BadRequest, text));
        }
        let chunks = found.chunks(domain, |gpa| ram.is_marked(gpa));
        Ok(SurveyedMemory {
            age_ms: found.age_ms(),
            reports_huge_pages: found.reports_huge_pages(),
            chunks: chunks.map(ChunkRow::from).collect(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The state after a survey has ended.
    fn after(progress: Arc<Progress>, outcome: Result<ScanResult, Ended>) -> Self {
        match outcome {
            Ok(found) => Self::Done(progress, Arc::new(found)),
            Err(Ended::CalledOff) => {
                let text = "cancelled: the guest is migrated, saved, or ended";
                Self::Failed(progress, text.to_owned())
            }
            Err(Ended::Failed(error)) => Self::Failed(progress, format!("{error:#}")),
        }
    }
}
