//! What a guest's process gives up before its guest runs, so that one who breaks out of the guest
//! finds little to do.
//!
//! [`landlock`] leaves the files that this guest needs; it is put on while the process has a single
//! thread, which all others inherit. [`seccomp`] leaves the system calls of [`calls`], in all
//! threads, once everything is set up; [`raw_trap`] tells which one was tried when another is.
//! [`capabilities`] leaves what root's process needs of root's rights.
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
