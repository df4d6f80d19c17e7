//! Which pages were written while a guest was looked at, however that was told.

use std::collections::BTreeMap;

use super::watch::Watch;

/// Pages of each chunk of 2 MiB that were written in the moment between two looks.
#[derive(Debug)]
pub enum Written {
    /// Estimated from a few pages of each chunk.
    Sampled(Watch),
    /// Logged by KVM: so many pages of these chunks, by number, and none of any other.
    Logged(BTreeMap<u32, u16>),
}

impl Written {
    /// Pages of a chunk that were written, when `present` of its pages are there. None when nobody
    /// has looked at any twice.
    #[must_use]
    pub fn pages(&self, chunk: u32, present: u16) -> Option<u16> {
        match self {
            Self::Sampled(watch) => watch.written_pages(chunk, present),
            Self::Logged(pages) => Some(pages.get(&chunk).copied().unwrap_or(0).min(present)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_in_the_log_was_not_written() {
        let written = Written::Logged(BTreeMap::from([(3, 40)]));
        assert_eq!(written.pages(3, 512), Some(40));
        assert_eq!(written.pages(3, 30), Some(30), "what is gone again is not there");
        assert_eq!(written.pages(4, 512), Some(0));
    }
}
