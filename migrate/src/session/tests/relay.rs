//! A network between source and process that can fall silent.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use tokio::net::UdpSocket;

use super::super::limiter::Limiter;
use super::super::liveness::FRESH;
use super::world::LOOPBACK;

/// Forwards datagrams between the sockets of a source and one process until it is silenced.
#[derive(Clone, Default)]
pub(super) struct Relay {
    pub(super) silent: Arc<AtomicBool>,
    /// Whether nothing reaches the process, while what it sends still arrives.
    pub(super) deaf: Arc<AtomicBool>,
    /// The same of what the first of the source's sockets sends.
    pub(super) first_deaf: Arc<AtomicBool>,
    /// Bytes per second forwarded to the process; 0 for no limit.
    pub(super) bytes_per_second: u64,
    /// Number of the source's sockets by now.
    pub(super) sockets: Arc<AtomicUsize>,
    /// Port of the first one.
    pub(super) first_port: Arc<AtomicUsize>,
    /// Address from which the process hears the source; [`LOOPBACK`] if none.
    pub(super) from: Option<IpAddr>,
}

impl Relay {
    /// Starts forwarding to `port`; returns the port to send to.
    pub(super) fn start(&self, port: u16) -> u16 {
        self.start_at(SocketAddr::new(LOOPBACK, 0), port)
    }

    /// As [`Self::start`], and listens at `address`.
    pub(super) fn start_at(&self, address: SocketAddr, port: u16) -> u16 {
        let here = bind(address);
        let relay_port = here.local_addr().unwrap().port();
        let relay = self.clone();
        tokio::spawn(async move { relay.pass_on(here, SocketAddr::new(LOOPBACK, port)).await });
        relay_port
    }

    /// Forwards what the source sends: what comes from another of its sockets leaves on another one
    /// here.
    async fn pass_on(self, here: Arc<UdpSocket>, process: SocketAddr) {
        let mut bytes = vec![0; 65536];
        let mut sockets: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
        let link = Limiter::new((self.bytes_per_second > 0).then_some(self.bytes_per_second));
        loop {
            let Ok((length, from)) = here.recv_from(&mut bytes).await else { continue };
            if self.silent.load(SeqCst) {
                continue;
            }
            let there = sockets.entry(from).or_insert_with(|| {
                let there = bind(SocketAddr::new(self.from.unwrap_or(LOOPBACK), 0));
                let silent = self.silent.clone();
                tokio::spawn(pass_back(there.clone(), here.clone(), from, silent));
                if self.sockets.fetch_add(1, SeqCst) == 0 {
                    self.first_port.store(from.port().into(), SeqCst);
                }
                there
            });
            link.take(length).await;
            let is_first = || self.first_port.load(SeqCst) == usize::from(from.port());
            if self.deaf.load(SeqCst) || (self.first_deaf.load(SeqCst) && is_first()) {
                continue;
            }
            let _ = there.send_to(&bytes[..length], process).await;
        }
    }
}

/// A fault of the network that begins when a guest is paused for its first hand-over, after a dry
/// run.
#[derive(Default)]
pub(super) struct SilencedByPause {
    /// The flag of a [`Relay`].
    pub(super) fault: OnceLock<Arc<AtomicBool>>,
    pauses: AtomicUsize,
}

impl SilencedByPause {
    /// Takes note of a pause.
    pub(super) fn on_pause(&self) {
        let earlier = self.pauses.fetch_add(1, SeqCst);
        if let Some(fault) = self.fault.get().filter(|_| earlier == 1) {
            fault.store(true, SeqCst);
            // A pause so long that no acknowledgement from before it counts.
            std::thread::sleep(3 * FRESH);
        }
    }
}

async fn pass_back(
    there: Arc<UdpSocket>,
    here: Arc<UdpSocket>,
    source: SocketAddr,
    silent: Arc<AtomicBool>,
) {
    let mut bytes = vec![0; 65536];
    loop {
        let Ok(length) = there.recv(&mut bytes).await else { continue };
        if !silent.load(SeqCst) {
            let _ = here.send_to(&bytes[..length], source).await;
        }
    }
}

fn bind(address: SocketAddr) -> Arc<UdpSocket> {
    let socket = std::net::UdpSocket::bind(address).unwrap();
    socket.set_nonblocking(true).unwrap();
    Arc::new(UdpSocket::from_std(socket).unwrap())
}
