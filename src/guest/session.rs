//! A migration of this process's guest, in either direction, as the rest of the process sees it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use migrate::error::{
    CancelRefused, ChangeRefused, OperatorChoice, PostcopyRefused, RecoverRefused, ResolveRefused,
};
use migrate::limits::LimitsChange;
use migrate::progress::Role;
use migrate::record::{Record, RecordError};
use migrate::session::Handle;
use migrate::{MigrationId, Phase, Progress, Report};

use super::process::GuestProcess;
use crate::api::migration::MigrationStatus;
use crate::api::{ApiError, Reason};

/// A PID that no process has.
const NO_PROCESS: u32 = 0;

/// A migration, from its start until nothing of it is left. This is only a handle: dropping it
/// changes nothing.
#[derive(Debug, Clone)]
pub(crate) struct MigrationSession(Handle);

impl MigrationSession {
    /// Wraps the migration of `handle`.
    pub(super) fn new(handle: Handle) -> Self {
        Self(handle)
    }

    /// The handle of the session itself.
    pub(super) fn handle(&self) -> &Handle {
        &self.0
    }

    /// Id of the migration.
    pub(crate) fn id(&self) -> MigrationId {
        self.0.migration()
    }

    /// Returns a copy of the migration's progress so far.
    pub(super) fn progress(&self) -> Progress {
        self.0.progress().borrow().clone()
    }

    /// The report, once the migration has ended.
    pub(super) fn report(&self) -> Option<Report> {
        self.0.report().borrow().clone()
    }

    /// Reads the record that the session has left on this side of the migration, if there is one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn record(
        &self,
        process: &GuestProcess,
        role: Role,
    ) -> Result<Option<Record>, RecordError> {
        process.records().read(self.id(), role, |_| true)
    }

    /// Why it cannot be determined at the moment which host has the guest, and the way out; `None`
    /// if the guest is not in doubt.
    pub(crate) fn doubt(&self) -> Option<String> {
        self.progress().doubt().map(str::to_owned)
    }

    /// What can be done while the other host is out of reach after the hand-over.
    pub(crate) fn way_out(&self) -> Option<String> {
        self.progress().in_doubt
    }

    /// Whether the guest runs at the destination, and its memory follows it.
    pub(crate) fn is_handed_over(&self) -> bool {
        self.progress().phase == Phase::Postcopy
    }

    /// Leaves `record` to the node after the session has broken down: the node continues with it as
    /// if this process were dead.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn disown(process: &GuestProcess, record: Record) -> Result<(), RecordError> {
        process.records().reopen(&record)?.write(&Record { pid: NO_PROCESS, ..record })
    }

    /// Cancels the migration on behalf of `by`.
    ///
    /// # Errors
    /// If it is too late.
    pub(crate) async fn cancel(&self, by: &str) -> Result<(), ApiError> {
        self.0.cancel(by).await.map_err(too_late)
    }

    /// Changes the limits of the migration.
    ///
    /// # Errors
    /// If it is too late, or the guest arrives here.
    pub(crate) async fn change(&self, change: LimitsChange) -> Result<(), ApiError> {
        self.0.change(change).await.map_err(not_changed)
    }

    /// Hands the guest over before its memory.
    ///
    /// # Errors
    /// If one of the hosts cannot, it is too late, or the guest arrives here.
    pub(crate) async fn postcopy(&self) -> Result<(), ApiError> {
        self.0.postcopy().await.map_err(not_first)
    }

    /// Looks for the destination at another address.
    ///
    /// # Errors
    /// If the destination is in reach and the guest has not been handed over, or the guest arrives
    /// here.
    pub(crate) async fn recover(&self, address: SocketAddr) -> Result<(), ApiError> {
        self.0.recover(address).await.map_err(not_recovered)
    }

    /// Applies an operator's decision.
    ///
    /// # Errors
    /// If the guest is not in doubt.
    pub(crate) async fn resolve(&self, choice: OperatorChoice) -> Result<(), ApiError> {
        self.0.resolve(choice).await.map_err(not_in_doubt)
    }

    /// Reports the progress of the migration as events of the guest of `process`, as `status` shows
    /// it, from now on until nothing of the migration is left.
    pub(super) fn report_events(
        &self,
        process: &GuestProcess,
        role: Role,
        status: impl Fn() -> MigrationStatus + Send + 'static,
    ) {
        let events = Arc::clone(process.events());
        let (mut progress, mut report) = (self.0.progress(), self.0.report());
        events.migration_started(self.id(), role);
        process.runtime().spawn(async move {
            loop {
                // Marked before the report, so that a change during it leads to the next one.
                progress.mark_unchanged();
                report.mark_unchanged();
                events.migration(&status());
                let changed = tokio::select! {
                    changed = progress.changed() => changed,
                    changed = report.changed() => changed,
                };
                if changed.is_err() {
                    break;
                }
            }
            events.migration(&status());
        });
    }

    /// Waits until nothing of the migration is left, for at most `patience`.
    pub(crate) async fn settled_within(&self, patience: Duration) {
        // Whatever is left is on disk, and the node continues with it.
        let _left = tokio::time::timeout(patience, self.0.settled()).await;
    }

    /// Waits until nothing of the migration is left, but not if nothing is sent for `patience`.
    pub(crate) async fn settled_unless_silent(&self, patience: Duration) {
        unless_silent(patience, self.0.settled(), || self.progress().transfer).await;
    }
}

/// Waits for `end`, but not if what is `sent` stays the same for `patience`.
async fn unless_silent<T: PartialEq>(patience: Duration, end: impl Future, sent: impl Fn() -> T) {
    let mut end = std::pin::pin!(end);
    loop {
        let before = sent();
        if tokio::time::timeout(patience, &mut end).await.is_ok() || sent() == before {
            return;
        }
    }
}

// Passed to `map_err`, which passes the error by value.
#[allow(clippy::needless_pass_by_value)]
fn too_late(error: CancelRefused) -> ApiError {
    let reason = match error {
        CancelRefused::Over => Reason::NotMigrating,
        CancelRefused::Committed | CancelRefused::SourceDecides => Reason::TooLate,
    };
    ApiError::new(reason, error.to_string())
}

#[allow(clippy::needless_pass_by_value)]
fn not_changed(error: ChangeRefused) -> ApiError {
    let reason = match error {
        ChangeRefused::Over => Reason::NotMigrating,
        ChangeRefused::NotHere => Reason::WrongState,
        ChangeRefused::Late | ChangeRefused::OnlyBandwidth => Reason::TooLate,
        ChangeRefused::BelowLimit { .. } => Reason::BadRequest,
    };
    ApiError::new(reason, error.to_string())
}

#[allow(clippy::needless_pass_by_value)]
fn not_first(error: PostcopyRefused) -> ApiError {
    let reason = match error {
        PostcopyRefused::Over => Reason::NotMigrating,
        error if error.is_permanent() => Reason::WrongState,
        _ => Reason::TooLate,
    };
    ApiError::new(reason, error.to_string())
}

#[allow(clippy::needless_pass_by_value)]
fn not_recovered(error: RecoverRefused) -> ApiError {
    let reason = match error {
        RecoverRefused::Over => Reason::NotMigrating,
        RecoverRefused::NotHere | RecoverRefused::NotCommitted => Reason::WrongState,
        RecoverRefused::Unrecorded { .. } => Reason::Failed,
    };
    ApiError::new(reason, error.to_string())
}

#[allow(clippy::needless_pass_by_value)]
fn not_in_doubt(error: ResolveRefused) -> ApiError {
    ApiError::new(Reason::NotMigrating, format!("the migration is not in doubt: {error}"))
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_end_is_waited_for_as_long_as_something_is_sent() {
        let (patience, began) = (Duration::from_secs(60), Instant::now());
        unless_silent(patience, std::future::ready(()), || 0).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        unless_silent(patience, tokio::time::sleep(10 * patience), || began.elapsed()).await;
        assert_eq!(began.elapsed().as_secs(), 600);
        let sent = || began.elapsed().as_secs().min(750);
        unless_silent(patience, std::future::pending::<()>(), sent).await;
        assert_eq!(began.elapsed().as_secs(), 840);
    }
}
