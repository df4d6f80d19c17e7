//! PCI as a guest's software sees it: configuration space, the ways to reach it, and MSI-X.
//!
//! Pure code that knows neither virtio nor KVM. `ConfigSpace` is a function's configuration
//! space, `HostBridge` the function 00:00.0 with the two ways to the others, `Msix` a function's
//! table of messages, and `HotPlug` the registers by which devices come and go. Whatever a guest
//! writes, at any offset and in any width, is clipped and masked. `docs/adr/0031-pci.md` has the
//! reasons.

mod address;
mod bridge;
mod config;
mod hot_plug;
mod msix;

use std::ops::Range;

pub use address::{NoPciAddress, PciAddress};
pub(crate) use bridge::{ConfigAddress, HostBridge, Target};
pub(crate) use config::{
    CAPABILITIES_START, CONFIG_BYTES, ConfigSpace, HAS_CAPABILITIES, Identity, capability, command,
    register,
};
pub use hot_plug::HotPlugState;
pub(crate) use hot_plug::{HOT_PLUG_PORT, HOT_PLUG_PORTS, HotPlug};
pub(crate) use msix::{ENTRY_BYTES as MSIX_ENTRY_BYTES, Message, Msix};
pub use msix::{MsixEntry, MsixState};

use crate::memory::LOW_RAM_MAX;

/// Addresses below 4 GiB for the registers of functions (BARs).
pub(crate) const APERTURE: Range<u64> = 0xc000_0000..0xe800_0000;
/// Addresses of the configuration space of bus 0 (ECAM: PCI Express Base Specification, 7.2.2).
pub(crate) const ECAM: Range<u64> = 0xe800_0000..0xe810_0000;
/// Most bytes above a guest's RAM for the registers of functions.
const ABOVE_BYTES_MAX: u64 = 256 << 30;
/// Where addresses begin that processors by AMD keep for their links.
const LINKS_START: u64 = 0xfd_0000_0000;

/// Returns addresses above RAM that ends at `ram_end` for the registers of functions; none if a
/// processor with so many address bits has less than 1 GiB there.
pub(crate) fn above(ram_end: u64, address_bits: u32) -> Range<u64> {
    const GIB: u64 = 1 << 30;
    let end = 1_u64.checked_shl(address_bits).unwrap_or(u64::MAX).min(LINKS_START);
    let start = ram_end.max(4 * GIB).next_multiple_of(GIB);
    let start = start.max(end.saturating_sub(ABOVE_BYTES_MAX));
    if start < end { start..end } else { 0..0 }
}

/// Most functions that a guest may have beside the host bridge: one for each other device number.
pub const FUNCTIONS_MAX: usize = 31;

/// First of the eight ports through which configuration space is reached without ECAM.
pub(crate) const CONFIG_PORT: u16 = 0xcf8;
/// Number of these ports.
pub(crate) const CONFIG_PORTS: u8 = 8;

const _: () = assert!(APERTURE.start >= LOW_RAM_MAX);
const _: () = assert!(APERTURE.end <= ECAM.start && ECAM.end <= 0xfec0_0000);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_above_ram_are_those_that_the_processor_has() {
        const GIB: u64 = 1 << 30;
        assert_eq!(above(512 << 20, 36), 4 * GIB..64 * GIB);
        assert_eq!(above(9 * GIB + 1, 36), 10 * GIB..64 * GIB);
        assert_eq!(above(64 * GIB, 36), 0..0);
        assert_eq!(above(8 * GIB, 40), LINKS_START - ABOVE_BYTES_MAX..LINKS_START);
        assert_eq!(above(8 * GIB, 52).end, LINKS_START);
        for bits in [0, 32, 64, u32::MAX] {
            let found = above(4 * GIB, bits);
            assert!(found.is_empty() || found.end <= LINKS_START, "{bits}");
        }
    }
}
