//! Missing pages of a pool's huge pages, each of which is there when all of its small pages are.

use super::*;
use crate::memory::{HugePages, MemoryConfig};
use crate::testing::{Pool, pool_of_2m};

/// Small pages of a huge page, and of a chunk.
const HUGE: usize = 512;

/// Memory of a pool that has just enough for it, and is dropped after it.
struct FromPool {
    ram: GuestRam,
    _pool: Pool,
}

impl FromPool {
    fn new() -> Self {
        let pool = pool_of_2m((PAGES / HUGE) as u64);
        let config = MemoryConfig { huge_pages: HugePages::Pool2M, ..MemoryConfig::default() };
        let ram = GuestRam::new(RamLayout::new(BYTES as u64).unwrap(), &config, None).unwrap();
        Self { ram, _pool: pool }
    }

    fn filled() -> Self {
        let made = Self::new();
        fill(&made.ram);
        made
    }
}

/// How often this process has the memory mapped.
fn mappings(ram: &GuestRam) -> usize {
    let (part, _) = ram.part(&(0..BYTES as u64)).unwrap();
    let file = part.region().file_offset().unwrap().file();
    let inode = std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains(&format!(" {inode} "))).count()
}

#[test]
fn a_huge_page_is_there_when_its_last_small_page_arrives() {
    let memory = FromPool::filled();
    let ram = &memory.ram;
    let missing = without(ram, 3..4);
    let mut words = vec![0; CHUNKS];
    (words[1], words[10]) = (1 << 36, 1);
    missing.clear(&words).unwrap();
    assert_eq!(missing.left(), 3);
    thread::scope(|scope| {
        let _end = End(&missing);
        // Neither page is missing, but their huge page is.
        let first = scope.spawn(|| read(ram, 5));
        assert_eq!(next_wanted(&missing), [(0, 1 << 3), (1, 1 << 36)]);
        let second = scope.spawn(|| ram.write(gpa(511), &[1]).unwrap());
        assert_eq!(next_wanted(&missing), [], "asked for once");
        assert_eq!(missing.waited_for(), [(0, 1 << 3), (1, 1 << 36)]);

        assert_eq!(missing.place(1, 36, &[9; PAGE_BYTES]).unwrap(), 1);
        assert!(missing.waits().ended.is_empty());
        assert!(!first.is_finished() && !second.is_finished());
        assert_eq!(missing.place_zeros(0, !0).unwrap(), 1);
        assert_eq!(first.join().unwrap(), [byte_of(5); PAGE_BYTES]);
        second.join().unwrap();
        let waits = missing.waits();
        assert!(waits.ended.len() == 1 && waits.oldest.is_none(), "{waits:?}");
        // No page of the third huge page is missing.
        assert_eq!(read(ram, 2 * HUGE), [byte_of(2 * HUGE); PAGE_BYTES]);
        assert_eq!((missing.left(), missing.missing()), (1, vec![(10, 1)]));
    });
    assert_eq!((read(ram, 3), read(ram, 100)), (vec![0; PAGE_BYTES], vec![9; PAGE_BYTES]));
    assert_eq!(read(ram, 511)[..2], [1, byte_of(511)]);
    assert_eq!(read(ram, 640), [byte_of(640); PAGE_BYTES], "as before, since it never came");
}

#[test]
fn no_page_of_a_pool_is_lost_and_none_comes_twice_whatever_arrives_when() {
    all_arrives(&FromPool::filled().ram);
}

#[test]
fn memory_of_a_pool_that_was_never_touched_can_be_missing() {
    let memory = FromPool::new();
    let ram = &memory.ram;
    let missing = without(ram, 5..6);
    thread::scope(|scope| {
        let _end = End(&missing);
        let reader = scope.spawn(|| read(ram, 4));
        assert_eq!(next_wanted(&missing), [(0, 1 << 5)]);
        missing.place(0, 5, &[5; PAGE_BYTES]).unwrap();
        assert_eq!(reader.join().unwrap(), [0; PAGE_BYTES]);
        assert_eq!(read(ram, 5), [5; PAGE_BYTES]);
        // Nothing of this huge page is missing.
        assert_eq!(read(ram, HUGE), [0; PAGE_BYTES]);
        ram.write(gpa(2 * HUGE), &[3; PAGE_BYTES]).unwrap();
        assert_eq!(missing.wanted().unwrap(), []);
    });
}

#[test]
fn what_a_balloon_takes_from_a_pool_need_not_arrive() {
    let memory = FromPool::filled();
    let ram = &memory.ram;
    let missing = without(ram, 60..70);
    thread::scope(|scope| {
        let _end = End(&missing);
        let reader = scope.spawn(|| read(ram, 72));
        assert_eq!(next_wanted(&missing).len(), 2);
        let taken = missing.discard(0, &(62 * PAGE_BYTES..72 * PAGE_BYTES)).unwrap();
        assert_eq!(taken, Some(0), "the pool keeps the page for the guest");
        assert_eq!(missing.missing(), [(0, 0b11 << 60)]);
        assert!(!reader.is_finished());
        missing.discard(0, &(0..62 * PAGE_BYTES)).unwrap();
        assert_eq!(reader.join().unwrap(), [byte_of(72); PAGE_BYTES]);
        assert!((0..72).all(|page| read(ram, page) == [0; PAGE_BYTES]));
    });
    missing.end().unwrap();
    assert_eq!(missing.discard(0, &(0..PAGE_BYTES)).unwrap(), None, "memory like any other");
}

#[test]
fn an_end_leaves_one_mapping_and_no_thread_waiting() {
    let memory = FromPool::filled();
    let ram = &memory.ram;
    let missing = without(ram, 0..1);
    assert!(is_registered(ram));
    assert_eq!(mappings(ram), 2);
    thread::scope(|scope| {
        let end = End(&missing);
        let reader = scope.spawn(|| read(ram, 1));
        assert_eq!(next_wanted(&missing), [(0, 1)]);
        drop(end);
        assert_eq!(reader.join().unwrap(), [byte_of(1); PAGE_BYTES]);
    });
    assert!(!is_registered(ram));
    assert_eq!(mappings(ram), 1);
    ram.write(0, &[7; PAGE_BYTES]).unwrap();
    assert_eq!(read(ram, 0), [7; PAGE_BYTES]);
}
