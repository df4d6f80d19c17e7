//! Connects a source to the process that receives its guest, at first and again.

use std::net::SocketAddr;
use std::time::Duration;

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::time::{sleep, timeout};

use crate::front::{self, Admission, FrontError};
use crate::guest::{GuestDescription, Refusal};
use crate::protocol::front::{FrontReply, FrontRequest};
use crate::protocol::preamble::{Preamble, StreamRole};
use crate::protocol::{Decision, DestinationMessage, MigrationId, Token};
use crate::quic::endpoint::{self, Peer};
use crate::quic::{LinkError, Tls};
use crate::reason::Reason;

/// Pause before asking a node again about a process that does not answer.
const ASK_NODE_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for each step of withdrawing from a contact that is no longer wanted: until it is
/// made, until the process has closed it, and until its endpoints are idle.
pub(super) const WITHDRAW_TIME: Duration = Duration::from_secs(2);

/// Addresses of the destination, and the token for it.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) node: Peer,
    pub(super) process: SocketAddr,
    pub(super) token: Token,
}

/// The established connections to the process, with the control stream on the first.
#[derive(Debug)]
pub(super) struct Contact {
    pub(super) found: Route,
    pub(super) connections: Vec<Connection>,
    pub(super) control: (SendStream, RecvStream),
    /// The first one is for requests to the node, the others for one connection each.
    pub(super) endpoints: Vec<Endpoint>,
}

impl Contact {
    /// Closes the contact before any message was sent, so that the process stops waiting and its
    /// node releases the guest's name.
    pub(super) async fn withdraw(self) {
        let Self { connections, control: (mut send, _receive), endpoints, .. } = self;
        // The process closes the connection once it has read that the stream is finished.
        if send.finish().is_ok() {
            let _ = timeout(WITHDRAW_TIME, connections[0].closed()).await;
        }
        drop(connections);
        let idle = async {
            for endpoint in &endpoints {
                endpoint.close(0_u32.into(), b"");
                endpoint.wait_idle().await;
            }
        };
        let _ = timeout(WITHDRAW_TIME, idle).await;
    }
}

/// Why no contact was made.
#[derive(Debug)]
pub(super) enum NoContact {
    Refused(Refusal),
    Failed(Reason, String),
}

impl From<FrontError> for NoContact {
    fn from(error: FrontError) -> Self {
        match error {
            FrontError::Refused(refusal) => Self::Refused(refusal),
            FrontError::Link(error) => error.into(),
            FrontError::NoAnswer { .. } => Self::Failed(Reason::Unreachable, error.to_string()),
            FrontError::Protocol { .. } => Self::Failed(Reason::Protocol, error.to_string()),
        }
    }
}

impl From<LinkError> for NoContact {
    fn from(error: LinkError) -> Self {
        Self::Failed(error.reason(), error.to_string())
    }
}

/// Parameters of the first contact.
pub(super) struct Approach {
    pub(super) tls: Tls,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) server_name: Option<String>,
    pub(super) migration: MigrationId,
    pub(super) guest: GuestDescription,
    pub(super) connections: u16,
}

/// Asks the node to receive the guest, and connects to the process that will.
pub(super) async fn approach(approach: Approach) -> Result<Contact, NoContact> {
    let Approach { tls, host, port, addresses, server_name, migration, guest, connections } =
        approach;
    let candidates = candidates((&host, port), &addresses, server_name.as_deref()).await?;
    let (node, to_node, admission) = ask_node(candidates, &tls, migration, guest).await?;
    let peer = node.with_port(admission.port);
    let (mut standing, mut endpoints) = (Vec::new(), vec![to_node]);
    for _ in 0..connections {
        let endpoint = endpoint::dialer_for_memory(peer.address, &tls)?;
        standing.push(endpoint::connect(&endpoint, &peer).await?);
        endpoints.push(endpoint);
    }
    let found = Route { node, process: peer.address, token: admission.token };
    let control = open_control(&standing[0], &found, migration).await?;
    Ok(Contact { found, connections: standing, control, endpoints })
}

/// Returns the node of `host` at each of its addresses: those that are given, or else those that
/// are found. Its certificate must carry `server_name` if that is given.
pub(super) async fn candidates(
    (host, port): (&str, u16),
    addresses: &[SocketAddr],
    server_name: Option<&str>,
) -> Result<Vec<Peer>, LinkError> {
    let mut candidates = match addresses {
        [] => Peer::find(host, port).await?,
        given => Peer::at(host, given.iter().copied()),
    };
    if let Some(name) = server_name {
        candidates.iter_mut().for_each(|node| name.clone_into(&mut node.name));
    }
    Ok(candidates)
}

/// Asks the node at each of its addresses in turn until one answers; its host may have addresses
/// that the node does not listen on, or that are out of reach from this network.
async fn ask_node(
    candidates: Vec<Peer>,
    tls: &Tls,
    migration: MigrationId,
    guest: GuestDescription,
) -> Result<(Peer, Endpoint, Admission), NoContact> {
    let mut silent = None;
    for node in candidates {
        let to_node = match endpoint::dialer(node.address, tls) {
            Ok(dialer) => dialer,
            // This host does not support that address family.
            Err(error) => {
                silent = Some(error);
                continue;
            }
        };
        match front::admit(&to_node, &node, migration, guest.clone()).await {
            Ok(admission) => return Ok((node, to_node, admission)),
            Err(FrontError::Link(error @ LinkError::Silent { .. })) => silent = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    let nothing = || NoContact::Failed(Reason::Unreachable, "it has no address".to_owned());
    Err(silent.map_or_else(nothing, NoContact::from))
}

/// The result of reconnecting.
#[derive(Debug)]
pub(super) enum Reached {
    /// The process was reached: its connection and control stream.
    Process(Connection, (SendStream, RecvStream)),
    /// The process is gone; its node answers for it, about this decision.
    Node(Decision, DestinationMessage),
}

/// Reconnects to the process; asks its node at the same time, which answers if the process is dead.
pub(super) async fn reach_again(
    endpoint: Endpoint,
    found: Route,
    migration: MigrationId,
    decision: Decision,
) -> Result<Reached, String> {
    let by_process = async {
        let peer = Peer { address: found.process, name: found.node.name.clone() };
        let connection = endpoint::connect(&endpoint, &peer).await?;
        let control = open_control(&connection, &found, migration).await?;
        Ok::<_, LinkError>(Reached::Process(connection, control))
    };
    let by_node = async {
        let token = found.token;
        let request = FrontRequest::Resolve { migration, token, decision };
        loop {
            match front::ask(&endpoint, &found.node, &request).await {
                Ok(FrontReply::Resolved(answer)) => return Some(Reached::Node(decision, answer)),
                // The process may be about to die.
                Ok(FrontReply::AskProcess { .. }) => sleep(ASK_NODE_EVERY).await,
                _ => return None,
            }
        }
    };
    tokio::pin!(by_process, by_node);
    tokio::select! {
        reached = &mut by_process => match reached {
            Ok(reached) => Ok(reached),
            Err(error) => match timeout(ASK_NODE_EVERY, by_node).await {
                Ok(Some(answer)) => Ok(answer),
                _ => Err(error.to_string()),
            },
        },
        answer = &mut by_node => match answer {
            Some(answer) => Ok(answer),
            None => by_process.await.map_err(|error| error.to_string()),
        },
    }
}

async fn open_control(
    connection: &Connection,
    found: &Route,
    migration: MigrationId,
) -> Result<(SendStream, RecvStream), LinkError> {
    let lost = |error: quinn::ConnectionError| {
        LinkError::explain(&error, connection.remote_address(), &found.node.name)
    };
    let (mut send, receive) = connection.open_bi().await.map_err(lost)?;
    let preamble = Preamble { role: StreamRole::Control, migration, token: found.token };
    if let Err(error) = send.write_all(&preamble.encode()).await {
        return Err(match connection.close_reason() {
            Some(error) => lost(error),
            None => LinkError::Other {
                peer: connection.remote_address().to_string(),
                reason: error.to_string(),
            },
        });
    }
    Ok((send, receive))
}
