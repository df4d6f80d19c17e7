//! The contenders, and the order of their turns.

use std::hash::{BuildHasher, Hasher, RandomState};

/// A contender: decides what is merged, and how fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// lighter, by `lighter density apply`.
    Lighter,
    /// ksmd with the kernel's default settings: 100 pages, 20 ms.
    Default,
    /// ksmd driven by ksmtuned's rules.
    Ksmtuned,
    /// ksmd driven by the rules of oVirt's MoM.
    Mom,
    /// ksmd with the kernel's advisor (Linux 6.8): `advisor_mode` = `scan-time`, with its defaults.
    Advisor,
    /// ksmd over all memory, at the fastest pace that lighter allows.
    Fast,
}

impl Contender {
    /// All contenders, in the order of the table.
    pub(crate) const ALL: [Self; 6] =
        [Self::Lighter, Self::Default, Self::Ksmtuned, Self::Mom, Self::Advisor, Self::Fast];

    /// The contender's name on the command line.
    pub(crate) const fn option(self) -> &'static str {
        match self {
            Self::Lighter => "lighter",
            Self::Default => "default",
            Self::Ksmtuned => "ksmtuned",
            Self::Mom => "mom",
            Self::Advisor => "advisor",
            Self::Fast => "fast",
        }
    }

    /// The contender's name in the table.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Lighter => "lighter",
            Self::Default => "ksmd, the kernel's defaults",
            Self::Ksmtuned => "ksmd, ksmtuned's law",
            Self::Mom => "ksmd, MoM's law",
            Self::Advisor => "ksmd, the kernel's advisor",
            Self::Fast => "ksmd, as fast as lighter's",
        }
    }
}

/// Draws the order of turns from a seed (xorshift64*, <https://doi.org/10.1145/2845077>).
#[derive(Debug)]
pub(crate) struct Lot(u64);

impl Lot {
    /// Creates a generator that draws the same orders for the same seed.
    pub(crate) fn new(seed: u64) -> Self {
        // The generator's state must never be 0.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).max(1))
    }

    /// Returns a random seed.
    pub(crate) fn any_seed() -> u64 {
        RandomState::new().build_hasher().finish() % 1_000_000
    }

    /// Returns all of `contenders` in random order.
    pub(crate) fn order(&mut self, contenders: &[Contender]) -> Vec<Contender> {
        let mut order = contenders.to_vec();
        // Fisher-Yates shuffle.
        for last in (1..order.len()).rev() {
            let chosen = self.next() % (last as u64 + 1);
            order.swap(last, chosen as usize);
        }
        order
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33
    }
}
