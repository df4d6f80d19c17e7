//! Memory optimisation of the guests on a host: observe, plan, act, verify.
//!
//! [`observe`] reads what each guest process really costs its host, and what the host has left;
//! [`situation`] holds it all as plain numbers, from which everything else decides.
//! [`ksm`] drives the kernel's samepage merging in windows; [`foreign`] asks guests that QEMU or Cloud Hypervisor runs;
//! [`survey`] tells from a sample of pages what merging would save.
//!
//! It depends on nothing else of the workspace but `regular-file`. Start reading at [`situation::Situation`].

pub mod foreign;
pub mod ksm;
pub mod observe;
pub mod situation;
pub mod survey;
