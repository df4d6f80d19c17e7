//! A virtual machine as a migration sees it, on either side: thin adapters from `vmm-core` to
//! `migrate`.

use std::sync::Arc;

use anyhow::{Context, Result};
use migrate::guest::{RefusalKind, THROTTLE_LEASE};
use migrate::memory::Region;
use migrate::protocol::codec::STATE_LIMIT;
use migrate::text::Blob;
use migrate::{
    DestinationGuest, GuestDescription, GuestError, HintProgress, MemoryLayout, Refusal,
    SourceGuest, Throttle, Throttled,
};
use uuid::Uuid;
use vmm_core::boot::BootRecord;
use vmm_core::memory::RamLayout;
use vmm_core::state::STATE_BYTES_MAX;
use vmm_core::{DiskContent, MachineKind, RunState, VcpuLimits, Vm, VmOptions, VmShape, VmState};

use super::console::Console;
use crate::api::types::GuestKind;
use crate::names::GuestName;
use crate::scrollback::Scrollback;

/// A guest's virtual machine, with the identity that it keeps wherever it runs.
#[derive(Debug)]
pub(crate) struct Machine {
    name: GuestName,
    uuid: Uuid,
    layout: MemoryLayout,
    scrollback: Arc<Scrollback>,
    vm: Vm,
}

impl Machine {
    /// Creates a machine that has not run and has no content.
    ///
    /// # Errors
    /// If this host cannot run a machine of this shape, or has no memory for it.
    pub(crate) fn create(
        name: GuestName,
        uuid: Uuid,
        shape: &VmShape,
        options: &VmOptions,
        console: &Console,
    ) -> Result<Self> {
        let vm = Vm::create_with(shape, options, console.output()?)?;
        Self::adopt(name, uuid, vm, console)
    }

    /// Wraps a machine that exists already and writes to `console`, such as one restored from a
    /// file.
    ///
    /// # Errors
    /// If its memory layout cannot be migrated.
    pub(crate) fn adopt(name: GuestName, uuid: Uuid, vm: Vm, console: &Console) -> Result<Self> {
        let layout = layout(&vm.shape().layout()?)?;
        vm.identify(uuid);
        let scrollback = Arc::clone(console.scrollback());
        Ok(Self { name, uuid, layout, scrollback, vm })
    }

    /// The machine itself.
    pub(crate) fn vm(&self) -> &Vm {
        &self.vm
    }

    /// The most recent output of the guest's serial console.
    pub(crate) fn scrollback(&self) -> &Arc<Scrollback> {
        &self.scrollback
    }

    /// The present configuration of the machine.
    pub(crate) fn shape(&self) -> Arc<VmShape> {
        self.vm.shape()
    }

    /// The machine's disks, with their indexes among its devices.
    pub(crate) fn disks(&self) -> impl Iterator<Item = (usize, Arc<DiskContent>)> {
        self.vm.disks().into_iter()
    }

    /// The guest's identity.
    pub(crate) fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// What the guest runs. The workload is recognized by its report in memory.
    pub(crate) fn kind(&self) -> GuestKind {
        match vmm_core::workload::Report::read(self.vm.ram().memory()) {
            Ok(_) => GuestKind::Workload,
            Err(_) if matches!(self.vm.boot_record(), Some(BootRecord::Firmware(_))) => {
                GuestKind::Firmware
            }
            Err(_) => GuestKind::Linux,
        }
    }

    /// Warns of more vCPUs than KVM recommends on this host, as QEMU does; the guest still runs.
    pub(crate) fn warn_of_vcpus(&self) {
        let limits = VcpuLimits::of_host().ok();
        if let Some(warning) = limits.and_then(|limits| limits.warning(self.shape().vcpus)) {
            tracing::warn!("{warning}");
        }
    }

    /// Encodes a saved state for the destination.
    fn encode(&self, saved: Result<VmState, vmm_core::Error>) -> Result<Vec<u8>, GuestError> {
        let state = saved.map_err(|error| self.failed("save the state", error))?;
        state.to_bytes().map_err(|error| self.failed("encode the state", error))
    }

    fn failed(&self, what: &str, error: impl std::fmt::Display) -> GuestError {
        GuestError::new(format!("cannot {what} of {}: {error}", self.name))
    }
}

/// Converts the memory layout from one crate's type to the other's: the crates do not depend on
/// each other.
fn layout(ram: &RamLayout) -> Result<MemoryLayout> {
    let regions =
        ram.regions().iter().map(|region| Region { base: region.gpa, bytes: region.bytes });
    MemoryLayout::new(regions.collect()).context("the guest's memory cannot be migrated")
}

/// The state of a guest with the most vCPUs fits into the message that carries it, with room for
/// the rest of the message.
const _: () = assert!(STATE_BYTES_MAX + (1 << 10) <= STATE_LIMIT);

/// Returns the shape in a description, and checks that the other fields of the description agree
/// with it.
///
/// # Errors
/// If the description is damaged, contradicts itself, or is of another version.
pub(crate) fn shape_of(guest: &GuestDescription) -> Result<VmShape, Refusal> {
    let refuse = |error: &dyn std::fmt::Display| {
        Refusal::new(RefusalKind::Guest, format!("{}: {error}", guest.name))
    };
    let shape = VmShape::from_bytes(&guest.config.0).map_err(|error| refuse(&error))?;
    let expected = shape.layout().map_err(|error| refuse(&error))?;
    let same_layout = layout(&expected).is_ok_and(|layout| layout == guest.layout);
    if !same_layout || u16::from(shape.vcpus) != guest.vcpus {
        return Err(refuse(&"its description contradicts itself"));
    }
    Ok(shape)
}

impl SourceGuest for Machine {
    fn describe(&self) -> GuestDescription {
        let shape = self.shape();
        GuestDescription {
            name: self.name.to_string(),
            uuid: self.uuid,
            layout: self.layout.clone(),
            vcpus: u16::from(shape.vcpus),
            // A shape that cannot be encoded is sent empty, and the destination refuses it.
            config: Blob(shape.to_bytes().unwrap_or_default()),
            disks: Vec::new(),
            has_pci: shape.machine == MachineKind::Pci,
        }
    }

    fn start_dirty_log(&self) -> Result<(), GuestError> {
        self.vm.start_dirty_log().map_err(|error| self.failed("start the dirty log", error))
    }

    fn gives_hints(&self) -> bool {
        // A guest without a balloon gives none.
        let hints = || self.vm.balloon().is_ok_and(|balloon| balloon.gives_hints);
        self.vm.run_state() == RunState::Running && hints()
    }

    fn begin_hints(&self) -> Result<(), GuestError> {
        self.vm.begin_hints().map_err(|error| self.failed("ask for the free pages", error))
    }

    fn hint_progress(&self) -> Result<HintProgress, GuestError> {
        let progress = self.vm.hint_progress();
        let progress = progress.map_err(|error| self.failed("hear of the free pages", error))?;
        Ok(HintProgress { pages: progress.pages, complete: progress.complete })
    }

    fn end_hints(&self, words: &mut [u64]) -> Result<(), GuestError> {
        let named = self.vm.end_hints();
        let named = named.map_err(|error| self.failed("take over the free pages", error))?;
        words.iter_mut().zip(named).for_each(|(word, named)| *word |= named);
        Ok(())
    }

    fn stop_dirty_log(&self) -> Result<(), GuestError> {
        self.vm.stop_dirty_log().map_err(|error| self.failed("stop the dirty log", error))
    }

    fn collect_dirty(&self, words: &mut [u64]) -> Result<(), GuestError> {
        self.vm.collect_dirty(words).map_err(|error| self.failed("read the dirty log", error))
    }

    fn rearm_dirty(&self, first_chunk: usize, words: &[u64]) -> Result<(), GuestError> {
        self.vm
            .rearm_dirty(first_chunk, words)
            .map_err(|error| self.failed("re-arm the dirty log", error))
    }

    fn copy_out(&self, chunk: usize, first_page: usize, buf: &mut [u8]) -> Result<(), GuestError> {
        self.vm
            .ram()
            .copy_out(chunk, first_page, buf)
            .map_err(|error| self.failed("read memory", error))
    }

    fn throttle(&self, throttle: Throttle) -> Result<Throttled, GuestError> {
        let set = self.vm.throttle(throttle.percent, THROTTLE_LEASE);
        let vmm_core::Throttled { vcpus, percent } =
            set.map_err(|error| self.failed("slow the guest down", error))?;
        Ok(Throttled { vcpus: vcpus.into(), percent })
    }

    fn pause(&self) -> Result<(), GuestError> {
        self.vm.pause().map_err(|error| self.failed("stop the vCPUs", error))
    }

    fn resume(&self) -> Result<(), GuestError> {
        self.vm.resume().map_err(|error| self.failed("start the vCPUs", error))
    }

    fn release(&self) -> Result<(), GuestError> {
        self.vm.release().map_err(|error| self.failed("give up the disks and networks", error))
    }

    fn is_running(&self) -> bool {
        self.vm.run_state() == RunState::Running
    }

    fn flush(&self) -> Result<(), GuestError> {
        let flushed = self.disks().try_for_each(|(_, disk)| disk.sync());
        flushed.map_err(|error| self.failed("flush the disks", error))
    }

    fn save_state(&self) -> Result<Vec<u8>, GuestError> {
        self.encode(self.vm.save_without_flush())
    }
}

impl DestinationGuest for Machine {
    fn copy_in(&self, chunk: usize, first_page: usize, data: &[u8]) -> Result<(), GuestError> {
        self.vm
            .ram()
            .copy_in(chunk, first_page, data)
            .map_err(|error| self.failed("write memory", error))
    }

    fn zero(&self, chunk: usize, mask: u64) -> Result<(), GuestError> {
        self.vm.ram().zero(chunk, mask).map_err(|error| self.failed("clear memory", error))
    }

    fn load_state(&self, state: &[u8]) -> Result<(), GuestError> {
        let state = VmState::from_bytes(state)
            .map_err(|error| self.failed("understand the state", error))?;
        self.vm.load_state(&state).map_err(|error| self.failed("load the state", error))
    }

    fn adopt(&self) -> Result<(), GuestError> {
        self.vm.take_over().map_err(|error| self.failed("take the disks and networks", error))
    }

    fn resume(&self) -> Result<(), GuestError> {
        SourceGuest::resume(self)
    }
}

/// A machine that is shared with a migration.
pub(crate) type SharedMachine = Arc<Machine>;

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        let shape = VmShape::for_host(64 << 20, 1).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let console = Console::log(folder.path().join("console.log"));
        let options = VmOptions::default();
        Machine::create("web".parse().unwrap(), Uuid::new_v4(), &shape, &options, &console).unwrap()
    }

    #[test]
    fn a_description_leads_to_the_same_shape() {
        let machine = machine();
        let description = machine.describe();
        description.check_bounds().unwrap();
        assert_eq!(shape_of(&description).unwrap(), *machine.shape());
        assert_eq!(description.layout.bytes(), 64 << 20);
    }

    #[test]
    fn a_description_that_contradicts_itself_is_refused() {
        let mut description = machine().describe();
        description.vcpus = 2;
        assert!(shape_of(&description).unwrap_err().to_string().contains("contradicts"));
        description.config.0.truncate(3);
        assert_eq!(shape_of(&description).unwrap_err().kind, RefusalKind::Guest);
    }

    #[test]
    fn pages_written_on_one_side_are_read_on_the_other() {
        let machine = machine();
        machine.copy_in(3, 2, &[7; 4096]).unwrap();
        let mut page = [0; 4096];
        machine.copy_out(3, 2, &mut page).unwrap();
        assert_eq!(page, [7; 4096]);
        let error = machine.copy_out(1 << 20, 0, &mut page).unwrap_err();
        assert!(error.to_string().contains("web"), "{error}");
    }
}
