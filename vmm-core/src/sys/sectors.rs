//! Reads and writes of a file's bytes by whole sectors, from and to aligned memory. The kernel
//! demands that of a file whose cache is bypassed (`O_DIRECT`), and other files take it as well.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use imago::io_buffers::IoBuffer;

/// Size of a sector in bytes: that of guests.
pub(crate) const SECTOR_BYTES: u64 = 512;
/// Alignment in memory that every device accepts with `O_DIRECT`, in bytes: a multiple of all
/// sector sizes.
pub(crate) const DIRECT_ALIGNMENT: usize = 4096;
/// Most bytes that are moved at a time through aligned memory: whole sectors.
pub(crate) const PIECE_BYTES: u64 = 1 << 20;
/// How often a read may give a part of a sector, although the file goes on.
const VAIN_READS_MAX: u32 = 16;

/// Fills `bytes` from `offset` of `file` on. Neither needs alignment.
///
/// # Errors
/// `UnexpectedEof` if the file ends before; otherwise the error from the system.
pub(crate) fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    let end = end_of(bytes, offset)?;
    if is_aligned(bytes) && (offset | bytes.len() as u64).is_multiple_of(SECTOR_BYTES) {
        let is_all = read_up_to(file, bytes, offset)? == bytes.len();
        return is_all.then_some(()).ok_or_else(|| io::ErrorKind::UnexpectedEof.into());
    }
    in_pieces(offset..end, |at, piece| {
        let found = read_up_to(file, piece, at)?;
        let wanted = offset.max(at)..end.min(at + piece.len() as u64);
        let place = |from: u64| (wanted.start - from) as usize..(wanted.end - from) as usize;
        let read = piece[..found].get(place(at)).ok_or(io::ErrorKind::UnexpectedEof)?;
        bytes[place(offset)].copy_from_slice(read);
        Ok(())
    })
}

/// Writes `bytes` from `offset` of `file` on: whole sectors, which need no alignment in memory.
///
/// # Errors
/// `InvalidInput` if they are not whole sectors; otherwise the error from the system.
pub(crate) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    if !(offset | bytes.len() as u64).is_multiple_of(SECTOR_BYTES) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if is_aligned(bytes) {
        return file.write_all_at(bytes, offset);
    }
    in_pieces(offset..end_of(bytes, offset)?, |at, piece| {
        let start = (at - offset) as usize;
        piece.copy_from_slice(&bytes[start..start + piece.len()]);
        file.write_all_at(piece, at)
    })
}

/// Reads whole sectors into aligned memory, up to the end of the file; returns the bytes that were
/// read.
///
/// # Errors
/// `UnexpectedEof` if the file system gives parts of a sector only; otherwise the error from the
/// system.
pub(crate) fn read_up_to(file: &File, sectors: &mut [u8], offset: u64) -> io::Result<usize> {
    let (mut done, mut vain) = (0, 0);
    while done < sectors.len() {
        let read = match file.read_at(&mut sectors[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let part = read % SECTOR_BYTES as usize;
        done += read - part;
        if part == 0 {
            continue;
        }
        if offset + (done + part) as u64 >= file.metadata()?.len() {
            return Ok(done + part);
        }
        // The file has grown meanwhile. What follows a part of a sector could not be read with
        // `O_DIRECT`, so the whole sector is read again.
        vain = if read == part { vain + 1 } else { 0 };
        if vain > VAIN_READS_MAX {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(done)
}

/// Returns `bytes` zeroed bytes, aligned for any device.
///
/// # Errors
/// If there is no memory left.
pub(crate) fn aligned_memory(bytes: usize) -> io::Result<IoBuffer> {
    let mut memory = IoBuffer::new(bytes, DIRECT_ALIGNMENT)?;
    memory.as_mut().into_slice().fill(0);
    Ok(memory)
}

fn is_aligned(bytes: &[u8]) -> bool {
    (bytes.as_ptr().addr() as u64).is_multiple_of(SECTOR_BYTES)
}

fn end_of(bytes: &[u8], offset: u64) -> io::Result<u64> {
    offset.checked_add(bytes.len() as u64).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Calls `each` for each piece of the sectors that `range` of a file touches, with its offset and
/// aligned memory of its length.
fn in_pieces(
    range: Range<u64>,
    mut each: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> io::Result<()> {
    let first = range.start - range.start % SECTOR_BYTES;
    let end =
        range.end.checked_next_multiple_of(SECTOR_BYTES).ok_or(io::ErrorKind::InvalidInput)?;
    let mut aligned = aligned_memory((end - first).min(PIECE_BYTES) as usize)?;
    let mut at = first;
    while at < end {
        let bytes = (end - at).min(PIECE_BYTES);
        each(at, aligned.as_mut_range(0..bytes as usize).into_slice())?;
        at += bytes;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::file::make_direct;

    #[test]
    fn bytes_anywhere_in_memory_and_in_the_file_are_moved_in_pieces() {
        // Not all file systems for temporary files have `O_DIRECT`.
        let program = std::env::current_exe().unwrap();
        let file = tempfile::NamedTempFile::new_in(program.parent().unwrap()).unwrap();
        let bytes = 2 * PIECE_BYTES as usize + 512;
        file.as_file().set_len(bytes as u64 + 512 + 100).unwrap();
        make_direct(file.as_file()).unwrap();
        let content: Vec<u8> = (0..=bytes).map(|at| (at / 512) as u8).collect();
        write_all_at(file.as_file(), &content[1..], 512).unwrap();
        assert!(std::fs::read(file.path()).unwrap()[512..512 + bytes] == content[1..]);

        let read = |offset: usize, bytes: usize| {
            let mut found = vec![0; bytes + 1];
            read_exact_at(file.as_file(), &mut found[1..], offset as u64).map(|()| found)
        };
        assert!(read(512, bytes).unwrap()[1..] == content[1..]);
        let mut aligned = aligned_memory(1024).unwrap();
        let aligned = aligned.as_mut().into_slice();
        read_exact_at(file.as_file(), aligned, 512).unwrap();
        assert!(aligned == &content[1..1025]);
        let cut = read_exact_at(file.as_file(), aligned, bytes as u64).unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
        assert!(read(600, bytes - 200).unwrap()[1..] == content[89..bytes - 111]);
        assert!(read(512 + bytes, 100).unwrap()[1..] == [0; 100]);
        let end = io::ErrorKind::UnexpectedEof;
        for (offset, bytes) in [(512 + bytes, 101), (612 + bytes, 1), (1 << 40, 1)] {
            assert_eq!(read(offset, bytes).unwrap_err().kind(), end);
        }
        assert!(read_exact_at(file.as_file(), &mut [0], u64::MAX).is_err());
    }

    #[test]
    fn a_file_that_grows_meanwhile_is_read_as_it_was_or_as_it_is() {
        let file = tempfile::tempfile().unwrap();
        for _ in 0..1000 {
            file.set_len(8).unwrap();
            let mut sector = aligned_memory(SECTOR_BYTES as usize).unwrap();
            let grown = std::thread::scope(|scope| {
                let growing = scope.spawn(|| file.set_len(SECTOR_BYTES).unwrap());
                let found = read_up_to(&file, sector.as_mut().into_slice(), 0).unwrap();
                growing.join().unwrap();
                found
            });
            assert!([8, SECTOR_BYTES as usize].contains(&grown), "{grown}");
        }
    }
}
