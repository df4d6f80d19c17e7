//! This guest's own memory, as it is looked at.

use std::ops::Range;
use std::sync::{Arc, Weak};

use vmm_core::memory::{HugeView, MemoryError, OwnPages, PageMap};

use crate::guest::machine::SharedMachine;
use crate::guest::process::{GuestProcess, Occupation};
use crate::survey::{Ended, Memory};

/// The memory of the guest of this process.
pub(super) struct OwnMemory {
    process: Weak<GuestProcess>,
    map: PageMap,
    /// Held no longer than for a chunk: a process that ends waits for nobody who rests.
    machine: Option<SharedMachine>,
}

impl OwnMemory {
    /// That of the guest of `process`, which is this one, with the page tables in `map`.
    pub(super) fn new(process: &Arc<GuestProcess>, map: PageMap) -> Self {
        Self { process: Arc::downgrade(process), map, machine: None }
    }

    /// The machine, as long as nothing else is to be done with it.
    fn machine(&self) -> Result<SharedMachine, Ended> {
        let process = self.process.upgrade().ok_or(Ended::CalledOff)?;
        let is_free = match &*process.occupation() {
            Occupation::None => true,
            Occupation::Arriving(arrival) => arrival.has_arrived(),
            Occupation::Saving(_) | Occupation::Leaving(_) => false,
        };
        let machine = process.machine().filter(|_| is_free && !process.is_ending());
        machine.cloned().ok_or(Ended::CalledOff)
    }

    /// The one that is held.
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

    fn let_go(&mut self) {
        self.machine = None;
    }

    fn view(&self) -> HugeView {
        self.map.view()
    }
}
