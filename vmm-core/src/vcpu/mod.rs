//! vCPUs: a thread each, parked or in the guest.
//!
//! A [`VcpuThread`] is told what to do (an `Order`) and parks as soon as it can: it leaves the
//! guest when kicked ([`crate::sys::kick`]), finishes the instruction that an exit has left half
//! done, and waits. A parked vCPU runs *jobs*: closures that get the vCPU, always on its own
//! thread, which is how its registers are read and written.

mod resets;
mod run;
mod thread;

pub use resets::OnReboot;
pub(crate) use run::Vcpu;
pub(crate) use thread::{Machine, VcpuThread};
