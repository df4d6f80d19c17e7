//! The guests on this host: found by their folders and locks, asked through their sockets. Nothing
//! is remembered, so a node that was killed and started again knows as much as one that never
//! stopped.

use std::time::Duration;

use memopt::observe::ProcessCost;
use tokio::task::JoinSet;

use crate::api::ApiClient;
use crate::api::migration::MigrationStatus;
use crate::api::types::{GuestInfo, WorkloadInfo};
use crate::names::GuestName;
use crate::state_dir::{GuestDir, StateDir};

/// How long one guest may take over all questions of one look. A guest that hangs costs a scrape
/// this long, however many hang.
const GUEST_PATIENCE: Duration = Duration::from_secs(2);

/// What a look at one guest found.
#[derive(Debug)]
pub(crate) struct Sighting {
    /// The guest's name.
    pub(crate) name: GuestName,
    /// What it said, or why it said nothing.
    pub(crate) answer: Result<GuestView, String>,
}

/// A guest that answered.
#[derive(Debug)]
pub(crate) struct GuestView {
    /// How it stands.
    pub(crate) info: GuestInfo,
    /// The migration that it is in or was last in, as its process tells it.
    pub(crate) migration: Option<MigrationStatus>,
    /// What the built-in workload reports; other guests have none.
    pub(crate) workload: Option<WorkloadInfo>,
    /// What its process costs the host, when that could be read.
    pub(crate) cost: Option<ProcessCost>,
}

/// Looks at every live guest, at all of them at once.
///
/// # Errors
/// The folder of guests cannot be read.
pub(crate) async fn look(state: &StateDir) -> anyhow::Result<Vec<Sighting>> {
    let mut looks: JoinSet<Sighting> = state.live_guests()?.into_iter().map(look_at).collect();
    let mut sightings = Vec::with_capacity(looks.len());
    while let Some(done) = looks.join_next().await {
        match done {
            Ok(sighting) => sightings.push(sighting),
            Err(error) => tracing::error!(%error, "a look at a guest broke down"),
        }
    }
    sightings.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(sightings)
}

/// Looks at one live guest.
pub(crate) async fn look_at(dir: GuestDir) -> Sighting {
    let name = dir.name().clone();
    let answer = match tokio::time::timeout(GUEST_PATIENCE, ask(&dir)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!(
            "no answer within {} s: its process hangs, or the host is overloaded",
            GUEST_PATIENCE.as_secs()
        )),
    };
    Sighting { name, answer }
}

async fn ask(dir: &GuestDir) -> Result<GuestView, String> {
    let client = ApiClient::new(&dir.socket());
    let info: GuestInfo = client.get("/v1/guest").await.map_err(|error| error.to_string())?;
    let migration = match info.migration_id {
        Some(_) => client.get("/v1/guest/migration").await.ok(),
        None => None,
    };
    let workload = client.get("/v1/guest/workload").await.ok();
    let pid = info.pid;
    let cost = tokio::task::spawn_blocking(move || memopt::observe::process_cost(pid)).await;
    let cost = cost.ok().and_then(|read| {
        read.inspect_err(|error| tracing::debug!(guest = %dir.name(), %error, "cannot read what the guest costs")).ok()
    });
    Ok(GuestView { info, migration, workload, cost })
}
