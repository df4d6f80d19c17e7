//! Actions on a device's host while its driver works.

use arbitrary::Arbitrary;
use vmm_core::virtio::fuzzing::Bench;

/// An action on the host.
pub trait Host {
    /// The host's end of the device, such as its wire.
    type Side;

    /// Carries out the action and lets the device notice; returns how much of the guest's output
    /// has arrived.
    fn act(&self, bench: &mut Bench, side: &mut Self::Side) -> u64;
}

/// A device, and the host's end of it.
#[derive(Debug)]
pub struct Scene<S> {
    pub(super) bench: Bench,
    pub(super) side: S,
}

/// A host that does nothing.
impl Host for () {
    type Side = ();

    fn act(&self, _: &mut Bench, (): &mut ()) -> u64 {
        0
    }
}

/// The operator of a balloon, who asks for statistics and sets the target.
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
