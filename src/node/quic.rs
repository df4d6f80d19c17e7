//! The node's QUIC endpoints: passes requests of sources to the node, and sends decisions to other
//! nodes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use migrate::front::{self, FrontHandler, ResolveTarget};
use migrate::guest::RefusalKind;
use migrate::progress::Role;
use migrate::protocol::front::{FrontReply, FrontRequest};
use migrate::protocol::{Decision, DestinationMessage};
use migrate::quic::endpoint::Peer;
use migrate::quic::{Identity, Tls, TlsError};
use migrate::record::{Record, Side};
use uuid::Uuid;

use super::boot_files;
use super::front::Arrival;
use super::resolver::DecisionClient;
use super::service::Node;

/// Answers the requests of sources for the node.
#[derive(Debug)]
pub(crate) struct SourceRequests(pub(crate) Arc<Node>);

impl FrontHandler for SourceRequests {
    async fn answer(
        &self,
        request: FrontRequest,
        peer: SocketAddr,
        guest: Option<Uuid>,
    ) -> FrontReply {
        let node = Arc::clone(&self.0);
        // A task of its own: if the source disconnects, the node must still wait for the process
        // that was started.
        let answer = tokio::spawn(async move {
            match request {
                FrontRequest::Admit { migration, offer, guest } => {
                    node.admit(Arrival { peer, migration, offer, guest }).await
                }
                FrontRequest::Resolve { migration, token, decision } => {
                    node.resolve((peer, guest), migration, &token, decision)
                }
                FrontRequest::Find { uuid, name } => node.find(uuid, &name, peer).await,
                FrontRequest::Trace { uuid, name, migration } => {
                    node.trace(uuid, &name, migration).await
                }
                FrontRequest::DiskUsers { disk } => node.disk_users(&disk).await,
                FrontRequest::BootFiles { files } => boot_files::answer(files),
                FrontRequest::IsAttachable { device } => node.is_attachable(&device).await,
                FrontRequest::AttachDevice { migration, token, device } => {
                    node.attach_device(peer, (migration, &token), &device).await
                }
                // The server of the protocol answers it itself.
                FrontRequest::Sink => FrontReply::Refused(migrate::Refusal::new(
                    RefusalKind::Other,
                    "this node has no sinks",
                )),
            }
        });
        answer.await.unwrap_or_else(|error| {
            tracing::error!(%peer, %error, "a request of another host is not answered, by a bug in lighter; report it");
            FrontReply::Refused(migrate::Refusal::new(
                RefusalKind::Other,
                "the node could not answer; its log has more",
            ))
        })
    }
}

/// Sends decisions to other nodes.
#[derive(Debug)]
pub(crate) struct NodeClient {
    certs: PathBuf,
}

impl NodeClient {
    /// Uses the certificates of the host in the folder `certs`.
    pub(crate) fn new(certs: PathBuf) -> Self {
        Self { certs }
    }

    /// Authenticates as the guest's process, which has ended.
    fn tls(&self, guest: Uuid) -> Result<Tls, TlsError> {
        Tls::new(&Identity::of_guest(&self.certs, guest, Role::Source)?)
    }
}

impl DecisionClient for NodeClient {
    async fn deliver(
        &self,
        record: &Record,
        decision: Decision,
    ) -> Result<DestinationMessage, String> {
        let Side::Source { server_name, node_address, process_address, token, .. } = &record.side
        else {
            return Err("the record of a destination has nothing to deliver".to_owned());
        };
        let target = ResolveTarget {
            migration: record.migration,
            token: *token,
            decision,
            node: Peer { address: *node_address, name: server_name.clone() },
            process: *process_address,
        };
        let tls = self.tls(record.guest_uuid).map_err(|error| error.to_string())?;
        front::resolve(&tls, &target).await.map_err(|error| error.to_string())
    }
}
