//! The host's kernel carries the frames (vhost-net, drivers/vhost/net.c): between the rings in
//! guest memory and the tap, without this process.
//!
//! The device starts it when its guest runs and stops it before it is paused, so all else (saved
//! states, the hand-over of a migration, a destination without vhost) sees queues as if the
//! device's own thread had served them. What the kernel writes to guest memory is logged while
//! dirty pages are tracked, see [`crate::memory::WriteLog`].

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use vhost::net::VhostNet;
use vhost::vhost_kern::net::Net;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{RECEIVE, TRANSMIT};
use crate::memory::{GuestRam, RamMap};
use crate::sys::{host_address, net};
use crate::virtio::device::KernelAccess;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{Queue, QueueError};
use crate::virtio::registers::QueueRegisters;

/// The kernel's indexes of the queues that it serves.
const VRINGS: [usize; 2] = [RECEIVE, TRANSMIT];
/// Features of a driver that the kernel has to know.
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_NET_F_MRG_RXBUF;
/// `VHOST_F_LOG_ALL` of linux/vhost_types.h: log writes to guest memory.
const LOG_ALL: u64 = 1 << 26;
/// `VHOST_VRING_F_LOG` of linux/vhost_types.h: log writes to the used ring.
const LOG_USED: u32 = 1;

/// Signals of the kernel that the device's thread watches, see [`Vhost::watched`].
pub(super) const SIGNALS: usize = 3;

/// Size of the tap's send buffer, in bytes. With the default, which is one more, the kernel builds
/// several frames before it hands them to the tap, by code that does not check how short they are
/// (CVE-2024-41091, CVE-2026-46321): a guest could have it leak the host's memory. With any other
/// size it sends each frame as a program does.
const SEND_BUFFER_BYTES: i32 = i32::MAX - 1;

/// The kernel's side of a pair of queues; see the module.
pub(super) struct Vhost {
    kernel: Net<Arc<RamMap>>,
    /// Indexes of the queues in the device.
    queues: [usize; 2],
    /// The kernel reads and writes this memory, and its write log.
    ram: Arc<GuestRam>,
    eventfds: [Eventfds; 2],
    /// Written by the kernel when it refuses to go on with a queue.
    error: EventFd,
    /// Whether writes to guest memory have to be logged.
    logs: bool,
    /// What the driver accepted of [`FEATURES`], and its rings, while the kernel serves them.
    served: Option<(u64, [QueueRegisters; 2])>,
    /// Whether the kernel has refused to serve these queues.
    refused: bool,
}

/// The eventfds of a queue.
#[derive(Debug)]
struct Eventfds {
    /// Written by KVM when the driver notifies the queue.
    kick: EventFd,
    /// Written by the kernel when the driver wants an interrupt for used buffers.
    call: EventFd,
}

impl Vhost {
    /// Opens `/dev/vhost-net` for a pair of a device's `queues`.
    ///
    /// # Errors
    /// The error from the system; `Unsupported` if the kernel lacks a feature that a driver may
    /// use.
    pub(super) fn open(access: &KernelAccess<'_>, queues: [usize; 2]) -> vhost::Result<Self> {
        let kernel = Net::new(Arc::new(access.ram.memory().clone()))?;
        let missing = (FEATURES | LOG_ALL) & !kernel.get_features()?;
        if missing != 0 {
            let what = format!("the kernel's vhost-net lacks features {missing:#x}");
            return Err(refusal(ErrorKind::Unsupported, what));
        }
        kernel.set_owner()?;
        kernel.set_mem_table(&regions(access.ram))?;
        let of = |queue: usize| {
            let kick = access.kicks.get(queue).ok_or(ErrorKind::InvalidInput)?.try_clone()?;
            let call = EventFd::new(EFD_NONBLOCK)?;
            access.line.follow(queue, call.try_clone()?);
            io::Result::Ok(Eventfds { kick, call })
        };
        let [receive, transmit] = queues.map(|queue| of(queue).map_err(vhost::Error::IOError));
        let eventfds = [receive?, transmit?];
        let error = EventFd::new(EFD_NONBLOCK).map_err(vhost::Error::IOError)?;
        let ram = Arc::clone(access.ram);
        let (logs, served, refused) = (false, None, false);
        Ok(Self { kernel, queues, ram, eventfds, error, logs, served, refused })
    }

    /// Returns whether the kernel carries the frames now.
    pub(super) fn runs(&self) -> bool {
        self.served.is_some()
    }

    /// Returns whether it may start: the kernel did not refuse before, the driver has set up both
    /// queues, and all of guest memory is there. (An access of the kernel to a page that has not
    /// arrived could hold up the end of this process when that is killed.)
    pub(super) fn can_start(&self, queues: &[Option<Queue>]) -> bool {
        let is_set_up = |index| matches!(queues.get(index), Some(Some(_)));
        !self.refused && self.ram.is_complete() && self.queues.into_iter().all(is_set_up)
    }

    /// Has the kernel carry frames between `tap` and the queues of a driver that has accepted
    /// `features`. Returns the error of a kernel that does not do it, and is not asked again until
    /// the driver has set up its queues anew.
    ///
    /// # Errors
    /// If the kernel served one of the queues for a moment, and that is broken now.
    pub(super) fn start(
        &mut self,
        tap: BorrowedFd<'_>,
        features: u64,
        queues: &mut [Option<Queue>],
    ) -> Result<vhost::Result<()>, QueueError> {
        let started = self.try_start(tap, features & FEATURES, queues);
        if started.is_err() {
            self.refused = true;
            self.stop(queues)?;
        }
        Ok(started)
    }

    fn try_start(
        &mut self,
        tap: BorrowedFd<'_>,
        features: u64,
        queues: &[Option<Queue>],
    ) -> vhost::Result<()> {
        let [Some(Some(receive)), Some(Some(transmit))] = self.queues.map(|at| queues.get(at))
        else {
            return Err(vhost::Error::InvalidQueue);
        };
        let both = [receive, transmit];
        if !both.iter().all(|queue| queue.is_settled()) {
            // The kernel's queues have one position only. No device of ours leaves such a queue.
            return Err(refusal(ErrorKind::InvalidData, "a request is half done"));
        }
        net::set_send_buffer(tap, SEND_BUFFER_BYTES).map_err(vhost::Error::IOError)?;
        // What was said of queues that are gone.
        for signal in [&self.error, &self.eventfds[RECEIVE].call, &self.eventfds[TRANSMIT].call] {
            let _ = signal.read();
        }
        let rings = both.map(Queue::registers);
        self.kernel.set_features(self.with_log(features))?;
        for ((index, queue), rings) in VRINGS.into_iter().zip(both).zip(&rings) {
            let Eventfds { kick, call } = &self.eventfds[index];
            self.kernel.set_vring_num(index, rings.size)?;
            self.kernel.set_vring_base(index, queue.position().next_available)?;
            self.kernel.set_vring_addr(index, &self.vring(rings))?;
            self.kernel.set_vring_err(index, &self.error)?;
            self.kernel.set_vring_call(index, call)?;
            self.kernel.set_vring_kick(index, kick)?;
        }
        let tap = File::from(tap.try_clone_to_owned().map_err(vhost::Error::IOError)?);
        self.served = Some((features, rings));
        for (index, own) in VRINGS.into_iter().zip(&self.eventfds) {
            self.kernel.set_backend(index, Some(&tap))?;
            // The driver may have notified before the kernel listened.
            own.kick.write(1).map_err(vhost::Error::IOError)?;
        }
        Ok(())
    }

    /// Stops the kernel, and has `queues` continue where it stopped. Does nothing if it does not
    /// run. When this returns, the kernel does not touch guest memory.
    ///
    /// # Errors
    /// If the kernel had refused to go on, or does not tell where it stopped.
    pub(super) fn stop(&mut self, queues: &mut [Option<Queue>]) -> Result<(), QueueError> {
        if !self.runs() {
            return Ok(());
        }
        self.halt();
        if self.error.read().is_ok() {
            return Err(QueueError::Kernel);
        }
        for (index, at) in VRINGS.into_iter().zip(self.queues) {
            let next = self.kernel.get_vring_base(index).map_err(|_| QueueError::Kernel)?;
            if let Some(Some(queue)) = queues.get_mut(at) {
                queue.go_on_at(self.ram.memory(), next as u16)?;
            }
        }
        Ok(())
    }

    /// Stops the kernel; where it stopped is lost, as when a driver resets its device.
    pub(super) fn halt(&mut self) {
        if self.served.take().is_none() {
            return;
        }
        for index in VRINGS {
            if let Err(error) = self.kernel.set_backend(index, None) {
                tracing::error!(%error, index, "vhost-net does not stop");
            }
        }
    }

    /// Stops the kernel, as its queues were closed. It may be asked to serve others.
    pub(super) fn forget(&mut self) {
        self.halt();
        self.refused = false;
    }

    /// Has the kernel log its writes from now on, or stop that.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(super) fn log_writes(&mut self, on: bool) -> vhost::Result<()> {
        if on {
            // The log lives as long as `ram`, which is dropped after the kernel was stopped.
            self.kernel.set_log_base(self.ram.write_log().address(), None)?;
        }
        self.logs = on;
        let Some((features, rings)) = &self.served else { return Ok(()) };
        self.kernel.set_features(self.with_log(*features))?;
        for (index, rings) in VRINGS.into_iter().zip(rings) {
            self.kernel.set_vring_addr(index, &self.vring(rings))?;
        }
        Ok(())
    }

    fn with_log(&self, features: u64) -> u64 {
        if self.logs { features | LOG_ALL } else { features }
    }

    fn vring(&self, rings: &QueueRegisters) -> VringConfigData {
        VringConfigData {
            queue_max_size: rings.size_max,
            queue_size: rings.size,
            flags: if self.logs { LOG_USED } else { 0 },
            desc_table_addr: rings.descriptors,
            used_ring_addr: rings.used,
            avail_ring_addr: rings.available,
            log_addr: self.logs.then_some(rings.used),
        }
    }

    /// Returns the descriptors that the device's thread has to watch: the signals for interrupts by
    /// queue, and that for errors.
    pub(super) fn watched(&self) -> [RawFd; SIGNALS] {
        let [receive, transmit] = &self.eventfds;
        [receive.call.as_raw_fd(), transmit.call.as_raw_fd(), self.error.as_raw_fd()]
    }

    /// Interrupts the driver for the buffers that the kernel has used, where KVM has not done that.
    pub(super) fn pass_on_signals(&self, interrupt: &Interrupt) {
        for (queue, own) in self.queues.into_iter().zip(&self.eventfds) {
            interrupt.pass_on(queue, &own.call);
        }
    }

    /// Returns whether the kernel goes on with the queues that it serves.
    ///
    /// # Errors
    /// [`QueueError::Kernel`] if it has refused to.
    pub(super) fn check(&self) -> Result<(), QueueError> {
        match self.error.read() {
            Ok(_) if self.runs() => Err(QueueError::Kernel),
            _ => Ok(()),
        }
    }
}

/// A process that was forked meanwhile may hold the kernel's file open for a moment, but the memory
/// goes with this.
impl Drop for Vhost {
    fn drop(&mut self) {
        self.halt();
    }
}

impl fmt::Debug for Vhost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vhost").field("served", &self.served).finish_non_exhaustive()
    }
}

/// An error that the kernel does not report.
fn refusal(
    kind: ErrorKind,
    what: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> vhost::Error {
    vhost::Error::IOError(io::Error::new(kind, what))
}

/// Returns the guest's memory as the kernel has to know it.
fn regions(ram: &GuestRam) -> Vec<VhostUserMemoryRegionInfo> {
    let places = ram.layout().regions().iter().zip(ram.mappings());
    places
        .map(|(place, region)| VhostUserMemoryRegionInfo {
            guest_phys_addr: place.gpa,
            memory_size: place.bytes,
            userspace_addr: host_address(region) as u64,
            ..VhostUserMemoryRegionInfo::default()
        })
        .collect()
}
