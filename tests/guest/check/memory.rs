//! The stamped pages, mapped through `/dev/mem`, and the ledger of their versions. Each thread has
//! a part of them.

use crate::linux;
use crate::options::Options;
use crate::stamp::{Content, Fault, FaultKind, PageWords, Shuffle};

const PAGE_WORDS: usize = 512;

/// The pages, and the version that each should have.
pub struct Memory {
    pages: &'static mut [PageWords],
    ledger: &'static mut [u32],
    /// Number of the first page.
    first: u64,
    content: Content,
    is_sparse: bool,
    /// The first version of a page, to compare it with one of which only a word has changed.
    scratch: PageWords,
    next_rewrite: usize,
    next_sweep: usize,
    written: u64,
    checked: u64,
    errors: u64,
    first_fault: Option<Fault>,
}

impl Memory {
    /// Maps the ledger and the pages at `options.base`.
    ///
    /// # Errors
    /// The kernel's error number, if a system call fails.
    pub fn map(options: &Options) -> Result<Self, u64> {
        let (ledger, pages) = linux::map_physical(options.base, options.pages)?;
        Ok(Self {
            pages,
            ledger,
            first: 0,
            content: Content {
                seed: 1,
                own_seed: options.own_seed,
                random_percent: options.random,
                text_percent: options.text,
                image_percent: 0,
                run_pages: 1,
                zeroing_percent: options.zeroing,
                shuffle: Shuffle::NONE,
            },
            is_sparse: options.sparse,
            scratch: [0; PAGE_WORDS],
            next_rewrite: 0,
            next_sweep: 0,
            written: 0,
            checked: 0,
            errors: 0,
            first_fault: None,
        })
    }

    /// Splits off the last `count` pages.
    pub fn split_off(&mut self, count: usize) -> Self {
        let at = self.pages.len().saturating_sub(count);
        let (pages, rest) = core::mem::take(&mut self.pages).split_at_mut(at);
        let (ledger, ledger_of_rest) = core::mem::take(&mut self.ledger).split_at_mut(at);
        (self.pages, self.ledger) = (pages, ledger);
        let first = self.first + at as u64;
        Self { pages: rest, ledger: ledger_of_rest, first, ..*self }
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Writes the first version of every page.
    pub fn fill(&mut self) {
        self.ledger.fill(0);
        for (number, page) in self.pages.iter_mut().enumerate() {
            self.content.fill(self.first + number as u64, 0, page);
        }
    }

    /// Checks the next one of the first `count` pages, then writes its next version.
    pub fn rewrite(&mut self, count: usize) {
        let count = count.min(self.pages.len());
        if count == 0 {
            return;
        }
        let number = self.next_rewrite % count;
        self.next_rewrite = (number + 1) % count;
        self.check(number);
        let sequence = self.ledger[number].wrapping_add(1);
        let page = &mut self.pages[number];
        if self.is_sparse {
            page[PAGE_WORDS - 1] = u64::from(sequence);
        } else {
            self.content.fill(self.first + number as u64, sequence, page);
        }
        self.ledger[number] = sequence;
        self.written += 1;
    }

    /// Checks the next page, in turn over all pages.
    pub fn sweep(&mut self) {
        if self.pages.is_empty() {
            return;
        }
        self.check(self.next_sweep);
        self.next_sweep = (self.next_sweep + 1) % self.pages.len();
    }

    /// Checks every page.
    pub fn check_all(&mut self) {
        for number in 0..self.pages.len() {
            self.check(number);
        }
    }

    /// Number of pages rewritten.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Number of pages checked.
    pub fn checked(&self) -> u64 {
        self.checked
    }

    /// Number of bad pages found.
    pub fn errors(&self) -> u64 {
        self.errors
    }

    /// The first bad page found.
    pub fn first_fault(&self) -> Option<Fault> {
        self.first_fault
    }

    fn check(&mut self, number: usize) {
        let sequence = self.ledger[number];
        let outcome = if self.is_sparse && sequence > 0 {
            self.check_sparse(number, sequence)
        } else {
            self.content.check(self.first + number as u64, sequence, &self.pages[number])
        };
        self.checked += 1;
        if let Err(fault) = outcome {
            self.errors += 1;
            self.first_fault.get_or_insert(fault);
        }
    }

    /// Checks a page of whose first version only the last word has changed.
    fn check_sparse(&mut self, number: usize, sequence: u32) -> Result<(), Fault> {
        let page = self.first + number as u64;
        self.content.fill(page, 0, &mut self.scratch);
        self.scratch[PAGE_WORDS - 1] = u64::from(sequence);
        let found = &self.pages[number];
        if *found == self.scratch {
            return Ok(());
        }
        let rest = PAGE_WORDS - 1;
        let is_whole = found[..rest] == self.scratch[..rest];
        let kind = if is_whole { FaultKind::Stale } else { FaultKind::Corrupt };
        let found_sequence = found[rest];
        Err(Fault { kind, page, expected_sequence: sequence, found_sequence, found_page: 0 })
    }
}
