//! What is put down, found again, refused and thrown away.

use std::fs;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::*;
use crate::history::{Json, Summary};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Shrink {
    guest: String,
}

#[derive(Debug)]
struct Typed;

impl Payloads for Typed {
    type Plan = Vec<Shrink>;
    type Action = Shrink;
    type Outcome = String;
}

fn shrink(guest: &str) -> Shrink {
    Shrink { guest: guest.to_owned() }
}

fn nightly(tick: u64) -> Trigger {
    Trigger::Schedule { name: "nightly".to_owned(), tick }
}

fn open<P: Payloads>(path: &Path, limits: Limits) -> Opened<P> {
    History::open(path, limits).unwrap()
}

/// A new history in a folder of its own.
fn fresh<P: Payloads>(limits: Limits) -> (tempfile::TempDir, PathBuf, History<P>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history");
    let history = open(&path, limits).history;
    (folder, path, history)
}

#[test]
fn a_first_start_that_was_cut_short_leaves_no_damaged_history() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history");
    let new = folder.path().join("history.new");
    let is_there = || fs::metadata(&path).is_ok_and(|found| found.len() > 0);
    // As on a full disk: there is no room for it.
    fs::create_dir(&new).unwrap();
    History::<Json>::open(&path, Limits::default()).unwrap_err();
    assert!(!is_there());
    fs::remove_dir(&new).unwrap();
    // The power went while it was made.
    fs::write(&new, [0x5a; 5000]).unwrap();
    let mut history = open(&path, Limits::default()).history;
    whole_run(&mut history, 1000, &json!([]));
    assert!(is_there() && !new.exists());
}

fn small() -> Limits {
    Limits {
        run_bytes_max: 3000,
        plan_bytes_max: 1000,
        part_bytes_max: 1000,
        actions_max: 5,
        ..Limits::default()
    }
}

/// Has a run come and go.
fn whole_run(history: &mut History<Json>, started: u64, plan: &Value) -> RunId {
    let run = history.begin(Trigger::Manual, started, plan).unwrap();
    history.finish(run, started + 1, &json!("fine")).unwrap();
    run
}

fn ids(listing: &Listing<Value>) -> Vec<u64> {
    listing.runs.iter().map(|run| run.id.0).collect()
}

#[test]
fn a_plan_that_is_made_anew_takes_the_place_of_the_first() {
    let (_folder, _path, mut history) = fresh::<Typed>(small());
    let run = history.begin(nightly(1000), 1001, &vec![shrink("a")]).unwrap();
    let plan = vec![shrink("b"), shrink("c")];
    history.plan_anew(run, &plan).unwrap();
    assert_eq!(history.run(run).unwrap().plan, plan);
    let error = history.plan_anew(run, &vec![shrink(&"d".repeat(1000))]).unwrap_err();
    assert!(matches!(error, HistoryError::TooLarge { .. }), "{error}");
    assert_eq!(history.run(run).unwrap().plan, plan);
    history.finish(run, 1002, &"fine".to_owned()).unwrap();
    let error = history.plan_anew(run, &plan).unwrap_err();
    assert!(matches!(error, HistoryError::Ended { .. }), "{error}");
}

#[test]
fn a_run_is_found_as_it_was_put_down() {
    let (_folder, path, mut history) = fresh::<Typed>(Limits::default());
    let plan = vec![shrink("a"), shrink("b")];
    let run = history.begin(nightly(1000), 1001, &plan).unwrap();
    assert_eq!(history.run(run).unwrap().summary.state, State::Planned);
    let first = history.act(run, &[(shrink("a"), 4096), (shrink("b"), 8192)]).unwrap();
    assert_eq!((first, history.run(run).unwrap().summary.state), (0, State::Acting));
    assert_eq!(history.act(run, &[(shrink("c"), -100)]).unwrap(), 2);
    let failed = Some("no driver".to_owned());
    history
        .verify(
            run,
            &[
                Found { index: 0, verified_bytes: Some(4000), error: None },
                Found { index: 1, verified_bytes: None, error: failed.clone() },
            ],
        )
        .unwrap();
    assert_eq!(history.run(run).unwrap().summary.state, State::Verifying);
    history.note_error(run, "b has no driver").unwrap();
    history.finish(run, 1100, &"half".to_owned()).unwrap();
    drop(history);

    let Opened { mut history, interrupted, was_repaired } = open::<Typed>(&path, Limits::default());
    assert!(interrupted.is_empty() && !was_repaired);
    let deed = |guest, expected_bytes, verified_bytes, error| Deed {
        action: shrink(guest),
        expected_bytes,
        verified_bytes,
        error,
    };
    let kept = history.run(run).unwrap();
    assert_eq!(kept.plan, plan);
    let deeds = [
        deed("a", 4096, Some(4000), None),
        deed("b", 8192, None, failed),
        deed("c", -100, None, None),
    ];
    assert_eq!(kept.deeds, deeds);
    let summary = Summary {
        id: run,
        trigger: nightly(1000),
        started: 1001,
        ended: Some(1100),
        state: State::Done,
        actions: 3,
        expected_bytes: 12_188,
        verified_bytes: 4000,
        outcome: Some("half".to_owned()),
        errors: vec!["b has no driver".to_owned()],
    };
    assert_eq!(kept.summary, summary);
    assert_eq!(history.last(10).unwrap().runs, [summary]);
}

#[test]
fn what_is_verified_again_counts_once() {
    let (_folder, _, mut history) = fresh::<Json>(Limits::default());
    let run = history.begin(Trigger::Manual, 1, &json!({})).unwrap();
    history.act(run, &[(json!("x"), 10)]).unwrap();
    for verified_bytes in [Some(3), Some(9), None, Some(5)] {
        history.verify(run, &[Found { index: 0, verified_bytes, error: None }]).unwrap();
    }
    assert_eq!(history.run(run).unwrap().summary.verified_bytes, 5);
}

#[test]
fn runs_are_listed_newest_first() {
    let (_folder, _, mut history) = fresh::<Json>(Limits::default());
    for started in [100, 200, 150, 300] {
        whole_run(&mut history, started, &json!({}));
    }
    assert_eq!(ids(&history.last(3).unwrap()), [4, 3, 2]);
    assert_eq!(ids(&history.last(usize::MAX).unwrap()), [4, 3, 2, 1]);
    assert_eq!(ids(&history.since(200).unwrap()), [4, 2]);
    assert_eq!(ids(&history.since(301).unwrap()), [0; 0]);
    assert!(matches!(history.run(RunId(5)), Err(HistoryError::NoSuchRun(RunId(5)))));
}

#[test]
fn the_last_time_of_each_schedule_outlives_its_runs() {
    let (_folder, path, mut history) = fresh::<Json>(Limits { runs_max: 2, ..Limits::default() });
    let weekly = Trigger::Schedule { name: "weekly".to_owned(), tick: 50 };
    for trigger in [weekly, nightly(10), nightly(20), Trigger::Manual, Trigger::Manual] {
        let run = history.begin(trigger, 60, &json!({})).unwrap();
        history.finish(run, 61, &json!({})).unwrap();
    }
    history.note_decided("nightly", 30).unwrap();
    drop(history);
    let mut history = open::<Json>(&path, Limits::default()).history;
    assert_eq!(history.stored().unwrap().runs, 2);
    let expected = BTreeMap::from([("nightly".to_owned(), 30), ("weekly".to_owned(), 50)]);
    assert_eq!(history.last_ticks().unwrap(), expected);
}

#[test]
fn of_very_many_schedules_the_oldest_are_forgotten() {
    let (_folder, _, mut history) = fresh::<Json>(Limits::default());
    for index in 0..260 {
        history.note_decided(&format!("s{index}"), 1000 - index).unwrap();
    }
    let ticks = history.last_ticks().unwrap();
    assert_eq!(ticks.len(), 256);
    assert!(ticks.contains_key("s0") && ticks.contains_key("s259") && !ticks.contains_key("s258"));
}

#[test]
fn a_run_that_nobody_ended_is_found_interrupted_and_takes_nothing_more() {
    let (_folder, path, mut history) = fresh::<Json>(Limits::default());
    let done = whole_run(&mut history, 1, &json!({}));
    let planned = history.begin(Trigger::Manual, 2, &json!({})).unwrap();
    let acting = history.begin(Trigger::Manual, 3, &json!({})).unwrap();
    history.act(acting, &[(json!("x"), 1)]).unwrap();
    drop(history);
    let Opened { mut history, interrupted, .. } = open::<Json>(&path, Limits::default());
    assert_eq!(interrupted, [planned, acting]);
    let state = |history: &mut History<Json>, run| history.run(run).unwrap().summary.state;
    assert_eq!(state(&mut history, done), State::Done);
    assert_eq!(state(&mut history, acting), State::Interrupted);
    let late = history.finish(acting, 9, &json!({})).unwrap_err();
    assert_eq!(late.to_string(), "run 3 is interrupted: nothing more can be put down for it");
    drop(history);
    assert_eq!(open::<Json>(&path, Limits::default()).interrupted, []);
}

#[test]
fn the_oldest_runs_go_when_there_are_too_many_and_numbers_are_not_given_twice() {
    let limits = Limits { runs_max: 3, ..Limits::default() };
    let (_folder, path, mut history) = fresh::<Json>(limits);
    let under_way = history.begin(Trigger::Manual, 0, &json!({})).unwrap();
    for started in 1..10 {
        whole_run(&mut history, started, &json!({}));
    }
    assert_eq!(ids(&history.last(10).unwrap()), [10, 9, under_way.0]);
    drop(history);
    let mut history = open::<Json>(&path, Limits { runs_max: 0, ..limits }).history;
    assert_eq!(whole_run(&mut history, 11, &json!({})), RunId(11));
    assert_eq!(whole_run(&mut history, 12, &json!({})), RunId(12));
    assert_eq!(history.stored().unwrap(), Stored { runs: 0, bytes: 0 });
}

#[test]
fn the_oldest_runs_go_when_they_are_too_large_and_the_file_stays_bounded() {
    let limits = Limits { bytes_max: 1 << 20, ..Limits::default() };
    let (_folder, path, mut history) = fresh::<Json>(limits);
    let plan = json!("x".repeat(50_000));
    for started in 0..100 {
        whole_run(&mut history, started, &plan);
        assert!(history.stored().unwrap().bytes <= limits.bytes_max);
    }
    let Stored { runs, bytes } = history.stored().unwrap();
    assert_eq!((runs, bytes), (20, 20 * 50_002));
    let length = fs::metadata(&path).unwrap().len();
    assert!(length <= 8 << 20, "{length}");
    assert!(length <= limits.file_bytes_max());
}

#[test]
fn a_lower_limit_is_come_to_a_few_runs_at_a_time() {
    let (_folder, path, mut history) = fresh::<Json>(Limits::default());
    for started in 0..100 {
        whole_run(&mut history, started, &json!({}));
    }
    drop(history);
    let mut history = open::<Json>(&path, Limits { runs_max: 1, ..Limits::default() }).history;
    history.begin(Trigger::Manual, 100, &json!({})).unwrap();
    assert_eq!(history.stored().unwrap().runs, 101 - 64);
}

#[test]
fn what_is_too_large_is_refused_and_nothing_of_it_is_kept() {
    let (_folder, _, mut history) = fresh::<Json>(small());
    let large = json!("x".repeat(1000));
    let refused = history.begin(Trigger::Manual, 1, &large).unwrap_err();
    assert_eq!(refused.to_string(), "a plan is too large for the history: more than 1000 bytes");
    let run = history.begin(Trigger::Manual, 1, &json!({})).unwrap();
    let action = (json!("x".repeat(700)), 1);
    for refused in [
        history.act(run, &[(large.clone(), 1)]).unwrap_err(),
        history.act(run, &vec![(json!(1), 1); 6]).unwrap_err(),
        history.act(run, &vec![action.clone(); 4]).unwrap_err(),
        history.finish(run, 2, &large).unwrap_err(),
    ] {
        assert!(matches!(refused, HistoryError::TooLarge { .. }), "{refused}");
    }
    assert_eq!(history.run(run).unwrap().deeds, []);
    assert_eq!(history.stored().unwrap(), Stored { runs: 1, bytes: 2 });
    history.act(run, &vec![action; 3]).unwrap();
    let missing = history.verify(run, &[Found { index: 3, verified_bytes: None, error: None }]);
    assert_eq!(missing.unwrap_err().to_string(), "run 1 has no action 3");
}

#[test]
fn errors_are_few_and_short() {
    let (_folder, _, mut history) = fresh::<Json>(Limits::default());
    let run = history.begin(Trigger::Manual, 1, &json!({})).unwrap();
    for _ in 0..ERRORS_MAX + 10 {
        history.note_error(run, &"\u{e9}".repeat(ERROR_CHARS_MAX + 1)).unwrap();
    }
    let errors = history.run(run).unwrap().summary.errors;
    assert_eq!(errors.len(), ERRORS_MAX);
    assert!(errors.iter().all(|error| error.chars().count() == ERROR_CHARS_MAX));
}

#[test]
fn what_another_version_wrote_is_named_and_the_rest_is_read() {
    let (_folder, path, mut history) = fresh::<Json>(Limits::default());
    let other = whole_run(&mut history, 1, &json!({ "shape": "new" }));
    drop(history);
    let mut history = open::<Typed>(&path, Limits::default()).history;
    let error = history.run(other).unwrap_err().to_string();
    assert!(error.starts_with("the plan of run 1 cannot be read: "), "{error}");
    drop(history);

    let mut history = open::<Json>(&path, Limits::default()).history;
    history
        .write(|_, write, _| {
            write.open_table(HEADS)?.insert(7, &b"{}"[..])?;
            Ok(())
        })
        .unwrap();
    let listing = history.last(10).unwrap();
    assert_eq!((ids(&listing), listing.unreadable), (vec![1], vec![RunId(7)]));
    assert_eq!(whole_run(&mut history, 2, &json!({})), RunId(8));
}

#[test]
fn a_file_of_another_format_is_refused_and_left() {
    let (_folder, path, mut history) = fresh::<Json>(Limits::default());
    history
        .write(|_, write, _| {
            write.open_table(META)?.insert(tables::META_FORMAT, 2)?;
            Ok(())
        })
        .unwrap();
    drop(history);
    let error = History::<Json>::open(&path, Limits::default()).unwrap_err().to_string();
    assert!(error.contains("has format 2, and this program knows 1 alone"), "{error}");

    // The store's own format, in both of its commit slots.
    let mut older = sample().to_vec();
    (older[64], older[192]) = (2, 2);
    fs::write(&path, &older).unwrap();
    let error = History::<Json>::open(&path, Limits::default()).unwrap_err();
    assert!(matches!(error, HistoryError::OtherFormat { .. }), "{error}");

    fs::remove_file(&path).unwrap();
    let foreign = Database::create(&path).unwrap();
    let write = foreign.begin_write().unwrap();
    let table = redb::TableDefinition::<&str, &str>::new("meta");
    write.open_table(table).unwrap().insert("somebody", "else's").unwrap();
    write.commit().unwrap();
    drop(foreign);
    let error = History::<Json>::open(&path, Limits::default()).unwrap_err();
    assert!(matches!(error, HistoryError::Damaged { .. }), "{error}");
}

#[test]
fn a_history_is_one_openers() {
    let (_folder, path, mut history) = fresh::<Json>(Limits::default());
    let second = History::<Json>::open(&path, Limits::default()).unwrap_err();
    assert!(matches!(second, HistoryError::InUse { .. }), "{second}");
    whole_run(&mut history, 1, &json!({}));
    drop(history);
    assert_eq!(ids(&open::<Json>(&path, Limits::default()).history.last(1).unwrap()), [1]);
}

#[test]
fn a_file_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let (_folder, path, _history) = fresh::<Json>(Limits::default());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn what_is_no_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (path, expected) in [
        (folder.path().to_owned(), "Is a directory"),
        (folder.path().join("no/history"), "No such file"),
        (PathBuf::from("/dev/null"), "it is a device, not a file"),
    ] {
        let error = History::<Json>::open(&path, Limits::default()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    let path = folder.path().join("huge");
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    let error = History::<Json>::open(&path, Limits::default()).unwrap_err().to_string();
    assert!(error.contains("more than any history"), "{error}");
}

/// The bytes of a history with some runs, written once.
fn sample() -> &'static [u8] {
    static SAMPLE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    SAMPLE.get_or_init(|| {
        let (_folder, path, mut history) = fresh::<Json>(Limits::default());
        for started in 0..20 {
            let run = whole_run(&mut history, started, &json!("plan ".repeat(300)));
            assert_eq!(run.0, started + 1);
        }
        drop(history);
        fs::read(&path).unwrap()
    })
}

/// Opens and reads whatever can be read, then writes; what fails has to say so.
fn try_all(path: &Path) -> Result<(), HistoryError> {
    let mut history = History::<Json>::open(path, Limits::default())?.history;
    let listing = history.last(100)?;
    for run in listing.runs {
        let kept = history.run(run.id)?;
        assert_eq!(kept.plan, json!("plan ".repeat(300)), "what is read is what was written");
    }
    let run = history.begin(Trigger::Manual, 1, &json!({}))?;
    history.finish(run, 2, &json!({}))
}

#[test]
fn a_file_cut_short_is_damaged_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history");
    let whole = sample();
    for parts in 1..16 {
        let cut = &whole[..whole.len() * parts / 16];
        fs::write(&path, cut).unwrap();
        let error = try_all(&path).unwrap_err();
        assert!(matches!(error, HistoryError::Damaged { .. }), "{parts}/16: {error}");
        assert!(error.to_string().contains("move it away"), "{error}");
        assert!(fs::read(&path).unwrap() == cut, "{parts}/16 was changed");
    }
    fs::write(&path, whole).unwrap();
    try_all(&path).unwrap();
}

#[test]
fn a_file_of_garbage_is_damaged_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history");
    for garbage in
        [vec![0; 5], vec![0; 100_000], vec![0xff; 1 << 20], b"[[schedule]]\n".repeat(1000)]
    {
        fs::write(&path, &garbage).unwrap();
        let error = try_all(&path).unwrap_err();
        assert!(matches!(error, HistoryError::Damaged { .. }), "{error}");
        assert!(fs::read(&path).unwrap() == garbage);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    /// Whatever is changed in a file: no panic comes out, and what is read is what was written.
    #[test]
    fn a_changed_file_is_damaged_or_right(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        in_header in any::<bool>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history");
        let mut bytes = sample().to_vec();
        let range = if in_header { 320 } else { bytes.len() };
        for (place, byte) in changes {
            bytes[place.index(range)] ^= byte;
        }
        fs::write(&path, &bytes).unwrap();
        if let Err(error) = try_all(&path) {
            prop_assert!(error.to_string().contains("history"), "{}", error);
        }
    }
}
