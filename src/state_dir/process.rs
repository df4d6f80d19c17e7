//! The process that owns a guest's name, identified before it is asked to end and until it has
//! ended.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::GuestDir;
use crate::file_lock::FileLock;

/// A handle to a guest's process, which never refers to a later process with the same PID.
#[derive(Debug)]
pub(crate) struct ProcessHandle {
    pid: u32,
    handle: OwnedFd,
}

impl ProcessHandle {
    /// Returns the process that owns the name of `guest`.
    ///
    /// # Errors
    /// If it has not published its PID, has ended, or belongs to another user.
    pub(crate) fn of(guest: &GuestDir) -> Result<Self> {
        let pid = guest.read_identity()?.pid;
        let cannot = || format!("cannot find the process of {}, {pid}", guest.name);
        let id = i32::try_from(pid).ok().and_then(Pid::from_raw).with_context(cannot)?;
        let handle = pidfd_open(id, PidfdFlags::empty()).with_context(cannot)?;
        if !FileLock::is_held_by(&guest.lock_file(), pid).with_context(cannot)? {
            bail!("process {pid} is not the one that holds {}", guest.lock_file().display());
        }
        Ok(Self { pid, handle })
    }

    /// Returns its PID.
    pub(crate) fn id(&self) -> u32 {
        self.pid
    }

    /// Sends SIGKILL to it.
    ///
    /// # Errors
    /// If the process no longer exists.
    pub(crate) fn kill(&self) -> Result<()> {
        pidfd_send_signal(&self.handle, Signal::KILL)
            .with_context(|| format!("cannot kill process {}", self.pid))
    }

    /// Whether the process has ended and freed its memory, even if its parent has not reaped it.
    pub(crate) fn has_ended(&self) -> bool {
        let mut handle = [PollFd::new(&self.handle, PollFlags::IN)];
        poll(&mut handle, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    }
}
