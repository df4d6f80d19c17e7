//! This guest's own memory, as a survey reads it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use vmm_core::REARMED_CHUNKS_MAX;
use vmm_core::memory::{HugeView, MemoryError, OwnPages, PageMap};

use crate::guest::machine::SharedMachine;
use crate::guest::process::{GuestProcess, Occupation};
use crate::guest::treatment::YIELD_PAUSE;
use crate::survey::{Ended, Memory};

/// The memory of the guest of this process.
pub(super) struct OwnMemory {
    process: Weak<GuestProcess>,
    map: PageMap,
    /// Held for one chunk at most: a process that ends must not wait for a survey that sleeps.
    machine: Option<SharedMachine>,
}

impl OwnMemory {
    /// The memory of the guest of `process`, which is this process, with the page tables in `map`.
    pub(super) fn new(process: &Arc<GuestProcess>, map: PageMap) -> Self {
        Self { process: Arc::downgrade(process), map, machine: None }
    }

    /// Returns the machine, as long as nothing else starts with it.
    fn machine(&self) -> Result<SharedMachine, Ended> {
        self.while_free(|machine| Ok(SharedMachine::clone(machine)))
    }

    /// Runs `body` on the machine while nothing else can start with it.
    fn while_free<T>(
        &self,
        body: impl FnOnce(&SharedMachine) -> vmm_core::Result<T>,
    ) -> Result<T, Ended> {
        let process = self.process.upgrade().ok_or(Ended::CalledOff)?;
        let occupation = process.occupation();
        let is_occupied = match &*occupation {
            Occupation::None => false,
            Occupation::Arriving(arrival) => !arrival.has_arrived(),
            Occupation::Saving(_)
            | Occupation::Saved(_)
            | Occupation::Estimating
            | Occupation::Leaving(_) => true,
        };
        let is_over = is_occupied || process.is_ending() || process.surveys().is_called_off();
        let machine = process.machine().filter(|_| !is_over);
        body(machine.ok_or(Ended::CalledOff)?).map_err(|error| Ended::Failed(error.into()))
    }

    /// Counts the pages that are written in each chunk while the log is on: for `time`, and a
    /// little longer for the chunks that are armed first.
    fn logged(&self, time: Duration) -> Result<BTreeMap<u32, u16>, Ended> {
        let all = self.while_free(|machine| {
            machine.vm().start_dirty_log()?;
            collect(machine)
        })?;
        // At first every page counts as written.
        for (index, piece) in all.chunks(REARMED_CHUNKS_MAX).enumerate() {
            let first = index * REARMED_CHUNKS_MAX;
            self.while_free(|machine| machine.vm().rearm_dirty(first, piece))?;
            thread::sleep(YIELD_PAUSE);
        }
        thread::sleep(time);
        self.while_free(|machine| {
            let words = collect(machine)?;
            Ok(machine.vm().ram().layout().pages_by_2m(&words))
        })
    }

    /// Stops the dirty log. If the survey was cancelled, the canceller has stopped it, and may have
    /// started another one.
    fn stop_logging(&self) {
        if let Err(Ended::Failed(error)) = self.while_free(|machine| machine.vm().stop_dirty_log())
        {
            tracing::warn!(%error, "KVM keeps logging which pages the guest writes, which slows the guest down");
        }
    }

    /// Returns the machine that is held.
    fn held(&self, gpa: u64, len: usize) -> Result<&SharedMachine, MemoryError> {
        self.machine.as_ref().ok_or(MemoryError::NoSuchAddress { gpa, len })
    }
}

impl Memory for OwnMemory {
    fn areas(&self) -> Result<Vec<Range<u64>>, Ended> {
        let machine = self.machine()?;
        let regions = machine.vm().ram().layout().regions().iter();
        Ok(regions.map(|region| region.gpa..region.gpa + region.bytes).collect())
    }

    fn own_pages(&mut self, range: &Range<u64>) -> Result<Vec<OwnPages>, Ended> {
        let machine = self.machine.insert(self.machine()?);
        Ok(self.map.own_pages(machine.vm().ram(), range)?)
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        self.held(address, bytes.len())?.vm().ram().read(address, bytes)
    }

    fn read_template(&self, address: u64, bytes: &mut [u8]) -> Result<bool, MemoryError> {
        let machine = self.held(address, bytes.len())?;
        let ram = machine.vm().ram();
        Ok(ram.is_from_template() && ram.read_template(address, bytes)?)
    }

    fn log_writes(&mut self, time: Duration) -> Result<Option<BTreeMap<u32, u16>>, Ended> {
        let logged = self.logged(time);
        self.stop_logging();
        match logged {
            Ok(written) => Ok(Some(written)),
            Err(Ended::Failed(error)) => {
                tracing::warn!(
                    "KVM does not log what the guest writes: samples are compared instead: {error:#}"
                );
                Ok(None)
            }
            Err(ended) => Err(ended),
        }
    }

    fn let_go(&mut self) {
        self.machine = None;
    }

    fn view(&self) -> HugeView {
        self.map.view()
    }
}

/// Returns a word for each chunk of 256 KiB, with a bit for each page that was written.
fn collect(machine: &SharedMachine) -> vmm_core::Result<Vec<u64>> {
    let mut words = vec![0; machine.vm().ram().chunks()];
    machine.vm().collect_dirty(&mut words)?;
    Ok(words)
}
