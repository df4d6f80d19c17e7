//! What is done on a device's host while its driver is at work.

use arbitrary::Arbitrary;
use vmm_core::virtio::fuzzing::Bench;

/// Something that is done on the host.
pub trait Host {
    /// What it is done with.
    type Side;

    /// Does it, and lets the device see; returns how much of the guest's has come through.
    fn act(&self, bench: &mut Bench, side: &mut Self::Side) -> u64;
}

/// A device, and what is at its host's side.
#[derive(Debug)]
pub struct Scene<S> {
    pub(super) bench: Bench,
    pub(super) side: S,
}

/// Nobody does anything.
impl Host for () {
    type Side = ();

    fn act(&self, _: &mut Bench, (): &mut ()) -> u64 {
        0
    }
}

/// The operator of a balloon asks for statistics, and sets how large it shall be.
#[derive(Debug, Arbitrary)]
pub struct Operator {
    pages: u32,
}

impl Host for Operator {
    type Side = ();

    fn act(&self, bench: &mut Bench, (): &mut ()) -> u64 {
        bench.set_balloon(self.pages);
        0
    }
}
