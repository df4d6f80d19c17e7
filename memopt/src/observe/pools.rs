//! The host's hugetlb pools (Documentation/admin-guide/mm/hugetlbpage.rst of the kernel).

use super::ObserveError;
use super::sources::Sources;
use crate::situation::Pool;

const FOLDER: &str = "sys/kernel/mm/hugepages";

/// The most pools that are read: x86-64 has two, arm64 four.
const POOLS_MAX: usize = 32;

/// Reads the pools of all page sizes from `/sys/kernel/mm/hugepages`, the smallest pages first.
///
/// # Errors
/// [`ObserveError::Absent`] on a kernel without hugetlb, [`ObserveError::Unexpected`] if a file is
/// not what the kernel writes.
pub fn pools(sources: &Sources) -> Result<Vec<Pool>, ObserveError> {
    let mut pools = Vec::new();
    for name in sources.entries(FOLDER)?.iter().take(POOLS_MAX) {
        let Some(page_bytes) = page_bytes(name) else { continue };
        let number = |file: &str| sources.number(&format!("{FOLDER}/{name}/{file}"));
        pools.push(Pool {
            page_bytes,
            pages: number("nr_hugepages")?,
            free_pages: number("free_hugepages")?,
            reserved_pages: number("resv_hugepages")?,
        });
    }
    pools.sort_unstable_by_key(|pool| pool.page_bytes);
    Ok(pools)
}

/// Parses a folder's name: 2 MiB for `hugepages-2048kB`.
fn page_bytes(name: &str) -> Option<u64> {
    let kilobytes = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
    super::sources::unsigned(kilobytes)?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn reads_pools_of_all_sizes_and_skips_other_entries() {
        let folder = tempfile::tempdir().unwrap();
        for (name, pages) in
            [("hugepages-1048576kB", "1"), ("hugepages-2048kB", "64"), ("hugepages-kB", "x")]
        {
            let pool = folder.path().join(FOLDER).join(name);
            fs::create_dir_all(&pool).unwrap();
            for file in ["nr_hugepages", "free_hugepages", "resv_hugepages"] {
                fs::write(pool.join(file), format!("{pages}\n")).unwrap();
            }
        }
        let sources = Sources::at(folder.path());
        let found = pools(&sources).unwrap();
        let sizes: Vec<_> = found.iter().map(|pool| (pool.page_bytes, pool.pages)).collect();
        assert_eq!(sizes, [(2 << 20, 64), (1 << 30, 1)]);

        let broken = folder.path().join(FOLDER).join("hugepages-2048kB/free_hugepages");
        fs::write(&broken, "many\n").unwrap();
        let error = pools(&sources).unwrap_err();
        assert!(error.to_string().contains("hugepages-2048kB/free_hugepages"), "{error}");
    }

    #[test]
    fn page_sizes_are_bounded() {
        assert_eq!(page_bytes("hugepages-18446744073709551615kB"), None);
        assert_eq!(page_bytes("hugepages-64kB"), Some(65_536));
    }
}
