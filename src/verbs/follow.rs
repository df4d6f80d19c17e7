//! Follows a migration to its end: asks the guest's process while there is one, and reads the
//! record once it is gone.
//!
//! A process whose guest has moved away exits, and its socket goes with it. It writes its report to
//! the record before that, so no report is lost, whichever comes first.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use migrate::progress::Role;
use migrate::record::Record;
use migrate::report::Outcome;
use migrate::{MigrationId, Progress, Report};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::session::is_gone_within;
use crate::api::migration::MigrationStatus;
use crate::api::types::StateAnswer;
use crate::api::{ApiClient, AskError, Reason};
use crate::exit::{Exit, ExitWith};
use crate::names::GuestName;
use crate::output;
use crate::state_dir::StateDir;

/// Time between two requests for the state.
const INTERVAL: Duration = Duration::from_millis(50);

/// How long a process that no longer answers may take to exit.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// How long a live process may leave requests unanswered: the host may be busy, or the process
/// frozen.
const SILENCE_PATIENCE: Duration = Duration::from_secs(20);

/// How long the other host may be silent after the hand-over before the user is told that the guest
/// is in doubt.
const DOUBT_PATIENCE: Duration = Duration::from_secs(10);

/// Receives Ctrl-C from now on, so that none is lost, whatever the command is doing.
///
/// # Errors
/// If a signal handler cannot be installed.
pub(crate) fn interrupts() -> Result<UnboundedReceiver<()>> {
    let mut signal = signal(SignalKind::interrupt()).context("cannot hear Ctrl-C")?;
    let (pressed, interrupts) = unbounded_channel();
    tokio::spawn(async move { while signal.recv().await.is_some() && pressed.send(()).is_ok() {} });
    Ok(interrupts)
}

/// Follows a migration for a user.
#[derive(Debug)]
pub(crate) struct Follower {
    /// State folder of this host.
    pub(crate) state: StateDir,
    /// Name of the guest.
    pub(crate) name: GuestName,
    /// ID of the migration.
    pub(crate) id: MigrationId,
    /// Side of the migration on this host.
    pub(crate) role: Role,
}

impl Follower {
    /// Shows progress until the migration has ended, and returns its report. The first of
    /// `interrupts` cancels the migration; after a second one this returns without waiting for
    /// that.
    ///
    /// # Errors
    /// If the guest's process died without a report or does not answer, the guest is in doubt, or
    /// the user left.
    pub(crate) async fn to_the_end(
        &self,
        interrupts: &mut UnboundedReceiver<()>,
        mut show: impl FnMut(&Progress),
    ) -> Result<Report> {
        let client = ApiClient::new(&self.state.guest(&self.name).socket());
        let mut cancelled = false;
        let mut doubt = Doubt::default();
        let mut answered = Instant::now();
        loop {
            tokio::select! {
                Some(()) = interrupts.recv() => {
                    if std::mem::replace(&mut cancelled, true) {
                        return Err(self.left());
                    }
                    output::note("\ncalling the migration off (Ctrl-C again does not wait for that)");
                    tokio::select! {
                        Some(()) = interrupts.recv() => return Err(self.left()),
                        answer = client.delete::<StateAnswer>("/v1/guest/migration") => {
                            if let Err(error) = answer {
                                output::note(format_args!("lighter: {error}"));
                            }
                        }
                    }
                }
                () = tokio::time::sleep(INTERVAL) => {
                    match self.poll(&client).await {
                        Ok(Poll::Over(report)) => return Ok(self.conclude(report).await),
                        Ok(Poll::UnderWay(progress)) => {
                            answered = Instant::now();
                            show(&progress);
                            doubt.consider(&self.name, &progress, Instant::now())?;
                        }
                        Ok(Poll::Elsewhere) => return self.read_record(),
                        Err(error) if error.is_gone() => {
                            return if self.ends().await {
                                self.read_record()
                            } else {
                                Err(self.lost_sight(&error))
                            };
                        }
                        Err(_) if answered.elapsed() < SILENCE_PATIENCE => {}
                        Err(error) => return Err(self.lost_sight(&error)),
                    }
                }
            }
        }
    }

    /// Waits silently for the report of a migration that is about to end.
    ///
    /// # Errors
    /// If the process is gone without a report.
    pub(crate) async fn report(&self) -> Result<Report> {
        let client = ApiClient::new(&self.state.guest(&self.name).socket());
        loop {
            match self.poll(&client).await {
                Ok(Poll::Over(report)) => return Ok(self.conclude(report).await),
                Ok(Poll::Elsewhere) => return self.read_record(),
                Err(error) if error.is_gone() && self.ends().await => return self.read_record(),
                Ok(Poll::UnderWay(_)) | Err(_) => tokio::time::sleep(INTERVAL).await,
            }
        }
    }

    /// Asks the guest's process about this migration.
    async fn poll(&self, client: &ApiClient) -> Result<Poll, AskError> {
        let status = match client.get::<MigrationStatus>("/v1/guest/migration").await {
            // Another process has the name now, and was never in any migration.
            Err(AskError::Refused(error)) if error.reason == Reason::NotMigrating => {
                return Ok(Poll::Elsewhere);
            }
            answer => answer?,
        };
        let is_this = |migration| migration == self.id;
        Ok(match (status.report, status.progress) {
            (Some(report), _) if is_this(report.migration) => Poll::Over(report),
            (_, Some(progress)) if is_this(progress.migration) => Poll::UnderWay(progress),
            _ => Poll::Elsewhere,
        })
    }

    /// A process that no longer has the guest is about to exit. Waits for that, since the guest's
    /// name is free on this host only afterwards.
    async fn conclude(&self, report: Report) -> Report {
        let goes_on = match self.role {
            Role::Source => report.outcome != Outcome::Migrated,
            Role::Destination => report.outcome == Outcome::Migrated,
        };
        if !goes_on && !self.ends().await {
            output::note(format_args!(
                "lighter: the process of {0} should end now and does not: see `lighter show {0}`",
                self.name
            ));
        }
        report
    }

    /// Whether the process exits within `END_PATIENCE`.
    async fn ends(&self) -> bool {
        is_gone_within(&self.state.guest(&self.name), None, END_PATIENCE).await
    }

    /// The error for a process that lives and does not answer as it should. The migration continues
    /// without this follower.
    fn lost_sight(&self, error: &AskError) -> anyhow::Error {
        let message = format!(
            "cannot watch the migration of {0} any more: {error}; it continues; `lighter show {0}` shows its progress",
            self.name
        );
        ExitWith { exit: Exit::Unwatched, message }.into()
    }

    /// The error for a process that lives and has no report: a bug has ended its migration thread.
    fn broke_down(&self) -> anyhow::Error {
        anyhow!(
            "the migration of {0} ended without a report, by a bug in lighter: see `lighter show {0}` for the guest's state, and \
             report the bug with the log of the guest's process (`lighter logs --process {0}`)",
            self.name
        )
    }

    fn left(&self) -> anyhow::Error {
        let message = format!(
            "cancellation of the migration of {0} requested; not waiting for it: `lighter show {0}` tells whether it came in time",
            self.name
        );
        ExitWith { exit: Exit::Unwatched, message }.into()
    }

    /// Reads the report in the record, when the process has exited or reports another migration.
    fn read_record(&self) -> Result<Report> {
        let is_its = |record: &Record| record.guest == self.name.as_str();
        let record = self.state.records()?.read(self.id, self.role, is_its)?;
        match record.and_then(|record| record.report) {
            Some(report) => Ok(report),
            None if self.state.guest(&self.name).is_live() => Err(self.broke_down()),
            None => bail!(
                "the process of {} died during the migration {}; the nodes settle which host has the guest: start \
                 `lighter node` here if it does not run, then `lighter show` it on both hosts",
                self.name,
                self.id
            ),
        }
    }
}

/// The guest's process's answer about a migration.
#[derive(Debug)]
enum Poll {
    /// The migration is under way.
    UnderWay(Progress),
    /// The migration has ended.
    Over(Report),
    /// The process reports another migration, or none.
    Elsewhere,
}

/// How long a guest has been in doubt, or the host out of reach on which it already runs.
#[derive(Debug, Default)]
struct Doubt {
    since: Option<Instant>,
    /// Whether the user has been told that the memory of a guest that runs there has to wait.
    is_told: bool,
}

impl Doubt {
    /// Updates the time with the migration's current progress.
    ///
    /// # Errors
    /// If the guest has been in doubt for too long; the message says what to do.
    fn consider(&mut self, name: &GuestName, progress: &Progress, now: Instant) -> Result<()> {
        let Some(way_out) = &progress.in_doubt else {
            self.since = None;
            if std::mem::take(&mut self.is_told) {
                output::note(format_args!(
                    "\nthe hosts have met again: the memory of {name} goes on"
                ));
            }
            return Ok(());
        };
        if now.duration_since(*self.since.get_or_insert(now)) < DOUBT_PATIENCE {
            return Ok(());
        }
        if progress.doubt().is_none() {
            // It runs there, and goes on automatically.
            if !std::mem::replace(&mut self.is_told, true) {
                output::note(format_args!("\n{way_out}"));
            }
            return Ok(());
        }
        let message = format!(
            "the migration of {name} is in doubt: the other host has been silent for {} s since the guest was handed over; \
             the guest is paused here, and its process keeps asking\n{way_out}",
            DOUBT_PATIENCE.as_secs()
        );
        Err(ExitWith { exit: Exit::InDoubt, message }.into())
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::{MethodRouter, delete, get};
    use axum::{Json, Router};

    use migrate::record::{Side, SourceState};
    use migrate::{Phase, Token};

    use super::super::summary::tests::report;
    use super::*;
    use crate::api::server::{Audience, Server};
    use crate::exit;
    use crate::state_dir::GuestClaim;

    /// A guest `web` whose process gives configured answers.
    struct Scene {
        _claim: GuestClaim,
        _server: Server,
        _folder: tempfile::TempDir,
        follower: Follower,
    }

    fn scene(migration: MethodRouter) -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path()).unwrap();
        let name: GuestName = "web".parse().unwrap();
        let claim = state.guest(&name).claim().unwrap();
        let router = Router::new().route("/v1/guest/migration", migration);
        let server = Server::start(&state.guest(&name).socket(), router, Audience::Owner).unwrap();
        let follower = Follower { state, name, id: MigrationId::random(), role: Role::Source };
        Scene { _claim: claim, _folder: folder, _server: server, follower }
    }

    /// Returns a source's record of a migration after which the guest stayed.
    fn record(migration: MigrationId) -> Record {
        let address = ([127, 0, 0, 1], 4950).into();
        Record {
            migration,
            guest: "web".to_owned(),
            guest_uuid: uuid::Uuid::nil(),
            pid: 1,
            started_unix_ms: 0,
            updated_unix_ms: 0,
            side: Side::Source {
                state: SourceState::Aborted,
                destination: "host-b".to_owned(),
                server_name: "host-b".to_owned(),
                node_address: address,
                process_address: address,
                token: Token([7; 32]),
            },
            report: Some(Report { migration, ..report(Outcome::StayedAtSource, None) }),
        }
    }

    /// Returns the error with which a follower ends, which must be soon.
    async fn failure(followed: impl Future<Output = Result<Report>>) -> anyhow::Error {
        tokio::time::timeout(Duration::from_secs(30), followed).await.unwrap().unwrap_err()
    }

    #[tokio::test]
    async fn a_second_ctrl_c_does_not_wait() {
        let scene = scene(delete(std::future::pending::<()>));
        let (press, mut interrupts) = unbounded_channel();
        press.send(()).unwrap();
        press.send(()).unwrap();

        let error = failure(scene.follower.to_the_end(&mut interrupts, |_| ())).await;

        assert_eq!(exit::of_error(&error), Exit::Unwatched);
        assert!(error.to_string().contains("not waiting for it"), "{error}");
    }

    #[tokio::test]
    async fn a_live_process_without_a_socket_is_no_longer_followed() {
        let scene = scene(get(std::future::pending::<()>));
        let socket = scene.follower.state.guest(&scene.follower.name).socket();
        std::fs::remove_file(socket).unwrap();

        let error = failure(scene.follower.to_the_end(&mut interrupts().unwrap(), |_| ())).await;

        assert_eq!(exit::of_error(&error), Exit::Unwatched);
    }

    #[tokio::test]
    async fn another_migration_is_neither_shown_nor_waited_for() {
        let later = MigrationStatus {
            progress: Some(Progress::new(MigrationId::random(), Role::Source)),
            report: Some(report(Outcome::StayedAtSource, None)),
        };
        let scene = scene(get(async || Json(later)));
        let record = record(scene.follower.id);
        let records = scene.follower.state.records().unwrap();
        records.create(&record).unwrap();

        let mut interrupts = interrupts().unwrap();
        let followed = scene.follower.to_the_end(&mut interrupts, |_| panic!("shown"));

        let ended = tokio::time::timeout(Duration::from_secs(30), followed).await.unwrap();
        assert_eq!(Some(ended.unwrap()), record.report);
    }

    #[tokio::test]
    async fn a_migration_that_ended_without_a_report_is_not_followed_for_ever() {
        let scene = scene(get(async || Json(MigrationStatus::default())));
        let error = failure(scene.follower.to_the_end(&mut interrupts().unwrap(), |_| ())).await;

        let message = error.to_string();
        assert!(
            message.contains("without a report") && message.contains("lighter show web"),
            "{message}"
        );
    }

    #[test]
    fn a_guest_whose_memory_waits_for_the_network_is_watched_further() {
        let name: GuestName = "web".parse().unwrap();
        let mut outage = Progress::new(MigrationId::random(), Role::Source);
        (outage.phase, outage.in_doubt) = (Phase::Postcopy, Some("it waits".to_owned()));
        let (mut doubt, start) = (Doubt::default(), Instant::now());
        for after in [Duration::ZERO, 2 * DOUBT_PATIENCE] {
            doubt.consider(&name, &outage, start + after).unwrap();
        }
        assert!(doubt.is_told);
        let over = Progress { in_doubt: None, ..outage };
        doubt.consider(&name, &over, start).unwrap();
        assert!(!doubt.is_told);
    }

    #[test]
    fn a_lasting_doubt_ends_with_the_remedy() {
        let name: GuestName = "web".parse().unwrap();
        let sure = Progress::new(MigrationId::random(), Role::Source);
        let unsure = Progress { in_doubt: Some("--resolve".to_owned()), ..sure.clone() };
        let (mut doubt, start) = (Doubt::default(), Instant::now());
        let mut consider = |progress, after| doubt.consider(&name, progress, start + after);

        consider(&unsure, Duration::ZERO).unwrap();
        consider(&sure, DOUBT_PATIENCE / 2).unwrap();
        consider(&unsure, DOUBT_PATIENCE).unwrap();
        let error = consider(&unsure, DOUBT_PATIENCE * 2).unwrap_err();
        assert_eq!(exit::of_error(&error), Exit::InDoubt);
        assert!(error.to_string().contains("--resolve"), "{error}");
    }
}
