//! A function's configuration space: a register file of 256 bytes with a mask of those bits that
//! software may write (PCI Local Bus Specification 3.0, chapter 6).
//!
//! A BAR's size shows by itself: software writes ones, and only the bits of its address stay.

/// Bytes of a configuration space without the extended part.
pub(crate) const CONFIG_BYTES: usize = 256;
/// Where the capabilities start, behind the header.
pub(crate) const CAPABILITIES_START: usize = 0x40;

/// Offsets of registers in the header (type 0).
pub(crate) mod register {
    pub(crate) const VENDOR: usize = 0x00;
    pub(crate) const DEVICE: usize = 0x02;
    pub(crate) const COMMAND: usize = 0x04;
    pub(crate) const STATUS: usize = 0x06;
    pub(crate) const REVISION: usize = 0x08;
    pub(crate) const CLASS: usize = 0x09;
    pub(crate) const CACHE_LINE: usize = 0x0c;
    pub(crate) const HEADER_TYPE: usize = 0x0e;
    pub(crate) const BAR: usize = 0x10;
    pub(crate) const SUBSYSTEM_VENDOR: usize = 0x2c;
    pub(crate) const SUBSYSTEM: usize = 0x2e;
    pub(crate) const CAPABILITIES: usize = 0x34;
    pub(crate) const INTERRUPT_LINE: usize = 0x3c;
}

/// Bits of the command register.
pub(crate) mod command {
    pub(crate) const MEMORY: u16 = 1 << 1;
    pub(crate) const BUS_MASTER: u16 = 1 << 2;
    pub(crate) const PARITY: u16 = 1 << 6;
    pub(crate) const SERR: u16 = 1 << 8;
    pub(crate) const INTX_DISABLE: u16 = 1 << 10;
}

/// IDs of capabilities.
pub(crate) mod capability {
    pub(crate) const POWER: u8 = 0x01;
    pub(crate) const VENDOR: u8 = 0x09;
    pub(crate) const EXPRESS: u8 = 0x10;
    pub(crate) const MSIX: u8 = 0x11;
}

/// Bit of the status register: the function has capabilities.
pub(crate) const HAS_CAPABILITIES: u16 = 1 << 4;

/// What a function is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Vendor ID, of the function and its subsystem.
    pub(crate) vendor: u16,
    /// Device ID, of the function and its subsystem.
    pub(crate) device: u16,
    /// Revision ID.
    pub(crate) revision: u8,
    /// Class code: base class, subclass and programming interface.
    pub(crate) class: [u8; 3],
}

/// A function's configuration space; see the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigSpace {
    bytes: [u8; CONFIG_BYTES],
    /// Bits that software may write.
    writable: [u8; CONFIG_BYTES],
    /// End of the last capability.
    end: usize,
    /// Where the offset of the next capability goes.
    link: usize,
}

impl ConfigSpace {
    /// Creates the space of a function without a BAR and without capabilities.
    pub(crate) fn new(identity: Identity) -> Self {
        let Identity { vendor, device, revision, class: [base, sub, interface] } = identity;
        let mut space = Self {
            bytes: [0; CONFIG_BYTES],
            writable: [0; CONFIG_BYTES],
            end: CAPABILITIES_START,
            link: register::CAPABILITIES,
        };
        space.set(register::VENDOR, &vendor.to_le_bytes());
        space.set(register::DEVICE, &device.to_le_bytes());
        space.set(register::REVISION, &[revision]);
        space.set(register::CLASS, &[interface, sub, base]);
        space.set(register::SUBSYSTEM_VENDOR, &vendor.to_le_bytes());
        space.set(register::SUBSYSTEM, &device.to_le_bytes());
        let commands = command::MEMORY | command::BUS_MASTER | command::INTX_DISABLE;
        space.allow(register::COMMAND, &commands.to_le_bytes());
        space.allow(register::CACHE_LINE, &[0xff]);
        space.allow(register::INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Creates a space with these bytes, and these bits that software may write.
    pub(crate) fn of(bytes: [u8; CONFIG_BYTES], writable: [u8; CONFIG_BYTES]) -> Self {
        Self { bytes, writable, end: CONFIG_BYTES, link: CONFIG_BYTES }
    }

    /// Adds BAR 0: `bytes` of memory, a power of two, at `address`, which the function decodes from
    /// the start.
    #[must_use]
    pub(crate) fn with_bar(mut self, address: u32, bytes: u32) -> Self {
        debug_assert!(bytes.is_power_of_two() && address.is_multiple_of(bytes) && bytes >= 16);
        self.set(register::BAR, &address.to_le_bytes());
        self.allow(register::BAR, &(!(bytes - 1)).to_le_bytes());
        self.set(register::COMMAND, &command::MEMORY.to_le_bytes());
        self
    }

    /// Takes the address from BAR 0, which the function decodes no more, as after a power-on.
    pub(crate) fn take_bar(&mut self) {
        self.set(register::BAR, &[0; 4]);
        self.set(register::COMMAND, &[0; 2]);
    }

    /// Adds a capability: its ID, and what follows the offset of the next one, with the bits of it
    /// that software may write. Returns the offset of the capability.
    pub(crate) fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.end.next_multiple_of(4);
        self.set(self.link, &[at as u8]);
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.allow(at + 2, writable);
        self.set(register::STATUS, &HAS_CAPABILITIES.to_le_bytes());
        (self.end, self.link) = (at + 2 + body.len(), at + 1);
        at
    }

    /// Replaces bytes, whether or not software may write them.
    pub(crate) fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, bits: &[u8]) {
        self.writable[at..at + bits.len()].copy_from_slice(bits);
    }

    /// Handles a read by software. Beyond the end everything is 0, which means that there are no
    /// extended capabilities.
    pub(crate) fn read(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        let rest = self.bytes.get(offset..).unwrap_or_default();
        data.iter_mut().zip(rest).for_each(|(byte, own)| *byte = *own);
    }

    /// Handles a write by software; bits that it may not write keep their value.
    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) {
        let writable = self.writable.get(offset..).unwrap_or_default();
        let own = self.bytes.get_mut(offset..).unwrap_or_default();
        for ((own, mask), byte) in own.iter_mut().zip(writable).zip(data) {
            *own = *own & !mask | byte & mask;
        }
    }

    /// Returns the 16 bits at `offset`.
    pub(crate) fn word(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    /// Returns the 32 bits at `offset`.
    pub(crate) fn double_word(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Returns the address in BAR 0; `None` while the function does not decode memory.
    pub(crate) fn bar(&self) -> Option<u32> {
        let decodes = self.word(register::COMMAND) & command::MEMORY != 0;
        decodes.then(|| self.double_word(register::BAR))
    }

    /// Returns all bytes.
    pub(crate) fn save(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// Replaces all bytes, unless no software could have set them this way.
    ///
    /// # Errors
    /// If there are more or fewer, or read-only bits differ; the text says which.
    pub(crate) fn load(&mut self, bytes: &[u8]) -> Result<(), String> {
        let bytes: [u8; CONFIG_BYTES] = bytes
            .try_into()
            .map_err(|_| format!("{} bytes of configuration space", bytes.len()))?;
        let differs = |at: &usize| (bytes[*at] ^ self.bytes[*at]) & !self.writable[*at] != 0;
        if let Some(at) = (0..CONFIG_BYTES).find(differs) {
            return Err(format!("byte {at:#x} of its configuration space is another one here"));
        }
        self.bytes = bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IDENTITY: Identity =
        Identity { vendor: 0x1af4, device: 0x1042, revision: 1, class: [1, 0x80, 2] };

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(IDENTITY).with_bar(0xc000_8000, 0x8000);
        assert_eq!(space.add_capability(0x11, &[7, 0, 1, 0, 0, 0], &[0, 0xc0]), 0x40);
        assert_eq!(space.add_capability(9, &[5, 1, 2], &[]), 0x48);
        space
    }

    fn read(space: &ConfigSpace, offset: usize) -> u32 {
        space.double_word(offset)
    }

    #[test]
    fn a_function_introduces_itself() {
        let space = space();
        assert_eq!(read(&space, 0), 0x1042_1af4);
        assert_eq!(read(&space, 8), 0x0180_0201);
        assert_eq!(read(&space, 0x2c), 0x1042_1af4);
        assert_eq!(space.word(0x3c) >> 8, 0, "no interrupt pin");
    }

    #[test]
    fn capabilities_are_a_list() {
        let space = space();
        assert_eq!(space.word(6) & 0x10, 0x10);
        assert_eq!(space.bytes[0x34], 0x40);
        assert_eq!(space.bytes[0x40..0x48], [0x11, 0x48, 7, 0, 1, 0, 0, 0]);
        assert_eq!(space.bytes[0x48..0x4d], [9, 0, 5, 1, 2]);
        let none = ConfigSpace::new(IDENTITY);
        assert_eq!((none.word(6), none.bytes[0x34]), (0, 0));
    }

    #[test]
    fn a_bar_shows_its_size_moves_and_is_switched_off() {
        let mut space = space();
        assert_eq!(space.bar(), Some(0xc000_8000));
        space.write(4, &[0, 0]);
        space.write(0x10, &[0xff; 4]);
        assert_eq!(read(&space, 0x10), 0xffff_8000);
        assert_eq!(space.bar(), None);
        space.write(0x14, &[0xff; 4]);
        assert_eq!(read(&space, 0x14), 0, "there is one BAR");
        space.write(0x30, &[0xff; 4]);
        assert_eq!(read(&space, 0x30), 0, "and no ROM");
        space.write(0x10, &0xd123_4567u32.to_le_bytes());
        space.write(4, &[6, 4]);
        assert_eq!((space.bar(), space.word(4)), (Some(0xd123_0000), 0x406));
    }

    #[test]
    fn a_state_with_other_read_only_bits_is_refused() {
        let mut other = space();
        other.write(4, &[0xff; 2]);
        other.write(0x10, &[0xff; 4]);
        other.write(0x42, &[0xff; 2]);
        let mut space = space();
        space.load(&other.save()).unwrap();
        assert_eq!(space, other);
        for at in [0, 6, 0x10, 0x34, 0x42, 0x48] {
            let mut bytes = other.save();
            bytes[at] ^= 1;
            assert!(space.load(&bytes).is_err(), "{at:#x}");
        }
        assert!(space.load(&other.save()[..255]).is_err());
        assert!(space.load(&[0; 257]).is_err());
    }

    proptest! {
        #[test]
        fn no_access_changes_a_read_only_bit(
            accesses in prop::collection::vec((0..0x1010usize, prop::collection::vec(any::<u8>(), 0..17)), 0..200),
        ) {
            let mut space = space();
            let fresh = space.clone();
            for (offset, data) in accesses {
                space.write(offset, &data);
                let mut answer = data.clone();
                space.read(offset, &mut answer);
                if offset >= 256 {
                    prop_assert!(answer.iter().all(|byte| *byte == 0));
                }
                for at in 0..256 {
                    prop_assert_eq!((space.bytes[at] ^ fresh.bytes[at]) & !fresh.writable[at], 0);
                }
                prop_assert!(space.bar().is_none_or(|bar| bar.is_multiple_of(0x8000)));
                let mut next = fresh.clone();
                prop_assert!(next.load(&space.save()).is_ok());
                prop_assert_eq!(&next, &space);
            }
        }
    }
}
