//! Linux guests: saved images, and the report of the check program in them.

pub mod image;
pub mod witness;
