//! What of a guest's RAM is worth merging: a look at its pages that a share of a CPU pays for.
//!
//! The pages come from whoever has them, as slices; nothing here reads memory, a file or a clock. A
//! [`Scan`] counts pages of zeros and keeps digests of the contents in a [`Digests`], a bounded
//! sample that guests exchange. [`estimate()`] tells from such samples how much merging would save
//! within guests and across them, and how far off that may be; [`Scanned::chunks`] tells where, in
//! chunks of 2 MiB. [`Watch`] tells from two short looks how much was written in between. [`Pace`]
//! keeps the work within its share.
//!
//! # Why the estimate is right
//!
//! Contents are sampled and not pages. A content is in the sample if the low *b* bits of its digest
//! are zero, so with probability p = 2^-b; then all its pages are counted, in every guest, since
//! all guests choose by the same rule. If content c has n pages, merging it saves w = n - ⌈n / 256⌉
//! of them (`max_page_sharing`: the kernel keeps a page for each 256). Then
//!
//! * Ŝ = 2^b · Σ w over the sampled contents is unbiased for S = Σ w over all: each content adds p
//!   · 2^b · w = w on average;
//! * its variance is (2^b - 1) · Σ w² over all, for which 2^b · (2^b - 1) · Σ w² over the sampled
//!   is unbiased: its root is the standard error that is told with the estimate.
//!
//! A sample of *pages* would not do: a page drawn at rate p meets an equal one only at rate p², and
//! rare duplicates vanish. When the table is full, b grows by one and half of it goes. That leaves
//! the estimate unbiased: contents are alike before they are hashed, so 2^b · [c is sampled] has
//! one mean for all of them, and for the number of distinct contents Flajolet has shown that it is
//! 1 ("On adaptive sampling", Computing 43, 1990).
//!
//! One content with very many pages is either in the sample or not: the standard error says so.
//! Pages of zeros, the usual one of that kind, are counted one by one. For a single chunk the
//! estimate is coarse (its 512 pages are 64 samples at b = 3), and it is cut to what the chunk has.
//!
//! Digests are a filter. Equal digests of unlike pages come once in 10^6 tables of 2^20 entries,
//! and nothing is merged for them: the kernel compares contents. Whoever knows the seed can make
//! contents whose digests collide, and can tell from a table whether a guest has a certain page:
//! seeds are drawn at random, one for a merge domain, and tables stay within it.

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
