//! The stamped pages, mapped through `/dev/mem`, and the ledger of their versions.

use crate::linux;
use crate::options::Options;
use crate::stamp::{Content, Fault, PageWords, Shuffle};

/// The pages, and the version that each should have.
pub struct Memory {
    pages: &'static mut [PageWords],
    ledger: &'static mut [u32],
    content: Content,
    working_set: usize,
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
            working_set: options.working_set_pages as usize,
            next_rewrite: 0,
            next_sweep: 0,
            written: 0,
            checked: 0,
            errors: 0,
            first_fault: None,
        })
    }

    /// Writes the first version of every page.
    pub fn fill(&mut self) {
        self.ledger.fill(0);
        for (number, page) in self.pages.iter_mut().enumerate() {
            self.content.fill(number as u64, 0, page);
        }
    }

    /// Checks the next page of the working set, then writes its next version.
    pub fn rewrite(&mut self) {
        if self.working_set == 0 {
            return;
        }
        let number = self.next_rewrite;
        self.next_rewrite = (number + 1) % self.working_set;
        self.check(number);
        let sequence = self.ledger[number].wrapping_add(1);
        self.content.fill(number as u64, sequence, &mut self.pages[number]);
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
        let outcome = self.content.check(number as u64, self.ledger[number], &self.pages[number]);
        self.checked += 1;
        if let Err(fault) = outcome {
            self.errors += 1;
            self.first_fault.get_or_insert(fault);
        }
    }
}
