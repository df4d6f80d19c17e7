//! A device without KVM and without a thread, for the fuzz targets in `fuzz/`: its registers, its
//! backend and a guest's memory, joined as `attached` does it.
//!
//! The fuzzer plays the driver: it writes registers and memory as it likes.

use std::any::Any;
use std::io;
use std::ops::Range;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::attached::{DeviceState, registers};
use super::backend::Backend;
use super::balloon::{BalloonDevice, SetBy};
use super::block::{BlockDevice, DiskContent};
use super::config::DeviceConfig;
use super::device::Device;
use super::error::DeviceError;
use super::interrupt::Interrupt;
use super::interrupt::Line;
use super::mmio::Mmio;
use super::net;
use super::pci::{FunctionState, Messages, PciFunction};
use super::registers::{Effect, Registers};
use super::transport::Transport;
use crate::devices::mmio::{SLOT_BYTES, Slot, WINDOW_START};
use crate::devices::{IrqLine, MachineKind};
use crate::error::Result;
use crate::memory::{GuestRam, MemoryConfig, RamLayout};

/// Most turns of a device's work for one notification; a correct device needs far fewer.
const TURNS_MAX: usize = 100_000;

/// Most events taken per wait.
const EVENTS_MAX: usize = 16;

/// A running device, and a guest's memory.
#[derive(Debug)]
pub struct Bench {
    transport: Box<dyn Transport>,
    backend: Backend,
    ram: Arc<GuestRam>,
    /// Edge-triggered watch on the device's file descriptors; `None` if it has none.
    watch: Option<Epoll>,
    /// How far the device's clock is ahead of the real one.
    ahead: Duration,
}

impl Bench {
    /// Creates the device of `config`, with `memory_bytes` of zeroed memory.
    ///
    /// # Errors
    /// If the device cannot be created, or the memory cannot be allocated.
    pub fn new(config: &DeviceConfig, memory_bytes: u64) -> Result<Self> {
        Self::of(config.create()?, MachineKind::Mmio, memory_bytes)
    }

    /// As [`Bench::new`], with the device as a PCI function.
    ///
    /// # Errors
    /// As [`Bench::new`].
    pub fn on_pci(config: &DeviceConfig, memory_bytes: u64) -> Result<Self> {
        Self::of(config.create()?, MachineKind::Pci, memory_bytes)
    }

    /// Creates a network device, and returns it with the network's end of its link: a datagram is a
    /// frame with its header.
    ///
    /// # Errors
    /// If the sockets cannot be created, or the memory cannot be allocated.
    pub fn with_network(machine: MachineKind, memory_bytes: u64) -> Result<(Self, UnixDatagram)> {
        let (device, network) = net::on_wire().map_err(failed("net"))?;
        Ok((Self::of(Box::new(device), machine, memory_bytes)?, network))
    }

    /// Creates a vsock device with which the guest has the address `cid`; programs connect at
    /// `path`.
    ///
    /// # Errors
    /// If nothing can be created at `path`, or the memory cannot be allocated.
    pub fn with_sockets(cid: u32, path: &Path, memory_bytes: u64) -> Result<Self> {
        let mut device = DeviceConfig::Vsock { cid }.create()?;
        device.listen_at(path);
        Self::of(device, MachineKind::Mmio, memory_bytes)
    }

    fn of(device: Box<dyn Device>, machine: MachineKind, memory_bytes: u64) -> Result<Self> {
        let ram =
            Arc::new(GuestRam::new(RamLayout::new(memory_bytes)?, &MemoryConfig::default(), None)?);
        let name = device.kind().name();
        let (registers, signals) = registers(&*device);
        let (transport, line) = connect(machine, registers).map_err(failed(name))?;
        let interrupt = Interrupt::new(signals, line);
        let mut backend = Backend::new(device, Arc::clone(&ram), interrupt);
        let watch = watch(backend.device()).map_err(failed(name))?;
        backend.device().take_over()?;
        backend.resume();
        Ok(Self { transport, backend, ram, watch, ahead: Duration::ZERO })
    }

    /// Returns the guest's memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Reads registers as the driver.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        self.transport.read(offset, data);
    }

    /// Reads the PCI configuration space as the driver.
    pub fn read_config(&self, offset: usize, data: &mut [u8]) {
        self.transport.read_config(offset, data);
    }

    /// Returns the addresses of the device's registers; `None` while it does not decode any.
    pub fn window(&self) -> Option<Range<u64>> {
        self.transport.window()
    }

    /// Writes registers as the driver; the effects are complete when this returns.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let effect = self.transport.write(offset, data);
        self.follow(effect);
    }

    /// Writes the PCI configuration space as the driver; the effects are complete when this
    /// returns.
    pub fn write_config(&mut self, offset: usize, data: &[u8]) {
        let effect = self.transport.write_config(offset, data);
        self.follow(effect);
    }

    fn follow(&mut self, effect: Effect) {
        match effect {
            Effect::None => return,
            Effect::Notify(queue) => self.backend.notify(queue),
            Effect::Activate => {
                let registers = self.transport.registers();
                let queues = registers.queues().to_vec();
                self.backend.activate(registers.features(), &queues);
            }
            Effect::Reset => self.backend.reset(),
            Effect::Abandon => self.backend.abandon(),
            Effect::ConfigWritten => self.backend.config_written(),
        }
        self.work();
    }

    /// Advances the device's clock by `time` and handles what has happened on its host.
    pub fn look(&mut self, time: Duration) {
        self.ahead += time;
        self.work();
    }

    /// Lets the device work until it is idle or waits for a time.
    fn work(&mut self) {
        let now = Instant::now() + self.ahead;
        for _ in 0..TURNS_MAX {
            let is_ready = self.pass_events();
            if !is_ready && !self.backend.idle_for(now).is_some_and(|wait| wait.is_zero()) {
                return;
            }
            self.backend.work(now);
        }
        unreachable!("the device works for ever on what does not change");
    }

    /// Reports readable file descriptors to the device; returns false if there are none.
    fn pass_events(&mut self) -> bool {
        let Some(watch) = &self.watch else { return false };
        let mut events = [EpollEvent::default(); EVENTS_MAX];
        let count = watch.wait(0, &mut events).unwrap_or(0);
        events[..count].iter().for_each(|event| self.backend.ready(event.data() as usize));
        count > 0
    }

    /// Does what the device's thread does on resume: edges that came during the pause were not
    /// reported.
    fn resume(&mut self) {
        self.backend.resume();
        (0..self.backend.device().watched().len()).for_each(|index| self.backend.ready(index));
        self.work();
    }

    /// Requests the guest's statistics and sets the balloon's target, as an operator does; then
    /// ends one migration's free-page hinting and begins another's.
    pub fn set_balloon(&mut self, pages: u32) {
        self.backend.on_device(|balloon: &mut BalloonDevice, rings| {
            balloon.ask();
            balloon.set_target(pages, SetBy::Operator, rings);
            balloon.end_hints(rings);
            balloon.begin_hints(rings);
        });
        self.work();
    }

    /// Returns the disk's content, if the device is a disk, to copy it while its driver is active.
    pub fn disk_content(&mut self) -> Option<Arc<DiskContent>> {
        let device: &dyn Any = self.backend.device();
        device.downcast_ref().map(BlockDevice::content)
    }

    /// Releases the device as for a migration to another host, then takes it back unchanged.
    ///
    /// # Errors
    /// If another process holds what only one copy of the guest may hold.
    pub fn leave_and_return(&mut self) -> Result<(), DeviceError> {
        self.backend.pause();
        self.backend.device().release();
        self.backend.device().take_over()?;
        self.resume();
        Ok(())
    }

    /// Pauses the device, returns its state and that of its PCI function, and resumes it.
    ///
    /// # Errors
    /// If the device cannot be saved.
    pub fn save(&mut self) -> Result<(DeviceState, Option<FunctionState>), DeviceError> {
        self.backend.pause();
        let transport = self.transport.registers().save();
        let state = DeviceState { backend: self.backend.save()?, transport };
        let function = self.transport.save();
        self.resume();
        Ok((state, function))
    }

    /// Calls `look` while the device is paused and no request is in flight; then resumes the
    /// driver's requests.
    pub fn while_paused<T>(&mut self, look: impl FnOnce() -> T) -> T {
        self.backend.pause();
        let seen = look();
        self.resume();
        seen
    }

    /// Replaces the state, as for a guest that has arrived, and resumes the device.
    ///
    /// # Errors
    /// If the state is impossible; the text says why. The device must not be used any more.
    pub fn load(
        &mut self,
        state: &DeviceState,
        function: Option<&FunctionState>,
    ) -> Result<(), String> {
        self.backend.pause();
        self.transport.registers_mut().load(&state.transport)?;
        if let Some(function) = function {
            self.transport.load(function)?;
        }
        let registers = self.transport.registers();
        let queues = registers.queues().to_vec();
        let is_up = registers.is_active() && !state.transport.needs_reset;
        let driver = is_up.then_some((registers.features(), queues.as_slice()));
        self.backend.load(&state.backend, driver)?;
        self.resume();
        Ok(())
    }
}

/// Connects a device to nothing, as the device in slot 0.
fn connect(
    machine: MachineKind,
    registers: Registers,
) -> io::Result<(Box<dyn Transport>, Arc<dyn Line>)> {
    Ok(match machine {
        MachineKind::Mmio => {
            let slot = Slot { address: WINDOW_START, bytes: SLOT_BYTES, gsi: 0 };
            (Box::new(Mmio::new(slot, registers)), Arc::new(IrqLine::unconnected()))
        }
        MachineKind::Pci => {
            let messages = Arc::new(Messages::new(registers.queues().len())?);
            (Box::new(PciFunction::new(0, registers, Arc::clone(&messages), None)), messages)
        }
    })
}

fn watch(device: &dyn Device) -> io::Result<Option<Epoll>> {
    let watched = device.watched();
    if watched.is_empty() {
        return Ok(None);
    }
    let epoll = Epoll::new()?;
    for (index, descriptor) in (0..).zip(watched) {
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, index);
        epoll.ctl(ControlOperation::Add, descriptor, event)?;
    }
    Ok(Some(epoll))
}

fn failed(device: &'static str) -> impl FnOnce(io::Error) -> DeviceError {
    move |cause| DeviceError::Start { device, cause }
}
