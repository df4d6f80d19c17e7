//! The thread of a vCPU, and how other threads control it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_ioctls::VmFd;

use super::Vcpu;
use super::resets::Resets;
use crate::devices::{PortEffect, Ports};
use crate::dirty::Rings;
use crate::error::{Error, Result};
use crate::event::{EventQueue, StopReason, VmEvent};
use crate::memory::GuestRam;
use crate::sys::kick::{Kickable, kick};
use crate::virtio::{Bus, BusWrite};

/// Stack of a vCPU's thread, in bytes.
const STACK_BYTES: usize = 512 << 10;

/// What all vCPUs of a guest share. On drop the devices' threads end first, then the VM's
/// descriptor is closed, and only then its memory is unmapped: keep this order of fields.
#[derive(Debug)]
pub(crate) struct Machine {
    /// Its virtio devices.
    pub(crate) bus: Bus,
    /// KVM's dirty rings, if it uses them.
    pub(crate) rings: Option<Arc<Rings>>,
    /// KVM's descriptor of the VM.
    pub(crate) vm: Arc<VmFd>,
    /// Its memory, mapped into this process.
    pub(crate) ram: Arc<GuestRam>,
    /// Its devices behind I/O ports.
    pub(crate) ports: Ports,
    /// Its events for the owner.
    pub(crate) events: Arc<EventQueue>,
    stopped: OnceLock<StopReason>,
    /// The policy for resets, and the pending one.
    pub(crate) resets: Resets,
    vcpus: Mutex<Vec<Arc<Mailbox>>>,
}

impl Machine {
    /// A machine without vCPUs.
    pub(crate) fn new(
        vm: Arc<VmFd>,
        ram: Arc<GuestRam>,
        ports: Ports,
        bus: Bus,
        rings: Option<Arc<Rings>>,
    ) -> Self {
        Self {
            bus,
            rings,
            vm,
            ram,
            ports,
            events: Arc::default(),
            stopped: OnceLock::new(),
            resets: Resets::default(),
            vcpus: Mutex::default(),
        }
    }

    /// Handles a vCPU read of ports.
    pub(crate) fn read_port(&self, port: u16, data: &mut [u8]) {
        if !self.bus.read_port(port, data) {
            self.ports.read(port, data);
        }
    }

    /// Handles a vCPU write of ports.
    pub(crate) fn write_port(&self, port: u16, data: &[u8]) -> PortEffect {
        match self.bus.write_port(port, data) {
            BusWrite::Elsewhere => return self.ports.write(port, data),
            BusWrite::Done => {}
            BusWrite::Ejected => self.report_ejections(),
        }
        PortEffect::None
    }

    /// Reports to the owner devices that the guest has let go of, if there are any.
    pub(crate) fn report_ejections(&self) {
        if self.bus.has_ejections() {
            self.events.push(VmEvent::Ejected);
        }
    }

    /// Returns why the guest has ended, if it has.
    pub(crate) fn stopped(&self) -> Option<&StopReason> {
        self.stopped.get()
    }

    /// Ends the guest: no vCPU enters it again. Only the first reason counts. Does not wait.
    pub(crate) fn stop(&self, reason: StopReason) {
        if self.stopped.set(reason.clone()).is_err() {
            return;
        }
        self.order_all_to_park();
        self.events.push(VmEvent::Stopped(reason));
    }

    /// Handles a vCPU that cannot continue: requests a reset if the policy says so, and ends the
    /// guest otherwise. Does not wait.
    pub(crate) fn end_or_start_over(&self, reason: StopReason) {
        if !self.resets.starts_over(&reason) {
            return self.stop(reason);
        }
        self.resets.request(reason.clone());
        self.order_all_to_park();
        self.events.push(VmEvent::Reset(reason));
    }

    /// Returns what controls the vCPUs' threads.
    pub(crate) fn mailboxes(&self) -> Vec<Arc<Mailbox>> {
        self.vcpus.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn order_all_to_park(&self) {
        for mailbox in self.vcpus.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            mailbox.order(Order::Park);
        }
    }
}

/// What a vCPU's thread has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Leave the guest, finish the current instruction and wait.
    Park,
    /// Run the guest.
    Run,
    /// End the thread.
    Exit,
}

type Job = Box<dyn FnOnce(&mut Vcpu) + Send>;

/// The pending result of a job.
#[derive(Debug)]
pub(crate) struct Answer<T> {
    vcpu: u8,
    receiver: mpsc::Receiver<T>,
}

impl<T> Answer<T> {
    /// Waits until the job is done.
    pub(crate) fn wait(self) -> Result<T> {
        self.receiver.recv().map_err(|_| Error::VcpuThreadGone(self.vcpu))
    }
}

/// Orders for a vCPU's thread, and the thread's state.
pub(crate) struct Mailbox {
    inner: Mutex<Inbox>,
    changed: Condvar,
    /// Whether the order is not to run, or the vCPU is to rest; read without the lock after every
    /// exit from the guest.
    leave: AtomicBool,
}

struct Inbox {
    order: Order,
    /// When a vCPU that is to run may enter the guest again.
    rest_until: Option<Instant>,
    jobs: VecDeque<Job>,
    parked: bool,
    gone: bool,
    tid: Option<libc::pid_t>,
}

impl Inbox {
    /// Returns what is left of a rest.
    fn rest_left(&self) -> Option<Duration> {
        let left = self.rest_until?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }
}

impl std::fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mailbox").field("leave", &self.leave).finish_non_exhaustive()
    }
}

impl Mailbox {
    fn new() -> Self {
        let inbox = Inbox {
            order: Order::Park,
            rest_until: None,
            jobs: VecDeque::new(),
            parked: false,
            gone: false,
            tid: None,
        };
        Self { inner: Mutex::new(inbox), changed: Condvar::new(), leave: AtomicBool::new(true) }
    }

    /// Whether the vCPU must not enter the guest again.
    pub(crate) fn must_leave(&self) -> bool {
        self.leave.load(Ordering::Acquire)
    }

    /// Gives an order and, unless it is to run, kicks the thread. Does not wait.
    fn order(&self, order: Order) {
        let mut inbox = self.lock();
        if inbox.order == Order::Exit {
            return;
        }
        inbox.order = order;
        inbox.rest_until = None;
        self.leave.store(order != Order::Run, Ordering::Release);
        if order == Order::Run {
            inbox.parked = false;
        } else if !inbox.parked
            && let Some(tid) = inbox.tid
        {
            kick(tid);
        }
        self.changed.notify_all();
    }

    /// Has a vCPU that runs leave the guest, and stay out for `time` unless it gets another order.
    /// Does not wait.
    pub(super) fn rest_for(&self, time: Duration) {
        let mut inbox = self.lock();
        if inbox.order != Order::Run {
            return;
        }
        inbox.rest_until = Instant::now().checked_add(time);
        self.leave.store(true, Ordering::Release);
        if let Some(tid) = inbox.tid {
            kick(tid);
        }
    }

    /// Ends a rest.
    pub(super) fn end_rest(&self) {
        let mut inbox = self.lock();
        if inbox.rest_until.take().is_some() {
            self.leave.store(inbox.order != Order::Run, Ordering::Release);
            self.changed.notify_all();
        }
    }

    /// Waits until the vCPU is parked, or its thread has ended.
    fn wait_parked(&self) {
        let mut inbox = self.lock();
        while !inbox.parked && !inbox.gone {
            inbox = self.changed.wait(inbox).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Returns what the vCPU's thread has to do next; parks or rests until there is something.
    fn next(&self) -> Next {
        let mut inbox = self.lock();
        loop {
            if let Some(job) = inbox.jobs.pop_front() {
                return Next::Job(job);
            }
            match (inbox.order, inbox.rest_left()) {
                (Order::Run, Some(left)) => {
                    let rested = self.changed.wait_timeout(inbox, left);
                    inbox = rested.unwrap_or_else(PoisonError::into_inner).0;
                    continue;
                }
                (Order::Run, None) => {
                    inbox.rest_until = None;
                    self.leave.store(false, Ordering::Release);
                    return Next::Run;
                }
                (Order::Exit, _) => return Next::Exit,
                (Order::Park, _) => {}
            }
            if !inbox.parked {
                inbox.parked = true;
                self.changed.notify_all();
            }
            inbox = self.changed.wait(inbox).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Next {
    Job(Job),
    Run,
    Exit,
}

/// A vCPU with its thread. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct VcpuThread {
    index: u8,
    mailbox: Arc<Mailbox>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl VcpuThread {
    /// Starts the thread of `vcpu`, parked.
    ///
    /// # Errors
    /// [`Error::StartThread`] if the system refuses.
    pub(crate) fn start(vcpu: Vcpu, machine: &Arc<Machine>) -> Result<Self> {
        let index = vcpu.index();
        let mailbox = Arc::new(Mailbox::new());
        machine.vcpus.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&mailbox));
        let (theirs, machine) = (Arc::clone(&mailbox), Arc::clone(machine));
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            .stack_size(STACK_BYTES)
            .spawn(move || serve(vcpu, &theirs, &machine))
            .map_err(|cause| Error::StartThread { vcpu: index, cause })?;
        Ok(Self { index, mailbox, thread: Mutex::new(Some(thread)) })
    }

    /// Lets the vCPU into the guest.
    pub(crate) fn run(&self) {
        self.mailbox.order(Order::Run);
    }

    /// Orders the vCPU to park, without waiting for it.
    pub(crate) fn ask_to_park(&self) {
        self.mailbox.order(Order::Park);
    }

    /// Waits until the vCPU is parked.
    pub(crate) fn wait_parked(&self) {
        self.mailbox.wait_parked();
    }

    /// Hands a job to the vCPU's thread, which runs it when parked.
    pub(crate) fn submit<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Vcpu) -> T + Send + 'static,
    ) -> Answer<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let mut inbox = self.mailbox.lock();
        if !inbox.gone {
            inbox.jobs.push_back(Box::new(move |vcpu| drop(sender.send(job(vcpu)))));
            self.mailbox.changed.notify_all();
        }
        Answer { vcpu: self.index, receiver }
    }

    /// Ends the thread and waits for it.
    pub(crate) fn exit(&self) {
        self.mailbox.order(Order::Exit);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // The panic handler has already reported a panic in a vCPU's thread.
            let _ = thread.join();
        }
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        self.exit();
    }
}

/// Tells all waiting threads that this thread has ended, even if it panics.
struct GoneOnDrop<'a> {
    mailbox: &'a Mailbox,
}

impl Drop for GoneOnDrop<'_> {
    fn drop(&mut self) {
        let mut inbox = self.mailbox.lock();
        inbox.gone = true;
        inbox.tid = None;
        inbox.jobs.clear();
        self.mailbox.changed.notify_all();
    }
}

/// The body of a vCPU's thread.
fn serve(mut vcpu: Vcpu, mailbox: &Mailbox, machine: &Machine) {
    let _farewell = GoneOnDrop { mailbox };
    let kickable = match Kickable::new(vcpu.fd_mut()) {
        Ok(kickable) => kickable,
        Err(error) => {
            let what = format!("no handler for the kick signal: {error}");
            machine.stop(StopReason::Unexpected { vcpu: vcpu.index(), what });
            return;
        }
    };
    mailbox.lock().tid = Some(kickable.tid());
    loop {
        match mailbox.next() {
            Next::Job(job) => job(&mut vcpu),
            Next::Exit => break,
            Next::Run => {
                if let Err(reason) = vcpu.run(mailbox, machine) {
                    machine.end_or_start_over(reason);
                }
            }
        }
    }
    // Drop it first: the signal handler must not use the vCPU's `kvm_run` after it is unmapped.
    drop(kickable);
    drop(vcpu);
}
