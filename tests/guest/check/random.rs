//! Pseudorandom numbers, the same after each boot.

/// A linear congruential generator, whose lower bits are discarded.
pub struct Random(u64);

impl Random {
    /// Starts the sequence.
    pub fn new() -> Self {
        Self(1)
    }

    /// Returns a number below `count`.
    pub fn below(&mut self, count: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % count
    }
}
