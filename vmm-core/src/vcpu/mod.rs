//! vCPUs, each with a thread that is parked or in the guest.
//!
//! A [`VcpuThread`] gets an `Order` and, to park, leaves the guest when kicked
//! ([`crate::sys::kick`]), finishes an instruction that an exit left half done, and waits. A parked
//! vCPU runs *jobs*: closures that get the vCPU, always on its own thread. This is how its
//! registers are read and written.

mod faults;
mod resets;
mod run;
mod thread;
mod throttle;
mod writers;

pub(crate) use faults::FaultCounter;
pub use resets::OnReboot;
pub(crate) use run::Vcpu;
pub(crate) use thread::{Machine, VcpuThread};
pub(crate) use throttle::Throttle;
pub use writers::Throttled;
