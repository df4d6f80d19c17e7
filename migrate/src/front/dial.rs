//! The side that asks.

use std::net::SocketAddr;
use std::time::Duration;

use quinn::Endpoint;
use tokio::time::timeout;
use uuid::Uuid;

use crate::framing::{self, ReadFailure};
use crate::guest::{GuestDescription, Refusal};
use crate::protocol::front::{FoundGuest, FrontReply, FrontRequest};
use crate::protocol::{
    CodecError, Decision, DestinationMessage, MigrationId, Offer, PeerText, SourceMessage, Token,
};
use crate::quic::endpoint::{self, Peer};
use crate::quic::{LinkError, Tls};
use crate::session::preamble::{Preamble, StreamRole};

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

/// Asks the node `peer` whether its host has the guest `uuid`, or else one that is called `name`; for no longer than `patience`.
///
/// # Errors
/// Why there is no answer.
pub async fn find(
    tls: &Tls,
    peer: &Peer,
    uuid: Uuid,
    name: &str,
    patience: Duration,
) -> Result<Option<FoundGuest>, FrontError> {
    let dialer = endpoint::dialer(peer.address, tls)?;
    let request = FrontRequest::Find { uuid, name: PeerText::new(name) };
    let reply = timeout(patience, ask(&dialer, peer, &request)).await;
    hang_up(&dialer).await;
    match reply.map_err(|_| FrontError::NoAnswer { peer: peer.address, limit: patience })?? {
        FrontReply::Found(guest) => Ok(guest),
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

/// Tells a destination what the source's record says, for a source process that is dead; returns the
/// destination's answer: `Running`, `Discarded`, `Unknown`, or `Abort` when nobody can tell.
///
/// Asks the node first, which knows whether the process lives; if the node is away, the process itself.
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
    };
    FrontError::Protocol { peer: peer.address, detail: detail.into() }
}

fn malformed(peer: &Peer, error: &CodecError) -> FrontError {
    FrontError::Protocol { peer: peer.address, detail: error.to_string() }
}
