//! Guests that are defined: the files that users write, and the host's folder of them.
//!
//! [`document`] parses a definition file and reports where it is wrong. [`Definitions`] is
//! `definitions/` in the state folder. It has a file `NAME.toml` for each defined guest, as the
//! user wrote it but with a UUID and network addresses added, and an empty file `NAME.autostart`
//! for each guest that starts when the host boots. Nothing here runs a guest. The module depends on
//! the command line's types, which are those of the file.

mod document;
mod folder;

pub(crate) use document::{Document, Kept};
pub(crate) use folder::{Definition, Definitions};
