//! `lighter migrate`: starts a migration, shows its progress, and reports how it ended.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use migrate::front;
use migrate::progress::Role;
use migrate::protocol::front::BootFile;
use migrate::quic::Tls;
use migrate::quic::endpoint::Peer;
use migrate::report::Outcome;
use migrate::{MigrationId, OnStall, Phase, Report};
use tokio::sync::mpsc::UnboundedReceiver;
use uuid::Uuid;
use vmm_core::virtio::block::departed_to;

use super::attach_there::AttachThere;
use super::certs::identity_of;
use super::follow::{Follower, interrupts};
use super::hot_plug::LeftBehind;
use super::progress::ProgressView;
use super::session::{block_on, guest_client, path_of, state_of};
use super::{estimate, summary};
use crate::address::Destination;
use crate::api::migration::{
    CopyDisks, LimitsRequest, MigrationRequest, MigrationStarted, MigrationStatus, RecoverRequest,
    Resolution, ResolveRequest,
};
use crate::api::types::{
    BootFileInfo, BootFiles, GuestInfo, GuestState, StateAnswer, WorkloadInfo,
};
use crate::api::{ApiClient, ApiError, AskError, Reason};
use crate::cli::Output;
use crate::cli::limits::Setting;
use crate::cli::migration::{MigrateArgs, ResolveArg};
use crate::exit::{Exit, ExitWith};
use crate::names::GuestName;
use crate::node::NodeFile;
use crate::other_host::{Occasion, OtherHost};
use crate::output;
use crate::state_dir::StateDir;

/// Longest wait for an operator's decision to take effect.
const RESOLVE_PATIENCE: Duration = Duration::from_secs(10);

/// Time between two checks whether it has.
const RESOLVE_INTERVAL: Duration = Duration::from_millis(50);

/// Longest wait for the destination's answer about the files from which the guest boots.
const BOOT_FILES_PATIENCE: Duration = Duration::from_secs(2);

/// Migrates a guest, or resolves one in doubt.
///
/// # Errors
/// If there is no such guest, it is being migrated already, or the migration failed; the message
/// says where the guest is now.
pub(crate) fn run(state: &StateDir, args: &MigrateArgs) -> Result<Exit> {
    if !args.set.is_empty() {
        return change(state, args);
    }
    if args.postcopy_now {
        return hand_over_first(state, &args.name);
    }
    if let Some(address) = &args.recover {
        return recover(state, &args.name, address);
    }
    match args.resolve {
        Some(decision) => resolve(state, args, decision),
        None if args.estimate => {
            print_estimate(state, args, args.destination.as_deref().unwrap_or_default())
        }
        // The command line requires a destination unless there is a decision. Were it missing, the
        // guest's process would refuse the empty one.
        None => migrate(state, args, args.destination.as_deref().unwrap_or_default()),
    }
}

/// Prints how a migration would go.
fn print_estimate(state: &StateDir, args: &MigrateArgs, destination: &str) -> Result<Exit> {
    let client = guest_client(state, &args.name)?;
    let asked = block_on(async {
        let request = request(state, &client, args, destination).await?;
        estimate::ask(client, &request).await
    });
    let what = || format!("cannot estimate the migration of {} to {destination}", args.name);
    let estimate = asked.with_context(what)?;
    match args.json.output() {
        Output::Json => output::print_json(&estimate)?,
        Output::Text => {
            let columns = output::columns();
            output::print(estimate::text(&args.name, destination, &estimate, columns))?;
        }
    }
    Ok(Exit::Done)
}

fn migrate(state: &StateDir, args: &MigrateArgs, destination: &str) -> Result<Exit> {
    let client = guest_client(state, &args.name)?;
    let cannot = || format!("cannot migrate {} to {destination}", args.name);
    let request = block_on(request(state, &client, args, destination)).with_context(cannot)?;
    let uuid = state.read_uuid(&args.name)?;
    let mut view = ProgressView::new(args.json.output());
    let mut there =
        AttachThere::new(&args.name, destination, &args.attach_there).with_context(cannot)?;
    let (mut is_workload, mut left) = (false, None);
    let report = block_on(async {
        if let Some(lacking) = lacking_boot_files(state, &client, &request).await {
            output::note(format_args!(
                "warning: {destination} does not have {lacking} as {} was started with: the guest will run there, but cannot reboot. Copy \
                 what is missing to the same path there",
                args.name
            ));
        }
        let asked = there.expect_attachable(state, &client, &nodes_of(&request)?).await;
        asked.with_context(cannot)?;
        let mut interrupts = interrupts()?;
        is_workload = client.get::<WorkloadInfo>("/v1/guest/workload").await.is_ok();
        if args.detach_on_migrate {
            let detached = LeftBehind::detach_all(&client, &args.name, &mut interrupts).await;
            left = Some(detached.with_context(cannot)?);
        }
        there.begin();
        let started = match begin(&client, request).await {
            Err(error @ AskError::Slow { .. }) => return Err(not_known(args, &error)),
            Err(error) => {
                there.forget();
                give_back(&mut left, &client, &mut interrupts).await;
                return Err(anyhow::Error::from(error).context(cannot()));
            }
            Ok(started) => started,
        };
        let follower = Follower {
            state: state.clone(),
            name: args.name.clone(),
            id: MigrationId(started.id),
            role: Role::Source,
        };
        let report = follower.to_the_end(&mut interrupts, |progress| view.show(progress)).await?;
        if report.outcome == Outcome::StayedAtSource {
            there.forget();
            give_back(&mut left, &client, &mut interrupts).await;
        }
        Ok(report)
    });
    view.finish();
    let report = report?;
    let is_json = args.json.output() == Output::Json;
    let json = if is_json { output::print_json(&report) } else { Ok(()) };
    if let Some(failure) = failure(&client, &report, destination) {
        return json.and(Err(failure.into()));
    }
    let left = left.map_or(0, LeftBehind::into_count);
    let printed = match is_json {
        true => json,
        false => print_success(&args.name, destination, &report, is_workload),
    };
    warn_of_unmarked(state, (&args.name, uuid), &report);
    if left > args.attach_there.len() {
        output::note(format_args!(
            "{0} left {left} of its host's devices behind: give it others there with `lighter attach-device {0} vfio=ADDRESS` \
             on {destination}",
            args.name,
        ));
    }
    block_on(there.attach(state, report.migration))?;
    printed.with_context(|| format!("{} has moved to {destination}", args.name))?;
    Ok(Exit::Done)
}

/// Returns why the guest is not at its destination, and what it does if it stays.
fn failure(client: &ApiClient, report: &Report, destination: &str) -> Option<ExitWith> {
    let here = match report.outcome {
        Outcome::StayedAtSource => block_on(async { Ok(state_of(client).await) }).ok().flatten(),
        Outcome::Migrated | Outcome::InDoubt | Outcome::Lost => None,
    };
    summary::failure(report, destination, here)
}

/// Attaches the host's devices again to a guest that stays.
async fn give_back(
    left: &mut Option<LeftBehind>,
    client: &ApiClient,
    interrupts: &mut UnboundedReceiver<()>,
) {
    if let Some(left) = left {
        left.attach_again(client, interrupts).await;
    }
}

fn print_success(
    name: &GuestName,
    destination: &str,
    report: &Report,
    is_workload: bool,
) -> Result<()> {
    let figures = summary::figures(report, None, output::columns());
    output::print_line(format_args!("{name} has moved to {destination}.\n\n{figures}"))?;
    if report.disk_bytes > 0 {
        output::print_line(format_args!(
            "Its copied disks here are left as they were at the hand-over; the guest does not use them any more."
        ))?;
    }
    if is_workload {
        output::print_line(format_args!(
            "The longest stall that the guest itself noticed: `lighter show {name}` there."
        ))?;
    }
    Ok(())
}

/// Prints a warning that names the disks without a mark that they have moved.
fn warn_of_unmarked(state: &StateDir, (name, uuid): (&GuestName, Uuid), report: &Report) {
    if report.disk_bytes == 0 {
        return;
    }
    let disks = state.departures().disks_of(name, uuid, report.migration);
    let unmarked = disks.iter().filter(|disk| departed_to(disk).is_none());
    let unmarked: Vec<_> = unmarked.map(|disk| disk.display().to_string()).collect();
    if unmarked.is_empty() {
        return;
    }
    output::note(format_args!(
        "warning: {} cannot be marked as moved: only lighter with the state folder {} refuses to use \
         it; its content is out of date",
        unmarked.join(", "),
        state.root().display()
    ));
}

/// Asks the guest's process to start the migration. A process of an earlier version resolves the
/// destination itself, and does not know the port of this host's node.
async fn begin(
    client: &ApiClient,
    request: MigrationRequest,
) -> Result<MigrationStarted, AskError> {
    // A process that does not know what to do about a stall waits.
    let on_stall =
        request.on_stall.filter(|value| *value != OnStall::Wait && *value != OnStall::default());
    let older =
        MigrationRequest { addresses: Vec::new(), node_port: None, on_stall, ..request.clone() };
    let ask = async |request| client.post("/v1/guest/migration", &request).await;
    ask_or_older(ask, request, older).await.map_err(explain_unknown)
}

/// Fields that a process of an earlier version may not know, and the options that they stand for.
const NEWER_FIELDS: [(&str, &str); 2] =
    [("via", "--via"), ("raised_downtime_ms_max", "--downtime-max")];

/// Explains the refusal of a process that does not know an option: it names only the field.
fn explain_unknown(error: AskError) -> AskError {
    let AskError::Refused(refusal) = &error else { return error };
    let is_unknown = |field: &str| refusal.error.contains(&format!("unknown field `{field}`"));
    let Some((_, option)) = NEWER_FIELDS.into_iter().find(|(field, _)| is_unknown(field)) else {
        return error;
    };
    let text = format!(
        "the guest's process is of an earlier version that does not know {option}: omit it"
    );
    AskError::Refused(ApiError::new(refusal.reason, text))
}

/// Sends `request`, or `older` if the process refuses that: a process of an earlier version refuses
/// fields that it does not know.
async fn ask_or_older<R: PartialEq, T>(
    ask: impl AsyncFn(R) -> Result<T, AskError>,
    request: R,
    older: R,
) -> Result<T, AskError> {
    let is_newer = request != older;
    match ask(request).await {
        Err(AskError::Refused(refusal)) if is_newer && refusal.reason == Reason::BadRequest => {
            ask(older).await
        }
        answer => answer,
    }
}

/// The error for a process that has received the request and may still act on it.
fn not_known(args: &MigrateArgs, error: &AskError) -> anyhow::Error {
    let message = format!(
        "cannot tell whether the migration of {0} begins: {error}; it may once the process responds: `lighter show {0}` tells, \
         `lighter cancel {0}` cancels it",
        args.name
    );
    ExitWith { exit: Exit::Unwatched, message }.into()
}

/// Builds the request to the guest's process. Names are resolved here, since the process does not
/// see the current versions of the files that name resolution reads.
async fn request(
    state: &StateDir,
    client: &ApiClient,
    args: &MigrateArgs,
    destination: &str,
) -> Result<MigrationRequest> {
    let (downtime, downtime_max) = args.downtime()?;
    let identity = identity_of(state, &args.name)?;
    let to = Destination::parse(destination)?;
    let addresses = match &args.via[..] {
        [] => to.find().await?.into_iter().map(|node| node.address).collect(),
        via => via.iter().map(|address| SocketAddr::new(*address, to.port)).collect(),
    };
    let copy_disks = if args.copies_disks() { Some(copy_disks(client, args).await?) } else { None };
    Ok(MigrationRequest {
        destination: destination.to_owned(),
        addresses,
        identity,
        tls_name: args.tls_name.clone(),
        downtime_ms_max: millis(downtime),
        raised_downtime_ms_max: downtime_max.map(millis),
        on_stall: Some(args.on_stall.unwrap_or_else(|| args.preset.on_stall())),
        bandwidth_bytes_per_s_max: args.bandwidth,
        timeout_ms: millis(args.timeout),
        compression: args.compress,
        connections: args.connections,
        via: args.via.clone(),
        copy_disks,
        unproven_disks: args.unproven_disks,
        node_port: NodeFile::of_live(state).and_then(|node| NonZeroU16::new(node.listen.port())),
    })
}

/// Returns which disks are copied, and where to.
async fn copy_disks(client: &ApiClient, args: &MigrateArgs) -> Result<CopyDisks> {
    let mut copied = CopyDisks { replace: args.replace_disks, ..CopyDisks::default() };
    for disk in &args.copy_disk {
        copied.only.insert(path_of(client, &args.name, disk).await?);
    }
    for (here, there) in &args.disk_path {
        let here = path_of(client, &args.name, here).await?;
        if let Some(other) = copied.paths.insert(here.clone(), there.clone()) {
            let (here, other, there) = (here.display(), other.display(), there.display());
            bail!("--disk-path has two places for {here}: {other} and {there}");
        }
    }
    Ok(copied)
}

/// Changes the limits of the migration that is under way.
fn change(state: &StateDir, args: &MigrateArgs) -> Result<Exit> {
    let client = guest_client(state, &args.name)?;
    let request = new_limits(&args.set);
    let asked = block_on(async {
        let asked = client.put_json::<StateAnswer>("/v1/guest/migration/limits", &request).await;
        Ok(asked.map_err(explain_unknown)?)
    });
    asked.with_context(|| format!("cannot change the migration of {}", args.name))?;
    output::print_line(format_args!("the migration of {} has its new limits", args.name))?;
    Ok(Exit::Done)
}

/// Has the guest of the migration that is under way handed over before its memory.
fn hand_over_first(state: &StateDir, name: &GuestName) -> Result<Exit> {
    let client = guest_client(state, name)?;
    let path = "/v1/guest/migration/postcopy";
    let asked = block_on(async { Ok(client.put::<StateAnswer>(path).await?) });
    asked.with_context(|| format!("cannot hand {name} over before its memory"))?;
    output::print_line(format_args!(
        "{name} will be handed over as soon as possible, and its memory will follow it"
    ))?;
    Ok(Exit::Done)
}

/// Has the destination of a guest looked for at another address.
fn recover(state: &StateDir, name: &GuestName, to: &str) -> Result<Exit> {
    let client = guest_client(state, name)?;
    let asked: Result<()> = block_on(async {
        let nodes = Destination::parse(to)?.find().await?;
        let node = nodes.first().with_context(|| format!("{to} has no address"))?;
        let request = RecoverRequest { address: node.address };
        client.put_json::<StateAnswer>("/v1/guest/migration/recover", &request).await?;
        Ok(())
    });
    asked.with_context(|| format!("cannot look for the destination of {name} at {to}"))?;
    output::print_line(format_args!(
        "the destination of {name} is looked for at {to} from now on"
    ))?;
    Ok(Exit::Done)
}

/// Builds the request from the settings; of several for one limit, the last holds.
fn new_limits(settings: &[Setting]) -> LimitsRequest {
    let mut request = LimitsRequest::default();
    for setting in settings {
        match *setting {
            Setting::Downtime(limit) => request.downtime_ms_max = Some(millis(limit)),
            Setting::DowntimeMax(limit) => request.raised_downtime_ms_max = Some(millis(limit)),
            Setting::Timeout(limit) => request.timeout_ms = Some(millis(limit)),
            Setting::Bandwidth(limit) => {
                request.bandwidth_bytes_per_s_max = Some(limit.unwrap_or(0));
            }
            Setting::OnStall(value) => request.on_stall = Some(value),
        }
    }
    request
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the destination's node at each of its addresses.
fn nodes_of(request: &MigrationRequest) -> Result<Vec<Peer>> {
    let name = match &request.tls_name {
        Some(name) => name.clone(),
        None => Destination::parse(&request.destination)?.host,
    };
    let at = |address: &SocketAddr| Peer { address: *address, name: name.clone() };
    Ok(request.addresses.iter().map(at).collect())
}

/// Returns which files from which the guest boots the destination lacks; `None` if it has all, or
/// gives no answer, as earlier versions do not. If it cannot be reached, the migration says so.
async fn lacking_boot_files(
    state: &StateDir,
    client: &ApiClient,
    request: &MigrationRequest,
) -> Option<String> {
    let BootFiles { files } = client.get("/v1/guest/boot-files").await.ok()?;
    let wanted = files.iter().map(for_the_wire).collect::<Option<Vec<_>>>()?;
    if wanted.is_empty() {
        return None;
    }
    let peer = nodes_of(request).ok()?.into_iter().next()?;
    let tls = Tls::load(&state.certs()).ok()?;
    let are_there = front::boot_files(&tls, &peer, wanted, BOOT_FILES_PATIENCE).await.ok()?;
    let lacking = files.iter().zip(are_there).filter(|(_, is_there)| !is_there);
    let lacking: Vec<_> = lacking.map(|(file, _)| file.path.display().to_string()).collect();
    (!lacking.is_empty()).then(|| lacking.join(" and "))
}

/// Returns the file for the question to the destination; `None` if its digest is not valid.
fn for_the_wire(file: &BootFileInfo) -> Option<BootFile> {
    let digest = u128::from_str_radix(&file.digest, 16).ok()?;
    Some(BootFile { path: file.path.as_os_str().as_bytes().to_vec(), digest })
}

fn resolve(state: &StateDir, args: &MigrateArgs, decision: ResolveArg) -> Result<Exit> {
    let client = guest_client(state, &args.name)?;
    let (decision, done) = match decision {
        ResolveArg::Run => (Resolution::Run, "runs here now"),
        ResolveArg::Discard if args.unproven_disks => (
            Resolution::Discard,
            "is discarded here, with any memory that the other host's copy lacks",
        ),
        ResolveArg::Discard => {
            (Resolution::Discard, "is discarded here: the other host's copy is the only one")
        }
    };
    let resolved: Result<()> = block_on(async {
        match decision {
            Resolution::Run => {
                let other = OtherHost::ask(state, &args.name, Occasion::Resolve).await?;
                other.map_or(Ok(()), |other| other.expect_no_later())?;
            }
            Resolution::Discard if args.unproven_disks => {}
            Resolution::Discard => expect_not_needed(&client, &args.name).await?,
        }
        let unproven_disks = args.unproven_disks && decision == Resolution::Run;
        order(&client, decision, unproven_disks).await?;
        await_resolution(&client, decision).await
    });
    resolved.with_context(|| format!("cannot resolve the migration of {}", args.name))?;
    output::print_line(format_args!("{} {done}", args.name))?;
    Ok(Exit::Done)
}

/// Refuses to give up memory that the guest needs where it runs.
async fn expect_not_needed(client: &ApiClient, name: &GuestName) -> Result<()> {
    let status: MigrationStatus = match client.get("/v1/guest/migration").await {
        // Without a migration there is nothing to decide, as the process will say.
        Err(AskError::Refused(_)) => return Ok(()),
        status => status?,
    };
    let is_needed = status
        .progress
        .is_some_and(|progress| progress.role == Role::Source && progress.phase == Phase::Postcopy);
    ensure!(
        !is_needed,
        "{name} runs at its destination, and some of its memory is only here: without that, it is lost. Mend the network, or name \
         another address by --recover. If the destination is gone for good, give --unsafe"
    );
    Ok(())
}

/// Sends the decision to the guest's process, after the other host has been asked. A process of an
/// earlier version does not know that the other host was asked. Nor does it know unproven disks, of
/// which it does not ask for proof.
async fn order(
    client: &ApiClient,
    decision: Resolution,
    unproven_disks: bool,
) -> Result<StateAnswer, AskError> {
    let other_host_has_none = decision == Resolution::Run;
    let request = ResolveRequest { decision, unproven_disks, other_host_has_none };
    let older = ResolveRequest { decision, unproven_disks: false, other_host_has_none: false };
    let ask = async |request| client.put_json("/v1/guest/migration/resolve", &request).await;
    ask_or_older(ask, request, older).await
}

/// A guest that is out of the migration stays paused for one of two reasons: its user had paused
/// it, or it could not continue. In the second case the report says what to do, and this returns
/// that as an error.
async fn expect_no_way_out(client: &ApiClient) -> Result<()> {
    let status: MigrationStatus = client.get("/v1/guest/migration").await?;
    match status.report.and_then(|report| report.way_out) {
        None => Ok(()),
        Some(way_out) => bail!(way_out),
    }
}

/// Waits until the decision has taken effect: the guest is out of the migration, or is gone with
/// its process.
async fn await_resolution(client: &ApiClient, decision: Resolution) -> Result<()> {
    let began = Instant::now();
    let mut last = None;
    let mut ticks = tokio::time::interval(RESOLVE_INTERVAL);
    while began.elapsed() < RESOLVE_PATIENCE {
        ticks.tick().await;
        let info: GuestInfo = match client.get("/v1/guest").await {
            Ok(info) => info,
            Err(error) if error.is_gone() && decision == Resolution::Discard => return Ok(()),
            Err(error) if error.is_transient() => continue,
            Err(error) => return Err(error.into()),
        };
        match info.state {
            GuestState::Running => return Ok(()),
            GuestState::Paused => return expect_no_way_out(client).await,
            _ => {}
        }
        last = info.detail;
    }
    let detail = last.map_or_else(String::new, |detail| format!(": {detail}"));
    bail!("it has not happened within {} s{detail}", RESOLVE_PATIENCE.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ApiError;
    use crate::api::server::{Audience, Server};
    use axum::routing::{post, put};
    use axum::{Json, Router};
    use migrate::quic::Identity;

    #[tokio::test]
    async fn a_process_of_an_earlier_version_is_not_sent_the_nodes_addresses() {
        let folder = tempfile::tempdir().unwrap();
        let earlier = async |Json(request): Json<MigrationRequest>| match request.node_port {
            None if request.addresses.is_empty() => Ok(Json(MigrationStarted { id: Uuid::max() })),
            _ => Err(ApiError::new(Reason::BadRequest, "unknown field `addresses`")),
        };
        let router = Router::new().route("/v1/guest/migration", post(earlier));
        let socket = folder.path().join("api.sock");
        let _server = Server::start(&socket, router, Audience::Owner).unwrap();
        let nothing = String::new;
        let identity =
            Identity { ca_pem: nothing(), cert_pem: nothing(), key_pem: nothing(), crl_pem: None };
        let request = MigrationRequest {
            addresses: vec![([192, 0, 2, 7], 4950).into()],
            node_port: NonZeroU16::new(4950),
            ..MigrationRequest::to("host-b".to_owned(), identity)
        };
        let started = begin(&ApiClient::new(&socket), request).await.unwrap();
        assert_eq!(started.id, Uuid::max());
    }

    #[tokio::test]
    async fn a_process_of_an_earlier_version_is_ordered_to_run_without_newer_fields() {
        let folder = tempfile::tempdir().unwrap();
        let earlier = async |Json(request): Json<ResolveRequest>| match request.other_host_has_none
            || request.unproven_disks
        {
            true => Err(ApiError::new(Reason::BadRequest, "unknown field `other_host_has_none`")),
            false => Ok(Json(StateAnswer { state: GuestState::Running })),
        };
        let router = Router::new().route("/v1/guest/migration/resolve", put(earlier));
        let socket = folder.path().join("api.sock");
        let _server = Server::start(&socket, router, Audience::Owner).unwrap();
        let state_answer = order(&ApiClient::new(&socket), Resolution::Run, true).await.unwrap();
        assert_eq!(state_answer.state, GuestState::Running);
    }
}
