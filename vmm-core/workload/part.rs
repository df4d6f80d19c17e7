//! One vCPU's part of the working memory: its pages and their entries in the ledger.

use crate::abi::{LEDGER_GPA, PAGE_BYTES, ParamsPage, REPORT_WRITING_WORD, share};
use crate::machine;
use crate::stamp::{Content, Fault, Shuffle};

/// The pages that one vCPU writes and checks.
pub struct Part {
    params: ParamsPage,
    content: Content,
    first: u64,
    pages: u64,
    writing_gpa: u64,
}

impl Part {
    /// The part of `vcpu`, whose report page lies at `report_gpa`.
    pub fn new(vcpu: u64, params: &ParamsPage, report_gpa: u64) -> Self {
        let (first, pages) = share(params.pages, vcpu, params.vcpus);
        let content = Content {
            seed: params.seed,
            own_seed: params.own_seed,
            random_percent: params.random_percent,
            text_percent: params.text_percent,
            image_percent: params.image_percent,
            run_pages: params.run_pages,
            zeroing_percent: params.zeroing_percent,
            shuffle: Shuffle {
                piece_pages: params.piece_pages,
                pieces: params.pieces,
                stride: params.stride,
            },
        };
        let writing_gpa = report_gpa + REPORT_WRITING_WORD * 8;
        Self { params: *params, content, first, pages, writing_gpa }
    }

    /// How many pages it has; they are numbered from 0 in this type's methods.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Writes the first version of page `index`.
    pub fn fill(&mut self, index: u64) {
        self.write(self.first + index, 0);
    }

    /// Checks page `index`.
    pub fn check(&mut self, index: u64) -> Result<(), Fault> {
        let page = self.first + index;
        // SAFETY: `&mut self` makes this the only reference, and parts do not overlap.
        let words = unsafe { machine::page(self.gpa(page)) };
        self.content.check(page, machine::read_u32(ledger_gpa(page)), words)
    }

    /// Reads a word of page `index`.
    pub fn read(&self, index: u64) {
        core::hint::black_box(machine::read_u32(self.gpa(self.first + index)));
    }

    /// Checks page `index`, then writes its next version.
    pub fn rewrite(&mut self, index: u64) -> Result<(), Fault> {
        let found = self.check(index);
        let page = self.first + index;
        self.write(page, machine::read_u32(ledger_gpa(page)).wrapping_add(1));
        found
    }

    /// The host skips the page named in the writing word, as it may be caught half written.
    fn write(&mut self, page: u64, sequence: u32) {
        machine::write_word(self.writing_gpa, page + 1);
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
        // SAFETY: as in `check`.
        let words = unsafe { machine::page(self.gpa(page)) };
        self.content.fill(page, sequence, words);
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
        machine::write_u32(ledger_gpa(page), sequence);
        machine::write_word(self.writing_gpa, 0);
    }

    fn gpa(&self, page: u64) -> u64 {
        match page.checked_sub(self.params.low_pages) {
            None => self.params.low_gpa + page * PAGE_BYTES,
            Some(index) => self.params.high_gpa + index * PAGE_BYTES,
        }
    }
}

fn ledger_gpa(page: u64) -> u64 {
    LEDGER_GPA + page * 4
}
