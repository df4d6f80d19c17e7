//! A device in its slot: the registers that the vCPUs access, and the device's thread behind them.

use std::any::Any;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Signals;
use super::backend::{Backend, BackendState};
use super::block::{BlockDevice, DiskContent};
use super::device::{Device, DeviceKind, KernelAccess, Rings};
use super::error::DeviceError;
use super::interrupt::Interrupt;
use super::net::{NetDevice, NetMeter};
use super::pci::FunctionState;
use super::registers::{Effect, QUEUES_MAX, Registers, TransportState};
use super::transport::{Connector, Transport};
use super::worker::Worker;
use crate::error::Result;
use crate::memory::GuestRam;

/// Features of the rings, which every device offers.
const RING_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// Saved state of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// Registers through which the driver controls the device.
    pub transport: TransportState,
    /// The queues and the device behind the registers.
    pub backend: BackendState,
}

/// A device in its slot; see the module.
#[derive(Debug)]
pub(crate) struct Attached {
    slot: usize,
    kind: DeviceKind,
    /// Locked until the effects of a write are complete, so that no second vCPU sees them half
    /// done.
    transport: Mutex<Box<dyn Transport>>,
    window: Window,
    kicks: Vec<EventFd>,
    worker: Worker,
    /// Whether the host's kernel may serve it.
    is_offloaded: bool,
    /// The content of a disk, for copying it.
    content: Option<Arc<DiskContent>>,
    /// The counters of a network device.
    meter: Option<Arc<NetMeter>>,
    /// The state after power-on.
    pristine: (DeviceState, Option<FunctionState>),
}

impl Attached {
    /// Attaches `device` to a slot of its guest, paused. With `offload`, the host's kernel serves
    /// it where it can.
    ///
    /// # Errors
    /// [`DeviceError::Start`]; or if KVM rejects an eventfd.
    pub(crate) fn new(
        connector: &dyn Connector,
        slot: usize,
        mut device: Box<dyn Device>,
        ram: &Arc<GuestRam>,
        offload: bool,
    ) -> Result<Self> {
        let kind = device.kind();
        let known: &dyn Any = &*device;
        let content = known.downcast_ref().map(BlockDevice::content);
        let meter = known.downcast_ref().map(NetDevice::meter);
        let failed = |cause| DeviceError::Start { device: kind.name(), cause };
        let (registers, signals) = registers(&*device);
        let count = registers.queues().len();
        let kicks: std::io::Result<Vec<_>> =
            (0..count).map(|_| EventFd::new(EFD_NONBLOCK)).collect();
        let kicks = kicks.map_err(failed)?;
        let (transport, line) = connector.connect(slot, registers, &kicks)?;
        let is_offloaded =
            offload && device.offload(&KernelAccess { ram, kicks: &kicks, line: &line });
        let backend = Backend::new(device, Arc::clone(ram), Interrupt::new(signals, line));
        let copies: std::io::Result<Vec<EventFd>> = kicks.iter().map(EventFd::try_clone).collect();
        let worker = Worker::start(backend, copies.map_err(failed)?)?;
        let window = Window::of(&*transport);
        let pristine = saved(&worker, &*transport)?;
        let transport = Mutex::new(transport);
        Ok(Self {
            slot,
            kind,
            transport,
            window,
            kicks,
            worker,
            is_offloaded,
            content,
            meter,
            pristine,
        })
    }

    /// Returns the number of the device's slot.
    pub(crate) fn slot(&self) -> usize {
        self.slot
    }

    /// Returns the content of the device's disk, if it is one with a file or device of the host.
    pub(crate) fn content(&self) -> Option<&Arc<DiskContent>> {
        self.content.as_ref()
    }

    /// Returns the counters of the device, if it is a network device.
    pub(crate) fn meter(&self) -> Option<&NetMeter> {
        self.meter.as_deref()
    }

    /// Returns whether the device is the balloon.
    pub(crate) fn is_balloon(&self) -> bool {
        self.kind == DeviceKind::Balloon
    }

    /// Returns whether the guest may let go of the device: disks and network devices.
    pub(crate) fn may_leave(&self) -> bool {
        self.content.is_some() || self.meter.is_some()
    }

    /// Has the device decode no address until the guest gives it one.
    pub(crate) fn unmap(&self) {
        let mut transport = self.transport();
        transport.unmap();
        self.window.follow(&**transport);
    }

    /// Takes the device from its driver, as a reset does, and from its addresses: no request is in
    /// flight from then on.
    pub(crate) fn unplug(&self) {
        let mut transport = self.transport();
        let effect = transport.registers_mut().write_status(0);
        self.follow(&**transport, effect);
        transport.unmap();
        self.window.follow(&**transport);
    }

    /// Ends the use of a device that its guest has let go of: what was written is made durable, and
    /// what only one copy of the guest may hold is released.
    ///
    /// # Errors
    /// If it cannot be made durable, or the device's thread has ended.
    pub(crate) fn leave(self) -> Result<(), DeviceError> {
        let settled = self.pause().and_then(|()| self.settle());
        let released = self.release();
        settled.and(released)
    }

    /// Returns the state after power-on.
    pub(crate) fn pristine(&self) -> &(DeviceState, Option<FunctionState>) {
        &self.pristine
    }

    /// Returns the offset of `address` in the device's window of memory, if it is there.
    pub(crate) fn offset_of(&self, address: u64) -> Option<u64> {
        self.window.offset_of(address)
    }

    /// Handles a vCPU read of registers.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        self.transport().read(offset, data);
    }

    /// Handles a vCPU read of the PCI configuration space.
    pub(crate) fn read_config(&self, offset: usize, data: &mut [u8]) {
        self.transport().read_config(offset, data);
    }

    /// Handles a vCPU write to registers. Returns once the effects are complete, except for work on
    /// queues.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        let mut transport = self.transport();
        let effect = transport.write(offset, data);
        self.follow(&**transport, effect);
    }

    /// Handles a vCPU write to the PCI configuration space, as [`Attached::write`].
    pub(crate) fn write_config(&self, offset: usize, data: &[u8]) {
        let mut transport = self.transport();
        let effect = transport.write_config(offset, data);
        self.window.follow(&**transport);
        self.follow(&**transport, effect);
    }

    fn follow(&self, transport: &dyn Transport, effect: Effect) {
        let done = match effect {
            Effect::None => Ok(()),
            Effect::Notify(queue) => {
                // KVM signals the thread directly, except for unusual kinds of writes.
                if let Some(kick) = self.kicks.get(queue) {
                    let _ = kick.write(1);
                }
                Ok(())
            }
            Effect::Activate => {
                let registers = transport.registers();
                let (features, queues) = (registers.features(), registers.queues().to_vec());
                self.worker.call(move |backend| backend.activate(features, &queues))
            }
            Effect::Reset => self.worker.call(Backend::reset),
            Effect::Abandon => self.worker.call(Backend::abandon),
            Effect::ConfigWritten => self.worker.call(Backend::config_written),
        };
        if let Err(error) = done {
            tracing::error!(%error, "a device does not answer its driver");
        }
    }

    /// Pauses the device: when this returns, no request is in flight.
    pub(crate) fn pause(&self) -> Result<(), DeviceError> {
        self.worker.call(Backend::pause)
    }

    /// Resumes the device.
    pub(crate) fn resume(&self) -> Result<(), DeviceError> {
        self.worker.call(Backend::resume)
    }

    /// Runs `job` on the device's thread if the device is of type `D`.
    pub(crate) fn on_device<D: Device, T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut D, &Rings<'_>) -> T + Send + 'static,
    ) -> Result<Option<T>, DeviceError> {
        self.worker.call(|backend| backend.on_device(job))
    }

    /// Acquires what only one copy of the guest may hold, see [`Device::take_over`].
    pub(crate) fn take_over(&self) -> Result<(), DeviceError> {
        self.worker.call(|backend| backend.device().take_over())?
    }

    /// Releases it again, see [`Device::release`].
    pub(crate) fn release(&self) -> Result<(), DeviceError> {
        self.worker.call(|backend| backend.device().release())
    }

    /// Makes the next take-over accept the disk as it is, see [`Device::trust_disk`].
    pub(crate) fn trust_disk(&self) -> Result<(), DeviceError> {
        self.worker.call(|backend| backend.device().trust_disk())
    }

    /// Sets the device's socket path, see [`Device::listen_at`].
    pub(crate) fn listen_at(&self, path: PathBuf) -> Result<(), DeviceError> {
        self.worker.call(move |backend| backend.device().listen_at(&path))
    }

    /// Makes the guest's writes durable, see [`Device::settle`].
    pub(crate) fn settle(&self) -> Result<(), DeviceError> {
        self.worker.call(|backend| backend.device().settle())?
    }

    /// Has the kernel log what it writes for the device, or stop that, see [`Device::log_writes`].
    /// Does not wait for a device that the kernel does not serve.
    pub(crate) fn log_writes(&self, on: bool) -> Result<(), DeviceError> {
        if !self.is_offloaded {
            return Ok(());
        }
        self.worker.call(move |backend| backend.device().log_writes(on))?
    }

    /// Keeps the device's thread busy with `job`.
    #[cfg(test)]
    #[cfg(feature = "vhost-tests")]
    pub(crate) fn occupy(&self, job: impl FnOnce() + Send + 'static) {
        self.worker.call(move |_| job()).unwrap();
    }

    /// Returns the state of the paused device, and of its PCI function if it is one.
    pub(crate) fn save(&self) -> Result<(DeviceState, Option<FunctionState>), DeviceError> {
        saved(&self.worker, &**self.transport())
    }

    /// Replaces the state of the paused device, and of its PCI function if it is one.
    pub(crate) fn load(&self, state: &DeviceState, function: Option<&FunctionState>) -> Result<()> {
        let refused =
            |what: String| DeviceError::State(format!("{}: {what}", self.worker.device()));
        let mut transport = self.transport();
        let registers = transport.registers_mut();
        registers.load(&state.transport).map_err(refused)?;
        let driver =
            registers.is_active().then(|| (registers.features(), registers.queues().to_vec()));
        if let Some(function) = function {
            transport.load(function).map_err(refused)?;
            self.window.follow(&**transport);
        }
        // A broken queue stays closed until the driver resets the device.
        let driver = driver.filter(|_| !state.transport.needs_reset);
        let backend = state.backend.clone();
        let loaded = self.worker.call(move |own| {
            let driver = driver.as_ref().map(|(features, queues)| (*features, queues.as_slice()));
            own.load(&backend, driver)
        })?;
        Ok(loaded.map_err(refused)?)
    }

    fn transport(&self) -> MutexGuard<'_, Box<dyn Transport>> {
        self.transport.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the state of a paused device.
fn saved(
    worker: &Worker,
    transport: &dyn Transport,
) -> Result<(DeviceState, Option<FunctionState>), DeviceError> {
    let backend = worker.call(Backend::save)??;
    Ok((DeviceState { transport: transport.registers().save(), backend }, transport.save()))
}

/// Returns the registers of `device` after power-on, and what it tells its driver through them.
pub(super) fn registers(device: &dyn Device) -> (Registers, Arc<Signals>) {
    let queue_sizes = device.queue_sizes();
    debug_assert!(queue_sizes.len() <= QUEUES_MAX);
    let signals = Arc::new(Signals::new(device.config()));
    let offered = device.features() | RING_FEATURES;
    let registers = Registers::new(device.kind(), offered, &queue_sizes, Arc::clone(&signals));
    (registers, signals)
}

/// Where a device's window of memory is, for readers without the transport's lock: a vCPU may hold
/// that for long.
#[derive(Debug)]
struct Window {
    start: AtomicU64,
    end: AtomicU64,
}

impl Window {
    fn of(transport: &dyn Transport) -> Self {
        let window = Self { start: AtomicU64::new(0), end: AtomicU64::new(0) };
        window.follow(transport);
        window
    }

    /// A reader in between may find the device in neither place, or with an offset beyond its
    /// registers: what a guest gets that uses a device while it moves it.
    fn follow(&self, transport: &dyn Transport) {
        let window = transport.window().unwrap_or(0..0);
        self.start.store(window.start, Ordering::Release);
        self.end.store(window.end, Ordering::Release);
    }

    fn offset_of(&self, address: u64) -> Option<u64> {
        let start = self.start.load(Ordering::Acquire);
        (address < self.end.load(Ordering::Acquire)).then(|| address.checked_sub(start))?
    }
}
