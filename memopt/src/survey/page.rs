//! One page: whether it is all zeros, and its digest.

use std::fmt;

use xxhash_rust::xxh3::xxh3_128_with_seed;

/// A page of guest memory.
pub type Page = [u8; 4096];

/// The secret part of digests. Each merge domain has one, drawn at random and kept within the
/// domain.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Seed(u64);

impl Seed {
    /// Creates a seed from random bits.
    #[must_use]
    pub const fn new(random: u64) -> Self {
        Self(random)
    }

    /// Returns the XXH3-128 digest of a page, folded to 64 bits.
    pub(super) fn digest(self, page: &Page) -> u64 {
        self.digest_of(page)
    }

    /// Returns the digest of any bytes.
    pub(super) fn digest_of(self, bytes: &[u8]) -> u64 {
        let digest = xxh3_128_with_seed(bytes, self.0);
        (digest ^ (digest >> 64)) as u64
    }

    /// Returns a tag that distinguishes tables of different seeds without revealing the seed: the
    /// digest of the page of zeros, which is in no table.
    pub(super) fn tag(self) -> u64 {
        self.digest(&[0; 4096])
    }
}

/// Does not show the bits: the seed is a secret of its domain.
impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed")
    }
}

/// Returns whether a page is all zeros. For most other pages the first bytes decide.
pub(super) fn is_zero(page: &Page) -> bool {
    let (blocks, _) = page.as_chunks::<64>();
    blocks.iter().all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_anywhere_is_not_zero() {
        let mut page = [0; 4096];
        assert!(is_zero(&page));
        for at in [0, 1, 63, 64, 2047, 4032, 4095] {
            page[at] = 1;
            assert!(!is_zero(&page), "{at}");
            page[at] = 0;
        }
    }

    #[test]
    fn digests_depend_on_the_page_and_on_the_seed() {
        let (one, two) = (Seed::new(1), Seed::new(2));
        let (mut page, zeros) = ([7; 4096], [0; 4096]);
        let digest = one.digest(&page);
        assert_eq!(digest, one.digest(&page));
        assert_ne!(digest, two.digest(&page));
        assert_ne!(one.tag(), two.tag());
        assert_eq!(one.tag(), one.digest(&zeros));
        page[4095] = 8;
        assert_ne!(digest, one.digest(&page));
        assert_eq!(format!("{one:?}"), "Seed");
    }
}
