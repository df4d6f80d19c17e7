//! The slots of a guest's devices.
//!
//! A new guest's devices are in the slots of their places in the list. When one has left, those
//! behind it move up in the list, but stay in their slots.

use serde::{Deserialize, Serialize};

use super::ShapeError;
use crate::devices::MachineKind;

/// The slots of a guest's devices, in the order of these; see the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slots(
    /// Empty if each device is in the slot of its place.
    Vec<u8>,
);

impl Slots {
    /// Returns the slot of the device with this index.
    pub fn of(&self, index: usize) -> usize {
        self.0.get(index).map_or(index, |slot| usize::from(*slot))
    }

    /// Returns the next slot from `first` on, or else the lowest one, that none of so many devices
    /// has and that is not `taken` otherwise; `None` if a machine of this kind has no more.
    pub(crate) fn free(
        &self,
        devices: usize,
        machine: MachineKind,
        first: usize,
        taken: &[usize],
    ) -> Option<usize> {
        let own: Vec<usize> = (0..devices).map(|index| self.of(index)).collect();
        let all = machine.devices_max();
        let is_free = |slot: &usize| !own.contains(slot) && !taken.contains(slot);
        (first..all).chain(0..first.min(all)).find(is_free)
    }

    /// Notes that another device was added, behind so many others, in `slot`.
    pub(crate) fn push(&mut self, devices: usize, slot: usize) {
        let slots = (0..devices).map(|index| self.of(index)).chain([slot]);
        *self = Self::from_list(slots.collect());
    }

    /// Notes that the device with this index, of so many, has left.
    pub(crate) fn remove(&mut self, index: usize, devices: usize) {
        let stay = (0..devices).filter(|other| *other != index);
        *self = Self::from_list(stay.map(|index| self.of(index)).collect());
    }

    fn from_list(slots: Vec<usize>) -> Self {
        let in_place = slots.iter().enumerate().all(|(index, slot)| index == *slot);
        Self(if in_place { Vec::new() } else { slots.into_iter().map(|it| it as u8).collect() })
    }

    /// Checks that so many devices of a machine of this kind can have these slots.
    ///
    /// # Errors
    /// [`ShapeError::Malformed`].
    pub(super) fn check(&self, devices: usize, machine: MachineKind) -> Result<(), ShapeError> {
        let bad = |what: &str| Err(ShapeError::Malformed(what.to_owned()));
        if self.0.is_empty() {
            return Ok(());
        }
        if machine == MachineKind::Mmio {
            return bad("the devices of its machine stay in their places");
        }
        if self.0.len() != devices
            || self.0.iter().any(|it| usize::from(*it) >= machine.devices_max())
        {
            return bad("its devices are in slots that it has not");
        }
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.len() != devices {
            return bad("two of its devices are in one slot");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PCI: MachineKind = MachineKind::Pci;

    #[test]
    fn devices_stay_in_their_slots_and_others_get_the_free_ones() {
        let mut slots = Slots::default();
        assert_eq!(slots.free(4, PCI, 0, &[]), Some(4));
        assert_eq!(slots.free(4, PCI, 0, &[4, 6]), Some(5));
        slots.remove(1, 4);
        assert_eq!([0, 1, 2].map(|index| slots.of(index)), [0, 2, 3]);
        assert_eq!(
            [0, 2, 4, 30, 31].map(|first| slots.free(3, PCI, first, &[]).unwrap()),
            [1, 4, 4, 30, 1]
        );
        slots.push(3, 1);
        assert_eq!([0, 1, 2, 3].map(|index| slots.of(index)), [0, 2, 3, 1]);
        slots.check(4, PCI).unwrap();
        assert_eq!(slots.free(4, PCI, 0, &[]), Some(4));
        assert_eq!(Slots::default().free(31, PCI, 7, &[]), None);
        slots.remove(3, 4);
        assert_eq!(slots, Slots(vec![0, 2, 3]));
    }

    #[test]
    fn devices_that_are_back_in_their_places_are_as_new() {
        let mut slots = Slots::default();
        slots.push(2, 2);
        assert_eq!(slots, Slots::default());
        slots.remove(2, 3);
        assert_eq!(slots, Slots::default());
        slots.remove(0, 2);
        slots.remove(0, 1);
        assert_eq!(slots, Slots::default());
    }

    #[test]
    fn hostile_slots_are_refused() {
        for bad in [vec![1, 1], vec![0, 31], vec![0, 255], vec![1], vec![2, 1, 0]] {
            assert!(Slots(bad.clone()).check(2, PCI).is_err(), "{bad:?}");
        }
        assert!(Slots(vec![1, 0]).check(2, MachineKind::Mmio).is_err());
        Slots(vec![1, 0]).check(2, PCI).unwrap();
    }
}
