//! Two connected endpoints on loopback, for tests of data on a connection.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use quinn::{Connection, Endpoint, RecvStream, SendStream};

use super::authority::Authority;
use super::endpoint::{Peer, connect, dialer, listen};
use super::tls::Tls;

/// Both ends of a connection, and the endpoints that drive them.
pub(crate) struct Pair {
    pub(crate) near: Connection,
    pub(crate) far: Connection,
    _endpoints: [Endpoint; 2],
}

impl Pair {
    pub(crate) async fn new() -> Self {
        let identity = Authority::create().unwrap().issue(&["127.0.0.1".into()]).unwrap();
        let tls = Tls::new(&identity).unwrap();
        let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        let listener = listen(any, &tls).unwrap();
        let address = listener.local_addr().unwrap();
        let dialer = dialer(address, &tls).unwrap();
        let peer = Peer { address, name: "127.0.0.1".into() };
        let accept = async { listener.accept().await.unwrap().await.unwrap() };
        let (near, far) = tokio::join!(connect(&dialer, &peer), accept);
        Self { near: near.unwrap(), far, _endpoints: [listener, dialer] }
    }

    /// Returns a stream on which `bytes` arrive before `ending`.
    pub(crate) async fn incoming(&self, bytes: &[u8], ending: Ending) -> RecvStream {
        let mut send: SendStream = self.near.open_uni().await.unwrap();
        send.write_all(bytes).await.unwrap();
        match ending {
            Ending::Finish => send.finish().unwrap(),
            Ending::Reset(code) => send.reset(code.into()).unwrap(),
        }
        self.far.accept_uni().await.unwrap()
    }
}

/// The way a stream ends.
pub(crate) enum Ending {
    Finish,
    Reset(u32),
}
