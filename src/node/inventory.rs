//! The guests on this host: found by their folders and locks, and asked over their sockets. The
//! node remembers none of this, so a restarted node knows as much as one that never stopped.

use std::time::Duration;

use memopt::observe::ProcessCost;
use tokio::task::JoinSet;

use crate::api::ApiClient;
use crate::api::migration::MigrationStatus;
use crate::api::types::{GuestInfo, WorkloadInfo};
use crate::names::GuestName;
use crate::state_dir::{GuestDir, StateDir};

/// How long one guest may take over all requests of one query. Guests are queried concurrently, so
/// hung guests delay a scrape by this time, however many there are.
const GUEST_PATIENCE: Duration = Duration::from_secs(2);

/// The result of a query to one guest.
#[derive(Debug)]
pub(crate) struct GuestAnswer {
    /// The guest's name.
    pub(crate) name: GuestName,
    /// Its answers, or why there are none.
    pub(crate) answer: Result<GuestView, String>,
}

/// A guest that answered.
#[derive(Debug)]
pub(crate) struct GuestView {
    /// State of the guest.
    pub(crate) info: GuestInfo,
    /// Its current or last migration, as its process reports it.
    pub(crate) migration: Option<MigrationStatus>,
    /// Report of the built-in workload; other guests have none.
    pub(crate) workload: Option<WorkloadInfo>,
    /// Memory that its process uses on the host, if that could be read.
    pub(crate) cost: Option<ProcessCost>,
}

/// Queries every live guest, all concurrently.
///
/// # Errors
/// If the folder of guests cannot be read.
pub(crate) async fn query_guests(state: &StateDir) -> anyhow::Result<Vec<GuestAnswer>> {
    let mut queries: JoinSet<GuestAnswer> =
        state.live_guests()?.into_iter().map(query_guest).collect();
    let mut sightings = Vec::with_capacity(queries.len());
    while let Some(done) = queries.join_next().await {
        match done {
            Ok(sighting) => sightings.push(sighting),
            Err(error) => {
                tracing::error!(%error, "a guest is omitted: querying it failed by a bug in lighter; report it");
            }
        }
    }
    sightings.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(sightings)
}

/// Queries one live guest.
pub(crate) async fn query_guest(dir: GuestDir) -> GuestAnswer {
    let name = dir.name().clone();
    let answer = match tokio::time::timeout(GUEST_PATIENCE, ask(&dir)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!(
            "no answer within {} s: its process hangs, or the host is overloaded",
            GUEST_PATIENCE.as_secs()
        )),
    };
    GuestAnswer { name, answer }
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
