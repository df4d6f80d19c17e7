//! Queries a guest of another VMM and sets its balloon, the same for all VMMs.

use std::time::Duration;

use super::discover::has_device;
use super::error::ForeignError;
use super::hypervisor::Hypervisor;
use super::qmp::{Qmp, RunState};
use super::{DiscoveredGuest, Monitor};
use crate::observe::Sources;
use crate::situation::{Backing, Balloon, Hindrance, Statistics};

/// How to query a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueryOptions {
    /// The time limit for the whole query; each answer may take half of it.
    pub patience: Duration,
    /// How often QEMU should poll its guest for statistics if no client has set that yet; absent to
    /// leave it unchanged.
    pub statistics_every: Option<Duration>,
    /// The current time, in seconds since the epoch: QEMU stamps statistics with the host's clock.
    pub unix_seconds: u64,
}

/// What a guest's monitor reports.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// The guest's RAM, including plugged memory.
    pub memory_bytes: u64,
    /// What backs the RAM.
    pub backing: Backing,
    /// Whether the kernel may merge the guest's pages.
    pub is_mergeable: bool,
    /// The guest's balloon; absent if it has none, or if the balloon returns nothing to the host
    /// because all memory is pinned (VFIO). QEMU does not report the requested size, so there the
    /// target equals the actual size.
    pub balloon: Option<Balloon>,
    /// Why the guest must not be changed now.
    pub hindrance: Option<Hindrance>,
}

/// Queries a guest's monitor.
///
/// # Errors
/// [`ForeignError::NoMonitor`] if the guest has no usable monitor, or any error of the monitor.
pub async fn query(
    found: &DiscoveredGuest,
    asking: &QueryOptions,
) -> Result<Reading, ForeignError> {
    let each = asking.patience / 2;
    let reading = async {
        match &found.monitor {
            Monitor::Qmp(socket) => {
                let mut qmp = Qmp::connect(socket, found.pid, each).await?;
                query_qemu(found, &mut qmp, asking).await
            }
            Monitor::CloudHypervisor(socket) => {
                let hypervisor = Hypervisor::new(socket, found.pid, each);
                query_hypervisor(found, &hypervisor).await
            }
            Monitor::Libvirt | Monitor::None(_) => Err(no_monitor(found)),
        }
    };
    within_limit(found, asking.patience, reading).await
}

/// Asks a guest to keep `keep_bytes` of its RAM of `memory_bytes`, within `patience` in total.
/// Refuses to inflate the balloon if a device of the host pins the memory; such a device may have
/// been plugged in since [`super::discover()`].
///
/// # Errors
/// [`ForeignError::NoMonitor`] if the guest has no usable monitor, [`ForeignError::NoBalloon`],
/// [`ForeignError::Pinned`], or any error of the monitor.
pub async fn set_balloon(
    sources: &Sources,
    found: &DiscoveredGuest,
    memory_bytes: u64,
    keep_bytes: u64,
    patience: Duration,
) -> Result<(), ForeignError> {
    let each = patience / 2;
    let no_balloon = || ForeignError::NoBalloon { guest: found.name.clone() };
    let is_pinned = || found.has_passthrough || has_device(sources, found.pid);
    let pinned = || ForeignError::Pinned { guest: found.name.clone() };
    let setting = async {
        match &found.monitor {
            Monitor::Qmp(socket) => {
                let mut qmp = Qmp::connect(socket, found.pid, each).await?;
                let actual_bytes = qmp.balloon_actual().await?.ok_or_else(no_balloon)?;
                let outside_bytes = qmp.virtio_mem_bytes().await?;
                if keep_bytes < actual_bytes.saturating_add(outside_bytes) && is_pinned() {
                    return Err(pinned());
                }
                qmp.set_balloon(qemu_target(keep_bytes, memory_bytes, outside_bytes)).await
            }
            Monitor::CloudHypervisor(socket) => {
                let hypervisor = Hypervisor::new(socket, found.pid, each);
                let config = hypervisor.info().await?.config;
                let balloon = config.balloon.ok_or_else(no_balloon)?;
                let has_devices = config.devices.is_some_and(|devices| !devices.is_empty());
                let has_bytes = memory_bytes.saturating_sub(balloon.size);
                if keep_bytes < has_bytes && (has_devices || is_pinned()) {
                    return Err(pinned());
                }
                hypervisor.resize_balloon(memory_bytes.saturating_sub(keep_bytes)).await
            }
            Monitor::Libvirt | Monitor::None(_) => Err(no_monitor(found)),
        }
    };
    within_limit(found, patience, setting).await
}

/// Returns the argument of QEMU's `balloon` command for a guest that keeps `keep_bytes` of
/// `memory_bytes`, of which `outside_bytes` belong to virtio-mem devices. The balloon takes only
/// the other RAM, and leaves a quarter of that, in which the guest's kernel has to live.
fn qemu_target(keep_bytes: u64, memory_bytes: u64, outside_bytes: u64) -> u64 {
    let keep_bytes = keep_bytes.min(memory_bytes);
    match outside_bytes {
        0 => keep_bytes,
        _ => {
            let balloonable = memory_bytes.saturating_sub(outside_bytes);
            keep_bytes.saturating_sub(outside_bytes).max(balloonable / 4)
        }
    }
}

/// Limits the total time, so that a peer which is slow for each of many answers times out too.
async fn within_limit<T>(
    found: &DiscoveredGuest,
    patience: Duration,
    asking: impl Future<Output = Result<T, ForeignError>>,
) -> Result<T, ForeignError> {
    let question = "all that was asked".to_owned();
    let slow = |_| ForeignError::Slow { socket: found.name.clone(), question, patience };
    tokio::time::timeout(patience, asking).await.map_err(slow)?
}

fn no_monitor(found: &DiscoveredGuest) -> ForeignError {
    let why = match found.monitor {
        Monitor::None(why) => why,
        _ => {
            "its only QMP monitor is libvirt's, which serves one client; give it a second one in the domain's XML \
             (qemu:commandline, -qmp unix:PATH,server=on,wait=off)"
        }
    };
    ForeignError::NoMonitor { guest: found.name.clone(), why }
}

async fn query_qemu(
    found: &DiscoveredGuest,
    qmp: &mut Qmp,
    asking: &QueryOptions,
) -> Result<Reading, ForeignError> {
    let state = qmp.run_state().await?;
    let migration = qmp.migration().await?;
    let memory_bytes = qmp.memory_bytes().await?;
    let balloon = match qmp.balloon_actual().await? {
        Some(actual) if !found.has_passthrough => {
            let actual = actual.saturating_add(qmp.virtio_mem_bytes().await?);
            Some(qemu_balloon(qmp, actual, memory_bytes, asking).await?)
        }
        _ => None,
    };
    Ok(Reading {
        memory_bytes,
        backing: found.backing,
        is_mergeable: found.is_mergeable,
        balloon,
        hindrance: qemu_hindrance(&state, migration.as_deref()),
    })
}

async fn qemu_balloon(
    qmp: &mut Qmp,
    actual: u64,
    memory_bytes: u64,
    asking: &QueryOptions,
) -> Result<Balloon, ForeignError> {
    let mut statistics = None;
    let mut offers_reporting = false;
    if let Some(path) = qmp.balloon_path().await? {
        if let Some(interval) = asking.statistics_every {
            qmp.start_statistics(&path, interval).await?;
        }
        statistics = qmp.statistics(&path).await?.at(asking.unix_seconds);
        offers_reporting = qmp.offers_reporting(&path).await?;
    }
    // QEMU does not report whether a driver serves the balloon. Only a driver can send statistics
    // or fill the balloon.
    let has_driver = statistics.is_some() || actual < memory_bytes;
    Ok(Balloon {
        has_driver,
        target_bytes: actual,
        actual_bytes: actual,
        is_set_by_steps: None,
        reports_free_pages: offers_reporting && has_driver,
        reported_bytes_total: 0,
        statistics,
    })
}

/// Derives the hindrance from `query-status` and `query-migrate` (qapi/run-state.json,
/// qapi/migration.json).
fn qemu_hindrance(state: &RunState, migration: Option<&str>) -> Option<Hindrance> {
    let migrates = !matches!(migration, None | Some("none" | "completed" | "failed" | "cancelled"));
    match state.status.as_str() {
        "inmigrate" | "postmigrate" | "finish-migrate" => Some(Hindrance::Migrating),
        "save-vm" | "restore-vm" | "colo" => Some(Hindrance::Saving),
        _ if migrates => Some(Hindrance::Migrating),
        _ if !state.running => Some(Hindrance::Paused),
        _ => None,
    }
}

async fn query_hypervisor(
    found: &DiscoveredGuest,
    hypervisor: &Hypervisor,
) -> Result<Reading, ForeignError> {
    let info = hypervisor.info().await?;
    let memory_bytes = info.config.memory.bytes();
    let actual_bytes = info.memory_actual_size.unwrap_or(memory_bytes).min(memory_bytes);
    let has_passthrough =
        found.has_passthrough || info.config.devices.is_some_and(|devices| !devices.is_empty());
    let balloon = match info.config.balloon {
        Some(config) if !has_passthrough => {
            let statistics = hypervisor.statistics().await?.map(Statistics::from);
            let has_driver = statistics.is_some() || actual_bytes < memory_bytes;
            Some(Balloon {
                has_driver,
                target_bytes: memory_bytes.saturating_sub(config.size),
                actual_bytes,
                is_set_by_steps: None,
                reports_free_pages: config.free_page_reporting && has_driver,
                reported_bytes_total: 0,
                statistics,
            })
        }
        _ => None,
    };
    let kind = info.config.memory.kind();
    let backing = match (kind.hugepages, kind.shared) {
        (true, _) => Backing::HugePool,
        (false, true) => Backing::Shared,
        (false, false) => Backing::Anonymous,
    };
    Ok(Reading {
        memory_bytes,
        backing,
        is_mergeable: kind.mergeable && backing == Backing::Anonymous,
        balloon,
        hindrance: (info.state != "Running").then_some(Hindrance::Paused),
    })
}

#[cfg(test)]
mod tests;
