//! A history that is lost and found again never blocks the work.

use std::fs;

use super::*;
use crate::history::State;
use crate::history::samples::plan;
use crate::schedule::Trigger;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn begin(lossy_history: &mut LossyHistory, uptime: Duration) -> Option<RunId> {
    lossy_history.with(uptime, |history| history.begin(Trigger::Manual, 7, &plan("")))
}

#[test]
fn an_unopenable_history_is_reported_once_and_retried_after_a_minute() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history");
    fs::write(&path, "this is no folder").unwrap();
    let mut lossy_history = LossyHistory::open(path.clone(), Limits::default(), seconds(100));
    assert!(matches!(lossy_history.take_news()[..], [HistoryEvent::Lost(HistoryError::Io { .. })]));
    assert_eq!(begin(&mut lossy_history, seconds(110)), None);
    assert_eq!(begin(&mut lossy_history, seconds(170)), None);
    assert!(lossy_history.take_news().is_empty());

    fs::remove_file(&path).unwrap();
    assert_eq!(begin(&mut lossy_history, seconds(229)), None, "tried again too early");
    assert_eq!(begin(&mut lossy_history, seconds(230)), Some(RunId(1)));
    assert!(
        matches!(&lossy_history.take_news()[..], [HistoryEvent::Kept { interrupted, .. }] if interrupted.is_empty())
    );
}

#[test]
fn a_failing_history_is_reported_once_and_retried_after_a_minute() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("state");
    fs::create_dir(&folder).unwrap();
    let path = folder.join("history");
    let mut lossy_history = LossyHistory::open(path, Limits::default(), seconds(0));
    assert_eq!(begin(&mut lossy_history, seconds(1)), Some(RunId(1)));
    assert!(matches!(lossy_history.take_news()[..], [HistoryEvent::Kept { .. }]));
    let away = parent.path().join("away");
    fs::rename(&folder, &away).unwrap();
    for uptime in [2, 3, 62, 122] {
        assert_eq!(begin(&mut lossy_history, seconds(uptime)), None);
    }
    assert!(matches!(lossy_history.take_news()[..], [HistoryEvent::Lost(HistoryError::Io { .. })]));
    fs::rename(&away, &folder).unwrap();
    assert_eq!(begin(&mut lossy_history, seconds(182)), Some(RunId(2)));
    assert!(
        matches!(&lossy_history.take_news()[..], [HistoryEvent::Kept { interrupted, .. }] if interrupted == &[RunId(1)])
    );
}

#[test]
fn an_oversized_entry_is_refused_and_the_rest_is_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { plan_bytes_max: 1000, ..Limits::default() };
    let path = folder.path().join("history");
    let mut lossy_history: LossyHistory = LossyHistory::open(path, limits, seconds(0));
    let large = plan(&"x".repeat(1000));
    let refused =
        lossy_history.with(seconds(1), |history| history.begin(Trigger::Manual, 7, &large));
    assert_eq!(refused, None);
    assert!(matches!(
        lossy_history.take_news()[..],
        [HistoryEvent::Kept { .. }, HistoryEvent::Refused(HistoryError::TooLarge { .. })]
    ));
    assert_eq!(begin(&mut lossy_history, seconds(2)), Some(RunId(1)));
}

#[test]
fn a_run_interrupted_by_a_crash_is_reported_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history");
    let mut first = LossyHistory::open(path.clone(), Limits::default(), seconds(0));
    let run = begin(&mut first, seconds(1)).unwrap();
    drop(first);
    let mut second: LossyHistory = LossyHistory::open(path, Limits::default(), seconds(2));
    assert!(
        matches!(&second.take_news()[..], [HistoryEvent::Kept { interrupted, .. }] if interrupted == &[run])
    );
    let state = second.with(seconds(3), |history| history.run(run)).map(|run| run.summary.state);
    assert_eq!(state, Some(State::Interrupted));
}
