//! What a guest of these tests reports of its free pages.

use std::sync::atomic::{AtomicBool, AtomicU64};

/// The behaviour of a guest that is asked which pages are free.
#[derive(Default)]
pub(super) struct FakeHints {
    /// The pages that it reports, in this order; if empty, it gives no hints.
    pub(super) pages: Vec<usize>,
    /// Of those, the pages that it clears before it reports them.
    pub(super) cleared: Vec<usize>,
    /// Of those, the pages that it takes back and writes at once.
    pub(super) taken_back: Vec<usize>,
    /// Of those, the pages that it writes as soon as it has them back.
    pub(super) used_afterwards: Vec<usize>,
    /// Whether it never reports that it is complete.
    pub(super) is_endless: bool,
    pub(super) is_holding: AtomicBool,
    pub(super) named: AtomicU64,
}
