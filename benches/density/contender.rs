//! The contenders, and the order of their turns.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Who decides what is merged, and how fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// `lighter density apply`.
    Lighter,
    /// ksmd as the kernel sets it: 100 pages, 20 ms.
    Default,
    /// ksmtuned's law.
    Ksmtuned,
    /// oVirt MoM's law.
    Mom,
    /// The kernel's own advisor (Linux 6.8): `advisor_mode` is `scan-time`, with its defaults.
    Advisor,
    /// ksmd over all memory, as fast as lighter lets it run.
    Fast,
}

impl Contender {
    /// As they stand in the table.
    pub(crate) const ALL: [Self; 6] =
        [Self::Lighter, Self::Default, Self::Ksmtuned, Self::Mom, Self::Advisor, Self::Fast];

    /// As it is chosen on the command line.
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

    /// As it stands in the table.
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
    /// The same orders for the same seed.
    pub(crate) fn new(seed: u64) -> Self {
        // Its state is never 0.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).max(1))
    }

    /// A seed at random.
    pub(crate) fn any_seed() -> u64 {
        RandomState::new().build_hasher().finish() % 1_000_000
    }

    /// All of `contenders`, in an order of its own.
    pub(crate) fn order(&mut self, contenders: &[Contender]) -> Vec<Contender> {
        let mut order = contenders.to_vec();
        // Fisher and Yates.
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
