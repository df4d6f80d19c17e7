//! Pairs of queues: one with frames for the guest, one with frames from it.

use std::os::fd::{BorrowedFd, RawFd};

use super::counters::Flows;
use super::receive::Receiver;
use super::vhost::{self, Vhost};
use super::{QUEUE_PAIRS_MAX, RECEIVE, TRANSMIT, transmit};
use crate::virtio::device::{KernelAccess, Progress, Rings, Unwatched};
use crate::virtio::queue::QueueError;
use crate::virtio::registers::QUEUES_MAX;
use crate::virtio::signals::Cause;

/// Queues of a pair.
pub(super) const QUEUES: usize = 2;
/// Frames sent before the thread checks for other work.
const BATCH: usize = 64;

const _: () = assert!(
    QUEUES * (QUEUE_PAIRS_MAX as usize) < QUEUES_MAX
        && QUEUE_PAIRS_MAX as usize * (1 + vhost::SIGNALS) <= Unwatched::DESCRIPTORS_MAX,
    "all queues and descriptors of a device with the most pairs have bits of their own"
);

/// All pairs of queues of a device. Its descriptors to watch are those of each pair's frames, and
/// behind them the kernel's signals.
#[derive(Debug)]
pub(super) struct Pairs(Vec<Pair>);

impl Pairs {
    /// Creates `count` pairs, whose frames are carried without the kernel.
    pub(super) fn new(count: u16, receiver: impl Fn() -> Receiver) -> Self {
        let pair = |index| Pair { index, receiver: receiver(), vhost: None };
        Self((0..count.into()).map(pair).collect())
    }

    /// Returns how many there are.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns the pair of queue `queue`; `None` if it is not one of theirs.
    pub(super) fn of_queue(&mut self, queue: usize) -> Option<&mut Pair> {
        self.0.get_mut(queue / QUEUES)
    }

    /// Has each pair receive anew, as `receiver` does.
    pub(super) fn receive_by(&mut self, receiver: impl Fn() -> Receiver) {
        self.0.iter_mut().for_each(|pair| pair.receiver = receiver());
    }

    /// Prepares the kernel for each pair, until it cannot serve one.
    ///
    /// # Errors
    /// The error for the first that it cannot serve. The device's thread serves this and those
    /// behind it.
    pub(super) fn offload(&mut self, access: &KernelAccess<'_>) -> ::vhost::Result<()> {
        for pair in &mut self.0 {
            let queues = [pair.receive_queue(), pair.transmit_queue()];
            pair.vhost = Some(Vhost::open(access, queues)?);
        }
        Ok(())
    }

    fn kernels(&self) -> impl Iterator<Item = &Vhost> {
        self.0.iter().filter_map(|pair| pair.vhost.as_ref())
    }

    fn kernels_mut(&mut self) -> impl Iterator<Item = &mut Vhost> {
        self.0.iter_mut().filter_map(|pair| pair.vhost.as_mut())
    }

    /// Returns whether the kernel can serve any of them.
    pub(super) fn are_offloaded(&self) -> bool {
        self.kernels().next().is_some()
    }

    /// Returns whether the kernel carries the frames of any of them now.
    pub(super) fn are_carried(&self) -> bool {
        self.kernels().any(Vhost::runs)
    }

    /// Has the kernel log its writes to guest memory from now on, or stop that.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(super) fn log_writes(&mut self, on: bool) -> ::vhost::Result<()> {
        self.kernels_mut().try_for_each(|kernel| kernel.log_writes(on))
    }

    /// Returns the kernel's signals.
    pub(super) fn signals(&self) -> impl Iterator<Item = RawFd> {
        self.kernels().flat_map(Vhost::watched)
    }

    /// Returns what the kernel waits for at present.
    pub(super) fn unwatched(&self) -> Unwatched {
        self.0.iter().map(Pair::unwatched).fold(Unwatched::default(), Unwatched::with)
    }

    /// Handles descriptor `index`, which may have become readable.
    ///
    /// # Errors
    /// [`QueueError::Kernel`] if the kernel has refused to go on.
    pub(super) fn ready(&mut self, index: usize, rings: &mut Rings<'_>) -> Result<(), QueueError> {
        if let Some(pair) = self.0.get_mut(index) {
            pair.receiver.set_readable();
            rings.request_processing(pair.receive_queue());
            return Ok(());
        }
        let signal = index - self.0.len();
        match self.kernels().nth(signal / vhost::SIGNALS) {
            Some(kernel) => {
                kernel.pass_on_signals(rings.interrupt);
                kernel.check()
            }
            None => Ok(()),
        }
    }

    /// Requests that all queues are processed: other pairs carry the frames than before.
    pub(super) fn request_processing(&mut self, rings: &mut Rings<'_>) {
        for pair in &mut self.0 {
            pair.receiver.set_readable();
            rings.request_processing(pair.receive_queue());
            rings.request_processing(pair.transmit_queue());
        }
    }

    /// Stops all pairs from `first` on, as [`Pair::stop`] does.
    ///
    /// # Errors
    /// If the kernel had refused to go on with a queue.
    pub(super) fn stop_from(
        &mut self,
        first: usize,
        rings: &mut Rings<'_>,
    ) -> Result<(), QueueError> {
        let stopped = self.0.iter_mut().skip(first).map(|pair| pair.stop(rings));
        stopped.fold(Ok(()), Result::and)
    }

    /// Stops the kernel, as all queues were closed.
    pub(super) fn forget(&mut self) {
        self.kernels_mut().for_each(Vhost::forget);
    }
}

/// A pair of queues; see the module.
#[derive(Debug)]
pub(super) struct Pair {
    index: usize,
    receiver: Receiver,
    /// The kernel's side; `None` if the host's kernel is not to carry the frames, or cannot.
    vhost: Option<Vhost>,
}

impl Pair {
    /// Returns its place among the pairs.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// Returns the index of the queue with frames for the guest.
    pub(super) fn receive_queue(&self) -> usize {
        QUEUES * self.index + RECEIVE
    }

    /// Returns the index of the queue with frames from the guest.
    pub(super) fn transmit_queue(&self) -> usize {
        QUEUES * self.index + TRANSMIT
    }

    /// Returns what the kernel waits for while it carries the frames: both queues, and the pair's
    /// file, whose descriptor has the index of the pair.
    fn unwatched(&self) -> Unwatched {
        match self.vhost.as_ref().is_some_and(Vhost::runs) {
            true => Unwatched {
                queues: 1 << self.receive_queue() | 1 << self.transmit_queue(),
                descriptors: 1 << self.index,
            },
            false => Unwatched::default(),
        }
    }

    /// Returns the kernel's side, if that carries the frames or can start to, and returns held
    /// buffers to their queue in the latter case.
    pub(super) fn kernel(&mut self, rings: &mut Rings<'_>) -> Option<&mut Vhost> {
        let vhost = self.vhost.as_ref()?;
        if !vhost.runs() {
            if !vhost.can_start(rings.queues) {
                return None;
            }
            self.put_back(rings);
        }
        self.vhost.as_mut()
    }

    /// Receives frames that have arrived at `frames`.
    ///
    /// # Errors
    /// If the queue is broken.
    pub(super) fn receive(
        &mut self,
        frames: BorrowedFd<'_>,
        flows: &mut Flows,
        rings: &mut Rings<'_>,
    ) -> Result<Progress, QueueError> {
        let (memory, index) = (rings.ram().memory(), self.receive_queue());
        let Some(Some(queue)) = rings.queues.get_mut(index) else { return Ok(Progress::Idle) };
        let before = flows.received.frames;
        let progress = self.receiver.process(queue, memory, frames, &mut flows.received)?;
        if flows.received.frames != before && queue.wants_interrupt(memory)? {
            rings.interrupt.raise(Cause::Used(index));
        }
        Ok(progress)
    }

    /// Sends the guest's frames to `frames`.
    ///
    /// # Errors
    /// If the queue is broken.
    pub(super) fn transmit(
        &self,
        frames: BorrowedFd<'_>,
        flows: &mut Flows,
        rings: &mut Rings<'_>,
    ) -> Result<Progress, QueueError> {
        rings.serve(self.transmit_queue(), BATCH, |chain, memory| {
            transmit::send(&chain, memory, frames, &mut flows.transmitted)?;
            Ok(0)
        })
    }

    /// Returns the buffers that the receiver holds to their queue.
    fn put_back(&mut self, rings: &mut Rings<'_>) {
        let queue = rings.queues.get_mut(self.receive_queue()).and_then(Option::as_mut);
        self.receiver.put_back(queue);
    }

    /// Stops: when this returns, nothing of the pair touches guest memory, and the queues have all
    /// that there is to save.
    ///
    /// # Errors
    /// If the kernel had refused to go on with a queue.
    fn stop(&mut self, rings: &mut Rings<'_>) -> Result<(), QueueError> {
        match self.vhost.as_mut().filter(|vhost| vhost.runs()) {
            Some(vhost) => {
                let stopped = vhost.stop(rings.queues);
                // What the kernel signalled since this thread last looked is part of the state.
                vhost.pass_on_signals(rings.interrupt);
                stopped
            }
            None => {
                self.put_back(rings);
                Ok(())
            }
        }
    }
}
