//! The implementation of the fuzz targets: one module for each source of untrusted input.
//!
//! [`mod@driver`] is a guest's driver of a virtio device, compliant or not; [`peer`] is the other
//! host of a migration, [`arrival`] a guest that arrives from it; [`mod@file`] are files on disk,
//! [`certificate`] are texts about a host's certificate, [`mod@seed`] documents of a seed disk;
//! [`hot_plug`] is a guest whose devices come and go, [`host_device`] one with a device of the
//! host. Every entry point returns how far its input got, so that `tests/reach.rs` can tell a
//! target that exercises the code from one whose input is rejected by the first checks.
//! `scripts/fuzz` runs the targets.

pub mod arrival;
pub mod certificate;
pub mod driver;
pub mod file;
pub mod host_device;
pub mod hot_plug;
pub mod peer;
pub mod seed;

use arbitrary::{Arbitrary, Unstructured};

/// Limit on the elements of a list, so that a single input does not take long.
const ELEMENTS_MAX: usize = 256;

/// Decodes a list that takes up the whole input. The default of `arbitrary` flips a coin after each
/// element, which makes lists short.
fn all<'a, T: Arbitrary<'a>>(input: &mut Unstructured<'a>) -> arbitrary::Result<Vec<T>> {
    let mut list = Vec::new();
    while !input.is_empty() && list.len() < ELEMENTS_MAX {
        // The last element may be truncated.
        let Ok(element) = input.arbitrary() else { break };
        list.push(element);
    }
    Ok(list)
}
