//! Estimates of a migration of this process's guest, and the last one, with which the migration
//! that follows is compared.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use migrate::estimate::Estimate;
use migrate::pages::Compression;
use migrate::report::Estimated;
use migrate::{OnStall, SourceGuest};
use vmm_core::with_short_slices;

use super::disks::Disks;
use super::leaving;
use super::machine::SharedMachine;
use super::process::{GuestProcess, Occupation};
use crate::api::ApiError;
use crate::api::migration::{CopyDisks, MigrationRequest};

/// How long an estimate is kept: a guest may do something else by then.
const KEPT: Duration = Duration::from_mins(10);

/// The last estimate.
#[derive(Debug, Default)]
pub(super) struct LastEstimate(Mutex<Option<Kept>>);

#[derive(Debug)]
struct Kept {
    made: Instant,
    terms: Terms,
    figures: Estimated,
}

/// What a migration must have in common with an estimate to be compared with it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Terms {
    /// The destination, as the user wrote it.
    destination: String,
    via: Vec<IpAddr>,
    connections: Option<u8>,
    compression: Compression,
    bandwidth: Option<u64>,
    downtime_ms_max: u64,
    raised_downtime_ms_max: Option<u64>,
    on_stall: Option<OnStall>,
    copy_disks: Option<CopyDisks>,
}

impl Terms {
    pub(super) fn of(request: &MigrationRequest) -> Self {
        Self {
            destination: request.destination.clone(),
            via: request.via.clone(),
            connections: request.connections,
            compression: request.compression,
            bandwidth: request.bandwidth_bytes_per_s_max,
            downtime_ms_max: request.downtime_ms_max,
            raised_downtime_ms_max: request.raised_downtime_ms_max,
            on_stall: request.on_stall,
            copy_disks: request.copy_disks.clone(),
        }
    }
}

impl LastEstimate {
    /// Keeps the figures of an estimate; without figures, the guest does not arrive, and there is
    /// nothing to compare.
    fn keep(&self, terms: Terms, figures: Option<Estimated>, made: Instant) {
        *self.kept() = figures.map(|figures| Kept { made, terms, figures });
    }

    /// Takes the figures if they are of a migration on these terms and not older than ten minutes.
    /// One estimate is compared with one migration.
    pub(super) fn take_for(&self, terms: &Terms, now: Instant) -> Option<Estimated> {
        let kept = self.kept().take()?;
        let is_fresh = now.saturating_duration_since(kept.made) <= KEPT;
        (is_fresh && kept.terms == *terms).then_some(kept.figures)
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
        let records = self.0.records();
        let estimate = || migrate::session::estimate(session, &guest, &tls, &records);
        let estimated = with_short_slices(estimate).map_err(ApiError::failed)?;
        let estimate = estimated.map_err(ApiError::failed)?;
        let figures = estimate.forecast.figures();
        self.0.last_estimate().keep(Terms::of(request), figures, Instant::now());
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
    fn an_estimate_is_compared_with_one_migration_on_its_terms_soon_after() {
        let made = Instant::now();
        let figures = Estimated { total_seconds: 1.5, downtime_seconds: 0.02, wire_bytes: 4096 };
        let terms = Terms {
            destination: "host-b".to_owned(),
            via: Vec::new(),
            connections: None,
            compression: Compression::Auto,
            bandwidth: None,
            downtime_ms_max: 300,
            raised_downtime_ms_max: None,
            on_stall: None,
            copy_disks: None,
        };
        let taken = |of: &Terms, after: Duration| {
            let last = LastEstimate::default();
            last.keep(terms.clone(), Some(figures), made);
            let first = last.take_for(of, made + after);
            assert_eq!(last.take_for(&terms, made), None, "once");
            first
        };
        assert_eq!(taken(&terms, KEPT), Some(figures));
        assert_eq!(taken(&terms, KEPT + Duration::from_secs(1)), None);
        let elsewhere = Terms { destination: "host-c".to_owned(), ..terms.clone() };
        let slower = Terms { bandwidth: Some(1 << 20), ..terms.clone() };
        for other in [elsewhere, slower] {
            assert_eq!(taken(&other, Duration::ZERO), None);
        }

        let last = LastEstimate::default();
        last.keep(terms.clone(), Some(figures), made);
        last.keep(terms.clone(), None, made);
        assert_eq!(last.take_for(&terms, made), None, "the later one does not arrive");
    }
}
