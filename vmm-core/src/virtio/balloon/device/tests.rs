//! The balloon on a test bench, with valid and hostile drivers.

mod hints;

use proptest::prelude::*;
use vm_memory::GuestMemoryRegion;
use vm_memory::bitmap::Bitmap;

use super::super::statistics::tests::buffer;
use super::*;
use crate::virtio::backend::BackendState;
use crate::virtio::testing::{Bench, SIZE, WRITABLE};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const REPORTING: usize = 4;
/// Address of the requests.
const REQUEST: u64 = 0x8000;
/// Address of the pages that are given up, at 1 MiB, filled with sevens.
const PAGES: u64 = 1 << 20;
/// The number of the first of them.
const PFN: u32 = (PAGES / PAGE_BYTES) as u32;
const PAGE_BYTES: u64 = super::super::PAGE_BYTES;

fn bench() -> Bench {
    let bench = Bench::new(Box::<BalloonDevice>::default());
    prepare(&bench);
    bench
}

/// A bench whose driver accepts no more than `features`.
fn bench_with(features: u64) -> Bench {
    let mut bench = Bench::switched_off(Box::<BalloonDevice>::default());
    bench.backend.activate(features, &bench.registers);
    bench.backend.resume();
    bench.run();
    prepare(&bench);
    bench
}

fn prepare(bench: &Bench) {
    bench.ram.write(PAGES, &[7; 1 << 20]).unwrap();
    bench.ram.mappings().for_each(|region| (**region).bitmap().reset());
}

fn report(bench: &mut Bench) -> BalloonReport {
    bench.backend.on_device(|balloon: &mut BalloonDevice, _| balloon.report()).unwrap()
}

fn set_target(bench: &mut Bench, pages: u32) {
    bench
        .backend
        .on_device(|balloon: &mut BalloonDevice, rings| {
            balloon.set_target(pages, SetBy::Operator, rings);
        })
        .unwrap();
}

fn ask(bench: &mut Bench) {
    bench.backend.on_device(|balloon: &mut BalloonDevice, _| balloon.ask()).unwrap();
    bench.run();
}

/// Returns which of the pages from [`PAGES`] on hold zeros; the others must hold sevens.
fn zeroed(bench: &Bench) -> Vec<u32> {
    let bytes = bench.bytes(PAGES, 1 << 20);
    let pages = (0..).zip(bytes.chunks(PAGE_BYTES as usize));
    pages
        .filter_map(|(index, page)| {
            assert!(page.iter().all(|byte| *byte == page[0] && [0, 7].contains(byte)), "{index}");
            (page[0] == 0).then_some(index)
        })
        .collect()
}

/// Returns which of the pages from [`PAGES`] on count as written.
fn written(bench: &Bench) -> Vec<u32> {
    let region = bench.ram.mappings().next().unwrap();
    let at = |index: u32| PAGES + u64::from(index) * PAGE_BYTES;
    (0..256).filter(|index| region.bitmap().dirty_at(at(*index) as usize)).collect()
}

fn offer_pfns(bench: &Bench, queue: usize, pfns: &[u32]) {
    let bytes: Vec<u8> = pfns.iter().flat_map(|pfn| pfn.to_le_bytes()).collect();
    bench.ram.write(REQUEST, &bytes).unwrap();
    bench.driver(queue).offer(&[(REQUEST, bytes.len() as u32, 0)]);
}

fn offer_statistics(bench: &Bench, pairs: &[(u16, u64)]) {
    let bytes = buffer(pairs);
    bench.ram.write(REQUEST, &bytes).unwrap();
    bench.driver(STATISTICS).offer(&[(REQUEST, bytes.len() as u32, 0)]);
}

fn write_config(bench: &mut Bench, at: usize, value: u32) {
    assert!(bench.signals.write_config(at, &value.to_le_bytes()));
    bench.backend.config_written();
}

fn config_word(bench: &Bench, at: usize) -> u32 {
    let mut word = [0; 4];
    bench.signals.read_config(at, &mut word);
    u32::from_le_bytes(word)
}

#[test]
fn inflated_pages_are_zeros_and_count_as_written() {
    let mut bench = bench();
    offer_pfns(&bench, INFLATE, &[PFN + 9, PFN + 2, PFN + 3, PFN + 2]);
    bench.kick(INFLATE);
    assert_eq!(bench.driver(INFLATE).used(), [(0, 0)]);
    assert_eq!(zeroed(&bench), [2, 3, 9]);
    assert_eq!(written(&bench), [2, 3, 9]);
    assert_eq!(report(&mut bench).discarded.inflated_bytes, 3 * PAGE_BYTES);
}

#[test]
fn deflated_pages_are_the_guests_own_business() {
    let mut bench = bench();
    offer_pfns(&bench, DEFLATE, &[PFN, u32::MAX]);
    bench.kick(DEFLATE);
    assert_eq!(bench.driver(DEFLATE).used(), [(0, 0)]);
    assert!(zeroed(&bench).is_empty());
    assert!(!bench.signals.needs_reset());
}

#[test]
fn a_request_may_be_cut_anywhere() {
    let mut bench = bench();
    bench.ram.write(REQUEST, &(PFN + 1).to_le_bytes()).unwrap();
    bench.ram.write(REQUEST + 0x100, &(PFN + 2).to_le_bytes()[1..]).unwrap();
    let low_byte = (PFN + 2).to_le_bytes()[0];
    bench.ram.write(REQUEST + 4, &[low_byte]).unwrap();
    let pieces =
        [(REQUEST, 3, 0), (REQUEST + 3, 2, 0), (REQUEST + 0x100, 3, 0), (0x9000, 8, WRITABLE)];
    bench.driver(INFLATE).offer(&pieces);
    bench.driver(INFLATE).offer(&[(0x9000, 4, WRITABLE)]);
    bench.kick(INFLATE);
    assert_eq!(zeroed(&bench), [1, 2]);
    assert_eq!(bench.driver(INFLATE).used().len(), 2, "one without any pages too");
}

#[test]
fn a_page_outside_memory_breaks_the_queue_and_nothing_is_dropped() {
    for outside in [1024, 1 << 19, u32::MAX] {
        let mut bench = bench();
        offer_pfns(&bench, INFLATE, &[PFN, outside]);
        bench.kick(INFLATE);
        assert!(bench.signals.needs_reset(), "{outside:#x}");
        assert!(zeroed(&bench).is_empty());
        assert_eq!(bench.driver(INFLATE).used(), []);
    }
}

#[test]
fn a_request_without_end_breaks_the_queue_before_it_is_read() {
    let mut bench = bench();
    let all_memory = vec![(0, 4 << 20, 0); usize::from(SIZE)];
    bench.driver(INFLATE).offer(&all_memory);
    bench.kick(INFLATE);
    assert!(bench.signals.needs_reset());
    assert!(zeroed(&bench).is_empty());
}

#[test]
fn the_longest_request_is_served() {
    let mut bench = bench();
    let pfns: Vec<u32> = (0..PFNS_MAX as u32).map(|index| PFN + index % 256).collect();
    let bytes: Vec<u8> = pfns.iter().flat_map(|pfn| pfn.to_le_bytes()).collect();
    let at = 0x20_0000;
    bench.ram.write(at, &bytes).unwrap();
    bench.driver(INFLATE).offer(&[(at, bytes.len() as u32, 0)]);
    bench.kick(INFLATE);
    assert_eq!(zeroed(&bench).len(), 256);
}

#[test]
fn reported_pages_are_dropped_before_they_are_answered() {
    let mut bench = bench();
    let pieces = [
        (PAGES + 5 * PAGE_BYTES, 2 * PAGE_BYTES as u32, WRITABLE),
        (PAGES + 6 * PAGE_BYTES + 1, 2 * PAGE_BYTES as u32, WRITABLE),
    ];
    bench.driver(REPORTING).offer(&pieces);
    bench.kick(REPORTING);
    assert_eq!(bench.driver(REPORTING).used(), [(0, 0)]);
    assert_eq!(zeroed(&bench), [5, 6, 7]);
    assert_eq!(written(&bench), [5, 6, 7]);
    assert_eq!(report(&mut bench).discarded.reported_bytes, 3 * PAGE_BYTES);
}

#[test]
fn a_report_of_all_memory_over_and_over_is_one_of_all_memory() {
    let mut bench = Bench::new(Box::<BalloonDevice>::default());
    let table = 0x3f_0000;
    let high_half = (2 << 20, 1 << 20, WRITABLE);
    for index in 0..1000u16 {
        let last = if index == 999 { 0 } else { crate::virtio::testing::NEXT };
        let (gpa, len, flags) = high_half;
        let at = table + u64::from(index) * 16;
        bench.driver(REPORTING).descriptor(at, (gpa, len, flags | last), index + 1);
    }
    bench.driver(REPORTING).offer(&[(table, 16_000, crate::virtio::testing::INDIRECT)]);
    bench.kick(REPORTING);
    assert_eq!(bench.driver(REPORTING).used(), [(0, 0)]);
    assert_eq!(report(&mut bench).discarded.reported_bytes, 1 << 20);
}

#[test]
fn readable_buffers_of_a_report_are_ignored() {
    let mut bench = bench();
    bench.driver(REPORTING).offer(&[(PAGES, PAGE_BYTES as u32, 0)]);
    bench.kick(REPORTING);
    assert_eq!(bench.driver(REPORTING).used(), [(0, 0)]);
    assert!(zeroed(&bench).is_empty());
}

#[test]
fn reported_pages_keep_their_pattern_when_the_driver_wants_one() {
    let mut bench = bench();
    assert!(report(&mut bench).reporting, "a pattern of zeros is what dropped pages hold");
    write_config(&mut bench, 12, 0xaaaa_aaaa);
    assert!(!report(&mut bench).reporting);
    bench.driver(REPORTING).offer(&[(PAGES, PAGE_BYTES as u32, WRITABLE)]);
    bench.kick(REPORTING);
    assert_eq!(bench.driver(REPORTING).used(), [(0, 0)], "answered all the same");
    assert!(zeroed(&bench).is_empty());

    offer_pfns(&bench, INFLATE, &[PFN]);
    bench.kick(INFLATE);
    assert_eq!(zeroed(&bench), [0], "the driver fills these anew when it takes them back");
}

#[test]
fn a_pattern_without_the_feature_means_nothing() {
    let mut bench = bench_with(feature::REPORTING | feature::STATISTICS);
    write_config(&mut bench, 12, 1);
    bench.driver(REPORTING).offer(&[(PAGES, PAGE_BYTES as u32, WRITABLE)]);
    bench.kick(REPORTING);
    assert_eq!(zeroed(&bench), [0]);
}

#[test]
fn the_reporting_queue_is_found_by_any_numbering() {
    let table = [
        (feature::REPORTING, [2, 4].as_slice(), [3].as_slice()),
        (feature::REPORTING | feature::STATISTICS, &[3, 4], &[]),
        (feature::STATISTICS, &[], &[3, 4]),
        (0, &[], &[2, 3, 4]),
    ];
    for (features, reporting, unused) in table {
        for (queue, expected) in
            reporting.iter().map(|queue| (*queue, 1)).chain(unused.iter().map(|queue| (*queue, 0)))
        {
            let mut bench = bench_with(features);
            bench.driver(queue).offer(&[(PAGES, PAGE_BYTES as u32, WRITABLE)]);
            bench.kick(queue);
            assert_eq!(zeroed(&bench).len(), expected, "{features:#x}, queue {queue}");
            assert_eq!(bench.driver(queue).used().len(), expected, "{features:#x}, queue {queue}");
        }
    }
}

#[test]
fn statistics_are_kept_until_new_ones_are_wanted() {
    let mut bench = bench();
    assert!(report(&mut bench).statistics.is_none());
    offer_statistics(&bench, &[(4, 1000)]);
    bench.kick(STATISTICS);
    let given = report(&mut bench).statistics.unwrap();
    assert_eq!(given.values.free_bytes, Some(1000));
    assert_eq!(bench.driver(STATISTICS).used(), []);

    ask(&mut bench);
    assert_eq!(bench.driver(STATISTICS).used(), [(0, 0)]);
    assert_eq!(bench.signals.interrupt_status(), 1);
    assert_eq!(report(&mut bench).statistics, Some(given), "the old ones until new ones come");
    ask(&mut bench);
    offer_statistics(&bench, &[(4, 2000)]);
    bench.kick(STATISTICS);
    bench.kick(STATISTICS);
    assert_eq!(bench.driver(STATISTICS).used().len(), 1, "two questions, one answer");
    let newer = report(&mut bench).statistics.unwrap();
    assert_eq!(newer.values.free_bytes, Some(2000));
    assert!(newer.at >= given.at);
}

#[test]
fn a_driver_with_many_buffers_of_statistics_makes_no_more_work_than_one() {
    let mut bench = bench();
    for _ in 0..5 {
        offer_statistics(&bench, &[(4, 1)]);
    }
    bench.kick(STATISTICS);
    bench.kick(STATISTICS);
    assert_eq!(bench.driver(STATISTICS).used(), []);
    for answered in 1..=3 {
        ask(&mut bench);
        assert_eq!(bench.driver(STATISTICS).used().len(), answered);
    }
    assert_eq!(bench.backend.idle_for(Instant::now()), None);
}

#[test]
fn statistics_of_any_length_are_read_up_to_the_limit() {
    let mut bench = bench();
    bench.driver(STATISTICS).offer(&[(0, 4 << 20, 0), (0, 4 << 20, 0)]);
    bench.kick(STATISTICS);
    assert!(report(&mut bench).statistics.is_some());
    ask(&mut bench);
    bench.driver(STATISTICS).offer(&[(0x9000, 8, WRITABLE)]);
    bench.kick(STATISTICS);
    assert_eq!(report(&mut bench).statistics.unwrap().values, Statistics::default());
    assert!(!bench.signals.needs_reset());
}

#[test]
fn nothing_is_answered_while_paused() {
    let mut bench = bench();
    offer_statistics(&bench, &[(4, 1)]);
    bench.kick(STATISTICS);
    bench.backend.pause();
    ask(&mut bench);
    set_target(&mut bench, 5);
    assert_eq!(bench.driver(STATISTICS).used(), []);
    bench.backend.resume();
    bench.run();
    assert_eq!(bench.driver(STATISTICS).used(), [(0, 0)]);
    assert_eq!(config_word(&bench, 0), 5);
}

#[test]
fn the_driver_receives_its_target_and_reports_its_progress() {
    let mut bench = bench();
    set_target(&mut bench, 100);
    assert_eq!(config_word(&bench, 0), 100);
    assert_eq!(bench.signals.config_generation(), 1);
    assert_eq!(bench.signals.interrupt_status(), 2);
    write_config(&mut bench, 4, 60);
    let report = report(&mut bench);
    assert_eq!((report.target_pages, report.actual_pages), (100, 60));
    assert!(!bench.signals.write_config(0, &[0; 4]), "the target is not the driver's");
}

#[test]
fn a_target_waits_for_a_driver_and_outlives_it() {
    let mut bench = Bench::switched_off(Box::<BalloonDevice>::default());
    set_target(&mut bench, 100);
    assert_eq!(bench.signals.interrupt_status(), 0, "there is nobody to interrupt");
    assert!(!report(&mut bench).has_driver);
    let features = feature::PAGE_POISON | feature::REPORTING;
    bench.backend.activate(features, &bench.registers);
    write_config(&mut bench, 4, 60);
    write_config(&mut bench, 12, 1);
    assert!(report(&mut bench).has_driver);

    bench.backend.reset();
    let report = report(&mut bench);
    assert_eq!((report.target_pages, report.actual_pages), (100, 0));
    assert!(!report.has_driver);
    let words: Vec<u32> = (0..16).step_by(4).map(|at| config_word(&bench, at)).collect();
    assert_eq!(words, [100, 0, 0, 0]);
}

/// Moves the guest to another host.
fn move_to(source: &Bench, state: &BackendState) -> Bench {
    let mut destination = Bench::switched_off(Box::<BalloonDevice>::default());
    destination.ram.write(0, &source.bytes(0, 4 << 20)).unwrap();
    let features = BalloonDevice::default().features();
    destination.backend.load(state, Some((features, &source.registers))).unwrap();
    destination
}

#[test]
fn a_saved_balloon_continues_elsewhere() {
    let mut source = bench();
    set_target(&mut source, 100);
    write_config(&mut source, 4, 60);
    offer_statistics(&source, &[(4, 1)]);
    source.kick(STATISTICS);
    source.backend.pause();
    let state = source.backend.save().unwrap();

    let mut destination = move_to(&source, &state);
    assert_eq!(destination.backend.save().unwrap(), state);
    assert_eq!((config_word(&destination, 0), config_word(&destination, 4)), (100, 60));
    let there = report(&mut destination);
    assert_eq!((there.target_pages, there.actual_pages), (100, 60));
    assert!(there.has_driver && there.sends_statistics && there.statistics.is_none());
    destination.backend.resume();
    destination.run();
    ask(&mut destination);
    assert_eq!(destination.driver(STATISTICS).used(), [(0, 0)], "the buffer went along");
}

#[test]
fn hostile_states_are_refused_or_harmless() {
    let mut source = bench();
    source.run();
    source.backend.pause();
    let good = source.backend.save().unwrap();
    let features = BalloonDevice::default().features();
    let with = |device: Vec<u8>| BackendState { device, ..good.clone() };
    let load = |state: &BackendState| {
        let mut bench = Bench::switched_off(Box::<BalloonDevice>::default());
        let loaded = bench.backend.load(state, Some((features, &source.registers)));
        loaded.map(|()| bench)
    };
    assert!(load(&with(Vec::new())).is_err());
    assert!(load(&with(vec![0xff; 100])).is_err());
    let held = |head| SavedBalloon { held: Some(head), ..SavedBalloon::default() };
    let error = load(&with(held(QUEUE_SIZE).to_bytes().unwrap())).err().unwrap();
    assert!(error.contains("no place"), "{error}");
    let mut odd = load(&with(held(SIZE).to_bytes().unwrap())).unwrap();
    odd.backend.resume();
    ask(&mut odd);
    assert!(odd.signals.needs_reset(), "the driver's queue is smaller");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Random rings and descriptors on all queues: the device survives and becomes idle.
    #[test]
    fn no_driver_breaks_the_balloon(
        rings in prop::collection::vec(any::<u8>(), 5 * 0x1000),
        descriptors in prop::collection::vec((0..6u64 << 20, any::<u32>(), 0..8u16, 0..20u16), 16),
        available in 0..20u16,
        config in prop::collection::vec((0..16usize, any::<u32>()), 0..5),
    ) {
        let mut bench = bench();
        let first = bench.registers[0].descriptors;
        bench.ram.write(first, &rings).unwrap();
        for queue in 0..queues::COUNT {
            for (index, (gpa, len, flags, next)) in (0..).zip(&descriptors) {
                let buffer = (*gpa, len >> (len % 32), *flags);
                bench.driver(queue).own_descriptor(index, buffer, *next);
            }
            for head in 0..available {
                bench.driver(queue).make_available(head);
            }
            bench.driver(queue).set_available_index(available);
        }
        for (at, value) in config {
            let _ = bench.signals.write_config(at, &value.to_le_bytes());
            bench.backend.config_written();
        }
        for queue in 0..queues::COUNT {
            bench.kick(queue);
            ask(&mut bench);
        }
        bench.backend.pause();
        let state = bench.backend.save().unwrap();
        if !bench.signals.needs_reset() {
            let mut next = move_to(&bench, &state);
            prop_assert_eq!(next.backend.save().unwrap(), state);
        }
        bench.backend.reset();
        prop_assert_eq!(report(&mut bench).actual_pages, 0);
    }
}
