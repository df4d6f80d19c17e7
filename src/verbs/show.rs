//! `lighter show`: all details of one guest.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use memopt::observe::ProcessCost;
use migrate::progress::Role;
use migrate::report::Outcome;
use migrate::{Progress, Report};
use serde::Serialize;
use vmm_core::virtio::block::{CacheMode, LockReach};

use super::list::{Listed, PastGuest, ask};
use super::off::{
    OffGuest, autostart_line, definition_line, labels_line, left_disk_line, restart_line,
};
use super::progress;
use super::session::block_on;
use super::summary::{pauses, seconds};
use crate::api::ApiClient;
use crate::api::migration::MigrationStatus;
use crate::api::types::{
    BackingInfo, Confinement, DiskFormat, DiskInfo, FlowInfo, GuestInfo, GuestKind, GuestState,
    HostDeviceInfo, LandlockState, NetInfo, OnReboot, SeccompState, VsockInfo, WorkloadInfo,
};
use crate::cli::Output;
use crate::cli::guest::ShowArgs;
use crate::cli::spec::RestartArg;
use crate::decisions;
use crate::definitions::Definition;
use crate::departures::LeftDisk;
use crate::ended::{EndRecord, Ended};
use crate::exit::Exit;
use crate::host_certificate::note_expiry;
use crate::output;
use crate::state_dir::{GuestDir, StateDir};
use crate::table::{facts, facts_within};
use crate::units::{format_count, format_duration, format_size, format_uptime};

/// Everything that is shown of a guest.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    listed: Listed,
    /// Folder with the guest's console log and API socket.
    folder: String,
    /// Path of the definition file, if the guest is defined.
    definition: Option<String>,
    /// Whether the guest starts when the host boots.
    autostart: bool,
    /// What the node does when the guest has failed, if its definition says so.
    restart: Option<RestartArg>,
    /// Memory of its process with shared pages divided among the processes that share them (PSS,
    /// and huge pages of the host's pool), in bytes.
    proportional_bytes: Option<u64>,
    /// The running migration, or the last one.
    migration: Option<MigrationStatus>,
    /// Report of the built-in workload.
    workload: Option<WorkloadInfo>,
    /// The failure after which the guest was started again.
    last_failure: Option<Ended>,
    /// The disks with which it has left this host.
    left_disks: Vec<LeftDisk>,
}

/// Everything that is shown of a guest that has ended and is not defined.
#[derive(Debug, Serialize)]
struct ShownPast<'a> {
    #[serde(flatten)]
    guest: PastGuest<'a>,
    /// The disks with which it has left this host.
    left_disks: &'a [LeftDisk],
}

impl Shown {
    /// Returns what is known of a guest without asking it for more.
    fn silent(listed: Listed, dir: &GuestDir, definition: Option<Definition>) -> Self {
        Self {
            listed,
            folder: dir.path().display().to_string(),
            autostart: definition.as_ref().is_some_and(|definition| definition.autostart),
            restart: definition.as_ref().and_then(|it| it.spec.as_ref().ok()?.restart),
            definition: definition.map(|definition| definition.path.display().to_string()),
            proportional_bytes: None,
            migration: None,
            workload: None,
            last_failure: None,
            left_disks: Vec::new(),
        }
    }
}

/// Whether the guest has a disk here, with which another one of its name may have left before.
fn has_disk(info: &GuestInfo, path: &Path) -> bool {
    let is_here =
        matches!(info.state, GuestState::Running | GuestState::Paused | GuestState::Migrating);
    is_here && info.disks.iter().any(|disk| disk.path == path)
}

/// Shows one guest; a guest that does not answer is a failure.
///
/// # Errors
/// If there is no such guest, or this user may not see it.
pub(crate) fn run(state: &StateDir, args: &ShowArgs) -> Result<Exit> {
    note_expiry(state);
    let dir = state.guest(&args.name);
    if !dir.is_live() {
        // If its process was killed, this records it.
        dir.settle();
        let record = state.ended().find(&args.name);
        if let Some(definition) = state.definitions().find(&args.name)? {
            let guest = OffGuest::new(definition, record).with_remains(state);
            return show_off(args, &guest);
        }
        if let Some(record) = record {
            return show_past(args, state, &record);
        }
    }
    let dir = state.live_guest(&args.name)?;
    // A user with read-only access sees the guest, but not its definition.
    let definition = state.definitions().find(&args.name).ok().flatten();
    let shown = block_on(async {
        let client = ApiClient::new(&dir.client_socket());
        let mut shown = Shown::silent(ask(&dir).await?, &dir, definition);
        shown.last_failure = state.ended().last_failure(&args.name);
        shown.left_disks = state.departures().left_by(&args.name);
        // A guest that does not answer is not asked for more.
        if let Some(info) = shown.listed.info() {
            shown.left_disks.retain(|left| !has_disk(info, &left.path));
            let cost: Option<ProcessCost> = memopt::observe::process_cost(info.pid).ok();
            shown.proportional_bytes = cost.map(|cost| cost.total_bytes());
            shown.migration = client.get("/v1/guest/migration").await.ok();
            shown.workload = client.get("/v1/guest/workload").await.ok();
        }
        Ok(shown)
    })?;
    match args.json.output() {
        Output::Json => output::print_json(&shown)?,
        Output::Text => output::print(text(&shown, output::columns()))?,
    }
    Ok(if shown.listed.info().is_some() { Exit::Done } else { Exit::Failed })
}

/// Formats the failure after which a guest was started again.
fn failure_line(failure: &Ended) -> (&'static str, String) {
    ("Last failure", format!("{}: it {}", failure.ago(), failure.reason))
}

/// Shows a guest that is defined and does not run.
fn show_off(args: &ShowArgs, guest: &OffGuest) -> Result<Exit> {
    match args.json.output() {
        Output::Json => output::print_json(guest)?,
        Output::Text => output::print(guest.text())?,
    }
    Ok(Exit::Done)
}

/// Shows the record of a guest that has ended.
fn show_past(args: &ShowArgs, state: &StateDir, record: &EndRecord) -> Result<Exit> {
    let left_disks = state.departures().left_by(&record.name);
    match args.json.output() {
        Output::Json => {
            output::print_json(&ShownPast { guest: record.into(), left_disks: &left_disks })?;
        }
        Output::Text => {
            let mut lines = vec![("Name", record.name.to_string())];
            match &record.end {
                Ok(ended) => {
                    lines.push(("UUID", ended.uuid.to_string()));
                    lines.push(("State", format!("ended {}: {}", ended.ago(), ended.reason)));
                }
                Err(fault) => lines.push(("State", format!("ended; {fault}"))),
            }
            let log = state.ended().log_of(&record.name);
            lines.extend(log.map(|log| ("Its log", log.display().to_string())));
            lines.extend(left_disks.iter().map(left_disk_line));
            output::print(facts(&lines))?;
        }
    }
    Ok(Exit::Done)
}

fn text(shown: &Shown, screen: Option<usize>) -> String {
    let mut lines = vec![("Name", shown.listed.name().to_string())];
    if let Some(info) = shown.listed.info() {
        let detail = info.detail.as_ref().map(|detail| format!(" ({detail})")).unwrap_or_default();
        lines.push(("UUID", info.uuid.to_string()));
        lines.push(("State", format!("{}{detail}", info.state.as_str())));
        let kind = match info.kind {
            GuestKind::Workload => "built-in workload",
            GuestKind::Linux => "Linux kernel",
            GuestKind::Firmware => "firmware",
        };
        // The kind is read from the guest's memory, which has not arrived.
        if info.state != GuestState::Incoming {
            lines.push(("Kind", kind.to_owned()));
        }
        lines.push(("VCPUs", info.vcpus.to_string()));
        lines.extend(info.machine.map(|machine| ("Machine", machine.to_string())));
        lines.extend(info.cpu_model.iter().map(|model| ("CPU", model.clone())));
        lines.push(("Memory", format_size(info.memory_bytes)));
        lines.extend(backing_lines(&info.backing));
        lines.push(("Process", info.pid.to_string()));
        lines.extend(info.disks.iter().map(|disk| ("Disk", disk_line(disk))));
        if !info.seed.is_empty() {
            lines.push(("Seed", info.seed.join(", ")));
        }
        lines.extend(info.nets.iter().map(|net| ("Network", net_line(net))));
        lines.extend(info.host_devices.iter().map(|it| ("Host device", host_device_line(it))));
        lines.extend(labels_line(&info.labels));
        if let Some(VsockInfo { cid, socket }) = &info.vsock {
            lines.push(("Vsock", format!("cid {cid}, programs at {}", socket.display())));
        }
        let last = info.last_restart.as_ref().map(|last| format!(", last: {last}"));
        lines.extend(shown.last_failure.as_ref().map(failure_line));
        if let Some(last) = last {
            lines.push(("Restarts", format!("{}{last}", info.restarts)));
        }
        let on_reboot = match info.on_reboot {
            // Known once its state has arrived.
            _ if info.state == GuestState::Incoming => None,
            OnReboot::Restart => Some("restarts"),
            OnReboot::Stop => Some("stops"),
        };
        lines.extend(on_reboot.map(|text| ("On reboot", text.to_owned())));
        lines.push(("Confined to", confinement_line(info.confinement)));
    } else {
        lines.push(("State", "its process does not answer".to_owned()));
        lines.extend(shown.listed.pid().map(|pid| ("Process", pid.to_string())));
    }
    let sizes =
        [("Resident", shown.listed.resident_bytes), ("Costs the host", shown.proportional_bytes)];
    lines.extend(sizes.into_iter().filter_map(|(label, bytes)| Some((label, format_size(bytes?)))));
    if let Some(age) = shown.listed.uptime_s {
        lines.push(("Uptime", format_uptime(Duration::from_secs(age))));
    }
    lines.push(("Folder", shown.folder.clone()));
    if let Some(path) = &shown.definition {
        lines.push(definition_line(path));
        lines.push(autostart_line(shown.autostart));
        lines.extend(restart_line(shown.restart));
    }
    lines.extend(shown.left_disks.iter().map(left_disk_line));
    let stall = shown.workload.as_ref().map(longest_stall);
    lines.extend(shown.migration.iter().flat_map(|status| migration_lines(status, stall)));
    lines.extend(shown.workload.iter().flat_map(workload_lines));
    // After a migration it is shown next to the downtime.
    let report = shown.migration.as_ref().and_then(|status| status.report.as_ref());
    let has_paused = report.is_some_and(|report| report.downtime_seconds.is_some());
    lines.extend(
        stall.filter(|_| !has_paused).map(|stall| ("Longest stall", format_duration(stall))),
    );
    facts_within(&lines, screen)
}

/// Formats what the guest's process may do.
fn confinement_line(confinement: Confinement) -> String {
    let calls = match confinement.seccomp {
        SeccompState::On => "its system calls",
        SeccompState::Log => "any system call (seccomp only logs)",
        SeccompState::Off => "any system call (seccomp is off)",
    };
    let files = match confinement.landlock {
        LandlockState::Full => "its files",
        LandlockState::Partial => "its files, as far as this kernel's Landlock can",
        LandlockState::Missing => "any file (this kernel has no Landlock)",
        LandlockState::Off => "any file (landlock is off)",
    };
    format!("{calls}, {files}")
}

fn disk_line(disk: &DiskInfo) -> String {
    let access = if disk.read_only { ", read-only" } else { "" };
    let locked = match disk.lock_reach {
        LockReach::Host => "locked on this host alone",
        LockReach::FileSystem => "locked on all hosts (unless mounted with local locks)",
    };
    let format = match disk.format {
        DiskFormat::Raw => "",
        DiskFormat::Qcow2 => ", qcow2",
    };
    let cache = match disk.cache {
        CacheMode::Writeback => "",
        CacheMode::None => ", cache=none",
    };
    let (path, size) = (disk.path.display(), format_size(disk.bytes));
    format!("{path}, {size}{format}{access}{cache}, {locked}")
}

fn net_line(net: &NetInfo) -> String {
    let bridge = net.bridge.as_ref().map(|bridge| format!(" on {bridge}")).unwrap_or_default();
    let standby = if net.standby { ", standby" } else { "" };
    let queues = match net.queues {
        1 => String::new(),
        pairs => format!(", {pairs} pairs of queues"),
    };
    let vhost = if net.vhost { " (vhost)" } else { "" };
    let flow = |flow: &FlowInfo| {
        let drops = match flow.drops {
            0 => String::new(),
            drops => format!(", {} dropped", format_count(drops)),
        };
        format!("{} in {} packets{drops}", format_size(flow.bytes), format_count(flow.packets))
    };
    format!(
        "{} at {}{bridge}{standby}{queues}{vhost}; received {}; sent {}",
        net.mac,
        net.tap,
        flow(&net.received),
        flow(&net.transmitted)
    )
}

fn host_device_line(device: &HostDeviceInfo) -> String {
    format!("{}, at {} in the guest", device.host, device.guest)
}

/// Formats the memory options that differ from the defaults.
fn backing_lines(backing: &BackingInfo) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let pages = match backing.hugepages.as_str() {
        "thp" | "" => None,
        "off" => Some("4 KiB".to_owned()),
        size => Some(format!("{size} huge pages of the host's pool")),
    };
    lines.extend(pages.map(|pages| ("Pages", pages)));
    if backing.from_template {
        lines.push(("Template", "shares its memory until it writes it".to_owned()));
    }
    if backing.prealloc {
        lines.push(("Preallocated", "all of it was taken at the start".to_owned()));
    }
    if !matches!(backing.numa_policy.as_str(), "default" | "") {
        lines.push(("NUMA policy", backing.numa_policy.clone()));
    }
    if let Some(domain) = &backing.merge_domain {
        let standing = match &backing.merged_instead {
            Some(other) => format!("{domain} (NOT merged: guests of {other} are on this host)"),
            None => domain.clone(),
        };
        lines.push(("Merge domain", standing));
    }
    if !matches!(backing.dirty_log.as_str(), "auto" | "") {
        lines.push(("Dirty log", backing.dirty_log.clone()));
    }
    lines
}

/// Formats the running migration or the last one. `stall` is the longest gap that the guest itself
/// has noticed since that began.
fn migration_lines(
    status: &MigrationStatus,
    stall: Option<Duration>,
) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    match (&status.report, &status.progress) {
        (Some(report), _) => {
            lines.push(("Last migration", last_migration(report)));
            lines.extend(pauses(report, stall.map(|stall| stall.as_secs_f64())));
            lines.extend(report.way_out.iter().map(|text| ("What to do", text.clone())));
        }
        (None, Some(progress)) => {
            let line = match progress.role {
                Role::Source => progress::line(progress),
                Role::Destination => arrival_line(progress),
            };
            lines.push(("Migration", line));
            let last = progress.decisions.last();
            lines.extend(last.map(|decided| ("Decided", decisions::dated(decided))));
        }
        (None, None) => {}
    }
    lines
}

/// Formats how a migration ended, from the side that reports it.
fn last_migration(report: &Report) -> String {
    let time = seconds(report.total_seconds);
    let outcome = match (report.outcome, report.role) {
        (Outcome::Migrated, Role::Destination) => format!("arrived here in {time}"),
        (Outcome::Migrated, Role::Source) => format!("left in {time}"),
        (Outcome::StayedAtSource, _) => format!("given up after {time}, the guest stayed"),
        (Outcome::InDoubt, _) => format!("in doubt after {time}"),
        (Outcome::Lost, _) => format!("given up with this copy after {time}"),
    };
    let error = report.error.as_ref().map(|error| format!(": {}", error.message));
    format!("{outcome}{}", error.unwrap_or_default())
}

/// Formats the progress of an arriving guest. Only the source knows how much is left, and the rate.
fn arrival_line(progress: &Progress) -> String {
    let received = format_size(progress.transfer.wire_bytes);
    let wait = progress::page_wait(progress).map(|text| format!(", {text}"));
    let parted = progress.disconnected.as_ref().map(|why| format!(", source out of reach: {why}"));
    let more = wait.into_iter().chain(parted).collect::<String>();
    format!("{}, {received} received{more}", progress.phase)
}

fn longest_stall(workload: &WorkloadInfo) -> Duration {
    Duration::from_micros(workload.longest_stall_us)
}

fn workload_lines(workload: &WorkloadInfo) -> Vec<(&'static str, String)> {
    let verdict = match (&workload.first_bad_page, workload.intact) {
        (_, true) => "intact".to_owned(),
        (Some(page), false) => format!("CORRUPT: {page}"),
        (None, false) => "CORRUPT".to_owned(),
    };
    vec![
        ("Memory content", verdict),
        ("Pages written", format_count(workload.pages_written)),
        ("Pages checked", format_count(workload.pages_checked)),
    ]
}

#[cfg(test)]
mod tests {
    use migrate::decisions::{Cause, Decided, DecidedAt};
    use migrate::waits::PageWaits;
    use migrate::{MigrationId, Phase};

    use super::super::summary::tests::report;
    use super::*;

    #[test]
    fn default_memory_settings_are_not_shown() {
        assert_eq!(backing_lines(&BackingInfo::default()), []);
        let usual = BackingInfo {
            hugepages: "thp".to_owned(),
            numa_policy: "default".to_owned(),
            dirty_log: "auto".to_owned(),
            ..BackingInfo::default()
        };
        assert_eq!(backing_lines(&usual), []);
    }

    #[test]
    fn a_guest_that_waits_for_a_page_is_shown_to_where_it_waits() {
        let mut progress = Progress::new(MigrationId::random(), Role::Destination);
        progress.phase = Phase::Postcopy;
        progress.page_waits = Some(PageWaits { oldest_seconds: 7.0, ..PageWaits::default() });
        let line = arrival_line(&progress);
        assert_eq!(line, "postcopy, 0 B received, the guest has waited for a page for 7.00 s");
    }

    #[test]
    fn an_unmerged_domain_is_shown_with_the_merged_one() {
        let held = BackingInfo {
            hugepages: "2M".to_owned(),
            merge_domain: Some("bank".to_owned()),
            merged_instead: Some("shop".to_owned()),
            ..BackingInfo::default()
        };
        let lines = backing_lines(&held);
        assert!(lines[0].1.contains("2M"), "{lines:?}");
        assert!(lines[1].1.contains("NOT merged") && lines[1].1.contains("shop"), "{lines:?}");
    }

    #[test]
    fn a_running_migration_shows_its_last_decision() {
        let mut progress = Progress::new(migrate::MigrationId::random(), Role::Source);
        let lines = |progress: &Progress| {
            let status = MigrationStatus { progress: Some(progress.clone()), report: None };
            migration_lines(&status, None)
        };
        assert_eq!(lines(&progress).len(), 1, "there is none");
        let decided = |cause| Decided::Postcopy { cause };
        progress.decisions = [decided(Cause::Stall), decided(Cause::Order)]
            .map(|what| DecidedAt { after_seconds: 1.5, what })
            .to_vec();
        let text =
            "at 1.50 s: the guest is handed over before its memory, by order of the operator";
        assert_eq!(lines(&progress)[1..], [("Decided", text.to_owned())]);
    }

    #[test]
    fn the_last_migration_shows_its_pauses_next_to_each_other() {
        let report = Report {
            role: Role::Destination,
            dry_run_seconds: 0.0,
            ..report(Outcome::Migrated, None)
        };
        let status = MigrationStatus { progress: None, report: Some(report) };
        let lines = migration_lines(&status, Some(Duration::from_micros(32_420)));
        assert_eq!(lines[0], ("Last migration", "arrived here in 2.00 s".to_owned()));
        assert_eq!(lines[1], ("Downtime", "32.4 ms (expected 30.0 ms)".to_owned()));
        assert_eq!(lines.len(), 2, "the guest says the same: {lines:?}");
        let lines = migration_lines(&status, Some(Duration::from_millis(21)));
        assert!(lines[1].1.contains("announced switchover"), "{lines:?}");
        assert!(lines[2].1.starts_with("21.0 ms, the longest gap"), "{lines:?}");
    }
}
