//! The buffers of a request: ranges of guest memory that the driver described, checked to lie in
//! RAM.
//!
//! How a request is split into descriptors has no meaning (virtio 1.2, 2.7.4.3), so devices take
//! bytes off the front or the back and never inspect single descriptors, unless a request is about
//! the memory that the descriptors name.

use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, Permissions};

use crate::sys::{self, Buffer, RamMap, RamSlice};

/// Buffers in the order of their descriptors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Buffers(Vec<Buffer>);

impl Buffers {
    /// Adds a buffer; returns false if it does not lie in RAM. An empty buffer is omitted.
    pub(crate) fn push(&mut self, memory: &RamMap, gpa: u64, len: u32) -> bool {
        if len == 0 {
            return true;
        }
        // Whether it may be written does not matter here: all guest RAM is writable.
        let inside = gpa.checked_add(len.into()).is_some()
            && memory.check_range(GuestAddress(gpa), len as usize, Permissions::Read);
        if inside {
            self.0.push(Buffer { gpa, len });
        }
        inside
    }

    /// Returns the total length in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.iter().map(|buffer| u64::from(buffer.len)).sum()
    }

    /// Returns the address and length of each buffer: for requests about memory itself, not its
    /// content.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|buffer| (buffer.gpa, buffer.len.into()))
    }

    /// Takes `bytes` off the front; returns `None`, and takes nothing, if there are fewer.
    pub(crate) fn take_front(&mut self, bytes: u64) -> Option<Self> {
        let rest = self.bytes().checked_sub(bytes)?;
        let back = self.split_off(bytes);
        debug_assert_eq!(back.bytes(), rest);
        Some(std::mem::replace(self, back))
    }

    /// Takes `bytes` off the back; returns `None`, and takes nothing, if there are fewer.
    pub(crate) fn take_back(&mut self, bytes: u64) -> Option<Self> {
        let at = self.bytes().checked_sub(bytes)?;
        Some(self.split_off(at))
    }

    /// Keeps the first `at` bytes, or all if there are fewer, and returns the rest.
    fn split_off(&mut self, at: u64) -> Self {
        let (mut front, mut back, mut left) = (Vec::new(), Vec::new(), at);
        for Buffer { gpa, len } in self.0.drain(..) {
            let kept = left.min(len.into()) as u32;
            left -= u64::from(kept);
            if kept > 0 {
                front.push(Buffer { gpa, len: kept });
            }
            if kept < len {
                back.push(Buffer { gpa: gpa + u64::from(kept), len: len - kept });
            }
        }
        self.0 = front;
        Self(back)
    }

    /// Fills `bytes` from the buffers, which must be at least as long.
    ///
    /// # Errors
    /// Never for buffers that lie in RAM and are long enough.
    pub(crate) fn read(&self, memory: &RamMap, bytes: &mut [u8]) -> Result<(), GuestMemoryError> {
        let mut rest = bytes;
        for buffer in &self.0 {
            let (now, later) = rest.split_at_mut(rest.len().min(buffer.len as usize));
            memory.read_slice(now, GuestAddress(buffer.gpa))?;
            rest = later;
        }
        complete(rest.len())
    }

    /// Writes `bytes` to the buffers, which must be at least as long.
    ///
    /// # Errors
    /// Never for buffers that lie in RAM and are long enough.
    pub(crate) fn write(&self, memory: &RamMap, bytes: &[u8]) -> Result<(), GuestMemoryError> {
        let mut rest = bytes;
        for buffer in &self.0 {
            let (now, later) = rest.split_at(rest.len().min(buffer.len as usize));
            memory.write_slice(now, GuestAddress(buffer.gpa))?;
            rest = later;
        }
        complete(rest.len())
    }

    /// Returns the memory of the buffers, see [`sys::slices`].
    ///
    /// # Errors
    /// Never for buffers that lie in RAM.
    pub(crate) fn slices<'a>(
        &self,
        memory: &'a RamMap,
    ) -> Result<Vec<RamSlice<'a>>, GuestMemoryError> {
        sys::slices(&self.0, memory)
    }
}

impl From<Buffers> for Vec<Buffer> {
    fn from(buffers: Buffers) -> Self {
        buffers.0
    }
}

fn complete(left: usize) -> Result<(), GuestMemoryError> {
    match left {
        0 => Ok(()),
        left => Err(GuestMemoryError::PartialBuffer { expected: left, completed: 0 }),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 1 MiB of RAM at address 0.
    pub(crate) fn memory() -> RamMap {
        RamMap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
    }

    fn buffers(memory: &RamMap, pieces: &[(u64, u32)]) -> Buffers {
        let mut buffers = Buffers::default();
        for (gpa, len) in pieces {
            assert!(buffers.push(memory, *gpa, *len));
        }
        buffers
    }

    #[test]
    fn addresses_outside_ram_are_not_buffers() {
        let memory = memory();
        let mut buffers = Buffers::default();
        for (gpa, len) in [(1 << 20, 1), ((1 << 20) - 1, 2), (0, u32::MAX), (u64::MAX, 1)] {
            assert!(!buffers.push(&memory, gpa, len), "{gpa:#x} {len}");
        }
        assert!(buffers.push(&memory, u64::MAX, 0), "nothing is nowhere");
        assert_eq!(buffers, Buffers::default());
    }

    #[test]
    fn bytes_survive_any_split_into_buffers() {
        let memory = memory();
        let mut all = buffers(&memory, &[(100, 3), (5000, 4), (64, 1)]);
        all.write(&memory, b"abcdefgh").unwrap();
        let mut tail = [0; 3];
        all.take_back(3).unwrap().read(&memory, &mut tail).unwrap();
        let mut head = [0; 4];
        all.take_front(4).unwrap().read(&memory, &mut head).unwrap();
        assert_eq!((&head, &tail), (b"abcd", b"fgh"));
        assert_eq!(all.bytes(), 1);
        assert!(all.take_front(2).is_none());
        assert!(all.take_back(2).is_none());
        assert_eq!(all.bytes(), 1, "nothing was taken");
        assert!(all.write(&memory, b"xy").is_err());
    }

    proptest! {
        #[test]
        fn a_split_keeps_every_byte(lens in prop::collection::vec(1..50u32, 0..10), at in 0..600u64) {
            let memory = memory();
            let pieces: Vec<_> =
                (0..).zip(&lens).map(|(index, len): (u64, _)| (index * 1000, *len)).collect();
            let mut back = buffers(&memory, &pieces);
            let whole = back.bytes();
            match back.take_front(at) {
                Some(front) => prop_assert_eq!((front.bytes(), back.bytes()), (at, whole - at)),
                None => prop_assert!(at > whole && back.bytes() == whole),
            }
        }
    }
}
