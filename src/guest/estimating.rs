//! Estimates of a migration of this process's guest, and the last one, with which the migration
//! that follows is compared.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use migrate::SourceGuest;
use migrate::estimate::Estimate;
use migrate::report::Estimated;

use super::disks::Disks;
use super::leaving;
use super::machine::SharedMachine;
use super::process::{GuestProcess, Occupation};
use crate::api::ApiError;
use crate::api::migration::MigrationRequest;

/// How long an estimate is kept: a guest may do something else by then.
const KEPT: Duration = Duration::from_mins(10);

/// The last estimate.
#[derive(Debug, Default)]
pub(super) struct LastEstimate(Mutex<Option<Kept>>);

#[derive(Debug)]
struct Kept {
    made: Instant,
    /// The destination, as the user wrote it.
    destination: String,
    figures: Estimated,
}

impl LastEstimate {
    /// Keeps the figures of an estimate; without figures, the guest does not arrive, and there is
    /// nothing to compare.
    fn keep(&self, destination: &str, figures: Option<Estimated>, made: Instant) {
        let destination = destination.to_owned();
        *self.kept() = figures.map(|figures| Kept { made, destination, figures });
    }

    /// Takes the figures if they are of a migration to this destination and not older than ten
    /// minutes. One estimate is compared with one migration.
    pub(super) fn take_for(&self, destination: &str, now: Instant) -> Option<Estimated> {
        let kept = self.kept().take()?;
        let is_fresh = now.saturating_duration_since(kept.made) <= KEPT;
        (is_fresh && kept.destination == destination).then_some(kept.figures)
    }

    fn kept(&self) -> MutexGuard<'_, Option<Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An estimate under way. Dropping this ends the process's occupation with it.
#[derive(Debug)]
pub(super) struct Estimating<'a>(&'a GuestProcess);

impl<'a> Estimating<'a> {
    /// Occupies `process`, whose `occupation` the caller has checked.
    pub(super) fn begin(process: &'a GuestProcess, occupation: &mut Occupation) -> Self {
        process.occupy(occupation, Occupation::Estimating);
        Self(process)
    }

    /// Estimates the migration of `machine`, which is that of the process.
    ///
    /// # Errors
    /// If the request is invalid, or the path or the guest cannot be measured.
    pub(super) fn estimate(
        &self,
        machine: &SharedMachine,
        request: &MigrationRequest,
    ) -> Result<Estimate, ApiError> {
        let session = leaving::session(request)?;
        // Shared disks are not marked: nothing is proved to the destination.
        let disks = Disks { copied: request.copy_disks.as_ref(), are_vouched: true };
        let (guest, tls) = leaving::departing(machine, request, session.migration, disks)?;
        // If KVM cannot stop the survey's log, the start of the estimate's log replaces it.
        self.0.surveys().call_off(machine);
        let guest: Arc<dyn SourceGuest> = Arc::new(guest);
        let estimated = migrate::session::estimate(session, &guest, &tls, &self.0.records());
        let estimate = estimated.map_err(ApiError::failed)?;
        self.0.last_estimate().keep(
            &request.destination,
            estimate.forecast.figures(),
            Instant::now(),
        );
        Ok(estimate)
    }
}

impl Drop for Estimating<'_> {
    fn drop(&mut self) {
        *self.0.occupation() = Occupation::None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_is_compared_with_one_migration_to_its_destination_soon_after() {
        let made = Instant::now();
        let figures = Estimated { total_seconds: 1.5, downtime_seconds: 0.02, wire_bytes: 4096 };
        let taken = |destination: &str, after: Duration| {
            let last = LastEstimate::default();
            last.keep("host-b", Some(figures), made);
            let first = last.take_for(destination, made + after);
            assert_eq!(last.take_for("host-b", made), None, "once");
            first
        };
        assert_eq!(taken("host-b", KEPT), Some(figures));
        assert_eq!(taken("host-b", KEPT + Duration::from_secs(1)), None);
        assert_eq!(taken("host-c", Duration::ZERO), None);

        let last = LastEstimate::default();
        last.keep("host-b", Some(figures), made);
        last.keep("host-b", None, made);
        assert_eq!(last.take_for("host-b", made), None, "the later one does not arrive");
    }
}
