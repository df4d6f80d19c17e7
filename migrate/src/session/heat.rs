//! Which memory was sent in the last rounds: mostly what its guest wrote.

use std::cmp::Reverse;

/// For each chunk of memory, a bit for each of the last eight rounds, the latest the highest: set
/// if that round was to send pages of the chunk.
#[derive(Debug, Default)]
pub(super) struct Heat(Vec<u8>);

impl Heat {
    /// Notes a round that sends these pages of each chunk.
    pub(super) fn begin_round(&mut self, dirty: &[u64]) {
        self.0.resize(dirty.len(), 0);
        for (rounds, pages) in self.0.iter_mut().zip(dirty) {
            *rounds = *rounds >> 1 | u8::from(*pages != 0) << 7;
        }
    }

    /// Puts the chunks first that were sent last, and of those the ones that were also sent in the
    /// rounds before; otherwise keeps their order.
    pub(super) fn order(&self, chunks: &mut [u32]) {
        chunks.sort_by_key(|chunk| Reverse(self.0.get(*chunk as usize).copied().unwrap_or(0)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rounds_count_first_and_old_ones_not_at_all() {
        let mut heat = Heat::default();
        for round in 0_u32..10 {
            let is_early = u64::from(round < 2);
            let is_old = u64::from(round < 7);
            let is_last = u64::from(round == 9);
            let is_even = u64::from(round % 2 == 0);
            heat.begin_round(&[is_early, is_old, is_last, is_even, 1]);
        }
        let mut chunks = [0, 1, 2, 3, 4, 5];
        heat.order(&mut chunks);
        assert_eq!(chunks, [4, 2, 3, 1, 0, 5]);
    }
}
