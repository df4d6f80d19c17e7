//! The configuration space: `struct virtio_balloon_config` (virtio 1.2, 5.5.4), always
//! little-endian.

use crate::virtio::signals::ConfigSpace;

/// Size of the space in bytes.
pub(super) const BYTES: usize = 16;
/// Offset of the number of pages that the driver must give up.
const TARGET: usize = 0;
/// Offset of the number of pages that the driver has given up.
const ACTUAL: usize = 4;
/// Offset of the command for free page hinting.
const HINTS: usize = 8;
/// Offset of the poison value that the driver writes.
const POISON: usize = 12;

/// The values of the configuration space.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Values {
    /// Pages that the driver must give up.
    pub(super) target_pages: u32,
    /// Pages that the driver claims to have given up.
    pub(super) actual_pages: u32,
    /// The command for free page hinting: see [`super::hints`].
    pub(super) hint_command: u32,
    /// Value with which the guest fills free pages, if the driver has accepted `PAGE_POISON`.
    pub(super) poison: u32,
}

impl Values {
    /// Decodes the bytes of the space.
    pub(super) fn from_bytes(bytes: &[u8; BYTES]) -> Self {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Self {
            target_pages: word(TARGET),
            actual_pages: word(ACTUAL),
            hint_command: word(HINTS),
            poison: word(POISON),
        }
    }

    /// Returns the bytes of the space.
    pub(super) fn to_bytes(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        let words = [
            (TARGET, self.target_pages),
            (ACTUAL, self.actual_pages),
            (HINTS, self.hint_command),
            (POISON, self.poison),
        ];
        for (at, word) in words {
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Writes the command for hints into the bytes of the space.
    pub(super) fn set_hint_command(bytes: &mut [u8], command: u32) {
        if let Some(place) = bytes.get_mut(HINTS..HINTS + 4) {
            place.copy_from_slice(&command.to_le_bytes());
        }
    }

    /// Returns the space; the driver may write the number of pages given up and the poison value.
    pub(super) fn space(self) -> ConfigSpace {
        ConfigSpace::with_writable(self.to_bytes().to_vec(), ACTUAL..ACTUAL + 4)
            .and_writable(POISON..POISON + 4)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::virtio::Signals;

    #[test]
    fn values_lie_where_the_specification_says() {
        let values = Values {
            target_pages: 0x0403_0201,
            actual_pages: 7,
            hint_command: 0x8000_0009,
            poison: 0xaaaa_aaaa,
        };
        let expected = [1, 2, 3, 4, 7, 0, 0, 0, 9, 0, 0, 0x80, 0xaa, 0xaa, 0xaa, 0xaa];
        assert_eq!(values.to_bytes(), expected);
    }

    #[test]
    fn the_driver_writes_actual_and_poison_and_nothing_else() {
        let signals = Signals::new(Values::default().space());
        let writable: Vec<usize> =
            (0..20).step_by(4).filter(|at| signals.write_config(*at, &[1; 4])).collect();
        assert_eq!(writable, [ACTUAL, POISON]);
        assert!(!signals.write_config(ACTUAL, &[1; 8]));
    }

    proptest! {
        #[test]
        fn values_survive_their_bytes(
            target_pages: u32, actual_pages: u32, hint_command: u32, poison: u32,
        ) {
            let values = Values { target_pages, actual_pages, hint_command, poison };
            prop_assert_eq!(Values::from_bytes(&values.to_bytes()), values);
        }
    }
}
