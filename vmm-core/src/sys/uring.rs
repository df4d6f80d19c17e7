//! Positioned I/O by io_uring, directly between files and guest memory. Everything that the kernel
//! may still access is kept until it has completed the operation, even if the ring is dropped.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode, register::Restriction, squeue, types};
use vm_memory::bitmap::Bitmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::file::{Direction, SLICES_MAX, advance};
use super::{Buffer, RamMap, RamSlice, slices};

/// Orders submitted to the kernel in one call; more take another call.
const SUBMISSIONS: u32 = 256;
/// Attempts to get completions before memory that the kernel may still access is leaked.
const DROP_ATTEMPTS: u32 = 1000;
/// Times that the kernel may return "try again" for one order without moving a byte before that
/// counts as an error: some kernels return it for ever.
const AGAIN_MAX: u32 = 100;

/// A transfer of bytes between a file and guest memory.
#[derive(Debug)]
pub(crate) struct Transfer {
    /// Offset in the file.
    pub(crate) offset: u64,
    /// Buffers in guest memory.
    pub(crate) buffers: Vec<Buffer>,
    /// Direction of the transfer.
    pub(crate) direction: Direction,
    /// Whether a write must be durable when it completes.
    pub(crate) durable: bool,
}

/// An operation for the kernel.
#[derive(Debug)]
pub(crate) enum Order {
    /// Move bytes between the file and guest memory.
    Transfer(Transfer),
    /// Make earlier writes durable.
    Sync,
}

/// An order in flight, with everything that the kernel may access.
struct InFlight<T> {
    ticket: T,
    file: Arc<File>,
    memory: RamMap,
    order: Order,
    /// Buffers in this process; those from `first` on are not fully transferred.
    vectors: Vec<libc::iovec>,
    first: usize,
    /// Times that the kernel has returned "try again" since it last moved a byte.
    again: u32,
}

// SAFETY: the vectors point into `memory`, which moves with them and may be used from any thread.
unsafe impl<T: Send> Send for InFlight<T> {}

/// A ring; orders complete in any order and are identified by their tickets.
pub(crate) struct Uring<T> {
    ring: IoUring,
    /// Signalled for each completed order.
    event: EventFd,
    /// Orders in flight, indexed by the `user_data` of their entries.
    flights: Vec<Option<InFlight<T>>>,
    free: Vec<usize>,
    in_flight: usize,
}

impl<T> std::fmt::Debug for Uring<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

impl<T> Uring<T> {
    /// Creates a ring for up to `orders_max` orders at a time, restricted to the operations of this
    /// module.
    ///
    /// # Errors
    /// If the host has no io_uring (Linux 5.10 or later), or forbids it to this process.
    pub(crate) fn new(orders_max: u32) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_r_disabled()
            .setup_cqsize(orders_max.max(SUBMISSIONS).next_power_of_two())
            .build(SUBMISSIONS)?;
        let event = EventFd::new(EFD_NONBLOCK)?;
        let allowed = [opcode::Readv::CODE, opcode::Writev::CODE, opcode::Fsync::CODE];
        let submitter = ring.submitter();
        submitter.register_restrictions(&mut allowed.map(Restriction::sqe_op))?;
        // For all completions, not only those of kernel threads: a read that waits for the page
        // cache completes in this task's own work.
        submitter.register_eventfd(event.as_raw_fd())?;
        submitter.register_enable_rings()?;
        Ok(Self { ring, event, flights: Vec::new(), free: Vec::new(), in_flight: 0 })
    }

    /// The eventfd that is readable after a completion, including one during [`Uring::submit`].
    pub(crate) fn event_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// Number of orders in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Queues an order; [`Uring::submit`] submits it.
    ///
    /// # Errors
    /// If a buffer does not lie in memory, or the kernel accepts no more orders. The error comes
    /// with the ticket, and nothing of the order is done.
    pub(crate) fn begin(
        &mut self,
        file: &Arc<File>,
        memory: &RamMap,
        order: Order,
        ticket: T,
    ) -> Result<(), (io::Error, T)> {
        let vectors = match &order {
            Order::Sync => Vec::new(),
            Order::Transfer(transfer) => match vectors(&transfer.buffers, memory) {
                Ok(vectors) => vectors,
                Err(error) => return Err((error, ticket)),
            },
        };
        let (file, memory) = (Arc::clone(file), memory.clone());
        let flight = InFlight { ticket, file, memory, order, vectors, first: 0, again: 0 };
        let number = self.free.pop().unwrap_or_else(|| {
            self.flights.push(None);
            self.flights.len() - 1
        });
        self.flights[number] = Some(flight);
        self.in_flight += 1;
        match self.push(number) {
            Ok(()) => Ok(()),
            Err(error) => match self.land(number) {
                Some(ticket) => Err((error, ticket)),
                // Unreachable: the flight was stored just now.
                None => Ok(()),
            },
        }
    }

    /// Submits all queued orders.
    ///
    /// # Errors
    /// The error from the system; orders that were not submitted stay queued.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        retried(|| self.ring.submit())
    }

    /// Whether any order waits to be submitted, including one that the kernel completed only in
    /// part.
    pub(crate) fn has_unsubmitted(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    /// Submits all queued orders and waits until one completes.
    ///
    /// # Errors
    /// The error from the system.
    pub(crate) fn wait(&mut self) -> io::Result<()> {
        retried(|| self.ring.submit_and_wait(1))
    }

    /// Returns the next completed order with its result. Guest memory that was written has been
    /// marked dirty by then, even if the order failed half-way. Check [`Uring::has_unsubmitted`]
    /// afterwards.
    pub(crate) fn reap(&mut self) -> Option<(T, io::Result<()>)> {
        loop {
            let done = self.ring.completion().next()?;
            let number = done.user_data() as usize;
            let flight = self.flights.get_mut(number)?.as_mut()?;
            let outcome = match flight.moved(done.result()) {
                // Queue the rest of it, or all of it once more.
                None => match self.push(number) {
                    Ok(()) => {
                        // If that fails, the order stays in the ring and counts as in flight.
                        let _ = self.submit();
                        continue;
                    }
                    Err(error) => Err(error),
                },
                Some(outcome) => outcome,
            };
            return self.land(number).map(|ticket| (ticket, outcome));
        }
    }

    /// Queues the entry of a flight.
    fn push(&mut self, number: usize) -> io::Result<()> {
        let Some(Some(flight)) = self.flights.get(number) else { return Ok(()) };
        let entry = flight.entry().user_data(number as u64);
        for _ in 0..2 {
            // SAFETY: file, memory and vectors stay in `flights` until the kernel has completed
            // this entry or the process ends: see `land` and `drop`. The items of the vector do not
            // move meanwhile.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            self.submit()?;
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Removes a flight that the kernel does not know, or has completed.
    fn land(&mut self, number: usize) -> Option<T> {
        let flight = self.flights.get_mut(number)?.take()?;
        self.free.push(number);
        self.in_flight -= 1;
        flight.mark_dirty();
        Some(flight.ticket)
    }
}

impl<T> Drop for Uring<T> {
    fn drop(&mut self) {
        for _ in 0..DROP_ATTEMPTS {
            while self.reap().is_some() {}
            if self.in_flight == 0 {
                return;
            }
            // Try again, whatever the result.
            let _ = self.wait();
        }
        tracing::error!(orders = self.in_flight, "the kernel does not give guest memory back");
        std::mem::forget(std::mem::take(&mut self.flights));
    }
}

impl<T> InFlight<T> {
    fn entry(&self) -> squeue::Entry {
        let file = types::Fd(self.file.as_raw_fd());
        let rest = &self.vectors[self.first..];
        let count = rest.len().min(SLICES_MAX) as u32;
        match &self.order {
            Order::Sync => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
            Order::Transfer(Transfer { offset, direction: Direction::In, .. }) => {
                opcode::Readv::new(file, rest.as_ptr(), count).offset(*offset).build()
            }
            Order::Transfer(Transfer { offset, durable, .. }) => {
                let flags = if *durable { libc::RWF_DSYNC } else { 0 };
                let entry = opcode::Writev::new(file, rest.as_ptr(), count);
                entry.offset(*offset).rw_flags(flags).build()
            }
        }
    }

    /// Handles a completion; `None` if the order is not finished.
    fn moved(&mut self, result: i32) -> Option<io::Result<()>> {
        let moved = match usize::try_from(result) {
            Ok(moved) => moved,
            Err(_) => {
                let error = io::Error::from_raw_os_error(-result);
                return match error.kind() {
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                        if self.again < AGAIN_MAX =>
                    {
                        self.again += 1;
                        None
                    }
                    _ => Some(Err(error)),
                };
            }
        };
        self.again = 0;
        match &mut self.order {
            Order::Sync => Some(Ok(())),
            Order::Transfer(_) if moved == 0 => Some(Err(io::ErrorKind::UnexpectedEof.into())),
            Order::Transfer(transfer) => {
                transfer.offset += moved as u64;
                let left = advance(&mut self.vectors[self.first..], moved).len();
                self.first = self.vectors.len() - left;
                (left == 0).then_some(Ok(()))
            }
        }
    }

    fn mark_dirty(&self) {
        if let Order::Transfer(Transfer { buffers, direction: Direction::In, .. }) = &self.order
            && let Ok(slices) = slices(buffers, &self.memory)
        {
            slices.iter().for_each(|slice| slice.bitmap().mark_dirty(0, slice.len()));
        }
    }
}

/// Returns the addresses of buffers in this process. `memory` must live as long as they are used.
fn vectors(buffers: &[Buffer], memory: &RamMap) -> io::Result<Vec<libc::iovec>> {
    let slices = slices(buffers, memory).map_err(io::Error::other)?;
    let vector = |slice: &RamSlice<'_>| {
        let guard = slice.ptr_guard_mut();
        libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() }
    };
    Ok(slices.iter().map(vector).collect())
}

fn retried(call: impl Fn() -> io::Result<usize>) -> io::Result<()> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{FromRawFd, OwnedFd};

    use vm_memory::GuestAddress;

    use super::*;

    const MEMORY_BYTES: usize = 4 << 20;

    fn memory() -> RamMap {
        RamMap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap()
    }

    fn read_of(bytes: u32) -> Order {
        let buffers = vec![Buffer { gpa: 0, len: bytes }];
        Order::Transfer(Transfer { offset: 0, buffers, direction: Direction::In, durable: false })
    }

    /// Makes `fd` refer to what `other` refers to; returns what it referred to before.
    fn exchange(fd: RawFd, other: RawFd) -> OwnedFd {
        // SAFETY: both are open; the previous file lives on in the copy, which is ours alone.
        unsafe {
            let before = OwnedFd::from_raw_fd(libc::dup(fd));
            assert_eq!(libc::dup2(other, fd), fd);
            before
        }
    }

    #[test]
    fn the_rest_of_an_order_that_cannot_be_handed_over_stays_under_way() {
        let memory = memory();
        let file = Arc::new(tempfile::tempfile().unwrap());
        file.set_len(4096).unwrap();
        let mut ring = Uring::new(4).unwrap();
        ring.begin(&file, &memory, read_of(8192), 7).unwrap();
        ring.wait().unwrap();

        // Half of it is done, and now the kernel accepts nothing.
        let null = File::open("/dev/null").unwrap();
        let number = ring.ring.as_raw_fd();
        let own = exchange(number, null.as_raw_fd());
        assert!(ring.reap().is_none());
        assert!(ring.submit().is_err());
        assert_eq!((ring.in_flight(), ring.has_unsubmitted()), (1, true));

        file.set_len(8192).unwrap();
        exchange(number, own.as_raw_fd());
        ring.wait().unwrap();
        let (ticket, outcome) = ring.reap().unwrap();
        outcome.unwrap();
        assert_eq!((ticket, ring.in_flight(), ring.has_unsubmitted()), (7, 0, false));
    }

    #[test]
    fn endless_eagain_is_not_retried_for_ever() {
        let memory = memory();
        let order = read_of(8192);
        let Order::Transfer(transfer) = &order else { panic!("{order:?}") };
        let vectors = vectors(&transfer.buffers, &memory).unwrap();
        let file = Arc::new(tempfile::tempfile().unwrap());
        let mut flight = InFlight { ticket: (), file, memory, order, vectors, first: 0, again: 0 };
        let answers = |flight: &mut InFlight<()>| {
            (0..).find_map(|count| flight.moved(-libc::EAGAIN).map(|outcome| (count, outcome)))
        };
        assert!(flight.moved(-libc::EINTR).is_none());
        assert!(flight.moved(4096).is_none(), "half of it");
        let (count, outcome) = answers(&mut flight).unwrap();
        assert_eq!(count, AGAIN_MAX, "each half may be asked for as often");
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
