//! Devices of the destination for a guest that is migrated to it: `lighter migrate --attach-there`.

use std::collections::HashSet;
use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use migrate::MigrationId;
use migrate::front::{self, FrontError};
use migrate::guest::RefusalKind;
use migrate::progress::Role;
use migrate::protocol::Token;
use migrate::protocol::front::AttachedThere;
use migrate::quic::endpoint::Peer;
use migrate::quic::{LinkError, Tls};
use migrate::record::{Record, Side};
use vmm_core::MachineKind;

use super::follow::interrupts;
use super::hot_plug::warn_of_unnoticed;
use crate::api::ApiClient;
use crate::api::devices::PIN_PATIENCE;
use crate::api::types::GuestInfo;
use crate::cli::host_device::HostDeviceArg;
use crate::exit::{Exit, ExitWith};
use crate::names::GuestName;
use crate::output;
use crate::state_dir::StateDir;

/// How long the destination may take to say whether it gives a device.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// Time between two requests to a node that is busy.
const BUSY_INTERVAL: Duration = Duration::from_secs(1);
/// How long it may take to attach one: longer than the guest's process there.
const ATTACH_PATIENCE: Duration = PIN_PATIENCE.saturating_add(Duration::from_secs(30));

/// Devices that a guest is to get at its destination, and has not got yet.
pub(super) struct AttachThere {
    name: GuestName,
    destination: String,
    devices: Vec<HostDeviceArg>,
    /// Whether the guest may have moved.
    has_begun: bool,
}

impl AttachThere {
    /// Devices for the guest `name` at the `destination`.
    ///
    /// # Errors
    /// If one is named twice.
    pub(super) fn new(
        name: &GuestName,
        destination: &str,
        devices: &[HostDeviceArg],
    ) -> Result<Self> {
        let mut seen = HashSet::new();
        if let Some(twice) = devices.iter().find(|device| !seen.insert(device.address)) {
            bail!("{twice} is named twice");
        }
        let (name, destination) = (name.clone(), destination.to_owned());
        Ok(Self { name, destination, devices: devices.to_vec(), has_begun: false })
    }

    /// Asks whether the guest can have all of them: its process, and the destination's node, which
    /// has the addresses `nodes`.
    ///
    /// # Errors
    /// If it cannot have one, or the node does not answer. Then it gets none.
    pub(super) async fn expect_attachable(
        &mut self,
        state: &StateDir,
        client: &ApiClient,
        nodes: &[Peer],
    ) -> Result<()> {
        let devices = std::mem::take(&mut self.devices);
        if devices.is_empty() {
            return Ok(());
        }
        let info: GuestInfo = client.get("/v1/guest").await?;
        if info.machine == Some(MachineKind::Mmio) {
            bail!(
                "{} has no PCI bus, and so no device of a host: start a guest with `--machine pci` for one",
                self.name
            );
        }
        let tls = Tls::load(&state.certs())?;
        for device in &devices {
            let answer = ask_any(&tls, nodes, &device.address.to_string()).await;
            answer.with_context(|| format!("it would not get {device} there"))?;
        }
        self.devices = devices;
        Ok(())
    }

    /// The guest is about to move.
    pub(super) fn begin(&mut self) {
        self.has_begun = true;
    }

    /// The guest stays.
    pub(super) fn forget(&mut self) {
        self.devices.clear();
    }

    /// Has the destination attach them to the guest, which has arrived by `migration`; notes those
    /// that it has.
    ///
    /// # Errors
    /// If the guest lacks one, or the user does not wait.
    pub(super) async fn attach(mut self, state: &StateDir, migration: MigrationId) -> Result<()> {
        if self.devices.is_empty() {
            return Ok(());
        }
        let (node, token) = self.destination_of(state, migration)?;
        let tls = Tls::load(&state.certs())?;
        let (mut interrupts, mut lacking) = (interrupts()?, Vec::new());
        while !self.devices.is_empty() {
            let device = self.devices.remove(0);
            let address = device.address.to_string();
            let Self { name, destination, .. } = &self;
            output::note(format_args!(
                "attaching {device} of {destination}: all memory of {name} is taken from that host for it"
            ));
            let asked = attach_when_free(&tls, &node, (migration, token), &address);
            tokio::select! {
                answer = asked => match answer {
                    Ok(attached) => self.note(device, &attached),
                    Err(error) => lacking.push(self.why_lacking(device, &error)),
                },
                Some(()) = interrupts.recv() => return Err(self.not_awaited(device)),
            }
        }
        match lacking.is_empty() {
            true => Ok(()),
            false => Err(anyhow!(lacking.join("\n"))),
        }
    }

    /// Returns the node that admitted the guest, and the proof that it did.
    fn destination_of(&self, state: &StateDir, migration: MigrationId) -> Result<(Peer, Token)> {
        let is_its = |record: &Record| record.guest == self.name.as_str();
        match state.records()?.read(migration, Role::Source, is_its)?.map(|record| record.side) {
            Some(Side::Source { node_address, server_name, token, .. }) => {
                Ok((Peer { address: node_address, name: server_name }, token))
            }
            _ => bail!("there is no record of the migration"),
        }
    }

    fn note(&self, device: HostDeviceArg, attached: &AttachedThere) {
        let AttachedThere { address, is_noticed } = attached;
        let Self { name, destination, .. } = self;
        output::note(format_args!("{name} has {device} of {destination} at {address}"));
        if !is_noticed {
            warn_of_unnoticed(name);
        }
    }

    fn why_lacking(&self, device: HostDeviceArg, error: &FrontError) -> String {
        let Self { name, destination, .. } = self;
        let what = match error {
            FrontError::Refused(_) => "has moved and has not got",
            _ => "has moved and may not have got",
        };
        format!(
            "{name} {what} {device} of {destination}: {error}; `lighter attach-device {name} {device}` there tries again"
        )
    }

    /// The error for a user who does not wait until the destination has attached a device.
    fn not_awaited(&self, device: HostDeviceArg) -> anyhow::Error {
        let Self { name, destination, .. } = self;
        let message = format!(
            "{name} has moved to {destination}, where {device} may still be attached to it: `lighter show {name}` there tells"
        );
        ExitWith { exit: Exit::Unwatched, message }.into()
    }
}

/// When it is not known where the guest is, or that is not awaited.
impl Drop for AttachThere {
    fn drop(&mut self) {
        let Self { name, destination, devices, has_begun } = self;
        for device in devices.iter().filter(|_| *has_begun) {
            output::note(format_args!(
                "warning: {name} does not get {device} of {destination}; if it runs there, `lighter attach-device {name} {device}` \
                 there attaches it"
            ));
        }
    }
}

/// Asks the node at each of its addresses in turn until one answers.
async fn ask_any(tls: &Tls, nodes: &[Peer], device: &str) -> Result<()> {
    let mut silent = None;
    for node in nodes {
        match front::expect_attachable(tls, node, device, ANSWER_PATIENCE).await {
            Err(error @ FrontError::Link(LinkError::Silent { .. })) => silent = Some(error),
            answer => return answer.map_err(explain),
        }
    }
    Err(silent.map_or_else(|| anyhow!("the destination has no address"), Into::into))
}

/// Has the destination attach a device, as soon as its node is there and not busy with others. A
/// guest that has it already gets nothing else.
async fn attach_when_free(
    tls: &Tls,
    node: &Peer,
    proof: (MigrationId, Token),
    device: &str,
) -> Result<AttachedThere, FrontError> {
    let (began, mut is_told) = (Instant::now(), false);
    loop {
        let left = ATTACH_PATIENCE.saturating_sub(began.elapsed());
        match front::attach_device(tls, node, proof, device, left).await {
            Err(error) if may_be_asked_again(&error) && left > BUSY_INTERVAL => {
                if !std::mem::replace(&mut is_told, true) {
                    output::note(format_args!(
                        "{error}; asking again, for {} s at most",
                        left.as_secs()
                    ));
                }
                tokio::time::sleep(BUSY_INTERVAL).await;
            }
            answer => return answer,
        }
    }
}

/// Returns whether a node that is busy, starts again or is out of reach is the reason.
fn may_be_asked_again(error: &FrontError) -> bool {
    match error {
        FrontError::Refused(refusal) => refusal.kind == RefusalKind::Busy,
        FrontError::Link(LinkError::Silent { .. } | LinkError::Lost { .. }) => true,
        FrontError::Link(link @ LinkError::Closed { .. }) => !is_of_earlier_version(link),
        _ => false,
    }
}

/// Explains the answer of a node of an earlier version.
fn explain(error: FrontError) -> anyhow::Error {
    let error = anyhow::Error::from(error);
    match is_of_earlier_version(&error) {
        true => error.context("the node there is of an earlier version, which gives no devices"),
        false => error,
    }
}

/// Returns whether the node does not know the request.
fn is_of_earlier_version(error: &impl Display) -> bool {
    error.to_string().contains("unknown kind")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_busy_or_gone_for_a_while_is_asked_again() {
        let peer = || "host-b:7300".to_owned();
        let refused = |kind| FrontError::Refused(migrate::Refusal::new(kind, "no"));
        let closed =
            |reason: &str| LinkError::Closed { peer: peer(), reason: reason.to_owned() }.into();
        for (error, is_asked_again) in [
            (refused(RefusalKind::Busy), true),
            (refused(RefusalKind::Other), false),
            (LinkError::Silent { peer: peer() }.into(), true),
            (LinkError::Lost { peer: peer(), seconds: 9 }.into(), true),
            (closed("it ends"), true),
            (closed("unknown kind 73"), false),
            (LinkError::UnknownIssuer { peer: peer() }.into(), false),
        ] {
            assert_eq!(may_be_asked_again(&error), is_asked_again, "{error}");
        }
    }

    #[test]
    fn a_device_is_named_once() {
        let devices = |texts: &[&str]| -> Vec<HostDeviceArg> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let new = |texts: &[&str]| {
            AttachThere::new(&"web".parse().unwrap(), "host-b", &devices(texts)).map(|_| ())
        };
        new(&["vfio=03:00.0", "vfio=03:00.1"]).unwrap();
        let twice = new(&["vfio=03:00.0", "vfio=0000:03:00.0"]).unwrap_err().to_string();
        assert_eq!(twice, "vfio=0000:03:00.0 is named twice");
    }
}
