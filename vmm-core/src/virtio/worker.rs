//! A device's thread.
//!
//! It owns the [`Backend`] and sleeps until a queue is notified, a file descriptor of the device is
//! readable, a timer is due, or another thread sends a *job*: a closure that gets the backend and
//! always runs on this thread. The rest of the program reaches a device only through jobs, so a
//! pause is a barrier without a lock: the job runs between two batches of requests, and once it has
//! been answered, the backend is paused.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::backend::Backend;
use super::device::Unwatched;
use super::error::DeviceError;

/// Stack size of a device's thread, in bytes.
const STACK_BYTES: usize = 256 << 10;
/// Event source: a job.
const JOB: u64 = 0;
/// Event source: a queue; its index is added.
const QUEUE: u64 = 1;
/// Event source: a file descriptor of the device; its index is added.
const WATCHED: u64 = 1 << 32;
/// Most events taken per wait.
const EVENTS_MAX: usize = 16;

type Job = Box<dyn FnOnce(&mut Backend) + Send>;

/// The thread of a device. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Worker {
    device: &'static str,
    jobs: Option<Sender<Job>>,
    bell: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread; `kicks` are the queues' eventfds.
    ///
    /// # Errors
    /// [`DeviceError::Start`].
    pub(crate) fn start(mut backend: Backend, kicks: Vec<EventFd>) -> Result<Self, DeviceError> {
        let device = backend.device().kind().name();
        let failed = |cause| DeviceError::Start { device, cause };
        let bell = EventFd::new(EFD_NONBLOCK).map_err(failed)?;
        let watch = Watch::new(&mut backend, kicks, &bell).map_err(failed)?;
        let (jobs, inbox) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(device.to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || watch.run(backend, &inbox))
            .map_err(failed)?;
        Ok(Self { device, jobs: Some(jobs), bell, thread: Some(thread) })
    }

    /// Returns the device's name.
    pub(crate) fn device(&self) -> &'static str {
        self.device
    }

    /// Runs `job` on the thread and waits for its answer.
    ///
    /// # Errors
    /// [`DeviceError::ThreadGone`].
    pub(crate) fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Backend) -> T + Send + 'static,
    ) -> Result<T, DeviceError> {
        let gone = DeviceError::ThreadGone { device: self.device };
        let (sender, answer) = mpsc::sync_channel(1);
        let job: Job = Box::new(move |backend| drop(sender.send(job(backend))));
        if let Some(jobs) = &self.jobs {
            // A thread that has ended has dropped the receiver: `answer` then returns an error.
            let _ = jobs.send(job);
            let _ = self.bell.write(1);
        }
        answer.recv().map_err(|_| gone)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        let _ = self.bell.write(1);
        if let Some(thread) = self.thread.take() {
            // The panic handler has already reported a panic of the thread.
            let _ = thread.join();
        }
    }
}

/// The event sources that the thread waits for.
struct Watch {
    epoll: Epoll,
    kicks: Vec<EventFd>,
    bell: EventFd,
    watched: Vec<RawFd>,
    /// Those that it does not wait for at present.
    unwatched: Unwatched,
}

impl Watch {
    fn new(backend: &mut Backend, kicks: Vec<EventFd>, bell: &EventFd) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let bell = bell.try_clone()?;
        epoll.ctl(ControlOperation::Add, bell.as_raw_fd(), EpollEvent::new(EventSet::IN, JOB))?;
        let watched = backend.device().watched();
        let watch = Self { epoll, kicks, bell, watched, unwatched: Unwatched::default() };
        watch.sources().try_for_each(|source| watch.control(ControlOperation::Add, &source))?;
        Ok(watch)
    }

    /// Returns everything that it waits for at times.
    fn sources(&self) -> impl Iterator<Item = Source> {
        let queue = |(index, kick): (u32, &EventFd)| Source {
            fd: kick.as_raw_fd(),
            event: EpollEvent::new(EventSet::IN, QUEUE + u64::from(index)),
            taken: Unwatched { queues: 1 << index, descriptors: 0 },
        };
        let descriptor = |(index, fd): (u32, &RawFd)| Source {
            fd: *fd,
            event: EpollEvent::new(
                EventSet::IN | EventSet::EDGE_TRIGGERED,
                WATCHED + u64::from(index),
            ),
            taken: Unwatched { queues: 0, descriptors: 1 << index },
        };
        (0..).zip(&self.kicks).map(queue).chain((0..).zip(&self.watched).map(descriptor))
    }

    fn control(&self, operation: ControlOperation, source: &Source) -> io::Result<()> {
        self.epoll.ctl(operation, source.fd, source.event)
    }

    /// Leaves to the kernel what it waits for, and waits for all else from now on.
    fn leave_to_kernel(&mut self, unwatched: Unwatched) {
        let before = std::mem::replace(&mut self.unwatched, unwatched);
        if before == unwatched {
            return;
        }
        for source in self.sources() {
            let changed = match (source.is_in(before), source.is_in(unwatched)) {
                (false, true) => self.control(ControlOperation::Delete, &source),
                (true, false) => self.control(ControlOperation::Add, &source),
                _ => Ok(()),
            };
            if let Err(error) = changed {
                tracing::error!(%error, "a device's thread does not wait for what it should");
            }
        }
    }

    /// Runs the thread's event loop.
    fn run(mut self, mut backend: Backend, inbox: &Receiver<Job>) {
        let mut events = [EpollEvent::default(); EVENTS_MAX];
        loop {
            self.leave_to_kernel(backend.device().unwatched());
            let wait = backend.idle_for(Instant::now());
            let count = match self.epoll.wait(wait.map_or(-1, milliseconds), &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => {
                    tracing::error!(%error, "a device's thread cannot wait");
                    return;
                }
            };
            for event in &events[..count] {
                self.take(event.data(), &mut backend);
            }
            if self.run_jobs(&mut backend, inbox).is_err() {
                return;
            }
            backend.work(Instant::now());
        }
    }

    fn take(&self, what: u64, backend: &mut Backend) {
        match what {
            JOB => drop(self.bell.read()),
            WATCHED.. => backend.ready((what - WATCHED) as usize),
            _ => {
                let index = (what - QUEUE) as usize;
                if let Some(kick) = self.kicks.get(index) {
                    let _ = kick.read();
                    backend.notify(index);
                }
            }
        }
    }

    /// Runs the queued jobs; returns an error once the `Worker` was dropped.
    fn run_jobs(&self, backend: &mut Backend, inbox: &Receiver<Job>) -> Result<(), ()> {
        loop {
            let was_paused = backend.is_paused();
            match inbox.try_recv() {
                Ok(job) => job(backend),
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(()),
            }
            if was_paused && !backend.is_paused() {
                // Edges that arrived during the pause were not reported.
                (0..self.watched.len()).for_each(|index| backend.ready(index));
            }
        }
    }
}

/// What the thread waits for at times.
struct Source {
    fd: RawFd,
    event: EpollEvent,
    /// What the kernel takes when the thread does not wait for it.
    taken: Unwatched,
}

impl Source {
    fn is_in(&self, unwatched: Unwatched) -> bool {
        let Unwatched { queues, descriptors } = self.taken;
        unwatched.queues & queues != 0 || unwatched.descriptors & descriptors != 0
    }
}

/// Rounded up, so that the thread does not turn in circles just before something is due.
fn milliseconds(wait: Duration) -> i32 {
    i32::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests;
