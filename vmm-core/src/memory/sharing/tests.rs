//! What goes back to the template and what is kept, whatever is written meanwhile and by whatever
//! means.

use std::cell::Cell;
use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory::{MemoryConfig, RamLayout, TemplateImage};

const BYTES: usize = 8 << 20;
const ALL: Range<u64> = 0..BYTES as u64;
const BLOCK: u64 = 2 << 20;

/// A clone, and the content of its template, in which no two pages are equal.
fn clone() -> (GuestRam, Vec<u8>) {
    let words = (0..BYTES as u64 / 8).map(|word| (word + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let content: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&content).unwrap();
    let image = TemplateImage { file: Arc::new(file), offset: 0 };
    let layout = RamLayout::new(BYTES as u64).unwrap();
    let ram = GuestRam::new(layout, &MemoryConfig::default(), Some(&image)).unwrap();
    assert!(ram.userfaultfd().is_some(), "these tests need Linux 6.7");
    (ram, content)
}

/// Returns one clone with write-protection, and one without.
fn clones() -> [(GuestRam, Vec<u8>); 2] {
    let (plain, content) = clone();
    [clone(), (plain.without_userfaultfd(), content)]
}

fn pages(numbers: Range<u64>) -> Range<u64> {
    numbers.start * PAGE_BYTES as u64..numbers.end * PAGE_BYTES as u64
}

/// Makes the guest have its own copies of the pages, with unchanged content.
fn copy(ram: &GuestRam, range: Range<u64>) {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    ram.read(range.start, &mut bytes).unwrap();
    ram.write(range.start, &bytes).unwrap();
}

fn own(ram: &GuestRam) -> Vec<Range<u64>> {
    let mut found = Vec::new();
    let mut map = PageMap::open().unwrap();
    for range in ranges(&map.own_pages(ram, &ALL).unwrap()) {
        runs::add(&mut found, range);
    }
    found
}

fn content(ram: &GuestRam) -> Vec<u8> {
    let mut bytes = vec![0; BYTES];
    ram.read(0, &mut bytes).unwrap();
    bytes
}

/// Writers, one of which does something more before they are stopped for the last time.
struct Late<F: Fn()> {
    does: F,
    /// How often they are stopped before that.
    stops_before: Cell<u32>,
}

impl<F: Fn()> Writers for Late<F> {
    fn still<T>(&self, work: impl FnOnce() -> Result<T, MemoryError>) -> Result<T> {
        match self.stops_before.get() {
            0 => (self.does)(),
            left => self.stops_before.set(left - 1),
        }
        Ok(work()?)
    }
}

/// Shares memory while `does` runs between comparing and dropping, with write-protection or
/// without.
fn share_while(ram: &GuestRam, does: impl Fn()) {
    let stops_before = Cell::new(u32::from(ram.userfaultfd().is_some()));
    let late = Late { does, stops_before };
    ram.share(&ALL, &mut PageMap::open().unwrap(), &late).unwrap();
    assert_eq!(late.stops_before.get(), 0, "it was done");
}

#[test]
fn copies_that_are_as_in_the_template_go_back_and_others_stay() {
    for (ram, mut expected) in clones() {
        copy(&ram, pages(3..40));
        copy(&ram, pages(512..1024));
        ram.write(5 * PAGE_BYTES as u64 + 4095, &[0]).unwrap();
        expected[5 * PAGE_BYTES + 4095] = 0;
        share_while(&ram, || {});
        assert_eq!(own(&ram), [pages(5..6)]);
        assert!(content(&ram) == expected);
    }
}

#[test]
fn what_is_written_between_comparing_and_dropping_is_kept() {
    for (ram, mut expected) in clones() {
        copy(&ram, pages(0..10));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; PAGE_BYTES]).unwrap();
        let at = |page: usize| (page * PAGE_BYTES) as u64;
        share_while(&ram, || {
            // A store; a store of equal content; and a write by the kernel in read(2), across a
            // page boundary.
            ram.write(at(2) + 4095, &[0]).unwrap();
            ram.write(at(4), &expected[4 * PAGE_BYTES..][..8]).unwrap();
            let mut file = file.try_clone().unwrap();
            file.seek(SeekFrom::Start(0)).unwrap();
            let place = GuestAddress(at(7) - 8);
            ram.memory().read_exact_volatile_from(place, &mut file, 16).unwrap();
        });
        let kept = if ram.userfaultfd().is_some() { 4..5 } else { 4..4 };
        let kept: Vec<_> = [2..3, kept, 6..8].into_iter().map(pages).collect();
        let kept: Vec<_> = kept.into_iter().filter(|run| !run.is_empty()).collect();
        assert_eq!(own(&ram), kept);
        expected[2 * PAGE_BYTES + 4095] = 0;
        expected[7 * PAGE_BYTES - 8..][..16].fill(7);
        assert!(content(&ram) == expected);
    }
}

#[test]
fn what_a_balloon_takes_meanwhile_stays_zero_and_what_comes_then_stays() {
    let (ram, mut expected) = clone();
    // One block was discarded before.
    ram.discard(&(3 * BLOCK..4 * BLOCK)).unwrap();
    ram.write(3 * BLOCK, &[9; 3 * PAGE_BYTES]).unwrap();
    copy(&ram, 0..3 * BLOCK);
    share_while(&ram, || {
        ram.discard(&pages(1..2)).unwrap();
        ram.discard(&(BLOCK..2 * BLOCK)).unwrap();
        ram.write(BLOCK + 8192, &[5; PAGE_BYTES]).unwrap();
        ram.discard(&pages(2 * 512 + 6..2 * 512 + 7)).unwrap();
        ram.write(2 * BLOCK + 6 * 4096, &[3]).unwrap();
    });
    expected[PAGE_BYTES..2 * PAGE_BYTES].fill(0);
    let block = BLOCK as usize;
    expected[block..2 * block].fill(0);
    expected[block + 8192..][..PAGE_BYTES].fill(5);
    expected[2 * block + 6 * 4096..][..PAGE_BYTES].fill(0);
    expected[2 * block + 6 * 4096] = 3;
    expected[3 * block..].fill(0);
    expected[3 * block..][..3 * PAGE_BYTES].fill(9);
    assert!(content(&ram) == expected);
    let mut kept = own(&ram);
    // Memory that is no longer a template's may be of huge pages.
    kept.retain(|run| run.start < BLOCK || (2 * BLOCK..3 * BLOCK).contains(&run.start));
    assert_eq!(kept, [pages(1..2), pages(1030..1031)]);
}

/// Returns the number of mappings of guest memory, and whether any is registered.
fn mappings(ram: &GuestRam) -> (usize, bool) {
    let (part, _) = ram.part(&ALL).unwrap();
    let addresses = part.addresses();
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut count, mut inside, mut is_registered) = (0, false, false);
    for line in text.lines() {
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        if let Some((Some(start), Some(end))) = range.map(|(start, end)| (hex(start), hex(end))) {
            inside = start < addresses.end && end > addresses.start;
            count += usize::from(inside);
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            is_registered |= inside && flags.split(' ').any(|flag| flag == "uw");
        }
    }
    (count, is_registered)
}

#[test]
fn nothing_of_the_write_protection_stays() {
    let (ram, _) = clone();
    let before = mappings(&ram);
    copy(&ram, pages(600..700));
    let map = PageMap::open().unwrap();
    let watch = ram.watch(&(BLOCK..2 * BLOCK)).unwrap().unwrap();
    assert_eq!(watch.protect(&map).unwrap(), [pages(600..700)]);
    assert!(mappings(&ram).1, "it is registered");
    ram.write(650 * 4096, &[1]).unwrap();
    assert_eq!(watch.unwritten(&map).unwrap(), [pages(600..650), pages(651..700)]);
    ram.drop_pages(&pages(600..620)).unwrap();
    ram.read(601 * 4096, &mut [0; 4096]).unwrap();
    assert_eq!(entries(&ram, PROTECTED), 99);
    drop(watch);
    assert_eq!((mappings(&ram), before.1, entries(&ram, SWAPPED | PROTECTED)), (before, false, 0));
    share_while(&ram, || {});
    assert_eq!((mappings(&ram), entries(&ram, SWAPPED | PROTECTED)), (before, 0));
    let part = ram.part(&ALL).unwrap().0.addresses();
    assert_eq!(map.protected_at(&part).unwrap(), [], "without it no page counts as unwritten");
}

/// Bits of an entry of `/proc/PID/pagemap` (Documentation/admin-guide/mm/pagemap.rst): a page that
/// is dropped while it is protected keeps both marks.
const SWAPPED: u64 = 1 << 62;
const PROTECTED: u64 = 1 << 57;

/// Counts the pages that have any of these bits.
fn entries(ram: &GuestRam, bits: u64) -> usize {
    let first = ram.part(&ALL).unwrap().0.addresses().start / PAGE_BYTES as u64;
    let mut bytes = vec![0; BYTES / PAGE_BYTES * 8];
    let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
    pagemap.read_exact_at(&mut bytes, first * 8).unwrap();
    let entries = bytes.as_chunks::<8>().0.iter().map(|entry| u64::from_le_bytes(*entry));
    entries.filter(|entry| entry & bits != 0).count()
}

/// Writers hold this lock shared while they write; they are stopped while it is held exclusively.
impl Writers for RwLock<()> {
    fn still<T>(&self, work: impl FnOnce() -> Result<T, MemoryError>) -> Result<T> {
        let _alone = self.write().unwrap();
        Ok(work()?)
    }
}

/// How a writer brings bytes into memory.
#[derive(Clone, Copy)]
enum Way {
    Store,
    /// `read(2)` from a file that is opened with these flags.
    Read(i32),
}

/// Writes to a part of memory until it is told to stop, half of the time what the template has.
struct Scribbler<'a> {
    ram: &'a GuestRam,
    gpa: u64,
    /// Expected content of the memory when it is done.
    model: &'a mut [u8],
    /// The template's content, followed by as many bytes that differ from it.
    source: Vec<u8>,
    random: u64,
}

impl Scribbler<'_> {
    fn random(&mut self, below: usize) -> usize {
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 20) as usize % below
    }

    /// Returns what to write next: its place in memory, and its place in the source.
    fn next(&mut self) -> (Range<usize>, Range<usize>) {
        let pages = self.model.len() / PAGE_BYTES;
        let first = self.random(pages);
        let end = (first + 1 + self.random(3)).min(pages);
        let place = first * PAGE_BYTES..end * PAGE_BYTES;
        let other = if self.random(2) == 0 { 0 } else { self.model.len() };
        let from = other + place.start..other + place.end;
        self.model[place.clone()].copy_from_slice(&self.source[from.clone()]);
        (place, from)
    }

    /// Runs until it is told to stop; returns how often it wrote.
    fn go_on(mut self, way: Way, gate: &RwLock<()>, is_over: &AtomicBool) -> u64 {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&self.source).unwrap();
        file.as_file().sync_all().unwrap();
        let flags = if let Way::Read(flags) = way { flags } else { 0 };
        let mut open = OpenOptions::new();
        let mut file = open.read(true).custom_flags(flags).open(file.path()).unwrap();
        let mut count = 0;
        while !is_over.load(Ordering::Relaxed) {
            let (place, from) = self.next();
            let gpa = self.gpa + place.start as u64;
            let _writing = gate.read().unwrap();
            match way {
                Way::Store => self.ram.write(gpa, &self.source[from]).unwrap(),
                Way::Read(_) => {
                    file.seek(SeekFrom::Start(from.start as u64)).unwrap();
                    let (memory, gpa) = (self.ram.memory(), GuestAddress(gpa));
                    memory.read_exact_volatile_from(gpa, &mut file, from.len()).unwrap();
                }
            }
            count += 1;
        }
        count
    }
}

/// `O_DIRECT` where the tests' files support it: then a device writes to pages of which the kernel
/// took references before.
fn direct() -> i32 {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all(&[1; PAGE_BYTES]).unwrap();
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(file.path());
    // Some file systems accept the flag and ignore it: then a single byte can be read.
    let is_direct = opened.is_ok_and(|mut file| file.read(&mut [0; 1]).is_err());
    if is_direct { libc::O_DIRECT } else { 0 }
}

#[test]
fn no_byte_is_lost_whatever_is_written_while_it_shares_over_and_over() {
    for (ram, template) in clones() {
        let mut model = template.clone();
        let (gate, is_over) = (RwLock::new(()), AtomicBool::new(false));
        let ways = [Way::Store, Way::Read(0), Way::Read(direct()), Way::Store];
        let part = BYTES / ways.len();
        let mut map = PageMap::open().unwrap();
        std::thread::scope(|scope| {
            let parts = model.chunks_mut(part).zip(template.chunks(part));
            let scribblers: Vec<_> = (ways.into_iter().zip((0..).step_by(part)).zip(parts))
                .map(|((way, gpa), (model, template))| {
                    let others = template.iter().map(|byte| !byte);
                    let source = template.iter().copied().chain(others).collect();
                    let scribbler = Scribbler { ram: &ram, gpa, model, source, random: gpa + 1 };
                    let (gate, is_over) = (&gate, &is_over);
                    scope.spawn(move || scribbler.go_on(way, gate, is_over))
                })
                .collect();
            let until = Instant::now() + Duration::from_secs(2);
            while Instant::now() < until {
                ram.share(&ALL, &mut map, &gate).unwrap();
            }
            is_over.store(true, Ordering::Relaxed);
            for scribbler in scribblers {
                assert!(scribbler.join().unwrap() > 100, "all of them write");
            }
        });
        let page = |bytes: &[u8], page: usize| bytes[page * PAGE_BYTES..][..PAGE_BYTES].to_vec();
        let pages_that_differ = |one: &[u8], other: &[u8]| -> Vec<usize> {
            let pages = 0..BYTES / PAGE_BYTES;
            pages.filter(|number| page(one, *number) != page(other, *number)).collect()
        };
        assert_eq!(pages_that_differ(&content(&ram), &model), [0; 0], "{:?}", ram.userfaultfd());
        ram.share(&ALL, &mut map, &gate).unwrap();
        let differ = pages_that_differ(&model, &template).len();
        let kept: u64 = own(&ram).iter().map(|run| (run.end - run.start) / PAGE_BYTES as u64).sum();
        assert_eq!(kept as usize, differ, "what differs is kept and nothing else");
        assert!(content(&ram) == model && (1..2048).contains(&differ), "{differ}");
    }
}

#[test]
fn what_a_device_is_about_to_write_when_sharing_begins_is_kept() {
    let (ram, template) = clone();
    let other: Vec<u8> = template.iter().map(|byte| !byte).collect();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&other).unwrap();
    file.as_file().sync_all().unwrap();
    let open = || OpenOptions::new().read(true).custom_flags(direct()).open(file.path()).unwrap();
    let gate = RwLock::new(());
    for _ in 0..10 {
        ram.write(0, &template).unwrap();
        let is_writing = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut file = open();
                let _writing = gate.read().unwrap();
                is_writing.store(true, Ordering::Release);
                let memory = ram.memory();
                memory.read_exact_volatile_from(GuestAddress(0), &mut file, BYTES).unwrap();
            });
            while !is_writing.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
            ram.share(&ALL, &mut PageMap::open().unwrap(), &gate).unwrap();
        });
        assert!(content(&ram) == other, "a page is the template's again");
    }
}
