//! A device without KVM and without a thread, for the fuzz targets in `fuzz/`: its registers, its
//! backend and a guest's memory, put together as `mmio_device` does it.
//!
//! The driver is the fuzzer's: it writes registers and memory as it likes.

use std::any::Any;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::Signals;
use super::backend::Backend;
use super::balloon::SetBy;
use super::block::{BlockDevice, DiskContent};
use super::config::DeviceConfig;
use super::device::Device;
use super::error::DeviceError;
use super::interrupt::Interrupt;
use super::mmio_device::{DeviceState, RING_FEATURES};
use super::net;
use super::transport::{Effect, Transport};
use crate::devices::IrqLine;
use crate::error::Result;
use crate::memory::{GuestRam, MemoryConfig, RamLayout};

/// Turns of a device's work for one notification: it must be done long before.
const TURNS_MAX: usize = 100_000;

/// Events taken at once.
const EVENTS_MAX: usize = 16;

/// A device that is on, and a guest's memory.
#[derive(Debug)]
pub struct Bench {
    transport: Transport,
    backend: Backend,
    ram: Arc<GuestRam>,
    /// What the device watches, for edges; `None` when that is nothing.
    watch: Option<Epoll>,
    /// How far the device's clock is ahead.
    ahead: Duration,
}

impl Bench {
    /// The device of `config`, with `memory_bytes` of memory that holds nothing but zeros.
    ///
    /// # Errors
    /// There is no such device, or not so much memory.
    pub fn new(config: &DeviceConfig, memory_bytes: u64) -> Result<Self> {
        Self::of(config.create()?, memory_bytes)
    }

    /// A network device, and the end of its wire where its network is: a datagram is a frame with
    /// its header.
    ///
    /// # Errors
    /// The system gives no sockets, or not so much memory.
    pub fn with_network(memory_bytes: u64) -> Result<(Self, UnixDatagram)> {
        let (device, network) = net::on_wire().map_err(failed("net"))?;
        Ok((Self::of(Box::new(device), memory_bytes)?, network))
    }

    /// A device by which the guest has the address `cid`, and which programs find at `path`.
    ///
    /// # Errors
    /// There can be nothing at `path`, or not so much memory.
    pub fn with_sockets(cid: u32, path: &Path, memory_bytes: u64) -> Result<Self> {
        let mut device = DeviceConfig::Vsock { cid }.create()?;
        device.listen_at(path);
        Self::of(device, memory_bytes)
    }

    fn of(device: Box<dyn Device>, memory_bytes: u64) -> Result<Self> {
        let ram =
            Arc::new(GuestRam::new(RamLayout::new(memory_bytes)?, &MemoryConfig::default(), None)?);
        let signals = Arc::new(Signals::new(device.config()));
        let transport = Transport::new(
            device.kind(),
            device.features() | RING_FEATURES,
            &device.queue_sizes(),
            Arc::clone(&signals),
        );
        let name = device.kind().name();
        let interrupt = Interrupt::new(signals, IrqLine::unconnected());
        let mut backend = Backend::new(device, Arc::clone(&ram), interrupt);
        let watch = watch(backend.device()).map_err(failed(name))?;
        backend.device().take_over()?;
        backend.resume();
        Ok(Self { transport, backend, ram, watch, ahead: Duration::ZERO })
    }

    /// The guest's memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The driver reads registers.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        self.transport.read(offset, data);
    }

    /// The driver writes registers; what has to follow is done when this returns.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        match self.transport.write(offset, data) {
            Effect::None => return,
            Effect::Notify(queue) => self.backend.notify(queue),
            Effect::Activate => {
                let queues = self.transport.queues().to_vec();
                self.backend.activate(self.transport.features(), &queues);
            }
            Effect::Reset => self.backend.reset(),
            Effect::Abandon => self.backend.abandon(),
            Effect::ConfigWritten => self.backend.config_written(),
        }
        self.work();
    }

    /// Something has happened on the device's host, or `time` has passed.
    pub fn look(&mut self, time: Duration) {
        self.ahead += time;
        self.work();
    }

    /// Lets the device work until it is idle or waits.
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

    /// Tells the device which of what it watches has become readable; false when nothing has.
    fn pass_events(&mut self) -> bool {
        let Some(watch) = &self.watch else { return false };
        let mut events = [EpollEvent::default(); EVENTS_MAX];
        let count = watch.wait(0, &mut events).unwrap_or(0);
        events[..count].iter().for_each(|event| self.backend.ready(event.data() as usize));
        count > 0
    }

    /// As the thread does it: edges that came during the pause were not passed on.
    fn resume(&mut self) {
        self.backend.resume();
        (0..self.backend.device().watched().len()).for_each(|index| self.backend.ready(index));
        self.work();
    }

    /// The operator asks a balloon for the guest's statistics, and sets how large it shall be; a
    /// migration ends and another asks which pages are free.
    pub fn set_balloon(&mut self, pages: u32) {
        self.backend.on_balloon(|balloon, rings| {
            balloon.ask();
            balloon.set_target(pages, SetBy::Operator, rings);
            balloon.end_hints(rings);
            balloon.begin_hints(rings);
        });
        self.work();
    }

    /// The content of the disk, if this is one, for a copy of it while its driver is at work.
    pub fn disk_content(&mut self) -> Option<Arc<DiskContent>> {
        let device: &dyn Any = self.backend.device();
        device.downcast_ref().map(BlockDevice::content)
    }

    /// The guest is handed over to another host, and comes back as it was.
    ///
    /// # Errors
    /// Somebody else has what only one copy of the guest may have.
    pub fn leave_and_return(&mut self) -> Result<(), DeviceError> {
        self.backend.pause();
        self.backend.device().release();
        self.backend.device().take_over()?;
        self.resume();
        Ok(())
    }

    /// The state, of the paused device.
    ///
    /// # Errors
    /// It cannot be saved.
    pub fn save(&mut self) -> Result<DeviceState, DeviceError> {
        self.backend.pause();
        let state = DeviceState { backend: self.backend.save()?, transport: self.transport.save() };
        self.resume();
        Ok(state)
    }

    /// Looks at something while the device stands, and nothing is under way. What the driver has
    /// asked for goes on afterwards.
    pub fn while_paused<T>(&mut self, look: impl FnOnce() -> T) -> T {
        self.backend.pause();
        let seen = look();
        self.resume();
        seen
    }

    /// Replaces the state, as of a guest that has arrived, and goes on.
    ///
    /// # Errors
    /// A sentence, when the state is not possible; the device must not be used any more.
    pub fn load(&mut self, state: &DeviceState) -> Result<(), String> {
        self.backend.pause();
        self.transport.load(&state.transport)?;
        let queues = self.transport.queues().to_vec();
        let is_up = self.transport.is_active() && !state.transport.needs_reset;
        let driver = is_up.then_some((self.transport.features(), queues.as_slice()));
        self.backend.load(&state.backend, driver)?;
        self.resume();
        Ok(())
    }
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
