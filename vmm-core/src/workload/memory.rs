//! Reads and writes the workload's pages in guest RAM, with errors that name the address.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::WorkloadError;
use super::abi::{ABI_VERSION, MAGIC, PARAMS_GPA, ParamsPage};

/// Copies `N` words from `gpa`.
pub(super) fn read_words<const N: usize>(
    ram: &impl GuestMemoryBackend,
    gpa: u64,
) -> Result<[u64; N], WorkloadError> {
    let mut words = [0; N];
    for (word, at) in words.iter_mut().zip((gpa..).step_by(8)) {
        *word = load_word(ram, at)?;
    }
    Ok(words)
}

/// Writes `words` to `gpa`.
pub(super) fn write_words(
    ram: &impl GuestMemoryBackend,
    gpa: u64,
    words: &[u64],
) -> Result<(), WorkloadError> {
    words.iter().zip((gpa..).step_by(8)).try_for_each(|(word, at)| store_word(ram, at, *word))
}

/// Reads the word at `gpa` in one access; later reads are not reordered before it.
pub(super) fn load_word(ram: &impl GuestMemoryBackend, gpa: u64) -> Result<u64, WorkloadError> {
    ram.load(GuestAddress(gpa), Ordering::Acquire)
        .map_err(|cause| WorkloadError::Memory { gpa, cause })
}

/// Writes the word at `gpa` in one access, after all earlier writes.
pub(super) fn store_word(
    ram: &impl GuestMemoryBackend,
    gpa: u64,
    word: u64,
) -> Result<(), WorkloadError> {
    ram.store(word, GuestAddress(gpa), Ordering::Release)
        .map_err(|cause| WorkloadError::Memory { gpa, cause })
}

/// Copies the bytes at `gpa`.
pub(super) fn read_bytes(
    ram: &impl GuestMemoryBackend,
    gpa: u64,
    bytes: &mut [u8],
) -> Result<(), WorkloadError> {
    ram.read_slice(bytes, GuestAddress(gpa)).map_err(|cause| WorkloadError::Memory { gpa, cause })
}

/// Writes `bytes` to `gpa`.
pub(super) fn write_bytes(
    ram: &impl GuestMemoryBackend,
    gpa: u64,
    bytes: &[u8],
) -> Result<(), WorkloadError> {
    ram.write_slice(bytes, GuestAddress(gpa)).map_err(|cause| WorkloadError::Memory { gpa, cause })
}

/// Reads the parameter page, if this is a workload guest of this build's version.
pub(super) fn read_params(ram: &impl GuestMemoryBackend) -> Result<ParamsPage, WorkloadError> {
    let params = ParamsPage::from_words(&read_words(ram, PARAMS_GPA)?);
    let known = params.magic == MAGIC
        && params.version == ABI_VERSION
        && (1..=super::abi::VCPUS_MAX).contains(&params.vcpus)
        && params.tsc_hz > 0;
    if known { Ok(params) } else { Err(WorkloadError::NotAWorkload { version: ABI_VERSION }) }
}
