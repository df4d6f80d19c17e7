//! Ends a wait for pages, from any thread.

use std::io::Result;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

/// A signal that lasts until it is heard: it can be polled, and is readable from [`Bell::ring`]
/// until [`Bell::hear`].
#[derive(Debug)]
pub(super) struct Bell(OwnedFd);

impl Bell {
    /// Creates one that has not been rung.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(super) fn new() -> Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Ends the wait under way, or else the next one.
    pub(super) fn ring(&self) {
        // It fails only once it has been rung 2^64 - 2 times and not been heard.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Has later waits last until it is rung again.
    pub(super) fn hear(&self) {
        // It fails only if it has not been rung.
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
