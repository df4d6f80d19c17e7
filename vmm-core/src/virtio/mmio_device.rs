//! A device in its slot: the registers that the vCPUs access, and the device's thread behind them.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::{IoEventAddress, VmFd};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Signals;
use super::backend::{Backend, BackendState};
use super::balloon::BalloonDevice;
use super::device::{Device, Rings};
use super::error::DeviceError;
use super::interrupt::Interrupt;
use super::transport::{Effect, QUEUES_MAX, Transport, TransportState};
use super::worker::Worker;
use crate::devices::IrqLine;
use crate::devices::mmio::Slot;
use crate::error::{KvmContext, Result};
use crate::memory::GuestRam;

/// Features of the rings, which every device offers.
pub(super) const RING_FEATURES: u64 =
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
pub(crate) struct MmioDevice {
    /// Locked until the effects of a write are complete, so that no second vCPU sees them half
    /// done.
    transport: Mutex<Transport>,
    kicks: Vec<EventFd>,
    worker: Worker,
}

impl MmioDevice {
    /// Puts `device` into `slot` of `vm`, paused.
    ///
    /// # Errors
    /// [`DeviceError::Start`]; or if KVM rejects a queue's eventfd.
    pub(crate) fn new(
        vm: &Arc<VmFd>,
        ram: &Arc<GuestRam>,
        slot: Slot,
        device: Box<dyn Device>,
    ) -> Result<Self> {
        let kind = device.kind();
        let queue_sizes = device.queue_sizes();
        debug_assert!(queue_sizes.len() <= QUEUES_MAX);
        let signals = Arc::new(Signals::new(device.config()));
        let offered = device.features() | RING_FEATURES;
        let transport = Transport::new(kind, offered, &queue_sizes, Arc::clone(&signals));
        let interrupt = Interrupt::new(signals, IrqLine::new(Arc::clone(vm), slot.gsi));
        let backend = Backend::new(device, Arc::clone(ram), interrupt);

        let kicks = kicks(vm, slot, queue_sizes.len(), kind.name())?;
        let copies: std::io::Result<Vec<EventFd>> = kicks.iter().map(EventFd::try_clone).collect();
        let copies = copies.map_err(|cause| DeviceError::Start { device: kind.name(), cause })?;
        let worker = Worker::start(backend, copies)?;
        Ok(Self { transport: Mutex::new(transport), kicks, worker })
    }

    /// Handles a vCPU read of registers.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        self.transport().read(offset, data);
    }

    /// Handles a vCPU write to registers. Returns once the effects are complete, except for work on
    /// queues.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        let mut transport = self.transport();
        let done = match transport.write(offset, data) {
            Effect::None => Ok(()),
            Effect::Notify(queue) => {
                // KVM signals the thread directly, except for unusual kinds of writes.
                if let Some(kick) = self.kicks.get(queue) {
                    let _ = kick.write(1);
                }
                Ok(())
            }
            Effect::Activate => {
                let (features, queues) = (transport.features(), transport.queues().to_vec());
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

    /// Runs `job` on the device's thread if the device is a balloon.
    pub(crate) fn on_balloon<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut BalloonDevice, &Rings<'_>) -> T + Send + 'static,
    ) -> Result<Option<T>, DeviceError> {
        self.worker.call(|backend| backend.on_balloon(job))
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

    /// Returns the state of the paused device.
    pub(crate) fn save(&self) -> Result<DeviceState, DeviceError> {
        let backend = self.worker.call(Backend::save)??;
        Ok(DeviceState { transport: self.transport().save(), backend })
    }

    /// Replaces the state of the paused device.
    pub(crate) fn load(&self, state: &DeviceState) -> Result<()> {
        let refused =
            |what: String| DeviceError::State(format!("{}: {what}", self.worker.device()));
        let mut transport = self.transport();
        transport.load(&state.transport).map_err(refused)?;
        let driver =
            transport.is_active().then(|| (transport.features(), transport.queues().to_vec()));
        // A broken queue stays closed until the driver resets the device.
        let driver = driver.filter(|_| !state.transport.needs_reset);
        let backend = state.backend.clone();
        let loaded = self.worker.call(move |own| {
            let driver = driver.as_ref().map(|(features, queues)| (*features, queues.as_slice()));
            own.load(&backend, driver)
        })?;
        Ok(loaded.map_err(refused)?)
    }

    fn transport(&self) -> MutexGuard<'_, Transport> {
        self.transport.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Creates an eventfd for each queue, which KVM signals when the driver notifies.
fn kicks(vm: &VmFd, slot: Slot, count: usize, device: &'static str) -> Result<Vec<EventFd>> {
    let address = IoEventAddress::Mmio(slot.address + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY));
    (0u32..)
        .take(count)
        .map(|index| {
            let kick =
                EventFd::new(EFD_NONBLOCK).map_err(|cause| DeviceError::Start { device, cause })?;
            vm.register_ioevent(&kick, &address, index).call("KVM_IOEVENTFD")?;
            Ok(kick)
        })
        .collect()
}
