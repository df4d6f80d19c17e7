//! What each backing maps and gives back, and what the guest reads afterwards.

use std::io::Write;

use super::*;
use crate::memory::{CHUNK_BYTES, GuestRam, PageMap, Prealloc};
use crate::testing::pool_of_2m;

const MIB: usize = 1 << 20;

fn ram(mib: u64, config: &MemoryConfig) -> GuestRam {
    GuestRam::new(RamLayout::new(mib << 20).unwrap(), config, None).unwrap()
}

/// A template of 8 MiB in which each byte of page N is N + 1, after one page that is not guest
/// memory.
fn template() -> TemplateImage {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[0xee; PAGE_BYTES]).unwrap();
    for page in 0..8 * MIB / PAGE_BYTES {
        file.write_all(&[byte_of(page); PAGE_BYTES]).unwrap();
    }
    TemplateImage { file: Arc::new(file), offset: PAGE_BYTES as u64 }
}

fn byte_of(page: usize) -> u8 {
    (page % 255) as u8 + 1
}

fn from(template: &TemplateImage) -> GuestRam {
    let layout = RamLayout::new(8 << 20).unwrap();
    GuestRam::new(layout, &MemoryConfig::default(), Some(template)).unwrap()
}

/// Returns the first byte of each page, after checking that all bytes of the page are equal.
fn bytes_of_pages(ram: &GuestRam) -> Vec<u8> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut bytes = Vec::new();
    for index in 0..ram.chunks() {
        ram.copy_out(index, 0, &mut chunk).unwrap();
        for page in chunk.chunks(PAGE_BYTES) {
            assert!(page.iter().all(|byte| *byte == page[0]));
            bytes.push(page[0]);
        }
    }
    bytes
}

/// What backs the pages of `ram`.
#[derive(Debug, PartialEq, Eq)]
struct Backed {
    /// Bytes that are present.
    present: u64,
    /// Bytes of these that are the guest's own and not a file's.
    own: u64,
}

/// Reads /proc/self/pagemap (Documentation/admin-guide/mm/pagemap.rst), because other files of
/// /proc show adjacent mappings as one.
fn backed(ram: &GuestRam) -> Backed {
    use std::os::unix::fs::FileExt;
    const PRESENT: u64 = 1 << 63;
    const FILE_OR_SHARED: u64 = 1 << 61;
    let region = ram.mappings().next().unwrap();
    let first = crate::sys::host_address(region) as u64 / PAGE_BYTES as u64;
    let mut bytes = vec![0; region.len() as usize / PAGE_BYTES * 8];
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    pagemap.read_exact_at(&mut bytes, first * 8).unwrap();
    let entries = bytes.as_chunks::<8>().0.iter().map(|entry| u64::from_le_bytes(*entry));
    let present: Vec<u64> = entries.filter(|entry| entry & PRESENT != 0).collect();
    let own = present.iter().filter(|entry| **entry & FILE_OR_SHARED == 0).count();
    let bytes = |pages: usize| (pages * PAGE_BYTES) as u64;
    Backed { present: bytes(present.len()), own: bytes(own) }
}

/// Returns the flags of each mapping of the first region.
fn flags(ram: &GuestRam) -> Vec<String> {
    let region = ram.mappings().next().unwrap();
    let start = crate::sys::host_address(region) as u64;
    let end = start + region.len();
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    let mut flags = Vec::new();
    for line in text.lines() {
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        if let Some((Some(from), Some(to))) = range.map(|(from, to)| (hex(from), hex(to))) {
            inside = from < end && to > start;
        } else if inside && line.starts_with("VmFlags:") {
            flags.push(format!("{line} "));
        }
    }
    flags
}

#[test]
fn memory_taken_in_advance_is_there_at_once_and_other_memory_is_not() {
    let calm = ram(16, &MemoryConfig::default());
    assert_eq!(backed(&calm).present, 0);
    let config = MemoryConfig { prealloc: Prealloc::AtStart, ..MemoryConfig::default() };
    let eager = ram(16, &config);
    assert_eq!(backed(&eager).present, 16 << 20);
    assert!(bytes_of_pages(&eager).iter().all(|byte| *byte == 0));
}

#[test]
fn small_pages_are_small() {
    let small = MemoryConfig { huge_pages: HugePages::Off, ..MemoryConfig::default() };
    for (config, flag) in [(small, " nh "), (MemoryConfig::default(), " hg ")] {
        let ram = ram(16, &config);
        assert!(flags(&ram).iter().all(|flags| flags.contains(flag)), "{:?}", flags(&ram));
    }
}

#[test]
fn memory_of_a_pool_is_reserved_at_once_and_short_pools_are_reported() {
    let pool = pool_of_2m(8);
    let config = MemoryConfig { huge_pages: HugePages::Pool2M, ..MemoryConfig::default() };
    let first = ram(8, &config);
    let layout = RamLayout::new(10 << 20).unwrap();
    let error = GuestRam::new(layout, &config, None).unwrap_err().to_string();
    assert!(
        error.contains("needs 5 huge pages of 2 MiB, and 4 of the host's 8 are free"),
        "{error}"
    );
    let second = ram(8, &config);
    drop((first, second));
    drop(pool);
}

#[test]
fn pages_of_a_pool_read_as_zeros_when_discarded_and_stay_the_guests() {
    let _pool = pool_of_2m(4);
    let config = MemoryConfig {
        huge_pages: HugePages::Pool2M,
        prealloc: Prealloc::AtStart,
        ..MemoryConfig::default()
    };
    let ram = ram(8, &config);
    assert_eq!(backed(&ram).present, 8 << 20);
    for chunk in 0..ram.chunks() {
        ram.copy_in(chunk, 0, &[7; CHUNK_BYTES]).unwrap();
    }
    // A page, and a huge page with parts of its neighbours.
    assert_eq!(ram.discard(&(4096..8192)).unwrap(), 0, "the host gets nothing");
    assert_eq!(ram.discard(&(0x1f_f000..0x40_1000)).unwrap(), 0);
    let is_gone = |page: usize| page == 1 || (0x1ff..0x401).contains(&page);
    for (page, byte) in bytes_of_pages(&ram).into_iter().enumerate() {
        assert_eq!(byte, if is_gone(page) { 0 } else { 7 }, "page {page}");
    }
    assert_eq!(backed(&ram).present, 8 << 20, "still the guest's");
    ram.clear().unwrap();
    assert!(bytes_of_pages(&ram).iter().all(|byte| *byte == 0));
}

#[test]
fn a_template_is_shared_until_it_is_written() {
    let template = template();
    let (one, two) = (from(&template), from(&template));
    let pages = 8 * MIB / PAGE_BYTES;
    let expected: Vec<u8> = (0..pages).map(byte_of).collect();
    assert_eq!(bytes_of_pages(&one), expected);
    assert_eq!(backed(&one).own, 0, "nothing was copied");

    one.copy_in(0, 3, &[0xff; PAGE_BYTES]).unwrap();
    assert_eq!(backed(&one).own, PAGE_BYTES as u64);
    assert_eq!(bytes_of_pages(&two), expected, "the other has its own copy");
    assert_eq!(bytes_of_pages(&from(&template)), expected, "and the file is as it was");
}

#[test]
fn a_templates_content_does_not_come_back_when_pages_are_discarded() {
    let template = template();
    let ram = from(&template);
    ram.copy_in(1, 0, &[0xff; PAGE_BYTES]).unwrap();
    let block = BLOCK_BYTES as u64;
    let given = [
        // Parts of two blocks with a whole one between them.
        (ram.discard(&(block - 4096..2 * block + 4096)).unwrap(), block),
        // The whole one again, and a part of it: it is anonymous by now.
        (ram.discard(&(block..2 * block)).unwrap(), block),
        (ram.discard(&(block..block + 4096)).unwrap(), 4096),
        // A page that was written, and one that was not.
        (ram.discard(&(CHUNK_BYTES as u64..CHUNK_BYTES as u64 + 8192)).unwrap(), 0),
    ];
    for (given, expected) in given {
        assert_eq!(given, expected);
    }
    let is_gone = |page: usize| (511..1025).contains(&page) || page == 64 || page == 65;
    for (page, byte) in bytes_of_pages(&ram).into_iter().enumerate() {
        assert_eq!(byte, if is_gone(page) { 0 } else { byte_of(page) }, "page {page}");
    }
    ram.clear().unwrap();
    assert!(bytes_of_pages(&ram).iter().all(|byte| *byte == 0), "nothing of it after a reset");
    assert_eq!(ram.discard(&(0..4096)).unwrap(), 4096);
}

#[test]
fn zeros_of_a_template_are_not_copied_when_they_are_discarded() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8 << 20).unwrap();
    let ram = from(&TemplateImage { file: Arc::new(file), offset: 0 });
    ram.discard(&(4096..BLOCK_BYTES as u64)).unwrap();
    assert_eq!(backed(&ram).own, 0);
}

/// Memory of huge pages, if the host has some, in which every fourth page is zero, and every page
/// of the second 2 MiB.
fn with_zeros(config: &MemoryConfig) -> (GuestRam, Vec<u8>) {
    let ram = ram(8, config);
    for chunk in 0..ram.chunks() {
        ram.copy_in(chunk, 0, &[1; CHUNK_BYTES]).unwrap();
    }
    let _ = ram.treat(&(0..8 << 20), Treatment::Collapse);
    for page in 0..8 * MIB / PAGE_BYTES {
        let is_zero = page % 4 == 0 || (512..1024).contains(&page);
        let byte = if is_zero { 0 } else { byte_of(page) };
        ram.write((page * PAGE_BYTES) as u64, &[byte; PAGE_BYTES]).unwrap();
    }
    let bytes = bytes_of_pages(&ram);
    (ram, bytes)
}

#[test]
fn zeros_in_huge_pages_come_back_and_the_rest_stays() {
    let (ram, before) = with_zeros(&MemoryConfig::default());
    let range = 0..8 << 20;
    let zeros = before.iter().filter(|byte| **byte == 0).count();
    assert_eq!((zeros, backed(&ram).own), (512 + 3 * 128, 8 << 20));
    ram.break_up(&range).unwrap();
    let mut map = PageMap::open().unwrap();
    for run in ram.zeros(&range, &mut map).unwrap() {
        let bytes = run.end - run.start;
        assert_eq!(ram.drop_zeros(&run).unwrap(), bytes);
    }
    assert_eq!(ram.zeros(&range, &mut map).unwrap(), []);
    let own = map.own_pages(&ram, &range).unwrap();
    assert!(own.iter().all(|pages| !pages.is_huge), "{own:?}");
    let kept: u64 = own.iter().map(|pages| pages.count).sum();
    assert_eq!(kept as usize, before.len() - zeros);
    assert_eq!(bytes_of_pages(&ram), before);
}

#[test]
fn pages_that_were_written_since_stay() {
    let (ram, mut expected) = with_zeros(&MemoryConfig::default());
    ram.write(0, &[7; PAGE_BYTES]).unwrap();
    expected[0] = 7;
    // 512 pages of the second 2 MiB, a quarter of the others, minus one.
    assert_eq!(ram.drop_zeros(&(0..8 << 20)).unwrap(), ((512 + 3 * 128 - 1) * PAGE_BYTES) as u64);
    assert_eq!(bytes_of_pages(&ram), expected);
}

#[test]
fn a_template_keeps_its_pages_where_zeros_would_be_its_own_again() {
    let ram = from(&template());
    ram.write(0, &[0; 4 * PAGE_BYTES]).unwrap();
    ram.break_up(&(0..8 << 20)).unwrap();
    assert_eq!(ram.drop_zeros(&(0..8 << 20)).unwrap(), 0);
    assert_eq!(bytes_of_pages(&ram)[..5], [0, 0, 0, 0, byte_of(4)]);
}

#[test]
fn memory_that_was_taken_in_advance_is_kept() {
    let eager = MemoryConfig { prealloc: Prealloc::AtStart, ..MemoryConfig::default() };
    assert!(ram(8, &eager).keeps_all() && !ram(8, &MemoryConfig::default()).keeps_all());
}

#[test]
fn a_template_conflicts_with_preallocated_memory() {
    let template = template();
    let eager = MemoryConfig { prealloc: Prealloc::AtStart, ..MemoryConfig::default() };
    let layout = RamLayout::new(8 << 20).unwrap();
    let error = GuestRam::new(layout, &eager, Some(&template)).unwrap_err();
    assert!(matches!(error, MemoryError::TemplateBacking), "{error}");
}

#[test]
fn memory_and_replaced_pages_are_merged_only_on_request() {
    let template = template();
    let ram = from(&template);
    assert!(!ram.is_merged() && flags(&ram).iter().all(|flags| !flags.contains(" mg")));
    ram.merge().unwrap();
    ram.discard(&(0..BLOCK_BYTES as u64)).unwrap();
    let flags = flags(&ram);
    assert!(flags.len() > 1 && flags.iter().all(|flags| flags.contains(" mg")), "{flags:?}");
}

#[test]
fn memory_is_bound_to_the_nodes_that_were_chosen() {
    for text in ["bind:0", "interleave:0", "preferred:0"] {
        let config = MemoryConfig { numa: text.parse().unwrap(), ..MemoryConfig::default() };
        let ram = ram(8, &config);
        let start = crate::sys::host_address(ram.mappings().next().unwrap()) as u64;
        let maps = std::fs::read_to_string("/proc/self/numa_maps").unwrap();
        let line = maps.lines().find(|line| line.starts_with(&format!("{start:x} "))).unwrap();
        let (policy, node) = text.split_once(':').unwrap();
        let policy = if policy == "preferred" { "prefer" } else { policy };
        assert!(line.contains(policy) && line.contains(&format!(":{node}")), "{line}");
    }
}
