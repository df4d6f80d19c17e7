//! Dirty tracking by KVM's bitmap, with manual protection where the kernel has it.
//!
//! `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2` separates reading the log from write-protecting pages again.
//! With `INITIALLY_SET`, starting the log costs nothing: pages are protected chunk by chunk as they
//! are first copied. Kernels without the capability protect everything on each read, which is
//! correct too but slows the guest more; see `KVM_CLEAR_DIRTY_LOG` in
//! Documentation/virt/kvm/api.rst.

use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_MEM_LOG_DIRTY_PAGES, kvm_enable_cap,
};
use kvm_ioctls::VmFd;

use super::{DirtyBackend, set_logging};
use crate::error::{KvmContext, Result};
use crate::memory::{CHUNK_PAGES, GuestRam};
use crate::sys::kvm;

/// Most words that one `KVM_CLEAR_DIRTY_LOG` covers: 256 MiB of guest memory. During the call the
/// kernel holds the lock of the guest's page tables, and the guest's faults wait for it.
pub const REARMED_CHUNKS_MAX: usize = 1024;

/// When KVM write-protects pages for its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protection {
    /// KVM protects pages when they are cleared, and reports every page as dirty at first.
    ManualInitiallySet,
    /// KVM protects pages at the start and when they are cleared.
    Manual,
    /// KVM protects pages at the start and whenever the log is read.
    OnRead,
}

/// KVM's dirty bitmap as a backend; see the module.
#[derive(Debug)]
pub(super) struct BitmapLog {
    vm: Arc<VmFd>,
    protection: Protection,
    /// Set from the start to the first read, if KVM itself does not report every page.
    report_all: bool,
    /// Buffer for reading the log of the largest region.
    scratch: Vec<u64>,
}

impl BitmapLog {
    /// Creates the log of `vm`, with manual protection if the kernel supports it.
    pub(super) fn new(vm: Arc<VmFd>) -> Self {
        let both = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
        Self::with_features(vm, both)
    }

    /// As `new`, with those of the `wanted` features of the capability that the kernel has.
    fn with_features(vm: Arc<VmFd>, wanted: u32) -> Self {
        let protection = enable_manual_protection(&vm, wanted);
        if protection == Protection::OnRead {
            tracing::warn!(
                "this kernel lacks KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: migration will disturb guests more"
            );
        }
        Self { vm, protection, report_all: false, scratch: Vec::new() }
    }
}

fn enable_manual_protection(vm: &VmFd, wanted: u32) -> Protection {
    let capability = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
    let supported = vm.check_extension_raw(capability.into()) as u32 & wanted;
    let mut cap = kvm_enable_cap { cap: capability, ..Default::default() };
    cap.args[0] = supported.into();
    if supported & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE == 0 || vm.enable_cap(&cap).is_err() {
        Protection::OnRead
    } else if supported & KVM_DIRTY_LOG_INITIALLY_SET != 0 {
        Protection::ManualInitiallySet
    } else {
        Protection::Manual
    }
}

impl DirtyBackend for BitmapLog {
    fn start(&mut self, ram: &GuestRam) -> Result<()> {
        set_logging(&self.vm, ram, KVM_MEM_LOG_DIRTY_PAGES)?;
        let largest = ram.layout().regions().iter().map(|region| region.chunks()).max();
        self.scratch.resize(largest.unwrap_or(0), 0);
        self.report_all = self.protection != Protection::ManualInitiallySet;
        Ok(())
    }

    fn stop(&mut self, ram: &GuestRam) -> Result<()> {
        self.scratch = Vec::new();
        set_logging(&self.vm, ram, 0)
    }

    fn collect(&mut self, ram: &GuestRam, words: &mut [u64]) -> Result<()> {
        for (slot, place) in (0..).zip(ram.layout().regions()) {
            let chunks = place.chunks();
            let scratch = &mut self.scratch[..chunks];
            kvm::get_dirty_log(&self.vm, slot, chunks * CHUNK_PAGES, scratch)
                .call("KVM_GET_DIRTY_LOG")?;
            let words = &mut words[place.first_chunk..][..chunks];
            words.iter_mut().zip(scratch).for_each(|(word, kvm)| *word |= *kvm);
        }
        if std::mem::take(&mut self.report_all) {
            words.fill(!0);
        }
        Ok(())
    }

    fn rearm(&mut self, ram: &GuestRam, first_chunk: usize, words: &[u64]) -> Result<()> {
        if self.protection == Protection::OnRead {
            return Ok(());
        }
        let end = first_chunk + words.len();
        for (slot, region) in (0..).zip(ram.layout().regions()) {
            let start = first_chunk.max(region.first_chunk);
            let stop = end.min(region.first_chunk + region.chunks());
            if start >= stop {
                continue;
            }
            for (run_start, run) in runs(&words[start - first_chunk..stop - first_chunk]) {
                let chunk = start + run_start - region.first_chunk;
                kvm::clear_dirty_log(&self.vm, slot, (chunk * CHUNK_PAGES) as u64, run)
                    .call("KVM_CLEAR_DIRTY_LOG")?;
            }
        }
        Ok(())
    }
}

/// Cuts `words` into runs, one for each ioctl: without zero words at the ends, and no longer than
/// [`REARMED_CHUNKS_MAX`]. Zero words in between stay in a run, since each call costs the guest a
/// TLB flush and the kernel skips zero words quickly.
fn runs(words: &[u64]) -> impl Iterator<Item = (usize, &[u64])> {
    words.chunks(REARMED_CHUNKS_MAX).enumerate().filter_map(|(index, run)| {
        let first = run.iter().position(|word| *word != 0)?;
        let last = run.iter().rposition(|word| *word != 0)?;
        Some((index * REARMED_CHUNKS_MAX + first, &run[first..=last]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{DATA, touch_pages_once, vm_with};
    use crate::vm::tests::dirty_log_is_exact;

    /// Runs the exactness test with only these features of the capability.
    fn is_exact_with(features: u32) -> Protection {
        let vm = vm_with(64, &touch_pages_once(), &[[DATA + 3 * 4096, 1000]]);
        // The capability has been enabled since the VM was created: disable it, or some of its
        // features.
        let mut protection = None;
        vm.track_dirty_by(|vm| {
            let cap =
                kvm_enable_cap { cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, ..Default::default() };
            vm.enable_cap(&cap).unwrap();
            let log = BitmapLog::with_features(vm, features);
            protection = Some(log.protection);
            Box::new(log)
        });
        dirty_log_is_exact(&vm);
        protection.unwrap()
    }

    #[test]
    fn is_exact_on_a_kernel_without_manual_protection() {
        assert_eq!(is_exact_with(0), Protection::OnRead);
    }

    #[test]
    fn is_exact_on_a_kernel_that_protects_at_the_start() {
        assert_eq!(is_exact_with(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE), Protection::Manual);
    }

    #[test]
    fn runs_omit_zero_words_at_the_ends_only() {
        let found: Vec<_> = runs(&[0, 0, 5, 0, 7, 0]).collect();
        assert_eq!(found, [(2, [5, 0, 7].as_slice())]);
        assert_eq!(runs(&[0; 5000]).count(), 0);
    }

    #[test]
    fn long_runs_are_cut_and_cover_every_bit() {
        let words: Vec<u64> = (0..3000).map(|word| word % 3).collect();
        let mut covered = vec![0; 3000];
        for (start, run) in runs(&words) {
            assert!(run.len() <= REARMED_CHUNKS_MAX);
            covered[start..start + run.len()].copy_from_slice(run);
        }
        assert_eq!(covered, words);
    }
}
