//! What a guest sees of a device's configuration space.
//!
//! Pure code. Identity, BARs, command, power state and MSI-X are kept here; of the capabilities
//! only those are shown that drivers need, and of these PCI Express, where the kernel checks each
//! write, and the vendor's own are passed on to the device. Beyond the first 256 bytes nothing is
//! shown.

use crate::pci::{
    CAPABILITIES_START, CONFIG_BYTES, ConfigSpace, HAS_CAPABILITIES, Msix, capability, command,
    register,
};

/// BARs of a function.
pub(super) const BARS: usize = 6;
/// Most vectors that a guest sees of a device.
pub(super) const VECTORS_MAX: usize = 112;

/// Bits of the command register that reach the device.
const PASSED: u16 = command::MEMORY | command::BUS_MASTER | command::PARITY | command::SERR;
/// Bytes of the capabilities of power management, of MSI-X, and of PCI Express at most.
const POWER_BYTES: usize = 8;
const MSIX_BYTES: usize = 12;
const EXPRESS_BYTES: usize = 0x3c;
/// Most capabilities that fit.
const CAPABILITIES_MAX: usize = (CONFIG_BYTES - CAPABILITIES_START) / 4;

/// A BAR with memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bar {
    /// Number of the BAR, and of its region.
    pub(super) index: usize,
    /// Its size, a power of two.
    pub(super) bytes: u64,
    /// Whether it has 64 bits, with those of the next BAR.
    is_wide: bool,
}

/// A place in a BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Number of the BAR.
    pub(super) bar: usize,
    /// Offset in it.
    pub(super) offset: u64,
}

/// Where the device has its MSI-X.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MsixPlaces {
    /// Offset of the message control register.
    control: usize,
    /// Vectors of the device.
    pub(super) vectors: usize,
    /// The table.
    pub(super) table: Place,
    /// The pending bits.
    pub(super) pending: Place,
}

/// The guest's view of a configuration space; see the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    space: ConfigSpace,
    /// The space after power-on.
    pristine: ConfigSpace,
    /// Bytes that are the device's own.
    passed: [bool; CONFIG_BYTES],
    bars: Vec<Bar>,
    msix: MsixPlaces,
}

impl View {
    /// Returns the view of a device with this configuration space, whose BARs have so many bytes.
    ///
    /// # Errors
    /// If a guest cannot have such a device; the text says why.
    pub(super) fn new(host: &[u8; CONFIG_BYTES], bytes: [u64; BARS]) -> Result<Self, String> {
        if host[register::HEADER_TYPE] & 0x7f != 0 {
            return Err("it is a bridge".to_owned());
        }
        let mut draft = Draft {
            host,
            shown: [0; CONFIG_BYTES],
            writable: [0; CONFIG_BYTES],
            passed: [false; CONFIG_BYTES],
        };
        draft.add_header();
        let bars = draft.add_bars(bytes);
        let msix = draft.add_capabilities()?;
        for place in [msix.table, msix.pending] {
            if !bars.iter().any(|bar| bar.index == place.bar && place.offset < bar.bytes) {
                return Err("its table of interrupts (MSI-X) is in none of its BARs".to_owned());
            }
        }
        let space = ConfigSpace::of(draft.shown, draft.writable);
        Ok(Self { pristine: space.clone(), space, passed: draft.passed, bars, msix })
    }

    /// Returns the BARs with memory.
    pub(super) fn bars(&self) -> &[Bar] {
        &self.bars
    }

    /// Returns where the MSI-X is.
    pub(super) fn msix(&self) -> &MsixPlaces {
        &self.msix
    }

    /// Handles a read; `own` reads from the device.
    pub(super) fn read(&self, offset: usize, data: &mut [u8], own: impl Fn(usize, &mut [u8])) {
        self.space.read(offset, data);
        let passed = self.passed.get(offset..).unwrap_or_default();
        if passed.iter().take(data.len()).any(|passed| *passed) {
            let mut device = vec![0; data.len()];
            own(offset, &mut device);
            let bytes = data.iter_mut().zip(device).zip(passed);
            bytes.filter(|(_, passed)| **passed).for_each(|((byte, own), _)| *byte = own);
        }
    }

    /// Handles a write; `own` writes to the device.
    pub(super) fn write(&mut self, offset: usize, data: &[u8], own: impl Fn(usize, &[u8])) {
        self.space.write(offset, data);
        let is_passed = |at: usize| self.passed.get(offset + at).is_some_and(|passed| *passed);
        let mut at = 0;
        while at < data.len() {
            let run = (at..data.len()).take_while(|at| is_passed(*at)).count();
            if run > 0 {
                own(offset + at, &data[at..at + run]);
            }
            at += run.max(1);
        }
    }

    /// Returns what the device's own command register is to be. It has no interrupt pin here.
    pub(super) fn command(&self) -> u16 {
        self.space.word(register::COMMAND) & PASSED | command::INTX_DISABLE
    }

    /// Bit of the device's command register: its interrupt pin is off.
    pub(super) const PIN_OFF: u16 = command::INTX_DISABLE;
    /// Offset of the command register in the device's configuration space.
    pub(super) const COMMAND: u64 = register::COMMAND as u64;

    /// Returns the message control register of MSI-X.
    pub(super) fn msix_control(&self) -> u16 {
        self.space.word(self.msix.control)
    }

    /// Returns the address of a BAR; `None` while the function decodes no memory.
    pub(super) fn address(&self, bar: &Bar) -> Option<u64> {
        let decodes = self.space.word(register::COMMAND) & command::MEMORY != 0;
        let word = |index: usize| u64::from(self.space.double_word(register::BAR + 4 * index));
        let high = if bar.is_wide { word(bar.index + 1) } else { 0 };
        decodes.then_some(high << 32 | word(bar.index) & !0xf)
    }

    /// Puts the view in the state after power-on, with these addresses for those BARs that get
    /// one: the function then decodes them.
    pub(super) fn power_on(&mut self, addresses: &[(Bar, u64)]) {
        self.space = self.pristine.clone();
        for (bar, address) in addresses {
            let at = register::BAR + 4 * bar.index;
            let low = address.to_le_bytes();
            self.space.write(at, &low[..4]);
            if bar.is_wide {
                self.space.write(at + 4, &low[4..]);
            }
        }
        if !addresses.is_empty() && addresses.len() == self.bars.len() {
            self.space.write(register::COMMAND, &command::MEMORY.to_le_bytes());
        }
    }
}

/// A view that is being put together.
struct Draft<'a> {
    host: &'a [u8; CONFIG_BYTES],
    shown: [u8; CONFIG_BYTES],
    writable: [u8; CONFIG_BYTES],
    passed: [bool; CONFIG_BYTES],
}

impl Draft<'_> {
    fn show(&mut self, at: usize, bytes: usize) {
        self.shown[at..at + bytes].copy_from_slice(&self.host[at..at + bytes]);
    }

    fn allow(&mut self, at: usize, bits: &[u8]) {
        self.writable[at..at + bits.len()].copy_from_slice(bits);
    }

    fn host_word(&self, at: usize) -> u32 {
        let byte = |at: usize| self.host.get(at).copied().unwrap_or(0);
        u32::from_le_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)])
    }

    /// Vendor and device, revision and class, subsystem. There is one function, without a pin.
    fn add_header(&mut self) {
        self.show(0, 4);
        self.show(0x08, 4);
        self.show(register::SUBSYSTEM_VENDOR, 4);
        let commands = PASSED | command::INTX_DISABLE;
        self.allow(register::COMMAND, &commands.to_le_bytes());
        self.allow(register::CACHE_LINE, &[0xff]);
        self.allow(register::INTERRUPT_LINE, &[0xff]);
    }

    /// Shows the BARs with memory; one with ports, or without bytes, reads as 0.
    fn add_bars(&mut self, bytes: [u64; BARS]) -> Vec<Bar> {
        const PORTS: u32 = 1;
        const WIDE: u32 = 0b100;
        let (mut bars, mut index) = (Vec::new(), 0);
        while index < BARS {
            let at = register::BAR + 4 * index;
            let flags = self.host_word(at) & 0xf;
            let is_wide = flags & PORTS == 0 && flags & WIDE != 0 && index + 1 < BARS;
            let (bytes, limit) = (bytes[index], if is_wide { 1 << 63 } else { 1_u64 << 31 });
            let is_possible = bytes.is_power_of_two() && (16..=limit).contains(&bytes);
            if flags & PORTS == 0 && is_possible {
                self.shown[at] = if is_wide { flags } else { flags & !WIDE } as u8;
                let mask = !(bytes - 1);
                self.allow(at, &mask.to_le_bytes()[..if is_wide { 8 } else { 4 }]);
                bars.push(Bar { index, bytes, is_wide });
            }
            index += if is_wide { 2 } else { 1 };
        }
        bars
    }

    /// Shows those capabilities that a guest gets, at their places, and returns where MSI-X is.
    fn add_capabilities(&mut self) -> Result<MsixPlaces, String> {
        let all = self.capabilities();
        let (mut link, mut msix) = (register::CAPABILITIES, None);
        for &at in &all {
            let next = all.iter().copied().filter(|other| *other > at).min();
            let room = next.unwrap_or(CONFIG_BYTES) - at;
            let id = self.host[at];
            match id {
                capability::POWER if room >= POWER_BYTES => self.add_power(at),
                capability::MSIX if room >= MSIX_BYTES && msix.is_none() => {
                    msix = Some(self.add_msix(at));
                }
                capability::EXPRESS => self.pass(at, room.min(EXPRESS_BYTES)),
                capability::VENDOR if room > 2 => {
                    let bytes = usize::from(self.host[at + 2]);
                    self.pass(at, room.min(bytes));
                }
                _ => continue,
            }
            self.shown[link] = at as u8;
            self.shown[at] = id;
            link = at + 1;
        }
        self.shown[register::STATUS..register::STATUS + 2]
            .copy_from_slice(&HAS_CAPABILITIES.to_le_bytes());
        msix.ok_or_else(|| {
            "it has no interrupts by MSI-X, the only ones that lighter passes on".to_owned()
        })
    }

    /// Returns the offsets of the device's capabilities, in their order.
    fn capabilities(&self) -> Vec<usize> {
        let mut found = Vec::new();
        let mut next = usize::from(self.host[register::CAPABILITIES] & !3);
        while next >= CAPABILITIES_START && found.len() < CAPABILITIES_MAX && !found.contains(&next)
        {
            found.push(next);
            next = usize::from(self.host[next + 1] & !3);
        }
        found
    }

    /// Passes on what follows the head of a capability.
    fn pass(&mut self, at: usize, bytes: usize) {
        if bytes > 2 {
            self.passed[at + 2..at + bytes].fill(true);
        }
    }

    /// Power management, of which only the guest's choice of a state is kept: the device stays on.
    fn add_power(&mut self, at: usize) {
        const STATE: u8 = 0b11;
        const NO_RESET: u8 = 1 << 3;
        const VERSION: u8 = 0b111;
        self.shown[at + 2] = self.host[at + 2] & VERSION;
        self.shown[at + 4] = NO_RESET;
        self.allow(at + 4, &[STATE]);
    }

    fn add_msix(&mut self, at: usize) -> MsixPlaces {
        let place = |at: usize| {
            let word = self.host_word(at);
            Place { bar: (word & 7) as usize, offset: u64::from(word & !7) }
        };
        let (table, pending) = (place(at + 4), place(at + 8));
        let vectors = (self.host_word(at + 2) & 0x7ff) as usize + 1;
        self.show(at + 4, 8);
        let shown = (vectors.min(VECTORS_MAX) - 1) as u16;
        self.shown[at + 2..at + 4].copy_from_slice(&shown.to_le_bytes());
        self.allow(at + 2, &Msix::control_bits().to_le_bytes());
        MsixPlaces { control: at + 2, vectors, table, pending }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;

    use super::*;

    /// A network card: 128 KiB of memory, ports, a wide BAR with its MSI-X; power management, MSI,
    /// MSI-X, PCI Express and a capability of its vendor.
    fn card() -> [u8; CONFIG_BYTES] {
        let mut host = [0; CONFIG_BYTES];
        let mut put = |at: usize, bytes: &[u8]| host[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, &[0x86, 0x80, 0xd3, 0x10, 7, 5, 0x10, 0, 3, 0, 0, 2, 0x10, 0x40, 0x80]);
        put(0x10, &[0, 0, 0xa0, 0xfe, 1, 0xe0, 0, 0, 0x0c, 0, 0xb0, 0xfe, 1]);
        put(0x2c, &[0x86, 0x80, 1, 0, 0, 0, 0, 0xfe, 0xc8, 0, 0, 0, 0, 0, 0, 0, 11, 1]);
        put(0xc8, &[capability::POWER, 0xd0, 0x22, 0xc8, 0x03, 0x81]);
        put(0xd0, &[0x05, 0xe0, 0x80]);
        put(0xe0, &[capability::EXPRESS, 0xa0, 2, 0, 1, 2, 3, 4]);
        put(0xa0, &[capability::MSIX, 0x40, 4, 0x80, 2, 0, 0, 0, 2, 0x20, 0, 0]);
        put(0x40, &[capability::VENDOR, 0, 6, 1, 2, 3, 4, 5]);
        host
    }

    const BYTES: [u64; BARS] = [128 << 10, 32, 16 << 10, 0, 0, 0];

    fn view() -> View {
        View::new(&card(), BYTES).unwrap()
    }

    fn word(view: &View, offset: usize) -> u32 {
        let mut data = [0xee; 4];
        view.read(offset, &mut data, |_, data| data.fill(0xdd));
        u32::from_le_bytes(data)
    }

    fn write(view: &mut View, offset: usize, value: u32) -> Vec<(usize, Vec<u8>)> {
        let own = RefCell::new(Vec::new());
        view.write(offset, &value.to_le_bytes(), |at, data| {
            own.borrow_mut().push((at, data.to_vec()));
        });
        own.into_inner()
    }

    #[test]
    fn a_card_is_seen_as_itself_without_ports_and_pin() {
        let view = view();
        assert_eq!(word(&view, 0), 0x10d3_8086);
        assert_eq!(word(&view, 4), 0x0010_0000, "off, with capabilities");
        assert_eq!(word(&view, 8), 0x0200_0003);
        assert_eq!(word(&view, 0x0c), 0, "one function");
        assert_eq!(word(&view, 0x2c), 0x0001_8086);
        assert_eq!(word(&view, 0x30), 0, "no ROM");
        assert_eq!(word(&view, 0x3c), 0, "no pin");
        assert_eq!(word(&view, 0x100), 0, "nothing beyond");
        assert_eq!([0x10, 0x14, 0x18, 0x1c].map(|at| word(&view, at)), [0, 0, 0xc, 0]);
    }

    #[test]
    fn only_some_capabilities_are_shown_each_at_its_place() {
        let view = view();
        let mut chain = Vec::new();
        let mut at = word(&view, 0x34) as usize & 0xff;
        while at != 0 {
            chain.push((at, word(&view, at) as u8));
            at = (word(&view, at) >> 8) as usize & 0xff;
        }
        assert_eq!(chain, [(0xc8, 1), (0xe0, 0x10), (0xa0, 0x11), (0x40, 9)]);
        assert_eq!(word(&view, 0xd0), 0, "no MSI");
        assert_eq!(word(&view, 0xe0), 0xdddd_a010, "the device's own but for the head");
        assert_eq!(word(&view, 0x44), 0xdddd, "as long as it says");
        let msix = view.msix();
        assert_eq!((msix.vectors, word(&view, 0xa0) >> 16), (5, 4), "not enabled");
        assert_eq!(msix.table, Place { bar: 2, offset: 0 });
        assert_eq!(msix.pending, Place { bar: 2, offset: 0x2000 });
    }

    #[test]
    fn sizes_show_and_addresses_count_while_memory_is_decoded() {
        let mut view = view();
        let [first, wide] = *view.bars() else { panic!("{:?}", view.bars()) };
        assert_eq!((first.index, wide.index, wide.bytes), (0, 2, 16 << 10));
        for at in [0x10, 0x14, 0x18, 0x1c] {
            assert!(write(&mut view, at, u32::MAX).is_empty());
        }
        let sizes = [0x10, 0x14, 0x18, 0x1c].map(|at| word(&view, at));
        assert_eq!(sizes, [0xfffe_0000, 0, 0xffff_c00c, u32::MAX]);
        write(&mut view, 0x18, 0x1234_4000);
        write(&mut view, 0x1c, 0x20);
        assert_eq!(view.address(&wide), None);
        write(&mut view, 4, 0xffff_ffff);
        assert_eq!(view.address(&wide), Some(0x20_1234_4000));
        assert_eq!(view.command(), 0x0546, "no ports; never a pin");
        view.power_on(&[(first, 0xd000_0000), (wide, 0x30_0000_0000)]);
        assert_eq!(view.address(&first), Some(0xd000_0000));
        assert_eq!(view.address(&wide), Some(0x30_0000_0000));
        view.power_on(&[]);
        assert_eq!((view.address(&first), view.command()), (None, 0x400));
    }

    #[test]
    fn writes_reach_the_device_only_where_it_keeps_the_bytes() {
        let mut view = view();
        assert_eq!(write(&mut view, 0xe0, 0x0403_0201), [(0xe2, vec![3, 4])]);
        assert_eq!(write(&mut view, 0x44, 0x0403_0201), [(0x44, vec![1, 2])]);
        assert!(write(&mut view, 0xa0, u32::MAX).is_empty());
        assert_eq!(view.msix_control(), 0xc004);
        assert!(write(&mut view, 0xcc, u32::MAX).is_empty());
        assert_eq!(word(&view, 0xcc), 0xb, "a power state that is only remembered");
        assert_eq!(write(&mut view, 0xfe, u32::MAX), [(0xfe, vec![0xff; 2])]);
        assert!(write(&mut view, 0xffe, u32::MAX).is_empty());
    }

    #[test]
    fn what_no_guest_can_have_is_refused() {
        let refused = |change: &dyn Fn(&mut [u8; CONFIG_BYTES])| {
            let mut host = card();
            change(&mut host);
            View::new(&host, BYTES).unwrap_err()
        };
        assert!(refused(&|host| host[0x0e] = 1).contains("bridge"));
        assert!(refused(&|host| host[0x34] = 0).contains("MSI-X"));
        assert!(refused(&|host| host[0xa4] = 1).contains("none of its BARs"));
        assert!(refused(&|host| host[0xa9] = 0x50).contains("none of its BARs"));
    }

    proptest! {
        #[test]
        fn no_space_and_no_access_leads_astray(
            mut host in prop::collection::vec(any::<u8>(), CONFIG_BYTES),
            sizes in prop::array::uniform6(0..40u32),
            accesses in prop::collection::vec((0..5000usize, 1..9usize, any::<u64>()), 0..60),
        ) {
            host[0x0e] = 0;
            host[0x34] = 0xa0;
            host[0xa0] = capability::MSIX;
            let host: [u8; CONFIG_BYTES] = host.try_into().unwrap();
            let Ok(mut view) = View::new(&host, sizes.map(|bits| 1 << bits)) else { return Ok(()) };
            for (offset, bytes, value) in accesses {
                let passed = view.passed;
                view.write(offset, &value.to_le_bytes()[..bytes], |at, data| {
                    assert!(passed[at..at + data.len()].iter().all(|passed| *passed));
                });
                let mut data = vec![0; bytes];
                view.read(offset, &mut data, |_, _| {});
                for bar in view.bars().to_vec() {
                    prop_assert!(view.address(&bar).is_none_or(|it| it.is_multiple_of(bar.bytes)));
                }
                prop_assert_eq!(view.command() & 0x401, 0x400);
            }
            let id = u32::from_le_bytes([host[0], host[1], host[2], host[3]]);
            prop_assert_eq!(view.space.double_word(0), id);
        }
    }
}
