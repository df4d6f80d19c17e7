//! Counts a vCPU's page faults, by KVM's binary statistics (`KVM_GET_STATS_FD` in
//! Documentation/virt/kvm/api.rst).
//!
//! While KVM logs writes, it protects pages, and the first write to each is a fault of the vCPU
//! that writes. Some faults have another cause, such as a read of a page that is not mapped yet.
//! With page-modification logging (PML), the processor logs writes, and there are no faults.

use std::fs::File;
use std::os::unix::fs::FileExt;

use kvm_ioctls::VcpuFd;

use crate::sys::kvm;

/// The counter of faults that KVM has resolved by mapping a page.
const COUNTER: &[u8] = b"pf_fixed";
/// A counter that exists since Linux 5.19. In kernels without it, [`COUNTER`] misses the faults
/// that KVM resolves without a lock, and these are most of the writes.
const COMPANION: &[u8] = b"pf_fast";

/// Words of 32 bits in `struct kvm_stats_header` of `linux/kvm.h`.
const HEADER_WORDS: usize = 6;
/// Bytes of `struct kvm_stats_desc` before the name.
const DESCRIPTOR_BYTES: usize = 16;
/// Where a descriptor has the offset of its counter among the data.
const OFFSET_AT: usize = 8;
/// Most counters, and the longest name in bytes: KVM has some fifty, of 48 bytes.
const COUNTERS_MAX: usize = 1024;
const NAME_BYTES_MAX: usize = 256;

/// KVM's count of the page faults of one vCPU.
#[derive(Debug)]
pub(crate) struct FaultCounter {
    statistics: File,
    /// Where the count is in the file.
    offset: u64,
}

impl FaultCounter {
    /// Opens the counter of `vcpu`; `None` if this host's KVM has none. Waits while the vCPU is in
    /// the guest.
    pub(crate) fn open(vcpu: &VcpuFd) -> Option<Self> {
        Self::find(kvm::statistics(vcpu).ok()?)
    }

    /// Finds the counter in a file of statistics.
    fn find(statistics: File) -> Option<Self> {
        let [_flags, name_bytes, counters, _id, descriptors, data] = header(&statistics)?;
        let (name_bytes, counters) = (name_bytes as usize, counters as usize);
        if name_bytes > NAME_BYTES_MAX || counters > COUNTERS_MAX {
            return None;
        }
        let bytes = DESCRIPTOR_BYTES + name_bytes;
        let mut all = vec![0; bytes * counters];
        statistics.read_exact_at(&mut all, descriptors.into()).ok()?;
        let named = |wanted| all.chunks_exact(bytes).find(|descriptor| name(descriptor) == wanted);
        named(COMPANION)?;
        let offset = word(named(COUNTER)?.get(OFFSET_AT..)?)?;
        Some(Self { statistics, offset: u64::from(data) + u64::from(offset) })
    }

    /// Reads the count, whether the vCPU is in the guest or not.
    pub(super) fn read(&self) -> Option<u64> {
        let mut count = [0; 8];
        self.statistics.read_exact_at(&mut count, self.offset).ok()?;
        Some(u64::from_ne_bytes(count))
    }
}

fn header(statistics: &File) -> Option<[u32; HEADER_WORDS]> {
    let mut bytes = [0; 4 * HEADER_WORDS];
    statistics.read_exact_at(&mut bytes, 0).ok()?;
    let words: Option<Vec<u32>> = bytes.chunks_exact(4).map(word).collect();
    words?.try_into().ok()
}

/// Reads a word from the first bytes.
fn word(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// Returns the name in a descriptor, without the zeros at its end.
fn name(descriptor: &[u8]) -> &[u8] {
    let name = descriptor.get(DESCRIPTOR_BYTES..).unwrap_or_default();
    name.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::testing::empty_vm;

    const NAME_BYTES: usize = 48;

    /// Statistics with these counters, each of which counts its index; `header` changes the header.
    fn statistics(names: &[&str], header: impl FnOnce(&mut [u32; HEADER_WORDS])) -> File {
        let (id, descriptors) = (24, 24 + NAME_BYTES as u32);
        let count = names.len() as u32;
        let data = descriptors + count * (DESCRIPTOR_BYTES + NAME_BYTES) as u32;
        let mut words = [0, NAME_BYTES as u32, count, id, descriptors, data];
        header(&mut words);
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.resize(bytes.len() + NAME_BYTES, 0);
        for (offset, name) in (0_u32..).step_by(8).zip(names) {
            let start = bytes.len();
            for word in [0, 1 << 16, offset, 0_u32] {
                bytes.extend(word.to_ne_bytes());
            }
            bytes.extend(name.as_bytes());
            bytes.resize(start + DESCRIPTOR_BYTES + NAME_BYTES, 0);
        }
        (0..names.len() as u64).for_each(|index| bytes.extend(index.to_ne_bytes()));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file
    }

    const NAMES: [&str; 5] = ["exits", "pf_fixed_more", "pf_taken", "pf_fixed", "pf_fast"];

    #[test]
    fn the_counter_is_found_by_its_name() {
        let counter = FaultCounter::find(statistics(&NAMES, |_| {})).unwrap();
        assert_eq!(counter.read(), Some(3));
    }

    #[test]
    fn a_kernel_that_does_not_count_all_faults_has_no_counter() {
        assert!(FaultCounter::find(statistics(&NAMES[..4], |_| {})).is_none());
        assert!(FaultCounter::find(statistics(&["pf_fast"], |_| {})).is_none());
        assert!(FaultCounter::find(statistics(&[], |_| {})).is_none());
    }

    #[test]
    fn statistics_that_contradict_themselves_are_not_read() {
        let with = |index: usize, value| {
            FaultCounter::find(statistics(&NAMES, |words| words[index] = value))
        };
        for (index, value) in [(1, 0), (1, u32::MAX), (2, u32::MAX), (2, 1000), (4, u32::MAX)] {
            assert!(with(index, value).is_none(), "word {index} is {value}");
        }
        assert_eq!(with(5, u32::MAX).unwrap().read(), None, "no data there");
        assert!(FaultCounter::find(tempfile::tempfile().unwrap()).is_none());
    }

    /// On kernels without the counters, the throttle slows all vCPUs down: see its test.
    #[test]
    fn a_vcpu_that_never_ran_has_no_faults() {
        let counted = empty_vm(16, 1)
            .on_vcpu(0, |vcpu| FaultCounter::open(vcpu.fd()).map(|counter| counter.read()));
        assert!(matches!(counted.unwrap(), None | Some(Some(0))));
    }
}
