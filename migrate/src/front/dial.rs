//! The side that asks.

use std::net::SocketAddr;
use std::time::Duration;

use quinn::Endpoint;
use tokio::time::timeout;
use uuid::Uuid;

use crate::framing::{self, ReadFailure};
use crate::guest::{GuestDescription, Refusal};
use crate::protocol::front::{FoundGuest, FrontReply, FrontRequest, Onward};
use crate::protocol::preamble::{Preamble, StreamRole};
use crate::protocol::{
    CodecError, Decision, DestinationMessage, MigrationId, Offer, SourceMessage, Token,
};
use crate::quic::endpoint::{self, Peer};
use crate::quic::{LinkError, Tls};
use crate::text::PeerText;

/// Time for a node to answer: it starts a process for the guest meanwhile.
const ANSWER_TIME: Duration = Duration::from_secs(60);

/// Why a request to a node came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    /// The node says no.
    #[error(transparent)]
    Refused(Refusal),
    /// The connection could not be made or broke.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The node did not answer in time.
    #[error("{peer} did not answer within {} s", limit.as_secs())]
    NoAnswer {
        /// The node's address.
        peer: SocketAddr,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The answer makes no sense.
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
    /// Its UDP port, on the node's address.
    pub port: u16,
    /// Secret to be shown on each stream to it.
    pub token: Token,
}

/// Asks the node `peer` to take `guest` in.
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

/// Asks the node `peer` one question.
///
/// # Errors
/// Why there is no answer; a refusal is an answer.
pub async fn ask(
    dialer: &Endpoint,
    peer: &Peer,
    request: &FrontRequest,
) -> Result<FrontReply, FrontError> {
    let connection = endpoint::connect(dialer, peer).await?;
    let dialogue = async {
        let lost = |error: quinn::ConnectionError| ReadFailure::Lost(error.to_string());
        let (mut send, mut receive) = connection.open_bi().await.map_err(lost)?;
        framing::write(&mut send, request).await.map_err(ReadFailure::Lost)?;
        send.finish().map_err(|error| ReadFailure::Lost(error.to_string()))?;
        framing::read::<FrontReply>(&mut receive).await
    };
    let answer = timeout(ANSWER_TIME, dialogue).await;
    let reply = match answer {
        Err(_) => Err(FrontError::NoAnswer { peer: peer.address, limit: ANSWER_TIME }),
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(ReadFailure::Malformed(error) | ReadFailure::OutOfStep(error))) => {
            Err(malformed(peer, &error))
        }
        Ok(Err(ReadFailure::Lost(detail))) => Err(match connection.close_reason() {
            Some(error) => LinkError::explain(&error, peer.address, &peer.name).into(),
            None => FrontError::Protocol { peer: peer.address, detail },
        }),
    };
    connection.close(0_u32.into(), b"");
    reply
}

/// A guest that a host is asked about.
#[derive(Debug, Clone)]
pub struct Sought {
    /// Its identity.
    pub uuid: Uuid,
    /// Its name on the host that asks.
    pub name: String,
    /// The last migration that the asking host knows of; none when what it knows has no such thing.
    pub migration: Option<MigrationId>,
}

/// What a host says of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traced {
    /// The guest, or how it was last there.
    pub guest: Option<FoundGuest>,
    /// Where to go on asking when it has moved on, or may have.
    pub onward: Option<Onward>,
    /// Whether the answer covers only what happened after that migration; false from earlier
    /// versions.
    pub is_since: bool,
}

/// Asks the node `peer` whether its host has the guest that is `sought`, or else one of its name,
/// and where that has gone since; for no longer than `patience`. A node of an earlier version is
/// asked what it understands.
///
/// # Errors
/// Why there is no answer.
pub async fn trace(
    tls: &Tls,
    peer: &Peer,
    sought: &Sought,
    patience: Duration,
) -> Result<Traced, FrontError> {
    let dialer = endpoint::dialer(peer.address, tls)?;
    let traced = timeout(patience, trace_by(&dialer, peer, sought)).await;
    hang_up(&dialer).await;
    traced.map_err(|_| FrontError::NoAnswer { peer: peer.address, limit: patience })?
}

async fn trace_by(dialer: &Endpoint, peer: &Peer, sought: &Sought) -> Result<Traced, FrontError> {
    let (uuid, name) = (sought.uuid, PeerText::new(&sought.name));
    if let Some(migration) = sought.migration {
        let request = FrontRequest::Trace { uuid, name: name.clone(), migration };
        match ask(dialer, peer, &request).await {
            Ok(FrontReply::Traced { guest, onward }) => {
                return Ok(Traced { guest, onward, is_since: true });
            }
            // An earlier version hangs up on a question that it does not know.
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

/// A migration whose source process died, as its record names it.
#[derive(Debug, Clone)]
pub struct ResolveTarget {
    /// The migration.
    pub migration: MigrationId,
    /// Secret that the destination gave out.
    pub token: Token,
    /// What the record says.
    pub decision: Decision,
    /// The destination's node.
    pub node: Peer,
    /// Address of the process that took the guest in.
    pub process: SocketAddr,
}

/// Tells a destination what the source's record says, for a source process that is dead; returns
/// the destination's answer: `Running`, `Discarded`, `Unknown`, or `Abort` when nobody can tell.
///
/// Asks the node first, which knows whether the process lives; if the node is away, the process
/// itself.
///
/// # Errors
/// Why there is no answer: ask again later.
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
        // The destination closes when it has heard; it may be gone already.
        let _ = timeout(Duration::from_secs(2), send.stopped()).await;
        Ok(answer)
    };
    let outcome = dialogue.await.map_err(|failure| match failure {
        ReadFailure::Malformed(error) | ReadFailure::OutOfStep(error) => malformed(peer, &error),
        ReadFailure::Lost(detail) => match connection.close_reason() {
            Some(error) => LinkError::explain(&error, peer.address, &peer.name).into(),
            None => FrontError::Protocol { peer: peer.address, detail },
        },
    });
    connection.close(0_u32.into(), b"");
    outcome
}

fn unfit(peer: &Peer, reply: FrontReply) -> FrontError {
    let detail = match reply {
        FrontReply::Refused(refusal) => return FrontError::Refused(refusal),
        FrontReply::Admitted { .. } => "admitted",
        FrontReply::Resolved(_) => "resolved",
        FrontReply::AskProcess { .. } => "ask the process",
        FrontReply::Found(_) => "found",
        FrontReply::Traced { .. } => "traced",
    };
    FrontError::Protocol { peer: peer.address, detail: detail.into() }
}

fn malformed(peer: &Peer, error: &CodecError) -> FrontError {
    FrontError::Protocol { peer: peer.address, detail: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::quic::Authority;

    /// A node that knows `Find` and no later question.
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
    async fn a_node_of_an_earlier_version_is_asked_what_it_understands() {
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
    }
}
