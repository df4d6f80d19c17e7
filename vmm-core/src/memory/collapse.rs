//! Collapses small pages into huge ones.

use std::io::{ErrorKind, Result};

/// Most attempts for a huge page whose pages are in use by the kernel.
const TRIES: usize = 8;

/// Collapses each block into a huge page. The kernel skips a block whose pages are in use at that
/// moment, and reports this only if the call is for that block alone, so each block gets its own
/// call and some retries.
///
/// # Errors
/// If no block could be collapsed: the kernel's error for the last one.
pub(super) fn each<T>(
    blocks: impl Iterator<Item = T>,
    collapse: impl Fn(&T) -> Result<()>,
) -> Result<()> {
    let mut outcome = None;
    for block in blocks {
        let mut collapsed = collapse(&block);
        for _ in 1..TRIES {
            if !matches!(&collapsed, Err(error) if error.kind() == ErrorKind::WouldBlock) {
                break;
            }
            std::thread::yield_now();
            collapsed = collapse(&block);
        }
        outcome = match outcome {
            Some(Ok(())) => Some(Ok(())),
            _ => Some(collapsed),
        };
    }
    outcome.unwrap_or(Ok(()))
}
