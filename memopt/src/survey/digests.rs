//! A bounded sample of the contents of a guest's memory, which guests of a domain exchange.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::page::Seed;

/// The most contents that a table may have, also one received from elsewhere.
const ENTRIES_MAX: usize = 1 << 20;
/// The most bits of sampling: at one sample per 2^40 contents an estimate has no meaning.
pub const BITS_MAX: u32 = 40;

/// Contents whose digests have zeros in the low bits, with the number of their pages.
///
/// It serializes as the tag of its seed, its bits, the number of scanned pages, and pairs of digest
/// and count in ascending order. Deserializing validates the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(into = "Wire", try_from = "Wire")]
pub struct Digests {
    tag: u64,
    bits: u32,
    pages: u64,
    zero_pages: u64,
    entries: BTreeMap<u64, u32>,
    capacity: usize,
}

/// Why a table is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DigestsError {
    /// The received data is not a table.
    #[error("not a table of digests: {0}")]
    Malformed(&'static str),
    /// The tables are of different merge domains, or of one domain before and after it got a new
    /// seed.
    #[error("tables of digests with different seeds cannot be compared: survey the guests again")]
    OtherSeed,
}

/// The serialized form of a table.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Wire {
    tag: u64,
    bits: u32,
    pages: u64,
    zero_pages: u64,
    entries: Vec<(u64, u32)>,
}

impl Digests {
    /// Creates an empty table of at most `capacity` contents, which samples one content in 2^`bits`
    /// until it is full.
    #[must_use]
    pub fn new(seed: Seed, capacity: NonZeroUsize, bits: u32) -> Self {
        Self {
            tag: seed.tag(),
            bits: bits.min(BITS_MAX),
            pages: 0,
            zero_pages: 0,
            entries: BTreeMap::new(),
            capacity: capacity.get().min(ENTRIES_MAX),
        }
    }

    /// Returns the sampling rate: one content in 2^`bits` is in the table.
    #[must_use]
    pub const fn bits(&self) -> u32 {
        self.bits
    }

    /// Returns whether both tables were made with the same seed, and can be compared.
    #[must_use]
    pub const fn is_comparable(&self, other: &Self) -> bool {
        self.tag == other.tag
    }

    /// Returns the number of scanned pages, including pages of zeros.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// Returns the number of pages of zeros.
    #[must_use]
    pub const fn zero_pages(&self) -> u64 {
        self.zero_pages
    }

    /// Returns how many pages share one content, on average over the contents with more than one
    /// page; 0 if there are none.
    #[must_use]
    pub fn copies(&self) -> f64 {
        let shared = || self.counts().filter(|count| *count > 1);
        let contents = shared().count();
        let pages: u64 = shared().map(u64::from).sum();
        if contents == 0 { 0.0 } else { pages as f64 / contents as f64 }
    }

    /// Drops the contents with only one page: [`super::Scanned::chunks`] does not need them, and
    /// they are most of the table.
    #[must_use]
    pub fn into_shared(mut self) -> Self {
        self.entries.retain(|_, count| *count > 1);
        self
    }

    pub(super) const fn add_zero(&mut self) {
        self.pages += 1;
        self.zero_pages += 1;
    }

    /// Counts a page, and returns whether its content is in the sample.
    pub(super) fn add(&mut self, digest: u64) -> bool {
        self.pages += 1;
        if !is_sampled(digest, self.bits) {
            return false;
        }
        let count = self.entries.entry(digest).or_default();
        *count = count.saturating_add(1);
        self.shrink();
        is_sampled(digest, self.bits)
    }

    /// Returns how many pages have the content `digest`; 0 if it is not in the table.
    pub(super) fn count(&self, digest: u64) -> u32 {
        self.entries.get(&digest).copied().unwrap_or(0)
    }

    /// Returns the contents, each with its number of pages.
    pub(super) fn contents(&self) -> impl Iterator<Item = (u64, u32)> {
        self.entries.iter().map(|(digest, count)| (*digest, *count))
    }

    /// Returns the number of pages of each content.
    pub(super) fn counts(&self) -> impl Iterator<Item = u32> {
        self.entries.values().copied()
    }

    /// Adds the pages of another guest. Afterwards this table samples at the coarser rate of the
    /// two, or a still coarser one if it would exceed its capacity.
    ///
    /// # Errors
    /// [`DigestsError::OtherSeed`] if the tables have different seeds.
    pub fn merge(&mut self, other: &Self) -> Result<(), DigestsError> {
        if !self.is_comparable(other) {
            return Err(DigestsError::OtherSeed);
        }
        self.coarsen(other.bits);
        self.pages = self.pages.saturating_add(other.pages);
        self.zero_pages = self.zero_pages.saturating_add(other.zero_pages);
        for (digest, more) in &other.entries {
            if is_sampled(*digest, self.bits) {
                let count = self.entries.entry(*digest).or_default();
                *count = count.saturating_add(*more);
            }
        }
        self.shrink();
        Ok(())
    }

    /// Reduces the sample to one content in 2^`bits`, if it is finer than that.
    pub(super) fn coarsen(&mut self, bits: u32) {
        if bits > self.bits {
            self.bits = bits.min(BITS_MAX);
            self.entries.retain(|digest, _| is_sampled(*digest, self.bits));
        }
    }

    fn shrink(&mut self) {
        while self.entries.len() > self.capacity && self.bits < BITS_MAX {
            self.coarsen(self.bits + 1);
        }
    }
}

/// Returns whether a content is in a sample of one in 2^`bits`.
pub(super) const fn is_sampled(digest: u64, bits: u32) -> bool {
    digest.trailing_zeros() >= bits
}

impl From<Digests> for Wire {
    fn from(digests: Digests) -> Self {
        let Digests { tag, bits, pages, zero_pages, entries, .. } = digests;
        Self { tag, bits, pages, zero_pages, entries: entries.into_iter().collect() }
    }
}

impl TryFrom<Wire> for Digests {
    type Error = DigestsError;

    fn try_from(wire: Wire) -> Result<Self, DigestsError> {
        let Wire { tag, bits, pages, zero_pages, entries } = wire;
        let malformed = |what| Err(DigestsError::Malformed(what));
        if bits > BITS_MAX {
            return malformed("it samples too little");
        }
        if entries.len() > ENTRIES_MAX {
            return malformed("it has too many contents");
        }
        if !entries.is_sorted_by(|one, two| one.0 < two.0) {
            return malformed("its digests are not in order");
        }
        if entries.iter().any(|(digest, count)| !is_sampled(*digest, bits) || *count == 0) {
            return malformed("it has a content that is not in its sample");
        }
        let counted: u64 = entries.iter().map(|(_, count)| u64::from(*count)).sum();
        if zero_pages > pages || counted > pages - zero_pages {
            return malformed("it has more pages than were scanned");
        }
        let entries = entries.into_iter().collect();
        Ok(Self { tag, bits, pages, zero_pages, entries, capacity: ENTRIES_MAX })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(capacity: usize, bits: u32, digests: &[u64]) -> Digests {
        let mut table = Digests::new(Seed::new(1), NonZeroUsize::new(capacity).unwrap(), bits);
        for digest in digests {
            table.add(*digest);
        }
        table
    }

    #[test]
    fn a_full_table_becomes_coarser_and_keeps_every_page_of_what_it_keeps() {
        let digests: Vec<u64> = (0..64).flat_map(|digest| [digest; 3]).collect();
        let table = table(10, 0, &digests);
        assert_eq!(table.bits(), 3);
        assert_eq!(
            table.entries.keys().copied().collect::<Vec<_>>(),
            (0..64).step_by(8).collect::<Vec<_>>()
        );
        assert!(table.counts().all(|count| count == 3));
        assert_eq!(table.copies(), 3.0);
        assert_eq!(table.pages(), 192);
    }

    #[test]
    fn copies_are_counted_where_there_are_any() {
        assert_eq!(table(10, 0, &[1, 2, 3]).copies(), 0.0);
        assert_eq!(table(10, 0, &[1, 2, 2, 3, 3, 3, 3]).copies(), 3.0);
    }

    #[test]
    fn what_is_shared_is_kept_with_all_its_pages() {
        let shared = table(10, 0, &[1, 2, 2, 3, 3, 3, 4]).into_shared();
        assert_eq!(shared.contents().collect::<Vec<_>>(), [(2, 2), (3, 3)]);
        assert_eq!((shared.pages(), shared.bits(), shared.copies()), (7, 0, 2.5));
        let text = serde_json::to_string(&shared).unwrap();
        assert!(serde_json::from_str::<Digests>(&text).is_ok(), "{text}");
    }

    #[test]
    fn tables_of_two_seeds_are_not_mixed() {
        let mut one = table(10, 0, &[1]);
        let two = Digests::new(Seed::new(2), NonZeroUsize::MIN, 0);
        assert_eq!(one.merge(&two), Err(DigestsError::OtherSeed));
    }

    #[test]
    fn refuses_invalid_tables() {
        let good = serde_json::to_string(&table(10, 1, &[2, 2, 4, 7])).unwrap();
        assert!(
            good.ends_with(r#""bits":1,"pages":4,"zero_pages":0,"entries":[[2,2],[4,1]]}"#),
            "{good}"
        );
        assert!(serde_json::from_str::<Digests>(&good).is_ok());
        for (from, to) in [
            ("[2,2],[4,1]", "[4,1],[2,2]"),
            ("[2,2],[4,1]", "[2,2],[2,1]"),
            ("[2,2]", "[3,2]"),
            ("[2,2]", "[2,0]"),
            ("[2,2]", "[2,4]"),
            ("\"bits\":1", "\"bits\":41"),
            ("\"zero_pages\":0", "\"zero_pages\":5"),
            ("\"zero_pages\":0", "\"zero_pages\":2"),
        ] {
            let bad = good.replace(from, to);
            assert!(serde_json::from_str::<Digests>(&bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn merging_partial_tables_equals_one_table(
            digests in proptest::collection::vec(0u64..200, 0..300),
            split in 0usize..300,
            capacity in 1usize..50,
        ) {
            let split = split.min(digests.len());
            let mut halves = table(capacity, 0, &digests[..split]);
            halves.merge(&table(capacity, 0, &digests[split..])).unwrap();
            prop_assert_eq!(halves, table(capacity, 0, &digests));
        }

        #[test]
        fn tables_survive_the_exchange(
            digests in proptest::collection::vec(any::<u64>(), 0..100),
            bits in 0u32..4,
        ) {
            let table = table(50, bits, &digests);
            let text = serde_json::to_string(&table).unwrap();
            let read: Digests = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(read, Digests { capacity: ENTRIES_MAX, ..table });
        }

        #[test]
        fn any_text_is_a_table_or_is_refused(text in r#"\{"tag":1,"bits":[0-9]{1,2},"pages":9,"zero_pages":0,"entries":\[.{0,60}\]\}"#) {
            let _ = serde_json::from_str::<Digests>(&text);
        }
    }
}
