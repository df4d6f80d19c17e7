//! How the calling thread is scheduled: `sched_setattr(2)`.

use std::io::Result;
use std::time::Duration;

use super::check;

/// How a thread is scheduled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scheduling(libc::sched_attr);

impl Scheduling {
    /// Returns that of the calling thread.
    ///
    /// # Errors
    /// The error from the system.
    pub(crate) fn of_this_thread() -> Result<Self> {
        const BYTES: libc::c_uint = size_of::<libc::sched_attr>() as libc::c_uint;
        // SAFETY: the structure consists of numbers, for which zeros are valid.
        let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
        let to = &raw mut attributes;
        // SAFETY: the kernel writes at most as many bytes as it is told.
        check(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, to, BYTES, 0) })?;
        Ok(Self(attributes))
    }

    /// Returns whether the thread has a fair share of its core, and so slices.
    pub(crate) fn is_fair(&self) -> bool {
        [libc::SCHED_OTHER, libc::SCHED_BATCH].map(|it| it as u32).contains(&self.0.sched_policy)
    }

    /// Returns the same with this slice, 0.1 to 100 ms; zero is the kernel's own.
    pub(crate) fn with_slice(mut self, slice: Duration) -> Self {
        self.0.sched_runtime = u64::try_from(slice.as_nanos()).unwrap_or(u64::MAX);
        self
    }

    /// Returns its slice; zero from kernels before 6.12.
    pub(crate) fn slice(&self) -> Duration {
        Duration::from_nanos(self.0.sched_runtime)
    }

    /// Has the calling thread scheduled so.
    ///
    /// # Errors
    /// The error from the system.
    pub(crate) fn apply(&self) -> Result<()> {
        // SAFETY: the kernel reads the structure, whose size it finds in it.
        check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const self.0, 0) })
    }
}
