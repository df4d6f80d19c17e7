//! Estimates how much of a guest's RAM is worth merging, by scanning its pages within a share of a
//! CPU.
//!
//! The caller supplies the pages as slices; nothing here reads memory, a file or a clock. A
//! [`Scan`] counts pages of zeros and keeps digests of the page contents in a [`Digests`], a
//! bounded sample that guests exchange. [`estimate()`] computes from such samples how much merging
//! would save within guests and across them, and the error of that estimate; [`Scanned::chunks`]
//! says where, in chunks of 2 MiB. [`Watch`] estimates from two short scans how many pages were
//! written in between. [`Pace`] keeps the work within its CPU share.
//!
//! # Why the estimate is right
//!
//! The sample is of contents, not of pages. A content is in the sample if the low *b* bits of its
//! digest are zero, which has the probability p = 2^-b. Then all its pages are counted, in every
//! guest, since all guests sample by the same rule. If content c has n pages, merging it saves w =
//! n - ⌈n / 256⌉ of them (`max_page_sharing`: the kernel keeps one page for each 256). Then
//!
//! - Ŝ = 2^b · Σ w over the sampled contents is unbiased for S = Σ w over all: each content adds p
//!   · 2^b · w = w on average;
//! - its variance is (2^b - 1) · Σ w² over all contents, for which 2^b · (2^b - 1) · Σ w² over the
//!   sampled ones is unbiased: its root is the standard error reported with the estimate.
//!
//! A sample of *pages* would not work: a page drawn at rate p meets an equal one only at rate p²,
//! so rare duplicates vanish. When the table is full, b grows by one and half of the contents are
//! dropped. The estimate stays unbiased: before hashing, no content differs from another, so 2^b ·
//! [c is sampled] has the same mean for all of them, and for the number of distinct contents
//! Flajolet has shown that this mean is 1 ("On adaptive sampling", Computing 43, 1990).
//!
//! A single content with very many pages is either in the sample or not; the standard error
//! reflects that. Pages of zeros, the usual case, are counted exactly. For a single chunk the
//! estimate is coarse (its 512 pages are 64 samples at b = 3), and it is capped at the pages that
//! the chunk has.
//!
//! Digests are a filter. Equal digests of different pages occur once in 10^6 tables of 2^20
//! entries, and nothing is merged because of them: the kernel compares contents. With the seed, an
//! attacker can make contents whose digests collide, and can tell from a table whether a guest has
//! a certain page. So seeds are random, one per merge domain, and tables stay within the domain.

mod digests;
mod estimate;
mod pace;
mod page;
mod scan;
mod watch;
mod written;

pub use digests::{BITS_MAX, Digests, DigestsError};
pub use estimate::{Estimate, Sharing, estimate};
pub use pace::Pace;
pub use page::{Page, Seed};
pub use scan::{Scan, Scanned};
pub use watch::Watch;
pub use written::Written;
