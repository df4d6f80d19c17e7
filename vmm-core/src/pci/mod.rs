//! PCI as a guest's software sees it: configuration space, the ways to reach it, and MSI-X.
//!
//! Pure code that knows neither virtio nor KVM. `ConfigSpace` is a function's configuration
//! space, `HostBridge` the function 00:00.0 with the two ways to the others, `Msix` a function's
//! table of messages, and `HotPlug` the registers by which devices come and go. Whatever a guest
//! writes, at any offset and in any width, is clipped and masked. `docs/adr/0031-pci.md` has the
//! reasons.

mod bridge;
mod config;
mod hot_plug;
mod msix;

use std::ops::Range;

pub(crate) use bridge::{ConfigAddress, HostBridge, Target};
pub(crate) use config::{ConfigSpace, Identity};
pub use hot_plug::HotPlugState;
pub(crate) use hot_plug::{HOT_PLUG_PORT, HOT_PLUG_PORTS, HotPlug};
pub(crate) use msix::{Message, Msix};
pub use msix::{MsixEntry, MsixState};

use crate::memory::LOW_RAM_MAX;

/// Addresses for the registers of functions (BARs).
pub(crate) const APERTURE: Range<u64> = 0xc000_0000..0xe800_0000;
/// Addresses of the configuration space of bus 0 (ECAM: PCI Express Base Specification, 7.2.2).
pub(crate) const ECAM: Range<u64> = 0xe800_0000..0xe810_0000;
/// Most functions that a guest may have beside the host bridge: one for each other device number.
pub const FUNCTIONS_MAX: usize = 31;

/// First of the eight ports through which configuration space is reached without ECAM.
pub(crate) const CONFIG_PORT: u16 = 0xcf8;
/// Number of these ports.
pub(crate) const CONFIG_PORTS: u8 = 8;

const _: () = assert!(APERTURE.start >= LOW_RAM_MAX);
const _: () = assert!(APERTURE.end <= ECAM.start && ECAM.end <= 0xfec0_0000);
