//! Lets a guest share pages with its template again: gives back the guest's own copies that equal
//! the template's pages, while the guest keeps writing.
//!
//! The copies are write-protected and compared while the guest runs. Then the guest pauses briefly,
//! and those copies that have not been written since are dropped.
//! `docs/adr/0021-template-re-merge.md` gives the reasons.

use std::ops::Range;

use super::mapped::PageMap;
use super::{GuestRam, MemoryError, OwnPages, PAGE_BYTES, runs};
use crate::error::Result;
use crate::sys::userfaultfd::Userfaultfd;

/// Checks that this process can write-protect memory without disturbing its writers: the kernel
/// itself resolves their faults.
///
/// # Errors
/// [`MemoryError::NoWriteProtection`] if the kernel refuses.
pub fn check_write_protection() -> Result<(), MemoryError> {
    Userfaultfd::open().map(drop).map_err(|cause| MemoryError::NoWriteProtection { cause })
}

/// Everything that writes to a guest's memory: vCPUs and devices.
pub(crate) trait Writers {
    /// Runs `work` while the writers are stopped: they have finished what they had begun, and none
    /// of them holds a reference to a page to write to it later.
    ///
    /// # Errors
    /// If the writers cannot be stopped or resumed; the error of `work`.
    fn still<T>(&self, work: impl FnOnce() -> Result<T, MemoryError>) -> Result<T>;
}

impl GuestRam {
    /// Gives back the guest's own copies of template pages in `range`, whole pages, where they
    /// equal the template again; `map` reports which pages are copies. The content of the memory
    /// does not change for `writers`.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchAddress`], [`MemoryError::Pagemap`], [`MemoryError::ReadTemplate`],
    /// [`MemoryError::Share`]; as [`Writers::still`].
    pub(crate) fn share(
        &self,
        range: &Range<u64>,
        map: &mut PageMap,
        writers: &impl Writers,
    ) -> Result<()> {
        if self.is_pinned() {
            return Err(MemoryError::Pinned.into());
        }
        let own = ranges(&map.own_pages(self, range)?);
        if own.is_empty() {
            return Ok(());
        }
        let (watch, own) = match self.watch(range)? {
            Some(watch) => match writers.still(|| Ok(watch.protect(map)))? {
                Ok(own) => (Some(watch), own),
                Err(error) => {
                    tracing::debug!(%error, "copies of a template's pages are not write-protected");
                    (None, own)
                }
            },
            None => (None, own),
        };
        let equal = self.as_in_template(&own)?;
        if equal.is_empty() {
            return Ok(());
        }
        writers.still(|| {
            let unchanged = match &watch {
                Some(watch) => runs::common(&equal, &watch.unwritten(map)?),
                None => self.as_in_template(&equal)?,
            };
            unchanged.iter().try_for_each(|run| self.drop_pages(run))
        })
    }

    /// Watches the memory in `range` that is a template's; `None` if this process cannot.
    fn watch(&self, range: &Range<u64>) -> Result<Option<Watch<'_>>, MemoryError> {
        let Some(userfaultfd) = self.userfaultfd() else { return Ok(None) };
        let (whole, _) = self.part(range)?;
        let mut watch = Watch {
            userfaultfd,
            parts: Vec::new(),
            gpa: range.start,
            address: whole.addresses().start,
        };
        for part in self.of_template(range)? {
            if let Err(error) = userfaultfd.register(&part) {
                tracing::debug!(%error, "memory of a template cannot be watched");
                return Ok(None);
            }
            watch.parts.push(part);
        }
        Ok(Some(watch))
    }
}

/// Records which of the guest's own pages in parts of its memory are written to, until it is
/// dropped.
struct Watch<'a> {
    userfaultfd: &'a Userfaultfd,
    /// Address ranges in this process.
    parts: Vec<Range<u64>>,
    /// A guest-physical address; `address` is the same place in this process.
    gpa: u64,
    address: u64,
}

impl Watch<'_> {
    /// Write-protects all own pages and returns their guest-physical addresses: writes from now on
    /// are recorded. A writer that already holds a reference to a page would go unnoticed.
    fn protect(&self, map: &PageMap) -> std::io::Result<Vec<Range<u64>>> {
        self.each(|part| map.protect_at(part))
    }

    /// Returns the pages that have not been written to since `protect`.
    fn unwritten(&self, map: &PageMap) -> Result<Vec<Range<u64>>, MemoryError> {
        self.each(|part| map.protected_at(part)).map_err(|cause| MemoryError::Pagemap { cause })
    }

    fn each(
        &self,
        scan: impl Fn(&Range<u64>) -> std::io::Result<Vec<Range<u64>>>,
    ) -> std::io::Result<Vec<Range<u64>>> {
        let mut found = Vec::new();
        for part in &self.parts {
            let gpa = |address: u64| self.gpa + (address - self.address);
            scan(part)?.iter().for_each(|run| runs::add(&mut found, gpa(run.start)..gpa(run.end)));
        }
        Ok(found)
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        for part in &self.parts {
            if let Err(error) = self.userfaultfd.unregister(part) {
                // The kernel removes the remaining protection page by page, as pages are written.
                tracing::warn!(%error, "a part of a guest's memory stays write-protected");
            }
        }
    }
}

fn ranges(pages: &[OwnPages]) -> Vec<Range<u64>> {
    let range = |pages: &OwnPages| pages.start..pages.start + pages.count * PAGE_BYTES as u64;
    pages.iter().map(range).collect()
}

#[cfg(test)]
mod tests;
