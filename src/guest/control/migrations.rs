//! Migrations of the guest: their start, their progress, and decisions about them.

use std::time::Duration;

use migrate::error::OperatorChoice;
use migrate::estimate::Estimate;
use migrate::limits::LimitsChange;

use super::ProcessControl;
use crate::api::migration::{
    LimitsRequest, MigrationRequest, MigrationStarted, MigrationStatus, RecoverRequest, Resolution,
    ResolveRequest,
};
use crate::api::types::StateAnswer;
use crate::api::{ApiError, Reason};
use crate::guest::estimating::Estimating;
use crate::guest::host_devices;
use crate::guest::leaving::Departure;
use crate::guest::process::Occupation;

impl ProcessControl {
    /// Starts a migration.
    ///
    /// # Errors
    /// If the guest is being saved or migrated, or the request is invalid.
    pub(in crate::guest) fn migrate(
        &self,
        request: &MigrationRequest,
    ) -> Result<MigrationStarted, ApiError> {
        let machine = self.machine()?;
        let mut occupation = self.process().occupation();
        self.refuse_when_busy(&occupation)?;
        host_devices::expect_none(machine, self.process().name(), "migrated")?;
        if let Occupation::Arriving(arrival) = &*occupation {
            // It has arrived just now: that is reported before it leaves.
            self.process().events().migration(&arrival.status());
        }
        let departure = Departure::start(&self.0, request)?;
        let id = departure.session().id();
        *occupation = Occupation::Leaving(departure);
        Ok(MigrationStarted { id: id.0 })
    }

    /// Estimates a migration, which takes a few seconds. The guest stays where it is.
    ///
    /// # Errors
    /// As for [`Self::migrate`]; or if the path to the destination, or the guest, cannot be
    /// measured.
    pub(in crate::guest) fn estimate(
        &self,
        request: &MigrationRequest,
    ) -> Result<Estimate, ApiError> {
        let machine = self.machine()?;
        let mut occupation = self.process().occupation();
        self.refuse_when_busy(&occupation)?;
        host_devices::expect_none(machine, self.process().name(), "measured")?;
        let estimating = Estimating::begin(self.process(), &mut occupation);
        drop(occupation);
        estimating.estimate(machine, request)
    }

    /// Returns the progress of the running migration, or how the last one ended.
    ///
    /// # Errors
    /// If there was none.
    pub(in crate::guest) fn migration(&self) -> Result<MigrationStatus, ApiError> {
        match &*self.process().occupation() {
            Occupation::Leaving(departure) => return Ok(departure.status()),
            Occupation::Arriving(arrival) => return Ok(arrival.status()),
            Occupation::None
            | Occupation::Saving(_)
            | Occupation::Saved(_)
            | Occupation::Estimating => {}
        }
        match &*self.process().last_migration() {
            Some((_, status)) => Ok(status.clone()),
            None => self.not_migrating(),
        }
    }

    /// Cancels the running migration. The answer comes at once, the end a little later.
    ///
    /// # Errors
    /// If there is none, or the guest has been handed over.
    pub(in crate::guest) fn cancel(&self) -> Result<StateAnswer, ApiError> {
        // The migration's own thread answers, so no lock may be held meanwhile.
        let occupation = self.process().occupation().clone();
        let by = match occupation {
            Occupation::Arriving(_) => "the user at the destination",
            _ => "the user",
        };
        let Some(session) = occupation.session() else { return self.not_migrating() };
        self.process().runtime().block_on(session.cancel(by))?;
        Ok(self.state())
    }

    /// Changes the limits of the migration that is under way.
    ///
    /// # Errors
    /// If there is none, it has the guest handed over, unless its memory follows it and only the
    /// bandwidth changes, a limit is 0, or the downtime limit is above its new maximum.
    pub(in crate::guest) fn change_limits(
        &self,
        request: &LimitsRequest,
    ) -> Result<StateAnswer, ApiError> {
        let occupation = self.process().occupation().clone();
        let Some(session) = occupation.session() else { return self.not_migrating() };
        if request.downtime_ms_max == Some(0) || request.timeout_ms == Some(0) {
            let text = "a migration needs some time: give a downtime and a time-out above zero";
            return Err(ApiError::new(Reason::BadRequest, text));
        }
        let change = LimitsChange {
            bandwidth: request.bandwidth_bytes_per_s_max,
            downtime: request.downtime_ms_max.map(Duration::from_millis),
            downtime_max: request.raised_downtime_ms_max.map(Duration::from_millis),
            total: request.timeout_ms.map(Duration::from_millis),
            on_stall: request.on_stall,
        };
        self.process().runtime().block_on(session.change(change))?;
        Ok(self.state())
    }

    /// Hands the guest over before its memory, as soon as the migration's current step ends.
    ///
    /// # Errors
    /// If there is no migration, one of the hosts cannot do that, or it is too late.
    pub(in crate::guest) fn postcopy(&self) -> Result<StateAnswer, ApiError> {
        let occupation = self.process().occupation().clone();
        let Some(session) = occupation.session() else { return self.not_migrating() };
        self.process().runtime().block_on(session.postcopy())?;
        Ok(self.state())
    }

    /// Looks for the destination at another address.
    ///
    /// # Errors
    /// If there is no migration, or its destination is in reach and the guest has not been handed
    /// over.
    pub(in crate::guest) fn recover(
        &self,
        request: &RecoverRequest,
    ) -> Result<StateAnswer, ApiError> {
        let occupation = self.process().occupation().clone();
        let Some(session) = occupation.session() else { return self.not_migrating() };
        self.process().runtime().block_on(session.recover(request.address))?;
        Ok(self.state())
    }

    /// Applies an operator's decision about a guest in doubt.
    ///
    /// # Errors
    /// If the guest is not in doubt, or its copy must not run because of its disks.
    pub(in crate::guest) fn resolve(
        &self,
        request: &ResolveRequest,
    ) -> Result<StateAnswer, ApiError> {
        let choice = match request.decision {
            Resolution::Run => OperatorChoice::Run,
            Resolution::Discard => OperatorChoice::Discard,
        };
        let occupation = self.process().occupation().clone();
        let Some(session) = occupation.session() else {
            let text = format!("{} is not in doubt: there is no migration", self.process().name());
            return Err(ApiError::new(Reason::NotMigrating, text));
        };
        if let Occupation::Leaving(departure) = &occupation
            && choice == OperatorChoice::Run
            && !request.unproven_disks
        {
            departure.expect_unwritten_disks(self.process())?;
        }
        self.process().runtime().block_on(session.resolve(choice))?;
        Ok(self.state())
    }

    fn not_migrating<T>(&self) -> Result<T, ApiError> {
        Err(ApiError::new(
            Reason::NotMigrating,
            format!("{} is not being migrated", self.process().name()),
        ))
    }
}
