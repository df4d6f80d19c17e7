//! Looks at guests that other programs run, by this process: at that part of their memory that the kernel may merge, which is read
//! through `/proc` and not changed.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use memopt::observe::{Sources, mergeable_areas};
use memopt::policy::Activity;
use memopt::survey::{Scan, Seed, Watch};
use tokio::sync::oneshot;
use vmm_core::memory::{HugeView, MemoryError, OwnPages, ProcessMemory};

use super::{BITS, Manner, capacity};
use crate::survey::{Ended, Found, Looker, Memory};

/// Whoever waits for what is found.
type Waiting = oneshot::Sender<Result<Found, Ended>>;

/// Looks at process `pid`, in a thread of its own. Given up by whoever dropped this.
///
/// # Errors
/// It is gone, may not be looked at, or lets the kernel merge nothing.
pub(super) async fn look(pid: u32, manner: Manner) -> Result<Found> {
    // KVM's log is for who runs the guest.
    let Manner { seed, cpu_share, activity: _ } = manner;
    let areas = tokio::task::block_in_place(|| mergeable_areas(&Sources::system(), pid))?;
    ensure!(!areas.is_empty(), "it lets the kernel merge none of its memory");
    let memory = ProcessMemory::open(pid)?;
    let (waiting, told) = oneshot::channel();
    let work = move || {
        let memory = ForeignMemory { memory, areas, waiting: &waiting };
        let looker = Looker::new(memory, Arc::default(), cpu_share);
        let scan = Scan::new(Seed::new(seed), capacity(), BITS);
        let found = looker.look(scan, Watch::new(Seed::new(seed)), Activity::PageSampling);
        // Nobody waits any more.
        let _unwanted = waiting.send(found);
    };
    let thread = std::thread::Builder::new().name("survey".to_owned()).spawn(work);
    thread.context("there is no thread for it")?;
    match told.await.context("the look broke down")? {
        Ok(found) => Ok(found),
        Err(Ended::CalledOff) => bail!("called off"),
        Err(Ended::Failed(error)) => Err(error),
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
