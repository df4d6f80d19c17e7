//! What the history records, finds again, refuses and prunes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use proptest::prelude::*;

use super::*;
use crate::history::limits::{ERROR_CHARS_MAX, ERRORS_MAX};
use crate::history::samples::{plan, step};
use crate::history::{State, Summary};

fn nightly(tick: u64) -> Trigger {
    Trigger::Schedule { name: "nightly".to_owned(), tick }
}

fn open(path: &Path, limits: Limits) -> Opened {
    History::open(path, limits).unwrap()
}

/// A new history in its own folder.
fn fresh(limits: Limits) -> (tempfile::TempDir, PathBuf, History) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history");
    let history = open(&path, limits).history;
    (folder, path, history)
}

/// Path of the log of a run.
fn log(path: &Path, run: RunId) -> PathBuf {
    path.join(format!("{run}.log"))
}

fn small() -> Limits {
    Limits {
        run_bytes_max: 4500,
        plan_bytes_max: 1000,
        part_bytes_max: 1500,
        actions_max: 5,
        ..Limits::default()
    }
}

/// Starts and finishes a run.
fn whole_run(history: &mut History, started: u64) -> RunId {
    let run = history.begin(Trigger::Manual, started, &plan("")).unwrap();
    history.finish(run, started + 1, RunEnd::Reached).unwrap();
    run
}

fn ids(listing: &Listing) -> Vec<u64> {
    listing.runs.iter().map(|run| run.id.0).collect()
}

#[test]
fn a_second_plan_replaces_the_first() {
    let (_folder, _path, mut history) = fresh(small());
    let run = history.begin(nightly(1000), 1001, &plan("a")).unwrap();
    history.replace_plan(run, &plan("b")).unwrap();
    assert_eq!(history.run(run).unwrap().plan, plan("b"));
    let error = history.replace_plan(run, &plan(&"c".repeat(1000))).unwrap_err();
    assert!(matches!(error, HistoryError::TooLarge { .. }), "{error}");
    assert_eq!(history.run(run).unwrap().plan, plan("b"));
    history.finish(run, 1002, RunEnd::Reached).unwrap();
    let error = history.replace_plan(run, &plan("d")).unwrap_err();
    assert!(matches!(error, HistoryError::Ended { .. }), "{error}");
}

#[test]
fn a_log_that_no_run_can_have_written_is_no_reason_to_remove_older_runs() {
    let (_folder, path, mut history) = fresh(Limits::default());
    let runs = [1, 2, 3].map(|time| whole_run(&mut history, time));
    drop(history);
    let huge = fs::OpenOptions::new().write(true).open(log(&path, runs[2])).unwrap();
    huge.set_len(1 << 30).unwrap();
    let mut history = open(&path, Limits::default()).history;
    whole_run(&mut history, 4);
    assert!(runs[..2].iter().all(|&run| history.run(run).is_ok()));
    assert!(history.run(runs[2]).is_err());
}

#[test]
fn other_users_do_not_see_the_folder() {
    let (_folder, path, _history) = fresh(Limits::default());
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_run_is_read_as_it_was_recorded() {
    let (_folder, path, mut history) = fresh(Limits::default());
    let run = history.begin(nightly(1000), 1001, &plan("night")).unwrap();
    assert_eq!(history.run(run).unwrap().summary.state, State::Planned);
    let first = history.act(run, &[step("a", 4096), step("b", 8192)]).unwrap();
    assert_eq!((first, history.run(run).unwrap().summary.state), (0, State::Acting));
    assert_eq!(history.act(run, &[step("c", -100)]).unwrap(), 2);
    let failed = Some("no driver".to_owned());
    history
        .verify(
            run,
            &[
                StepResult { index: 0, verified_bytes: Some(4000), error: None },
                StepResult { index: 1, verified_bytes: None, error: failed.clone() },
            ],
        )
        .unwrap();
    assert_eq!(history.run(run).unwrap().summary.state, State::Verifying);
    history.note_error(run, "b has no driver").unwrap();
    history.finish(run, 1100, RunEnd::Exhausted).unwrap();
    drop(history);

    let Opened { mut history, interrupted, unreadable } = open(&path, Limits::default());
    assert!(interrupted.is_empty() && unreadable.is_empty());
    let executed = |guest, expected_bytes, verified_bytes, error| RunAction {
        action: step(guest, expected_bytes),
        expected_bytes,
        verified_bytes,
        error,
    };
    let kept = history.run(run).unwrap();
    assert_eq!(kept.plan, plan("night"));
    let steps = [
        executed("a", 4096, Some(4000), None),
        executed("b", 8192, None, failed),
        executed("c", -100, None, None),
    ];
    assert_eq!(kept.steps, steps);
    let summary = Summary {
        id: run,
        trigger: nightly(1000),
        started: 1001,
        ended: Some(1100),
        state: State::Done,
        actions: 3,
        expected_bytes: 12_188,
        verified_bytes: 4000,
        outcome: Some(RunEnd::Exhausted),
        errors: vec!["b has no driver".to_owned()],
    };
    assert_eq!(kept.summary, summary);
    assert_eq!(history.last(10).unwrap().runs, [summary]);
}

#[test]
fn what_is_verified_again_counts_once() {
    let (_folder, _, mut history) = fresh(Limits::default());
    let run = history.begin(Trigger::Manual, 1, &plan("")).unwrap();
    history.act(run, &[step("x", 10)]).unwrap();
    for verified_bytes in [Some(3), Some(9), None, Some(5)] {
        history.verify(run, &[StepResult { index: 0, verified_bytes, error: None }]).unwrap();
    }
    assert_eq!(history.run(run).unwrap().summary.verified_bytes, 5);
}

#[test]
fn runs_are_listed_newest_first() {
    let (_folder, _, mut history) = fresh(Limits::default());
    for started in [100, 200, 150, 300] {
        whole_run(&mut history, started);
    }
    assert_eq!(ids(&history.last(3).unwrap()), [4, 3, 2]);
    assert_eq!(ids(&history.last(usize::MAX).unwrap()), [4, 3, 2, 1]);
    assert!(matches!(history.run(RunId(5)), Err(HistoryError::NoSuchRun(RunId(5)))));
}

#[test]
fn the_last_time_of_each_schedule_outlives_its_runs() {
    let (_folder, path, mut history) = fresh(Limits { runs_max: 2, ..Limits::default() });
    let weekly = Trigger::Schedule { name: "weekly".to_owned(), tick: 50 };
    for trigger in [weekly, nightly(10), nightly(20), Trigger::Manual, Trigger::Manual] {
        let run = history.begin(trigger, 60, &plan("")).unwrap();
        history.finish(run, 61, RunEnd::Reached).unwrap();
    }
    history.note_decided("nightly", 30).unwrap();
    drop(history);
    let mut history = open(&path, Limits::default()).history;
    assert_eq!(history.stored().unwrap().runs, 2);
    let expected = BTreeMap::from([("nightly".to_owned(), 30), ("weekly".to_owned(), 50)]);
    assert_eq!(history.last_ticks().unwrap(), expected);
}

#[test]
fn of_very_many_schedules_the_oldest_are_forgotten() {
    let (_folder, _, mut history) = fresh(Limits::default());
    for index in 0..260 {
        history.note_decided(&format!("s{index}"), 1000 - index).unwrap();
    }
    let ticks = history.last_ticks().unwrap();
    assert_eq!(ticks.len(), 256);
    assert!(ticks.contains_key("s0") && ticks.contains_key("s259") && !ticks.contains_key("s258"));
}

#[test]
fn an_unfinished_run_is_interrupted_and_accepts_no_more_entries() {
    let (_folder, path, mut history) = fresh(Limits::default());
    let done = whole_run(&mut history, 1);
    let planned = history.begin(Trigger::Manual, 2, &plan("")).unwrap();
    let acting = history.begin(Trigger::Manual, 3, &plan("")).unwrap();
    history.act(acting, &[step("x", 1)]).unwrap();
    drop(history);
    let Opened { mut history, interrupted, .. } = open(&path, Limits::default());
    assert_eq!(interrupted, [planned, acting]);
    let state = |history: &mut History, run| history.run(run).unwrap().summary.state;
    assert_eq!(state(&mut history, done), State::Done);
    assert_eq!(state(&mut history, acting), State::Interrupted);
    let late = history.finish(acting, 9, RunEnd::Reached).unwrap_err();
    assert_eq!(late.to_string(), "run 3 is interrupted: it cannot be changed");
    drop(history);
    assert_eq!(open(&path, Limits::default()).interrupted, []);
}

#[test]
fn the_oldest_runs_go_when_there_are_too_many_and_numbers_are_not_given_twice() {
    let limits = Limits { runs_max: 3, ..Limits::default() };
    let (_folder, path, mut history) = fresh(limits);
    let under_way = history.begin(Trigger::Manual, 0, &plan("")).unwrap();
    for started in 1..10 {
        whole_run(&mut history, started);
    }
    assert_eq!(ids(&history.last(10).unwrap()), [10, 9, under_way.0]);
    drop(history);
    for (started, run) in [(11, RunId(11)), (12, RunId(12))] {
        let mut history = open(&path, Limits { runs_max: 0, ..limits }).history;
        assert_eq!(whole_run(&mut history, started), run);
        assert_eq!(ids(&history.last(10).unwrap()), [run.0], "the next number follows from it");
    }
}

#[test]
fn the_oldest_runs_go_when_they_are_too_large_and_the_folder_stays_bounded() {
    let limits = Limits { bytes_max: 1 << 20, ..Limits::default() };
    let (_folder, path, mut history) = fresh(limits);
    for started in 0..100 {
        let run = history.begin(Trigger::Manual, started, &plan(&"x".repeat(50_000))).unwrap();
        history.finish(run, started + 1, RunEnd::Reached).unwrap();
        assert!(history.stored().unwrap().bytes <= limits.bytes_max);
    }
    let Stored { runs, bytes } = history.stored().unwrap();
    assert_eq!(runs, 20);
    let files = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
    let of_schedules = fs::metadata(path.join("schedules.log")).unwrap().len();
    assert_eq!(bytes + of_schedules, files.sum::<u64>(), "they are all that there is");
    drop(history);
    assert_eq!(open(&path, limits).history.stored().unwrap(), Stored { runs, bytes });
}

#[test]
fn a_lowered_limit_is_reached_a_few_runs_at_a_time() {
    let (_folder, path, mut history) = fresh(Limits::default());
    for started in 0..100 {
        whole_run(&mut history, started);
    }
    drop(history);
    let mut history = open(&path, Limits { runs_max: 1, ..Limits::default() }).history;
    history.begin(Trigger::Manual, 100, &plan("")).unwrap();
    assert_eq!(history.stored().unwrap().runs, 101 - 64);
}

#[test]
fn an_oversized_entry_is_refused_and_nothing_of_it_is_kept() {
    let (_folder, _, mut history) = fresh(small());
    let refused = history.begin(Trigger::Manual, 1, &plan(&"x".repeat(1000))).unwrap_err();
    assert_eq!(refused.to_string(), "a plan is too large for the history: more than 1000 bytes");
    let run = history.begin(Trigger::Manual, 1, &plan("")).unwrap();
    let begun = history.stored().unwrap();
    let action = step(&"x".repeat(1000), 1);
    for refused in [
        history.act(run, &[step(&"x".repeat(2000), 1)]).unwrap_err(),
        history.act(run, &vec![step("x", 1); 6]).unwrap_err(),
        history.act(run, &vec![action.clone(); 4]).unwrap_err(),
    ] {
        assert!(matches!(refused, HistoryError::TooLarge { .. }), "{refused}");
    }
    assert_eq!(history.run(run).unwrap().steps, []);
    assert_eq!(history.stored().unwrap(), begun);
    history.act(run, &vec![action; 3]).unwrap();
    let missing =
        history.verify(run, &[StepResult { index: 3, verified_bytes: None, error: None }]);
    assert_eq!(missing.unwrap_err().to_string(), "run 1 has no action 3");
}

#[test]
fn errors_are_few_and_short() {
    let (_folder, _, mut history) = fresh(Limits::default());
    let run = history.begin(Trigger::Manual, 1, &plan("")).unwrap();
    for _ in 0..ERRORS_MAX + 10 {
        history.note_error(run, &"\u{e9}".repeat(ERROR_CHARS_MAX + 1)).unwrap();
    }
    let errors = history.run(run).unwrap().summary.errors;
    assert_eq!(errors.len(), ERRORS_MAX);
    assert!(errors.iter().all(|error| error.chars().count() == ERROR_CHARS_MAX));
}

#[test]
fn entries_of_another_version_are_reported_and_the_rest_is_read() {
    let (_folder, path, history) = fresh(Limits::default());
    drop(history);
    let create = |run, line: &str| {
        regular_file::log::Log::create(&log(&path, run), line.as_bytes(), 0).unwrap();
    };
    create(RunId(1), r#"{"began":{"trigger":"manual","started":1,"plan":{"shape":"new"}}}"#);
    create(RunId(7), r#"{"slept":8}"#);
    let Opened { mut history, unreadable, .. } = open(&path, Limits::default());
    assert_eq!(unreadable, [RunId(7)]);
    let listing = history.last(10).unwrap();
    assert_eq!((ids(&listing), listing.unreadable), (vec![1], vec![RunId(7)]));
    for (run, why) in [(RunId(1), "its plan: missing field"), (RunId(7), "unknown variant `slept`")]
    {
        let error = history.run(run).unwrap_err().to_string();
        assert!(error.contains(&format!("run {run} cannot be read: {why}")), "{error}");
    }
    assert_eq!(whole_run(&mut history, 2), RunId(8));
}

#[test]
fn times_of_schedules_that_cannot_be_read_are_damaged_and_left_as_they_are() {
    let (_folder, path, mut history) = fresh(Limits::default());
    history.note_decided("nightly", 10).unwrap();
    history.note_decided("nightly", 20).unwrap();
    drop(history);
    let times = path.join("schedules.log");
    let whole = fs::read_to_string(&times).unwrap();
    // The power failed while the last line was being written.
    fs::write(&times, whole.replace("20}", "2")).unwrap();
    let mut history = open(&path, Limits::default()).history;
    assert_eq!(history.last_ticks().unwrap()["nightly"], 10);
    drop(history);
    fs::write(&times, "nightly").unwrap();
    let error = History::open(&path, Limits::default()).unwrap_err();
    assert!(matches!(error, HistoryError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("move it away"), "{error}");
    assert_eq!(fs::read_to_string(&times).unwrap(), "nightly");
    fs::File::create(&times).unwrap().set_len(1 << 40).unwrap();
    let error = History::open(&path, Limits::default()).unwrap_err().to_string();
    assert!(error.contains("it is too large"), "{error}");
}

#[test]
fn a_schedule_runs_once_per_time_even_if_the_node_dies_before_recording_it() {
    let (_folder, path, mut history) = fresh(Limits::default());
    history.note_decided("nightly", 10).unwrap();
    let before = fs::read(path.join("schedules.log")).unwrap();
    history.begin(nightly(20), 21, &plan("")).unwrap();
    drop(history);
    fs::write(path.join("schedules.log"), before).unwrap();
    let mut history = open(&path, Limits::default()).history;
    assert_eq!(history.last_ticks().unwrap()["nightly"], 20);
    // A later decision is kept.
    history.begin(nightly(30), 31, &plan("")).unwrap();
    history.note_decided("nightly", 40).unwrap();
    drop(history);
    let mut history = open(&path, Limits::default()).history;
    assert_eq!(history.last_ticks().unwrap()["nightly"], 40);
}

#[test]
fn a_history_has_one_owner() {
    let (_folder, path, mut history) = fresh(Limits::default());
    let second = History::open(&path, Limits::default()).unwrap_err();
    assert!(matches!(second, HistoryError::InUse { .. }), "{second}");
    whole_run(&mut history, 1);
    drop(history);
    assert_eq!(ids(&open(&path, Limits::default()).history.last(1).unwrap()), [1]);
}

#[test]
fn a_log_is_readable_by_its_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let (_folder, path, mut history) = fresh(Limits::default());
    let run = whole_run(&mut history, 1);
    for file in [log(&path, run), path.join("lock")] {
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn a_file_in_place_of_the_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "of another program").unwrap();
    for (path, expected) in
        [(file, "not a folder"), (folder.path().join("no/history"), "No such file")]
    {
        let error = History::open(&path, Limits::default()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn a_stray_file_hides_no_run_and_blocks_no_removal() {
    let limits = Limits { runs_max: 3, ..Limits::default() };
    let (_folder, path, mut history) = fresh(limits);
    let run = whole_run(&mut history, 1);
    drop(history);
    fs::create_dir(path.join("2.log")).unwrap();
    std::os::unix::fs::symlink("nowhere", path.join("8.log")).unwrap();
    std::os::unix::fs::symlink("9.log", path.join("9.log")).unwrap();
    fs::File::create(path.join("3.log")).unwrap().set_len(1 << 40).unwrap();
    for other in ["x.log", "4.log.new", "0.log", "07.log", "+8.log", "9007199254740992.log"] {
        fs::write(path.join(other), "what").unwrap();
    }
    let Opened { mut history, unreadable, .. } = open(&path, limits);
    assert_eq!(unreadable, [2, 3, 8, 9].map(RunId));
    assert_eq!(ids(&history.last(10).unwrap()), [run.0]);
    for expected in 10..14 {
        assert_eq!(whole_run(&mut history, 2), RunId(expected));
    }
    let listing = history.last(10).unwrap();
    assert_eq!((ids(&listing), listing.unreadable), (vec![13, 12], vec![RunId(2)]));
}

#[test]
fn run_numbers_can_be_exhausted() {
    let (_folder, path, history) = fresh(Limits::default());
    drop(history);
    fs::write(path.join("9007199254740991.log"), "what").unwrap();
    let mut history = open(&path, Limits::default()).history;
    let error = history.begin(Trigger::Manual, 1, &plan("")).unwrap_err();
    assert!(matches!(error, HistoryError::TooLarge { .. }), "{error}");
    assert_eq!(history.stored().unwrap().runs, 1);
}

/// A history with one executed run, and the bytes of its log.
fn carried_out() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
    let (folder, path, mut history) = fresh(Limits::default());
    let run = history.begin(Trigger::Manual, 1, &plan("plan")).unwrap();
    history.act(run, &[step("x", 1), step("y", 2)]).unwrap();
    let found = StepResult { index: 1, verified_bytes: Some(2), error: None };
    history.verify(run, &[found]).unwrap();
    history.finish(run, 2, RunEnd::Reached).unwrap();
    drop(history);
    let bytes = fs::read(log(&path, run)).unwrap();
    (folder, path, bytes)
}

#[test]
fn a_truncated_log_is_an_interrupted_run_up_to_the_cut() {
    let (_folder, path, whole) = carried_out();
    let log = log(&path, RunId(1));
    let first = whole.iter().position(|&byte| byte == b'\n').unwrap();
    for length in 0..=whole.len() {
        fs::write(&log, &whole[..length]).unwrap();
        let Opened { mut history, interrupted, unreadable } = open(&path, Limits::default());
        if length < first {
            assert_eq!((unreadable, interrupted), (vec![RunId(1)], vec![]), "{length}");
            assert!(fs::read(&log).unwrap() == whole[..length], "{length}: it was changed");
            continue;
        }
        assert_eq!(unreadable, [], "{length}");
        let run = history.run(RunId(1)).unwrap();
        let state = run.summary.state;
        // A line without its newline is still complete.
        assert_eq!(state == State::Done, length >= whole.len() - 1, "{length}: {state}");
        assert_eq!(run.summary.outcome.is_some(), state == State::Done, "{length}");
        assert_eq!(interrupted.is_empty(), state == State::Done, "{length}");
        assert_eq!(run.plan, plan("plan"));
        assert!([0, 2].contains(&run.steps.len()), "{length}: all of a line or nothing");
        drop(history);
        let again = open(&path, Limits::default());
        assert_eq!((again.interrupted, again.unreadable), (vec![], vec![]), "{length}: for good");
    }
}

#[test]
fn a_line_lost_in_the_middle_is_an_error() {
    let (_folder, path, whole) = carried_out();
    let log = log(&path, RunId(1));
    let lines = whole.split_inclusive(|&byte| byte == b'\n');
    let ends: Vec<usize> = lines
        .scan(0, |end, line| {
            *end += line.len();
            Some(*end)
        })
        .collect();
    // The last line but one is the empty one before the end of the run.
    for &end in &ends[..ends.len() - 2] {
        let mut changed = whole.clone();
        changed[end - 1] = b'x';
        fs::write(&log, &changed).unwrap();
        let Opened { mut history, unreadable, .. } = open(&path, Limits::default());
        assert_eq!(unreadable, [RunId(1)], "{end}");
        let error = history.run(RunId(1)).unwrap_err().to_string();
        assert!(error.starts_with("run 1 cannot be read: "), "{end}: {error}");
        drop(history);
        assert!(fs::read(&log).unwrap() == changed, "{end}: it was changed");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// However a log is changed, either what is read is what was written, or the run is unreadable;
    /// and the next run is recorded.
    #[test]
    fn a_modified_log_is_unreadable_or_correct(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let (_folder, path, mut bytes) = carried_out();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] ^= byte;
        }
        fs::write(log(&path, RunId(1)), &bytes).unwrap();
        let mut history = open(&path, Limits::default()).history;
        if let Ok(run) = history.run(RunId(1)) {
            prop_assert_eq!(run.plan, plan("plan"));
            let actions: Vec<_> = run.steps.into_iter().map(|executed| executed.action).collect();
            prop_assert!(actions.is_empty() || actions == [step("x", 1), step("y", 2)]);
        }
        prop_assert_eq!(whole_run(&mut history, 3), RunId(2));
    }
}
