//! Memory optimization of this host: [`memopt::service`], with what it needs of this program.
//!
//! `memopt` makes all decisions. This module connects it to the hypervisors of this host
//! ([`crate::hypervisors`]) and to its files. [`tally`] counts for Prometheus, and [`api`] has the
//! routes. The node may be killed at any time: the next one asks the guests again what their
//! balloons hold, restores ksmd's settings, and marks interrupted runs in the history.

pub(crate) mod api;
mod tally;
pub(crate) mod types;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use memopt::hypervisor::Hypervisor;
use memopt::observe::Sources;
use memopt::schedule::Moment;
use memopt::service::{self, Client, Clock, Files, Machine, Observer, Setup};
use metrics::{DensityCounted, DensitySample};

use self::tally::Tally;
use crate::cli::host::ForeignGuestsArg;
use crate::clock::{unix_ms, uptime};
use crate::hypervisors::{ForeignGuests, OwnGuests};
use crate::state_dir::StateDir;

/// Memory optimization of this host, as configured in `lighter.toml`.
#[derive(Debug)]
pub(crate) struct Density {
    client: Client,
    tally: Arc<Tally>,
}

/// The host's clocks.
#[derive(Debug)]
struct HostClock;

impl Clock for HostClock {
    fn now(&self) -> Moment {
        Moment { wall: Duration::from_millis(unix_ms()), uptime: uptime() }
    }
}

impl Density {
    /// Starts memory optimization.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub(crate) fn start(
        state: &StateDir,
        foreign: ForeignGuestsArg,
        counted: Arc<DensityCounted>,
    ) -> Result<Self> {
        let own: Arc<dyn Hypervisor> = Arc::new(OwnGuests::new(state.clone()));
        let foreign = claim_foreign_guests(foreign).map(|it| Arc::new(it) as Arc<dyn Hypervisor>);
        let tally = Arc::new(Tally::new(counted));
        let observer: Arc<dyn Observer> = Arc::<Tally>::clone(&tally);
        let files = Files {
            settings: state.settings_file(),
            ledger: state.density_ledger(),
            history: state.density_history(),
        };
        let sources = Sources::system();
        let host = Machine::new(sources.clone(), state.ksm_journal(), Arc::clone(&observer));
        let hypervisors = std::iter::once(own).chain(foreign).collect();
        let setup = Setup { hypervisors, sources, files, clock: Arc::new(HostClock), observer };
        let client = service::start(setup, Box::new(host));
        Ok(Self { client: client.context("cannot start memory optimization")?, tally })
    }

    /// Waits until the service is ready; logs an error if it cannot start.
    pub(crate) async fn opened(&self) {
        if let Err(error) = self.client.opened().await {
            tracing::error!("{error}");
        }
    }

    /// Returns what Prometheus is shown, without another inspection.
    pub(crate) fn sample(&self) -> DensitySample {
        self.tally.sample(self.client.published())
    }

    /// Cancels the current run, and restores ksmd's settings. Balloons keep their size.
    pub(crate) async fn shut_down(&self) {
        self.client.shut_down().await;
    }
}

fn claim_foreign_guests(doing: ForeignGuestsArg) -> Option<ForeignGuests> {
    if doing == ForeignGuestsArg::Off {
        return None;
    }
    let why_not = match ForeignGuests::claim(doing) {
        Ok(Some(claimed)) => return Some(claimed),
        Ok(None) => "another node does".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    tracing::warn!("guests of QEMU and Cloud Hypervisor are not optimized: {why_not}");
    None
}
