//! Looks at the guest's pages, in a thread that gives way to everybody else: what merging them would bring, and which are written.
//!
//! Three passes over the chunks of 2 MiB: all pages once, for their contents; then a few of each chunk twice, a moment apart, for
//! what is written ([`Watch`]). KVM's dirty log would tell more, but splits the guest's huge pages as long as it is on. Only pages
//! that are there are read: reading another would map it.

mod looker;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use memopt::survey::{Digests, Scan, Scanned, Seed, Watch};
use vmm_core::memory::{GuestRam, HugeView};

use looker::Looker;

use super::process::GuestProcess;
use crate::api::survey::{
    CAPACITY_MAX, ChunkRow, SurveyRequest, SurveyState, SurveyStatus, SurveyedMemory,
};
use crate::api::{ApiError, Reason};

/// Bytes of a chunk.
const CHUNK_BYTES: u64 = 2 << 20;

/// The looks at a guest: one at a time, and what the last one found.
#[derive(Debug, Default)]
pub(super) struct Surveys {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    None,
    Running(Arc<Progress>),
    Done(Arc<Progress>, Arc<Found>),
    Failed(Arc<Progress>, String),
}

#[derive(Debug, Default)]
struct Progress {
    pages: AtomicU64,
    cpu_ns: AtomicU64,
}

/// What a look found.
#[derive(Debug)]
struct Found {
    scanned: Scanned,
    watch: Watch,
    mapped: BTreeMap<u32, Mapped>,
    view: HugeView,
    ended: Instant,
}

/// How a chunk is mapped, in pages.
#[derive(Debug, Clone, Copy, Default)]
struct Mapped {
    huge_pages: u16,
    template_pages: u16,
}

impl Surveys {
    /// Begins to look.
    ///
    /// # Errors
    /// The request is no sensible one, somebody looks already, or there is no thread for it.
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
        if !(0.01..=1.0).contains(&request.cpu_share) {
            return bad("a look takes a share of 0.01 to 1 of a CPU".to_owned());
        }
        let mut state = self.state();
        if matches!(*state, State::Running(_)) {
            let text = "somebody looks at the guest's pages already: wait for the end of that";
            return Err(ApiError::new(Reason::WrongState, text));
        }
        let progress = Arc::new(Progress::default());
        let looker = Looker::new(process, &progress, request.cpu_share);
        let seed = Seed::new(request.seed);
        let scan = Scan::new(seed, capacity, request.bits);
        let work = move || looker.finish(scan, Watch::new(seed));
        std::thread::Builder::new()
            .name("survey".to_owned())
            .spawn(work)
            .map_err(|error| ApiError::failed(anyhow::Error::from(error).context("no thread")))?;
        *state = State::Running(progress);
        Ok(())
    }

    /// How it stands, with what was found.
    pub(super) fn status(&self) -> SurveyStatus {
        let (state, progress, error, digests) = match &*self.state() {
            State::None => (SurveyState::None, None, None, None),
            State::Running(progress) => {
                (SurveyState::Running, Some(Arc::clone(progress)), None, None)
            }
            State::Done(progress, found) => {
                let digests = found.scanned.digests.clone();
                (SurveyState::Done, Some(Arc::clone(progress)), None, Some(digests))
            }
            State::Failed(progress, error) => {
                (SurveyState::Failed, Some(Arc::clone(progress)), Some(error.clone()), None)
            }
        };
        let progress = progress.unwrap_or_default();
        SurveyStatus {
            state,
            pages: progress.pages.load(Ordering::Relaxed),
            cpu_ms: progress.cpu_ns.load(Ordering::Relaxed) / 1_000_000,
            error,
            digests,
        }
    }

    /// What was found, chunk by chunk, in the light of what all guests of the `domain` have.
    ///
    /// # Errors
    /// Nothing is found yet, or the table is of another domain.
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
        if !found.scanned.digests.is_comparable(domain) {
            let text = "the table is of another merge domain, or of an earlier look";
            return Err(ApiError::new(Reason::BadRequest, text));
        }
        let chunks = found.scanned.chunks(domain).into_iter().map(|mut chunk| {
            let mapped = found.mapped.get(&chunk.index).copied().unwrap_or_default();
            let written = found.watch.written_pages(chunk.index, chunk.present_pages);
            // What nobody has seen standing still does not stand still.
            chunk.written_pages = written.unwrap_or(chunk.present_pages);
            chunk.template_pages = mapped.template_pages;
            chunk.is_huge = mapped.huge_pages * 2 > chunk.present_pages;
            chunk.is_mergeable = ram.is_marked(u64::from(chunk.index) * CHUNK_BYTES);
            ChunkRow::from(chunk)
        });
        Ok(SurveyedMemory {
            age_ms: u64::try_from(found.ended.elapsed().as_millis()).unwrap_or(u64::MAX),
            tells_huge_pages: found.view == HugeView::Told,
            chunks: chunks.collect(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
