//! The rights that a guest's process gives up before its guest runs, so that an attacker who breaks
//! out of the guest can do little.
//!
//! [`landlock`] limits the process to the files that this guest needs. It is applied while the
//! process has a single thread; later threads inherit it. [`seccomp`] limits all threads to the
//! system calls of [`calls`] once everything is set up; [`raw_trap`] reports any other call.
//! [`capabilities`] drops root's capabilities that the process does not need.
//! `docs/adr/0014-confinement.md` has the reasons. To allow something new, add it to [`calls`] or
//! to [`files`]: there is no other place.

#[cfg(feature = "failpoints")]
pub(crate) mod attempt;
mod calls;
mod capabilities;
pub(crate) mod files;
mod landlock;
mod raw_trap;
mod seccomp;

pub(crate) use capabilities::drop_most as drop_capabilities;
pub(crate) use files::{ArrivingDisks, Files, Means};
pub(crate) use landlock::restrict as restrict_files;
pub(crate) use seccomp::restrict as restrict_calls;
