//! Inspects the memory of another process through `/proc` (proc(5), `mem` and `pagemap`), and never
//! changes its content.

use std::fs::File;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;

use super::mapped::{HugeView, OwnPages, PageMap};
use super::{HUGE_PAGE_BYTES, MemoryError, PAGE_BYTES, collapse};
use crate::sys::process;

/// Memory of another process, by its virtual addresses. It stays bound to that process even if the
/// kernel reuses its PID.
#[derive(Debug)]
pub struct ProcessMemory {
    pid: u32,
    memory: File,
    map: PageMap,
}

impl ProcessMemory {
    /// Opens the memory of process `pid`.
    ///
    /// # Errors
    /// [`MemoryError::Process`] if there is no such process, or this one may not inspect it.
    pub fn open(pid: u32) -> Result<Self, MemoryError> {
        let open = |file| File::open(format!("/proc/{pid}/{file}"));
        let refused = |cause| MemoryError::Process { pid, cause };
        let memory = open("mem").map_err(refused)?;
        let map = PageMap::new(open("pagemap").map_err(refused)?);
        Ok(Self { pid, memory, map })
    }

    /// Whether the kernel reports huge pages; not reliable before the first scan.
    pub fn view(&self) -> HugeView {
        self.map.view()
    }

    /// Returns the process's own present pages at `addresses`, whole pages, as
    /// [`PageMap::own_pages`] does. Empty where nothing is mapped.
    ///
    /// # Errors
    /// [`MemoryError::Process`] for addresses that no process can have; [`MemoryError::Pagemap`] if
    /// the kernel refuses.
    pub fn own_pages(&mut self, addresses: &Range<u64>) -> Result<Vec<OwnPages>, MemoryError> {
        let is_whole = |address: u64| address.is_multiple_of(PAGE_BYTES as u64);
        if !is_whole(addresses.start) || !is_whole(addresses.end) || addresses.is_empty() {
            let cause = std::io::Error::from_raw_os_error(libc::EINVAL);
            return Err(MemoryError::Process { pid: self.pid, cause });
        }
        self.map.own_pages_at(addresses)
    }

    /// Whether KSM has mapped one host page at several places of `own`, which are within 2 MiB and
    /// in the order of [`Self::own_pages`]: [`make_huge`] makes no huge page of such memory. False
    /// without `CAP_SYS_ADMIN`, since the frame numbers are hidden then.
    ///
    /// # Errors
    /// [`MemoryError::Pagemap`] if they cannot be read.
    pub fn has_twins(&self, own: &[OwnPages]) -> Result<bool, MemoryError> {
        self.map.has_twins_at(own)
    }

    /// Copies memory at `address`. A page that has been dropped since `own_pages` reads as zeros.
    ///
    /// # Errors
    /// [`MemoryError::Process`] if nothing is mapped there, or the process has ended.
    pub fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let read = self.memory.read_exact_at(buf, address);
        read.map_err(|cause| MemoryError::Process { pid: self.pid, cause })
    }
}

/// Collapses the blocks of 2 MiB at `starts` of the process behind the pidfd `process` into huge
/// pages. Their content stays the same. Requires permission to inspect the process and to change
/// its priority (`CAP_SYS_PTRACE` and `CAP_SYS_NICE`), and Linux 6.1.
///
/// # Errors
/// [`MemoryError::Collapse`] if no block could be collapsed, with the system's error for the last
/// one.
pub fn make_huge(
    process: BorrowedFd<'_>,
    starts: impl Iterator<Item = u64>,
) -> Result<(), MemoryError> {
    let chunks = starts.map(|start| start..start.saturating_add(HUGE_PAGE_BYTES));
    collapse::each(chunks, |chunk| process::collapse(process, chunk))
        .map_err(|cause| MemoryError::Collapse { cause })
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// Starts `cat`, which waits for input that never comes.
    fn cat() -> Child {
        let command = &mut Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("cat")
    }

    /// Returns the address range of its heap.
    fn heap(pid: u32) -> Range<u64> {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let line = maps.lines().find(|line| line.ends_with("[heap]")).expect("a heap");
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let address = |text| u64::from_str_radix(text, 16).unwrap();
        address(start)..address(end)
    }

    #[test]
    fn memory_of_another_process_is_listed_and_read() {
        let mut cat = cat();
        let mut memory = loop {
            // Between fork and exec, the child is a copy of this process.
            let name = std::fs::read_to_string(format!("/proc/{}/comm", cat.id())).unwrap();
            if name.trim() == "cat" {
                break ProcessMemory::open(cat.id()).expect("this test takes root");
            }
        };
        let heap = loop {
            let maps = std::fs::read_to_string(format!("/proc/{}/maps", cat.id())).unwrap();
            if maps.contains("[heap]") {
                break heap(cat.id());
            }
        };
        let pages = loop {
            let pages = memory.own_pages(&heap).unwrap();
            if !pages.is_empty() {
                break pages;
            }
        };
        let mut page = [0; PAGE_BYTES];
        memory.read(pages[0].start, &mut page).unwrap();
        assert!(page.iter().any(|byte| *byte != 0), "the allocator's own records");
        assert!(matches!(memory.read(4096, &mut page), Err(MemoryError::Process { .. })));
        let refused = memory.own_pages(&(heap.start + 1..heap.end));
        assert!(matches!(refused, Err(MemoryError::Process { .. })));
        assert_eq!(memory.own_pages(&(4096..8192)).unwrap(), []);
        cat.kill().unwrap();
        cat.wait().unwrap();
        let refused = ProcessMemory::open(cat.id()).unwrap_err();
        assert!(refused.to_string().contains(&cat.id().to_string()), "{refused}");
    }
}
