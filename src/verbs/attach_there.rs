//! Devices of the destination for a guest that is migrated to it: `lighter migrate --attach-there`.

use std::time::Duration;

use anyhow::{Context, Result};
use migrate::MigrationId;
use migrate::front::{self, FrontError};
use migrate::protocol::front::AttachedThere;
use migrate::quic::endpoint::Peer;
use migrate::quic::{LinkError, Tls};

use super::follow::interrupts;
use crate::api::devices::PIN_PATIENCE;
use crate::cli::host_device::HostDeviceArg;
use crate::exit::{Exit, ExitWith};
use crate::names::GuestName;
use crate::output;
use crate::state_dir::StateDir;

/// How long the destination may take to say whether it gives a device.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take to attach one: longer than the guest's process there.
const ATTACH_PATIENCE: Duration = PIN_PATIENCE.saturating_add(Duration::from_secs(30));

/// Devices that a guest is to get at its destination.
pub(super) struct AttachThere<'a> {
    tls: Tls,
    node: Peer,
    devices: &'a [HostDeviceArg],
}

impl<'a> AttachThere<'a> {
    /// Asks the destination's `node` whether it gives all of these devices; `None` without any.
    ///
    /// # Errors
    /// If it does not give one, or does not answer.
    pub(super) async fn ask(
        state: &StateDir,
        node: impl FnOnce() -> Result<Peer>,
        devices: &'a [HostDeviceArg],
    ) -> Result<Option<Self>> {
        if devices.is_empty() {
            return Ok(None);
        }
        let (tls, node) = (Tls::load(&state.certs())?, node()?);
        for device in devices {
            let address = device.address.to_string();
            let asked = front::is_attachable(&tls, &node, &address, ANSWER_PATIENCE).await;
            let cannot = || format!("it would not get {device} there");
            asked.map_err(explain).with_context(cannot)?;
        }
        Ok(Some(Self { tls, node, devices }))
    }

    /// Has the destination attach them to the guest, which has arrived; notes those that it has.
    ///
    /// # Errors
    /// If the guest lacks one.
    pub(super) async fn attach(
        &self,
        (name, migration): (&GuestName, MigrationId),
        destination: &str,
    ) -> Result<()> {
        let mut interrupts = interrupts()?;
        for device in self.devices {
            output::note(format_args!(
                "attaching {device} of {destination}: takes all of its memory there"
            ));
            let address = device.address.to_string();
            let asked =
                front::attach_device(&self.tls, &self.node, (&address, migration), ATTACH_PATIENCE);
            let asked = tokio::select! {
                answer = asked => answer,
                Some(()) = interrupts.recv() => return Err(not_awaited(name, device, destination)),
            };
            let lacks = || {
                format!(
                    "{name} has moved to {destination} and runs there without {device}; `lighter attach-device {name} {device}` \
                     there tries again"
                )
            };
            let AttachedThere { address, is_noticed } =
                asked.map_err(explain).with_context(lacks)?;
            let unnoticed = if is_noticed { "" } else { "; it has not noticed it yet" };
            output::note(format_args!(
                "{name} has {device} of {destination} at {address}{unnoticed}"
            ));
        }
        Ok(())
    }
}

/// The error for a user who does not wait until the destination has attached a device.
fn not_awaited(name: &GuestName, device: &HostDeviceArg, destination: &str) -> anyhow::Error {
    let message = format!(
        "{name} has moved to {destination}, where {device} may still be attached to it: `lighter show {name}` there tells"
    );
    ExitWith { exit: Exit::Unwatched, message }.into()
}

/// Explains an answer that a node of an earlier version gives.
fn explain(error: FrontError) -> anyhow::Error {
    let is_earlier =
        matches!(error, FrontError::Link(LinkError::Closed { .. }) | FrontError::Protocol { .. });
    let error = anyhow::Error::from(error);
    match is_earlier {
        true => {
            error.context("the node there may be of an earlier version, which gives no devices")
        }
        false => error,
    }
}
