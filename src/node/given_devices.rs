//! Devices of this host that a guest from another host gets when it has arrived
//! (`lighter migrate --attach-there`).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use migrate::MigrationId;
use migrate::guest::RefusalKind;
use migrate::progress::Role;
use migrate::protocol::front::{AttachedThere, FrontReply};
use migrate::record::Record;
use migrate::text::PeerText;
use vmm_core::PciAddress;
use vmm_core::vfio::HostDevice;

use super::service::Node;
use crate::api::devices::{AttachedDevice, PIN_PATIENCE, opened};
use crate::api::{ApiClient, AskError, Reason};
use crate::state_dir::GuestDir;

/// How long to wait until an arrived guest is out of its migration.
const ARRIVAL_PATIENCE: Duration = Duration::from_secs(10);
/// Interval between two attempts until then.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

impl Node {
    /// Attaches a device of this host to the guest that has arrived by a migration, or says whether
    /// it would.
    pub(crate) async fn attach_device(
        &self,
        device: &PeerText,
        arrived: Option<MigrationId>,
    ) -> FrontReply {
        let answer = async {
            let address = self.given(device)?;
            match arrived {
                None => tokio::task::block_in_place(|| HostDevice::open(address))
                    .map(|_| FrontReply::Attachable)
                    .map_err(Into::into),
                Some(migration) => {
                    let guest = tokio::task::block_in_place(|| self.arrived(migration))?;
                    attach(&guest, address).await
                }
            }
        };
        answer.await.unwrap_or_else(|error| {
            FrontReply::Refused(migrate::Refusal::new(RefusalKind::Other, format!("{error:#}")))
        })
    }

    /// Returns the address of a device that a peer has named, if its operator gives it away.
    fn given(&self, device: &PeerText) -> Result<PciAddress> {
        let address: PciAddress = device.as_str().parse()?;
        if !self.given_devices().contains(&address) {
            bail!(
                "the destination does not give its device {address} to guests from other hosts: start its node with --device vfio={address}"
            );
        }
        Ok(address)
    }

    /// Returns the guest that has arrived by `migration` and is still here.
    fn arrived(&self, migration: MigrationId) -> Result<GuestDir> {
        let guests = self.state().live_guests()?;
        let of = |record: &Record, guest: &GuestDir| {
            let uuid = || self.state().read_uuid(guest.name()).ok();
            record.guest == guest.name().as_str() && uuid() == Some(record.guest_uuid)
        };
        let is_here = |record: &Record| guests.iter().any(|guest| of(record, guest));
        let record = self.records().read(migration, Role::Destination, is_here)?;
        let guest = record.and_then(|record| guests.into_iter().find(|guest| of(&record, guest)));
        guest.context("no guest that has arrived by that migration is on this host")
    }
}

async fn attach(guest: &GuestDir, address: PciAddress) -> Result<FrontReply> {
    let client = ApiClient::new(&guest.socket()).with_patience(PIN_PATIENCE);
    let began = Instant::now();
    let attached: AttachedDevice = loop {
        let (request, files) = tokio::task::block_in_place(|| opened(address))?;
        match client.post_with_files("/v1/guest/devices", &request, files).await {
            Err(AskError::Refused(refusal))
                if refusal.reason == Reason::Migrating && began.elapsed() < ARRIVAL_PATIENCE =>
            {
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            answer => break answer?,
        }
    };
    let AttachedDevice { address, noticed: is_noticed, .. } = attached;
    Ok(FrontReply::Attached(AttachedThere { address: PeerText::new(&address), is_noticed }))
}

#[cfg(test)]
mod tests {
    use super::super::service::tests::node;
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn only_devices_that_the_operator_gives_are_attached() {
        let (_folder, node) = node();
        let node = node.with_given_devices(vec!["7e:1f.7".parse().unwrap()]);
        let ask = async |device: &str, guest| match node.attach_device(&device.into(), guest).await
        {
            FrontReply::Refused(refusal) => refusal.to_string(),
            reply => panic!("{reply:?}"),
        };
        let arrived = Some(MigrationId::random());
        for asked in [None, arrived] {
            assert!(ask("03:00.0", asked).await.contains("--device vfio=0000:03:00.0"));
            assert!(ask("../03", asked).await.contains("no address of a PCI device"));
        }
        assert!(ask("7e:1f.7", None).await.contains("no such device"));
        assert!(ask("7e:1f.7", arrived).await.contains("no guest that has arrived"));
    }
}
