//! Free page hinting: what a driver sends on request, and what it sends without one.

use super::*;
use crate::virtio::balloon::hints::{DONE, HintProgress, ID_MIN, STOP};

/// The queue of hints.
const HINTS: usize = 3;
/// Address of the command ids that the driver sends.
const WORD: u64 = 0x7000;
const FEATURES: u64 = feature::STATISTICS | feature::HINTS | feature::DEFLATE_ON_OOM;

fn begin(bench: &mut Bench) {
    bench
        .backend
        .on_device(|balloon: &mut BalloonDevice, rings| balloon.begin_hints(rings))
        .unwrap();
    bench.run();
}

/// Ends the command and returns the numbers of the pages that were named.
fn end(bench: &mut Bench) -> Vec<usize> {
    let words = bench
        .backend
        .on_device(|balloon: &mut BalloonDevice, rings| balloon.end_hints(rings))
        .unwrap();
    let is_set = |page: &usize| words[page / 64] >> (page % 64) & 1 == 1;
    (0..words.len() * 64).filter(is_set).collect()
}

fn progress(bench: &mut Bench) -> HintProgress {
    bench.backend.on_device(|balloon: &mut BalloonDevice, _| balloon.hint_progress()).unwrap()
}

fn command(bench: &Bench) -> u32 {
    config_word(bench, 8)
}

/// Sends the id of the command that the driver answers, or `STOP`.
fn say(bench: &mut Bench, id: u32) {
    bench.ram.write(WORD, &id.to_le_bytes()).unwrap();
    bench.driver(HINTS).offer(&[(WORD, 4, 0)]);
    bench.kick(HINTS);
}

/// Names `count` pages from page `first` on.
fn hint(bench: &mut Bench, first: usize, count: usize) {
    let (gpa, bytes) = (first as u64 * PAGE_BYTES, count as u64 * PAGE_BYTES);
    bench.driver(HINTS).offer(&[(gpa, bytes as u32, WRITABLE)]);
    bench.kick(HINTS);
}

const SOME: HintProgress = HintProgress { pages: 3, complete: false };

#[test]
fn a_driver_names_its_pages_between_two_commands_and_takes_them_back() {
    let mut bench = bench_with(FEATURES);
    assert!(report(&mut bench).gives_hints);
    begin(&mut bench);
    assert_eq!(command(&bench), ID_MIN);
    assert_eq!(bench.signals.interrupt_status() & 2, 2, "the driver is told");
    say(&mut bench, ID_MIN);
    hint(&mut bench, 300, 2);
    hint(&mut bench, 600, 1);
    assert_eq!(progress(&mut bench), SOME);
    say(&mut bench, STOP);
    assert_eq!(progress(&mut bench), HintProgress { complete: true, ..SOME });
    assert_eq!(bench.driver(HINTS).used(), [(0, 0), (1, 0), (2, 0), (3, 0)]);

    let generation = bench.signals.config_generation();
    assert_eq!(end(&mut bench), [300, 301, 600]);
    assert_eq!(command(&bench), DONE);
    assert_eq!(bench.signals.config_generation(), generation + 1);
    assert_eq!(end(&mut bench), Vec::<usize>::new(), "once");
    begin(&mut bench);
    assert_eq!(command(&bench), ID_MIN + 1, "another one than before");
}

#[test]
fn hinted_pages_keep_what_is_in_them() {
    let mut bench = bench_with(FEATURES);
    begin(&mut bench);
    say(&mut bench, ID_MIN);
    hint(&mut bench, PFN as usize, 200);
    assert!(zeroed(&bench).is_empty(), "the guest may have taken them back");
    assert!(written(&bench).is_empty());
}

#[test]
fn pages_that_answer_no_command_or_another_one_do_not_count() {
    let mut bench = bench_with(FEATURES);
    say(&mut bench, ID_MIN);
    hint(&mut bench, 1, 1);
    assert_eq!(end(&mut bench), Vec::<usize>::new());
    begin(&mut bench);
    // The driver had these in the queue before it saw the command.
    hint(&mut bench, 2, 1);
    say(&mut bench, STOP);
    assert!(!progress(&mut bench).complete, "that was the end of something else");
    say(&mut bench, ID_MIN + 1);
    hint(&mut bench, 3, 1);
    say(&mut bench, ID_MIN);
    hint(&mut bench, 4, 1);
    say(&mut bench, STOP);
    hint(&mut bench, 5, 1);
    assert_eq!(end(&mut bench), [4]);
}

#[test]
fn drivers_that_report_or_want_a_pattern_are_not_asked() {
    let poison = FEATURES | feature::PAGE_POISON;
    let table = [
        (FEATURES, 1, true),
        (poison, 0, true),
        (poison, 0xaaaa_aaaa, false),
        (FEATURES | feature::REPORTING, 0, false),
        (poison | feature::REPORTING, 1, false),
        (feature::STATISTICS, 0, false),
    ];
    for (features, pattern, expected) in table {
        let mut bench = bench_with(features);
        write_config(&mut bench, 12, pattern);
        assert_eq!(report(&mut bench).gives_hints, expected, "{features:#x} {pattern}");
        begin(&mut bench);
        assert_eq!(command(&bench) >= ID_MIN, expected, "{features:#x} {pattern}");
        assert_eq!(progress(&mut bench).complete, !expected);
    }
}

#[test]
fn a_balloon_without_reports_offers_hints_alone() {
    let offered = |free_pages| BalloonDevice::new(free_pages).features();
    let [reported, hinted] = [FreePages::Reported, FreePages::Hinted].map(offered);
    assert_eq!(reported & !hinted, feature::REPORTING);
    assert_eq!(hinted & feature::HINTS, feature::HINTS);
}

#[test]
fn a_hint_outside_memory_breaks_the_queue_and_nothing_of_it_counts() {
    let mut bench = bench_with(FEATURES);
    begin(&mut bench);
    say(&mut bench, ID_MIN);
    hint(&mut bench, 1, 1);
    hint(&mut bench, 1023, 2);
    assert!(bench.signals.needs_reset());
    assert_eq!(end(&mut bench), [1]);
}

#[test]
fn short_and_long_commands_are_harmless() {
    let mut bench = bench_with(FEATURES);
    begin(&mut bench);
    bench.ram.write(WORD, &ID_MIN.to_le_bytes()).unwrap();
    bench.driver(HINTS).offer(&[(WORD, 3, 0)]);
    bench.kick(HINTS);
    hint(&mut bench, 1, 1);
    assert_eq!(progress(&mut bench).pages, 0);
    bench.driver(HINTS).offer(&[(WORD, 0x1000, 0), (0, 0x1000, WRITABLE)]);
    bench.kick(HINTS);
    assert_eq!(end(&mut bench), [0], "both in one request");
}

#[test]
fn a_reset_ends_the_hints_and_the_next_driver_starts_without_any() {
    let mut bench = bench_with(FEATURES);
    begin(&mut bench);
    say(&mut bench, ID_MIN);
    hint(&mut bench, 1, 1);
    bench.backend.reset();
    assert_eq!(progress(&mut bench), HintProgress { pages: 0, complete: true });
    assert_eq!(command(&bench), STOP);
    assert_eq!(end(&mut bench), Vec::<usize>::new());
    let registers = bench.registers.clone();
    bench.backend.activate(FEATURES, &registers);
    begin(&mut bench);
    assert_eq!(command(&bench), ID_MIN + 1);
}

#[test]
fn an_arriving_guest_is_asked_to_take_its_pages_back() {
    let mut source = bench_with(FEATURES);
    begin(&mut source);
    say(&mut source, ID_MIN);
    hint(&mut source, 1, 1);
    source.backend.pause();
    let state = source.backend.save().unwrap();

    let mut there = Bench::switched_off(Box::<BalloonDevice>::default());
    there.ram.write(0, &source.bytes(0, 4 << 20)).unwrap();
    there.backend.load(&state, Some((FEATURES, &source.registers))).unwrap();
    assert_eq!(there.backend.save().unwrap(), state);
    assert_eq!(command(&there), DONE);
    assert_eq!(there.signals.interrupt_status(), 0);
    there.backend.resume();
    there.run();
    assert_eq!(there.signals.interrupt_status() & 2, 2);
    assert_eq!(end(&mut there), Vec::<usize>::new());
    begin(&mut there);
    assert_eq!(command(&there), ID_MIN + 1, "the driver remembers the one before");

    // A guest that stays continues to name pages: the requester is still here.
    source.backend.resume();
    source.run();
    assert_eq!(command(&source), ID_MIN);
    assert_eq!(end(&mut source), [1]);
}

#[test]
fn a_state_with_an_impossible_command_is_refused() {
    let state = SavedBalloon { hint_id: 7, ..SavedBalloon::default() }.to_bytes().unwrap();
    let error = BalloonDevice::default().load(&state).unwrap_err();
    assert!(error.contains("id 7"), "{error}");
}

/// A step of the driver or of the host.
#[derive(Debug, Clone)]
enum Turn {
    Begin,
    End,
    Say(u32),
    Hint(u64, u32),
    Reset,
    Move,
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        Just(Turn::Begin),
        Just(Turn::End),
        prop_oneof![Just(STOP), Just(DONE), ID_MIN..ID_MIN + 4, any::<u32>()].prop_map(Turn::Say),
        (0..5u64 << 20, 0..1u32 << 20).prop_map(|(gpa, len)| Turn::Hint(gpa, len)),
        Just(Turn::Reset),
        Just(Turn::Move),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// In any order of steps, only pages count that the driver named since the request, and after
    /// the end the driver always has its pages back.
    #[test]
    fn any_order_of_commands_and_pages_is_harmless(turns in prop::collection::vec(turn(), 0..40)) {
        let mut bench = bench_with(FEATURES);
        let mut named = vec![false; 1024];
        for turn in turns {
            match turn {
                Turn::Begin => {
                    begin(&mut bench);
                    named.fill(false);
                }
                Turn::Say(id) => say(&mut bench, id),
                Turn::Hint(gpa, len) => {
                    bench.driver(HINTS).offer(&[(gpa, len, WRITABLE)]);
                    bench.kick(HINTS);
                    let whole = gpa.div_ceil(PAGE_BYTES)..(gpa + u64::from(len)) / PAGE_BYTES;
                    whole.filter(|page| *page < 1024).for_each(|page| named[page as usize] = true);
                }
                Turn::End => {
                    prop_assert!(end(&mut bench).into_iter().all(|page| named[page]));
                    prop_assert!(command(&bench) < ID_MIN);
                }
                Turn::Reset => {
                    bench.backend.reset();
                    prop_assert_eq!(command(&bench), STOP);
                    bench = bench_with(FEATURES);
                    named.fill(false);
                }
                Turn::Move => {
                    bench.backend.pause();
                    let state = bench.backend.save().unwrap();
                    bench.backend.load(&state, None).err();
                    let driver = Some((FEATURES, bench.registers.as_slice()));
                    if !bench.signals.needs_reset() {
                        bench.backend.load(&state, driver).unwrap();
                    }
                    bench.backend.resume();
                    prop_assert!(command(&bench) < ID_MIN || bench.signals.needs_reset());
                }
            }
        }
    }
}
