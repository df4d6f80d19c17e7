//! A device of the host as a function on its guest's bus.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::interrupts::Interrupts;
use super::view::{BARS, Bar, MsixPlaces, Place, View};
use super::windows;
use crate::devices::MsiRoutes;
use crate::pci::{CONFIG_BYTES, MSIX_ENTRY_BYTES, PciAddress};
use crate::sys::vfio::{Device, DeviceMemory, Region};

/// Number of the region that is the configuration space.
const CONFIG_REGION: u32 = 7;
/// First of KVM's memory slots for the memory of devices; RAM has a few before it.
const FIRST_MEMORY_SLOT: u32 = 64;
/// Most pieces of memory of a device.
const MEMORY_SLOTS: u32 = 16;
/// How often a reset is tried, and the time between two tries.
const RESET_TRIES: u32 = 50;
const RESET_INTERVAL: Duration = Duration::from_millis(20);

/// What connects a function to its VM.
#[derive(Debug, Clone)]
pub(super) struct Surroundings {
    pub(super) vm: Arc<VmFd>,
    pub(super) routes: Arc<MsiRoutes>,
    /// End of the guest's RAM.
    pub(super) ram_end: u64,
}

/// A device of the host as a function on its guest's bus; see the module.
#[derive(Debug)]
pub(crate) struct HostFunction {
    /// The device's address on the host.
    pub(super) address: PciAddress,
    pub(super) slot: usize,
    surroundings: Surroundings,
    /// Before `device`, whose interrupts and memory it has.
    inner: Mutex<Inner>,
    config: Region,
    bars: [Region; BARS],
    device: Device,
    /// Signalled when the host wants the device back.
    wanted_back: EventFd,
}

#[derive(Debug)]
struct Inner {
    view: View,
    interrupts: Interrupts,
    memory: Vec<Piece>,
}

/// A piece of a BAR that the guest reaches without us.
#[derive(Debug)]
struct Piece {
    bar: Bar,
    /// Offset in the BAR.
    offset: u64,
    memory: DeviceMemory,
    /// KVM's memory slot.
    slot: u32,
    /// Where the guest has it.
    gpa: Option<u64>,
    /// Where KVM would not have it.
    refused: Option<u64>,
}

impl HostFunction {
    /// Makes an open device a function in a free slot, which decodes no address yet.
    ///
    /// # Errors
    /// If a guest cannot have the device; the text says why.
    pub(super) fn new(
        (address, device): (PciAddress, Device),
        slot: usize,
        surroundings: Surroundings,
    ) -> Result<Self, String> {
        let failed = |what: &str, error: std::io::Error| format!("{what}: {error}");
        let (is_pci, resets) = device
            .is_pci_and_resets()
            .map_err(|error| failed("it says nothing of itself", error))?;
        if !is_pci {
            return Err("it is no PCI device".to_owned());
        }
        if !resets {
            return Err(
                "it cannot be reset, so that what one system has told it to do would go on \
                        in the memory of the next"
                    .to_owned(),
            );
        }
        let region = |index: u32| {
            device.region(index).map_err(|error| failed("it does not describe its BARs", error))
        };
        let config = region(CONFIG_REGION)?;
        let bars: Result<Vec<Region>, String> = (0..BARS as u32).map(region).collect();
        let bars: [Region; BARS] = bars?.try_into().unwrap_or_default();
        let mut host = [0; CONFIG_BYTES];
        device.read(&config, 0, &mut host);
        let view = View::new(&host, bars.each_ref().map(|region| region.bytes))?;
        let interrupts = Interrupts::new(slot, view.msix().vectors)
            .map_err(|error| failed("cannot make events for its interrupts", error))?;
        let memory = pieces(&device, &bars, &view, slot)
            .map_err(|error| failed("cannot map its memory", error))?;
        let wanted_back = EventFd::new(EFD_NONBLOCK)
            .map_err(|error| failed("cannot make an event for its return", error))?;
        if let Err(error) = device.signal_request(&wanted_back) {
            tracing::debug!(device = %address, %error, "the host cannot ask for a device back");
        }
        let inner = Mutex::new(Inner { view, interrupts, memory });
        Ok(Self { address, slot, surroundings, inner, config, bars, device, wanted_back })
    }

    /// Returns whether the host has asked for the device since the last call.
    pub(super) fn is_wanted_back(&self) -> bool {
        self.wanted_back.read().is_ok()
    }

    /// Handles a vCPU read at `address`; returns false if the function is not there.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let mut inner = self.inner();
        let Some((bar, offset)) = inner.find(address) else { return false };
        match msix_part(inner.view.msix(), bar.index, offset) {
            Some(Part::Table(offset)) => inner.interrupts.read_table(offset, data),
            Some(Part::Pending(offset)) => inner.interrupts.read_pending(offset, data),
            None => self.device.read(&self.bars[bar.index], offset, data),
        }
        true
    }

    /// Handles a vCPU write at `address`; returns false if the function is not there.
    pub(crate) fn write(&self, address: u64, data: &[u8]) -> bool {
        let mut inner = self.inner();
        let Some((bar, offset)) = inner.find(address) else { return false };
        match msix_part(inner.view.msix(), bar.index, offset) {
            Some(Part::Table(offset)) => {
                inner.interrupts.write_table(offset, data, &self.device, &self.surroundings);
            }
            Some(Part::Pending(_)) => {}
            None => self.device.write(&self.bars[bar.index], offset, data),
        }
        true
    }

    /// Handles a vCPU read of the configuration space.
    pub(crate) fn read_config(&self, offset: usize, data: &mut [u8]) {
        let own = |at: usize, data: &mut [u8]| self.device.read(&self.config, at as u64, data);
        self.inner().view.read(offset, data, own);
    }

    /// Handles a vCPU write of the configuration space.
    pub(crate) fn write_config(&self, offset: usize, data: &[u8]) {
        let own = |at: usize, data: &[u8]| self.device.write(&self.config, at as u64, data);
        let mut inner = self.inner();
        let before = inner.view.command();
        inner.view.write(offset, data, own);
        self.follow(&mut inner, before);
    }

    /// Has device, memory and interrupts follow the guest's view, where the device's command
    /// register was `before`. While the device decodes no memory, an access to what is mapped of it
    /// would fail, so the guest has that only in between.
    fn follow(&self, inner: &mut Inner, before: u16) {
        let command = inner.view.command();
        if command != before {
            self.hide_memory(inner);
            self.write_command(command);
        }
        self.follow_bars(inner);
        let control = inner.view.msix_control();
        if inner.interrupts.set_control(control, &self.device, &self.surroundings) {
            // MSI-X was turned off: see `stop`.
            self.write_command(command & !View::PIN_OFF);
            self.write_command(command);
        }
    }

    fn hide_memory(&self, inner: &mut Inner) {
        inner.memory.iter_mut().for_each(|piece| piece.hide(&self.surroundings.vm));
    }

    /// Writes the device's own command register.
    fn write_command(&self, command: u16) {
        self.device.write(&self.config, View::COMMAND, &command.to_le_bytes());
    }

    fn follow_bars(&self, inner: &mut Inner) {
        let Surroundings { vm, ram_end, .. } = &self.surroundings;
        let Inner { view, memory, .. } = inner;
        let place = |piece: &Piece| {
            let start = view.address(&piece.bar)?;
            let range = start..start.checked_add(piece.bar.bytes)?;
            windows::is_in_reach(&range, *ram_end).then_some(start + piece.offset)
        };
        let moved: Vec<_> = memory.iter_mut().filter(|piece| piece.gpa != place(piece)).collect();
        // All leave their places before one takes another's.
        for piece in moved {
            piece.hide(vm);
        }
        for piece in memory.iter_mut() {
            let place = place(piece);
            piece.show(vm, place);
        }
    }

    /// Returns the device's address on the host.
    pub(crate) fn address(&self) -> PciAddress {
        self.address
    }

    /// Returns the number of the function's slot.
    pub(crate) fn slot(&self) -> usize {
        self.slot
    }

    /// Takes the function from its driver and its addresses, and resets the device, which then
    /// interrupts no more and reaches no memory. A vCPU that is in the middle of an access may
    /// still turn it on again; its memory is the guest's until that vCPU is done.
    ///
    /// # Errors
    /// If the device cannot be reset: it must not be used any more.
    pub(crate) fn unplug(&self) -> io::Result<()> {
        let mut inner = self.inner();
        self.stop(&mut inner);
        let reset = self.reset();
        self.settle(&mut inner, &[]);
        reset
    }

    /// Gives a device that was reset the addresses that firmware would give it.
    pub(super) fn place(&self, addresses: &[(Bar, u64)]) {
        self.settle(&mut self.inner(), addresses);
    }

    /// Puts the view in the state after power-on, and has the device follow it, whatever it has.
    fn settle(&self, inner: &mut Inner, addresses: &[(Bar, u64)]) {
        inner.view.power_on(addresses);
        let unknown = !inner.view.command();
        self.follow(inner, unknown);
    }

    /// Takes the device's memory from the guest, and ends all that the device does on its own. Its
    /// interrupt pin, which the kernel connects again when MSI-X is turned off, stays off: the
    /// kernel acts only if that bit changes.
    fn stop(&self, inner: &mut Inner) {
        self.hide_memory(inner);
        inner.interrupts.reset(&self.device, &self.surroundings);
        self.write_command(0);
        self.write_command(View::PIN_OFF);
    }

    fn reset(&self) -> io::Result<()> {
        let mut tries = 0;
        loop {
            match self.device.reset() {
                // Another user of the device holds its lock.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && tries < RESET_TRIES => {
                    tries += 1;
                    std::thread::sleep(RESET_INTERVAL);
                }
                done => return done,
            }
        }
    }

    /// Returns the BARs of the function.
    pub(super) fn bars(&self) -> Vec<Bar> {
        self.inner().view.bars().to_vec()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Before the device's memory is unmapped, and its events are closed.
impl Drop for HostFunction {
    fn drop(&mut self) {
        let mut inner = self.inner();
        self.stop(&mut inner);
    }
}

impl Inner {
    /// Returns the BAR that an address is in, and the offset in it.
    fn find(&self, address: u64) -> Option<(Bar, u64)> {
        self.view.bars().iter().find_map(|bar| {
            let offset = address.checked_sub(self.view.address(bar)?)?;
            (offset < bar.bytes).then_some((*bar, offset))
        })
    }
}

impl Piece {
    fn hide(&mut self, vm: &VmFd) {
        if self.gpa.is_none() {
            return;
        }
        match self.memory.hide(vm, self.slot) {
            Ok(()) => self.gpa = None,
            Err(error) => tracing::error!(%error, "KVM keeps the memory of a device in its guest"),
        }
    }

    /// Shows the piece to the guest at `gpa`. Where KVM refuses that, each access comes to us.
    fn show(&mut self, vm: &VmFd, gpa: Option<u64>) {
        let is_new = |gpa: &u64| self.gpa.is_none() && self.refused != Some(*gpa);
        let Some(gpa) = gpa.filter(is_new) else { return };
        match self.memory.show(vm, self.slot, gpa) {
            Ok(()) => (self.gpa, self.refused) = (Some(gpa), None),
            Err(error) => {
                self.refused = Some(gpa);
                tracing::debug!(%error, "the memory of a device cannot be where its guest wants it");
            }
        }
    }
}

/// A part of a BAR that is kept here.
enum Part {
    /// The MSI-X table, with the offset in it.
    Table(usize),
    /// The pending bits, likewise.
    Pending(usize),
}

fn msix_part(msix: &MsixPlaces, bar: usize, offset: u64) -> Option<Part> {
    let within = |holes: &(Place, u64)| {
        let (place, bytes) = *holes;
        let at = offset.checked_sub(place.offset)?;
        (place.bar == bar && at < bytes).then_some(at as usize)
    };
    let [table, pending] = msix_holes(msix);
    within(&table).map(Part::Table).or_else(|| within(&pending).map(Part::Pending))
}

/// Returns the places of the MSI-X table and of the pending bits, with their bytes.
fn msix_holes(msix: &MsixPlaces) -> [(Place, u64); 2] {
    let vectors = msix.vectors as u64;
    [(msix.table, vectors * MSIX_ENTRY_BYTES as u64), (msix.pending, vectors.div_ceil(64) * 8)]
}

/// Maps what of the BARs a guest may reach without us.
fn pieces(
    device: &Device,
    regions: &[Region; BARS],
    view: &View,
    slot: usize,
) -> std::io::Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let first = FIRST_MEMORY_SLOT + slot as u32 * MEMORY_SLOTS;
    for bar in view.bars() {
        let region = &regions[bar.index];
        let holes = msix_holes(view.msix()).map(|(place, bytes)| match place.bar == bar.index {
            true => place.offset..place.offset + bytes,
            false => Range::default(),
        });
        for part in windows::without(&region.mappable, &holes) {
            let slot = first + pieces.len() as u32;
            if slot < first + MEMORY_SLOTS {
                let (memory, offset) = (device.map(region, &part)?, part.start);
                pieces.push(Piece { bar: *bar, offset, memory, slot, gpa: None, refused: None });
            }
        }
    }
    Ok(pieces)
}

/// Returns events that can be read without waiting.
pub(super) fn events(count: usize) -> std::io::Result<Vec<EventFd>> {
    (0..count).map(|_| EventFd::new(EFD_NONBLOCK)).collect()
}
