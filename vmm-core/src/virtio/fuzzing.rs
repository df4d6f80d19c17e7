//! A device without KVM and without a thread, for the fuzz targets in `fuzz/`: its registers, its
//! backend and a guest's memory, put together as [`super::mmio_device`] does it.
//!
//! The driver is the fuzzer's: it writes registers and memory as it likes.

use std::sync::Arc;
use std::time::Instant;

use super::Signals;
use super::backend::Backend;
use super::config::DeviceConfig;
use super::error::DeviceError;
use super::interrupt::Interrupt;
use super::mmio_device::{DeviceState, RING_FEATURES};
use super::transport::{Effect, Transport};
use crate::devices::IrqLine;
use crate::error::Result;
use crate::memory::{GuestRam, MemoryConfig, RamLayout};

/// Turns of a device's work for one notification: it must be done long before.
const TURNS_MAX: usize = 100_000;

/// A device that is on, and a guest's memory.
#[derive(Debug)]
pub struct Bench {
    transport: Transport,
    backend: Backend,
    ram: Arc<GuestRam>,
}

impl Bench {
    /// The device of `config`, with `memory_bytes` of memory that holds nothing but zeros.
    ///
    /// # Errors
    /// There is no such device, or not so much memory.
    pub fn new(config: &DeviceConfig, memory_bytes: u64) -> Result<Self> {
        let ram =
            Arc::new(GuestRam::new(RamLayout::new(memory_bytes)?, &MemoryConfig::default(), None)?);
        let device = config.create()?;
        let signals = Arc::new(Signals::new(device.config()));
        let transport = Transport::new(
            device.kind(),
            device.features() | RING_FEATURES,
            &device.queue_sizes(),
            Arc::clone(&signals),
        );
        let interrupt = Interrupt::new(signals, IrqLine::unconnected());
        let mut backend = Backend::new(device, Arc::clone(&ram), interrupt);
        backend.device().take_over()?;
        backend.resume();
        Ok(Self { transport, backend, ram })
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

    /// Lets the device work until it is idle or waits.
    fn work(&mut self) {
        let now = Instant::now();
        for _ in 0..TURNS_MAX {
            if !self.backend.idle_for(now).is_some_and(|wait| wait.is_zero()) {
                return;
            }
            self.backend.work(now);
        }
        unreachable!("the device works for ever on what does not change");
    }

    /// The operator asks a balloon for the guest's statistics, and sets how large it shall be; a migration ends and another asks
    /// which pages are free.
    pub fn set_balloon(&mut self, pages: u32) {
        self.backend.on_balloon(|balloon, rings| {
            balloon.ask();
            balloon.set_target(pages, rings);
            balloon.end_hints(rings);
            balloon.begin_hints(rings);
        });
        self.work();
    }

    /// The state, of the paused device.
    ///
    /// # Errors
    /// It cannot be saved.
    pub fn save(&mut self) -> Result<DeviceState, DeviceError> {
        self.backend.pause();
        let state = DeviceState { backend: self.backend.save()?, transport: self.transport.save() };
        self.backend.resume();
        self.work();
        Ok(state)
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
        self.backend.resume();
        self.work();
        Ok(())
    }
}
