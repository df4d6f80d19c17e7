//! The dialogue between a source and the node of the destination.
//!
//! Before a migration, a source asks the node to [`admit`] a guest and is told the port and the
//! token of the process that will take it in. After it has lost that process, it asks the node what
//! became of it ([`ask`]); and the node of a source whose own process died says what the record
//! holds ([`resolve`]). Before a copy is let run by hand, [`trace`] asks where the guest is. The
//! node answers by [`serve()`]. One request for each connection, everything bounded and timed.

mod dial;
mod serve;

pub use dial::{Admission, FrontError, ResolveTarget, Sought, Traced, admit, ask, resolve, trace};
pub use serve::{FrontHandler, serve};
