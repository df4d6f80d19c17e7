//! Checking the memory of a paused workload guest from outside.

use vm_memory::GuestMemoryBackend;

use super::abi::{LEDGER_GPA, PAGE_BYTES, ParamsPage, REPORT_WRITING_WORD, REPORTS_GPA};
use super::memory::{load_word, read_bytes, read_params};
use super::stamp::{Content, PageWords};
use super::{Fault, WorkloadError};

/// What [`verify_image`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageVerdict {
    /// Pages that were checked.
    pub pages: u64,
    /// Pages that were being rewritten when the guest was paused, at most one for each vCPU.
    pub skipped: u64,
    /// Bad pages.
    pub faults: u64,
    /// The first of them.
    pub first_fault: Option<Fault>,
}

/// Checks every page of a paused workload guest against the guest's own ledger.
///
/// It does not need the guest to run, so it can compare what arrived at a destination that has not
/// been started. The guest must be in [`super::Phase::Working`] or [`super::Phase::Stopped`].
///
/// # Errors
/// [`WorkloadError::NotAWorkload`] if there is no workload guest in `ram`, and
/// [`WorkloadError::Memory`] if its parameters point outside of `ram`.
pub fn verify_image(ram: &impl GuestMemoryBackend) -> Result<ImageVerdict, WorkloadError> {
    let params = read_params(ram)?;
    let content = Content {
        seed: params.seed,
        random_percent: params.random_percent,
        text_percent: params.text_percent,
        zeroing_percent: params.zeroing_percent,
    };
    let writing = (0..params.vcpus)
        .map(|vcpu| load_word(ram, REPORTS_GPA + vcpu * PAGE_BYTES + REPORT_WRITING_WORD * 8))
        .collect::<Result<Vec<_>, _>>()?;
    let mut verdict = ImageVerdict { pages: 0, skipped: 0, faults: 0, first_fault: None };
    for page in 0..params.pages {
        if writing.contains(&(page + 1)) {
            verdict.skipped += 1;
            continue;
        }
        let sequence = read_sequence(ram, page)?;
        verdict.pages += 1;
        if let Err(fault) = content.check(page, sequence, &read_page(ram, &params, page)?) {
            verdict.faults += 1;
            verdict.first_fault.get_or_insert(fault);
        }
    }
    Ok(verdict)
}

fn read_sequence(ram: &impl GuestMemoryBackend, page: u64) -> Result<u32, WorkloadError> {
    let mut bytes = [0; 4];
    read_bytes(ram, page.saturating_mul(4).saturating_add(LEDGER_GPA), &mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

fn read_page(
    ram: &impl GuestMemoryBackend,
    params: &ParamsPage,
    page: u64,
) -> Result<PageWords, WorkloadError> {
    let (gpa, index) = match page.checked_sub(params.low_pages) {
        None => (params.low_gpa, page),
        Some(index) => (params.high_gpa, index),
    };
    let mut bytes = [0; PAGE_BYTES as usize];
    read_bytes(ram, index.saturating_mul(PAGE_BYTES).saturating_add(gpa), &mut bytes)?;
    let mut words = [0; 512];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    Ok(words)
}
