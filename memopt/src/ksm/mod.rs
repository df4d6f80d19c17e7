//! Runs the kernel's samepage merging (KSM) in time windows, and restores its settings afterwards.
//!
//! [`Window`] decides, with neither clock nor file: which settings keep ksmd within a [`Budget`],
//! and when to stop. [`Control`] writes the settings; it keeps their original values in a journal
//! and holds a lock that keeps other processes out. [`Driver`] is the thin shell around both. Pages
//! stay merged when a window ends. Start reading at [`Window`]; docs/adr/0017-ksm-windows.md gives
//! the reasons.

mod control;
mod driver;
mod error;
mod journal;
mod knob;
mod window;

pub use control::{Control, Restored};
pub use driver::Driver;
pub use error::KsmError;
pub use knob::{Foreign, Knob, Set};
pub use window::{Budget, End, Options, Outcome, Sample, Window};
