//! The CMOS of a PC, as far as firmware needs it: the real-time clock, in UTC, and how much memory
//! there is (an MC146818, and the registers that SeaBIOS and EDK2 read of QEMU's).
//!
//! It is the host's clock: what a guest writes is ignored, so only the selected register is state.
//! Kernels do not look for it, since the ACPI tables say that there is none; systems that firmware
//! has started ask the firmware for the time.

use std::sync::atomic::{AtomicU8, Ordering};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::memory::RamLayout;

/// Port that selects a register; its highest bit is not about the CMOS.
pub(crate) const CMOS_INDEX_PORT: u16 = 0x70;
/// Port through which the selected register is read.
pub(crate) const CMOS_DATA_PORT: u16 = 0x71;

const REGISTERS: u8 = 0x80;
/// Units of the registers that tell sizes of memory.
const UNIT_BYTES: u64 = 64 << 10;

/// The CMOS of a guest.
#[derive(Debug)]
pub(crate) struct Cmos {
    index: AtomicU8,
    /// Memory from 16 MiB to the hole below 4 GiB, in units.
    below_hole: u16,
    /// Memory above 4 GiB, in units.
    above_hole: u32,
}

impl Cmos {
    /// The CMOS of a guest with this memory.
    pub(crate) fn new(layout: &RamLayout) -> Self {
        let mut sizes = layout.regions().iter().map(|region| region.bytes);
        let low = sizes.next().unwrap_or(0).saturating_sub(16 << 20) / UNIT_BYTES;
        let high = sizes.sum::<u64>() / UNIT_BYTES;
        Self {
            index: AtomicU8::new(0),
            below_hole: u16::try_from(low).unwrap_or(u16::MAX),
            above_hole: u32::try_from(high).unwrap_or(u32::MAX),
        }
    }

    /// The selected register.
    pub(crate) fn index(&self) -> u8 {
        self.index.load(Ordering::Acquire)
    }

    /// Selects a register.
    pub(crate) fn select(&self, index: u8) {
        self.index.store(index % REGISTERS, Ordering::Release);
    }

    /// Returns the content of the selected register.
    pub(crate) fn read(&self) -> u8 {
        self.register(self.index(), Timestamp::now())
    }

    fn register(&self, index: u8, now: Timestamp) -> u8 {
        /// No update is in progress; the usual divider and rate.
        const STATUS_A: u8 = 0x26;
        /// 24 hours, and BCD.
        const STATUS_B: u8 = 0x02;
        /// The battery is good.
        const STATUS_D: u8 = 0x80;
        let time = TimeZone::UTC.to_datetime(now);
        let [low, high] = self.below_hole.to_le_bytes();
        let above = self.above_hole.to_le_bytes();
        match index {
            0x00 => bcd(time.second()),
            0x02 => bcd(time.minute()),
            0x04 => bcd(time.hour()),
            0x06 => bcd(time.weekday().to_sunday_one_offset()),
            0x07 => bcd(time.day()),
            0x08 => bcd(time.month()),
            0x09 => bcd((time.year() % 100) as i8),
            0x32 => bcd((time.year() / 100) as i8),
            0x0a => STATUS_A,
            0x0b => STATUS_B,
            0x0d => STATUS_D,
            0x34 => low,
            0x35 => high,
            0x5b => above[0],
            0x5c => above[1],
            0x5d => above[2],
            _ => 0,
        }
    }
}

/// Encodes a number from 0 to 99 with a digit in each half.
fn bcd(number: i8) -> u8 {
    let number = number.unsigned_abs();
    ((number / 10) << 4) | (number % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: u64) -> Cmos {
        Cmos::new(&RamLayout::new(bytes).unwrap())
    }

    #[test]
    fn the_clock_is_utc() {
        let (cmos, now) = (of(64 << 20), "2026-11-07T09:08:59Z".parse().unwrap());
        let read = |index| cmos.register(index, now);
        assert_eq!([0x00, 0x02, 0x04, 0x06].map(read), [0x59, 0x08, 0x09, 0x07], "a Saturday");
        assert_eq!([0x07, 0x08, 0x09, 0x32].map(read), [0x07, 0x11, 0x26, 0x20]);
        assert_eq!([0x0a, 0x0b, 0x0c, 0x0d].map(read), [0x26, 0x02, 0x00, 0x80]);
    }

    #[test]
    fn memory_is_told_in_two_parts() {
        let now = Timestamp::UNIX_EPOCH;
        let read = |bytes| {
            let cmos = of(bytes);
            let [low, high, a, b, c] =
                [0x34, 0x35, 0x5b, 0x5c, 0x5d].map(|index| u32::from(cmos.register(index, now)));
            (low | high << 8, a | b << 8 | c << 16)
        };
        assert_eq!(read(64 << 20), (48 << 4, 0));
        assert_eq!(read(4 << 20), (0, 0));
        assert_eq!(read(5 << 30), (((3 << 10) - 16) << 4, 2 << 14));
    }

    #[test]
    fn every_register_can_be_selected() {
        let cmos = of(64 << 20);
        for index in 0..=u8::MAX {
            cmos.select(index);
            assert_eq!(cmos.index(), index & 0x7f);
            cmos.read();
        }
    }
}
