//! Constants of the file format, shared by writer and reader.

use std::ops::RangeInclusive;

/// First bytes of a file. A transfer in text mode would change the line feed, which the reader
/// notices.
pub(super) const MAGIC: [u8; 8] = *b"LIGHTER\n";
/// Version of the format.
pub(super) const VERSION: u32 = 2;
/// The versions that can be read. Version 1 has no seals of disks.
pub(super) const VERSIONS: RangeInclusive<u32> = 1..=VERSION;
/// Longest shape, in bytes.
pub(super) const SHAPE_BYTES_MAX: u32 = crate::codec::ENCODED_BYTES_MAX as u32;
/// Longest state, in bytes.
pub(super) const STATE_BYTES_MAX: u32 = crate::state::STATE_BYTES_MAX as u32;
/// Marks the end of the file in place of a chunk number.
pub(super) const END: u64 = u64::MAX;
/// First bytes of a template.
pub(super) const TEMPLATE_MAGIC: [u8; 8] = *b"LIGHTPL\n";
/// Version of the templates' format.
pub(super) const TEMPLATE_VERSION: u32 = 1;
