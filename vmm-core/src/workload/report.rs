//! Reports of the workload guest, read from its RAM without any exit.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryBackend;

use super::abi::{PAGE_BYTES, REPORT_BUFFERS_WORD, REPORT_TURN_WORD, REPORTS_GPA, ReportPage};
use super::memory::{load_word, read_params, read_words};
use super::{Fault, FaultKind, WorkloadError};

/// Attempts to copy a consistent report. The guest writes its report page a thousand times a
/// second, and a copy takes less than a microsecond.
const READ_ATTEMPTS_MAX: u32 = 100;

/// Progress of a vCPU's workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// No instruction has run yet.
    Starting,
    /// The vCPU fills its part of memory for the first time.
    Filling,
    /// Memory is full; the vCPU rewrites and checks pages.
    Working,
    /// Stopped on command.
    Stopped,
    /// The program panicked.
    Panicked,
}

/// State and counters of one vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VcpuReport {
    /// Progress of the workload.
    pub phase: Phase,
    /// Loop iterations; grows as long as the vCPU runs.
    pub ticks: u64,
    /// Pages rewritten after the first fill.
    pub pages_written: u64,
    /// Pages checked, for any reason.
    pub pages_checked: u64,
    /// Pages read at random.
    pub pages_read: u64,
    /// Background sweeps finished.
    pub sweeps: u64,
    /// Longest time in which the vCPU did not run, since the last reset.
    pub longest_stall: Duration,
    /// Epoch of the reset that `longest_stall` counts from.
    pub stall_epoch: u64,
    /// Times that the TSC went backwards.
    pub tsc_backwards: u64,
    /// Epoch of the last finished verification.
    pub verified_epoch: u64,
    /// Bad pages that this verification found.
    pub verified_bad: u64,
    /// Total number of bad pages found.
    pub faults: u64,
    /// The first bad page.
    pub first_fault: Option<Fault>,
}

/// Report of the workload guest, with one part for each vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Reports of the vCPUs, in order.
    pub vcpus: Vec<VcpuReport>,
}

impl Report {
    /// Reads the report of the workload guest in `ram`, running or paused.
    ///
    /// # Errors
    /// [`WorkloadError::NotAWorkload`] if there is no workload guest, [`WorkloadError::Report`] if
    /// its report page is damaged.
    pub fn read(ram: &impl GuestMemoryBackend) -> Result<Self, WorkloadError> {
        let params = read_params(ram)?;
        let vcpus = (0..params.vcpus)
            .map(|vcpu| VcpuReport::decode(vcpu, &read_page(ram, vcpu)?, params.tsc_hz))
            .collect::<Result<_, _>>()?;
        Ok(Self { vcpus })
    }

    /// Returns the phase of the slowest vCPU, or [`Phase::Panicked`] if any has panicked.
    #[must_use]
    pub fn phase(&self) -> Phase {
        let phases = || self.vcpus.iter().map(|vcpu| vcpu.phase);
        match phases().max() {
            Some(Phase::Panicked) => Phase::Panicked,
            _ => phases().min().unwrap_or(Phase::Starting),
        }
    }

    /// Loop iterations of all vCPUs.
    #[must_use]
    pub fn ticks(&self) -> u64 {
        self.sum(|vcpu| vcpu.ticks)
    }

    /// Pages rewritten by all vCPUs.
    #[must_use]
    pub fn pages_written(&self) -> u64 {
        self.sum(|vcpu| vcpu.pages_written)
    }

    /// Pages checked by all vCPUs.
    #[must_use]
    pub fn pages_checked(&self) -> u64 {
        self.sum(|vcpu| vcpu.pages_checked)
    }

    /// Pages read at random by all vCPUs.
    #[must_use]
    pub fn pages_read(&self) -> u64 {
        self.sum(|vcpu| vcpu.pages_read)
    }

    /// Background sweeps that every vCPU has finished.
    #[must_use]
    pub fn sweeps(&self) -> u64 {
        self.vcpus.iter().map(|vcpu| vcpu.sweeps).min().unwrap_or(0)
    }

    /// Bad pages found by all vCPUs.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.sum(|vcpu| vcpu.faults)
    }

    /// The first bad page of the first vCPU that has one.
    #[must_use]
    pub fn first_fault(&self) -> Option<Fault> {
        self.vcpus.iter().find_map(|vcpu| vcpu.first_fault)
    }

    /// The longest stall of any vCPU.
    #[must_use]
    pub fn longest_stall(&self) -> Duration {
        self.vcpus.iter().map(|vcpu| vcpu.longest_stall).max().unwrap_or_default()
    }

    /// Epoch of the last reset that every vCPU has obeyed.
    #[must_use]
    pub fn stall_epoch(&self) -> u64 {
        self.vcpus.iter().map(|vcpu| vcpu.stall_epoch).min().unwrap_or(0)
    }

    /// Epoch of the last verification that every vCPU has finished.
    #[must_use]
    pub fn verified_epoch(&self) -> u64 {
        self.vcpus.iter().map(|vcpu| vcpu.verified_epoch).min().unwrap_or(0)
    }

    /// Whether no bad page was ever found, no vCPU has panicked, and the TSC never went backwards.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        let whole = |vcpu: &VcpuReport| {
            vcpu.faults == 0 && vcpu.tsc_backwards == 0 && vcpu.phase != Phase::Panicked
        };
        self.vcpus.iter().all(whole)
    }

    fn sum(&self, of: impl Fn(&VcpuReport) -> u64) -> u64 {
        self.vcpus.iter().map(of).fold(0, u64::wrapping_add)
    }
}

impl VcpuReport {
    fn decode(vcpu: u64, page: &ReportPage, tsc_hz: u64) -> Result<Self, WorkloadError> {
        let damaged = |field, value| WorkloadError::Report { vcpu, field, value };
        let phase = match page.phase {
            0 => Phase::Starting,
            1 => Phase::Filling,
            2 => Phase::Working,
            3 => Phase::Stopped,
            4 => Phase::Panicked,
            other => return Err(damaged("phase", other)),
        };
        let stall = u128::from(page.longest_stall) * 1_000_000_000 / u128::from(tsc_hz);
        let stall_ns = u64::try_from(stall).map_err(|_| damaged("stall", page.longest_stall))?;
        Ok(Self {
            phase,
            ticks: page.tick,
            pages_written: page.pages_written,
            pages_checked: page.pages_checked,
            pages_read: page.pages_read,
            sweeps: page.sweeps,
            longest_stall: Duration::from_nanos(stall_ns),
            stall_epoch: page.stall_epoch,
            tsc_backwards: page.tsc_backwards,
            verified_epoch: page.verified_epoch,
            verified_bad: page.verified_bad,
            faults: page.faults,
            first_fault: first_fault(page).map_err(|(field, value)| damaged(field, value))?,
        })
    }
}

fn first_fault(page: &ReportPage) -> Result<Option<Fault>, (&'static str, u64)> {
    if page.fault_kind == 0 {
        return Ok(None);
    }
    let kind = FaultKind::from_code(page.fault_kind).ok_or(("fault kind", page.fault_kind))?;
    let expected_sequence = u32::try_from(page.fault_expected)
        .map_err(|_| ("expected sequence", page.fault_expected))?;
    Ok(Some(Fault {
        kind,
        page: page.fault_page,
        expected_sequence,
        found_sequence: page.fault_found,
        found_page: page.fault_found_page,
    }))
}

/// Copies the last finished report of `vcpu`; see [`REPORT_TURN_WORD`].
fn read_page(ram: &impl GuestMemoryBackend, vcpu: u64) -> Result<ReportPage, WorkloadError> {
    let page = REPORTS_GPA + vcpu * PAGE_BYTES;
    let mut turn = load_word(ram, page + REPORT_TURN_WORD * 8)?;
    for _ in 0..READ_ATTEMPTS_MAX {
        let buffer = REPORT_BUFFERS_WORD[(turn % 2) as usize];
        let words = read_words(ram, page + buffer * 8)?;
        let after = load_word(ram, page + REPORT_TURN_WORD * 8)?;
        if after == turn {
            return Ok(ReportPage::from_words(&words));
        }
        turn = after;
    }
    Err(WorkloadError::Report { vcpu, field: "turn (it never rests)", value: turn })
}

#[cfg(test)]
mod tests {
    use super::super::memory::{store_word, write_words};
    use super::super::{WorkloadParams, load};
    use super::*;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    const PAGE: ReportPage = ReportPage {
        phase: 2,
        tick: 10,
        tsc: 0,
        pages_written: 5,
        pages_checked: 6,
        sweeps: 1,
        longest_stall: 2_000_000,
        stall_epoch: 3,
        tsc_backwards: 0,
        verified_epoch: 4,
        verified_bad: 0,
        faults: 0,
        fault_page: 0,
        fault_kind: 0,
        fault_expected: 0,
        fault_found: 0,
        fault_found_page: 0,
        pages_read: 64,
    };

    fn with_reports(reports: &[ReportPage]) -> GuestMemoryMmap {
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        let vcpus = u8::try_from(reports.len()).unwrap();
        load(&ram, vcpus, 1_000_000_000, &WorkloadParams::default()).unwrap();
        for (report, page) in reports.iter().zip((REPORTS_GPA..).step_by(4096)) {
            write_words(&ram, page + REPORT_BUFFERS_WORD[1] * 8, &report.to_words()).unwrap();
            store_word(&ram, page + REPORT_TURN_WORD * 8, 1).unwrap();
        }
        ram
    }

    #[test]
    fn sums_over_vcpus() {
        let slower = ReportPage { phase: 1, sweeps: 0, longest_stall: 5_000, ..PAGE };
        let report = Report::read(&with_reports(&[PAGE, slower])).unwrap();
        assert_eq!(report.phase(), Phase::Filling);
        assert_eq!((report.ticks(), report.pages_written(), report.sweeps()), (20, 10, 0));
        assert_eq!(report.pages_read(), 128);
        assert_eq!(report.longest_stall(), Duration::from_millis(2));
        assert_eq!((report.stall_epoch(), report.verified_epoch()), (3, 4));
        assert!(report.is_intact());
    }

    #[test]
    fn names_the_first_bad_page() {
        let bad = ReportPage {
            faults: 1,
            fault_kind: 2,
            fault_page: 77,
            fault_expected: 9,
            fault_found: 8,
            fault_found_page: 77,
            ..PAGE
        };
        let report = Report::read(&with_reports(&[PAGE, bad])).unwrap();
        assert!(!report.is_intact());
        let expected = Fault {
            kind: FaultKind::Stale,
            page: 77,
            expected_sequence: 9,
            found_sequence: 8,
            found_page: 77,
        };
        assert_eq!(report.first_fault(), Some(expected));
    }

    #[test]
    fn one_panicked_vcpu_is_the_phase_of_all() {
        let panicked = ReportPage { phase: 4, ..PAGE };
        let report = Report::read(&with_reports(&[panicked, PAGE])).unwrap();
        assert_eq!(report.phase(), Phase::Panicked);
        assert!(!report.is_intact());
    }

    #[test]
    fn refuses_unknown_phases() {
        let ram = with_reports(&[ReportPage { phase: 9, ..PAGE }]);
        let refused = Report::read(&ram).unwrap_err();
        assert_eq!(refused.to_string(), "workload report of vcpu 0 is damaged: phase is 9");
    }

    #[test]
    fn a_guest_that_has_not_run_is_starting() {
        let ram = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        load(&ram, 2, 1_000_000_000, &WorkloadParams::default()).unwrap();
        assert_eq!(Report::read(&ram).unwrap().phase(), Phase::Starting);
    }
}
