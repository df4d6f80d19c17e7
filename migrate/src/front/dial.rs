//! The client of the front protocol: requests to a node.

use std::net::SocketAddr;
use std::time::Duration;

use quinn::{Connection, Endpoint};
use tokio::time::timeout;
use uuid::Uuid;

use crate::framing::{self, ReadFailure};
use crate::guest::{GuestDescription, Refusal};
use crate::protocol::front::{
    AttachedThere, BootFile, DiskUser, FoundGuest, FrontReply, FrontRequest, Onward, SoughtDisk,
};
use crate::protocol::preamble::{Preamble, StreamRole};
use crate::protocol::{Decision, DestinationMessage, MigrationId, Offer, SourceMessage, Token};
use crate::quic::endpoint::{self, Peer};
use crate::quic::{LinkError, Tls};
use crate::text::PeerText;

/// Longest wait for a node's answer, while it starts a process for the guest.
const ANSWER_TIME: Duration = Duration::from_secs(60);

/// Why a request to a node failed.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    /// The node refuses the request.
    #[error(transparent)]
    Refused(Refusal),
    /// The connection could not be made, or broke.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The node did not answer in time.
    #[error("{peer} did not answer within {} s", limit.as_secs())]
    NoAnswer {
        /// The node's address.
        peer: SocketAddr,
        /// How long the caller waited.
        limit: Duration,
    },
    /// The answer is not valid for the request.
    #[error("{peer} answered with something else than was asked: {detail}")]
    Protocol {
        /// The node's address.
        peer: SocketAddr,
        /// What is wrong with the answer.
        detail: String,
    },
}

/// A process that waits for a guest.
#[derive(Debug, Clone, Copy)]
pub struct Admission {
    /// UDP port of the process, at the node's address.
    pub port: u16,
    /// Secret that each stream to it must show.
    pub token: Token,
}

/// Asks the node `peer` to receive `guest`.
///
/// # Errors
/// [`FrontError::Refused`] with the node's reason, or why there is no answer.
pub async fn admit(
    dialer: &Endpoint,
    peer: &Peer,
    migration: MigrationId,
    guest: GuestDescription,
) -> Result<Admission, FrontError> {
    let request = FrontRequest::Admit { migration, offer: Offer::ours(), guest };
    match ask(dialer, peer, &request).await? {
        FrontReply::Admitted { port, token } => Ok(Admission { port, token }),
        reply => Err(unfit(peer, reply)),
    }
}

/// Sends one request to the node `peer`, and returns its answer.
///
/// # Errors
/// If there is no answer; a refusal is an answer.
pub async fn ask(
    dialer: &Endpoint,
    peer: &Peer,
    request: &FrontRequest,
) -> Result<FrontReply, FrontError> {
    let connection = endpoint::connect(dialer, peer).await?;
    let answer = timeout(ANSWER_TIME, dialogue(&connection, peer, request)).await;
    connection.close(0_u32.into(), b"");
    answer.map_err(|_| FrontError::NoAnswer { peer: peer.address, limit: ANSWER_TIME })?
}

/// Sends one request on a connection of its own, and returns the answer.
async fn dialogue(
    connection: &Connection,
    peer: &Peer,
    request: &FrontRequest,
) -> Result<FrontReply, FrontError> {
    let exchange = async {
        let lost = |error: quinn::ConnectionError| ReadFailure::Lost(error.to_string());
        let (mut send, mut receive) = connection.open_bi().await.map_err(lost)?;
        framing::write(&mut send, request).await.map_err(ReadFailure::Lost)?;
        send.finish().map_err(|error| ReadFailure::Lost(error.to_string()))?;
        framing::read::<FrontReply>(&mut receive).await
    };
    exchange.await.map_err(|failure| failed(connection, peer, failure))
}

/// A guest to ask a host about.
#[derive(Debug, Clone)]
pub struct Sought {
    /// Identity of the guest, the same on every host.
    pub uuid: Uuid,
    /// Its name on the asking host.
    pub name: String,
    /// The last migration that the asking host knows of; none if it knows of none.
    pub migration: Option<MigrationId>,
}

/// A host's answer about a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traced {
    /// The guest, or its last known state there.
    pub guest: Option<FoundGuest>,
    /// The host to ask next if the guest has moved on, or may have.
    pub onward: Option<Onward>,
    /// Whether the answer covers only what happened after that migration; false from earlier
    /// versions.
    pub is_since: bool,
}

/// Asks the node `peer` whether its host has the guest `sought`, or else one with its name, and
/// where that has gone since; waits at most `patience`. A node of an earlier version is asked with
/// a request that it understands.
///
/// # Errors
/// If there is no answer.
pub async fn trace(
    tls: &Tls,
    peer: &Peer,
    sought: &Sought,
    patience: Duration,
) -> Result<Traced, FrontError> {
    within(tls, peer, patience, |dialer| async move { trace_by(&dialer, peer, sought).await }).await
}

async fn trace_by(dialer: &Endpoint, peer: &Peer, sought: &Sought) -> Result<Traced, FrontError> {
    let (uuid, name) = (sought.uuid, PeerText::new(&sought.name));
    if let Some(migration) = sought.migration {
        let request = FrontRequest::Trace { uuid, name: name.clone(), migration };
        match ask(dialer, peer, &request).await {
            Ok(FrontReply::Traced { guest, onward }) => {
                return Ok(Traced { guest, onward, is_since: true });
            }
            // An earlier version closes the connection on a request that it does not know.
            Err(FrontError::Link(LinkError::Closed { .. }) | FrontError::Protocol { .. }) => {}
            Ok(reply) => return Err(unfit(peer, reply)),
            Err(error) => return Err(error),
        }
    }
    match ask(dialer, peer, &FrontRequest::Find { uuid, name }).await? {
        FrontReply::Found(guest) => Ok(Traced { guest, onward: None, is_since: false }),
        reply => Err(unfit(peer, reply)),
    }
}

/// Asks the node `peer` which guests of its host write `disk`, or are about to; waits at most
/// `patience`.
///
/// # Errors
/// If there is no answer. A node of an earlier version gives none.
pub async fn disk_users(
    tls: &Tls,
    peer: &Peer,
    disk: &SoughtDisk,
    patience: Duration,
) -> Result<Vec<DiskUser>, FrontError> {
    let request = FrontRequest::DiskUsers { disk: disk.clone() };
    match ask_within(tls, peer, &request, patience).await? {
        FrontReply::DiskUsers(users) => Ok(users),
        reply => Err(unfit(peer, reply)),
    }
}

/// Asks the node `peer` which of `files` its host has, with their content; waits at most
/// `patience`. The answers are in the order of the files.
///
/// # Errors
/// If there is no answer. A node of an earlier version gives none.
pub async fn boot_files(
    tls: &Tls,
    peer: &Peer,
    files: Vec<BootFile>,
    patience: Duration,
) -> Result<Vec<bool>, FrontError> {
    match ask_within(tls, peer, &FrontRequest::BootFiles { files }, patience).await? {
        FrontReply::BootFiles(are_there) => Ok(are_there),
        reply => Err(unfit(peer, reply)),
    }
}

/// Asks the node `peer` whether it would attach `device` of its host to a guest from this one;
/// waits at most `patience`.
///
/// # Errors
/// [`FrontError::Refused`] with the node's reason if it would not, or why there is no answer. A
/// node of an earlier version gives none.
pub async fn expect_attachable(
    tls: &Tls,
    peer: &Peer,
    device: &str,
    patience: Duration,
) -> Result<(), FrontError> {
    let request = FrontRequest::IsAttachable { device: PeerText::new(device) };
    match ask_within(tls, peer, &request, patience).await? {
        FrontReply::Attachable => Ok(()),
        reply => Err(unfit(peer, reply)),
    }
}

/// Has the node `peer` attach `device` of its host to the guest that has arrived there by the
/// migration of this token; waits at most `patience`.
///
/// # Errors
/// As [`expect_attachable`]. Without an answer the guest may have got the device.
pub async fn attach_device(
    tls: &Tls,
    peer: &Peer,
    (migration, token): (MigrationId, Token),
    device: &str,
    patience: Duration,
) -> Result<AttachedThere, FrontError> {
    let request = FrontRequest::AttachDevice { migration, token, device: PeerText::new(device) };
    match ask_within(tls, peer, &request, patience).await? {
        FrontReply::Attached(attached) => Ok(attached),
        reply => Err(unfit(peer, reply)),
    }
}

/// Asks the node `peer` by a connection of its own; waits at most `patience`.
async fn ask_within(
    tls: &Tls,
    peer: &Peer,
    request: &FrontRequest,
    patience: Duration,
) -> Result<FrontReply, FrontError> {
    let ask = |dialer| async move {
        let connection = endpoint::connect(&dialer, peer).await?;
        dialogue(&connection, peer, request).await
    };
    within(tls, peer, patience, ask).await
}

/// Has `exchange` ask the node `peer`, from a socket that is closed afterwards; waits at most
/// `patience`.
async fn within<T, F>(
    tls: &Tls,
    peer: &Peer,
    patience: Duration,
    exchange: impl FnOnce(Endpoint) -> F,
) -> Result<T, FrontError>
where
    F: Future<Output = Result<T, FrontError>>,
{
    let dialer = endpoint::dialer(peer.address, tls)?;
    let answer = timeout(patience, exchange(dialer.clone())).await;
    hang_up(&dialer).await;
    answer.map_err(|_| FrontError::NoAnswer { peer: peer.address, limit: patience })?
}

/// A migration whose source process died, as recorded.
#[derive(Debug, Clone)]
pub struct ResolveTarget {
    /// Id of the migration that the record is about.
    pub migration: MigrationId,
    /// Secret that the destination issued.
    pub token: Token,
    /// The decision in the record.
    pub decision: Decision,
    /// The destination's node.
    pub node: Peer,
    /// Address of the process that received the guest.
    pub process: SocketAddr,
}

/// Reports the decision in the record of a dead source process to the destination; returns its
/// answer: `Running`, `Discarded`, `Unknown`, or `Abort` if the destination cannot tell.
///
/// Asks the node first, which knows whether the process is alive; asks the process itself if the
/// node says so or does not answer.
///
/// # Errors
/// If there is no answer; the caller asks again later.
pub async fn resolve(tls: &Tls, target: &ResolveTarget) -> Result<DestinationMessage, FrontError> {
    let dialer = endpoint::dialer(target.node.address, tls)?;
    let outcome = resolve_by(&dialer, target).await;
    hang_up(&dialer).await;
    outcome
}

/// Closes all connections, and gives the peers a second to hear it.
async fn hang_up(dialer: &Endpoint) {
    dialer.close(0_u32.into(), b"");
    let _ = timeout(Duration::from_secs(1), dialer.wait_idle()).await;
}

async fn resolve_by(
    dialer: &Endpoint,
    target: &ResolveTarget,
) -> Result<DestinationMessage, FrontError> {
    let ResolveTarget { migration, token, decision, ref node, process } = *target;
    let mut address = process;
    match ask(dialer, node, &FrontRequest::Resolve { migration, token, decision }).await {
        Ok(FrontReply::Resolved(answer)) => return Ok(answer),
        Ok(FrontReply::AskProcess { port }) => address.set_port(port),
        Ok(reply) => return Err(unfit(node, reply)),
        Err(error) => tracing::debug!(%migration, %error, "the node does not answer"),
    }
    let peer = Peer { address, name: node.name.clone() };
    timeout(ANSWER_TIME, resolve_with_process(dialer, &peer, target))
        .await
        .map_err(|_| FrontError::NoAnswer { peer: address, limit: ANSWER_TIME })?
}

async fn resolve_with_process(
    dialer: &Endpoint,
    peer: &Peer,
    target: &ResolveTarget,
) -> Result<DestinationMessage, FrontError> {
    let ResolveTarget { migration, token, decision, .. } = *target;
    let connection = endpoint::connect(dialer, peer).await?;
    let dialogue = async {
        let lost = |detail: String| ReadFailure::Lost(detail);
        let opened = connection.open_bi().await;
        let (mut send, mut receive) = opened.map_err(|error| lost(error.to_string()))?;
        let preamble = Preamble { role: StreamRole::Control, migration, token };
        let write = send.write_all(&preamble.encode()).await;
        write.map_err(|error| lost(error.to_string()))?;
        let question = SourceMessage::Resolve { migration, decision };
        framing::write(&mut send, &question).await.map_err(lost)?;
        let answer = framing::read::<DestinationMessage>(&mut receive).await?;
        framing::write(&mut send, &SourceMessage::Finish).await.map_err(lost)?;
        let _ = send.finish();
        // The destination closes the connection once it has heard; it may be gone already.
        let _ = timeout(Duration::from_secs(2), send.stopped()).await;
        Ok(answer)
    };
    let outcome = dialogue.await.map_err(|failure| failed(&connection, peer, failure));
    connection.close(0_u32.into(), b"");
    outcome
}

/// Explains why no answer of `peer` could be read from `connection`.
pub(super) fn failed(connection: &Connection, peer: &Peer, failure: ReadFailure) -> FrontError {
    let detail = match failure {
        ReadFailure::Malformed(error) | ReadFailure::OutOfStep(error) => error.to_string(),
        ReadFailure::Lost(detail) => match connection.close_reason() {
            Some(error) => return LinkError::explain(&error, peer.address, &peer.name).into(),
            None => detail,
        },
    };
    FrontError::Protocol { peer: peer.address, detail }
}

/// Explains an answer that does not fit the request.
pub(super) fn unfit(peer: &Peer, reply: FrontReply) -> FrontError {
    let detail = match reply {
        FrontReply::Refused(refusal) => return FrontError::Refused(refusal),
        FrontReply::Admitted { .. } => "admitted",
        FrontReply::Resolved(_) => "resolved",
        FrontReply::AskProcess { .. } => "ask the process",
        FrontReply::Found(_) => "found",
        FrontReply::Traced { .. } => "traced",
        FrontReply::DiskUsers(_) => "users of a disk",
        FrontReply::BootFiles(_) => "files to boot from",
        FrontReply::Sink { .. } => "a sink",
        FrontReply::Attachable => "an attachable device",
        FrontReply::Attached(_) => "an attached device",
    };
    FrontError::Protocol { peer: peer.address, detail: detail.into() }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::protocol::front::DiskFeatures;
    use crate::quic::Authority;

    /// A node that knows `Find` and no later request.
    async fn serve_as_earlier(listener: Endpoint, found: FoundGuest) {
        while let Some(incoming) = listener.accept().await {
            let connection = incoming.await.unwrap();
            let (mut send, mut receive) = connection.accept_bi().await.unwrap();
            match framing::read::<FrontRequest>(&mut receive).await.unwrap() {
                FrontRequest::Find { .. } => {
                    let reply = FrontReply::Found(Some(found.clone()));
                    framing::write(&mut send, &reply).await.unwrap();
                    send.finish().unwrap();
                    connection.closed().await;
                }
                _ => connection.close(0_u32.into(), b"unknown kind of control message"),
            }
        }
    }

    #[tokio::test]
    async fn an_older_node_is_asked_only_what_it_supports() {
        let identity = Authority::create().unwrap().issue(&["127.0.0.1".into()]).unwrap();
        let tls = Tls::new(&identity).unwrap();
        let listener = endpoint::listen((Ipv4Addr::LOCALHOST, 0).into(), &tls).unwrap();
        let peer = Peer { address: listener.local_addr().unwrap(), name: "127.0.0.1".into() };
        let uuid = Uuid::from_u128(7);
        let (name, state) = ("web-1".into(), "running".into());
        let found = FoundGuest { uuid, name, state, is_owned: true };
        tokio::spawn(serve_as_earlier(listener, found.clone()));

        let migration = Some(MigrationId::random());
        let sought = Sought { uuid, name: "web-1".to_owned(), migration };
        let traced = trace(&tls, &peer, &sought, ANSWER_TIME).await.unwrap();

        assert_eq!(traced, Traced { guest: Some(found), onward: None, is_since: false });
        let features = DiskFeatures::File { inode: 7, born_unix_ns: None };
        let disk = SoughtDisk { path: "/srv/web.raw".into(), features };
        disk_users(&tls, &peer, &disk, ANSWER_TIME).await.unwrap_err();
    }
}
