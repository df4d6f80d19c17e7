//! Iterates over the set bits of a chunk's page mask.

/// A run of consecutive pages in one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First page of the run, counted from the chunk's start (0 to 63).
    pub first: usize,
    /// Number of pages in the run (1 to 64).
    pub count: usize,
}

/// Returns the runs of set bits of `mask`, lowest first.
pub fn runs(mask: u64) -> impl Iterator<Item = Run> {
    let mut left = mask;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let first = left.trailing_zeros();
        let count = (left >> first).trailing_ones();
        let taken = if count == 64 { u64::MAX } else { ((1 << count) - 1) << first };
        left &= !taken;
        Some(Run { first: first as usize, count: count as usize })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_exactly_the_set_bits() {
        for mask in [0, 1, u64::MAX, 1 << 63, 0b1011, 0xF0F0_0000_0000_00FF, !1, u64::MAX >> 1] {
            let mut seen = 0u64;
            for run in runs(mask) {
                for page in run.first..run.first + run.count {
                    seen |= 1 << page;
                }
            }
            assert_eq!(seen, mask);
        }
    }

    #[test]
    fn a_full_mask_is_one_run() {
        assert_eq!(runs(u64::MAX).collect::<Vec<_>>(), [Run { first: 0, count: 64 }]);
    }
}
