//! The VM generation ID: 16 bytes in the guest's memory that change when the guest continues from a
//! saved file or a template, so that no two copies draw the same random numbers (Microsoft,
//! *Virtual Machine Generation ID*). Linux then reseeds its random number generator with them.
//!
//! A guest finds the ID through ACPI (`acpi.rs`), and is told of a change by an interrupt. A live
//! migration changes nothing, since only one copy goes on.

use uuid::Uuid;

use super::layout::GENERATION;
use crate::memory::{GuestRam, MemoryError};

/// What precedes the ID in memory. Guests that an earlier version has booted have no ID, and other
/// content there, which must stay.
const MAGIC: [u8; 16] = *b"lighter vmgenid:";

/// Guest-physical address of the ID.
pub(crate) const ID: u64 = GENERATION + MAGIC.len() as u64;

/// Writes the ID with which a guest boots: its UUID, which stays as it is when the guest reboots.
///
/// # Errors
/// [`MemoryError::NoSuchAddress`] if the guest has no memory there.
pub(crate) fn write(ram: &GuestRam, uuid: Uuid) -> Result<(), MemoryError> {
    ram.write(GENERATION, &[MAGIC, uuid.into_bytes()].concat())
}

/// Gives the guest another ID, if it has one. Returns whether it has.
///
/// # Errors
/// As [`write()`].
pub(crate) fn renew(ram: &GuestRam) -> Result<bool, MemoryError> {
    let mut magic = [0; MAGIC.len()];
    ram.read(GENERATION, &mut magic)?;
    let has_one = magic == MAGIC;
    if has_one {
        ram.write(ID, Uuid::new_v4().as_bytes())?;
    }
    Ok(has_one)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(ram: &GuestRam) -> Uuid {
        let mut bytes = [0; 16];
        ram.read(ID, &mut bytes).unwrap();
        Uuid::from_bytes(bytes)
    }

    #[test]
    fn each_copy_gets_an_id_of_its_own() {
        let (ram, uuid) = (GuestRam::anonymous(4 << 20), Uuid::new_v4());
        write(&ram, uuid).unwrap();
        assert_eq!(id(&ram), uuid);
        assert!(renew(&ram).unwrap());
        let second = id(&ram);
        assert!(renew(&ram).unwrap());
        assert!(uuid != second && second != id(&ram) && id(&ram) != uuid);
    }

    #[test]
    fn memory_of_a_guest_without_an_id_stays_as_it_is() {
        let ram = GuestRam::anonymous(4 << 20);
        ram.write(GENERATION, &[7; 64]).unwrap();
        assert!(!renew(&ram).unwrap());
        let mut bytes = [0; 64];
        ram.read(GENERATION, &mut bytes).unwrap();
        assert_eq!(bytes, [7; 64]);
    }
}
