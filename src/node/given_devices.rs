//! Devices of this host that a guest from another host gets when it has arrived
//! (`lighter migrate --attach-there`).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use migrate::MigrationId;
use migrate::guest::RefusalKind;
use migrate::protocol::Token;
use migrate::protocol::front::{AttachedThere, FrontReply};
use migrate::record::{DestinationState, Record, Side};
use migrate::text::PeerText;
use tokio::sync::Semaphore;
use vmm_core::PciAddress;
use vmm_core::vfio::{HostDevice, HostDeviceError};

use super::inventory::{GuestAnswer, query_guests};
use super::service::Node;
use crate::api::devices::{self, AttachedDevice, PIN_PATIENCE, opened};
use crate::api::types::{GuestInfo, HostDeviceInfo};
use crate::api::{ApiClient, AskError, Reason};
use crate::names::GuestName;
use crate::state_dir::GuestDir;

/// How long to wait until an arrived guest is out of its migration.
const ARRIVAL_PATIENCE: Duration = Duration::from_secs(10);
/// Interval between two attempts until then.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Answers under way, which go on when the host that asked is gone: to questions, and to requests.
static ANSWERING: Semaphore = Semaphore::const_new(4);
static ATTACHING: Semaphore = Semaphore::const_new(4);

impl Node {
    /// Says whether a device of this host would be attached to a guest from another host. Does not
    /// open it, which would keep it from others meanwhile.
    pub(crate) async fn is_attachable(&self, device: &PeerText) -> FrontReply {
        let answer = async {
            let address = self.given(device)?;
            tokio::task::block_in_place(|| HostDevice::expect_ready(address))?;
            match self.owner_of(address).await? {
                None => Ok(FrontReply::Attachable),
                Some(guest) => {
                    bail!("a guest there has it, or another device of its IOMMU group: {guest}")
                }
            }
        };
        limited(&ANSWERING, answer).await
    }

    /// Attaches a device of this host to the guest that has arrived by a migration.
    pub(crate) async fn attach_device(
        &self,
        peer: SocketAddr,
        (migration, token): (MigrationId, &Token),
        device: &PeerText,
    ) -> FrontReply {
        let answer = async {
            let address = self.given(device)?;
            let arrived = || tokio::task::block_in_place(|| self.arrived(migration, token));
            match attach(&arrived, address).await {
                // The guest may be getting it already, for an earlier request of its host.
                Err(error) if is_in_use(&error) => {
                    let owner = self.owner_of(address).await?;
                    let kind = match owner {
                        Some(owner) if owner != *arrived()?.name() => RefusalKind::Other,
                        _ => RefusalKind::Busy,
                    };
                    Ok(refusal(kind, &format!("{error:#}")))
                }
                answer => answer,
            }
        };
        let reply = limited(&ATTACHING, answer).await;
        tracing::info!(%migration, %peer, %device, ?reply, "was asked to attach a device to a guest that arrived here");
        reply
    }

    /// Returns the guest that has this device, or another one of its IOMMU group.
    async fn owner_of(&self, address: PciAddress) -> Result<Option<GuestName>> {
        let guests = query_guests(self.state()).await?;
        let has_it = |guest: &GuestAnswer| {
            let devices = guest.answer.iter().flat_map(|view| &view.info.host_devices);
            let mut addresses = devices.filter_map(|its| its.host.parse().ok());
            addresses.any(|own| own == address || HostDevice::share_a_group(address, own))
        };
        Ok(guests.into_iter().find(has_it).map(|guest| guest.name))
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

    /// Returns the guest that has arrived by the migration with this token and is still here.
    fn arrived(&self, migration: MigrationId, token: &Token) -> Result<GuestDir> {
        let has_arrived = |record: &Record| match &record.side {
            Side::Destination { token: its, state, .. } => {
                its.matches(token) && *state == DestinationState::Running
            }
            Side::Source { .. } => false,
        };
        let record = self.destination_record(migration, token)?.filter(has_arrived);
        let is_it = |record: &Record, guest: &GuestDir| {
            let uuid = self.state().read_uuid(guest.name());
            record.guest == guest.name().as_str() && uuid.is_ok_and(|it| it == record.guest_uuid)
        };
        let guests = self.state().live_guests()?;
        let guest = record.and_then(|it| guests.into_iter().find(|guest| is_it(&it, guest)));
        guest.context("the guest that has arrived by that migration is not there any more")
    }
}

/// Waits for an answer, of which only some are worked on at a time.
async fn limited(
    places: &Semaphore,
    answer: impl Future<Output = Result<FrontReply>>,
) -> FrontReply {
    let Ok(_place) = places.try_acquire() else {
        let text = "the node there is busy with other requests for devices; try again later";
        return refusal(RefusalKind::Busy, text);
    };
    answer.await.unwrap_or_else(|error| refusal(RefusalKind::Other, &format!("{error:#}")))
}

fn refusal(kind: RefusalKind, text: &str) -> FrontReply {
    FrontReply::Refused(migrate::Refusal::new(kind, text))
}

/// Returns whether another process has the device open.
fn is_in_use(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(|error: &HostDeviceError| error.is_in_use)
}

/// Returns where the guest has the device, if it has: a host that missed the answer asks again.
fn attached_before(guest: &GuestInfo, address: PciAddress) -> Option<AttachedThere> {
    let device = guest.host_devices.iter().find(|its| its.host == address.to_string());
    let of = |its: &HostDeviceInfo| AttachedThere {
        address: PeerText::new(&its.guest),
        is_noticed: its.noticed,
    };
    device.map(of)
}

/// Attaches the device to the guest that `arrived` finds.
async fn attach(arrived: impl Fn() -> Result<GuestDir>, address: PciAddress) -> Result<FrontReply> {
    let began = Instant::now();
    let attached: AttachedDevice = loop {
        let client = ApiClient::new(&arrived()?.socket()).with_patience(PIN_PATIENCE);
        let guest: GuestInfo = client.get("/v1/guest").await?;
        if let Some(its) = attached_before(&guest, address) {
            return Ok(FrontReply::Attached(its));
        }
        let (request, files) = tokio::task::block_in_place(|| opened(address, &guest))?;
        match devices::attach(&client, &request, files).await {
            Err(AskError::Refused(refusal))
                if refusal.reason == Reason::Migrating && began.elapsed() < ARRIVAL_PATIENCE =>
            {
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            Err(error) if error.is_unanswered() => {
                return Err(error).context("the guest may still get it");
            }
            answer => break answer?,
        }
    };
    let AttachedDevice { address, noticed: is_noticed, .. } = attached;
    Ok(FrontReply::Attached(AttachedThere { address: PeerText::new(&address), is_noticed }))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::liveness::tests::destination_record;
    use super::super::service::tests::node;
    use super::*;

    fn refused(reply: FrontReply) -> String {
        match reply {
            FrontReply::Refused(refusal) => refusal.to_string(),
            reply => panic!("{reply:?}"),
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn only_devices_that_the_operator_gives_are_attached() {
        let (_folder, node) = node();
        let node = node.with_given_devices(vec!["7e:1f.7".parse().unwrap()]);
        let (migration, token) = (MigrationId::random(), Token::random());
        let attach = async |device: &str| {
            let peer = ([192, 0, 2, 7], 1).into();
            refused(node.attach_device(peer, (migration, &token), &device.into()).await)
        };
        let ask = async |device: &str| refused(node.is_attachable(&device.into()).await);
        for refused in [attach("03:00.0").await, ask("03:00.0").await] {
            assert!(refused.contains("--device vfio=0000:03:00.0"), "{refused}");
        }
        for refused in [attach("../03").await, ask("../03").await] {
            assert!(refused.contains("no address of a PCI device"), "{refused}");
        }
        assert!(ask("7e:1f.7").await.contains("no such device"));
        assert!(attach("7e:1f.7").await.contains("not there any more"));

        let _all = ANSWERING.try_acquire_many(4).unwrap();
        assert!(ask("7e:1f.7").await.contains("try again later"));
    }

    #[test]
    fn a_guest_has_arrived_only_for_whom_has_sent_it() {
        let (_folder, node) = node();
        let live = ["web", "other"].map(|name| {
            let (name, uuid) = (name.parse().unwrap(), Uuid::new_v4());
            node.state().prepare_guest(&name, uuid).unwrap();
            (node.state().guest(&name).claim().unwrap(), uuid)
        });
        let [(_, web), (_, other)] = &live;
        let arrives = |state| Record { guest_uuid: *web, ..destination_record(state, 1) };
        let record = arrives(DestinationState::Running);
        let Side::Destination { token, .. } = record.side else { unreachable!() };
        // The process of another guest claims the same migration.
        let mut forged = record.clone();
        (forged.guest, forged.guest_uuid) = ("other".to_owned(), *other);
        if let Side::Destination { token, .. } = &mut forged.side {
            *token = Token::random();
        }
        let early = arrives(DestinationState::Fetching);
        for record in [&forged, &record, &early] {
            node.records().create(record).unwrap();
        }
        assert_eq!(node.arrived(record.migration, &token).unwrap().name().as_str(), "web");
        assert!(node.arrived(record.migration, &Token::random()).is_err());
        assert!(node.arrived(early.migration, &token).is_err());
        assert!(node.arrived(MigrationId::random(), &token).is_err());
        let [web, _other] = live;
        drop(web);
        assert!(node.arrived(record.migration, &token).is_err(), "it has left");
    }
}
