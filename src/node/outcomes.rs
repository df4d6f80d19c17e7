//! Counts how migrations began and ended, each once, from their records.
//!
//! A record outlives the process that wrote it. The node counts records rather than messages, so it
//! also counts migrations that ended while no node ran. The counted records are noted on disk
//! ([`Ledger`]), so that a restarted node does not count them again. Counters start at zero with
//! the node, as Prometheus expects.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use metrics::{Counted, EstimateFigure, FailureReason};
use migrate::progress::Role;
use migrate::record::{DestinationState, Record, Side, SourceState};
use migrate::report::{Outcome, Report};
use migrate::{Phase, Reason};
use serde::{Deserialize, Serialize};

use crate::durable;

/// Largest ledger that is read, in bytes: retention keeps it far below.
const LEDGER_BYTES_MAX: u64 = 16 << 20;

/// What has been counted of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mark {
    /// The start of the migration.
    Started,
    /// The start and the end of the migration.
    Ended,
}

/// The records that have been counted.
#[derive(Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
    marks: BTreeMap<String, Mark>,
    /// Whether the file agrees with `marks`.
    is_saved: bool,
}

impl Ledger {
    /// Reads the ledger at `path`; without one, nothing has been counted.
    ///
    /// # Errors
    /// If the file cannot be read. A damaged file, or one that is not a regular file, is ignored
    /// with a warning: counting twice is better than not starting.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let start_empty = |error: &dyn Display| {
            tracing::warn!(file = %path.display(), %error, "the ledger of counted migrations is damaged: starting with an empty one");
            BTreeMap::new()
        };
        let marks = match regular_file::read(path, LEDGER_BYTES_MAX) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| start_empty(&error)),
            Err(error) => match error.kind() {
                ErrorKind::NotFound => BTreeMap::new(),
                ErrorKind::InvalidInput | ErrorKind::FileTooLarge => start_empty(&error),
                _ => return Err(error).with_context(|| format!("cannot read {}", path.display())),
            },
        };
        Ok(Self { path: path.to_owned(), marks, is_saved: true })
    }

    /// Counts what is new in `records`, forgets records that are no longer among them, and saves
    /// the ledger if it changed. `is_dead` says whether the process that owns a record is gone.
    ///
    /// # Errors
    /// If the ledger cannot be written. This process does not count the records again, and the next
    /// call retries.
    pub(crate) fn count(
        &mut self,
        records: &[Record],
        counted: &Counted,
        is_dead: impl Fn(&Record) -> bool,
    ) -> Result<()> {
        let mut marks = BTreeMap::new();
        for record in records {
            let earlier_key = format!("{}.{}", record.migration, record.role().name());
            let key = format!("{earlier_key}.{}.{}", record.guest, record.guest_uuid);
            // Earlier versions identified records by their migration alone.
            let before = self.marks.get(&key).or_else(|| self.marks.get(&earlier_key)).copied();
            if before.is_none() {
                counted.migrations_started.inc(&(record.role(),));
            }
            let mut mark = before.unwrap_or(Mark::Started);
            if mark == Mark::Started
                && let Some(ending) = ending(record, &is_dead)
            {
                ending.count(counted);
                mark = Mark::Ended;
            }
            marks.insert(key, mark);
        }
        if marks != self.marks {
            self.marks = marks;
            self.is_saved = false;
        }
        if !self.is_saved {
            durable::write_json(&self.path, &self.marks)?;
            self.is_saved = true;
        }
        Ok(())
    }
}

/// How a migration ended, as it is counted.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Ending {
    Completed {
        direction: Role,
        downtime_seconds: Option<f64>,
        total_seconds: Option<f64>,
        errors: Option<EstimateErrors>,
    },
    Cancelled {
        phase: Phase,
    },
    Failed {
        phase: Phase,
        reason: FailureReason,
    },
}

impl Ending {
    fn count(self, counted: &Counted) {
        match self {
            Self::Completed { direction, downtime_seconds, total_seconds, errors } => {
                counted.migrations_completed.inc(&(direction,));
                if let Some(seconds) = downtime_seconds {
                    counted.completed_downtime.observe(&(direction,), seconds);
                }
                if let Some(seconds) = total_seconds {
                    counted.completed_duration.observe(&(direction,), seconds);
                }
                if let Some(errors) = errors {
                    errors.count(counted);
                }
            }
            Self::Cancelled { phase } => counted.migrations_cancelled.inc(&(phase,)),
            Self::Failed { phase, reason } => counted.migrations_failed.inc(&(phase, reason)),
        }
    }
}

/// How far an estimate was from the migration that followed it: 0 is exact, 0.5 is off by a factor
/// of two, in either direction.
#[derive(Debug, Clone, Copy, PartialEq)]
struct EstimateErrors {
    duration: f64,
    downtime: Option<f64>,
    bytes: f64,
}

impl EstimateErrors {
    /// Compares a migration with its estimate, if there was one.
    fn of(report: &Report) -> Option<Self> {
        let estimate = report.estimate.as_ref()?;
        let error = |estimated: f64, measured: f64| {
            let larger = estimated.max(measured);
            if larger > 0.0 { 1.0 - estimated.min(measured).max(0.0) / larger } else { 0.0 }
        };
        let downtime = report.downtime_seconds;
        Some(Self {
            duration: error(estimate.total_seconds, report.total_seconds),
            downtime: downtime.map(|measured| error(estimate.downtime_seconds, measured)),
            bytes: error(estimate.wire_bytes as f64, report.transfer.wire_bytes as f64),
        })
    }

    fn count(self, counted: &Counted) {
        let Self { duration, downtime, bytes } = self;
        counted.estimate_error.observe(&(EstimateFigure::Duration,), duration);
        counted.estimate_error.observe(&(EstimateFigure::Bytes,), bytes);
        if let Some(downtime) = downtime {
            counted.estimate_error.observe(&(EstimateFigure::Downtime,), downtime);
        }
    }
}

/// Returns how the migration of a record ended; `None` while it has not. The report decides;
/// without one, the state in which a dead process left the record.
fn ending(record: &Record, is_dead: impl Fn(&Record) -> bool) -> Option<Ending> {
    let direction = record.role();
    if let Some(report) = &record.report {
        return reported(report, direction);
    }
    let moved =
        Ending::Completed { direction, downtime_seconds: None, total_seconds: None, errors: None };
    let died = |phase| Ending::Failed { phase, reason: FailureReason::ProcessDied };
    let ending = match &record.side {
        Side::Source { state, .. } => match state {
            SourceState::Undecided | SourceState::Committed | SourceState::Serving => {
                return None;
            }
            SourceState::Done => moved,
            SourceState::Aborted => died(Phase::Precopy),
        },
        Side::Destination { state, .. } => match state {
            DestinationState::Loading | DestinationState::Ready => return None,
            DestinationState::Running => moved,
            DestinationState::Taking | DestinationState::Failed => died(Phase::Resume),
            DestinationState::Discarded => died(Phase::Precopy),
            DestinationState::Fetching | DestinationState::Lost => died(Phase::Postcopy),
        },
    };
    // A live process is about to add its report.
    is_dead(record).then_some(ending)
}

fn reported(report: &Report, direction: Role) -> Option<Ending> {
    if report.outcome == Outcome::InDoubt {
        return None;
    }
    if report.outcome == Outcome::Migrated {
        let (downtime_seconds, total_seconds) =
            (report.downtime_seconds, Some(report.total_seconds));
        let errors = EstimateErrors::of(report);
        return Some(Ending::Completed { direction, downtime_seconds, total_seconds, errors });
    }
    let (phase, why) = report
        .error
        .as_ref()
        .map_or((Phase::Connect, Reason::Other), |error| (error.phase, error.reason));
    Some(match reason(why) {
        None => Ending::Cancelled { phase },
        Some(reason) => Ending::Failed { phase, reason },
    })
}

/// Returns a reason as a label; `None` for a cancelled migration, which is not a failure.
fn reason(reason: Reason) -> Option<FailureReason> {
    Some(match reason {
        Reason::Cancelled => return None,
        Reason::Version => FailureReason::Version,
        Reason::Refused => FailureReason::Refused,
        Reason::Timeout => FailureReason::Timeout,
        Reason::NoAnswer => FailureReason::NoAnswer,
        Reason::ConnectionLost | Reason::UnknownHost | Reason::Unreachable => {
            FailureReason::ConnectionLost
        }
        Reason::UnknownAuthority
        | Reason::WrongName
        | Reason::CertificateExpired
        | Reason::CertificateRefused => FailureReason::Certificate,
        Reason::Protocol => FailureReason::Protocol,
        Reason::Data => FailureReason::Data,
        Reason::Guest => FailureReason::Guest,
        Reason::GuestStopped => FailureReason::GuestStopped,
        Reason::Record => FailureReason::Record,
        Reason::InDoubt => FailureReason::InDoubt,
        Reason::Operator => FailureReason::Operator,
        Reason::Downtime | Reason::Stalled => FailureReason::Downtime,
        Reason::Other => FailureReason::Other,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::SystemTime;

    use metrics::Exporter;
    use migrate::progress::Transfer;
    use migrate::report::{Estimated, ReportedError};

    use super::super::liveness::tests::{destination_record, source_record};
    use super::*;

    /// Returns a source's report with this outcome.
    pub(crate) fn report(outcome: Outcome, error: Option<(Phase, Reason)>) -> Report {
        Report {
            migration: migrate::MigrationId::random(),
            guest: "web".into(),
            role: Role::Source,
            outcome,
            error: error.map(|(phase, reason)| ReportedError {
                phase,
                reason,
                message: String::new(),
            }),
            way_out: None,
            total_seconds: 1.5,
            downtime_seconds: Some(0.012),
            expected_downtime_seconds: None,
            standstill: None,
            stall: None,
            decisions: Vec::new(),
            decision_counts: BTreeMap::new(),
            estimate: None,
            page_waits: None,
            dry_runs: 0,
            dry_run_seconds: 0.0,
            returns: 0,
            return_seconds: 0.0,
            phases: Vec::new(),
            memory_bytes: 0,
            disk_bytes: 0,
            transfer: Transfer::default(),
            links: Vec::new(),
            rounds_total: 0,
            rounds: Vec::new(),
        }
    }

    fn reported_record(outcome: Outcome, error: Option<(Phase, Reason)>) -> Record {
        let mut record = source_record(SourceState::Done, 1);
        record.report = Some(report(outcome, error));
        record
    }

    struct Bench {
        _folder: tempfile::TempDir,
        path: PathBuf,
        exporter: Exporter,
    }

    fn bench() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("counted.json");
        Bench {
            _folder: folder,
            path,
            exporter: Exporter::new("1", "x", SystemTime::now()).unwrap(),
        }
    }

    fn is_one(value: f64) -> bool {
        (value - 1.0).abs() < f64::EPSILON
    }

    #[test]
    fn an_outcome_counts_once_also_for_the_next_node() {
        let bench = bench();
        let counted = bench.exporter.counted();
        let records = [reported_record(Outcome::Migrated, None)];
        let mut ledger = Ledger::open(&bench.path).unwrap();
        ledger.count(&records, counted, |_| true).unwrap();
        ledger.count(&records, counted, |_| true).unwrap();
        assert!(is_one(counted.migrations_started.get(&(Role::Source,))));
        assert!(is_one(counted.migrations_completed.get(&(Role::Source,))));

        let next = Exporter::new("1", "x", SystemTime::now()).unwrap();
        Ledger::open(&bench.path).unwrap().count(&records, next.counted(), |_| true).unwrap();
        assert!(next.counted().migrations_completed.get(&(Role::Source,)) < 0.5);
    }

    #[test]
    fn what_could_not_be_saved_is_saved_later_and_not_counted_again() {
        let bench = bench();
        let (path, counted) =
            (bench.path.with_file_name("away/counted.json"), bench.exporter.counted());
        let records = [reported_record(Outcome::Migrated, None)];
        let mut ledger = Ledger::open(&path).unwrap();
        ledger.count(&records, counted, |_| true).unwrap_err();
        ledger.count(&records, counted, |_| true).unwrap_err();

        std::fs::create_dir(path.parent().unwrap()).unwrap();
        ledger.count(&records, counted, |_| true).unwrap();

        assert_eq!(Ledger::open(&path).unwrap().marks, ledger.marks);
        assert!(is_one(counted.migrations_completed.get(&(Role::Source,))));
    }

    #[test]
    fn a_migration_in_doubt_counts_when_it_is_settled() {
        let bench = bench();
        let counted = bench.exporter.counted();
        let mut record =
            reported_record(Outcome::InDoubt, Some((Phase::Commit, Reason::ConnectionLost)));
        let mut ledger = Ledger::open(&bench.path).unwrap();
        ledger.count(std::slice::from_ref(&record), counted, |_| false).unwrap();
        assert!(
            counted.migrations_failed.get(&(Phase::Commit, FailureReason::ConnectionLost)) < 0.5
        );

        record.report = Some(report(Outcome::Migrated, None));
        ledger.count(&[record], counted, |_| false).unwrap();
        assert!(is_one(counted.migrations_completed.get(&(Role::Source,))));
        assert!(is_one(counted.migrations_started.get(&(Role::Source,))));
    }

    #[test]
    fn a_migration_is_compared_with_its_estimate() {
        let migrated = report(Outcome::Migrated, None);
        assert_eq!(EstimateErrors::of(&migrated), None);
        let estimate = Estimated { total_seconds: 3.0, downtime_seconds: 0.012, wire_bytes: 0 };
        let migrated = Report { estimate: Some(estimate), ..migrated };
        let errors = EstimateErrors { duration: 0.5, downtime: Some(0.0), bytes: 0.0 };
        assert_eq!(EstimateErrors::of(&migrated), Some(errors), "1.5 s, as long, nothing sent");
    }

    #[test]
    fn a_cancellation_is_not_a_failure() {
        let cancelled = reported(
            &report(Outcome::StayedAtSource, Some((Phase::Precopy, Reason::Cancelled))),
            Role::Source,
        );
        assert_eq!(cancelled, Some(Ending::Cancelled { phase: Phase::Precopy }));
        let failed = reported(
            &report(Outcome::StayedAtSource, Some((Phase::Ready, Reason::Data))),
            Role::Source,
        );
        assert_eq!(
            failed,
            Some(Ending::Failed { phase: Phase::Ready, reason: FailureReason::Data })
        );
    }

    #[test]
    fn a_process_that_died_without_a_report_is_counted_by_what_it_recorded() {
        let arrived = destination_record(DestinationState::Running, 1);
        assert_eq!(ending(&arrived, |_| false), None, "its report is still to come");
        assert!(matches!(
            ending(&arrived, |_| true),
            Some(Ending::Completed { direction: Role::Destination, .. })
        ));
        let lost = destination_record(DestinationState::Discarded, 1);
        assert!(matches!(
            ending(&lost, |_| true),
            Some(Ending::Failed { reason: FailureReason::ProcessDied, .. })
        ));
        assert_eq!(ending(&source_record(SourceState::Committed, 1), |_| true), None);
    }

    #[test]
    fn a_damaged_ledger_starts_empty() {
        let bench = bench();
        std::fs::write(&bench.path, "{\"x\": 7").unwrap();
        let mut ledger = Ledger::open(&bench.path).unwrap();
        ledger
            .count(&[reported_record(Outcome::Migrated, None)], bench.exporter.counted(), |_| true)
            .unwrap();
        assert!(is_one(bench.exporter.counted().migrations_completed.get(&(Role::Source,))));
    }

    #[test]
    fn a_special_file_is_replaced_by_a_ledger() {
        let bench = bench();
        nix::unistd::mkfifo(&bench.path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut ledger = Ledger::open(&bench.path).unwrap();
        ledger
            .count(&[reported_record(Outcome::Migrated, None)], bench.exporter.counted(), |_| true)
            .unwrap();
        assert_eq!(Ledger::open(&bench.path).unwrap().marks, ledger.marks);
    }

    #[test]
    fn the_ledger_drops_removed_records() {
        let bench = bench();
        let mut ledger = Ledger::open(&bench.path).unwrap();
        ledger
            .count(&[reported_record(Outcome::Migrated, None)], bench.exporter.counted(), |_| true)
            .unwrap();
        ledger.count(&[], bench.exporter.counted(), |_| true).unwrap();
        assert!(Ledger::open(&bench.path).unwrap().marks.is_empty());
    }
}
