//! What the fuzz targets do with their input: one module for each party that feeds this program.
//!
//! [`mod@driver`] is a guest's driver in front of a virtio device, by the rules and against them;
//! [`peer`] is the other host of a migration, [`arrival`] a guest that comes from it; [`mod@file`]
//! is what lies on a disk. Every entry returns how far its input came, so that `tests/reach.rs` can
//! tell a target that drives its code from one that is turned away at the door. `scripts/fuzz` runs
//! them.

pub mod arrival;
pub mod driver;
pub mod file;
pub mod peer;

use arbitrary::{Arbitrary, Unstructured};

/// Most elements of a list, so that one input is done soon.
const ELEMENTS_MAX: usize = 256;

/// A list as long as the input: by itself `arbitrary` tosses a coin after each element.
fn all<'a, T: Arbitrary<'a>>(input: &mut Unstructured<'a>) -> arbitrary::Result<Vec<T>> {
    let mut list = Vec::new();
    while !input.is_empty() && list.len() < ELEMENTS_MAX {
        // The last one may be cut off.
        let Ok(element) = input.arbitrary() else { break };
        list.push(element);
    }
    Ok(list)
}
