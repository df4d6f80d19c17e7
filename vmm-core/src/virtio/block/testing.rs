//! Sends requests to a disk on a test bench.

use std::path::PathBuf;

use tempfile::NamedTempFile;

use crate::virtio::testing::{Bench, WRITABLE};

/// Address of a request's header.
pub(super) const HEADER: u64 = 0x8000;
/// Address from which a request's data may lie.
pub(super) const DATA: u64 = 0x9000;
/// Address of a request's status.
pub(super) const STATUS: u64 = 0xf000;
/// A value that is not a valid status.
const UNANSWERED: u8 = 0xee;

/// Returns the folder of the test's program: not all file systems for temporary files have
/// `O_DIRECT`.
pub(super) fn beside() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.parent().unwrap().to_owned()
}

/// Creates a file there.
pub(super) fn disk_file() -> NamedTempFile {
    NamedTempFile::new_in(beside()).unwrap()
}

/// Sends a request with `data` buffers and returns its status.
pub(super) fn ask(bench: &mut Bench, kind: u32, sector: u64, data: &[(u64, u32, u16)]) -> u8 {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    bench.ram.write(HEADER, &header).unwrap();
    bench.ram.write(STATUS, &[UNANSWERED]).unwrap();
    let mut buffers = vec![(HEADER, 16, 0)];
    buffers.extend(data);
    buffers.push((STATUS, 1, WRITABLE));
    bench.driver(0).offer(&buffers);
    bench.kick(0);
    while bench.bytes(STATUS, 1)[0] == UNANSWERED {
        bench.backend.ready(0);
    }
    bench.bytes(STATUS, 1)[0]
}
