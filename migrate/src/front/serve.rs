//! The node's side of the protocol: answers requests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quinn::{Connection, Endpoint, Incoming};
use tokio::task::JoinSet;
use tokio::time::timeout;
use uuid::Uuid;

use super::sink::Sinks;
use crate::framing::{self, ReadFailure};
use crate::guest::{Refusal, RefusalKind};
use crate::protocol::front::{FrontReply, FrontRequest};
use crate::quic::endpoint::{seat, shake_hands, turn_away};
use crate::quic::peers::{self, GuestProcess};
use crate::quic::places::{Place, Places};

/// Requests answered at once; further peers are turned away and try again.
const CONCURRENT_MAX: usize = 32;
/// Longest time for a peer's handshake, and for its request.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// Longest time for a peer to receive the answer.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// Maximum age of the certificate of a guest's process when a migration begins. `lighter migrate`
/// has it issued right before; the rest allows for clocks that differ.
const ADMISSION_AGE_MAX: Duration = Duration::from_mins(15);

/// Answers requests; the node implements it.
pub trait FrontHandler: Send + Sync + 'static {
    /// Answers `request` from `peer`: a host with a certificate of the fleet, or, if `guest` is
    /// set, the process of that guest on such a host, which may ask only for that guest.
    fn answer(
        &self,
        request: FrontRequest,
        peer: SocketAddr,
        guest: Option<Uuid>,
    ) -> impl Future<Output = FrontReply> + Send;
}

/// Answers the requests to `endpoint` until it is closed, and finishes those under way.
pub async fn serve<H: FrontHandler>(endpoint: Endpoint, handler: Arc<H>) {
    let places = Places::new(CONCURRENT_MAX);
    let sinks = Sinks::new();
    let mut dialogues = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        while dialogues.try_join_next().is_some() {}
        let Some((incoming, mut place)) = seat(incoming, &places) else { continue };
        let (handler, sinks) = (handler.clone(), sinks.clone());
        dialogues.spawn(async move {
            let peer = incoming.remote_address();
            if let Err(reason) = dialogue(incoming, &mut place, &*handler, &sinks).await {
                tracing::debug!(%peer, reason, "a request came to nothing");
            }
        });
    }
    while dialogues.join_next().await.is_some() {}
}

async fn dialogue<H: FrontHandler>(
    incoming: Incoming,
    place: &mut Place,
    handler: &H,
    sinks: &Sinks,
) -> Result<(), String> {
    let peer = incoming.remote_address();
    let connection = shake_hands(incoming, place, REQUEST_TIME).await?;
    let outcome = answer_one(&connection, peer, handler, sinks).await;
    match &outcome {
        Ok(()) => connection.close(0_u32.into(), b""),
        Err(reason) => turn_away(&connection, 0, reason).await,
    }
    outcome
}

async fn answer_one<H: FrontHandler>(
    connection: &Connection,
    peer: SocketAddr,
    handler: &H,
    sinks: &Sinks,
) -> Result<(), String> {
    let request = timeout(REQUEST_TIME, async {
        let opened = connection.accept_bi().await;
        let (send, mut receive) = opened.map_err(|error| ReadFailure::Lost(error.to_string()))?;
        let request = framing::read::<FrontRequest>(&mut receive).await?;
        Ok::<_, ReadFailure>((send, receive, request))
    });
    let (mut send, mut receive, request) = request
        .await
        .map_err(|_| "no request came in time")?
        .map_err(|failure| failure.to_string())?;
    let process = peers::process_at(connection);
    let (sink, reply) = match (may_ask(process, &request, SystemTime::now()), request) {
        (Err(why_not), _) => (None, FrontReply::Refused(Refusal::new(RefusalKind::Other, why_not))),
        (Ok(()), FrontRequest::Sink) => sinks.take(),
        (Ok(()), request) => tokio::select! {
            reply = handler.answer(request, peer, process.map(|it| it.guest)) => (None, reply),
            gone = connection.closed() => return Err(gone.to_string()),
        },
    };
    timeout(ANSWER_TIME, async {
        framing::write(&mut send, &reply).await?;
        send.finish().map_err(|error| error.to_string())?;
        // Returns once everything is acknowledged, or the peer has closed the connection.
        send.stopped().await.map(drop).or(Ok::<(), String>(()))
    })
    .await
    .map_err(|_| "the answer was not taken in time")??;
    if let Some(sink) = sink {
        sink.drain(&mut receive).await;
    }
    Ok(())
}

/// Returns whether a host (none) or a guest's process may send this request at `now`.
///
/// # Errors
/// If it may not; the text says why.
fn may_ask(
    process: Option<GuestProcess>,
    request: &FrontRequest,
    now: SystemTime,
) -> Result<(), String> {
    let Some(GuestProcess { guest: own, issued }) = process else { return Ok(()) };
    match request {
        FrontRequest::Sink => is_recent(issued, now),
        FrontRequest::Admit { guest, .. } if guest.uuid == own => is_recent(issued, now),
        // The record says which guest it is about.
        FrontRequest::Resolve { .. } => Ok(()),
        FrontRequest::Admit { .. }
        | FrontRequest::Find { .. }
        | FrontRequest::Trace { .. }
        | FrontRequest::DiskUsers { .. }
        | FrontRequest::BootFiles { .. }
        | FrontRequest::IsAttachable { .. }
        | FrontRequest::AttachDevice { .. } => {
            Err("the process of a guest may ask for that guest only".to_owned())
        }
    }
}

/// Returns whether the certificate of a guest's process was issued shortly before `now`. Without
/// this, one `lighter migrate` would let a compromised process send guests for as long as its
/// certificate is valid.
///
/// # Errors
/// If it was not; the text says how old it is.
fn is_recent(issued: SystemTime, now: SystemTime) -> Result<(), String> {
    let (age, is_ahead) = match now.duration_since(issued) {
        Ok(age) => (age, false),
        Err(ahead) => (ahead.duration(), true),
    };
    if age <= ADMISSION_AGE_MAX {
        return Ok(());
    }
    let (minutes, most) = (age.as_secs() / 60, ADMISSION_AGE_MAX.as_secs() / 60);
    let how = if is_ahead { "from the future" } else { "old" };
    Err(format!(
        "the certificate of the guest's process is {minutes} minutes {how}, and a migration must begin within {most} minutes \
         of `lighter migrate`: check the clocks of both hosts"
    ))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::front::{FrontError, ask};
    use crate::guest::GuestDescription;
    use crate::memory::{MemoryLayout, Region};
    use crate::progress::Role;
    use crate::protocol::front::{DiskFeatures, SoughtDisk};
    use crate::protocol::{Decision, DestinationMessage, MigrationId, Offer, Token};
    use crate::quic::endpoint::{Peer, connect, dialer, listen};
    use crate::quic::{Authority, Identity, Tls};
    use crate::text::{Blob, PeerText};

    /// Answers that it knows no migration.
    struct Ignorant;

    impl FrontHandler for Ignorant {
        async fn answer(&self, _: FrontRequest, _: SocketAddr, _: Option<Uuid>) -> FrontReply {
            FrontReply::Resolved(DestinationMessage::Unknown)
        }
    }

    fn question() -> FrontRequest {
        let (migration, token) = (MigrationId::random(), Token::random());
        FrontRequest::Resolve { migration, token, decision: Decision::Aborted }
    }

    fn admit(uuid: Uuid) -> FrontRequest {
        FrontRequest::Admit {
            migration: MigrationId::random(),
            offer: Offer::ours(),
            guest: GuestDescription {
                name: "web-1".to_owned(),
                uuid,
                layout: MemoryLayout::new(vec![Region { base: 0, bytes: 2 << 20 }]).unwrap(),
                vcpus: 1,
                config: Blob(Vec::new()),
                disks: Vec::new(),
                has_pci: false,
            },
        }
    }

    fn node() -> (Endpoint, Endpoint, Peer) {
        let identity = Authority::create().unwrap().issue(&["127.0.0.1".into()]).unwrap();
        let tls = Tls::new(&identity).unwrap();
        let listener = listen((Ipv4Addr::LOCALHOST, 0).into(), &tls).unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener.clone(), Arc::new(Ignorant)));
        let dialer = dialer(address, &tls).unwrap();
        (listener, dialer, Peer { address, name: "127.0.0.1".into() })
    }

    #[tokio::test]
    async fn answers_many_at_once() {
        let (_listener, dialer, peer) = node();
        let mut asked = JoinSet::new();
        for _ in 0..20 {
            let (dialer, peer) = (dialer.clone(), peer.clone());
            asked.spawn(async move { ask(&dialer, &peer, &question()).await });
        }
        while let Some(answer) = asked.join_next().await {
            let expected = FrontReply::Resolved(DestinationMessage::Unknown);
            assert_eq!(answer.unwrap().unwrap(), expected);
        }
    }

    #[tokio::test]
    async fn rejects_invalid_requests_with_a_reason() {
        let (_listener, dialer, peer) = node();
        let mut oversized = framing::frame(&question()).unwrap();
        oversized[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        for (bytes, reason) in
            [(&b"GET / HTTP/1.1\r\n"[..], "not a control frame"), (&oversized, "announces")]
        {
            let connection = connect(&dialer, &peer).await.unwrap();
            let (mut send, _receive) = connection.open_bi().await.unwrap();
            send.write_all(bytes).await.unwrap();
            let closed = connection.closed().await.to_string();
            assert!(closed.contains(reason), "{closed}");
        }
        ask(&dialer, &peer, &question()).await.unwrap();
    }

    #[tokio::test]
    async fn the_process_of_a_guest_asks_for_that_guest_only() {
        let (own, other) = (Uuid::new_v4(), Uuid::new_v4());
        let folder = tempfile::tempdir().unwrap();
        let host = Authority::create().unwrap().issue(&["127.0.0.1".into()]).unwrap();
        host.save(folder.path()).unwrap();
        let listener = listen((Ipv4Addr::LOCALHOST, 0).into(), &Tls::new(&host).unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener.clone(), Arc::new(Ignorant)));
        let peer = Peer { address, name: "127.0.0.1".into() };
        let of_process =
            Tls::new(&Identity::of_guest(folder.path(), own, Role::Source).unwrap()).unwrap();
        let dialer = dialer(address, &of_process).unwrap();

        for allowed in [admit(own), question()] {
            let reply = ask(&dialer, &peer, &allowed).await.unwrap();
            assert_eq!(reply, FrontReply::Resolved(DestinationMessage::Unknown));
        }
        let find = |uuid| FrontRequest::Find { uuid, name: PeerText::new("web-1") };
        let trace = FrontRequest::Trace {
            uuid: own,
            name: PeerText::new("web-1"),
            migration: MigrationId::random(),
        };
        let features = DiskFeatures::File { inode: 7, born_unix_ns: None };
        let disk = SoughtDisk { path: PeerText::new("/srv/web.raw"), features };
        let users = FrontRequest::DiskUsers { disk };
        let files = FrontRequest::BootFiles { files: Vec::new() };
        let device = PeerText::new("03:00.0");
        let attachable = FrontRequest::IsAttachable { device: device.clone() };
        let (migration, token) = (MigrationId::random(), Token::random());
        let attach = FrontRequest::AttachDevice { migration, token, device };
        let reply = ask(&dialer, &peer, &FrontRequest::Sink).await.unwrap();
        assert!(matches!(reply, FrontReply::Sink { .. }), "{reply:?}");
        let own_guest = [find(own), trace, users, files, attachable, attach];
        for forbidden in [admit(other), find(other)].into_iter().chain(own_guest) {
            let reply = ask(&dialer, &peer, &forbidden).await.unwrap();
            assert!(matches!(reply, FrontReply::Refused(_)), "{reply:?}");
        }
    }

    #[test]
    fn a_migration_begins_soon_after_its_process_was_given_its_certificate() {
        let issued = SystemTime::UNIX_EPOCH + Duration::from_hours(1000);
        let own = Uuid::new_v4();
        let may = |request: &FrontRequest, now| {
            may_ask(Some(GuestProcess { guest: own, issued }), request, now)
        };
        let late = issued + ADMISSION_AGE_MAX + Duration::from_secs(1);
        may(&admit(own), issued + ADMISSION_AGE_MAX).unwrap();
        may(&admit(own), issued - Duration::from_mins(10)).unwrap();
        may(&FrontRequest::Sink, issued + ADMISSION_AGE_MAX).unwrap();
        may(&FrontRequest::Sink, late).unwrap_err();
        // The source's clock is ahead: its process could begin migrations for another hour.
        let ahead = may(&admit(own), issued - Duration::from_hours(1)).unwrap_err();
        assert!(ahead.contains("60 minutes from the future"), "{ahead}");
        let refused = may(&admit(own), late).unwrap_err();
        assert!(refused.contains("15 minutes old") && refused.contains("clocks"), "{refused}");
        // A migration in doubt is settled, however late.
        may(&question(), issued + Duration::from_hours(24 * 29)).unwrap();
    }

    #[tokio::test]
    async fn a_vanished_node_is_distinguished_from_a_refusal() {
        let (listener, dialer, peer) = node();
        ask(&dialer, &peer, &question()).await.unwrap();
        listener.close(0_u32.into(), b"shutting down");
        let error = ask(&dialer, &peer, &question()).await.unwrap_err();
        assert!(matches!(error, FrontError::Link(_)), "{error}");
    }
}
