//! Copies a disk while its driver writes to it: the dirty log must suffice to make the copy equal.

use std::sync::Arc;

use arbitrary::Arbitrary;
use vmm_core::DeviceConfig;
use vmm_core::virtio::DiskContent;
use vmm_core::virtio::fuzzing::Bench;

use super::host::{Host, Scene};
use super::{bench, disk};

/// Sizes of a page and of a chunk, in bytes.
const PAGE_BYTES: usize = 4096;
const CHUNK_BYTES: usize = 64 * PAGE_BYTES;

/// A disk that is not being copied yet.
///
/// # Panics
/// If there is no room for temporary files.
pub fn copied_disk() -> Scene<Option<Copy>> {
    let config: DeviceConfig = disk();
    Scene { bench: bench(&config), side: None }
}

/// A step of a copy.
#[derive(Debug, Arbitrary)]
pub enum Copier {
    /// Starts the copy again from the beginning.
    Begin,
    /// Copies what has been written since the last round.
    Round,
    /// Copies the rest while the device is stopped, and compares.
    End,
}

/// A copy in progress.
#[derive(Debug)]
pub struct Copy {
    content: Arc<DiskContent>,
    bytes: Vec<u8>,
}

impl Host for Copier {
    type Side = Option<Copy>;

    fn act(&self, bench: &mut Bench, side: &mut Option<Copy>) -> u64 {
        match (self, side.take()) {
            (Self::Begin, before) => {
                drop(before);
                *side = bench.disk_content().map(Copy::begin);
            }
            (Self::Round, Some(mut copy)) => {
                copy.round();
                *side = Some(copy);
            }
            (Self::End, Some(mut copy)) => {
                let now = bench.while_paused(|| {
                    copy.round();
                    read(&copy.content)
                });
                copy.content.stop_log();
                assert!(copy.bytes == now, "a copy that differs");
                return now.iter().filter(|byte| **byte != 0).count() as u64;
            }
            (Self::Round | Self::End, None) => {}
        }
        0
    }
}

impl Copy {
    fn begin(content: Arc<DiskContent>) -> Self {
        content.start_log();
        let bytes = read(&content);
        Self { content, bytes }
    }

    fn round(&mut self) {
        let mut words = vec![0; self.content.chunks()];
        self.content.collect_written(&mut words);
        self.content.rearm(0, &words);
        for (chunk, word) in words.iter().enumerate() {
            for page in (0..64).filter(|page| word >> page & 1 == 1) {
                let mut bytes = [0; PAGE_BYTES];
                copy_out(&self.content, chunk, page, &mut bytes);
                let at = chunk * CHUNK_BYTES + page * PAGE_BYTES;
                self.bytes[at..at + PAGE_BYTES].copy_from_slice(&bytes);
            }
        }
    }
}

fn read(content: &DiskContent) -> Vec<u8> {
    let mut bytes = vec![0; content.chunks() * CHUNK_BYTES];
    for (chunk, part) in bytes.chunks_mut(CHUNK_BYTES).enumerate() {
        copy_out(content, chunk, 0, part);
    }
    bytes
}

fn copy_out(content: &DiskContent, chunk: usize, page: usize, into: &mut [u8]) {
    content.copy_out(chunk, page, into).unwrap_or_else(|error| panic!("no content: {error}"));
}
