//! Dirty tracking by KVM's rings: each vCPU lists the pages that it writes.
//!
//! Collecting costs time in proportion to the number of written pages, whatever the size of the
//! guest. KVM logs a page again once its entry has been taken and all rings have been reset. Three
//! rules keep a write from being lost: pages that were taken stay in `pending` until they are
//! re-armed; a page is removed from `pending` only after the rings are reset; and taking, resetting
//! and removing all happen under one lock. A vCPU whose ring is full leaves the guest, and its
//! thread takes the entries and resets the rings itself. See Documentation/virt/kvm/api.rst,
//! `KVM_CAP_DIRTY_LOG_RING`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_MEM_LOG_DIRTY_PAGES, kvm_enable_cap,
};
use kvm_ioctls::{VcpuFd, VmFd};

use super::{DirtyBackend, set_logging};
use crate::error::{Error, KvmContext, Result};
use crate::memory::{CHUNK_PAGES, GuestRam, RamLayout};
use crate::sys::dirty_ring::{DirtyRing, ENTRY_BYTES, reset_dirty_rings};

/// Most calls that are made to reset the rings. KVM stops early when a signal arrives, but
/// `reset_dirty_rings` blocks signals, so this bound is only a safeguard against an endless loop.
const RESET_TRIES_MAX: u32 = 10_000;

/// The rings of all vCPUs, shared with the vCPUs' threads.
#[derive(Debug)]
pub(crate) struct Rings {
    vm: Arc<VmFd>,
    layout: RamLayout,
    /// Entries of each ring.
    entries: u32,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    rings: Vec<DirtyRing>,
    /// Pages that were written and have not been re-armed; empty while tracking is off.
    pending: Vec<u64>,
    /// Entries that have been taken but not yet reset.
    taken: usize,
}

impl Rings {
    /// Has `vm`, which has no vCPUs yet, create a ring of `entries` for each vCPU.
    ///
    /// # Errors
    /// [`Error::MissingCapability`] if KVM has no rings; [`Error::DirtyRing`] if they are shorter;
    /// the error of a KVM call.
    pub(crate) fn enable(vm: Arc<VmFd>, layout: RamLayout, entries: u32) -> Result<Arc<Self>> {
        let bytes = u64::from(entries) * ENTRY_BYTES as u64;
        let known = [KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING];
        let known = known.map(|cap| (cap, vm.check_extension_raw(cap.into())));
        let Some((cap, bytes_max)) = known.into_iter().find(|(_, bytes)| *bytes > 0) else {
            let purpose = "track dirty pages by rings: choose --dirty-log bitmap";
            return Err(Error::MissingCapability { capability: "KVM_CAP_DIRTY_LOG_RING", purpose });
        };
        if bytes > u64::try_from(bytes_max).unwrap_or(0) {
            let max = bytes_max as u32 / ENTRY_BYTES as u32;
            return Err(Error::DirtyRing { entries, max });
        }
        let mut enable = kvm_enable_cap { cap, ..Default::default() };
        enable.args[0] = bytes;
        vm.enable_cap(&enable).call("KVM_ENABLE_CAP (dirty ring)")?;
        Ok(Arc::new(Self { vm, layout, entries, inner: Mutex::default() }))
    }

    /// Adds the ring of `vcpu`, whose index is `index`.
    ///
    /// # Errors
    /// If the ring cannot be mapped.
    pub(crate) fn add(&self, vcpu: &VcpuFd, index: u8) -> Result<()> {
        let ring = DirtyRing::map(vcpu, self.entries as usize)
            .map_err(|error| kvm_ioctls::Error::new(error.raw_os_error().unwrap_or(libc::EIO)));
        self.lock().rings.push(ring.vcpu_call(index, "mmap of its dirty ring")?);
        Ok(())
    }

    /// Empties all rings, for a vCPU that found its own full.
    ///
    /// # Errors
    /// The error of a KVM call.
    pub(crate) fn make_room(&self) -> Result<()> {
        let mut inner = self.lock();
        self.take(&mut inner);
        self.reset(&mut inner)
    }

    /// Takes all entries out of the rings.
    fn take(&self, inner: &mut Inner) {
        let Inner { rings, pending, taken } = inner;
        let regions = self.layout.regions();
        for ring in rings {
            *taken += ring.harvest(|slot, page| {
                let Some(region) = regions.get(slot as usize) else { return };
                let chunk = region.first_chunk + page as usize / CHUNK_PAGES;
                if let Some(word) = pending.get_mut(chunk) {
                    *word |= 1 << (page as usize % CHUNK_PAGES);
                }
            });
        }
    }

    /// Resets the rings, so that KVM logs further writes to all pages that were taken.
    fn reset(&self, inner: &mut Inner) -> Result<()> {
        let mut tries = 0;
        while inner.taken > 0 {
            let reset = reset_dirty_rings(&self.vm).call("KVM_RESET_DIRTY_RINGS")?;
            inner.taken = inner.taken.saturating_sub(reset);
            tries += 1;
            if tries > RESET_TRIES_MAX {
                return Err(kvm_ioctls::Error::new(libc::EINTR)).call("KVM_RESET_DIRTY_RINGS");
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DirtyBackend for Arc<Rings> {
    fn start(&mut self, ram: &GuestRam) -> Result<()> {
        self.lock().pending = vec![!0; ram.chunks()];
        set_logging(&self.vm, ram, KVM_MEM_LOG_DIRTY_PAGES)
    }

    fn stop(&mut self, ram: &GuestRam) -> Result<()> {
        let logging = set_logging(&self.vm, ram, 0);
        let mut inner = self.lock();
        inner.pending = Vec::new();
        self.take(&mut inner);
        self.reset(&mut inner)?;
        logging
    }

    fn collect(&mut self, _ram: &GuestRam, words: &mut [u64]) -> Result<()> {
        let mut inner = self.lock();
        self.take(&mut inner);
        for (word, pending) in words.iter_mut().zip(&inner.pending) {
            *word |= pending;
        }
        Ok(())
    }

    fn rearm(&mut self, _ram: &GuestRam, first_chunk: usize, words: &[u64]) -> Result<()> {
        let mut inner = self.lock();
        // Reset first: a page that is removed from `pending` but not logged could be written
        // unseen.
        self.reset(&mut inner)?;
        for (pending, word) in inner.pending[first_chunk..].iter_mut().zip(words) {
            *pending &= !word;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{DATA, TOUCH_PAGES, event, vm_by, wait_for_more};
    use crate::{DirtyLog, VmEvent};

    const RING: DirtyLog = DirtyLog::Ring { entries: 1024 };

    #[test]
    fn a_full_ring_loses_nothing() {
        // Ten times as many pages as the ring has entries, over and over.
        let pages = 10_240;
        let vm = vm_by(RING, 64, TOUCH_PAGES, &[[DATA, pages], [DATA, pages]]);
        vm.start_dirty_log().unwrap();
        let mut words = vec![0; vm.ram().chunks()];
        // Pause repeatedly, so that the signals of a pause also arrive while a vCPU empties the
        // rings.
        for _ in 0..10 {
            vm.collect_dirty(&mut words).unwrap();
            vm.rearm_dirty(0, &words).unwrap();
            words.fill(0);
            let last = DATA + (pages - 1) * 4096;
            let before = crate::testing::word(&vm, last);
            vm.resume().unwrap();
            wait_for_more(&vm, last, before + 2);
            assert!(matches!(event(&vm), VmEvent::Doorbell { .. }), "the guest goes on");
            vm.pause().unwrap();
            vm.collect_dirty(&mut words).unwrap();
            let first = DATA as usize / 4096;
            for page in first..first + pages as usize {
                assert!(words[page / 64] >> (page % 64) & 1 == 1, "page {page}");
            }
            while vm.events().take(std::time::Duration::ZERO).is_some() {}
        }
        vm.stop_dirty_log().unwrap();
    }

    #[test]
    fn a_ring_that_is_too_large_for_the_host_is_refused() {
        let shape = crate::testing::shape(16, 1);
        let options = crate::VmOptions {
            dirty_log: DirtyLog::Ring { entries: 1 << 20 },
            ..crate::VmOptions::default()
        };
        let error =
            crate::Vm::create_with(&shape, &options, Box::new(std::io::sink())).unwrap_err();
        assert!(
            matches!(error, Error::DirtyRing { entries: 1_048_576, max } if max >= 1024),
            "{error}"
        );
    }
}
