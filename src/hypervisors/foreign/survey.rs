//! Surveys guests of other programs from this process. It covers the part of their memory that the
//! kernel may merge, reads it through `/proc` and does not change it.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use memopt::hypervisor::{Answer, Findings, SurveyRequest, Surveyed};
use memopt::observe::{Sources, mergeable_areas};
use memopt::policy::Activity;
use memopt::situation::Chunk;
use memopt::survey::{Digests, Scan, Seed, Watch};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use vmm_core::memory::{HugeView, MemoryError, OwnPages, ProcessMemory};

use crate::survey::{Ended, Memory, ScanResult, Scanner};

/// The sender to the task that waits for the findings.
type Waiting = oneshot::Sender<Result<ScanResult, Ended>>;

/// Surveys process `pid`, in a thread of its own. Dropping the future cancels the survey.
///
/// # Errors
/// If the process is gone, may not be read, or has no mergeable memory.
pub(super) async fn survey(pid: u32, request: SurveyRequest) -> Result<Surveyed> {
    let areas = spawn_blocking(move || mergeable_areas(&Sources::system(), pid)).await??;
    ensure!(!areas.is_empty(), "it lets the kernel merge none of its memory");
    let memory = ProcessMemory::open(pid)?;
    let (waiting, receiver) = oneshot::channel();
    let work = move || {
        let memory = ForeignMemory { memory, areas, waiting: &waiting };
        let scanner = Scanner::new(memory, Arc::default(), request.cpu_share);
        let scan = Scan::new(Seed::new(request.seed), request.capacity(), request.bits);
        // KVM's dirty log is available only to the process that runs the guest.
        let activity = Activity::PageSampling;
        let found = scanner.run(scan, Watch::new(Seed::new(request.seed)), activity);
        // The receiver may be gone: then the survey was cancelled.
        let _unwanted = waiting.send(found);
    };
    let thread = std::thread::Builder::new().name("survey".to_owned()).spawn(work);
    thread.context("cannot start a thread for it")?;
    let panicked =
        "the thread that surveys it panicked, a bug in lighter: report it with the log of the node";
    match receiver.await.context(panicked)? {
        Ok(found) => {
            let digests = found.digests().clone();
            Ok(Surveyed { digests, findings: Box::new(Here(Arc::new(found))) })
        }
        Err(Ended::CalledOff) => bail!("cancelled"),
        Err(Ended::Failed(error)) => Err(error),
    }
}

/// The findings of a survey; they are kept in this process.
#[derive(Debug)]
struct Here(Arc<ScanResult>);

impl Findings for Here {
    fn chunks<'a>(&'a self, domain: &'a Digests) -> Answer<'a, Vec<Chunk>> {
        let (found, domain) = (Arc::clone(&self.0), domain.clone());
        // Only mergeable memory was surveyed.
        let chunks = move || found.chunks(&domain, |_| true).collect();
        Box::pin(async move { Ok(spawn_blocking(chunks).await?) })
    }
}

/// Memory of a guest that another program runs.
struct ForeignMemory<'a> {
    memory: ProcessMemory,
    areas: Vec<Range<u64>>,
    waiting: &'a Waiting,
}

impl Memory for ForeignMemory<'_> {
    fn areas(&self) -> Result<Vec<Range<u64>>, Ended> {
        Ok(self.areas.clone())
    }

    fn own_pages(&mut self, range: &Range<u64>) -> Result<Vec<OwnPages>, Ended> {
        if self.waiting.is_closed() {
            return Err(Ended::CalledOff);
        }
        Ok(self.memory.own_pages(range)?)
    }

    fn has_twins(&self, own: &[OwnPages]) -> Result<bool, MemoryError> {
        self.memory.has_twins(own)
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        self.memory.read(address, bytes)
    }

    fn view(&self) -> HugeView {
        self.memory.view()
    }
}
