//! Positioned I/O by io_uring, straight into and out of guest memory. What the kernel may still
//! touch is kept until it has answered, also when the ring is dropped.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode, register::Restriction, squeue, types};
use vm_memory::bitmap::Bitmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::file::{Direction, SLICES_MAX, advance};
use super::{Buffer, RamMap, RamSlice, slices};

/// Orders handed to the kernel at once; more take another call.
const SUBMISSIONS: u32 = 256;
/// Attempts to hear from the kernel before what it may still touch is given up, never to be freed.
const DROP_ATTEMPTS: u32 = 1000;
/// Times that the kernel may say "again" to one order without moving a byte, before that is an
/// error: some kernels say it for ever.
const AGAIN_MAX: u32 = 100;

/// Bytes to be moved between a file and guest memory.
#[derive(Debug)]
pub(crate) struct Transfer {
    /// Where in the file.
    pub(crate) offset: u64,
    /// Where in guest memory.
    pub(crate) buffers: Vec<Buffer>,
    /// Which way.
    pub(crate) direction: Direction,
    /// Whether a write must be durable when it is answered.
    pub(crate) durable: bool,
}

/// What the kernel is to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// Move bytes.
    Transfer(Transfer),
    /// Make durable what was written before.
    Sync,
}

/// An order under way, with all that the kernel may touch.
struct Flight<T> {
    ticket: T,
    file: Arc<File>,
    memory: RamMap,
    order: Order,
    /// What is still to be moved, from `first` on.
    vectors: Vec<libc::iovec>,
    first: usize,
    /// Times that the kernel said "again" since it last moved something.
    again: u32,
}

// SAFETY: the vectors point into `memory`, which goes along and may be used from any thread.
unsafe impl<T: Send> Send for Flight<T> {}

/// A ring; orders come back with their tickets, in any order.
pub(crate) struct Uring<T> {
    ring: IoUring,
    /// Raised for each order that is done.
    event: EventFd,
    /// By the number that the kernel is told.
    flights: Vec<Option<Flight<T>>>,
    free: Vec<usize>,
    in_flight: usize,
}

impl<T> std::fmt::Debug for Uring<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

impl<T> Uring<T> {
    /// A ring for up to `orders_max` orders at a time, which can do nothing but what is here.
    ///
    /// # Errors
    /// The host has no io_uring (5.10 or later), or does not let this process have it.
    pub(crate) fn new(orders_max: u32) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_r_disabled()
            .setup_cqsize(orders_max.max(SUBMISSIONS).next_power_of_two())
            .build(SUBMISSIONS)?;
        let event = EventFd::new(EFD_NONBLOCK)?;
        let allowed = [opcode::Readv::CODE, opcode::Writev::CODE, opcode::Fsync::CODE];
        let submitter = ring.submitter();
        submitter.register_restrictions(&mut allowed.map(Restriction::sqe_op))?;
        // Not only for what kernel threads do: a read that waits for the host's cache is done by
        // this task's own work.
        submitter.register_eventfd(event.as_raw_fd())?;
        submitter.register_enable_rings()?;
        Ok(Self { ring, event, flights: Vec::new(), free: Vec::new(), in_flight: 0 })
    }

    /// Readable when an order was done; also one that [`Uring::submit`] did at once.
    pub(crate) fn event_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// Orders under way.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Takes an order; [`Uring::submit`] hands it over.
    ///
    /// # Errors
    /// A buffer does not lie in memory, or the kernel takes no more; nothing will be done.
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
        let flight = Flight { ticket, file, memory, order, vectors, first: 0, again: 0 };
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
                // It was put there just now.
                None => Ok(()),
            },
        }
    }

    /// Hands over all orders that were taken.
    ///
    /// # Errors
    /// The system's answer; what was not handed over can be later.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        retried(|| self.ring.submit())
    }

    /// Whether there are orders that the kernel was not handed yet, also such that it had done half
    /// of.
    pub(crate) fn has_unsubmitted(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    /// Hands over all orders and waits until one is done.
    ///
    /// # Errors
    /// The system's answer.
    pub(crate) fn wait(&mut self) -> io::Result<()> {
        retried(|| self.ring.submit_and_wait(1))
    }

    /// The next order that is done, with how it went. Guest memory that was written is remembered
    /// as dirty by then, also when it failed half-way. Ask [`Uring::has_unsubmitted`] afterwards.
    pub(crate) fn reap(&mut self) -> Option<(T, io::Result<()>)> {
        loop {
            let done = self.ring.completion().next()?;
            let number = done.user_data() as usize;
            let flight = self.flights.get_mut(number)?.as_mut()?;
            let outcome = match flight.moved(done.result()) {
                // The rest of it, or all of it once more.
                None => match self.push(number) {
                    Ok(()) => {
                        // If that fails the ring keeps the order, which is thereby still under way.
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

    /// Tells the kernel of a flight.
    fn push(&mut self, number: usize) -> io::Result<()> {
        let Some(Some(flight)) = self.flights.get(number) else { return Ok(()) };
        let entry = flight.entry().user_data(number as u64);
        for _ in 0..2 {
            // SAFETY: file, memory and vectors stay in `flights` until the kernel has answered this
            // entry or the process ends: see `land` and `drop`. The vector's items are not moved
            // meanwhile.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            self.submit()?;
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Lets go of a flight that the kernel does not know of, or not any more.
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
            // Tried again, whatever the answer.
            let _ = self.wait();
        }
        tracing::error!(orders = self.in_flight, "the kernel does not give guest memory back");
        std::mem::forget(std::mem::take(&mut self.flights));
    }
}

impl<T> Flight<T> {
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

    /// Takes the kernel's answer in; `None` when the order is not done yet.
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

/// Where buffers lie in this process. `memory` must be kept for as long as that is used.
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

    /// Makes `fd` another name of what `other` is; returns what it was.
    fn exchange(fd: RawFd, other: RawFd) -> OwnedFd {
        // SAFETY: both are open; what `fd` was lives on in the copy, which is ours alone.
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

        // Half of it is done, and the kernel takes nothing now.
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
    fn a_kernel_that_says_again_for_ever_is_not_asked_for_ever() {
        let memory = memory();
        let order = read_of(8192);
        let Order::Transfer(transfer) = &order else { panic!("{order:?}") };
        let vectors = vectors(&transfer.buffers, &memory).unwrap();
        let file = Arc::new(tempfile::tempfile().unwrap());
        let mut flight = Flight { ticket: (), file, memory, order, vectors, first: 0, again: 0 };
        let answers = |flight: &mut Flight<()>| {
            (0..).find_map(|count| flight.moved(-libc::EAGAIN).map(|outcome| (count, outcome)))
        };
        assert!(flight.moved(-libc::EINTR).is_none());
        assert!(flight.moved(4096).is_none(), "half of it");
        let (count, outcome) = answers(&mut flight).unwrap();
        assert_eq!(count, AGAIN_MAX, "each half may be asked for as often");
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
