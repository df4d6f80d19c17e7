//! Memory that devices of the host write to: none of it may be taken from the guest meanwhile.

use std::sync::{Arc, PoisonError, RwLock};

use super::backing::populate;
use super::host::check_available;
use super::{GuestRam, MemoryError, PAGE_BYTES, PageMap};

/// Whether devices of the host reach a guest's memory. Code that takes pages away holds it for
/// reading.
#[derive(Debug, Default)]
pub(super) struct Pins(RwLock<bool>);

/// Keeps all of a guest's memory where it is, until it is dropped.
#[derive(Debug)]
pub(crate) struct Pinned(Arc<GuestRam>);

impl Pins {
    /// Whether all memory has to stay.
    pub(super) fn are_set(&self) -> bool {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `take`, which takes pages away; `None` if they have to stay.
    pub(super) fn unless_set<T>(&self, take: impl FnOnce() -> T) -> Option<T> {
        let is_set = self.0.read().unwrap_or_else(PoisonError::into_inner);
        (!*is_set).then(take)
    }

    fn set(&self, to: bool) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = to;
    }
}

impl GuestRam {
    /// Makes all memory present, if the host has as much: it is to be pinned.
    ///
    /// # Errors
    /// [`MemoryError::NotEnough`]; [`MemoryError::Populate`]; [`MemoryError::Incomplete`] while
    /// pages are missing; [`MemoryError::Pagemap`].
    pub(crate) fn make_present(&self) -> Result<(), MemoryError> {
        if !self.is_complete() {
            return Err(MemoryError::Incomplete);
        }
        if self.is_pinned() {
            return Ok(());
        }
        let absent = self.bytes().saturating_sub(self.own_bytes()?);
        if absent > 0 && self.pool_page_bytes().is_none() {
            check_available(absent)?;
        }
        populate(&self.mappings().collect::<Vec<_>>())
    }

    /// Returns how much memory is the guest's own by now, in bytes.
    fn own_bytes(&self) -> Result<u64, MemoryError> {
        let mut map = PageMap::open()?;
        let mut bytes = 0;
        for region in self.layout().regions() {
            let pages = map.own_pages(self, &(region.gpa..region.gpa + region.bytes))?;
            bytes += pages.iter().map(|run| run.count * PAGE_BYTES as u64).sum::<u64>();
        }
        Ok(bytes)
    }

    /// Keeps all memory where it is from now on: what is given back to the host only reads as
    /// zeros.
    ///
    /// # Errors
    /// [`MemoryError::Incomplete`] while pages are missing.
    pub(crate) fn pin(ram: &Arc<Self>) -> Result<Pinned, MemoryError> {
        if !ram.is_complete() {
            return Err(MemoryError::Incomplete);
        }
        ram.pins().set(true);
        Ok(Pinned(Arc::clone(ram)))
    }

    /// Whether devices of the host reach the memory, all of which is present then and stays where
    /// it is.
    pub fn is_pinned(&self) -> bool {
        self.pins().are_set()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.0.pins().set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pinned_memory_is_zeroed_and_not_taken_away() {
        let ram = Arc::new(GuestRam::anonymous(4 << 20));
        let page = 0..PAGE_BYTES as u64;
        let mut map = PageMap::open().unwrap();
        let mut present = |ram: &GuestRam| !map.own_pages(ram, &page).unwrap().is_empty();
        ram.write(0, &[7; PAGE_BYTES]).unwrap();
        let pinned = GuestRam::pin(&ram).unwrap();
        assert!(ram.is_pinned() && ram.keeps_all());
        assert_eq!(ram.discard(&page).unwrap(), 0);
        let mut byte = [1];
        ram.read(5, &mut byte).unwrap();
        assert_eq!((byte, present(&ram)), ([0], true));
        assert!(matches!(ram.drop_zeros(&page), Err(MemoryError::Pinned)));
        assert!(matches!(ram.drop_pages(&page), Err(MemoryError::Pinned)));
        drop(pinned);
        assert_eq!(ram.discard(&page).unwrap(), PAGE_BYTES as u64);
        assert!(!present(&ram));
        ram.make_present().unwrap();
        assert_eq!(ram.own_bytes().unwrap(), ram.bytes());
    }
}
