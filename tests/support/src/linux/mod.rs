//! A guest of Linux.

pub mod image;
pub mod witness;
