//! A set of guest pages as a dense bitmap.

/// A set of pages; word `i` holds the 64 pages of chunk `i`, lowest bit first.
#[derive(Clone, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
}

impl PageSet {
    /// Returns an empty set over `chunks` chunks.
    pub fn empty(chunks: usize) -> Self {
        Self { words: vec![0; chunks] }
    }

    /// Returns the set of all pages of `chunks` chunks.
    pub fn full(chunks: usize) -> Self {
        Self { words: vec![u64::MAX; chunks] }
    }

    /// Returns the number of chunks that the set covers.
    pub fn chunks(&self) -> usize {
        self.words.len()
    }

    /// Returns the bitmap, one word per chunk.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Returns the bitmap for changes in place (for instance by `SourceGuest::collect_dirty`).
    pub fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words
    }

    /// Returns the number of pages in the set.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Returns whether the set has no pages.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// Adds page `page` of `chunk`; does nothing if the chunk is out of range.
    pub fn insert(&mut self, chunk: usize, page: usize) {
        if let Some(word) = self.words.get_mut(chunk) {
            *word |= 1 << (page % 64);
        }
    }

    /// Returns whether page `page` of `chunk` is in the set.
    pub fn contains(&self, chunk: usize, page: usize) -> bool {
        self.words.get(chunk).is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    /// Adds all pages of `other`; its chunks beyond the range of this set are ignored.
    pub fn union(&mut self, other: &Self) {
        for (word, &more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }

    /// Empties the set and returns its former content.
    pub fn take(&mut self) -> Self {
        let chunks = self.chunks();
        std::mem::replace(self, Self::empty(chunks))
    }

    /// Returns the chunks with pages in the set, ascending, each with its mask of pages.
    pub fn iter(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.words.iter().copied().enumerate().filter(|&(_, word)| word != 0)
    }
}

impl std::fmt::Debug for PageSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PageSet({} pages of {} chunks)", self.count(), self.chunks())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn take_returns_the_pages_and_empties_the_set() {
        let mut set = PageSet::empty(3);
        set.insert(0, 0);
        set.insert(2, 63);
        set.insert(9, 1);

        let taken = set.take();

        assert!(set.is_empty());
        assert_eq!(set.chunks(), 3);
        assert_eq!(taken.iter().collect::<Vec<_>>(), [(0, 1), (2, 1 << 63)]);
        assert!(taken.contains(2, 63) && !taken.contains(1, 0) && !taken.contains(9, 1));
    }

    #[test]
    fn union_and_count() {
        let mut set = PageSet::empty(2);
        set.insert(1, 4);
        let mut other = PageSet::empty(2);
        other.insert(1, 4);
        other.insert(1, 5);

        set.union(&other);

        assert_eq!(set.count(), 2);
        assert_eq!(PageSet::full(2).count(), 128);
    }
}
