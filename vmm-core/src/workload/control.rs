//! Controls a running workload guest.

use vm_memory::GuestMemoryBackend;

use super::WorkloadError;
use super::abi::{CONTROL_GPA, ControlPage, PAGE_BYTES};
use super::memory::{load_word, read_params, store_word};

/// Controls a workload guest by writing to its control page.
///
/// Every write goes through `vm-memory`, so it counts as dirty and a migration transfers it. The
/// guest obeys within a millisecond of running time; a paused guest obeys after it is resumed.
#[derive(Debug)]
pub struct Control<'ram, M> {
    ram: &'ram M,
    pages: u64,
}

impl<'ram, M: GuestMemoryBackend> Control<'ram, M> {
    /// Opens the control page of the workload guest in `ram`.
    ///
    /// # Errors
    /// [`WorkloadError::NotAWorkload`] if there is no workload guest.
    pub fn new(ram: &'ram M) -> Result<Self, WorkloadError> {
        Ok(Self { ram, pages: read_params(ram)?.pages })
    }

    /// Sets how many pages are rewritten per second by all vCPUs together; 0 stops rewriting.
    ///
    /// # Errors
    /// [`WorkloadError::Memory`] if the page is not accessible.
    pub fn set_dirty_rate(&self, pages_per_second: u64) -> Result<(), WorkloadError> {
        self.store(Word::DirtyRate, pages_per_second)
    }

    /// Sets the part of memory that is rewritten, in bytes, limited to the working memory.
    ///
    /// # Errors
    /// As [`Self::set_dirty_rate`].
    pub fn set_working_set(&self, bytes: u64) -> Result<(), WorkloadError> {
        self.store(Word::WorkingSetPages, (bytes / PAGE_BYTES).min(self.pages))
    }

    /// Resets the guest's longest stall. Returns the epoch that [`super::Report::stall_epoch`]
    /// reaches once the guest has obeyed.
    ///
    /// # Errors
    /// As [`Self::set_dirty_rate`].
    pub fn reset_stall(&self) -> Result<u64, WorkloadError> {
        self.advance(Word::StallEpoch)
    }

    /// Makes the guest check all its memory while it keeps working. Returns the epoch that
    /// [`super::Report::verified_epoch`] reaches once the check has finished.
    ///
    /// # Errors
    /// As [`Self::set_dirty_rate`].
    pub fn request_verification(&self) -> Result<u64, WorkloadError> {
        self.advance(Word::VerifyEpoch)
    }

    /// Stops the guest's work; each vCPU rings the doorbell and then only spins.
    ///
    /// # Errors
    /// As [`Self::set_dirty_rate`].
    pub fn stop(&self) -> Result<(), WorkloadError> {
        self.store(Word::Stop, 1)
    }

    fn advance(&self, word: Word) -> Result<u64, WorkloadError> {
        let epoch = load_word(self.ram, word.gpa())?.wrapping_add(1);
        self.store(word, epoch)?;
        Ok(epoch)
    }

    fn store(&self, word: Word, value: u64) -> Result<(), WorkloadError> {
        store_word(self.ram, word.gpa(), value)
    }
}

/// Indices of the words of [`ControlPage`] that change while the guest works. Word 2, the order of
/// rewriting, does not.
#[derive(Clone, Copy)]
enum Word {
    DirtyRate = 0,
    WorkingSetPages = 1,
    StallEpoch = 3,
    VerifyEpoch = 4,
    Stop = 5,
}

impl Word {
    fn gpa(self) -> u64 {
        CONTROL_GPA + self as u64 * 8
    }
}

// A new word in the page needs a name here, or the indices of those after it would be wrong.
const _: () = assert!(Word::Stop as usize + 1 == ControlPage::WORDS);

#[cfg(test)]
mod tests {
    use super::super::memory::read_words;
    use super::super::{WorkloadParams, load};
    use super::*;
    use vm_memory::bitmap::{AtomicBitmap, Bitmap};
    use vm_memory::{GuestAddress, GuestMemoryMmap, MmapRegion};

    fn loaded() -> GuestMemoryMmap<AtomicBitmap> {
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        load(&ram, 1, 1_000_000_000, &WorkloadParams::default()).unwrap();
        ram
    }

    #[test]
    fn writes_the_word_it_names() {
        let ram = loaded();
        let control = Control::new(&ram).unwrap();
        control.set_dirty_rate(7).unwrap();
        control.set_working_set(8 * PAGE_BYTES).unwrap();
        assert_eq!(control.reset_stall().unwrap(), 1);
        assert_eq!(control.request_verification().unwrap(), 1);
        assert_eq!(control.request_verification().unwrap(), 2);
        control.stop().unwrap();
        let page = ControlPage::from_words(&read_words(&ram, CONTROL_GPA).unwrap());
        let expected = ControlPage {
            dirty_rate: 7,
            working_set_pages: 8,
            order: WorkloadParams::default().order as u64,
            stall_epoch: 1,
            verify_epoch: 2,
            stop: 1,
        };
        assert_eq!(page, expected);
    }

    #[test]
    fn cuts_the_working_set_to_memory() {
        let ram = loaded();
        let control = Control::new(&ram).unwrap();
        control.set_working_set(u64::MAX).unwrap();
        let page = ControlPage::from_words(&read_words(&ram, CONTROL_GPA).unwrap());
        assert_eq!(page.working_set_pages, read_params(&ram).unwrap().pages);
    }

    #[test]
    fn counts_as_a_write_of_the_vmm() {
        let ram = loaded();
        let mapping: &MmapRegion<_> = ram.find_region(GuestAddress(0)).unwrap();
        let bitmap = mapping.bitmap();
        bitmap.reset();
        Control::new(&ram).unwrap().reset_stall().unwrap();
        assert!(bitmap.dirty_at(CONTROL_GPA as usize));
    }

    #[test]
    fn refuses_memory_without_a_workload() {
        let ram = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        assert!(matches!(Control::new(&ram), Err(WorkloadError::NotAWorkload { .. })));
    }
}
