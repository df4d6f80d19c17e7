//! What a device is: everything that differs from one type to another.
//!
//! A device is owned by its thread ([`super::worker`]) and called from there alone, with its queues
//! at hand ([`Rings`]). It never sees registers, interrupts' lines, or other devices; while it is
//! paused it is not called at all.

use std::any::Any;
use std::fmt::Debug;
use std::os::fd::RawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_ids::{
    VIRTIO_ID_BALLOON, VIRTIO_ID_BLOCK, VIRTIO_ID_NET, VIRTIO_ID_RNG, VIRTIO_ID_VSOCK,
};

use super::error::DeviceError;
use super::interrupt::Interrupt;
use super::queue::{Chain, Queue, QueueError};
use super::signals::{Cause, ConfigSpace};
use crate::memory::{GuestRam, RamMap};

/// Types of devices, by their ids (virtio 1.2, 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum DeviceKind {
    /// A network device.
    Net = VIRTIO_ID_NET,
    /// A disk.
    Block = VIRTIO_ID_BLOCK,
    /// A source of entropy.
    Rng = VIRTIO_ID_RNG,
    /// A balloon.
    Balloon = VIRTIO_ID_BALLOON,
    /// Sockets between the guest and its host.
    Vsock = VIRTIO_ID_VSOCK,
}

impl DeviceKind {
    /// For messages and threads.
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

/// What becomes of a request that was taken from a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is done, with so many bytes written.
    Now(u32),
    /// It is under way: [`Rings::finish`] answers it.
    Later,
}

/// When a queue wants to be looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// When the driver notifies.
    Idle,
    /// At once, after others had their turn.
    More,
    /// After this time: the driver asks for more than it may have.
    After(Duration),
}

/// A type of device. Its offered features and queues do not change once it is made.
///
/// The bus and the backend find a disk, a network device and the balloon by their type (`Any`): a
/// device that wraps another one would hide it.
pub(crate) trait Device: Any + Send + Debug {
    /// Its type.
    fn kind(&self) -> DeviceKind;

    /// Features of its type that it offers; those of the rings are added by others.
    fn features(&self) -> u64;

    /// Most entries of each queue: powers of two.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Its configuration space as a driver finds it that comes now: asked for at first, after a
    /// reset and after a state was loaded. Changes in between go through [`Rings::change_config`].
    fn config(&self) -> ConfigSpace;

    /// The driver is ready and has accepted `features`.
    fn activate(&mut self, _features: u64) {}

    /// The driver has put something in queue `index`, or may have.
    ///
    /// # Errors
    /// The queue is broken: the device will be reset before it is called again.
    fn process(&mut self, index: usize, rings: &mut Rings<'_>) -> Result<Progress, QueueError>;

    /// The driver has written the configuration space.
    fn config_written(&mut self, _rings: &mut Rings<'_>) {}

    /// File descriptors that the device wants to hear of, for as long as it lives. They are watched
    /// for edges: read until there is nothing left.
    fn watched(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// Descriptor `index` of [`Device::watched`] has become readable, or may have.
    ///
    /// # Errors
    /// As [`Device::process`].
    fn ready(&mut self, _index: usize, _rings: &mut Rings<'_>) -> Result<(), QueueError> {
        Ok(())
    }

    /// When the device wants to do something by itself; it waits for as long as it is paused.
    fn due(&self) -> Option<Instant> {
        None
    }

    /// It is time for what [`Device::due`] spoke of.
    fn on_due(&mut self, _rings: &mut Rings<'_>) {}

    /// The device goes on, after a pause or for the first time.
    fn resumed(&mut self, _rings: &mut Rings<'_>) {}

    /// The driver has reset the device. Nothing that was in a queue is there any more.
    fn reset(&mut self) {}

    /// Waits until nothing touches guest memory behind this call: an engine that works on its own
    /// ends here what it has begun.
    ///
    /// # Errors
    /// As [`Device::process`].
    fn drain(&mut self, _rings: &mut Rings<'_>) -> Result<(), QueueError> {
        Ok(())
    }

    /// Takes what only one copy of the guest may have, such as the lock on a disk. Called before
    /// the guest runs; does nothing when it has been taken already.
    ///
    /// # Errors
    /// Somebody else has it.
    fn take_over(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Gives up what [`Device::take_over`] took: the guest now runs elsewhere, or may. Does nothing
    /// when it was not taken.
    fn release(&mut self) {}

    /// Takes a disk as it is in [`Device::take_over`], also when somebody has written it since the
    /// guest had it.
    fn trust_disk(&mut self) {}

    /// Makes durable what the paused device holds back for the guest, which may go on elsewhere.
    ///
    /// # Errors
    /// It cannot be made durable.
    fn settle(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// State beyond registers and queues.
    ///
    /// # Errors
    /// It cannot be told.
    fn save(&mut self) -> Result<Vec<u8>, DeviceError> {
        Ok(Vec::new())
    }

    /// Replaces the state by what [`Device::save`] returned; it may be hostile.
    ///
    /// # Errors
    /// A sentence, when the state is not possible.
    fn load(&mut self, state: &[u8]) -> Result<(), String> {
        expect_no_state(state)
    }

    /// From now on, whenever the guest runs here, programs of the host find the device at `path`:
    /// for those that programs of the host look for.
    fn listen_at(&mut self, _path: &Path) {}
}

/// What [`Device::load`] checks for a device that saves nothing.
///
/// # Errors
/// There is something.
pub(crate) fn expect_no_state(state: &[u8]) -> Result<(), String> {
    match state.len() {
        0 => Ok(()),
        bytes => Err(format!("{bytes} bytes of state, where there should be none")),
    }
}

/// The queues that a device wants to be looked at, a bit each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Looks(pub(super) u32);

/// What a device has at hand while it works: its queues, the guest's memory, and its interrupt.
#[derive(Debug)]
pub(crate) struct Rings<'a> {
    pub(super) ram: &'a GuestRam,
    pub(super) queues: &'a mut [Option<Queue>],
    pub(super) looks: &'a mut Looks,
    pub(super) interrupt: &'a Interrupt,
    pub(super) now: Instant,
}

impl<'a> Rings<'a> {
    /// The guest's memory.
    pub(crate) fn ram(&self) -> &'a GuestRam {
        self.ram
    }

    /// The time.
    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    /// Whether the driver has set up queue `index`.
    pub(crate) fn is_set_up(&self, index: usize) -> bool {
        matches!(self.queues.get(index), Some(Some(_)))
    }

    /// Has queue `index` looked at soon, as if the driver had notified.
    pub(crate) fn look_at(&mut self, index: usize) {
        self.looks.0 |= 1 << index;
    }

    /// Changes the configuration space's bytes, never their number, and tells the driver if there
    /// is one.
    pub(crate) fn change_config(&self, change: impl FnOnce(&mut [u8])) {
        self.interrupt.change_config(change);
        if self.queues.iter().any(Option::is_some) {
            self.interrupt.raise(Cause::Config);
        }
    }

    /// Fills `bytes` from the beginning of the configuration space.
    pub(crate) fn read_config(&self, bytes: &mut [u8]) {
        self.interrupt.read_config(bytes);
    }

    /// Takes a request from queue `index`, to be answered later by [`Rings::give_back`]; the driver
    /// notifies of the next one.
    ///
    /// # Errors
    /// The queue is broken.
    pub(crate) fn take(&mut self, index: usize) -> Result<Option<Chain>, QueueError> {
        let Some(Some(queue)) = self.queues.get_mut(index) else { return Ok(None) };
        let memory = self.ram.memory();
        let mut taken = queue.pop(memory)?;
        // One that came before the driver was told to notify again is seen now.
        if queue.unmute(memory)? && taken.is_none() {
            taken = queue.pop(memory)?;
            queue.unmute(memory)?;
        }
        Ok(taken)
    }

    /// Answers the request that [`Rings::take`] called `head`, with `written` bytes.
    ///
    /// # Errors
    /// The queue is broken.
    pub(crate) fn give_back(
        &mut self,
        index: usize,
        head: u16,
        written: u32,
    ) -> Result<(), QueueError> {
        self.finish(index, head, written)?;
        self.notify_driver(index)
    }

    /// As [`Rings::give_back`], without telling the driver: [`Rings::notify_driver`] does, for all
    /// of them.
    ///
    /// # Errors
    /// The queue is broken.
    pub(crate) fn finish(
        &mut self,
        index: usize,
        head: u16,
        written: u32,
    ) -> Result<(), QueueError> {
        let Some(Some(queue)) = self.queues.get_mut(index) else { return Ok(()) };
        queue.push_used(self.ram.memory(), head, written)
    }

    /// Interrupts the driver if it wants to hear of what was given back.
    ///
    /// # Errors
    /// The queue is broken.
    pub(crate) fn notify_driver(&mut self, index: usize) -> Result<(), QueueError> {
        let Some(Some(queue)) = self.queues.get_mut(index) else { return Ok(()) };
        if queue.wants_interrupt(self.ram.memory())? {
            self.interrupt.raise(Cause::Used);
        }
        Ok(())
    }

    /// Answers up to `requests_max` requests of queue `index`; `answer` returns how many bytes it
    /// has written. A queue that the driver has not set up is empty.
    ///
    /// # Errors
    /// The queue is broken, or `answer` says so.
    pub(crate) fn serve(
        &mut self,
        index: usize,
        requests_max: usize,
        mut answer: impl FnMut(Chain, &RamMap) -> Result<u32, QueueError>,
    ) -> Result<Progress, QueueError> {
        self.take_on(index, requests_max, |chain, memory| answer(chain, memory).map(Answer::Now))
    }

    /// As [`Rings::serve`], for requests that may be answered later. A queue that the driver has
    /// not set up is empty.
    ///
    /// # Errors
    /// The queue is broken, or `answer` says so.
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
        // Every turn counts: a driver that takes requests back as they are looked for gets no more.
        for _ in 0..requests_max {
            match queue.pop(memory)? {
                Some(chain) => {
                    let head = chain.head;
                    if let Answer::Now(written) = answer(chain, memory)? {
                        queue.push_used(memory, head, written)?;
                        served += 1;
                    }
                }
                // One that came before the driver was told to notify again is seen now.
                None if queue.unmute(memory)? => queue.mute(memory)?,
                None => {
                    progress = Progress::Idle;
                    break;
                }
            }
        }
        if served > 0 && queue.wants_interrupt(memory)? {
            self.interrupt.raise(Cause::Used);
        }
        Ok(progress)
    }
}
