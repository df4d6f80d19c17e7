//! Binds sockets, connects and accepts, with the crate's transport settings.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

pub use quinn::Endpoint;
use quinn::{
    ClientConfig, Connection, EndpointConfig, Incoming, ServerConfig, TokioRuntime, TransportConfig,
};

use super::error::LinkError;
use super::places::{Place, Places};
use super::tls::Tls;
use super::transport::{self, LINK_KEEP_ALIVE, MTU_LOOPBACK, MTU_MAX, Path, SOCKET_BUFFER};

/// Most addresses of a host that are tried.
const ADDRESSES_MAX: usize = 4;
/// Handshakes under way at once on one endpoint; further ones are ignored until one completes.
const INCOMING_MAX: usize = 64;
/// Bytes buffered for connections that have not been accepted yet.
const INCOMING_BYTES: u64 = 1 << 20;

/// A peer to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The address that it listens on.
    pub address: SocketAddr,
    /// Name or IP address that its certificate must be valid for.
    pub name: String,
}

impl Peer {
    /// Looks up `host`, a DNS name or an IP address; returns a peer for each of its addresses, at
    /// most four.
    ///
    /// # Errors
    /// [`LinkError::Resolve`] if it has no address.
    pub async fn find(host: &str, port: u16) -> Result<Vec<Self>, LinkError> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let fail = |reason: String| LinkError::Resolve { host: host.into(), reason };
        let found =
            tokio::net::lookup_host((bare, port)).await.map_err(|error| fail(error.to_string()))?;
        Some(Self::at(host, found))
            .filter(|peers| !peers.is_empty())
            .ok_or_else(|| fail("it has none".into()))
    }

    /// Returns a peer for each of the `addresses` of `host`, at most four.
    pub fn at(host: &str, addresses: impl IntoIterator<Item = SocketAddr>) -> Vec<Self> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let addresses = addresses.into_iter().take(ADDRESSES_MAX);
        addresses.map(|address| Self { address, name: bare.into() }).collect()
    }

    /// Returns the same host with another port.
    #[must_use]
    pub fn with_port(&self, port: u16) -> Self {
        Self { address: SocketAddr::new(self.address.ip(), port), name: self.name.clone() }
    }
}

/// Opens an endpoint that accepts connections on `address`, also with the large datagrams that
/// peers on the same host send, for which quinn reserves 128 MiB of address space.
///
/// Must be called inside a tokio runtime, which then drives the endpoint.
///
/// # Errors
/// [`LinkError::Socket`] if the address cannot be bound.
pub fn listen(address: SocketAddr, tls: &Tls) -> Result<Endpoint, LinkError> {
    open(address, Some(server(tls)), MTU_LOOPBACK)
}

/// As [`listen`], for memory: the address of a source may change while it is connected.
pub(crate) fn listen_for_memory(address: SocketAddr, tls: &Tls) -> Result<Endpoint, LinkError> {
    let mut server = server(tls);
    server.migration(true);
    open(address, Some(server), MTU_LOOPBACK)
}

/// Makes `endpoint`, which [`listen`] opened, accept new connections with other certificates.
pub fn renew(endpoint: &Endpoint, tls: &Tls) {
    endpoint.set_server_config(Some(server(tls)));
}

fn server(tls: &Tls) -> ServerConfig {
    let mut server = ServerConfig::with_crypto(tls.server.clone());
    server
        .transport_config(Arc::new(transport::config(Path::Network)))
        .migration(false)
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_BYTES);
    server
}

/// Opens an endpoint that connects to peers of the same address family as `towards`.
///
/// # Errors
/// [`LinkError::Socket`] if no socket can be opened.
pub fn dialer(towards: SocketAddr, tls: &Tls) -> Result<Endpoint, LinkError> {
    dial_over(transport::config(Path::Network), towards, tls)
}

/// As [`dialer`], for memory sent to `towards`, in large datagrams if that is on this host.
/// It is one of `coupled` connections that carry it: beside others, they take the share of one.
pub(crate) fn dialer_for_memory(
    towards: SocketAddr,
    tls: &Tls,
    coupled: u16,
) -> Result<Endpoint, LinkError> {
    dial_over(transport::config_for_memory(Path::to(towards), coupled), towards, tls)
}

/// As [`dialer_for_memory`], for one of several links.
pub(crate) fn dialer_for_link(towards: SocketAddr, tls: &Tls) -> Result<Endpoint, LinkError> {
    let mut config = transport::config(Path::to(towards));
    config.keep_alive_interval(Some(LINK_KEEP_ALIVE));
    dial_over(config, towards, tls)
}

fn dial_over(
    config: TransportConfig,
    towards: SocketAddr,
    tls: &Tls,
) -> Result<Endpoint, LinkError> {
    let any: IpAddr = match towards {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let mut endpoint = open(SocketAddr::new(any, 0), None, MTU_MAX)?;
    let mut client = ClientConfig::new(tls.client.clone());
    client.transport_config(Arc::new(config));
    endpoint.set_default_client_config(client);
    Ok(endpoint)
}

/// Gives `incoming` a place if one is free. Once more than half of `places` are taken, only a peer
/// that has proved to receive at its address gets one: others are sent a Retry (RFC 9000 §8.1.2)
/// and come again.
pub(crate) fn seat(incoming: Incoming, places: &Arc<Places>) -> Option<(Incoming, Place)> {
    if places.are_scarce() && !incoming.remote_address_validated() {
        // Fails only for a peer that was sent a Retry already.
        let _ = incoming.retry();
        return None;
    }
    match places.take(incoming.remote_address().ip(), incoming.remote_address_validated()) {
        Some(place) => Some((incoming, place)),
        None => {
            incoming.refuse();
            None
        }
    }
}

/// Completes the handshake of `incoming` within `patience`; its `place` is then permanent.
///
/// # Errors
/// If the handshake fails, times out, or the place goes to another peer; the text says which.
pub(crate) async fn shake_hands(
    incoming: Incoming,
    place: &mut Place,
    patience: Duration,
) -> Result<Connection, String> {
    let from = incoming.remote_address();
    let connection = tokio::select! {
        done = tokio::time::timeout(patience, incoming) => done,
        () = place.lost() => return Err("dropped to make room for another peer".to_owned()),
    };
    place.keep();
    connection
        .map_err(|_| "TLS handshake timed out")?
        .map_err(|error| LinkError::explain(&error, from, "").to_string())
}

/// Connects to `peer` and verifies its certificate.
///
/// A peer that refuses this host's certificate says so only after this returns: the first read then
/// fails.
///
/// # Errors
/// If the connection cannot be made; the [`LinkError`] says why.
pub async fn connect(dialer: &Endpoint, peer: &Peer) -> Result<Connection, LinkError> {
    let connecting = dialer
        .connect(peer.address, &peer.name)
        .map_err(|error| LinkError::connect(&error, peer.address))?;
    connecting.await.map_err(|error| LinkError::explain_connect(&error, peer.address, &peer.name))
}

/// Closes a connection that has just been established, and tells the peer why.
///
/// quinn loses a close that its pacer delays behind the handshake's last packets: the close stops
/// the timer that would send it (`quinn-proto` 0.11, `close_common`). So those packets are sent
/// first.
pub(crate) async fn turn_away(connection: &Connection, code: u32, reason: &str) {
    tokio::time::sleep(Duration::from_millis(50)).await;
    connection.close(code.into(), reason.as_bytes());
}

fn open(
    address: SocketAddr,
    server: Option<ServerConfig>,
    payload_max: u16,
) -> Result<Endpoint, LinkError> {
    let fail = |error| LinkError::socket(&error, address);
    let socket = UdpSocket::bind(address).map_err(fail)?;
    enlarge_buffers(&socket);
    let mut config = EndpointConfig::default();
    config
        .max_udp_payload_size(payload_max)
        .map_err(|error| LinkError::socket(&std::io::Error::other(error), address))?;
    Endpoint::new(config, server, socket, Arc::new(TokioRuntime)).map_err(fail)
}

/// Requests larger socket buffers, since bursts are lost with the system's default. Getting less is
/// not an error.
fn enlarge_buffers(socket: &UdpSocket) {
    let Ok(state) = quinn::udp::UdpSocketState::new(socket.into()) else { return };
    let outcome = state
        .set_send_buffer_size(socket.into(), SOCKET_BUFFER)
        .and_then(|()| state.set_recv_buffer_size(socket.into(), SOCKET_BUFFER));
    if let Err(error) = outcome {
        tracing::debug!(%error, "cannot enlarge the socket buffers");
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use quinn::ConnectionError;

    use uuid::Uuid;

    use super::super::authority::Authority;
    use super::super::chain::{provider, roots};
    use super::super::identity::Identity;
    use super::*;
    use crate::progress::Role;

    const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    fn tls(authority: &Authority) -> Tls {
        Tls::new(&authority.issue(&["127.0.0.1".into()]).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn when_places_are_scarce_only_a_peer_that_receives_where_it_claims_to_be_gets_one() {
        let tls = tls(&Authority::create().unwrap());
        let listener = listen(ANY, &tls).unwrap();
        let address = listener.local_addr().unwrap();
        let dialer = dialer(address, &tls).unwrap();
        let peer = Peer { address, name: "127.0.0.1".into() };
        let places = Places::new(4);
        let _taken = [(); 3].map(|()| places.take(address.ip(), false).unwrap());

        let accepting = async {
            let first = listener.accept().await.unwrap();
            assert!(seat(first, &places).is_none(), "a stranger got a scarce place");
            let again = listener.accept().await.unwrap();
            let (incoming, _place) = seat(again, &places).expect("a place for a proven peer");
            incoming.await.unwrap()
        };
        let (connected, _accepted) = tokio::join!(connect(&dialer, &peer), accepting);
        connected.unwrap();
    }

    /// Returns the errors on both sides of a connection: the dialer reads one stream, which the
    /// listener opens.
    async fn meet(listening: &Tls, dialing: &Tls, name: &str) -> (LinkError, LinkError) {
        let listener = listen(ANY, listening).unwrap();
        let address = listener.local_addr().unwrap();
        let peer = Peer { address, name: name.into() };
        let accepting = tokio::spawn(async move {
            let incoming = listener.accept().await.unwrap();
            let from = incoming.remote_address();
            let error = match incoming.await {
                Ok(connection) => {
                    connection.close(0_u32.into(), b"fine");
                    ConnectionError::LocallyClosed
                }
                Err(error) => error,
            };
            listener.wait_idle().await;
            LinkError::explain(&error, from, "")
        });
        let dialer = dialer(address, dialing).unwrap();
        let seen = match connect(&dialer, &peer).await {
            Ok(connection) => {
                LinkError::explain(&connection.closed().await, peer.address, &peer.name)
            }
            Err(error) => error,
        };
        (seen, accepting.await.unwrap())
    }

    #[tokio::test]
    async fn hosts_of_one_authority_meet() {
        let authority = Authority::create().unwrap();
        let (seen, _) = meet(&tls(&authority), &tls(&authority), "127.0.0.1").await;
        assert!(matches!(&seen, LinkError::Closed { reason, .. } if reason == "fine"), "{seen:?}");
    }

    fn host(authority: &Authority) -> Identity {
        authority.issue(&["127.0.0.1".into()]).unwrap()
    }

    /// Creates a host whose certificate was valid until yesterday.
    fn expired_host(authority: &Authority) -> Identity {
        let expire = |params: &mut rcgen::CertificateParams| {
            let day = std::time::Duration::from_secs(24 * 3600);
            params.not_after = params.not_before;
            params.not_before -= 10 * day;
        };
        authority.issue_with(&["127.0.0.1".into()], expire).unwrap()
    }

    /// Returns the identities of a guest's process as migration source and destination.
    fn processes_of(guest: Uuid, host: &Identity) -> [Tls; 2] {
        [Role::Source, Role::Destination]
            .map(|role| Tls::new(&host.vouch_for(guest, role).unwrap()).unwrap())
    }

    fn is_fine(seen: &LinkError) -> bool {
        matches!(seen, LinkError::Closed { reason, .. } if reason == "fine")
    }

    #[tokio::test]
    async fn a_guests_process_meets_that_guests_and_nodes() {
        let authority = Authority::create().unwrap();
        let (here, there, guest) = (host(&authority), host(&authority), Uuid::new_v4());
        let [leaving, _] = processes_of(guest, &here);
        let [_, arriving] = processes_of(guest, &there);
        for listening in [arriving, Tls::new(&there).unwrap()] {
            let (seen, _) = meet(&listening, &leaving, "127.0.0.1").await;
            assert!(is_fine(&seen), "{seen:?}");
        }
    }

    #[tokio::test]
    async fn destinations_do_not_connect_and_sources_do_not_listen() {
        let authority = Authority::create().unwrap();
        let [leaving, arriving] = processes_of(Uuid::new_v4(), &host(&authority));
        let node = Tls::new(&host(&authority)).unwrap();
        for (listening, dialing) in
            [(&arriving, &arriving), (&leaving, &leaving), (&node, &arriving)]
        {
            let (seen, reported) = meet(listening, dialing, "127.0.0.1").await;
            assert!(!is_fine(&seen), "{seen:?} / {reported:?}");
        }
    }

    #[tokio::test]
    async fn a_guests_process_cannot_act_as_a_host_or_another_guest() {
        let authority = Authority::create().unwrap();
        let (here, there) = (host(&authority), host(&authority));
        let [stranger_leaving, stranger_arrived] = processes_of(Uuid::new_v4(), &there);
        let [leaving, arriving] = processes_of(Uuid::new_v4(), &here);
        for (listening, dialing) in [
            // The stranger listens where a node did.
            (&stranger_arrived, &Tls::new(&here).unwrap()),
            // The stranger listens where a guest's process did.
            (&stranger_arrived, &leaving),
            (&arriving, &stranger_leaving),
        ] {
            let (seen, reported) = meet(listening, dialing, "127.0.0.1").await;
            let (seen, reported) = (seen.to_string(), reported.to_string());
            assert!(seen.contains("may not speak for others"), "{seen} / {reported}");
        }
    }

    #[tokio::test]
    async fn only_a_host_of_the_authority_vouches_for_a_guests_process() {
        let (ours, theirs) = (Authority::create().unwrap(), Authority::create().unwrap());
        let (guest, there) = (Uuid::new_v4(), host(&ours));
        let [_, arriving] = processes_of(guest, &there);
        let mut other = host(&theirs).vouch_for(guest, Role::Source).unwrap();
        other.ca_pem.clone_from(&there.ca_pem);
        // A process cannot issue certificates with its own, even where its host is trusted as an
        // authority.
        let process = there.vouch_for(guest, Role::Source).unwrap();
        let passed_on = process.vouch_for(guest, Role::Source).unwrap();
        let mut trusting = there.vouch_for(guest, Role::Destination).unwrap();
        trusting.ca_pem += &there.cert_pem;
        // A host's certificate does not prove that a peer has its key.
        let mut forged = other.clone();
        let own = other.cert_pem.find("-----END CERTIFICATE-----").unwrap() + 26;
        forged.cert_pem = other.cert_pem[..own].to_owned() + &there.cert_pem;
        for (dialing, listening) in [
            (other, &arriving),
            (passed_on.clone(), &arriving),
            (passed_on, &Tls::new(&trusting).unwrap()),
            (forged, &arriving),
        ] {
            let dialing = Tls::new(&dialing).unwrap();
            let (seen, reported) = meet(listening, &dialing, "127.0.0.1").await;
            let reported = reported.to_string();
            let is_refused = ["authority", "invalid peer certificate"]
                .iter()
                .any(|word| reported.contains(word));
            assert!(is_refused, "{seen:?} / {reported}");
        }
    }

    #[tokio::test]
    async fn a_host_whose_certificate_has_expired_is_refused_in_either_direction() {
        let authority = Authority::create().unwrap();
        let (good, expired) = (tls(&authority), Tls::new(&expired_host(&authority)).unwrap());

        let (seen, _) = meet(&expired, &good, "127.0.0.1").await;
        assert!(matches!(seen, LinkError::BadCertificate { .. }), "{seen:?}");
        assert!(seen.to_string().contains("expired"), "{seen}");

        let (seen, reported) = meet(&good, &expired, "127.0.0.1").await;
        assert!(matches!(reported, LinkError::BadCertificate { .. }), "{reported:?}");
        assert!(reported.to_string().contains("expired"), "{reported}");
        assert!(matches!(seen, LinkError::Refused { .. }), "{seen:?}");
    }

    /// The process's own certificate is valid for weeks.
    #[tokio::test]
    async fn a_guests_process_is_refused_when_its_hosts_certificate_has_expired() {
        let authority = Authority::create().unwrap();
        let guest = Uuid::new_v4();
        let [good_leaving, good_arriving] = processes_of(guest, &host(&authority));
        let [leaving, arriving] = processes_of(guest, &expired_host(&authority));

        let (seen, _) = meet(&arriving, &good_leaving, "127.0.0.1").await;
        assert!(matches!(seen, LinkError::BadCertificate { .. }), "{seen:?}");
        assert!(seen.to_string().contains("expired"), "{seen}");

        for listening in [&good_arriving, &tls(&authority)] {
            let (seen, reported) = meet(listening, &leaving, "127.0.0.1").await;
            assert!(matches!(reported, LinkError::BadCertificate { .. }), "{reported:?}");
            assert!(reported.to_string().contains("expired"), "{reported}");
            assert!(matches!(seen, LinkError::Refused { .. }), "{seen:?}");
        }
    }

    #[tokio::test]
    async fn the_name_of_a_guests_process_is_its_hosts() {
        let (authority, guest) = (Authority::create().unwrap(), Uuid::new_v4());
        let [leaving, _] = processes_of(guest, &host(&authority));
        let [_, arriving] = processes_of(guest, &host(&authority));
        let (seen, _) = meet(&arriving, &leaving, "host-b").await;
        assert!(matches!(seen, LinkError::WrongName { .. }), "{seen:?}");
    }

    #[tokio::test]
    async fn refuses_a_listener_of_another_authority() {
        let (here, there) = (Authority::create().unwrap(), Authority::create().unwrap());
        let (seen, reported) = meet(&tls(&there), &tls(&here), "127.0.0.1").await;
        assert!(matches!(seen, LinkError::UnknownIssuer { .. }), "{seen:?}");
        assert!(matches!(reported, LinkError::Refused { .. }), "{reported:?}");
    }

    #[tokio::test]
    async fn refuses_a_dialer_of_another_authority() {
        let (here, there) = (Authority::create().unwrap(), Authority::create().unwrap());
        let mut identity = here.issue(&["127.0.0.1".into()]).unwrap();
        identity.ca_pem = there.issue(&["x".into()]).unwrap().ca_pem;
        let dialing = Tls::new(&identity).unwrap();
        let (seen, reported) = meet(&tls(&there), &dialing, "127.0.0.1").await;
        assert!(matches!(seen, LinkError::Refused { .. }), "{seen:?}");
        assert!(matches!(reported, LinkError::UnknownIssuer { .. }), "{reported:?}");
    }

    #[tokio::test]
    async fn refuses_a_dialer_without_a_certificate() {
        let authority = Authority::create().unwrap();
        let identity = authority.issue(&["127.0.0.1".into()]).unwrap();
        let mut bare = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots(&identity.ca_pem).unwrap())
            .with_no_client_auth();
        bare.alpn_protocols = vec![super::super::ALPN.to_vec()];
        let dialing = Tls {
            client: Arc::new(quinn::crypto::rustls::QuicClientConfig::try_from(bare).unwrap()),
            ..tls(&authority)
        };
        let (seen, reported) = meet(&tls(&authority), &dialing, "127.0.0.1").await;
        assert!(matches!(seen, LinkError::NoCertificate { .. }), "{seen:?}");
        assert!(reported.to_string().contains("showed none"), "{reported:?}");
    }

    #[tokio::test]
    async fn refuses_a_certificate_for_another_name() {
        let authority = Authority::create().unwrap();
        let (seen, _) = meet(&tls(&authority), &tls(&authority), "host-b").await;
        let message = seen.to_string();
        assert!(message.contains("not valid for the name host-b"), "{message}");
    }

    #[tokio::test]
    async fn the_address_of_a_source_may_change_while_it_is_connected() {
        let tls = tls(&Authority::create().unwrap());
        let listener = listen_for_memory(ANY, &tls).unwrap();
        let address = listener.local_addr().unwrap();
        let dialer = dialer_for_memory(address, &tls, 1).unwrap();
        let peer = Peer { address, name: "127.0.0.1".into() };
        let accepting = async { listener.accept().await.unwrap().await.unwrap() };
        let (near, far) = tokio::join!(connect(&dialer, &peer), accepting);
        let (near, before) = (near.unwrap(), far.remote_address());

        dialer.rebind(UdpSocket::bind("127.0.0.2:0").unwrap()).unwrap();

        let mut stream = near.open_uni().await.unwrap();
        stream.write_all(b"still here").await.unwrap();
        stream.finish().unwrap();
        let heard = far.accept_uni().await.unwrap().read_to_end(64).await.unwrap();
        assert_eq!(heard, b"still here");
        assert_ne!(far.remote_address().ip(), before.ip());
    }

    #[tokio::test]
    async fn refuses_another_protocol() {
        let authority = Authority::create().unwrap();
        let identity = authority.issue(&["127.0.0.1".into()]).unwrap();
        let other = Tls::with_alpn(&identity, b"lighter/9").unwrap();
        let (seen, reported) = meet(&tls(&authority), &other, "127.0.0.1").await;
        assert!(matches!(seen, LinkError::Protocol { .. }), "{seen:?}");
        assert!(matches!(reported, LinkError::Protocol { .. }), "{reported:?}");
    }

    #[tokio::test]
    async fn an_address_taken_is_named() {
        let tls = tls(&Authority::create().unwrap());
        let first = listen(ANY, &tls).unwrap();
        let taken = first.local_addr().unwrap();
        let message = listen(taken, &tls).unwrap_err().to_string();
        assert!(message.contains(&taken.to_string()), "{message}");
    }
}
