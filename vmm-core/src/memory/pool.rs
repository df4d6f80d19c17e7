//! The host's pools of huge pages (Documentation/admin-guide/mm/hugetlbpage.rst).

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, memfd_create};

use super::MemoryError;

/// State of one of the host's pools, in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pool {
    /// Pages in the pool.
    total: u64,
    /// Pages of these that are not in use.
    free: u64,
    /// Free pages that are reserved for processes.
    reserved: u64,
    /// Pages by which the pool may still grow (overcommit), if the host has the memory.
    more: u64,
}

impl Pool {
    /// Returns the pages that a guest can have.
    fn available(self) -> u64 {
        self.free.saturating_sub(self.reserved).saturating_add(self.more)
    }
}

/// Checks that the pool of pages of `page` bytes can back `bytes`.
///
/// # Errors
/// [`MemoryError::NoPool`] if the host has no pages of this size; [`MemoryError::PoolShort`] if too
/// few are free.
pub(super) fn check(bytes: u64, page: u64) -> Result<(), MemoryError> {
    check_pool(read(&folder(page)), bytes, page)
}

fn check_pool(pool: Option<Pool>, bytes: u64, page: u64) -> Result<(), MemoryError> {
    let pool = pool.ok_or(MemoryError::NoPool { page })?;
    let needed = bytes / page;
    if needed > pool.available() {
        let (available, total) = (pool.available(), pool.total);
        return Err(MemoryError::PoolShort { page, needed, available, total });
    }
    Ok(())
}

/// Makes a file of `bytes` from the pool of pages of `page` bytes. Its pages are reserved when it
/// is mapped.
///
/// # Errors
/// The error from the kernel.
pub(super) fn file(page: u64, bytes: u64) -> std::io::Result<File> {
    let size = MemfdFlags::from_bits_retain(page.trailing_zeros() << libc::MFD_HUGE_SHIFT);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | size;
    let file = File::from(memfd_create("guest memory", flags)?);
    file.set_len(bytes)?;
    Ok(file)
}

/// Returns the sysfs folder of the pool of pages of `page` bytes.
pub(super) fn folder(page: u64) -> PathBuf {
    PathBuf::from(format!("/sys/kernel/mm/hugepages/hugepages-{}kB", page >> 10))
}

fn read(folder: &Path) -> Option<Pool> {
    let count = |file: &str| {
        std::fs::read_to_string(folder.join(file)).ok().and_then(|text| text.trim().parse().ok())
    };
    let may_grow: u64 = count("nr_overcommit_hugepages").unwrap_or(0);
    Some(Pool {
        total: count("nr_hugepages")?,
        free: count("free_hugepages")?,
        reserved: count("resv_hugepages")?,
        more: may_grow.saturating_sub(count("surplus_hugepages").unwrap_or(0)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: Pool = Pool { total: 100, free: 20, reserved: 8, more: 0 };

    #[test]
    fn reserved_pages_are_not_available() {
        check_pool(Some(POOL), 24 << 20, 2 << 20).unwrap();
        let error = check_pool(Some(POOL), 26 << 20, 2 << 20).unwrap_err().to_string();
        assert!(error.contains("needs 13 huge pages of 2 MiB"), "{error}");
        assert!(error.contains("12 of the host's 100 are free"), "{error}");
        assert!(error.contains("sysctl vm.nr_hugepages=101"), "{error}");
        check_pool(Some(Pool { more: 1, ..POOL }), 26 << 20, 2 << 20).unwrap();
    }

    #[test]
    fn gigantic_pages_are_raised_elsewhere() {
        let error =
            check_pool(Some(Pool { total: 0, free: 0, reserved: 0, more: 0 }), 1 << 30, 1 << 30);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("hugepages-1048576kB/nr_hugepages"), "{error}");
    }

    #[test]
    fn a_size_that_the_host_lacks_is_reported() {
        let error = check(1 << 40, 1 << 40).unwrap_err().to_string();
        assert!(error.contains("no huge pages of 1024 GiB"), "{error}");
    }
}
