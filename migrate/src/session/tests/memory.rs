//! Guest memory for tests and benchmarks: chunks that can be written while they are copied.

use std::sync::{Mutex, PoisonError};

const PAGE: usize = 4096;
const CHUNK: usize = 64 * PAGE;

/// The content to fill a page with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Zero,
    Text,
    Random,
    /// Pages of the three kinds in turn.
    Mixed,
}

pub(crate) struct FakeMemory(Vec<Mutex<Box<[u8]>>>);

impl FakeMemory {
    pub(crate) fn new(chunks: usize) -> Self {
        let chunk = || Mutex::new(vec![0; CHUNK].into_boxed_slice());
        Self(std::iter::repeat_with(chunk).take(chunks).collect())
    }

    pub(crate) fn chunks(&self) -> usize {
        self.0.len()
    }

    /// Runs `access` on the bytes of one chunk.
    pub(crate) fn with<T>(&self, chunk: usize, access: impl FnOnce(&mut [u8]) -> T) -> T {
        access(&mut self.0[chunk].lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Fills all pages; with a different `seed`, the content differs.
    pub(crate) fn fill(&self, content: Content, seed: u64) {
        for chunk in 0..self.chunks() {
            self.with(chunk, |bytes| {
                for (page, bytes) in bytes.chunks_mut(PAGE).enumerate() {
                    let number = (chunk * 64 + page) as u64;
                    fill_page(bytes, content, number, seed);
                }
            });
        }
    }

    /// Returns the first page that differs.
    pub(crate) fn first_difference(&self, other: &Self) -> Option<usize> {
        (0..self.chunks()).find_map(|chunk| {
            let theirs = other.with(chunk, |bytes| bytes.to_vec());
            self.with(chunk, |ours| {
                let mut pages = ours.chunks(PAGE).zip(theirs.chunks(PAGE));
                pages.position(|(ours, theirs)| ours != theirs).map(|page| chunk * 64 + page)
            })
        })
    }
}

/// Fills one page.
pub(crate) fn fill_page(bytes: &mut [u8], content: Content, number: u64, seed: u64) {
    match content {
        Content::Zero => bytes.fill(0),
        Content::Text => {
            for (line, bytes) in bytes.chunks_mut(32).enumerate() {
                let text = format!("page {number:>9} line {line:>3} {seed:>7} ");
                bytes.copy_from_slice(&text.as_bytes()[..bytes.len()]);
            }
        }
        Content::Random => {
            let mut state = (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed | 1;
            for word in bytes.chunks_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_le_bytes());
            }
        }
        Content::Mixed => {
            let kinds = [Content::Zero, Content::Text, Content::Random];
            fill_page(bytes, kinds[number as usize % 3], number, seed);
        }
    }
}
