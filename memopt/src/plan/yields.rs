//! What the host gets back for what a balloon takes: not every page of a guest is present.

use super::view::View;
use crate::situation::Balloon;

/// What the host gets back for what a balloon takes.
///
/// A guest hands out free pages first. Some of these (with free page reporting: nearly all) are
/// already holes and return nothing. The guest decides which of its free pages it hands out; a mix
/// is assumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Yield {
    /// Host memory that the guest holds.
    pub(super) held_bytes: u64,
    /// Memory that the guest could use but that is not present.
    hole_bytes: u64,
    /// Memory that the guest itself reports as free, at least the holes.
    free_bytes: u64,
}

impl Yield {
    /// Returns the yield of the guest of `view`. Memory that it never sees does not count as a
    /// hole, because the balloon cannot take it.
    pub(super) fn of(view: &View<'_>, balloon: &Balloon) -> Self {
        let guest = view.guest;
        let has = guest.has_bytes(balloon).saturating_sub(view.unseen_bytes());
        let held_bytes = guest.cost.resident_bytes.min(has);
        let hole_bytes = has - held_bytes;
        let free = balloon.statistics.as_ref().and_then(|it| it.free_bytes).unwrap_or(0);
        Self { held_bytes, hole_bytes, free_bytes: free.clamp(hole_bytes, has) }
    }

    /// Returns the bytes that come back for `taken` bytes.
    pub(super) fn gain(&self, taken: u64) -> u64 {
        let gain = if taken <= self.free_bytes {
            let there = u128::from(self.free_bytes - self.hole_bytes);
            let gain = u128::from(taken) * there / u128::from(self.free_bytes.max(1));
            u64::try_from(gain).unwrap_or(u64::MAX)
        } else {
            taken - self.hole_bytes
        };
        gain.min(self.held_bytes)
    }

    /// Returns the bytes that have to be taken for `gain` bytes to come back.
    pub(super) fn taken_for(&self, gain: u64) -> u64 {
        let there = self.free_bytes - self.hole_bytes;
        if gain > there {
            return gain.saturating_add(self.hole_bytes);
        }
        let taken = u128::from(gain) * u128::from(self.free_bytes) / u128::from(there.max(1));
        u64::try_from(taken).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn holes_return_no_memory() {
        let touched = Yield { held_bytes: 100, hole_bytes: 0, free_bytes: 50 };
        assert_eq!((touched.gain(30), touched.gain(80)), (30, 80));
        let reported = Yield { held_bytes: 50, hole_bytes: 50, free_bytes: 50 };
        assert_eq!((reported.gain(30), reported.gain(50), reported.gain(80)), (0, 0, 30));
        assert_eq!(reported.taken_for(30), 80);
        let mixed = Yield { held_bytes: 80, hole_bytes: 20, free_bytes: 40 };
        assert_eq!((mixed.gain(20), mixed.gain(40), mixed.gain(50)), (10, 20, 30));
        assert_eq!((mixed.taken_for(10), mixed.taken_for(30)), (20, 50));
    }

    proptest! {
        #[test]
        fn gain_and_taken_are_inverse(
            held in 0..1_u64 << 44, hole in 0..1_u64 << 44, free in 0..1_u64 << 44, share in 0.0..1.0,
        ) {
            let it = Yield { held_bytes: held, hole_bytes: hole, free_bytes: free.clamp(hole, hole + held) };
            let gain = (held as f64 * share) as u64;
            let back = it.gain(it.taken_for(gain));
            // Rounded down twice; where nearly all free memory is holes, taking a byte less loses
            // far less than a byte of gain.
            prop_assert!(back <= gain && gain - back <= 1 + gain / 1_000_000, "{gain} {back}");
        }
    }
}
