//! Histories of processes that are killed and of full disks: what was recorded stays readable.
//!
//! Each test starts this test program again, in the role of the process that fails.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use memopt::history::{History, HistoryError, Limits, Opened, RunEnd, RunId, State, StepResult};
use memopt::ledger::Level;
use memopt::plan::Plan;
use memopt::policy::Goal;
use memopt::schedule::Trigger;
use memopt::step::{Action, Step};

/// The environment variable with the path of the history for the other role.
const PATH: &str = "LIGHTER_TEST_HISTORY";

fn open(path: &Path) -> Opened {
    History::open(path, Limits::default()).expect("a history")
}

/// A step whose reason has `bytes` bytes.
fn step(bytes: usize) -> Step {
    let action = Action::Unmerge { guest: "db".to_owned(), chunks: None };
    let (cpu, reason) = (Duration::ZERO, "x".repeat(bytes));
    Step { action, expected_bytes: 4096, cpu, reason, pid: None }
}

/// A plan with that step.
fn plan(bytes: usize) -> Plan {
    Plan {
        unix_seconds: 0,
        uptime: Duration::ZERO,
        goal: Goal::MaxDensity,
        level: Level::Green,
        wanted_bytes: None,
        expected_bytes: 4096,
        later_bytes: 0,
        missed: None,
        survey_bytes: 0,
        domain: None,
        steps: vec![step(bytes)],
        skipped: Vec::new(),
        advice: Vec::new(),
    }
}

/// The command that runs the test `name` of this program in the other role.
fn other_part(name: &str) -> String {
    let program = std::env::current_exe().expect("a path");
    format!("exec '{}' --exact {name} --nocapture --test-threads 1", program.display())
}

fn shell(script: &str, history: &Path) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", script]).env(PATH, history).stdout(Stdio::piped());
    command.spawn().expect("a shell")
}

/// Parses the number after `word` in a line of the other role's output.
fn said(word: &str, line: &str) -> Option<u64> {
    // The test harness prints the test's name before the first line.
    let (_, number) = line.split_once(word)?;
    number.trim().parse().ok()
}

/// Records one run after the other until it is killed, and prints what it has recorded.
fn write_for_ever(path: &Path) {
    let mut history = open(path).history;
    let plan = plan(20_000);
    for turn in 0.. {
        let run = history.begin(Trigger::Manual, turn, &plan).expect("room");
        println!("begun {run}");
        history.act(run, &vec![step(1); 20]).expect("room");
        println!("acted {run}");
        let found = StepResult { index: 7, verified_bytes: Some(4096), error: None };
        history.verify(run, &[found]).expect("room");
        history.finish(run, turn + 1, RunEnd::Reached).expect("room");
        println!("ended {run}");
    }
}

#[test]
fn no_record_is_lost_when_the_process_is_killed() {
    if let Some(path) = std::env::var_os(PATH) {
        return write_for_ever(Path::new(&path));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("history");
    let mut expected = BTreeMap::<u64, State>::new();
    for round in 0..15 {
        let test = "no_record_is_lost_when_the_process_is_killed";
        let mut child = shell(&other_part(test), &path);
        let mut lines = BufReader::new(child.stdout.take().expect("its stdout")).lines();
        // Kills it at a different point each time: between any two calls, and during the next one.
        for line in lines
            .by_ref()
            .map_while(Result::ok)
            .filter(|line| line.ends_with(char::is_numeric))
            .take(10 + round)
        {
            note(&mut expected, &line);
        }
        let second = History::open(&path, Limits::default()).expect_err("it is in use");
        assert!(matches!(second, HistoryError::InUse { .. }), "{second}");
        child.kill().expect("it lives");
        child.wait().expect("a child");
        lines.map_while(Result::ok).for_each(|line| note(&mut expected, &line));

        let Opened { mut history, interrupted, unreadable } = open(&path);
        assert_eq!(unreadable, [], "a write that was cut short");
        assert!(interrupted.len() <= 1, "{interrupted:?}");
        for (&run, &state) in &expected {
            check(&mut history, RunId(run), state, &interrupted);
        }
        // Runs that it began but could not print count from here on.
        for run in interrupted {
            expected.insert(run.0, State::Interrupted);
        }
    }
    assert!(expected.len() > 40, "{expected:?}");
}

fn note(expected: &mut BTreeMap<u64, State>, line: &str) {
    for (word, state) in
        [("begun ", State::Planned), ("acted ", State::Acting), ("ended ", State::Done)]
    {
        if let Some(run) = said(word, line) {
            expected.insert(run, state);
        }
    }
}

/// Asserts that a run got at least as far as was printed, and is complete.
fn check(history: &mut History, run: RunId, said: State, interrupted: &[RunId]) {
    let kept = history.run(run).expect("a run that was put down");
    assert_eq!(kept.plan, plan(20_000));
    let state = kept.summary.state;
    match said {
        State::Done => assert_eq!(state, State::Done),
        State::Interrupted => assert_eq!(state, State::Interrupted),
        _ => assert!(state == State::Done || interrupted.contains(&run), "{run}: {state}"),
    }
    let steps_min = if matches!(said, State::Acting | State::Done) { 20 } else { 0 };
    assert!(kept.steps.len() >= steps_min && [0, 20].contains(&kept.steps.len()));
    assert_eq!(kept.summary.actions as usize, kept.steps.len());
    if state == State::Done {
        assert_eq!((kept.summary.verified_bytes, kept.summary.expected_bytes), (4096, 20 * 4096));
    }
}

/// Records runs until the disk is full, and returns how many were recorded.
fn fill(path: &Path) -> u64 {
    let mut history = open(path).history;
    let plan = plan(30_000);
    let mut runs = 0;
    let error = loop {
        match history.begin(Trigger::Manual, 1, &plan) {
            Ok(run) => runs = run.0,
            Err(error) => break error,
        }
        assert!(runs < 10_000, "the disk is never full");
    };
    assert!(matches!(error, HistoryError::Full { .. }), "{error}");
    assert!(error.to_string().contains("free some space"), "{error}");
    let closed = history.begin(Trigger::Manual, 1, &plan).expect_err("closed");
    assert!(matches!(closed, HistoryError::Closed { .. }), "{closed}");
    runs
}

/// Appends to one run until its log cannot grow, and returns how many actions were recorded.
fn grow(path: &Path) -> u64 {
    let mut history = open(path).history;
    let run = history.begin(Trigger::Manual, 1, &plan(0)).expect("room");
    let action = [step(30_000)];
    for actions in 0..10_000 {
        if let Err(error) = history.act(run, &action) {
            assert!(matches!(error, HistoryError::Full { .. }), "{error}");
            return actions;
        }
    }
    panic!("it grows for ever");
}

/// Asserts that all runs recorded before the disk was full exist, and that there is space for more.
fn check_filled(path: &Path, runs: u64) {
    let mut history = open(path).history;
    assert!(runs > 3, "{runs}");
    for run in 1..=runs {
        let plan = history.run(RunId(run)).expect("a run that was put down").plan;
        assert_eq!(plan, self::plan(30_000));
    }
    let next = history.begin(Trigger::Manual, 2, &plan(0)).expect("room again");
    assert!(next.0 > runs);
}

/// Runs a script to its end, and returns the number that it prints after `word`.
#[track_caller]
fn heard(script: &str, history: &Path, word: &str) -> u64 {
    let mut child = shell(script, history);
    let lines = BufReader::new(child.stdout.take().expect("its stdout")).lines();
    let lines: Vec<String> = lines.map_while(Result::ok).collect();
    let is_fine = child.wait().expect("a child").success();
    let number = lines.iter().find_map(|line| said(word, line));
    assert!(is_fine && number.is_some(), "{}", lines.join("\n"));
    number.unwrap_or_default()
}

#[test]
fn a_file_size_limit_is_reported_and_loses_no_record() {
    if let Some(path) = std::env::var_os(PATH) {
        println!("put {}", grow(Path::new(&path)));
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("history");
    let part = other_part("a_file_size_limit_is_reported_and_loses_no_record");
    // The limit is in blocks of 512 bytes; without the signal a write fails, as on a full disk.
    let actions = heard(&format!("trap '' XFSZ; ulimit -f 8192; {part}"), &path, "put ");
    let Opened { mut history, interrupted, .. } = open(&path);
    assert_eq!(interrupted, [RunId(1)]);
    let kept = history.run(RunId(1)).expect("a run that was put down");
    assert_eq!(kept.steps.len() as u64, actions);
    assert!(actions > 100, "{actions}");
    assert_eq!(history.begin(Trigger::Manual, 2, &plan(0)).expect("room"), RunId(2));
}

#[test]
fn a_full_disk_is_reported_and_loses_no_record() {
    if let Some(path) = std::env::var_os(PATH) {
        let path = PathBuf::from(path);
        let ballast = path.with_extension("ballast");
        fs::write(&ballast, vec![1; 8 << 20]).expect("room for ballast");
        let runs = fill(&path);
        fs::remove_file(&ballast).expect("the ballast");
        check_filled(&path, runs);
        println!("checked {runs}");
        return;
    }
    let may_mount = Command::new("unshare").args(["--mount", "true"]).output();
    if !may_mount.is_ok_and(|output| output.status.success()) {
        eprintln!("left out: only root may mount a small disk");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let part = other_part("a_full_disk_is_reported_and_loses_no_record");
    // A disk that only this process sees, and that is removed with it.
    let mount = format!("mount -t tmpfs -o size=12M none {}", folder.path().display());
    let script = format!("exec unshare --mount sh -c \"{mount} && {part}\"");
    heard(&script, &folder.path().join("history"), "checked ");
}
