//! MSI-X: a function's table of messages and the bits of those that are pending (PCI Local Bus
//! Specification 3.0, 6.8.2).

use serde::{Deserialize, Serialize};

/// Bytes of an entry of the table.
pub(crate) const ENTRY_BYTES: usize = 16;
/// Most vectors: one bit each in a word.
const VECTORS_MAX: usize = 128;
/// Most vectors of a function whose state is saved.
const SAVED_VECTORS_MAX: usize = 64;
/// Bits of the message control register.
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
/// The addresses of messages to local APICs, and the bits by which they are known (Intel SDM volume
/// 3, 11.11.1).
const LOCAL_APICS: u64 = 0xfee0_0000;
const LOCAL_APICS_MASK: u64 = !0xf_ffff;

/// A message that interrupts a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message {
    /// Address that it is written to: destination and mode.
    pub(crate) address: u32,
    /// What is written: vector and trigger.
    pub(crate) data: u32,
}

/// An entry of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixEntry {
    /// Address of the message.
    pub address: u64,
    /// Data of the message.
    pub data: u32,
    /// Whether the vector is masked.
    pub masked: bool,
}

/// An entry after power-on.
const UNUSED: MsixEntry = MsixEntry { address: 0, data: 0, masked: true };

/// Saved table and pending bits; the control register is a part of the configuration space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    /// The table, by vector.
    pub entries: Vec<MsixEntry>,
    /// Vectors that wait until they are no longer masked, one bit each.
    pub pending: u64,
}

/// A function's MSI-X table; see the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Msix {
    entries: Vec<MsixEntry>,
    pending: u128,
    enabled: bool,
    all_masked: bool,
}

impl Msix {
    /// Creates the table of a function with so many vectors, at most 128.
    pub(crate) fn new(vectors: usize) -> Self {
        debug_assert!(vectors <= VECTORS_MAX);
        Self { entries: vec![UNUSED; vectors], pending: 0, enabled: false, all_masked: false }
    }

    /// Returns what software may write of the capability's message control register.
    pub(crate) const fn control_bits() -> u16 {
        ENABLE | FUNCTION_MASK
    }

    /// Handles a write of the message control register.
    pub(crate) fn set_control(&mut self, control: u16) {
        self.enabled = control & ENABLE != 0;
        self.all_masked = control & FUNCTION_MASK != 0;
    }

    /// Handles a read of the table. Software reads 32 or 64 aligned bits; others are 0.
    pub(crate) fn read_table(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        if !is_access(offset, data.len()) {
            return;
        }
        if let Some(entry) = self.entries.get(offset / ENTRY_BYTES) {
            let at = offset % ENTRY_BYTES;
            data.copy_from_slice(&bytes_of(entry)[at..at + data.len()]);
        }
    }

    /// Handles a write of the table: 32 or 64 aligned bits, others are ignored.
    pub(crate) fn write_table(&mut self, offset: usize, data: &[u8]) {
        if !is_access(offset, data.len()) {
            return;
        }
        if let Some(entry) = self.entries.get_mut(offset / ENTRY_BYTES) {
            let at = offset % ENTRY_BYTES;
            let mut bytes = bytes_of(entry);
            bytes[at..at + data.len()].copy_from_slice(data);
            *entry = entry_of(bytes);
        }
    }

    /// Handles a read of the pending bits. Software cannot write them.
    pub(crate) fn read_pending(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        let pending = self.pending.to_le_bytes();
        let rest = pending.get(offset..).unwrap_or_default();
        data.iter_mut().zip(rest).for_each(|(byte, own)| *byte = *own);
    }

    /// Replaces the pending bits, for a function that keeps them itself.
    pub(crate) fn set_pending(&mut self, pending: u128) {
        self.pending = pending;
    }

    /// Returns whether software has enabled MSI-X.
    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Takes an interrupt. Returns whether it has to be delivered now; one that is masked stays
    /// pending, and none is remembered before software enables MSI-X.
    pub(crate) fn raise(&mut self, vector: u16) -> bool {
        let vector = usize::from(vector);
        if !self.enabled || vector >= self.entries.len() {
            return false;
        }
        let delivers = self.delivers(vector);
        if !delivers {
            self.pending |= 1 << vector;
        }
        delivers
    }

    /// Returns whether an interrupt by this vector would be delivered now.
    pub(crate) fn delivers(&self, vector: usize) -> bool {
        let is_unmasked = self.entries.get(vector).is_some_and(|entry| !entry.masked);
        self.enabled && !self.all_masked && is_unmasked
    }

    /// Returns the pending interrupts that are no longer masked. They are not pending any more:
    /// the caller delivers them.
    pub(crate) fn take_due(&mut self) -> Vec<u16> {
        let pending = self.pending;
        let due: Vec<usize> = (0..self.entries.len())
            .filter(|vector| pending >> vector & 1 == 1 && self.delivers(*vector))
            .collect();
        due.iter().for_each(|vector| self.pending &= !(1 << vector));
        due.into_iter().map(|vector| vector as u16).collect()
    }

    /// Returns the message of each vector that is not masked itself: the others may be half
    /// written. `None` instead of a message that leads to no local APIC.
    pub(crate) fn messages(&self) -> impl Iterator<Item = (u16, Option<Message>)> {
        let unmasked = (0..).zip(&self.entries).filter(|(_, entry)| self.enabled && !entry.masked);
        unmasked.map(|(vector, entry)| {
            let is_interrupt = entry.address & LOCAL_APICS_MASK == LOCAL_APICS;
            let message = Message { address: entry.address as u32, data: entry.data };
            (vector, is_interrupt.then_some(message))
        })
    }

    /// Returns the table and the pending bits, of at most 64 vectors.
    pub(crate) fn save(&self) -> MsixState {
        debug_assert!(self.entries.len() <= SAVED_VECTORS_MAX);
        MsixState { entries: self.entries.clone(), pending: self.pending as u64 }
    }

    /// Replaces the table and the pending bits.
    ///
    /// # Errors
    /// If the number of vectors differs; the text says so.
    pub(crate) fn load(&mut self, state: &MsixState) -> Result<(), String> {
        let (found, own) = (state.entries.len(), self.entries.len());
        let beyond = state.pending.checked_shr(own as u32).unwrap_or(0);
        if found != own || beyond != 0 {
            return Err(format!("it has {found} MSI-X vectors, and {own} here"));
        }
        self.entries.clone_from(&state.entries);
        self.pending = state.pending.into();
        Ok(())
    }
}

fn is_access(offset: usize, bytes: usize) -> bool {
    matches!(bytes, 4 | 8) && offset.is_multiple_of(bytes)
}

fn bytes_of(entry: &MsixEntry) -> [u8; ENTRY_BYTES] {
    let words =
        u128::from(entry.address) | u128::from(entry.data) << 64 | u128::from(entry.masked) << 96;
    words.to_le_bytes()
}

fn entry_of(bytes: [u8; ENTRY_BYTES]) -> MsixEntry {
    let words = u128::from_le_bytes(bytes);
    MsixEntry {
        // The lowest two bits are always 0.
        address: words as u64 & !3,
        data: (words >> 64) as u32,
        masked: words >> 96 & 1 == 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn write(msix: &mut Msix, offset: usize, value: u32) {
        msix.write_table(offset, &value.to_le_bytes());
    }

    fn read(msix: &Msix, offset: usize) -> u32 {
        let mut word = [0xee; 4];
        msix.read_table(offset, &mut word);
        u32::from_le_bytes(word)
    }

    fn set(msix: &mut Msix, vector: usize, address: u32, data: u32) {
        for (at, value) in (vector * 16..).step_by(4).zip([address, 0, data, 0]) {
            write(msix, at, value);
        }
    }

    fn enabled() -> Msix {
        let mut msix = Msix::new(3);
        msix.set_control(ENABLE);
        set(&mut msix, 1, 0xfee0_1000, 0x41);
        msix
    }

    fn pending(msix: &Msix) -> u8 {
        let mut byte = [0];
        msix.read_pending(0, &mut byte);
        byte[0]
    }

    #[test]
    fn entries_are_masked_after_power_on() {
        let msix = Msix::new(2);
        assert_eq!([0, 4, 8, 12].map(|at| read(&msix, at)), [0, 0, 0, 1]);
        assert_eq!(read(&msix, 32), 0, "there is no third entry");
    }

    #[test]
    fn a_masked_interrupt_waits_and_comes_once() {
        let mut msix = enabled();
        assert!(msix.raise(1));
        assert!(!msix.raise(0), "masked itself");
        assert!(!msix.raise(0));
        msix.set_control(ENABLE | FUNCTION_MASK);
        assert!(!msix.raise(1), "masked with all");
        assert_eq!((pending(&msix), msix.take_due()), (0b11, vec![]));
        msix.set_control(ENABLE);
        assert_eq!(msix.take_due(), [1]);
        write(&mut msix, 12, 0);
        assert_eq!(msix.take_due(), [0]);
        assert_eq!((pending(&msix), msix.take_due()), (0, vec![]));
    }

    #[test]
    fn nothing_is_remembered_without_msix() {
        let mut msix = enabled();
        msix.set_control(0);
        assert!(!msix.raise(1));
        msix.set_control(ENABLE);
        assert!(msix.take_due().is_empty());
        for vector in [3, 64, 0xffff] {
            assert!(!msix.raise(vector));
        }
        assert_eq!(pending(&msix), 0);
    }

    #[test]
    fn only_messages_to_local_apics_lead_anywhere() {
        let mut msix = enabled();
        let message = Message { address: 0xfee0_1000, data: 0x41 };
        assert_eq!(msix.messages().collect::<Vec<_>>(), [(1, Some(message))]);
        for (low, high) in [(0x1000, 0), (0xfef0_0000, 0), (0xfee0_0000, 1), (0xfed0_0000, 0)] {
            write(&mut msix, 16, low);
            write(&mut msix, 20, high);
            assert_eq!(msix.messages().collect::<Vec<_>>(), [(1, None)], "{low:#x}");
        }
        write(&mut msix, 28, 1);
        assert_eq!(msix.messages().count(), 0, "a masked entry may be half written");
    }

    #[test]
    fn only_whole_aligned_words_reach_the_table() {
        let mut msix = enabled();
        let before = msix.clone();
        for offset in 0..64 {
            for bytes in 0..=16usize {
                if is_access(offset, bytes) {
                    continue;
                }
                msix.write_table(offset, &vec![0xff; bytes]);
                let mut data = vec![0xee; bytes];
                msix.read_table(offset, &mut data);
                assert_eq!(data, vec![0; bytes], "{offset}, {bytes}");
            }
        }
        assert_eq!(msix, before);
        msix.write_table(16, &[0xff; 8]);
        msix.write_table(24, &[0xff; 8]);
        let entry = MsixEntry { address: !3, data: u32::MAX, masked: true };
        assert_eq!(msix.save().entries[1], entry);
        assert_eq!(read(&msix, 28), 1, "reserved bits stay 0");
        msix.write_table(usize::MAX - 7, &[1; 8]);
    }

    #[test]
    fn a_table_of_another_size_is_refused() {
        let state = enabled().save();
        Msix::new(3).load(&state).unwrap();
        assert!(Msix::new(2).load(&state).is_err());
        let beyond = MsixState { pending: 1 << 3, ..state.clone() };
        assert!(Msix::new(3).load(&beyond).is_err());
        let all = MsixState { entries: vec![UNUSED; 64], pending: u64::MAX };
        Msix::new(64).load(&all).unwrap();
    }

    proptest! {
        #[test]
        fn no_sequence_of_accesses_loses_or_doubles_an_interrupt(
            steps in prop::collection::vec((0..5u8, 0..80usize, any::<u32>()), 0..300),
        ) {
            let mut msix = Msix::new(3);
            // Interrupts that software has not seen, by the rules alone.
            let mut owed = 0u8;
            for (step, place, value) in steps {
                match step {
                    0 => write(&mut msix, place, value),
                    1 => msix.write_table(place & !7, &[value as u8; 8]),
                    2 => msix.set_control((value & 0xffff) as u16),
                    _ => {
                        let vector = (place % 4) as u16;
                        let was_enabled = msix.enabled;
                        if !msix.raise(vector) && was_enabled && vector < 3 {
                            owed |= 1 << vector;
                        }
                    }
                }
                for vector in msix.take_due() {
                    prop_assert!(owed >> vector & 1 == 1);
                    owed &= !(1 << vector);
                }
                prop_assert_eq!(pending(&msix), owed);
                let mut next = Msix::new(3);
                next.set_control(
                    if msix.enabled { ENABLE } else { 0 }
                        | if msix.all_masked { FUNCTION_MASK } else { 0 },
                );
                prop_assert!(next.load(&msix.save()).is_ok());
                prop_assert_eq!(&next, &msix);
            }
        }
    }
}
