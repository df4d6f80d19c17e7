//! Frames from the guest, written directly from its driver's buffers.

use std::os::fd::BorrowedFd;

use super::meter::Flow;
use super::{ETHERNET_BYTES, FRAME_BYTES_MIN, HEADER_BYTES, PAYLOAD_BYTES_MAX};
use crate::memory::RamMap;
use crate::sys::net;
use crate::virtio::queue::{Chain, QueueError};

/// Valid sizes of a frame with its header, in bytes.
const BYTES: std::ops::RangeInclusive<usize> =
    HEADER_BYTES + FRAME_BYTES_MIN..=HEADER_BYTES + ETHERNET_BYTES + PAYLOAD_BYTES_MAX;

/// Sends the frame of `chain`. A frame that cannot be sent is lost, as on any network; the kernel
/// checks the header.
///
/// # Errors
/// If the queue is broken.
pub(super) fn send(
    chain: &Chain,
    memory: &RamMap,
    frames: BorrowedFd<'_>,
    flow: &mut Flow,
) -> Result<(), QueueError> {
    let bytes = chain.readable.bytes();
    let slices = chain.readable.slices(memory).map_err(|_| QueueError::Buffer)?;
    let fits = usize::try_from(bytes).is_ok_and(|bytes| BYTES.contains(&bytes));
    if fits && slices.len() <= net::SLICES_MAX && net::send(frames, &slices).is_ok() {
        flow.frames += 1;
        flow.bytes += bytes - HEADER_BYTES as u64;
    } else {
        flow.drops += 1;
    }
    Ok(())
}
