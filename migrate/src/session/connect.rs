//! Connects a source to the process that receives its guest, at first and again.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::front::{self, Admission, FrontError};
use crate::guest::{GuestDescription, Refusal};
use crate::protocol::front::{FrontReply, FrontRequest};
use crate::protocol::preamble::{LINK_JOINED, Preamble, StreamRole};
use crate::protocol::{Decision, DestinationMessage, MigrationId, Token};
use crate::quic::endpoint::{self, Peer};
use crate::quic::{LinkError, Tls};
use crate::reason::Reason;

/// Pause before asking a node again about a process that does not answer.
const ASK_NODE_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for each step of withdrawing from a contact that is no longer wanted: until it is
/// made, until the process has closed it, and until its endpoints are idle.
pub(super) const WITHDRAW_TIME: Duration = Duration::from_secs(2);

/// Longest wait for a connection on a further link. Those that are there wait for it, and must show
/// their token in time.
const LINK_TIME: Duration = Duration::from_secs(3);
/// Longest wait until the process has added a link.
const JOIN_TIME: Duration = Duration::from_secs(10);

/// Addresses of the destination, and the token for it.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) node: Peer,
    pub(super) process: SocketAddr,
    pub(super) token: Token,
}

impl Route {
    /// Returns the same node and process at another address of their host.
    pub(super) fn at(&self, address: IpAddr) -> Self {
        let mut route = self.clone();
        route.node.address.set_ip(address);
        route.process.set_ip(address);
        route
    }

    /// Returns the process as a peer.
    pub(super) fn peer(&self) -> Peer {
        Peer { address: self.process, name: self.node.name.clone() }
    }
}

/// The established connections to the process, with the control stream on the first.
#[derive(Debug)]
pub(super) struct Contact {
    pub(super) found: Route,
    pub(super) connections: Vec<Connection>,
    pub(super) control: (SendStream, RecvStream),
    /// The first one is for requests to the node, the others for one connection each.
    pub(super) endpoints: Vec<Endpoint>,
    /// The further links, by address: a connection, or why there is none.
    pub(super) links: Vec<(IpAddr, Result<Connection, LinkError>)>,
}

impl Contact {
    /// Closes the contact before any message was sent, so that the process stops waiting and its
    /// node releases the guest's name.
    pub(super) async fn withdraw(self) {
        let Self { connections, control: (mut send, _receive), endpoints, links, .. } = self;
        // The process closes the connection once it has read that the stream is finished.
        if send.finish().is_ok() {
            let _ = timeout(WITHDRAW_TIME, connections[0].closed()).await;
        }
        drop((connections, links));
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
    /// The destination's addresses on each of several links.
    pub(super) links: Vec<IpAddr>,
}

/// Asks the node to receive the guest, and connects to the process that will.
pub(super) async fn approach(approach: Approach) -> Result<Contact, NoContact> {
    let Approach { tls, host, port, addresses, server_name, migration, guest, .. } = approach;
    let (connections, links) = (approach.connections, approach.links);
    let candidates = candidates((&host, port), &addresses, server_name.as_deref()).await?;
    let (node, to_node, admission) = ask_node(candidates, &tls, migration, guest).await?;
    let peer = node.with_port(admission.port);
    let (mut standing, mut endpoints) = (Vec::new(), vec![to_node]);
    for _ in 0..connections {
        let endpoint = match &links[..] {
            [] => endpoint::dialer_for_memory(peer.address, &tls, connections)?,
            _ => endpoint::dialer_for_link(peer.address, &tls)?,
        };
        standing.push(endpoint::connect(&endpoint, &peer).await?);
        endpoints.push(endpoint);
    }
    let found = Route { node, process: peer.address, token: admission.token };
    let control = open_control(&standing[0], &found, migration).await?;
    let links = reach_links(&found, &links, &tls, &mut endpoints).await;
    Ok(Contact { found, connections: standing, control, endpoints, links })
}

/// Connects to the process on all links but the one on which it was found.
async fn reach_links(
    found: &Route,
    links: &[IpAddr],
    tls: &Tls,
    endpoints: &mut Vec<Endpoint>,
) -> Vec<(IpAddr, Result<Connection, LinkError>)> {
    let mut reaching = JoinSet::new();
    for link in links.iter().copied().filter(|link| *link != found.process.ip()) {
        let (peer, tls) = (found.at(link).peer(), tls.clone());
        reaching.spawn(async move {
            let connected = timeout(LINK_TIME, connect_link(&peer, &tls)).await;
            let peer = peer.address.to_string();
            (link, connected.unwrap_or(Err(LinkError::Silent { peer })))
        });
    }
    let mut reached = Vec::new();
    for (link, connected) in reaching.join_all().await {
        reached.push((
            link,
            connected.map(|(dialer, connection)| {
                endpoints.push(dialer);
                connection
            }),
        ));
    }
    // The operator has given the first ones the first place.
    reached.sort_by_key(|(link, _)| links.iter().position(|it| it == link));
    reached
}

async fn connect_link(peer: &Peer, tls: &Tls) -> Result<(Endpoint, Connection), LinkError> {
    let dialer = endpoint::dialer_for_link(peer.address, tls)?;
    let connection = endpoint::connect(&dialer, peer).await?;
    Ok((dialer, connection))
}

/// A further link, and the control stream on it, which the process has added.
pub(super) type Joined = (IpAddr, Result<(Connection, (SendStream, RecvStream)), String>);

/// Opens the control stream on each of `links`, and waits until the process has added it.
pub(super) async fn join(
    links: Vec<(IpAddr, Connection)>,
    found: Route,
    migration: MigrationId,
) -> Vec<Joined> {
    let mut joining = JoinSet::new();
    for (place, (link, connection)) in links.into_iter().enumerate() {
        let found = found.clone();
        joining.spawn(async move {
            let joined = timeout(JOIN_TIME, join_one(&connection, &found, migration)).await;
            let joined = match joined {
                Ok(joined) => joined.map_err(|error| error.to_string()),
                Err(_) => Err("the destination does not add it".to_owned()),
            };
            (place, link, joined.map(|stream| (connection, stream)))
        });
    }
    let mut joined = joining.join_all().await;
    joined.sort_by_key(|(place, ..)| *place);
    joined.into_iter().map(|(_, link, joined)| (link, joined)).collect()
}

async fn join_one(
    connection: &Connection,
    found: &Route,
    migration: MigrationId,
) -> Result<(SendStream, RecvStream), LinkError> {
    let (send, mut receive) = open(connection, found, (migration, StreamRole::Link)).await?;
    let mut answer = [0; LINK_JOINED.len()];
    let read = receive.read_exact(&mut answer).await;
    match read {
        Ok(()) if answer == LINK_JOINED => Ok((send, receive)),
        Ok(()) => Err(broken(connection, found, "the destination adds it in an unknown way")),
        Err(error) => Err(broken(connection, found, &error.to_string())),
    }
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
    /// The process was reached on this route: its connection and control stream.
    Process(Route, Connection, (SendStream, RecvStream)),
    /// The process is gone; its node answers for it, about this decision.
    Node(Decision, DestinationMessage),
}

/// Reconnects to the process on the first of `routes` on which it answers; asks its node at the
/// same time, which answers if the process is dead.
pub(super) async fn reach_again(
    routes: Vec<(Endpoint, Route)>,
    migration: MigrationId,
    decision: Decision,
) -> Result<Reached, String> {
    let by_process = async {
        let (route, connection) = connect_any(&routes).await?;
        let control = open_control(&connection, &route, migration).await?;
        Ok::<_, LinkError>(Reached::Process(route, connection, control))
    };
    let by_node = ask_any_node(&routes, migration, decision);
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

/// Connects to the process on the route on which it answers first. Its control stream is opened on
/// one route only: a second one would replace the first.
async fn connect_any(routes: &[(Endpoint, Route)]) -> Result<(Route, Connection), LinkError> {
    let mut connecting = JoinSet::new();
    for (endpoint, route) in routes.iter().cloned() {
        connecting.spawn(async move {
            let connected = endpoint::connect(&endpoint, &route.peer()).await;
            connected.map(|connection| (route, connection))
        });
    }
    let mut failed = None;
    while let Some(connected) = connecting.join_next().await {
        match connected {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error)) => failed = Some(error),
            // A panic there has already been reported by the panic handler.
            Err(_) => {}
        }
    }
    let nowhere = || LinkError::Other { peer: "the destination".into(), reason: "no route".into() };
    Err(failed.unwrap_or_else(nowhere))
}

/// Asks the node on all routes for the answer of a process that is dead; none if it has none.
async fn ask_any_node(
    routes: &[(Endpoint, Route)],
    migration: MigrationId,
    decision: Decision,
) -> Option<Reached> {
    let mut asking = JoinSet::new();
    for (endpoint, route) in routes.iter().cloned() {
        asking.spawn(async move {
            let token = route.token;
            let request = FrontRequest::Resolve { migration, token, decision };
            loop {
                match front::ask(&endpoint, &route.node, &request).await {
                    Ok(FrontReply::Resolved(answer)) => {
                        return Some(Reached::Node(decision, answer));
                    }
                    // The process may be about to die.
                    Ok(FrontReply::AskProcess { .. }) => sleep(ASK_NODE_EVERY).await,
                    _ => return None,
                }
            }
        });
    }
    while let Some(answer) = asking.join_next().await {
        if let Ok(Some(answer)) = answer {
            return Some(answer);
        }
    }
    None
}

async fn open_control(
    connection: &Connection,
    found: &Route,
    migration: MigrationId,
) -> Result<(SendStream, RecvStream), LinkError> {
    open(connection, found, (migration, StreamRole::Control)).await
}

/// Opens a stream of this role.
async fn open(
    connection: &Connection,
    found: &Route,
    (migration, role): (MigrationId, StreamRole),
) -> Result<(SendStream, RecvStream), LinkError> {
    let opened = connection.open_bi().await;
    let (mut send, receive) =
        opened.map_err(|error| broken(connection, found, &error.to_string()))?;
    let preamble = Preamble { role, migration, token: found.token };
    match send.write_all(&preamble.encode()).await {
        Ok(()) => Ok((send, receive)),
        Err(error) => Err(broken(connection, found, &error.to_string())),
    }
}

/// Returns why `connection` cannot be used: the transport's error, or else `detail`.
fn broken(connection: &Connection, found: &Route, detail: &str) -> LinkError {
    let peer = connection.remote_address();
    match connection.close_reason() {
        Some(error) => LinkError::explain(&error, peer, &found.node.name),
        None => LinkError::Other { peer: peer.to_string(), reason: detail.to_owned() },
    }
}
