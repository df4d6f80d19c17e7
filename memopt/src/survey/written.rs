//! Which pages were written during a survey, sampled or logged.

use std::collections::BTreeMap;

use super::watch::Watch;

/// Pages of each chunk of 2 MiB that were written between two scans.
#[derive(Debug)]
pub enum Written {
    /// Estimated from a few pages of each chunk.
    Sampled(Watch),
    /// Logged by KVM: the number of written pages by chunk number; none in all other chunks.
    Logged(BTreeMap<u32, u16>),
}

impl Written {
    /// Returns how many pages of a chunk were written, if `present` of its pages are present.
    /// `None` if no page of it was sampled twice.
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
