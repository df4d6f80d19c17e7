//! The interface of a device: everything that differs between types of devices.
//!
//! A device is owned by its thread ([`super::worker`]) and called only from there, with access to
//! its queues ([`Rings`]). It never sees registers, interrupt lines, or other devices; its queues
//! are not processed while it is paused.

use std::any::Any;
use std::fmt::Debug;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_ids::{
    VIRTIO_ID_BALLOON, VIRTIO_ID_BLOCK, VIRTIO_ID_NET, VIRTIO_ID_RNG, VIRTIO_ID_VSOCK,
};
use vmm_sys_util::eventfd::EventFd;

use super::error::DeviceError;
use super::interrupt::{Interrupt, Line};
use super::queue::{Chain, Queue, QueueError};
use super::signals::{Cause, ConfigSpace};
use crate::memory::{GuestRam, RamMap};

/// Types of devices, by their ids (virtio 1.2, 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum DeviceKind {
    /// A network device.
    Net = VIRTIO_ID_NET,
    /// A disk, which the specification calls a block device.
    Block = VIRTIO_ID_BLOCK,
    /// A source of entropy.
    Rng = VIRTIO_ID_RNG,
    /// A balloon, through which the guest gives memory back.
    Balloon = VIRTIO_ID_BALLOON,
    /// Sockets between the guest and its host.
    Vsock = VIRTIO_ID_VSOCK,
}

impl DeviceKind {
    /// Returns the name used in messages and as thread name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Block => "disk",
            Self::Rng => "rng",
            Self::Balloon => "balloon",
            Self::Vsock => "vsock",
        }
    }
}

/// Outcome of a request that was taken from a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The request is complete, with so many bytes written.
    Now(u32),
    /// The request is in flight: [`Rings::finish`] answers it.
    Later,
}

/// When a queue must be processed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Only after the driver notifies.
    Idle,
    /// At once, after other queues had their turn.
    More,
    /// After this time: the driver asks for more than its allowance.
    After(Duration),
}

/// What the host's kernel needs to serve a device's queues itself.
#[derive(Debug)]
pub(crate) struct KernelAccess<'a> {
    /// The guest's memory.
    pub(crate) ram: &'a Arc<GuestRam>,
    /// What KVM signals when the driver notifies a queue, by queue.
    pub(crate) kicks: &'a [EventFd],
    /// The line for the device's interrupts.
    pub(crate) line: &'a Arc<dyn Line>,
}

/// What a device's thread does not wait for at present, since the kernel does: one bit for each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Unwatched {
    /// Queues whose notifications the kernel takes.
    pub(crate) queues: u32,
    /// Descriptors of [`Device::watched`] that the kernel reads.
    pub(crate) descriptors: u32,
}

impl Unwatched {
    /// Most descriptors that a device may have watched.
    pub(crate) const DESCRIPTORS_MAX: usize = u32::BITS as usize;

    /// Returns what either has.
    pub(crate) fn with(self, other: Self) -> Self {
        Self {
            queues: self.queues | other.queues,
            descriptors: self.descriptors | other.descriptors,
        }
    }
}

/// A type of device. The features and queues that it offers never change after its creation.
///
/// The bus and the backend recognise a disk, a network device and the balloon by their type
/// (`Any`): a device that wraps another one would hide it.
pub(crate) trait Device: Any + Send + Debug {
    /// Returns the device's type.
    fn kind(&self) -> DeviceKind;

    /// Returns the features specific to its type; the features of the rings are added elsewhere.
    fn features(&self) -> u64;

    /// Returns the maximum size of each queue in entries: powers of two.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Returns the configuration space for a driver that starts now. Called at creation, after a
    /// reset and after a state was loaded; changes in between go through [`Rings::change_config`].
    fn config(&self) -> ConfigSpace;

    /// Called when the driver is ready and has accepted `features`.
    fn activate(&mut self, _features: u64) {}

    /// Processes queue `index`, in which the driver may have put requests.
    ///
    /// # Errors
    /// If the queue is broken: the device will be reset before it is called again.
    fn process(&mut self, index: usize, rings: &mut Rings<'_>) -> Result<Progress, QueueError>;

    /// Called when the driver has written the configuration space.
    fn config_written(&mut self, _rings: &mut Rings<'_>) {}

    /// Returns the file descriptors to watch for input, for as long as the device lives. They are
    /// watched edge-triggered: read until nothing is left.
    fn watched(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// Prepares the device to be served by the host's kernel; returns false if the kernel cannot do
    /// it. Called once, before the device works and before [`Device::watched`].
    fn offload(&mut self, _access: &KernelAccess<'_>) -> bool {
        false
    }

    /// Returns what the kernel waits for at present, instead of the device's thread.
    fn unwatched(&self) -> Unwatched {
        Unwatched::default()
    }

    /// Has the kernel log what it writes to the guest's memory in [`GuestRam::write_log`], or stop
    /// that.
    ///
    /// # Errors
    /// The error from the kernel.
    fn log_writes(&mut self, _on: bool) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Called when descriptor `index` of [`Device::watched`] may have become readable.
    ///
    /// # Errors
    /// As [`Device::process`].
    fn ready(&mut self, _index: usize, _rings: &mut Rings<'_>) -> Result<(), QueueError> {
        Ok(())
    }

    /// Returns when `Device::on_due` must be called next. It is not called while the device is
    /// paused.
    fn due(&self) -> Option<Instant> {
        None
    }

    /// Called at the time that [`Device::due`] returned.
    fn on_due(&mut self, _rings: &mut Rings<'_>) {}

    /// Called when the device resumes, after a pause or for the first time.
    fn resumed(&mut self, _rings: &mut Rings<'_>) {}

    /// Called when the queues were closed, for whatever reason: a device whose queues the kernel
    /// serves has it stop.
    fn queues_closed(&mut self) {}

    /// Called when the driver has reset the device. The queues are already closed and their
    /// requests gone.
    fn reset(&mut self) {}

    /// Waits until nothing touches guest memory outside this call: a device with an asynchronous
    /// engine completes its requests in flight here.
    ///
    /// # Errors
    /// As [`Device::process`].
    fn drain(&mut self, _rings: &mut Rings<'_>) -> Result<(), QueueError> {
        Ok(())
    }

    /// Acquires what only one copy of the guest may hold, such as the lock on a disk. Called before
    /// the guest runs; does nothing if it is already held.
    ///
    /// # Errors
    /// If another process holds it.
    fn take_over(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Releases what [`Device::take_over`] acquired: the guest now runs elsewhere, or may. Does
    /// nothing if it is not held.
    fn release(&mut self) {}

    /// Makes [`Device::take_over`] accept a disk as it is, even if it was written since the guest
    /// last had it.
    fn trust_disk(&mut self) {}

    /// Makes durable what the paused device has not yet written back for the guest, which may
    /// resume elsewhere.
    ///
    /// # Errors
    /// If it cannot be made durable.
    fn settle(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Returns the state beyond registers and queues.
    ///
    /// # Errors
    /// If the state cannot be saved.
    fn save(&mut self) -> Result<Vec<u8>, DeviceError> {
        Ok(Vec::new())
    }

    /// Replaces the state with what [`Device::save`] returned; it may be hostile.
    ///
    /// # Errors
    /// If the state is impossible; the text says why.
    fn load(&mut self, state: &[u8]) -> Result<(), String> {
        expect_no_state(state)
    }

    /// Sets the socket path at which programs of the host reach the device whenever the guest runs
    /// here. Only a device that such programs connect to (vsock) uses it.
    fn listen_at(&mut self, _path: &Path) {}
}

/// Checks the argument of [`Device::load`] for a device that saves nothing.
///
/// # Errors
/// If there is any state.
pub(crate) fn expect_no_state(state: &[u8]) -> Result<(), String> {
    match state.len() {
        0 => Ok(()),
        bytes => Err(format!("{bytes} bytes of state, where there should be none")),
    }
}

/// Queues that a device asked to have processed, one bit each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct WantedQueues(pub(super) u32);

/// What a device uses while it works: its queues, the guest's memory, and its interrupt.
#[derive(Debug)]
pub(crate) struct Rings<'a> {
    pub(super) ram: &'a GuestRam,
    pub(super) queues: &'a mut [Option<Queue>],
    pub(super) wanted: &'a mut WantedQueues,
    pub(super) interrupt: &'a Interrupt,
    pub(super) now: Instant,
}

impl<'a> Rings<'a> {
    /// Returns the guest's memory.
    pub(crate) fn ram(&self) -> &'a GuestRam {
        self.ram
    }

    /// Returns the current time.
    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    /// Returns whether the driver has set up queue `index`.
    pub(crate) fn is_set_up(&self, index: usize) -> bool {
        matches!(self.queues.get(index), Some(Some(_)))
    }

    /// Requests that queue `index` is processed soon, as if the driver had notified.
    pub(crate) fn request_processing(&mut self, index: usize) {
        self.wanted.0 |= 1 << index;
    }

    /// Changes bytes of the configuration space, never its length, and interrupts the driver if
    /// there is one.
    pub(crate) fn change_config(&self, change: impl FnOnce(&mut [u8])) {
        self.interrupt.change_config(change);
        if self.queues.iter().any(Option::is_some) {
            self.interrupt.raise(Cause::Config);
        }
    }

    /// Fills `bytes` from the start of the configuration space.
    pub(crate) fn read_config(&self, bytes: &mut [u8]) {
        self.interrupt.read_config(bytes);
    }

    /// Takes a request from queue `index`, to be answered later by [`Rings::give_back`].
    /// Notifications stay enabled, so the driver announces its next request.
    ///
    /// # Errors
    /// If the queue is broken.
    pub(crate) fn take(&mut self, index: usize) -> Result<Option<Chain>, QueueError> {
        let Some(Some(queue)) = self.queues.get_mut(index) else { return Ok(None) };
        let memory = self.ram.memory();
        let mut taken = queue.pop(memory)?;
        // A request may have arrived before notifications were enabled again.
        if queue.unmute(memory)? && taken.is_none() {
            taken = queue.pop(memory)?;
            queue.unmute(memory)?;
        }
        Ok(taken)
    }

    /// Answers the request with this `head`, which [`Rings::take`] returned; `written` bytes were
    /// written to it.
    ///
    /// # Errors
    /// If the queue is broken.
    pub(crate) fn give_back(
        &mut self,
        index: usize,
        head: u16,
        written: u32,
    ) -> Result<(), QueueError> {
        self.finish(index, head, written)?;
        self.notify_driver(index)
    }

    /// As [`Rings::give_back`], but without an interrupt: [`Rings::notify_driver`] raises one for
    /// several requests.
    ///
    /// # Errors
    /// If the queue is broken.
    pub(crate) fn finish(
        &mut self,
        index: usize,
        head: u16,
        written: u32,
    ) -> Result<(), QueueError> {
        let Some(Some(queue)) = self.queues.get_mut(index) else { return Ok(()) };
        queue.push_used(self.ram.memory(), head, written)
    }

    /// Interrupts the driver if it asked for an interrupt for the requests given back.
    ///
    /// # Errors
    /// If the queue is broken.
    pub(crate) fn notify_driver(&mut self, index: usize) -> Result<(), QueueError> {
        let Some(Some(queue)) = self.queues.get_mut(index) else { return Ok(()) };
        if queue.wants_interrupt(self.ram.memory())? {
            self.interrupt.raise(Cause::Used(index));
        }
        Ok(())
    }

    /// Answers up to `requests_max` requests of queue `index`; `answer` returns how many bytes it
    /// has written. A queue that the driver has not set up counts as empty.
    ///
    /// # Errors
    /// If the queue is broken, or `answer` fails.
    pub(crate) fn serve(
        &mut self,
        index: usize,
        requests_max: usize,
        mut answer: impl FnMut(Chain, &RamMap) -> Result<u32, QueueError>,
    ) -> Result<Progress, QueueError> {
        self.take_on(index, requests_max, |chain, memory| answer(chain, memory).map(Answer::Now))
    }

    /// As [`Rings::serve`], for requests that may be answered later. A queue that the driver has
    /// not set up counts as empty.
    ///
    /// # Errors
    /// If the queue is broken, or `answer` fails.
    pub(crate) fn take_on(
        &mut self,
        index: usize,
        requests_max: usize,
        mut answer: impl FnMut(Chain, &RamMap) -> Result<Answer, QueueError>,
    ) -> Result<Progress, QueueError> {
        let Some(Some(queue)) = self.queues.get_mut(index) else { return Ok(Progress::Idle) };
        let memory = self.ram.memory();
        queue.mute(memory)?;
        let (mut served, mut progress) = (0, Progress::More);
        // Empty turns count too: a driver that withdraws requests while the device polls gets no
        // extra turn.
        for _ in 0..requests_max {
            match queue.pop(memory)? {
                Some(chain) => {
                    let head = chain.head;
                    if let Answer::Now(written) = answer(chain, memory)? {
                        queue.push_used(memory, head, written)?;
                        served += 1;
                    }
                }
                // A request may have arrived before notifications were enabled again.
                None if queue.unmute(memory)? => queue.mute(memory)?,
                None => {
                    progress = Progress::Idle;
                    break;
                }
            }
        }
        if served > 0 && queue.wants_interrupt(memory)? {
            self.interrupt.raise(Cause::Used(index));
        }
        Ok(progress)
    }
}
