//! The UEFI variables of a guest that firmware has booted.
//!
//! EDK2's build for Cloud Hypervisor has no flash. It keeps variables in a firmware volume in the
//! guest's memory (`OvmfPkg/EmuVariableFvbRuntimeDxe`). Its first allocation reserves the end of
//! the memory under the PCI hole for that (`PlatformReserveEmuVariableNvStore`), so that variables
//! survive a reset that leaves memory as it was: a volume that is there is used as it is
//! (`FvbInitialize`). Here, a reset clears memory. The volume is copied before, and put back; and a
//! new guest starts with the copy of an earlier process.
//!
//! The guest may write anything there that looks like a volume. A copy only comes back to the same
//! place, in the memory of the same guest or of the next one of its name.

use super::layout::HIGH_MEMORY;
use crate::memory::{GuestRam, MemoryError};

/// Lengths of the volume in EDK2's builds with an image of 4 MiB, and with one of 1 or 2 MiB, in
/// bytes.
const LENGTHS: [u64; 2] = [0x8_4000, 0x2_0000];
/// What the volume must lie above: the firmware itself and what it unpacks.
const LOWEST: u64 = HIGH_MEMORY + (32 << 20);
/// Length of the header of a volume with one kind of blocks, and of that of the store behind it, in
/// bytes.
const VOLUME_HEADER_BYTES: usize = 0x48;
const STORE_HEADER_BYTES: usize = 28;
const HEADERS_BYTES: usize = VOLUME_HEADER_BYTES + STORE_HEADER_BYTES;
/// `gEfiSystemNvDataFvGuid`.
const VOLUME_KIND: [u8; 16] = guid(0xfff1_2b8d, 0x7696, 0x4c8b, 0xa985_2747_075b_4f50);
/// `gEfiAuthenticatedVariableGuid` and `gEfiVariableGuid`.
const STORE_KINDS: [[u8; 16]; 2] = [
    guid(0xaaf3_2c78, 0x947b, 0x439a, 0xa180_2e14_4ec3_7792),
    guid(0xddcf_3616, 0x3275, 0x4164, 0x98b6_fe85_707f_fe7d),
];
const SIGNATURE: &[u8; 4] = b"_FVH";
const REVISION: u8 = 2;
/// `VARIABLE_STORE_FORMATTED`, then `VARIABLE_STORE_HEALTHY`.
const FORMATTED_AND_HEALTHY: [u8; 2] = [0x5a, 0xfe];

/// A copy of the volume with a guest's UEFI variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variables(Vec<u8>);

/// The bytes are not a volume with UEFI variables.
#[derive(Debug, thiserror::Error)]
#[error("it does not hold UEFI variables, or not all of them")]
pub struct NoVariables;

impl Variables {
    /// Copies the variables from a guest's memory; `None` if the firmware has not made any, or if
    /// a page of them is missing.
    ///
    /// # Errors
    /// If memory cannot be read.
    pub(crate) fn find(ram: &GuestRam) -> Result<Option<Self>, MemoryError> {
        let end = low_end(ram);
        for length in LENGTHS {
            let Some(address) = end.checked_sub(length).filter(|it| *it >= LOWEST) else {
                continue;
            };
            if ram.is_missing_in(&(address..end)) {
                return Ok(None);
            }
            let mut headers = [0; HEADERS_BYTES];
            ram.read(address, &mut headers)?;
            if is_volume(&headers, length) {
                let mut volume = vec![0; length as usize];
                ram.read(address, &mut volume)?;
                // The guest may have changed the headers since.
                return Ok(Self::from_bytes(volume).ok());
            }
        }
        Ok(None)
    }

    /// Writes the variables where the firmware looks for them; returns false if the guest has too
    /// little memory.
    ///
    /// # Errors
    /// If memory cannot be written.
    pub(crate) fn place(&self, ram: &GuestRam) -> Result<bool, MemoryError> {
        match low_end(ram).checked_sub(self.0.len() as u64) {
            Some(address) if address >= LOWEST => ram.write(address, &self.0).map(|()| true),
            _ => Ok(false),
        }
    }

    /// The volume, which is what other VMMs have in a file `OVMF_VARS.fd`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the variables in a copy of the volume.
    ///
    /// # Errors
    /// If it is not one.
    pub fn from_bytes(volume: Vec<u8>) -> Result<Self, NoVariables> {
        let length = volume.len() as u64;
        let is_whole = volume.first_chunk().is_some_and(|headers| is_volume(headers, length));
        if is_whole && LENGTHS.contains(&length) { Ok(Self(volume)) } else { Err(NoVariables) }
    }
}

/// Returns the end of the memory under the PCI hole.
fn low_end(ram: &GuestRam) -> u64 {
    ram.layout().regions()[0].bytes
}

/// Whether these are the headers of a volume of `length` bytes with variables.
fn is_volume(headers: &[u8; HEADERS_BYTES], length: u64) -> bool {
    let (volume, store) = headers.split_at(VOLUME_HEADER_BYTES);
    let (words, _) = volume.as_chunks();
    let sum = words.iter().fold(0_u16, |sum, word| sum.wrapping_add(u16::from_le_bytes(*word)));
    let is_volume = volume[16..32] == VOLUME_KIND
        && volume[32..40] == length.to_le_bytes()
        && &volume[40..44] == SIGNATURE
        && volume[48..50] == (VOLUME_HEADER_BYTES as u16).to_le_bytes()
        && volume[55] == REVISION
        && sum == 0;
    is_volume
        && STORE_KINDS.iter().any(|kind| store[..16] == *kind)
        && store[20..22] == FORMATTED_AND_HEALTHY
}

/// Encodes a GUID as EDK2 stores it: the first three parts in little-endian order.
const fn guid(a: u32, b: u16, c: u16, d: u64) -> [u8; 16] {
    let (a, b, c, d) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes(), d.to_be_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]]
}

/// An empty volume as EDK2 makes it (`InitializeFvAndVariableStoreHeaders`), with `content`
/// behind the headers.
#[cfg(test)]
pub(crate) fn volume(content: &[u8]) -> Vec<u8> {
    let mut volume = vec![0xff; LENGTHS[0] as usize];
    volume[..HEADERS_BYTES].fill(0);
    volume[16..32].copy_from_slice(&VOLUME_KIND);
    volume[32..40].copy_from_slice(&(LENGTHS[0]).to_le_bytes());
    volume[40..44].copy_from_slice(SIGNATURE);
    volume[44..48].copy_from_slice(&0x4_feff_u32.to_le_bytes());
    volume[48..50].copy_from_slice(&0x48_u16.to_le_bytes());
    volume[55] = REVISION;
    volume[56..60].copy_from_slice(&2_u32.to_le_bytes());
    volume[60..64].copy_from_slice(&0x42000_u32.to_le_bytes());
    volume[0x48..0x58].copy_from_slice(&STORE_KINDS[0]);
    volume[0x58..0x5c].copy_from_slice(&(0x40000_u32 - 0x48).to_le_bytes());
    volume[0x5c..0x5e].copy_from_slice(&FORMATTED_AND_HEALTHY);
    let (words, _) = volume[..0x48].as_chunks();
    let sum = words.iter().fold(0_u16, |sum, word| sum.wrapping_add(u16::from_le_bytes(*word)));
    volume[50..52].copy_from_slice(&sum.wrapping_neg().to_le_bytes());
    volume[HEADERS_BYTES..][..content.len()].copy_from_slice(content);
    volume
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const BYTES: usize = LENGTHS[0] as usize;

    #[test]
    fn variables_are_found_and_come_to_the_end_of_another_memory() {
        let ram = GuestRam::anonymous(64 * MIB);
        assert_eq!(Variables::find(&ram).unwrap(), None);
        ram.write(64 * MIB - BYTES as u64, &volume(b"BootOrder")).unwrap();
        let found = Variables::find(&ram).unwrap().unwrap();
        assert_eq!(found.as_bytes(), volume(b"BootOrder"));

        let larger = GuestRam::anonymous(128 * MIB);
        let read = Variables::from_bytes(found.as_bytes().to_vec()).unwrap();
        assert!(read.place(&larger).unwrap());
        assert_eq!(Variables::find(&larger).unwrap(), Some(found.clone()));
        let too_small = GuestRam::anonymous(32 * MIB);
        assert!(!found.place(&too_small).unwrap(), "the firmware is there");
    }

    #[test]
    fn what_is_no_volume_is_not_found() {
        let ram = GuestRam::anonymous(64 * MIB);
        for offset in [16, 32, 39, 40, 48, 50, 55, 0x48, 0x5c, 0x5d] {
            let mut broken = volume(b"");
            broken[offset] ^= 0x40;
            ram.write(64 * MIB - BYTES as u64, &broken).unwrap();
            assert_eq!(Variables::find(&ram).unwrap(), None, "byte {offset} differs");
        }
        ram.write(62 * MIB, &volume(b"")).unwrap();
        assert_eq!(Variables::find(&ram).unwrap(), None, "a file in the guest's cache");
    }

    #[test]
    fn a_file_that_is_cut_is_refused() {
        let whole = volume(b"");
        assert!(Variables::from_bytes(whole.clone()).is_ok());
        for length in [0, 7, 100, 0x2_0000, BYTES - 1] {
            assert!(Variables::from_bytes(whole[..length].to_vec()).is_err(), "{length} bytes");
        }
        assert!(Variables::from_bytes([&whole[..], b"x"].concat()).is_err());
    }
}
