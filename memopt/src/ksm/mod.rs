//! Drives the kernel's samepage merging in windows of time, and leaves its settings as they were.
//!
//! [`Window`] decides, with neither clock nor file: what to set so that ksmd stays within a
//! [`Budget`], and when to stop. [`Control`] makes settings, with a journal of what they were and a
//! lock that keeps others out. [`Driver`] is the thin shell around both. What is merged stays
//! merged when a window ends. Start reading at [`Window`]; docs/adr/0017-ksm-windows.md says why.

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
