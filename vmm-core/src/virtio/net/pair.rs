//! A pair of queues: one with frames for the guest, one with frames from it.

use std::os::fd::BorrowedFd;

use super::counters::Flows;
use super::receive::Receiver;
use super::vhost::Vhost;
use super::{RECEIVE, TRANSMIT, transmit};
use crate::virtio::device::{Progress, Rings, Unwatched};
use crate::virtio::queue::QueueError;
use crate::virtio::signals::Cause;

/// Queues of a pair.
pub(super) const QUEUES: usize = 2;
/// Frames sent before the thread checks for other work.
const BATCH: usize = 64;

/// A pair of queues; see the module.
#[derive(Debug)]
pub(super) struct Pair {
    index: usize,
    pub(super) receiver: Receiver,
    /// The kernel's side; `None` if the host's kernel is not to carry the frames, or cannot.
    pub(super) vhost: Option<Vhost>,
}

impl Pair {
    /// Creates pair `index`, whose frames are carried without the kernel.
    pub(super) fn new(index: usize, receiver: Receiver) -> Self {
        Self { index, receiver, vhost: None }
    }

    /// Returns the index of the queue with frames for the guest.
    pub(super) fn receive_queue(&self) -> usize {
        QUEUES * self.index + RECEIVE
    }

    /// Returns the index of the queue with frames from the guest.
    pub(super) fn transmit_queue(&self) -> usize {
        QUEUES * self.index + TRANSMIT
    }

    /// Returns whether the kernel carries the frames now.
    pub(super) fn is_carried(&self) -> bool {
        self.vhost.as_ref().is_some_and(Vhost::runs)
    }

    /// Returns what the kernel waits for while it carries the frames: both queues, and the pair's
    /// file, whose descriptor has the index of the pair.
    pub(super) fn unwatched(&self) -> Unwatched {
        match self.is_carried() {
            true => Unwatched {
                queues: 1 << self.receive_queue() | 1 << self.transmit_queue(),
                descriptors: 1 << self.index,
            },
            false => Unwatched::default(),
        }
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
    pub(super) fn put_back(&mut self, rings: &mut Rings<'_>) {
        let queue = rings.queues.get_mut(self.receive_queue()).and_then(Option::as_mut);
        self.receiver.put_back(queue);
    }

    /// Stops: when this returns, nothing of the pair touches guest memory, and the queues have all
    /// that there is to save.
    ///
    /// # Errors
    /// If the kernel had refused to go on with a queue.
    pub(super) fn stop(&mut self, rings: &mut Rings<'_>) -> Result<(), QueueError> {
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
