//! Guests that are written down: the files that users write, and the host's folder of them.
//!
//! [`document`] reads a guest's file and says where it is wrong. [`Definitions`] is `definitions/`
//! in the state folder: for each guest that was defined its file as it was written, `NAME.toml`,
//! and for those that start with the host an empty file `NAME.autostart` beside it. Nothing here
//! runs a guest; depends on the command line's types, which are those of the file.

mod document;
mod folder;

pub(crate) use document::Document;
pub(crate) use folder::{Definition, Definitions};
