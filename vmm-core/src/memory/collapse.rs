//! Making huge pages of small ones.

use std::io::{ErrorKind, Result};

/// How often the kernel is asked for a huge page whose pages are in use at the moment.
const TRIES: usize = 8;

/// Has `collapse` make a huge page of each block: the kernel leaves one whose pages are in
/// somebody's hands at the moment as it is, and says so only when it is asked for nothing else.
///
/// # Errors
/// No block became one; the kernel's answer for the last.
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
