//! One vCPU's report page: kept here, published twice buffered.

use crate::abi::{BELL_FAULT, REPORT_BUFFERS_WORD, REPORT_TURN_WORD, ReportPage};
use crate::machine;
use crate::stamp::Fault;

/// What this vCPU has to say.
pub struct Reporter {
    vcpu: u64,
    gpa: u64,
    turn: u64,
    /// What is said with the next [`Self::publish`].
    pub page: ReportPage,
}

impl Reporter {
    /// An empty report of `vcpu` for the page at `gpa`.
    pub fn new(vcpu: u64, gpa: u64) -> Self {
        Self { vcpu, gpa, turn: 0, page: ReportPage::default() }
    }

    /// Makes the report as it stands visible to the host.
    pub fn publish(&mut self) {
        self.turn += 1;
        let buffer = REPORT_BUFFERS_WORD[(self.turn % 2) as usize];
        for (index, word) in self.page.to_words().iter().enumerate() {
            machine::write_word(self.gpa + (buffer + index as u64) * 8, *word);
        }
        machine::write_word(self.gpa + REPORT_TURN_WORD * 8, self.turn);
    }

    /// Publishes, then rings `bell`.
    pub fn announce(&mut self, bell: u8) {
        self.publish();
        machine::ring(self.vcpu, bell);
    }

    /// Notes the outcome of one page's check; the first bad page is announced at once.
    pub fn note(&mut self, outcome: Result<(), Fault>) {
        self.page.pages_checked += 1;
        let Err(fault) = outcome else { return };
        self.page.faults += 1;
        if self.page.fault_kind == 0 {
            self.page.fault_kind = fault.kind as u64;
            self.page.fault_page = fault.page;
            self.page.fault_expected = u64::from(fault.expected_sequence);
            self.page.fault_found = fault.found_sequence;
            self.page.fault_found_page = fault.found_page;
            self.announce(BELL_FAULT);
        }
    }
}
