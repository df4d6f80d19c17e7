//! Real memory, and threads, system calls and a vCPU that access pages that are not there.

mod hugetlb;

use std::fs::File;
use std::io::{PipeReader, Read, Seek, SeekFrom, Write};
use std::thread;

use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory::Treatment;
use crate::testing::{DATA, PATIENCE, TOUCH_PAGES, vm_with, wait_for_more, word};

const BYTES: usize = 8 << 20;
const PAGES: usize = BYTES / PAGE_BYTES;
const CHUNKS: usize = BYTES / CHUNK_BYTES;

/// Ends the registration when a test does, so that a test that fails leaves no thread waiting.
struct End<'a>(&'a Missing);

impl Drop for End<'_> {
    fn drop(&mut self) {
        let _ = self.0.end();
    }
}

fn byte_of(page: usize) -> u8 {
    (page % 255) as u8 + 1
}

fn gpa(page: usize) -> u64 {
    (page * PAGE_BYTES) as u64
}

/// Memory in which all bytes of a page are equal, of huge pages if the host has some.
fn filled() -> GuestRam {
    let ram = GuestRam::anonymous(BYTES as u64);
    fill(&ram);
    let _ = ram.treat(&(0..BYTES as u64), Treatment::Collapse);
    ram
}

fn fill(ram: &GuestRam) {
    (0..PAGES).for_each(|page| ram.write(gpa(page), &[byte_of(page); PAGE_BYTES]).unwrap());
}

/// Makes these pages missing.
fn without(ram: &GuestRam, pages: Range<usize>) -> Missing {
    let faults = MissingPages::open().expect(
        "these tests need a userfaultfd that reports the kernel's accesses: /dev/userfaultfd, or root",
    );
    let missing = Missing::begin(ram, faults).unwrap();
    let mut words = vec![0; ram.chunks()];
    pages.for_each(|page| words[page / CHUNK_PAGES] |= 1 << (page % CHUNK_PAGES));
    missing.clear(&words).unwrap();
    missing
}

fn read(ram: &GuestRam, page: usize) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_BYTES];
    ram.read(gpa(page), &mut bytes).unwrap();
    bytes
}

/// Returns what is wanted once a thread waits.
fn next_wanted(missing: &Missing) -> Vec<ChunkPages> {
    let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let faults = missing.faults().unwrap();
    let mut watched = [PollFd::new(faults.pages(), PollFlags::IN)];
    let count = poll(&mut watched, Some(&patience)).unwrap();
    assert_eq!(count, 1, "no thread waits for a page");
    missing.wanted().unwrap()
}

/// Answers those who wait for pages that are not missing, until `is_over`.
fn answer(missing: &Missing, is_over: impl Fn() -> bool) {
    while !is_over() {
        missing.wait(Some(Duration::from_millis(1))).unwrap();
        assert_eq!(missing.wanted().unwrap(), []);
    }
}

/// Whether any of the memory is registered.
fn is_registered(ram: &GuestRam) -> bool {
    let (part, _) = ram.part(&(0..BYTES as u64)).unwrap();
    let addresses = part.addresses();
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut is_inside, mut found) = (false, false);
    for line in text.lines() {
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        if let Some((Some(start), Some(end))) = range.map(|(start, end)| (hex(start), hex(end))) {
            is_inside = start < addresses.end && end > addresses.start;
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            found |= is_inside && flags.split(' ').any(|flag| ["um", "ui"].contains(&flag));
        }
    }
    found
}

#[test]
fn pages_that_the_guest_gives_back_need_not_arrive() {
    let ram = filled();
    let faults = MissingPages::open().expect("these tests need /dev/userfaultfd, or root");
    assert!(ram.is_complete());
    let missing = ram.follow(faults).unwrap();
    assert!(!ram.is_complete());
    let mut words = vec![0; CHUNKS];
    words[0] = u64::MAX;
    missing.clear(&words).unwrap();
    let _end = End(&missing);

    assert_eq!(ram.discard(&(0..gpa(3))).unwrap(), gpa(3));
    assert_eq!(missing.left(), 61);
    missing.end().unwrap();
    assert!(ram.is_complete());
    ram.discard(&(gpa(3)..gpa(64))).unwrap();
    assert_eq!(missing.left(), 61, "it is memory like any other now");
    assert!(!ram.is_missing_in(&(0..gpa(64))));
    assert_eq!(read(&ram, 2), [0; PAGE_BYTES]);
}

#[test]
fn an_access_waits_until_its_page_arrives() {
    let ram = filled();
    let missing = without(&ram, 67..69);
    assert!(is_registered(&ram));
    thread::scope(|scope| {
        let _end = End(&missing);
        let reader = scope.spawn(|| read(&ram, 67));
        assert_eq!(next_wanted(&missing), [(1, 1 << 3)]);
        assert!(!reader.is_finished());
        // It asks for the page once, however many wait for it.
        let writer = scope.spawn(|| ram.write(gpa(67) + 8, &[1]).unwrap());
        assert_eq!(next_wanted(&missing), []);
        assert_eq!(missing.waited_for(), [(1, 1 << 3)]);
        assert_eq!((missing.missing(), missing.left()), (vec![(1, 0b11 << 3)], 2));
        assert!(missing.is_in(&(gpa(127)..gpa(128))), "in the same chunk");
        assert!(!missing.is_in(&(0..gpa(64))) && !missing.is_in(&(gpa(128)..gpa(192))));

        assert_eq!(missing.place(1, 3, &[9; PAGE_BYTES]).unwrap(), 1);
        assert_eq!(reader.join().unwrap()[9..], [9; PAGE_BYTES - 9]);
        writer.join().unwrap();
        assert_eq!((missing.waited_for(), missing.left()), (vec![], 1));
        assert_eq!(missing.place_zeros(1, !0).unwrap(), 1);
        assert_eq!((missing.missing(), missing.left()), (vec![], 0));
    });
    assert!(!is_registered(&ram));
    assert_eq!(read(&ram, 67)[..10], [9, 9, 9, 9, 9, 9, 9, 9, 1, 9]);
    assert_eq!(read(&ram, 68), [0; PAGE_BYTES]);
    for page in (0..PAGES).filter(|page| !(67..69).contains(page)) {
        assert_eq!(read(&ram, page), [byte_of(page); PAGE_BYTES], "page {page}");
    }
}

#[test]
fn a_page_that_arrives_again_changes_nothing() {
    let ram = filled();
    let missing = without(&ram, 0..4);
    let _end = End(&missing);
    assert_eq!(missing.place(0, 1, &[7; PAGE_BYTES]).unwrap(), 1);
    ram.write(gpa(1), &[8; PAGE_BYTES]).unwrap();
    assert_eq!(missing.place(0, 1, &[7; PAGE_BYTES]).unwrap(), 0);
    assert_eq!(missing.place_zeros(0, 0b10).unwrap(), 0);
    // It comes together with others, of which some are missing.
    assert_eq!(missing.place(0, 0, &[6; 6 * PAGE_BYTES]).unwrap(), 3);
    let first: Vec<u8> = (0..6).map(|page| read(&ram, page)[0]).collect();
    assert_eq!(first, [6, 8, 6, 6, byte_of(4), byte_of(5)]);
    assert_eq!(missing.left(), 0);
}

#[test]
fn memory_that_was_never_written_reads_as_zeros_without_a_request() {
    let ram = GuestRam::anonymous(BYTES as u64);
    let missing = without(&ram, 5..6);
    thread::scope(|scope| {
        let _end = End(&missing);
        let reader = scope.spawn(|| [read(&ram, 4), read(&ram, 600)].concat());
        answer(&missing, || reader.is_finished());
        assert_eq!(reader.join().unwrap(), [0; 2 * PAGE_BYTES]);
        ram.write(gpa(4), &[3; PAGE_BYTES]).unwrap();
        assert_eq!(missing.left(), 1);
    });
}

#[test]
fn what_a_balloon_takes_need_not_arrive() {
    let ram = filled();
    let missing = without(&ram, 60..70);
    thread::scope(|scope| {
        let _end = End(&missing);
        let reader = scope.spawn(|| read(&ram, 67));
        assert_eq!(next_wanted(&missing), [(1, 1 << 3)]);
        // Pages 62 to 71, the last two of which are there.
        assert!(missing.waits().oldest.is_some());
        missing.discard(0, &(62 * PAGE_BYTES..72 * PAGE_BYTES)).unwrap();
        answer(&missing, || reader.is_finished());
        assert_eq!(reader.join().unwrap(), [0; PAGE_BYTES]);
        let waits = missing.waits();
        assert!(waits.ended.len() == 1 && waits.oldest.is_none(), "{waits:?}");
        assert_eq!(missing.missing(), [(0, 0b11 << 60)]);
        assert_eq!(missing.place(1, 3, &[7; PAGE_BYTES]).unwrap(), 0, "too late");

        let rest = scope.spawn(|| (62..73).map(|page| read(&ram, page)[0]).collect::<Vec<_>>());
        answer(&missing, || rest.is_finished());
        let mut expected = vec![0; 11];
        expected[10] = byte_of(72);
        assert_eq!(rest.join().unwrap(), expected);
    });
}

#[test]
fn system_calls_on_guest_memory_wait_too() {
    type Call = fn(&GuestRam, GuestAddress, &mut File);
    let ram = filled();
    let missing = without(&ram, 0..PAGES);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[7; 16]).unwrap();
    let calls: [(usize, Call); 2] = [
        (100, |ram, at, file| ram.memory().read_exact_volatile_from(at, file, 16).unwrap()),
        (1000, |ram, at, file| ram.memory().write_all_volatile_to(at, file, 16).unwrap()),
    ];
    thread::scope(|scope| {
        let _end = End(&missing);
        for (page, call) in calls {
            let (ram, at) = (&ram, GuestAddress(gpa(page) + 8));
            file.seek(SeekFrom::Start(0)).unwrap();
            let mut file = file.try_clone().unwrap();
            let caller = scope.spawn(move || call(ram, at, &mut file));
            let (chunk, place) = (page / CHUNK_PAGES, page % CHUNK_PAGES);
            assert_eq!(next_wanted(&missing), [(chunk, 1 << place)]);
            missing.place(chunk, place, &[byte_of(page); PAGE_BYTES]).unwrap();
            assert_eq!(missing.waits().ended.len(), 1);
            caller.join().unwrap();
        }
    });
    let mut expected = [byte_of(100); PAGE_BYTES];
    expected[8..24].fill(7);
    assert_eq!(read(&ram, 100), expected);
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut written = Vec::new();
    file.read_to_end(&mut written).unwrap();
    assert_eq!(written, [byte_of(1000); 16]);
}

#[test]
fn a_vcpu_waits_too() {
    let vm = vm_with(16, TOUCH_PAGES, &[[DATA, 3]]);
    let first = DATA as usize / PAGE_BYTES;
    // Dropped before the VM, so that a test that fails leaves no vCPU waiting.
    let missing = without(vm.ram(), first..first + 3);
    vm.resume().unwrap();
    for page in first..first + 3 {
        let (chunk, place) = (page / CHUNK_PAGES, page % CHUNK_PAGES);
        // KVM may wait for one page on two threads.
        let mut wanted = std::iter::repeat_with(|| next_wanted(&missing));
        let wanted = wanted.find(|wanted| !wanted.is_empty());
        assert_eq!(wanted, Some(vec![(chunk, 1 << place)]));
        missing.place(chunk, place, &[1; PAGE_BYTES]).unwrap();
    }
    let before = u64::from_ne_bytes([1; 8]);
    for page in first..first + 3 {
        wait_for_more(&vm, gpa(page), before);
    }
    assert_eq!(missing.left(), 0);
    vm.pause().unwrap();
    assert_eq!(word(&vm, gpa(first) + 8), before);
}

#[test]
fn an_end_lets_those_who_wait_continue() {
    let ram = filled();
    let missing = without(&ram, 0..1);
    let faults = Arc::downgrade(&missing.faults().unwrap());
    thread::scope(|scope| {
        let end = End(&missing);
        let reader = scope.spawn(|| read(&ram, 0));
        assert_eq!(next_wanted(&missing), [(0, 1)]);
        drop(end);
        assert_eq!(reader.join().unwrap(), [0; PAGE_BYTES]);
    });
    assert!(faults.upgrade().is_none(), "the userfaultfd is still open");
    assert_eq!(missing.wanted().unwrap(), []);
    missing.end().unwrap();
    assert_eq!(
        missing.place(0, 0, &[7; PAGE_BYTES]).unwrap_err().raw_os_error(),
        Some(libc::ENOENT)
    );
}

#[test]
fn a_wait_ends_when_there_is_nothing_more_to_wait_for() {
    let steps: [fn(&Missing); 5] = [
        |missing| missing.interrupt(),
        |missing| missing.end().unwrap(),
        |missing| assert_eq!(missing.place(0, 0, &[7; 2 * PAGE_BYTES]).unwrap(), 2),
        |missing| assert_eq!(missing.place_zeros(0, 0b11).unwrap(), 2),
        |missing| assert!(missing.discard(0, &(0..2 * PAGE_BYTES)).unwrap().is_some()),
    ];
    for (index, step) in steps.into_iter().enumerate() {
        for is_before in [true, false] {
            let ram = filled();
            let missing = without(&ram, 0..2);
            let began = Instant::now();
            thread::scope(|scope| {
                let _end = End(&missing);
                if is_before {
                    step(&missing);
                }
                let waits = scope.spawn(|| missing.wait(Some(PATIENCE)).unwrap());
                if !is_before {
                    step(&missing);
                }
                waits.join().unwrap();
            });
            assert!(began.elapsed() < PATIENCE, "step {index} ends no wait");
        }
    }
}

#[test]
fn a_wait_that_has_ended_does_not_end_the_next_one() {
    let ram = filled();
    let missing = without(&ram, 0..2);
    let _end = End(&missing);
    missing.interrupt();
    missing.wait(None).unwrap();
    missing.place(0, 0, &[7; PAGE_BYTES]).unwrap();
    let moment = Duration::from_millis(20);
    let began = Instant::now();
    missing.wait(Some(moment)).unwrap();
    assert!(began.elapsed() >= moment, "a page is left");
}

#[test]
fn pages_that_the_guest_does_not_have_are_refused() {
    let ram = filled();
    let missing = without(&ram, 0..PAGES);
    let _end = End(&missing);
    let page = [7; PAGE_BYTES];
    let results = [
        missing.place(CHUNKS, 0, &page).map(drop),
        missing.place(usize::MAX, 0, &page).map(drop),
        missing.place(0, CHUNK_PAGES, &page).map(drop),
        missing.place(0, CHUNK_PAGES - 1, &[7; 2 * PAGE_BYTES]).map(drop),
        missing.place(0, usize::MAX, &page).map(drop),
        missing.place(0, 0, &page[1..]).map(drop),
        missing.place_zeros(CHUNKS, 1).map(drop),
        missing.clear(&[0; CHUNKS - 1]),
        missing.discard(1, &(0..PAGE_BYTES)).map(drop),
    ];
    for (number, result) in results.into_iter().enumerate() {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput, "{number}");
    }
    assert!(missing.discard(0, &(0..BYTES + PAGE_BYTES)).is_err());
    assert!(missing.discard(0, &(1..PAGE_BYTES)).is_err());
    assert_eq!(missing.left(), PAGES as u64, "nothing has changed");
}

/// The content that pages arrive with, and that the guest gives them afterwards.
fn content(page: usize, is_written: bool) -> Vec<u8> {
    let word = (page as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(is_written);
    word.to_le_bytes().repeat(PAGE_BYTES / 8)
}

/// Reads each of `pages` when it arrives and overwrites it, in random order, and reads again what
/// it has written before.
fn use_pages(ram: &GuestRam, mut pages: Vec<usize>) {
    // xorshift64
    let mut random = pages.len() as u64 + pages[0] as u64;
    let mut number = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 20) as usize % below
    };
    let mut written: Vec<usize> = Vec::new();
    while !pages.is_empty() {
        let page = pages.swap_remove(number(pages.len()));
        assert!(read(ram, page) == content(page, false), "page {page} is not what was sent");
        ram.write(gpa(page), &content(page, true)).unwrap();
        written.push(page);
        let before = written[number(written.len())];
        assert!(read(ram, before) == content(before, true), "page {before} was overwritten");
    }
}

/// Places pages for which threads wait until `stop` is closed.
fn serve(missing: &Missing, stop: &PipeReader) -> u64 {
    let (mut served, faults) = (0, missing.faults().unwrap());
    loop {
        let mut watched =
            [PollFd::new(faults.pages(), PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        poll(&mut watched, None).unwrap();
        if !watched[1].revents().is_empty() {
            return served;
        }
        for (chunk, mask) in missing.wanted().unwrap() {
            for page in runs::of_mask(mask).flatten() {
                let content = content(chunk * CHUNK_PAGES + page, false);
                served += u64::from(missing.place(chunk, page, &content).unwrap());
            }
        }
    }
}

/// Places all chunks in this order, as far as they have not arrived; returns the number of pages.
fn send(missing: &Missing, chunks: impl Iterator<Item = usize>) -> u64 {
    let place = |chunk: usize| {
        let pages = chunk * CHUNK_PAGES..(chunk + 1) * CHUNK_PAGES;
        let content: Vec<u8> = pages.flat_map(|page| content(page, false)).collect();
        u64::from(missing.place(chunk, 0, &content).unwrap())
    };
    chunks.map(place).sum()
}

#[test]
fn no_page_is_lost_and_none_comes_twice_whatever_arrives_when() {
    all_arrives(&filled());
}

/// Has all pages arrive from several sides while threads use them.
fn all_arrives(ram: &GuestRam) {
    let missing = without(ram, 0..PAGES);
    let (stopped, stop) = std::io::pipe().unwrap();
    thread::scope(|scope| {
        let _end = End(&missing);
        let server = scope.spawn(|| serve(&missing, &stopped));
        let users: Vec<_> = (0..4)
            .map(|user| (user..PAGES).step_by(4).collect::<Vec<_>>())
            .map(|pages| scope.spawn(move || use_pages(ram, pages)))
            .collect();
        // The background sends everything, and so does another connection.
        let background = scope.spawn(|| send(&missing, 0..CHUNKS));
        let again = scope.spawn(|| send(&missing, (0..CHUNKS).rev()));
        users.into_iter().for_each(|user| user.join().unwrap());
        let placed = background.join().unwrap() + again.join().unwrap();
        drop(stop);
        assert_eq!(placed + server.join().unwrap(), PAGES as u64);
        assert_eq!((missing.left(), missing.missing()), (0, vec![]));
    });
    for page in 0..PAGES {
        assert!(read(ram, page) == content(page, true), "page {page}");
    }
}

proptest! {
    #[test]
    fn runs_are_the_set_bits(mask: u64) {
        let found: Vec<_> = runs::of_mask(mask).collect();
        let back = found.iter().fold(0, |all, run| all | mask_of(run));
        prop_assert_eq!(back, mask);
        prop_assert!(found.windows(2).all(|two| two[0].end < two[1].start));
    }
}

#[test]
fn masks_reach_from_nothing_to_a_whole_chunk() {
    for (pages, mask) in [(0..0, 0), (0..64, !0), (63..64, 1 << 63), (3..5, 0b11000)] {
        assert_eq!(mask_of(&pages), mask);
    }
    assert!(runs::of_mask(!0).eq(std::iter::once(0..64)));
    assert_eq!(runs::of_mask(0).count(), 0);
}
