//! Checks the memory of a paused workload guest from outside.

use vm_memory::GuestMemoryBackend;

use super::abi::{LEDGER_GPA, PAGE_BYTES, ParamsPage, REPORT_WRITING_WORD, REPORTS_GPA};
use super::memory::{load_word, read_bytes, read_params};
use super::stamp::{Content, PageWords, Shuffle};
use super::{Fault, WorkloadError};

/// Result of [`verify_image`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageVerdict {
    /// Number of pages that were checked.
    pub pages: u64,
    /// Pages that were being rewritten when the guest was paused, at most one for each vCPU.
    pub skipped: u64,
    /// Number of bad pages.
    pub faults: u64,
    /// The first bad page.
    pub first_fault: Option<Fault>,
}

/// Checks every page of a paused workload guest against the guest's own ledger.
///
/// The guest need not run, so this can check what arrived at a destination before the guest is
/// resumed there. The guest must be in [`super::Phase::Working`] or [`super::Phase::Stopped`].
///
/// # Errors
/// [`WorkloadError::NotAWorkload`] if there is no workload guest in `ram`, and
/// [`WorkloadError::Memory`] if its parameters point outside of `ram`.
pub fn verify_image(ram: &impl GuestMemoryBackend) -> Result<ImageVerdict, WorkloadError> {
    let params = read_params(ram)?;
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

#[cfg(test)]
mod tests {
    use super::super::stamp::FaultKind;
    use super::super::{WorkloadParams, load};
    use super::*;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    /// Memory as the guest leaves it after filling.
    fn filled() -> (GuestMemoryMmap, ParamsPage) {
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap();
        load(&ram, 1, 1_000_000_000, &WorkloadParams::default()).unwrap();
        let params = read_params(&ram).unwrap();
        for page in 0..params.pages {
            write(&ram, &params, page, 0);
        }
        (ram, params)
    }

    fn write(ram: &GuestMemoryMmap, params: &ParamsPage, page: u64, sequence: u32) {
        let content = Content {
            seed: params.seed,
            own_seed: params.own_seed,
            random_percent: params.random_percent,
            text_percent: params.text_percent,
            image_percent: params.image_percent,
            run_pages: params.run_pages,
            zeroing_percent: params.zeroing_percent,
            shuffle: Shuffle::NONE,
        };
        let mut words = [0; 512];
        content.fill(page, sequence, &mut words);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        ram.write_slice(&bytes, GuestAddress(params.low_gpa + page * PAGE_BYTES)).unwrap();
    }

    #[test]
    fn a_filled_guest_is_intact() {
        let (ram, params) = filled();
        let verdict = verify_image(&ram).unwrap();
        assert_eq!((verdict.pages, verdict.faults), (params.pages, 0));
    }

    #[test]
    fn a_page_newer_than_the_ledger_is_a_fault() {
        let (ram, params) = filled();
        write(&ram, &params, 17, 1);
        let verdict = verify_image(&ram).unwrap();
        let first = verdict.first_fault.unwrap();
        assert_eq!((verdict.faults, first.kind, first.page), (1, FaultKind::Stale, 17));
    }

    #[test]
    fn the_page_being_written_is_skipped() {
        let (ram, params) = filled();
        write(&ram, &params, 17, 1);
        ram.write_obj(18u64, GuestAddress(REPORTS_GPA + REPORT_WRITING_WORD * 8)).unwrap();
        let verdict = verify_image(&ram).unwrap();
        assert_eq!((verdict.skipped, verdict.faults), (1, 0));
    }

    #[test]
    fn parameters_that_point_outside_of_memory_are_an_error() {
        let (ram, mut params) = filled();
        params.low_gpa = u64::MAX - 4095;
        super::super::memory::write_words(&ram, super::super::abi::PARAMS_GPA, &params.to_words())
            .unwrap();
        assert!(matches!(verify_image(&ram), Err(WorkloadError::Memory { .. })));
    }
}
