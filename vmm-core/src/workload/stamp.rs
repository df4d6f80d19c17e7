//! The content of a page, as a pure function of seeds, page number and sequence.
//!
//! A stamped page starts with four words (magic, page number, sequence, checksum), followed by
//! random or compressible words; a zero page has no stamp at all. From the seeds, page number and
//! sequence, any page can be written and checked to the last bit. So the check distinguishes pages
//! that are lost, stale, misplaced, torn or flipped. This module is compiled into the freestanding
//! guest, the check program of the Linux guest, and the host.
//!
//! In its first version (sequence 0) a page comes either from the seed of an image, which several
//! guests may share, or from the guest's own seed; later versions always come from its own. Which
//! pages are zero, the image's or its own is the same in all guests of an image, and alternates in
//! runs. With a [`Shuffle`], pieces of that order lie elsewhere in each guest.

/// A page as words.
pub type PageWords = [u64; 512];

/// First word of a stamped page.
pub const STAMP_MAGIC: u64 = u64::from_le_bytes(*b"stamped\0");

const STAMP_WORDS: usize = 4;
const MIX_A: u64 = 0xa076_1d64_78bd_642f;
const MIX_B: u64 = 0xe703_7ed1_a0b4_28db;
/// 2^64 divided by the golden ratio: its multiples, as fractions of 2^64, are evenly distributed
/// for any number of them.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Compressible content consists of these, eight bytes each.
const TEXT: [[u8; 8]; 16] = [
    *b"lighter ",
    *b"than air",
    *b" a ship ",
    *b"at the q",
    *b"uay, by ",
    *b"night; t",
    *b"he cargo",
    *b" moves, ",
    *b"the sea ",
    *b"is calm,",
    *b" the men",
    *b" sing.  ",
    *b"One rope",
    *b" is left",
    *b" and so ",
    *b"we sail\n",
];

/// Kind of a page's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// All zero, no stamp.
    Zero,
    /// Incompressible words behind a stamp.
    Random,
    /// Compressible words behind a stamp.
    Text,
}

/// Kind of damage of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// A complete, valid page with another page number.
    Misplaced = 1,
    /// A complete, valid page, but an older or newer version of it.
    Stale = 2,
    /// Not a version of any page: torn or flipped.
    Corrupt = 3,
    /// The page should be zero and is not.
    NotCleared = 4,
    /// The page should have content and is zero.
    Lost = 5,
}

impl FaultKind {
    /// Decodes the kind from its `code` in a report.
    #[must_use]
    pub const fn from_code(code: u64) -> Option<Self> {
        Some(match code {
            1 => Self::Misplaced,
            2 => Self::Stale,
            3 => Self::Corrupt,
            4 => Self::NotCleared,
            5 => Self::Lost,
            _ => return None,
        })
    }
}

/// A bad page: expected and found content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Kind of damage.
    pub kind: FaultKind,
    /// Number of the page in working memory (not a guest frame number).
    pub page: u64,
    /// Sequence that the page should have.
    pub expected_sequence: u32,
    /// Sequence in the page's stamp; 0 if it has none.
    pub found_sequence: u64,
    /// Page number in the page's stamp; 0 if it has none.
    pub found_page: u64,
}

/// Parameters that determine the content of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Seed of the image: determines the kind of each page, and the first version of the image's
    /// pages.
    pub seed: u64,
    /// Seed of all other content.
    pub own_seed: u64,
    /// Share of random pages, percent.
    pub random_percent: u64,
    /// Share of text pages, percent. The remaining pages are zero.
    pub text_percent: u64,
    /// Share of pages whose first version is the image's, percent; at most the sum of random and
    /// text.
    pub image_percent: u64,
    /// Length of a run of pages of one kind (zero, the image's, own) in the first version, at least
    /// 1.
    pub run_pages: u64,
    /// Share of rewrites (sequence above 0) that clear the page, percent.
    pub zeroing_percent: u64,
    /// Order of the pieces in the first version.
    pub shuffle: Shuffle,
}

/// Reorders the pieces of the first version differently in each guest, so that pages that guests of
/// an image share lie at different addresses in each, like files in the page caches of Linux
/// guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shuffle {
    /// Pages of a piece; 0 changes no order.
    pub piece_pages: u64,
    /// Number of pieces; pages beyond them keep their place.
    pub pieces: u64,
    /// Piece `n` holds the content of piece `n * stride % pieces`; `stride` and `pieces` have no
    /// common divisor.
    pub stride: u64,
}

impl Shuffle {
    /// Keeps every page in its place.
    pub const NONE: Self = Self { piece_pages: 0, pieces: 0, stride: 0 };

    /// Returns an order of `pages` pages that depends on `seed`.
    #[must_use]
    pub fn new(piece_pages: u64, pages: u64, seed: u64) -> Self {
        let pieces = pages.checked_div(piece_pages).unwrap_or(0);
        if pieces < 2 {
            return Self::NONE;
        }
        let mut stride = mix(seed) % pieces;
        while greatest_common_divisor(stride, pieces) != 1 {
            stride = (stride + 1) % pieces;
        }
        Self { piece_pages, pieces, stride }
    }

    /// Returns the number of the page whose first version lies in `page`.
    #[must_use]
    pub fn source(&self, page: u64) -> u64 {
        let Some(piece) = page.checked_div(self.piece_pages) else { return page };
        if piece >= self.pieces {
            return page;
        }
        piece * self.stride % self.pieces * self.piece_pages + page % self.piece_pages
    }
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

impl Content {
    /// Returns the kind of content of `page` in its version `sequence`; sequence 0 is the first
    /// fill.
    ///
    /// If all memory starts as zero (random and text shares are 0), rewrites alternate between
    /// random content and zero, so that pages change at all.
    #[must_use]
    pub fn class(&self, page: u64, sequence: u32) -> Class {
        let filled_percent = self.random_percent + self.text_percent;
        if filled_percent == 0 {
            return if sequence % 2 == 1 { Class::Random } else { Class::Zero };
        }
        let page = self.source(page, sequence);
        let draw = mix(self.seed ^ mix(page ^ MIX_B) ^ (u64::from(sequence) << 32));
        if sequence > 0 && (draw >> 32) % 100 < self.zeroing_percent {
            return Class::Zero;
        }
        let place = match sequence {
            0 => self.place(page),
            _ => (draw & 0xffff_ffff) % 100,
        };
        if place >= filled_percent {
            Class::Zero
        } else if (draw >> 16) % filled_percent < self.random_percent {
            Class::Random
        } else {
            Class::Text
        }
    }

    /// Whether version `sequence` of `page`, unless it is zero, is the same in all guests of the
    /// image.
    #[must_use]
    pub fn is_of_image(&self, page: u64, sequence: u32) -> bool {
        sequence == 0 && self.place(self.source(page, sequence)) < self.image_percent
    }

    /// Returns the page number from which version `sequence` of `page` is generated.
    fn source(&self, page: u64, sequence: u32) -> u64 {
        if sequence == 0 { self.shuffle.source(page) } else { page }
    }

    /// Returns the rank of `page`'s run among all runs, from 0 to 99: the image's come first, then
    /// own ones, then zero ones.
    fn place(&self, page: u64) -> u64 {
        let run = page / self.run_pages.max(1);
        let spread = mix(self.seed).wrapping_add(run.wrapping_mul(GOLDEN));
        ((spread >> 32) * 100) >> 32
    }

    fn stream(&self, page: u64, sequence: u32, class: Class) -> Stream {
        let seed = if self.is_of_image(page, sequence) { self.seed } else { self.own_seed };
        Stream::new(seed, self.source(page, sequence), sequence, class)
    }

    /// Writes version `sequence` of `page` into `words`.
    pub fn fill(&self, page: u64, sequence: u32, words: &mut PageWords) {
        let class = self.class(page, sequence);
        if class == Class::Zero {
            words.fill(0);
            return;
        }
        let mut stream = self.stream(page, sequence, class);
        let page = self.source(page, sequence);
        let mut sum = Checksum::new();
        let (stamp, body) = words.split_at_mut(STAMP_WORDS);
        for group in body.chunks_exact_mut(4) {
            for word in group.iter_mut() {
                *word = stream.next_word();
            }
            sum.add(group);
        }
        stamp.copy_from_slice(&[
            STAMP_MAGIC,
            page,
            u64::from(sequence),
            sum.finish(page, u64::from(sequence)),
        ]);
    }

    /// Checks that `words` is version `sequence` of `page`, to the last bit.
    ///
    /// # Errors
    /// A [`Fault`] that says what the page holds instead.
    pub fn check(&self, page: u64, sequence: u32, words: &PageWords) -> Result<(), Fault> {
        let class = self.class(page, sequence);
        let good = match class {
            Class::Zero => is_zero(words),
            _ => self.holds(page, sequence, class, words),
        };
        if good { Ok(()) } else { Err(self.diagnose(page, sequence, class, words)) }
    }

    fn holds(&self, page: u64, sequence: u32, class: Class, words: &PageWords) -> bool {
        let (stamp, body) = words.split_at(STAMP_WORDS);
        let mut stream = self.stream(page, sequence, class);
        let page = self.source(page, sequence);
        let mut sum = Checksum::new();
        let mut difference = 0;
        for group in body.chunks_exact(4) {
            for word in group {
                difference |= word ^ stream.next_word();
            }
            sum.add(group);
        }
        difference == 0
            && *stamp
                == [STAMP_MAGIC, page, u64::from(sequence), sum.finish(page, u64::from(sequence))]
    }

    #[cold]
    fn diagnose(&self, page: u64, sequence: u32, class: Class, words: &PageWords) -> Fault {
        let stamped = words[0] == STAMP_MAGIC && words[3] == checksum(words);
        let (found_page, found_sequence) = if stamped { (words[1], words[2]) } else { (0, 0) };
        let stamped_page = self.source(page, found_sequence as u32);
        let kind = if is_zero(words) {
            FaultKind::Lost
        } else if stamped && found_page != stamped_page {
            FaultKind::Misplaced
        } else if stamped && found_sequence != u64::from(sequence) {
            FaultKind::Stale
        } else if class == Class::Zero {
            FaultKind::NotCleared
        } else {
            FaultKind::Corrupt
        };
        Fault { kind, page, expected_sequence: sequence, found_sequence, found_page }
    }
}

fn is_zero(words: &PageWords) -> bool {
    words.iter().fold(0, |all, word| all | word) == 0
}

fn checksum(words: &PageWords) -> u64 {
    let mut sum = Checksum::new();
    for group in words[STAMP_WORDS..].chunks_exact(4) {
        sum.add(group);
    }
    sum.finish(words[1], words[2])
}

/// One step of wyhash: the XOR of both halves of a 128-bit product.
/// <https://github.com/wangyi-fudan/wyhash>
#[must_use]
pub fn mix(value: u64) -> u64 {
    let product = u128::from(value ^ MIX_A) * u128::from(value.rotate_left(32) ^ MIX_B);
    (product >> 64) as u64 ^ product as u64
}

/// Generator of the words of a page's body.
struct Stream {
    state: u64,
    class: Class,
}

impl Stream {
    fn new(seed: u64, page: u64, sequence: u32, class: Class) -> Self {
        Self { state: mix(mix(seed ^ page) ^ u64::from(sequence)), class }
    }

    #[inline(always)]
    fn next_word(&mut self) -> u64 {
        self.state = self.state.wrapping_add(MIX_A);
        let word = mix(self.state);
        if self.class == Class::Random {
            word
        } else {
            u64::from_le_bytes(TEXT[word as usize % 16])
        }
    }
}

/// A checksum with four multiplying lanes, so that a wrong bit anywhere changes it.
struct Checksum([u64; 4]);

impl Checksum {
    fn new() -> Self {
        Self([1, 2, 3, 4])
    }

    #[inline(always)]
    fn add(&mut self, group: &[u64]) {
        for (lane, word) in self.0.iter_mut().zip(group) {
            *lane = (*lane ^ word).wrapping_mul(MIX_A).rotate_left(29);
        }
    }

    /// Returns the checksum over the body and over the stamp's page number and sequence.
    fn finish(self, page: u64, sequence: u64) -> u64 {
        let [a, b, c, d] = self.0;
        mix(a ^ mix(b ^ mix(c ^ mix(d ^ mix(page ^ mix(sequence))))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANDOM: Content = Content {
        seed: 7,
        own_seed: 8,
        random_percent: 100,
        text_percent: 0,
        image_percent: 50,
        run_pages: 1,
        zeroing_percent: 0,
        shuffle: Shuffle::NONE,
    };

    fn page(content: &Content, number: u64, sequence: u32) -> PageWords {
        let mut words = [!0; 512];
        content.fill(number, sequence, &mut words);
        words
    }

    fn fault_of(content: &Content, number: u64, sequence: u32, words: &PageWords) -> FaultKind {
        content.check(number, sequence, words).unwrap_err().kind
    }

    #[test]
    fn accepts_every_page_it_fills() {
        for (random_percent, text_percent) in [(100, 0), (0, 100), (0, 0), (40, 30)] {
            let content = Content { random_percent, text_percent, zeroing_percent: 10, ..RANDOM };
            for (number, sequence) in (0..200).flat_map(|n| [(n, 0), (n, 1), (n, u32::MAX)]) {
                let words = page(&content, number, sequence);
                content.check(number, sequence, &words).unwrap();
            }
        }
    }

    #[test]
    fn finds_every_flipped_bit_of_a_word() {
        for (index, bit) in (0..512).flat_map(|index| [(index, 0), (index, 37), (index, 63)]) {
            let mut words = page(&RANDOM, 5, 9);
            words[index] ^= 1 << bit;
            assert_eq!(fault_of(&RANDOM, 5, 9, &words), FaultKind::Corrupt, "{index} {bit}");
        }
    }

    #[test]
    fn distinguishes_stale_from_misplaced() {
        assert_eq!(fault_of(&RANDOM, 5, 9, &page(&RANDOM, 5, 8)), FaultKind::Stale);
        assert_eq!(fault_of(&RANDOM, 5, 9, &page(&RANDOM, 6, 9)), FaultKind::Misplaced);
    }

    #[test]
    fn detects_a_torn_page() {
        let mut words = page(&RANDOM, 5, 9);
        words[256..].copy_from_slice(&page(&RANDOM, 5, 8)[256..]);
        assert_eq!(fault_of(&RANDOM, 5, 9, &words), FaultKind::Corrupt);
    }

    #[test]
    fn distinguishes_lost_content_from_a_page_that_was_not_cleared() {
        let zero = Content { random_percent: 0, ..RANDOM };
        assert_eq!(fault_of(&RANDOM, 5, 9, &[0; 512]), FaultKind::Lost);
        let mut words = [0; 512];
        words[511] = 1;
        assert_eq!(fault_of(&zero, 5, 2, &words), FaultKind::NotCleared);
    }

    #[test]
    fn pages_become_zero_after_content() {
        let content = Content { zeroing_percent: 50, ..RANDOM };
        let classes: Vec<_> = (0..64).map(|sequence| content.class(1, sequence)).collect();
        assert_eq!(classes[0], Class::Random, "the first fill is never cleared");
        assert!(classes.windows(2).any(|pair| pair == [Class::Random, Class::Zero]));
        assert!(classes.windows(2).any(|pair| pair == [Class::Zero, Class::Random]));
    }

    #[test]
    fn shares_come_out_as_asked() {
        let content = Content { random_percent: 50, text_percent: 25, ..RANDOM };
        let count = |class| (0..10_000).filter(|page| content.class(*page, 0) == class).count();
        assert!((4_800..5_200).contains(&count(Class::Random)), "{}", count(Class::Random));
        assert!((2_300..2_700).contains(&count(Class::Text)), "{}", count(Class::Text));
    }

    #[test]
    fn guests_of_an_image_share_its_pages_until_they_rewrite_them() {
        let one = Content { random_percent: 60, image_percent: 40, run_pages: 8, ..RANDOM };
        let other = Content { own_seed: 9, ..one };
        let alike = |sequence| {
            let is_alike =
                |number: &u64| page(&one, *number, sequence) == page(&other, *number, sequence);
            (0..2_000).filter(is_alike).collect::<Vec<_>>()
        };
        let (first, later) = (alike(0), alike(1));
        let of = |pages: &[u64], class| {
            pages.iter().filter(|page| (one.class(**page, 0) == Class::Zero) == class).count()
        };
        assert!(
            (780..820).contains(&of(&first, false)),
            "40 % of the image: {}",
            of(&first, false)
        );
        assert!((780..820).contains(&of(&first, true)), "40 % zero: {}", of(&first, true));
        assert!(later.iter().all(|page| one.class(*page, 1) == Class::Zero), "{later:?}");
    }

    #[test]
    fn a_shuffled_guest_has_the_same_pages_elsewhere() {
        const PAGES: u64 = 1_003;
        let of = |own_seed, piece_pages| Content {
            random_percent: 60,
            image_percent: 40,
            run_pages: 64,
            own_seed,
            shuffle: Shuffle::new(piece_pages, PAGES, own_seed),
            ..RANDOM
        };
        for piece_pages in [1, 16, 64] {
            let (one, other) = (of(8, piece_pages), of(9, piece_pages));
            let image = |content: &Content| {
                let pages = (0..PAGES).filter(|number| content.is_of_image(*number, 0));
                let mut pages: Vec<_> = pages.map(|number| page(content, number, 0)).collect();
                pages.sort_unstable();
                pages
            };
            assert_eq!(image(&one), image(&other), "{piece_pages}");
            let is_alike = |number: &u64| page(&one, *number, 0) == page(&other, *number, 0);
            let alike = (0..PAGES).filter(|number| one.is_of_image(*number, 0) && is_alike(number));
            assert!(alike.count() < 150, "the first piece, the rest, and what is there by chance");
            (0..PAGES).for_each(|number| one.check(number, 0, &page(&one, number, 0)).unwrap());
        }
    }

    #[test]
    fn a_shuffled_page_that_is_too_old_is_stale_and_not_misplaced() {
        let content = Content { shuffle: Shuffle::new(1, 1_000, 8), ..RANDOM };
        assert_eq!(fault_of(&content, 5, 1, &page(&content, 5, 0)), FaultKind::Stale);
        assert_eq!(fault_of(&content, 5, 0, &page(&content, 5, 1)), FaultKind::Stale);
        assert_eq!(fault_of(&content, 5, 0, &page(&content, 6, 0)), FaultKind::Misplaced);
    }

    #[test]
    fn pages_of_one_kind_lie_together_in_runs() {
        let content = Content { random_percent: 60, image_percent: 40, run_pages: 64, ..RANDOM };
        let kind = |page| (content.class(page, 0) == Class::Zero, content.is_of_image(page, 0));
        for run in 0..50 {
            assert!((run * 64..(run + 1) * 64).all(|page| kind(page) == kind(run * 64)));
        }
        // Evenly distributed, even if there are few runs.
        let zero = (0..10).filter(|run| kind(run * 64).0).count();
        assert!((3..=5).contains(&zero), "{zero} of 10 runs are zero");
    }

    #[test]
    fn text_repeats_itself_and_random_does_not() {
        let text = Content { random_percent: 0, text_percent: 100, ..RANDOM };
        let kinds =
            |words: PageWords| words[4..].iter().collect::<std::collections::HashSet<_>>().len();
        assert!(kinds(page(&text, 1, 0)) <= TEXT.len());
        assert_eq!(kinds(page(&RANDOM, 1, 0)), 508);
    }
}
