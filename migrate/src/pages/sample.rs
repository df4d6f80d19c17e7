//! Tells of single pages whether compression would help.

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use super::compress::SAVING_MIN;
use crate::memory::PAGE_BYTES;

/// Compresses pages to see how much that saves, and discards the result.
pub struct Sampler {
    table: CompressTable,
    output: Box<[u8]>,
}

impl std::fmt::Debug for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sampler").finish_non_exhaustive()
    }
}

impl Default for Sampler {
    fn default() -> Self {
        let output = vec![0; get_maximum_output_size(PAGE_BYTES)].into_boxed_slice();
        Self { table: CompressTable::large(), output }
    }
}

impl Sampler {
    /// Returns whether lz4 shrinks `page`, which has at most [`PAGE_BYTES`], by so much that the
    /// result would be sent.
    pub fn compresses(&mut self, page: &[u8]) -> bool {
        match compress_into_with_table(page, &mut self.output, &mut self.table) {
            Ok(bytes) => bytes as f64 <= page.len() as f64 * (1.0 - SAVING_MIN),
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_compresses_and_noise_does_not() {
        let mut sampler = Sampler::default();
        let text = b"all work and no play makes jack ".repeat(128);
        assert!(sampler.compresses(&text));
        let mut state = 1_u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        let page: Vec<u8> = (0..PAGE_BYTES).map(|_| noise()).collect();
        assert!(!sampler.compresses(&page));
    }
}
