//! A device of the host with any configuration space, as its guest sees it and writes to it.

use arbitrary::Arbitrary;
use vmm_core::vfio::fuzzing::SeenDevice;

/// Bytes of a configuration space.
const CONFIG_BYTES: usize = 256;
/// Offsets of registers (PCI Local Bus Specification 3.0, 6.1).
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const HEADER_TYPE: usize = 0x0e;
const BARS: usize = 0x10;
const CAPABILITIES: usize = 0x34;
/// First offset of a capability.
const CAPABILITIES_START: u8 = 0x40;
/// ID of the capability of MSI-X, without which a guest cannot have a device.
const MSIX: u8 = 0x11;
/// IDs of those that a guest sees.
const SHOWN: [u8; 4] = [0x01, 0x09, 0x10, MSIX];
/// In the command register: interrupt pin off.
const PIN_OFF: u16 = 1 << 10;

/// A device, and what its guest does.
#[derive(Debug, Arbitrary)]
pub struct HostDevice {
    /// Its header, as far as nothing below is in its place.
    header: [u8; 64],
    /// Sizes of the BARs.
    bars: [u8; 6],
    /// Capabilities: their offsets, IDs, and first bytes.
    capabilities: Vec<(u8, u8, [u8; 10])>,
    /// Whether it has MSI-X at all.
    has_msix: bool,
    #[arbitrary(with = crate::all)]
    steps: Vec<Step>,
}

#[derive(Debug, Arbitrary)]
enum Step {
    Write {
        offset: u16,
        bytes: Vec<u8>,
    },
    Read {
        offset: u16,
        len: u8,
    },
    /// Sets an address, or asks for the size.
    Bar {
        index: u8,
        address: u32,
    },
    /// The guest is reset.
    PowerOn,
}

/// How far an input got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SeenReach {
    /// 1 if a guest can have the device.
    pub possible: u64,
    /// How many bytes have come from the device or gone to it.
    pub passed_on: u64,
    /// How often the device decoded an address.
    pub decoded: u64,
}

impl HostDevice {
    fn space(&self) -> [u8; CONFIG_BYTES] {
        let mut space = [0; CONFIG_BYTES];
        space[..64].copy_from_slice(&self.header);
        let msix = self.has_msix.then_some((0x40, 3, [4, 0, 0, 0, 0, 0, 0, 0x20, 0, 0]));
        let all = msix.iter().chain(&self.capabilities);
        let mut link = CAPABILITIES;
        for (at, id, bytes) in all {
            let at = usize::from((*at).max(CAPABILITIES_START) & !3).min(CONFIG_BYTES - 12);
            space[link] = at as u8;
            space[at] = SHOWN.get(usize::from(*id % 8)).copied().unwrap_or(*id);
            space[at + 2..at + 12].copy_from_slice(bytes);
            link = at + 1;
        }
        space[STATUS] |= 0x10;
        space[HEADER_TYPE] &= 0x80;
        space
    }
}

/// Shows the device to a guest, which accesses its configuration space.
///
/// # Panics
/// If the view does what it must not.
pub fn see(device: &HostDevice) -> SeenReach {
    let bars = device.bars.map(|size| if size >= 0xc0 { 0 } else { 1 << (size % 40) });
    let space = device.space();
    let Ok(mut seen) = SeenDevice::new(&space, bars) else { return SeenReach::default() };
    let mut reach = SeenReach { possible: 1, ..SeenReach::default() };
    for step in &device.steps {
        match step {
            Step::Write { offset, bytes } => {
                seen.write((*offset % 0x110).into(), &bytes[..bytes.len().min(8)]);
            }
            Step::Read { offset, len } => {
                seen.read((*offset % 0x110).into(), &mut vec![0xaa; usize::from(len % 9)]);
            }
            Step::Bar { index, address } => {
                seen.write(BARS + usize::from(index % 6) * 4, &address.to_le_bytes());
                seen.write(COMMAND, &[2, 0]);
            }
            Step::PowerOn => seen.power_on(),
        }
        let mut identity = [0; 4];
        seen.read(0, &mut identity);
        assert!(identity == space[..4], "another device: {identity:x?}");
        assert!(seen.command() & (PIN_OFF | 1) == PIN_OFF, "the device has a pin or ports");
        for window in seen.windows() {
            let bytes = window.end - window.start;
            assert!(window.start.is_multiple_of(bytes), "{window:x?}");
            reach.decoded += 1;
        }
    }
    reach.passed_on = seen.passed_on();
    reach
}
