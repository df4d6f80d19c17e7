//! The last output of a guest's serial console, for any number of readers.
//!
//! The guest writes and never waits: old output is dropped, whether or not it was read. This module
//! keeps no state for each reader. A reader remembers its own offset, counted in bytes since the
//! guest's process started; so a thousand readers, or one that hangs, cost no memory.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Most output that is kept, in bytes.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// The last output of a guest's console.
#[derive(Debug)]
pub(crate) struct Scrollback {
    kept: Mutex<Kept>,
    /// Number of bytes written so far; `None` once there will be no more.
    end: watch::Sender<Option<u64>>,
}

#[derive(Debug, Default)]
struct Kept {
    bytes: VecDeque<u8>,
    /// Offset after the last byte.
    end: u64,
}

/// A part of a guest's console output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Excerpt {
    /// Offset of the first byte.
    pub(crate) from: u64,
    /// Output of the guest from offset `from` on.
    pub(crate) bytes: Vec<u8>,
}

impl Excerpt {
    /// Returns the offset after the last byte: where to continue reading.
    pub(crate) fn next(&self) -> u64 {
        self.from + self.bytes.len() as u64
    }
}

impl Default for Scrollback {
    fn default() -> Self {
        Self { kept: Mutex::default(), end: watch::Sender::new(Some(0)) }
    }
}

impl Scrollback {
    /// Adds output of the guest; drops what exceeds the limit.
    pub(crate) fn push(&self, bytes: &[u8]) {
        let end = {
            let mut kept = self.kept();
            kept.end += bytes.len() as u64;
            kept.bytes.extend(bytes);
            let surplus = kept.bytes.len().saturating_sub(KEPT_BYTES_MAX);
            kept.bytes.drain(..surplus);
            kept.end
        };
        self.end.send_if_modified(|current| {
            let is_open = current.is_some();
            if is_open {
                *current = Some(end);
            }
            is_open
        });
    }

    /// Returns the output from `from` on that is still kept. An offset beyond the end comes from an
    /// earlier process of the guest, so its reader gets everything.
    pub(crate) fn read(&self, from: u64) -> Excerpt {
        let kept = self.kept();
        let oldest = kept.end - kept.bytes.len() as u64;
        let from = if from > kept.end { oldest } else { from.max(oldest) };
        let skipped = usize::try_from(from - oldest).unwrap_or(usize::MAX);
        Excerpt { from, bytes: kept.bytes.iter().skip(skipped).copied().collect() }
    }

    /// Waits until there is output after `from`, or there will be no more.
    pub(crate) async fn wait_beyond(&self, from: u64) {
        let mut end = self.end.subscribe();
        let is_there = |end: &Option<u64>| end.is_none_or(|end| end != from);
        // This cannot fail: `self` owns the sender.
        let _ = end.wait_for(is_there).await;
    }

    /// Marks the end of the output.
    pub(crate) fn close(&self) {
        self.end.send_replace(None);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn text(excerpt: &Excerpt) -> &str {
        std::str::from_utf8(&excerpt.bytes).unwrap()
    }

    #[test]
    fn readers_continue_where_they_stopped() {
        let scrollback = Scrollback::default();
        assert_eq!(scrollback.read(0), Excerpt { from: 0, bytes: Vec::new() });
        scrollback.push(b"hello ");
        let first = scrollback.read(0);
        scrollback.push(b"world");
        assert_eq!(text(&first), "hello ");
        assert_eq!(text(&scrollback.read(first.next())), "world");
        assert_eq!(text(&scrollback.read(0)), "hello world");
        assert_eq!(text(&scrollback.read(12)), "hello world", "from another life");
        assert_eq!(scrollback.read(11).next(), 11);
    }

    #[test]
    fn old_output_is_dropped_and_the_reader_sees_how_much() {
        let scrollback = Scrollback::default();
        for _ in 0..3 {
            scrollback.push(&vec![b'x'; KEPT_BYTES_MAX]);
        }
        scrollback.push(b"end");
        let read = scrollback.read(5);
        assert_eq!(read.bytes.len(), KEPT_BYTES_MAX);
        assert_eq!(read.from, 2 * KEPT_BYTES_MAX as u64 + 3);
        assert!(read.bytes.ends_with(b"xend"));
    }

    #[tokio::test]
    async fn waiting_readers_wake_on_the_next_byte_and_at_the_end() {
        let scrollback = Arc::new(Scrollback::default());
        let wait = |from| {
            let theirs = Arc::clone(&scrollback);
            tokio::spawn(async move { theirs.wait_beyond(from).await })
        };
        let waiting = wait(0);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        scrollback.push(b"x");
        waiting.await.unwrap();
        wait(0).await.unwrap();
        let waiting = wait(1);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        scrollback.close();
        waiting.await.unwrap();
        scrollback.push(b"too late to wake anybody");
        wait(25).await.unwrap();
    }
}
